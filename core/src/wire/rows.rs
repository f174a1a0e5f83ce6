//! Row batches: the packed form in which rows travel, in chunks, pushes and exports alike.
//!
//! A batch is grouped by table, with dictionaries of sites and columns, and compressed. Layout in
//! `docs/PROTOCOL.md`. Must not know SQLite or local numbers: tables and columns go by name.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::{Dot, SiteId, Stamp};
use crate::limits;
use crate::merge::{ENDED_MAX, Ended};
use crate::store::clock::{read_varint, write_varint};
use crate::value::Value;
use crate::{Error, Result};

const VERSION: u8 = 1;
const METHOD_RAW: u8 = 0;
const METHOD_LZ4: u8 = 1;
const FLAG_WHOLE: u8 = 1;
const FLAG_UNIFORM: u8 = 2;
const FLAG_ALIVE: u8 = 4;
const FLAG_ENDED: u8 = 8;

/// The pseudo-column `#claim` in a table's column dictionary. A name with this prefix is refused
/// everywhere else, so no column of a user's can be called so.
pub const CLAIM: &str = "__wavesync_claim";

/// Rows of several tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// One part per table, each table at most once.
    pub tables: Vec<TableRows>,
}

/// Rows of one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableRows {
    /// The table's name.
    pub name: String,
    /// Its key is an `INTEGER PRIMARY KEY`.
    pub integer_key: bool,
    /// Number of key columns.
    pub key_columns: usize,
    /// Names of the columns that rows refer to by position.
    pub columns: Vec<String>,
    /// The rows.
    pub rows: Vec<Row>,
}

/// One row: a tombstone, a whole row or a patch of a named incarnation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The values of the key columns.
    pub key: Vec<Value>,
    /// Causal length: odd alive, even dead.
    pub length: i64,
    /// Birth of the incarnation, or the delete that ended it.
    pub birth: Dot,
    /// Every cell of the incarnation is here.
    pub whole: bool,
    /// Position in the column dictionary, last write, value; by rising position.
    pub cells: Vec<(usize, Dot, Value)>,
    /// For an INTEGER key: births of earlier incarnations and the deletes that ended them.
    pub ended: Ended,
}

impl Batch {
    /// Number of rows in all tables.
    #[must_use]
    pub fn row_count(&self) -> usize {
        self.tables.iter().map(|table| table.rows.len()).sum()
    }

    /// Encodes and compresses.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut sites = BTreeMap::new();
        let dots = self.tables.iter().flat_map(|table| &table.rows).flat_map(|row| {
            let ended = row.ended.iter().flat_map(|(birth, death)| [birth.site, death.site]);
            let cells = row.cells.iter().map(|(_, dot, _)| dot.site);
            std::iter::once(row.birth.site).chain(cells).chain(ended)
        });
        for site in dots {
            let next = sites.len();
            sites.entry(site).or_insert(next);
        }
        let mut ordered: Vec<(&SiteId, &usize)> = sites.iter().collect();
        ordered.sort_by_key(|(_, number)| **number);
        let mut body = Vec::new();
        write_varint(&mut body, ordered.len() as u64);
        ordered.iter().for_each(|(site, _)| body.extend_from_slice(&site.0));
        write_varint(&mut body, self.tables.len() as u64);
        for table in &self.tables {
            encode_table(&mut body, table, &sites);
        }
        let compressed = lz4_flex::block::compress(&body);
        let mut bytes = vec![VERSION];
        if compressed.len() < body.len() {
            bytes.push(METHOD_LZ4);
            write_varint(&mut bytes, body.len() as u64);
            bytes.extend_from_slice(&compressed);
        } else {
            bytes.push(METHOD_RAW);
            bytes.extend_from_slice(&body);
        }
        bytes
    }

    /// Decodes bytes of a peer.
    ///
    /// # Errors
    /// On anything that breaks the format or a limit. Nothing is allocated that the bytes at hand
    /// do not justify.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let (head, rest) = bytes.split_at_checked(2).ok_or_else(|| broken("it is cut off"))?;
        if head[0] != VERSION {
            return Err(broken("its version is unknown"));
        }
        let inflated;
        let mut body = match head[1] {
            METHOD_RAW => rest,
            METHOD_LZ4 => {
                inflated = inflate(rest)?;
                &inflated[..]
            }
            _ => return Err(broken("its compression is unknown")),
        };
        let reader = &mut Reader { bytes: &mut body };
        let batch = reader.batch()?;
        if !reader.bytes.is_empty() {
            return Err(broken("bytes follow its end"));
        }
        Ok(batch)
    }
}

