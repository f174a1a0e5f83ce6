//! Catch-up: a requester pulls the responder's log from its cursor, chunk by chunk.

use crate::ids::{Boot, Cursor, Millis, Seq, SiteId, Stamp};
use crate::machine::Machine;
use crate::machine::collect::Standing;
use crate::machine::contact::Approach;
use crate::machine::peer::{PeerId, Serving, Stream, StreamId, StreamKind};
use crate::mutants::{self, Mutant};
use crate::store::Store;
use crate::store::apply::{Full, Reach};
use crate::store::collect::{self, Collected};
use crate::store::scan::Place;
use crate::store::vector::Vector;
use crate::wire::message::{
    Attach, Chunk, Refusal, RefusalCode, Request, VectorList, plain, sealed,
};
use crate::{Error, Result, limits, wire};

/// Chunks that a responder may send before the requester has applied one.
pub(super) const CHUNKS_IN_FLIGHT: u32 = 4;
/// After a chunk larger than this, none follows before it was applied.
const LARGE_CHUNK_BYTES: usize = 2 * 1024 * 1024;

impl Machine {
    pub(super) fn consider_all(&mut self, now: Millis, store: &mut Store) -> Result<()> {
        let known = self.peers_where(|_, peer| peer.known.is_some());
        known.iter().try_for_each(|id| self.consider(now, id, store))
    }

    /// Compares with a peer again from time to time, whatever was missed.
    pub(super) fn compare(&mut self, now: Millis, store: &mut Store) -> Result<()> {
        if self.compare_at > now {
            return Ok(());
        }
        self.compare_at = now.plus(limits::COMPARE_INTERVAL_MS);
        if mutants::on(Mutant::RestlessWhileParked) && store.parks(now)? {
            self.tell_state(now, &store.own_state(now)?, &[], store)?;
        }
        self.consider_all(now, store)
    }

    /// Starts a catch-up from a peer if it has anything that is not here.
    pub(super) fn consider(&mut self, now: Millis, id: &PeerId, store: &mut Store) -> Result<()> {
        if self.is_paused(now, id) {
            return Ok(());
        }
        let Some(peer) = self.peers.get(id) else { return Ok(()) };
        let Some(known) = peer.known.as_ref() else { return Ok(()) };
        if peer.requesting || peer.awaits_schema {
            return Ok(());
        }
        let (site, boot, end) = (known.site, known.state.boot, known.state.end);
        let cursor = store.cursor_for(now, site)?;
        let own = store.own_state(now)?;
        // A cap may have come with a chunk since the peer told this: above it nothing can be had.
        let mut claimed = known.vector.clone();
        let bounded = claimed.clamp(&own.caps).is_empty() && known.over.is_empty();
        let closed = known.state.closed && bounded;
        let covered = own.vector.covers_all(&claimed);
        let read = cursor.boot == boot && cursor.seq >= end;
        // What found no room here would find none again.
        let fetched = covered || {
            let mut theirs = claimed.0.iter();
            theirs.all(|(site, (stamp, _))| {
                own.vector.get(*site) >= *stamp || own.left_out.contains(site)
            })
        };
        let standing = self.standing(id, &own);
        if standing != Standing::Apart {
            self.no_longer_apart(id);
        }
        let full = match standing {
            Standing::Even => Full::No,
            Standing::Behind if self.nothing_more(id, &own) => return Ok(()),
            Standing::Behind => Full::Resync,
            Standing::Ahead => return Ok(()),
            Standing::Apart => return self.tell_apart(id),
        };
        if full == Full::Resync && self.rests(now, site, &own) {
            return Ok(());
        }
        if self.must_wait(now, id, full, full == Full::Resync || !fetched) {
            return Ok(());
        }
        let same_branch = cursor.boot == Boot(0) || cursor.boot == boot;
        let may_jump = !mutants::on(Mutant::NoJump);
        let even = full == Full::No;
        let jump = even && covered && closed && same_branch && !read && may_jump;
        if jump {
            // Rule P12: nothing in its log can be new.
            store.jump_cursor(now, site, Cursor { boot, seq: end, high: end })?;
        }
        let cursor = if jump { Cursor { boot, seq: end, high: end } } else { cursor };
        self.own = Some(own);
        let Some(peer) = self.peers.get_mut(id) else { return Ok(()) };
        if let Some(known) = peer.known.as_mut() {
            known.cursor = cursor;
        }
        if even && fetched && (read || jump) {
            peer.ahead_since = None;
            return self.resume(now, id, store);
        }
        if even && !covered && self.will_be_pushed(now, id) {
            return Ok(());
        }
        if even && fetched && self.was_just_asked(now, id) {
            return Ok(());
        }
        let Some(own) = self.own.clone() else { return Ok(()) };
        let approach = self.approach(now, id, &own, store)?;
        let Some(peer) = self.peers.get_mut(id).filter(|_| approach != Approach::Wait) else {
            return Ok(());
        };
        (peer.sampled, peer.full) = (approach == Approach::Sampled, full);
        peer.asked = now;
        let known = peer.known.as_ref();
        peer.first_contact = known.is_some_and(|k| !own.has_met(&k.vector));
        (peer.requesting, peer.ahead_since) = (true, None);
        if let Some(known) = peer.known.as_mut() {
            known.started_at = if even { cursor.seq } else { Seq(0) };
            known.in_order = (0, 0);
        }
        if full == Full::Resync {
            self.begin_turn(now, site);
            self.tell_resync(id);
        }
        self.open_stream(id, true);
        Ok(())
    }

