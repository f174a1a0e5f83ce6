//! What is fuzzed: one function for each target, with the real code behind it. Those of core are shared
//! with its test of random bytes; the framing of streams and the options of joining are added here.
//!
//! Knows nothing of the fuzzer.

#[path = "../../core/tests/noise/target.rs"]
mod target;

#[allow(dead_code)]
#[path = "../../net/src/streams/frame.rs"]
mod framing;

/// The file of the options names its error by this module.
mod ffi {
    /// What the extension tells SQLite.
    #[derive(Debug)]
    pub struct SqlError(String);

    impl SqlError {
        pub fn new(message: String) -> Self {
            Self(message)
        }
    }

    impl std::fmt::Display for SqlError {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(&self.0)
        }
    }
}

#[allow(dead_code)]
#[path = "../../ext/src/options.rs"]
mod options_of_join;

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use futures::{AsyncRead, FutureExt, future::poll_fn};
// The framing takes its limit from the module above it.
use wavesync_net::FRAME_PAYLOAD_MAX_BYTES;

use framing::{FrameReader, Read};
pub use target::{TARGETS, Target, apply, batch, handshake, message, names};

/// A sealed frame; and frames off a stream, which the first byte cuts into pieces of so many bytes.
pub fn frame(bytes: &[u8]) -> bool {
    let Some((step, rest)) = bytes.split_first() else { return false };
    let mut arriving = Arriving { bytes: rest, step: usize::from(*step).max(1) };
    let mut reader = FrameReader::default();
    let mut again = Vec::new();
    loop {
        let next = poll_fn(|context| reader.poll_read(&mut arriving, context));
        match next.now_or_never().expect("everything has arrived") {
            Read::Frame(frame) => {
                target::frame(&frame);
                framing::append(&mut again, &frame);
            }
            Read::End => {
                assert_eq!(again, rest, "frames are written as they were read");
                break;
            }
            Read::Broken(_) => break,
        }
    }
    target::frame(bytes)
}

/// The options of joining, with every multiaddress that they hold.
pub fn options(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    match options_of_join::Options::parse(text) {
        Ok(_) => true,
        Err(error) => {
            assert!(!error.to_string().is_empty(), "an error says what is wrong");
            false
        }
    }
}

/// Bytes that arrive a few at a time.
struct Arriving<'a> {
    bytes: &'a [u8],
    step: usize,
}

impl AsyncRead for Arriving<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let count = self.bytes.len().min(self.step).min(buffer.len());
        let (now, later) = self.bytes.split_at(count);
        buffer[..count].copy_from_slice(now);
        self.bytes = later;
        Poll::Ready(Ok(count))
    }
}
