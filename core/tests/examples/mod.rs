//! One example of each message and of a row batch, as `docs/PROTOCOL.md` shows them: the bytes that
//! must not change by accident. The documents are compared with them, and they are seeds of the
//! inputs that are bent at random.
//!
//! Knows nothing of the documents.

use serde::Serialize;
use serde::de::DeserializeOwned;
use wavesync_core::auth::{Accepting, Greeting, GroupKey, Offering, Proof, Session};
use wavesync_core::ids::{Boot, Cursor, Dot, Seq, SiteId, Stamp};
use wavesync_core::store::adopt::TableSchema;
use wavesync_core::store::vector::Vector;
use wavesync_core::value::Value;
use wavesync_core::wire;
use wavesync_core::wire::message::{
    Answer, Attach, Chunk, Hello, PushMessage, Refusal, Request, SampleTable, State, Unrelated,
    VectorList, plain, sealed,
};
use wavesync_core::wire::rows::{Batch, Row, TableRows};

/// An example and its bytes.
pub struct Example {
    /// As the documents call it.
    pub name: &'static str,
    /// The kind of the message; none for what travels inside of messages.
    pub kind: Option<u8>,
    /// The body.
    pub bytes: Vec<u8>,
    /// Decodes such a body and encodes it again.
    pub again: fn(&[u8]) -> Vec<u8>,
}

/// All of them.
pub fn all() -> Vec<Example> {
    let mut all = handshake();
    all.extend(control());
    all.extend(pass());
    let bytes = batch().encode();
    let again = |bytes: &[u8]| Batch::decode(bytes).expect("it decodes").encode();
    all.push(Example { name: "batch", kind: None, bytes, again });
    all.push(frame());
    all
}

/// What the opener sends first on a catch-up stream after its ATTACH, with everything behind its
/// authentication code fixed: a CREDIT, because its body is empty.
fn frame() -> Example {
    let again = |bytes: &[u8]| {
        let (opener, acceptor) = sessions();
        let opened =
            acceptor.channel(1).open(bytes, 1).expect("its seal fits").expect("it is whole");
        opener.channel(1).seal(opened.kind, &opened.body).expect("it is short").concat()
    };
    let sealed = sessions().0.channel(1).seal(sealed::CREDIT, &[]).expect("it is short");
    Example { name: "sealed frame", kind: None, bytes: sealed.concat(), again }
}

fn sessions() -> (Session, Session) {
    let (opener, acceptor): (&[u8], &[u8]) = (&[1], &[2]);
    let key = GroupKey::from_secret([9; 32]);
    let (offering, greeting) = Offering::new([1; 32]);
    let (accepting, answer, proof) =
        Accepting::answer(&key, (acceptor, opener), [2; 32], &greeting).expect("a good greeting");
    let (session, proof) =
        offering.finish(&key, (opener, acceptor), &answer, &proof).expect("a good answer");
    (session, accepting.finish(&key, &proof).expect("a good proof"))
}

fn example<T: Serialize + DeserializeOwned>(name: &'static str, kind: u8, message: &T) -> Example {
    let again = |bytes: &[u8]| encode(&wire::decode::<T>(bytes).expect("it decodes"));
    Example { name, kind: Some(kind), bytes: encode(message), again }
}

fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    wire::encode(message).expect("it encodes")
}

fn handshake() -> Vec<Example> {
    let greeting = Greeting { version: 1, nonce: [0x22; 32] };
    let answer = Answer { greeting: greeting.clone(), proof: Proof([0x44; 32]) };
    vec![
        example("GREETING", plain::GREETING, &greeting),
        example("ANSWER", plain::ANSWER, &answer),
        example("PROOF", plain::PROOF, &Proof([0x44; 32])),
        example("REFUSAL", plain::REFUSAL, &Refusal { code: 1 }),
        example("ATTACH", plain::ATTACH, &Attach { session: [0x33; 8], stream: 1 }),
    ]
}

fn site() -> SiteId {
    SiteId(std::array::from_fn(|at| at as u8))
}

