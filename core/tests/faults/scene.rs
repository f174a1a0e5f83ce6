//! Two replicas on files, an application beside each, and a sync of some hundred rows in both
//! directions: a first catch-up, pushes, a table that comes later, another catch-up.

use std::path::PathBuf;

use rusqlite::{Connection, OpenFlags};
use wavesync_core::ids::{Millis, Stamp};
use wavesync_core::limits::Bounds;
use wavesync_core::store::Store;
use wavesync_core::store::group::Join;
use wavesync_core::store::identity::{FileIdentity, Identity};
use wavesync_core::value::Value;

use crate::image::{Image, Row};
use crate::source::Source;
use crate::stage::{self, Stage};
use crate::vfs::{self, Fault, Kind};

/// The two of them, by the numbers that the stage gives.
const BOTH: [usize; 2] = [0, 1];
/// After a repair both have everything after this time at the latest, in milliseconds.
const REPAIR_MAX_MS: u64 = 120_000;
/// A start that fails is tried again after this time, in milliseconds.
const START_RETRY_MS: u64 = 100;
/// A start that fails so often fails for ever: the user repairs and joins again.
const STARTS_MAX: u32 = 12;

const SCHEMA: &str = "
    CREATE TABLE note(id INTEGER PRIMARY KEY, title TEXT NOT NULL, body TEXT);
    CREATE INDEX note_title ON note(title);
    CREATE TABLE tag(k TEXT PRIMARY KEY NOT NULL, name TEXT UNIQUE, n INTEGER) WITHOUT ROWID;
    CREATE TABLE tally(n INTEGER);
    CREATE TRIGGER tag_added AFTER INSERT ON tag BEGIN INSERT INTO tally VALUES(NEW.n); END;";

/// What the application's tables hold, for comparison.
pub type Shown = Vec<String>;

pub struct Scene {
    pub stage: Stage,
    source: Source,
    victim: usize,
    apps: Vec<Connection>,
    /// Their site ids, once they are started.
    sites: Vec<Vec<u8>>,
    folder: tempfile::TempDir,
    /// What it took until both had everything, in milliseconds.
    pub repair_ms: u64,
    /// The fault was lifted before the end, because nothing could start.
    lifted: Option<(u64, u64)>,
    /// What was wrong when the file was last opened in vain.
    refused: Option<wavesync_core::Error>,
    linked: bool,
    starts: u32,
}

impl Scene {
    /// Plays everything with one replica's engine on failing ground. Returns what both have in the
    /// end, and how many calls there were and how many failed.
    ///
    /// # Panics
    /// If a property is broken.
    pub fn play(journal: &str, victim: usize, source: Source) -> (Shown, (u64, u64), u64) {
        let mut scene = Self::new(journal, victim, source);
        source.arm();
        scene.start();
        scene.link(true);
        scene.pass(400);
        scene.look();
        scene.push();
        scene.look();
        scene.change_schema();
        scene.look();
        scene.meet_again();
        scene.look();
        // What is written last shows whether the engine is kept from its work.
        scene.write(victim, "INSERT INTO note VALUES(900 + 1, 'last', NULL)");
        scene.pass(6_000);
        scene.says_what_is_wrong();
        scene.look();
        let counted = scene.lifted.take().unwrap_or_else(|| source.lift());
        scene.recovers();
        (scene.shown(0), counted, scene.repair_ms)
    }

