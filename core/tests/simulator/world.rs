//! A group of replicas, the network between them, and virtual time.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use rusqlite::Connection;
use wavesync_core::auth::GroupKey;
use wavesync_core::ids::{Millis, SiteId};
use wavesync_core::machine::{Config, Event as Report, Input, Level, Machine, Output, PeerId};
use wavesync_core::store::Store;
use wavesync_core::store::contact::Existing;
use wavesync_core::store::identity::FileIdentity;
use wavesync_core::value::Value;

use crate::copies::Copy;
use crate::dice::Dice;
use crate::file::File;
use crate::forgetful;
use crate::image::Image;
use crate::network::{Event, Item, Link, Network};
use crate::oracle::{self, Failure, Forks, Memory};
use crate::plan::WILD_MS;
pub use crate::plan::{Clocks, Plan, Topology};
use crate::upheaval;

/// 2023-11-14, in milliseconds since 1970.
const START: u64 = 1_700_000_000_000;
/// More frames than this in one run are a storm.
const FRAMES_MAX: u64 = 60_000;
/// Streams in a row that cannot be opened although the link is up: what always fails is down.
const REFUSED_MAX: u32 = 2;
/// More timer inputs than this without a frame are a machine that spins.
const WAKES_MAX: u64 = 5_000;

/// One replica: a database with its machine.
pub struct Replica {
    store: Option<Store>,
    pub machine: Machine,
    pub peer: PeerId,
    pub file: File,
    identity: FileIdentity,
    /// Under which its engine runs.
    pub site: SiteId,
    /// Its clock minus the virtual time, in milliseconds.
    pub skew: i64,
    wake_at: u64,
    wakes: u64,
}

impl Replica {
    /// The connection of the oracles.
    pub fn conn(&self) -> &Connection {
        self.file.eye()
    }
}

/// Everything.
pub struct World {
    pub plan: Plan,
    pub dice: Dice,
    pub now: u64,
    pub replicas: Vec<Replica>,
    pub network: Network,
    pub memory: Memory,
    /// The last write of each cell of the table without deletes: value and time.
    pub accepted: BTreeMap<(String, String), (u64, Value)>,
    pub last_write: u64,
    pub counter: u64,
    trace: u64,
    pub verbose: bool,
    steps: u64,
    pub copy: Option<Copy>,
    pub forks: Forks,
    /// Who is where nobody is, and until when.
    pub away: BTreeMap<usize, u64>,
    /// Some members found each other apart (rule K5): they do not converge.
    pub apart: bool,
    /// Some file was damaged behind its engine's back.
    pub damaged: bool,
    /// The codes of what engines told, by replica.
    pub told: Vec<(usize, &'static str)>,
}

impl World {
    /// A group in which everybody has joined and nobody is connected.
    pub fn new(plan: Plan) -> Self {
        let mut dice = Dice::new(plan.seed);
        let mut world = Self {
            now: START,
            replicas: Vec::new(),
            network: Network::default(),
            memory: Memory::new(plan.replicas),
            accepted: BTreeMap::new(),
            last_write: 0,
            counter: 0,
            trace: 0xCBF2_9CE4_8422_2325,
            verbose: std::env::var("SIM_TRACE").is_ok(),
            steps: 0,
            copy: None,
            forks: Forks::new(),
            away: BTreeMap::new(),
            apart: false,
            damaged: false,
            told: Vec::new(),
            dice: dice.clone(),
            plan,
        };
        for at in 0..world.plan.replicas {
            let skew = world.plan.clocks.skew(&mut dice);
            world.add_replica(at, skew);
            world.now += world.dice.within(1, 50);
        }
        world.add_links();
        world
    }

    fn add_replica(&mut self, at: usize, skew: i64) {
        let file = File::new();
        file.app.pragma_update(None, "foreign_keys", self.plan.contended).unwrap();
        crate::workload::existing_rows(self, &file.app, at);
        let mut store = Store::open(file.connect()).unwrap();
        store.set_bounds(self.plan.bounds);
        let identity = FileIdentity(format!("file {at}"));
        let now = Millis(self.now.saturating_add_signed(skew));
        store.join(now, &self.plan.join(), &identity, &self.dice.bytes()).unwrap();
        self.memory.clocks[at] = now.0;
        let mut peer = self.dice.bytes::<8>().to_vec();
        peer.push(at as u8);
        let peer = PeerId(peer);
        let (site, machine) = start(&mut store, now, &identity, &peer, &mut self.dice, at);
        let (wake_at, wakes, store) = (self.now, 0, Some(store));
        let replica = Replica { store, machine, peer, file, identity, site, skew, wake_at, wakes };
        self.replicas.push(replica);
    }

