//! A row batch in a few large buffers: what is read from the wire, and what is collected for it.
//!
//! Most rows of a batch are passed over as known, bound to a statement, or only handed on, and none of
//! that needs values of their own on the heap. [`Packed::rows`] looks at them where they lie, and
//! [`RowRef::to_row`] makes a [`Row`] of the few that are joined one by one.

use std::borrow::Cow;

use crate::ids::{Dot, SiteId, Stamp};
use crate::merge::Ended;
use crate::store::vector::Vector;
use crate::value::{Value, ValueRef};
use crate::wire::rows::{Batch, Row, TableRows};

/// A value: of texts and blobs, where their bytes lie.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Cell {
    Null,
    Integer(i64),
    Real(f64),
    Bytes {
        blob: bool,
        /// They lie behind the others: they did not come as they are.
        made: bool,
        length: u32,
        start: usize,
    },
}

/// A write event, its site by its place in the batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event {
    pub stamp: Stamp,
    pub place: u32,
}

/// A row without its values.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head {
    pub length: i64,
    pub birth: Event,
    pub whole: bool,
    /// Its first cell and the number of its cells.
    pub cells: (u32, u32),
    /// Where columns and write events of its cells are listed. Without a list these are the first
    /// columns, all written with the birth.
    pub listed: Option<u32>,
    /// Where its ended incarnations are.
    pub ended: Option<u32>,
}

/// Rows of one table.
#[derive(Clone, Debug, Default)]
pub(crate) struct Part {
    pub name: String,
    pub integer_key: bool,
    pub key_columns: usize,
    pub columns: Vec<String>,
    pub heads: Vec<Head>,
    /// The key columns of all rows, row by row.
    pub keys: Vec<Cell>,
    /// The cells of all rows, row by row.
    pub cells: Vec<Cell>,
    pub listed: Vec<(u32, Event)>,
    pub ended: Vec<Vec<(Event, Event)>>,
}

/// Rows of several tables.
#[derive(Clone, Debug, Default)]
pub struct Packed<'a> {
    pub(crate) parts: Vec<Part>,
    /// The sites by their places.
    pub(crate) sites: Vec<SiteId>,
    /// The bytes of texts and blobs that came as they are.
    pub(crate) body: Cow<'a, [u8]>,
    /// Those of others.
    pub(crate) made: Vec<u8>,
}

/// A table of a packed batch.
#[derive(Clone, Copy, Debug)]
pub struct TableRef<'p> {
    batch: &'p Packed<'p>,
    part: &'p Part,
}

/// A row of a packed batch.
#[derive(Clone, Copy, Debug)]
pub struct RowRef<'p> {
    table: TableRef<'p>,
    at: usize,
}

/// What a vector has seen of the sites of a batch, by their places.
#[derive(Debug)]
pub struct Seen(Vec<Stamp>);

/// The sites of a batch in the order in which they first come, each with its first and last stamp.
pub(crate) type Ranges = Vec<(SiteId, Stamp, Stamp)>;

