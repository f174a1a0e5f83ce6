//! What is shown of a catch-up while it runs.
#![allow(clippy::unwrap_used)]

mod stage;

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
