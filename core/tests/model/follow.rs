//! How the model learns the names of write events: which events there are is for the model to say,
//! what stamps they got is read from the replica that gave them.

use std::collections::{BTreeMap, BTreeSet};

use wavesync_core::ids::Dot;
use wavesync_core::store::key::{pack, unpack};
use wavesync_core::store::shape::KeyForm;
use wavesync_core::value::Value;

use crate::group::Replica;
use crate::image::{self, Image};
use crate::plain::Plain;
use crate::reference::{Key, Row, Rows, is_unnamed};
use crate::rule;
use crate::schema::{Change, Table, quoted};

/// What was there before joining: one base event for all of a table.
pub fn joined(plain: &Plain, tables: &[Table], image: &Image) -> BTreeMap<String, Rows> {
    let mut model = BTreeMap::new();
    for table in tables {
        let real = &image.tables[&table.name.to_ascii_lowercase()];
        let mut rows = Rows { integer: table.integer, ..Rows::default() };
        for (stored, shown) in plain.shown(table) {
            let birth = real.rows[&stored].birth;
            assert!(birth.stamp.is_base(), "{} {stored:?} was there before", table.name);
            let value = |name: &String| shown[&name.to_ascii_lowercase()].clone();
            let columns = table.columns.iter().map(|column| &column.name);
            let cells = columns.map(|name| (name.clone(), (birth, value(name)))).collect();
            let form = match (table.integer, table.key.len()) {
                (true, _) => KeyForm::Rowid,
                (false, 1) => KeyForm::Single,
                _ => KeyForm::Composite,
            };
            let key = unpack(form, table.key.len(), &stored).unwrap();
            let (claim, ended) = (None, BTreeMap::new());
            rows.rows.insert(key, Row { length: 1, birth, cells, claim, ended });
        }
        model.insert(table.name.clone(), rows);
    }
    model
}

pub fn rename(model: &mut BTreeMap<String, Rows>, change: &Change) {
    match change {
        Change::RenameTable { from, to } => {
            if let Some(rows) = model.remove(from) {
                model.insert(to.clone(), rows);
            }
        }
        Change::RenameColumn { table, from, to } => {
            for row in model.get_mut(table).into_iter().flat_map(|rows| rows.rows.values_mut()) {
                if let Some(cell) = row.cells.remove(from) {
                    row.cells.insert(to.clone(), cell);
                }
            }
        }
        _ => {}
    }
}

/// Gives the events that have no name those of the replica. Each must be new and its own.
pub fn name_events(
    row: &mut Row,
    real: &image::Row,
    shown: Option<&BTreeMap<String, Value>>,
    fresh: &dyn Fn(Dot) -> bool,
) -> Result<(), &'static str> {
    let name = |known: Dot| if fresh(known) { Ok(known) } else { Err("an event is not new") };
    if is_unnamed(row.birth) {
        row.birth = name(real.birth)?;
    }
    for (column, (dot, value)) in &mut row.cells {
        if is_unnamed(*dot) {
            let real = real.cells.get(&column.to_ascii_lowercase()).ok_or("a cell has no event")?;
            *dot = name(*real)?;
            let values = shown.ok_or("a row that was written does not stand")?;
            *value = values[&column.to_ascii_lowercase()].clone();
        }
    }
    let (known, mut new): (Vec<_>, Vec<_>) =
        std::mem::take(&mut row.ended).into_iter().partition(|(birth, _)| !is_unnamed(*birth));
    row.ended = known.into_iter().collect();
    for (birth, death) in &mut row.ended {
        if is_unnamed(*death) {
            *death = name(*real.ended.get(birth).ok_or("an end is not known")?)?;
        }
    }
    let mut unknown = real.ended.iter().filter(|(birth, _)| !row.ended.contains_key(birth));
    let mut named = Vec::new();
    new.sort();
    for _ in new {
        let (birth, death) = unknown.next().ok_or("an end is not known")?;
        named.push((name(*birth)?, name(*death)?));
    }
    row.ended.extend(named);
    Ok(())
}

/// A local write that stands against an older parked row takes its rank.
pub fn take_over(replica: &mut Replica, image: &Image, touched: &BTreeSet<(String, Key)>) {
    let mut claims: BTreeMap<(String, Key), (rule::Rank, Dot)> = BTreeMap::new();
    for (name, stored) in &replica.outcome.parked {
        let Some(table) = replica.tables.iter().find(|table| table.name == *name) else { continue };
        let rows = &replica.model[name].rows;
        let parked = rows.iter().find(|(key, _)| pack(key) == *stored);
        let Some((parked_key, parked)) = parked.filter(|(_, row)| row.alive()) else { continue };
        if touched.contains(&(name.clone(), parked_key.clone())) {
            continue;
        }
        let older = rule::rank(name, parked_key, parked);
        let shown = replica.plain.shown(table);
        for (_, key) in touched.iter().filter(|(touched, _)| touched == name) {
            let (Some(row), Some(values)) = (rows.get(key), shown.get(&pack(key))) else {
                continue;
            };
            let known = claims.get(&(name.clone(), key.clone()));
            if older < rule::rank(name, key, row)
                && known.is_none_or(|(known, _)| older < *known)
                && exclude(&replica.plain, table, (parked_key, parked), (key, values))
            {
                let claim = (older.clone(), rule::origin(parked));
                claims.insert((name.clone(), key.clone()), claim);
            }
        }
    }
    for ((name, key), (_, origin)) in claims {
        let real = image.tables[&name.to_ascii_lowercase()].rows.get(&pack(&key));
        let written = real.and_then(|row| row.claim).map(|(written, _)| written);
        let row = replica.model.get_mut(&name).and_then(|rows| rows.rows.get_mut(&key));
        let (Some(row), Some(written)) = (row, written) else {
            panic!("{name} {key:?} takes over from {origin:?}, but {real:?}")
        };
        row.claim = Some((written, origin));
    }
}

/// Whether two rows cannot stand together.
fn exclude(
    plain: &Plain,
    table: &Table,
    parked: (&Key, &Row),
    stands: (&Key, &BTreeMap<String, Value>),
) -> bool {
    let here = |name: &String| table.columns.iter().any(|column| column.name == *name);
    let cells = parked.1.cells.iter().filter(|(name, _)| here(name));
    let one = cells.map(|(name, (_, value))| (name.clone(), value.clone())).collect();
    let columns = table.columns.iter().map(|column| &column.name);
    let two = columns.map(|name| (name.clone(), stands.1[&name.to_ascii_lowercase()].clone()));
    plain.conn.execute_batch("SAVEPOINT pair").unwrap();
    plain.conn.execute_batch(&format!("DELETE FROM {}", quoted(&table.name))).unwrap();
    let possible = rule::insert(&plain.conn, table, parked.0, &one);
    let apart = possible && !rule::insert(&plain.conn, table, stands.0, &two.collect());
    plain.conn.execute_batch("ROLLBACK TO pair; RELEASE pair").unwrap();
    apart
}