    /// Its log may hold rows beyond its vector, or such as found no room here: that is nothing to ask
    /// for at each of its writes.
    fn was_just_asked(&mut self, now: Millis, id: &PeerId) -> bool {
        let Some(peer) = self.peers.get_mut(id) else { return false };
        let again = peer.asked_at.map(|at| at.plus(limits::UNCOVERED_PAUSE_MS));
        if let Some(again) = again.filter(|again| *again > now) {
            self.compare_at = self.compare_at.min(again);
            return true;
        }
        peer.asked_at = Some(now);
        false
    }

    /// What a peer has and we lack was written by others who are connected with us: their own
    /// pushes are on the way, so it is asked for only if they do not come soon.
    fn will_be_pushed(&mut self, now: Millis, id: &PeerId) -> bool {
        let (Some(peer), Some(own)) = (self.peers.get(id), &self.own) else { return false };
        let Some(known) = &peer.known else { return false };
        let since = peer.ahead_since.unwrap_or(now);
        let connected = |site: &SiteId| {
            let mut others = self.peers.iter().filter(|(other, _)| *other != id);
            others.any(|(_, peer)| peer.known.as_ref().is_some_and(|known| known.site == *site))
        };
        let lacking =
            |(site, (stamp, _)): &(&SiteId, &(Stamp, Boot))| own.vector.get(**site) < *stamp;
        let mut lacks = known.vector.0.iter().filter(lacking);
        let wait =
            now.since(since) < limits::PUSH_GRACE_MS && lacks.all(|(site, _)| connected(site));
        if wait {
            let end = since.plus(limits::PUSH_GRACE_MS);
            self.compare_at = self.compare_at.min(end);
            if let Some(peer) = self.peers.get_mut(id) {
                peer.ahead_since = Some(since);
            }
        }
        wait
    }

    /// Our stream for a catch-up is open: attach it to the session and ask.
    pub(super) fn start_pass(&mut self, now: Millis, id: PeerId, stream: StreamId) {
        let session = self.peers.get(&id).and_then(|peer| peer.session.clone());
        let Some(session) = session else {
            if let Some(peer) = self.peers.get_mut(&id) {
                (peer.requesting, peer.full) = (false, Full::No);
            }
            self.outputs.push(super::Output::Close { stream });
            return;
        };
        let number = session.stream_number(self.next_number);
        self.next_number += 1;
        let channel = session.channel(number);
        let again = self.peers.get(&id).is_some_and(|peer| peer.check.is_asked());
        let kind = match again {
            true => StreamKind::Again { channel },
            false => StreamKind::Incoming { channel, position: None },
        };
        self.streams.insert(stream, Stream::new(id, kind, now));
        self.send_plain(stream, plain::ATTACH, &Attach { session: session.id, stream: number });
        self.asking.push(stream);
    }

