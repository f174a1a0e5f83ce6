//! Clock rows: how the state of a row except its values is stored.
//!
//! One row of `__wavesync_clock_<n>` per row of table n: causal length, newest log entry, birth,
//! and in `cells` only what differs from the birth. Layout of `cells` in `docs/STORAGE.md`.

use std::collections::BTreeMap;

use rusqlite::{OptionalExtension, params};

use crate::ids::{ColumnNum, Dot, Seq, Stamp, TableNum};
use crate::merge::{Clock, Ended, KeyKind};
use crate::store::tables::Table;
use crate::store::vector::Vector;
use crate::store::{SiteNum, Tx};
use crate::value::Value;
use crate::{Error, Result};

/// A stored clock and the log entry that announces it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClockRow {
    /// The state.
    pub clock: Clock,
    /// The row's newest log entry.
    pub seq: Seq,
}

impl Tx<'_> {
    /// Reads the clock of a row.
    pub fn clock(&mut self, table: &Table, key: &Value) -> Result<Option<ClockRow>> {
        let sql = &table.statements.clock_select;
        let raw = self
            .conn
            .prepare_cached(sql)?
            .query_row(params![key], |row| {
                let cells: Option<Vec<u8>> = row.get(4)?;
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, cells))
            })
            .optional()?;
        let Some((length, seq, stamp, site, cells)) = raw else { return Ok(None) };
        let birth = Dot { stamp: Stamp(stamp), site: self.site(SiteNum(site))? };
        let clock = self.decode_clock(table, length, birth, cells.as_deref())?;
        Ok(Some(ClockRow { clock, seq: Seq(seq) }))
    }

    /// A clock from what is stored of it.
    pub(super) fn decode_clock(
        &mut self,
        table: &Table,
        length: i64,
        birth: Dot,
        mut stored: Option<&[u8]>,
    ) -> Result<Clock> {
        let ended = match &mut stored {
            Some(bytes) if table.kind == KeyKind::Integer => self.decode_ended(bytes)?,
            _ => Ended::new(),
        };
        let (cells, claim) = if i64::rem_euclid(length, 2) == 1 {
            self.decode_cells(table, birth, stored)?
        } else {
            (BTreeMap::new(), None)
        };
        Ok(Clock { length, birth, cells, claim, ended })
    }

    /// Stores the clock of a row.
    pub fn set_clock(&mut self, table: &Table, key: &Value, row: &ClockRow) -> Result<()> {
        let site = self.site_num(row.clock.birth.site)?;
        let cells = self.encode_cells(table, &row.clock)?;
        self.conn.prepare_cached(&table.statements.clock_upsert)?.execute(params![
            key,
            row.clock.length,
            row.seq.0,
            row.clock.birth.stamp.0,
            site.0,
            cells
        ])?;
        Ok(())
    }

    pub(super) fn encode_cells(&mut self, table: &Table, clock: &Clock) -> Result<Option<Vec<u8>>> {
        let mut bytes = Vec::new();
        if table.kind == KeyKind::Integer {
            self.encode_ended(&mut bytes, &clock.ended)?;
        }
        let before = bytes.len();
        if !clock.alive() {
            return Ok((!clock.ended.is_empty()).then_some(bytes));
        }
        let born = |column: ColumnNum| {
            column != ColumnNum::CLAIM
                && clock.cells.get(&column).is_some_and(|dot| *dot == clock.birth)
        };
        let base = table.base_columns;
        let base_holds = (0..base).all(|n| clock.cells.contains_key(&ColumnNum(n)));
        let outside_base = clock.cells.keys().any(|column| column.0 >= base && born(*column));
        if base_holds && !outside_base {
            bytes.push(0);
        } else {
            let mut mask = Vec::new();
            for column in clock.cells.keys().filter(|column| born(**column)) {
                let at = usize::from(column.0 / 8);
                if mask.len() <= at {
                    mask.resize(at + 1, 0u8);
                }
                mask[at] |= 1 << (column.0 % 8);
            }
            // One more than the mask's length, so that an empty own mask is not the base set.
            write_varint(&mut bytes, mask.len() as u64 + 1);
            bytes.extend_from_slice(&mask);
        }
        for (column, dot) in clock.cells.iter().filter(|(column, _)| !born(**column)) {
            write_varint(&mut bytes, u64::from(column.0));
            bytes.extend_from_slice(&dot.stamp.0.to_be_bytes());
            let site = self.site_num(dot.site)?;
            write_varint(&mut bytes, site.0.unsigned_abs());
            if *column == ColumnNum::CLAIM {
                let claim = clock.claim.unwrap_or(clock.birth);
                bytes.extend_from_slice(&claim.stamp.0.to_be_bytes());
                let site = self.site_num(claim.site)?;
                write_varint(&mut bytes, site.0.unsigned_abs());
            }
        }
        let plain = clock.ended.is_empty() && bytes.get(before..) == Some(&[0]);
        Ok((!plain).then_some(bytes))
    }

    fn encode_ended(&mut self, bytes: &mut Vec<u8>, ended: &Ended) -> Result<()> {
        write_varint(bytes, ended.len() as u64);
        for dot in ended.iter().flat_map(|(birth, death)| [birth, death]) {
            bytes.extend_from_slice(&dot.stamp.0.to_be_bytes());
            let site = self.site_num(dot.site)?;
            write_varint(bytes, site.0.unsigned_abs());
        }
        Ok(())
    }

    pub(super) fn decode_ended(&mut self, bytes: &mut &[u8]) -> Result<Ended> {
        let damaged = || Error::Database("a clock row is damaged".into());
        let count = read_varint(bytes).ok_or_else(damaged)?;
        let mut ended = Ended::new();
        for _ in 0..count {
            let birth = self.decode_dot(bytes)?;
            let death = self.decode_dot(bytes)?;
            ended.insert(birth, death);
        }
        Ok(ended)
    }

    fn decode_dot(&mut self, bytes: &mut &[u8]) -> Result<Dot> {
        let damaged = || Error::Database("a clock row is damaged".into());
        let (stamp, rest) = bytes.split_first_chunk::<8>().ok_or_else(damaged)?;
        *bytes = rest;
        let site = read_varint(bytes).ok_or_else(damaged)?;
        let site = self.site(SiteNum(i64::try_from(site).map_err(|_| damaged())?))?;
        Ok(Dot { stamp: Stamp(i64::from_be_bytes(*stamp)), site })
    }

    fn decode_cells(
        &mut self,
        table: &Table,
        birth: Dot,
        stored: Option<&[u8]>,
    ) -> Result<(BTreeMap<ColumnNum, Dot>, Option<Dot>)> {
        let base = || (0..table.base_columns).map(|n| (ColumnNum(n), birth)).collect();
        let Some(mut bytes) = stored else { return Ok((base(), None)) };
        let mut claim = None;
        let damaged = || Error::Database("a clock row is damaged".into());
        let mask = read_varint(&mut bytes).ok_or_else(damaged)?;
        let mut cells: BTreeMap<ColumnNum, Dot> = match mask {
            0 => base(),
            length => {
                let length = usize::try_from(length - 1).map_err(|_| damaged())?;
                let (mask, rest) = bytes.split_at_checked(length).ok_or_else(damaged)?;
                bytes = rest;
                (0u16..).zip(mask).flat_map(|(at, byte)| bits(at, *byte, birth)).collect()
            }
        };
        while !bytes.is_empty() {
            let column = read_varint(&mut bytes).ok_or_else(damaged)?;
            let column = ColumnNum(u16::try_from(column).map_err(|_| damaged())?);
            let dot = self.decode_dot(&mut bytes)?;
            cells.insert(column, dot);
            if column == ColumnNum::CLAIM {
                claim = Some(self.decode_dot(&mut bytes)?);
            }
        }
        Ok((cells, claim))
    }
}

