//! The workload: a table of 6 columns, its rows, and databases that hold them.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, params};
use tempfile::TempDir;
use wavesync_core::ids::Millis;
use wavesync_core::store::Store;
use wavesync_core::store::group::Join;
use wavesync_core::store::identity::FileIdentity;

/// Rows that a bulk writer commits at once.
pub const COMMIT_ROWS: usize = 1_000;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Key {
    Integer,
    Text,
}

impl Key {
    pub fn name(self) -> &'static str {
        match self {
            Self::Integer => "int",
            Self::Text => "text",
        }
    }

    /// The goal for this kind of key.
    pub fn goal(self, integer: &'static str, text: &'static str) -> &'static str {
        if self == Self::Integer { integer } else { text }
    }
}

pub struct Row {
    pub id: i64,
    pub uuid: String,
    name: String,
    amount: i64,
    price: f64,
    day: String,
    note: Option<String>,
}

/// A small generator (splitmix64), so that every run has the same rows.
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for at in (1..items.len()).rev() {
            items.swap(at, (self.roll() % (at as u64 + 1)) as usize);
        }
    }
}

fn uuid(dice: &mut Dice) -> String {
    let (high, low) = (dice.roll(), dice.roll());
    format!(
        "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
        high >> 32,
        (high >> 16) & 0xffff,
        high & 0xfff,
        0x8000 | (low >> 50),
        low & 0xffff_ffff_ffff
    )
}

pub fn rows(count: usize) -> Vec<Row> {
    const WORDS: [&str; 8] =
        ["garden", "water", "seed", "north bed", "Thursday", "compost", "again", "shade"];
    let mut dice = Dice(1);
    let row = |id: usize| {
        let words: Vec<&str> = (0..4).map(|_| WORDS[(dice.roll() % 8) as usize]).collect();
        Row {
            id: id as i64 + 1,
            uuid: uuid(&mut dice),
            name: format!("item {}", dice.roll() % 1_000_000),
            amount: (dice.roll() % 1_000_000) as i64,
            price: (dice.roll() % 1_000_000) as f64 / 7.0,
            day: format!("20{:02}-{:02}-{:02}", dice.roll() % 25, id % 12 + 1, id % 28 + 1),
            note: (!id.is_multiple_of(5)).then(|| words.join(" ")),
        }
    };
    (0..count).map(row).collect()
}

impl Row {
    /// Bytes of the row's own values in SQLite's record format, without headers.
    pub fn own_bytes(&self, key: Key) -> usize {
        let integer = |value: i64| match value.unsigned_abs() {
            0..128 => 1,
            128..32_768 => 2,
            32_768..8_388_608 => 3,
            _ => 4,
        };
        let id = if key == Key::Integer { integer(self.id) } else { self.uuid.len() };
        let note = self.note.as_ref().map_or(0, String::len);
        id + self.name.len() + integer(self.amount) + 8 + self.day.len() + note
    }
}

/// How the changes of a database are recorded.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Capture {
    /// Plain SQLite.
    None,
    /// A trigger that does nothing: what no capture by triggers can go below.
    Empty,
    /// Ours.
    Wavesync,
}

pub const CAPTURES: [(Capture, &str); 3] =
    [(Capture::None, "plain"), (Capture::Empty, "empty"), (Capture::Wavesync, "ours")];

/// The rows of one kind of key, and a place for databases.
pub struct Bench {
    pub key: Key,
    pub rows: Vec<Row>,
    /// The rows' positions in random order.
    pub shuffled: Vec<usize>,
    dir: TempDir,
}

