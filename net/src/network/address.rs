//! Reading addresses that people and peers give, and telling why a dial failed.

use std::error::Error;

use libp2p::{
    Multiaddr, PeerId,
    multiaddr::Protocol,
    swarm::{
        DialError,
        dial_opts::{DialOpts, PeerCondition},
    },
};

use crate::error::NetError;

/// An address to dial, taken apart.
pub(super) struct Target {
    /// With `/p2p/<id>` at its end when the peer is known.
    pub(super) address: Multiaddr,
    pub(super) peer: Option<PeerId>,
}

pub(super) fn parse(text: &str) -> Result<Multiaddr, NetError> {
    let failed = |reason: String| NetError::Address { address: text.to_owned(), reason };
    let address: Multiaddr = text.parse().map_err(|error| failed(format!("{error}")))?;
    if address.is_empty() {
        return Err(failed("it is empty".to_owned()));
    }
    Ok(address)
}

pub(super) fn parse_target(text: &str) -> Result<Target, NetError> {
    let address = parse(text)?;
    Ok(Target { peer: peer_of(&address), address })
}

/// The peer that an address ends with.
fn peer_of(address: &Multiaddr) -> Option<PeerId> {
    match address.iter().last() {
        Some(Protocol::P2p(peer)) => Some(peer),
        _ => None,
    }
}

/// `address` with `/p2p/<peer>` at its end, or an error when it names another peer.
pub(super) fn for_peer(text: &str, peer: PeerId) -> Result<Multiaddr, NetError> {
    let address = parse(text)?;
    address.with_p2p(peer).map_err(|_| NetError::Address {
        address: text.to_owned(),
        reason: format!("it belongs to another peer than {peer}"),
    })
}

/// `address` without `/p2p/<id>` at its end.
pub(super) fn without_peer(address: &Multiaddr) -> Multiaddr {
    let mut address = address.clone();
    if peer_of(&address).is_some() {
        address.pop();
    }
    address
}

/// Dials leave from the listening port, so that a NAT shows peers and relays the port that leads
/// to us. In a private network that would only make two peers that dial each other at the same
/// moment meet in one TCP connection with two dialers, which no handshake survives.
pub(super) fn dial_options(peer: PeerId, addresses: Vec<Multiaddr>) -> DialOpts {
    let private = addresses.iter().all(is_private);
    let options =
        DialOpts::peer_id(peer).condition(PeerCondition::Disconnected).addresses(addresses);
    if private { options.allocate_new_port().build() } else { options.build() }
}

/// The same for a peer that only the connection will name.
pub(super) fn dial_options_unnamed(address: Multiaddr) -> DialOpts {
    let private = is_private(&address);
    let options = DialOpts::unknown_peer_id().address(address);
    if private { options.allocate_new_port().build() } else { options.build() }
}

fn is_private(address: &Multiaddr) -> bool {
    match address.iter().next() {
        Some(Protocol::Ip4(ip)) => ip.is_private() || ip.is_loopback() || ip.is_link_local(),
        Some(Protocol::Ip6(ip)) => {
            ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local()
        }
        _ => false,
    }
}

/// The whole story of a failed dial: libp2p's own text leaves the causes out.
pub(super) fn dial_reason(error: &DialError) -> String {
    match error {
        DialError::Transport(attempts) if attempts.len() == 1 => {
            attempts.iter().map(|(_, error)| with_causes(error)).collect()
        }
        DialError::Transport(attempts) => attempts
            .iter()
            .map(|(address, error)| format!("{address}: {}", with_causes(error)))
            .collect::<Vec<_>>()
            .join("; "),
        DialError::WrongPeerId { obtained, .. } => {
            format!("another peer answered there: {obtained}")
        }
        other => with_causes(other),
    }
}

pub(super) fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if text.trim_end_matches([':', ' ']).is_empty() {
            text = said;
        } else if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}
