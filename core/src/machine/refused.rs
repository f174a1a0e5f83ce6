//! What SQLite refuses is told, and tried again a moment later.

use crate::ids::Millis;
use crate::machine::{Event, Level, Machine, Output};
use crate::{Error, limits};

impl Machine {
    /// Work was left undone. A connection that is stuck in a transaction keeps others from the file
    /// and is of no use any more: it is given up.
    pub(super) fn refused_by_store(&mut self, now: Millis, error: &Error, stuck: bool) {
        // One that stays is told once.
        if error.retryable() {
            let since = self.locked_since.get_or_insert(Some(now));
            if since.is_some_and(|since| now.since(since) >= limits::LOCKED_TOLD_MS) {
                *since = None;
                self.outputs.push(Output::Event(Event::kept_out(error)));
            }
        } else if self.last_error.as_ref().map(|(text, _)| text) != Some(&error.to_string()) {
            self.event(Level::Error, "store", &error.to_string(), error.hint(), None);
        }
        self.last_error = Some((error.to_string(), error.hint()));
        if stuck {
            let message = "SQLite could not end a transaction; the file is opened anew";
            self.event(Level::Warning, "store", message, error.hint(), None);
            self.over = true;
            self.outputs.push(Output::Restart);
        }
        // Whatever was left undone is come across again.
        (self.own_dirty, self.compare_at) = (true, Millis(0));
        // A lock may be gone at any moment. A disk does not empty itself, and asking it costs.
        let mut wait = limits::STORE_RETRY_MS;
        if !error.is_lock() {
            wait = self.retry_wait;
            self.retry_wait = (wait * 2).min(limits::STORE_RETRY_MAX_MS);
        }
        self.retry_at = Some(now.plus(wait));
    }
}

impl Event {
    /// SQLite has kept the engine from the file for [`limits::LOCKED_TOLD_MS`], for a reason that
    /// passes.
    #[must_use]
    pub fn kept_out(error: &Error) -> Self {
        let code = match error {
            _ if error.is_lock() => "locked",
            Error::Sqlite(rusqlite::Error::SqliteFailure(failure, _)) => match failure.code {
                rusqlite::ErrorCode::DiskFull => "disk_full",
                _ => "store",
            },
            _ => "store",
        };
        let hint = error.hint();
        let message = format!("nothing can be read or written for now: {error}");
        Self { level: Level::Warning, code, message, hint: hint.into(), peer: None }
    }
}