    /// Sends the requests of streams that were opened: needs the store, so it is done here.
    pub(super) fn ask(&mut self, now: Millis, store: &mut Store) -> Result<()> {
        while let Some(stream) = self.asking.last().copied() {
            if matches!(
                self.streams.get(&stream),
                Some(Stream { kind: StreamKind::Again { .. }, .. })
            ) {
                self.asking.pop();
                self.ask_again(stream, store)?;
                continue;
            }
            let peer = self.streams.get(&stream).and_then(|entry| self.peers.get(&entry.peer));
            let site = peer.and_then(|peer| peer.known.as_ref()).map(|known| known.site);
            let Some(site) = site else {
                self.asking.pop();
                self.close_stream(stream);
                continue;
            };
            let sampled = peer.is_some_and(|peer| peer.sampled);
            let full = peer.map_or(Full::No, |peer| peer.full);
            let collected = peer.and_then(|peer| peer.known.as_ref()).map(|k| k.collected.clone());
            let (cursor, place) = match (full, collected) {
                (Full::No, _) => (store.cursor_for(now, site)?, store.place_for(now, site)?),
                (Full::Resync, Some(collected)) => {
                    (Cursor::default(), store.begin_resync(now, site, &collected)?)
                }
                _ => (Cursor::default(), Vec::new()),
            };
            let own = store.own_state(now)?;
            let sample = if sampled { store.folded(now, |tx| tx.sample())? } else { Vec::new() };
            let request = Request {
                vector: VectorList::from(&own.vector),
                applied: VectorList::from(&own.lowered),
                cursor,
                place,
                sample,
                chunk_rows: u32::try_from(store.bounds().chunk_rows).unwrap_or(u32::MAX),
                full: full != Full::No,
            };
            self.asking.pop();
            if let Some(StreamKind::Incoming { position, .. }) =
                self.streams.get_mut(&stream).map(|entry| &mut entry.kind)
            {
                *position = Some(cursor.seq);
            }
            self.send_sealed(stream, sealed::REQUEST, &wire::encode(&request)?)?;
            let id = self.streams.get(&stream).map(|entry| entry.peer.clone());
            if let Some(peer) = id.and_then(|id| self.peers.get_mut(&id)) {
                peer.counters.requests_out += 1;
            }
        }
        Ok(())
    }

    /// A peer asks for our log.
    pub(super) fn request(
        &mut self,
        now: Millis,
        stream: StreamId,
        request: &Request,
        store: &mut Store,
    ) -> Result<()> {
        let vector = request.vector.check()?;
        let own = store.own_state(now)?;
        if let Some(common) = store.folded(now, |tx| tx.contradiction(&vector, request.cursor))? {
            return self.renew(now, common, store);
        }
        if self.past_contradicted(now, &vector, store)? {
            // This pass is among those that were given up; the peer asks again when it knows.
            return Ok(());
        }
        let ours = store.folded(now, |tx| tx.cursor_is_ours(request.cursor))?;
        let applied = vector.with_lowered(&request.applied.check()?);
        let Some(entry) = self.streams.get(&stream) else { return Ok(()) };
        let stale =
            !self.has_seen(&entry.peer, &applied, &own) && !mutants::on(Mutant::StaleMerged);
        let StreamKind::Outgoing { serving, .. } = &entry.kind else { return Ok(()) };
        if serving.is_some() {
            return Err(Error::protocol("a second request on one stream"));
        }
        if own.importing || (stale && !request.full) {
            return self.put_off(stream);
        }
        if !self.judge(now, stream, request, store)? {
            return Ok(());
        }
        store.note_shared(now)?;
        let Some(entry) = self.streams.get_mut(&stream) else { return Ok(()) };
        let StreamKind::Outgoing { serving, .. } = &mut entry.kind else { return Ok(()) };
        let read = if request.full { Some(Seq(0)) } else { ours.then_some(request.cursor.seq) };
        let place = Place::requested(read, &request.place)?;
        let vector = if request.full { Vector::default() } else { vector };
        let (credit, end_at_start) = (CHUNKS_IN_FLIGHT, own.end);
        let expected = store.folded(now, |tx| tx.rows_from(&place))?;
        let rows = usize::try_from(request.chunk_rows).unwrap_or(usize::MAX);
        let rows = rows.max(limits::CHUNK_ASKED_MIN_ROWS).min(store.bounds().chunk_rows);
        let (collected, full) = (own.collected, request.full);
        *serving = Some(Serving {
            place,
            vector,
            applied,
            collected,
            full,
            credit,
            rows,
            expected,
            end_at_start,
        });
        self.serving.insert(stream);
        Ok(())
    }

