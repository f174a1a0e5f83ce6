//! The shape of a user's table as SQLite tells it, and whether it can be synced.
//!
//! Reads the schema; writes nothing. Must not know clocks or messages.

use rusqlite::{Connection, OptionalExtension};

use std::collections::BTreeSet;

use crate::store::coupling;
use crate::store::foreign::{self, Declared};
use crate::store::sql::ident;
use crate::store::unique::{self, Unique};
use crate::value::Value;
use crate::{Result, limits};

/// How a key is stored in the log and in the clock table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyForm {
    /// `INTEGER PRIMARY KEY`, an alias of the rowid.
    Rowid,
    /// One key column of any other kind: the bare value.
    Single,
    /// Several key columns: packed text, see [`crate::store::key`].
    Composite,
}

/// A column of a user's table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShapeColumn {
    /// Its name as declared.
    pub name: String,
    /// The text of its default, as SQL.
    pub default: Option<String>,
    /// 1 and 1.0 are different values here, so storage classes must be compared.
    pub classes_differ: bool,
    /// What SQLite makes of values in it: `t`ext, `n`umbers, `r`eals, or what they are (`b`).
    pub affinity: u8,
}

/// A table that can be tracked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Its name as declared.
    pub name: String,
    /// How its key is stored.
    pub form: KeyForm,
    /// Key columns in key order.
    pub key: Vec<ShapeColumn>,
    /// Stored columns outside the key, in table order. Generated columns are left out.
    pub columns: Vec<ShapeColumn>,
    /// Some column may compare equal to a value of other bytes (NOCASE, RTRIM, own collations).
    pub collates: bool,
    /// The text that created it.
    pub sql: String,
    /// Each UNIQUE index beside the key.
    pub uniques: Vec<Unique>,
    /// The key's own index, where it takes keys of other bytes for equal.
    pub key_index: Option<Unique>,
    /// A constraint carries an `ON CONFLICT` clause.
    pub resolves: bool,
    /// Its foreign keys.
    pub foreign: Vec<Declared>,
    /// Columns that a declared rule couples: one written is all written.
    pub groups: Vec<BTreeSet<String>>,
}

impl Shape {
    /// `INSERT`, as the engine says it. A table whose constraints carry an `ON CONFLICT` clause
    /// would swallow or delete rows silently, so there the statement overrides it; elsewhere it
    /// must not, because an override also reaches into the application's triggers.
    #[must_use]
    pub fn insert_verb(&self) -> &'static str {
        if self.resolves { "INSERT OR ABORT INTO main." } else { "INSERT INTO main." }
    }

    /// `UPDATE`, likewise.
    #[must_use]
    pub fn update_verb(&self) -> &'static str {
        if self.resolves { "UPDATE OR ABORT main." } else { "UPDATE main." }
    }

    /// What `OR REPLACE` removes rows through that have another key.
    pub fn rivals(&self) -> impl Iterator<Item = &Unique> {
        self.uniques.iter().chain(&self.key_index)
    }

    /// The condition that finds a row by the values of its key, bound from parameter `first` on.
    pub fn key_matches(&self, first: usize) -> Result<String> {
        self.key_equals("", |at| format!("?{}", at + first))
    }

    /// The condition that the key, its columns prefixed, equals one expression per column.
    pub fn key_equals(&self, prefix: &str, value: impl Fn(usize) -> String) -> Result<String> {
        let parts: Result<Vec<String>> = self
            .key
            .iter()
            .enumerate()
            .map(|(at, column)| {
                let (name, value) = (format!("{prefix}{}", ident(&column.name)?), value(at));
                let mut matches = format!("{name} = {value}");
                if self.collates {
                    // The first comparison finds the row by index, the second one by bytes.
                    matches.push_str(&format!(" AND {name} = {value} COLLATE BINARY"));
                }
                if self.form == KeyForm::Composite && column.classes_differ {
                    // To SQLite 1 is 1.0, but their packed keys are two.
                    matches.push_str(&format!(" AND typeof({name}) = typeof({value})"));
                }
                Ok(matches)
            })
            .collect();
        Ok(parts?.join(" AND "))
    }
}

