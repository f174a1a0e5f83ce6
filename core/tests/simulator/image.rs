//! What a replica's file holds, read by plain SQL and decoded independently of the store: `L`, the
//! row states with their clocks, and `T`, the application's tables.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::Connection;
use wavesync_core::ids::{Dot, SiteId, Stamp};
use wavesync_core::store::clock::read_varint;
use wavesync_core::store::key;
use wavesync_core::value::Value;
use wavesync_core::wire::bytes::Reader;
use wavesync_core::wire::rows::{Batch, CLAIM};

/// One row of `L`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub length: i64,
    pub birth: Dot,
    pub cells: BTreeMap<String, Dot>,
    /// When a rank was taken over, and which.
    pub claim: Option<(Dot, Dot)>,
    /// Births of earlier incarnations and the deletes that ended them.
    pub ended: BTreeMap<Dot, Dot>,
    /// Why it is parked, and with what values.
    pub parked: Option<(String, bool, BTreeMap<String, Value>)>,
}

impl Row {
    pub fn alive(&self) -> bool {
        self.length % 2 == 1
    }

    /// In `L` and to be seen in `T`.
    pub fn shown(&self) -> bool {
        self.alive() && self.parked.as_ref().is_none_or(|(_, in_table, _)| *in_table)
    }

    pub fn dots(&self) -> impl Iterator<Item = (Option<&String>, Dot)> {
        let cells = self.cells.iter().map(|(column, dot)| (Some(column), *dot));
        let claim = self.claim.iter().map(|(written, _)| (None, *written));
        let ended = self.ended.values().map(|death| (None, *death));
        std::iter::once((None, self.birth)).chain(cells).chain(claim).chain(ended)
    }
}

/// The columns of a row outside its key.
pub type Columns = BTreeMap<String, Value>;

/// One table.
#[derive(Clone, Debug, Default)]
pub struct Table {
    pub integer_key: bool,
    pub exists: bool,
    /// It exists in this database and is tracked.
    pub local: bool,
    pub importing: bool,
    pub rows: BTreeMap<Value, Row>,
    pub shown: BTreeMap<Value, Columns>,
    /// Keys with log rows that are not folded yet: their `T` is ahead of their `L`.
    pub unfolded: BTreeSet<Value>,
    /// Rows from clocks that are ahead: in `L`, not yet joined into `rows`.
    pub held: Vec<(Value, Row)>,
}

impl Table {
    /// Every value of an alive row, wherever it is kept.
    pub fn values(&self, key: &Value, row: &Row) -> Columns {
        let mut values = Columns::new();
        if row.shown() {
            values.extend(self.shown.get(key).cloned().unwrap_or_default());
        }
        if let Some((_, _, parked)) = &row.parked {
            values.extend(parked.clone());
        }
        values
    }
}

/// A whole replica.
#[derive(Clone, Debug, Default)]
pub struct Image {
    pub tables: BTreeMap<String, Table>,
    pub vector: BTreeMap<SiteId, Stamp>,
    /// Of each site the highest write event among the tombstones that were forgotten.
    pub collected: BTreeMap<SiteId, Stamp>,
    /// Sites of which nothing above a cap counts (rule P14).
    pub capped: Vec<SiteId>,
    /// It takes everything over anew, since it cannot tell what was deleted.
    pub stale: bool,
    pub folded: i64,
    pub hlc: i64,
}

impl Image {
    pub fn covers(&self, dot: Dot) -> bool {
        self.vector.get(&dot.site).is_some_and(|stamp| *stamp >= dot.stamp)
    }

