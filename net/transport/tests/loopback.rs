//! The transport on the loopback interface: what is dialed arrives, what can not be dialed says why.
#![allow(clippy::unwrap_used)]

use std::{
    future::Future,
    net::{Ipv6Addr, TcpListener},
    pin::Pin,
    time::Duration,
};

use futures::{AsyncReadExt, AsyncWriteExt, FutureExt, future};
use libp2p::core::{
    Endpoint,
    multiaddr::{Multiaddr, Protocol},
    transport::{DialOpts, ListenerId, PortUse, Transport, TransportError, TransportEvent},
};
use wavesync_transport::{DnsError, DnsTransport, TcpStream, TcpTransport};

type Dns = DnsTransport<TcpTransport>;

fn options(port_use: PortUse) -> DialOpts {
    DialOpts { role: Endpoint::Dialer, port_use }
}

fn new_transport() -> Dns {
    DnsTransport::new(TcpTransport::new())
}

/// Every test ends, with a failure rather than never.
fn run<R>(test: impl Future<Output = R>) -> R {
    smol::block_on(async {
        let deadline = async_io::Timer::after(Duration::from_secs(30));
        match future::select(Box::pin(test), deadline).await {
            future::Either::Left((result, _)) => result,
            future::Either::Right(_) => panic!("the test did not finish in 30 s"),
        }
    })
}

type Event = TransportEvent<<Dns as Transport>::ListenerUpgrade, <Dns as Transport>::Error>;

async fn next(transport: &mut Dns) -> Event {
    future::poll_fn(|context| Transport::poll(Pin::new(&mut *transport), context)).await
}

async fn listen(transport: &mut Dns, address: &str) -> Multiaddr {
    transport.listen_on(ListenerId::next(), address.parse().unwrap()).unwrap();
    match next(transport).await {
        TransportEvent::NewAddress { listen_addr, .. } => listen_addr,
        other => panic!("expected an address, got {other:?}"),
    }
}

async fn accept(transport: &mut Dns) -> (TcpStream, Multiaddr) {
    loop {
        if let TransportEvent::Incoming { upgrade, send_back_addr, .. } = next(transport).await {
            return (upgrade.await.unwrap(), send_back_addr);
        }
    }
}

fn port_of(address: &Multiaddr) -> u16 {
    address
        .iter()
        .find_map(|part| match part {
            Protocol::Tcp(port) => Some(port),
            _ => None,
        })
        .unwrap()
}

async fn bytes_go_both_ways(listen_address: &str) {
    let mut listener = new_transport();
    let address = listen(&mut listener, listen_address).await;
    assert_ne!(port_of(&address), 0);
    let mut dialer = new_transport();
    let dial = dialer.dial(address, options(PortUse::New)).unwrap();
    let (dialed, (mut accepted, _)) = future::join(dial, accept(&mut listener)).await;
    let mut dialed = dialed.unwrap();
    assert!(dialed.get_ref().nodelay().unwrap() && accepted.get_ref().nodelay().unwrap());
    dialed.write_all(b"ping").await.unwrap();
    let mut buffer = [0; 4];
    accepted.read_exact(&mut buffer).await.unwrap();
    assert_eq!(&buffer, b"ping");
    accepted.write_all(b"pong").await.unwrap();
    dialed.read_exact(&mut buffer).await.unwrap();
    assert_eq!(&buffer, b"pong");
}

#[test]
fn dial_and_listen_on_ip4() {
    run(bytes_go_both_ways("/ip4/127.0.0.1/tcp/0"));
}

#[test]
fn dial_and_listen_on_ip6() {
    if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_err() {
        eprintln!("SKIPPED dial_and_listen_on_ip6: this machine has no IPv6 loopback");
        return;
    }
    run(bytes_go_both_ways("/ip6/::1/tcp/0"));
}

#[test]
fn any_address_becomes_the_addresses_of_the_machine() {
    run(async {
        let mut listener = new_transport();
        let wildcard: Multiaddr = "/ip4/0.0.0.0/tcp/0".parse().unwrap();
        listener.listen_on(ListenerId::next(), wildcard).unwrap();
        loop {
            let TransportEvent::NewAddress { listen_addr, .. } = next(&mut listener).await else {
                panic!("only addresses can be announced here");
            };
            let first = listen_addr.iter().next().unwrap();
            assert_ne!(first, Protocol::Ip4(std::net::Ipv4Addr::UNSPECIFIED));
            if first == Protocol::Ip4(std::net::Ipv4Addr::LOCALHOST) {
                let mut dialer = new_transport();
                let dial = dialer.dial(listen_addr, options(PortUse::New)).unwrap();
                let (dialed, _) = future::join(dial, accept(&mut listener)).await;
                dialed.unwrap();
                return;
            }
        }
    });
}

#[test]
fn a_removed_listener_says_that_it_closed_and_frees_its_port() {
    run(async {
        let mut transport = new_transport();
        let id = ListenerId::next();
        transport.listen_on(id, "/ip4/127.0.0.1/tcp/0".parse().unwrap()).unwrap();
        let TransportEvent::NewAddress { listen_addr, .. } = next(&mut transport).await else {
            panic!("expected an address");
        };
        assert!(transport.remove_listener(id));
        match next(&mut transport).await {
            TransportEvent::ListenerClosed { listener_id, reason: Ok(()) } => {
                assert_eq!(listener_id, id);
            }
            other => panic!("expected the end, got {other:?}"),
        }
        assert!(next(&mut transport).now_or_never().is_none());
        assert!(!transport.remove_listener(id));
        listen(&mut new_transport(), &listen_addr.to_string()).await;
    });
}

