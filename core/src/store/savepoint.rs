//! The end of savepoints, also where SQLite has ended the whole transaction by itself.

use rusqlite::{Connection, ffi};

use crate::{Error, Result};

/// Ends a savepoint, and undoes what was done in it if that is wanted or if it failed. After some
/// errors SQLite rolls the whole transaction back by itself: then there is no savepoint, the error
/// is the one to tell, and nothing else may be written.
pub(super) fn end_savepoint<T>(
    conn: &Connection,
    name: &str,
    undo: bool,
    done: Result<T>,
) -> Result<T> {
    if conn.is_autocommit() {
        return done.and_then(|_| Err(rolled_back()));
    }
    if undo || done.is_err() {
        conn.execute_batch(&format!("ROLLBACK TO {name}"))?;
    }
    conn.execute_batch(&format!("RELEASE {name}"))?;
    done
}

pub(super) fn rolled_back() -> Error {
    let code = ffi::Error::new(ffi::SQLITE_ABORT_ROLLBACK);
    Error::Sqlite(rusqlite::Error::SqliteFailure(code, None))
}
