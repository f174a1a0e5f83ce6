//! Rows of one stratum that wait for parents: who may be woken by whom, and which of them only wait
//! for each other. Every step costs time in proportion to the rows that it touches.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::TableNum;
use crate::store::admit::{Form, Ordered};
use crate::store::contend::{Contender, RowId};
use crate::store::foreign::{Plan, pick};
use crate::store::rows::Values;
use crate::value::Value;

/// A reference: position of the foreign key in the plan, and the values referred to.
type Reference = (usize, Vec<Value>);

/// Rows that wait, by rank and by what they wait for.
#[derive(Default)]
pub(super) struct Waiting {
    rows: BTreeMap<Ordered, Form>,
    by_reference: BTreeMap<Reference, BTreeSet<Ordered>>,
}

impl Waiting {
    /// Adds a row.
    pub fn insert(&mut self, plan: &Plan, entry: Ordered, form: Form) {
        for (at, wanted) in &form.missing {
            let reference = (*at, coarse(plan, *at, wanted));
            self.by_reference.entry(reference).or_default().insert(entry.clone());
        }
        self.rows.insert(entry, form);
    }

    /// Takes a row out.
    pub fn remove(&mut self, plan: &Plan, entry: &Ordered) {
        let Some(form) = self.rows.remove(entry) else { return };
        for (at, wanted) in &form.missing {
            let reference = (*at, coarse(plan, *at, wanted));
            if let Some(entries) = self.by_reference.get_mut(&reference) {
                entries.remove(entry);
                if entries.is_empty() {
                    self.by_reference.remove(&reference);
                }
            }
        }
    }

    /// The rows whose parent this one may be, by rank.
    pub fn woken_by(
        &self,
        plan: &Plan,
        table: TableNum,
        key: &[Value],
        values: &Values,
    ) -> BTreeSet<Ordered> {
        let keys = plan.keys.iter().enumerate().filter(|(_, known)| known.parent == table);
        keys.filter_map(|(at, known)| {
            let offered = pick(&known.parent_columns, key, values)?;
            self.by_reference.get(&(at, coarse(plan, at, &offered)))
        })
        .flatten()
        .cloned()
        .collect()
    }

    /// What is left, by rank.
    pub fn into_rows(self) -> BTreeMap<Ordered, Form> {
        self.rows
    }
}

/// Values in a form in which all are equal that SQLite may find equal; it is asked afterwards.
/// Affinities make texts of numbers, the built-in collations ignore case or trailing spaces; of what
/// other collations do nothing is known.
pub(super) fn coarse(plan: &Plan, at: usize, values: &[Value]) -> Vec<Value> {
    if plan.keys.get(at).is_some_and(|key| key.collates) {
        return Vec::new();
    }
    values.iter().map(coarse_value).collect()
}

/// A value in that form.
pub(super) fn coarse_value(value: &Value) -> Value {
    let number = |real: f64| Value::Real(if real == 0.0 { 0.0 } else { real });
    match value {
        #[allow(clippy::cast_precision_loss)]
        Value::Integer(integer) => number(*integer as f64),
        Value::Real(real) => number(*real),
        Value::Text(bytes) => {
            let text = std::str::from_utf8(bytes).unwrap_or("\u{0}").trim();
            match text.parse() {
                Ok(real) => number(real),
                Err(_) => {
                    let end = bytes.iter().rposition(|byte| *byte != b' ').map_or(0, |at| at + 1);
                    Value::Text(bytes[..end].to_ascii_lowercase())
                }
            }
        }
        other => other.clone(),
    }
}

