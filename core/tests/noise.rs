//! Bytes that nobody made on purpose: random ones, and messages and batches with a few bytes bent.
//! Whatever reads bytes of a peer answers with a value or an error, never with a panic, and what it
//! accepts as a batch reads back the same. `NOISE_ROUNDS` runs more; a failure prints its seed.
//!
//! The inputs in `fuzz/corpus` and `fuzz/crashers` are read as well, if there are any.
#![allow(clippy::unwrap_used)]

#[path = "noise/bend.rs"]
mod bend;
#[path = "noise/target.rs"]
mod target;

use std::path::Path;

use bend::{Dice, input};
use target::TARGETS;

/// Inputs per target.
const ROUNDS: u64 = 400;

#[test]
fn random_bytes_are_endured() {
    let rounds = std::env::var("NOISE_ROUNDS").ok().and_then(|text| text.parse().ok());
    for (name, run, seeds) in TARGETS {
        let seeds = seeds();
        let mut accepted = 0;
        // A good input is good: otherwise the rest tests nothing.
        for good in &seeds {
            assert!(run(good), "{name} refuses one of its own examples");
        }
        for seed in 0..rounds.unwrap_or(ROUNDS) {
            let bytes = input(&mut Dice::new(seed), &seeds);
            let outcome = std::panic::catch_unwind(|| run(&bytes));
            let taken = outcome.unwrap_or_else(|_| panic!("{name}, seed {seed}: {bytes:02x?}"));
            accepted += u64::from(taken);
        }
        eprintln!("{name}: {accepted} of {} inputs accepted", rounds.unwrap_or(ROUNDS));
    }
}

#[test]
fn inputs_that_a_fuzzer_kept_are_endured() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
    let mut count = 0;
    for (name, run, _) in TARGETS {
        for kind in ["corpus", "crashers"] {
            let Ok(files) = std::fs::read_dir(fuzz.join(kind).join(name)) else { continue };
            for file in files {
                let path = file.unwrap().path();
                let outcome = std::panic::catch_unwind(|| run(&std::fs::read(&path).unwrap()));
                assert!(outcome.is_ok(), "{name}: {}", path.display());
                count += 1;
            }
        }
    }
    eprintln!("{count} kept inputs");
}

/// Writes what the targets accept as the first inputs of a fuzzer.
#[test]
#[ignore = "writes into the source tree: cargo test --test noise -- --ignored"]
fn the_examples_become_seeds_of_the_fuzzer() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    for (name, _, seeds) in TARGETS {
        std::fs::create_dir_all(corpus.join(name)).unwrap();
        for (number, seed) in seeds().into_iter().enumerate() {
            std::fs::write(corpus.join(name).join(format!("example-{number}")), seed).unwrap();
        }
    }
}
