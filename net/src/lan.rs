//! Finding members of the group in the local network by multicast DNS.
//!
//! What is announced is our peer id, where we listen, and a tag that only members of the group can
//! tell from random bytes. It is another one for each member, so nobody else learns who belongs
//! together. mdns-sd works on a thread of its own.

use std::{
    collections::HashMap,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures::{FutureExt, Stream, StreamExt, stream::BoxStream};
use libp2p::{Multiaddr, PeerId, multiaddr::Protocol};
use mdns_sd::{ResolvedService, ServiceDaemon, ServiceEvent, ServiceInfo};
use wavesync_core::auth::lan_tag;

const SERVICE: &str = "_wavesync._tcp.local.";
const KEY_TAG: &str = "tag";
const KEY_PEER: &str = "peer";
/// Addresses have the keys `a0`, `a1`, …
const KEY_ADDRESS_PREFIX: &str = "a";
/// Addresses announced, and taken from one announcement.
const ADDRESSES_MAX: usize = 12;
/// The longest address that fits a TXT record together with its key.
const ADDRESS_MAX_BYTES: usize = 240;
/// Members remembered, so that each announcement is reported once.
const REMEMBERED_PEERS_MAX: usize = 1024;
/// How much of the peer id makes an instance's name unique (a DNS label has at most 63 bytes).
const NAME_PEER_CHARACTERS: usize = 20;

/// A member of the group in the local network.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) peer: PeerId,
    pub(crate) addresses: Vec<Multiaddr>,
}

pub(crate) struct Lan {
    daemon: ServiceDaemon,
    events: BoxStream<'static, ServiceEvent>,
    key: [u8; 32],
    local: PeerId,
    announced: Vec<Multiaddr>,
    /// By the full name of the service instance.
    known: HashMap<String, Found>,
}

impl Lan {
    /// Starts looking; announces nothing before `announce`.
    pub(crate) fn start(key: [u8; 32], local: PeerId) -> Result<Lan, mdns_sd::Error> {
        let daemon = ServiceDaemon::new()?;
        let events = daemon.browse(SERVICE)?.into_stream().boxed();
        Ok(Lan { daemon, events, key, local, announced: Vec::new(), known: HashMap::new() })
    }

    /// Announces where we listen, replacing what was announced before.
    pub(crate) fn announce(&mut self, listening: &[Multiaddr]) -> Result<(), mdns_sd::Error> {
        let addresses = announceable(listening);
        if addresses == self.announced || addresses.is_empty() {
            return Ok(());
        }
        let mut properties = HashMap::from([
            (KEY_TAG.to_owned(), tag(&self.key, self.local)),
            (KEY_PEER.to_owned(), self.local.to_string()),
        ]);
        for (number, address) in addresses.iter().enumerate() {
            properties.insert(format!("{KEY_ADDRESS_PREFIX}{number}"), address.to_string());
        }
        let port = addresses.iter().find_map(tcp_port).unwrap_or(0);
        let name = self.instance();
        let host = format!("{name}.local.");
        let mut service =
            ServiceInfo::new(SERVICE, &name, &host, (), port, properties)?.enable_addr_auto();
        // The name holds a part of our peer id: nobody else can have it.
        service.set_requires_probe(false);
        self.daemon.register(service)?;
        self.announced = addresses;
        Ok(())
    }

    /// Takes the announcement back, so that others forget us at once.
    pub(crate) async fn stop(self) {
        let full_name = format!("{}.{SERVICE}", self.instance());
        if !self.announced.is_empty()
            && let Ok(answer) = self.daemon.unregister(&full_name)
        {
            let _answered = answer.recv_async().await;
        }
        if let Ok(answer) = self.daemon.shutdown() {
            let _answered = answer.recv_async().await;
        }
    }

    fn instance(&self) -> String {
        let peer = self.local.to_string();
        let start = peer.len().saturating_sub(NAME_PEER_CHARACTERS);
        format!("{}-{}", tag(&self.key, self.local), &peer[start..])
    }

