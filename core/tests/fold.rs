//! The fold in bulk and the fold row by row come to the same, whatever was written.
#![allow(clippy::unwrap_used)]

mod site;

use proptest::prelude::*;
use rusqlite::Connection;
use site::{NOW, Site, batch, dump, row};
use wavesync_core::ids::{Dot, Millis, SiteId, Stamp};
use wavesync_core::limits::Bounds;
use wavesync_core::value::Value;
use wavesync_core::wire::rows::Batch;

const SCHEMA: &str = "
    CREATE TABLE num(id INTEGER PRIMARY KEY, a, b);
    CREATE TABLE txt(k TEXT PRIMARY KEY NOT NULL, a, b);
    CREATE TABLE pair(x, y, v, PRIMARY KEY(x, y)) WITHOUT ROWID;
    CREATE TABLE loose(k PRIMARY KEY, a);
    CREATE TABLE uni(k TEXT PRIMARY KEY NOT NULL, a UNIQUE, b);
    WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n LIMIT 12)
    INSERT INTO num SELECT n, n, n FROM n;";

#[derive(Clone, Debug)]
enum Step {
    /// Some rows into a table, new ones or over old ones.
    Insert {
        table: usize,
        from: i64,
        count: i64,
        replace: bool,
    },
    Update {
        table: usize,
        from: i64,
        count: i64,
    },
    Delete {
        table: usize,
        from: i64,
        count: i64,
    },
    /// A row of another replica, which may stand in the way of local ones.
    Remote {
        key: i64,
        value: i64,
    },
    AddColumn,
    /// One more block of the rows that were there before.
    Import,
    Fold {
        step: i64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let some = || (0usize..5, 0i64..30, 1i64..12);
    prop_oneof![
        6 => (some(), any::<bool>()).prop_map(|((table, from, count), replace)| {
            Step::Insert { table, from, count, replace }
        }),
        2 => some().prop_map(|(table, from, count)| Step::Update { table, from, count }),
        2 => some().prop_map(|(table, from, count)| Step::Delete { table, from, count }),
        1 => (0i64..30, 0i64..30).prop_map(|(key, value)| Step::Remote { key, value }),
        1 => Just(Step::AddColumn),
        2 => Just(Step::Import),
        3 => (-40i64..60).prop_map(|step| Step::Fold { step }),
    ]
}

/// The statement of a local change.
fn sql(step: &Step) -> Option<String> {
    const NAMES: [&str; 5] = ["num", "txt", "pair", "loose", "uni"];
    // Keys in no order; of a composite key one part is a real, of a loose one some are NULL.
    const KEYS: [&str; 5] = [
        "n * 7 % 31",
        "printf('k%02d', n * 7 % 31)",
        "n % 5, CASE n % 3 WHEN 0 THEN n / 8.0 ELSE n END",
        "CASE n % 4 WHEN 0 THEN NULL WHEN 1 THEN n ELSE 't' || n END",
        "printf('u%02d', n)",
    ];
    const REST: [&str; 5] = ["n, 'x'", "n, NULL", "n", "n", "n % 17, n"];
    const COLUMNS: [&str; 5] = ["id, a, b", "k, a, b", "x, y, v", "k, a", "k, a, b"];
    const CHANGED: [&str; 5] = ["a", "b", "v", "a", "b"];
    let numbers = |from: &i64, count: &i64| {
        format!(
            "WITH RECURSIVE n(n) AS (SELECT {from} UNION ALL SELECT n + 1 FROM n LIMIT {count})"
        )
    };
    Some(match step {
        Step::Insert { table, from, count, replace } => format!(
            "{} INSERT OR {} INTO {}({}) SELECT {}, {} FROM n",
            numbers(from, count),
            if *replace { "REPLACE" } else { "IGNORE" },
            NAMES[*table],
            COLUMNS[*table],
            KEYS[*table],
            REST[*table]
        ),
        Step::Update { table, from, count } => {
            let (name, column) = (NAMES[*table], CHANGED[*table]);
            format!(
                "UPDATE {name} SET {column} = {from} WHERE {column} BETWEEN {from} AND {from} + {count}"
            )
        }
        Step::Delete { table, from, count } => {
            let (name, column) = (NAMES[*table], CHANGED[*table]);
            format!("DELETE FROM {name} WHERE {column} BETWEEN {from} AND {from} + {count}")
        }
        _ => return None,
    })
}

fn remote(key: i64, value: i64) -> Batch {
    let birth = Dot { stamp: Stamp::at(key + 1), site: SiteId([9; 16]) };
    let mut row = row(&format!("u{key:02}"));
    row.birth = birth;
    row.cells = vec![(0, birth, Value::Integer(value)), (1, birth, Value::Null)];
    let mut batch = batch(vec![row]);
    batch.tables[0].name = "uni".into();
    batch
}

/// Runs the steps with runs of this length folded in bulk. Everything that the file holds then,
/// and what was pushed.
fn run(steps: &[Step], fold_run_rows: usize) -> (String, String) {
    let mut site = Site::before_backfill(1, SCHEMA);
    let push_rows = if steps.len().is_multiple_of(2) { 4 } else { 256 };
    site.store.set_bounds(Bounds {
        fold_run_rows,
        backfill_rows: 5,
        push_rows,
        ..Bounds::default()
    });
    let mut now = NOW;
    let (mut columns, mut pushed) = (0, String::new());
    for step in steps {
        match step {
            Step::Remote { key, value } => {
                set_times(&site.app);
                site.apply(SiteId([9; 16]), &remote(*key, *value)).unwrap();
            }
            Step::AddColumn if columns < 3 => {
                columns += 1;
                site.run(&format!("ALTER TABLE txt ADD COLUMN more{columns} DEFAULT {columns}"));
            }
            Step::AddColumn => {}
            Step::Import => {
                set_times(&site.app);
                site.store.backfill_block(now).unwrap();
            }
            Step::Fold { step } => {
                now = Millis(now.0.saturating_add_signed(*step));
                set_times(&site.app);
                pushed.push_str(&format!("{:?}\n", site.fold(now)));
            }
            local => {
                // A value that is taken refuses the statement, here as there.
                let _ = site.app.execute_batch(&sql(local).unwrap());
            }
        }
    }
    set_times(&site.app);
    pushed.push_str(&format!("{:?}\n", site.fold(now)));
    (dump(&site.app), pushed)
}

/// The first line in which two texts differ.
fn difference(one: &(String, String), two: &(String, String)) -> Option<String> {
    let lines = |run: &(String, String)| format!("{}{}", run.0, run.1);
    let (one, two) = (lines(one), lines(two));
    let both = one.lines().zip(two.lines());
    let mut different = both.filter(|(one, two)| one != two);
    let found =
        different.next().map(|(one, two)| format!("in bulk    {one:.400}\nrow by row {two:.400}"));
    found.or_else(|| (one != two).then(|| "one has more lines".to_string()))
}

/// The same times in both runs: forward, standing still, backwards, and far ahead.
fn set_times(app: &Connection) {
    app.execute(
        "UPDATE __wavesync_log SET at = ?1 + seq * 37 % 90 - 45 + (seq % 13 = 0) * 1000000
         WHERE at IS NOT NULL
           AND seq > (SELECT value FROM __wavesync_meta WHERE key = 'folded')",
        [NOW.0 as i64],
    )
    .unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn in_bulk_and_row_by_row_are_the_same(
        steps in prop::collection::vec(step(), 1..24), run_rows in 1usize..6,
    ) {
        prop_assert_eq!(difference(&run(&steps, run_rows), &run(&steps, usize::MAX)), None);
    }
}

#[test]
fn a_large_insert_is_folded_in_bulk_and_repeated_keys_follow_one_by_one() {
    let insert = |from| Step::Insert { table: 1, from, count: 400, replace: true };
    let steps =
        [insert(0), Step::Fold { step: 1 }, insert(200), insert(700), Step::Fold { step: 9 }];
    let bulk = run(&steps, Bounds::default().fold_run_rows);
    assert_eq!(difference(&bulk, &run(&steps, usize::MAX)), None);
}
