//! Traces of deleted rows that nobody needs any more are forgotten (rule P18).
//!
//! A deleted row leaves a *tombstone*, a dead state in `L`, so that whoever still has the row learns of its
//! end. Once every member that was seen lately has told that it applied the delete, the tombstone goes. What
//! stays is little: of each site the highest write event among what was forgotten (`collected`), and of
//! each table the highest causal length (its *floor*). The first tells who has not seen all that was
//! forgotten: such a replica is *stale* (rule P19), and [`crate::store::resync`] is its way back.
//! The second is where new rows begin, so that a tombstone which others still have is not newer.

use std::collections::BTreeMap;
use std::rc::Rc;

use rusqlite::params;

use crate::Result;
use crate::ids::{Dot, Millis, SiteId, Stamp, TableNum};
use crate::merge::{Clock, Incoming, KeyKind};
use crate::mutants::{self, Mutant};
use crate::store::apply::Applied;
use crate::store::tables::Table;
use crate::store::vector::{Caps, Vector};
use crate::store::{Store, Tx, key};
use crate::value::Value;
use crate::wire::message::{Floor, VectorList};
use crate::wire::rows::Batch;
use crate::{limits, wire};

/// Of each site the highest write event among the tombstones that were forgotten.
pub type Collected = BTreeMap<SiteId, Stamp>;

/// Where a search for tombstones goes on: a table and the last key that was looked at.
pub type SearchPlace = (TableNum, Value);

/// For how long things are kept, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Keeps {
    /// A deleted row is remembered for at least this long.
    pub tombstone_ms: u64,
    /// A member that was not seen for this long is not waited for.
    pub member_ms: u64,
}

/// One bounded part of a search.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Searched {
    /// Tombstones that were forgotten.
    pub forgotten: usize,
    /// Where the search goes on; `None` if it is through.
    pub next: Option<SearchPlace>,
}

impl Vector {
    /// Whether who has applied this, and forgotten `own`, has seen everything that was forgotten by
    /// another one. Whoever has not is stale (rule P19). Above a cap only what was forgotten counts.
    #[must_use]
    pub fn reaches(&self, own: &Collected, forgotten: &Collected, caps: &Caps) -> bool {
        let same = |site, stamp| own.get(site).is_some_and(|own| own >= stamp);
        forgotten.iter().all(|(site, stamp)| {
            self.get(*site) >= *stamp || (caps.contains_key(site) && same(site, stamp))
        })
    }
}

/// Takes the higher stamp of each site.
pub fn raise(collected: &mut Collected, more: &Collected) {
    for (site, stamp) in more {
        let known = collected.entry(*site).or_insert(*stamp);
        *known = (*known).max(*stamp);
    }
}

/// Leaves what a vector claims: beyond that a replica would be stale for itself. The vector may claim
/// less for a while (after a loss, see [`crate::store::regain`]). Above a cap (rule P14) it claims
/// nothing any more, and who has not forgotten the same may have another branch of that history,
/// without the deletes.
pub fn bound(collected: &mut Collected, vector: &Vector, caps: &Caps) {
    collected.retain(|site, stamp| {
        if !caps.contains_key(site) {
            *stamp = (*stamp).min(vector.get(*site));
        }
        vector.0.contains_key(site)
    });
}

/// What makes a tombstone superfluous.
struct Needless {
    /// What this replica and every member seen lately have applied.
    applied: Vec<Vector>,
    caps: Caps,
    /// Deletes after this are too young.
    before: u64,
}

impl Needless {
    fn is(&self, clock: &Clock) -> bool {
        let settled = |dot: Dot| {
            let capped = self.caps.get(&dot.site).is_some_and(|cap| *cap < dot.stamp);
            !capped && self.applied.iter().all(|applied| applied.covers(dot))
        };
        let ordinary = clock.length <= limits::FLOOR_MAX;
        ordinary
            && !clock.alive()
            && clock.birth.stamp.millis() <= self.before
            && clock.dots().all(settled)
    }
}

