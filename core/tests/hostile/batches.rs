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
    compressed(&[0], size, block)
}

fn compressed(header: &[u8], size: u64, block: &[u8]) -> Vec<u8> {
    let mut bytes = [&[1][..], header, &[1]].concat();
    varint(&mut bytes, size);
    bytes.extend_from_slice(block);
    bytes
}

/// A batch of one table with as many columns and rows as asked for, every value NULL. Runs make it
/// small: a column of a million NULLs takes a few bytes.
pub fn nulls(columns: u64, rows: u64) -> Vec<u8> {
    uneven(&Uneven::even("w", columns, rows))
}

/// What a batch of one table says of itself, and what it has: more or fewer of each, or as many.
#[derive(Clone)]
pub struct Uneven {
    pub table: &'static str,
    pub names: u64,
    pub columns: u64,
    pub rows: u64,
    /// Rows of the runs of states, of stamps, of keys, and of each column.
    pub runs: [u64; 4],
    pub key_columns: u64,
}

impl Uneven {
    pub fn even(table: &'static str, columns: u64, rows: u64) -> Self {
        Self { table, names: columns, columns, rows, runs: [rows; 4], key_columns: 1 }
    }
}

pub fn uneven(claims: &Uneven) -> Vec<u8> {
    // One site, whose stamps are all 1.
    let header = [&[1][..], &SITE.0, &[2, 0]].concat();
    let mut body = vec![1, claims.table.len() as u8];
    body.extend_from_slice(claims.table.as_bytes());
    // An INTEGER key.
    body.push(1);
    varint(&mut body, claims.key_columns);
    varint(&mut body, claims.names);
    for column in 0..claims.names {
        let name = format!("c{column}");
        varint(&mut body, name.len() as u64);
        body.extend_from_slice(name.as_bytes());
    }
    varint(&mut body, claims.rows);
    let [states, stamps, keys, values] = claims.runs;
    // Runs: whole, uniform and alive; length 1; the first site. Then no step of any stamp.
    for number in [7, 1, 0] {
        varint(&mut body, states);
        body.push(number);
    }
    body.extend(std::iter::repeat_n(0, stamps as usize));
    // Keys rise by one.
    varint(&mut body, keys);
    body.push(1);
    body.extend(std::iter::repeat_n(2, keys as usize));
    for _ in 0..claims.columns {
        varint(&mut body, values);
        body.push(0);
    }
    let block = lz4_flex::block::compress(&body);
    compressed(&header, body.len() as u64, &block)
}

pub fn varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}
