//! The swarm of the relay and its loop.

use std::{
    num::NonZeroU32,
    time::{Duration, Instant},
};

use async_signal::{Signal, Signals};
use futures::{StreamExt, select};
use libp2p::{
    Multiaddr, PeerId, Swarm,
    connection_limits::{self, ConnectionLimits},
    identify,
    identity::Keypair,
    multiaddr::Protocol,
    ping, relay, request_response,
    swarm::{self, NetworkBehaviour, SwarmEvent},
};
use wavesync_transport::{MeetBehaviour, MeetEvent, StackError, meeting, stack};

use crate::{
    error::RelayError,
    identity,
    meeting::{Meeting, Room},
    options::{self, Options},
    print,
};

// libp2p's own limits (16 circuits, 128 KiB, 2 minutes) cut every catch-up short.

/// Peers that may wait for circuits at a time.
const RESERVATIONS_MAX: usize = 4096;
const RESERVATIONS_PER_PEER_MAX: usize = 8;
/// Clients renew before this is over.
const RESERVATION_HOURS: u64 = 1;
const CIRCUITS_MAX: usize = 8192;
const CIRCUITS_PER_PEER_MAX: usize = 256;
const CIRCUIT_HOURS: u64 = 24;
/// Zero is "no limit", in libp2p's relay as on the wire.
const CIRCUIT_BYTES_UNLIMITED: u64 = 0;
/// Each limit of rate is a bucket that holds this many and gains one per interval.
const RESERVATIONS_PER_PEER_BURST: NonZeroU32 = NonZeroU32::new(32).expect("not zero");
const RESERVATION_PER_PEER_INTERVAL_SECONDS: u64 = 10;
const CIRCUITS_PER_PEER_BURST: NonZeroU32 = NonZeroU32::new(256).expect("not zero");
const CIRCUIT_PER_PEER_INTERVAL_SECONDS: u64 = 1;
/// Many peers may share one address: a household, an office, a mobile carrier.
const PER_IP_BURST: NonZeroU32 = NonZeroU32::new(1024).expect("not zero");
const PER_IP_INTERVAL_MILLISECONDS: u64 = 100;

const CONNECTIONS_MAX: u32 = 16_384;
const CONNECTIONS_PER_PEER_MAX: u32 = 8;
const CONNECTIONS_PENDING_MAX: u32 = 512;
/// Groups that a peer may be in at this relay.
const GROUPS_PER_PEER_MAX: usize = 32;
/// Peers remembered at the meeting point, once for each group.
const MEETING_MAX: usize = 16_384;
/// Peers that did not come again are looked for this often.
const FORGET_INTERVAL_SECONDS: u64 = 60;
/// A connection without reservation or circuit is closed after this.
const IDLE_TIMEOUT_SECONDS: u64 = 60;
const IDENTIFY_PROTOCOL: &str = "/wavesync-relay/1";

#[derive(NetworkBehaviour)]
struct Behaviour {
    limits: connection_limits::Behaviour,
    relay: relay::Behaviour,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
    meet: MeetBehaviour,
}

/// Serves until SIGTERM or SIGINT.
pub(crate) async fn run(options: Options) -> Result<(), RelayError> {
    let keypair = identity::load_or_create(options.identity.as_deref())?;
    let mut signals = wait_for_end()?.fuse();
    let mut swarm = build(&keypair, options.behind_proxy)?;
    listen(&mut swarm, &options)?;
    for address in &options.announce {
        swarm.add_external_address(address.clone());
        print_address(address, swarm.local_peer_id())?;
    }
    let mut meeting = Meeting::new(Room { per_peer: GROUPS_PER_PEER_MAX, in_all: MEETING_MAX });
    let mut forget = smol::Timer::interval(Duration::from_secs(FORGET_INTERVAL_SECONDS)).fuse();
    loop {
        select! {
            _signal = signals.next() => return Ok(()),
            _tick = forget.next() => {
                meeting.forget_all(Instant::now());
                tracing::debug!(peers = meeting.present(), groups = meeting.groups(), "meeting");
            }
            event = swarm.select_next_some() => {
                on_event(&mut swarm, &mut meeting, &options, event)?;
            }
        }
    }
}

fn wait_for_end() -> Result<Signals, RelayError> {
    #[cfg(unix)]
    let wanted = [Signal::Term, Signal::Int];
    #[cfg(not(unix))]
    let wanted = [Signal::Int];
    Signals::new(wanted).map_err(RelayError::Signals)
}

