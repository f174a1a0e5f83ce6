//! The fold: turns log rows that triggers appended into clocks, in commit order, and builds the
//! push for them in the same transaction (rules P3, P4, P10).

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::{ColumnNum, Dot, Seq, SiteId, Stamp, TableNum};
use crate::limits;
use crate::merge::{Clock, Ended, KeyKind, join_ended};
use crate::mutants::{self, Mutant};
use crate::store::clock::ClockRow;
use crate::store::contend::RowId;
use crate::store::fold_bulk::{Head, runs};
use crate::store::mask::Mask;
use crate::store::rows::{Kind, Parked};
use crate::store::serve::BatchBuilder;
use crate::store::tables::{Column, Table};
use crate::store::{Push, SiteNum, Tx, key};
use crate::value::Value;
use crate::{Error, Result};

/// A row of the log.
pub(super) struct Entry {
    pub seq: Seq,
    table: TableNum,
    key: Value,
    /// The columns that were written; `None` for a delete.
    mask: Option<Mask>,
    at: i64,
}

impl Entry {
    /// From `seq, tbl, pk, cols, at`.
    pub fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            seq: Seq(row.get(0)?),
            table: TableNum(row.get(1)?),
            key: Value::from_ref(row.get_ref(2)?),
            mask: Mask::read(&Value::from_ref(row.get_ref(3)?)),
            at: row.get::<_, Option<i64>>(4)?.unwrap_or(0),
        })
    }
}

/// Gives out stamps.
pub(super) struct Hand {
    own: SiteId,
    last: Stamp,
    now: i64,
}

impl Hand {
    /// One whose next stamp is this one, whatever the time.
    pub fn exactly(dot: Dot) -> Self {
        Self { own: dot.site, last: Stamp(dot.stamp.0 - 1), now: 0 }
    }

    pub fn site(&self) -> SiteId {
        self.own
    }

    /// Rule P3: never in the future of this engine, never behind anything seen here.
    pub fn stamp(&mut self, at: i64) -> Dot {
        let wall = Stamp::at(at.min(self.now));
        self.last = wall.max(self.last.next());
        Dot { stamp: self.last, site: self.own }
    }
}

/// What a fold keeps in mind until its end.
#[derive(Default)]
struct Work {
    /// Tables in which a local write may collide with parked rows.
    contested: BTreeSet<TableNum>,
    /// Rows of those that were written.
    written: BTreeSet<RowId>,
    /// Rows that were written, as far as a push may carry them.
    touched: BTreeSet<(TableNum, Value)>,
    /// More were written than a push carries.
    many: bool,
}

