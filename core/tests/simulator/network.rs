//! Links, streams and what is under way on them. Frames of one stream arrive in order, streams
//! overtake each other, and a cut link loses everything under way, also in one direction only.

use std::collections::BTreeMap;

use wavesync_core::machine::StreamId;

/// What arrives at one end of a stream.
#[derive(Clone, Debug)]
pub enum Item {
    /// The peer opened the stream.
    Opened,
    Frame(Vec<u8>),
    Closed,
}

/// Something that will happen.
#[derive(Clone, Debug)]
pub enum Event {
    Arrive {
        pair: u64,
        end: usize,
        item: Item,
    },
    /// The answer to an opened stream of one's own.
    Answer {
        replica: usize,
        peer: usize,
        token: u64,
        pair: Option<u64>,
    },
    /// An end learns late that its connection of this generation is gone.
    LateClose {
        link: usize,
        end: usize,
        generation: u64,
    },
    Reconnect {
        link: usize,
    },
    Committed {
        replica: usize,
    },
}

/// A possible connection between two replicas.
#[derive(Clone, Debug)]
pub struct Link {
    pub replicas: [usize; 2],
    pub up: bool,
    pub generation: u64,
    /// The generation of the connection that each end believes to have.
    pub believes: [Option<u64>; 2],
    /// Smallest delay in milliseconds, and what is added at most.
    pub delay: (u64, u64),
    /// Streams in a row that could not be opened.
    pub refused: u32,
}

/// A stream and its two ends.
#[derive(Clone, Debug)]
pub struct Pair {
    pub link: usize,
    pub generation: u64,
    /// The end that opened it is 0.
    pub replicas: [usize; 2],
    pub open: [bool; 2],
    /// The time before which nothing more may arrive at an end: order is kept.
    pub ordered: [u64; 2],
}

/// Everything between the replicas.
#[derive(Default)]
pub struct Network {
    pub links: Vec<Link>,
    pub pairs: BTreeMap<u64, Pair>,
    pub events: BTreeMap<(u64, u64), Event>,
    next_pair: u64,
    next_event: u64,
    pub frames: u64,
    pub bytes: u64,
    pub last_frame_at: u64,
}

impl Network {
    /// The number of one end of a stream at its replica.
    pub fn stream(pair: u64, end: usize) -> StreamId {
        StreamId(pair * 2 + end as u64)
    }

    pub fn schedule(&mut self, at: u64, event: Event) {
        self.next_event += 1;
        self.events.insert((at, self.next_event), event);
    }

    pub fn link_between(&self, a: usize, b: usize) -> Option<usize> {
        self.links.iter().position(|link| link.replicas == [a.min(b), a.max(b)])
    }

    pub fn new_pair(&mut self, link: usize, opener: usize, other: usize) -> u64 {
        self.next_pair += 1;
        let generation = self.links[link].generation;
        let replicas = [opener, other];
        let pair = Pair { link, generation, replicas, open: [true, true], ordered: [0, 0] };
        self.pairs.insert(self.next_pair, pair);
        self.next_pair
    }

    /// Whether what is sent on a stream can still arrive.
    pub fn passable(&self, pair: u64) -> bool {
        self.pairs.get(&pair).is_some_and(|pair| {
            let link = &self.links[pair.link];
            link.up && link.generation == pair.generation
        })
    }

    /// Puts an item on its way to one end, behind what is on its way there already.
    pub fn send(&mut self, now: u64, delay: u64, pair: u64, end: usize, item: Item) {
        if !self.passable(pair) {
            return;
        }
        if let Item::Frame(bytes) = &item {
            self.frames += 1;
            self.bytes += bytes.len() as u64;
            self.last_frame_at = now;
        }
        let Some(entry) = self.pairs.get_mut(&pair) else { return };
        let at = entry.ordered[end].max(now + delay);
        entry.ordered[end] = at;
        self.schedule(at, Event::Arrive { pair, end, item });
    }
}
