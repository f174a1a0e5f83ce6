//! What the machine tells a user about peers and progress.

use crate::ids::{Boot, Millis, Seq, SiteId};
use crate::machine::{CheckCounts, Machine, PeerId};
use crate::mutants::{self, Mutant};

/// A row of `wavesync_peers`.
#[derive(Clone, Debug, PartialEq)]
pub struct PeerReport {
    /// Its network id.
    pub peer: PeerId,
    /// Its site id, once it is proven to be a member.
    pub site: Option<SiteId>,
    /// What its user calls it.
    pub name: String,
    /// `connecting`, `synced`, `syncing`, `unrelated`, `apart` or `refused`.
    pub state: &'static str,
    /// Through a relay.
    pub relayed: bool,
    /// Where.
    pub address: String,
    /// Round trip time in milliseconds.
    pub rtt_ms: Option<f64>,
    /// Log entries of it that were not read yet.
    pub rows_behind: i64,
    /// Rows received from it since the engine started.
    pub rows_in: u64,
    /// Rows sent to it since the engine started.
    pub rows_out: u64,
    /// Bytes received from it.
    pub bytes_in: u64,
    /// Bytes sent to it.
    pub bytes_out: u64,
    /// Catch-ups that were asked of it.
    pub requests_out: u64,
    /// When something last came from it.
    pub last_sync: Option<Millis>,
    /// What last went wrong with it.
    pub last_error: String,
    /// What to do about that.
    pub hint: String,
    /// It holds back what was written here, because this clock is ahead (rule P17).
    pub held_back: bool,
}

/// Where this replica stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Its folded end.
    pub db_version: i64,
    /// Peers that are proven members.
    pub members: usize,
    /// Log entries of all peers that were not read yet.
    pub rows_behind: i64,
    /// Of running catch-ups: rows that came, while they come in key order, else log entries that
    /// were read.
    pub done: i64,
    /// How many there are about.
    pub expected: i64,
    /// Everything of every connected peer is here, and everything from here is there.
    pub caught_up: bool,
    /// Existing rows are still being taken in.
    pub importing: bool,
    /// What SQLite last refused, while it does.
    pub last_error: String,
    /// What to do about it.
    pub hint: &'static str,
    /// How often it was compared with others, and what came of it (rule P15).
    pub check: CheckCounts,
}

impl Machine {
    /// A row for each connected peer.
    #[must_use]
    pub fn peers(&self) -> Vec<PeerReport> {
        self.peers
            .iter()
            .map(|(id, peer)| {
                let known = peer.known.as_ref();
                let behind = known.map_or(0, behind);
                let state = match (known, &peer.last_error) {
                    (Some(_), _) if peer.stopped.is_some() => "unrelated",
                    (Some(_), _) if peer.apart => "apart",
                    (Some(_), _) if behind == 0 && !peer.requesting => "synced",
                    (Some(_), _) => "syncing",
                    (None, Some(_)) => "refused",
                    (None, None) => "connecting",
                };
                let wrong = peer.last_error.clone().or_else(|| peer.check.difference.clone());
                let (last_error, mut hint) = wrong.unwrap_or_default();
                if peer.held_back && hint.is_empty() {
                    hint = "it holds back what is written here: this clock is ahead".into();
                }
                let counters = peer.counters;
                PeerReport {
                    peer: id.clone(),
                    site: known.map(|known| known.site),
                    name: known.map(|known| known.name.clone()).unwrap_or_default(),
                    state,
                    relayed: peer.relayed,
                    address: peer.address.clone(),
                    rtt_ms: peer.rtt_ms,
                    rows_behind: behind,
                    rows_in: counters.rows_in,
                    rows_out: counters.rows_out,
                    bytes_in: counters.bytes_in,
                    bytes_out: counters.bytes_out,
                    requests_out: counters.requests_out,
                    last_sync: counters.last_sync,
                    last_error,
                    hint,
                    held_back: peer.held_back,
                }
            })
            .collect()
    }

    /// Where this replica stands. Never says "caught up" while something is known to be missing.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let members: Vec<_> =
            self.peers.values().filter_map(|p| p.known.as_ref().map(|k| (p, k))).collect();
        let related = || members.iter().filter(|(peer, _)| peer.stopped.is_none() && !peer.apart);
        let pending =
            self.peers.values().any(|peer| peer.known.is_none() && peer.last_error.is_none());
        let own = self.announced.as_ref();
        let settled = !self.own_dirty
            && !self.fold_waiting
            && !self.importing
            && self.inbox.is_empty()
            && self.retry_at.is_none();
        let even = own.is_some_and(|own| {
            related().all(|(peer, known)| {
                !peer.requesting
                    && !peer.awaits_schema
                    && behind(known) == 0
                    && own.vector.covers_all(&known.vector)
                    && known.vector.covers_all(&own.vector)
            })
        });
        let fed = members.iter().any(|(peer, _)| peer.counters.rows_in > 0);
        let even = even && (fed || !mutants::on(Mutant::CaughtUpByRows));
        let running = members.iter().filter(|(peer, _)| peer.requesting);
        let (mut done, mut expected) = (0, 0);
        for (_, known) in running {
            let (came, of) = progress(known);
            done += came;
            expected += of;
        }
        let (last_error, hint) = self.what_is_wrong();
        Progress {
            db_version: self.own.as_ref().map_or(0, |own| own.end.0),
            members: members.len(),
            rows_behind: members.iter().map(|(_, known)| behind(known)).sum(),
            done,
            expected,
            caught_up: related().next().is_some() && settled && even && !pending,
            importing: self.importing,
            check: self.check.counts,
            last_error,
            hint,
        }
    }
}

impl Machine {
    /// What keeps this replica from its work, and what to do about that.
    fn what_is_wrong(&self) -> (String, &'static str) {
        if self.retry_at.is_some() {
            return self.last_error.clone().unwrap_or_default();
        }
        if self.own.as_ref().is_some_and(|own| !own.left_out.is_empty()) {
            return (
                "other members have more for tables that are not here than is kept; create the \
                 missing tables and call wavesync_retry(), everything else goes on"
                    .into(),
                "",
            );
        }
        (String::new(), "")
    }
}

/// How much of a running catch-up has come, and how much there is.
fn progress(known: &super::peer::Known) -> (i64, i64) {
    let (came, of) = known.in_order;
    if of > 0 {
        let count = |rows: u64| i64::try_from(rows).unwrap_or(i64::MAX);
        return (count(came.min(of)), count(of));
    }
    let start = known.started_at.0;
    ((read(known).0 - start).max(0), (known.state.end.0 - start).max(0))
}

fn read(known: &super::peer::Known) -> Seq {
    let valid = known.cursor.boot == known.state.boot || known.cursor.boot != Boot(0);
    if valid { known.cursor.seq } else { Seq(0) }
}

fn behind(known: &super::peer::Known) -> i64 {
    (known.state.end.0 - read(known).0).max(0)
}
