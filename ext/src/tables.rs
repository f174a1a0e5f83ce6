//! The tables of the SQL surface: what is going on, as rows.

use wavesync_core::ids::{Millis, SiteId};
use wavesync_core::machine::{Level, PeerReport};
use wavesync_core::store::addresses::{KnownMember, known_members};
use wavesync_core::store::report;
use wavesync_core::value::Value;
use wavesync_net::driver::Snapshot;
use wavesync_net::{PeerKey, RelayReport};

use crate::changes;
use crate::doctor;
use crate::engine;
use crate::ffi::SqlError;
use crate::functions::{connect_to_read, file};
use crate::metrics;
use crate::table::{Rows, SqlTable, TableContext};

/// Every table, in the order of the reference.
pub static TABLES: &[SqlTable] = &[
    SqlTable {
        name: "wavesync_status",
        columns: &[
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
        ],
        seek: None,
        filters: &[],
        rows: status,
        insert: None,
        committed: None,
    },
    SqlTable {
        name: "wavesync_peers",
        columns: &[
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
        ],
        seek: None,
        filters: &[],
        rows: peers,
        insert: None,
        committed: None,
    },
    SqlTable {
        name: "wavesync_tables",
        columns: &["name", "tracked", "reason", "rows", "log_rows", "clock_bytes"],
        seek: None,
        filters: &[],
        rows: tables,
        insert: None,
        committed: None,
    },
    SqlTable {
        name: "wavesync_changes",
        columns: changes::COLUMNS,
        seek: Some("db_version"),
        filters: &["table", "site_id"],
        rows: changes::rows,
        insert: Some(changes::insert),
        committed: Some(changes::committed),
    },
    SqlTable {
        name: "wavesync_events",
        columns: &["at", "level", "code", "message", "hint", "peer_id"],
        seek: None,
        filters: &[],
        rows: events,
        insert: None,
        committed: None,
    },
    SqlTable {
        name: "wavesync_conflicts",
        columns: &[
            "id", "table", "pk", "kind", "reason", "ours", "theirs", "site_id", "at", "parked",
        ],
        seek: None,
        filters: &[],
        rows: conflicts,
        insert: None,
        committed: None,
    },
    SqlTable {
        name: "wavesync_doctor",
        columns: &["finding", "severity", "detail", "fix"],
        seek: None,
        filters: &[],
        rows: doctor,
        insert: None,
        committed: None,
    },
    SqlTable {
        name: "wavesync_metrics",
        columns: &["name", "labels", "value"],
        seek: None,
        filters: &[],
        rows: metrics,
        insert: None,
        committed: None,
    },
];

fn list(rows: Vec<Vec<Value>>) -> Result<Rows, SqlError> {
    Ok(Box::new(rows.into_iter().map(Ok)))
}

pub(crate) fn text(text: impl Into<String>) -> Value {
    Value::Text(text.into().into_bytes())
}

fn count(number: u64) -> Value {
    Value::Integer(i64::try_from(number).unwrap_or(i64::MAX))
}

fn flag(on: bool) -> Value {
    Value::Integer(i64::from(on))
}

fn site(site: Option<SiteId>) -> Value {
    site.map_or(Value::Null, |site| text(site.to_string()))
}

fn snapshot(context: &TableContext) -> Option<Snapshot> {
    let path = file(context).ok()?;
    engine::find(&path).map(|(_, board)| board.snapshot())
}

