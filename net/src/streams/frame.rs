//! The framing: a big-endian `u32` length, then that many bytes. Reading allocates in step with
//! what arrived, never by what a length promises.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use futures::{AsyncRead, ready};

use super::FRAME_PAYLOAD_MAX_BYTES;

/// Bytes before a payload.
pub(crate) const HEADER_BYTES: usize = 4;
/// The first allocation for a payload; it doubles with what arrives.
const READ_STEP_MIN_BYTES: usize = 8 * 1024;

/// What reading came to.
#[derive(Debug)]
pub(crate) enum Read {
    Frame(Vec<u8>),
    /// The end of the stream between two frames.
    End,
    /// Nothing more can be understood on this stream.
    Broken(String),
}

/// Puts `payload` with its header at the end of `buffer`.
pub(crate) fn append(buffer: &mut Vec<u8>, payload: &[u8]) {
    assert!(payload.len() <= FRAME_PAYLOAD_MAX_BYTES, "the queue refuses longer frames");
    buffer.extend_from_slice(&(payload.len() as u32).to_be_bytes());
    buffer.extend_from_slice(payload);
}

/// Takes frames off a stream, one at a time, across any cuts between reads.
#[derive(Default)]
pub(crate) struct FrameReader {
    header: [u8; HEADER_BYTES],
    header_filled: usize,
    /// The payload's first `filled` bytes, and room for what comes next.
    body: Vec<u8>,
    filled: usize,
}

impl FrameReader {
    pub(crate) fn poll_read<S: AsyncRead + Unpin>(
        &mut self,
        io: &mut S,
        context: &mut Context<'_>,
    ) -> Poll<Read> {
        while self.header_filled < HEADER_BYTES {
            let rest = &mut self.header[self.header_filled..];
            match ready!(poll_some(io, context, rest)) {
                Ok(0) if self.header_filled == 0 => return Poll::Ready(Read::End),
                Ok(0) => return Poll::Ready(cut()),
                Ok(count) => self.header_filled += count,
                Err(error) => return Poll::Ready(Read::Broken(error.to_string())),
            }
        }
        let length = u32::from_be_bytes(self.header) as usize;
        if length > FRAME_PAYLOAD_MAX_BYTES {
            return Poll::Ready(Read::Broken(format!(
                "the peer announced a frame of {length} bytes; at most {FRAME_PAYLOAD_MAX_BYTES} \
                 are allowed"
            )));
        }
        while self.filled < length {
            if self.filled == self.body.len() {
                let step = (length - self.filled).min(self.filled.max(READ_STEP_MIN_BYTES));
                self.body.resize(self.filled + step, 0);
            }
            match ready!(poll_some(io, context, &mut self.body[self.filled..])) {
                Ok(0) => return Poll::Ready(cut()),
                Ok(count) => self.filled += count,
                Err(error) => return Poll::Ready(Read::Broken(error.to_string())),
            }
        }
        self.filled = 0;
        self.header_filled = 0;
        Poll::Ready(Read::Frame(std::mem::take(&mut self.body)))
    }
}

fn poll_some<S: AsyncRead + Unpin>(
    io: &mut S,
    context: &mut Context<'_>,
    buffer: &mut [u8],
) -> Poll<io::Result<usize>> {
    loop {
        match ready!(Pin::new(&mut *io).poll_read(context, buffer)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return Poll::Ready(result),
        }
    }
}

fn cut() -> Read {
    Read::Broken("the stream ended inside a frame".to_owned())
}

