//! One engine per database file and process: a background thread with a connection of its own.
//!
//! Among the processes that have a file open, the one that holds its lock file leads; the others
//! only record, and try for the lock again and again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, TryLockError};
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags};
use wavesync_core::auth::{GroupKey, weakness};
use wavesync_core::limits::LOCKED_TOLD_MS;
use wavesync_core::machine::{Event, Level};
use wavesync_core::store::Store;
use wavesync_core::store::identity::Identity;
use wavesync_core::store::turn::CommitWait;
use wavesync_net::driver::{self, Board, Control, Inbox, Parts, Settings, Snapshot};

use crate::ffi::{SqlError, forked, on_handle_closed, working};

/// A process that does not lead tries again this often, in milliseconds.
const LEADER_RETRY_MS: u64 = 250;
/// A start that SQLite could not serve is tried again after this long, in milliseconds.
const START_RETRY_MS: u64 = 100;
/// Closing the last handle waits at most this long for the thread, in milliseconds.
const STOP_MAX_MS: u64 = 1_000;
/// A call from SQL waits at most this long for a lock on the file, in milliseconds.
pub const CALL_BUSY_MS: u64 = 5_000;
/// The engine waits at most this long for a lock before it does something else, in milliseconds.
const ENGINE_BUSY_MS: u64 = 20;

/// A running engine.
pub struct Engine {
    /// How to ask it for something.
    pub control: Control,
    /// What it shows.
    pub board: Board,
    fingerprint: u64,
    thread: Option<JoinHandle<()>>,
    handles: BTreeSet<usize>,
}

/// What to start an engine with.
pub struct Start {
    /// The database file.
    pub path: PathBuf,
    /// The group's passphrase.
    pub passphrase: String,
    /// How to take part; the key is derived on the engine's thread.
    pub topic: String,
    /// As in [`Settings`].
    pub name: String,
    /// As in [`Settings`].
    pub listen: Vec<String>,
    /// As in [`Settings`].
    pub peers: Vec<String>,
    /// As in [`Settings`].
    pub relays: Vec<String>,
    /// As in [`Settings`].
    pub direct: bool,
    /// As in [`Settings`].
    pub lan: bool,
}

type Registry = BTreeMap<PathBuf, Engine>;

fn registry() -> MutexGuard<'static, Registry> {
    static REGISTRY: Mutex<Registry> = Mutex::new(BTreeMap::new());
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts the engine of a file, or adds a handle and addresses to the one that runs.
///
/// # Errors
/// If one runs with another topic or passphrase, or no thread can be started.
pub fn start(handle: usize, start: Start) -> Result<(), SqlError> {
    on_handle_closed(handle_closed);
    static HASHER: OnceLock<RandomState> = OnceLock::new();
    let hasher = HASHER.get_or_init(RandomState::new);
    let fingerprint = hasher.hash_one((&start.topic, &start.passphrase));
    let mut registry = registry();
    if let Some(engine) = registry.get_mut(&start.path) {
        let state = engine.board.snapshot().state;
        if state != "failed" && state != "stopped" {
            if engine.fingerprint != fingerprint {
                return Err(SqlError::new(
                    "this database is already joined with another topic or passphrase in this \
                     process; call wavesync_leave() first",
                ));
            }
            engine.handles.insert(handle);
            start.peers.iter().for_each(|peer| engine.control.dial(peer));
            engine.control.resume();
            return Ok(());
        }
    }
    let (control, inbox) = Control::new();
    let board = Board::default();
    board.update(|snapshot| {
        "starting".clone_into(&mut snapshot.state);
        snapshot.topic.clone_from(&start.topic);
    });
    warn_if_weak(&start.passphrase, &board);
    let shown = board.clone();
    let path = start.path.clone();
    let thread = std::thread::Builder::new()
        .name("wavesync".into())
        .spawn(move || supervise(start, inbox, shown))
        .map_err(|error| SqlError::new(format!("the system starts no thread: {error}")))?;
    let mut handles = BTreeSet::from([handle]);
    if let Some(before) = registry.remove(&path) {
        handles.extend(before.handles);
    }
    registry.insert(path, Engine { control, board, fingerprint, thread: Some(thread), handles });
    Ok(())
}

/// A weak passphrase works like any other; whoever chose it is told.
fn warn_if_weak(passphrase: &str, board: &Board) {
    let Some(message) = weakness(passphrase) else { return };
    let hint = "SELECT wavesync_passphrase() makes a strong one; to change it, every member calls \
                wavesync_leave() and joins again with the new one";
    let (level, code) = (Level::Warning, "weak_passphrase");
    board.log(driver::now(), Event { level, code, message, hint: hint.to_owned(), peer: None });
}

