//! Changes of the schema by plain SQL, at the store: nothing is lost, nothing is sent twice.
#![allow(clippy::unwrap_used)]

#[path = "simulator/image.rs"]
#[allow(dead_code)]
mod image;

use rusqlite::Connection;
use wavesync_core::ids::{Cursor, Millis, SiteId};
use wavesync_core::store::apply::Reach;
use wavesync_core::store::group::Join;
use wavesync_core::store::identity::FileIdentity;
use wavesync_core::store::scan::Place;
use wavesync_core::store::vector::Vector;
use wavesync_core::store::{Store, report};
use wavesync_core::wire::rows::Batch;

/// 2023-11-14.
const NOW: u64 = 1_700_000_000_000;

/// A database in a file, its engine, and a plain connection of an application beside it.
struct Site {
    store: Store,
    app: Connection,
    path: std::path::PathBuf,
    number: u8,
    now: u64,
    _dir: tempfile::TempDir,
}

impl Site {
    fn new(number: u8, sql: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("site.db");
        let app = Connection::open(&path).unwrap();
        app.execute_batch("PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF").unwrap();
        app.execute_batch(sql).unwrap();
        let now = NOW + u64::from(number);
        let store = start(&path, number, true, Millis(now));
        let mut site = Self { store, app, path, number, now, _dir: dir };
        site.look();
        site
    }

    /// The engine ends and another one starts on the same file.
    fn restart(&mut self) {
        self.store = start(&self.path, self.number, false, Millis(self.now));
    }

    /// Plain SQL of an application, and a later time on every clock.
    fn run(&mut self, sql: &str) {
        self.now += 10;
        self.app.execute_batch(sql).unwrap();
        // The triggers take the real time, which is later than all of these.
        let now = self.now as i64;
        self.app
            .execute("UPDATE __wavesync_log SET at = min(at, ?1) WHERE at IS NOT NULL", [now])
            .unwrap();
    }

    /// What the engine does after a commit; a dropped table is believed after a while.
    fn look(&mut self) {
        if self.store.write(Millis(self.now), |_| Ok(())).is_err() {
            self.now += wavesync_core::limits::SCHEMA_SETTLE_MS;
        }
        self.store.write(Millis(self.now), |_| Ok(())).unwrap();
        while self.store.backfill_block(Millis(self.now)).unwrap() {}
        self.store.take_pushes();
    }

    fn own(&self) -> SiteId {
        self.store.site_id().unwrap().unwrap()
    }

    fn one(&self, sql: &str) -> String {
        let value = self.app.query_row(sql, [], |row| row.get::<_, rusqlite::types::Value>(0));
        match value.unwrap() {
            rusqlite::types::Value::Null => "NULL".into(),
            rusqlite::types::Value::Integer(n) => n.to_string(),
            rusqlite::types::Value::Text(text) => text,
            other => panic!("{other:?}"),
        }
    }

    /// All rows of a query, each joined by `|`, in one text.
    fn rows(&self, sql: &str) -> String {
        let mut statement = self.app.prepare(sql).unwrap();
        let mut rows = statement.query([]).unwrap();
        let mut lines = Vec::new();
        while let Some(row) = rows.next().unwrap() {
            let cell = |at| match row.get::<_, rusqlite::types::Value>(at).unwrap() {
                rusqlite::types::Value::Null => "-".into(),
                rusqlite::types::Value::Integer(n) => n.to_string(),
                rusqlite::types::Value::Text(text) => text,
                other => panic!("{other:?}"),
            };
            let count = row.as_ref().column_count();
            lines.push((0..count).map(cell).collect::<Vec<String>>().join("|"));
        }
        lines.join(" ")
    }

    fn log_rows(&self) -> i64 {
        self.app.query_row("SELECT count(*) FROM __wavesync_log", [], |row| row.get(0)).unwrap()
    }

    fn parked(&self) -> i64 {
        self.app.query_row("SELECT count(*) FROM __wavesync_parked", [], |r| r.get(0)).unwrap()
    }

    /// One catch-up from another site. Returns the rows that travelled.
    fn pull(&mut self, from: &mut Site) -> usize {
        let now = self.now.max(from.now) + 1;
        (self.now, from.now) = (now, now);
        self.look();
        from.look();
        let other = from.own();
        let (mut cursor, vector) =
            self.store.folded(Millis(now), |tx| Ok((tx.cursor(other)?, tx.vector()?))).unwrap();
        let mut rows = 0;
        let mut place = Place::from(cursor.seq);
        loop {
            let piece = from.store.folded(Millis(now), |tx| tx.read_piece(place, &vector)).unwrap();
            rows += piece.rows.row_count();
            let batch = Batch::decode(&piece.rows.encode()).unwrap();
            cursor = Cursor { boot: wavesync_core::ids::Boot(1), seq: piece.to, high: piece.high };
            let last: Option<&Vector> = piece.last.then_some(&piece.vector);
            let reach = Reach { cursor, ordered: piece.ordered, last, ..Reach::default() };
            self.store
                .write_applying(Millis(now), |tx| tx.apply_piece(other, &batch, &reach))
                .unwrap();
            if piece.last {
                return rows;
            }
            place = piece.next;
        }
    }
}

