//! wavesync in the browser: core over SQLite compiled to WebAssembly, and the network, in one dedicated
//! Worker.
//!
//! No protocol decision is made in this crate.

pub mod db;
pub mod engine;
pub mod error;
pub mod vfs;

use wasm_bindgen::prelude::wasm_bindgen;

/// The version of this package.
#[wasm_bindgen]
#[must_use]
pub fn version() -> String {
    env!("CARGO_PKG_VERSION").to_owned()
}
