//! Who belongs to the group, under attack: every check of the handshake, with the machines
//! themselves wherever a machine takes part. With the feature `mutants` each check is removed in
//! turn, and the test that is named beside it must notice.
#![allow(clippy::unwrap_used)]

#[macro_use]
#[path = "auth/common.rs"]
mod common;
mod stage;

use common::{TABLE, pair, request};
use stage::{PLAIN_MAX, Passing, Stage, accept, frame, key, no_proof, peer};
use wavesync_core::Error;
use wavesync_core::auth::{Accepting, Greeting, GroupKey, Offering};
use wavesync_core::machine::StreamId;
use wavesync_core::wire::message::{Answer, plain};

fn honest_members_meet() {
    let (mut stage, a, b) = pair();
    stage.connect(a, b);
    assert!(stage.joined(a, b));
    stage.write(a, "INSERT INTO note VALUES(1, 'hello')");
    stage.pass(100);
    assert_eq!(stage.read(b, "SELECT text FROM note"), "hello");
}

/// A stranger gives a member's own words back to it.
fn a_reflected_handshake_gets_nothing() {
    let mut stage = Stage::new();
    let a = stage.member(peer(1), key(7), TABLE, 1);
    let mirror = stage.puppet(peer(9));
    stage.connect(a, mirror);
    let control = stage.seen(mirror).opened[0];
    let greeting = stage.seen(mirror).received[&control][0].clone();
    // Its greeting comes back as that of a second stream, and its answer to that on the first.
    let second = stage.open(mirror, a);
    stage.send(second, greeting.clone());
    let answer = stage.seen(mirror).received[&second][0].clone();
    stage.send(control, answer);
    let last = stage.seen(mirror).received[&control].last().unwrap().clone();
    stage.send(second, last);
    assert!(!stage.spoke(a, mirror), "a reflected handshake was believed");
    // The same words on the same stream.
    let third = stage.open(mirror, a);
    stage.send(third, greeting.clone());
    stage.send(third, greeting);
    assert!(!stage.spoke(a, mirror));
    assert!(stage.codes(a).contains(&"auth_failed"));
}

/// The two sides have one peer id, as a member that is connected with itself: only the role tells
/// whose proof it is.
fn a_proof_is_worth_nothing_in_the_other_role() {
    let (_, hello) = Offering::new([1; 32]);
    let (accepting, _, proof) =
        Accepting::answer(&key(7), (b"bob", b"bob"), [2; 32], &hello).unwrap();
    assert!(matches!(accepting.finish(&key(7), &proof), Err(Error::Auth(_))));
}

/// Everything that an honest opener said once, said again on another connection.
fn a_replayed_opener_gets_nothing() {
    let (mut stage, a, b) = pair();
    stage.connect(a, b);
    assert!(stage.joined(a, b));
    let said: Vec<Vec<u8>> = stage
        .sent
        .iter()
        .filter(|frame| frame.from == a)
        .map(|frame| frame.bytes.clone())
        .collect();
    stage.disconnect(a, b);
    stage.end(a);
    stage.sent.clear();
    // The transport would not let it have this peer id; the proof must not depend on that.
    let recorder = a;
    stage.connect(recorder, b);
    let control = stage.open(recorder, b);
    said.into_iter().for_each(|bytes| stage.send(control, bytes));
    assert!(!stage.spoke(b, recorder), "a replayed handshake was believed");
    assert!(stage.codes(b).contains(&"auth_failed"));
}

/// The same on the same connection: a further stream is worth a further proof.
fn a_replayed_opener_gets_nothing_where_it_was_believed() {
    let mut stage = Stage::new();
    let a = stage.member(peer(5), key(7), TABLE, 1);
    let opener = stage.puppet(peer(1));
    stage.connect(opener, a);
    stage.shake(opener, a, &key(7));
    assert!(stage.spoke(a, opener), "the honest handshake is believed");
    let said = stage.sent.iter().filter(|frame| frame.from == opener);
    let said: Vec<Vec<u8>> = said.map(|frame| frame.bytes.clone()).collect();
    let second = stage.open(opener, a);
    said.into_iter().for_each(|bytes| stage.send(second, bytes));
    let seen = stage.seen(opener);
    let member = |bytes: &&Vec<u8>| bytes[0] > PLAIN_MAX;
    assert_eq!(seen.received[&second].iter().find(member), None, "a replay was believed");
    assert!(stage.codes(a).contains(&"auth_failed"));
}

