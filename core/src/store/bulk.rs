//! Rows that are new here, written set-wise: many rows per statement, one log entry for all.
//!
//! Only rows that need no decision are written so: whole ones with rising keys that this replica has
//! no state of. Everything else goes row by row ([`crate::store::apply`]), which is also the oracle:
//! both ways leave the same tables, clocks and parked rows. If SQLite refuses one of the rows, all
//! of them go row by row.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::rc::Rc;

use rusqlite::Statement;
use rusqlite::types::ToSqlOutput::Borrowed;

use crate::ids::{ColumnNum, Seq};
use crate::merge::{Clock, Ended};
use crate::mutants::{self, Mutant};
use crate::store::rows::refusal;
use crate::store::tables::Table;
use crate::store::{Tx, key};
use crate::value::{self, Value, ValueRef};
use crate::wire::packed::RowRef;
use crate::{Error, Result};

/// Rows of one insert statement, where its parameters allow them.
pub(super) const INSERT_ROWS: usize = 50;
/// More states than this many times the rows of a part, between its first key and its last, and the
/// part is not dense: looking its rows up one by one is cheaper.
const DENSITY: usize = 4;

/// Keys of a part that are looked up to see whether it is about rows that are known.
const SAMPLES: usize = 8;

/// A key in stored form.
enum Key<'p> {
    /// As it lies in the batch.
    Column(ValueRef<'p>),
    Packed(Value),
}

impl<'p> Key<'p> {
    fn of(row: RowRef<'p>) -> Self {
        let mut parts = row.key();
        match (parts.next(), parts.next()) {
            (Some(single), None) => Self::Column(single),
            _ => Self::Packed(key::pack(&row.key().map(Value::from_ref).collect::<Vec<_>>())),
        }
    }

    fn as_ref(&self) -> ValueRef<'_> {
        match self {
            Self::Column(value) => *value,
            Self::Packed(value) => value.as_ref(),
        }
    }
}

/// A new row and its key in stored form.
struct New<'p> {
    key: Key<'p>,
    row: RowRef<'p>,
}

/// New rows of one table, by rising keys.
pub(super) struct Bulk<'p> {
    rows: Vec<New<'p>>,
    /// For each local column, where its value stands among the cells of a row.
    places: Vec<usize>,
}

