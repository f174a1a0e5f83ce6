//! What must hold, one function per property. Each names the rule that it watches.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;

use wavesync_core::ids::{Dot, SiteId, Stamp};
use wavesync_core::limits::FUTURE_LIMIT_MS;
use wavesync_core::machine::{Input, PeerReport};
use wavesync_core::merge::{ENDED_MAX, moved_key};
use wavesync_core::value::Value;

use crate::contended;
use crate::image::{Image, Row, Table};
use crate::network::Event;
use crate::renames;
use crate::world::{Clocks, Topology, World};

/// What did not hold.
#[derive(Clone, Debug)]
pub struct Failure {
    pub oracle: &'static str,
    pub message: String,
}

/// A row that moves from one INTEGER key to the next does so at most this often in a run.
const MOVES_MAX: usize = 6;

/// Every oracle, by the name under which it fails.
pub const ORACLES: [&str; 17] = [
    "panic",
    "error report",
    "quiet",
    "monotone",
    "own clock",
    "vector soundness",
    "T = f(L)",
    "one event, one value",
    "convergence",
    "no accepted write is lost",
    "release",
    "echo",
    "caught up",
    "budget",
    "integrity",
    "foreign keys",
    "one engine per site",
];

thread_local! {
    static OFF: Cell<Option<&'static str>> = const { Cell::new(None) };
}

/// Runs something on this thread without one oracle.
pub fn without<T>(oracle: &'static str, run: impl FnOnce() -> T) -> T {
    assert!(ORACLES.contains(&oracle), "{oracle} is no oracle");
    OFF.set(Some(oracle));
    let outcome = run();
    OFF.set(None);
    outcome
}

/// What an oracle found, unless it is switched off.
pub fn fail(oracle: &'static str, message: String) -> Check {
    assert!(ORACLES.contains(&oracle), "{oracle} is no oracle");
    if OFF.get() == Some(oracle) { Ok(()) } else { Err(Failure { oracle, message }) }
}

/// What counting within a millisecond adds at most in these runs.
const COUNTER_SLACK_MS: u64 = 2;

pub type Check = Result<(), Failure>;
/// Sites under which two histories went on for a while, and up to where they are one.
pub type Forks = BTreeMap<SiteId, Stamp>;

/// Whether a dot names one write event: not if two histories may have given it.
fn is_one_event(forks: &Forks, dot: Dot) -> bool {
    forks.get(&dot.site).is_none_or(|common| dot.stamp <= *common)
}

type CellEvent = (String, Value, String, Dot);

/// What oracles remember of earlier states.
pub struct Memory {
    counters: Vec<(i64, i64)>,
    /// The latest time that each clock ever told.
    pub clocks: Vec<u64>,
    values: BTreeMap<CellEvent, Value>,
    /// Each file as it was when everything held.
    held: Vec<Rc<Image>>,
}

impl Memory {
    /// Another content came into a replica's file: it counts from there.
    pub fn restored(&mut self, at: usize, from: usize) {
        self.counters[at] = (0, 0);
        self.clocks[at] = self.clocks[at].max(self.clocks[from]);
    }

    pub fn new(replicas: usize) -> Self {
        let counters = vec![(0, 0); replicas];
        Self { counters, clocks: vec![0; replicas], values: BTreeMap::new(), held: Vec::new() }
    }
}

/// Everything that holds at any time. What a file says about itself, or two about each other, is
/// looked at again once one of them was written to.
pub fn during(world: &mut World) -> Check {
    if world.damaged {
        // What a file says is what was done to it.
        return Ok(());
    }
    let images = world.images();
    let same = |at: usize| world.memory.held.get(at).is_some_and(|i| Rc::ptr_eq(i, &images[at]));
    let fresh: Vec<bool> = (0..images.len()).map(|at| !same(at)).collect();
    monotone(world, &images)?;
    clock_is_own(world, &images)?;
    if world.plan.renames {
        let united: Vec<Rc<Image>> =
            images.iter().map(|image| Rc::new(renames::united(image))).collect();
        vector_is_sound(&united, &fresh, &world.forks)?;
    } else {
        vector_is_sound(&images, &fresh, &world.forks)?;
    }
    for at in (0..images.len()).filter(|at| fresh[*at]) {
        table_follows_rows(at, &images[at])?;
        one_event_one_value(world, at, &images[at])?;
        contended::keys_hold(world, at)?;
    }
    world.memory.held = images;
    Ok(())
}

