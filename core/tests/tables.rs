//! Every kind of table and value, from one replica over a second to a third.
#![allow(clippy::unwrap_used)]

mod site;

use site::{NOW, Site, content, dump};
use wavesync_core::ids::Millis;
use wavesync_core::limits::{self, Bounds};
use wavesync_core::value::Value;

/// Folds `from` and gives all of it to `to`.
fn send(from: &mut Site, to: &mut Site) {
    let site = from.own_site();
    for piece in from.pieces(500) {
        to.apply(site, &piece).unwrap();
    }
}

/// Everybody has everything.
fn meet(sites: &mut [Site; 3]) {
    let [a, b, c] = sites;
    send(a, b);
    send(c, b);
    send(b, a);
    send(b, c);
    let wanted = content(&a.image());
    assert!(content(&b.image()) == wanted, "b differs from a");
    assert!(content(&c.image()) == wanted, "c differs from a");
}

fn three(sql: &str) -> [Site; 3] {
    [1, 2, 3].map(|number| Site::new(number, sql))
}

fn rows(site: &Site, sql: &str) -> Vec<Vec<Value>> {
    let mut statement = site.app.prepare(sql).unwrap();
    let columns = statement.column_count();
    let row = |row: &rusqlite::Row<'_>| {
        (0..columns).map(|at| Ok(Value::from_ref(row.get_ref(at)?))).collect()
    };
    statement.query_map([], row).unwrap().map(Result::unwrap).collect()
}

fn equal(sites: &[Site; 3], sql: &str) -> Vec<Vec<Value>> {
    let wanted = rows(&sites[0], sql);
    for site in &sites[1..] {
        assert!(rows(site, sql) == wanted, "{sql}: {:?} and {wanted:?}", rows(site, sql));
    }
    wanted
}

fn int(integer: i64) -> Value {
    Value::Integer(integer)
}

/// A column of a group stands before others, and the schema moves.
#[test]
fn a_change_of_the_schema_does_not_mix_columns_up() {
    let mut sites =
        three("CREATE TABLE t(k TEXT PRIMARY KEY, a, b, c, d, CHECK(a < b), CHECK(d > b))");
    sites[0].run("INSERT INTO t VALUES('k', 1, 2, 3, 4)");
    meet(&mut sites);
    sites[0].run("UPDATE t SET a = 0");
    sites[0].fold(NOW);
    for site in &mut sites {
        site.run("CREATE INDEX i ON t(c)");
        site.fold(NOW);
    }
    sites[1].run("UPDATE t SET c = 9");
    meet(&mut sites);
    let names = rows(&sites[0], "SELECT name FROM __wavesync_column ORDER BY num");
    assert_eq!(names, [["a"], ["b"], ["c"], ["d"]].map(|[name]| vec![Value::text(name)]));
    assert_eq!(rows(&sites[0], "SELECT * FROM __wavesync_former"), Vec::<Vec<Value>>::new());
    let wanted = [Value::text("k"), int(0), int(2), int(9), int(4)];
    assert_eq!(equal(&sites, "SELECT * FROM t"), [wanted]);
}

