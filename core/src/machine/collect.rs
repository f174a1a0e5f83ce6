//! Forgetting deletes, and who has missed what was forgotten (rules P18 to P20, K5).

use crate::Result;
use crate::ids::{Millis, SiteId, Stamp};
use crate::machine::peer::{PeerId, Stream, StreamId, StreamKind};
use crate::machine::{Level, Machine};
use crate::mutants::{self, Mutant};
use crate::store::Store;
use crate::store::apply::Full;
use crate::store::collect::{Collected, SearchPlace, bound};
use crate::store::state::OwnState;
use crate::store::vector::{Caps, Vector};
use crate::{ids::TableNum, limits, value::Value};

/// Taking everything over from one member makes way for another from which everything would be taken
/// over after a turn that is doubled so often.
const RESYNC_PATIENCE: u32 = 3;
/// After a pass that came to nothing the member rests for this long, twice as long each time.
const RESYNC_REST_MS: u64 = 1_000;

/// A member from which everything is being taken over, and that has come to no end yet.
pub(super) struct Turn {
    site: SiteId,
    /// When its turn began, however often it was cut since.
    since: Millis,
    /// How often its turn was over, or its pass came to nothing.
    fails: u32,
    /// It is not asked before.
    until: Millis,
    /// Everything may be taken over from another one meanwhile.
    yields: bool,
}

/// What this replica and a member have missed of what the other one has forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Nothing.
    Even,
    /// This replica has: it takes everything over anew.
    Behind,
    /// The member has: nothing of it is merged before it has taken everything over anew.
    Ahead,
    /// Both have. Nothing is exchanged.
    Apart,
}

impl Machine {
    pub(super) fn standing(&self, id: &PeerId, own: &OwnState) -> Standing {
        let known = self.peers.get(id).and_then(|peer| peer.known.as_ref());
        let Some(known) = known.filter(|_| !mutants::on(Mutant::StaleMerged)) else {
            return Standing::Even;
        };
        let ours = own.applied().reaches(&own.collected, &known.collected, &own.caps);
        match (
            ours && !own.stale,
            known.applied.reaches(&known.collected, &own.collected, &own.caps),
        ) {
            (true, true) => Standing::Even,
            (false, true) => Standing::Behind,
            (true, false) => Standing::Ahead,
            (false, false) => Standing::Apart,
        }
    }

    /// Whether a member that has applied this has seen what was forgotten here, and may have the rows.
    pub(super) fn has_seen(&self, id: &PeerId, applied: &Vector, own: &OwnState) -> bool {
        let known = self.peers.get(id).and_then(|peer| peer.known.as_ref());
        let (none, caps) = (Collected::new(), &own.caps);
        let forgotten = known.map_or(&none, |known| &known.collected);
        !own.stale && applied.reaches(forgotten, &own.collected, caps)
    }

    /// Whether everything was taken over from a member, although this replica is behind it: some of it is
    /// held until its time comes (rule P17), so it is not applied, or found no room.
    pub(super) fn nothing_more(&self, id: &PeerId, own: &OwnState) -> bool {
        let Some(peer) = self.peers.get(id) else { return false };
        let forgotten = peer.known.as_ref().map(|known| &known.collected);
        let done = peer.taken_over.as_ref() == forgotten && !own.stale;
        let Some(forgotten) = forgotten.filter(|_| done) else { return false };
        let mut forgotten = forgotten.clone();
        forgotten.retain(|site, _| !own.left_out.contains(site));
        own.vector.reaches(&own.collected, &forgotten, &own.caps)
    }

    /// Whether a pass that takes everything over anew is under way.
    pub(super) fn is_resyncing(&self) -> bool {
        self.peers.values().any(|peer| peer.full == Full::Resync)
    }

    /// Such a pass runs alone (rule P20). Returns whether a catch-up has to wait for others.
    pub(super) fn must_wait(&mut self, now: Millis, id: &PeerId, full: Full, needed: bool) -> bool {
        if needed {
            self.end_turns(now, id, full);
        }
        let others = self.peers.values().any(|peer| peer.requesting);
        let wait = self.is_resyncing() || (full == Full::Resync && others);
        if wait {
            self.compare_at = self.compare_at.min(now.plus(limits::ASK_AGAIN_MS));
        }
        wait
    }

