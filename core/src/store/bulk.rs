//! Rows that are new here, written set-wise: many rows per statement, one log entry for all.
//!
//! Only rows that need no decision are written so: whole ones with rising keys that this replica has
//! no state of. Everything else goes row by row ([`crate::store::apply`]), which is also the oracle:
//! both ways leave the same tables, clocks and parked rows. If SQLite refuses one of the rows, all
//! of them go row by row.

use std::collections::BTreeSet;
use std::rc::Rc;

use rusqlite::{Statement, params};

use crate::ids::{ColumnNum, Seq, Stamp};
use crate::merge::Clock;
use crate::mutants::{self, Mutant};
use crate::store::rows::refusal;
use crate::store::tables::Table;
use crate::store::{Tx, key};
use crate::value::Value;
use crate::wire::rows::Row;
use crate::{Error, Result};

/// Rows of one insert statement, where its parameters allow them.
pub(super) const INSERT_ROWS: usize = 50;
/// More states than this many times the rows of a part, between its first key and its last, and the
/// part is not dense: looking its rows up one by one is cheaper.
const DENSITY: usize = 4;

/// A new row and its key in stored form.
struct New<'a> {
    key: Value,
    row: &'a Row,
}

/// New rows of one table, by rising keys.
pub(super) struct Bulk<'a> {
    rows: Vec<New<'a>>,
    /// For each local column, where its value stands among the cells of a row.
    places: Vec<usize>,
}

impl<'a> Bulk<'a> {
    /// The rows, to be applied one by one.
    pub fn rows(&self) -> impl Iterator<Item = &'a Row> {
        self.rows.iter().map(|new| new.row)
    }
}

/// What is stored of a clock, in the form of the columns.
pub(super) struct Stored {
    pub length: i64,
    pub stamp: i64,
    pub site: i64,
    pub cells: Option<Vec<u8>>,
}

/// The newest write event of a row.
pub(super) fn newest(row: &Row) -> Stamp {
    let cells = row.cells.iter().map(|(_, dot, _)| dot.stamp);
    let ended = row.ended.values().map(|death| death.stamp);
    cells.chain(ended).fold(row.birth.stamp, Stamp::max)
}

