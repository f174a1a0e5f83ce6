//! The mutual handshake on a control stream: three messages, one round trip and a half.
//!
//! ```text
//! opener -> acceptor   Greeting { version, nonce }
//! acceptor -> opener   Greeting { version, nonce } + Proof over the transcript, role "acceptor"
//! opener -> acceptor   Proof over the transcript, role "opener"
//! ```
//!
//! The transcript names both peer ids (which the transport has authenticated), both nonces and
//! both versions, so a proof is worth nothing to another peer, in another role, on another
//! connection. Before both proofs are verified, nothing about the group has left either side.

use hmac::Mac;
use serde::{Deserialize, Serialize};

use crate::auth::{Channel, GroupKey, derive, mac};
use crate::mutants::{self, Mutant};
use crate::{Error, Result};

/// Version of the protocol, in the transcript and in the protocol name.
pub const VERSION: u32 = 1;

/// First words of either side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    /// Protocol version.
    pub version: u32,
    /// Fresh random bytes.
    #[serde(with = "serde_bytes")]
    pub nonce: [u8; 32],
}

/// An HMAC over the transcript in one role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof(#[serde(with = "serde_bytes")] pub [u8; 32]);

/// The side that opened the stream, waiting for the acceptor's answer.
pub struct Offering {
    greeting: Greeting,
}

/// The side that accepted the stream, waiting for the opener's proof.
pub struct Accepting {
    transcript: Transcript,
}

/// A proven peer: the secret that this connection's channels are keyed by.
#[derive(Clone)]
pub struct Session {
    secret: [u8; 32],
    opener: bool,
    /// Public name of the session, by which further streams attach to it.
    pub id: [u8; 8],
}

struct Transcript {
    parts: [Vec<u8>; 6],
}

impl Transcript {
    fn new(opener: &[u8], acceptor: &[u8], first: &Greeting, second: &Greeting) -> Self {
        Self {
            parts: [
                opener.to_vec(),
                acceptor.to_vec(),
                first.version.to_be_bytes().to_vec(),
                first.nonce.to_vec(),
                second.version.to_be_bytes().to_vec(),
                second.nonce.to_vec(),
            ],
        }
    }

    fn mac(&self, key: &GroupKey, role: &str) -> hmac::Hmac<sha2::Sha256> {
        let role = if mutants::on(Mutant::ProofWithoutRole) { "" } else { role };
        let mut parts: Vec<&[u8]> = vec![b"wavesync handshake", role.as_bytes()];
        parts.extend(self.parts.iter().map(Vec::as_slice));
        for (mutant, unbound) in [
            (Mutant::ProofWithoutPeers, [2, 3]),
            (Mutant::ProofWithoutVersions, [4, 6]),
            (Mutant::ProofWithoutNonces, [5, 7]),
        ] {
            if mutants::on(mutant) {
                unbound.into_iter().for_each(|at| parts[at] = b"");
            }
        }
        mac(&key.handshake(), &parts)
    }

    fn prove(&self, key: &GroupKey, role: &str) -> Proof {
        Proof(self.mac(key, role).finalize().into_bytes().into())
    }

    fn verify(&self, key: &GroupKey, role: &str, proof: &Proof) -> Result<()> {
        self.mac(key, role)
            .verify_slice(&proof.0)
            .map_err(|_| Error::Auth("the other side has another topic or passphrase".into()))
    }

    fn session(&self, key: &GroupKey, opener: bool) -> Session {
        let mut salt = self.parts[3].clone();
        salt.extend_from_slice(&self.parts[5]);
        if mutants::on(Mutant::SessionWithoutNonces) {
            salt.clear();
        }
        let mut info: Vec<&[u8]> = vec![&self.parts[0], b"|", &self.parts[1]];
        if mutants::on(Mutant::SessionWithoutPeers) {
            info.clear();
        }
        let secret: [u8; 32] = derive(&key.session(), &salt, &info);
        Session { secret, opener, id: derive(&secret, b"session id", &[]) }
    }
}

impl Offering {
    /// Starts a handshake with a fresh nonce.
    #[must_use]
    pub fn new(nonce: [u8; 32]) -> (Self, Greeting) {
        let greeting = Greeting { version: VERSION, nonce };
        (Self { greeting: greeting.clone() }, greeting)
    }

    /// Verifies the acceptor and answers with our own proof.
    ///
    /// # Errors
    /// [`Error::Auth`] if the acceptor does not hold the group's key.
    pub fn finish(
        self,
        key: &GroupKey,
        (own, peer): (&[u8], &[u8]),
        greeting: &Greeting,
        proof: &Proof,
    ) -> Result<(Session, Proof)> {
        check_version(greeting)?;
        let transcript = Transcript::new(own, peer, &self.greeting, greeting);
        if !mutants::on(Mutant::NoAcceptorProof) {
            transcript.verify(key, "acceptor", proof)?;
        }
        Ok((transcript.session(key, true), transcript.prove(key, "opener")))
    }
}

impl Accepting {
    /// Answers an opener's greeting.
    ///
    /// # Errors
    /// [`Error::Protocol`] if its version is not ours.
    pub fn answer(
        key: &GroupKey,
        (own, peer): (&[u8], &[u8]),
        nonce: [u8; 32],
        greeting: &Greeting,
    ) -> Result<(Self, Greeting, Proof)> {
        check_version(greeting)?;
        let ours = Greeting { version: VERSION, nonce };
        let transcript = Transcript::new(peer, own, greeting, &ours);
        let proof = transcript.prove(key, "acceptor");
        Ok((Self { transcript }, ours, proof))
    }

