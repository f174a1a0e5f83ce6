//! The reference model of `L`: a map per table of key -> row state, and what writes and meetings do
//! to it. Written from `docs/STORAGE.md`; shares no code with the store but the types of dots.

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest, Sha256};
use wavesync_core::ids::{Dot, SiteId, Stamp};
use wavesync_core::value::Value;

/// The parts of a key.
pub type Key = Vec<Value>;

/// How many incarnations that are over an INTEGER key remembers.
const REMEMBERED: usize = 16;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Odd: alive.
    pub length: i64,
    pub birth: Dot,
    pub cells: BTreeMap<String, (Dot, Value)>,
    /// When a rank was taken over, and which.
    pub claim: Option<(Dot, Dot)>,
    pub ended: BTreeMap<Dot, Dot>,
}

impl Row {
    pub fn alive(&self) -> bool {
        self.length % 2 == 1
    }
}

#[derive(Clone, Debug, Default)]
pub struct Rows {
    pub integer: bool,
    pub rows: BTreeMap<Key, Row>,
}

/// What a statement did to one row.
#[derive(Clone, Debug)]
pub enum Operation {
    Insert { table: String, key: Key },
    Update { table: String, key: Key, changed: BTreeSet<String> },
    Delete { table: String, key: Key },
}

/// Stands for a write event that has no stamp yet.
pub fn unnamed(number: i64) -> Dot {
    Dot { stamp: Stamp(i64::MAX - 1_000_000 + number), site: SiteId([0xff; 16]) }
}

pub fn is_unnamed(dot: Dot) -> bool {
    dot.site == SiteId([0xff; 16])
}

/// Whether a birth happened first: before joining goes before all else, and there the earlier join.
pub fn first(one: Dot, two: Dot) -> bool {
    match (one.stamp.0 < 0, two.stamp.0 < 0) {
        (true, true) => (one.stamp, one.site) > (two.stamp, two.site),
        (false, false) => (one.stamp, one.site) < (two.stamp, two.site),
        (one, _) => one,
    }
}

fn one_thing(one: Dot, two: Dot) -> bool {
    one == two || (one.stamp.0 < 0 && two.stamp.0 < 0)
}

fn is_over(birth: Dot, ended: &BTreeMap<Dot, Dot>) -> bool {
    ended.keys().any(|over| one_thing(*over, birth))
}

/// Where a row goes that does not get its INTEGER key.
fn elsewhere(key: &Key, birth: Dot) -> Key {
    let [Value::Integer(number)] = key[..] else { panic!("{key:?} is no INTEGER key") };
    let mut text = b"wavesync moved key".to_vec();
    text.extend(number.to_be_bytes());
    if birth.stamp.0 >= 0 {
        text.extend(birth.stamp.0.to_be_bytes());
        text.extend(birth.site.0);
    }
    let hash = Sha256::digest(&text);
    let mut head = [0; 8];
    head[1..].copy_from_slice(&hash[..7]);
    vec![Value::Integer(-(1 + (i64::from_be_bytes(head) & 0x000f_ffff_ffff_ffff)))]
}

impl Rows {
    /// A local write; `local` are the columns that the table has here, `values` what the row holds
    /// now. `dot` names the event.
    pub fn write(&mut self, operation: &Operation, local: &BTreeSet<String>, dot: Dot) {
        let integer = self.integer;
        let (key, columns) = match operation {
            Operation::Delete { key, .. } => {
                let Some(row) = self.rows.get_mut(key).filter(|row| row.alive()) else { return };
                if integer {
                    row.ended.insert(row.birth, dot);
                }
                row.length += 1;
                row.birth = dot;
                row.cells.clear();
                row.claim = None;
                return;
            }
            Operation::Insert { key, .. } => (key, local),
            Operation::Update { key, changed, .. } => (key, changed),
        };
        let known = self.rows.get(key);
        if !known.is_some_and(Row::alive) {
            let ended = known.map(|row| row.ended.clone()).unwrap_or_default();
            let length = known.map_or(0, |row| row.length) + 1;
            let cells = local.iter().map(|name| (name.clone(), (dot, Value::Null))).collect();
            let row = Row { length, birth: dot, cells, claim: None, ended };
            self.rows.insert(key.clone(), row);
            return;
        }
        if let Some(row) = self.rows.get_mut(key) {
            for name in columns {
                row.cells.insert(name.clone(), (dot, Value::Null));
            }
        }
    }

    /// Everything that another replica holds of this table.
    pub fn meet(&mut self, other: &Self) {
        for (key, row) in &other.rows {
            self.join(key, row);
        }
    }

    fn join(&mut self, key: &Key, theirs: &Row) {
        let Some(ours) = self.rows.get(key).cloned() else {
            self.rows.insert(key.clone(), theirs.clone());
            self.end_what_moved(key, &theirs.ended);
            return;
        };
        let joined = if self.integer {
            self.join_integer(key, ours, theirs)
        } else {
            join_natural(ours, theirs)
        };
        let ended = joined.ended.clone();
        self.rows.insert(key.clone(), joined);
        self.end_what_moved(key, &ended);
    }

    fn join_integer(&mut self, key: &Key, ours: Row, theirs: &Row) -> Row {
        let mut ended = ours.ended.clone();
        for (birth, death) in &theirs.ended {
            let known = ended.entry(*birth).or_insert(*death);
            *known = (*known).max(*death);
        }
        while ended.len() > REMEMBERED {
            ended.pop_first();
        }
        let same = ours.length == theirs.length;
        let merge = same && (!ours.alive() || one_thing(ours.birth, theirs.birth));
        if merge {
            return Row { ended, ..join_natural(ours, theirs) };
        }
        let ours_stays =
            if same { first(ours.birth, theirs.birth) } else { ours.length > theirs.length };
        let (stays, leaves) =
            if ours_stays { (ours, theirs.clone()) } else { (theirs.clone(), ours) };
        let near = stays.length - leaves.length <= 2 * REMEMBERED as i64;
        if leaves.alive() && !is_over(leaves.birth, &ended) && near {
            let to = elsewhere(key, leaves.birth);
            self.join(&to, &Row { length: 1, ended: BTreeMap::new(), ..leaves });
        }
        Row { ended, ..stays }
    }

    fn end_what_moved(&mut self, key: &Key, ended: &BTreeMap<Dot, Dot>) {
        if !self.integer {
            return;
        }
        for (birth, death) in ended {
            let to = elsewhere(key, *birth);
            let lives = self
                .rows
                .get(&to)
                .is_some_and(|row| row.alive() && row.length == 1 && one_thing(row.birth, *birth));
            if lives {
                let ended = BTreeMap::from([(*birth, *death)]);
                let (cells, claim) = (BTreeMap::new(), None);
                let end = Row { length: 2, birth: *death, cells, claim, ended };
                self.join(&to, &end);
            }
        }
    }
}

fn join_natural(mut ours: Row, theirs: &Row) -> Row {
    if ours.length != theirs.length {
        return if ours.length > theirs.length { ours } else { theirs.clone() };
    }
    if !ours.alive() {
        return if ours.birth >= theirs.birth { ours } else { theirs.clone() };
    }
    if first(theirs.birth, ours.birth) {
        ours.birth = theirs.birth;
    }
    for (name, theirs) in &theirs.cells {
        let newer = ours.cells.get(name).is_none_or(|(dot, _)| *dot < theirs.0);
        if newer {
            ours.cells.insert(name.clone(), theirs.clone());
        }
    }
    ours.claim = ours.claim.max(theirs.claim);
    ours
}
