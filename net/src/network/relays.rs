//! Relays: a reservation at each, taken again when it is lost, and the members that are met there.
//!
//! It says what is due and takes in what happened; the swarm is its owner's. libp2p renews a
//! reservation by itself, but after a relay died its listener merely ends and nothing retries.

use std::{collections::HashSet, time::Duration};

use libp2p::{
    Multiaddr, PeerId, core::transport::ListenerId, multiaddr::Protocol,
    request_response::OutboundRequestId,
};
use wavesync_transport::{MEET_TAG_BYTES, Met};

use crate::{
    error::NetError,
    time::{Instant, spread},
};

/// First pause after a relay was lost or refused, in milliseconds; it doubles with each failure.
const RETRY_MIN_MILLISECONDS: u64 = 500;
const RETRY_MAX_MILLISECONDS: u64 = 60_000;
/// A relay that has not answered after this long is asked anew. That is longer than libp2p waits for the
/// dial and the answer: its client cannot take an answer to what was given up.
const ANSWER_MAX_MILLISECONDS: u64 = 100_000;
/// A meeting that failed is asked for again after this long, in milliseconds, and doubles.
const MEET_RETRY_MIN_MILLISECONDS: u64 = 1_000;
/// How often a relay may ask us to come again.
const MEET_AGAIN_MIN_SECONDS: u32 = 10;
const MEET_AGAIN_MAX_SECONDS: u32 = 600;

/// A relay to be reachable through.
#[derive(Clone, Debug)]
pub struct RelayConfig {
    /// Its multiaddress, with `/p2p/<id>` at the end.
    pub address: String,
    /// The tag of the group at this relay.
    pub tag: [u8; MEET_TAG_BYTES],
}

/// Where a relay stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RelayReport {
    /// Its multiaddress, as configured.
    pub address: String,
    /// `connecting`, `reserved` (members reach us through it) or `waiting` (tried again later).
    pub state: &'static str,
    /// Members that it last named.
    pub members: usize,
    /// Bytes that it lets through a circuit, if it limits them.
    pub limit_bytes: Option<u64>,
    /// What last went wrong, while it does.
    pub error: String,
}

/// What is to be done.
#[derive(Debug)]
pub(super) enum Task {
    /// Ask for a reservation, and tell `asking`.
    Reserve { relay: usize, address: Multiaddr },
    /// Nothing came of this one.
    GiveUp(ListenerId),
    /// Ask who is there, and tell `meeting`.
    Meet { relay: usize, peer: PeerId, tag: [u8; MEET_TAG_BYTES] },
}

/// What a change means to the user.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum News {
    Reserved { address: String, limit_bytes: Option<u64> },
    Lost { address: String, reason: String },
}

#[derive(Debug, PartialEq, Eq)]
enum Stage {
    Waiting,
    Asking(ListenerId),
    Reserved(ListenerId),
}

#[derive(Debug)]
struct Relay {
    text: String,
    address: Multiaddr,
    peer: PeerId,
    tag: [u8; MEET_TAG_BYTES],
    stage: Stage,
    /// When the next task is due: a reservation, giving one up, or a meeting.
    due: Instant,
    failures: u32,
    meeting: Option<OutboundRequestId>,
    meeting_failures: u32,
    /// Whether the first attempt has come to an end, good or bad.
    settled: bool,
    members: usize,
    limit_bytes: Option<u64>,
    error: String,
    /// The error that was last reported.
    reported: String,
}

#[derive(Debug, Default)]
pub(super) struct Relays {
    list: Vec<Relay>,
}

/// The relay that an address leads to.
pub(super) fn peer_of_relay(text: &str) -> Result<(Multiaddr, PeerId), NetError> {
    let target = super::address::parse_target(text)?;
    let failed =
        |reason: &str| NetError::Relay { address: text.to_owned(), reason: reason.to_owned() };
    if target.address.iter().any(|part| part == Protocol::P2pCircuit) {
        return Err(failed("a circuit leads to a member, not to a relay"));
    }
    let peer = target.peer.ok_or_else(|| failed("it does not name the relay's peer id"))?;
    Ok((target.address, peer))
}

