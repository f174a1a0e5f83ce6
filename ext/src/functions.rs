//! The SQL functions: arguments in, a value or an error that says what to do out.

use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use rusqlite::types::Value;
use wavesync_core::auth::{check_passphrase, make_passphrase};
use wavesync_core::ids::Seq;
use wavesync_core::store::Store;
use wavesync_core::store::group::Join;
use wavesync_net::driver;

use crate::engine::{self, Start, connect};
use crate::ffi::{CallContext, DatabasePath, Host, SqlError, SqlFunction, forked};
use crate::options::Options;

/// How often `wavesync_wait(…, 'progress')` says something.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);
/// Random bits at the end of a `wavesync_id()`.
const ID_RANDOM_BITS: u32 = 21;

type Outcome = Result<Value, SqlError>;

/// Every function, in the order of the reference.
pub static FUNCTIONS: &[SqlFunction] = &[
    function("wavesync_join", 2, 3, "wavesync_join(topic, passphrase [, options])", join),
    function("wavesync_leave", 0, 1, "wavesync_leave(['forget'])", leave),
    function("wavesync_pause", 0, 0, "wavesync_pause()", pause),
    function("wavesync_resume", 0, 0, "wavesync_resume()", resume),
    function("wavesync_network_changed", 0, 0, "wavesync_network_changed()", network_changed),
    function("wavesync_track", 1, 1, "wavesync_track(table)", track),
    function("wavesync_untrack", 1, 1, "wavesync_untrack(table)", untrack),
    function("wavesync_alter", 1, 1, "wavesync_alter(sql)", alter),
    function("wavesync_passphrase", 0, 0, "wavesync_passphrase()", passphrase),
    function("wavesync_wait", 1, 2, "wavesync_wait(timeout_ms [, 'progress'])", wait),
    function("wavesync_dial", 1, 1, "wavesync_dial(multiaddr)", dial),
    function("wavesync_export", 0, 1, "wavesync_export([since])", export),
    function("wavesync_apply", 1, 1, "wavesync_apply(blob)", apply),
    function("wavesync_retry", 0, 0, "wavesync_retry()", retry),
    function("wavesync_resync", 0, 0, "wavesync_resync()", resync),
    function("wavesync_restore", 1, 1, "wavesync_restore(conflict_id)", restore),
    function("wavesync_config", 1, 2, "wavesync_config(key [, value])", config),
    function("wavesync_id", 0, 0, "wavesync_id()", id),
    function("wavesync_version", 0, 0, "wavesync_version()", version),
    function("wavesync_site_id", 0, 0, "wavesync_site_id()", site_id),
    function("wavesync_db_version", 0, 0, "wavesync_db_version()", db_version),
];

const fn function(
    name: &'static str,
    min_args: usize,
    max_args: usize,
    usage: &'static str,
    run: fn(&CallContext, &[Value]) -> Outcome,
) -> SqlFunction {
    SqlFunction { name, min_args, max_args, usage, run }
}

/// The settings that `wavesync_config` keeps in the database, and what each is.
const SETTINGS: &[(&str, &str)] = &[
    ("name", "what other members see as this replica's name"),
    (FUTURE_LIMIT, "changes from clocks that are further ahead than this, in ms, wait"),
    (TOMBSTONE_KEEP, "deleted rows are remembered for at least this long, in ms"),
    (MEMBER_KEEP, "members that were away for longer than this, in ms, are not waited for"),
];
const TOMBSTONE_KEEP: &str = "tombstone_keep_ms";
const MEMBER_KEEP: &str = "member_keep_ms";
const FUTURE_LIMIT: &str = "future_limit_ms";

/// The file behind a handle, by one name however it was opened.
///
/// # Errors
/// If there is no file.
pub fn file(host: &Host) -> Result<PathBuf, SqlError> {
    match host.database_path() {
        DatabasePath::File(path) => Ok(path.canonicalize().unwrap_or(path)),
        DatabasePath::Memory => Err(SqlError::new(
            "a database in memory cannot be synced: it is gone when it is closed; open a file",
        )),
        DatabasePath::Temporary => Err(SqlError::new(
            "a temporary database cannot be synced: it is gone when it is closed; open a file",
        )),
    }
}

