//! Attacks by what a member stores: tables, columns, rows, values, names and declarations.

use wavesync_core::ids::{Dot, SiteId, Stamp};
use wavesync_core::limits;
use wavesync_core::store::adopt::TableSchema;
use wavesync_core::value::Value;
use wavesync_core::wire::message::sealed;
use wavesync_core::wire::rows::{Batch, CLAIM};

use crate::batches::{dead, items, notes, row, table};
use crate::{PARKED_ROWS, Scene};

pub fn unknown_tables(scene: &mut Scene) {
    for block in 0..50 {
        let stamp = scene.last;
        let tables = (0..100).map(|at| {
            let rows = vec![row(Value::Integer(1), stamp, vec![Value::Null])];
            table(&format!("unknown {block} {at}"), &["c"], rows)
        });
        scene.push_new(Batch { tables: tables.collect() });
    }
    scene.stage.pass(2_000);
    let numbered = scene.stage.read(scene.victim, "SELECT count(*) FROM __wavesync_table");
    assert!(numbered.parse::<usize>().unwrap() <= limits::FOREIGN_TABLES_MAX + 10, "{numbered}");
    assert!(scene.stage.codes(scene.target).contains(&"parked_full"));
    // The user's own tables always find room.
    scene.stage.write(
        scene.victim,
        "CREATE TABLE mine(id INTEGER PRIMARY KEY); INSERT INTO mine VALUES(1)",
    );
}

