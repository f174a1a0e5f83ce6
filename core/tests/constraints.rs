//! `T = f(L)` under declared constraints: whatever happens in whatever order, the tables are the
//! function of the rows that the rule says, and replicas that know the same rows show the same.
//!
//! `CASES=4000 cargo test -p wavesync-core --test constraints` runs more; a failure names its seed,
//! `SEED=n` runs that one.
#![allow(clippy::unwrap_used)]

#[path = "simulator/image.rs"]
#[allow(dead_code)]
mod image;
#[path = "constraints/oracle.rs"]
mod oracle;
#[path = "constraints/schemas.rs"]
mod schemas;

use std::collections::BTreeMap;

use image::Image;
use oracle::Outcome;
use rusqlite::Connection;
use rusqlite::config::DbConfig;
use schemas::Schema;
use wavesync_core::ids::{Millis, Seq};
use wavesync_core::store::Store;
use wavesync_core::store::group::Join;
use wavesync_core::store::identity::FileIdentity;
use wavesync_core::store::vector::Vector;
use wavesync_core::value::Value;
use wavesync_core::wire::rows::{Batch, TableRows};

/// Cases per schema when nothing else is asked for; `make sim` asks for more, in a quicker build.
const CASES: u64 = 25;
/// 2023-11-14.
const NOW: u64 = 1_700_000_000_000;

/// A deterministic source of chances.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }

    fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn shuffle<T>(&mut self, all: &mut [T]) {
        for at in (1..all.len()).rev() {
            all.swap(at, self.below(at + 1));
        }
    }
}

struct Replica {
    store: Store,
    now: u64,
    enforced: bool,
}

impl Replica {
    fn new(schema: &Schema, number: u8, enforced: bool) -> Self {
        let conn = Connection::open_in_memory().unwrap();
        conn.execute_batch(schema.sql).unwrap();
        let mut store = Store::open(conn).unwrap();
        let file = FileIdentity("memory".into());
        let group = Join { topic: "t".into(), foreign_keys: enforced, ..Join::default() };
        store.join(Millis(NOW), &group, &file, &[number; 64]).unwrap();
        store.start(Millis(NOW), &file, &[number; 64]).unwrap();
        while store.backfill_block(Millis(NOW)).unwrap() {}
        Self { store, now: NOW, enforced }
    }

    /// A transaction of the application, on the engine's own connection.
    fn application(&mut self, statements: &[String]) {
        let conn = self.store.connection();
        let keys = if self.enforced { "ON" } else { "OFF" };
        conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, true).unwrap();
        conn.execute_batch(&format!(
            "PRAGMA foreign_keys={keys}; PRAGMA recursive_triggers=ON; BEGIN"
        ))
        .unwrap();
        for statement in statements {
            let _ = conn.execute_batch(statement);
        }
        if conn.execute_batch("COMMIT").is_err() {
            conn.execute_batch("ROLLBACK").unwrap();
        }
        conn.execute_batch("PRAGMA foreign_keys=OFF; PRAGMA recursive_triggers=OFF").unwrap();
        conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false).unwrap();
        self.store.write(Millis(self.now), |_| Ok(())).unwrap();
    }

    /// All rows, each as a batch of its own.
    fn rows(&mut self) -> Vec<Batch> {
        let all =
            self.store.folded(Millis(self.now), |tx| tx.read_piece(Seq(0), &Vector::default()));
        let all = Batch::decode(&all.unwrap().rows.encode()).unwrap();
        let single = |table: &TableRows| {
            let table = table.clone();
            let rows = table.rows.clone();
            rows.into_iter().map(move |row| Batch {
                tables: vec![TableRows { rows: vec![row], ..table.clone() }],
            })
        };
        all.tables.iter().flat_map(single).collect()
    }

    fn receive(&mut self, rows: &[Batch]) {
        let mut tables: BTreeMap<String, TableRows> = BTreeMap::new();
        let mut later = Vec::new();
        for row in rows {
            let part = &row.tables[0];
            match tables.get_mut(&part.name) {
                None => {
                    tables.insert(part.name.clone(), part.clone());
                }
                Some(known) if known.columns == part.columns => {
                    known.rows.extend(part.rows.clone());
                }
                Some(_) => later.push(row.clone()),
            }
        }
        let batch = Batch { tables: tables.into_values().collect() };
        self.store.write_applying(Millis(self.now), |tx| tx.apply(&batch)).unwrap();
        if !later.is_empty() {
            self.receive(&later);
        }
    }

    fn outcome(&self, schema: &'static Schema, image: &Image) -> Outcome {
        let conn = self.store.connection();
        let mut outcome = Outcome::default();
        for table in schema.tables {
            outcome.shown.insert(table.name, oracle::shown(conn, table));
            for (key, row) in &image.tables[table.name].rows {
                let id = (table.name, key.clone());
                match &row.parked {
                    Some((_, false, _)) => {
                        outcome.parked.insert(id);
                    }
                    Some((_, true, values)) => {
                        outcome.overlays.insert(id, values.keys().cloned().collect());
                    }
                    None => {}
                }
            }
        }
        outcome
    }

    /// Compares with the rule and with SQLite's own opinion; returns what is shown.
    fn check(&self, schema: &'static Schema, scratch: &Connection, what: &str) -> Outcome {
        let conn = self.store.connection();
        let image = Image::read(conn);
        let expected = oracle::outcome(schema, self.enforced, scratch, &image);
        let found = self.outcome(schema, &image);
        assert!(found == expected, "{what}:\n found {found:#?}\n rule  {expected:#?}");
        let orphans = conn.prepare_cached("PRAGMA foreign_key_check").unwrap().exists([]).unwrap();
        assert!(!self.enforced || !orphans, "{what}: a child stands without its parent");
        found
    }

    fn check_integrity(&self, what: &str) {
        let conn = self.store.connection();
        let verdict: String =
            conn.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(verdict, "ok", "{what}");
    }
}

