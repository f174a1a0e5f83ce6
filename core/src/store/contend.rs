//! Which rows have to be looked at together when some row cannot simply be written.
//!
//! Starting from the rows in question: the rows of the table that exclude them, their ancestors
//! where a table refers to itself (the order there is by the youngest ancestor), their
//! descendants, and the parked rows that any of these may set free.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use rusqlite::params_from_iter;

use crate::Result;
use crate::ids::TableNum;
use crate::merge::Clock;
use crate::mutants::{self, Mutant};
use crate::store::foreign::{Action, ForeignKey, Plan, pick};
use crate::store::rows::{Kind, Parked, Values};
use crate::store::tables::Table;
use crate::store::{Tx, key};
use crate::value::Value;

/// A row by table and stored key.
pub type RowId = (TableNum, Value);

/// Overlays of a row that are tried in every combination; of more only single ones and all.
const COMBINED_OVERLAYS_MAX: usize = 3;

/// A row that may or may not be let into its table.
pub(super) struct Contender {
    pub table: Rc<Table>,
    /// The values of its key.
    pub keys: Vec<Value>,
    pub clock: Clock,
    /// Its values in `L`.
    pub values: Values,
    /// What the table held of it.
    pub shown: Option<Values>,
    pub parked: Option<Parked>,
    /// It is alive and complete.
    pub contends: bool,
    /// The back-fill has not reached it: its clock is not stored.
    pub imported: bool,
}

impl Contender {
    /// Its values for columns that exist here.
    pub fn local(&self) -> Values {
        let here = self.table.local_columns().map(|column| column.num);
        here.filter_map(|num| Some((num, self.values.get(&num)?.clone()))).collect()
    }

    /// Its values for columns that only peers have.
    pub fn foreign(&self) -> Values {
        let local = |num| self.table.column(num).is_some_and(|column| column.local.is_some());
        let kept = self.values.iter().filter(|(num, _)| !local(**num));
        kept.map(|(num, value)| (*num, value.clone())).collect()
    }
}

