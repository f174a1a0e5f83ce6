//! Row batches that no honest member makes.

use wavesync_core::ids::{Dot, SiteId, Stamp};
use wavesync_core::merge::Ended;
use wavesync_core::value::Value;
use wavesync_core::wire::rows::{Batch, Row, TableRows};

pub const SITE: SiteId = SiteId([0xEE; 16]);

/// Whole, alive, first incarnation, born at a stamp.
pub fn row(key: Value, stamp: Stamp, values: Vec<Value>) -> Row {
    let birth = Dot { stamp, site: SITE };
    let cells = values.into_iter().enumerate().map(|(at, value)| (at, birth, value)).collect();
    Row { key: vec![key], length: 1, birth, whole: true, cells, ended: Ended::new() }
}

/// Dead, of a causal length.
pub fn dead(key: Value, stamp: Stamp, length: i64) -> Row {
    Row { length, cells: Vec::new(), ..row(key, stamp, Vec::new()) }
}

pub fn table(name: &str, columns: &[&str], rows: Vec<Row>) -> TableRows {
    let columns = columns.iter().map(|name| (*name).to_string()).collect();
    TableRows { name: name.into(), integer_key: true, key_columns: 1, columns, rows }
}

/// Rows of `note`, which everybody has.
pub fn notes(rows: Vec<Row>) -> Batch {
    Batch { tables: vec![table("note", &["text"], rows)] }
}

/// Rows of `item`, which has a text key and constraints.
pub fn items(rows: Vec<Row>) -> Batch {
    let mut part = table("item", &["n", "u"], rows);
    part.integer_key = false;
    Batch { tables: vec![part] }
}

/// A batch that claims to hold `size` bytes when it is unpacked.
pub fn packed(size: u64, block: &[u8]) -> Vec<u8> {
    let mut bytes = vec![1, 1];
    varint(&mut bytes, size);
    bytes.extend_from_slice(block);
    bytes
}

/// A body of one table with as many columns and rows as asked for, every value NULL.
pub fn nulls(columns: u64, rows: u64) -> Vec<u8> {
    let mut body = vec![1];
    body.extend_from_slice(&SITE.0);
    body.extend_from_slice(&[1, 1, b'w', 1]);
    varint(&mut body, 1);
    varint(&mut body, columns);
    for column in 0..columns {
        let name = format!("c{column}");
        varint(&mut body, name.len() as u64);
        body.extend_from_slice(name.as_bytes());
    }
    varint(&mut body, rows);
    for row in 0..rows {
        // Whole, uniform, alive; length 1; the key; no step of the stamp; the first site.
        body.extend_from_slice(&[7, 1, 1]);
        varint(&mut body, row << 1);
        body.extend_from_slice(&[2, 0]);
        body.extend(std::iter::repeat_n(0, columns as usize));
    }
    let block = lz4_flex::block::compress(&body);
    packed(body.len() as u64, &block)
}

pub fn varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}
