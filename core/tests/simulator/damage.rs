//! Files that were damaged behind their engines' backs, after everybody had the same: rule P15 notices
//! it once the engine runs again, and what one side has left is there at both in the end.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};

use rusqlite::config::DbConfig;
use rusqlite::params;
use wavesync_core::mutants::{self, Mutant};
use wavesync_core::value::Value;

use crate::image::Image;
use crate::oracle::{self, Check, Failure};
use crate::world::{Clocks, Plan, World};

/// Seeds whose files are damaged: so many, or that part of a run of more.
const SEEDS: u64 = 60;
const SHARE: u64 = 10;
/// Tables whose keys have one column.
const TABLES: [&str; 6] = ["num", "one", "txt", "safe", "late", "later"];
/// Ways of damaging a row.
const KINDS: usize = 5;

/// How often each way of damaging happened.
static DONE: [AtomicU64; KINDS] = [const { AtomicU64::new(0) }; KINDS];

fn plan(seed: u64) -> Plan {
    let clocks = if seed.is_multiple_of(2) { Clocks::Equal } else { Clocks::Skewed };
    Plan { clocks, copies: false, upheaval: false, schemas_meet: true, ..Plan::new(seed) }
}

/// A run that ends with damaged files that are mended.
fn run(plan: Plan) -> Check {
    let mut world = crate::live(plan)?;
    world.damaged = true;
    world.told.clear();
    let hurt = world.dice.within(1, 2).min(world.replicas.len() as u64 - 1) as usize;
    let (mut damaged, images) = (Vec::new(), world.images());
    // A row that is damaged everywhere cannot be mended.
    let mut spared: BTreeSet<(&str, Value)> = BTreeSet::new();
    for _ in 0..hurt {
        let at = world.dice.index(world.replicas.len());
        for _ in 0..world.dice.within(1, 3) {
            if damage(&mut world, at, &images[at], &mut spared) {
                damaged.push(at);
            }
        }
    }
    damaged.sort_unstable();
    damaged.dedup();
    for at in &damaged {
        world.restart(*at)?;
    }
    world.settle(45_000, 600_000)?;
    for at in &damaged {
        let seen = world.told.iter().any(|(who, code)| *code == "difference" && who == at);
        if !seen {
            return amiss(format!("the damage of {at} is not noticed"));
        }
    }
    if let Some((at, _)) = world.told.iter().find(|(_, code)| *code == "diverged") {
        return amiss(format!("what {at} lacks is not repaired"));
    }
    oracle::mended(&world)?;
    // Everybody is content, and nothing is read again.
    let repairs = |world: &World| -> u64 {
        let all = world.replicas.iter();
        all.map(|replica| replica.machine.progress().check.repairs).sum()
    };
    let before = repairs(&world);
    world.settle(45_000, 600_000)?;
    let wrong = world.replicas.iter().flat_map(|replica| replica.machine.peers());
    let wrong: Vec<String> = wrong.map(|peer| peer.last_error).filter(|e| !e.is_empty()).collect();
    if repairs(&world) != before || !wrong.is_empty() {
        return amiss(format!("it does not come to rest: {wrong:?}"));
    }
    Ok(())
}

fn amiss(message: String) -> Check {
    Err(Failure { oracle: "self-check", message })
}

/// Damages one row of a replica. Returns whether there was one.
fn damage(
    world: &mut World,
    at: usize,
    image: &Image,
    spared: &mut BTreeSet<(&str, Value)>,
) -> bool {
    let mut rows = Vec::new();
    for name in TABLES {
        let Some(table) = image.tables.get(name).filter(|table| table.local) else { continue };
        let shown = table.rows.iter().filter(|(_, row)| row.shown());
        rows.extend(shown.map(|(key, row)| (name, key.clone(), row.clone())));
    }
    if rows.is_empty() {
        return false;
    }
    let (name, key, row) = rows.swap_remove(world.dice.index(rows.len()));
    if !spared.insert((name, key.clone())) {
        return false;
    }
    let conn = world.replicas[at].file.connect();
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false).unwrap();
    let number: i64 = conn
        .query_row("SELECT num FROM __wavesync_table WHERE name = ?1", [name], |row| row.get(0))
        .unwrap();
    let key_column = if image.tables[name].integer_key { "id" } else { "k" };
    let row_gone = format!("DELETE FROM {name} WHERE {key_column} = ?1");
    let clock_gone = format!("DELETE FROM __wavesync_clock_{number} WHERE k = ?1");
    let kind = world.dice.index(KINDS);
    world.say(|| format!("damage {kind} of {name} {key:?} at {at}"));
    match kind {
        0 => {
            conn.execute(&row_gone, [&key]).unwrap();
            conn.execute(&clock_gone, [&key]).unwrap();
        }
        1 => {
            conn.execute(&row_gone, [&key]).unwrap();
        }
        2 => {
            conn.execute(&clock_gone, [&key]).unwrap();
        }
        3 => {
            let sql = format!("UPDATE __wavesync_clock_{number} SET cells = x'ff' WHERE k = ?1");
            conn.execute(&sql, [&key]).unwrap();
        }
        _ => {
            let columns: Vec<&String> = row.cells.keys().collect();
            if columns.is_empty() {
                return false;
            }
            let column = columns[world.dice.index(columns.len())];
            world.counter += 1;
            // Sometimes the greater value, sometimes not.
            let value = match world.dice.percent(50) {
                true => Value::Blob(world.counter.to_be_bytes().to_vec()),
                false => Value::Text(format!("!{}", world.counter).into_bytes()),
            };
            let sql = format!("UPDATE {name} SET {column} = ?2 WHERE {key_column} = ?1");
            conn.execute(&sql, params![key, value]).unwrap();
        }
    }
    DONE[kind].fetch_add(1, Ordering::Relaxed);
    true
}

#[test]
fn p15_damaged_files_are_noticed_and_mended() {
    let seeds = crate::number("SEEDS").unwrap_or(SEEDS);
    for seed in 1..=seeds.min(SEEDS.max(seeds / SHARE)) {
        let outcome = run(plan(seed));
        assert!(outcome.is_ok(), "seed {seed}: {outcome:?}");
    }
    let done: Vec<u64> = DONE.iter().map(|count| count.load(Ordering::Relaxed)).collect();
    assert!(done.iter().all(|count| *count > 0), "each way of damaging happens: {done:?}");
}

/// A mutant is noticed in the seeds in which damage is mended without it.
fn is_noticed(mutant: Mutant) {
    for seed in crate::found::seeds("damage", mutant, SEEDS) {
        mutants::set(Some(mutant));
        let outcome = run(plan(seed));
        mutants::set(None);
        let Err(failure) = outcome else { continue };
        eprintln!("{mutant:?}: seed {seed}: {}: {}", failure.oracle, failure.message);
        assert!(run(plan(seed)).is_ok(), "seed {seed} fails without {mutant:?}");
        return;
    }
    panic!("{mutant:?} survives {SEEDS} seeds");
}

#[test]
fn p15_digests_without_values_are_noticed() {
    is_noticed(Mutant::DigestWithoutValues);
}

#[test]
fn p15_lost_values_that_stay_lost_are_noticed() {
    is_noticed(Mutant::LostValuesStay);
}
