//! Each broken rule is noticed within a bounded number of seeds, and by nothing but its being
//! broken: the seed that shows it holds without it (house rule 21).

use wavesync_core::mutants::{self, Mutant};

use crate::forgetful;
use crate::found;
use crate::run;
use crate::world::Plan;

/// A mutant that survives this many seeds is not noticed.
const SEEDS_MAX: u64 = 120;

/// A mutant that one property notices first; the others hold until then.
fn is_killed_by(mutant: Mutant, oracle: &str) {
    let found = is_killed(mutant);
    assert_eq!(found, oracle, "{mutant:?}");
}

fn is_killed(mutant: Mutant) -> &'static str {
    is_killed_in(Plan::new, mutant)
}

fn is_killed_in(plan: fn(u64) -> Plan, mutant: Mutant) -> &'static str {
    for seed in found::seeds("mutants", mutant, SEEDS_MAX) {
        mutants::set(Some(mutant));
        let outcome = run(plan(seed));
        mutants::set(None);
        let Err(failure) = outcome else { continue };
        eprintln!("{mutant:?}: seed {seed}: {}: {}", failure.oracle, failure.message);
        let healthy = run(plan(seed));
        assert!(healthy.is_ok(), "seed {seed} fails without {mutant:?}: {healthy:?}");
        return failure.oracle;
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

#[test]
fn k2_a_cursor_below_the_horizon_that_is_served_from_the_log_is_noticed() {
    is_killed(Mutant::HorizonIgnored);
}

#[test]
fn p7b_removing_the_newest_log_entry_is_noticed() {
    is_killed(Mutant::TrimNewest);
}

#[test]
fn p8_rows_that_are_written_set_wise_and_leave_no_log_entry_are_noticed() {
    is_killed(Mutant::BulkUnlogged);
}

#[test]
fn i7_what_was_seen_and_is_forgotten_is_noticed() {
    is_killed_by(Mutant::ForgetVector, "echo");
}

#[test]
fn p13_a_fork_that_is_not_seen_is_noticed() {
    is_killed(Mutant::ForkUnseen);
}

#[test]
fn p14_a_copy_that_keeps_its_site_is_noticed() {
    is_killed(Mutant::CloneKeepsSite);
}

#[test]
fn p14_a_second_history_that_counts_as_seen_is_noticed() {
    is_killed(Mutant::CapUnheeded);
}

#[test]
fn an_untracked_table_that_counts_as_seen_is_noticed() {
    is_killed_in(crate::upheaval::plan, Mutant::UntrackedClaimed);
}

#[test]
fn claims_that_come_back_before_what_was_lost_are_noticed() {
    is_killed_in(crate::upheaval::plan, Mutant::RegainedEarly);
}

#[test]
fn a_dropped_column_whose_values_are_gone_is_noticed() {
    is_killed_in(crate::upheaval::plan, Mutant::DropColumnLoses);
}

#[test]
fn p18_rows_that_begin_at_the_bottom_are_noticed() {
    is_killed_in(forgetful::plan, Mutant::NoFloor);
}

#[test]
fn p19_merging_with_who_missed_what_was_forgotten_is_noticed() {
    is_killed_in(forgetful::plan, Mutant::StaleMerged);
}

#[test]
fn p20_rows_that_were_deleted_meanwhile_and_stay_are_noticed() {
    is_killed_in(forgetful::plan, Mutant::NoAbsence);
}

#[test]
fn p20_rows_of_who_comes_back_that_begin_no_higher_are_noticed() {
    is_killed_in(forgetful::plan, Mutant::NoRebase);
}
