//! A borrowed view of the host's database handle: facts about it, and a connection for the time
//! of one call. It must never close the handle nor leave a statement open on it.

use super::SqlError;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ffi};
use std::ffi::CStr;
use std::marker::PhantomData;
use std::ops::Deref;
use std::path::PathBuf;

/// Where the main database of a handle lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DatabasePath {
    /// A file, by its absolute path.
    File(PathBuf),
    /// `:memory:` or its URI forms; it ends with the handle.
    Memory,
    /// The unnamed temporary database (`''`); it ends with the handle.
    Temporary,
}

/// The host's handle for the time of one callback. Not `Clone`, not `Send`: it cannot be kept.
#[derive(Debug)]
pub struct Host {
    raw: *mut ffi::sqlite3,
}

impl Host {
    /// A view of `raw`.
    ///
    /// # Safety
    /// `raw` must be an open handle of the SQLite that loaded this library, it must stay open
    /// as long as the view exists, and the calling thread must be allowed to use it.
    pub(super) unsafe fn new(raw: *mut ffi::sqlite3) -> Self {
        Self { raw }
    }

    pub(super) fn raw(&self) -> *mut ffi::sqlite3 {
        self.raw
    }

    /// A number that is unique among the open handles of this process, and the one given to the
    /// callback of [`super::on_handle_closed`]. It may be reused after the handle was closed.
    pub fn handle_id(&self) -> usize {
        self.raw as usize
    }

    /// Where the `main` database lives.
    pub fn database_path(&self) -> DatabasePath {
        // SAFETY: the handle is open (`Host::new`); the name is a static C string.
        let name = unsafe { ffi::sqlite3_db_filename(self.raw, c"main".as_ptr()) };
        if !name.is_null() {
            // SAFETY: SQLite returns a NUL-terminated name that lives until the database is
            // detached or closed, neither of which can happen during this call.
            let bytes = unsafe { CStr::from_ptr(name) }.to_bytes();
            if !bytes.is_empty() {
                return DatabasePath::File(path_from(bytes));
            }
        }
        // Both kinds have an empty name. A database in memory only knows the journal modes
        // `memory` and `off`; a temporary file starts with `delete`.
        let journal = self.connection().and_then(|connection| {
            Ok(connection
                .query_row("PRAGMA main.journal_mode", [], |row| row.get::<_, String>(0))?)
        });
        match journal.as_deref() {
            Ok("memory" | "off") | Err(_) => DatabasePath::Memory,
            Ok(_) => DatabasePath::Temporary,
        }
    }

    /// True when the `main` database was opened read-only.
    pub fn is_read_only(&self) -> bool {
        // SAFETY: the handle is open (`Host::new`); the name is a static C string.
        unsafe { ffi::sqlite3_db_readonly(self.raw, c"main".as_ptr()) == 1 }
    }

    /// True between BEGIN (or SAVEPOINT) and its end on this handle.
    pub fn in_transaction(&self) -> bool {
        // SAFETY: the handle is open (`Host::new`).
        unsafe { ffi::sqlite3_get_autocommit(self.raw) == 0 }
    }

    /// The handle's `PRAGMA foreign_keys`, read without running a statement.
    pub fn pragma_foreign_keys(&self) -> bool {
        self.connection()
            .and_then(|host| Ok(host.db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY)?))
            .unwrap_or(false)
    }

    /// The handle as a connection, inside whatever transaction the host has open. It cannot
    /// outlive the callback, so no statement prepared on it can keep the host from closing.
    ///
    /// # Errors
    /// When the binding refuses the handle.
    pub fn connection(&self) -> Result<HostConnection<'_>, SqlError> {
        // SAFETY: the handle is open (`Host::new`); the connection does not own it and its
        // lifetime is tied to `self`.
        let connection = unsafe { Connection::from_handle(self.raw) }?;
        Ok(HostConnection { connection, host: PhantomData })
    }

    /// As [`Host::connection`], for what wants to own it. Whoever has it drops it before the callback
    /// returns, or, if it is part of the rows of a scan, with them: SQLite ends every scan before it
    /// closes the handle. No statement may stay open on it from one callback to the next.
    ///
    /// # Errors
    /// When the binding refuses the handle.
    pub fn lend(&self) -> Result<Connection, SqlError> {
        // SAFETY: the handle is open (`Host::new`), the connection does not own it, and is used
        // as long as the handle is open (see above).
        Ok(unsafe { Connection::from_handle(self.raw) }?)
    }
}

/// The host's handle as a rusqlite connection that does not own it.
pub struct HostConnection<'host> {
    connection: Connection,
    host: PhantomData<&'host Host>,
}

impl Deref for HostConnection<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

#[cfg(unix)]
fn path_from(bytes: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    PathBuf::from(std::ffi::OsStr::from_bytes(bytes))
}

#[cfg(not(unix))]
fn path_from(bytes: &[u8]) -> PathBuf {
    // SQLite hands out UTF-8 there.
    PathBuf::from(String::from_utf8_lossy(bytes).into_owned())
}
