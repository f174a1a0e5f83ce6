//! The deterministic simulator: groups of replicas, each the production store and machine over a
//! real SQLite database, under an adversarial network in virtual time. A run follows from its
//! seed; `SEEDS=n` sets how many are run, `SEED_FROM` the first, `SIM_TRACE=1` prints a run.
#![allow(clippy::unwrap_used)]

mod contended;
mod copies;
mod damage;
mod dice;
mod file;
mod forgetful;
mod found;
mod image;
mod mutants;
mod network;
mod oracle;
mod plan;
mod regressions;
mod renames;
mod sole;
mod upheaval;
mod workload;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use oracle::Failure;
use world::{Clocks, Plan, World};

/// Seeds that are run when nothing else is asked for.
const SEEDS: u64 = 150;
/// Threads that share them.
const THREADS: u64 = 2;

/// Runs one seed to its end. Returns the hash of everything that happened.
pub fn run(plan: Plan) -> Result<u64, Failure> {
    let seed = plan.seed;
    catch_unwind(AssertUnwindSafe(|| run_unguarded(plan))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_string()));
        let text = format!("seed {seed}: {}", text.unwrap_or_default());
        oracle::fail("panic", text).map(|()| 0)
    })
}

fn run_unguarded(plan: Plan) -> Result<u64, Failure> {
    live(plan).map(|world| world.trace())
}

/// Runs a group up to where everybody holds the same.
fn live(plan: Plan) -> Result<World, Failure> {
    let mut world = World::new(plan);
    for _ in 0..world.plan.actions {
        let calm = if world.dice.percent(60) { 60 } else { 600 };
        let until = world.now + world.dice.within(0, calm);
        while world.step(until)? {}
        workload::act(&mut world)?;
    }
    oracle::during(&mut world)?;
    if world.plan.schemas_meet {
        workload::complete_schemas(&mut world);
    }
    if world.plan.upheaval {
        upheaval::track_everything(&mut world)?;
    }
    world.say(|| "settle".into());
    oracle::tell_all(&mut world)?;
    if let Some(until) = world.away.values().max().copied() {
        while world.step(until)? {}
    }
    // Longer than the pause after a refused handshake and two rounds of the slow timer.
    world.settle(45_000, 600_000)?;
    oracle::during(&mut world)?;
    if world.plan.clocks == Clocks::Wild {
        if !world.plan.forgetful {
            oracle::same_vectors(&world)?;
        }
        world.pass_days();
        world.settle(45_000, 600_000)?;
        oracle::during(&mut world)?;
    }
    if world.apart {
        return Ok(world);
    }
    oracle::nothing_held(&world)?;
    oracle::converged(&world)?;
    oracle::nothing_lost(&world)?;
    oracle::budget(&mut world)?;
    oracle::no_echo(&mut world)?;
    oracle::during(&mut world)?;
    oracle::integrity(&world)?;
    Ok(world)
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

#[test]
fn every_seed_holds_every_property() {
    let seeds = number("SEEDS").unwrap_or(SEEDS);
    let failed = failures(seeds, Plan::new);
    assert!(failed.is_empty(), "{} of {seeds} seeds failed: {failed:?}", failed.len());
    eprintln!("{seeds} seeds hold");
}

/// Runs so many seeds; gives those that fail. What is wrong with the first ones is printed.
fn failures(seeds: u64, plan: fn(u64) -> Plan) -> Vec<u64> {
    let from = number("SEED_FROM").unwrap_or(1);
    let failures: Vec<(u64, Failure)> = std::thread::scope(|scope| {
        let part = |part: u64| {
            move || -> Vec<(u64, Failure)> {
                let own = (from..from + seeds).filter(|seed| seed % THREADS == part);
                own.filter_map(|seed| Some((seed, run(plan(seed)).err()?))).collect()
            }
        };
        let threads: Vec<_> = (0..THREADS).map(|n| scope.spawn(part(n))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    for (seed, failure) in failures.iter().take(10) {
        eprintln!("seed {seed}: {}: {}", failure.oracle, failure.message);
    }
    failures.into_iter().map(|(seed, _)| seed).collect()
}

#[test]
fn a_seed_replays_exactly() {
    for seed in [3, 14, 15] {
        let hash = |_| run(Plan::new(seed)).map_err(|failure| failure.oracle);
        assert_eq!(hash(1), hash(2), "seed {seed}");
    }
}
