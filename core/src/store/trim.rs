//! The horizon: the log goes back only as far as a member is likely to ask (rule K2).
//!
//! The log is the index from a position to rows; the rows themselves stay. Entries are removed from
//! its start, a bounded number at a time, never the newest one (rule P7b: its number would be given
//! again). Whoever asks from below the horizon is served in key order ([`crate::store::scan`]), so
//! how far it is kept is a matter of speed, not of correctness.

use rusqlite::params;

use crate::Result;
use crate::ids::{Cursor, Millis, Seq, SiteId, TableNum};
use crate::limits;
use crate::mutants::{self, Mutant};
use crate::store::{Store, Tx};
use crate::value::Value;

impl Store {
    /// Removes some log entries that nobody is likely to need: `read` says how far members that are
    /// connected have read this log. Returns whether more are left to remove.
    ///
    /// # Errors
    /// If SQLite fails; they are removed later then.
    pub fn trim_block(&mut self, now: Millis, read: &[(SiteId, Cursor)]) -> Result<bool> {
        let least = self.bounds.log_trim_rows;
        let (horizon, target) =
            self.folded(now, |tx| Ok((tx.horizon()?, tx.trim_target(read)?)))?;
        if target.0 - horizon.0 < least {
            return Ok(false);
        }
        self.write(now, |tx| {
            for (site, cursor) in read {
                tx.remember_read(*site, *cursor)?;
            }
            let target = tx.trim_target(&[])?;
            tx.trim(Seq(target.0.min(tx.horizon()?.0 + least)))?;
            Ok(target.0 - tx.horizon()?.0 >= least)
        })
    }
}

impl Tx<'_> {
    /// The log is complete above this position; below it, only the rows themselves are there.
    pub fn horizon(&self) -> Result<Seq> {
        Ok(Seq(self.meta("horizon")?.unwrap_or(0)))
    }

    /// Up to where the log is not needed: what members seen lately have read, and what is old.
    fn trim_target(&mut self, read: &[(SiteId, Cursor)]) -> Result<Seq> {
        let end = self.folded_end()?;
        let newest = if mutants::on(Mutant::TrimNewest) { end } else { Seq(end.0 - 1) };
        let seen_after = self.now.0.saturating_sub(limits::LOG_MEMBER_MAX_MS);
        let members = self
            .conn
            .prepare_cached(
                "SELECT s.id, m.read FROM __wavesync_member m
                 JOIN __wavesync_site s ON s.num = m.site WHERE m.seen >= ?1",
            )?
            .query_map([i64::try_from(seen_after).unwrap_or(0)], |row| {
                Ok((row.get::<_, Vec<u8>>(0)?, Seq(row.get(1)?)))
            })?
            .collect::<rusqlite::Result<Vec<_>>>()?;
        let mut target = newest;
        for (id, known) in members {
            let now = read.iter().find(|(site, _)| site.0[..] == id[..]);
            let known = match now {
                Some((_, cursor)) if self.cursor_is_ours(*cursor)? => cursor.seq,
                _ => known,
            };
            target = target.min(known);
        }
        let old = Seq(end.0 - self.bounds.log_keep_rows);
        Ok(target.max(old).min(newest))
    }

    /// How far a member has read this log.
    pub fn remember_read(&mut self, site: SiteId, cursor: Cursor) -> Result<()> {
        let read = if self.cursor_is_ours(cursor)? { cursor.seq } else { Seq(0) };
        let number = self.site_num(site)?;
        self.conn
            .prepare_cached(
                "UPDATE __wavesync_member SET read = ?2 WHERE site = ?1 AND read <> ?2",
            )?
            .execute(params![number.0, read.0])?;
        Ok(())
    }

    /// Moves the horizon.
    fn trim(&mut self, to: Seq) -> Result<()> {
        self.conn.prepare_cached("DELETE FROM __wavesync_log WHERE seq <= ?1")?.execute([to.0])?;
        self.set_meta("horizon", to.0)?;
        // A test of what is no longer in the log begins again.
        self.cache.open_at = None;
        Ok(())
    }

    /// Tests rows that the log no longer names for write events which the vector does not cover, a
    /// bounded number at a time, from the first one with an entry at or above a position. Returns
    /// whether the test has to go on.
    pub(super) fn test_below_horizon(&mut self, from: Seq, horizon: Seq) -> Result<bool> {
        let conn = self.conn;
        let vector = self.vector()?;
        let (first, mut after) = self.cache.open_at.take().unwrap_or((TableNum(0), Value::Null));
        let mut left = self.bounds.open_test_entries;
        for table in self.tables().into_iter().filter(|table| table.num >= first) {
            if table.num != first {
                after = Value::Null;
            }
            let sql = &table.statements;
            let start = after == Value::Null;
            let sql = if start { &sql.keys_first } else { &sql.keys_after };
            let mut statement = conn.prepare_cached(sql)?;
            let mut keys = if start { statement.query([])? } else { statement.query([&after])? };
            while let Some(row) = keys.next()? {
                let (key, seq) = (Value::from_ref(row.get_ref(0)?), Seq(row.get(1)?));
                if from <= seq
                    && seq <= horizon
                    && let Some(row) = self.clock(&table, &key)?
                    && !row.clock.dots().all(|dot| vector.covers(dot))
                {
                    self.cache.open_at = Some((table.num, after));
                    return Ok(false);
                }
                after = key;
                left -= 1;
                if left == 0 {
                    self.cache.open_at = Some((table.num, after));
                    return Ok(true);
                }
            }
        }
        let held = conn
            .prepare_cached("SELECT seq FROM __wavesync_held WHERE seq >= ?1 AND seq <= ?2")?
            .query_map([from.0, horizon.0], |row| Ok(Seq(row.get(0)?)))?
            .collect::<rusqlite::Result<Vec<_>>>()?;
        for seq in held {
            let held = self.held_at(seq)?;
            if held.is_some_and(|held| !held.row.dots().all(|dot| vector.covers(dot))) {
                return Ok(false);
            }
        }
        self.set_meta("open_from", horizon.0 + 1)?;
        Ok(true)
    }
}
