//! The swarm of the relay and its loop.

use std::{
    collections::HashMap,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use async_signal::{Signal, Signals};
use futures::{FutureExt, Stream, StreamExt, select, stream::BoxStream};
use libp2p::{
    Multiaddr, PeerId, Swarm,
    core::transport::ListenerId,
    identify,
    identity::Keypair,
    multiaddr::Protocol,
    ping, relay, request_response,
    swarm::{self, ConnectionId, NetworkBehaviour, SwarmEvent},
};
use smol::Timer;
use wavesync_transport::{
    Certificate, Crowd, CrowdLimits, MeetBehaviour, MeetEvent, meeting, stack,
};

use crate::{
    config::{Config, Limits},
    error::RelayError,
    http, identity, limits,
    meeting::{Meeting, Room},
    metrics::{Metrics, of},
    tap::{self, Direction, Observer},
};

const IDENTIFY_PROTOCOL: &str = "/wavesync-relay/1";

#[derive(NetworkBehaviour)]
struct Behaviour {
    crowd: Crowd,
    relay: relay::Behaviour,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
    meet: MeetBehaviour,
}

/// What is around a relay: a process, or a test.
pub struct Hooks {
    /// Is given each full address.
    pub print: fn(&str) -> Result<(), RelayError>,
    /// Ends the relay with its first item; a second one ends it at once.
    pub end: BoxStream<'static, ()>,
    /// Sees every byte of every stream.
    pub observer: Option<Observer>,
}

impl Hooks {
    /// SIGTERM or SIGINT end it.
    ///
    /// # Errors
    /// If the process can not receive signals.
    pub fn of_a_process(print: fn(&str) -> Result<(), RelayError>) -> Result<Hooks, RelayError> {
        #[cfg(unix)]
        let wanted = [Signal::Term, Signal::Int];
        #[cfg(not(unix))]
        let wanted = [Signal::Int];
        let signals = Signals::new(wanted).map_err(RelayError::Signals)?;
        Ok(Hooks { print, end: signals.map(|_| ()).boxed(), observer: None })
    }
}

/// Serves until it is ended.
///
/// # Errors
/// If the configuration can not be carried out, or listening ends.
pub async fn run(config: Config, hooks: Hooks) -> Result<(), RelayError> {
    let Hooks { print, end, observer } = hooks;
    let keypair = identity::load_or_create(config.identity.as_deref())?;
    let metrics = Arc::new(Metrics::new());
    let ready = Arc::new(AtomicBool::new(false));
    if let Some(address) = config.http {
        let state = http::State { metrics: metrics.clone(), ready: ready.clone() };
        let real = http::start(address, state).map_err(|error| RelayError::Listen {
            address: address.to_string(),
            reason: error.to_string(),
        })?;
        print(&format!("http://{real}/metrics"))?;
    }
    let swarm = build(&keypair, &config, metrics.clone(), observer)?;
    let room = Room { per_peer: config.limits.groups_per_peer, in_all: config.limits.meeting };
    let mut server = Server {
        swarm,
        config,
        meeting: Meeting::new(room),
        metrics,
        ready,
        print,
        listeners: vec![],
        ping_failures: HashMap::new(),
    };
    server.listen()?;
    for address in &server.config.external {
        server.swarm.add_external_address(address.clone());
        print_address(print, address, server.swarm.local_peer_id())?;
    }
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "started");
    server.serve(end).await
}

struct Server {
    swarm: Swarm<Behaviour>,
    config: Config,
    meeting: Meeting,
    metrics: Arc<Metrics>,
    ready: Arc<AtomicBool>,
    print: fn(&str) -> Result<(), RelayError>,
    listeners: Vec<ListenerId>,
    /// Of each connection, the pings in a row that were not answered.
    ping_failures: HashMap<ConnectionId, u32>,
}

impl Server {
    async fn serve(mut self, end: impl Stream<Item = ()> + Unpin) -> Result<(), RelayError> {
        let mut end = end.fuse();
        let mut tick = StreamExt::fuse(Timer::interval(Duration::from_secs(limits::TICK_SECONDS)));
        loop {
            select! {
                _signal = end.next() => break,
                _tick = tick.next() => self.tick(),
                event = self.swarm.select_next_some() => self.on_event(event)?,
            }
        }
        self.drain(end).await;
        tracing::info!("ended");
        Ok(())
    }

