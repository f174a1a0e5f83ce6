//! A snapshot as rows of the SQL tables that show an engine.

use wavesync_core::ids::{Millis, SiteId};
use wavesync_core::machine::{Level, PeerReport};
use wavesync_core::store::addresses::KnownMember;
use wavesync_core::value::Value;

use super::{LoggedEvent, Snapshot};
use crate::{PeerKey, RelayReport};

/// The columns of `wavesync_status`.
pub const STATUS: &[&str] = &[
    "topic",
    "site_id",
    "peer_id",
    "state",
    "listen",
    "relays",
    "leader",
    "peers_connected",
    "db_version",
    "rows_behind",
    "sync_done",
    "sync_expected",
    "parked",
    "conflicts",
    "last_error",
    "hint",
];

/// The columns of `wavesync_peers`.
pub const PEERS: &[&str] = &[
    "peer_id",
    "site_id",
    "name",
    "state",
    "path",
    "address",
    "rtt_ms",
    "rows_behind",
    "rows_in",
    "rows_out",
    "bytes_in",
    "bytes_out",
    "requests_out",
    "last_sync",
    "last_error",
    "hint",
];

/// The columns of `wavesync_events`.
pub const EVENTS: &[&str] = &["at", "level", "code", "message", "hint", "peer_id"];

/// What to do, in the words of the host: how its users join and dial.
pub struct Hints {
    /// Nothing runs.
    pub join: &'static str,
    /// The engine has failed.
    pub again: &'static str,
    /// It runs, and no member is connected.
    pub alone: &'static str,
}

/// A site id as 32 digits, or NULL.
#[must_use]
pub fn site(site: Option<SiteId>) -> Value {
    site.map_or(Value::Null, |site| Value::text(&site.to_string()))
}

/// A peer id in base58; NULL if these bytes are none.
#[must_use]
pub fn peer_id(bytes: &[u8]) -> Value {
    PeerKey::from_bytes(bytes).map_or(Value::Null, |peer| Value::text(&peer.to_string()))
}

/// The word for how much an event matters.
#[must_use]
pub fn level_name(level: Level) -> &'static str {
    match level {
        Level::Info => "info",
        Level::Warning => "warning",
        Level::Error => "error",
    }
}

/// The row of `wavesync_status` while an engine runs. `conflicts` are parked rows and kept
/// conflicts.
#[must_use]
pub fn status(shown: &Snapshot, conflicts: (i64, i64), hints: &Hints) -> Vec<Value> {
    let progress = &shown.progress;
    let refused = shown.peers.iter().find(|peer| !peer.last_error.is_empty());
    let last_error = [&shown.failure, &progress.last_error]
        .into_iter()
        .chain(refused.map(|peer| &peer.last_error))
        .find(|error| !error.is_empty());
    let hint = match shown.state.as_str() {
        "failed" => hints.again,
        "waiting" => "another process syncs this file; this one records and takes over if it ends",
        "running" | "starting" if !progress.hint.is_empty() => progress.hint,
        "running" if refused.is_some_and(|p| progress.members == 0 || p.site.is_some()) => {
            refused.map_or("", |peer| peer.hint.as_str())
        }
        "running" if progress.members == 0 => hints.alone,
        _ => "",
    };
    let relays: serde_json::Value = shown.relays.iter().map(relay).collect();
    vec![
        Value::text(&shown.topic),
        site(shown.site),
        Value::text(&shown.peer),
        Value::text(&shown.state),
        Value::text(&serde_json::json!(shown.listen).to_string()),
        Value::text(&relays.to_string()),
        Value::flag(shown.leader),
        Value::count(progress.members as u64),
        Value::Integer(progress.db_version),
        Value::Integer(progress.rows_behind),
        Value::Integer(progress.done),
        Value::Integer(progress.expected),
        Value::Integer(conflicts.0),
        Value::Integer(conflicts.1),
        Value::text(last_error.map_or("", String::as_str)),
        Value::text(hint),
    ]
}

/// What is known of a relay, as JSON.
#[must_use]
pub fn relay(relay: &RelayReport) -> serde_json::Value {
    serde_json::json!({
        "address": relay.address,
        "state": relay.state,
        "members": relay.members,
        "limit_bytes": relay.limit_bytes,
        "error": relay.error,
    })
}

