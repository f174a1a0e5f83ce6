//! A file that an earlier build wrote opens, goes on and syncs, for ever. The fixture is made once by
//! the build of its time; a later form of the same format gets a fixture of its own beside it.
#![allow(clippy::unwrap_used)]

mod site;

use std::path::{Path, PathBuf};

use rusqlite::Connection;
use site::{NOW, Site, content};
use wavesync_core::ids::{Millis, SiteId, Stamp};
use wavesync_core::limits::Bounds;
use wavesync_core::value::Value;

/// Format 1 as it was before `__wavesync_past`.
const FIRST: &str = "tests/fixtures/format-1-first.db";

const SQL: &str = "
    CREATE TABLE num(id INTEGER PRIMARY KEY, a, b);
    CREATE TABLE txt(k TEXT PRIMARY KEY NOT NULL, a, b);
    CREATE TABLE pair(x, y, v, PRIMARY KEY(x, y)) WITHOUT ROWID;
    CREATE TABLE uni(k TEXT PRIMARY KEY NOT NULL, n UNIQUE);
    CREATE TABLE par(k TEXT PRIMARY KEY NOT NULL);
    CREATE TABLE kid(k TEXT PRIMARY KEY NOT NULL, p REFERENCES par(k));
    INSERT INTO num VALUES(1, 'before', 1.5), (2, 'before', x'00ff');
    INSERT INTO txt VALUES('before', 1, NULL);";

fn day(days: u64) -> Millis {
    Millis(NOW.0 + days * 86_400_000)
}

/// Everything that the format has a place for, and a last write that nobody has folded.
fn fill(a: &mut Site, b: &mut Site) {
    b.run("ALTER TABLE txt ADD COLUMN z; CREATE TABLE other(k TEXT PRIMARY KEY, v)");
    a.run("INSERT INTO num VALUES(7, 'a', 1); INSERT INTO par VALUES('p')");
    a.run("INSERT INTO txt VALUES('dead', 1, 1), ('edited', 1, 1); INSERT INTO pair VALUES(1, 'y', 2.5)");
    a.fold(NOW);
    b.pull(a, NOW);
    a.run("DELETE FROM txt WHERE k = 'dead'; DELETE FROM par; DELETE FROM txt WHERE k = 'edited'");
    a.fold(NOW);
    b.run("INSERT INTO num VALUES(8, 'b', 1); INSERT INTO uni VALUES('b', 1)");
    b.run("INSERT INTO other VALUES('k', 'v'); INSERT INTO kid VALUES('orphan', 'p')");
    b.run("INSERT INTO txt(k, z) VALUES('with z', 'z'); UPDATE txt SET a = 2 WHERE k = 'edited'");
    a.run("INSERT INTO num VALUES(8, 'a', 2); INSERT INTO uni VALUES('a', 1); UPDATE num SET b = 3 WHERE id = 1");
    a.fold(NOW);
    b.fold(NOW);
    b.run("INSERT INTO txt(k) VALUES('held')");
    b.fold(day(1));
    a.pull(b, NOW);
    let stranger = SiteId([77; 16]);
    a.store.take_caps(NOW, &[(stranger, Stamp(5))].into_iter().collect()).unwrap();
    a.store.set_bounds(Bounds { log_keep_rows: 4, log_trim_rows: 1, ..Bounds::default() });
    while a.store.trim_block(NOW, &[]).unwrap() {}
    a.run("INSERT INTO txt VALUES('unfolded', 1, 1)");
}

/// Makes the fixture: for the build of its time, never again.
#[test]
#[ignore = "a fixture is made once"]
fn make() {
    let path = Path::new(FIRST);
    assert!(!path.exists(), "a fixture stays as it is");
    let [mut a, mut b] = [1, 2].map(|number| Site::enforcing(number, SQL, true));
    fill(&mut a, &mut b);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let sql = format!("PRAGMA page_size = 512; VACUUM INTO '{}'", path.display());
    a.app.execute_batch(&sql).unwrap();
}