    /// No new peers; circuits get a while to end, then everybody is told goodbye.
    async fn drain(&mut self, mut end: impl futures::stream::FusedStream<Item = ()> + Unpin) {
        self.ready.store(false, Ordering::SeqCst);
        self.metrics.draining.set(1);
        tracing::info!(circuits = self.metrics.circuits.get(), "draining");
        for listener in std::mem::take(&mut self.listeners) {
            self.swarm.remove_listener(listener);
        }
        let mut time =
            FutureExt::fuse(Timer::after(Duration::from_millis(limits::DRAIN_MAX_MILLISECONDS)));
        while self.metrics.circuits.get() > 0 {
            select! {
                _again = end.next() => break,
                _late = time => break,
                event = self.swarm.select_next_some() => {
                    // A listener that ends now was asked to.
                    let _expected = self.on_event(event);
                }
            }
        }
        let peers: Vec<PeerId> = self.swarm.connected_peers().copied().collect();
        for peer in peers {
            let _was_connected = self.swarm.disconnect_peer_id(peer);
        }
        let mut time =
            FutureExt::fuse(Timer::after(Duration::from_millis(limits::CLOSE_MAX_MILLISECONDS)));
        while self.swarm.connected_peers().next().is_some() {
            select! {
                _again = end.next() => break,
                _late = time => break,
                _event = self.swarm.select_next_some() => {}
            }
        }
    }

    fn tick(&mut self) {
        self.meeting.forget_all(Instant::now());
        self.count_meeting();
        tracing::debug!(
            peers = self.metrics.peers.get(),
            circuits = self.metrics.circuits.get(),
            groups = self.meeting.groups(),
            "alive"
        );
    }

    fn count_meeting(&self) {
        self.metrics.meeting_peers.set(self.meeting.present() as i64);
        self.metrics.meeting_groups.set(self.meeting.groups() as i64);
    }

    /// Every address that was asked for has to work; of the default ones, one has to.
    fn listen(&mut self) -> Result<(), RelayError> {
        let mut failed = None;
        for address in &self.config.listen {
            match self.swarm.listen_on(address.clone()) {
                Ok(listener) => self.listeners.push(listener),
                Err(error) => {
                    let reason = error.to_string();
                    let error = RelayError::Listen { address: address.to_string(), reason };
                    if !self.config.listen_by_default {
                        return Err(error);
                    }
                    failed = Some(error);
                }
            }
        }
        match failed {
            Some(error) if self.listeners.is_empty() => Err(error),
            _ => Ok(()),
        }
    }

    fn on_event(&mut self, event: SwarmEvent<BehaviourEvent>) -> Result<(), RelayError> {
        match event {
            SwarmEvent::Behaviour(event) => self.on_behaviour(event),
            SwarmEvent::NewListenAddr { address, .. } => {
                self.metrics.listeners.inc();
                self.ready.store(true, Ordering::SeqCst);
                if self.config.external.is_empty() {
                    if is_reachable(&address, &self.config) {
                        self.swarm.add_external_address(address.clone());
                    }
                    print_address(self.print, &address, self.swarm.local_peer_id())?;
                }
            }
            SwarmEvent::ExpiredListenAddr { address, .. } => {
                self.metrics.listeners.dec();
                // One that was given by hand comes back with the interface.
                if self.config.external.is_empty() {
                    self.swarm.remove_external_address(&address);
                }
            }
            SwarmEvent::ListenerError { .. } => {
                self.metrics.listener_errors_total.inc();
            }
            SwarmEvent::ListenerClosed { addresses, reason, .. } => {
                self.metrics.listeners.dec_by(addresses.len() as i64);
                if let Err(error) = reason {
                    let address = addresses
                        .first()
                        .map_or_else(|| "a listener".to_owned(), Multiaddr::to_string);
                    return Err(RelayError::Listen { address, reason: error.to_string() });
                }
            }
            SwarmEvent::ConnectionEstablished { peer_id, num_established, endpoint, .. } => {
                tracing::debug!(%peer_id, ?endpoint, "connected");
                self.metrics.connections.inc();
                self.metrics.connections_opened_total.inc();
                if num_established.get() == 1 {
                    self.metrics.peers.inc();
                }
            }
            SwarmEvent::ConnectionClosed {
                peer_id, connection_id, num_established, cause, ..
            } => {
                self.ping_failures.remove(&connection_id);
                tracing::debug!(%peer_id, ?cause, "disconnected");
                self.metrics.connections.dec();
                self.metrics.connections_closed_total.inc();
                if num_established == 0 {
                    self.metrics.peers.dec();
                    self.meeting.leave(&peer_id);
                    self.count_meeting();
                }
            }
            SwarmEvent::IncomingConnectionError { error, send_back_addr, .. } => {
                tracing::debug!(%send_back_addr, %error, "an inbound connection failed");
                let reason = match error {
                    swarm::ListenError::Denied { .. } => "limit",
                    swarm::ListenError::Transport(_) => "handshake",
                    _ => "other",
                };
                self.metrics.connections_failed_total.get_or_create(&of(reason)).inc();
            }
            _ => {}
        }
        Ok(())
    }

