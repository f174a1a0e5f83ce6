//! What a member that a test plays says of itself and of its log.
#![allow(dead_code)]

use std::collections::BTreeSet;

use wavesync_core::ids::{Boot, Cursor, Seq};
use wavesync_core::machine::StreamId;
use wavesync_core::wire;
use wavesync_core::wire::message::{Attach, Chunk, State, VectorList, plain, sealed};

use crate::stage::{Line, Stage};

pub fn state(end: i64) -> State {
    State {
        boot: Boot(7),
        end: Seq(end),
        partial: false,
        vector: VectorList::default(),
        applied: VectorList::default(),
        closed: false,
        cursor: Cursor::default(),
        caps: Vec::new(),
        collected: None,
    }
}

pub fn last_chunk(end: i64, rows: &[u8]) -> Chunk {
    Chunk {
        from: Seq(0),
        to: Seq(end),
        boot: Boot(7),
        high: Seq(end),
        rows: rows.to_vec(),
        vector: Some(VectorList::default()),
        last: true,
        closed: false,
        ordered: false,
        expected: 0,
        place: Vec::new(),
        collected: Vec::new(),
        floors: Vec::new(),
    }
}

/// Answers each catch-up that was asked for since the last call; how many these were.
pub fn answer(
    stage: &mut Stage,
    line: &Line,
    seen: &mut BTreeSet<StreamId>,
    chunk: &Chunk,
) -> usize {
    let opened: Vec<StreamId> =
        stage.seen(line.puppet).opened.iter().copied().filter(|id| seen.insert(*id)).collect();
    for end in &opened {
        let first = stage.seen(line.puppet).received[end][0].clone();
        assert_eq!(first[0], plain::ATTACH);
        let attach: Attach = wire::decode(&first[1..]).unwrap();
        let mut channel = line.session.channel(attach.stream);
        for bytes in channel.seal(sealed::CHUNK, &wire::encode(chunk).unwrap()).unwrap() {
            stage.send(*end, bytes);
        }
        stage.run();
    }
    opened.len()
}
