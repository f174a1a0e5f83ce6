//! Which connections lead to which peer, and which of them a new stream takes.

use std::collections::HashMap;

use crate::time::Instant;
use libp2p::{Multiaddr, PeerId, core::ConnectedPoint, multiaddr::Protocol, swarm::ConnectionId};

/// How a connection reaches its peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Path {
    pub(crate) address: Multiaddr,
    pub(crate) relayed: bool,
}

impl Path {
    /// The path of a connection; its address goes without the peer's own id at its end, which a
    /// dialed address may have and an accepted one never has.
    pub(crate) fn of(endpoint: &ConnectedPoint) -> Path {
        let mut address = match endpoint {
            // Somebody who comes through a relay has no address but the relay's.
            ConnectedPoint::Listener { local_addr, .. } if endpoint.is_relayed() => {
                local_addr.clone()
            }
            _ => endpoint.get_remote_address().clone(),
        };
        if matches!(address.iter().last(), Some(Protocol::P2p(_))) {
            address.pop();
        }
        Path { address, relayed: endpoint.is_relayed() }
    }
}

pub(crate) struct Connection {
    pub(crate) id: ConnectionId,
    path: Path,
    since: Instant,
}

/// What adding or removing a connection meant for its peer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// The first connection came, or the last one went.
    Last,
    /// New streams take another path from now on.
    Path(Path),
    None,
}

#[derive(Default)]
pub(crate) struct Connections {
    /// Of each peer, oldest first, never empty.
    peers: HashMap<PeerId, Vec<Connection>>,
}

impl Connections {
    /// The newest direct connection, or else the newest relayed one.
    pub(crate) fn best(&self, peer: &PeerId) -> Option<&Connection> {
        let all = self.peers.get(peer)?;
        all.iter().rev().find(|connection| !connection.path.relayed).or_else(|| all.last())
    }

    pub(crate) fn count(&self, peer: &PeerId) -> usize {
        self.peers.get(peer).map_or(0, Vec::len)
    }

    pub(crate) fn has_address(&self, address: &Multiaddr) -> bool {
        self.peers.values().flatten().any(|connection| connection.path.address == *address)
    }

    pub(crate) fn add(&mut self, peer: PeerId, id: ConnectionId, path: Path) -> Change {
        let before = self.best_path(&peer);
        self.peers.entry(peer).or_default().push(Connection { id, path, since: Instant::now() });
        self.change(&peer, before)
    }

    pub(crate) fn remove(&mut self, peer: &PeerId, id: ConnectionId) -> Change {
        let before = self.best_path(peer);
        if let Some(all) = self.peers.get_mut(peer) {
            all.retain(|connection| connection.id != id);
            if all.is_empty() {
                self.peers.remove(peer);
            }
        }
        self.change(peer, before)
    }

    /// Relayed connections to peers that a direct one leads to, and since when.
    pub(crate) fn superseded(&self) -> Vec<(ConnectionId, Instant)> {
        let mut superseded = Vec::new();
        for all in self.peers.values().filter(|all| all.len() > 1) {
            let direct = all.iter().filter(|connection| !connection.path.relayed);
            let Some(since) = direct.map(|connection| connection.since).min() else { continue };
            let relayed = all.iter().filter(|connection| connection.path.relayed);
            superseded
                .extend(relayed.map(|connection| (connection.id, since.max(connection.since))));
        }
        superseded
    }

    fn best_path(&self, peer: &PeerId) -> Option<Path> {
        self.best(peer).map(|best| best.path.clone())
    }

    fn change(&self, peer: &PeerId, before: Option<Path>) -> Change {
        match (before, self.best_path(peer)) {
            (Some(before), Some(after)) if before != after => Change::Path(after),
            (None, Some(_)) | (Some(_), None) => Change::Last,
            _ => Change::None,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn path(port: u16, relayed: bool) -> Path {
        Path { address: format!("/ip4/127.0.0.1/tcp/{port}").parse().unwrap(), relayed }
    }

    #[test]
    fn the_newest_direct_connection_is_best() {
        let mut connections = Connections::default();
        let peer = PeerId::random();
        let id = ConnectionId::new_unchecked;
        assert_eq!(connections.add(peer, id(1), path(1, true)), Change::Last);
        assert!(connections.superseded().is_empty());
        assert_eq!(connections.add(peer, id(2), path(2, false)), Change::Path(path(2, false)));
        assert!(matches!(connections.superseded()[..], [(relayed, _)] if relayed == id(1)));
        assert_eq!(connections.add(peer, id(3), path(3, true)), Change::None);
        assert_eq!(connections.best(&peer).unwrap().id, id(2));
        assert_eq!(connections.add(peer, id(4), path(4, false)), Change::Path(path(4, false)));
        assert_eq!(connections.remove(&peer, id(4)), Change::Path(path(2, false)));
        assert_eq!(connections.remove(&peer, id(2)), Change::Path(path(3, true)));
        assert_eq!(connections.remove(&peer, id(1)), Change::None);
        assert!(connections.has_address(&path(3, true).address));
        assert_eq!(connections.remove(&peer, id(3)), Change::Last);
        assert!(connections.best(&peer).is_none());
    }
}