/// Why a table of the database is not synced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The table or view.
    pub name: String,
    /// What it is, and the fix where there is one.
    pub reason: String,
}

/// Every table and view of the main schema that is not SQLite's or ours.
pub fn survey(conn: &Connection) -> Result<Vec<std::result::Result<Shape, Refusal>>> {
    let mut names = conn.prepare_cached(
        "SELECT name, type, coalesce(sql, '') FROM main.sqlite_schema
         WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'
           AND name NOT LIKE '\\_\\_wavesync\\_%' ESCAPE '\\' ORDER BY name",
    )?;
    let rows = names
        .query_map([], |row| Ok((row.get(0)?, row.get::<_, String>(1)?, row.get(2)?)))?
        .collect::<rusqlite::Result<Vec<(String, String, String)>>>()?;
    let virtuals: Vec<(String, bool)> = rows
        .iter()
        .filter(|(_, kind, sql)| kind == "table" && is_virtual(sql))
        .map(|(name, _, sql)| (name.clone(), is_of_sqlite(sql)))
        .collect();
    rows.into_iter()
        .map(|(name, kind, sql)| {
            let refuse =
                |reason: &str| Ok(Err(Refusal { name: name.clone(), reason: reason.into() }));
            if kind == "view" {
                return refuse("a view: it holds no rows of its own");
            }
            if is_virtual(&sql) {
                return refuse("a virtual table: its content is kept by its module");
            }
            if is_shadow(&name, &virtuals) {
                return refuse("a shadow table of a virtual table: kept by its module");
            }
            shape(conn, &name, sql)
        })
        .collect()
}

/// The shape of one table, or why it cannot be tracked; `None` if there is no such table.
pub fn find(conn: &Connection, name: &str) -> Result<Option<std::result::Result<Shape, Refusal>>> {
    let found = survey(conn)?.into_iter().find(|entry| {
        let found = match entry {
            Ok(shape) => &shape.name,
            Err(refusal) => &refusal.name,
        };
        found.eq_ignore_ascii_case(name)
    });
    Ok(found)
}

fn is_virtual(sql: &str) -> bool {
    let mut words = sql.split_ascii_whitespace();
    words.next().is_some_and(|word| word.eq_ignore_ascii_case("create"))
        && words.next().is_some_and(|word| word.eq_ignore_ascii_case("virtual"))
}

/// Whether a virtual table is one of SQLite's own modules that keep shadow tables.
fn is_of_sqlite(sql: &str) -> bool {
    const MODULES: [&str; 6] = ["fts3", "fts4", "fts5", "rtree", "rtree_i32", "geopoly"];
    let mut words = sql.split(|c: char| c.is_ascii_whitespace() || c == '(');
    let using = words.any(|word| word.eq_ignore_ascii_case("using"));
    let module = words.find(|word| !word.is_empty());
    using && module.is_some_and(|module| MODULES.iter().any(|own| module.eq_ignore_ascii_case(own)))
}

/// Shadow tables are named `<virtual table>_<suffix>`; the suffixes are those of SQLite's own
/// modules, so that a user's `notes_archive` beside an FTS table `notes` stays syncable. What suffixes
/// other modules use is not known: every table of such a name is taken for theirs.
fn is_shadow(name: &str, virtuals: &[(String, bool)]) -> bool {
    const SUFFIXES: [&str; 12] = [
        "data", "idx", "content", "docsize", "config", "segments", "segdir", "stat", "node",
        "parent", "rowid", "info",
    ];
    virtuals.iter().any(|(table, of_sqlite)| {
        let Some(head) = name.get(..table.len()) else { return false };
        let suffix = name.get(table.len() + 1..).unwrap_or_default();
        head.eq_ignore_ascii_case(table)
            && name.as_bytes().get(table.len()) == Some(&b'_')
            && (!of_sqlite || SUFFIXES.contains(&suffix))
    })
}

