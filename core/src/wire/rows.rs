//! Row batches: the packed form in which rows travel, in chunks, pushes and exports alike.
//!
//! A batch is grouped by table and written column by column, so that what is alike lies together,
//! and compressed. Before the compressed part stands, for each site, the range of its stamps: a
//! receiver that has seen all of them drops the batch without decoding it. Layout in
//! `docs/PROTOCOL.md`. Must not know SQLite or local numbers: tables and columns go by name.

use crate::Result;
use crate::ids::{Dot, Stamp};
use crate::limits;
use crate::merge::{ENDED_MAX, Ended};
use crate::store::clock::{read_varint, write_varint};
use crate::store::vector::Vector;
use crate::value::Value;
use crate::wire::bytes::{Reader, broken, write_runs, write_signed, write_text};
use crate::wire::columns;
use crate::wire::sites::{Sites, check_stamp};

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

impl Row {
    /// Every write event that this row names.
    fn dots(&self) -> impl Iterator<Item = Dot> + '_ {
        let cells = self.cells.iter().map(|(_, dot, _)| *dot);
        let ended = self.ended.iter().flat_map(|(birth, death)| [*birth, *death]);
        std::iter::once(self.birth).chain(cells).chain(ended)
    }

    /// Whether a vector covers every write event that this row names.
    pub(crate) fn is_covered(&self, vector: &Vector) -> bool {
        self.dots().all(|dot| vector.covers(dot))
    }

    fn flags(&self, columns: usize) -> u8 {
        let uniform =
            self.cells.len() == columns && self.cells.iter().all(|(_, dot, _)| *dot == self.birth);
        let flag = |on: bool, bit: u8| if on { bit } else { 0 };
        flag(self.whole, FLAG_WHOLE)
            | flag(uniform, FLAG_UNIFORM)
            | flag(self.length % 2 == 1, FLAG_ALIVE)
            | flag(!self.ended.is_empty(), FLAG_ENDED)
    }
}

impl Batch {
    /// Number of rows in all tables.
    #[must_use]
    pub fn row_count(&self) -> usize {
        self.tables.iter().map(|table| table.rows.len()).sum()
    }

    fn dots(&self) -> impl Iterator<Item = Dot> + '_ {
        self.tables.iter().flat_map(|table| &table.rows).flat_map(Row::dots)
    }

    /// Encodes and compresses.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        self.encode_body(true)
    }

    fn encode_body(&self, compress: bool) -> Vec<u8> {
        let sites = Sites::of(self.dots());
        let mut body = Vec::new();
        write_varint(&mut body, self.tables.len() as u64);
        for table in &self.tables {
            encode_table(&mut body, table, &sites);
        }
        let mut bytes = vec![VERSION];
        sites.write(&mut bytes);
        let compressed = compress.then(|| lz4_flex::block::compress(&body));
        match compressed.filter(|compressed| compressed.len() < body.len()) {
            Some(compressed) => {
                bytes.push(METHOD_LZ4);
                write_varint(&mut bytes, body.len() as u64);
                bytes.extend_from_slice(&compressed);
            }
            None => {
                bytes.push(METHOD_RAW);
                bytes.extend_from_slice(&body);
            }
        }
        bytes
    }

    /// The newest write event of each site in an encoded batch, as its header says. Only the
    /// header is read; [`Batch::decode`] refuses a batch whose header does not fit its rows.
    ///
    /// # Errors
    /// If the header is broken.
    pub fn newest(bytes: &[u8]) -> Result<Vec<Dot>> {
        let (sites, _) = header(bytes)?;
        Ok(sites.ranges.iter().map(|(site, _, last)| Dot { stamp: *last, site: *site }).collect())
    }

    /// Decodes bytes of a peer.
    ///
    /// # Errors
    /// On anything that breaks the format or a limit. Nothing is allocated that the bytes at hand
    /// and [`limits::BATCH_MAX_CELLS`] do not justify.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let (sites, rest) = header(bytes)?;
        let (method, rest) = rest.split_first().ok_or_else(|| broken("it is cut off"))?;
        let inflated;
        let mut body = match *method {
            METHOD_RAW => rest,
            METHOD_LZ4 => {
                inflated = inflate(rest)?;
                &inflated[..]
            }
            _ => return Err(broken("its compression is unknown")),
        };
        let mut decoder = Decoder {
            reader: Reader { bytes: &mut body },
            sites: &sites,
            cells_left: limits::BATCH_MAX_CELLS,
        };
        let batch = decoder.batch()?;
        if !decoder.reader.bytes.is_empty() {
            return Err(broken("bytes follow its end"));
        }
        let found = Sites::of(batch.dots());
        let told = sites.ranges.iter();
        if found.ranges.len() != sites.ranges.len()
            || told.zip(&found.ranges).any(|(told, found)| told != found)
        {
            return Err(broken("its header does not tell the stamps of its rows"));
        }
        Ok(batch)
    }
}

