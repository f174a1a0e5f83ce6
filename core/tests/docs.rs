//! The normative documents against the code: what they list must be what the code has.
//!
//! Knows Markdown tables and fenced blocks only as far as these documents use them.
#![allow(clippy::unwrap_used)]

#[path = "examples/mod.rs"]
mod examples;

use std::collections::BTreeMap;

use rusqlite::Connection;
use wavesync_core::ids::Millis;
use wavesync_core::limits;
use wavesync_core::store::Store;
use wavesync_core::store::group::Join;
use wavesync_core::store::identity::FileIdentity;
use wavesync_core::wire::message::{plain, sealed};

const PROTOCOL: &str = include_str!("../../docs/PROTOCOL.md");
const STORAGE: &str = include_str!("../../docs/STORAGE.md");
const LIMITS: &str = include_str!("../src/limits.rs");
const STREAMS: &str = include_str!("../../net/src/streams.rs");
const GATE: &str = include_str!("../../net/transport/src/gate.rs");
const MESSAGES: &str = include_str!("../src/wire/message.rs");

/// Name and value of constants, by their own names.
macro_rules! named {
    ($from:path { $($name:ident)* }) => {{
        use $from as from;
        BTreeMap::from([$((stringify!($name).to_string(), i128::from(from::$name as i64))),*])
    }};
}

/// The text below a heading, up to the next one of the same or a higher level.
fn section<'a>(document: &'a str, heading: &str) -> &'a str {
    let start = document.find(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no {heading}"));
    let body = &document[start + heading.len() + 2..];
    let level = heading.chars().take_while(|c| *c == '#').count();
    let end = (2..=level)
        .filter_map(|hashes| body.find(&format!("\n{} ", "#".repeat(hashes))))
        .min()
        .unwrap_or(body.len());
    &body[..end]
}

/// The cells of each row of the tables in a text, without heads and rules.
fn rows(text: &str) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if !line.starts_with('|') || line.starts_with("|---") {
            continue;
        }
        if lines.peek().is_some_and(|next| next.starts_with("|---")) {
            continue;
        }
        let cells = line.trim_matches('|').split(" | ");
        rows.push(cells.map(|cell| cell.trim().trim_matches('`').to_string()).collect());
    }
    assert!(!rows.is_empty(), "no table in: {text}");
    rows
}

fn numbers(text: &str) -> BTreeMap<String, i128> {
    let number = |text: &str| text.replace(',', "").parse::<i128>().unwrap();
    rows(text).into_iter().map(|row| (row[0].clone(), number(&row[1]))).collect()
}

fn constants_in(source: &str) -> Vec<String> {
    let named = |line: &str| {
        let rest = line.trim_start().strip_prefix("pub const ")?;
        Some(rest.split(':').next()?.to_string())
    };
    source.lines().filter_map(named).collect()
}

