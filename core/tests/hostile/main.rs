//! Hostile peers: strangers, and members that break every rule, against real machines and stores;
//! each attack of a member also through an honest member that passes on what it took.
//!
//! After each attack everybody lives, memory is back, writes of the application work and win, and
//! an honest member is served in the time that it took before.
#![allow(clippy::unwrap_used)]

mod attacks;
mod batches;
mod digests;
#[path = "../stage/mod.rs"]
mod stage;
mod stored;
mod streams;

use peak_alloc::PeakAlloc;
use stage::{Line, Stage, frame, key, peer};
use wavesync_core::auth::Channel;
use wavesync_core::ids::{Boot, Cursor, Seq, SiteId, Stamp};
use wavesync_core::limits::{self, Bounds};
use wavesync_core::machine::StreamId;
use wavesync_core::wire;
use wavesync_core::wire::message::{
    Attach, Chunk, Hello, PushMessage, Request, State, VectorList, plain, sealed,
};
use wavesync_core::wire::rows::Batch;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// More than this in memory during an attack is a failure: a batch of the largest size, unpacked.
const PEAK_MAX_BYTES: usize = 400 * 1024 * 1024;
/// An exchange may take twice as long as before the attack, and this: vectors of the largest size are
/// compared in builds that are not optimised.
const SLOWER_MAX_MS: f64 = 60.0;
/// Memory that may be left: what three members keep of up to `FOREIGN_TABLES_MAX` tables.
const LEFT_MAX_BYTES: usize = 24 * 1024 * 1024;
/// Parked rows in these tests, so that few are many.
pub const PARKED_ROWS: i64 = 1_000;
/// A catch-up is asked for within so many times 21 s.
const ASKED_MAX_TRIES: usize = 60;
/// More frames than this from a member to one attacker are an amplifier.
const ANSWERS_MAX: u64 = 4_000;

const TABLES: &str = "
    CREATE TABLE note(id INTEGER PRIMARY KEY, text);
    CREATE TABLE item(k TEXT PRIMARY KEY NOT NULL, n INTEGER NOT NULL CHECK(n < 100), u UNIQUE);
    INSERT INTO note VALUES(7, 'seven');
    INSERT INTO item VALUES('a', 1, 'one');";

/// Who attacks.
#[derive(Clone, Copy)]
pub enum Attack {
    /// Somebody without the key.
    Stranger(fn(&mut Scene)),
    /// Somebody with the key.
    Member(fn(&mut Scene)),
}

/// An attacker and what it attacks.
pub struct Scene {
    pub stage: Stage,
    pub puppet: usize,
    /// The member that the attacker is connected with.
    pub target: usize,
    /// The member whose users must notice nothing.
    pub victim: usize,
    pub honest: usize,
    pub line: Option<Line>,
    pub site: SiteId,
    /// The stamp that the next push begins after.
    pub last: Stamp,
    /// Rows 7 of the victim may stay its own: the attack used up their keys.
    pub local_only: bool,
    pushes: u32,
}

impl Scene {
    /// `forwarded`: an honest member stands between the attacker and the victim. `empty`: the victim
    /// takes its tables over from the group.
    fn new(forwarded: bool, empty: bool) -> Self {
        let mut stage = Stage::new();
        let own = if empty { "" } else { TABLES };
        let victim = stage.member(peer(5), key(7), own, 1);
        let honest = stage.member(peer(6), key(7), TABLES, 2);
        let mut target = victim;
        if forwarded {
            target = stage.member(peer(4), key(7), own, 3);
            stage.connect(target, victim);
        }
        for member in [victim, honest, target] {
            let bounds = Bounds { parked_rows: PARKED_ROWS, ..Bounds::default() };
            stage.at_mut(member).store.set_bounds(bounds);
        }
        stage.connect(victim, honest);
        stage.pass(2_000);
        let puppet = stage.puppet(peer(1));
        let last = Stamp::at(stage.now as i64);
        let site = SiteId([0xEE; 16]);
        let local_only = false;
        let (line, pushes) = (None, 0);
        Self { stage, puppet, target, victim, honest, line, site, last, local_only, pushes }
    }

