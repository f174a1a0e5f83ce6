//! The stack that peers and relays share: TCP or websocket, with names resolved below TLS, Noise,
//! yamux. A peer adds circuits through relays, a relay may add a certificate.

use std::{env, fs, io, path::Path, time::Duration};

use libp2p::{
    PeerId, Transport,
    core::{
        muxing::StreamMuxerBox,
        transport::{Boxed, OptionalTransport},
        upgrade::Version,
    },
    identity::Keypair,
    noise, relay, websocket, yamux,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use crate::{DnsTransport, TcpTransport};

/// Names a file of certificates in PEM that are trusted for `/wss` besides the public authorities.
pub const TRUST_VARIABLE: &str = "SSL_CERT_FILE";
/// Dialing and all handshakes together.
const CONNECT_TIMEOUT_SECONDS: u64 = 20;

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

/// A certificate chain and its key, for listening at `/wss`.
pub struct Certificate {
    chain: Vec<websocket::tls::Certificate>,
    key: websocket::tls::PrivateKey,
}

impl Certificate {
    /// Reads both from files in PEM.
    pub fn from_files(chain: &Path, key: &Path) -> Result<Certificate, StackError> {
        let failed = |path: &Path, reason: String| {
            StackError::Certificate(format!("{}: {reason}", path.display()))
        };
        let certificates = read_certificates(chain).map_err(|reason| failed(chain, reason))?;
        if certificates.is_empty() {
            return Err(failed(chain, "it holds no certificate in PEM".to_owned()));
        }
        let text = fs::read(key).map_err(|error| failed(key, error.to_string()))?;
        let der = PrivateKeyDer::from_pem_slice(&text)
            .map_err(|_| failed(key, "it holds no private key in PEM".to_owned()))?;
        let der = der.secret_der().to_vec();
        // The websocket transport reads the key's form again and knows fewer of them.
        if PrivateKeyDer::try_from(der.as_slice()).is_err() {
            return Err(failed(key, "this form of private key is not supported".to_owned()));
        }
        Ok(Certificate { chain: certificates, key: websocket::tls::PrivateKey::new(der) })
    }
}

fn read_certificates(path: &Path) -> Result<Vec<websocket::tls::Certificate>, String> {
    let text = fs::read(path).map_err(|error| error.to_string())?;
    CertificateDer::pem_slice_iter(&text)
        .map(|certificate| {
            let certificate = certificate.map_err(|error| format!("{error:?}"))?;
            Ok(websocket::tls::Certificate::new(certificate.to_vec()))
        })
        .collect()
}

/// Builds the stack. Without `circuits` nothing is dialed or heard through relays.
///
/// # Errors
/// If the key, the certificate or the file of [`TRUST_VARIABLE`] can not be used.
pub fn stack(
    keypair: &Keypair,
    circuits: Option<relay::client::Transport>,
    certificate: Option<Certificate>,
) -> Result<Connections, StackError> {
    let noise =
        noise::Config::new(keypair).map_err(|error| StackError::Identity(error.to_string()))?;
    let mut websocket = websocket::Config::new(DnsTransport::new(TcpTransport::new()));
    websocket.set_tls_config(tls(certificate)?);
    let circuits = circuits.map_or_else(OptionalTransport::none, OptionalTransport::some);
    Ok(circuits
        .or_transport(websocket)
        .or_transport(DnsTransport::new(TcpTransport::new()))
        .upgrade(Version::V1)
        .authenticate(noise)
        .multiplex(yamux::Config::default())
        .timeout(Duration::from_secs(CONNECT_TIMEOUT_SECONDS))
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)))
        .map_err(io::Error::other)
        .boxed())
}

fn tls(certificate: Option<Certificate>) -> Result<websocket::tls::Config, StackError> {
    let refused = |error: websocket::tls::Error| StackError::Certificate(error.to_string());
    let mut builder = websocket::tls::Config::builder();
    if let Some(certificate) = certificate {
        builder.server(certificate.key, certificate.chain).map_err(refused)?;
    }
    if let Some(path) = env::var_os(TRUST_VARIABLE) {
        let path = Path::new(&path);
        // Set for other programs as often as for us: what is of no use is left out.
        match read_certificates(path) {
            Ok(trusted) => {
                for certificate in &trusted {
                    if let Err(error) = builder.add_trust(certificate) {
                        tracing::warn!(path = %path.display(), %error, "not trusted");
                    }
                }
            }
            Err(reason) => tracing::warn!(path = %path.display(), %reason, "{TRUST_VARIABLE}"),
        }
    }
    Ok(builder.finish())
}
