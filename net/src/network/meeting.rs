//! The network's side of its relays: reservations are asked for when they are due, and whoever is
//! met at a relay is told to the owner with the address of a circuit.

use std::time::Duration;

use libp2p::{
    Multiaddr, PeerId,
    core::transport::{ListenerId, TransportError},
    multiaddr::Protocol,
    relay, request_response,
};
use wavesync_transport::{Meet, MeetEvent, Met};

use super::{
    Event, Network, RelayReport, address,
    relays::{News, Task},
};
use crate::time::Instant;

/// How often a relayed connection is asked whether it is still busy.
const RETIREMENT_POLL_MILLISECONDS: u64 = 200;

impl Network {
    /// Where the relays stand.
    pub fn relays(&self) -> Vec<RelayReport> {
        self.relays.reports()
    }

    /// Every relay has either named its members or could not be reached.
    pub fn relays_are_settled(&self) -> bool {
        self.relays.are_settled()
    }

    /// Closes every connection and tries every relay at once, because the machine may be in another
    /// network now: connections from the old one would only be found dead after a while. Dialing
    /// the peers again is the owner's.
    pub fn start_afresh(&mut self) {
        let connected: Vec<PeerId> = self.swarm.connected_peers().copied().collect();
        for peer in connected {
            self.disconnect(&peer.into());
        }
        self.relays.restart(Instant::now());
    }

    /// Does for the relays what is due.
    pub(super) fn tend_relays(&mut self) {
        let now = Instant::now();
        for task in self.relays.tasks(now) {
            match task {
                Task::Reserve { relay, address } => match self.swarm.listen_on(address) {
                    Ok(listener) => self.relays.asking(relay, listener),
                    Err(error) => {
                        let reason = match &error {
                            TransportError::MultiaddrNotSupported(_) => error.to_string(),
                            TransportError::Other(error) => address::with_causes(error),
                        };
                        let news = self.relays.refused(relay, reason, now);
                        self.tell(news);
                    }
                },
                Task::GiveUp(listener) => {
                    self.swarm.remove_listener(listener);
                    let reason = "the relay did not answer".to_owned();
                    let news = self.relays.lost(listener, Some(reason), now);
                    self.tell(news);
                }
                Task::Meet { relay, peer, tag } => {
                    let request = self.swarm.behaviour_mut().meet.send_request(&peer, Meet(tag));
                    self.relays.meeting(relay, request);
                }
            }
        }
    }

    /// Closes relayed connections that a direct one has replaced.
    pub(super) fn retire_relayed(&mut self) {
        for connection in self.swarm.behaviour().streams.retired(Instant::now()) {
            self.swarm.close_connection(connection);
        }
    }

    /// When something of all that is due, if nothing happens before.
    pub(super) fn next_due(&self) -> Option<Instant> {
        // One that is due but still busy is looked at again a little later.
        let again = Instant::now() + Duration::from_millis(RETIREMENT_POLL_MILLISECONDS);
        let retirement = self.swarm.behaviour().streams.next_retirement();
        let retirement = retirement.map(|due| due.max(again));
        self.relays.next_due().into_iter().chain(retirement).min()
    }

    /// A listener has an address: if it is a circuit's, the reservation is there.
    pub(super) fn reserved(&mut self, listener: ListenerId) {
        let news = self.relays.reserved(listener, Instant::now());
        self.tell(news);
    }

    /// A listener is gone, for a reason or, as a relay's death looks, for none.
    pub(super) fn reservation_lost(&mut self, listener: ListenerId, reason: Option<String>) {
        let news = self.relays.lost(listener, reason, Instant::now());
        self.tell(news);
    }

    pub(super) fn on_circuit(&mut self, event: relay::client::Event) {
        use relay::client::Event as Circuit;
        match event {
            Circuit::ReservationReqAccepted { relay_peer_id, limit, .. }
            | Circuit::OutboundCircuitEstablished { relay_peer_id, limit } => {
                let bytes = limit.and_then(|limit| limit.data_in_bytes());
                self.relays.limited(&relay_peer_id, bytes);
            }
            Circuit::InboundCircuitEstablished { .. } => {}
        }
    }

    pub(super) fn on_meeting(&mut self, event: MeetEvent) {
        use request_response::{Event as Meeting, Message};
        let now = Instant::now();
        match event {
            Meeting::Message { message: Message::Response { request_id, response }, .. } => {
                if let Some(relay) = self.relays.met(request_id, &response, now) {
                    self.discovered_at(&relay, &response);
                }
            }
            Meeting::OutboundFailure { request_id, error, .. } => {
                let reason = format!("asking for members failed: {error}");
                self.relays.meeting_failed(request_id, reason, now);
            }
            _ => {}
        }
    }

    fn discovered_at(&mut self, relay: &Multiaddr, met: &Met) {
        let local = *self.swarm.local_peer_id();
        for peer in met.members.iter().filter(|peer| **peer != local) {
            self.ready.push_back(Event::Discovered {
                peer: (*peer).into(),
                addresses: vec![circuit(relay, *peer).to_string()],
            });
        }
        // Whoever waits until all relays have answered looks again.
        self.ready.push_back(Event::RelayAnswered);
    }

    fn tell(&mut self, news: Option<News>) {
        self.ready.extend(news.map(|news| match news {
            News::Reserved { address, limit_bytes } => {
                Event::RelayReserved { address, limit_bytes }
            }
            News::Lost { address, reason } => Event::RelayLost { address, reason },
        }));
    }
}

/// The address of a member through a relay.
fn circuit(relay: &Multiaddr, peer: PeerId) -> Multiaddr {
    relay.clone().with(Protocol::P2pCircuit).with(Protocol::P2p(peer))
}

/// Whether an address leads through a relay.
pub(super) fn is_circuit(address: &Multiaddr) -> bool {
    address.iter().any(|part| part == Protocol::P2pCircuit)
}
