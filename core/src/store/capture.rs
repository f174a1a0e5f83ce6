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
        let text =
            format!("CREATE TRIGGER \"{name}\" AFTER {event} ON {on}{when} BEGIN {body} END");
        (name, text)
    };
    Ok(vec![
        create('i', "INSERT", "", &append(&new_key, &MASK_INSERT.to_string())),
        create('u', "UPDATE", "", &append(&new_key, &mask(columns, shape.collates)?)),
        create(
            'k',
            "UPDATE",
            &format!(" WHEN {key_changed}"),
            &format!("{} {}", append(&old_key, "NULL"), append(&new_key, &MASK_INSERT.to_string())),
        ),
        create('d', "DELETE", "", &append(&old_key, "NULL")),
    ])
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

fn mask(columns: &[(ColumnNum, ShapeColumn)], collates: bool) -> Result<String> {
    if columns.is_empty() {
        return Ok("0".into());
    }
    let terms: Result<Vec<String>> = columns
        .iter()
        .map(|(number, column)| {
            Ok(match number.0.min(SHARED_BIT) {
                0 => changed(column, collates)?,
                shift => format!("({}<<{shift})", changed(column, collates)?),
            })
        })
        .collect();
    Ok(terms?.join("|"))
}
