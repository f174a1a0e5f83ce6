//! What an engine shows, as JSON: the columns of the SQL tables `wavesync_status`, `wavesync_peers`
//! and `wavesync_events`.

use serde_json::{Value, json};
use wavesync_core::ids::Millis;
use wavesync_core::machine::{Level, PeerReport};
use wavesync_net::driver::{LoggedEvent, Snapshot};
use wavesync_net::{PeerKey, RelayReport};

/// A page of WebAssembly memory, in bytes.
const PAGE_BYTES: usize = 65_536;

/// One object. `conflicts` are parked rows and kept conflicts.
pub fn status(shown: &Snapshot, conflicts: (i64, i64)) -> Value {
    let progress = &shown.progress;
    let refused = shown.peers.iter().find(|peer| !peer.last_error.is_empty());
    let relay = shown.relays.iter().find(|relay| !relay.error.is_empty());
    let last_error = [&shown.failure, &progress.last_error]
        .into_iter()
        .chain(refused.map(|peer| &peer.last_error))
        .chain(relay.map(|relay| &relay.error))
        .find(|error| !error.is_empty());
    let hint = match shown.state.as_str() {
        "failed" => "join again once the cause is gone",
        "running" if !progress.hint.is_empty() => progress.hint,
        "running" if refused.is_some_and(|p| progress.members == 0 || p.state == "unrelated") => {
            refused.map_or("", |peer| peer.hint.as_str())
        }
        "running" if progress.members == 0 => "no member is connected; see the events",
        _ => "",
    };
    json!({
        "joined": true,
        "topic": shown.topic,
        "site_id": shown.site.map(|site| site.to_string()),
        "peer_id": shown.peer,
        "state": shown.state,
        "relays": shown.relays.iter().map(relay_row).collect::<Vec<_>>(),
        "peers_connected": progress.members,
        "db_version": progress.db_version,
        "rows_behind": progress.rows_behind,
        "sync_done": progress.done,
        "sync_expected": progress.expected,
        "caught_up": progress.caught_up,
        "importing": progress.importing,
        "parked": conflicts.0,
        "conflicts": conflicts.1,
        "last_error": last_error.map_or("", String::as_str),
        "hint": hint,
        "memory_bytes": memory_bytes(),
    })
}

/// What the module holds of the browser's memory.
fn memory_bytes() -> usize {
    core::arch::wasm32::memory_size(0) * PAGE_BYTES
}

fn relay_row(relay: &RelayReport) -> Value {
    json!({
        "address": relay.address,
        "state": relay.state,
        "members": relay.members,
        "limit_bytes": relay.limit_bytes,
        "error": relay.error,
    })
}

/// A list of objects.
pub fn peers(shown: &Snapshot) -> Value {
    shown.peers.iter().map(peer).collect()
}

fn peer(report: &PeerReport) -> Value {
    json!({
        "peer_id": peer_id(&report.peer.0),
        "site_id": report.site.map(|site| site.to_string()),
        "name": report.name,
        "state": report.state,
        "path": if report.relayed { "relayed" } else { "direct" },
        "address": report.address,
        "rtt_ms": report.rtt_ms,
        "rows_behind": report.rows_behind,
        "rows_in": report.rows_in,
        "rows_out": report.rows_out,
        "bytes_in": report.bytes_in,
        "bytes_out": report.bytes_out,
        "requests_out": report.requests_out,
        "last_sync": report.last_sync.map(timestamp),
        "last_error": report.last_error,
        "hint": report.hint,
    })
}

/// A list of objects: what is newer than the event of this number.
pub fn events(shown: &Snapshot, since: u64) -> Value {
    shown.events.iter().filter(|logged| logged.number > since).map(event).collect()
}

fn event(logged: &LoggedEvent) -> Value {
    let level = match logged.event.level {
        Level::Info => "info",
        Level::Warning => "warning",
        Level::Error => "error",
    };
    json!({
        "number": logged.number,
        "at": timestamp(logged.at),
        "level": level,
        "code": logged.event.code,
        "message": logged.event.message,
        "hint": logged.event.hint,
        "peer_id": logged.event.peer.as_ref().and_then(|peer| peer_id(&peer.0)),
    })
}

fn peer_id(bytes: &[u8]) -> Option<String> {
    PeerKey::from_bytes(bytes).ok().map(|peer| peer.to_string())
}

/// UTC in ISO 8601 with milliseconds.
fn timestamp(at: Millis) -> String {
    let date = js_sys::Date::new(&(at.0 as f64).into());
    date.to_iso_string().into()
}
