//! `wavesync_alter`: one `ALTER TABLE` statement, run so that nothing of ours is in its way and
//! nothing is lost.
//!
//! SQLite refuses `DROP COLUMN` while a trigger names the column. Here our triggers are taken away
//! for that one statement, inside its transaction, and the values of the column are kept for the
//! members that still have it.

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::ids::{ColumnNum, Millis};
use crate::mutants::{self, Mutant};
use crate::store::adopt::tokens;
use crate::store::rows::{Kind, Parked};
use crate::store::tables::Table;
use crate::store::{Store, Tx};
use crate::{Error, Result, limits};

impl Store {
    /// Runs one `ALTER TABLE` statement. All of it happens, or nothing.
    ///
    /// # Errors
    /// [`Error::Argument`] if the text is anything else; SQLite's error if it refuses.
    pub fn alter(&mut self, now: Millis, sql: &str) -> Result<()> {
        let alter = Alter::parse(sql)?;
        self.write(now, |tx| tx.alter_table(sql, &alter.table, alter.drops.as_deref()))
    }
}

impl Tx<'_> {
    /// Before a column goes, its values are parked, so that they are still in `L`.
    fn park_column(&mut self, table: &Rc<Table>, column: ColumnNum) -> Result<()> {
        for key in self.clock_keys(table, "cl % 2 = 1")? {
            if mutants::on(Mutant::DropColumnLoses) {
                break;
            }
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

    fn no_such_column() -> Parked {
        Parked::new(Kind::UnknownColumn, "the table here has no such column", BTreeMap::new())
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
            self.drop_temp_triggers()?;
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

/// What is to be known of an `ALTER TABLE`.
#[derive(Debug, PartialEq, Eq)]
struct Alter {
    table: String,
    /// The column that it drops.
    drops: Option<String>,
}

impl Alter {
    fn parse(sql: &str) -> Result<Self> {
        let refuse = |why: &str| {
            Err(Error::Argument(format!(
                "wavesync_alter() takes one ALTER TABLE statement on a table of this database: \
                 {why}"
            )))
        };
        if sql.len() > limits::SCHEMA_SQL_MAX_BYTES || sql.contains('\0') {
            return refuse("the text is too long or holds a NUL character");
        }
        let mut tokens = tokens(sql);
        if tokens.last().is_some_and(|token| token == ";") {
            tokens.pop();
        }
        let is = |at: usize, word: &str| {
            tokens.get(at).is_some_and(|token| token.eq_ignore_ascii_case(word))
        };
        if !is(0, "ALTER") || !is(1, "TABLE") {
            return refuse("this is another statement");
        }
        if tokens.iter().any(|token| token == ";") {
            return refuse("there is more than one statement");
        }
        let (schema, name, action) = if is(3, ".") { (Some(2), 4, 5) } else { (None, 2, 3) };
        let text = |at: usize| tokens.get(at).map(|token| unquoted(token));
        let in_main = schema.and_then(text).is_none_or(|name| name.eq_ignore_ascii_case("main"));
        let Some(table) = text(name).filter(|_| in_main) else {
            return refuse("the table is not one of the main database");
        };
        if table.to_ascii_lowercase().starts_with("__wavesync_") {
            return refuse("wavesync's own tables are not to be changed");
        }
        let drops = match tokens.len().checked_sub(action) {
            Some(2) if is(action, "DROP") => text(action + 1),
            Some(3) if is(action, "DROP") && is(action + 1, "COLUMN") => text(action + 2),
            _ => None,
        };
        Ok(Self { table, drops })
    }
}

/// A name without its quotes.
fn unquoted(token: &str) -> String {
    let mut chars = token.chars();
    let close = match chars.next() {
        Some(open @ ('"' | '`' | '\'')) => open,
        Some('[') => ']',
        _ => return token.into(),
    };
    let inner = chars.as_str();
    let inner = inner.strip_suffix(close).unwrap_or(inner);
    if close == ']' {
        inner.into()
    } else {
        inner.replace(&format!("{close}{close}"), &close.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_alter_table_and_nothing_else_is_accepted() {
        let read = |sql| Alter::parse(sql).ok().map(|alter| (alter.table, alter.drops));
        let some = |table: &str, drops: Option<&str>| Some((table.into(), drops.map(Into::into)));
        assert_eq!(read("ALTER TABLE t DROP COLUMN c"), some("t", Some("c")));
        assert_eq!(
            read(" alter table main.[a b] drop \"x\"\"y\" ; -- end"),
            some("a b", Some("x\"y"))
        );
        assert_eq!(read("ALTER TABLE `t` DROP COLUMN"), some("t", Some("COLUMN")));
        assert_eq!(read("ALTER TABLE t ADD COLUMN d DEFAULT ';'"), some("t", None));
        assert_eq!(read("ALTER TABLE t RENAME TO \"drop\""), some("t", None));
        assert_eq!(read("ALTER TABLE t ADD c; DROP TABLE t"), None);
        assert_eq!(read("DROP TABLE t"), None);
        assert_eq!(read("ALTER TABLE temp.t ADD c"), None);
        assert_eq!(read("ALTER TABLE __wavesync_log ADD c"), None);
        assert_eq!(read(""), None);
        assert_eq!(read("ALTER TABLE"), None);
    }
}
