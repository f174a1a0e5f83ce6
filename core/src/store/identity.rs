//! Who this replica is: its site id, its network secret, and the file that both are bound to.
//!
//! The database file holds no passphrase and no group key.

use rusqlite::params;
use sha2::{Digest, Sha256};

use crate::ids::{Boot, Millis, Seq, SiteId, Stamp};
use crate::mutants::{self, Mutant};
use crate::store::vector::Caps;
use crate::store::{Store, Tx};
use crate::{Error, Result, limits};

/// What the host knows about the database file; a copy of the file has another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileIdentity(pub String);

/// The identity of a replica.
#[derive(Clone)]
pub struct Identity {
    /// Its site id.
    pub site: SiteId,
    /// The seed of its network key.
    pub secret: [u8; 32],
    /// This start of its engine.
    pub boot: Boot,
}

impl Store {
    /// Starts an engine on this database: reads or makes its identity and records the boot.
    /// `random` must be 64 fresh random bytes. A file that was copied gets a new identity.
    ///
    /// # Errors
    /// If the database has not joined a group or SQLite fails.
    pub fn start(
        &mut self,
        now: Millis,
        file: &FileIdentity,
        random: &[u8; 64],
    ) -> Result<Identity> {
        let boot: [u8; 8] = random[..8].try_into().map_err(|_| damaged())?;
        // Positive and not 0, which stands for "never read".
        let boot = Boot((i64::from_be_bytes(boot) & i64::MAX) | 1);
        self.bind_identity(now, file, random)?;
        if mutants::on(Mutant::ForgetVector) {
            self.conn.execute_batch(
                "DELETE FROM __wavesync_cursor; DELETE FROM __wavesync_vector WHERE site <>
                 (SELECT value FROM __wavesync_meta WHERE key = 'self')",
            )?;
        }
        if mutants::on(Mutant::ForgetClock) {
            super::set_meta(&self.conn, "hlc", 0)?;
        }
        if mutants::on(Mutant::ClockOfOwn) {
            self.conn.execute_batch(
                "UPDATE __wavesync_meta SET value = coalesce((SELECT stamp FROM __wavesync_vector
                 WHERE site = (SELECT value FROM __wavesync_meta WHERE key = 'self')), 0)
                 WHERE key = 'hlc'",
            )?;
        }
        self.record_boot(boot)?;
        self.boot = boot;
        self.write(now, |tx| {
            let secret: Vec<u8> = tx.meta("secret")?.ok_or_else(damaged)?;
            let secret = secret.as_slice().try_into().map_err(|_| damaged())?;
            Ok(Identity { site: tx.own_site()?, secret, boot })
        })
    }

    /// Records this start of an engine (rule P13). Nothing is folded before: what waits in the log
    /// may have been folded differently elsewhere, if this file is an old copy.
    fn record_boot(&mut self, boot: Boot) -> Result<()> {
        self.begin("BEGIN IMMEDIATE")?;
        let done = self.insert_boot(boot).and_then(|()| self.commit());
        if done.is_err() {
            self.roll_back();
        }
        done
    }

    fn insert_boot(&self, boot: Boot) -> Result<()> {
        self.conn.execute(
            "INSERT INTO __wavesync_boot(nonce, seq, stamp) VALUES(?1,
               (SELECT value FROM __wavesync_meta WHERE key = 'folded'),
               coalesce((SELECT stamp FROM __wavesync_vector WHERE site =
                 (SELECT value FROM __wavesync_meta WHERE key = 'self')), ?2))",
            params![boot.0, Stamp::NONE.0],
        )?;
        self.conn.execute(
            "DELETE FROM __wavesync_boot WHERE ord <= (SELECT max(ord) FROM __wavesync_boot) - ?1",
            [crate::limits::BOOTS_MAX as i64],
        )?;
        Ok(())
    }

    /// The running engine's own memory against the file: an old copy may have been restored under
    /// a live connection.
    ///
    /// # Errors
    /// [`Error::Replaced`] if the file does not continue what this engine wrote.
    pub(super) fn check_continuity(&mut self) -> Result<()> {
        if self.boot == Boot(0) || mutants::on(Mutant::ForkUnseen) {
            return Ok(());
        }
        let newest = self.newest_boot();
        if newest.is_err() && !self.initialised()? {
            return Err(Error::Database(
                "the content of the database file was replaced by one that is no member of the \
                 group; call wavesync_leave() and wavesync_join() again"
                    .into(),
            ));
        }
        let newest = newest?;
        let folded = Seq(super::meta(&self.conn, "folded")?.unwrap_or(0));
        // A call on another connection may have taken another site id, too.
        let own: Option<i64> = super::meta(&self.conn, "self")?;
        let renamed = self.own.is_some() && self.own != own;
        if newest != Some(self.boot.0) || folded < self.reached || renamed {
            return Err(Error::Replaced);
        }
        Ok(())
    }

    fn newest_boot(&self) -> Result<Option<i64>> {
        let newest = "SELECT nonce FROM __wavesync_boot ORDER BY ord DESC LIMIT 1";
        super::optional(self.conn.prepare_cached(newest)?.query_row([], |row| row.get(0)))
    }

    /// Goes on under a new identity, because the one it had was used elsewhere, too, or an old copy
    /// of the file was restored. Up to `common` what the former site wrote is the same everywhere;
    /// everything above is exchanged again (rule P14). `random` must be 64 fresh random bytes.
    ///
    /// # Errors
    /// If SQLite fails; nothing is changed then.
    pub fn renew_identity(&mut self, common: Stamp, random: &[u8; 64]) -> Result<()> {
        self.renew(common, random, None)
    }

    /// As [`Store::renew_identity`], because of what a peer says: only so often, because each
    /// change costs every member an entry for ever. A peer that proves more is not listened to
    /// until then; that is no more than finding out later.
    ///
    /// # Errors
    /// [`Error::Protocol`] if it was too often; if SQLite fails. Nothing is changed then.
    pub fn renew_for_peer(&mut self, now: Millis, common: Stamp, random: &[u8; 64]) -> Result<()> {
        let told: Vec<u8> = super::meta(&self.conn, "renewals")?.unwrap_or_default();
        let times = told.chunks_exact(8).filter_map(|bytes| bytes.try_into().ok());
        let recent = |at: &u64| *at <= now.0 && now.since(Millis(*at)) < limits::IDENTITY_WINDOW_MS;
        let mut times: Vec<u64> = times.map(u64::from_be_bytes).filter(recent).collect();
        if times.len() >= self.bounds.identity_changes {
            return Err(Error::protocol(
                "a member shows another branch of this replica's history once more; it had a new \
                 identity several times within the hour and keeps this one for now",
            ));
        }
        times.push(now.0);
        let times = times.iter().flat_map(|at| at.to_be_bytes()).collect();
        self.renew(common, random, Some(times))
    }

    fn renew(&mut self, common: Stamp, random: &[u8; 64], times: Option<Vec<u8>>) -> Result<()> {
        let site = SiteId::from_slice(&random[8..24]).ok_or_else(damaged)?;
        let secret: [u8; 32] = random[32..].try_into().map_err(|_| damaged())?;
        self.begin("BEGIN IMMEDIATE")?;
        let done = self.raw(|tx| {
            let caps = Caps::from([(tx.own_site()?, common)]);
            tx.leave_site(false)?;
            let number = tx.number_site(site)?;
            tx.lower_caps(&caps)?;
            tx.set_meta("self", number.0)?;
            if let Some(times) = times {
                tx.set_meta("renewals", times)?;
            }
            tx.set_meta("secret", &secret[..])
        });
        let done = done.and_then(|()| self.commit());
        if done.is_err() {
            self.roll_back();
            return done;
        }
        self.cache = super::Cache::default();
        self.effects.new_site = true;
        self.effects.notes.push(super::Note {
            code: "new_identity",
            message:
                "an old copy of this file was restored, or another replica used its identity; \
                      it got a new one"
                    .into(),
            hint: "nothing is lost: both versions are merged".into(),
        });
        Ok(())
    }

    /// After [`Error::Replaced`]: what the file holds of its own site is what both versions share.
    /// A file that carries another replica's identity is left to [`Store::start`].
    ///
    /// # Errors
    /// If SQLite fails; nothing is changed then.
    pub fn renew_after_replacement(&mut self, own: SiteId, random: &[u8; 64]) -> Result<()> {
        self.cache = super::Cache::default();
        if self.site_id()? != Some(own) {
            self.effects.new_site = true;
            return Ok(());
        }
        let common = self.raw(|tx| tx.seen(own))?;
        self.renew_identity(common.max(Stamp(0)), random)
    }

    /// Takes in upper bounds that a peer knows (rule P14). Returns whether any fell, and the own
    /// bound if the present site is bounded.
    ///
    /// # Errors
    /// If SQLite fails; nothing is changed then.
    pub fn take_caps(&mut self, now: Millis, caps: &Caps) -> Result<(bool, Option<Stamp>)> {
        if caps.is_empty() {
            return Ok((false, None));
        }
        let own = self.site_id()?;
        if let Some(cap) = own.and_then(|own| caps.get(&own)) {
            return Ok((true, Some(*cap)));
        }
        let known = self.folded(now, |tx| tx.caps())?;
        if caps.iter().all(|(site, cap)| known.get(site).is_some_and(|known| known <= cap)) {
            return Ok((false, None));
        }
        Ok((self.write(now, |tx| tx.lower_caps(caps))?, None))
    }

    /// Gives this file an identity, or a new one if the one it carries belongs to another file.
    /// What a copy holds unfolded is folded as the original folds it, so that a row which both hold
    /// is one row; because it can hold other writes too, the former site is capped before them.
    pub(super) fn bind_identity(
        &mut self,
        now: Millis,
        file: &FileIdentity,
        random: &[u8; 64],
    ) -> Result<()> {
        let bound: Option<String> = super::meta(&self.conn, "file")?;
        let has_self = super::meta::<i64>(&self.conn, "self")?.is_some();
        let same = bound.as_ref() == Some(&file.0) || mutants::on(Mutant::CloneKeepsSite);
        if has_self && same {
            return Ok(());
        }
        let site = SiteId::from_slice(&random[8..24]).ok_or_else(damaged)?;
        let secret: [u8; 32] = random[32..].try_into().map_err(|_| damaged())?;
        let mut caps = Caps::new();
        if let Some(own) = self.site_id()?.filter(|_| has_self) {
            let common = self.raw(|tx| tx.seen(own))?;
            self.write(now, |_| Ok(()))?;
            self.pushes.clear();
            if self.raw(|tx| tx.seen(own))? > common {
                caps.insert(own, common.max(Stamp(0)));
            }
        }
        self.begin("BEGIN IMMEDIATE")?;
        let done = if has_self { self.raw(|tx| tx.leave_site(true)) } else { Ok(()) };
        let done = done.and_then(|()| self.replace_identity(file, site, &secret));
        let done = done.and_then(|()| self.raw(|tx| tx.lower_caps(&caps)).map(|_| ()));
        let done = done.and_then(|()| self.commit());
        if done.is_err() {
            self.roll_back();
            return done;
        }
        self.cache = super::Cache::default();
        // The fold above was under the former identity.
        self.own = None;
        if has_self {
            self.effects.notes.push(super::Note {
                code: "new_identity",
                message: "this file is a copy of another replica's file; it got an identity of \
                          its own"
                    .into(),
                hint: String::new(),
            });
        }
        Ok(())
    }

    /// Opens the transaction of a first join: internal tables and an identity. [`Store::write`]
    /// ends it.
    pub(super) fn begin_as_new(&mut self, file: &FileIdentity, random: &[u8; 64]) -> Result<()> {
        let site = SiteId::from_slice(&random[8..24]).ok_or_else(damaged)?;
        let secret: [u8; 32] = random[32..].try_into().map_err(|_| damaged())?;
        self.begin("BEGIN IMMEDIATE")?;
        let done = self.create_tables();
        let done = done.and_then(|()| self.replace_identity(file, site, &secret));
        self.begun = done.is_ok();
        if done.is_err() {
            self.roll_back();
        }
        done
    }

    fn replace_identity(&self, file: &FileIdentity, site: SiteId, secret: &[u8; 32]) -> Result<()> {
        self.conn.execute("INSERT INTO __wavesync_site(id) VALUES(?1)", [&site.0[..]])?;
        let number = self.conn.last_insert_rowid();
        super::set_meta(&self.conn, "self", number)?;
        super::set_meta(&self.conn, "secret", &secret[..])?;
        super::set_meta(&self.conn, "file", &file.0)
    }

    /// This replica's site id, if it has joined.
    pub fn site_id(&self) -> Result<Option<SiteId>> {
        if !self.initialised()? {
            return Ok(None);
        }
        let id: Option<Vec<u8>> = super::optional(self.conn.query_row(
            "SELECT id FROM __wavesync_site WHERE num =
             (SELECT value FROM __wavesync_meta WHERE key = 'self')",
            [],
            |row| row.get(0),
        ))?;
        Ok(id.as_deref().and_then(SiteId::from_slice))
    }
}

