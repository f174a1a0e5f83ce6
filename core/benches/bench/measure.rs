//! CPU time, medians, and the table that is printed. Must not know what is measured.

use std::collections::BTreeMap;

use rustix::time::{ClockId, clock_gettime};

/// CPU seconds that this process has used.
pub fn cpu() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// CPU seconds of a piece of work.
pub fn timed<T>(work: impl FnOnce() -> T) -> (f64, T) {
    let start = cpu();
    let done = work();
    (cpu() - start, done)
}

/// What the rounds of one group measured, by name.
#[derive(Default)]
pub struct Samples(BTreeMap<&'static str, Vec<f64>>);

impl Samples {
    pub fn add(&mut self, name: &'static str, value: f64) {
        self.0.entry(name).or_default().push(value);
    }

    pub fn median(&self, name: &'static str) -> f64 {
        median(self.0.get(name).cloned().unwrap_or_default())
    }

    /// The median of the quotients of one round each.
    pub fn ratio(&self, name: &'static str, base: &'static str) -> f64 {
        let of = |name| self.0.get(name).into_iter().flatten();
        median(of(name).zip(of(base)).map(|(one, other)| one / other).collect())
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Prints one line per measurement, as a table in Markdown.
pub struct Report {
    only: Vec<String>,
    about: &'static str,
    pub rounds: usize,
}

impl Report {
    pub fn new(only: &str, rounds: usize) -> Self {
        let only = only.split_whitespace().map(str::to_lowercase).collect();
        Self { only, about: "", rounds }
    }

    pub fn head(&self) {
        println!("| what | key | goal | measured | of plain SQLite etc. |");
        println!("|---|---|---|---|---|");
    }

    pub fn about(&mut self, key: &'static str) {
        self.about = key;
    }

    /// Whether any line of these is wanted, so that its group has to run.
    pub fn wants(&self, names: &[&str]) -> bool {
        let named = |name: &str| {
            let name = name.to_lowercase();
            self.only.iter().any(|word| name.contains(word.as_str()))
        };
        self.only.is_empty() || names.iter().any(|name| named(name))
    }

    pub fn line(&self, name: &str, goal: &str, measured: &str, detail: &str) {
        if self.wants(&[name]) {
            println!("| {name} | {} | {goal} | {measured} | {detail} |", self.about);
        }
    }
}

pub fn times(ratio: f64) -> String {
    format!("{ratio:.2}x")
}

pub fn millis(seconds: f64) -> String {
    format!("{:.2} ms", seconds * 1e3)
}

pub fn per_second(count: usize, seconds: f64) -> String {
    format!("{:.0} k rows/s", count as f64 / seconds / 1e3)
}
