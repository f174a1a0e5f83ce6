//! Declared foreign keys between tracked tables, and the order of tables that follows from them.
//!
//! They are enforced on what arrives only if the connection that joined enforces them itself: the
//! rows of an application that does not would vanish from under it.

use std::collections::BTreeMap;

use rusqlite::Connection;

use crate::Result;
use crate::ids::{ColumnNum, TableNum};
use crate::mutants::{self, Mutant};
use crate::store::Tx;
use crate::store::rows::Values;
use crate::store::shape::Shape;
use crate::store::sql::ident;
use crate::store::tables::Table;
use crate::value::Value;

/// A foreign key as its table declares it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declared {
    /// The columns of the child.
    pub columns: Vec<String>,
    /// The parent table.
    pub parent: String,
    /// The columns of the parent; empty for its primary key.
    pub parent_columns: Vec<String>,
    /// What is declared for a missing parent.
    pub on_delete: String,
}

/// What becomes of a child without its parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It is parked, and comes back with the parent.
    Park,
    /// The table shows NULL in these columns as long as the parent is missing.
    SetNull,
    /// The table shows the columns' defaults as long as the parent is missing.
    SetDefault,
}

/// Where a column's value is kept: a part of the key, or a numbered column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Position in the key.
    Key(usize),
    /// Column outside the key.
    Column(ColumnNum),
}

/// A foreign key between two tracked tables.
#[derive(Debug)]
pub struct ForeignKey {
    /// The table with the reference.
    pub child: TableNum,
    /// The table referred to.
    pub parent: TableNum,
    /// The name of the parent.
    pub parent_name: String,
    /// Where the child's values are.
    pub columns: Vec<Place>,
    /// Where the parent's values are.
    pub parent_columns: Vec<Place>,
    /// A column of either table has a collation of the application's own.
    pub collates: bool,
    /// What becomes of a child without its parent.
    pub action: Action,
    /// What the child's columns show then; empty for [`Action::Park`].
    pub overlay: Values,
    /// The parent's key by the values of the reference.
    pub parent_select: String,
    /// Keys of the children by the values of the reference.
    pub children_select: String,
    /// Keys of all children without a parent.
    pub orphans_select: String,
    /// Keys of children logged after a position that have no parent; `None` if the child's key
    /// cannot be compared with the log.
    pub new_orphans_select: Option<String>,
    /// The same for children whose entry stands for many rows: from one key to another, and with
    /// this entry.
    pub span_orphans_select: Option<String>,
    /// Keys of children of parents that are gone and were logged after a position; `None` if
    /// the parent is not referred to by its key.
    pub left_orphans_select: Option<String>,
}

/// Foreign keys that are enforced, and the strata of tables: parents before children.
#[derive(Debug, Default)]
pub struct Plan {
    /// The setting that it was made under.
    pub enforced: bool,
    /// The enforced keys.
    pub keys: Vec<ForeignKey>,
    /// The stratum of each table; tables that refer to each other share one.
    pub strata: BTreeMap<TableNum, usize>,
    /// The same by all declared keys, enforced or not: the order in which rows are served, since
    /// others may enforce what is not enforced here.
    pub orders: BTreeMap<TableNum, usize>,
}

impl Plan {
    /// The stratum of a table.
    #[must_use]
    pub fn stratum(&self, table: TableNum) -> usize {
        self.strata.get(&table).copied().unwrap_or(0)
    }

    /// The place of a table among all, parents before children.
    #[must_use]
    pub fn order(&self, table: TableNum) -> usize {
        self.orders.get(&table).copied().unwrap_or(usize::MAX)
    }

    /// The keys that a table declares.
    pub fn of_child(&self, table: TableNum) -> impl Iterator<Item = &ForeignKey> {
        self.keys.iter().filter(move |key| key.child == table)
    }

    /// The keys that refer to a table.
    pub fn of_parent(&self, table: TableNum) -> impl Iterator<Item = &ForeignKey> {
        self.keys.iter().filter(move |key| key.parent == table)
    }

