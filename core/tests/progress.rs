//! What is shown of a catch-up while it runs.
#![allow(clippy::unwrap_used)]

mod stage;

use std::cell::Cell;
use std::rc::Rc;

use stage::{Stage, key, peer};
use wavesync_core::limits::Bounds;
use wavesync_core::wire::message::sealed;

const ROWS: i64 = 400;
/// Rows that a chunk of this test holds.
const CHUNK_ROWS: usize = 50;

#[test]
fn a_first_sync_tells_how_many_rows_have_come() {
    let mut stage = Stage::new();
    let table = "CREATE TABLE t(id INTEGER PRIMARY KEY, a);";
    let rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 400)
                INSERT INTO t SELECT i, 'row ' || i FROM n;";
    let full = stage.member(peer(1), key(1), &format!("{table}{rows}"), 1);
    let empty = stage.member(peer(2), key(1), table, 2);
    let bounds = Bounds { chunk_rows: CHUNK_ROWS, ..Bounds::default() };
    stage.at_mut(full).store.set_bounds(bounds);
    // The network gets stuck after some chunks.
    let mut left = 3;
    stage.tap = Some(Box::new(move |passing| {
        if passing.bytes[0] == sealed::CHUNK {
            left -= 1;
        }
        if left < 0 { Vec::new() } else { vec![passing.bytes.clone()] }
    }));
    stage.connect(full, empty);
    stage.run();
    let progress = stage.at(empty).machine.progress();
    let came: i64 = stage.read(empty, "SELECT count(*) FROM t").parse().unwrap();
    assert!(came > 0 && came < ROWS, "{came} rows came");
    assert_eq!((progress.done, progress.expected), (came, ROWS));
}

/// Chunks that a member sends to one that takes at most so many rows in a transaction.
fn chunks_for(rows_at_once: usize) -> usize {
    let mut stage = Stage::new();
    let table = "CREATE TABLE t(id INTEGER PRIMARY KEY, a);";
    let rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 400)
                INSERT INTO t SELECT i, 'row ' || i FROM n;";
    let full = stage.member(peer(1), key(1), &format!("{table}{rows}"), 1);
    let empty = stage.member(peer(2), key(1), table, 2);
    let bounds = Bounds { chunk_rows: rows_at_once, ..Bounds::default() };
    stage.at_mut(empty).store.set_bounds(bounds);
    let chunks = Rc::new(Cell::new(0));
    let counted = chunks.clone();
    stage.tap = Some(Box::new(move |passing| {
        if passing.bytes[0] == sealed::CHUNK {
            counted.set(counted.get() + 1);
        }
        vec![passing.bytes.clone()]
    }));
    stage.connect(full, empty);
    stage.run();
    assert_eq!(stage.read(empty, "SELECT count(*) FROM t"), ROWS.to_string());
    chunks.get()
}

#[test]
fn who_takes_few_rows_in_a_transaction_gets_small_chunks() {
    let at_once = chunks_for(100_000);
    assert!(chunks_for(100) >= at_once + 3);
    // A wish for ever so small chunks is not granted: it would cost the one who reads them.
    assert_eq!(chunks_for(1), chunks_for(100));
}
