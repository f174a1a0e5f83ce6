//! Rows in key order, for a requester that the log cannot serve: its cursor is 0, not of this
//! branch, or below the horizon (rules K1, K2).
//!
//! Such a pass has two phases. The first reads table by table in key order, parents before children,
//! in short reads, and then what is held; it skips rows whose newest entry is not above the
//! requester's cursor. The folded end was noted when it began, so that everything that changes
//! meanwhile has an entry above it: the second phase is the log from there, and only that can end
//! the pass. Should the horizon have passed the noted end, the log is not there any more, and
//! another first phase reads what is newer than that end.

use std::rc::Rc;

use rusqlite::params;
use sha2::{Digest, Sha256};

use crate::ids::{Dot, Seq, Stamp, TableNum};
use crate::limits;
use crate::mutants::{self, Mutant};
use crate::store::clock::{read_varint, write_varint};
use crate::store::repair::PartsPlace;
use crate::store::serve::{BatchBuilder, Piece};
use crate::store::tables::{Column, Table};
use crate::store::vector::Vector;
use crate::store::{SiteNum, Tx};
use crate::value::Value;
use crate::wire::bytes::{Reader, write_value};
use crate::{Error, Result};

/// Where a pass stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// The log was read up to here.
    Log(Seq),
    /// The first phase of a key-order pass is under way.
    Keys(KeyPlace),
    /// Parts of tables are read again.
    Parts(PartsPlace),
}

/// Where the first phase of a key-order pass stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPlace {
    /// Rows whose newest entry is at or below this are known to the requester.
    floor: Seq,
    /// The folded end when the phase began: the second one starts here.
    end: Seq,
    /// The table that is being read, and the tables before it as they were when it was begun.
    table: Option<(TableNum, [u8; 8])>,
    /// The last key that was read of it; NULL at its start.
    after: Value,
    /// For the mutant that resumes behind a row which was not sent.
    ahead: Option<Value>,
}

impl From<Seq> for Place {
    fn from(seq: Seq) -> Self {
        Self::Log(seq)
    }
}

impl Place {
    /// Where a pass starts that was asked for with this cursor, if it is ours, and place.
    ///
    /// # Errors
    /// [`Error::Protocol`] if the place is none that a responder gave.
    pub fn requested(cursor: Option<Seq>, place: &[u8]) -> Result<Self> {
        let Some(seq) = cursor else { return Ok(Self::Log(Seq(0))) };
        if place.is_empty() {
            return Ok(Self::Log(seq));
        }
        Ok(Self::Keys(KeyPlace::decode(seq, place).ok_or_else(|| {
            Error::protocol("the place of a key-order pass is none that was given out")
        })?))
    }

    /// The bytes that the requester keeps; empty for a place in the log.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Log(_) | Self::Parts(_) => Vec::new(),
            Self::Keys(place) => place.encode(),
        }
    }
}

impl KeyPlace {
    fn start(floor: Seq, end: Seq) -> Self {
        Self { floor, end, table: None, after: Value::Null, ahead: None }
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        write_varint(&mut bytes, self.end.0.unsigned_abs());
        let (table, before) = self.table.unwrap_or((TableNum(0), [0; 8]));
        write_varint(&mut bytes, table.0.unsigned_abs());
        bytes.extend_from_slice(&before);
        let head = bytes.len();
        write_value(&mut bytes, self.ahead.as_ref().unwrap_or(&self.after));
        if bytes.len() > limits::PLACE_MAX_BYTES {
            bytes.truncate(head);
            write_value(&mut bytes, &Value::Null);
        }
        bytes
    }

    fn decode(floor: Seq, mut bytes: &[u8]) -> Option<Self> {
        let end = Seq(i64::try_from(read_varint(&mut bytes)?).ok()?);
        let table = TableNum(i64::try_from(read_varint(&mut bytes)?).ok()?);
        let (before, rest) = bytes.split_first_chunk::<8>()?;
        bytes = rest;
        let after = Reader { bytes: &mut bytes }.value().ok()?;
        let table = (table != TableNum(0)).then_some((table, *before));
        bytes.is_empty().then_some(Self { floor, end, table, after, ahead: None })
    }
}

/// Names a sequence of tables.
fn digest(tables: &[Rc<Table>]) -> [u8; 8] {
    let mut hash = Sha256::new();
    tables.iter().for_each(|table| hash.update(table.num.0.to_be_bytes()));
    let bytes: [u8; 32] = hash.finalize().into();
    let mut first = [0; 8];
    first.copy_from_slice(&bytes[..8]);
    first
}

