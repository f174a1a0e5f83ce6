//! The one driver loop: it moves inputs to the protocol machine and outputs to the network, tells
//! the machine the time, and shows a snapshot of everything to whoever asks.
//!
//! It decides when to dial and when to poll; what is said to whom is the machine's business.

mod board;
mod book;
mod control;
mod dialer;
mod events;
pub mod shown;
mod watch;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use futures::FutureExt;
use wavesync_core::auth::GroupKey;
use wavesync_core::ids::Millis;
use wavesync_core::machine::{Config, Event, Input, Level, Machine, Output, PeerId, StreamId};
use wavesync_core::store::Store;
use wavesync_core::store::identity::{FileIdentity, Identity};

pub use board::{Board, LoggedEvent, Snapshot};
pub use control::{Control, Inbox};

use crate::network;
use crate::time::{self, SystemTime, UNIX_EPOCH};
use crate::{NetError, Network, PeerKey, RelayConfig};
use book::Book;
use control::Command;
use dialer::Dialer;
use watch::Watch;

/// The file is asked for commits this often while there are some, in milliseconds.
#[cfg(not(target_family = "wasm"))]
const POLL_BUSY_MS: u64 = 2;
/// The file is asked for commits this often when it was quiet, in milliseconds.
#[cfg(not(target_family = "wasm"))]
const POLL_IDLE_MS: u64 = 20;
/// In a browser everybody who commits tells the engine; this is for whoever forgets.
#[cfg(target_family = "wasm")]
const POLL_BUSY_MS: u64 = 250;
#[cfg(target_family = "wasm")]
const POLL_IDLE_MS: u64 = 1_000;
/// After so much work in a browser its event loop has a turn, in milliseconds.
#[cfg(target_family = "wasm")]
const WORK_MAX_MS: u64 = 8;
/// After this long without a commit the file counts as quiet, in milliseconds.
const BUSY_FOR_MS: u64 = 2_000;
/// The same where the system tells of writes, in milliseconds.
const POLL_WATCHED_MS: u64 = 500;
/// After a write was told of, the file is asked at this interval, in milliseconds: the commit may follow.
const POLL_TOLD_MS: u64 = 20;
/// For this long, in milliseconds.
const TOLD_FOR_MS: u64 = 500;
/// After a commit was seen, writes are not listened to for this long, in milliseconds: what comes next
/// is not folded before (see `FOLD_INTERVAL_MS` of core), and waking up for each commit would cost more.
const DEAF_AFTER_COMMIT_MS: u64 = 25;
/// The same after a write that was no commit yet, in milliseconds.
const DEAF_AFTER_WRITE_MS: u64 = 10;
/// A snapshot is shown at most this often unless somebody waits for one, in milliseconds.
const PUBLISH_INTERVAL_MS: u64 = 25;
/// What was just committed is given this long to reach others before the engine stops.
const FLUSH_MAX_MS: u64 = 300;
/// Closing the connections takes at most this long.
const SHUTDOWN_MAX_MS: u64 = 400;

/// How an engine takes part in the network.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The group's key.
    pub key: GroupKey,
    /// The group's name, for the snapshot.
    pub topic: String,
    /// What the user calls this replica.
    pub name: String,
    /// Multiaddresses to listen at; empty for every interface on a free port.
    pub listen: Vec<String>,
    /// Multiaddresses of members to stay connected with.
    pub peers: Vec<String>,
    /// Multiaddresses of relays to be reachable through, with their peer ids.
    pub relays: Vec<String>,
    /// Go from relayed connections to direct ones where that is possible.
    pub direct: bool,
    /// Look for members in the local network and be found there.
    pub lan: bool,
}

/// What an engine runs on.
pub struct Parts {
    /// The database.
    pub store: Store,
    /// Who this replica is, as [`Store::start`] told.
    pub identity: Identity,
    /// How it takes part.
    pub settings: Settings,
    /// Commands.
    pub inbox: Inbox,
    /// Where the snapshot is shown.
    pub board: Board,
}

/// Milliseconds since 1970.
#[must_use]
pub fn now() -> Millis {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Millis(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX))
}

/// Fills a buffer from the system's random source.
///
/// # Panics
/// If the system has none; nothing safe can be done then.
pub fn random(buffer: &mut [u8]) {
    getrandom::fill(buffer).expect("the operating system gives random bytes");
}

