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
                    | rusqlite::ErrorCode::FileLockingProtocolFailed
            ),
            Self::Argument(_) | Self::Database(_) | Self::Protocol(_) | Self::Auth(_) => false,
            Self::Replaced | Self::Sqlite(_) => false,
        }
    }

    /// Whether another connection is in the way, and for how long only that one decides.
    #[must_use]
    pub fn is_lock(&self) -> bool {
        use rusqlite::ErrorCode as Code;
        let Self::Sqlite(rusqlite::Error::SqliteFailure(failure, _)) = self else { return false };
        matches!(failure.code, Code::DatabaseBusy | Code::DatabaseLocked)
    }

    /// Whether SQLite, the file or the machine failed, and not what was asked of it.
    pub(crate) fn is_fault(&self) -> bool {
        use rusqlite::ErrorCode as Code;
        let Self::Sqlite(rusqlite::Error::SqliteFailure(failure, _)) = self else { return false };
        !matches!(
            failure.code,
            Code::Unknown
                | Code::ConstraintViolation
                | Code::TooBig
                | Code::TypeMismatch
                | Code::AuthorizationForStatementDenied
        )
    }

    /// What to do about it, if SQLite failed; for anything else the text says that itself.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        use rusqlite::ErrorCode as Code;
        let Self::Sqlite(rusqlite::Error::SqliteFailure(failure, _)) = self else {
            return "see the message";
        };
        match failure.code {
            Code::DatabaseBusy | Code::DatabaseLocked => {
                "some connection keeps the file locked: end its transaction; one with PRAGMA \
                 locking_mode = EXCLUSIVE keeps the lock until it is NORMAL again"
            }
            Code::DiskFull => "make room on the disk; it is tried again",
            Code::OutOfMemory => "there is too little memory; it is tried again",
            Code::SystemIoFailure if failure.extended_code == rusqlite::ffi::SQLITE_IOERR_NOMEM => {
                "there is too little memory; it is tried again"
            }
            Code::SystemIoFailure => {
                "the file cannot be read or written: look at the disk and its file system; it is \
                 tried again"
            }
            Code::CannotOpen | Code::ReadOnly | Code::PermissionDenied => {
                "the file and its directory must be readable and writable for this program; it is \
                 tried again"
            }
            Code::DatabaseCorrupt | Code::NotADatabase => {
                "the file, or what the disk gave of it, is damaged: PRAGMA integrity_check tells; \
                 what was synced is at the other members"
            }
            _ => "see the message",
        }
    }

    pub(crate) fn protocol(text: impl Into<String>) -> Self {
        Self::Protocol(text.into())
    }
}
