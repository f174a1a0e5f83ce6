//! What the network reports, in the machine's words.

use wavesync_core::ids::Millis;
use wavesync_core::machine::{Input, Level, StreamId};

use super::{Driver, core_id};
use crate::network;

/// A relay that lets less than this through a connection is in the way of a catch-up.
const CIRCUIT_BYTES_ENOUGH: u64 = 16 * 1024 * 1024;
#[cfg(not(target_family = "wasm"))]
const RELAY_LOST_HINT: &str = "check its address and that it runs; it is tried again";
/// A browser does not tell why a websocket could not be opened.
#[cfg(target_family = "wasm")]
const RELAY_LOST_HINT: &str = "check that it runs and listens with /ws or /tls/ws at this address, \
     and its certificate; it is tried again";

impl Driver {
    pub(super) fn event(&mut self, now: Millis, event: network::Event) {
        use network::Event as Net;
        let input = match event {
            Net::Connected { peer, address, relayed, dialer } => {
                if dialer {
                    self.book.reached(&peer, &address);
                }
                self.dialer.connected(&peer, &address, now);
                Input::Connected { peer: core_id(&peer), address, relayed }
            }
            Net::PathChanged { peer, address, relayed } => {
                Input::PathChanged { peer: core_id(&peer), address, relayed }
            }
            Net::Reached { address } => {
                self.dialer.reached(&address, now);
                Input::Timer
            }
            Net::Disconnected { peer } => {
                self.book.left(&peer);
                if let Some(network) = &self.network {
                    self.dialer.disconnected(&peer, network.local_peer(), now);
                }
                Input::Disconnected { peer: core_id(&peer) }
            }
            Net::StreamOpened { peer, stream, token } => {
                Input::Opened { peer: core_id(&peer), stream: StreamId(stream.0), token }
            }
            Net::OpenFailed { peer, token, .. } => {
                Input::OpenFailed { peer: core_id(&peer), token }
            }
            Net::Frame { stream, bytes } => Input::Frame { stream: StreamId(stream.0), bytes },
            Net::Drained { stream } => Input::Drained { stream: StreamId(stream.0) },
            Net::Closed { stream, .. } => Input::Closed { stream: StreamId(stream.0) },
            Net::Rtt { peer, millis } => Input::RoundTrip { peer: core_id(&peer), millis },
            Net::Listening { address } => {
                self.log(now, Level::Info, "listening", &format!("listening on {address}"), "");
                Input::Timer
            }
            Net::ListenFailed { address, reason } => {
                let message = format!("cannot listen on {address}: {reason}");
                let hint = "choose another port, or end the program that uses it";
                self.log(now, Level::Warning, "listen_failed", &message, hint);
                Input::Timer
            }
            Net::DialFailed { address, reason, peer } => {
                if let Some(peer) = &peer {
                    self.book.failed(peer, &address);
                }
                if let Some(peer) = peer.filter(|_| !self.dialer.has_target(&address)) {
                    self.dialer.member_failed(&peer, now);
                } else if self.dialer.failed(&address, &reason, now) {
                    let message = format!("cannot reach {address}: {reason}");
                    let hint = "check the address and that the other side runs; it is tried again";
                    self.log(now, Level::Warning, "dial_failed", &message, hint);
                }
                Input::Timer
            }
            Net::Discovered { peer, addresses } => {
                self.dialer.found(peer, &addresses, now);
                Input::Timer
            }
            Net::RelayAnswered => Input::Timer,
            Net::RelayReserved { address, limit_bytes } => {
                self.relay_reserved(now, &address, limit_bytes);
                Input::Timer
            }
            Net::RelayLost { address, reason } => {
                let message = format!("the relay {address} is not available: {reason}");
                self.log(now, Level::Warning, "relay_lost", &message, RELAY_LOST_HINT);
                Input::Timer
            }
        };
        self.feed(now, input);
    }

    fn relay_reserved(&mut self, now: Millis, address: &str, limit_bytes: Option<u64>) {
        let message = format!("members can reach this replica through the relay {address}");
        self.log(now, Level::Info, "relay_reserved", &message, "");
        if let Some(bytes) = limit_bytes.filter(|bytes| *bytes < CIRCUIT_BYTES_ENOUGH) {
            let message = format!("the relay {address} cuts every connection after {bytes} bytes");
            let hint = "syncing through it may not get on; use a relay made for wavesync";
            self.log(now, Level::Warning, "relay_limit", &message, hint);
        }
    }
}
