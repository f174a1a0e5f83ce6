//! `wavesync_metrics`: numbers for monitoring, under the names that Prometheus would give them.

use std::collections::BTreeMap;

use serde_json::json;
use wavesync_core::machine::PeerReport;
use wavesync_core::store::report;
use wavesync_net::PeerKey;
use wavesync_net::driver::Snapshot;
use wavesync_net::driver::shown::level_name;

use crate::ffi::SqlError;
use crate::table::TableContext;

/// One number.
pub struct Metric {
    /// What it counts, with its unit.
    pub name: &'static str,
    /// What tells it from others of the name: a JSON object.
    pub labels: String,
    /// The number.
    pub value: i64,
}

struct Metrics(Vec<Metric>);

impl Metrics {
    fn add(&mut self, name: &'static str, value: impl TryInto<i64>) {
        self.labelled(name, &json!({}), value);
    }

    fn labelled(
        &mut self,
        name: &'static str,
        labels: &serde_json::Value,
        value: impl TryInto<i64>,
    ) {
        let value = value.try_into().unwrap_or(i64::MAX);
        self.0.push(Metric { name, labels: labels.to_string(), value });
    }
}

/// All of them: of the engine of this process, if one runs, and of the database.
///
/// # Errors
/// If the database cannot be read.
pub fn metrics(context: &TableContext, shown: Option<&Snapshot>) -> Result<Vec<Metric>, SqlError> {
    let mut metrics = Metrics(Vec::new());
    metrics.add("wavesync_engine_running", shown.is_some_and(|s| s.state == "running"));
    if let Some(shown) = shown {
        engine(&mut metrics, shown);
    }
    database(&mut metrics, context)?;
    Ok(metrics.0)
}

fn engine(metrics: &mut Metrics, shown: &Snapshot) {
    metrics.add("wavesync_leader", shown.leader);
    metrics.add("wavesync_db_version", shown.progress.db_version);
    metrics.add("wavesync_rows_behind", shown.progress.rows_behind);
    metrics.add("wavesync_sync_done_rows", shown.progress.done);
    metrics.add("wavesync_sync_expected_rows", shown.progress.expected);
    metrics.add("wavesync_caught_up", shown.progress.caught_up);
    let check = shown.progress.check;
    metrics.add("wavesync_checks_total", check.compared);
    metrics.add("wavesync_check_differences_total", check.differences);
    metrics.add("wavesync_check_repairs_total", check.repairs);
    metrics.add("wavesync_check_diverged_total", check.diverged);
    for path in ["direct", "relayed"] {
        let here =
            shown.peers.iter().filter(|p| p.site.is_some() && p.relayed == (path == "relayed"));
        metrics.labelled("wavesync_members", &json!({ "path": path }), here.count());
    }
    for relay in &shown.relays {
        let labels = json!({ "relay": relay.address });
        metrics.labelled("wavesync_relay_reserved", &labels, relay.state == "reserved");
    }
    let mut events: BTreeMap<(&str, &str), i64> = BTreeMap::new();
    for logged in &shown.events {
        *events.entry((logged.event.code, level_name(logged.event.level))).or_default() += 1;
    }
    for ((code, level), count) in events {
        metrics.labelled("wavesync_events", &json!({ "code": code, "level": level }), count);
    }
    shown.peers.iter().for_each(|report| peer(metrics, report));
}

fn peer(metrics: &mut Metrics, report: &PeerReport) {
    let id = PeerKey::from_bytes(&report.peer.0).map(|peer| peer.to_string()).unwrap_or_default();
    let labels = json!({ "peer": id });
    for (name, value) in [
        ("wavesync_peer_rows_in_total", report.rows_in),
        ("wavesync_peer_rows_out_total", report.rows_out),
        ("wavesync_peer_bytes_in_total", report.bytes_in),
        ("wavesync_peer_bytes_out_total", report.bytes_out),
        ("wavesync_peer_requests_total", report.requests_out),
    ] {
        metrics.labelled(name, &labels, value);
    }
    metrics.labelled("wavesync_peer_rows_behind", &labels, report.rows_behind);
    if let Some(rtt) = report.rtt_ms {
        metrics.labelled("wavesync_peer_rtt_microseconds", &labels, (rtt * 1_000.0) as i64);
    }
}

fn database(metrics: &mut Metrics, context: &TableContext) -> Result<(), SqlError> {
    let conn = context.connection()?;
    if !report::is_joined(&conn)? {
        return Ok(());
    }
    let number = |sql: &str| conn.query_row(sql, [], |row| row.get::<_, i64>(0));
    metrics.add("wavesync_log_rows", number("SELECT count(*) FROM __wavesync_log")?);
    metrics.add(
        "wavesync_log_waiting_rows",
        number(
            "SELECT count(*) FROM __wavesync_log
             WHERE seq > (SELECT value FROM __wavesync_meta WHERE key = 'folded')",
        )?,
    );
    metrics.add("wavesync_held_rows", number("SELECT count(*) FROM __wavesync_held")?);
    metrics.add("wavesync_conflicts", number("SELECT count(*) FROM __wavesync_conflict")?);
    metrics.add("wavesync_parked_rows", number("SELECT count(*) FROM __wavesync_parked")?);
    metrics.add("wavesync_known_members", number("SELECT count(*) FROM __wavesync_member")?);
    metrics.add(
        "wavesync_database_bytes",
        number(
            "SELECT page_count * page_size FROM pragma_page_count('main'), pragma_page_size('main')",
        )?,
    );
    for table in report::tables(&conn)?.into_iter().filter(|table| table.tracked) {
        let labels = json!({ "table": table.name });
        metrics.labelled("wavesync_table_rows", &labels, table.rows);
        metrics.labelled("wavesync_table_log_rows", &labels, table.log_rows);
        metrics.labelled("wavesync_table_clock_bytes", &labels, table.clock_bytes);
    }
    Ok(())
}
