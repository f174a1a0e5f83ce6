//! Names: which table and column is meant after a rename, here or at a peer.
//!
//! A rename is read from our own triggers, which SQLite rewrites when a table or a column is
//! renamed. Former names stay understood in what peers send.

use std::collections::BTreeMap;
use std::rc::Rc;

use rusqlite::{OptionalExtension, params};

use crate::ids::{ColumnNum, Dot, TableNum};
use crate::merge::Incoming;
use crate::mutants::{self, Mutant};
use crate::store::adopt::TableSchema;
use crate::store::clock::ClockRow;
use crate::store::rows::Kind;
use crate::store::tables::{StoredTable, Table};
use crate::store::{Tx, claim};
use crate::value::Value;
use crate::{Error, Result, limits};

/// In `__wavesync_former`, the number that stands for the table itself.
const TABLE_ITSELF: i64 = -1;

/// Rows of `__wavesync_former` about the name ?3 of what can be meant by it in the place of column ?2 of
/// table ?1: other columns of the table, or other tables with that kind of key.
const SAME_NAME: &str = "name = ?3 AND iif(?2 >= 0, tbl = ?1 AND col >= 0, col = ?2 AND tbl IN (
    SELECT o.num FROM __wavesync_table o JOIN __wavesync_table t ON t.num = ?1
    WHERE (o.integer_key, o.key_columns) = (t.integer_key, t.key_columns)))";

/// Former names of a table; a column's name now and one of its former names.
type FormerNames = (Vec<String>, Vec<(String, String)>);

/// Another name of a table, or of one of its columns.
pub(super) struct NewName {
    table: Rc<Table>,
    column: Option<ColumnNum>,
    name: String,
}

/// Our triggers on one table, as SQLite has carried them along.
pub(super) struct Installed {
    /// The table that they are on now.
    on: String,
    /// What the columns are called now that its update trigger compares, by column number.
    columns: Vec<String>,
    /// None of the others is missing. (A table without UNIQUE indexes has four, else eight.)
    pub(super) whole: bool,
}

/// Numbers that turned out to mean one thing: what the first one holds joins the second, once the
/// log is folded.
#[derive(Default)]
pub(super) struct Met {
    pub(super) tables: Vec<(TableNum, TableNum)>,
    pub(super) columns: Vec<(TableNum, ColumnNum, ColumnNum)>,
}