    fn add_links(&mut self) {
        let n = self.plan.replicas;
        for a in 0..n {
            for b in a + 1..n {
                let linked = match self.plan.topology {
                    Topology::Line => b == a + 1,
                    Topology::Star => a == 0,
                    Topology::Mesh => true,
                    Topology::Random => b == a + 1 || self.dice.percent(40),
                };
                if linked {
                    let slow = if self.dice.percent(20) { 300 } else { 15 };
                    let delay = (self.dice.within(0, 20), self.dice.within(0, slow));
                    self.network.links.push(Link {
                        replicas: [a, b],
                        up: false,
                        generation: 0,
                        believes: [None, None],
                        delay,
                        refused: 0,
                    });
                    let link = self.network.links.len() - 1;
                    let at = self.now + self.dice.within(0, 400);
                    self.network.schedule(at, Event::Reconnect { link });
                }
            }
        }
    }

    /// What a replica's clock shows.
    pub fn clock(&self, replica: usize) -> Millis {
        Millis(self.now.saturating_add_signed(self.replicas[replica].skew))
    }

    pub fn image(&self, replica: usize) -> Rc<Image> {
        self.replicas[replica].file.image()
    }

    pub fn images(&self) -> Vec<Rc<Image>> {
        self.replicas.iter().map(|replica| replica.file.image()).collect()
    }

    /// A number that two runs share exactly if the same happened in them.
    pub fn trace(&self) -> u64 {
        self.trace
    }

    pub fn note(&mut self, bytes: &[u8]) {
        for byte in bytes.iter().chain(&self.now.to_be_bytes()) {
            self.trace = (self.trace ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3);
        }
    }

    pub fn say(&self, text: impl FnOnce() -> String) {
        if self.verbose {
            eprintln!("{:>8} {}", self.now - START, text());
        }
    }

    /// Gives one input to a machine and carries out what it asks for.
    pub fn feed(&mut self, at: usize, input: Input) -> Result<(), Failure> {
        let now = self.clock(at);
        self.memory.clocks[at] = self.memory.clocks[at].max(now.0);
        let replica = &mut self.replicas[at];
        let store = replica.store.as_mut().expect("the store is only away during a restart");
        replica.machine.handle(now, input, store);
        let outputs = replica.machine.take_outputs();
        let wake = replica.machine.next_wake().0.saturating_add_signed(-replica.skew);
        replica.wake_at = wake.max(self.now + 1);
        for output in outputs {
            self.carry_out(at, output)?;
        }
        Ok(())
    }

    fn carry_out(&mut self, at: usize, output: Output) -> Result<(), Failure> {
        match output {
            Output::OpenStream { peer, token } => {
                let other = self.replica_of(&peer);
                let link = self.network.link_between(at, other).expect("peers are linked");
                let unlucky = self.network.links[link].up && self.dice.percent(2);
                let on = &mut self.network.links[link];
                on.refused = if unlucky && on.refused < REFUSED_MAX { on.refused + 1 } else { 0 };
                let possible = on.up && on.refused == 0;
                let pair = possible.then(|| self.network.new_pair(link, at, other));
                let answer = Event::Answer { replica: at, peer: other, token, pair };
                let delay = self.dice.within(0, 3);
                self.network.schedule(self.now + delay, answer);
                if let Some(pair) = pair {
                    let delay = self.delay(link);
                    self.network.send(self.now, delay, pair, 1, Item::Opened);
                }
            }
            Output::Send { stream, frame } => self.transmit(stream.0, Item::Frame(frame)),
            Output::Close { stream } | Output::Abandon { stream } => {
                self.transmit(stream.0, Item::Closed);
                let end = (stream.0 % 2) as usize;
                if let Some(pair) = self.network.pairs.get_mut(&(stream.0 / 2)) {
                    pair.open[end] = false;
                }
            }
            Output::Proven { .. } => {}
            Output::Disconnect { peer } => {
                let other = self.replica_of(&peer);
                let link = self.network.link_between(at, other).expect("peers are linked");
                self.cut(link, None)?;
            }
            Output::Event(report) => return self.reported(at, &report),
            Output::Restart => return self.restart(at),
        }
        Ok(())
    }

    fn transmit(&mut self, stream: u64, item: Item) {
        let (pair, end) = (stream / 2, 1 - (stream % 2) as usize);
        let Some(link) = self.network.pairs.get(&pair).map(|pair| pair.link) else { return };
        let delay = self.delay(link);
        self.network.send(self.now, delay, pair, end, item);
    }