fn status(context: &TableContext) -> Result<Rows, SqlError> {
    let Some(shown) = snapshot(context) else { return not_running(context) };
    let (parked, conflicts) = {
        let host = context.connection()?;
        report::conflict_counts(&host)?
    };
    let last_error = if shown.failure.is_empty() {
        shown.progress.last_error.clone()
    } else {
        shown.failure.clone()
    };
    let refused = shown.peers.iter().find(|peer| !peer.last_error.is_empty());
    let last_error = match refused {
        Some(peer) if last_error.is_empty() => peer.last_error.clone(),
        _ => last_error,
    };
    let hint = match shown.state.as_str() {
        "failed" => "call wavesync_join() again once the cause is gone",
        "waiting" => "another process syncs this file; this one records and takes over if it ends",
        "running" | "starting" if !shown.progress.hint.is_empty() => shown.progress.hint,
        "running" if refused.is_some_and(|p| shown.progress.members == 0 || p.site.is_some()) => {
            refused.map_or("", |peer| peer.hint.as_str())
        }
        "running" if shown.progress.members == 0 => {
            "no member is connected; see wavesync_events, or call wavesync_dial(address)"
        }
        _ => "",
    };
    list(vec![vec![
        text(shown.topic),
        site(shown.site),
        text(shown.peer),
        text(shown.state),
        text(serde_json::to_string(&shown.listen).unwrap_or_default()),
        text(relays(&shown.relays)),
        flag(shown.leader),
        count(shown.progress.members as u64),
        Value::Integer(shown.progress.db_version),
        Value::Integer(shown.progress.rows_behind),
        Value::Integer(shown.progress.done),
        Value::Integer(shown.progress.expected),
        Value::Integer(parked),
        Value::Integer(conflicts),
        text(last_error),
        text(hint),
    ]])
}

/// The relays of the status, as JSON.
fn relays(reports: &[RelayReport]) -> String {
    let relays = reports.iter().map(|relay| {
        serde_json::json!({
            "address": relay.address,
            "state": relay.state,
            "members": relay.members,
            "limit_bytes": relay.limit_bytes,
            "error": relay.error,
        })
    });
    serde_json::Value::Array(relays.collect()).to_string()
}

/// The status of a database without an engine in this process: what the file says.
fn not_running(context: &TableContext) -> Result<Rows, SqlError> {
    let mut topic = Value::Null;
    let mut own = Value::Null;
    let mut version = 0;
    let mut last_error = String::new();
    let (parked, conflicts) = {
        let host = context.connection()?;
        report::conflict_counts(&host)?
    };
    if let Ok(path) = file(context)
        && path.exists()
    {
        let store = wavesync_core::store::Store::open(connect_to_read(&path)?)?;
        topic = store.topic()?.map_or(Value::Null, text);
        own = site(store.site_id()?);
        version = store.db_version()?.0;
        last_error = store.stopped_contact()?.unwrap_or_default();
    }
    list(vec![vec![
        topic,
        own,
        Value::Null,
        text("off"),
        text("[]"),
        text("[]"),
        flag(false),
        count(0),
        Value::Integer(version),
        count(0),
        count(0),
        count(0),
        Value::Integer(parked),
        Value::Integer(conflicts),
        text(last_error),
        text("call wavesync_join(topic, passphrase) to sync this database"),
    ]])
}

fn peers(context: &TableContext) -> Result<Rows, SqlError> {
    let connected = snapshot(context).map(|shown| shown.peers).unwrap_or_default();
    let known = {
        let host = context.connection()?;
        if report::is_joined(&host)? { known_members(&host)? } else { Vec::new() }
    };
    let away = known
        .into_iter()
        .filter(|member| connected.iter().all(|report| report.peer.0 != member.peer))
        .map(away)
        .collect::<Vec<_>>();
    list(connected.into_iter().map(peer).chain(away).collect())
}

/// The row of a member that is not connected.
fn away(member: KnownMember) -> Vec<Value> {
    let address = member.addresses.into_iter().next().unwrap_or_default();
    vec![
        peer_id(&member.peer),
        site(Some(member.site)),
        text(member.name),
        text("away"),
        text("none"),
        text(address),
        Value::Null,
        Value::Null,
        count(0),
        count(0),
        count(0),
        count(0),
        count(0),
        text(timestamp(member.seen)),
        text(""),
        text(""),
    ]
}

fn peer(report: PeerReport) -> Vec<Value> {
    vec![
        peer_id(&report.peer.0),
        site(report.site),
        text(report.name),
        text(report.state),
        text(if report.relayed { "relayed" } else { "direct" }),
        text(report.address),
        report.rtt_ms.map_or(Value::Null, Value::Real),
        Value::Integer(report.rows_behind),
        count(report.rows_in),
        count(report.rows_out),
        count(report.bytes_in),
        count(report.bytes_out),
        count(report.requests_out),
        report.last_sync.map_or(Value::Null, |at| text(timestamp(at))),
        text(report.last_error),
        text(report.hint),
    ]
}

