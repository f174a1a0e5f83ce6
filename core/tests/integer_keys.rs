//! Rows that moved because two replicas inserted one INTEGER key, through the store: what becomes of
//! their edits, deletes and links, in whatever order it is heard of.
#![allow(clippy::unwrap_used)]

mod site;

use site::{NOW, Site, content};
use wavesync_core::ids::{Millis, Seq};

const NOTE: &str = "CREATE TABLE note(id INTEGER PRIMARY KEY, body)";

fn at(millis: u64) -> Millis {
    NOW.plus(millis)
}

fn write(site: &mut Site, now: Millis, sql: &str) {
    site.run(sql);
    site.fold(now);
}

/// Everybody from everybody, twice.
fn exchange(sites: &mut [Site], now: Millis) {
    for _ in 0..2 {
        for to in 0..sites.len() {
            for from in (0..sites.len()).filter(|from| *from != to) {
                let [to, from] = sites.get_disjoint_mut([to, from]).unwrap();
                to.pull(from, now);
            }
        }
    }
}

/// All hold the same rows and show the same. A row that was over before it moved has no trace where
/// it would have moved to.
fn assert_equal(sites: &[Site]) {
    let alive = |site: &Site| {
        let mut content = content(&site.image());
        content.values_mut().for_each(|(rows, _)| rows.retain(|_, row| row.alive()));
        content
    };
    let first = alive(&sites[0]);
    sites.iter().for_each(|site| assert_eq!(alive(site), first));
}

/// Every site shows just these, with nothing parked.
fn assert_shown(sites: &[Site], bodies: &[&str]) {
    for site in sites {
        let shown: Vec<String> = (site.app.prepare("SELECT body FROM note ORDER BY 1").unwrap())
            .query_map([], |row| row.get(0))
            .unwrap()
            .map(Result::unwrap)
            .collect();
        assert_eq!(shown, bodies);
        let parked = "SELECT count(*) FROM __wavesync_parked";
        let parked: i64 = site.app.query_row(parked, [], |row| row.get(0)).unwrap();
        assert_eq!(parked, 0);
    }
}

/// The delete is heard of under the key that the row was inserted with, the edit under the one that
/// it moved to.
#[test]
fn an_edit_of_a_moved_row_comes_after_its_delete_to_who_never_had_the_row() {
    let mut sites: Vec<Site> = (1..=3).map(|number| Site::new(number, NOTE)).collect();
    let [first, second, third] = &mut sites[..] else { panic!() };
    write(first, at(1), "INSERT INTO note VALUES(1, 'stays')");
    write(second, at(2), "INSERT INTO note VALUES(1, 'moves')");
    first.pull(second, at(3));
    write(first, at(4), "UPDATE note SET body = 'edited' WHERE id < 0");
    write(second, at(5), "DELETE FROM note WHERE id = 1");
    third.pull(second, at(6));
    third.pull(first, at(7));
    exchange(&mut sites, at(8));
    assert_equal(&sites);
    assert_shown(&sites, &["stays"]);
}

/// The same with whole rows, one by one and many at once. That they are over is known from a file,
/// which moves no vector.
#[test]
fn a_moved_row_comes_after_its_delete() {
    for rows in [2, 400] {
        let mut sites: Vec<Site> = (1..=3).map(|number| Site::new(number, NOTE)).collect();
        let [first, second, third] = &mut sites[..] else { panic!() };
        let insert = |body: &str, which: &str| {
            format!(
                "WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
                 INSERT INTO note SELECT i, '{body}' FROM n WHERE {which}"
            )
        };
        write(first, at(1), &insert("stays", "1"));
        // The second time the third site knows from the first time where ended rows would be.
        for round in 0..2 {
            let now = at(2 + 4 * round);
            write(second, now, &insert("moves", &format!("i % 2 = {round}")));
            first.pull(second, now.plus(1));
            write(second, now.plus(2), "DELETE FROM note WHERE body = 'moves'");
            let blob = second.store.export(now.plus(2), Seq(0)).unwrap();
            third.store.import(now.plus(2), &blob).unwrap();
            third.pull(first, now.plus(3));
        }
        // The vector covers the deletes now, so nobody tells of them again.
        third.pull(second, at(10));
        exchange(&mut sites, at(11));
        assert_equal(&sites);
        assert_shown(&sites, &vec!["stays"; rows]);
    }
}

const LINKED: &str = "
    CREATE TABLE other(k TEXT PRIMARY KEY NOT NULL);
    CREATE TABLE note(id INTEGER PRIMARY KEY, body);
    CREATE TABLE comment(id TEXT PRIMARY KEY NOT NULL, nid REFERENCES note(id), of)";

/// Every comment leads to the note that its writer meant, and nothing is parked.
fn assert_linked(sites: &[Site], links: i64) {
    for (number, site) in sites.iter().enumerate() {
        let count = |sql: &str| -> i64 { site.app.query_row(sql, [], |row| row.get(0)).unwrap() };
        let right = "SELECT count(*) FROM comment JOIN note ON note.id = nid WHERE of = body";
        let all: Vec<(i64, String)> = (site.app)
            .prepare("SELECT nid, of FROM comment UNION ALL SELECT id, 'note ' || body FROM note")
            .unwrap()
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
            .unwrap()
            .map(Result::unwrap)
            .collect();
        assert_eq!(count(right), links, "site {number} shows {all:?}");
        assert_eq!(count("SELECT count(*) FROM __wavesync_parked"), 0, "site {number}");
    }
}

