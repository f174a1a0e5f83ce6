//! Certificates: those trusted for `/wss`, and the own one of a relay.

use std::{env, fs, path::Path};

use libp2p::websocket;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use super::StackError;

/// Names a file of certificates in PEM that are trusted for `/wss` besides the public authorities.
pub const TRUST_VARIABLE: &str = "SSL_CERT_FILE";

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

/// The TLS side of the websockets.
pub(super) fn config(
    certificate: Option<Certificate>,
) -> Result<websocket::tls::Config, StackError> {
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