fn text<'a>(value: &'a Value, what: &str) -> Result<&'a str, SqlError> {
    match value {
        Value::Text(text) => Ok(text),
        Value::Null => Err(SqlError::new(format!("{what} is NULL; give it as text"))),
        _ => Err(SqlError::new(format!("{what} must be text"))),
    }
}

/// A store on a connection of its own, for the time of one call.
fn store(context: &CallContext) -> Result<(PathBuf, Store), SqlError> {
    let path = file(context)?;
    if context.is_read_only() {
        return Err(SqlError::new(
            "this database was opened read-only; open it for writing, or make the file writable",
        ));
    }
    if context.in_transaction() {
        return Err(SqlError::new(
            "this call cannot be part of a transaction; COMMIT or ROLLBACK first",
        ));
    }
    // A file that does not exist yet is created by its first write.
    if !path.exists() {
        context.connection()?.execute_batch("BEGIN IMMEDIATE; COMMIT;")?;
    }
    let store = Store::open(connect(&path, engine::CALL_BUSY_MS)?)?;
    Ok((path, store))
}

fn join(context: &CallContext, args: &[Value]) -> Outcome {
    let [topic, passphrase, rest @ ..] = args else { return Ok(Value::Null) };
    let (topic, passphrase) = (text(topic, "the topic")?, text(passphrase, "the passphrase")?);
    wavesync_core::store::group::check_topic(topic)?;
    check_passphrase(passphrase)?;
    let options = match rest.first() {
        None | Some(Value::Null) => Options::default(),
        Some(options) => Options::parse(text(options, "the options")?)?,
    };
    if forked() {
        return Err(SqlError::new(
            "this process was forked from one that had loaded wavesync, so it has no engine \
             thread; open the database and load the extension in the new process instead",
        ));
    }
    let (path, mut store) = store(context)?;
    let join = Join {
        topic: topic.to_owned(),
        tables: options.tables,
        adopt_schema: options.adopt_schema,
        foreign_keys: context.pragma_foreign_keys(),
        existing: options.existing,
    };
    let identity = driver::file_identity(&path)
        .map_err(|error| SqlError::new(format!("the database file cannot be found: {error}")))?;
    let mut random = [0; 64];
    driver::random(&mut random);
    let first = store.topic()?.is_none();
    store.join(driver::now(), &join, &identity, &random)?;
    if let Some(name) = &options.name {
        store.set_setting(driver::now(), "name", name)?;
    }
    let name = store.setting("name")?.unwrap_or_default();
    let decided = match options.existing.filter(|_| !first) {
        Some(existing) => store.decide_existing(driver::now(), existing),
        None => Ok(()),
    };
    let site = store.site_id()?;
    drop(store);
    be_patient(context)?;
    engine::start(
        context.handle_id(),
        Start {
            path,
            passphrase: passphrase.to_owned(),
            topic: topic.to_owned(),
            name,
            listen: options.listen.unwrap_or_default(),
            peers: options.peers.unwrap_or_default(),
            relays: options.relays.unwrap_or_default(),
            direct: options.direct.unwrap_or(true),
            lan: options.mdns.unwrap_or(true),
        },
    )?;
    // A refusal must not keep a member from syncing with the others.
    decided?;
    Ok(site.map_or(Value::Null, |site| Value::Text(site.to_string())))
}

/// A strong passphrase from the system's random source. Nothing keeps it.
fn passphrase(_: &CallContext, _: &[Value]) -> Outcome {
    let mut random = [0; 20];
    driver::random(&mut random);
    Ok(Value::Text(make_passphrase(&random)))
}