    /// Existing rows are being taken in: rows that are told before all of them are could not be
    /// recognised. The new state tells when.
    pub(super) fn put_off(&mut self, stream: StreamId) -> Result<()> {
        let code = RefusalCode::Other.number();
        self.send_sealed(stream, sealed::ABORT, &wire::encode(&Refusal { code })?)?;
        self.close_stream(stream);
        Ok(())
    }

    /// The requester can take one more chunk.
    pub(super) fn credit(&mut self, now: Millis, stream: StreamId) -> Result<()> {
        let Some(entry) = self.streams.get_mut(&stream) else { return Ok(()) };
        entry.since = now;
        let StreamKind::Outgoing { serving: Some(serving), .. } = &mut entry.kind else {
            return Ok(());
        };
        serving.credit = (serving.credit + 1).min(CHUNKS_IN_FLIGHT);
        self.serving.insert(stream);
        Ok(())
    }

    /// Serves whoever asked or can take more. That is no part of handling their messages, so that a
    /// chunk which SQLite cannot give now is given later, and none is given twice.
    pub(super) fn serve_due(&mut self, now: Millis, store: &mut Store) -> Result<()> {
        while let Some(stream) = self.serving.first().copied() {
            match self.serve(now, stream, store) {
                Ok(()) => {}
                Err(error) if error.retryable() => return Err(error),
                Err(Error::Replaced) => return Err(Error::Replaced),
                Err(error) => self.give_up_stream(stream, &error),
            }
            self.serving.remove(&stream);
        }
        Ok(())
    }

    /// Sends chunks as far as the credit goes; each is read in one transaction without unfolded
    /// rows, and the pass ends only where such a transaction reached the folded end (rule P9).
    pub(super) fn serve(&mut self, now: Millis, stream: StreamId, store: &mut Store) -> Result<()> {
        loop {
            let Some(entry) = self.streams.get(&stream) else { return Ok(()) };
            let StreamKind::Outgoing { serving: Some(serving), .. } = &entry.kind else {
                return Ok(());
            };
            if serving.credit == 0 {
                return Ok(());
            }
            let (place, vector) = (serving.place.clone(), serving.vector.clone());
            let all = serving.full && !matches!(place, Place::Parts(_));
            let rows = serving.rows;
            let expected = serving.expected;
            let id = entry.peer.clone();
            let mut piece = store
                .folded(now, |tx| tx.limited_to(rows).naming(all).read_piece(place, &vector))?;
            let fixed_end = mutants::on(Mutant::FixedEnd) && piece.to >= serving.end_at_start;
            let phase_one = mutants::on(Mutant::KeysEndPass) && piece.ordered;
            piece.last |= fixed_end || (phase_one && matches!(piece.next, Place::Log(_)));
            let own = store.own_state(now)?;
            if own.importing || self.outlived(stream, &own) {
                return self.put_off(stream);
            }
            let last = piece.last;
            let floors = if last { store.folded(now, |tx| tx.floors())? } else { Vec::new() };
            let collected = own.collected.iter().filter(|_| last);
            let collected = collected.map(|(site, stamp)| (*site, *stamp)).collect();
            let rows = piece.rows.row_count() as u64;
            let with_vector = piece.last || mutants::on(Mutant::VectorEachChunk);
            let vector = if fixed_end { own.vector.clone() } else { piece.vector };
            let chunk = Chunk {
                from: piece.from,
                to: piece.to,
                boot: self.identity.boot,
                high: piece.high,
                rows: piece.rows.encode(),
                vector: with_vector.then(|| VectorList::from(&vector)),
                last: piece.last,
                closed: own.closed,
                ordered: piece.ordered,
                expected: if piece.ordered { expected } else { 0 },
                place: if piece.last { Vec::new() } else { piece.next.encode() },
                collected,
                floors,
            };
            self.send_sealed(stream, sealed::CHUNK, &wire::encode(&chunk)?)?;
            if let Some(peer) = self.peers.get_mut(&id) {
                peer.counters.rows_out += rows;
            }
            let Some(entry) = self.streams.get_mut(&stream) else { return Ok(()) };
            if let StreamKind::Outgoing { serving, .. } = &mut entry.kind {
                match serving {
                    Some(serving) if !chunk.last => {
                        serving.place = piece.next.clone();
                        let large = chunk.rows.len() > LARGE_CHUNK_BYTES;
                        // Two rows of the largest size must not wait in one queue.
                        serving.credit = if large { 0 } else { serving.credit - 1 };
                    }
                    // The requester closes the stream once it has applied this.
                    _ => *serving = None,
                }
            }
        }
    }

