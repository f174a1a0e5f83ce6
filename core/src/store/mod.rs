//! The database behind the protocol: the only place where core touches SQLite.
//!
//! Every change goes through [`Store::write`], which opens one write transaction, notices schema
//! changes and folds the log first (rules P4 and P5); reads that are served, announced or compared
//! go through [`Store::folded`]. Memory is changed only after the commit succeeded.

pub mod addresses;
pub mod admit;
pub mod adopt;
pub mod alter;
pub mod apply;
mod arrive;
mod await_parents;
pub mod backfill;
pub mod bulk;
pub mod calls;
pub mod capture;
pub mod changes;
pub mod checkup;
pub mod claim;
pub mod clock;
pub mod collect;
pub mod contact;
pub mod contend;
pub mod coupling;
pub mod digest;
pub mod export;
pub mod fold;
mod fold_bulk;
mod follow;
pub mod foreign;
mod functions;
pub mod group;
mod held;
pub mod identity;
pub mod inbox;
mod internal;
pub mod key;
mod known;
pub mod listing;
mod lost;
pub mod mask;
mod moves;
pub mod names;
mod over;
mod past;
pub mod probe;
mod receive;
mod regain;
mod renumber;
pub mod repair;
pub mod report;
pub mod restore;
pub mod resync;
mod room;
pub mod rows;
mod savepoint;
pub mod scan;
pub mod schema;
pub mod serve;
pub mod settle;
pub mod shape;
pub mod span;
pub mod sql;
pub mod state;
pub mod statements;
pub mod tables;
pub mod triggers;
pub mod trim;
pub mod turn;
pub mod unique;
pub mod vector;
mod woken;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use rusqlite::types::{FromSql, ToSql};
use rusqlite::{Connection, OptionalExtension, params};

use crate::ids::{Millis, Seq, SiteId, TableNum};
use crate::limits::Bounds;
use crate::mutants::{self, Mutant};
use crate::wire::rows::Batch;
use crate::{Error, Result};
use savepoint::{end_savepoint, rolled_back};
use tables::Table;

/// Version of the storage format; a newer one is refused.
pub const FORMAT: i64 = 1;

/// The entry of a row that this replica accepted or took in.
const APPEND: &str = "INSERT INTO __wavesync_log(tbl, pk, cols, at) VALUES(?1, ?2, 0, NULL)";

/// Local number of a site; numbers never travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SiteNum(pub i64);

/// A local commit, ready to be sent (rule P10).
#[derive(Clone, Debug)]
pub struct Push {
    /// Who wrote it: this replica.
    pub site: SiteId,
    /// The boot under which it was folded.
    pub boot: crate::ids::Boot,
    /// The receiver must have everything of `site` up to here.
    pub prev: crate::ids::Stamp,
    /// And has everything up to here afterwards.
    pub upto: crate::ids::Stamp,
    /// The rows, or nothing if they are too many: then only the new end is announced.
    pub rows: Option<Batch>,
}

/// What a committed transaction did, beyond its own result.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// Local log rows that were folded.
    pub folded: u64,
    /// The tracked tables or their columns changed.
    pub schema_changed: bool,
    /// This replica goes on under another site id: its engine must start again.
    pub new_site: bool,
    /// Rows are left to be tested for openness: [`Store::test_openness`] goes on.
    pub openness_left: bool,
    /// An upper bound of a vector entry fell with what a peer sent (rule P14).
    pub caps_fell: bool,
    /// Things worth telling the user.
    pub notes: Vec<Note>,
}

impl Effects {
    fn absorb(&mut self, later: Self) {
        self.folded += later.folded;
        self.schema_changed |= later.schema_changed;
        self.new_site |= later.new_site;
        self.openness_left |= later.openness_left;
        self.caps_fell |= later.caps_fell;
        self.notes.extend(later.notes);
    }
}

/// Something a user should learn from `wavesync_events`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// A stable word for programs.
    pub code: &'static str,
    /// What happened.
    pub message: String,
    /// What to do about it; may be empty.
    pub hint: String,
}

