//! Between multiaddresses and socket addresses. Knows no socket.

use std::net::{IpAddr, SocketAddr};

use libp2p::core::multiaddr::{Multiaddr, Protocol};

/// The socket address of `/ip4|ip6/…/tcp/…`, with or without `/p2p/…` at its end. Anything else
/// (a name, a websocket, a circuit) belongs to another transport and gives `None`.
pub(crate) fn to_socket_address(address: &Multiaddr) -> Option<SocketAddr> {
    let mut parts = address.iter();
    let ip = match parts.next()? {
        Protocol::Ip4(ip) => IpAddr::V4(ip),
        Protocol::Ip6(ip) => IpAddr::V6(ip),
        _ => return None,
    };
    let Protocol::Tcp(port) = parts.next()? else { return None };
    match (parts.next(), parts.next()) {
        (None, None) | (Some(Protocol::P2p(_)), None) => Some(SocketAddr::new(ip, port)),
        _ => None,
    }
}

/// `/ip4|ip6/…/tcp/…` for a socket address.
pub(crate) fn to_multiaddr(address: SocketAddr) -> Multiaddr {
    Multiaddr::from(address.ip()).with(Protocol::Tcp(address.port()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_plain_tcp_is_ours() {
        for ours in ["/ip4/127.0.0.1/tcp/4001", "/ip6/::1/tcp/1"] {
            let address: Multiaddr = ours.parse().unwrap();
            assert_eq!(to_multiaddr(to_socket_address(&address).unwrap()), address);
        }
        let peer = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN";
        let with_peer = format!("/ip4/1.2.3.4/tcp/5/p2p/{peer}").parse().unwrap();
        assert_eq!(to_socket_address(&with_peer), Some("1.2.3.4:5".parse().unwrap()));
        for other in [
            "/ip4/1.2.3.4/udp/1".to_owned(),
            "/dns4/host/tcp/1".to_owned(),
            "/ip4/1.2.3.4/tcp/1/ws".to_owned(),
            "/ip4/1.2.3.4".to_owned(),
            format!("/ip4/1.2.3.4/tcp/5/p2p/{peer}/p2p-circuit"),
        ] {
            assert_eq!(to_socket_address(&other.parse().unwrap()), None, "{other}");
        }
    }
}
