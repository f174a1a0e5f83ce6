//! Row batches: the packed form in which rows travel, in chunks, pushes and exports alike.
//!
//! A batch is grouped by table and written column by column, so that what is alike lies together,
//! and compressed. Before the compressed part stands, for each site, the range of its stamps: a
//! receiver that has seen all of them drops the batch without decoding it. Layout in
//! `docs/PROTOCOL.md`. Must not know SQLite or local numbers: tables and columns go by name.

use std::borrow::Cow;

use crate::Result;
use crate::ids::{Dot, Stamp};
use crate::limits;
use crate::merge::{ENDED_MAX, Ended};
use crate::store::clock::{read_varint, write_varint};
use crate::value::Value;
use crate::wire::bytes::{Reader, broken, write_runs, write_signed, write_text};
use crate::wire::columns;
use crate::wire::packed::{Cell, Event, Head, Packed, Part, Ranges, TableRef};
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

impl Batch {
    /// Number of rows in all tables.
    #[must_use]
    pub fn row_count(&self) -> usize {
        self.tables.iter().map(|table| table.rows.len()).sum()
    }

    /// Encodes and compresses.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        Packed::of(self).encode()
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

    /// Decodes bytes of a peer; see [`Packed::decode`].
    ///
    /// # Errors
    /// On anything that breaks the format or a limit.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        Ok(Packed::decode(bytes)?.to_batch())
    }
}

impl Packed<'_> {
    /// Encodes and compresses.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        self.encode_body(true)
    }

    fn encode_body(&self, compress: bool) -> Vec<u8> {
        let (ranges, order) = self.ranges();
        let mut body = Vec::new();
        write_varint(&mut body, self.parts.len() as u64);
        for (table, part) in self.tables().zip(&self.parts) {
            encode_table(&mut body, table, part, (&ranges, &order));
        }
        let mut bytes = vec![VERSION];
        Sites { ranges }.write(&mut bytes);
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
}

