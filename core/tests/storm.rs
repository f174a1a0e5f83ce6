//! Connections that come and go by the thousand, and peers that ask and do not read: requests are
//! counted, memory is measured.
#![allow(clippy::unwrap_used)]

#[path = "simulator/dice.rs"]
#[allow(dead_code)]
mod dice;
mod stage;

use std::time::Duration;

use dice::Dice;
use peak_alloc::PeakAlloc;
use rusqlite::Connection;
use stage::{Passing, Stage, frame, key, peer};
use wavesync_core::ids::Millis;
use wavesync_core::limits;
use wavesync_core::machine::{Input, Output, PeerId, StreamId};
use wavesync_core::wire::message::{Refusal, plain, sealed};

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

const TABLE: &str = "CREATE TABLE note(id TEXT PRIMARY KEY, body)";
/// Rows of 1 KiB, so that a history takes many chunks.
const FILL: &str = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
    INSERT INTO note SELECT printf('%06d', i), hex(randomblob(512)) FROM n";
/// Chunks that may be in flight on one stream.
const IN_FLIGHT: usize = 4;
/// What a responder may hold for a reader that does not read: what is in flight on two streams, what
/// that is made from, and caches of SQLite.
const STALLED_MAX_BYTES: usize = 24 * 1024 * 1024;

#[test]
fn a_thousand_connects_and_disconnects_bring_one_request_at_a_time() {
    let mut stage = Stage::new();
    stage.records = false;
    let one = stage.member(peer(1), key(7), TABLE, 1);
    let two = stage.member(peer(2), key(7), TABLE, 2);
    let three = stage.member(peer(3), key(7), TABLE, 3);
    stage.connect(two, three);
    let mut dice = Dice::new(11);
    for event in 0..1_000 {
        stage.flip(one, two);
        stage.run_some(dice.within(0, 60) as usize);
        stage.now += dice.within(0, 400);
        let at = [one, two, three][event % 3];
        stage.commit(at, &format!("INSERT INTO note VALUES('{event}', 'x')"));
        assert!(stage.passes_most <= 1, "{} requests at a time", stage.passes_most);
    }
    assert!(stage.passes > 200, "only {} requests were made: nothing was tried", stage.passes);
    stage.connect(one, two);
    stage.pass(60_000);
    let rows = "SELECT count(*), sum(id) FROM note";
    let all = stage.read(one, rows);
    assert!(all.starts_with("1000|"), "{all}");
    assert_eq!((stage.read(two, rows), stage.read(three, rows)), (all.clone(), all));
    assert!(stage.passes_most <= 1, "{} requests at a time", stage.passes_most);
    eprintln!("1,000 events, {} requests, at most one at a time", stage.passes);
}

/// What a member's machine wants after an input that comes from a driver which the test plays.
fn answer(stage: &mut Stage, member: usize, input: Input) -> Vec<Output> {
    let now = Millis(stage.now);
    let member = stage.at_mut(member);
    member.machine.handle(now, input, &mut member.store);
    member.machine.take_outputs()
}

fn stranger(number: u8) -> PeerId {
    // Above the member's own: it is the member that opens the control stream.
    PeerId(vec![9, number])
}

fn comes(number: u8) -> Input {
    Input::Connected { peer: stranger(number), address: String::new(), relayed: false }
}

fn opened(outputs: &[Output]) -> Option<u64> {
    outputs.iter().find_map(|output| match output {
        Output::OpenStream { token, .. } => Some(*token),
        _ => None,
    })
}

/// Connections take a while to end. Whoever was sent away once is not sent away again in place of others,
/// and nothing that it still says is heard.
#[test]
fn strangers_give_way_one_for_each_that_comes() {
    let mut stage = Stage::new();
    let member = stage.member(peer(1), key(7), TABLE, 1);
    let mut sent_away = Vec::new();
    for number in 0..200 {
        stage.now += 1;
        let outputs = answer(&mut stage, member, comes(number));
        sent_away.extend(outputs.into_iter().filter_map(|output| match output {
            Output::Disconnect { peer } => Some(peer),
            _ => None,
        }));
    }
    let oldest = 200 - limits::UNPROVEN_PEERS_MAX as u8;
    assert_eq!(sent_away, (0..oldest).map(stranger).collect::<Vec<_>>());

    let stream = StreamId(1_000);
    let late = Input::Opened { peer: stranger(0), stream, token: None };
    assert!(matches!(answer(&mut stage, member, late)[..], [Output::Abandon { .. }]));
    let frame = Input::Frame { stream, bytes: vec![9] };
    assert!(answer(&mut stage, member, frame).is_empty());
}

