//! What one replica shows in `wavesync_changes`, inserted at another: the same as a sync.
#![allow(clippy::unwrap_used)]

mod site;

use rusqlite::Connection;
use site::{NOW, Site, TABLES, content, dump};
use wavesync_core::ids::{Seq, SiteId};
use wavesync_core::store::changes::{Change, Changes, Wanted};
use wavesync_core::store::inbox;
use wavesync_core::value::Value;

fn read(site: &mut Site, wanted: Wanted) -> Vec<Change> {
    site.fold(NOW);
    shown(site, wanted)
}

fn shown(site: &Site, wanted: Wanted) -> Vec<Change> {
    let conn = Connection::open(site.app.path().unwrap()).unwrap();
    conn.execute_batch("BEGIN").unwrap();
    let mut changes = Changes::new(conn, wanted).unwrap();
    std::iter::from_fn(|| changes.next_change(NOW).unwrap()).collect()
}

fn all(site: &mut Site) -> Vec<Change> {
    read(site, Wanted::default())
}

/// One transaction of the application, and the next one of the store.
fn insert(site: &mut Site, changes: &[Change]) {
    site.run("BEGIN");
    for change in changes {
        inbox::post(&site.app, change).unwrap();
    }
    site.run("COMMIT");
    site.fold(NOW);
}

fn waiting(site: &Site) -> i64 {
    site.app.query_row("SELECT count(*) FROM __wavesync_inbox", [], |row| row.get(0)).unwrap()
}

fn vector(site: &Site) -> String {
    let lines = dump(&site.app);
    lines.lines().filter(|line| line.starts_with("__wavesync_vector")).collect()
}

/// Every step a permutation of the rest, the same for a seed.
fn shuffled(mut changes: Vec<Change>, mut seed: u64) -> Vec<Change> {
    for at in (1..changes.len()).rev() {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        changes.swap(at, usize::try_from(seed >> 33).unwrap() % (at + 1));
    }
    changes
}

const SCRIPT: [&str; 3] = [
    "INSERT INTO num VALUES(1, 'one', x'00'), (2, NULL, -0.0), (3, 3, 3);
     INSERT INTO txt VALUES('k', CAST(x'ff00' AS TEXT), 0.1), ('l', 1, 2);
     INSERT INTO pair VALUES('a', 1, 9223372036854775807), (x'00', 0.1, ''); INSERT INTO keys VALUES('only');",
    "UPDATE num SET a = 'uno' WHERE id = 1; DELETE FROM num WHERE id = 3; DELETE FROM txt WHERE k = 'l';
     UPDATE pair SET y = 2 WHERE x = 'a';",
    "INSERT INTO num VALUES(3, 'again', 0); INSERT INTO txt VALUES('l', 3, 4); DELETE FROM keys;",
];

#[test]
fn inserted_changes_are_a_sync_in_any_order_and_again() {
    for seed in 0..8 {
        let mut from = Site::new(1, TABLES);
        let (mut synced, mut inserted) = (Site::new(2, TABLES), Site::new(3, TABLES));
        inserted
            .run("INSERT INTO txt VALUES('k', 'mine', 1); INSERT INTO num VALUES(1, 'mine', 1)");
        synced.run("INSERT INTO txt VALUES('k', 'mine', 1); INSERT INTO num VALUES(1, 'mine', 1)");
        synced.fold(NOW.plus(7));
        inserted.store.write(NOW.plus(7), |_| Ok(())).unwrap();
        let before = vector(&inserted);
        let mut changes = Vec::new();
        for script in SCRIPT {
            from.run(script);
            changes.extend(all(&mut from));
        }
        // The same site id on both, so that what they wrote themselves is the same event.
        let synced_site = synced.own_site();
        let rename = |text: &str| text.replace(&synced_site.to_string(), "");
        let changes = shuffled(changes, seed);
        let (first, rest) = changes.split_at(changes.len() / 2);
        insert(&mut inserted, first);
        insert(&mut inserted, rest);
        insert(&mut inserted, first);
        let site = from.own_site();
        for piece in from.pieces(100) {
            synced.apply(site, &piece).unwrap();
        }
        let shown = |site: &Site| {
            let tables = ["num", "txt", "pair", "keys"];
            let lines = dump(&site.app);
            let mine =
                |line: &&str| tables.iter().any(|name| line.starts_with(&format!("{name} ")));
            // A row that moved has a key that the site id goes into.
            let kept = |line: &&str| !line.contains("Integer(-");
            let mut kept: Vec<String> =
                lines.lines().filter(mine).filter(kept).map(rename).collect();
            kept.sort();
            kept
        };
        assert_eq!(shown(&inserted), shown(&synced), "seed {seed}");
        assert_eq!(waiting(&inserted), 0, "seed {seed}");
        assert_eq!(vector(&inserted), before, "P7: inserted rows move no vector");
        // A third one gets them from there.
        let mut third = Site::new(4, TABLES);
        let site = inserted.own_site();
        for piece in inserted.pieces(100) {
            third.apply(site, &piece).unwrap();
        }
        assert!(content(&third.image()) == content(&inserted.image()), "seed {seed}");
    }
}