/// What tells this file from a copy of it: device and inode. The file is not opened, because
/// closing it again would drop the locks that SQLite holds on it.
///
/// # Errors
/// If the file cannot be found.
pub fn file_identity(path: &Path) -> std::io::Result<FileIdentity> {
    let meta = std::fs::metadata(path)?;
    #[cfg(unix)]
    let text = {
        use std::os::unix::fs::MetadataExt;
        format!("{:x}:{:x}", meta.dev(), meta.ino())
    };
    #[cfg(not(unix))]
    let text = format!("{}:{:?}", path.display(), meta.created().ok());
    Ok(FileIdentity(text))
}

/// What goes on when an engine ended because the identity of its database changed, or because its
/// connection is of no use any more: the file is to be opened again, and an engine run with these.
pub struct Again {
    /// Commands.
    pub inbox: Inbox,
    /// Where it listened, with real ports.
    pub listen: Vec<String>,
    /// Every address that it stays connected with.
    pub peers: Vec<String>,
}

/// Runs an engine on this thread until it is stopped, or has to go on under another identity.
/// What `working` gives is held while the thread works, and given back while it waits.
///
/// # Errors
/// As [`drive`].
#[cfg(not(target_family = "wasm"))]
pub fn run<G>(parts: Parts, working: impl Fn() -> G) -> Result<Option<Again>, NetError> {
    let mut engine = std::pin::pin!(drive(parts));
    smol::block_on(std::future::poll_fn(|context| {
        let _working = working();
        engine.as_mut().poll(context)
    }))
}

/// Runs an engine until it is stopped, or has to go on under another identity.
///
/// # Errors
/// If the network cannot start at all, for example because an address cannot be understood.
pub async fn drive(parts: Parts) -> Result<Option<Again>, NetError> {
    let Parts { mut store, identity, settings, inbox, board } = parts;
    store.keep_time(now);
    let network = start_network(&settings, &identity)?;
    let own_peer = PeerId(network.local_peer().as_bytes().to_vec());
    let config = Config { key: settings.key.clone(), own_peer, name: settings.name.clone() };
    let site = identity.site;
    let machine = Machine::new(config, identity.clone(), Box::new(random));
    let mut seed = [0; 8];
    random(&mut seed);
    let mut dialer = Dialer::new(&settings.peers, u64::from_be_bytes(seed), now());
    let book = Book::open(&store, &mut dialer, now());
    let file = store.connection().path().map(std::path::PathBuf::from);
    let file = file.and_then(|path| {
        let identity = file_identity(&path).ok()?;
        Some((path, identity))
    });
    let board_token = board.snapshot().token;
    board.update(|snapshot| {
        snapshot.topic.clone_from(&settings.topic);
        snapshot.site = Some(site);
        snapshot.peer = network.local_peer().to_string();
        "running".clone_into(&mut snapshot.state);
    });
    let watch = file.as_ref().and_then(|(path, _)| Watch::new(path));
    let lan_error = network.lan_error();
    let mut driver = Driver {
        network: Some(network),
        machine,
        store,
        identity,
        settings,
        dialer,
        queued: BTreeMap::new(),
        book,
        board,
        busy_until: Millis(0),
        poll_at: Millis(0),
        watch,
        told_at: Millis(0),
        deaf_until: Millis(0),
        published_at: Millis(0),
        token: board_token,
        stopping: None,
        restarting: false,
        file,
        #[cfg(target_family = "wasm")]
        breathed: time::Instant::now(),
    };
    if let Some(reason) = lan_error {
        driver.warn("lan", &format!("members in the local network are not found: {reason}"));
    }
    Ok(driver.drive(inbox).await)
}

fn start_network(settings: &Settings, identity: &Identity) -> Result<Network, NetError> {
    let relay = |address: &String| -> Result<RelayConfig, NetError> {
        let peer = core_id(&network::check_relay(address)?);
        Ok(RelayConfig { address: address.clone(), tag: settings.key.meeting_tag(&peer) })
    };
    let relays = settings.relays.iter().map(relay).collect::<Result<_, _>>()?;
    Network::new(network::Config {
        relays,
        direct: settings.direct,
        identity: identity.secret,
        listen: settings.listen.clone(),
        lan_key: settings.lan.then(|| settings.key.lan_key()),
    })
}

