//! One listening socket as a stream of transport events. A socket bound to "any address" is
//! announced once for each address of the machine, and follows them as they come and go.

use std::{
    collections::VecDeque,
    future::Future,
    io,
    net::{IpAddr, SocketAddr, TcpListener},
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use async_io::{Async, Timer};
use futures::{
    Stream,
    future::{self, Ready},
    ready,
};
use if_watch::{IfEvent, smol::IfWatcher};
use libp2p::core::transport::{ListenerId, TransportEvent};

use crate::{address::to_multiaddr, tcp::TcpStream};

/// After a failed accept (out of file descriptors, say) the listener waits this long.
const ACCEPT_PAUSE_MILLISECONDS: u64 = 100;

type Event = TransportEvent<Ready<Result<TcpStream, io::Error>>, io::Error>;

pub(crate) struct Listener {
    id: ListenerId,
    socket: Async<TcpListener>,
    local: SocketAddr,
    /// Present when bound to "any address".
    interfaces: Option<IfWatcher>,
    ready: VecDeque<Event>,
    pause: Option<Timer>,
    closed: bool,
    waker: Option<Waker>,
}

impl Listener {
    pub(crate) fn new(id: ListenerId, socket: TcpListener) -> io::Result<Listener> {
        let local = socket.local_addr()?;
        let mut ready = VecDeque::new();
        let mut interfaces = None;
        if local.ip().is_unspecified() {
            match IfWatcher::new() {
                Ok(watcher) => interfaces = Some(watcher),
                // Some sandboxes forbid asking for interfaces. Listening still works.
                Err(error) => {
                    tracing::warn!(%error, "the addresses of this machine are unknown");
                    ready.push_back(new_address(id, local));
                }
            }
        } else {
            ready.push_back(new_address(id, local));
        }
        let socket = Async::new_nonblocking(socket)?;
        Ok(Listener {
            id,
            socket,
            local,
            interfaces,
            ready,
            pause: None,
            closed: false,
            waker: None,
        })
    }

    pub(crate) fn id(&self) -> ListenerId {
        self.id
    }

    /// Where the socket is bound, with its real port.
    pub(crate) fn local_address(&self) -> SocketAddr {
        self.local
    }

    /// Ends the stream after one last event that says so.
    pub(crate) fn close(&mut self) {
        if !self.closed {
            self.closed = true;
            self.ready.clear();
            self.ready
                .push_back(TransportEvent::ListenerClosed { listener_id: self.id, reason: Ok(()) });
        }
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn poll_interfaces(&mut self, context: &mut Context<'_>) -> Poll<Event> {
        loop {
            let Some(watcher) = self.interfaces.as_mut() else { return Poll::Pending };
            match ready!(watcher.poll_if_event(context)) {
                Ok(IfEvent::Up(network)) => {
                    if let Some(address) = self.announced(network.addr()) {
                        return Poll::Ready(new_address(self.id, address));
                    }
                }
                Ok(IfEvent::Down(network)) => {
                    if let Some(address) = self.announced(network.addr()) {
                        return Poll::Ready(TransportEvent::AddressExpired {
                            listener_id: self.id,
                            listen_addr: to_multiaddr(address),
                        });
                    }
                }
                Err(error) => {
                    self.interfaces = None;
                    return Poll::Ready(TransportEvent::ListenerError {
                        listener_id: self.id,
                        error,
                    });
                }
            }
        }
    }

    /// The address to announce for one of the machine's, if it is of our family and can be dialed
    /// (an IPv6 link-local address can not: its zone means nothing elsewhere).
    fn announced(&self, ip: IpAddr) -> Option<SocketAddr> {
        let dialable = match ip {
            IpAddr::V4(_) => self.local.is_ipv4(),
            IpAddr::V6(ip) => self.local.is_ipv6() && !ip.is_unicast_link_local(),
        };
        dialable.then(|| SocketAddr::new(ip, self.local.port()))
    }

    fn poll_accept(&mut self, context: &mut Context<'_>) -> Poll<Event> {
        loop {
            if let Some(pause) = self.pause.as_mut() {
                ready!(Pin::new(pause).poll(context));
                self.pause = None;
            }
            match self.socket.get_ref().accept() {
                Ok((stream, remote)) => match prepare(stream) {
                    Ok((stream, local)) => {
                        return Poll::Ready(TransportEvent::Incoming {
                            listener_id: self.id,
                            upgrade: future::ready(Ok(stream)),
                            local_addr: to_multiaddr(local),
                            send_back_addr: to_multiaddr(remote),
                        });
                    }
                    // That one connection is gone already.
                    Err(error) => tracing::debug!(%error, %remote, "dropped while accepting"),
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if let Err(error) = ready!(self.socket.poll_readable(context)) {
                        return Poll::Ready(self.accept_failed(error));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => return Poll::Ready(self.accept_failed(error)),
            }
        }
    }

    fn accept_failed(&mut self, error: io::Error) -> Event {
        self.pause = Some(Timer::after(Duration::from_millis(ACCEPT_PAUSE_MILLISECONDS)));
        TransportEvent::ListenerError { listener_id: self.id, error }
    }
}

impl Stream for Listener {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Event>> {
        if let Some(event) = self.ready.pop_front() {
            return Poll::Ready(Some(event));
        }
        if self.closed {
            return Poll::Ready(None);
        }
        if let Poll::Ready(event) = self.poll_interfaces(context) {
            return Poll::Ready(Some(event));
        }
        if let Poll::Ready(event) = self.poll_accept(context) {
            return Poll::Ready(Some(event));
        }
        self.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

fn new_address(listener_id: ListenerId, address: SocketAddr) -> Event {
    TransportEvent::NewAddress { listener_id, listen_addr: to_multiaddr(address) }
}

fn prepare(stream: std::net::TcpStream) -> io::Result<(TcpStream, SocketAddr)> {
    stream.set_nodelay(true)?;
    let local = stream.local_addr()?;
    Ok((Async::new(stream)?, local))
}
