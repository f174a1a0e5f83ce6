//! The comparison of a replica with its model, and of replicas with each other.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::Connection;
use wavesync_core::store::key::pack;
use wavesync_core::store::report;
use wavesync_core::value::Value;

use crate::group::Replica;
use crate::image::{self, Image};
use crate::reference::Row;
use crate::rule::RowId;

/// The replica holds what the model holds: row states, values, tables, parked rows.
pub fn same(replica: &Replica, image: &Image, at: usize) {
    for (name, rows) in &replica.model {
        let lower = name.to_ascii_lowercase();
        let Some(real) = image.tables.get(&lower) else {
            assert!(rows.rows.is_empty(), "r{at} knows nothing of {name}: {rows:?}");
            continue;
        };
        let keys: BTreeSet<Value> =
            rows.rows.keys().map(|key| pack(key)).chain(real.rows.keys().cloned()).collect();
        let model: BTreeMap<Value, &Row> =
            rows.rows.iter().map(|(key, row)| (pack(key), row)).collect();
        for key in keys {
            let (expected, found) = (model.get(&key).copied(), real.rows.get(&key));
            let equal = match (expected, found) {
                (Some(expected), Some(found)) => same_row(expected, found),
                // Where a row moved to and ended, only those know who saw it there.
                (Some(Row { length, .. }), None) => rows.integer && length % 2 == 0,
                (None, Some(found)) => rows.integer && !found.alive(),
                (None, None) => true,
            };
            assert!(equal, "r{at}, {name} {key:?}:\n model {expected:?}\n found {found:?}");
            if let (Some(expected), Some(found)) = (expected, found)
                && expected.alive()
            {
                let values = real.values(&key, found);
                for (column, (_, value)) in &expected.cells {
                    let shown = values.get(&column.to_ascii_lowercase());
                    let overlaid = replica
                        .outcome
                        .partly
                        .get(&(name.clone(), key.clone()))
                        .is_some_and(|hidden| hidden.contains(column));
                    assert!(
                        shown == Some(value),
                        "r{at}, {name} {key:?} {column:?} ({overlaid}): {value:?} and {shown:?}"
                    );
                }
            }
        }
    }
    tables(replica, image, at);
    parked(replica, image, at);
}

fn same_row(expected: &Row, found: &image::Row) -> bool {
    let cells = expected.cells.iter().map(|(name, (dot, _))| (name.to_ascii_lowercase(), *dot));
    expected.length == found.length
        && expected.birth == found.birth
        && cells.collect::<BTreeMap<_, _>>() == found.cells
        && expected.claim == found.claim
        && expected.ended == found.ended
}

fn tables(replica: &Replica, image: &Image, at: usize) {
    for table in &replica.tables {
        let expected = replica.plain.shown(table);
        let found = &image.tables[&table.name.to_ascii_lowercase()];
        assert!(found.local, "r{at} does not track {}", table.name);
        assert!(
            expected == found.shown,
            "r{at}, table {}:\n rule  {expected:?}\n found {:?}\n rows  {:?}",
            table.name,
            found.shown,
            found.rows
        );
    }
}

fn parked(replica: &Replica, image: &Image, at: usize) {
    let name = |lower: &str| {
        let mut names = replica.model.keys();
        names.find(|name| name.to_ascii_lowercase() == lower).cloned().unwrap_or_default()
    };
    let mut out: BTreeSet<RowId> = BTreeSet::new();
    let mut partly: BTreeMap<RowId, BTreeSet<String>> = BTreeMap::new();
    for (table, known) in &image.tables {
        for (key, row) in &known.rows {
            let id = (name(table), key.clone());
            match &row.parked {
                Some((_, false, _)) => {
                    out.insert(id);
                }
                Some((_, true, values)) => {
                    partly.insert(id, values.keys().cloned().collect());
                }
                None => {}
            }
        }
    }
    let lower = |columns: &BTreeSet<String>| -> BTreeSet<String> {
        columns.iter().map(|column| column.to_ascii_lowercase()).collect()
    };
    let expected: BTreeMap<RowId, BTreeSet<String>> =
        replica.outcome.partly.iter().map(|(id, columns)| (id.clone(), lower(columns))).collect();
    assert!(
        out == replica.outcome.parked && partly == expected,
        "r{at} parks {out:?} {partly:?}, the rule {:?} {expected:?}",
        replica.outcome.parked
    );
}

/// Every row that is refused is listed for the user, with its reason and both sides.
pub fn listed(conn: &Connection, parked: &BTreeSet<RowId>) {
    let listed: Vec<report::Conflict> =
        report::conflicts(conn).unwrap().into_iter().filter(|one| one.parked).collect();
    for (table, key) in parked {
        let found = listed.iter().find(|one| {
            one.table.eq_ignore_ascii_case(table) && one.key == *key && !one.reason.is_empty()
        });
        assert!(found.is_some(), "{table} {key:?} is not in wavesync_conflicts: {listed:?}");
    }
}

pub fn all_equal(replicas: &[Replica]) {
    let shown = |replica: &Replica| -> Vec<_> {
        let tables = replica.tables.iter();
        tables.map(|table| (table.name.clone(), replica.plain.shown(table))).collect()
    };
    let images: Vec<Image> = replicas.iter().map(|replica| Image::read(replica.conn())).collect();
    for (at, replica) in replicas.iter().enumerate() {
        assert_eq!(shown(&replicas[0]), shown(replica), "r0 and r{at}");
        assert_eq!(images[0].vector, images[at].vector, "vectors of r0 and r{at}");
        assert_eq!(replicas[0].outcome.parked, replica.outcome.parked, "r0 and r{at}");
        listed(replica.conn(), &replica.outcome.parked);
    }
}

/// SQLite's own opinion.
pub fn sound(conn: &Connection, enforced: bool, at: usize) {
    let verdict: String = conn.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(verdict, "ok", "r{at}");
    let orphans = conn.prepare("PRAGMA foreign_key_check").unwrap().exists([]).unwrap();
    assert!(!enforced || !orphans, "r{at}: a child stands without its parent");
}
