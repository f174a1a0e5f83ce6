//! What the machine remembers of peers and streams.

use std::collections::BTreeSet;
use std::fmt;

use crate::auth::{Accepting, Channel, Offering, Session};
use crate::ids::{Cursor, Millis, Seq, SiteId};
use crate::limits;
use crate::store::adopt::TableSchema;
use crate::store::apply::Full;
use crate::store::collect::Collected;
use crate::store::scan::Place;
use crate::store::vector::{Caps, Vector};
use crate::wire::message::State;

/// A control stream that ended or failed is opened again after this long, in milliseconds; the time
/// doubles with each one that did not last.
const CONTROL_RETRY_MS: u64 = 250;
/// It doubles so often at most: to 16 seconds.
const CONTROL_DOUBLINGS_MAX: u32 = 6;

/// A peer's id on the network, as the transport has authenticated it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub Vec<u8>);

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().rev().take(4).try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A stream as the driver numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u64);

/// A connected peer.
#[derive(Default)]
pub(super) struct Peer {
    pub address: String,
    /// Since when it is connected.
    pub since: Millis,
    /// When something that went wrong with it was last told.
    pub told_at: Option<Millis>,
    pub relayed: bool,
    pub rtt_ms: Option<f64>,
    /// The control stream, once its handshake is complete.
    pub control: Option<StreamId>,
    pub session: Option<Session>,
    /// A control stream of ours is being opened or shaking hands.
    pub greeting: bool,
    /// When to try the handshake again after it failed.
    pub retry_at: Option<Millis>,
    pub known: Option<Known>,
    /// A catch-up of ours is being opened or under way (one in flight per peer).
    pub requesting: bool,
    /// It brings rows from before it joined that are not here.
    pub first_contact: bool,
    /// The catch-up is asked for with a sample of the rows here.
    pub sampled: bool,
    /// What the catch-up asks for.
    pub full: Full,
    /// When the catch-up that is under way was begun.
    pub asked: Millis,
    /// What it had forgotten when everything was taken over from it.
    pub taken_over: Option<Collected>,
    /// Each has forgotten deletes that the other has not seen (rule K5).
    pub apart: bool,
    /// Nothing is exchanged with it until the user has decided.
    pub stopped: Option<super::contact::Judged>,
    /// Its schema is to come first.
    pub awaits_schema: bool,
    pub wants_schema: bool,
    pub counters: Counters,
    pub last_error: Option<(String, String)>,
    /// Since when it has what others, who are connected, wrote and will have sent.
    pub ahead_since: Option<Millis>,
    /// When it was last asked although it has nothing that the own vector lacks.
    pub asked_at: Option<Millis>,
    /// The version vector and the caps that it was last told on this control stream.
    pub told: Option<Vector>,
    pub caps_told: Option<Caps>,
    /// What it was told of what was forgotten here.
    pub collected_told: Option<Collected>,
    /// The schema that it was last told on this control stream.
    pub schema_told: Option<Vec<TableSchema>>,
    /// Highest number of a stream that the peer attached to the session.
    pub attached: u64,
    /// Control streams in a row that did not last.
    pub falls: u32,
    /// Handshakes in a row that failed.
    pub refusals: u32,
    /// Messages in a row that could not be understood, up to the next catch-up that ended well.
    pub faults: u32,
    /// Nothing is asked for before, because of them.
    pub ask_after: Option<Millis>,
    /// The handshake is complete and our hello has not been sent.
    pub hello_due: bool,
    /// When it was last told to go: nothing of it is heard any more.
    pub leaving: Option<Millis>,
    /// It holds back what was written here, because this clock is ahead.
    pub held_back: bool,
    /// Whether it holds the same rows.
    pub check: super::check::PeerCheck,
}

