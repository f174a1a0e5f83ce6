//! The rule itself, `T = f(L)`: all rows, computed anew in a scratch database, as slowly and as
//! plainly as it can be written down.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use rusqlite::{Connection, params_from_iter};
use wavesync_core::ids::{Dot, SiteId, Stamp};
use wavesync_core::value::Value;

use super::image::{Columns, Image, Row};
use super::schemas::{Action, Key, Schema, Table};

pub type RowId = (&'static str, Value);
type Rank = (Stamp, SiteId, Reverse<Option<Dot>>, Value, &'static str);

/// What the rule comes to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    pub shown: BTreeMap<&'static str, BTreeMap<Value, Columns>>,
    pub parked: BTreeSet<RowId>,
    pub overlays: BTreeMap<RowId, BTreeSet<String>>,
}

struct Candidate {
    rank: Rank,
    values: Columns,
}

struct Rule<'a> {
    schema: &'static Schema,
    enforced: bool,
    scratch: &'a Connection,
    rows: BTreeMap<RowId, Candidate>,
    outcome: Outcome,
}

/// Computes it in a scratch database with the same schema and empty tables.
pub fn outcome(
    schema: &'static Schema,
    enforced: bool,
    scratch: &Connection,
    image: &Image,
) -> Outcome {
    let mut rows = BTreeMap::new();
    for table in schema.tables {
        let known = &image.tables[table.name];
        for (key, row) in known.rows.iter().filter(|(_, row)| row.alive()) {
            let mut values = known.values(key, row);
            values.retain(|name, _| table.columns.iter().any(|(column, _)| column == name));
            rows.insert(
                (table.name, key.clone()),
                Candidate { rank: rank(table.name, key, row), values },
            );
        }
    }
    scratch.execute_batch("BEGIN").unwrap();
    let mut rule = Rule { schema, enforced, scratch, rows, outcome: Outcome::default() };
    for stratum in schema.strata {
        rule.fill(stratum);
    }
    let mut outcome = rule.outcome;
    for table in schema.tables {
        outcome.shown.insert(table.name, shown(scratch, table));
    }
    scratch.execute_batch("ROLLBACK").unwrap();
    outcome
}

fn rank(table: &'static str, key: &Value, row: &Row) -> Rank {
    let birth = (row.birth.stamp, row.birth.site);
    match row.claim {
        Some((written, claim)) if (claim.stamp, claim.site) < birth => {
            (claim.stamp, claim.site, Reverse(Some(written)), key.clone(), table)
        }
        _ => (birth.0, birth.1, Reverse(None), key.clone(), table),
    }
}

/// The rows of a table, without generated columns.
pub fn shown(conn: &Connection, table: &Table) -> BTreeMap<Value, Columns> {
    let names: Vec<&str> = table.columns.iter().map(|(name, _)| *name).collect();
    let sql = format!("SELECT id, {} FROM {}", names.join(", "), table.name);
    let mut statement = conn.prepare_cached(&sql).unwrap();
    let mut rows = statement.query([]).unwrap();
    let mut shown = BTreeMap::new();
    while let Some(row) = rows.next().unwrap() {
        let value = |at| Value::from_ref(row.get_ref(at).unwrap());
        let values = names.iter().enumerate().map(|(at, name)| ((*name).into(), value(at + 1)));
        shown.insert(value(0), values.collect());
    }
    shown
}