impl Tx<'_> {
    /// Splits rows of a table into those that are new and can be written together, and others.
    pub(super) fn split<'a>(
        &mut self,
        table: &Rc<Table>,
        columns: &[ColumnNum],
        all: Vec<&'a Row>,
    ) -> Result<(Option<Bulk<'a>>, Vec<&'a Row>)> {
        let suits = table.shape.is_some() && table.import.is_none() && !table.app_triggers;
        if !suits || all.len() < self.bounds.bulk_rows {
            return Ok((None, all));
        }
        let Some(places) = places(table, columns) else { return Ok((None, all)) };
        let keys: Vec<Value> = all.iter().map(|row| key::pack(&row.key)).collect();
        if !self.rise(keys.iter())? {
            return Ok((None, all));
        }
        let Some(known) = self.known_between(table, &keys)? else { return Ok((None, all)) };
        let mut rows: Vec<New<'_>> =
            keys.into_iter().zip(&all).map(|(key, row)| New { key, row }).collect();
        let mut known = known.iter().peekable();
        let future = self.future()?;
        let mut over: BTreeSet<Value> = BTreeSet::new();
        for new in &rows {
            if self.may_be_over(table, &new.key)? {
                over.insert(new.key.clone());
            }
        }
        let mut others = Vec::new();
        rows.retain(|new| {
            while known.next_if(|key| **key < new.key).is_some() {}
            let fits = known.peek().is_none_or(|key| **key != new.key)
                && new.row.whole
                && new.row.ended.is_empty()
                && newest(new.row) <= future
                && !over.contains(&new.key)
                && (new.row.length % 2 == 0 || new.row.cells.len() == places.len());
            if !fits {
                others.push(new.row);
            }
            fits
        });
        if rows.len() < self.bounds.bulk_rows {
            return Ok((None, all));
        }
        Ok((Some(Bulk { rows, places }), others))
    }

    /// Whether keys are of one class and rise, as SQLite orders them.
    pub(super) fn rise<'v>(&self, keys: impl Iterator<Item = &'v Value> + Clone) -> Result<bool> {
        let text = matches!(keys.clone().next(), Some(Value::Text(_)));
        let mut pairs = keys.clone().zip(keys.skip(1));
        let rises = pairs.all(|pair| match pair {
            (Value::Integer(one), Value::Integer(two)) => one < two,
            (Value::Text(one), Value::Text(two)) | (Value::Blob(one), Value::Blob(two)) => {
                one < two
            }
            _ => false,
        });
        Ok(rises && (!text || self.is_utf8()?))
    }

    /// In other encodings SQLite orders texts otherwise.
    fn is_utf8(&self) -> Result<bool> {
        let encoding: String =
            self.conn.prepare_cached("PRAGMA encoding")?.query_row([], |row| row.get(0))?;
        Ok(encoding == "UTF-8")
    }

    /// Keys with a state here from the first to the last of some keys; `None` if they are many.
    pub(super) fn known_between(
        &self,
        table: &Table,
        keys: &[Value],
    ) -> Result<Option<Vec<Value>>> {
        let (Some(first), Some(last)) = (keys.first(), keys.last()) else { return Ok(None) };
        let most = keys.len() * DENSITY;
        let mut statement = self.conn.prepare_cached(&table.statements.keys_between)?;
        let mut found = statement.query(params![first, last])?;
        let mut known = Vec::new();
        while let Some(row) = found.next()? {
            if known.len() >= most {
                return Ok(None);
            }
            known.push(Value::from_ref(row.get_ref(0)?));
        }
        Ok(Some(known))
    }

    /// Writes new rows, their clocks and one log entry. Returns whether it did: if SQLite refuses
    /// one of the rows, none is written.
    pub(super) fn write_bulk(&mut self, table: &Rc<Table>, bulk: &Bulk<'_>) -> Result<bool> {
        // Sites get their numbers before the savepoint, since the numbers are remembered.
        let clocks = self.stored_clocks(table, bulk)?;
        self.conn.execute_batch("SAVEPOINT wavesync_bulk")?;
        let written = self.insert_new(table, bulk, &clocks);
        match super::end_savepoint(self.conn, "wavesync_bulk", false, written) {
            Ok(seq) => {
                self.cache.folded = Some(seq);
                Ok(true)
            }
            Err(error) if refusal(&error).is_some() => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn stored_clocks(&mut self, table: &Table, bulk: &Bulk<'_>) -> Result<Vec<Stored>> {
        let locals: Vec<ColumnNum> = table.local_columns().map(|column| column.num).collect();
        let base = locals.iter().map(|num| num.0).eq(0..table.base_columns);
        let mut clocks = Vec::with_capacity(bulk.rows.len());
        for New { row, .. } in &bulk.rows {
            let plain = row.length % 2 == 0
                || (base && row.cells.iter().all(|(_, dot, _)| *dot == row.birth));
            let cells = if plain {
                None
            } else {
                let dots = locals.iter().zip(&bulk.places);
                let cells = dots.map(|(num, at)| (*num, row.cells[*at].1)).collect();
                let ended = row.ended.clone();
                let (length, birth) = (row.length, row.birth);
                self.encode_cells(table, &Clock { length, birth, cells, claim: None, ended })?
            };
            let (length, stamp) = (row.length, row.birth.stamp.0);
            clocks.push(Stored { length, stamp, site: self.site_num(row.birth.site)?.0, cells });
        }
        Ok(clocks)
    }

    fn insert_new(&self, table: &Table, bulk: &Bulk<'_>, clocks: &[Stored]) -> Result<Seq> {
        let alive: Vec<&New<'_>> = bulk.rows.iter().filter(|new| new.row.length % 2 == 1).collect();
        let sql = &table.statements;
        let (many, one) = (|| sql.row_insert_many(), &sql.row_insert);
        let unplaced = bulk.places.is_empty() && mutants::on(Mutant::KeysUnplaced);
        let alive = if unplaced { Vec::new() } else { alive };
        self.insert_all(&alive, sql.row_many, many, one, |statement, at, new| {
            let cells = bulk.places.iter().map(|place| &new.row.cells[*place].2);
            let mut at = at;
            for value in new.row.key.iter().chain(cells) {
                at += 1;
                statement.raw_bind_parameter(at, value)?;
            }
            Ok(at)
        })?;
        let seq = self.log_new(table, bulk)?;
        let rows: Vec<(&Value, &Stored)> =
            bulk.rows.iter().map(|new| &new.key).zip(clocks).collect();
        self.insert_span(table, seq, &rows)?;
        Ok(seq)
    }

    /// Inserts the clocks of new rows that share a log entry.
    pub(super) fn insert_span(
        &self,
        table: &Table,
        seq: Seq,
        rows: &[(&Value, &Stored)],
    ) -> Result<()> {
        let sql = &table.statements;
        let (many, one) = (|| sql.clock_insert_many(), &sql.clock_insert);
        self.insert_all(rows, INSERT_ROWS, many, one, |statement, at, (key, clock)| {
            statement.raw_bind_parameter(at + 1, key)?;
            statement.raw_bind_parameter(at + 2, clock.length)?;
            statement.raw_bind_parameter(at + 3, seq.0)?;
            statement.raw_bind_parameter(at + 4, clock.stamp)?;
            statement.raw_bind_parameter(at + 5, clock.site)?;
            statement.raw_bind_parameter(at + 6, &clock.cells)?;
            Ok(at + 6)
        })
    }

    /// Inserts rows, many by one statement and what is left one by one. `bind` binds a row behind a
    /// position and returns the last one that it used.
    fn insert_all<'s, T>(
        &self,
        rows: &[T],
        most: usize,
        many: impl FnOnce() -> &'s str,
        one: &str,
        bind: impl Fn(&mut Statement<'_>, usize, &T) -> rusqlite::Result<usize>,
    ) -> Result<()> {
        let blocks = rows.chunks_exact(most);
        let left = blocks.remainder();
        if rows.len() >= most {
            let mut statement = self.conn.prepare_cached(many())?;
            for block in blocks {
                block.iter().try_fold(0, |at, row| bind(&mut statement, at, row))?;
                statement.raw_execute()?;
            }
        }
        if !left.is_empty() {
            let mut statement = self.conn.prepare_cached(one)?;
            for row in left {
                bind(&mut statement, 0, row)?;
                statement.raw_execute()?;
            }
        }
        Ok(())
    }

    /// Appends the log entry of new rows.
    fn log_new(&self, table: &Table, bulk: &Bulk<'_>) -> Result<Seq> {
        let (first, last) = bulk
            .rows
            .first()
            .zip(bulk.rows.last())
            .ok_or_else(|| Error::Database("there are no rows to write".into()))?;
        if mutants::on(Mutant::BulkUnlogged) {
            return self.log_end();
        }
        self.append_span(table, &first.key, &last.key)
    }
}

/// For each local column, where it stands among the names of a part; `None` if the part has columns
/// that are not here or lacks some.
fn places(table: &Table, columns: &[ColumnNum]) -> Option<Vec<usize>> {
    let places: Option<Vec<usize>> = table
        .local_columns()
        .map(|column| columns.iter().position(|num| *num == column.num))
        .collect();
    places.filter(|places| places.len() == columns.len())
}
