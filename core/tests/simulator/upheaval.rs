//! What a user does to a member as a whole: tables that are no longer tracked and tracked again,
//! rebuilt, or lose a column, and leaving the group for a while, with or without its tables.

use rusqlite::Connection;
use wavesync_core::ids::Millis;
use wavesync_core::limits::FOLD_INTERVAL_MS;
use wavesync_core::machine::Input;
use wavesync_core::store::Store;
use wavesync_core::value::Value;

use crate::image::{Image, Table};
use crate::oracle::{Check, Failure};
use crate::workload;
use crate::world::{Plan, World};

/// A run in which these happen.
pub fn plan(seed: u64) -> Plan {
    Plan { upheaval: true, ..Plan::new(seed) }
}

#[test]
fn upheaval_loses_nothing_and_parts_nobody() {
    for seed in (1..60).step_by(2) {
        let outcome = crate::run(plan(seed));
        assert!(outcome.is_ok(), "seed {seed}: {outcome:?}");
    }
}

/// One of these actions.
pub fn act(world: &mut World, at: usize) -> Result<(), Failure> {
    match world.dice.below(6) {
        0 | 1 => track_or_not(world, at),
        2 => drop_column(world, at),
        3 | 4 => rebuild(world, at),
        _ => {
            let forget = world.dice.percent(50);
            world.leave_and_join(at, forget)
        }
    }
}

/// A call of the user, on a connection of its own; the engine learns of it like of any commit.
fn call(
    world: &mut World,
    at: usize,
    run: impl FnOnce(&mut Store, Millis) -> wavesync_core::Result<()>,
) -> Check {
    let now = world.clock(at);
    world.memory.clocks[at] = world.memory.clocks[at].max(now.0);
    let mut store = Store::open(world.replicas[at].file.connect()).unwrap();
    store.set_bounds(world.plan.bounds);
    run(&mut store, now).unwrap();
    drop(store);
    noticed(world, at)
}

/// The engine looks at the schema before the application goes on: what is written while a table has
/// no triggers is nobody's to know.
fn noticed(world: &mut World, at: usize) -> Check {
    world.feed(at, Input::Committed)?;
    let until = world.now + FOLD_INTERVAL_MS + 1;
    while world.step(until)? {}
    Ok(())
}

fn is_tracked(world: &World, at: usize, name: &str) -> bool {
    world.image(at).tables.get(name).is_some_and(|table| table.local)
}

fn track_or_not(world: &mut World, at: usize) -> Check {
    let conn = world.replicas[at].conn();
    let names = workload::names().filter(|name| workload::has_table(conn, name));
    let names: Vec<&str> = names.collect();
    if names.is_empty() {
        return Ok(());
    }
    let name = names[world.dice.index(names.len())];
    let tracked = is_tracked(world, at, name);
    world.say(|| format!("r{at} {} {name}", if tracked { "untracks" } else { "tracks" }));
    call(world, at, |store, now| match tracked {
        true => store.untrack(now, name),
        false => store.track(now, name),
    })
}

fn drop_column(world: &mut World, at: usize) -> Check {
    let has = "SELECT 1 FROM pragma_table_info('txt') WHERE name = 'z'";
    if !world.replicas[at].conn().prepare_cached(has).unwrap().exists([]).unwrap() {
        return Ok(());
    }
    world.say(|| format!("r{at} drops txt.z"));
    call(world, at, |store, now| store.alter(now, "ALTER TABLE txt DROP COLUMN z"))
}

/// The procedure that SQLite's documentation gives for changes that `ALTER TABLE` cannot make.
fn rebuild(world: &mut World, at: usize) -> Check {
    let mut script = String::new();
    world.application(at, |conn, dice| script = workload::rebuild(conn, dice));
    world.say(|| format!("r{at} {script}"));
    noticed(world, at)
}

/// At the end everybody tracks everything again.
pub fn track_everything(world: &mut World) -> Check {
    for at in 0..world.replicas.len() {
        for name in workload::names() {
            let here = workload::has_table(world.replicas[at].conn(), name);
            if here && !is_tracked(world, at, name) {
                call(world, at, |store, now| store.track(now, name))?;
            }
        }
    }
    Ok(())
}

/// A member that forgets keeps its rows as if they had always been there; what it wrote and nobody
/// else has received is not newer than what others have any more.
pub fn forget_what_nobody_has(world: &mut World, at: usize) {
    let others = world.images().into_iter().enumerate().filter(|(other, _)| *other != at);
    let others: Vec<_> = others.map(|(_, image)| image).collect();
    let empty = Table::default();
    let has = |image: &Image, key: &str, column: &str, value: &Value| {
        let table = image.tables.get("safe").unwrap_or(&empty);
        let key = Value::text(key);
        let written = table.rows.get(&key).and_then(|row| row.cells.get(column));
        let shown = table.shown.get(&key).and_then(|columns| columns.get(column));
        written.is_some_and(|dot| !dot.stamp.is_base()) && shown == Some(value)
    };
    world.accepted.retain(|(key, column), (_, value)| {
        others.iter().any(|image| has(image, key, column, value))
    });
}

/// Writes of the application that no engine sees.
pub fn write_meanwhile(conn: &Connection, dice: &mut crate::dice::Dice) -> String {
    let writes = dice.below(3);
    let scripts: Vec<String> = (0..writes).map(|_| workload::transaction(conn, dice)).collect();
    scripts.join("; ")
}