impl Store {
    /// How long a deleted row is remembered at least, and how long a member that is away is waited
    /// for, in milliseconds.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn keeps(&self) -> Result<Keeps> {
        let setting = |key| -> Result<Option<u64>> {
            let text: Option<String> = super::meta(&self.conn, key)?;
            Ok(text.and_then(|text| text.parse().ok()))
        };
        Ok(Keeps {
            tombstone_ms: setting("config:tombstone_keep_ms")?
                .unwrap_or(self.bounds.tombstone_keep_ms),
            member_ms: setting("config:member_keep_ms")?.unwrap_or(self.bounds.member_keep_ms),
        })
    }

    /// Notes what connected members have applied, at the start of a search.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn note_applied(&mut self, now: Millis, applied: &[(SiteId, Vector)]) -> Result<()> {
        let keeps = self.keeps()?;
        let told = applied
            .iter()
            .map(|(site, vector)| Ok((*site, wire::encode(&VectorList::from(vector))?)));
        let told = told.collect::<Result<Vec<_>>>()?;
        // Well before somebody who is connected would count as away.
        let recent = now.0.saturating_sub(keeps.member_ms / 4);
        let known = |tx: &mut Tx<'_>| -> Result<bool> {
            let mut all = true;
            for (site, applied) in &told {
                let number = tx.site_num(*site)?;
                all &= tx
                    .conn
                    .prepare_cached(
                        "SELECT 1 FROM __wavesync_member
                         WHERE site = ?1 AND applied = ?2 AND seen >= ?3",
                    )?
                    .exists(params![number.0, applied, recent as i64])?;
            }
            Ok(all)
        };
        if self.folded(now, known)? {
            return Ok(());
        }
        self.write(now, |tx| {
            for (site, applied) in &told {
                let number = tx.site_num(*site)?;
                tx.conn
                    .prepare_cached(
                        "UPDATE __wavesync_member SET applied = ?2, seen = ?3 WHERE site = ?1",
                    )?
                    .execute(params![number.0, applied, tx.now.0 as i64])?;
            }
            Ok(())
        })
    }

    /// Looks through some rows for tombstones that nobody needs, and forgets these.
    ///
    /// # Errors
    /// If SQLite fails; nothing was forgotten then.
    pub fn collect_block(&mut self, now: Millis, place: SearchPlace) -> Result<Searched> {
        let keeps = self.keeps()?;
        if self.folded(now, |tx| tx.resync_is_needless())? {
            self.write(now, |tx| tx.end_resync())?;
        }
        let (found, next) = self.folded(now, |tx| tx.find_needless(place, keeps))?;
        if found.is_empty() {
            return Ok(Searched { forgotten: 0, next });
        }
        // Looked at again: another process may have written in between.
        let forgotten = self.write(now, |tx| tx.forget_tombstones(&found, keeps))?;
        Ok(Searched { forgotten, next })
    }
}