fn start(path: &std::path::Path, number: u8, join: bool, now: Millis) -> Store {
    let mut store = Store::open(Connection::open(path).unwrap()).unwrap();
    let file = FileIdentity("file".into());
    let random = [number; 64];
    if join {
        let group = Join { topic: "t".into(), ..Join::default() };
        store.join(now, &group, &file, &random).unwrap();
    }
    store.start(now, &file, &random).unwrap();
    store
}

/// Pulls in both directions until nothing travels any more.
fn sync(a: &mut Site, b: &mut Site) {
    for _ in 0..8 {
        if a.pull(b) + b.pull(a) == 0 {
            return;
        }
    }
    panic!("rows go to and fro without end");
}

fn same(a: &Site, b: &Site, sql: &str) -> String {
    let rows = a.rows(sql);
    assert_eq!(rows, b.rows(sql), "{sql}");
    rows
}

const NOTE: &str = "CREATE TABLE note(id INTEGER PRIMARY KEY, title TEXT, body TEXT)";

/// Two replicas with the same three rows.
fn pair(sql: &str, fill: &str) -> (Site, Site) {
    let (mut a, mut b) = (Site::new(1, sql), Site::new(2, sql));
    a.run(fill);
    sync(&mut a, &mut b);
    (a, b)
}

const FILL: &str = "INSERT INTO note VALUES(1, 'a', 'x'), (2, 'b', 'y'), (3, 'c', 'z')";

#[test]
fn a_column_renamed_on_both_sides_in_either_order_converges() {
    for engine_runs in [true, false] {
        let (mut a, mut b) = pair(NOTE, FILL);
        a.run("ALTER TABLE note RENAME COLUMN title TO \"the \"\" name\"");
        if !engine_runs {
            a.restart();
        }
        assert_eq!(b.pull(&mut a), 0, "a rename sends nothing");
        a.run("UPDATE note SET \"the \"\" name\" = 'new' WHERE id = 1");
        b.run("UPDATE note SET title = 'old name' WHERE id = 2");
        sync(&mut a, &mut b);
        // The side that renamed understands the former name; the other one keeps the value.
        assert_eq!(a.one("SELECT \"the \"\" name\" FROM note WHERE id = 2"), "old name");
        assert_eq!((b.one("SELECT title FROM note WHERE id = 1"), b.parked()), ("a".into(), 1));
        b.run("UPDATE note SET title = 'later' WHERE id = 1");
        b.run("INSERT INTO note VALUES(4, 'four', NULL)");
        a.run("UPDATE note SET \"the \"\" name\" = 'three' WHERE id = 3");
        sync(&mut a, &mut b);
        b.run("ALTER TABLE note RENAME title TO \"the \"\" name\"");
        assert_eq!((b.pull(&mut a), a.pull(&mut b)), (0, 0), "nothing is sent again");
        let rows = same(&a, &b, "SELECT * FROM note ORDER BY id");
        assert_eq!(rows, "1|later|x 2|old name|y 3|three|z 4|four|-");
        assert_eq!((a.parked(), b.parked()), (0, 0));
        b.run("UPDATE note SET \"the \"\" name\" = 'end' WHERE id = 4");
        sync(&mut a, &mut b);
        assert_eq!(a.one("SELECT \"the \"\" name\" FROM note WHERE id = 4"), "end");
    }
}

#[test]
fn columns_that_swap_their_names_keep_their_numbers() {
    let (mut a, mut b) = pair(NOTE, FILL);
    let swap = "ALTER TABLE note RENAME title TO tmp; ALTER TABLE note RENAME body TO title;
                ALTER TABLE note RENAME tmp TO body";
    a.run(swap);
    a.look();
    b.run(swap);
    assert_eq!((b.pull(&mut a), a.pull(&mut b)), (0, 0));
    a.run("UPDATE note SET title = 'was body' WHERE id = 1");
    sync(&mut a, &mut b);
    assert_eq!(same(&a, &b, "SELECT body, title FROM note WHERE id = 1"), "a|was body");
}

#[test]
fn a_key_column_can_be_renamed() {
    let sql = "CREATE TABLE pair(x, y, v, PRIMARY KEY(x, y))";
    let (mut a, mut b) = pair(sql, "INSERT INTO pair VALUES(1, 'k', 'v')");
    a.run("ALTER TABLE pair RENAME x TO first");
    a.run("UPDATE pair SET v = 'w'; INSERT INTO pair VALUES(2, 'k', 'v')");
    sync(&mut a, &mut b);
    assert_eq!(b.rows("SELECT x, y, v FROM pair ORDER BY x"), "1|k|w 2|k|v");
}

