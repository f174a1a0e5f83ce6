//! The border to C: the entry point, scalar functions, virtual tables and the life of a handle.
//! The only module with `unsafe`; it must not know what any function or table is for.

mod entry;
mod fork;
mod function;
pub mod handle;
mod host;
mod panic;
mod virtual_table;

pub use entry::{Surface, load};
pub use fork::working;
pub use function::{CallContext, SqlFunction};
pub use handle::{forked, on_handle_closed};
pub use host::{DatabasePath, Host, HostConnection};

use std::fmt;

/// Why a function or a table refused. The text goes to the user of the host program as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqlError {
    /// Whose fault it is, what to do, and whether waiting helps.
    pub message: String,
}

impl SqlError {
    /// An error with this text. In SQL all of them begin with `wavesync: `, so that nobody looks
    /// for the fault elsewhere.
    pub fn new(message: impl Into<String>) -> Self {
        let message = message.into();
        if message.starts_with("wavesync: ") {
            return Self { message };
        }
        Self { message: format!("wavesync: {message}") }
    }
}

impl fmt::Display for SqlError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.message)
    }
}

impl std::error::Error for SqlError {}

impl From<rusqlite::Error> for SqlError {
    fn from(error: rusqlite::Error) -> Self {
        Self::new(format!("wavesync: SQLite said: {error}"))
    }
}

impl From<wavesync_core::Error> for SqlError {
    fn from(error: wavesync_core::Error) -> Self {
        Self::new(format!("wavesync: {error}"))
    }
}