fn vector() -> VectorList {
    let mut vector = Vector::default();
    vector.0.insert(site(), (Stamp(65_536), Boot(7)));
    VectorList::from(&vector)
}

fn cursor() -> Cursor {
    Cursor { boot: Boot(9), seq: Seq(2), high: Seq(3) }
}

fn state() -> State {
    State {
        boot: Boot(7),
        end: Seq(5),
        vector: vector(),
        partial: false,
        applied: VectorList::default(),
        closed: true,
        cursor: cursor(),
        caps: Vec::new(),
    }
}

fn control() -> Vec<Example> {
    let lowered = Vector([(site(), (Stamp(65_535), Boot(7)))].into_iter().collect());
    let state_of_hello = State {
        applied: VectorList::from(&lowered),
        caps: vec![(SiteId([0x55; 16]), Stamp(131_072))],
        ..state()
    };
    let hello = Hello {
        features: 0,
        site: site(),
        name: "desk".into(),
        wants_schema: true,
        state: state_of_hello,
    };
    let schema = vec![TableSchema {
        name: "t".into(),
        table: "CREATE TABLE t(id INTEGER PRIMARY KEY, a)".into(),
        indexes: vec!["CREATE INDEX i ON t(a)".into()],
        former: vec!["s".into()],
        former_columns: vec![("a".into(), "b".into())],
    }];
    let push = PushMessage {
        site: site(),
        boot: Boot(7),
        prev: Stamp(65_536),
        upto: Stamp(65_537),
        sent_to: vec![1, 2, 3, 4],
        rows: vec![1, 0],
    };
    vec![
        example("HELLO", sealed::HELLO, &hello),
        example("STATE", sealed::STATE, &state()),
        example("SCHEMA", sealed::SCHEMA, &schema),
        example("PUSH", sealed::PUSH, &push),
    ]
}

fn pass() -> Vec<Example> {
    let sample = vec![SampleTable {
        name: "t".into(),
        columns: vec!["a".into(), "b".into()],
        rows: vec![(1, vec![Some(65_536), None])],
    }];
    let request = Request {
        vector: vector(),
        applied: VectorList::default(),
        cursor: cursor(),
        place: vec![1],
        sample,
        chunk_rows: 1_000,
        full: false,
    };
    let chunk = Chunk {
        from: Seq(2),
        to: Seq(5),
        boot: Boot(7),
        high: Seq(5),
        rows: vec![1, 0],
        vector: None,
        last: false,
        closed: true,
        ordered: true,
        expected: 9,
        place: vec![1],
    };
    let last = Chunk {
        vector: Some(vector()),
        last: true,
        ordered: false,
        expected: 0,
        place: Vec::new(),
        ..chunk.clone()
    };
    let empty = |bytes: &[u8]| bytes.to_vec();
    vec![
        example("REQUEST", sealed::REQUEST, &request),
        example("CHUNK", sealed::CHUNK, &chunk),
        example("CHUNK, last", sealed::CHUNK, &last),
        Example { name: "CREDIT", kind: Some(sealed::CREDIT), bytes: Vec::new(), again: empty },
        example("ABORT", sealed::ABORT, &Refusal { code: 0 }),
        example("UNRELATED", sealed::UNRELATED, &Unrelated { tables: vec!["t".into()] }),
    ]
}

fn batch() -> Batch {
    let site = site();
    let birth = Dot { stamp: Stamp(65_536), site };
    let edit = Dot { stamp: Stamp(65_540), site };
    let row = |key: i64, whole: bool, cells| Row {
        key: vec![Value::Integer(key)],
        length: 1,
        birth,
        whole,
        cells,
        ended: Default::default(),
    };
    let rows = vec![
        row(2, true, vec![(0, birth, Value::text("two")), (1, birth, Value::Null)]),
        row(1, false, vec![(1, edit, Value::Integer(-1))]),
    ];
    let columns = vec!["a".to_string(), "b".into()];
    let table = TableRows { name: "t".into(), integer_key: true, key_columns: 1, columns, rows };
    Batch { tables: vec![table] }
}