impl Peer {
    /// Its control stream ended, or did not come about: the next one waits a while.
    pub fn control_fell(&mut self, now: Millis, lasted: bool) {
        self.falls = if lasted { 0 } else { (self.falls + 1).min(CONTROL_DOUBLINGS_MAX) };
        let retry = now.plus(CONTROL_RETRY_MS << self.falls);
        self.retry_at = Some(self.retry_at.map_or(retry, |at| at.max(retry)));
    }
}

/// What a peer said of itself.
pub(super) struct Known {
    pub site: SiteId,
    pub name: String,
    /// It compares digests.
    pub digests: bool,
    pub state: State,
    pub vector: Vector,
    /// Sites of which it claimed more than a cap leaves: its log may hold rows that nobody counts as
    /// seen, whatever it says of that (rule P12).
    pub over: BTreeSet<SiteId>,
    /// What of that it has applied (rule P17).
    pub applied: Vector,
    /// What it has forgotten (rule P18).
    pub collected: Collected,
    /// Our cursor into its log.
    pub cursor: Cursor,
    /// Folded end of its log that a pass of ours is heading for.
    pub started_at: Seq,
    /// Of the running catch-up, in key order: rows that came, and rows that it has about; 0 where the
    /// log is read.
    pub in_order: (u64, u64),
}

/// Counters of one peer since the engine started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counters {
    pub rows_in: u64,
    pub rows_out: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub requests_out: u64,
    pub last_sync: Option<Millis>,
}

/// An open stream.
pub(super) struct Stream {
    pub peer: PeerId,
    pub kind: StreamKind,
    /// We opened it as the control stream.
    pub offered: bool,
    /// Since when it is in this state.
    pub since: Millis,
}

/// What a stream is for and how far it got.
pub(super) enum StreamKind {
    /// Opened by the peer; its first frame will tell.
    Fresh,
    /// One of both refused what the other said on it: it is to be closed.
    Refused,
    /// Our greeting is out.
    Offering(Offering),
    /// The peer's greeting was answered.
    Accepting(Accepting),
    /// Handshake complete.
    Control { channel: Channel },
    /// A catch-up of ours.
    Incoming { channel: Channel, position: Option<Seq> },
    /// Rows that we read again from the peer.
    Again { channel: Channel },
    /// A catch-up of the peer; nothing is known until its request.
    Outgoing { channel: Channel, serving: Option<Serving> },
}

/// A catch-up that we serve.
pub(super) struct Serving {
    pub place: Place,
    pub vector: Vector,
    /// What the requester has applied, and what was forgotten here when it asked (rule P19).
    pub applied: Vector,
    pub collected: Collected,
    pub full: bool,
    /// Chunks that may still be sent.
    pub credit: u32,
    /// Rows that a chunk may have.
    pub rows: usize,
    /// Rows that a pass in key order has about, counted when it began.
    pub expected: u64,
    /// For the mutant that ends a scan where it was when it started.
    #[cfg_attr(not(feature = "mutants"), allow(dead_code))]
    pub end_at_start: Seq,
}

impl StreamKind {
    /// Whether it belongs to a session with a member.
    pub fn is_proven(&self) -> bool {
        match self {
            Self::Fresh | Self::Refused | Self::Offering(_) | Self::Accepting(_) => false,
            Self::Control { .. }
            | Self::Incoming { .. }
            | Self::Again { .. }
            | Self::Outgoing { .. } => true,
        }
    }
}

impl Stream {
    pub fn new(peer: PeerId, kind: StreamKind, since: Millis) -> Self {
        Self { peer, kind, offered: false, since }
    }

    /// When the stream is given up if nothing happens on it.
    pub fn deadline(&self) -> Option<Millis> {
        match self.kind {
            StreamKind::Control { .. } => None,
            StreamKind::Fresh
            | StreamKind::Refused
            | StreamKind::Offering(_)
            | StreamKind::Accepting(_) => Some(self.since.plus(limits::HANDSHAKE_MAX_MS)),
            StreamKind::Incoming { .. }
            | StreamKind::Again { .. }
            | StreamKind::Outgoing { .. } => Some(self.since.plus(limits::PASS_STALL_MS)),
        }
    }
}
