//! Reading rows for others, filtered by the requester's vector: the log from a cursor, or, for who
//! is too far behind it, the rows in key order ([`crate::store::scan`]).

use std::collections::BTreeMap;
use std::rc::Rc;

use rusqlite::params;

use crate::Result;
use crate::ids::{ColumnNum, Dot, Seq, Stamp, TableNum};
use crate::limits;
use crate::merge::{Clock, Ended};
use crate::mutants::{self, Mutant};
use crate::store::rows::Kind;
use crate::store::scan::Place;
use crate::store::span::LogEntry;
use crate::store::tables::{Column, Table};
use crate::store::vector::Vector;
use crate::store::{SiteNum, Tx, claim};
use crate::value::{self, Value, ValueRef};
use crate::wire::packed::{Head, Packed, Part, Places};
use crate::wire::rows::{CLAIM, Row};

/// A piece of a pass, read in one transaction without unfolded rows.
#[derive(Debug)]
pub struct Piece {
    /// The rows.
    pub rows: Packed<'static>,
    /// The log position that it starts after.
    pub from: Seq,
    /// The log position that it reaches: every row whose newest entry is at or below it was sent.
    pub to: Seq,
    /// Where the pass goes on.
    pub next: Place,
    /// The rows were read in key order.
    pub ordered: bool,
    /// The folded end in that transaction.
    pub high: Seq,
    /// The vector in that transaction.
    pub vector: Vector,
    /// The piece reached the folded end in that transaction (rule P9).
    pub last: bool,
}

/// Collects rows into a batch.
#[derive(Default)]
pub struct BatchBuilder {
    tables: BTreeMap<TableNum, Part>,
    packed: Packed<'static>,
    places: Places,
    bytes: usize,
    rows: usize,
}

impl BatchBuilder {
    /// Rough size of what was collected, before compression.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether a chunk ends here.
    pub(super) fn is_full(&self, bounds: limits::Bounds) -> bool {
        self.bytes >= limits::CHUNK_TARGET_BYTES || self.rows >= bounds.chunk_rows
    }

    /// The batch.
    #[must_use]
    pub fn finish(self) -> Packed<'static> {
        let mut packed = self.packed;
        packed.parts = self.tables.into_values().filter(|part| !part.heads.is_empty()).collect();
        packed.parts.iter_mut().for_each(Part::name_used_columns);
        packed
    }

    /// Adds a row whose cells are in order of their numbers, `#claim` last.
    pub(super) fn push(&mut self, table: &Table, mut row: Row) {
        self.bytes += 24 + 40 * row.ended.len() + row.key.iter().map(Value::weight).sum::<usize>();
        self.bytes += row.cells.iter().map(|(_, _, value)| 2 + value.weight()).sum::<usize>();
        self.rows += 1;
        let part = self.tables.entry(table.num).or_insert_with(|| part_of(table));
        if let Some(last) = row.cells.last_mut()
            && last.0 == usize::from(ColumnNum::CLAIM.0)
        {
            last.0 = table.columns.len();
            if part.columns.len() == table.columns.len() {
                part.columns.push(CLAIM.into());
            }
        }
        self.packed.push(part, &mut self.places, &row);
    }

    /// Adds a whole row that was read with its values: none of its cells was written since its birth.
    /// Returns whether it did: a row that is too large is not added.
    pub(super) fn push_as_read<'v>(
        &mut self,
        table: &Table,
        key: ValueRef<'v>,
        (length, birth): (i64, Dot),
        cells: impl Iterator<Item = rusqlite::Result<(ColumnNum, ValueRef<'v>)>>,
    ) -> Result<bool> {
        let part = self.tables.entry(table.num).or_insert_with(|| part_of(table));
        let birth = self.packed.event(&mut self.places, birth);
        let (start, made) = (part.cells.len(), self.packed.made.len());
        let (mut weight, mut plain) = (0, true);
        let list = part.listed.len();
        for cell in cells {
            let (num, value) = cell?;
            weight += value::weight(value);
            plain &= usize::from(num.0) == part.cells.len() - start;
            part.cells.push(self.packed.cell(value));
            part.listed.push((u32::from(num.0), birth));
        }
        if weight > limits::ROW_MAX_BYTES {
            part.cells.truncate(start);
            part.listed.truncate(list);
            self.packed.made.truncate(made);
            return Ok(false);
        }
        if plain {
            part.listed.truncate(list);
        }
        let count = part.cells.len() - start;
        self.bytes += 24 + value::weight(key) + weight + 2 * count;
        self.rows += 1;
        part.keys.push(self.packed.cell(key));
        let cells = (start as u32, count as u32);
        let listed = (!plain).then_some(list as u32);
        part.heads.push(Head { length, birth, whole: true, cells, listed, ended: None });
        Ok(true)
    }
}

