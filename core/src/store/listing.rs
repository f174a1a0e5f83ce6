//! Rows of the SQL tables that show what a file holds, and not what an engine does with it.

use rusqlite::Connection;

use crate::Result;
use crate::ids::{Millis, SiteId};
use crate::store::report;
use crate::value::Value;

/// The columns of `wavesync_tables`.
pub const TABLES: &[&str] = &["name", "tracked", "reason", "rows", "log_rows", "clock_bytes"];
/// The columns of `wavesync_conflicts`.
pub const CONFLICTS: &[&str] =
    &["id", "table", "pk", "kind", "reason", "ours", "theirs", "site_id", "at", "parked"];

/// The rows of `wavesync_tables`: each table and view, and whether it is synced.
///
/// # Errors
/// What SQLite says.
pub fn tables(conn: &Connection) -> Result<Vec<Vec<Value>>> {
    let rows = report::tables(conn)?.into_iter().map(|table| {
        vec![
            Value::text(&table.name),
            Value::flag(table.tracked),
            Value::text(&table.reason),
            Value::Integer(table.rows),
            Value::Integer(table.log_rows),
            Value::Integer(table.clock_bytes),
        ]
    });
    Ok(rows.collect())
}

/// The rows of `wavesync_conflicts`: what gave way, what waits, and why; none before a join.
///
/// # Errors
/// What SQLite says.
pub fn conflicts(conn: &Connection) -> Result<Vec<Vec<Value>>> {
    if !report::is_joined(conn)? {
        return Ok(Vec::new());
    }
    let or_null = |text: Option<String>| text.map_or(Value::Null, |text| Value::text(&text));
    let rows = report::conflicts(conn)?.into_iter().map(|conflict| {
        let by = conflict.site.as_deref().and_then(SiteId::from_slice);
        let at = Millis(u64::try_from(conflict.at).unwrap_or(0));
        vec![
            Value::Integer(conflict.id),
            Value::text(&conflict.table),
            conflict.key,
            Value::text(&conflict.kind),
            Value::text(&conflict.reason),
            or_null(conflict.ours),
            or_null(conflict.theirs),
            or_null(by.map(|site| site.to_string())),
            Value::text(&at.iso_8601()),
            Value::flag(conflict.parked),
        ]
    });
    Ok(rows.collect())
}
