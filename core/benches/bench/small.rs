//! What small things cost: a few rows out of a long history, one cell, nothing at all.

use rusqlite::Connection;
use wavesync_core::ids::Seq;
use wavesync_core::wire;
use wavesync_core::wire::message::PushMessage;

use crate::data::{Bench, Capture, Key, engine, fold, now};
use crate::measure::{Report, Samples, millis, timed};

/// Rows changed since the requester's cursor.
const DELTA_ROWS: usize = 100;
/// Length of a frame, kind, flags and MAC, yamux, Noise.
const FRAMING_BYTES: usize = 4 + 2 + 16 + 12 + 18;
const POLLED_TABLES: usize = 60;
const POLLS: usize = 1_000;

pub fn delta(bench: &Bench, report: &mut Report) {
    let name = "delta of 100 rows";
    if !report.wants(&[name]) {
        return;
    }
    let (conn, store) = bench.filled("delta", Capture::Wavesync);
    let mut store = store.unwrap();
    let (end, vector) = store.folded(now(), |tx| Ok((tx.folded_end()?, tx.vector()?))).unwrap();
    for place in &bench.shuffled[..DELTA_ROWS] {
        let sql = "UPDATE t SET amount = amount + 1 WHERE id = ?1";
        match bench.key {
            Key::Integer => conn.execute(sql, [bench.rows[*place].id]),
            Key::Text => conn.execute(sql, [&bench.rows[*place].uuid]),
        }
        .unwrap();
    }
    fold(&mut store);
    let mut samples = Samples::default();
    for _ in 0..report.rounds * 10 {
        let (cpu, rows) = timed(|| {
            let piece = store.folded(now(), |tx| tx.read_piece(end, &vector)).unwrap();
            assert!(piece.last && !piece.rows.encode().is_empty());
            piece.rows.row_count()
        });
        assert_eq!(rows, DELTA_ROWS);
        samples.add("delta", cpu);
    }
    report.line(name, "<= 0.5 ms", &millis(samples.median("delta")), "read, packed, compressed");
}

pub fn one_cell(bench: &Bench, report: &mut Report) {
    let name = "wire bytes of one cell";
    if !report.wants(&[name]) {
        return;
    }
    let (conn, store) = bench.filled("cell", Capture::Wavesync);
    let mut store = store.unwrap();
    conn.execute_batch("UPDATE t SET amount = amount + 1 WHERE rowid = 7").unwrap();
    store.write(now(), |_| Ok(())).unwrap();
    let push = store.take_pushes().pop().unwrap();
    let rows = push.rows.unwrap().encode();
    let batch = rows.len();
    let (site, boot, prev, upto) = (push.site, push.boot, push.prev, push.upto);
    let message = PushMessage { site, boot, prev, upto, rows };
    let bytes = wire::encode(&message).unwrap().len() + FRAMING_BYTES;
    let detail = format!("the row batch {batch} B, seal and transport {FRAMING_BYTES} B");
    report.line(name, "<= 200 B", &format!("{bytes} B"), &detail);
}

pub fn empty_poll(report: &mut Report) {
    let name = "empty poll, 60 tables";
    if !report.wants(&[name]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("poll");
    let conn = Connection::open(&path).unwrap();
    conn.execute_batch("PRAGMA journal_mode=WAL").unwrap();
    for table in 0..POLLED_TABLES {
        let sql = format!("CREATE TABLE t{table}(id INTEGER PRIMARY KEY, a, b, c, d, e)");
        conn.execute_batch(&sql).unwrap();
    }
    let mut store = engine(&path, 1, true);
    conn.execute_batch("INSERT INTO t1 VALUES(1, 2, 3, 4, 5, 6)").unwrap();
    fold(&mut store);
    let (end, vector) = store.folded(now(), |tx| Ok((tx.folded_end()?, tx.vector()?))).unwrap();
    assert!(end > Seq(0));
    let (cpu, ()) = timed(|| {
        for _ in 0..POLLS {
            assert!(!store.committed_elsewhere().unwrap());
            let piece = store.folded(now(), |tx| tx.read_piece(end, &vector)).unwrap();
            assert!(piece.last && piece.rows.row_count() == 0);
        }
    });
    report.line(name, "<= 0.1 ms", &millis(cpu / POLLS as f64), "is there anything new?");
}