fn build(keypair: &Keypair, behind_proxy: bool) -> Result<Swarm<Behaviour>, RelayError> {
    let local = keypair.public().to_peer_id();
    let mut relay = relay::Behaviour::new(local, relay_config(behind_proxy));
    // It is a relay because somebody started it as one, whatever it knows of its own addresses.
    relay.set_status(Some(relay::Status::Enable));
    let behaviour = Behaviour {
        limits: connection_limits::Behaviour::new(
            ConnectionLimits::default()
                .with_max_established(Some(CONNECTIONS_MAX))
                .with_max_established_per_peer(Some(CONNECTIONS_PER_PEER_MAX))
                .with_max_pending_incoming(Some(CONNECTIONS_PENDING_MAX)),
        ),
        relay,
        identify: identify::Behaviour::new(
            identify::Config::new(IDENTIFY_PROTOCOL.to_owned(), keypair.public())
                .with_agent_version(concat!("wavesync-relay/", env!("CARGO_PKG_VERSION")).into())
                .with_cache_size(0),
        ),
        ping: ping::Behaviour::new(ping::Config::new()),
        meet: meeting(false),
    };
    let transport = stack(keypair, None, None).map_err(|error| match error {
        StackError::Identity(reason) | StackError::Certificate(reason) => {
            RelayError::Identity(reason)
        }
    })?;
    let config = swarm::Config::with_executor(|task| smol::spawn(task).detach())
        .with_idle_connection_timeout(Duration::from_secs(IDLE_TIMEOUT_SECONDS));
    Ok(Swarm::new(transport, behaviour, local, config))
}

fn relay_config(behind_proxy: bool) -> relay::Config {
    let per_ip = Duration::from_millis(PER_IP_INTERVAL_MILLISECONDS);
    let config = relay::Config {
        max_reservations: RESERVATIONS_MAX,
        max_reservations_per_peer: RESERVATIONS_PER_PEER_MAX,
        reservation_duration: Duration::from_secs(RESERVATION_HOURS * 60 * 60),
        reservation_rate_limiters: Vec::new(),
        max_circuits: CIRCUITS_MAX,
        max_circuits_per_peer: CIRCUITS_PER_PEER_MAX,
        max_circuit_duration: Duration::from_secs(CIRCUIT_HOURS * 60 * 60),
        max_circuit_bytes: CIRCUIT_BYTES_UNLIMITED,
        circuit_src_rate_limiters: Vec::new(),
    }
    .reservation_rate_per_peer(
        RESERVATIONS_PER_PEER_BURST,
        Duration::from_secs(RESERVATION_PER_PEER_INTERVAL_SECONDS),
    )
    .circuit_src_per_peer(
        CIRCUITS_PER_PEER_BURST,
        Duration::from_secs(CIRCUIT_PER_PEER_INTERVAL_SECONDS),
    );
    if behind_proxy {
        return config;
    }
    config.reservation_rate_per_ip(PER_IP_BURST, per_ip).circuit_src_per_ip(PER_IP_BURST, per_ip)
}

/// Every address that was asked for has to work; of the default ones, one has to.
fn listen(swarm: &mut Swarm<Behaviour>, options: &Options) -> Result<(), RelayError> {
    let mut failed = None;
    let mut listening = false;
    for address in &options.listen {
        match swarm.listen_on(address.clone()) {
            Ok(_) => listening = true,
            Err(error) => {
                let reason = error.to_string();
                let error = RelayError::Listen { address: address.to_string(), reason };
                if !options.listen_by_default {
                    return Err(error);
                }
                failed = Some(error);
            }
        }
    }
    match failed {
        Some(error) if !listening => Err(error),
        _ => Ok(()),
    }
}

fn on_event(
    swarm: &mut Swarm<Behaviour>,
    meeting: &mut Meeting,
    options: &options::Options,
    event: SwarmEvent<BehaviourEvent>,
) -> Result<(), RelayError> {
    match event {
        SwarmEvent::NewListenAddr { address, .. } if options.announce.is_empty() => {
            if is_reachable(&address, options) {
                swarm.add_external_address(address.clone());
            }
            print_address(&address, swarm.local_peer_id())?;
        }
        SwarmEvent::ExpiredListenAddr { address, .. } => swarm.remove_external_address(&address),
        SwarmEvent::ListenerClosed { addresses, reason: Err(error), .. } => {
            let address =
                addresses.first().map_or_else(|| "a listener".to_owned(), Multiaddr::to_string);
            return Err(RelayError::Listen { address, reason: error.to_string() });
        }
        SwarmEvent::Behaviour(BehaviourEvent::Meet(MeetEvent::Message {
            peer,
            message: request_response::Message::Request { request, channel, .. },
            ..
        })) => {
            let met = meeting.arrive(peer, request, Instant::now());
            // Whoever asked may be gone.
            let _sent = swarm.behaviour_mut().meet.send_response(channel, met);
        }
        SwarmEvent::ConnectionClosed { peer_id, num_established: 0, .. } => {
            meeting.leave(&peer_id);
        }
        SwarmEvent::Behaviour(BehaviourEvent::Relay(event)) => {
            tracing::info!(?event, "relay");
        }
        _ => {}
    }
    Ok(())
}

/// Peers are told every address but loopback, and that too when it is what was asked for.
fn is_reachable(address: &Multiaddr, options: &Options) -> bool {
    let first = address.iter().next();
    let loopback = match &first {
        Some(Protocol::Ip4(ip)) => ip.is_loopback(),
        Some(Protocol::Ip6(ip)) => ip.is_loopback(),
        _ => false,
    };
    !loopback || options.listen.iter().any(|asked| asked.iter().next() == first)
}

fn print_address(address: &Multiaddr, local: &PeerId) -> Result<(), RelayError> {
    let full = address.clone().with_p2p(*local).unwrap_or_else(|named| named);
    print(&full.to_string())
}
