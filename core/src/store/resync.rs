//! The way back of a replica that is stale: it was away for longer than deletes are remembered, so
//! others have forgotten tombstones of which it never heard (rules P19, P20).
//!
//! It reads all rows of one member, whole, and notes their keys. What it has beyond these was either
//! deleted there meanwhile, namely if the member's vector covers its birth, or written here and never
//! told. The former goes; the latter comes to life again above the floor, so that no
//! tombstone which others still have is newer. What such a pass notes is stored, so an interrupted
//! one goes on, unless the member has forgotten more since.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use rusqlite::params;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::ids::{Dot, Millis, Seq, SiteId, Stamp};
use crate::merge::{Clock, Ended, Incoming, KeyKind, join_ended, moved_key, one_incarnation};
use crate::mutants::{self, Mutant};
use crate::store::clock::ClockRow;
use crate::store::collect::Collected;
use crate::store::held::Held;
use crate::store::moves::Moved;
use crate::store::rows::{Kind, Values};
use crate::store::tables::Table;
use crate::store::vector::Vector;
use crate::store::{Push, SiteNum, Store, Tx, key};
use crate::value::Value;
use crate::wire::packed::{Packed, RowRef};
use crate::{limits, wire};

/// Where a row could have moved to is noted for this many moves.
const MOVES_NOTED: usize = 4;

/// A pass that takes everything over anew, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resync {
    /// The member that is read.
    pub from: SiteId,
    /// What it had forgotten when the pass began: it begins again if that changes.
    pub collected: Vec<(SiteId, Stamp)>,
    /// Where the pass goes on, in the member's words.
    #[serde(with = "serde_bytes")]
    pub place: Vec<u8>,
    /// Keys are noted. They need not be if nothing was here when it began.
    pub noted: bool,
}

impl Store {
    /// What was forgotten here counts no more: this replica takes everything over anew from the next
    /// member that has forgotten deletes which it never saw. For two groups that forgot apart (rule
    /// K5). Returns whether anything had been forgotten.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn resync(&mut self, now: Millis) -> Result<bool> {
        self.write(now, |tx| {
            let forgotten = !tx.collected()?.is_empty();
            tx.conn.execute("DELETE FROM __wavesync_meta WHERE key = 'collected'", [])?;
            tx.cache.collected = None;
            Ok(forgotten)
        })
    }

    /// Begins a pass that takes everything over anew, or goes on with the one that is stored.
    /// Returns where.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn begin_resync(
        &mut self,
        now: Millis,
        from: SiteId,
        collected: &Collected,
    ) -> Result<Vec<u8>> {
        self.write(now, |tx| {
            let collected: Vec<_> = collected.iter().map(|(site, stamp)| (*site, *stamp)).collect();
            let known = tx.resync()?;
            if let Some(known) = known.filter(|known| {
                known.from == from && known.collected == collected && !known.place.is_empty()
            }) {
                return Ok(known.place);
            }
            tx.end_resync()?;
            let mut noted = false;
            for table in tx.tables() {
                let sql = format!("SELECT 1 FROM __wavesync_clock_{} LIMIT 1", table.num.0);
                noted |= tx.conn.prepare_cached(&sql)?.exists([])?;
            }
            tx.set_resync(&Resync { from, collected, place: Vec::new(), noted })?;
            Ok(Vec::new())
        })
    }
}

