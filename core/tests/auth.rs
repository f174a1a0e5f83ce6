//! Who belongs to the group, under attack: every check of the handshake and of the seals, with the
//! machines themselves wherever a machine takes part. With the feature `mutants` each check is
//! removed in turn, and the test that is named beside it must notice.
#![allow(clippy::unwrap_used)]

mod stage;

use stage::{PLAIN_MAX, Passing, Stage, accept, frame, key, no_proof, peer};
use wavesync_core::Error;
use wavesync_core::auth::{Accepting, Greeting, GroupKey, Offering, Session};
use wavesync_core::ids::{Boot, Cursor};
use wavesync_core::machine::StreamId;
use wavesync_core::wire;
use wavesync_core::wire::message::{Answer, Attach, Request, VectorList, plain, sealed};

const TABLE: &str = "CREATE TABLE note(id INTEGER PRIMARY KEY, text);";

/// Two members that know the same key, connected.
fn pair() -> (Stage, usize, usize) {
    let mut stage = Stage::new();
    let a = stage.member(peer(1), key(7), TABLE, 1);
    let b = stage.member(peer(2), key(7), TABLE, 2);
    (stage, a, b)
}

fn request() -> Vec<u8> {
    let cursor = Cursor { boot: Boot(0), ..Cursor::default() };
    let (vector, applied) = (VectorList::default(), VectorList::default());
    let (place, sample) = (Vec::new(), Vec::new());
    wire::encode(&Request {
        vector,
        applied,
        cursor,
        place,
        sample,
        chunk_rows: 1_000,
        full: false,
    })
    .unwrap()
}

/// A session between the peers `alice` and `bob`, as each of them has it.
fn sessions(nonces: [u8; 2]) -> (Session, Session) {
    let key = key(7);
    let (offering, hello) = Offering::new([nonces[0]; 32]);
    let (accepting, answer, proof) =
        Accepting::answer(&key, (b"bob", b"alice"), [nonces[1]; 32], &hello).unwrap();
    let (session, own) = offering.finish(&key, (b"alice", b"bob"), &answer, &proof).unwrap();
    (session, accepting.finish(&key, &own).unwrap())
}

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

/// What happens to the first sealed frame of a direction after the hello, which carries a row.
type Change = fn(&[u8], &mut Option<Vec<u8>>) -> Vec<Vec<u8>>;

/// Changes sealed frames between two connected members, in each direction. The rows arrive all
/// the same, by a later stream; the change is told, and nothing of it is applied.
fn changed_seals(what: &str, change: Change) {
    for towards_b in [true, false] {
        let (mut stage, a, b) = pair();
        stage.connect(a, b);
        stage.pass(1_000);
        let (writer, reader) = if towards_b { (a, b) } else { (b, a) };
        let mut done = 0;
        let mut kept = None;
        stage.tap = Some(Box::new(move |passing: &Passing| {
            let first = passing.from == writer && passing.bytes[0] > PLAIN_MAX && done < 2;
            if !first {
                return vec![passing.bytes.clone()];
            }
            done += 1;
            change(&passing.bytes, &mut kept)
        }));
        stage.write(writer, "INSERT INTO note VALUES(1, 'one')");
        stage.pass(100);
        stage.write(writer, "INSERT INTO note VALUES(2, 'two')");
        stage.pass(100);
        stage.tap = None;
        let told = stage.codes(reader);
        assert!(told.contains(&"seal_broken"), "{what}, towards b {towards_b}: {told:?}");
        stage.pass(120_000);
        let rows = "SELECT * FROM note ORDER BY id";
        assert_eq!(stage.read(reader, rows), "1|one\n2|two", "{what}");
        assert_eq!(stage.read(writer, rows), "1|one\n2|two", "{what}");
    }
}

fn a_replayed_frame_is_noticed() {
    changed_seals("a replay", |bytes, _| vec![bytes.to_vec(), bytes.to_vec()]);
}

