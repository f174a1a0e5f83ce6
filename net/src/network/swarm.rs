//! How the swarm is put together: the shared stack of transports, and the behaviours of a peer.

use std::{num::NonZeroUsize, sync::Arc, time::Duration};

use async_executor::Executor;
use libp2p::{
    Swarm, identify,
    identity::Keypair,
    ping, relay,
    swarm::{self, NetworkBehaviour},
};
#[cfg(not(target_family = "wasm"))]
use libp2p::{dcutr, swarm::behaviour::toggle::Toggle};
use wavesync_transport::{
    Admission, Crowd, CrowdLimits, MeetBehaviour, StackError, meeting, stack,
};

use crate::{error::NetError, streams::Streams};

/// Connections stay open without use; a ping tells whether they are alive.
const IDLE_TIMEOUT_DAYS: u64 = 365;
/// Inbound streams of one connection that may be under negotiation.
const NEGOTIATING_STREAMS_MAX: usize = 512;
/// Events that a connection may be ahead of the network's owner.
const CONNECTION_EVENTS_MAX: usize = 4;
const COMMANDS_PER_CONNECTION_MAX: NonZeroUsize = NonZeroUsize::new(64).expect("not zero");
const CONNECTIONS_PER_PEER_MAX: u32 = 8;
const CONNECTIONS_INBOUND_MAX: u32 = 512;
const CONNECTIONS_INBOUND_PENDING_MAX: u32 = 128;
const CONNECTIONS_INBOUND_PENDING_PER_IP_MAX: u32 = 64;
const IDENTIFY_PROTOCOL: &str = "/wavesync/1";

#[derive(NetworkBehaviour)]
pub(super) struct Behaviour {
    crowd: Crowd,
    pub(super) streams: Streams,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
    circuits: relay::client::Behaviour,
    pub(super) meet: MeetBehaviour,
    /// Turns a relayed connection into a direct one, where the NATs let it.
    #[cfg(not(target_family = "wasm"))]
    punch: Toggle<dcutr::Behaviour>,
}

/// A swarm whose tasks run on `executor`.
pub(super) fn build(
    keypair: &Keypair,
    executor: Arc<Executor<'static>>,
    #[cfg_attr(target_family = "wasm", expect(unused, reason = "no browser punches holes"))]
    direct: bool,
    admission: Admission,
) -> Result<Swarm<Behaviour>, NetError> {
    let (circuit_transport, circuits) = relay::client::new(keypair.public().to_peer_id());
    #[cfg(not(target_family = "wasm"))]
    let transport = stack(keypair, Some(circuit_transport), None, Some(admission));
    #[cfg(target_family = "wasm")]
    let transport = stack(keypair, Some(circuit_transport), Some(admission));
    let transport = transport.map_err(|error| match error {
        StackError::Identity(reason) => NetError::Identity(reason),
        error @ StackError::Certificate(_) => NetError::Io(std::io::Error::other(error)),
    })?;
    let behaviour = Behaviour {
        crowd: Crowd::new(CrowdLimits {
            inbound: Some(CONNECTIONS_INBOUND_MAX),
            per_peer: Some(CONNECTIONS_PER_PEER_MAX),
            pending: Some(CONNECTIONS_INBOUND_PENDING_MAX),
            pending_per_ip: Some(CONNECTIONS_INBOUND_PENDING_PER_IP_MAX),
            ..CrowdLimits::default()
        }),
        streams: Streams::default(),
        identify: identify::Behaviour::new(
            identify::Config::new(IDENTIFY_PROTOCOL.to_owned(), keypair.public())
                .with_agent_version(concat!("wavesync/", env!("CARGO_PKG_VERSION")).to_owned())
                .with_cache_size(0),
        ),
        ping: ping::Behaviour::new(ping::Config::new()),
        circuits,
        meet: meeting(true),
        #[cfg(not(target_family = "wasm"))]
        punch: Toggle::from(direct.then(|| dcutr::Behaviour::new(keypair.public().to_peer_id()))),
    };
    let config = swarm::Config::with_executor(move |task| executor.spawn(task).detach())
        .with_idle_connection_timeout(Duration::from_secs(IDLE_TIMEOUT_DAYS * 24 * 60 * 60))
        .with_max_negotiating_inbound_streams(NEGOTIATING_STREAMS_MAX)
        .with_per_connection_event_buffer_size(CONNECTION_EVENTS_MAX)
        .with_notify_handler_buffer_size(COMMANDS_PER_CONNECTION_MAX);
    Ok(Swarm::new(transport, behaviour, keypair.public().to_peer_id(), config))
}