    /// A chunk of a catch-up of ours: applied with its cursor in one transaction.
    pub(super) fn chunk(
        &mut self,
        now: Millis,
        stream: StreamId,
        chunk: &Chunk,
        store: &mut Store,
    ) -> Result<()> {
        let Some(entry) = self.streams.get_mut(&stream) else { return Ok(()) };
        let id = entry.peer.clone();
        if matches!(entry.kind, StreamKind::Again { .. }) {
            return self.chunk_again(now, stream, chunk, store);
        }
        let StreamKind::Incoming { position: Some(position), .. } = &mut entry.kind else {
            return Err(Error::protocol("a chunk that was not asked for"));
        };
        // A responder that does not know our cursor starts from the beginning. A key-order pass
        // stays where it is until it is through.
        if chunk.from != *position && chunk.from != Seq(0) {
            return Err(Error::protocol("a chunk that does not follow the one before"));
        }
        let known = self.peers.get(&id).and_then(|peer| peer.known.as_ref());
        let site = known.map(|known| known.site);
        let site = site.ok_or_else(|| Error::protocol("a chunk before the hello"))?;
        let full = self.peers.get(&id).map_or(Full::No, |peer| peer.full);
        let cursor = Cursor { boot: chunk.boot, seq: chunk.to, high: chunk.high };
        let vector = chunk.vector.as_ref().map(VectorList::check).transpose()?;
        let (place, ordered) = (&chunk.place[..], chunk.ordered);
        let collected: Collected = chunk.collected.iter().copied().collect();
        let reach = Reach {
            cursor,
            place,
            ordered,
            last: vector.as_ref(),
            collected: Some(&collected),
            floors: &chunk.floors,
            full,
        };
        let applied = store.receive_piece(now, site, &chunk.rows, &reach)?;
        // From here on memory follows what is committed.
        self.own_dirty = true;
        if let Some(entry) = self.streams.get_mut(&stream) {
            entry.since = now;
            if let StreamKind::Incoming { position, .. } = &mut entry.kind {
                *position = Some(chunk.to);
            }
        }
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.counters.rows_in += applied.rows;
            if let Some(known) = peer.known.as_mut() {
                if full == Full::No || chunk.last {
                    known.cursor = cursor;
                }
                known.in_order.0 += applied.rows;
                if chunk.ordered {
                    known.in_order.1 = chunk.expected;
                }
                if let (true, Some(vector)) = (chunk.last, vector) {
                    known.vector.merge(&vector);
                    collect::raise(&mut known.collected, &collected);
                    if known.state.end < chunk.high || known.state.boot != chunk.boot {
                        known.state.end = chunk.high;
                        known.state.boot = chunk.boot;
                        known.state.closed = chunk.closed;
                    }
                }
            }
        }
        if !chunk.last {
            return self.send_sealed(stream, sealed::CREDIT, &[]);
        }
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.counters.last_sync = Some(now);
            (peer.faults, peer.ask_after) = (0, None);
            if full == Full::Resync {
                peer.taken_over = Some(collected);
            }
        }
        self.close_stream(stream);
        if full == Full::Resync {
            let own = store.own_state(now)?;
            self.resync_ended(now, &id, site, &own);
        }
        self.end_outlived(now, store)?;
        self.consider(now, &id, store)
    }
}
