//! Attacks that say the right things in the wrong place: on another kind of stream, in another order,
//! once more.

use wavesync_core::ids::SiteId;
use wavesync_core::limits;
use wavesync_core::wire;
use wavesync_core::wire::message::sealed;
use wavesync_core::wire::rows::Batch;

use crate::Scene;

pub fn wrong_streams(scene: &mut Scene) {
    let request = wire::encode(&scene.request()).unwrap();
    let chunk = wire::encode(&scene.chunk(0, 1, Batch::default().encode())).unwrap();
    let state = wire::encode(&scene.state()).unwrap();
    for (kind, body) in
        [(sealed::REQUEST, &request), (sealed::CHUNK, &chunk), (sealed::CREDIT, &vec![])]
    {
        scene.say(kind, body);
    }
    for (kind, body) in [(sealed::CHUNK, &chunk), (sealed::STATE, &state), (sealed::HELLO, &state)]
    {
        let mut stream = scene.attach();
        scene.send_on(&mut stream, kind, body);
        assert!(scene.has_ended(stream.0), "kind {kind} to a responder");
    }
    for (kind, body) in [(sealed::REQUEST, &request), (sealed::CREDIT, &vec![])] {
        let mut stream = scene.asked();
        scene.send_on(&mut stream, kind, body);
        assert!(scene.has_ended(stream.0), "kind {kind} to a requester");
    }
}

pub fn another_hello(scene: &mut Scene) {
    let mut hello = scene.hello_of(scene.state());
    scene.tell(sealed::HELLO, &hello);
    let control = scene.line.as_ref().unwrap().control;
    assert!(!scene.has_ended(control), "the same hello again");
    hello.site = SiteId([0xED; 16]);
    scene.tell(sealed::HELLO, &hello);
    assert!(scene.has_ended(control), "a hello of another site");
}

pub fn chunks_out_of_order(scene: &mut Scene) {
    let empty = Batch::default().encode();
    for (from, to) in [(5, 6), (1, 0), (-1, 4), (0, i64::MAX), (i64::MIN, 0)] {
        let mut stream = scene.asked();
        let chunk = scene.chunk(from, to, empty.clone());
        scene.serve(&mut stream, &chunk);
        scene.serve(&mut stream, &chunk);
    }
    let mut stream = scene.asked();
    let mut chunk = scene.chunk(0, 1, empty.clone());
    chunk.place = vec![0; limits::PLACE_MAX_BYTES + 1];
    scene.serve(&mut stream, &chunk);
}

pub fn empty_chunks(scene: &mut Scene) {
    let mut stream = scene.asked();
    for at in 0..2_000 {
        let chunk = scene.chunk(at, at + 1, Batch::default().encode());
        scene.serve(&mut stream, &chunk);
    }
}

pub fn frames_after_the_end(scene: &mut Scene) {
    scene.say(200, &[]);
    let control = scene.line.as_ref().unwrap().control;
    scene.say(sealed::STATE, &[0xFF]);
    assert!(scene.stage.seen(scene.puppet).closed.contains(&control));
    let Some(mut line) = scene.line.take() else { return };
    for _ in 0..100 {
        line.say(&mut scene.stage, sealed::STATE, &[0xFF; 1_000]);
    }
    let mut stream = scene.attach();
    let body = wire::encode(&scene.request()).unwrap();
    scene.send_on(&mut stream, sealed::REQUEST, &body);
    for _ in 0..100 {
        scene.send_on(&mut stream, sealed::ABORT, &[0xA0]);
        scene.send_on(&mut stream, sealed::REQUEST, &body);
    }
}
