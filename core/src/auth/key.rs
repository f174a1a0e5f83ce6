//! The group key: Argon2id over the passphrase, salted by the topic, and its subkeys.

use crate::auth::derive;
use crate::machine::PeerId;
use crate::mutants::{self, Mutant};
use crate::store::group::check_topic;
use crate::{Error, Result, limits};

/// Memory of Argon2id in KiB, the same on every platform; part of the group format.
const ARGON2_MEMORY_KIB: u32 = 46 * 1024;
/// Passes of Argon2id.
const ARGON2_PASSES: u32 = 3;
/// Lanes of Argon2id.
const ARGON2_LANES: u32 = 1;
/// Version of everything derived here.
const FORMAT_TAG: &[u8] = b"wavesync group key 1";

/// What members of a group share. It never leaves the process.
#[derive(Clone)]
pub struct GroupKey {
    master: [u8; 32],
}

impl GroupKey {
    /// Derives the key with Argon2id (RFC 9106): 46 MiB, 3 passes.
    /// That takes long enough to be felt: it must not run on a thread that answers SQL.
    ///
    /// # Errors
    /// [`Error::Argument`] for a topic or passphrase that cannot be used.
    pub fn from_passphrase(topic: &str, passphrase: &str) -> Result<Self> {
        check_topic(topic)?;
        check_passphrase(passphrase)?;
        let named = if mutants::on(Mutant::KeyWithoutTopic) { "" } else { topic };
        let secret = if mutants::on(Mutant::KeyWithoutPassphrase) { "" } else { passphrase };
        let salt: [u8; 32] = derive(named.as_bytes(), FORMAT_TAG, &[b"salt"]);
        let params = argon2::Params::new(ARGON2_MEMORY_KIB, ARGON2_PASSES, ARGON2_LANES, Some(32))
            .expect("the parameters are constants within Argon2's limits");
        let hasher =
            argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params);
        let mut master = [0u8; 32];
        hasher
            .hash_password_into(secret.as_bytes(), &salt, &mut master)
            .map_err(|error| Error::Auth(format!("the group key cannot be derived: {error}")))?;
        Ok(Self { master })
    }

    /// A key from 32 secret bytes, for groups that do not use a passphrase.
    #[must_use]
    pub fn from_secret(secret: [u8; 32]) -> Self {
        Self { master: derive(&secret, FORMAT_TAG, &[b"secret"]) }
    }

    fn subkey<const N: usize>(&self, purpose: &[u8]) -> [u8; N] {
        let purpose = if mutants::on(Mutant::OneSubkey) { b"" } else { purpose };
        derive(&self.master, FORMAT_TAG, &[purpose])
    }

    pub(super) fn handshake(&self) -> [u8; 32] {
        self.subkey(b"handshake")
    }

    pub(super) fn session(&self) -> [u8; 32] {
        self.subkey(b"session")
    }

    /// The key of the tags by which members recognise each other in the local network
    /// ([`lan_tag`]). It tells nothing else of the group, and is another one in each.
    #[must_use]
    pub fn lan_key(&self) -> [u8; 32] {
        self.subkey(b"local network key")
    }

    /// The opaque tag under which members meet at a relay; another one at each relay, so that
    /// relays can not tell together who is in one group.
    #[must_use]
    pub fn meeting_tag(&self, relay: &PeerId) -> [u8; 32] {
        derive(&self.master, FORMAT_TAG, &[b"meeting tag", &relay.0])
    }
}

/// What a member shows in the local network: whoever has the group's [`GroupKey::lan_key`] knows
/// from it that this peer is one, and nobody else sees that two members have anything in common.
#[must_use]
pub fn lan_tag(lan_key: &[u8; 32], member: &PeerId) -> [u8; 16] {
    derive(lan_key, FORMAT_TAG, &[b"local network tag", &member.0])
}

impl std::fmt::Debug for GroupKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("GroupKey(…)")
    }
}

/// Checks a passphrase without deriving anything.
pub fn check_passphrase(passphrase: &str) -> Result<()> {
    if passphrase.is_empty() {
        return Err(Error::Argument(
            "the passphrase is empty; everybody who knows it is a member of the group".into(),
        ));
    }
    if passphrase.len() > limits::PASSPHRASE_MAX_BYTES {
        return Err(Error::Argument(format!(
            "the passphrase must be at most {} bytes",
            limits::PASSPHRASE_MAX_BYTES
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tag of the local network is public: no other subkey may follow from it.
    fn subkeys_differ() -> bool {
        let key = GroupKey::from_secret([7; 32]);
        let other = GroupKey::from_secret([8; 32]);
        key.handshake() != key.session()
            && key.handshake() != key.lan_key()
            && key.session() != key.lan_key()
            && key.lan_key() != other.lan_key()
            && key.handshake() != other.handshake()
            && key.session() != other.session()
    }

    #[test]
    fn every_subkey_is_its_own() {
        assert!(subkeys_differ());
        #[cfg(feature = "mutants")]
        {
            mutants::set(Some(Mutant::OneSubkey));
            let differ = subkeys_differ();
            mutants::set(None);
            assert!(!differ, "the mutant is not noticed");
        }
    }
}