fn peer_id(bytes: &[u8]) -> Value {
    PeerKey::from_bytes(bytes).map_or(Value::Null, |peer| text(peer.to_string()))
}

fn tables(context: &TableContext) -> Result<Rows, SqlError> {
    let host = context.connection()?;
    let rows = report::tables(&host)?.into_iter().map(|table| {
        vec![
            text(table.name),
            flag(table.tracked),
            text(table.reason),
            Value::Integer(table.rows),
            Value::Integer(table.log_rows),
            Value::Integer(table.clock_bytes),
        ]
    });
    list(rows.collect())
}

fn conflicts(context: &TableContext) -> Result<Rows, SqlError> {
    let host = context.connection()?;
    if !report::is_joined(&host)? {
        return list(Vec::new());
    }
    let rows = report::conflicts(&host)?.into_iter().map(|conflict| {
        let by = conflict.site.as_deref().and_then(SiteId::from_slice);
        vec![
            Value::Integer(conflict.id),
            text(conflict.table),
            conflict.key,
            text(conflict.kind),
            text(conflict.reason),
            conflict.ours.map_or(Value::Null, text),
            conflict.theirs.map_or(Value::Null, text),
            site(by),
            text(timestamp(Millis(u64::try_from(conflict.at).unwrap_or(0)))),
            flag(conflict.parked),
        ]
    });
    list(rows.collect())
}

fn events(context: &TableContext) -> Result<Rows, SqlError> {
    let Some(shown) = snapshot(context) else { return list(Vec::new()) };
    let rows = shown.events.into_iter().map(|logged| {
        vec![
            text(timestamp(logged.at)),
            text(level_name(logged.event.level)),
            text(logged.event.code),
            text(logged.event.message),
            text(logged.event.hint),
            logged.event.peer.map_or(Value::Null, |peer| peer_id(&peer.0)),
        ]
    });
    list(rows.collect())
}

/// The word for how much an event matters.
pub(crate) fn level_name(level: Level) -> &'static str {
    match level {
        Level::Info => "info",
        Level::Warning => "warning",
        Level::Error => "error",
    }
}

fn doctor(context: &TableContext) -> Result<Rows, SqlError> {
    let found = doctor::findings(context)?;
    if found.is_empty() {
        let line = [text("healthy"), text("info"), text("nothing is amiss"), text("")];
        return list(vec![line.into()]);
    }
    let rows = found.into_iter().map(|finding| {
        vec![
            text(finding.code),
            text(finding.severity.name()),
            text(finding.detail),
            text(finding.fix),
        ]
    });
    list(rows.collect())
}

fn metrics(context: &TableContext) -> Result<Rows, SqlError> {
    let shown = snapshot(context);
    let rows = metrics::metrics(context, shown.as_ref())?.into_iter();
    let rows = rows.map(|m| vec![text(m.name), text(m.labels), Value::Integer(m.value)]);
    list(rows.collect())
}

/// UTC in ISO 8601 with milliseconds. The date from the day number follows Howard Hinnant's
/// `civil_from_days` (<https://howardhinnant.github.io/date_algorithms.html>).
fn timestamp(at: Millis) -> String {
    let (days, of_day) = (at.0 / 86_400_000, at.0 % 86_400_000);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hours, minutes) = (of_day / 3_600_000, of_day / 60_000 % 60);
    let (seconds, millis) = (of_day / 1_000 % 60, of_day % 1_000);
    format!("{year:04}-{month:02}-{day:02}T{hours:02}:{minutes:02}:{seconds:02}.{millis:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_are_iso_8601() {
        assert_eq!(timestamp(Millis(0)), "1970-01-01T00:00:00.000Z");
        assert_eq!(timestamp(Millis(951_827_696_789)), "2000-02-29T12:34:56.789Z");
        assert_eq!(timestamp(Millis(4_102_444_799_999)), "2099-12-31T23:59:59.999Z");
    }
}
