//! How many connections there may be: together, from one IP address, from one peer, and such as have not
//! said who they are. A behaviour that says no.
//!
//! libp2p's own limits remember every peer that ever came, for as long as the program runs, and do not
//! know of IP addresses.

use std::{
    collections::HashMap,
    convert::Infallible,
    fmt,
    hash::Hash,
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

/// The most of each; `None` is no limit. IPv6 addresses of one /64 count as one, and what comes through
/// a circuit has no address.
#[derive(Clone, Copy, Debug, Default)]
pub struct CrowdLimits {
    /// Connections.
    pub connections: Option<u32>,
    /// Connections that others made.
    pub inbound: Option<u32>,
    /// Connections of one peer.
    pub per_peer: Option<u32>,
    /// Connections that others made from one address.
    pub per_ip: Option<u32>,
    /// Connections that others are making: they have not proven an identity yet.
    pub pending: Option<u32>,
    /// The same from one address.
    pub pending_per_ip: Option<u32>,
}

/// The behaviour.
pub struct Crowd {
    limits: CrowdLimits,
    pending: HashMap<ConnectionId, Option<IpAddr>>,
    pending_per_ip: Counts<IpAddr>,
    /// Whose connections are there, and for those that others made from where.
    connections: HashMap<ConnectionId, (PeerId, Option<Origin>)>,
    inbound: u32,
    per_peer: Counts<PeerId>,
    per_ip: Counts<IpAddr>,
}

/// Where a connection comes from that another one made.
#[derive(Clone, Copy)]
struct Origin(Option<IpAddr>);

/// A connection that is not let in.
#[derive(Debug)]
pub struct TooMany(&'static str);

impl fmt::Display for TooMany {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "too many connections {}", self.0)
    }
}

impl std::error::Error for TooMany {}

/// How many there are of each; of none nothing is remembered.
struct Counts<K>(HashMap<K, u32>);

impl<K: Hash + Eq> Counts<K> {
    fn of(&self, key: &K) -> u32 {
        self.0.get(key).copied().unwrap_or(0)
    }

    fn add(&mut self, key: K) {
        *self.0.entry(key).or_default() += 1;
    }

    fn take(&mut self, key: &K) {
        if let Some(count) = self.0.get_mut(key) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(key);
            }
        }
    }
}

impl Crowd {
    /// Nobody is there yet.
    #[must_use]
    pub fn new(limits: CrowdLimits) -> Self {
        Self {
            limits,
            pending: HashMap::new(),
            pending_per_ip: Counts(HashMap::new()),
            connections: HashMap::new(),
            inbound: 0,
            per_peer: Counts(HashMap::new()),
            per_ip: Counts(HashMap::new()),
        }
    }

    fn settle(&mut self, connection: ConnectionId) {
        if let Some(Some(ip)) = self.pending.remove(&connection) {
            self.pending_per_ip.take(&ip);
        }
    }

    fn admit_inbound(&self, remote: &Multiaddr) -> Result<Option<IpAddr>, ConnectionDenied> {
        let ip = ip_of(remote);
        below(self.inbound, self.limits.inbound, "that others made")?;
        if let Some(ip) = ip {
            below(self.per_ip.of(&ip), self.limits.per_ip, "from this IP address")?;
        }
        Ok(ip)
    }

    fn admit_peer(&self, peer: &PeerId) -> Result<THandler<Self>, ConnectionDenied> {
        let all = u32::try_from(self.connections.len()).unwrap_or(u32::MAX);
        below(all, self.limits.connections, "together")?;
        below(self.per_peer.of(peer), self.limits.per_peer, "of this peer")?;
        Ok(dummy::ConnectionHandler)
    }
}