impl Relays {
    pub(super) fn new(configured: &[RelayConfig], now: Instant) -> Result<Relays, NetError> {
        let mut relays = Relays::default();
        for RelayConfig { address: text, tag } in configured {
            let (address, peer) = peer_of_relay(text)?;
            if relays.list.iter().any(|relay| relay.address == address) {
                continue;
            }
            relays.list.push(Relay {
                text: text.clone(),
                address,
                peer,
                tag: *tag,
                stage: Stage::Waiting,
                due: now,
                failures: 0,
                meeting: None,
                meeting_failures: 0,
                settled: false,
                members: 0,
                limit_bytes: None,
                error: String::new(),
                reported: String::new(),
            });
        }
        Ok(relays)
    }

    pub(super) fn peers(&self) -> impl Iterator<Item = PeerId> {
        self.list.iter().map(|relay| relay.peer)
    }

    pub(super) fn contains(&self, peer: &PeerId) -> bool {
        self.list.iter().any(|relay| relay.peer == *peer)
    }

    /// Every relay has either named its members or could not be reached.
    pub(super) fn are_settled(&self) -> bool {
        self.list.iter().all(|relay| relay.settled)
    }

    pub(super) fn reports(&self) -> Vec<RelayReport> {
        let report = |relay: &Relay| RelayReport {
            address: relay.text.clone(),
            state: match relay.stage {
                Stage::Waiting if relay.settled => "waiting",
                Stage::Waiting if relay.error.is_empty() => "connecting",
                Stage::Waiting => "waiting",
                Stage::Asking(_) => "connecting",
                Stage::Reserved(_) => "reserved",
            },
            members: relay.members,
            limit_bytes: relay.limit_bytes,
            error: relay.error.clone(),
        };
        self.list.iter().map(report).collect()
    }

