//! The table `wavesync_changes`: what this replica knows, cell by cell, and the way for an
//! application to bring in what another replica knows.

use wavesync_core::ids::{Dot, Seq, SiteId, Stamp};
use wavesync_core::merge::Ended;
use wavesync_core::store::calls::not_joined;
use wavesync_core::store::changes::{Change, Changes, Wanted};
use wavesync_core::store::{Store, inbox, report};
use wavesync_core::value::Value;
use wavesync_net::driver;

use crate::engine;
use crate::ffi::SqlError;
use crate::functions::file;
use crate::table::{Rows, TableContext};
use crate::tables::text;

/// Its columns.
pub const COLUMNS: &[&str] = &[
    "table",
    "pk",
    "cid",
    "val",
    "stamp",
    "db_version",
    "site_id",
    "cl",
    "seq",
    "key_columns",
    "cells",
    "birth",
    "birth_site",
    "history",
];
const TABLE: usize = 0;
const SITE_ID: usize = 6;
/// What was inserted is taken in at once if the file is not locked for longer than this, else by
/// the engine, or the next call that writes.
const TAKE_IN_BUSY_MS: u64 = 250;

/// Starts a scan.
pub fn rows(context: &TableContext) -> Result<Rows, SqlError> {
    let Ok(path) = file(context) else { return Ok(Box::new(std::iter::empty())) };
    if !path.exists() {
        return Ok(Box::new(std::iter::empty()));
    }
    let site = context.equals(SITE_ID).map(site_of);
    if site == Some(None) {
        return Ok(Box::new(std::iter::empty()));
    }
    let wanted = Wanted {
        after: Seq(context.seek_after.unwrap_or(0).max(0)),
        through: context.seek_through.map(Seq),
        table: context.equals(TABLE).map(str::to_owned),
        site: site.flatten(),
    };
    let mut changes = Changes::new(context.lend()?, wanted)?;
    let mut failed = false;
    Ok(Box::new(std::iter::from_fn(move || {
        if failed {
            return None;
        }
        match changes.next_change(driver::now()) {
            Ok(change) => change.map(|change| Ok(row(change))),
            Err(error) => {
                failed = true;
                Some(Err(error.into()))
            }
        }
    })))
}

fn row(change: Change) -> Vec<Value> {
    let count = |count: usize| Value::Integer(i64::try_from(count).unwrap_or(i64::MAX));
    let history =
        (!change.history.is_empty()).then(|| Value::Blob(inbox::encode_history(&change.history)));
    vec![
        text(change.table),
        change.key,
        change.column.map_or(Value::Null, text),
        change.value,
        Value::Integer(change.stamp),
        Value::Integer(change.db_version.0),
        text(change.site.to_string()),
        Value::Integer(change.length),
        Value::Integer(change.db_version.0),
        count(change.key_columns),
        change.cells.map_or(Value::Null, count),
        Value::Integer(change.birth.stamp.0),
        text(change.birth.site.to_string()),
        history.unwrap_or(Value::Null),
    ]
}

/// Takes one row, inside the transaction of the application.
pub fn insert(context: &TableContext, row: &[Value]) -> Result<i64, SqlError> {
    let change = change(row)?;
    let host = context.connection()?;
    if !report::is_joined(&host)? {
        return Err(not_joined().into());
    }
    Ok(inbox::post(&host, &change)?)
}

/// A transaction that inserted is over: what is complete is taken in.
pub fn committed(context: &TableContext) {
    let Ok(path) = file(context) else { return };
    let taken = engine::connect(&path, TAKE_IN_BUSY_MS)
        .map_err(|_| ())
        .and_then(|conn| Store::open(conn).map_err(|_| ()))
        .and_then(|mut store| {
            store.keep_time(driver::now);
            store.write(driver::now(), |_| Ok(())).map_err(|_| ())
        });
    // If not now, then with the next transaction of the engine or of a call.
    let _ = taken;
    if let Some((control, _)) = engine::find(&path) {
        control.committed(engine::next_token());
    }
}

fn change(row: &[Value]) -> Result<Change, SqlError> {
    // `db_version` and `seq` are positions on another replica and mean nothing here.
    let [table, pk, cid, val, stamp, _, writer, cl, _, key_columns, cells, birth, born_at, history] =
        row
    else {
        return Err(SqlError::new("wavesync_changes has other columns"));
    };
    Ok(Change {
        table: word(table, "table")?,
        key: pk.clone(),
        column: present(cid).map(|cid| word(cid, "cid")).transpose()?,
        value: val.clone(),
        stamp: integer(stamp, "stamp")?,
        db_version: Seq(0),
        site: site(writer, "site_id")?,
        length: integer(cl, "cl")?,
        key_columns: count(key_columns, "key_columns")?,
        cells: present(cells).map(|cells| count(cells, "cells")).transpose()?,
        birth: Dot { stamp: Stamp(integer(birth, "birth")?), site: site(born_at, "birth_site")? },
        history: present(history).map_or(Ok(Ended::new()), history_of)?,
    })
}

fn present(value: &Value) -> Option<&Value> {
    (*value != Value::Null).then_some(value)
}

fn word(value: &Value, column: &str) -> Result<String, SqlError> {
    match value {
        Value::Text(bytes) => String::from_utf8(bytes.clone()).ok(),
        _ => None,
    }
    .ok_or_else(|| unfit(column, "text"))
}

fn integer(value: &Value, column: &str) -> Result<i64, SqlError> {
    match value {
        Value::Integer(integer) => Ok(*integer),
        _ => Err(unfit(column, "an integer")),
    }
}

fn count(value: &Value, column: &str) -> Result<usize, SqlError> {
    usize::try_from(integer(value, column)?).map_err(|_| unfit(column, "0 or more"))
}

fn site(value: &Value, column: &str) -> Result<SiteId, SqlError> {
    match value {
        Value::Text(bytes) => std::str::from_utf8(bytes).ok().and_then(site_of),
        _ => None,
    }
    .ok_or_else(|| unfit(column, "32 hexadecimal digits"))
}

fn history_of(value: &Value) -> Result<Ended, SqlError> {
    match value {
        Value::Blob(bytes) => inbox::decode_history(bytes),
        _ => None,
    }
    .ok_or_else(|| unfit("history", "what wavesync_changes showed"))
}

fn unfit(column: &str, wanted: &str) -> SqlError {
    SqlError::new(format!(
        "this is no row of wavesync_changes: {column} must be {wanted}; insert all columns as \
         another replica shows them"
    ))
}

/// A site id from its 32 digits.
fn site_of(text: &str) -> Option<SiteId> {
    if text.len() != 32 || !text.is_ascii() {
        return None;
    }
    let byte = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).ok();
    let bytes = (0..32).step_by(2).map(byte).collect::<Option<Vec<u8>>>()?;
    SiteId::from_slice(&bytes)
}
