//! Schema adoption: an empty database takes over the tables of the group.
//!
//! The text of `CREATE TABLE` and `CREATE INDEX` of tracked tables travels. Only these two kinds
//! of statement are ever run, one at a time, for tables that do not exist here; never a trigger,
//! a view, or a table that selects.

use serde::{Deserialize, Serialize};

use crate::limits;
use crate::store::{Store, Tx, functions, shape};
use crate::{Error, Result, ids::Millis};

/// One table as another replica declared it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableSchema {
    /// Its name.
    pub name: String,
    /// Its `CREATE TABLE`.
    pub table: String,
    /// Its `CREATE INDEX` statements.
    pub indexes: Vec<String>,
    /// What the table was called before.
    #[serde(default)]
    pub former: Vec<String>,
    /// Columns that were renamed: the name now, and one from before.
    #[serde(default)]
    pub former_columns: Vec<(String, String)>,
}

impl TableSchema {
    /// Whether the table or one of its columns has, or had, another name somewhere.
    #[must_use]
    pub fn has_other_names(&self) -> bool {
        !(self.former.is_empty() && self.former_columns.is_empty())
    }
}

impl Store {
    /// If this database adopts the group's schema: takes in how else tables are called, and creates
    /// those that are missing here. Returns the names of the tables that were created, and whether
    /// any other name was new.
    ///
    /// # Errors
    /// If SQLite fails; nothing is changed. A table whose text is not what it must be, or that
    /// SQLite refuses, is left out and noted.
    pub fn adopt(&mut self, now: Millis, tables: &[TableSchema]) -> Result<(Vec<String>, bool)> {
        if !self.adopts()? {
            return Ok((Vec::new(), false));
        }
        let has_names = tables.iter().any(TableSchema::has_other_names);
        let news = |tx: &mut Tx<'_>| Ok(!tx.new_names(tables)?.is_empty());
        let mut names = has_names && self.read(now, news)?;
        if names {
            self.write(now, |tx| tx.take_in_names(tables))?;
        }
        let missing = self.missing(tables)?;
        if missing.is_empty() {
            return Ok((missing, names));
        }
        let created = self.write(now, |tx| {
            let mut created = Vec::new();
            for table in tables.iter().filter(|table| missing.contains(&table.name)) {
                // Whoever tells this does not know yet that the table has another name here.
                let renamed = tx.renamed_here(&table.name)?;
                if renamed.is_some_and(|now| tables.iter().all(|told| told.name != now)) {
                    continue;
                }
                if tx.try_create_adopted(table)? {
                    created.push(table.name.clone());
                }
            }
            tx.refresh_schema()?;
            for name in &created {
                if tx.table_named(name).is_none_or(|table| table.shape.is_none()) {
                    tx.track_table(name)?;
                }
            }
            if has_names && !tx.new_names(tables)?.is_empty() {
                names = true;
                tx.take_in_names(tables)?;
            }
            tx.review(false)?;
            tx.store_folded_end()?;
            Ok(created)
        })?;
        Ok((created, names))
    }

    /// Whether tables of the group are created here.
    pub fn adopts(&self) -> Result<bool> {
        Ok(super::meta::<i64>(&self.conn, "adopt")?.unwrap_or(0) == 1)
    }

    fn missing(&self, tables: &[TableSchema]) -> Result<Vec<String>> {
        let mut exists = self
            .conn
            .prepare_cached("SELECT 1 FROM main.sqlite_schema WHERE name = ?1 COLLATE NOCASE")?;
        let mut missing = Vec::new();
        for table in tables {
            let mut renamed = false;
            for former in &table.former {
                renamed |= exists.exists([former])?;
            }
            if !renamed && !exists.exists([&table.name])? {
                missing.push(table.name.clone());
            }
        }
        Ok(missing)
    }

    /// The tracked tables of this database, as they are declared.
    pub fn schema(&mut self, now: Millis) -> Result<Vec<TableSchema>> {
        self.folded(now, |tx| {
            let mut schemas = Vec::new();
            for table in tx.tables() {
                let Some(shape) = &table.shape else { continue };
                let mut statement = tx.conn.prepare_cached(
                    "SELECT sql FROM main.sqlite_schema WHERE type = 'index'
                     AND tbl_name = ?1 COLLATE NOCASE AND sql IS NOT NULL ORDER BY name",
                )?;
                let indexes = statement
                    .query_map([&shape.name], |row| row.get(0))?
                    .collect::<rusqlite::Result<Vec<String>>>()?;
                let (former, former_columns) = tx.former_names(&table)?;
                schemas.push(TableSchema {
                    name: shape.name.clone(),
                    table: shape.sql.clone(),
                    indexes,
                    former,
                    former_columns,
                });
            }
            Ok(schemas)
        })
    }
}

