//! What the network tells its owner.

use crate::streams::StreamId;

use super::PeerKey;

/// Something that happened. Everything about a peer comes between its `Connected` and its
/// `Disconnected`, everything about a stream between its `StreamOpened` and its `Closed`.
#[derive(Debug)]
pub enum Event {
    /// We listen at this address.
    Listening {
        /// The address with its real port.
        address: String,
    },
    /// We do not listen at this address, or not any longer.
    ListenFailed {
        /// The address that was asked for.
        address: String,
        /// What the system said.
        reason: String,
    },
    /// The first connection to a peer exists.
    Connected {
        /// The peer, proven by the encryption handshake.
        peer: PeerKey,
        /// Its address on this connection.
        address: String,
        /// Whether a relay is in between.
        relayed: bool,
        /// Whether we dialed.
        dialer: bool,
    },
    /// New streams to the peer take another connection from now on.
    PathChanged {
        /// The peer.
        peer: PeerKey,
        /// Its address on that connection.
        address: String,
        /// Whether a relay is in between.
        relayed: bool,
    },
    /// A dial has led somewhere, or would have: there is a connection already.
    Reached {
        /// The address that was dialed, without a peer id.
        address: String,
    },
    /// The last connection to a peer is gone.
    Disconnected {
        /// The peer.
        peer: PeerKey,
    },
    /// A stream exists.
    StreamOpened {
        /// The peer at its other end.
        peer: PeerKey,
        /// Its name.
        stream: StreamId,
        /// The token given to `open_stream`; `None` when the peer opened the stream.
        token: Option<u64>,
    },
    /// A stream could not be opened.
    OpenFailed {
        /// The peer.
        peer: PeerKey,
        /// The token given to `open_stream`.
        token: u64,
        /// Why, and whether trying again helps.
        reason: String,
    },
    /// A frame arrived. Taking this event is what lets the stream be read on.
    Frame {
        /// The stream.
        stream: StreamId,
        /// The payload.
        bytes: Vec<u8>,
    },
    /// The queue of a stream was longer than `OUTBOUND_QUEUE_HIGH_BYTES` and is now no longer than
    /// `OUTBOUND_QUEUE_LOW_BYTES`: send on.
    Drained {
        /// The stream.
        stream: StreamId,
    },
    /// A stream is over.
    Closed {
        /// The stream.
        stream: StreamId,
        /// It ended between two frames, with everything of ours sent. A lost connection can look
        /// just like that, so this never proves that the peer had nothing more to say.
        clean: bool,
        /// For people.
        reason: String,
    },
    /// A dial led to no connection.
    DialFailed {
        /// What was dialed; several addresses are separated by a comma and a space.
        address: String,
        /// The peer, if it was known.
        peer: Option<PeerKey>,
        /// Why.
        reason: String,
    },
    /// Members reach us through a relay from now on.
    RelayReserved {
        /// The relay, as configured.
        address: String,
        /// Bytes that it lets through one circuit, if it limits them.
        limit_bytes: Option<u64>,
    },
    /// A relay could not be used, or not any longer; it is tried again.
    RelayLost {
        /// The relay, as configured.
        address: String,
        /// Why.
        reason: String,
    },
    /// A relay named members, or that there are none; see `Network::relays_are_settled`.
    RelayAnswered,
    /// A member of the group is in the local network, or at a relay.
    Discovered {
        /// Who it says it is; a connection will prove it.
        peer: PeerKey,
        /// Where it says it listens, or how it is reached through the relay.
        addresses: Vec<String>,
    },
    /// How long a message to a peer and back takes.
    Rtt {
        /// The peer.
        peer: PeerKey,
        /// The measured time.
        millis: f64,
    },
}
