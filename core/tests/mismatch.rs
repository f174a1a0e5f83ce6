//! Peers of another version: what they say cannot be understood, and asking them again does not change
//! that. They are left alone for longer and longer, and taken up again when it has changed.
#![allow(clippy::unwrap_used)]

mod stage;
mod told;

use std::collections::BTreeSet;

use stage::{Stage, frame, key, no_proof, peer};
use told::{answer, last_chunk, state};
use wavesync_core::auth::Greeting;
use wavesync_core::ids::SiteId;
use wavesync_core::machine::StreamId;
use wavesync_core::wire;
use wavesync_core::wire::message::{Answer, Hello, Refusal, plain, sealed};
use wavesync_core::wire::rows::Batch;

const TABLE: &str = "CREATE TABLE note(id TEXT PRIMARY KEY, body)";
/// A batch of a version that is not known here.
const STRANGE: &[u8] = &[9, 1, 2, 3];

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
