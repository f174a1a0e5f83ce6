//! What wavesync costs, as ratios of CPU time to plain SQLite in the same run, beside the goals.
//!
//! `make bench`, or single lines: `make bench ONLY='fold merge' KEYS=int ROWS=100000 ROUNDS=3`.
//! The rounds of what is compared alternate, the median counts, and no timing fails anything.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod data;
mod measure;
mod python;
mod small;
mod transfer;
mod writer;

use data::Key;
use measure::Report;

fn setting<T: std::str::FromStr>(name: &str, otherwise: T) -> T {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

fn main() {
    let rows: usize = setting("ROWS", 100_000);
    let rounds: usize = setting("ROUNDS", 5).max(1);
    let only: String = setting("ONLY", String::new());
    let keys: String = setting("KEYS", String::new());
    let mut report = Report::new(&only, rounds);
    println!("{rows} rows of 6 columns, median of {rounds} rounds, CPU time\n");
    report.head();
    for key in [Key::Integer, Key::Text] {
        if !keys.is_empty() && !key.name().eq_ignore_ascii_case(&keys) {
            continue;
        }
        report.about(key.name());
        let bench = data::Bench::new(key, rows);
        writer::insert(&bench, &mut report);
        python::insert(&bench, &mut report);
        writer::autocommit(&bench, &mut report);
        writer::update(&bench, &mut report);
        writer::delete(&bench, &mut report);
        transfer::export(&bench, &mut report);
        transfer::merge(&bench, &mut report);
        small::delta(&bench, &mut report);
        small::one_cell(&bench, &mut report);
    }
    report.about("any");
    small::empty_poll(&mut report);
}
