//! First contact: whether the rows that two replicas had before they joined are the same rows.
//!
//! Rows of one INTEGER key that both existed before their replicas joined merge as one row, because
//! that is what copies of one file need. Two databases that were filled apart would lose half of
//! their rows by that. So before anything is exchanged with a replica that brings rows of its own,
//! some rows are compared; if most of them differ, nothing is, and the user decides.

use std::rc::Rc;

use rusqlite::{OptionalExtension, params};
use sha2::{Digest, Sha256};

use crate::ids::{ColumnNum, Dot, Millis, SiteId};
use crate::limits;
use crate::merge::{Clock, Incoming, KeyKind};
use crate::store::rows::Values;
use crate::store::tables::Table;
use crate::store::{Store, Tx};
use crate::value::Value;
use crate::wire::message::SampleTable;
use crate::wire::packed::{Packed, RowRef};
use crate::wire::rows::Batch;
use crate::{Error, Result};

/// What the rows that a database had before it joined are to those of the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Rows with equal keys are the same things: they merge.
    Same,
    /// They are other things: the rows here get new INTEGER keys.
    NewIds,
}

/// The key in `__wavesync_meta` of a decision: `same` waits for the first contact, `new_ids` was
/// carried out.
pub(super) const DECISION: &str = "existing";
/// Rows with INTEGER keys that existed before joining are in `L`.
const POPULATED: &str = "populated";
/// Rows were exchanged with another replica.
const SHARED: &str = "shared";

/// What to do about [`Tx::unrelated`] tables.
pub const CHOICES: &str = "if equal ids mean the same things, join again here or there with the \
     option {\"existing\":\"same\"}; if not, {\"existing\":\"new_ids\"} gives the rows of one of the \
     two new ids: the one whose rows no other member has yet";

/// What happened, in words.
#[must_use]
pub fn describe(tables: &[String]) -> String {
    let shown: Vec<&str> = tables.iter().take(3).map(String::as_str).collect();
    let more = if tables.len() > shown.len() { ", …" } else { "" };
    format!(
        "both databases had rows before they met, and under equal ids most of them differ (table \
         {}{more}): nothing is exchanged",
        shown.join(", ")
    )
}

impl Store {
    /// Carries out what the user says about rows that existed before joining.
    ///
    /// # Errors
    /// [`Error::Argument`] if the rows here cannot get new ids because other members have them.
    pub fn decide_existing(&mut self, now: Millis, existing: Existing) -> Result<()> {
        self.write(now, |tx| {
            let waiting: i64 = tx.conn.query_row(
                "SELECT count(*) FROM __wavesync_member WHERE contact IS NOT NULL",
                [],
                |row| row.get(0),
            )?;
            let (done, shared) = (tx.meta::<String>(DECISION)?.is_some(), tx.is_marked(SHARED)?);
            match existing {
                Existing::Same if waiting > 0 => {
                    tx.conn.execute(
                        "UPDATE __wavesync_member SET accepted = 1, contact = NULL
                         WHERE contact IS NOT NULL",
                        [],
                    )?;
                    Ok(())
                }
                Existing::Same if shared || done => Ok(()),
                Existing::Same => tx.set_meta(DECISION, "same"),
                Existing::NewIds if waiting == 0 && (shared || done) => Ok(()),
                Existing::NewIds if shared => Err(Error::Argument(
                    "the rows of this database cannot get new ids, because other members have \
                     them already; use the option {\"existing\":\"new_ids\"} in the database that \
                     was joined last, or {\"existing\":\"same\"} here"
                        .into(),
                )),
                Existing::NewIds => {
                    tx.conn.execute("UPDATE __wavesync_member SET contact = NULL", [])?;
                    tx.set_meta(DECISION, "new_ids")?;
                    tx.renumber_tracked()
                }
            }
        })
    }