#[test]
fn a_row_waits_until_all_of_it_is_there() {
    let mut from = Site::new(1, "CREATE TABLE t(k TEXT PRIMARY KEY, a NOT NULL, b NOT NULL, c)");
    let mut to = Site::new(2, "CREATE TABLE t(k TEXT PRIMARY KEY, a NOT NULL, b NOT NULL, c)");
    from.run("INSERT INTO t VALUES('k', 1, 2, 3)");
    let born = all(&mut from);
    assert_eq!(born.len(), 3);
    from.run("UPDATE t SET b = 5");
    let edited = all(&mut from);
    insert(&mut to, &born[..2]);
    insert(&mut to, &born[..2]);
    let count = "SELECT count(*) FROM t";
    let rows = |site: &Site| -> i64 { site.app.query_row(count, [], |row| row.get(0)).unwrap() };
    assert_eq!((rows(&to), waiting(&to)), (0, 2), "and what comes twice waits once");
    insert(&mut to, &edited[2..]);
    assert_eq!((rows(&to), waiting(&to)), (1, 0));
    // From now on a single cell is a patch.
    insert(&mut to, &edited[1..2]);
    let b = "SELECT b FROM t";
    let b: i64 = to.app.query_row(b, [], |row| row.get(0)).unwrap();
    assert_eq!((b, waiting(&to)), (5, 0));
    from.run("DELETE FROM t");
    insert(&mut to, &all(&mut from));
    insert(&mut to, &born);
    assert_eq!((rows(&to), waiting(&to)), (0, 0), "what is older does not come back");
}

#[test]
fn rows_of_an_unknown_table_are_parked_as_in_a_sync() {
    let mut from = Site::new(1, "CREATE TABLE t(k TEXT PRIMARY KEY, a)");
    from.run("INSERT INTO t VALUES('k', 1)");
    let changes = all(&mut from);
    let mut to = Site::new(2, "CREATE TABLE other(k TEXT PRIMARY KEY, a)");
    insert(&mut to, &changes);
    to.run("CREATE TABLE t(k TEXT PRIMARY KEY, a)");
    to.fold(NOW);
    while to.store.backfill_block(NOW).unwrap() {}
    let a: i64 = to.app.query_row("SELECT a FROM t WHERE k = 'k'", [], |row| row.get(0)).unwrap();
    assert_eq!(a, 1);
}

