//! Links to rows that moved to another key.
//!
//! A link follows where it was written: each replica re-points the foreign-key cells that it wrote
//! itself, because only there is it known which row was meant. It is a change made here and now, to
//! the row as it is in `L`: whether the row can stand with it is decided with everything else that
//! the batch changed. So rows that are parked follow, too.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use rusqlite::params;

use crate::Result;
use crate::ids::{ColumnNum, Dot, Stamp, TableNum};
use crate::merge::{Clock, Ended, Incoming};
use crate::store::contend::RowId;
use crate::store::moves::Moved;
use crate::store::rows::{Kind, Values, decode_values, refusal};
use crate::store::sql::ident;
use crate::store::tables::Table;
use crate::store::{Push, Tx, key};
use crate::value::Value;

/// A column that is declared to refer to the key of a table.
struct Link {
    name: String,
    num: ColumnNum,
}

impl Tx<'_> {
    /// Re-points the links to rows of ours that moved. To be called before [`Tx::settle`].
    pub(super) fn follow_moves(&mut self) -> Result<()> {
        let mut by_parent: BTreeMap<TableNum, Vec<Moved>> = BTreeMap::new();
        for moved in std::mem::take(&mut self.moved) {
            by_parent.entry(moved.table).or_default().push(moved);
        }
        if by_parent.is_empty() {
            return Ok(());
        }
        let own = self.own_site()?;
        let prev = self.seen(own)?;
        let mut last = Stamp(self.meta("hlc")?.unwrap_or(0));
        let mut written: BTreeSet<RowId> = BTreeSet::new();
        for (parent, moves) in by_parent {
            let parent = self.table(parent)?;
            for child in self.tables() {
                self.note_keys_that_stay(&child, &parent, &moves)?;
                for link in self.links(&child, &parent)? {
                    for key in self.rows_linked(&child, &link, &moves)? {
                        let wall = Stamp::at(i64::try_from(self.now.0).unwrap_or(i64::MAX));
                        let dot = Dot { stamp: wall.max(last.next()), site: own };
                        if self.follow(&child, &link, &key, &moves, dot)? {
                            last = dot.stamp;
                            written.insert((child.num, key));
                        }
                    }
                }
            }
        }
        if written.is_empty() {
            return Ok(());
        }
        self.set_meta("hlc", last.0)?;
        let boot = self.boot;
        self.raise(own, last, boot)?;
        let rows = self.push_rows(own, prev, written)?;
        self.pushes.push(Push { site: own, boot, prev, upto: last, rows });
        Ok(())
    }

    /// Says of which rows the own key names a row of ours that moved: they do not follow. Under its old
    /// key such a row may also be one that another replica inserted.
    fn note_keys_that_stay(
        &mut self,
        child: &Rc<Table>,
        parent: &Table,
        moves: &[Moved],
    ) -> Result<()> {
        for name in self.declared(child, parent)? {
            let keys = child.shape.iter().flat_map(|shape| &shape.key);
            if !keys.map(|column| &column.name).any(|key| key.eq_ignore_ascii_case(&name)) {
                continue;
            }
            for moved in moves {
                let rows = self.rows_whose(child, &name, moved.from)?;
                let mut ours = false;
                for key in &rows {
                    let born = self.clock(child, key)?.map(|row| row.clock.birth);
                    ours = self.means(born, moved)?;
                    if ours {
                        break;
                    }
                }
                if ours {
                    let message = format!(
                        "in table {} the key of {} row(s) names {}, but what it named has key {} now",
                        child.name,
                        rows.len(),
                        moved.from,
                        moved.to
                    );
                    let hint = "insert those that belong to it anew with the new key";
                    self.note("link_stays", message, hint);
                }
            }
        }
        Ok(())
    }

    /// Columns of `child` that are declared to reference the key of `parent`, but for those of a key.
    fn links(&self, child: &Table, parent: &Table) -> Result<Vec<Link>> {
        let link = |name: String| {
            let mut columns = child.local_columns();
            let column = columns.find(|column| column.name.eq_ignore_ascii_case(&name))?;
            Some(Link { num: column.num, name })
        };
        Ok(self.declared(child, parent)?.into_iter().filter_map(link).collect())
    }

    fn declared(&self, child: &Table, parent: &Table) -> Result<Vec<String>> {
        let (Some(shape), Some(target)) = (&child.shape, &parent.shape) else {
            return Ok(Vec::new());
        };
        let mut statement = self.conn.prepare_cached(
            "SELECT max(\"from\") FROM pragma_foreign_key_list(?1, 'main')
             WHERE \"table\" = ?2 COLLATE NOCASE GROUP BY id
             HAVING count(*) = 1 AND coalesce(max(\"to\"), ?3) = ?3 COLLATE NOCASE",
        )?;
        let key = target.key.first().map_or("", |column| column.name.as_str());
        let columns = statement
            .query_map([&shape.name, &target.name, key], |row| row.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        Ok(columns)
    }

    /// Keys of the rows with this reference in their table.
    fn rows_whose(&self, child: &Table, column: &str, refers: i64) -> Result<Vec<Value>> {
        let Some(shape) = &child.shape else { return Ok(Vec::new()) };
        let mut statement = self.conn.prepare_cached(&format!(
            "SELECT {} FROM main.{} AS t WHERE t.{} = ?1",
            key::expression(shape.form, &shape.key, "t.")?,
            ident(&shape.name)?,
            ident(column)?
        ))?;
        let stored = statement
            .query_map([refers], |row| Ok(Value::from_ref(row.get_ref(0)?)))?
            .collect::<rusqlite::Result<Vec<_>>>()?;
        let named = stored.into_iter().filter(|stored| *stored != Value::Null);
        named.map(|stored| key::canonical(child.form, child.key_columns, stored)).collect()
    }

    /// Rows that refer to one of these keys, in their table or parked.
    fn rows_linked(&self, child: &Table, link: &Link, moves: &[Moved]) -> Result<BTreeSet<Value>> {
        if child.shape.is_none() {
            return Ok(BTreeSet::new());
        }
        let from: BTreeSet<i64> = moves.iter().map(|moved| moved.from).collect();
        let mut found = BTreeSet::new();
        for from in &from {
            found.extend(self.rows_whose(child, &link.name, *from)?);
        }
        let mut statement =
            self.conn.prepare_cached("SELECT k, vals FROM __wavesync_parked WHERE tbl = ?1")?;
        let mut rows = statement.query(params![child.num.0])?;
        while let Some(row) = rows.next()? {
            let values = decode_values(&row.get::<_, Vec<u8>>(1)?)?;
            let refers = values.get(&link.num).and_then(number);
            if refers.is_some_and(|number| from.contains(&number)) {
                found.insert(Value::from_ref(row.get_ref(0)?));
            }
        }
        Ok(found)
    }

    /// Re-points a link, if it was written here and meant a row that moved. Returns whether it did.
    fn follow(
        &mut self,
        child: &Rc<Table>,
        link: &Link,
        key: &Value,
        moves: &[Moved],
        dot: Dot,
    ) -> Result<bool> {
        let Some(clock) = self.take_in(child, key)?.filter(Clock::alive) else {
            return Ok(false);
        };
        let values = self.all_values(child, key)?;
        let refers = values.get(&link.num).and_then(number);
        let cell = clock.cells.get(&link.num).copied();
        let mut meant: Option<&Moved> = None;
        for moved in moves.iter().filter(|moved| Some(moved.from) == refers) {
            let later = |known: &Moved| known.birth.precedes(&moved.birth);
            if self.means(cell, moved)? && meant.is_none_or(later) {
                meant = Some(moved);
            }
        }
        let Some(moved) = meant else { return Ok(false) };
        let to = Value::Integer(moved.to);
        if let Some(reason) = self.refuses_link(child, key, link, &to)? {
            let message = format!(
                "a row of table {} still points to {}, but its target has key {} now: {reason}",
                child.name, moved.from, moved.to
            );
            self.note("link_stays", message, "set its foreign key to the new key");
            return Ok(false);
        }
        let mut cells: BTreeMap<ColumnNum, (Dot, Value)> = BTreeMap::new();
        for num in self.with_coupled(child, vec![link.num]) {
            let value = if num == link.num { Some(&to) } else { values.get(&num) };
            cells.extend(value.map(|value| (num, (dot, value.clone()))));
        }
        let (length, birth) = (clock.length, clock.birth);
        let patch = Incoming { length, birth, whole: false, cells, ended: Ended::new() };
        self.join(child, key, Some(clock), patch)?;
        Ok(true)
    }

    /// Whether a cell was written here when the row was the one of this key.
    fn means(&mut self, cell: Option<Dot>, moved: &Moved) -> Result<bool> {
        let Some(dot) = cell else { return Ok(false) };
        if !dot.stamp.is_base() {
            let since = moved.birth.stamp.is_base() || dot >= moved.birth;
            return Ok(since && self.wrote(dot)?);
        }
        // Links from before joining mean rows from before joining.
        Ok(moved.birth.stamp.is_base() && self.imported(dot.site)?)
    }

    /// Whether a write was one of this replica, also under a site that it had before.
    fn wrote(&mut self, dot: Dot) -> Result<bool> {
        if dot.site == self.own_site()? {
            return Ok(true);
        }
        let sql = "SELECT 1 FROM __wavesync_past AS p, __wavesync_site AS s
                   WHERE s.num = p.site AND s.id = ?1 AND p.stamp >= ?2";
        Ok(self.conn.prepare_cached(sql)?.exists(params![dot.site.0, dot.stamp.0])?)
    }

    /// Whether a back-fill was one of this replica.
    fn imported(&self, site: crate::ids::SiteId) -> Result<bool> {
        let sql = "SELECT 1 FROM __wavesync_meta, __wavesync_site
                   WHERE id = ?1 AND key IN ('import:' || num, 'imported:' || num)";
        Ok(self.conn.prepare_cached(sql)?.exists(params![site.0])?)
    }

    /// Why a row that stands in its table cannot have this link, whatever else there is: it stays as
    /// it is then, rather than vanish.
    fn refuses_link(
        &mut self,
        child: &Table,
        key: &Value,
        link: &Link,
        to: &Value,
    ) -> Result<Option<String>> {
        if self.table_values(child, key)?.is_none() {
            return Ok(None);
        }
        self.conn.execute_batch("SAVEPOINT wavesync_link")?;
        let written = self.update_row(child, key, &Values::from([(link.num, to.clone())]));
        let written = super::end_savepoint(self.conn, "wavesync_link", true, written);
        let Err(error) = written else { return Ok(None) };
        match refusal(&error) {
            Some((Kind::Unique | Kind::ForeignKey, _)) => Ok(None),
            Some((_, reason)) => Ok(Some(reason)),
            None => Err(error),
        }
    }
}

/// A reference as the key that it refers to.
fn number(value: &Value) -> Option<i64> {
    match value {
        Value::Integer(number) => Some(*number),
        Value::Text(text) => std::str::from_utf8(text).ok()?.trim().parse().ok(),
        _ => None,
    }
}