fn a_dropped_frame_is_noticed() {
    changed_seals("a drop", |bytes, kept| {
        if kept.replace(Vec::new()).is_some() { vec![bytes.to_vec()] } else { Vec::new() }
    });
}

fn frames_in_another_order_are_noticed() {
    changed_seals("a swap", |bytes, kept| match kept.take() {
        None => {
            *kept = Some(bytes.to_vec());
            Vec::new()
        }
        Some(first) => vec![bytes.to_vec(), first],
    });
}

fn a_truncated_frame_is_noticed() {
    changed_seals("one byte less", |bytes, _| vec![bytes[..bytes.len() - 1].to_vec()]);
    changed_seals("the code only", |bytes, _| vec![bytes[bytes.len() - 16..].to_vec()]);
    changed_seals("the kind only", |bytes, _| vec![bytes[..1].to_vec()]);
}

fn a_changed_frame_is_noticed() {
    changed_seals("the kind", |bytes, _| {
        let mut bytes = bytes.to_vec();
        bytes[0] ^= 64;
        vec![bytes]
    });
    changed_seals("the flags", |bytes, _| {
        let mut bytes = bytes.to_vec();
        bytes[1] ^= 2;
        vec![bytes]
    });
    changed_seals("a byte of the body", |bytes, _| {
        let mut bytes = bytes.to_vec();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        vec![bytes]
    });
    changed_seals("the code", |bytes, _| {
        let mut bytes = bytes.to_vec();
        *bytes.last_mut().unwrap() ^= 1;
        vec![bytes]
    });
}

fn a_changed_kind_or_flag_is_noticed() {
    let (session, other) = sessions([1, 2]);
    for at in 0..16 {
        let mut sealed = session.channel(0).seal(17, b"words").unwrap().remove(0);
        sealed[at / 8] ^= 1 << (at % 8);
        assert!(matches!(other.channel(0).open(&sealed, 100), Err(Error::Auth(_))), "bit {at}");
    }
}

/// Frames come back to the one who sent them.
fn a_reflected_frame_is_noticed() {
    let (session, _) = sessions([1, 2]);
    let mut own = session.channel(0);
    let frames = own.seal(17, b"words").unwrap();
    assert!(matches!(own.open(&frames[0], 100), Err(Error::Auth(_))));
}

fn a_frame_of_another_stream_is_noticed() {
    let (session, other) = sessions([1, 2]);
    let frames = session.channel(0).seal(17, b"words").unwrap();
    assert!(other.channel(0).open(&frames[0], 100).is_ok());
    for number in 1..5 {
        assert!(matches!(other.channel(number).open(&frames[0], 100), Err(Error::Auth(_))));
    }
}

/// The same two peers, another connection: either nonce alone makes another session.
fn a_frame_of_another_session_is_noticed() {
    let (session, _) = sessions([1, 2]);
    let frames = session.channel(0).seal(17, b"words").unwrap();
    for nonces in [[1, 3], [3, 2]] {
        let (_, later) = sessions(nonces);
        assert!(matches!(later.channel(0).open(&frames[0], 100), Err(Error::Auth(_))));
    }
}

fn a_message_of_mixed_parts_is_refused() {
    let (session, other) = sessions([1, 2]);
    let (mut from, mut to) = (session.channel(0), other.channel(0));
    let long = vec![0; wavesync_core::limits::FRAME_BODY_MAX_BYTES + 1];
    let first = from.seal(17, &long).unwrap().remove(0);
    // The counter stands at 2 now; the receiver is brought there by a channel of its own.
    let mut sender = session.channel(0);
    sender.seal(17, b"").unwrap();
    let second = sender.seal(18, b"rest").unwrap().remove(0);
    assert!(to.open(&first, 1 << 20).unwrap().is_none());
    assert!(matches!(to.open(&second, 1 << 20), Err(Error::Protocol(_))));
}

