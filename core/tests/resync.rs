//! Who was away for longer than deletes are remembered comes back without harm (rules P19, P20, K5). The
//! simulator has the same under all kinds of interruptions.
#![allow(clippy::unwrap_used)]

mod forgetting;
mod stage;

use forgetting::*;
use rusqlite::Connection;
use stage::{Stage, key, peer};
use wavesync_core::ids::Millis;
use wavesync_core::limits::Bounds;
use wavesync_core::store::Store;
use wavesync_core::wire::message::sealed;

#[test]
fn p20_who_was_away_loses_what_was_deleted_and_keeps_what_it_wrote() {
    let mut stage = away_for_too_long();
    connect_all(&mut stage);
    stage.pass(A_WHILE_MS);
    assert_eq!(all_equal(&stage), AFTER);
    let told = stage.codes(2).into_iter().filter(|code| *code == "resync").count();
    assert_eq!(told, 1, "{:?}", stage.codes(2));
    assert!(!stage.codes(0).contains(&"resync") && !stage.codes(1).contains(&"resync"));
    // The edit of a row that is gone is kept for the user.
    let kept = "SELECT k, ours FROM __wavesync_conflict WHERE kind = 'overwritten'";
    assert_eq!(stage.read(2, kept), "b|{\"body\": \"edited\", \"more\": 2}");
    assert_eq!(stage.read(2, "SELECT count(*) FROM __wavesync_resync"), "0");
    // From here on it is a member like any other.
    let requests = |stage: &Stage| -> u64 {
        (0..3).flat_map(|at| stage.at(at).machine.peers()).map(|peer| peer.requests_out).sum()
    };
    let before = requests(&stage);
    stage.write(2, "DELETE FROM note WHERE id = 'n'; UPDATE num SET v = 'last' WHERE id = 9");
    stage.pass(1_000);
    assert_eq!(all_equal(&stage), "c|edited|3\nd|4|4\n1|another one\n3|edited\n9|last");
    assert_eq!(requests(&stage), before, "pushes are enough");
}

#[test]
fn p20_a_pass_that_takes_everything_over_goes_on_where_it_was_cut() {
    let mut stage = away_for_too_long();
    let bounds = Bounds { chunk_rows: 1, chunk_scan_entries: 2, ..Bounds::default() };
    stage.at_mut(0).store.set_bounds(bounds);
    let many: Vec<String> = (10..40).map(|n| format!("('e{n}', {n}, 0)")).collect();
    stage.write(0, &format!("INSERT INTO note VALUES {}", many.join(", ")));
    let mut places = Vec::new();
    for cut in 0..40 {
        stage.connect_and_cut_after(0, 2, 6);
        places.push(stage.read(2, "SELECT count(*) FROM __wavesync_resync"));
        if stage.read(2, "SELECT 1 FROM __wavesync_meta WHERE key = 'resync'").is_empty() && cut > 0
        {
            break;
        }
    }
    connect_all(&mut stage);
    stage.pass(A_WHILE_MS);
    let lines: Vec<_> = all_equal(&stage).lines().map(String::from).collect();
    assert_eq!(lines.len(), AFTER.lines().count() + many.len());
    let noted: Vec<u64> = places.iter().map(|noted| noted.parse().unwrap()).collect();
    assert!(noted.iter().filter(|noted| **noted > 0).count() > 1, "it was cut: {noted:?}");
    let grows = noted.windows(2).all(|pair| pair[0] <= pair[1] || pair[1] == 0);
    assert!(grows, "it begins anew: {noted:?}");
}

#[test]
fn p20_a_pass_that_takes_everything_over_begins_anew_when_more_is_forgotten() {
    let mut stage = away_for_too_long();
    let bounds = Bounds { chunk_rows: 1, chunk_scan_entries: 2, ..Bounds::default() };
    stage.at_mut(0).store.set_bounds(bounds);
    let noted = |stage: &Stage| -> u64 {
        stage.read(2, "SELECT count(*) FROM __wavesync_resync WHERE k = 'd'").parse().unwrap()
    };
    for _ in 0..40 {
        stage.connect_and_cut_after(0, 2, 6);
        if noted(&stage) == 1 {
            break;
        }
    }
    assert_eq!(noted(&stage), 1, "the row was seen before the pass was cut");
    stage.write(0, "DELETE FROM note WHERE id = 'd'");
    stage.pass(MEMBER_KEEP_MS + A_WHILE_MS);
    assert_eq!(tombstones(&stage, 0), "0", "its delete is forgotten, too");
    connect_all(&mut stage);
    stage.pass(A_WHILE_MS);
    assert_eq!(all_equal(&stage), AFTER.replace("d|4|4\n", ""));
}

