//! The self-check (rule P15): members that have seen the same must hold the same. If they do not, both
//! read the rows that differ again, once, and if that does not help the user is told.
//!
//! Digests are compared between two states only of which each was read to its end by the other, so
//! that a difference is none that a catch-up or a push under way explains.

use crate::ids::{Boot, Cursor, Millis, Seq};
use crate::machine::collect::Standing;
use crate::machine::peer::{Peer, PeerId, Serving, StreamId, StreamKind};
use crate::machine::{Level, Machine};
use crate::mutants::{self, Mutant};
use crate::store::Store;
use crate::store::collect::Collected;
use crate::store::digest::{Digests, Taken, differences};
use crate::store::vector::Vector;
use crate::wire::message::{Chunk, DigestMessage, Repair, TableParts, sealed};
use crate::{Error, Result, limits, wire};

/// Names all rows of a replica.
type Total = [u8; 16];

/// What is remembered of the own rows.
#[derive(Default)]
pub(super) struct Check {
    digests: Digests,
    /// When everything began to be read.
    pub begun: Option<Millis>,
    /// The own folded end when it was last looked at.
    end: Option<Seq>,
    /// Nothing is read or compared before.
    pub not_before: Millis,
    /// When something was last compared.
    pub last: Millis,
    /// When there is something to do.
    pub wake: Option<Millis>,
    pub counts: CheckCounts,
}

/// How often digests were compared since the engine started, and what came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckCounts {
    /// Comparisons with members.
    pub compared: u64,
    /// Times that rows were found to differ.
    pub differences: u64,
    /// Times that rows were read again.
    pub repairs: u64,
    /// Differences that this did not end.
    pub diverged: u64,
}

/// What is remembered of a member's rows, for as long as it is connected.
#[derive(Default)]
pub(super) struct PeerCheck {
    /// What it last said.
    heard: Option<DigestMessage>,
    /// What it was last told, without details.
    told: Option<DigestMessage>,
    /// The ends of both and its boot, when there was nothing more to do.
    settled: Option<(Seq, Seq, Boot)>,
    /// What is being read again from it, and what its rows came to then.
    asked: Option<(Total, Vec<TableParts>)>,
    /// What its rows came to when differing ones were last read again.
    repaired: Option<Total>,
    /// Times that rows were read again since the last comparison without difference.
    repairs: u32,
    /// When the user was told that this did not help.
    alarm: Option<Millis>,
    /// What is wrong, and what to do about it.
    pub difference: Option<(String, String)>,
}

impl PeerCheck {
    /// Whether rows are about to be read again on the stream that is being opened.
    pub fn is_asked(&self) -> bool {
        self.asked.is_some()
    }

    /// Reading again was cut off.
    pub fn give_up(&mut self) {
        (self.asked, self.settled) = (None, None);
    }
}

impl Machine {
    /// Reads own rows and compares, a bounded part at a time and only once it is quiet.
    pub(super) fn self_check(&mut self, now: Millis, store: &mut Store) -> Result<()> {
        self.check.wake = None;
        let Some(own) = self.own.as_ref() else { return Ok(()) };
        let end = own.end;
        if self.check.end != Some(end) {
            self.check.end = Some(end);
            let rested = self.check.last.plus(limits::DIGEST_INTERVAL_MS);
            self.check.not_before = now.plus(limits::DIGEST_QUIET_MS).max(rested);
        }
        // What is held or was left out is here and not in the rows, or the other way round.
        let comparable = own.release_at.is_none() && own.left_out.is_empty();
        if !comparable || self.own_dirty || self.fold_waiting || self.importing {
            return Ok(());
        }
        self.forget_old_digests(now);
        let waiting = self.peers_where(|id, _| self.may_compare(id));
        if waiting.is_empty() {
            return Ok(());
        }
        if now < self.check.not_before {
            self.check.wake = Some(self.check.not_before);
            return Ok(());
        }
        self.check.begun.get_or_insert(now);
        let digests = &mut self.check.digests;
        let Some(taken) = store.folded(now, |tx| tx.digest(digests))? else {
            self.check.not_before = now.plus(limits::DIGEST_SLICE_PAUSE_MS);
            self.check.wake = Some(self.check.not_before);
            return Ok(());
        };
        if taken.end != end {
            self.own_dirty = true;
            return Ok(());
        }
        self.check.last = now;
        waiting.iter().try_for_each(|id| self.compare_with(now, id, &taken))
    }

