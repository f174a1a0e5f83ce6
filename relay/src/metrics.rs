//! What the relay counts, as Prometheus reads it. Nothing in it tells one peer from another.

use std::{
    fmt::Write as _,
    fs,
    sync::atomic::{AtomicI64, AtomicU64},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::Registry,
};

use crate::tap::Direction;

type Count = Counter<u64, AtomicU64>;
type Level = Gauge<i64, AtomicI64>;

/// A reason, a kind, a path: the one label of a family.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct Of {
    of: &'static str,
}

/// A label.
pub(crate) fn of(of: &'static str) -> Of {
    Of { of }
}

macro_rules! metrics {
    ($($(#[doc = $help:literal])+ $name:ident: $kind:ty = $make:expr;)*) => {
        /// Every family; the names in the output are `wavesync_relay_` and these.
        pub(crate) struct Metrics {
            registry: Registry,
            started: Instant,
            $($(#[doc = $help])+ pub(crate) $name: $kind,)*
        }

        impl Metrics {
            pub(crate) fn new() -> Metrics {
                let mut registry = Registry::with_prefix("wavesync_relay");
                $(
                    let $name: $kind = $make;
                    let help = concat!($($help),+).trim().trim_end_matches('.');
                    let name = stringify!($name).trim_end_matches("_total");
                    registry.register(name, help, $name.clone());
                )*
                let version = vec![("version", env!("CARGO_PKG_VERSION"))];
                registry.register("build", "The program", Info::new(version));
                let metrics = Metrics { registry, started: Instant::now(), $($name,)* };
                metrics.start_time_seconds.set(seconds_since_1970());
                metrics
            }
        }
    };
}

metrics! {
    /// Connections now.
    connections: Level = Level::default();
    /// Connections that were established.
    connections_opened_total: Count = Count::default();
    /// Connections that ended.
    connections_closed_total: Count = Count::default();
    /// Connections that were refused or failed in a handshake, by reason.
    connections_failed_total: Family<Of, Count> = Family::default();
    /// Peers that are connected now.
    peers: Level = Level::default();
    /// Reservations now.
    reservations: Level = Level::default();
    /// Reservations that were given, by kind.
    reservations_accepted_total: Family<Of, Count> = Family::default();
    /// Reservations that were denied.
    reservations_denied_total: Count = Count::default();
    /// Reservations that ended, by reason.
    reservations_ended_total: Family<Of, Count> = Family::default();
    /// Circuits now.
    circuits: Level = Level::default();
    /// Circuits that were made.
    circuits_accepted_total: Count = Count::default();
    /// Circuits that were denied.
    circuits_denied_total: Count = Count::default();
    /// Circuits that could not be made for another reason.
    circuits_failed_total: Count = Count::default();
    /// Circuits that ended, by reason.
    circuits_closed_total: Family<Of, Count> = Family::default();
    /// Bytes that came from peers on all streams, circuits included.
    received_bytes_total: Count = Count::default();
    /// Bytes that went to peers on all streams, circuits included.
    sent_bytes_total: Count = Count::default();
    /// Pieces in which bytes came.
    received_pieces_total: Count = Count::default();
    /// Pieces in which bytes went.
    sent_pieces_total: Count = Count::default();
    /// Peers at the meeting point now, once for each of their groups.
    meeting_peers: Level = Level::default();
    /// Groups at the meeting point now.
    meeting_groups: Level = Level::default();
    /// Requests at the meeting point, by outcome.
    meetings_total: Family<Of, Count> = Family::default();
    /// Members that were named in answers.
    meeting_members_named_total: Count = Count::default();
    /// Requests at the meeting point that could not be read or answered.
    meeting_errors_total: Count = Count::default();
    /// Addresses that are listened at now.
    listeners: Level = Level::default();
    /// Errors of listeners.
    listener_errors_total: Count = Count::default();
    /// Pings that were not answered.
    pings_failed_total: Count = Count::default();
    /// Round trip times of pings in seconds.
    ping_seconds: Histogram = Histogram::new([0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0]);
    /// Requests to this port, by path.
    http_requests_total: Family<Of, Count> = Family::default();
    /// Whether the relay is about to end.
    draining: Level = Level::default();
    /// When the process started, in seconds since 1970.
    start_time_seconds: Level = Level::default();
    /// How long it has run, in seconds.
    uptime_seconds: Level = Level::default();
    /// Memory in use, in bytes.
    resident_memory_bytes: Level = Level::default();
    /// Open file descriptors.
    open_descriptors: Level = Level::default();
}

fn seconds_since_1970() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

impl Metrics {
    pub(crate) fn moved(&self, direction: Direction, bytes: usize) {
        let (count, pieces) = match direction {
            Direction::In => (&self.received_bytes_total, &self.received_pieces_total),
            Direction::Out => (&self.sent_bytes_total, &self.sent_pieces_total),
        };
        count.inc_by(bytes as u64);
        pieces.inc();
    }

    /// The text that Prometheus reads.
    pub(crate) fn text(&self) -> String {
        self.uptime_seconds
            .set(i64::try_from(self.started.elapsed().as_secs()).unwrap_or(i64::MAX));
        if let Some(pages) = resident_pages() {
            self.resident_memory_bytes.set(pages * PAGE_BYTES);
        }
        if let Ok(descriptors) = fs::read_dir("/proc/self/fd") {
            self.open_descriptors.set(descriptors.count() as i64);
        }
        let mut text = String::new();
        if text::encode(&mut text, &self.registry).is_err() {
            // Writing into a text does not fail; say so rather than show half of it.
            text.clear();
            let _written = write!(text, "# the metrics could not be written");
        }
        text
    }
}

const PAGE_BYTES: i64 = 4096;

fn resident_pages() -> Option<i64> {
    fs::read_to_string("/proc/self/statm").ok()?.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_at_least_25_families_each_with_a_help() {
        let metrics = Metrics::new();
        metrics.connections_failed_total.get_or_create(&of("limit")).inc();
        let text = metrics.text();
        let types = text.lines().filter(|line| line.starts_with("# TYPE wavesync_relay_")).count();
        let helps = text.lines().filter(|line| line.starts_with("# HELP wavesync_relay_")).count();
        assert!(types >= 25 && types == helps, "{types} {helps}");
        assert!(text.contains("wavesync_relay_connections_failed_total{of=\"limit\"} 1"), "{text}");
        assert!(text.ends_with("# EOF\n"));
    }
}
