//! What this replica announces about itself, read in one transaction (rules P5, P11, P12).

use std::collections::{BTreeMap, BTreeSet};

use crate::Result;
use crate::ids::{Boot, Cursor, Dot, Millis, Seq, SiteId, Stamp};
use crate::mutants::{self, Mutant};
use crate::store::collect::Collected;
use crate::store::span::LogEntry;
use crate::store::vector::{Caps, Vector};
use crate::store::{Store, Tx};
use crate::wire::packed::Packed;

/// The newest write event of each site in the rows that may not be covered, where it is known.
pub(super) type Opened = BTreeMap<SiteId, Stamp>;

/// End, vector and openness of this replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnState {
    /// The boot of the running engine.
    pub boot: Boot,
    /// The folded end.
    pub end: Seq,
    /// The version vector.
    pub vector: Vector,
    /// Where it differs, the vector of what was applied (rule P17).
    pub lowered: Vector,
    /// When held changes are due.
    pub release_at: Option<Millis>,
    /// Every write event in the rows is covered by the vector.
    pub closed: bool,
    /// Upper bounds of vector entries.
    pub caps: Caps,
    /// Of each site the highest write event among the tombstones that were forgotten.
    pub collected: Collected,
    /// What was deleted and forgotten may still be here: everything is to be taken over anew, and
    /// nothing is served before.
    pub stale: bool,
    /// The member from which everything is being taken over.
    pub resync_from: Option<SiteId>,
    /// Existing rows are still being taken in.
    pub importing: bool,
    /// Sites of which something found no room here; see [`super::room`].
    pub left_out: BTreeSet<SiteId>,
    /// Rows with INTEGER keys from before joining are here.
    pub populated: bool,
}

impl OwnState {
    /// The vector of what was applied (rule P17).
    #[must_use]
    pub fn applied(&self) -> Vector {
        self.vector.with_lowered(&self.lowered)
    }

    /// Whether all back-fills that a member has seen are here, as far as there is room for them.
    #[must_use]
    pub fn has_met(&self, other: &Vector) -> bool {
        let mut imports = other.imports();
        imports.all(|site| self.vector.0.contains_key(&site) || self.left_out.contains(&site))
    }
}

impl Store {
    /// Reads what is announced; folds first if need be.
    pub fn own_state(&mut self, now: Millis) -> Result<OwnState> {
        let boot = self.boot;
        self.folded(now, |tx| {
            let applied = tx.applied_vector()?;
            let seen = tx.vector()?;
            let vector =
                if mutants::on(Mutant::HeldOutsideVector) { applied.clone() } else { seen };
            Ok(OwnState {
                boot,
                end: tx.folded_end()?,
                lowered: vector.lowered(&applied),
                vector,
                release_at: tx.release_at()?,
                caps: tx.caps()?,
                collected: tx.collected()?,
                closed: tx.meta::<i64>("open_from")?.is_none(),
                stale: tx.meta::<i64>("stale")?.is_some(),
                resync_from: tx.resync()?.map(|resync| resync.from),
                importing: tx.backfill_pending(),
                left_out: tx.left_out_sites()?,
                populated: tx.populated()?,
            })
        })
    }

    /// The cursor that this replica holds for another one.
    pub fn cursor_for(&mut self, now: Millis, site: SiteId) -> Result<Cursor> {
        self.folded(now, |tx| tx.cursor(site))
    }

    /// Where a key-order pass of another replica's rows goes on; see [`Tx::place_at`].
    pub fn place_for(&mut self, now: Millis, site: SiteId) -> Result<Vec<u8>> {
        self.folded(now, |tx| tx.place_at(site))
    }

    /// Rule P12: everything up to the peer's end is known here, so its log need not be read.
    pub fn jump_cursor(&mut self, now: Millis, site: SiteId, cursor: Cursor) -> Result<()> {
        self.write(now, |tx| tx.set_cursor(site, cursor, &[]))
    }

    /// Tests again whether rows are left that the vector does not cover, a bounded part at a time.
    /// Returns whether more is left to test.
    pub fn test_openness(&mut self, now: Millis) -> Result<bool> {
        if super::meta::<i64>(&self.conn, "open_from")?.is_none() {
            return Ok(false);
        }
        self.write(now, |tx| tx.test_openness())
    }
}

impl Tx<'_> {
    /// Notes that rows from this position on may hold write events that the vector does not cover.
    pub(super) fn mark_open(&mut self, from: Seq) -> Result<()> {
        self.cache.opened = None;
        if self.meta::<i64>("open_from")?.is_none() {
            self.set_meta("open_from", from.0)?;
        }
        Ok(())
    }

    /// The same for rows of a batch that were applied. As long as nothing else came in between, the
    /// newest write events of what was applied are remembered: a vector that covers them covers
    /// everything from there on, and no row need be looked at.
    pub(super) fn mark_open_by(&mut self, from: Seq, batch: &Packed<'_>) -> Result<()> {
        let opened = match self.meta::<i64>("open_from")? {
            None => Some(Opened::new()),
            Some(_) => self.cache.opened.take(),
        };
        self.mark_open(from)?;
        self.cache.opened = opened.map(|mut opened| {
            for Dot { stamp, site } in batch.newest_of_sites() {
                let newest = opened.entry(site).or_insert(stamp);
                *newest = (*newest).max(stamp);
            }
            opened
        });
        Ok(())
    }

    /// Rows of any age may hold write events that the vector does not cover.
    pub(super) fn open_everything(&mut self) -> Result<()> {
        self.cache.open_at = None;
        self.cache.opened = None;
        self.set_meta("open_from", 1)
    }

    /// See [`Store::test_openness`].
    pub(super) fn test_openness(&mut self) -> Result<bool> {
        let Some(from) = self.meta::<i64>("open_from")? else { return Ok(false) };
        let horizon = self.horizon()?;
        if Seq(from) <= horizon {
            return self.test_below_horizon(Seq(from), horizon);
        }
        let vector = self.vector()?;
        let covers = |(site, stamp): (&SiteId, &Stamp)| vector.get(*site) >= *stamp;
        if self.cache.opened.as_ref().is_some_and(|opened| opened.iter().all(covers)) {
            return self.close().map(|()| false);
        }
        let most = self.bounds.open_test_entries;
        let mut statement = self.conn.prepare_cached(
            "SELECT seq, tbl, pk, cols, at FROM __wavesync_log WHERE seq >= ?1 ORDER BY seq",
        )?;
        let mut entries = statement.query([from])?;
        let (mut tested, mut reached, mut finished) = (0, from, true);
        while let Some(entry) = entries.next()? {
            if tested >= most {
                finished = false;
                break;
            }
            let entry = LogEntry::read(entry)?;
            let seq = entry.seq;
            reached = seq.0 + 1;
            let Ok(table) = self.table(entry.table) else { continue };
            let mut covered = match self.held_at(seq)? {
                Some(held) => held.row.dots().all(|dot| vector.covers(dot)),
                None => true,
            };
            let (rows, looked_at) = self.covers_entry(&table, &entry, &vector)?;
            (covered, tested) = (covered && rows, tested + looked_at);
            if !covered {
                self.set_meta("open_from", seq.0)?;
                return Ok(false);
            }
        }
        if finished {
            return self.close().map(|()| false);
        }
        self.set_meta("open_from", reached)?;
        Ok(true)
    }

    /// The vector covers every row.
    fn close(&mut self) -> Result<()> {
        self.cache.opened = None;
        self.conn.execute("DELETE FROM __wavesync_meta WHERE key = 'open_from'", [])?;
        Ok(())
    }
}
