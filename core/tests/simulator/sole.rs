//! Each oracle is the only one to notice some broken rule: without it, the mutant would survive
//! (house rule 21). An oracle that others could replace, or that cannot fail, does not pass here.

use wavesync_core::mutants::{self, Mutant};

use crate::oracle::{self, Failure, ORACLES};
use crate::run;
use crate::world::{Clocks, Plan, Topology};

/// Runs in which the mutant has to be noticed.
const CAUGHT: usize = 3;
/// A mutant that survives this many seeds is not noticed.
const SEEDS_MAX: u64 = 120;

/// An oracle, the mutant that only it notices, and the plans under which that is so.
struct Case {
    oracle: &'static str,
    mutant: Mutant,
    plan: fn(u64) -> Plan,
}

const CASES: [Case; 17] = [
    Case { oracle: "panic", mutant: Mutant::GapUnexpected, plan: Plan::new },
    Case { oracle: "error report", mutant: Mutant::WarningIsError, plan: wild },
    Case { oracle: "quiet", mutant: Mutant::RestlessWhileParked, plan: Plan::new },
    Case { oracle: "monotone", mutant: Mutant::ClockOfOwn, plan: Plan::new },
    Case { oracle: "own clock", mutant: Mutant::HeldInClock, plan: wild },
    Case { oracle: "vector soundness", mutant: Mutant::ReinsertKeepsDelete, plan: pair },
    Case { oracle: "T = f(L)", mutant: Mutant::KeysUnplaced, plan: Plan::new },
    Case { oracle: "one event, one value", mutant: Mutant::UnsignedCells, plan: pair },
    Case { oracle: "convergence", mutant: Mutant::ParkedForGood, plan: contended },
    Case { oracle: "no accepted write is lost", mutant: Mutant::EveryColumnWritten, plan: equal },
    Case { oracle: "release", mutant: Mutant::SilentRelease, plan: wild_pair },
    Case { oracle: "echo", mutant: Mutant::ForgetVector, plan: Plan::new },
    Case { oracle: "caught up", mutant: Mutant::CaughtUpByRows, plan: Plan::new },
    Case { oracle: "budget", mutant: Mutant::NoJump, plan: mesh },
    Case { oracle: "integrity", mutant: Mutant::ChecksIgnored, plan: contended },
    Case { oracle: "foreign keys", mutant: Mutant::ParentsIgnored, plan: contended },
    Case { oracle: "one engine per site", mutant: Mutant::CloneKeepsSite, plan: copied },
];

/// Two replicas, nobody starts again and nothing is cut, and the order of writes is nobody's.
pub fn pair(seed: u64) -> Plan {
    let (replicas, topology, clocks) = (2, Topology::Line, Clocks::Skewed);
    Plan { replicas, topology, clocks, calm: true, contended: false, ..Plan::new(seed) }
}

/// Who starts over is sent what was released, too.
fn wild_pair(seed: u64) -> Plan {
    Plan { replicas: 2, topology: Topology::Line, upheaval: false, ..wild(seed) }
}

fn wild(seed: u64) -> Plan {
    Plan { clocks: Clocks::Wild, ..Plan::new(seed) }
}

fn contended(seed: u64) -> Plan {
    Plan { contended: true, ..Plan::new(seed) }
}

fn copied(seed: u64) -> Plan {
    Plan { copies: true, ..Plan::new(seed) }
}

fn equal(seed: u64) -> Plan {
    Plan { clocks: Clocks::Equal, ..Plan::new(seed) }
}

fn mesh(seed: u64) -> Plan {
    Plan { topology: Topology::Mesh, schemas_meet: true, ..Plan::new(seed) }
}

fn with(mutant: Mutant, plan: Plan) -> Result<u64, Failure> {
    mutants::set(Some(mutant));
    let outcome = run(plan);
    mutants::set(None);
    outcome
}

fn is_noticed_by_it_alone(case: &Case) {
    let Case { oracle, mutant, plan } = *case;
    let mut caught = 0;
    for seed in crate::found::seeds("sole", mutant, SEEDS_MAX) {
        let Err(failure) = with(mutant, plan(seed)) else { continue };
        assert_eq!(failure.oracle, oracle, "{mutant:?}, seed {seed}: {}", failure.message);
        let blind = oracle::without(oracle, || with(mutant, plan(seed)));
        assert!(blind.is_ok(), "{mutant:?}, seed {seed}: without '{oracle}': {blind:?}");
        let healthy = run(plan(seed));
        assert!(healthy.is_ok(), "seed {seed} fails without {mutant:?}: {healthy:?}");
        eprintln!("{mutant:?}: seed {seed}: {oracle}");
        caught += 1;
        if caught == CAUGHT {
            eprintln!("{mutant:?}: noticed by '{oracle}' alone, {caught} times up to seed {seed}");
            return;
        }
    }
    panic!("{mutant:?} was noticed {caught} times in {SEEDS_MAX} seeds");
}

fn alone(oracle: &str) {
    let case = CASES.iter().find(|case| case.oracle == oracle);
    is_noticed_by_it_alone(case.expect("every oracle has its case"));
}

#[test]
fn every_oracle_has_a_mutant_of_its_own() {
    let named: Vec<&str> = CASES.iter().map(|case| case.oracle).collect();
    assert_eq!(named, ORACLES);
}

#[test]
fn only_panics_notices() {
    alone("panic");
}

#[test]
fn only_error_reports_notices() {
    alone("error report");
}

#[test]
fn only_quiet_notices() {
    alone("quiet");
}

#[test]
fn only_monotone_notices() {
    alone("monotone");
}

#[test]
fn only_own_clock_notices() {
    alone("own clock");
}

#[test]
fn only_vector_soundness_notices() {
    alone("vector soundness");
}

#[test]
fn only_table_follows_rows_notices() {
    alone("T = f(L)");
}

#[test]
fn only_one_event_one_value_notices() {
    alone("one event, one value");
}

#[test]
fn only_convergence_notices() {
    alone("convergence");
}

#[test]
fn only_no_accepted_write_is_lost_notices() {
    alone("no accepted write is lost");
}

#[test]
fn only_release_notices() {
    alone("release");
}

#[test]
fn only_echo_notices() {
    alone("echo");
}

#[test]
fn only_caught_up_notices() {
    alone("caught up");
}

#[test]
fn only_budget_notices() {
    alone("budget");
}

#[test]
fn only_integrity_notices() {
    alone("integrity");
}

#[test]
fn only_foreign_keys_notices() {
    alone("foreign keys");
}

#[test]
fn only_one_engine_per_site_notices() {
    alone("one engine per site");
}
