//! The join of two states of one row: rules 1, 2 and 4 of the data model, pure.
//!
//! Must not know: SQL, tables, constraints, the wire. Convergence rests on this file: the join is
//! commutative, associative and idempotent (invariant I4), which `tests/merge.rs` checks.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use crate::ids::{ColumnNum, Dot};
use crate::mutants::{self, Mutant};
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
    /// For an INTEGER key: births of earlier incarnations, each with the delete that ended it.
    /// The newest [`ENDED_MAX`] are kept.
    pub ended: Ended,
}

/// Births of incarnations that are over, and the deletes that ended them.
pub type Ended = BTreeMap<Dot, Dot>;

/// Ended incarnations that an INTEGER key remembers one by one; older ones are known by the causal
/// length alone.
pub const ENDED_MAX: usize = 16;

impl Clock {
    /// Whether the row exists.
    #[must_use]
    pub fn alive(&self) -> bool {
        self.length % 2 == 1
    }

    /// Every write event that this state contains.
    pub fn dots(&self) -> impl Iterator<Item = Dot> + '_ {
        let written = self.cells.values().chain(self.ended.values());
        std::iter::once(self.birth).chain(written.copied())
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
    /// As in [`Clock`].
    pub ended: Ended,
}

impl Incoming {
    /// Whether the row exists in this state.
    #[must_use]
    pub fn alive(&self) -> bool {
        self.length % 2 == 1
    }

    /// The values of columns that are here, without pseudo-columns.
    #[must_use]
    pub fn values(&self) -> BTreeMap<ColumnNum, Value> {
        let columns = self.cells.iter().filter(|(num, _)| **num != ColumnNum::CLAIM);
        columns.map(|(num, (_, value))| (*num, value.clone())).collect()
    }

    /// Every write event that this message carries.
    pub fn dots(&self) -> impl Iterator<Item = Dot> + '_ {
        let written = self.cells.values().map(|(dot, _)| dot).chain(self.ended.values());
        std::iter::once(self.birth).chain(written.copied())
    }
}

/// What the join of a current state and an incoming one comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The current state already dominates.
    Keep,
    /// The incoming state takes the key.
    Replace {
        /// The current row is another thing than the incoming one, and alive: it moves.
        moves: bool,
    },
    /// The current row keeps the INTEGER key; the incoming one is another thing, and moves.
    MoveIncoming,
    /// One incarnation: these columns take the incoming cell.
    Merge {
        /// The merged birth.
        birth: Dot,
        /// Columns whose incoming cell wins.
        wins: Vec<ColumnNum>,
    },
}

/// The ended incarnations that two states know together.
#[must_use]
pub fn join_ended(one: &Ended, two: &Ended) -> Ended {
    let mut joined = one.clone();
    for (birth, death) in two {
        let known = joined.entry(*birth).or_insert(*death);
        *known = (*known).max(*death);
    }
    while joined.len() > ENDED_MAX {
        joined.pop_first();
    }
    joined
}

/// Whether an incarnation is over. Rows that existed before their replicas joined are one thing,
/// so the end of one of them is the end of all.
fn is_over(birth: Dot, ended: &Ended) -> bool {
    ended.contains_key(&birth)
        || (birth.stamp.is_base() && ended.keys().any(|other| other.stamp.is_base()))
}

/// Joins `incoming` into `current`. `value_of` reads a current value and is only asked when two
/// cells carry the same write event, which honest replicas never make differ. What both know of
/// ended incarnations is joined apart, by [`join_ended`].
///
/// Two rows under one INTEGER key are one thing if they have the same birth. Otherwise the one of
/// the higher causal length keeps the key, then the one of the earlier birth; the other one, if it
/// is alive, moves to a key of its own.
///
/// # Errors
/// Whatever `value_of` returns.
pub fn judge<E>(
    kind: KeyKind,
    current: Option<&Clock>,
    incoming: &Incoming,
    mut value_of: impl FnMut(ColumnNum) -> Result<Value, E>,
) -> Result<Verdict, E> {
    let Some(current) = current else { return Ok(Verdict::Replace { moves: false }) };
    let ended = match kind {
        KeyKind::Integer => join_ended(&current.ended, &incoming.ended),
        KeyKind::Natural => Ended::new(),
    };
    let lives =
        |alive: bool, birth: Dot| kind == KeyKind::Integer && alive && !is_over(birth, &ended);
    let current_moves = || lives(current.alive(), current.birth);
    if incoming.length > current.length {
        return Ok(Verdict::Replace { moves: current_moves() });
    }
    if incoming.length < current.length {
        // Beyond what is remembered one by one, the shorter chain counts as history.
        let remembered = current.length - incoming.length <= 2 * ENDED_MAX as i64;
        return Ok(if remembered && lives(incoming.alive(), incoming.birth) {
            Verdict::MoveIncoming
        } else {
            Verdict::Keep
        });
    }
    if !incoming.alive() {
        let newer = incoming.birth > current.birth;
        return Ok(if newer { Verdict::Replace { moves: false } } else { Verdict::Keep });
    }
    if !one_incarnation(kind, current.birth, incoming.birth) {
        if incoming.birth.precedes(&current.birth) != mutants::on(Mutant::LaterBirthStays) {
            return Ok(Verdict::Replace { moves: current_moves() });
        }
        let moves = lives(true, incoming.birth);
        return Ok(if moves { Verdict::MoveIncoming } else { Verdict::Keep });
    }
    let birth =
        if incoming.birth.precedes(&current.birth) { incoming.birth } else { current.birth };
    let mut wins = Vec::new();
    for (column, (dot, value)) in &incoming.cells {
        let win = match current.cells.get(column) {
            None => true,
            Some(ours) if ours == dot => *value > value_of(*column)?,
            Some(ours) => (dot > ours) != mutants::on(Mutant::OlderCellWins),
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

/// Whether two births of one key and causal length belong to rows that merge.
#[must_use]
pub fn one_incarnation(kind: KeyKind, one: Dot, two: Dot) -> bool {
    kind == KeyKind::Natural || one == two || (one.stamp.is_base() && two.stamp.is_base())
}

/// The key to which an incarnation moves when another one keeps its INTEGER key: the same on every
/// replica, negative (so that automatic keys go on undisturbed) and exact in JavaScript.
#[must_use]
pub fn moved_key(key: i64, birth: Dot) -> i64 {
    let mut hash = Sha256::new();
    hash.update(b"wavesync moved key");
    hash.update(key.to_be_bytes());
    // Rows from before their replicas joined are one thing, whatever their base stamps.
    if !birth.stamp.is_base() {
        hash.update(birth.stamp.0.to_be_bytes());
        hash.update(birth.site.0);
    }
    let bytes: [u8; 32] = hash.finalize().into();
    let first = bytes.iter().take(7).fold(0i64, |sum, byte| (sum << 8) | i64::from(*byte));
    -(1 + (first & ((1 << 52) - 1)))
}
