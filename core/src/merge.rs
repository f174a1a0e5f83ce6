//! The join of two states of one row: rules 1, 2 and 4 of the data model, pure.
//!
//! Must not know: SQL, tables, constraints, the wire. Convergence rests on this file: the join is
//! commutative, associative and idempotent (invariant I4), which `tests/merge.rs` checks.

use std::collections::BTreeMap;

use crate::ids::{ColumnNum, Dot};
use crate::value::Value;

/// How two inserts of one key by sites that had not seen each other are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// `INTEGER PRIMARY KEY`: two different things; the earlier birth keeps the key.
    Integer,
    /// Any other key names one thing: columns merge.
    Natural,
}

/// Everything known about a row except its values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clock {
    /// Causal length: odd alive, even dead.
    pub length: i64,
    /// The insert that began this incarnation, or the delete that ended it.
    pub birth: Dot,
    /// The last write of each column that was ever written in this incarnation.
    pub cells: BTreeMap<ColumnNum, Dot>,
    /// The value of the cell [`ColumnNum::CLAIM`], which is no column of the table: the birth of
    /// the oldest row that this one took a unique value over from.
    pub claim: Option<Dot>,
}

impl Clock {
    /// Whether the row exists.
    #[must_use]
    pub fn alive(&self) -> bool {
        self.length % 2 == 1
    }

    /// Every write event that this state contains.
    pub fn dots(&self) -> impl Iterator<Item = Dot> + '_ {
        std::iter::once(self.birth).chain(self.cells.values().copied())
    }
}

/// A row as it arrives: all of it, or a patch of some cells of a named incarnation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incoming {
    /// Causal length: odd alive, even dead.
    pub length: i64,
    /// As in [`Clock`].
    pub birth: Dot,
    /// Whether every cell of the incarnation is here.
    pub whole: bool,
    /// The cells that are here.
    pub cells: BTreeMap<ColumnNum, (Dot, Value)>,
}

impl Incoming {
    /// Whether the row exists in this state.
    #[must_use]
    pub fn alive(&self) -> bool {
        self.length % 2 == 1
    }

    /// Every write event that this message carries.
    pub fn dots(&self) -> impl Iterator<Item = Dot> + '_ {
        std::iter::once(self.birth).chain(self.cells.values().map(|(dot, _)| *dot))
    }
}

/// What the join of a current state and an incoming one comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The current state already dominates.
    Keep,
    /// The incoming state wins whole.
    Replace {
        /// Two sites inserted the same INTEGER key and ours came later: our row gives way.
        collision: bool,
    },
    /// As `Keep`, and a row that another site inserted under the same INTEGER key gives way.
    Collision,
    /// One incarnation: these columns take the incoming cell.
    Merge {
        /// The merged birth.
        birth: Dot,
        /// Columns whose incoming cell wins.
        wins: Vec<ColumnNum>,
    },
}

/// Joins `incoming` into `current`. `value_of` reads a current value and is only asked when two
/// cells carry the same write event, which honest replicas never make differ.
///
/// # Errors
/// Whatever `value_of` returns.
pub fn judge<E>(
    kind: KeyKind,
    current: Option<&Clock>,
    incoming: &Incoming,
    mut value_of: impl FnMut(ColumnNum) -> Result<Value, E>,
) -> Result<Verdict, E> {
    let Some(current) = current else { return Ok(Verdict::Replace { collision: false }) };
    if incoming.length != current.length {
        let newer = incoming.length > current.length;
        return Ok(if newer { Verdict::Replace { collision: false } } else { Verdict::Keep });
    }
    if !incoming.alive() {
        let newer = incoming.birth > current.birth;
        return Ok(if newer { Verdict::Replace { collision: false } } else { Verdict::Keep });
    }
    let both_base = incoming.birth.stamp.is_base() && current.birth.stamp.is_base();
    if kind == KeyKind::Integer && incoming.birth != current.birth && !both_base {
        return Ok(if incoming.birth.precedes(&current.birth) {
            Verdict::Replace { collision: true }
        } else {
            Verdict::Collision
        });
    }
    let birth =
        if incoming.birth.precedes(&current.birth) { incoming.birth } else { current.birth };
    let mut wins = Vec::new();
    for (column, (dot, value)) in &incoming.cells {
        let win = match current.cells.get(column) {
            None => true,
            Some(ours) if ours == dot => *value > value_of(*column)?,
            Some(ours) => dot > ours,
        };
        if win {
            wins.push(*column);
        }
    }
    if wins.is_empty() && birth == current.birth {
        return Ok(Verdict::Keep);
    }
    Ok(Verdict::Merge { birth, wins })
}
