//! Bidirectional streams of frames between peers: our own libp2p behaviour.
//!
//! A frame on a stream is a big-endian `u32` length and that many bytes; what the bytes mean is not
//! known here. Of several connections to one peer, a new stream takes the newest direct one.
//!
//! **A cut looks like success.** yamux gives end of file for a finished stream, for a reset one and
//! for a lost connection alike. So an end at a frame boundary is reported as `clean`, and `clean`
//! promises only that no frame was cut in two and that nothing of ours was left unsent. Whether a
//! transfer is complete only an authenticated last frame can say; this layer never can.

mod connections;
mod frame;
mod handler;
mod pipe;
mod queue;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, atomic::AtomicU64},
    task::{Context, Poll, Waker},
    time::Duration,
};

use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, NotifyHandler, StreamProtocol,
        THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
    },
};

use crate::time::Instant;
use connections::{Connections, Path};
use handler::{Command, Handler, Report};
use queue::Queue;

/// The protocol of the streams; its version is the wire version of the framing.
pub const PROTOCOL: StreamProtocol = StreamProtocol::new("/wavesync/1");
/// Connections of one peer that has proven nothing; further ones that it makes are refused. So those who are
/// let in at a time never take all places.
pub const UNPROVEN_CONNECTIONS_MAX: usize = 3;
/// The longest payload of one frame: a 256 KiB body with its kind and authentication code.
pub const FRAME_PAYLOAD_MAX_BYTES: usize = 256 * 1024 + 64;
/// A stream with this much received and not yet consumed is not read any further.
pub const INBOUND_UNREAD_MAX_BYTES: usize = 1024 * 1024;
/// A stream with more than this queued to send is aborted: its owner ignores `queued_bytes`.
pub const OUTBOUND_QUEUE_MAX_BYTES: usize = 80 * 1024 * 1024;
/// A stream whose queue was longer than this tells when it is short again.
pub const OUTBOUND_QUEUE_HIGH_BYTES: usize = 1024 * 1024;
/// What counts as short again.
pub const OUTBOUND_QUEUE_LOW_BYTES: usize = 256 * 1024;
/// Streams that a peer may have open to us on one connection; further ones wait their turn.
pub const INBOUND_STREAMS_MAX: usize = 64;
/// Streams of one connection that may wait for their turn; further ones are reset.
pub const INBOUND_STREAMS_WAITING_MAX: usize = 256;
/// Streams that we open at a time on one connection; further ones wait their turn.
pub const OUTBOUND_STREAMS_MAX: usize = 64;
/// Streams that may wait to be opened on one connection; further ones fail at once.
pub const OUTBOUND_STREAMS_WAITING_MAX: usize = 1024;

/// A relayed connection with nothing but its long-lived stream is closed this long after a direct
/// one came.
pub const RELAYED_LINGER_MAX_SECONDS: u64 = 2;
/// What else is under way on it is given this long; it resumes on the direct one.
pub const RELAYED_TRANSFER_MAX_SECONDS: u64 = 60;

/// A stream, unique in the lifetime of its network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub u64);

/// What the behaviour tells the network, in the order in which it happened: everything about a peer
/// lies between its `Connected` and its `Disconnected`.
#[derive(Debug)]
pub(crate) enum StreamsEvent {
    Connected { peer: PeerId, path: Path, dialer: bool },
    PathChanged { peer: PeerId, path: Path },
    Disconnected { peer: PeerId },
    Opened { peer: PeerId, stream: StreamId, token: Option<u64> },
    OpenFailed { peer: PeerId, token: u64, reason: String },
    Frame { stream: StreamId, bytes: Vec<u8> },
    Drained { stream: StreamId },
    Closed { stream: StreamId, clean: bool, reason: String },
}

struct OpenStream {
    connection: ConnectionId,
    queue: Arc<Queue>,
}

struct PendingOpen {
    peer: PeerId,
    connection: ConnectionId,
    token: u64,
}