#[test]
fn a_renamed_table_keeps_its_history_and_meets_the_others() {
    for engine_runs in [true, false] {
        let (mut a, mut b) = pair(NOTE, FILL);
        a.run("ALTER TABLE note RENAME TO memo");
        if !engine_runs {
            a.restart();
        }
        assert_eq!(b.pull(&mut a), 0, "a rename sends nothing");
        a.run("UPDATE memo SET title = 'A' WHERE id = 1; INSERT INTO memo VALUES(4, 'd', 'w')");
        a.run("DELETE FROM memo WHERE id = 3");
        b.run("UPDATE note SET body = 'B' WHERE id = 2; INSERT INTO note VALUES(5, 'e', 'v')");
        sync(&mut a, &mut b);
        let all = a.rows("SELECT * FROM memo ORDER BY id");
        assert_eq!(all, "1|A|x 2|b|B 4|d|w 5|e|v", "the former name is understood");
        assert!(b.parked() >= 2, "what came under the new name waits");
        b.run("ALTER TABLE note RENAME TO memo");
        assert_eq!((b.pull(&mut a), a.pull(&mut b)), (0, 0), "nothing is sent again");
        assert_eq!(b.rows("SELECT * FROM memo ORDER BY id"), all);
        assert_eq!(b.parked(), 0);
        b.run("UPDATE memo SET body = 'end' WHERE id = 4");
        sync(&mut a, &mut b);
        assert_eq!(same(&a, &b, "SELECT body FROM memo WHERE id = 4"), "end");
    }
}

#[test]
fn a_table_that_was_renamed_here_is_not_adopted_under_its_former_name() {
    let (mut a, mut b) = pair(
        "CREATE TABLE user(id TEXT PRIMARY KEY, name TEXT);",
        "INSERT INTO user VALUES (1, 2)",
    );
    sync(&mut a, &mut b);
    a.app.execute("UPDATE __wavesync_meta SET value = 1 WHERE key = 'adopt'", []).unwrap();
    // b does not know of it yet, and tells of its schema, before a's engine has looked.
    let told = b.store.schema(Millis(b.now)).unwrap();
    a.app.execute_batch("ALTER TABLE user RENAME TO person").unwrap();
    assert_eq!(a.store.adopt(Millis(a.now), &told).unwrap().0, Vec::<String>::new());
    let user = "SELECT count(*) FROM sqlite_schema WHERE name = 'user'";
    assert_eq!(a.app.query_row(user, [], |row| row.get::<_, i64>(0)).unwrap(), 0);
    // A new table of that name is another one, if the other side has both.
    b.app
        .execute_batch(
            "ALTER TABLE user RENAME TO person; CREATE TABLE user(id TEXT PRIMARY KEY, mail TEXT)",
        )
        .unwrap();
    let told = b.store.schema(Millis(b.now)).unwrap();
    assert_eq!(a.store.adopt(Millis(a.now), &told).unwrap().0, ["user"]);
}

#[test]
fn tables_that_swap_their_names_keep_their_rows() {
    let sql =
        "CREATE TABLE p(id INTEGER PRIMARY KEY, v); CREATE TABLE q(id INTEGER PRIMARY KEY, v)";
    let (mut a, mut b) = pair(sql, "INSERT INTO p VALUES(1, 'p'); INSERT INTO q VALUES(1, 'q')");
    let swap = "ALTER TABLE p RENAME TO r; ALTER TABLE q RENAME TO p; ALTER TABLE r RENAME TO q";
    a.run(swap);
    a.look();
    b.run(swap);
    assert_eq!((b.pull(&mut a), a.pull(&mut b)), (0, 0));
    a.run("UPDATE q SET v = 'P'");
    sync(&mut a, &mut b);
    assert_eq!(same(&a, &b, "SELECT p.v, q.v FROM p, q"), "q|P");
}

#[test]
fn a_table_of_another_kind_of_key_is_another_table() {
    let (mut a, mut b) = pair(NOTE, FILL);
    b.run(
        "CREATE TABLE n2(id TEXT PRIMARY KEY, title TEXT, body TEXT);
         INSERT INTO n2 SELECT 'k' || id, title, body FROM note; DROP TABLE note;
         ALTER TABLE n2 RENAME TO note",
    );
    b.look();
    sync(&mut a, &mut b);
    b.run("INSERT INTO note VALUES('k9', 'nine', NULL)");
    a.run("INSERT INTO note VALUES(9, 'neuf', NULL)");
    sync(&mut a, &mut b);
    assert_eq!(b.one("SELECT count(*) FROM note"), "4");
    assert_eq!(a.one("SELECT count(*) FROM note"), "4");
    let tables = report::tables(b.store.connection()).unwrap();
    let about: Vec<_> = tables.iter().filter(|table| table.name == "note").collect();
    assert!(about.iter().any(|table| table.tracked && table.rows == 4), "{about:?}");
    let kept = about.iter().find(|table| !table.tracked).unwrap();
    assert!(kept.rows == 4 && kept.reason.contains("PRIMARY KEY"), "{kept:?}");
    a.run(
        "CREATE TABLE n2(id TEXT PRIMARY KEY, title TEXT, body TEXT);
         INSERT INTO n2 SELECT 'k' || id, title, body FROM note; DROP TABLE note;
         ALTER TABLE n2 RENAME TO note",
    );
    sync(&mut a, &mut b);
    assert_eq!(same(&a, &b, "SELECT id, title FROM note ORDER BY id"), "k1|a k2|b k3|c k9|nine");
}

