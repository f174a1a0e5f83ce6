//! SQLite fails under the engine of one of two replicas that sync: each call of the file system and
//! each allocation, once or until the repair. The engine neither crashes nor spins, says what is
//! wrong, leaves nothing half done and the application alone; after the repair both replicas have
//! every row.
//!
//! All calls are far too many for each run of the tests, so some are chosen, spread evenly.
//! `FAULTS=all` fails all of them, `FAULTS=40` forty of each kind, `ONLY='busy full'` those of
//! these kinds, `FAULT='wal 0 ioerr once 123'` one.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod counter;
#[allow(dead_code)]
#[path = "../simulator/image.rs"]
mod image;
mod memory;
mod scene;
mod source;
#[path = "../stage/mod.rs"]
mod stage;
mod vfs;

use std::panic::{AssertUnwindSafe, catch_unwind};

use scene::{Scene, Shown};
use source::Source;
use vfs::{Fault, Kind};

/// So many calls of each kind, journal mode and replica fail in an ordinary run.
const CHOSEN: u64 = 2;
/// No call has this index.
const NEVER: u64 = u64::MAX;

const KINDS: [(&str, Option<Kind>); 6] = [
    ("busy", Some(Kind::Busy)),
    ("ioerr", Some(Kind::IoErr)),
    ("full", Some(Kind::Full)),
    ("nomem", Some(Kind::NoMem)),
    ("corrupt", Some(Kind::Corrupt)),
    ("malloc", None),
];

fn source(kind: Option<Kind>, index: u64, for_ever: bool) -> Source {
    match kind {
        Some(kind) => Source::Files(Fault { kind, index, for_ever }),
        None => Source::Memory { index, for_ever },
    }
}

/// The indices that are to fail, of so many.
fn chosen(count: u64, salt: u64) -> Vec<u64> {
    let wanted = match std::env::var("FAULTS").as_deref() {
        Ok("all") => count,
        Ok(number) => number.parse().unwrap(),
        Err(_) => CHOSEN,
    };
    if wanted >= count {
        return (0..count).collect();
    }
    let offset = salt * count / (wanted * 7);
    (0..wanted).map(|n| (n * count / wanted + offset) % count).collect()
}

struct Outcome {
    runs: u64,
    calls: u64,
    failed: Vec<String>,
    slowest_ms: u64,
}

fn every_call(journal: &str, victim: usize) {
    memory::register();
    vfs::register();
    if let Ok(one) = std::env::var("FAULT") {
        let words: Vec<&str> = one.split_whitespace().collect();
        let (_, kind) = KINDS.into_iter().find(|(name, _)| *name == words[2]).unwrap();
        if (words[0], words[1]) == (journal, &victim.to_string()[..]) {
            let source = source(kind, words[4].parse().unwrap(), words[3] == "ever");
            let (shown, counted, repair) = Scene::play(journal, victim, source);
            assert_eq!(shown, whole(journal, victim));
            println!("{one}: {counted:?}, even {repair} ms after the repair");
        }
        return;
    }
    let whole = whole(journal, victim);
    let mut failures = Vec::new();
    let only = std::env::var("ONLY").unwrap_or_default();
    for (salt, (name, kind)) in KINDS.into_iter().enumerate() {
        if !only.is_empty() && !only.split_whitespace().any(|word| word == name) {
            continue;
        }
        let (_, (calls, _), _) = Scene::play(journal, victim, source(kind, NEVER, false));
        let mut outcome = Outcome { runs: 0, calls, failed: Vec::new(), slowest_ms: 0 };
        for for_ever in [false, true] {
            let salt = salt as u64 + u64::from(for_ever) * 3;
            for index in chosen(calls, salt) {
                run(journal, victim, &whole, (name, kind, index, for_ever), &mut outcome);
            }
        }
        println!(
            "{journal}, replica {victim}, {name}: {} runs for {} calls, once and for ever; at most \
             {} ms from the repair until both are even; {} failed",
            outcome.runs,
            outcome.calls,
            outcome.slowest_ms,
            outcome.failed.len()
        );
        failures.extend(outcome.failed);
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn whole(journal: &str, victim: usize) -> Shown {
    Scene::play(journal, victim, source(Some(Kind::IoErr), NEVER, false)).0
}

fn run(
    journal: &str,
    victim: usize,
    whole: &Shown,
    (name, kind, index, for_ever): (&str, Option<Kind>, u64, bool),
    outcome: &mut Outcome,
) {
    let play = || Scene::play(journal, victim, source(kind, index, for_ever));
    outcome.runs += 1;
    let ever = if for_ever { "ever" } else { "once" };
    let said = match catch_unwind(AssertUnwindSafe(play)) {
        Ok((shown, counted, repair_ms)) => {
            outcome.slowest_ms = outcome.slowest_ms.max(repair_ms);
            if shown == *whole {
                return assert!(counted.1 > 0 || counted.0 < index, "nothing failed: {counted:?}");
            }
            let only = |a: &Shown, b: &Shown| -> Shown {
                a.iter().filter(|row| !b.contains(row)).cloned().collect()
            };
            format!("rows differ: {:?} and not {:?}", only(&shown, whole), only(whole, &shown))
        }
        Err(panic) => {
            source(kind, index, for_ever).lift();
            memory::switch(false);
            let text = panic.downcast_ref::<String>().cloned();
            text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
                .unwrap_or_default()
        }
    };
    outcome.failed.push(format!("FAULT='{journal} {victim} {name} {ever} {index}': {said}"));
}

#[test]
fn a_file_that_is_locked_for_a_minute_is_asked_for_calmly_and_the_status_says_why() {
    memory::register();
    vfs::register();
    scene::locked_for_a_minute();
}

#[test]
fn a_disk_that_stays_full_is_asked_once_a_second_and_used_soon_after_there_is_room() {
    memory::register();
    vfs::register();
    scene::full_for_a_minute();
}

#[test]
fn a_failed_transaction_gives_the_file_back_although_no_memory_is_left() {
    memory::register();
    vfs::register();
    scene::no_memory_to_roll_back();
}

#[test]
fn a_sync_survives_each_fault_of_the_one_who_has_the_rows_in_wal_mode() {
    every_call("wal", 0);
}

#[test]
fn a_sync_survives_each_fault_of_the_one_who_joins_in_wal_mode() {
    every_call("wal", 1);
}

#[test]
fn a_sync_survives_each_fault_of_the_one_who_has_the_rows_with_a_rollback_journal() {
    every_call("delete", 0);
}

#[test]
fn a_sync_survives_each_fault_of_the_one_who_joins_with_a_rollback_journal() {
    every_call("delete", 1);
}
