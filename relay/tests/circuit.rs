//! The relay as a process, and libp2p relay clients on our own transport that use it.
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    future::Future,
    io::{self, Read},
    process::{Command, ExitStatus, Stdio},
    time::Duration,
};

use common::Relay;

use futures::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, FutureExt, StreamExt, future, select,
};
use libp2p::{
    Multiaddr, PeerId, StreamProtocol, Swarm, Transport,
    core::{muxing::StreamMuxerBox, transport::OrTransport, upgrade::Version},
    identity::Keypair,
    multiaddr::Protocol,
    noise, relay,
    request_response::{self, ProtocolSupport},
    swarm::{self, NetworkBehaviour, SwarmEvent},
    yamux,
};
use wavesync_transport::{DnsTransport, TcpTransport};

const DEADLINE_SECONDS: u64 = 30;
/// Far beyond the 128 KiB of libp2p's own relay limits.
const PAYLOAD_BYTES: usize = 4 * 1024 * 1024;

/// Bytes that go over and come back the other way round.
#[derive(Clone, Default)]
struct Bytes;

impl request_response::Codec for Bytes {
    type Protocol = StreamProtocol;
    type Request = Vec<u8>;
    type Response = Vec<u8>;

    async fn read_request<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Vec<u8>>
    where
        T: AsyncRead + Unpin + Send,
    {
        let mut bytes = Vec::new();
        io.read_to_end(&mut bytes).await?;
        Ok(bytes)
    }

    async fn read_response<T>(&mut self, p: &StreamProtocol, io: &mut T) -> io::Result<Vec<u8>>
    where
        T: AsyncRead + Unpin + Send,
    {
        self.read_request(p, io).await
    }

    async fn write_request<T>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        bytes: Vec<u8>,
    ) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        io.write_all(&bytes).await
    }

    async fn write_response<T>(
        &mut self,
        p: &StreamProtocol,
        io: &mut T,
        bytes: Vec<u8>,
    ) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        self.write_request(p, io, bytes).await
    }
}

#[derive(NetworkBehaviour)]
struct Behaviour {
    relay: relay::client::Behaviour,
    bytes: request_response::Behaviour<Bytes>,
}

fn client() -> Swarm<Behaviour> {
    let keypair = Keypair::generate_ed25519();
    let local = keypair.public().to_peer_id();
    let (circuits, relay) = relay::client::new(local);
    let transport = OrTransport::new(circuits, DnsTransport::new(TcpTransport::new()))
        .upgrade(Version::V1)
        .authenticate(noise::Config::new(&keypair).unwrap())
        .multiplex(yamux::Config::default())
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)))
        .boxed();
    let bytes = request_response::Behaviour::new(
        [(StreamProtocol::new("/test/bytes"), ProtocolSupport::Full)],
        request_response::Config::default(),
    );
    let config = swarm::Config::with_executor(|task| smol::spawn(task).detach())
        .with_idle_connection_timeout(Duration::from_secs(DEADLINE_SECONDS));
    Swarm::new(transport, Behaviour { relay, bytes }, local, config)
}

/// Every test ends, with a failure rather than never.
fn run<R>(test: impl Future<Output = R>) -> R {
    smol::block_on(async {
        let deadline = smol::Timer::after(Duration::from_secs(DEADLINE_SECONDS));
        match future::select(Box::pin(test), deadline).await {
            future::Either::Left((result, _)) => result,
            future::Either::Right(_) => panic!("the test did not finish in {DEADLINE_SECONDS} s"),
        }
    })
}

/// Reserves a place at the relay; the limit that it announces for circuits.
async fn reserve(swarm: &mut Swarm<Behaviour>, relay: &Multiaddr) -> Option<String> {
    swarm.listen_on(relay.clone().with(Protocol::P2pCircuit)).unwrap();
    loop {
        match swarm.select_next_some().await {
            SwarmEvent::Behaviour(BehaviourEvent::Relay(
                relay::client::Event::ReservationReqAccepted { limit, .. },
            )) => return limit.map(|limit| format!("{limit:?}")),
            SwarmEvent::ListenerClosed { reason, .. } => panic!("no reservation: {reason:?}"),
            SwarmEvent::OutgoingConnectionError { error, .. } => panic!("no relay: {error}"),
            _ => {}
        }
    }
}