    /// Whether it has applied, or forgotten as well, what another one has forgotten (rule P19). Held
    /// rows lower what it has applied.
    pub fn reaches(
        &self,
        collected: &BTreeMap<SiteId, Stamp>,
        is_one_event: impl Fn(Dot) -> bool,
    ) -> bool {
        let held: Vec<Dot> = self
            .tables
            .values()
            .flat_map(|table| &table.held)
            .flat_map(|(_, row)| row.dots().map(|(_, dot)| dot).collect::<Vec<_>>())
            .collect();
        collected.iter().all(|(site, stamp)| {
            let dot = Dot { stamp: *stamp, site: *site };
            let waits = held.iter().any(|held| held.site == *site && held.stamp <= *stamp);
            let forgotten = self.collected.get(site).is_some_and(|own| own >= stamp);
            let capped = self.capped.contains(site);
            (capped && forgotten) || (self.covers(dot) && !waits && is_one_event(dot))
        })
    }

    pub fn read(conn: &Connection) -> Self {
        let meta = |name: &str| -> i64 {
            conn.prepare_cached("SELECT value FROM __wavesync_meta WHERE key = ?1")
                .and_then(|mut s| s.query_row([name], |row| row.get(0)))
                .unwrap_or(0)
        };
        let sites = sites(conn);
        let mut image = Self { folded: meta("folded"), hlc: meta("hlc"), ..Self::default() };
        each(conn, "SELECT site, stamp FROM __wavesync_vector", |row| {
            image.vector.insert(sites[&integer(&row[0])], Stamp(integer(&row[1])));
        });
        each(conn, "SELECT value FROM __wavesync_meta WHERE key = 'collected'", |row| {
            let Value::Blob(bytes) = &row[0] else { panic!("what was forgotten is a blob") };
            image.collected = bytes.chunks(24).map(forgotten).collect();
        });
        // As far as the vector claims it; above a cap it claims nothing.
        each(conn, "SELECT site FROM __wavesync_cap", |row| {
            image.capped.push(sites[&integer(&row[0])]);
        });
        let (vector, capped) = (&image.vector, &image.capped);
        image.collected.retain(|site, stamp| {
            let seen = vector.get(site).copied().unwrap_or(Stamp::NONE);
            if !capped.contains(site) {
                *stamp = (*stamp).min(seen);
            }
            vector.contains_key(site)
        });
        image.stale = meta("stale") > 0;
        let mut numbers = Vec::new();
        each(
            conn,
            "SELECT num, name, integer_key, tracked, base_columns, import FROM __wavesync_table",
            |row| {
                let name = text(&row[1]).to_ascii_lowercase();
                let base = integer(&row[4]) as usize;
                numbers.push((integer(&row[0]), name.clone(), base));
                let table = Table {
                    integer_key: integer(&row[2]) == 1,
                    local: integer(&row[3]) == 1,
                    importing: row[5] != Value::Null,
                    ..Table::default()
                };
                image.tables.insert(name, table);
            },
        );
        let columns = column_names(conn);
        for (number, name, base) in &numbers {
            let table = image.tables.get_mut(name).unwrap();
            let columns = columns.get(number).map_or(&[][..], |columns| columns);
            read_clocks(conn, *number, *base, columns, &sites, table);
        }
        let names: BTreeMap<i64, String> =
            numbers.into_iter().map(|(number, name, _)| (number, name)).collect();
        image.read_parked(conn, &names, &columns);
        image.read_held(conn, &names);
        image.read_unfolded(conn, &names);
        image.read_tables(conn);
        image
    }

    fn read_parked(
        &mut self,
        conn: &Connection,
        names: &BTreeMap<i64, String>,
        columns: &BTreeMap<i64, Vec<String>>,
    ) {
        let sql = "SELECT k, kind, in_table, vals, tbl FROM __wavesync_parked";
        each(conn, sql, |row| {
            let Value::Blob(bytes) = &row[3] else { panic!("parked values are a blob") };
            let number = integer(&row[4]);
            let mut bytes = &bytes[..];
            let mut values = Columns::new();
            while !bytes.is_empty() {
                let column = read_varint(&mut bytes).unwrap() as usize;
                let value = Reader { bytes: &mut bytes }.value().unwrap();
                values.insert(columns[&number][column].clone(), value);
            }
            let table = self.tables.get_mut(&names[&number]).unwrap();
            let state = table.rows.get_mut(&row[0]).expect("a parked row has a clock");
            state.parked = Some((text(&row[1]), integer(&row[2]) == 1, values));
        });
    }

