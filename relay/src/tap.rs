//! Sees the bytes of every stream as the relay itself has them: after Noise, before anything reads
//! them. The relay counts them; the tests keep them and look for secrets.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures::{AsyncRead, AsyncWrite};
use libp2p::{
    Transport,
    core::muxing::{StreamMuxer, StreamMuxerBox, StreamMuxerEvent},
};
use wavesync_transport::Connections;

/// Which way bytes went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From a peer.
    In,
    /// To a peer.
    Out,
}

/// Is given every piece of bytes; it must be quick.
pub type Observer = Arc<dyn Fn(Direction, &[u8]) + Send + Sync>;

/// `connections`, observed.
pub(crate) fn observed(connections: Connections, observer: Observer) -> Connections {
    connections
        .map(move |(peer, muxer), _| {
            (peer, StreamMuxerBox::new(Muxer { inner: muxer, observer: observer.clone() }))
        })
        .boxed()
}

struct Muxer {
    inner: StreamMuxerBox,
    observer: Observer,
}

type Inner = <StreamMuxerBox as StreamMuxer>::Substream;

impl StreamMuxer for Muxer {
    type Substream = Observed;
    type Error = io::Error;

    fn poll_inbound(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<Observed>> {
        let inner = ready!(Pin::new(&mut self.inner).poll_inbound(context))?;
        Poll::Ready(Ok(Observed { inner, observer: self.observer.clone() }))
    }

    fn poll_outbound(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<Observed>> {
        let inner = ready!(Pin::new(&mut self.inner).poll_outbound(context))?;
        Poll::Ready(Ok(Observed { inner, observer: self.observer.clone() }))
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(context)
    }

    fn poll(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<StreamMuxerEvent>> {
        Pin::new(&mut self.inner).poll(context)
    }
}

struct Observed {
    inner: Inner,
    observer: Observer,
}

impl AsyncRead for Observed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.inner).poll_read(context, buffer))?;
        (self.observer)(Direction::In, &buffer[..count]);
        Poll::Ready(Ok(count))
    }
}

impl AsyncWrite for Observed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.inner).poll_write(context, buffer))?;
        (self.observer)(Direction::Out, &buffer[..count]);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(context)
    }
}