impl Packed<'_> {
    /// Number of rows in all tables.
    #[must_use]
    pub fn row_count(&self) -> usize {
        self.parts.iter().map(|part| part.heads.len()).sum()
    }

    /// The tables.
    pub fn tables(&self) -> impl Iterator<Item = TableRef<'_>> {
        self.parts.iter().map(|part| TableRef { batch: self, part })
    }

    /// What a vector has seen of the sites of these rows.
    #[must_use]
    pub fn seen_by(&self, vector: &Vector) -> Seen {
        Seen(self.sites.iter().map(|site| vector.get(*site)).collect())
    }

    /// Sites and ranges of the rows, and the position in them of each place.
    pub(crate) fn ranges(&self) -> (Ranges, Vec<u64>) {
        const UNUSED: u64 = u64::MAX;
        let mut order = vec![UNUSED; self.sites.len()];
        let mut ranges = Ranges::new();
        let mut note = |event: &Event| {
            let position = &mut order[event.place as usize];
            if *position == UNUSED {
                *position = ranges.len() as u64;
                ranges.push((self.sites[event.place as usize], event.stamp, event.stamp));
            }
            let (_, first, last) = &mut ranges[*position as usize];
            *first = (*first).min(event.stamp);
            *last = (*last).max(event.stamp);
        };
        for part in &self.parts {
            for head in &part.heads {
                note(&head.birth);
                part.list(head).iter().for_each(|(_, event)| note(event));
                let ended = part.ended(head).iter();
                ended.for_each(|(birth, death)| [birth, death].into_iter().for_each(&mut note));
            }
        }
        (ranges, order)
    }

    /// The newest write event of each site.
    pub(crate) fn newest_of_sites(&self) -> impl Iterator<Item = Dot> {
        self.ranges().0.into_iter().map(|(site, _, stamp)| Dot { stamp, site })
    }

    #[inline]
    fn value(&self, cell: Cell) -> ValueRef<'_> {
        match cell {
            Cell::Null => ValueRef::Null,
            Cell::Integer(integer) => ValueRef::Integer(integer),
            Cell::Real(real) => ValueRef::Real(real),
            Cell::Bytes { blob, made, length, start } => {
                let all = if made { &self.made[..] } else { &self.body[..] };
                let bytes = &all[start..start + length as usize];
                if blob { ValueRef::Blob(bytes) } else { ValueRef::Text(bytes) }
            }
        }
    }

    fn dot(&self, event: Event) -> Dot {
        Dot { stamp: event.stamp, site: self.sites[event.place as usize] }
    }

    /// The same with values of their own.
    #[must_use]
    pub fn to_batch(&self) -> Batch {
        let tables = self.tables().map(|table| TableRows {
            name: table.part.name.clone(),
            integer_key: table.part.integer_key,
            key_columns: table.part.key_columns,
            columns: table.part.columns.clone(),
            rows: table.rows().map(RowRef::to_row).collect(),
        });
        Batch { tables: tables.collect() }
    }
}

impl Packed<'static> {
    /// Packs a batch.
    #[must_use]
    pub fn of(batch: &Batch) -> Self {
        let mut packed = Self::default();
        let mut places = Places::default();
        for table in &batch.tables {
            let mut part = Part {
                name: table.name.clone(),
                integer_key: table.integer_key,
                key_columns: table.key_columns,
                columns: table.columns.clone(),
                ..Part::default()
            };
            for row in &table.rows {
                packed.push(&mut part, &mut places, row);
            }
            packed.parts.push(part);
        }
        packed
    }

    /// Adds a row to a part of this batch.
    pub(crate) fn push(&mut self, part: &mut Part, places: &mut Places, row: &Row) {
        for at in 0..part.key_columns {
            let value = row.key.get(at).map_or(ValueRef::Null, Value::as_ref);
            part.keys.push(self.cell(value));
        }
        let birth = self.event(places, row.birth);
        let cells = (part.cells.len() as u32, row.cells.len() as u32);
        let mut all = row.cells.iter().enumerate();
        let plain = all.all(|(at, (column, dot, _))| at == *column && *dot == row.birth);
        let listed = (!plain).then_some(part.listed.len() as u32);
        for (column, dot, value) in &row.cells {
            if !plain {
                let event = self.event(places, *dot);
                part.listed.push((*column as u32, event));
            }
            let cell = self.cell(value.as_ref());
            part.cells.push(cell);
        }
        let ended = (!row.ended.is_empty()).then_some(part.ended.len() as u32);
        if ended.is_some() {
            let pairs = row.ended.iter();
            let pairs = pairs.map(|(b, d)| (self.event(places, *b), self.event(places, *d)));
            part.ended.push(pairs.collect());
        }
        let (length, whole) = (row.length, row.whole);
        part.heads.push(Head { length, birth, whole, cells, listed, ended });
    }

    /// Takes in a value.
    pub(crate) fn cell(&mut self, value: ValueRef<'_>) -> Cell {
        match value {
            ValueRef::Null => Cell::Null,
            ValueRef::Integer(integer) => Cell::Integer(integer),
            ValueRef::Real(real) => Cell::Real(real),
            ValueRef::Text(bytes) | ValueRef::Blob(bytes) => {
                let start = self.made.len();
                self.made.extend_from_slice(bytes);
                // SQLite has no longer values.
                let length = bytes.len() as u32;
                let blob = matches!(value, ValueRef::Blob(_));
                Cell::Bytes { blob, made: true, length, start }
            }
        }
    }

    pub(crate) fn event(&mut self, places: &mut Places, dot: Dot) -> Event {
        Event { stamp: dot.stamp, place: places.of(&mut self.sites, dot.site) }
    }
}

