//! Rule P15: members that have seen the same compare what they hold, read again what differs, and
//! tell when that does not help. Nothing of it happens where nothing is wrong.
#![allow(clippy::unwrap_used)]

mod stage;

use proptest::prelude::*;
use stage::{Line, Stage, key, peer};
use wavesync_core::ids::{Boot, Cursor, Millis, Seq, SiteId};
use wavesync_core::limits::{self, Bounds};
use wavesync_core::machine::StreamId;
use wavesync_core::store::Store;
use wavesync_core::store::digest::{Digests, PARTS, Taken, differences};
use wavesync_core::wire;
use wavesync_core::wire::message::{
    Attach, Chunk, DigestMessage, Hello, Message, State, TableDigest, features, sealed,
};
use wavesync_core::wire::rows::Batch;

const TABLES: &str = "
    CREATE TABLE note(id INTEGER PRIMARY KEY, a, b);
    CREATE TABLE txt(k TEXT PRIMARY KEY NOT NULL, a, b);";
const ROWS: &str = "
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300)
    INSERT INTO note SELECT i, 'a' || i, i FROM n;
    INSERT INTO txt SELECT 'k' || id, a, b FROM note;";
/// Longer than it takes until the own rows were read and compared.
const ROUND_MS: u64 = limits::DIGEST_QUIET_MS + 4_000;

/// Two members that hold the same, and have not compared it yet.
fn pair() -> (Stage, usize, usize) {
    let mut stage = Stage::new();
    let one = stage.member(peer(1), key(1), TABLES, 1);
    let two = stage.member(peer(2), key(1), TABLES, 2);
    stage.connect(one, two);
    stage.write(one, ROWS);
    stage.pass(500);
    let query = "SELECT count(*) FROM note JOIN txt ON k = 'k' || id";
    assert_eq!(stage.read(two, query), "300");
    (stage, one, two)
}

fn frames(stage: &Stage, kind: u8) -> usize {
    stage.sent.iter().filter(|frame| frame.bytes[0] == kind).count()
}

/// Damages a database behind its engine's back: triggers are off on this connection.
fn damage(stage: &Stage, member: usize, sql: &str) {
    stage.at(member).store.connection().execute_batch(sql).unwrap();
}

fn everything(stage: &Stage, member: usize) -> String {
    let sql = "SELECT * FROM note UNION ALL SELECT * FROM txt ORDER BY 1";
    stage.read(member, sql)
}

/// The number of a table, as it stands in the name of its clocks.
fn clocks(stage: &Stage, member: usize, table: &str) -> String {
    let sql = format!("SELECT num FROM __wavesync_table WHERE name = '{table}'");
    format!("__wavesync_clock_{}", stage.read(member, &sql))
}

#[test]
fn what_is_the_same_is_compared_once_and_then_it_is_quiet() {
    let (mut stage, one, two) = pair();
    stage.pass(ROUND_MS);
    for member in [one, two] {
        let counts = stage.at(member).machine.progress().check;
        assert_eq!((counts.compared, counts.differences), (1, 0), "{counts:?}");
    }
    assert_eq!(frames(&stage, sealed::DIGEST), 2);
    stage.pass(12 * 3_600_000);
    assert_eq!(frames(&stage, sealed::DIGEST), 2);
    // A write is a reason to compare again.
    stage.write(two, "UPDATE note SET a = 'new' WHERE id = 7");
    stage.pass(limits::DIGEST_INTERVAL_MS + ROUND_MS);
    assert_eq!(frames(&stage, sealed::DIGEST), 4);
    assert_eq!(frames(&stage, sealed::REPAIR), 0);
}

#[test]
fn after_a_day_everything_is_read_again() {
    let (mut stage, one, two) = pair();
    stage.pass(ROUND_MS);
    damage(&stage, two, "UPDATE note SET a = 'damaged' WHERE id = 7");
    stage.pass(limits::DIGEST_KEEP_MS + limits::COMPARE_INTERVAL_MS + ROUND_MS);
    assert!(stage.codes(two).contains(&"difference"));
    assert_eq!(everything(&stage, one), everything(&stage, two));
}

