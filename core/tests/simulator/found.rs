//! Seeds in which a mutant was found when all were tried, which takes minutes: they are tried first,
//! and the others only if the code has changed so that they show nothing any more. A long run
//! tries all in order.

use wavesync_core::mutants::Mutant;

/// From so many seeds on, a run is a long one.
const LONG: u64 = 10_000;

#[rustfmt::skip]
const FOUND: &[(&str, Mutant, &[u64])] = &[
];

/// The seeds to try, of 1 to `most`, in the tests of a file.
pub fn seeds(file: &str, mutant: Mutant, most: u64) -> impl Iterator<Item = u64> {
    let long = crate::number("SEEDS").is_some_and(|seeds| seeds >= LONG);
    let found = FOUND.iter().find(|(of, it, _)| (*of, *it) == (file, mutant) && !long);
    let found = found.map_or(&[][..], |(_, _, seeds)| *seeds);
    let others = (1..=most).filter(move |seed| !found.contains(seed));
    found.iter().copied().chain(others)
}