impl Tx<'_> {
    /// The pass that takes everything over anew, if one was begun.
    pub(super) fn resync(&self) -> Result<Option<Resync>> {
        let stored: Option<Vec<u8>> = self.meta("resync")?;
        stored.map(|bytes| wire::decode(&bytes)).transpose()
    }

    fn set_resync(&self, resync: &Resync) -> Result<()> {
        self.set_meta("resync", wire::encode(resync)?)
    }

    /// Whether what such a pass would bring has come by other ways.
    pub(super) fn resync_is_needless(&mut self) -> Result<bool> {
        let Some(resync) = self.resync()? else { return Ok(false) };
        let missed: Collected = resync.collected.into_iter().collect();
        let (own, caps) = (self.collected()?, self.caps()?);
        let stale = self.meta::<i64>("stale")?.is_some();
        Ok(!stale && self.applied_vector()?.reaches(&own, &missed, &caps))
    }

    /// Whether a row is too large to be sent.
    pub(super) fn is_too_large(&mut self, table: &Table, key: &Value) -> Result<bool> {
        let values = self.all_values(table, key)?;
        Ok(values.values().map(Value::weight).sum::<usize>() > limits::ROW_MAX_BYTES)
    }

    /// Whatever such a pass noted is not needed any more.
    pub(super) fn end_resync(&self) -> Result<()> {
        self.conn.execute("DELETE FROM __wavesync_resync", [])?;
        self.conn.execute("DELETE FROM __wavesync_meta WHERE key = 'resync'", [])?;
        Ok(())
    }

    /// Notes the keys of rows that a member has, and where the pass goes on.
    pub(super) fn note_rows(
        &mut self,
        from: SiteId,
        batch: &Packed<'_>,
        place: &[u8],
    ) -> Result<()> {
        let Some(mut resync) = self.resync()?.filter(|resync| resync.from == from) else {
            return Ok(());
        };
        for part in batch.tables().filter(|_| resync.noted) {
            let table = self.table_on_wire(part.name(), part.integer_key(), part.key_columns())?;
            let Some(table) = table else { continue };
            for row in part.rows() {
                self.note_row(&table, row)?;
            }
        }
        resync.place = place.to_vec();
        self.set_resync(&resync)
    }

    fn note_row(&mut self, table: &Table, row: RowRef<'_>) -> Result<()> {
        let parts: Vec<Value> = row.key().map(Value::from_ref).collect();
        let (key, birth) = (key::pack(&parts), row.birth());
        let (stamp, site) = self.noted_birth(table, birth)?;
        let mut statement = self.conn.prepare_cached(
            "INSERT OR IGNORE INTO __wavesync_resync(tbl, k, stamp, site) VALUES(?1, ?2, ?3, ?4)",
        )?;
        statement.execute(params![table.num.0, key, stamp, site])?;
        Ok(())
    }

    /// The member may not know yet that a row has to move: where its rows would move to is noted, too,
    /// if any row stands here where it may have moved to.
    fn note_moves(&mut self, table: &Table) -> Result<()> {
        let clocks = format!("__wavesync_clock_{}", table.num.0);
        let sql = format!("SELECT 1 FROM {clocks} WHERE k < 0 AND cl % 2 = 1 LIMIT 1");
        if table.kind != KeyKind::Integer || !self.conn.prepare_cached(&sql)?.exists([])? {
            return Ok(());
        }
        let conn = self.conn;
        let mut noted = conn.prepare_cached(
            "SELECT k, stamp, site FROM __wavesync_resync
             WHERE tbl = ?1 AND home IS NULL AND (k, stamp, site) > (?2, ?3, ?4)
             ORDER BY k, stamp, site LIMIT 1",
        )?;
        let mut insert = conn.prepare_cached(
            "INSERT OR IGNORE INTO __wavesync_resync(tbl, k, stamp, site, home)
             VALUES(?1, ?2, ?3, ?4, ?5)",
        )?;
        let mut after = (i64::MIN, i64::MIN, i64::MIN);
        loop {
            let next = noted.query_row(params![table.num.0, after.0, after.1, after.2], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            });
            let Some((key, stamp, site)) = super::optional(next)? else { return Ok(()) };
            let known = if stamp < 0 { SiteId([0; 16]) } else { self.site(SiteNum(site))? };
            let birth = Dot { stamp: Stamp(stamp), site: known };
            for moved in moves(table, &Value::Integer(key), birth) {
                insert.execute(params![table.num.0, moved, stamp, site, key])?;
            }
            after = (key, stamp, site);
        }
    }

    /// Under an INTEGER key each birth is a row of its own; those from before joining are one.
    fn noted_birth(&mut self, table: &Table, birth: Dot) -> Result<(i64, i64)> {
        Ok(match table.kind {
            KeyKind::Natural => (0, 0),
            KeyKind::Integer if birth.stamp.is_base() => (-1, 0),
            KeyKind::Integer => (birth.stamp.0, self.site_num(birth.site)?.0),
        })
    }

    /// Whether the member has a row under this key, or may have to move it there: NULL, or the key under
    /// which it has it.
    fn noted(&mut self, table: &Table, key: &Value, birth: Dot) -> Result<Option<Value>> {
        let (stamp, site) = self.noted_birth(table, birth)?;
        super::optional(
            self.conn
                .prepare_cached(
                    "SELECT home FROM __wavesync_resync
                     WHERE tbl = ?1 AND k = ?2 AND stamp = ?3 AND site = ?4",
                )?
                .query_row(params![table.num.0, key, stamp, site], |row| {
                    Ok(Value::from_ref(row.get_ref(0)?))
                }),
        )
    }

    /// Where a row that may have had to move from `home` to `key` stands as well, now that what stood
    /// there is gone: under its first key, or on the way.
    fn stands_at(
        &mut self,
        table: &Rc<Table>,
        (home, key): (Value, &Value),
        birth: Dot,
    ) -> Result<Option<Value>> {
        let way: Vec<Value> = moves(table, &home, birth).map(Value::Integer).collect();
        for at in std::iter::once(home).chain(way).take_while(|at| at != key) {
            let here = self.clock(table, &at)?.is_some_and(|row| {
                row.clock.alive() && one_incarnation(table.kind, row.clock.birth, birth)
            });
            if here {
                return Ok(Some(at));
            }
        }
        Ok(None)
    }

    /// A row that stands under two keys is joined into one.
    fn move_back(
        &mut self,
        table: &Rc<Table>,
        (key, to): (&Value, &Value),
        clock: Clock,
        gone: Dot,
    ) -> Result<()> {
        let birth = clock.birth;
        let row = self.take_current(table, key, &clock)?;
        self.join_row(table, to, row)?;
        if let (Value::Integer(from), Value::Integer(to)) = (key, to) {
            self.moved.push(Moved { table: table.num, from: *from, to: *to, birth });
        }
        self.end_row(table, key, clock, gone, Ended::from([(birth, gone)]))
    }

    /// The next key of a row that the member had to move on from this one.
    fn moved_on(&mut self, table: &Table, key: &Value, birth: Dot) -> Result<Option<Value>> {
        let keys: Vec<Value> = moves(table, key, birth).map(Value::Integer).collect();
        for at in &keys {
            if self.noted(table, at, birth)?.is_some() {
                return Ok(keys.first().cloned());
            }
        }
        Ok(None)
    }

    /// The end of such a pass (rule P20): what the member does not have goes, or comes to life above
    /// the floor. Returns whether the pass counts.
    pub(super) fn finish_resync(
        &mut self,
        from: SiteId,
        theirs: &Vector,
        collected: &Collected,
    ) -> Result<bool> {
        let Some(resync) = self.resync()?.filter(|resync| resync.from == from) else {
            return Ok(false);
        };
        let same = resync.collected.iter().copied().eq(collected.iter().map(|(s, d)| (*s, *d)));
        if !same {
            self.end_resync()?;
            return Ok(false);
        }
        let start = self.log_end()?;
        let own = self.own_site()?;
        let prev = self.seen(own)?;
        let mut last = Stamp(self.meta("hlc")?.unwrap_or(0));
        let mut written = BTreeSet::new();
        let mut removed = Vec::new();
        for table in self.tables() {
            self.note_moves(&table)?;
            let mut keys = match resync.noted {
                true => self.rows_not_noted(&table)?,
                false => self.rows_of(&table, own)?,
            };
            while let Some(key) = keys.pop() {
                let Some(clock) = self.clock(&table, &key)?.map(|row| row.clock) else { continue };
                let birth = clock.birth;
                let gone = end_of(collected, birth);
                if let Some(home) = self.noted(&table, &key, birth)? {
                    if home != Value::Null
                        && let Some(at) = self.stands_at(&table, (home, &key), birth)?
                    {
                        self.move_back(&table, (&key, &at), clock, gone)?;
                        removed.push((table.num, key));
                    }
                    continue;
                }
                if let Some(next) = self.moved_on(&table, &key, birth)? {
                    self.end_row(&table, &key, clock, gone, Ended::new())?;
                    removed.push((table.num, key));
                    keys.push(next);
                    continue;
                }
                if theirs.covers(birth) {
                    // What could not be sent was not seen by anybody, whatever vectors say.
                    let stays = !resync.noted || self.is_too_large(&table, &key)?;
                    if !stays && !mutants::on(Mutant::NoAbsence) {
                        self.remove(&table, &key, clock, gone, theirs)?;
                        removed.push((table.num, key));
                    }
                    continue;
                }
                if clock.length <= self.floor(table.num)? {
                    let wall = Stamp::at(i64::try_from(self.now.0).unwrap_or(i64::MAX));
                    let dot = Dot { stamp: wall.max(last.next()), site: own };
                    if self.revive(&table, &key, clock, dot)? {
                        last = dot.stamp;
                        written.insert((table.num, key));
                    }
                }
            }
        }
        if resync.noted && !mutants::on(Mutant::NoAbsence) {
            self.drop_held_unnoted(theirs)?;
        }
        self.set_meta("hlc", last.0)?;
        if !written.is_empty() {
            let boot = self.boot;
            self.raise(own, last, boot)?;
            let rows = self.push_rows(own, prev, written)?;
            self.pushes.push(Push { site: own, boot, prev, upto: last, rows });
        }
        self.follow_moves()?;
        self.mark_open(Seq(start.0 + 1))?;
        self.settle(start)?;
        for (table, key) in removed {
            // As if the delete had come here and been forgotten.
            let sql = format!("DELETE FROM __wavesync_clock_{} WHERE k = ?1", table.0);
            self.conn.prepare_cached(&sql)?.execute([key])?;
        }
        self.store_folded_end()?;
        self.end_resync()?;
        self.conn.execute("DELETE FROM __wavesync_meta WHERE key = 'stale'", [])?;
        Ok(true)
    }

    /// What is held of rows that were deleted while this replica was away would bring them back when
    /// its time comes, and of those that had to move, to where they were.
    fn drop_held_unnoted(&mut self, theirs: &Vector) -> Result<()> {
        let held =
            self.values_of("SELECT seq FROM __wavesync_held WHERE seq > ?1 LIMIT ?2", [0, -1])?;
        for seq in held {
            let Value::Integer(seq) = seq else { continue };
            let seq = Seq(seq);
            let Some(Held { table, key, row, .. }) = self.held_at(seq)? else { continue };
            if row.alive()
                && theirs.covers(row.birth)
                && self.noted(&table, &key, row.birth)?.is_none()
            {
                self.drop_held(seq)?;
            }
        }
        Ok(())
    }

    /// Alive rows that this replica inserted. Without notes it is not known what came from the member,
    /// but what was written here.
    fn rows_of(&mut self, table: &Table, own: SiteId) -> Result<Vec<Value>> {
        let clocks = format!("__wavesync_clock_{}", table.num.0);
        let sql = format!("SELECT k FROM {clocks} WHERE cl % 2 = 1 AND site = ?1 AND cl <= ?2");
        let (own, floor) = (self.site_num(own)?, self.floor(table.num)?);
        self.values_of(&sql, [own.0, floor])
    }

    /// The one column of a query.
    fn values_of(&self, sql: &str, params: [i64; 2]) -> Result<Vec<Value>> {
        let mut statement = self.conn.prepare(sql)?;
        let values = statement.query_map(params, |row| Ok(Value::from_ref(row.get_ref(0)?)))?;
        Ok(values.collect::<rusqlite::Result<_>>()?)
    }

    /// Alive rows that the member does not have under their keys.
    fn rows_not_noted(&self, table: &Table) -> Result<Vec<Value>> {
        let birth = match table.kind {
            KeyKind::Natural => "",
            KeyKind::Integer => {
                "AND n.stamp = max(c.stamp, -1) AND n.site = CASE WHEN c.stamp < 0 THEN 0 ELSE c.site END"
            }
        };
        let sql = format!(
            "SELECT k FROM __wavesync_clock_{} AS c WHERE cl % 2 = 1 AND NOT EXISTS
             (SELECT 1 FROM __wavesync_resync AS n
              WHERE n.tbl = ?1 AND n.k = c.k AND n.home IS NULL {birth})
             ORDER BY k DESC LIMIT ?2",
            table.num.0
        );
        self.values_of(&sql, [table.num.0, -1])
    }

    /// A row that was deleted while this replica was away. What was written to it and never told is
    /// kept for the user.
    fn remove(
        &mut self,
        table: &Rc<Table>,
        key: &Value,
        clock: Clock,
        gone: Dot,
        theirs: &Vector,
    ) -> Result<()> {
        if clock.dots().any(|dot| !theirs.covers(dot)) {
            let ours = self.all_values(table, key)?;
            let reason = "the row was deleted by another member while this replica was away";
            let kind = ("overwritten", reason);
            self.add_conflict(table, key, kind, &ours, &Values::new(), gone.site)?;
        }
        let mut ended = Ended::new();
        if table.kind == KeyKind::Integer {
            ended.insert(clock.birth, gone);
        }
        self.end_row(table, key, clock, gone, ended)
    }

    fn end_row(
        &mut self,
        table: &Rc<Table>,
        key: &Value,
        clock: Clock,
        gone: Dot,
        ended: Ended,
    ) -> Result<()> {
        let (length, cells) = (clock.length + 1, BTreeMap::new());
        let end = Incoming { length, birth: gone, whole: true, cells, ended };
        self.join(table, key, Some(clock), end)?;
        Ok(())
    }

    /// A row that was written here and that others have not seen: it begins again above the floor, as
    /// if it had been deleted and inserted now.
    fn revive(
        &mut self,
        table: &Rc<Table>,
        key: &Value,
        mut clock: Clock,
        dot: Dot,
    ) -> Result<bool> {
        let parked = self.parked(table, key)?;
        if mutants::on(Mutant::NoRebase) || parked.is_some_and(|p| p.kind == Kind::Incomplete) {
            return Ok(false);
        }
        clock.length = self.length_above(table.num, clock.length)?;
        if table.kind == KeyKind::Integer {
            // Whoever has it where it had to move to learns that it is not there any more.
            clock.ended = join_ended(&clock.ended, &Ended::from([(clock.birth, dot)]));
        }
        clock.birth = dot;
        clock.cells.values_mut().for_each(|cell| *cell = dot);
        let seq = self.append_log(table.num, key)?;
        self.set_clock(table, key, &ClockRow { clock, seq })?;
        Ok(true)
    }
}

/// Where a row under an INTEGER key would move to, and on from there.
fn moves(table: &Table, key: &Value, birth: Dot) -> impl Iterator<Item = i64> + use<> {
    let home = match (table.kind, key) {
        (KeyKind::Integer, Value::Integer(home)) => Some(*home),
        _ => None,
    };
    let next = move |key: &i64| Some(moved_key(*key, birth));
    std::iter::successors(home, next).skip(1).take(MOVES_NOTED)
}

/// Stands for the delete of a row that is gone, until it is forgotten, too: which one it was is not
/// known.
fn end_of(collected: &Collected, birth: Dot) -> Dot {
    let known = collected.iter().map(|(site, stamp)| Dot { stamp: *stamp, site: *site });
    known.max().unwrap_or(birth)
}