fn a_message_without_end_is_refused() {
    let (session, other) = sessions([1, 2]);
    let long = vec![0; wavesync_core::limits::FRAME_BODY_MAX_BYTES * 3];
    let frames = session.channel(0).seal(17, &long).unwrap();
    let mut to = other.channel(0);
    let most = wavesync_core::limits::FRAME_BODY_MAX_BYTES * 2;
    assert!(to.open(&frames[0], most).is_ok() && to.open(&frames[1], most).is_ok());
    assert!(matches!(to.open(&frames[2], most), Err(Error::Protocol(_))));
}

/// A member by its key, and what it attaches: how many chunks it is sent, and whether the stream
/// was closed without a word.
fn attaching(
    attach: impl Fn(&Session) -> Attach,
    number: impl Fn(&Session) -> u64,
) -> (usize, bool) {
    let mut stage = Stage::new();
    let a = stage.member(peer(5), key(7), TABLE, 1);
    stage.write(a, "INSERT INTO note VALUES(1, 'secret')");
    let puppet = stage.puppet(peer(1));
    stage.connect(puppet, a);
    let mut line = stage.shake(puppet, a, &key(7));
    // An ordinary pass, so that its number is used.
    let (end, mut channel) = line.attach(&mut stage);
    stage.send(end, channel.seal(sealed::REQUEST, &request()).unwrap().remove(0));
    assert_eq!(stage.seen(puppet).received[&end].len(), 1, "an honest pass is served");
    stage.close(end);
    let end = stage.open(puppet, a);
    stage.send(end, frame(plain::ATTACH, &attach(&line.session)));
    let mut channel = line.session.channel(number(&line.session));
    stage.send(end, channel.seal(sealed::REQUEST, &request()).unwrap().remove(0));
    let seen = stage.seen(puppet);
    (seen.received.get(&end).map_or(0, Vec::len), seen.closed.contains(&end))
}

fn a_further_stream_of_the_session_is_served() {
    let next = |session: &Session| session.stream_number(2);
    let attach = |session: &Session| Attach { session: session.id, stream: next(session) };
    assert_eq!(attaching(attach, next), (1, false));
}

fn a_stream_of_no_session_is_closed() {
    let next = |session: &Session| session.stream_number(2);
    let attach = |session: &Session| Attach { session: [9; 8], stream: next(session) };
    assert_eq!(attaching(attach, next), (0, true));
}

fn a_stream_under_a_used_number_is_closed() {
    let used = |session: &Session| session.stream_number(1);
    let attach = |session: &Session| Attach { session: session.id, stream: used(session) };
    assert_eq!(attaching(attach, used), (0, true));
}

fn a_stream_under_a_number_of_the_other_side_is_closed() {
    let others = |session: &Session| session.stream_number(2) + 1;
    let attach = |session: &Session| Attach { session: session.id, stream: others(session) };
    assert_eq!(attaching(attach, others), (0, true));
}

/// A member of two groups mixes their keys: the session of one is nothing in the other, and
/// neither group learns of the other.
fn the_keys_of_two_groups_do_not_mix() {
    let mut stage = Stage::new();
    let x = stage.member(peer(5), key(7), TABLE, 1);
    let y = stage.member(peer(6), key(8), TABLE, 2);
    stage.write(x, "INSERT INTO note VALUES(1, 'of x')");
    stage.write(y, "INSERT INTO note VALUES(1, 'of y')");
    let both = stage.puppet(peer(1));
    stage.connect(both, x);
    stage.connect(both, y);
    let in_x = stage.shake(both, x, &key(7));
    // A handshake with the key of the other group.
    let control = stage.open(both, y);
    let (offering, greeting) = Offering::new([3; 32]);
    stage.send(control, frame(plain::GREETING, &greeting));
    let answer: Answer = stage.plain_answer(both, control, plain::ANSWER);
    let names = (&[1u8; 4][..], &[6u8; 4][..]);
    let finished = offering.finish(&key(7), names, &answer.greeting, &answer.proof);
    assert!(matches!(finished, Err(Error::Auth(_))));
    // A stream attached by the session of the other group.
    let in_y = stage.shake(both, y, &key(8));
    let end = stage.open(both, y);
    let attach = Attach { session: in_x.session.id, stream: in_y.session.stream_number(1) };
    stage.send(end, frame(plain::ATTACH, &attach));
    stage.send(
        end,
        in_x.session.channel(attach.stream).seal(sealed::REQUEST, &request()).unwrap().remove(0),
    );
    assert!(!stage.seen(both).received.contains_key(&end));
    // The right session with the keys of the other.
    let end = stage.open(both, y);
    let attach = Attach { session: in_y.session.id, stream: in_y.session.stream_number(1) };
    stage.send(end, frame(plain::ATTACH, &attach));
    stage.send(
        end,
        in_x.session.channel(attach.stream).seal(sealed::REQUEST, &request()).unwrap().remove(0),
    );
    assert!(!stage.seen(both).received.contains_key(&end));
    assert!(stage.codes(y).contains(&"seal_broken"));
}