impl Bench {
    pub fn new(key: Key, count: usize) -> Self {
        let mut shuffled: Vec<usize> = (0..count).collect();
        Dice(2).shuffle(&mut shuffled);
        Self { key, rows: rows(count), shuffled, dir: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A new file with the empty table; the writer's connection, and the engine's for ours.
    pub fn create(&self, name: &str, capture: Capture) -> (Connection, Option<Store>) {
        let path = self.path(name);
        remove(&path);
        let conn = open(&path);
        let id = match self.key {
            Key::Integer => "id INTEGER PRIMARY KEY",
            Key::Text => "id TEXT PRIMARY KEY NOT NULL",
        };
        conn.execute_batch(&format!(
            "CREATE TABLE t({id}, name TEXT NOT NULL, amount INTEGER NOT NULL, price REAL,
                            day TEXT, note TEXT)"
        ))
        .unwrap();
        let mut store = None;
        match capture {
            Capture::None => {}
            Capture::Empty => conn
                .execute_batch(
                    "CREATE TRIGGER i AFTER INSERT ON t BEGIN SELECT 1; END;
                     CREATE TRIGGER u AFTER UPDATE ON t BEGIN SELECT 1; END;
                     CREATE TRIGGER d AFTER DELETE ON t BEGIN SELECT 1; END;",
                )
                .unwrap(),
            Capture::Wavesync => store = Some(engine(&path, 1, true)),
        }
        (conn, store)
    }

    /// A file that holds all rows, checkpointed and, if ours, folded. Made once, then copied.
    pub fn filled(&self, name: &str, capture: Capture) -> (Connection, Option<Store>) {
        let template = self.path(&format!("filled-{}", capture as u8));
        if !template.exists() {
            let making = format!("filled-{}", capture as u8);
            let (conn, store) = self.create(&making, capture);
            self.insert(&conn, &mut |_| {});
            if let Some(mut store) = store {
                fold(&mut store);
            }
            let whole = conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0));
            assert_eq!(whole, Ok(0), "nobody else uses the file");
        }
        let path = self.path(name);
        remove(&path);
        std::fs::copy(&template, &path).unwrap();
        let conn = open(&path);
        (conn, (capture == Capture::Wavesync).then(|| engine(&path, 1, false)))
    }

    /// Inserts all rows, [`COMMIT_ROWS`] at a time; `committed` learns how many there are.
    pub fn insert(&self, conn: &Connection, committed: &mut dyn FnMut(usize)) {
        let sql = "INSERT INTO t VALUES(?1, ?2, ?3, ?4, ?5, ?6)";
        let mut statement = conn.prepare(sql).unwrap();
        let mut count = 0;
        for rows in self.rows.chunks(COMMIT_ROWS) {
            conn.execute_batch("BEGIN").unwrap();
            for row in rows {
                insert_row(&mut statement, self.key, row);
            }
            conn.execute_batch("COMMIT").unwrap();
            count += rows.len();
            committed(count);
        }
    }
}

pub fn insert_row(statement: &mut rusqlite::Statement<'_>, key: Key, row: &Row) {
    let Row { id, uuid, name, amount, price, day, note } = row;
    let done = match key {
        Key::Integer => statement.execute(params![id, name, amount, price, day, note]),
        Key::Text => statement.execute(params![uuid, name, amount, price, day, note]),
    };
    assert_eq!(done, Ok(1));
}

fn remove(path: &Path) {
    for end in ["", "-wal", "-shm"] {
        let mut name = path.as_os_str().to_owned();
        name.push(end);
        // It need not exist.
        let _ = std::fs::remove_file(name);
    }
}

/// A writer's connection, as an application would open it.
pub fn open(path: &Path) -> Connection {
    let conn = Connection::open(path).unwrap();
    conn.execute_batch("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL").unwrap();
    conn
}

/// The engine's connection to a file.
pub fn engine(path: &Path, number: u8, join: bool) -> Store {
    let mut store = Store::open(Connection::open(path).unwrap()).unwrap();
    let file = FileIdentity("file".into());
    let random = [number; 64];
    if join {
        let group = Join { topic: "bench".into(), ..Join::default() };
        store.join(now(), &group, &file, &random).unwrap();
    }
    store.start(now(), &file, &random).unwrap();
    while store.backfill_block(now()).unwrap() {}
    store
}

pub fn now() -> Millis {
    let since = std::time::UNIX_EPOCH.elapsed().unwrap();
    Millis(since.as_millis() as u64)
}

pub fn fold(store: &mut Store) {
    store.write(now(), |_| Ok(())).unwrap();
    store.take_pushes();
    store.take_effects();
}