    fn new(journal: &str, victim: usize, source: Source) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut stage = Stage::new();
        (stage.records, stage.closes) = (false, true);
        stage.guard = match (source, victim) {
            (Source::Memory { .. }, 0) => Some(|at, on| crate::memory::switch(on && at == 0)),
            (Source::Memory { .. }, _) => Some(|at, on| crate::memory::switch(on && at == 1)),
            _ => None,
        };
        let app = |at: usize| {
            let app = Connection::open(folder.path().join(format!("{at}.db"))).unwrap();
            app.busy_timeout(std::time::Duration::ZERO).unwrap();
            let mode = format!("PRAGMA synchronous=OFF; PRAGMA journal_mode={journal};");
            app.execute_batch(&format!("{mode} {SCHEMA}")).unwrap();
            app
        };
        let apps: Vec<Connection> = BOTH.into_iter().map(app).collect();
        apps[0].execute_batch(&rows("note", 1, 40)).unwrap();
        apps[1].execute_batch("INSERT INTO tag VALUES('old', 'old', 1)").unwrap();
        Self {
            stage,
            source,
            victim,
            apps,
            sites: Vec::new(),
            folder,
            repair_ms: 0,
            lifted: None,
            refused: None,
            linked: false,
            starts: 0,
        }
    }

    fn path(&self, at: usize) -> PathBuf {
        self.folder.path().join(format!("{at}.db"))
    }

    /// Both join and start; what fails is tried again, as the extension does.
    fn start(&mut self) {
        for at in BOTH {
            let mut tries = 0;
            let (store, identity) = loop {
                let began = self.start_one(at, tries);
                let error = match began {
                    Ok(began) => break began,
                    Err(error) => error,
                };
                assert_eq!(at, self.victim, "only one's ground fails: {error}");
                assert!(self.source.failed() > 0, "nothing failed yet: {error}");
                let text = error.to_string();
                assert!(text.starts_with("SQLite: "), "the start says what is wrong: {text}");
                assert!(!error.hint().is_empty());
                tries += 1;
                if tries == STARTS_MAX {
                    self.lifted = Some(self.source.lift());
                }
                assert!(tries <= STARTS_MAX, "it does not start after the repair: {text}");
                self.stage.now += START_RETRY_MS;
                self.usable();
            };
            self.sites.push(identity.site.0.to_vec());
            self.stage.started(at as u8 + 1, stage::key(1), store, identity);
        }
    }

    fn start_one(&self, at: usize, tries: u32) -> wavesync_core::Result<(Store, Identity)> {
        let faulty = at == self.victim;
        let vfs = if faulty { vfs::NAME } else { c"unix" };
        let _guard = self.source.guard(faulty);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let conn = Connection::open_with_flags_and_vfs(self.path(at), flags, vfs)?;
        let mut store = Store::open(conn)?;
        store.set_bounds(Bounds {
            chunk_rows: 16,
            backfill_rows: 24,
            log_trim_rows: 10,
            log_keep_rows: 40,
            ..Bounds::default()
        });
        let join = Join { topic: "faults".into(), ..Join::default() };
        let (now, file) = (Millis(self.stage.now), FileIdentity(format!("file {at}")));
        // Each start has numbers of its own.
        let random = [(at as u32 * 100 + tries + 1) as u8; 64];
        store.join(now, &join, &file, &random)?;
        let identity = store.start(now, &file, &random)?;
        Ok((store, identity))
    }

    /// An application writes; nothing that ails the engine keeps it from that.
    fn write(&mut self, at: usize, sql: &str) {
        self.write_at_once(&[(at, sql)]);
    }

    /// Applications write before any engine has noticed what the other one wrote.
    fn write_at_once(&mut self, writes: &[(usize, &str)]) {
        for (at, sql) in writes {
            let app = &self.apps[*at];
            let end = "SELECT coalesce(max(seq), 0) FROM __wavesync_log";
            let before: i64 = app.query_row(end, [], |row| row.get(0)).unwrap();
            if let Err(error) = app.execute_batch(sql) {
                panic!("the application cannot write: {error}: {sql}");
            }
            // SQL's own clock is the real one.
            let time = self.stage.now as i64;
            app.execute("UPDATE __wavesync_log SET at = ?1 WHERE seq > ?2", [time, before])
                .unwrap();
            self.stage.now += 1;
        }
        writes.iter().for_each(|(at, _)| self.stage.committed(*at));
        self.stage.run();
    }

    fn pass(&mut self, millis: u64) {
        let end = self.stage.now + millis;
        while self.stage.now < end {
            self.stage.pass(START_RETRY_MS.min(end - self.stage.now));
            self.open_again();
        }
    }

    fn link(&mut self, linked: bool) {
        self.linked = linked;
        match linked {
            _ if !self.stage.down.is_empty() => {}
            true => self.stage.connect(0, 1),
            false => self.stage.disconnect(0, 1),
        }
    }

    /// A file that was given up is opened again as soon as that is possible.
    fn open_again(&mut self) {
        let Some(at) = self.stage.down.first().copied() else { return };
        self.starts += 1;
        match self.start_one(at, 20 + self.starts) {
            Ok((store, identity)) => {
                assert_eq!(identity.site.0.to_vec(), self.sites[at], "it is the same replica");
                self.stage.opened(at, store, identity);
                self.refused = None;
                self.link(self.linked);
            }
            Err(error) => self.refused = Some(error),
        }
    }

    fn push(&mut self) {
        for n in 0..6 {
            self.write(0, &rows("note", 100 + n * 3, 3));
            self.write(1, &rows("note", 200 + n * 3, 3));
            self.pass(12);
        }
        self.write(0, "UPDATE note SET body = 'changed' WHERE id BETWEEN 5 AND 9");
        self.write(1, "DELETE FROM note WHERE id IN (200, 203)");
        // Two rows that exclude each other, and one that gives way.
        self.write_at_once(&[
            (0, "INSERT INTO tag VALUES('a', 'same', 1)"),
            (1, "INSERT INTO tag VALUES('b', 'same', 2)"),
        ]);
        self.pass(60);
        self.write(0, "UPDATE tag SET name = 'other' WHERE k = 'a'");
        self.pass(60);
    }

    /// A table comes here and there, with rows in it.
    fn change_schema(&mut self) {
        let late = "CREATE TABLE late(id INTEGER PRIMARY KEY, title TEXT NOT NULL, body TEXT);";
        let script = format!("BEGIN; {late} {} COMMIT", rows("late", 1, 6));
        self.write(self.victim, &script);
        self.pass(80);
        self.write(1 - self.victim, late);
        self.pass(80);
        self.write(1 - self.victim, &rows("late", 50, 4));
        self.write(self.victim, "ALTER TABLE tag ADD COLUMN extra");
        self.write(1 - self.victim, "ALTER TABLE tag ADD COLUMN extra");
        self.pass(80);
    }

    fn meet_again(&mut self) {
        self.link(false);
        self.write(0, &rows("note", 300, 20));
        self.write(1, &rows("note", 400, 20));
        self.write(1, "UPDATE tag SET extra = 'x', n = 7 WHERE k = 'old'");
        self.pass(1_200);
        self.link(true);
        self.pass(400);
    }

    /// While something is undone because SQLite refuses it, the status says what and what to do.
    fn says_what_is_wrong(&self) {
        if let Some(error) = self.refused.as_ref().filter(|_| !self.stage.down.is_empty()) {
            assert!(error.retryable() && !error.hint().is_empty(), "{error}");
            return;
        }
        let waiting: bool = self.apps[self.victim]
            .query_row(
                "SELECT (SELECT max(seq) FROM __wavesync_log) >
                 (SELECT value FROM __wavesync_meta WHERE key = 'folded')",
                [],
                |row| row.get(0),
            )
            .unwrap();
        let machine = &self.stage.at(self.victim).machine;
        let progress = machine.progress();
        let refused = machine.peers().into_iter().any(|peer| !peer.last_error.is_empty());
        if waiting {
            assert!(progress.last_error.starts_with("SQLite: "), "{progress:?}");
            assert!(!progress.hint.is_empty(), "{progress:?}");
            assert!(!progress.caught_up);
            let codes = self.stage.codes(self.victim);
            let told = ["locked", "disk_full", "store", "memory", "damaged"];
            assert!(codes.iter().any(|code| told.contains(code)), "{codes:?}");
        } else if self.shown(0) != self.shown(1) {
            let other = self.stage.at(1 - self.victim).machine.progress();
            let silent = progress.last_error.is_empty() && !refused;
            assert!(!silent, "nothing is told: {progress:?} {other:?}");
        }
    }

    /// What a replica holds is whole, and nothing is claimed that is not here.
    fn look(&self) {
        self.usable();
        let images: Vec<Image> = self.apps.iter().map(Image::read).collect();
        for (reader, writer) in [(0, 1), (1, 0)] {
            vector_is_sound(&images[reader], &images[writer]);
            self.cursor_is_sound(reader, writer, &images);
        }
        for at in BOTH {
            assert_eq!(self.stage.at(at).renewals, 0, "no fault is another branch of history");
            let blamed =
                |code: &&str| ["protocol", "version", "auth_failed", "seal_broken"].contains(code);
            let blamed: Vec<_> = self.stage.codes(at).into_iter().filter(blamed).collect();
            assert!(blamed.is_empty(), "nobody is to blame for a disk: {blamed:?}");
        }
    }

    fn usable(&self) {
        for app in &self.apps {
            let check = app.query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0));
            assert_eq!(check.as_deref(), Ok("ok"));
        }
    }

    /// What the writer's log names last at or below the reader's cursor is at the reader.
    fn cursor_is_sound(&self, reader: usize, writer: usize, images: &[Image]) {
        let site = self.sites[writer].as_slice();
        let cursor = self.apps[reader].query_row(
            "SELECT max(c.seq) FROM __wavesync_cursor c JOIN __wavesync_site s ON s.num = c.site
             WHERE s.id = ?1",
            [site],
            |row| row.get::<_, Option<i64>>(0),
        );
        let Some(cursor) = cursor.unwrap() else { return };
        let sql = "SELECT lower(t.name), l.pk, max(l.seq) AS last FROM __wavesync_log l
                   JOIN __wavesync_table t ON t.num = l.tbl GROUP BY l.tbl, l.pk HAVING last <= ?1";
        let mut statement = self.apps[writer].prepare_cached(sql).unwrap();
        let mut entries = statement.query([cursor]).unwrap();
        while let Some(entry) = entries.next().unwrap() {
            let (name, key) = (entry.get::<_, String>(0).unwrap(), entry.get_ref(1).unwrap());
            let key = Value::from_ref(key);
            let Some(row) = images[writer].tables[&name].rows.get(&key) else { continue };
            let here = images[reader].tables.get(&name).and_then(|table| table.rows.get(&key));
            let all = row.dots().all(|(column, dot)| {
                here.is_some_and(|here| dominates(here, row, column, dot.stamp))
            });
            assert!(
                all,
                "cursor {cursor} of {reader} is ahead of {name} {key:?}: {row:?} {here:?}"
            );
        }
    }

    /// The fault is gone: both come to have everything.
    fn recovers(&mut self) {
        let repaired = self.stage.now;
        while !self.is_even() {
            let passed = self.stage.now - repaired;
            if passed > REPAIR_MAX_MS {
                let state = BOTH.map(|at| {
                    let member = self.stage.at(at);
                    (member.machine.progress(), member.machine.peers(), self.shown(at))
                });
                panic!("not even {REPAIR_MAX_MS} ms after the repair: {state:#?}");
            }
            self.pass(100);
        }
        self.repair_ms = self.stage.now - repaired;
        self.look();
        let progress = self.stage.at(self.victim).machine.progress();
        assert_eq!((&progress.last_error[..], progress.hint), ("", ""), "the repair is seen");
    }

    fn is_even(&self) -> bool {
        let caught_up = |at: usize| self.stage.at(at).machine.progress().caught_up;
        self.stage.down.is_empty()
            && BOTH.into_iter().all(caught_up)
            && self.shown(0) == self.shown(1)
    }

    fn shown(&self, at: usize) -> Shown {
        let mut shown = Vec::new();
        for table in ["note", "tag", "late"] {
            let Ok(mut statement) = self.apps[at].prepare(&format!("SELECT * FROM {table}")) else {
                continue;
            };
            let columns = statement.column_count();
            let mut rows = statement.query([]).unwrap();
            while let Some(row) = rows.next().unwrap() {
                let value = |at| Value::from_ref(row.get_ref(at).unwrap());
                shown.push(format!("{table} {:?}", (0..columns).map(value).collect::<Vec<_>>()));
            }
        }
        shown.sort();
        shown
    }
}

