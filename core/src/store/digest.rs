//! Digests of the rows of `L` (rule P15): read a bounded part at a time, kept as long as the log says
//! that nothing changed, and compared with those of another member.
//!
//! A digest says the same of two replicas that store the same rows in different ways: names instead of
//! numbers, values wherever they are kept, and nothing of dead rows or of incarnations that are over,
//! of which one replica may know less than another. The keys of a table fall into [`PARTS`] parts by
//! their hash, the same everywhere; of each the hashes of its rows are added up. Here they are kept by
//! ranges of keys as well, so that a change makes only its range be read again.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use rusqlite::params;
use sha2::{Digest, Sha256};

use crate::ids::{ColumnNum, Dot, Seq, TableNum};
use crate::limits;
use crate::merge::KeyKind;
use crate::mutants::{self, Mutant};
use crate::store::shape::KeyForm;
use crate::store::span::LogEntry;
use crate::store::tables::Table;
use crate::store::vector::Vector;
use crate::store::{Tx, claim, key};
use crate::value::Value;
use crate::wire::message::{RenamedTable, TableDigest, TableParts};
use crate::wire::rows::CLAIM;
use crate::{Error, Result};

/// Parts into which the keys of a table fall by their hash.
pub const PARTS: usize = 16;

/// Sums of the hashes of rows, by part.
type Sums = [u64; PARTS];

/// What this replica holds, as of one transaction without unfolded entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// The folded end in that transaction.
    pub end: Seq,
    /// Names the vector in that transaction.
    pub vector: [u8; 16],
    /// Names everything in `tables`.
    pub total: [u8; 16],
    /// Every table that has rows, by name.
    pub tables: Vec<TableDigest>,
    /// Every table that had another name, or has a column that had.
    pub renamed: Vec<RenamedTable>,
}

/// Digests as far as they are known.
#[derive(Debug, Default)]
pub struct Digests {
    /// Version of the schema, and how many other names were known, when they were read.
    schema: Option<(i64, i64)>,
    /// The log was looked through up to here for rows that changed.
    seen: Seq,
    tables: BTreeMap<TableNum, Vec<Range>>,
    taken: Option<Taken>,
}

/// The rows of a table after one key, up to where the next range begins.
#[derive(Debug)]
struct Range {
    after: Value,
    sums: Sums,
    /// Values of some row are away for now.
    partial: bool,
    /// `sums` are those of the rows.
    known: bool,
}

impl Range {
    fn unknown(after: Value) -> Self {
        Self { after, sums: [0; PARTS], partial: false, known: false }
    }
}

/// Columns of a table by their names in lower case: the order in which cells are hashed.
type Columns = Vec<(String, ColumnNum)>;

/// What may still be read in one go.
struct Budget {
    rows: usize,
    bytes: usize,
}

