//! The protocol machine: inputs in, outputs out, the store given. No clock, no thread, no socket.
//!
//! Native processes, browsers and the simulator run this same machine. SQLite is written first and
//! memory changed after; a call that SQLite could not serve now is tried again later, unchanged.
//!
//! Who does what: the peer with the lower id opens the control stream of a connection; either side
//! opens a stream of its own for each catch-up, so that pushes are never queued behind one.

mod check;
mod collect;
mod contact;
mod control;
mod faults;
mod future;
mod identity;
mod pass;
mod peer;
mod push;
mod refused;
mod status;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::auth::{GroupKey, Opened};
use crate::ids::Millis;
use crate::store::Store;
use crate::store::apply::Full;
use crate::store::collect::SearchPlace;
use crate::store::identity::Identity;
use crate::store::state::OwnState;
use crate::wire::message::{Message, sealed};
use crate::{Error, Result, limits};

pub use check::CheckCounts;
pub use peer::{PeerId, StreamId};
pub use status::{PeerReport, Progress};

use peer::{Peer, Stream, StreamKind};

/// What happened outside.
#[derive(Clone, Debug)]
pub enum Input {
    /// The first connection to a peer is up.
    Connected {
        /// Who.
        peer: PeerId,
        /// Where.
        address: String,
        /// Through a relay.
        relayed: bool,
    },
    /// The connections in use to a peer changed.
    PathChanged {
        /// Who.
        peer: PeerId,
        /// Where.
        address: String,
        /// Through a relay.
        relayed: bool,
    },
    /// The last connection to a peer is gone.
    Disconnected {
        /// Who.
        peer: PeerId,
    },
    /// A stream is open: ours with its token, or the peer's without.
    Opened {
        /// Whose.
        peer: PeerId,
        /// Which.
        stream: StreamId,
        /// As given in [`Output::OpenStream`].
        token: Option<u64>,
    },
    /// A stream could not be opened.
    OpenFailed {
        /// Whose.
        peer: PeerId,
        /// As given in [`Output::OpenStream`].
        token: u64,
    },
    /// A frame arrived.
    Frame {
        /// On which stream.
        stream: StreamId,
        /// Its bytes.
        bytes: Vec<u8>,
    },
    /// A stream is gone. A cut can look like a clean end, so nothing is concluded from that.
    Closed {
        /// Which.
        stream: StreamId,
    },
    /// The queue of a stream that was reported by [`Machine::congested`] is short again.
    Drained {
        /// Which.
        stream: StreamId,
    },
    /// The round trip time to a peer was measured.
    RoundTrip {
        /// Whose.
        peer: PeerId,
        /// In milliseconds.
        millis: f64,
    },
    /// Somebody committed to the database file.
    Committed,
    /// Time passed; also the way to let waiting work go on.
    Timer,
}

/// What the driver has to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Open a stream to a peer and answer with [`Input::Opened`] or [`Input::OpenFailed`].
    OpenStream {
        /// To whom.
        peer: PeerId,
        /// To be given back.
        token: u64,
    },
    /// Send a frame.
    Send {
        /// On which stream.
        stream: StreamId,
        /// Its bytes.
        frame: Vec<u8>,
    },
    /// Close a stream after what was sent on it.
    Close {
        /// Which.
        stream: StreamId,
    },
    /// Close a stream after what was sent on it, and take nothing of it any more: nothing was proven on
    /// it, and a stranger may have sent much.
    Abandon {
        /// Which.
        stream: StreamId,
    },
    /// A peer has proven that it is a member: it may send more than a stranger.
    Proven {
        /// Who.
        peer: PeerId,
    },
    /// Give up the connections to a peer.
    Disconnect {
        /// Whose.
        peer: PeerId,
    },
    /// Tell the user.
    Event(Event),
    /// This replica goes on under another identity, or its connection to the file is of no use any
    /// more: end the network, open and start the store again, and make a new machine from what it
    /// returns. This one does nothing any more.
    Restart,
}

/// A row of `wavesync_events`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// How serious.
    pub level: Level,
    /// A stable word for programs.
    pub code: &'static str,
    /// What happened.
    pub message: String,
    /// What to do about it; may be empty.
    pub hint: String,
    /// The peer it is about.
    pub peer: Option<PeerId>,
}