/// P14: no two engines run under one site, whatever files were copied. Looked at when one starts:
/// what peers show one of them a moment later would part them, too.
pub fn one_engine_per_site(world: &World, at: usize) -> Check {
    let site = world.replicas[at].site;
    let mut others = world.replicas.iter().enumerate().filter(|(other, _)| *other != at);
    match others.find(|(_, other)| other.site == site) {
        Some((other, _)) => {
            let text = format!("the engines of {at} and {other} both run under {site:?}");
            fail("one engine per site", text)
        }
        None => Ok(()),
    }
}

/// `db_version` and the hybrid logical clock never go back, restarts included (P3, I3).
fn monotone(world: &mut World, images: &[Rc<Image>]) -> Check {
    for (at, image) in images.iter().enumerate() {
        let (folded, hlc) = world.memory.counters[at];
        if image.folded < folded || image.hlc < hlc {
            let text = format!(
                "replica {at}: folded end {folded} -> {}, clock {hlc} -> {}",
                image.folded, image.hlc
            );
            return fail("monotone", text);
        }
        world.memory.counters[at] = (image.folded, image.hlc);
    }
    Ok(())
}

/// P17: the clock of a replica follows neither the vector nor clocks that are far ahead of its own.
fn clock_is_own(world: &World, images: &[Rc<Image>]) -> Check {
    for (at, image) in images.iter().enumerate() {
        let latest = world.memory.clocks[at] + FUTURE_LIMIT_MS;
        if Stamp(image.hlc).millis() > latest + COUNTER_SLACK_MS {
            let text = format!("replica {at}: clock {} and never later than {latest}", image.hlc);
            return fail("own clock", text);
        }
    }
    Ok(())
}

/// P6: whatever a vector covers is dominated by the row states behind it.
fn vector_is_sound(images: &[Rc<Image>], fresh: &[bool], forks: &Forks) -> Check {
    for (reader, image) in images.iter().enumerate() {
        let others = images.iter().enumerate();
        let others = others.filter(|(at, _)| *at != reader && (fresh[*at] || fresh[reader]));
        for (writer, other) in others {
            for (name, table) in &other.tables {
                let tables = renames::tables(image, name);
                for (key, row) in &table.rows {
                    let covered = |dot: &Dot| image.covers(*dot) && is_one_event(forks, *dot);
                    for (column, dot) in row.dots().filter(|(_, dot)| covered(dot)) {
                        let own = || tables.iter().map(|here| here.rows.get(key));
                        let sound = tables.iter().any(|here| {
                            is_held(here, key, row, column, dot)
                                || match here.rows.get(key) {
                                    _ if table.integer_key => {
                                        lives_or_ended(here, key, row, column, dot)
                                    }
                                    own => own.is_some_and(|own| dominates(own, row, column, dot)),
                                }
                        }) || own()
                            .chain(tables.is_empty().then_some(None))
                            .all(|own| was_forgotten((image, other), own, row, dot, forks));
                        if !sound {
                            let text = format!(
                                "the vector of {reader} covers {dot:?} of {name} {key:?} {column:?} \
                                 that {writer} holds as {row:?}, but it holds {:?}; it has \
                                 forgotten {:?}",
                                own().collect::<Vec<_>>(),
                                image.collected.get(&dot.site)
                            );
                            return fail("vector soundness", text);
                        }
                    }
                }
            }
        }
    }
    Ok(())
}

/// P18: a tombstone is forgotten, or the row of somebody who has to take everything over anew.
fn was_forgotten(
    (image, other): (&Image, &Image),
    own: Option<&Row>,
    row: &Row,
    dot: Dot,
    forks: &Forks,
) -> bool {
    if image.collected.is_empty() {
        return false;
    }
    let forgotten = image.collected.get(&dot.site).is_some_and(|stamp| *stamp >= dot.stamp);
    // A delete of an earlier incarnation of an INTEGER key.
    let earlier = forgotten && dot != row.birth && row.ended.values().any(|death| *death == dot);
    let gone = own.is_none_or(|own| !own.alive() || own.length > row.length) || image.stale;
    // Of two deletes of one row the later one is known, until both are forgotten.
    earlier
        || (gone
            && (!row.alive() || !other.reaches(&image.collected, |dot| is_one_event(forks, dot))))
}

