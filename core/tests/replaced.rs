//! What a plain SQLite writer removes or declares in ways that one does not think of first.
#![allow(clippy::unwrap_used)]

mod site;

use site::Site;
use wavesync_core::ids::Stamp;

/// Two replicas of one database.
fn two(sql: &str) -> [Site; 2] {
    let mut sites = [Site::new(1, sql), Site::new(2, sql)];
    meet(&mut sites);
    sites
}

fn send(from: &mut Site, to: &mut Site) {
    let site = from.own_site();
    for piece in from.pieces(500) {
        to.apply(site, &piece).unwrap();
    }
}

fn meet(sites: &mut [Site; 2]) {
    let [one, two] = sites;
    send(one, two);
    send(two, one);
}

fn read(site: &Site, sql: &str) -> String {
    let mut statement = site.app.prepare(sql).unwrap();
    let columns = statement.column_count();
    let rows = statement.query_map([], |row| {
        let cell = |at| {
            Ok(match row.get_ref(at)? {
                rusqlite::types::ValueRef::Null => "NULL".to_string(),
                rusqlite::types::ValueRef::Integer(integer) => integer.to_string(),
                rusqlite::types::ValueRef::Real(real) => format!("{real:?}"),
                rusqlite::types::ValueRef::Text(text) => String::from_utf8_lossy(text).into_owned(),
                rusqlite::types::ValueRef::Blob(_) => "blob".to_string(),
            })
        };
        Ok((0..columns).map(cell).collect::<rusqlite::Result<Vec<_>>>()?.join("|"))
    });
    rows.unwrap().collect::<rusqlite::Result<Vec<_>>>().unwrap().join(" ")
}

/// Both hold this.
fn both(sites: &[Site; 2], sql: &str, wanted: &str) {
    for (at, site) in sites.iter().enumerate() {
        assert_eq!(read(site, sql), wanted, "at {at}");
    }
}

/// The notes of a write that came to nothing are none for the next one.
#[test]
fn a_write_that_is_ignored_deletes_nothing_later() {
    for write in [
        "INSERT OR IGNORE INTO tag(name, used) VALUES('work', 1)",
        "INSERT INTO tag(name, used) VALUES('work', 1) ON CONFLICT DO NOTHING",
        "INSERT INTO tag(name, used) VALUES('work', 1)
             ON CONFLICT(name) DO UPDATE SET used = used + 1",
    ] {
        let sql = "CREATE TABLE tag(id INTEGER PRIMARY KEY, name UNIQUE, used)";
        let mut sites = two(sql);
        sites[0].run("INSERT INTO tag VALUES(7, 'work', 0)");
        meet(&mut sites);
        for _ in 0..5 {
            sites[0].run(write);
        }
        assert!(read(&sites[0], "SELECT count(*) <= 1 FROM __wavesync_gone") == "1", "they grow");
        meet(&mut sites);
        let before = read(&sites[0], "SELECT max(seq) FROM __wavesync_log");
        sites[0].run("DELETE FROM tag WHERE id = 7; INSERT INTO tag VALUES(8, 'home', 0)");
        let deletes =
            format!("SELECT count(*) FROM __wavesync_log WHERE seq > {before} AND cols IS NULL");
        assert_eq!(read(&sites[0], &deletes), "1", "{write}");
        meet(&mut sites);
        both(&sites, "SELECT id, name FROM tag", "8|home");
    }
}

/// A trigger of the application writes another table between the note and the look at it.
#[test]
fn what_replace_removes_is_seen_beside_triggers_that_write_other_tables() {
    for at in ["AFTER", "BEFORE"] {
        let sql = format!(
            "CREATE TABLE item(id INTEGER PRIMARY KEY, sku UNIQUE);
             CREATE TABLE tag(id INTEGER PRIMARY KEY, name UNIQUE);
             CREATE TRIGGER old {at} INSERT ON item BEGIN
                 INSERT OR IGNORE INTO tag(name) VALUES('o' || NEW.sku); END"
        );
        let mut sites = two(&sql);
        sites[0].run(&format!(
            "CREATE TRIGGER new {at} INSERT ON item BEGIN
                 INSERT OR IGNORE INTO tag(name) VALUES('n' || NEW.sku); END"
        ));
        sites[0].run("INSERT INTO item VALUES(1, 'x')");
        meet(&mut sites);
        sites[0].run("INSERT OR REPLACE INTO item VALUES(2, 'x')");
        meet(&mut sites);
        both(&sites, "SELECT * FROM item", "2|x");
    }
}

