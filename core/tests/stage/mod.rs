//! Real machines on real databases, peers that a test plays itself, and the wire between them.
//!
//! The wire has no delay and keeps the order of everything; time passes only when a test says so.
//! A tap sees each frame on its way and says what arrives in its place.
#![allow(dead_code)]

mod puppet;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use rusqlite::Connection;
use rusqlite::config::DbConfig;
use wavesync_core::auth::GroupKey;
use wavesync_core::ids::Millis;
use wavesync_core::machine::{Config, Event, Input, Machine, Output, PeerId, Random, StreamId};
use wavesync_core::store::Store;
use wavesync_core::store::group::Join;
use wavesync_core::store::identity::{FileIdentity, Identity};
use wavesync_core::wire::message::plain;

#[allow(unused_imports)]
pub use puppet::{Line, Puppet, accept, frame, no_proof};

/// 2023-11-14, in milliseconds since 1970.
pub const START: u64 = 1_700_000_000_000;
/// More frames than this without an end are a storm.
const FRAMES_MAX: u64 = 200_000;
/// More timers than this without time passing are a machine that spins.
const TURNS_MAX: u64 = 100_000;
/// Frames up to this kind are not sealed.
pub const PLAIN_MAX: u8 = plain::ATTACH;

/// A member with a machine of its own.
pub struct Member {
    pub machine: Machine,
    pub store: Store,
    pub events: Vec<Event>,
    key: GroupKey,
    seed: u64,
    /// What tells its file from a copy of it.
    pub file: FileIdentity,
    /// How often it went on under another identity.
    pub renewals: u64,
}

pub enum Actor {
    Member(Box<Member>),
    Puppet(Puppet),
}

/// A frame on its way.
#[derive(Clone, Debug, PartialEq)]
pub struct Passing {
    pub from: usize,
    pub to: usize,
    /// The end at which it arrives.
    pub stream: StreamId,
    pub bytes: Vec<u8>,
}

type Tap = Box<dyn FnMut(&Passing) -> Vec<Vec<u8>>>;

/// Everything.
pub struct Stage {
    pub now: u64,
    pub actors: Vec<(PeerId, Actor)>,
    /// The other end of each end of a stream, and to whom it belongs.
    ends: BTreeMap<StreamId, (StreamId, usize)>,
    queue: VecDeque<(usize, Input)>,
    connections: BTreeSet<(usize, usize)>,
    next_stream: u64,
    pub frames: u64,
    /// Every frame that was sent, before the tap, while they are recorded.
    pub sent: Vec<Passing>,
    pub records: bool,
    pub tap: Option<Tap>,
    /// Called before and after a member's machine handles an input.
    pub guard: Option<fn(usize, bool)>,
    /// Files are closed where a machine asks for a restart, and the test opens them again.
    pub closes: bool,
    /// Members whose file is closed.
    pub down: BTreeSet<usize>,
    /// Inputs that each actor was given.
    pub steps: Vec<u64>,
    /// Catch-up streams that were attached: who asks, whom, and the asker's end.
    attached: Vec<(usize, usize, StreamId)>,
    /// The most of them that were open between two actors at a time, in one direction.
    pub passes_most: usize,
    pub passes: u64,
}

pub fn key(number: u8) -> GroupKey {
    GroupKey::from_secret([number; 32])
}

pub fn peer(number: u8) -> PeerId {
    PeerId(vec![number; 4])
}

/// What ends a connection.
#[derive(Clone, Copy, Debug)]
pub enum Interruption {
    /// It is lost.
    Cut,
    /// A member's program ends, and starts again on its file.
    Restart(usize),
}

impl Stage {
    pub fn new() -> Self {
        Self {
            now: START,
            actors: Vec::new(),
            ends: BTreeMap::new(),
            queue: VecDeque::new(),
            connections: BTreeSet::new(),
            next_stream: 1,
            frames: 0,
            sent: Vec::new(),
            records: true,
            tap: None,
            guard: None,
            closes: false,
            down: BTreeSet::new(),
            steps: Vec::new(),
            attached: Vec::new(),
            passes_most: 0,
            passes: 0,
        }
    }

