//! The attacks, one line each in the table and one function each below it.

use wavesync_core::auth::Offering;
use wavesync_core::ids::{Boot, Cursor, Seq, SiteId, Stamp};
use wavesync_core::limits;
use wavesync_core::store::vector::Vector;
use wavesync_core::value::Value;
use wavesync_core::wire;
use wavesync_core::wire::message::{
    Attach, Floor, PushMessage, Refusal, VectorList, plain, sealed,
};
use wavesync_core::wire::rows::Batch;

use crate::batches::{Uneven, dead, notes, nulls, packed, row, table, uneven};
use crate::digests::{lies, repairs};
use crate::stage::{frame, peer};
use crate::stored::{
    broken_constraints, claims_and_endings, deletes, doubles, many_adopted, odd_names, odd_values,
    other_keys, schema_texts, stolen_names, unknown_columns, unknown_rows, unknown_tables,
    unknown_values,
};
use crate::streams::{
    another_hello, chunks_out_of_order, empty_chunks, frames_after_the_end, wrong_streams,
};
use crate::{Attack, Scene, greeting};

type Entry = (&'static str, bool, Attack);

/// Name, whether the victim adopts the group's tables, and what is done.
pub fn all() -> Vec<Entry> {
    use Attack::{Member, Stranger};
    vec![
        ("a long first frame", false, Stranger(long_first_frame)),
        ("nested CBOR as a greeting", false, Stranger(nested_greeting)),
        ("unknown plain kinds", false, Stranger(unknown_plain_kinds)),
        ("sealed kinds without a key", false, Stranger(sealed_without_key)),
        ("500 streams, each with a greeting and no proof", false, Stranger(greetings_only)),
        ("500 streams that say nothing", false, Stranger(silent_streams)),
        ("a handshake byte by byte", false, Stranger(handshake_in_pieces)),
        ("1,000 refusals", false, Stranger(refusals)),
        ("500 streams to sessions that are guessed", false, Stranger(guessed_sessions)),
        ("1,000 peers that prove nothing", false, Stranger(a_thousand_strangers)),
        ("unknown sealed kinds", false, Member(unknown_sealed_kinds)),
        ("nested CBOR in every kind", false, Member(nested_cbor)),
        ("cut CBOR in every kind", false, Member(cut_cbor)),
        ("CBOR that claims long lists and texts", false, Member(claimed_lengths)),
        ("a message without an end", false, Member(endless_message)),
        ("a list of 10^6 small things", false, Member(a_million_things)),
        ("a batch of zeros that unpacks to 66 MiB", false, Member(zeros)),
        ("a batch that claims to unpack to more", false, Member(claimed_bomb)),
        ("60,000,000 NULLs in 280 KiB", false, Member(many_nulls)),
        ("a batch of 10^6 rows", false, Member(a_million_rows)),
        ("a batch of 50,000 tables", false, Member(many_tables_in_a_batch)),
        ("a table of 40,000 columns", false, Member(many_columns_in_a_batch)),
        ("a dictionary of 100,000 sites", false, Member(many_sites_in_a_batch)),
        ("damaged batches", false, Member(damaged_batches)),
        ("rows of another arity than they say", false, Member(other_arity)),
        ("counters beyond their range", false, Member(counters_beyond)),
        ("the highest causal length", false, Member(highest_causal_length)),
        ("the highest stamps", false, Member(highest_stamps)),
        ("stamps an hour ahead", false, Member(stamps_ahead)),
        ("pushes over impossible ranges", false, Member(impossible_pushes)),
        ("pushes in the victim's name", false, Member(pushes_in_the_victims_name)),
        ("1,000 pushes with gaps", false, Member(pushes_with_gaps)),
        ("absurd ends and cursors", false, Member(absurd_states)),
        ("a log that is claimed and never served", false, Member(claimed_log)),
        ("a vector of too many sites", false, Member(long_vector)),
        ("more and more sites", false, Member(more_and_more_sites)),
        ("absurd floors", false, Member(absurd_floors)),
        ("forgotten deletes that differ each time", false, Member(forgotten_otherwise)),
        ("a vector that names a site twice", false, Member(twice_in_a_vector)),
        ("too many caps", false, Member(many_caps)),
        ("the victim's own site id", false, Member(own_site)),
        ("caps on the victim", false, Member(caps_on_the_victim)),
        ("a cursor that nobody gave", false, Member(unknown_cursor)),
        ("100 catch-ups at once", false, Member(many_catch_ups)),
        ("catch-ups without end", false, Member(endless_catch_ups)),
        ("two requests and credits for no pass", false, Member(credits_for_nothing)),
        ("messages on the wrong stream", false, Member(wrong_streams)),
        ("a second hello", false, Member(another_hello)),
        ("chunks out of order", false, Member(chunks_out_of_order)),
        ("a pass of 2,000 empty chunks", false, Member(empty_chunks)),
        ("frames after the end", false, Member(frames_after_the_end)),
        ("5,000 unknown tables", false, Member(unknown_tables)),
        ("5,000 unknown columns", false, Member(unknown_columns)),
        ("more rows of unknown tables than are kept", false, Member(unknown_rows)),
        ("more values of unknown columns than are kept", false, Member(unknown_values)),
        ("odd names", false, Member(odd_names)),
        ("tables, columns and rows twice", false, Member(doubles)),
        ("keys of another kind", false, Member(other_keys)),
        ("claims and endings that are none", false, Member(claims_and_endings)),
        ("odd values", false, Member(odd_values)),
        ("rows that break every constraint", false, Member(broken_constraints)),
        ("everything deleted", false, Member(deletes)),
        ("schema texts that do something else", true, Member(schema_texts)),
        ("100 tables to adopt", true, Member(many_adopted)),
        ("a table that was the user's", true, Member(stolen_names)),
        ("hello again and again", false, Member(hellos)),
        ("2,000 states", false, Member(states)),
        ("digests that are lies", false, Member(lies)),
        ("rows that are wanted again and again", false, Member(repairs)),
        ("names of replicas", false, Member(replica_names)),
    ]
}

fn long_first_frame(scene: &mut Scene) {
    for kind in [plain::GREETING, plain::ATTACH, 16, 0] {
        scene.knock(vec![kind; 256 * 1024]);
    }
}

fn nested_greeting(scene: &mut Scene) {
    for nest in [0x81u8, 0xA1, 0xC1, 0x9F, 0xBF] {
        scene.knock([&[plain::GREETING][..], &vec![nest; 1_000]].concat());
    }
}

fn unknown_plain_kinds(scene: &mut Scene) {
    (0..=255u8).filter(|kind| *kind != plain::REFUSAL).for_each(|kind| {
        scene.knock(vec![kind, 0xA0]);
        scene.knock(vec![kind]);
    });
    scene.knock(Vec::new());
}

fn sealed_without_key(scene: &mut Scene) {
    for kind in [16, 17, 18, 19, 32, 33, 34, 35] {
        let end = scene.knock(greeting());
        scene.stage.send(end, [&[kind, 0][..], &[0; 40]].concat());
        scene.knock([&[kind, 0][..], &[0; 40]].concat());
    }
}

fn greetings_only(scene: &mut Scene) {
    (0..500).for_each(|_| {
        scene.knock(greeting());
    });
}

fn silent_streams(scene: &mut Scene) {
    for _ in 0..500 {
        scene.stage.open(scene.puppet, scene.target);
    }
    assert!(scene.stage.seen(scene.puppet).closed.is_empty());
    scene.stage.pass(limits::HANDSHAKE_MAX_MS + 1_000);
    assert_eq!(scene.stage.seen(scene.puppet).closed.len(), 500, "silent streams are ended");
}

/// A frame is a whole message before the handshake: its parts are none.
fn handshake_in_pieces(scene: &mut Scene) {
    let end = scene.stage.open(scene.puppet, scene.target);
    for byte in greeting() {
        scene.stage.send(end, vec![byte]);
        scene.stage.pass(500);
    }
    assert!(scene.stage.seen(scene.puppet).closed.contains(&end));
}

fn refusals(scene: &mut Scene) {
    for round in 0..1_000 {
        scene.knock(frame(plain::REFUSAL, &Refusal { code: (round % 3) as u8 }));
    }
    scene.stage.pass(limits::HANDSHAKE_MAX_MS + 1_000);
}

fn guessed_sessions(scene: &mut Scene) {
    for round in 0..500u64 {
        let session = round.to_be_bytes();
        let end = scene.knock(frame(plain::ATTACH, &Attach { session, stream: round + 1 }));
        scene.stage.send(end, vec![sealed::REQUEST; 60]);
    }
}

fn a_thousand_strangers(scene: &mut Scene) {
    for number in 0..1_000u32 {
        let mut id = peer(1);
        id.0.extend_from_slice(&number.to_be_bytes());
        let stranger = scene.stage.puppet(id);
        scene.stage.connect(stranger, scene.target);
        let end = scene.stage.open(stranger, scene.target);
        scene.stage.send(end, greeting());
    }
    let peers = scene.stage.at(scene.target).machine.peers().len();
    assert!(peers <= limits::UNPROVEN_PEERS_MAX + 3, "{peers} peers are kept");
    let left = scene.stage.puppets().len() - 1;
    assert_eq!(left, 1_000);
}

fn unknown_sealed_kinds(scene: &mut Scene) {
    for kind in (0..=255u8).filter(|kind| !KINDS.contains(kind)) {
        scene.say(kind, &[kind; 100]);
    }
}

const KINDS: [u8; 11] = [16, 17, 18, 19, 20, 32, 33, 34, 35, 36, 37];

fn nested_cbor(scene: &mut Scene) {
    for kind in KINDS {
        for nest in [&[0x81u8][..], &[0xA1, 0x00], &[0xC1], &[0x9F], &[0xBF, 0x00]] {
            scene.say(kind, &nest.repeat(100_000));
        }
    }
}

fn cut_cbor(scene: &mut Scene) {
    let state = wire::encode(&scene.state()).unwrap();
    for kind in KINDS {
        for length in [0, 1, 2, state.len() / 2, state.len() - 1] {
            scene.say(kind, &state[..length]);
        }
        scene.say(kind, &[&state[..], &[0]].concat());
    }
}

fn claimed_lengths(scene: &mut Scene) {
    for kind in KINDS {
        for major in [0x5Bu8, 0x7B, 0x9B, 0xBB] {
            for length in [u64::MAX, 1 << 40, 1 << 31] {
                scene.say(kind, &[&[major][..], &length.to_be_bytes(), &[0; 20]].concat());
            }
        }
    }
}

fn endless_message(scene: &mut Scene) {
    for kind in [17, 19, 200] {
        scene.say(kind, &vec![0; limits::CONTROL_MESSAGE_MAX_BYTES + 1]);
    }
    // Only beginnings, never an end.
    let mut stream = scene.attach();
    for _ in 0..40 {
        let first = stream.1.seal(33, &vec![0; limits::FRAME_BODY_MAX_BYTES + 1]).unwrap();
        scene.stage.send(stream.0, first[0].clone());
    }
}

fn a_million_things(scene: &mut Scene) {
    for kind in [16, 17, 18] {
        let mut body = vec![0x9A];
        body.extend_from_slice(&1_000_000u32.to_be_bytes());
        body.extend(std::iter::repeat_n(0x80, 1_000_000));
        scene.say(kind, &body);
        // As the caps of a state.
        let mut state = wire::encode(&scene.state()).unwrap();
        state.pop();
        state.extend_from_slice(&body);
        scene.say(kind, &state);
    }
}

fn zeros(scene: &mut Scene) {
    let size = limits::PASS_MESSAGE_MAX_BYTES;
    let block = lz4_flex::block::compress(&vec![0; size]);
    scene.push_raw(packed(size as u64, &block));
    let mut stream = scene.asked();
    let chunk = scene.chunk(0, 1, packed(size as u64, &block));
    scene.serve(&mut stream, &chunk);
}

fn claimed_bomb(scene: &mut Scene) {
    let block = lz4_flex::block::compress(&[0; 1_000]);
    for size in [u64::MAX, 1 << 40, 1 << 28, 70_000_000, 100_000, 999, 0] {
        scene.push_raw(packed(size, &block));
    }
}

fn many_nulls(scene: &mut Scene) {
    scene.push_raw(nulls(30_000, 2_000));
}

fn a_million_rows(scene: &mut Scene) {
    let mut body = nulls(0, 1_000_000);
    scene.push_raw(std::mem::take(&mut body));
}

fn many_tables_in_a_batch(scene: &mut Scene) {
    let tables = (0..50_000).map(|at| table(&format!("t{at}"), &[], Vec::new())).collect();
    scene.push_new(Batch { tables });
}

fn many_columns_in_a_batch(scene: &mut Scene) {
    scene.push_raw(nulls(40_000, 1));
    scene.push_raw(nulls(32_000, 1));
}

fn many_sites_in_a_batch(scene: &mut Scene) {
    let stamp = scene.last;
    let rows = (0..100_000u32).map(|at| {
        let mut row = dead(Value::Integer(i64::from(at)), stamp, 2);
        row.birth.site.0[..4].copy_from_slice(&at.to_be_bytes());
        row
    });
    let batch = notes(rows.collect());
    scene.push_raw(batch.encode());
}

fn damaged_batches(scene: &mut Scene) {
    let stamp = scene.last;
    let whole =
        notes((0..20).map(|at| row(Value::Integer(at), stamp, vec![Value::text("x")])).collect());
    let bytes = whole.encode();
    for at in 0..bytes.len().min(200) {
        let mut bent = bytes.clone();
        bent[at] ^= 0x55;
        scene.push_raw(bent);
        scene.push_raw(bytes[..at].to_vec());
    }
}

/// More or fewer columns, keys and rows than a batch says, in a table that is known and in another.
fn other_arity(scene: &mut Scene) {
    for table in ["note", "w"] {
        let even = Uneven::even(table, 2, 5);
        scene.push_raw(uneven(&even));
        let mut bent = Vec::new();
        for other in [0, 3, 40] {
            bent.push(Uneven { names: other, ..even.clone() });
            bent.push(Uneven { columns: other, ..even.clone() });
            bent.push(Uneven { rows: other, ..even.clone() });
            bent.push(Uneven { key_columns: other, ..even.clone() });
            for at in 0..4 {
                let mut runs = even.runs;
                runs[at] = other;
                bent.push(Uneven { runs, ..even.clone() });
            }
        }
        for claims in &bent {
            scene.push_raw(uneven(claims));
        }
        // Some of them in passes, which end with it.
        for claims in bent.iter().step_by(9) {
            let mut stream = scene.asked();
            let chunk = scene.chunk(0, 5, uneven(claims));
            scene.serve(&mut stream, &chunk);
        }
    }
}

fn counters_beyond(scene: &mut Scene) {
    for length in [0, -1, i64::MAX, i64::MIN, limits::CAUSAL_LENGTH_MAX + 1] {
        let stamp = scene.last;
        scene.push_new(notes(vec![dead(Value::Integer(7), stamp, length)]));
    }
    for stamp in [i64::MAX, i64::MIN, limits::STAMP_MAX + 1] {
        scene.push_new(notes(vec![row(Value::Integer(7), Stamp(stamp), vec![Value::Null])]));
    }
}

/// A member can use up a key; then the row stays where it is written, and nothing else suffers.
fn highest_causal_length(scene: &mut Scene) {
    let stamp = scene.last;
    for length in [limits::CAUSAL_LENGTH_MAX - 1, limits::CAUSAL_LENGTH_MAX] {
        let mut used = dead(Value::Integer(7), stamp, length);
        if length % 2 == 1 {
            used = row(Value::Integer(7), stamp, vec![Value::text("x")]);
            used.length = length;
        }
        scene.push_new(notes(vec![used]));
        scene.stage.pass(1_000);
    }
    scene.local_only = true;
}

fn highest_stamps(scene: &mut Scene) {
    for stamp in [limits::STAMP_MAX, limits::STAMP_MAX - 1] {
        scene.last = Stamp(stamp);
        let stamp = scene.last;
        scene.push_new(notes(vec![row(Value::Integer(7), stamp, vec![Value::text("x")])]));
    }
}

fn stamps_ahead(scene: &mut Scene) {
    scene.last = Stamp::at(scene.stage.now as i64 + 3_600_000);
    for key in 0..50 {
        let stamp = scene.last;
        scene.push_new(notes(vec![row(Value::Integer(key), stamp, vec![Value::text("x")])]));
    }
}

fn impossible_pushes(scene: &mut Scene) {
    let site = scene.site;
    for (prev, upto) in [
        (5, 5),
        (6, 5),
        (i64::MIN, i64::MAX),
        (0, limits::STAMP_MAX + 1),
        (i64::MIN, i64::MIN + 1),
        (-5, -1),
        (0, limits::STAMP_MAX),
    ] {
        let (prev, upto) = (Stamp(prev), Stamp(upto));
        let rows = Batch::default().encode();
        scene.tell(
            sealed::PUSH,
            &PushMessage { site, boot: Boot(i64::MIN), prev, upto, sent_to: Vec::new(), rows },
        );
    }
}

fn victims_site(scene: &Scene) -> SiteId {
    scene.stage.at(scene.target).store.site_id().unwrap().unwrap()
}

fn pushes_in_the_victims_name(scene: &mut Scene) {
    let site = victims_site(scene);
    let stamp = scene.last;
    let mut forged = row(Value::Integer(7), stamp, vec![Value::text("forged")]);
    forged.birth.site = site;
    let rows = notes(vec![forged]).encode();
    let (prev, upto) = (Stamp::NONE, stamp);
    for boot in [Boot(0), Boot(1)] {
        let rows = rows.clone();
        scene
            .tell(sealed::PUSH, &PushMessage { site, boot, prev, upto, sent_to: Vec::new(), rows });
    }
}

fn pushes_with_gaps(scene: &mut Scene) {
    for _ in 0..1_000 {
        scene.push(Batch::default().encode());
    }
    assert!(scene.stage.heard(scene.puppet) < 200, "a gap is asked about once");
}

fn absurd_states(scene: &mut Scene) {
    for end in [-1, i64::MIN, i64::MAX, limits::SEQ_MAX + 1] {
        let mut state = scene.state();
        state.end = Seq(end);
        scene.tell(sealed::STATE, &state);
    }
    for (boot, seq, high) in [(0, 1, 1), (1, 5, 4), (1, -1, 4), (1, 1, i64::MAX), (1, i64::MIN, 0)]
    {
        let mut state = scene.state();
        state.cursor = Cursor { boot: Boot(boot), seq: Seq(seq), high: Seq(high) };
        scene.tell(sealed::STATE, &state);
    }
}

fn claimed_log(scene: &mut Scene) {
    let stream = scene.asked();
    // Nothing is sent; after a while the member gives up, and asks again later.
    scene.stage.pass(limits::PASS_STALL_MS + 1_000);
    assert!(scene.stage.seen(scene.puppet).closed.contains(&stream.0));
}

fn sites(count: u32, salt: u8) -> VectorList {
    let mut vector = Vector::default();
    for site in site_ids(count, salt) {
        vector.0.insert(site, (Stamp(1 << 20), Boot(3)));
    }
    VectorList::from(&vector)
}

fn site_ids(count: u32, salt: u8) -> impl Iterator<Item = SiteId> {
    (0..count).map(move |at| {
        let mut site = [salt; 16];
        site[..4].copy_from_slice(&at.to_be_bytes());
        SiteId(site)
    })
}

fn long_vector(scene: &mut Scene) {
    let mut state = scene.state();
    state.vector = sites(limits::VECTOR_MAX_SITES as u32 + 1, 1);
    scene.tell(sealed::STATE, &state);
    let mut request = scene.request();
    request.vector = sites(limits::VECTOR_MAX_SITES as u32 + 1, 1);
    let mut stream = scene.attach();
    let body = wire::encode(&request).unwrap();
    scene.send_on(&mut stream, sealed::REQUEST, &body);
}

/// Each vector is possible; together they would be longer than others accept.
fn more_and_more_sites(scene: &mut Scene) {
    for salt in 0..5 {
        let mut stream = scene.asked();
        let mut chunk = scene.chunk(0, 1, Batch::default().encode());
        chunk.high = Seq(1);
        chunk.last = true;
        chunk.vector = Some(sites(limits::VECTOR_MAX_SITES as u32 / 2, salt));
        scene.serve(&mut stream, &chunk);
    }
    let own = "SELECT count(*) FROM __wavesync_vector";
    let count: usize = scene.stage.read(scene.target, own).parse().unwrap();
    assert!(count <= limits::VECTOR_MAX_SITES, "{count} sites");
}

/// Rows of the table would have to begin beyond every possible length.
fn absurd_floors(scene: &mut Scene) {
    let mut stream = scene.asked();
    let mut chunk = scene.chunk(0, 1, Batch::default().encode());
    (chunk.high, chunk.last, chunk.vector) = (Seq(1), true, Some(VectorList::default()));
    let (table, length) = ("note".to_string(), limits::FLOOR_MAX + 1);
    chunk.floors = vec![Floor { table, integer_key: true, key_columns: 1, length }];
    scene.serve(&mut stream, &chunk);
    let floors = "SELECT count(*) FROM __wavesync_meta WHERE key GLOB 'floor:*'";
    assert_eq!(scene.stage.read(scene.target, floors), "0");
}

/// Everything is to be taken over, and comes to nothing each time.
fn forgotten_otherwise(scene: &mut Scene) {
    scene.say(200, &[]);
    scene.stage.pass(1_000);
    let site = SiteId([0x66; 16]);
    let mut vector = Vector::default();
    vector.0.insert(site, (Stamp(1_000), Boot(7)));
    let vector = VectorList::from(&vector);
    let mut state = scene.state();
    (state.vector, state.collected) = (vector.clone(), Some(vec![(site, Stamp(900))]));
    scene.tell(sealed::STATE, &state);
    let (mut passes, mut last) = (0, None);
    for second in 0..120 {
        scene.stage.pass(1_000);
        let Some(mut stream) = scene.asks().filter(|(end, _)| last != Some(*end)) else { continue };
        (passes, last) = (passes + 1, Some(stream.0));
        let mut chunk = scene.chunk(0, 1, Batch::default().encode());
        (chunk.high, chunk.last, chunk.vector) = (Seq(1), true, Some(vector.clone()));
        chunk.collected = vec![(site, Stamp(second))];
        scene.serve(&mut stream, &chunk);
    }
    assert!((3..=8).contains(&passes), "{passes} passes in two minutes");
}

fn twice_in_a_vector(scene: &mut Scene) {
    let mut state = wire::encode(&scene.state()).unwrap();
    let at = state.windows(2).position(|pair| pair == [0x02, 0x80]).unwrap();
    let entry = [&[0x83, 0x50][..], &[9; 16], &[1, 1]].concat();
    state.splice(at + 1..at + 2, [&[0x82][..], &entry, &entry].concat());
    scene.say(sealed::STATE, &state);
}

fn many_caps(scene: &mut Scene) {
    for (salt, count) in [(1, limits::CAPS_MAX_SITES + 1), (2, 3_000), (3, 3_000)] {
        let mut state = scene.state();
        state.caps = site_ids(count as u32, salt).map(|site| (site, Stamp(5))).collect();
        scene.tell(sealed::STATE, &state);
    }
    let count: usize =
        scene.stage.read(scene.target, "SELECT count(*) FROM __wavesync_cap").parse().unwrap();
    assert!(count <= limits::CAPS_MAX_SITES, "{count} caps");
}

/// Evidence of a copy costs the member its identity, not its data.
fn own_site(scene: &mut Scene) {
    for _ in 0..20 {
        let site = victims_site(scene);
        let mut hello = scene.hello_of(scene.state());
        hello.site = site;
        scene.tell(sealed::HELLO, &hello);
        scene.line = None;
    }
    let renewals = scene.stage.at(scene.target).renewals as usize;
    assert_eq!(renewals, limits::IDENTITY_CHANGES_MAX, "only so often");
}

fn caps_on_the_victim(scene: &mut Scene) {
    for stamp in [0, limits::STAMP_MAX] {
        let mut state = scene.state();
        state.caps = vec![(victims_site(scene), Stamp(stamp))];
        scene.tell(sealed::STATE, &state);
        scene.line = None;
    }
}

fn unknown_cursor(scene: &mut Scene) {
    let mut state = scene.state();
    state.cursor = Cursor { boot: Boot(12_345), seq: Seq(1), high: Seq(limits::SEQ_MAX) };
    scene.tell(sealed::STATE, &state);
    scene.line = None;
    scene.say(200, &[]);
}

fn many_catch_ups(scene: &mut Scene) {
    let body = wire::encode(&scene.request()).unwrap();
    let mut open = Vec::new();
    for _ in 0..100 {
        let mut stream = scene.attach();
        scene.send_on(&mut stream, sealed::REQUEST, &body);
        open.push(stream);
    }
    let served = open
        .iter()
        .filter(|stream| scene.stage.seen(scene.puppet).received.contains_key(&stream.0))
        .count();
    assert!(served <= limits::PASSES_PER_PEER_MAX, "{served} passes at a time");
}

fn endless_catch_ups(scene: &mut Scene) {
    let body = wire::encode(&scene.request()).unwrap();
    for _ in 0..300 {
        let mut stream = scene.attach();
        scene.send_on(&mut stream, sealed::REQUEST, &body);
        scene.stage.close(stream.0);
    }
}

fn credits_for_nothing(scene: &mut Scene) {
    let body = wire::encode(&scene.request()).unwrap();
    let mut stream = scene.attach();
    for _ in 0..500 {
        scene.send_on(&mut stream, sealed::CREDIT, &[]);
    }
    scene.send_on(&mut stream, sealed::REQUEST, &body);
    scene.send_on(&mut stream, sealed::REQUEST, &body);
    for _ in 0..500 {
        scene.send_on(&mut stream, sealed::CREDIT, &[]);
    }
}

fn hellos(scene: &mut Scene) {
    for round in 0..200u8 {
        let mut hello = scene.hello_of(scene.state());
        hello.site = SiteId([round; 16]);
        hello.wants_schema = round % 2 == 0;
        hello.features = u64::MAX;
        scene.tell(sealed::HELLO, &hello);
    }
}

fn states(scene: &mut Scene) {
    for round in 0..2_000 {
        let mut state = scene.state();
        state.boot = Boot(round);
        state.closed = round % 2 == 0;
        scene.tell(sealed::STATE, &state);
    }
}

fn replica_names(scene: &mut Scene) {
    for name in
        ["x".repeat(65), "\u{1B}[2J\u{202E}".into(), "'; DROP TABLE note; --".into(), String::new()]
    {
        let mut hello = scene.hello_of(scene.state());
        hello.name = name;
        scene.tell(sealed::HELLO, &hello);
    }
    // A greeting inside a session is none.
    let (_, greeting) = Offering::new([1; 32]);
    scene.tell(plain::GREETING, &greeting);
}