/// A connection that was being made when its peer was told to go came too late for that.
#[test]
fn who_was_told_to_go_and_stays_is_told_again() {
    let mut stage = Stage::new();
    let member = stage.member(peer(1), key(7), TABLE, 1);
    for number in 0..=limits::UNPROVEN_PEERS_MAX as u8 {
        stage.now += 1;
        answer(&mut stage, member, comes(number));
    }
    let told = stage.now;
    let mut again = 0;
    while stage.now < told + 60_000 {
        let wake = stage.at(member).machine.next_wake().0;
        assert!(wake > stage.now, "it spins");
        stage.now = wake;
        let outputs = answer(&mut stage, member, Input::Timer);
        let first = stranger(0);
        again +=
            outputs.iter().filter(|it| **it == Output::Disconnect { peer: first.clone() }).count();
    }
    assert!((11..=12).contains(&again), "told {again} times in a minute");
    answer(&mut stage, member, Input::Disconnected { peer: stranger(0) });
    let outputs = answer(&mut stage, member, comes(0));
    assert!(opened(&outputs).is_some(), "it may come again");
}

/// A member that was here for long and whose control stream has just ended is not the first to go.
#[test]
fn a_member_gives_way_after_strangers() {
    let mut stage = Stage::new();
    let member = stage.member(peer(1), key(7), TABLE, 1);
    let other = stage.member(peer(2), key(7), TABLE, 2);
    stage.connect(member, other);
    stage.pass(1_000);
    for number in 0..limits::UNPROVEN_PEERS_MAX as u8 {
        stage.now += 1;
        answer(&mut stage, member, comes(number));
    }
    // Nothing is said on a control stream that a frame out of place ends.
    let hello = |it: &&Passing| it.to == member && it.bytes[0] == sealed::HELLO;
    let control = stage.sent.iter().find(hello).unwrap().stream;
    answer(&mut stage, member, Input::Frame { stream: control, bytes: vec![9; 40] });
    let outputs = answer(&mut stage, member, comes(200));
    assert!(outputs.contains(&Output::Disconnect { peer: stranger(0) }), "{outputs:?}");
}

/// What follows a refusal is not looked at: a stranger could send thousands.
#[test]
fn a_refusal_ends_its_stream() {
    let mut stage = Stage::new();
    let member = stage.member(peer(1), key(7), TABLE, 1);
    answer(&mut stage, member, comes(0));
    let stream = StreamId(1_000);
    answer(&mut stage, member, Input::Opened { peer: stranger(0), stream, token: None });
    let refusal = frame(plain::REFUSAL, &Refusal { code: 2 });
    let outputs = answer(&mut stage, member, Input::Frame { stream, bytes: refusal.clone() });
    assert!(outputs.contains(&Output::Abandon { stream: StreamId(1_000) }), "{outputs:?}");
    assert!(answer(&mut stage, member, Input::Frame { stream, bytes: refusal }).is_empty());
}

/// Who lets no control stream come about is asked again after a while, not at once and for ever.
#[test]
fn a_control_stream_that_fails_waits_longer_each_time() {
    for closes in [false, true] {
        let mut stage = Stage::new();
        let member = stage.member(peer(1), key(7), TABLE, 1);
        let mut outputs = answer(&mut stage, member, comes(0));
        let mut waits = Vec::new();
        for number in 0..6 {
            let (peer, token) = (stranger(0), opened(&outputs).unwrap());
            outputs = if closes {
                let stream = StreamId(1_000 + number);
                answer(&mut stage, member, Input::Opened { peer, stream, token: Some(token) });
                answer(&mut stage, member, Input::Closed { stream })
            } else {
                answer(&mut stage, member, Input::OpenFailed { peer, token })
            };
            let failed = stage.now;
            while opened(&outputs).is_none() {
                let wake = stage.at(member).machine.next_wake().0;
                assert!(wake > stage.now, "it spins");
                stage.now = wake;
                outputs = answer(&mut stage, member, Input::Timer);
            }
            waits.push(stage.now - failed);
        }
        assert_eq!(waits, [500, 1_000, 2_000, 4_000, 8_000, 16_000], "closes: {closes}");
    }
}

