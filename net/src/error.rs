//! What can go wrong when the network is asked for something. What goes wrong later, between peers,
//! arrives as events.

use std::io;

/// Why a call to the network was refused.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The caller's: this is no address. Waiting does not help.
    #[error("{address:?} is not a usable address: {reason}; write it like /ip4/192.0.2.7/tcp/4001")]
    Address {
        /// What was given.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The caller's: this is no relay. Waiting does not help.
    #[error(
        "{address:?} is not the address of a relay: {reason}; write it as the relay shows it, like \
         /dns4/relay.example/tcp/443/tls/ws/p2p/12D3Koo…"
    )]
    Relay {
        /// What was given.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The caller's: these bytes or this text name no peer. Waiting does not help.
    #[error("{given:?} is not a peer id: {reason}")]
    Peer {
        /// What was given.
        given: String,
        /// What is wrong with it.
        reason: String,
    },
    /// This side's: the identity can not be used for encryption. Waiting does not help.
    #[error("the identity key can not be used: {0}")]
    Identity(String),
    /// This side's: the system refused what a network needs.
    #[error("the network can not start: {0}")]
    Io(#[from] io::Error),
    /// Too much at once; waiting helps.
    #[error("{pending} dials are under way already; wait until some of them end")]
    TooManyDials {
        /// How many.
        pending: usize,
    },
}
