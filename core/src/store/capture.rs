//! The capture triggers: pure SQL that appends one row to the log for every written row.
//!
//! Invariant I1: they name no extension function and no virtual table, so any program that writes
//! the file records its changes. Their whole cost is one append; the log has no constraint and no
//! index, because either makes SQLite open a statement journal for every writer.

use crate::Result;
use crate::ids::{ColumnNum, TableNum};
use crate::store::key;
use crate::store::shape::{Shape, ShapeColumn};
use crate::store::sql::ident;

/// Mask of an insert: every column.
pub const MASK_INSERT: i64 = -1;
/// Letters that name the triggers of a table.
pub const LETTERS: [char; 8] = ['i', 'u', 'k', 'd', 'p', 'q', 'r', 's'];
/// Key columns that `__wavesync_gone` holds one by one.
const GONE_KEYS: usize = 8;
/// Columns from this number on share one bit of the mask.
pub const SHARED_BIT: u16 = 62;

/// Milliseconds since 1970 in SQL. `unixepoch('subsec')` would need SQLite 3.42.
const NOW: &str = "CAST((julianday('now')-2440587.5)*86400000 AS INTEGER)";

/// Name and text of each trigger of a table.
pub fn triggers(
    table: TableNum,
    shape: &Shape,
    columns: &[(ColumnNum, ShapeColumn)],
) -> Result<Vec<(String, String)>> {
    let on = ident(&shape.name)?;
    let number = table.0;
    let old_key = key::expression(shape.form, &shape.key, "OLD.")?;
    let new_key = key::expression(shape.form, &shape.key, "NEW.")?;
    let append = |key: &str, mask: &str| {
        format!("INSERT INTO __wavesync_log(tbl,pk,cols,at) VALUES({number},{key},{mask},{NOW});")
    };
    let key_changed: Result<Vec<String>> =
        shape.key.iter().map(|column| changed(column, shape.collates)).collect();
    let key_changed = key_changed?.join(" OR ");
    let create = |letter: char, event: &str, when: &str, body: &str| {
        let name = format!("__wavesync_{letter}_{number}");
        let text = format!("CREATE TRIGGER \"{name}\" {event} ON {on}{when} BEGIN {body} END");
        (name, text)
    };
    let mut triggers = vec![
        create('i', "AFTER INSERT", "", &append(&new_key, &MASK_INSERT.to_string())),
        create('u', "AFTER UPDATE", "", &append(&new_key, &mask(columns, shape)?)),
        create(
            'k',
            "AFTER UPDATE",
            &format!(" WHEN {key_changed}"),
            &format!("{} {}", append(&old_key, "NULL"), append(&new_key, &MASK_INSERT.to_string())),
        ),
        create('d', "AFTER DELETE", "", &append(&old_key, "NULL")),
    ];
    if !shape.uniques.is_empty() {
        let note = note_rivals(table, shape)?;
        let log = log_gone(table, shape)?;
        let moved = format!(" WHEN {}", uniques_changed(shape)?);
        triggers.extend([
            create('p', "BEFORE INSERT", "", &note),
            create('q', "AFTER INSERT", "", &log),
            create('r', "BEFORE UPDATE", &moved, &note),
            create('s', "AFTER UPDATE", &moved, &log),
        ]);
    }
    Ok(triggers)
}

/// Notes the rows that a write collides with through a UNIQUE index. `OR REPLACE` removes them
/// without firing a delete trigger unless `recursive_triggers` is on.
fn note_rivals(table: TableNum, shape: &Shape) -> Result<String> {
    let rivals: Result<Vec<String>> = shape
        .uniques
        .iter()
        .map(|columns| {
            let equal: Result<Vec<String>> = columns
                .iter()
                .map(|(column, collation)| {
                    let (column, collation) = (ident(column)?, ident(collation)?);
                    Ok(format!("t.{column} = NEW.{column} COLLATE {collation}"))
                })
                .collect();
            Ok(format!("({})", equal?.join(" AND ")))
        })
        .collect();
    let keys = shape.key.iter().take(GONE_KEYS);
    let keys: Result<Vec<String>> =
        keys.map(|column| Ok(format!("t.{}", ident(&column.name)?))).collect();
    let places: Vec<String> =
        (0..shape.key.len().min(GONE_KEYS)).map(|n| format!("k{n}")).collect();
    Ok(format!(
        "INSERT INTO __wavesync_gone(tbl,pk,{}) SELECT {},{},{} FROM {} AS t WHERE {};",
        places.join(","),
        table.0,
        key::expression(shape.form, &shape.key, "t.")?,
        keys?.join(","),
        ident(&shape.name)?,
        rivals?.join(" OR ")
    ))
}

