//! The engine's way to a database file: its own connection, and what tells the file from a copy.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::hooks::{Action, PreUpdateCase};
use rusqlite::{Connection, OpenFlags, OptionalExtension};
use wavesync_core::store::identity::FileIdentity;
use wavesync_net::driver;

use crate::error::Result;
use crate::vfs;

/// Names of user tables that the engine has written since they were last asked for.
#[derive(Clone, Default)]
pub struct Changed(Arc<Mutex<BTreeSet<String>>>);

impl Changed {
    fn with<T>(&self, act: impl FnOnce(&mut BTreeSet<String>) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn note(&self, table: &str) {
        self.with(|tables| {
            if !tables.contains(table) {
                tables.insert(table.to_owned());
            }
        });
    }

    /// The names, once.
    pub fn take(&self) -> BTreeSet<String> {
        self.with(std::mem::take)
    }
}

/// Opens a connection to a file that exists.
///
/// # Errors
/// What SQLite says.
pub fn connect(database: &str) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags_and_vfs(database, flags, vfs::NAME)?;
    // Waiting would block the one who has the lock.
    conn.busy_timeout(std::time::Duration::ZERO)?;
    Ok(conn)
}

/// As [`connect`]; the tables that are written through the connection are noted.
///
/// # Errors
/// What SQLite says.
pub fn connect_noting(database: &str, changed: &Changed) -> rusqlite::Result<Connection> {
    let conn = connect(database)?;
    let changed = changed.clone();
    conn.preupdate_hook(Some(move |_: Action, schema: &str, table: &str, _: &PreUpdateCase| {
        if schema == "main" && !table.starts_with("__wavesync_") {
            changed.note(table);
        }
    }))?;
    Ok(conn)
}

/// What tells this file from a copy of it: a random word in a second file of the same storage, which
/// no copy takes along.
///
/// # Errors
/// What SQLite says, for example if the storage has no room for another file.
pub fn identity(database: &str) -> Result<FileIdentity> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let path = format!("{database}-wavesync-id");
    let conn = Connection::open_with_flags_and_vfs(path, flags, vfs::NAME)?;
    conn.execute_batch(
        "PRAGMA journal_mode=MEMORY; PRAGMA synchronous=FULL; PRAGMA page_size=512;
         CREATE TABLE IF NOT EXISTS identity(word TEXT);",
    )?;
    let known: Option<String> =
        conn.query_row("SELECT word FROM identity", [], |row| row.get(0)).optional()?;
    if let Some(word) = known {
        return Ok(FileIdentity(word));
    }
    let mut random = [0; 16];
    driver::random(&mut random);
    let word: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    conn.execute("INSERT INTO identity VALUES(?1)", [&word])?;
    Ok(FileIdentity(word))
}
