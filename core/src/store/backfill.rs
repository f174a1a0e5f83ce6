//! Back-fill: rows that existed before their table was tracked get clocks, in bounded
//! transactions, in key order, resumable.
//!
//! Each back-fill is a site of its own with one base stamp, so that its rows are covered by a
//! vector exactly when all of them have been seen, however late the table was tracked.

use std::collections::BTreeMap;
use std::rc::Rc;

use rusqlite::params;
use sha2::{Digest, Sha256};

use crate::ids::{Boot, ColumnNum, Dot, Millis, Seq, SiteId, Stamp, TableNum};
use crate::merge::{Clock, Ended, Incoming, KeyKind};
use crate::store::bulk::Stored;
use crate::store::clock::ClockRow;
use crate::store::rows::{Kind, Values};
use crate::store::sql::{ident, ident_list, parameters};
use crate::store::tables::Table;
use crate::store::{SiteNum, Store, Tx, key};
use crate::value::Value;
use crate::{Error, Result};

impl Store {
    /// Takes in one block of existing rows. Returns whether more is left to do.
    ///
    /// # Errors
    /// If SQLite fails; the block is then taken in by a later call.
    pub fn backfill_block(&mut self, now: Millis) -> Result<bool> {
        self.write(now, |tx| {
            let pending = tx.tables().into_iter().find(|table| table.import.is_some());
            match pending {
                Some(table) => {
                    tx.import_block(&table)?;
                    Ok(tx.tables().iter().any(|table| table.import.is_some()))
                }
                None => Ok(false),
            }
        })
    }
}

