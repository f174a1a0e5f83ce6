//! Reading rows for others, filtered by the requester's vector: the log from a cursor, or, for who
//! is too far behind it, the rows in key order ([`crate::store::scan`]).

use std::collections::BTreeMap;
use std::rc::Rc;

use rusqlite::params;

use crate::Result;
use crate::ids::{ColumnNum, Dot, Seq, TableNum};
use crate::limits;
use crate::merge::Clock;
use crate::mutants::{self, Mutant};
use crate::store::rows::Kind;
use crate::store::scan::Place;
use crate::store::span::LogEntry;
use crate::store::tables::Table;
use crate::store::vector::Vector;
use crate::store::{Tx, claim};
use crate::value::Value;
use crate::wire::rows::{Batch, CLAIM, Row, TableRows};

/// A piece of a pass, read in one transaction without unfolded rows.
#[derive(Debug)]
pub struct Piece {
    /// The rows.
    pub rows: Batch,
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
    tables: BTreeMap<TableNum, TableRows>,
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
    pub fn finish(self) -> Batch {
        Batch { tables: self.tables.into_values().map(name_used_columns).collect() }
    }

    /// Adds a row whose cells are in order of their numbers, `#claim` last.
    pub(super) fn push(&mut self, table: &Table, mut row: Row) {
        self.bytes += 24 + 40 * row.ended.len() + row.key.iter().map(Value::weight).sum::<usize>();
        self.bytes += row.cells.iter().map(|(_, _, value)| 2 + value.weight()).sum::<usize>();
        self.rows += 1;
        let rows = self.tables.entry(table.num).or_insert_with(|| TableRows {
            name: table.name.clone(),
            integer_key: table.kind == crate::merge::KeyKind::Integer,
            key_columns: table.key_columns,
            columns: table.columns.iter().map(|column| column.name.clone()).collect(),
            rows: Vec::new(),
        });
        if let Some(last) = row.cells.last_mut()
            && last.0 == usize::from(ColumnNum::CLAIM.0)
        {
            last.0 = table.columns.len();
            if rows.columns.len() == table.columns.len() {
                rows.columns.push(CLAIM.into());
            }
        }
        rows.rows.push(row);
    }
}

/// Leaves out the names that no row refers to, so that no peer takes note of them.
fn name_used_columns(mut table: TableRows) -> TableRows {
    let mut used = vec![false; table.columns.len()];
    table.rows.iter().flat_map(|row| &row.cells).for_each(|(at, ..)| used[*at] = true);
    if used.iter().all(|used| *used) {
        return table;
    }
    let places: Vec<usize> = used
        .iter()
        .scan(0, |next, used| {
            let place = *next;
            *next += usize::from(*used);
            Some(place)
        })
        .collect();
    for (at, _, _) in table.rows.iter_mut().flat_map(|row| &mut row.cells) {
        *at = places[*at];
    }
    let named = table.columns.into_iter().zip(used).filter(|(_, used)| *used);
    table.columns = named.map(|(name, _)| name).collect();
    table
}

impl Tx<'_> {
    /// The folded end: the log position that may be served and announced (rule P5).
    pub fn folded_end(&self) -> Result<Seq> {
        if mutants::on(Mutant::NoFoldBeforeServe) {
            return self.log_end();
        }
        Ok(Seq(self.meta("folded")?.unwrap_or(0)))
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
                return Ok(());
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
            return Ok(());
        }
        let key = table.key_values(key)?;
        let ended = clock.ended.clone();
        let (length, birth) = (clock.length, clock.birth);
        builder.push(table, Row { key, length, birth, whole, cells, ended });
        Ok(())
    }
}