#[derive(Default)]
struct Cache {
    schema_version: Option<i64>,
    tables: BTreeMap<TableNum, Rc<Table>>,
    names: BTreeMap<String, TableNum>,
    sites: BTreeMap<SiteNum, SiteId>,
    numbers: BTreeMap<SiteId, SiteNum>,
    parked: Option<i64>,
    vector: Option<vector::Vector>,
    caps: Option<vector::Caps>,
    collected: Option<collect::Collected>,
    floors: Option<BTreeMap<TableNum, i64>>,
    left_out: Option<BTreeSet<SiteId>>,
    /// The state of the file in which these, and the sites, were read.
    read_at: Option<i64>,
    plan: Rc<foreign::Plan>,
    /// Rows that were looked at to decide which ones stand; see [`Store::examined`].
    examined: std::cell::Cell<u64>,
    /// The TEMP objects of [`probe`] exist.
    probing: bool,
    /// `recursive_triggers` is on.
    recursive: bool,
    data_version: Option<i64>,
    folded: Option<Seq>,
    met: names::Met,
    over: BTreeMap<TableNum, over::Over>,
    /// How far a test for uncovered rows has come below the horizon.
    open_at: Option<(TableNum, crate::value::Value)>,
    /// What is known of the rows from `open_from` on.
    opened: Option<state::Opened>,
    watch: schema::Watch,
    /// Tables in which rows may have been removed through an index that no trigger knew yet.
    unseen_rivals: BTreeSet<TableNum>,
    /// The newest entry of the inbox, and the state of the file, when it was last looked through.
    posted: Option<(Option<i64>, Option<i64>)>,
}

/// A database with a replica in it.
pub struct Store {
    conn: Connection,
    cache: Cache,
    pushes: VecDeque<Push>,
    effects: Effects,
    boot: crate::ids::Boot,
    /// The folded end as this store last left or saw it.
    reached: Seq,
    /// The number of the own site as this store last left or saw it.
    own: Option<i64>,
    bounds: Bounds,
    /// The next transaction is open already.
    begun: bool,
    /// See [`Store::keep_time`].
    clock: Option<fn() -> Millis>,
    commit_wait: Option<turn::CommitWait>,
}

/// An open transaction; see [`Store::write`] and [`Store::folded`].
pub struct Tx<'a> {
    conn: &'a Connection,
    cache: &'a mut Cache,
    effects: &'a mut Effects,
    pushes: Vec<Push>,
    /// Rows that could not simply be written: [`settle`] decides on them.
    hot: BTreeSet<contend::RowId>,
    /// Rows that moved to another key in this transaction.
    moved: Vec<moves::Moved>,
    /// Stamps above this are in the future, once that was asked.
    future: Option<crate::ids::Stamp>,
    /// Whether any row is held, once that was asked.
    holds: Option<bool>,
    /// Rows that cannot be sent are named.
    names_all: bool,
    /// Rows that lost to a longer causal length in what is being applied.
    outlived: u64,
    now: Millis,
    boot: crate::ids::Boot,
    bounds: Bounds,
}

