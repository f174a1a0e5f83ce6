//! A database file with an engine on it and an application beside it, for tests of the store.
#![allow(dead_code)]

#[path = "../simulator/image.rs"]
pub mod image;

use std::collections::BTreeMap;

use image::Image;
use rusqlite::Connection;
use wavesync_core::ids::{Boot, Cursor, Dot, Millis, Seq, SiteId, Stamp};
use wavesync_core::limits;
use wavesync_core::store::apply::Reach;
use wavesync_core::store::group::Join;
use wavesync_core::store::identity::FileIdentity;
use wavesync_core::store::scan::Place;
use wavesync_core::store::vector::Vector;
use wavesync_core::store::{Push, Store};
use wavesync_core::value::Value;
use wavesync_core::wire::rows::{Batch, Row, TableRows};

/// 2023-11-14.
pub const NOW: Millis = Millis(1_700_000_000_000);
pub const TABLES: &str = "
    CREATE TABLE num(id INTEGER PRIMARY KEY, a, b);
    CREATE TABLE txt(k TEXT PRIMARY KEY NOT NULL, a, b);
    CREATE TABLE pair(x, y, v, PRIMARY KEY(x, y)) WITHOUT ROWID;
    CREATE TABLE keys(k BLOB PRIMARY KEY NOT NULL) WITHOUT ROWID;";

/// A database in a file, its engine, and a plain connection of an application beside it.
pub struct Site {
    pub store: Store,
    pub app: Connection,
    path: std::path::PathBuf,
    number: u8,
    _dir: tempfile::TempDir,
}

impl Site {
    pub fn new(number: u8, sql: &str) -> Self {
        let mut site = Self::before_backfill(number, sql);
        while site.store.backfill_block(NOW).unwrap() {}
        site
    }

    /// One that joins with foreign keys as its SQL declares them.
    pub fn with_declared(number: u8, sql: &str) -> Self {
        let mut site = Self::new(number, sql);
        let foreign_keys = sql.contains("foreign_keys=ON");
        let join = Join { topic: "t".into(), foreign_keys, ..Join::default() };
        let file = FileIdentity("file".into());
        site.store.join(NOW, &join, &file, &[number; 64]).unwrap();
        site
    }

    /// One whose application enforces foreign keys, or does not.
    pub fn enforcing(number: u8, sql: &str, enforced: bool) -> Self {
        let mut site = Self::before_backfill_enforcing(number, sql, enforced);
        while site.store.backfill_block(NOW).unwrap() {}
        site
    }

    pub fn before_backfill_enforcing(number: u8, sql: &str, enforced: bool) -> Self {
        let site = Self::before_backfill(number, sql);
        site.app.pragma_update(None, "foreign_keys", enforced).unwrap();
        site.app
            .execute(
                "INSERT INTO __wavesync_meta(key, value) VALUES('foreign_keys', ?1)
                 ON CONFLICT(key) DO UPDATE SET value = excluded.value",
                [enforced],
            )
            .unwrap();
        site
    }

    pub fn before_backfill(number: u8, sql: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("site.db");
        let app = Connection::open(&path).unwrap();
        app.execute_batch("PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF").unwrap();
        app.execute_batch(sql).unwrap();
        let store = start(&path, number, true);
        Self { store, app, path, number, _dir: dir }
    }

    /// One on a copy of a file in which it has joined before.
    pub fn of_file(number: u8, file: &std::path::Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("site.db");
        std::fs::copy(file, &path).unwrap();
        let app = Connection::open(&path).unwrap();
        app.execute_batch("PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF").unwrap();
        let store = start(&path, number, false);
        Self { store, app, path, number, _dir: dir }
    }

    /// The engine ends and another one starts on the same file.
    pub fn restart(&mut self) {
        self.store = start(&self.path, self.number, false);
    }

    pub fn run(&self, sql: &str) {
        self.app.execute_batch(sql).unwrap();
    }

    pub fn fold(&mut self, now: Millis) -> Vec<Push> {
        self.store.write(now, |_| Ok(())).unwrap();
        self.store.take_pushes()
    }

    pub fn image(&self) -> Image {
        Image::read(&self.app)
    }