    /// Says something on the control stream as a member; shakes hands again if that is over.
    pub fn say(&mut self, kind: u8, body: &[u8]) {
        let over = |line: &Line| self.stage.seen(self.puppet).closed.contains(&line.control);
        if self.line.as_ref().is_none_or(over) {
            // A peer that did wrong is left alone for a while.
            self.stage.pass(31_000);
            self.line = Some(self.stage.shake(self.puppet, self.target, &key(7)));
            self.hello();
        }
        let Some(mut line) = self.line.take() else { return };
        line.say(&mut self.stage, kind, body);
        self.line = Some(line);
    }

    pub fn tell<T: serde::Serialize>(&mut self, kind: u8, message: &T) {
        self.say(kind, &wire::encode(message).unwrap());
    }

    fn hello(&mut self) {
        let hello = self.hello_of(self.state());
        let Some(mut line) = self.line.take() else { return };
        line.say(&mut self.stage, sealed::HELLO, &wire::encode(&hello).unwrap());
        self.line = Some(line);
    }

    pub fn hello_of(&self, state: State) -> Hello {
        let (site, name) = (self.site, "x".to_string());
        Hello { features: 0, site, name, wants_schema: false, state }
    }

    /// A state that claims nothing.
    pub fn state(&self) -> State {
        State {
            boot: Boot(7),
            end: Seq(0),
            partial: false,
            vector: VectorList::default(),
            applied: VectorList::default(),
            closed: true,
            cursor: Cursor::default(),
            caps: Vec::new(),
            collected: None,
        }
    }

    /// Pushes rows as a later commit of the attacker's site: one with a gap before it.
    pub fn push(&mut self, rows: Vec<u8>) {
        let prev = self.last;
        self.last = Stamp(self.last.0 + 1_000);
        let (site, boot, upto) = (self.site, Boot(7), self.last);
        self.tell(sealed::PUSH, &PushMessage { site, boot, prev, upto, sent_to: Vec::new(), rows });
    }

    /// Pushes a batch as the first commits of a site nobody has heard of, so that it has no gap.
    pub fn push_new(&mut self, mut batch: Batch) {
        let site = self.next_site();
        for row in batch.tables.iter_mut().flat_map(|table| &mut table.rows) {
            row.birth.site = site;
            row.cells.iter_mut().for_each(|(_, dot, _)| dot.site = site);
        }
        self.push_raw(batch.encode());
    }

    /// A site of its own for each push.
    fn next_site(&self) -> SiteId {
        let mut site = [0xEE; 16];
        site[..4].copy_from_slice(&self.pushes.to_be_bytes());
        SiteId(site)
    }

    pub fn push_raw(&mut self, rows: Vec<u8>) {
        let (site, boot, upto) = (self.next_site(), Boot(7), self.last);
        self.pushes += 1;
        let prev = Stamp::NONE;
        self.tell(sealed::PUSH, &PushMessage { site, boot, prev, upto, sent_to: Vec::new(), rows });
    }

    /// Opens a catch-up stream of the session.
    pub fn attach(&mut self) -> (StreamId, Channel) {
        self.say(200, &[]);
        let Some(mut line) = self.line.take() else { panic!("a member has a line") };
        let attached = line.attach(&mut self.stage);
        self.line = Some(line);
        attached
    }

    pub fn send_on(&mut self, stream: &mut (StreamId, Channel), kind: u8, body: &[u8]) {
        for bytes in stream.1.seal(kind, body).unwrap() {
            self.stage.send(stream.0, bytes);
        }
    }

    pub fn request(&self) -> Request {
        let (vector, applied) = (VectorList::default(), VectorList::default());
        let (place, sample) = (Vec::new(), Vec::new());
        Request {
            vector,
            applied,
            cursor: Cursor::default(),
            place,
            sample,
            chunk_rows: 0,
            full: false,
        }
    }