    /// When something is due next.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.list.iter().map(|relay| relay.due).min()
    }

    /// Everything is tried at once: the network may be another one now.
    pub(super) fn restart(&mut self, now: Instant) {
        for relay in &mut self.list {
            (relay.failures, relay.meeting_failures) = (0, 0);
            if !matches!(relay.stage, Stage::Asking(_)) {
                relay.due = now;
            }
        }
    }

    /// The tasks that are due; each is followed by the call that it names.
    pub(super) fn tasks(&mut self, now: Instant) -> Vec<Task> {
        let mut tasks = Vec::new();
        let busy = self.list.iter().filter(|relay| relay.stage != Stage::Waiting);
        let mut busy: HashSet<PeerId> = busy.map(|relay| relay.peer).collect();
        for (number, relay) in self.list.iter_mut().enumerate() {
            if relay.due > now {
                continue;
            }
            relay.due = now + Duration::from_millis(ANSWER_MAX_MILLISECONDS);
            match relay.stage {
                // The same relay at another address: one reservation would end the other.
                Stage::Waiting if !busy.insert(relay.peer) => relay.settled = true,
                Stage::Waiting => {
                    let address = relay.address.clone().with(Protocol::P2pCircuit);
                    tasks.push(Task::Reserve { relay: number, address });
                }
                Stage::Asking(listener) => tasks.push(Task::GiveUp(listener)),
                Stage::Reserved(_) => {
                    let (peer, tag) = (relay.peer, relay.tag);
                    tasks.push(Task::Meet { relay: number, peer, tag });
                }
            }
        }
        tasks
    }

    pub(super) fn asking(&mut self, relay: usize, listener: ListenerId) {
        self.list[relay].stage = Stage::Asking(listener);
    }

    pub(super) fn meeting(&mut self, relay: usize, request: OutboundRequestId) {
        self.list[relay].meeting = Some(request);
    }

    fn by_listener(&mut self, listener: ListenerId) -> Option<&mut Relay> {
        let has = |relay: &&mut Relay| match relay.stage {
            Stage::Asking(own) | Stage::Reserved(own) => own == listener,
            Stage::Waiting => false,
        };
        self.list.iter_mut().find(has)
    }

    /// A reservation is there, new or renewed.
    pub(super) fn reserved(&mut self, listener: ListenerId, now: Instant) -> Option<News> {
        let relay = self.by_listener(listener)?;
        if relay.stage == Stage::Reserved(listener) {
            return None;
        }
        relay.stage = Stage::Reserved(listener);
        (relay.failures, relay.meeting_failures, relay.due) = (0, 0, now);
        relay.error.clear();
        relay.reported.clear();
        Some(News::Reserved { address: relay.text.clone(), limit_bytes: relay.limit_bytes })
    }

    /// What a relay said of its limits; zero is none.
    pub(super) fn limited(&mut self, peer: &PeerId, bytes: Option<u64>) {
        for relay in self.list.iter_mut().filter(|relay| relay.peer == *peer) {
            relay.limit_bytes = bytes.filter(|bytes| *bytes > 0);
        }
    }

    /// A dial of the relay failed; its listener will end without a reason.
    pub(super) fn unreachable(&mut self, peer: &PeerId, reason: &str) {
        for relay in self.list.iter_mut().filter(|relay| relay.peer == *peer) {
            if !matches!(relay.stage, Stage::Reserved(_)) {
                reason.clone_into(&mut relay.error);
            }
        }
    }

    /// A reservation could not be had, or is over.
    pub(super) fn lost(
        &mut self,
        listener: ListenerId,
        reason: Option<String>,
        now: Instant,
    ) -> Option<News> {
        let relay = self.by_listener(listener)?;
        let (peer, news) = (relay.peer, relay.fail(reason, now));
        self.try_others(&peer, now);
        news
    }

    /// Another address of a relay, to which one has just failed.
    fn try_others(&mut self, peer: &PeerId, now: Instant) {
        let waits = |relay: &&mut Relay| relay.stage == Stage::Waiting && relay.due > now;
        let others =
            self.list.iter_mut().filter(|relay| relay.peer == *peer && relay.failures == 0);
        others.filter(waits).for_each(|relay| relay.due = now);
    }

    /// A reservation could not even be asked for.
    pub(super) fn refused(&mut self, relay: usize, reason: String, now: Instant) -> Option<News> {
        let (peer, news) = (self.list[relay].peer, self.list[relay].fail(Some(reason), now));
        self.try_others(&peer, now);
        news
    }

    /// The members that a relay named, and the relay's own address.
    pub(super) fn met(
        &mut self,
        request: OutboundRequestId,
        met: &Met,
        now: Instant,
    ) -> Option<Multiaddr> {
        let relay = self.list.iter_mut().find(|relay| relay.meeting == Some(request))?;
        relay.meeting = None;
        (relay.settled, relay.meeting_failures) = (true, 0);
        relay.members = met.members.len();
        relay.error.clear();
        if !met.remembered {
            "the relay has no room for further groups".clone_into(&mut relay.error);
        }
        let again = met.again_seconds.clamp(MEET_AGAIN_MIN_SECONDS, MEET_AGAIN_MAX_SECONDS);
        relay.due = now + spread(u64::from(again) * 1000);
        Some(relay.address.clone())
    }

    pub(super) fn meeting_failed(
        &mut self,
        request: OutboundRequestId,
        reason: String,
        now: Instant,
    ) {
        let found = self.list.iter_mut().find(|relay| relay.meeting == Some(request));
        let Some(relay) = found else { return };
        relay.meeting = None;
        relay.settled = true;
        relay.error = reason;
        let pause = MEET_RETRY_MIN_MILLISECONDS << relay.meeting_failures.min(6);
        relay.meeting_failures += 1;
        if matches!(relay.stage, Stage::Reserved(_)) {
            relay.due = now + spread(pause.min(RETRY_MAX_MILLISECONDS));
        }
    }
}

