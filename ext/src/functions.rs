//! The SQL functions: arguments in, a value or an error that says what to do out.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use rusqlite::types::Value;
use wavesync_core::auth::{check_passphrase, make_passphrase};
use wavesync_core::store::Store;
use wavesync_core::store::calls::{self, Call, text};
use wavesync_core::store::group::Join;
use wavesync_net::driver;

use crate::engine::{self, Start, connect};
use crate::ffi::{CallContext, DatabasePath, Host, SqlError, SqlFunction, forked};
use crate::options::Options;

/// How often `wavesync_wait(…, 'progress')` says something.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

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
    let mut store = Store::open(connect(&path, engine::CALL_BUSY_MS)?)?;
    store.keep_time(driver::now);
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
        engine::remove_lock(&path);
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
    let _closes = control.pause();
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

/// A call that needs a store only, on a connection of its own; the engine learns of it.
fn call(context: &CallContext, args: &[Value], run: Call) -> Outcome {
    let job = run(args)?;
    let (path, mut store) = store(context)?;
    let done = job(&mut store, driver::now())?;
    if let Some((control, _)) = engine::find(&path) {
        control.committed(engine::next_token());
    }
    Ok(done)
}

fn track(context: &CallContext, args: &[Value]) -> Outcome {
    call(context, args, calls::track)
}

fn untrack(context: &CallContext, args: &[Value]) -> Outcome {
    call(context, args, calls::untrack)
}

fn alter(context: &CallContext, args: &[Value]) -> Outcome {
    call(context, args, calls::alter)
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

fn id(_: &CallContext, _: &[Value]) -> Outcome {
    let mut random = [0; 4];
    driver::random(&mut random);
    Ok(Value::Integer(calls::id(driver::now(), random)))
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
    call(context, args, calls::export)
}

fn apply(context: &CallContext, args: &[Value]) -> Outcome {
    call(context, args, calls::apply)
}

fn retry(context: &CallContext, args: &[Value]) -> Outcome {
    call(context, args, calls::retry)
}

fn resync(context: &CallContext, args: &[Value]) -> Outcome {
    call(context, args, calls::resync)
}

fn restore(context: &CallContext, args: &[Value]) -> Outcome {
    call(context, args, |args| {
        let job = calls::restore(args)?;
        Ok(Box::new(move |store, now| {
            job(store, now).map_err(|error| {
                if error.retryable() {
                    return wavesync_core::Error::Database(format!(
                        "{error}; if this statement also reads the database (and that does not use \
                         WAL), look the id up in a statement of its own, else try again"
                    ));
                }
                error
            })
        }))
    })
}

fn config(context: &CallContext, args: &[Value]) -> Outcome {
    call(context, args, calls::config)
}

fn version(_: &CallContext, _: &[Value]) -> Outcome {
    Ok(Value::Text(env!("CARGO_PKG_VERSION").to_owned()))
}

fn site_id(context: &CallContext, args: &[Value]) -> Outcome {
    let Some(mut store) = reader(context)? else { return Ok(Value::Null) };
    Ok(calls::site_id(args)?(&mut store, driver::now())?)
}

fn db_version(context: &CallContext, args: &[Value]) -> Outcome {
    let Some(mut store) = reader(context)? else { return Ok(Value::Integer(0)) };
    Ok(calls::db_version(args)?(&mut store, driver::now())?)
}

/// A store for reading, inside whatever transaction the host has open; `None` where there is no file.
/// (A connection of its own could not read while an engine waits for the host's statement to end.)
fn reader(context: &CallContext) -> Result<Option<Store>, SqlError> {
    let DatabasePath::File(path) = context.database_path() else { return Ok(None) };
    if !path.exists() {
        return Ok(None);
    }
    Ok(Some(Store::reading(context.lend()?)?))
}
