//! Taking everything over runs alone, and keeps nobody from others for ever (rule P20).
#![allow(clippy::unwrap_used)]

mod forgetting;
mod stage;

use forgetting::*;
use stage::Stage;
use wavesync_core::ids::Millis;
use wavesync_core::limits::{self, Bounds};

/// Three members of whom one has much, sends it row by row and has forgotten a delete; another one, too,
/// if it is told `both`. The third one comes back.
fn one_is_slow(both: bool) -> Stage {
    let mut stage = group(3);
    stage.write(
        0,
        "INSERT INTO note VALUES('a', 1, 1);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 6000)
         INSERT INTO num SELECT i, i FROM n",
    );
    stage.pass(A_WHILE_MS);
    if !both {
        let now = Millis(stage.now);
        stage.at_mut(1).store.set_setting(now, "tombstone_keep_ms", "999999999").unwrap();
        stage.write(1, "");
    }
    isolate(&mut stage, 2);
    stage.write(0, "DELETE FROM note");
    stage.pass(2 * MEMBER_KEEP_MS);
    let left = if both { "0" } else { "1" };
    assert_eq!((tombstones(&stage, 0).as_str(), tombstones(&stage, 1).as_str()), ("0", left));
    isolate(&mut stage, 1);
    send_row_by_row(&mut stage, 0);
    stage
}

fn send_row_by_row(stage: &mut Stage, at: usize) {
    let small = Bounds { chunk_rows: 1, ..stage.at(at).store.bounds() };
    stage.at_mut(at).store.set_bounds(small);
}

/// Lets a little happen, and seconds pass.
fn slowly(stage: &mut Stage) {
    stage.run_some(10);
    stage.now += 5_000;
}

const NOTED: &str = "SELECT count(*) FROM __wavesync_resync";

/// A member that serves slowly and without end keeps nobody from others.
#[test]
fn p20_taking_everything_over_makes_way_for_others_now_and_then() {
    let mut stage = one_is_slow(false);
    stage.write(1, "INSERT INTO note VALUES('other', 0, 0)");
    stage.flip(0, 2);
    let start = stage.now;
    while stage.read(2, NOTED) == "0" {
        stage.run_some(1);
    }
    stage.flip(1, 2);
    while stage.read(2, "SELECT count(*) FROM note WHERE id = 'other'") == "0" {
        assert!(stage.read(2, NOTED) != "0", "everything was taken over before others had a turn");
        slowly(&mut stage);
    }
    assert!(stage.now - start < 2 * limits::RESYNC_TURN_MS);
    stage.pass(6 * limits::RESYNC_TURN_MS);
    assert_eq!(stage.read(2, NOTED), "0", "nothing is missing any more");
    connect_all(&mut stage);
    stage.pass(A_WHILE_MS);
    assert!(all_equal(&stage).starts_with("other|0|0\n1|1\n"));
}

/// What was noted of one member would be dropped, so another one from which everything would be taken
/// over waits for longer, but not for ever.
#[test]
fn p20_taking_everything_over_from_another_member_waits_for_longer() {
    let mut stage = one_is_slow(true);
    stage.flip(0, 2);
    while stage.read(2, NOTED) == "0" {
        stage.run_some(1);
    }
    let (start, turn) = (stage.now, limits::RESYNC_TURN_MS);
    let first = stage.at(2).machine.peers()[0].site.unwrap();
    stage.flip(1, 2);
    let from = |stage: &mut Stage| {
        let now = Millis(stage.now);
        stage.at_mut(2).store.own_state(now).unwrap().resync_from
    };
    while stage.now - start < 7 * turn {
        assert_eq!(from(&mut stage), Some(first), "after {} s", (stage.now - start) / 1_000);
        slowly(&mut stage);
    }
    while from(&mut stage) == Some(first) {
        assert!(stage.now - start < 10 * turn, "the other one never has its turn");
        slowly(&mut stage);
    }
    stage.pass(A_WHILE_MS);
    assert_eq!(
        (from(&mut stage), stage.read(2, "SELECT count(*) FROM note").as_str()),
        (None, "0")
    );
    assert_eq!(stage.read(2, "SELECT count(*) FROM num"), "6000");
}

/// The other way round: an ordinary catch-up without end is in the way.
#[test]
fn p20_a_slow_catch_up_makes_way_for_taking_everything_over() {
    let mut stage = group(4);
    stage.write(0, "INSERT INTO note VALUES('a', 1, 1)");
    stage.pass(1_000);
    isolate(&mut stage, 1);
    isolate(&mut stage, 2);
    stage.write(0, "DELETE FROM note");
    stage.pass(2 * MEMBER_KEEP_MS);
    assert_eq!((tombstones(&stage, 0).as_str(), tombstones(&stage, 1).as_str()), ("0", "0"));
    let much = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 6000)
         INSERT INTO num SELECT i, i FROM n";
    stage.write(1, much);
    send_row_by_row(&mut stage, 1);
    let others = "SELECT count(*) FROM num";
    stage.flip(1, 2);
    while stage.read(2, others) == "0" {
        stage.run_some(1);
    }
    let start = stage.now;
    stage.flip(0, 2);
    while stage.read(2, "SELECT count(*) FROM note") == "1" {
        slowly(&mut stage);
        assert_ne!(stage.read(2, others), "6000", "only after the whole catch-up");
    }
    assert!(stage.now - start < 2 * limits::RESYNC_TURN_MS);
}