    /// Adds a member with a database made by `sql`. Its random numbers follow from `seed`.
    pub fn member(&mut self, id: PeerId, key: GroupKey, sql: &str, seed: u64) -> usize {
        let conn = Connection::open_in_memory().unwrap();
        conn.execute_batch(sql).unwrap();
        self.member_with(conn, id, key, seed)
    }

    /// The same with a database that is there.
    pub fn member_with(&mut self, conn: Connection, id: PeerId, key: GroupKey, seed: u64) -> usize {
        let mut store = Store::open(conn).unwrap();
        let join = Join { topic: "stage".into(), ..Join::default() };
        let file = file_of(seed);
        let mut random = numbers(seed);
        store.join(Millis(self.now), &join, &file, &fill(&mut random)).unwrap();
        self.engine(id, key, store, seed)
    }

    /// Adds a member for a database that has joined already.
    pub fn engine(&mut self, id: PeerId, key: GroupKey, mut store: Store, seed: u64) -> usize {
        let machine = self.machine(&id, &key, &mut store, &file_of(seed), seed, 0);
        self.enter(id, key, store, machine, seed)
    }

    /// Adds a member whose store was started, with an identity that the test knows.
    pub fn started(&mut self, number: u8, key: GroupKey, store: Store, own: Identity) -> usize {
        let (id, seed) = (peer(number), u64::from(number));
        let machine = machine_of(&id, &key, own, seed, numbers(seed.wrapping_mul(77)));
        self.enter(id, key, store, machine, seed)
    }

    fn enter(
        &mut self,
        id: PeerId,
        key: GroupKey,
        store: Store,
        machine: Machine,
        seed: u64,
    ) -> usize {
        let file = file_of(seed);
        let member = Member { machine, store, events: Vec::new(), key, seed, file, renewals: 0 };
        self.actors.push((id, Actor::Member(Box::new(member))));
        self.steps.push(0);
        let at = self.actors.len() - 1;
        self.queue.push_back((at, Input::Timer));
        self.run();
        at
    }

    fn machine(
        &self,
        id: &PeerId,
        key: &GroupKey,
        store: &mut Store,
        file: &FileIdentity,
        seed: u64,
        again: u64,
    ) -> Machine {
        let mut random = numbers(seed.wrapping_mul(77).wrapping_add(5 + again));
        let identity = store.start(Millis(self.now), file, &fill(&mut random)).unwrap();
        machine_of(id, key, identity, seed, random)
    }

    /// A member's file is closed; what it was sent is lost.
    fn close_file(&mut self, at: usize) {
        let others: Vec<usize> = (0..self.actors.len()).filter(|other| *other != at).collect();
        others.into_iter().for_each(|other| self.cut(at, other));
        self.at_mut(at).store = Store::open(Connection::open_in_memory().unwrap()).unwrap();
        self.queue.retain(|(to, _)| *to != at);
        self.down.insert(at);
    }

    /// A member's file was opened and started again.
    pub fn opened(&mut self, at: usize, store: Store, own: Identity) {
        let (id, key, seed) =
            (self.actors[at].0.clone(), self.at(at).key.clone(), self.at(at).seed);
        let machine = machine_of(&id, &key, own, seed, numbers(seed ^ self.now));
        let member = self.at_mut(at);
        (member.machine, member.store) = (machine, store);
        self.down.remove(&at);
        self.queue.push_back((at, Input::Timer));
    }

    /// A member's file was closed, an old copy of it put in its place, and it is started again.
    pub fn restored(&mut self, at: usize, copy: Connection) {
        self.at_mut(at).store = Store::open(copy).unwrap();
        self.restart(at);
        self.run();
    }

