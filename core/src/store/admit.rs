//! The rule that makes tables out of rows, `T = f(L)`, for rows that contend with each other.
//!
//! Tables are filled parents first. Within a stratum rows are let in by rank, earliest first, as
//! soon as their parents stand; a row that excludes one already let in stays out as a whole, holds
//! no unique value and is nobody's parent. Rows that only wait for each other go in as one unit or
//! not at all. Must run in a [`super::probe::session`], on tables without these rows.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use rusqlite::params_from_iter;

use crate::store::Tx;
use crate::store::claim::{Rank, rank};
use crate::store::contend::{Contender, RowId};
use crate::store::foreign::{Action, Plan, pick};
use crate::store::rows::{Kind, Parked, Values, insertion, refusal};
use crate::value::Value;
use crate::{Error, Result};

/// What becomes of a row.
pub(super) enum Fate {
    /// It stands in the table.
    In {
        /// With these values.
        values: Values,
        /// Which hide these, as long as a parent is missing.
        hidden: Values,
    },
    /// It is parked.
    Out(Parked),
}

/// Rows by rank.
type Ordered = (Rank, RowId);

/// A row as its table would show it.
struct Form {
    values: Values,
    hidden: Values,
    /// Foreign keys without a parent: position in the plan, and the values referred to.
    missing: Vec<(usize, Vec<Value>)>,
}

/// The rows of one stratum on their way in.
struct Stratum<'a> {
    plan: &'a Plan,
    rows: &'a BTreeMap<RowId, Contender>,
    ready: BTreeSet<Ordered>,
    waiting: BTreeMap<Ordered, Form>,
    fates: &'a mut BTreeMap<RowId, Fate>,
}

impl Tx<'_> {
    /// Lets rows in. `refused` ones stay out.
    pub(super) fn admit(
        &mut self,
        rows: &BTreeMap<RowId, Contender>,
        refused: &BTreeMap<RowId, Parked>,
    ) -> Result<BTreeMap<RowId, Fate>> {
        let plan = Rc::clone(&self.cache.plan);
        let mut strata: BTreeMap<usize, Vec<Ordered>> = BTreeMap::new();
        let mut fates = BTreeMap::new();
        for (id, row) in rows.iter().filter(|(_, row)| row.contends) {
            match refused.get(id) {
                Some(parked) => {
                    fates.insert(id.clone(), Fate::Out(parked.clone()));
                }
                None => strata
                    .entry(plan.stratum(id.0))
                    .or_default()
                    .push((rank(&row.table, &id.1, &row.clock), id.clone())),
            }
        }
        for ordered in strata.into_values() {
            let mut stratum = Stratum {
                plan: &plan,
                rows,
                ready: BTreeSet::new(),
                waiting: BTreeMap::new(),
                fates: &mut fates,
            };
            for entry in ordered {
                stratum.sort_in(self, entry)?;
            }
            stratum.fill(self)?;
        }
        Ok(fates)
    }

    /// The form in which a row would stand now.
    fn form(&self, plan: &Plan, row: &Contender) -> Result<Form> {
        let mut form = Form { values: row.local(), hidden: Values::new(), missing: Vec::new() };
        for key in plan.of_child(row.table.num) {
            if key.action == Action::Park || plan.inside(key) {
                continue;
            }
            let Some(wanted) = pick(&key.columns, &row.keys, &form.values) else { continue };
            if self.keys_of(&key.parent_select, key.parent, &wanted)?.is_empty() {
                for (num, value) in &key.overlay {
                    if let Some(own) = row.values.get(num) {
                        form.hidden.insert(*num, own.clone());
                    }
                    form.values.insert(*num, value.clone());
                }
            }
        }
        for (at, key) in plan.keys.iter().enumerate().filter(|(_, key)| key.child == row.table.num)
        {
            let Some(wanted) = pick(&key.columns, &row.keys, &form.values) else { continue };
            let own = key.parent == key.child
                && pick(&key.parent_columns, &row.keys, &form.values).as_ref() == Some(&wanted);
            if !own && self.keys_of(&key.parent_select, key.parent, &wanted)?.is_empty() {
                form.missing.push((at, wanted));
            }
        }
        Ok(form)
    }

    /// Inserts a row without any trigger; returns why it cannot be.
    fn try_in(&self, row: &Contender, values: &Values) -> Result<Option<(Kind, String)>> {
        let verb = row.table.shape.as_ref().map_or("INSERT INTO main.", |s| s.insert_verb());
        let (sql, bound) = insertion(&row.table, &row.keys, values, verb)?;
        let inserted = self.conn.prepare_cached(&sql)?.execute(params_from_iter(bound));
        let Err(error) = inserted else { return Ok(None) };
        let error = Error::from(error);
        refusal(&error).map(Some).ok_or(error)
    }
}