    fn on_behaviour(&mut self, event: BehaviourEvent) {
        let metrics = &self.metrics;
        match event {
            BehaviourEvent::Meet(MeetEvent::Message {
                peer,
                message: request_response::Message::Request { request, channel, .. },
                ..
            }) => {
                let met = self.meeting.arrive(peer, request, Instant::now());
                let outcome = if met.remembered { "remembered" } else { "no_room" };
                metrics.meetings_total.get_or_create(&of(outcome)).inc();
                metrics.meeting_members_named_total.inc_by(met.members.len() as u64);
                if self.swarm.behaviour_mut().meet.send_response(channel, met).is_err() {
                    self.metrics.meeting_errors_total.inc();
                }
                self.count_meeting();
            }
            BehaviourEvent::Meet(MeetEvent::InboundFailure { .. }) => {
                metrics.meeting_errors_total.inc();
            }
            BehaviourEvent::Ping(event) => match event.result {
                Ok(time) => {
                    self.ping_failures.remove(&event.connection);
                    metrics.ping_seconds.observe(time.as_secs_f64());
                }
                Err(ping::Failure::Unsupported) => {}
                Err(_) => {
                    metrics.pings_failed_total.inc();
                    let failures = self.ping_failures.entry(event.connection).or_default();
                    *failures += 1;
                    // A peer that changed its network never says goodbye, and a circuit to it would
                    // be led into the connection of before.
                    if *failures >= limits::PING_FAILURES_MAX {
                        self.swarm.close_connection(event.connection);
                    }
                }
            },
            BehaviourEvent::Relay(event) => {
                tracing::debug!(?event, "relay");
                count_relay(metrics, &event);
            }
            _ => {}
        }
    }
}

fn count_relay(metrics: &Metrics, event: &relay::Event) {
    use relay::Event as Relay;
    match event {
        Relay::ReservationReqAccepted { renewed, .. } => {
            let kind = if *renewed { "renewed" } else { "new" };
            metrics.reservations_accepted_total.get_or_create(&of(kind)).inc();
            if !renewed {
                metrics.reservations.inc();
            }
        }
        Relay::ReservationReqDenied { .. } => {
            metrics.reservations_denied_total.inc();
        }
        Relay::ReservationClosed { .. } => {
            metrics.reservations.dec();
            metrics.reservations_ended_total.get_or_create(&of("closed")).inc();
        }
        Relay::ReservationTimedOut { .. } => {
            metrics.reservations.dec();
            metrics.reservations_ended_total.get_or_create(&of("expired")).inc();
        }
        Relay::CircuitReqAccepted { .. } => {
            metrics.circuits.inc();
            metrics.circuits_accepted_total.inc();
        }
        Relay::CircuitReqDenied { .. } => {
            metrics.circuits_denied_total.inc();
        }
        Relay::CircuitClosed { error, .. } => {
            metrics.circuits.dec();
            let reason = if error.is_some() { "error" } else { "end" };
            metrics.circuits_closed_total.get_or_create(&of(reason)).inc();
        }
        // What is left are the deprecated reports of requests that failed half-way.
        _ => {
            metrics.circuits_failed_total.inc();
        }
    }
}

