//! How much may arrive on a connection before its peer has proven anything: below the multiplexing, so
//! that no stream, frame or window of it can hold more. What is beyond waits in the sockets.
//!
//! Knows the heads of yamux's frames, because yamux makes room for a frame as soon as it is announced,
//! and nothing of what streams carry.

use std::{
    collections::{HashMap, HashSet},
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
};

use futures::{AsyncRead, AsyncWrite};
use libp2p::{
    PeerId,
    core::upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade, UpgradeInfo},
};

/// What may arrive on a connection before its peer is admitted.
pub const UNPROVEN_BYTES_MAX: usize = 64 * 1024;
/// So much of that is taken for each stream that the peer opens: about what a stream costs.
pub const UNPROVEN_STREAM_BYTES: usize = 3 * 1024;
/// A longer frame of yamux ends a connection whose peer is not admitted. libp2p sends none above 16 KiB.
pub const UNPROVEN_FRAME_MAX_BYTES: usize = 16 * 1024 + 12;

/// A connection on which nothing that is sent leaves for so long, in seconds, is given up.
pub const STALL_SECONDS: u64 = 60;
/// The same while its peer is not admitted.
pub const UNPROVEN_STALL_SECONDS: u64 = 10;

const HEAD_BYTES: usize = 12;
const KIND_DATA: u8 = 0;
const KIND_WINDOW: u8 = 1;
const FLAG_SYN: u8 = 1;

/// Who may send as much as the multiplexing lets them.
#[derive(Clone, Debug, Default)]
pub struct Admission(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    gates: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    admitted: HashSet<PeerId>,
    /// Gates that have let through what they may.
    waiting: HashMap<PeerId, HashMap<u64, Waker>>,
}

impl Admission {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on all connections of this peer are read.
    pub fn admit(&self, peer: PeerId) {
        let mut state = self.state();
        state.admitted.insert(peer);
        let waiting = state.waiting.remove(&peer);
        drop(state);
        waiting.into_iter().flatten().for_each(|(_, waker)| waker.wake());
    }

    /// The last connection of this peer is gone: on the next one it has to prove itself again.
    pub fn forget(&self, peer: &PeerId) {
        self.state().admitted.remove(peer);
    }

    /// Whether a gate may let everything through; if not, it is woken once it may.
    fn is_admitted(&self, peer: &PeerId, gate: u64, waiting: Option<&Waker>) -> bool {
        let mut state = self.state();
        let admitted = state.admitted.contains(peer);
        if let (false, Some(waker)) = (admitted, waiting) {
            state.waiting.entry(*peer).or_default().insert(gate, waker.clone());
        }
        admitted
    }

    fn left(&self, peer: &PeerId, gate: u64) {
        let mut state = self.state();
        if let Some(gates) = state.waiting.get_mut(peer) {
            gates.remove(&gate);
            if gates.is_empty() {
                state.waiting.remove(peer);
            }
        }
    }
}

/// A multiplexing whose connections have a gate below; without a list of the admitted, none.
#[derive(Clone)]
pub(crate) struct Gated<M> {
    pub inner: M,
    pub peer: PeerId,
    pub admission: Option<Admission>,
}

impl<M> Gated<M> {
    fn gate<C>(&self, io: C) -> Gate<C> {
        let pass = self.admission.clone().map(|admission| {
            let number = admission.0.gates.fetch_add(1, Ordering::Relaxed);
            Pass { admission, number, peer: self.peer, spent: 0, heads: Heads::default() }
        });
        Gate { io, pass, patience: Patience::default() }
    }
}

impl<M: UpgradeInfo> UpgradeInfo for Gated<M> {
    type Info = M::Info;
    type InfoIter = M::InfoIter;

    fn protocol_info(&self) -> Self::InfoIter {
        self.inner.protocol_info()
    }
}

impl<C, M: InboundConnectionUpgrade<Gate<C>>> InboundConnectionUpgrade<C> for Gated<M> {
    type Output = M::Output;
    type Error = M::Error;
    type Future = M::Future;

    fn upgrade_inbound(self, io: C, info: Self::Info) -> Self::Future {
        let io = self.gate(io);
        self.inner.upgrade_inbound(io, info)
    }
}

impl<C, M: OutboundConnectionUpgrade<Gate<C>>> OutboundConnectionUpgrade<C> for Gated<M> {
    type Output = M::Output;
    type Error = M::Error;
    type Future = M::Future;

    fn upgrade_outbound(self, io: C, info: Self::Info) -> Self::Future {
        let io = self.gate(io);
        self.inner.upgrade_outbound(io, info)
    }
}

/// A connection below its multiplexing.
pub(crate) struct Gate<C> {
    io: C,
    /// Gone once the peer is admitted.
    pass: Option<Pass>,
    patience: Patience,
}