    /// What was damaged since has no entry in the log.
    fn forget_old_digests(&mut self, now: Millis) {
        let old = |begun: Millis| now.since(begun) >= limits::DIGEST_KEEP_MS;
        if self.check.begun.is_some_and(old) {
            (self.check.begun, self.check.digests) = (None, Digests::default());
            for peer in self.peers.values_mut() {
                (peer.check.settled, peer.check.told) = (None, None);
            }
        }
    }

    /// Whether a member has seen what this replica has, and this one everything of its log.
    fn may_compare(&self, id: &PeerId) -> bool {
        let (Some(peer), Some(own)) = (self.peers.get(id), &self.own) else { return false };
        let Some(known) = peer.known.as_ref().filter(|known| known.digests) else { return false };
        let (cursor, state) = (known.cursor, &known.state);
        let free = !peer.requesting && !peer.awaits_schema && peer.stopped.is_none();
        let even = self.standing(id, own) == Standing::Even && !self.is_resyncing();
        if !free || !even || peer.check.settled == Some((own.end, state.end, state.boot)) {
            return false;
        }
        let read = cursor.boot == state.boot && cursor.seq >= state.end;
        let same = || own.vector.covers_all(&known.vector) && known.vector.covers_all(&own.vector);
        mutants::on(Mutant::DigestAcrossStates) || (read && known.applied == known.vector && same())
    }

    /// A member said what its rows come to.
    pub(super) fn peer_digest(&mut self, id: &PeerId, digest: DigestMessage) {
        if let Some(peer) = self.peers.get_mut(id) {
            (peer.check.heard, peer.check.settled) = (Some(digest), None);
        }
    }

    /// Tells a member what the own rows come to, and compares.
    fn compare_with(&mut self, now: Millis, id: &PeerId, taken: &Taken) -> Result<()> {
        let boot = self.identity.boot;
        let Some(peer) = self.peers.get_mut(id) else { return Ok(()) };
        let Some(known) = &peer.known else { return Ok(()) };
        let ends = (taken.end, known.state.end, known.state.boot);
        let heard = peer.check.heard.take();
        let fits = heard.as_ref().is_some_and(|heard| {
            let read = heard.cursor.boot == boot && heard.cursor.seq >= taken.end;
            let current = (heard.end, heard.boot) == (ends.1, ends.2);
            (heard.vector == taken.vector && read && current)
                || mutants::on(Mutant::DigestAcrossStates)
        });
        let detailed = fits && heard.as_ref().is_some_and(|heard| heard.total != taken.total);
        let cursor = known.cursor;
        self.tell_digest(id, taken, (boot, cursor), detailed)?;
        if let Some(heard) = heard.as_ref().filter(|_| fits) {
            self.judge_digest(now, id, taken, heard, ends)?;
        }
        if let Some(peer) = self.peers.get_mut(id) {
            peer.check.heard = heard;
        }
        Ok(())
    }

    fn tell_digest(
        &mut self,
        id: &PeerId,
        taken: &Taken,
        (boot, cursor): (Boot, Cursor),
        detailed: bool,
    ) -> Result<()> {
        let Some(peer) = self.peers.get_mut(id) else { return Ok(()) };
        let congested = peer.control.is_none_or(|stream| self.congested.contains(&stream));
        let short = DigestMessage {
            boot,
            end: taken.end,
            cursor,
            vector: taken.vector,
            total: taken.total,
            repaired: peer.check.repaired.map_or_else(Vec::new, |total| total.to_vec()),
            detailed,
            tables: Vec::new(),
            renamed: Vec::new(),
        };
        if congested || peer.check.told.as_ref() == Some(&short) {
            return Ok(());
        }
        peer.check.told = Some(short.clone());
        let (tables, renamed) = (taken.tables.clone(), taken.renamed.clone());
        let long = DigestMessage { tables, renamed, ..short.clone() };
        self.send_control(id, sealed::DIGEST, if detailed { &long } else { &short })
    }

