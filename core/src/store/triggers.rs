//! Statements on tables that have triggers of the application's own: they fire, and what they do
//! to tracked tables is undone (invariant I5).
//!
//! An index or a counter that a trigger keeps in an untracked table stays right. What it does to
//! tracked tables was done at the writer and arrives as changes of its own; done here once more it
//! would travel back and never come to rest. TEMP triggers note every row before it changes, then
//! the notes are played backwards while no other trigger can fire.

use rusqlite::config::DbConfig;
use rusqlite::params_from_iter;

use crate::ids::TableNum;
use crate::mutants::{self, Mutant};
use crate::store::Tx;
use crate::store::probe::temp_trigger;
use crate::store::rows::Values;
use crate::store::sql::{ident, ident_list, parameters};
use crate::store::tables::Table;
use crate::value::Value;
use crate::{Error, Result};

/// What the row of a statement is to be in the end, whatever triggers made of it.
#[derive(Clone, Copy)]
pub(super) enum Wanted<'a> {
    /// It is gone.
    Gone,
    /// It has these values; other columns are as they were.
    Values(&'a Values),
}

struct Noted {
    order: i64,
    table: TableNum,
    event: String,
}

impl Tx<'_> {
    /// Runs a row's one statement.
    pub(super) fn with_app_triggers(
        &mut self,
        table: &Table,
        key: &Value,
        wanted: Wanted<'_>,
        statement: impl FnOnce(&mut Self) -> Result<usize>,
    ) -> Result<usize> {
        if !table.app_triggers {
            return statement(self);
        }
        let start = self.log_end()?;
        // RAISE(FAIL) leaves what the statement did before it, so the savepoint is needed.
        self.conn.execute_batch("SAVEPOINT wavesync_row")?;
        self.note_changes(true)?;
        self.conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, true)?;
        let changed = statement(self);
        self.conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
        if let (true, Err(error)) = (self.conn.is_autocommit(), &changed)
            && error.is_fault()
        {
            return changed;
        }
        if self.conn.is_autocommit() {
            return Err(Error::Database(format!(
                "a trigger of the application on table {} rolls back the whole transaction \
                 (RAISE(ROLLBACK)), so nothing can be received; use RAISE(ABORT) instead",
                table.name
            )));
        }
        let done = changed.and_then(|changed| {
            self.note_changes(false)?;
            let before = self.undo_noted(table, key)?;
            self.restore(table, key, wanted, before)?;
            Ok(changed)
        });
        let changed = super::end_savepoint(self.conn, "wavesync_row", false, done)?;
        // What the capture triggers noted of all this is not ours to publish. No number that is
        // freed here was ever seen outside this transaction.
        self.conn
            .prepare_cached("DELETE FROM __wavesync_log WHERE seq > ?1")?
            .execute([start.0])?;
        Ok(changed)
    }

    fn note_changes(&self, on: bool) -> Result<()> {
        let mut switch = self.conn.prepare_cached("UPDATE temp.wavesync_noting SET active = ?1")?;
        switch.execute([on])?;
        Ok(())
    }

    /// Plays the notes backwards, except those of the statement's own row. Of that, returns key
    /// and columns as they were before it was first updated.
    fn undo_noted(&mut self, target: &Table, target_key: &Value) -> Result<Option<Vec<Value>>> {
        let mut before = None;
        let mut statement = self
            .conn
            .prepare_cached("SELECT ord, tbl, event FROM temp.wavesync_noted ORDER BY ord DESC")?;
        let notes = statement
            .query_map([], |row| {
                Ok(Noted { order: row.get(0)?, table: TableNum(row.get(1)?), event: row.get(2)? })
            })?
            .collect::<rusqlite::Result<Vec<_>>>()?;
        for note in notes {
            let table = self.table(note.table)?;
            let (old, new) = self.noted_row(&table, note.order)?;
            let own = note.table == target.num
                && crate::store::key::pack(&new) == *target_key
                && (note.event != "update" || old.get(..new.len()) == Some(&new[..]));
            if !own && !mutants::on(Mutant::TriggersCount) {
                self.undo_one(&table, &note.event, &old, new)?;
            } else if note.event == "update" {
                before = Some(old);
            }
            for part in 0..noted_parts(&table) {
                let sql = format!("DELETE FROM temp.{} WHERE ord = ?1", notes_of(&table, part));
                self.conn.prepare_cached(&sql)?.execute([note.order])?;
            }
        }
        self.conn.prepare_cached("DELETE FROM temp.wavesync_noted")?.execute([])?;
        Ok(before)
    }

    /// Key and columns before, and the key after (for a deleted row: the key that it had).
    fn noted_row(&self, table: &Table, order: i64) -> Result<(Vec<Value>, Vec<Value>)> {
        let mut all = Vec::new();
        for part in 0..noted_parts(table) {
            // Named: `*` of a statement that was prepared before a column came is too short.
            let places = places_of(table, part);
            let (count, places) = (places.len(), places.join(", "));
            let notes = notes_of(table, part);
            let sql = format!("SELECT {places} FROM temp.{notes} WHERE ord = ?1");
            let mut statement = self.conn.prepare_cached(&sql)?;
            all.extend(statement.query_row([order], |row| {
                (0..count)
                    .map(|at| Ok(Value::from_ref(row.get_ref(at)?)))
                    .collect::<rusqlite::Result<Vec<_>>>()
            })?);
        }
        let cut = all.len().saturating_sub(table.key_columns);
        let (old, new) = all.split_at(cut);
        Ok((old.to_vec(), new.to_vec()))
    }

    fn undo_one(&self, table: &Table, event: &str, old: &[Value], new: Vec<Value>) -> Result<()> {
        let Some(shape) = &table.shape else { return Ok(()) };
        let name = ident(&shape.name)?;
        let columns: Vec<&str> = all_columns(table).collect();
        match event {
            "insert" => {
                let sql = format!("DELETE FROM main.{name} WHERE {}", shape.key_matches(1)?);
                self.conn.prepare_cached(&sql)?.execute(params_from_iter(new))?;
            }
            "delete" => {
                let listed = ident_list("", columns)?;
                let sql = format!(
                    "{}{name}({listed}) VALUES({})",
                    shape.insert_verb(),
                    parameters(1, old.len())
                );
                self.conn.prepare_cached(&sql)?.execute(params_from_iter(old))?;
            }
            _ => {
                let set: Result<Vec<String>> = columns
                    .iter()
                    .enumerate()
                    .map(|(at, column)| Ok(format!("{} = ?{}", ident(column)?, at + 1)))
                    .collect();
                let matches = shape.key_matches(old.len() + 1)?;
                let (verb, set) = (shape.update_verb(), set?.join(", "));
                let sql = format!("{verb}{name} SET {set} WHERE {matches}");
                let bound = old.iter().cloned().chain(new);
                self.conn.prepare_cached(&sql)?.execute(params_from_iter(bound))?;
            }
        }
        Ok(())
    }

    /// Gives the statement's own row its final form, without any trigger.
    fn restore(
        &mut self,
        table: &Table,
        key: &Value,
        wanted: Wanted<'_>,
        before: Option<Vec<Value>>,
    ) -> Result<()> {
        let Some(shape) = &table.shape else { return Ok(()) };
        let keys = table.key_values(key)?;
        let Wanted::Values(values) = wanted else {
            self.conn
                .prepare_cached(&table.statements.row_delete)?
                .execute(params_from_iter(keys))?;
            return Ok(());
        };
        let Some(current) = self.table_values(table, key)? else {
            return Err(Error::Sqlite(rusqlite::Error::SqliteFailure(
                rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CONSTRAINT_TRIGGER),
                Some("a trigger of the application removed the row".into()),
            )));
        };
        let before = before.unwrap_or_default();
        let moved: Vec<(&str, &Value)> = table
            .local_columns()
            .enumerate()
            .filter_map(|(at, column)| {
                let wanted =
                    values.get(&column.num).or_else(|| before.get(table.key_columns + at))?;
                let now = current.get(&column.num)?;
                (now != wanted).then_some((column.name.as_str(), wanted))
            })
            .collect();
        if moved.is_empty() {
            return Ok(());
        }
        let set: Result<Vec<String>> = moved
            .iter()
            .enumerate()
            .map(|(at, (name, _))| Ok(format!("{} = ?{}", ident(name)?, at + 1)))
            .collect();
        let matches = shape.key_matches(moved.len() + 1)?;
        let (verb, name) = (shape.update_verb(), ident(&shape.name)?);
        let sql = format!("{verb}{name} SET {} WHERE {matches}", set?.join(", "));
        let bound = moved.into_iter().map(|(_, value)| value.clone()).chain(keys);
        self.conn.prepare_cached(&sql)?.execute(params_from_iter(bound))?;
        Ok(())
    }

    /// Creates the TEMP tables and triggers that take the notes, if any table needs them.
    pub(super) fn prepare_notes(&self) -> Result<()> {
        let tables = self.tables();
        if !tables.iter().any(|table| table.app_triggers) {
            return Ok(());
        }
        self.conn.execute_batch(
            "DROP TABLE IF EXISTS temp.wavesync_noting;
             CREATE TEMP TABLE wavesync_noting(active);
             INSERT INTO temp.wavesync_noting VALUES(0);
             CREATE TEMP TABLE IF NOT EXISTS wavesync_noted(ord INTEGER PRIMARY KEY, tbl, event);",
        )?;
        tables.iter().try_for_each(|table| self.prepare_notes_of(table))
    }

    fn prepare_notes_of(&self, table: &Table) -> Result<()> {
        let Some(shape) = &table.shape else { return Ok(()) };
        let number = table.num.0;
        let columns: Vec<&str> = all_columns(table).collect();
        let columns = columns.iter().copied();
        let keys = || shape.key.iter().map(|column| column.name.as_str());
        let nulls = vec!["NULL".to_string(); columns.len()];
        let old = prefixed("OLD.", columns)?;
        let events = [
            ("insert", "AFTER", nulls, prefixed("NEW.", keys())?),
            ("update", "BEFORE", old.clone(), prefixed("NEW.", keys())?),
            ("delete", "BEFORE", old, prefixed("OLD.", keys())?),
        ];
        for part in 0..noted_parts(table) {
            let (notes, places) = (notes_of(table, part), places_of(table, part).join(", "));
            self.conn.execute_batch(&format!(
                "DROP TABLE IF EXISTS temp.{notes};
                 CREATE TEMP TABLE {notes}(ord INTEGER PRIMARY KEY, {places});"
            ))?;
        }
        for (event, when, before, key) in events {
            let values: Vec<String> = before.into_iter().chain(key).collect();
            let parts: Vec<String> = values
                .chunks(NOTED_COLUMNS)
                .enumerate()
                .map(|(part, values)| {
                    let (notes, values) = (notes_of(table, part), values.join(", "));
                    format!(
                        "INSERT INTO {notes} VALUES((SELECT max(ord) FROM wavesync_noted), {values});"
                    )
                })
                .collect();
            let name = temp_trigger(&format!("note_{event}"), number, &shape.name)?;
            self.conn.execute_batch(&format!(
                "DROP TRIGGER IF EXISTS temp.{name};
                 CREATE TEMP TRIGGER {name} {when} {event} ON main.{}
                 WHEN (SELECT active FROM wavesync_noting) BEGIN
                   INSERT INTO wavesync_noted(tbl, event) VALUES({number}, '{event}');
                   {}
                 END;",
                ident(&shape.name)?,
                parts.join(" ")
            ))?;
        }
        Ok(())
    }
}