macro_rules! properties {
    ($($name:ident $($mutant:ident)*;)*) => {
        $(
            mod $name {
                #[test]
                fn holds() {
                    super::$name();
                }
                $(
                    #[cfg(feature = "mutants")]
                    #[test]
                    #[allow(non_snake_case)]
                    fn $mutant() {
                        super::is_noticed(wavesync_core::mutants::Mutant::$mutant, super::$name);
                    }
                )*
            }
        )*
    };
}

properties! {
    honest_members_meet;
    a_reflected_handshake_gets_nothing ProofWithoutPeers;
    a_proof_is_worth_nothing_in_the_other_role ProofWithoutRole;
    a_replayed_opener_gets_nothing ProofWithoutNonces;
    a_replayed_acceptor_gets_nothing ProofWithoutNonces;
    a_party_in_the_middle_gets_nothing ProofWithoutPeers;
    a_peer_id_that_does_not_match_is_refused ProofWithoutPeers;
    another_key_gets_nothing NoAcceptorProof;
    an_opener_without_a_proof_gets_nothing NoOpenerProof EarlySession;
    every_topic_and_passphrase_is_another_group KeyWithoutTopic;
    a_group_without_a_name_is_refused EmptyTopic;
    another_version_is_refused_as_that AnyVersion;
    a_version_changed_on_its_way_ends_the_handshake ProofWithoutVersions;
    every_flipped_bit_of_the_handshake_is_noticed NoAcceptorProof NoOpenerProof;
    messages_before_the_handshake_do_nothing EarlySession;
    a_long_message_before_the_handshake_is_refused LongHandshake;
    a_replayed_frame_is_noticed SealWithoutCounter;
    a_dropped_frame_is_noticed SealWithoutCounter;
    frames_in_another_order_are_noticed SealWithoutCounter;
    a_truncated_frame_is_noticed SealUnverified;
    a_changed_frame_is_noticed SealUnverified;
    a_changed_kind_or_flag_is_noticed SealWithoutHead;
    a_reflected_frame_is_noticed KeyWithoutDirection;
    a_frame_of_another_stream_is_noticed KeyWithoutStream;
    a_frame_of_another_session_is_noticed SessionWithoutNonces;
    a_message_of_mixed_parts_is_refused MixedParts;
    a_message_without_end_is_refused EndlessMessage;
    a_further_stream_of_the_session_is_served;
    a_stream_of_no_session_is_closed AttachAnySession;
    a_stream_under_a_used_number_is_closed AttachUsedNumber;
    a_stream_under_a_number_of_the_other_side_is_closed AttachOwnNumber;
    the_keys_of_two_groups_do_not_mix SealUnverified;
}

/// The property fails while the check is removed.
#[cfg(feature = "mutants")]
fn is_noticed(mutant: wavesync_core::mutants::Mutant, property: fn()) {
    wavesync_core::mutants::set(Some(mutant));
    let outcome = std::panic::catch_unwind(property);
    wavesync_core::mutants::set(None);
    assert!(outcome.is_err(), "{mutant:?} is not noticed");
}
