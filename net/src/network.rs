//! The network of one engine: one libp2p swarm, polled by whoever awaits `next_event`. It knows
//! peers, streams and bytes, and nothing of what the bytes mean.
//!
//! Nothing moves between two calls of `next_event`: connections are tasks of an executor that the
//! network owns and that runs inside it. An owner that is busy slows its peers down instead of
//! filling memory.

mod address;
mod event;
mod meeting;
mod peer;
mod relays;
mod swarm;

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use async_executor::Executor;
use futures::{FutureExt, StreamExt, future};
use libp2p::{
    Multiaddr, PeerId, Swarm,
    core::transport::{ListenerId, TransportError},
    identity::Keypair,
    ping,
    swarm::{
        ConnectionId, DialError, SwarmEvent,
        dial_opts::{DialOpts, PeerCondition},
    },
};

use wavesync_transport::Admission;

pub use event::Event;
pub use peer::PeerKey;
pub use relays::{RelayConfig, RelayReport};

use crate::{
    error::NetError,
    lan::{self, Lan},
    streams::{StreamId, StreamsEvent},
    time::{self, Instant},
};
use address::{dial_options, dial_options_unnamed, dial_reason, without_peer};
use meeting::is_circuit;
use relays::Relays;
use swarm::{Behaviour, BehaviourEvent};

/// Dials under way at a time.
const PENDING_DIALS_MAX: usize = 256;
/// Addresses tried for one peer.
const ADDRESSES_PER_DIAL_MAX: usize = 32;
/// A connection whose pings fail this often in a row is closed.
const PING_FAILURES_MAX: u32 = 2;
/// The part of `shutdown`'s deadline that is kept for closing the connections.
const SHUTDOWN_CLOSE_MAX_MILLISECONDS: u64 = 500;
/// Listened at when the configuration names no address: every interface, a free port.
#[cfg(not(target_family = "wasm"))]
const LISTEN_DEFAULT: [&str; 2] = ["/ip4/0.0.0.0/tcp/0", "/ip6/::/tcp/0"];
/// Nobody can connect to a browser, but through a relay.
#[cfg(target_family = "wasm")]
const LISTEN_DEFAULT: [&str; 0] = [];

/// Checks that a text is a multiaddress, without using it.
///
/// # Errors
/// [`NetError::Address`], which names the text and what is wrong with it.
pub fn check_address(text: &str) -> Result<(), NetError> {
    address::parse_target(text).map(|_| ())
}

/// Checks that a text is the address of a relay; gives the relay's peer id.
///
/// # Errors
/// [`NetError::Address`] or [`NetError::Relay`], which name the text and what is wrong with it.
pub fn check_relay(text: &str) -> Result<PeerKey, NetError> {
    relays::peer_of_relay(text).map(|(_, peer)| peer.into())
}

/// What a network needs to start.
#[derive(Clone)]
pub struct Config {
    /// The ed25519 secret seed; it decides our peer id.
    pub identity: [u8; 32],
    /// Multiaddresses to listen at; empty for every interface on a free port.
    pub listen: Vec<String>,
    /// The key by which members know each other in the local network; `None` neither announces
    /// nor looks.
    pub lan_key: Option<[u8; 32]>,
    /// Relays to be reachable through, and to meet members at.
    pub relays: Vec<RelayConfig>,
    /// Try to get from a relayed connection to a direct one, by hole punching.
    pub direct: bool,
}

/// A running network.
pub struct Network {
    // Dropped in this order: the swarm's tasks live in the executor.
    swarm: Swarm<Behaviour>,
    executor: Arc<Executor<'static>>,
    local: PeerKey,
    lan: Option<Lan>,
    lan_error: Option<String>,
    ready: VecDeque<Event>,
    listeners: HashMap<ListenerId, String>,
    dials: HashMap<ConnectionId, Dial>,
    ping_failures: HashMap<ConnectionId, u32>,
    relays: Relays,
    /// Who may send more than a stranger.
    admission: Admission,
}

/// A dial under way.
struct Dial {
    addresses: Vec<Multiaddr>,
    peer: Option<PeerId>,
}

