//! Names that only some members use: who learns of them, and through whom.
#![allow(clippy::unwrap_used)]

mod stage;

use stage::{Stage, key, peer};

const OLD: &str = "CREATE TABLE note(k TEXT PRIMARY KEY NOT NULL, a)";
/// As a program of the next version creates it.
const NEW: &str = "CREATE TABLE memo(k TEXT PRIMARY KEY NOT NULL, b)";
const RENAME: &str = "ALTER TABLE note RENAME TO memo; ALTER TABLE memo RENAME a TO b";

/// Members in a line, none of which creates tables of others.
fn line(schemas: &[&str]) -> Stage {
    let mut stage = Stage::new();
    for (at, sql) in schemas.iter().enumerate() {
        let member = stage.member(peer(at as u8 + 1), key(1), sql, at as u64 + 1);
        if member > 0 {
            stage.connect(member - 1, member);
        }
    }
    stage.pass(500);
    stage
}

#[test]
fn names_reach_who_never_meets_the_member_that_renamed() {
    let mut stage = line(&[OLD, OLD, NEW]);
    stage.write(0, "INSERT INTO note VALUES('one', 1)");
    stage.pass(500);
    assert_eq!(stage.read(1, "SELECT * FROM note"), stage.read(0, "SELECT * FROM note"));
    assert_eq!(stage.read(2, "SELECT count(*) FROM memo"), "0");
    // Whoever is in between has the former names, and goes on.
    stage.write(0, RENAME);
    stage.pass(500);
    assert_eq!(stage.read(2, "SELECT * FROM memo"), stage.read(0, "SELECT * FROM memo"));
    stage.write(2, "UPDATE memo SET b = 'two'; INSERT INTO memo VALUES('three', 3)");
    stage.pass(500);
    let rows = stage.read(2, "SELECT * FROM memo ORDER BY k");
    assert_eq!(stage.read(1, "SELECT * FROM note ORDER BY k"), rows);
    assert_eq!(stage.read(0, "SELECT * FROM memo ORDER BY k"), rows);
    for member in 0..3 {
        let parked = "SELECT count(*) FROM __wavesync_parked";
        assert_eq!(stage.read(member, parked), "0");
        assert!(!stage.codes(member).contains(&"difference"), "{:?}", stage.codes(member));
    }
}

#[test]
fn a_name_that_stands_here_for_something_else_means_that() {
    let other = "CREATE TABLE note(k TEXT PRIMARY KEY NOT NULL, a)";
    let mut stage = line(&[OLD, &format!("{NEW}; {other}")]);
    stage.write(1, "INSERT INTO memo VALUES('memo', 1); INSERT INTO note VALUES('note', 2)");
    stage.pass(500);
    stage.write(0, RENAME);
    stage.pass(500);
    assert_eq!(stage.read(1, "SELECT k FROM memo"), "memo");
    assert_eq!(stage.read(1, "SELECT k FROM note"), "note");
}