/// Everything that an honest acceptor said once, said again to the next greeting.
fn a_replayed_acceptor_gets_nothing() {
    let (mut stage, a, b) = pair();
    stage.connect(a, b);
    let said: Vec<Vec<u8>> = stage
        .sent
        .iter()
        .filter(|frame| frame.from == b)
        .map(|frame| frame.bytes.clone())
        .collect();
    stage.disconnect(a, b);
    stage.end(b);
    stage.sent.clear();
    stage.pass(1_000);
    let recorder = b;
    stage.connect(a, recorder);
    let control = *stage.seen(recorder).opened.last().unwrap();
    said.into_iter().for_each(|bytes| stage.send(control, bytes));
    assert!(!stage.spoke(a, recorder), "a replayed handshake was believed");
}

/// A party in the middle passes the words of two honest members on, under its own peer id.
fn a_party_in_the_middle_gets_nothing() {
    let (mut stage, a, b) = pair();
    let middle = stage.puppet(peer(9));
    stage.connect(a, middle);
    let to_a = stage.seen(middle).opened[0];
    stage.connect(b, middle);
    let to_b = stage.open(middle, b);
    let (mut from_a, mut from_b) = (0, 0);
    // Whatever either says is passed on, until both are silent.
    loop {
        let heard = |end: StreamId, at: usize| {
            stage.seen(middle).received.get(&end).and_then(|frames| frames.get(at)).cloned()
        };
        match (heard(to_a, from_a), heard(to_b, from_b)) {
            (Some(bytes), _) => {
                from_a += 1;
                stage.send(to_b, bytes);
            }
            (None, Some(bytes)) => {
                from_b += 1;
                stage.send(to_a, bytes);
            }
            (None, None) => break,
        }
    }
    assert!(from_a >= 1 && from_b >= 1);
    assert!(!stage.spoke(a, middle) && !stage.spoke(b, middle), "the middle was believed");
    assert!(stage.codes(a).contains(&"auth_failed"));
}

/// A member by its key computes its proof for another peer id than its connection has.
fn a_peer_id_that_does_not_match_is_refused() {
    let mut stage = Stage::new();
    let a = stage.member(peer(5), key(7), TABLE, 1);
    // As opener.
    let low = stage.puppet(peer(1));
    stage.connect(low, a);
    let control = stage.open(low, a);
    let (offering, greeting) = Offering::new([3; 32]);
    stage.send(control, frame(plain::GREETING, &greeting));
    let answer: Answer = stage.plain_answer(low, control, plain::ANSWER);
    // It can check the acceptor only under the names of the connection; its own proof claims more.
    let other = Accepting::answer(&key(7), (&[5; 4], &[2; 4]), [0; 32], &greeting).unwrap();
    drop(other);
    let claimed = offering.finish(&key(7), (&[1; 4], &[5; 4]), &answer.greeting, &answer.proof);
    assert!(claimed.is_ok());
    let (forging, forged) = Offering::new([3; 32]);
    assert_eq!(forged, greeting);
    let proof = proof_for_others(forging, &answer.greeting);
    stage.send(control, frame(plain::PROOF, &proof));
    assert!(!stage.spoke(a, low), "a proof for another peer id was believed");
    // As acceptor.
    let high = stage.puppet(peer(9));
    stage.connect(a, high);
    let control = stage.seen(high).opened[0];
    let greeting: Greeting = stage.plain_answer(high, control, plain::GREETING);
    let (_, answer) = accept(&key(7), (&peer(8), &peer(5)), &greeting);
    stage.send(control, answer);
    assert!(!stage.spoke(a, high), "a proof of another peer id was believed");
    assert!(stage.codes(a).contains(&"auth_failed"));
}

/// The opener's proof as the peer `2222`, on the greetings that another connection saw. A member
/// can make it: it answers itself as the acceptor would.
fn proof_for_others(forging: Offering, answer: &Greeting) -> wavesync_core::auth::Proof {
    let (_, own) = Offering::new([3; 32]);
    let nonce = answer.nonce;
    let (_, same, proof) = Accepting::answer(&key(7), (&[5; 4], &[2; 4]), nonce, &own).unwrap();
    assert_eq!(same, *answer);
    forging.finish(&key(7), (&[2; 4], &[5; 4]), answer, &proof).unwrap().1
}

/// Members of another group, or with a wrong passphrase, in both roles.
fn another_key_gets_nothing() {
    for (opens, accepts) in [(7, 8), (8, 7)] {
        let mut stage = Stage::new();
        let a = stage.member(peer(1), key(opens), TABLE, 1);
        let b = stage.member(peer(2), key(accepts), TABLE, 2);
        stage.write(a, "INSERT INTO note VALUES(1, 'secret')");
        stage.connect(a, b);
        stage.pass(5_000);
        assert!(!stage.spoke(a, b) && !stage.spoke(b, a), "something was said to a stranger");
        for member in [a, b] {
            let event = &stage.at(member).events[0];
            assert_eq!(event.code, "auth_failed");
            assert!(event.hint.contains("same topic and passphrase"));
        }
        assert_eq!(stage.read(b, "SELECT count(*) FROM note"), "0");
    }
}