#[test]
fn a_dropped_column_stays_with_the_others() {
    let (mut a, mut b) = pair(NOTE, FILL);
    let refused = a.app.execute_batch("ALTER TABLE note DROP COLUMN body");
    assert!(refused.is_err(), "SQLite refuses while a trigger names the column");
    a.run("UPDATE note SET body = NULL WHERE id = 3");
    a.store.alter(Millis(a.now), "ALTER TABLE note DROP COLUMN body").unwrap();
    assert_eq!(a.rows("SELECT * FROM note ORDER BY id"), "1|a 2|b 3|c");
    assert_eq!(b.pull(&mut a), 1, "the update alone");
    b.run("UPDATE note SET body = 'B' WHERE id = 2");
    a.run("UPDATE note SET title = 'A' WHERE id = 1; INSERT INTO note VALUES(4, 'd')");
    sync(&mut a, &mut b);
    let rows = "1|A|x 2|b|B 3|c|- 4|d|-";
    assert_eq!(b.rows("SELECT * FROM note ORDER BY id"), rows);
    // Who joins later learns everything from the side that lacks the column.
    let mut c = Site::new(3, NOTE);
    c.pull(&mut a);
    assert_eq!(c.rows("SELECT * FROM note ORDER BY id"), rows);
    a.run("ALTER TABLE note ADD COLUMN body TEXT");
    a.look();
    assert_eq!(a.rows("SELECT id, title, body FROM note ORDER BY id"), rows);
    assert_eq!(a.parked(), 0);
    let other = a.store.alter(Millis(a.now), "DROP TABLE note").unwrap_err();
    assert!(other.to_string().contains("ALTER TABLE"), "{other}");
    let wrong = a.store.alter(Millis(a.now), "ALTER TABLE note DROP COLUMN nothing");
    assert!(wrong.is_err());
    a.run("UPDATE note SET title = 'still' WHERE id = 4");
    sync(&mut a, &mut b);
    assert_eq!(b.one("SELECT title FROM note WHERE id = 4"), "still");
}

#[test]
fn any_alter_table_goes_through_the_function() {
    let (mut a, mut b) = pair(NOTE, FILL);
    for sql in [
        "ALTER TABLE note ADD COLUMN extra DEFAULT 7",
        "alter table main.note rename column title to name;",
        "ALTER TABLE note RENAME TO memo",
    ] {
        a.store.alter(Millis(a.now), sql).unwrap();
        b.run(sql);
    }
    assert_eq!((b.pull(&mut a), a.pull(&mut b)), (0, 0));
    a.run("UPDATE memo SET name = 'n', extra = 8 WHERE id = 1");
    sync(&mut a, &mut b);
    assert_eq!(same(&a, &b, "SELECT * FROM memo WHERE id = 1"), "1|n|x|8");
}

#[test]
fn a_column_that_vanished_is_fetched_again() {
    let (mut a, mut b) = pair(NOTE, FILL);
    let before = a.own();
    a.run(
        "CREATE TABLE n2(id INTEGER PRIMARY KEY, title TEXT);
         INSERT INTO n2 SELECT id, title FROM note;
         DROP TABLE note; ALTER TABLE n2 RENAME TO note",
    );
    a.look();
    assert_ne!(a.own(), before, "what it claims to have is not here any more");
    sync(&mut a, &mut b);
    let mut c = Site::new(3, NOTE);
    c.pull(&mut a);
    assert_eq!(same(&b, &c, "SELECT * FROM note ORDER BY id"), "1|a|x 2|b|y 3|c|z");
    a.run("ALTER TABLE note ADD COLUMN body");
    a.look();
    assert_eq!(same(&a, &b, "SELECT * FROM note ORDER BY id"), "1|a|x 2|b|y 3|c|z");
}

