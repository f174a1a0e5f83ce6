//! Core's tests in a browser: the very files of `core/tests`, on SQLite compiled to WebAssembly and
//! the VFS of the browser build, in memory. `wasm/tests/core.test.mjs` loads the module and calls each test.
//!
//! Left out: what needs threads (`model`, `simulator`, `groups`), an allocator of its own (`storm`), or files of
//! the system (`browser_vfs`, `docs`, `identity`, `noise`); core's unit tests, which are part of core
//! itself. `make browser-sql` plays the scenarios of `sql-tests`.

#![cfg(target_family = "wasm")]
// Each of these files is a crate of its own in `core`, with the modules that it shares with others.
#![allow(clippy::duplicate_mod)]

#[macro_use]
extern crate wavesync_core_tests_attribute;
// What the tests take from the crate tempfile is here: a browser has no folders.
extern crate self as tempfile;

#[path = "../../../core/tests/apply.rs"]
mod apply;
#[path = "../../../core/tests/auth.rs"]
mod auth;
#[path = "../../../core/tests/bulk.rs"]
mod bulk;
#[path = "../../../core/tests/changes.rs"]
mod changes;
#[path = "../../../core/tests/constraints.rs"]
mod constraints;
#[path = "../../../core/tests/contact.rs"]
mod contact;
#[path = "../../../core/tests/fold.rs"]
mod fold;
#[path = "../../../core/tests/held.rs"]
mod held;
#[path = "../../../core/tests/integer_keys.rs"]
mod integer_keys;
#[path = "../../../core/tests/merge.rs"]
mod merge;
#[path = "../../../core/tests/moves.rs"]
mod moves;
#[path = "../../../core/tests/orders.rs"]
mod orders;
#[path = "../../../core/tests/parked_schema.rs"]
mod parked_schema;
#[path = "../../../core/tests/parked_work.rs"]
mod parked_work;
#[path = "../../../core/tests/progress.rs"]
mod progress;
#[path = "../../../core/tests/schema.rs"]
mod schema;
#[path = "../../../core/tests/seals.rs"]
mod seals;
#[path = "../../../core/tests/store.rs"]
mod store;
#[path = "../../../core/tests/tables.rs"]
mod tables;
#[path = "../../src/vfs.rs"]
mod vfs;

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rusqlite::ffi;
use wasm_bindgen::prelude::wasm_bindgen;

static FOLDERS: AtomicU32 = AtomicU32::new(0);

/// Names in memory that nobody else uses.
pub struct TempDir(PathBuf);

impl TempDir {
    /// What its files begin with.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

/// A new one.
///
/// # Errors
/// None; the crate of this name may fail.
pub fn tempdir() -> Result<TempDir, Infallible> {
    Ok(TempDir(format!("/{}", FOLDERS.fetch_add(1, Ordering::Relaxed)).into()))
}

#[wasm_bindgen]
extern "C" {
    #[wasm_bindgen(js_namespace = console, js_name = error)]
    fn console_error(text: &str);
}

/// Databases are opened with the VFS of the browser build, as two connections need it.
#[wasm_bindgen(start)]
#[allow(unsafe_code)]
fn prepare() {
    std::panic::set_hook(Box::new(|panic| console_error(&panic.to_string())));
    // SAFETY: SQLite is not used yet, and the VFS stays registered.
    let done = unsafe {
        ffi::sqlite3_initialize();
        vfs::register(c"memvfs").is_ok_and(|()| {
            let found = ffi::sqlite3_vfs_find(vfs::NAME.as_ptr());
            ffi::sqlite3_vfs_register(found, 1) == ffi::SQLITE_OK
        })
    };
    assert!(done, "SQLite did not take the VFS");
}
