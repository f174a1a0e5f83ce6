//! Which members to be connected with: everybody in a small group, a random few in a large one.
//!
//! A random graph in which everybody has a handful of neighbours is connected and a few hops wide
//! at any size, so a write that is applied and passed on reaches everyone; what an unlucky moment
//! leaves out is repaired by the announcements (Eugster et al., "Lightweight probabilistic
//! broadcast", 2003, is the classical analysis).

use std::collections::BTreeSet;

use crate::ids::Millis;

/// Up to this many members everybody is connected with everybody.
pub const FULL_MESH_MAX_MEMBERS: usize = 16;
/// In a larger group a member with fewer neighbours looks for more.
pub const NEIGHBOURS_MIN: usize = 8;
/// It looks until it has this many.
pub const NEIGHBOURS_WANTED: usize = 10;
/// A member with more neighbours parts from some.
pub const NEIGHBOURS_MAX: usize = 12;
/// Who was parted from or could not be reached is left alone for this long, in milliseconds, as
/// long as there are others.
pub const REST_MS: u64 = 60_000;

/// What to do about a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish<P> {
    /// Connect with it.
    Dial(P),
    /// End the connection with it.
    Part(P),
}

/// Whether a member that knows this many members, itself included, and has this many neighbours
/// leaves things as they are.
#[must_use]
pub fn is_settled(members: usize, neighbours: usize) -> bool {
    let few = members <= FULL_MESH_MAX_MEMBERS;
    (few && neighbours + 1 >= members)
        || (!few && (NEIGHBOURS_MIN..=NEIGHBOURS_MAX).contains(&neighbours))
}

/// Chooses neighbours.
#[derive(Debug)]
pub struct Mesh<P> {
    random: u64,
    /// Who is left alone, until when.
    resting: Vec<(P, Millis)>,
}

impl<P: Ord + Clone> Mesh<P> {
    /// A chooser; members that are given the same seed choose alike.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { random: seed, resting: Vec::new() }
    }

    /// What to do now in a group of so many known members, given those that could be dialed and
    /// those that are connected or being dialed. `kept` ones are never parted from.
    pub fn plan(
        &mut self,
        now: Millis,
        members: usize,
        reachable: &BTreeSet<P>,
        connected: &BTreeSet<P>,
        kept: &BTreeSet<P>,
    ) -> Vec<Wish<P>> {
        self.resting.retain(|(_, until)| *until > now);
        if is_settled(members, connected.len()) {
            return Vec::new();
        }
        let mut free: Vec<&P> = reachable.difference(connected).collect();
        if members <= FULL_MESH_MAX_MEMBERS {
            return free.into_iter().cloned().map(Wish::Dial).collect();
        }
        if connected.len() > NEIGHBOURS_MAX {
            let mut closable: Vec<&P> = connected.difference(kept).collect();
            self.shuffle(&mut closable);
            closable.truncate(connected.len() - NEIGHBOURS_MAX);
            let parted: Vec<P> = closable.into_iter().cloned().collect();
            parted.iter().for_each(|peer| self.rest(now, peer));
            return parted.into_iter().map(Wish::Part).collect();
        }
        self.shuffle(&mut free);
        free.sort_by_key(|peer| self.resting.iter().any(|(resting, _)| resting == *peer));
        free.truncate(NEIGHBOURS_WANTED - connected.len());
        free.into_iter().cloned().map(Wish::Dial).collect()
    }

    /// A member could not be reached, or is to be left alone.
    pub fn rest(&mut self, now: Millis, peer: &P) {
        self.resting.retain(|(resting, _)| resting != peer);
        self.resting.push((peer.clone(), now.plus(REST_MS)));
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for at in (1..items.len()).rev() {
            items.swap(at, (self.next() % (at as u64 + 1)) as usize);
        }
    }

    /// SplitMix64 (Steele, Lea, Flood, 2014); nothing secret depends on it.
    fn next(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(numbers: std::ops::Range<u32>) -> BTreeSet<u32> {
        numbers.collect()
    }

    #[test]
    fn a_small_group_is_a_full_mesh() {
        let mut mesh = Mesh::new(1);
        let plan = mesh.plan(Millis(0), 16, &set(0..15), &set(0..3), &set(0..0));
        assert_eq!(plan, (3..15).map(Wish::Dial).collect::<Vec<_>>());
        assert!(mesh.plan(Millis(0), 16, &set(0..15), &set(0..15), &set(0..0)).is_empty());
    }

    #[test]
    fn a_large_group_has_a_bounded_number_of_neighbours() {
        let mut mesh = Mesh::new(1);
        let all = set(0..100);
        let dials = mesh.plan(Millis(0), 101, &all, &set(0..7), &set(0..0));
        assert_eq!(dials.len(), NEIGHBOURS_WANTED - 7);
        assert!(dials.iter().all(|wish| matches!(wish, Wish::Dial(peer) if *peer >= 7)));
        assert!(mesh.plan(Millis(0), 101, &all, &set(0..8), &set(0..0)).is_empty());
        assert!(mesh.plan(Millis(0), 101, &all, &set(0..12), &set(0..0)).is_empty());
        let parted = mesh.plan(Millis(0), 101, &all, &set(0..14), &set(0..10));
        assert_eq!(parted.len(), 2);
        assert!(parted.iter().all(|wish| matches!(wish, Wish::Part(peer) if *peer >= 10)));
    }

    #[test]
    fn who_rests_is_chosen_last() {
        let mut mesh = Mesh::new(1);
        let all = set(0..17);
        (7..16).for_each(|peer| mesh.rest(Millis(0), &peer));
        let dials = mesh.plan(Millis(1), 18, &all, &set(0..7), &set(0..0));
        assert_eq!(dials[0], Wish::Dial(16));
        assert_eq!(dials.len(), 3);
        mesh.plan(Millis(REST_MS), 18, &all, &set(0..8), &set(0..0));
        assert!(mesh.resting.is_empty());
        assert!(is_settled(18, 8) && is_settled(18, 12) && is_settled(16, 15));
        assert!(!is_settled(18, 7) && !is_settled(18, 13) && !is_settled(16, 14));
    }
}