    /// Makes the member ask for a catch-up, and gives the stream on which it asks.
    pub fn asked(&mut self) -> (StreamId, Channel) {
        self.say(200, &[]);
        self.stage.pass(1_000);
        let mut state = self.state();
        state.end = Seq(1_000_000);
        state.closed = false;
        self.tell(sealed::STATE, &state);
        // Whoever did wrong before waits longer for it each time.
        let mut found = None;
        for _ in 0..ASKED_MAX_TRIES {
            self.stage.pass(21_000);
            let seen = self.stage.seen(self.puppet);
            found = seen.opened.iter().rev().find(|end| !seen.closed.contains(*end)).copied();
            if found.is_some() {
                break;
            }
        }
        let stream = found.expect("a catch-up is asked for");
        self.asked_on(stream)
    }

    /// The newest stream on which the member asks for something, if it is open.
    pub fn asks(&self) -> Option<(StreamId, Channel)> {
        let seen = self.stage.seen(self.puppet);
        let open = seen.opened.last().filter(|end| !seen.closed.contains(*end)).copied();
        open.filter(|end| seen.received.contains_key(end)).map(|end| self.asked_on(end))
    }

    fn asked_on(&self, stream: StreamId) -> (StreamId, Channel) {
        let first = &self.stage.seen(self.puppet).received[&stream][0];
        assert_eq!(first[0], plain::ATTACH);
        let attach: Attach = wire::decode(&first[1..]).unwrap();
        let session = &self.line.as_ref().unwrap().session;
        (stream, session.channel(attach.stream))
    }

    pub fn chunk(&self, from: i64, to: i64, rows: Vec<u8>) -> Chunk {
        Chunk {
            from: Seq(from),
            to: Seq(to),
            boot: Boot(7),
            high: Seq(1_000_000),
            rows,
            vector: None,
            last: false,
            closed: false,
            ordered: false,
            place: Vec::new(),
            collected: Vec::new(),
            floors: Vec::new(),
            expected: Default::default(),
        }
    }

    pub fn serve(&mut self, stream: &mut (StreamId, Channel), chunk: &Chunk) {
        let body = wire::encode(chunk).unwrap();
        self.send_on(stream, sealed::CHUNK, &body);
    }

    /// Whether the member has closed a stream, once everything that was sent has arrived.
    pub fn has_ended(&mut self, end: StreamId) -> bool {
        self.stage.run();
        self.stage.seen(self.puppet).closed.contains(&end)
    }

    /// A stranger opens a stream and says one thing.
    pub fn knock(&mut self, bytes: Vec<u8>) -> StreamId {
        let end = self.stage.open(self.puppet, self.target);
        self.stage.send(end, bytes);
        end
    }
}

/// Time that this thread has computed: the machine may be busy with other things.
fn cpu_ms() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 / 1e6
}

/// A write at one member, until it is seen at the other: inputs that the victim needed, and time.
fn exchange(scene: &mut Scene, from: usize, to: usize, text: &str) -> (u64, f64) {
    let before = scene.stage.steps[scene.victim];
    let start = cpu_ms();
    let sql = format!(
        "INSERT INTO note(id, text) VALUES(7, '{text}') ON CONFLICT DO UPDATE SET text = excluded.text"
    );
    scene.stage.pass(10);
    scene.stage.write(from, &sql);
    let query = "SELECT text FROM note WHERE id = 7";
    for _ in 0..200 {
        if scene.stage.read(to, query) == text {
            break;
        }
        scene.stage.pass(10);
    }
    if !scene.local_only {
        assert_eq!(scene.stage.read(to, query), text, "a write of a member does not win");
    }
    assert_eq!(scene.stage.read(from, query), text, "a write of the application is lost");
    (scene.stage.steps[scene.victim] - before, cpu_ms() - start)
}

/// The middle of several exchanges in both directions.
fn latency(scene: &mut Scene, word: &str) -> (u64, f64) {
    let mut steps = Vec::new();
    let mut times = Vec::new();
    for round in 0..5 {
        let (victim, honest) = (scene.victim, scene.honest);
        for (from, to) in [(honest, victim), (victim, honest)] {
            let text = format!("{word} {round} {from}");
            let (inputs, time) = exchange(scene, from, to, &text);
            steps.push(inputs);
            times.push(time);
        }
    }
    steps.sort_unstable();
    times.sort_by(f64::total_cmp);
    (steps[5], times[5])
}

