//! Rows written set-wise against rows written one by one: the same tables, clocks and parked rows.
#![allow(clippy::unwrap_used)]

mod site;

use proptest::prelude::*;
use site::{NOW, Site, content};
use wavesync_core::ids::{Boot, Cursor, Seq};
use wavesync_core::limits::Bounds;
use wavesync_core::store::apply::Reach;
use wavesync_core::wire::rows::Batch;

const SOURCE: &str = "
    CREATE TABLE parent(id INTEGER PRIMARY KEY, a, b);
    CREATE TABLE child(k TEXT PRIMARY KEY NOT NULL, parent, a);
    CREATE TABLE pair(x, y, v, PRIMARY KEY(x, y)) WITHOUT ROWID;
    CREATE TABLE bin(k BLOB PRIMARY KEY NOT NULL) WITHOUT ROWID;";

/// The same tables with rules that the source does not have, or without a column that it has.
const TARGETS: [&str; 4] = [
    SOURCE,
    "CREATE TABLE parent(id INTEGER PRIMARY KEY, a UNIQUE, b CHECK(b <> 3));
     CREATE TABLE child(k TEXT PRIMARY KEY NOT NULL COLLATE NOCASE, parent NOT NULL, a);
     CREATE TABLE pair(x, y, v UNIQUE, PRIMARY KEY(x, y));",
    "CREATE TABLE parent(id INTEGER PRIMARY KEY, b);
     CREATE TABLE child(k TEXT PRIMARY KEY NOT NULL, a, parent DEFAULT 5, more DEFAULT 'm');
     CREATE TABLE bin(k BLOB PRIMARY KEY NOT NULL);",
    "PRAGMA foreign_keys=ON;
     CREATE TABLE parent(id INTEGER PRIMARY KEY, a, b);
     CREATE TABLE child(k TEXT PRIMARY KEY NOT NULL, parent REFERENCES parent(id), a);
     CREATE TABLE note(id INTEGER PRIMARY KEY, text);
     CREATE TRIGGER noted AFTER INSERT ON parent BEGIN INSERT INTO note(text) VALUES(NEW.a); END;",
];

fn statement() -> impl Strategy<Value = String> {
    let key = 0..14i64;
    prop_oneof![
        4 => (key.clone(), 0..9i64, 0..5i64).prop_map(|(id, a, b)| format!(
            "INSERT OR IGNORE INTO parent VALUES({id}, {a}, {b})"
        )),
        4 => (key.clone(), 0..9i64, 0..5i64).prop_map(|(k, p, a)| format!(
            "INSERT OR IGNORE INTO child(k, parent, a) VALUES('k{k}', {p}, {a})"
        )),
        2 => (0..4i64, 0..4i64, 0..9i64).prop_map(|(x, y, v)| format!(
            "INSERT OR IGNORE INTO pair VALUES({x}, 'y{y}', {v})"
        )),
        1 => (0..4i64).prop_map(|k| format!("INSERT OR IGNORE INTO bin VALUES(x'0{k}')")),
        1 => key.clone().prop_map(|id| format!("UPDATE parent SET a = 7 WHERE id = {id}")),
        1 => key.clone().prop_map(|k| format!("UPDATE child SET a = NULL WHERE k = 'k{k}'")),
        1 => key.clone().prop_map(|id| format!("DELETE FROM parent WHERE id = {id}")),
        1 => key.prop_map(|k| format!("DELETE FROM child WHERE k = 'k{k}'")),
    ]
}

fn target(schema: usize) -> Site {
    Site::with_declared(2, TARGETS[schema])
}