/// Answers every request with its bytes reversed.
async fn answer(mut swarm: Swarm<Behaviour>) {
    loop {
        if let SwarmEvent::Behaviour(BehaviourEvent::Bytes(request_response::Event::Message {
            message: request_response::Message::Request { mut request, channel, .. },
            ..
        })) = swarm.select_next_some().await
        {
            request.reverse();
            swarm.behaviour_mut().bytes.send_response(channel, request).unwrap();
        }
    }
}

/// Sends bytes to `peer` through the relay and gives what came back.
async fn ask(
    swarm: &mut Swarm<Behaviour>,
    relay: &Multiaddr,
    peer: PeerId,
    payload: Vec<u8>,
) -> Vec<u8> {
    let circuit = relay.clone().with(Protocol::P2pCircuit).with(Protocol::P2p(peer));
    swarm.dial(circuit).unwrap();
    loop {
        match swarm.select_next_some().await {
            SwarmEvent::ConnectionEstablished { peer_id, endpoint, .. } if peer_id == peer => {
                assert!(endpoint.is_relayed());
                swarm.behaviour_mut().bytes.send_request(&peer, payload.clone());
            }
            SwarmEvent::Behaviour(BehaviourEvent::Bytes(request_response::Event::Message {
                message: request_response::Message::Response { response, .. },
                ..
            })) => return response,
            SwarmEvent::Behaviour(BehaviourEvent::Bytes(
                request_response::Event::OutboundFailure { error, .. },
            )) => panic!("the bytes did not get through: {error}"),
            SwarmEvent::OutgoingConnectionError { error, .. } => panic!("no circuit: {error}"),
            _ => {}
        }
    }
}

#[test]
fn a_circuit_carries_more_than_the_usual_limit() {
    let directory = tempfile::tempdir().unwrap();
    let mut relay = Relay::start(&directory.path().join("key"));
    let address = relay.address();
    run(async {
        let mut server = client();
        let peer = *server.local_peer_id();
        let limit = reserve(&mut server, &address).await.unwrap();
        assert!(limit.contains("86400s"), "a day: {limit}");
        assert!(limit.contains("data_in_bytes: Some(0)"), "no limit of bytes: {limit}");
        let payload: Vec<u8> = (0..PAYLOAD_BYTES).map(|number| (number % 251) as u8).collect();
        let mut expected = payload.clone();
        expected.reverse();
        let mut asker = client();
        let response = select! {
            response = Box::pin(ask(&mut asker, &address, peer, payload)).fuse() => response,
            () = Box::pin(answer(server)).fuse() => unreachable!("it answers for ever"),
        };
        assert!(response == expected, "{} bytes came back", response.len());
    });
    assert!(relay.end_by("TERM").success());
}

#[test]
fn the_identity_is_kept_and_private() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("key");
    let mut peers = Vec::new();
    for signal in ["INT", "TERM"] {
        let mut relay = Relay::start(&path);
        match relay.address().iter().last() {
            Some(Protocol::P2p(peer)) => peers.push(peer),
            other => panic!("expected a peer id, got {other:?}"),
        }
        assert!(relay.end_by(signal).success());
    }
    assert_eq!(peers[0], peers[1]);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    std::fs::write(&path, "not a key").unwrap();
    let (status, said) = run_to_end(&["--identity", path.to_str().unwrap()]);
    assert!(!status.success());
    assert!(said.contains("holds no key"), "{said}");
}

#[test]
fn what_can_not_work_ends_with_a_reason() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("/ip4/127.0.0.1/tcp/{}", taken.local_addr().unwrap().port());
    for (arguments, named) in [
        (vec!["--listen", address.as_str()], address.as_str()),
        (vec!["--listen", "127.0.0.1:1"], "--help"),
        (vec!["--listen", "/ip4/127.0.0.1/udp/1"], "/udp/1"),
    ] {
        let (status, said) = run_to_end(&arguments);
        assert!(!status.success());
        assert!(said.contains(named), "{said}");
    }
}

fn run_to_end(arguments: &[&str]) -> (ExitStatus, String) {
    let mut process = Command::new(env!("CARGO_BIN_EXE_wavesync-relay"))
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    process.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    (process.wait().unwrap(), said)
}
