//! The fold in bulk: a run of plain inserts becomes clocks with one statement per table.
//!
//! It gives the same clocks as the row-by-row fold. Every insert takes exactly one stamp, so the
//! stamps of a run follow from the log alone. A row whose key has a clock already, or comes twice,
//! is left to the row-by-row fold, with the stamp that its place in the log gave it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use rusqlite::params;
use rusqlite::types::ValueRef;

use crate::Result;
use crate::ids::{Dot, Seq, Stamp, TableNum};
use crate::limits;
use crate::merge::{Clock, Ended};
use crate::store::Tx;
use crate::store::fold::{Entry, Hand};
use crate::store::mask::MASK_INSERT;
use crate::store::shape::KeyForm;
use crate::store::tables::Table;

/// Rows that a run has of each of its tables on average, or it is not worth the statements.
const ROWS_PER_TABLE_MIN: usize = 16;

/// A log row without its key.
pub(super) struct Head {
    pub seq: Seq,
    table: TableNum,
    at: i64,
    /// An insert that may be folded in bulk.
    insert: bool,
    /// Its key is an integer above the one before.
    rises: bool,
}

/// Consecutive log rows whose stamps are their position plus a constant.
struct Segment {
    low: Seq,
    high: Seq,
    plus: i64,
}

impl Tx<'_> {
    /// The next log rows, and which of them are plain inserts into tables where nothing waits.
    pub(super) fn log_heads(&mut self, after: Seq) -> Result<Vec<Head>> {
        let tables = self.bulk_tables()?;
        let mut statement = self.conn.prepare_cached(
            "SELECT seq, tbl, pk, cols, at FROM __wavesync_log WHERE seq > ?1
             ORDER BY seq LIMIT ?2",
        )?;
        let mut rows = statement.query(params![after.0, limits::FOLD_BLOCK_ROWS as i64])?;
        let mut heads = Vec::new();
        let mut before = None;
        while let Some(row) = rows.next()? {
            let table = TableNum(row.get(1)?);
            let inserted = row.get_ref(3)? == ValueRef::Integer(MASK_INSERT);
            let (mut key, mut usable) = (None, true);
            match (tables.get(&table), row.get_ref(2)?) {
                (None, _) | (_, ValueRef::Null) => usable = false,
                // A packed key with a real part is brought into its one form first.
                (Some(KeyForm::Composite), ValueRef::Text(text)) => usable = !text.contains(&b'r'),
                (_, ValueRef::Integer(integer)) => key = Some(integer),
                _ => {}
            }
            heads.push(Head {
                seq: Seq(row.get(0)?),
                table,
                at: row.get::<_, Option<i64>>(4)?.unwrap_or(0),
                insert: usable && inserted,
                rises: key.is_some() && key > before,
            });
            before = key;
        }
        Ok(heads)
    }

    /// Tables that stand here and have nothing parked or held, by the form of their keys.
    fn bulk_tables(&mut self) -> Result<BTreeMap<TableNum, KeyForm>> {
        let mut waiting = BTreeSet::new();
        if self.parked_rows()? > 0 {
            let mut statement =
                self.conn.prepare_cached("SELECT DISTINCT tbl FROM __wavesync_parked")?;
            let tables = statement.query_map([], |row| Ok(TableNum(row.get(0)?)))?;
            waiting = tables.collect::<rusqlite::Result<_>>()?;
        }
        if self.holds_any()? {
            let mut statement =
                self.conn.prepare_cached("SELECT DISTINCT tbl FROM __wavesync_held")?;
            let tables = statement.query_map([], |row| Ok(TableNum(row.get(0)?)))?;
            waiting.extend(tables.collect::<rusqlite::Result<BTreeSet<_>>>()?);
        }
        let here = self.cache.tables.values().filter(|table| table.shape.is_some());
        let free = here.filter(|table| !waiting.contains(&table.num));
        Ok(free.map(|table| (table.num, table.form)).collect())
    }

    /// Folds a run of inserts. Returns of how many different keys it has them at least.
    pub(super) fn fold_inserts(&mut self, run: &[Head], hand: &mut Hand) -> Result<usize> {
        let mut keys = 0;
        let segments = segments(run, hand);
        self.conn.execute_batch(
            "CREATE TEMP TABLE IF NOT EXISTS wavesync_segment(low, high, plus);
             DELETE FROM temp.wavesync_segment;",
        )?;
        let mut insert =
            self.conn.prepare_cached("INSERT INTO temp.wavesync_segment VALUES(?1, ?2, ?3)")?;
        for Segment { low, high, plus } in &segments {
            insert.execute(params![low.0, high.0, plus])?;
        }
        drop(insert);
        for (num, (count, rising)) in tables_of(run) {
            let table = self.table(num)?;
            let done = self.insert_clocks(&table, rising, hand.site())?;
            keys += done;
            if done == count {
                continue;
            }
            for entry in self.left_of_run(num, run)? {
                let at = segments.partition_point(|segment| segment.high < entry.seq);
                let stamp = Stamp(entry.seq.0.wrapping_add(segments[at].plus));
                self.fold_entry(&entry, &mut Hand::exactly(Dot { stamp, site: hand.site() }))?;
            }
        }
        Ok(keys)
    }

    /// Gives every row of the segments a clock, except those whose key has one. Returns how many.
    fn insert_clocks(
        &mut self,
        table: &Table,
        rising: bool,
        own: crate::ids::SiteId,
    ) -> Result<usize> {
        // The same for all of them: what is stored besides the birth does not name it.
        let birth = Dot { stamp: Stamp::NONE, site: own };
        let cells = table.local_columns().map(|column| (column.num, birth)).collect();
        let length = self.length_above(table.num, 0)?;
        let clock = Clock { length, birth, cells, claim: None, ended: Ended::new() };
        let cells = self.encode_cells(table, &clock)?;
        let site = self.site_num(own)?;
        // The plus keeps SQLite from making an index on `tbl` for each statement.
        let order = if rising { "" } else { "ORDER BY l.pk, l.seq" };
        let sql = format!(
            "INSERT OR IGNORE INTO __wavesync_clock_{}(k, cl, seq, stamp, site, cells)
             SELECT l.pk, ?4, l.seq, l.seq + s.plus, ?1, ?2
             FROM temp.wavesync_segment AS s CROSS JOIN __wavesync_log AS l
             ON l.seq BETWEEN s.low AND s.high WHERE +l.tbl = ?3 {order}",
            table.num.0
        );
        Ok(self.conn.prepare_cached(&sql)?.execute(params![site.0, cells, table.num.0, length])?)
    }

    /// Rows of a run that did not become the clock of their key.
    fn left_of_run(&mut self, table: TableNum, run: &[Head]) -> Result<Vec<Entry>> {
        let (Some(first), Some(last)) = (run.first(), run.last()) else { return Ok(Vec::new()) };
        let sql = format!(
            "SELECT l.seq, l.tbl, l.pk, l.cols, l.at FROM __wavesync_log AS l
             WHERE l.seq BETWEEN ?1 AND ?2 AND l.tbl = ?3 AND NOT EXISTS
               (SELECT 1 FROM __wavesync_clock_{} AS c WHERE c.k = l.pk AND c.seq = l.seq)
             ORDER BY l.seq",
            table.0
        );
        let mut statement = self.conn.prepare_cached(&sql)?;
        let bound = params![first.seq.0, last.seq.0, table.0];
        let entries = statement.query_map(bound, Entry::read)?;
        Ok(entries.collect::<rusqlite::Result<_>>()?)
    }
}