/// Logs those of the noted rows that are gone as deleted. One that was also logged by the delete
/// trigger is deleted twice, which comes to the same.
fn log_gone(table: TableNum, shape: &Shape) -> Result<String> {
    let same: Result<Vec<String>> = shape
        .key
        .iter()
        .take(GONE_KEYS)
        .enumerate()
        .map(|(at, column)| Ok(format!("t.{} = g.k{at}", ident(&column.name)?)))
        .collect();
    let mut same = same?;
    if shape.key.len() > GONE_KEYS {
        same.push(format!("{} = g.pk", key::expression(shape.form, &shape.key, "t.")?));
    }
    Ok(format!(
        "INSERT INTO __wavesync_log(tbl,pk,cols,at) SELECT g.tbl,g.pk,NULL,{NOW} \
         FROM __wavesync_gone AS g WHERE g.tbl={} AND NOT EXISTS \
         (SELECT 1 FROM {} AS t WHERE {}); DELETE FROM __wavesync_gone;",
        table.0,
        ident(&shape.name)?,
        same.join(" AND ")
    ))
}

fn uniques_changed(shape: &Shape) -> Result<String> {
    let columns: std::collections::BTreeSet<&str> =
        shape.uniques.iter().flatten().map(|(column, _)| column.as_str()).collect();
    let changed: Result<Vec<String>> = columns
        .into_iter()
        .map(|column| {
            let column = ident(column)?;
            Ok(format!("OLD.{column} COLLATE BINARY IS NOT NEW.{column}"))
        })
        .collect();
    Ok(changed?.join(" OR "))
}

/// The bit of a column in the mask.
#[must_use]
pub fn bit(column: ColumnNum) -> i64 {
    1 << column.0.min(SHARED_BIT)
}

fn changed(column: &ShapeColumn, collates: bool) -> Result<String> {
    let name = ident(&column.name)?;
    let collate = if collates { " COLLATE BINARY" } else { "" };
    let compared = format!("OLD.{name}{collate} IS NOT NEW.{name}");
    Ok(if column.classes_differ {
        format!("({compared} OR typeof(OLD.{name}) IS NOT typeof(NEW.{name}))")
    } else {
        format!("({compared})")
    })
}

fn mask(columns: &[(ColumnNum, ShapeColumn)], shape: &Shape) -> Result<String> {
    let in_group = |column: &ShapeColumn| {
        let name = column.name.to_ascii_lowercase();
        shape.groups.iter().position(|group| group.contains(&name))
    };
    let mut terms = Vec::new();
    for (number, column) in columns.iter().filter(|(_, column)| in_group(column).is_none()) {
        terms.push(match number.0.min(SHARED_BIT) {
            0 => changed(column, shape.collates)?,
            shift => format!("({}<<{shift})", changed(column, shape.collates)?),
        });
    }
    // One column of a group written is all of it written.
    for group in 0..shape.groups.len() {
        let members: Vec<&(ColumnNum, ShapeColumn)> =
            columns.iter().filter(|(_, column)| in_group(column) == Some(group)).collect();
        let any: Result<Vec<String>> =
            members.iter().map(|(_, column)| changed(column, shape.collates)).collect();
        let bits = members.iter().fold(0, |bits, (number, _)| bits | bit(*number));
        terms.push(format!("(({})*{bits})", any?.join(" OR ")));
    }
    Ok(if terms.is_empty() { "0".into() } else { terms.join("|") })
}
