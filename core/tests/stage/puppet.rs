//! Peers that a test plays itself: what they see, and what they say as members.

use std::collections::BTreeMap;

use wavesync_core::auth::{
    Accepting, Channel, Greeting, GroupKey, Offering, Opened, Proof, Session,
};
use wavesync_core::ids::Cursor;
use wavesync_core::machine::{PeerId, StreamId};
use wavesync_core::wire;
use wavesync_core::wire::message::{Answer, Attach, Request, VectorList, plain, sealed};

use super::Stage;

/// What a peer that the test plays has seen.
#[derive(Default)]
pub struct Puppet {
    /// Frames by stream.
    pub received: BTreeMap<StreamId, Vec<Vec<u8>>>,
    /// Streams that a machine opened to it, in order.
    pub opened: Vec<StreamId>,
    /// Streams that a machine closed.
    pub closed: Vec<StreamId>,
}

impl Stage {
    /// A puppet that holds the group's key shakes hands with a member, as the opener.
    pub fn shake(&mut self, puppet: usize, member: usize, key: &GroupKey) -> Line {
        let names = (self.actors[puppet].0.clone(), self.actors[member].0.clone());
        let control = self.open(puppet, member);
        let (offering, greeting) = Offering::new([puppet as u8 + 100; 32]);
        self.send(control, frame(plain::GREETING, &greeting));
        let answer: Answer = self.plain_answer(puppet, control, plain::ANSWER);
        let (session, proof) = offering
            .finish(key, (&names.0.0, &names.1.0), &answer.greeting, &answer.proof)
            .unwrap();
        self.send(control, frame(plain::PROOF, &proof));
        Line { puppet, member, control, channel: session.channel(0), session, read: 1, streams: 0 }
    }

    /// The last plain frame that a puppet got on a stream.
    pub fn plain_answer<T: serde::de::DeserializeOwned>(
        &self,
        puppet: usize,
        end: StreamId,
        kind: u8,
    ) -> T {
        let frame = self.seen(puppet).received[&end].last().unwrap();
        assert_eq!(frame[0], kind, "{frame:?}");
        wire::decode(&frame[1..]).unwrap()
    }
}

/// The control stream of a puppet that is a member by its key.
pub struct Line {
    pub puppet: usize,
    pub member: usize,
    pub control: StreamId,
    pub channel: Channel,
    pub session: Session,
    /// Frames that were opened.
    read: usize,
    streams: u64,
}

impl Line {
    /// Sends a message on the control stream.
    pub fn say(&mut self, stage: &mut Stage, kind: u8, body: &[u8]) {
        for frame in self.channel.seal(kind, body).unwrap() {
            stage.send(self.control, frame);
        }
    }

    /// What the member said on the control stream since the last call.
    pub fn hear(&mut self, stage: &Stage) -> Vec<Opened> {
        let frames = &stage.seen(self.puppet).received[&self.control];
        let new: Vec<Vec<u8>> = frames[self.read..].to_vec();
        self.read = frames.len();
        new.iter().filter_map(|frame| self.channel.open(frame, 1 << 24).unwrap()).collect()
    }

    /// Opens a stream of the session: its end and its channel.
    pub fn attach(&mut self, stage: &mut Stage) -> (StreamId, Channel) {
        self.streams += 1;
        let number = self.session.stream_number(self.streams);
        let end = stage.open(self.puppet, self.member);
        let attach = Attach { session: self.session.id, stream: number };
        stage.send(end, frame(plain::ATTACH, &attach));
        (end, self.session.channel(number))
    }

    /// Asks for everything, as a newcomer does.
    pub fn ask(&mut self, stage: &mut Stage) -> (StreamId, Channel) {
        let (end, mut channel) = self.attach(stage);
        let request = Request {
            vector: VectorList::default(),
            applied: VectorList::default(),
            cursor: Cursor::default(),
            place: Vec::new(),
            sample: Vec::new(),
            chunk_rows: 10_000,
            full: false,
        };
        for bytes in channel.seal(sealed::REQUEST, &wire::encode(&request).unwrap()).unwrap() {
            stage.send(end, bytes);
        }
        (end, channel)
    }
}

/// The acceptor's part of a handshake: what it answers to a greeting.
pub fn accept(
    key: &GroupKey,
    names: (&PeerId, &PeerId),
    greeting: &Greeting,
) -> (Accepting, Vec<u8>) {
    let names = (&names.0.0[..], &names.1.0[..]);
    let (accepting, greeting, proof) = Accepting::answer(key, names, [77; 32], greeting).unwrap();
    (accepting, frame(plain::ANSWER, &Answer { greeting, proof }))
}

/// A plain frame.
pub fn frame<T: serde::Serialize>(kind: u8, message: &T) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend_from_slice(&wire::encode(message).unwrap());
    bytes
}

/// A proof that nobody gave.
pub fn no_proof() -> Proof {
    Proof([0; 32])
}
