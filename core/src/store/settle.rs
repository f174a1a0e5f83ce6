//! After rows were merged: decides on those that could not simply be written, and on parked rows
//! that may have been set free. Costs nothing where nothing conflicts, nothing is parked and no
//! foreign key is enforced.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use crate::ids::{Seq, TableNum};
use crate::store::Tx;
use crate::store::admit::Fate;
use crate::store::contend::{Contender, RowId};
use crate::store::foreign::{ForeignKey, pick};
use crate::store::probe;
use crate::store::rows::{Kind, Parked, Values, refusal};
use crate::value::Value;
use crate::{Error, Result};

/// What has to be done to a row of a table.
struct Step<'a> {
    id: &'a RowId,
    row: &'a Contender,
    values: &'a Values,
}

impl Tx<'_> {
    /// Brings tables and parked rows in step with what was logged after `since`.
    pub(super) fn settle(&mut self, since: Seq) -> Result<()> {
        let mut hot = std::mem::take(&mut self.hot);
        let plan = Rc::clone(&self.cache.plan);
        let parked = self.parked_rows()? > 0;
        if parked || !plan.keys.is_empty() {
            let mut statement = self
                .conn
                .prepare_cached("SELECT DISTINCT tbl FROM __wavesync_log WHERE seq > ?1")?;
            let touched: BTreeSet<TableNum> = statement
                .query_map([since.0], |row| Ok(TableNum(row.get(0)?)))?
                .collect::<rusqlite::Result<_>>()?;
            if parked {
                self.woken_since(since, &touched, &mut hot)?;
            }
            self.new_orphans(since, &touched, &mut hot)?;
        }
        self.resolve(&hot)
    }

    /// Rows without a parent because of what was logged after `since`.
    fn new_orphans(
        &self,
        since: Seq,
        touched: &BTreeSet<TableNum>,
        hot: &mut BTreeSet<RowId>,
    ) -> Result<()> {
        for key in &self.cache.plan.keys {
            let bound = |table: TableNum| [Value::Integer(since.0), Value::Integer(table.0)];
            let (child, parent) = (touched.contains(&key.child), touched.contains(&key.parent));
            match &key.left_orphans_select {
                Some(left) if parent => {
                    hot.extend(self.keys_of(left, key.child, &bound(key.parent))?);
                }
                None if parent => {
                    // Which values went is not known: this finds new orphans, too.
                    hot.extend(self.keys_of(&key.orphans_select, key.child, &[])?);
                    continue;
                }
                _ => {}
            }
            match &key.new_orphans_select {
                Some(new) if child => {
                    hot.extend(self.keys_of(new, key.child, &bound(key.child))?);
                    if let Some(select) = &key.span_orphans_select {
                        for span in self.spans_since(since, key.child)? {
                            hot.extend(self.keys_of(select, key.child, &span)?);
                        }
                    }
                }
                None if child => self.new_orphans_of(since, key, hot)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// The same for children whose keys cannot be compared with the log by SQLite.
    fn new_orphans_of(
        &self,
        since: Seq,
        key: &ForeignKey,
        hot: &mut BTreeSet<RowId>,
    ) -> Result<()> {
        let child = self.table(key.child)?;
        for entry in self.entries_since(since)?.into_iter().filter(|e| e.table == key.child) {
            for stored in self.keys_of_entry(&child, &entry)? {
                let Some(values) = self.table_values(&child, &stored)? else { continue };
                let keys = child.key_values(&stored)?;
                let Some(wanted) = pick(&key.columns, &keys, &values) else { continue };
                self.cache.examined.set(self.cache.examined.get() + 1);
                if self.keys_of(&key.parent_select, key.parent, &wanted)?.is_empty() {
                    hot.insert((key.child, stored));
                }
            }
        }
        Ok(())
    }

    /// Looks at everything that is parked again, and with `all` also at every foreign key.
    pub(super) fn review(&mut self, all: bool) -> Result<()> {
        let plan = Rc::clone(&self.cache.plan);
        let mut hot = std::mem::take(&mut self.hot);
        if self.parked_rows()? > 0 {
            for table in self.tables().into_iter().filter(|table| table.shape.is_some()) {
                let mut statement = self.conn.prepare_cached(
                    "SELECT k, kind = 'unknown_column' FROM __wavesync_parked
                     WHERE tbl = ?1 AND kind <> 'incomplete'",
                )?;
                let rows = statement
                    .query_map([table.num.0], |row| {
                        Ok((Value::from_ref(row.get_ref(0)?), row.get::<_, bool>(1)?))
                    })?
                    .collect::<rusqlite::Result<Vec<_>>>()?;
                for (key, columns) in rows {
                    if columns {
                        self.show_columns(&table, &key)?;
                    } else if plan.of_child(table.num).next().is_some()
                        || !self.retry_new(&table, &key)?
                    {
                        hot.insert((table.num, key));
                    }
                }
            }
        }
        self.follow_moves()?;
        if all {
            for key in &plan.keys {
                hot.extend(self.keys_of(&key.orphans_select, key.child, &[])?);
            }
        }
        hot.extend(std::mem::take(&mut self.hot));
        self.resolve(&hot)?;
        self.use_room()?;
        self.store_folded_end()
    }

    /// Decides on rows and carries it out.
    pub(super) fn resolve(&mut self, hot: &BTreeSet<RowId>) -> Result<()> {
        if hot.is_empty() {
            return Ok(());
        }
        let mut refused: BTreeMap<RowId, Parked> = BTreeMap::new();
        loop {
            let (rows, fates) = probe::session(self, |tx| {
                let rows = tx.contenders(hot)?;
                let fates = tx.admit(&rows, &refused)?;
                Ok((rows, fates))
            })?;
            self.conn.execute_batch("SAVEPOINT wavesync_settle")?;
            let mut done = self.carry_out(&rows, &fates, false);
            if done.as_ref().is_ok_and(|out| out.iter().any(|(_, row)| row.kind == Kind::Unique)) {
                // Two rows exchange their values: each stands in the other's way.
                self.conn.execute_batch("ROLLBACK TO wavesync_settle")?;
                done = self.carry_out(&rows, &fates, true);
            }
            let undo = !done.as_ref().is_ok_and(Vec::is_empty);
            let mut out = super::end_savepoint(self.conn, "wavesync_settle", undo, done)?;
            if out.is_empty() {
                return self.store_fates(&rows, &fates);
            }
            // A trigger of the application does not let them in: the others are decided on again. In the
            // way of one may have been another that stays out.
            if out.iter().any(|(_, parked)| parked.kind != Kind::Unique) {
                out.retain(|(_, parked)| parked.kind != Kind::Unique);
            } else {
                out.truncate(1);
            }
            for (id, parked) in out {
                if refused.insert(id, parked).is_some() {
                    return Err(Error::Database("a row was refused twice".into()));
                }
            }
        }
    }

    /// Writes the differences. Returns the rows that their tables refuse.
    fn carry_out(
        &mut self,
        rows: &BTreeMap<RowId, Contender>,
        fates: &BTreeMap<RowId, Fate>,
        apart: bool,
    ) -> Result<Vec<(RowId, Parked)>> {
        let plan = Rc::clone(&self.cache.plan);
        let (mut steps, mut out) = (Vec::new(), Vec::new());
        for (id, row) in rows {
            match fates.get(id) {
                Some(Fate::In { values, .. }) => {
                    let shown = row.shown.as_ref();
                    let as_is = shown.is_some_and(|shown| {
                        values.iter().all(|(num, value)| shown.get(num) == Some(value))
                    });
                    if !as_is {
                        steps.push(Step { id, row, values });
                    }
                }
                _ if row.shown.is_some() => {
                    if row.imported {
                        self.take_in(&row.table, &id.1)?;
                    }
                    self.delete_row(&row.table, &id.1)?;
                }
                _ => {}
            }
        }
        steps.sort_by_key(|step| plan.stratum(step.id.0));
        if apart {
            for step in steps.iter().filter(|step| step.row.shown.is_some()) {
                self.delete_row(&step.row.table, &step.id.1)?;
            }
        }
        for Step { id, row, values } in steps {
            let written = match row.shown.as_ref().filter(|_| !apart) {
                Some(shown) => {
                    let moved = values.iter().filter(|(num, value)| shown.get(num) != Some(*value));
                    let moved: Values = moved.map(|(num, value)| (*num, value.clone())).collect();
                    self.update_row(&row.table, &id.1, &moved)
                }
                None => self.insert_row(&row.table, &id.1, values),
            };
            let Err(error) = written else { continue };
            let Some((kind, reason)) = refusal(&error) else { return Err(error) };
            out.push((id.clone(), Parked::new(kind, reason, row.values.clone())));
        }
        Ok(out)
    }

    /// Parks what stays out and keeps what the tables do not show.
    fn store_fates(
        &mut self,
        rows: &BTreeMap<RowId, Contender>,
        fates: &BTreeMap<RowId, Fate>,
    ) -> Result<()> {
        for (id, row) in rows {
            let wanted = match fates.get(id) {
                Some(Fate::Out(parked)) => Some(parked.clone()),
                Some(Fate::In { hidden, .. }) => {
                    let mut values = row.foreign();
                    if hidden.is_empty() {
                        let reason = "the table here has no such column";
                        Some(Parked::new(Kind::UnknownColumn, reason, values))
                    } else {
                        values.extend(hidden.clone());
                        let reason = "the row that it refers to is not here";
                        Some(Parked::new(Kind::Overlay, reason, values))
                    }
                    .filter(|parked| !parked.values.is_empty())
                }
                None if row.contends || !row.clock.alive() => None,
                None => continue,
            };
            if wanted != row.parked {
                self.set_parked(&row.table, &id.1, wanted.as_ref())?;
            }
        }
        Ok(())
    }

    /// Rows of this batch that are parked now.
    pub(super) fn count_parked(&mut self, ids: &BTreeSet<RowId>) -> Result<u64> {
        let mut count = 0;
        for (num, key) in ids {
            let table = self.table(*num)?;
            let parked = self.parked(&table, key)?;
            count += u64::from(parked.is_some_and(|parked| !parked.kind.in_table()));
        }
        Ok(count)
    }
}
