//! The task of one stream: writes what is queued, reads frames while they are consumed, and says
//! once how it ended.
//!
//! Both sides finish alike: whoever finishes first sends its queue and then the end of its
//! direction; the other side reads up to that end, sends its own queue and then its own end. So a
//! stream that was closed still delivers what the peer had queued.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures::{AsyncRead, AsyncWrite, Stream, ready};

use super::{
    StreamId,
    frame::{self, FrameReader, Read},
    queue::{Next, Queue},
};

/// Small frames are gathered up to this size into one write.
const WRITE_GATHER_BYTES: usize = 64 * 1024;

/// What happened on a stream.
#[derive(Debug)]
pub(crate) enum PipeEvent {
    Frame {
        stream: StreamId,
        bytes: Vec<u8>,
    },
    /// The queue was long and is short again.
    Drained {
        stream: StreamId,
    },
    Closed {
        stream: StreamId,
        clean: bool,
        reason: String,
    },
}

pub(crate) struct Pipe<S> {
    id: StreamId,
    /// `None` once the end was reported; dropping it resets what was not finished.
    io: Option<S>,
    queue: Arc<Queue>,
    reader: FrameReader,
    /// Framed bytes on their way, of which `sent` are gone.
    outgoing: Vec<u8>,
    sent: usize,
    unflushed: bool,
    write_finished: bool,
    write_error: Option<String>,
    read_finished: bool,
    /// The connection is ending: take everything that arrived.
    draining: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Pipe<S> {
    pub(crate) fn new(id: StreamId, io: S, queue: Arc<Queue>) -> Pipe<S> {
        Pipe {
            id,
            io: Some(io),
            queue,
            reader: FrameReader::default(),
            outgoing: Vec::new(),
            sent: 0,
            unflushed: false,
            write_finished: false,
            write_error: None,
            read_finished: false,
            draining: false,
        }
    }

    /// Reads on without regard to what was consumed: after this the stream ends in any case.
    pub(crate) fn drain(&mut self) {
        self.draining = true;
    }

    fn end(&mut self, clean: bool, reason: String) -> Poll<Option<PipeEvent>> {
        self.io = None;
        Poll::Ready(Some(PipeEvent::Closed { stream: self.id, clean, reason }))
    }

    /// Fills `outgoing`; false when there is nothing to send.
    fn gather(&mut self) -> Next {
        self.sent = 0;
        self.outgoing.clear();
        let mut next = self.queue.next();
        while let Next::Frame(payload) = next {
            frame::append(&mut self.outgoing, &payload);
            if self.outgoing.len() >= WRITE_GATHER_BYTES {
                return Next::Wait;
            }
            next = self.queue.next();
        }
        if self.outgoing.is_empty() {
            // An idle stream holds no buffer.
            self.outgoing = Vec::new();
        }
        next
    }

    /// Ready when this direction is finished.
    fn poll_write(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(mut io) = self.io.take() else { return Poll::Ready(Ok(())) };
        let outcome = self.poll_write_to(&mut io, context);
        self.io = Some(io);
        outcome
    }

    fn poll_write_to(&mut self, io: &mut S, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            while self.sent < self.outgoing.len() {
                let rest = &self.outgoing[self.sent..];
                match ready!(Pin::new(&mut *io).poll_write(context, rest))? {
                    0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    count => {
                        self.sent += count;
                        self.unflushed = true;
                        self.queue.written(count);
                    }
                }
            }
            let next = self.gather();
            if !self.outgoing.is_empty() {
                continue;
            }
            if self.unflushed {
                ready!(Pin::new(&mut *io).poll_flush(context))?;
                self.unflushed = false;
            }
            if !matches!(next, Next::Finish) {
                return Poll::Pending;
            }
            // A stream that is dropped unfinished is reset, behind what was sent: so whoever goes on
            // sending learns that nobody reads.
            if !self.queue.is_deaf() {
                ready!(Pin::new(&mut *io).poll_close(context))?;
            }
            self.write_finished = true;
            return Poll::Ready(Ok(()));
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Stream for Pipe<S> {
    type Item = PipeEvent;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<PipeEvent>> {
        let this = &mut *self;
        if this.io.is_none() {
            return Poll::Ready(None);
        }
        this.queue.register(context.waker());
        if let Some(reason) = this.queue.aborted() {
            return this.end(false, reason);
        }
        this.read_finished |= this.queue.is_deaf();
        loop {
            if !this.write_finished
                && let Poll::Ready(Err(error)) = this.poll_write(context)
            {
                this.write_finished = true;
                this.write_error = Some(error.to_string());
                // What the peer sent before it went away still counts.
                this.draining = true;
            }
            if this.queue.take_drained() {
                return Poll::Ready(Some(PipeEvent::Drained { stream: this.id }));
            }
            if !this.read_finished
                && (this.draining || this.queue.may_read())
                && let Some(io) = this.io.as_mut()
                && let Poll::Ready(read) = this.reader.poll_read(io, context)
            {
                match read {
                    Read::Frame(bytes) => {
                        this.queue.received(bytes.len());
                        return Poll::Ready(Some(PipeEvent::Frame { stream: this.id, bytes }));
                    }
                    Read::Broken(reason) => return this.end(false, reason),
                    Read::End => {
                        this.read_finished = true;
                        this.queue.close();
                        // Our own direction may be able to finish at once.
                        continue;
                    }
                }
            }
            if !this.read_finished || !this.write_finished {
                return Poll::Pending;
            }
            return match this.write_error.take() {
                None => this.end(true, "the stream was finished".to_owned()),
                Some(error) => this.end(false, format!("the peer stopped reading: {error}")),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::streams::{FRAME_PAYLOAD_MAX_BYTES, INBOUND_UNREAD_MAX_BYTES};
    use futures::{AsyncReadExt, AsyncWriteExt, FutureExt, StreamExt};
    use smol::net::{TcpListener, TcpStream};

    /// A pipe on a real socket, its queue and the peer's end of the socket.
    async fn pipe() -> (Pipe<TcpStream>, Arc<Queue>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let here = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (there, _) = listener.accept().await.unwrap();
        let queue = Arc::new(Queue::default());
        (Pipe::new(StreamId(1), here, queue.clone()), queue, there)
    }

    fn framed(payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        frame::append(&mut bytes, payload);
        bytes
    }

    async fn closed(pipe: &mut Pipe<TcpStream>) -> (bool, String) {
        match pipe.next().await {
            Some(PipeEvent::Closed { clean, reason, .. }) => (clean, reason),
            other => panic!("expected the end, got {other:?}"),
        }
    }

    async fn received(pipe: &mut Pipe<TcpStream>) -> Vec<u8> {
        match pipe.next().await {
            Some(PipeEvent::Frame { bytes, .. }) => bytes,
            other => panic!("expected a frame, got {other:?}"),
        }
    }

    #[test]
    fn an_oversized_length_closes_the_stream() {
        smol::block_on(async {
            let (mut pipe, _, mut peer) = pipe().await;
            let mut bytes = framed(b"good");
            bytes.extend_from_slice(&(FRAME_PAYLOAD_MAX_BYTES as u32 + 1).to_be_bytes());
            peer.write_all(&bytes).await.unwrap();
            assert_eq!(received(&mut pipe).await, b"good");
            let (clean, reason) = closed(&mut pipe).await;
            assert!(!clean);
            assert!(reason.contains("at most"), "{reason}");
            assert!(pipe.next().await.is_none());
            // Our end of the socket is gone too.
            assert_eq!(peer.read(&mut [0; 8]).await.unwrap_or(0), 0);
        });
    }

    #[test]
    fn an_end_is_clean_between_frames_and_not_inside_one() {
        smol::block_on(async {
            let whole = framed(b"0123456789");
            for (length, expected) in [(whole.len(), true), (whole.len() - 1, false), (2, false)] {
                let (mut pipe, _, mut peer) = pipe().await;
                peer.write_all(&whole[..length]).await.unwrap();
                peer.close().await.unwrap();
                if expected {
                    assert_eq!(received(&mut pipe).await, b"0123456789");
                }
                assert_eq!(closed(&mut pipe).await.0, expected, "{length} bytes");
            }
        });
    }

    #[test]
    fn what_nobody_consumes_stops_the_reading() {
        const FRAME_BYTES: usize = 128 * 1024;
        smol::block_on(async {
            let (mut pipe, queue, mut peer) = pipe().await;
            let writer = smol::spawn(async move {
                for _ in 0..64 {
                    peer.write_all(&framed(&[1; FRAME_BYTES])).await.unwrap();
                }
                peer.close().await.unwrap();
            });
            let mut taken = 0;
            for _ in 0..INBOUND_UNREAD_MAX_BYTES / FRAME_BYTES {
                taken += received(&mut pipe).await.len();
            }
            // The limit is reached: the pipe waits although more has arrived.
            let pause = smol::Timer::after(std::time::Duration::from_millis(50));
            let next = futures::future::select(pipe.next(), pause).await;
            assert!(matches!(next, futures::future::Either::Right(_)));
            drop(next);
            queue.consumed(FRAME_BYTES);
            taken += received(&mut pipe).await.len();
            assert!(pipe.next().now_or_never().is_none());
            queue.consumed(taken - FRAME_BYTES);
            while taken < 64 * FRAME_BYTES {
                let count = received(&mut pipe).await.len();
                queue.consumed(count);
                taken += count;
            }
            assert!(closed(&mut pipe).await.0);
            writer.await;
        });
    }
}
