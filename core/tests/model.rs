//! Random schemas and random scripts on a few replicas, compared after every step with a plain
//! reference model: a map of row states, and a plain SQLite for what SQL means.
//!
//! `CASES=5000 cargo test --profile simulator -p wavesync-core --test model` runs more, `CASE=n` just
//! one. A case that fails is made as short as possible, and printed.
#![allow(clippy::unwrap_used)]

#[path = "model/check.rs"]
mod check;
#[path = "simulator/dice.rs"]
mod dice;
#[path = "model/follow.rs"]
mod follow;
#[path = "model/group.rs"]
mod group;
#[path = "simulator/image.rs"]
#[allow(dead_code)]
mod image;
#[path = "model/net.rs"]
mod net;
#[path = "model/plain.rs"]
mod plain;
#[path = "model/reference.rs"]
mod reference;
#[path = "model/rule.rs"]
mod rule;
#[path = "model/schema.rs"]
mod schema;
#[path = "model/script.rs"]
mod script;

use std::panic::{AssertUnwindSafe, catch_unwind};

use group::Group;
use script::Script;

/// Cases when nothing else is asked for.
const CASES: u64 = 100;
/// Threads that share them.
const THREADS: u64 = 2;
/// Runs that are spent on making a failing case shorter.
const SHORTER_MAX: usize = 600;

fn run(script: &Script) -> Result<(), String> {
    let done = catch_unwind(AssertUnwindSafe(|| {
        let mut group = Group::new(script);
        script.steps.iter().for_each(|step| group.step(step));
        group.complete();
    }));
    done.map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_string()));
        text.unwrap_or_default()
    })
}

/// Leaves out what the failure does not need.
fn shorter(mut script: Script) -> Script {
    let mut left = SHORTER_MAX;
    let mut size = script.steps.len().div_ceil(2);
    while size > 0 && left > 0 {
        let mut at = 0;
        let mut smaller = false;
        while at < script.steps.len() && left > 0 {
            let mut fewer = script.clone();
            fewer.steps.drain(at..(at + size).min(script.steps.len()));
            left -= 1;
            if run(&fewer).is_err() {
                (script, smaller) = (fewer, true);
            } else {
                at += size;
            }
        }
        if !smaller || size > 1 {
            size /= 2;
        }
    }
    for at in 0..script.existing.len() {
        let mut fewer = script.clone();
        fewer.existing[at].clear();
        if run(&fewer).is_err() {
            script = fewer;
        }
    }
    script
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

#[test]
fn every_script_comes_to_what_the_model_says() {
    std::panic::set_hook(Box::new(|_| {}));
    let from = number("CASE").or(number("CASE_FROM")).unwrap_or(1);
    let cases = if number("CASE").is_some() { 1 } else { number("CASES").unwrap_or(CASES) };
    let part = |part: u64| {
        let mine = (from..from + cases).filter(move |case| case % THREADS == part);
        move || mine.filter(|case| run(&Script::random(*case)).is_err()).collect::<Vec<u64>>()
    };
    let failed: Vec<u64> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|n| scope.spawn(part(n))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let _ = std::panic::take_hook();
    if let Some(case) = failed.first() {
        std::panic::set_hook(Box::new(|_| {}));
        let script = shorter(Script::random(*case));
        let what = run(&script).err().unwrap_or_default();
        let _ = std::panic::take_hook();
        panic!("{} of {cases} cases fail: {failed:?}\nCASE={case}\n{script}\n{what}", failed.len());
    }
}
