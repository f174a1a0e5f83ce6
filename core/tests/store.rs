//! The store by itself, without a machine: capture, fold, back-fill, apply, forget.
#![allow(clippy::unwrap_used)]

#[path = "simulator/image.rs"]
#[allow(dead_code)]
mod image;

use std::collections::BTreeMap;

use image::Image;
use rusqlite::{Connection, params};
use wavesync_core::ids::{Boot, Cursor, Dot, Millis, Seq, SiteId, Stamp};
use wavesync_core::limits;
use wavesync_core::store::apply::PushVerdict;
use wavesync_core::store::group::Join;
use wavesync_core::store::identity::FileIdentity;
use wavesync_core::store::vector::Vector;
use wavesync_core::store::{Push, Store, Tx};
use wavesync_core::value::Value;
use wavesync_core::wire::rows::{Batch, Row, TableRows};

/// 2023-11-14.
const NOW: Millis = Millis(1_700_000_000_000);
const TABLES: &str = "
    CREATE TABLE num(id INTEGER PRIMARY KEY, a, b);
    CREATE TABLE txt(k TEXT PRIMARY KEY NOT NULL, a, b);
    CREATE TABLE pair(x, y, v, PRIMARY KEY(x, y)) WITHOUT ROWID;
    CREATE TABLE keys(k BLOB PRIMARY KEY NOT NULL) WITHOUT ROWID;";

/// A database in a file, its engine, and a plain connection of an application beside it.
struct Site {
    store: Store,
    app: Connection,
    path: std::path::PathBuf,
    number: u8,
    _dir: tempfile::TempDir,
}

impl Site {
    fn new(number: u8, sql: &str) -> Self {
        let mut site = Self::before_backfill(number, sql);
        while site.store.backfill_block(NOW).unwrap() {}
        site
    }

    fn before_backfill(number: u8, sql: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("site.db");
        let app = Connection::open(&path).unwrap();
        app.execute_batch("PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF").unwrap();
        app.execute_batch(sql).unwrap();
        let store = start(&path, number, true);
        Self { store, app, path, number, _dir: dir }
    }

    /// The engine ends and another one starts on the same file.
    fn restart(&mut self) {
        self.store = start(&self.path, self.number, false);
    }

    fn run(&self, sql: &str) {
        self.app.execute_batch(sql).unwrap();
    }

    fn fold(&mut self, now: Millis) -> Vec<Push> {
        self.store.write(now, |_| Ok(())).unwrap();
        self.store.take_pushes()
    }

    fn image(&self) -> Image {
        Image::read(&self.app)
    }

    fn log_rows(&self) -> i64 {
        self.app.query_row("SELECT count(*) FROM __wavesync_log", [], |row| row.get(0)).unwrap()
    }

    fn own_site(&self) -> SiteId {
        self.store.site_id().unwrap().unwrap()
    }

    /// Everything as pieces of at most `rows` rows.
    fn pieces(&mut self, rows: usize) -> Vec<Batch> {
        let bounds = limits::Bounds { chunk_rows: rows, ..limits::Bounds::default() };
        self.store.set_bounds(bounds);
        let (mut from, mut pieces) = (Seq(0), Vec::new());
        loop {
            let piece =
                self.store.folded(NOW, |tx| tx.read_piece(from, &Vector::default())).unwrap();
            from = piece.to;
            pieces.push(Batch::decode(&piece.rows.encode()).unwrap());
            if piece.last {
                return pieces;
            }
        }
    }

    fn apply(&mut self, from: SiteId, rows: &Batch) -> wavesync_core::Result<u64> {
        let cursor = Cursor { boot: Boot(1), seq: Seq(1), high: Seq(1) };
        let applied =
            self.store.write_applying(NOW, |tx| tx.apply_piece(from, rows, cursor, None))?;
        Ok(applied.changed)
    }
}

