//! Copies of a database file: an old one put back over its own file, or one replica's file put over
//! another's, while the engine runs or before it starts (rules P13, P14).

use std::sync::atomic::{AtomicU64, Ordering};

use rusqlite::Connection;
use rusqlite::backup::{Backup, StepResult};
use wavesync_core::ids::{SiteId, Stamp};
use wavesync_core::machine::Input;
use wavesync_core::value::Value;

use crate::image::Image;
use crate::oracle::Failure;
use crate::world::{Plan, World};

/// How often a copy came back before a start and under a running engine, and how often it went over
/// another replica's file, likewise.
static DONE: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];

/// Each way of copying is among these; the default seeds have them, too.
#[test]
fn copies_of_files_lose_nothing_and_part_nobody() {
    for seed in (1..=97).step_by(4) {
        let plan = Plan { copies: true, contended: seed % 3 == 0, ..Plan::new(seed) };
        let outcome = crate::run(plan);
        assert!(outcome.is_ok(), "seed {seed}: {outcome:?}");
    }
    let done: Vec<u64> = DONE.iter().map(|count| count.load(Ordering::Relaxed)).collect();
    assert!(done.iter().all(|count| *count > 0), "each way of copying happens: {done:?}");
}

/// A copy that lies about.
pub struct Copy {
    of: usize,
    conn: Connection,
}

pub fn copy(from: &Connection, to: &mut Connection) {
    let backup = Backup::new(from, to).unwrap();
    assert_eq!(backup.step(-1).unwrap(), StepResult::Done);
}

/// Takes a copy of a replica's file, or uses the one that was taken.
pub fn act(world: &mut World, at: usize) -> Result<(), Failure> {
    let Some(old) = world.copy.take() else {
        let mut conn = Connection::open_in_memory().unwrap();
        copy(world.replicas[at].conn(), &mut conn);
        world.say(|| format!("r{at} is copied"));
        world.copy = Some(Copy { of: at, conn });
        return Ok(());
    };
    let restored = world.dice.percent(60);
    let at = if restored { old.of } else { at };
    let running = world.dice.percent(50);
    world.say(|| format!("the copy of r{} goes over r{at}, engine running: {running}", old.of));
    let what = usize::from(at != old.of) * 2 + usize::from(running);
    DONE[what].fetch_add(1, Ordering::Relaxed);
    // Both histories go on under the site of the copy until that is noticed.
    let site = site_of(&old.conn);
    let common = Image::read(&old.conn).vector.get(&site).copied().unwrap_or(Stamp::NONE);
    let earlier = world.forks.get(&site).copied().unwrap_or(common);
    world.forks.insert(site, common.min(earlier));
    copy(&old.conn, &mut world.replicas[at].file.app);
    forget_what_is_gone(world);
    world.memory.restored(at, old.of);
    if running { world.feed(at, Input::Committed) } else { world.restart(at) }
}

fn site_of(conn: &Connection) -> SiteId {
    let sql = "SELECT id FROM __wavesync_site WHERE num = \
               (SELECT value FROM __wavesync_meta WHERE key = 'self')";
    let id: Vec<u8> = conn.query_row(sql, [], |row| row.get(0)).unwrap();
    SiteId::from_slice(&id).unwrap()
}

/// What nobody else had received is lost with the file; everything else must come back.
fn forget_what_is_gone(world: &mut World) {
    let shown: Vec<_> = (0..world.replicas.len())
        .filter_map(|at| world.image(at).tables.get("safe").map(|table| table.shown.clone()))
        .collect();
    world.accepted.retain(|(key, column), (_, value)| {
        let here = |shown: &std::collections::BTreeMap<Value, crate::image::Columns>| {
            shown.get(&Value::text(key)).and_then(|columns| columns.get(column)) == Some(value)
        };
        shown.iter().any(here)
    });
}
