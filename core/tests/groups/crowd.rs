//! Many members in virtual time: production stores and machines, neighbours chosen by
//! [`wavesync_core::mesh`], every frame counted.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use rusqlite::Connection;
use rusqlite::config::DbConfig;
use wavesync_core::auth::GroupKey;
use wavesync_core::ids::Millis;
use wavesync_core::machine::{Config, Input, Level, Machine, Output, PeerId, StreamId};
use wavesync_core::mesh::{Mesh, Wish};
use wavesync_core::store::Store;
use wavesync_core::store::group::Join;
use wavesync_core::store::identity::FileIdentity;

use crate::dice::Dice;

/// 2023-11-14, in milliseconds since 1970.
const START: u64 = 1_700_000_000_000;
/// A member looks after its neighbours this often, in milliseconds.
const CHOOSE_EVERY: u64 = 1_000;

/// Frames and bytes of one kind of message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    pub frames: u64,
    pub bytes: u64,
}

pub struct Member {
    pub store: Store,
    machine: Machine,
    peer: PeerId,
    mesh: Mesh<usize>,
    pub up: bool,
    wake_at: u64,
    pub neighbours: BTreeSet<usize>,
    /// Writes that arrived: hops from the writer, and when.
    pub arrived: BTreeMap<i64, (u32, u64)>,
    pub most_neighbours: usize,
}

struct Pair {
    link: (usize, usize),
    members: [usize; 2],
    open: [bool; 2],
    /// The time before which nothing more may arrive at an end: order is kept.
    ordered: [u64; 2],
}

enum Event {
    Opened { pair: u64, end: usize, token: Option<u64> },
    Frame { pair: u64, end: usize, bytes: Vec<u8> },
    Closed { pair: u64, end: usize },
    Wake { member: usize },
    Choose { member: usize },
    Return { member: usize },
    Leave { member: usize },
}

pub struct Crowd {
    pub members: Vec<Member>,
    pub now: u64,
    pub traffic: BTreeMap<u8, Traffic>,
    dice: Dice,
    events: BinaryHeap<Reverse<(u64, u64)>>,
    pending: BTreeMap<u64, Event>,
    next_event: u64,
    pairs: BTreeMap<u64, Pair>,
    next_pair: u64,
    /// One-way delays in milliseconds of links that are up.
    links: BTreeMap<(usize, usize), u64>,
    /// Links that may exist; without it, any.
    allowed: Option<BTreeSet<(usize, usize)>>,
    /// Watched writes.
    pub watched: Vec<i64>,
    pub churning: bool,
    pub churned: bool,
}

fn link(a: usize, b: usize) -> (usize, usize) {
    (a.min(b), a.max(b))
}

impl Crowd {
    pub fn new(size: usize, seed: u64, allowed: Option<BTreeSet<(usize, usize)>>) -> Self {
        let mut crowd = Self {
            members: Vec::new(),
            now: START,
            traffic: BTreeMap::new(),
            dice: Dice::new(seed),
            events: BinaryHeap::new(),
            pending: BTreeMap::new(),
            next_event: 0,
            pairs: BTreeMap::new(),
            next_pair: 0,
            links: BTreeMap::new(),
            allowed,
            watched: Vec::new(),
            churning: false,
            churned: false,
        };
        for at in 0..size {
            let member = crowd.new_member(at);
            crowd.members.push(member);
            let first = crowd.now + crowd.dice.within(0, CHOOSE_EVERY);
            crowd.schedule(first, Event::Choose { member: at });
            crowd.schedule(crowd.now, Event::Wake { member: at });
        }
        crowd
    }

