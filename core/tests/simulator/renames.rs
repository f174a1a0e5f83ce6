//! The next version of an application calls tables and columns something else, and its users get it
//! one after another: each replica renames at a time of its own, whatever the others have.

use rusqlite::Connection;
use wavesync_core::value::Value;

use crate::dice::Dice;
use crate::image::{Image, Row, Table};
use crate::oracle::Check;
use crate::workload::{has_column, has_table};
use crate::world::{Plan, World};

/// Seeds that are run when nothing else is asked for (`RENAME_SEEDS`).
const SEEDS: u64 = 120;
/// What comes behind a former name.
const NEW: &str = "_anew";
/// Tables, and columns of tables, that get another name.
const RENAMED: [(&str, Option<&str>); 8] = [
    ("txt", None),
    ("one", None),
    ("txt", Some("k")),
    ("txt", Some("c")),
    ("num", Some("a")),
    ("pair", Some("v")),
    ("pair", Some("w")),
    ("safe", Some("b")),
];

/// A run in which these happen.
pub fn plan(seed: u64) -> Plan {
    Plan {
        renames: true,
        copies: false,
        upheaval: false,
        contended: false,
        schemas_meet: true,
        ..Plan::new(seed)
    }
}

#[test]
fn what_is_renamed_here_and_later_there_stays_one() {
    let failed = crate::failures(crate::number("RENAME_SEEDS").unwrap_or(SEEDS), plan);
    assert!(failed.is_empty(), "{failed:?}");
}

/// The first name of something.
pub fn former(name: &str) -> &str {
    name.strip_suffix(NEW).unwrap_or(name)
}

/// The name of a table as this replica has it now.
pub fn table(conn: &Connection, name: &str) -> String {
    let new = format!("{name}{NEW}");
    let sql = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?1";
    let renamed = conn.prepare_cached(sql).unwrap().exists([&new]).unwrap();
    if renamed { new } else { name.to_string() }
}

/// SQL about one table with the names that this replica has now: whole words outside of quotes.
pub fn spoken(conn: &Connection, name: &str, sql: &str) -> String {
    let here = table(conn, name);
    let mut statement = conn.prepare_cached("SELECT name FROM pragma_table_info(?1)").unwrap();
    let columns = statement.query_map([&here], |row| row.get::<_, String>(0)).unwrap();
    let renamed = columns.map(Result::unwrap).chain([here.clone()]).filter(|n| n.ends_with(NEW));
    let renamed: Vec<String> = renamed.collect();
    let mut spoken = String::new();
    for (at, part) in sql.split('\'').enumerate() {
        if at % 2 == 1 {
            spoken.push_str(&format!("'{part}'"));
            continue;
        }
        let mut rest = part;
        while !rest.is_empty() {
            let is_letter = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let other = rest.find(|c| !is_letter(c)).unwrap_or(rest.len());
            let (word, tail) = rest.split_at(other.max(1));
            let new = renamed.iter().find(|new| former(new) == word);
            spoken.push_str(new.map_or(word, |new| new));
            rest = tail;
        }
    }
    spoken
}

fn rename(conn: &Connection, (name, column): (&str, Option<&str>)) -> Option<String> {
    let here = table(conn, name);
    match column {
        None if here == name && has_table(conn, name) => {
            Some(format!("ALTER TABLE {name} RENAME TO {name}{NEW}"))
        }
        Some(column) if has_column(conn, &here, column) => {
            Some(format!("ALTER TABLE {here} RENAME COLUMN {column} TO {column}{NEW}"))
        }
        _ => None,
    }
}

/// Something gets its other name, in one transaction with other changes or alone.
pub fn act(conn: &Connection, dice: &mut Dice) -> String {
    let what = RENAMED[dice.index(RENAMED.len())];
    let Some(mut script) = rename(conn, what) else { return String::new() };
    if dice.percent(30) {
        script = format!("{}; {script}", crate::workload::any_statement(conn, what.0, dice));
    }
    let script = format!("BEGIN; {script}; COMMIT");
    if let Err(error) = conn.execute_batch(&script) {
        assert!(error.to_string().contains("constraint"), "{script}: {error}");
        conn.execute_batch("ROLLBACK").unwrap();
    }
    script
}

/// At last everybody has the new version.
pub fn complete(conn: &Connection) {
    for what in RENAMED {
        if let Some(script) = rename(conn, what) {
            conn.execute_batch(&script).unwrap();
        }
    }
}

/// A replica as if no column had ever been renamed.
pub fn united(image: &Image) -> Image {
    let mut image = image.clone();
    for table in image.tables.values_mut() {
        table.rows.values_mut().for_each(unite_columns);
        table.held.iter_mut().for_each(|(_, row)| unite_columns(row));
    }
    image
}

fn unite_columns(row: &mut Row) {
    for (column, dot) in std::mem::take(&mut row.cells) {
        let known = row.cells.entry(former(&column).to_string()).or_insert(dot);
        *known = dot.max(*known);
    }
}

/// A table, and what waits for it under its other name.
pub fn tables<'a>(image: &'a Image, name: &str) -> Vec<&'a Table> {
    let tables = image.tables.iter().filter(|(known, _)| former(known) == former(name));
    tables.map(|(_, table)| table).collect()
}

/// Renames here and there, then lets everybody know.
pub fn happen(world: &mut World, at: usize) -> Check {
    let mut script = String::new();
    world.application(at, |conn, dice| script = act(conn, dice));
    world.say(|| format!("r{at} {script}"));
    if script.is_empty() || world.dice.percent(40) {
        return Ok(());
    }
    world.feed(at, wavesync_core::machine::Input::Committed)
}

/// What a cell of a table shows, under whatever name.
pub fn shown<'a>(image: &'a Image, name: &str, key: &Value, column: &str) -> Option<&'a Value> {
    let mut tables =
        image.tables.iter().filter(|(known, table)| former(known) == name && table.exists);
    let columns = tables.next()?.1.shown.get(key)?;
    columns.iter().find(|(known, _)| former(known) == column).map(|(_, value)| value)
}