#[test]
fn a_dropped_table_comes_back_from_the_others() {
    for engine_runs in [true, false] {
        let sql = format!("{NOTE}; CREATE TABLE other(id INTEGER PRIMARY KEY, v)");
        let (mut a, mut b) = pair(&sql, FILL);
        a.run("INSERT INTO other VALUES(1, 'o'); UPDATE note SET title = 'unseen' WHERE id = 3");
        a.run("DROP TABLE note");
        if !engine_runs {
            a.restart();
        }
        a.look();
        // Nobody is served rows without values.
        let mut c = Site::new(3, &sql);
        c.pull(&mut a);
        assert_eq!(c.one("SELECT count(*) FROM note"), "0");
        c.pull(&mut b);
        assert_eq!(c.rows("SELECT id, title FROM note ORDER BY id"), "1|a 2|b 3|c");
        b.run("UPDATE note SET title = 'B' WHERE id = 2; INSERT INTO note VALUES(4, 'd', 'w')");
        sync(&mut a, &mut b);
        assert_eq!((a.parked(), b.one("SELECT v FROM other").as_str()), (4, "o"));
        let mut c = Site::new(4, &sql);
        c.pull(&mut a);
        assert_eq!(c.one("SELECT count(*) FROM note"), "4", "kept rows are passed on");
        a.run(&format!("{NOTE}; INSERT INTO note VALUES(9, 'new', 'here')"));
        sync(&mut a, &mut b);
        let rows = same(&a, &b, "SELECT * FROM note ORDER BY id");
        assert_eq!(rows, "1|a|x 2|B|y 3|c|z 4|d|w 9|new|here");
        assert_eq!(a.parked(), 0);
        // Dropped and created again between two looks.
        a.run(&format!("UPDATE note SET body = 'q' WHERE id = 1; DROP TABLE note; {NOTE}"));
        a.run("INSERT INTO note VALUES(10, 'ten', NULL)");
        sync(&mut a, &mut b);
        let rows = same(&a, &b, "SELECT * FROM note ORDER BY id");
        assert_eq!(rows, "1|a|x 2|B|y 3|c|z 4|d|w 9|new|here 10|ten|-");
    }
}

#[test]
fn adding_a_column_to_a_large_table_makes_no_change_rows() {
    let fill = "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n LIMIT 20000)
                INSERT INTO note SELECT n, 't' || n, 'b' FROM n";
    let (mut a, mut b) = pair(NOTE, fill);
    let before = a.log_rows();
    a.run("ALTER TABLE note ADD COLUMN due TEXT DEFAULT 'none'");
    a.look();
    assert_eq!((a.log_rows(), b.pull(&mut a)), (before, 0));
    // Written while the triggers of before are still there.
    a.run("ALTER TABLE note ADD COLUMN level INTEGER");
    a.run("UPDATE note SET level = 5 WHERE id = 1");
    a.run("UPDATE note SET title = 'T', level = 6 WHERE id = 2");
    a.run("UPDATE note SET title = 'U' WHERE id = 3");
    a.run("INSERT INTO note VALUES(30000, 'x', 'y', 'z', 7)");
    assert_eq!(b.pull(&mut a), 4);
    b.run("ALTER TABLE note ADD COLUMN level INTEGER");
    b.run("ALTER TABLE note ADD COLUMN due DEFAULT 'none'");
    b.look();
    let rows = "SELECT id, title, due, level FROM note WHERE id IN (1, 2, 3, 30000) ORDER BY id";
    assert_eq!(same(&a, &b, rows), "1|t1|none|5 2|T|none|6 3|U|none|- 30000|x|z|7");
}

const REBUILD: &str =
    "CREATE TABLE new_note(id INTEGER PRIMARY KEY, title TEXT NOT NULL, body TEXT);
     INSERT INTO new_note SELECT id, title, body FROM note; DROP TABLE note;
     ALTER TABLE new_note RENAME TO note";

#[test]
fn a_rebuilt_table_goes_on() {
    for pragmas in ["", "PRAGMA foreign_keys=OFF;", "PRAGMA legacy_alter_table=ON;"] {
        for engine_runs in [true, false] {
            let (mut a, mut b) = pair(NOTE, FILL);
            let own = a.own();
            a.run(&format!("{pragmas} UPDATE note SET body = 'before' WHERE id = 1; {REBUILD}"));
            if !engine_runs {
                a.restart();
            }
            assert_eq!(b.pull(&mut a), 1, "the update before it");
            a.run("UPDATE note SET body = 'after' WHERE id = 2; DELETE FROM note WHERE id = 3");
            // Unseen by triggers: new rows are noticed.
            a.run(REBUILD);
            a.run("INSERT INTO note VALUES(7, 'seven', NULL)");
            sync(&mut a, &mut b);
            let rows = same(&a, &b, "SELECT * FROM note ORDER BY id");
            assert_eq!(rows, "1|a|before 2|b|after 7|seven|-");
            assert_eq!(a.own(), own, "nothing was lost");
        }
    }
}

