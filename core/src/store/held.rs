//! Rows from clocks ahead of this one (rule P17): stored, logged, served and covered by the vector,
//! but not applied before their time comes. So a clock that is wrong by a year disturbs neither the
//! tables nor the clock of anybody else.
//!
//! A held row is kept as it arrived, under a log entry of its own. It takes part in nothing but
//! serving until it is released, and is then applied as if it arrived at that moment.

use std::collections::BTreeMap;
use std::rc::Rc;

use rusqlite::{OptionalExtension, params};

use crate::ids::{Boot, Dot, Millis, Seq, SiteId, Stamp, TableNum};
use crate::limits;
use crate::merge::{
    Clock, Incoming, KeyKind, Verdict, join_ended, judge, moved_key, one_incarnation,
};
use crate::mutants::{self, Mutant};
use crate::store::apply::Outcome;
use crate::store::names::newest_cells;
use crate::store::rows::Kind;
use crate::store::serve::BatchBuilder;
use crate::store::tables::Table;
use crate::store::vector::Vector;
use crate::store::{SiteNum, Store, Tx};
use crate::value::Value;
use crate::wire::rows::{Batch, Row};
use crate::{Error, Result};

/// A row that waits, as it arrived.
pub(super) struct Held {
    pub table: Rc<Table>,
    pub key: Value,
    pub row: Incoming,
    /// The highest stamp that it waits for.
    until: Stamp,
}

/// What becomes of an arriving row.
pub(super) enum Due {
    /// All of it is applied.
    Now(Incoming),
    /// All of it waits for this stamp.
    Later(Incoming, Stamp),
    /// The row is here already, so that what is due is applied to it and the rest waits.
    Parts { now: Incoming, later: Incoming, until: Stamp },
}

impl Store {
    /// Applies held rows whose time has come, a bounded number. More may be left.
    ///
    /// # Errors
    /// If SQLite fails; nothing is changed then.
    pub fn release(&mut self, now: Millis) -> Result<()> {
        self.write(now, |tx| tx.release_held())
    }
}