impl Tx<'_> {
    /// Marks a newly numbered table for back-fill under a site of its own.
    pub(super) fn start_import(&mut self, table: TableNum) -> Result<()> {
        // Core is given its randomness once, with the identity; this is as unique as that.
        let secret: Vec<u8> = self
            .meta("secret")?
            .ok_or_else(|| Error::Database("this database has no identity yet".into()))?;
        let mut hash = Sha256::new();
        hash.update(b"wavesync import");
        hash.update(&secret);
        hash.update(table.0.to_be_bytes());
        hash.update(self.log_end()?.0.to_be_bytes());
        hash.update(self.now.0.to_be_bytes());
        let site = SiteId::from_slice(&hash.finalize()[..16])
            .ok_or_else(|| Error::Database("a hash is too short".into()))?;
        let number = self.site_num(site)?;
        self.set_meta(&format!("import:{}", number.0), Stamp::base(self.now).0)?;
        self.conn.execute(
            "UPDATE __wavesync_table SET import = ?1, import_after = NULL WHERE num = ?2",
            params![number.0, table.0],
        )?;
        Ok(())
    }

    fn import_block(&mut self, table: &Rc<Table>) -> Result<()> {
        let Some(import) = table.import else { return Ok(()) };
        let birth = self.import_dot(table.num, import)?;
        let keys = self.keys_to_import(table)?;
        for key in self.import_new(table, birth, keys.clone())? {
            self.take_in(table, &key)?;
        }
        if !keys.is_empty() && table.kind == KeyKind::Integer {
            self.note_populated()?;
        }
        self.follow_moves()?;
        // Rows of peers that were joined with these may stand in each other's way. Rows that broke
        // a foreign key before are left as they are.
        let hot = std::mem::take(&mut self.hot);
        self.resolve(&hot)?;
        self.store_folded_end()?;
        if keys.len() < self.bounds.backfill_rows {
            // An empty table brings nothing, and is not told of.
            if !keys.is_empty() || self.has_clocks(table)? {
                self.raise(birth.site, birth.stamp, Boot(0))?;
            }
            self.effects.openness_left |= self.test_openness()?;
            self.conn.execute(
                "UPDATE __wavesync_table SET import = NULL, import_after = NULL WHERE num = ?1",
                [table.num.0],
            )?;
            self.conn.execute("DELETE FROM __wavesync_once WHERE tbl = ?1", [table.num.0])?;
            // Links in these rows are for this replica to follow.
            self.conn.execute(
                "UPDATE __wavesync_meta SET key = ?2, value = 1 WHERE key = ?1",
                [format!("import:{}", import.0), format!("imported:{}", import.0)],
            )?;
            self.import_ended(table.num)?;
        } else if let Some(last) = keys.last() {
            self.conn.execute(
                "UPDATE __wavesync_table SET import_after = ?1 WHERE num = ?2",
                params![last, table.num.0],
            )?;
        }
        Ok(())
    }

    /// Gives those rows their base state, with one log entry, of which nothing was known before.
    /// Returns the keys of the others, which need a closer look.
    fn import_new(
        &mut self,
        table: &Rc<Table>,
        birth: Dot,
        keys: Vec<Value>,
    ) -> Result<Vec<Value>> {
        let stood = "SELECT 1 FROM __wavesync_once WHERE tbl = ?1 LIMIT 1";
        let stood = self.conn.prepare_cached(stood)?.exists([table.num.0])?;
        if stood
            || keys.len() < self.bounds.bulk_rows
            || !self.rise(keys.iter().map(Value::as_ref))?
        {
            return Ok(keys);
        }
        let [ends @ .., last] = &keys[..] else { return Ok(keys) };
        let ends = (ends.first().unwrap_or(last).as_ref(), last.as_ref());
        let known = self.known_between(table, ends, keys.len())?;
        let Some(known) = known else { return Ok(keys) };
        // 1 and 1.0 are one key.
        let class = |key: &Value| std::mem::discriminant(key);
        if known.iter().chain(&keys).any(|key| class(key) != class(&keys[0])) {
            return Ok(keys);
        }
        let is_new = |key: &Value| known.binary_search(key).is_err();
        let (new, others): (Vec<Value>, Vec<Value>) = keys.into_iter().partition(is_new);
        let [first, .., last] = &new[..] else { return Ok([new, others].concat()) };
        // The vector covers this birth only once the whole table is in (rule P12).
        self.mark_open(Seq(self.log_end()?.0 + 1))?;
        let cells = table.local_columns().map(|column| (column.num, birth)).collect();
        let length = self.length_above(table.num, 0)?;
        let clock = Clock { length, birth, cells, claim: None, ended: Ended::new() };
        let cells = self.encode_cells(table, &clock)?;
        let site = self.site_num(birth.site)?;
        let seq = self.append_span(table, first.as_ref(), last.as_ref())?;
        self.cache.folded = Some(seq);
        let stored = Stored { length, stamp: birth.stamp.0, site: site.0, cells };
        let rows: Vec<_> = new.iter().map(|key| (key.as_ref(), &stored)).collect();
        self.insert_span(table, seq, &rows)?;
        Ok(others)
    }

    /// Whether anything is known of rows of a table.
    fn has_clocks(&self, table: &Table) -> Result<bool> {
        let sql = format!("SELECT 1 FROM __wavesync_clock_{} LIMIT 1", table.num.0);
        Ok(self.conn.prepare(&sql)?.exists([])?)
    }

    /// The clock of a row, after a row of the table that was not captured got its base state: one
    /// that the back-fill has not reached yet. Where peers knew the key before the table came here,
    /// the two are joined, and an old copy overwrites nothing.
    pub(super) fn take_in(&mut self, table: &Rc<Table>, key: &Value) -> Result<Option<Clock>> {
        let current = self.clock(table, key)?.map(|row| row.clock);
        let Some(import) = table.import else { return Ok(current) };
        if current.as_ref().is_some_and(Clock::alive) {
            let parked = self.parked(table, key)?;
            if parked.is_none_or(|parked| parked.kind != Kind::UnknownTable) {
                return Ok(current);
            }
        }
        let Some(values) = self.table_values(table, key)? else { return Ok(current) };
        let birth = self.import_dot(table.num, import)?;
        // The vector covers this birth only once the whole table is in (rule P12).
        self.mark_open(Seq(self.log_end()?.0 + 1))?;
        let once = self.stood_once(table, key)?;
        if let (None, Some((_, once))) = (&current, once)
            && self.may_be_forgotten(once)?
            && !self.is_too_large(table, key)?
        {
            let reason = "another replica deleted the row while its table was not tracked";
            let kind = ("overwritten", reason);
            self.add_conflict(table, key, kind, &values, &Values::new(), once.site)?;
            self.delete_row(table, key)?;
            return Ok(None);
        }
        let Some(known) = current else {
            let cells: BTreeMap<ColumnNum, Dot> =
                table.local_columns().map(|column| (column.num, birth)).collect();
            let fresh = self.length_above(table.num, 0)?;
            let (length, birth) = once.unwrap_or((fresh, birth));
            let clock = Clock { length, birth, cells, claim: None, ended: Ended::new() };
            let seq = self.append_log(table.num, key)?;
            self.set_clock(table, key, &ClockRow { clock: clock.clone(), seq })?;
            return Ok(Some(clock));
        };
        if !known.alive() {
            let reason = "another replica deleted the row before this table came here";
            let site = known.birth.site;
            let none = Values::new();
            self.add_conflict(table, key, ("overwritten", reason), &values, &none, site)?;
        }
        let same = once.filter(|(length, once)| (known.length, known.birth) == (*length, *once));
        if same.is_some() {
            self.keep_unrecorded(table, key, &values)?;
        }
        let cells = values.into_iter().map(|(num, value)| (num, (birth, value))).collect();
        let (length, birth) = same.unwrap_or((1, birth));
        let old = Incoming { length, birth, whole: true, cells, ended: Ended::new() };
        self.delete_row(table, key)?;
        let moves = self.moved.len();
        self.join(table, key, Some(known), old)?;
        self.note_own_move(table, key, birth, moves)?;
        self.retry_new(table, key)?;
        Ok(self.clock(table, key)?.map(|row| row.clock))
    }

    /// The incarnation of a row that stood in the table before it was dropped or untracked.
    fn stood_once(&mut self, table: &Table, key: &Value) -> Result<Option<(i64, Dot)>> {
        let found: Option<(i64, i64, i64)> = super::optional(
            self.conn
                .prepare_cached(
                    "SELECT cl, stamp, site FROM __wavesync_once WHERE tbl = ?1 AND k = ?2",
                )?
                .query_row(params![table.num.0, key], |row| {
                    Ok((row.get(0)?, row.get(1)?, row.get(2)?))
                }),
        )?;
        let Some((length, stamp, site)) = found else { return Ok(None) };
        let site = self.site(SiteNum(site))?;
        Ok(Some((length, Dot { stamp: Stamp(stamp), site })))
    }

    /// What was changed while nobody recorded it gives way to what the group has, and is kept.
    fn keep_unrecorded(&mut self, table: &Rc<Table>, key: &Value, values: &Values) -> Result<()> {
        let known = self.parked(table, key)?.map(|parked| parked.values).unwrap_or_default();
        let (mut ours, mut theirs) = (Values::new(), Values::new());
        for (num, value) in values {
            if let Some(other) = known.get(num).filter(|other| *other != value) {
                ours.insert(*num, value.clone());
                theirs.insert(*num, other.clone());
            }
        }
        if ours.is_empty() {
            return Ok(());
        }
        let reason = "the row was changed while its table was not tracked; what other members have \
                      is shown";
        let own = self.own_site()?;
        self.add_conflict(table, key, ("overwritten", reason), &ours, &theirs, own)
    }

    fn keys_to_import(&mut self, table: &Table) -> Result<Vec<Value>> {
        let Some(shape) = &table.shape else { return Ok(Vec::new()) };
        let after = self.conn.query_row(
            "SELECT import_after FROM __wavesync_table WHERE num = ?1",
            [table.num.0],
            |row| Ok(Value::from_ref(row.get_ref(0)?)),
        )?;
        let names = || shape.key.iter().map(|column| column.name.as_str());
        let listed = ident_list("t.", names())?;
        let mut bound = Vec::new();
        let mut conditions: Vec<String> = names()
            .map(|name| Ok(format!("t.{} IS NOT NULL", ident(name)?)))
            .collect::<Result<_>>()?;
        if after != Value::Null {
            bound = table.key_values(&after)?;
            conditions.push(format!("({listed}) > ({})", parameters(1, bound.len())));
        }
        let sql = format!(
            "SELECT {} FROM main.{} AS t WHERE {} ORDER BY {listed} LIMIT {}",
            key::expression(shape.form, &shape.key, "t.")?,
            ident(&shape.name)?,
            conditions.join(" AND "),
            self.bounds.backfill_rows
        );
        let mut statement = self.conn.prepare(&sql)?;
        let keys = statement
            .query_map(rusqlite::params_from_iter(bound), |row| {
                Ok(Value::from_ref(row.get_ref(0)?))
            })?
            .collect::<rusqlite::Result<Vec<_>>>()?;
        keys.into_iter()
            .map(|stored| key::canonical(table.form, table.key_columns, stored))
            .collect()
    }
}