/// One random transaction.
fn statements(schema: &Schema, dice: &mut Dice) -> Vec<String> {
    let count = *dice.of(&[1, 1, 1, 2, 3]);
    (0..count).map(|_| statement(schema, dice)).collect()
}

fn statement(schema: &Schema, dice: &mut Dice) -> String {
    let table = dice.of(schema.tables);
    let key = key(schema, table.name, dice);
    let value = |pool: &[&str], dice: &mut Dice| {
        let literal = *dice.of(pool);
        match literal.strip_prefix('@') {
            Some(table) => self::key(schema, table, dice),
            None => literal.to_owned(),
        }
    };
    let chance = dice.below(100);
    if chance < 55 {
        let verb = *dice.of(&["INSERT", "INSERT", "INSERT OR REPLACE", "INSERT OR IGNORE"]);
        let names: Vec<&str> = table.columns.iter().map(|(name, _)| *name).collect();
        let values: Vec<String> = table.columns.iter().map(|(_, pool)| value(pool, dice)).collect();
        let (names, values) = (names.join(", "), values.join(", "));
        return format!("{verb} INTO {}(id, {names}) VALUES({key}, {values})", table.name);
    }
    if chance >= 82 {
        return format!("DELETE FROM {} WHERE id = {key}", table.name);
    }
    let verb = *dice.of(&["UPDATE", "UPDATE OR REPLACE"]);
    let count = *dice.of(&[1, 1, 2]);
    let mut columns: Vec<_> = table.columns.iter().collect();
    dice.shuffle(&mut columns);
    let set: Vec<String> = columns
        .iter()
        .take(count)
        .map(|(name, pool)| format!("{name} = {}", value(pool, dice)))
        .collect();
    format!("{verb} {} SET {} WHERE id = {key}", table.name, set.join(", "))
}

/// A key of a table; of an INTEGER key sometimes one that a row has moved to.
fn key(schema: &Schema, table: &str, dice: &mut Dice) -> String {
    let number = dice.below(4);
    match schema.integer_key(table) {
        false => format!("'{table}{number}'"),
        true if dice.percent(30) => format!("(SELECT min(id) FROM {table})"),
        true => number.to_string(),
    }
}

