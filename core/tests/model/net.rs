//! Connections between the replicas of a case: frames of one stream in order, streams in any
//! order, all delivered until nothing is under way.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use wavesync_core::machine::StreamId;

use crate::dice::Dice;

#[derive(Debug)]
pub enum Item {
    Opened { token: Option<u64> },
    Frame(Vec<u8>),
    Closed,
}

/// One stream: who opened it, who the other end is.
#[derive(Clone, Copy)]
struct Pair {
    ends: [usize; 2],
}

#[derive(Default)]
pub struct Net {
    pub links: BTreeSet<(usize, usize)>,
    pairs: BTreeMap<u64, Pair>,
    queues: BTreeMap<(u64, usize), VecDeque<Item>>,
    next: u64,
    pub frames: u64,
}

impl Net {
    pub fn stream(pair: u64, end: usize) -> StreamId {
        StreamId(pair * 2 + end as u64)
    }

    pub fn linked(&self, a: usize, b: usize) -> bool {
        self.links.contains(&(a.min(b), a.max(b)))
    }

    /// Replicas that reach each other.
    pub fn groups(&self, replicas: usize) -> Vec<BTreeSet<usize>> {
        let mut groups: Vec<BTreeSet<usize>> = (0..replicas).map(|at| [at].into()).collect();
        for (a, b) in &self.links {
            let (joined, rest): (Vec<_>, Vec<_>) =
                groups.into_iter().partition(|group| group.contains(a) || group.contains(b));
            groups = rest;
            groups.push(joined.into_iter().flatten().collect());
        }
        groups
    }

    pub fn open(&mut self, from: usize, to: usize, token: u64) {
        self.next += 1;
        self.pairs.insert(self.next, Pair { ends: [from, to] });
        self.push(self.next, 0, Item::Opened { token: Some(token) });
        self.push(self.next, 1, Item::Opened { token: None });
    }

    fn push(&mut self, pair: u64, end: usize, item: Item) {
        self.queues.entry((pair, end)).or_default().push_back(item);
    }

    /// Sends an item to the other end of a stream.
    pub fn send(&mut self, stream: StreamId, item: Item) {
        let (pair, end) = (stream.0 / 2, (stream.0 % 2) as usize);
        if self.pairs.contains_key(&pair) {
            self.frames += u64::from(matches!(item, Item::Frame(_)));
            self.push(pair, 1 - end, item);
        }
    }

    /// The next item that arrives: who gets it, from whom, on which stream.
    pub fn next(&mut self, dice: &mut Dice) -> Option<(usize, usize, StreamId, Item)> {
        self.queues.retain(|_, queue| !queue.is_empty());
        if self.queues.is_empty() {
            return None;
        }
        let chosen = *self.queues.keys().nth(dice.index(self.queues.len()))?;
        let item = self.queues.get_mut(&chosen)?.pop_front()?;
        let ends = self.pairs[&chosen.0].ends;
        let stream = Self::stream(chosen.0, chosen.1);
        Some((ends[chosen.1], ends[1 - chosen.1], stream, item))
    }

    /// A connection is gone, with all that was under way on it.
    pub fn cut(&mut self, a: usize, b: usize) {
        self.links.remove(&(a.min(b), a.max(b)));
        let gone = |pair: &Pair| pair.ends == [a, b] || pair.ends == [b, a];
        let pairs: BTreeSet<u64> =
            self.pairs.iter().filter(|(_, pair)| gone(pair)).map(|(number, _)| *number).collect();
        self.pairs.retain(|number, _| !pairs.contains(number));
        self.queues.retain(|(number, _), _| !pairs.contains(number));
    }
}
