//! Sites, the version vector, cursors and boots: what this replica has seen of whom.
//!
//! The vector moves in exactly three places: the own fold, the last chunk of a pass, a contiguous
//! push (rule P7). A cursor moves only with the chunk that it belongs to.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Deref, DerefMut};
use std::rc::Rc;

use rusqlite::{OptionalExtension, params};

use crate::ids::{Boot, Cursor, Dot, Seq, SiteId, Stamp};
use crate::mutants::{self, Mutant};
use crate::store::{SiteNum, Tx};
use crate::{Error, Result};

/// Site to the highest stamp of it that was completely seen, and the boot that wrote it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vector(pub Entries);

/// The entries of a [`Vector`]. Copies share them until one is changed: a large group's vector is
/// compared with every frame and changed rarely.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entries(Rc<BTreeMap<SiteId, (Stamp, Boot)>>);

impl Deref for Entries {
    type Target = BTreeMap<SiteId, (Stamp, Boot)>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for Entries {
    fn deref_mut(&mut self) -> &mut Self::Target {
        Rc::make_mut(&mut self.0)
    }
}

impl FromIterator<(SiteId, (Stamp, Boot))> for Entries {
    fn from_iter<I: IntoIterator<Item = (SiteId, (Stamp, Boot))>>(entries: I) -> Self {
        Self(Rc::new(entries.into_iter().collect()))
    }
}

impl<'a> IntoIterator for &'a Entries {
    type Item = (&'a SiteId, &'a (Stamp, Boot));
    type IntoIter = std::collections::btree_map::Iter<'a, SiteId, (Stamp, Boot)>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl Vector {
    /// The highest stamp of a site that was completely seen.
    #[must_use]
    pub fn get(&self, site: SiteId) -> Stamp {
        self.0.get(&site).map_or(Stamp::NONE, |(stamp, _)| *stamp)
    }

    /// Whether a write event was seen.
    #[must_use]
    pub fn covers(&self, dot: Dot) -> bool {
        self.get(dot.site) >= dot.stamp
    }

    /// Whether everything that `other` has seen was seen.
    #[must_use]
    pub fn covers_all(&self, other: &Self) -> bool {
        if Rc::ptr_eq(&self.0.0, &other.0.0) {
            return true;
        }
        // Both are in the order of their sites, so one walk over both does it.
        let mut own = self.0.iter().peekable();
        other.0.iter().all(|(site, (stamp, _))| {
            while own.next_if(|(own, _)| *own < site).is_some() {}
            let here = own.peek().filter(|(own, _)| *own == site);
            here.map_or(Stamp::NONE, |(_, (stamp, _))| *stamp) >= *stamp
        })
    }

    /// The back-fills that were completely seen.
    pub fn imports(&self) -> impl Iterator<Item = SiteId> + '_ {
        self.0.iter().filter(|(_, (stamp, _))| stamp.is_base()).map(|(site, _)| *site)
    }

    /// Takes the higher stamp of each site.
    pub fn merge(&mut self, other: &Self) {
        for (site, (stamp, boot)) in &other.0 {
            if self.get(*site) < *stamp {
                self.0.insert(*site, (*stamp, *boot));
            }
        }
    }
}

/// Upper bounds of vector entries: what a site wrote above its cap may exist in two versions.
pub type Caps = BTreeMap<SiteId, Stamp>;

impl Vector {
    /// Lowers the entries of capped sites (rule P14). Returns those that were higher.
    pub fn clamp(&mut self, caps: &Caps) -> BTreeSet<SiteId> {
        let above = |(site, cap): &(&SiteId, &Stamp)| self.get(**site) > **cap;
        let lowered: Vec<(SiteId, Stamp)> =
            caps.iter().filter(above).map(|(site, cap)| (*site, *cap)).collect();
        for (site, cap) in &lowered {
            if let Some((stamp, _)) = self.0.get_mut(site) {
                *stamp = *cap;
            }
        }
        lowered.into_iter().map(|(site, _)| site).collect()
    }
}

