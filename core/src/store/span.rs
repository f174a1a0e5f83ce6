//! Log entries that stand for many rows: what was written set-wise, from one key to another.
//!
//! Such an entry has the mask [`SPAN`], the first key as `pk` and the last one as `at`. The rows are
//! those between them whose clocks name this entry as their newest: a row that was written since has
//! an entry of its own, and one that came between them later never had this one.

use rusqlite::types::ToSql;
use rusqlite::types::ToSqlOutput::Borrowed;
use rusqlite::{Row, params};

use crate::Result;
use crate::ids::{Dot, Seq, Stamp, TableNum};
use crate::store::tables::Table;
use crate::store::vector::Vector;
use crate::store::{SiteNum, Tx, key};
use crate::value::{Value, ValueRef};

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
    /// Whether it stands for many rows.
    pub fn is_span(&self) -> bool {
        self.last.is_some()
    }

    /// The first key, and the last one if it stands for many rows.
    pub fn bounds(&self) -> (&Value, Option<&Value>) {
        (&self.first, self.last.as_ref())
    }

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
    pub(super) fn append_span(
        &self,
        table: &Table,
        first: ValueRef<'_>,
        last: ValueRef<'_>,
    ) -> Result<Seq> {
        self.conn
            .prepare_cached("INSERT INTO __wavesync_log(tbl, pk, cols, at) VALUES(?1, ?2, ?3, ?4)")?
            .execute(params![table.num.0, Borrowed(first), SPAN, Borrowed(last)])?;
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
    pub(super) fn keys_of_entry(&self, table: &Table, entry: &LogEntry) -> Result<Vec<Value>> {
        let Some(last) = &entry.last else {
            if entry.first == Value::Null {
                return Ok(Vec::new());
            }
            let key = entry.first.clone();
            return Ok(vec![key::canonical(table.form, table.key_columns, key)?]);
        };
        let mut statement = self.conn.prepare_cached(&table.statements.keys_of_span)?;
        let keys = statement.query_map(params![entry.first, last, entry.seq.0], |row| {
            Ok(Value::from_ref(row.get_ref(0)?))
        })?;
        Ok(keys.collect::<rusqlite::Result<_>>()?)
    }

    /// Whether a vector covers every write event of the rows whose newest entry this one is, and how
    /// many rows were looked at.
    pub(super) fn covers_entry(
        &mut self,
        table: &Table,
        entry: &LogEntry,
        vector: &Vector,
    ) -> Result<(bool, usize)> {
        let seq = entry.seq;
        let Some(last) = &entry.last else {
            let mut covered = true;
            for key in self.keys_of_entry(table, entry)? {
                covered &= self.is_covered(table, &key, seq, vector)?;
            }
            return Ok((covered, 1));
        };
        let bounds: [&dyn ToSql; 3] = [&entry.first, last, &seq.0];
        let (sites, newest, rows, listed): ([Option<i64>; 2], Option<i64>, i64, i64) = self
            .conn
            .prepare_cached(&table.statements.extent_of_span)?
            .query_row(bounds, |row| {
                Ok(([row.get(0)?, row.get(1)?], row.get(2)?, row.get(3)?, row.get(4)?))
            })?;
        let looked_at = 1 + usize::try_from(rows).unwrap_or(usize::MAX / 2);
        let [Some(site), Some(last_site)] = sites else { return Ok((true, looked_at)) };
        if site == last_site && listed == 0 {
            let newest = Stamp(newest.unwrap_or(Stamp::NONE.0));
            let newest = Dot { stamp: newest, site: self.site(SiteNum(site))? };
            return Ok((vector.covers(newest), looked_at));
        }
        let births: Vec<(i64, i64, i64)> = self
            .conn
            .prepare_cached(&table.statements.births_of_span)?
            .query_map(bounds, |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
            .collect::<rusqlite::Result<_>>()?;
        let mut looked_at = 1;
        for (site, stamp, count) in births {
            looked_at += usize::try_from(count).unwrap_or(usize::MAX / 2);
            let newest = Dot { stamp: Stamp(stamp), site: self.site(SiteNum(site))? };
            if !vector.covers(newest) {
                return Ok((false, looked_at));
            }
        }
        let others: Vec<Value> = self
            .conn
            .prepare_cached(&table.statements.cells_of_span)?
            .query_map(bounds, |row| Ok(Value::from_ref(row.get_ref(0)?)))?
            .collect::<rusqlite::Result<_>>()?;
        looked_at += others.len();
        for key in others {
            if !self.is_covered(table, &key, seq, vector)? {
                return Ok((false, looked_at));
            }
        }
        Ok((true, looked_at))
    }

    /// Whether a vector covers every write event of a row, if this is its newest entry.
    fn is_covered(
        &mut self,
        table: &Table,
        key: &Value,
        seq: Seq,
        vector: &Vector,
    ) -> Result<bool> {
        let conn = self.conn;
        let mut statement = conn.prepare_cached(&table.statements.clock_select)?;
        let mut found = statement.query([key])?;
        let Some(row) = found.next()?.filter(|row| row.get_ref(1) == Ok(ValueRef::Integer(seq.0)))
        else {
            return Ok(true);
        };
        let (length, stamp, site): (i64, i64, i64) = (row.get(0)?, row.get(2)?, row.get(3)?);
        let birth = Dot { stamp: Stamp(stamp), site: self.site(SiteNum(site))? };
        if !vector.covers(birth) {
            return Ok(false);
        }
        match row.get_ref(4)? {
            ValueRef::Blob(cells) => self.covers_cells(table, length, cells, vector),
            _ => Ok(true),
        }
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
