//! How fast a stream is on loopback, two networks on two threads:
//! `cargo run --release -p wavesync-net --example throughput`.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::{
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use wavesync_net::{Config, Event, Network, OUTBOUND_QUEUE_HIGH_BYTES, StreamId};

const BULK_BYTES: usize = 512 * 1024 * 1024;
const BULK_FRAME_BYTES: usize = 256 * 1024;
const ROUND_TRIPS: usize = 5000;
const SMALL_FRAME_BYTES: usize = 1024;

fn network(number: u8) -> Network {
    let listen = vec!["/ip4/127.0.0.1/tcp/0".to_owned()];
    Network::new(Config {
        identity: [number; 32],
        listen,
        lan_key: None,
        relays: Vec::new(),
        direct: false,
    })
    .unwrap()
}

async fn first<T>(network: &mut Network, wanted: impl Fn(Event) -> Option<T>) -> T {
    loop {
        if let Some(found) = wanted(network.next_event().await) {
            return found;
        }
    }
}

/// Sends every small frame back and counts large ones; answers each full bulk with one frame.
async fn serve(mut network: Network, address: mpsc::Sender<String>) {
    let mut received = 0;
    loop {
        match network.next_event().await {
            Event::Listening { address: listening } => address.send(listening).unwrap(),
            Event::Connected { peer, .. } => network.admit(&peer),
            Event::Frame { stream, bytes } if bytes.len() == SMALL_FRAME_BYTES => {
                network.send(stream, bytes);
            }
            Event::Frame { stream, bytes } => {
                received += bytes.len();
                if received == BULK_BYTES {
                    network.send(stream, vec![1; SMALL_FRAME_BYTES]);
                }
            }
            Event::Disconnected { .. } => return,
            _ => {}
        }
    }
}

async fn answer(network: &mut Network, on: StreamId) {
    first(network, |event| match event {
        Event::Frame { stream, .. } if stream == on => Some(()),
        _ => None,
    })
    .await;
}

async fn measure(mut network: Network, address: String) {
    network.dial(&address).unwrap();
    let peer = first(&mut network, |event| match event {
        Event::Connected { peer, .. } => Some(peer),
        _ => None,
    })
    .await;
    network.admit(&peer);
    network.open_stream(&peer, 0);
    let stream = first(&mut network, |event| match event {
        Event::StreamOpened { stream, .. } => Some(stream),
        _ => None,
    })
    .await;
    let started = Instant::now();
    for _ in 0..ROUND_TRIPS {
        network.send(stream, vec![0; SMALL_FRAME_BYTES]);
        answer(&mut network, stream).await;
    }
    let each = started.elapsed() / ROUND_TRIPS as u32;
    println!("{SMALL_FRAME_BYTES} bytes there and back: {each:?}");

    let started = Instant::now();
    let mut sent = 0;
    while sent < BULK_BYTES {
        while sent < BULK_BYTES && network.queued_bytes(stream) <= OUTBOUND_QUEUE_HIGH_BYTES {
            network.send(stream, vec![7; BULK_FRAME_BYTES]);
            sent += BULK_FRAME_BYTES;
        }
        if sent < BULK_BYTES {
            let drained = |event| matches!(event, Event::Drained { .. }).then_some(());
            first(&mut network, drained).await;
        }
    }
    answer(&mut network, stream).await;
    let rate = BULK_BYTES as f64 / 1e6 / started.elapsed().as_secs_f64();
    println!("bulk: {rate:.0} MB/s");
    network.shutdown(Duration::from_secs(2)).await;
}

fn main() {
    let (sender, receiver) = mpsc::channel();
    let server = thread::spawn(move || smol::block_on(serve(network(1), sender)));
    let address = receiver.recv().unwrap();
    smol::block_on(measure(network(2), address));
    server.join().unwrap();
}
