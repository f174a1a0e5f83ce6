//! What begins when two members meet, ended after each of its steps: the connection is lost, or one
//! of the two starts again. In the end nothing is missing, whatever the step was.
#![allow(clippy::unwrap_used)]

mod forgetting;
mod stage;

use forgetting::*;
use rusqlite::Connection;
use stage::{Interruption, Stage, key, peer};
use wavesync_core::ids::Millis;
use wavesync_core::limits::{Bounds, FUTURE_LIMIT_MS};
use wavesync_core::store::Store;
use wavesync_core::store::identity::FileIdentity;
use wavesync_core::wire::message::sealed;

/// Chunks that may be in flight on one stream.
const IN_FLIGHT: i64 = 4;

/// Members `a` and `b` of a scene meet, and are interrupted after 0, 1, 2, … inputs of either: most are
/// messages. The handshake and the first words of both take about 17.
fn swept(least: usize, scene: impl Fn() -> Stage, [a, b]: [usize; 2], holds: impl Fn(&mut Stage)) {
    for how in [Interruption::Cut, Interruption::Restart(a), Interruption::Restart(b)] {
        let mut inputs = 0;
        loop {
            let mut stage = scene();
            let left = stage.interrupted(a, b, inputs, how);
            connect_all(&mut stage);
            stage.pass(10_000);
            let outcome =
                std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| holds(&mut stage)));
            assert!(outcome.is_ok(), "{how:?} after {inputs} inputs (what differs is above)");
            if !left {
                break;
            }
            inputs += 1;
        }
        assert!(inputs >= least, "only {inputs} inputs: nothing was interrupted");
        eprintln!("{how:?}: {inputs} inputs");
    }
}

/// Rows that are not written in the order of their keys.
fn fill(stage: &mut Stage, at: usize) {
    let notes: Vec<String> = (0..9).map(|n| format!("('k{}', {n}, 0)", n * 7 % 10)).collect();
    stage.write(at, &format!("INSERT INTO note VALUES {}", notes.join(", ")));
    stage.write(at, "INSERT INTO num VALUES(5, 'five'), (3, 'three'), (4, 'four')");
    stage.write(
        at,
        "UPDATE note SET body = 'new' WHERE id < 'k4'; DELETE FROM note WHERE id = 'k0'",
    );
}

/// Chunks of a row or two, so that everything has many messages.
fn small(stage: &mut Stage) {
    for at in 0..stage.actors.len() {
        let store = &mut stage.at_mut(at).store;
        let bounds = Bounds { chunk_rows: 2, chunk_scan_entries: 2, ..store.bounds() };
        store.set_bounds(bounds);
    }
}

/// Chunks of the first member. Those of the other one, which has one row, are almost all empty.
fn chunks(stage: &Stage) -> i64 {
    let sent = stage.sent.iter().filter(|frame| frame.from == 0 && frame.bytes[0] == sealed::CHUNK);
    sent.count() as i64
}

fn nothing_waits(stage: &Stage, rows: &str, least: usize) {
    assert!(rows.lines().count() >= least, "{rows}");
    for at in 0..stage.actors.len() {
        assert_eq!(stage.read(at, "SELECT count(*) FROM __wavesync_parked"), "0", "member {at}");
    }
}

#[test]
fn a_first_sync() {
    let scene = || {
        let mut stage = Stage::new();
        for number in 1..=2 {
            stage.member(peer(number), key(7), TABLES, u64::from(number));
        }
        small(&mut stage);
        fill(&mut stage, 0);
        let more: Vec<String> = (10..40).map(|n| format!("('m{n}', {n}, 0)")).collect();
        stage.write(0, &format!("INSERT INTO note VALUES {}", more.join(", ")));
        // What the newcomer has is of interest, too.
        stage.write(1, "INSERT INTO note VALUES('own', 1, 1)");
        stage
    };
    let mut whole = scene();
    whole.connect(0, 1);
    whole.pass(10_000);
    let once = chunks(&whole);
    assert!(once > 4 * IN_FLIGHT, "{once} chunks");
    swept(50, scene, [0, 1], |stage| {
        // It goes on where it was: what was in flight is sent again.
        let again = chunks(stage) - once;
        assert!(again <= IN_FLIGHT, "{again} of {once} chunks were sent again");
        let rows = all_equal(stage);
        assert_eq!(rows.lines().count(), 42, "{rows}");
        nothing_waits(stage, &rows, 12);
    });
}