impl Rule<'_> {
    fn keys(&self, name: &str) -> &'static [Key] {
        if self.enforced { self.table(name).keys } else { &[] }
    }

    fn table(&self, name: &str) -> &'static Table {
        self.schema.tables.iter().find(|table| table.name == name).unwrap()
    }

    fn has_parent(&self, key: &Key, wanted: &[Value]) -> bool {
        let bound: Vec<String> =
            key.2.iter().enumerate().map(|(at, name)| format!("{name} = ?{}", at + 1)).collect();
        let sql = format!("SELECT 1 FROM {} WHERE {}", key.1, bound.join(" AND "));
        let mut statement = self.scratch.prepare_cached(&sql).unwrap();
        statement.exists(params_from_iter(wanted)).unwrap()
    }

    fn wanted(key: &Key, values: &Columns) -> Option<Vec<Value>> {
        let wanted: Vec<Value> = key.0.iter().map(|name| values[*name].clone()).collect();
        (!wanted.contains(&Value::Null)).then_some(wanted)
    }

    fn offered(key: &Key, id: &RowId, values: &Columns) -> Vec<Value> {
        let value = |name: &&str| if *name == "id" { id.1.clone() } else { values[*name].clone() };
        key.2.iter().map(value).collect()
    }

    /// The row as it would stand, and which columns hide others.
    fn settled(&self, id: &RowId, stratum: &[&str]) -> (Columns, BTreeSet<String>) {
        let mut values = self.rows[id].values.clone();
        let mut hidden = BTreeSet::new();
        for key in self.keys(id.0) {
            let shown = match key.3 {
                Action::Park => continue,
                _ if stratum.contains(&key.1) => continue,
                Action::SetNull => Value::Null,
                Action::SetDefault(default) => Value::text(default),
            };
            if Self::wanted(key, &values).is_some_and(|wanted| !self.has_parent(key, &wanted)) {
                for name in key.0 {
                    values.insert((*name).into(), shown.clone());
                    hidden.insert((*name).into());
                }
            }
        }
        (values, hidden)
    }

    /// The keys without a parent, counting `extra` rows as if they stood.
    fn unmet(&self, id: &RowId, values: &Columns, extra: &BTreeSet<RowId>) -> Vec<&'static Key> {
        let mut unmet = Vec::new();
        for key in self.keys(id.0) {
            let Some(wanted) = Self::wanted(key, values) else { continue };
            let own = key.1 == id.0 && Self::offered(key, id, values) == wanted;
            let by_extra = extra
                .iter()
                .filter(|other| other.0 == key.1)
                .any(|other| Self::offered(key, other, &self.rows[other].values) == wanted);
            if !own && !by_extra && !self.has_parent(key, &wanted) {
                unmet.push(key);
            }
        }
        unmet
    }

    fn insert(&self, id: &RowId, values: &Columns) -> bool {
        let names: Vec<&str> = values.keys().map(String::as_str).collect();
        let marks = vec!["?"; names.len() + 1].join(", ");
        let sql = format!("INSERT INTO {}(id, {}) VALUES({marks})", id.0, names.join(", "));
        let mut statement = self.scratch.prepare_cached(&sql).unwrap();
        statement.execute(params_from_iter(std::iter::once(&id.1).chain(values.values()))).is_ok()
    }

    fn fill(&mut self, stratum: &[&str]) {
        let none = BTreeSet::new();
        let mut todo: BTreeSet<(Rank, RowId)> = self
            .rows
            .iter()
            .filter(|(id, _)| stratum.contains(&id.0))
            .map(|(id, row)| (row.rank.clone(), id.clone()))
            .collect();
        loop {
            let ready = todo.iter().find(|(_, id)| {
                let (values, _) = self.settled(id, stratum);
                self.unmet(id, &values, &none).is_empty()
            });
            if let Some(entry) = ready.cloned() {
                let (values, hidden) = self.settled(&entry.1, stratum);
                if !self.insert(&entry.1, &values) {
                    self.outcome.parked.insert(entry.1.clone());
                } else if !hidden.is_empty() {
                    self.outcome.overlays.insert(entry.1.clone(), hidden);
                }
                todo.remove(&entry);
                continue;
            }
            let Some(unit) = self.unit(&todo, stratum) else { break };
            self.scratch.execute_batch("SAVEPOINT unit").unwrap();
            let mut stand = true;
            for (_, id) in todo.iter().filter(|(_, id)| unit.contains(id)) {
                stand &= self.insert(id, &self.settled(id, stratum).0);
            }
            if !stand {
                self.scratch.execute_batch("ROLLBACK TO unit").unwrap();
                self.outcome.parked.extend(unit.iter().cloned());
            }
            self.scratch.execute_batch("RELEASE unit").unwrap();
            for id in unit.iter().filter(|_| stand) {
                let (_, hidden) = self.settled(id, stratum);
                if !hidden.is_empty() {
                    self.outcome.overlays.insert(id.clone(), hidden);
                }
            }
            todo.retain(|(_, id)| !unit.contains(id));
        }
        self.outcome.parked.extend(todo.into_iter().map(|(_, id)| id));
    }

    /// Rows that wait only for each other: of all such smallest sets the one of smallest rank.
    fn unit(&self, todo: &BTreeSet<(Rank, RowId)>, stratum: &[&str]) -> Option<BTreeSet<RowId>> {
        let mut rest: BTreeSet<RowId> = todo.iter().map(|(_, id)| id.clone()).collect();
        loop {
            let bad: Vec<RowId> = rest
                .iter()
                .filter(|id| !self.unmet(id, &self.settled(id, stratum).0, &rest).is_empty())
                .cloned()
                .collect();
            if bad.is_empty() {
                break;
            }
            rest.retain(|id| !bad.contains(id));
        }
        let none = BTreeSet::new();
        let parents = |id: &RowId| -> BTreeSet<RowId> {
            let (values, _) = self.settled(id, stratum);
            let keys = self.unmet(id, &values, &none);
            let offers = |key: &Key, other: &RowId| {
                other.0 == key.1
                    && Some(Self::offered(key, other, &self.rows[other].values))
                        == Self::wanted(key, &values)
            };
            let all = keys.iter().flat_map(|key| rest.iter().filter(|other| offers(key, other)));
            all.cloned().collect()
        };
        let above: BTreeMap<RowId, BTreeSet<RowId>> =
            rest.iter().map(|id| (id.clone(), parents(id))).collect();
        let reach = |id: &RowId| {
            let (mut seen, mut queue) = (BTreeSet::new(), vec![id.clone()]);
            while let Some(next) = queue.pop() {
                for parent in &above[&next] {
                    if seen.insert(parent.clone()) {
                        queue.push(parent.clone());
                    }
                }
            }
            seen
        };
        todo.iter().map(|(_, id)| id).filter(|id| rest.contains(*id)).find_map(|id| {
            let unit = reach(id);
            let closed = unit.contains(id) && unit.iter().all(|member| reach(member) == unit);
            closed.then_some(unit)
        })
    }
}
