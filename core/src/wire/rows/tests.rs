//! There and back, and what a hostile peer may try.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::ids::SiteId;
use crate::store::vector::Vector;
use proptest::prelude::*;

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<i64>().prop_map(Value::Integer),
        any::<u64>().prop_map(|bits| Value::Real(f64::from_bits(bits))),
        any::<Vec<u8>>().prop_map(Value::Text),
        any::<Vec<u8>>().prop_map(Value::Blob),
    ]
}

fn dot() -> impl Strategy<Value = Dot> {
    (-limits::STAMP_MS_MAX..=limits::STAMP_MAX, 0u8..4)
        .prop_map(|(stamp, site)| Dot { stamp: Stamp(stamp), site: SiteId([site; 16]) })
}

fn row() -> impl Strategy<Value = Row> {
    let key = prop_oneof![
        any::<i64>().prop_map(Value::Integer),
        any::<u128>().prop_map(|id| Value::text(&format!("{id:032x}"))),
        value().prop_filter("a key has no NULL", |value| *value != Value::Null),
    ];
    let cells = prop::collection::btree_map(0usize..3, (dot(), any::<bool>(), value()), 0..=3);
    (prop::collection::vec(key, 2), 1i64..5, dot(), any::<bool>(), cells).prop_map(
        |(key, length, birth, whole, cells)| {
            let alive = length % 2 == 1;
            let cells = cells.into_iter().filter(|_| alive);
            let cells = cells.map(|(c, (d, own, v))| (c, if own { d } else { birth }, v));
            Row { key, length, birth, whole, cells: cells.collect(), ended: Ended::new() }
        },
    )
}

fn batch() -> impl Strategy<Value = Batch> {
    let ended = prop::collection::btree_map(dot(), dot(), 0..3);
    let rows = prop::collection::vec((row(), ended), 0..20);
    prop::collection::vec((rows, any::<bool>()), 0..3).prop_map(|tables| {
        let table = |(at, (rows, integer_key)): (usize, (Vec<(Row, Ended)>, bool))| {
            let columns = vec!["a".to_string(), "b c".into(), "d\"".into()];
            let fit = |(number, (row, ended)): (usize, (Row, Ended))| match integer_key {
                true => Row { key: vec![Value::Integer(number as i64 * 3)], ended, ..row },
                false => row,
            };
            let rows = rows.into_iter().enumerate().map(fit).collect();
            let key_columns = if integer_key { 1 } else { 2 };
            TableRows { name: format!("t{at}"), integer_key, key_columns, columns, rows }
        };
        Batch { tables: tables.into_iter().enumerate().map(table).collect() }
    })
}

impl Row {
    /// Every write event that this row names.
    fn dots(&self) -> impl Iterator<Item = Dot> + '_ {
        let cells = self.cells.iter().map(|(_, dot, _)| *dot);
        let ended = self.ended.iter().flat_map(|(birth, death)| [*birth, *death]);
        std::iter::once(self.birth).chain(cells).chain(ended)
    }
}

impl Batch {
    fn dots(&self) -> impl Iterator<Item = Dot> + '_ {
        self.tables.iter().flat_map(|table| &table.rows).flat_map(Row::dots)
    }

    fn encode_body(&self, compress: bool) -> Vec<u8> {
        Packed::of(self).encode_body(compress)
    }
}

