//! What a change of the schema means for what is recorded: renames, rebuilds, drops.
//!
//! Nobody announces such a change. A rename is read from our own triggers, which SQLite rewrites
//! when a table or a column is renamed. Rows and columns whose values went with a table that was
//! dropped or rebuilt are forgotten, so that they are never served without values, and fetched
//! from other members again.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use rusqlite::{OptionalExtension, params};

use crate::ids::{ColumnNum, Millis, TableNum};
use crate::limits;
use crate::merge::Incoming;
use crate::store::adopt::TableSchema;
use crate::store::clock::ClockRow;
use crate::store::rows::Kind;
use crate::store::sql::ident;
use crate::store::tables::{StoredTable, Table};
use crate::store::{Tx, capture, key};
use crate::value::Value;
use crate::{Error, Result};

/// In `__wavesync_former`, the number that stands for the table itself.
const TABLE_ITSELF: i64 = -1;

/// Our triggers on one table, as SQLite has carried them along.
pub(super) struct Installed {
    /// The table that they are on now.
    on: String,
    /// What the columns are called now that its update trigger compares, by column number.
    columns: Vec<String>,
}

/// Numbers that turned out to mean one thing: what the first one holds joins the second, once the
/// log is folded.
#[derive(Default)]
pub(super) struct Met {
    tables: Vec<(TableNum, TableNum)>,
    columns: Vec<(TableNum, ColumnNum, ColumnNum)>,
}

