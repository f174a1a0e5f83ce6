//! Rules broken on purpose: the model must notice each within a bounded number of cases (house rule
//! 21). Without a broken rule the same cases hold, as the test beside this one shows.

use wavesync_core::mutants::{self, Mutant};

use crate::run;
use crate::script::Script;

/// A mutant that survives this many cases is not noticed.
const CASES_MAX: u64 = 100;

fn are_killed(all: &[Mutant]) {
    let mut alive = Vec::new();
    for mutant in all {
        mutants::set(Some(*mutant));
        let killed = (1..=CASES_MAX).find_map(|case| {
            let what = run(&Script::random(case)).err()?;
            Some((case, what.lines().next().unwrap_or_default().to_owned()))
        });
        mutants::set(None);
        match killed {
            Some((case, what)) => {
                eprintln!(
                    "{mutant:?}: case {case}: {}",
                    what.chars().take(100).collect::<String>()
                );
            }
            None => alive.push(mutant),
        }
    }
    assert!(alive.is_empty(), "{alive:?} survive {CASES_MAX} cases");
}

#[test]
fn broken_capture_and_folds_are_noticed() {
    are_killed(&[
        Mutant::ReplaceUnseen,
        Mutant::ClassesAlike,
        Mutant::KeyChangeInserts,
        Mutant::ForgetEnds,
        Mutant::RebirthShort,
        Mutant::NoCoupling,
    ]);
}

#[test]
fn broken_joins_and_moves_are_noticed() {
    are_killed(&[
        Mutant::OlderCellWins,
        Mutant::LaterBirthStays,
        Mutant::LaterJoinWins,
        Mutant::EndStaysBehind,
    ]);
}

#[test]
fn broken_constraints_are_noticed() {
    are_killed(&[
        Mutant::LatestStays,
        Mutant::ParkedForGood,
        Mutant::RivalsForgotten,
        Mutant::TriggersCount,
    ]);
}

#[test]
fn broken_parking_and_schema_changes_are_noticed() {
    are_killed(&[
        Mutant::UnknownColumnsDropped,
        Mutant::ParkedUnlisted,
        Mutant::ParkedStay,
        Mutant::RenameIsNew,
        Mutant::DropKeepsClocks,
        Mutant::DropColumnLoses,
    ]);
}