impl Network {
    /// Starts listening. An address that can not be understood is an error; one that the system
    /// refuses (a taken port, no IPv6) is an event, because the others may do.
    pub fn new(config: Config) -> Result<Network, NetError> {
        let keypair = Keypair::ed25519_from_bytes(config.identity)
            .map_err(|error| NetError::Identity(error.to_string()))?;
        let local = keypair.public().to_peer_id();
        let executor = Arc::new(Executor::new());
        let (lan, lan_error) = start_lan(config.lan_key, local);
        let relays = Relays::new(&config.relays, Instant::now())?;
        let admission = Admission::default();
        // What members send through a relay is the relay's to send.
        relays.peers().for_each(|relay| admission.admit(relay));
        let mut network = Network {
            swarm: swarm::build(&keypair, executor.clone(), config.direct, admission.clone())?,
            executor,
            local: local.into(),
            lan,
            lan_error,
            ready: VecDeque::new(),
            listeners: HashMap::new(),
            dials: HashMap::new(),
            ping_failures: HashMap::new(),
            relays,
            admission,
        };
        if config.listen.is_empty() {
            LISTEN_DEFAULT.iter().try_for_each(|address| network.listen(address))?;
        } else {
            config.listen.iter().try_for_each(|address| network.listen(address))?;
        }
        Ok(network)
    }

    fn listen(&mut self, text: &str) -> Result<(), NetError> {
        match self.swarm.listen_on(address::parse(text)?) {
            Ok(listener) => {
                self.listeners.insert(listener, text.to_owned());
                Ok(())
            }
            Err(TransportError::MultiaddrNotSupported(_)) => Err(NetError::Address {
                address: text.to_owned(),
                reason: "nothing can listen at an address of this kind".to_owned(),
            }),
            Err(TransportError::Other(error)) => {
                let reason = address::with_causes(&error);
                self.ready.push_back(Event::ListenFailed { address: text.to_owned(), reason });
                Ok(())
            }
        }
    }

    /// Who we are to others.
    pub fn local_peer(&self) -> &PeerKey {
        &self.local
    }

    /// Where we listen, with real ports.
    pub fn listen_addresses(&self) -> Vec<String> {
        let own = self.swarm.listeners().filter(|address| !is_circuit(address));
        own.map(Multiaddr::to_string).collect()
    }

    /// Why nobody is found in the local network, if that is so. The rest works without it.
    pub fn lan_error(&self) -> Option<String> {
        self.lan_error.clone()
    }

