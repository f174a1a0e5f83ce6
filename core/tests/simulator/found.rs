//! Seeds in which a mutant was found when all were tried, which takes minutes: they are tried first,
//! and the others only if the code has changed so that they show nothing any more. A long run
//! tries all in order.

use wavesync_core::mutants::Mutant;

/// From so many seeds on, a run is a long one.
const LONG: u64 = 10_000;

const FOUND: &[(&str, Mutant, &[u64])] = &[
    ("damage", Mutant::LostValuesStay, &[49]),
    ("mutants", Mutant::CapUnheeded, &[53]),
    ("mutants", Mutant::CloneKeepsSite, &[18]),
    ("mutants", Mutant::DropColumnLoses, &[11]),
    ("mutants", Mutant::ForkUnseen, &[40]),
    ("mutants", Mutant::HorizonIgnored, &[7]),
    ("mutants", Mutant::NoFoldBeforeServe, &[58]),
    ("mutants", Mutant::NoFoldFirst, &[6]),
    ("mutants", Mutant::NoRebase, &[35]),
    ("mutants", Mutant::PlaceAhead, &[28]),
    ("mutants", Mutant::PushAcrossGap, &[8]),
    ("mutants", Mutant::RegainedEarly, &[24]),
    ("sole", Mutant::ChecksIgnored, &[6, 12, 15]),
    ("sole", Mutant::CloneKeepsSite, &[16, 17, 18]),
    ("sole", Mutant::EveryColumnWritten, &[32, 43, 50]),
    ("sole", Mutant::GapUnexpected, &[3, 8, 9]),
    ("sole", Mutant::ParentsIgnored, &[6, 16, 24]),
    ("sole", Mutant::ParkedForGood, &[17, 27, 28]),
    ("sole", Mutant::ReinsertKeepsDelete, &[6, 8, 11]),
    ("sole", Mutant::RestlessWhileParked, &[2, 4, 9]),
];

/// The seeds to try, of 1 to `most`, in the tests of a file.
pub fn seeds(file: &str, mutant: Mutant, most: u64) -> impl Iterator<Item = u64> {
    let long = crate::number("SEEDS").is_some_and(|seeds| seeds >= LONG);
    let found = FOUND.iter().find(|(of, it, _)| (*of, *it) == (file, mutant) && !long);
    let found = found.map_or(&[][..], |(_, _, seeds)| *seeds);
    let others = (1..=most).filter(move |seed| !found.contains(seed));
    found.iter().copied().chain(others)
}