/// What a member cannot send, here because it is too large, is no sign that it was deleted there.
#[test]
fn p20_what_a_member_cannot_send_stays_with_who_comes_back() {
    let mut stage = away_for_too_long();
    isolate(&mut stage, 1);
    stage.write(0, "UPDATE note SET more = zeroblob(67200000) WHERE id = 'd'");
    stage.write(0, "INSERT INTO note VALUES('e', 0, zeroblob(67200000))");
    stage.connect(0, 2);
    stage.pass(A_WHILE_MS);
    assert_eq!(stage.read(2, "SELECT count(*) FROM note WHERE id = 'd'"), "1");
    assert!(stage.codes(0).contains(&"row_too_large"));
    let named = "SELECT count(*) FROM __wavesync_clock_1 WHERE k = 'e'";
    assert_eq!(stage.read(2, named), "0", "that it exists makes no row");
    assert_eq!(stage.read(2, "SELECT count(*) FROM note WHERE id = 'a'"), "0");
}

/// The row was deleted, and that forgotten, while its table was not tracked here.
#[test]
fn p20_a_row_that_was_deleted_while_its_table_was_untracked_does_not_come_back() {
    let mut stage = group(3);
    stage.write(0, "INSERT INTO note VALUES('a', 1, 1), ('b', 2, 2); INSERT INTO num VALUES(1, 1)");
    stage.pass(A_WHILE_MS);
    let track = |stage: &mut Stage, on: bool| {
        let now = Millis(stage.now);
        for table in ["note", "num"] {
            let store = &mut stage.at_mut(2).store;
            if on { store.track(now, table) } else { store.untrack(now, table) }.unwrap();
        }
        stage.write(2, "");
        stage.pass(A_WHILE_MS);
    };
    track(&mut stage, false);
    stage.write(0, "DELETE FROM note WHERE id = 'a'; DELETE FROM num");
    stage.pass(2 * MEMBER_KEEP_MS);
    (0..3).for_each(|at| assert_eq!(tombstones(&stage, at), "0", "member {at}"));
    assert_eq!(stage.read(2, "SELECT count(*) FROM note"), "2", "it stands there");
    track(&mut stage, true);
    stage.pass(A_WHILE_MS);
    assert_eq!(all_equal(&stage), "b|2|2\n");
}

/// A row of the future is held by who is away when it is deleted elsewhere and that is forgotten.
#[test]
fn p20_what_is_held_of_a_row_that_was_deleted_does_not_bring_it_back() {
    let mut stage = group(3);
    stage.write(0, "INSERT INTO note VALUES('b', 2, 2)");
    // For members 0 and 1 nothing is too far ahead.
    for at in 0..2 {
        let now = Millis(stage.now);
        stage.at_mut(at).store.set_setting(now, "future_limit_ms", "999999999").unwrap();
    }
    let hour = 3_600_000;
    stage.now += hour;
    stage.commit(0, "INSERT INTO note VALUES('f', 0, 0)");
    stage.run_some(1);
    stage.now -= hour;
    stage.run();
    let held = "SELECT count(*) FROM __wavesync_held";
    assert_eq!((stage.read(1, held), stage.read(2, held)), ("0".into(), "1".into()));
    isolate(&mut stage, 2);
    stage.write(1, "DELETE FROM note WHERE id = 'f'");
    stage.pass(2 * hour);
    assert_eq!((tombstones(&stage, 0), tombstones(&stage, 1)), ("0".into(), "0".into()));
    connect_all(&mut stage);
    stage.pass(A_WHILE_MS);
    assert_eq!(all_equal(&stage), "b|2|2\n");
}