#[test]
fn each_of_2000_columns_is_written_and_merged_by_itself() {
    let columns: Vec<String> = (1..2_000).map(|n| format!("c{n}")).collect();
    let sql = format!("CREATE TABLE t(k TEXT PRIMARY KEY, {})", columns.join(", "));
    let rules = "CREATE UNIQUE INDEX u ON t(c1998); CREATE UNIQUE INDEX x ON t(c1 + c1999);
                 CREATE TABLE seen(n INTEGER PRIMARY KEY, k);
                 CREATE TRIGGER app AFTER UPDATE ON t BEGIN INSERT INTO seen(k) VALUES(NEW.k); END";
    let mut sites = three(&format!("{sql}; {rules}"));
    sites[0].run("INSERT INTO t(k, c63, c1000, c1999) VALUES('x', 1, 1, 1), ('y', 2, 2, 2)");
    meet(&mut sites);
    sites[0].run("UPDATE t SET c64 = 'a' WHERE k = 'x'");
    sites[1].run("UPDATE t SET c1999 = 'b' WHERE k = 'x'");
    sites[2].run("UPDATE t SET c1000 = 'c', c2 = 'c' WHERE k = 'x'; UPDATE t SET c63 = 8");
    meet(&mut sites);
    // Nobody writes another column again that only the first one wrote.
    sites[1].run("UPDATE t SET c65 = 0 WHERE k = 'x'");
    sites[0].run("UPDATE t SET c64 = 'later' WHERE k = 'x'");
    meet(&mut sites);
    let found = equal(&sites, "SELECT c2, c63, c64, c65, c1000, c1999, c3 FROM t ORDER BY k");
    let text = Value::text;
    assert_eq!(
        found[0],
        [text("c"), int(8), text("later"), int(0), text("c"), text("b"), Value::Null]
    );
    assert_eq!(found[1][..2], [Value::Null, int(8)]);
}

/// What SQLite stores, it stores everywhere: compared by bits, over a second to a third replica.
#[test]
fn a_hundred_thousand_reals_arrive_bit_for_bit() {
    let mut sites = three("CREATE TABLE v(id INTEGER PRIMARY KEY, x, r REAL, n NUMERIC)");
    let mut bits = 0x9e37_79b9_7f4a_7c15u64;
    let special =
        [0u64, 1 << 63, 1, u64::MAX, f64::INFINITY.to_bits(), f64::NEG_INFINITY.to_bits()];
    let special = special.into_iter().chain([0.1f64.to_bits(), f64::MIN_POSITIVE.to_bits() - 1]);
    let mut special: Vec<u64> = special.collect();
    {
        sites[0].run("BEGIN");
        let mut insert = sites[0].app.prepare("INSERT INTO v VALUES(?1, ?2, ?2, ?2)").unwrap();
        for id in 0..100_000 {
            // Marsaglia's xorshift: every pattern may come.
            bits ^= bits << 13;
            bits ^= bits >> 7;
            bits ^= bits << 17;
            let real = f64::from_bits(special.pop().unwrap_or(bits));
            insert.execute(rusqlite::params![id, real]).unwrap();
        }
    }
    sites[0].run("COMMIT");
    let [a, b, c] = &mut sites;
    send(a, b);
    send(b, c);
    let stored = equal(&sites, "SELECT * FROM v ORDER BY id");
    assert_eq!(stored.len(), 100_000);
    let zero = rows(&sites[2], "SELECT x, r, n FROM v WHERE x = 0 ORDER BY id");
    assert!(zero.contains(&vec![Value::Real(-0.0), Value::Real(0.0), int(0)]), "{zero:?}");
    assert!(zero.contains(&vec![Value::Real(0.0), Value::Real(0.0), int(0)]), "{zero:?}");
    let nothing = rows(&sites[2], "SELECT count(*) FROM v WHERE x IS NULL");
    assert!(nothing[0][0] > int(0), "what is not a number is NULL to SQLite");
}

