//! The relay's key, from which its peer id follows: peers know a relay by address and peer id, so
//! a relay that restarts has to keep it.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    path::Path,
};

use libp2p::identity::{Keypair, ed25519};

use crate::error::RelayError;

const SEED_BYTES: usize = 32;

/// The key in `path`, made there when the file is missing; a fresh one without a path.
pub(crate) fn load_or_create(path: Option<&Path>) -> Result<Keypair, RelayError> {
    let Some(path) = path else { return Ok(ed25519::Keypair::generate().into()) };
    let failed = |source| RelayError::IdentityFile { path: path.to_owned(), source };
    match fs::read_to_string(path) {
        Ok(text) => {
            decode(&text).ok_or_else(|| RelayError::IdentityContent { path: path.to_owned() })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let keypair = ed25519::Keypair::generate();
            create(path, &keypair).map_err(failed)?;
            Ok(keypair.into())
        }
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            Err(RelayError::IdentityContent { path: path.to_owned() })
        }
        Err(error) => Err(failed(error)),
    }
}

fn create(path: &Path, keypair: &ed25519::Keypair) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    let text: String = keypair.secret().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    writeln!(file, "{text}")?;
    file.sync_all()
}

fn decode(text: &str) -> Option<Keypair> {
    let text = text.trim();
    if text.len() != 2 * SEED_BYTES || !text.is_ascii() {
        return None;
    }
    let mut seed = [0; SEED_BYTES];
    for (byte, index) in seed.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(&text[index..index + 2], 16).ok()?;
    }
    Keypair::ed25519_from_bytes(seed).ok()
}
