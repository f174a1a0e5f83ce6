//! Rows that are here, and of which some cells are newer: one look at clock and values, one update of
//! the row, one of the clock.
//!
//! It comes to what [`crate::store::apply`] comes to, row by row, and only where nothing else has to
//! be thought of: the incarnation is the one that stands here, nothing is parked or held, and no
//! trigger of the application fires. Everything else is left to the other way.

use std::cmp::Ordering;
use std::rc::Rc;

use rusqlite::CachedStatement;
use rusqlite::types::ToSqlOutput::Borrowed;

use crate::Result;
use crate::ids::{ColumnNum, Dot, Seq, Stamp};
use crate::merge::Clock;
use crate::mutants::{self, Mutant};
use crate::store::apply::Outcome;
use crate::store::names::is_twofold;
use crate::store::rows::{refusal, update};
use crate::store::shape::KeyForm;
use crate::store::tables::Table;
use crate::store::{SiteNum, Tx};
use crate::value::{self, ValueRef};
use crate::wire::packed::RowRef;

/// The statements for the rows of one table.
pub(super) struct Known<'c> {
    table: Rc<Table>,
    /// Of each column of the batch its number, and where it stands among the local columns.
    columns: Vec<(ColumnNum, usize)>,
    select: CachedStatement<'c>,
    /// The last update, and the positions in `columns` of what it writes.
    update: Option<(Vec<usize>, CachedStatement<'c>)>,
    log: CachedStatement<'c>,
    store: CachedStatement<'c>,
}

/// What a row has newer than what is here.
struct News {
    clock: Clock,
    /// Which of its cells win.
    wins: Vec<usize>,
}

impl<'c> Tx<'c> {
    /// The statements to merge rows of a table, if this way is open to them.
    pub(super) fn known(
        &mut self,
        table: &Rc<Table>,
        columns: &[Option<ColumnNum>],
        rows: usize,
    ) -> Result<Option<Known<'c>>> {
        let suits = table.shape.is_some() && table.import.is_none() && !table.app_triggers;
        let single = table.form != KeyForm::Composite && !table.equal_keys_differ();
        let texts = &table.statements;
        let few = rows < self.bounds.bulk_rows;
        if !suits || !single || texts.row_known.is_empty() || few || is_twofold(columns) {
            return Ok(None);
        }
        let local = |num: ColumnNum| {
            let place = table.local_columns().position(|column| column.num == num)?;
            Some((num, place))
        };
        let columns: Option<Vec<_>> = columns.iter().map(|num| num.and_then(local)).collect();
        let Some(columns) = columns else { return Ok(None) };
        let conn = self.conn;
        Ok(Some(Known {
            table: Rc::clone(table),
            columns,
            select: conn.prepare_cached(&texts.row_known)?,
            update: None,
            log: conn.prepare_cached(super::APPEND)?,
            store: conn.prepare_cached(&texts.clock_update)?,
        }))
    }

    /// Merges a row. `None` if it has to go the other way; nothing was done then.
    pub(super) fn merge_known(
        &mut self,
        known: &mut Known<'c>,
        row: RowRef<'_>,
    ) -> Result<Option<(Outcome, Stamp)>> {
        let free = self.parked_rows()? == 0 && self.has_room_to_park()? && !self.holds_any()?;
        let newest = row.newest();
        if !free || !row.alive() || row.has_ended() || newest > self.future()? {
            return Ok(None);
        }
        let Some(key) = row.key().next() else { return Ok(None) };
        let Some(News { mut clock, wins }) = self.news(known, key, row)? else { return Ok(None) };
        if wins.is_empty() {
            return Ok(Some((Outcome::Same, newest)));
        }
        if !self.update_known(known, key, row, &wins)? {
            return Ok(None);
        }
        for at in wins {
            let (column, dot) = row.cell(at);
            clock.cells.insert(known.columns[column].0, dot);
        }
        known.log.raw_bind_parameter(1, known.table.num.0)?;
        known.log.raw_bind_parameter(2, Borrowed(key))?;
        known.log.raw_execute()?;
        let seq = Seq(self.conn.last_insert_rowid());
        self.cache.folded = Some(seq);
        let cells = self.encode_cells(&known.table, &clock)?;
        known.store.raw_bind_parameter(1, Borrowed(key))?;
        known.store.raw_bind_parameter(2, seq.0)?;
        known.store.raw_bind_parameter(3, cells)?;
        known.store.raw_execute()?;
        Ok(Some((Outcome::Changed, newest)))
    }

    /// What of a row is newer than what stands here, if this is the same incarnation of it.
    fn news(
        &mut self,
        known: &mut Known<'c>,
        key: ValueRef<'_>,
        row: RowRef<'_>,
    ) -> Result<Option<News>> {
        known.select.raw_bind_parameter(1, Borrowed(key))?;
        let mut found = known.select.raw_query();
        let Some(here) = found.next()? else { return Ok(None) };
        let (length, stamp, site): (i64, i64, i64) = (here.get(0)?, here.get(1)?, here.get(2)?);
        let birth = Dot { stamp: Stamp(stamp), site: self.site(SiteNum(site))? };
        if length != row.length() || birth != row.birth() {
            return Ok(None);
        }
        let stored = match here.get_ref(3)? {
            ValueRef::Blob(bytes) => Some(bytes),
            _ => None,
        };
        let clock = self.decode_clock(&known.table, length, birth, stored)?;
        if !clock.ended.is_empty() {
            return Ok(None);
        }
        let mut wins = Vec::new();
        for at in 0..row.cell_count() {
            let (column, dot) = row.cell(at);
            let (num, place) = known.columns[column];
            let win = match clock.cells.get(&num) {
                None => true,
                Some(ours) if *ours == dot => {
                    let held = here.get_ref(4 + place)?;
                    value::compare(row.value(at), held) == Ordering::Greater
                }
                Some(ours) => (dot > *ours) != mutants::on(Mutant::OlderCellWins),
            };
            let existing = || clock.cells.get(&num).is_some_and(|dot| dot.stamp.is_base());
            if win && dot.stamp.is_base() && existing() {
                // The value that gives way is kept for the user.
                return Ok(None);
            }
            wins.extend(win.then_some(at));
        }
        Ok(Some(News { clock, wins }))
    }

    /// Writes the cells that win. Returns whether the table took them.
    fn update_known(
        &mut self,
        known: &mut Known<'c>,
        key: ValueRef<'_>,
        row: RowRef<'_>,
        wins: &[usize],
    ) -> Result<bool> {
        let columns: Vec<usize> = wins.iter().map(|at| row.cell(*at).0).collect();
        let statement = match &mut known.update {
            Some((of, statement)) if *of == columns => statement,
            other => {
                let nums: Vec<_> = columns.iter().map(|column| known.columns[*column].0).collect();
                let sql = update(&known.table, &nums)?;
                &mut other.insert((columns, self.conn.prepare_cached(&sql)?)).1
            }
        };
        for (at, win) in wins.iter().enumerate() {
            statement.raw_bind_parameter(at + 1, Borrowed(row.value(*win)))?;
        }
        statement.raw_bind_parameter(wins.len() + 1, Borrowed(key))?;
        match statement.raw_execute().map_err(crate::Error::from) {
            Ok(updated) => Ok(updated > 0),
            Err(error) if refusal(&error).is_some() => Ok(false),
            Err(error) => Err(error),
        }
    }
}
