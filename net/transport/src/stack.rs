//! The stack that peers and relays share: a transport of the platform, Noise, yamux. A peer adds
//! circuits through relays.
//!
//! Native: TCP or websocket, with names resolved below TLS; a relay may add a certificate. In a
//! browser: its websockets, which resolve names and check certificates themselves.

#[cfg(not(target_family = "wasm"))]
mod tls;

use std::{io, time::Duration};

use libp2p::{
    PeerId, Transport,
    core::{
        muxing::StreamMuxerBox,
        transport::{Boxed, OptionalTransport},
        upgrade::Version,
    },
    identity::Keypair,
    noise, relay, yamux,
};

use crate::gate::{Admission, Gated};

#[cfg(not(target_family = "wasm"))]
pub use tls::{Certificate, TRUST_VARIABLE};

/// Dialing and all handshakes together.
const CONNECT_TIMEOUT_SECONDS: u64 = 20;
/// The longest message of a websocket, in bytes. It carries what Noise writes at once: less than 192 KiB.
#[cfg(not(target_family = "wasm"))]
const WEBSOCKET_MESSAGE_MAX_BYTES: usize = 256 * 1024;

/// Connections, encrypted and multiplexed, with the proven peer.
pub type Connections = Boxed<(PeerId, StreamMuxerBox)>;

/// Why a stack can not be built.
#[derive(Debug, thiserror::Error)]
pub enum StackError {
    /// The keypair does not fit the encryption.
    #[error("the identity key can not be used: {0}")]
    Identity(String),
    /// A certificate or its key is of no use.
    #[error("the certificate can not be used: {0}")]
    Certificate(String),
}

/// Builds the stack. Without `circuits` nothing is dialed or heard through relays; with `admission`
/// little is read of peers that are not on its list.
///
/// # Errors
/// If the key, the certificate or the file of [`TRUST_VARIABLE`] can not be used.
#[cfg(not(target_family = "wasm"))]
pub fn stack(
    keypair: &Keypair,
    circuits: Option<relay::client::Transport>,
    certificate: Option<Certificate>,
    admission: Option<Admission>,
) -> Result<Connections, StackError> {
    use crate::{DnsTransport, TcpTransport};

    let names = || DnsTransport::new(TcpTransport::new());
    let mut websocket = libp2p::websocket::Config::new(names());
    websocket.set_tls_config(tls::config(certificate)?);
    websocket.set_max_data_size(WEBSOCKET_MESSAGE_MAX_BYTES);
    secured(keypair, circuits, websocket.or_transport(names()), admission)
}

/// Builds the stack of a browser. Without `circuits` nothing is heard or dialed through relays; with
/// `admission` little is read of peers that are not on its list.
///
/// # Errors
/// If the key can not be used.
#[cfg(target_family = "wasm")]
pub fn stack(
    keypair: &Keypair,
    circuits: Option<relay::client::Transport>,
    admission: Option<Admission>,
) -> Result<Connections, StackError> {
    secured(keypair, circuits, libp2p::websocket_websys::Transport::default(), admission)
}

/// Puts encryption and multiplexing on circuits and on the platform's transport.
fn secured<T>(
    keypair: &Keypair,
    circuits: Option<relay::client::Transport>,
    platform: T,
    admission: Option<Admission>,
) -> Result<Connections, StackError>
where
    T: Transport + Send + Unpin + 'static,
    T::Output: futures::AsyncRead + futures::AsyncWrite + Send + Unpin + 'static,
    T::Error: Send + Sync + 'static,
    T::Dial: Send + 'static,
    T::ListenerUpgrade: Send + 'static,
{
    let noise =
        noise::Config::new(keypair).map_err(|error| StackError::Identity(error.to_string()))?;
    let circuits = circuits.map_or_else(OptionalTransport::none, OptionalTransport::some);
    Ok(circuits
        .or_transport(platform)
        .upgrade(Version::V1)
        .authenticate(noise)
        .multiplex_ext(move |peer, _| {
            let admission = admission.clone();
            Gated { inner: yamux::Config::default(), peer: *peer, admission }
        })
        .timeout(Duration::from_secs(CONNECT_TIMEOUT_SECONDS))
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)))
        .map_err(io::Error::other)
        .boxed())
}