fn header(bytes: &[u8]) -> Result<(Sites, &[u8])> {
    let (version, mut rest) = bytes.split_first().ok_or_else(|| broken("it is cut off"))?;
    if *version != VERSION {
        return Err(broken("its version is unknown"));
    }
    let sites = Sites::read(&mut Reader { bytes: &mut rest })?;
    Ok((sites, rest))
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

fn encode_table(body: &mut Vec<u8>, table: &TableRows, sites: &Sites) {
    write_text(body, &table.name);
    body.push(u8::from(table.integer_key));
    write_varint(body, table.key_columns as u64);
    write_varint(body, table.columns.len() as u64);
    table.columns.iter().for_each(|column| write_text(body, column));
    let rows = &table.rows;
    write_varint(body, rows.len() as u64);
    let flags: Vec<u8> = rows.iter().map(|row| row.flags(table.columns.len())).collect();
    write_runs(body, flags.iter().map(|flags| u64::from(*flags)));
    write_runs(body, rows.iter().map(|row| row.length.unsigned_abs()));
    write_runs(body, rows.iter().map(|row| sites.place(row.birth.site)));
    let mut last: Vec<i64> = sites.ranges.iter().map(|(_, first, _)| first.0).collect();
    for row in rows {
        let last = &mut last[sites.place(row.birth.site) as usize];
        write_signed(body, row.birth.stamp.0.wrapping_sub(*last));
        *last = row.birth.stamp.0;
    }
    for row in rows.iter().filter(|row| !row.ended.is_empty()) {
        write_varint(body, row.ended.len() as u64);
        let dots = row.ended.iter().flat_map(|(birth, death)| [birth, death]);
        dots.for_each(|dot| write_dot(body, *dot, row.birth, sites));
    }
    for (row, _) in rows.iter().zip(&flags).filter(|(_, flags)| has_own_dots(**flags)) {
        write_varint(body, row.cells.len() as u64);
        for (column, dot, _) in &row.cells {
            write_varint(body, *column as u64);
            write_dot(body, *dot, row.birth, sites);
        }
    }
    for at in 0..table.key_columns {
        columns::write(body, rows.iter().filter_map(|row| row.key.get(at)));
    }
    for at in 0..table.columns.len() {
        columns::write(body, rows.iter().filter_map(|row| row.cell(at)));
    }
}

/// A row whose cells have other dots than its birth lists them.
fn has_own_dots(flags: u8) -> bool {
    flags & FLAG_ALIVE != 0 && flags & FLAG_UNIFORM == 0
}

fn write_dot(body: &mut Vec<u8>, dot: Dot, birth: Dot, sites: &Sites) {
    write_signed(body, dot.stamp.0.wrapping_sub(birth.stamp.0));
    write_varint(body, sites.place(dot.site));
}

impl Row {
    /// The value of a column by its position in the dictionary.
    fn cell(&self, column: usize) -> Option<&Value> {
        match self.cells.get(column) {
            Some((at, _, value)) if *at == column => Some(value),
            _ => {
                let at = self.cells.binary_search_by_key(&column, |(at, ..)| *at).ok()?;
                Some(&self.cells[at].2)
            }
        }
    }

    fn cell_mut(&mut self, column: usize) -> Option<&mut Value> {
        let direct = self.cells.get(column).is_some_and(|(at, ..)| *at == column);
        let at = if direct {
            column
        } else {
            self.cells.binary_search_by_key(&column, |(at, ..)| *at).ok()?
        };
        Some(&mut self.cells[at].2)
    }
}

struct Decoder<'a, 'b, 's> {
    reader: Reader<'a, 'b>,
    sites: &'s Sites,
    /// Cells and rows that this batch may still have.
    cells_left: usize,
}

