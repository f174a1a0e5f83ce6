//! In a browser nobody is found in the local network: there is no multicast. A [`Lan`] can
//! therefore not exist, and nothing that takes one is ever run.

use libp2p::{Multiaddr, PeerId};

/// A member of the group in the local network.
pub(crate) struct Found {
    pub(crate) peer: PeerId,
    pub(crate) addresses: Vec<Multiaddr>,
}

/// Has no values.
pub(crate) enum Lan {}

/// Why there is no [`Lan`].
#[derive(Debug, thiserror::Error)]
#[error("a browser does not let anybody look into the local network")]
pub(crate) struct NoLan;

impl Lan {
    pub(crate) fn start(_key: [u8; 32], _local: PeerId) -> Result<Lan, NoLan> {
        Err(NoLan)
    }

    pub(crate) fn announce(&mut self, _listening: &[Multiaddr]) -> Result<(), NoLan> {
        match *self {}
    }

    pub(crate) async fn next(&mut self) -> Option<Found> {
        match *self {}
    }
}

pub(crate) async fn stop_within(lan: Lan, _deadline: std::time::Duration) {
    match lan {}
}
