//! The rows of `wavesync_changes`: one per written column of each row, in log order.

use rusqlite::Connection;

use crate::ids::{ColumnNum, Millis, Seq, SiteId};
use crate::store::{Store, key};
use crate::value::Value;
use crate::{Result, ids::TableNum};

/// One change as `wavesync_changes` shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// The table.
    pub table: String,
    /// The key in its stored form: the bare value, or packed text for several columns.
    pub key: Value,
    /// The column; `None` for a row without columns outside its key, and for a delete.
    pub column: Option<String>,
    /// The value; NULL for a delete.
    pub value: Value,
    /// Hybrid logical clock value of the write.
    pub stamp: i64,
    /// Local position of the row's newest change.
    pub db_version: Seq,
    /// Who wrote it.
    pub site: SiteId,
    /// Causal length of the row: odd alive, even dead.
    pub length: i64,
}

/// Rows that one page reads from the log.
const PAGE_ROWS: i64 = 500;

/// Reads changes after a position, page by page, from a connection of its own.
pub struct Changes {
    store: Store,
    after: Seq,
    page: std::vec::IntoIter<Change>,
    done: bool,
}

impl Changes {
    /// Starts after a position. The connection must not be shared. Nothing is written: what an
    /// engine has not folded yet is not shown.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn new(conn: Connection, after: Seq) -> Result<Self> {
        let store = Store::open(conn)?;
        let done = !store.initialised()?;
        Ok(Self { store, after, page: Vec::new().into_iter(), done })
    }

    fn load(&mut self, now: Millis) -> Result<()> {
        let after = self.after;
        let (page, reached) = self.store.read(now, |tx| {
            let mut page = Vec::new();
            let mut statement = tx.conn.prepare_cached(
                "SELECT seq, tbl, pk FROM __wavesync_log WHERE seq > ?1 AND seq <=
                 (SELECT value FROM __wavesync_meta WHERE key = 'folded') ORDER BY seq LIMIT ?2",
            )?;
            let entries = statement
                .query_map([after.0, PAGE_ROWS], |row| {
                    Ok((Seq(row.get(0)?), TableNum(row.get(1)?), Value::from_ref(row.get_ref(2)?)))
                })?
                .collect::<rusqlite::Result<Vec<_>>>()?;
            let reached = entries.last().map(|(seq, _, _)| *seq);
            for (seq, num, stored) in entries {
                let Ok(table) = tx.table(num) else { continue };
                if stored == Value::Null {
                    continue;
                }
                let key = key::canonical(table.form, table.key_columns, stored)?;
                let Some(row) = tx.clock(&table, &key)?.filter(|row| row.seq == seq) else {
                    continue;
                };
                let change = |column, value, dot: crate::ids::Dot| Change {
                    table: table.name.clone(),
                    key: key.clone(),
                    column,
                    value,
                    stamp: dot.stamp.0,
                    db_version: seq,
                    site: dot.site,
                    length: row.clock.length,
                };
                if row.clock.cells.is_empty() {
                    page.push(change(None, Value::Null, row.clock.birth));
                    continue;
                }
                let mut values = tx.all_values(&table, &key)?;
                let cells = row.clock.cells.iter();
                for (column, dot) in cells.filter(|(column, _)| **column != ColumnNum::CLAIM) {
                    let name = table.column(*column).map(|column| column.name.clone());
                    let value = values.remove(column).unwrap_or(Value::Null);
                    page.push(change(name, value, *dot));
                }
            }
            Ok((page, reached))
        })?;
        match reached {
            Some(reached) => self.after = reached,
            None => self.done = true,
        }
        self.page = page.into_iter();
        Ok(())
    }

    /// The next change.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn next_change(&mut self, now: Millis) -> Result<Option<Change>> {
        loop {
            if let Some(change) = self.page.next() {
                return Ok(Some(change));
            }
            if self.done {
                return Ok(None);
            }
            self.load(now)?;
        }
    }
}