impl Tx<'_> {
    /// Stamps above this are in the future of this replica.
    pub(super) fn future(&mut self) -> Result<Stamp> {
        if let Some(future) = self.future {
            return Ok(future);
        }
        let limit = self.future_limit()?;
        let latest = i64::try_from(self.now.plus(limit).0).unwrap_or(i64::MAX);
        let future = Stamp::last_of(latest);
        self.future = Some(future);
        Ok(future)
    }

    /// How far ahead of this clock a stamp may be, in milliseconds.
    fn future_limit(&self) -> Result<u64> {
        let text: Option<String> = self.meta("config:future_limit_ms")?;
        Ok(text.and_then(|text| text.parse().ok()).unwrap_or(limits::FUTURE_LIMIT_MS))
    }

    /// Whether any row is held.
    pub(super) fn holds_any(&mut self) -> Result<bool> {
        if let Some(holds) = self.holds {
            return Ok(holds);
        }
        let holds = self.conn.prepare_cached("SELECT 1 FROM __wavesync_held LIMIT 1")?.exists([])?;
        self.holds = Some(holds);
        Ok(holds)
    }

    /// When the next held row is due.
    pub(super) fn release_at(&mut self) -> Result<Option<Millis>> {
        if !self.holds_any()? {
            return Ok(None);
        }
        let first: Option<i64> = self
            .conn
            .prepare_cached("SELECT min(stamp) FROM __wavesync_held")?
            .query_row([], |row| row.get(0))?;
        let limit = self.future_limit()?;
        Ok(first.map(|stamp| Millis(Stamp(stamp).millis().saturating_sub(limit))))
    }

    /// The vector of what was applied: below the lowest held write event of each site.
    pub fn applied_vector(&mut self) -> Result<Vector> {
        let mut vector = self.vector()?;
        if !self.holds_any()? {
            return Ok(vector);
        }
        for (site, low) in self.lowest_held(&vector)? {
            if let Some((stamp, _)) = vector.0.get_mut(&site) {
                *stamp = (*stamp).min(Stamp(low.0.saturating_sub(1)));
            }
        }
        Ok(vector)
    }

    fn lowest_held(&mut self, vector: &Vector) -> Result<Vec<(SiteId, Stamp)>> {
        let mut lowest = Vec::new();
        for site in vector.0.keys() {
            let number = self.site_num(*site)?;
            let low: Option<i64> = self
                .conn
                .prepare_cached("SELECT min(stamp) FROM __wavesync_held_dot WHERE site = ?1")?
                .query_row([number.0], |row| row.get(0))?;
            lowest.extend(low.map(|low| (*site, Stamp(low))));
        }
        Ok(lowest)
    }

    /// What of an arriving row can be applied now.
    pub(super) fn due(&mut self, table: &Table, key: &Value, row: Incoming) -> Result<Due> {
        let future = self.future()?;
        let highest = row.dots().map(|dot| dot.stamp).max().unwrap_or(Stamp::NONE);
        if highest <= future {
            return match self.awaited_birth(table, key, &row)? {
                Some(until) => Ok(Due::Later(row, until)),
                None => Ok(Due::Now(row)),
            };
        }
        let known = self.clock(table, key)?.map(|row| row.clock);
        let here = known.as_ref().is_some_and(|known| is_of(table.kind, known, &row));
        let whole_here =
            here && self.parked(table, key)?.is_none_or(|parked| parked.kind != Kind::Incomplete);
        let ended_later = row.ended.values().any(|death| death.stamp > future);
        if !row.alive() || !whole_here || row.birth.stamp > future || ended_later {
            let base = self.awaited_birth(table, key, &row)?;
            return Ok(Due::Later(row, base.map_or(highest, |base| base.max(highest))));
        }
        let (later, now): (BTreeMap<_, _>, BTreeMap<_, _>) =
            row.cells.into_iter().partition(|(_, (dot, _))| dot.stamp > future);
        let row = Incoming { cells: BTreeMap::new(), ..row };
        let part = |cells| Incoming { whole: false, cells, ..row.clone() };
        Ok(Due::Parts { now: part(now), later: part(later), until: highest })
    }

    /// A patch of a row that is held waits with it.
    fn awaited_birth(
        &mut self,
        table: &Table,
        key: &Value,
        row: &Incoming,
    ) -> Result<Option<Stamp>> {
        if row.whole || !row.alive() || !self.holds_any()? {
            return Ok(None);
        }
        let known = self.clock(table, key)?.map(|row| row.clock);
        if known.is_some_and(|known| known.length > row.length || is_of(table.kind, &known, row)) {
            return Ok(None);
        }
        let future = self.future()?;
        let held = self.held_under(table, key)?;
        let base = held.iter().filter(|held| held.row.whole && same(table.kind, &held.row, row));
        Ok(base.map(|base| base.until).filter(|until| *until > future).min())
    }

    /// Whether a held row is the incarnation that a patch is for, or one that wins over it.
    pub(super) fn holds(&mut self, table: &Table, key: &Value, patch: &Row) -> Result<bool> {
        if !self.holds_any()? {
            return Ok(false);
        }
        let held = self.held_under(table, key)?;
        Ok(held.iter().filter(|held| held.row.whole).any(|held| {
            let one = one_incarnation(table.kind, held.row.birth, patch.birth);
            held.row.length == patch.length && one
        }))
    }

    /// The highest causal length among the held states of a row; 0 without any.
    pub(super) fn held_length(&mut self, table: &Table, key: &Value) -> Result<i64> {
        if !self.holds_any()? {
            return Ok(0);
        }
        let held = self.held_under(table, key)?;
        Ok(held.iter().map(|held| held.row.length).max().unwrap_or(0))
    }

    /// Keeps a row until its time comes.
    pub(super) fn hold(
        &mut self,
        table: &Rc<Table>,
        key: &Value,
        row: Incoming,
        until: Stamp,
    ) -> Result<Outcome> {
        if mutants::on(Mutant::HeldDropped) || self.knows(table, key, &row)? {
            return Ok(Outcome::Same);
        }
        let mut lowest: BTreeMap<SiteId, Stamp> = BTreeMap::new();
        for dot in row.dots() {
            let low = lowest.entry(dot.site).or_insert(dot.stamp);
            *low = (*low).min(dot.stamp);
        }
        let newest = row.dots().max().map_or(row.birth.site, |dot| dot.site);
        self.tell_held(newest, until)?;
        let seq = self.append_log(table.num, key)?;
        let by = self.site_num(newest)?;
        let mut builder = BatchBuilder::default();
        builder.push(table, on_wire(table, key, row)?);
        self.conn
            .prepare_cached(
                "INSERT INTO __wavesync_held(seq, tbl, k, stamp, site, at, row)
                 VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?
            .execute(params![
                seq.0,
                table.num.0,
                key,
                until.0,
                by.0,
                self.now.0 as i64,
                builder.finish().encode()
            ])?;
        for (site, low) in lowest {
            let site = self.site_num(site)?;
            self.conn
                .prepare_cached(
                    "INSERT INTO __wavesync_held_dot(site, stamp, seq) VALUES(?1, ?2, ?3)",
                )?
                .execute(params![site.0, low.0, seq.0])?;
        }
        self.holds = Some(true);
        Ok(Outcome::Parked)
    }

    /// The user learns once whose clock is ahead.
    fn tell_held(&mut self, site: SiteId, until: Stamp) -> Result<()> {
        let number = self.site_num(site)?;
        let told = self
            .conn
            .prepare_cached("SELECT 1 FROM __wavesync_held WHERE site = ?1 LIMIT 1")?
            .exists([number.0])?;
        if told {
            return Ok(());
        }
        let ahead = duration(until.millis().saturating_sub(self.now.0));
        let who = member_name(self.conn, number)?.unwrap_or_else(|| site.to_string());
        let message =
            format!("changes of {who} are held back: the clock there is {ahead} ahead of this one");
        let hint = "set the clock of that device right; wavesync_conflicts says when what it \
                    wrote is shown";
        self.note("future", message, hint);
        Ok(())
    }

    /// Whether everything of a row is stored already, in the row or in what is held.
    fn knows(&mut self, table: &Table, key: &Value, row: &Incoming) -> Result<bool> {
        let current = self.clock(table, key)?.map(|row| row.clock);
        let held = if self.holds_any()? { self.held_under(table, key)? } else { Vec::new() };
        // What ended under a key belongs to the key, whichever row has it now.
        let ended = current.as_ref().map(|known| known.ended.clone()).unwrap_or_default();
        let ended = held.iter().fold(ended, |ended, held| join_ended(&ended, &held.row.ended));
        if join_ended(&ended, &row.ended) != ended {
            return Ok(false);
        }
        let longer = |length: i64| table.kind == KeyKind::Natural && length > row.length;
        if current.as_ref().is_some_and(|known| longer(known.length))
            || held.iter().any(|held| longer(held.row.length))
        {
            return Ok(true);
        }
        let of = current.filter(|known| is_of(table.kind, known, row));
        let held = held.iter().filter(|held| same(table.kind, &held.row, row));
        let held: Vec<&Incoming> = held.map(|held| &held.row).collect();
        if of.is_none() && !held.iter().any(|held| held.whole || !row.whole) {
            return Ok(false);
        }
        if !row.alive() {
            let newest = held.iter().map(|held| held.birth).chain(of.iter().map(|of| of.birth));
            return Ok(newest.max().is_some_and(|newest| newest >= row.birth));
        }
        let births = held.iter().map(|held| held.birth).chain(of.iter().map(|of| of.birth));
        let born = births.into_iter().any(|birth| birth == row.birth || birth.precedes(&row.birth));
        Ok(born
            && row.cells.iter().all(|(column, (dot, _))| {
                let stored = of.iter().filter_map(|of| of.cells.get(column).copied());
                let waiting = held.iter().filter_map(|held| held.cells.get(column));
                stored.chain(waiting.map(|(dot, _)| *dot)).any(|known| known >= *dot)
            }))
    }

    fn held_under(&mut self, table: &Table, key: &Value) -> Result<Vec<Held>> {
        let rows = self
            .conn
            .prepare_cached(
                "SELECT seq FROM __wavesync_held WHERE tbl = ?1 AND k = ?2 ORDER BY seq",
            )?
            .query_map(params![table.num.0, key], |row| Ok(Seq(row.get(0)?)))?
            .collect::<rusqlite::Result<Vec<Seq>>>()?;
        let held = rows.into_iter().map(|seq| self.held_at(seq));
        Ok(held.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    /// The held row behind a log entry.
    pub(super) fn held_at(&mut self, seq: Seq) -> Result<Option<Held>> {
        if !self.holds_any()? {
            return Ok(None);
        }
        let found: Option<(i64, Value, i64, Vec<u8>)> = self
            .conn
            .prepare_cached("SELECT tbl, k, stamp, row FROM __wavesync_held WHERE seq = ?1")?
            .query_row([seq.0], |row| {
                Ok((row.get(0)?, Value::from_ref(row.get_ref(1)?), row.get(2)?, row.get(3)?))
            })
            .optional()?;
        let Some((table, key, until, bytes)) = found else { return Ok(None) };
        let table = self.table(TableNum(table))?;
        let batch = Batch::decode(&bytes)?;
        let Some(part) = batch.tables.into_iter().next() else { return Ok(None) };
        let (table, columns) = self.columns_on_wire(table, &part.columns)?;
        let Some(row) = part.rows.into_iter().next() else { return Ok(None) };
        let cells = row.cells.into_iter();
        let cells = cells.filter_map(|(at, dot, value)| Some(((*columns.get(at)?)?, (dot, value))));
        let cells = newest_cells(cells);
        let (length, birth, whole, ended) = (row.length, row.birth, row.whole, row.ended);
        let row = Incoming { length, birth, whole, cells, ended };
        Ok(Some(Held { table, key, row, until: Stamp(until) }))
    }

    /// Adds a held row to what is served, as [`Tx::emit`] does with others.
    pub(super) fn emit_held(
        &mut self,
        builder: &mut BatchBuilder,
        held: Held,
        fresh: impl Fn(Dot) -> bool,
    ) -> Result<()> {
        let Held { table, mut key, mut row, .. } = held;
        if !row.dots().any(&fresh) {
            return Ok(());
        }
        // Who has forgotten what stood under this key would not know that the row has to move.
        if row.whole && row.alive() && row.ended.is_empty() {
            let here = self.clock(&table, &key)?.map(|row| row.clock);
            let verdict = judge(table.kind, here.as_ref(), &row, |_| Ok::<_, Error>(Value::Null))?;
            if let (Verdict::MoveIncoming, Value::Integer(home)) = (verdict, &key) {
                (key, row.length) = (Value::Integer(moved_key(*home, row.birth)), 1);
            }
        }
        row.whole &= fresh(row.birth) || !row.alive();
        if !row.whole {
            row.cells.retain(|_, (dot, _)| fresh(*dot));
        }
        builder.push(&table, on_wire(&table, &key, row)?);
        Ok(())
    }

    /// See [`Store::release`]. Rows come in the order of their stamps, so that a row comes before
    /// what was written to it.
    fn release_held(&mut self) -> Result<()> {
        let future = self.future()?;
        let due = self
            .conn
            .prepare_cached(
                "SELECT seq, tbl, row FROM __wavesync_held WHERE stamp <= ?1
                 ORDER BY stamp, seq LIMIT ?2",
            )?
            .query_map(params![future.0, limits::RELEASE_BLOCK_ROWS as i64], |row| {
                Ok((Seq(row.get(0)?), TableNum(row.get(1)?), row.get(2)?))
            })?
            .collect::<rusqlite::Result<Vec<(Seq, TableNum, Vec<u8>)>>>()?;
        let mut rows = Batch { tables: Vec::new() };
        for (seq, table, bytes) in due {
            let name = self.table(table)?.name.clone();
            for part in Batch::decode(&bytes)?.tables {
                rows.tables.push(crate::wire::rows::TableRows { name: name.clone(), ..part });
            }
            self.drop_held(seq)?;
        }
        self.apply(&rows)?;
        self.effects.openness_left |= self.test_openness()?;
        Ok(())
    }

    /// A row is held no longer.
    pub(super) fn drop_held(&mut self, seq: Seq) -> Result<()> {
        for table in ["__wavesync_held", "__wavesync_held_dot"] {
            let sql = format!("DELETE FROM {table} WHERE seq = ?1");
            self.conn.prepare_cached(&sql)?.execute([seq.0])?;
        }
        self.holds = None;
        Ok(())
    }

    /// What was held for a table under its new name joins the table.
    pub(super) fn held_join(&mut self, from: TableNum, into: TableNum) -> Result<()> {
        let sql = "UPDATE __wavesync_held SET tbl = ?2 WHERE tbl = ?1";
        self.conn.prepare_cached(sql)?.execute([from.0, into.0])?;
        let sql = "UPDATE __wavesync_log SET tbl = ?2 WHERE seq IN
                     (SELECT seq FROM __wavesync_held WHERE tbl = ?2)";
        self.conn.prepare_cached(sql)?.execute([from.0, into.0])?;
        Ok(())
    }
}

impl Vector {
    /// The entries in which another vector, of what was applied, is lower.
    #[must_use]
    pub fn lowered(&self, applied: &Self) -> Self {
        let lower = |site: &SiteId, stamp: Stamp| applied.get(*site) < stamp;
        let entries = self.0.iter().filter(|(site, (stamp, _))| lower(site, *stamp));
        Self(entries.map(|(site, (_, boot))| (*site, (applied.get(*site), *boot))).collect())
    }

    /// The vector of what was applied, from what [`Vector::lowered`] gave.
    #[must_use]
    pub fn with_lowered(&self, lowered: &Self) -> Self {
        let mut applied = self.clone();
        for (site, (stamp, _)) in &lowered.0 {
            let entry = applied.0.entry(*site).or_insert((*stamp, Boot(0)));
            entry.0 = entry.0.min(*stamp);
        }
        applied
    }
}

/// A duration in words.
fn duration(millis: u64) -> String {
    let units =
        [(86_400_000, "days"), (3_600_000, "hours"), (60_000, "minutes"), (1_000, "seconds")];
    let unit = units.into_iter().find(|(size, _)| millis >= 2 * size);
    unit.map_or_else(|| format!("{millis} ms"), |(size, name)| format!("{} {name}", millis / size))
}

/// The name of a member by the number of its site.
pub(super) fn member_name(conn: &rusqlite::Connection, site: SiteNum) -> Result<Option<String>> {
    let name: Option<String> = conn
        .prepare_cached("SELECT name FROM __wavesync_member WHERE site = ?1")?
        .query_row([site.0], |row| row.get(0))
        .optional()?;
    Ok(name.filter(|name| !name.is_empty()))
}

/// Whether an arriving row is the incarnation that is here.
fn is_of(kind: KeyKind, known: &Clock, row: &Incoming) -> bool {
    known.length == row.length && (!row.alive() || one_incarnation(kind, known.birth, row.birth))
}

/// Whether two arriving rows are one incarnation.
fn same(kind: KeyKind, one: &Incoming, two: &Incoming) -> bool {
    one.length == two.length && (!two.alive() || one_incarnation(kind, one.birth, two.birth))
}

fn on_wire(table: &Table, key: &Value, row: Incoming) -> Result<Row> {
    let Incoming { length, birth, whole, cells, ended } = row;
    let cells = cells.into_iter().map(|(num, (dot, value))| (usize::from(num.0), dot, value));
    Ok(Row { key: table.key_values(key)?, length, birth, whole, cells: cells.collect(), ended })
}