fn case(schema: &'static Schema, scratch: &Connection, seed: u64, enforced: bool) {
    let mut dice = Dice(seed);
    let what = |step: usize| format!("schema {}, SEED={seed}, step {step}", schema.name);
    let mut replicas: Vec<Replica> = (1..=3).map(|n| Replica::new(schema, n, enforced)).collect();
    // Whether a row has moved may depend on who met whom before it was deleted, so everything that was
    // ever said in another order may come to another place.
    let newcomer = dice.percent(25) && !schema.moves();
    let mut sent: Vec<Batch> = Vec::new();
    let steps = 6 + dice.below(16);
    for step in 0..steps {
        let at = dice.below(replicas.len());
        replicas[at].now += dice.below(4) as u64;
        if dice.percent(65) {
            let transaction = statements(schema, &mut dice);
            if std::env::var("VERBOSE").is_ok() {
                eprintln!("{step}: replica {at} {transaction:?}");
            }
            replicas[at].application(&transaction);
            if newcomer {
                sent.extend(replicas[at].rows());
            }
        } else {
            let from = dice.below(replicas.len());
            let mut rows = replicas[from].rows();
            if from == at || rows.is_empty() {
                continue;
            }
            dice.shuffle(&mut rows);
            rows.truncate(1 + dice.below(rows.len()));
            if std::env::var("VERBOSE").is_ok() {
                eprintln!("{step}: replica {at} from {from}: {rows:?}");
            }
            replicas[at].receive(&rows);
        }
        replicas[at].check(schema, scratch, &what(step));
    }
    // Links that follow a move are changes of their own.
    for _ in 0..if schema.moves() { 5 } else { 2 } {
        for to in 0..replicas.len() {
            for from in (0..replicas.len()).filter(|from| *from != to) {
                let mut rows = replicas[from].rows();
                dice.shuffle(&mut rows);
                replicas[to].receive(&rows);
            }
        }
    }
    let reference = replicas[0].check(schema, scratch, &what(steps));
    for replica in &replicas {
        let shown = replica.check(schema, scratch, &what(steps));
        assert!(shown == reference, "{}: replicas differ", what(steps));
        replica.check_integrity(&what(steps));
    }
    if !newcomer {
        return;
    }
    // A newcomer gets everything that was ever said, in any order.
    let mut fresh = Replica::new(schema, 9, enforced);
    dice.shuffle(&mut sent);
    sent.truncate(60);
    let mut last = replicas[0].rows();
    dice.shuffle(&mut last);
    sent.extend(last);
    let mut rest = &sent[..];
    while !rest.is_empty() {
        let (now, later) = rest.split_at((1 + dice.below(6)).min(rest.len()));
        fresh.receive(now);
        rest = later;
    }
    let shown = fresh.check(schema, scratch, &what(steps + 1));
    assert!(shown == reference, "{}: a newcomer differs", what(steps));
}

fn run(schema: &'static Schema, enforced: bool) {
    let scratch = Connection::open_in_memory().unwrap();
    scratch.execute_batch("PRAGMA foreign_keys=OFF").unwrap();
    scratch.execute_batch(schema.sql).unwrap();
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    if let Some(seed) = number("SEED") {
        return case(schema, &scratch, seed, enforced);
    }
    for seed in 0..number("CASES").unwrap_or(CASES) {
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            case(schema, &scratch, seed, enforced);
        }));
        assert!(done.is_ok(), "schema {}, SEED={seed}", schema.name);
    }
}

#[test]
fn unique_rows_follow_the_rule() {
    run(&schemas::UNIQ, true);
}

#[test]
fn checked_rows_follow_the_rule() {
    run(&schemas::CHECK, true);
}

#[test]
fn children_follow_the_rule() {
    run(&schemas::FK, true);
}

#[test]
fn overlays_follow_the_rule() {
    run(&schemas::SETNULL, true);
}

#[test]
fn trees_follow_the_rule() {
    run(&schemas::TREE, true);
}

#[test]
fn cycles_follow_the_rule() {
    run(&schemas::CYCLE, true);
}

#[test]
fn composite_references_follow_the_rule() {
    run(&schemas::COMPFK, true);
}

/// A row gets its place first, then it contends for unique values and finds its parents.
#[test]
fn rows_that_move_follow_the_rule() {
    run(&schemas::MOVES, true);
}

#[test]
fn trees_that_move_follow_the_rule() {
    run(&schemas::MOVING_TREE, true);
}

#[test]
fn keys_that_the_application_does_not_enforce_hide_nothing() {
    for schema in [&schemas::FK, &schemas::TREE, &schemas::SETNULL, &schemas::MOVES] {
        run(schema, false);
    }
}

