//! Where members were reached: what an engine dials when it starts, so that a group finds itself
//! again without being told.

use rusqlite::{Connection, params};

use crate::ids::{Millis, SiteId};
use crate::store::Store;
use crate::{Result, limits};

/// A member that was connected once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownMember {
    /// Its site id.
    pub site: SiteId,
    /// Its id on the network.
    pub peer: Vec<u8>,
    /// What its user calls it.
    pub name: String,
    /// When it was connected last.
    pub seen: Millis,
    /// Where it was reached, the newest first.
    pub addresses: Vec<String>,
}

impl Store {
    /// A member was dialed at an address of it: reached, and proven to be one, or not reached. What
    /// was never reached is not remembered; what failed [`limits::ADDRESS_FAILURES_MAX`] times
    /// since it last worked is forgotten.
    ///
    /// # Errors
    /// If SQLite fails; nothing is changed then.
    pub fn note_address(
        &mut self,
        now: Millis,
        peer: &[u8],
        address: &str,
        reached: bool,
    ) -> Result<()> {
        let sql = if reached {
            "INSERT INTO __wavesync_address(peer, address, reached, failed, at)
             VALUES(?1, ?2, 1, 0, ?3) ON CONFLICT DO UPDATE SET
             reached = reached + 1, failed = 0, at = excluded.at"
        } else {
            "UPDATE __wavesync_address SET failed = failed + 1 WHERE (peer, address) = (?1, ?2)
             AND ?3 IS NOT NULL"
        };
        self.write(now, |tx| {
            tx.conn.prepare_cached(sql)?.execute(params![peer, address, now.0 as i64])?;
            tx.conn
                .prepare_cached(
                    "DELETE FROM __wavesync_address WHERE peer = ?1 AND (failed >= ?2 OR address IN (
                       SELECT address FROM __wavesync_address WHERE peer = ?1
                       ORDER BY at DESC LIMIT -1 OFFSET ?3))",
                )?
                .execute(params![
                    peer,
                    limits::ADDRESS_FAILURES_MAX,
                    limits::ADDRESSES_PER_MEMBER as i64
                ])?;
            Ok(())
        })
    }

    /// As [`known_members`].
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn known_members(&self) -> Result<Vec<KnownMember>> {
        known_members(&self.conn)
    }
}

/// Members that were connected once, the newest first, at most [`limits::MEMBERS_KNOWN_MAX`].
///
/// # Errors
/// If SQLite fails.
pub fn known_members(conn: &Connection) -> Result<Vec<KnownMember>> {
    let mut addresses = conn.prepare_cached(
        "SELECT address FROM __wavesync_address WHERE peer = ?1 ORDER BY at DESC, address",
    )?;
    let mut members = conn.prepare_cached(
        "SELECT s.id, m.peer, m.name, m.seen FROM __wavesync_member m
         JOIN __wavesync_site s ON s.num = m.site
         WHERE m.peer IS NOT NULL ORDER BY m.seen DESC, s.id LIMIT ?1",
    )?;
    let mut rows = members.query([limits::MEMBERS_KNOWN_MAX as i64])?;
    let mut known = Vec::new();
    while let Some(row) = rows.next()? {
        let site: Vec<u8> = row.get(0)?;
        let Some(site) = SiteId::from_slice(&site) else { continue };
        let peer: Vec<u8> = row.get(1)?;
        let found = addresses.query_map([&peer], |row| row.get(0))?;
        known.push(KnownMember {
            site,
            name: row.get(2)?,
            seen: Millis(u64::try_from(row.get::<_, i64>(3)?).unwrap_or(0)),
            addresses: found.collect::<rusqlite::Result<_>>()?,
            peer,
        });
    }
    Ok(known)
}