impl Tx<'_> {
    /// Our triggers in the schema, by table number.
    pub(super) fn installed_triggers(&self) -> Result<BTreeMap<TableNum, Installed>> {
        let mut statement = self.conn.prepare_cached(
            "SELECT substr(u.name, 14), u.tbl_name, u.sql, (
               SELECT count(*) IN (4, 8) FROM main.sqlite_schema o WHERE o.type = 'trigger'
                 AND o.tbl_name = u.tbl_name
                 AND o.name GLOB '__wavesync_[iukdpqrs]_' || substr(u.name, 14))
             FROM main.sqlite_schema u
             WHERE u.type = 'trigger' AND u.name LIKE '\\_\\_wavesync\\_u\\_%' ESCAPE '\\'",
        )?;
        let rows = statement
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?
            .collect::<rusqlite::Result<Vec<(String, String, String, bool)>>>()?;
        Ok(rows
            .into_iter()
            .filter_map(|(num, on, sql, whole)| {
                let num = TableNum(num.parse().ok()?);
                Some((num, Installed { on, columns: compared_columns(&sql), whole }))
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

    pub(super) fn rename_number(&self, num: TableNum, name: &str) -> Result<()> {
        self.conn
            .prepare_cached("UPDATE __wavesync_table SET name = ?2 WHERE num = ?1")?
            .execute(params![num.0, name])?;
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
            if local.len() != installed.columns.len() || mutants::on(Mutant::RenameIsNew) {
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
            "SELECT num, name, since IS NOT NULL FROM __wavesync_column WHERE tbl = ?1
             ORDER BY num",
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
        // What last had the name is meant by it.
        let sql = format!("DELETE FROM __wavesync_former WHERE {SAME_NAME}");
        self.conn.execute(&sql, params![table.0, column, old])?;
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
    ) -> Result<(Rc<Table>, Vec<Option<ColumnNum>>)> {
        let exact = |table: &Table, name: &str, local: bool| {
            let mut columns = table.columns.iter();
            columns
                .find(|c| (c.local.is_some() || !local) && c.name.eq_ignore_ascii_case(name))
                .map(|column| column.num)
        };
        let mut columns = Vec::with_capacity(names.len());
        for (at, name) in names.iter().enumerate() {
            if names[..at].iter().any(|other| other.eq_ignore_ascii_case(name)) {
                return Err(Error::protocol("a batch names a column twice"));
            }
            let here = exact(&table, name, true);
            if name == crate::wire::rows::CLAIM {
                columns.push(Some(ColumnNum::CLAIM));
                continue;
            }
            // Who does not know that two names mean one column has both.
            let former = self.column_formerly(&table, name)?;
            let num = match here.or(former).or_else(|| exact(&table, name, false)) {
                Some(num) => num,
                None if !Self::has_room_for_column(&table) => {
                    columns.push(None);
                    continue;
                }
                None => {
                    table = self.number_foreign_column(&table, name)?;
                    exact(&table, name, false)
                        .ok_or_else(|| Error::Database("a column lost its number".into()))?
                }
            };
            columns.push(Some(num));
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

    /// Other names of a table, and of its columns beside their names now. What stands here under such a
    /// name is what is meant by it now.
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
                Err(_) if self.stands(&name)? => {}
                Err(_) => tables.push(name),
                Ok(_) if table.local_columns().any(|c| c.name.eq_ignore_ascii_case(&name)) => {}
                Ok(num) => {
                    let now = table.column(ColumnNum(num)).filter(|c| c.local.is_some());
                    columns.extend(now.map(|now| (now.name.clone(), name)));
                }
            }
        }
        Ok((tables, columns))
    }

    /// What another member tells of how else tables and columns were or are called, as far as it is
    /// new here: it is about the table, or column, that stands here under one of the names.
    pub(super) fn new_names(&self, schemas: &[TableSchema]) -> Result<Vec<NewName>> {
        let mut room = limits::OTHER_NAMES_MAX.saturating_sub(self.count_names()?);
        let mut new = Vec::new();
        for schema in schemas {
            let here = |name: &str| self.table_named(name).filter(|t| t.shape.is_some());
            let most = limits::OTHER_NAMES_MAX;
            let former = schema.former.iter().take(most);
            let names = || std::iter::once(&schema.name).chain(former.clone());
            let Some(table) = names().find_map(|name| here(name)) else { continue };
            for name in names().filter(|name| **name != table.name) {
                if !self.stands(name)? && self.is_new_name(table.num, TABLE_ITSELF, name)? {
                    new.push(NewName {
                        table: Rc::clone(&table),
                        column: None,
                        name: name.clone(),
                    });
                }
            }
            let local = |name: &str| {
                let mut columns = table.local_columns();
                columns.find(|column| column.name.eq_ignore_ascii_case(name)).map(|c| c.num)
            };
            let pairs = schema.former_columns.iter().take(most);
            for (name, former) in pairs.clone() {
                let mut same = pairs.clone().filter(|(other, _)| other == name);
                let num = local(name).or_else(|| same.find_map(|(_, former)| local(former)));
                let Some(num) = num else { continue };
                let is_key = |name: &str| {
                    let shape = table.shape.as_ref();
                    shape.is_some_and(|s| s.key.iter().any(|k| k.name.eq_ignore_ascii_case(name)))
                };
                let others = [name, former].into_iter();
                for other in others.filter(|other| local(other).is_none() && !is_key(other)) {
                    if self.is_new_name(table.num, i64::from(num.0), other)? {
                        let (table, name) = (Rc::clone(&table), other.clone());
                        new.push(NewName { table, column: Some(num), name });
                    }
                }
            }
        }
        new.retain(|new| {
            let fits = !new.name.is_empty() && new.name.len() <= limits::NAME_MAX_BYTES;
            let taken = fits && !new.name.contains('\0') && room > 0;
            room -= usize::from(taken);
            taken
        });
        Ok(new)
    }

    fn count_names(&self) -> Result<usize> {
        let sql = "SELECT count(*) FROM __wavesync_former";
        let count: i64 = self.conn.prepare_cached(sql)?.query_row([], |row| row.get(0))?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    /// Whether a table or a view of this name exists, synced or not.
    fn stands(&self, name: &str) -> Result<bool> {
        let sql = "SELECT 1 FROM main.sqlite_schema WHERE name = ?1 COLLATE NOCASE";
        Ok(self.conn.prepare_cached(sql)?.exists([name])?)
    }

    /// Whether nothing here is known to have had this name.
    fn is_new_name(&self, table: TableNum, column: i64, name: &str) -> Result<bool> {
        let sql = format!("SELECT 1 FROM __wavesync_former WHERE {SAME_NAME}");
        Ok(!self.conn.prepare_cached(&sql)?.exists(params![table.0, column, name])?)
    }

    /// Takes in what is new. What was kept under these names joins.
    pub(super) fn take_in_names(&mut self, schemas: &[TableSchema]) -> Result<()> {
        for NewName { table, column, name } in self.new_names(schemas)? {
            let number = column.map_or(TABLE_ITSELF, |column| i64::from(column.0));
            if !self.is_new_name(table.num, number, &name)? {
                // It was told twice, or of two columns.
                continue;
            }
            self.conn.execute(
                "INSERT INTO __wavesync_former(tbl, col, name) VALUES(?1, ?2, ?3)",
                params![table.num.0, number, name],
            )?;
            match column {
                None => {
                    let waiting = self.cache.tables.values().find(|other| {
                        other.name.eq_ignore_ascii_case(&name)
                            && (other.kind, other.key_columns) == (table.kind, table.key_columns)
                    });
                    if let Some(waiting) = waiting.map(|waiting| waiting.num) {
                        self.cache.met.tables.push((waiting, table.num));
                    }
                }
                Some(column) => {
                    let waiting = table.columns.iter().find(|other| {
                        other.local.is_none() && other.name.eq_ignore_ascii_case(&name)
                    });
                    let met = waiting.map(|waiting| (table.num, waiting.num, column));
                    self.cache.met.columns.extend(met);
                }
            }
        }
        self.finish_schema_change()
    }

    /// What was parked under a table's new name joins the table.
    pub(super) fn join_met_tables(&mut self, met: &[(TableNum, TableNum)]) -> Result<()> {
        for (from, into) in met {
            let (from, mut into) = (self.table(*from)?, self.table(*into)?);
            let mut numbers = BTreeMap::from([(ColumnNum::CLAIM, ColumnNum::CLAIM)]);
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
            self.held_join(from.num, into.num)?;
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
        values.extend(clock.claim.map(|claim| (ColumnNum::CLAIM, claim::encode(claim))));
        let cells = clock
            .cells
            .iter()
            .filter_map(|(num, dot)| Some((*numbers.get(num)?, (*dot, values.remove(num)?))));
        let incoming = Incoming {
            length: clock.length,
            birth: clock.birth,
            whole,
            cells: newest_cells(cells),
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
    pub(super) fn join_met_columns(
        &mut self,
        met: &[(TableNum, ColumnNum, ColumnNum)],
    ) -> Result<()> {
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
}

/// Whether two names of a batch mean one column.
pub(super) fn is_twofold(columns: &[Option<ColumnNum>]) -> bool {
    let again = |at: usize| columns[at].is_some() && columns[..at].contains(&columns[at]);
    (0..columns.len()).any(again)
}

/// Of cells that arrived under two names of one column, the newer ones.
pub(super) fn newest_cells(
    cells: impl Iterator<Item = (ColumnNum, (Dot, Value))>,
) -> BTreeMap<ColumnNum, (Dot, Value)> {
    let mut newest: BTreeMap<ColumnNum, (Dot, Value)> = BTreeMap::new();
    for (num, (dot, value)) in cells {
        if newest.get(&num).is_none_or(|known| (&known.0, &known.1) < (&dot, &value)) {
            newest.insert(num, (dot, value));
        }
    }
    newest
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