/// The behaviour. All methods answer through events.
#[derive(Default)]
pub(crate) struct Streams {
    stream_ids: Arc<AtomicU64>,
    connections: Connections,
    streams: HashMap<StreamId, OpenStream>,
    /// Connected peers that were admitted.
    admitted: HashSet<PeerId>,
    opens: HashMap<u64, PendingOpen>,
    next_open: u64,
    actions: VecDeque<ToSwarm<StreamsEvent, Command>>,
    waker: Option<Waker>,
}

impl Streams {
    /// Opens a stream on the best connection to `peer`.
    pub(crate) fn open(&mut self, peer: PeerId, token: u64) {
        let Some(connection) = self.connections.best(&peer).map(|best| best.id) else {
            let reason = "not connected to this peer; dial it first".to_owned();
            return self.emit(StreamsEvent::OpenFailed { peer, token, reason });
        };
        let open = self.next_open;
        self.next_open += 1;
        self.opens.insert(open, PendingOpen { peer, connection, token });
        self.act(ToSwarm::NotifyHandler {
            peer_id: peer,
            handler: NotifyHandler::One(connection),
            event: Command::Open { open },
        });
    }

    pub(crate) fn send(&mut self, stream: StreamId, frame: Vec<u8>) {
        if let Some(open) = self.streams.get(&stream) {
            open.queue.push(frame);
        }
    }

    pub(crate) fn queued_bytes(&self, stream: StreamId) -> usize {
        self.streams.get(&stream).map_or(0, |open| open.queue.queued_bytes())
    }

    pub(crate) fn close(&mut self, stream: StreamId) {
        if let Some(open) = self.streams.get(&stream) {
            open.queue.close();
        }
    }

    pub(crate) fn abandon(&mut self, stream: StreamId) {
        if let Some(open) = self.streams.get(&stream) {
            open.queue.abandon();
        }
    }

    pub(crate) fn abort(&mut self, stream: StreamId) {
        if let Some(open) = self.streams.get(&stream) {
            open.queue.abort("aborted on this side".to_owned());
        }
    }

    pub(crate) fn close_all(&mut self) {
        self.streams.values().for_each(|open| open.queue.close());
    }

    pub(crate) fn has_streams(&self) -> bool {
        !self.streams.is_empty()
    }

    /// It may have more than [`UNPROVEN_CONNECTIONS_MAX`] connections, as long as one is left.
    pub(crate) fn admit(&mut self, peer: PeerId) {
        self.admitted.insert(peer);
    }

    pub(crate) fn is_connected(&self, peer: &PeerId) -> bool {
        self.connections.best(peer).is_some()
    }

    /// Whether some connection leads to exactly this address.
    pub(crate) fn is_connected_to(&self, address: &Multiaddr) -> bool {
        self.connections.has_address(address)
    }

    /// When to ask `retired` next.
    pub(crate) fn next_retirement(&self) -> Option<Instant> {
        let linger = Duration::from_secs(RELAYED_LINGER_MAX_SECONDS);
        self.connections.superseded().iter().map(|(_, since)| *since + linger).min()
    }

    /// Relayed connections that are not needed any longer, because a direct one leads to the peer.
    pub(crate) fn retired(&self, now: Instant) -> Vec<ConnectionId> {
        let mut superseded = self.connections.superseded();
        superseded.retain(|(id, since)| {
            let streams = self.streams.values().filter(|stream| stream.connection == *id).count();
            let time =
                if streams > 1 { RELAYED_TRANSFER_MAX_SECONDS } else { RELAYED_LINGER_MAX_SECONDS };
            now >= *since + Duration::from_secs(time)
        });
        superseded.into_iter().map(|(id, _)| id).collect()
    }

    fn emit(&mut self, event: StreamsEvent) {
        self.act(ToSwarm::GenerateEvent(event));
    }

