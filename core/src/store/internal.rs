//! The tables that wavesync keeps in a database.

/// The internal tables; described in `docs/STORAGE.md`.
pub(super) const SCHEMA: &str = "
CREATE TABLE __wavesync_meta(key TEXT PRIMARY KEY NOT NULL, value) WITHOUT ROWID;
CREATE TABLE __wavesync_log(seq INTEGER PRIMARY KEY, tbl, pk, cols, at);
CREATE TABLE __wavesync_gone(tbl, pk, k0, k1, k2, k3, k4, k5, k6, k7);
CREATE TABLE __wavesync_site(num INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE);
CREATE TABLE __wavesync_vector(site INTEGER PRIMARY KEY, stamp INTEGER NOT NULL, boot INTEGER NOT NULL);
CREATE TABLE __wavesync_cap(site INTEGER PRIMARY KEY, stamp INTEGER NOT NULL);
CREATE TABLE __wavesync_cursor(site INTEGER PRIMARY KEY, boot INTEGER NOT NULL,
  seq INTEGER NOT NULL, high INTEGER NOT NULL, place BLOB);
CREATE TABLE __wavesync_boot(ord INTEGER PRIMARY KEY, nonce INTEGER NOT NULL,
  seq INTEGER NOT NULL, stamp INTEGER NOT NULL);
CREATE TABLE __wavesync_table(num INTEGER PRIMARY KEY, name TEXT NOT NULL COLLATE NOCASE,
  integer_key INTEGER NOT NULL, key_columns INTEGER NOT NULL, tracked INTEGER NOT NULL,
  base_columns INTEGER NOT NULL, import INTEGER, import_after, here INTEGER NOT NULL DEFAULT 0,
  UNIQUE(name, integer_key, key_columns));
CREATE TABLE __wavesync_former(tbl INTEGER NOT NULL, col INTEGER NOT NULL,
  name TEXT NOT NULL COLLATE NOCASE, PRIMARY KEY(tbl, col, name)) WITHOUT ROWID;
CREATE TABLE __wavesync_column(tbl INTEGER NOT NULL, num INTEGER NOT NULL, name TEXT NOT NULL,
  since INTEGER, PRIMARY KEY(tbl, num)) WITHOUT ROWID;
CREATE TABLE __wavesync_once(tbl INTEGER NOT NULL, k NOT NULL, cl INTEGER NOT NULL,
  stamp INTEGER NOT NULL, site INTEGER NOT NULL, PRIMARY KEY(tbl, k)) WITHOUT ROWID;
CREATE TABLE __wavesync_parked(tbl INTEGER NOT NULL, k NOT NULL, in_table INTEGER NOT NULL,
  kind TEXT NOT NULL, reason TEXT NOT NULL, vals BLOB NOT NULL, blocker, at INTEGER NOT NULL,
  waits BLOB, PRIMARY KEY(tbl, k)) WITHOUT ROWID;
CREATE INDEX __wavesync_parked_blocker ON __wavesync_parked(tbl, blocker) WHERE blocker IS NOT NULL;
CREATE INDEX __wavesync_parked_waits ON __wavesync_parked(waits) WHERE waits IS NOT NULL;
CREATE INDEX __wavesync_parked_open ON __wavesync_parked(tbl) WHERE blocker IS NULL AND waits IS NULL;
CREATE TABLE __wavesync_held(seq INTEGER PRIMARY KEY, tbl INTEGER NOT NULL, k NOT NULL,
  stamp INTEGER NOT NULL, site INTEGER NOT NULL, at INTEGER NOT NULL, row BLOB NOT NULL);
CREATE INDEX __wavesync_held_key ON __wavesync_held(tbl, k);
CREATE INDEX __wavesync_held_stamp ON __wavesync_held(stamp);
CREATE INDEX __wavesync_held_site ON __wavesync_held(site);
CREATE TABLE __wavesync_held_dot(site INTEGER NOT NULL, stamp INTEGER NOT NULL, seq INTEGER NOT NULL,
  PRIMARY KEY(site, stamp, seq)) WITHOUT ROWID;
CREATE INDEX __wavesync_held_dot_seq ON __wavesync_held_dot(seq);
CREATE TABLE __wavesync_conflict(id INTEGER PRIMARY KEY, tbl INTEGER NOT NULL, k NOT NULL,
  kind TEXT NOT NULL, reason TEXT NOT NULL, ours TEXT, theirs TEXT, site INTEGER, at INTEGER NOT NULL);
CREATE TABLE __wavesync_member(site INTEGER PRIMARY KEY, peer BLOB, name TEXT NOT NULL,
  applied BLOB, seen INTEGER NOT NULL, contact TEXT, accepted INTEGER NOT NULL DEFAULT 0,
  read INTEGER NOT NULL DEFAULT 0);
CREATE TABLE __wavesync_address(peer BLOB NOT NULL, address TEXT NOT NULL, reached INTEGER NOT NULL,
  failed INTEGER NOT NULL, at INTEGER NOT NULL, PRIMARY KEY(peer, address)) WITHOUT ROWID;
INSERT INTO __wavesync_meta(key, value) VALUES('format', 1), ('folded', 0), ('hlc', 0);
";

/// Keys that a member has; see [`crate::store::resync`].
const NOTED: &str = "
CREATE TABLE IF NOT EXISTS __wavesync_resync(tbl INTEGER NOT NULL, k NOT NULL, stamp INTEGER NOT NULL,
  site INTEGER NOT NULL, home, PRIMARY KEY(tbl, k, stamp, site)) WITHOUT ROWID;
";

/// Tables that were added to format 1: made where they are missing, when the schema is first looked at.
pub(super) fn create_added(conn: &rusqlite::Connection) -> crate::Result<()> {
    for sql in [NOTED, super::past::SCHEMA, super::regain::SCHEMA] {
        conn.execute_batch(sql)?;
    }
    // Earlier builds noted less of a row, so what they noted is of no use.
    let earlier = "SELECT 1 FROM sqlite_schema WHERE name = '__wavesync_noted'";
    if conn.prepare_cached(earlier)?.exists([])? {
        conn.execute_batch(
            "DROP TABLE __wavesync_noted; DELETE FROM __wavesync_meta WHERE key = 'resync';",
        )?;
    }
    Ok(())
}