#[test]
fn a_rebuild_in_sight_of_the_engine_goes_on() {
    let (mut a, mut b) = pair(NOTE, FILL);
    for step in REBUILD.split(';') {
        a.run(step);
        // The engine looks, and waits a little where the table seems to be dropped.
        let looked = a.store.write(Millis(a.now), |_| Ok(()));
        assert!(looked.is_ok() || (step.contains("DROP") && looked.unwrap_err().retryable()));
    }
    sync(&mut a, &mut b);
    a.run("UPDATE note SET body = 'after' WHERE id = 2");
    sync(&mut a, &mut b);
    assert_eq!(same(&a, &b, "SELECT * FROM note ORDER BY id"), "1|a|x 2|b|after 3|c|z");
    assert_eq!((a.parked(), b.parked()), (0, 0), "nothing of the interim table is left");
}

#[test]
fn rows_that_a_rebuild_left_out_come_back() {
    let (mut a, mut b) = pair(NOTE, FILL);
    a.run(&REBUILD.replace("FROM note;", "FROM note WHERE id <> 2;"));
    sync(&mut a, &mut b);
    assert_eq!(same(&a, &b, "SELECT * FROM note ORDER BY id"), "1|a|x 2|b|y 3|c|z");
}

#[test]
fn a_rebuild_of_any_kind_of_key_keeps_its_rows() {
    let sql = "CREATE TABLE pair(x, y, v, PRIMARY KEY(x, y)) WITHOUT ROWID";
    let fill = "INSERT INTO pair VALUES(1, 'k', 'v'), (0.5, x'00', 'w'), ('a', -1e99, 'u')";
    let (mut a, mut b) = pair(sql, fill);
    a.run(
        "CREATE TABLE p2(x, y, v, more, PRIMARY KEY(x, y)); INSERT INTO p2 SELECT *, 1 FROM pair;
         DROP TABLE pair; ALTER TABLE p2 RENAME TO pair",
    );
    let own = a.own();
    a.look();
    assert_eq!((b.pull(&mut a), a.own()), (0, own));
}

#[test]
fn what_happened_while_some_trigger_was_missing_is_noticed() {
    for letter in ["i", "u", "k", "d", "p"] {
        let table = "CREATE TABLE t(id TEXT PRIMARY KEY NOT NULL, name TEXT UNIQUE);";
        let (mut a, mut b) = pair(table, "INSERT INTO t VALUES ('one', 'x'), ('two', 'y')");
        a.run(&format!(
            "DROP TRIGGER __wavesync_{letter}_1; INSERT INTO t VALUES ('three', 'z');
             DELETE FROM t WHERE id = 'two'"
        ));
        a.restart();
        a.look();
        sync(&mut a, &mut b);
        // What is not known to have been deleted comes back.
        let two = if letter == "d" { ",two" } else { "" };
        let ids = same(&a, &b, "SELECT group_concat(id) FROM (SELECT id FROM t ORDER BY id)");
        assert_eq!(ids, format!("one,three{two}"), "without {letter}");
    }
}

#[test]
fn indexes_come_and_go() {
    let (mut a, mut b) = pair(NOTE, FILL);
    a.run("CREATE INDEX i ON note(body); CREATE UNIQUE INDEX u ON note(title)");
    a.look();
    a.run("INSERT OR REPLACE INTO note VALUES(9, 'a', 'replaced')");
    sync(&mut a, &mut b);
    assert_eq!(same(&a, &b, "SELECT * FROM note ORDER BY id"), "2|b|y 3|c|z 9|a|replaced");
    a.run("DROP INDEX u; DROP INDEX i");
    a.look();
    let left = "SELECT count(*) FROM sqlite_schema WHERE type = 'trigger'";
    assert_eq!(a.one(left), "4");
    a.run("INSERT INTO note VALUES(10, 'a', NULL)");
    sync(&mut a, &mut b);
    assert_eq!(b.one("SELECT count(*) FROM note WHERE title = 'a'"), "2");
}

#[test]
fn forgetting_after_all_of_this_leaves_the_plain_tables() {
    let (mut a, mut b) = pair(NOTE, FILL);
    a.run("ALTER TABLE note RENAME title TO name; ALTER TABLE note RENAME TO memo");
    a.look();
    a.store.alter(Millis(a.now), "ALTER TABLE memo DROP COLUMN body").unwrap();
    a.run("CREATE TABLE gone(id INTEGER PRIMARY KEY, v)");
    a.look();
    a.run("DROP TABLE gone; CREATE UNIQUE INDEX u ON memo(name)");
    sync(&mut a, &mut b);
    a.store.forget().unwrap();
    assert_eq!(a.rows("SELECT name FROM sqlite_schema ORDER BY name"), "memo u");
    assert_eq!(a.rows("SELECT * FROM memo ORDER BY id"), "1|a 2|b 3|c");
    a.app.execute_batch("UPDATE memo SET name = 'free' WHERE id = 1").unwrap();
}

#[test]
fn what_happened_while_a_table_was_not_tracked_is_noticed() {
    let (mut a, mut b) = pair(NOTE, FILL);
    a.store.untrack(Millis(a.now), "note").unwrap();
    a.run("INSERT INTO note VALUES(4, 'd', NULL)");
    a.store.track(Millis(a.now), "note").unwrap();
    sync(&mut a, &mut b);
    assert_eq!(same(&a, &b, "SELECT id FROM note ORDER BY id"), "1 2 3 4");
}