    fn new_member(&mut self, at: usize) -> Member {
        let conn = Connection::open_in_memory().unwrap();
        conn.execute_batch("CREATE TABLE note(id INTEGER PRIMARY KEY, body TEXT)").unwrap();
        let mut store = Store::open(conn).unwrap();
        let file = FileIdentity(format!("file {at}"));
        let join = Join { topic: "crowd".into(), ..Join::default() };
        store.join(Millis(self.now), &join, &file, &self.dice.bytes()).unwrap();
        let mut peer = self.dice.bytes::<8>().to_vec();
        peer.extend_from_slice(&(at as u32).to_be_bytes());
        let peer = PeerId(peer);
        let machine = self.machine(&mut store, at, &peer);
        Member {
            store,
            machine,
            peer,
            mesh: Mesh::new(self.dice.next()),
            up: true,
            wake_at: u64::MAX,
            neighbours: BTreeSet::new(),
            arrived: BTreeMap::new(),
            most_neighbours: 0,
        }
    }

    fn machine(&mut self, store: &mut Store, at: usize, peer: &PeerId) -> Machine {
        let file = FileIdentity(format!("file {at}"));
        let identity = store.start(Millis(self.now), &file, &self.dice.bytes()).unwrap();
        let key = GroupKey::from_secret([9; 32]);
        let config = Config { key, own_peer: peer.clone(), name: format!("member {at}") };
        let mut own = Dice::new(self.dice.next());
        Machine::new(config, identity, Box::new(move |bytes| own.fill(bytes)))
    }

    fn schedule(&mut self, at: u64, event: Event) {
        self.next_event += 1;
        self.events.push(Reverse((at, self.next_event)));
        self.pending.insert(self.next_event, event);
    }

    /// Lets everything happen until then.
    pub fn run_until(&mut self, until: u64) {
        while self.events.peek().is_some_and(|Reverse((at, _))| *at <= until) {
            let Some(Reverse((at, number))) = self.events.pop() else { return };
            let Some(event) = self.pending.remove(&number) else { continue };
            self.now = self.now.max(at);
            self.happen(at, event);
        }
        self.now = self.now.max(until);
    }

    /// Lets everything happen until a condition holds or so many milliseconds have passed; returns
    /// whether it holds.
    pub fn run_while(&mut self, at_most: u64, mut more: impl FnMut(&Self) -> bool) -> bool {
        let end = self.now + at_most;
        while more(self) {
            if self.now >= end {
                return false;
            }
            self.run_until((self.now + 20).min(end));
        }
        true
    }

    fn happen(&mut self, at: u64, event: Event) {
        match event {
            Event::Wake { member } => {
                if self.members[member].up && self.members[member].wake_at == at {
                    self.feed(member, Input::Timer);
                }
            }
            Event::Choose { member } => {
                self.choose(member);
                self.schedule(self.now + CHOOSE_EVERY, Event::Choose { member });
            }
            Event::Opened { pair, end, token } => {
                let Some((at, other)) = self.open_end(pair, end) else { return };
                let stream = StreamId(pair * 2 + end as u64);
                let peer = self.members[other].peer.clone();
                self.feed(at, Input::Opened { peer, stream, token });
            }
            Event::Frame { pair, end, bytes } => {
                let Some((at, other)) = self.open_end(pair, end) else { return };
                self.feed(at, Input::Frame { stream: StreamId(pair * 2 + end as u64), bytes });
                self.look(at, other);
            }
            Event::Closed { pair, end } => {
                let Some((at, _)) = self.open_end(pair, end) else { return };
                if let Some(pair) = self.pairs.get_mut(&pair) {
                    pair.open[end] = false;
                }
                self.feed(at, Input::Closed { stream: StreamId(pair * 2 + end as u64) });
            }
            Event::Leave { member } => self.leave(member),
            Event::Return { member } => self.come_back(member),
        }
    }

    fn open_end(&self, pair: u64, end: usize) -> Option<(usize, usize)> {
        let pair = self.pairs.get(&pair)?;
        (pair.open[end] && self.links.contains_key(&pair.link))
            .then_some((pair.members[end], pair.members[1 - end]))
    }

    /// Notes which watched writes have arrived at a member, and from whom.
    fn look(&mut self, at: usize, from: usize) {
        for write in self.watched.clone() {
            if self.members[at].arrived.contains_key(&write) {
                continue;
            }
            let conn = self.members[at].store.connection();
            let mut there = conn.prepare_cached("SELECT 1 FROM note WHERE id = ?1").unwrap();
            if there.exists([write]).unwrap() {
                drop(there);
                let hops = self.members[from].arrived.get(&write).map_or(0, |(hops, _)| *hops);
                self.members[at].arrived.insert(write, (hops + 1, self.now));
            }
        }
    }

