//! Files in the origin private file system: the pool of access handles that SQLite writes through.
//!
//! The pool takes a file whose header it does not understand for an unused one and empties it, so
//! the Worker looks at the headers before it calls [`install`].

use std::cell::RefCell;

use rusqlite::ffi::WasmOsCallback;
use sqlite_wasm_vfs::sahpool::{OpfsSAHError, OpfsSAHPoolCfgBuilder, OpfsSAHPoolUtil};
use wasm_bindgen::prelude::wasm_bindgen;
use wasm_bindgen::{JsCast, JsValue};

use crate::error::{Fault, Result};

/// Name of the pool's VFS.
pub const VFS: &std::ffi::CStr = c"wavesync-pool";
/// Database, its WAL, the file that tells it from a copy, a file that is being imported, and a
/// journal for each.
const FILES: u32 = 8;

thread_local! {
    static POOL: RefCell<Option<OpfsSAHPoolUtil>> = const { RefCell::new(None) };
}

/// Opens the pool in a folder of the origin private file system. A Worker has one.
///
/// # Errors
/// `in_use` while another Worker has it, `no_opfs`, `quota_exceeded` or `io`.
#[wasm_bindgen(js_name = poolInstall)]
pub async fn install(directory: String) -> Result<(), JsValue> {
    let config = OpfsSAHPoolCfgBuilder::new()
        .vfs_name("wavesync-pool")
        .directory(&directory)
        .initial_capacity(FILES);
    let pool = sqlite_wasm_vfs::sahpool::install::<WasmOsCallback>(&config.build(), false)
        .await
        .map_err(|error| JsValue::from(described(&error)))?;
    POOL.with_borrow_mut(|slot| *slot = Some(pool));
    Ok(())
}

/// Runs something with the pool.
///
/// # Errors
/// `no_opfs` if none is installed, or what the pool says.
pub fn with<T>(body: impl FnOnce(&OpfsSAHPoolUtil) -> Result<T, OpfsSAHError>) -> Result<T> {
    POOL.with_borrow(|pool| match pool {
        Some(pool) => body(pool).map_err(|error| described(&error)),
        None => Err(Fault::new("no_opfs", "this database is in memory only", "")),
    })
}

/// The browser's own error, if there is one behind that of the pool.
fn cause(error: &OpfsSAHError) -> Option<(String, String)> {
    use OpfsSAHError as E;
    let (E::GetDirHandle(value)
    | E::GetFileHandle(value)
    | E::CreateSyncAccessHandle(value)
    | E::IterHandle(value)
    | E::GetPath(value)
    | E::RemoveEntity(value)
    | E::GetSize(value)
    | E::Read(value)
    | E::Write(value)
    | E::Flush(value)
    | E::Truncate(value)
    | E::Reflect(value)) = error
    else {
        return None;
    };
    let error = value.dyn_ref::<js_sys::Error>()?;
    Some((error.name().into(), error.message().into()))
}

fn described(error: &OpfsSAHError) -> Fault {
    let (name, said) = cause(error).unwrap_or_default();
    let message = if said.is_empty() { error.to_string() } else { format!("{error}: {said}") };
    match name.as_str() {
        "NoModificationAllowedError" | "InvalidStateError" => Fault::new(
            "in_use",
            message,
            "another tab has this database open with something else than this package",
        ),
        "QuotaExceededError" => Fault::new(
            "quota_exceeded",
            message,
            "the browser gives this site no more room: delete data, or ask the user for \
             persistent storage with navigator.storage.persist()",
        ),
        "SecurityError" | "TypeError" | "NotSupportedError" => Fault::new(
            "no_opfs",
            message,
            "this window may not store files (private mode, or a browser that is too old); \
             open(name, {storage: 'memory'}) works without, and keeps nothing",
        ),
        _ => Fault::new("io", message, "the browser's storage failed"),
    }
}
