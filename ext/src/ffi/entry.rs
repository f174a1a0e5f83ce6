//! The entry point: refuses hosts that the bindings would abort, then registers the surface.
//!
//! Nothing of either binding is touched before the host's version has been read through the
//! table of routines that the host passed in.

use super::function::{self, SqlFunction};
use super::panic::guarded;
use super::{Host, SqlError, fork, handle, virtual_table};
use crate::table::SqlTable;
use rusqlite::ffi::{self, sqlite3, sqlite3_api_routines};
use sqlite_loadable::entrypoints::register_entrypoint_load_permanently;
use std::cell::Cell;
use std::ffi::{c_char, c_int};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The oldest SQLite that rusqlite's bindings are made for.
const OLDEST_HOST: c_int = 3_034_001;

/// Which SQLite of this process the bindings point to: the address of its `sqlite3_open_v2`,
/// 0 before the first load. Bindings are per process, so a second copy cannot be served.
static HOST_SQLITE: AtomicUsize = AtomicUsize::new(0);

/// What one extension offers: its functions and tables.
pub struct Surface {
    /// A function name of its own for the guard of a handle; nothing calls it.
    pub guard: &'static str,
    /// Scalar functions.
    pub functions: &'static [SqlFunction],
    /// Eponymous virtual tables.
    pub tables: &'static [SqlTable],
}

/// What SQLite calls for `.load ./wavesync`. The only symbol that the library exports.
///
/// # Safety
/// To be called by SQLite only, as an extension entry point.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sqlite3_wavesync_init(
    db: *mut sqlite3,
    error_text: *mut *mut c_char,
    routines: *mut sqlite3_api_routines,
) -> c_int {
    // SAFETY: the arguments are the ones that SQLite passed to its entry point.
    unsafe { load(db, error_text, routines, &crate::SURFACE) }
}

/// The body of an entry point: checks the host, registers `surface` on `db`, and asks SQLite to
/// keep the library loaded. Loading again on the same handle changes nothing.
///
/// # Safety
/// The first three arguments must be the ones that SQLite passed to an extension entry point.
pub unsafe fn load(
    db: *mut sqlite3,
    error_text: *mut *mut c_char,
    routines: *mut sqlite3_api_routines,
    surface: &'static Surface,
) -> c_int {
    // SAFETY: the arguments are SQLite's (caller).
    let outcome = guarded("loading", || unsafe { initialise(db, routines, surface) });
    match outcome {
        Ok(()) => ffi::SQLITE_OK_LOAD_PERMANENTLY,
        Err(error) => {
            // SAFETY: the arguments are SQLite's (caller).
            unsafe { report(error_text, routines, &error.message) };
            ffi::SQLITE_ERROR
        }
    }
}

/// # Safety
/// As for [`load`].
unsafe fn initialise(
    db: *mut sqlite3,
    routines: *mut sqlite3_api_routines,
    surface: &'static Surface,
) -> Result<(), SqlError> {
    if routines.is_null() {
        return Err(SqlError::new("wavesync: the host passed no SQLite routines"));
    }
    // SAFETY: SQLite's own table, which lives as long as SQLite does. One member is read and no
    // reference to the whole is made: an older host's table is shorter than the type says.
    let version = match unsafe { (*routines).libversion_number } {
        // SAFETY: `sqlite3_libversion_number` takes nothing and needs no initialisation.
        Some(libversion_number) => unsafe { libversion_number() },
        None => return Err(SqlError::new("wavesync: the host does not tell its SQLite version")),
    };
    check_version(version)?;
    fork::watch_forks();
    let _one_at_a_time = handle::loading();
    // SAFETY: the host is recent enough for the members that the bindings read.
    unsafe { bind(routines) }?;
    // SAFETY: the bindings point to the SQLite that owns `db`, and this thread is loading an
    // extension on it.
    let host = unsafe { Host::new(db) };
    if handle::is_open(host.handle_id()) {
        return Ok(());
    }
    // A cell, because the binding's entry point passes on a code and no message.
    let outcome = Cell::new(Ok(()));
    register_entrypoint_load_permanently(db.cast(), std::ptr::null_mut(), routines.cast(), |_| {
        outcome.set(register(&host, surface));
        Ok(())
    });
    outcome.into_inner()
}