#[test]
fn a_fixed_port_that_is_taken_is_refused() {
    run(async {
        let mut first = new_transport();
        let address = listen(&mut first, "/ip4/127.0.0.1/tcp/0").await;
        let error = new_transport().listen_on(ListenerId::next(), address).unwrap_err();
        let TransportError::Other(DnsError::Transport(error)) = error else {
            panic!("expected a socket error, got {error:?}");
        };
        assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    });
}

#[test]
fn nobody_listening_is_refused() {
    run(async {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut dialer = new_transport();
        let address = format!("/ip4/127.0.0.1/tcp/{free}").parse().unwrap();
        match dialer.dial(address, options(PortUse::New)).unwrap().await {
            Err(DnsError::Transport(error)) => {
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
            }
            other => panic!("expected a refusal, got {other:?}"),
        }
    });
}

#[test]
fn foreign_addresses_are_left_to_other_transports() {
    for address in ["/ip4/127.0.0.1/udp/1", "/ip4/127.0.0.1/tcp/0", "/ip4/0.0.0.0/tcp/1"] {
        let dial = new_transport().dial(address.parse().unwrap(), options(PortUse::New));
        assert!(matches!(dial, Err(TransportError::MultiaddrNotSupported(_))), "{address}");
    }
}

#[test]
fn names_are_resolved_and_tried_in_order() {
    run(async {
        let mut listener = new_transport();
        let port = port_of(&listen(&mut listener, "/ip4/127.0.0.1/tcp/0").await);
        // `localhost` under /dns may give ::1 first, where nobody listens: the next one connects.
        for kind in ["dns4", "dns"] {
            let mut dialer = new_transport();
            let address = format!("/{kind}/localhost/tcp/{port}").parse().unwrap();
            let dial = dialer.dial(address, options(PortUse::New)).unwrap();
            let (dialed, _) = future::join(dial, accept(&mut listener)).await;
            dialed.unwrap();
        }
    });
}

#[test]
fn a_name_that_is_not_there_says_so() {
    run(async {
        let address = "/dns4/no-such-host.invalid/tcp/1".parse().unwrap();
        let dial = new_transport().dial(address, options(PortUse::New)).unwrap();
        let error = dial.await.unwrap_err();
        assert!(matches!(error, DnsError::Resolve { .. }), "{error:?}");
        assert!(error.to_string().contains("no-such-host.invalid"), "{error}");
    });
}

#[test]
fn dnsaddr_is_refused_with_a_reason() {
    let address = "/dnsaddr/bootstrap.example".parse().unwrap();
    let Err(TransportError::Other(error)) = new_transport().dial(address, options(PortUse::New))
    else {
        panic!("expected an error");
    };
    assert!(error.to_string().contains("/dns4"), "{error}");
}

#[test]
fn a_dial_can_leave_from_the_listening_port() {
    if cfg!(not(unix)) {
        return;
    }
    run(async {
        let mut listener = new_transport();
        let target = listen(&mut listener, "/ip4/127.0.0.1/tcp/0").await;
        let mut dialer = new_transport();
        let own_port = port_of(&listen(&mut dialer, "/ip4/127.0.0.1/tcp/0").await);
        let dial = dialer.dial(target.clone(), options(PortUse::Reuse)).unwrap();
        let (first, (_kept, from)) = future::join(dial, accept(&mut listener)).await;
        let _first = first.unwrap();
        assert_eq!(port_of(&from), own_port);
        // Both ends are taken now: a second connection leaves from a fresh port.
        let dial = dialer.dial(target, options(PortUse::Reuse)).unwrap();
        let (second, (_, from)) = future::join(dial, accept(&mut listener)).await;
        second.unwrap();
        assert_ne!(port_of(&from), own_port);
    });
}

#[test]
fn many_connections_at_once() {
    const CONNECTIONS: usize = 200;
    run(async {
        let mut listener = new_transport();
        let address = listen(&mut listener, "/ip4/127.0.0.1/tcp/0").await;
        let dials = (0..CONNECTIONS).map(|number| {
            let address = address.clone();
            async move {
                let dial = new_transport().dial(address, options(PortUse::New)).unwrap();
                let mut stream = dial.await.unwrap();
                stream.write_all(&(number as u32).to_be_bytes()).await.unwrap();
                let mut echo = [0; 4];
                stream.read_exact(&mut echo).await.unwrap();
                assert_eq!(u32::from_be_bytes(echo), number as u32);
            }
        });
        let echoes = async {
            let mut streams = Vec::new();
            for _ in 0..CONNECTIONS {
                streams.push(accept(&mut listener).await.0);
            }
            for stream in &mut streams {
                let mut buffer = [0; 4];
                stream.read_exact(&mut buffer).await.unwrap();
                stream.write_all(&buffer).await.unwrap();
            }
        };
        future::join(future::join_all(dials), echoes).await;
    });
}