/// Equal to SQLite, but not to us: the key's own index removes the row.
#[test]
fn replace_through_a_key_of_other_bytes_is_a_delete() {
    let sql = "CREATE TABLE nc(k TEXT COLLATE NOCASE PRIMARY KEY, v);
        CREATE TABLE pair(a, b, v, PRIMARY KEY(a, b));
        CREATE TABLE flat(k TEXT COLLATE NOCASE PRIMARY KEY, v) WITHOUT ROWID";
    let mut sites = two(sql);
    sites[0].run("INSERT INTO nc VALUES('abc', 1); INSERT INTO flat VALUES('abc', 1)");
    sites[0].run("INSERT INTO pair VALUES(1, 1, 1)");
    meet(&mut sites);
    sites[0].run("INSERT OR REPLACE INTO nc VALUES('ABC', 2)");
    sites[0].run("INSERT OR REPLACE INTO flat VALUES('ABC', 2)");
    sites[0].run("INSERT OR REPLACE INTO pair VALUES(1.0, 1, 2)");
    meet(&mut sites);
    both(&sites, "SELECT * FROM nc", "ABC|2");
    both(&sites, "SELECT * FROM flat", "ABC|2");
    both(&sites, "SELECT * FROM pair", "1.0|1|2");
    sites[1].run("INSERT INTO nc VALUES('d', 3), ('e', 4)");
    meet(&mut sites);
    sites[1].run("UPDATE OR REPLACE nc SET k = 'E' WHERE k = 'd'");
    meet(&mut sites);
    both(&sites, "SELECT * FROM nc ORDER BY k", "ABC|2 E|3");
    both(&sites, "SELECT count(*) FROM __wavesync_parked", "0");
}

/// SQLite takes a partial index whose WHERE names its table.
#[test]
fn a_condition_of_an_index_may_name_its_table() {
    let sql = "CREATE TABLE users(id INTEGER PRIMARY KEY, email TEXT, deleted);
        CREATE UNIQUE INDEX u ON users(lower(email)) WHERE users.deleted IS NULL";
    let mut sites = two(sql);
    sites[0].run("INSERT INTO users VALUES(1, 'a', NULL), (2, 'b', NULL)");
    meet(&mut sites);
    sites[0].run("INSERT OR REPLACE INTO users VALUES(3, 'A', NULL)");
    sites[0].run("UPDATE OR REPLACE users SET email = 'B' WHERE id = 3");
    meet(&mut sites);
    both(&sites, "SELECT id, email FROM users", "3|B");
    sites[0].run("ALTER TABLE users RENAME TO people");
    sites[0].run("INSERT INTO people VALUES(4, 'c', NULL)");
    sites[0].run("REPLACE INTO people VALUES(5, 'C', NULL)");
    meet(&mut sites);
    assert_eq!(read(&sites[0], "SELECT id FROM people ORDER BY id"), "3 5");
}

/// A default may be a bare word, which is text.
#[test]
fn a_default_that_is_no_expression_keeps_nobody_from_syncing() {
    for (default, value) in [("active", "active"), ("\"in use\"", "in use"), ("+7", "7")] {
        let sql = "CREATE TABLE t(id INTEGER PRIMARY KEY, x)";
        let mut sites = two(sql);
        sites[0].run("INSERT INTO t VALUES(1, 1), (2, 2)");
        meet(&mut sites);
        let add = format!("ALTER TABLE t ADD COLUMN status TEXT DEFAULT {default}");
        sites[0].run(&format!(
            "BEGIN; {add}; UPDATE t SET x = 5 WHERE id = 1;
            UPDATE t SET status = 'other' WHERE id = 2; COMMIT"
        ));
        sites[1].run(&add);
        meet(&mut sites);
        both(&sites, "SELECT * FROM t", &format!("1|5|{value} 2|2|other"));
    }
}

/// A UNIQUE index that came while no engine looked has no trigger yet.
#[test]
fn what_replace_removed_through_an_index_that_was_new_is_deleted() {
    let sql = "CREATE TABLE t(id INTEGER PRIMARY KEY, name, v)";
    let mut sites = two(sql);
    sites[0].run("INSERT INTO t VALUES(1, 'x', 1), (5, 'y', 5)");
    meet(&mut sites);
    sites[0].run("CREATE UNIQUE INDEX u ON t(name); INSERT OR REPLACE INTO t VALUES(2, 'x', 2)");
    sites[0].run("DELETE FROM t WHERE id = 5; INSERT INTO t VALUES(6, 'z', 6)");
    meet(&mut sites);
    both(&sites, "SELECT id, name FROM t ORDER BY id", "2|x 6|z");
}