/// Two members wrote key 1. Where it collided the later row had to move; who was away has it where it
/// was, in the table or, from a clock that is ahead, held.
#[test]
fn p20_a_row_that_had_to_move_is_not_kept_where_it_was() {
    let hour = 3_600_000;
    for ahead in [false, true] {
        let mut stage = group(3);
        isolate(&mut stage, 0);
        stage.write(0, "INSERT INTO num VALUES(1, 'first')");
        if ahead {
            let now = Millis(stage.now);
            (0..2).for_each(|at| {
                stage.at_mut(at).store.set_setting(now, "future_limit_ms", "999999999").unwrap();
            });
            stage.now += hour;
        }
        stage.now += 10;
        stage.commit(1, "INSERT INTO num VALUES(1, 'later')");
        stage.run_some(1);
        stage.now -= if ahead { hour } else { 0 };
        stage.run();
        let here = stage.read(2, "SELECT count(*) FROM num");
        assert_eq!(here, if ahead { "0" } else { "1" });
        isolate(&mut stage, 2);
        stage.connect(0, 1);
        assert_eq!(stage.read(0, "SELECT count(*) FROM num"), "2");
        stage.write(0, "DELETE FROM num WHERE id = 1");
        stage.pass(2 * MEMBER_KEEP_MS + if ahead { hour } else { 0 });
        assert_eq!((tombstones(&stage, 0), tombstones(&stage, 1)), ("0".into(), "0".into()));
        connect_all(&mut stage);
        stage.pass(A_WHILE_MS);
        all_equal(&stage);
        assert_eq!(stage.read(2, "SELECT v, id < 0 FROM num"), "later|1", "ahead: {ahead}");
    }
}

/// The same the other way round: who has seen the collision comes back to a member that has not.
#[test]
fn p20_a_row_that_had_to_move_stands_once_where_nobody_knows_why() {
    let mut stage = group(3);
    stage.write(0, "INSERT INTO note VALUES('a', 1, 1)");
    isolate(&mut stage, 0);
    stage.write(0, "INSERT INTO num VALUES(1, 'first')");
    stage.now += 10;
    stage.write(1, "INSERT INTO num VALUES(1, 'later')");
    isolate(&mut stage, 2);
    stage.connect(0, 1);
    stage.write(0, "DELETE FROM num WHERE id = 1");
    stage.pass(2 * MEMBER_KEEP_MS);
    assert_eq!((tombstones(&stage, 0), tombstones(&stage, 1)), ("0".into(), "0".into()));
    isolate(&mut stage, 1);
    // Now member 2 forgets something that the others have not seen, together with a newcomer.
    let new = stage.member(peer(9), key(7), TABLES, 9);
    let now = stage.now;
    keep_little(&mut stage.at_mut(new).store, now);
    stage.write(new, "");
    stage.connect(2, new);
    stage.write(2, "DELETE FROM note");
    stage.pass(2 * MEMBER_KEEP_MS);
    assert_eq!((tombstones(&stage, 2), tombstones(&stage, new)), ("0".into(), "0".into()));
    connect_all(&mut stage);
    stage.pass(A_WHILE_MS);
    assert!(stage.codes(0).contains(&"apart"));
    for at in 0..2 {
        let now = Millis(stage.now);
        assert!(stage.at_mut(at).store.resync(now).unwrap());
        stage.committed(at);
        stage.pass(A_WHILE_MS);
    }
    all_equal(&stage);
    assert_eq!(stage.read(0, "SELECT v FROM num"), "later");
}

/// The pass is cut after the row was noted; then somebody else tells of the row that has its key.
#[test]
fn p20_a_row_that_moves_while_everything_is_taken_over_stays() {
    let mut stage = group(4);
    stage.write(0, "INSERT INTO note VALUES('a', 1, 1)");
    stage.pass(1_000);
    isolate(&mut stage, 1);
    stage.write(1, "INSERT INTO num VALUES(5, 'first')");
    stage.now += 10;
    stage.write(
        0,
        "WITH RECURSIVE n(i) AS (SELECT 5 UNION ALL SELECT i + 1 FROM n WHERE i < 50)
         INSERT INTO num SELECT i, 'later' FROM n",
    );
    stage.pass(1_000);
    isolate(&mut stage, 2);
    stage.write(0, "DELETE FROM note");
    stage.pass(2 * MEMBER_KEEP_MS);
    assert_eq!(tombstones(&stage, 0), "0");
    let small = Bounds { chunk_rows: 1, ..stage.at(0).store.bounds() };
    stage.at_mut(0).store.set_bounds(small);
    stage.flip(0, 2);
    while stage.read(2, "SELECT count(*) FROM __wavesync_resync WHERE k = 5") == "0" {
        stage.run_some(1);
    }
    stage.disconnect(0, 2);
    stage.connect(1, 2);
    stage.disconnect(1, 2);
    assert_eq!(stage.read(2, "SELECT count(*), min(id) < 0 FROM num"), "47|1");
    stage.connect(0, 2);
    stage.pass(A_WHILE_MS);
    assert_eq!(stage.read(2, "SELECT count(*) FROM __wavesync_resync"), "0", "it is through");
    assert_eq!(stage.read(2, "SELECT count(*), min(id) < 0 FROM num"), "47|1");
    connect_all(&mut stage);
    stage.pass(A_WHILE_MS);
    all_equal(&stage);
    assert!(!stage.codes(2).contains(&"difference"), "that would have mended it");
}

