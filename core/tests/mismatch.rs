//! Peers of another version: what they say cannot be understood, and asking them again does not change
//! that. They are left alone for longer and longer, and taken up again when it has changed. And
//! members that do not know yet what this one knows.
#![allow(clippy::unwrap_used)]

mod stage;

use std::collections::BTreeSet;

use stage::{Line, Stage, frame, key, no_proof, peer};
use wavesync_core::auth::Greeting;
use wavesync_core::ids::{Boot, Cursor, Seq, SiteId, Stamp};
use wavesync_core::machine::StreamId;
use wavesync_core::store::vector::Vector;
use wavesync_core::wire;
use wavesync_core::wire::message::{
    Answer, Attach, Chunk, Hello, Refusal, State, VectorList, plain, sealed,
};
use wavesync_core::wire::rows::Batch;

const TABLE: &str = "CREATE TABLE note(id TEXT PRIMARY KEY, body)";
/// A batch of a version that is not known here.
const STRANGE: &[u8] = &[9, 1, 2, 3];

fn state(end: i64) -> State {
    State {
        boot: Boot(7),
        end: Seq(end),
        partial: false,
        vector: VectorList::default(),
        applied: VectorList::default(),
        closed: false,
        cursor: Cursor::default(),
        caps: Vec::new(),
        collected: None,
    }
}

fn last_chunk(end: i64, rows: &[u8]) -> Chunk {
    Chunk {
        from: Seq(0),
        to: Seq(end),
        boot: Boot(7),
        high: Seq(end),
        rows: rows.to_vec(),
        vector: Some(VectorList::default()),
        last: true,
        closed: false,
        ordered: false,
        expected: 0,
        place: Vec::new(),
        collected: Vec::new(),
        floors: Vec::new(),
    }
}

/// Answers each catch-up that was asked for since the last call; how many these were.
fn answer(stage: &mut Stage, line: &Line, seen: &mut BTreeSet<StreamId>, chunk: &Chunk) -> usize {
    let opened: Vec<StreamId> =
        stage.seen(line.puppet).opened.iter().copied().filter(|id| seen.insert(*id)).collect();
    for end in &opened {
        let first = stage.seen(line.puppet).received[end][0].clone();
        assert_eq!(first[0], plain::ATTACH);
        let attach: Attach = wire::decode(&first[1..]).unwrap();
        let mut channel = line.session.channel(attach.stream);
        for bytes in channel.seal(sealed::CHUNK, &wire::encode(chunk).unwrap()).unwrap() {
            stage.send(*end, bytes);
        }
        stage.run();
    }
    opened.len()
}

#[test]
fn a_member_whose_rows_cannot_be_read_is_asked_less_and_less() {
    let mut stage = Stage::new();
    let member = stage.member(peer(2), key(7), TABLE, 1);
    let puppet = stage.puppet(peer(1));
    stage.connect(puppet, member);
    let mut line = stage.shake(puppet, member, &key(7));
    let (site, name) = (SiteId([0xEE; 16]), String::new());
    let hello = Hello { features: 0, site, name, wants_schema: false, state: state(5) };
    line.say(&mut stage, sealed::HELLO, &wire::encode(&hello).unwrap());
    stage.run();
    let mut seen = BTreeSet::new();
    let mut asked = Vec::new();
    for second in 0..3_600 {
        let strange = last_chunk(5, STRANGE);
        for _ in 0..answer(&mut stage, &line, &mut seen, &strange) {
            asked.push(second);
        }
        stage.pass(1_000);
    }
    let within = |seconds| asked.iter().filter(|at| **at < seconds).count();
    assert!((2..=6).contains(&within(30)), "{asked:?}");
    assert!((8..=14).contains(&within(3_600)), "{asked:?}");
    assert!(stage.codes(member).contains(&"protocol"));

    // It was updated: the next question is answered well, and then there is nothing to wait for.
    let good = last_chunk(5, &Batch::default().encode());
    let asked_before = seen.len();
    for _ in 0..1_800 {
        answer(&mut stage, &line, &mut seen, &good);
        stage.pass(1_000);
    }
    assert_eq!(seen.len(), asked_before + 1);
    line.say(&mut stage, sealed::STATE, &wire::encode(&state(6)).unwrap());
    stage.pass(2_000);
    assert_eq!(answer(&mut stage, &line, &mut seen, &last_chunk(6, &Batch::default().encode())), 1);
}

