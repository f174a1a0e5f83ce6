//! Log entries that stand for many rows: what was written set-wise, from one key to another.
//!
//! Such an entry has the mask [`SPAN`], the first key as `pk` and the last one as `at`. The rows are
//! those between them whose clocks name this entry as their newest: a row that was written since has
//! an entry of its own, and one that came between them later never had this one.

use rusqlite::types::ValueRef;
use rusqlite::{Row, params};

use crate::Result;
use crate::ids::{Seq, TableNum};
use crate::store::tables::Table;
use crate::store::{Tx, key};
use crate::value::Value;

/// The mask of an entry that stands for many rows.
pub const SPAN: i64 = -2;

/// A log entry as it is read for others. The columns are `seq, tbl, pk, cols, at`.
pub(super) struct LogEntry {
    /// Its position.
    pub seq: Seq,
    /// The table.
    pub table: TableNum,
    first: Value,
    /// The last key, if it stands for many rows.
    last: Option<Value>,
}

impl LogEntry {
    /// Takes an entry out of a result row.
    pub fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let span = row.get_ref(3)? == ValueRef::Integer(SPAN);
        Ok(Self {
            seq: Seq(row.get(0)?),
            table: TableNum(row.get(1)?),
            first: Value::from_ref(row.get_ref(2)?),
            last: span.then(|| row.get_ref(4).map(Value::from_ref)).transpose()?,
        })
    }
}

impl Tx<'_> {
    /// Appends the entry of rows from one key to another. It becomes the folded end with the rest
    /// of the transaction.
    pub(super) fn append_span(&self, table: &Table, first: &Value, last: &Value) -> Result<Seq> {
        self.conn
            .prepare_cached("INSERT INTO __wavesync_log(tbl, pk, cols, at) VALUES(?1, ?2, ?3, ?4)")?
            .execute(params![table.num.0, first, SPAN, last])?;
        Ok(Seq(self.conn.last_insert_rowid()))
    }

    /// The entries after a position.
    pub(super) fn entries_since(&self, since: Seq) -> Result<Vec<LogEntry>> {
        let mut statement = self.conn.prepare_cached(
            "SELECT seq, tbl, pk, cols, at FROM __wavesync_log WHERE seq > ?1 ORDER BY seq",
        )?;
        let entries = statement.query_map([since.0], LogEntry::read)?;
        Ok(entries.collect::<rusqlite::Result<_>>()?)
    }

    /// The keys in their stored form whose newest entry this one may be.
    pub(super) fn keys_of_entry(&self, table: &Table, entry: LogEntry) -> Result<Vec<Value>> {
        let Some(last) = entry.last else {
            if entry.first == Value::Null {
                return Ok(Vec::new());
            }
            return Ok(vec![key::canonical(table.form, table.key_columns, entry.first)?]);
        };
        let mut statement = self.conn.prepare_cached(&table.statements.keys_of_span)?;
        let keys = statement.query_map(params![entry.first, last, entry.seq.0], |row| {
            Ok(Value::from_ref(row.get_ref(0)?))
        })?;
        Ok(keys.collect::<rusqlite::Result<_>>()?)
    }

    /// First key, last key and position of each entry of a table after a position that stands for
    /// many rows.
    pub(super) fn spans_since(&self, since: Seq, table: TableNum) -> Result<Vec<[Value; 3]>> {
        let mut statement = self.conn.prepare_cached(
            "SELECT pk, at, seq FROM __wavesync_log WHERE seq > ?1 AND tbl = ?2 AND cols = ?3",
        )?;
        let spans = statement.query_map([since.0, table.0, SPAN], |row| {
            let value = |at| row.get_ref(at).map(Value::from_ref);
            Ok([value(0)?, value(1)?, value(2)?])
        })?;
        Ok(spans.collect::<rusqlite::Result<_>>()?)
    }
}
