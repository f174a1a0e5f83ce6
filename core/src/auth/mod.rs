//! Who belongs to the group: the group key, the mutual handshake, and sealed frames.
//!
//! This is the one place that verifies anything. A frame is bytes until [`Channel::open`] has
//! verified it; an [`Opened`] cannot be made in any other way (invariants I8, I9).

mod channel;
mod handshake;
mod key;
mod passphrase;

pub use channel::{Channel, Opened};
pub use handshake::{Accepting, Greeting, Offering, Proof, Session};
pub use key::{GroupKey, check_passphrase, lan_tag};
pub use passphrase::{PASSPHRASE_BITS, make as make_passphrase, weakness};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// HMAC-SHA256 over the parts, each preceded by its length, so that no two lists of parts collide.
fn mac(key: &[u8; 32], parts: &[&[u8]]) -> Hmac<Sha256> {
    let mut mac =
        <Hmac<Sha256> as KeyInit>::new_from_slice(key).expect("HMAC takes any key length");
    for part in parts {
        mac.update(&(part.len() as u64).to_be_bytes());
        mac.update(part);
    }
    mac
}

/// HKDF-SHA256 (RFC 5869), expanded to `N` bytes.
fn derive<const N: usize>(secret: &[u8], salt: &[u8], info: &[&[u8]]) -> [u8; N] {
    let mut out = [0u8; N];
    hkdf::Hkdf::<Sha256>::new(Some(salt), secret)
        .expand_multi_info(info, &mut out)
        .expect("the output is shorter than 255 hashes");
    out
}