/// An opener that says nothing true after the greeting is told nothing.
fn an_opener_without_a_proof_gets_nothing() {
    let mut stage = Stage::new();
    let a = stage.member(peer(5), key(7), TABLE, 1);
    let low = stage.puppet(peer(1));
    stage.connect(low, a);
    let control = stage.open(low, a);
    let (_, greeting) = Offering::new([3; 32]);
    stage.send(control, frame(plain::GREETING, &greeting));
    assert!(!stage.spoke(a, low), "a member speaks before the proof");
    stage.send(control, frame(plain::PROOF, &no_proof()));
    assert!(!stage.spoke(a, low), "a member takes any proof");
}

/// Topic and passphrase both make the key; upper and lower case and blanks count.
fn every_topic_and_passphrase_is_another_group() {
    let tag = |topic: &str, passphrase: &str| {
        GroupKey::from_passphrase(topic, passphrase).unwrap().lan_key()
    };
    let own = tag("club", "tidal lantern crisp orbit");
    assert_eq!(own, tag("club", "tidal lantern crisp orbit"));
    for (topic, passphrase) in [
        ("Club", "tidal lantern crisp orbit"),
        ("club ", "tidal lantern crisp orbit"),
        ("club", "tidal lantern crisp orbit "),
        ("club", "Tidal lantern crisp orbit"),
    ] {
        assert_ne!(own, tag(topic, passphrase), "{topic:?} {passphrase:?}");
    }
}

fn a_group_without_a_name_is_refused() {
    assert!(matches!(GroupKey::from_passphrase("", "tidal lantern"), Err(Error::Argument(_))));
    let conn = rusqlite::Connection::open_in_memory().unwrap();
    let mut store = wavesync_core::store::Store::open(conn).unwrap();
    let join = wavesync_core::store::group::Join::default();
    let file = wavesync_core::store::identity::FileIdentity("f".into());
    let now = wavesync_core::ids::Millis(stage::START);
    assert!(matches!(store.join(now, &join, &file, &[1; 64]), Err(Error::Argument(_))));
    assert!(matches!(GroupKey::from_passphrase("club", ""), Err(Error::Argument(_))));
}

/// A peer that speaks another version is refused by its version, in both roles.
fn another_version_is_refused_as_that() {
    for version in [0, 2, u32::MAX] {
        let mut stage = Stage::new();
        let a = stage.member(peer(5), key(7), TABLE, 1);
        let low = stage.puppet(peer(1));
        stage.connect(low, a);
        let control = stage.open(low, a);
        stage.send(control, frame(plain::GREETING, &Greeting { version, nonce: [3; 32] }));
        let event = &stage.at(a).events[0];
        assert_eq!((event.code, &event.hint[..]), ("version", "update the older of the two sides"));
        assert!(event.message.contains(&version.to_string()), "{}", event.message);
        let reply = &stage.seen(low).received[&control];
        assert_eq!(
            reply[..],
            [frame(plain::REFUSAL, &wavesync_core::wire::message::Refusal { code: 2 })]
        );
    }
}

/// A party in the path changes the version that either side tells.
fn a_version_changed_on_its_way_ends_the_handshake() {
    for kind in [plain::GREETING, plain::ANSWER] {
        let (mut stage, a, b) = pair();
        stage.tap = Some(Box::new(move |passing: &Passing| {
            let mut bytes = passing.bytes.clone();
            if bytes[0] == kind {
                // The first field of the first structure is the version, 1.
                let at = bytes.windows(2).position(|pair| pair == [0, 1]).unwrap();
                bytes[at + 1] = 0;
            }
            vec![bytes]
        }));
        stage.connect(a, b);
        assert!(!stage.joined(a, b) && !stage.spoke(a, b) && !stage.spoke(b, a), "kind {kind}");
    }
}

/// Each bit of each message of the handshake, changed on its way.
fn every_flipped_bit_of_the_handshake_is_noticed() {
    for kind in [plain::GREETING, plain::ANSWER, plain::PROOF] {
        let mut bits = 1;
        let mut bit = 0;
        while bit < bits {
            let (mut stage, a, b) = pair();
            let length = std::rc::Rc::new(std::cell::Cell::new(0));
            let seen = length.clone();
            stage.tap = Some(Box::new(move |passing: &Passing| {
                let mut bytes = passing.bytes.clone();
                if bytes[0] == kind && seen.get() == 0 {
                    seen.set(bytes.len() * 8);
                    bytes[bit / 8] ^= 1 << (bit % 8);
                }
                vec![bytes]
            }));
            stage.connect(a, b);
            bits = length.get();
            let receiver = if kind == plain::ANSWER { (a, b) } else { (b, a) };
            assert!(!stage.spoke(receiver.0, receiver.1), "kind {kind}, bit {bit} was not noticed");
            // Two or three bits of each byte; another set of them in each.
            bit += 3;
        }
        assert!(bits > 200, "kind {kind} was seen");
    }
}

