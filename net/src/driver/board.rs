//! The board: where a running engine shows what is going on, to be read from other threads.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
#[cfg(not(target_family = "wasm"))]
use std::time::Duration;

use async_channel::{Receiver, Sender};
use wavesync_core::ids::{Millis, SiteId};
use wavesync_core::limits;
use wavesync_core::machine::{Event, PeerReport, Progress};

use crate::RelayReport;

/// An event and when it happened.
#[derive(Clone, Debug)]
pub struct LoggedEvent {
    /// Counts up from 1 in the life of a board.
    pub number: u64,
    /// When.
    pub at: Millis,
    /// What.
    pub event: Event,
}

/// What an engine last showed.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The group.
    pub topic: String,
    /// This replica's site id.
    pub site: Option<SiteId>,
    /// This replica's peer id, in base58.
    pub peer: String,
    /// `starting`, `waiting`, `running`, `paused`, `stopped` or `failed`.
    pub state: String,
    /// Where it listens, with real ports.
    pub listen: Vec<String>,
    /// Its relays.
    pub relays: Vec<RelayReport>,
    /// It is the one engine of this file among all processes.
    pub leader: bool,
    /// How far it is.
    pub progress: Progress,
    /// Connected peers.
    pub peers: Vec<PeerReport>,
    /// Recent events, oldest first.
    pub events: VecDeque<LoggedEvent>,
    /// Newest token of [`super::Control::committed`] whose commits were taken in.
    pub token: u64,
    /// Why it failed, if it did.
    pub failure: String,
}

/// A board; clones show the same.
#[derive(Clone, Default)]
pub struct Board {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    snapshot: Mutex<Snapshot>,
    changed: Condvar,
    stale: AtomicBool,
    waiters: AtomicUsize,
    logged: AtomicU64,
    listener: OnceLock<Sender<()>>,
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, Snapshot> {
        // A panic elsewhere cannot leave a snapshot half written in a way that matters.
        self.shared.snapshot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy of what is shown.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.lock().clone()
    }

    /// Changes what is shown and wakes whoever waits.
    pub fn update(&self, change: impl FnOnce(&mut Snapshot)) {
        change(&mut self.lock());
        self.shared.changed.notify_all();
        if let Some(listener) = self.shared.listener.get() {
            // A full channel holds a message already, and one is enough.
            let _ = listener.try_send(());
        }
    }

    /// For whoever cannot wait: a message after each change, or one for several. There is one
    /// listener in the life of a board; a second one hears nothing.
    #[must_use]
    pub fn listen(&self) -> Receiver<()> {
        let (sender, receiver) = async_channel::bounded(1);
        let _ = self.shared.listener.set(sender);
        receiver
    }

    /// Adds an event, also to the trace.
    pub fn log(&self, at: Millis, event: Event) {
        tracing::debug!(code = event.code, message = %event.message, "event");
        let number = self.shared.logged.fetch_add(1, Ordering::SeqCst) + 1;
        self.update(|snapshot| {
            if snapshot.events.len() >= limits::EVENTS_MAX {
                snapshot.events.pop_front();
            }
            snapshot.events.push_back(LoggedEvent { number, at, event });
        });
    }

    /// Waits until the snapshot satisfies a condition; `false` if the time was over first.
    #[cfg(not(target_family = "wasm"))]
    #[must_use]
    pub fn wait(&self, timeout: Duration, condition: impl Fn(&Snapshot) -> bool) -> bool {
        let deadline = crate::time::Instant::now() + timeout;
        self.shared.waiters.fetch_add(1, Ordering::SeqCst);
        let mut snapshot = self.lock();
        let met = loop {
            if condition(&snapshot) {
                break true;
            }
            let left = deadline.saturating_duration_since(crate::time::Instant::now());
            if left.is_zero() {
                break false;
            }
            let woken = self.shared.changed.wait_timeout(snapshot, left);
            snapshot = woken.unwrap_or_else(PoisonError::into_inner).0;
        };
        drop(snapshot);
        self.shared.waiters.fetch_sub(1, Ordering::SeqCst);
        met
    }

    pub(super) fn touch(&self) {
        self.shared.stale.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_stale(&self) -> bool {
        self.shared.stale.load(Ordering::SeqCst)
    }

    pub(super) fn has_waiters(&self) -> bool {
        self.shared.waiters.load(Ordering::SeqCst) > 0
    }

    pub(super) fn publish(&self, change: impl FnOnce(&mut Snapshot)) {
        self.shared.stale.store(false, Ordering::SeqCst);
        self.update(change);
    }
}