impl<'p> Bulk<'p> {
    /// The rows, to be applied one by one.
    pub fn rows(&self) -> impl Iterator<Item = RowRef<'p>> {
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

impl Tx<'_> {
    /// Whether a row has turned out to be over since it was chosen: what is deleted is applied first.
    pub(super) fn any_over(&mut self, table: &Table, bulk: &Bulk<'_>) -> Result<bool> {
        for new in &bulk.rows {
            if self.may_be_over(table, new.key.as_ref())? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Splits rows of a table into those that are new and can be written together, and others.
    pub(super) fn split<'p>(
        &mut self,
        table: &Rc<Table>,
        columns: &[ColumnNum],
        all: Vec<RowRef<'p>>,
    ) -> Result<(Option<Bulk<'p>>, Vec<RowRef<'p>>)> {
        let suits = table.shape.is_some() && table.import.is_none() && !table.app_triggers;
        if !suits || all.len() < self.bounds.bulk_rows {
            return Ok((None, all));
        }
        let Some(places) = places(table, columns) else { return Ok((None, all)) };
        let keys: Vec<Key<'_>> = all.iter().map(|row| Key::of(*row)).collect();
        let (Some(first), Some(last)) = (keys.first(), keys.last()) else { return Ok((None, all)) };
        if !self.rise(keys.iter().map(Key::as_ref))? {
            return Ok((None, all));
        }
        if self.seem_known(table, &keys)? {
            return Ok((None, all));
        }
        let (first, last) = (first.as_ref(), last.as_ref());
        let known = self.known_between(table, (first, last), keys.len())?;
        let Some(known) = known else { return Ok((None, all)) };
        let mut known = known.iter().map(Value::as_ref).peekable();
        let future = self.future()?;
        let (mut rows, mut others) = (Vec::with_capacity(all.len()), Vec::new());
        for (key, row) in keys.into_iter().zip(&all) {
            let order = |known: &ValueRef<'_>| value::compare(*known, key.as_ref());
            while known.next_if(|known| order(known) == Ordering::Less).is_some() {}
            let fits = known.peek().is_none_or(|known| order(known) != Ordering::Equal)
                && row.whole()
                && !row.has_ended()
                && row.newest() <= future
                && (!row.alive() || row.cell_count() == places.len())
                && !self.may_be_over(table, key.as_ref())?;
            if fits {
                rows.push(New { key, row: *row });
            } else {
                others.push(*row);
            }
        }
        if rows.len() < self.bounds.bulk_rows {
            return Ok((None, all));
        }
        Ok((Some(Bulk { rows, places }), others))
    }

    /// Whether a few of the keys, from all over them, are known: then most others are, too.
    fn seem_known(&self, table: &Table, keys: &[Key<'_>]) -> Result<bool> {
        for key in keys.iter().step_by(keys.len().div_ceil(SAMPLES)) {
            let key = key.as_ref();
            if self.known_between(table, (key, key), 1)?.is_some_and(|known| known.is_empty()) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether keys are of one class and rise, as SQLite orders them.
    pub(super) fn rise<'v>(
        &self,
        keys: impl Iterator<Item = ValueRef<'v>> + Clone,
    ) -> Result<bool> {
        use ValueRef::{Blob, Integer, Text};
        let text = matches!(keys.clone().next(), Some(Text(_)));
        let mut pairs = keys.clone().zip(keys.skip(1));
        let rises = pairs.all(|pair| match pair {
            (Integer(one), Integer(two)) => one < two,
            (Text(one), Text(two)) | (Blob(one), Blob(two)) => one < two,
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

    /// Keys with a state here from the first to the last of so many keys; `None` if they are many
    /// more.
    pub(super) fn known_between(
        &self,
        table: &Table,
        (first, last): (ValueRef<'_>, ValueRef<'_>),
        count: usize,
    ) -> Result<Option<Vec<Value>>> {
        let most = count * DENSITY;
        let mut statement = self.conn.prepare_cached(&table.statements.keys_between)?;
        let mut found = statement.query([Borrowed(first), Borrowed(last)])?;
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
        let mut sites: BTreeMap<usize, i64> = BTreeMap::new();
        for New { row, .. } in &bulk.rows {
            let (length, birth) = (row.length(), row.birth());
            let cells = if !row.alive() || (base && row.is_plain()) {
                None
            } else {
                let dots = locals.iter().zip(&bulk.places);
                let cells = dots.map(|(num, at)| (*num, row.cell(*at).1)).collect();
                let clock = Clock { length, birth, cells, claim: None, ended: Ended::new() };
                self.encode_cells(table, &clock)?
            };
            let site = match sites.get(&row.birth_place()) {
                Some(site) => *site,
                None => self.site_num(birth.site)?.0,
            };
            sites.insert(row.birth_place(), site);
            clocks.push(Stored { length, stamp: birth.stamp.0, site, cells });
        }
        Ok(clocks)
    }

    fn insert_new(&self, table: &Table, bulk: &Bulk<'_>, clocks: &[Stored]) -> Result<Seq> {
        let alive: Vec<RowRef<'_>> = bulk.rows().filter(|row| row.alive()).collect();
        let sql = &table.statements;
        let (many, one) = (|| sql.row_insert_many(), &sql.row_insert);
        let unplaced = bulk.places.is_empty() && mutants::on(Mutant::KeysUnplaced);
        let alive = if unplaced { Vec::new() } else { alive };
        self.insert_all(&alive, sql.row_many, many, one, |statement, at, row| {
            let cells = bulk.places.iter().map(|place| row.value(*place));
            let mut at = at;
            for value in row.key().chain(cells) {
                at += 1;
                statement.raw_bind_parameter(at, Borrowed(value))?;
            }
            Ok(at)
        })?;
        let seq = self.log_new(table, bulk)?;
        let rows: Vec<(ValueRef<'_>, &Stored)> =
            bulk.rows.iter().map(|new| new.key.as_ref()).zip(clocks).collect();
        self.insert_span(table, seq, &rows)?;
        Ok(seq)
    }

    /// Inserts the clocks of new rows that share a log entry.
    pub(super) fn insert_span(
        &self,
        table: &Table,
        seq: Seq,
        rows: &[(ValueRef<'_>, &Stored)],
    ) -> Result<()> {
        let sql = &table.statements;
        let blocks = rows.chunks_exact(INSERT_ROWS);
        // Mostly all that differs is key and stamp.
        let plain = |block: &[(ValueRef<'_>, &Stored)]| {
            let of = |clock: &Stored| (clock.length, clock.site, clock.cells.is_some());
            let first = block.first().map(|(_, clock)| of(clock));
            block.iter().all(|(_, clock)| Some(of(clock)) == first && clock.cells.is_none())
        };
        let alike = blocks.take_while(|block| plain(block)).count() * INSERT_ROWS;
        let (alike, rows) = rows.split_at(alike);
        for block in alike.chunks_exact(INSERT_ROWS) {
            let mut statement = self.conn.prepare_cached(sql.clock_insert_alike())?;
            statement.raw_bind_parameter(1, block[0].1.length)?;
            statement.raw_bind_parameter(2, seq.0)?;
            statement.raw_bind_parameter(3, block[0].1.site)?;
            for (at, (key, clock)) in block.iter().enumerate() {
                statement.raw_bind_parameter(4 + 2 * at, Borrowed(*key))?;
                statement.raw_bind_parameter(5 + 2 * at, clock.stamp)?;
            }
            statement.raw_execute()?;
        }
        let (many, one) = (|| sql.clock_insert_many(), &sql.clock_insert);
        self.insert_all(rows, INSERT_ROWS, many, one, |statement, at, (key, clock)| {
            statement.raw_bind_parameter(at + 1, Borrowed(*key))?;
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
        self.append_span(table, first.key.as_ref(), last.key.as_ref())
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