fn fixture() -> Site {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join(FIRST);
    Site::of_file(1, &path)
}

fn kinds(site: &Site) -> Vec<String> {
    let sql = "SELECT kind FROM __wavesync_parked ORDER BY kind";
    let mut statement = site.app.prepare(sql).unwrap();
    statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

#[test]
fn a_file_of_the_first_form_of_format_1_keeps_all_that_it_holds() {
    let tables = |conn: &Connection| -> i64 {
        let sql = "SELECT count(*) FROM sqlite_schema WHERE name = '__wavesync_past'";
        conn.query_row(sql, [], |row| row.get(0)).unwrap()
    };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(FIRST);
    assert_eq!(tables(&Connection::open(&path).unwrap()), 0, "the fixture is what it was");
    let mut site = fixture();
    let before = site.own_site();
    site.fold(NOW);
    assert_eq!(tables(&site.app), 1, "what was added since is created");
    assert_eq!(site.own_site(), before);
    assert_eq!(kinds(&site), ["foreign_key", "unique", "unknown_column", "unknown_table"]);
    let image = site.image();
    assert_eq!(image.tables["txt"].held.len(), 1);
    assert!(image.tables["txt"].rows.contains_key(&Value::text("unfolded")));
    assert!(image.tables["num"].rows.keys().any(|key| *key < Value::Integer(0)), "a row moved");
    assert_eq!(site.store.own_state(NOW).unwrap().caps.len(), 1);
    let conflicts = "SELECT count(*) FROM __wavesync_conflict";
    assert_eq!(site.app.query_row(conflicts, [], |row| row.get(0)), Ok(1));
    // What is new for it works: it forgets a table and remembers the site that it had.
    site.store.untrack(NOW, "pair").unwrap();
    site.restart();
    let past = "SELECT count(*) FROM __wavesync_past";
    assert_eq!(site.app.query_row(past, [], |row| row.get(0)), Ok(1));
    assert_ne!(site.own_site(), before);
}

#[test]
fn a_file_of_the_first_form_of_format_1_syncs_and_converges() {
    let mut old = fixture();
    let mut new = Site::enforcing(3, SQL, true);
    new.run("ALTER TABLE txt ADD COLUMN z; INSERT INTO num VALUES(20, 'new', 1)");
    new.fold(NOW);
    let exchange = |old: &mut Site, new: &mut Site, now: Millis| {
        old.fold(now);
        new.fold(now);
        new.pull(old, now);
        old.pull(new, now);
        new.pull(old, now);
    };
    exchange(&mut old, &mut new, NOW);
    old.run("UPDATE txt SET b = 'old' WHERE k = 'before'; DELETE FROM pair");
    new.run("UPDATE txt SET a = 'new' WHERE k = 'before'; DELETE FROM uni WHERE k = 'a'");
    exchange(&mut old, &mut new, NOW);
    // The held row's time comes.
    for site in [&mut old, &mut new] {
        while site.store.own_state(day(2)).unwrap().release_at.is_some() {
            site.store.release(day(2)).unwrap();
        }
    }
    exchange(&mut old, &mut new, day(2));
    let rows = |site: &Site| {
        let all = content(&site.image());
        all.into_iter()
            .map(|(name, (rows, _))| (name, rows.into_keys().collect::<Vec<_>>()))
            .collect::<Vec<_>>()
    };
    assert_eq!(rows(&old), rows(&new));
    for name in ["num", "uni", "par", "kid", "pair"] {
        let (old, new) = (old.image(), new.image());
        assert_eq!(old.tables[name].shown, new.tables[name].shown, "{name}");
    }
    let both = "SELECT a || b FROM txt WHERE k = 'before'";
    assert_eq!(old.app.query_row(both, [], |row| row.get(0)), Ok("newold".to_string()));
    let shown = "SELECT count(*) FROM txt WHERE k IN ('held', 'with z', 'unfolded')";
    for site in [&old, &new] {
        assert_eq!(site.app.query_row(shown, [], |row| row.get(0)), Ok(3));
    }
}
