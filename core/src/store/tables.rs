//! The tracked tables as the store knows them: numbers, columns, statements; kept in step with
//! the schema.
//!
//! Tables and columns have local numbers that never change. A table that only peers have gets a
//! number too, so that its rows can be parked and passed on.

use std::collections::BTreeMap;
use std::rc::Rc;

use rusqlite::params;

use crate::ids::{ColumnNum, Millis, Seq, TableNum};
use crate::limits;
use crate::merge::KeyKind;
use crate::mutants::{self, Mutant};
use crate::store::shape::{KeyForm, Refusal, Shape, ShapeColumn};
use crate::store::sql::ident;
use crate::store::statements::{Statements, statements};
use crate::store::{Store, Tx, capture, clock, key, shape};
use crate::value::Value;
use crate::{Error, Result};

/// A column of a numbered table, outside its key.
#[derive(Clone, Debug)]
pub struct Column {
    /// Its number.
    pub num: ColumnNum,
    /// Its name.
    pub name: String,
    /// What SQLite says of it; `None` if only peers have it.
    pub local: Option<ShapeColumn>,
    /// The log's end when the capture trigger learned of it; `None` while only peers have it.
    pub since: Option<Seq>,
}

/// A numbered table.
#[derive(Clone, Debug)]
pub struct Table {
    /// Its number.
    pub num: TableNum,
    /// Its name.
    pub name: String,
    /// How concurrent inserts of one key are read.
    pub kind: KeyKind,
    /// How its keys are stored.
    pub form: KeyForm,
    /// Number of its key columns.
    pub key_columns: usize,
    /// Its shape here; `None` if only peers have it or it is not tracked.
    pub shape: Option<Shape>,
    /// All its columns outside the key, by number.
    pub columns: Vec<Column>,
    /// Columns below this number are covered by a birth unless a clock says otherwise.
    pub base_columns: u16,
    /// The site under which existing rows are taken in, while that is not complete.
    pub import: Option<crate::store::SiteNum>,
    /// The application has triggers of its own on it.
    pub app_triggers: bool,
    /// Texts of the statements on it and its clocks.
    pub statements: Statements,
}

impl Table {
    /// The columns that exist in the local table.
    pub fn local_columns(&self) -> impl Iterator<Item = &Column> {
        self.columns.iter().filter(|column| column.local.is_some())
    }

    /// A column by its number.
    #[must_use]
    pub fn column(&self, num: ColumnNum) -> Option<&Column> {
        self.columns.get(usize::from(num.0))
    }

    /// Two keys may be equal to SQLite and yet not the same bytes: 1 and 1.0, 0.0 and -0.0.
    #[must_use]
    pub fn equal_keys_differ(&self) -> bool {
        let differs = |shape: &Shape| shape.key.iter().any(|column| column.classes_differ);
        self.form == KeyForm::Single && self.shape.as_ref().is_some_and(differs)
    }

    /// The values of the key columns for a stored key.
    pub fn key_values(&self, key: &Value) -> Result<Vec<Value>> {
        key::unpack(self.form, self.key_columns, key)
    }
}

impl Store {
    /// Starts tracking a table: triggers and clock table now, existing rows by the back-fill.
    ///
    /// # Errors
    /// [`Error::Argument`] if there is no such table or it cannot be synced, with the fix.
    pub fn track(&mut self, now: Millis, name: &str) -> Result<()> {
        self.write(now, |tx| tx.track_table(name))
    }

    /// Stops tracking a table. What was recorded stays, so that it can be tracked again.
    ///
    /// # Errors
    /// [`Error::Argument`] if the table is not tracked.
    pub fn untrack(&mut self, now: Millis, name: &str) -> Result<()> {
        self.write(now, |tx| {
            // Otherwise the next look at the schema would track it again.
            tx.set_meta("track_all", 0)?;
            tx.untrack_table(name)
        })
    }
}