    fn read_held(&mut self, conn: &Connection, names: &BTreeMap<i64, String>) {
        each(conn, "SELECT k, row, tbl FROM __wavesync_held ORDER BY seq", |row| {
            let Value::Blob(bytes) = &row[1] else { panic!("a held row is a blob") };
            let table = self.tables.get_mut(&names[&integer(&row[2])]).unwrap();
            table.held.push((row[0].clone(), decode_held(bytes)));
        });
    }

    fn read_unfolded(&mut self, conn: &Connection, names: &BTreeMap<i64, String>) {
        let sql = format!("SELECT pk, tbl FROM __wavesync_log WHERE seq > {}", self.folded);
        each(conn, &sql, |row| {
            if let Some(name) = names.get(&integer(&row[1])) {
                self.tables.get_mut(name).unwrap().unfolded.insert(row[0].clone());
            }
        });
    }

    fn read_tables(&mut self, conn: &Connection) {
        let mut columns: BTreeMap<String, Vec<(String, i64)>> = BTreeMap::new();
        let sql = "SELECT lower(s.name), lower(c.name), c.pk
                   FROM sqlite_schema AS s JOIN pragma_table_xinfo(s.name) AS c
                   WHERE s.type = 'table' AND s.name NOT GLOB '__wavesync_*' ORDER BY s.name, c.cid";
        each(conn, sql, |row| {
            columns.entry(text(&row[0])).or_default().push((text(&row[1]), integer(&row[2])));
        });
        for (name, table) in &mut self.tables {
            let columns = columns.get(name);
            table.exists = columns.is_some();
            table.local &= table.exists;
            if let Some(columns) = columns {
                read_table(conn, name, columns, table);
            }
        }
    }
}

fn forgotten(entry: &[u8]) -> (SiteId, Stamp) {
    let stamp = entry[16..24].try_into().unwrap();
    (SiteId::from_slice(&entry[..16]).unwrap(), Stamp(i64::from_be_bytes(stamp)))
}

fn sites(conn: &Connection) -> BTreeMap<i64, SiteId> {
    let mut sites = BTreeMap::new();
    each(conn, "SELECT num, id FROM __wavesync_site", |row| {
        let Value::Blob(id) = &row[1] else { panic!("a site id is a blob") };
        sites.insert(integer(&row[0]), SiteId::from_slice(id).unwrap());
    });
    sites
}

/// By the numbers of their tables, in order of their own.
fn column_names(conn: &Connection) -> BTreeMap<i64, Vec<String>> {
    let mut names: BTreeMap<i64, Vec<String>> = BTreeMap::new();
    each(conn, "SELECT tbl, name FROM __wavesync_column ORDER BY tbl, num", |row| {
        names.entry(integer(&row[0])).or_default().push(text(&row[1]).to_ascii_lowercase());
    });
    names
}

fn read_clocks(
    conn: &Connection,
    number: i64,
    base: usize,
    columns: &[String],
    sites: &BTreeMap<i64, SiteId>,
    table: &mut Table,
) {
    let sql = format!("SELECT k, cl, stamp, site, cells FROM __wavesync_clock_{number}");
    each(conn, &sql, |row| {
        let birth = Dot { stamp: Stamp(integer(&row[2])), site: sites[&integer(&row[3])] };
        let length = integer(&row[1]);
        let mut stored = match &row[4] {
            Value::Blob(bytes) => Some(&bytes[..]),
            _ => None,
        };
        let mut ended = BTreeMap::new();
        if let (true, Some(bytes)) = (table.integer_key, &mut stored) {
            for _ in 0..read_varint(bytes).unwrap() {
                let birth = decode_dot(bytes, sites);
                ended.insert(birth, decode_dot(bytes, sites));
            }
        }
        let mut cells = (BTreeMap::new(), None);
        if length % 2 == 1 {
            cells = decode_cells(stored, base, birth, columns, sites);
        }
        let (cells, claim) = cells;
        let row_state = Row { length, birth, cells, claim, ended, parked: None };
        table.rows.insert(row[0].clone(), row_state);
    });
}

