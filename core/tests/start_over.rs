//! A member that starts over: requests are counted.
#![allow(clippy::unwrap_used)]

mod stage;

use stage::{START, Stage, key, peer};
use wavesync_core::ids::Millis;

const TABLES: &str = "CREATE TABLE note(id TEXT PRIMARY KEY, body);
    CREATE TABLE other(id TEXT PRIMARY KEY, body)";

fn requests(stage: &Stage, members: &[usize]) -> u64 {
    let all = members.iter().flat_map(|member| stage.at(*member).machine.peers());
    all.map(|peer| peer.requests_out).sum()
}

/// A member wrote a row that nobody had received, then untracked another table, so it claims nothing;
/// the others send it what it lost. Returns the requests that five later writes in the group cost.
fn requests_after_starting_over() -> u64 {
    let mut stage = Stage::new();
    stage.records = false;
    let members = [1, 2, 3].map(|n| stage.member(peer(n), key(7), TABLES, u64::from(n)));
    let [one, two, three] = members;
    let all = [(one, two), (two, three), (one, three)];
    all.iter().for_each(|(a, b)| stage.connect(*a, *b));
    stage.write(one, "INSERT INTO other VALUES('lost here', 1)");
    stage.write(two, "INSERT INTO note VALUES('second', 1)");
    stage.pass(60_000);
    stage.disconnect(one, two);
    stage.disconnect(one, three);
    stage.write(one, "INSERT INTO note VALUES('nobody has it', 1)");
    stage.at_mut(one).store.untrack(Millis(START + 100_000), "other").unwrap();
    stage.now += 100_000;
    stage.pass(1_000);
    stage.connect(one, two);
    stage.connect(one, three);
    stage.pass(60_000);
    let rows = "SELECT count(*) FROM note";
    assert_eq!(members.map(|member| stage.read(member, rows)), ["2", "2", "2"]);
    let before = requests(&stage, &members);
    for n in 0..5 {
        stage.write(members[n % 3], &format!("INSERT INTO note VALUES('later {n}', 1)"));
        stage.pass(2_000);
    }
    assert_eq!(members.map(|member| stage.read(member, rows)), ["7", "7", "7"]);
    requests(&stage, &members) - before
}

/// When all is back its log is closed, and a write costs a push and no request.
#[test]
fn a_member_that_started_over_is_asked_for_nothing_once_all_is_back() {
    assert_eq!(requests_after_starting_over(), 0);
}

#[cfg(feature = "mutants")]
#[test]
fn a_member_that_claims_nothing_again_is_asked_at_each_write() {
    use wavesync_core::mutants::{self, Mutant};
    mutants::set(Some(Mutant::ClaimsStayLost));
    let asked = requests_after_starting_over();
    mutants::set(None);
    assert!(asked >= 5, "{asked} requests");
}