proptest! {
    /// What is looked at where it lies is what a row of its own says.
    #[test]
    fn packed_rows_are_the_rows(batch in batch(), stamps in prop::collection::vec(dot(), 4)) {
        let seen: Vector = Vector(stamps.iter().map(|dot| (dot.site, (dot.stamp, Default::default()))).collect());
        let bytes = batch.encode();
        for packed in [Packed::of(&batch), Packed::decode(&bytes).unwrap()] {
            let by_place = packed.seen_by(&seen);
            let rows = batch.tables.iter().flat_map(|table| &table.rows);
            let looked_at = packed.tables().flat_map(|table| table.rows());
            prop_assert_eq!(packed.row_count(), batch.row_count());
            for (row, at) in rows.zip(looked_at) {
                prop_assert_eq!(&at.to_row(), row);
                prop_assert_eq!(at.is_covered(&by_place), row.dots().all(|dot| seen.covers(dot)));
                let written = row.cells.iter().map(|(_, dot, _)| *dot).chain(row.ended.values().copied());
                let newest = written.map(|dot| dot.stamp).fold(row.birth.stamp, Stamp::max);
                prop_assert_eq!(at.newest(), newest);
                let plain = row.cells.iter().all(|(_, dot, _)| *dot == row.birth);
                prop_assert_eq!(at.is_plain(), plain);
            }
            prop_assert_eq!(packed.encode(), bytes.clone());
        }
    }

    #[test]
    fn a_batch_survives_the_wire(batch in batch()) {
        let bytes = batch.encode();
        prop_assert_eq!(&Batch::decode(&bytes).unwrap(), &batch);
        let newest = Batch::newest(&bytes).unwrap();
        let told = |dot: Dot| newest.iter().any(|n| n.site == dot.site && n.stamp >= dot.stamp);
        prop_assert!(batch.dots().all(told));
        prop_assert!(newest.iter().all(|told| batch.dots().any(|dot| dot == *told)));
    }

    #[test]
    fn random_bytes_are_an_error_and_never_a_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = Batch::decode(&bytes);
        if bytes.len() > 2 { bytes[0] = VERSION; bytes[1] = 0; bytes[2] = METHOD_RAW; }
        let _ = Batch::decode(&bytes);
    }

    #[test]
    fn bent_bytes_never_panic(batch in batch(), bends in prop::collection::vec(any::<(u16, u8)>(), 1..4)) {
        let mut bytes = batch.encode_body(false);
        for (at, to) in bends {
            let at = usize::from(at) % bytes.len();
            bytes[at] = to;
        }
        if let Ok(read) = Batch::decode(&bytes) {
            prop_assert_eq!(Batch::decode(&read.encode()).unwrap(), read);
        }
    }
}

fn one_row(columns: usize) -> Batch {
    let birth = Dot { stamp: Stamp(70_000), site: SiteId([1; 16]) };
    let cells = (0..columns).map(|at| (at, birth, Value::Null)).collect();
    let key = vec![Value::Integer(1)];
    let row = Row { key, length: 1, birth, whole: true, cells, ended: Ended::new() };
    let columns = (0..columns).map(|at| format!("c{at}")).collect();
    let table =
        TableRows { name: "t".into(), integer_key: true, key_columns: 1, columns, rows: vec![row] };
    Batch { tables: vec![table] }
}

#[test]
fn a_header_that_lies_about_the_stamps_is_refused() {
    let bytes = one_row(2).encode_body(false);
    assert!(Batch::decode(&bytes).is_ok());
    // version, one site, its 16 bytes, its first stamp (3 bytes), how far the last one is.
    let span = 1 + 1 + 16 + 3;
    assert_eq!(bytes[span], 0);
    let mut bent = bytes.clone();
    bent[span] = 1;
    assert_eq!(Batch::newest(&bent).unwrap()[0].stamp, Stamp(70_001));
    assert!(Batch::decode(&bent).is_err(), "a later stamp than any row has");
    let mut unused = bytes.clone();
    unused[1] = 2;
    unused.splice(2..2, [[9; 16].as_slice(), &[0, 0]].concat());
    assert!(Batch::decode(&unused).is_err(), "a site that no row names");
}

#[test]
fn runs_cannot_claim_more_cells_than_a_batch_may_have() {
    let mut wide = one_row(2_000);
    let row = wide.tables[0].rows[0].clone();
    wide.tables[0].rows = vec![row.clone(); limits::BATCH_MAX_CELLS / 2_002];
    assert!(Batch::decode(&wide.encode()).is_ok());
    wide.tables[0].rows.push(row);
    let bytes = wide.encode();
    assert!(bytes.len() < 100_000, "few bytes, many cells");
    assert!(Batch::decode(&bytes).is_err());
}

#[test]
fn a_decompression_bomb_is_refused_before_it_is_allocated() {
    let mut bytes = vec![VERSION, 0, METHOD_LZ4];
    write_varint(&mut bytes, 1 << 40);
    bytes.extend_from_slice(&[0; 20]);
    assert!(Batch::decode(&bytes).is_err());
}