impl Tx<'_> {
    /// Folds everything that waits.
    pub(super) fn fold(&mut self) -> Result<()> {
        let folded = Seq(self.meta("folded")?.unwrap_or(0));
        let end = self.log_end()?;
        if end <= folded || self.meta::<i64>("self")?.is_none() {
            return Ok(());
        }
        let own = self.own_site()?;
        let prev = self.seen(own)?;
        let last = Stamp(self.meta("hlc")?.unwrap_or(0));
        let mut hand = Hand { own, last, now: i64::try_from(self.now.0).unwrap_or(i64::MAX) };
        let mut work = Work { contested: self.contested_tables()?, ..Work::default() };
        let mut position = folded;
        let mut count = 0u64;
        loop {
            let block = self.log_heads(position)?;
            let Some(last) = block.last() else { break };
            position = last.seq;
            count += block.len() as u64;
            for (range, bulk) in runs(&block, self.bounds.fold_run_rows) {
                let part = &block[range];
                if bulk {
                    let keys = self.fold_inserts(part, &mut hand)?;
                    self.note_inserts(part, keys, &mut work)?;
                } else {
                    self.fold_rows(part, &mut hand, &mut work)?;
                }
            }
        }
        let Work { contested, written, touched, many } = work;
        if !written.is_empty() {
            let now = hand.now;
            self.take_over(&contested, &written, || hand.stamp(now))?;
        }
        self.set_meta("folded", end.0)?;
        if !mutants::on(Mutant::ForgetClock) {
            self.set_meta("hlc", hand.last.0)?;
        }
        self.effects.folded += count;
        if hand.last > last {
            let boot = self.boot;
            self.raise(own, hand.last, boot)?;
            let rows = if many { None } else { self.push_rows(own, prev, touched)? };
            self.pushes.push(Push { site: own, boot, prev, upto: hand.last, rows });
        }
        self.settle(folded)
    }

    fn log_entries(&self, part: &[Head]) -> Result<Vec<Entry>> {
        let (Some(first), Some(last)) = (part.first(), part.last()) else { return Ok(Vec::new()) };
        let mut statement = self.conn.prepare_cached(
            "SELECT seq, tbl, pk, cols, at FROM __wavesync_log
             WHERE seq BETWEEN ?1 AND ?2 ORDER BY seq",
        )?;
        let entries = statement.query_map([first.seq.0, last.seq.0], Entry::read)?;
        Ok(entries.collect::<rusqlite::Result<_>>()?)
    }

    /// What was folded in bulk is pushed only where it is little.
    fn note_inserts(&self, part: &[Head], keys: usize, work: &mut Work) -> Result<()> {
        work.many |= keys > self.bounds.push_rows;
        if !work.many {
            let entries = self.log_entries(part)?.into_iter();
            work.touched.extend(entries.map(|entry| (entry.table, entry.key)));
        }
        Ok(())
    }

    /// Folds log rows one by one.
    fn fold_rows(&mut self, part: &[Head], hand: &mut Hand, work: &mut Work) -> Result<()> {
        let entries = self.log_entries(part)?;
        for entry in entries {
            self.fold_entry(&entry, hand)?;
            if work.contested.contains(&entry.table) {
                let table = self.table(entry.table)?;
                let stored = entry.key.clone();
                let key = key::canonical(table.form, table.key_columns, stored)?;
                work.written.insert((entry.table, key));
            }
            if work.touched.len() <= self.bounds.push_rows {
                work.touched.insert((entry.table, entry.key));
            }
        }
        Ok(())
    }

    pub(super) fn fold_entry(&mut self, entry: &Entry, hand: &mut Hand) -> Result<()> {
        // A key that is NULL names no row that others could know; the table stays local there.
        let Ok(table) = self.table(entry.table) else { return Ok(()) };
        // Without the table there are no values, only deletes that happened before it went.
        let gone = table.shape.is_none() && entry.mask.is_some();
        if entry.key == Value::Null || gone {
            return Ok(());
        }
        let key = key::canonical(table.form, table.key_columns, entry.key.clone())?;
        let mut current = self.clock(&table, &key)?.map(|row| row.clock);
        if current.is_none() && entry.mask != Some(Mask::Insert) {
            current = self.imported_clock(&table)?;
        }
        let alive = current.as_ref().is_some_and(Clock::alive);
        let (clock, written) = match (&entry.mask, current) {
            (None, Some(clock)) if alive && clock.length >= limits::CAUSAL_LENGTH_MAX => {
                self.note_used_up(&table, &key);
                return Ok(());
            }
            (None, Some(clock)) if alive => {
                let death = hand.stamp(entry.at);
                let mut ended = clock.ended;
                if table.kind == KeyKind::Integer && !mutants::on(Mutant::ForgetEnds) {
                    ended = join_ended(&ended, &Ended::from([(clock.birth, death)]));
                }
                let (length, cells) = (clock.length + 1, BTreeMap::new());
                (Clock { length, birth: death, cells, claim: None, ended }, Vec::new())
            }
            (None, _) => return Ok(()),
            (Some(mask), Some(mut clock)) if alive => {
                let columns = self.changed_columns(&table, &key, mask, entry.seq)?;
                if columns.is_empty() && *mask != Mask::Insert {
                    return Ok(());
                }
                let dot = hand.stamp(entry.at);
                clock.cells.extend(columns.iter().map(|column| (*column, dot)));
                (clock, columns)
            }
            (Some(_), known) => {
                let birth = hand.stamp(entry.at);
                let death = known.as_ref().map(|clock| clock.birth);
                let (length, ended) =
                    known.map_or((0, Ended::new()), |clock| (clock.length, clock.ended));
                // Above what is held, too, so that this write still stands when that is released.
                let length = length.max(self.held_length(&table, &key)?);
                let length = self.length_above(table.num, length)?;
                if length > limits::CAUSAL_LENGTH_MAX {
                    // Nobody would accept more. The row stays here, as one without a key does.
                    self.note_used_up(&table, &key);
                    return Ok(());
                }
                let columns: Vec<_> = table.local_columns().map(|column| column.num).collect();
                let natural = table.kind == KeyKind::Natural;
                let written = match death {
                    _ if natural && mutants::on(Mutant::UnsignedCells) => {
                        Dot { stamp: Stamp::at(1), site: SiteId([0; 16]) }
                    }
                    Some(death) if mutants::on(Mutant::ReinsertKeepsDelete) => death,
                    _ => birth,
                };
                let cells = columns.iter().map(|column| (*column, written)).collect();
                let length = if mutants::on(Mutant::RebirthShort) { 1 } else { length };
                (Clock { length, birth, cells, claim: None, ended }, columns)
            }
        };
        if table.shape.is_some() {
            self.unpark_written(&table, &key, &clock, &written)?;
        }
        self.set_clock(&table, &key, &ClockRow { clock, seq: entry.seq })
    }

    fn note_used_up(&mut self, table: &Table, key: &Value) {
        let name = super::report::key_text(table, key);
        let message = format!("row {name} of table {} cannot be synced any more", table.name);
        self.note("key_used_up", message, "give it another key: this one was deleted too often");
    }

    /// The clock that the back-fill will give to a row which it has not reached yet.
    pub(super) fn imported_clock(&mut self, table: &Table) -> Result<Option<Clock>> {
        let Some(import) = table.import else { return Ok(None) };
        let birth = self.import_dot(table.num, import)?;
        let cells = table.local_columns().map(|column| (column.num, birth)).collect();
        let length = self.length_above(table.num, 0)?;
        Ok(Some(Clock { length, birth, cells, claim: None, ended: Ended::new() }))
    }

    /// Columns that an entry wrote, and those that a declared rule couples with them.
    fn changed_columns(
        &mut self,
        table: &Table,
        key: &Value,
        mask: &Mask,
        seq: Seq,
    ) -> Result<Vec<ColumnNum>> {
        let mut columns = self.columns_of_entry(table, key, mask, seq)?;
        if mutants::on(Mutant::EveryColumnWritten) {
            columns = table.local_columns().map(|column| column.num).collect();
        }
        Ok(self.with_coupled(table, columns))
    }

    /// Columns and those that a declared rule couples with them.
    pub(super) fn with_coupled(
        &self,
        table: &Table,
        mut columns: Vec<ColumnNum>,
    ) -> Vec<ColumnNum> {
        for group in table.shape.iter().flat_map(|shape| &shape.groups) {
            let of_group = |column: &Column| group.contains(&column.name.to_ascii_lowercase());
            let coupled: Vec<ColumnNum> =
                table.local_columns().filter(|c| of_group(c)).map(|column| column.num).collect();
            if coupled.iter().any(|num| columns.contains(num)) && !mutants::on(Mutant::NoCoupling) {
                columns.retain(|num| !coupled.contains(num));
                columns.extend(coupled);
            }
        }
        columns
    }

    /// Columns that an entry wrote. A trigger that was generated before a column existed says
    /// nothing about it, so for such entries the column counts as written if it left its default.
    fn columns_of_entry(
        &mut self,
        table: &Table,
        key: &Value,
        mask: &Mask,
        seq: Seq,
    ) -> Result<Vec<ColumnNum>> {
        let mut columns: Vec<ColumnNum> = table
            .local_columns()
            .filter(|column| mask.holds(column.num))
            .map(|column| column.num)
            .collect();
        let newer: Vec<ColumnNum> = table
            .local_columns()
            .filter(|column| {
                column.since.is_some_and(|since| since >= seq) && !columns.contains(&column.num)
            })
            .map(|column| column.num)
            .collect();
        if newer.is_empty() {
            return Ok(columns);
        }
        let Some(values) = self.table_values(table, key)? else { return Ok(columns) };
        for num in newer {
            let local = table.column(num).and_then(|column| column.local.as_ref());
            let default = local.and_then(|local| local.default.clone());
            // What nobody can tell here counts as written.
            let default = match default {
                None => Some(Value::Null),
                Some(sql) => crate::store::shape::default_value(self.conn, &sql),
            };
            if values.get(&num).is_some_and(|value| Some(value) != default.as_ref()) {
                columns.push(num);
            }
        }
        Ok(columns)
    }

    /// A local write of a parked row takes its place: what it did not write stays parked, also a
    /// column that came since then (it is shown once the schema change is looked at).
    fn unpark_written(
        &mut self,
        table: &Table,
        key: &Value,
        clock: &Clock,
        written: &[ColumnNum],
    ) -> Result<()> {
        let Some(mut parked) = self.parked(table, key)? else { return Ok(()) };
        if !clock.alive() {
            return self.set_parked(table, key, None);
        }
        parked.values.retain(|num, _| clock.cells.contains_key(num) && !written.contains(num));
        let local = |num| table.column(num).is_some_and(|column| column.local.is_some());
        let hidden = parked.kind == Kind::Overlay && parked.values.keys().any(|num| local(*num));
        if !hidden {
            let reason = "the table here has no such column";
            parked = Parked::new(Kind::UnknownColumn, reason, parked.values);
        }
        self.set_parked(table, key, Some(&parked))
    }

    pub(super) fn push_rows(
        &mut self,
        own: SiteId,
        prev: Stamp,
        keys: BTreeSet<(TableNum, Value)>,
    ) -> Result<Option<crate::wire::rows::Batch>> {
        if keys.len() > self.bounds.push_rows {
            return Ok(None);
        }
        let mut builder = BatchBuilder::default();
        for (num, stored) in keys {
            let Ok(table) = self.table(num) else { continue };
            if stored == Value::Null {
                continue;
            }
            let key = key::canonical(table.form, table.key_columns, stored)?;
            let fresh = |dot: Dot| dot.site == own && dot.stamp > prev;
            if !self.emit_new(&mut builder, &table, &key, fresh)? {
                let Some(row) = self.clock(&table, &key)? else { continue };
                self.emit(&mut builder, &table, &key, &row.clock, fresh)?;
            }
            if builder.bytes() > limits::PUSH_MAX_BYTES {
                return Ok(None);
            }
        }
        Ok(Some(builder.finish().to_batch()))
    }

    /// The base stamp under which a back-fill takes rows in.
    pub(super) fn import_dot(&mut self, table: TableNum, import: SiteNum) -> Result<Dot> {
        let base: Option<i64> = self.meta(&format!("import:{}", import.0))?;
        let stamp = base.map(Stamp).ok_or_else(|| {
            Error::Database(format!("the back-fill of table {} lost its stamp", table.0))
        })?;
        Ok(Dot { stamp, site: self.site(import)? })
    }
}
