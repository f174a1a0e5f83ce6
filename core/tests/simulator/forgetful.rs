//! Deletes that are forgotten, and members that come back after that (rules P18 to P20).

use std::sync::atomic::{AtomicU64, Ordering};

use wavesync_core::limits::Bounds;

use crate::dice::Dice;
use crate::oracle::Failure;
use crate::world::{Clocks, Plan, Topology, World};

/// Members that took everything over anew, and pairs that found each other apart.
pub static RESYNCS: AtomicU64 = AtomicU64::new(0);
pub static APART: AtomicU64 = AtomicU64::new(0);

/// A run in which these happen.
pub fn plan(seed: u64) -> Plan {
    let plan = Plan::new(seed);
    let mut dice = Dice::new(seed ^ 0x5A5A);
    let bounds = Bounds {
        tombstone_keep_ms: if dice.percent(50) { 0 } else { dice.within(0, 2_000) },
        member_keep_ms: dice.within(3_000, 12_000),
        collect_rows: dice.within(1, 6) as usize,
        collect_interval_ms: dice.within(500, 3_000),
        ..plan.bounds
    };
    let replicas = dice.within(2, 5) as usize;
    let actions = dice.within(30, 90);
    let topology = if dice.percent(70) { Topology::Mesh } else { plan.topology };
    // What is held is not applied, so one who comes back would wait for the others' time.
    let clocks = if plan.clocks == Clocks::Equal { Clocks::Equal } else { Clocks::Skewed };
    Plan {
        clocks,
        forgetful: true,
        copies: false,
        upheaval: false,
        replicas,
        topology,
        actions,
        bounds,
        ..plan
    }
}

/// The same together with copies of files, with upheaval, or with clocks that are far ahead.
pub fn mixed(seed: u64) -> Plan {
    let plan = plan(seed);
    match seed % 3 {
        0 => Plan { copies: true, ..plan },
        1 => Plan { upheaval: true, ..plan },
        _ => Plan { clocks: Clocks::Wild, ..plan },
    }
}

#[test]
fn what_is_forgotten_and_everything_else() {
    let seeds = crate::number("FORGETFUL_SEEDS").unwrap_or(60);
    let failed = crate::failures(seeds, mixed);
    assert!(failed.is_empty(), "{} of {seeds} seeds failed: {failed:?}", failed.len());
}

#[test]
fn what_is_forgotten_loses_nothing_and_parts_nobody() {
    let seeds = crate::number("FORGETFUL_SEEDS").unwrap_or(60);
    let failed = crate::failures(seeds, plan);
    let (resyncs, apart) = (RESYNCS.load(Ordering::Relaxed), APART.load(Ordering::Relaxed));
    eprintln!("{seeds} seeds: {resyncs} members came back, {apart} found apart");
    assert!(failed.is_empty(), "{} of {seeds} seeds failed: {failed:?}", failed.len());
    assert!(resyncs > 0, "nobody ever came back");
}

/// A member goes where nobody is, for longer than others wait for it.
pub fn go_away(world: &mut World, at: usize) -> Result<(), Failure> {
    // The one in the middle keeps the others together.
    let middle = world.plan.topology != Topology::Mesh && at == 0;
    if middle || !world.away.is_empty() {
        return Ok(());
    }
    let until = world.now + world.plan.bounds.member_keep_ms + world.dice.within(500, 9_000);
    world.say(|| format!("r{at} is away for {}", until - world.now));
    world.away.insert(at, until);
    for link in 0..world.network.links.len() {
        if world.network.links[link].replicas.contains(&at) {
            world.cut(link, None)?;
        }
    }
    Ok(())
}
