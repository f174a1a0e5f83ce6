//! Lets a host fork while threads of this library run.
//!
//! A forked child has only the thread that forked. A lock that another thread held at that
//! moment, in SQLite or in this library, stays locked in the child for ever: its first
//! `sqlite3_open` hangs. So these threads work under a guard, and whoever forks waits until none
//! does.

#![cfg_attr(not(unix), allow(dead_code, unused_imports))]

use std::cell::RefCell;
use std::sync::{Once, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Whoever forks waits at most this long for the threads to pause, in milliseconds, and then forks
/// all the same: one of them may be at a long piece of work, or be the one that forks.
const PAUSE_MAX_MS: u64 = 5_000;
/// It looks this often whether they have, in microseconds.
const PAUSE_RETRY_US: u64 = 100;

static WORK: RwLock<()> = RwLock::new(());

thread_local! {
    /// What the thread that forks holds meanwhile.
    static PAUSED: RefCell<Option<RwLockWriteGuard<'static, ()>>> = const { RefCell::new(None) };
}

/// To be held by a thread of this library while it uses SQLite or locks that calls from SQL use,
/// and to be given back before it waits for anything. A fork waits meanwhile, but not for ever.
pub fn working() -> RwLockReadGuard<'static, ()> {
    WORK.read().unwrap_or_else(PoisonError::into_inner)
}

/// From now on, a thread that forks waits for [`working`] threads.
pub(super) fn watch_forks() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        #[cfg(unix)]
        // SAFETY: the functions live as long as the library, which is never unloaded. They run on
        // the thread that forks, call nothing that must not be called there, and cannot unwind.
        // If the system has no room for them (ENOMEM), forking is what it was without them.
        unsafe {
            libc::pthread_atfork(Some(pause), Some(resume), Some(resume))
        };
    });
}

extern "C" fn pause() {
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(PAUSE_MAX_MS) {
        if let Ok(paused) = WORK.try_write() {
            // Fails only on a thread that is ending, which then forks without the pause.
            let _ = PAUSED.try_with(|held| *held.borrow_mut() = Some(paused));
            return;
        }
        sleep(Duration::from_micros(PAUSE_RETRY_US));
    }
}

extern "C" fn resume() {
    let _ = PAUSED.try_with(|held| held.borrow_mut().take());
}