fn build(
    keypair: &Keypair,
    config: &Config,
    metrics: Arc<Metrics>,
    observer: Option<Observer>,
) -> Result<Swarm<Behaviour>, RelayError> {
    let local = keypair.public().to_peer_id();
    let mut relay = relay::Behaviour::new(local, relay_config(&config.limits, config.behind_proxy));
    // It is a relay because somebody started it as one, whatever it knows of its own addresses.
    relay.set_status(Some(relay::Status::Enable));
    let per_ip = (!config.behind_proxy).then_some(config.limits.connections_per_ip);
    let behaviour = Behaviour {
        crowd: Crowd::new(CrowdLimits {
            connections: Some(config.limits.connections),
            inbound: None,
            per_peer: Some(config.limits.connections_per_peer),
            per_ip,
            pending: Some(limits::CONNECTIONS_PENDING_MAX),
            pending_per_ip: per_ip.map(|_| limits::CONNECTIONS_PENDING_PER_IP_MAX),
        }),
        relay,
        identify: identify::Behaviour::new(
            identify::Config::new(IDENTIFY_PROTOCOL.to_owned(), keypair.public())
                .with_agent_version(concat!("wavesync-relay/", env!("CARGO_PKG_VERSION")).into())
                .with_cache_size(0),
        ),
        ping: ping::Behaviour::new(ping::Config::new()),
        meet: meeting(false),
    };
    let certificate = match &config.certificate {
        Some((chain, key)) => Some(Certificate::from_files(chain, key)?),
        None => None,
    };
    let observe: Observer = Arc::new(move |direction: Direction, bytes: &[u8]| {
        metrics.moved(direction, bytes.len());
        if let Some(observer) = &observer {
            observer(direction, bytes);
        }
    });
    let transport = tap::observed(stack(keypair, None, certificate, None)?, observe);
    let config = swarm::Config::with_executor(|task| smol::spawn(task).detach())
        .with_idle_connection_timeout(Duration::from_secs(limits::IDLE_TIMEOUT_SECONDS));
    Ok(Swarm::new(transport, behaviour, local, config))
}

fn relay_config(limits: &Limits, behind_proxy: bool) -> relay::Config {
    let burst = |count: u32| NonZeroU32::new(count).unwrap_or(NonZeroU32::MIN);
    let per_ip = Duration::from_millis(crate::limits::PER_IP_INTERVAL_MILLISECONDS);
    let config = relay::Config {
        max_reservations: limits.reservations,
        max_reservations_per_peer: limits.reservations_per_peer,
        reservation_duration: Duration::from_secs(limits.reservation_seconds),
        reservation_rate_limiters: Vec::new(),
        max_circuits: limits.circuits,
        max_circuits_per_peer: limits.circuits_per_peer,
        max_circuit_duration: Duration::from_secs(limits.circuit_seconds),
        max_circuit_bytes: limits.circuit_bytes,
        circuit_src_rate_limiters: Vec::new(),
    }
    .reservation_rate_per_peer(
        burst(crate::limits::RESERVATIONS_PER_PEER_BURST),
        Duration::from_secs(crate::limits::RESERVATION_PER_PEER_INTERVAL_SECONDS),
    )
    .circuit_src_per_peer(
        burst(crate::limits::CIRCUITS_PER_PEER_BURST),
        Duration::from_secs(crate::limits::CIRCUIT_PER_PEER_INTERVAL_SECONDS),
    );
    if behind_proxy {
        return config;
    }
    let most = burst(crate::limits::PER_IP_BURST);
    config.reservation_rate_per_ip(most, per_ip).circuit_src_per_ip(most, per_ip)
}

/// Peers are told every address but loopback, and that too when it is what was asked for.
fn is_reachable(address: &Multiaddr, config: &Config) -> bool {
    let first = address.iter().next();
    let loopback = match &first {
        Some(Protocol::Ip4(ip)) => ip.is_loopback(),
        Some(Protocol::Ip6(ip)) => ip.is_loopback(),
        _ => false,
    };
    !loopback || config.listen.iter().any(|asked| asked.iter().next() == first)
}

fn print_address(
    print: fn(&str) -> Result<(), RelayError>,
    address: &Multiaddr,
    local: &PeerId,
) -> Result<(), RelayError> {
    let full = address.clone().with_p2p(*local).unwrap_or_else(|named| named);
    print(&full.to_string())
}