impl Tx<'_> {
    /// Goes on with the digests, a bounded part at a time. Returns them once they are those of the
    /// state in this transaction.
    ///
    /// # Errors
    /// If SQLite fails. A row that cannot be read is no error: it counts as another one.
    pub fn digest(&mut self, digests: &mut Digests) -> Result<Option<Taken>> {
        let end = self.folded_end()?;
        if !self.mark_changes(digests, end)? {
            return Ok(None);
        }
        let vector = vector_name(&self.vector()?);
        if let Some(taken) = &digests.taken
            && taken.end == end
            && taken.vector == vector
        {
            return Ok(digests.taken.clone());
        }
        let rows = self.bounds.digest_rows;
        let mut left = Budget { rows, bytes: limits::DIGEST_SLICE_MAX_BYTES };
        let numbers: Vec<TableNum> = digests.tables.keys().copied().collect();
        for number in numbers {
            let Some(ranges) = digests.tables.get_mut(&number) else { continue };
            if !self.read_ranges(number, ranges, &mut left)? {
                return Ok(None);
            }
        }
        let tables = self.table_digests(digests)?;
        let (total, renamed) = (total(&tables), self.renamed_tables()?);
        digests.taken = Some(Taken { end, vector, total, tables, renamed });
        Ok(digests.taken.clone())
    }

    /// Notes which ranges the log says have changed. Returns whether that was all of it.
    fn mark_changes(&mut self, digests: &mut Digests, end: Seq) -> Result<bool> {
        // What is hashed has names, and what others call it may join rows.
        let names: i64 = self
            .conn
            .prepare_cached("SELECT count(*) FROM __wavesync_former")?
            .query_row([], |row| row.get(0))?;
        let version = (super::schema_version(self.conn)?, names);
        if digests.schema != Some(version) || digests.seen < self.horizon()? || digests.seen > end {
            let all = |table: &std::rc::Rc<Table>| (table.num, vec![Range::unknown(Value::Null)]);
            let tables = self.tables().iter().map(all).collect();
            *digests = Digests { schema: Some(version), seen: end, tables, taken: None };
            return Ok(true);
        }
        if digests.seen == end {
            return Ok(true);
        }
        digests.taken = None;
        let most = self.bounds.chunk_scan_entries;
        let mut statement = self.conn.prepare_cached(
            "SELECT seq, tbl, pk, cols, at FROM __wavesync_log WHERE seq > ?1 AND seq <= ?2
             ORDER BY seq LIMIT ?3",
        )?;
        let mut entries = statement.query(params![digests.seen.0, end.0, most as i64])?;
        let mut count = 0;
        while let Some(entry) = entries.next()? {
            let entry = LogEntry::read(entry)?;
            count += 1;
            digests.seen = entry.seq;
            let Ok(table) = self.table(entry.table) else { continue };
            let ranges = digests
                .tables
                .entry(entry.table)
                .or_insert_with(|| vec![Range::unknown(Value::Null)]);
            let (first, last) = entry.bounds();
            let first = key::canonical(table.form, table.key_columns, first.clone())?;
            let from = range_of(ranges, &first);
            let to = last.map_or(from, |last| range_of(ranges, last)).max(from);
            let stale = mutants::on(Mutant::StaleDigest);
            ranges[from..=to].iter_mut().for_each(|range| range.known &= stale);
        }
        if count == most {
            return Ok(false);
        }
        digests.seen = end;
        Ok(true)
    }

    /// Reads ranges that are not known, as far as the budget goes. Returns whether it was enough.
    fn read_ranges(
        &mut self,
        number: TableNum,
        ranges: &mut Vec<Range>,
        left: &mut Budget,
    ) -> Result<bool> {
        let table = self.table(number)?;
        let columns = columns_by_name(&table);
        let mut at = 0;
        while at < ranges.len() {
            if ranges[at].known {
                at += 1;
                continue;
            }
            if left.rows == 0 || left.bytes == 0 {
                return Ok(false);
            }
            let end = ranges.get(at + 1).map(|next| next.after.clone());
            let after = ranges[at].after.clone();
            let (range, last) = self.read_range(&table, &columns, (after, end), left)?;
            ranges[at] = range;
            if let Some(last) = last {
                ranges.insert(at + 1, Range::unknown(last));
            }
            at += 1;
        }
        Ok(true)
    }

    /// Reads one range. Returns the last key if it is larger than ranges should be.
    fn read_range(
        &mut self,
        table: &Table,
        columns: &Columns,
        (after, end): (Value, Option<Value>),
        left: &mut Budget,
    ) -> Result<(Range, Option<Value>)> {
        let conn = self.conn;
        let texts = &table.statements;
        let first = after == Value::Null;
        let sql = if first { &texts.keys_first } else { &texts.keys_after };
        let mut statement = conn.prepare_cached(sql)?;
        let mut keys = if first { statement.query([])? } else { statement.query([&after])? };
        let mut range = Range { known: true, ..Range::unknown(after) };
        let (mut rows, mut bytes, mut last) = (0, 0, None);
        while let Some(row) = keys.next()? {
            let key = Value::from_ref(row.get_ref(0)?);
            if end.as_ref().is_some_and(|end| order(&key, end) == Ordering::Greater) {
                break;
            }
            let full = rows >= self.bounds.digest_rows || bytes >= limits::DIGEST_SLICE_MAX_BYTES;
            if full {
                left.spend(rows, bytes);
                return Ok((range, last));
            }
            bytes += self.add_row(table, columns, &key, &mut range)?;
            rows += 1;
            last = Some(key);
        }
        left.spend(rows, bytes);
        Ok((range, None))
    }

    /// Adds a row to its part. Returns about how many bytes were read.
    fn add_row(
        &mut self,
        table: &Table,
        columns: &Columns,
        key: &Value,
        range: &mut Range,
    ) -> Result<usize> {
        let (part, mut hash) = start_of_row(table, key);
        let mut size = 32;
        let read = self.clock(table, key).and_then(|row| {
            let alive = row.map(|row| row.clock).filter(crate::merge::Clock::alive);
            let values = alive.as_ref().map(|_| self.all_values(table, key)).transpose()?;
            Ok(alive.zip(values))
        });
        match read {
            Ok(None) => return Ok(size),
            // What cannot be read is not what others have.
            Err(Error::Database(_)) => hash.update(b"damaged"),
            Err(error) => return Err(error),
            Ok(Some((clock, values))) => {
                size += values.values().map(Value::weight).sum::<usize>();
                if size > limits::ROW_MAX_BYTES {
                    // Nobody else can have it.
                    return Ok(size);
                }
                let away = values.is_empty() && !clock.cells.is_empty();
                range.partial |= away && table.shape.is_none();
                hash.update(clock.length.to_be_bytes());
                add_dot(&mut hash, clock.birth);
                for (name, num) in columns {
                    let Some(dot) = clock.cells.get(num) else { continue };
                    add_text(&mut hash, name);
                    add_dot(&mut hash, *dot);
                    if !mutants::on(Mutant::DigestWithoutValues) {
                        add_value(&mut hash, values.get(num));
                    }
                }
                if let Some(claim) = clock.claim {
                    add_text(&mut hash, CLAIM);
                    clock.cells.get(&ColumnNum::CLAIM).iter().for_each(|d| add_dot(&mut hash, **d));
                    add_value(&mut hash, Some(&claim::encode(claim)));
                }
            }
        }
        let bytes: [u8; 32] = hash.finalize().into();
        let first = bytes.first_chunk::<8>().map_or(0, |bytes| u64::from_be_bytes(*bytes));
        range.sums[part] = range.sums[part].wrapping_add(first);
        Ok(size)
    }

    fn table_digests(&mut self, digests: &Digests) -> Result<Vec<TableDigest>> {
        let mut tables = Vec::new();
        for (number, ranges) in &digests.tables {
            let mut sums = [0u64; PARTS];
            for range in ranges {
                let both = sums.iter_mut().zip(&range.sums);
                both.for_each(|(sum, more)| *sum = sum.wrapping_add(*more));
            }
            let partial = ranges.iter().any(|range| range.partial);
            if sums == [0; PARTS] && !partial {
                continue;
            }
            let table = self.table(*number)?;
            tables.push(TableDigest {
                name: table.name.to_ascii_lowercase(),
                integer_key: table.kind == KeyKind::Integer,
                key_columns: table.key_columns,
                types: types(&table),
                partial,
                parts: sums.iter().flat_map(|sum| sum.to_be_bytes()).collect(),
            });
        }
        tables.sort_by(|one, two| one.identity().cmp(&two.identity()));
        Ok(tables)
    }

    fn renamed_tables(&mut self) -> Result<Vec<RenamedTable>> {
        let mut renamed = Vec::new();
        for table in self.tables() {
            let (mut former, mut columns) = self.former_names(&table)?;
            if former.is_empty() && columns.is_empty() {
                continue;
            }
            former.iter_mut().for_each(|name| name.make_ascii_lowercase());
            former.sort();
            for (now, before) in &mut columns {
                now.make_ascii_lowercase();
                before.make_ascii_lowercase();
            }
            columns.sort();
            renamed.push(RenamedTable { name: table.name.to_ascii_lowercase(), former, columns });
        }
        renamed.sort_by(|one, two| one.name.cmp(&two.name));
        Ok(renamed)
    }
}

