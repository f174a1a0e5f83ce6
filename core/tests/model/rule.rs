//! `T = f(L)` for the reference model: fills a plain database anew with the rows that may stand,
//! as slowly and plainly as `docs/STORAGE.md`, section 8, can be followed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use rusqlite::{Connection, params_from_iter};
use wavesync_core::ids::{Dot, SiteId, Stamp};
use wavesync_core::store::key::pack;
use wavesync_core::value::Value;

use crate::reference::{Key, Row, Rows};
use crate::schema::{Action, Reference, Table, quoted};

/// A row by table and stored key.
pub type RowId = (String, Value);
pub type Rank = (Stamp, SiteId, Reverse<Option<Dot>>, Value, String);
type Columns = BTreeMap<String, Value>;

/// What the rule comes to beside the rows that stand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    pub parked: BTreeSet<RowId>,
    /// Rows that show something else in these columns, or lack them.
    pub partly: BTreeMap<RowId, BTreeSet<String>>,
}

struct Candidate<'a> {
    table: &'a Table,
    key: Key,
    values: Columns,
}

struct Rule<'a> {
    tables: &'a [Table],
    enforced: bool,
    plain: &'a Connection,
    rows: BTreeMap<RowId, Candidate<'a>>,
    outcome: Outcome,
}

fn since(birth: Dot) -> (Stamp, SiteId) {
    // A row from before its replica joined counts from the moment of joining.
    let stamp = if birth.stamp.0 < 0 { Stamp(-birth.stamp.0 << 16) } else { birth.stamp };
    (stamp, birth.site)
}

pub fn rank(table: &str, key: &Key, row: &Row) -> Rank {
    let birth = since(row.birth);
    let claim = row.claim.filter(|(_, value)| since(*value) < birth);
    let (stamp, site) = claim.map_or(birth, |(_, value)| since(value));
    (stamp, site, Reverse(claim.map(|(at, _)| at)), pack(key), table.to_ascii_lowercase())
}

/// The birth that a rank stands for.
pub fn origin(row: &Row) -> Dot {
    let older = row.claim.map(|(_, value)| value).filter(|value| since(*value) < since(row.birth));
    older.unwrap_or(row.birth)
}

/// Empties the tables and fills them by the rule.
pub fn fill(
    plain: &Connection,
    tables: &[Table],
    enforced: bool,
    all: &BTreeMap<String, Rows>,
) -> Outcome {
    let mut rows = BTreeMap::new();
    let mut outcome = Outcome::default();
    let mut ranks: BTreeMap<String, BTreeSet<(Rank, RowId)>> = BTreeMap::new();
    for (name, known) in all {
        let table = tables.iter().find(|table| table.name == *name);
        for (key, row) in known.rows.iter().filter(|(_, row)| row.alive()) {
            let id = (name.clone(), pack(key));
            let Some(table) = table else {
                outcome.parked.insert(id);
                continue;
            };
            let here = |column: &String| table.columns.iter().any(|c| c.name == *column);
            let (values, unknown): (Columns, Columns) = row
                .cells
                .iter()
                .map(|(column, (_, value))| (column.clone(), value.clone()))
                .partition(|(column, _)| here(column));
            if !unknown.is_empty() {
                outcome.partly.insert(id.clone(), unknown.into_keys().collect());
            }
            ranks.entry(name.clone()).or_default().insert((rank(name, key, row), id.clone()));
            rows.insert(id, Candidate { table, key: key.clone(), values });
        }
    }
    plain.execute_batch("BEGIN").unwrap();
    for table in tables {
        plain.execute_batch(&format!("DELETE FROM {}", quoted(&table.name))).unwrap();
    }
    let mut rule = Rule { tables, enforced, plain, rows, outcome };
    // Every table refers to itself and to those before it only.
    for table in tables {
        rule.fill(ranks.remove(&table.name).unwrap_or_default());
    }
    plain.execute_batch("COMMIT").unwrap();
    let mut outcome = rule.outcome;
    outcome.partly.retain(|id, _| !outcome.parked.contains(id));
    outcome
}