    /// A member goes on under another identity: its connections are lost and made again.
    fn restart(&mut self, at: usize) {
        let others: Vec<usize> = self
            .connections
            .iter()
            .filter(|(a, b)| *a == at || *b == at)
            .map(|(a, b)| if *a == at { *b } else { *a })
            .collect();
        others.iter().for_each(|other| self.cut(at, *other));
        let again = self.at(at).renewals + 1;
        let (id, key, seed) =
            (self.actors[at].0.clone(), self.at(at).key.clone(), self.at(at).seed);
        let empty = Store::open(Connection::open_in_memory().unwrap()).unwrap();
        let old = std::mem::replace(&mut self.at_mut(at).store, empty);
        let mut store = Store::open(old.into_connection()).unwrap();
        let file = self.at(at).file.clone();
        let machine = self.machine(&id, &key, &mut store, &file, seed, again);
        let member = self.at_mut(at);
        (member.machine, member.store, member.renewals) = (machine, store, again);
        self.queue.retain(|(to, _)| *to != at);
        self.queue.push_back((at, Input::Timer));
        others.iter().for_each(|other| self.join_up(at, *other));
    }

    pub fn puppet(&mut self, id: PeerId) -> usize {
        self.actors.push((id, Actor::Puppet(Puppet::default())));
        self.steps.push(0);
        self.actors.len() - 1
    }

    pub fn at(&self, member: usize) -> &Member {
        match &self.actors[member].1 {
            Actor::Member(member) => member,
            Actor::Puppet(_) => panic!("{member} is a puppet"),
        }
    }

    pub fn at_mut(&mut self, member: usize) -> &mut Member {
        match &mut self.actors[member].1 {
            Actor::Member(member) => member,
            Actor::Puppet(_) => panic!("{member} is a puppet"),
        }
    }

    pub fn seen(&self, puppet: usize) -> &Puppet {
        match &self.actors[puppet].1 {
            Actor::Puppet(puppet) => puppet,
            Actor::Member(_) => panic!("{puppet} is a member"),
        }
    }

    /// Takes a member's database away; it takes part no more.
    pub fn end(&mut self, member: usize) -> Store {
        let gone = std::mem::replace(&mut self.actors[member].1, Actor::Puppet(Puppet::default()));
        match gone {
            Actor::Member(member) => member.store,
            Actor::Puppet(_) => panic!("{member} is a puppet"),
        }
    }

    pub fn connect(&mut self, a: usize, b: usize) {
        self.join_up(a, b);
        self.run();
    }

    /// A connection that lasts for so many inputs.
    pub fn connect_and_cut_after(&mut self, a: usize, b: usize, inputs: usize) {
        self.join_up(a, b);
        // The handshake comes first.
        let limit = 1_000;
        for _ in 0..limit {
            self.run_some(1);
            if self.joined(a, b) {
                break;
            }
        }
        self.run_some(inputs);
        self.disconnect(a, b);
        self.pass(500);
    }

    /// A connection that something ends after so many inputs; it is made again at once. Returns
    /// whether anything was left to say.
    pub fn interrupted(&mut self, a: usize, b: usize, inputs: usize, how: Interruption) -> bool {
        self.join_up(a, b);
        self.run_some(inputs);
        let left = !self.queue.is_empty();
        match how {
            Interruption::Cut => {
                self.cut(a, b);
                self.join_up(a, b);
            }
            Interruption::Restart(at) => self.restart(at),
        }
        self.run();
        left
    }

    /// A connection comes or goes, and nothing else happens yet.
    pub fn flip(&mut self, a: usize, b: usize) {
        if self.connections.contains(&(a.min(b), a.max(b))) {
            self.cut(a, b);
        } else {
            self.join_up(a, b);
        }
    }

    /// Lets a few things happen.
    pub fn run_some(&mut self, inputs: usize) {
        for _ in 0..inputs {
            let Some((at, input)) = self.queue.pop_front() else { return };
            self.give(at, input);
        }
    }

    fn join_up(&mut self, a: usize, b: usize) {
        self.connections.insert((a.min(b), a.max(b)));
        for (at, other) in [(a, b), (b, a)] {
            let peer = self.actors[other].0.clone();
            let address = format!("/stage/{other}");
            self.queue.push_back((at, Input::Connected { peer, address, relayed: false }));
        }
    }