/// Rows that refer to one that had to move follow it.
#[test]
fn p20_links_follow_a_row_that_is_not_kept_where_it_was() {
    let mut stage = Stage::new();
    let tables = format!("{TABLES} CREATE TABLE kid(id TEXT PRIMARY KEY, num REFERENCES num(id));");
    for number in 1..=3 {
        let at = stage.member(peer(number), key(7), &tables, u64::from(number));
        let now = stage.now;
        keep_little(&mut stage.at_mut(at).store, now);
        stage.write(at, "");
    }
    connect_all(&mut stage);
    stage.pass(1_000);
    isolate(&mut stage, 0);
    stage.write(0, "INSERT INTO num VALUES(1, 'first')");
    stage.now += 10;
    stage.write(1, "INSERT INTO num VALUES(1, 'later')");
    isolate(&mut stage, 2);
    stage.write(2, "INSERT INTO kid VALUES('k', 1)");
    stage.connect(0, 1);
    stage.write(0, "DELETE FROM num WHERE id = 1");
    stage.pass(2 * MEMBER_KEEP_MS);
    connect_all(&mut stage);
    stage.pass(A_WHILE_MS);
    for at in 0..3 {
        let kid = "SELECT v, num.id < 0 FROM kid JOIN num ON num.id = kid.num";
        assert_eq!(stage.read(at, kid), "later|1", "member {at}");
    }
}

/// What could not be sent was not seen by anybody, so that it is not there says nothing.
#[test]
fn p20_a_row_that_was_too_large_to_be_sent_stays() {
    let mut stage = group(3);
    stage.write(0, "INSERT INTO note VALUES('a', 1, 1)");
    stage.write(2, "INSERT INTO note VALUES('large', 0, zeroblob(67200000))");
    stage.write(2, "INSERT INTO note VALUES('small', 0, 0)");
    stage.pass(A_WHILE_MS);
    isolate(&mut stage, 2);
    stage.write(0, "DELETE FROM note WHERE id = 'a'");
    stage.pass(2 * MEMBER_KEEP_MS);
    connect_all(&mut stage);
    stage.pass(A_WHILE_MS);
    assert!(stage.codes(2).contains(&"resync"));
    assert_eq!(stage.read(2, "SELECT id FROM note ORDER BY id"), "large\nsmall");
}

/// A newcomer that has no room for what the others have does not read it again and again.
#[test]
fn p20_what_finds_no_room_is_taken_over_once() {
    let mut stage = group(2);
    stage.write(0, "INSERT INTO note VALUES('a', 1, 1), ('b', 2, 2), ('c', 3, 3)");
    stage.write(0, "DELETE FROM note WHERE id = 'a'");
    stage.pass(A_WHILE_MS);
    assert_eq!(tombstones(&stage, 0), "0");
    let new = stage.member(peer(9), key(7), "CREATE TABLE other(id TEXT PRIMARY KEY)", 9);
    let small = Bounds { parked_rows: 1, ..stage.at(new).store.bounds() };
    stage.at_mut(new).store.set_bounds(small);
    stage.connect(0, new);
    stage.pass(5 * 60_000);
    let requests = stage.at(new).machine.peers()[0].requests_out;
    assert!(requests <= 4, "{requests} requests");
}

