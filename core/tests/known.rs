//! Newer cells of known rows merged with one look at each row, and by the long way: the same file, to
//! the last row of our own tables.
#![allow(clippy::unwrap_used)]

mod site;

use proptest::prelude::*;
use site::{NOW, Site, dump};
use wavesync_core::ids::{Boot, Cursor, Dot, Millis, Seq, Stamp};
use wavesync_core::limits::Bounds;
use wavesync_core::store::Tx;
use wavesync_core::store::apply::Reach;
use wavesync_core::value::Value;
use wavesync_core::wire::rows::Batch;

const SOURCE: &str = "
    CREATE TABLE num(id INTEGER PRIMARY KEY, a, b, c);
    CREATE TABLE txt(k TEXT PRIMARY KEY NOT NULL, a, b);
    CREATE TABLE loose(k PRIMARY KEY NOT NULL, a) WITHOUT ROWID;
    CREATE TABLE pair(x, y, v, PRIMARY KEY(x, y)) WITHOUT ROWID;
    INSERT INTO num VALUES(1, 1, 1, 1), (2, 2, 2, 2);";

/// The same tables with rules that may refuse a value, without a column, or with triggers.
const TARGETS: [&str; 5] = [
    SOURCE,
    "CREATE TABLE num(id INTEGER PRIMARY KEY, a UNIQUE, b CHECK(b <> 3), c NOT NULL);
     CREATE TABLE txt(k TEXT PRIMARY KEY NOT NULL COLLATE NOCASE, a, b UNIQUE);
     CREATE TABLE loose(k PRIMARY KEY NOT NULL, a) WITHOUT ROWID;",
    "CREATE TABLE num(id INTEGER PRIMARY KEY, c, a);
     CREATE TABLE txt(k TEXT PRIMARY KEY NOT NULL, b, a, more DEFAULT 7);
     CREATE TABLE pair(x, y, v, PRIMARY KEY(x, y));",
    "PRAGMA foreign_keys=ON;
     CREATE TABLE num(id INTEGER PRIMARY KEY, a, b, c);
     CREATE TABLE txt(k TEXT PRIMARY KEY NOT NULL, a REFERENCES num(id), b);",
    "CREATE TABLE num(id INTEGER PRIMARY KEY, a, b, c);
     CREATE TABLE seen(id INTEGER PRIMARY KEY, a);
     CREATE TRIGGER noted AFTER UPDATE ON num BEGIN INSERT INTO seen(a) VALUES(NEW.a); END;
     INSERT INTO num VALUES(1, 9, 9, 9);",
];

/// A change; new keys come only with the first of them.
fn statement(new: bool) -> impl Strategy<Value = String> {
    let insert = if new { 6 } else { 0 };
    let key = 0..9i64;
    prop_oneof![
        1 + insert => (key.clone(), 0..6i64, 0..5i64).prop_map(move |(id, a, b)| match new {
            true => format!("INSERT OR IGNORE INTO num VALUES({id}, {a}, {b}, 0)"),
            false => format!("UPDATE num SET a = {a}, b = {b} WHERE id = {id}"),
        }),
        1 + insert => (key.clone(), 0..6i64).prop_map(move |(k, a)| match new {
            true => format!("INSERT OR IGNORE INTO txt VALUES('k{k}', {a}, 'b{k}')"),
            false => format!("UPDATE txt SET a = {a} WHERE k = 'k{k}'"),
        }),
        1 + insert / 2 => (0..4i64, 0..9i64).prop_map(move |(k, a)| match new {
            true => format!("INSERT OR IGNORE INTO loose VALUES({k}, {a}), ({k}.5, 'x')"),
            false => format!("UPDATE loose SET a = {a} WHERE k = {k}"),
        }),
        1 + insert / 2 => (0..3i64, 0..3i64, 0..9i64).prop_map(move |(x, y, v)| match new {
            true => format!("INSERT OR IGNORE INTO pair VALUES({x}, {y}, {v})"),
            false => format!("UPDATE pair SET v = {v} WHERE x = {x}"),
        }),
        2 => (key.clone(), 0..6i64).prop_map(|(id, c)| {
            format!("UPDATE num SET c = nullif({c}, 5) WHERE id = {id}")
        }),
        2 => (key.clone(), 0..6i64).prop_map(|(k, b)| {
            format!("UPDATE txt SET b = 'b{b}' WHERE k = 'k{k}'")
        }),
        1 => key.clone().prop_map(|id| format!("DELETE FROM num WHERE id = {id}")),
        1 => key.prop_map(|k| format!("DELETE FROM txt WHERE k = 'k{k}'")),
    ]
}

fn target(schema: usize) -> Site {
    Site::with_declared(2, TARGETS[schema])
}

