//! Every limit of the data model and the protocol, with its unit last in the name.
//!
//! This file knows numbers only. A limit that is part of the wire format also stands in
//! `docs/PROTOCOL.md`.

/// Body of one frame on a stream, before the MAC.
pub const FRAME_BODY_MAX_BYTES: usize = 256 * 1024;
/// A chunk of a catch-up is closed once its encoded rows exceed this.
pub const CHUNK_TARGET_BYTES: usize = 1024 * 1024;
/// A chunk of a catch-up holds at most this many rows.
pub const CHUNK_MAX_ROWS: usize = 10_000;
/// A requester that can take fewer rows in one transaction is not given fewer than this.
pub const CHUNK_ASKED_MIN_ROWS: usize = 100;
/// Rows of a table that are counted at most to show how far a pass in key order is.
pub const PROGRESS_MAX_ROWS: i64 = 4_000_000;
/// Log entries looked at for one chunk, so that a scan over dead entries stays short.
pub const CHUNK_SCAN_MAX_ENTRIES: usize = 50_000;
/// Where a key-order pass goes on, as it travels; a longer key makes it go on at its table's start.
pub const PLACE_MAX_BYTES: usize = 8 * 1024;
/// One row, all its values together. A larger row is reported and held.
pub const ROW_MAX_BYTES: usize = 64 * 1024 * 1024;
/// Parameters of one SQL statement: SQLite's own limit is a little higher.
pub const SQL_PARAMETERS_MAX: usize = 30_000;
/// New rows of one table in a chunk that are worth being written set-wise.
pub const BULK_MIN_ROWS: usize = 32;
/// A whole message on a catch-up stream: one chunk whose last row may be as large as a row can be.
pub const PASS_MESSAGE_MAX_BYTES: usize = ROW_MAX_BYTES + 2 * CHUNK_TARGET_BYTES;
/// A whole message on the control stream.
pub const CONTROL_MESSAGE_MAX_BYTES: usize = 4 * 1024 * 1024;
/// A message before the handshake is complete.
pub const HANDSHAKE_MESSAGE_MAX_BYTES: usize = 1024;
/// LZ4 cannot expand a block by more than this, so a larger claim is a lie.
pub const COMPRESSION_MAX_RATIO: usize = 255;
/// Cells of a row batch, where each row and each key column counts as one, too.
pub const BATCH_MAX_CELLS: usize = 1 << 20;
/// Log entries that one test for uncovered rows looks at (rule P12).
pub const OPEN_TEST_MAX_ENTRIES: usize = 20_000;
/// Local rows that are sent at once as a push; a larger fold is announced and fetched.
pub const PUSH_MAX_ROWS: usize = 256;
/// Encoded size of a push; a larger one is announced and fetched.
pub const PUSH_MAX_BYTES: usize = 192 * 1024;
/// What somebody connected wrote and another member has already is asked for after this long.
pub const PUSH_GRACE_MS: u64 = 500;
/// Receivers that a push names at most.
pub const PUSH_MAX_SENT_TO: usize = 24;
/// Bytes of a site id that stand for it in a push.
pub const SITE_TAG_BYTES: usize = 4;
/// While commits stream in, the log is folded at most this often.
pub const FOLD_INTERVAL_MS: u64 = 25;
/// A commit that readers keep from happening waits at most this long for them, once shorter waits
/// were in vain.
pub const COMMIT_WAIT_MAX_MS: u64 = 640;
/// While commits stream in, the log is folded once this many rows wait.
pub const FOLD_WAITING_ROWS: u64 = 10_000;
/// Log rows that one fold transaction turns into clocks.
pub const FOLD_BLOCK_ROWS: usize = 10_000;
/// Consecutive inserts that are folded in bulk from this many on.
pub const FOLD_RUN_MIN_ROWS: usize = 32;
/// Existing rows that one back-fill transaction takes in.
pub const BACKFILL_BLOCK_ROWS: usize = 5_000;
/// Log entries that are kept for members that are away; older ones are removed.
pub const LOG_KEEP_ROWS: i64 = 100_000;
/// Log entries that one transaction removes. Fewer than that are not worth one.
pub const LOG_TRIM_BLOCK_ROWS: i64 = 2_000;
/// Pause between two transactions that remove log entries.
pub const LOG_TRIM_PAUSE_MS: u64 = 10;
/// The length of the log is looked at at most this often.
pub const LOG_TRIM_INTERVAL_MS: u64 = 1_000;
/// A deleted row is remembered for at least this long.
pub const TOMBSTONE_KEEP_MS: u64 = 30 * 24 * 60 * 60 * 1000;
/// Whether a member that was not seen for this long has applied a delete is not waited for, unless
/// the setting `member_keep_ms` says else.
pub const MEMBER_KEEP_MS: u64 = 90 * 24 * 60 * 60 * 1000;
/// Rows that one step of the search for tombstones looks at.
pub const COLLECT_BLOCK_ROWS: usize = 2_000;
/// Pause between two steps of the search for tombstones.
pub const COLLECT_PAUSE_MS: u64 = 20;
/// However little is kept, the search for tombstones begins no sooner after the one before.
pub const COLLECT_INTERVAL_MIN_MS: u64 = 500;
/// The search for tombstones begins this long after the one before, and after the start.
pub const COLLECT_INTERVAL_MS: u64 = 30 * 60 * 1000;
/// For a member that was not seen for this long, the log is not kept.
pub const LOG_MEMBER_MAX_MS: u64 = 30 * 24 * 60 * 60 * 1_000;
/// Parked rows that are tried again in one transaction.
pub const RETRY_BLOCK_ROWS: usize = 1_000;
/// Stamps this far ahead of the own clock are held, unless the setting `future_limit_ms` says else.
pub const FUTURE_LIMIT_MS: u64 = 300_000;
/// Held rows that are released in one transaction.
pub const RELEASE_BLOCK_ROWS: usize = 1_000;
/// Parked rows that one replica stores at most; rows of tables that are not here are left out then.
pub const PARKED_MAX_ROWS: i64 = 1_000_000;
/// Tables that only other members have, which one replica numbers at most. The rest is for its own.
pub const FOREIGN_TABLES_MAX: usize = 1_024;
/// Columns of one table that only other members have, which one replica numbers at most.
pub const FOREIGN_COLUMNS_MAX: usize = 512;
/// Cells inserted into `wavesync_changes` that wait to be taken in, at most.
pub const INBOX_MAX_CELLS: i64 = 1_000_000;
/// Tables (known and unknown) that one replica numbers at most.
pub const TABLES_MAX: usize = 4_096;
/// Columns of one table, as in SQLite.
pub const COLUMNS_MAX: usize = 32_767;
/// Rows of a table with more columns are read apart from their clocks: SQLite gives at most 2,000
/// columns in a result, and a host may have set less.
pub const JOINED_MAX_COLUMNS: usize = 500;
/// Bytes of a table or column name on the wire.
pub const NAME_MAX_BYTES: usize = 1_024;
/// Key columns of a table on the wire.
pub const KEY_COLUMNS_MAX: usize = 64;
/// Bytes of one `CREATE` statement on the wire.
pub const SCHEMA_SQL_MAX_BYTES: usize = 256 * 1024;
/// Sites in a version vector and in a batch, on the wire and as kept.
pub const VECTOR_MAX_SITES: usize = 4_096;
/// Caps on the wire, and kept (rule P14).
pub const CAPS_MAX_SITES: usize = 4_096;
/// Boot records that a replica keeps about itself.
pub const BOOTS_MAX: usize = 10_000;
/// Rows of one table in the sample of a first contact.
pub const SAMPLE_MAX_ROWS: usize = 256;
/// Cells in the sample of a first contact, all tables together.
pub const SAMPLE_MAX_CELLS: usize = 200_000;
/// A catch-up that makes no progress for this long is ended and started again.
pub const PASS_STALL_MS: u64 = 30_000;
/// Taking everything over anew from one member makes way for others after this long, twice as long
/// each time (rule P20): they could not be asked for anything meanwhile.
pub const RESYNC_TURN_MS: u64 = 600_000;
/// It is twice as long at most so often.
pub const RESYNC_TURN_DOUBLINGS_MAX: u32 = 8;
/// A handshake that takes longer is given up.
pub const HANDSHAKE_MAX_MS: u64 = 15_000;
/// Catch-ups that one peer may have open at us.
pub const PASSES_PER_PEER_MAX: usize = 2;
/// Announcements to one peer are coalesced to at most one in this time.
pub const ANNOUNCE_INTERVAL_MS: u64 = 20;
/// Every connected peer is compared with again after this long, whatever happened.
pub const COMPARE_INTERVAL_MS: u64 = 20_000;
/// A catch-up that was put off is asked for again after this long.
pub const ASK_AGAIN_MS: u64 = 250;
/// Digests are compared once nothing has changed for this long (rule P15).
pub const DIGEST_QUIET_MS: u64 = 1_000;
/// While things change, digests are compared at most this often.
pub const DIGEST_INTERVAL_MS: u64 = 20_000;
/// Rows that are read for digests in one go.
pub const DIGEST_SLICE_MAX_ROWS: usize = 512;
/// Bytes of values that are read for digests in one go; a single row may be larger.
pub const DIGEST_SLICE_MAX_BYTES: usize = 256 * 1024;
/// Pause between two goes at reading rows for digests.
pub const DIGEST_SLICE_PAUSE_MS: u64 = 20;
/// After this long everything is read again, whatever the log says.
pub const DIGEST_KEEP_MS: u64 = 24 * 60 * 60 * 1_000;
/// Times that rows are read again from a member whose digests differ, before that is told.
pub const REPAIRS_MAX: u32 = 4;
/// After a difference that reading again did not end, nothing is read again from that member for
/// this long.
pub const REPAIR_PAUSE_MS: u64 = 60 * 60 * 1_000;
/// Other names of tables and columns that are taken over from members, together.
pub const OTHER_NAMES_MAX: usize = 1_024;
/// A table that is gone counts as dropped after this long: it may be about to be replaced.
pub const SCHEMA_SETTLE_MS: u64 = 1_000;
/// Addresses kept of one member.
pub const ADDRESSES_PER_MEMBER: usize = 8;
/// An address of a member that failed in so many engines since it last worked is forgotten.
pub const ADDRESS_FAILURES_MAX: u32 = 50;
/// Known members that are shown and dialed at a start, the newest first.
pub const MEMBERS_KNOWN_MAX: usize = 1_024;
/// What a lock or a failed SQLite call left undone is tried again after this long.
pub const STORE_RETRY_MS: u64 = 20;
/// A full disk, or whatever else than a lock keeps failing, is tried again after twice as long each
/// time, up to this.
pub const STORE_RETRY_MAX_MS: u64 = 1_000;
/// A lock that keeps the engine from the file for longer than this is told.
pub const LOCKED_TOLD_MS: u64 = 5_000;
/// Messages of all peers that wait for SQLite; the stream of the newest one beyond that ends.
pub const INBOX_MAX_MESSAGES: usize = 256;
/// Messages of all peers that wait for SQLite, together; one may be larger alone.
pub const INBOX_MAX_BYTES: usize = 128 * 1024 * 1024;
/// Connected peers that have not proven to be members; each further one pushes out the one that is here
/// longest and was not sent away yet.
pub const UNPROVEN_PEERS_MAX: usize = 64;
/// A member that has nothing which the own vector lacks is asked at most this often for what its log
/// holds beyond its vector.
pub const UNCOVERED_PAUSE_MS: u64 = 250;
/// Changes of identity that peers can bring about in [`IDENTITY_WINDOW_MS`].
pub const IDENTITY_CHANGES_MAX: usize = 4;
/// See [`IDENTITY_CHANGES_MAX`].
pub const IDENTITY_WINDOW_MS: u64 = 60 * 60 * 1000;
/// Events kept for `wavesync_events`.
pub const EVENTS_MAX: usize = 500;
/// Physical part of a stamp is refused above this: milliseconds until the year 6429.
pub const STAMP_MS_MAX: i64 = (1 << 47) - 1;
/// Stamps above this are refused at decode, so that local writes always have room above them.
pub const STAMP_MAX: i64 = i64::MAX - (1 << 32);
/// Causal lengths above this are refused at decode.
pub const CAUSAL_LENGTH_MAX: i64 = 1 << 40;
/// Floors above this are refused, and tombstones of longer causal lengths are kept: else one row that a
/// member made so would use up the lengths of all rows of its table.
pub const FLOOR_MAX: i64 = 1 << 32;
/// Log positions above this are refused at decode.
pub const SEQ_MAX: i64 = 1 << 62;
/// A topic's length.
pub const TOPIC_MAX_BYTES: usize = 256;
/// A passphrase's length.
pub const PASSPHRASE_MAX_BYTES: usize = 1_024;
/// A replica's own name, as shown to other members.
pub const REPLICA_NAME_MAX_BYTES: usize = 64;

