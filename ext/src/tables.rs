//! The tables of the SQL surface: what is going on, as rows.

use wavesync_core::store::addresses::known_members;
use wavesync_core::store::{listing, report};
use wavesync_core::value::Value;
use wavesync_net::driver::Snapshot;
use wavesync_net::driver::shown::{self, Hints};

use crate::changes;
use crate::doctor;
use crate::engine;
use crate::ffi::SqlError;
use crate::functions::file;
use crate::metrics;
use crate::table::{Rows, SqlTable, TableContext};

/// Every table, in the order of the reference.
pub static TABLES: &[SqlTable] = &[
    SqlTable {
        name: "wavesync_status",
        columns: shown::STATUS,
        seek: None,
        filters: &[],
        rows: status,
        insert: None,
        committed: None,
    },
    SqlTable {
        name: "wavesync_peers",
        columns: shown::PEERS,
        seek: None,
        filters: &[],
        rows: peers,
        insert: None,
        committed: None,
    },
    SqlTable {
        name: "wavesync_tables",
        columns: listing::TABLES,
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
        columns: shown::EVENTS,
        seek: None,
        filters: &[],
        rows: events,
        insert: None,
        committed: None,
    },
    SqlTable {
        name: "wavesync_conflicts",
        columns: listing::CONFLICTS,
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

const HINTS: Hints = Hints {
    join: "call wavesync_join(topic, passphrase) to sync this database",
    again: "call wavesync_join() again once the cause is gone",
    alone: "no member is connected; see wavesync_events, or call wavesync_dial(address)",
};

fn list(rows: Vec<Vec<Value>>) -> Result<Rows, SqlError> {
    Ok(Box::new(rows.into_iter().map(Ok)))
}

pub(crate) fn text(text: impl Into<String>) -> Value {
    Value::Text(text.into().into_bytes())
}

fn snapshot(context: &TableContext) -> Option<Snapshot> {
    let path = file(context).ok()?;
    engine::find(&path).map(|(_, board)| board.snapshot())
}

fn status(context: &TableContext) -> Result<Rows, SqlError> {
    let conflicts = report::conflict_counts(&*context.connection()?)?;
    if let Some(snapshot) = snapshot(context) {
        return list(vec![shown::status(&snapshot, conflicts, &HINTS)]);
    }
    let off = match file(context) {
        Ok(path) if path.exists() => {
            let store = wavesync_core::store::Store::reading(context.lend()?)?;
            let last_error = store.stopped_contact()?.unwrap_or_default();
            let (topic, own) = (store.topic()?, store.site_id()?);
            let version = store.db_version()?.0;
            shown::status_off(topic.as_deref(), own, version, conflicts, &last_error, &HINTS)
        }
        _ => shown::status_off(None, None, 0, conflicts, "", &HINTS),
    };
    list(vec![off])
}

fn peers(context: &TableContext) -> Result<Rows, SqlError> {
    let connected = snapshot(context).map(|shown| shown.peers).unwrap_or_default();
    let known = {
        let host = context.connection()?;
        if report::is_joined(&host)? { known_members(&host)? } else { Vec::new() }
    };
    list(shown::peers(&connected, known))
}

fn tables(context: &TableContext) -> Result<Rows, SqlError> {
    list(listing::tables(&*context.connection()?)?)
}

fn conflicts(context: &TableContext) -> Result<Rows, SqlError> {
    list(listing::conflicts(&*context.connection()?)?)
}

fn events(context: &TableContext) -> Result<Rows, SqlError> {
    let events = snapshot(context).map(|shown| shown.events).unwrap_or_default();
    list(events.iter().map(shown::event).collect())
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