#[cfg(test)]
#[path = "../../../core/tests/noise/bend.rs"]
mod bend;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use futures::future::poll_fn;

    /// Gives its bytes in pieces of at most `step`.
    struct Pieces {
        bytes: Vec<u8>,
        position: usize,
        step: usize,
    }

    impl AsyncRead for Pieces {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buffer: &mut [u8],
        ) -> Poll<io::Result<usize>> {
            let count = buffer.len().min(self.step).min(self.bytes.len() - self.position);
            let start = self.position;
            buffer[..count].copy_from_slice(&self.bytes[start..start + count]);
            self.position += count;
            Poll::Ready(Ok(count))
        }
    }

    fn read_all(bytes: Vec<u8>, step: usize) -> (Vec<Vec<u8>>, Read) {
        let mut io = Pieces { bytes, position: 0, step };
        let mut reader = FrameReader::default();
        let mut frames = Vec::new();
        loop {
            match smol::block_on(poll_fn(|context| reader.poll_read(&mut io, context))) {
                Read::Frame(frame) => frames.push(frame),
                end => return (frames, end),
            }
        }
    }

    #[test]
    fn frames_survive_any_cut_between_reads() {
        let payloads = vec![vec![], vec![7; 1], vec![1; 9000], vec![2; FRAME_PAYLOAD_MAX_BYTES]];
        let mut bytes = Vec::new();
        payloads.iter().for_each(|payload| append(&mut bytes, payload));
        for step in [1, 3, 8192, usize::MAX] {
            let (frames, end) = read_all(bytes.clone(), step);
            assert_eq!(frames, payloads);
            assert!(matches!(end, Read::End), "{end:?}");
        }
    }

    #[test]
    fn an_end_inside_a_frame_is_broken() {
        let mut whole = Vec::new();
        append(&mut whole, b"0123456789");
        for length in 1..whole.len() {
            let (frames, end) = read_all(whole[..length].to_vec(), 4);
            assert!(frames.is_empty());
            assert!(matches!(end, Read::Broken(_)), "{length}: {end:?}");
        }
    }

    #[test]
    fn an_oversized_length_is_refused_and_allocates_nothing() {
        let length = (FRAME_PAYLOAD_MAX_BYTES + 1) as u32;
        let mut io = Pieces { bytes: length.to_be_bytes().to_vec(), position: 0, step: 4 };
        let mut reader = FrameReader::default();
        let read = smol::block_on(poll_fn(|context| reader.poll_read(&mut io, context)));
        assert!(matches!(read, Read::Broken(_)));
        assert_eq!(reader.body.capacity(), 0);
    }

    #[test]
    fn memory_follows_what_arrived() {
        let mut bytes = (FRAME_PAYLOAD_MAX_BYTES as u32).to_be_bytes().to_vec();
        bytes.extend_from_slice(&[9; 100]);
        let mut io = Pieces { bytes, position: 0, step: 50 };
        let mut reader = FrameReader::default();
        let read = smol::block_on(poll_fn(|context| reader.poll_read(&mut io, context)));
        assert!(matches!(read, Read::Broken(_)));
        assert!(reader.body.capacity() <= 4 * READ_STEP_MIN_BYTES, "{}", reader.body.capacity());
    }

    /// Frames with a few bytes bent, and any bytes at all: what is read are the bytes that came.
    #[test]
    fn random_bytes_are_endured() {
        let mut whole = Vec::new();
        [&b""[..], b"x", &[3; 300]].iter().for_each(|payload| append(&mut whole, payload));
        let (mut ends, mut broken) = (0, 0);
        for seed in 0..5_000 {
            let mut dice = super::bend::Dice::new(seed);
            let bytes = super::bend::input(&mut dice, std::slice::from_ref(&whole));
            let (frames, end) = read_all(bytes.clone(), dice.within(1, 400) as usize);
            let mut again = Vec::new();
            frames.iter().for_each(|frame| append(&mut again, frame));
            assert!(bytes.starts_with(&again), "seed {seed}");
            match end {
                Read::End => {
                    assert_eq!(again, bytes, "seed {seed}");
                    ends += 1;
                }
                _ => broken += 1,
            }
        }
        assert!(ends > 100 && broken > 100, "{ends} ends, {broken} broken");
    }
}