/// How much one transaction or message takes at most, for a [`crate::store::Store`]. Real replicas
/// use the constants; the simulator makes them tiny, so that few rows already need many pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// See [`CHUNK_MAX_ROWS`].
    pub chunk_rows: usize,
    /// See [`CHUNK_SCAN_MAX_ENTRIES`].
    pub chunk_scan_entries: usize,
    /// See [`PUSH_MAX_ROWS`].
    pub push_rows: usize,
    /// See [`FOLD_RUN_MIN_ROWS`].
    pub fold_run_rows: usize,
    /// See [`BACKFILL_BLOCK_ROWS`].
    pub backfill_rows: usize,
    /// See [`OPEN_TEST_MAX_ENTRIES`].
    pub open_test_entries: usize,
    /// See [`LOG_KEEP_ROWS`].
    pub log_keep_rows: i64,
    /// See [`LOG_TRIM_BLOCK_ROWS`].
    pub log_trim_rows: i64,
    /// See [`BULK_MIN_ROWS`].
    pub bulk_rows: usize,
    /// See [`PARKED_MAX_ROWS`].
    pub parked_rows: i64,
    /// See [`IDENTITY_CHANGES_MAX`].
    pub identity_changes: usize,
    /// See [`TOMBSTONE_KEEP_MS`].
    pub tombstone_keep_ms: u64,
    /// See [`MEMBER_KEEP_MS`].
    pub member_keep_ms: u64,
    /// See [`COLLECT_BLOCK_ROWS`].
    pub collect_rows: usize,
    /// See [`COLLECT_INTERVAL_MS`].
    pub collect_interval_ms: u64,
    /// See [`DIGEST_SLICE_MAX_ROWS`].
    pub digest_rows: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            chunk_rows: CHUNK_MAX_ROWS,
            chunk_scan_entries: CHUNK_SCAN_MAX_ENTRIES,
            push_rows: PUSH_MAX_ROWS,
            fold_run_rows: FOLD_RUN_MIN_ROWS,
            backfill_rows: BACKFILL_BLOCK_ROWS,
            open_test_entries: OPEN_TEST_MAX_ENTRIES,
            log_keep_rows: LOG_KEEP_ROWS,
            log_trim_rows: LOG_TRIM_BLOCK_ROWS,
            bulk_rows: BULK_MIN_ROWS,
            parked_rows: PARKED_MAX_ROWS,
            identity_changes: IDENTITY_CHANGES_MAX,
            tombstone_keep_ms: TOMBSTONE_KEEP_MS,
            member_keep_ms: MEMBER_KEEP_MS,
            collect_rows: COLLECT_BLOCK_ROWS,
            collect_interval_ms: COLLECT_INTERVAL_MS,
            digest_rows: DIGEST_SLICE_MAX_ROWS,
        }
    }
}