    pub fn disconnect(&mut self, a: usize, b: usize) {
        self.cut(a, b);
        self.run();
    }

    fn cut(&mut self, a: usize, b: usize) {
        self.connections.remove(&(a.min(b), a.max(b)));
        let between = |owner: usize| owner == a || owner == b;
        let gone: Vec<StreamId> = self
            .ends
            .iter()
            .filter(|(_, (other, owner))| {
                between(*owner) && self.ends.get(other).is_some_and(|(_, owner)| between(*owner))
            })
            .map(|(end, _)| *end)
            .collect();
        gone.iter().for_each(|end| {
            self.ends.remove(end);
        });
        // Nothing of a stream arrives after its connection.
        self.queue.retain(|(_, input)| match input {
            Input::Opened { stream, .. }
            | Input::Frame { stream, .. }
            | Input::Closed { stream } => !gone.contains(stream),
            _ => true,
        });
        for (at, other) in [(a, b), (b, a)] {
            let peer = self.actors[other].0.clone();
            self.queue.push_back((at, Input::Disconnected { peer }));
        }
    }

    /// A stream from one actor to another: the end of the one who opens it.
    fn stream(&mut self, from: usize, to: usize) -> StreamId {
        let (here, there) = (StreamId(self.next_stream), StreamId(self.next_stream + 1));
        self.next_stream += 2;
        self.ends.insert(here, (there, from));
        self.ends.insert(there, (here, to));
        here
    }

    /// A puppet opens a stream.
    pub fn open(&mut self, from: usize, to: usize) -> StreamId {
        let here = self.stream(from, to);
        let (there, _) = self.ends[&here];
        let peer = self.actors[from].0.clone();
        self.queue.push_back((to, Input::Opened { peer, stream: there, token: None }));
        self.run();
        here
    }

    /// A puppet sends a frame from its end of a stream.
    pub fn send(&mut self, end: StreamId, bytes: Vec<u8>) {
        self.post(end, bytes);
        self.run();
    }

    /// A puppet closes its end.
    pub fn close(&mut self, end: StreamId) {
        self.shut(end);
        self.run();
    }

    fn post(&mut self, end: StreamId, bytes: Vec<u8>) {
        let Some((there, from)) = self.ends.get(&end).copied() else { return };
        let Some((_, to)) = self.ends.get(&there).copied() else { return };
        self.frames += 1;
        assert!(self.frames < FRAMES_MAX, "a storm of frames");
        if bytes.first() == Some(&plain::ATTACH) {
            self.attached.retain(|(.., end)| self.ends.contains_key(end));
            self.attached.push((from, to, end));
            let same = self.attached.iter().filter(|(a, b, _)| (*a, *b) == (from, to)).count();
            self.passes_most = self.passes_most.max(same);
            self.passes += 1;
        }
        let passing = Passing { from, to, stream: there, bytes };
        let arriving = match &mut self.tap {
            Some(tap) => tap(&passing),
            None => vec![passing.bytes.clone()],
        };
        if self.records {
            self.sent.push(passing);
        }
        for bytes in arriving {
            self.queue.push_back((to, Input::Frame { stream: there, bytes }));
        }
    }

    fn shut(&mut self, end: StreamId) {
        let Some((there, _)) = self.ends.remove(&end) else { return };
        if let Some((_, to)) = self.ends.remove(&there) {
            self.queue.push_back((to, Input::Closed { stream: there }));
        }
    }

    /// The end of a stream that the other side has.
    pub fn other_end(&self, end: StreamId) -> StreamId {
        self.ends[&end].0
    }

    /// The queue of a stream is short again.
    pub fn drained(&mut self, member: usize, stream: StreamId) {
        self.queue.push_back((member, Input::Drained { stream }));
        self.run();
    }

