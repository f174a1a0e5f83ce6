//! Connections, addresses, the local network and the end of a network.
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use common::{Hosts, config};
use futures::future;
use wavesync_net::{Event, NetError, Network, PeerKey};

#[test]
fn one_connected_with_the_proven_peer() {
    smol::block_on(async {
        let mut hosts = Hosts::listening(2).await;
        let address = hosts.address(1);
        let plain = hosts.networks[1].listen_addresses().remove(0);
        assert!(!plain.ends_with("/tcp/0"), "{plain}");
        // Without the peer id in the address: the handshake tells who it is.
        hosts.networks[0].dial(&plain).unwrap();
        let wanted = hosts.peer(1);
        let (dialed, relayed, dialer) = hosts
            .wait("connection", |who, event| match event {
                Event::Connected { peer, address, relayed, dialer } if who == 0 => {
                    assert_eq!(*peer, wanted);
                    Some((address.clone(), *relayed, *dialer))
                }
                _ => None,
            })
            .await;
        assert!(dialed == plain && !relayed && dialer);
        hosts.connected(1, 0).await;
        // A second dial to the connected peer does nothing, and neither does one to ourselves.
        hosts.networks[0].dial(&address).unwrap();
        hosts.networks[0].dial(&plain).unwrap();
        let own = hosts.address(0);
        hosts.networks[0].dial(&own).unwrap();
        let own_plain = hosts.networks[0].listen_addresses().remove(0);
        hosts.networks[0].dial(&own_plain).unwrap();
        hosts
            .wait("round trip time", |who, event| match event {
                Event::Rtt { peer, millis } if who == 0 && *peer == wanted && *millis > 0.0 => {
                    Some(())
                }
                _ => None,
            })
            .await;
        let quiet = |(_, event): &(usize, Event)| {
            !matches!(event, Event::Connected { .. } | Event::DialFailed { .. })
        };
        assert!(hosts.unclaimed.iter().all(quiet), "{:?}", hosts.unclaimed);
        let first = hosts.peer(0);
        hosts.networks[1].disconnect(&first);
        for who in 0..2 {
            hosts
                .wait("disconnection", |at, event| {
                    (at == who && matches!(event, Event::Disconnected { .. })).then_some(())
                })
                .await;
        }
    });
}

#[test]
fn both_dial_at_once_and_get_one_connected_each() {
    for _ in 0..5 {
        smol::block_on(async {
            let mut hosts = Hosts::listening(2).await;
            let (first, second) = (hosts.address(0), hosts.address(1));
            hosts.networks[0].dial(&second).unwrap();
            hosts.networks[1].dial(&first).unwrap();
            hosts.connected(0, 1).await;
            hosts.connected(1, 0).await;
            for (from, to) in [(0, 1), (1, 0)] {
                let (here, there) = hosts.open(from, to).await;
                hosts.networks[from].send(here, b"over".to_vec());
                assert_eq!(hosts.frame(to, there).await, b"over");
                hosts.networks[to].send(there, b"back".to_vec());
                assert_eq!(hosts.frame(from, here).await, b"back");
                hosts.networks[from].close_stream(here);
                assert!(hosts.closed(from, here).await.0);
            }
            let again = |(_, event): &(usize, Event)| {
                matches!(event, Event::Connected { .. } | Event::Disconnected { .. })
            };
            assert!(!hosts.unclaimed.iter().any(again), "{:?}", hosts.unclaimed);
        });
    }
}

#[test]
fn a_dial_that_leads_nowhere_says_why() {
    smol::block_on(async {
        let mut hosts = Hosts::listening(2).await;
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let nobody = format!("/ip4/127.0.0.1/tcp/{port}");
        hosts.networks[0].dial(&nobody).unwrap();
        let reason = dial_failure(&mut hosts, &nobody).await;
        assert!(reason.to_lowercase().contains("refused"), "{reason}");
        // Somebody else answers there.
        let other: PeerKey =
            "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN".parse().unwrap();
        let address = hosts.networks[1].listen_addresses().remove(0);
        hosts.networks[0].dial_peer(&other, std::slice::from_ref(&address)).unwrap();
        let reason = dial_failure(&mut hosts, &address).await;
        assert!(reason.contains(&hosts.peer(1).to_string()), "{reason}");
        // Of several addresses, one that answers is enough.
        let peer = hosts.peer(1);
        hosts.networks[0].dial_peer(&peer, &[nobody, address]).unwrap();
        hosts.connected(0, 1).await;
    });
}