struct Driver {
    /// Absent while paused.
    network: Option<Network>,
    machine: Machine,
    store: Store,
    identity: Identity,
    settings: Settings,
    dialer: Dialer,
    /// Bytes in the queues of served passes when that was last looked at.
    queued: BTreeMap<StreamId, usize>,
    book: Book,
    board: Board,
    busy_until: Millis,
    poll_at: Millis,
    /// Tells of writes to the file, where the system does.
    watch: Option<Watch>,
    /// When it last did.
    told_at: Millis,
    /// It is not listened to before.
    deaf_until: Millis,
    published_at: Millis,
    /// Newest token of [`Control::committed`] that was taken in.
    token: u64,
    stopping: Option<Millis>,
    /// The machine asked to be made anew.
    restarting: bool,
    /// Where the file lies, and which one it was when the engine started.
    file: Option<(std::path::PathBuf, FileIdentity)>,
    /// When the browser's event loop last had its turn.
    #[cfg(target_family = "wasm")]
    breathed: time::Instant,
}

enum Turn {
    Event(network::Event),
    Command(Option<Command>),
    Written,
    Time,
}

impl Driver {
    async fn drive(mut self, inbox: Inbox) -> Option<Again> {
        loop {
            let turn = self.next_turn(&inbox).await;
            let now = now();
            match turn {
                Turn::Event(event) => self.event(now, event),
                Turn::Command(Some(command)) => self.command(now, command).await,
                // Whoever held the control is gone.
                Turn::Command(None) => self.stop(now),
                Turn::Written => (self.told_at, self.poll_at) = (now, now),
                Turn::Time if self.machine.next_wake() <= now => {
                    self.see_what_left(now);
                    self.feed(now, Input::Timer);
                }
                Turn::Time => {}
            }
            self.poll(now);
            self.dial(now);
            self.publish(now);
            // What is to stop does not go on under another identity either: nobody asks it twice.
            let ends = |deadline| self.restarting || now >= deadline || self.is_flushed();
            if self.stopping.is_some_and(ends) {
                break;
            }
            if self.restarting {
                return Some(self.end_to_restart(inbox).await);
            }
            #[cfg(target_family = "wasm")]
            self.breathe().await;
        }
        if let Some(network) = self.network.take() {
            network.shutdown(Duration::from_millis(SHUTDOWN_MAX_MS)).await;
        }
        self.board.update(|snapshot| {
            "stopped".clone_into(&mut snapshot.state);
            snapshot.peers.clear();
            snapshot.listen.clear();
            snapshot.relays.clear();
        });
        None
    }

    async fn end_to_restart(mut self, inbox: Inbox) -> Again {
        let mut listen = self.settings.listen.clone();
        if let Some(network) = self.network.take() {
            let real = network.listen_addresses();
            // Without any wish the system chooses again.
            if !listen.is_empty() && !real.is_empty() {
                listen = real;
            }
            network.shutdown(Duration::from_millis(SHUTDOWN_MAX_MS)).await;
        }
        self.board.update(|snapshot| {
            "starting".clone_into(&mut snapshot.state);
            snapshot.peers.clear();
            snapshot.token = self.token;
        });
        Again { inbox, listen, peers: self.dialer.addresses() }
    }

    /// Lets others on this thread have their turn: queries, timers, the sockets.
    #[cfg(target_family = "wasm")]
    async fn breathe(&mut self) {
        if self.breathed.elapsed() < Duration::from_millis(WORK_MAX_MS) {
            return;
        }
        match &mut self.network {
            Some(network) => network.breathe().await,
            None => time::sleep(Duration::ZERO).await,
        }
        self.breathed = time::Instant::now();
    }

    /// A queue of a served pass that is shorter than at the last look is progress.
    fn see_what_left(&mut self, now: Millis) {
        let Some(network) = &self.network else { return };
        let look = |stream: StreamId| (stream, network.queued_bytes(crate::StreamId(stream.0)));
        let queued: BTreeMap<StreamId, usize> = self.machine.served().map(look).collect();
        for (stream, bytes) in &queued {
            if self.queued.get(stream).is_none_or(|before| bytes < before) {
                self.machine.progressed(now, *stream);
            }
        }
        self.queued = queued;
    }