    /// Whether the parent stands in the same stratum as the child.
    #[must_use]
    pub fn inside(&self, key: &ForeignKey) -> bool {
        self.stratum(key.child) == self.stratum(key.parent)
    }
}

/// The values at some places; `None` if one of them is NULL or missing.
pub fn pick(places: &[Place], key: &[Value], values: &Values) -> Option<Vec<Value>> {
    let value = |place: &Place| match place {
        Place::Key(at) => key.get(*at).cloned(),
        Place::Column(num) => values.get(num).cloned(),
    };
    places.iter().map(|place| value(place).filter(|value| *value != Value::Null)).collect()
}

/// The foreign keys of a table as SQLite tells them.
pub fn declared(conn: &Connection, table: &str) -> Result<Vec<Declared>> {
    let mut statement = conn.prepare_cached(
        "SELECT id, \"table\", \"from\", coalesce(\"to\", ''), on_delete
         FROM pragma_foreign_key_list(?1, 'main') ORDER BY id, seq",
    )?;
    let mut keys: BTreeMap<i64, Declared> = BTreeMap::new();
    let mut rows = statement.query([table])?;
    while let Some(row) = rows.next()? {
        let entry = keys.entry(row.get(0)?).or_insert(Declared {
            columns: Vec::new(),
            parent: row.get(1)?,
            parent_columns: Vec::new(),
            on_delete: row.get(4)?,
        });
        entry.columns.push(row.get(2)?);
        let to: String = row.get(3)?;
        if !to.is_empty() {
            entry.parent_columns.push(to);
        }
    }
    Ok(keys.into_values().collect())
}

impl Tx<'_> {
    /// Whether the connection that joined last enforces foreign keys.
    pub(super) fn enforces_keys(&self) -> Result<bool> {
        let enforced = self.meta::<i64>("foreign_keys")?.unwrap_or(0) == 1;
        Ok(enforced && !mutants::on(Mutant::ParentsIgnored))
    }

    /// Works out which foreign keys are enforced and the order of tables.
    pub(super) fn plan_constraints(&mut self) -> Result<()> {
        let enforced = self.enforces_keys()?;
        let mut plan = Plan { enforced, ..Plan::default() };
        let tables = self.tables();
        let mut declares = Vec::new();
        for child in &tables {
            for declared in child.shape.iter().flat_map(|shape| &shape.foreign) {
                let Some(parent) = self.table_named(&declared.parent) else { continue };
                declares.push((child.num, parent.num));
                if enforced && let Some(key) = foreign_key(self.conn, child, &parent, declared)? {
                    plan.keys.push(key);
                }
            }
        }
        let nums: Vec<TableNum> = tables.iter().map(|table| table.num).collect();
        let enforces: Vec<_> = plan.keys.iter().map(|key| (key.child, key.parent)).collect();
        plan.strata = strata(&nums, &enforces);
        plan.orders = strata(&nums, &declares);
        self.cache.plan = std::rc::Rc::new(plan);
        Ok(())
    }
}

fn place(table: &Table, shape: &Shape, name: &str) -> Option<Place> {
    let same = |other: &str| other.eq_ignore_ascii_case(name);
    if let Some(at) = shape.key.iter().position(|column| same(&column.name)) {
        return Some(Place::Key(at));
    }
    table.local_columns().find(|column| same(&column.name)).map(|c| Place::Column(c.num))
}