    /// Both states are those of members that have read each other to the end.
    fn judge_digest(
        &mut self,
        now: Millis,
        id: &PeerId,
        taken: &Taken,
        heard: &DigestMessage,
        ends: (Seq, Seq, Boot),
    ) -> Result<()> {
        let Some(peer) = self.peers.get_mut(id) else { return Ok(()) };
        let equal = heard.total == taken.total;
        if !equal && !heard.detailed {
            return Ok(());
        }
        let differing = if equal {
            Vec::new()
        } else {
            differences((&taken.tables, &taken.renamed), (&heard.tables, &heard.renamed))
        };
        self.check.counts.compared += 1;
        if differing.is_empty() {
            let before = std::mem::take(&mut peer.check);
            let (heard, told, repaired) = (before.heard, before.told, before.repaired);
            let settled = Some(ends);
            peer.check = PeerCheck { heard, told, repaired, settled, ..PeerCheck::default() };
            if before.difference.is_some() {
                let message = "the rows of both members are the same again";
                self.event(Level::Info, "repaired", message, "", Some(id));
            }
            return Ok(());
        }
        let endless = mutants::on(Mutant::EndlessRepair);
        let resting = peer.check.alarm.is_some_and(|at| now.since(at) < limits::REPAIR_PAUSE_MS);
        if peer.check.alarm.is_some() && !resting {
            (peer.check.alarm, peer.check.repairs, peer.check.repaired) = (None, 0, None);
        }
        if peer.check.repaired == Some(heard.total) && !endless {
            // What this side lacked is here. The other side may lack something yet.
            if heard.repaired == taken.total {
                self.diverged(now, id, &differing, ends);
            }
            return Ok(());
        }
        if (resting || peer.check.repairs >= limits::REPAIRS_MAX) && !endless {
            self.diverged(now, id, &differing, ends);
            return Ok(());
        }
        self.differ(id, &differing);
        if let Some(peer) = self.peers.get_mut(id) {
            peer.check.asked = Some((heard.total, differing));
            peer.requesting = true;
        }
        self.open_stream(id, true);
        Ok(())
    }

