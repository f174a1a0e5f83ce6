//! What an engine shows, as JSON: the columns of the SQL tables `wavesync_status`, `wavesync_peers`
//! and `wavesync_events`.

use serde_json::{Value, json};
use wavesync_core::value::Value as Shown;
use wavesync_net::driver::Snapshot;
use wavesync_net::driver::shown::{self, Hints};

/// A page of WebAssembly memory, in bytes.
const PAGE_BYTES: usize = 65_536;

/// What to do, by the calls of the package.
pub const HINTS: Hints = Hints {
    join: "call join() to sync this database",
    again: "join again once the cause is gone",
    alone: "no member is connected; see the events",
};

/// One object: the row of `wavesync_status`, and what only JavaScript is told. `conflicts` are parked
/// rows and kept conflicts.
pub fn status(snapshot: &Snapshot, conflicts: (i64, i64)) -> Value {
    let mut status = object(shown::STATUS, shown::status(snapshot, conflicts, &HINTS));
    status["joined"] = true.into();
    status["relays"] = snapshot.relays.iter().map(shown::relay).collect();
    status["caught_up"] = snapshot.progress.caught_up.into();
    status["importing"] = snapshot.progress.importing.into();
    status["memory_bytes"] = memory_bytes().into();
    let relay = snapshot.relays.iter().find(|relay| !relay.error.is_empty());
    if let (Some(relay), "") = (relay, status["last_error"].as_str().unwrap_or_default()) {
        status["last_error"] = relay.error.as_str().into();
    }
    status
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