fn endure(name: &str, attack: Attack, forwarded: bool, empty: bool) {
    let mut scene = Scene::new(forwarded, empty);
    let usual = latency(&mut scene, "before");
    scene.stage.connect(scene.puppet, scene.target);
    scene.stage.forget();
    scene.stage.records = false;
    let before = HEAP.current_usage();
    HEAP.reset_peak_usage();
    match attack {
        Attack::Stranger(attack) | Attack::Member(attack) => attack(&mut scene),
    }
    let peak = HEAP.peak_usage().saturating_sub(before);
    let answers = scene.stage.heard(scene.puppet);
    // The attacker is still there.
    let attacked = latency(&mut scene, "during");
    for puppet in scene.stage.puppets() {
        scene.stage.disconnect(puppet, scene.target);
    }
    scene.line = None;
    scene.stage.forget();
    scene.stage.pass(61_000);
    let left = HEAP.current_usage().saturating_sub(before);
    latency(&mut scene, "after");
    eprintln!(
        "{name:<52} {} {:>3} steps, was {:>3}; {:>5.1} ms, was {:>5.1}; peak {:>6} KiB, left {:>5} KiB",
        if forwarded { "forwarded" } else { "direct   " },
        attacked.0,
        usual.0,
        attacked.1,
        usual.1,
        peak / 1024,
        left / 1024
    );
    assert!(attacked.0 <= usual.0 * 2, "{name}: {} inputs instead of {}", attacked.0, usual.0);
    let slow = usual.1 * 2.0 + SLOWER_MAX_MS;
    assert!(attacked.1 <= slow, "{name}: {:.1} ms instead of {:.1}", attacked.1, usual.1);
    assert!(peak < PEAK_MAX_BYTES, "{name}: {peak} bytes at a time");
    assert!(left < LEFT_MAX_BYTES, "{name}: {left} bytes are left");
    assert!(answers < ANSWERS_MAX, "{name}: {answers} answers");
    for member in [scene.victim, scene.target, scene.honest] {
        assert_eq!(scene.stage.read(member, "PRAGMA integrity_check"), "ok", "{name}");
        assert_eq!(scene.stage.read(member, OWN_OBJECTS), "", "{name}: something else was created");
        assert!(
            scene.stage.at(member).events.len() < limits::EVENTS_MAX,
            "{name}: a flood of events"
        );
    }
}

/// What no peer can have made: triggers and views that are not ours, and anything temporary.
const OWN_OBJECTS: &str = "SELECT type, name FROM sqlite_schema
     WHERE type IN ('trigger', 'view') AND name NOT LIKE '\\_\\_wavesync\\_%' ESCAPE '\\'";

/// One test for all: the memory of the process is counted. `ONLY=word` runs the attacks whose
/// names contain it.
#[test]
fn every_attack_is_endured() {
    let only = std::env::var("ONLY").unwrap_or_default();
    let all = attacks::all();
    assert!(all.len() >= 40, "{} attacks", all.len());
    let mut failed = Vec::new();
    for (name, empty, attack) in all.iter().filter(|(name, ..)| name.contains(&only)) {
        let ways = if matches!(attack, Attack::Member(_)) { 2 } else { 1 };
        for forwarded in [false, true].into_iter().take(ways) {
            let outcome = std::panic::catch_unwind(|| endure(name, *attack, forwarded, *empty));
            if outcome.is_err() {
                failed.push((name, forwarded));
            }
        }
    }
    assert!(failed.is_empty(), "not endured: {failed:?}");
    eprintln!("{} attacks, those of members also through an honest member", all.len());
}

/// A puppet that proves nothing, for attacks with many.
pub fn greeting() -> Vec<u8> {
    let (_, greeting) = wavesync_core::auth::Offering::new([3; 32]);
    frame(plain::GREETING, &greeting)
}