/// What waits for its time is stored: under the key that it arrived with, from where it may move.
fn is_held(own: &Table, key: &Value, other: &Row, column: Option<&String>, dot: Dot) -> bool {
    own.held.iter().any(|(known, held)| {
        let linked = known == key || (own.integer_key && held.birth == other.birth);
        // Each event has a dot of its own, so this is it, whatever key its row has there.
        let stored = held.dots().any(|(_, known)| known == dot);
        let newer = held.length >= other.length && dominates(held, other, column, dot);
        // What this delete ended is over there, too, by a delete that is still to come.
        let mut ended = other.ended.iter().filter(|(_, death)| **death == dot).peekable();
        let over = column.is_none()
            && ended.peek().is_some()
            && ended.all(|(birth, _)| held.ended.contains_key(birth));
        // The row of the other, wherever it has moved, is over as soon as this delete's time comes.
        let ends = own.integer_key && other.alive() && held.ended.contains_key(&other.birth);
        ends || (own.integer_key && stored) || (linked && (stored || newer || over))
    })
}

fn dominates(own: &Row, other: &Row, column: Option<&String>, dot: Dot) -> bool {
    if own.length != other.length {
        return own.length > other.length;
    }
    if !own.alive() {
        return own.birth >= dot;
    }
    match column {
        None => own.birth == dot || own.birth.precedes(&dot),
        Some(column) => own.cells.get(column).is_some_and(|ours| *ours >= dot),
    }
}

/// Under an INTEGER key each birth is a row of its own: it lives, at its key or at the one to which
/// it moved, with all that was written to it, or it is known to be over.
fn lives_or_ended(
    own: &Table,
    key: &Value,
    other: &Row,
    column: Option<&String>,
    dot: Dot,
) -> bool {
    let here = own.rows.get(key);
    if here.is_some_and(|row| row.length > other.length + 2 * ENDED_MAX as i64) {
        return true;
    }
    // Births that this write event is about: those that a delete ended, or the row's own.
    let is_delete = column.is_none() && (!other.alive() || dot != other.birth);
    let births: Vec<Dot> = if is_delete {
        let ended = other.ended.iter().filter(|(_, death)| **death == dot);
        ended.map(|(birth, _)| *birth).collect()
    } else {
        vec![other.birth]
    };
    let Value::Integer(number) = key else { return births.is_empty() };
    births.into_iter().all(|birth| {
        let one = |known: Dot| known == birth || (known.stamp.is_base() && birth.stamp.is_base());
        let written = |row: &Row| {
            column.is_none_or(|column| row.cells.get(column).is_some_and(|ours| *ours >= dot))
        };
        let lives = |row: &Row| !is_delete && row.alive() && one(row.birth) && written(row);
        let over = |row: &Row| row.ended.keys().any(|known| one(*known));
        // The row may be at its key, at the one to which it moved, or here still and moved there.
        let mut rows = own.rows.iter().filter(|(_, row)| over(row) || lives(row));
        rows.any(|(known, _)| match known {
            Value::Integer(known) => {
                moves_to(*number, *known, birth) || moves_to(*known, *number, birth)
            }
            _ => false,
        })
    })
}

/// Whether a row may get from one key to the other: the place to which it moved can be taken, too,
/// by a row that a member which started over tells as one from before joining.
fn moves_to(from: i64, to: i64, birth: Dot) -> bool {
    // Keys to which rows move are negative.
    let steps = std::iter::successors(Some(from), |key| Some(moved_key(*key, birth)));
    from == to || (to < 0 && steps.take(MOVES_MAX).any(|key| key == to))
}

