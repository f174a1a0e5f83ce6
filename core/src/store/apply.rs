//! Applying rows of others: join, the one statement on the table, clocks and log, all in the
//! transaction of the caller (invariants I4 to I6).

use std::collections::BTreeSet;
use std::rc::Rc;

use crate::ids::{ColumnNum, Cursor, Dot, Seq, SiteId, Stamp};
use crate::merge::{Clock, Ended, Incoming, KeyKind, Verdict, join_ended, judge, one_incarnation};
use crate::mutants::{self, Mutant};
use crate::store::clock::ClockRow;
use crate::store::collect::Collected;
use crate::store::held::Due;
use crate::store::names::{is_twofold, newest_cells};
use crate::store::rows::{Kind, Parked, Values, refusal};
use crate::store::tables::Table;
use crate::store::vector::Vector;
use crate::store::{Tx, claim, key};
use crate::value::Value;
use crate::wire::message::Floor;
use crate::wire::packed::{Packed, RowRef, TableRef};
use crate::wire::rows::{Batch, Row};
use crate::{Error, Result};

/// What applying a batch came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Rows in the batch.
    pub rows: u64,
    /// Rows whose state moved.
    pub changed: u64,
    /// Rows that were parked.
    pub parked: u64,
    /// Rows that lost to another incarnation, such as a delete that their writer did not know of.
    pub outlived: u64,
}

impl Applied {
    /// Counts a row. Returns its newest stamp that was applied.
    fn add(&mut self, (outcome, newest): (Outcome, Stamp)) -> Stamp {
        self.rows += 1;
        self.changed += u64::from(outcome != Outcome::Same);
        self.parked += u64::from(outcome == Outcome::Parked);
        newest
    }
}

/// What a chunk of a catch-up reaches.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reach<'a> {
    /// How far its sender's log is read with it.
    pub cursor: Cursor,
    /// Where a key-order pass goes on after it; empty if none does.
    pub place: &'a [u8],
    /// Its rows are in key order.
    pub ordered: bool,
    /// With the last chunk, its sender's vector.
    pub last: Option<&'a Vector>,
    /// With the last chunk, what its sender has forgotten (rule P18).
    pub collected: Option<&'a Collected>,
    /// With the last chunk, above which causal lengths new rows begin.
    pub floors: &'a [Floor],
    /// All rows come, whole.
    pub full: Full,
}

/// Whether a pass sends all rows, and what for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Full {
    /// It sends what the vector does not cover.
    #[default]
    No,
    /// To take everything over anew (rule P20).
    Resync,
}

/// What to do with a push (rule P10b, c).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PushVerdict {
    /// Everything in it was seen already.
    Known,
    /// Something before it is missing: catch up.
    Gap,
    /// It was applied.
    Applied(Applied),
}

/// A table of a batch as it is here, with the numbers of those columns for which there is room.
type Numbered = (Rc<Table>, Vec<Option<ColumnNum>>);