async fn dial_failure(hosts: &mut Hosts, wanted: &str) -> String {
    hosts
        .wait("failed dial", |who, event| match event {
            Event::DialFailed { address, reason, .. } if who == 0 && address == wanted => {
                Some(reason.clone())
            }
            _ => None,
        })
        .await
}

#[test]
fn malformed_addresses_are_refused_at_once() {
    let mut broken = config(0);
    broken.listen = vec!["127.0.0.1:4001".to_owned()];
    match Network::new(broken) {
        Err(NetError::Address { address, .. }) => assert_eq!(address, "127.0.0.1:4001"),
        other => panic!("expected an error, got {:?}", other.err()),
    }
    let mut network = Network::new(config(0)).unwrap();
    for address in ["", "nonsense", "/ip4/300.1.1.1/tcp/1", "/ip4/1.1.1.1/tcp"] {
        assert!(matches!(network.dial(address), Err(NetError::Address { .. })), "{address:?}");
    }
    let peer = network.local_peer().clone();
    assert!(matches!(network.dial_peer(&peer, &[]), Err(NetError::Address { .. })));
    assert_eq!(PeerKey::from_bytes(peer.as_bytes()).unwrap(), peer);
    assert!(PeerKey::from_bytes(&[1, 2, 3]).is_err());
}

#[test]
fn a_taken_port_is_an_event() {
    smol::block_on(async {
        let hosts = Hosts::listening(1).await;
        let taken = hosts.networks[0].listen_addresses().remove(0);
        let mut settings = config(1);
        settings.listen = vec![taken.clone()];
        let second = Network::new(settings).unwrap();
        let mut hosts = Hosts { networks: vec![second], unclaimed: VecDeque::new() };
        hosts
            .wait("failed listener", |_, event| match event {
                Event::ListenFailed { address, .. } if *address == taken => Some(()),
                _ => None,
            })
            .await;
        drop(hosts);
    });
}

#[test]
fn shutdown_delivers_what_was_queued() {
    smol::block_on(async {
        let mut hosts = Hosts::listening(2).await;
        hosts.connect(0, 1).await;
        let (here, there) = hosts.open(0, 1).await;
        for number in 0..40u8 {
            hosts.networks[0].send(here, vec![number; 100_000]);
        }
        let leaving = hosts.networks.remove(0);
        hosts.unclaimed.clear();
        let started = Instant::now();
        let reading = async {
            for number in 0..40u8 {
                assert_eq!(hosts.frame(0, there).await, vec![number; 100_000]);
            }
            assert!(hosts.closed(0, there).await.0);
            hosts
                .wait("disconnection", |_, event| {
                    matches!(event, Event::Disconnected { .. }).then_some(())
                })
                .await;
        };
        future::join(leaving.shutdown(Duration::from_secs(10)), reading).await;
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    });
}

#[test]
fn shutdown_keeps_its_deadline_when_nobody_reads() {
    smol::block_on(async {
        let mut hosts = Hosts::listening(2).await;
        hosts.connect(0, 1).await;
        let (here, _) = hosts.open(0, 1).await;
        for _ in 0..200 {
            hosts.networks[0].send(here, vec![1; 100_000]);
        }
        let started = Instant::now();
        hosts.networks.remove(0).shutdown(Duration::from_millis(800)).await;
        assert!(started.elapsed() < Duration::from_millis(1500), "{:?}", started.elapsed());
    });
}

