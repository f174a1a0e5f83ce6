//! Why a relay does not start, or ends.

use std::{io, path::PathBuf};

/// Shown to whoever started the relay.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RelayError {
    /// The command line is wrong.
    #[error("{0}; see wavesync-relay --help")]
    Usage(String),
    /// The identity file can not be read or written.
    #[error("the identity file {path:?} can not be used: {source}")]
    IdentityFile { path: PathBuf, source: io::Error },
    /// The identity file holds something else.
    #[error(
        "the identity file {path:?} holds no key (64 hexadecimal digits); move it away and the \
         relay makes a new one, with a new peer id"
    )]
    IdentityContent { path: PathBuf },
    /// The encryption refuses the identity.
    #[error("the identity can not be used: {0}")]
    Identity(String),
    /// A listening address does not work.
    #[error("can not listen at {address}: {reason}")]
    Listen { address: String, reason: String },
    /// Signals can not be received.
    #[error("can not wait for signals: {0}")]
    Signals(io::Error),
    /// Standard output is closed.
    #[error("can not write to standard output: {0}")]
    Output(io::Error),
}
