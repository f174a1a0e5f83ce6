//! The store by itself, without a machine: capture, fold, back-fill, forget.
#![allow(clippy::unwrap_used)]

mod site;

use rusqlite::Connection;
use site::image::Image;
use site::{NOW, Site, TABLES, batch, dump, row};
use wavesync_core::ids::{Cursor, Dot, Millis, Seq, SiteId, Stamp};
use wavesync_core::limits;
use wavesync_core::store::Push;
use wavesync_core::store::changes::{Changes, Wanted};
use wavesync_core::value::Value;
use wavesync_core::wire::rows::{Batch, TableRows};

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
fn p3_a_write_keeps_its_time_when_its_fold_was_to_begin_before_it() {
    let mut site = Site::new(1, TABLES);
    // The engine looked at its clock, and waited for others who went on writing.
    let looked = NOW;
    site.run("INSERT INTO num VALUES(1, 1, 1)");
    let sql = "SELECT at FROM __wavesync_log WHERE at IS NOT NULL";
    let written: i64 = site.app.query_row(sql, [], |row| row.get(0)).unwrap();
    let written = written.cast_unsigned();
    assert!(written > looked.0);
    site.store.keep_time(|| Millis(NOW.0 * 2));
    site.fold(looked);
    assert_eq!(birth(&site.image(), "num", &Value::Integer(1)).stamp.millis(), written);
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
fn a_failed_transaction_keeps_what_earlier_ones_had_to_tell() {
    let mut site = Site::new(1, TABLES);
    site.store.take_effects();
    site.run("CREATE TABLE extra(id INTEGER PRIMARY KEY, v)");
    site.store.write(NOW, |_| Ok(())).unwrap();
    let failed: wavesync_core::Result<()> =
        site.store.write(NOW, |_| Err(wavesync_core::Error::Argument("on purpose".into())));
    assert!(failed.is_err());
    assert!(site.store.take_effects().schema_changed);
}

/// The log without what is trimmed answers as the whole one did.
#[test]
fn a_trimmed_log_hides_no_change() {
    let mut site = Site::new(1, TABLES);
    for number in 0..40 {
        site.run(&format!("INSERT INTO num VALUES({number}, 'a', {number})"));
    }
    site.run("UPDATE num SET b = 0 WHERE id < 9; DELETE FROM num WHERE id = 20");
    site.run("INSERT INTO pair VALUES(1, 'x', 2)");
    site.fold(NOW);
    let changes = |site: &Site, after| {
        let conn = rusqlite::Connection::open(site.path()).unwrap();
        conn.execute_batch("BEGIN").unwrap();
        let mut changes =
            Changes::new(conn, Wanted { after: Seq(after), ..Wanted::default() }).unwrap();
        let mut all = Vec::new();
        while let Some(change) = changes.next_change(NOW).unwrap() {
            all.push(change);
        }
        all
    };
    let (all, some) = (changes(&site, 0), changes(&site, 30));
    let exported = site.store.export(NOW, Seq(0)).unwrap();
    let before = site.log_rows();
    site.store.set_bounds(limits::Bounds { log_trim_rows: 7, ..limits::Bounds::default() });
    // A transaction removes so many entries, and no more.
    let mut left = before;
    while site.store.trim_block(NOW, &[]).unwrap() {
        assert_eq!(left - site.log_rows(), 7);
        left = site.log_rows();
    }
    assert!(left - site.log_rows() <= 7);
    assert!(site.log_rows() < 8 && before > 45, "{} of {before} entries", site.log_rows());
    assert!(site.log_rows() > 0, "the newest one stays, or its number would be given again");
    assert_eq!(changes(&site, 0), all);
    assert_eq!(changes(&site, 30), some);
    assert_eq!(site.store.export(NOW, Seq(0)).unwrap(), exported);
    site.run("INSERT INTO num VALUES(100, 'b', 1)");
    site.fold(NOW);
    assert_eq!(changes(&site, 0).len(), all.len() + 2);
}

/// Members that are away hold the log, but not for ever.
#[test]
fn the_log_is_kept_for_members_up_to_a_limit() {
    let mut site = Site::new(1, TABLES);
    let bounds = limits::Bounds { log_trim_rows: 1, log_keep_rows: 30, ..Default::default() };
    site.store.set_bounds(bounds);
    let member = SiteId([9; 16]);
    for number in 0..20 {
        site.run(&format!("INSERT INTO num VALUES({number}, 'a', 0)"));
    }
    site.fold(NOW);
    let boot = site.store.own_state(NOW).unwrap().boot;
    let cursor = Cursor { boot, seq: Seq(5), high: Seq(20) };
    site.store.write(NOW, |tx| tx.remember_member(member, b"peer", "")).unwrap();
    site.store.write(NOW, |tx| tx.remember_read(member, cursor)).unwrap();
    let trimmed = |site: &mut Site, now: Millis, read: &[(SiteId, Cursor)]| {
        while site.store.trim_block(now, read).unwrap() {}
        site.store.folded(now, |tx| tx.horizon()).unwrap()
    };
    assert_eq!(trimmed(&mut site, NOW, &[]), Seq(5));
    let further = Cursor { seq: Seq(12), ..cursor };
    assert_eq!(trimmed(&mut site, NOW, &[(member, further)]), Seq(12));
    assert_eq!(trimmed(&mut site, NOW, &[]), Seq(12), "what it had read is remembered");
    for number in 20..60 {
        site.run(&format!("INSERT INTO num VALUES({number}, 'a', 0)"));
    }
    site.fold(NOW);
    assert_eq!(trimmed(&mut site, NOW, &[]), Seq(30), "the newest thirty of sixty");
    let later = Millis(NOW.0 + limits::LOG_MEMBER_MAX_MS + 1);
    assert_eq!(trimmed(&mut site, later, &[]), Seq(59), "a member not seen for long");
}