    fn act(&mut self, action: ToSwarm<StreamsEvent, Command>) {
        self.actions.push_back(action);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn new_handler(&self) -> Handler {
        Handler::new(self.stream_ids.clone())
    }

    fn connection_closed(&mut self, peer: PeerId, connection: ConnectionId) {
        let ended: Vec<StreamId> =
            ids_where(&self.streams, |stream| stream.connection == connection);
        for stream in ended {
            self.streams.remove(&stream);
            let reason = "the connection was lost".to_owned();
            self.emit(StreamsEvent::Closed { stream, clean: false, reason });
        }
        for open in ids_where(&self.opens, |open| open.connection == connection) {
            self.open_failed(open, "the connection was lost; open it again".to_owned());
        }
        match self.connections.remove(&peer, connection) {
            connections::Change::Last => {
                self.admitted.remove(&peer);
                self.emit(StreamsEvent::Disconnected { peer });
            }
            connections::Change::Path(path) => self.emit(StreamsEvent::PathChanged { peer, path }),
            connections::Change::None => {}
        }
    }

    fn open_failed(&mut self, open: u64, reason: String) {
        if let Some(PendingOpen { peer, token, .. }) = self.opens.remove(&open) {
            self.emit(StreamsEvent::OpenFailed { peer, token, reason });
        }
    }
}

fn ids_where<K: Copy + Ord, V>(map: &HashMap<K, V>, wanted: impl Fn(&V) -> bool) -> Vec<K> {
    let mut ids: Vec<K> =
        map.iter().filter(|(_, value)| wanted(value)).map(|(id, _)| *id).collect();
    ids.sort_unstable();
    ids
}

impl NetworkBehaviour for Streams {
    type ConnectionHandler = Handler;
    type ToSwarm = StreamsEvent;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        let most = self.connections.count(&peer) >= UNPROVEN_CONNECTIONS_MAX;
        if most && !self.admitted.contains(&peer) {
            return Err(ConnectionDenied::new(std::io::Error::other(
                "a peer that has proven nothing has enough connections",
            )));
        }
        Ok(self.new_handler())
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.new_handler())
    }

    fn on_swarm_event(&mut self, event: FromSwarm) {
        match event {
            FromSwarm::ConnectionEstablished(established) => {
                let peer = established.peer_id;
                let endpoint = established.endpoint;
                let path = Path::of(endpoint);
                match self.connections.add(peer, established.connection_id, path.clone()) {
                    connections::Change::Last => {
                        let dialer = endpoint.is_dialer();
                        self.emit(StreamsEvent::Connected { peer, path, dialer });
                    }
                    connections::Change::Path(path) => {
                        self.emit(StreamsEvent::PathChanged { peer, path });
                    }
                    connections::Change::None => {}
                }
            }
            FromSwarm::ConnectionClosed(closed) => {
                self.connection_closed(closed.peer_id, closed.connection_id);
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        report: THandlerOutEvent<Self>,
    ) {
        match report {
            Report::Opened { stream, queue, open } => {
                // An answer nobody waits for any more can not happen: opens end with their connection.
                let token = open.and_then(|open| self.opens.remove(&open)).map(|open| open.token);
                self.streams.insert(stream, OpenStream { connection, queue });
                self.emit(StreamsEvent::Opened { peer, stream, token });
            }
            Report::OpenFailed { open, reason } => self.open_failed(open, reason),
            Report::Frame { stream, bytes } => self.emit(StreamsEvent::Frame { stream, bytes }),
            Report::Drained { stream } => self.emit(StreamsEvent::Drained { stream }),
            Report::Closed { stream, clean, reason } => {
                if self.streams.remove(&stream).is_some() {
                    self.emit(StreamsEvent::Closed { stream, clean, reason });
                }
            }
        }
    }

    fn poll(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        match self.actions.pop_front() {
            Some(action) => {
                if let ToSwarm::GenerateEvent(StreamsEvent::Frame { stream, bytes }) = &action
                    && let Some(open) = self.streams.get(stream)
                {
                    open.queue.consumed(bytes.len());
                }
                Poll::Ready(action)
            }
            None => {
                self.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}