/// What an earlier build noted of a pass would look like rows that are missing.
#[test]
fn p20_a_pass_that_an_earlier_build_began_begins_anew() {
    let mut stage = group(1);
    let now = Millis(stage.now);
    let conn = stage.end(0).into_connection();
    conn.execute_batch(
        "CREATE TABLE __wavesync_noted(tbl INTEGER NOT NULL, k NOT NULL, PRIMARY KEY(tbl, k))
           WITHOUT ROWID;
         INSERT INTO __wavesync_meta VALUES('resync', x'00');",
    )
    .unwrap();
    let mut store = Store::open(conn).unwrap();
    assert!(store.own_state(now).unwrap().resync_from.is_none());
    let left = "SELECT count(*) FROM sqlite_schema WHERE name = '__wavesync_noted'";
    let left: i64 = store.connection().query_row(left, [], |row| row.get(0)).unwrap();
    assert_eq!(left, 0);
}

/// A delete of the future that is held says more than the member's row that stands there.
#[test]
fn p20_a_delete_that_is_held_stays_held() {
    let hour = 3_600_000;
    let mut stage = group(3);
    stage.write(0, "INSERT INTO note VALUES('a', 1, 1); INSERT INTO num VALUES(1, 'old')");
    isolate(&mut stage, 0);
    stage.write(1, "DELETE FROM num");
    stage.write(1, "INSERT INTO num VALUES(1, 'new')");
    stage.pass(1_000);
    assert_eq!(stage.read(2, "SELECT v FROM num"), "new");
    isolate(&mut stage, 1);
    for at in 0..2 {
        let now = Millis(stage.now);
        stage.at_mut(at).store.set_setting(now, "future_limit_ms", "999999999").unwrap();
    }
    stage.now += hour;
    stage.commit(0, "DELETE FROM num");
    stage.run_some(1);
    stage.now -= hour;
    stage.connect(0, 2);
    let held = "SELECT count(*) FROM __wavesync_held";
    assert_eq!(stage.read(2, held), "1");
    isolate(&mut stage, 2);
    // Before its clock follows the one that is ahead.
    stage.write(1, "DELETE FROM note");
    stage.connect(0, 1);
    stage.pass(2 * MEMBER_KEEP_MS);
    connect_all(&mut stage);
    stage.pass(A_WHILE_MS);
    assert_eq!(stage.read(2, "SELECT count(*) FROM note"), "0", "taken over");
    assert_eq!(stage.read(2, held), "1");
    stage.pass(2 * hour);
    assert_eq!(all_equal(&stage), "\n1|new");
}

/// An old copy of a file knows nothing of what was deleted after it was made, and claims all the same
/// what its own history says.
#[test]
fn p20_an_old_copy_that_is_restored_does_not_keep_what_was_deleted_and_forgotten() {
    let mut stage = group(2);
    stage.write(0, "INSERT INTO note VALUES('a', 1, 1), ('b', 2, 2); INSERT INTO num VALUES(1, 1)");
    stage.pass(A_WHILE_MS);
    let mut copy = Connection::open_in_memory().unwrap();
    backup(stage.at(0).store.connection(), &mut copy);
    stage.write(0, "DELETE FROM note WHERE id = 'a'; DELETE FROM num");
    stage.pass(A_WHILE_MS);
    assert_eq!((tombstones(&stage, 0), tombstones(&stage, 1)), ("0".into(), "0".into()));
    isolate(&mut stage, 0);
    stage.restored(0, copy);
    stage.write(0, "INSERT INTO note VALUES('c', 3, 3)");
    stage.connect(0, 1);
    stage.pass(A_WHILE_MS);
    assert!(stage.codes(0).contains(&"new_identity"));
    assert_eq!(all_equal(&stage), "b|2|2\nc|3|3\n");
}

/// Who waits for what it lost cannot tell whether a row that it wrote under a former identity was deleted
/// and forgotten, or whether nobody has sent it yet.
#[test]
fn p20_who_cannot_tell_what_was_forgotten_takes_everything_over() {
    let mut stage = group(2);
    stage.write(1, "INSERT INTO note VALUES('a', 1, 1), ('b', 2, 2); INSERT INTO num VALUES(1, 1)");
    stage.pass(A_WHILE_MS);
    let track = |stage: &mut Stage, at: usize, table: &str, on: bool| {
        let now = Millis(stage.now);
        let store = &mut stage.at_mut(at).store;
        if on { store.track(now, table) } else { store.untrack(now, table) }.unwrap();
        stage.write(at, "");
        stage.pass(A_WHILE_MS);
    };
    track(&mut stage, 1, "note", false);
    let now = Millis(stage.now);
    stage.at_mut(0).store.set_setting(now, "tombstone_keep_ms", "999999999").unwrap();
    stage.write(0, "DELETE FROM note WHERE id = 'a'");
    stage.pass(2 * MEMBER_KEEP_MS);
    assert_eq!((tombstones(&stage, 0), tombstones(&stage, 1)), ("1".into(), "0".into()));
    isolate(&mut stage, 1);
    track(&mut stage, 1, "num", false);
    track(&mut stage, 1, "note", true);
    let notes = |stage: &Stage, at| stage.read(at, "SELECT id, body, more FROM note ORDER BY id");
    assert_eq!(notes(&stage, 1), "a|1|1\nb|2|2", "nobody is there who could tell");
    assert!(!stage.codes(1).contains(&"resync"));
    stage.connect(0, 1);
    stage.pass(A_WHILE_MS);
    assert!(stage.codes(1).contains(&"resync"));
    assert_eq!((notes(&stage, 0), notes(&stage, 1)), ("b|2|2".into(), "b|2|2".into()));
    let now = Millis(stage.now);
    assert!(!stage.at_mut(1).store.own_state(now).unwrap().stale, "once");
}