fn shape(
    conn: &Connection,
    name: &str,
    sql: String,
) -> Result<std::result::Result<Shape, Refusal>> {
    struct Info {
        column: ShapeColumn,
        key: i64,
        hidden: i64,
    }
    let strict = sql.rsplit(')').next().is_some_and(|tail| {
        tail.to_ascii_lowercase().split(|c: char| !c.is_alphanumeric()).any(|w| w == "strict")
    });
    let mut statement = conn.prepare_cached(
        "SELECT name, coalesce(type, ''), dflt_value, pk, hidden
         FROM pragma_table_xinfo(?1, 'main') ORDER BY cid",
    )?;
    let infos = statement
        .query_map([name], |row| {
            let declared: String = row.get(1)?;
            Ok(Info {
                column: ShapeColumn {
                    name: row.get(0)?,
                    default: row.get(2)?,
                    classes_differ: classes_differ(&declared, strict),
                    affinity: affinity(&declared, strict),
                },
                key: row.get(3)?,
                hidden: row.get(4)?,
            })
        })?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    let mut key: Vec<(i64, ShapeColumn)> = infos
        .iter()
        .filter(|info| info.key > 0)
        .map(|info| (info.key, info.column.clone()))
        .collect();
    key.sort_by_key(|(position, _)| *position);
    let key: Vec<ShapeColumn> = key.into_iter().map(|(_, column)| column).collect();
    if key.is_empty() {
        let reason = format!(
            "no PRIMARY KEY, so its rows have no name that other replicas could know; \
             rebuild it with one, for example \
             CREATE TABLE new(id INTEGER PRIMARY KEY, …); INSERT INTO new SELECT rowid, * FROM {}; \
             or add a TEXT PRIMARY KEY",
            ident(name)?
        );
        return Ok(Err(Refusal { name: name.into(), reason }));
    }
    // A packed key has the bytes of its texts as SQLite has them.
    let encoding: String =
        conn.prepare_cached("PRAGMA main.encoding")?.query_row([], |row| row.get(0))?;
    if key.len() > 1 && encoding != "UTF-8" {
        let reason = format!(
            "a key of several columns in a database in {encoding}: only one in UTF-8 can sync it"
        );
        return Ok(Err(Refusal { name: name.into(), reason }));
    }
    let columns = infos.iter().map(|info| info.column.name.as_str());
    if let Some(reason) = cannot_travel(name, columns, key.len()) {
        return Ok(Err(Refusal { name: name.into(), reason }));
    }
    if let Some(missing) = only_its_own_program_writes(conn, name)? {
        let reason = format!(
            "only its own program can write it, because an index needs what no other one has \
             ({missing}); use an index without it"
        );
        return Ok(Err(Refusal { name: name.into(), reason }));
    }
    let pk_index: Option<i64> = conn
        .prepare_cached("SELECT 1 FROM pragma_index_list(?1, 'main') WHERE origin = 'pk'")?
        .query_row([name], |row| row.get(0))
        .optional()?;
    let form = match (key.len(), pk_index) {
        (1, None) => KeyForm::Rowid,
        (1, Some(_)) => KeyForm::Single,
        _ => KeyForm::Composite,
    };
    let columns: Vec<ShapeColumn> = infos
        .into_iter()
        .filter(|info| info.key == 0 && info.hidden == 0)
        .map(|info| info.column)
        .collect();
    let collates = sql.to_ascii_lowercase().contains("collate");
    let uniques = unique::indexes(conn, name, false)?;
    let composite = form == KeyForm::Composite && key.iter().any(|column| column.classes_differ);
    let key_index = match form {
        KeyForm::Single | KeyForm::Composite if collates || composite => {
            unique::indexes(conn, name, true)?.pop()
        }
        _ => None,
    };
    let foreign = foreign::declared(conn, name)?;
    let groups = coupling::groups(conn, name, &sql, &columns, &foreign)?;
    let resolves = coupling::has_phrase(&sql, ["on", "conflict"]);
    Ok(Ok(Shape {
        name: name.into(),
        form,
        key,
        columns,
        collates,
        sql,
        uniques,
        key_index,
        resolves,
        foreign,
        groups,
    }))
}