impl<'a> Packed<'a> {
    /// Decodes bytes of a peer.
    ///
    /// # Errors
    /// On anything that breaks the format or a limit. Nothing is allocated that the bytes at hand
    /// and [`limits::BATCH_MAX_CELLS`] do not justify.
    pub fn decode(bytes: &'a [u8]) -> Result<Self> {
        let (sites, rest) = header(bytes)?;
        let (method, rest) = rest.split_first().ok_or_else(|| broken("it is cut off"))?;
        let body = match *method {
            METHOD_RAW => Cow::Borrowed(rest),
            METHOD_LZ4 => Cow::Owned(inflate(rest)?),
            _ => return Err(broken("its compression is unknown")),
        };
        let mut decoder = Decoder {
            reader: Reader { bytes: &mut &body[..] },
            size: body.len(),
            made: Vec::new(),
            sites: &sites,
            cells_left: limits::BATCH_MAX_CELLS,
        };
        let parts = decoder.parts()?;
        if !decoder.reader.bytes.is_empty() {
            return Err(broken("bytes follow its end"));
        }
        let made = decoder.made;
        let names = sites.ranges.iter().map(|(site, ..)| *site).collect();
        let packed = Self { parts, sites: names, body, made };
        if packed.ranges().0 != sites.ranges {
            return Err(broken("its header does not tell the stamps of its rows"));
        }
        Ok(packed)
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

fn encode_table(
    body: &mut Vec<u8>,
    table: TableRef<'_>,
    part: &Part,
    (ranges, order): (&Ranges, &[u64]),
) {
    write_text(body, &part.name);
    body.push(u8::from(part.integer_key));
    write_varint(body, part.key_columns as u64);
    write_varint(body, part.columns.len() as u64);
    part.columns.iter().for_each(|column| write_text(body, column));
    let heads = &part.heads;
    write_varint(body, heads.len() as u64);
    let flags: Vec<u8> = heads.iter().map(|head| flags(part, head)).collect();
    write_runs(body, flags.iter().map(|flags| u64::from(*flags)));
    write_runs(body, heads.iter().map(|head| head.length.unsigned_abs()));
    let place = |event: &Event| order[event.place as usize];
    write_runs(body, heads.iter().map(|head| place(&head.birth)));
    let mut last: Vec<i64> = ranges.iter().map(|(_, first, _)| first.0).collect();
    for head in heads {
        let last = &mut last[place(&head.birth) as usize];
        write_signed(body, head.birth.stamp.0.wrapping_sub(*last));
        *last = head.birth.stamp.0;
    }
    let write_event = |body: &mut Vec<u8>, event: &Event, head: &Head| {
        write_signed(body, event.stamp.0.wrapping_sub(head.birth.stamp.0));
        write_varint(body, place(event));
    };
    for head in heads.iter().filter(|head| head.ended.is_some()) {
        let ended = part.ended(head);
        write_varint(body, ended.len() as u64);
        for event in ended.iter().flat_map(|(birth, death)| [birth, death]) {
            write_event(body, event, head);
        }
    }
    for (head, _) in heads.iter().zip(&flags).filter(|(_, flags)| has_own_dots(**flags)) {
        write_varint(body, u64::from(head.cells.1));
        let list = part.list(head);
        for at in 0..head.cells.1 {
            let (column, event) = list.get(at as usize).copied().unwrap_or((at, head.birth));
            write_varint(body, u64::from(column));
            write_event(body, &event, head);
        }
    }
    (0..part.key_columns).for_each(|at| columns::write(body, table.keys(at)));
    (0..part.columns.len()).for_each(|at| columns::write(body, table.column(at)));
}

fn flags(part: &Part, head: &Head) -> u8 {
    let Event { stamp, place } = head.birth;
    let mut list = part.list(head).iter();
    let uniform = head.cells.1 as usize == part.columns.len()
        && list.all(|(_, event)| event.stamp == stamp && event.place == place);
    let flag = |on: bool, bit: u8| if on { bit } else { 0 };
    flag(head.whole, FLAG_WHOLE)
        | flag(uniform, FLAG_UNIFORM)
        | flag(head.length % 2 == 1, FLAG_ALIVE)
        | flag(head.ended.is_some(), FLAG_ENDED)
}

/// A row whose cells have other dots than its birth lists them.
fn has_own_dots(flags: u8) -> bool {
    flags & FLAG_ALIVE != 0 && flags & FLAG_UNIFORM == 0
}

struct Decoder<'a, 'b, 's> {
    reader: Reader<'a, 'b>,
    /// Length of the body that is read.
    size: usize,
    /// Bytes of values that travel in a short form.
    made: Vec<u8>,
    sites: &'s Sites,
    /// Cells and rows that this batch may still have.
    cells_left: usize,
}

impl Decoder<'_, '_, '_> {
    fn parts(&mut self) -> Result<Vec<Part>> {
        let mut parts: Vec<Part> = Vec::new();
        let count = self.reader.count()?;
        if count > limits::TABLES_MAX {
            return Err(broken("it has too many tables"));
        }
        for _ in 0..count {
            let part = self.part()?;
            let same = |other: &Part| {
                other.name.eq_ignore_ascii_case(&part.name)
                    && (other.integer_key, other.key_columns)
                        == (part.integer_key, part.key_columns)
            };
            if parts.iter().any(same) {
                return Err(broken("it names a table twice"));
            }
            parts.push(part);
        }
        Ok(parts)
    }

    fn part(&mut self) -> Result<Part> {
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
        let mut part = Part { name, integer_key, key_columns, columns, ..Part::default() };
        self.rows(&mut part)?;
        Ok(part)
    }

    /// Takes from what a batch may have at most.
    fn spend(&mut self, cells: usize) -> Result<()> {
        let left = self.cells_left.checked_sub(cells);
        self.cells_left = left.ok_or_else(|| broken("it has too many rows or cells"))?;
        Ok(())
    }

    fn rows(&mut self, part: &mut Part) -> Result<()> {
        let count = self.reader.count()?;
        // Each row has at least a byte, that of its birth.
        if count > self.reader.bytes.len() {
            return Err(broken("it is cut off"));
        }
        self.spend(count.saturating_mul(1 + part.key_columns))?;
        let flags = self.heads(part, count)?;
        for (head, _) in part.heads.iter_mut().zip(&flags).filter(|(_, f)| **f & FLAG_ENDED != 0) {
            head.ended = Some(part.ended.len() as u32);
            part.ended.push(self.ended(head.birth)?);
        }
        let mut holders = vec![0usize; part.columns.len()];
        let mut cells = 0u32;
        for (head, flags) in part.heads.iter_mut().zip(flags) {
            self.cells(head, flags, &mut part.listed, &mut holders)?;
            head.cells.0 = cells;
            cells += head.cells.1;
        }
        let (size, made) = (self.size, &mut self.made);
        part.keys = vec![Cell::Null; count * part.key_columns];
        for at in 0..part.key_columns {
            let (keys, step) = (&mut part.keys, part.key_columns);
            columns::read(&mut self.reader, count, (size, &mut *made), |row, cell| {
                keys[row * step + at] = cell;
            })?;
        }
        let fits = |cell: &Cell| match cell {
            Cell::Null => false,
            Cell::Integer(_) => true,
            _ => !part.integer_key,
        };
        if !part.keys.iter().all(fits) {
            return Err(broken("a key has the wrong storage class"));
        }
        let mut all = vec![Cell::Null; cells as usize];
        for (column, holders) in holders.into_iter().enumerate() {
            let mut places = part.heads.iter().filter_map(|head| part.cell_at(head, column));
            columns::read(&mut self.reader, holders, (size, &mut *made), |_, cell| {
                if let Some(place) = places.next() {
                    all[place] = cell;
                }
            })?;
        }
        part.cells = all;
        Ok(())
    }