/// Each message of the handshake, ended too early at each of its bytes.
fn every_truncated_handshake_is_noticed() {
    for kind in [plain::GREETING, plain::ANSWER, plain::PROOF] {
        let (mut kept, mut length) = (0, 1);
        while kept < length {
            let (mut stage, a, b) = pair();
            let seen = std::rc::Rc::new(std::cell::Cell::new(0));
            let whole = seen.clone();
            stage.tap = Some(Box::new(move |passing: &Passing| {
                let mut bytes = passing.bytes.clone();
                if bytes[0] == kind && whole.get() == 0 {
                    whole.set(bytes.len());
                    bytes.truncate(kept);
                }
                vec![bytes]
            }));
            stage.connect(a, b);
            length = seen.get();
            let (hears, speaks) = if kind == plain::ANSWER { (a, b) } else { (b, a) };
            assert!(!stage.spoke(hears, speaks), "kind {kind}, {kept} bytes of {length}");
            assert!(!stage.joined(a, b), "kind {kind}, {kept} bytes of {length}");
            kept += 1;
        }
        assert!(length > 30, "kind {kind} was seen");
    }
}

/// What only members may say, from a peer that has proven nothing, at each point before the proof.
fn messages_before_the_handshake_do_nothing() {
    let kinds = [16, 17, 18, 19, 20, 21, 32, 33, 34, 35, 36, 255, plain::ANSWER, plain::PROOF];
    for before in [None, Some(plain::GREETING)] {
        for kind in kinds {
            let mut stage = Stage::new();
            let a = stage.member(peer(5), key(7), TABLE, 1);
            let stranger = stage.puppet(peer(1));
            stage.connect(stranger, a);
            let content = stage.read(a, "SELECT * FROM __wavesync_meta ORDER BY 1");
            let end = stage.open(stranger, a);
            if before.is_some() {
                let (_, greeting) = Offering::new([3; 32]);
                stage.send(end, frame(plain::GREETING, &greeting));
            }
            // With and without the flags of a sealed frame, and a code that fits no key.
            for body in [request(), [&[0], &request()[..], &[0; 16]].concat(), Vec::new()] {
                stage.send(end, [&[kind], &body[..]].concat());
            }
            assert!(!stage.spoke(a, stranger), "kind {kind} was answered");
            assert_eq!(content, stage.read(a, "SELECT * FROM __wavesync_meta ORDER BY 1"));
            assert!(stage.seen(stranger).closed.contains(&end), "kind {kind} was not refused");
        }
    }
}

fn a_long_message_before_the_handshake_is_refused() {
    let mut stage = Stage::new();
    let a = stage.member(peer(5), key(7), TABLE, 1);
    let stranger = stage.puppet(peer(1));
    stage.connect(stranger, a);
    let end = stage.open(stranger, a);
    let (_, greeting) = Offering::new([3; 32]);
    // A greeting with a further field, which a later version may have.
    let mut long = frame(plain::GREETING, &greeting);
    long[1] += 1;
    long.extend_from_slice(&[2, 0x59, 0x04, 0x00]);
    long.extend_from_slice(&[0; 0x400]);
    stage.send(end, long);
    assert_eq!(stage.seen(stranger).received[&end][0][0], plain::REFUSAL);
}

properties! {
    honest_members_meet;
    a_reflected_handshake_gets_nothing ProofWithoutPeers;
    a_proof_is_worth_nothing_in_the_other_role ProofWithoutRole;
    a_replayed_opener_gets_nothing ProofWithoutNonces;
    a_replayed_opener_gets_nothing_where_it_was_believed ProofWithoutNonces;
    a_replayed_acceptor_gets_nothing ProofWithoutNonces;
    a_party_in_the_middle_gets_nothing ProofWithoutPeers;
    a_peer_id_that_does_not_match_is_refused ProofWithoutPeers;
    another_key_gets_nothing NoAcceptorProof;
    an_opener_without_a_proof_gets_nothing NoOpenerProof EarlySession;
    every_topic_and_passphrase_is_another_group KeyWithoutTopic KeyWithoutPassphrase;
    a_group_without_a_name_is_refused EmptyTopic;
    another_version_is_refused_as_that AnyVersion;
    a_version_changed_on_its_way_ends_the_handshake ProofWithoutVersions;
    every_flipped_bit_of_the_handshake_is_noticed NoAcceptorProof NoOpenerProof;
    every_truncated_handshake_is_noticed;
    messages_before_the_handshake_do_nothing EarlySession;
    a_long_message_before_the_handshake_is_refused LongHandshake;
}
