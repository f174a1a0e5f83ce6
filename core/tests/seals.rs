//! What is said after the handshake, under attack: every check of the seals and of the streams that
//! attach to a session. With the feature `mutants` each check is removed in turn, and the test that
//! is named beside it must notice.
#![allow(clippy::unwrap_used)]

#[macro_use]
#[path = "auth/common.rs"]
mod common;
mod stage;

use common::{TABLE, pair, request};
use stage::{PLAIN_MAX, Passing, Stage, frame, key, peer};
use wavesync_core::Error;
use wavesync_core::auth::{Accepting, Offering, Session};
use wavesync_core::wire::message::{Answer, Attach, plain, sealed};

/// A session between the peers `alice` and `bob`, as each of them has it.
fn sessions(nonces: [u8; 2]) -> (Session, Session) {
    sessions_of([b"alice", b"bob"], nonces)
}

fn sessions_of([alice, bob]: [&[u8]; 2], nonces: [u8; 2]) -> (Session, Session) {
    let key = key(7);
    let (offering, hello) = Offering::new([nonces[0]; 32]);
    let (accepting, answer, proof) =
        Accepting::answer(&key, (bob, alice), [nonces[1]; 32], &hello).unwrap();
    let (session, own) = offering.finish(&key, (alice, bob), &answer, &proof).unwrap();
    (session, accepting.finish(&key, &own).unwrap())
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

/// The same nonces between other peers: either name alone makes another session.
fn a_frame_of_other_peers_is_noticed() {
    let (session, _) = sessions([1, 2]);
    let frames = session.channel(0).seal(17, b"words").unwrap();
    for names in [[&b"carol"[..], b"bob"], [b"alice", b"carol"]] {
        let (_, other) = sessions_of(names, [1, 2]);
        assert!(matches!(other.channel(0).open(&frames[0], 100), Err(Error::Auth(_))));
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

properties! {
    a_replayed_frame_is_noticed SealWithoutCounter;
    a_dropped_frame_is_noticed SealWithoutCounter;
    frames_in_another_order_are_noticed SealWithoutCounter;
    a_truncated_frame_is_noticed SealUnverified;
    a_changed_frame_is_noticed SealUnverified;
    a_changed_kind_or_flag_is_noticed SealWithoutHead;
    a_reflected_frame_is_noticed KeyWithoutDirection;
    a_frame_of_another_stream_is_noticed KeyWithoutStream;
    a_frame_of_another_session_is_noticed SessionWithoutNonces;
    a_frame_of_other_peers_is_noticed SessionWithoutPeers;
    a_message_of_mixed_parts_is_refused MixedParts;
    a_message_without_end_is_refused EndlessMessage;
    a_further_stream_of_the_session_is_served;
    a_stream_of_no_session_is_closed AttachAnySession;
    a_stream_under_a_used_number_is_closed AttachUsedNumber;
    a_stream_under_a_number_of_the_other_side_is_closed AttachOwnNumber;
    the_keys_of_two_groups_do_not_mix SealUnverified;
}
