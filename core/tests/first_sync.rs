//! What a newcomer asks for, and how it is answered: everything, from the beginning, in the order
//! of the keys (rule K1).
#![allow(clippy::unwrap_used)]

mod stage;

use stage::{Line, Stage, key, peer};
use wavesync_core::ids::{Boot, Seq, SiteId, Stamp};
use wavesync_core::machine::StreamId;
use wavesync_core::store::vector::Vector;
use wavesync_core::value::Value;
use wavesync_core::wire;
use wavesync_core::wire::message::{
    Attach, Chunk, Hello, Message, Request, State, VectorList, sealed,
};
use wavesync_core::wire::rows::Batch;

const TABLES: &str = "
    CREATE TABLE note(id INTEGER PRIMARY KEY, body);
    CREATE TABLE item(k TEXT PRIMARY KEY NOT NULL, body);";
const ROWS: i64 = 3_000;

/// Rows of 1 KiB, so that they take many chunks, written against the order of their keys.
fn fill() -> String {
    format!(
        "WITH RECURSIVE n(i) AS (SELECT {ROWS} UNION ALL SELECT i - 1 FROM n WHERE i > 1)
         INSERT INTO note SELECT i * 7 % 3001, hex(randomblob(512)) FROM n;
         INSERT INTO item SELECT printf('%05d', id), body FROM note ORDER BY id % 10, id DESC;"
    )
}

#[test]
fn a_newcomer_is_answered_in_the_order_of_the_keys() {
    let mut stage = Stage::new();
    let member = stage.member(peer(2), key(7), TABLES, 1);
    stage.write(member, &fill());
    let newcomer = stage.puppet(peer(1));
    stage.connect(newcomer, member);
    let mut line = stage.shake(newcomer, member, &key(7));
    let (end, mut channel) = line.ask(&mut stage);
    let (mut read, mut chunks) = (0, Vec::new());
    while chunks.last().is_none_or(|chunk: &Chunk| !chunk.last) {
        let frame = stage.seen(newcomer).received[&end][read].clone();
        read += 1;
        let Some(opened) = channel.open(&frame, 1 << 24).unwrap() else { continue };
        let Message::Chunk(chunk) = Message::decode(&opened).unwrap() else { panic!("a chunk") };
        chunks.push(chunk);
        for bytes in channel.seal(sealed::CREDIT, &[]).unwrap() {
            stage.send(end, bytes);
        }
    }
    // All of them in key order, but the last, which is the log since it began.
    let ordered = chunks.iter().take_while(|chunk| chunk.ordered).count();
    assert!(ordered >= 5 && ordered + 1 >= chunks.len(), "{ordered} of {} chunks", chunks.len());
    let mut came: Vec<(String, Value)> = Vec::new();
    for chunk in &chunks[..ordered] {
        for table in Batch::decode(&chunk.rows).unwrap().tables {
            came.extend(table.rows.into_iter().map(|row| (table.name.clone(), row.key[0].clone())));
        }
    }
    let keys = |name: &str| -> Vec<Value> {
        came.iter().filter(|(table, _)| table == name).map(|(_, key)| key.clone()).collect()
    };
    assert_eq!(keys("note"), (1..=ROWS).map(Value::Integer).collect::<Vec<_>>());
    let texts: Vec<Value> = (1..=ROWS).map(|id| Value::text(&format!("{id:05}"))).collect();
    assert_eq!(keys("item"), texts);
    let changes = came.windows(2).filter(|pair| pair[0].0 != pair[1].0).count();
    assert_eq!(changes, 1, "one table after the other");
}

#[test]
fn a_newcomer_asks_from_the_beginning() {
    let mut stage = Stage::new();
    let newcomer = stage.member(peer(2), key(7), TABLES, 1);
    let other = stage.puppet(peer(1));
    stage.connect(other, newcomer);
    let mut line = stage.shake(other, newcomer, &key(7));
    stage.run();
    let requests = |stage: &Stage, line: &Line| -> Vec<Request> {
        let ends: Vec<StreamId> = stage.seen(line.puppet).opened.clone();
        let read = |end: &StreamId| {
            let frames = &stage.seen(line.puppet).received[end];
            let attach: Attach = wire::decode(&frames[0][1..]).unwrap();
            let mut channel = line.session.channel(attach.stream);
            let opened = channel.open(&frames[1], 1 << 24).unwrap().unwrap();
            match Message::decode(&opened).unwrap() {
                Message::Request(request) => request,
                other => panic!("{other:?} is no request"),
            }
        };
        ends.iter().map(read).collect()
    };
    assert!(requests(&stage, &line).is_empty(), "nobody has said that there is anything");
    let heard = line.hear(&stage);
    let hello = heard.iter().find_map(|opened| match Message::decode(opened).unwrap() {
        Message::Hello(hello) => Some(hello),
        _ => None,
    });
    let (site, name) = (SiteId([0xEE; 16]), String::new());
    let wrote = Stamp(i64::try_from(stage.now).unwrap() << 16);
    let vector = Vector([(site, (wrote, Boot(7)))].into_iter().collect());
    let vector = VectorList::from(&vector);
    let state = State { boot: Boot(7), end: Seq(50_000), vector, ..hello.unwrap().state };
    let hello = Hello { features: 0, site, name, wants_schema: false, state };
    line.say(&mut stage, sealed::HELLO, &wire::encode(&hello).unwrap());
    let requests = requests(&stage, &line);
    assert_eq!(requests.len(), 1);
    assert_eq!((requests[0].cursor.seq, requests[0].full), (Seq(0), false));
    assert!(requests[0].place.is_empty(), "no place to go on at");
}
