//! The SQL functions that need a store and no engine: arguments in, a value or an error that says
//! what to do out. Whoever registers them opens the store, and tells an engine that it was written.

use std::sync::atomic::{AtomicI64, Ordering};

use rusqlite::types::Value;

use crate::ids::{Millis, Seq};
use crate::store::Store;
use crate::{Error, Result, limits};

/// Random bits at the end of a `wavesync_id()`.
const ID_RANDOM_BITS: u32 = 21;

const TOMBSTONE_KEEP: &str = "tombstone_keep_ms";
const MEMBER_KEEP: &str = "member_keep_ms";
const FUTURE_LIMIT: &str = "future_limit_ms";
/// The settings that `wavesync_config` keeps in the database, and what each is.
const SETTINGS: &[(&str, &str)] = &[
    ("name", "what other members see as this replica's name"),
    (FUTURE_LIMIT, "changes from clocks that are further ahead than this, in ms, wait"),
    (TOMBSTONE_KEEP, "deleted rows are remembered for at least this long, in ms"),
    (MEMBER_KEEP, "members that were away for longer than this, in ms, are not waited for"),
];

/// What is left to do once the arguments are known to be fit.
pub type Job<'a> = Box<dyn FnOnce(&mut Store, Millis) -> Result<Value> + 'a>;
/// A function: looks at its arguments, as many as it takes, before any store is opened.
pub type Call = for<'a> fn(&'a [Value]) -> Result<Job<'a>>;

fn argument<T>(text: impl Into<String>) -> Result<T> {
    Err(Error::Argument(text.into()))
}

/// An argument that must be text.
///
/// # Errors
/// [`Error::Argument`] if it is not.
pub fn text<'a>(value: &'a Value, what: &str) -> Result<&'a str> {
    match value {
        Value::Text(text) => Ok(text),
        Value::Null => argument(format!("{what} is NULL; give it as text")),
        _ => argument(format!("{what} must be text")),
    }
}

fn joined(store: &Store) -> Result<()> {
    if store.topic()?.is_some() {
        return Ok(());
    }
    Err(not_joined())
}

/// The error of calls that need a member.
#[must_use]
pub fn not_joined() -> Error {
    Error::Argument(
        "this database has not joined a group; call wavesync_join(topic, passphrase) first".into(),
    )
}

/// `wavesync_track(table)`.
///
/// # Errors
/// If it cannot be tracked, or what SQLite says.
pub fn track(args: &[Value]) -> Result<Job<'_>> {
    named(args, "the table", Store::track)
}

/// `wavesync_untrack(table)`.
///
/// # Errors
/// If there is no such table, or what SQLite says.
pub fn untrack(args: &[Value]) -> Result<Job<'_>> {
    named(args, "the table", Store::untrack)
}

/// `wavesync_alter(sql)`.
///
/// # Errors
/// If it is no ALTER TABLE that can be made here, or what SQLite says.
pub fn alter(args: &[Value]) -> Result<Job<'_>> {
    named(args, "the statement", Store::alter)
}

fn named<'a>(
    args: &'a [Value],
    what: &str,
    act: fn(&mut Store, Millis, &str) -> Result<()>,
) -> Result<Job<'a>> {
    let name = text(args.first().unwrap_or(&Value::Null), what)?;
    Ok(Box::new(move |store, now| {
        joined(store)?;
        act(store, now, name)?;
        Ok(Value::Integer(1))
    }))
}

/// `wavesync_export([since])`.
///
/// # Errors
/// If `since` is no db_version, or what SQLite says.
pub fn export(args: &[Value]) -> Result<Job<'_>> {
    let since = match args.first() {
        None | Some(Value::Null) => 0,
        Some(Value::Integer(since)) if *since >= 0 => *since,
        Some(_) => {
            return argument(
                "wavesync_export(since) takes a db_version, 0 or more; 0 exports everything",
            );
        }
    };
    Ok(Box::new(move |store, now| Ok(Value::Blob(store.export(now, Seq(since))?))))
}