/// P1, `T = f(L)`: what is alive and not parked is in the table, and nothing else is.
fn table_follows_rows(at: usize, image: &Image) -> Check {
    for (name, table) in image.tables.iter().filter(|(_, table)| table.local) {
        let settled = |key: &&Value| !table.unfolded.contains(*key);
        for key in table.rows.keys().filter(settled) {
            let row = &table.rows[key];
            // A row that the back-fill has not reached may have a key whose row is over.
            if table.importing && !row.alive() {
                continue;
            }
            if row.shown() != table.shown.contains_key(key) {
                let text = format!(
                    "replica {at}, {name} {key:?}: {row:?} and in the table: {:?}",
                    table.shown.get(key)
                );
                return fail("T = f(L)", text);
            }
        }
        if table.importing {
            continue;
        }
        let strange = table.shown.keys().filter(settled).find(|key| !table.rows.contains_key(key));
        if let Some(key) = strange {
            let text = format!("replica {at}, {name} {key:?} is in the table and has no clock");
            return fail("T = f(L)", text);
        }
    }
    Ok(())
}

/// Trap 6: one write event has one value, wherever it is kept.
fn one_event_one_value(world: &mut World, at: usize, image: &Image) -> Check {
    for (name, table) in &image.tables {
        for (key, row) in table.rows.iter().filter(|(key, _)| !table.unfolded.contains(*key)) {
            let values = table.values(key, row);
            for (column, dot) in &row.cells {
                if !is_one_event(&world.forks, *dot) {
                    continue;
                }
                let Some(value) = values.get(column) else { continue };
                let (name, column) = (renames::former(name), renames::former(column));
                let event = (name.to_owned(), key.clone(), column.to_owned(), *dot);
                let known = world.memory.values.entry(event).or_insert_with(|| value.clone());
                if known != value {
                    let text = format!(
                        "{name} {key:?} {column} as written by {dot:?} is {value:?} at {at} \
                         and was {known:?}: {row:?}, shown {:?}",
                        table.shown.get(key)
                    );
                    return fail("one event, one value", text);
                }
            }
        }
    }
    Ok(())
}

/// After damage was mended everybody holds the same again, and shows it.
pub fn mended(world: &World) -> Check {
    for (at, image) in world.images().iter().enumerate() {
        table_follows_rows(at, image)?;
    }
    converged(world)
}

/// After quiescence everybody holds the same (I4).
pub fn converged(world: &World) -> Check {
    let images = world.images();
    let first = &images[0];
    for (at, image) in images.iter().enumerate().skip(1) {
        if image.vector != first.vector {
            let text = format!("vectors of 0 and {at}: {:?} and {:?}", first.vector, image.vector);
            return fail("convergence", text);
        }
        let names = image.tables.keys().chain(first.tables.keys());
        for name in names {
            let empty = Table::default();
            let one = first.tables.get(name).unwrap_or(&empty);
            let two = image.tables.get(name).unwrap_or(&empty);
            let outcome = same_rows(name, at, one, two, world.plan.forgetful);
            if outcome.is_err() {
                world.say(|| format!("{name} at 0: {:#?}", one.rows));
                world.say(|| format!("{name} at {at}: {:#?}", two.rows));
            }
            outcome?;
        }
    }
    for (at, image) in images.iter().enumerate() {
        for (name, table) in &image.tables {
            if table.exists && !table.local {
                return fail("convergence", format!("replica {at} does not track {name}"));
            }
            for (key, row) in &table.rows {
                let Some((kind, _, values)) = &row.parked else { continue };
                let waits = match kind.as_str() {
                    "unique" | "check" | "not_null" | "foreign_key" => true,
                    "unknown_table" => !table.local,
                    "unknown_column" => !values
                        .keys()
                        .any(|c| table.shown.get(key).is_some_and(|shown| shown.contains_key(c))),
                    _ => false,
                };
                if !waits {
                    let text =
                        format!("replica {at}, {name} {key:?} is parked for nothing: {row:?}");
                    return fail("convergence", text);
                }
            }
        }
    }
    // By now every fork is known and capped: nothing of a second history is covered.
    vector_is_sound(&images, &vec![true; images.len()], &Forks::new())?;
    contended::agreed(world)
}

