//! wavesync in the browser: core over SQLite compiled to WebAssembly.
//!
//! So far a replica in memory that exchanges changes as blobs; the network and persistent storage
//! are not part of this build yet. No protocol decision is made in this crate.

pub mod vfs;

use rusqlite::Connection;
use rusqlite::config::DbConfig;
use wasm_bindgen::prelude::wasm_bindgen;
use wavesync_core::ids::{Millis, Seq};
use wavesync_core::store::Store;
use wavesync_core::store::group::Join;
use wavesync_core::store::identity::FileIdentity;

/// The version of this package.
#[wasm_bindgen]
#[must_use]
pub fn version() -> String {
    env!("CARGO_PKG_VERSION").to_owned()
}

/// A database in memory that is a replica of a group.
#[wasm_bindgen]
pub struct Replica {
    store: Store,
}

#[wasm_bindgen]
impl Replica {
    /// Creates an empty replica. `random` must be 64 bytes of `crypto.getRandomValues`, `now_ms`
    /// is `Date.now()`.
    ///
    /// # Errors
    /// If the topic cannot be used, `random` has another length, or SQLite fails.
    #[wasm_bindgen(constructor)]
    pub fn new(topic: &str, random: &[u8], now_ms: f64) -> Result<Replica, String> {
        let random: &[u8; 64] =
            random.try_into().map_err(|_| "64 random bytes are needed".to_owned())?;
        let conn = Connection::open_in_memory().map_err(|error| error.to_string())?;
        let mut store = Store::open(conn).map_err(|error| error.to_string())?;
        let join = Join { topic: topic.to_owned(), adopt_schema: Some(true), ..Join::default() };
        let file = FileIdentity(format!("memory:{:02x?}", &random[..8]));
        store.join(millis(now_ms), &join, &file, random).map_err(|error| error.to_string())?;
        store.start(millis(now_ms), &file, random).map_err(|error| error.to_string())?;
        Ok(Replica { store })
    }

    /// Runs SQL statements.
    ///
    /// # Errors
    /// If SQLite refuses one; those before it stay done.
    pub fn execute(&mut self, sql: &str) -> Result<(), String> {
        let conn = self.store.connection();
        // The replica and the application share one connection here, and only what the
        // application writes is to be captured.
        let run = || {
            conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, true)?;
            let done = conn.execute_batch(sql);
            conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
            done
        };
        run().map_err(|error| error.to_string())
    }

    /// Everything logged after a position, to be handed to another replica.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn export(&mut self, since: f64, now_ms: f64) -> Result<Vec<u8>, String> {
        let since = Seq(since.clamp(0.0, MAX_EXACT) as i64);
        self.store.export(millis(now_ms), since).map_err(|error| error.to_string())
    }

    /// Takes in what another replica exported; returns the number of rows that changed.
    ///
    /// # Errors
    /// If the blob is damaged; nothing is changed then.
    pub fn apply(&mut self, blob: &[u8], now_ms: f64) -> Result<f64, String> {
        let applied = self.store.import(millis(now_ms), blob).map_err(|error| error.to_string())?;
        Ok(applied.changed as f64)
    }
}

/// Whole numbers up to here are exact in JavaScript.
const MAX_EXACT: f64 = 9_007_199_254_740_991.0;

fn millis(now_ms: f64) -> Millis {
    Millis(now_ms.clamp(0.0, MAX_EXACT) as u64)
}