impl Tx<'_> {
    /// This replica's own site id.
    pub fn own_site(&mut self) -> Result<SiteId> {
        let number = self
            .meta::<i64>("self")?
            .ok_or_else(|| Error::Database("this database has not joined a group".into()))?;
        self.site(SiteNum(number))
    }

    /// The site behind a local number.
    pub fn site(&mut self, number: SiteNum) -> Result<SiteId> {
        if let Some(site) = self.cache.sites.get(&number) {
            return Ok(*site);
        }
        let bytes: Vec<u8> = self
            .conn
            .prepare_cached("SELECT id FROM __wavesync_site WHERE num = ?1")?
            .query_row([number.0], |row| row.get(0))?;
        let site = SiteId::from_slice(&bytes)
            .ok_or_else(|| Error::Database("a stored site id is damaged".into()))?;
        self.cache.sites.insert(number, site);
        self.cache.numbers.insert(site, number);
        Ok(site)
    }

    /// The local number of a site, given on first use.
    pub fn site_num(&mut self, site: SiteId) -> Result<SiteNum> {
        if let Some(number) = self.cache.numbers.get(&site) {
            return Ok(*number);
        }
        let known: Option<i64> = self
            .conn
            .prepare_cached("SELECT num FROM __wavesync_site WHERE id = ?1")?
            .query_row([&site.0[..]], |row| row.get(0))
            .optional()?;
        let number = match known {
            Some(number) => SiteNum(number),
            None => {
                self.check_room_for_site()?;
                return self.number_site(site);
            }
        };
        self.cache.sites.insert(number, site);
        self.cache.numbers.insert(site, number);
        Ok(number)
    }

    /// Gives a new site its number.
    pub(super) fn number_site(&mut self, site: SiteId) -> Result<SiteNum> {
        self.conn
            .prepare_cached("INSERT INTO __wavesync_site(id) VALUES(?1)")?
            .execute([&site.0[..]])?;
        let number = SiteNum(self.conn.last_insert_rowid());
        self.cache.sites.insert(number, site);
        self.cache.numbers.insert(site, number);
        Ok(number)
    }

    /// The whole version vector.
    pub fn vector(&mut self) -> Result<Vector> {
        if let Some(vector) = &self.cache.vector {
            return Ok(vector.clone());
        }
        let mut statement =
            self.conn.prepare_cached("SELECT site, stamp, boot FROM __wavesync_vector")?;
        let rows = statement
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
            .collect::<rusqlite::Result<Vec<(i64, i64, i64)>>>()?;
        let mut vector = Vector::default();
        for (site, stamp, boot) in rows {
            vector.0.insert(self.site(SiteNum(site))?, (Stamp(stamp), Boot(boot)));
        }
        self.cache.vector = Some(vector.clone());
        Ok(vector)
    }

    /// One entry of the version vector.
    pub fn seen(&self, site: SiteId) -> Result<Stamp> {
        let stamp: Option<i64> = self
            .conn
            .prepare_cached(
                "SELECT v.stamp FROM __wavesync_vector v JOIN __wavesync_site s ON s.num = v.site
                 WHERE s.id = ?1",
            )?
            .query_row([&site.0[..]], |row| row.get(0))
            .optional()?;
        Ok(stamp.map_or(Stamp::NONE, Stamp))
    }

    /// Raises one entry of the version vector, never above the site's cap (rule P14).
    pub(super) fn raise(&mut self, site: SiteId, stamp: Stamp, boot: Boot) -> Result<()> {
        let number = self.site_num(site)?;
        let cap: Option<i64> = self
            .conn
            .prepare_cached("SELECT stamp FROM __wavesync_cap WHERE site = ?1")?
            .query_row([number.0], |row| row.get(0))
            .optional()?;
        let stamp = cap.map_or(stamp, |cap| stamp.min(Stamp(cap)));
        self.conn
            .prepare_cached(
                "INSERT INTO __wavesync_vector(site, stamp, boot) VALUES(?1, ?2, ?3)
                 ON CONFLICT(site) DO UPDATE SET stamp = excluded.stamp, boot = excluded.boot
                 WHERE excluded.stamp > stamp",
            )?
            .execute(params![number.0, stamp.0, boot.0])?;
        if let Some(vector) = &mut self.cache.vector
            && vector.get(site) < stamp
        {
            vector.0.insert(site, (stamp, boot));
        }
        Ok(())
    }

    /// Merges the vector that came with the last chunk of a pass.
    pub(super) fn raise_all(&mut self, vector: &Vector) -> Result<()> {
        let known = self.vector()?;
        let left_out = self.left_out_sites()?;
        let stored = |(site, _): &(&SiteId, _)| !left_out.contains(*site);
        for (site, (stamp, boot)) in vector.0.iter().filter(stored) {
            if known.get(*site) < *stamp {
                self.raise(*site, *stamp, *boot)?;
            }
        }
        Ok(())
    }

    /// How far this replica has read another one's log.
    pub fn cursor(&self, site: SiteId) -> Result<Cursor> {
        Ok(self
            .conn
            .prepare_cached(
                "SELECT c.boot, c.seq, c.high FROM __wavesync_cursor c
                 JOIN __wavesync_site s ON s.num = c.site WHERE s.id = ?1",
            )?
            .query_row([&site.0[..]], |row| {
                Ok(Cursor {
                    boot: Boot(row.get(0)?),
                    seq: Seq(row.get(1)?),
                    high: Seq(row.get(2)?),
                })
            })
            .optional()?
            .unwrap_or_default())
    }

    /// Where a key-order pass of another replica's rows goes on, in that replica's words; empty
    /// where none is under way (rule K1).
    pub fn place_at(&self, site: SiteId) -> Result<Vec<u8>> {
        let place: Option<Option<Vec<u8>>> = self
            .conn
            .prepare_cached(
                "SELECT c.place FROM __wavesync_cursor c
                 JOIN __wavesync_site s ON s.num = c.site WHERE s.id = ?1",
            )?
            .query_row([&site.0[..]], |row| row.get(0))
            .optional()?;
        Ok(place.flatten().unwrap_or_default())
    }

    /// Moves a cursor and the place of a key-order pass; only in the transaction that applied what
    /// they cover (invariant I7).
    pub(super) fn set_cursor(&mut self, site: SiteId, cursor: Cursor, place: &[u8]) -> Result<()> {
        let number = self.site_num(site)?;
        let place = (!place.is_empty()).then_some(place);
        self.conn
            .prepare_cached(
                "INSERT INTO __wavesync_cursor(site, boot, seq, high, place)
                 VALUES(?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT(site) DO UPDATE SET boot = excluded.boot, seq = excluded.seq,
                 high = excluded.high, place = excluded.place",
            )?
            .execute(params![number.0, cursor.boot.0, cursor.seq.0, cursor.high.0, place])?;
        Ok(())
    }

    /// What was passed over may have to be read again: every log is read from its start.
    pub(super) fn reset_cursors(&mut self) -> Result<()> {
        self.conn.execute("UPDATE __wavesync_cursor SET seq = 0, place = NULL", [])?;
        Ok(())
    }

    /// The upper bounds of vector entries.
    pub fn caps(&mut self) -> Result<Caps> {
        if let Some(caps) = &self.cache.caps {
            return Ok(caps.clone());
        }
        let rows = self
            .conn
            .prepare_cached("SELECT site, stamp FROM __wavesync_cap")?
            .query_map([], |row| Ok((SiteNum(row.get(0)?), Stamp(row.get(1)?))))?
            .collect::<rusqlite::Result<Vec<_>>>()?;
        let caps = rows.into_iter().map(|(site, stamp)| Ok((self.site(site)?, stamp)));
        let caps: Caps = caps.collect::<Result<_>>()?;
        self.cache.caps = Some(caps.clone());
        Ok(caps)
    }

    /// Takes in upper bounds: the lower one of each site holds for ever. What was passed over
    /// because the vector claimed more is read again. Returns whether any bound fell.
    pub(super) fn lower_caps(&mut self, caps: &Caps) -> Result<bool> {
        let mut fell = false;
        let known = if caps.is_empty() { Caps::new() } else { self.caps()? };
        (self.cache.vector, self.cache.caps) = (None, None);
        let new = caps.keys().filter(|site| !known.contains_key(site)).count();
        if known.len() + new > crate::limits::CAPS_MAX_SITES {
            return Err(Error::protocol("a member shows more caps than a group can have"));
        }
        for (site, stamp) in caps {
            if known.get(site).is_some_and(|known| known <= stamp) {
                continue;
            }
            let number = self.site_num(*site)?;
            fell |= 0 < self
                .conn
                .prepare_cached(
                    "INSERT INTO __wavesync_cap(site, stamp) VALUES(?1, ?2)
                         ON CONFLICT(site) DO UPDATE SET stamp = excluded.stamp
                         WHERE excluded.stamp < stamp",
                )?
                .execute(params![number.0, stamp.0])?;
            if mutants::on(Mutant::CapUnheeded) {
                continue;
            }
            self.conn
                .prepare_cached(
                    "UPDATE __wavesync_vector SET stamp = min(stamp, ?2) WHERE site = ?1",
                )?
                .execute(params![number.0, stamp.0])?;
        }
        if fell {
            self.reset_cursors()?;
            self.open_everything()?;
            self.end_resync()?;
        }
        Ok(fell)
    }

    /// Whether a cursor that a peer holds for this replica lies on the branch that this file
    /// continues: its boot is known and its `high` is not beyond that boot's end.
    pub fn cursor_is_ours(&self, cursor: Cursor) -> Result<bool> {
        if cursor.boot == Boot(0) {
            return Ok(true);
        }
        let order: Option<i64> = self
            .conn
            .prepare_cached("SELECT ord FROM __wavesync_boot WHERE nonce = ?1")?
            .query_row([cursor.boot.0], |row| row.get(0))
            .optional()?;
        let Some(order) = order else { return Ok(false) };
        let next: Option<i64> = self
            .conn
            .prepare_cached("SELECT seq FROM __wavesync_boot WHERE ord > ?1 ORDER BY ord LIMIT 1")?
            .query_row([order], |row| row.get(0))
            .optional()?;
        let end = match next {
            Some(end) => Seq(end),
            None => Seq(self.meta("folded")?.unwrap_or(0)),
        };
        Ok(cursor.high <= end)
    }

    /// What a peer has seen of this replica contradicts this file (rule P13): a stamp that it never
    /// gave, a boot that it does not know, a position beyond the end of a boot. Returns the stamp
    /// up to which this branch is certainly the one that others know; `None` without contradiction.
    pub fn contradiction(&mut self, vector: &Vector, cursor: Cursor) -> Result<Option<Stamp>> {
        if mutants::on(Mutant::ForkUnseen) {
            return Ok(None);
        }
        // The oldest boots are trimmed; then one that is not known proves nothing.
        let all_known =
            self.conn.prepare_cached("SELECT 1 FROM __wavesync_boot WHERE ord = 1")?.exists([])?;
        let unknown = matches!(self.boot_after(cursor.boot)?, After::Unknown);
        if !self.cursor_is_ours(cursor)? && (all_known || !unknown) {
            return self.common_until(cursor.boot).map(Some);
        }
        let own = self.own_site()?;
        let Some((stamp, boot)) = vector.0.get(&own).copied() else { return Ok(None) };
        let seen = self.seen(own)?;
        let end = match self.boot_after(boot)? {
            After::Boot(end) => end,
            After::Running => seen,
            // Boot 0: folded by a call while no engine ran.
            After::Unknown if boot == Boot(0) || !all_known => seen,
            After::Unknown => Stamp::NONE,
        };
        if stamp > end { self.common_until(boot).map(Some) } else { Ok(None) }
    }

    /// Both branches share everything up to the boot that follows one that both know.
    fn common_until(&self, boot: Boot) -> Result<Stamp> {
        if let After::Boot(stamp) = self.boot_after(boot)? {
            return Ok(stamp.max(Stamp(0)));
        }
        let start: Option<i64> = self
            .conn
            .prepare_cached("SELECT stamp FROM __wavesync_boot WHERE nonce = ?1")?
            .query_row([boot.0], |row| row.get(0))
            .optional()?;
        Ok(Stamp(start.unwrap_or(0).max(0)))
    }

    /// The own vector entry when a boot ended.
    fn boot_after(&self, boot: Boot) -> Result<After> {
        let order: Option<i64> = self
            .conn
            .prepare_cached("SELECT ord FROM __wavesync_boot WHERE nonce = ?1")?
            .query_row([boot.0], |row| row.get(0))
            .optional()?;
        let Some(order) = order else { return Ok(After::Unknown) };
        let next: Option<i64> = self
            .conn
            .prepare_cached(
                "SELECT stamp FROM __wavesync_boot WHERE ord > ?1 ORDER BY ord LIMIT 1",
            )?
            .query_row([order], |row| row.get(0))
            .optional()?;
        Ok(next.map_or(After::Running, |stamp| After::Boot(Stamp(stamp))))
    }
}

/// What this file knows of the end of a boot.
enum After {
    /// Another boot began at this stamp.
    Boot(Stamp),
    /// It is the newest one.
    Running,
    /// There was no such boot here.
    Unknown,
}
