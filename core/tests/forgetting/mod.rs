//! Groups that remember deletes for seconds.
#![allow(dead_code)]

use rusqlite::Connection;
use wavesync_core::ids::Millis;
use wavesync_core::store::Store;

use crate::stage::{Stage, key, peer};

pub const TABLES: &str = "CREATE TABLE note(id TEXT PRIMARY KEY, body, more);

    CREATE TABLE num(id INTEGER PRIMARY KEY, v);";
/// Who was away for longer is not waited for, in milliseconds.
pub const MEMBER_KEEP_MS: u64 = 60_000;

pub const TOMBSTONE_KEEP_MS: u64 = 1_000;

/// More than one search.
pub const A_WHILE_MS: u64 = 20_000;

pub fn keep_little(store: &mut Store, now: u64) {
    for (key, value) in
        [("member_keep_ms", MEMBER_KEEP_MS), ("tombstone_keep_ms", TOMBSTONE_KEEP_MS)]
    {
        store.set_setting(Millis(now), key, &value.to_string()).unwrap();
    }
}

/// Members who are all connected and keep things for a minute.
pub fn group(count: u8) -> Stage {
    let mut stage = Stage::new();
    for number in 1..=count {
        let at = stage.member(peer(number), key(7), TABLES, u64::from(number));
        let now = stage.now;
        keep_little(&mut stage.at_mut(at).store, now);
        stage.write(at, "");
    }
    connect_all(&mut stage);
    stage.pass(1_000);
    stage
}

pub fn connect_all(stage: &mut Stage) {
    let count = stage.actors.len();
    for (a, b) in (0..count).flat_map(|a| (a + 1..count).map(move |b| (a, b))) {
        if !stage.joined(a, b) {
            stage.connect(a, b);
        }
    }
}

pub fn isolate(stage: &mut Stage, at: usize) {
    for other in (0..stage.actors.len()).filter(|other| *other != at) {
        stage.disconnect(at, other);
    }
}

pub fn tombstones(stage: &Stage, at: usize) -> String {
    stage.read(
        at,
        "SELECT (SELECT count(*) FROM __wavesync_clock_1 WHERE cl % 2 = 0)
              + (SELECT count(*) FROM __wavesync_clock_2 WHERE cl % 2 = 0)",
    )
}

pub fn rows(stage: &Stage, at: usize) -> String {
    let notes = stage.read(at, "SELECT id, body, more FROM note ORDER BY id");
    format!("{notes}\n{}", stage.read(at, "SELECT id, v FROM num ORDER BY id"))
}

pub fn all_equal(stage: &Stage) -> String {
    let first = rows(stage, 0);
    (1..stage.actors.len()).for_each(|at| assert_eq!(rows(stage, at), first, "member {at}"));
    first
}

/// An old copy of a file as `sqlite3_backup` makes it.
pub fn backup(from: &Connection, to: &mut Connection) {
    let backup = rusqlite::backup::Backup::new(from, to).unwrap();
    backup.run_to_completion(1_000, std::time::Duration::ZERO, None).unwrap();
}

/// A member that is away while a row is deleted and that is forgotten. It wrote meanwhile.
pub fn away_for_too_long() -> Stage {
    let mut stage = group(3);
    stage.write(
        0,
        "INSERT INTO note VALUES('a', 1, 1), ('b', 2, 2), ('c', 3, 3), ('d', 4, 4);
         INSERT INTO num VALUES(1, 'one'), (2, 'two'), (3, 'three')",
    );
    stage.pass(1_000);
    isolate(&mut stage, 2);
    stage.write(0, "DELETE FROM note WHERE id IN ('a', 'b'); DELETE FROM num WHERE id < 3");
    stage.pass(MEMBER_KEEP_MS + A_WHILE_MS);
    assert_eq!((tombstones(&stage, 0), tombstones(&stage, 1)), ("0".into(), "0".into()));
    stage.write(1, "INSERT INTO num VALUES(1, 'another one')");
    stage.write(
        2,
        "UPDATE note SET body = 'edited' WHERE id IN ('b', 'c');
         INSERT INTO note VALUES('n', 'new', 0); INSERT INTO num VALUES(9, 'nine');
         UPDATE num SET v = 'edited' WHERE id = 3",
    );
    stage
}

/// What everybody holds once it has come back.
pub const AFTER: &str = "c|edited|3\nd|4|4\nn|new|0\n1|another one\n3|edited\n9|nine";