#[test]
fn p19_nothing_of_who_has_to_take_everything_over_is_merged_before() {
    let mut stage = away_for_too_long();
    // Its request does not get through, but everything that it says does.
    let asked = |bytes: &[u8]| bytes[0] == sealed::REQUEST;
    stage.tap = Some(Box::new(move |frame| {
        if frame.from == 2 && asked(&frame.bytes) { Vec::new() } else { vec![frame.bytes.clone()] }
    }));
    connect_all(&mut stage);
    stage.write(2, "UPDATE note SET more = 'pushed' WHERE id = 'a'");
    stage.pass(5_000);
    let others = "c|3|3\nd|4|4\n1|another one\n3|three";
    assert_eq!((rows(&stage, 0), rows(&stage, 1)), (others.into(), others.into()));
    stage.tap = None;
    stage.pass(2 * A_WHILE_MS);
    assert_eq!(all_equal(&stage), AFTER);
}

#[test]
fn k5_two_groups_that_forgot_apart_exchange_nothing_and_are_told_what_to_do() {
    let mut stage = group(4);
    stage.write(
        0,
        "INSERT INTO note VALUES('a', 1, 1), ('b', 2, 2), ('c', 3, 3);
         INSERT INTO num VALUES(1, 1), (2, 2)",
    );
    stage.pass(1_000);
    for (a, b) in [(0, 2), (0, 3), (1, 2), (1, 3)] {
        stage.disconnect(a, b);
    }
    stage.pass(MEMBER_KEEP_MS);
    stage.write(0, "DELETE FROM note WHERE id = 'a'; INSERT INTO note VALUES('left', 0, 0)");
    stage.write(2, "DELETE FROM note WHERE id = 'b'; INSERT INTO note VALUES('right', 0, 0)");
    stage.pass(A_WHILE_MS);
    (0..4).for_each(|at| assert_eq!(tombstones(&stage, at), "0"));
    let (left, right) = (rows(&stage, 0), rows(&stage, 2));
    connect_all(&mut stage);
    stage.pass(A_WHILE_MS);
    assert_eq!((rows(&stage, 1), rows(&stage, 3)), (left, right), "nothing is exchanged");
    for at in 0..4 {
        let told = stage.codes(at).into_iter().filter(|code| *code == "apart").count();
        assert_eq!(told, 2, "once for each: {:?}", stage.codes(at));
        let apart = stage.at(at).machine.peers().iter().filter(|p| p.state == "apart").count();
        assert_eq!(apart, 2);
    }
    // Each side goes on by itself.
    stage.write(3, "UPDATE note SET more = 'on' WHERE id = 'right'");
    assert_eq!(rows(&stage, 2), rows(&stage, 3));
    // What the hint says, for one member of one side; the other one follows it by itself.
    let now = Millis(stage.now);
    assert!(stage.at_mut(2).store.resync(now).unwrap());
    stage.write(2, "");
    stage.pass(2 * A_WHILE_MS);
    // Deletes that this side had forgotten come back with the rows of the other; nothing is lost.
    assert_eq!(all_equal(&stage), "b|2|2\nc|3|3\nleft|0|0\nright|0|on\n1|1\n2|2");
    (0..4).for_each(|at| {
        let peers = stage.at(at).machine.peers();
        assert!(peers.iter().all(|peer| peer.state == "synced"), "{peers:?}");
    });
}
