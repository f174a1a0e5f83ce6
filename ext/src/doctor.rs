//! `wavesync_doctor`: what is not as it should be with this database, this connection and this
//! engine, each with what to do about it.

use rusqlite::Connection;
use wavesync_core::ids::Millis;
use wavesync_core::machine::Level;
use wavesync_core::store::checkup::{self, Finding, Severity};
use wavesync_core::store::report;
use wavesync_net::driver::{self, Snapshot};

use crate::engine;
use crate::ffi::{DatabasePath, SqlError};
use crate::functions::file;
use crate::table::TableContext;

/// A WAL that is larger than this was not checkpointed for long, in bytes.
const WAL_LARGE_BYTES: u64 = 64 << 20;
/// Events are findings for this long, in milliseconds; what the engine shows as a state now is not
/// taken from events.
const EVENT_RECENT_MS: u64 = 3_600_000;
/// Events that a finding of their own covers, while it is so.
const COVERED: &[&str] = &["dial_failed", "relay_lost", "unrelated", "clock_ahead", "engine"];

/// Everything that is found, the worst first.
///
/// # Errors
/// If the database cannot be read.
pub fn findings(context: &TableContext) -> Result<Vec<Finding>, SqlError> {
    let mut found = Vec::new();
    let path = match context.database_path() {
        DatabasePath::File(_) => file(context)?,
        DatabasePath::Memory | DatabasePath::Temporary => {
            found.push(Finding::new(
                "not_a_file",
                Severity::Error,
                "this database is in memory or temporary: it is gone when it is closed",
                "open a file, and call wavesync_join() there",
            ));
            return Ok(found);
        }
    };
    let conn = context.connection()?;
    connection(context, &conn, &mut found)?;
    let identity = driver::file_identity(&path).ok();
    found.extend(checkup::database(&conn, identity.as_ref())?);
    if let Ok(wal) = std::fs::metadata(engine::beside(&path, "-wal"))
        && wal.len() > WAL_LARGE_BYTES
    {
        found.push(Finding::new(
            "wal_large",
            Severity::Warning,
            format!("the write-ahead log has {} MiB: it cannot be checkpointed", wal.len() >> 20),
            "look for a program that keeps a read transaction open, and end it; the next \
             PRAGMA wal_checkpoint(TRUNCATE) makes the file small again",
        ));
    }
    match engine::find(&path) {
        Some((_, board)) => running(&board.snapshot(), driver::now(), &mut found),
        None if report::is_joined(&conn)? => found.push(Finding::new(
            "engine_off",
            Severity::Warning,
            "no engine runs for this file in this process; changes are recorded, and wait",
            "call wavesync_join(topic, passphrase)",
        )),
        None => found.push(Finding::new(
            "not_joined",
            Severity::Info,
            "this database is no member of a group",
            "call wavesync_join(topic, passphrase)",
        )),
    }
    found.sort_by_key(|finding| finding.severity);
    Ok(found)
}

/// The connection that asks, and its SQLite.
fn connection(
    context: &TableContext,
    conn: &Connection,
    found: &mut Vec<Finding>,
) -> Result<(), SqlError> {
    let pragma = |name: &str| -> rusqlite::Result<rusqlite::types::Value> {
        conn.query_row(&format!("PRAGMA main.{name}"), [], |row| row.get(0))
    };
    let word = |name: &str| -> rusqlite::Result<String> {
        conn.query_row(&format!("PRAGMA main.{name}"), [], |row| row.get(0))
    };
    if context.is_read_only() {
        found.push(Finding::new(
            "read_only",
            Severity::Error,
            "this connection cannot write to the database",
            "open it for writing, or make the file and its folder writable",
        ));
    }
    if word("locking_mode")?.eq_ignore_ascii_case("exclusive") {
        found.push(Finding::new(
            "exclusive_locking",
            Severity::Error,
            "this connection keeps the file locked, so the engine's cannot read or write",
            "PRAGMA locking_mode = NORMAL, and then read something",
        ));
    }
    let wal = word("journal_mode")?.eq_ignore_ascii_case("wal");
    if !wal {
        found.push(Finding::new(
            "rollback_journal",
            Severity::Warning,
            "without a write-ahead log readers and the engine wait for each other",
            "PRAGMA journal_mode = WAL (once; the file keeps it)",
        ));
    }
    if pragma("busy_timeout")? == rusqlite::types::Value::Integer(0) {
        found.push(Finding::new(
            "no_busy_timeout",
            Severity::Warning,
            "a write that meets a commit of the engine fails at once: database is locked",
            "PRAGMA busy_timeout = 5000, on every connection that writes",
        ));
    }
    let declared: i64 = conn.query_row(
        "SELECT count(*) FROM main.sqlite_schema s, pragma_foreign_key_list(s.name, 'main') f
         WHERE s.type = 'table' AND s.name NOT LIKE '\\_\\_wavesync%' ESCAPE '\\'",
        [],
        |row| row.get(0),
    )?;
    if declared > 0 && !context.pragma_foreign_keys() {
        found.push(Finding::new(
            "foreign_keys_off",
            Severity::Warning,
            "foreign keys are declared but this connection does not enforce them",
            "PRAGMA foreign_keys = ON, on every connection that writes",
        ));
    }
    let version = rusqlite::version_number();
    if wal && wal_reset_bug(version) {
        found.push(Finding::new(
            "sqlite_wal_bug",
            Severity::Info,
            format!(
                "SQLite {} may, very rarely, damage a WAL database that several connections use \
                 (https://sqlite.org/wal.html#walresetbug)",
                rusqlite::version()
            ),
            "use SQLite 3.51.3 or newer (or 3.50.7, 3.44.6)",
        ));
    }
    Ok(())
}

