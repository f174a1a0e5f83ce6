//! The TCP transport: listening, dialing, port reuse for hole punching.
//!
//! A dial with `PortUse::Reuse` leaves from the port of one of our listeners, so that a NAT maps
//! both to one outside port and a peer can punch through to the listener.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::Pin,
    task::{Context, Poll},
};

use async_io::Async;
use futures::{
    StreamExt,
    future::{BoxFuture, Ready},
    stream::SelectAll,
};
use libp2p::core::{
    multiaddr::Multiaddr,
    transport::{DialOpts, ListenerId, PortUse, Transport, TransportError, TransportEvent},
};
use socket2::{Domain, Socket, Type};

use crate::{address::to_socket_address, listener::Listener};

/// A connected TCP stream.
pub type TcpStream = Async<std::net::TcpStream>;

/// Connections that the kernel holds for us until we accept them.
const ACCEPT_BACKLOG_CONNECTIONS: i32 = 1024;

/// TCP over `/ip4/…/tcp/…` and `/ip6/…/tcp/…`.
#[derive(Default)]
pub struct TcpTransport {
    listeners: SelectAll<Listener>,
    /// Where each live listener is bound: the ports that a dial may leave from.
    bound: HashMap<ListenerId, SocketAddr>,
}

impl TcpTransport {
    /// A transport that listens nowhere yet.
    pub fn new() -> TcpTransport {
        TcpTransport::default()
    }

    /// The local address a dial to `remote` leaves from to share a listener's port, if one fits.
    fn local_address_for(&self, remote: &SocketAddr) -> Option<SocketAddr> {
        let fits = |local: &&SocketAddr| {
            local.is_ipv4() == remote.is_ipv4()
                && (local.ip().is_unspecified()
                    || local.ip().is_loopback() == remote.ip().is_loopback())
        };
        let port = self.bound.values().find(fits)?.port();
        let any: IpAddr = match remote {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        Some(SocketAddr::new(any, port))
    }
}

impl Transport for TcpTransport {
    type Output = TcpStream;
    type Error = io::Error;
    type ListenerUpgrade = Ready<Result<TcpStream, io::Error>>;
    type Dial = BoxFuture<'static, Result<TcpStream, io::Error>>;

    fn listen_on(
        &mut self,
        id: ListenerId,
        address: Multiaddr,
    ) -> Result<(), TransportError<io::Error>> {
        let Some(socket) = to_socket_address(&address) else {
            return Err(TransportError::MultiaddrNotSupported(address));
        };
        let bound = listening_socket(socket).map_err(TransportError::Other)?;
        let listener = Listener::new(id, bound).map_err(TransportError::Other)?;
        self.bound.insert(id, listener.local_address());
        self.listeners.push(listener);
        Ok(())
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.bound.remove(&id);
        match self.listeners.iter_mut().find(|listener| listener.id() == id) {
            Some(listener) => {
                listener.close();
                true
            }
            None => false,
        }
    }

    fn dial(
        &mut self,
        address: Multiaddr,
        options: DialOpts,
    ) -> Result<Self::Dial, TransportError<io::Error>> {
        let remote = match to_socket_address(&address) {
            Some(remote) if remote.port() != 0 && !remote.ip().is_unspecified() => remote,
            _ => return Err(TransportError::MultiaddrNotSupported(address)),
        };
        let local = match options.port_use {
            PortUse::Reuse => self.local_address_for(&remote),
            PortUse::New => None,
        };
        Ok(Box::pin(connect(remote, local)))
    }

    fn poll(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, io::Error>> {
        match self.listeners.poll_next_unpin(context) {
            Poll::Ready(Some(event)) => Poll::Ready(event),
            // Nobody listens; the swarm polls again after the next `listen_on`.
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }
}

/// A non-blocking socket with the options that listening and dialing have in common.
fn new_socket(address: &SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(*address), Type::STREAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Lets a dial share a listener's port. On Windows the same option would let strangers take the
/// port over, so ports are not shared there.
#[cfg(unix)]
fn share_port(socket: &Socket) -> io::Result<()> {
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)
}

#[cfg(not(unix))]
fn share_port(_: &Socket) -> io::Result<()> {
    Ok(())
}

fn listening_socket(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    if address.port() != 0 {
        refuse_taken_port(&address)?;
    }
    let socket = new_socket(&address)?;
    share_port(&socket)?;
    socket.bind(&address.into())?;
    socket.listen(ACCEPT_BACKLOG_CONNECTIONS)?;
    Ok(socket.into())
}

/// Shared ports would let a second process listen on a fixed port in silence and take half of the
/// connections; a bind that does not share tells whether somebody is there.
fn refuse_taken_port(address: &SocketAddr) -> io::Result<()> {
    let probe = new_socket(address)?;
    #[cfg(unix)]
    probe.set_reuse_address(true)?;
    probe.bind(&(*address).into())
}

/// Connects, from `local` when given. When that pair of ends is taken already (another connection
/// between the same two listeners), it connects from a fresh port instead.
async fn connect(remote: SocketAddr, local: Option<SocketAddr>) -> io::Result<TcpStream> {
    match connect_once(remote, local).await {
        Err(error) if local.is_some() && ends_are_taken(&error) => {
            tracing::debug!(%remote, %error, "dialing from a fresh port");
            connect_once(remote, None).await
        }
        result => result,
    }
}

fn ends_are_taken(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AddrNotAvailable | io::ErrorKind::AddrInUse)
}

async fn connect_once(remote: SocketAddr, local: Option<SocketAddr>) -> io::Result<TcpStream> {
    let socket = new_socket(&remote)?;
    socket.set_tcp_nodelay(true)?;
    if let Some(local) = local {
        share_port(&socket)?;
        socket.bind(&local.into())?;
    }
    match socket.connect(&remote.into()) {
        Ok(()) => {}
        Err(error) if connect_goes_on(&error) => {}
        Err(error) => return Err(error),
    }
    let stream = Async::new_nonblocking(std::net::TcpStream::from(socket))?;
    stream.writable().await?;
    match stream.get_ref().take_error()? {
        None => Ok(stream),
        Some(error) => Err(error),
    }
}

fn connect_goes_on(error: &io::Error) -> bool {
    #[cfg(unix)]
    if error.raw_os_error() == Some(libc::EINPROGRESS) {
        return true;
    }
    error.kind() == io::ErrorKind::WouldBlock
}
