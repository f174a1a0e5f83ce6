//! Tables whose constraints contend: rows of two replicas that cannot both be shown. Which of them
//! is parked must be the same everywhere, for a reason, and only as long as the reason stands.

use rusqlite::Connection;

use crate::dice::Dice;
use crate::oracle::{Check, fail};
use crate::world::World;

/// Names of the tables here.
pub const NAMES: [&str; 4] = ["uni", "par", "kid", "chk"];

const TABLES: &str = "
    CREATE TABLE uni(k TEXT PRIMARY KEY NOT NULL, n TEXT COLLATE NOCASE UNIQUE, v);
    CREATE TABLE par(k TEXT PRIMARY KEY NOT NULL, n INTEGER UNIQUE);
    CREATE TABLE kid(k TEXT PRIMARY KEY NOT NULL, p TEXT REFERENCES par(k) ON DELETE CASCADE, v);";
/// The same table, stricter at some replicas.
const LOOSE: &str = "CREATE TABLE chk(k TEXT PRIMARY KEY NOT NULL, a, b, CHECK (a < b))";
const STRICT: &str = "CREATE TABLE chk(k TEXT PRIMARY KEY NOT NULL, a, b, CHECK (a < b), \
                      CHECK (b <> 13))";

/// Rows that everybody has from the start.
const ROWS: &str =
    "INSERT INTO par VALUES('k0', 0), ('k1', 1); INSERT INTO kid VALUES('k0', 'k1', 1);
                    INSERT INTO uni VALUES('k0', 'n0', 1)";

/// Creates the tables.
pub fn create(conn: &Connection, dice: &mut Dice) {
    conn.execute_batch(TABLES).unwrap();
    conn.execute_batch(ROWS).unwrap();
    conn.execute_batch(if dice.percent(40) { STRICT } else { LOOSE }).unwrap();
}

fn key(dice: &mut Dice) -> String {
    format!("'k{}'", dice.below(4))
}

fn name(dice: &mut Dice) -> &'static str {
    ["NULL", "'n0'", "'n1'", "'N1'", "'n2'"][dice.index(5)]
}

fn row(table: usize, dice: &mut Dice) -> (&'static str, [String; 2]) {
    match table {
        0 => ("n, v", [name(dice).into(), dice.below(100).to_string()]),
        1 => ("n", [dice.below(4).to_string(), String::new()]),
        2 => {
            let parent = if dice.percent(20) { "NULL".into() } else { key(dice) };
            ("p, v", [parent, dice.below(100).to_string()])
        }
        _ => {
            let low = dice.below(10);
            let high = if dice.percent(30) { 13 } else { dice.within(8, 20) };
            ("a, b", [low.to_string(), high.to_string()])
        }
    }
}

fn statement(dice: &mut Dice) -> String {
    let table = dice.index(NAMES.len());
    let (columns, [one, two]) = row(table, dice);
    let (table, key) = (NAMES[table], key(dice));
    let values = if two.is_empty() { one.clone() } else { format!("{one}, {two}") };
    let (first, rest) = columns.split_at(1);
    match dice.below(12) {
        0..=3 => format!("INSERT OR IGNORE INTO {table}(k, {columns}) VALUES({key}, {values})"),
        4..=5 => format!("INSERT OR REPLACE INTO {table}(k, {columns}) VALUES({key}, {values})"),
        6..=7 => format!("UPDATE OR IGNORE {table} SET {first} = {one} WHERE k = {key}"),
        8 => format!("UPDATE OR REPLACE {table} SET {first} = {one} WHERE k = {key}"),
        9 if !rest.is_empty() => {
            let second = rest.trim_start_matches(", ");
            format!("UPDATE OR IGNORE {table} SET {second} = {two} WHERE k = {key}")
        }
        _ => format!("DELETE FROM {table} WHERE k = {key}"),
    }
}

/// One transaction of the application. Returns what was run.
pub fn transaction(conn: &Connection, dice: &mut Dice) -> String {
    let count = if dice.percent(50) { dice.within(2, 5) } else { 1 };
    let all: Vec<String> = (0..count).map(|_| statement(dice)).collect();
    conn.execute_batch("BEGIN").unwrap();
    for one in &all {
        if let Err(error) = conn.execute_batch(one) {
            assert!(error.to_string().contains("constraint"), "{one}: {error}");
        }
    }
    conn.execute_batch("COMMIT").unwrap();
    all.join("; ")
}

/// Foreign keys hold in what the application sees, at any time.
pub fn keys_hold(world: &World, at: usize) -> Check {
    match broken_keys(world.replicas[at].conn()).first() {
        Some(row) => fail("foreign keys", format!("replica {at}: {row}")),
        None => Ok(()),
    }
}

fn broken_keys(conn: &Connection) -> Vec<String> {
    let sql = "SELECT \"table\" || ' ' || rowid || ' has no ' || parent \
               FROM pragma_foreign_key_check";
    let mut statement = conn.prepare_cached(sql).unwrap();
    let rows = statement.query_map([], |row| row.get(0)).unwrap();
    rows.collect::<Result<_, _>>().unwrap()
}

/// After quiescence: the same rows are shown wherever the tables are the same, and whatever is
/// parked cannot be shown beside them.
pub fn agreed(world: &World) -> Check {
    let images = world.images();
    let text = |at: usize, name: &str| -> Option<String> {
        let sql = "SELECT sql FROM sqlite_schema WHERE type = 'table' AND name = ?1";
        world.replicas[at].conn().query_row(sql, [name], |row| row.get(0)).ok()
    };
    for name in NAMES {
        for at in 0..images.len() {
            let Some(own) = images[at].tables.get(name).filter(|table| table.local) else {
                continue;
            };
            let other = (0..at).find(|other| text(*other, name) == text(at, name));
            let theirs = other.and_then(|other| images[other].tables.get(name));
            if let Some(theirs) = theirs.filter(|theirs| theirs.shown != own.shown) {
                let text = format!(
                    "{name} at {other:?} and {at}:\n  {:?}\n  {:?}",
                    theirs.shown, own.shown
                );
                return fail("convergence", text);
            }
            if let Some(row) = parked_for_nothing(world, at, name) {
                return fail("convergence", format!("replica {at}, {name}: {row}"));
            }
        }
    }
    Ok(())
}

/// A parked row of a table that could be inserted as it is.
fn parked_for_nothing(world: &World, at: usize, name: &str) -> Option<String> {
    let conn = world.replicas[at].conn();
    let image = world.image(at);
    let table = &image.tables[name];
    for (key, row) in table.rows.iter().filter(|(_, row)| row.alive() && !row.shown()) {
        let Some((kind, _, values)) = &row.parked else { continue };
        let columns: Vec<&String> = values.keys().collect();
        let bound = std::iter::once(key).chain(values.values());
        let names: String = columns.iter().map(|column| format!(", {column}")).collect();
        let places = ", ?".repeat(columns.len());
        conn.execute_batch("SAVEPOINT trial").unwrap();
        let sql = format!("INSERT INTO {name}(k{names}) VALUES(?{places})");
        let stands = conn.execute(&sql, rusqlite::params_from_iter(bound)).is_ok()
            && broken_keys(conn).is_empty();
        conn.execute_batch("ROLLBACK TO trial; RELEASE trial").unwrap();
        if stands {
            return Some(format!("{key:?} is parked ({kind}) for nothing: {row:?}"));
        }
    }
    None
}