/// To SQLite -0.0 is 0.0: a statement that changes only the sign is no change. It must not part
/// replicas for good: whoever reads the row again ends with the same bits.
#[test]
fn the_sign_of_a_zero_is_no_change_and_parts_nobody() {
    let sql = "CREATE TABLE v(id INTEGER PRIMARY KEY, a, b BLOB, c ANY, d REAL, e);
               CREATE TABLE s(id INTEGER PRIMARY KEY, a ANY) STRICT;";
    let mut sites = three(sql);
    sites[0].run("INSERT INTO v VALUES(1, 0.0, 1, -0.0, -0.0, 1); INSERT INTO s VALUES(1, -0.0)");
    meet(&mut sites);
    // A column called ANY has NUMERIC affinity outside of STRICT tables.
    let (zero, minus) = (Value::Real(0.0), Value::Real(-0.0));
    let wanted = [zero.clone(), int(1), int(0), zero.clone(), int(1)];
    assert_eq!(equal(&sites, "SELECT a, b, c, d, e FROM v"), [wanted]);
    assert_eq!(equal(&sites, "SELECT a FROM s"), [[minus.clone()]]);
    sites[1].run("UPDATE v SET a = -0.0, b = -0.0; UPDATE s SET a = 0.0");
    sites[2].run("UPDATE v SET e = 2");
    meet(&mut sites);
    let wanted = [minus.clone(), minus.clone(), zero, int(2)];
    assert_eq!(equal(&sites, "SELECT a, b, d, e FROM v"), [wanted]);
    assert_eq!(equal(&sites, "SELECT a FROM s"), [[minus]]);
}

#[test]
fn keys_that_are_equal_to_sqlite_keep_their_bytes() {
    let sql = "CREATE TABLE one(k PRIMARY KEY, v); CREATE TABLE two(a, b, v, PRIMARY KEY(b, a));
               CREATE TABLE nc(k TEXT COLLATE NOCASE PRIMARY KEY, v);
               CREATE TABLE r(k REAL PRIMARY KEY, v) WITHOUT ROWID;";
    let mut sites = three(sql);
    sites[0].run("INSERT INTO one VALUES(1, 'i'), (2.5, 'r'), (x'00', 'b'), ('1', 't')");
    sites[0].run("INSERT INTO two VALUES(1, 1, 'i'), (-0.0, 1, 'z'), ('1', 1.0, 't')");
    sites[0]
        .run("INSERT INTO nc VALUES('abc', 1); INSERT INTO r VALUES(-0.0, 0), (3, 1), (0.1, 2)");
    meet(&mut sites);
    sites[1].run("UPDATE one SET k = 1.0 WHERE k = 1; UPDATE two SET a = 1.0 WHERE v = 'i'");
    sites[1].run("UPDATE nc SET k = 'ABC'; UPDATE r SET v = 9 WHERE k = 0");
    meet(&mut sites);
    sites[2].run("UPDATE one SET v = v || '!'; UPDATE two SET v = v || '!'; UPDATE nc SET v = 2");
    meet(&mut sites);
    let found = equal(&sites, "SELECT k, v FROM one ORDER BY v");
    assert!(found.contains(&vec![Value::Real(1.0), Value::text("i!")]), "{found:?}");
    // In a key of several columns no trigger can tell -0.0 from 0.0.
    let found = equal(&sites, "SELECT iif(v = 'z!', a = 0, a), b, v FROM two ORDER BY v");
    assert_eq!(found[0], [Value::Real(1.0), int(1), Value::text("i!")]);
    assert_eq!(found.len(), 3);
    assert_eq!(equal(&sites, "SELECT * FROM nc"), [[Value::text("ABC"), int(2)]]);
    assert_eq!(equal(&sites, "SELECT v FROM r ORDER BY k"), [[int(9)], [int(2)], [int(1)]]);
}

/// Rows that two replicas gave keys which only SQLite takes for one: one of them stands.
#[test]
fn keys_of_two_classes_contend_for_one_place() {
    let mut sites = three("CREATE TABLE two(a, b, v, PRIMARY KEY(a, b))");
    sites[0].run("INSERT INTO two VALUES(1, 'k', 'first')");
    sites[0].fold(NOW);
    sites[1].run("INSERT INTO two VALUES(1.0, 'k', 'second')");
    sites[1].fold(NOW.plus(5));
    meet(&mut sites);
    assert_eq!(equal(&sites, "SELECT v FROM two"), [[Value::text("first")]]);
    // The one that is out goes: the other one stays.
    sites[1].run("INSERT INTO two VALUES(2, 'k', 'third')");
    meet(&mut sites);
    assert_eq!(equal(&sites, "SELECT count(*) FROM two"), [[int(2)]]);
}

