//! What applications do: rows that were there before, transactions of every kind, schema changes.

use rusqlite::Connection;
use wavesync_core::value::Value;

use crate::contended;
use crate::dice::Dice;
use crate::network::Event;
use crate::oracle::Failure;
use crate::renames::{self, spoken};
use crate::world::{Clocks, World};

/// A table: its name, its text, its key columns, its other columns, and a column that some
/// replicas get later.
struct Spec {
    name: &'static str,
    sql: &'static str,
    columns: &'static [&'static str],
    later: Option<(&'static str, &'static str)>,
    key: fn(&mut Dice) -> Vec<(&'static str, String)>,
}

const KEYS: u64 = 6;

const TABLES: [Spec; 7] = [
    Spec {
        name: "num",
        sql: "CREATE TABLE num(id INTEGER PRIMARY KEY, a, b)",
        columns: &["a", "b"],
        later: None,
        key: |dice| vec![("id", dice.within(1, KEYS).to_string())],
    },
    Spec {
        name: "one",
        sql: "CREATE TABLE one(id INTEGER PRIMARY KEY, v TEXT)",
        columns: &["v"],
        later: None,
        key: |dice| vec![("id", dice.within(1, KEYS).to_string())],
    },
    Spec {
        name: "txt",
        sql: "CREATE TABLE txt(k TEXT PRIMARY KEY NOT NULL, a INTEGER, b TEXT DEFAULT 'b', c)",
        columns: &["a", "b", "c"],
        later: Some(("z", "z DEFAULT 7")),
        key: |dice| vec![("k", format!("'k{}'", dice.below(KEYS)))],
    },
    Spec {
        name: "pair",
        sql: "CREATE TABLE pair(x INTEGER NOT NULL, y TEXT NOT NULL, v, w NOT NULL DEFAULT 1, \
              PRIMARY KEY(x, y)) WITHOUT ROWID",
        columns: &["v", "w"],
        later: None,
        key: |dice| vec![("x", dice.below(3).to_string()), ("y", format!("'y{}'", dice.below(3)))],
    },
    Spec {
        name: "keys",
        sql: "CREATE TABLE keys(k TEXT PRIMARY KEY NOT NULL) WITHOUT ROWID",
        columns: &[],
        later: None,
        key: |dice| vec![("k", format!("'k{}'", dice.below(KEYS)))],
    },
    Spec {
        name: "late",
        sql: "CREATE TABLE IF NOT EXISTS late(k TEXT PRIMARY KEY NOT NULL, v, w)",
        columns: &["v", "w"],
        later: None,
        key: |dice| vec![("k", format!("'k{}'", dice.below(KEYS)))],
    },
    Spec {
        name: "later",
        sql: "CREATE TABLE IF NOT EXISTS later(id INTEGER PRIMARY KEY, v)",
        columns: &["v"],
        later: None,
        key: |dice| vec![("id", dice.within(1, KEYS).to_string())],
    },
];
/// The table in which nothing is ever deleted: no accepted write may get lost there.
const SAFE: &str = "CREATE TABLE safe(k TEXT PRIMARY KEY NOT NULL, a, b)";

/// Tables and rows that are there before a replica joins.
pub fn existing_rows(world: &mut World, conn: &Connection, at: usize) {
    if at > 0 && world.dice.percent(40) {
        return;
    }
    conn.execute_batch(SAFE).unwrap();
    if world.plan.contended {
        contended::create(conn, &mut world.dice);
    }
    for spec in &TABLES {
        if spec.name.starts_with("late") && !world.dice.percent(35) {
            continue;
        }
        conn.execute_batch(spec.sql).unwrap();
        if let Some((_, column)) = spec.later
            && world.dice.percent(35)
        {
            conn.execute_batch(&format!("ALTER TABLE {} ADD COLUMN {column}", spec.name)).unwrap();
        }
        if world.dice.percent(50) {
            // The same rows at everyone who has any: the same import, twice.
            let mut dice = Dice::new(world.plan.seed ^ 77);
            for _ in 0..dice.within(1, 9) {
                let sql = insert("INSERT OR IGNORE", spec, spec.columns, &mut dice);
                conn.execute_batch(&sql).unwrap();
            }
        }
        if world.dice.percent(20) {
            // And rows that differ.
            let sql = insert("INSERT OR IGNORE", spec, spec.columns, &mut world.dice);
            conn.execute_batch(&sql).unwrap();
        }
    }
}

