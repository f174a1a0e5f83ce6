//! TCP and DNS for libp2p on async-io: what `libp2p-tcp` and `libp2p-dns` do, without tokio.
//!
//! The two compose: `DnsTransport::new(TcpTransport::new())`. Neither knows about encryption,
//! multiplexing or peers; the swarm adds those on top. Futures of this crate run on any executor,
//! because async-io brings its own reactor thread.

mod address;
mod dns;
mod listener;
mod tcp;

pub use dns::{DnsError, DnsTransport};
pub use tcp::{TcpStream, TcpTransport};
