//! How long a commit of the engine waits for those who read.
//!
//! Without a write-ahead log nobody may read while a transaction is committed, and who waits to commit
//! lets no new reader in. The engine waits briefly, so that it keeps nobody waiting long, and tries
//! again. But where one statement follows the other, only who waits for longer than one of them takes
//! ever has its turn: so each attempt in vain makes the next one more patient.

use std::time::Duration;

use super::{Store, transaction};
use crate::{Result, limits};

/// The time that the next commit may wait: twice as long after one in vain, half as long after another.
#[derive(Clone, Copy, Debug)]
pub struct CommitWait {
    first: Duration,
    next: Duration,
}

impl CommitWait {
    /// Of a connection that waits for a lock as long as `first`.
    #[must_use]
    pub fn new(first: Duration) -> Self {
        Self { first, next: first }
    }
}

impl Store {
    /// Makes commits that readers keep from happening more patient each time. Without it they wait as
    /// long as the connection does for anything else.
    pub fn set_commit_wait(&mut self, wait: CommitWait) {
        self.commit_wait = Some(wait);
    }

    /// See [`Store::set_commit_wait`]: as the last commit left it.
    #[must_use]
    pub fn commit_wait(&self) -> Option<CommitWait> {
        self.commit_wait
    }

    pub(super) fn commit(&mut self) -> Result<()> {
        let Some(wait) = &mut self.commit_wait else { return transaction(&self.conn, "COMMIT") };
        let longer = wait.next > wait.first;
        if longer {
            self.conn.busy_timeout(wait.next)?;
        }
        let done = transaction(&self.conn, "COMMIT");
        if longer {
            // SQLite gives no error here, and one could not undo what was committed.
            let _ = self.conn.busy_timeout(wait.first);
        }
        let most = Duration::from_millis(limits::COMMIT_WAIT_MAX_MS);
        wait.next = match &done {
            Err(error) if error.is_lock() => (wait.next * 2).min(most),
            _ => (wait.next / 2).max(wait.first),
        };
        done
    }
}

#[cfg(test)]
mod tests {
    // What is measured is SQLite's own waiting.
    #![allow(clippy::unwrap_used, clippy::disallowed_methods)]

    use std::time::Instant;

    use rusqlite::Connection;

    use super::*;
    use crate::ids::Millis;
    use crate::store::group::Join;
    use crate::store::identity::FileIdentity;

    /// Waits of a connection that gives up at once, against one that reads.
    #[test]
    fn a_commit_that_readers_keep_from_happening_waits_longer_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("read.db");
        let now = Millis(1_700_000_000_000);
        let first = Duration::from_millis(5);
        let conn = Connection::open(&path).unwrap();
        conn.busy_timeout(first).unwrap();
        let mut store = Store::open(conn).unwrap();
        let group = Join { topic: "t".into(), ..Join::default() };
        store.join(now, &group, &FileIdentity("file".into()), &[1; 64]).unwrap();
        let reader = Connection::open(&path).unwrap();
        reader.execute_batch("CREATE TABLE t(x); BEGIN").unwrap();
        reader.query_row("SELECT count(*) FROM t", [], |_| Ok(())).unwrap();
        let commit = |store: &mut Store| {
            let begun = Instant::now();
            let done = store.write(now, |tx| tx.set_meta("turn", 1));
            (done.is_ok(), begun.elapsed())
        };
        store.set_commit_wait(CommitWait::new(first));
        let waits: Vec<Duration> = (0..5).map(|_| commit(&mut store).1).collect();
        assert!(waits[4] >= first * 16 && waits[3] >= first * 8, "{waits:?}");
        assert_eq!(store.commit_wait().unwrap().next, first * 32);
        for _ in 0..4 {
            commit(&mut store);
        }
        assert_eq!(store.commit_wait().unwrap().next.as_millis(), 640);
        reader.execute_batch("COMMIT").unwrap();
        assert!(commit(&mut store).0);
        assert_eq!(store.commit_wait().unwrap().next.as_millis(), 320);
        // Nothing else waits longer than before.
        reader.execute_batch("BEGIN IMMEDIATE").unwrap();
        let (done, took) = commit(&mut store);
        assert!(!done && took < Duration::from_millis(600), "{took:?}");
        assert_eq!(store.commit_wait().unwrap().next.as_millis(), 320);
    }
}
