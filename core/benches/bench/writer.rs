//! What a writer pays, and what the engine adds when it folds.

use rusqlite::Connection;

use crate::data::{Bench, CAPTURES, COMMIT_ROWS, Capture, Key, fold, insert_row};
use crate::measure::{Report, Samples, millis, timed, times};

/// Rows that wait when the engine folds during a bulk write.
const FOLD_ROWS: usize = 10_000;
/// Commits of one row.
const SINGLE_COMMITS: usize = 10_000;
/// Of those, how many come between two folds of a running engine.
const COMMITS_PER_FOLD: usize = 100;

pub fn insert(bench: &Bench, report: &mut Report) {
    let names = ["bulk insert", "insert and fold", "fold of the inserts", "file size"];
    if !report.wants(&names) {
        return;
    }
    let mut samples = Samples::default();
    for _ in 0..report.rounds {
        for (capture, name) in CAPTURES {
            let (conn, _store) = bench.create("insert", capture);
            samples.add(name, timed(|| bench.insert(&conn, &mut |_| {})).0);
            if capture == Capture::None {
                samples.add("plain size", size(&conn));
            }
        }
        let (conn, store) = bench.create("insert", Capture::Wavesync);
        let mut store = store.unwrap();
        let mut folding = 0.0;
        let (all, ()) = timed(|| {
            bench.insert(&conn, &mut |count| {
                if count % FOLD_ROWS == 0 {
                    folding += timed(|| fold(&mut store)).0;
                }
            });
            folding += timed(|| fold(&mut store)).0;
        });
        samples.add("all", all);
        samples.add("fold", folding);
        samples.add("our size", size(&conn));
    }
    let goal = |integer, text| bench.key.goal(integer, text);
    let detail = format!(
        "empty trigger {}, plain {}",
        times(samples.ratio("empty", "plain")),
        millis(samples.median("plain"))
    );
    let ours = times(samples.ratio("ours", "plain"));
    report.line(names[0], goal("<= 1.75x", "<= 1.3x"), &ours, &detail);
    let floor = times(samples.ratio("ours", "empty"));
    report.line(names[0], goal("<= 1.45x", "<= 1.15x"), &floor, "of an empty trigger");
    let all = times(samples.ratio("all", "plain"));
    report.line(names[1], goal("<= 2.8x", "<= 1.7x"), &all, "a fold every 10,000 rows");
    let folds = times(samples.ratio("fold", "plain"));
    report.line(names[2], "", &folds, "of the plain insert");
    let size = times(samples.ratio("our size", "plain size"));
    report.line(names[3], goal("<= 1.35x", "<= 1.45x"), &size, "after fold and trim");
}

/// Bytes of the pages in use.
fn size(conn: &Connection) -> f64 {
    let pages = |name: &str| -> f64 {
        conn.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, i64>(0)).unwrap() as f64
    };
    (pages("page_count") - pages("freelist_count")) * pages("page_size")
}

pub fn autocommit(bench: &Bench, report: &mut Report) {
    let names = ["one-row autocommit", "one-row autocommit and fold"];
    if !report.wants(&names) {
        return;
    }
    let mut samples = Samples::default();
    let cases = CAPTURES.into_iter().chain([(Capture::Wavesync, "fold")]);
    for _ in 0..report.rounds {
        for (capture, name) in cases.clone() {
            let (conn, mut store) = bench.create("auto", capture);
            let mut statement =
                conn.prepare("INSERT INTO t VALUES(?1, ?2, ?3, ?4, ?5, ?6)").unwrap();
            let (cpu, ()) = timed(|| {
                for (at, row) in bench.rows.iter().take(SINGLE_COMMITS).enumerate() {
                    insert_row(&mut statement, bench.key, row);
                    if name == "fold" && (at + 1) % COMMITS_PER_FOLD == 0 {
                        fold(store.as_mut().unwrap());
                    }
                }
            });
            samples.add(name, cpu);
        }
    }
    let detail = format!(
        "empty trigger {}, plain {:.1} us a row",
        times(samples.ratio("empty", "plain")),
        samples.median("plain") * 1e6 / SINGLE_COMMITS as f64
    );
    report.line(names[0], "<= 1.5x", &times(samples.ratio("ours", "plain")), &detail);
    let detail = "process CPU, a fold every 100 commits";
    report.line(names[1], "<= 1.8x", &times(samples.ratio("fold", "plain")), detail);
}

/// Runs a change of many rows on plain SQLite, an empty trigger and ours, then folds.
fn change(bench: &Bench, rounds: usize, work: impl Fn(&Connection)) -> Samples {
    let mut samples = Samples::default();
    for _ in 0..rounds {
        for (capture, name) in CAPTURES {
            let (conn, store) = bench.filled("change", capture);
            let (cpu, ()) = timed(|| work(&conn));
            samples.add(name, cpu);
            if let Some(mut store) = store {
                samples.add("folded", cpu + timed(|| fold(&mut store)).0);
            }
        }
    }
    samples
}

fn report_change(report: &Report, samples: &Samples, names: [&str; 2], goals: [&str; 2]) {
    let empty = times(samples.ratio("empty", "plain"));
    let detail = format!("empty trigger {empty}, plain {}", millis(samples.median("plain")));
    report.line(names[0], goals[0], &times(samples.ratio("ours", "plain")), &detail);
    report.line(names[1], goals[1], &times(samples.ratio("folded", "plain")), "in one fold");
}

fn each_key(bench: &Bench, conn: &Connection, sql: &str, count: usize) {
    let mut statement = conn.prepare(sql).unwrap();
    for places in bench.shuffled[..count].chunks(COMMIT_ROWS) {
        conn.execute_batch("BEGIN").unwrap();
        for place in places {
            let row = &bench.rows[*place];
            let done = match bench.key {
                Key::Integer => statement.execute([row.id]),
                Key::Text => statement.execute([&row.uuid]),
            };
            assert_eq!(done, Ok(1));
        }
        conn.execute_batch("COMMIT").unwrap();
    }
}

pub fn update(bench: &Bench, report: &mut Report) {
    let names = ["bulk update of one column", "bulk update and fold"];
    if report.wants(&names) {
        let samples = change(bench, report.rounds, |conn| {
            let sql = "UPDATE t SET amount = amount + 1 WHERE id = ?1";
            each_key(bench, conn, sql, bench.rows.len());
        });
        report_change(report, &samples, names, ["<= 1.3x", "<= 2.0x"]);
    }
}

pub fn delete(bench: &Bench, report: &mut Report) {
    let names = ["bulk delete", "bulk delete and fold"];
    if report.wants(&names) {
        let samples = change(bench, report.rounds, |conn| {
            each_key(bench, conn, "DELETE FROM t WHERE id = ?1", bench.rows.len() / 2);
        });
        report_change(report, &samples, names, ["<= 1.3x", ""]);
    }
}
