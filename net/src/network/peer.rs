//! The name of a peer. Core keeps it in tables, so it is plain bytes with an order.

use std::{fmt, str::FromStr};

use libp2p::PeerId;

use crate::error::NetError;

/// A libp2p peer id: who a connection was proven to lead to. Shown in base58.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerKey(Vec<u8>);

impl PeerKey {
    /// The bytes of the peer id.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The peer that these bytes name.
    pub fn from_bytes(bytes: &[u8]) -> Result<PeerKey, NetError> {
        match PeerId::from_bytes(bytes) {
            Ok(peer) => Ok(peer.into()),
            Err(error) => Err(NetError::Peer {
                given: format!("{} bytes", bytes.len()),
                reason: error.to_string(),
            }),
        }
    }

    pub(crate) fn to_peer_id(&self) -> PeerId {
        PeerId::from_bytes(&self.0).expect("a PeerKey is only made from a valid peer id")
    }
}

impl From<PeerId> for PeerKey {
    fn from(peer: PeerId) -> PeerKey {
        PeerKey(peer.to_bytes())
    }
}

impl FromStr for PeerKey {
    type Err = NetError;

    fn from_str(text: &str) -> Result<PeerKey, NetError> {
        match text.parse::<PeerId>() {
            Ok(peer) => Ok(peer.into()),
            Err(error) => Err(NetError::Peer { given: text.to_owned(), reason: error.to_string() }),
        }
    }
}

impl fmt::Display for PeerKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_peer_id().fmt(formatter)
    }
}

impl fmt::Debug for PeerKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "PeerKey({self})")
    }
}