pub fn unknown_columns(scene: &mut Scene) {
    for block in 0..10 {
        let stamp = scene.last;
        let names: Vec<String> = (0..500).map(|at| format!("unknown {block} {at}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let rows = vec![row(Value::Integer(100 + block), stamp, vec![Value::Null; 500])];
        scene.push_new(Batch { tables: vec![table("note", &names, rows)] });
    }
    scene.stage.pass(2_000);
    let numbered = scene.stage.read(scene.victim, "SELECT count(*) FROM __wavesync_column");
    assert!(numbered.parse::<usize>().unwrap() <= limits::FOREIGN_COLUMNS_MAX + 20, "{numbered}");
    scene.stage.write(scene.victim, "ALTER TABLE note ADD COLUMN mine");
}

/// Far more rows than are kept; what was left out is told, and comes once there is room.
pub fn unknown_rows(scene: &mut Scene) {
    for block in 0..30 {
        let stamp = scene.last;
        let rows = (0..100)
            .map(|at| row(Value::Integer(block * 100 + at), stamp, vec![Value::text("stuff")]));
        scene.push_new(Batch { tables: vec![table("unknown", &["c"], rows.collect())] });
    }
    scene.stage.pass(2_000);
    for member in [scene.target, scene.victim] {
        let parked = scene.stage.read(member, "SELECT count(*) FROM __wavesync_parked");
        assert!(parked.parse::<i64>().unwrap() <= PARKED_ROWS, "{parked} rows are parked");
    }
    assert!(scene.stage.codes(scene.target).contains(&"parked_full"));
    let shown = scene.stage.at(scene.target).machine.progress();
    assert!(shown.last_error.contains("more for tables"), "{shown:?}");
}

pub fn unknown_values(scene: &mut Scene) {
    for block in 0..30 {
        let stamp = scene.last;
        let rows = (0..100).map(|at| {
            let values = vec![Value::text("text"), Value::text("more")];
            row(Value::Integer(1_000 + block * 100 + at), stamp, values)
        });
        scene.push_new(Batch { tables: vec![table("note", &["text", "more"], rows.collect())] });
    }
    scene.stage.pass(2_000);
    let parked = scene.stage.read(scene.victim, "SELECT count(*) FROM __wavesync_parked");
    assert!(parked.parse::<i64>().unwrap() <= PARKED_ROWS + 100, "{parked} rows are parked");
    assert!(scene.stage.codes(scene.target).contains(&"parked_full"));
}

const NAMES: &[&str] = &[
    "",
    "a\0b",
    "__wavesync_log",
    "__WaveSync_meta",
    "sqlite_schema",
    "SQLITE_sequence",
    "x\"); DROP TABLE note; --",
    "x'; DELETE FROM note; --",
    "[x]",
    "`x`",
    "\"",
    "a\u{202E}b",
    "note ",
    " ",
    "rowid",
    "id",
    "NOTE",
    "ноте",
];

pub fn odd_names(scene: &mut Scene) {
    let long = "n".repeat(limits::NAME_MAX_BYTES + 1);
    for name in NAMES.iter().copied().chain([long.as_str()]) {
        let stamp = scene.last;
        let one = || vec![row(Value::Integer(50), stamp, vec![Value::text("x")])];
        scene.push_new(Batch { tables: vec![table(name, &["c"], one())] });
        scene.push_new(Batch { tables: vec![table("note", &[name], one())] });
        scene.push_new(Batch { tables: vec![table("other", &[name], one())] });
    }
    assert_ne!(scene.stage.read(scene.victim, "SELECT count(*) FROM note"), "0");
}

pub fn doubles(scene: &mut Scene) {
    let stamp = scene.last;
    let one = |text: &str| row(Value::Integer(60), stamp, vec![Value::text(text)]);
    let two = |name: &str| table(name, &["text"], vec![one("x")]);
    scene.push_new(Batch { tables: vec![two("note"), two("note")] });
    scene.push_new(Batch { tables: vec![two("note"), two("NOTE")] });
    let values = vec![Value::text("a"), Value::text("b")];
    for names in [["text", "text"], ["text", "TEXT"]] {
        let rows = vec![row(Value::Integer(61), stamp, values.clone())];
        scene.push_new(Batch { tables: vec![table("note", &names, rows)] });
    }
    // One row twice, with one dot and two values.
    scene.push_new(notes(vec![one("first"), one("second")]));
}

pub fn other_keys(scene: &mut Scene) {
    let stamp = scene.last;
    for key in [Value::Null, Value::text("x"), Value::Real(1.5), Value::Blob(vec![0; 9])] {
        scene.push_new(notes(vec![row(key.clone(), stamp, vec![Value::Null])]));
        scene.push_new(items(vec![row(key, stamp, vec![Value::Integer(1), Value::Null])]));
    }
    for key_columns in [0, 2, 64, 65, 300] {
        let mut part = table("note", &["text"], Vec::new());
        part.key_columns = key_columns;
        part.integer_key = false;
        scene.push_new(Batch { tables: vec![part] });
    }
    let mut part = table("note", &["text"], Vec::new());
    part.key_columns = 2;
    scene.push_new(Batch { tables: vec![part] });
}

pub fn claims_and_endings(scene: &mut Scene) {
    let stamp = scene.last;
    for claim in
        [Value::Null, Value::Blob(vec![1; 23]), Value::Blob(vec![0xFF; 24]), Value::text("x")]
    {
        let rows = vec![row(Value::Integer(7), stamp, vec![claim])];
        scene.push_new(Batch { tables: vec![table("note", &[CLAIM], rows)] });
    }
    let mut ended = row(Value::Integer(7), stamp, vec![Value::text("x")]);
    for at in 0..40 {
        let dot = |stamp: i64| Dot { stamp: Stamp(stamp), site: SiteId([at as u8; 16]) };
        ended.ended.insert(dot(1 << 20), dot(1 << 21));
    }
    scene.push_new(notes(vec![ended.clone()]));
    while ended.ended.len() > 16 {
        ended.ended.pop_first();
    }
    scene.push_new(notes(vec![ended]));
}

pub fn odd_values(scene: &mut Scene) {
    let values = [
        Value::Real(f64::NAN),
        Value::Real(f64::NEG_INFINITY),
        Value::Text(vec![0xFF, 0xFE, 0x00, 0xC0]),
        Value::Text(vec![b'x'; 3_000_000]),
        Value::Blob(vec![0; 3_000_000]),
        Value::Integer(i64::MIN),
    ];
    for (at, value) in values.into_iter().enumerate() {
        let stamp = scene.last;
        scene.push_new(notes(vec![row(Value::Integer(70 + at as i64), stamp, vec![value])]));
    }
    let stamp = scene.last;
    for key in [i64::MIN, i64::MAX, -1, 0] {
        scene.push_new(notes(vec![row(Value::Integer(key), stamp, vec![Value::Null])]));
    }
}

pub fn broken_constraints(scene: &mut Scene) {
    for block in 0..10 {
        let stamp = scene.last;
        let rows = (0..50).map(|at| {
            let key = Value::text(&format!("k{block} {at}"));
            match at % 4 {
                0 => row(key, stamp, vec![Value::Integer(1_000), Value::Null]),
                1 => row(key, stamp, vec![Value::Null, Value::Null]),
                2 => row(key, stamp, vec![Value::Integer(1), Value::text("one")]),
                _ => row(key, stamp, vec![Value::text("no number"), Value::Null]),
            }
        });
        scene.push_new(items(rows.collect()));
    }
    assert_eq!(scene.stage.read(scene.victim, "SELECT u FROM item WHERE k = 'a'"), "one");
}

pub fn deletes(scene: &mut Scene) {
    let stamp = scene.last;
    let rows = (-5..2_000).map(|key| dead(Value::Integer(key), stamp, 4)).collect();
    scene.push_new(notes(rows));
}

fn schema(name: &str, sql: &str, indexes: &[&str]) -> TableSchema {
    TableSchema {
        name: name.into(),
        table: sql.into(),
        indexes: indexes.iter().map(|sql| (*sql).to_string()).collect(),
        former: Vec::new(),
        former_columns: Vec::new(),
    }
}

pub fn schema_texts(scene: &mut Scene) {
    let texts = [
        ("evil", "CREATE TRIGGER evil AFTER INSERT ON note BEGIN DELETE FROM note; END"),
        ("evil", "CREATE VIEW evil AS SELECT 1"),
        ("evil", "CREATE VIRTUAL TABLE evil USING fts5(a)"),
        ("evil", "CREATE TABLE evil AS SELECT * FROM note"),
        ("evil", "CREATE TABLE evil(a PRIMARY KEY); DROP TABLE note"),
        ("evil", "CREATE TEMP TABLE evil(a PRIMARY KEY)"),
        ("evil", "CREATE TABLE temp.evil(a PRIMARY KEY)"),
        ("evil", "CREATE TABLE IF NOT EXISTS evil(a PRIMARY KEY)"),
        ("evil", "CREATE TABLE evil(a PRIMARY KEY, b DEFAULT (load_extension('x')))"),
        ("evil", "CREATE TABLE evil(a PRIMARY KEY CHECK(evil(a)))"),
        ("evil", "CREATE TABLE evil(a PRIMARY KEY, b AS (\"evil\"(a)))"),
        ("evil", "CREATE TABLE other(a PRIMARY KEY)"),
        ("evil", "CREATE TABLE note(a PRIMARY KEY)"),
        ("evil", "ATTACH 'x' AS evil"),
        ("evil", "PRAGMA writable_schema = 1"),
        ("evil", "DROP TABLE note"),
        ("evil", "CREATE TABLE evil(a PRIMARY KEY) --\0"),
        ("evil", "CREATE TABLE \"evil(a PRIMARY KEY)"),
        ("__wavesync_evil", "CREATE TABLE __wavesync_evil(a PRIMARY KEY)"),
        ("__wavesync_meta", "CREATE TABLE __wavesync_meta(a PRIMARY KEY)"),
        ("sqlite_evil", "CREATE TABLE sqlite_evil(a PRIMARY KEY)"),
        ("", ""),
        ("x\"y", "CREATE TABLE x\"y(a PRIMARY KEY)"),
        ("no key", "CREATE TABLE \"no key\"(a)"),
    ];
    for (name, sql) in texts {
        scene.tell(sealed::SCHEMA, &vec![schema(name, sql, &[])]);
    }
    let long = format!("CREATE TABLE evil(a PRIMARY KEY) /* {} */", "x".repeat(300_000));
    scene.tell(sealed::SCHEMA, &vec![schema("evil", &long, &[])]);
    let plain = "CREATE TABLE evil(a PRIMARY KEY)";
    for index in [
        "CREATE UNIQUE INDEX evil_i ON note(1)",
        "CREATE UNIQUE INDEX evil_i ON \"note\"(text)",
        "CREATE INDEX evil_i ON __wavesync_log(seq)",
        "CREATE INDEX evil_i ON evil(evil(a))",
        "CREATE TRIGGER evil_t AFTER INSERT ON evil BEGIN DELETE FROM note; END",
        "CREATE INDEX evil_i ON evil(a); DROP TABLE note",
    ] {
        scene.tell(sealed::SCHEMA, &vec![schema("evil", plain, &[index])]);
    }
    scene.stage.pass(1_000);
    for member in [scene.victim, scene.target] {
        let made = "SELECT name FROM sqlite_schema WHERE name LIKE '%evil%' OR name = 'other'";
        assert_eq!(scene.stage.read(member, made), "", "nothing of it was run");
    }
}

pub fn many_adopted(scene: &mut Scene) {
    let texts = (0..100).map(|at| {
        let name = format!("many{at}");
        schema(&name, &format!("CREATE TABLE {name}(id INTEGER PRIMARY KEY)"), &[])
    });
    scene.tell(sealed::SCHEMA, &texts.collect::<Vec<_>>());
    let texts: Vec<_> = (0..5_000).map(|at| schema(&format!("more{at}"), "", &[])).collect();
    scene.tell(sealed::SCHEMA, &texts);
}

/// Names that were others' before: what a member says of them must not take a table away.
pub fn stolen_names(scene: &mut Scene) {
    let mut text = schema("evil", "CREATE TABLE evil(id INTEGER PRIMARY KEY, text)", &[]);
    text.former = vec!["note".into(), "__wavesync_log".into(), "x\"y".into()];
    text.former_columns = vec![("text".into(), "id".into()), ("a\"b".into(), "text".into())];
    scene.tell(sealed::SCHEMA, &vec![text]);
    let stamp = scene.last;
    let rows = vec![row(Value::Integer(90), stamp, vec![Value::text("x")])];
    scene.push_new(Batch { tables: vec![table("evil", &["text"], rows)] });
}