    /// The session before the opener has proven anything: for a mutant only.
    pub(crate) fn session(&self, key: &GroupKey) -> Session {
        self.transcript.session(key, false)
    }

    /// Verifies the opener.
    ///
    /// # Errors
    /// [`Error::Auth`] if it does not hold the group's key.
    pub fn finish(self, key: &GroupKey, proof: &Proof) -> Result<Session> {
        if !mutants::on(Mutant::NoOpenerProof) {
            self.transcript.verify(key, "opener", proof)?;
        }
        Ok(self.transcript.session(key, false))
    }
}

impl Session {
    /// The number of the `count`-th further stream that this side opens. The sides count apart, so
    /// that no two streams of a session ever share keys; 0 is the control stream.
    #[must_use]
    pub fn stream_number(&self, count: u64) -> u64 {
        count.saturating_mul(2).saturating_add(if self.opener { 1 } else { 2 })
    }

    /// Whether the other side may open a stream of this number.
    #[must_use]
    pub fn is_peers_number(&self, stream: u64) -> bool {
        stream != 0 && (stream % 2 == 1) != self.opener
    }

    /// The channel of the stream of a number; see [`Session::stream_number`].
    #[must_use]
    pub fn channel(&self, stream: u64) -> Channel {
        let stream = if mutants::on(Mutant::KeyWithoutStream) { 0 } else { stream };
        let key = |direction: &[u8]| -> [u8; 32] {
            derive(&self.secret, b"channel", &[&stream.to_be_bytes(), direction])
        };
        let one = mutants::on(Mutant::KeyWithoutDirection);
        let (opener, acceptor) =
            (key(b"opener"), if one { key(b"opener") } else { key(b"acceptor") });
        if self.opener { Channel::new(opener, acceptor) } else { Channel::new(acceptor, opener) }
    }
}

fn check_version(greeting: &Greeting) -> Result<()> {
    let any = mutants::on(Mutant::AnyVersion) || mutants::on(Mutant::ProofWithoutVersions);
    if greeting.version == VERSION || any {
        return Ok(());
    }
    Err(Error::protocol(format!(
        "the other side speaks version {} of the protocol, this one speaks {VERSION}; \
         update the older of the two",
        greeting.version
    )))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn run(opener: &GroupKey, acceptor: &GroupKey, seen_by_acceptor: &[u8]) -> Result<()> {
        let (offering, hello) = Offering::new([1; 32]);
        let (accepting, answer, proof) =
            Accepting::answer(acceptor, (b"bob", seen_by_acceptor), [2; 32], &hello)?;
        let (session, own) = offering.finish(opener, (b"alice", b"bob"), &answer, &proof)?;
        let other = accepting.finish(acceptor, &own)?;
        assert_eq!(session.id, other.id);
        let numbers = [session.stream_number(0), session.stream_number(1), other.stream_number(0)];
        assert!(numbers.iter().all(|number| *number != 0) && numbers[0] != numbers[2]);
        assert!(other.is_peers_number(numbers[0]) && !session.is_peers_number(numbers[1]));
        assert!(session.is_peers_number(numbers[2]) && !session.is_peers_number(0));
        let (mut a, mut b) = (session.channel(7), other.channel(7));
        let frames = a.seal(5, b"words").unwrap();
        let opened = b.open(&frames[0], 100).unwrap().unwrap();
        assert_eq!((opened.kind, &opened.body[..]), (5, &b"words"[..]));
        Ok(())
    }

    #[test]
    fn members_agree_and_strangers_do_not() {
        let group = GroupKey::from_secret([7; 32]);
        let stranger = GroupKey::from_secret([8; 32]);
        assert!(run(&group, &group, b"alice").is_ok());
        assert!(matches!(run(&group, &stranger, b"alice"), Err(Error::Auth(_))));
        assert!(matches!(run(&stranger, &group, b"alice"), Err(Error::Auth(_))));
        // A relay in the middle that passes messages on under its own peer id gets nothing.
        assert!(matches!(run(&group, &group, b"mallory"), Err(Error::Auth(_))));
    }

    #[test]
    fn a_reflected_proof_is_not_accepted() {
        let group = GroupKey::from_secret([7; 32]);
        let (_, hello) = Offering::new([1; 32]);
        let (accepting, _, proof) =
            Accepting::answer(&group, (b"bob", b"bob"), [2; 32], &hello).unwrap();
        assert!(accepting.finish(&group, &proof).is_err());
    }

    /// The key is right, and so is the proof: the version alone counts.
    fn another_version_is_refused() -> bool {
        let group = GroupKey::from_secret([7; 32]);
        let (offering, hello) = Offering::new([1; 32]);
        let newer = Greeting { version: VERSION + 1, nonce: [2; 32] };
        let transcript = Transcript::new(b"alice", b"bob", &hello, &newer);
        let proof = transcript.prove(&group, "acceptor");
        let as_opener = offering.finish(&group, (b"alice", b"bob"), &newer, &proof);
        let as_acceptor = Accepting::answer(&group, (b"bob", b"alice"), [2; 32], &newer);
        matches!(as_opener, Err(Error::Protocol(_)))
            && matches!(as_acceptor, Err(Error::Protocol(_)))
    }

    #[test]
    fn another_version_is_refused_whatever_it_proves() {
        assert!(another_version_is_refused());
        #[cfg(feature = "mutants")]
        {
            mutants::set(Some(Mutant::AnyVersion));
            let refused = another_version_is_refused();
            mutants::set(None);
            assert!(!refused, "the mutant is not noticed");
        }
    }
}