/// Two engines' connections on one file, as of a running engine and of a call beside it.
#[test]
fn rows_that_another_connection_parked_are_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("site.db");
    let open = || Store::open(Connection::open(&path).unwrap()).unwrap();
    let file = FileIdentity("file".into());
    let group = Join { topic: "t".into(), ..Join::default() };
    Connection::open(&path).unwrap().execute_batch(schemas::UNIQ.sql).unwrap();
    let (mut engine, mut call) = (open(), open());
    engine.join(Millis(NOW), &group, &file, &[1; 64]).unwrap();
    while engine.backfill_block(Millis(NOW)).unwrap() {}
    // The engine has counted: nothing is parked.
    engine.write(Millis(NOW), |_| Ok(())).unwrap();
    let mut other = Replica::new(&schemas::UNIQ, 2, false);
    other.application(&["INSERT INTO u(id, email) VALUES('u1', 'x')".into()]);
    let app = Connection::open(&path).unwrap();
    app.execute_batch("INSERT INTO u(id, email) VALUES('u2', 'X')").unwrap();
    engine.write(Millis(NOW - 1_000), |_| Ok(())).unwrap();
    let blob = other.store.export(Millis(NOW), Seq(0)).unwrap();
    call.import(Millis(NOW), &blob).unwrap();
    let stands = |id: &str| -> bool {
        let sql = "SELECT count(*) FROM u WHERE id = ?1";
        app.query_row(sql, [id], |row| row.get(0)).unwrap()
    };
    assert_ne!(stands("u1"), stands("u2"), "one of them is parked");
    let sql = "DELETE FROM u; INSERT INTO u(id, email) VALUES('u3', 'x')";
    app.execute_batch(&format!("BEGIN; {sql}; COMMIT")).unwrap();
    engine.write(Millis(NOW + 1), |_| Ok(())).unwrap();
    assert!(stands("u3"));
    let claim = Image::read(&app).tables["u"].rows[&Value::text("u3")].claim;
    assert!(claim.is_some(), "what was written here takes over from the parked row");
}

/// A tree of many rows that waits for its root: half of it a chain, half of it leaves.
#[test]
fn a_large_subtree_is_decided_on_in_steps_in_proportion_to_its_rows() {
    const ROWS: usize = 10_000;
    let sql =
        "CREATE TABLE n(id TEXT PRIMARY KEY NOT NULL, par TEXT REFERENCES n(id), code TEXT UNIQUE)";
    let schema = Schema { name: "large", sql, tables: &[], strata: &[] };
    let (mut writer, mut reader) = (Replica::new(&schema, 1, true), Replica::new(&schema, 2, true));
    let row = |at: usize| {
        let parent = if at <= ROWS / 2 { at - 1 } else { ROWS / 2 };
        format!("('n{at}', 'n{parent}', NULL)")
    };
    let rows: Vec<String> = (1..=ROWS).map(row).collect();
    writer.now += 10;
    writer.application(&[
        "INSERT INTO n VALUES('n0', NULL, 'root')".into(),
        format!("INSERT INTO n VALUES {}", rows.join(", ")),
    ]);
    reader.application(&["INSERT INTO n VALUES('m', NULL, 'root')".into()]);
    let blob = writer.store.export(Millis(NOW), Seq(0)).unwrap();
    let count = |site: &Replica| -> i64 {
        site.store.connection().query_row("SELECT count(*) FROM n", [], |row| row.get(0)).unwrap()
    };
    // The later root is excluded by the earlier one, and with it goes everything below.
    reader.now += 20;
    reader.store.examined();
    reader.store.import(Millis(reader.now), &blob).unwrap();
    let examined = reader.store.examined();
    eprintln!("{ROWS} descendants arrive: {examined} rows examined");
    assert_eq!(count(&reader), 1);
    assert!(examined <= 8 * ROWS as u64, "{examined} rows were examined");
    reader.application(&["UPDATE n SET code = 'free' WHERE id = 'm'".into()]);
    let examined = reader.store.examined();
    eprintln!("they are set free: {examined} rows examined");
    assert_eq!(count(&reader), ROWS as i64 + 2);
    assert!(examined <= 8 * ROWS as u64, "{examined} rows were examined");
}