/// Damages one or both, and sees it noticed in one round, told and mended.
fn is_mended(damages: impl Fn(&Stage, usize, usize)) -> (Stage, usize, usize) {
    let (mut stage, one, two) = pair();
    damages(&stage, one, two);
    assert_ne!(everything(&stage, one), everything(&stage, two));
    let mut shown = false;
    for _ in 0..2 * ROUND_MS / 10 {
        stage.pass(10);
        let peers = stage.at(two).machine.peers();
        shown |= peers.iter().any(|peer| peer.last_error.contains("differ"));
    }
    assert!(shown, "it is shown while it lasts");
    for member in [one, two] {
        let codes = stage.codes(member);
        assert!(codes.contains(&"difference") && codes.contains(&"repaired"), "{codes:?}");
        assert!(!codes.contains(&"diverged"), "{codes:?}");
        let peers = stage.at(member).machine.peers();
        assert!(peers.iter().all(|peer| peer.last_error.is_empty()), "{peers:?}");
    }
    assert_eq!(everything(&stage, one), everything(&stage, two));
    let asked = frames(&stage, sealed::REPAIR);
    stage.pass(3_600_000);
    assert_eq!(frames(&stage, sealed::REPAIR), asked, "nothing is read again for nothing");
    (stage, one, two)
}

#[test]
fn a_row_that_is_gone_with_its_clock_comes_back() {
    let (stage, ..) = is_mended(|stage, _, two| {
        let clocks = clocks(stage, two, "note");
        damage(
            stage,
            two,
            &format!("DELETE FROM note WHERE id = 7; DELETE FROM {clocks} WHERE k = 7"),
        );
    });
    // Of the parts into which 300 rows fall only one travels, in each direction.
    let bytes: usize = stage
        .sent
        .iter()
        .skip_while(|frame| frame.bytes[0] != sealed::REPAIR)
        .filter(|frame| frame.bytes[0] == sealed::CHUNK)
        .map(|frame| frame.bytes.len())
        .sum();
    assert!(bytes > 0 && bytes < 2_500, "{bytes} bytes");
}

#[test]
fn a_row_that_is_gone_without_its_clock_comes_back() {
    is_mended(|stage, _, two| damage(stage, two, "DELETE FROM txt WHERE k = 'k7'"));
}

#[test]
fn different_values_of_one_write_become_one_and_the_other_is_kept() {
    for value in ["'zzz'", "NULL"] {
        let (stage, one, two) = is_mended(|stage, _, two| {
            damage(stage, two, &format!("UPDATE note SET a = {value} WHERE id = 7"));
        });
        let sql = "SELECT count(*) FROM __wavesync_conflict WHERE kind = 'overwritten'";
        let kept = [one, two].map(|member| stage.read(member, sql));
        assert!(kept.contains(&"1".to_string()), "{value}: {kept:?}");
    }
}

#[test]
fn both_sides_may_lack_something() {
    is_mended(|stage, one, two| {
        for (member, key) in [(one, 8), (two, 9)] {
            let clocks = clocks(stage, member, "note");
            damage(stage, member, &format!("DELETE FROM note WHERE id = {key}"));
            damage(stage, member, &format!("DELETE FROM {clocks} WHERE k = {key}"));
        }
        damage(stage, one, "UPDATE txt SET b = 'other' WHERE k = 'k3'");
    });
}

fn digest(store: &mut Store, digests: &mut Digests) -> Taken {
    loop {
        if let Some(taken) = store.folded(Millis(stage::START), |tx| tx.digest(digests)).unwrap() {
            return taken;
        }
    }
}

/// No member tells of a difference although their schemas are not the same.
fn are_content(schemas: &[&str], mut happen: impl FnMut(&mut Stage)) -> Stage {
    let mut stage = Stage::new();
    for (at, sql) in schemas.iter().enumerate() {
        let number = at as u8 + 1;
        let member = stage.member(peer(number), key(1), sql, u64::from(number));
        (0..member).for_each(|other| stage.connect(other, member));
    }
    stage.write(0, "INSERT INTO note VALUES(1, 'one', 1), (2, 'two', 2.5), (3, NULL, '3')");
    stage.pass(500);
    happen(&mut stage);
    stage.pass(limits::DIGEST_INTERVAL_MS + 2 * ROUND_MS);
    for member in 0..schemas.len() {
        let codes = stage.codes(member);
        assert!(!codes.contains(&"difference") && !codes.contains(&"diverged"), "{codes:?}");
        let compared = stage.at(member).machine.progress().check.compared;
        assert!(compared >= schemas.len() as u64 - 1, "{member} has compared {compared} times");
    }
    assert_eq!(frames(&stage, sealed::REPAIR), 0);
    stage
}