/// The value of a column's DEFAULT, as `pragma_table_xinfo` shows it; `None` if only its own program can
/// tell. A bare word, or one in double quotes, is text.
pub fn default_value(conn: &Connection, sql: &str) -> Option<Value> {
    let evaluated =
        conn.query_row(&format!("SELECT {sql}"), [], |row| Ok(Value::from_ref(row.get_ref(0)?)));
    let word = |text: &str| text.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '$');
    let quoted =
        |text: &str| Some(text.strip_prefix('"')?.strip_suffix('"')?.replace("\"\"", "\""));
    match evaluated {
        Ok(value) => Some(value),
        Err(_) if word(sql) => Some(Value::text(sql)),
        Err(_) => quoted(sql).map(|text| Value::text(&text)),
    }
}

/// What this connection lacks to change the indexes of a table: a function or a collation that the
/// application registers on connections of its own.
fn only_its_own_program_writes(conn: &Connection, name: &str) -> Result<Option<String>> {
    // With a condition: without one SQLite empties the indexes without looking at them.
    let delete = format!("DELETE FROM main.{} WHERE ?1", ident(name)?);
    let Err(error) = conn.prepare(&delete) else { return Ok(None) };
    let rusqlite::Error::SqliteFailure(failure, Some(message)) = error else { return Ok(None) };
    // The words with which SQLite says so, of a function in an index and of a collation.
    let lacking = ["unknown function: ", "no such collation sequence: "];
    let own = failure.extended_code & 0xff == rusqlite::ffi::SQLITE_ERROR
        && lacking.iter().any(|start| message.starts_with(start));
    Ok(own.then_some(message))
}

/// Why a table does not fit into a message: other members would refuse it.
fn cannot_travel<'a>(
    table: &str,
    mut columns: impl Iterator<Item = &'a str>,
    key_columns: usize,
) -> Option<String> {
    let fits = |name: &str| (1..=limits::NAME_MAX_BYTES).contains(&name.len());
    let (longest, most) = (limits::NAME_MAX_BYTES, limits::KEY_COLUMNS_MAX);
    if !fits(table) {
        return Some(format!("its name is empty or longer than {longest} bytes; rename it"));
    }
    let ours = |name: &str| name.to_ascii_lowercase().starts_with("__wavesync_");
    if columns.any(|column| !fits(column) || ours(column)) {
        return Some(format!(
            "the name of a column is empty, longer than {longest} bytes or begins with \
             __wavesync_; rename it"
        ));
    }
    (key_columns > most).then(|| {
        format!(
            "its PRIMARY KEY has {key_columns} columns, more than {most}; give it a shorter one"
        )
    })
}

/// Only columns without affinity keep 1 and 1.0 apart (<https://www.sqlite.org/datatype3.html>).
fn classes_differ(declared: &str, strict: bool) -> bool {
    if strict { declared.eq_ignore_ascii_case("ANY") } else { affinity(declared, strict) == b'b' }
}

/// See [`ShapeColumn::affinity`].
fn affinity(declared: &str, strict: bool) -> u8 {
    let declared = declared.to_ascii_uppercase();
    let named = |part| declared.contains(part);
    match declared.as_str() {
        "ANY" if strict => b'b',
        _ if named("INT") => b'n',
        _ if ["CHAR", "CLOB", "TEXT"].into_iter().any(named) => b't',
        _ if declared.is_empty() || named("BLOB") => b'b',
        _ if ["REAL", "FLOA", "DOUB"].into_iter().any(named) => b'r',
        _ => b'n',
    }
}
