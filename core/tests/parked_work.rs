//! What parked rows cost those who write beside them: rows looked at, not time.
#![allow(clippy::unwrap_used)]

mod site;

use site::{NOW, Site, content};
use wavesync_core::ids::Millis;
use wavesync_core::limits;

const ROWS: u64 = 250;
/// Rows looked at for a change of a row or two, however many are parked.
const FEW: u64 = 40;
const TABLES: &str = "
    CREATE TABLE tag(id TEXT PRIMARY KEY NOT NULL, name TEXT UNIQUE, color TEXT);
    CREATE TABLE link(id TEXT PRIMARY KEY NOT NULL, tag TEXT NOT NULL REFERENCES tag(id));
    CREATE TABLE pair(a TEXT, b TEXT, tag TEXT REFERENCES tag(id), PRIMARY KEY(a, b))";

fn at(millis: u64) -> Millis {
    NOW.plus(millis)
}

/// Runs what one site does and the other hears of; returns how many rows each looked at.
fn change(sites: &mut [Site; 2], at: usize, now: Millis, sql: &str) -> [u64; 2] {
    sites.iter_mut().for_each(|site| {
        site.store.examined();
    });
    sites[at].run(sql);
    let pushes = sites[at].fold(now);
    let from = sites[at].own_site();
    for rows in pushes.into_iter().filter_map(|push| push.rows) {
        sites[1 - at].apply(from, &rows).unwrap();
    }
    [sites[0].store.examined(), sites[1].store.examined()]
}

fn count(site: &Site, sql: &str) -> i64 {
    site.app.query_row(sql, [], |row| row.get(0)).unwrap()
}

/// Two devices made the same tags; those of the second one are parked, and every link to them.
#[test]
fn a_change_looks_at_the_parked_rows_that_wait_for_it() {
    let mut sites = [1, 2].map(|number| Site::enforcing(number, TABLES, true));
    for site in &mut sites {
        let bounds = limits::Bounds { chunk_rows: 100_000, ..limits::Bounds::default() };
        site.store.set_bounds(bounds);
    }
    let rows = format!(
        "WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS})
         INSERT INTO tag SELECT 'SITE' || i, 'name ' || i, 'red' FROM n;
         INSERT INTO link SELECT 'SITE' || substr(id, 2), id FROM tag WHERE id LIKE 'SITE%';
         INSERT INTO pair SELECT 'SITE', id, id FROM tag WHERE id LIKE 'SITE%';"
    );
    sites[0].run(&rows.replace("SITE", "a"));
    sites[0].fold(at(1));
    sites[1].run(&rows.replace("SITE", "b"));
    sites[1].fold(at(2));
    let [first, second] = &mut sites;
    for _ in 0..2 {
        first.pull(second, at(3));
        second.pull(first, at(4));
    }
    let parked = "SELECT count(*) FROM __wavesync_parked";
    for site in &sites {
        assert_eq!(count(site, parked), 3 * ROWS as i64);
    }
    let insert =
        "INSERT INTO tag VALUES('new', 'new', 'blue'); INSERT INTO link VALUES('l', 'new');
                  INSERT INTO pair VALUES('n', 'new', 'new')";
    let steps = [
        ("nothing waits for these", insert, 0),
        ("a tag that another waits for", "UPDATE tag SET color = 'green' WHERE id = 'a7'", 0),
        ("no tag at all", "UPDATE pair SET tag = 'a9' WHERE b = 'a8'", 0),
        ("a name becomes free", "UPDATE tag SET name = 'free' WHERE id = 'a7'", 3),
        ("a tag is deleted", "PRAGMA foreign_keys=OFF; DELETE FROM tag WHERE id = 'new'", -2),
        ("it comes back", "INSERT INTO tag VALUES('new', 'n', 'blue')", 2),
        ("an orphan", "PRAGMA foreign_keys=OFF; INSERT INTO pair VALUES('o', 'o', 'later')", -1),
        ("its parent", "INSERT INTO tag VALUES('later', 'l', 'blue')", 1),
    ];
    for (step, (what, sql, back)) in steps.into_iter().enumerate() {
        let before = count(&sites[0], parked);
        let looked_at = change(&mut sites, 0, at(10 + step as u64), sql);
        eprintln!("{what}: {looked_at:?} rows looked at, {} parked", count(&sites[0], parked));
        for (site, looked_at) in sites.iter().zip(looked_at) {
            assert_eq!(before - count(site, parked), back, "{what}");
            assert!(looked_at <= FEW, "{what}: {looked_at} rows");
        }
        assert_eq!(content(&sites[0].image()), content(&sites[1].image()), "{what}");
    }
}
