//! Which parked rows may come back because of a change, without a look at the others.
//!
//! A row that another one excludes stays out as long as that one stands and is as it was; a row
//! without a parent as long as nobody is that parent. So each parked row names one thing that it
//! waits for, `blocker` or `waits`, and is found by it. That holds where nothing else decides:
//! where a table shows other values than `L` for want of parents, where it refers to itself, and
//! where triggers of the application have a say, all its parked rows are looked at.

use std::collections::BTreeSet;

use rusqlite::params;

use crate::Result;
use crate::ids::{Seq, TableNum};
use crate::mutants::{self, Mutant};
use crate::store::Tx;
use crate::store::await_parents::coarse;
use crate::store::clock::write_varint;
use crate::store::contend::RowId;
use crate::store::foreign::{Action, Plan, pick};
use crate::store::rows::Values;
use crate::store::tables::Table;
use crate::value::Value;
use crate::wire::bytes::write_value;

/// A parent as it is waited for: its table, and the values that are referred to.
pub(super) fn reference(plan: &Plan, at: usize, wanted: &[Value]) -> Option<Vec<u8>> {
    let key = plan.keys.get(at)?;
    let mut bytes = Vec::new();
    write_varint(&mut bytes, key.parent.0.unsigned_abs());
    coarse(plan, at, wanted).iter().for_each(|value| write_value(&mut bytes, value));
    Some(bytes)
}

/// Whether the parked rows of a table are found by what they wait for.
fn watched(plan: &Plan, table: &Table) -> bool {
    let stratum = plan.stratum(table.num);
    let apart = |child: TableNum| plan.stratum(child) != stratum;
    !table.app_triggers
        && plan.keys.iter().all(|key| !plan.inside(key) || apart(key.child))
        && plan.of_child(table.num).all(|key| key.action == Action::Park)
}

impl Tx<'_> {
    /// Parked and overlaid rows of these tables that may come back by themselves.
    pub(super) fn contending(&mut self, tables: &BTreeSet<TableNum>) -> Result<Vec<RowId>> {
        self.parked_of(tables, |_, _| "true")
    }

    /// Those of them that are not found by what they wait for.
    pub(super) fn unwatched(&mut self, tables: &BTreeSet<TableNum>) -> Result<Vec<RowId>> {
        self.parked_of(tables, |plan, table| match watched(plan, table) {
            true => {
                "blocker IS NULL AND waits IS NULL AND kind IN ('unique', 'foreign_key', 'overlay')"
            }
            false => "true",
        })
    }

    fn parked_of(
        &mut self,
        tables: &BTreeSet<TableNum>,
        condition: impl Fn(&Plan, &Table) -> &'static str,
    ) -> Result<Vec<RowId>> {
        let mut found = Vec::new();
        if self.parked_rows()? == 0 || mutants::on(Mutant::ParkedForGood) {
            return Ok(found);
        }
        let plan = std::rc::Rc::clone(&self.cache.plan);
        for num in tables {
            let table = self.table(*num)?;
            let mut statement = self.conn.prepare_cached(&format!(
                "SELECT k FROM __wavesync_parked WHERE tbl = ?1 AND kind NOT IN
                 ('unknown_table', 'unknown_column', 'incomplete', 'trigger') AND {}",
                condition(&plan, &table)
            ))?;
            let keys = statement.query_map([num.0], |row| Ok(Value::from_ref(row.get_ref(0)?)))?;
            for key in keys {
                found.push((*num, key?));
            }
        }
        Ok(found)
    }

    /// Parked rows that wait for a row: that it goes, or that it comes with one of these values.
    pub(super) fn woken<'v>(
        &self,
        (num, key): &RowId,
        forms: impl Iterator<Item = &'v Values>,
        found: &mut Vec<RowId>,
    ) -> Result<()> {
        if self.cache.parked == Some(0) || mutants::on(Mutant::ParkedForGood) {
            return Ok(());
        }
        let mut blocked = self
            .conn
            .prepare_cached("SELECT k FROM __wavesync_parked WHERE tbl = ?1 AND blocker = ?2")?;
        let keys =
            blocked.query_map(params![num.0, key], |row| Ok(Value::from_ref(row.get_ref(0)?)))?;
        for key in keys {
            found.push((*num, key?));
        }
        if self.cache.plan.of_parent(*num).next().is_none() {
            return Ok(());
        }
        let keys = self.table(*num)?.key_values(key)?;
        let plan = &self.cache.plan;
        let mut wanted: BTreeSet<Vec<u8>> = BTreeSet::new();
        for values in forms {
            let of_parent = plan.keys.iter().enumerate().filter(|(_, key)| key.parent == *num);
            wanted.extend(of_parent.filter_map(|(at, known)| {
                reference(plan, at, &pick(&known.parent_columns, &keys, values)?)
            }));
        }
        let mut waiting =
            self.conn.prepare_cached("SELECT tbl, k FROM __wavesync_parked WHERE waits = ?1")?;
        for wanted in wanted {
            let rows = waiting.query_map([wanted], |row| {
                Ok((TableNum(row.get(0)?), Value::from_ref(row.get_ref(1)?)))
            })?;
            for row in rows {
                found.push(row?);
            }
        }
        Ok(())
    }

    /// Parked rows that may come back because of what was logged after `since`.
    pub(super) fn woken_since(
        &mut self,
        since: Seq,
        touched: &BTreeSet<TableNum>,
        hot: &mut BTreeSet<RowId>,
    ) -> Result<()> {
        let tables = self.affected(touched.clone());
        let plan = std::rc::Rc::clone(&self.cache.plan);
        hot.extend(self.unwatched(&tables)?);
        let watched = |num: &TableNum| self.table(*num).is_ok_and(|table| watched(&plan, &table));
        if !tables.iter().any(watched) {
            return Ok(());
        }
        let mut found = Vec::new();
        let mut seen = BTreeSet::new();
        for entry in self.entries_since(since)? {
            let Ok(table) = self.table(entry.table) else { continue };
            if table.shape.is_none() {
                continue;
            }
            let parent = self.cache.plan.of_parent(table.num).next().is_some();
            for key in self.keys_of_entry(&table, &entry)? {
                let id = (table.num, key);
                if !seen.insert(id.clone()) {
                    continue;
                }
                let values = if parent { self.table_values(&table, &id.1)? } else { None };
                self.woken(&id, values.iter(), &mut found)?;
            }
            if seen.len() as i64 > self.parked_rows()? {
                // So much has changed that a look at all of them costs less.
                hot.extend(self.contending(&tables)?);
                return Ok(());
            }
        }
        hot.extend(found);
        Ok(())
    }
}
