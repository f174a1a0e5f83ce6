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

/// Rows whose entries are no longer in the log (rule K2), in the order of those entries.
const OLD: &str = "__wavesync_old";

/// Reads changes after a position, page by page, from a connection of its own.
pub struct Changes {
    store: Store,
    after: Seq,
    /// The last row read of those below the horizon; `None` once they are through.
    old: Option<i64>,
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
        let mut changes = Self { store, after, old: None, page: Vec::new().into_iter(), done };
        if !done {
            changes.gather_old()?;
        }
        Ok(changes)
    }

    /// Notes the rows with entries below the horizon in a table of this connection's own.
    fn gather_old(&mut self) -> Result<()> {
        let conn = &self.store.conn;
        conn.execute_batch("BEGIN")?;
        let horizon = super::meta::<i64>(conn, "horizon")?.unwrap_or(0);
        if self.after.0 < horizon {
            let numbers = conn
                .prepare("SELECT num FROM __wavesync_table")?
                .query_map([], |row| row.get::<_, i64>(0))?
                .collect::<rusqlite::Result<Vec<_>>>()?;
            conn.execute_batch(&format!("CREATE TEMP TABLE {OLD}_any(seq, tbl, k)"))?;
            for num in numbers {
                let sql = format!(
                    "INSERT INTO temp.{OLD}_any SELECT seq, {num}, k FROM __wavesync_clock_{num}
                     WHERE seq > ?1 AND seq <= ?2"
                );
                conn.execute(&sql, [self.after.0, horizon])?;
            }
            conn.execute_batch(&format!(
                "CREATE TEMP TABLE {OLD} AS SELECT * FROM temp.{OLD}_any ORDER BY seq;
                 DROP TABLE temp.{OLD}_any"
            ))?;
            (self.old, self.after) = (Some(0), Seq(horizon));
        }
        Ok(conn.execute_batch("COMMIT")?)
    }

    fn load(&mut self, now: Millis) -> Result<()> {
        let (sql, after) = match self.old {
            Some(after) => (
                format!(
                    "SELECT seq, tbl, k, rowid FROM temp.{OLD} WHERE rowid > ?1 ORDER BY rowid
                     LIMIT ?2"
                ),
                after,
            ),
            None => (
                "SELECT seq, tbl, pk, seq FROM __wavesync_log WHERE seq > ?1 AND seq <=
                 (SELECT value FROM __wavesync_meta WHERE key = 'folded') ORDER BY seq LIMIT ?2"
                    .into(),
                self.after.0,
            ),
        };
        let (page, reached) = self.store.read(now, |tx| {
            let mut page = Vec::new();
            let mut statement = tx.conn.prepare_cached(&sql)?;
            let entries = statement
                .query_map([after, PAGE_ROWS], |row| {
                    let place: i64 = row.get(3)?;
                    let key = Value::from_ref(row.get_ref(2)?);
                    Ok((Seq(row.get(0)?), TableNum(row.get(1)?), key, place))
                })?
                .collect::<rusqlite::Result<Vec<_>>>()?;
            let reached = entries.last().map(|(.., place)| *place);
            for (seq, num, stored, _) in entries {
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
        match (reached, &mut self.old) {
            (Some(reached), Some(old)) => *old = reached,
            (Some(reached), None) => self.after = Seq(reached),
            (None, Some(_)) => self.old = None,
            (None, None) => self.done = true,
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