/// The control and board of the engine of a file, if one runs in this process. A forked child has
/// a copy of what its parent noted, and none of its engines.
pub fn find(path: &Path) -> Option<(Control, Board)> {
    if forked() {
        return None;
    }
    registry().get(path).map(|engine| (engine.control.clone(), engine.board.clone()))
}

/// A handle was closed: the engine of its file ends with the last one.
fn handle_closed(handle: usize) {
    let ended: Vec<Engine> = {
        let mut registry = registry();
        let mut ended = Vec::new();
        registry.retain(|_, engine| {
            if !engine.handles.remove(&handle) || !engine.handles.is_empty() {
                return true;
            }
            engine.control.stop();
            ended.push((engine.control.clone(), engine.board.clone(), engine.thread.take()));
            false
        });
        ended
            .into_iter()
            .map(|(control, board, thread)| Engine {
                control,
                board,
                fingerprint: 0,
                thread,
                handles: BTreeSet::new(),
            })
            .collect()
    };
    // Outside the lock: the thread may take a while to flush.
    ended.into_iter().for_each(Engine::end);
}

/// Ends the engine of a file, whoever uses it. Returns whether there was one.
pub fn stop(path: &Path) -> bool {
    if forked() {
        return false;
    }
    let Some(engine) = registry().remove(path) else { return false };
    engine.end();
    true
}

impl Engine {
    fn end(mut self) {
        self.control.stop();
        let over = |state: &str| state == "stopped" || state == "failed";
        // One that still derives the key, or waits for the file, holds nothing that must be written.
        let idle = |shown: &Snapshot| shown.state == "starting" && !shown.leader;
        let _ = self
            .board
            .wait(Duration::from_millis(STOP_MAX_MS), |shown| over(&shown.state) || idle(shown));
        let ended = over(&self.board.snapshot().state);
        if let Some(thread) = self.thread.take().filter(|_| ended) {
            // The thread has nothing left to do; a panic in it was already reported.
            let _ = thread.join();
        }
    }
}

/// A token for [`Control::committed`].
pub fn next_token() -> u64 {
    static TOKEN: AtomicU64 = AtomicU64::new(1);
    TOKEN.fetch_add(1, Ordering::Relaxed)
}

/// Opens a connection to a file that nobody else uses, through the host's SQLite.
///
/// # Errors
/// If the file cannot be opened for writing.
pub fn connect(path: &Path, busy: u64) -> Result<Connection, SqlError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags)?;
    conn.busy_timeout(Duration::from_millis(busy))?;
    Ok(conn)
}

/// Where the lock of a database file lies.
pub fn lock_path(path: &Path) -> PathBuf {
    beside(path, "-wavesync-lock")
}

/// The file that lies beside a database file, under its name and a suffix.
pub fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// The thread's body: nothing may escape it.
fn supervise(start: Start, inbox: Inbox, board: Board) {
    let shown = board.clone();
    let work = std::panic::AssertUnwindSafe(move || lead(start, inbox, &board));
    let failure = match std::panic::catch_unwind(work) {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some("an internal error ended the engine; please report it".to_owned()),
    };
    let Some(failure) = failure else {
        shown.update(|snapshot| "stopped".clone_into(&mut snapshot.state));
        return;
    };
    let message = failure.clone();
    let hint = "call wavesync_join() again once the cause is gone".to_owned();
    let event = Event { level: Level::Error, code: "engine", message, hint, peer: None };
    shown.log(driver::now(), event);
    shown.update(|snapshot| {
        "failed".clone_into(&mut snapshot.state);
        snapshot.failure = failure;
        snapshot.peers.clear();
    });
}