impl Tx<'_> {
    /// Applies rows. Neither cursor nor vector move: see [`Tx::apply_piece`], [`Tx::apply_push`].
    pub fn apply(&mut self, batch: &Batch) -> Result<Applied> {
        self.apply_unseen(&Packed::of(batch), None)
    }

    /// Applies rows, but not those of which a vector covers everything.
    fn apply_unseen(&mut self, batch: &Packed<'_>, seen: Option<&Vector>) -> Result<Applied> {
        let seen = seen.map(|seen| batch.seen_by(seen));
        let mut applied = Applied::default();
        let mut clock = Stamp(self.meta("hlc")?.unwrap_or(0));
        let before = clock;
        let start = self.log_end()?;
        self.outlived = 0;
        let mut parts = Vec::new();
        for part in batch.tables() {
            let Some((table, columns)) = self.names_of(part)? else { continue };
            parts.push((self.cache.plan.stratum(table.num), table, columns, part));
        }
        parts.sort_by_key(|(stratum, ..)| *stratum);
        let mut work = Vec::with_capacity(parts.len());
        for (_, table, columns, part) in parts {
            let unseen = |row: &RowRef<'_>| seen.as_ref().is_none_or(|seen| !row.is_covered(seen));
            let rows = part.rows().filter(unseen).collect();
            let numbered: Option<Vec<ColumnNum>> = columns.iter().copied().collect();
            let (bulk, others) = match numbered.filter(|_| !is_twofold(&columns)) {
                Some(numbered) => self.split(&table, &numbered, rows)?,
                None => (None, rows),
            };
            work.push((table, columns, bulk, others));
        }
        // What is deleted makes room for what is new; then parents before children.
        for alive in [false, true] {
            for (table, columns, bulk, others) in &mut work {
                if let Some(bulk) = bulk.take_if(|_| alive) {
                    if !self.any_over(table, &bulk)? && self.write_bulk(table, &bulk)? {
                        let count = bulk.rows().count() as u64;
                        applied.rows += count;
                        applied.changed += count;
                        clock = bulk.rows().map(RowRef::newest).fold(clock, Stamp::max);
                    } else {
                        let (new, dead): (Vec<_>, _) = bulk.rows().partition(|row| row.alive());
                        clock = clock.max(self.apply_each(table, columns, &dead, &mut applied)?);
                        others.extend(new);
                    }
                }
                let due: Vec<RowRef<'_>> =
                    others.iter().copied().filter(|row| row.alive() == alive).collect();
                clock = clock.max(self.apply_each(table, columns, &due, &mut applied)?);
            }
        }
        if clock > before {
            self.set_meta("hlc", clock.0)?;
        }
        if applied.changed > 0 {
            self.note_received(batch)?;
            self.follow_moves()?;
            let hot = self.hot.clone();
            self.settle(start)?;
            applied.parked += self.count_parked(&hot)?;
            self.mark_open_by(Seq(start.0 + 1), batch)?;
        }
        self.store_folded_end()?;
        applied.outlived = self.outlived;
        Ok(applied)
    }

    /// Applies rows one by one. Returns the newest stamp that was applied.
    fn apply_each(
        &mut self,
        table: &Rc<Table>,
        columns: &[Option<ColumnNum>],
        rows: &[RowRef<'_>],
        applied: &mut Applied,
    ) -> Result<Stamp> {
        let mut known = self.known(table, columns, rows.len())?;
        let mut clock = Stamp::NONE;
        for row in rows {
            let done = match &mut known {
                Some(known) => self.merge_known(known, *row)?,
                None => None,
            };
            let done = match done {
                Some(done) => done,
                None => self.apply_row(table, columns, &row.to_row())?,
            };
            clock = clock.max(applied.add(done));
        }
        Ok(clock)
    }

    /// Applies one chunk of a catch-up and moves the cursor and the place of a key-order pass; with
    /// the last chunk the vector too.
    pub fn apply_piece(
        &mut self,
        from: SiteId,
        rows: &Batch,
        reach: &Reach<'_>,
    ) -> Result<Applied> {
        self.apply_packed_piece(from, &Packed::of(rows), reach)
    }

    pub(super) fn apply_packed_piece(
        &mut self,
        from: SiteId,
        rows: &Packed<'_>,
        reach: &Reach<'_>,
    ) -> Result<Applied> {
        // What the vector covers is dominated by what is here (rule P6).
        let all = reach.full != Full::No || self.waits_for_known()?;
        let seen = if all { None } else { Some(self.vector()?) };
        let applied = self.apply_unseen(rows, seen.as_ref())?;
        if reach.full == Full::No {
            self.set_cursor(from, reach.cursor, reach.place)?;
        }
        if reach.full == Full::Resync {
            self.note_rows(from, rows, reach.place)?;
        }
        let Some(vector) = reach.last else { return Ok(applied) };
        self.check_sites(vector)?;
        self.take_floors(reach.floors)?;
        let mut collected = reach.collected.cloned().unwrap_or_default();
        if reach.full == Full::No {
            // Who is even has forgotten nothing above a cap that this replica has not.
            let (own, caps) = (self.collected()?, self.caps()?);
            collected.retain(|site, stamp| {
                !caps.contains_key(site) || own.get(site).is_some_and(|own| own >= stamp)
            });
        }
        let collected = &collected;
        if reach.full == Full::Resync && !self.finish_resync(from, vector, collected)? {
            return Ok(applied);
        }
        self.set_cursor(from, reach.cursor, &[])?;
        let forks = self.past_forks(vector)?;
        if !forks.is_empty() {
            self.effects.caps_fell |= self.lower_caps(&forks)?;
        }
        self.raise_all(vector)?;
        self.regain()?;
        self.raise_collected(collected)?;
        self.effects.openness_left |= self.test_openness()?;
        Ok(applied)
    }

    /// The local table and columns for the names in a batch; what is unknown gets numbers, as long
    /// as there is room for it.
    fn names_of(&mut self, part: TableRef<'_>) -> Result<Option<Numbered>> {
        let (name, integer, width) = (part.name(), part.integer_key(), part.key_columns());
        let known = self.table_on_wire(name, integer, width)?;
        let table = match known {
            Some(table) => table,
            None if !self.has_room_for_table() => {
                let rows: Vec<Row> = part.rows().map(RowRef::to_row).collect();
                self.leave_out(rows.iter())?;
                return Ok(None);
            }
            None => self.number_foreign_table(name, integer, width)?,
        };
        self.columns_on_wire(table, part.columns()).map(Some)
    }

    /// Applies a row, or what of it is due. Returns the newest stamp that was applied.
    fn apply_row(
        &mut self,
        table: &Rc<Table>,
        columns: &[Option<ColumnNum>],
        row: &Row,
    ) -> Result<(Outcome, Stamp)> {
        if table.shape.is_none() && mutants::on(Mutant::NoPark) {
            return Ok((Outcome::Same, Stamp::NONE));
        }
        let key = key::pack(&row.key);
        let room = self.has_room_to_park()?;
        if !room && table.shape.is_none() && self.clock(table, &key)?.is_none() {
            self.leave_out(std::iter::once(row))?;
            return Ok((Outcome::Same, Stamp::NONE));
        }
        let fits = |num: &ColumnNum| {
            room || *num == ColumnNum::CLAIM
                || table.shape.is_none()
                || table.column(*num).is_some_and(|column| column.local.is_some())
        };
        let number = |at: &usize| columns.get(*at).copied().flatten().filter(fits);
        let cells = row
            .cells
            .iter()
            .filter_map(|(at, dot, value)| number(at).map(|num| (num, (*dot, value.clone()))));
        if row.cells.iter().any(|(at, ..)| number(at).is_none()) {
            self.leave_out(std::iter::once(row))?;
        }
        let is_claim = |at: &usize| columns.get(*at) == Some(&Some(ColumnNum::CLAIM));
        let mut claims = row.cells.iter().filter(|(at, ..)| is_claim(at));
        if claims.any(|(.., value)| claim::decode(value).is_none()) {
            return Err(Error::protocol("a claim is no rank"));
        }
        let incoming = Incoming {
            length: row.length,
            birth: row.birth,
            whole: row.whole,
            cells: newest_cells(cells),
            ended: row.ended.clone(),
        };
        if !incoming.whole && self.is_patch_of_nothing(table, &key, &incoming)? {
            return Ok((Outcome::Same, Stamp::NONE));
        }
        let newest = |row: &Incoming| row.dots().map(|dot| dot.stamp).max().unwrap_or(Stamp::NONE);
        let clock = if mutants::on(Mutant::HeldInClock) { newest(&incoming) } else { Stamp::NONE };
        let (incoming, held) = match self.due(table, &key, incoming)? {
            Due::Now(row) => (row, Outcome::Same),
            Due::Later(row, until) => return Ok((self.hold(table, &key, row, until)?, clock)),
            Due::Parts { now, later, until } => (now, self.hold(table, &key, later, until)?),
        };
        let clock = clock.max(newest(&incoming));
        let outcome = match self.place_of(table, &key, &incoming)? {
            Some(to) => {
                // What ended under this key is told of this key, not of the one moved to.
                let told = self.learn_ended(table, &key, &incoming.ended)?;
                let patch = Incoming { length: 1, ended: Ended::new(), ..incoming };
                let joined = self.join_row(table, &to, patch)?;
                if joined == Outcome::Same { told } else { joined }
            }
            None => self.join_row(table, &key, incoming)?,
        };
        Ok((if outcome == Outcome::Same { held } else { outcome }, clock))
    }

    /// Joins an incoming state of a row into what is here under a key.
    pub(super) fn join_row(
        &mut self,
        table: &Rc<Table>,
        key: &Value,
        incoming: Incoming,
    ) -> Result<Outcome> {
        let current = self.take_in(table, key)?;
        self.join(table, key, current, incoming)
    }

    /// Joins an incoming state of a row into the current one, in `L` and in `T`.
    pub(super) fn join(
        &mut self,
        table: &Rc<Table>,
        key: &Value,
        current: Option<Clock>,
        incoming: Incoming,
    ) -> Result<Outcome> {
        let longer = |current: &Clock| current.length > incoming.length;
        self.outlived += u64::from(current.as_ref().is_some_and(longer));
        let mut held: Option<Values> = None;
        let verdict = judge(table.kind, current.as_ref(), &incoming, |num| {
            if held.is_none() {
                held = Some(self.all_values(table, key)?);
            }
            if num == ColumnNum::CLAIM {
                let claim = current.as_ref().and_then(|clock| clock.claim);
                return Ok(claim.map_or(Value::Null, claim::encode));
            }
            let value = held.as_ref().and_then(|values| values.get(&num)).cloned();
            Ok::<_, Error>(value.unwrap_or(Value::Null))
        })?;
        let known = current.as_ref().map(|clock| clock.ended.clone()).unwrap_or_default();
        let ended = join_ended(&known, &incoming.ended);
        let news: Ended = ended
            .iter()
            .filter(|(birth, death)| known.get(birth) != Some(death))
            .map(|(birth, death)| (*birth, *death))
            .collect();
        let outcome = match verdict {
            Verdict::Keep => self.keep(table, key, current, &incoming, ended)?,
            Verdict::MoveIncoming => {
                let kept = self.keep(table, key, current, &incoming, ended)?;
                let moved = self.move_incoming(table, key, incoming)?;
                if moved == Outcome::Same { kept } else { moved }
            }
            Verdict::Replace { moves } => {
                let alive = current.as_ref().filter(|clock| clock.alive());
                let leaving = match alive {
                    Some(current) if moves => Some(self.take_current(table, key, current)?),
                    Some(current) => {
                        self.keep_overwritten(table, key, current, &incoming)?;
                        None
                    }
                    None => None,
                };
                let outcome = self.replace(table, key, current.as_ref(), &incoming, ended)?;
                if let Some(leaving) = leaving {
                    self.move_current(table, key, leaving)?;
                }
                outcome
            }
            Verdict::Merge { birth, wins } => match current {
                Some(mut current) => {
                    current.ended = ended;
                    self.merge(table, key, current, &incoming, birth, &wins)?
                }
                None => return Err(Error::Database("a merge without a current state".into())),
            },
        };
        if !news.is_empty() {
            self.end_moved(table, key, &news)?;
        }
        Ok(outcome)
    }

    /// The current state stays; what is new of ended incarnations is noted.
    fn keep(
        &mut self,
        table: &Rc<Table>,
        key: &Value,
        current: Option<Clock>,
        incoming: &Incoming,
        ended: Ended,
    ) -> Result<Outcome> {
        let outcome = self.complete(table, key, current.clone(), incoming)?;
        match current {
            Some(current) if outcome == Outcome::Same && current.ended != ended => {
                self.record(table, key, Clock { ended, ..current })?;
                Ok(Outcome::Changed)
            }
            _ => Ok(outcome),
        }
    }

    /// Notes incarnations of a key that are over.
    fn learn_ended(&mut self, table: &Rc<Table>, key: &Value, ended: &Ended) -> Result<Outcome> {
        let Some(current) = self.clock(table, key)?.map(|row| row.clock) else {
            return Ok(Outcome::Same);
        };
        let joined = join_ended(&current.ended, ended);
        if joined == current.ended {
            return Ok(Outcome::Same);
        }
        self.record(table, key, Clock { ended: joined, ..current })?;
        self.end_moved(table, key, ended)?;
        Ok(Outcome::Changed)
    }

    /// Nothing in a row is new, but an incomplete row of that incarnation may wait for just that:
    /// to be whole.
    fn complete(
        &mut self,
        table: &Rc<Table>,
        key: &Value,
        current: Option<Clock>,
        incoming: &Incoming,
    ) -> Result<Outcome> {
        let same = |clock: &Clock| one_incarnation(table.kind, clock.birth, incoming.birth);
        let Some(current) = current.filter(|clock| incoming.whole && same(clock)) else {
            return Ok(Outcome::Same);
        };
        let parked = self.parked(table, key)?;
        if current.length != incoming.length
            || parked.is_none_or(|parked| parked.kind != Kind::Incomplete)
        {
            return Ok(Outcome::Same);
        }
        let birth = current.birth;
        self.merge(table, key, current, incoming, birth, &[])
    }

    fn replace(
        &mut self,
        table: &Rc<Table>,
        key: &Value,
        current: Option<&Clock>,
        incoming: &Incoming,
        ended: Ended,
    ) -> Result<Outcome> {
        let cells = incoming.cells.iter().map(|(num, (dot, _))| (*num, *dot)).collect();
        let claim = incoming.cells.get(&ColumnNum::CLAIM);
        let claim = claim.and_then(|(_, value)| claim::decode(value));
        let clock = Clock { length: incoming.length, birth: incoming.birth, cells, claim, ended };
        let parked = self.parked(table, key)?;
        let stands = current.is_some_and(Clock::alive)
            && parked.as_ref().is_none_or(|parked| parked.kind.in_table())
            && table.shape.is_some();
        let outcome = if !incoming.alive() {
            self.delete_row(table, key)?;
            self.set_parked(table, key, None)?;
            Outcome::Changed
        } else {
            let values = incoming.cells.iter().filter(|(num, _)| **num != ColumnNum::CLAIM);
            let values = values.map(|(num, (_, value))| (*num, value.clone())).collect();
            let complete = incoming.whole;
            self.place(table, key, values, complete, stands.then_some(Standing::Other))?
        };
        self.record(table, key, clock)?;
        if current.is_none() && incoming.alive() {
            self.end_if_over(table, key, incoming.birth)?;
        }
        Ok(outcome)
    }

    fn merge(
        &mut self,
        table: &Rc<Table>,
        key: &Value,
        mut clock: Clock,
        incoming: &Incoming,
        birth: Dot,
        wins: &[ColumnNum],
    ) -> Result<Outcome> {
        self.keep_existing(table, key, &clock, incoming, wins)?;
        clock.birth = birth;
        let mut won = Values::new();
        for num in wins {
            if let Some((dot, value)) = incoming.cells.get(num) {
                clock.cells.insert(*num, *dot);
                if *num == ColumnNum::CLAIM {
                    clock.claim = claim::decode(value);
                } else {
                    won.insert(*num, value.clone());
                }
            }
        }
        let parked = self.parked(table, key)?;
        let out = parked.as_ref().is_some_and(|parked| !parked.kind.in_table());
        let outcome = if out || table.shape.is_none() {
            let parked =
                parked.unwrap_or_else(|| Parked::new(Kind::UnknownTable, "", Values::new()));
            let complete = incoming.whole || parked.kind != Kind::Incomplete;
            let mut values = parked.values;
            values.extend(won);
            self.place(table, key, values, complete, None)?
        } else {
            self.place(table, key, won, true, Some(Standing::Same))?
        };
        self.record(table, key, clock)?;
        Ok(outcome)
    }

    /// Brings a row into the application's table by one statement. If it contends with others, or
    /// the statement fails, [`Tx::settle`] decides on it at the end of the batch.
    fn place(
        &mut self,
        table: &Rc<Table>,
        key: &Value,
        values: Values,
        complete: bool,
        standing: Option<Standing>,
    ) -> Result<Outcome> {
        if table.shape.is_none() {
            let reason = "this database has no such table";
            let parked = Parked::new(Kind::UnknownTable, reason, values);
            self.set_parked(table, key, Some(&parked))?;
            return Ok(Outcome::Parked);
        }
        if !complete {
            self.delete_row(table, key)?;
            let reason = "the rest of the row has not arrived";
            let parked = Parked::new(Kind::Incomplete, reason, values);
            self.set_parked(table, key, Some(&parked))?;
            return Ok(Outcome::Parked);
        }
        let before = self.parked(table, key)?;
        if let Some(before) = before.as_ref().filter(|before| before.kind.contested()) {
            let pending = pending(Some(before), values, standing);
            self.set_parked(table, key, Some(&pending))?;
            self.hot.insert((table.num, key.clone()));
            return Ok(Outcome::Hot);
        }
        let local = |num: &ColumnNum| table.column(*num).is_some_and(|c| c.local.is_some());
        let (here, mut unknown): (Values, Values) =
            values.into_iter().partition(|(num, _)| local(num));
        if standing == Some(Standing::Same) {
            let older = before.iter().flat_map(|before| before.values.clone());
            unknown = older.chain(unknown).collect();
        }
        let full = table.local_columns().all(|column| here.contains_key(&column.num));
        let (written, left) = match standing {
            Some(Standing::Same) => (self.update_row(table, key, &here), standing),
            Some(Standing::Other) if full && !table.equal_keys_differ() => {
                (self.update_row(table, key, &here), standing)
            }
            Some(Standing::Other) => {
                self.delete_row(table, key)?;
                (self.insert_row(table, key, &here), None)
            }
            None => (self.insert_row(table, key, &here), None),
        };
        let Err(error) = written else {
            let reason = "the table here has no such column";
            if mutants::on(Mutant::UnknownColumnsDropped) {
                unknown.clear();
            }
            let rest = Parked::new(Kind::UnknownColumn, reason, unknown);
            self.set_parked(table, key, Some(&rest))?;
            return Ok(Outcome::Changed);
        };
        let Some((kind, reason)) = refusal(&error) else { return Err(error) };
        unknown.extend(here);
        let mut pending = pending(None, unknown, left);
        if left.is_none() {
            pending = Parked::new(kind, reason, pending.values);
        }
        self.set_parked(table, key, Some(&pending))?;
        self.hot.insert((table.num, key.clone()));
        Ok(Outcome::Hot)
    }

    /// Stores the new clock under the next `db_version`.
    fn record(&mut self, table: &Rc<Table>, key: &Value, clock: Clock) -> Result<()> {
        let seq = self.append_log(table.num, key)?;
        self.set_clock(table, key, &ClockRow { clock, seq })
    }

    /// Inserts a row that was parked for want of its table. Returns whether it stands now.
    pub(super) fn retry_new(&mut self, table: &Rc<Table>, key: &Value) -> Result<bool> {
        self.take_in(table, key)?;
        let Some(parked) = self.parked(table, key)? else { return Ok(true) };
        if parked.kind != Kind::UnknownTable || table.shape.is_none() {
            return Ok(false);
        }
        let outcome = self.place(table, key, parked.values, true, None)?;
        Ok(outcome == Outcome::Changed)
    }

    /// Columns that were unknown when their values arrived and exist now.
    pub(super) fn show_columns(&mut self, table: &Rc<Table>, key: &Value) -> Result<bool> {
        let Some(parked) = self.parked(table, key)? else { return Ok(false) };
        let known: BTreeSet<ColumnNum> = table.local_columns().map(|column| column.num).collect();
        if !parked.values.keys().any(|num| known.contains(num)) {
            return Ok(false);
        }
        let outcome = self.place(table, key, parked.values, true, Some(Standing::Same))?;
        // `place` keeps what stood there for unknown columns; drop those that are shown now.
        let rest = self.parked(table, key)?;
        if let Some(mut rest) = rest.filter(|rest| rest.kind == Kind::UnknownColumn) {
            rest.values.retain(|num, _| !known.contains(num));
            self.set_parked(table, key, Some(&rest))?;
        }
        Ok(outcome == Outcome::Changed)
    }
}

/// Whether a patch of a row finds the incarnation that it patches, or one that wins over it.
pub(super) fn joins(kind: KeyKind, known: &Clock, patch: &Row) -> bool {
    if known.length != patch.length {
        return known.length > patch.length;
    }
    one_incarnation(kind, known.birth, patch.birth) || known.birth.precedes(&patch.birth)
}

/// What joining a row came to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Same,
    Changed,
    Parked,
    Hot,
}

/// The parked form of a row that is decided on at the end of the batch: what its table does not
/// show of it, whatever is in the table now.
fn pending(before: Option<&Parked>, values: Values, standing: Option<Standing>) -> Parked {
    let kind = before.map_or(Kind::Unique, |before| before.kind);
    match standing {
        None => Parked::new(kind, "", values),
        Some(standing) => {
            let older = before.filter(|_| standing == Standing::Same);
            let mut all = older.map(|older| older.values.clone()).unwrap_or_default();
            all.extend(values);
            Parked::new(Kind::Overlay, "", all)
        }
    }
}

/// Which row of this key stands in the application's table.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// The same incarnation: winning columns are updated.
    Same,
    /// Another incarnation: the whole row is replaced.
    Other,
}