/// A handle without any busy timeout would see "database is locked" whenever the engine commits at
/// the same moment, so it gets one; a timeout that the application chose stays.
fn be_patient(context: &CallContext) -> Result<(), SqlError> {
    let conn = context.connection()?;
    let timeout: i64 = conn.query_row("PRAGMA busy_timeout", [], |row| row.get(0))?;
    if timeout == 0 {
        conn.busy_timeout(Duration::from_millis(engine::CALL_BUSY_MS))?;
    }
    Ok(())
}

fn leave(context: &CallContext, args: &[Value]) -> Outcome {
    let forget = match args.first() {
        None | Some(Value::Null) => false,
        Some(Value::Text(word)) if word == "forget" => true,
        Some(_) => {
            return Err(SqlError::new(
                "wavesync_leave() stops syncing; wavesync_leave('forget') also removes everything \
                 that wavesync keeps in this database",
            ));
        }
    };
    if forget {
        let (path, mut store) = store(context)?;
        engine::stop(&path);
        store.forget()?;
        // Another process may still hold the lock; then the file is its to remove.
        let _ = std::fs::remove_file(engine::lock_path(&path));
        return Ok(Value::Integer(1));
    }
    Ok(Value::Integer(i64::from(engine::stop(&file(context)?))))
}

fn running(context: &CallContext) -> Result<(driver::Control, driver::Board), SqlError> {
    engine::find(&file(context)?).ok_or_else(|| {
        SqlError::new(
            "this database is not joined in this process; call wavesync_join(topic, passphrase) \
             first",
        )
    })
}

fn pause(context: &CallContext, _: &[Value]) -> Outcome {
    let (control, board) = running(context)?;
    control.pause();
    let paused = board.wait(Duration::from_secs(2), |snapshot| snapshot.state == "paused");
    Ok(Value::Integer(i64::from(paused)))
}

fn network_changed(context: &CallContext, _: &[Value]) -> Outcome {
    let (control, _) = running(context)?;
    control.network_changed();
    Ok(Value::Integer(1))
}

fn resume(context: &CallContext, _: &[Value]) -> Outcome {
    let (control, board) = running(context)?;
    control.resume();
    let running = board.wait(Duration::from_secs(2), |snapshot| snapshot.state == "running");
    Ok(Value::Integer(i64::from(running)))
}

fn track(context: &CallContext, args: &[Value]) -> Outcome {
    change_tables(context, args, |store, name| store.track(driver::now(), name))
}

fn untrack(context: &CallContext, args: &[Value]) -> Outcome {
    change_tables(context, args, |store, name| store.untrack(driver::now(), name))
}

fn alter(context: &CallContext, args: &[Value]) -> Outcome {
    let Some(sql) = args.first() else { return Ok(Value::Null) };
    let sql = text(sql, "the statement")?;
    let (path, mut store) = store(context)?;
    joined(&store)?;
    store.alter(driver::now(), sql)?;
    if let Some((control, _)) = engine::find(&path) {
        control.committed(engine::next_token());
    }
    Ok(Value::Integer(1))
}

fn change_tables(
    context: &CallContext,
    args: &[Value],
    change: impl Fn(&mut Store, &str) -> wavesync_core::Result<()>,
) -> Outcome {
    let Some(name) = args.first() else { return Ok(Value::Null) };
    let name = text(name, "the table")?;
    let (path, mut store) = store(context)?;
    joined(&store)?;
    change(&mut store, name)?;
    if let Some((control, _)) = engine::find(&path) {
        control.committed(engine::next_token());
    }
    Ok(Value::Integer(1))
}

fn joined(store: &Store) -> Result<(), SqlError> {
    if store.topic()?.is_some() {
        return Ok(());
    }
    Err(not_joined())
}

/// The error of calls that need a member.
pub fn not_joined() -> SqlError {
    SqlError::new(
        "this database has not joined a group; call wavesync_join(topic, passphrase) first",
    )
}