    /// Reads flags, causal lengths and births, and makes the rows with them.
    fn heads(&mut self, part: &mut Part, count: usize) -> Result<Vec<u8>> {
        let (integer, sites) = (part.integer_key, self.sites);
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
        let mut places: Vec<u32> = Vec::with_capacity(count);
        self.reader.runs(count, |_, run, number| {
            let place = usize::try_from(number).unwrap_or(usize::MAX);
            sites.site(place)?;
            places.resize(run.end, place as u32);
            Ok(())
        })?;
        let mut last: Vec<i64> = sites.ranges.iter().map(|(_, first, _)| first.0).collect();
        part.heads.reserve_exact(count);
        for ((flags, length), place) in flags.iter().zip(lengths).zip(places) {
            if (flags & FLAG_ALIVE != 0) != (length % 2 == 1) {
                return Err(broken("a causal length is impossible"));
            }
            let last = &mut last[place as usize];
            *last = self.reader.signed()?.wrapping_add(*last);
            let stamp = Stamp(*last);
            check_stamp(stamp)?;
            let (birth, whole) = (Event { stamp, place }, flags & FLAG_WHOLE != 0);
            let (cells, listed, ended) = ((0, 0), None, None);
            part.heads.push(Head { length, birth, whole, cells, listed, ended });
        }
        Ok(flags)
    }

    /// The cells of a row, without their values.
    fn cells(
        &mut self,
        head: &mut Head,
        flags: u8,
        listed: &mut Vec<(u32, Event)>,
        holders: &mut [usize],
    ) -> Result<()> {
        let columns = holders.len();
        if flags & FLAG_UNIFORM != 0 {
            if columns > 0 && flags & FLAG_ALIVE == 0 {
                return Err(broken("a dead row has cells"));
            }
            self.spend(columns)?;
            holders.iter_mut().for_each(|holders| *holders += 1);
            head.cells.1 = columns as u32;
            return Ok(());
        }
        if flags & FLAG_ALIVE == 0 {
            return Ok(());
        }
        let count = self.reader.count()?;
        if count > columns {
            return Err(broken("a row has too many cells"));
        }
        self.spend(count)?;
        let start = listed.len();
        for _ in 0..count {
            let column = self.reader.count()?;
            let rising =
                listed[start..].last().is_none_or(|(before, _)| (*before as usize) < column);
            if column >= columns || !rising {
                return Err(broken("a column position is impossible"));
            }
            holders[column] += 1;
            listed.push((column as u32, self.event(head.birth)?));
        }
        head.cells.1 = count as u32;
        head.listed = Some(start as u32);
        Ok(())
    }

    fn ended(&mut self, birth: Event) -> Result<Vec<(Event, Event)>> {
        let count = self.reader.count()?;
        if count == 0 || count > ENDED_MAX {
            return Err(broken("a row has an impossible number of ended incarnations"));
        }
        let mut ended = std::collections::BTreeMap::new();
        for _ in 0..count {
            let (began, over) = (self.event(birth)?, self.event(birth)?);
            let site = self.sites.site(began.place as usize)?;
            ended.insert(Dot { stamp: began.stamp, site }, (began, over));
        }
        Ok(ended.into_values().collect())
    }

    fn event(&mut self, birth: Event) -> Result<Event> {
        let stamp = Stamp(self.reader.signed()?.wrapping_add(birth.stamp.0));
        check_stamp(stamp)?;
        let place = self.reader.count()?;
        self.sites.site(place)?;
        Ok(Event { stamp, place: place as u32 })
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
