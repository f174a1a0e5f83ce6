//! Rows that arrive under the key that they moved to, after their end was heard of under the key that
//! they were inserted with.
//!
//! A delete names the row by the key that it had where it was deleted. Who hears of it first knows
//! nothing of the key to which the row moves elsewhere, and cannot compute the way back from it. So
//! the first row under a key that a row may have moved to makes this replica work out where all
//! ended rows of the table would be; from then on what is new is added from the log.

use std::collections::BTreeMap;
use std::rc::Rc;

use rusqlite::params;

use crate::Result;
use crate::ids::{Dot, Seq};
use crate::merge::{Ended, KeyKind, moved_key, one_incarnation};
use crate::store::Tx;
use crate::store::tables::Table;
use crate::value::{Value, ValueRef};

/// Where the ended rows of a table would have moved to.
#[derive(Default)]
pub(super) struct Over {
    /// The end of the log when this was brought up to date.
    upto: Seq,
    /// The first key by the later one.
    homes: BTreeMap<i64, i64>,
}

impl Tx<'_> {
    /// Whether a row under this key may be one that has moved and is over.
    pub(super) fn may_be_over(&mut self, table: &Table, key: ValueRef<'_>) -> Result<bool> {
        let (KeyKind::Integer, ValueRef::Integer(moved @ ..=-1)) = (table.kind, key) else {
            return Ok(false);
        };
        self.learn_over(table)?;
        let over = self.cache.over.get(&table.num);
        Ok(over.is_some_and(|over| over.homes.contains_key(&moved)))
    }

    /// Ends a row that has just arrived, if it moved to this key and is known to be over.
    pub(super) fn end_if_over(&mut self, table: &Rc<Table>, key: &Value, birth: Dot) -> Result<()> {
        if !self.may_be_over(table, key.as_ref())? {
            return Ok(());
        }
        let (Value::Integer(moved), Some(over)) = (key, self.cache.over.get(&table.num)) else {
            return Ok(());
        };
        let Some(home) = over.homes.get(moved).copied() else { return Ok(()) };
        let ended = self.clock(table, &Value::Integer(home))?.map(|row| row.clock.ended);
        let mut ended = ended.unwrap_or_default();
        ended.retain(|over, _| one_incarnation(table.kind, *over, birth));
        self.end_moved(table, &Value::Integer(home), &ended)
    }

    /// Brings what is known of ended rows up to date.
    fn learn_over(&mut self, table: &Table) -> Result<()> {
        let end = self.log_end()?;
        let mut over = self.cache.over.remove(&table.num).unwrap_or_default();
        if over.upto == end {
            self.cache.over.insert(table.num, over);
            return Ok(());
        }
        let clocks = format!("__wavesync_clock_{}", table.num.0);
        let fresh = over.upto > Seq(0) && over.upto >= self.horizon()?;
        let all = format!("SELECT k, cells FROM {clocks} WHERE cl > 1 AND cells IS NOT NULL");
        let logged =
            format!("{all} AND k IN (SELECT pk FROM __wavesync_log WHERE seq > ?1 AND tbl = ?2)");
        let conn = self.conn;
        let mut statement = conn.prepare_cached(if fresh { &logged } else { &all })?;
        let mut rows = if fresh {
            statement.query(params![over.upto.0, table.num.0])?
        } else {
            over.homes.clear();
            statement.query([])?
        };
        while let Some(row) = rows.next()? {
            let (home, cells): (i64, Vec<u8>) = (row.get(0)?, row.get(1)?);
            let ended: Ended = self.decode_ended(&mut &cells[..])?;
            let moved = ended.keys().map(|birth| moved_key(home, *birth));
            over.homes.extend(moved.map(|moved| (moved, home)));
        }
        over.upto = end;
        self.cache.over.insert(table.num, over);
        Ok(())
    }
}
