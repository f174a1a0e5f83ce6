//! Several networks on one thread, driven together, with a deadline on every wait.
#![allow(dead_code, clippy::unwrap_used)]

use std::{collections::VecDeque, time::Duration};

use futures::{FutureExt, future};
use wavesync_net::{Config, Event, Network, PeerKey, StreamId};

pub const DEADLINE_SECONDS: u64 = 30;

pub struct Hosts {
    pub networks: Vec<Network>,
    /// Events that a wait saw and did not want, in their order.
    pub unclaimed: VecDeque<(usize, Event)>,
}

pub fn config(number: u8) -> Config {
    Config {
        identity: [number + 1; 32],
        listen: vec!["/ip4/127.0.0.1/tcp/0".to_owned()],
        lan_key: None,
        relays: Vec::new(),
        direct: false,
    }
}

impl Hosts {
    /// `count` networks that listen on loopback.
    pub async fn listening(count: u8) -> Hosts {
        let networks = (0..count).map(|number| Network::new(config(number)).unwrap()).collect();
        let mut hosts = Hosts { networks, unclaimed: VecDeque::new() };
        for number in 0..usize::from(count) {
            hosts
                .wait("listening", |who, event| {
                    (who == number && matches!(event, Event::Listening { .. })).then_some(())
                })
                .await;
        }
        hosts
    }

    /// The next event of any of them.
    pub async fn next(&mut self) -> (usize, Event) {
        let each = self.networks.iter_mut().enumerate().map(|(who, network)| {
            network.next_event().map(move |event| (who, event)).boxed_local()
        });
        future::select_all(each).await.0
    }

    async fn next_before(&mut self, timer: &mut smol::Timer) -> Option<(usize, Event)> {
        match future::select(Box::pin(self.next()), timer).await {
            future::Either::Left((next, _)) => Some(next),
            future::Either::Right(_) => None,
        }
    }

    /// The first event, seen already or still to come, that `wanted` takes.
    pub async fn wait<T>(&mut self, what: &str, wanted: impl Fn(usize, &Event) -> Option<T>) -> T {
        for index in 0..self.unclaimed.len() {
            let (who, event) = &self.unclaimed[index];
            if let Some(found) = wanted(*who, event) {
                self.unclaimed.remove(index);
                return found;
            }
        }
        let mut timer = smol::Timer::after(Duration::from_secs(DEADLINE_SECONDS));
        loop {
            let next = self.next_before(&mut timer).await;
            let Some((who, event)) = next else {
                panic!("no {what} in {DEADLINE_SECONDS} s; seen: {:?}", self.unclaimed)
            };
            if let Some(found) = wanted(who, &event) {
                return found;
            }
            self.unclaimed.push_back((who, event));
        }
    }

    pub fn peer(&self, who: usize) -> PeerKey {
        self.networks[who].local_peer().clone()
    }

    /// The address of a host with its peer id.
    pub fn address(&self, who: usize) -> String {
        let address = self.networks[who].listen_addresses().remove(0);
        format!("{address}/p2p/{}", self.peer(who))
    }

    pub async fn connected(&mut self, who: usize, to: usize) {
        let peer = self.peer(to);
        self.wait("connection", |at, event| match event {
            Event::Connected { peer: seen, .. } if at == who && *seen == peer => Some(()),
            _ => None,
        })
        .await;
    }

    /// Connects two hosts.
    pub async fn connect(&mut self, from: usize, to: usize) {
        let address = self.address(to);
        self.networks[from].dial(&address).unwrap();
        self.connected(from, to).await;
        self.connected(to, from).await;
        // These have no group to prove anything about.
        let (one, other) = (self.peer(from), self.peer(to));
        self.networks[from].admit(&other);
        self.networks[to].admit(&one);
    }

    /// Opens a stream; its name on either side.
    pub async fn open(&mut self, from: usize, to: usize) -> (StreamId, StreamId) {
        let peer = self.peer(to);
        self.networks[from].open_stream(&peer, 1);
        let here = self.opened(from, Some(1)).await;
        (here, self.opened(to, None).await)
    }

    pub async fn opened(&mut self, who: usize, wanted: Option<u64>) -> StreamId {
        self.wait("stream", |at, event| match event {
            Event::StreamOpened { stream, token, .. } if at == who && *token == wanted => {
                Some(*stream)
            }
            _ => None,
        })
        .await
    }

    pub async fn frame(&mut self, who: usize, on: StreamId) -> Vec<u8> {
        self.wait("frame", |at, event| match event {
            Event::Frame { stream, bytes } if at == who && *stream == on => Some(bytes.clone()),
            _ => None,
        })
        .await
    }

    pub async fn closed(&mut self, who: usize, on: StreamId) -> (bool, String) {
        self.wait("end of the stream", |at, event| match event {
            Event::Closed { stream, clean, reason } if at == who && *stream == on => {
                Some((*clean, reason.clone()))
            }
            _ => None,
        })
        .await
    }
}