/// `None` if the key cannot be enforced: the parent is not tracked, or a column is generated.
fn foreign_key(
    conn: &Connection,
    child: &Table,
    parent: &Table,
    declared: &Declared,
) -> Result<Option<ForeignKey>> {
    let (Some(child_shape), Some(parent_shape)) = (&child.shape, &parent.shape) else {
        return Ok(None);
    };
    let parent_names: Vec<&str> = if declared.parent_columns.is_empty() {
        parent_shape.key.iter().map(|column| column.name.as_str()).collect()
    } else {
        declared.parent_columns.iter().map(String::as_str).collect()
    };
    if parent_names.len() != declared.columns.len() {
        return Ok(None);
    }
    let columns: Option<Vec<Place>> =
        declared.columns.iter().map(|name| place(child, child_shape, name)).collect();
    let parent_columns: Option<Vec<Place>> =
        parent_names.iter().map(|name| place(parent, parent_shape, name)).collect();
    let (Some(columns), Some(parent_columns)) = (columns, parent_columns) else { return Ok(None) };
    let in_key = columns.iter().any(|place| matches!(place, Place::Key(_)));
    let action = match declared.on_delete.to_ascii_uppercase().as_str() {
        "SET NULL" if !in_key => Action::SetNull,
        "SET DEFAULT" if !in_key => Action::SetDefault,
        _ => Action::Park,
    };
    let texts = texts((child.num, child_shape), parent_shape, &declared.columns, &parent_names)?;
    let alike = compare_alike(child_shape, parent_shape, &declared.columns, &parent_names);
    let by_key = parent_columns.as_slice() == [Place::Key(0)] && parent_shape.key.len() == 1;
    let overlay = overlay(conn, child, &columns, action)?;
    Ok(Some(ForeignKey {
        child: child.num,
        parent: parent.num,
        parent_name: parent.name.clone(),
        collates: has_own_collation(&child_shape.sql) || has_own_collation(&parent_shape.sql),
        columns,
        parent_columns,
        action,
        overlay,
        parent_select: texts.parent,
        children_select: if alike { texts.children } else { texts.any_orphans },
        orphans_select: texts.orphans,
        new_orphans_select: (child_shape.key.len() == 1).then_some(texts.new_orphans),
        span_orphans_select: (child_shape.key.len() == 1).then_some(texts.span_orphans),
        left_orphans_select: (by_key && alike).then_some(texts.left_orphans),
    }))
}

/// Whether a value finds its children as children find their parent. SQLite compares by the parent's
/// collation and affinity (<https://www.sqlite.org/foreignkeys.html>), so `'bob'` may have the parent `'Bob'`.
fn compare_alike(child: &Shape, parent: &Shape, columns: &[String], parents: &[&str]) -> bool {
    let affinity = |shape: &Shape, name: &str| {
        let mut all = shape.key.iter().chain(&shape.columns);
        all.find(|column| column.name.eq_ignore_ascii_case(name)).map(|column| column.affinity)
    };
    let mut pairs = columns.iter().zip(parents);
    !child.collates
        && !parent.collates
        && pairs.all(|(name, of)| affinity(child, name) == affinity(parent, of))
}

fn overlay(conn: &Connection, child: &Table, columns: &[Place], action: Action) -> Result<Values> {
    let mut overlay = Values::new();
    for place in columns {
        let Place::Column(num) = place else { continue };
        let local = child.column(*num).and_then(|column| column.local.as_ref());
        let default = local.and_then(|local| local.default.as_ref());
        let value = match (action, default) {
            (Action::Park, _) => continue,
            (Action::SetDefault, Some(sql)) => {
                crate::store::shape::default_value(conn, sql).unwrap_or(Value::Null)
            }
            _ => Value::Null,
        };
        overlay.insert(*num, value);
    }
    Ok(overlay)
}

/// Whether the text of a table may name a collation that is not SQLite's.
fn has_own_collation(sql: &str) -> bool {
    let text = sql.to_ascii_lowercase();
    text.split("collate").skip(1).any(|rest| {
        let name = rest.trim_start().trim_start_matches(['"', '[', '`', '\'']);
        !["binary", "nocase", "rtrim"].iter().any(|known| name.starts_with(known))
    })
}

struct Texts {
    parent: String,
    children: String,
    any_orphans: String,
    orphans: String,
    new_orphans: String,
    span_orphans: String,
    left_orphans: String,
}

