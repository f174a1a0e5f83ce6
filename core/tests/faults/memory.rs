//! SQLite's memory, from the system's allocator, with allocations that fail on demand. Which one
//! fails is set for each thread, and counts only while that is switched on.

#![allow(unsafe_code, reason = "an allocator is a table of C functions")]

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::ptr::null_mut;
use std::sync::OnceLock;

use rusqlite::ffi;

use crate::counter::Counter;

thread_local! {
    static ON: Cell<bool> = const { Cell::new(false) };
    pub static CALLS: Counter = const { Counter::new() };
}

/// What SQLite would use by itself.
static SYSTEM: OnceLock<Methods> = OnceLock::new();

#[derive(Clone, Copy)]
struct Methods(ffi::sqlite3_mem_methods);

// SAFETY: the table holds functions that may be called on any thread, and a null pointer.
unsafe impl Send for Methods {}
// SAFETY: as above; it is never changed.
unsafe impl Sync for Methods {}

/// Puts itself between SQLite and its allocator. Must come before any other use of SQLite.
pub fn register() {
    SYSTEM.get_or_init(|| {
        // SAFETY: SQLite fills the table with functions that it has; nothing of it is used yet.
        let system = unsafe {
            let mut system: ffi::sqlite3_mem_methods = std::mem::zeroed();
            let code = ffi::sqlite3_config(ffi::SQLITE_CONFIG_GETMALLOC, &raw mut system);
            assert_eq!(code, ffi::SQLITE_OK, "SQLite tells how it allocates");
            system
        };
        let mut own = system;
        own.xMalloc = Some(allocate);
        own.xRealloc = Some(reallocate);
        // SAFETY: SQLite copies the table. The functions below use the one that it had before.
        let code = unsafe { ffi::sqlite3_config(ffi::SQLITE_CONFIG_MALLOC, &raw mut own) };
        assert_eq!(code, ffi::SQLITE_OK, "SQLite was not used before");
        Methods(system)
    });
}

/// Allocations from now on are the engine's, or are not.
pub fn switch(on: bool) {
    ON.set(on);
}

fn trips() -> bool {
    ON.get() && CALLS.with(Counter::trips)
}

unsafe extern "C" fn allocate(size: c_int) -> *mut c_void {
    if trips() {
        return null_mut();
    }
    let system = SYSTEM.get().expect("it was read before").0;
    // SAFETY: the same call of SQLite's own allocator.
    unsafe { system.xMalloc.expect("an allocator allocates")(size) }
}

unsafe extern "C" fn reallocate(memory: *mut c_void, size: c_int) -> *mut c_void {
    if trips() {
        return null_mut();
    }
    let system = SYSTEM.get().expect("it was read before").0;
    // SAFETY: the same call of SQLite's own allocator, from which the memory is.
    unsafe { system.xRealloc.expect("an allocator allocates")(memory, size) }
}