#[test]
fn members_without_a_table_or_a_column_hold_the_same() {
    let without_column = "CREATE TABLE Note(ID INTEGER PRIMARY KEY, B)";
    let other = "CREATE TABLE other(id INTEGER PRIMARY KEY)";
    let mut stage = are_content(&[TABLES, without_column, other], |stage| {
        stage.write(1, "UPDATE note SET b = 9 WHERE id = 1");
    });
    let totals: Vec<[u8; 16]> = (0..3)
        .map(|at| digest(&mut stage.at_mut(at).store, &mut Digests::default()).total)
        .collect();
    assert_eq!(totals[0], totals[1]);
    assert_eq!(totals[0], totals[2]);
}

#[test]
fn columns_that_keep_values_as_other_types_are_no_difference() {
    let typed = "CREATE TABLE note(id INTEGER PRIMARY KEY, a TEXT, b TEXT)";
    are_content(&[TABLES, typed], |_| {});
}

#[test]
fn a_table_that_one_member_has_renamed_is_no_difference() {
    are_content(&[TABLES, TABLES], |stage| {
        stage.write(0, "ALTER TABLE note RENAME TO notes; INSERT INTO notes VALUES(4, 'four', 4)");
        stage.write(1, "INSERT INTO note VALUES(5, 'five', 5)");
    });
}

#[test]
fn a_column_that_one_member_has_renamed_is_no_difference() {
    are_content(&[TABLES, TABLES], |stage| {
        stage.write(0, "ALTER TABLE note RENAME COLUMN a TO c; UPDATE note SET c = 'new'");
    });
}

#[test]
fn a_sign_of_zero_that_no_trigger_sees_is_no_difference() {
    are_content(&[TABLES, TABLES], |stage| {
        stage.write(0, "UPDATE note SET b = 0.0 WHERE id = 1");
        stage.pass(200);
        stage.write(1, "UPDATE note SET b = -0.0 WHERE id = 1");
    });
}

#[test]
fn a_dropped_table_is_no_difference() {
    are_content(&[TABLES, TABLES], |stage| stage.write(1, "DROP TABLE note"));
}

/// A member that says it has seen the same and holds something else, whatever it is sent.
struct Liar {
    line: Line,
    hello: Hello,
    heard: Option<DigestMessage>,
    served: usize,
}

impl Liar {
    fn new(stage: &mut Stage, member: usize) -> Self {
        let puppet = stage.puppet(peer(1));
        stage.connect(puppet, member);
        let mut line = stage.shake(puppet, member, &key(1));
        stage.run();
        let heard = line.hear(stage);
        let hello = heard.iter().find_map(|opened| match Message::decode(opened).unwrap() {
            Message::Hello(hello) => Some(hello),
            _ => None,
        });
        let mut liar = Self { line, hello: hello.unwrap(), heard: None, served: 0 };
        let state =
            State { boot: Boot(7), end: Seq(5), cursor: liar.cursor(), ..liar.hello.state.clone() };
        let (site, name) = (SiteId([0xEE; 16]), String::new());
        let features = features::DIGESTS;
        let hello = Hello { features, site, name, wants_schema: false, state };
        liar.line.say(stage, sealed::HELLO, &wire::encode(&hello).unwrap());
        liar
    }

    fn cursor(&self) -> Cursor {
        let state = &self.hello.state;
        Cursor { boot: state.boot, seq: state.end, high: state.end }
    }