/// Finds the places of sites.
#[derive(Debug, Default)]
pub(crate) struct Places {
    known: std::collections::BTreeMap<SiteId, u32>,
    /// The site that was looked up last: mostly it is asked for again.
    recent: Option<(SiteId, u32)>,
}

impl Places {
    fn of(&mut self, sites: &mut Vec<SiteId>, site: SiteId) -> u32 {
        if let Some((_, place)) = self.recent.filter(|(recent, _)| *recent == site) {
            return place;
        }
        let place = *self.known.entry(site).or_insert_with(|| {
            sites.push(site);
            sites.len() as u32 - 1
        });
        self.recent = Some((site, place));
        place
    }
}

impl Part {
    /// Columns and write events of a row's cells, if they are listed.
    pub fn list(&self, head: &Head) -> &[(u32, Event)] {
        let (start, count) = match head.listed {
            Some(start) => (start as usize, head.cells.1 as usize),
            None => (0, 0),
        };
        &self.listed[start..start + count]
    }

    pub fn ended(&self, head: &Head) -> &[(Event, Event)] {
        head.ended.map_or(&[], |at| &self.ended[at as usize])
    }

    /// Where the cell of a column lies, if the row has one.
    pub fn cell_at(&self, head: &Head, column: usize) -> Option<usize> {
        let (start, count) = (head.cells.0 as usize, head.cells.1 as usize);
        if head.listed.is_none() {
            return (column < count).then_some(start + column);
        }
        let list = self.list(head);
        let at = match list.get(column) {
            Some((listed, _)) if *listed as usize == column => column,
            _ => list.binary_search_by_key(&column, |(listed, _)| *listed as usize).ok()?,
        };
        Some(start + at)
    }

    /// Leaves out the names that no row refers to, so that no peer takes note of them.
    pub fn name_used_columns(&mut self) {
        let mut used = vec![false; self.columns.len()];
        let plain = self.heads.iter().filter(|head| head.listed.is_none());
        let first = plain.map(|head| head.cells.1 as usize).max().unwrap_or(0);
        used[..first].fill(true);
        self.listed.iter().for_each(|(column, _)| used[*column as usize] = true);
        if used.iter().all(|used| *used) {
            return;
        }
        let next = used.iter().scan(0, |next, used| {
            let place = *next;
            *next += u32::from(*used);
            Some(place)
        });
        let places: Vec<u32> = next.collect();
        self.listed.iter_mut().for_each(|(column, _)| *column = places[*column as usize]);
        let mut used = used.into_iter();
        self.columns.retain(|_| used.next().unwrap_or(false));
    }
}

impl<'p> TableRef<'p> {
    /// The table's name.
    #[must_use]
    pub fn name(self) -> &'p str {
        &self.part.name
    }

    /// Its key is an `INTEGER PRIMARY KEY`.
    #[must_use]
    pub fn integer_key(self) -> bool {
        self.part.integer_key
    }

    /// Number of its key columns.
    #[must_use]
    pub fn key_columns(self) -> usize {
        self.part.key_columns
    }

    /// Names of the columns that rows refer to by position.
    #[must_use]
    pub fn columns(self) -> &'p [String] {
        &self.part.columns
    }

    /// The rows.
    pub fn rows(self) -> impl Iterator<Item = RowRef<'p>> + Clone {
        (0..self.part.heads.len()).map(move |at| RowRef { table: self, at })
    }

    /// The values of a key column, of all rows.
    pub(crate) fn keys(self, at: usize) -> impl Iterator<Item = ValueRef<'p>> + Clone {
        let keys = self.part.keys.iter().skip(at).step_by(self.part.key_columns.max(1));
        keys.map(move |cell| self.batch.value(*cell))
    }

    /// The values of a column, of those rows that have one.
    pub(crate) fn column(self, at: usize) -> impl Iterator<Item = ValueRef<'p>> + Clone {
        let cells = self.part.heads.iter().filter_map(move |head| self.part.cell_at(head, at));
        cells.map(move |cell| self.batch.value(self.part.cells[cell]))
    }
}