    /// Nothing is left that could be sent to somebody who is connected.
    fn is_flushed(&self) -> bool {
        let progress = self.machine.progress();
        self.network.is_none() || progress.members == 0 || progress.caught_up
    }

    async fn next_turn(&mut self, inbox: &Inbox) -> Turn {
        let now = now();
        let mut wake = self.machine.next_wake().min(self.poll_at);
        if self.network.is_some() {
            wake = wake.min(self.dialer.next_try());
        }
        if self.board.is_stale() {
            wake = wake.min(self.published_at.plus(PUBLISH_INTERVAL_MS));
        }
        if let Some(deadline) = self.stopping {
            wake = wake.min(deadline);
        }
        let deaf = (1..=DEAF_AFTER_COMMIT_MS).contains(&self.deaf_until.since(now));
        if deaf && self.watch.is_some() {
            wake = wake.min(self.deaf_until);
        }
        let written = async {
            match &self.watch {
                Some(watch) if !deaf => watch.changed().await,
                _ => futures::future::pending().await,
            }
        };
        let timer = time::sleep(Duration::from_millis(wake.since(now)));
        let event = async {
            match &mut self.network {
                Some(network) => network.next_event().await,
                None => futures::future::pending().await,
            }
        };
        futures::select_biased! {
            event = std::pin::pin!(event.fuse()) => Turn::Event(event),
            command = std::pin::pin!(inbox.next().fuse()) => Turn::Command(command),
            () = std::pin::pin!(written.fuse()) => Turn::Written,
            () = std::pin::pin!(timer.fuse()) => Turn::Time,
        }
    }

    async fn command(&mut self, now: Millis, command: Command) {
        match command {
            Command::Dial(address) => self.dialer.add(&address, now),
            Command::Committed(token) => {
                self.token = self.token.max(token);
                self.feed(now, Input::Committed);
            }
            Command::NetworkChanged => {
                self.dialer.restart(now);
                if let Some(network) = &mut self.network {
                    network.start_afresh();
                }
                self.log(now, Level::Info, "network", "connecting anew to everybody", "");
            }
            Command::Pause(_dropped_when_done) => {
                if let Some(network) = self.network.take() {
                    network.shutdown(Duration::from_millis(SHUTDOWN_MAX_MS)).await;
                }
                self.dialer.all_disconnected();
                for peer in self.machine.peers() {
                    self.feed(now, Input::Disconnected { peer: peer.peer });
                }
                // Whoever waits for "paused" must not see peers any more.
                self.publish_now(now);
                self.board.update(|snapshot| "paused".clone_into(&mut snapshot.state));
            }
            Command::Resume if self.network.is_none() => {
                match start_network(&self.settings, &self.identity) {
                    Ok(network) => {
                        self.network = Some(network);
                        self.dialer.restart(now);
                        self.board.update(|snapshot| "running".clone_into(&mut snapshot.state));
                    }
                    Err(error) => self.warn("network", &error.to_string()),
                }
            }
            Command::Resume => {}
            Command::Stop => self.stop(now),
        }
    }

    fn stop(&mut self, now: Millis) {
        if self.stopping.is_none() {
            self.stopping = Some(now.plus(FLUSH_MAX_MS));
            self.feed(now, Input::Committed);
        }
    }

    /// Gives the machine an input and carries out what it wants.
    fn feed(&mut self, now: Millis, input: Input) {
        self.machine.handle(now, input, &mut self.store);
        for output in self.machine.take_outputs() {
            let Some(network) = &mut self.network else {
                match output {
                    Output::Event(event) => self.board.log(now, event),
                    Output::Restart => self.restarting = true,
                    _ => {}
                }
                continue;
            };
            match output {
                Output::Restart => self.restarting = true,
                Output::OpenStream { peer, token } => {
                    if let Ok(peer) = PeerKey::from_bytes(&peer.0) {
                        network.open_stream(&peer, token);
                    }
                }
                Output::Send { stream, frame } => {
                    let id = crate::StreamId(stream.0);
                    network.send(id, frame);
                    if network.queued_bytes(id) > crate::OUTBOUND_QUEUE_HIGH_BYTES {
                        self.machine.congested(stream);
                    }
                }
                Output::Close { stream } => network.close_stream(crate::StreamId(stream.0)),
                Output::Abandon { stream } => network.abandon_stream(crate::StreamId(stream.0)),
                Output::Proven { peer } => {
                    if let Ok(peer) = PeerKey::from_bytes(&peer.0) {
                        network.admit(&peer);
                        self.dialer.proven(&peer, now);
                    }
                }
                Output::Disconnect { peer } => {
                    if let Ok(peer) = PeerKey::from_bytes(&peer.0) {
                        network.disconnect(&peer);
                    }
                }
                Output::Event(event) => self.board.log(now, event),
            }
        }
        self.board.touch();
    }