fn texts(
    (num, child): (TableNum, &Shape),
    parent: &Shape,
    columns: &[String],
    parents: &[&str],
) -> Result<Texts> {
    let (c, p) = (ident(&child.name)?, ident(&parent.name)?);
    let child_key = crate::store::key::expression(child.form, &child.key, "c.")?;
    let parent_key = crate::store::key::expression(parent.form, &parent.key, "p.")?;
    let each = |make: &dyn Fn(usize, &str, &str) -> String| -> Result<String> {
        let pairs = columns.iter().zip(parents).enumerate();
        let parts: Result<Vec<String>> = pairs
            .map(|(at, (child, parent))| Ok(make(at + 1, &ident(child)?, &ident(parent)?)))
            .collect();
        Ok(parts?.join(" AND "))
    };
    let bound = each(&|at, _, parent| format!("p.{parent} = ?{at}"))?;
    let children = each(&|at, child, _| format!("c.{child} = ?{at}"))?;
    let given = each(&|_, child, _| format!("c.{child} IS NOT NULL"))?;
    let joined = each(&|_, child, parent| format!("p.{parent} = c.{child}"))?;
    let orphan = format!("{given} AND NOT EXISTS (SELECT 1 FROM main.{p} AS p WHERE {joined})");
    let first = |names: &[&str]| ident(names.first().copied().unwrap_or_default());
    let key = first(&[child.key.first().map_or("", |column| column.name.as_str())])?;
    let parent_column = first(parents)?;
    let reference = first(&[columns.first().map_or("", String::as_str)])?;
    Ok(Texts {
        parent: format!("SELECT {parent_key} FROM main.{p} AS p WHERE {bound}"),
        children: format!("SELECT {child_key} FROM main.{c} AS c WHERE {children}"),
        any_orphans: format!(
            "SELECT {child_key} FROM main.{c} AS c WHERE {orphan} AND ?{most} IS ?{most}",
            most = columns.len()
        ),
        orphans: format!("SELECT {child_key} FROM main.{c} AS c WHERE {orphan}"),
        new_orphans: format!(
            "SELECT {child_key} FROM __wavesync_log AS l CROSS JOIN main.{c} AS c
             WHERE l.seq > ?1 AND l.tbl = ?2 AND c.{key} = l.pk AND {orphan}"
        ),
        span_orphans: format!(
            "SELECT {child_key} FROM __wavesync_clock_{} AS l CROSS JOIN main.{c} AS c
             WHERE l.k >= ?1 AND l.k <= ?2 AND l.seq = ?3 AND c.{key} = l.k AND {orphan}",
            num.0
        ),
        left_orphans: format!(
            "SELECT {child_key} FROM __wavesync_log AS l CROSS JOIN main.{c} AS c
             WHERE l.seq > ?1 AND l.tbl = ?2
             AND NOT EXISTS (SELECT 1 FROM main.{p} AS p WHERE p.{parent_column} = l.pk)
             AND c.{reference} = l.pk AND {orphan}"
        ),
    })
}

/// Numbers the strongly connected components of the tables, parents first. Children and parents
/// are few, so reachability by repeated steps is enough.
fn strata(tables: &[TableNum], keys: &[(TableNum, TableNum)]) -> BTreeMap<TableNum, usize> {
    use std::collections::BTreeSet;
    let mut above: BTreeMap<TableNum, BTreeSet<TableNum>> =
        tables.iter().map(|table| (*table, BTreeSet::new())).collect();
    loop {
        let mut grown = false;
        for (child, parent) in keys {
            let mut reached = above.get(parent).cloned().unwrap_or_default();
            reached.insert(*parent);
            let own = above.entry(*child).or_default();
            let before = own.len();
            own.extend(reached);
            grown |= own.len() > before;
        }
        if !grown {
            break;
        }
    }
    let together = |a: &TableNum, b: &TableNum| above[a].contains(b) && above[b].contains(a);
    let mut strata = BTreeMap::new();
    let mut next = 0;
    while strata.len() < tables.len() {
        let ready = tables.iter().find(|table| {
            let mut parents = above[*table].iter();
            !strata.contains_key(*table)
                && parents.all(|p| strata.contains_key(p) || together(table, p) || *table == p)
        });
        let Some(ready) = ready else { break };
        for table in tables.iter().filter(|table| *table == ready || together(ready, table)) {
            strata.insert(*table, next);
        }
        next += 1;
    }
    strata
}
