//! The same database without wavesync: what SQL means is taken from SQLite itself, watched by
//! triggers that note whole rows.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::Connection;
use rusqlite::config::DbConfig;
use wavesync_core::store::key::pack;
use wavesync_core::value::Value;

use crate::reference::{Key, Operation};
use crate::schema::{Table, quoted};

/// Columns that the notes hold of a row before and after.
const WIDTH: usize = 14;

pub struct Plain {
    pub conn: Connection,
}

/// One note of a trigger.
struct Note {
    statement: i64,
    table: String,
    old: Option<Vec<Value>>,
    new: Option<Vec<Value>>,
}

pub type Shown = BTreeMap<Value, BTreeMap<String, Value>>;

impl Plain {
    pub fn new(tables: &[Table]) -> Self {
        let conn = Connection::open_in_memory().unwrap();
        conn.set_prepared_statement_cache_capacity(128);
        let places: Vec<String> = (0..WIDTH)
            .map(|n| format!("o{n}"))
            .chain((0..WIDTH).map(|n| format!("n{n}")))
            .collect();
        conn.execute_batch(&format!(
            "PRAGMA recursive_triggers=ON; PRAGMA foreign_keys=OFF;
             CREATE TABLE ref_now(n); INSERT INTO ref_now VALUES(0);
             CREATE TABLE ref_note(at INTEGER PRIMARY KEY, statement, tbl, verb, {})",
            places.join(", ")
        ))
        .unwrap();
        for table in tables {
            table.all().iter().for_each(|sql| conn.execute_batch(sql).unwrap());
        }
        let plain = Self { conn };
        plain.watch(tables);
        plain
    }

