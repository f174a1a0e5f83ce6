//! INTEGER keys: two rows inserted under one key by replicas that did not know of each other both
//! live on, everywhere alike, whatever is exchanged when; a delete ends one of them only.
//!
//! The model here is a set of rows by key and mirrors how the store joins; `simulator` and the SQL
//! scenarios run the store itself.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use wavesync_core::ids::{ColumnNum, Dot, SiteId, Stamp};
use wavesync_core::merge::{
    Clock, Ended, Incoming, KeyKind, Verdict, join_ended, judge, moved_key,
};
use wavesync_core::value::Value;

type Space = BTreeMap<i64, Incoming>;

const KIND: KeyKind = KeyKind::Integer;
const COLUMN: ColumnNum = ColumnNum(0);

fn clock(state: &Incoming) -> Clock {
    let cells = state.cells.iter().map(|(column, (dot, _))| (*column, *dot)).collect();
    let ended = state.ended.clone();
    Clock { length: state.length, birth: state.birth, cells, claim: None, ended }
}

fn deliver(space: &mut Space, key: i64, incoming: &Incoming) {
    let current = space.get(&key).cloned();
    let held = current.clone();
    let value_of = |column| Ok::<_, ()>(held.as_ref().unwrap().cells[&column].1.clone());
    let verdict = judge(KIND, current.as_ref().map(clock).as_ref(), incoming, value_of).unwrap();
    let known = current.as_ref().map(|state| state.ended.clone()).unwrap_or_default();
    let ended = join_ended(&known, &incoming.ended);
    let moved = |state: &Incoming| Incoming { length: 1, ended: Ended::new(), ..state.clone() };
    match verdict {
        Verdict::Keep => {}
        Verdict::MoveIncoming => {
            deliver(space, moved_key(key, incoming.birth), &moved(incoming));
        }
        Verdict::Replace { moves } => {
            space.insert(key, incoming.clone());
            if let (true, Some(current)) = (moves, &current) {
                deliver(space, moved_key(key, current.birth), &moved(current));
            }
        }
        Verdict::Merge { birth, wins } => {
            let state = space.get_mut(&key).unwrap();
            state.birth = birth;
            for column in wins {
                state.cells.insert(column, incoming.cells[&column].clone());
            }
        }
    }
    space.get_mut(&key).unwrap().ended = ended.clone();
    for (birth, death) in ended.iter().filter(|(birth, death)| known.get(birth) != Some(death)) {
        let to = moved_key(key, *birth);
        if space.get(&to).is_some_and(|state| state.length % 2 == 1 && state.birth == *birth) {
            let ended = Ended::from([(*birth, *death)]);
            let (length, whole, cells) = (2, true, BTreeMap::new());
            deliver(space, to, &Incoming { length, birth: *death, whole, cells, ended });
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Insert(usize, i64),
    Update(usize, usize),
    Delete(usize, usize),
    Sync(usize, usize, u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0usize..3, 1i64..3).prop_map(|(at, key)| Step::Insert(at, key)),
        1 => (0usize..3, 0usize..9).prop_map(|(at, row)| Step::Update(at, row)),
        2 => (0usize..3, 0usize..9).prop_map(|(at, row)| Step::Delete(at, row)),
        3 => (0usize..3, 0usize..3, any::<u64>()).prop_map(|(from, to, mix)| Step::Sync(from, to, mix)),
    ]
}

struct World {
    spaces: Vec<Space>,
    time: i64,
    inserted: BTreeSet<Dot>,
    deleted: BTreeSet<Dot>,
}

impl World {
    fn dot(&mut self, at: usize) -> Dot {
        self.time += 1;
        Dot { stamp: Stamp(self.time), site: SiteId([at as u8; 16]) }
    }

    fn run(&mut self, step: &Step) {
        match *step {
            Step::Insert(at, key) => {
                let known = self.spaces[at].get(&key).cloned();
                if known.as_ref().is_some_and(|state| state.length % 2 == 1) {
                    return;
                }
                let birth = self.dot(at);
                let (length, ended) = known.map_or((0, Ended::new()), |s| (s.length, s.ended));
                let cells = BTreeMap::from([(COLUMN, (birth, Value::Integer(self.time)))]);
                let state = Incoming { length: length + 1, birth, whole: true, cells, ended };
                self.spaces[at].insert(key, state);
                self.inserted.insert(birth);
            }
            Step::Update(at, row) => {
                let dot = self.dot(at);
                if let Some(state) = self.row(at, row) {
                    state.cells.insert(COLUMN, (dot, Value::Integer(dot.stamp.0)));
                }
            }
            Step::Delete(at, row) => {
                let death = self.dot(at);
                let Some(state) = self.row(at, row) else { return };
                let birth = state.birth;
                state.ended = join_ended(&state.ended, &Ended::from([(birth, death)]));
                (state.length, state.birth) = (state.length + 1, death);
                state.cells.clear();
                self.deleted.insert(birth);
            }
            Step::Sync(from, to, mix) => self.sync(from, to, mix),
        }
    }

    fn row(&mut self, at: usize, row: usize) -> Option<&mut Incoming> {
        let alive = self.spaces[at].values_mut().filter(|state| state.length % 2 == 1);
        let mut alive: Vec<&mut Incoming> = alive.collect();
        if alive.is_empty() { None } else { Some(alive.swap_remove(row % alive.len())) }
    }

    /// Delivers all or some rows, in an order that depends on `mix`.
    fn sync(&mut self, from: usize, to: usize, mix: u64) {
        let mut rows: Vec<(i64, Incoming)> =
            self.spaces[from].iter().map(|(key, state)| (*key, state.clone())).collect();
        if !mix.is_multiple_of(2) {
            rows.reverse();
        }
        if !rows.is_empty() {
            let turn = (mix / 2) as usize % rows.len();
            rows.rotate_left(turn);
            if mix.is_multiple_of(5) {
                rows.truncate(1 + turn);
            }
        }
        for (key, state) in rows {
            deliver(&mut self.spaces[to], key, &state);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6_000))]

    #[test]
    fn every_row_that_nobody_deleted_lives_everywhere_once(
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let (time, inserted, deleted) = (0, BTreeSet::new(), BTreeSet::new());
        let mut world = World { spaces: vec![Space::new(); 3], time, inserted, deleted };
        for step in &steps {
            world.run(step);
        }
        for round in 0..6u64 {
            for (from, to) in [(0, 1), (1, 2), (2, 0), (1, 0), (2, 1), (0, 2)] {
                world.sync(from, to, 2 * round + 1 - round % 2);
            }
        }
        prop_assert_eq!(&world.spaces[0], &world.spaces[1]);
        prop_assert_eq!(&world.spaces[0], &world.spaces[2]);
        let mut alive: Vec<Dot> =
            world.spaces[0].values().filter(|s| s.length % 2 == 1).map(|s| s.birth).collect();
        alive.sort_unstable();
        let expected: Vec<Dot> = world.inserted.difference(&world.deleted).copied().collect();
        prop_assert_eq!(alive, expected);
    }
}