    /// Why nothing is exchanged with some member, if so, as of when an engine last ran.
    pub fn stopped_contact(&self) -> Result<Option<String>> {
        if !self.initialised()? {
            return Ok(None);
        }
        let tables: Option<String> = super::optional(self.conn.query_row(
            "SELECT contact FROM __wavesync_member WHERE contact IS NOT NULL LIMIT 1",
            [],
            |row| row.get(0),
        ))?;
        Ok(tables.map(|tables| describe(&[tables])))
    }

    /// Notes that another replica is about to have rows of this one.
    pub fn note_shared(&mut self, now: Millis) -> Result<()> {
        if super::meta::<i64>(&self.conn, SHARED)?.is_some() {
            return Ok(());
        }
        self.write(now, |tx| tx.mark(SHARED))
    }
}

impl Tx<'_> {
    fn is_marked(&self, mark: &str) -> Result<bool> {
        Ok(self.meta::<i64>(mark)?.is_some())
    }

    fn mark(&self, mark: &str) -> Result<()> {
        if self.is_marked(mark)? { Ok(()) } else { self.set_meta(mark, 1) }
    }

    /// Whether there are rows here that first contact is about.
    pub fn populated(&self) -> Result<bool> {
        self.is_marked(POPULATED)
    }

    pub(super) fn note_populated(&self) -> Result<()> {
        self.mark(POPULATED)
    }

    /// Notes what comes in with a batch: rows from before joining, and that anything did.
    pub(super) fn note_received(&self, batch: &Packed<'_>) -> Result<()> {
        let old = |row: RowRef<'_>| row.birth().stamp.is_base();
        if batch.tables().any(|table| table.integer_key() && table.rows().any(old)) {
            self.note_populated()?;
        }
        self.mark(SHARED)
    }

    /// What is kept of the contact with a replica: the tables that differ, if nothing is exchanged,
    /// and whether the user said that its rows are the same things.
    pub fn contact(&mut self, site: SiteId) -> Result<(Option<String>, bool)> {
        let number = self.site_num(site)?;
        let found = self
            .conn
            .prepare_cached("SELECT contact, accepted FROM __wavesync_member WHERE site = ?1")?
            .query_row([number.0], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        Ok(found.unwrap_or_default())
    }

    /// Notes that nothing is exchanged with a replica, or that all is well. Returns whether that is
    /// news; `false` also if the user has said beforehand that the rows are the same.
    pub fn set_contact(&mut self, site: SiteId, tables: Option<&[String]>) -> Result<bool> {
        let told = self.contact(site)?.0;
        let text = tables.map(|tables| tables.join(", "));
        if told == text {
            return Ok(false);
        }
        let number = self.site_num(site)?;
        let same = self.meta::<String>(DECISION)?.as_deref() == Some("same");
        if text.is_some() && same {
            self.conn.execute("DELETE FROM __wavesync_meta WHERE key = ?1", [DECISION])?;
            self.conn.execute(
                "UPDATE __wavesync_member SET contact = NULL, accepted = 1 WHERE site = ?1",
                [number.0],
            )?;
            return Ok(false);
        }
        self.conn
            .prepare_cached("UPDATE __wavesync_member SET contact = ?2 WHERE site = ?1")?
            .execute(params![number.0, text])?;
        Ok(text.is_some())
    }

    /// Some rows of each table with an INTEGER key that existed before their replica joined: the
    /// lowest keys, because those are in use everywhere, and others spread over the table.
    pub fn sample(&mut self) -> Result<Vec<SampleTable>> {
        let tables: Vec<_> = self
            .tables()
            .into_iter()
            .filter(|table| table.kind == KeyKind::Integer && table.shape.is_some())
            .collect();
        let cells: usize = tables.iter().map(|table| 1 + table.local_columns().count()).sum();
        let most = (limits::SAMPLE_MAX_CELLS / cells.max(1)).clamp(2, limits::SAMPLE_MAX_ROWS);
        let mut sample = Vec::new();
        for table in tables {
            let columns: Vec<(ColumnNum, String)> =
                table.local_columns().map(|column| (column.num, column.name.clone())).collect();
            let mut rows = Vec::new();
            for key in self.sample_keys(&table, most)? {
                let stored = Value::Integer(key);
                let Some(known) = self.unwritten(&table, &stored)? else { continue };
                let hashes = columns.iter().map(|(num, _)| known.get(num).map(hash)).collect();
                rows.push((key, hashes));
            }
            if !rows.is_empty() {
                let columns = columns.into_iter().map(|(_, name)| name).collect();
                sample.push(SampleTable { name: table.name.clone(), columns, rows });
            }
        }
        Ok(sample)
    }

    fn sample_keys(&self, table: &Table, most: usize) -> Result<Vec<i64>> {
        let from = format!("FROM __wavesync_clock_{} WHERE stamp < 0 AND cl % 2 = 1", table.num.0);
        let keys = |condition: &str, limit: usize, first: i64| -> Result<Vec<i64>> {
            let sql = format!("SELECT k {from} AND k >= ?1 {condition} LIMIT {limit}");
            let mut statement = self.conn.prepare_cached(&sql)?;
            let keys = statement.query_map([first], |row| row.get(0))?;
            Ok(keys.collect::<rusqlite::Result<_>>()?)
        };
        let low = keys("ORDER BY k", most / 2, i64::MIN)?;
        let last = keys("ORDER BY k DESC", 1, i64::MIN)?;
        let (Some(first), Some(last)) = (low.last().copied(), last.last().copied()) else {
            return Ok(low);
        };
        let mut found = low;
        let step = (last.saturating_sub(first) / (most / 2) as i64).max(1);
        let mut next = first.saturating_add(1);
        while found.len() < most && next <= last {
            let Some(key) = keys("ORDER BY k", 1, next)?.first().copied() else { break };
            found.push(key);
            next = next.saturating_add(step).max(key.saturating_add(1));
        }
        Ok(found)
    }

    /// The values of a row that existed before its replica joined, of columns that nobody wrote
    /// since; `None` if there is no such row.
    fn unwritten(&mut self, table: &Table, key: &Value) -> Result<Option<Values>> {
        let clock = match self.clock(table, key)? {
            Some(row) => Some(row.clock),
            None if self.table_values(table, key)?.is_some() => self.imported_clock(table)?,
            None => None,
        };
        let Some(clock) = clock.filter(|clock| clock.alive() && clock.birth.stamp.is_base()) else {
            return Ok(None);
        };
        let mut values = self.all_values(table, key)?;
        values.retain(|num, _| clock.cells.get(num).is_some_and(|dot| dot.stamp.is_base()));
        Ok(Some(values))
    }

    /// The tables of which most of the sampled rows are here under the same key with other content.
    pub fn unrelated(&mut self, sample: &[SampleTable]) -> Result<Vec<String>> {
        let mut unrelated = Vec::new();
        for part in sample {
            let Some(table) = self.table_on_wire(&part.name, true, 1)? else { continue };
            let mut columns = Vec::with_capacity(part.columns.len());
            for name in &part.columns {
                let mut known = table.columns.iter();
                let num = known.find(|c| c.name.eq_ignore_ascii_case(name)).map(|c| c.num);
                columns.push(match num {
                    None => self.column_formerly(&table, name)?,
                    num => num,
                });
            }
            let (mut shared, mut differ) = (0usize, 0usize);
            for (key, hashes) in &part.rows {
                let Some(own) = self.unwritten(&table, &Value::Integer(*key))? else { continue };
                let mut pairs = columns
                    .iter()
                    .zip(hashes)
                    .filter_map(|(num, theirs)| Some((hash(own.get(num.as_ref()?)?), (*theirs)?)));
                let Some(first) = pairs.next() else { continue };
                shared += 1;
                let equal = first.0 == first.1 && pairs.all(|(ours, theirs)| ours == theirs);
                differ += usize::from(!equal);
            }
            if differ * 2 > shared {
                unrelated.push(table.name.clone());
            }
        }
        Ok(unrelated)
    }

    /// Two values of one row from before their replicas joined: the one that gives way here is kept
    /// for the user, because nobody ever decided that the other one is newer.
    pub(super) fn keep_existing(
        &mut self,
        table: &Rc<Table>,
        key: &Value,
        current: &Clock,
        incoming: &Incoming,
        wins: &[ColumnNum],
    ) -> Result<()> {
        let old = |dot: &Dot| dot.stamp.is_base();
        let both = |num: &&ColumnNum| {
            current.cells.get(num).is_some_and(old)
                && incoming.cells.get(num).is_some_and(|(dot, _)| old(dot))
        };
        let both: Vec<ColumnNum> = wins.iter().filter(both).copied().collect();
        if both.is_empty() {
            return Ok(());
        }
        let held = self.all_values(table, key)?;
        let (mut ours, mut theirs) = (Values::new(), Values::new());
        for num in both {
            let (Some(mine), Some((_, other))) = (held.get(&num), incoming.cells.get(&num)) else {
                continue;
            };
            if mine != other {
                ours.insert(num, mine.clone());
                theirs.insert(num, other.clone());
            }
        }
        if ours.is_empty() {
            return Ok(());
        }
        let reason = "both databases had this row before they joined; the one that joined first is \
                      shown";
        let site = incoming.birth.site;
        self.add_conflict(table, key, ("overwritten", reason), &ours, &theirs, site)
    }

    /// As [`Tx::unrelated`], for rows that came by another way than a connection.
    ///
    /// # Errors
    /// [`Error::Database`] if they are unrelated.
    pub(super) fn check_related(&mut self, batches: &[Batch]) -> Result<()> {
        if !self.populated()? || self.meta::<String>(DECISION)?.as_deref() == Some("same") {
            return Ok(());
        }
        let vector = self.vector()?;
        let mut sample = Vec::new();
        for part in batches.iter().flat_map(|batch| &batch.tables).filter(|p| p.integer_key) {
            let news = |row: &&crate::wire::rows::Row| {
                row.length % 2 == 1 && row.birth.stamp.is_base() && !vector.covers(row.birth)
            };
            let rows = part.rows.iter().filter(news).filter_map(|row| {
                let [Value::Integer(key)] = row.key.as_slice() else { return None };
                let mut hashes = vec![None; part.columns.len()];
                for (at, dot, value) in row.cells.iter().filter(|(_, dot, _)| dot.stamp.is_base()) {
                    if let Some(place) = hashes.get_mut(*at).filter(|_| !vector.covers(*dot)) {
                        *place = Some(hash(value));
                    }
                }
                Some((*key, hashes))
            });
            let (name, columns) = (part.name.clone(), part.columns.clone());
            sample.push(SampleTable { name, columns, rows: rows.collect() });
        }
        let unrelated = self.unrelated(&sample)?;
        if unrelated.is_empty() {
            return Ok(());
        }
        Err(Error::Database(format!("{}; {CHOICES}", describe(&unrelated))))
    }
}

fn hash(value: &Value) -> u32 {
    let mut hash = Sha256::new();
    match value {
        Value::Null => hash.update([0]),
        Value::Integer(integer) => {
            hash.update([1]);
            hash.update(integer.to_be_bytes());
        }
        Value::Real(real) => {
            hash.update([2]);
            hash.update(real.to_bits().to_be_bytes());
        }
        Value::Text(bytes) => {
            hash.update([3]);
            hash.update(bytes);
        }
        Value::Blob(bytes) => {
            hash.update([4]);
            hash.update(bytes);
        }
    }
    let bytes: [u8; 32] = hash.finalize().into();
    bytes.iter().take(4).fold(0u32, |sum, byte| (sum << 8) | u32::from(*byte))
}