fn refused(site: &Site) -> Vec<String> {
    let survey = wavesync_core::store::shape::survey(&site.app).unwrap();
    survey.into_iter().filter_map(|entry| entry.err().map(|refusal| refusal.name)).collect()
}

/// What names of its own a module gives to its tables is not known.
#[test]
fn tables_of_other_modules_are_left_to_them() {
    let site = Site::new(1, "CREATE TABLE t(id INTEGER PRIMARY KEY)");
    // A module that is not loaded here leaves its declaration, as in a file of another program.
    site.run(
        "CREATE TABLE vec_chunks(chunk_id INTEGER PRIMARY KEY, data);
         CREATE TABLE vectors(id INTEGER PRIMARY KEY, data);
         CREATE VIRTUAL TABLE words USING fts5(word);
         CREATE TABLE words_old(id INTEGER PRIMARY KEY, word);
         PRAGMA writable_schema = ON;
         INSERT INTO sqlite_schema(type, name, tbl_name, rootpage, sql)
             VALUES('table', 'vec', 'vec', 0, 'CREATE VIRTUAL TABLE vec USING vec0(e float[4])');
         PRAGMA writable_schema = RESET",
    );
    let refused = refused(&site);
    let is = |name: &str| refused.iter().any(|refused| refused == name);
    assert!(is("vec") && is("vec_chunks") && is("words") && is("words_data"), "{refused:?}");
    assert!(!is("vectors") && !is("words_old"), "{refused:?}");
}

/// Packed keys are made of bytes.
#[test]
fn a_key_of_several_columns_needs_utf_8() {
    let site = Site::new(
        1,
        "PRAGMA encoding = 'UTF-16';
         CREATE TABLE pair(a TEXT, b INT, v, PRIMARY KEY(a, b));
         CREATE TABLE one(k TEXT PRIMARY KEY, v)",
    );
    assert_eq!(read(&site, "PRAGMA encoding"), "UTF-16le");
    assert_eq!(refused(&site), ["pair"]);
}

/// The table's own answer to a conflict is for its own programs. What another replica decided is written as
/// it is, or not at all.
#[test]
fn an_update_of_another_replica_replaces_and_ignores_nothing() {
    let read = "SELECT * FROM r ORDER BY id";
    for clause in ["ON CONFLICT REPLACE", "on  conflict ignore", "ON/**/\nCONFLICT ROLLBACK"] {
        let sql =
            format!("CREATE TABLE r(id TEXT PRIMARY KEY NOT NULL, n TEXT UNIQUE {clause}, v)");
        let mut sites = two(&sql);
        sites[0].run("INSERT INTO r VALUES('1', 'x', 'v1'), ('2', 'y', 'v2')");
        meet(&mut sites);
        sites[0].run("UPDATE r SET n = 'tmp' WHERE id = '2'");
        sites[0].run("UPDATE r SET n = 'y' WHERE id = '1'");
        meet(&mut sites);
        both(&sites, read, "1|y|v1 2|tmp|v2");
        // Both claim one name.
        sites[0].run("UPDATE r SET n = 'z' WHERE id = '1'");
        sites[1].run("UPDATE r SET n = 'z' WHERE id = '2'; INSERT INTO r VALUES('3', 'w', 'v3')");
        meet(&mut sites);
        meet(&mut sites);
        let shown = self::read(&sites[0], read);
        both(&sites, read, &shown);
        let parked = "SELECT count(*) FROM __wavesync_parked";
        both(&sites, parked, "1");
        assert!(shown.contains("3|w|v3"), "{clause}: {shown}");
    }
}