    /// Asks the file whether anybody committed.
    fn poll(&mut self, now: Millis) {
        // Further ahead than it can be: the clock was set back.
        if self.poll_at > now && self.poll_at.since(now) <= POLL_WATCHED_MS {
            return;
        }
        // Another file was moved to this one's place.
        if let Some((path, known)) = &self.file
            && file_identity(path).is_ok_and(|file| file != *known)
        {
            self.restarting = true;
            return;
        }
        // What keeps us from looking is the machine's to tell.
        let committed = self.store.committed_elsewhere().unwrap_or(true);
        if committed {
            self.busy_until = now.plus(BUSY_FOR_MS);
            self.feed(now, Input::Committed);
        }
        let told_for = now.since(self.told_at);
        let interval = match &self.watch {
            None if self.busy_until > now => POLL_BUSY_MS,
            None => POLL_IDLE_MS,
            Some(_) if committed => DEAF_AFTER_COMMIT_MS,
            Some(_) if told_for < TOLD_FOR_MS => told_for.clamp(1, POLL_TOLD_MS),
            Some(_) => POLL_WATCHED_MS,
        };
        if committed {
            self.deaf_until = now.plus(DEAF_AFTER_COMMIT_MS);
        } else if told_for == 0 {
            self.deaf_until = now.plus(DEAF_AFTER_WRITE_MS);
        }
        self.poll_at = now.plus(interval);
    }

    fn dial(&mut self, now: Millis) {
        let Some(network) = &mut self.network else { return };
        let (dials, parts) = self.dialer.due_members(now);
        parts.iter().for_each(|peer| network.disconnect(peer));
        for (peer, addresses) in dials {
            // Nonsense in a stranger's announcement is not worth an event.
            if network.dial_peer(&peer, &addresses).is_err() {
                self.dialer.member_failed(&peer, now);
            }
        }
        for address in self.dialer.due(now) {
            if let Err(error) = network.dial(&address) {
                let reason = error.to_string();
                if self.dialer.failed(&address, &reason, now) {
                    self.board.log(
                        now,
                        Event {
                            level: Level::Warning,
                            code: "dial_failed",
                            message: reason,
                            hint: "check the address".into(),
                            peer: None,
                        },
                    );
                }
            }
        }
    }

    fn publish(&mut self, now: Millis) {
        let due = now.since(self.published_at) >= PUBLISH_INTERVAL_MS;
        if self.board.is_stale() && (due || self.board.has_waiters()) {
            self.publish_now(now);
        }
    }

    fn publish_now(&mut self, now: Millis) {
        self.published_at = now;
        let mut progress = self.machine.progress();
        let relays_settled = self.network.as_ref().is_none_or(Network::relays_are_settled);
        progress.caught_up &= !self.dialer.is_trying() && relays_settled;
        let relays = self.network.as_ref().map(Network::relays).unwrap_or_default();
        let listen = self.network.as_ref().map(Network::listen_addresses).unwrap_or_default();
        let peers = self.machine.peers();
        self.book.write(now, &peers, &mut self.store);
        let token = self.token;
        self.board.publish(|snapshot| {
            snapshot.progress = progress;
            snapshot.peers = peers;
            snapshot.listen = listen;
            snapshot.relays = relays;
            snapshot.token = token;
        });
    }

    fn warn(&mut self, code: &'static str, message: &str) {
        self.log(now(), Level::Warning, code, message, "");
    }

    fn log(&mut self, now: Millis, level: Level, code: &'static str, message: &str, hint: &str) {
        let (message, hint) = (message.to_owned(), hint.to_owned());
        self.board.log(now, Event { level, code, message, hint, peer: None });
    }
}

fn core_id(peer: &PeerKey) -> PeerId {
    PeerId(peer.as_bytes().to_vec())
}