impl Tx<'_> {
    /// What a table of this name is called here by now.
    fn renamed_here(&self, name: &str) -> Result<Option<String>> {
        super::optional(
            self.conn
                .prepare_cached(
                    "SELECT t.name FROM __wavesync_former f JOIN __wavesync_table t ON t.num = f.tbl
                     WHERE f.col = -1 AND f.name = ?1 AND t.here",
                )?
                .query_row([name], |row| row.get(0)),
        )
    }

    /// Creates one table, or notes why it cannot be created here; the others do not suffer.
    fn try_create_adopted(&mut self, table: &TableSchema) -> Result<bool> {
        self.conn.execute_batch("SAVEPOINT wavesync_adopt")?;
        let created = self.create_adopted(table);
        match super::end_savepoint(self.conn, "wavesync_adopt", false, created) {
            Ok(()) => Ok(true),
            Err(error) if error.is_fault() => Err(error),
            Err(error) => {
                let message = format!("table {} cannot be created here: {error}", table.name);
                let hint = "create it by hand; its rows are kept meanwhile";
                self.note("schema_refused", message, hint);
                Ok(false)
            }
        }
    }

    fn create_adopted(&mut self, table: &TableSchema) -> Result<()> {
        check_statement(&table.table, &["TABLE"])?;
        self.conn.execute_batch(&table.table)?;
        let created = shape::find(self.conn, &table.name)?;
        let Some(Ok(_)) = created else {
            return Err(Error::protocol(format!(
                "the text of table {} creates something else",
                table.name
            )));
        };
        for index in &table.indexes {
            check_statement(index, &["INDEX", "UNIQUE INDEX"])?;
            check_index_of(index, &table.name)?;
            self.conn.execute_batch(index)?;
        }
        Ok(())
    }
}

/// Accepts one `CREATE TABLE name (…)` or `CREATE INDEX name ON …` and nothing after it.
fn check_statement(sql: &str, kinds: &[&str]) -> Result<()> {
    let refuse = |why: &str| Err(Error::protocol(format!("a schema text is refused: {why}")));
    if sql.len() > limits::SCHEMA_SQL_MAX_BYTES || sql.contains('\0') {
        return refuse("its length or a NUL character");
    }
    let tokens = tokens(sql);
    let word = |at: usize| tokens.get(at).map(|token| token.to_ascii_uppercase());
    let mut at = 1;
    if word(0).as_deref() != Some("CREATE") {
        return refuse("it is not a CREATE statement");
    }
    let mut kind = word(at).unwrap_or_default();
    if kind == "UNIQUE" {
        at += 1;
        kind = format!("UNIQUE {}", word(at).unwrap_or_default());
    }
    if !kinds.contains(&kind.as_str()) {
        return refuse("it creates neither a table nor an index");
    }
    let opens = if kind == "TABLE" { "(" } else { "ON" };
    if word(at + 2).as_deref() != Some(opens) {
        return refuse("it is not of the plain form");
    }
    if tokens.iter().any(|token| token == ";") {
        return refuse("it holds more than one statement");
    }
    // What stands before it is the table's name, or the name of what the index is on.
    let opening = tokens.iter().skip(at + 2).position(|token| token == "(");
    let opening = opening.map_or(tokens.len(), |position| position + at + 2);
    match functions::first_refused(&tokens[opening.min(tokens.len())..], kind == "TABLE") {
        Some(name) => refuse(&format!("it calls {name}, which is not one of SQLite's functions")),
        None => Ok(()),
    }
}

/// An index of one table must not restrict another one, which may be the user's own.
fn check_index_of(sql: &str, table: &str) -> Result<()> {
    let tokens = tokens(sql);
    let on = tokens.iter().position(|token| token.eq_ignore_ascii_case("ON"));
    let named = on.and_then(|on| tokens.get(on + 1)).map(|name| unquoted(name));
    if named.is_some_and(|name| name.eq_ignore_ascii_case(table)) {
        return Ok(());
    }
    Err(Error::protocol(format!("an index of table {table} is on something else")))
}

/// A name without its quotes.
pub(super) fn unquoted(token: &str) -> String {
    let mut inner = token.chars();
    match inner.next().and_then(closing) {
        Some(close) => {
            inner.next_back();
            let doubled: String = [close, close].iter().collect();
            inner.as_str().replace(&doubled, &close.to_string())
        }
        None => token.into(),
    }
}

/// Splits SQL into words, quoted parts and single characters, as far as its callers need:
/// comments are dropped, quoted parts stay whole.
pub(super) fn tokens(sql: &str) -> Vec<String> {
    let chars: Vec<char> = sql.chars().collect();
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(&c) = chars.get(at) {
        let start = at;
        at += 1;
        if c == '-' && chars.get(at) == Some(&'-') {
            while chars.get(at).is_some_and(|c| *c != '\n') {
                at += 1;
            }
            continue;
        }
        if c == '/' && chars.get(at) == Some(&'*') {
            at += 1;
            while at < chars.len() && !(chars[at - 1] == '*' && chars[at] == '/' && at > start + 2)
            {
                at += 1;
            }
            at += 1;
            continue;
        }
        if c.is_whitespace() {
            continue;
        }
        if let Some(close) = closing(c) {
            while let Some(&inner) = chars.get(at) {
                at += 1;
                if inner != close {
                    continue;
                }
                // A doubled quote is a quote inside the name or text.
                if close == ']' || chars.get(at) != Some(&close) {
                    break;
                }
                at += 1;
            }
        } else if is_word(c) {
            while chars.get(at).is_some_and(|c| is_word(*c)) {
                at += 1;
            }
        }
        tokens.push(chars[start..at.min(chars.len())].iter().collect());
    }
    tokens
}

