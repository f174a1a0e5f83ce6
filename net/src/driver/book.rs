//! Addresses of members that outlive the engine: those that worked are kept in the database and
//! dialed at the next start.

use std::collections::{BTreeMap, BTreeSet};

use wavesync_core::ids::Millis;
use wavesync_core::machine::PeerReport;
use wavesync_core::store::Store;

use crate::PeerKey;
use crate::driver::dialer::Dialer;

/// Ways that failed and are remembered, so that each is written once; beyond that none is written.
const FAILED_MAX: usize = 4_096;

/// What this engine has found out and not written yet.
#[derive(Default)]
pub struct Book {
    /// Where a peer was reached that is connected and not proven to be a member yet.
    reached: BTreeMap<PeerKey, String>,
    /// Ways that failed; once for each engine is enough.
    failed: BTreeSet<(PeerKey, String)>,
    unwritten: Vec<(PeerKey, String, bool)>,
}

impl Book {
    /// Tells a dialer of the members that were reached before.
    pub fn open(store: &Store, dialer: &mut Dialer, now: Millis) -> Self {
        // Without the book the group is found as if this were the first time.
        for member in store.known_members().unwrap_or_default() {
            if let Ok(peer) = PeerKey::from_bytes(&member.peer)
                && !member.addresses.is_empty()
            {
                dialer.recall(peer, &member.addresses, now);
            }
        }
        Self::default()
    }

    /// A peer was dialed and is there.
    pub fn reached(&mut self, peer: &PeerKey, address: &str) {
        self.reached.insert(peer.clone(), place(address));
    }

    /// A peer is gone. If it has not proven anything until now, its address is nobody's.
    pub fn left(&mut self, peer: &PeerKey) {
        self.reached.remove(peer);
    }

    /// A peer was dialed in vain.
    pub fn failed(&mut self, peer: &PeerKey, address: &str) {
        if self.failed.len() >= FAILED_MAX {
            return;
        }
        let way = (peer.clone(), place(address));
        if self.failed.insert(way.clone()) {
            self.unwritten.push((way.0, way.1, false));
        }
    }

    /// Writes what is known by now. Only proven members are remembered.
    pub fn write(&mut self, now: Millis, peers: &[PeerReport], store: &mut Store) {
        for report in peers.iter().filter(|report| report.site.is_some()) {
            if self.reached.is_empty() {
                break;
            }
            if let Ok(peer) = PeerKey::from_bytes(&report.peer.0)
                && let Some(address) = self.reached.remove(&peer)
            {
                self.failed.remove(&(peer.clone(), address.clone()));
                self.unwritten.push((peer, address, true));
            }
        }
        // What SQLite cannot take now is tried again.
        self.unwritten.retain(|(peer, address, reached)| {
            store.note_address(now, peer.as_bytes(), address, *reached).is_err()
        });
    }
}

/// An address without the id of the peer that it leads to.
fn place(address: &str) -> String {
    match address.rsplit_once("/p2p/") {
        Some((place, last)) if !last.contains('/') => place.to_owned(),
        _ => address.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_proves_to_be_a_member_is_not_kept() {
        let mut book = Book::default();
        let peer = |number: u32| {
            // The form of an ed25519 identity: a hash function, a length, the key in its envelope.
            let mut bytes = vec![0, 36, 8, 1, 18, 32];
            bytes.resize(34, 7);
            bytes.extend_from_slice(&number.to_be_bytes());
            PeerKey::from_bytes(&bytes).expect("a peer id")
        };
        for number in 0..10_000 {
            let peer = peer(number);
            book.reached(&peer, "/ip4/192.0.2.7/tcp/1");
            book.failed(&peer, "/ip4/192.0.2.7/tcp/2");
            book.left(&peer);
        }
        assert_eq!(book.reached.len(), 0);
        assert_eq!((book.failed.len(), book.unwritten.len()), (FAILED_MAX, FAILED_MAX));
    }

    #[test]
    fn only_the_last_id_is_left_out() {
        assert_eq!(place("/ip4/192.0.2.7/tcp/1"), "/ip4/192.0.2.7/tcp/1");
        assert_eq!(place("/ip4/192.0.2.7/tcp/1/p2p/12D3K"), "/ip4/192.0.2.7/tcp/1");
        let circuit = "/ip4/192.0.2.7/tcp/1/p2p/12D3K/p2p-circuit";
        assert_eq!(place(&format!("{circuit}/p2p/12D3L")), circuit);
        assert_eq!(place(circuit), circuit);
    }
}