fn same_rows(name: &str, at: usize, one: &Table, two: &Table, forgetful: bool) -> Check {
    for key in one.rows.keys().chain(two.rows.keys()) {
        let dead = |table: &Table| table.rows.get(key).is_none_or(|row| !row.alive());
        if forgetful && dead(one) && dead(two) {
            continue;
        }
        let state = |table: &Table| {
            table.rows.get(key).map(|row| {
                // What ended before may have been forgotten with a tombstone.
                let ended = row.ended.iter().filter(|_| !forgetful);
                let ended: BTreeMap<Dot, Dot> = ended.map(|(b, d)| (*b, *d)).collect();
                (row.length, row.birth, row.cells.clone(), ended)
            })
        };
        // A row that moved and was then found to be over leaves a tombstone where it was, and
        // nothing where it never was; both know of its end.
        let told = |row: Option<&Row>, other: &Table| {
            row.is_none_or(|row| {
                let known = |birth: &Dot| other.rows.values().any(|r| r.ended.contains_key(birth));
                one.integer_key && !row.alive() && row.ended.keys().all(known)
            })
        };
        let (here, there) = (one.rows.get(key), two.rows.get(key));
        let absent = here.is_none() || there.is_none();
        if state(one) != state(two) && !(absent && told(here, two) && told(there, one)) {
            let text = format!(
                "{name} {key:?} at 0 and {at}:\n  {:?}\n  {:?}",
                one.rows.get(key),
                two.rows.get(key)
            );
            return fail("convergence", text);
        }
        if absent {
            continue;
        }
        let row = &one.rows[key];
        let (mine, theirs) = (one.values(key, row), two.values(key, &two.rows[key]));
        for (column, value) in &mine {
            if theirs.get(column).is_some_and(|other| other != value) {
                let text = format!("{name} {key:?} values at 0 and {at}: {mine:?} {theirs:?}");
                return fail("convergence", text);
            }
        }
        let written = |values: &BTreeMap<String, Value>| {
            row.cells.keys().all(|column| values.contains_key(column))
        };
        if row.alive() && !(written(&mine) && written(&theirs)) {
            let text = format!(
                "{name} {key:?}: a written value is missing at 0 or {at}: {mine:?} {theirs:?} {row:?}"
            );
            return fail("convergence", text);
        }
    }
    Ok(())
}

/// With equal clocks and without deletes, everybody shows the last write of each cell.
pub fn nothing_lost(world: &World) -> Check {
    if world.plan.clocks != Clocks::Equal {
        return Ok(());
    }
    for at in 0..world.replicas.len() {
        let image = world.image(at);
        for ((key, column), (time, value)) in &world.accepted {
            let shown = renames::shown(&image, "safe", &Value::text(key), column);
            if shown != Some(value) {
                let text = format!(
                    "safe {key} {column}: {value:?}, written at {time}, is {shown:?} at {at}"
                );
                return fail("no accepted write is lost", text);
            }
        }
    }
    Ok(())
}

/// P17: when every clock has caught up nothing is held, and everybody knows that.
pub fn nothing_held(world: &World) -> Check {
    for (at, replica) in world.replicas.iter().enumerate() {
        let image = world.image(at);
        if let Some((name, table)) = image.tables.iter().find(|(_, table)| !table.held.is_empty()) {
            return fail("release", format!("replica {at} still holds {name} {:?}", table.held));
        }
        if let Some(peer) = replica.machine.peers().iter().find(|peer| peer.held_back) {
            return fail("release", format!("replica {at} was not told of a release: {peer:?}"));
        }
    }
    Ok(())
}

/// With everything merged and some of it held, everybody has seen the same.
pub fn same_vectors(world: &World) -> Check {
    let first = world.image(0).vector.clone();
    for at in 1..world.replicas.len() {
        let vector = world.image(at).vector.clone();
        if vector != first {
            return fail("convergence", format!("vectors of 0 and {at}: {first:?} and {vector:?}"));
        }
    }
    Ok(())
}

/// SQLite's own opinion of every file.
pub fn integrity(world: &World) -> Check {
    for (at, replica) in world.replicas.iter().enumerate() {
        let verdict: String = replica
            .conn()
            .query_row("PRAGMA integrity_check", [], |row| row.get(0))
            .unwrap_or_else(|error| error.to_string());
        if verdict != "ok" {
            return fail("integrity", format!("replica {at}: {verdict}"));
        }
    }
    Ok(())
}

