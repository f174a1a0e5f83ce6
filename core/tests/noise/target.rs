//! What reads bytes of a peer, one function each: whether it accepts the input. Anything that must
//! never be is an assert. The fuzzer and the test of random bytes call the same functions.

#[path = "../examples/mod.rs"]
#[allow(dead_code)]
mod examples;

use std::cell::RefCell;

use rusqlite::Connection;
use wavesync_core::auth::{Accepting, Channel, GroupKey, Offering, Session};
use wavesync_core::ids::{Dot, Millis, SiteId, Stamp};
use wavesync_core::machine::{Config, Input, Machine, Output, PeerId, StreamId};
use wavesync_core::merge::Ended;
use wavesync_core::store::Store;
use wavesync_core::store::adopt::TableSchema;
use wavesync_core::store::group::Join;
use wavesync_core::store::identity::FileIdentity;
use wavesync_core::store::sql::ident;
use wavesync_core::value::Value;
use wavesync_core::wire;
use wavesync_core::wire::message::{Attach, Message, Refusal, plain, sealed};
use wavesync_core::wire::rows::{Batch, Row, TableRows};

/// A target: its name, what it does, and examples that it accepts.
pub type Target = (&'static str, fn(&[u8]) -> bool, fn() -> Vec<Vec<u8>>);

pub const TARGETS: &[Target] = &[
    ("frame", frame, frames),
    ("message", message, messages),
    ("batch", batch, batches),
    ("apply", apply, batches),
    ("handshake", handshake, handshakes),
    ("names", names, texts),
];

const NOW: Millis = Millis(1_700_000_000_000);
const TABLES: &str = "
    CREATE TABLE note(id INTEGER PRIMARY KEY, text);
    CREATE TABLE item(k TEXT PRIMARY KEY NOT NULL, n INTEGER NOT NULL CHECK(n < 100), u UNIQUE);
    INSERT INTO note VALUES(7, 'seven');";

fn key() -> GroupKey {
    GroupKey::from_secret([9; 32])
}

/// Both sides of a proven session.
fn sessions() -> (Session, Session) {
    let (opener, acceptor): (&[u8], &[u8]) = (&[1], &[2]);
    let (offering, greeting) = Offering::new([1; 32]);
    let (accepting, answer, proof) =
        Accepting::answer(&key(), (acceptor, opener), [2; 32], &greeting).expect("a good greeting");
    let (session, proof) =
        offering.finish(&key(), (opener, acceptor), &answer, &proof).expect("a good answer");
    (session, accepting.finish(&key(), &proof).expect("a good proof"))
}

fn channels() -> (Channel, Channel) {
    thread_local!(static BOTH: (Session, Session) = sessions());
    BOTH.with(|(one, two)| (one.channel(0), two.channel(0)))
}

/// A sealed frame as it arrives.
pub fn frame(bytes: &[u8]) -> bool {
    channels().1.open(bytes, 1 << 20).is_ok()
}

fn frames() -> Vec<Vec<u8>> {
    let seal = |body: &[u8]| channels().0.seal(sealed::STATE, body).expect("it is short");
    [&b""[..], b"x", &[0; 300]].into_iter().flat_map(seal).collect()
}

/// The first byte is the kind of a message with a good seal, the rest its body.
pub fn message(bytes: &[u8]) -> bool {
    let Some((kind, body)) = bytes.split_first() else { return false };
    let (mut one, mut two) = channels();
    let mut opened = None;
    for bytes in one.seal(*kind, body).expect("it is short") {
        opened = two.open(&bytes, 1 << 24).expect("the seal is good");
    }
    Message::decode(&opened.expect("the last frame completes it")).is_ok()
}

fn messages() -> Vec<Vec<u8>> {
    let first_sealed = sealed::HELLO;
    let sealed = examples::all().into_iter().filter_map(|example| {
        let kind = example.kind.filter(|kind| *kind >= first_sealed)?;
        Some([&[kind][..], &example.bytes].concat())
    });
    sealed.collect()
}

/// Rows as they travel: what is accepted reads back the same.
pub fn batch(bytes: &[u8]) -> bool {
    let Ok(batch) = Batch::decode(bytes) else { return false };
    let again = Batch::decode(&batch.encode()).expect("what was decoded encodes");
    assert_eq!(again.encode(), batch.encode(), "a batch that reads back otherwise");
    true
}

fn batches() -> Vec<Vec<u8>> {
    let birth = |at: i64| Dot { stamp: Stamp((at << 16) + 1), site: SiteId([at as u8; 16]) };
    let row = |key: Value, at, values: Vec<Value>| Row {
        key: vec![key],
        length: 1,
        birth: birth(at),
        whole: true,
        cells: values.into_iter().enumerate().map(|(n, value)| (n, birth(at), value)).collect(),
        ended: Ended::new(),
    };
    let table = |name: &str, integer_key, columns: &[&str], rows| TableRows {
        name: name.into(),
        integer_key,
        key_columns: 1,
        columns: columns.iter().map(|name| (*name).to_string()).collect(),
        rows,
    };
    let notes = (0..5).map(|at| row(Value::Integer(at), 3 + at % 2, vec![Value::text("x")]));
    let mut dead = row(Value::Integer(9), 5, Vec::new());
    dead.length = 2;
    let items =
        ["a", "b"].map(|key| row(Value::text(key), 4, vec![Value::Integer(1), Value::Real(1.25)]));
    let notes = table("note", true, &["text"], notes.chain([dead]).collect());
    let items = table("item", false, &["n", "u"], items.into());
    let other = table("other", true, &["z"], vec![row(Value::Integer(1), 6, vec![Value::Null])]);
    vec![
        Batch::default().encode(),
        Batch { tables: vec![notes.clone()] }.encode(),
        Batch { tables: vec![notes, items, other] }.encode(),
    ]
}

/// A replica in memory.
fn replica() -> Store {
    let conn = Connection::open_in_memory().expect("memory");
    conn.execute_batch(TABLES).expect("the tables are good");
    let mut store = Store::open(conn).expect("an empty database");
    let join = Join { topic: "noise".into(), ..Join::default() };
    store.join(NOW, &join, &FileIdentity("noise".into()), &[5; 64]).expect("it joins");
    while store.backfill_block(NOW).expect("rows are taken in") {}
    store
}

/// Rows are merged, and the file is whole afterwards, whatever they were.
pub fn apply(bytes: &[u8]) -> bool {
    thread_local!(static STORE: RefCell<(Store, u64)> = RefCell::new((replica(), 0)));
    let Ok(batch) = Batch::decode(bytes) else { return false };
    STORE.with_borrow_mut(|(store, count)| {
        *count += 1;
        if count.is_multiple_of(200) {
            *store = replica();
        }
        let done = store.write(NOW, |tx| tx.apply(&batch));
        if let Err(error) = &done {
            let theirs = matches!(error, wavesync_core::Error::Protocol(_));
            assert!(theirs, "bytes of a peer are not an error of ours: {error}");
        }
        let check = "PRAGMA integrity_check";
        let whole: String =
            store.connection().query_row(check, [], |row| row.get(0)).expect("it is read");
        assert_eq!(whole, "ok");
        done.is_ok()
    })
}

/// What a stranger says on fresh streams: the first byte is the length of the first frame, and so
/// on. Nothing but handshake messages may come back.
pub fn handshake(bytes: &[u8]) -> bool {
    thread_local!(static STORE: RefCell<Store> = RefCell::new(replica()));
    STORE.with_borrow_mut(|store| {
        let identity =
            store.start(NOW, &FileIdentity("noise".into()), &[6; 64]).expect("it starts");
        let config = Config { key: key(), own_peer: PeerId(vec![2]), name: "noise".into() };
        let mut machine = Machine::new(config, identity, Box::new(|bytes| bytes.fill(4)));
        let (peer, address) = (PeerId(vec![1]), String::new());
        let came = Input::Connected { peer: peer.clone(), address, relayed: false };
        machine.handle(NOW, came, store);
        let mut rest = bytes;
        let mut stream = StreamId(1);
        let open = |stream| Input::Opened { peer: peer.clone(), stream, token: None };
        machine.handle(NOW, open(stream), store);
        let mut answered = false;
        while let Some((length, more)) = rest.split_first() {
            let (bytes, after) = more.split_at((*length as usize).min(more.len()));
            rest = after;
            machine.handle(NOW, Input::Frame { stream, bytes: bytes.to_vec() }, store);
            for output in machine.take_outputs() {
                match output {
                    Output::Send { frame, .. } => {
                        let kind = frame[0];
                        assert!(kind == plain::ANSWER || kind == plain::REFUSAL, "{frame:?}");
                        answered |= kind == plain::ANSWER;
                    }
                    Output::Close { .. } | Output::Abandon { .. } => {
                        stream = StreamId(stream.0 + 1);
                        machine.handle(NOW, open(stream), store);
                    }
                    _ => {}
                }
            }
            assert!(
                machine.peers().iter().all(|peer| peer.site.is_none()),
                "no member without proof"
            );
        }
        answered
    })
}

fn handshakes() -> Vec<Vec<u8>> {
    let piece = |kind: u8, body: Vec<u8>| {
        let frame = [&[kind][..], &body].concat();
        [&[frame.len() as u8][..], &frame].concat()
    };
    let encode = |greeting: &wavesync_core::auth::Greeting| wire::encode(greeting).expect("short");
    let (_, greeting) = Offering::new([3; 32]);
    let attach = wire::encode(&Attach { session: [3; 8], stream: 1 }).expect("short");
    let refusal = wire::encode(&Refusal { code: 1 }).expect("short");
    let greeting = piece(plain::GREETING, encode(&greeting));
    let others = [piece(plain::ATTACH, attach), piece(plain::REFUSAL, refusal)].concat();
    let sealed = piece(sealed::HELLO, vec![0; 40]);
    vec![
        greeting.clone(),
        [&greeting[..], &piece(plain::PROOF, vec![7; 34])].concat(),
        [&others[..], &sealed, &greeting].concat(),
    ]
}

fn schema(name: &str, table: &str) -> TableSchema {
    TableSchema {
        name: name.into(),
        table: table.into(),
        indexes: Vec::new(),
        former: Vec::new(),
        former_columns: Vec::new(),
    }
}

/// A name in a statement is that name and nothing else; a text of a table makes that table or none.
/// The input is a name, a line break, and the text.
pub fn names(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let (name, declared) = text.split_once('\n').unwrap_or((&text, ""));
    let conn = Connection::open_in_memory().expect("memory");
    if let Ok(quoted) = ident(name) {
        let sql = format!("SELECT 1 AS {quoted}");
        let statement = conn.prepare(&sql).expect("a quoted name is a name");
        assert_eq!(statement.column_name(0).expect("one column"), name);
    }
    let mut store = Store::open(conn).expect("an empty database");
    let join = Join { topic: "noise".into(), ..Join::default() };
    store.join(NOW, &join, &FileIdentity("noise".into()), &[5; 64]).expect("it joins");
    let done = store.adopt(NOW, &[schema(name, declared)]);
    let created = done.as_ref().is_ok_and(|created| !created.0.is_empty());
    let own = "SELECT count(*) FROM sqlite_schema
         WHERE name NOT LIKE '\\_\\_wavesync\\_%' ESCAPE '\\' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'";
    let made: i64 = store.connection().query_row(own, [], |row| row.get(0)).expect("it is read");
    assert_eq!(made, i64::from(created), "only the table that was asked for: {text}");
    created
}

fn texts() -> Vec<Vec<u8>> {
    [
        "t\nCREATE TABLE t(id INTEGER PRIMARY KEY, v DEFAULT (lower('X')) CHECK(length(v) > 0))",
        "my table\nCREATE TABLE \"my table\"(k TEXT PRIMARY KEY NOT NULL, [odd name] REAL) STRICT",
        "t\nCREATE TABLE t(a, b, c AS (a + b), PRIMARY KEY(a, b)) WITHOUT ROWID",
    ]
    .map(|text| text.as_bytes().to_vec())
    .into()
}