impl<C> Gate<C> {
    /// What was tried to send, unless it waits too long already.
    fn sent<T>(
        &mut self,
        context: &mut Context<'_>,
        sent: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let seconds = if self.pass.is_some() { UNPROVEN_STALL_SECONDS } else { STALL_SECONDS };
        self.patience.or_given_up(context, seconds, sent)
    }
}

/// Since when nothing of what is sent leaves. A peer that does not read would keep its connection for
/// ever: also the end of one waits until all is sent.
#[derive(Default)]
struct Patience {
    #[cfg(not(target_family = "wasm"))]
    timer: Option<async_io::Timer>,
}

impl Patience {
    #[cfg(not(target_family = "wasm"))]
    fn or_given_up<T>(
        &mut self,
        context: &mut Context<'_>,
        seconds: u64,
        sent: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if sent.is_ready() {
            self.timer = None;
            return sent;
        }
        let after = || async_io::Timer::after(std::time::Duration::from_secs(seconds));
        let timer = self.timer.get_or_insert_with(after);
        futures::ready!(std::future::Future::poll(Pin::new(timer), context));
        let reason = format!("the peer takes nothing: given up after {seconds} s");
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, reason)))
    }

    /// Not in a browser, whose peers come through a relay.
    #[cfg(target_family = "wasm")]
    fn or_given_up<T>(
        &mut self,
        _: &mut Context<'_>,
        _: u64,
        sent: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        sent
    }
}

struct Pass {
    admission: Admission,
    number: u64,
    peer: PeerId,
    spent: usize,
    heads: Heads,
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.admission.left(&self.peer, self.number);
    }
}

impl<C: AsyncRead + Unpin> AsyncRead for Gate<C> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let Some(pass) = &mut this.pass else {
            return Pin::new(&mut this.io).poll_read(context, buffer);
        };
        let room = UNPROVEN_BYTES_MAX.saturating_sub(pass.spent);
        let waits = (room == 0).then(|| context.waker());
        if pass.admission.is_admitted(&pass.peer, pass.number, waits) {
            this.pass = None;
            return Pin::new(&mut this.io).poll_read(context, buffer);
        }
        if room == 0 {
            return Poll::Pending;
        }
        let most = buffer.len().min(room).min(pass.heads.rest());
        let read = futures::ready!(Pin::new(&mut this.io).poll_read(context, &mut buffer[..most]))?;
        pass.spent += read + pass.heads.pass(&buffer[..read])? * UNPROVEN_STREAM_BYTES;
        Poll::Ready(Ok(read))
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for Gate<C> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let sent = Pin::new(&mut self.io).poll_write(context, bytes);
        self.sent(context, sent)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let sent = Pin::new(&mut self.io).poll_write_vectored(context, bytes);
        self.sent(context, sent)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let sent = Pin::new(&mut self.io).poll_flush(context);
        self.sent(context, sent)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let sent = Pin::new(&mut self.io).poll_close(context);
        self.sent(context, sent)
    }
}

/// Follows the frames of yamux: where their heads are.
#[derive(Default)]
struct Heads {
    head: [u8; HEAD_BYTES],
    filled: usize,
    /// Bytes of the present frame's body that are still to come.
    body: usize,
}

impl Heads {
    /// Bytes up to the end of the present head or body: what follows is to be paid for first.
    fn rest(&self) -> usize {
        if self.body > 0 { self.body } else { HEAD_BYTES - self.filled }
    }