impl Tx<'_> {
    /// Reads a row; `None` if it is not one that wavesync keeps, or its table is not here.
    pub(super) fn load(&mut self, id: &RowId) -> Result<Option<Contender>> {
        let table = self.table(id.0)?;
        if table.shape.is_none() {
            return Ok(None);
        }
        self.cache.examined.set(self.cache.examined.get() + 1);
        let shown = self.table_values(&table, &id.1)?;
        let stored = self.clock(&table, &id.1)?.map(|row| row.clock);
        let imported = stored.is_none() && shown.is_some();
        let clock = match stored {
            None if imported => self.imported_clock(&table)?,
            stored => stored,
        };
        let Some(clock) = clock else { return Ok(None) };
        let parked = self.parked(&table, &id.1)?;
        if table.import.is_some() && shown.is_some() && !clock.alive() {
            // The back-fill will join it with what peers know of the key.
            return Ok(None);
        }
        let mut values = match &parked {
            Some(parked) if !parked.kind.in_table() => parked.values.clone(),
            parked => {
                let mut values = shown.clone().unwrap_or_default();
                values.extend(parked.iter().flat_map(|parked| parked.values.clone()));
                values
            }
        };
        values.retain(|num, _| clock.cells.contains_key(num));
        let contends = clock.alive()
            && (shown.is_some() || parked.is_some())
            && parked.as_ref().is_none_or(|parked| parked.kind != Kind::Incomplete);
        let keys = table.key_values(&id.1)?;
        Ok(Some(Contender { table, keys, clock, values, shown, parked, contends, imported }))
    }

    /// Tables whose rows may be set free or lose their parents by changes in these.
    pub(super) fn affected(&self, mut tables: BTreeSet<TableNum>) -> BTreeSet<TableNum> {
        let mut queue: Vec<TableNum> = tables.iter().copied().collect();
        while let Some(table) = queue.pop() {
            for key in self.cache.plan.of_parent(table) {
                if tables.insert(key.child) {
                    queue.push(key.child);
                }
            }
        }
        tables
    }

    /// Takes the rows in question and all that hang together with them out of their tables.
    pub(super) fn contenders(
        &mut self,
        hot: &BTreeSet<RowId>,
    ) -> Result<BTreeMap<RowId, Contender>> {
        let plan = Rc::clone(&self.cache.plan);
        let mut queue: Vec<RowId> = hot.iter().cloned().collect();
        let mut found = BTreeMap::new();
        let mut tables = BTreeSet::new();
        loop {
            while let Some(id) = queue.pop() {
                if found.contains_key(&id) {
                    continue;
                }
                let Some(row) = self.load(&id)? else { continue };
                if row.shown.is_some() {
                    self.conn
                        .prepare_cached(&row.table.statements.row_delete)?
                        .execute(params_from_iter(&row.keys))?;
                    self.children(&plan, &row, &mut queue)?;
                }
                if row.contends {
                    for form in forms(&plan, &row) {
                        queue.extend(self.rivals(&row, &form)?);
                        if mutants::on(Mutant::RivalsForgotten) {
                            queue.clear();
                        }
                    }
                    self.ancestors(&plan, &row, &mut queue)?;
                }
                self.woken(&id, forms(&plan, &row).iter(), &mut queue)?;
                found.insert(id, row);
            }
            let reached: BTreeSet<TableNum> = found.keys().map(|(table, _)| *table).collect();
            let reached = self.affected(reached);
            let new = reached.difference(&tables).copied().collect();
            queue = self.unwatched(&new)?;
            tables = reached;
            if queue.is_empty() {
                return Ok(found);
            }
        }
    }

    /// Rows of the tables that referred to a row which was taken out.
    fn children(&self, plan: &Plan, row: &Contender, queue: &mut Vec<RowId>) -> Result<()> {
        let Some(shown) = &row.shown else { return Ok(()) };
        for key in plan.of_parent(row.table.num) {
            if let Some(values) = pick(&key.parent_columns, &row.keys, shown) {
                queue.extend(self.keys_of(&key.children_select, key.child, &values)?);
            }
        }
        Ok(())
    }

    /// Parents of a row that stand in the same stratum.
    fn ancestors(&self, plan: &Plan, row: &Contender, queue: &mut Vec<RowId>) -> Result<()> {
        for key in plan.of_child(row.table.num).filter(|key| plan.inside(key)) {
            if let Some(values) = pick(&key.columns, &row.keys, &row.values) {
                queue.extend(self.keys_of(&key.parent_select, key.parent, &values)?);
            }
        }
        Ok(())
    }

    /// Rows whose stored keys a statement selects.
    pub(super) fn keys_of(
        &self,
        sql: &str,
        table: TableNum,
        bound: &[Value],
    ) -> Result<Vec<RowId>> {
        let table = self.table(table)?;
        let mut statement = self.conn.prepare_cached(sql)?;
        let keys = statement
            .query_map(params_from_iter(bound), |row| Ok(Value::from_ref(row.get_ref(0)?)))?
            .collect::<rusqlite::Result<Vec<_>>>()?;
        let named = keys.into_iter().filter(|key| *key != Value::Null);
        named
            .map(|stored| Ok((table.num, key::canonical(table.form, table.key_columns, stored)?)))
            .collect()
    }
}

/// The values with which a row may come to stand in its table: its own, and with overlays.
fn forms(plan: &Plan, row: &Contender) -> Vec<Values> {
    let keys: Vec<&ForeignKey> = plan
        .of_child(row.table.num)
        .filter(|key| key.action != Action::Park && !plan.inside(key))
        .collect();
    let own = row.local();
    let with = |chosen: &dyn Fn(usize) -> bool| {
        let mut values = own.clone();
        for (_, key) in keys.iter().enumerate().filter(|(at, _)| chosen(*at)) {
            values.extend(key.overlay.clone());
        }
        values
    };
    if keys.len() <= COMBINED_OVERLAYS_MAX {
        return (0..1usize << keys.len()).map(|set| with(&|at| set >> at & 1 == 1)).collect();
    }
    let mut forms = vec![with(&|_| false), with(&|_| true)];
    forms.extend((0..keys.len()).map(|one| with(&|at| at == one)));
    forms
}
