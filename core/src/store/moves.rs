//! Rows that give way under an INTEGER key: two replicas inserted the same key without knowing of
//! each other, so the rows are two different things. The earlier one keeps the key; the later one
//! moves to a key that every replica computes alike, and links to it follow.
//!
//! A link follows where it was written: each replica re-points the foreign-key cells that it wrote
//! itself, as ordinary local writes, because only there is it known which row was meant.

use std::rc::Rc;

use rusqlite::config::DbConfig;
use rusqlite::params_from_iter;

use crate::Result;
use crate::ids::{ColumnNum, Dot, TableNum};
use crate::merge::{Clock, Ended, Incoming, KeyKind, moved_key, one_incarnation};
use crate::mutants::{self, Mutant};
use crate::store::apply::Outcome;
use crate::store::rows::{Kind, Values, refusal};
use crate::store::sql::ident;
use crate::store::tables::Table;
use crate::store::{Tx, claim, key};
use crate::value::Value;

/// A row of ours that moved to another key.
pub(super) struct Moved {
    table: TableNum,
    from: i64,
    to: i64,
    birth: Dot,
}

impl Tx<'_> {
    /// Where a row is joined: at its own key, or where its incarnation has moved to.
    pub(super) fn place_of(
        &mut self,
        table: &Rc<Table>,
        key: &Value,
        incoming: &Incoming,
    ) -> Result<Option<Value>> {
        let Some(to) = self.moved_place(table, key, incoming.birth) else { return Ok(None) };
        if incoming.whole || !incoming.alive() {
            return Ok(None);
        }
        let same = |birth| one_incarnation(table.kind, birth, incoming.birth);
        let here = self.clock(table, key)?.is_some_and(|row| same(row.clock.birth));
        let there = self.clock(table, &to)?.is_some();
        Ok((there && !here).then_some(to))
    }

    fn moved_place(&self, table: &Table, key: &Value, birth: Dot) -> Option<Value> {
        match (table.kind, key) {
            (KeyKind::Integer, Value::Integer(key)) => Some(Value::Integer(moved_key(*key, birth))),
            _ => None,
        }
    }

    /// An incoming row that does not get its key.
    pub(super) fn move_incoming(
        &mut self,
        table: &Rc<Table>,
        key: &Value,
        incoming: Incoming,
    ) -> Result<Outcome> {
        let Some(to) = self.moved_place(table, key, incoming.birth) else {
            return Ok(Outcome::Same);
        };
        let theirs = incoming.values();
        let birth = incoming.birth;
        let outcome =
            self.join_row(table, &to, Incoming { length: 1, ended: Ended::new(), ..incoming })?;
        if outcome != Outcome::Same {
            let ours = self.all_values(table, key)?;
            self.tell_move(table, key, &to, birth, &ours, &theirs)?;
        }
        Ok(outcome)
    }

    /// The current row as it will be joined at its new key. To be called before it is replaced.
    pub(super) fn take_current(
        &mut self,
        table: &Rc<Table>,
        key: &Value,
        current: &Clock,
    ) -> Result<Incoming> {
        let mut values = self.all_values(table, key)?;
        values.extend(current.claim.map(|claim| (ColumnNum::CLAIM, claim::encode(claim))));
        let parked = self.parked(table, key)?;
        let whole = parked.is_none_or(|parked| parked.kind != Kind::Incomplete);
        let cells = current
            .cells
            .iter()
            .filter_map(|(num, dot)| Some((*num, (*dot, values.remove(num)?))))
            .collect();
        Ok(Incoming { length: 1, birth: current.birth, whole, cells, ended: Ended::new() })
    }

    /// A row that was here gives way; it is at its own key no longer.
    pub(super) fn move_current(
        &mut self,
        table: &Rc<Table>,
        key: &Value,
        current: Incoming,
    ) -> Result<()> {
        let birth = current.birth;
        let Some(to) = self.moved_place(table, key, birth) else { return Ok(()) };
        let ours = current.values();
        self.join_row(table, &to, current)?;
        if let (Value::Integer(from), Value::Integer(to)) = (key, &to) {
            self.moved.push(Moved { table: table.num, from: *from, to: *to, birth });
        }
        let theirs = self.all_values(table, key)?;
        self.tell_move(table, key, &to, birth, &ours, &theirs)
    }

    /// Incarnations that turn out to be over, also those that have moved.
    pub(super) fn end_moved(
        &mut self,
        table: &Rc<Table>,
        key: &Value,
        ended: &Ended,
    ) -> Result<()> {
        for (birth, death) in ended.iter().filter(|_| !mutants::on(Mutant::EndStaysBehind)) {
            let Some(to) = self.moved_place(table, key, *birth) else { continue };
            let alive = self.clock(table, &to)?.is_some_and(|row| {
                row.clock.alive() && one_incarnation(table.kind, row.clock.birth, *birth)
            });
            if alive {
                let ended = Ended::from([(*birth, *death)]);
                let cells = std::collections::BTreeMap::new();
                let end = Incoming { length: 2, birth: *death, whole: true, cells, ended };
                self.join_row(table, &to, end)?;
            }
        }
        Ok(())
    }

    fn tell_move(
        &mut self,
        table: &Rc<Table>,
        key: &Value,
        to: &Value,
        birth: Dot,
        ours: &Values,
        theirs: &Values,
    ) -> Result<()> {
        let number = |value: &Value| match value {
            Value::Integer(integer) => integer.to_string(),
            _ => String::new(),
        };
        let reason = format!(
            "two replicas inserted key {}; the earlier row keeps it, the later one has key {} now",
            number(key),
            number(to)
        );
        self.add_conflict(table, key, ("key_collision", &reason), ours, theirs, birth.site)
    }

    /// Re-points the links to rows of ours that moved. Returns whether anything was written.
    pub(super) fn follow_moves(&mut self) -> Result<bool> {
        let moves = std::mem::take(&mut self.moved);
        let mut written = false;
        for moved in moves {
            let parent = self.table(moved.table)?;
            for child in self.tables() {
                for column in self.links(&child, &parent)? {
                    written |= self.follow(&child, &column, &moved)?;
                }
            }
        }
        Ok(written)
    }

    /// Columns of `child` that are declared to reference the key of `parent`.
    fn links(&self, child: &Table, parent: &Table) -> Result<Vec<String>> {
        let (Some(shape), Some(target)) = (&child.shape, &parent.shape) else {
            return Ok(Vec::new());
        };
        let mut statement = self.conn.prepare_cached(
            "SELECT max(\"from\") FROM pragma_foreign_key_list(?1, 'main')
             WHERE \"table\" = ?2 COLLATE NOCASE GROUP BY id
             HAVING count(*) = 1 AND coalesce(max(\"to\"), ?3) = ?3 COLLATE NOCASE",
        )?;
        let key = target.key.first().map_or("", |column| column.name.as_str());
        let columns = statement.query_map([&shape.name, &target.name, key], |row| row.get(0))?;
        Ok(columns.collect::<rusqlite::Result<_>>()?)
    }

    fn follow(&mut self, child: &Rc<Table>, column: &str, moved: &Moved) -> Result<bool> {
        let Some(shape) = &child.shape else { return Ok(false) };
        let mut cells = child.local_columns();
        let Some(num) =
            cells.find(|known| known.name.eq_ignore_ascii_case(column)).map(|known| known.num)
        else {
            return Ok(false);
        };
        let own = self.own_site()?;
        let (table, column) = (ident(&shape.name)?, ident(column)?);
        let sql = format!(
            "SELECT {} FROM main.{table} AS t WHERE t.{column} = ?1",
            key::expression(shape.form, &shape.key, "t.")?
        );
        let keys = self
            .conn
            .prepare_cached(&sql)?
            .query_map([moved.from], |row| Ok(Value::from_ref(row.get_ref(0)?)))?
            .collect::<rusqlite::Result<Vec<_>>>()?;
        let sql = format!("UPDATE main.{table} SET {column} = ?1 WHERE {}", shape.key_matches(2)?);
        let mut written = false;
        for stored in keys {
            let key = key::canonical(child.form, child.key_columns, stored)?;
            let cell = self.clock(child, &key)?.and_then(|row| row.clock.cells.get(&num).copied());
            // Written here, after the row that moved was: so it meant that row.
            if cell.is_none_or(|dot| dot.site != own || dot < moved.birth) {
                continue;
            }
            let bound = std::iter::once(Value::Integer(moved.to)).chain(child.key_values(&key)?);
            self.conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, true)?;
            let done = self.conn.prepare_cached(&sql)?.execute(params_from_iter(bound));
            self.conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
            match done.map_err(crate::Error::from) {
                Ok(rows) => written |= rows > 0,
                // A constraint or a trigger of the application does not let the link follow.
                Err(error) => match refusal(&error) {
                    Some((_, reason)) => {
                        let message = format!(
                            "a row of table {} still points to {}, but its target has key {} now: \
                             {reason}",
                            child.name, moved.from, moved.to
                        );
                        self.note("link_stays", message, "set its foreign key to the new key");
                    }
                    None => return Err(error),
                },
            }
        }
        Ok(written)
    }
}