fn inflate(mut bytes: &[u8]) -> Result<Vec<u8>> {
    let size = read_varint(&mut bytes).ok_or_else(|| broken("it is cut off"))?;
    let size = usize::try_from(size).map_err(|_| broken("it is too large"))?;
    let believable = bytes.len().saturating_mul(limits::COMPRESSION_MAX_RATIO) + 64;
    if size > limits::PASS_MESSAGE_MAX_BYTES || size > believable {
        return Err(broken("it claims to be larger than it can be"));
    }
    let body = lz4_flex::block::decompress(bytes, size)
        .map_err(|_| broken("its compressed part is damaged"))?;
    if body.len() != size {
        return Err(broken("its size is not what it claims"));
    }
    Ok(body)
}

fn broken(what: &str) -> Error {
    Error::protocol(format!("a row batch is refused: {what}"))
}

fn encode_table(body: &mut Vec<u8>, table: &TableRows, sites: &BTreeMap<SiteId, usize>) {
    write_text(body, &table.name);
    body.push(u8::from(table.integer_key));
    write_varint(body, table.key_columns as u64);
    write_varint(body, table.columns.len() as u64);
    table.columns.iter().for_each(|column| write_text(body, column));
    write_varint(body, table.rows.len() as u64);
    let mut last = 0i64;
    for row in &table.rows {
        let alive = row.length % 2 == 1;
        let uniform = row.cells.len() == table.columns.len()
            && row.cells.iter().all(|(_, dot, _)| *dot == row.birth);
        let flag = |on: bool, bit: u8| if on { bit } else { 0 };
        body.push(
            flag(row.whole, FLAG_WHOLE)
                | flag(uniform, FLAG_UNIFORM)
                | flag(alive, FLAG_ALIVE)
                | flag(!row.ended.is_empty(), FLAG_ENDED),
        );
        write_varint(body, row.length.unsigned_abs());
        row.key.iter().for_each(|value| write_value(body, value));
        let site = |dot: &Dot| sites.get(&dot.site).copied().unwrap_or(0) as u64;
        write_signed(body, row.birth.stamp.0.wrapping_sub(last));
        last = row.birth.stamp.0;
        write_varint(body, site(&row.birth));
        if !row.ended.is_empty() {
            write_varint(body, row.ended.len() as u64);
        }
        for dot in row.ended.iter().flat_map(|(birth, death)| [birth, death]) {
            write_signed(body, dot.stamp.0.wrapping_sub(row.birth.stamp.0));
            write_varint(body, site(dot));
        }
        if !uniform {
            write_varint(body, row.cells.len() as u64);
        }
        for (column, dot, value) in &row.cells {
            if !uniform {
                write_varint(body, *column as u64);
                write_signed(body, dot.stamp.0.wrapping_sub(row.birth.stamp.0));
                write_varint(body, site(dot));
            }
            write_value(body, value);
        }
    }
}

fn write_text(body: &mut Vec<u8>, text: &str) {
    write_varint(body, text.len() as u64);
    body.extend_from_slice(text.as_bytes());
}

fn write_signed(body: &mut Vec<u8>, value: i64) {
    write_varint(body, ((value << 1) ^ (value >> 63)) as u64);
}

/// Appends a value: a tag for its storage class, then its bytes.
pub fn write_value(body: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Null => body.push(0),
        Value::Integer(integer) => {
            body.push(1);
            write_signed(body, *integer);
        }
        Value::Real(real) => {
            body.push(2);
            body.extend_from_slice(&real.to_bits().to_be_bytes());
        }
        Value::Text(bytes) | Value::Blob(bytes) => {
            body.push(if matches!(value, Value::Text(_)) { 3 } else { 4 });
            write_varint(body, bytes.len() as u64);
            body.extend_from_slice(bytes);
        }
    }
}

/// What a batch may still hold: a value that is one byte on the wire is many in memory.
struct Room {
    rows: usize,
    cells: usize,
}

/// Reads the parts of a batch; also used for values that are stored packed.
pub struct Reader<'a, 'b> {
    /// What is left to read.
    pub bytes: &'b mut &'a [u8],
}