/// How serious an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// For the record.
    Info,
    /// Something does not work; it is tried again or waits for the user.
    Warning,
    /// Something is broken.
    Error,
}

/// Settings of a machine.
#[derive(Clone, Debug)]
pub struct Config {
    /// The group's key.
    pub key: GroupKey,
    /// This replica's own peer id on the network.
    pub own_peer: PeerId,
    /// What its user calls it.
    pub name: String,
}

/// Fills a buffer with random bytes.
pub type Random = Box<dyn FnMut(&mut [u8])>;

/// The protocol of one replica.
pub struct Machine {
    config: Config,
    identity: Identity,
    random: Random,
    peers: BTreeMap<PeerId, Peer>,
    streams: BTreeMap<StreamId, Stream>,
    /// Tokens of streams that are being opened: the peer, and whether it is for a catch-up.
    opening: BTreeMap<u64, (PeerId, bool)>,
    next_token: u64,
    next_number: u64,
    /// Opened messages that wait for SQLite, in order of arrival.
    inbox: VecDeque<(StreamId, Opened)>,
    outputs: Vec<Output>,
    /// The own state as last read, and whether it may have changed since.
    own: Option<OwnState>,
    own_dirty: bool,
    announced: Option<OwnState>,
    announced_at: Millis,
    last_fold: Millis,
    fold_waiting: bool,
    retry_at: Option<Millis>,
    /// What keeps failing next waits this long, in milliseconds.
    retry_wait: u64,
    /// Somebody's lock has kept the engine from the file since then; `None` once that was told.
    locked_since: Option<Option<Millis>>,
    compare_at: Millis,
    turns: Vec<collect::Turn>,
    /// The log may be longer than it needs to be, and when to look.
    trim_due: bool,
    trim_at: Millis,
    /// Where the search for tombstones stands, if one is under way, and when it goes on.
    search: Option<SearchPlace>,
    collect_at: Millis,
    /// When the last search began, and whether settings may have changed since.
    searched_at: Option<Millis>,
    /// Milliseconds from one search to the next.
    collect_pause: u64,
    keeps_due: bool,
    openness_pending: bool,
    importing: bool,
    /// The schema changed, and those who create tables from it were not told yet.
    schema_due: bool,
    /// Caps fell, and what follows from that was not done yet.
    caps_due: bool,
    /// Streams whose requester can take more.
    serving: BTreeSet<StreamId>,
    /// What SQLite last refused, and what to do about it.
    last_error: Option<(String, &'static str)>,
    /// Streams of catch-ups whose request is still to be sent.
    asking: Vec<StreamId>,
    /// Streams whose queue is long.
    congested: BTreeSet<StreamId>,
    /// The time of the input that is being handled.
    seen_at: Millis,
    /// Whether others hold the same rows (rule P15).
    check: check::Check,
    /// The identity changed; see [`Output::Restart`].
    over: bool,
}

impl Machine {
    /// A machine for a started store.
    #[must_use]
    pub fn new(config: Config, identity: Identity, random: Random) -> Self {
        Self {
            config,
            identity,
            random,
            peers: BTreeMap::new(),
            streams: BTreeMap::new(),
            opening: BTreeMap::new(),
            next_token: 1,
            next_number: 1,
            inbox: VecDeque::new(),
            outputs: Vec::new(),
            own: None,
            own_dirty: true,
            announced: None,
            announced_at: Millis(0),
            last_fold: Millis(0),
            fold_waiting: false,
            retry_at: None,
            locked_since: None,
            retry_wait: limits::STORE_RETRY_MS,
            compare_at: Millis(0),
            turns: Vec::new(),
            trim_due: true,
            trim_at: Millis(0),
            search: None,
            collect_at: Millis(0),
            searched_at: None,
            collect_pause: limits::COLLECT_INTERVAL_MS,
            keeps_due: true,
            openness_pending: true,
            importing: true,
            schema_due: false,
            caps_due: false,
            serving: BTreeSet::new(),
            last_error: None,
            asking: Vec::new(),
            congested: BTreeSet::new(),
            seen_at: Millis(0),
            check: check::Check::default(),
            over: false,
        }
    }