impl Budget {
    fn spend(&mut self, rows: usize, bytes: usize) {
        self.rows = self.rows.saturating_sub(rows);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// The part of a table that a key belongs to, and the hash of its row so far.
fn start_of_row(table: &Table, key: &Value) -> (usize, Sha256) {
    let mut hash = Sha256::new();
    match key {
        // To SQLite 1 is 1.0, and of two such keys the one that came last is kept.
        Value::Real(real) if table.form == KeyForm::Single && real.fract() == 0.0 => {
            match *real as i64 {
                whole if whole as f64 == *real => {
                    add_value(&mut hash, Some(&Value::Integer(whole)))
                }
                _ => add_value(&mut hash, Some(key)),
            }
        }
        key => add_value(&mut hash, Some(key)),
    }
    let part = hash.clone().finalize()[0] >> 4;
    (usize::from(part), hash)
}

/// The part of a table that a key belongs to.
#[must_use]
pub fn part_of(table: &Table, key: &Value) -> usize {
    start_of_row(table, key).0
}

fn add_text(hash: &mut Sha256, text: &str) {
    hash.update((text.len() as u64).to_be_bytes());
    hash.update(text);
}

fn add_dot(hash: &mut Sha256, dot: Dot) {
    hash.update(dot.stamp.0.to_be_bytes());
    hash.update(dot.site.0);
}

/// Adds a value, or that it is missing. The sign of a zero is not carried by every update.
fn add_value(hash: &mut Sha256, value: Option<&Value>) {
    match value {
        None => hash.update([9]),
        Some(Value::Null) => hash.update([0]),
        Some(Value::Integer(integer)) => {
            hash.update([1]);
            hash.update(integer.to_be_bytes());
        }
        Some(Value::Real(real)) => {
            let bits = if *real == 0.0 { 0 } else { real.to_bits() };
            hash.update([2]);
            hash.update(bits.to_be_bytes());
        }
        Some(Value::Text(bytes) | Value::Blob(bytes)) => {
            hash.update([if matches!(value, Some(Value::Text(_))) { 3 } else { 4 }]);
            hash.update((bytes.len() as u64).to_be_bytes());
            hash.update(bytes);
        }
    }
}

/// Names a version vector.
#[must_use]
pub fn vector_name(vector: &Vector) -> [u8; 16] {
    let mut hash = Sha256::new();
    for (site, (stamp, _)) in &vector.0 {
        add_dot(&mut hash, Dot { stamp: *stamp, site: *site });
    }
    first_half(hash)
}

fn total(tables: &[TableDigest]) -> [u8; 16] {
    let mut hash = Sha256::new();
    for table in tables {
        add_text(&mut hash, &table.name);
        hash.update([u8::from(table.integer_key)]);
        hash.update((table.key_columns as u64).to_be_bytes());
        hash.update(&table.parts);
    }
    first_half(hash)
}

fn first_half(hash: Sha256) -> [u8; 16] {
    let bytes: [u8; 32] = hash.finalize().into();
    let mut half = [0; 16];
    half.copy_from_slice(&bytes[..16]);
    half
}

fn columns_by_name(table: &Table) -> Columns {
    let names = table.columns.iter().map(|column| (column.name.to_ascii_lowercase(), column.num));
    let mut columns: Columns = names.collect();
    columns.sort();
    columns
}

/// The columns that stand here, each as four bytes of the hash of its name and what SQLite makes of
/// a value in it.
fn types(table: &Table) -> Vec<u8> {
    let Some(shape) = &table.shape else { return Vec::new() };
    let columns = shape.key.iter().chain(&shape.columns);
    let mut types: Vec<[u8; 5]> = columns
        .map(|column| {
            let hash = Sha256::digest(column.name.to_ascii_lowercase());
            [hash[0], hash[1], hash[2], hash[3], column.affinity]
        })
        .collect();
    types.sort_unstable();
    types.concat()
}

/// Whether two replicas keep the values of a table in the same way, as far as both have its columns.
fn types_agree(one: &[u8], two: &[u8]) -> bool {
    let named: BTreeMap<&[u8], u8> =
        one.chunks_exact(5).map(|column| (&column[..4], column[4])).collect();
    two.chunks_exact(5).all(|column| named.get(&column[..4]).is_none_or(|t| *t == column[4]))
}

/// The parts of tables in which two members differ, of those that can be compared: not tables that
/// one of them knows under another name, nor such as keep values as other types.
#[must_use]
pub fn differences(
    own: (&[TableDigest], &[RenamedTable]),
    other: (&[TableDigest], &[RenamedTable]),
) -> Vec<TableParts> {
    let mut apart: BTreeSet<&str> = BTreeSet::new();
    for (one, two) in [(own.1, other.1), (other.1, own.1)] {
        for renamed in one.iter().filter(|renamed| !two.contains(renamed)) {
            apart.insert(&renamed.name);
            apart.extend(renamed.former.iter().map(String::as_str));
        }
    }
    let mut pairs: BTreeMap<_, [Option<&TableDigest>; 2]> = BTreeMap::new();
    for (side, tables) in [own.0, other.0].into_iter().enumerate() {
        for table in tables.iter().filter(|table| !apart.contains(table.name.as_str())) {
            pairs.entry(table.identity()).or_default()[side] = Some(table);
        }
    }
    let empty = [0u8; 8 * PARTS];
    let mut differences = Vec::new();
    for ((name, integer_key, key_columns), pair) in pairs {
        let partial = pair.iter().flatten().any(|table| table.partial);
        let alike = match pair {
            [Some(one), Some(two)] => types_agree(&one.types, &two.types),
            _ => true,
        };
        if partial || !alike {
            continue;
        }
        let [one, two] = pair.map(|table| table.map_or(&empty[..], |table| &table.parts[..]));
        let sums = one.chunks_exact(8).zip(two.chunks_exact(8)).enumerate();
        let parts = sums.filter(|(_, (one, two))| one != two).fold(0, |all, (n, _)| all | 1 << n);
        if parts != 0 {
            let name = name.to_string();
            differences.push(TableParts { name, integer_key, key_columns, parts });
        }
    }
    differences
}

/// The range that a key belongs to: the last one that begins before it.
fn range_of(ranges: &[Range], key: &Value) -> usize {
    let before = ranges.partition_point(|range| order(&range.after, key) == Ordering::Less);
    before.saturating_sub(1)
}

/// The order of keys in SQLite's indexes: numbers by their value whatever their class.
fn order(one: &Value, two: &Value) -> Ordering {
    let class = |value: &Value| match value {
        Value::Null => 0,
        Value::Integer(_) | Value::Real(_) => 1,
        Value::Text(_) => 2,
        Value::Blob(_) => 3,
    };
    match (one, two) {
        (Value::Integer(one), Value::Real(two)) => order_numbers(*one, *two),
        (Value::Real(one), Value::Integer(two)) => order_numbers(*two, *one).reverse(),
        (Value::Real(one), Value::Real(two)) => one.partial_cmp(two).unwrap_or(Ordering::Equal),
        (one, two) if class(one) == class(two) => one.cmp(two),
        (one, two) => class(one).cmp(&class(two)),
    }
}

fn order_numbers(integer: i64, real: f64) -> Ordering {
    // Casting a real saturates, and cuts off what follows the point.
    if real >= 9_223_372_036_854_775_808.0 {
        return Ordering::Less;
    }
    if real < -9_223_372_036_854_775_808.0 {
        return Ordering::Greater;
    }
    let whole = real as i64;
    integer.cmp(&whole).then_with(|| 0.0f64.partial_cmp(&real.fract()).unwrap_or(Ordering::Equal))
}
