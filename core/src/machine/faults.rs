//! Peers that do wrong: streams that are given up, and strangers that must not keep members out.

use crate::ids::Millis;
use crate::machine::peer::{Peer, PeerId, StreamId};
use crate::machine::{Level, Machine};
use crate::wire::message::{Refusal, RefusalCode, plain};
use crate::{Error, limits};

/// After a failed handshake the same peer is tried again after this long, in milliseconds; the time
/// doubles with each one in a row.
const REFUSED_RETRY_MS: u64 = 30_000;
/// It doubles so often at most: to 16 minutes.
const REFUSED_DOUBLINGS_MAX: u32 = 5;
/// After a message that could not be understood, the same peer is asked for a catch-up after this long,
/// in milliseconds; the time doubles with each one, until a catch-up ends well.
const FAULT_PAUSE_MS: u64 = 500;
/// It doubles so often at most: to 17 minutes.
const FAULT_DOUBLINGS_MAX: u32 = 11;
/// What goes wrong with one peer is told at most once in this time, in milliseconds.
const TOLD_INTERVAL_MS: u64 = 5_000;

impl Machine {
    /// Peers that prove nothing must not keep members out: the one that is here longest gives way.
    pub(super) fn make_way(&mut self, newest: &PeerId) {
        let unproven = |(id, peer): &(&PeerId, &Peer)| {
            peer.session.is_none() && peer.leaving.is_none() && *id != newest
        };
        let waiting = self.peers.iter().filter(unproven);
        if waiting.clone().count() < limits::UNPROVEN_PEERS_MAX {
            return;
        }
        let oldest = waiting.min_by_key(|(_, peer)| peer.since).map(|(id, _)| id.clone());
        if let Some(id) = oldest {
            self.send_away(&id);
        }
    }

    /// A stream on which something was wrong is given up; the user learns what.
    pub(super) fn give_up_stream(&mut self, id: StreamId, error: &Error) {
        let Some(stream) = self.streams.get(&id) else { return };
        let peer = stream.peer.clone();
        let handshake = !stream.kind.is_proven();
        let (code, hint, refusal) = match error {
            Error::Auth(_) if handshake => (
                "auth_failed",
                "check that both sides use the same topic and passphrase",
                RefusalCode::Auth,
            ),
            Error::Auth(_) => {
                ("seal_broken", "the connection is started afresh", RefusalCode::Other)
            }
            Error::Protocol(_) if handshake => {
                ("version", "update the older of the two sides", RefusalCode::Version)
            }
            Error::Protocol(_) => {
                ("protocol", "update wavesync on both sides; it is tried again", RefusalCode::Other)
            }
            _ => ("store", error.hint(), RefusalCode::Other),
        };
        if handshake {
            self.send_plain(id, plain::REFUSAL, &Refusal { code: refusal.number() });
        }
        let level = if handshake { Level::Warning } else { Level::Error };
        self.failed(&peer, (level, code, &error.to_string(), hint));
        if let (Error::Protocol(_), false) = (error, handshake) {
            self.pause_asking(&peer);
        }
        self.close_stream(id);
    }

    /// What a peer says cannot be understood. It may be of another version, and then no question
    /// changes that before one of the two is updated.
    fn pause_asking(&mut self, id: &PeerId) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        peer.faults = (peer.faults + 1).min(FAULT_DOUBLINGS_MAX);
        let after = self.seen_at.plus(FAULT_PAUSE_MS << peer.faults);
        peer.ask_after = Some(after);
        self.compare_at = self.compare_at.min(after);
    }

    /// Whether a peer is left alone after what could not be understood.
    pub(super) fn is_paused(&mut self, now: Millis, id: &PeerId) -> bool {
        let after = self.peers.get(id).and_then(|peer| peer.ask_after);
        let Some(after) = after.filter(|after| *after > now) else { return false };
        self.compare_at = self.compare_at.min(after);
        true
    }

    /// Something went wrong with a peer: it is left alone for a while, and the user is told once.
    pub(super) fn failed(&mut self, id: &PeerId, what: (Level, &'static str, &str, &str)) {
        let (level, code, message, hint) = what;
        let Some(peer) = self.peers.get_mut(id) else { return };
        let doublings = if peer.control.is_some() { peer.faults } else { peer.refusals };
        let retry = self.seen_at.plus(REFUSED_RETRY_MS << doublings.min(REFUSED_DOUBLINGS_MAX));
        peer.refusals = (peer.refusals + 1).min(REFUSED_DOUBLINGS_MAX);
        let error = Some((message.to_owned(), hint.to_owned()));
        // A peer that does wrong again and again, each time in another way, fills no log.
        let rested = peer.told_at.is_none_or(|at| self.seen_at.since(at) >= TOLD_INTERVAL_MS);
        let news = peer.last_error != error && rested;
        if news {
            peer.told_at = Some(self.seen_at);
        }
        (peer.last_error, peer.retry_at) = (error, Some(retry));
        if news {
            self.event(level, code, message, hint, Some(id));
        }
    }
}