#[test]
fn every_limit_stands_in_the_protocol_with_its_value() {
    let code = named!(limits {
        FRAME_BODY_MAX_BYTES CHUNK_TARGET_BYTES CHUNK_MAX_ROWS CHUNK_ASKED_MIN_ROWS CHUNK_SCAN_MAX_ENTRIES ROW_MAX_BYTES
        PASS_MESSAGE_MAX_BYTES CONTROL_MESSAGE_MAX_BYTES HANDSHAKE_MESSAGE_MAX_BYTES
        COMPRESSION_MAX_RATIO BATCH_MAX_CELLS OPEN_TEST_MAX_ENTRIES PUSH_MAX_ROWS PUSH_GRACE_MS
        PUSH_MAX_BYTES PUSH_MAX_SENT_TO SITE_TAG_BYTES FOLD_INTERVAL_MS COMMIT_WAIT_MAX_MS
        FOLD_WAITING_ROWS FOLD_BLOCK_ROWS FOLD_RUN_MIN_ROWS BACKFILL_BLOCK_ROWS PLACE_MAX_BYTES
        LOG_KEEP_ROWS LOG_TRIM_BLOCK_ROWS LOG_TRIM_PAUSE_MS LOG_TRIM_INTERVAL_MS LOG_MEMBER_MAX_MS
        SQL_PARAMETERS_MAX BULK_MIN_ROWS RETRY_BLOCK_ROWS PARKED_MAX_ROWS FUTURE_LIMIT_MS
        RELEASE_BLOCK_ROWS PROGRESS_MAX_ROWS
        INBOX_MAX_CELLS TABLES_MAX COLUMNS_MAX JOINED_MAX_COLUMNS NAME_MAX_BYTES KEY_COLUMNS_MAX SCHEMA_SQL_MAX_BYTES
        VECTOR_MAX_SITES BOOTS_MAX PASS_STALL_MS HANDSHAKE_MAX_MS PASSES_PER_PEER_MAX
        ANNOUNCE_INTERVAL_MS COMPARE_INTERVAL_MS SCHEMA_SETTLE_MS OTHER_NAMES_MAX STORE_RETRY_MS STORE_RETRY_MAX_MS LOCKED_TOLD_MS
        ADDRESSES_PER_MEMBER ADDRESS_FAILURES_MAX MEMBERS_KNOWN_MAX
        INBOX_MAX_MESSAGES EVENTS_MAX SAMPLE_MAX_ROWS SAMPLE_MAX_CELLS ASK_AGAIN_MS
        STAMP_MS_MAX STAMP_MAX CAUSAL_LENGTH_MAX SEQ_MAX TOPIC_MAX_BYTES PASSPHRASE_MAX_BYTES
        REPLICA_NAME_MAX_BYTES CAPS_MAX_SITES FOREIGN_TABLES_MAX FOREIGN_COLUMNS_MAX INBOX_MAX_BYTES
        UNPROVEN_PEERS_MAX UNCOVERED_PAUSE_MS IDENTITY_CHANGES_MAX IDENTITY_WINDOW_MS
        TOMBSTONE_KEEP_MS MEMBER_KEEP_MS COLLECT_BLOCK_ROWS COLLECT_PAUSE_MS COLLECT_INTERVAL_MS
        COLLECT_INTERVAL_MIN_MS FLOOR_MAX RESYNC_TURN_MS RESYNC_TURN_DOUBLINGS_MAX
        DIGEST_QUIET_MS DIGEST_INTERVAL_MS DIGEST_SLICE_MAX_ROWS DIGEST_SLICE_MAX_BYTES
        DIGEST_SLICE_PAUSE_MS DIGEST_KEEP_MS REPAIRS_MAX REPAIR_PAUSE_MS
    });
    let mut declared = constants_in(LIMITS);
    declared.sort();
    assert_eq!(code.keys().cloned().collect::<Vec<_>>(), declared, "this test misses a constant");
    assert_eq!(numbers(section(PROTOCOL, "### Limits of the protocol")), code);
}

#[test]
fn every_limit_of_the_streams_stands_in_the_protocol_with_its_value() {
    let product = |text: &str| -> i128 {
        text.split('*').map(|factor| factor.trim().parse::<i128>().unwrap()).product()
    };
    let constant = |line: &str| {
        let (name, rest) = line.strip_prefix("pub const ")?.split_once(": ")?;
        let rest = rest.strip_prefix("usize = ").or_else(|| rest.strip_prefix("u64 = "))?;
        let value = rest.trim_end_matches(';').split('+').map(product).sum();
        Some((name.to_string(), value))
    };
    let code: BTreeMap<String, i128> =
        STREAMS.lines().chain(GATE.lines()).filter_map(constant).collect();
    assert!(code.len() > 5, "{code:?}");
    assert_eq!(numbers(section(PROTOCOL, "### Limits of the streams")), code);
}

#[test]
fn every_kind_of_message_stands_in_the_protocol_with_its_number() {
    let mut code = named!(plain { GREETING ANSWER PROOF REFUSAL ATTACH });
    code.extend(named!(sealed {
        HELLO STATE SCHEMA PUSH DIGEST REQUEST CHUNK CREDIT ABORT UNRELATED REPAIR
    }));
    let mut declared = constants_in(MESSAGES);
    declared.retain(|name| name != "DIGESTS");
    declared.sort();
    assert_eq!(code.keys().cloned().collect::<Vec<_>>(), declared, "this test misses a kind");
    assert_eq!(numbers(section(PROTOCOL, "## 6. Messages")), code);
}

#[test]
fn the_bytes_of_the_examples_are_those_of_the_code() {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let shown: BTreeMap<String, String> = rows_of_examples();
    let code: BTreeMap<String, String> = examples::all()
        .iter()
        .map(|example| (example.name.to_string(), hex(&example.bytes)))
        .collect();
    assert_eq!(shown, code);
}

