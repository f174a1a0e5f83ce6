//! How many connections may come from one IP address: a behaviour that says no.

use std::{
    collections::HashMap,
    convert::Infallible,
    fmt,
    net::{IpAddr, Ipv6Addr},
    task::{Context, Poll},
};

use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    multiaddr::Protocol,
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent,
        THandlerOutEvent, ToSwarm, dummy,
    },
};

/// Counts connections by address; IPv6 addresses of one /64 count as one.
pub(crate) struct PerIp {
    max: Option<u32>,
    counts: HashMap<IpAddr, u32>,
    connections: HashMap<ConnectionId, IpAddr>,
}

/// There are too many already.
#[derive(Debug)]
pub(crate) struct TooMany;

impl fmt::Display for TooMany {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("too many connections from this IP address")
    }
}

impl std::error::Error for TooMany {}

impl PerIp {
    /// Without `max` everybody is let in.
    pub(crate) fn new(max: Option<u32>) -> PerIp {
        PerIp { max, counts: HashMap::new(), connections: HashMap::new() }
    }

    fn admit(&self, remote: &Multiaddr) -> Result<(), ConnectionDenied> {
        let count = ip_of(remote).and_then(|ip| self.counts.get(&ip)).copied().unwrap_or(0);
        match self.max {
            Some(max) if count >= max => Err(ConnectionDenied::new(TooMany)),
            _ => Ok(()),
        }
    }
}

fn ip_of(address: &Multiaddr) -> Option<IpAddr> {
    match address.iter().next()? {
        Protocol::Ip4(ip) => Some(ip.into()),
        Protocol::Ip6(ip) => {
            let [a, b, c, d, ..] = ip.segments();
            Some(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into())
        }
        _ => None,
    }
}

impl NetworkBehaviour for PerIp {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_pending_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        self.admit(remote)
    }

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.admit(remote)?;
        Ok(dummy::ConnectionHandler)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    fn on_swarm_event(&mut self, event: FromSwarm) {
        match event {
            FromSwarm::ConnectionEstablished(established) if established.endpoint.is_listener() => {
                if let Some(ip) = ip_of(established.endpoint.get_remote_address()) {
                    *self.counts.entry(ip).or_default() += 1;
                    self.connections.insert(established.connection_id, ip);
                }
            }
            FromSwarm::ConnectionClosed(closed) => {
                let Some(ip) = self.connections.remove(&closed.connection_id) else { return };
                if let Some(count) = self.counts.get_mut(&ip) {
                    *count -= 1;
                    if *count == 0 {
                        self.counts.remove(&ip);
                    }
                }
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(
        &mut self,
        _: PeerId,
        _: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Infallible, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}
