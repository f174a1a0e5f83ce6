//! Who this replica is: its site id, its network secret, and the file that both are bound to.
//!
//! The database file holds no passphrase and no group key.

use rusqlite::params;
use sha2::{Digest, Sha256};

use crate::ids::{Boot, Millis, SiteId};
use crate::mutants::{self, Mutant};
use crate::store::{Store, Tx};
use crate::{Error, Result};

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
        self.bind_identity(file, random)?;
        if mutants::on(Mutant::ForgetClock) {
            super::set_meta(&self.conn, "hlc", 0)?;
        }
        self.boot = boot;
        self.write(now, |tx| {
            tx.append_boot(boot)?;
            let secret: Vec<u8> = tx.meta("secret")?.ok_or_else(damaged)?;
            let secret = secret.as_slice().try_into().map_err(|_| damaged())?;
            Ok(Identity { site: tx.own_site()?, secret, boot })
        })
    }

    /// Gives this file an identity, or a new one if the one it carries belongs to another file.
    /// Happens before anything is folded, so that rows which a copy holds unfolded are stamped by
    /// the new site.
    pub(super) fn bind_identity(&mut self, file: &FileIdentity, random: &[u8; 64]) -> Result<()> {
        let bound: Option<String> = super::meta(&self.conn, "file")?;
        let has_self = super::meta::<i64>(&self.conn, "self")?.is_some();
        if has_self && bound.as_ref() == Some(&file.0) {
            return Ok(());
        }
        let site = SiteId::from_slice(&random[8..24]).ok_or_else(damaged)?;
        let secret: [u8; 32] = random[32..].try_into().map_err(|_| damaged())?;
        self.conn.execute_batch("BEGIN IMMEDIATE")?;
        let done = self.replace_identity(file, site, &secret);
        let done = done.and_then(|()| Ok(self.conn.execute_batch("COMMIT")?));
        if done.is_err() {
            self.roll_back();
            return done;
        }
        self.cache = super::Cache::default();
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

    fn replace_identity(&self, file: &FileIdentity, site: SiteId, secret: &[u8; 32]) -> Result<()> {
        self.conn.execute("INSERT INTO __wavesync_site(id) VALUES(?1)", [&site.0[..]])?;
        let number = self.conn.last_insert_rowid();
        super::set_meta(&self.conn, "self", number)?;
        super::set_meta(&self.conn, "secret", &secret[..])?;
        super::set_meta(&self.conn, "file", &file.0)?;
        // Cursors of others name boots of the original; ours start a branch of their own.
        self.conn.execute("DELETE FROM __wavesync_boot", params![])?;
        Ok(())
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
        let number = self.site_num(site)?;
        self.set_meta("self", number.0)?;
        self.conn.execute("DELETE FROM __wavesync_vector", [])?;
        self.conn.execute("UPDATE __wavesync_cursor SET seq = 0", [])?;
        self.set_meta("open_from", 1)?;
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
