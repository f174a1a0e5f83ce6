//! Delete, re-insert and edit of one row on three replicas that do not hear of each other, in every
//! combination, every order of time and several of delivery: what comes of it is written out here.
#![allow(clippy::unwrap_used)]

mod site;

use std::collections::BTreeSet;

use site::{NOW, Site};

const SITES: usize = 3;
const TABLES: &str = "
    CREATE TABLE t(k TEXT PRIMARY KEY NOT NULL, a, b, number);
    CREATE TABLE n(k INTEGER PRIMARY KEY, a, b, number)";

/// What a replica does to a row, all of it at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Nothing,
    Edit,
    Delete,
    EditAndDelete,
    Insert,
    InsertAndEdit,
}

const ACTS: [Act; 6] =
    [Act::Nothing, Act::Edit, Act::Delete, Act::EditAndDelete, Act::Insert, Act::InsertAndEdit];

impl Act {
    fn sql(self, table: &str, key: &str, number: usize, site: usize) -> String {
        let edit = |word: &str| format!("UPDATE {table} SET b = '{word} {site}' WHERE k = {key};");
        let delete = format!("DELETE FROM {table} WHERE k = {key};");
        let insert =
            format!("INSERT INTO {table} VALUES({key}, 'new {site}', 'new {site}', {number});");
        match self {
            Self::Nothing => String::new(),
            Self::Edit => edit("edit"),
            Self::Delete => delete,
            Self::EditAndDelete => edit("edit") + &delete,
            Self::Insert => delete + &insert,
            Self::InsertAndEdit => delete + &insert + &edit("after"),
        }
    }

    fn inserts(self) -> bool {
        matches!(self, Self::Insert | Self::InsertAndEdit)
    }

    fn deletes(self) -> bool {
        matches!(self, Self::Delete | Self::EditAndDelete)
    }
}

/// The acts of the sites on one row.
type Acts = [Act; SITES];

fn acts(number: usize) -> Acts {
    [ACTS[number % 6], ACTS[number / 6 % 6], ACTS[number / 36]]
}

/// The orders of three things.
const ORDERS: [[usize; SITES]; 6] =
    [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

/// A row as it is shown: whether it has its first key, and its columns.
type Shown = BTreeSet<(bool, String, String)>;

/// What every replica shows in the end; `order` are the sites by the time of their acts.
fn expected(acts: Acts, order: [usize; SITES], integer: bool) -> Shown {
    let inserted: Vec<usize> = order.into_iter().filter(|site| acts[*site].inserts()).collect();
    let fresh = |home: bool, site: usize| {
        let b = if acts[site] == Act::InsertAndEdit { "after" } else { "new" };
        (home, format!("new {site}"), format!("{b} {site}"))
    };
    match (&inserted[..], integer) {
        // Nobody inserted it again: a delete wins over every edit, else the latest edit stands.
        ([], _) if acts.iter().any(|act| act.deletes()) => Shown::new(),
        ([], _) => {
            let edited = order.into_iter().rfind(|site| acts[*site] == Act::Edit);
            let b = edited.map_or("old".into(), |site| format!("edit {site}"));
            Shown::from([(true, "old".into(), b)])
        }
        // The new rows of an INTEGER key are different things: the earliest has the key.
        ([first, later @ ..], true) => std::iter::once(fresh(true, *first))
            .chain(later.iter().map(|site| fresh(false, *site)))
            .collect(),
        // Another key names one thing: the latest value of each column stands, and whoever
        // inserted it wrote all of them.
        ([.., last], false) => Shown::from([fresh(true, *last)]),
    }
}

fn shown(site: &Site, table: &str, number: usize) -> Shown {
    let sql = format!("SELECT k IN (?1, 'k' || ?1), a, b FROM {table} WHERE number = ?1");
    let mut statement = site.app.prepare(&sql).unwrap();
    let rows =
        statement.query_map([number as i64], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)));
    rows.unwrap().map(Result::unwrap).collect()
}

/// An edit that nothing is later than is kept by who made it, if the row went.
fn lost_edit(acts: Acts, order: [usize; SITES]) -> Option<usize> {
    let last = order.into_iter().rfind(|site| acts[*site] != Act::Nothing)?;
    let goes = acts.iter().any(|act| act.deletes() || act.inserts());
    (acts[last] == Act::Edit && goes).then_some(last)
}

fn kept(site: &Site, key: &dyn rusqlite::ToSql, edit: &str) -> i64 {
    let sql = "SELECT count(*) FROM __wavesync_conflict
               WHERE kind = 'overwritten' AND k = ?1 AND ours LIKE ?2";
    site.app.query_row(sql, [key, &format!("%{edit}%")], |row| row.get(0)).unwrap()
}

/// `before`: the row stood in all three files before they joined.
fn case(order: [usize; SITES], delivery: [usize; SITES], before: bool) {
    let count = ACTS.len().pow(3);
    let rows = format!(
        "WITH i(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM i WHERE i < {})
         INSERT INTO t SELECT 'k' || i, 'old', 'old', i FROM i;
         INSERT INTO n SELECT number, a, b, number FROM t;",
        count - 1
    );
    let filled = if before { format!("{TABLES}; {rows}") } else { TABLES.into() };
    let mut sites: Vec<Site> = (1..=3).map(|number| Site::new(number, &filled)).collect();
    if !before {
        sites[0].run(&rows);
        sites[0].fold(NOW.plus(1));
    }
    let pull = |sites: &mut [Site], to: usize, from: usize, time: u64| {
        let [to, from] = sites.get_disjoint_mut([to, from]).unwrap();
        to.pull(from, NOW.plus(time));
    };
    for (to, from) in [(1, 0), (2, 1), (0, 2), (1, 2)] {
        pull(&mut sites, to, from, 2);
    }
    for (time, site) in order.into_iter().enumerate() {
        let sql = |number: usize| {
            let act = acts(number)[site];
            let text = act.sql("t", &format!("'k{number}'"), number, site);
            text + &act.sql("n", &number.to_string(), number, site)
        };
        let all: String = (0..count).map(sql).collect();
        sites[site].run(&format!("BEGIN; {all} COMMIT"));
        sites[site].fold(NOW.plus(10 + 10 * time as u64));
    }
    // One hears of the others by way of the second, and late.
    let [a, b, c] = delivery;
    for (to, from) in [(a, b), (c, a), (b, c), (a, c), (c, b), (b, a), (a, b)] {
        pull(&mut sites, to, from, 100);
    }
    for number in 0..count {
        let acts = acts(number);
        let what = format!("{acts:?} at {order:?}, heard of at {delivery:?}, before {before}");
        for (at, site) in sites.iter().enumerate() {
            for (table, integer) in [("t", false), ("n", true)] {
                let expected = expected(acts, order, integer);
                assert_eq!(shown(site, table, number), expected, "site {at}, {table}: {what}");
            }
        }
        if let Some(site) = lost_edit(acts, order) {
            let edit = format!("edit {site}");
            assert_eq!(kept(&sites[site], &format!("k{number}"), &edit), 1, "{what}");
            assert_eq!(kept(&sites[site], &(number as i64), &edit), 1, "{what}");
        }
    }
}

#[test]
fn every_order_of_delete_insert_and_edit_comes_to_what_the_rules_say() {
    for (number, order) in ORDERS.into_iter().enumerate() {
        case(order, ORDERS[(5 * number + 2) % 6], false);
        case(order, ORDERS[number], true);
    }
}