impl Tx<'_> {
    /// Whether a vector covers every write event in the stored cells of a clock.
    pub(super) fn covers_cells(
        &mut self,
        table: &Table,
        length: i64,
        mut bytes: &[u8],
        vector: &Vector,
    ) -> Result<bool> {
        let damaged = || Error::Database("a clock row is damaged".into());
        if table.kind == KeyKind::Integer {
            for _ in 0..read_varint(&mut bytes).ok_or_else(damaged)? {
                self.decode_dot(&mut bytes)?;
                let death = self.decode_dot(&mut bytes)?;
                if !vector.covers(death) {
                    return Ok(false);
                }
            }
        }
        if length % 2 == 0 || bytes.is_empty() {
            return Ok(true);
        }
        // Cells that are as old as the row say nothing new.
        let mask = read_varint(&mut bytes).ok_or_else(damaged)?.saturating_sub(1);
        let mask = usize::try_from(mask).map_err(|_| damaged())?;
        bytes = bytes.get(mask..).ok_or_else(damaged)?;
        while !bytes.is_empty() {
            let column = read_varint(&mut bytes).ok_or_else(damaged)?;
            let dot = self.decode_dot(&mut bytes)?;
            if !vector.covers(dot) {
                return Ok(false);
            }
            if column == u64::from(ColumnNum::CLAIM.0) {
                self.decode_dot(&mut bytes)?;
            }
        }
        Ok(true)
    }
}

fn bits(at: u16, byte: u8, birth: Dot) -> impl Iterator<Item = (ColumnNum, Dot)> {
    (0..8u16)
        .filter(move |bit| byte & (1 << bit) != 0)
        .map(move |bit| (ColumnNum(at * 8 + bit), birth))
}

/// The SQL that creates the clock table of a table.
pub fn create(table: TableNum, integer: bool) -> String {
    let number = table.0;
    if integer {
        format!(
            "CREATE TABLE IF NOT EXISTS __wavesync_clock_{number}\
             (k INTEGER PRIMARY KEY, cl, seq, stamp, site, cells)"
        )
    } else {
        format!(
            "CREATE TABLE IF NOT EXISTS __wavesync_clock_{number}\
             (k NOT NULL PRIMARY KEY, cl, seq, stamp, site, cells) WITHOUT ROWID"
        )
    }
}

/// Values of a clock that is inserted.
pub const INSERT_WIDTH: usize = 6;

/// The SQL that inserts clocks of new rows into a clock table, up to their values.
pub fn insert(clocks: &str) -> String {
    format!("INSERT INTO {clocks}(k, cl, seq, stamp, site, cells) VALUES")
}

/// Appends a base-128 varint, least significant group first.
pub fn write_varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

/// Reads a base-128 varint and moves the slice past it; `None` if it is cut off or too long.
pub fn read_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let part = u64::from(byte & 0x7f);
        if shift == 63 && part > 1 {
            return None;
        }
        value |= part << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}
