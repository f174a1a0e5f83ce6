//! The rank by which rows contend for unique values, and `#claim`: what a local write takes over.
//!
//! An earlier row keeps a unique value against a later one. A local write that stands in the table
//! against an older parked row takes that row's rank, or the user would see the older row come
//! back and hide what was just written.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use crate::Result;
use crate::ids::{ColumnNum, Dot, SiteId, Stamp, TableNum};
use crate::merge::Clock;
use crate::mutants::{self, Mutant};
use crate::store::await_parents::coarse_value;
use crate::store::clock::ClockRow;
use crate::store::contend::RowId;
use crate::store::tables::Table;
use crate::store::{Tx, probe};
use crate::value::Value;

/// Bytes of a claim on the wire: a stamp and a site.
const CLAIM_BYTES: usize = 24;

/// A claim as the value of its cell.
pub fn encode(claim: Dot) -> Value {
    let mut bytes = claim.stamp.0.to_be_bytes().to_vec();
    bytes.extend_from_slice(&claim.site.0);
    Value::Blob(bytes)
}

/// Reads the value of a claim's cell.
pub fn decode(value: &Value) -> Option<Dot> {
    let Value::Blob(bytes) = value else { return None };
    if bytes.len() != CLAIM_BYTES {
        return None;
    }
    let (stamp, site) = bytes.split_first_chunk::<8>()?;
    Some(Dot { stamp: Stamp(i64::from_be_bytes(*stamp)), site: SiteId::from_slice(site)? })
}

/// The order in which rows are let into the tables: the smaller one stays. The same everywhere.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    since: (Stamp, SiteId),
    /// Of several claims of one rank the later one goes first, all before the row itself.
    claimed: Reverse<Option<Dot>>,
    key: Value,
    table: String,
}

/// The rank of a row.
pub fn rank(table: &Table, key: &Value, clock: &Clock) -> Rank {
    let birth = since(clock.birth);
    let claim = clock.claim.map(since).filter(|claim| *claim < birth);
    let claimed = claim.and_then(|_| clock.cells.get(&ColumnNum::CLAIM).copied());
    Rank {
        since: claim.unwrap_or(birth),
        claimed: Reverse(claimed),
        key: key.clone(),
        table: table.name.to_ascii_lowercase(),
    }
}

/// When a row began to hold its values. One that existed before its replica joined counts from
/// the moment of joining: a newcomer's rows do not push out established ones.
fn since(birth: Dot) -> (Stamp, SiteId) {
    let stamp = birth.stamp;
    if mutants::on(Mutant::LatestStays) {
        return (Stamp(stamp.0.saturating_neg()), birth.site);
    }
    (if stamp.is_base() { Stamp::at(stamp.0.saturating_neg()) } else { stamp }, birth.site)
}

/// The birth that a rank stands for.
pub(super) fn origin(clock: &Clock) -> Dot {
    clock.claim.filter(|claim| since(*claim) < since(clock.birth)).unwrap_or(clock.birth)
}

/// By column, the values that rows which were written here have, in the form of [`coarse_value`].
type Offers = Option<BTreeMap<ColumnNum, BTreeSet<Value>>>;

/// The columns of the unique indexes of a table; `None` if one of these cannot be told by columns.
fn unique_columns(table: &Table) -> Offers {
    let shape = table.shape.as_ref()?;
    let mut columns = BTreeMap::new();
    for index in &shape.uniques {
        if !index.comparable() {
            return None;
        }
        for name in &index.columns {
            let mut local = table.local_columns();
            let column = local.find(|column| column.name.eq_ignore_ascii_case(name))?;
            columns.insert(column.num, BTreeSet::new());
        }
    }
    Some(columns)
}