/// Members find each other in the local network, a host of another group is not reported, and a
/// stranger does not see who belongs together.
#[test]
fn the_local_network_shows_members() {
    if !multicast_works() {
        eprintln!("SKIPPED the_local_network_shows_members: no multicast on this machine");
        return;
    }
    smol::block_on(async {
        let networks = [[7; 32], [7; 32], [8; 32]]
            .iter()
            .enumerate()
            .map(|(number, key)| {
                let mut settings = config(number as u8 + 20);
                settings.listen = vec!["/ip4/0.0.0.0/tcp/0".to_owned()];
                settings.lan_key = Some(*key);
                Network::new(settings).unwrap()
            })
            .collect();
        let mut hosts = Hosts { networks, unclaimed: VecDeque::new() };
        assert_eq!(hosts.networks[0].lan_error(), None);
        let mut addresses = Vec::new();
        for (who, other) in [(0, 1), (1, 0)] {
            let wanted = hosts.peer(other);
            addresses = hosts
                .wait("discovery", |at, event| match event {
                    Event::Discovered { peer, addresses } if at == who => {
                        assert_eq!(*peer, wanted, "neither ourselves nor another group");
                        Some(addresses.clone())
                    }
                    _ => None,
                })
                .await;
        }
        let shown: Vec<_> = (0..3).map(|at| hosts.peer(at).to_string()).collect();
        // Meanwhile the networks go on: the third one may not have been heard of yet.
        let driven = async {
            hosts.wait("what a stranger sees", |_, _| None::<()>).await;
            Vec::new()
        };
        let told = smol::future::or(seen_by_a_stranger(&shown), driven).await;
        for (at, own) in told.iter().enumerate() {
            for other in &told[at + 1..] {
                // Also in pieces: names and tags are apart from each other by chance only.
                let common = |length: usize| {
                    own.as_bytes()
                        .windows(length)
                        .any(|part| other.as_bytes().windows(length).any(|whole| whole == part))
                };
                assert!(!common(9), "{own} {other}");
            }
        }
        // What was announced can be dialed.
        let peer = hosts.peer(0);
        hosts.networks[1].dial_peer(&peer, &addresses).unwrap();
        hosts.connected(1, 0).await;
        let foreign =
            |(who, event): &(usize, Event)| *who == 2 && matches!(event, Event::Discovered { .. });
        assert!(!hosts.unclaimed.iter().any(foreign), "{:?}", hosts.unclaimed);
    });
}

/// What somebody who only listens learns of these peers beside their ids and addresses.
async fn seen_by_a_stranger(peers: &[String]) -> Vec<String> {
    let daemon = mdns_sd::ServiceDaemon::new().unwrap();
    let events = daemon.browse("_wavesync._tcp.local.").unwrap();
    let mut told = std::collections::BTreeMap::new();
    while told.len() < peers.len() {
        let event = events.recv_async().await.unwrap();
        let mdns_sd::ServiceEvent::ServiceResolved(service) = event else { continue };
        let peer = service.get_property_val_str("peer").unwrap().to_owned();
        if peers.contains(&peer) {
            let name = service.fullname.trim_end_matches("._wavesync._tcp.local.").to_owned();
            let tag = service.get_property_val_str("tag").unwrap().to_owned();
            let place = ["peer", "a0", "a1", "a2", "a3", "a4", "a5", "tag"];
            let others: Vec<_> = service
                .get_properties()
                .iter()
                .filter(|property| !place.contains(&property.key()))
                .map(|property| property.key().to_owned())
                .collect();
            assert!(others.is_empty(), "{others:?}");
            told.insert(peer, format!("{name} {tag}"));
        }
    }
    let _ended = daemon.shutdown();
    told.into_values().collect()
}

/// Whether a packet to the group of multicast DNS comes back to this machine.
fn multicast_works() -> bool {
    use std::net::{Ipv4Addr, UdpSocket};
    let group = Ipv4Addr::new(224, 0, 0, 251);
    let try_it = || -> std::io::Result<bool> {
        let receiver = UdpSocket::bind("0.0.0.0:0")?;
        receiver.join_multicast_v4(&group, &Ipv4Addr::UNSPECIFIED)?;
        receiver.set_read_timeout(Some(Duration::from_secs(2)))?;
        let sender = UdpSocket::bind("0.0.0.0:0")?;
        sender.send_to(b"probe", (group, receiver.local_addr()?.port()))?;
        let mut buffer = [0; 16];
        Ok(receiver.recv(&mut buffer)? == 5)
    };
    try_it().unwrap_or(false)
}
