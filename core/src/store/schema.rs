//! What a change of the schema means for what is recorded: rebuilds, drops. Renames: `names.rs`.
//!
//! Nobody announces such a change; each look at the schema finds out. Rows and columns whose values
//! went with a table that was dropped or rebuilt are forgotten, so that they are never served
//! without values, and fetched from other members again.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use rusqlite::params;

use crate::ids::{ColumnNum, Millis, TableNum};
use crate::limits;
use crate::mutants::{self, Mutant};
use crate::store::mask::MASK_INSERT;
use crate::store::names::Installed;
use crate::store::regain::Lost;
use crate::store::sql::ident;
use crate::store::tables::{StoredTable, Table};
use crate::store::{Tx, key};
use crate::value::Value;
use crate::{Error, Result};

/// What a store remembers of the schema beyond a transaction that failed.
#[derive(Clone, Copy, Default)]
pub(super) struct Watch {
    read_before: bool,
    /// Since when a table is missing.
    missing_since: Option<Millis>,
}

impl Watch {
    pub(super) fn schema_was_read(&mut self) {
        *self = Self { read_before: true, missing_since: None };
    }

    /// A rebuild that is not one transaction drops the table a moment before the new one takes its
    /// name. Whoever watches the schema waits; who comes later sees the end of it.
    fn settled(&mut self, now: Millis) -> Result<()> {
        let since = *self.missing_since.get_or_insert(now);
        if !self.read_before || now.since(since) >= limits::SCHEMA_SETTLE_MS || now < since {
            return Ok(());
        }
        Err(Error::Sqlite(rusqlite::Error::SqliteFailure(
            rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY),
            Some("a table was dropped a moment ago and may be about to be replaced".into()),
        )))
    }
}

