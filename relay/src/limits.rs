//! What a relay allows unless it is configured otherwise.
//!
//! libp2p's own limits (16 circuits, 128 KiB, 2 minutes) cut every catch-up short.

/// Peers that may wait for circuits at a time.
pub(crate) const RESERVATIONS_MAX: usize = 4096;
pub(crate) const RESERVATIONS_PER_PEER_MAX: usize = 8;
/// Clients renew before this is over. Its end is told as a time of day, which a client compares with its own
/// clock: one that is hours or days wrong must not see an end in the past, nor one that is far off.
/// What a peer has ends with its connection in any case.
pub(crate) const RESERVATION_SECONDS: u64 = 7 * 24 * 60 * 60;
pub(crate) const CIRCUITS_MAX: usize = 8192;
pub(crate) const CIRCUITS_PER_PEER_MAX: usize = 256;
pub(crate) const CIRCUIT_SECONDS: u64 = 24 * 60 * 60;
/// Zero is "no limit", in libp2p's relay as on the wire.
pub(crate) const CIRCUIT_BYTES_UNLIMITED: u64 = 0;
/// Each limit of rate is a bucket that holds this many and gains one per interval.
pub(crate) const RESERVATIONS_PER_PEER_BURST: u32 = 32;
pub(crate) const RESERVATION_PER_PEER_INTERVAL_SECONDS: u64 = 10;
pub(crate) const CIRCUITS_PER_PEER_BURST: u32 = 256;
pub(crate) const CIRCUIT_PER_PEER_INTERVAL_SECONDS: u64 = 1;
/// Many peers may share one address: a household, an office, a mobile carrier.
pub(crate) const PER_IP_BURST: u32 = 1024;
pub(crate) const PER_IP_INTERVAL_MILLISECONDS: u64 = 100;
pub(crate) const CONNECTIONS_MAX: u32 = 16_384;
pub(crate) const CONNECTIONS_PER_PEER_MAX: u32 = 8;
pub(crate) const CONNECTIONS_PER_IP_MAX: u32 = 1024;
/// Connections whose peers have not proven an identity yet; and of one IP address.
pub(crate) const CONNECTIONS_PENDING_MAX: u32 = 512;
pub(crate) const CONNECTIONS_PENDING_PER_IP_MAX: u32 = 128;
/// Groups that a peer may be in at this relay.
pub(crate) const GROUPS_PER_PEER_MAX: usize = 32;
/// Peers remembered at the meeting point, once for each group.
pub(crate) const MEETING_MAX: usize = 16_384;

/// A connection is given up after so many pings in a row without an answer.
pub(crate) const PING_FAILURES_MAX: u32 = 2;
/// A connection without reservation or circuit is closed after this.
pub(crate) const IDLE_TIMEOUT_SECONDS: u64 = 60;
/// Peers that did not come again to the meeting point are looked for this often.
pub(crate) const TICK_SECONDS: u64 = 15;
/// After a signal, circuits have this long to end by themselves.
pub(crate) const DRAIN_MAX_MILLISECONDS: u64 = 3_000;
/// Then connections are closed, which may take this long.
pub(crate) const CLOSE_MAX_MILLISECONDS: u64 = 1_000;
/// A request to the metrics port, with its answer.
pub(crate) const HTTP_MAX_MILLISECONDS: u64 = 5_000;
pub(crate) const HTTP_HEAD_MAX_BYTES: usize = 8 * 1024;
pub(crate) const HTTP_REQUESTS_MAX: usize = 32;