    /// Answers what came, and says that its rows come to something else.
    fn lie(&mut self, stage: &mut Stage, lie: u8) {
        let opened: Vec<StreamId> = stage.seen(self.line.puppet).opened[self.served..].to_vec();
        self.served += opened.len();
        for end in opened {
            let first = stage.seen(self.line.puppet).received[&end][0].clone();
            let attach: Attach = wire::decode(&first[1..]).unwrap();
            let mut channel = self.line.session.channel(attach.stream);
            let chunk = Chunk {
                from: Seq(0),
                to: Seq(0),
                boot: Boot(7),
                high: Seq(5),
                rows: Batch::default().encode(),
                vector: None,
                last: true,
                closed: true,
                ordered: true,
                expected: 0,
                place: Vec::new(),
                collected: Vec::new(),
                floors: Vec::new(),
            };
            for bytes in channel.seal(sealed::CHUNK, &wire::encode(&chunk).unwrap()).unwrap() {
                stage.send(end, bytes);
            }
        }
        for opened in self.line.hear(stage) {
            if let Message::Digest(digest) = Message::decode(&opened).unwrap() {
                self.heard = Some(digest);
            }
        }
        let Some(heard) = self.heard.clone() else { return };
        let table = TableDigest {
            name: "note".into(),
            integer_key: true,
            key_columns: 1,
            types: Vec::new(),
            partial: false,
            parts: vec![lie; 8 * PARTS],
        };
        let digest = DigestMessage {
            boot: Boot(7),
            end: Seq(5),
            cursor: self.cursor(),
            total: [lie; 16],
            repaired: heard.total.to_vec(),
            detailed: true,
            tables: vec![table],
            renamed: Vec::new(),
            ..heard
        };
        self.line.say(stage, sealed::DIGEST, &wire::encode(&digest).unwrap());
    }
}

fn a_difference_that_stays_is_told_once_and_ends_in_peace() {
    let mut stage = Stage::new();
    let member = stage.member(peer(2), key(1), &format!("{TABLES}{ROWS}"), 1);
    stage.pass(500);
    let mut liar = Liar::new(&mut stage, member);
    for _ in 0..60 {
        stage.pass(1_000);
        liar.lie(&mut stage, 1);
    }
    let alarms = |stage: &Stage| stage.codes(member).iter().filter(|c| **c == "diverged").count();
    assert_eq!((alarms(&stage), liar.served), (1, 1), "{:?}", stage.codes(member));
    let peers = stage.at(member).machine.peers();
    assert!(peers.iter().any(|peer| peer.last_error.contains("also after both")), "{peers:?}");
    assert_eq!(stage.at(member).machine.progress().check.diverged, 1);
    // Something else each second is no reason to go on reading.
    for lie in 0..60 {
        stage.pass(1_000);
        liar.lie(&mut stage, lie);
    }
    assert_eq!((alarms(&stage), liar.served), (1, 1));
}

#[test]
fn p15_no_loop() {
    a_difference_that_stays_is_told_once_and_ends_in_peace();
}

#[cfg(feature = "mutants")]
#[test]
fn p15_reading_again_without_end_is_noticed() {
    use wavesync_core::mutants::{Mutant, set};
    set(Some(Mutant::EndlessRepair));
    let outcome = std::panic::catch_unwind(a_difference_that_stays_is_told_once_and_ends_in_peace);
    set(None);
    assert!(outcome.is_err());
}

/// Statements on keys of every class, as the numbers say.
fn statement(what: u8, key: u8, value: u8) -> String {
    let keys = [
        "1",
        "2",
        "1.0",
        "2.5",
        "-3",
        "-3.5",
        "9007199254740993",
        "1e300",
        "-1e300",
        "'a'",
        "'b'",
        "'ab'",
        "''",
        "x''",
        "x'00'",
        "x'61'",
        "0",
        "0.5",
        "17",
        "18",
        "19",
    ];
    let key = keys[usize::from(key) % keys.len()];
    match what % 4 {
        0 | 1 => format!("INSERT OR REPLACE INTO any_key VALUES({key}, {value}, 'v')"),
        2 => format!("UPDATE any_key SET a = {value} WHERE k = {key}"),
        _ => format!("DELETE FROM any_key WHERE k = {key}"),
    }
}