const SPECIAL: &str = "
    CREATE TABLE t(k TEXT PRIMARY KEY, a, b, g AS (a || '-' || b), n INTEGER);
    CREATE UNIQUE INDEX t1 ON t(lower(a)) ;
    CREATE UNIQUE INDEX t2 ON t(n DESC) WHERE b <> 'free' -- a comment
    ;
    CREATE UNIQUE INDEX t3 ON t(g COLLATE NOCASE, substr(k, 1, 1));";

#[test]
fn what_replace_removes_through_any_unique_index_is_deleted_everywhere() {
    for recursive in ["OFF", "ON"] {
        let mut sites = three(SPECIAL);
        sites[0].run("INSERT INTO t(k, a, b, n) VALUES('p', 'Ann', 'x', 1), ('q', 'Bob', 'x', 2)");
        sites[0].run("INSERT INTO t(k, a, b, n) VALUES('r', 'Cid', 'free', 3), ('s', 'x', 'Y', 4)");
        sites[0].run("INSERT INTO t(k, a, b, n) VALUES('u', 'eve', 'x', 5)");
        meet(&mut sites);
        sites[1].run(&format!("PRAGMA recursive_triggers={recursive}"));
        let left = |site: &Site| rows(site, "SELECT k FROM t ORDER BY k");
        let keys = |keys: &str| -> Vec<Vec<Value>> {
            keys.split(' ').map(|key| vec![Value::text(key)]).collect()
        };
        // Through the expression.
        sites[1].run("INSERT OR REPLACE INTO t(k, a, b, n) VALUES('v', 'ANN', 'x', 11)");
        assert_eq!(left(&sites[1]), keys("q r s u v"));
        // Through the partial index; the row that it does not hold is no rival.
        sites[1].run("UPDATE OR REPLACE t SET n = 2 WHERE k = 'u'");
        assert_eq!(left(&sites[1]), keys("r s u v"));
        sites[1].run("REPLACE INTO t(k, a, b, n) VALUES('w', 'w', 'x', 3)");
        assert_eq!(left(&sites[1]), keys("r s u v w"));
        // A row that comes under the index by its WHERE.
        sites[1].run("UPDATE OR REPLACE t SET b = 'x' WHERE k = 'r'");
        assert_eq!(left(&sites[1]), keys("r s u v"));
        // Through the generated column and an expression.
        sites[1].run("INSERT OR REPLACE INTO t(k, a, b, n) VALUES('su', 'X', 'y', 12)");
        assert_eq!(left(&sites[1]), keys("r su u v"));
        meet(&mut sites);
        assert_eq!(left(&sites[2]), keys("r su u v"), "recursive_triggers={recursive}");
        assert!(!dump(&sites[1].app).contains("__wavesync_gone "), "nothing is left noted");
    }
}

/// A lookup per write, not a scan.
#[test]
fn the_rivals_of_a_write_are_found_by_the_index() {
    let site = Site::new(1, SPECIAL);
    let triggers = rows(
        &site,
        "SELECT sql FROM sqlite_schema WHERE type = 'trigger' AND name = '__wavesync_p_1'",
    );
    let Value::Text(text) = &triggers[0][0] else { panic!("no trigger") };
    let text = String::from_utf8(text.clone()).unwrap();
    let mut body = text.split_once("BEGIN").unwrap().1.trim_end_matches("END").to_string();
    for column in ["k", "a", "b", "g", "n"] {
        body = body.replace(&format!("NEW.\"{column}\""), "'x'");
    }
    let mut plans = 0;
    for statement in body.split(';').filter(|s| s.contains("SELECT")) {
        let select = statement.split_once("SELECT").unwrap().1;
        let plan = rows(&site, &format!("EXPLAIN QUERY PLAN SELECT {select}"));
        let lines = plan.iter().map(|row| match &row[3] {
            Value::Text(text) => String::from_utf8_lossy(text).into_owned(),
            other => format!("{other:?}"),
        });
        let lines: Vec<String> = lines.collect();
        assert!(lines.iter().any(|line| line.starts_with("SEARCH t USING")), "{select}: {lines:?}");
        plans += 1;
    }
    assert_eq!(plans, 3);
}