/// Of the rows that wait only for each other, the unit that holds the one of smallest rank: each of
/// them waits, directly or not, for each, and for nobody else.
pub(super) fn unit(
    plan: &Plan,
    rows: &BTreeMap<RowId, Contender>,
    waiting: &Waiting,
) -> Option<BTreeSet<Ordered>> {
    let entries: Vec<&Ordered> = waiting.rows.keys().collect();
    let mut offers: BTreeMap<Reference, Vec<usize>> = BTreeMap::new();
    for (number, (_, id)) in entries.iter().enumerate() {
        let Some(row) = rows.get(id) else { continue };
        for (at, key) in plan.keys.iter().enumerate().filter(|(_, key)| key.parent == id.0) {
            if let Some(offered) = pick(&key.parent_columns, &row.keys, &row.values) {
                offers.entry((at, offered)).or_default().push(number);
            }
        }
    }
    let none = Vec::new();
    // For each row and each parent that it misses, the rows that would be it.
    let wanted: Vec<Vec<&Vec<usize>>> = waiting
        .rows
        .values()
        .map(|form| form.missing.iter().map(|wish| offers.get(wish).unwrap_or(&none)).collect())
        .collect();
    let alive = without_orphans(&wanted);
    let above: Vec<Vec<usize>> = wanted
        .iter()
        .enumerate()
        .map(|(number, lists)| {
            let parents = lists.iter().flat_map(|list| list.iter().copied());
            if alive[number] { parents.filter(|parent| alive[*parent]).collect() } else { vec![] }
        })
        .collect();
    let component = components(&above);
    let mut open: BTreeSet<usize> = BTreeSet::new();
    for (number, parents) in above.iter().enumerate() {
        if parents.is_empty() || parents.iter().any(|p| component[*p] != component[number]) {
            open.insert(component[number]);
        }
    }
    let first = (0..entries.len()).find(|number| !open.contains(&component[*number]))?;
    let members = entries.iter().enumerate();
    let unit = members.filter(|(number, _)| component[*number] == component[first]);
    Some(unit.map(|(_, entry)| (*entry).clone()).collect())
}

/// Which rows are left when those go that miss a parent which nobody would be, and those that wait for
/// them, and so on.
fn without_orphans(wanted: &[Vec<&Vec<usize>>]) -> Vec<bool> {
    let mut left: Vec<Vec<usize>> =
        wanted.iter().map(|lists| lists.iter().map(|list| list.len()).collect()).collect();
    let mut below: Vec<Vec<(usize, usize)>> = vec![Vec::new(); wanted.len()];
    for (number, lists) in wanted.iter().enumerate() {
        for (wish, list) in lists.iter().enumerate() {
            list.iter().for_each(|parent| below[*parent].push((number, wish)));
        }
    }
    let mut alive = vec![true; wanted.len()];
    let mut queue: Vec<usize> =
        (0..wanted.len()).filter(|number| left[*number].contains(&0)).collect();
    queue.iter().for_each(|number| alive[*number] = false);
    while let Some(gone) = queue.pop() {
        for (child, wish) in &below[gone] {
            left[*child][*wish] -= 1;
            if left[*child][*wish] == 0 && alive[*child] {
                alive[*child] = false;
                queue.push(*child);
            }
        }
    }
    alive
}

/// The strongly connected component of each node (Tarjan, SIAM J. Comput. 1972), without recursion:
/// a chain of parents may be long.
fn components(above: &[Vec<usize>]) -> Vec<usize> {
    const NEW: usize = usize::MAX;
    let mut index = vec![NEW; above.len()];
    let mut low = vec![0; above.len()];
    let mut component = vec![NEW; above.len()];
    let (mut open, mut count) = (Vec::new(), 0);
    for start in 0..above.len() {
        if index[start] != NEW {
            continue;
        }
        let mut path = vec![(start, 0)];
        while let Some((node, next)) = path.pop() {
            if next == 0 {
                (index[node], low[node]) = (count, count);
                count += 1;
                open.push(node);
            }
            if let Some(parent) = above[node].get(next).copied() {
                path.push((node, next + 1));
                if index[parent] == NEW {
                    path.push((parent, 0));
                } else if component[parent] == NEW {
                    low[node] = low[node].min(index[parent]);
                }
                continue;
            }
            if low[node] == index[node] {
                while let Some(member) = open.pop() {
                    component[member] = node;
                    if member == node {
                        break;
                    }
                }
            }
            if let Some((child, _)) = path.last() {
                low[*child] = low[*child].min(low[node]);
            }
        }
    }
    component
}
