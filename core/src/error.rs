//! The one error type of core: it says whose fault a failure is and whether waiting helps.
//!
//! Must not know: SQL result codes of the host, exit codes, or how an error is shown.

/// What went wrong, sorted by who can do something about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The caller's argument is wrong; the text says what to pass instead.
    #[error("{0}")]
    Argument(String),
    /// The database cannot be used as it is; the text says what to change.
    #[error("{0}")]
    Database(String),
    /// A peer sent bytes that break the protocol. Nothing was changed.
    #[error("protocol error: {0}")]
    Protocol(String),
    /// The content of the database file was replaced under a running engine.
    #[error("the content of the database file was replaced, as if an old copy was restored")]
    Replaced,
    /// A peer does not hold the group's key, or its message was altered.
    #[error("authentication failed: {0}")]
    Auth(String),
    /// SQLite refused a statement.
    #[error("SQLite: {0}")]
    Sqlite(#[from] rusqlite::Error),
}

/// Shorthand used by the whole crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Whether the same call may succeed later without anybody changing anything.
    #[must_use]
    pub fn retryable(&self) -> bool {
        match self {
            Self::Sqlite(rusqlite::Error::SqliteFailure(failure, _)) => matches!(
                failure.code,
                rusqlite::ErrorCode::DatabaseBusy
                    | rusqlite::ErrorCode::DatabaseLocked
                    | rusqlite::ErrorCode::DiskFull
                    | rusqlite::ErrorCode::OutOfMemory
                    | rusqlite::ErrorCode::SystemIoFailure
            ),
            Self::Argument(_) | Self::Database(_) | Self::Protocol(_) | Self::Auth(_) => false,
            Self::Replaced | Self::Sqlite(_) => false,
        }
    }

    pub(crate) fn protocol(text: impl Into<String>) -> Self {
        Self::Protocol(text.into())
    }
}