impl Rule<'_> {
    fn references<'b>(&'b self, row: &Candidate<'b>) -> &'b [Reference] {
        if self.enforced { &row.table.references } else { &[] }
    }

    fn has_parent(&self, reference: &Reference, wanted: &Value) -> bool {
        let parent = self.tables.iter().find(|table| table.name == reference.parent).unwrap();
        let column = &reference.parent_column;
        let sql = format!("SELECT 1 FROM {} WHERE {} = ?1", quoted(&parent.name), quoted(column));
        self.plain.prepare_cached(&sql).unwrap().exists([wanted]).unwrap()
    }

    fn wanted<'b>(reference: &Reference, values: &'b Columns) -> Option<&'b Value> {
        values.get(&reference.column).filter(|value| **value != Value::Null)
    }

    /// The row as it would stand, and which columns hide others.
    fn settled(&self, id: &RowId) -> (Columns, BTreeSet<String>) {
        let row = &self.rows[id];
        let (mut values, mut hidden) = (row.values.clone(), BTreeSet::new());
        for reference in self.references(row) {
            let shown = match &reference.action {
                Action::Park => continue,
                _ if reference.parent == id.0 => continue,
                Action::SetNull => Value::Null,
                Action::SetDefault(default) => Value::text(default),
            };
            let orphan = Self::wanted(reference, &values)
                .is_some_and(|wanted| !self.has_parent(reference, wanted));
            if orphan {
                values.insert(reference.column.clone(), shown);
                hidden.insert(reference.column.clone());
            }
        }
        (values, hidden)
    }

    /// Parents that do not stand.
    fn unmet(&self, id: &RowId, values: &Columns) -> Vec<Value> {
        let row = &self.rows[id];
        let mut unmet = Vec::new();
        for reference in self.references(row) {
            let Some(wanted) = Self::wanted(reference, values) else { continue };
            let own = reference.parent == id.0 && [wanted.clone()] == row.key[..];
            if !own && !self.has_parent(reference, wanted) {
                unmet.push(wanted.clone());
            }
        }
        unmet
    }

    fn insert(&self, id: &RowId, values: &Columns) -> bool {
        let row = &self.rows[id];
        insert(self.plain, row.table, &row.key, values)
    }

    fn stand(&mut self, id: &RowId) -> bool {
        let (values, hidden) = self.settled(id);
        if !self.insert(id, &values) {
            return false;
        }
        if !hidden.is_empty() {
            self.outcome.partly.entry(id.clone()).or_default().extend(hidden);
        }
        true
    }

    fn fill(&mut self, mut todo: BTreeSet<(Rank, RowId)>) {
        loop {
            let ready = |(_, id): &&(Rank, RowId)| self.unmet(id, &self.settled(id).0).is_empty();
            if let Some(entry) = todo.iter().find(ready).cloned() {
                if !self.stand(&entry.1) {
                    self.outcome.parked.insert(entry.1.clone());
                }
                todo.remove(&entry);
                continue;
            }
            let Some(unit) = self.unit(&todo) else { break };
            self.plain.execute_batch("SAVEPOINT unit").unwrap();
            if !unit.iter().all(|id| self.stand(id)) {
                self.plain.execute_batch("ROLLBACK TO unit").unwrap();
                self.outcome.parked.extend(unit.iter().cloned());
            }
            self.plain.execute_batch("RELEASE unit").unwrap();
            todo.retain(|(_, id)| !unit.contains(id));
        }
        self.outcome.parked.extend(todo.into_iter().map(|(_, id)| id));
    }

    /// Rows that wait for each other and nothing else, in a ring of one table: of smallest rank.
    fn unit(&self, todo: &BTreeSet<(Rank, RowId)>) -> Option<Vec<RowId>> {
        // Every row has one reference at most, so what waits only for each other is a ring.
        let parent = |id: &RowId| -> Option<RowId> {
            let unmet = self.unmet(id, &self.settled(id).0);
            let one = (id.0.clone(), pack(&[unmet.first()?.clone()]));
            todo.iter().any(|(_, other)| *other == one).then_some(one)
        };
        todo.iter().find_map(|(_, start)| {
            let mut ring = vec![start.clone()];
            loop {
                let next = parent(ring.last()?)?;
                if next == *start {
                    return Some(ring);
                }
                if ring.contains(&next) {
                    return None;
                }
                ring.push(next);
            }
        })
    }
}

pub fn insert(plain: &Connection, table: &Table, key: &Key, values: &Columns) -> bool {
    let names = table.key.iter().map(|(name, _)| name).chain(values.keys());
    let names: Vec<String> = names.map(|name| quoted(name)).collect();
    let marks = vec!["?"; names.len()].join(", ");
    let sql = format!("INSERT INTO {}({}) VALUES({marks})", quoted(&table.name), names.join(", "));
    let mut statement = plain.prepare_cached(&sql).unwrap();
    statement.execute(params_from_iter(key.iter().chain(values.values()))).is_ok()
}