    /// Every puppet.
    pub fn puppets(&self) -> Vec<usize> {
        let puppet = |at: &usize| matches!(self.actors[*at].1, Actor::Puppet(_));
        (0..self.actors.len()).filter(puppet).collect()
    }

    /// Frames that a puppet was sent since the last [`Stage::forget`].
    pub fn heard(&self, puppet: usize) -> u64 {
        self.seen(puppet).received.values().map(|frames| frames.len() as u64).sum()
    }

    /// Drops what was recorded, so that it does not count as memory of the members.
    pub fn forget(&mut self) {
        self.sent = Vec::new();
        for (_, actor) in &mut self.actors {
            if let Actor::Puppet(puppet) = actor {
                *puppet = Puppet::default();
            }
        }
    }

    /// Somebody else committed to a member's file.
    pub fn committed(&mut self, member: usize) {
        self.queue.push_back((member, Input::Committed));
    }

    /// Lets everything happen that happens without time passing.
    pub fn run(&mut self) {
        let mut turns = 0;
        loop {
            while let Some((at, input)) = self.queue.pop_front() {
                self.give(at, input);
            }
            turns += 1;
            assert!(turns < TURNS_MAX, "a machine spins");
            let now = Millis(self.now);
            let due = |(_, actor): &(PeerId, Actor)| match actor {
                Actor::Member(member) => member.machine.next_wake() <= now,
                Actor::Puppet(_) => false,
            };
            let due = |at: &usize| !self.down.contains(at) && due(&self.actors[*at]);
            let due: Vec<usize> = (0..self.actors.len()).filter(due).collect();
            if due.is_empty() {
                return;
            }
            due.into_iter().for_each(|at| self.queue.push_back((at, Input::Timer)));
        }
    }

    /// Lets time pass.
    pub fn pass(&mut self, millis: u64) {
        let end = self.now + millis;
        loop {
            self.run();
            let up = self.actors.iter().enumerate().filter(|(at, _)| !self.down.contains(at));
            let wakes = up.filter_map(|(_, (_, actor))| match actor {
                Actor::Member(member) => Some(member.machine.next_wake().0),
                Actor::Puppet(_) => None,
            });
            let next = wakes.min().unwrap_or(end).max(self.now + 1);
            if next > end {
                self.now = end;
                return self.run();
            }
            self.now = next;
        }
    }

    fn give(&mut self, at: usize, input: Input) {
        if self.down.contains(&at) {
            return;
        }
        self.steps[at] += 1;
        let now = Millis(self.now);
        match &mut self.actors[at].1 {
            Actor::Puppet(puppet) => match input {
                Input::Opened { stream, .. } => puppet.opened.push(stream),
                Input::Frame { stream, bytes } => {
                    puppet.received.entry(stream).or_default().push(bytes);
                }
                Input::Closed { stream } => puppet.closed.push(stream),
                _ => {}
            },
            Actor::Member(member) => {
                if let Some(guard) = self.guard {
                    guard(at, true);
                }
                member.machine.handle(now, input, &mut member.store);
                if let Some(guard) = self.guard {
                    guard(at, false);
                }
                let renewals = member.renewals;
                for output in member.machine.take_outputs() {
                    // What the machine before it wanted ended with it.
                    if self.at(at).renewals == renewals && !self.down.contains(&at) {
                        self.carry_out(at, output);
                    }
                }
            }
        }
    }

    fn carry_out(&mut self, at: usize, output: Output) {
        match output {
            Output::OpenStream { peer, token } => {
                let other = self.actors.iter().position(|(id, _)| *id == peer).unwrap();
                let here = self.stream(at, other);
                let (there, _) = self.ends[&here];
                let own = self.actors[at].0.clone();
                let opened = Input::Opened { peer: own, stream: there, token: None };
                self.queue.push_back((other, opened));
                let answer = Input::Opened { peer, stream: here, token: Some(token) };
                self.queue.push_back((at, answer));
            }
            Output::Send { stream, frame } => self.post(stream, frame),
            Output::Close { stream } | Output::Abandon { stream } => self.shut(stream),
            Output::Proven { .. } => {}
            Output::Disconnect { peer } => {
                let other = self.actors.iter().position(|(id, _)| *id == peer).unwrap();
                self.cut(at, other);
            }
            Output::Event(event) => self.at_mut(at).events.push(event),
            Output::Restart if self.closes => self.close_file(at),
            Output::Restart => self.restart(at),
        }
    }

