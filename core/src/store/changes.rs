//! The rows of `wavesync_changes`: one per written column of each row, in log order.

use rusqlite::Connection;

use crate::Result;
use crate::ids::{ColumnNum, Millis, Seq, SiteId};
use crate::store::span::LogEntry;
use crate::store::tables::Table;
use crate::store::{Store, Tx};
use crate::value::Value;

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
const PAGE_ROWS: usize = 500;

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
                    "SELECT seq, tbl, k, 0, NULL, rowid FROM temp.{OLD} WHERE rowid > ?1
                     ORDER BY rowid"
                ),
                after,
            ),
            None => (
                "SELECT seq, tbl, pk, cols, at, seq FROM __wavesync_log WHERE seq > ?1 AND seq <=
                 (SELECT value FROM __wavesync_meta WHERE key = 'folded') ORDER BY seq"
                    .into(),
                self.after.0,
            ),
        };
        let (page, reached) = self.store.read(now, |tx| {
            let mut statement = tx.conn.prepare_cached(&sql)?;
            let mut entries = statement.query([after])?;
            let (mut page, mut reached, mut read) = (Vec::new(), None, 0);
            while read < PAGE_ROWS
                && let Some(entry) = entries.next()?
            {
                reached = Some(entry.get(5)?);
                let entry = LogEntry::read(entry)?;
                let Ok(table) = tx.table(entry.table) else { continue };
                let seq = entry.seq;
                let keys = tx.keys_of_entry(&table, entry)?;
                read += keys.len().max(1);
                for key in keys {
                    tx.show_changes(&mut page, &table, &key, seq)?;
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

impl Tx<'_> {
    /// Adds the columns of a row, if this is its newest entry.
    fn show_changes(
        &mut self,
        page: &mut Vec<Change>,
        table: &Table,
        key: &Value,
        seq: Seq,
    ) -> Result<()> {
        let Some(row) = self.clock(table, key)?.filter(|row| row.seq == seq) else {
            return Ok(());
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
            return Ok(());
        }
        let mut values = self.all_values(table, key)?;
        let cells = row.clock.cells.iter();
        for (column, dot) in cells.filter(|(column, _)| **column != ColumnNum::CLAIM) {
            let name = table.column(*column).map(|column| column.name.clone());
            let value = values.remove(column).unwrap_or(Value::Null);
            page.push(change(name, value, *dot));
        }
        Ok(())
    }
}