    fn reported(&mut self, at: usize, report: &Report) -> Result<(), Failure> {
        self.say(|| format!("r{at} {:?} {}: {}", report.level, report.code, report.message));
        self.told.push((at, report.code));
        if report.level == Level::Error && report.code != "diverged" {
            let text = format!("replica {at} reports {}: {}", report.code, report.message);
            return oracle::fail("error report", text);
        }
        if report.code == "resync" {
            forgetful::RESYNCS.fetch_add(1, Ordering::Relaxed);
        }
        if report.code == "apart" {
            forgetful::APART.fetch_add(1, Ordering::Relaxed);
            self.apart = true;
        }
        if ["difference", "diverged"].contains(&report.code) && !self.damaged {
            let text = format!("replica {at} reports {}: {}", report.code, report.message);
            return Err(Failure { oracle: "false alarm", message: text });
        }
        if report.code == "unrelated" {
            // The user says what the rows are; here or there, sooner or later.
            let now = self.clock(at);
            let store = self.replicas[at].store.as_mut().expect("it has just reported");
            store.decide_existing(now, Existing::Same).expect("nothing stands against it");
            let after = self.dice.within(1, 2_000);
            self.network.schedule(self.now + after, Event::Committed { replica: at });
        }
        Ok(())
    }

    fn replica_of(&self, peer: &PeerId) -> usize {
        usize::from(*peer.0.last().expect("peer ids end with the replica's number"))
    }

    fn delay(&mut self, link: usize) -> u64 {
        let (least, more) = self.network.links[link].delay;
        least + self.dice.within(0, more)
    }

    /// Cuts a link. One end may learn of it `late` milliseconds later.
    pub fn cut(&mut self, link: usize, late: Option<(usize, u64)>) -> Result<(), Failure> {
        if !self.network.links[link].up {
            return Ok(());
        }
        self.say(|| format!("cut {:?} late {late:?}", self.network.links[link].replicas));
        self.network.links[link].up = false;
        let generation = self.network.links[link].generation;
        for end in 0..2 {
            match late {
                Some((ignorant, after)) if ignorant == end => {
                    let event = Event::LateClose { link, end, generation };
                    self.network.schedule(self.now + after, event);
                }
                _ => self.end_learns(link, end)?,
            }
        }
        let most = if self.plan.contended { 4_000 } else { 1_500 };
        let after = self.dice.within(1, most);
        self.network.schedule(self.now + after, Event::Reconnect { link });
        Ok(())
    }

    fn end_learns(&mut self, link: usize, end: usize) -> Result<(), Failure> {
        let [a, b] = self.network.links[link].replicas;
        let (at, other) = if end == 0 { (a, b) } else { (b, a) };
        self.forget_streams(link, at);
        if self.network.links[link].believes[end].take().is_some() {
            let peer = self.replicas[other].peer.clone();
            self.feed(at, Input::Disconnected { peer })?;
        }
        Ok(())
    }

    fn forget_streams(&mut self, link: usize, at: usize) {
        for pair in self.network.pairs.values_mut().filter(|pair| pair.link == link) {
            for end in 0..2 {
                pair.open[end] &= pair.replicas[end] != at;
            }
        }
        self.network.pairs.retain(|_, pair| pair.open != [false, false]);
    }

    fn reconnect(&mut self, link: usize) -> Result<(), Failure> {
        let now = self.now;
        self.away.retain(|_, until| *until > now);
        let ends = self.network.links[link].replicas;
        if let Some(until) = ends.iter().filter_map(|end| self.away.get(end)).max().copied() {
            self.network.schedule(until, Event::Reconnect { link });
            return Ok(());
        }
        let entry = &mut self.network.links[link];
        if entry.up {
            return Ok(());
        }
        entry.up = true;
        entry.generation += 1;
        let (generation, [a, b]) = (entry.generation, entry.replicas);
        self.say(|| format!("connect {a} {b}"));
        let first = self.dice.index(2);
        for end in [first, 1 - first] {
            let before = self.network.links[link].believes[end].replace(generation);
            let (at, other) = if end == 0 { (a, b) } else { (b, a) };
            if before.is_none() {
                let peer = self.replicas[other].peer.clone();
                let address = format!("/sim/{other}");
                self.feed(at, Input::Connected { peer, address, relayed: false })?;
            }
        }
        Ok(())
    }