    /// A member that is slow, or lies and never comes to an end, keeps nobody from the others for ever:
    /// what is in the way of this catch-up ends when its turn is over. A place or a cursor is stored, so
    /// that it goes on later. Taking everything over from another member drops what was noted, so it
    /// waits for longer.
    fn end_turns(&mut self, now: Millis, id: &PeerId, full: Full) {
        let mut over = Vec::new();
        for (other, peer) in &self.peers {
            let alone = peer.full == Full::Resync || full == Full::Resync;
            let Some(known) = peer.known.as_ref().filter(|_| peer.requesting && alone) else {
                continue;
            };
            let turn = self.turns.iter().find(|turn| turn.site == known.site);
            let (since, fails) = match turn.filter(|_| peer.full == Full::Resync) {
                Some(turn) => (turn.since, turn.fails),
                None => (peer.asked, 0),
            };
            let dropped = peer.full == Full::Resync && full == Full::Resync;
            let doublings = fails + if dropped { RESYNC_PATIENCE } else { 0 };
            let allowed =
                limits::RESYNC_TURN_MS << doublings.min(limits::RESYNC_TURN_DOUBLINGS_MAX);
            if other != id && now.since(since) >= allowed {
                over.push((other.clone(), known.site, peer.full, dropped, now.plus(allowed)));
            }
        }
        for (other, site, full, dropped, until) in over {
            if full == Full::Resync {
                self.rest(site, until, dropped);
            }
            let of_peer = |(_, stream): &(&StreamId, &Stream)| {
                stream.peer == other && matches!(stream.kind, StreamKind::Incoming { .. })
            };
            let stream = self.streams.iter().find(of_peer).map(|(stream, _)| *stream);
            stream.into_iter().for_each(|stream| self.close_stream(stream));
        }
    }

    /// Whether taking everything over from a member waits: it made way for others, or came to nothing,
    /// or another one was begun, rests and goes on after that.
    pub(super) fn rests(&mut self, now: Millis, site: SiteId, own: &OwnState) -> bool {
        let begun = own.resync_from.filter(|begun| {
            self.peers.values().any(|peer| peer.known.as_ref().is_some_and(|k| k.site == *begun))
        });
        let mut until = None;
        for turn in self.turns.iter().filter(|turn| turn.until > now) {
            if turn.site == site || (Some(turn.site) == begun && !turn.yields) {
                until = until.max(Some(turn.until));
            }
        }
        let Some(until) = until else { return false };
        self.compare_at = self.compare_at.min(until);
        true
    }

    fn rest(&mut self, site: SiteId, until: Millis, yields: bool) {
        let turn = self.turns.iter_mut().find(|turn| turn.site == site);
        if let Some(turn) = turn {
            (turn.fails, turn.until, turn.yields) = (turn.fails + 1, until, yields);
        }
    }

    /// Everything is about to be taken over from a member, or more of it.
    pub(super) fn begin_turn(&mut self, now: Millis, site: SiteId) {
        match self.turns.iter_mut().find(|turn| turn.site == site) {
            Some(turn) if turn.until > Millis(0) => (turn.since, turn.until) = (now, Millis(0)),
            Some(_) => {}
            None => {
                self.turns.truncate(limits::MEMBERS_KNOWN_MAX);
                let (since, until) = (now, Millis(0));
                self.turns.insert(0, Turn { site, since, fails: 0, until, yields: false });
            }
        }
    }

    /// A pass that took everything over is through. If this replica is behind that member all the same
    /// (it has forgotten more since, or says something else than before), others come first.
    pub(super) fn resync_ended(&mut self, now: Millis, id: &PeerId, site: SiteId, own: &OwnState) {
        if self.standing(id, own) != Standing::Behind || self.nothing_more(id, own) {
            self.turns.retain(|turn| turn.site != site);
            return;
        }
        let fails = self.turns.iter().find(|turn| turn.site == site).map_or(0, |turn| turn.fails);
        let doublings = fails.min(limits::RESYNC_TURN_DOUBLINGS_MAX);
        self.rest(site, now.plus(RESYNC_REST_MS << doublings), true);
    }

    pub(super) fn tell_resync(&mut self, id: &PeerId) {
        let fresh = self.own.as_ref().is_none_or(|own| own.end.0 == 0);
        if !fresh {
            let message = "this replica was away for longer than deletes are remembered; it takes \
                           everything over anew from a member";
            let hint = "what was written here and not sent yet is kept; rows that were deleted \
                        meanwhile go";
            self.event(Level::Info, "resync", message, hint, Some(id));
        }
    }