    fn found(&mut self, service: &ResolvedService) -> Option<Found> {
        let found = parse(service, &self.key).filter(|found| found.peer != self.local)?;
        if self.known.get(&service.fullname) == Some(&found) {
            return None;
        }
        if self.known.len() >= REMEMBERED_PEERS_MAX {
            self.known.clear();
        }
        let copy = Found { peer: found.peer, addresses: found.addresses.clone() };
        self.known.insert(service.fullname.clone(), copy);
        Some(found)
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        // Ends mdns-sd's thread; a second call after `stop` changes nothing.
        let _ended = self.daemon.shutdown();
    }
}

impl Stream for Lan {
    type Item = Found;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Found>> {
        loop {
            match self.events.poll_next_unpin(context) {
                Poll::Ready(Some(ServiceEvent::ServiceResolved(service))) => {
                    if let Some(found) = self.found(&service) {
                        return Poll::Ready(Some(found));
                    }
                }
                Poll::Ready(Some(ServiceEvent::ServiceRemoved(_, full_name))) => {
                    self.known.remove(&full_name);
                }
                Poll::Ready(Some(_)) => {}
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

/// Gives `lan.stop()` until `deadline`.
pub(crate) async fn stop_within(lan: Lan, deadline: Duration) {
    futures::select! {
        () = std::pin::pin!(lan.stop().fuse()) => {}
        () = std::pin::pin!(crate::time::sleep(deadline).fuse()) => {}
    }
}

/// What others can dial: no loopback, unless there is nothing else (several processes on a machine
/// without a network).
fn announceable(listening: &[Multiaddr]) -> Vec<Multiaddr> {
    let fits = |address: &&Multiaddr| address.to_string().len() <= ADDRESS_MAX_BYTES;
    let (local, reachable): (Vec<_>, Vec<_>) =
        listening.iter().filter(fits).cloned().partition(is_loopback);
    let mut chosen = if reachable.is_empty() { local } else { reachable };
    chosen.sort_by_key(|address| address.to_string());
    chosen.truncate(ADDRESSES_MAX);
    chosen
}

fn is_loopback(address: &Multiaddr) -> bool {
    match address.iter().next() {
        Some(Protocol::Ip4(ip)) => ip.is_loopback(),
        Some(Protocol::Ip6(ip)) => ip.is_loopback(),
        _ => false,
    }
}

fn tcp_port(address: &Multiaddr) -> Option<u16> {
    address.iter().find_map(|part| match part {
        Protocol::Tcp(port) => Some(port),
        _ => None,
    })
}

fn parse(service: &ResolvedService, key: &[u8; 32]) -> Option<Found> {
    let peer: PeerId = service.get_property_val_str(KEY_PEER)?.parse().ok()?;
    if service.get_property_val_str(KEY_TAG)? != tag(key, peer) {
        return None;
    }
    let addresses: Vec<Multiaddr> = (0..ADDRESSES_MAX)
        .filter_map(|number| {
            let text = service.get_property_val_str(&format!("{KEY_ADDRESS_PREFIX}{number}"))?;
            text.parse().ok()
        })
        .collect();
    (!addresses.is_empty()).then_some(Found { peer, addresses })
}

/// The tag of a member, in hexadecimal digits.
fn tag(key: &[u8; 32], member: PeerId) -> String {
    let member = wavesync_core::machine::PeerId(member.to_bytes());
    lan_tag(key, &member).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn loopback_is_announced_only_when_there_is_nothing_else() {
        let local: Multiaddr = "/ip4/127.0.0.1/tcp/1".parse().unwrap();
        let reachable: Multiaddr = "/ip4/192.0.2.1/tcp/1".parse().unwrap();
        assert_eq!(announceable(&[local.clone(), reachable.clone()]), vec![reachable]);
        assert_eq!(announceable(std::slice::from_ref(&local)), vec![local]);
    }
}