impl Decoder<'_, '_, '_> {
    fn batch(&mut self) -> Result<Batch> {
        let mut tables: Vec<TableRows> = Vec::new();
        let count = self.reader.count()?;
        if count > limits::TABLES_MAX {
            return Err(broken("it has too many tables"));
        }
        for _ in 0..count {
            let table = self.table()?;
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

    fn table(&mut self) -> Result<TableRows> {
        let name = self.reader.name()?;
        // A column may be called so, a table of SQLite's own may not come from anybody.
        if name.to_ascii_lowercase().starts_with("sqlite_") {
            return Err(broken("a name is reserved"));
        }
        let integer_key = match self.reader.byte()? {
            0 => false,
            1 => true,
            _ => return Err(broken("a table's kind is unknown")),
        };
        let key_columns = self.reader.count()?;
        let fits = (1..=limits::KEY_COLUMNS_MAX).contains(&key_columns);
        if !fits || (integer_key && key_columns != 1) {
            return Err(broken("a key has an impossible number of columns"));
        }
        let columns = self.reader.count()?;
        if columns > limits::COLUMNS_MAX {
            return Err(broken("a table has too many columns"));
        }
        let columns: Vec<String> = (0..columns).map(|_| self.column()).collect::<Result<_>>()?;
        let mut distinct = std::collections::BTreeSet::new();
        if !columns.iter().all(|name| distinct.insert(name.to_ascii_lowercase())) {
            return Err(broken("it names a column twice"));
        }
        let mut table = TableRows { name, integer_key, key_columns, columns, rows: Vec::new() };
        self.rows(&mut table)?;
        Ok(table)
    }

    /// Takes from what a batch may have at most.
    fn spend(&mut self, cells: usize) -> Result<()> {
        let left = self.cells_left.checked_sub(cells);
        self.cells_left = left.ok_or_else(|| broken("it has too many rows or cells"))?;
        Ok(())
    }

    fn rows(&mut self, table: &mut TableRows) -> Result<()> {
        let count = self.reader.count()?;
        // Each row has at least a byte, that of its birth.
        if count > self.reader.bytes.len() {
            return Err(broken("it is cut off"));
        }
        self.spend(count.saturating_mul(1 + table.key_columns))?;
        let flags = self.heads(table, count)?;
        for (row, _) in table.rows.iter_mut().zip(&flags).filter(|(_, f)| **f & FLAG_ENDED != 0) {
            row.ended = self.ended(row.birth)?;
        }
        let mut holders = vec![0usize; table.columns.len()];
        for (row, flags) in table.rows.iter_mut().zip(flags) {
            row.cells = self.cells(row.birth, flags, holders.len())?;
            row.cells.iter().for_each(|(column, ..)| holders[*column] += 1);
        }
        for at in 0..table.key_columns {
            let rows = &mut table.rows;
            columns::read(&mut self.reader, count, |row, value| rows[row].key[at] = value)?;
        }
        for row in &table.rows {
            let integer = matches!(row.key.as_slice(), [Value::Integer(_)]);
            if row.key.contains(&Value::Null) || (table.integer_key && !integer) {
                return Err(broken("a key has the wrong storage class"));
            }
        }
        for (column, holders) in holders.into_iter().enumerate() {
            let mut places = table.rows.iter_mut().filter_map(|row| row.cell_mut(column));
            columns::read(&mut self.reader, holders, |_, value| {
                if let Some(place) = places.next() {
                    *place = value;
                }
            })?;
        }
        Ok(())
    }

    /// Reads flags, causal lengths and births, and makes the rows with them.
    fn heads(&mut self, table: &mut TableRows, count: usize) -> Result<Vec<u8>> {
        let (integer, sites) = (table.integer_key, self.sites);
        let mut flags: Vec<u8> = Vec::with_capacity(count);
        self.reader.runs(count, |_, run, number| {
            let known = u8::try_from(number).ok().filter(|flags| *flags <= 15);
            let known = known.filter(|flags| integer || flags & FLAG_ENDED == 0);
            flags.resize(run.end, known.ok_or_else(|| broken("a row has unknown flags"))?);
            Ok(())
        })?;
        let mut lengths: Vec<i64> = Vec::with_capacity(count);
        self.reader.runs(count, |_, run, number| {
            let length = i64::try_from(number).unwrap_or(0);
            if !(1..=limits::CAUSAL_LENGTH_MAX).contains(&length) {
                return Err(broken("a causal length is impossible"));
            }
            lengths.resize(run.end, length);
            Ok(())
        })?;
        let mut places: Vec<usize> = Vec::with_capacity(count);
        self.reader.runs(count, |_, run, number| {
            let place = usize::try_from(number).unwrap_or(usize::MAX);
            sites.site(place)?;
            places.resize(run.end, place);
            Ok(())
        })?;
        let mut last: Vec<i64> = sites.ranges.iter().map(|(_, first, _)| first.0).collect();
        table.rows.reserve_exact(count);
        for ((flags, length), place) in flags.iter().zip(lengths).zip(places) {
            if (flags & FLAG_ALIVE != 0) != (length % 2 == 1) {
                return Err(broken("a causal length is impossible"));
            }
            let stamp = self.reader.signed()?.wrapping_add(last[place]);
            last[place] = stamp;
            check_stamp(Stamp(stamp))?;
            table.rows.push(Row {
                key: vec![Value::Null; table.key_columns],
                length,
                birth: Dot { stamp: Stamp(stamp), site: sites.site(place)? },
                whole: flags & FLAG_WHOLE != 0,
                cells: Vec::new(),
                ended: Ended::new(),
            });
        }
        Ok(flags)
    }

    /// The cells of a row, without their values.
    fn cells(&mut self, birth: Dot, flags: u8, columns: usize) -> Result<Vec<(usize, Dot, Value)>> {
        if flags & FLAG_UNIFORM != 0 {
            if columns > 0 && flags & FLAG_ALIVE == 0 {
                return Err(broken("a dead row has cells"));
            }
            self.spend(columns)?;
            return Ok((0..columns).map(|column| (column, birth, Value::Null)).collect());
        }
        if flags & FLAG_ALIVE == 0 {
            return Ok(Vec::new());
        }
        let count = self.reader.count()?;
        if count > columns {
            return Err(broken("a row has too many cells"));
        }
        self.spend(count)?;
        let mut cells: Vec<(usize, Dot, Value)> = Vec::new();
        for _ in 0..count {
            let column = self.reader.count()?;
            let rising = cells.last().is_none_or(|(before, ..)| *before < column);
            if column >= columns || !rising {
                return Err(broken("a column position is impossible"));
            }
            cells.push((column, self.dot(birth)?, Value::Null));
        }
        Ok(cells)
    }

    fn ended(&mut self, birth: Dot) -> Result<Ended> {
        let count = self.reader.count()?;
        if count == 0 || count > ENDED_MAX {
            return Err(broken("a row has an impossible number of ended incarnations"));
        }
        let mut ended = Ended::new();
        for _ in 0..count {
            let (began, over) = (self.dot(birth)?, self.dot(birth)?);
            ended.insert(began, over);
        }
        Ok(ended)
    }

    fn dot(&mut self, birth: Dot) -> Result<Dot> {
        let stamp = Stamp(self.reader.signed()?.wrapping_add(birth.stamp.0));
        check_stamp(stamp)?;
        let place = self.reader.count()?;
        Ok(Dot { stamp, site: self.sites.site(place)? })
    }

    fn column(&mut self) -> Result<String> {
        let start = *self.reader.bytes;
        let length = self.reader.count()?;
        if self.reader.bytes.get(..length) == Some(CLAIM.as_bytes()) {
            self.reader.take(length)?;
            return Ok(CLAIM.into());
        }
        *self.reader.bytes = start;
        self.reader.name()
    }
}

#[cfg(test)]
mod tests;
