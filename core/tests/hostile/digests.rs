//! Digests that are lies, and rows that are wanted again and again.

use wavesync_core::ids::{Boot, Seq};
use wavesync_core::limits;
use wavesync_core::store::digest::PARTS;
use wavesync_core::wire;
use wavesync_core::wire::message::{
    DigestMessage, Repair, TableDigest, TableParts, features, sealed,
};

use crate::Scene;

fn digest(scene: &Scene, lie: u8, names: usize) -> DigestMessage {
    let table = |at: usize| TableDigest {
        name: if at == 0 { "note".into() } else { format!("table {at}") },
        integer_key: true,
        key_columns: 1,
        types: vec![lie; 10],
        partial: false,
        parts: vec![lie; 8 * PARTS],
    };
    DigestMessage {
        boot: Boot(7),
        end: Seq(0),
        cursor: scene.state().cursor,
        vector: [lie; 16],
        total: [lie; 16],
        repaired: vec![lie; 16],
        detailed: true,
        tables: (0..names).map(table).collect(),
        renamed: Vec::new(),
    }
}

/// Other rows each time, for which nobody need be asked.
pub fn lies(scene: &mut Scene) {
    let mut hello = scene.hello_of(scene.state());
    hello.features = features::DIGESTS;
    scene.tell(sealed::HELLO, &hello);
    for lie in 0..200 {
        let digest = digest(scene, lie, 1 + usize::from(lie) * 4);
        scene.tell(sealed::DIGEST, &digest);
    }
    scene.stage.pass(2 * limits::DIGEST_INTERVAL_MS);
    let mut wrong = digest(scene, 1, 1);
    wrong.tables[0].parts.pop();
    scene.tell(sealed::DIGEST, &wrong);
    let wrong = DigestMessage { repaired: vec![1; 3], ..digest(scene, 1, 1) };
    scene.tell(sealed::DIGEST, &wrong);
    let wrong = digest(scene, 1, limits::TABLES_MAX + 1);
    scene.tell(sealed::DIGEST, &wrong);
}

/// Rows are wanted that were sent, and such as nobody has.
pub fn repairs(scene: &mut Scene) {
    let parts = |at: usize, parts| TableParts {
        name: if at == 0 { "note".into() } else { format!("table {at}") },
        integer_key: true,
        key_columns: 1,
        parts,
    };
    let ask = |scene: &mut Scene, tables| {
        let body = wire::encode(&Repair { tables, chunk_rows: 1 }).unwrap();
        let mut stream = scene.attach();
        scene.send_on(&mut stream, sealed::REPAIR, &body);
        scene.send_on(&mut stream, sealed::CREDIT, &[]);
        scene.stage.close(stream.0);
    };
    for _ in 0..100 {
        ask(scene, vec![parts(0, u32::MAX)]);
    }
    ask(scene, (0..limits::TABLES_MAX).map(|at| parts(at, 1)).collect());
    ask(scene, vec![parts(0, 1), parts(0, 2)]);
    ask(scene, Vec::new());
}
