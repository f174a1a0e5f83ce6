//! A cap says up to where two histories of one site are the same (rule P14). Members that do not know of
//! it claim more, ask for more and send more.
#![allow(clippy::unwrap_used)]

mod stage;
mod told;

use std::collections::BTreeSet;

use stage::{Line, Stage, key, peer};
use told::{answer, last_chunk, state};
use wavesync_core::ids::{Boot, Dot, SiteId, Stamp};
use wavesync_core::machine::StreamId;
use wavesync_core::merge::Ended;
use wavesync_core::store::vector::Vector;
use wavesync_core::value::Value;
use wavesync_core::wire;
use wavesync_core::wire::message::{Chunk, Hello, PushMessage, State, VectorList, sealed};
use wavesync_core::wire::rows::{Batch, Row, TableRows};

const TABLE: &str = "CREATE TABLE note(id TEXT PRIMARY KEY, body)";
/// The site whose history exists twice.
const THIRD: SiteId = SiteId([0x33; 16]);

fn vector(stamp: i64) -> VectorList {
    let entries = [(THIRD, (Stamp(stamp), Boot(9)))].into_iter().collect();
    VectorList::from(&Vector(entries))
}

/// A member, and a peer whom the test plays and who says at first that it has the site up to a stamp.
fn met(claims: i64) -> (Stage, usize, Line) {
    let mut stage = Stage::new();
    let member = stage.member(peer(2), key(7), TABLE, 1);
    let puppet = stage.puppet(peer(1));
    stage.connect(puppet, member);
    let mut line = stage.shake(puppet, member, &key(7));
    let told = State { vector: vector(claims), ..state(5) };
    let (site, name) = (SiteId([0xEE; 16]), String::new());
    let hello = Hello { features: 0, site, name, wants_schema: false, state: told };
    line.say(&mut stage, sealed::HELLO, &wire::encode(&hello).unwrap());
    stage.run();
    (stage, member, line)
}

fn says(stage: &mut Stage, line: &mut Line, told: &State) {
    line.say(stage, sealed::STATE, &wire::encode(told).unwrap());
    stage.run();
}

/// What the member claims of the site.
fn claim(stage: &Stage, member: usize) -> String {
    let sql = "SELECT stamp FROM __wavesync_vector v JOIN __wavesync_site s ON s.num = v.site
        WHERE s.id = x'33333333333333333333333333333333'";
    stage.read(member, sql)
}

/// Rule P12 speaks of rows that the member's own vector covers: above a cap that it does not know of
/// it may have rows that are covered there and not here.
#[test]
fn p12_the_log_of_a_member_that_does_not_know_of_a_cap_is_read() {
    let (mut stage, _, mut line) = met(50);
    stage.pass(1_000);
    let mut seen = BTreeSet::new();
    let rows = Batch::default().encode();
    let chunk = Chunk { vector: Some(vector(50)), ..last_chunk(5, &rows) };
    assert_eq!(answer(&mut stage, &line, &mut seen, &chunk), 1);

    // It has more of a site than may be claimed.
    let (closed, caps) = (true, vec![(THIRD, Stamp(50))]);
    says(&mut stage, &mut line, &State { vector: vector(100), closed, caps, ..state(6) });
    stage.pass(1_000);
    let chunk = Chunk { vector: Some(vector(100)), ..last_chunk(6, &rows) };
    assert_eq!(answer(&mut stage, &line, &mut seen, &chunk), 1, "its log is read");
    stage.pass(60_000);
    assert_eq!(answer(&mut stage, &line, &mut seen, &chunk), 0, "once");
}

/// A pass that was asked for with higher claims would end with the vector of before.
#[test]
fn p14_a_running_pass_is_dropped_when_a_cap_falls() {
    let (mut stage, member, mut line) = met(50);
    let asked: Vec<StreamId> = stage.seen(line.puppet).opened.clone();
    assert_eq!(asked.len(), 1, "its log is asked for");
    let caps = vec![(THIRD, Stamp(20))];
    says(&mut stage, &mut line, &State { vector: vector(50), caps, ..state(5) });
    assert!(stage.seen(line.puppet).closed.contains(&asked[0]), "the pass goes on");
    stage.pass(1_000);
    let again: Vec<StreamId> = stage.seen(line.puppet).opened.clone();
    assert_eq!(again.len(), 2, "it is asked for again");

    // The cap holds, whatever its last chunk claims.
    let chunk = Chunk { vector: Some(vector(50)), ..last_chunk(5, &Batch::default().encode()) };
    let mut seen = asked.into_iter().collect();
    assert_eq!(answer(&mut stage, &line, &mut seen, &chunk), 1);
    assert_eq!(claim(&stage, member), "20");
}

/// Its author continues a history of which only the beginning is certain.
#[test]
fn p14_a_push_above_a_cap_is_a_gap() {
    for capped in [false, true] {
        let (mut stage, member, mut line) = met(20);
        let mut seen = BTreeSet::new();
        let rows = Batch::default().encode();
        let chunk = Chunk { vector: Some(vector(20)), ..last_chunk(5, &rows) };
        assert_eq!(answer(&mut stage, &line, &mut seen, &chunk), 1);
        assert_eq!(claim(&stage, member), "20");
        let caps = if capped { vec![(THIRD, Stamp(20))] } else { Vec::new() };
        says(&mut stage, &mut line, &State { vector: vector(20), caps, ..state(5) });
        stage.pass(1_000);
        answer(&mut stage, &line, &mut seen, &chunk);

        let dot = Dot { stamp: Stamp(30), site: THIRD };
        let row = Row {
            key: vec![Value::Text(b"pushed".to_vec())],
            length: 1,
            birth: dot,
            whole: true,
            cells: vec![(0, dot, Value::Integer(1))],
            ended: Ended::new(),
        };
        let rows = Batch {
            tables: vec![TableRows {
                name: "note".into(),
                integer_key: false,
                key_columns: 1,
                columns: vec!["body".into()],
                rows: vec![row],
            }],
        };
        let (prev, upto, sent_to) = (Stamp(20), Stamp(30), Vec::new());
        let push =
            PushMessage { site: THIRD, boot: Boot(9), prev, upto, sent_to, rows: rows.encode() };
        line.say(&mut stage, sealed::PUSH, &wire::encode(&push).unwrap());
        stage.run();
        let (here, claimed) = if capped { ("", "20") } else { ("pushed", "30") };
        assert_eq!(stage.read(member, "SELECT id FROM note"), here, "capped: {capped}");
        assert_eq!(claim(&stage, member), claimed, "capped: {capped}");
        if capped {
            says(&mut stage, &mut line, &State { vector: vector(30), ..state(6) });
            stage.pass(1_000);
            let chunk = last_chunk(6, &Batch::default().encode());
            assert_eq!(answer(&mut stage, &line, &mut seen, &chunk), 1, "its log is read");
        }
    }
}