    /// Takes one input, and does all work that can be done now.
    pub fn handle(&mut self, now: Millis, input: Input, store: &mut Store) {
        self.notice_time(now);
        match input {
            Input::Connected { peer, address, relayed } => {
                self.connected(now, peer, address, relayed);
            }
            Input::PathChanged { peer, address, relayed } => {
                if let Some(peer) = self.peers.get_mut(&peer) {
                    (peer.address, peer.relayed) = (address, relayed);
                }
            }
            Input::Disconnected { peer } => self.disconnected(&peer),
            Input::Opened { peer, stream, token } => self.stream_opened(now, peer, stream, token),
            Input::OpenFailed { token, .. } => {
                if let Some((peer, pass)) = self.opening.remove(&token)
                    && let Some(peer) = self.peers.get_mut(&peer)
                {
                    if pass {
                        (peer.requesting, peer.full) = (false, Full::No);
                        peer.check.give_up();
                        let soon = now.plus(limits::DIGEST_QUIET_MS);
                        self.check.not_before = self.check.not_before.max(soon);
                    } else {
                        peer.greeting = false;
                        peer.control_fell(now, false);
                    }
                }
            }
            // A stranger may have sent thousands before its stream was closed.
            Input::Frame { stream, .. } if !self.streams.contains_key(&stream) => return,
            Input::Frame { stream, bytes } => self.frame(now, stream, &bytes),
            Input::Drained { stream } => {
                let control = |peer: &Peer| peer.control == Some(stream);
                // What was left out meanwhile is announced; a pass leaves nothing out.
                if self.congested.remove(&stream) && self.peers.values().any(control) {
                    self.own_dirty = true;
                    self.announced = None;
                }
            }
            Input::Closed { stream } => self.stream_closed(stream),
            Input::RoundTrip { peer, millis } => {
                if let Some(peer) = self.peers.get_mut(&peer) {
                    peer.rtt_ms = Some(millis);
                }
            }
            Input::Committed => {
                self.fold_waiting = true;
                // A call in this or another process may have merged, or folded what was waiting.
                (self.own_dirty, self.keeps_due) = (true, true);
            }
            Input::Timer => {}
        }
        if !self.over {
            self.work(now, store);
        }
    }

    /// The queue of a stream is long: nothing but answers goes there until it has drained. What is
    /// left out is announced then, and fetched.
    pub fn congested(&mut self, stream: StreamId) {
        self.congested.insert(stream);
    }

    /// Streams on which passes are served; [`Machine::progressed`] wants to hear of them.
    pub fn served(&self) -> impl Iterator<Item = StreamId> {
        let served = |stream: &Stream| matches!(stream.kind, StreamKind::Outgoing { .. });
        self.streams.iter().filter(move |(_, stream)| served(stream)).map(|(id, _)| *id)
    }

    /// Bytes of a pass went to the connection: its requester has not stalled, even if it needs long
    /// until it has a whole chunk, and can take another one.
    pub fn progressed(&mut self, now: Millis, stream: StreamId) {
        if let Some(stream) = self.streams.get_mut(&stream) {
            stream.since = now;
        }
    }

    /// Takes what the driver has to do, in order.
    pub fn take_outputs(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.outputs)
    }