#[test]
fn what_an_untracked_table_holds_is_not_claimed_and_reaches_others_all_the_same() {
    let (mut a, mut b) = pair(NOTE, FILL);
    let mut c = Site::new(3, NOTE);
    b.store.untrack(Millis(b.now), "note").unwrap();
    b.run("UPDATE note SET title = 'unseen' WHERE id = 1; DELETE FROM note WHERE id = 2");
    b.run("INSERT INTO note VALUES(9, 'new here', NULL)");
    a.run("INSERT INTO note VALUES(4, 'd', NULL); UPDATE note SET body = 'later' WHERE id = 3");
    sync(&mut a, &mut b);
    // The third replica never meets the first one.
    sync(&mut b, &mut c);
    let of_a = "SELECT * FROM note ORDER BY id";
    assert_eq!(same(&a, &c, of_a), "1|a|x 2|b|y 3|c|later 4|d|-");
    assert_eq!(b.rows("SELECT id, title FROM note ORDER BY id"), "1|unseen 3|c 9|new here");
    b.store.track(Millis(b.now), "note").unwrap();
    sync(&mut a, &mut b);
    sync(&mut b, &mut c);
    let all = "1|a|x 2|b|y 3|c|later 4|d|- 9|new here|-";
    assert_eq!(same(&a, &b, of_a), all);
    assert_eq!(same(&a, &c, of_a), all);
    let kept = "SELECT ours || theirs FROM __wavesync_conflict WHERE k = 1";
    assert_eq!(b.rows(kept), "{\"title\": \"unseen\"}{\"title\": \"a\"}");
    assert_eq!(b.parked(), 0);
}

#[test]
fn a_table_that_is_dropped_and_filled_again_has_each_row_once() {
    for learns_first in [false, true] {
        for sql in [NOTE, "CREATE TABLE note(id TEXT PRIMARY KEY NOT NULL, title TEXT, body TEXT)"]
        {
            let (mut a, mut b) = pair(sql, FILL);
            let mut c = Site::new(3, sql);
            a.run("UPDATE note SET body = 'of a' WHERE id = 1");
            sync(&mut a, &mut b);
            sync(&mut b, &mut c);
            a.run("DROP TABLE note");
            a.look();
            if learns_first {
                a.pull(&mut b);
            }
            a.run(&format!("{sql}; {FILL}"));
            a.look();
            a.run("UPDATE note SET title = 'again' WHERE id = 2");
            sync(&mut a, &mut b);
            sync(&mut b, &mut c);
            let rows = "SELECT * FROM note ORDER BY id";
            assert_eq!(same(&a, &b, rows), "1|a|of a 2|again|y 3|c|z", "{sql}, {learns_first}");
            same(&b, &c, rows);
            assert_eq!(a.parked(), 0);
        }
    }
}

const COUNTED: &str = "CREATE TABLE note(id INTEGER PRIMARY KEY, title TEXT, body TEXT);
    CREATE TABLE tally(id INTEGER PRIMARY KEY, n);
    CREATE TRIGGER counted AFTER INSERT ON note BEGIN
      INSERT INTO tally(id, n) VALUES(1, 1) ON CONFLICT(id) DO UPDATE SET n = n + 1; END";

#[test]
fn a_table_with_triggers_of_the_application_gets_a_column() {
    let (mut a, mut b) = pair(COUNTED, "INSERT INTO note VALUES(1, 'a', 'x')");
    a.run("INSERT INTO note VALUES(2, 'b', 'y')");
    sync(&mut a, &mut b);
    for site in [&mut a, &mut b] {
        site.run("ALTER TABLE note ADD COLUMN due; ALTER TABLE tally ADD COLUMN more");
        site.look();
    }
    a.run("INSERT INTO note VALUES(3, 'c', 'z', 'soon'); UPDATE note SET due = 'now' WHERE id = 2");
    sync(&mut a, &mut b);
    assert_eq!(same(&a, &b, "SELECT id, due FROM note ORDER BY id"), "1|- 2|now 3|soon");
    assert_eq!(same(&a, &b, "SELECT n FROM tally"), "3");
}

#[test]
fn a_column_of_a_database_with_triggers_of_the_application_is_dropped() {
    let (mut a, mut b) = pair(COUNTED, "INSERT INTO note VALUES(1, 'a', 'x')");
    b.run("INSERT INTO note VALUES(2, 'b', 'y')");
    sync(&mut a, &mut b);
    a.store.alter(Millis(a.now), "ALTER TABLE note DROP COLUMN body").unwrap();
    b.run("INSERT INTO note VALUES(3, 'c', 'z')");
    sync(&mut a, &mut b);
    assert_eq!(a.rows("SELECT * FROM note ORDER BY id"), "1|a 2|b 3|c");
    assert_eq!(same(&a, &b, "SELECT n FROM tally"), "3");
}