/// Rule P12 speaks of rows that the member's own vector covers: above a cap that it does not know of
/// it may have rows that are covered there and not here.
#[test]
fn p12_the_log_of_a_member_that_does_not_know_of_a_cap_is_read() {
    let mut stage = Stage::new();
    let member = stage.member(peer(2), key(7), TABLE, 1);
    let puppet = stage.puppet(peer(1));
    stage.connect(puppet, member);
    let mut line = stage.shake(puppet, member, &key(7));
    let third = SiteId([0x33; 16]);
    let vector = |stamp| {
        let entries = [(third, (Stamp(stamp), Boot(9)))].into_iter().collect();
        VectorList::from(&Vector(entries))
    };
    let (site, name) = (SiteId([0xEE; 16]), String::new());
    let told = State { vector: vector(50), ..state(5) };
    let hello = Hello { features: 0, site, name, wants_schema: false, state: told };
    line.say(&mut stage, sealed::HELLO, &wire::encode(&hello).unwrap());
    stage.pass(1_000);
    let mut seen = BTreeSet::new();
    let rows = Batch::default().encode();
    let chunk = Chunk { vector: Some(vector(50)), ..last_chunk(5, &rows) };
    assert_eq!(answer(&mut stage, &line, &mut seen, &chunk), 1);

    // It has more of a site than may be claimed.
    let (closed, caps) = (true, vec![(third, Stamp(50))]);
    let more = State { vector: vector(100), closed, caps, ..state(6) };
    line.say(&mut stage, sealed::STATE, &wire::encode(&more).unwrap());
    stage.pass(1_000);
    let chunk = Chunk { vector: Some(vector(100)), ..last_chunk(6, &rows) };
    assert_eq!(answer(&mut stage, &line, &mut seen, &chunk), 1, "its log is read");
    stage.pass(60_000);
    assert_eq!(answer(&mut stage, &line, &mut seen, &chunk), 0, "once");
}

/// Greetings that a peer gets in an hour, which answers each by `reply`.
fn greeted(reply: impl Fn() -> Vec<u8>) -> Vec<u32> {
    let mut stage = Stage::new();
    let member = stage.member(peer(2), key(7), TABLE, 1);
    let puppet = stage.puppet(peer(9));
    stage.connect(puppet, member);
    let (mut greeted, mut seen) = (Vec::new(), BTreeSet::new());
    for second in 0..3_600 {
        stage.run();
        let opened: Vec<StreamId> = stage.seen(puppet).opened.clone();
        for end in opened.into_iter().filter(|id| seen.insert(*id)) {
            greeted.push(second);
            stage.send(end, reply());
            stage.run();
            stage.close(end);
        }
        stage.pass(1_000);
    }
    greeted
}

#[test]
fn a_peer_of_another_version_is_greeted_less_and_less() {
    let answer = greeted(|| {
        let greeting = Greeting { version: 2, nonce: [1; 32] };
        frame(plain::ANSWER, &Answer { greeting, proof: no_proof() })
    });
    let refusal = greeted(|| frame(plain::REFUSAL, &Refusal { code: 2 }));
    for times in [answer, refusal] {
        assert!((5..=9).contains(&times.len()), "{times:?}");
        assert!(times[1] - times[0] < 40, "{times:?}");
        assert!(times[times.len() - 1] - times[times.len() - 2] > 600, "{times:?}");
    }
}