    fn feed(&mut self, at: usize, input: Input) {
        let member = &mut self.members[at];
        member.machine.handle(Millis(self.now), input, &mut member.store);
        let outputs = member.machine.take_outputs();
        let wake = member.machine.next_wake().0.max(self.now + 1);
        member.wake_at = wake;
        self.schedule(wake, Event::Wake { member: at });
        outputs.into_iter().for_each(|output| self.carry_out(at, output));
    }

    fn carry_out(&mut self, at: usize, output: Output) {
        match output {
            Output::OpenStream { peer, token } => {
                let other = self.number(&peer);
                let Some(delay) = self.links.get(&link(at, other)).copied() else {
                    return self.feed(at, Input::OpenFailed { peer, token });
                };
                self.next_pair += 1;
                let number = self.next_pair;
                let arrives = self.now + delay;
                let ordered = [self.now, arrives];
                let pair =
                    Pair { link: link(at, other), members: [at, other], open: [true; 2], ordered };
                self.pairs.insert(number, pair);
                self.schedule(self.now, Event::Opened { pair: number, end: 0, token: Some(token) });
                self.schedule(arrives, Event::Opened { pair: number, end: 1, token: None });
            }
            Output::Send { stream, frame } => {
                let traffic = self.traffic.entry(frame[0]).or_default();
                traffic.frames += 1;
                traffic.bytes += frame.len() as u64;
                let end = 1 - (stream.0 % 2) as usize;
                self.transmit(stream.0 / 2, end, |pair| Event::Frame { pair, end, bytes: frame });
            }
            Output::Close { stream } | Output::Abandon { stream } => {
                let end = 1 - (stream.0 % 2) as usize;
                self.transmit(stream.0 / 2, end, |pair| Event::Closed { pair, end });
                if let Some(pair) = self.pairs.get_mut(&(stream.0 / 2)) {
                    pair.open[1 - end] = false;
                }
            }
            Output::Proven { .. } => {}
            Output::Disconnect { peer } => self.cut(link(at, self.number(&peer))),
            Output::Event(event) => {
                assert!(event.level != Level::Error, "member {at}: {event:?}");
            }
            Output::Restart => panic!("member {at} changed its identity"),
        }
    }

    fn transmit(&mut self, number: u64, end: usize, event: impl FnOnce(u64) -> Event) {
        let Some(pair) = self.pairs.get_mut(&number) else { return };
        let Some(delay) = self.links.get(&pair.link) else { return };
        pair.ordered[end] = pair.ordered[end].max(self.now + delay);
        let at = pair.ordered[end];
        self.schedule(at, event(number));
    }

    fn number(&self, peer: &PeerId) -> usize {
        let bytes = peer.0.last_chunk::<4>().expect("peer ids end with the member's number");
        u32::from_be_bytes(*bytes) as usize
    }

    fn choose(&mut self, at: usize) {
        if !self.members[at].up {
            return;
        }
        let reachable: BTreeSet<usize> = match &self.allowed {
            Some(links) => links
                .iter()
                .filter_map(|(a, b)| (*a == at).then_some(*b).or((*b == at).then_some(*a)))
                .collect(),
            None => (0..self.members.len()).filter(|other| *other != at).collect(),
        };
        let member = &mut self.members[at];
        let connected = member.neighbours.clone();
        let (now, kept) = (Millis(self.now), BTreeSet::new());
        let size = reachable.len() + 1;
        let plan = member.mesh.plan(now, size, &reachable, &connected, &kept);
        for wish in plan {
            match wish {
                Wish::Dial(other) if self.members[other].up => self.connect(at, other),
                // Nobody answers there.
                Wish::Dial(other) => {
                    let now = Millis(self.now);
                    self.members[at].mesh.rest(now, &other);
                }
                Wish::Part(other) => self.cut(link(at, other)),
            }
        }
    }