    fn late_close(&mut self, link: usize, end: usize, generation: u64) -> Result<(), Failure> {
        if self.network.links[link].believes[end] == Some(generation) {
            return self.end_learns(link, end);
        }
        // There is a newer connection: only the streams of the old one end.
        let at = self.network.links[link].replicas[end];
        let mut closed = Vec::new();
        for (number, pair) in &mut self.network.pairs {
            for end in 0..2 {
                let old = pair.link == link && pair.generation == generation;
                if old && pair.replicas[end] == at && pair.open[end] {
                    pair.open[end] = false;
                    closed.push(Network::stream(*number, end));
                }
            }
        }
        closed.into_iter().try_for_each(|stream| self.feed(at, Input::Closed { stream }))
    }

    /// Ends a replica's engine and starts a new one on its database.
    pub fn restart(&mut self, at: usize) -> Result<(), Failure> {
        self.say(|| format!("restart {at}"));
        self.lose_links(at)?;
        self.start_again(at, |store| store)
    }

    /// A member leaves the group and joins again a moment later. If it forgets, nothing of ours is
    /// left meanwhile, and what the application writes is not recorded.
    pub fn leave_and_join(&mut self, at: usize, forget: bool) -> Result<(), Failure> {
        self.say(|| format!("r{at} leaves, forgetting: {forget}"));
        self.lose_links(at)?;
        let mut script = String::new();
        if forget {
            upheaval::forget_what_nobody_has(self, at);
            let replica = &mut self.replicas[at];
            replica.store.as_mut().expect("nobody else has it").forget().unwrap();
            script = upheaval::write_meanwhile(&replica.file.app, &mut self.dice);
            self.memory.restored(at, at);
        } else {
            self.application(at, |conn, dice| script = upheaval::write_meanwhile(conn, dice));
        }
        self.say(|| format!("r{at} {script}"));
        let (now, random) = (self.clock(at), self.dice.bytes());
        let (join, file) = (self.plan.join(), self.replicas[at].identity.clone());
        self.start_again(at, |mut store| {
            store.join(now, &join, &file, &random).unwrap();
            store
        })
    }

    /// The engine of a replica is about to end: it learns nothing any more.
    fn lose_links(&mut self, at: usize) -> Result<(), Failure> {
        let links: Vec<usize> = (0..self.network.links.len())
            .filter(|link| self.network.links[*link].replicas.contains(&at))
            .collect();
        for link in &links {
            let own = usize::from(self.network.links[*link].replicas[1] == at);
            // The engine that ends learns nothing any more.
            self.network.links[*link].believes[own] = None;
            self.forget_streams(*link, at);
            let late = self.dice.percent(30).then(|| (1 - own, self.dice.within(1, 2_500)));
            self.cut(*link, late)?;
        }
        Ok(())
    }

    /// Starts an engine on a replica's file, after its store was opened anew.
    fn start_again(&mut self, at: usize, open: impl FnOnce(Store) -> Store) -> Result<(), Failure> {
        let now = self.clock(at);
        self.memory.clocks[at] = self.memory.clocks[at].max(now.0);
        let replica = &mut self.replicas[at];
        let store = replica.store.take().expect("a restart follows another");
        let mut store = Store::open(store.into_connection()).unwrap();
        store.set_bounds(self.plan.bounds);
        let mut store = open(store);
        let (file, peer) = (&replica.identity, &replica.peer);
        (replica.site, replica.machine) = start(&mut store, now, file, peer, &mut self.dice, at);
        replica.store = Some(store);
        replica.wake_at = self.now + 1;
        oracle::one_engine_per_site(self, at)
    }

    /// Runs SQL of the application. What it logs is stamped with virtual time: SQL's own clock is
    /// the real one.
    pub fn application(&mut self, at: usize, run: impl FnOnce(&Connection, &mut Dice)) {
        self.last_write = self.now.max(self.last_write + 1);
        self.now = self.last_write;
        let mut time = self.clock(at).0 as i64;
        if self.plan.clocks != Clocks::Equal && self.dice.percent(3) {
            // Another program with a clock of its own (rule P3).
            time += 86_400_000;
        }
        let recursive = self.dice.percent(50);
        let conn = &self.replicas[at].file.app;
        let end = "SELECT coalesce(max(seq), 0) FROM __wavesync_log";
        let before: i64 =
            conn.prepare_cached(end).unwrap().query_row([], |row| row.get(0)).unwrap();
        conn.pragma_update(None, "recursive_triggers", recursive).unwrap();
        run(conn, &mut self.dice);
        let stamp = "UPDATE __wavesync_log SET at = ?1 WHERE seq > ?2";
        conn.prepare_cached(stamp).unwrap().execute([time, before]).unwrap();
        self.replicas[at].wake_at = self.replicas[at].wake_at.max(self.now + 1);
    }