fn value(dice: &mut Dice) -> String {
    match dice.below(8) {
        0 => "NULL".into(),
        1 => "1".into(),
        2 => "1.5".into(),
        3 => "x'00ff'".into(),
        _ => format!("'v{}'", dice.below(1_000)),
    }
}

fn filled(column: &str, dice: &mut Dice) -> String {
    // `w` may be NOT NULL.
    if column == "w" { dice.below(100).to_string() } else { value(dice) }
}

fn insert(verb: &str, spec: &Spec, columns: &[&str], dice: &mut Dice) -> String {
    let key = (spec.key)(dice);
    let names: Vec<&str> =
        key.iter().map(|(name, _)| *name).chain(columns.iter().copied()).collect();
    let mut values: Vec<String> = key.iter().map(|(_, value)| value.clone()).collect();
    values.extend(columns.iter().map(|column| filled(column, dice)));
    format!("{verb} INTO {}({}) VALUES({})", spec.name, names.join(", "), values.join(", "))
}

fn matches(spec: &Spec, dice: &mut Dice) -> String {
    let parts: Vec<String> =
        (spec.key)(dice).iter().map(|(name, value)| format!("{name} = {value}")).collect();
    parts.join(" AND ")
}

fn some_of<'a>(columns: &[&'a str], dice: &mut Dice) -> Vec<&'a str> {
    let most = dice.within(1, columns.len().max(1) as u64) as usize;
    let start = dice.index(columns.len().max(1));
    let turned = columns.iter().cycle().skip(start).take(most.min(columns.len()));
    turned.copied().collect()
}

fn statement(spec: &Spec, columns: &[&str], dice: &mut Dice) -> String {
    let set = |columns: Vec<&str>, dice: &mut Dice| {
        let parts: Vec<String> =
            columns.iter().map(|column| format!("{column} = {}", filled(column, dice))).collect();
        parts.join(", ")
    };
    let update = !columns.is_empty();
    match dice.below(20) {
        0..=5 => insert("INSERT OR IGNORE", spec, columns, dice),
        6 => {
            let some = some_of(columns, dice);
            insert("INSERT OR IGNORE", spec, &some, dice)
        }
        7..=10 if update => {
            let set = set(some_of(columns, dice), dice);
            format!("UPDATE {} SET {set} WHERE {}", spec.name, matches(spec, dice))
        }
        11 if update => format!("UPDATE {} SET {}", spec.name, set(some_of(columns, dice), dice)),
        12..=14 => format!("DELETE FROM {} WHERE {}", spec.name, matches(spec, dice)),
        15 => insert("INSERT OR REPLACE", spec, columns, dice),
        16 if update => {
            let insert = insert("INSERT", spec, columns, dice);
            format!("{insert} ON CONFLICT DO UPDATE SET {}", set(some_of(columns, dice), dice))
        }
        17..=18 => {
            let key: Vec<String> =
                (spec.key)(dice).iter().map(|(name, value)| format!("{name} = {value}")).collect();
            let verb = if dice.percent(50) { "IGNORE" } else { "REPLACE" };
            let set = key.join(", ");
            format!("UPDATE OR {verb} {} SET {set} WHERE {}", spec.name, matches(spec, dice))
        }
        _ => {
            let (gone, back) =
                (matches(spec, dice), insert("INSERT OR IGNORE", spec, columns, dice));
            format!("DELETE FROM {} WHERE {gone}; {back}", spec.name)
        }
    }
}

/// Names of the tables here, but for the one without deletes.
pub fn names() -> impl Iterator<Item = &'static str> {
    TABLES.iter().map(|spec| spec.name)
}

pub fn has_table(conn: &Connection, name: &str) -> bool {
    let sql = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?1";
    conn.prepare(sql).unwrap().exists([renames::table(conn, name)]).unwrap()
}

pub fn has_column(conn: &Connection, table: &str, column: &str) -> bool {
    let sql = "SELECT 1 FROM pragma_table_info(?1) WHERE name = ?2";
    conn.prepare(sql).unwrap().exists([table, column]).unwrap()
}

fn columns_here(conn: &Connection, spec: &Spec) -> Vec<&'static str> {
    let mut columns = spec.columns.to_vec();
    if let Some((name, _)) = spec.later
        && has_column(conn, &renames::table(conn, spec.name), name)
    {
        columns.push(name);
    }
    columns
}