impl Tx<'_> {
    /// Tables that have parked rows with which a local write may collide.
    pub(super) fn contested_tables(&mut self) -> Result<BTreeSet<TableNum>> {
        if self.parked_rows()? == 0 {
            return Ok(BTreeSet::new());
        }
        let mut statement = self.conn.prepare_cached(
            "SELECT DISTINCT tbl FROM __wavesync_parked
             WHERE in_table = 0 AND kind NOT IN ('unknown_table', 'incomplete')",
        )?;
        let tables = statement.query_map([], |row| Ok(TableNum(row.get(0)?)))?;
        Ok(tables.collect::<rusqlite::Result<_>>()?)
    }

    /// The values of unique columns of rows that were written here, by table; `None` for a table of
    /// whose indexes that says too little.
    fn unique_values(&mut self, written: &BTreeSet<RowId>) -> Result<BTreeMap<TableNum, Offers>> {
        let mut offers: BTreeMap<TableNum, Offers> = BTreeMap::new();
        for (num, key) in written {
            if let Some(None) = offers.get(num) {
                continue;
            }
            let table = self.table(*num)?;
            let columns = offers.entry(*num).or_insert_with(|| unique_columns(&table));
            let Some(columns) = columns else { continue };
            let Some(values) = self.table_values(&table, key)? else { continue };
            for (num, offered) in columns {
                let value = values.get(num).filter(|value| **value != Value::Null);
                offered.extend(value.map(coarse_value));
            }
        }
        Ok(offers)
    }

    /// Whether a parked row has a unique value that a row which was written here has.
    fn may_collide(
        &mut self,
        offers: &BTreeMap<TableNum, Offers>,
        (num, key): &RowId,
    ) -> Result<bool> {
        let Some(Some(columns)) = offers.get(num) else { return Ok(true) };
        let table = self.table(*num)?;
        let Some(parked) = self.parked(&table, key)? else { return Ok(false) };
        let mut columns = columns.iter();
        Ok(columns.any(|(num, offered)| {
            parked.values.get(num).is_none_or(|value| offered.contains(&coarse_value(value)))
        }))
    }

    /// Gives rows that were written here the rank of the oldest parked row that they stand
    /// against. `stamp` names the write events.
    pub(super) fn take_over(
        &mut self,
        contested: &BTreeSet<TableNum>,
        written: &BTreeSet<RowId>,
        mut stamp: impl FnMut() -> Dot,
    ) -> Result<()> {
        let tables: BTreeSet<TableNum> = written
            .iter()
            .map(|(table, _)| *table)
            .filter(|table| contested.contains(table))
            .collect();
        let mut oldest: BTreeMap<RowId, (Rank, Dot)> = BTreeMap::new();
        let offers = self.unique_values(written)?;
        for id in self.contending(&tables)?.into_iter().filter(|id| !written.contains(id)) {
            if !self.may_collide(&offers, &id)? {
                continue;
            }
            let Some(parked) = self.load(&id)?.filter(|row| row.contends && row.shown.is_none())
            else {
                continue;
            };
            let older = rank(&parked.table, &id.1, &parked.clock);
            for rival in probe::session(self, |tx| tx.rivals(&parked, &parked.values))? {
                let Some(row) = written.get(&rival) else { continue };
                let table = self.table(row.0)?;
                let Some(clock) = self.clock(&table, &row.1)?.map(|row| row.clock) else {
                    continue;
                };
                let known = oldest.get(row).map(|(rank, _)| rank);
                if clock.alive()
                    && older < rank(&table, &row.1, &clock)
                    && known.is_none_or(|known| older < *known)
                {
                    oldest.insert(row.clone(), (older.clone(), origin(&parked.clock)));
                }
            }
        }
        for ((num, key), (_, claim)) in oldest {
            let table = self.table(num)?;
            let Some(ClockRow { mut clock, seq }) = self.clock(&table, &key)? else { continue };
            clock.cells.insert(ColumnNum::CLAIM, stamp());
            clock.claim = Some(claim);
            self.set_clock(&table, &key, &ClockRow { clock, seq })?;
        }
        Ok(())
    }
}