fn digests_that_are_kept_are_those_of_the_rows(script: Vec<Vec<(u8, u8, u8)>>) {
    let mut stage = Stage::new();
    let sql = "CREATE TABLE any_key(k PRIMARY KEY, a, b)";
    let member = stage.member(peer(1), key(1), sql, 1);
    let bounds = Bounds { digest_rows: 3, chunk_scan_entries: 4, ..Bounds::default() };
    stage.at_mut(member).store.set_bounds(bounds);
    let mut kept = Digests::default();
    for step in script {
        let sql: Vec<String> = step.iter().map(|(w, k, v)| statement(*w, *k, *v)).collect();
        stage.write(member, &sql.join(";"));
        stage.pass(50);
        let store = &mut stage.at_mut(member).store;
        let fresh = digest(store, &mut Digests::default());
        assert_eq!(digest(store, &mut kept), fresh);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn kept_digests_follow_the_log(
        script in prop::collection::vec(
            prop::collection::vec(any::<(u8, u8, u8)>(), 1..8), 1..12)
    ) {
        digests_that_are_kept_are_those_of_the_rows(script);
    }
}

#[cfg(feature = "mutants")]
#[test]
fn p15_digests_that_do_not_follow_the_log_are_noticed() {
    use wavesync_core::mutants::{Mutant, set};
    set(Some(Mutant::StaleDigest));
    let script = vec![vec![(0, 0, 1)], vec![(0, 0, 2)]];
    let outcome = std::panic::catch_unwind(|| digests_that_are_kept_are_those_of_the_rows(script));
    set(None);
    assert!(outcome.is_err());
}

#[test]
fn only_what_differs_is_named() {
    let (mut stage, one, two) = pair();
    damage(&stage, two, "UPDATE note SET a = 'damaged' WHERE id = 7");
    let [one, two] =
        [one, two].map(|at| digest(&mut stage.at_mut(at).store, &mut Digests::default()));
    let found = differences((&one.tables, &one.renamed), (&two.tables, &two.renamed));
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].name.as_str(), found[0].parts.count_ones()), ("note", 1));
    assert_eq!(differences((&one.tables, &one.renamed), (&one.tables, &one.renamed)), []);
}

/// A member that lacks what another one has, and cannot ask for it.
fn told_while_one_is_behind() -> Vec<&'static str> {
    let (mut stage, a, b) = pair();
    stage.tap = Some(Box::new(move |frame| {
        let asks = frame.from == b && frame.bytes[0] == sealed::REQUEST;
        if asks { Vec::new() } else { vec![frame.bytes.clone()] }
    }));
    // More than is pushed.
    stage.write(
        a,
        "WITH RECURSIVE n(i) AS (SELECT 1000 UNION ALL SELECT i + 1 FROM n WHERE i < 1400)
         INSERT INTO note(id) SELECT i FROM n",
    );
    stage.pass(60_000);
    [stage.codes(a), stage.codes(b)].concat()
}

#[test]
fn p15_who_is_behind_is_not_compared_with() {
    let told = told_while_one_is_behind();
    assert!(!told.contains(&"difference"), "{told:?}");
}

#[cfg(feature = "mutants")]
#[test]
fn p15_digests_of_different_states_that_are_compared_are_noticed() {
    use wavesync_core::mutants::{Mutant, set};
    set(Some(Mutant::DigestAcrossStates));
    let told = told_while_one_is_behind();
    set(None);
    assert!(told.contains(&"difference"), "{told:?}");
}

/// What reading for digests costs: `cargo test --profile simulator -p wavesync-core --features mutants
/// --test self_check -- --ignored --nocapture`.
#[test]
#[allow(clippy::disallowed_methods)]
#[ignore = "a measurement"]
fn what_reading_costs() {
    let mut stage = Stage::new();
    let rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200000)
                INSERT INTO txt SELECT 'key ' || i, 'some text of a row ' || i, i FROM n;";
    let member = stage.member(peer(1), key(1), &format!("{TABLES}{rows}"), 1);
    stage.pass(1_000);
    let store = &mut stage.at_mut(member).store;
    let mut digests = Digests::default();
    let (mut slices, mut most, mut all) = (0u32, 0.0f64, 0.0f64);
    loop {
        let start = std::time::Instant::now();
        let taken = store.folded(Millis(stage::START), |tx| tx.digest(&mut digests)).unwrap();
        let took = start.elapsed().as_secs_f64() * 1_000.0;
        (slices, most, all) = (slices + 1, most.max(took), all + took);
        if taken.is_some() {
            break;
        }
    }
    eprintln!("200,000 rows: {all:.0} ms in {slices} goes, the longest {most:.2} ms");
    stage.write(member, "UPDATE txt SET b = 0 WHERE k = 'key 77777'");
    stage.pass(50);
    let store = &mut stage.at_mut(member).store;
    let start = std::time::Instant::now();
    digest(store, &mut digests);
    eprintln!("after one write: {:.2} ms", start.elapsed().as_secs_f64() * 1_000.0);
}