/// `wavesync_apply(blob)`; gives how many rows it changed.
///
/// # Errors
/// If the blob is no whole export of this group, or what SQLite says; then nothing was changed.
pub fn apply(args: &[Value]) -> Result<Job<'_>> {
    let Some(Value::Blob(blob)) = args.first() else {
        return argument("wavesync_apply(blob) takes a blob made by wavesync_export()");
    };
    Ok(Box::new(move |store, now| {
        let changed = store.import(now, blob)?.changed;
        Ok(Value::Integer(i64::try_from(changed).unwrap_or(i64::MAX)))
    }))
}

/// `wavesync_retry()`; gives how many rows found their place.
///
/// # Errors
/// If the database is no member, or what SQLite says.
pub fn retry(_: &[Value]) -> Result<Job<'_>> {
    Ok(Box::new(|store, now| {
        joined(store)?;
        Ok(Value::Integer(store.retry(now)?))
    }))
}

/// `wavesync_resync()`.
///
/// # Errors
/// If the database is no member, or what SQLite says.
pub fn resync(_: &[Value]) -> Result<Job<'_>> {
    Ok(Box::new(|store, now| {
        joined(store)?;
        Ok(Value::Integer(i64::from(store.resync(now)?)))
    }))
}

/// `wavesync_restore(conflict_id)`.
///
/// # Errors
/// If there is no such conflict, or its row cannot stand here; or what SQLite says.
pub fn restore(args: &[Value]) -> Result<Job<'_>> {
    let Some(&Value::Integer(id)) = args.first() else {
        return argument("wavesync_restore(conflict_id) takes an id of wavesync_conflicts");
    };
    Ok(Box::new(move |store, now| {
        joined(store)?;
        store.restore(now, id)?;
        Ok(Value::Integer(1))
    }))
}

/// `wavesync_config(key [, value])`.
///
/// # Errors
/// If there is no such setting, or it does not take this value; or what SQLite says.
pub fn config(args: &[Value]) -> Result<Job<'_>> {
    let key = text(args.first().unwrap_or(&Value::Null), "the key")?;
    if !SETTINGS.iter().any(|(known, _)| *known == key) {
        let known: Vec<String> =
            SETTINGS.iter().map(|(name, what)| format!("{name} ({what})")).collect();
        return argument(format!("there is no setting '{key}'; there is {}", known.join(", ")));
    }
    let value = match args.get(1) {
        Some(Value::Integer(number)) => Some(number.to_string()),
        Some(value) => Some(text(value, "the value")?.to_owned()),
        None => None,
    };
    if let Some(value) = &value {
        let is_duration = [FUTURE_LIMIT, TOMBSTONE_KEEP, MEMBER_KEEP].contains(&key);
        if is_duration && !value.parse().is_ok_and(|limit: u64| limit >= 1_000) {
            return argument(format!("{key} takes milliseconds, 1000 or more"));
        }
        if value.len() > limits::REPLICA_NAME_MAX_BYTES {
            return argument("the value is too long");
        }
    }
    Ok(Box::new(move |store, now| {
        joined(store)?;
        if let Some(value) = value {
            store.set_setting(now, key, &value)?;
        }
        Ok(store.setting(key)?.map_or(Value::Null, Value::Text))
    }))
}

/// `wavesync_site_id()`; NULL before a join.
///
/// # Errors
/// What SQLite says.
pub fn site_id(_: &[Value]) -> Result<Job<'_>> {
    Ok(Box::new(|store, _| {
        Ok(store.site_id()?.map_or(Value::Null, |site| Value::Text(site.to_string())))
    }))
}

/// `wavesync_db_version()`.
///
/// # Errors
/// What SQLite says.
pub fn db_version(_: &[Value]) -> Result<Job<'_>> {
    Ok(Box::new(|store, _| Ok(Value::Integer(store.db_version()?.0))))
}

/// `wavesync_id()`: milliseconds since 1970 in the upper 42 bits, 21 of the given random ones
/// below; within a process each is greater than the one before.
pub fn id(now: Millis, random: [u8; 4]) -> i64 {
    static LAST: AtomicI64 = AtomicI64::new(0);
    let low = i64::from(u32::from_ne_bytes(random)) & ((1 << ID_RANDOM_BITS) - 1);
    let fresh = (i64::try_from(now.0).unwrap_or(0) << ID_RANDOM_BITS) | low;
    let before = LAST.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |last| {
        Some(fresh.max(last.saturating_add(1)))
    });
    let last = before.unwrap_or_else(|last| last);
    fresh.max(last.saturating_add(1))
}