impl Stratum<'_> {
    fn row(&self, id: &RowId) -> Result<&Contender> {
        self.rows.get(id).ok_or_else(|| Error::Database("a contending row was lost".into()))
    }

    fn sort_in(&mut self, tx: &Tx<'_>, entry: Ordered) -> Result<()> {
        let form = tx.form(self.plan, self.row(&entry.1)?)?;
        if form.missing.is_empty() {
            self.ready.insert(entry);
        } else {
            self.waiting.insert(entry, form);
        }
        Ok(())
    }

    fn fill(mut self, tx: &mut Tx<'_>) -> Result<()> {
        loop {
            while let Some((_, id)) = self.ready.pop_first() {
                self.attempt(tx, &id)?;
            }
            let Some(unit) = self.unit() else { break };
            self.attempt_unit(tx, unit)?;
        }
        for ((_, id), form) in std::mem::take(&mut self.waiting) {
            let values = self.row(&id)?.values.clone();
            let missing = form.missing.first();
            let key = missing.and_then(|(at, _)| self.plan.keys.get(*at));
            let parent = key.map_or("", |key| key.parent_name.as_str());
            let wanted = missing.map(|(_, wanted)| super::report::values_text(wanted));
            let reason = format!(
                "table {parent} has no row {} that it refers to",
                wanted.unwrap_or_default()
            );
            self.fates.insert(id, Fate::Out(Parked::new(Kind::ForeignKey, reason, values)));
        }
        Ok(())
    }

    fn attempt(&mut self, tx: &mut Tx<'_>, id: &RowId) -> Result<()> {
        let row = self.row(id)?;
        let form = tx.form(self.plan, row)?;
        let fate = match tx.try_in(row, &form.values)? {
            None => Fate::In { values: form.values, hidden: form.hidden },
            Some((kind, reason)) => {
                let mut parked = Parked::new(kind, reason, row.values.clone());
                if kind == Kind::Unique {
                    let rivals = tx.rivals(row, &form.values)?;
                    parked.blocker = rivals.into_iter().map(|(_, key)| key).min();
                    if let Some(blocker) = &parked.blocker {
                        let name = super::report::key_text(&row.table, blocker);
                        parked.reason = format!("{}; row {name} has it", parked.reason);
                    }
                }
                Fate::Out(parked)
            }
        };
        let stands = matches!(fate, Fate::In { .. });
        self.fates.insert(id.clone(), fate);
        if stands { self.wake(tx, id) } else { Ok(()) }
    }

    /// Rows that may have waited for this one.
    fn wake(&mut self, tx: &Tx<'_>, id: &RowId) -> Result<()> {
        let parent = self.row(id)?;
        let (plan, values) = (self.plan, parent.local());
        let hit = |(at, wanted): &(usize, Vec<Value>)| {
            let key = plan.keys.get(*at).filter(|key| key.parent == id.0);
            let offered = key.and_then(|key| pick(&key.parent_columns, &parent.keys, &values));
            offered.is_some_and(|offered| offered.iter().zip(wanted).all(|(a, b)| may_equal(a, b)))
        };
        let woken: Vec<Ordered> = self
            .waiting
            .iter()
            .filter(|(_, form)| form.missing.iter().any(hit))
            .map(|(entry, _)| entry.clone())
            .collect();
        for entry in woken {
            self.waiting.remove(&entry);
            self.sort_in(tx, entry)?;
        }
        Ok(())
    }

    /// The unit of smallest rank among rows that wait only for each other.
    fn unit(&self) -> Option<BTreeSet<Ordered>> {
        let mut above: BTreeMap<&Ordered, BTreeSet<&Ordered>> = BTreeMap::new();
        let mut rest: BTreeSet<&Ordered> = self.waiting.keys().collect();
        loop {
            above.clear();
            for entry in &rest {
                if let Some(parents) = self.waited_for(entry, &rest) {
                    above.insert(entry, parents);
                }
            }
            if above.len() == rest.len() {
                break;
            }
            rest = above.keys().copied().collect();
        }
        let reach = |from: &Ordered| {
            let mut seen: BTreeSet<&Ordered> = BTreeSet::new();
            let mut queue: Vec<&Ordered> = above.get(from).into_iter().flatten().copied().collect();
            while let Some(next) = queue.pop() {
                if seen.insert(next) {
                    queue.extend(above.get(next).into_iter().flatten());
                }
            }
            seen
        };
        let reached: BTreeMap<&Ordered, BTreeSet<&Ordered>> =
            rest.iter().map(|entry| (*entry, reach(entry))).collect();
        // A source: whatever a member waits for is waited for by all of them, too. In order of
        // rank, so the first one found has the member of smallest rank.
        rest.iter().find_map(|entry| {
            let unit = &reached[entry];
            let closed =
                unit.contains(entry) && unit.iter().all(|member| reached[member].contains(entry));
            closed.then(|| unit.iter().map(|member| (*member).clone()).collect())
        })
    }

    /// The waiting rows that provide every parent that one of them misses; `None` if some parent
    /// is provided by none.
    fn waited_for<'b>(
        &self,
        entry: &Ordered,
        rest: &BTreeSet<&'b Ordered>,
    ) -> Option<BTreeSet<&'b Ordered>> {
        let mut parents = BTreeSet::new();
        for (at, wanted) in &self.waiting.get(entry)?.missing {
            let key = self.plan.keys.get(*at)?;
            let before = parents.len();
            let offers = |other: &&&Ordered| {
                other.1.0 == key.parent
                    && self.rows.get(&other.1).is_some_and(|row| {
                        pick(&key.parent_columns, &row.keys, &row.values).as_ref() == Some(wanted)
                    })
            };
            parents.extend(rest.iter().filter(offers));
            let known = rest.iter().filter(offers).count();
            if parents.len() == before && known == 0 {
                return None;
            }
        }
        Some(parents)
    }

    fn attempt_unit(&mut self, tx: &mut Tx<'_>, unit: BTreeSet<Ordered>) -> Result<()> {
        tx.conn.execute_batch("SAVEPOINT wavesync_unit")?;
        let mut failed = None;
        let mut stand = Vec::new();
        for entry in &unit {
            let row = self.row(&entry.1)?;
            let form = tx.form(self.plan, row)?;
            match tx.try_in(row, &form.values)? {
                None => stand.push((entry.1.clone(), form)),
                Some((kind, reason)) => {
                    failed = Some((kind, reason));
                    break;
                }
            }
        }
        if failed.is_some() {
            tx.conn.execute_batch("ROLLBACK TO wavesync_unit")?;
        }
        tx.conn.execute_batch("RELEASE wavesync_unit")?;
        unit.iter().for_each(|entry| {
            self.waiting.remove(entry);
        });
        if let Some((_, why)) = failed {
            for (_, id) in unit {
                let reason = format!("it waits for a row that waits for it: {why}");
                let values = self.row(&id)?.values.clone();
                self.fates.insert(id, Fate::Out(Parked::new(Kind::ForeignKey, reason, values)));
            }
            return Ok(());
        }
        for (id, form) in stand {
            self.fates.insert(id.clone(), Fate::In { values: form.values, hidden: form.hidden });
            self.wake(tx, &id)?;
        }
        Ok(())
    }
}

/// Whether SQLite may find two values equal; it is asked afterwards. Collations and affinities can
/// make values of different bytes equal.
fn may_equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Integer(a), Value::Integer(b)) => a == b,
        (Value::Blob(a), Value::Blob(b)) => a == b,
        _ => true,
    }
}