/// One transaction of an application, or a schema change. Returns what was run.
pub fn transaction(conn: &Connection, dice: &mut Dice) -> String {
    let specs: Vec<&Spec> = TABLES.iter().filter(|spec| has_table(conn, spec.name)).collect();
    if specs.is_empty() {
        return String::new();
    }
    let mut script = Vec::new();
    let several = dice.percent(40);
    let count = if several { dice.within(2, 8) } else { 1 };
    for _ in 0..count {
        let spec = specs[dice.index(specs.len())];
        let columns = columns_here(conn, spec);
        let one = spoken(conn, spec.name, &statement(spec, &columns, dice));
        if several && dice.percent(15) {
            let undo = if dice.percent(60) { "ROLLBACK TO s; RELEASE s" } else { "RELEASE s" };
            script.push(format!("SAVEPOINT s; {one}; {undo}"));
        } else {
            script.push(one);
        }
    }
    let mut script = script.join("; ");
    if several {
        let end = if dice.percent(20) { "ROLLBACK" } else { "COMMIT" };
        script = format!("BEGIN; {script}; {end}");
    }
    if let Err(error) = conn.execute_batch(&script) {
        assert!(error.to_string().contains("constraint"), "{script}: {error}");
        if !conn.is_autocommit() {
            conn.execute_batch("ROLLBACK").unwrap();
        }
    }
    script
}

/// One statement about a table that is here.
pub fn any_statement(conn: &Connection, name: &str, dice: &mut Dice) -> String {
    let Some(spec) = TABLES.iter().find(|spec| spec.name == name) else {
        return "SELECT 1".to_string();
    };
    spoken(conn, name, &statement(spec, &columns_here(conn, spec), dice))
}

/// A table or a column comes; the application uses it before the engine has noticed.
fn grow(conn: &Connection, dice: &mut Dice, use_it: bool) -> String {
    if !has_table(conn, "safe") {
        return String::new();
    }
    let spec = &TABLES[[2, 5, 6][dice.index(3)]];
    let mut script = match spec.later {
        Some((_, text))
            if has_table(conn, spec.name)
                && columns_here(conn, spec).len() == spec.columns.len() =>
        {
            format!("ALTER TABLE {} ADD COLUMN {text}", spec.name)
        }
        None if !has_table(conn, spec.name) => spec.sql.to_string(),
        _ => return String::new(),
    };
    let columns: Vec<&str> =
        spec.columns.iter().copied().chain(spec.later.map(|(name, _)| name)).collect();
    if spec.later.is_some() && dice.percent(30) {
        // A change that the old trigger logs, not yet folded when the column comes.
        script = format!("{}; {script}", statement(spec, spec.columns, dice));
    }
    if use_it {
        for _ in 0..dice.within(1, 3) {
            script = format!("{script}; {}", statement(spec, &columns, dice));
        }
    }
    let script = spoken(conn, spec.name, &script);
    let script = format!("BEGIN; {script}; COMMIT");
    if let Err(error) = conn.execute_batch(&script) {
        assert!(error.to_string().contains("constraint"), "{script}: {error}");
        conn.execute_batch("ROLLBACK").unwrap();
    }
    script
}

/// Makes a table anew, with the same rows, in one transaction. Returns what was run.
pub fn rebuild(conn: &Connection, dice: &mut Dice) -> String {
    let specs: Vec<&Spec> = TABLES.iter().filter(|spec| has_table(conn, spec.name)).collect();
    if specs.is_empty() {
        return String::new();
    }
    let spec = specs[dice.index(specs.len())];
    let name = spec.name;
    let create = spec.sql.replacen(&format!(" {name}("), " made_anew(", 1);
    let column = match spec.later {
        Some((_, text)) if columns_here(conn, spec).len() > spec.columns.len() => {
            format!("ALTER TABLE made_anew ADD COLUMN {text};")
        }
        _ => String::new(),
    };
    let script = format!(
        "BEGIN; {create}; {column} INSERT INTO made_anew SELECT * FROM {name}; DROP TABLE {name}; \
         ALTER TABLE made_anew RENAME TO {name}; COMMIT"
    );
    conn.execute_batch(&script).unwrap();
    script
}

