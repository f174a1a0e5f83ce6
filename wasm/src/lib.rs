//! wavesync in the browser: core over SQLite compiled to WebAssembly.
//!
//! So far the application's side of it: the engine is not part of this build yet. No protocol
//! decision is made in this crate.

pub mod db;
pub mod error;
pub mod vfs;

use wasm_bindgen::prelude::wasm_bindgen;

/// The version of this package.
#[wasm_bindgen]
#[must_use]
pub fn version() -> String {
    env!("CARGO_PKG_VERSION").to_owned()
}