fn lead(start: Start, inbox: Inbox, board: &Board) -> Result<(), SqlError> {
    // Before the wait for the lock: whoever takes over is to do so at once.
    let key = GroupKey::from_passphrase(&start.topic, &start.passphrase)?;
    if inbox.stopped_within(Duration::ZERO) {
        return Ok(());
    }
    let Some(lock) = become_leader(&start.path, &inbox, board)? else { return Ok(()) };
    let Start { path, topic, name, listen, peers, relays, direct, lan, .. } = start;
    let mut settings = Settings { key, topic, name, listen, peers, relays, direct, lan };
    let mut inbox = inbox;
    loop {
        let Some((store, identity)) = open_patiently(&path, &inbox, board)? else { break };
        if store.topic()?.as_ref() != Some(&settings.topic) {
            return Err(SqlError::new(format!(
                "another program has taken this database out of the group '{}'",
                settings.topic
            )));
        }
        board.update(|snapshot| snapshot.leader = true);
        let parts =
            Parts { store, identity, settings: settings.clone(), inbox, board: board.clone() };
        let ended =
            driver::run(parts, working).map_err(|error| SqlError::new(error.to_string()))?;
        let Some(again) = ended else { break };
        (settings.listen, settings.peers) = (again.listen, again.peers);
        inbox = again.inbox;
    }
    drop(lock);
    Ok(())
}

/// Starts the store, waiting while SQLite cannot; `None` if asked to stop meanwhile.
fn open_patiently(
    path: &Path,
    inbox: &Inbox,
    board: &Board,
) -> Result<Option<(Store, Identity)>, SqlError> {
    let start = Instant::now();
    let mut told = false;
    let mut wait = CommitWait::new(Duration::from_millis(ENGINE_BUSY_MS));
    loop {
        let opened = {
            let _working = working();
            open_store(path, &mut wait)
        };
        match opened {
            Ok(opened) => return Ok(Some(opened)),
            Err(error) if error.retryable() => {
                if !told && start.elapsed().as_millis() >= u128::from(LOCKED_TOLD_MS) {
                    told = true;
                    board.log(driver::now(), Event::kept_out(&error));
                }
                board.update(|snapshot| {
                    snapshot.progress.last_error = error.to_string();
                    snapshot.progress.hint = error.hint();
                });
                if inbox.stopped_within(Duration::from_millis(START_RETRY_MS)) {
                    return Ok(None);
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn open_store(path: &Path, wait: &mut CommitWait) -> wavesync_core::Result<(Store, Identity)> {
    let file = driver::file_identity(path).map_err(|error| {
        wavesync_core::Error::Database(format!("the database file is gone: {error}"))
    })?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags)?;
    conn.busy_timeout(Duration::from_millis(ENGINE_BUSY_MS))?;
    let mut store = Store::open(conn)?;
    store.keep_time(driver::now);
    let mut random = [0; 64];
    driver::random(&mut random);
    store.set_commit_wait(*wait);
    let started = store.start(driver::now(), &file, &random);
    *wait = store.commit_wait().unwrap_or(*wait);
    Ok((store, started?))
}

/// Takes the lock of the file, waiting for it if need be; `None` if asked to stop meanwhile.
fn become_leader(path: &Path, inbox: &Inbox, board: &Board) -> Result<Option<File>, SqlError> {
    let lock = lock_path(path);
    let mut file = open_lock(&lock)?;
    loop {
        match file.try_lock() {
            Ok(()) if is_at(&file, &lock) => return Ok(Some(file)),
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                board.update(|snapshot| "waiting".clone_into(&mut snapshot.state));
            }
            Err(TryLockError::Error(error)) => {
                return Err(SqlError::new(format!("the lock file cannot be locked: {error}")));
            }
        }
        // Whoever has left for good removed it: others lock another one.
        if !is_at(&file, &lock) {
            file = open_lock(&lock)?;
            continue;
        }
        if inbox.stopped_within(Duration::from_millis(LEADER_RETRY_MS)) {
            return Ok(None);
        }
    }
}

fn open_lock(lock: &Path) -> Result<File, SqlError> {
    File::options().create(true).truncate(false).write(true).open(lock).map_err(|error| {
        SqlError::new(format!("the lock file {} cannot be opened: {error}", lock.display()))
    })
}

/// Whether a file is still the one at its place.
fn is_at(file: &File, place: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let id = |meta: std::fs::Metadata| (meta.dev(), meta.ino());
        let ids = (file.metadata().map(id), std::fs::metadata(place).map(id));
        matches!(ids, (Ok(file), Ok(there)) if file == there)
    }
    #[cfg(not(unix))]
    {
        file.metadata().is_ok() && place.exists()
    }
}

/// Removes the lock file of a database unless an engine holds it, here or in another process.
pub fn remove_lock(path: &Path) {
    let lock = lock_path(path);
    let Ok(file) = File::options().write(true).open(&lock) else { return };
    if file.try_lock().is_ok() && is_at(&file, &lock) {
        // One that stays is locked by the next engine.
        let _ = std::fs::remove_file(&lock);
    }
}