    /// The next thing that happens, if it happens before `until`.
    pub fn step(&mut self, until: u64) -> Result<bool, Failure> {
        let event = self.network.events.keys().next().map_or(u64::MAX, |(at, _)| *at);
        let wakes = self.replicas.iter().enumerate().map(|(at, replica)| (replica.wake_at, at));
        let (wake, sleeper) = wakes.min().expect("there are replicas");
        if event.min(wake) > until {
            self.now = self.now.max(until);
            return Ok(false);
        }
        self.steps += 1;
        if self.steps.is_multiple_of(40) {
            oracle::during(self)?;
        }
        if wake < event {
            self.now = self.now.max(wake);
            self.replicas[sleeper].wakes += 1;
            if self.replicas[sleeper].wakes > WAKES_MAX {
                oracle::fail("quiet", format!("the machine of {sleeper} spins"))?;
            }
            self.feed(sleeper, Input::Timer)?;
            return Ok(true);
        }
        let Some(((at, _), event)) = self.network.events.pop_first() else { return Ok(false) };
        self.now = self.now.max(at);
        self.happen(event)?;
        Ok(true)
    }

    fn happen(&mut self, event: Event) -> Result<(), Failure> {
        match event {
            Event::Arrive { pair, end, item } => self.arrive(pair, end, item),
            Event::Answer { replica, peer, token, pair } => {
                let peer = self.replicas[peer].peer.clone();
                let open = |pair: &u64| {
                    self.network.passable(*pair)
                        && self.network.pairs.get(pair).is_some_and(|pair| pair.open[0])
                };
                let input = match pair.filter(open) {
                    Some(pair) => {
                        let stream = Network::stream(pair, 0);
                        Input::Opened { peer, stream, token: Some(token) }
                    }
                    None => Input::OpenFailed { peer, token },
                };
                self.feed(replica, input)
            }
            Event::LateClose { link, end, generation } => self.late_close(link, end, generation),
            Event::Reconnect { link } => self.reconnect(link),
            Event::Committed { replica } => self.feed(replica, Input::Committed),
        }
    }

    fn arrive(&mut self, number: u64, end: usize, item: Item) -> Result<(), Failure> {
        if !self.network.passable(number) {
            return Ok(());
        }
        let Some(pair) = self.network.pairs.get_mut(&number) else { return Ok(()) };
        if !pair.open[end] {
            return Ok(());
        }
        let (at, other) = (pair.replicas[end], pair.replicas[1 - end]);
        let stream = Network::stream(number, end);
        if let (true, Item::Frame(bytes)) = (self.verbose, &item) {
            let time = self.now - START;
            eprintln!("{time:>8}   {other} -> {at}: kind {} of {} bytes", bytes[0], bytes.len());
        }
        let input = match item {
            Item::Opened => {
                let peer = self.replicas[other].peer.clone();
                Input::Opened { peer, stream, token: None }
            }
            Item::Frame(bytes) => {
                self.note(&bytes);
                self.replicas[at].wakes = 0;
                Input::Frame { stream, bytes }
            }
            Item::Closed => {
                pair.open[end] = false;
                Input::Closed { stream }
            }
        };
        if self.network.frames > FRAMES_MAX {
            oracle::fail("quiet", "a storm of frames".into())?;
        }
        self.feed(at, input)
    }

    /// Everybody sleeps until every time that was ever told is in the past; the clocks are right then.
    pub fn pass_days(&mut self) {
        self.say(|| "days pass".into());
        self.now += 2 * WILD_MS;
        for replica in &mut self.replicas {
            (replica.wake_at, replica.wakes, replica.skew) = (self.now, 0, 0);
        }
    }

    /// Lets time pass until nothing has been sent for `quiet` milliseconds.
    pub fn settle(&mut self, quiet: u64, at_most: u64) -> Result<(), Failure> {
        let limit = self.now + at_most;
        self.network.last_frame_at = self.now;
        loop {
            let until = self.network.last_frame_at + quiet;
            if until > limit {
                let text = format!("frames are still sent after {at_most} ms of virtual time");
                return oracle::fail("quiet", text);
            }
            if !self.step(until)? && self.network.last_frame_at + quiet <= self.now {
                return Ok(());
            }
        }
    }
}

fn start(
    store: &mut Store,
    now: Millis,
    file: &FileIdentity,
    peer: &PeerId,
    dice: &mut Dice,
    at: usize,
) -> (SiteId, Machine) {
    let identity = store.start(now, file, &dice.bytes()).unwrap();
    let config = Config {
        key: GroupKey::from_secret([9; 32]),
        own_peer: peer.clone(),
        name: format!("replica {at}"),
    };
    let mut own = Dice::new(dice.next());
    (identity.site, Machine::new(config, identity, Box::new(move |bytes| own.fill(bytes))))
}