    /// A difference was found: it is told once.
    fn differ(&mut self, id: &PeerId, differing: &[TableParts]) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        if peer.check.difference.is_some() {
            return;
        }
        let who = who(peer);
        let message = format!(
            "rows of {} differ from those of the member {who}, although both have seen the same; \
             both read them again",
            names(differing)
        );
        let hint = "a file was damaged, or edited while its triggers were off: check it with PRAGMA \
                    integrity_check; values that give way are kept in wavesync_conflicts";
        peer.check.difference = Some((message.clone(), hint.into()));
        self.check.counts.differences += 1;
        self.event(Level::Warning, "difference", &message, hint, Some(id));
    }

    /// Both have read again what the other has, and still hold different rows.
    fn diverged(
        &mut self,
        now: Millis,
        id: &PeerId,
        differing: &[TableParts],
        ends: (Seq, Seq, Boot),
    ) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        peer.check.settled = Some(ends);
        if peer.check.alarm.is_some() {
            return;
        }
        peer.check.alarm = Some(now);
        let who = who(peer);
        let message = format!(
            "rows of {} differ from those of the member {who}, also after both have read them \
             again",
            names(differing)
        );
        let hint = "write the rows that differ once more at the member that has them right; if that \
                    does not help, let one of the two begin with an empty file, and report this";
        peer.check.difference = Some((message.clone(), hint.into()));
        self.check.counts.diverged += 1;
        self.event(Level::Error, "diverged", &message, hint, Some(id));
    }

    /// The stream is open on which rows are read again.
    pub(super) fn ask_again(&mut self, stream: StreamId, store: &Store) -> Result<()> {
        let peer = self.streams.get(&stream).and_then(|entry| self.peers.get(&entry.peer));
        let Some((_, tables)) = peer.and_then(|peer| peer.check.asked.clone()) else {
            self.close_stream(stream);
            return Ok(());
        };
        let chunk_rows = u32::try_from(store.bounds().chunk_rows).unwrap_or(u32::MAX);
        let repair = Repair { tables, chunk_rows };
        self.send_sealed(stream, sealed::REPAIR, &wire::encode(&repair)?)
    }

    /// A peer wants rows again, whatever it has seen of them.
    pub(super) fn serve_again(
        &mut self,
        now: Millis,
        stream: StreamId,
        repair: Repair,
        store: &mut Store,
    ) -> Result<()> {
        let own = store.own_state(now)?;
        let Some(entry) = self.streams.get_mut(&stream) else { return Ok(()) };
        let stopped = self.peers.get(&entry.peer).is_none_or(|peer| peer.stopped.is_some());
        let StreamKind::Outgoing { serving, .. } = &mut entry.kind else { return Ok(()) };
        if serving.is_some() {
            return Err(Error::protocol("a second request on one stream"));
        }
        if own.importing || stopped {
            return self.put_off(stream);
        }
        *serving = Some(Serving::again(repair, own.collected, store.bounds()));
        self.serving.insert(stream);
        Ok(())
    }

    /// A chunk of rows that are read again.
    pub(super) fn chunk_again(
        &mut self,
        now: Millis,
        stream: StreamId,
        chunk: &Chunk,
        store: &mut Store,
    ) -> Result<()> {
        let applied = store.receive_again(now, &chunk.rows)?;
        // From here on memory follows what is committed.
        self.own_dirty |= applied.changed > 0;
        let Some(entry) = self.streams.get_mut(&stream) else { return Ok(()) };
        entry.since = now;
        let id = entry.peer.clone();
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.counters.rows_in += applied.rows;
        }
        if !chunk.last {
            return self.send_sealed(stream, sealed::CREDIT, &[]);
        }
        self.check.counts.repairs += 1;
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.check.repaired = peer.check.asked.take().map(|(total, _)| total);
            peer.check.repairs += 1;
        }
        self.close_stream(stream);
        // What came of it is worth knowing soon.
        (self.check.last, self.check.end) = (Millis(0), None);
        self.consider(now, &id, store)
    }
}

impl Serving {
    /// Serves rows again.
    fn again(repair: Repair, collected: Collected, bounds: limits::Bounds) -> Self {
        let rows = usize::try_from(repair.chunk_rows).unwrap_or(usize::MAX);
        Self {
            place: repair.tables.into(),
            vector: Vector::default(),
            applied: Vector::default(),
            collected,
            full: true,
            credit: super::pass::CHUNKS_IN_FLIGHT,
            rows: rows.max(limits::CHUNK_ASKED_MIN_ROWS).min(bounds.chunk_rows),
            expected: 0,
            end_at_start: Seq(i64::MAX),
        }
    }
}

/// A member by its name, or by its address if its user calls it nothing.
fn who(peer: &Peer) -> String {
    match peer.known.as_ref().filter(|known| !known.name.is_empty()) {
        Some(known) => format!("'{}'", known.name),
        None => format!("at {}", peer.address),
    }
}

/// The names of tables, in words.
fn names(tables: &[TableParts]) -> String {
    let mut names: Vec<String> =
        tables.iter().take(3).map(|table| format!("table '{}'", table.name)).collect();
    if tables.len() > names.len() {
        names.push(format!("{} more tables", tables.len() - names.len()));
    }
    names.join(", ")
}