    /// Rule K5: merging would bring deleted rows back on either side.
    pub(super) fn tell_apart(&mut self, id: &PeerId) -> Result<()> {
        let Some(peer) = self.peers.get_mut(id).filter(|peer| !peer.apart) else { return Ok(()) };
        let message = "this replica and the member were apart for so long that each has forgotten \
                       deletes which the other one never saw; nothing is exchanged";
        let hint = "on one side, best the one with fewer changes, call wavesync_resync(): it takes \
                    everything over from the other; what only it has written is kept, and what it \
                    deleted and has forgotten comes back";
        (peer.apart, peer.last_error) = (true, Some((message.into(), hint.into())));
        self.event(Level::Warning, "apart", message, hint, Some(id));
        Ok(())
    }

    pub(super) fn no_longer_apart(&mut self, id: &PeerId) {
        if let Some(peer) = self.peers.get_mut(id).filter(|peer| peer.apart) {
            (peer.apart, peer.last_error) = (false, None);
        }
    }

    /// Now and then, looks a little at a time for tombstones that nobody needs (rule P18).
    pub(super) fn collect(&mut self, now: Millis, store: &mut Store) -> Result<()> {
        if std::mem::take(&mut self.keeps_due) {
            // Often enough for who keeps little.
            let often = (store.keeps()?.member_ms / 8).max(limits::COLLECT_INTERVAL_MIN_MS);
            let interval = store.bounds().collect_interval_ms.min(often);
            if self.search.is_none() {
                self.collect_at = self.searched_at.get_or_insert(now).plus(interval);
            }
            self.collect_pause = interval;
        }
        if self.collect_at > now {
            return Ok(());
        }
        self.collect_at = now.plus(self.collect_pause);
        if self.importing || self.is_resyncing() {
            return Ok(());
        }
        let place = match self.search.take() {
            Some(place) => place,
            None => {
                self.searched_at = Some(now);
                let related = self.peers.values().filter(|peer| peer.stopped.is_none());
                let known = related.filter_map(|peer| peer.known.as_ref());
                let applied: Vec<_> = known.map(|k| (k.site, k.applied.clone())).collect();
                if applied.is_empty() {
                    return Ok(());
                }
                store.note_applied(now, &applied)?;
                SearchPlace::from((TableNum(0), Value::Null))
            }
        };
        let searched = store.collect_block(now, place)?;
        if searched.next.is_some() {
            self.collect_at = now.plus(limits::COLLECT_PAUSE_MS);
        }
        self.search = searched.next;
        if searched.forgotten > 0 {
            self.own_dirty = true;
            self.end_outlived(now, store)?;
        }
        Ok(())
    }

    /// Whether something was forgotten here that the requester of a pass has not seen, or, of one
    /// that takes everything over, since it began.
    pub(super) fn outlived(&self, stream: StreamId, own: &OwnState) -> bool {
        let Some(entry) = self.streams.get(&stream) else { return false };
        let StreamKind::Outgoing { serving: Some(serving), .. } = &entry.kind else { return false };
        let grown = serving.collected != own.collected;
        let seen =
            if serving.full { !grown } else { self.has_seen(&entry.peer, &serving.applied, own) };
        !seen && !mutants::on(Mutant::StaleMerged)
    }

    /// What was forgotten has grown: passes with members that have not seen it end (rule P19).
    pub(super) fn end_outlived(&mut self, now: Millis, store: &mut Store) -> Result<()> {
        let own = store.own_state(now)?;
        let streams: Vec<StreamId> = self.streams.keys().copied().collect();
        for stream in streams {
            if self.outlived(stream, &own) {
                self.put_off(stream)?;
                continue;
            }
            let Some(entry) = self.streams.get(&stream) else { continue };
            let asking = matches!(entry.kind, StreamKind::Incoming { .. });
            let standing = self.standing(&entry.peer, &own);
            if asking && matches!(standing, Standing::Ahead | Standing::Apart) {
                self.close_stream(stream);
            }
        }
        Ok(())
    }
}

/// Takes in what a member says it has forgotten: nothing beyond what it has seen.
pub(super) fn learn(
    known: &mut Collected,
    told: Option<&[(SiteId, Stamp)]>,
    vector: &Vector,
    caps: &Caps,
) {
    if let Some(told) = told {
        *known = told.iter().copied().collect();
    }
    bound(known, vector, caps);
}