/// The character that ends a quoted part.
fn closing(open: char) -> Option<char> {
    match open {
        '"' | '\'' | '`' => Some(open),
        '[' => Some(']'),
        _ => None,
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == '$' || !c.is_ascii()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_plain_create_statement_is_accepted() {
        let table = |sql| check_statement(sql, &["TABLE"]).is_ok();
        assert!(table("CREATE TABLE t(a PRIMARY KEY, b DEFAULT ';')"));
        assert!(table("CREATE TABLE [odd ; name] (a /* ; */ PRIMARY KEY) -- ; end"));
        assert!(table("create table \"a\"\"b\" (x PRIMARY KEY) STRICT"));
        assert!(table("CREATE TABLE 'it''s; ' (x PRIMARY KEY)"));
        assert!(!table("CREATE TABLE \"a\"\" (x PRIMARY KEY)"), "a quote that does not end");
        assert!(!table("CREATE TABLE t AS SELECT load_extension('x')"));
        assert!(!table("CREATE TABLE t(a); DROP TABLE u"));
        assert!(!table("CREATE TEMP TABLE t(a)"));
        assert!(!table("CREATE VIRTUAL TABLE t USING fts5(a)"));
        assert!(!table("CREATE TRIGGER t AFTER INSERT ON u BEGIN SELECT 1; END"));
        assert!(!table("CREATE VIEW t AS SELECT 1"));
        let index = |sql| check_statement(sql, &["INDEX", "UNIQUE INDEX"]).is_ok();
        assert!(index("CREATE UNIQUE INDEX i ON t(a)") && index("CREATE INDEX i ON t(lower(a))"));
        assert!(!index("CREATE TABLE t(a)"));
    }

    #[test]
    fn only_functions_of_sqlite_are_called_by_a_text() {
        let table = |sql| check_statement(sql, &["TABLE"]).is_ok();
        for plain in [
            "CREATE TABLE t(id INTEGER PRIMARY KEY, v VARCHAR(30) NOT NULL, p DECIMAL(10, 2))",
            "CREATE TABLE t(a PRIMARY KEY CHECK(length(a) > 3 AND a IN ('x', 'y')), b DEFAULT (1))",
            "CREATE TABLE t(a PRIMARY KEY, b DEFAULT (lower(hex(randomblob(16)))), c AS (upper(a)))",
            "CREATE TABLE t(a REFERENCES p(a), b, PRIMARY KEY(a, b), UNIQUE(b), CHECK((a) < (b)))",
            "CREATE TABLE t(a PRIMARY KEY CHECK(CAST(a AS DECIMAL(9, 2)) BETWEEN (1) AND (2)))",
            "CREATE TABLE t(a PRIMARY KEY DEFAULT CURRENT_TIMESTAMP, b DEFAULT 'f(x)') STRICT",
            "CREATE TABLE strange(\"a(b)\" PRIMARY KEY, [c d](5))",
        ] {
            assert!(table(plain), "{plain}");
        }
        for calling in [
            "CREATE TABLE t(a PRIMARY KEY, b DEFAULT (load_extension('x')))",
            "CREATE TABLE t(a PRIMARY KEY, b DEFAULT (\"load_extension\"('x')))",
            "CREATE TABLE t(a PRIMARY KEY, b DEFAULT ([readfile] ('x')))",
            "CREATE TABLE t(a PRIMARY KEY CHECK(writefile('/tmp/x', a) IS NULL))",
            "CREATE TABLE t(a PRIMARY KEY, b AS (wavesync_leave('forget')))",
            "CREATE TABLE t(a PRIMARY KEY CHECK(a REGEXP 'x'))",
            "CREATE TABLE t(a PRIMARY KEY, CHECK(\"and\"(a)))",
            "CREATE TABLE t(a PRIMARY KEY, CHECK(a = 1 OR evil /* */ (a)))",
        ] {
            assert!(!table(calling), "{calling}");
        }
        let index = |sql| check_statement(sql, &["INDEX"]).is_ok();
        assert!(index("CREATE INDEX i ON t(lower(a)) WHERE length(a) > (2)"));
        assert!(!index("CREATE INDEX i ON t(evil(a))"));
        assert!(!index("CREATE INDEX i ON t(a) WHERE evil(a)"));
        assert!(check_index_of("CREATE INDEX i ON \"my t\" (a)", "My T").is_ok());
        assert!(check_index_of("CREATE UNIQUE INDEX i ON users(a)", "t").is_err());
    }
}