    /// When [`Input::Timer`] is wanted next.
    #[must_use]
    pub fn next_wake(&self) -> Millis {
        // What SQLite refuses waits, whatever else is due.
        let mut next = self.retry_at.unwrap_or(self.compare_at);
        let mut sooner = |at: Millis| next = next.min(at);
        if self.retry_at.is_none() {
            if self.importing || self.openness_pending || !self.inbox.is_empty() {
                return Millis(0);
            }
            if let Some(at) = self.own.as_ref().and_then(|own| own.release_at) {
                sooner(at);
            }
            if self.fold_waiting {
                sooner(self.last_fold.plus(limits::FOLD_INTERVAL_MS));
            }
            if self.own_dirty {
                sooner(self.announced_at.plus(limits::ANNOUNCE_INTERVAL_MS));
            }
            if self.trim_due {
                sooner(self.trim_at);
            }
            sooner(self.collect_at);
            self.check.wake.into_iter().for_each(&mut sooner);
        }
        for (id, peer) in &self.peers {
            let ours = self.config.own_peer < *id && peer.leaving.is_none();
            peer.leaving
                .map(|told| told.plus(control::TOLD_TO_GO_MS))
                .into_iter()
                .for_each(&mut sooner);
            if let (true, None, false, Some(at)) =
                (ours, peer.control, peer.greeting, peer.retry_at)
            {
                sooner(at);
            }
        }
        for stream in self.streams.values() {
            if let Some(deadline) = stream.deadline() {
                sooner(deadline);
            }
        }
        next
    }

    /// Does what can be done now; what SQLite cannot serve now stays queued.
    fn work(&mut self, now: Millis, store: &mut Store) {
        self.check_deadlines(now);
        if self.retry_at.is_some_and(|at| at > now) {
            return;
        }
        self.retry_at = None;
        let mut done = self.store_work(now, store);
        if matches!(done, Err(Error::Replaced)) {
            let random = self.fresh();
            done = store
                .renew_after_replacement(self.identity.site, &random)
                .and_then(|()| self.after_store(now, store));
        }
        let Err(error) = done else {
            self.locked_since = None;
            self.retry_wait = limits::STORE_RETRY_MS;
            return;
        };
        self.refused_by_store(now, &error, store.is_stuck());
    }

    fn store_work(&mut self, now: Millis, store: &mut Store) -> Result<()> {
        // What was passed on only in part before SQLite failed.
        self.after_store(now, store)?;
        self.serve_due(now, store)?;
        while let Some((stream, opened)) = self.inbox.pop_front() {
            let chunk = opened.kind == sealed::CHUNK;
            match self.message(now, stream, &opened, store) {
                Ok(()) => self.serve_due(now, store)?,
                Err(error) if error.retryable() => {
                    self.inbox.push_front((stream, opened));
                    return Err(error);
                }
                // The peer did nothing wrong: this engine goes on under another identity.
                Err(Error::Replaced) => return Err(Error::Replaced),
                Err(error) => self.give_up_stream(stream, &error),
            }
            self.after_store(now, store)?;
            if self.over {
                return Ok(());
            }
            if chunk {
                // Its credit is to go out before the next one is applied.
                break;
            }
        }
        self.fold(now, store)?;
        if self.importing {
            // The peers' first request should find the existing rows already taken in.
            self.importing = store.backfill_block(now)?;
            self.own_dirty = true;
            if !self.importing {
                // Nobody was asked for anything meanwhile.
                self.compare_at = Millis(0);
            }
        }
        if self.openness_pending {
            self.openness_pending = store.test_openness(now)?;
            self.own_dirty |= !self.openness_pending;
        }
        self.release(now, store)?;
        self.after_store(now, store)?;
        if self.over {
            return Ok(());
        }
        self.announce(now, store)?;
        self.compare(now, store)?;
        self.ask(now, store)?;
        self.trim(now, store)?;
        self.collect(now, store)?;
        self.self_check(now, store)?;
        self.after_store(now, store)
    }

    /// Rule K2: now and then, what is old of the log goes, a little at a time.
    fn trim(&mut self, now: Millis, store: &mut Store) -> Result<()> {
        if !self.trim_due || self.trim_at > now {
            return Ok(());
        }
        let known = self.peers.values().filter_map(|peer| peer.known.as_ref());
        let read: Vec<_> = known.map(|known| (known.site, known.state.cursor)).collect();
        self.trim_due = store.trim_block(now, &read)?;
        let pause =
            if self.trim_due { limits::LOG_TRIM_PAUSE_MS } else { limits::LOG_TRIM_INTERVAL_MS };
        self.trim_at = now.plus(pause);
        Ok(())
    }

