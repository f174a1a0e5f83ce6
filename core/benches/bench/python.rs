//! The same bulk insert from Python's own `sqlite3`, with the triggers that are in the file.

use std::path::Path;
use std::process::Command;

use crate::data::{Bench, Capture};
use crate::measure::{Report, Samples, millis, times};

const PYTHON: &str = "/usr/bin/python3";

/// Inserts the rows of one file into another and prints its CPU seconds.
const SCRIPT: &str = "
import sqlite3, sys, time
rows = sqlite3.connect(sys.argv[1]).execute('SELECT * FROM t').fetchall()
conn = sqlite3.connect(sys.argv[2], isolation_level=None)
conn.execute('PRAGMA synchronous=NORMAL')
start = time.process_time()
for at in range(0, len(rows), 1000):
    conn.execute('BEGIN')
    conn.executemany('INSERT INTO t VALUES(?, ?, ?, ?, ?, ?)', rows[at:at + 1000])
    conn.execute('COMMIT')
print(time.process_time() - start)
";

pub fn insert(bench: &Bench, report: &mut Report) {
    let name = "bulk insert, from Python";
    if !report.wants(&[name]) || !Path::new(PYTHON).exists() {
        return;
    }
    drop(bench.filled("python-rows", Capture::None));
    let mut samples = Samples::default();
    for _ in 0..report.rounds {
        for (capture, name) in crate::data::CAPTURES {
            drop(bench.create("python", capture));
            samples.add(name, run(&bench.path("python-rows"), &bench.path("python")));
        }
    }
    let detail = format!(
        "empty trigger {}, plain {}",
        times(samples.ratio("empty", "plain")),
        millis(samples.median("plain"))
    );
    let ours = times(samples.ratio("ours", "plain"));
    report.line(name, bench.key.goal("<= 1.75x", "<= 1.3x"), &ours, &detail);
}

fn run(rows: &Path, file: &Path) -> f64 {
    let done = Command::new(PYTHON).args(["-c", SCRIPT]).args([rows, file]).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).trim().parse().unwrap()
}