fn wait(context: &CallContext, args: &[Value]) -> Outcome {
    let timeout = match args.first() {
        Some(Value::Integer(timeout)) => u64::try_from(*timeout).ok(),
        _ => None,
    };
    let timeout = timeout
        .ok_or_else(|| SqlError::new("wavesync_wait(timeout_ms) takes milliseconds, 0 or more"))?;
    let tell = match args.get(1) {
        None | Some(Value::Null) => false,
        Some(Value::Text(word)) if word == "progress" => true,
        Some(_) => {
            return Err(SqlError::new(
                "wavesync_wait(timeout_ms, 'progress') writes how far it is to standard error; \
                 there is no other second argument",
            ));
        }
    };
    let (control, board) = running(context)?;
    let token = engine::next_token();
    control.committed(token);
    let over = |shown: &driver::Snapshot| {
        let ended = shown.state == "failed" || shown.state == "stopped";
        ended || (shown.token >= token && shown.progress.caught_up)
    };
    let start = Instant::now();
    let timeout = Duration::from_millis(timeout);
    let caught_up = loop {
        let left = timeout.saturating_sub(start.elapsed());
        let step = if tell { left.min(PROGRESS_EVERY) } else { left };
        if board.wait(step, over) {
            break true;
        }
        if left <= step {
            break false;
        }
        let shown = board.snapshot().progress;
        eprintln!("wavesync: {} of {} rows, {} members", shown.done, shown.expected, shown.members);
    };
    let snapshot = board.snapshot();
    if snapshot.state == "failed" {
        return Err(SqlError::new(format!("the engine has ended: {}", snapshot.failure)));
    }
    Ok(Value::Integer(i64::from(caught_up && snapshot.state == "running")))
}

/// Milliseconds since 1970 in the upper 42 bits, 21 random ones below; within a process each is
/// greater than the one before.
fn id(_: &CallContext, _: &[Value]) -> Outcome {
    static LAST: AtomicI64 = AtomicI64::new(0);
    let mut random = [0; 4];
    driver::random(&mut random);
    let low = i64::from(u32::from_ne_bytes(random)) & ((1 << ID_RANDOM_BITS) - 1);
    let fresh = (i64::try_from(driver::now().0).unwrap_or(0) << ID_RANDOM_BITS) | low;
    let before = LAST.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |last| {
        Some(fresh.max(last.saturating_add(1)))
    });
    let last = before.unwrap_or_else(|last| last);
    Ok(Value::Integer(fresh.max(last.saturating_add(1))))
}

fn dial(context: &CallContext, args: &[Value]) -> Outcome {
    let Some(address) = args.first() else { return Ok(Value::Null) };
    let address = text(address, "the address")?;
    wavesync_net::check_address(address).map_err(|error| SqlError::new(error.to_string()))?;
    let (control, _) = running(context)?;
    control.dial(address);
    Ok(Value::Integer(1))
}

fn export(context: &CallContext, args: &[Value]) -> Outcome {
    let since = match args.first() {
        None | Some(Value::Null) => 0,
        Some(Value::Integer(since)) if *since >= 0 => *since,
        Some(_) => {
            return Err(SqlError::new(
                "wavesync_export(since) takes a db_version, 0 or more; 0 exports everything",
            ));
        }
    };
    let (_, mut store) = store(context)?;
    Ok(Value::Blob(store.export(driver::now(), Seq(since))?))
}

fn apply(context: &CallContext, args: &[Value]) -> Outcome {
    let Some(Value::Blob(blob)) = args.first() else {
        return Err(SqlError::new("wavesync_apply(blob) takes a blob made by wavesync_export()"));
    };
    let (path, mut store) = store(context)?;
    let applied = store.import(driver::now(), blob)?;
    if let Some((control, _)) = engine::find(&path) {
        control.committed(engine::next_token());
    }
    Ok(Value::Integer(i64::try_from(applied.changed).unwrap_or(i64::MAX)))
}

fn retry(context: &CallContext, _: &[Value]) -> Outcome {
    let (_, mut store) = store(context)?;
    joined(&store)?;
    Ok(Value::Integer(store.retry(driver::now())?))
}