impl Store {
    /// Takes a connection that nobody else uses. Writes nothing.
    ///
    /// # Errors
    /// If the connection's settings cannot be changed, or the file was written by a newer wavesync.
    pub fn open(conn: Connection) -> Result<Self> {
        conn.set_prepared_statement_cache_capacity(512);
        conn.execute_batch(
            "PRAGMA synchronous=FULL; PRAGMA foreign_keys=OFF;
             PRAGMA cache_size=-16384;",
        )?;
        // Capture triggers must not see what this connection applies. They are switched on only
        // around the statements of a table that has triggers of the application's own.
        conn.set_db_config(rusqlite::config::DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
        if mutants::on(Mutant::ChecksIgnored) {
            conn.pragma_update(None, "ignore_check_constraints", true)?;
        }
        Self::reading(conn)
    }

    /// A store that only reads, through a connection of somebody else: no setting of it is changed,
    /// and what is read is what its transaction sees.
    ///
    /// # Errors
    /// If the database cannot be read, or a newer wavesync wrote it.
    pub fn reading(conn: Connection) -> Result<Self> {
        let store = Self {
            conn,
            cache: Cache::default(),
            pushes: VecDeque::new(),
            effects: Effects::default(),
            boot: crate::ids::Boot(0),
            reached: Seq(0),
            own: None,
            clock: None,
            commit_wait: None,
            bounds: Bounds::default(),
            begun: false,
        };
        if store.initialised()? {
            let format: i64 = meta(&store.conn, "format")?.unwrap_or(0);
            if format > FORMAT {
                return Err(Error::Database(format!(
                    "this database was written by a newer wavesync (storage format {format}, \
                     this one knows {FORMAT}); update the extension"
                )));
            }
        }
        Ok(store)
    }

    /// Makes transactions and messages smaller than the constants say; for tests, and where a long
    /// transaction would keep others from their turn.
    pub fn set_bounds(&mut self, bounds: Bounds) {
        self.bounds = bounds;
    }

    /// See [`Store::set_bounds`].
    #[must_use]
    pub fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// Whether wavesync's tables exist in this database.
    pub fn initialised(&self) -> Result<bool> {
        Ok(self
            .conn
            .prepare_cached("SELECT 1 FROM main.sqlite_schema WHERE name = '__wavesync_meta'")?
            .exists([])?)
    }

    /// Creates wavesync's tables if they are missing. Idempotent.
    pub fn initialise(&mut self) -> Result<()> {
        if self.initialised()? {
            return Ok(());
        }
        self.begin("BEGIN IMMEDIATE")?;
        let done = self.create_tables().and_then(|()| self.commit());
        if done.is_err() {
            self.roll_back();
        }
        done
    }

    fn create_tables(&self) -> Result<()> {
        self.conn.execute_batch(internal::SCHEMA)?;
        internal::create_added(&self.conn)?;
        Ok(self.conn.execute_batch(inbox::SCHEMA)?)
    }

    /// Looks at this clock, too, as soon as it may write. Until then others may have written later
    /// than the time that a caller gives, and rule P3 stamps nothing later than that.
    pub fn keep_time(&mut self, clock: fn() -> Millis) {
        self.clock = Some(clock);
    }

    /// Runs `body` in one write transaction in which the log is folded first.
    ///
    /// # Errors
    /// Whatever `body` returns or SQLite refuses; then nothing was changed.
    pub fn write<T>(
        &mut self,
        now: Millis,
        body: impl FnOnce(&mut Tx<'_>) -> Result<T>,
    ) -> Result<T> {
        self.transact(now, true, body)
    }

    /// As [`Store::write`], for changes of others (rule P4: it folds first, too).
    pub fn write_applying<T>(
        &mut self,
        now: Millis,
        body: impl FnOnce(&mut Tx<'_>) -> Result<T>,
    ) -> Result<T> {
        self.transact(now, !mutants::on(Mutant::NoFoldFirst), body)
    }

    fn transact<T>(
        &mut self,
        now: Millis,
        fold: bool,
        body: impl FnOnce(&mut Tx<'_>) -> Result<T>,
    ) -> Result<T> {
        // A first join has begun already, so that it needs one commit.
        if !std::mem::take(&mut self.begun) {
            self.begin("BEGIN IMMEDIATE")?;
        }
        if let Err(error) = self.check_continuity() {
            self.roll_back();
            return Err(error);
        }
        self.forget_what_was_read();
        let now = self.clock.map_or(now, |clock| clock().max(now));
        let mut effects = Effects::default();
        let mut tx = self.tx(now, &mut effects);
        let done = tx.prepare_to_write(fold).and_then(|()| body(&mut tx));
        let pushes = std::mem::take(&mut tx.pushes);
        // Nothing may fail after the commit: the caller would take what was done for undone.
        let done = done.and_then(|value| {
            let reached = Seq(meta(&self.conn, "folded")?.unwrap_or(0));
            let own = meta(&self.conn, "self")?;
            self.commit()?;
            (self.reached, self.own) = (reached, own);
            Ok(value)
        });
        if done.is_ok() {
            self.effects.absorb(effects);
            self.pushes.extend(pushes);
        } else {
            self.roll_back();
        }
        done
    }

    /// Begins a transaction of the engine.
    fn begin(&mut self, sql: &str) -> Result<()> {
        if self.is_stuck() {
            return Err(rolled_back());
        }
        if self.cache.recursive {
            self.conn.execute_batch("PRAGMA recursive_triggers=OFF")?;
            self.cache.recursive = false;
        }
        transaction(&self.conn, sql)
    }

    /// Whether a transaction is still open because rolling it back found no memory. It keeps others from
    /// the file, and nothing may be read or written in it: only closing the connection ends it.
    #[must_use]
    pub fn is_stuck(&self) -> bool {
        !self.begun && !self.conn.is_autocommit()
    }

    /// Runs `body` in a read transaction in which no log row is unfolded (rule P5), folding first
    /// if need be.
    pub fn folded<T>(
        &mut self,
        now: Millis,
        body: impl FnOnce(&mut Tx<'_>) -> Result<T>,
    ) -> Result<T> {
        if !self.is_folded()? {
            return self.write(now, body);
        }
        self.begin("BEGIN")?;
        // A commit may have come in between; then the write path folds it.
        let current = self.check_continuity().and_then(|()| self.is_folded());
        if !matches!(current, Ok(true)) {
            self.roll_back();
            current?;
            return self.write(now, body);
        }
        self.forget_what_was_read();
        let mut effects = Effects::default();
        let mut tx = self.tx(now, &mut effects);
        let done = body(&mut tx).and_then(|value| {
            transaction(&self.conn, "COMMIT")?;
            Ok(value)
        });
        self.effects.absorb(effects);
        if done.is_err() {
            self.roll_back();
        }
        done
    }

    fn tx<'a>(&'a mut self, now: Millis, effects: &'a mut Effects) -> Tx<'a> {
        Tx {
            conn: &self.conn,
            cache: &mut self.cache,
            effects,
            pushes: Vec::new(),
            hot: BTreeSet::new(),
            moved: Vec::new(),
            future: None,
            holds: None,
            names_all: false,
            outlived: 0,
            now,
            boot: self.boot,
            bounds: self.bounds,
        }
    }

    /// Runs `body` in the transaction that is open, or in none, and folds nothing.
    fn raw<T>(&mut self, body: impl FnOnce(&mut Tx<'_>) -> Result<T>) -> Result<T> {
        let mut effects = Effects::default();
        let mut tx = self.tx(Millis(0), &mut effects);
        body(&mut tx)
    }

    /// Runs `body` in a read transaction and writes nothing: what is not folded yet is not seen.
    ///
    /// # Errors
    /// Whatever `body` returns or SQLite refuses.
    pub fn read<T>(
        &mut self,
        now: Millis,
        body: impl FnOnce(&mut Tx<'_>) -> Result<T>,
    ) -> Result<T> {
        self.begin("BEGIN")?;
        self.forget_what_was_read();
        let mut effects = Effects::default();
        let mut tx = self.tx(now, &mut effects);
        let done = tx.look_at_schema().and_then(|()| body(&mut tx));
        // Nothing was written, so both ends of the transaction come to the same.
        self.roll_back();
        done
    }

    /// As `read`, in the transaction that is open.
    fn read_on<T>(
        &mut self,
        now: Millis,
        body: impl FnOnce(&mut Tx<'_>) -> Result<T>,
    ) -> Result<T> {
        let mut effects = Effects::default();
        let mut tx = self.tx(now, &mut effects);
        tx.look_at_schema()?;
        body(&mut tx)
    }

    /// Whether the schema and the log are as they were when the last transaction folded them.
    fn is_folded(&mut self) -> Result<bool> {
        if self.cache.schema_version != Some(schema_version(&self.conn)?) {
            return Ok(false);
        }
        let end: i64 = self
            .conn
            .prepare_cached("SELECT coalesce(max(seq), 0) FROM __wavesync_log")?
            .query_row([], |row| row.get(0))?;
        let folded: i64 = meta(&self.conn, "folded")?.unwrap_or(0);
        Ok(end == folded || mutants::on(Mutant::NoFoldBeforeServe))
    }

    fn roll_back(&mut self) {
        if !self.conn.is_autocommit() {
            // Fails if SQLite already rolled back by itself, or if memory is missing: see `is_stuck`.
            let _ = transaction(&self.conn, "ROLLBACK");
        }
        let (watch, recursive) = (self.cache.watch, self.cache.recursive);
        self.cache = Cache { watch, recursive, ..Cache::default() };
    }

    /// Another connection, such as that of a call in the same process, may have written.
    fn forget_what_was_read(&mut self) {
        let version: Option<i64> = self
            .conn
            .prepare_cached("PRAGMA data_version")
            .and_then(|mut statement| statement.query_row([], |row| row.get(0)))
            .ok();
        if version.is_none() || self.cache.read_at != version {
            (self.cache.parked, self.cache.vector) = (None, None);
            self.cache.opened = None;
            (self.cache.caps, self.cache.left_out) = (None, None);
            (self.cache.collected, self.cache.floors) = (None, None);
            // A copy of the file may have come back that nothing but its sites tell apart.
            self.cache.sites.clear();
            self.cache.numbers.clear();
            self.cache.read_at = version;
        }
    }

    /// Whether any connection committed to the file since the last call. Costs microseconds.
    pub fn committed_elsewhere(&mut self) -> Result<bool> {
        let version: i64 =
            self.conn.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))?;
        let changed = self.cache.data_version.is_some_and(|known| known != version);
        self.cache.data_version = Some(version);
        Ok(changed)
    }

    /// Log rows that wait to be folded.
    pub fn waiting_rows(&mut self) -> Result<u64> {
        if !self.initialised()? {
            return Ok(0);
        }
        let folded: i64 = meta(&self.conn, "folded")?.unwrap_or(0);
        let end: i64 = self
            .conn
            .prepare_cached("SELECT coalesce(max(seq), 0) FROM __wavesync_log")?
            .query_row([], |row| row.get(0))?;
        Ok(u64::try_from(end - folded).unwrap_or(0))
    }

    /// How often a row was looked at since the last call, to find out whether it may stand.
    pub fn examined(&mut self) -> u64 {
        self.cache.examined.take()
    }

    /// Takes the pushes that committed folds have built.
    pub fn take_pushes(&mut self) -> Vec<Push> {
        self.pushes.drain(..).collect()
    }

    /// Takes what committed transactions did since the last call.
    pub fn take_effects(&mut self) -> Effects {
        std::mem::take(&mut self.effects)
    }

    /// Gives the connection back.
    #[must_use]
    pub fn into_connection(self) -> Connection {
        self.conn
    }

    /// The connection, for reading only.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        &self.conn
    }
}

impl Tx<'_> {
    fn prepare_to_write(&mut self, fold: bool) -> Result<()> {
        let changed = self.refresh_schema()?;
        if self.enforces_keys()? != self.cache.plan.enforced {
            self.plan_constraints()?;
        }
        if fold {
            self.fold()?;
        }
        if changed {
            self.finish_schema_change()?;
        }
        self.take_posted()
    }

    /// The time given with this transaction.
    #[must_use]
    pub fn now(&self) -> Millis {
        self.now
    }

    /// Reads a setting or a counter.
    pub fn meta<T: FromSql>(&self, key: &str) -> Result<Option<T>> {
        meta(self.conn, key)
    }

    /// Stores a setting or a counter.
    pub fn set_meta(&self, key: &str, value: impl ToSql) -> Result<()> {
        set_meta(self.conn, key, value)
    }

    /// Appends a log entry for a row that this replica accepted or took in, and makes it the
    /// folded end.
    fn append_log(&mut self, table: TableNum, key: &crate::value::Value) -> Result<Seq> {
        self.conn.prepare_cached(APPEND)?.execute(params![table.0, key])?;
        let seq = Seq(self.conn.last_insert_rowid());
        self.cache.folded = Some(seq);
        Ok(seq)
    }

    /// Stores the folded end after entries were appended. Called once per transaction.
    fn store_folded_end(&mut self) -> Result<()> {
        if let Some(seq) = self.cache.folded.take() {
            self.set_meta("folded", seq.0)?;
        }
        Ok(())
    }

    fn note(&mut self, code: &'static str, message: String, hint: &str) {
        self.effects.notes.push(Note { code, message, hint: hint.into() });
    }
}

/// `None` instead of an error if a query gave no row.
pub(crate) fn optional<T>(found: rusqlite::Result<T>) -> Result<Option<T>> {
    Ok(found.optional()?)
}

/// Begins or ends a transaction. Prepared once: this is most of what an empty one costs.
fn transaction(conn: &Connection, sql: &str) -> Result<()> {
    conn.prepare_cached(sql)?.execute([])?;
    Ok(())
}

fn schema_version(conn: &Connection) -> Result<i64> {
    Ok(conn.prepare_cached("PRAGMA main.schema_version")?.query_row([], |row| row.get(0))?)
}

/// Reads a setting or a counter.
pub(crate) fn meta<T: FromSql>(conn: &Connection, key: &str) -> Result<Option<T>> {
    Ok(conn
        .prepare_cached("SELECT value FROM __wavesync_meta WHERE key = ?1")?
        .query_row([key], |row| row.get(0))
        .optional()?)
}

pub(crate) fn set_meta(conn: &Connection, key: &str, value: impl ToSql) -> Result<()> {
    conn.prepare_cached(
        "INSERT INTO __wavesync_meta(key, value) VALUES(?1, ?2)
         ON CONFLICT(key) DO UPDATE SET value = excluded.value",
    )?
    .execute(params![key, value])?;
    Ok(())
}