/// A write to the table without deletes, remembered for the oracle.
fn safe_write(world: &mut World, at: usize) {
    if !has_table(world.replicas[at].conn(), "safe") {
        return;
    }
    world.counter += 1;
    let number = world.counter as i64;
    let mut wrote: Vec<(String, String)> = Vec::new();
    world.application(at, |conn, dice| {
        let key = format!("k{}", dice.below(4));
        let all = ["a", "b"];
        let insert = "INSERT OR IGNORE INTO safe(k, a, b) VALUES(?1, ?2, ?2)";
        let insert = spoken(conn, "safe", insert);
        let columns = if conn.execute(&insert, rusqlite::params![key, number]).unwrap() == 1 {
            all.to_vec()
        } else {
            let some = some_of(&all, dice);
            for column in &some {
                let sql = format!("UPDATE safe SET {column} = ?2 WHERE k = ?1");
                let sql = spoken(conn, "safe", &sql);
                conn.execute(&sql, rusqlite::params![key, number]).unwrap();
            }
            some
        };
        wrote.extend(columns.iter().map(|column| (key.clone(), (*column).to_string())));
    });
    world.say(|| format!("r{at} safe {number} {wrote:?}"));
    for cell in wrote {
        world.accepted.insert(cell, (world.now, Value::Integer(number)));
    }
}

fn tell(world: &mut World, at: usize) -> Result<(), Failure> {
    match world.dice.below(10) {
        0 => Ok(()),
        1 => {
            let delay = world.dice.within(1, 500);
            world.network.schedule(world.now + delay, Event::Committed { replica: at });
            Ok(())
        }
        _ => world.feed(at, wavesync_core::machine::Input::Committed),
    }
}

/// One random action.
pub fn act(world: &mut World) -> Result<(), Failure> {
    let at = world.dice.index(world.replicas.len());
    match world.dice.below(100) {
        0..=59 => {
            let mut script = String::new();
            let contend = world.plan.contended
                && has_table(world.replicas[at].conn(), "chk")
                && world.dice.percent(60);
            let run = if contend { contended::transaction } else { transaction };
            world.application(at, |conn, dice| script = run(conn, dice));
            world.say(|| format!("r{at} {script}"));
            tell(world, at)
        }
        60..=76 => {
            safe_write(world, at);
            tell(world, at)
        }
        77..=80 => {
            let mut script = String::new();
            let use_it = world.dice.percent(60);
            world.application(at, |conn, dice| script = grow(conn, dice, use_it));
            world.say(|| format!("r{at} {script}"));
            tell(world, at)
        }
        81.. if world.plan.renames && world.dice.percent(40) => renames::happen(world, at),
        81.. if world.plan.copies && !world.plan.calm && world.dice.percent(25) => {
            crate::copies::act(world, at)
        }
        81.. if world.plan.upheaval && !world.plan.calm && world.dice.percent(40) => {
            crate::upheaval::act(world, at)
        }
        81.. if world.plan.forgetful && world.dice.percent(40) => {
            crate::forgetful::go_away(world, at)
        }
        81..=100 if world.plan.calm => Ok(()),
        81..=93 => {
            let link = world.dice.index(world.network.links.len());
            let late = world.dice.percent(40);
            let late = late.then(|| (world.dice.index(2), world.dice.within(1, 2_500)));
            world.cut(link, late)
        }
        _ => {
            let likely = if world.plan.clocks == Clocks::Wild { 70 } else { 30 };
            if world.plan.clocks != Clocks::Equal && world.dice.percent(likely) {
                // A clock is set, back or forth.
                world.replicas[at].skew = world.plan.clocks.skew(&mut world.dice);
                world.say(|| format!("r{at} clock set by {}", world.replicas[at].skew));
                if world.dice.percent(50) {
                    return Ok(());
                }
            }
            world.restart(at)
        }
    }
}

/// Brings every table and column to everyone who has tables of the application at all.
pub fn complete_schemas(world: &mut World) {
    let renamed = world.plan.renames;
    for at in 0..world.replicas.len() {
        if !has_table(world.replicas[at].conn(), "safe") {
            continue;
        }
        world.application(at, |conn, _| {
            for spec in &TABLES {
                if !has_table(conn, spec.name) {
                    conn.execute_batch(spec.sql).unwrap();
                }
                if let Some((_, text)) = spec.later
                    && columns_here(conn, spec).len() == spec.columns.len()
                {
                    let sql = format!("ALTER TABLE {} ADD COLUMN {text}", spec.name);
                    conn.execute_batch(&spoken(conn, spec.name, &sql)).unwrap();
                }
            }
            if renamed {
                renames::complete(conn);
            }
        });
    }
}
