//! Export, and merging what another replica sends.

use wavesync_core::ids::{Boot, Cursor, Seq, SiteId};
use wavesync_core::store::Store;
use wavesync_core::store::apply::Reach;
use wavesync_core::store::scan::Place;
use wavesync_core::store::serve::Piece;
use wavesync_core::store::vector::Vector;

use crate::data::{Bench, Capture, engine, fold, now};
use crate::measure::{Report, Samples, per_second, timed, times};

pub fn export(bench: &Bench, report: &mut Report) {
    let names = ["export of everything", "wire bytes in bulk"];
    if !report.wants(&names) {
        return;
    }
    let (_conn, store) = bench.filled("export", Capture::Wavesync);
    let mut store = store.unwrap();
    let mut samples = Samples::default();
    let mut bytes = 0;
    for _ in 0..report.rounds {
        let (cpu, blob) = timed(|| store.export(now(), Seq(0)).unwrap());
        samples.add("export", cpu);
        bytes = blob.len();
    }
    let speed = per_second(bench.rows.len(), samples.median("export"));
    report.line(names[0], ">= 1000 k rows/s", &speed, "read, packed, compressed");
    let own: usize = bench.rows.iter().map(|row| row.own_bytes(bench.key)).sum();
    let detail = format!("of the rows' own {} bytes", own / bench.rows.len());
    let ratio = times(bytes as f64 / own as f64);
    report.line(names[1], bench.key.goal("<= 0.45x", "<= 0.7x"), &ratio, &detail);
}

/// A catch-up from the beginning, as its responder sends it.
struct Sent {
    site: SiteId,
    pieces: Vec<(Vec<u8>, Piece)>,
    vector: Vector,
}

fn send(store: &mut Store) -> Sent {
    let site = store.site_id().unwrap().unwrap();
    let (mut place, mut pieces) = (Place::Log(Seq(0)), Vec::new());
    loop {
        let none = Vector::default();
        let mut piece = store.folded(now(), |tx| tx.read_piece(place, &none)).unwrap();
        let rows = std::mem::take(&mut piece.rows);
        place = piece.next.clone();
        let vector = piece.last.then(|| piece.vector.clone());
        pieces.push((rows.encode(), piece));
        if let Some(vector) = vector {
            return Sent { site, pieces, vector };
        }
    }
}

fn receive(store: &mut Store, sent: &Sent) -> u64 {
    let mut changed = 0;
    for (bytes, piece) in &sent.pieces {
        let cursor = Cursor { boot: Boot(1), seq: piece.to, high: piece.high };
        let (place, last) = (piece.next.encode(), piece.last.then_some(&sent.vector));
        let reach =
            Reach { cursor, place: &place, ordered: piece.ordered, last, ..Reach::default() };
        let applied = store.receive_piece(now(), sent.site, bytes, &reach).unwrap();
        changed += applied.changed;
    }
    // Which rows the vector covers is looked at in the background, a part at a time.
    while store.test_openness(now()).unwrap() {}
    store.take_effects();
    changed
}

pub fn merge(bench: &Bench, report: &mut Report) {
    let names = ["merge into an empty replica", "merge of what is known", "merge, 10 % newer"];
    if !report.wants(&names) {
        return;
    }
    let (conn, store) = bench.filled("source", Capture::Wavesync);
    let mut store = store.unwrap();
    let first = send(&mut store);
    conn.execute_batch("UPDATE t SET amount = amount + 1 WHERE rowid % 10 = 0").unwrap();
    fold(&mut store);
    let newer = send(&mut store);
    let mut samples = Samples::default();
    let count = bench.rows.len();
    for _ in 0..report.rounds {
        let (conn, _) = bench.create("plain", Capture::None);
        samples.add("plain", timed(|| bench.insert(&conn, &mut |_| {})).0);
        drop(bench.create("target", Capture::None));
        let mut target = engine(&bench.path("target"), 2, true);
        let (cpu, changed) = timed(|| receive(&mut target, &first));
        assert_eq!(changed as usize, count, "every row is new");
        samples.add("empty", cpu);
        if report.wants(&names[1..2]) {
            let (cpu, changed) = timed(|| receive(&mut target, &first));
            assert_eq!(changed, 0, "every row is known");
            samples.add("known", cpu);
        }
        if report.wants(&names[2..]) {
            let (cpu, changed) = timed(|| receive(&mut target, &newer));
            assert_eq!(changed as usize, count / 10, "every tenth row is newer");
            samples.add("newer", cpu);
        }
    }
    let goal = |integer, text| bench.key.goal(integer, text);
    let speed = per_second(count, samples.median("empty"));
    let ratio = |name| times(samples.ratio(name, "plain"));
    report.line(names[0], goal("<= 1.8x", "<= 0.6x"), &ratio("empty"), "of the plain bulk insert");
    report.line(names[0], goal(">= 600 k rows/s", ">= 300 k rows/s"), &speed, "");
    report.line(names[1], "<= 0.1x", &ratio("known"), "");
    report.line(names[2], "<= 0.8x", &ratio("newer"), "all rows arrive, every tenth is newer");
}
