//! The life of the host's handles: which ones have wavesync loaded, when one was closed, and
//! whether this process is a fork of the one that loaded the library.
//!
//! SQLite tells nobody that a handle is being closed. But it destroys the functions of the
//! handle, so one of them owns a value whose drop is that message.

use super::SqlError;
use super::panic::release;
use rusqlite::Connection;
use rusqlite::functions::FunctionFlags;
use rusqlite::types::Null;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// What one process knows. A forked child gets a fresh one: the locks of its parent may be held
/// by threads that do not exist in the child, and the parent's handles are not the child's.
struct Registry {
    process: u32,
    loading: Mutex<()>,
    open: Mutex<BTreeSet<usize>>,
}

static REGISTRY: AtomicPtr<Registry> = AtomicPtr::new(std::ptr::null_mut());
static FIRST_PROCESS: AtomicU32 = AtomicU32::new(0);
static ON_CLOSED: OnceLock<fn(usize)> = OnceLock::new();

/// Names the one function that hears of every closed handle, by [`super::Host::handle_id`].
/// Naming it again changes nothing; false when another one had been named.
///
/// It runs once per handle, on the thread that closes it, while SQLite takes the handle apart:
/// it must not use the handle. It does not run in a forked child for the parent's handles, nor
/// when the process ends without closing.
pub fn on_handle_closed(callback: fn(handle_id: usize)) -> bool {
    std::ptr::fn_addr_eq(*ON_CLOSED.get_or_init(|| callback), callback)
}

/// True when this process was forked from the one in which the library was first loaded, so
/// that threads and sockets of that one do not exist here.
pub fn forked() -> bool {
    let first = FIRST_PROCESS.load(Ordering::Acquire);
    first != 0 && first != std::process::id()
}

/// The number of handles of this process that have wavesync loaded.
pub fn open_handles() -> usize {
    locked(&registry().open).len()
}

/// True while the handle has wavesync loaded.
pub fn is_open(handle_id: usize) -> bool {
    locked(&registry().open).contains(&handle_id)
}

/// Lets one thread at a time load the library.
pub(super) fn loading() -> MutexGuard<'static, ()> {
    FIRST_PROCESS.compare_exchange(0, std::process::id(), Ordering::AcqRel, Ordering::Acquire).ok();
    locked(&registry().loading)
}

/// Notes that the handle has wavesync loaded, until SQLite closes it. The guard belongs to a
/// function of the given name, which no other extension may use. (Another copy of this library
/// does: it takes over the handle with all functions, and for this copy the handle is closed.)
pub(super) fn watch(host: &Connection, name: &str, handle_id: usize) -> Result<(), SqlError> {
    locked(&registry().open).insert(handle_id);
    // When registration fails, the closure and with it the guard are dropped (by SQLite, as
    // sqlite3_create_function_v2 promises), which takes the note back.
    let guard = Guard { handle_id };
    let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DIRECTONLY;
    host.create_scalar_function(name, 0, flags, move |_| {
        let _owned = &guard;
        Ok(Null)
    })?;
    Ok(())
}

struct Guard {
    handle_id: usize,
}

impl Drop for Guard {
    fn drop(&mut self) {
        // In a forked child the registry is fresh and does not know the parent's handles.
        let known = locked(&registry().open).remove(&self.handle_id);
        // The lock is free again: the callback may ask about other handles.
        if known && let Some(callback) = ON_CLOSED.get() {
            release(CallOnDrop(*callback, self.handle_id));
        }
    }
}

/// Calls back where a panic is contained.
struct CallOnDrop(fn(usize), usize);

impl Drop for CallOnDrop {
    fn drop(&mut self) {
        (self.0)(self.1);
    }
}

fn registry() -> &'static Registry {
    let process = std::process::id();
    let mut current = REGISTRY.load(Ordering::Acquire);
    loop {
        // SAFETY: a registry that was published is never freed nor changed except by its locks.
        if let Some(known) = unsafe { current.as_ref() }
            && known.process == process
        {
            return known;
        }
        // One small allocation per process in a chain of forks is never given back.
        let fresh = Box::into_raw(Box::new(Registry {
            process,
            loading: Mutex::new(()),
            open: Mutex::new(BTreeSet::new()),
        }));
        match REGISTRY.compare_exchange(current, fresh, Ordering::AcqRel, Ordering::Acquire) {
            // SAFETY: just allocated, and from now on published.
            Ok(_) => return unsafe { &*fresh },
            Err(other) => {
                // SAFETY: `fresh` was not published, so nobody else has it.
                drop(unsafe { Box::from_raw(fresh) });
                current = other;
            }
        }
    }
}

fn locked<T>(lock: &'static Mutex<T>) -> MutexGuard<'static, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}