#[test]
fn a_column_that_comes_with_a_rename_shows_what_was_kept_for_it() {
    let old = "CREATE TABLE note(k TEXT PRIMARY KEY NOT NULL, a)";
    let mut a = Site::new(1, old);
    let mut b = Site::new(2, &format!("{old}; ALTER TABLE note ADD COLUMN z DEFAULT 7"));
    let mut c = Site::new(3, "CREATE TABLE memo(k TEXT PRIMARY KEY NOT NULL, a, z DEFAULT 7)");
    b.run("INSERT INTO note VALUES('one', 1, 'old'), ('two', 2, 'two')");
    c.run("INSERT INTO memo VALUES('one', 1, 'new'), ('three', 3, 'three')");
    a.pull(&mut b);
    a.pull(&mut c);
    assert_eq!(a.rows("SELECT * FROM note ORDER BY k"), "one|1 two|2");
    a.run("ALTER TABLE note ADD COLUMN z DEFAULT 7; ALTER TABLE note RENAME TO memo");
    a.look();
    assert_eq!(a.rows("SELECT * FROM memo ORDER BY k"), "one|1|new three|3|three two|2|two");
    assert_eq!(a.parked(), 0);
}

#[test]
fn what_comes_under_both_names_of_a_column_is_the_newer_of_the_two() {
    let old = "CREATE TABLE note(k TEXT PRIMARY KEY NOT NULL, a)";
    let mut a = Site::new(1, old);
    let mut b = Site::new(2, old);
    // It was installed later, and knows of no other name.
    let mut c = Site::new(3, "CREATE TABLE note(k TEXT PRIMARY KEY NOT NULL, b)");
    b.run("INSERT INTO note VALUES('one', 'first'), ('two', 'first')");
    c.pull(&mut b);
    a.pull(&mut c);
    c.run("UPDATE note SET b = 'second' WHERE k = 'one'");
    b.run("UPDATE note SET a = 'third' WHERE k = 'two'");
    c.pull(&mut b);
    a.run("ALTER TABLE note RENAME a TO b");
    a.pull(&mut c);
    assert_eq!(a.rows("SELECT * FROM note ORDER BY k"), "one|second two|third");
    assert_eq!(a.parked(), 0);
    let told = a.store.schema(Millis(a.now)).unwrap();
    c.app.execute("UPDATE __wavesync_meta SET value = 1 WHERE key = 'adopt'", []).unwrap();
    assert!(c.store.adopt(Millis(a.now), &told).unwrap().1, "a name is new");
    assert!(!c.store.adopt(Millis(a.now), &told).unwrap().1, "and known from then on");
    assert_eq!(c.rows("SELECT * FROM note ORDER BY k"), "one|second two|third");
    assert_eq!(c.parked(), 0);
    assert_eq!((a.pull(&mut c), c.pull(&mut a)), (0, 0), "both hold the same");
}

#[test]
fn a_former_name_is_that_of_the_last_one_that_had_it() {
    let (mut a, mut b) = pair(
        "CREATE TABLE log(k TEXT PRIMARY KEY NOT NULL, a)",
        "INSERT INTO log VALUES('one', 1)",
    );
    // Each year the table is put aside, and begun anew.
    a.run("ALTER TABLE log RENAME TO log_2025");
    a.look();
    let told = |a: &mut Site| -> Vec<(String, Vec<String>)> {
        let tables = a.store.schema(Millis(a.now)).unwrap();
        tables.into_iter().map(|table| (table.name, table.former)).collect()
    };
    assert_eq!(told(&mut a), [("log_2025".to_string(), vec!["log".to_string()])]);
    a.run("CREATE TABLE log(k TEXT PRIMARY KEY NOT NULL, a)");
    a.look();
    // What stands here under the name is what is meant by it.
    assert!(told(&mut a).iter().all(|(_, former)| former.is_empty()), "{:?}", told(&mut a));
    a.run("ALTER TABLE log RENAME TO log_2026; ALTER TABLE log_2026 RENAME a TO b");
    a.look();
    a.run("ALTER TABLE log_2026 ADD COLUMN a");
    a.look();
    a.run("ALTER TABLE log_2026 RENAME a TO c");
    // Another kind of key is another table.
    a.run("CREATE TABLE log(id INTEGER PRIMARY KEY, a)");
    a.look();
    a.run("ALTER TABLE log RENAME TO counted");
    a.look();
    b.run("INSERT INTO log VALUES('two', 2)");
    a.pull(&mut b);
    assert_eq!(a.rows("SELECT k FROM log_2025"), "one");
    assert_eq!(a.rows("SELECT k, b, c FROM log_2026"), "two|-|2");
    assert_eq!(a.rows("SELECT * FROM counted"), "");
}
