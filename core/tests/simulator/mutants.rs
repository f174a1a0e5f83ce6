//! Each broken rule is noticed within a bounded number of seeds, and by nothing but its being
//! broken: the same seeds hold without it (house rule 21).

use wavesync_core::mutants::{self, Mutant};

use crate::run;
use crate::world::Plan;

/// A mutant that survives this many seeds is not noticed.
const SEEDS_MAX: u64 = 60;

fn is_killed(mutant: Mutant) {
    for seed in 1..=SEEDS_MAX {
        mutants::set(Some(mutant));
        let outcome = run(Plan::new(seed));
        mutants::set(None);
        let Err(failure) = outcome else { continue };
        eprintln!("{mutant:?}: seed {seed}: {}: {}", failure.oracle, failure.message);
        for seed in 1..=seed {
            let healthy = run(Plan::new(seed));
            assert!(healthy.is_ok(), "seed {seed} fails without {mutant:?}: {healthy:?}");
        }
        return;
    }
    panic!("{mutant:?} survives {SEEDS_MAX} seeds");
}

#[test]
fn p4_applying_without_folding_first_is_noticed() {
    is_killed(Mutant::NoFoldFirst);
}

#[test]
fn p5_serving_without_folding_first_is_noticed() {
    is_killed(Mutant::NoFoldBeforeServe);
}

#[test]
fn p9_a_pass_that_ends_where_the_log_ended_at_its_start_is_noticed() {
    is_killed(Mutant::FixedEnd);
}

#[test]
fn p7_a_vector_that_moves_with_each_chunk_is_noticed() {
    is_killed(Mutant::VectorEachChunk);
}

#[test]
fn p10b_a_push_across_a_gap_is_noticed() {
    is_killed(Mutant::PushAcrossGap);
}

#[test]
fn p11_silence_about_what_moved_is_noticed() {
    is_killed(Mutant::NoAnnounce);
}

#[test]
fn p3_a_clock_that_is_not_stored_is_noticed() {
    is_killed(Mutant::ForgetClock);
}

#[test]
fn h16_dropped_rows_of_unknown_tables_are_noticed() {
    is_killed(Mutant::NoPark);
}

#[test]
fn p17_dropped_rows_of_the_future_are_noticed() {
    is_killed(Mutant::HeldDropped);
}

#[test]
fn p17_a_clock_that_follows_what_is_held_is_noticed() {
    is_killed(Mutant::HeldInClock);
}

#[test]
fn p17_a_vector_without_what_is_held_is_noticed() {
    is_killed(Mutant::HeldOutsideVector);
}

#[test]
fn p17_a_release_that_nobody_is_told_of_is_noticed() {
    is_killed(Mutant::SilentRelease);
}

#[test]
fn k1_a_key_order_scan_that_ends_the_pass_is_noticed() {
    is_killed(Mutant::KeysEndPass);
}

#[test]
fn k1_resuming_behind_a_row_that_was_not_sent_is_noticed() {
    is_killed(Mutant::PlaceAhead);
}