    /// Rule K3: a commit after a quiet moment is folded and sent at once; while commits stream in,
    /// they are folded together.
    fn fold(&mut self, now: Millis, store: &mut Store) -> Result<()> {
        if !self.fold_waiting {
            return Ok(());
        }
        let rested = now.since(self.last_fold) >= limits::FOLD_INTERVAL_MS;
        if !rested && store.waiting_rows()? < limits::FOLD_WAITING_ROWS {
            return Ok(());
        }
        store.write(now, |_| Ok(()))?;
        if self.peers.values().any(|peer| peer.stopped.is_some()) {
            // It may be that the user has decided.
            self.compare_at = Millis(0);
        }
        self.fold_waiting = false;
        self.last_fold = now;
        // Whoever committed may have changed more than what was folded.
        self.own_dirty = true;
        Ok(())
    }

    /// Passes on what committed transactions produced.
    fn after_store(&mut self, now: Millis, store: &mut Store) -> Result<()> {
        for push in store.take_pushes() {
            self.own_dirty = true;
            self.send_own_push(push)?;
        }
        let effects = store.take_effects();
        self.openness_pending |= effects.openness_left;
        for note in effects.notes {
            self.event(Level::Warning, note.code, &note.message, &note.hint, None);
        }
        if effects.new_site {
            self.over = true;
            self.outputs.push(Output::Restart);
            return Ok(());
        }
        if effects.caps_fell {
            self.caps_fell(store.own_state(now)?.caps);
        }
        if effects.schema_changed {
            (self.own_dirty, self.importing, self.schema_due) = (true, true, true);
        }
        if self.schema_due {
            self.send_schema(now, store)?;
            self.schema_due = false;
        }
        Ok(())
    }

    fn message(
        &mut self,
        now: Millis,
        stream: StreamId,
        opened: &Opened,
        store: &mut Store,
    ) -> Result<()> {
        let Some(entry) = self.streams.get(&stream) else { return Ok(()) };
        let peer = entry.peer.clone();
        let (asked, asking) = match entry.kind {
            StreamKind::Outgoing { .. } => (true, false),
            StreamKind::Incoming { .. } | StreamKind::Again { .. } => (false, true),
            _ => (false, false),
        };
        let on_control = !asked && !asking;
        match Message::decode(opened)? {
            Message::Hello(hello) if on_control => self.hello(now, &peer, hello, store),
            Message::State(state) if on_control => self.peer_state(now, &peer, state, store),
            Message::Schema(tables) if on_control => self.adopt(now, &peer, &tables, store),
            Message::Push(push) if on_control => self.push(now, &peer, push, store),
            Message::Digest(digest) if on_control => {
                self.peer_digest(&peer, digest);
                Ok(())
            }
            Message::Repair(repair) if asked => self.serve_again(now, stream, repair, store),
            Message::Request(request) if asked => self.request(now, stream, &request, store),
            Message::Credit if asked => self.credit(now, stream),
            Message::Chunk(chunk) if asking => self.chunk(now, stream, &chunk, store),
            Message::Unrelated(tables) if asking => self.unrelated(now, stream, &tables, store),
            Message::Abort(_) if !on_control => {
                self.close_stream(stream);
                self.compare_at = self.compare_at.min(now.plus(limits::ASK_AGAIN_MS));
                Ok(())
            }
            Message::Unknown => Ok(()),
            _ => Err(Error::protocol("a message on the wrong kind of stream")),
        }
    }

    fn event(
        &mut self,
        level: Level,
        code: &'static str,
        message: &str,
        hint: &str,
        peer: Option<&PeerId>,
    ) {
        self.outputs.push(Output::Event(Event {
            level,
            code,
            message: message.into(),
            hint: hint.into(),
            peer: peer.cloned(),
        }));
    }

    fn fresh(&mut self) -> [u8; 64] {
        let mut random = [0; 64];
        (self.random)(&mut random);
        random
    }

    fn peers_where(&self, wanted: impl Fn(&PeerId, &Peer) -> bool) -> Vec<PeerId> {
        let found = self.peers.iter().filter(|(id, peer)| wanted(id, peer));
        found.map(|(id, _)| id.clone()).collect()
    }

    fn nonce(&mut self) -> [u8; 32] {
        let mut nonce = [0; 32];
        (self.random)(&mut nonce);
        nonce
    }
}