/// Former names of a table; a column's name now and one of its former names.
type FormerNames = (Vec<String>, Vec<(String, String)>);

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
    /// Our triggers in the schema, by table number.
    pub(super) fn installed_triggers(&self) -> Result<BTreeMap<TableNum, Installed>> {
        let mut statement = self.conn.prepare_cached(
            "SELECT substr(name, 14), tbl_name, sql FROM main.sqlite_schema
             WHERE type = 'trigger' AND name LIKE '\\_\\_wavesync\\_u\\_%' ESCAPE '\\'",
        )?;
        let rows = statement
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
            .collect::<rusqlite::Result<Vec<(String, String, String)>>>()?;
        Ok(rows
            .into_iter()
            .filter_map(|(num, on, sql)| {
                let num = TableNum(num.parse().ok()?);
                Some((num, Installed { on, columns: compared_columns(&sql) }))
            })
            .collect())
    }

    /// Gives renamed tables their new name. What peers' rows had under that name joins later.
    pub(super) fn follow_table_renames(
        &mut self,
        installed: &mut BTreeMap<TableNum, Installed>,
    ) -> Result<()> {
        let stored = self.stored_tables()?;
        let renamed: Vec<(&StoredTable, String)> = stored
            .iter()
            .filter_map(|entry| {
                let on = &installed.get(&entry.num)?.on;
                (*on != entry.name).then(|| (entry, on.clone()))
            })
            .collect();
        // Two tables may have taken each other's names.
        for (entry, _) in &renamed {
            self.rename_number(entry.num, &format!("\u{1}{}", entry.num.0))?;
        }
        for (entry, name) in renamed {
            let holder = stored.iter().find(|holder| {
                holder.num != entry.num
                    && holder.name.eq_ignore_ascii_case(&name)
                    && (holder.integer, holder.key_columns) == (entry.integer, entry.key_columns)
                    && !installed.contains_key(&holder.num)
            });
            match holder {
                Some(holder) if holder.here => {
                    // The last step of a rebuild: the table of that name is continued by this one.
                    self.rename_number(entry.num, &entry.name)?;
                    self.retire(entry.num)?;
                    installed.remove(&entry.num);
                    continue;
                }
                Some(holder) => {
                    self.rename_number(holder.num, &entry.name)?;
                    self.cache.met.tables.push((holder.num, entry.num));
                }
                None => {}
            }
            self.rename_number(entry.num, &name)?;
            self.remember_former(entry.num, TABLE_ITSELF, &entry.name, &name)?;
        }
        Ok(())
    }

    fn rename_number(&self, num: TableNum, name: &str) -> Result<()> {
        self.conn
            .prepare_cached("UPDATE __wavesync_table SET name = ?2 WHERE num = ?1")?
            .execute(params![num.0, name])?;
        Ok(())
    }

    /// A table that only served to rebuild another one: its rows were never meant to be others'.
    fn retire(&mut self, num: TableNum) -> Result<()> {
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

    /// Gives renamed columns their new names. What peers' values had under such a name joins later.
    pub(super) fn follow_column_renames(
        &mut self,
        installed: &BTreeMap<TableNum, Installed>,
    ) -> Result<()> {
        for (num, installed) in installed {
            let columns = self.stored_columns(*num)?;
            let local: Vec<_> = columns.iter().filter(|(_, _, here)| *here).collect();
            if local.len() != installed.columns.len() {
                continue;
            }
            for ((column, old, _), new) in local.iter().zip(&installed.columns) {
                if old == new {
                    continue;
                }
                self.rename_column(*num, *column, new)?;
                if old.eq_ignore_ascii_case(new) {
                    continue;
                }
                let holder =
                    columns.iter().find(|(_, name, here)| !here && name.eq_ignore_ascii_case(new));
                if let Some((holder, ..)) = holder {
                    self.rename_column(*num, *holder, old)?;
                    self.cache.met.columns.push((*num, *holder, *column));
                }
                self.remember_former(*num, i64::from(column.0), old, new)?;
            }
        }
        Ok(())
    }

    /// Number, name and whether the table here has it (or had when the triggers were made).
    fn stored_columns(&self, table: TableNum) -> Result<Vec<(ColumnNum, String, bool)>> {
        let mut statement = self.conn.prepare_cached(
            "SELECT num, name, since IS NOT NULL FROM __wavesync_column WHERE tbl = ?1 ORDER BY num",
        )?;
        let rows = statement
            .query_map([table.0], |row| Ok((ColumnNum(row.get(0)?), row.get(1)?, row.get(2)?)))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    fn rename_column(&self, table: TableNum, column: ColumnNum, name: &str) -> Result<()> {
        self.conn
            .prepare_cached("UPDATE __wavesync_column SET name = ?3 WHERE tbl = ?1 AND num = ?2")?
            .execute(params![table.0, column.0, name])?;
        Ok(())
    }

    /// Members that still use a former name are understood.
    fn remember_former(&self, table: TableNum, column: i64, old: &str, new: &str) -> Result<()> {
        self.conn.execute(
            "INSERT OR REPLACE INTO __wavesync_former(tbl, col, name) VALUES(?1, ?2, ?3)",
            params![table.0, column, old],
        )?;
        self.conn.execute(
            "DELETE FROM __wavesync_former WHERE tbl = ?1 AND col = ?2 AND name = ?3",
            params![table.0, column, new],
        )?;
        Ok(())
    }

    /// A table by the name and the kind of key that a peer gives: the one that stands here, one
    /// that was called so, or one that only peers have.
    pub(super) fn table_on_wire(
        &self,
        name: &str,
        integer: bool,
        key_columns: usize,
    ) -> Result<Option<Rc<Table>>> {
        let fits = |table: &Rc<Table>| {
            (table.kind == crate::merge::KeyKind::Integer) == integer
                && table.key_columns == key_columns
        };
        if let Some(table) = self.table_named(name).filter(|t| t.shape.is_some() && fits(t)) {
            return Ok(Some(table));
        }
        let formers = self
            .conn
            .prepare_cached("SELECT tbl FROM __wavesync_former WHERE col = ?2 AND name = ?1")?
            .query_map(params![name, TABLE_ITSELF], |row| Ok(TableNum(row.get(0)?)))?
            .collect::<rusqlite::Result<Vec<_>>>()?;
        let former =
            formers.into_iter().filter_map(|num| self.table(num).ok()).find(|table| fits(table));
        if former.is_some() {
            return Ok(former);
        }
        let mut tables = self.cache.tables.values();
        Ok(tables.find(|t| t.name.eq_ignore_ascii_case(name) && fits(t)).cloned())
    }

    /// The numbers of a table's columns as a peer names them; unknown ones get numbers.
    pub(super) fn columns_on_wire(
        &mut self,
        mut table: Rc<Table>,
        names: &[String],
    ) -> Result<(Rc<Table>, Vec<ColumnNum>)> {
        let exact = |table: &Table, name: &str, local: bool| {
            let mut columns = table.columns.iter();
            columns
                .find(|c| (c.local.is_some() || !local) && c.name.eq_ignore_ascii_case(name))
                .map(|column| column.num)
        };
        let taken: Vec<Option<ColumnNum>> =
            names.iter().map(|name| exact(&table, name, true)).collect();
        let mut columns = Vec::with_capacity(names.len());
        for (name, here) in names.iter().zip(&taken) {
            if name == crate::wire::rows::CLAIM {
                columns.push(ColumnNum::CLAIM);
                continue;
            }
            let former = self.column_formerly(&table, name)?;
            let former =
                former.filter(|num| !taken.contains(&Some(*num)) && !columns.contains(num));
            let num = match here.or(former).or_else(|| exact(&table, name, false)) {
                Some(num) => num,
                None => {
                    table = self.number_foreign_column(&table, name)?;
                    exact(&table, name, false)
                        .ok_or_else(|| Error::Database("a column lost its number".into()))?
                }
            };
            if columns.contains(&num) {
                return Err(Error::protocol("a batch names a column twice"));
            }
            columns.push(num);
        }
        Ok((table, columns))
    }

    /// The column that was called so once, if this is not the name of one that exists.
    pub(super) fn column_formerly(&self, table: &Table, name: &str) -> Result<Option<ColumnNum>> {
        if table.local_columns().any(|column| column.name.eq_ignore_ascii_case(name)) {
            return Ok(None);
        }
        Ok(self
            .conn
            .prepare_cached(
                "SELECT col FROM __wavesync_former WHERE tbl = ?1 AND col >= 0 AND name = ?2",
            )?
            .query_row(params![table.num.0, name], |row| Ok(ColumnNum(row.get(0)?)))
            .optional()?)
    }

    /// The part of following the schema that merges, and so comes after the fold.
    pub(super) fn finish_schema_change(&mut self) -> Result<()> {
        let met = std::mem::take(&mut self.cache.met);
        self.join_met_tables(&met.tables)?;
        self.join_met_columns(&met.columns)?;
        self.review(false)?;
        if !self.moved.is_empty() && self.follow_moves()? {
            // Links that were re-pointed are ordinary local writes of this replica.
            self.fold()?;
        }
        Ok(())
    }

    /// Former names of a table, and of its columns beside their names now.
    pub(super) fn former_names(&self, table: &Table) -> Result<FormerNames> {
        let mut statement = self.conn.prepare_cached(
            "SELECT col, name FROM __wavesync_former WHERE tbl = ?1 ORDER BY 1, 2",
        )?;
        let rows = statement
            .query_map([table.num.0], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<rusqlite::Result<Vec<(i64, String)>>>()?;
        let (mut tables, mut columns) = (Vec::new(), Vec::new());
        for (column, name) in rows {
            match u16::try_from(column) {
                Err(_) => tables.push(name),
                Ok(num) => {
                    let now = table.column(ColumnNum(num)).filter(|c| c.local.is_some());
                    columns.extend(now.map(|now| (now.name.clone(), name)));
                }
            }
        }
        Ok((tables, columns))
    }

    /// Another member renamed tables or columns that still have their former names here: what it
    /// sends under the new ones belongs to them.
    pub(super) fn take_in_names(&mut self, schemas: &[TableSchema]) -> Result<()> {
        for schema in schemas {
            let here =
                |tx: &Self, name: &String| tx.table_named(name).filter(|t| t.shape.is_some());
            let former = schema.former.iter().find_map(|name| here(self, name));
            let table = match (here(self, &schema.name), former) {
                (Some(table), _) => table,
                (None, Some(table)) => {
                    self.remember_former(table.num, TABLE_ITSELF, &schema.name, &table.name)?;
                    let waiting = self.cache.tables.values().find(|other| {
                        other.name.eq_ignore_ascii_case(&schema.name)
                            && (other.kind, other.key_columns) == (table.kind, table.key_columns)
                    });
                    let met = waiting.map(|waiting| (waiting.num, table.num));
                    self.cache.met.tables.extend(met);
                    table
                }
                (None, None) => continue,
            };
            for (name, former) in &schema.former_columns {
                let find = |name: &str, local: bool| {
                    let mut columns = table.columns.iter();
                    columns
                        .find(|c| c.local.is_some() == local && c.name.eq_ignore_ascii_case(name))
                };
                let Some(column) = find(former, true).filter(|_| find(name, true).is_none()) else {
                    continue;
                };
                self.remember_former(table.num, i64::from(column.num.0), name, former)?;
                let met = find(name, false).map(|waiting| (table.num, waiting.num, column.num));
                self.cache.met.columns.extend(met);
            }
        }
        self.finish_schema_change()
    }

    /// What was parked under a table's new name joins the table.
    fn join_met_tables(&mut self, met: &[(TableNum, TableNum)]) -> Result<()> {
        for (from, into) in met {
            let (from, mut into) = (self.table(*from)?, self.table(*into)?);
            let mut numbers = BTreeMap::new();
            for column in &from.columns {
                let known = into.columns.iter().find(|c| c.name.eq_ignore_ascii_case(&column.name));
                let num = match known.map(|column| column.num) {
                    Some(num) => num,
                    None => match self.column_formerly(&into, &column.name)? {
                        Some(num) => num,
                        None => {
                            into = self.number_foreign_column(&into, &column.name)?;
                            ColumnNum(u16::try_from(into.columns.len() - 1).unwrap_or(u16::MAX))
                        }
                    },
                };
                numbers.insert(column.num, num);
            }
            for key in self.clock_keys(&from, "1")? {
                self.join_met_row(&from, &into, &numbers, &key)?;
            }
        }
        Ok(())
    }

    fn join_met_row(
        &mut self,
        from: &Rc<Table>,
        into: &Rc<Table>,
        numbers: &BTreeMap<ColumnNum, ColumnNum>,
        key: &Value,
    ) -> Result<()> {
        let Some(ClockRow { clock, .. }) = self.clock(from, key)? else { return Ok(()) };
        let parked = self.parked(from, key)?;
        let whole = parked.as_ref().is_none_or(|parked| parked.kind != Kind::Incomplete);
        let mut values = parked.map(|parked| parked.values).unwrap_or_default();
        let cells = clock
            .cells
            .iter()
            .filter_map(|(num, dot)| Some((*numbers.get(num)?, (*dot, values.remove(num)?))));
        let incoming = Incoming {
            length: clock.length,
            birth: clock.birth,
            whole,
            cells: cells.collect(),
            ended: clock.ended,
        };
        self.set_parked(from, key, None)?;
        self.delete_clock(from, key)?;
        match self.place_of(into, key, &incoming)? {
            Some(to) => self.join_row(into, &to, Incoming { length: 1, ..incoming })?,
            None => self.join_row(into, key, incoming)?,
        };
        Ok(())
    }

    /// What was parked under a column's new name joins the column.
    fn join_met_columns(&mut self, met: &[(TableNum, ColumnNum, ColumnNum)]) -> Result<()> {
        for (num, from, into) in met {
            let table = self.table(*num)?;
            for key in self.clock_keys(&table, "cl % 2 = 1 AND cells IS NOT NULL")? {
                let Some(mut row) = self.clock(&table, &key)? else { continue };
                let Some(dot) = row.clock.cells.remove(from) else { continue };
                let mut parked = self.parked(&table, &key)?;
                let value = parked.as_mut().and_then(|parked| parked.values.remove(from));
                self.set_clock(&table, &key, &row)?;
                self.set_parked(&table, &key, parked.as_ref())?;
                let Some(value) = value else { continue };
                let incoming = Incoming {
                    length: row.clock.length,
                    birth: row.clock.birth,
                    whole: false,
                    cells: BTreeMap::from([(*into, (dot, value))]),
                    ended: row.clock.ended.clone(),
                };
                self.join(&table, &key, Some(row.clock), incoming)?;
            }
        }
        Ok(())
    }

    fn clock_keys(&self, table: &Table, condition: &str) -> Result<Vec<Value>> {
        let sql = format!("SELECT k FROM __wavesync_clock_{} WHERE {condition}", table.num.0);
        let mut statement = self.conn.prepare(&sql)?;
        let keys = statement.query_map([], |row| Ok(Value::from_ref(row.get_ref(0)?)))?;
        Ok(keys.collect::<rusqlite::Result<_>>()?)
    }

    fn delete_clock(&self, table: &Table, key: &Value) -> Result<()> {
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
                if !installed.contains_key(&entry.num) && entry.here {
                    some |= self.reconcile(&table)?;
                }
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

    /// The table is gone: clocks without values must not be served. Parked rows keep theirs.
    fn forget_rows(&mut self, table: &Table) -> Result<usize> {
        let num = table.num.0;
        let deleted = self.unfolded_deletes(table)?;
        self.void_unfolded(table, None)?;
        let condition = format!(
            "cl % 2 = 1 AND NOT EXISTS (SELECT 1 FROM __wavesync_parked AS p
             WHERE p.tbl = {num} AND p.k = __wavesync_clock_{num}.k AND NOT p.in_table)"
        );
        let mut gone = 0;
        if deleted.is_empty() {
            let sql = format!("DELETE FROM __wavesync_clock_{num} WHERE {condition}");
            gone = self.conn.execute(&sql, [])?;
        } else {
            for key in self.clock_keys(table, &condition)? {
                if !deleted.contains(&key) {
                    self.delete_clock(table, &key)?;
                    gone += 1;
                }
            }
        }
        self.conn
            .execute("DELETE FROM __wavesync_parked WHERE tbl = ?1 AND in_table", params![num])?;
        self.cache.parked = None;
        Ok(gone)
    }

    /// Rows that were deleted in sight of the triggers, and whose delete is still to be folded.
    fn unfolded_deletes(&mut self, table: &Table) -> Result<BTreeSet<Value>> {
        let mut statement = self.conn.prepare_cached(
            "SELECT pk, cols IS NULL FROM __wavesync_log WHERE seq > (SELECT value
             FROM __wavesync_meta WHERE key = 'folded') AND tbl = ?1 AND pk IS NOT NULL ORDER BY seq",
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
            let before = row.clock.cells.len();
            row.clock.cells.retain(|num, _| !gone.contains(num) || kept(num));
            if row.clock.cells.len() < before {
                lost = true;
                self.set_clock(table, &key, &row)?;
            }
        }
        for num in gone {
            self.unlink_column(table.num, num)?;
        }
        Ok(lost)
    }

    fn unlink_column(&self, table: TableNum, column: ColumnNum) -> Result<()> {
        self.conn
            .prepare_cached(
                "UPDATE __wavesync_column SET since = NULL WHERE tbl = ?1 AND num = ?2",
            )?
            .execute(params![table.0, column.0])?;
        Ok(())
    }

    /// A table that was here before and has lost its triggers was rebuilt: rows that are new are
    /// logged, rows that are missing are forgotten. Returns whether some were.
    fn reconcile(&mut self, table: &Rc<Table>) -> Result<bool> {
        let mut lost = false;
        let deleted = self.unfolded_deletes(table)?;
        for key in self.clock_keys(table, "cl % 2 = 1")? {
            let out = deleted.contains(&key)
                || self.parked(table, &key)?.is_some_and(|parked| !parked.kind.in_table());
            if !out && self.table_values(table, &key)?.is_none() {
                lost = true;
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
                    .execute(params![table.num.0, key, capture::MASK_INSERT, self.now.0 as i64])?;
            }
        }
        Ok(lost)
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

    /// Before a column goes, its values are parked, so that they are still in `L`.
    fn park_column(&mut self, table: &Rc<Table>, column: ColumnNum) -> Result<()> {
        for key in self.clock_keys(table, "cl % 2 = 1")? {
            let Some(row) = self.clock(table, &key)? else { continue };
            if !row.clock.cells.contains_key(&column) {
                continue;
            }
            let value = self.table_values(table, &key)?.and_then(|mut all| all.remove(&column));
            let Some(value) = value else { continue };
            let mut parked = self.parked(table, &key)?.unwrap_or_else(Self::no_such_column);
            parked.values.insert(column, value);
            self.set_parked(table, &key, Some(&parked))?;
        }
        self.unlink_column(table.num, column)
    }

    fn no_such_column() -> crate::store::rows::Parked {
        let reason = "the table here has no such column";
        crate::store::rows::Parked::new(Kind::UnknownColumn, reason, BTreeMap::new())
    }

    /// Runs one checked `ALTER TABLE` (see [`crate::store::Store::alter`]).
    pub(super) fn alter_table(
        &mut self,
        sql: &str,
        table: &str,
        drops: Option<&str>,
    ) -> Result<()> {
        let tracked = self.table_named(table).filter(|table| table.shape.is_some());
        if let (Some(table), Some(column)) = (&tracked, drops) {
            let column = table
                .local_columns()
                .find(|local| local.name.eq_ignore_ascii_case(column))
                .map(|local| local.num);
            if let Some(column) = column {
                self.park_column(table, column)?;
            }
            self.drop_triggers(table.num)?;
        }
        self.conn.execute_batch(sql)?;
        if let (Some(table), Some(_)) = (&tracked, drops) {
            // The triggers are missing for a reason: nothing was written without them.
            let shape = crate::store::shape::find(self.conn, &table.name)?;
            let Some(Ok(shape)) = shape else {
                return Err(Error::Database("the table is gone".into()));
            };
            let columns = self.known_columns(table.num, Some(&shape))?.0;
            self.repair_triggers(table.num, &shape, &columns)?;
        }
        self.cache.schema_version = None;
        self.refresh_schema()?;
        self.fold()?;
        self.finish_schema_change()
    }
}

/// The columns that an update trigger of ours compares, in order of their numbers.
fn compared_columns(sql: &str) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    let mut rest = sql;
    while let Some(at) = rest.find(['"', '\'']) {
        let is_old = rest[..at].ends_with("OLD.");
        let Some(quote) = rest[at..].chars().next() else { break };
        let (name, after) = quoted(&rest[at + 1..], quote);
        if is_old && names.last() != Some(&name) {
            names.push(name);
        }
        rest = after;
    }
    names
}

/// Reads up to the closing quote; a doubled one is a quote.
fn quoted(text: &str, quote: char) -> (String, &str) {
    let mut name = String::new();
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        if c == quote {
            if chars.peek().is_none_or(|(_, next)| *next != quote) {
                return (name, &text[at + 1..]);
            }
            chars.next();
        }
        name.push(c);
    }
    (name, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_columns_of_a_trigger_are_read_as_sqlite_rewrote_them() {
        let sql = "CREATE TRIGGER \"__wavesync_u_1\" AFTER UPDATE ON \"OLD.\" BEGIN INSERT INTO l \
                   VALUES(NEW.\"id\",(OLD.\"a\"\" b\" IS NOT NEW.\"a\"\" b\" OR \
                   typeof(OLD.\"a\"\" b\") IS NOT typeof(NEW.\"a\"\" b\"))|((OLD.\"z\" IS NOT \
                   NEW.\"z\")<<1), julianday('now')); END";
        assert_eq!(compared_columns(sql), ["a\" b", "z"]);
    }
}