/// It asks for 20 MB again and again and gives no credit: what may be in flight is made for it, and
/// after half a minute it is given up.
#[test]
fn a_reader_that_stalls_costs_what_may_be_in_flight() {
    let mut stage = Stage::new();
    stage.records = false;
    let sql = format!("{TABLE}; {FILL}");
    let member = stage.member(peer(2), key(7), &sql, 1);
    let reader = stage.puppet(peer(1));
    stage.connect(reader, member);
    let mut line = stage.shake(reader, member, &key(7));
    let mut open = Vec::new();
    let before = HEAP.current_usage();
    HEAP.reset_peak_usage();
    for _ in 0..20 {
        open.push(line.ask(&mut stage).0);
    }
    let seen = stage.seen(reader);
    let received =
        |end| seen.received.get(end).map_or(0, |frames| frames.iter().map(Vec::len).sum());
    let bytes: Vec<usize> = open.iter().map(received).collect();
    let queued: usize = bytes.iter().sum();
    let chunk = limits::CHUNK_TARGET_BYTES + 64 * 1024;
    assert!(bytes[0] > limits::CHUNK_TARGET_BYTES / 4, "{bytes:?}: nothing was sent");
    assert!(bytes.iter().all(|bytes| *bytes <= IN_FLIGHT * chunk), "{bytes:?}");
    assert!(
        queued <= limits::PASSES_PER_PEER_MAX * IN_FLIGHT * chunk,
        "{queued} bytes for one reader"
    );
    let peak = HEAP.peak_usage().saturating_sub(before);
    assert!(peak < STALLED_MAX_BYTES, "{peak} bytes for a reader that does not read");
    eprintln!("a stalled reader: {queued} bytes queued, {peak} bytes at most in memory");
    // One of them reads slowly: it has not yet a whole chunk, but bytes go on leaving.
    let slow = stage.other_end(open[0]);
    assert!(stage.at(member).machine.served().any(|stream| stream == slow));
    for _ in 0..3 {
        stage.pass(limits::PASS_STALL_MS - 1_000);
        let now = Millis(stage.now);
        stage.at_mut(member).machine.progressed(now, slow);
    }
    let closed = &stage.seen(reader).closed;
    assert!(open[1..].iter().all(|end| closed.contains(end)), "a stalled pass is ended");
    assert!(!closed.contains(&open[0]), "progress never ends one");
    stage.pass(limits::PASS_STALL_MS + 1_000);
    assert!(stage.seen(reader).closed.contains(&open[0]), "it has stalled, too");
}

/// Its control stream is not read: pushes and announcements stop until it is.
#[test]
fn a_member_that_does_not_read_is_sent_nothing_more() {
    let mut stage = Stage::new();
    let member = stage.member(peer(2), key(7), TABLE, 1);
    let reader = stage.puppet(peer(1));
    stage.connect(reader, member);
    let line = stage.shake(reader, member, &key(7));
    stage.pass(1_000);
    let control = stage.other_end(line.control);
    stage.at_mut(member).machine.congested(control);
    let heard = stage.heard(reader);
    for id in 0..500 {
        stage.write(member, &format!("INSERT INTO note VALUES({id}, 'x')"));
        stage.pass(30);
    }
    assert_eq!(stage.heard(reader), heard, "nothing is queued for it");
    stage.drained(member, control);
    stage.pass(1_000);
    assert_eq!(stage.heard(reader), heard + 1, "one announcement tells all of it");
}

/// The application checkpoints its write-ahead log while a pass waits for a reader.
#[test]
fn a_pass_that_stalls_holds_no_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.db");
    let app = Connection::open(&path).unwrap();
    app.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(())).unwrap();
    app.busy_timeout(Duration::ZERO).unwrap();
    app.execute_batch(&format!("{TABLE}; {FILL}")).unwrap();
    let mut stage = Stage::new();
    let member = stage.member_with(Connection::open(&path).unwrap(), peer(2), key(7), 1);
    let reader = stage.puppet(peer(1));
    stage.connect(reader, member);
    let mut line = stage.shake(reader, member, &key(7));
    let pass = line.ask(&mut stage).0;
    let sent = |stage: &Stage| stage.seen(reader).received[&pass].len();
    let before = sent(&stage);
    stage.pass(1_000);
    assert!(before > 0 && sent(&stage) == before, "the pass waits for credit");
    assert!(stage.at(member).machine.served().any(|stream| stream == stage.other_end(pass)));
    stage.commit(member, "INSERT INTO note VALUES('later', 'x')");
    let checkpoint = || {
        let number = |row: &rusqlite::Row<'_>, at| row.get::<_, i64>(at);
        let read =
            |row: &rusqlite::Row<'_>| Ok([number(row, 0)?, number(row, 1)?, number(row, 2)?]);
        app.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], read).unwrap()
    };
    // Somebody who does hold a snapshot is noticed.
    let other = Connection::open(&path).unwrap();
    other.execute_batch("BEGIN; SELECT count(*) FROM note").unwrap();
    stage.commit(member, "INSERT INTO note VALUES('later still', 'x')");
    assert_eq!(checkpoint()[0], 1);
    other.execute_batch("ROLLBACK").unwrap();
    assert_eq!(checkpoint(), [0, 0, 0]);
}
