//! Sealed frames: what a stream carries after the handshake.
//!
//! ```text
//! frame = kind u8 | flags u8 | body | mac 16 bytes
//! mac   = first 16 bytes of HMAC-SHA256(key of stream and direction,
//!         8 u64 | counter u64 | length u64 | kind | flags | body)
//! ```
//!
//! A message longer than a frame is cut into frames of which all but the last have the flag
//! `MORE`. The counter makes replay, re-ordering and truncation inside a stream fail.

use hmac::Mac;

use crate::auth::mac;
use crate::limits::FRAME_BODY_MAX_BYTES;
use crate::mutants::{self, Mutant};
use crate::{Error, Result};

const MAC_BYTES: usize = 16;
const HEAD_BYTES: usize = 2;
const FLAG_MORE: u8 = 1;

/// Both directions of one stream.
pub struct Channel {
    send: [u8; 32],
    receive: [u8; 32],
    sent: u64,
    received: u64,
    partial: Option<Opened>,
}

/// A message whose seal was verified. Only [`Channel::open`] makes one:
///
/// ```compile_fail
/// let forged = wavesync_core::auth::Opened { kind: 19, body: Vec::new(), verified: todo!() };
/// ```
#[derive(Debug)]
pub struct Opened {
    /// What kind of message; see `docs/PROTOCOL.md`.
    pub kind: u8,
    /// Its content.
    pub body: Vec<u8>,
    /// Keeps others from making one.
    #[allow(dead_code)]
    verified: Verified,
}

/// A seal fitted.
#[derive(Debug)]
struct Verified;

impl Channel {
    pub(super) fn new(send: [u8; 32], receive: [u8; 32]) -> Self {
        Self { send, receive, sent: 0, received: 0, partial: None }
    }

    /// Seals a message into one or more frames, to be sent in this order.
    ///
    /// # Errors
    /// If more frames were sealed than a counter can number.
    pub fn seal(&mut self, kind: u8, body: &[u8]) -> Result<Vec<Vec<u8>>> {
        let mut parts: Vec<&[u8]> = body.chunks(FRAME_BODY_MAX_BYTES).collect();
        if parts.is_empty() {
            parts.push(&[]);
        }
        let count = parts.len();
        let mut frames = Vec::with_capacity(count);
        for (at, part) in parts.into_iter().enumerate() {
            let flags = if at + 1 < count { FLAG_MORE } else { 0 };
            let mut frame = Vec::with_capacity(HEAD_BYTES + part.len() + MAC_BYTES);
            frame.extend_from_slice(&[kind, flags]);
            frame.extend_from_slice(part);
            let tag = sealing(&self.send, self.sent, &frame).finalize().into_bytes();
            frame.extend_from_slice(&tag[..MAC_BYTES]);
            self.sent = next(self.sent)?;
            frames.push(frame);
        }
        Ok(frames)
    }

    /// Verifies a frame over the bytes as they were received. Returns the message with its last
    /// frame.
    ///
    /// # Errors
    /// [`Error::Auth`] if the seal does not fit, [`Error::Protocol`] if the message grows beyond
    /// `most` bytes. The stream must then be given up.
    pub fn open(&mut self, frame: &[u8], most: usize) -> Result<Option<Opened>> {
        let cut = frame.len().checked_sub(MAC_BYTES).filter(|cut| *cut >= HEAD_BYTES);
        let cut = cut.ok_or_else(|| Error::Auth("a frame is too short to be sealed".into()))?;
        let (content, tag) = frame.split_at(cut);
        let fits = sealing(&self.receive, self.received, content).verify_truncated_left(tag);
        if fits.is_err() && !mutants::on(Mutant::SealUnverified) {
            return Err(Error::Auth("a frame was altered, replayed or re-ordered".into()));
        }
        self.received = next(self.received)?;
        let (kind, flags, body) = (content[0], content[1], &content[HEAD_BYTES..]);
        let mut message = match self.partial.take() {
            None => Opened { kind, body: Vec::new(), verified: Verified },
            Some(partial) if partial.kind == kind || mutants::on(Mutant::MixedParts) => partial,
            Some(_) => return Err(Error::protocol("a message was cut short by another")),
        };
        let most = if mutants::on(Mutant::EndlessMessage) { usize::MAX } else { most };
        if message.body.len() + body.len() > most {
            return Err(Error::protocol("a message is too long"));
        }
        message.body.extend_from_slice(body);
        if flags & FLAG_MORE != 0 {
            self.partial = Some(message);
            return Ok(None);
        }
        Ok(Some(message))
    }
}

/// The code over a frame: its place in the stream and everything in it.
fn sealing(key: &[u8; 32], counter: u64, content: &[u8]) -> hmac::Hmac<sha2::Sha256> {
    let counter = if mutants::on(Mutant::SealWithoutCounter) { 0 } else { counter };
    let skip = if mutants::on(Mutant::SealWithoutHead) { HEAD_BYTES } else { 0 };
    mac(key, &[&counter.to_be_bytes(), &content[skip..]])
}

fn next(counter: u64) -> Result<u64> {
    counter.checked_add(1).ok_or_else(|| Error::protocol("a stream carried too many frames"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn pair() -> (Channel, Channel) {
        (Channel::new([1; 32], [2; 32]), Channel::new([2; 32], [1; 32]))
    }

    #[test]
    fn long_messages_are_cut_and_joined() {
        let (mut a, mut b) = pair();
        let body: Vec<u8> = (0..FRAME_BODY_MAX_BYTES * 2 + 5).map(|n| n as u8).collect();
        let frames = a.seal(9, &body).unwrap();
        assert_eq!(frames.len(), 3);
        assert!(b.open(&frames[0], body.len()).unwrap().is_none());
        assert!(b.open(&frames[1], body.len()).unwrap().is_none());
        assert_eq!(b.open(&frames[2], body.len()).unwrap().unwrap().body, body);
    }

    #[test]
    fn every_flipped_bit_replay_and_swap_is_noticed() {
        let (mut a, _) = pair();
        let frames: Vec<Vec<u8>> =
            (0..3u8).map(|n| a.seal(n, &[n; 10]).unwrap().remove(0)).collect();
        for at in 0..frames[0].len() * 8 {
            let mut bent = frames[0].clone();
            bent[at / 8] ^= 1 << (at % 8);
            assert!(matches!(pair().1.open(&bent, 100), Err(Error::Auth(_))), "bit {at}");
        }
        let mut b = pair().1;
        assert!(b.open(&frames[1], 100).is_err(), "a dropped first frame");
        let mut b = pair().1;
        assert!(b.open(&frames[0], 100).is_ok());
        assert!(b.open(&frames[0], 100).is_err(), "a replay");
        assert!(pair().0.open(&frames[0], 100).is_err(), "a reflection");
        assert!(pair().1.open(&frames[0][..frames[0].len() - 1], 100).is_err(), "a cut frame");
    }

    #[test]
    fn a_message_cannot_grow_without_bound() {
        let (mut a, mut b) = pair();
        let frames = a.seal(1, &vec![0; FRAME_BODY_MAX_BYTES * 3]).unwrap();
        assert!(b.open(&frames[0], FRAME_BODY_MAX_BYTES).unwrap().is_none());
        assert!(matches!(b.open(&frames[1], FRAME_BODY_MAX_BYTES), Err(Error::Protocol(_))));
    }
}