fn start(path: &std::path::Path, number: u8, join: bool) -> Store {
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
type Content = BTreeMap<String, (BTreeMap<Value, image::Row>, BTreeMap<Value, image::Columns>)>;

fn content(image: &Image) -> Content {
    let tables = image.tables.iter();
    tables.map(|(name, t)| (name.clone(), (t.rows.clone(), t.shown.clone()))).collect()
}

/// Every table of the file, ours included, as text.
fn dump(conn: &Connection) -> String {
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

fn birth(image: &Image, table: &str, key: &Value) -> Dot {
    image.tables[table].rows[key].birth
}

#[test]
fn i1_a_plain_connection_is_captured() {
    let mut site = Site::new(1, TABLES);
    site.run("PRAGMA trusted_schema=OFF; INSERT INTO txt VALUES('k', 1, 2); DELETE FROM keys");
    site.run("INSERT INTO pair VALUES(1, 'y', 2); UPDATE pair SET y = 'z'");
    let pushes = site.fold(NOW);
    assert_eq!(pushes.len(), 1);
    let image = site.image();
    assert_eq!(image.tables["txt"].rows[&Value::text("k")].length, 1);
    assert_eq!(image.tables["pair"].rows[&Value::text("i1,t79")].length, 2, "the old key is dead");
    assert_eq!(image.tables["pair"].rows[&Value::text("i1,t7A")].length, 1);
}

#[test]
fn i2_what_is_rolled_back_leaves_nothing() {
    let mut site = Site::new(1, TABLES);
    let before = (site.log_rows(), dump(&site.app));
    site.run("BEGIN; INSERT INTO num VALUES(1, 2, 3); INSERT INTO txt VALUES('k', 1, 2); ROLLBACK");
    assert_eq!((site.log_rows(), dump(&site.app)), before);
    site.run(
        "BEGIN; INSERT INTO num VALUES(1, 2, 3); SAVEPOINT s; UPDATE num SET a = 9;
         INSERT INTO txt VALUES('k', 1, 2); ROLLBACK TO s; COMMIT",
    );
    assert_eq!(site.log_rows(), before.0 + 1);
    let failed = site.app.execute_batch("INSERT INTO num VALUES(2, 0, 0), (1, 0, 0)");
    assert!(failed.is_err(), "the second row has the key of an existing one");
    assert_eq!(site.log_rows(), before.0 + 1, "a failed statement leaves nothing");
    site.fold(NOW);
    assert_eq!(site.image().tables["num"].rows.len(), 1);
    assert!(site.image().tables["txt"].rows.is_empty());
}

#[test]
fn p3_stamps_grow_strictly_and_a_bogus_time_does_not_lead() {
    let mut site = Site::new(1, TABLES);
    let mut last = Stamp(0);
    let later = |millis| NOW.plus(millis);
    // Forward, standing still, and set back by an hour.
    for (at, now) in [later(1_000), later(1_000), Millis(NOW.0 - 3_600_000), later(5_000)]
        .into_iter()
        .enumerate()
    {
        site.run(&format!("INSERT INTO num VALUES({at}, 1, 1), ({at} + 100, 1, 1)"));
        // A program whose clock is a year ahead.
        site.run("UPDATE __wavesync_log SET at = at + 31536000000 WHERE cols IS NOT NULL");
        site.fold(now);
        let image = site.image();
        for key in [at as i64, at as i64 + 100] {
            let stamp = birth(&image, "num", &Value::Integer(key)).stamp;
            let wall = Stamp::at(now.0 as i64);
            assert!(stamp > last, "stamp {stamp:?} after {last:?}");
            assert_eq!(stamp, wall.max(last.next()), "as low as growth allows");
            last = stamp;
        }
    }
    site.restart();
    site.run("INSERT INTO num VALUES(50, 1, 1)");
    site.fold(Millis(NOW.0 - 7_200_000));
    assert_eq!(birth(&site.image(), "num", &Value::Integer(50)).stamp, last.next());
}

#[test]
fn p10_pushes_join_each_other_and_carry_what_their_fold_stamped() {
    let mut site = Site::new(1, TABLES);
    site.run("INSERT INTO txt VALUES('k', 1, 2)");
    let first = site.fold(NOW.plus(1)).remove(0);
    assert_eq!(first.site, site.own_site());
    site.run("UPDATE txt SET a = 5; INSERT INTO txt VALUES('l', 1, 2)");
    let second = site.fold(NOW.plus(2)).remove(0);
    site.run("DELETE FROM txt WHERE k = 'k'");
    let third = site.fold(NOW.plus(3)).remove(0);
    assert_eq!((second.prev, third.prev), (first.upto, second.upto));
    let rows = |push: &Push| push.rows.as_ref().unwrap().tables[0].rows.clone();
    assert!(rows(&first)[0].whole && rows(&first)[0].cells.len() == 2);
    let [patch, whole] = &rows(&second)[..] else { panic!("two rows: {second:?}") };
    assert_eq!((patch.whole, patch.cells.len()), (false, 1), "only the changed cell travels");
    assert_eq!(patch.birth, rows(&first)[0].birth, "of the incarnation that it names (H5)");
    assert!(whole.whole && whole.birth.stamp > second.prev && whole.birth.stamp <= second.upto);
    assert_eq!((rows(&third)[0].length, rows(&third)[0].cells.len()), (2, 0), "a tombstone");
    let many = limits::PUSH_MAX_ROWS + 1;
    site.run(&format!(
        "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n LIMIT {many})
         INSERT INTO num SELECT n, n, n FROM n"
    ));
    let large = site.fold(NOW.plus(4)).remove(0);
    assert!(large.rows.is_none() && large.prev == third.upto, "announced and fetched");
    site.run("UPDATE txt SET a = a; DELETE FROM keys");
    assert!(site.fold(NOW.plus(5)).is_empty(), "nothing changed, nothing is pushed");
}

fn busy_site(number: u8) -> Site {
    let mut site = Site::new(number, TABLES);
    for round in 0..6 {
        let n = i64::from(number) * 10 + round;
        site.run(&format!(
            "INSERT OR IGNORE INTO num VALUES({round}, {n}, 'x'), ({n}, 1, NULL);
             INSERT OR IGNORE INTO txt VALUES('k{round}', {n}, 1.5);
             INSERT OR IGNORE INTO pair VALUES({round}, 'y', {n});
             INSERT OR IGNORE INTO keys VALUES(x'0{round}');
             UPDATE txt SET b = {n} WHERE k = 'k{}';
             DELETE FROM num WHERE id = {n} AND {round} % 2; DELETE FROM keys WHERE k = x'01'",
            round / 2
        ));
        site.fold(NOW.plus(n as u64));
    }
    site
}

#[test]
fn i4_exported_pieces_apply_in_any_order_and_more_than_once() {
    let mut sites: Vec<Site> = (1..=3).map(busy_site).collect();
    let mut pieces: Vec<(SiteId, Batch)> = Vec::new();
    for (at, site) in sites.iter_mut().enumerate() {
        let own = site.own_site();
        pieces.extend(site.pieces(at + 1).into_iter().map(|piece| (own, piece)));
    }
    assert!(pieces.len() > 30, "many small pieces");
    for site in &mut sites {
        site.store.set_bounds(limits::Bounds::default());
    }
    for step in [1, 7, 11] {
        let mut target = Site::new(9, TABLES);
        let count = pieces.len();
        for at in (0..count).chain(0..count) {
            let (from, piece) = &pieces[at * step % count];
            target.apply(*from, piece).unwrap();
        }
        // Whatever the stride left out.
        pieces.iter().rev().for_each(|(from, piece)| {
            target.apply(*from, piece).unwrap();
        });
        let again: u64 =
            pieces.iter().map(|(from, piece)| target.apply(*from, piece).unwrap()).sum();
        assert_eq!(again, 0, "nothing changes any more");
        for site in &mut sites {
            for (from, piece) in &pieces {
                site.apply(*from, piece).unwrap();
            }
            assert_eq!(content(&site.image()), content(&target.image()), "stride {step}");
        }
    }
}

#[test]
fn a_back_fill_is_resumed_and_writers_go_on_meanwhile() {
    let rows = limits::BACKFILL_BLOCK_ROWS * 2 + 500;
    let fill = format!(
        "{TABLES} WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n LIMIT {rows})
         INSERT INTO txt SELECT printf('k%06d', n), n, 0 FROM n;
         INSERT INTO pair SELECT a, k, 1 FROM txt WHERE a < 50"
    );
    let mut site = Site::before_backfill(1, &fill);
    assert!(site.store.backfill_block(NOW).unwrap());
    let count = |site: &Site| site.image().tables["txt"].rows.len();
    site.restart();
    // Ahead of the back-fill: an update, deletes, a new row, a row replaced, a key changed.
    site.run(
        "UPDATE txt SET b = 1 WHERE k = 'k009000'; DELETE FROM txt WHERE k = 'k009001';
         INSERT INTO txt VALUES('zz', 1, 1); REPLACE INTO txt VALUES('k009002', 2, 2);
         UPDATE txt SET k = 'zzz' WHERE k = 'k009003';
         DELETE FROM txt WHERE k = 'k009004'; INSERT INTO txt VALUES('k009004', 4, 4)",
    );
    let mut blocks = 1;
    while site.store.backfill_block(NOW).unwrap() {
        blocks += 1;
        site.run(&format!("UPDATE txt SET b = {blocks} WHERE k = 'k010400'"));
        assert!(count(&site) <= blocks * limits::BACKFILL_BLOCK_ROWS + 10, "bounded blocks");
        site.restart();
    }
    assert!(blocks >= 3);
    site.fold(NOW);
    let image = site.image();
    for table in image.tables.values() {
        assert!(!table.importing);
        assert!(table.shown.keys().all(|key| table.rows[key].shown()));
        assert!(table.rows.iter().all(|(key, row)| row.shown() == table.shown.contains_key(key)));
    }
    let row = |key: &str| &image.tables["txt"].rows[&Value::text(key)];
    assert!(row("k000001").birth.stamp.is_base() && row("k009000").birth.stamp.is_base());
    assert!(
        !row("k009000").cells["b"].stamp.is_base() && row("k009000").cells["a"].stamp.is_base()
    );
    assert_eq!((row("k009001").length, row("k009003").length), (2, 2));
    assert_eq!((row("k009004").length, row("zzz").length), (3, 1));
    let base = row("k000001").birth;
    assert_eq!(image.vector[&base.site], base.stamp, "covered once all rows are in");
}

fn batch(rows: Vec<Row>) -> Batch {
    let columns = vec!["a".into(), "b".into()];
    let table = TableRows { name: "txt".into(), integer_key: false, key_columns: 1, columns, rows };
    Batch { tables: vec![table] }
}

fn row(key: &str) -> Row {
    let birth = Dot { stamp: Stamp::at(5), site: SiteId([7; 16]) };
    let cells = vec![(0, birth, Value::Integer(1)), (1, birth, Value::Null)];
    Row { key: vec![Value::text(key)], length: 1, birth, whole: true, cells }
}

#[test]
fn i6_a_refused_batch_leaves_the_database_as_it_was() {
    let mut site = Site::new(1, TABLES);
    site.run("INSERT INTO txt VALUES('mine', 1, 2)");
    site.fold(NOW);
    let bend = |change: &dyn Fn(&mut Batch)| {
        // A good row before the bad one: it must not stay either.
        let mut batch = batch(vec![row("good"), row("bad")]);
        change(&mut batch);
        batch
    };
    let cases: Vec<(&str, Batch)> = vec![
        (
            "more key columns than the table has",
            bend(&|b| {
                b.tables[0].key_columns = 2;
                b.tables[0].rows.iter_mut().for_each(|row| row.key.push(Value::Integer(1)));
            }),
        ),
        (
            "another kind of key",
            bend(&|b| {
                b.tables[0].integer_key = true;
                b.tables[0].rows.iter_mut().for_each(|row| row.key = vec![Value::Integer(1)]);
            }),
        ),
        ("a key that is too short", bend(&|b| b.tables[0].rows[1].key.clear())),
        ("a NULL key", bend(&|b| b.tables[0].rows[1].key = vec![Value::Null])),
        (
            "a stamp that leaves no room",
            bend(&|b| {
                b.tables[0].rows[1].birth.stamp = Stamp(limits::STAMP_MAX + 1);
            }),
        ),
        (
            "a stamp below every base",
            bend(&|b| {
                b.tables[0].rows[1].cells[0].1.stamp = Stamp(i64::MIN);
            }),
        ),
        (
            "an absurd causal length",
            bend(&|b| {
                b.tables[0].rows[1].length = limits::CAUSAL_LENGTH_MAX + 1;
            }),
        ),
        ("a length of nothing", bend(&|b| b.tables[0].rows[1].length = 0)),
        (
            "a column that is not listed",
            bend(&|b| {
                b.tables[0].rows[1].cells.remove(0);
                b.tables[0].rows[1].cells[0].0 = 2;
            }),
        ),
        ("a column twice", bend(&|b| b.tables[0].columns[1] = "A".into())),
        ("our own tables", bend(&|b| b.tables[0].name = "__wavesync_meta".into())),
        ("SQLite's tables", bend(&|b| b.tables[0].name = "sqlite_schema".into())),
        ("a reserved column", bend(&|b| b.tables[0].columns[0] = "__WaveSync_x".into())),
        (
            "a table twice",
            bend(&|b| {
                let mut twin = b.tables[0].clone();
                twin.name = "TXT".into();
                b.tables.push(twin);
            }),
        ),
    ];
    let before = dump(&site.app);
    for (what, bad) in cases {
        let outcome =
            Batch::decode(&bad.encode()).and_then(|batch| site.apply(SiteId([7; 16]), &batch));
        assert!(outcome.is_err(), "{what} was accepted");
        assert_eq!(dump(&site.app), before, "{what}");
    }
    assert_eq!(site.apply(SiteId([7; 16]), &batch(vec![row("good"), row("bad")])).unwrap(), 2);
}

#[test]
fn forgetting_leaves_a_plain_database() {
    let objects = |conn: &Connection| -> Vec<String> {
        let sql =
            "SELECT type || ' ' || name || ' ' || coalesce(sql, '') FROM sqlite_schema ORDER BY 1";
        let mut statement = conn.prepare(sql).unwrap();
        statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    };
    let plain = "CREATE INDEX i ON txt(a); CREATE VIEW v AS SELECT * FROM txt;
                 CREATE TRIGGER t AFTER INSERT ON num BEGIN DELETE FROM keys; END;
                 CREATE TABLE __wavesynced(id INTEGER PRIMARY KEY)";
    let mut site = Site::new(1, TABLES);
    site.run(plain);
    site.run("INSERT INTO txt VALUES('k', 1, 2)");
    site.fold(NOW);
    site.apply(
        SiteId([7; 16]),
        &Batch {
            tables: vec![TableRows {
                name: "elsewhere".into(),
                ..batch(vec![row("r")]).tables.remove(0)
            }],
        },
    )
    .unwrap();
    site.store.forget().unwrap();
    let fresh = Connection::open_in_memory().unwrap();
    fresh.execute_batch(TABLES).unwrap();
    fresh.execute_batch(plain).unwrap();
    assert_eq!(objects(&site.app), objects(&fresh));
    site.run("INSERT INTO txt VALUES('l', 1, 2)");
    let rows: i64 = site.app.query_row("SELECT count(*) FROM txt", [], |row| row.get(0)).unwrap();
    assert_eq!(rows, 2);
}

#[test]
fn values_travel_byte_for_byte() {
    let sql = "CREATE TABLE v(k PRIMARY KEY NOT NULL, x);
               CREATE TABLE p(x NOT NULL, y NOT NULL, v, PRIMARY KEY(x, y))";
    let real = |bits: u64| Value::Real(f64::from_bits(bits));
    let values = vec![
        Value::Null,
        Value::Integer(i64::MIN),
        Value::Integer(i64::MAX),
        Value::Integer(-1),
        Value::Real(f64::INFINITY),
        Value::Real(f64::NEG_INFINITY),
        Value::Real(-0.0),
        Value::Real(0.1),
        Value::Real(f64::MAX),
        real(1),
        real(0x000F_FFFF_FFFF_FFFF),
        Value::Text(Vec::new()),
        Value::Text(b"a\0b".to_vec()),
        Value::Text(vec![0xFF, 0xC0, b'x']),
        Value::text("日本 'quoted' \"x\" i1,t2"),
        Value::Blob(Vec::new()),
        Value::Blob(vec![0, 255]),
    ];
    let (mut from, mut to) = (Site::new(1, sql), Site::new(2, sql));
    for (at, value) in values.iter().enumerate() {
        from.app
            .execute("INSERT INTO v VALUES(?1, ?2)", params![at as i64 + 1_000, value])
            .unwrap();
        // SQL writes both zeros alike in a packed key, and they are one key to SQLite.
        let negative_zero = *value == Value::Real(-0.0);
        if *value != Value::Null && !negative_zero {
            let sql = "INSERT INTO p VALUES(?1, ?2, ?1)";
            from.app.execute(sql, params![value, at as i64]).unwrap();
            from.app.execute("INSERT INTO v VALUES(?1, ?1)", params![value]).unwrap();
        }
    }
    from.fold(NOW);
    let own = from.own_site();
    for piece in from.pieces(3) {
        to.apply(own, &piece).unwrap();
    }
    let read = |conn: &Connection, sql: &str| -> Vec<(Value, Value)> {
        let mut statement = conn.prepare(sql).unwrap();
        let pair = |row: &rusqlite::Row<'_>| {
            Ok((Value::from_ref(row.get_ref(0)?), Value::from_ref(row.get_ref(1)?)))
        };
        statement.query_map([], pair).unwrap().map(Result::unwrap).collect()
    };
    for sql in ["SELECT k, x FROM v ORDER BY k", "SELECT x, v FROM p ORDER BY y"] {
        let (sent, received) = (read(&from.app, sql), read(&to.app, sql));
        assert!(sent.len() >= values.len() - 2);
        assert_eq!(sent, received);
    }
    assert_eq!(content(&from.image()), content(&to.image()));
    // A change from one value to any other is a change; to itself it is none.
    for one in &values {
        for two in &values {
            from.app.execute("UPDATE v SET x = ?1 WHERE k = 1000", params![one]).unwrap();
            from.fold(NOW);
            from.app.execute("UPDATE v SET x = ?1 WHERE k = 1000", params![two]).unwrap();
            assert_eq!(from.fold(NOW).len(), usize::from(one != two), "{one:?} {two:?}");
        }
    }
}

#[test]
fn p1_a_table_that_comes_later_shows_what_was_parked_for_it() {
    let mut site = Site::new(1, "CREATE TABLE num(id INTEGER PRIMARY KEY, a)");
    let mut gone = row("gone");
    (gone.length, gone.cells) = (2, Vec::new());
    site.apply(SiteId([7; 16]), &batch(vec![row("theirs"), row("both"), gone])).unwrap();
    assert!(site.image().tables["txt"].rows[&Value::text("theirs")].parked.is_some());
    // Written before any trigger is there.
    site.run(
        "CREATE TABLE txt(k TEXT PRIMARY KEY NOT NULL, a, b, c);
         INSERT INTO txt VALUES('both', 'mine', 'mine', 'mine'), ('own', 1, 1, 1), ('gone', 1, 1, 1)",
    );
    site.fold(NOW);
    while site.store.backfill_block(NOW).unwrap() {}
    site.run("UPDATE txt SET b = 'now' WHERE k = 'theirs'");
    assert_eq!(site.fold(NOW).len(), 1, "it is captured");
    let image = site.image();
    let table = &image.tables["txt"];
    assert!(table.local && table.rows.values().all(|row| row.parked.is_none()));
    let shown: Vec<&Value> = table.shown.keys().collect();
    let [both, own, theirs] = ["both", "own", "theirs"].map(Value::text);
    assert_eq!(shown, [&both, &own, &theirs], "what was deleted elsewhere stays deleted");
    // An old copy overwrites nothing, and adds what nobody else wrote.
    assert_eq!(table.shown[&both]["a"], Value::Integer(1));
    assert_eq!(table.shown[&both]["c"], Value::text("mine"));
    assert!(table.rows[&own].birth.stamp.is_base());
    let kept = "SELECT ours FROM __wavesync_conflict WHERE kind = 'overwritten'";
    let kept: String = site.app.query_row(kept, [], |row| row.get(0)).unwrap();
    assert!(kept.contains('1'), "and is kept for the user: {kept}");
}

/// T and R insert the same INTEGER key, R later; S has T's row and changes a cell of it. Returns
/// the three, S's push, and what R came to.
fn patch_of_a_row_that_lost() -> ([Site; 3], PushVerdict) {
    let sql = "CREATE TABLE one(id INTEGER PRIMARY KEY, v)";
    let [mut t, mut s, mut r] = [1, 2, 3].map(|number| Site::new(number, sql));
    t.run("INSERT INTO one VALUES(1, 'first')");
    t.fold(NOW.plus(1));
    let own = t.own_site();
    for piece in t.pieces(9) {
        s.apply(own, &piece).unwrap();
    }
    r.run("INSERT INTO one VALUES(1, 'second')");
    r.fold(NOW.plus(2));
    s.run("UPDATE one SET v = 'changed'");
    let push = s.fold(NOW.plus(3)).remove(0);
    let range = (push.prev, push.upto);
    let rows = push.rows.as_ref().unwrap();
    let apply = |tx: &mut Tx<'_>| tx.apply_push(push.site, push.boot, range, rows);
    let verdict = r.store.write_applying(NOW.plus(4), apply).unwrap();
    ([t, s, r], verdict)
}

#[test]
fn p10c_a_patch_of_an_incarnation_that_is_not_here_is_a_gap() {
    let ([_, mut s, mut r], verdict) = patch_of_a_row_that_lost();
    assert_eq!(verdict, PushVerdict::Gap);
    let shown = |site: &Site| site.image().tables["one"].shown[&Value::Integer(1)]["v"].clone();
    assert_eq!(shown(&r), Value::text("second"), "a row is complete or not there");
    let own = s.own_site();
    for piece in s.pieces(9) {
        r.apply(own, &piece).unwrap();
    }
    assert_eq!(shown(&r), Value::text("changed"));
}

#[test]
fn p1_an_incomplete_row_is_shown_once_the_whole_of_it_is_here() {
    let ([_, mut s, mut r], _) = patch_of_a_row_that_lost();
    let own = s.own_site();
    let whole = s.pieces(9).remove(0);
    // As from a peer that breaks P10: the only cell of the row comes as a patch first.
    let mut patch = whole.clone();
    patch.tables[0].rows[0].whole = false;
    r.apply(own, &patch).unwrap();
    assert!(!r.image().tables["one"].rows[&Value::Integer(1)].shown());
    r.apply(own, &whole).unwrap();
    assert!(r.image().tables["one"].rows[&Value::Integer(1)].shown());
    assert_eq!(content(&r.image()), content(&s.image()));
}
