//! Rows that are read again because digests differ (rule P15): what the responder reads, whatever the
//! requester has seen, and what the requester does before it joins them as usual.
//!
//! The join repairs what one side lacks, and of two values of one write the greater one wins at both.
//! What it cannot know is that a row's values, or its clock, were lost: that is found here, and only
//! here, so that nothing else pays for it.

use std::rc::Rc;

use crate::ids::{ColumnNum, Dot, Millis, Seq};
use crate::merge::{Clock, one_incarnation};
use crate::mutants::{self, Mutant};
use crate::store::apply::Applied;
use crate::store::names::newest_cells;
use crate::store::rows::Values;
use crate::store::scan::Place;
use crate::store::serve::{BatchBuilder, Piece};
use crate::store::tables::Table;
use crate::store::{Store, Tx, digest, key};
use crate::value::Value;
use crate::wire::message::TableParts;
use crate::wire::rows::{Batch, Row};
use crate::{Error, Result};

/// The cells of a row that arrived, by the numbers of their columns here.
type Cells<'a> = &'a [(ColumnNum, Dot, &'a Value)];

/// Where reading rows again stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartsPlace {
    /// The parts of tables that are left, the first one under way.
    tables: Vec<TableParts>,
    /// The last key that was read of the first one; NULL at its start.
    after: Value,
}

impl From<Vec<TableParts>> for Place {
    fn from(tables: Vec<TableParts>) -> Self {
        Self::Parts(PartsPlace { tables, after: Value::Null })
    }
}

impl Store {
    /// Applies one encoded chunk of rows that are read again: neither cursor nor vector move.
    ///
    /// # Errors
    /// [`Error::Protocol`] if the bytes break the format, or whatever SQLite refuses; then nothing
    /// was changed.
    pub fn receive_again(&mut self, now: Millis, rows: &[u8]) -> Result<Applied> {
        let batch = Batch::decode(rows)?;
        self.write_applying(now, |tx| tx.apply_again(&batch))
    }
}

impl Tx<'_> {
    /// Reads rows of some parts of tables, all of each and whatever was seen of them.
    pub(super) fn read_parts(&mut self, mut place: PartsPlace) -> Result<Piece> {
        let mut builder = BatchBuilder::default();
        let mut scanned = 0;
        while let Some(parts) = place.tables.first() {
            let (name, integer, columns) = (&parts.name, parts.integer_key, parts.key_columns);
            let (mask, after) = (parts.parts, std::mem::replace(&mut place.after, Value::Null));
            if let Some(table) = self.table_on_wire(name, integer, columns)?
                && let Some(last) =
                    self.read_part(&mut builder, &mut scanned, &table, (mask, after))?
            {
                place.after = last;
                break;
            }
            place.tables.remove(0);
        }
        let last = place.tables.is_empty();
        let (rows, high, vector) = (builder.finish(), self.folded_end()?, self.vector()?);
        let (from, to, next) = (Seq(0), Seq(0), Place::Parts(place));
        Ok(Piece { rows, from, to, next, ordered: true, high, vector, last })
    }

    /// Reads rows of one table after a key. Returns the last key that was read if the piece is full
    /// before the table is through.
    fn read_part(
        &mut self,
        builder: &mut BatchBuilder,
        scanned: &mut usize,
        table: &Rc<Table>,
        (mask, after): (u32, Value),
    ) -> Result<Option<Value>> {
        let conn = self.conn;
        let texts = &table.statements;
        let first = after == Value::Null;
        let sql = if first { &texts.keys_first } else { &texts.keys_after };
        let mut statement = conn.prepare_cached(sql)?;
        let mut keys = if first { statement.query([])? } else { statement.query([&after])? };
        let mut last = after;
        while let Some(row) = keys.next()? {
            if *scanned >= self.bounds.chunk_scan_entries || builder.is_full(self.bounds) {
                return Ok(Some(last));
            }
            let key = Value::from_ref(row.get_ref(0)?);
            *scanned += 1;
            if mask & (1 << digest::part_of(table, &key)) != 0 {
                match self.clock(table, &key) {
                    Ok(Some(row)) => self.emit(builder, table, &key, &row.clock, |_| true)?,
                    // What cannot be read is not passed on.
                    Ok(None) | Err(Error::Database(_)) => {}
                    Err(error) => return Err(error),
                }
            }
            last = key;
        }
        Ok(None)
    }

    /// Applies rows that are read again.
    fn apply_again(&mut self, batch: &Batch) -> Result<Applied> {
        for part in &batch.tables {
            let known = self.table_on_wire(&part.name, part.integer_key, part.key_columns)?;
            let Some(table) = known else { continue };
            let (table, columns) = self.columns_on_wire(table, &part.columns)?;
            for row in part.rows.iter().filter(|row| row.whole && row.length % 2 == 1) {
                let values = row.cells.iter().filter_map(|(at, dot, value)| {
                    let num = columns.get(*at).copied().flatten()?;
                    Some((num, (*dot, value.clone())))
                });
                let newest = newest_cells(values);
                let cells = newest.iter().map(|(num, (dot, value))| (*num, *dot, value));
                let cells: Vec<_> = cells.collect();
                self.mend(&table, &key::pack(&row.key), row, &cells)?;
            }
        }
        self.apply(batch)
    }

    /// Removes what is left of a row that was damaged, so that the one that arrives can take its
    /// place, and keeps values that are about to give way.
    fn mend(&mut self, table: &Rc<Table>, key: &Value, row: &Row, cells: Cells<'_>) -> Result<()> {
        let clock = match self.clock(table, key) {
            Ok(Some(found)) => found.clock,
            Ok(None) => return self.clear_row(table, key, row, cells),
            Err(Error::Database(_)) => {
                self.forget_clock(table, key)?;
                return self.clear_row(table, key, row, cells);
            }
            Err(error) => return Err(error),
        };
        let same =
            clock.length == row.length && one_incarnation(table.kind, clock.birth, row.birth);
        if !same {
            return Ok(());
        }
        let held = self.all_values(table, key)?;
        if held.is_empty() && is_replaced(&clock, cells) && self.parked(table, key)?.is_none() {
            if mutants::on(Mutant::LostValuesStay) {
                return Ok(());
            }
            return self.forget_clock(table, key);
        }
        let (mut ours, mut theirs) = (Values::new(), Values::new());
        for (num, dot, value) in cells {
            let equal = clock.cells.get(num) == Some(dot);
            if let Some(mine) = held.get(num).filter(|mine| equal && *value > *mine) {
                ours.insert(*num, mine.clone());
                theirs.insert(*num, (*value).clone());
            }
        }
        self.keep_damaged(table, key, row, (&ours, &theirs))
    }

    /// A row stands in the table that has no clock, so no other member knows of it.
    fn clear_row(
        &mut self,
        table: &Rc<Table>,
        key: &Value,
        row: &Row,
        cells: Cells<'_>,
    ) -> Result<()> {
        if table.import.is_some() {
            // Rows from before joining have no clocks until they are taken in.
            return Ok(());
        }
        let Some(ours) = self.table_values(table, key)? else { return Ok(()) };
        let theirs: Values = cells.iter().map(|(num, _, value)| (*num, (*value).clone())).collect();
        if ours.iter().any(|(num, mine)| theirs.get(num).is_some_and(|other| other != mine)) {
            self.keep_damaged(table, key, row, (&ours, &theirs))?;
        }
        self.delete_row(table, key)
    }

    fn keep_damaged(
        &mut self,
        table: &Rc<Table>,
        key: &Value,
        row: &Row,
        (ours, theirs): (&Values, &Values),
    ) -> Result<()> {
        if ours.is_empty() {
            return Ok(());
        }
        let reason = "another member has other values of the same write, and one of them had to give \
                      way";
        self.add_conflict(table, key, ("overwritten", reason), ours, theirs, row.birth.site)
    }

    fn forget_clock(&mut self, table: &Table, key: &Value) -> Result<()> {
        let sql = format!("DELETE FROM __wavesync_clock_{} WHERE k = ?1", table.num.0);
        self.conn.prepare_cached(&sql)?.execute([key])?;
        Ok(())
    }
}

/// Whether everything that a clock knows is in what arrived.
fn is_replaced(clock: &Clock, cells: Cells<'_>) -> bool {
    clock
        .cells
        .iter()
        .all(|(num, dot)| cells.iter().any(|(arrived, newer, _)| arrived == num && newer >= dot))
}
