//! The capture triggers: pure SQL that appends one row to the log for every written row.
//!
//! Invariant I1: they name no extension function and no virtual table, so any program that writes
//! the file records its changes. Their whole cost is one append; the log has no constraint and no
//! index, because either makes SQLite open a statement journal for every writer.

use crate::Result;
use crate::ids::{ColumnNum, TableNum};
use crate::mutants::{self, Mutant};
use crate::store::key;
use crate::store::mask::{self, MASK_INSERT, chain, changed};
use crate::store::shape::{Shape, ShapeColumn};
use crate::store::sql::ident;
use crate::store::unique::Unique;

/// Letters that name the triggers of a table.
pub const LETTERS: [char; 8] = ['i', 'u', 'k', 'd', 'p', 'q', 'r', 's'];
/// Key columns that `__wavesync_gone` holds one by one.
const GONE_KEYS: usize = 8;

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
    let key_changed = chain(key_changed?, " OR ");
    let create = |letter: char, event: &str, when: &str, body: &str| {
        let name = format!("__wavesync_{letter}_{number}");
        let text = format!("CREATE TRIGGER \"{name}\" {event} ON {on}{when} BEGIN {body} END");
        (name, text)
    };
    let mut triggers = vec![
        create('i', "AFTER INSERT", "", &append(&new_key, &MASK_INSERT.to_string())),
        create('u', "AFTER UPDATE", "", &append(&new_key, &written(columns, shape.collates)?)),
        create(
            'k',
            "AFTER UPDATE",
            &format!(" WHEN {key_changed}"),
            &if mutants::on(Mutant::KeyChangeInserts) {
                append(&new_key, &MASK_INSERT.to_string())
            } else {
                format!(
                    "{} {}",
                    append(&old_key, "NULL"),
                    append(&new_key, &MASK_INSERT.to_string())
                )
            },
        ),
        create('d', "AFTER DELETE", "", &append(&old_key, "NULL")),
    ];
    if shape.rivals().next().is_some() && !mutants::on(Mutant::ReplaceUnseen) {
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
/// without firing a delete trigger unless `recursive_triggers` is on. What a write that came to
/// nothing has noted is forgotten; what one of another table has noted, around this one, is not.
fn note_rivals(table: TableNum, shape: &Shape) -> Result<String> {
    let keys = shape.key.iter().take(GONE_KEYS);
    let on = ident(&shape.name)?;
    let keys: Result<Vec<String>> =
        keys.map(|column| Ok(format!("{on}.{}", ident(&column.name)?))).collect();
    let places: Vec<String> =
        (0..shape.key.len().min(GONE_KEYS)).map(|n| format!("k{n}")).collect();
    let note = format!(
        "INSERT INTO __wavesync_gone(tbl,pk,{}) SELECT {},{},{} FROM {on} WHERE",
        places.join(","),
        table.0,
        key::expression(shape.form, &shape.key, &format!("{on}."))?,
        keys?.join(","),
    );
    // An OR of columns is looked up in their indexes; one with expressions would be a scan.
    let (plain, special): (Vec<&Unique>, Vec<_>) = shape.rivals().partition(|u| u.plain());
    let plain: Result<Vec<String>> = plain.into_iter().map(|rival| rival.collides(&on)).collect();
    let plain = plain?;
    let mut conditions = if plain.is_empty() { Vec::new() } else { vec![chain(plain, " OR ")] };
    for unique in special {
        conditions.push(unique.collides(&on)?);
    }
    let forget = format!("DELETE FROM __wavesync_gone WHERE tbl={};", table.0);
    let notes = conditions.into_iter().map(|condition| format!("{note} {condition};"));
    Ok([forget].into_iter().chain(notes).collect::<Vec<_>>().join(" "))
}

/// Logs those of the noted rows that are gone as deleted. One that was also logged by the delete
/// trigger is deleted twice, which comes to the same.
fn log_gone(table: TableNum, shape: &Shape) -> Result<String> {
    let first = Shape { key: shape.key.iter().take(GONE_KEYS).cloned().collect(), ..shape.clone() };
    let mut same = vec![first.key_equals("t.", |at| format!("g.k{at}"))?];
    if shape.key.len() > GONE_KEYS {
        same.push(format!("{} = g.pk", key::expression(shape.form, &shape.key, "t.")?));
    }
    Ok(format!(
        "INSERT INTO __wavesync_log(tbl,pk,cols,at) SELECT g.tbl,g.pk,NULL,{NOW} \
         FROM __wavesync_gone AS g WHERE g.tbl={0} AND NOT EXISTS \
         (SELECT 1 FROM {1} AS t WHERE {2}); DELETE FROM __wavesync_gone WHERE tbl={0};",
        table.0,
        ident(&shape.name)?,
        same.join(" AND ")
    ))
}

fn uniques_changed(shape: &Shape) -> Result<String> {
    let columns: std::collections::BTreeSet<&str> =
        shape.rivals().flat_map(|unique| &unique.columns).map(String::as_str).collect();
    let changed: Result<Vec<String>> = columns
        .into_iter()
        .map(|column| {
            let column = ident(column)?;
            Ok(format!("OLD.{column} COLLATE BINARY IS NOT NEW.{column}"))
        })
        .collect();
    Ok(chain(changed?, " OR "))
}

/// The mask of an update.
fn written(columns: &[(ColumnNum, ShapeColumn)], collates: bool) -> Result<String> {
    let terms: Result<Vec<(ColumnNum, String)>> =
        columns.iter().map(|(number, column)| Ok((*number, changed(column, collates)?))).collect();
    Ok(mask::expression(&terms?))
}