/// Cuts a block into runs of inserts and what is between them. Runs of fewer rows than `least` do
/// not count.
pub(super) fn runs(block: &[Head], least: usize) -> Vec<(Range<usize>, bool)> {
    let mut parts: Vec<(Range<usize>, bool)> = Vec::new();
    let mut start = 0;
    for run in block.chunk_by(|one, next| one.insert == next.insert) {
        let range = start..start + run.len();
        start = range.end;
        let bulk = run[0].insert
            && run.len() >= least
            && run.len() >= ROWS_PER_TABLE_MIN.min(least) * tables_of(run).len();
        match parts.last_mut() {
            Some((before, false)) if !bulk => before.end = range.end,
            _ => parts.push((range, bulk)),
        }
    }
    parts
}

/// Of each table, how many rows a run has and whether their keys rise.
fn tables_of(run: &[Head]) -> BTreeMap<TableNum, (usize, bool)> {
    let mut tables = BTreeMap::new();
    let mut last = None;
    for head in run {
        let (count, rising) = tables.entry(head.table).or_insert((0, true));
        let first = *count == 0;
        *count += 1;
        // The key before is one of this table only within an unbroken stretch of it.
        *rising &= first || (last == Some(head.table) && head.rises);
        last = Some(head.table);
    }
    tables
}

fn segments(run: &[Head], hand: &mut Hand) -> Vec<Segment> {
    let mut segments: Vec<Segment> = Vec::new();
    for head in run {
        let plus = hand.stamp(head.at).stamp.0.wrapping_sub(head.seq.0);
        match segments.last_mut() {
            Some(segment) if segment.plus == plus => segment.high = head.seq,
            _ => segments.push(Segment { low: head.seq, high: head.seq, plus }),
        }
    }
    segments
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn heads(inserts: &str) -> Vec<Head> {
        let head = |(at, letter): (usize, char)| Head {
            seq: Seq(at as i64 + 1),
            table: TableNum(1),
            at: 0,
            insert: letter == 'i',
            rises: true,
        };
        inserts.chars().enumerate().map(head).collect()
    }

    #[test]
    fn short_runs_of_inserts_are_left_with_what_is_around_them() {
        let parts = runs(&heads("uiiuuiiiiui"), 3);
        assert_eq!(parts, [(0..5, false), (5..9, true), (9..11, false)]);
        assert_eq!(runs(&heads(""), 3), []);
        assert_eq!(runs(&heads("iii"), 3), [(0..3, true)]);
    }
}