impl Tx<'_> {
    /// Where a pass can really go on: a place in the log that is not there any more, or a key-order
    /// pass that began under another order of tables, begins (again) with the first phase.
    pub(super) fn resume(&mut self, place: Place) -> Result<Place> {
        let end = self.folded_end()?;
        Ok(match place {
            Place::Log(seq) if seq > Seq(0) && !self.is_trimmed(seq)? => Place::Log(seq),
            Place::Log(seq) => Place::Keys(KeyPlace::start(seq, end)),
            Place::Keys(place) if place.end > end || self.at(&place).is_none() => {
                Place::Keys(KeyPlace::start(place.floor, end))
            }
            place => place,
        })
    }

    /// How many rows a pass in key order from a place has about; 0 for a place in the log.
    pub fn rows_from(&mut self, place: &Place) -> Result<u64> {
        let Place::Keys(place) = self.resume(place.clone())? else { return Ok(0) };
        let at = self.at(&place).unwrap_or(0);
        let mut rows = 0;
        let mut after = place.after;
        for table in self.tables_in_order().iter().skip(at) {
            let after = std::mem::replace(&mut after, Value::Null);
            let texts = &table.statements;
            let mut statement = self.conn.prepare_cached(&texts.count_after)?;
            let most = limits::PROGRESS_MAX_ROWS;
            let count: i64 = statement.query_row(params![after, most], |row| row.get(0))?;
            rows += count.unsigned_abs();
        }
        Ok(rows)
    }

    /// Whether the log after a position is no longer complete (rule K2).
    fn is_trimmed(&self, seq: Seq) -> Result<bool> {
        Ok(seq < self.horizon()? && !mutants::on(Mutant::HorizonIgnored))
    }

    /// Every numbered table, parents before children, also those that only peers have.
    fn tables_in_order(&self) -> Vec<Rc<Table>> {
        let mut tables = self.tables();
        tables.sort_by_key(|table| (self.cache.plan.order(table.num), table.num));
        tables
    }

    /// The position of a place's table in the order; `None` if what comes before it has changed.
    fn at(&self, place: &KeyPlace) -> Option<usize> {
        let Some((num, before)) = place.table else { return Some(0) };
        let tables = self.tables_in_order();
        let at = match num {
            HELD => tables.len(),
            num => tables.iter().position(|table| table.num == num)?,
        };
        (digest(&tables[..at]) == before).then_some(at)
    }

    /// One piece of the first phase.
    pub(super) fn read_keys(&mut self, place: KeyPlace, vector: &Vector) -> Result<Piece> {
        let tables = self.tables_in_order();
        let (floor, end) = (place.floor, place.end);
        let mut at = self.at(&place).unwrap_or(0);
        let mut after = place.after;
        let mut reading = Reading { builder: BatchBuilder::default(), scanned: 0 };
        let mut ahead = None;
        let mut finished = true;
        while let Some(table) = tables.get(at) {
            if let Some((last, next)) =
                self.read_table(&mut reading, table, floor, after, vector)?
            {
                (after, ahead, finished) = (last, Some(next), false);
                break;
            }
            (at, after) = (at + 1, Value::Null);
        }
        if finished {
            let left = self.read_held(&mut reading, (floor, end), &after, vector)?;
            (after, finished) = left.map_or((after, true), |last| (last, false));
        }
        let high = self.folded_end()?;
        let (rows, vector) = (reading.builder.finish(), self.vector()?);
        if finished {
            // What changed since the phase began is in the log above its end.
            let (from, to, next) = (floor, end, Place::Log(end));
            let last = end == high;
            return Ok(Piece { rows, from, to, next, ordered: true, high, vector, last });
        }
        let num = tables.get(at).map_or(HELD, |table| table.num);
        let table = Some((num, digest(tables.get(..at).unwrap_or(&tables))));
        let ahead = ahead.filter(|_| mutants::on(Mutant::PlaceAhead));
        let next = Place::Keys(KeyPlace { floor, end, table, after, ahead });
        Ok(Piece { rows, from: floor, to: floor, next, ordered: true, high, vector, last: false })
    }

    /// Reads rows of one table after a key. Returns the last key that was read and the next one if
    /// the piece is full before the table is through.
    fn read_table(
        &mut self,
        reading: &mut Reading,
        table: &Rc<Table>,
        floor: Seq,
        after: Value,
        vector: &Vector,
    ) -> Result<Option<(Value, Value)>> {
        let conn = self.conn;
        let start = after == Value::Null;
        let texts = &table.statements;
        // With rows parked, values may be elsewhere.
        let joined = !texts.rows_first.is_empty() && self.parked_rows()? == 0;
        let sql = match (joined, start) {
            (true, true) => &texts.rows_first,
            (true, false) => &texts.rows_after,
            (false, true) => &texts.keys_first,
            (false, false) => &texts.keys_after,
        };
        let mut statement = conn.prepare_cached(sql)?;
        let mut keys = match (joined, start) {
            (true, true) => statement.query(params![floor.0])?,
            (true, false) => statement.query(params![floor.0, after])?,
            (false, true) => statement.query([])?,
            (false, false) => statement.query([&after])?,
        };
        let mut last = after;
        while let Some(row) = keys.next()? {
            let key = Value::from_ref(row.get_ref(0)?);
            let full = reading.scanned >= self.bounds.chunk_scan_entries;
            if full || reading.builder.is_full(self.bounds) {
                return Ok(Some((last, key)));
            }
            reading.scanned += 1;
            if joined && self.emit_joined(&mut reading.builder, table, row, vector)? {
                last = key;
                continue;
            }
            let newer = joined || Seq(row.get(1)?) > floor;
            if let Some(row) = newer.then(|| self.clock(table, &key)).transpose()?.flatten() {
                let fresh = |dot| !vector.covers(dot);
                self.emit(&mut reading.builder, table, &key, &row.clock, fresh)?;
            }
            last = key;
        }
        Ok(None)
    }

    /// Adds a row as it was read together with its clock, if no cell of it was written since its
    /// birth. Returns whether it was such a row.
    fn emit_joined(
        &mut self,
        builder: &mut BatchBuilder,
        table: &Table,
        row: &rusqlite::Row<'_>,
        vector: &Vector,
    ) -> Result<bool> {
        let length: i64 = row.get(1)?;
        let (plain, here): (bool, bool) = (row.get(4)?, row.get(5)?);
        if length % 2 == 0 || !plain || !here {
            return Ok(false);
        }
        let birth = Dot { stamp: Stamp(row.get(2)?), site: self.site(SiteNum(row.get(3)?))? };
        if vector.covers(birth) {
            return Ok(true);
        }
        let base = |(_, column): &(usize, &Column)| column.num.0 < table.base_columns;
        let columns = table.local_columns().enumerate().filter(base);
        let cells = columns.map(|(at, column)| Ok((column.num, row.get_ref(6 + at)?)));
        builder.push_as_read(table, row.get_ref(0)?, (length, birth), cells)
    }

    /// Reads held rows in the order of their entries. Returns the last entry that was read if the
    /// piece is full before all are.
    fn read_held(
        &mut self,
        reading: &mut Reading,
        (floor, end): (Seq, Seq),
        after: &Value,
        vector: &Vector,
    ) -> Result<Option<Value>> {
        let mut last = match after {
            Value::Integer(seq) => Seq(*seq).max(floor),
            _ => floor,
        };
        let entries = self
            .conn
            .prepare_cached(
                "SELECT seq FROM __wavesync_held WHERE seq > ?1 AND seq <= ?2 ORDER BY seq LIMIT ?3",
            )?
            .query_map(params![last.0, end.0, self.bounds.chunk_scan_entries as i64 + 1], |row| {
                Ok(Seq(row.get(0)?))
            })?
            .collect::<rusqlite::Result<Vec<_>>>()?;
        for seq in entries {
            let full = reading.scanned >= self.bounds.chunk_scan_entries;
            if full || reading.builder.is_full(self.bounds) {
                return Ok(Some(Value::Integer(last.0)));
            }
            reading.scanned += 1;
            if let Some(held) = self.held_at(seq)? {
                self.emit_held(&mut reading.builder, held, |dot| !vector.covers(dot))?;
            }
            last = seq;
        }
        Ok(None)
    }
}

/// Stands for what is held, which comes after the last table.
const HELD: TableNum = TableNum(i64::MAX);

/// A piece that is being read.
struct Reading {
    builder: BatchBuilder,
    /// Rows that were looked at.
    scanned: usize,
}