impl Tx<'_> {
    /// A table that only served to rebuild another one: its rows were never meant to be others'.
    pub(super) fn retire(&mut self, num: TableNum) -> Result<()> {
        self.drop_triggers(num)?;
        self.conn.execute(
            "UPDATE __wavesync_table SET tracked = 0, here = 0, import = NULL WHERE num = ?1",
            [num.0],
        )?;
        self.conn.execute("UPDATE __wavesync_column SET since = NULL WHERE tbl = ?1", [num.0])?;
        self.conn.execute(
            &format!(
                "INSERT INTO __wavesync_log(tbl, pk, cols, at)
                 SELECT ?1, k, NULL, ?2 FROM __wavesync_clock_{} WHERE cl % 2 = 1",
                num.0
            ),
            params![num.0, self.now.0 as i64],
        )?;
        Ok(())
    }

    /// The part of following the schema that merges, and so comes after the fold.
    pub(super) fn finish_schema_change(&mut self) -> Result<()> {
        let met = std::mem::take(&mut self.cache.met);
        if !(met.tables.is_empty() && met.columns.is_empty()) {
            // What was kept for a column that is here now is shown before anything joins the row.
            self.review(false)?;
        }
        self.join_met_tables(&met.tables)?;
        self.join_met_columns(&met.columns)?;
        self.review(false)
    }

    pub(super) fn clock_keys(&self, table: &Table, condition: &str) -> Result<Vec<Value>> {
        let sql = format!("SELECT k FROM __wavesync_clock_{} WHERE {condition}", table.num.0);
        let mut statement = self.conn.prepare(&sql)?;
        let keys = statement.query_map([], |row| Ok(Value::from_ref(row.get_ref(0)?)))?;
        Ok(keys.collect::<rusqlite::Result<_>>()?)
    }

    pub(super) fn delete_clock(&self, table: &Table, key: &Value) -> Result<()> {
        let sql = format!("DELETE FROM __wavesync_clock_{} WHERE k = ?1", table.num.0);
        self.conn.prepare_cached(&sql)?.execute([key])?;
        Ok(())
    }

    /// After all tables were looked at: forgets what has lost its values, and notices rows that
    /// came or went while a table had no triggers of ours.
    pub(super) fn settle_schema(
        &mut self,
        installed: &BTreeMap<TableNum, Installed>,
        present: impl Fn(&StoredTable) -> bool,
    ) -> Result<()> {
        let mut lost = Vec::new();
        for entry in self.stored_tables()? {
            let table = self.table(entry.num)?;
            let stands = table.shape.is_some();
            if stands {
                let mut some = self.forget_vanished_columns(&table)?;
                let seen = installed.get(&entry.num).is_some_and(|triggers| triggers.whole);
                if !seen && entry.here {
                    some |= self.reconcile(&table)?;
                } else if self.cache.unseen_rivals.contains(&entry.num) {
                    self.log_replaced(&table)?;
                }
                self.cache.unseen_rivals.remove(&entry.num);
                if some {
                    lost.push(table.name.clone());
                }
            } else if entry.here && !present(&entry) {
                let now = self.now;
                self.cache.watch.settled(now)?;
                if self.forget_rows(&table)? > 0 {
                    lost.push(table.name.clone());
                }
                self.conn
                    .prepare_cached("UPDATE __wavesync_column SET since = NULL WHERE tbl = ?1")?
                    .execute([entry.num.0])?;
            } else {
                continue;
            }
            if entry.here != stands {
                self.conn
                    .prepare_cached("UPDATE __wavesync_table SET here = ?2 WHERE num = ?1")?
                    .execute(params![entry.num.0, stands])?;
            }
        }
        if !lost.is_empty() {
            self.start_over()?;
            self.note(
                "values_lost",
                format!(
                    "rows or columns are gone with a change of the schema ({}); what other members \
                     have of them is fetched again",
                    lost.join(", ")
                ),
                "to delete rows everywhere, delete them before the table is dropped or rebuilt",
            );
        }
        Ok(())
    }

    /// The table is gone, or no longer tracked: clocks without values must not be served. Parked rows
    /// keep theirs. Which rows they were is remembered: should the table come back, they are the same.
    pub(super) fn forget_rows(&mut self, table: &Table) -> Result<usize> {
        let num = table.num.0;
        let deleted = self.unfolded_deletes(table)?;
        self.void_unfolded(table, None)?;
        let condition = format!(
            "cl % 2 = 1 AND NOT EXISTS (SELECT 1 FROM __wavesync_parked AS p
             WHERE p.tbl = {num} AND p.k = __wavesync_clock_{num}.k AND NOT p.in_table)"
        );
        let mut gone = 0;
        self.conn.execute("DELETE FROM __wavesync_once WHERE tbl = ?1", [num])?;
        let remember = format!(
            "INSERT OR REPLACE INTO __wavesync_once(tbl, k, cl, stamp, site)
             SELECT {num}, k, cl, stamp, site FROM __wavesync_clock_{num}"
        );
        if deleted.is_empty() {
            self.note_lost_rows(table, &condition)?;
            self.conn.execute(&format!("{remember} WHERE {condition}"), [])?;
            let sql = format!("DELETE FROM __wavesync_clock_{num} WHERE {condition}");
            gone = self.conn.execute(&sql, [])?;
        } else {
            for key in self.clock_keys(table, &condition)? {
                if !deleted.contains(&key) {
                    self.note_lost_row(table, &key)?;
                    self.conn
                        .prepare_cached(&format!("{remember} WHERE k = ?1"))?
                        .execute([&key])?;
                    self.delete_clock(table, &key)?;
                    gone += 1;
                }
            }
        }
        self.conn
            .execute("DELETE FROM __wavesync_parked WHERE tbl = ?1 AND in_table", params![num])?;
        // Whatever kept the others out, they are looked at when there is a table again.
        self.conn.execute(
            "UPDATE __wavesync_parked SET kind = 'unknown_table' WHERE tbl = ?1
             AND kind <> 'incomplete'",
            params![num],
        )?;
        self.cache.parked = None;
        Ok(gone)
    }

    /// Rows that were deleted in sight of the triggers, and whose delete is still to be folded.
    fn unfolded_deletes(&mut self, table: &Table) -> Result<BTreeSet<Value>> {
        let mut statement = self.conn.prepare_cached(
            "SELECT pk, cols IS NULL FROM __wavesync_log WHERE seq > (SELECT value
             FROM __wavesync_meta WHERE key = 'folded') AND tbl = ?1 AND pk IS NOT NULL
             ORDER BY seq",
        )?;
        let entries = statement
            .query_map([table.num.0], |row| Ok((Value::from_ref(row.get_ref(0)?), row.get(1)?)))?
            .collect::<rusqlite::Result<Vec<(Value, bool)>>>()?;
        let mut deleted = BTreeSet::new();
        for (stored, gone) in entries {
            let key = key::canonical(table.form, table.key_columns, stored)?;
            if gone {
                deleted.insert(key)
            } else {
                deleted.remove(&key)
            };
        }
        Ok(deleted)
    }

    /// Log entries that were not folded before their row went without being deleted.
    fn void_unfolded(&mut self, table: &Table, key: Option<&Value>) -> Result<()> {
        self.conn
            .prepare_cached(
                "UPDATE __wavesync_log SET pk = NULL WHERE seq > (SELECT value FROM __wavesync_meta
                 WHERE key = 'folded') AND tbl = ?1 AND cols IS NOT NULL AND pk = coalesce(?2, pk)",
            )?
            .execute(params![table.num.0, key])?;
        Ok(())
    }

    /// Columns that are gone without `wavesync_alter`: their values are gone, too.
    fn forget_vanished_columns(&mut self, table: &Rc<Table>) -> Result<bool> {
        let gone: Vec<ColumnNum> = table
            .columns
            .iter()
            .filter(|column| column.local.is_none() && column.since.is_some())
            .map(|column| column.num)
            .collect();
        if gone.is_empty() {
            return Ok(false);
        }
        let mut lost = false;
        for key in self.clock_keys(table, "cl % 2 = 1")? {
            let Some(mut row) = self.clock(table, &key)? else { continue };
            let parked = self.parked(table, &key)?;
            let kept = |num: &ColumnNum| {
                parked.as_ref().is_some_and(|parked| parked.values.contains_key(num))
            };
            let mut dropped = Lost::default();
            let before = row.clock.cells.len();
            row.clock.cells.retain(|num, dot| {
                let stays = !gone.contains(num) || kept(num);
                if !stays {
                    dropped.add(*dot);
                }
                stays
            });
            if row.clock.cells.len() < before {
                lost = true;
                self.note_lost(&dropped)?;
                self.set_clock(table, &key, &row)?;
            }
        }
        for num in gone {
            self.unlink_column(table.num, num)?;
        }
        Ok(lost)
    }

    pub(super) fn unlink_column(&self, table: TableNum, column: ColumnNum) -> Result<()> {
        self.conn
            .prepare_cached(
                "UPDATE __wavesync_column SET since = NULL WHERE tbl = ?1 AND num = ?2",
            )?
            .execute(params![table.0, column.0])?;
        Ok(())
    }

    /// A table that was here before and has lost triggers was rebuilt, or written to unseen: rows
    /// that are new are logged, rows that are missing are forgotten. Returns whether some were.
    fn reconcile(&mut self, table: &Rc<Table>) -> Result<bool> {
        let mut lost = false;
        let deleted = self.unfolded_deletes(table)?;
        for key in self.clock_keys(table, "cl % 2 = 1")? {
            let out = deleted.contains(&key)
                || self.parked(table, &key)?.is_some_and(|parked| !parked.kind.in_table());
            if !out
                && self.table_values(table, &key)?.is_none()
                && !mutants::on(Mutant::DropKeepsClocks)
            {
                lost = true;
                self.note_lost_row(table, &key)?;
                self.set_parked(table, &key, None)?;
                self.delete_clock(table, &key)?;
                self.void_unfolded(table, Some(&key))?;
            }
        }
        if table.import.is_some() {
            return Ok(lost);
        }
        for key in self.table_keys(table)? {
            let known = self.clock(table, &key)?.is_some_and(|row| row.clock.alive());
            let out = self.parked(table, &key)?.is_some_and(|parked| !parked.kind.in_table());
            if !known || out {
                self.conn
                    .prepare_cached(
                        "INSERT INTO __wavesync_log(tbl, pk, cols, at) VALUES(?1, ?2, ?3, ?4)",
                    )?
                    .execute(params![table.num.0, key, MASK_INSERT, self.now.0 as i64])?;
            }
        }
        Ok(lost)
    }

    /// Every delete was logged but those of `OR REPLACE` through an index that no trigger of ours knew: rows
    /// that are not there any more were removed by it.
    fn log_replaced(&mut self, table: &Rc<Table>) -> Result<()> {
        if table.import.is_some() {
            return Ok(());
        }
        let deleted = self.unfolded_deletes(table)?;
        for key in self.clock_keys(table, "cl % 2 = 1")? {
            let out = deleted.contains(&key)
                || self.parked(table, &key)?.is_some_and(|parked| !parked.kind.in_table());
            if !out && self.table_values(table, &key)?.is_none() {
                self.conn
                    .prepare_cached(
                        "INSERT INTO __wavesync_log(tbl, pk, cols, at) VALUES(?1, ?2, NULL, ?3)",
                    )?
                    .execute(params![table.num.0, key, self.now.0 as i64])?;
            }
        }
        Ok(())
    }

    fn table_keys(&self, table: &Table) -> Result<Vec<Value>> {
        let Some(shape) = &table.shape else { return Ok(Vec::new()) };
        let expression = key::expression(shape.form, &shape.key, "t.")?;
        let sql = format!(
            "SELECT {expression} FROM main.{} AS t WHERE {expression} IS NOT NULL",
            ident(&shape.name)?
        );
        let mut statement = self.conn.prepare(&sql)?;
        let keys = statement
            .query_map([], |row| Ok(Value::from_ref(row.get_ref(0)?)))?
            .collect::<rusqlite::Result<Vec<_>>>()?;
        let canonical = |stored| key::canonical(table.form, table.key_columns, stored);
        keys.into_iter().map(canonical).collect()
    }
}