fn check_version(version: c_int) -> Result<(), SqlError> {
    if version >= OLDEST_HOST {
        return Ok(());
    }
    Err(SqlError::new(format!(
        "SQLite {} or newer is needed; this host has {}. Update SQLite, or load wavesync \
         into a program that was built with a newer one; nothing was changed.",
        dotted(OLDEST_HOST),
        dotted(version)
    )))
}

fn dotted(version: c_int) -> String {
    format!("{}.{}.{}", version / 1_000_000, version / 1_000 % 1_000, version % 1_000)
}

/// Points rusqlite to the host's routines (sqlite-loadable's own pointer is set by its entry
/// point).
///
/// # Safety
/// `routines` must be the table of a host that passed [`check_version`]; `handle::loading` held.
unsafe fn bind(routines: *mut sqlite3_api_routines) -> Result<(), SqlError> {
    // SAFETY: the table is valid (caller), and `open_v2` older than any host we accept.
    let identity = unsafe { (*routines).open_v2 }.map_or(0, |open| open as usize);
    match HOST_SQLITE.load(Ordering::Acquire) {
        0 => {}
        known if known == identity => return Ok(()),
        _ => {
            return Err(SqlError::new(
                "wavesync is already loaded by another copy of SQLite in this process, and can \
                 serve only one. Use one SQLite library per process (for Python: either the \
                 sqlite3 module or apsw), or run the other part in a process of its own.",
            ));
        }
    }
    // SAFETY: the table is valid and new enough (caller).
    unsafe { ffi::rusqlite_extension_init2(routines) }
        .map_err(|error| SqlError::new(format!("wavesync cannot use this SQLite: {error}")))?;
    HOST_SQLITE.store(identity, Ordering::Release);
    Ok(())
}

fn register(host: &Host, surface: &'static Surface) -> Result<(), SqlError> {
    for function in surface.functions {
        // SAFETY: the handle is open and both bindings are initialised.
        unsafe { function::register(host.raw(), function) }?;
    }
    let connection = host.connection()?;
    for table in surface.tables {
        virtual_table::register(&connection, table)?;
    }
    // Last: a handle that is watched is one where everything is registered.
    handle::watch(&connection, surface.guard, host.handle_id())
}

/// Leaves the message where SQLite looks for it, in memory that SQLite can free.
///
/// # Safety
/// As for [`load`].
unsafe fn report(error_text: *mut *mut c_char, routines: *mut sqlite3_api_routines, message: &str) {
    if error_text.is_null() || routines.is_null() {
        return;
    }
    // SAFETY: SQLite's own table; one member is read (see `initialise`).
    let Some(malloc) = (unsafe { (*routines).malloc }) else { return };
    let Ok(size) = c_int::try_from(message.len().saturating_add(1)) else { return };
    // SAFETY: SQLite's own allocator, initialised by the host that is loading us. The memory is
    // checked, large enough for the text and its NUL, and given to SQLite through its pointer.
    unsafe {
        let memory = malloc(size).cast::<u8>();
        if memory.is_null() {
            return;
        }
        memory.copy_from_nonoverlapping(message.as_ptr(), message.len());
        memory.add(message.len()).write(0);
        *error_text = memory.cast();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_old_host_is_told_both_versions() {
        let error = check_version(3_033_000).unwrap_err().message;
        assert!(error.contains("SQLite 3.34.1 or newer is needed; this host has 3.33.0."));
        assert!(check_version(3_034_000).is_err());
        assert!(check_version(3_034_001).is_ok() && check_version(3_051_002).is_ok());
    }
}
