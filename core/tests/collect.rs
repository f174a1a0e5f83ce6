//! Deletes are forgotten once nobody needs them (rules P18, P19). The simulator has the same under all kinds of
//! interruptions.
#![allow(clippy::unwrap_used)]

mod forgetting;
mod stage;

use forgetting::*;
use stage::{key, peer};
use wavesync_core::ids::{Millis, Seq, Stamp, TableNum};
use wavesync_core::store::apply::Reach;
use wavesync_core::store::collect::Collected;
use wavesync_core::value::Value;
use wavesync_core::wire::message::sealed;
use wavesync_core::wire::rows::Batch;

#[test]
fn p18_a_delete_is_forgotten_once_every_member_has_applied_it() {
    let mut stage = group(3);
    stage.write(0, "INSERT INTO note VALUES('a', 1, 1), ('b', 2, 2); INSERT INTO num VALUES(1, 1)");
    stage.write(1, "DELETE FROM note WHERE id = 'a'; DELETE FROM num");
    (0..3).for_each(|at| assert_eq!(tombstones(&stage, at), "2"));
    stage.pass(A_WHILE_MS);
    (0..3).for_each(|at| assert_eq!(tombstones(&stage, at), "0", "member {at}"));
    // The keys are free as before, and a delete of what came after is no older than what was.
    stage.write(2, "INSERT INTO note VALUES('a', 3, 3); INSERT INTO num VALUES(1, 3)");
    stage.write(0, "UPDATE note SET more = 4 WHERE id = 'a'");
    assert_eq!(all_equal(&stage), "a|3|4\nb|2|2\n1|3");
    stage.write(1, "DELETE FROM note WHERE id = 'a'; DELETE FROM num WHERE id = 1");
    assert_eq!(all_equal(&stage), "b|2|2\n");
}

#[test]
fn p18_young_deletes_are_kept_and_a_lone_replica_keeps_all() {
    let mut stage = group(2);
    stage.write(0, "INSERT INTO note VALUES('a', 1, 1)");
    for at in 0..2 {
        let now = Millis(stage.now);
        stage.at_mut(at).store.set_setting(now, "tombstone_keep_ms", "30000").unwrap();
        stage.write(at, "");
    }
    stage.write(0, "DELETE FROM note");
    stage.pass(A_WHILE_MS);
    assert_eq!(tombstones(&stage, 0), "1", "it is not 30 s old");
    isolate(&mut stage, 1);
    stage.pass(2 * MEMBER_KEEP_MS);
    assert_eq!(tombstones(&stage, 0), "1", "nobody is there who could tell of it");
    stage.connect(0, 1);
    stage.pass(A_WHILE_MS);
    assert_eq!(tombstones(&stage, 0), "0");
}

#[test]
fn p18_a_member_is_waited_for_as_long_as_the_setting_says() {
    let mut stage = group(3);
    stage.write(0, "INSERT INTO note VALUES('a', 1, 1)");
    stage.pass(A_WHILE_MS);
    isolate(&mut stage, 2);
    stage.write(0, "DELETE FROM note");
    stage.pass(MEMBER_KEEP_MS / 2);
    assert_eq!(tombstones(&stage, 0), "1");
    connect_all(&mut stage);
    stage.pass(A_WHILE_MS);
    assert_eq!((tombstones(&stage, 0), tombstones(&stage, 2)), ("0".into(), "0".into()));
    assert!(!stage.codes(2).contains(&"resync"), "it came back in time");
}

/// Of a site with a cap no vector bounds what a member says that it has forgotten.
#[test]
fn p19_who_is_even_has_forgotten_nothing_more_of_a_capped_site() {
    let mut stage = group(2);
    stage.write(1, "INSERT INTO note VALUES('a', 1, 1)");
    let (now, site) = (Millis(stage.now), stage.at(0).machine.peers()[0].site.unwrap());
    let store = &mut stage.at_mut(0).store;
    assert!(store.take_caps(now, &[(site, Stamp(1))].into()).unwrap().0);
    let vector = store.own_state(now).unwrap().vector;
    let collected = Collected::from([(site, Stamp(1 << 50))]);
    let reach = Reach { last: Some(&vector), collected: Some(&collected), ..Reach::default() };
    let none = Batch { tables: Vec::new() };
    store.write_applying(now, |tx| tx.apply_piece(site, &none, &reach)).unwrap();
    assert!(store.own_state(now).unwrap().collected.is_empty());
}

