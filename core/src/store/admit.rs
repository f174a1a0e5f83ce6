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
use crate::store::await_parents::{Waiting, unit};
use crate::store::claim::{Rank, rank};
use crate::store::contend::{Contender, RowId};
use crate::store::foreign::{Action, Plan, pick};
use crate::store::rows::{Kind, Parked, Values, insertion, refusal};
use crate::store::woken::reference;
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
pub(super) type Ordered = (Rank, RowId);

/// A row as its table would show it.
pub(super) struct Form {
    values: Values,
    hidden: Values,
    /// Foreign keys without a parent: position in the plan, and the values referred to.
    pub missing: Vec<(usize, Vec<Value>)>,
}

/// The rows of one stratum on their way in.
struct Stratum<'a> {
    plan: &'a Plan,
    rows: &'a BTreeMap<RowId, Contender>,
    ready: BTreeSet<Ordered>,
    waiting: Waiting,
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
                waiting: Waiting::default(),
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
        self.cache.examined.set(self.cache.examined.get() + 1);
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
        let inserted = self
            .conn
            .prepare_cached(&sql)
            .and_then(|mut statement| statement.execute(params_from_iter(bound)));
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
            self.waiting.insert(self.plan, entry, form);
        }
        Ok(())
    }

    fn fill(mut self, tx: &mut Tx<'_>) -> Result<()> {
        loop {
            while let Some((_, id)) = self.ready.pop_first() {
                self.attempt(tx, &id)?;
            }
            let Some(unit) = unit(self.plan, self.rows, &self.waiting) else { break };
            self.attempt_unit(tx, unit)?;
        }
        for ((_, id), form) in std::mem::take(&mut self.waiting).into_rows() {
            let values = self.row(&id)?.values.clone();
            let missing = form.missing.first();
            let key = missing.and_then(|(at, _)| self.plan.keys.get(*at));
            let parent = key.map_or("", |key| key.parent_name.as_str());
            let wanted = missing.map(|(_, wanted)| super::report::values_text(wanted));
            let reason = format!(
                "table {parent} has no row {} that it refers to",
                wanted.unwrap_or_default()
            );
            let mut parked = Parked::new(Kind::ForeignKey, reason, values);
            parked.waits = missing.and_then(|(at, wanted)| reference(self.plan, *at, wanted));
            self.fates.insert(id, Fate::Out(parked));
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
        let values = parent.local();
        for entry in self.waiting.woken_by(self.plan, id.0, &parent.keys, &values) {
            self.waiting.remove(self.plan, &entry);
            self.sort_in(tx, entry)?;
        }
        Ok(())
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
            self.waiting.remove(self.plan, entry);
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