/// A database that was filled before joins a group that has deleted rows of the same keys.
#[test]
fn links_from_before_joining_follow_a_row_that_moves() {
    let filled = format!(
        "{LINKED}; INSERT INTO note VALUES(1, 'one'), (2, 'two'), (3, 'three');
         INSERT INTO comment VALUES('a', 1, 'one'), ('b', 2, 'two'), ('c', 3, 'three')"
    );
    for enforced in [false, true] {
        for imported in [true, false] {
            let mut group = Site::enforcing(1, LINKED, enforced);
            write(
                &mut group,
                at(1),
                "INSERT INTO note VALUES(1, 'gone'), (2, 'here'), (3, 'gone')",
            );
            write(&mut group, at(2), "DELETE FROM note WHERE body = 'gone'");
            write(&mut group, at(2), "INSERT INTO note VALUES(3, 'again')");
            write(
                &mut group,
                at(2),
                "INSERT INTO comment VALUES('x', 2, 'here'), ('y', 3, 'again')",
            );
            let mut late = Site::before_backfill_enforcing(2, &filled, enforced);
            if imported {
                while late.store.backfill_block(at(3)).unwrap() {}
            }
            late.pull(&mut group, at(4));
            while late.store.backfill_block(at(5)).unwrap() {}
            let mut sites = [group, late];
            exchange(&mut sites, at(6));
            assert_equal(&sites);
            assert_linked(&sites, 5);
        }
    }
}

/// The tables come when rows for them wait already.
#[test]
fn links_from_before_a_table_was_tracked_follow_a_row_that_moves() {
    for enforced in [false, true] {
        let mut group = Site::enforcing(1, LINKED, enforced);
        write(&mut group, at(1), "INSERT INTO note VALUES(1, 'gone'), (2, 'here'), (3, 'gone')");
        write(&mut group, at(2), "DELETE FROM note WHERE body = 'gone'");
        write(&mut group, at(2), "INSERT INTO note VALUES(3, 'again')");
        write(&mut group, at(2), "INSERT INTO comment VALUES('x', 2, 'here'), ('y', 3, 'again')");
        let mut late =
            Site::enforcing(2, "CREATE TABLE other(k TEXT PRIMARY KEY NOT NULL)", enforced);
        late.pull(&mut group, at(3));
        let tables = LINKED.replace("CREATE TABLE other(k TEXT PRIMARY KEY NOT NULL);", "");
        late.run(&format!(
            "BEGIN; {tables}; INSERT INTO note VALUES(1, 'one'), (2, 'two'), (3, 'three');
             INSERT INTO comment VALUES('a', 1, 'one'), ('b', 2, 'two'), ('c', 3, 'three'); COMMIT"
        ));
        late.fold(at(4));
        while late.store.backfill_block(at(5)).unwrap() {}
        let mut sites = [group, late];
        exchange(&mut sites, at(6));
        assert_equal(&sites);
        assert_linked(&sites, 5);
    }
}

/// With keys enforced, a child goes with its parent until the link is set right.
#[test]
fn links_of_parked_rows_follow_a_row_that_moves() {
    for enforced in [false, true] {
        let tables = LINKED.replace("of)", "of, slug UNIQUE)");
        let mut first = Site::enforcing(1, &tables, enforced);
        let mut second = Site::enforcing(2, &tables, enforced);
        write(&mut first, at(1), "INSERT INTO note VALUES(1, 'first')");
        write(&mut second, at(2), "INSERT INTO note VALUES(1, 'second')");
        write(&mut first, at(3), "INSERT INTO comment VALUES('a', 1, 'first', 's')");
        write(&mut second, at(4), "INSERT INTO comment VALUES('b', 1, 'second', 's')");
        // The second comment is parked for its slug before its note is known to move.
        let own = first.own_site();
        let mut rows = first.pieces(1_000);
        rows.iter_mut().for_each(|rows| rows.tables.retain(|table| table.name == "comment"));
        if enforced {
            second.run("INSERT INTO note VALUES(7, 'other')");
        }
        rows.iter().for_each(|rows| {
            second.apply(own, rows).unwrap();
        });
        write(&mut first, at(5), "DELETE FROM comment; DELETE FROM note");
        let mut sites = [first, second];
        exchange(&mut sites, at(6));
        exchange(&mut sites, at(7));
        assert_equal(&sites);
        assert_linked(&sites, 1);
    }
}

/// An edit is heard of under the key that the row moved to, before it has moved here; and something was
/// forgotten here, so that a patch of a row that is not here may be one of a row that is gone.
#[test]
fn an_edit_of_a_moved_row_comes_to_who_has_it_where_it_was() {
    let mut sites = [Site::new(1, NOTE), Site::new(2, NOTE), Site::new(3, NOTE)];
    let [first, later, third] = &mut sites;
    write(first, at(0), "INSERT INTO note VALUES(1, 'first')");
    write(later, at(10), "INSERT INTO note VALUES(1, 'later')");
    third.pull(later, at(20));
    later.pull(first, at(30));
    write(later, at(40), "UPDATE note SET body = 'edited' WHERE id < 0");
    third.run("INSERT INTO __wavesync_meta VALUES('collected', zeroblob(24))");
    let vector = third.store.folded(at(50), |tx| tx.vector()).unwrap();
    let piece = later.store.folded(at(50), |tx| tx.read_piece(Seq(0), &vector)).unwrap();
    let mut edits = piece.rows.to_batch();
    edits.tables.iter_mut().for_each(|table| table.rows.retain(|row| !row.whole));
    let rows: usize = edits.tables.iter().map(|table| table.rows.len()).sum();
    assert_eq!(rows, 1, "the edit is a patch");
    third.apply(later.own_site(), &edits).unwrap();
    third.pull(later, at(60));
    first.pull(later, at(60));
    assert_equal(&sites);
    assert_shown(&sites, &["edited", "first"]);
}