#[test]
fn a_newcomer_with_rows_of_its_own_brings_them_in_above_what_was_forgotten() {
    let mut stage = group(2);
    stage.write(0, "INSERT INTO note VALUES('a', 1, 1), ('b', 2, 2); INSERT INTO num VALUES(1, 1)");
    stage.write(0, "DELETE FROM note WHERE id = 'a'; DELETE FROM num");
    stage.pass(A_WHILE_MS);
    assert_eq!(tombstones(&stage, 0), "0");
    let own = format!("{TABLES} INSERT INTO note VALUES('a', 'own', 0), ('z', 'own', 0);");
    let late = stage.member(peer(9), key(7), &own, 9);
    connect_all(&mut stage);
    stage.pass(A_WHILE_MS);
    assert_eq!(all_equal(&stage), "a|own|0\nb|2|2\nz|own|0\n");
    stage.write(0, "DELETE FROM note WHERE id = 'a'");
    stage.write(late, "UPDATE note SET more = 1 WHERE id = 'z'");
    assert_eq!(all_equal(&stage), "b|2|2\nz|own|1\n");
}

#[test]
fn an_old_export_brings_nothing_back_that_was_deleted_and_forgotten() {
    let mut stage = group(2);
    stage.write(0, "INSERT INTO note VALUES('a', 1, 1), ('b', 2, 2); INSERT INTO num VALUES(1, 1)");
    let now = Millis(stage.now);
    let export = stage.at_mut(1).store.export(now, Seq(0)).unwrap();
    stage.write(0, "DELETE FROM note WHERE id = 'a'; DELETE FROM num");
    stage.pass(A_WHILE_MS);
    assert_eq!((tombstones(&stage, 0), tombstones(&stage, 1)), ("0".into(), "0".into()));
    stage.write(0, "UPDATE note SET body = 3");
    let now = Millis(stage.now);
    stage.at_mut(0).store.import(now, &export).unwrap();
    stage.pass(1_000);
    assert_eq!(all_equal(&stage), "b|3|2\n");
}

/// One has forgotten a delete, another one has not, and a third, who never heard of it, writes the row.
/// What the first two show then.
fn written_unaware_of_a_delete() -> (String, String) {
    let mut stage = group(2);
    stage.write(0, "INSERT INTO note VALUES('a', 1, 1)");
    let now = Millis(stage.now);
    let keep = MEMBER_KEEP_MS.to_string();
    stage.at_mut(1).store.set_setting(now, "tombstone_keep_ms", &keep).unwrap();
    stage.write(1, "");
    stage.write(0, "DELETE FROM note");
    stage.pass(A_WHILE_MS);
    assert_eq!((tombstones(&stage, 0), tombstones(&stage, 1)), ("0".into(), "1".into()));
    let late = stage.member(peer(3), key(7), TABLES, 3);
    // It can speak, and is answered nothing.
    stage.tap = Some(Box::new(move |frame| {
        let answers = frame.to == late && frame.bytes[0] == sealed::CHUNK;
        if answers { Vec::new() } else { vec![frame.bytes.clone()] }
    }));
    stage.connect(1, late);
    stage.write(late, "INSERT INTO note VALUES('a', 'unaware', 0)");
    // At once: what the self-check (rule P15) would mend later is not to come about.
    (rows(&stage, 0), rows(&stage, 1))
}

/// A member has applied a delete, and written something that has not come here yet. Returns how many
/// deletes are forgotten here.
fn forgotten_while_a_write_is_on_its_way() -> usize {
    let mut stage = group(2);
    stage.write(0, "INSERT INTO note VALUES('a', 1, 1)");
    stage.write(0, "DELETE FROM note");
    stage.pass(1_000);
    let site = stage.at(0).machine.peers()[0].site.unwrap();
    isolate(&mut stage, 0);
    stage.write(1, "INSERT INTO note VALUES('b', 2, 2)");
    stage.now += 2 * TOMBSTONE_KEEP_MS;
    let now = Millis(stage.now);
    let told = stage.at_mut(1).store.own_state(now).unwrap().vector;
    let store = &mut stage.at_mut(0).store;
    store.note_applied(now, &[(site, told)]).unwrap();
    store.collect_block(now, (TableNum(0), Value::Null)).unwrap().forgotten
}

#[test]
fn p18b_nothing_is_forgotten_while_a_write_may_not_know_of_it() {
    assert_eq!(forgotten_while_a_write_is_on_its_way(), 0);
}

#[cfg(feature = "mutants")]
#[test]
fn p18b_what_is_forgotten_too_early_is_noticed() {
    use wavesync_core::mutants::{Mutant, set};
    set(Some(Mutant::UnseenForgotten));
    let forgotten = forgotten_while_a_write_is_on_its_way();
    set(None);
    assert_eq!(forgotten, 1);
}

#[test]
fn p10e_a_row_that_lost_to_a_delete_is_not_passed_on_to_who_has_forgotten_that() {
    let (forgot, remembers) = written_unaware_of_a_delete();
    assert_eq!(forgot, remembers);
}

#[cfg(feature = "mutants")]
#[test]
fn p10e_a_row_that_lost_to_a_delete_and_is_passed_on_is_noticed() {
    use wavesync_core::mutants::{Mutant, set};
    set(Some(Mutant::OutlivedPassedOn));
    let (forgot, remembers) = written_unaware_of_a_delete();
    set(None);
    assert_ne!(forgot, remembers);
}