impl<'p> RowRef<'p> {
    #[inline]
    fn head(self) -> &'p Head {
        &self.table.part.heads[self.at]
    }

    /// Causal length: odd alive, even dead.
    #[must_use]
    #[inline]
    pub fn length(self) -> i64 {
        self.head().length
    }

    /// Whether the row exists.
    #[must_use]
    #[inline]
    pub fn alive(self) -> bool {
        self.head().length % 2 == 1
    }

    /// Birth of the incarnation, or the delete that ended it.
    #[must_use]
    #[inline]
    pub fn birth(self) -> Dot {
        self.table.batch.dot(self.head().birth)
    }

    /// The place of the birth's site among the sites of the batch.
    pub(crate) fn birth_place(self) -> usize {
        self.head().birth.place as usize
    }

    /// Every cell of the incarnation is here.
    #[must_use]
    pub fn whole(self) -> bool {
        self.head().whole
    }

    /// Whether earlier incarnations are told of.
    #[must_use]
    pub fn has_ended(self) -> bool {
        self.head().ended.is_some()
    }

    /// The values of the key columns.
    #[inline]
    pub fn key(self) -> impl Iterator<Item = ValueRef<'p>> + Clone {
        let (TableRef { batch, part }, count) = (self.table, self.table.part.key_columns);
        let cells = part.keys[self.at * count..(self.at + 1) * count].iter();
        cells.map(move |cell| batch.value(*cell))
    }

    /// Number of cells.
    #[must_use]
    pub fn cell_count(self) -> usize {
        self.head().cells.1 as usize
    }

    /// Whether all cells were written with the birth.
    #[must_use]
    #[inline]
    pub fn is_plain(self) -> bool {
        let Event { stamp, place } = self.head().birth;
        let list = self.table.part.list(self.head()).iter();
        list.clone().all(|(_, event)| event.stamp == stamp && event.place == place)
    }

    /// One of the cells: position in the column dictionary and last write.
    #[must_use]
    #[inline]
    pub fn cell(self, at: usize) -> (usize, Dot) {
        let TableRef { batch, part } = self.table;
        match part.list(self.head()).get(at) {
            Some((column, event)) => (*column as usize, batch.dot(*event)),
            None => (at, self.birth()),
        }
    }

    /// The value of one of the cells.
    #[must_use]
    #[inline]
    pub fn value(self, at: usize) -> ValueRef<'p> {
        let TableRef { batch, part } = self.table;
        batch.value(part.cells[self.head().cells.0 as usize + at])
    }

    /// The newest stamp that this row names, except of births of earlier incarnations.
    #[must_use]
    #[inline]
    pub fn newest(self) -> Stamp {
        let head = self.head();
        let list = self.table.part.list(head).iter().map(|(_, event)| event.stamp);
        let ended = self.table.part.ended(head).iter().map(|(_, death)| death.stamp);
        list.chain(ended).fold(head.birth.stamp, Stamp::max)
    }

    /// Whether a vector covers every write event that this row names.
    #[must_use]
    #[inline]
    pub fn is_covered(self, seen: &Seen) -> bool {
        let covers = |event: &Event| seen.0[event.place as usize] >= event.stamp;
        let (part, head) = (self.table.part, self.head());
        covers(&head.birth)
            && part.list(head).iter().all(|(_, event)| covers(event))
            && part.ended(head).iter().all(|(birth, death)| covers(birth) && covers(death))
    }

    /// The same with values of its own.
    #[must_use]
    pub fn to_row(self) -> Row {
        let TableRef { batch, part } = self.table;
        let Head { length, whole, .. } = *self.head();
        let cells = (0..self.cell_count()).map(|at| {
            let (column, dot) = self.cell(at);
            (column, dot, Value::from_ref(self.value(at)))
        });
        let pairs = part.ended(self.head()).iter();
        let ended: Ended = pairs.map(|(b, d)| (batch.dot(*b), batch.dot(*d))).collect();
        let key = self.key().map(Value::from_ref).collect();
        Row { key, length, birth: self.birth(), whole, cells: cells.collect(), ended }
    }
}