#[test]
fn every_kind_of_message_has_an_example_that_reads_back_the_same() {
    let kinds = rows(section(PROTOCOL, "## 6. Messages"));
    let examples: BTreeMap<&str, examples::Example> =
        examples::all().into_iter().map(|example| (example.name, example)).collect();
    for row in kinds {
        let example = examples.get(row[0].as_str()).unwrap_or_else(|| panic!("none of {}", row[0]));
        assert_eq!(example.kind.map(|kind| kind.to_string()).as_ref(), Some(&row[1]), "{}", row[0]);
    }
    for (name, example) in examples {
        assert_eq!((example.again)(&example.bytes), example.bytes, "{name} reads back otherwise");
    }
}

fn rows_of_examples() -> BTreeMap<String, String> {
    rows(section(PROTOCOL, "### Example bytes"))
        .into_iter()
        .map(|row| (row[0].clone(), row[2].replace(['`', ' '], "")))
        .collect()
}

fn joined(sql: &str) -> Store {
    let conn = Connection::open_in_memory().unwrap();
    conn.execute_batch(sql).unwrap();
    let mut store = Store::open(conn).unwrap();
    let join = Join { topic: "documents".into(), ..Join::default() };
    let file = FileIdentity("a file".into());
    store.join(Millis(1_000), &join, &file, &[7; 64]).unwrap();
    store
}

#[test]
fn the_columns_of_the_internal_tables_stand_in_the_storage_format() {
    let store = joined("");
    let conn = store.connection();
    let one = |sql: &str, name: &str| -> Vec<String> {
        let mut statement = conn.prepare(sql).unwrap();
        let rows = statement.query_map([name], |row| row.get(0)).unwrap();
        rows.collect::<rusqlite::Result<_>>().unwrap()
    };
    let tables = one("SELECT name FROM sqlite_schema WHERE type = ?1 ORDER BY name", "table");
    let mut described: Vec<&str> =
        STORAGE.lines().filter_map(|line| line.strip_prefix("### `")?.strip_suffix('`')).collect();
    described.sort_unstable();
    assert_eq!(described, tables);
    for table in tables {
        let text = section(STORAGE, &format!("### `{table}`"));
        let first =
            text.split("\n\n").find(|part| part.trim_start().starts_with("| column")).unwrap();
        let columns: Vec<String> = rows(first).into_iter().map(|row| row[0].clone()).collect();
        let code = one("SELECT name FROM pragma_table_info(?1) ORDER BY cid", &table);
        assert_eq!(columns, code, "{table}");
    }
}

#[test]
fn the_worked_example_of_the_triggers_is_what_the_code_writes() {
    let blocks: Vec<&str> = section(STORAGE, "## 4. Capture")
        .split("```text\n")
        .skip(1)
        .filter_map(|block| block.split("\n```").next())
        .collect();
    let store = joined(blocks[0]);
    let mut statement = store
        .connection()
        .prepare("SELECT sql FROM sqlite_schema WHERE type = 'trigger' ORDER BY rowid")
        .unwrap();
    let code: Vec<String> =
        statement.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap();
    assert_eq!(blocks[1].lines().collect::<Vec<_>>(), code);
}

#[test]
fn the_worked_example_of_the_log_is_what_the_triggers_append() {
    let text = section(STORAGE, "## 4. Capture");
    let blocks: Vec<&str> = text.split("```text\n").skip(1).collect();
    let store = joined(blocks[0].split("\n```").next().unwrap());
    let conn = store.into_connection();
    conn.set_db_config(rusqlite::config::DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, true).unwrap();
    let examples = rows(text.split("append these entries").nth(1).unwrap());
    for example in examples.iter().filter(|row| row.len() == 4) {
        conn.execute_batch(&example[0]).unwrap();
        let entry: String = conn
            .query_row(
                "SELECT tbl || '|' || pk || '|' || coalesce(cols, 'NULL') FROM __wavesync_log
                 ORDER BY seq DESC LIMIT 1",
                [],
                |row| row.get(0),
            )
            .unwrap();
        assert_eq!(entry, example[1..].join("|"), "{}", example[0]);
    }
    assert!(examples.len() >= 4);
}