#[test]
fn text_keeps_its_bytes() {
    let mut sites = three("CREATE TABLE v(k TEXT PRIMARY KEY, x, y TEXT)");
    let texts: [&[u8]; 6] = [b"", b"\0", b"a\0b", b"\xff\xfe", "日本 🌊".as_bytes(), b"\xc3"];
    for text in texts {
        let text = Value::Text(text.to_vec());
        sites[0].app.execute("INSERT INTO v VALUES(?1, ?1, ?1)", [text]).unwrap();
    }
    meet(&mut sites);
    sites[2].run("UPDATE v SET x = x || y");
    meet(&mut sites);
    let found = equal(&sites, "SELECT * FROM v ORDER BY k");
    assert_eq!(found.len(), 6);
    assert!(found.iter().any(|row| row[0] == Value::Text(b"\xff\xfe".to_vec())), "{found:?}");
}

/// What a member would refuse is not sent at all, and `wavesync_tables` says why.
#[test]
fn tables_that_do_not_fit_into_a_message_are_refused_at_home() {
    let key: Vec<String> = (0..65).map(|n| format!("k{n}")).collect();
    let (key, long) = (key.join(", "), "n".repeat(1_025));
    let mut site = Site::new(
        1,
        &format!(
            "CREATE TABLE ok(k TEXT PRIMARY KEY, sqlite_version, \"{}\");
             CREATE TABLE \"\"(k TEXT PRIMARY KEY); CREATE TABLE a(k TEXT PRIMARY KEY, \"\");
             CREATE TABLE \"{long}\"(k TEXT PRIMARY KEY); CREATE TABLE b(k TEXT PRIMARY KEY, {long});
             CREATE TABLE c(k TEXT PRIMARY KEY, __Wavesync_claim);
             CREATE TABLE d({key}, v, PRIMARY KEY({key}));",
            &long[1..]
        ),
    );
    site.run("INSERT INTO ok VALUES('k', 1, 2); INSERT INTO a VALUES('k', 1)");
    let reports = wavesync_core::store::report::tables(&site.app).unwrap();
    let tracked = reports.iter().filter(|table| table.tracked).map(|table| table.name.as_str());
    assert_eq!(tracked.collect::<Vec<_>>(), ["ok"]);
    for table in reports.iter().filter(|table| !table.tracked) {
        let fix = ["rename it", "give it a shorter one"];
        assert!(fix.iter().any(|fix| table.reason.ends_with(fix)), "{}", table.reason);
    }
    assert_eq!(reports.len(), 7);
    let mut other = Site::new(2, "CREATE TABLE ok(k TEXT PRIMARY KEY, sqlite_version)");
    send(&mut site, &mut other);
    assert_eq!(rows(&other, "SELECT * FROM ok"), [[Value::text("k"), int(1)]]);
}

/// To find out what the tables are is a matter of milliseconds where there are many.
#[test]
fn taking_existing_rows_in_reads_the_schema_once() {
    let rows = "INSERT INTO num VALUES(1, 1, 1), (2, 2, 2), (3, 3, 3);
                INSERT INTO txt VALUES('a', 1, 1), ('b', 2, 2), ('c', 3, 3)";
    let mut site = Site::before_backfill(1, &format!("{} {rows}", site::TABLES));
    site.store.set_bounds(Bounds { backfill_rows: 2, ..Bounds::default() });
    site.store.take_effects();
    let mut blocks = 0;
    while site.store.backfill_block(NOW).unwrap() {
        blocks += 1;
        assert!(!site.store.take_effects().schema_changed, "block {blocks}");
    }
    assert!(!site.store.take_effects().schema_changed, "the last block");
    assert_eq!(blocks, 5, "two tables of two blocks, two empty ones, the last of which ends it");
    let image = site.image();
    assert_eq!(image.tables["num"].rows.len() + image.tables["txt"].rows.len(), 6);
    // What was taken in is the application's to change like any other row.
    site.run("UPDATE num SET a = 9 WHERE id = 3");
    assert_eq!(site.fold(NOW).len(), 1);
}