    pub fn log_rows(&self) -> i64 {
        self.app.query_row("SELECT count(*) FROM __wavesync_log", [], |row| row.get(0)).unwrap()
    }

    pub fn path(&self) -> &std::path::Path {
        &self.path
    }

    pub fn own_site(&self) -> SiteId {
        self.store.site_id().unwrap().unwrap()
    }

    /// Everything as pieces of at most `rows` rows.
    pub fn pieces(&mut self, rows: usize) -> Vec<Batch> {
        let bounds = limits::Bounds { chunk_rows: rows, ..limits::Bounds::default() };
        self.store.set_bounds(bounds);
        let (mut from, mut pieces) = (Place::Log(Seq(0)), Vec::new());
        loop {
            let piece =
                self.store.folded(NOW, |tx| tx.read_piece(from, &Vector::default())).unwrap();
            from = piece.next.clone();
            pieces.push(Batch::decode(&piece.rows.encode()).unwrap());
            if piece.last {
                return pieces;
            }
        }
    }

    /// Catches up with another site, as one pass does.
    pub fn pull(&mut self, from: &mut Self, now: Millis) {
        let vector = self.store.folded(now, |tx| tx.vector()).unwrap();
        let piece = from.store.folded(now, |tx| tx.read_piece(Seq(0), &vector)).unwrap();
        assert!(piece.last, "a small history fits into one piece");
        let rows = Batch::decode(&piece.rows.encode()).unwrap();
        let cursor = Cursor { boot: Boot(1), seq: piece.to, high: piece.high };
        let reach = Reach { cursor, last: Some(&piece.vector), ..Reach::default() };
        let from = from.own_site();
        self.store.write_applying(now, |tx| tx.apply_piece(from, &rows, &reach)).unwrap();
    }

    pub fn apply(&mut self, from: SiteId, rows: &Batch) -> wavesync_core::Result<u64> {
        let cursor = Cursor { boot: Boot(1), seq: Seq(1), high: Seq(1) };
        let reach = Reach { cursor, ..Reach::default() };
        let applied = self.store.write_applying(NOW, |tx| tx.apply_piece(from, rows, &reach))?;
        Ok(applied.changed)
    }
}

pub fn start(path: &std::path::Path, number: u8, join: bool) -> Store {
    let mut store = Store::open(Connection::open(path).unwrap()).unwrap();
    let file = FileIdentity("file".into());
    let random = [number; 64];
    if join {
        let group = Join { topic: "t".into(), ..Join::default() };
        store.join(NOW, &group, &file, &random).unwrap();
    }
    store.start(NOW, &file, &random).unwrap();
    store
}

/// `L` and `T` without what differs between replicas.
pub type Content = BTreeMap<String, (BTreeMap<Value, image::Row>, BTreeMap<Value, image::Columns>)>;

pub fn content(image: &Image) -> Content {
    let tables = image.tables.iter();
    tables.map(|(name, t)| (name.clone(), (t.rows.clone(), t.shown.clone()))).collect()
}

/// Every table of the file, ours included, as text.
pub fn dump(conn: &Connection) -> String {
    let mut text = String::new();
    let names = "SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name";
    let mut names = conn.prepare(names).unwrap();
    let names: Vec<String> =
        names.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    for name in names {
        let mut statement = conn.prepare(&format!("SELECT * FROM \"{name}\"")).unwrap();
        let columns = statement.column_count();
        let mut rows = statement.query([]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            let value = |at| Value::from_ref(row.get_ref(at).unwrap());
            let values: Vec<Value> = (0..columns).map(value).collect();
            text.push_str(&format!("{name} {values:?}\n"));
        }
    }
    text
}

pub fn batch(rows: Vec<Row>) -> Batch {
    let columns = vec!["a".into(), "b".into()];
    let table = TableRows { name: "txt".into(), integer_key: false, key_columns: 1, columns, rows };
    Batch { tables: vec![table] }
}

pub fn row(key: &str) -> Row {
    let birth = Dot { stamp: Stamp::at(5), site: SiteId([7; 16]) };
    let cells = vec![(0, birth, Value::Integer(1)), (1, birth, Value::Null)];
    Row {
        key: vec![Value::text(key)],
        length: 1,
        birth,
        whole: true,
        cells,
        ended: Default::default(),
    }
}