    /// Takes bytes that arrived. Returns how many streams they open.
    fn pass(&mut self, mut bytes: &[u8]) -> io::Result<usize> {
        let mut opened = 0;
        while !bytes.is_empty() {
            let skipped = self.body.min(bytes.len());
            self.body -= skipped;
            bytes = &bytes[skipped..];
            let taken = (HEAD_BYTES - self.filled).min(bytes.len());
            self.head[self.filled..self.filled + taken].copy_from_slice(&bytes[..taken]);
            self.filled += taken;
            bytes = &bytes[taken..];
            if self.filled < HEAD_BYTES {
                continue;
            }
            self.filled = 0;
            let [_, kind, _, flags, _, _, _, _, length @ ..] = self.head;
            opened += usize::from(kind <= KIND_WINDOW && flags & FLAG_SYN != 0);
            if kind == KIND_DATA {
                self.body = u32::from_be_bytes(length) as usize;
            }
            if self.body > UNPROVEN_FRAME_MAX_BYTES {
                let reason = "a peer that has proven nothing announced a long frame";
                return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
            }
        }
        Ok(opened)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use futures::{AsyncReadExt, AsyncWriteExt, FutureExt};
    use smol::net::{TcpListener, TcpStream};

    fn frame(kind: u8, flags: u8, length: usize) -> Vec<u8> {
        let mut frame = vec![0, kind, 0, flags, 0, 0, 0, 1];
        frame.extend_from_slice(&(length as u32).to_be_bytes());
        if kind == KIND_DATA {
            frame.resize(frame.len() + length, 7);
        }
        frame
    }

    #[test]
    fn heads_are_found_however_the_bytes_are_cut() {
        let frames = [
            frame(KIND_DATA, FLAG_SYN, 5),
            frame(KIND_WINDOW, 0, 70_000),
            frame(KIND_DATA, 0, 0),
            frame(2, FLAG_SYN, 9),
            frame(KIND_WINDOW, FLAG_SYN, 0),
        ]
        .concat();
        for step in 1..=frames.len() {
            let mut heads = Heads::default();
            let opened: usize = frames.chunks(step).map(|cut| heads.pass(cut).unwrap()).sum();
            assert_eq!(opened, 2, "in pieces of {step}");
        }
        let long = frame(KIND_DATA, 0, UNPROVEN_FRAME_MAX_BYTES + 1);
        assert!(Heads::default().pass(&long[..HEAD_BYTES - 1]).is_ok());
        assert!(Heads::default().pass(&long[..HEAD_BYTES]).is_err());
    }

    async fn gate(admission: &Admission, peer: PeerId) -> (Gate<TcpStream>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let here = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (there, _) = listener.accept().await.unwrap();
        let gated = Gated { inner: (), peer, admission: Some(admission.clone()) };
        (gated.gate(here), there)
    }

    #[test]
    fn a_stranger_is_read_so_far_and_a_member_to_the_end() {
        smol::block_on(async {
            let (admission, peer) = (Admission::default(), PeerId::random());
            let (mut gate, mut there) = gate(&admission, peer).await;
            let sent = frame(KIND_DATA, 0, 10_000).repeat(20);
            let writer = smol::spawn({
                let sent = sent.clone();
                async move {
                    there.write_all(&sent).await.unwrap();
                    there
                }
            });
            let mut read = vec![0; UNPROVEN_BYTES_MAX];
            gate.read_exact(&mut read).await.unwrap();
            // It waits, and is woken when its peer is admitted.
            let rest = smol::spawn(async move {
                let mut rest = Vec::new();
                gate.read_to_end(&mut rest).await.unwrap();
                rest
            });
            while admission.state().waiting.is_empty() {
                smol::future::yield_now().await;
            }
            admission.admit(peer);
            drop(writer.await);
            read.extend(rest.await);
            assert!(read == sent);
            assert!(admission.state().waiting.is_empty());
        });
    }

    #[test]
    fn who_reads_nothing_is_given_up() {
        smol::block_on(async {
            let (admission, peer) = (Admission::default(), PeerId::random());
            let (mut gate, there) = gate(&admission, peer).await;
            let start = std::time::Instant::now();
            let error = loop {
                if let Err(error) = gate.write_all(&[7; 1 << 20]).await {
                    break error;
                }
            };
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            assert!(start.elapsed().as_secs() >= UNPROVEN_STALL_SECONDS);
            drop(there);
        });
    }

    #[test]
    fn who_reads_now_and_then_is_waited_for() {
        smol::block_on(async {
            let mut patience = Patience::default();
            let start = std::time::Instant::now();
            for _ in 0..15 {
                let waits = std::future::poll_fn(|context| {
                    patience.or_given_up(context, 1, Poll::<io::Result<()>>::Pending)
                });
                let pause = smol::Timer::after(std::time::Duration::from_millis(100));
                let first = futures::future::select(Box::pin(waits), pause).await;
                assert!(matches!(first, futures::future::Either::Right(_)), "given up");
                drop(first);
                let context = &mut Context::from_waker(Waker::noop());
                assert!(patience.or_given_up(context, 1, Poll::Ready(Ok(()))).is_ready());
            }
            assert!(start.elapsed().as_secs() >= 1);
        });
    }

    #[test]
    fn streams_use_up_what_a_stranger_may_send() {
        smol::block_on(async {
            let (admission, peer) = (Admission::default(), PeerId::random());
            let (mut gate, mut there) = gate(&admission, peer).await;
            let most = UNPROVEN_BYTES_MAX / UNPROVEN_STREAM_BYTES;
            let one = frame(KIND_WINDOW, FLAG_SYN, 0);
            there.write_all(&one.repeat(most + 10)).await.unwrap();
            let mut read = 0;
            let mut piece = vec![0; 1_000];
            // The last one may be begun within the limit.
            while let Some(count) = gate.read(&mut piece).now_or_never() {
                read += count.unwrap();
                assert!(read <= (most + 1) * one.len(), "streams beyond the limit");
            }
            assert!(read > (most / 2) * one.len());
            assert!(!admission.state().waiting.is_empty());
            // A gate that is gone leaves no trace.
            drop(gate);
            assert!(admission.state().waiting.is_empty());
        });
    }
}