    /// Waits for the next event, for ever if need be. Dropping the future loses nothing.
    pub async fn next_event(&mut self) -> Event {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return event;
            }
            self.tend_relays();
            self.retire_relayed();
            if !self.ready.is_empty() {
                continue;
            }
            let due = self.next_due();
            let executor = self.executor.clone();
            match executor.run(next_raw(&mut self.swarm, &mut self.lan, due)).await {
                Raw::Time => {}
                Raw::Swarm(event) => self.on_swarm_event(*event),
                Raw::Lan(Some(found)) => self.ready.push_back(Event::Discovered {
                    peer: found.peer.into(),
                    addresses: found.addresses.iter().map(Multiaddr::to_string).collect(),
                }),
                Raw::Lan(None) => {
                    self.lan = None;
                    self.degrade_lan("multicast DNS stopped".to_owned());
                }
            }
        }
    }

    /// Gives the browser's event loop a turn. What arrives meanwhile is taken from the sockets,
    /// because they hold little; its events wait for `next_event`.
    #[cfg(target_family = "wasm")]
    pub async fn breathe(&mut self) {
        let executor = self.executor.clone();
        let mut turn = std::pin::pin!(time::sleep(Duration::ZERO).fuse());
        loop {
            let next = async {
                futures::select! {
                    event = self.swarm.select_next_some() => Some(event),
                    () = turn => None,
                }
            };
            match executor.run(next).await {
                Some(event) => self.on_swarm_event(event),
                None => return,
            }
        }
    }

    /// Dials a multiaddress, with or without `/p2p/<id>` at its end. Dialing ourselves or a peer
    /// that is connected already does nothing. A failure arrives as `DialFailed`.
    pub fn dial(&mut self, address: &str) -> Result<(), NetError> {
        let target = address::parse_target(address)?;
        match target.peer {
            Some(peer) => self.start_dial(Some(peer), vec![target.address]),
            None if self.swarm.behaviour().streams.is_connected_to(&target.address) => {
                self.reached(&[target.address]);
                Ok(())
            }
            None => self.start_dial(None, vec![target.address]),
        }
    }

    /// Dials a peer at all these addresses; the first that answers counts.
    pub fn dial_peer(&mut self, peer: &PeerKey, addresses: &[String]) -> Result<(), NetError> {
        let peer = peer.to_peer_id();
        let addresses: Vec<Multiaddr> = addresses
            .iter()
            .take(ADDRESSES_PER_DIAL_MAX)
            .map(|address| address::for_peer(address, peer))
            .collect::<Result<_, _>>()?;
        if addresses.is_empty() {
            return Err(NetError::Address {
                address: String::new(),
                reason: format!("no address of {peer} was given"),
            });
        }
        self.start_dial(Some(peer), addresses)
    }

    fn start_dial(
        &mut self,
        peer: Option<PeerId>,
        addresses: Vec<Multiaddr>,
    ) -> Result<(), NetError> {
        let known = peer.is_some_and(|peer| {
            peer == *self.swarm.local_peer_id()
                || self.swarm.behaviour().streams.is_connected(&peer)
        });
        if known {
            self.reached(&addresses);
            return Ok(());
        }
        if self.dials.values().any(|dial| dial.addresses == addresses) {
            return Ok(());
        }
        if self.dials.len() >= PENDING_DIALS_MAX {
            return Err(NetError::TooManyDials { pending: self.dials.len() });
        }
        let options: DialOpts = match (peer, addresses.first()) {
            (Some(peer), _) => dial_options(peer, addresses.clone()),
            (None, Some(address)) => dial_options_unnamed(address.clone()),
            (None, None) => return Ok(()),
        };
        let id = options.connection_id();
        let dial = Dial { addresses, peer };
        match self.swarm.dial(options) {
            Ok(()) => {
                self.dials.insert(id, dial);
            }
            // The swarm leaves out what we listen at ourselves.
            Err(
                DialError::DialPeerConditionFalse(PeerCondition::Disconnected)
                | DialError::NoAddresses,
            ) => self.reached(&dial.addresses),
            Err(error) => self.dial_failed(dial, &error),
        }
        Ok(())
    }

    fn dial_failed(&mut self, dial: Dial, error: &DialError) {
        if matches!(error, DialError::LocalPeerId { .. }) {
            self.reached(&dial.addresses);
            return;
        }
        let addresses: Vec<String> =
            dial.addresses.iter().map(|address| without_peer(address).to_string()).collect();
        self.ready.push_back(Event::DialFailed {
            address: addresses.join(", "),
            peer: dial.peer.map(PeerKey::from),
            reason: dial_reason(error),
        });
    }

    fn reached(&mut self, addresses: &[Multiaddr]) {
        let addresses = addresses.iter().map(|address| without_peer(address).to_string());
        self.ready.extend(addresses.map(|address| Event::Reached { address }));
    }

    /// A peer may send as much as it likes from now on, as long as it is connected. Of others, no more
    /// than [`crate::UNPROVEN_BYTES_MAX`] is taken from a connection; the rest waits in the sockets.
    pub fn admit(&mut self, peer: &PeerKey) {
        let peer = peer.to_peer_id();
        if self.swarm.behaviour().streams.is_connected(&peer) {
            self.admission.admit(peer);
            self.swarm.behaviour_mut().streams.admit(peer);
        }
    }

    /// Closes every connection to a peer. Close its streams first if what they hold matters.
    pub fn disconnect(&mut self, peer: &PeerKey) {
        // An error says only that there was no connection.
        let _was_connected = self.swarm.disconnect_peer_id(peer.to_peer_id());
    }

    /// Opens a stream on the best connection to a peer: the newest direct one, else the newest
    /// relayed one. The answer is an event with this token. A peer takes a limited number of
    /// streams at a time; further ones wait until earlier ones end.
    pub fn open_stream(&mut self, peer: &PeerKey, token: u64) {
        self.swarm.behaviour_mut().streams.open(peer.to_peer_id(), token);
    }

    /// Queues a frame. Stop when `queued_bytes` passes `OUTBOUND_QUEUE_HIGH_BYTES`; `Drained` tells
    /// when to go on. A stream whose queue passes `OUTBOUND_QUEUE_MAX_BYTES` is aborted.
    pub fn send(&mut self, stream: StreamId, frame: Vec<u8>) {
        self.swarm.behaviour_mut().streams.send(stream, frame);
    }

    /// Bytes queued on a stream that its connection has not taken yet.
    pub fn queued_bytes(&self, stream: StreamId) -> usize {
        self.swarm.behaviour().streams.queued_bytes(stream)
    }

    /// Sends what is queued, then ends the stream. Frames of the peer arrive until `Closed`.
    pub fn close_stream(&mut self, stream: StreamId) {
        self.swarm.behaviour_mut().streams.close(stream);
    }

    /// Sends what is queued, then ends the stream without reading on: frames that arrived already may
    /// still be told of, a few at most.
    pub fn abandon_stream(&mut self, stream: StreamId) {
        self.swarm.behaviour_mut().streams.abandon(stream);
    }

    /// Ends a stream at once; what is queued is lost.
    pub fn abort_stream(&mut self, stream: StreamId) {
        self.swarm.behaviour_mut().streams.abort(stream);
    }

    /// Sends what is queued on all streams, closes them and all connections, and takes the
    /// announcement in the local network back. Returns when that is done, at the deadline at last.
    pub async fn shutdown(mut self, deadline: Duration) {
        let end = Instant::now() + deadline;
        let reserve = Duration::from_millis(SHUTDOWN_CLOSE_MAX_MILLISECONDS).min(deadline / 4);
        let lan = self.lan.take();
        let farewell = async move {
            if let Some(lan) = lan {
                lan::stop_within(lan, deadline).await;
            }
        };
        let executor = self.executor.clone();
        let close = async move {
            self.swarm.behaviour_mut().streams.close_all();
            self.run_until(end - reserve, |network| {
                !network.swarm.behaviour().streams.has_streams()
            })
            .await;
            let peers: Vec<PeerId> = self.swarm.connected_peers().copied().collect();
            for peer in peers {
                self.disconnect(&peer.into());
            }
            self.run_until(end, |network| network.swarm.connected_peers().next().is_none()).await;
        };
        executor.run(future::join(close, farewell)).await;
    }

    /// Lets the swarm work until `done` or `end`; inside the executor only.
    async fn run_until(&mut self, end: Instant, done: impl Fn(&Network) -> bool) {
        let mut timer = std::pin::pin!(time::sleep_until(end).fuse());
        while !done(self) {
            futures::select! {
                _event = self.swarm.next().fuse() => {}
                () = timer => return,
            }
        }
    }

    fn on_swarm_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(BehaviourEvent::Streams(event)) => {
                if let StreamsEvent::Disconnected { peer } = &event
                    && !self.relays.contains(peer)
                {
                    self.admission.forget(peer);
                }
                self.ready.extend(translate(event, &self.relays));
            }
            SwarmEvent::Behaviour(BehaviourEvent::Ping(event)) => self.on_ping(event),
            SwarmEvent::Behaviour(BehaviourEvent::Circuits(event)) => self.on_circuit(event),
            SwarmEvent::Behaviour(BehaviourEvent::Meet(event)) => self.on_meeting(event),
            #[cfg(not(target_family = "wasm"))]
            SwarmEvent::Behaviour(BehaviourEvent::Punch(event)) => {
                tracing::debug!(?event, "hole punching");
            }
            SwarmEvent::NewListenAddr { listener_id, address } if is_circuit(&address) => {
                self.reserved(listener_id);
            }
            SwarmEvent::NewListenAddr { address, .. } => {
                self.announce();
                self.ready.push_back(Event::Listening { address: address.to_string() });
            }
            SwarmEvent::ExpiredListenAddr { .. } => self.announce(),
            SwarmEvent::ListenerError { listener_id, error } => {
                let address = self.listeners.get(&listener_id);
                tracing::warn!(?address, %error, "a listener has trouble");
            }
            SwarmEvent::ListenerClosed { listener_id, reason, .. } => {
                let Some(address) = self.listeners.remove(&listener_id) else {
                    let reason = reason.err().map(|error| address::with_causes(&error));
                    return self.reservation_lost(listener_id, reason);
                };
                self.announce();
                let reason = match reason {
                    Ok(()) => "the listener ended".to_owned(),
                    Err(error) => address::with_causes(&error),
                };
                self.ready.push_back(Event::ListenFailed { address, reason });
            }
            SwarmEvent::ConnectionEstablished { connection_id, endpoint, .. } => {
                let dialed = self.dials.remove(&connection_id);
                let reached = dialed.map(|_| endpoint.get_remote_address().clone());
                reached.into_iter().for_each(|address| self.reached(&[address]));
            }
            SwarmEvent::ConnectionClosed { connection_id, .. } => {
                self.ping_failures.remove(&connection_id);
            }
            SwarmEvent::OutgoingConnectionError { connection_id, peer_id, error, .. } => {
                if let Some(peer) = peer_id.filter(|peer| self.relays.contains(peer)) {
                    self.relays.unreachable(&peer, &dial_reason(&error));
                }
                if let Some(dial) = self.dials.remove(&connection_id) {
                    self.dial_failed(dial, &error);
                }
            }
            SwarmEvent::IncomingConnectionError { send_back_addr, error, .. } => {
                tracing::debug!(%send_back_addr, %error, "an inbound connection failed");
            }
            _ => {}
        }
    }

    fn on_ping(&mut self, event: ping::Event) {
        match event.result {
            Ok(rtt) => {
                self.ping_failures.remove(&event.connection);
                let millis = rtt.as_secs_f64() * 1000.0;
                if !self.relays.contains(&event.peer) {
                    self.ready.push_back(Event::Rtt { peer: event.peer.into(), millis });
                }
            }
            Err(ping::Failure::Unsupported) => {}
            Err(error) => {
                let failures = self.ping_failures.entry(event.connection).or_default();
                *failures += 1;
                tracing::debug!(peer = %event.peer, %error, failures = *failures, "no pong");
                // A peer that lost its power or its cable never says goodbye.
                if *failures >= PING_FAILURES_MAX {
                    self.swarm.close_connection(event.connection);
                }
            }
        }
    }

    fn announce(&mut self) {
        let Some(lan) = self.lan.as_mut() else { return };
        let listening: Vec<Multiaddr> =
            self.swarm.listeners().filter(|a| !is_circuit(a)).cloned().collect();
        if let Err(error) = lan.announce(&listening) {
            self.degrade_lan(error.to_string());
        }
    }

    fn degrade_lan(&mut self, error: String) {
        tracing::warn!(%error, "members in the local network are not found by themselves");
        self.lan_error = Some(error);
    }
}