fn part_of(table: &Table) -> Part {
    Part {
        name: table.name.clone(),
        integer_key: table.kind == crate::merge::KeyKind::Integer,
        key_columns: table.key_columns,
        columns: table.columns.iter().map(|column| column.name.clone()).collect(),
        ..Part::default()
    }
}

impl Tx<'_> {
    /// The folded end: the log position that may be served and announced (rule P5).
    pub fn folded_end(&self) -> Result<Seq> {
        if mutants::on(Mutant::NoFoldBeforeServe) {
            return self.log_end();
        }
        Ok(Seq(self.meta("folded")?.unwrap_or(0)))
    }

    /// From here on rows that cannot be sent are named, if `all` are asked for: who takes everything
    /// over must not miss them (rule P20).
    pub fn naming(&mut self, all: bool) -> &mut Self {
        self.names_all = all;
        self
    }

    /// From here on chunks are read with at most so many rows.
    pub fn limited_to(&mut self, chunk_rows: usize) -> &mut Self {
        self.bounds.chunk_rows = self.bounds.chunk_rows.min(chunk_rows);
        self
    }

    /// Reads the next piece of a pass: rows of which `vector` does not cover everything.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn read_piece(&mut self, from: impl Into<Place>, vector: &Vector) -> Result<Piece> {
        match self.resume(from.into())? {
            Place::Log(seq) => self.read_log(seq, vector),
            Place::Keys(place) => self.read_keys(place, vector),
            Place::Parts(place) => self.read_parts(place),
        }
    }

    fn read_log(&mut self, from: Seq, vector: &Vector) -> Result<Piece> {
        let high = self.folded_end()?;
        let mut statement = self.conn.prepare_cached(
            "SELECT seq, tbl, pk, cols, at FROM __wavesync_log
             WHERE seq > ?1 AND seq <= ?2 ORDER BY seq",
        )?;
        let mut entries = statement.query(params![from.0, high.0])?;
        let mut builder = BatchBuilder::default();
        let mut to = from;
        let mut scanned = 0usize;
        let mut finished = true;
        while let Some(entry) = entries.next()? {
            if builder.is_full(self.bounds) || scanned >= self.bounds.chunk_scan_entries {
                finished = false;
                break;
            }
            let entry = LogEntry::read(entry)?;
            let seq = entry.seq;
            to = seq;
            scanned += 1;
            let Ok(table) = self.table(entry.table) else { continue };
            let fresh = |dot| !vector.covers(dot);
            if let Some(held) = self.held_at(seq)? {
                self.emit_held(&mut builder, held, fresh)?;
                continue;
            }
            if entry.is_span() {
                let (covered, looked_at) = self.covers_entry(&table, &entry, vector)?;
                scanned += looked_at;
                if covered {
                    continue;
                }
            }
            for key in self.keys_of_entry(&table, &entry)? {
                scanned += 1;
                let Some(row) = self.clock(&table, &key)? else { continue };
                if row.seq == seq {
                    self.emit(&mut builder, &table, &key, &row.clock, fresh)?;
                }
            }
        }
        if finished {
            to = high.max(from);
        }
        let (rows, vector) = (builder.finish(), self.vector()?);
        let next = Place::Log(to);
        Ok(Piece { rows, from, to, next, ordered: false, high, vector, last: finished })
    }

    /// Adds a row with one look at it, if it stands here as it was born and its birth is `fresh`.
    /// Returns whether it did.
    pub(super) fn emit_new(
        &mut self,
        builder: &mut BatchBuilder,
        table: &Table,
        key: &Value,
        fresh: impl Fn(Dot) -> bool,
    ) -> Result<bool> {
        let sql = &table.statements.row_known;
        if sql.is_empty() || table.equal_keys_differ() || self.parked_rows()? > 0 {
            return Ok(false);
        }
        let conn = self.conn;
        let mut statement = conn.prepare_cached(sql)?;
        let mut found = statement.query([key])?;
        let Some(row) = found.next()? else { return Ok(false) };
        let (length, stamp, site): (i64, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let birth = Dot { stamp: Stamp(stamp), site: self.site(SiteNum(site))? };
        if length % 2 == 0 || row.get_ref(3)? != ValueRef::Null || !fresh(birth) {
            return Ok(false);
        }
        let base = |(_, column): &(usize, &Column)| column.num.0 < table.base_columns;
        let columns = table.local_columns().enumerate().filter(base);
        let cells = columns.map(|(at, column)| Ok((column.num, row.get_ref(4 + at)?)));
        builder.push_as_read(table, key.as_ref(), (length, birth), cells)
    }

    /// Adds nothing of a row but that it exists, for who wants to know of all.
    fn name_only(
        &self,
        builder: &mut BatchBuilder,
        table: &Table,
        key: &Value,
        clock: &Clock,
    ) -> Result<()> {
        if self.names_all {
            let (key, length, birth) = (table.key_values(key)?, clock.length, clock.birth);
            let (whole, cells, ended) = (false, Vec::new(), Ended::new());
            builder.push(table, Row { key, length, birth, whole, cells, ended });
        }
        Ok(())
    }

    /// Adds a row if any of its write events is `fresh`: whole if its birth is, else a patch.
    pub(super) fn emit(
        &mut self,
        builder: &mut BatchBuilder,
        table: &Rc<Table>,
        key: &Value,
        clock: &Clock,
        fresh: impl Fn(Dot) -> bool,
    ) -> Result<()> {
        if !clock.dots().any(&fresh) {
            return Ok(());
        }
        let parked = self.parked(table, key)?;
        let stays = parked.as_ref().is_some_and(|parked| !parked.kind.in_table());
        if stays && mutants::on(Mutant::ParkedStay) {
            return Ok(());
        }
        let complete = parked.is_none_or(|parked| parked.kind != Kind::Incomplete);
        let whole = complete && (fresh(clock.birth) || !clock.alive());
        let mut cells = Vec::new();
        if clock.alive() {
            let mut values = self.all_values(table, key)?;
            if values.is_empty() && !clock.cells.is_empty() {
                // The table was dropped, renamed or is no longer tracked: what is not here cannot
                // be passed on, and a row without its values would be an invented one.
                return self.name_only(builder, table, key, clock);
            }
            values.extend(clock.claim.map(|claim| (ColumnNum::CLAIM, claim::encode(claim))));
            for (num, dot) in clock.cells.iter().filter(|(_, dot)| whole || fresh(**dot)) {
                if let Some(value) = values.remove(num) {
                    cells.push((usize::from(num.0), *dot, value));
                }
            }
        }
        let weight: usize = cells.iter().map(|(_, _, value)| value.weight()).sum();
        if weight > limits::ROW_MAX_BYTES {
            let message = format!(
                "a row of table {} is larger than {} bytes and is not sent to other members",
                table.name,
                limits::ROW_MAX_BYTES
            );
            self.note("row_too_large", message, "store large content in several rows");
            return self.name_only(builder, table, key, clock);
        }
        let key = table.key_values(key)?;
        let ended = clock.ended.clone();
        let (length, birth) = (clock.length, clock.birth);
        builder.push(table, Row { key, length, birth, whole, cells, ended });
        Ok(())
    }
}