    fn connect(&mut self, at: usize, other: usize) {
        let delay = self.dice.within(20, 60);
        if self.links.insert(link(at, other), delay).is_some() {
            return;
        }
        for (own, peer) in [(at, other), (other, at)] {
            let member = &mut self.members[own];
            member.neighbours.insert(peer);
            member.most_neighbours = member.most_neighbours.max(member.neighbours.len());
            let peer = self.members[peer].peer.clone();
            self.feed(own, Input::Connected { peer, address: String::new(), relayed: false });
        }
    }

    fn cut(&mut self, (a, b): (usize, usize)) {
        if self.links.remove(&(a, b)).is_none() {
            return;
        }
        self.pairs.retain(|_, pair| pair.link != (a, b));
        for (own, peer) in [(a, b), (b, a)] {
            self.members[own].neighbours.remove(&peer);
            let peer = self.members[peer].peer.clone();
            if self.members[own].up {
                self.feed(own, Input::Disconnected { peer });
            }
        }
    }

    /// From now on every fifth member goes away and comes back, again and again.
    pub fn churn(&mut self) {
        (self.churning, self.churned) = (true, true);
        for member in (0..self.members.len()).step_by(5) {
            let at = self.now + self.dice.within(0, 20_000);
            self.schedule(at, Event::Leave { member });
        }
    }

    fn leave(&mut self, at: usize) {
        if !self.churning {
            return;
        }
        self.members[at].up = false;
        let neighbours = self.members[at].neighbours.clone();
        neighbours.into_iter().for_each(|other| self.cut(link(at, other)));
        let back = self.now + self.dice.within(2_000, 15_000);
        self.schedule(back, Event::Return { member: at });
    }

    /// A member's program starts again on its file.
    fn come_back(&mut self, at: usize) {
        let empty = Store::open(Connection::open_in_memory().unwrap()).unwrap();
        let store = std::mem::replace(&mut self.members[at].store, empty);
        let mut store = Store::open(store.into_connection()).unwrap();
        let peer = self.members[at].peer.clone();
        self.members[at].machine = self.machine(&mut store, at, &peer);
        self.members[at].store = store;
        self.members[at].up = true;
        self.feed(at, Input::Timer);
        let away = self.now + self.dice.within(10_000, 30_000);
        self.schedule(away, Event::Leave { member: at });
    }

    /// A member writes a row, which is watched from then on.
    pub fn write(&mut self, at: usize, id: i64) {
        let conn = self.members[at].store.connection();
        let triggers = |on| conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, on);
        triggers(true).unwrap();
        let body = format!("what member {at} has to say, of some length");
        conn.execute("INSERT INTO note VALUES(?1, ?2)", (id, body)).unwrap();
        triggers(false).unwrap();
        self.watched.push(id);
        self.members[at].arrived.insert(id, (0, self.now));
        self.feed(at, Input::Committed);
    }

    /// The one-way delays from member to member, in milliseconds.
    pub fn way(&self, members: &[usize]) -> u64 {
        members.windows(2).map(|pair| self.links[&link(pair[0], pair[1])]).sum()
    }

    /// Members that have not a write yet.
    pub fn missing(&self, id: i64) -> usize {
        self.members.iter().filter(|member| !member.arrived.contains_key(&id)).count()
    }

    pub fn total(&self) -> Traffic {
        let mut total = Traffic::default();
        for traffic in self.traffic.values() {
            total.frames += traffic.frames;
            total.bytes += traffic.bytes;
        }
        total
    }

    /// Whether every member's control streams are up.
    pub fn greeted(&self) -> bool {
        self.members.iter().all(|member| {
            let peers = member.machine.peers();
            peers.len() == member.neighbours.len() && peers.iter().all(|peer| peer.site.is_some())
        })
    }

    pub fn a_member_that_is_up(&mut self) -> usize {
        loop {
            let at = self.dice.index(self.members.len());
            if self.members[at].up {
                return at;
            }
        }
    }
}