/// The cursor of a member lies below what is left of the log (rule K2).
#[test]
fn a_catch_up_from_below_the_horizon() {
    let scene = || {
        let mut stage = group(2);
        small(&mut stage);
        stage.write(0, "INSERT INTO note VALUES('old', 1, 1)");
        stage.pass(1_000);
        isolate(&mut stage, 1);
        fill(&mut stage, 0);
        let now = Millis(stage.now);
        let store = &mut stage.at_mut(0).store;
        let bounds = Bounds { log_trim_rows: 1, log_keep_rows: 2, ..store.bounds() };
        store.set_bounds(bounds);
        while store.trim_block(now, &[]).unwrap() {}
        let read = "SELECT c.seq FROM __wavesync_cursor c WHERE c.seq > 0";
        let horizon = "SELECT value FROM __wavesync_meta WHERE key = 'horizon'";
        let (read, horizon) = (stage.read(1, read), stage.read(0, horizon));
        assert!(read.parse::<i64>().unwrap() < horizon.parse().unwrap(), "{read} {horizon}");
        stage.write(1, "UPDATE note SET body = 'edited' WHERE id = 'old'");
        stage
    };
    swept(28, scene, [0, 1], |stage| {
        let rows = all_equal(stage);
        assert!(rows.contains("old|edited|1"), "{rows}");
        nothing_waits(stage, &rows, 12);
    });
}

/// Two files go on under one identity; who has seen both proves it (rule P14).
#[test]
fn a_clone_that_is_found_out() {
    let scene = || {
        let mut stage = group(2);
        small(&mut stage);
        stage.write(0, "INSERT INTO note VALUES('a', 1, 1), ('b', 2, 2)");
        stage.pass(1_000);
        let mut copy = Connection::open_in_memory().unwrap();
        backup(stage.at(0).store.connection(), &mut copy);
        stage.write(0, "INSERT INTO note VALUES('original', 1, 1); UPDATE note SET more = 3");
        stage.pass(1_000);
        // Its file looks the same: nothing but what others saw tells that it is another one.
        let mut store = Store::open(copy).unwrap();
        let file = FileIdentity("file 1".into());
        let own = store.start(Millis(stage.now), &file, &[3; 64]).unwrap();
        let clone = stage.started(3, key(7), store, own);
        stage.at_mut(clone).file = file;
        small(&mut stage);
        stage
            .write(clone, "INSERT INTO note VALUES('clone', 1, 1); INSERT INTO num VALUES(1, 'x')");
        stage
    };
    swept(30, scene, [1, 2], |stage| {
        assert_eq!(all_equal(stage), "a|1|3\nb|2|3\nclone|1|1\noriginal|1|3\n1|x");
        let told = [0, 2].iter().any(|at| stage.codes(*at).contains(&"new_identity"));
        let sites: std::collections::BTreeSet<String> =
            (0..3).map(|at| own_site(stage, at)).collect();
        let codes: Vec<_> = (0..3).map(|at| (own_site(stage, at), stage.codes(at))).collect();
        assert!(told && sites.len() == 3, "{codes:?}");
    });
}

fn own_site(stage: &Stage, at: usize) -> String {
    stage.read(
        at,
        "SELECT hex(id) FROM __wavesync_site
         WHERE num = (SELECT value FROM __wavesync_meta WHERE key = 'self')",
    )
}

/// Rows of a clock that is ahead are held until their time (rule P17).
#[test]
fn rows_that_are_held() {
    let scene = || {
        let mut stage = group(2);
        small(&mut stage);
        stage.write(0, "INSERT INTO note VALUES('a', 1, 1), ('b', 2, 2)");
        stage.pass(1_000);
        isolate(&mut stage, 0);
        let ahead = FUTURE_LIMIT_MS + 30_000;
        stage.now += ahead;
        fill(&mut stage, 0);
        stage.write(
            0,
            "UPDATE note SET body = 'ahead' WHERE id = 'a'; DELETE FROM note WHERE id = 'b'",
        );
        stage.now -= ahead;
        stage
    };
    swept(40, scene, [0, 1], |stage| {
        assert_eq!(rows(stage, 1), "a|1|1\nb|2|2\n");
        assert!(stage.codes(0).contains(&"clock_ahead"), "{:?}", stage.codes(0));
        // Their time comes.
        stage.pass(FUTURE_LIMIT_MS + A_WHILE_MS);
        let rows = all_equal(stage);
        assert!(rows.starts_with("a|ahead|1\n") && !rows.contains("b|"), "{rows}");
        nothing_waits(stage, &rows, 12);
    });
}

/// Deletes were forgotten meanwhile: everything is taken over (rule P20).
#[test]
fn who_was_away_for_too_long() {
    let scene = || {
        let mut stage = away_for_too_long();
        small(&mut stage);
        let more: Vec<String> = (10..40).map(|n| format!("('m{n}', {n}, 0)")).collect();
        stage.write(0, &format!("INSERT INTO note VALUES {}", more.join(", ")));
        stage
    };
    swept(40, scene, [0, 2], |stage| {
        let rows = all_equal(stage);
        let others: Vec<_> = rows.lines().filter(|row| !row.starts_with('m')).collect();
        assert_eq!(others.join("\n"), AFTER);
        assert_eq!(rows.lines().count(), others.len() + 30);
    });
}