/// The row of `wavesync_status` without an engine: what the file says.
#[must_use]
pub fn status_off(
    topic: Option<&str>,
    own: Option<SiteId>,
    db_version: i64,
    conflicts: (i64, i64),
    last_error: &str,
    hints: &Hints,
) -> Vec<Value> {
    let none = Value::Integer(0);
    vec![
        topic.map_or(Value::Null, Value::text),
        site(own),
        Value::Null,
        Value::text("off"),
        Value::text("[]"),
        Value::text("[]"),
        none.clone(),
        none.clone(),
        Value::Integer(db_version),
        none.clone(),
        none.clone(),
        none,
        Value::Integer(conflicts.0),
        Value::Integer(conflicts.1),
        Value::text(last_error),
        Value::text(hints.join),
    ]
}

/// The row of `wavesync_peers` of a connected peer.
#[must_use]
pub fn peer(report: &PeerReport) -> Vec<Value> {
    vec![
        peer_id(&report.peer.0),
        site(report.site),
        Value::text(&report.name),
        Value::text(report.state),
        Value::text(if report.relayed { "relayed" } else { "direct" }),
        Value::text(&report.address),
        report.rtt_ms.map_or(Value::Null, Value::Real),
        Value::Integer(report.rows_behind),
        Value::count(report.rows_in),
        Value::count(report.rows_out),
        Value::count(report.bytes_in),
        Value::count(report.bytes_out),
        Value::count(report.requests_out),
        report.last_sync.map_or(Value::Null, time),
        Value::text(&report.last_error),
        Value::text(&report.hint),
    ]
}

/// The rows of `wavesync_peers`: the connected ones, then the members that are known and away.
#[must_use]
pub fn peers(connected: &[PeerReport], known: Vec<KnownMember>) -> Vec<Vec<Value>> {
    let away = known
        .into_iter()
        .filter(|member| connected.iter().all(|report| report.peer.0 != member.peer))
        .map(away);
    connected.iter().map(peer).chain(away).collect()
}

fn away(member: KnownMember) -> Vec<Value> {
    let address = member.addresses.into_iter().next().unwrap_or_default();
    let none = Value::Integer(0);
    vec![
        peer_id(&member.peer),
        site(Some(member.site)),
        Value::text(&member.name),
        Value::text("away"),
        Value::text("none"),
        Value::text(&address),
        Value::Null,
        Value::Null,
        none.clone(),
        none.clone(),
        none.clone(),
        none.clone(),
        none,
        time(member.seen),
        Value::text(""),
        Value::text(""),
    ]
}

/// A moment in ISO 8601.
#[must_use]
pub fn time(at: Millis) -> Value {
    Value::text(&at.iso_8601())
}

/// The row of `wavesync_events` of an event.
#[must_use]
pub fn event(logged: &LoggedEvent) -> Vec<Value> {
    let event = &logged.event;
    vec![
        time(logged.at),
        Value::text(level_name(event.level)),
        Value::text(event.code),
        Value::text(&event.message),
        Value::text(&event.hint),
        event.peer.as_ref().map_or(Value::Null, |peer| peer_id(&peer.0)),
    ]
}

#[cfg(test)]
mod tests {
    use wavesync_core::machine::{PeerId, Progress};

    use super::*;

    const HINTS: Hints = Hints { join: "join", again: "again", alone: "alone" };

    fn peer(last_error: &str) -> PeerReport {
        PeerReport {
            peer: PeerId(vec![1]),
            site: Some(SiteId([1; 16])),
            name: String::new(),
            state: "synced",
            relayed: false,
            address: String::new(),
            rtt_ms: None,
            rows_behind: 0,
            rows_in: 0,
            rows_out: 0,
            bytes_in: 0,
            bytes_out: 0,
            requests_out: 0,
            last_sync: None,
            last_error: last_error.into(),
            hint: if last_error.is_empty() { "" } else { "both read them again" }.into(),
            held_back: false,
        }
    }

    /// What is wrong with one of the peers stands in the status, after what is wrong here.
    #[test]
    fn the_status_tells_of_a_difference() {
        let mut shown = Snapshot {
            state: "running".into(),
            progress: Progress { members: 2, ..Progress::default() },
            peers: vec![peer(""), peer("rows of table t differ")],
            ..Snapshot::default()
        };
        let told = |shown: &Snapshot| {
            let row = status(shown, (0, 0), &HINTS);
            let at = |name| STATUS.iter().position(|column| *column == name).map(|at| &row[at]);
            (at("last_error").cloned(), at("hint").cloned())
        };
        let text = |text| Some(Value::text(text));
        assert_eq!(told(&shown), (text("rows of table t differ"), text("both read them again")));
        shown.failure = "the disk is full".into();
        assert_eq!(told(&shown).0, text("the disk is full"));
        shown.failure.clear();
        shown.peers.truncate(1);
        assert_eq!(told(&shown), (text(""), text("")));
    }
}
