//! First contact of databases that were filled before they joined: copies are known as copies,
//! other things as other things, whichever side asks; new ids lose nothing and tell nothing of the
//! former ones.
#![allow(clippy::unwrap_used)]

#[path = "site/mod.rs"]
mod site;

use site::{NOW, Site};
use wavesync_core::Error;
use wavesync_core::ids::Seq;
use wavesync_core::limits;
use wavesync_core::store::contact::Existing;

const NOTE: &str = "CREATE TABLE note(id INTEGER PRIMARY KEY, title, done DEFAULT 0);";

fn filled(number: u8, rows: std::ops::Range<i64>, title: &str) -> Site {
    let (from, to) = (rows.start, rows.end);
    Site::new(
        number,
        &format!(
            "{NOTE} WITH RECURSIVE n(i) AS
             (SELECT {from} UNION ALL SELECT i + 1 FROM n WHERE i + 1 < {to})
             INSERT INTO note(id, title) SELECT i, '{title}' || i FROM n"
        ),
    )
}

/// The tables of which one side says that they are unrelated, asked by the other.
fn judged(asks: &mut Site, answers: &mut Site) -> Vec<String> {
    let sample = asks.store.folded(NOW, |tx| tx.sample()).unwrap();
    let most = sample.iter().map(|table| table.rows.len()).max().unwrap_or(0);
    assert!(most <= limits::SAMPLE_MAX_ROWS);
    answers.store.folded(NOW, |tx| tx.unrelated(&sample)).unwrap()
}

fn count(site: &Site, sql: &str) -> i64 {
    site.app.query_row(sql, [], |row| row.get(0)).unwrap()
}

#[test]
fn ten_thousand_equal_rows_are_one_database_without_a_conflict() {
    let (mut a, mut b) = (filled(1, 1..10_001, "t"), filled(2, 1..10_001, "t"));
    assert!(judged(&mut a, &mut b).is_empty() && judged(&mut b, &mut a).is_empty());
    for piece in a.pieces(4_000) {
        b.apply(a.own_site(), &piece).unwrap();
    }
    assert_eq!(count(&b, "SELECT count(*) FROM note"), 10_000);
    assert_eq!(count(&b, "SELECT count(*) FROM __wavesync_conflict"), 0);
}

#[test]
fn copies_that_were_edited_are_known_as_copies_and_lose_nothing_unseen() {
    let mut a = filled(1, 1..1_001, "t");
    let mut b = Site::new(
        2,
        &format!(
            "{NOTE} WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000)
             INSERT INTO note(id, title) SELECT i, 't' || i FROM n;
             UPDATE note SET title = 'edited' WHERE id % 5 = 0"
        ),
    );
    assert!(judged(&mut a, &mut b).is_empty() && judged(&mut b, &mut a).is_empty());
    let blob = a.store.export(NOW, Seq(0)).unwrap();
    b.store.import(NOW, &blob).unwrap();
    let blob = b.store.export(NOW, Seq(0)).unwrap();
    a.store.import(NOW, &blob).unwrap();
    let edited = |site: &Site| count(site, "SELECT count(*) FROM note WHERE title = 'edited'");
    assert_eq!(edited(&a), edited(&b));
    let kept = "SELECT count(*) FROM __wavesync_conflict WHERE kind = 'overwritten'";
    assert_eq!(count(&a, kept) + count(&b, kept), 200, "what gave way is kept on one side");
}

#[test]
fn other_things_under_equal_ids_are_found_whatever_the_sizes() {
    let mut large = filled(1, 1..20_001, "l");
    for rows in [1..2, 7_777..7_782, 19_996..20_001, 1..20_001] {
        let mut other = filled(2, rows.clone(), "s");
        let one = judged(&mut large, &mut other);
        let two = judged(&mut other, &mut large);
        assert!(!one.is_empty() || !two.is_empty(), "rows {rows:?}");
    }
    let mut apart = filled(2, 30_001..30_009, "s");
    assert!(judged(&mut apart, &mut large).is_empty() && judged(&mut large, &mut apart).is_empty());
    let mut none = Site::new(3, NOTE);
    assert!(judged(&mut none, &mut large).is_empty() && judged(&mut large, &mut none).is_empty());
}

#[test]
fn an_export_of_other_things_is_refused_whole() {
    let (mut a, mut b) = (filled(1, 1..4, "a"), filled(2, 1..6, "b"));
    let blob = a.store.export(NOW, Seq(0)).unwrap();
    let before = site::dump(&b.app);
    let refused = b.store.import(NOW, &blob);
    assert!(matches!(&refused, Err(Error::Database(text)) if text.contains("new_ids")));
    assert_eq!(site::dump(&b.app), before);
    b.store.decide_existing(NOW, Existing::NewIds).unwrap();
    while b.store.backfill_block(NOW).unwrap() {}
    b.store.import(NOW, &blob).unwrap();
    assert_eq!(count(&b, "SELECT count(*) FROM note"), 8);
    assert_eq!(count(&b, "SELECT count(*) FROM note WHERE id > 0 AND title LIKE 'a%'"), 3);
    // Nothing that b tells says anything of its former ids: a keeps its rows.
    let blob = b.store.export(NOW, Seq(0)).unwrap();
    a.store.import(NOW, &blob).unwrap();
    assert_eq!(site::content(&a.image()), site::content(&b.image()));
    assert_eq!(count(&a, "SELECT count(*) FROM __wavesync_conflict"), 0);
}

#[test]
fn what_others_have_gets_no_new_ids() {
    let (mut a, mut b) = (filled(1, 1..4, "a"), filled(2, 1..4, "b"));
    let blob = a.store.export(NOW, Seq(0)).unwrap();
    // As a program does that gives its options with every start.
    a.store.decide_existing(NOW, Existing::NewIds).unwrap();
    assert_eq!(count(&a, "SELECT count(*) FROM note WHERE id > 0"), 3);
    let theirs = b.own_site();
    let told = |site: &mut Site, who| {
        let tables = vec!["note".to_owned()];
        site.store
            .write(NOW, |tx| {
                tx.remember_member(who, b"peer", "b")?;
                tx.set_contact(who, Some(&tables))
            })
            .unwrap()
    };
    assert!(told(&mut a, theirs), "it is news");
    a.restart();
    assert!(!told(&mut a, theirs), "and told once");
    let refused = a.store.decide_existing(NOW, Existing::NewIds);
    assert!(matches!(&refused, Err(Error::Argument(text)) if text.contains("have them already")));
    a.store.decide_existing(NOW, Existing::Same).unwrap();
    assert_eq!(a.store.folded(NOW, |tx| tx.contact(theirs)).unwrap(), (None, true));
    assert!(matches!(b.store.import(NOW, &blob), Err(Error::Database(_))));
    b.store.decide_existing(NOW, Existing::Same).unwrap();
    b.store.import(NOW, &blob).unwrap();
    assert_eq!(count(&b, "SELECT count(*) FROM note"), 3);
}
