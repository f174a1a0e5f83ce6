//! Names that only some members use: who learns of them, and through whom.
#![allow(clippy::unwrap_used)]

mod stage;

use stage::{Stage, key, peer};
use wavesync_core::ids::Millis;
use wavesync_core::limits::OTHER_NAMES_MAX;

const OLD: &str = "CREATE TABLE note(k TEXT PRIMARY KEY NOT NULL, a)";
const RENAME: &str = "ALTER TABLE note RENAME TO memo; ALTER TABLE memo RENAME a TO b";

fn member(stage: &mut Stage, sql: &str, before: Option<usize>) -> usize {
    let number = stage.steps.len() as u8 + 1;
    let member = stage.member(peer(number), key(1), sql, u64::from(number));
    if let Some(before) = before {
        stage.connect(before, member);
    }
    stage.pass(500);
    member
}

#[test]
fn who_adopts_a_renamed_table_knows_its_former_names_and_tells_them_on() {
    let mut stage = Stage::new();
    let new = member(&mut stage, OLD, None);
    stage.write(new, RENAME);
    let first = member(&mut stage, "", Some(new));
    let second = member(&mut stage, "", Some(first));
    assert_eq!(stage.read(second, "SELECT count(*) FROM memo"), "0");
    // One that has not renamed, and is met only by who never had the former names.
    let old = member(&mut stage, OLD, Some(second));
    stage.write(old, "INSERT INTO note VALUES('one', 'from before')");
    stage.pass(500);
    for at in [second, first, new] {
        assert_eq!(stage.read(at, "SELECT b FROM memo"), "from before");
        assert_eq!(stage.read(at, "SELECT count(*) FROM __wavesync_parked"), "0");
    }
    let told = stage.sent.len();
    stage.pass(2_000);
    let frames = stage.sent.len() - told;
    assert!(frames < 20, "{frames} frames in two seconds in which nothing happens");
}

#[test]
fn names_are_bounded_and_unfit_ones_left_out() {
    let mut stage = Stage::new();
    let at = member(&mut stage, "", None);
    let now = Millis(stage.now);
    let store = &mut stage.at_mut(at).store;
    let mut other = Stage::new();
    let teller = member(&mut other, OLD, None);
    let told = other.at_mut(teller).store.schema(now).unwrap();
    assert_eq!(store.adopt(now, &told).unwrap(), (vec!["note".to_string()], false));
    let mut told = told[0].clone();
    told.former = vec![String::new(), "x\0y".into(), "n".repeat(5_000), "NOTE".into()];
    told.former_columns = vec![("a".into(), "a".into()), ("a".into(), "k".into())];
    assert!(!store.adopt(now, &[told.clone()]).unwrap().1, "none of these is a name");
    told.former = (0..5_000).map(|n| format!("former {n}")).collect();
    assert!(store.adopt(now, &[told.clone()]).unwrap().1);
    // Letters of another case are the same name, and no news.
    told.former.iter_mut().for_each(|name| name.make_ascii_uppercase());
    assert!(!store.adopt(now, &[told]).unwrap().1);
    let known = store.schema(now).unwrap();
    assert_eq!(known[0].former.len(), OTHER_NAMES_MAX);
}

#[test]
fn a_name_that_stands_here_unsynced_is_not_taken_over() {
    let mut stage = Stage::new();
    let at = member(&mut stage, "", None);
    let now = Millis(stage.now);
    let mut other = Stage::new();
    let teller = member(&mut other, OLD, None);
    let mut told = other.at_mut(teller).store.schema(now).unwrap();
    let store = &mut stage.at_mut(at).store;
    assert_eq!(store.adopt(now, &told).unwrap().0, ["note"]);
    // Without a key it cannot be synced.
    store.connection().execute_batch("CREATE TABLE mine(v)").unwrap();
    told[0].former = vec!["mine".into()];
    assert!(!store.adopt(now, &told).unwrap().1);
}