/// I7: after convergence, connecting again transfers no rows, also after restarts. Rows that are
/// never covered are read once more from each log that could not be closed above them.
pub fn no_echo(world: &mut World) -> Check {
    connect_anew(world)?;
    let rows = |peer: &PeerReport| peer.rows_in + peer.rows_out;
    let again = world
        .replicas
        .iter()
        .any(|replica| replica.machine.peers().iter().any(|peer| rows(peer) > 0));
    if again && never_closed(world) {
        connect_anew(world)?;
    }
    // Nobody compares digests with who holds something back.
    let images = world.images();
    let held = images.iter().any(|image| image.tables.values().any(|t| !t.held.is_empty()));
    for (at, replica) in world.replicas.iter().enumerate() {
        let reports: Vec<PeerReport> = replica.machine.peers();
        if let Some(peer) = reports.iter().find(|peer| peer.rows_in + peer.rows_out > 0) {
            let text = format!("replica {at} after reconnecting: {peer:?}");
            return fail("echo", text);
        }
        let links = world.network.links.iter();
        let expected = links.filter(|link| link.replicas.contains(&at)).count();
        let synced = reports.iter().filter(|peer| peer.state == "synced").count();
        let checked = replica.machine.progress().check.compared as usize;
        if checked < expected && !held {
            let text = format!("replica {at} compared digests {checked} times with {expected}");
            return fail("caught up", text);
        }
        if synced != expected || !replica.machine.progress().caught_up {
            let text = format!(
                "replica {at} is not caught up: {:?} {reports:?}",
                replica.machine.progress()
            );
            return fail("caught up", text);
        }
    }
    converged(world)
}

/// Every connection is cut, every engine is started anew, and all meet again.
fn connect_anew(world: &mut World) -> Check {
    for link in 0..world.network.links.len() {
        world.cut(link, None)?;
    }
    for at in 0..world.replicas.len() {
        world.restart(at)?;
    }
    world.settle(45_000, 400_000)
}

/// One write in a converged mesh: everybody gets it once from its author, passes it on at most
/// once to each other, and tells its new vector once or twice; nothing is asked for.
pub fn budget(world: &mut World) -> Check {
    if world.plan.forgetful
        || world.plan.topology != Topology::Mesh
        || !world.plan.schemas_meet
        || never_closed(world)
    {
        return Ok(());
    }
    let (frames, bytes) = (world.network.frames, world.network.bytes);
    let requests = |world: &World| -> u64 {
        let all = world.replicas.iter().flat_map(|replica| replica.machine.peers());
        all.map(|peer| peer.requests_out).sum()
    };
    let before = requests(world);
    let author = world.dice.index(world.replicas.len());
    world.application(author, |conn, _| {
        let sql = "INSERT INTO safe(k, a, b) VALUES('budget', 'one', 'two')";
        conn.execute(&renames::spoken(conn, "safe", sql), []).unwrap();
    });
    world.network.schedule(world.now, Event::Committed { replica: author });
    world.settle(45_000, 400_000)?;
    let n = world.replicas.len() as u64;
    let pushes = (n - 1) + (n - 1) * (n - 2);
    let states = 2 * n * (n - 1);
    let (frames, bytes) = (world.network.frames - frames, world.network.bytes - bytes);
    let sites = world.image(0).vector.len() as u64;
    let most = (pushes + states) * (250 + 40 * sites);
    if frames > pushes + states || bytes > most || requests(world) > before {
        let text = format!(
            "one write among {n}: {frames} frames of at most {}, {bytes} bytes of at most {most}, \
             {} requests",
            pushes + states,
            requests(world) - before
        );
        return fail("budget", text);
    }
    converged(world)
}

/// What two histories wrote under one site above its cap is never covered, nor what a member wrote
/// that claims nothing any more and that nobody had received. A log that holds such a row is read,
/// though nothing of it is sent (rule P12).
fn never_closed(world: &World) -> bool {
    let open = |image: &Image| {
        let mut rows = image.tables.values().flat_map(|table| table.rows.values());
        rows.any(|row| row.dots().any(|(_, dot)| !image.covers(dot)))
    };
    let may = world.plan.upheaval || !world.forks.is_empty();
    may && world.images().iter().any(|image| open(image))
}

/// Lets everything that was recorded be noticed.
pub fn tell_all(world: &mut World) -> Check {
    (0..world.replicas.len()).try_for_each(|at| world.feed(at, Input::Committed))
}