/// The layout of `cells` as `docs/STORAGE.md` gives it.
fn decode_cells(
    stored: Option<&[u8]>,
    base: usize,
    birth: Dot,
    columns: &[String],
    sites: &BTreeMap<i64, SiteId>,
) -> (BTreeMap<String, Dot>, Option<(Dot, Dot)>) {
    let born = |n: usize| (columns[n].clone(), birth);
    let Some(mut bytes) = stored else { return ((0..base).map(born).collect(), None) };
    let mut claim = None;
    let mut cells: BTreeMap<String, Dot> = match read_varint(&mut bytes).unwrap() {
        0 => (0..base).map(born).collect(),
        length => {
            let (mask, rest) = bytes.split_at(length as usize - 1);
            bytes = rest;
            (0..mask.len() * 8).filter(|n| mask[n / 8] & (1 << (n % 8)) != 0).map(born).collect()
        }
    };
    while !bytes.is_empty() {
        let column = read_varint(&mut bytes).unwrap() as usize;
        let written = decode_dot(&mut bytes, sites);
        if column == usize::from(u16::MAX) {
            claim = Some((written, decode_dot(&mut bytes, sites)));
        } else {
            cells.insert(columns[column].clone(), written);
        }
    }
    (cells, claim)
}

fn decode_dot(bytes: &mut &[u8], sites: &BTreeMap<i64, SiteId>) -> Dot {
    let (stamp, rest) = bytes.split_first_chunk::<8>().unwrap();
    *bytes = rest;
    let site = read_varint(bytes).unwrap() as i64;
    Dot { stamp: Stamp(i64::from_be_bytes(*stamp)), site: sites[&site] }
}

fn decode_held(bytes: &[u8]) -> Row {
    let batch = Batch::decode(bytes).unwrap();
    let part = &batch.tables[0];
    let held = &part.rows[0];
    let name = |at: &usize| part.columns[*at].to_ascii_lowercase();
    let cells = held.cells.iter().filter(|(at, ..)| part.columns[*at] != CLAIM);
    let claim = held.cells.iter().find(|(at, ..)| part.columns[*at] == CLAIM);
    Row {
        length: held.length,
        birth: held.birth,
        cells: cells.map(|(at, dot, _)| (name(at), *dot)).collect(),
        claim: claim.map(|(_, dot, _)| (*dot, *dot)),
        ended: held.ended.clone(),
        parked: None,
    }
}

fn read_table(conn: &Connection, name: &str, columns: &[(String, i64)], table: &mut Table) {
    each(conn, &format!("SELECT * FROM \"{name}\""), |row| {
        let mut parts: Vec<(i64, Value)> = Vec::new();
        let mut values = Columns::new();
        for ((column, part), stored) in columns.iter().zip(row) {
            if *part > 0 {
                parts.push((*part, stored.clone()));
            } else {
                values.insert(column.clone(), stored.clone());
            }
        }
        parts.sort();
        let parts: Vec<Value> = parts.into_iter().map(|(_, value)| value).collect();
        table.shown.insert(key::pack(&parts), values);
    });
}

fn each(conn: &Connection, sql: &str, mut with: impl FnMut(&[Value])) {
    let mut statement = conn.prepare_cached(sql).unwrap();
    let mut rows = statement.query([]).unwrap();
    while let Some(row) = rows.next().unwrap() {
        // Counted only now: `*` may have grown since the statement was prepared.
        let count = row.as_ref().column_count();
        let value = |at| Value::from_ref(row.get_ref(at).unwrap());
        let values: Vec<Value> = (0..count).map(value).collect();
        with(&values);
    }
}

fn integer(value: &Value) -> i64 {
    match value {
        Value::Integer(integer) => *integer,
        other => panic!("{other:?} is not an integer"),
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::Text(text) => String::from_utf8(text.clone()).unwrap(),
        other => panic!("{other:?} is not text"),
    }
}