/// A scene in which nothing fails by itself.
fn calm() -> Scene {
    let never = Fault { kind: Kind::Busy, index: u64::MAX, for_ever: false };
    let mut scene = Scene::new("wal", 0, Source::Files(never));
    scene.start();
    scene.link(true);
    scene.pass(400);
    scene
}

/// An application keeps the file locked for longer than peers are compared with.
pub fn locked_for_a_minute() {
    const TIMES_A_SECOND: u64 = 60;
    let mut scene = calm();
    scene.write(0, "INSERT INTO note VALUES(900, 'x', NULL)");
    scene.apps[0].execute_batch("BEGIN IMMEDIATE").unwrap();
    scene.stage.committed(0);
    let before = scene.stage.steps[0];
    scene.pass(60_000);
    let asked = scene.stage.steps[0] - before;
    assert!((1_000..60 * TIMES_A_SECOND).contains(&asked), "asked {asked} times in a minute");
    let progress = scene.stage.at(0).machine.progress();
    assert_eq!(progress.last_error, "SQLite: database is locked");
    assert!(progress.hint.contains("end its transaction"), "{}", progress.hint);
    assert_eq!(scene.stage.codes(0).iter().filter(|code| **code == "locked").count(), 1);
    scene.apps[0].execute_batch("COMMIT").unwrap();
    scene.recovers();
}