/// SQLite compares a reference with its parent by the parent's collation and affinity.
#[test]
fn a_child_of_other_bytes_waits_for_its_parent_on_both_sides() {
    for (sql, parent, child) in [
        (
            "CREATE TABLE u(email TEXT PRIMARY KEY NOT NULL COLLATE NOCASE);
             CREATE TABLE p(id TEXT PRIMARY KEY NOT NULL, author TEXT REFERENCES u)",
            "'Bob'",
            "'bob'",
        ),
        (
            "CREATE TABLE u(n INTEGER PRIMARY KEY); CREATE TABLE p(id TEXT PRIMARY KEY NOT NULL, n REFERENCES u)",
            "7",
            "'7'",
        ),
        (
            "CREATE TABLE u(k TEXT PRIMARY KEY NOT NULL, name TEXT UNIQUE COLLATE NOCASE);
             CREATE TABLE p(id TEXT PRIMARY KEY NOT NULL, author TEXT REFERENCES u(name))",
            "1, 'Bob'",
            "'bob'",
        ),
    ] {
        let mut sites = [1, 2].map(|number| Site::enforcing(number, sql, true));
        meet(&mut sites);
        sites[0].run(&format!("INSERT INTO u VALUES({parent})"));
        meet(&mut sites);
        sites[0].run("DELETE FROM u");
        sites[1].run(&format!("INSERT INTO p VALUES('p1', {child})"));
        meet(&mut sites);
        meet(&mut sites);
        both(&sites, "SELECT count(*) FROM u", "0");
        both(&sites, "SELECT count(*) FROM p", "0");
        both(&sites, "SELECT count(*) FROM pragma_foreign_key_check", "0");
        sites[0].run(&format!("INSERT INTO u VALUES({parent})"));
        meet(&mut sites);
        both(&sites, "SELECT id FROM p", "p1");
    }
}

/// A trigger that refuses rows costs as much for each of them as for one.
#[test]
fn rows_that_a_trigger_refuses_are_decided_on_once() {
    let sql = "CREATE TABLE t(id INTEGER PRIMARY KEY, n)";
    let forbid =
        "CREATE TRIGGER v BEFORE INSERT ON t WHEN NEW.n < 0 BEGIN SELECT RAISE(ABORT, 'no'); END";
    let cost = |rows: i64| {
        let mut sites = two(sql);
        sites[1].run(forbid);
        sites[0].run(&format!(
            "WITH RECURSIVE i(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM i WHERE i < {rows})
             INSERT INTO t SELECT i, iif(i % 10 = 0, 1, -1) FROM i"
        ));
        let [one, two] = &mut sites;
        two.store.examined();
        send(one, two);
        assert_eq!(read(two, "SELECT count(*) FROM t"), (rows / 10).to_string());
        assert_eq!(
            read(two, "SELECT count(*) FROM __wavesync_parked"),
            (rows - rows / 10).to_string()
        );
        two.store.examined()
    };
    let (few, many) = (cost(50), cost(500));
    assert!(few > 0 && many <= 20 * few, "{few} for 50, {many} for 500");
}

/// What a database wrote under a site that it had before is its own still.
#[test]
fn references_that_were_written_under_a_former_site_follow() {
    let mut sites = two("CREATE TABLE note(id INTEGER PRIMARY KEY, body);
         CREATE TABLE comment(id TEXT PRIMARY KEY NOT NULL, note INTEGER REFERENCES note)");
    sites[0].run("INSERT INTO note VALUES(1, 'of one')");
    sites[0].fold(site::NOW);
    sites[1].run("INSERT INTO note VALUES(1, 'of two'); INSERT INTO comment VALUES('c', 1)");
    sites[1].fold(site::NOW);
    let former = sites[1].own_site();
    sites[1].store.renew_identity(Stamp::at(site::NOW.0.cast_signed()), &[7; 64]).unwrap();
    sites[1].restart();
    assert_ne!(sites[1].own_site(), former);
    meet(&mut sites);
    meet(&mut sites);
    let read = "SELECT body FROM comment JOIN note ON note.id = comment.note";
    both(&sites, read, "of two");
}

/// A row whose own key names one that moved stays where it is, and its replica says so.
#[test]
fn a_key_that_names_a_row_that_moved_is_told_of() {
    let mut sites = two("CREATE TABLE note(id INTEGER PRIMARY KEY, body);
         CREATE TABLE tagged(note INTEGER NOT NULL REFERENCES note, tag TEXT NOT NULL, PRIMARY KEY(note, tag))");
    sites[0].run("INSERT INTO note VALUES(1, 'of one'); INSERT INTO tagged VALUES(1, 'red')");
    sites[0].fold(site::NOW);
    sites[1].run("INSERT INTO note VALUES(1, 'of two'); INSERT INTO tagged VALUES(1, 'blue')");
    meet(&mut sites);
    meet(&mut sites);
    both(&sites, "SELECT * FROM tagged ORDER BY tag", "1|blue 1|red");
    let told = sites.map(|mut site| {
        let notes = site.store.take_effects().notes;
        let stays = notes.into_iter().filter(|note| note.code == "link_stays");
        stays.map(|note| note.message).collect::<Vec<_>>()
    });
    assert_eq!(told[0], Vec::<String>::new());
    assert_eq!(told[1].len(), 1, "{told:?}");
    assert!(told[1][0].starts_with("in table tagged the key of 2 row(s) names 1, but"), "{told:?}");
}