impl Tx<'_> {
    /// Brings what is known about tables in step with `sqlite_schema`: columns that came or went,
    /// tables that were dropped, created or rebuilt, triggers that are missing.
    pub(super) fn refresh_schema(&mut self) -> Result<bool> {
        let version = super::schema_version(self.conn)?;
        if self.cache.schema_version == Some(version) {
            return Ok(false);
        }
        super::internal::create_added(self.conn)?;
        self.cache.tables.clear();
        self.cache.names.clear();
        self.cache.parked = None;
        let survey = shape::survey(self.conn)?;
        let mut installed = self.installed_triggers()?;
        self.follow_table_renames(&mut installed)?;
        self.follow_column_renames(&installed)?;
        let mut known = self.stored_tables()?;
        let track_all = self.meta::<i64>("track_all")?.unwrap_or(0) == 1;
        for shape in survey.iter().flatten() {
            match known.iter().find(|entry| entry.is(shape)) {
                // Created again after it was dropped.
                Some(entry) if entry.tracked && !entry.here && entry.import.is_none() => {
                    self.start_import(entry.num)?;
                }
                Some(entry) if entry.tracked => {}
                _ if track_all => self.number_table(shape)?,
                _ => {}
            }
        }
        known = self.stored_tables()?;
        for entry in known {
            let shape = survey.iter().flatten().find(|shape| entry.is(shape)).cloned();
            self.load_table(entry, shape)?;
        }
        // They may stand on tables now for which they were not made.
        self.drop_temp_triggers()?;
        self.cache.probing = false;
        self.prepare_notes()?;
        self.plan_constraints()?;
        self.settle_schema(&installed, |entry| survey.iter().flatten().any(|s| entry.is(s)))?;
        // Creating triggers moved the version itself.
        let after = super::schema_version(self.conn)?;
        self.cache.schema_version = Some(after);
        self.cache.watch.schema_was_read();
        self.effects.schema_changed = true;
        Ok(true)
    }

    /// As [`Tx::refresh_schema`], for a transaction that writes nothing: what is new in the schema
    /// is left out.
    pub(super) fn look_at_schema(&mut self) -> Result<()> {
        let survey = shape::survey(self.conn)?;
        for entry in self.stored_tables()? {
            let shape =
                survey.iter().flatten().find(|shape| entry.tracked && entry.is(shape)).cloned();
            let (columns, _) = self.known_columns(entry.num, shape.as_ref())?;
            self.cache_table(entry, shape, columns, false)?;
        }
        Ok(())
    }

    /// A table by its number.
    pub fn table(&self, num: TableNum) -> Result<Rc<Table>> {
        self.cache
            .tables
            .get(&num)
            .cloned()
            .ok_or_else(|| Error::Database(format!("the log names an unknown table {}", num.0)))
    }

    /// What existed of a table is taken in: the schema need not be read again for that.
    pub(super) fn import_ended(&mut self, num: TableNum) -> Result<()> {
        let table = Table { import: None, ..(*self.table(num)?).clone() };
        self.cache.tables.insert(num, Rc::new(table));
        Ok(())
    }

    /// A table by its name, ignoring case as SQLite does.
    #[must_use]
    pub fn table_named(&self, name: &str) -> Option<Rc<Table>> {
        let num = self.cache.names.get(&name.to_ascii_lowercase())?;
        self.cache.tables.get(num).cloned()
    }

    /// Every numbered table.
    #[must_use]
    pub fn tables(&self) -> Vec<Rc<Table>> {
        self.cache.tables.values().cloned().collect()
    }

    /// As [`Store::track`], inside a transaction: triggers and clock table now, existing rows by the back-fill.
    pub(super) fn track_table(&mut self, name: &str) -> Result<()> {
        match shape::find(self.conn, name)? {
            None => Err(Error::Argument(format!("there is no table {}", ident(name)?))),
            Some(Err(Refusal { name, reason })) => {
                Err(Error::Argument(format!("table {} cannot be synced: {reason}", ident(&name)?)))
            }
            Some(Ok(shape)) => {
                self.number_table(&shape)?;
                self.cache.schema_version = None;
                self.refresh_schema()?;
                // Rows of it that members have sent meanwhile are parked.
                self.finish_schema_change()
            }
        }
    }

    fn untrack_table(&mut self, name: &str) -> Result<()> {
        let table = self.table_named(name).filter(|table| table.shape.is_some());
        let Some(table) = table else {
            return Err(Error::Argument(format!("table {} is not tracked", ident(name)?)));
        };
        // What nobody records any more is not served, so it must not be claimed: what other members
        // have of it comes back parked, and is passed on.
        if self.forget_rows(&table)? > 0 && !mutants::on(Mutant::UntrackedClaimed) {
            self.start_over()?;
        }
        self.conn.execute(
            "UPDATE __wavesync_table SET tracked = 0, here = 0, import = NULL WHERE num = ?1",
            [table.num.0],
        )?;
        self.drop_triggers(table.num)?;
        self.cache.schema_version = None;
        self.refresh_schema().map(|_| ())
    }

    /// Numbers a table that only peers have, so that its rows can be parked.
    pub(super) fn number_foreign_table(
        &mut self,
        name: &str,
        integer: bool,
        key_columns: usize,
    ) -> Result<Rc<Table>> {
        if self.cache.tables.len() >= limits::TABLES_MAX {
            return Err(Error::protocol("too many tables"));
        }
        self.conn.execute(
            "INSERT INTO __wavesync_table(name, integer_key, key_columns, tracked, base_columns)
             VALUES(?1, ?2, ?3, 0, 0)",
            params![name, integer, key_columns as i64],
        )?;
        let num = TableNum(self.conn.last_insert_rowid());
        self.conn.execute_batch(&clock::create(num, integer))?;
        let entry = StoredTable {
            num,
            name: name.into(),
            integer,
            key_columns,
            tracked: false,
            base_columns: 0,
            import: None,
            here: false,
        };
        self.load_table(entry, None)?;
        self.cache.schema_version = Some(super::schema_version(self.conn)?);
        self.table(num)
    }

    /// Numbers a column that only peers have.
    pub(super) fn number_foreign_column(&mut self, table: &Table, name: &str) -> Result<Rc<Table>> {
        let num = table.columns.len();
        if num >= limits::COLUMNS_MAX {
            return Err(Error::protocol("too many columns"));
        }
        self.conn
            .prepare_cached("INSERT INTO __wavesync_column(tbl, num, name) VALUES(?1, ?2, ?3)")?
            .execute(params![table.num.0, num as i64, name])?;
        let shape = table.shape.clone();
        let entry = self.stored_tables()?.into_iter().find(|entry| entry.num == table.num);
        let entry = entry.ok_or_else(|| Error::Database("a table lost its number".into()))?;
        self.load_table(entry, shape)?;
        self.table(table.num)
    }

    fn number_table(&mut self, shape: &Shape) -> Result<()> {
        let integer = shape.form == KeyForm::Rowid;
        let stored = self.stored_tables()?;
        if let Some(entry) = stored.iter().find(|entry| entry.is(shape)) {
            self.conn
                .execute("UPDATE __wavesync_table SET tracked = 1 WHERE num = ?1", [entry.num.0])?;
            if entry.here {
                return Ok(());
            }
            // What the table holds already was not captured.
            return self.start_import(entry.num);
        }
        if stored.len() >= limits::TABLES_MAX {
            return Err(Error::Database("too many tables to sync".into()));
        }
        self.conn.execute(
            "INSERT INTO __wavesync_table(name, integer_key, key_columns, tracked, base_columns)
             VALUES(?1, ?2, ?3, 1, ?4)",
            params![shape.name, integer, shape.key.len() as i64, shape.columns.len() as i64],
        )?;
        let num = TableNum(self.conn.last_insert_rowid());
        self.conn.execute_batch(&clock::create(num, integer))?;
        self.start_import(num)
    }

    pub(super) fn stored_tables(&self) -> Result<Vec<StoredTable>> {
        let mut statement = self.conn.prepare_cached(
            "SELECT num, name, integer_key, key_columns, tracked, base_columns, import, here
             FROM __wavesync_table ORDER BY num",
        )?;
        let rows = statement.query_map([], |row| {
            Ok(StoredTable {
                num: TableNum(row.get(0)?),
                name: row.get(1)?,
                integer: row.get(2)?,
                key_columns: usize::try_from(row.get::<_, i64>(3)?).unwrap_or(0),
                tracked: row.get(4)?,
                base_columns: row.get(5)?,
                import: row.get::<_, Option<i64>>(6)?.map(crate::store::SiteNum),
                here: row.get(7)?,
            })
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// Puts one table into the cache, numbering its new columns and repairing its triggers.
    fn load_table(&mut self, entry: StoredTable, shape: Option<Shape>) -> Result<()> {
        let shape = shape.filter(|_| entry.tracked);
        let columns = self.columns_of(entry.num, shape.as_ref())?;
        let mut app_triggers = false;
        if let Some(shape) = &shape {
            self.repair_triggers(entry.num, shape, &columns)?;
            app_triggers = self
                .conn
                .prepare_cached(
                    "SELECT 1 FROM main.sqlite_schema WHERE type = 'trigger'
                     AND tbl_name = ?1 COLLATE NOCASE
                     AND name NOT LIKE '\\_\\_wavesync\\_%' ESCAPE '\\'",
                )?
                .exists([&shape.name])?;
        }
        self.cache_table(entry, shape, columns, app_triggers)
    }

    fn cache_table(
        &mut self,
        entry: StoredTable,
        shape: Option<Shape>,
        columns: Vec<Column>,
        app_triggers: bool,
    ) -> Result<()> {
        let form = match (entry.integer, entry.key_columns) {
            (true, _) => KeyForm::Rowid,
            (false, 1) => KeyForm::Single,
            (false, _) => KeyForm::Composite,
        };
        let table = Table {
            num: entry.num,
            kind: if entry.integer { KeyKind::Integer } else { KeyKind::Natural },
            form,
            key_columns: entry.key_columns,
            statements: statements(entry.num, shape.as_ref(), &columns)?,
            name: shape.as_ref().map_or(entry.name, |shape| shape.name.clone()),
            shape,
            columns,
            base_columns: entry.base_columns,
            import: entry.import,
            app_triggers,
        };
        // Of tables with one name and different kinds of key, the one that stands here is meant.
        let name = table.name.to_ascii_lowercase();
        if table.shape.is_some() {
            self.cache.names.insert(name, table.num);
        } else {
            self.cache.names.entry(name).or_insert(table.num);
        }
        self.cache.tables.insert(table.num, Rc::new(table));
        Ok(())
    }

    /// The numbered columns of a table, and those of its shape that have no number yet.
    pub(super) fn known_columns(
        &self,
        table: TableNum,
        shape: Option<&Shape>,
    ) -> Result<(Vec<Column>, Vec<ShapeColumn>)> {
        let mut statement = self.conn.prepare_cached(
            "SELECT num, name, since FROM __wavesync_column WHERE tbl = ?1 ORDER BY num",
        )?;
        let mut columns = statement
            .query_map([table.0], |row| {
                Ok(Column {
                    num: ColumnNum(row.get(0)?),
                    name: row.get(1)?,
                    local: None,
                    since: row.get::<_, Option<i64>>(2)?.map(Seq),
                })
            })?
            .collect::<rusqlite::Result<Vec<_>>>()?;
        let mut new = Vec::new();
        for local in shape.iter().flat_map(|shape| &shape.columns) {
            let mut known = columns.iter_mut();
            match known.find(|column| column.name.eq_ignore_ascii_case(&local.name)) {
                Some(column) => column.local = Some(local.clone()),
                None => new.push(local.clone()),
            }
        }
        Ok((columns, new))
    }

    fn columns_of(&mut self, table: TableNum, shape: Option<&Shape>) -> Result<Vec<Column>> {
        let (mut columns, new) = self.known_columns(table, shape)?;
        let since = self.log_end()?;
        // Only peers had these; a trigger that wrote the log until now said nothing about them.
        for column in columns.iter_mut().filter(|c| c.local.is_some() && c.since.is_none()) {
            self.conn
                .prepare_cached(
                    "UPDATE __wavesync_column SET since = ?3 WHERE tbl = ?1 AND num = ?2",
                )?
                .execute(params![table.0, column.num.0, since.0])?;
            column.since = Some(since);
        }
        for local in new {
            let num = ColumnNum(u16::try_from(columns.len()).map_err(|_| {
                Error::Database("a table has more columns than can be numbered".into())
            })?);
            self.conn
                .prepare_cached(
                    "INSERT INTO __wavesync_column(tbl, num, name, since) VALUES(?1, ?2, ?3, ?4)",
                )?
                .execute(params![table.0, num.0, local.name, since.0])?;
            columns.push(Column {
                num,
                name: local.name.clone(),
                local: Some(local),
                since: Some(since),
            });
        }
        Ok(columns)
    }

    pub(super) fn repair_triggers(
        &mut self,
        num: TableNum,
        shape: &Shape,
        columns: &[Column],
    ) -> Result<()> {
        let local: Vec<(ColumnNum, ShapeColumn)> =
            columns.iter().filter_map(|column| Some((column.num, column.local.clone()?))).collect();
        let wanted = capture::triggers(num, shape, &local)?;
        let mut installed = self.triggers_of(num)?;
        let note = format!("__wavesync_p_{}", num.0);
        let text_of = |wanted: &(String, String)| (wanted.0 == note).then(|| wanted.1.clone());
        let noted = wanted.iter().find_map(text_of);
        if noted.is_some() && !installed.is_empty() && installed.get(&note) != noted.as_ref() {
            self.cache.unseen_rivals.insert(num);
        }
        for (name, text) in wanted {
            let stored = installed.remove(&name);
            if stored.as_deref() == Some(text.as_str()) {
                continue;
            }
            self.conn.execute_batch(&format!("DROP TRIGGER IF EXISTS {}", ident(&name)?))?;
            self.conn.execute_batch(&text)?;
        }
        // What is left belongs to a shape that the table had.
        for name in installed.keys() {
            self.conn.execute_batch(&format!("DROP TRIGGER {}", ident(name)?))?;
        }
        Ok(())
    }

    /// Names and texts of our triggers for a table, wherever they stand.
    fn triggers_of(&self, num: TableNum) -> Result<BTreeMap<String, String>> {
        let mut statement = self.conn.prepare_cached(
            "SELECT name, sql FROM main.sqlite_schema
             WHERE type = 'trigger' AND name GLOB '__wavesync_?_' || ?1",
        )?;
        let triggers = statement.query_map([num.0], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(triggers.collect::<rusqlite::Result<_>>()?)
    }

    pub(super) fn drop_triggers(&mut self, num: TableNum) -> Result<()> {
        for letter in capture::LETTERS {
            let name = format!("__wavesync_{letter}_{}", num.0);
            self.conn.execute_batch(&format!("DROP TRIGGER IF EXISTS {}", ident(&name)?))?;
        }
        Ok(())
    }

    pub(super) fn log_end(&self) -> Result<Seq> {
        let end = self
            .conn
            .prepare_cached("SELECT coalesce(max(seq), 0) FROM __wavesync_log")?
            .query_row([], |row| row.get(0))?;
        Ok(Seq(end))
    }
}

/// A row of `__wavesync_table`.
pub(super) struct StoredTable {
    pub num: TableNum,
    pub name: String,
    pub integer: bool,
    pub key_columns: usize,
    pub tracked: bool,
    base_columns: u16,
    import: Option<crate::store::SiteNum>,
    /// It stood here and was tracked when the schema was last looked at.
    pub here: bool,
}

impl StoredTable {
    /// Whether rows of a table of this shape are the rows that were numbered. A table of the same
    /// name with another kind of key is another table.
    fn is(&self, shape: &Shape) -> bool {
        self.name.eq_ignore_ascii_case(&shape.name)
            && shape.key.len() == self.key_columns
            && (shape.form == KeyForm::Rowid) == self.integer
    }
}