/// Values of one row of notes: a row of a table of 2,000 columns does not fit into one, because
/// the number of the note and the new key come on top.
const NOTED_COLUMNS: usize = 1_000;

impl Table {
    /// What a note of a row of this table consists of: all its columns, and a key.
    fn noted_values(&self) -> usize {
        2 * self.key_columns + self.local_columns().count()
    }
}

fn noted_parts(table: &Table) -> usize {
    table.noted_values().div_ceil(NOTED_COLUMNS)
}

/// The columns of the TEMP table of one part of the notes.
fn places_of(table: &Table, part: usize) -> Vec<String> {
    let count = table.noted_values() - part * NOTED_COLUMNS;
    (0..count.min(NOTED_COLUMNS)).map(|n| format!("c{n}")).collect()
}

/// The TEMP table of one part of the notes.
fn notes_of(table: &Table, part: usize) -> String {
    format!("wavesync_noted_{}_{part}", table.num.0)
}

fn prefixed<'a>(prefix: &str, names: impl Iterator<Item = &'a str>) -> Result<Vec<String>> {
    names.map(|name| Ok(format!("{prefix}{}", ident(name)?))).collect()
}

/// Key columns, then the local columns outside the key: the order of a noted row.
fn all_columns(table: &Table) -> impl Iterator<Item = &str> {
    let key = table.shape.iter().flat_map(|shape| &shape.key).map(|column| column.name.as_str());
    key.chain(table.local_columns().map(|column| column.name.as_str()))
}
