//! Joining and leaving: which group this database belongs to, which tables are tracked, settings.

use rusqlite::params;

use crate::ids::{Millis, Seq};
use crate::limits;
use crate::store::contact::{DECISION, Existing};
use crate::store::identity::FileIdentity;
use crate::store::sql::ident;
use crate::store::{Store, Tx, shape};
use crate::{Error, Result};

/// What a join asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Join {
    /// The group's name.
    pub topic: String,
    /// These tables only; `None` means every table that can be synced, also later ones.
    pub tables: Option<Vec<String>>,
    /// Create the group's tables here; `None` means only if this database has none of its own.
    pub adopt_schema: Option<bool>,
    /// The joining connection enforces foreign keys.
    pub foreign_keys: bool,
    /// What rows that exist already are to those of the group. Later it is
    /// [`Store::decide_existing`] that takes a decision.
    pub existing: Option<Existing>,
}

impl Store {
    /// Makes this database a member: internal tables, settings, triggers. Idempotent.
    /// Existing rows are taken in afterwards, by [`Store::backfill_block`]. `random` must be 64
    /// fresh random bytes.
    ///
    /// # Errors
    /// [`Error::Argument`] for a topic that cannot be used or a table that cannot be tracked,
    /// [`Error::Database`] if the database belongs to another group; nothing is changed then.
    pub fn join(
        &mut self,
        now: Millis,
        join: &Join,
        file: &FileIdentity,
        random: &[u8; 64],
    ) -> Result<()> {
        check_topic(&join.topic)?;
        if self.initialised()? {
            let topic: Option<String> = super::meta(&self.conn, "topic")?;
            if topic.as_ref().is_some_and(|topic| *topic != join.topic) {
                return Err(Error::Argument(format!(
                    "this database belongs to the group '{}'; to move it, call \
                     wavesync_leave('forget') first and then join '{}'",
                    topic.unwrap_or_default(),
                    join.topic
                )));
            }
        }
        let survey = shape::survey(&self.conn)?;
        for name in join.tables.iter().flatten() {
            match shape::find(&self.conn, name)? {
                Some(Ok(_)) => {}
                Some(Err(refusal)) => {
                    return Err(Error::Argument(format!(
                        "table {} cannot be synced: {}",
                        ident(&refusal.name)?,
                        refusal.reason
                    )));
                }
                None => {
                    return Err(Error::Argument(format!("there is no table {}", ident(name)?)));
                }
            }
        }
        let adopt = join.adopt_schema.unwrap_or(survey.is_empty());
        let first = if self.initialised()? {
            self.bind_identity(now, file, random)?;
            super::meta::<String>(&self.conn, "topic")?.is_none()
        } else {
            self.begin_as_new(file, random)?;
            true
        };
        self.write(now, |tx| {
            tx.set_meta("topic", &join.topic)?;
            if first || join.adopt_schema.is_some() {
                tx.set_meta("adopt", i64::from(adopt))?;
            }
            let enforced = tx.enforces_keys()?;
            tx.set_meta("foreign_keys", i64::from(join.foreign_keys))?;
            if !first && enforced != join.foreign_keys {
                tx.plan_constraints()?;
                tx.review(true)?;
            }
            if first {
                tx.prepare_existing(join)?;
            }
            match &join.tables {
                None if first => {
                    tx.set_meta("track_all", 1)?;
                    tx.cache.schema_version = None;
                    tx.refresh_schema().map(|_| ())
                }
                None => Ok(()),
                Some(names) => names.iter().try_for_each(|name| {
                    let known = tx.table_named(name).is_some_and(|table| table.shape.is_some());
                    if known { Ok(()) } else { tx.track_table(name) }
                }),
            }
        })
    }

    /// The group that this database belongs to.
    pub fn topic(&self) -> Result<Option<String>> {
        if !self.initialised()? {
            return Ok(None);
        }
        super::meta(&self.conn, "topic")
    }

    /// Removes every internal table and trigger: a plain database is left.
    ///
    /// # Errors
    /// If SQLite fails; nothing is changed then.
    pub fn forget(&mut self) -> Result<()> {
        self.begin("BEGIN IMMEDIATE")?;
        let done = self.drop_everything().and_then(|()| Ok(self.conn.execute_batch("COMMIT")?));
        self.roll_back();
        done
    }

    fn drop_everything(&self) -> Result<()> {
        let ours = "name LIKE '\\_\\_wavesync\\_%' ESCAPE '\\'";
        for kind in ["trigger", "table"] {
            let sql = format!("SELECT name FROM main.sqlite_schema WHERE type = ?1 AND {ours}");
            let mut statement = self.conn.prepare(&sql)?;
            let names = statement
                .query_map([kind], |row| row.get(0))?
                .collect::<rusqlite::Result<Vec<String>>>()?;
            drop(statement);
            for name in names {
                self.conn.execute_batch(&format!("DROP {kind} main.{}", ident(&name)?))?;
            }
        }
        Ok(())
    }

    /// Reads a user's setting.
    pub fn setting(&self, key: &str) -> Result<Option<String>> {
        super::meta(&self.conn, &format!("config:{key}"))
    }

    /// Stores a user's setting.
    pub fn set_setting(&mut self, now: Millis, key: &str, value: &str) -> Result<()> {
        self.write(now, |tx| tx.set_meta(&format!("config:{key}"), value))
    }

    /// The position of the newest change that this replica made or accepted.
    pub fn db_version(&self) -> Result<Seq> {
        if !self.initialised()? {
            return Ok(Seq(0));
        }
        let end = self.conn.query_row(
            "SELECT coalesce(max(seq), 0) FROM __wavesync_log",
            params![],
            |row| row.get(0),
        )?;
        Ok(Seq(end))
    }
}

/// Checks a topic without touching a database.
pub fn check_topic(topic: &str) -> Result<()> {
    let nameless = crate::mutants::on(crate::mutants::Mutant::EmptyTopic);
    if topic.is_empty() && !nameless {
        return Err(Error::Argument(
            "the topic is empty; it is the group's name, for example 'family-notes'".into(),
        ));
    }
    if topic.len() > limits::TOPIC_MAX_BYTES || topic.contains('\0') {
        return Err(Error::Argument(format!(
            "the topic must be at most {} bytes without a NUL character",
            limits::TOPIC_MAX_BYTES
        )));
    }
    Ok(())
}

impl Tx<'_> {
    /// At the first join: nothing is tracked yet.
    fn prepare_existing(&mut self, join: &Join) -> Result<()> {
        let Some(existing) = join.existing else { return Ok(()) };
        if existing == Existing::Same {
            return self.set_meta(DECISION, "same");
        }
        let chosen = |name: &str| {
            let mut names = join.tables.iter().flatten();
            join.tables.is_none() || names.any(|chosen| chosen.eq_ignore_ascii_case(name))
        };
        let shapes: Vec<_> = shape::survey(self.conn)?
            .into_iter()
            .flatten()
            .filter(|shape| chosen(&shape.name))
            .collect();
        self.renumber(&shapes)?;
        self.set_meta(DECISION, "new_ids")
    }

    /// Whether some table still waits for its back-fill.
    #[must_use]
    pub fn backfill_pending(&self) -> bool {
        self.tables().iter().any(|table| table.import.is_some())
    }
}
