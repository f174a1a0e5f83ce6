//! TCP and DNS for libp2p on async-io: what `libp2p-tcp` and `libp2p-dns` do, without tokio.
//!
//! The two compose: `DnsTransport::new(TcpTransport::new())`. Neither knows about encryption,
//! multiplexing or peers; [`stack()`] adds those, websockets and circuits on top, for peers and relays
//! alike. Futures of this crate run on any executor, because async-io brings its own reactor thread.
//!
//! In a browser there are the browser's own websockets instead, under the same stack.
//!
//! What a peer and a relay say to each other beyond libp2p's own protocols is here too: [`Meet`].

#[cfg(not(target_family = "wasm"))]
mod address;
mod crowd;
#[cfg(not(target_family = "wasm"))]
mod dns;
mod gate;
#[cfg(not(target_family = "wasm"))]
mod listener;
mod meet;
mod stack;
#[cfg(not(target_family = "wasm"))]
mod tcp;

pub use crowd::{Crowd, CrowdLimits, TooMany};
#[cfg(not(target_family = "wasm"))]
pub use dns::{DnsError, DnsTransport};
pub use gate::{Admission, UNPROVEN_BYTES_MAX, UNPROVEN_FRAME_MAX_BYTES, UNPROVEN_STREAM_BYTES};
pub use meet::{
    MEET_MEMBERS_MAX, MEET_PROTOCOL, MEET_TAG_BYTES, Meet, MeetBehaviour, MeetCodec, MeetEvent,
    Met, meeting,
};
#[cfg(not(target_family = "wasm"))]
pub use stack::{Certificate, TRUST_VARIABLE};
pub use stack::{Connections, StackError, stack};
#[cfg(not(target_family = "wasm"))]
pub use tcp::{TcpStream, TcpTransport};
