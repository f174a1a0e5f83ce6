//! What an engine shows, as JSON: the columns of the SQL tables `wavesync_status`, `wavesync_peers`
//! and `wavesync_events`.

use serde_json::{Value, json};
use wavesync_core::value::Value as Shown;
use wavesync_net::driver::{Snapshot, shown};

/// A page of WebAssembly memory, in bytes.
const PAGE_BYTES: usize = 65_536;

/// One object. `conflicts` are parked rows and kept conflicts.
pub fn status(snapshot: &Snapshot, conflicts: (i64, i64)) -> Value {
    let progress = &snapshot.progress;
    let refused = snapshot.peers.iter().find(|peer| !peer.last_error.is_empty());
    let relay = snapshot.relays.iter().find(|relay| !relay.error.is_empty());
    let last_error = [&snapshot.failure, &progress.last_error]
        .into_iter()
        .chain(refused.map(|peer| &peer.last_error))
        .chain(relay.map(|relay| &relay.error))
        .find(|error| !error.is_empty());
    let hint = match snapshot.state.as_str() {
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
        "topic": snapshot.topic,
        "site_id": snapshot.site.map(|site| site.to_string()),
        "peer_id": snapshot.peer,
        "state": snapshot.state,
        "relays": snapshot.relays.iter().map(shown::relay).collect::<Vec<_>>(),
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

/// A list of objects: the rows of `wavesync_peers`.
pub fn peers(snapshot: &Snapshot) -> Value {
    snapshot.peers.iter().map(|report| object(shown::PEERS, shown::peer(report))).collect()
}

/// A list of objects: the rows of `wavesync_events` that are newer than the event of this number,
/// with theirs as `number`.
pub fn events(snapshot: &Snapshot, since: u64) -> Value {
    let newer = snapshot.events.iter().filter(|logged| logged.number > since);
    let numbered = newer.map(|logged| {
        let mut event = object(shown::EVENTS, shown::event(logged));
        event["number"] = json!(logged.number);
        event
    });
    numbered.collect()
}

fn object(columns: &[&str], row: Vec<Shown>) -> Value {
    let member = |(name, value): (&&str, Shown)| ((*name).to_owned(), member(value));
    Value::Object(columns.iter().zip(row).map(member).collect())
}

fn member(value: Shown) -> Value {
    match value {
        Shown::Integer(integer) => json!(integer),
        Shown::Real(real) => json!(real),
        Shown::Text(bytes) => String::from_utf8_lossy(&bytes).into(),
        Shown::Null | Shown::Blob(_) => Value::Null,
    }
}