#[test]
fn what_never_came_out_of_it_is_refused_and_nothing_is_kept() {
    let mut site = Site::new(1, TABLES);
    site.run("INSERT INTO num VALUES(1, 2, 3); INSERT INTO pair VALUES(1, 2, 3)");
    let changes = all(&mut site);
    let good = changes.iter().find(|change| change.table == "num").unwrap().clone();
    let pair = changes.iter().find(|change| change.table == "pair").unwrap().clone();
    let before = dump(&site.app);
    let long = "n".repeat(2_000);
    let bad = [
        Change { table: String::new(), ..good.clone() },
        Change { table: long, ..good.clone() },
        Change { table: "a\0b".into(), ..good.clone() },
        Change { table: "__WAVESYNC_log".into(), ..good.clone() },
        Change { table: "sqlite_schema".into(), ..good.clone() },
        Change { key: Value::Null, ..good.clone() },
        Change { key: Value::text("1"), ..good.clone() },
        Change { key: Value::Integer(1), ..pair.clone() },
        Change { key: Value::text("i1"), ..pair.clone() },
        Change { key: Value::text("i1,i2,i3"), ..pair.clone() },
        Change { key: Value::text("i1,n"), ..pair },
        Change { key_columns: 65, ..good.clone() },
        Change { length: 0, ..good.clone() },
        Change { length: 2, ..good.clone() },
        Change { length: 1 << 41, ..good.clone() },
        Change { stamp: i64::MAX, ..good.clone() },
        Change { stamp: i64::MIN, ..good.clone() },
        Change {
            birth: wavesync_core::ids::Dot {
                stamp: wavesync_core::ids::Stamp(i64::MAX),
                ..good.birth
            },
            ..good.clone()
        },
        Change { column: Some("__wavesync_x".into()), ..good.clone() },
        Change { column: Some("__wavesync_claim".into()), ..good.clone() },
        Change { column: None, ..good.clone() },
        Change { cells: Some(0), ..good.clone() },
        Change { cells: Some(40_000), ..good.clone() },
    ];
    for change in bad {
        let refused = inbox::post(&site.app, &change);
        assert!(refused.is_err(), "{change:?}");
    }
    assert_eq!(dump(&site.app), before);
    assert!(inbox::post(&site.app, &good).is_ok());
}

#[test]
fn only_what_is_wanted_is_read() {
    let mut site = Site::new(1, TABLES);
    for n in 0..20 {
        site.run(&format!(
            "INSERT INTO num VALUES({n}, 1, 2); INSERT INTO txt VALUES('k{n}', 1, 2)"
        ));
    }
    let everything = all(&mut site);
    assert_eq!(everything.len(), 80);
    let ask = |site: &mut Site, wanted| read(site, wanted).len();
    assert_eq!(ask(&mut site, Wanted { after: Seq(30), ..Wanted::default() }), 20);
    let through = Some(Seq(10));
    assert_eq!(ask(&mut site, Wanted { after: Seq(5), through, ..Wanted::default() }), 10);
    assert_eq!(ask(&mut site, Wanted { table: Some("txt".into()), ..Wanted::default() }), 40);
    let own = Some(everything[0].site);
    assert_eq!(ask(&mut site, Wanted { site: own, ..Wanted::default() }), 80);
    let nobody = Some(SiteId([9; 16]));
    assert_eq!(ask(&mut site, Wanted { site: nobody, ..Wanted::default() }), 0);
}

/// The value of a write that is not folded has no stamp yet. With the stamp of the value before it, it
/// would be taken for that one elsewhere, and the two replicas would never be equal again.
#[test]
fn a_row_is_not_shown_with_the_stamp_of_its_value_before() {
    let mut site = Site::new(1, TABLES);
    site.run(
        "INSERT INTO num VALUES(1, 'one', 1), (2, 'two', 2); INSERT INTO txt VALUES('k', 1, 1)",
    );
    let before = all(&mut site);
    site.run("UPDATE num SET a = 'uno' WHERE id = 1; DELETE FROM txt");
    let unfolded = shown(&site, Wanted::default());
    let second = |change: &&Change| change.key == Value::Integer(2);
    assert_eq!(unfolded, before.iter().filter(second).cloned().collect::<Vec<_>>());
    let newest = before.iter().map(|change| change.db_version).max().unwrap();
    let after = read(&mut site, Wanted { after: newest, ..Wanted::default() });
    let keys: Vec<_> = after.iter().map(|change| change.key.clone()).collect();
    assert_eq!(keys, [Value::Integer(1), Value::Integer(1), Value::Text(b"k".to_vec())]);
}