/// A disk stays full: it is not asked all the time, and used soon after there is room again.
pub fn full_for_a_minute() {
    const TIMES_A_MINUTE: u64 = 80;
    const SOON_MS: u64 = 1_500;
    let mut scene = calm();
    Source::Files(Fault { kind: Kind::Full, index: 0, for_ever: true }).arm();
    scene.write(0, "INSERT INTO note VALUES(900, 'x', NULL)");
    let before = scene.stage.steps[0];
    scene.pass(60_000);
    let asked = scene.stage.steps[0] - before;
    assert!((50..TIMES_A_MINUTE).contains(&asked), "asked {asked} times in a minute");
    let progress = scene.stage.at(0).machine.progress();
    assert_eq!(progress.last_error, "SQLite: database or disk is full");
    assert_eq!(scene.stage.codes(0).iter().filter(|code| **code == "disk_full").count(), 1);
    scene.source.lift();
    scene.recovers();
    assert!(scene.repair_ms <= SOON_MS, "{}", scene.repair_ms);
}

/// A transaction fails, and to roll it back there is no memory: closing the file ends it.
pub fn no_memory_to_roll_back() {
    let mut scene = calm();
    let now = Millis(scene.stage.now);
    let store = &mut scene.stage.at_mut(0).store;
    let failed: wavesync_core::Result<()> = store.write(now, |_| {
        crate::memory::CALLS.with(|calls| calls.arm(0, true));
        crate::memory::switch(true);
        Err(wavesync_core::Error::Database("it failed".into()))
    });
    crate::memory::switch(false);
    crate::memory::CALLS.with(|calls| calls.lift());
    assert!(failed.is_err() && store.is_stuck());
    let again = store.write(now, |_| Ok(()));
    assert!(again.is_err(), "nothing is done in a transaction that failed");
    assert!(scene.apps[0].execute_batch("BEGIN IMMEDIATE").is_err(), "it keeps the file locked");
    scene.stage.committed(0);
    scene.stage.run();
    assert!(scene.stage.down.contains(&0), "the machine gives the connection up");
    scene.apps[0].execute_batch("BEGIN IMMEDIATE; COMMIT").unwrap();
    scene.write(0, "INSERT INTO note VALUES(900, 'x', NULL)");
    scene.recovers();
}

fn rows(table: &str, first: u32, count: u32) -> String {
    let rows = (first..first + count).map(|n| format!("({n}, 'title {n}', 'body of {n}')"));
    format!("INSERT INTO {table} VALUES {};", rows.collect::<Vec<_>>().join(", "))
}

/// Whatever a vector covers is in the rows behind it.
fn vector_is_sound(reader: &Image, writer: &Image) {
    for (name, table) in &writer.tables {
        for (key, row) in &table.rows {
            let here = reader.tables.get(name).and_then(|table| table.rows.get(key));
            for (column, dot) in row.dots().filter(|(_, dot)| reader.covers(*dot)) {
                let held = here.is_some_and(|here| dominates(here, row, column, dot.stamp));
                assert!(held, "the vector covers {dot:?} of {name} {key:?}: {row:?} {here:?}");
            }
        }
    }
}

fn dominates(own: &Row, other: &Row, column: Option<&String>, stamp: Stamp) -> bool {
    own.length > other.length
        || (own.length == other.length
            && match column {
                Some(column) => own.cells.get(column).is_some_and(|dot| dot.stamp >= stamp),
                None => true,
            })
}
