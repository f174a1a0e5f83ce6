//! Rows that give way under an INTEGER key: two replicas inserted the same key without knowing of
//! each other, so the rows are two different things. The earlier one keeps the key; the later one
//! moves to a key that every replica computes alike, and links to it follow.
//!
//! Links to it follow where they were written: see [`crate::store::follow`].

use std::rc::Rc;

use crate::Result;
use crate::ids::{ColumnNum, Dot, TableNum};
use crate::merge::{Clock, Ended, Incoming, KeyKind, moved_key, one_incarnation};
use crate::mutants::{self, Mutant};
use crate::store::apply::Outcome;
use crate::store::clock::ClockRow;
use crate::store::rows::{Kind, Values};
use crate::store::tables::Table;
use crate::store::{Tx, claim};
use crate::value::Value;

/// A row of ours that moved to another key.
pub(super) struct Moved {
    pub table: TableNum,
    pub from: i64,
    pub to: i64,
    pub birth: Dot,
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

    /// A row that stood here before its table was tracked was joined with what peers had under its
    /// key. `before` is how many moves were known before that.
    pub(super) fn note_own_move(
        &mut self,
        table: &Rc<Table>,
        key: &Value,
        birth: Dot,
        before: usize,
    ) -> Result<()> {
        // A row of peers that gave way was not shown here, so no link of ours means it.
        self.moved.truncate(before);
        let Some(to) = self.moved_place(table, key, birth) else { return Ok(()) };
        let same = |row: ClockRow| {
            row.clock.alive() && one_incarnation(table.kind, row.clock.birth, birth)
        };
        let stays = self.clock(table, key)?.is_some_and(same);
        let moved = !stays && self.clock(table, &to)?.is_some_and(same);
        if let (true, Value::Integer(from), Value::Integer(to)) = (moved, key, &to) {
            self.moved.push(Moved { table: table.num, from: *from, to: *to, birth });
        }
        Ok(())
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
}