/// Statements that a schema refuses are left out there.
fn run(site: &Site, script: &[String]) {
    for sql in script {
        let _ = site.app.execute_batch(sql);
    }
    // The same times in every run.
    site.run(&format!("UPDATE __wavesync_log SET at = {} WHERE at IS NOT NULL", NOW.0));
}

/// Cells that carry the same write event with another value, or one of a clock that is ahead.
fn bend(pieces: &mut [Batch], bends: &[(usize, u8)]) {
    for (at, kind) in bends {
        let rows = pieces.iter_mut().flat_map(|piece| &mut piece.tables).flat_map(|t| &mut t.rows);
        let mut cells: Vec<&mut (usize, Dot, Value)> =
            rows.flat_map(|row| &mut row.cells).collect();
        if cells.is_empty() {
            return;
        }
        let at = at % cells.len();
        match kind {
            0 => cells[at].2 = Value::Integer(-1),
            1 => cells[at].2 = Value::text("zz"),
            _ => cells[at].1.stamp = Stamp::at(NOW.0 as i64 + 400_000),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Whether the vector covers every row is known without a look at them, as long as all that came
    /// since then is remembered; another connection's commit makes it be forgotten.
    #[test]
    fn what_is_remembered_of_open_rows_is_what_the_rows_say(
        script in prop::collection::vec(statement(true), 5..40),
        at_target in prop::collection::vec(statement(false), 0..8),
        later in prop::collection::vec(statement(true), 1..20),
        rows in 4..20usize,
        ends in prop::collection::vec(any::<bool>(), 1..6),
    ) {
        let mut source = Site::new(1, SOURCE);
        run(&source, &script);
        source.fold(NOW);
        let mut passes = vec![source.pieces(rows)];
        let mut vectors = vec![source.store.folded(NOW, |tx| tx.vector()).unwrap()];
        run(&source, &later);
        source.fold(Millis(NOW.0 + 1));
        passes.push(source.pieces(rows));
        vectors.push(source.store.folded(NOW, |tx| tx.vector()).unwrap());
        let from = source.own_site();
        let mut files = Vec::new();
        for forget in [false, true] {
            let mut target = target(0);
            let mut open = Vec::new();
            let mut ends = ends.iter().cycle();
            for (pieces, vector) in passes.iter().zip(&vectors) {
                run(&target, &at_target);
                target.fold(NOW);
                let last = pieces.len() - 1;
                for (at, piece) in pieces.iter().enumerate() {
                    if forget {
                        target.run("UPDATE __wavesync_meta SET value = value WHERE key = 'self'");
                    }
                    let cursor = Cursor { boot: Boot(1), seq: Seq(1), high: Seq(1) };
                    let last = (at == last && *ends.next().unwrap()).then_some(vector);
                    let reach = Reach { cursor, last, ..Reach::default() };
                    let apply = |tx: &mut Tx<'_>| tx.apply_piece(from, piece, &reach);
                    target.store.write_applying(NOW, apply).unwrap();
                    while target.store.test_openness(NOW).unwrap() {}
                    open.push(!target.store.own_state(NOW).unwrap().closed);
                }
            }
            files.push(format!("{open:?}"));
        }
        prop_assert_eq!(&files[0], &files[1]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn one_look_and_the_long_way_leave_the_same_file(
        schema in 0..TARGETS.len(),
        script in prop::collection::vec(statement(true), 5..40),
        at_target in prop::collection::vec(statement(false), 0..8),
        later in prop::collection::vec(statement(false), 1..20),
        bends in prop::collection::vec((any::<usize>(), 0..3u8), 0..4),
        rows in 4..40usize,
    ) {
        let mut source = Site::new(1, SOURCE);
        run(&source, &script);
        source.fold(NOW);
        let before = source.pieces(1_000);
        run(&source, &later);
        source.fold(Millis(NOW.0 + 1));
        let mut after = source.pieces(rows);
        bend(&mut after, &bends);
        let from = source.own_site();
        let mut files = Vec::new();
        for bulk_rows in [1, usize::MAX] {
            let mut target = target(schema);
            target.store.set_bounds(Bounds { bulk_rows: usize::MAX, ..Bounds::default() });
            for piece in &before {
                target.apply(from, piece).unwrap();
            }
            run(&target, &at_target);
            target.store.set_bounds(Bounds { bulk_rows, ..Bounds::default() });
            let changed: Vec<u64> =
                after.iter().map(|piece| target.apply(from, piece).unwrap()).collect();
            files.push(format!("{changed:?}\n{}", dump(&target.app)));
        }
        let differ = files[0].lines().zip(files[1].lines()).find(|(one, two)| one != two);
        prop_assert_eq!(differ, None);
        prop_assert_eq!(files[0].len(), files[1].len());
    }
}
