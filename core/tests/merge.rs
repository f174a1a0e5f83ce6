//! The join of two row states is commutative, associative and idempotent (invariant I4), with base
//! births, tombstones and forked write events among the states. INTEGER keys, whose rows may move,
//! have tests of their own in `moves.rs`.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use proptest::prelude::*;
use wavesync_core::ids::{ColumnNum, Dot, SiteId, Stamp};
use wavesync_core::merge::{Clock, Ended, Incoming, KeyKind, Verdict, judge};
use wavesync_core::value::Value;

/// A full row state: `Incoming` with `whole` set; none before anything is known.
type State = Option<Incoming>;

fn clock(state: &Incoming) -> Clock {
    let cells = state.cells.iter().map(|(column, (dot, _))| (*column, *dot)).collect();
    let ended = state.ended.clone();
    Clock { length: state.length, birth: state.birth, cells, claim: None, ended }
}

/// What a replica in state `own` holds after `other` arrived.
fn join(kind: KeyKind, own: &State, other: &Incoming) -> State {
    let current = own.as_ref().map(clock);
    let value_of = |column| Ok::<_, ()>(own.as_ref().unwrap().cells[&column].1.clone());
    match judge(kind, current.as_ref(), other, value_of).unwrap() {
        Verdict::Keep | Verdict::MoveIncoming => own.clone(),
        Verdict::Replace { .. } => Some(other.clone()),
        Verdict::Merge { birth, wins } => {
            let mut state = own.clone().unwrap();
            state.birth = birth;
            state.whole |= other.whole;
            for column in wins {
                state.cells.insert(column, other.cells[&column].clone());
            }
            Some(state)
        }
    }
}

fn dot() -> impl Strategy<Value = Dot> {
    let stamp = prop_oneof![-3i64..0, 1i64..5, Just(i64::MAX >> 1)];
    (stamp, 0u8..3).prop_map(|(stamp, site)| Dot { stamp: Stamp(stamp), site: SiteId([site; 16]) })
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        (0i64..2).prop_map(Value::Integer),
        Just(Value::Real(0.0)),
        Just(Value::Real(-0.0)),
        Just(Value::text("1")),
        Just(Value::Blob(b"1".to_vec())),
    ]
}

fn state() -> impl Strategy<Value = Incoming> {
    let cells = prop::collection::btree_map(0u16..3, (dot(), value()), 0..=3);
    (1i64..5, dot(), cells).prop_map(|(length, birth, cells)| {
        let alive = length % 2 == 1;
        let cells: BTreeMap<ColumnNum, (Dot, Value)> =
            cells.into_iter().filter(|_| alive).map(|(n, cell)| (ColumnNum(n), cell)).collect();
        Incoming { length, birth, whole: true, cells, ended: Ended::new() }
    })
}

fn kind() -> impl Strategy<Value = KeyKind> {
    Just(KeyKind::Natural)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn the_join_is_commutative(kind in kind(), a in state(), b in state()) {
        prop_assert_eq!(join(kind, &Some(a.clone()), &b), join(kind, &Some(b), &a));
    }

    #[test]
    fn the_join_is_idempotent(kind in kind(), a in state(), b in state()) {
        prop_assert_eq!(join(kind, &Some(a.clone()), &a), Some(a.clone()));
        let both = join(kind, &Some(a), &b);
        prop_assert_eq!(join(kind, &both, &b), both.clone());
        prop_assert_eq!(join(kind, &both, &both.clone().unwrap()), both);
    }

    #[test]
    fn the_join_is_associative(kind in kind(), a in state(), b in state(), c in state()) {
        let left = join(kind, &join(kind, &Some(a.clone()), &b), &c);
        let right = join(kind, &Some(a), &join(kind, &Some(b), &c).unwrap());
        prop_assert_eq!(left, right);
    }

    #[test]
    fn any_order_of_arrival_gives_one_state(
        kind in kind(),
        states in prop::collection::vec(state(), 1..6),
        turn in 0usize..6,
    ) {
        let arrive = |order: &[Incoming]| {
            order.iter().fold(None, |own, other| join(kind, &own, other))
        };
        let straight = arrive(&states);
        let mut other = states.clone();
        other.rotate_left(turn % states.len());
        prop_assert_eq!(&arrive(&other), &straight);
        other.reverse();
        prop_assert_eq!(&arrive(&other), &straight);
    }

    #[test]
    fn a_patch_before_its_whole_row_changes_nothing(
        kind in kind(),
        own in prop::option::of(state()),
        other in state(),
        part in 0u16..3,
    ) {
        let mut patch = other.clone();
        patch.whole = false;
        patch.cells.retain(|column, _| column.0 == part);
        let straight = join(kind, &own, &other);
        let patched = join(kind, &join(kind, &own, &patch), &other);
        let cells = |state: &State| state.as_ref().map(|state| {
            (state.length, state.birth, state.cells.clone())
        });
        prop_assert_eq!(cells(&patched), cells(&straight));
    }
}