/// Statements that the target's schema may refuse are left out there.
fn run(site: &Site, script: &[String]) {
    for sql in script {
        let _ = site.app.execute_batch(sql);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn set_wise_and_row_by_row_come_to_the_same(
        schema in 0..TARGETS.len(),
        before in prop::collection::vec(statement(), 0..6),
        script in prop::collection::vec(statement(), 1..40),
        later in prop::collection::vec(statement(), 0..10),
        rows in 1..9usize,
    ) {
        let mut source = Site::new(1, SOURCE);
        run(&source, &script);
        source.fold(NOW);
        let mut pieces = source.pieces(rows);
        run(&source, &later);
        source.fold(NOW);
        pieces.extend(source.pieces(rows));
        let from = source.own_site();
        let mut images = Vec::new();
        let mut logs = Vec::new();
        for bulk_rows in [usize::MAX, 1] {
            let mut target = target(schema);
            target.store.set_bounds(Bounds { bulk_rows, ..Bounds::default() });
            run(&target, &before);
            for piece in &pieces {
                target.apply(from, piece).unwrap();
            }
            images.push(content(&target.image()));
            logs.push(target.log_rows());
            let all: Vec<Batch> = target.pieces(3);
            // Whoever reads the log of either gets the same.
            let mut third = Site::new(3, SOURCE);
            for piece in &all {
                third.apply(target.own_site(), piece).unwrap();
            }
            images.push(content(&third.image()));
        }
        prop_assert_eq!(&images[0], &images[2], "the targets");
        prop_assert_eq!(&images[1], &images[3], "third replicas");
        prop_assert!(logs[1] <= logs[0], "{} entries set-wise, {} row by row", logs[1], logs[0]);
    }
}

/// A first sync leaves one log entry for many rows, and that entry is enough.
#[test]
fn new_rows_leave_one_entry_in_the_log() {
    let mut source = Site::new(1, SOURCE);
    for id in 0..500 {
        source.run(&format!("INSERT INTO parent VALUES({id}, {id}, 0)"));
    }
    source.fold(NOW);
    let mut target = Site::new(2, SOURCE);
    for piece in source.pieces(100) {
        target.apply(source.own_site(), &piece).unwrap();
    }
    assert_eq!(target.log_rows(), 5);
    target.run("UPDATE parent SET a = 'new' WHERE id = 250");
    target.fold(NOW);
    // From the middle: the rows of the last two entries, and the changed one.
    let piece = target
        .store
        .folded(NOW, |tx| tx.read_piece(wavesync_core::ids::Seq(3), &Default::default()))
        .unwrap();
    assert_eq!(piece.rows.row_count(), 201);
    assert!(piece.last);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Rows from before joining, of which some were written or arrived while they were taken in.
    #[test]
    fn existing_rows_come_in_alike_set_wise_and_row_by_row(
        script in prop::collection::vec(statement(), 1..40),
        meanwhile in prop::collection::vec(statement(), 0..10),
        arriving in prop::collection::vec(statement(), 0..10),
        rows in 1..9usize,
    ) {
        let mut other = Site::new(3, SOURCE);
        run(&other, &arriving);
        other.fold(NOW);
        let arriving = other.pieces(100);
        let mut images = Vec::new();
        let mut logs = Vec::new();
        for bulk_rows in [usize::MAX, 1] {
            let mut site = Site::before_backfill(1, &format!("{SOURCE}{};", script.join(";")));
            let bounds = Bounds { bulk_rows, backfill_rows: rows, ..Bounds::default() };
            site.store.set_bounds(bounds);
            site.store.backfill_block(NOW).unwrap();
            run(&site, &meanwhile);
            for piece in &arriving {
                site.apply(other.own_site(), piece).unwrap();
            }
            while site.store.backfill_block(NOW).unwrap() {}
            images.push(content(&site.image()));
            logs.push(site.log_rows());
            let mut third = Site::new(4, SOURCE);
            for piece in &site.pieces(3) {
                third.apply(site.own_site(), piece).unwrap();
            }
            images.push(content(&third.image()));
        }
        prop_assert_eq!(&images[0], &images[2], "the site itself");
        prop_assert_eq!(&images[1], &images[3], "who reads from it");
        prop_assert!(logs[1] <= logs[0], "{} entries set-wise, {} row by row", logs[1], logs[0]);
    }
}

/// 1 and 1.0 are one key of a column without affinity, so they must not be two rows of the clocks.
#[test]
fn keys_of_two_classes_are_taken_in_one_by_one() {
    let sql = "CREATE TABLE free(k PRIMARY KEY NOT NULL, a) WITHOUT ROWID;
               INSERT INTO free VALUES(1, 'a'), (2, 'b'), (3, 'c');";
    let mut site = Site::before_backfill(1, sql);
    site.store.set_bounds(Bounds { bulk_rows: 1, ..Bounds::default() });
    site.run("DELETE FROM free WHERE k = 2; INSERT INTO free VALUES(2.0, 'real')");
    while site.store.backfill_block(NOW).unwrap() {}
    let clocks = "SELECT count(*) FROM __wavesync_clock_1 WHERE cl % 2 = 1";
    let count: i64 = site.app.query_row(clocks, [], |row| row.get(0)).unwrap();
    assert_eq!(count, 3);
}

/// Of a chunk with a few news, only these are looked at.
#[test]
fn rows_that_the_vector_covers_are_passed_over() {
    let mut source = Site::new(1, SOURCE);
    let mut target = Site::new(2, SOURCE);
    let from = source.own_site();
    let mut sync = |source: &mut Site| {
        let none = Default::default();
        let piece = source.store.folded(NOW, |tx| tx.read_piece(Seq(0), &none)).unwrap();
        assert!(piece.last);
        let cursor = Cursor { boot: Boot(1), seq: piece.to, high: piece.high };
        let reach = Reach { cursor, last: Some(&piece.vector), ..Reach::default() };
        target.store.receive_piece(NOW, from, &piece.rows.encode(), &reach).unwrap()
    };
    for id in 0..100 {
        source.run(&format!("INSERT INTO parent VALUES({id}, {id}, 0)"));
    }
    source.fold(NOW);
    let first = sync(&mut source);
    assert_eq!((first.rows, first.changed), (100, 100));
    source.run("UPDATE parent SET a = 'new' WHERE id % 20 = 0; DELETE FROM parent WHERE id = 7");
    source.fold(NOW);
    let second = sync(&mut source);
    assert_eq!((second.rows, second.changed), (6, 6));
    assert_eq!(content(&source.image()), content(&target.image()));
}
