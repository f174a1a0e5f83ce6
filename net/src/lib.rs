//! The wavesync network: libp2p connections, streams of frames, and finding peers in the local
//! network. It moves bytes between peers and knows nothing of tables, keys or the sync protocol.

pub mod driver;
mod error;
#[cfg_attr(target_family = "wasm", path = "lan_browser.rs")]
mod lan;
mod network;
mod streams;
mod time;

pub use error::NetError;
pub use network::{
    Config, Event, Network, PeerKey, RelayConfig, RelayReport, check_address, check_relay,
};
pub use streams::{
    FRAME_PAYLOAD_MAX_BYTES, INBOUND_STREAMS_MAX, INBOUND_UNREAD_MAX_BYTES,
    OUTBOUND_QUEUE_HIGH_BYTES, OUTBOUND_QUEUE_LOW_BYTES, OUTBOUND_QUEUE_MAX_BYTES, PROTOCOL,
    StreamId,
};
pub use wavesync_transport::{UNPROVEN_BYTES_MAX, UNPROVEN_STREAM_BYTES};