fn below(count: u32, most: Option<u32>, which: &'static str) -> Result<(), ConnectionDenied> {
    match most {
        Some(most) if count >= most => Err(ConnectionDenied::new(TooMany(which))),
        _ => Ok(()),
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

impl NetworkBehaviour for Crowd {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_pending_inbound_connection(
        &mut self,
        connection: ConnectionId,
        _: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        let ip = self.admit_inbound(remote)?;
        let pending = u32::try_from(self.pending.len()).unwrap_or(u32::MAX);
        below(pending, self.limits.pending, "that are being made")?;
        if let Some(ip) = ip {
            let (count, most) = (self.pending_per_ip.of(&ip), self.limits.pending_per_ip);
            below(count, most, "that are being made from this IP address")?;
            self.pending_per_ip.add(ip);
        }
        self.pending.insert(connection, ip);
        Ok(())
    }

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.settle(connection);
        self.admit_inbound(remote)?;
        self.admit_peer(&peer)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.admit_peer(&peer)
    }

    fn on_swarm_event(&mut self, event: FromSwarm) {
        match event {
            FromSwarm::ConnectionEstablished(established) => {
                let endpoint = established.endpoint;
                let remote = endpoint.is_listener().then(|| endpoint.get_remote_address());
                let origin = remote.map(|remote| Origin(ip_of(remote)));
                if let Some(Origin(ip)) = origin {
                    self.inbound += 1;
                    ip.into_iter().for_each(|ip| self.per_ip.add(ip));
                }
                self.per_peer.add(established.peer_id);
                self.connections.insert(established.connection_id, (established.peer_id, origin));
            }
            FromSwarm::ConnectionClosed(closed) => {
                let Some((peer, origin)) = self.connections.remove(&closed.connection_id) else {
                    return;
                };
                self.per_peer.take(&peer);
                if let Some(Origin(ip)) = origin {
                    self.inbound -= 1;
                    ip.iter().for_each(|ip| self.per_ip.take(ip));
                }
            }
            FromSwarm::ListenFailure(failure) => self.settle(failure.connection_id),
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use libp2p::core::ConnectedPoint;
    use libp2p::swarm::behaviour::{ConnectionClosed, ConnectionEstablished};

    const LIMITS: CrowdLimits = CrowdLimits {
        connections: Some(9),
        inbound: Some(6),
        per_peer: Some(2),
        per_ip: Some(3),
        pending: Some(5),
        pending_per_ip: Some(4),
    };

    fn at(ip: &str) -> Multiaddr {
        format!("/{ip}/tcp/7").parse().unwrap()
    }

    fn point(remote: &Multiaddr) -> ConnectedPoint {
        ConnectedPoint::Listener { local_addr: at("ip4/192.0.2.1"), send_back_addr: remote.clone() }
    }

    fn knocks(crowd: &mut Crowd, number: usize, remote: &Multiaddr) -> bool {
        let connection = ConnectionId::new_unchecked(number);
        let local = at("ip4/192.0.2.1");
        crowd.handle_pending_inbound_connection(connection, &local, remote).is_ok()
    }

    fn comes(crowd: &mut Crowd, number: usize, peer: PeerId, remote: &Multiaddr) -> bool {
        let connection = ConnectionId::new_unchecked(number);
        let local = at("ip4/192.0.2.1");
        let let_in = knocks(crowd, number, remote)
            && crowd
                .handle_established_inbound_connection(connection, peer, &local, remote)
                .is_ok();
        if let_in {
            crowd.on_swarm_event(FromSwarm::ConnectionEstablished(ConnectionEstablished {
                peer_id: peer,
                connection_id: connection,
                endpoint: &point(remote),
                failed_addresses: &[],
                other_established: 0,
            }));
        }
        let_in
    }

    fn goes(crowd: &mut Crowd, number: usize, peer: PeerId, remote: &Multiaddr) {
        crowd.on_swarm_event(FromSwarm::ConnectionClosed(ConnectionClosed {
            peer_id: peer,
            connection_id: ConnectionId::new_unchecked(number),
            endpoint: &point(remote),
            cause: None,
            remaining_established: 0,
        }));
    }

    #[test]
    fn connections_are_counted_by_peer_address_and_together() {
        let mut crowd = Crowd::new(LIMITS);
        let peer = PeerId::random();
        let home = at("ip6/2001:db8::1");
        let neighbour = at("ip6/2001:db8::ffff:2");
        let elsewhere = at("ip4/198.51.100.7");
        assert!(comes(&mut crowd, 1, peer, &home));
        assert!(comes(&mut crowd, 2, peer, &elsewhere));
        assert!(!comes(&mut crowd, 3, peer, &elsewhere), "a third one of a peer");
        assert!(comes(&mut crowd, 4, PeerId::random(), &neighbour));
        assert!(comes(&mut crowd, 5, PeerId::random(), &home));
        assert!(!comes(&mut crowd, 6, PeerId::random(), &neighbour), "a fourth one of a /64");
        assert!(comes(&mut crowd, 7, PeerId::random(), &elsewhere));
        assert!(comes(&mut crowd, 8, PeerId::random(), &elsewhere));
        assert!(!comes(&mut crowd, 9, PeerId::random(), &at("ip4/203.0.113.1")), "a seventh one");
        goes(&mut crowd, 1, peer, &home);
        assert!(comes(&mut crowd, 10, peer, &neighbour));
    }

    #[test]
    fn what_is_gone_leaves_nothing() {
        let mut crowd = Crowd::new(LIMITS);
        for number in 0..1_000 {
            let (peer, remote) =
                (PeerId::random(), at(&format!("ip4/198.51.100.{}", number % 200)));
            assert!(comes(&mut crowd, number, peer, &remote));
            goes(&mut crowd, number, peer, &remote);
        }
        assert!(crowd.per_peer.0.is_empty() && crowd.per_ip.0.is_empty());
        assert!(crowd.pending.is_empty() && crowd.pending_per_ip.0.is_empty());
        assert!(crowd.connections.is_empty() && crowd.inbound == 0);
    }

    #[test]
    fn who_says_nothing_takes_a_share_of_the_places_only() {
        let mut crowd = Crowd::new(LIMITS);
        let (silent, other) = (at("ip4/198.51.100.7"), at("ip4/198.51.100.8"));
        assert!((0..4).all(|number| knocks(&mut crowd, number, &silent)));
        assert!(!knocks(&mut crowd, 4, &silent));
        assert!(comes(&mut crowd, 5, PeerId::random(), &other));
        // They are given up in the end.
        crowd.settle(ConnectionId::new_unchecked(0));
        assert!(knocks(&mut crowd, 6, &silent));
    }
}