fn damaged() -> Error {
    Error::Database("the identity of this database is damaged".into())
}

impl Tx<'_> {
    /// Something that the vector covers is not here any more. From now on this replica claims
    /// nothing, so that everything is sent to it again, and writes under another site id, because
    /// what the old one has written must be fetched as well.
    pub(super) fn start_over(&mut self) -> Result<()> {
        let Some(secret) = self.meta::<Vec<u8>>("secret")? else { return Ok(()) };
        let mut hash = Sha256::new();
        hash.update(b"wavesync site");
        hash.update(&secret);
        hash.update(self.own_site()?.0);
        hash.update(self.log_end()?.0.to_be_bytes());
        hash.update(self.now.0.to_be_bytes());
        let site = SiteId::from_slice(&hash.finalize()[..16]).ok_or_else(damaged)?;
        self.leave_site(false)?;
        let number = self.site_num(site)?;
        self.set_meta("self", number.0)?;
        self.keep_claims()?;
        self.conn.execute("DELETE FROM __wavesync_vector", [])?;
        self.cache.vector = None;
        self.reset_cursors()?;
        self.open_everything()?;
        self.end_resync()?;
        self.effects.new_site = true;
        Ok(())
    }

    /// Remembers a member of the group.
    pub fn remember_member(&mut self, site: SiteId, peer: &[u8], name: &str) -> Result<()> {
        let number = self.site_num(site)?;
        self.conn
            .prepare_cached(
                "INSERT INTO __wavesync_member(site, peer, name, seen) VALUES(?1, ?2, ?3, ?4)
                 ON CONFLICT(site) DO UPDATE SET
                 peer = excluded.peer, name = excluded.name, seen = excluded.seen",
            )?
            .execute(params![number.0, peer, name, self.now.0 as i64])?;
        Ok(())
    }
}