/// SQLite before 3.51.3 has the WAL reset bug; two older branches were mended, too.
fn wal_reset_bug(version: i32) -> bool {
    let mended = version >= 3_051_003
        || (3_050_007..3_051_000).contains(&version)
        || (3_044_006..3_045_000).contains(&version);
    !mended
}

/// The engine of this process.
fn running(shown: &Snapshot, now: Millis, found: &mut Vec<Finding>) {
    match shown.state.as_str() {
        "failed" => found.push(Finding::new(
            "engine_failed",
            Severity::Error,
            format!("the engine has ended: {}", shown.failure),
            "call wavesync_join() again once the cause is gone",
        )),
        "waiting" => found.push(Finding::new(
            "other_process",
            Severity::Info,
            "another process syncs this file; this one records, and takes over if it ends",
            "nothing",
        )),
        "paused" => found.push(Finding::new(
            "paused",
            Severity::Warning,
            "the engine is paused: changes are recorded, and wait",
            "SELECT wavesync_resume()",
        )),
        "running" if shown.progress.members == 0 => found.push(Finding::new(
            "no_member",
            Severity::Warning,
            no_member(shown),
            "is a member running, in the same network or at one of these addresses? \
             wavesync_dial(address) connects to one",
        )),
        _ => {}
    }
    if !shown.progress.last_error.is_empty() {
        found.push(Finding::new(
            "store",
            Severity::Error,
            format!("SQLite refuses the engine: {}", shown.progress.last_error),
            match shown.progress.hint {
                "" => "it is tried again; if it stays, the message says what is in the way",
                hint => hint,
            },
        ));
    }
    for relay in shown.relays.iter().filter(|relay| relay.state != "reserved") {
        let error = if relay.error.is_empty() { "no answer yet" } else { &relay.error };
        found.push(Finding::new(
            "relay_unreachable",
            Severity::Warning,
            format!("relay {}: {error}", relay.address),
            "is the address right, and the relay running? It is tried again",
        ));
    }
    for peer in &shown.peers {
        let name = if peer.name.is_empty() { &peer.address } else { &peer.name };
        if peer.state == "unrelated" {
            let detail = format!("member {name}: {}", peer.last_error);
            found.push(Finding::new("unrelated", Severity::Error, detail, peer.hint.clone()));
        }
        if peer.held_back {
            found.push(Finding::new(
                "clock_ahead",
                Severity::Warning,
                format!("member {name} holds back what was written here: this clock is ahead"),
                "set the clock of this device",
            ));
        }
    }
    events(shown, now, found);
}

/// What was tried in vain.
fn no_member(shown: &Snapshot) -> String {
    let failed = shown.events.iter().rev().find(|logged| logged.event.code == "dial_failed");
    let listening = if shown.listen.is_empty() {
        "nobody can reach it here".to_owned()
    } else {
        format!("it listens at {}", shown.listen.join(", "))
    };
    match failed {
        Some(logged) => {
            format!("no member is connected; {listening}; last tried: {}", logged.event.message)
        }
        None => format!("no member is connected; {listening}"),
    }
}

/// What went wrong lately, each kind once.
fn events(shown: &Snapshot, now: Millis, found: &mut Vec<Finding>) {
    let mut seen: Vec<&str> = COVERED.to_vec();
    for logged in shown.events.iter().rev() {
        let event = &logged.event;
        let old = now.0.saturating_sub(logged.at.0) > EVENT_RECENT_MS;
        let stays = event.code == "weak_passphrase";
        if (old && !stays) || seen.contains(&event.code) {
            continue;
        }
        let severity = match event.level {
            Level::Info => continue,
            Level::Warning => Severity::Warning,
            Level::Error => Severity::Error,
        };
        seen.push(event.code);
        let times = shown.events.iter().filter(|other| other.event.code == event.code).count();
        let detail = match times {
            1 => event.message.clone(),
            _ => format!("{} ({times} times)", event.message),
        };
        let fix = if event.hint.is_empty() { "see wavesync_events" } else { &event.hint };
        found.push(Finding::new(event.code, severity, detail, fix));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mended_branches_of_sqlite_are_known() {
        for (version, has_it) in [
            (3_034_001, true),
            (3_044_005, true),
            (3_044_006, false),
            (3_045_000, true),
            (3_050_006, true),
            (3_050_007, false),
            (3_051_002, true),
            (3_051_003, false),
            (3_053_002, false),
        ] {
            assert_eq!(wal_reset_bug(version), has_it, "{version}");
        }
    }
}
