//! The VFS of the browser build, on top of this system's own: two connections share a file, its
//! locks and its WAL index, as they would through the system. It is the same source file; that it
//! works on the browser's storage is tested in a browser.
#![allow(clippy::unwrap_used)]

#[path = "../../wasm/src/vfs.rs"]
mod vfs;

use std::path::Path;

use rusqlite::{Connection, ErrorCode, OpenFlags};

fn open(path: &Path) -> Connection {
    vfs::register(c"unix-none").unwrap();
    let conn = Connection::open_with_flags_and_vfs(path, OpenFlags::default(), vfs::NAME).unwrap();
    conn.busy_timeout(std::time::Duration::ZERO).unwrap();
    conn
}

fn mode(conn: &Connection, wanted: &str) -> String {
    conn.query_row(&format!("PRAGMA journal_mode={wanted}"), [], |row| row.get(0)).unwrap()
}

fn count(conn: &Connection) -> i64 {
    conn.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap()
}

fn is_busy(result: rusqlite::Result<()>) -> bool {
    result.is_err_and(|error| error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy))
}

#[test]
fn two_connections_see_each_others_commits_and_one_writes_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.db");
    for journal in ["wal", "delete"] {
        let (a, b) = (open(&path), open(&path));
        assert_eq!(mode(&a, journal), journal);
        a.execute_batch("DROP TABLE IF EXISTS t; CREATE TABLE t(x)").unwrap();
        a.execute_batch("BEGIN IMMEDIATE; INSERT INTO t VALUES(1)").unwrap();
        assert!(is_busy(b.execute_batch("BEGIN IMMEDIATE")), "{journal}: one writer");
        assert_eq!(count(&b), 0, "{journal}: nothing uncommitted is seen");
        a.execute_batch("COMMIT").unwrap();
        assert_eq!(count(&b), 1);
        let version = |conn: &Connection| -> i64 {
            conn.query_row("PRAGMA data_version", [], |row| row.get(0)).unwrap()
        };
        let before = version(&a);
        b.execute_batch("INSERT INTO t VALUES(2)").unwrap();
        assert_ne!(version(&a), before, "{journal}: a commit is noticed");
        assert_eq!(count(&a), 2);
        // A reader keeps what it saw, and a writer goes on beside it in WAL mode only.
        b.execute_batch("BEGIN; SELECT * FROM t").unwrap();
        assert_eq!(count(&b), 2);
        let written = a.execute_batch("INSERT INTO t VALUES(3)");
        assert_eq!(written.is_ok(), journal == "wal", "{journal}: {written:?}");
        assert_eq!(count(&b), 2, "{journal}: a snapshot");
        b.execute_batch("COMMIT").unwrap();
        if journal == "delete" {
            a.execute_batch("INSERT INTO t VALUES(3)").unwrap();
        }
        assert_eq!(count(&b), 3);
        let checked: String = b.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(checked, "ok");
    }
}

#[test]
fn what_was_committed_to_a_wal_that_nobody_closed_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let (path, copy) = (dir.path().join("a.db"), dir.path().join("b.db"));
    let conn = open(&path);
    assert_eq!(mode(&conn, "wal"), "wal");
    conn.execute_batch("PRAGMA wal_autocheckpoint=0; CREATE TABLE t(x); INSERT INTO t VALUES(1)")
        .unwrap();
    // The state after a crash: the files as they are, and no index in memory.
    std::fs::copy(&path, &copy).unwrap();
    std::fs::copy(dir.path().join("a.db-wal"), dir.path().join("b.db-wal")).unwrap();
    assert_eq!(count(&open(&copy)), 1);
    assert!(!dir.path().join("a.db-shm").exists(), "the index is in memory");
}

#[test]
fn interleaved_writes_are_all_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.db");
    let conns = [open(&path), open(&path), open(&path)];
    assert_eq!(mode(&conns[0], "wal"), "wal");
    conns[0].execute_batch("CREATE TABLE t(x INTEGER PRIMARY KEY, y)").unwrap();
    for number in 0..300 {
        let conn = &conns[number % 3];
        conn.execute("INSERT INTO t(y) VALUES(randomblob(3000))", []).unwrap();
        assert_eq!(count(&conns[(number + 1) % 3]), number as i64 + 1);
    }
    // The last one to close checkpoints and removes the WAL.
    drop(conns);
    assert!(!dir.path().join("a.db-wal").exists());
    assert_eq!(count(&open(&path)), 300);
}