impl Relay {
    fn fail(&mut self, reason: Option<String>, now: Instant) -> Option<News> {
        let had = matches!(self.stage, Stage::Reserved(_));
        self.stage = Stage::Waiting;
        (self.meeting, self.members, self.settled) = (None, 0, true);
        if let Some(reason) = reason {
            self.error = reason;
        }
        if self.error.is_empty() {
            let what = if had { "the connection was lost" } else { "it did not answer" };
            what.clone_into(&mut self.error);
        }
        let pause = RETRY_MIN_MILLISECONDS << self.failures.min(16);
        self.failures = self.failures.saturating_add(1);
        self.due = now + spread(pause.min(RETRY_MAX_MILLISECONDS));
        if self.reported == self.error {
            return None;
        }
        self.reported.clone_from(&self.error);
        Some(News::Lost { address: self.text.clone(), reason: self.error.clone() })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const ADDRESS: &str =
        "/ip4/127.0.0.1/tcp/4001/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN";

    fn one(now: Instant) -> Relays {
        Relays::new(&[RelayConfig { address: ADDRESS.to_owned(), tag: [1; 32] }], now).unwrap()
    }

    #[test]
    fn a_relay_has_a_peer_id_and_is_no_circuit() {
        assert!(peer_of_relay(ADDRESS).is_ok());
        for wrong in ["/ip4/127.0.0.1/tcp/4001", &format!("{ADDRESS}/p2p-circuit"), "x"] {
            assert!(peer_of_relay(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_lost_relay_is_asked_again_with_growing_pauses() {
        let mut now = Instant::now();
        let mut relays = one(now);
        assert!(!relays.are_settled());
        let mut pauses = Vec::new();
        for round in 0..12 {
            assert!(matches!(relays.tasks(now)[..], [Task::Reserve { relay: 0, .. }]));
            assert!(relays.tasks(now).is_empty(), "asked once");
            let listener = ListenerId::next();
            relays.asking(0, listener);
            relays.unreachable(&relays.list[0].peer.clone(), "refused");
            let news = relays.lost(listener, None, now);
            assert_eq!(news.is_some(), round == 0, "one reason is told once");
            assert_eq!(relays.reports()[0].state, "waiting");
            pauses.push(relays.next_due().unwrap() - now);
            now = relays.next_due().unwrap();
        }
        assert!(relays.are_settled());
        assert!(pauses[0] < Duration::from_millis(RETRY_MIN_MILLISECONDS * 2));
        let most = Duration::from_millis(RETRY_MAX_MILLISECONDS + RETRY_MAX_MILLISECONDS / 4 + 1);
        assert!(pauses[11] > pauses[0] && pauses.iter().all(|pause| *pause <= most));
        // A reservation starts afresh, and asks at once who is there.
        let listener = ListenerId::next();
        assert!(matches!(relays.tasks(now)[..], [Task::Reserve { .. }]));
        relays.asking(0, listener);
        assert!(matches!(relays.reserved(listener, now), Some(News::Reserved { .. })));
        assert!(relays.reserved(listener, now).is_none(), "a renewal is no news");
        assert!(matches!(relays.tasks(now)[..], [Task::Meet { .. }]));
        assert!(matches!(relays.lost(listener, None, now), Some(News::Lost { .. })));
        let pause = relays.next_due().unwrap() - now;
        assert!(pause < Duration::from_millis(RETRY_MIN_MILLISECONDS * 2));
    }

    #[test]
    fn of_two_addresses_of_one_relay_one_is_used_at_a_time() {
        let mut now = Instant::now();
        let other = ADDRESS.replace("4001", "4002");
        let configured =
            [ADDRESS.to_owned(), other].map(|address| RelayConfig { address, tag: [1; 32] });
        let mut relays = Relays::new(&configured, now).unwrap();
        assert!(matches!(relays.tasks(now)[..], [Task::Reserve { relay: 0, .. }]));
        let first = ListenerId::next();
        relays.asking(0, first);
        relays.reserved(first, now);
        assert!(matches!(relays.tasks(now)[..], [Task::Meet { relay: 0, .. }]));
        assert_eq!(relays.reports()[1].state, "waiting");
        now += Duration::from_millis(ANSWER_MAX_MILLISECONDS);
        let meets = |task: &Task| matches!(task, Task::Meet { relay: 0, .. });
        assert!(relays.tasks(now).iter().all(meets), "the other one would end the first");
        // Once it is lost, the other address is tried at once, and then that one is kept.
        relays.lost(first, Some("gone".into()), now);
        assert!(matches!(relays.tasks(now)[..], [Task::Reserve { relay: 1, .. }]));
        let second = ListenerId::next();
        relays.asking(1, second);
        relays.reserved(second, now);
        for _ in 0..10 {
            now = now.max(relays.next_due().unwrap());
            let meets = |task: &Task| matches!(task, Task::Meet { relay: 1, .. });
            assert!(relays.tasks(now).iter().all(meets));
        }
    }

    #[test]
    fn a_relay_that_never_answers_is_given_up() {
        let now = Instant::now();
        let mut relays = one(now);
        let _tasks = relays.tasks(now);
        let listener = ListenerId::next();
        relays.asking(0, listener);
        let later = now + Duration::from_millis(ANSWER_MAX_MILLISECONDS);
        assert!(matches!(relays.tasks(later)[..], [Task::GiveUp(given)] if given == listener));
    }
}