fn start_lan(key: Option<[u8; 32]>, local: PeerId) -> (Option<Lan>, Option<String>) {
    match key.map(|key| Lan::start(key, local)) {
        None => (None, None),
        Some(Ok(lan)) => (Some(lan), None),
        Some(Err(error)) => {
            tracing::warn!(%error, "members in the local network are not found by themselves");
            (None, Some(error.to_string()))
        }
    }
}

enum Raw {
    Swarm(Box<SwarmEvent<BehaviourEvent>>),
    Lan(Option<lan::Found>),
    Time,
}

async fn next_raw(
    swarm: &mut Swarm<Behaviour>,
    lan: &mut Option<Lan>,
    due: Option<Instant>,
) -> Raw {
    let found = async {
        match lan {
            Some(lan) => lan.next().await,
            None => future::pending().await,
        }
    };
    let time = async {
        match due {
            Some(due) => time::sleep_until(due).await,
            None => future::pending().await,
        }
    };
    futures::select! {
        event = swarm.select_next_some() => Raw::Swarm(Box::new(event)),
        found = std::pin::pin!(found.fuse()) => Raw::Lan(found),
        () = std::pin::pin!(time.fuse()) => Raw::Time,
    }
}

/// What the streams tell, to the owner. Relays are no members: nothing is told of them.
fn translate(event: StreamsEvent, relays: &Relays) -> Option<Event> {
    match &event {
        StreamsEvent::Connected { peer, .. }
        | StreamsEvent::PathChanged { peer, .. }
        | StreamsEvent::Disconnected { peer }
        | StreamsEvent::Opened { peer, .. }
        | StreamsEvent::OpenFailed { peer, .. }
            if relays.contains(peer) =>
        {
            return None;
        }
        _ => {}
    }
    Some(match event {
        StreamsEvent::Connected { peer, path, dialer } => Event::Connected {
            peer: peer.into(),
            address: path.address.to_string(),
            relayed: path.relayed,
            dialer,
        },
        StreamsEvent::PathChanged { peer, path } => Event::PathChanged {
            peer: peer.into(),
            address: path.address.to_string(),
            relayed: path.relayed,
        },
        StreamsEvent::Disconnected { peer } => Event::Disconnected { peer: peer.into() },
        StreamsEvent::Opened { peer, stream, token } => {
            Event::StreamOpened { peer: peer.into(), stream, token }
        }
        StreamsEvent::OpenFailed { peer, token, reason } => {
            Event::OpenFailed { peer: peer.into(), token, reason }
        }
        StreamsEvent::Frame { stream, bytes } => Event::Frame { stream, bytes },
        StreamsEvent::Drained { stream } => Event::Drained { stream },
        StreamsEvent::Closed { stream, clean, reason } => Event::Closed { stream, clean, reason },
    })
}
