//! Why a relay does not start, or ends.

use std::{io, path::PathBuf};

/// Shown to whoever started the relay.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// The configuration is wrong.
    #[error("{0}; see wavesync-relay --help")]
    Usage(String),
    /// The configuration file can not be read or understood.
    #[error("the configuration file {path:?} can not be used: {reason}")]
    ConfigFile {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The identity file can not be read or written.
    #[error("the identity file {path:?} can not be used: {source}")]
    IdentityFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The identity file holds something else.
    #[error(
        "the identity file {path:?} holds no key (64 hexadecimal digits); move it away and the \
         relay makes a new one, with a new peer id"
    )]
    IdentityContent {
        /// The file.
        path: PathBuf,
    },
    /// The encryption refuses the identity, or the certificate is of no use.
    #[error(transparent)]
    Stack(#[from] wavesync_transport::StackError),
    /// A listening address does not work.
    #[error("can not listen at {address}: {reason}")]
    Listen {
        /// The address.
        address: String,
        /// Why.
        reason: String,
    },
    /// Signals can not be received.
    #[error("can not wait for signals: {0}")]
    Signals(io::Error),
    /// Standard output is closed.
    #[error("can not write to standard output: {0}")]
    Output(io::Error),
}