/// Another connection renames a table and creates one under the old name, while the engine has TEMP
/// triggers on it: for rows that stand in each other's way, and for triggers of the application.
#[test]
fn a_table_may_take_the_name_of_one_that_was_renamed() {
    for trigger in ["", "CREATE TRIGGER own AFTER INSERT ON t BEGIN UPDATE t SET v = 1; END"] {
        let table = "CREATE TABLE t(k TEXT PRIMARY KEY NOT NULL, n UNIQUE, v);";
        let [mut a, mut b] = [1, 2].map(|n| Site::new(n, &format!("{table} {trigger}")));
        let contend = |a: &mut Site, b: &mut Site, table: &str, n: i64| {
            a.run(&format!("INSERT INTO {table}(k, n) VALUES('a{n}', {n})"));
            b.run(&format!("INSERT INTO {table}(k, n) VALUES('b{n}', {n})"));
            send(a, b);
            send(b, a);
            let image = b.image();
            let parked = image.tables[table].rows.values().filter(|row| row.parked.is_some());
            assert_eq!(parked.count() as i64, n, "{table}: one of two rows has to wait");
        };
        contend(&mut a, &mut b, "t", 1);
        for site in [&mut a, &mut b] {
            site.run("ALTER TABLE t RENAME TO older");
            site.fold(NOW);
        }
        contend(&mut a, &mut b, "older", 2);
        for site in [&mut a, &mut b] {
            site.run("CREATE TABLE t(id TEXT PRIMARY KEY NOT NULL, w UNIQUE)");
            site.fold(NOW);
            site.run("INSERT INTO t VALUES('x', 1)");
            site.fold(NOW);
        }
        a.run("DELETE FROM t");
        send(&mut a, &mut b);
        assert_eq!(rows(&b, "SELECT * FROM t"), Vec::<Vec<Value>>::new(), "{trigger}");
    }
}

/// A table that another connection dropped is created again by the engine itself, as the group has it.
/// SQLite does not read the TEMP schema anew for that, and what it cannot reach in it stays there.
#[test]
fn a_table_that_was_dropped_may_be_adopted_again() {
    let table = "CREATE TABLE t(k TEXT PRIMARY KEY NOT NULL, n UNIQUE, v)";
    let trigger = "CREATE TRIGGER own AFTER INSERT ON t BEGIN UPDATE t SET v = 1; END";
    for trigger in ["", trigger] {
        let (mut a, mut b) = (Site::new(1, table), Site::new(2, ""));
        for round in 1..4 {
            let now = Millis(NOW.0 + 10 * round * limits::SCHEMA_SETTLE_MS);
            let schema = a.store.schema(NOW).unwrap();
            assert_eq!(b.store.adopt(now, &schema).unwrap().0, ["t"]);
            b.run(trigger);
            a.run(&format!("INSERT INTO t(k, n) VALUES('a{round}', {round})"));
            b.run(&format!("INSERT INTO t(k, n) VALUES('b{round}', {round})"));
            b.fold(now);
            send(&mut a, &mut b);
            let placed = format!("SELECT count(*) FROM t WHERE n = {round}");
            assert_eq!(rows(&b, &placed), [[int(1)]], "one of two rows has to wait");
            b.run("DROP TABLE t");
            let gone = b.store.write(now, |_| Ok(()));
            assert!(gone.is_err(), "it may be about to be replaced");
            b.fold(Millis(now.0 + limits::SCHEMA_SETTLE_MS));
        }
    }
}