    /// An application of a member writes.
    pub fn write(&mut self, member: usize, sql: &str) {
        self.commit(member, sql);
        self.run();
    }

    /// As [`Stage::write`], and nothing else happens yet.
    pub fn commit(&mut self, member: usize, sql: &str) {
        let now = self.now;
        let conn = self.at(member).store.connection();
        let triggers = |on| conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, on);
        triggers(true).unwrap();
        let before: i64 = conn
            .query_row("SELECT coalesce(max(seq), 0) FROM __wavesync_log", [], |row| row.get(0))
            .unwrap();
        conn.execute_batch(sql).unwrap();
        triggers(false).unwrap();
        conn.execute("UPDATE __wavesync_log SET at = ?1 WHERE seq > ?2", [now as i64, before])
            .unwrap();
        self.queue.push_back((member, Input::Committed));
    }

    /// What a query gives at a member, as text.
    pub fn read(&self, member: usize, sql: &str) -> String {
        let conn = self.at(member).store.connection();
        let mut statement = conn.prepare(sql).unwrap();
        let columns = statement.column_count();
        let mut rows = statement.query([]).unwrap();
        let mut lines = Vec::new();
        while let Some(row) = rows.next().unwrap() {
            let cell = |at| match row.get_ref(at).unwrap() {
                rusqlite::types::ValueRef::Null => "NULL".to_string(),
                rusqlite::types::ValueRef::Integer(number) => number.to_string(),
                rusqlite::types::ValueRef::Real(number) => number.to_string(),
                rusqlite::types::ValueRef::Text(text) => String::from_utf8_lossy(text).into_owned(),
                rusqlite::types::ValueRef::Blob(blob) => format!("{blob:02x?}"),
            };
            lines.push((0..columns).map(cell).collect::<Vec<_>>().join("|"));
        }
        lines.join("\n")
    }

    /// The codes of the events of a member.
    pub fn codes(&self, member: usize) -> Vec<&'static str> {
        self.at(member).events.iter().map(|event| event.code).collect()
    }

    /// Whether a member sent a sealed frame to another actor.
    pub fn spoke(&self, from: usize, to: usize) -> bool {
        let sealed = |frame: &&Passing| frame.from == from && frame.to == to;
        self.sent.iter().filter(sealed).any(|frame| frame.bytes[0] > PLAIN_MAX)
    }

    /// Whether both have proven each other as members.
    pub fn joined(&self, a: usize, b: usize) -> bool {
        let knows = |at: usize, other: usize| {
            let peers = self.at(at).machine.peers();
            peers.iter().any(|peer| peer.peer == self.actors[other].0 && peer.site.is_some())
        };
        knows(a, b) && knows(b, a)
    }
}

fn machine_of(
    id: &PeerId,
    key: &GroupKey,
    identity: Identity,
    seed: u64,
    random: Random,
) -> Machine {
    let config = Config { key: key.clone(), own_peer: id.clone(), name: format!("member {seed}") };
    Machine::new(config, identity, random)
}

fn file_of(seed: u64) -> FileIdentity {
    FileIdentity(format!("file {seed}"))
}

/// Random numbers that follow from a seed.
pub fn numbers(seed: u64) -> Random {
    let mut state = seed ^ 0x9E37_79B9_7F4A_7C15;
    Box::new(move |bytes: &mut [u8]| {
        for byte in bytes {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *byte = (state >> 32) as u8;
        }
    })
}

fn fill(random: &mut Random) -> [u8; 64] {
    let mut bytes = [0; 64];
    random(&mut bytes);
    bytes
}