impl Tx<'_> {
    /// Of each site the highest write event among what was forgotten, as far as that counts.
    pub fn collected(&mut self) -> Result<Collected> {
        let mut collected = self.forgotten()?;
        if collected.is_empty() {
            return Ok(collected);
        }
        bound(&mut collected, &self.vector()?, &self.caps()?);
        Ok(collected)
    }

    fn forgotten(&mut self) -> Result<Collected> {
        if let Some(collected) = &self.cache.collected {
            return Ok(collected.clone());
        }
        let bytes = self.meta::<Vec<u8>>("collected")?.unwrap_or_default();
        let entry = |entry: &[u8]| {
            let (site, stamp) = (SiteId::from_slice(entry.get(..16)?)?, entry.get(16..24)?);
            Some((site, Stamp(i64::from_be_bytes(stamp.try_into().ok()?))))
        };
        let collected: Collected = bytes.chunks(24).filter_map(entry).collect();
        self.cache.collected = Some(collected.clone());
        Ok(collected)
    }

    /// Takes in what was forgotten, here or by a member whose vector was merged.
    pub(super) fn raise_collected(&mut self, more: &Collected) -> Result<()> {
        let before = self.forgotten()?;
        let mut collected = before.clone();
        raise(&mut collected, more);
        if collected == before {
            return Ok(());
        }
        let entries = collected
            .iter()
            .flat_map(|(site, stamp)| site.0.into_iter().chain(stamp.0.to_be_bytes()));
        self.set_meta("collected", entries.collect::<Vec<u8>>())?;
        self.cache.collected = Some(collected);
        Ok(())
    }

    /// The causal length above which new rows of a table begin.
    pub(super) fn floor(&mut self, table: TableNum) -> Result<i64> {
        if mutants::on(Mutant::NoFloor) {
            return Ok(0);
        }
        if self.cache.floors.is_none() {
            let floors = self
                .conn
                .prepare_cached(
                    "SELECT CAST(substr(key, 7) AS INTEGER), value FROM __wavesync_meta
                     WHERE key >= 'floor:' AND key < 'floor;'",
                )?
                .query_map([], |row| Ok((TableNum(row.get(0)?), row.get(1)?)))?
                .collect::<rusqlite::Result<_>>()?;
            self.cache.floors = Some(floors);
        }
        let floors = self.cache.floors.as_ref();
        Ok(floors.and_then(|floors| floors.get(&table)).copied().unwrap_or(0))
    }

    /// The causal length of a row that comes to life: above what is known of its key and the floor.
    pub(super) fn length_above(&mut self, table: TableNum, known: i64) -> Result<i64> {
        let length = known.max(self.floor(table)?);
        Ok(length + length % 2 + 1)
    }

    pub(super) fn raise_floor(&mut self, table: TableNum, length: i64) -> Result<()> {
        if self.floor(table)? < length {
            self.set_meta(&format!("floor:{}", table.0), length)?;
            self.cache.floors = None;
        }
        Ok(())
    }

    /// The floors, as they travel.
    pub fn floors(&mut self) -> Result<Vec<Floor>> {
        let mut floors = Vec::new();
        for table in self.tables() {
            let length = self.floor(table.num)?;
            if length > 0 {
                floors.push(Floor {
                    table: table.name.clone(),
                    integer_key: table.kind == KeyKind::Integer,
                    key_columns: table.key_columns,
                    length,
                });
            }
        }
        Ok(floors)
    }

    /// Takes in the floors of a member whose vector is merged.
    pub(super) fn take_floors(&mut self, floors: &[Floor]) -> Result<()> {
        for floor in floors {
            let (name, integer, columns) = (&floor.table, floor.integer_key, floor.key_columns);
            let table = match self.table_on_wire(name, integer, columns)? {
                Some(table) => table,
                None if !self.has_room_for_table() => continue,
                None => self.number_foreign_table(name, integer, columns)?,
            };
            self.raise_floor(table.num, floor.length)?;
        }
        Ok(())
    }

    /// Applies rows that come by other ways than a catch-up or a push, however old they are: a row
    /// whose delete was forgotten does not come back (rule P18).
    pub fn apply_from_outside(&mut self, batch: &Batch) -> Result<Applied> {
        if self.collected()?.is_empty() {
            return self.apply(batch);
        }
        let vector = self.vector()?;
        let mut batch = batch.clone();
        for part in &mut batch.tables {
            let known = self.table_on_wire(&part.name, part.integer_key, part.key_columns)?;
            let Some(table) = known else { continue };
            let mut rows = Vec::with_capacity(part.rows.len());
            for row in std::mem::take(&mut part.rows) {
                // What is covered is here, or was deleted and forgotten (rule P6).
                let known = !vector.covers(row.birth)
                    || self.clock(&table, &key::pack(&row.key))?.is_some()
                    || self.has_moved(&table, &row)?;
                if known {
                    rows.push(row);
                }
            }
            part.rows = rows;
        }
        self.apply(&batch)
    }

    /// Whether a row of which nothing is known was deleted, and that is forgotten (rule P6).
    pub(super) fn was_forgotten(&mut self, birth: Dot) -> Result<bool> {
        Ok(!self.forgotten()?.is_empty() && self.applied_vector()?.covers(birth))
    }

    /// The same of a row that stood here once, while its table was tracked. If it cannot be told before
    /// others have sent again what this replica lost, it takes everything over anew.
    pub(super) fn may_be_forgotten(&mut self, birth: Dot) -> Result<bool> {
        if self.forgotten()?.is_empty() {
            return Ok(false);
        }
        let seen = self.applied_vector()?.covers(birth);
        if !seen {
            self.set_meta("stale", 1)?;
        }
        Ok(seen)
    }

    /// Whether a patch finds no row here because it was deleted and that is forgotten, or has nothing
    /// to say but that its row exists.
    pub(super) fn is_patch_of_nothing(
        &mut self,
        table: &Rc<Table>,
        key: &Value,
        patch: &Incoming,
    ) -> Result<bool> {
        if !patch.alive() || self.clock(table, key)?.is_some() {
            return Ok(false);
        }
        let says_nothing = patch.cells.is_empty() && patch.ended.is_empty();
        // Its row may stand here where it has not moved from yet.
        if !says_nothing && matches!((table.kind, key), (KeyKind::Integer, Value::Integer(..=-1))) {
            return Ok(false);
        }
        Ok(says_nothing
            || (self.was_forgotten(patch.birth)? && self.place_of(table, key, patch)?.is_none()))
    }

    /// What makes a tombstone superfluous now; `None` while nothing can be forgotten.
    fn needless(&mut self, keeps: Keeps) -> Result<Option<Needless>> {
        if self.backfill_pending() || self.resync()?.is_some() {
            return Ok(None);
        }
        let after = i64::try_from(self.now.0.saturating_sub(keeps.member_ms)).unwrap_or(0);
        let own: i64 = self.meta("self")?.unwrap_or(0);
        let members = self
            .conn
            .prepare_cached(
                "SELECT applied FROM __wavesync_member WHERE seen >= ?1 AND site <> ?2",
            )?
            .query_map([after, own], |row| row.get(0))?
            .collect::<rusqlite::Result<Vec<Option<Vec<u8>>>>>()?;
        // Who is alone keeps everything: nobody could tell what happened to rows that come back.
        if members.is_empty() {
            return Ok(None);
        }
        let vector = self.vector()?;
        let mut applied = vec![self.applied_vector()?];
        for told in members {
            let Some(told) = told else { return Ok(None) };
            let told = wire::decode::<VectorList>(&told)?.check()?;
            // What a member had written or taken in when it told this has to be here, too: an insert
            // that did not know of the delete may still be on its way (rule P18b).
            if !vector.covers_all(&told) && !mutants::on(Mutant::UnseenForgotten) {
                return Ok(None);
            }
            applied.push(told);
        }
        let before = self.now.0.saturating_sub(keeps.tombstone_ms);
        Ok(Some(Needless { applied, caps: self.caps()?, before }))
    }

    /// Tombstones among the next rows that nobody needs, and where to go on.
    #[allow(clippy::type_complexity)]
    fn find_needless(
        &mut self,
        (first, after): SearchPlace,
        keeps: Keeps,
    ) -> Result<(Vec<SearchPlace>, Option<SearchPlace>)> {
        let Some(needless) = self.needless(keeps)? else { return Ok((Vec::new(), None)) };
        let mut tables = self.tables();
        tables.retain(|table| table.num >= first);
        tables.sort_by_key(|table| table.num);
        let mut found = Vec::new();
        let mut left = self.bounds.collect_rows;
        for table in tables {
            let after = if table.num == first { after.clone() } else { Value::Null };
            let (rows, last) = self.dead_after(&table, &after, left)?;
            for key in rows {
                let clock = self.clock(&table, &key)?.map(|row| row.clock);
                if clock.is_some_and(|clock| needless.is(&clock))
                    && !self.holds_key(&table, &key)?
                {
                    found.push((table.num, key));
                }
            }
            match last {
                Some((looked, last)) if looked >= left => {
                    return Ok((found, Some((table.num, last))));
                }
                Some((looked, _)) => left -= looked,
                None => {}
            }
        }
        Ok((found, None))
    }

    /// The dead ones among the next rows of a table; how many these are, and the last one.
    #[allow(clippy::type_complexity)]
    fn dead_after(
        &self,
        table: &Table,
        after: &Value,
        most: usize,
    ) -> Result<(Vec<Value>, Option<(usize, Value)>)> {
        let condition = if *after == Value::Null { "?1 IS NULL" } else { "k > ?1" };
        let sql = format!(
            "SELECT k, cl FROM __wavesync_clock_{} WHERE {condition} ORDER BY k LIMIT {most}",
            table.num.0
        );
        let mut statement = self.conn.prepare_cached(&sql)?;
        let mut rows = statement.query([after])?;
        let (mut dead, mut last, mut looked) = (Vec::new(), None, 0);
        while let Some(row) = rows.next()? {
            let (key, length) = (Value::from_ref(row.get_ref(0)?), row.get::<_, i64>(1)?);
            looked += 1;
            if length % 2 == 0 {
                dead.push(key.clone());
            }
            last = Some((looked, key));
        }
        Ok((dead, last))
    }

    /// Something of a row waits for its time (rule P17), and that it was deleted counts then.
    fn holds_key(&mut self, table: &Table, key: &Value) -> Result<bool> {
        Ok(self.held_length(table, key)? > 0)
    }

    fn forget_tombstones(&mut self, found: &[SearchPlace], keeps: Keeps) -> Result<usize> {
        let Some(needless) = self.needless(keeps)? else { return Ok(0) };
        let mut forgotten = 0;
        let mut collected = Collected::new();
        for (num, key) in found {
            let Ok(table) = self.table(*num) else { continue };
            let Some(row) = self.clock(&table, key)? else { continue };
            if !needless.is(&row.clock) || self.holds_key(&table, key)? {
                continue;
            }
            let dots = row.clock.dots().map(|dot| (dot.site, dot.stamp));
            dots.for_each(|(site, stamp)| raise(&mut collected, &Collected::from([(site, stamp)])));
            self.raise_floor(*num, row.clock.length)?;
            let sql = format!("DELETE FROM __wavesync_clock_{} WHERE k = ?1", num.0);
            forgotten += self.conn.prepare_cached(&sql)?.execute([key])?;
        }
        self.raise_collected(&collected)?;
        Ok(forgotten)
    }
}