impl<'a> Reader<'a, '_> {
    fn batch(&mut self) -> Result<Batch> {
        let mut sites = Vec::new();
        for _ in 0..self.at_most(limits::VECTOR_MAX_SITES, "sites")? {
            let site = SiteId::from_slice(self.take(16)?).ok_or_else(|| broken("it is cut off"))?;
            sites.push(site);
        }
        let mut tables: Vec<TableRows> = Vec::new();
        let mut room = Room { rows: limits::BATCH_MAX_ROWS, cells: limits::BATCH_MAX_CELLS };
        for _ in 0..self.at_most(limits::TABLES_MAX, "tables")? {
            let table = self.table(&sites, &mut room)?;
            let same = |other: &TableRows| {
                other.name.eq_ignore_ascii_case(&table.name)
                    && (other.integer_key, other.key_columns)
                        == (table.integer_key, table.key_columns)
            };
            if tables.iter().any(same) {
                return Err(broken("it names a table twice"));
            }
            tables.push(table);
        }
        Ok(Batch { tables })
    }

    /// A count that is small enough.
    fn at_most(&mut self, most: usize, what: &str) -> Result<usize> {
        let count = self.count()?;
        if count > most { Err(broken(&format!("it has too many {what}"))) } else { Ok(count) }
    }

    fn table(&mut self, sites: &[SiteId], room: &mut Room) -> Result<TableRows> {
        let name = self.table_name()?;
        let integer_key = match self.byte()? {
            0 => false,
            1 => true,
            _ => return Err(broken("a table's kind is unknown")),
        };
        let key_columns = self.count()?;
        let fits = (1..=limits::KEY_COLUMNS_MAX).contains(&key_columns);
        if !fits || (integer_key && key_columns != 1) {
            return Err(broken("a key has an impossible number of columns"));
        }
        let columns = self.count()?;
        if columns > limits::COLUMNS_MAX {
            return Err(broken("a table has too many columns"));
        }
        let columns: Vec<String> = (0..columns).map(|_| self.column()).collect::<Result<_>>()?;
        let mut distinct = BTreeSet::new();
        if !columns.iter().all(|name| distinct.insert(name.to_ascii_lowercase())) {
            return Err(broken("it names a column twice"));
        }
        let mut table = TableRows { name, integer_key, key_columns, columns, rows: Vec::new() };
        let mut last = 0i64;
        let count = self.at_most(room.rows, "rows")?;
        room.rows -= count;
        for _ in 0..count {
            let row = self.row(&table, sites, &mut last)?;
            let left = room.cells.checked_sub(row.cells.len() + row.key.len());
            room.cells = left.ok_or_else(|| broken("it has too many values"))?;
            table.rows.push(row);
        }
        Ok(table)
    }

    fn row(&mut self, table: &TableRows, sites: &[SiteId], last: &mut i64) -> Result<Row> {
        let flags = self.byte()?;
        if flags > 15 || (flags & FLAG_ENDED != 0 && !table.integer_key) {
            return Err(broken("a row has unknown flags"));
        }
        let length = i64::try_from(self.varint()?).map_err(|_| broken("a causal length"))?;
        let alive = flags & FLAG_ALIVE != 0;
        if !(1..=limits::CAUSAL_LENGTH_MAX).contains(&length) || alive != (length % 2 == 1) {
            return Err(broken("a causal length is impossible"));
        }
        let key: Vec<Value> =
            (0..table.key_columns).map(|_| self.value()).collect::<Result<_>>()?;
        let integer = matches!(key.as_slice(), [Value::Integer(_)]);
        if key.contains(&Value::Null) || (table.integer_key && !integer) {
            return Err(broken("a key has the wrong storage class"));
        }
        let stamp = Stamp(self.signed()?.wrapping_add(*last));
        *last = stamp.0;
        let birth = self.dot(stamp, sites)?;
        let ended = if flags & FLAG_ENDED != 0 { self.ended(birth, sites)? } else { Ended::new() };
        let uniform = flags & FLAG_UNIFORM != 0;
        let count = if uniform { table.columns.len() } else { self.count()? };
        if count > table.columns.len() || (!alive && count > 0) {
            return Err(broken("a row has too many cells"));
        }
        let mut cells: Vec<(usize, Dot, Value)> = Vec::new();
        for at in 0..count {
            let (column, dot) = if uniform {
                (at, birth)
            } else {
                let column = self.count()?;
                let stamp = Stamp(self.signed()?.wrapping_add(birth.stamp.0));
                (column, self.dot(stamp, sites)?)
            };
            let rising = cells.last().is_none_or(|(before, _, _)| *before < column);
            if column >= table.columns.len() || !rising {
                return Err(broken("a column position is impossible"));
            }
            cells.push((column, dot, self.value()?));
        }
        Ok(Row { key, length, birth, whole: flags & FLAG_WHOLE != 0, cells, ended })
    }

    fn ended(&mut self, birth: Dot, sites: &[SiteId]) -> Result<Ended> {
        let count = self.count()?;
        if count == 0 || count > ENDED_MAX {
            return Err(broken("a row has an impossible number of ended incarnations"));
        }
        let mut ended = Ended::new();
        for _ in 0..count {
            let mut next = || {
                let stamp = Stamp(self.signed()?.wrapping_add(birth.stamp.0));
                self.dot(stamp, sites)
            };
            let (began, over) = (next()?, next()?);
            ended.insert(began, over);
        }
        Ok(ended)
    }

    fn dot(&mut self, stamp: Stamp, sites: &[SiteId]) -> Result<Dot> {
        let lowest = -limits::STAMP_MS_MAX;
        if !(lowest..=limits::STAMP_MAX).contains(&stamp.0) {
            return Err(broken("a stamp is absurd"));
        }
        let at = self.count()?;
        let site = sites.get(at).ok_or_else(|| broken("a site is not in the dictionary"))?;
        Ok(Dot { stamp, site: *site })
    }

    fn column(&mut self) -> Result<String> {
        let start = *self.bytes;
        let length = self.count()?;
        if self.bytes.get(..length) == Some(CLAIM.as_bytes()) {
            self.take(length)?;
            return Ok(CLAIM.into());
        }
        *self.bytes = start;
        self.name()
    }

    fn table_name(&mut self) -> Result<String> {
        let name = self.name()?;
        if name.to_ascii_lowercase().starts_with("sqlite_") {
            return Err(broken("a name is reserved"));
        }
        Ok(name)
    }

    fn name(&mut self) -> Result<String> {
        let length = self.count()?;
        if length == 0 || length > limits::NAME_MAX_BYTES {
            return Err(broken("a name has an impossible length"));
        }
        let name = std::str::from_utf8(self.take(length)?).map_err(|_| broken("a name"))?;
        if name.contains('\0') || name.to_ascii_lowercase().starts_with("__wavesync_") {
            return Err(broken("a name is reserved"));
        }
        Ok(name.into())
    }

    /// Reads one value.
    ///
    /// # Errors
    /// If the bytes are cut off or the storage class is unknown.
    pub fn value(&mut self) -> Result<Value> {
        Ok(match self.byte()? {
            0 => Value::Null,
            1 => Value::Integer(self.signed()?),
            2 => {
                let bytes = self.take(8)?.try_into().map_err(|_| broken("it is cut off"))?;
                Value::Real(f64::from_bits(u64::from_be_bytes(bytes)))
            }
            class @ (3 | 4) => {
                let length = self.count()?;
                let bytes = self.take(length)?.to_vec();
                if class == 3 { Value::Text(bytes) } else { Value::Blob(bytes) }
            }
            _ => return Err(broken("a storage class is unknown")),
        })
    }

    fn signed(&mut self) -> Result<i64> {
        let value = self.varint()?;
        Ok(((value >> 1) as i64) ^ -((value & 1) as i64))
    }

    /// Reads a number that counts something in this batch.
    pub fn count(&mut self) -> Result<usize> {
        usize::try_from(self.varint()?).map_err(|_| broken("a number is too large"))
    }

    fn varint(&mut self) -> Result<u64> {
        read_varint(self.bytes).ok_or_else(|| broken("it is cut off"))
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let (head, rest) =
            self.bytes.split_at_checked(count).ok_or_else(|| broken("it is cut off"))?;
        *self.bytes = rest;
        Ok(head)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
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
        let key = value().prop_filter("a key has no NULL", |value| *value != Value::Null);
        (
            key,
            1i64..9,
            dot(),
            any::<bool>(),
            prop::collection::btree_map(0usize..3, (dot(), value()), 0..=3),
        )
            .prop_map(|(key, length, birth, whole, cells)| {
                let alive = length % 2 == 1;
                let cells =
                    cells.into_iter().filter(|_| alive).map(|(c, (d, v))| (c, d, v)).collect();
                Row { key: vec![key], length, birth, whole, cells, ended: Ended::new() }
            })
    }

    proptest! {
        #[test]
        fn a_batch_survives_the_wire(rows in prop::collection::vec(row(), 0..20)) {
            let columns = vec!["a".to_string(), "b c".into(), "d\"".into()];
            let table = TableRows { name: "t".into(), integer_key: false, key_columns: 1, columns, rows };
            let batch = Batch { tables: vec![table] };
            prop_assert_eq!(Batch::decode(&batch.encode()).unwrap(), batch);
        }

        #[test]
        fn random_bytes_are_an_error_and_never_a_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = Batch::decode(&bytes);
            if bytes.len() > 2 { bytes[0] = VERSION; bytes[1] = METHOD_RAW; }
            let _ = Batch::decode(&bytes);
        }
    }

    #[test]
    fn a_decompression_bomb_is_refused_before_it_is_allocated() {
        let mut bytes = vec![VERSION, METHOD_LZ4];
        write_varint(&mut bytes, 1 << 40);
        bytes.extend_from_slice(&[0; 20]);
        assert!(Batch::decode(&bytes).is_err());
    }
}