    pub fn set_triggers(&self, on: bool) {
        self.conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, on).unwrap();
    }

    /// Takes the watching triggers away, for a change of the schema.
    pub fn unwatch(&self) {
        let sql = "SELECT name FROM sqlite_schema WHERE type = 'trigger' AND name LIKE 'ref %'";
        let mut statement = self.conn.prepare(sql).unwrap();
        let names: Vec<String> =
            statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
        for name in names {
            self.conn.execute_batch(&format!("DROP TRIGGER {}", quoted(&name))).unwrap();
        }
    }

    pub fn watch(&self, tables: &[Table]) {
        for table in tables {
            let names: Vec<String> = stored(table).map(|name| quoted(name)).collect();
            assert!(names.len() <= WIDTH, "{} is too wide", table.name);
            for (verb, event, rows) in [
                ("i", "INSERT", &["NEW"][..]),
                ("u", "UPDATE", &["OLD", "NEW"][..]),
                ("d", "DELETE", &["OLD"][..]),
            ] {
                let mut into = Vec::new();
                let mut from = Vec::new();
                for row in rows {
                    let place = if *row == "OLD" { "o" } else { "n" };
                    into.extend((0..names.len()).map(|n| format!("{place}{n}")));
                    from.extend(names.iter().map(|name| format!("{row}.{name}")));
                }
                let name = &table.name;
                self.conn
                    .execute_batch(&format!(
                        "CREATE TRIGGER \"ref {verb} {name}\" AFTER {event} ON {} BEGIN
                         INSERT INTO ref_note(statement, tbl, verb, {}) VALUES(
                         (SELECT n FROM ref_now), '{name}', '{verb}', {}); END",
                        quoted(name),
                        into.join(", "),
                        from.join(", ")
                    ))
                    .unwrap();
            }
        }
    }

    /// Runs a transaction. Returns which statements succeeded, and what all came to.
    pub fn run(
        &self,
        statements: &[String],
        tables: &[Table],
        enforced: bool,
        recursive: bool,
    ) -> (Vec<bool>, Vec<Operation>) {
        self.set_triggers(true);
        self.conn.pragma_update(None, "foreign_keys", enforced).unwrap();
        let mut done = Vec::new();
        for (number, statement) in statements.iter().enumerate() {
            self.conn.execute("UPDATE ref_now SET n = ?1", [number as i64]).unwrap();
            done.push(self.conn.execute_batch(statement).is_ok());
        }
        if !self.conn.is_autocommit() {
            self.conn.execute_batch("ROLLBACK").unwrap();
        }
        self.conn.pragma_update(None, "foreign_keys", false).unwrap();
        let operations = self.operations(statements, tables, recursive);
        self.conn.execute_batch("DELETE FROM ref_note").unwrap();
        self.set_triggers(false);
        (done, operations)
    }

    fn notes(&self, tables: &[Table]) -> Vec<Note> {
        let mut statement = self.conn.prepare("SELECT * FROM ref_note ORDER BY at").unwrap();
        let mut rows = statement.query([]).unwrap();
        let mut notes = Vec::new();
        while let Some(row) = rows.next().unwrap() {
            let (table, verb): (String, String) = (row.get(2).unwrap(), row.get(3).unwrap());
            let known = tables.iter().find(|known| known.name == table).unwrap();
            let width = stored(known).count();
            let read = |from: usize| -> Vec<Value> {
                (from..from + width).map(|at| Value::from_ref(row.get_ref(at).unwrap())).collect()
            };
            notes.push(Note {
                statement: row.get(1).unwrap(),
                old: (verb != "i").then(|| read(4)),
                new: (verb != "d").then(|| read(4 + WIDTH)),
                table,
            });
        }
        notes
    }

    /// What the notes come to. These were taken with recursive triggers; without them, `REPLACE`
    /// fires no trigger for the row that it removes. A row that was replaced under its own key then
    /// counts as written over, every other one as deleted.
    fn operations(
        &self,
        statements: &[String],
        tables: &[Table],
        recursive: bool,
    ) -> Vec<Operation> {
        let notes = self.notes(tables);
        let mut operations = Vec::new();
        for (at, note) in notes.iter().enumerate() {
            let table = tables.iter().find(|table| table.name == note.table).unwrap();
            let key = |row: &Vec<Value>| -> Key { row[..table.key.len()].to_vec() };
            let name = note.table.clone();
            match (&note.old, &note.new) {
                (Some(old), None) => {
                    let replaces = statements[note.statement as usize].contains("OR REPLACE");
                    let mut later = notes[at + 1..].iter().filter(|later| {
                        later.statement == note.statement && later.table == note.table
                    });
                    let next = later.find_map(|later| later.new.as_ref());
                    let same = next.is_some_and(|next| key(next) == key(old));
                    if recursive || !replaces || !same {
                        operations.push(Operation::Delete { table: name, key: key(old) });
                    }
                }
                (None, Some(new)) => {
                    operations.push(Operation::Insert { table: name, key: key(new) });
                }
                (Some(old), Some(new)) if key(old) != key(new) => {
                    operations.push(Operation::Delete { table: name.clone(), key: key(old) });
                    operations.push(Operation::Insert { table: name, key: key(new) });
                }
                (Some(old), Some(new)) => {
                    let pairs = stored(table).zip(old.iter().zip(new));
                    let changed: BTreeSet<String> = pairs
                        .filter(|(_, (old, new))| old != new)
                        .map(|(name, _)| name.clone())
                        .collect();
                    let changed = table.coupled(&changed);
                    if !changed.is_empty() {
                        let key = key(new);
                        operations.push(Operation::Update { table: name, key, changed });
                    }
                }
                (None, None) => {}
            }
        }
        operations
    }

    /// All columns of all rows of a table, generated ones too.
    pub fn shown(&self, table: &Table) -> Shown {
        let sql = format!("SELECT * FROM {}", quoted(&table.name));
        let mut statement = self.conn.prepare(&sql).unwrap();
        let names: Vec<String> =
            statement.column_names().iter().map(|name| name.to_ascii_lowercase()).collect();
        let key: Vec<usize> = table
            .key
            .iter()
            .map(|(name, _)| names.iter().position(|known| known == name).unwrap())
            .collect();
        let mut rows = statement.query([]).unwrap();
        let mut shown = Shown::new();
        while let Some(row) = rows.next().unwrap() {
            let value = |at: usize| Value::from_ref(row.get_ref(at).unwrap());
            let parts: Vec<Value> = key.iter().map(|at| value(*at)).collect();
            let rest = (0..names.len()).filter(|at| !key.contains(at));
            shown.insert(pack(&parts), rest.map(|at| (names[at].clone(), value(at))).collect());
        }
        shown
    }
}

fn stored(table: &Table) -> impl Iterator<Item = &String> {
    table.key.iter().map(|(name, _)| name).chain(table.columns.iter().map(|column| &column.name))
}