fn resync(context: &CallContext, _: &[Value]) -> Outcome {
    let (path, mut store) = store(context)?;
    joined(&store)?;
    let forgotten = store.resync(driver::now())?;
    if let Some((control, _)) = engine::find(&path) {
        control.committed(engine::next_token());
    }
    Ok(Value::Integer(i64::from(forgotten)))
}

fn restore(context: &CallContext, args: &[Value]) -> Outcome {
    let Some(Value::Integer(id)) = args.first() else {
        return Err(SqlError::new(
            "wavesync_restore(conflict_id) takes an id of wavesync_conflicts",
        ));
    };
    let (path, mut store) = store(context)?;
    joined(&store)?;
    store.restore(driver::now(), *id).map_err(|error| {
        if error.retryable() {
            return SqlError::new(format!(
                "{error}; if this statement also reads the database (and that does not use WAL), \
                 look the id up in a statement of its own, else try again"
            ));
        }
        error.into()
    })?;
    if let Some((control, _)) = engine::find(&path) {
        control.committed(engine::next_token());
    }
    Ok(Value::Integer(1))
}

fn config(context: &CallContext, args: &[Value]) -> Outcome {
    let Some(key) = args.first() else { return Ok(Value::Null) };
    let key = text(key, "the key")?;
    if !SETTINGS.iter().any(|(known, _)| *known == key) {
        let known: Vec<String> =
            SETTINGS.iter().map(|(name, what)| format!("{name} ({what})")).collect();
        return Err(SqlError::new(format!(
            "there is no setting '{key}'; there is {}",
            known.join(", ")
        )));
    }
    let (path, mut store) = store(context)?;
    joined(&store)?;
    if let Some(value) = args.get(1) {
        let number = match value {
            Value::Integer(number) => Some(number.to_string()),
            _ => None,
        };
        let value = match &number {
            Some(number) => number,
            None => text(value, "the value")?,
        };
        let is_duration = [FUTURE_LIMIT, TOMBSTONE_KEEP, MEMBER_KEEP].contains(&key);
        if is_duration && !value.parse().is_ok_and(|limit: u64| limit >= 1_000) {
            return Err(SqlError::new(format!("{key} takes milliseconds, 1000 or more")));
        }
        if value.len() > wavesync_core::limits::REPLICA_NAME_MAX_BYTES {
            return Err(SqlError::new("the value is too long"));
        }
        store.set_setting(driver::now(), key, value)?;
        if let Some((control, _)) = engine::find(&path) {
            control.committed(engine::next_token());
        }
    }
    Ok(store.setting(key)?.map_or(Value::Null, Value::Text))
}

fn version(_: &CallContext, _: &[Value]) -> Outcome {
    Ok(Value::Text(env!("CARGO_PKG_VERSION").to_owned()))
}

fn site_id(context: &CallContext, _: &[Value]) -> Outcome {
    let Some(store) = reader(context)? else { return Ok(Value::Null) };
    Ok(store.site_id()?.map_or(Value::Null, |site| Value::Text(site.to_string())))
}

fn db_version(context: &CallContext, _: &[Value]) -> Outcome {
    let Some(store) = reader(context)? else { return Ok(Value::Integer(0)) };
    Ok(Value::Integer(store.db_version()?.0))
}

/// A store for reading; `None` where there is no file to read.
fn reader(context: &CallContext) -> Result<Option<Store>, SqlError> {
    let DatabasePath::File(path) = context.database_path() else { return Ok(None) };
    if !path.exists() {
        return Ok(None);
    }
    Ok(Some(Store::open(connect_to_read(&path)?)?))
}

/// Opens a connection that can read a file, also one that may not be written.
///
/// # Errors
/// If the file cannot be opened.
pub fn connect_to_read(path: &std::path::Path) -> Result<rusqlite::Connection, SqlError> {
    let conn = rusqlite::Connection::open_with_flags(
        path,
        rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY | rusqlite::OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    conn.busy_timeout(Duration::from_millis(engine::CALL_BUSY_MS))?;
    Ok(conn)
}
