//! Rows of another replica's `wavesync_changes` that an application inserts here.
//!
//! They arrive cell by cell, in any order, inside a transaction of the application, where nothing
//! may be merged. So a cell is checked and posted into an internal table; the next transaction of
//! the store takes in what is complete: a row is only ever applied as a whole, or as a patch of an
//! incarnation that is here. The vector never moves (rule P7).

use std::collections::BTreeMap;

use rusqlite::{Connection, params};

use crate::ids::{ColumnNum, Dot, SiteId, Stamp};
use crate::merge::{Clock, ENDED_MAX, Ended, KeyKind, moved_key, one_incarnation};
use crate::store::changes::Change;
use crate::store::rows::Kind;
use crate::store::shape::KeyForm;
use crate::store::tables::Table;
use crate::store::{Tx, claim, key};
use crate::value::Value;
use crate::wire::rows::{Batch, CLAIM, Row, TableRows};
use crate::{Error, Result, limits};

/// Bytes of an ended incarnation in `history`: the dots of its birth and of its death.
const HISTORY_BYTES: usize = 48;

/// The internal table.
pub(super) const SCHEMA: &str = "
CREATE TABLE __wavesync_inbox(id INTEGER PRIMARY KEY, tbl TEXT NOT NULL, key_columns INTEGER NOT NULL,
  k NOT NULL, cl INTEGER NOT NULL, birth INTEGER NOT NULL, birth_site BLOB NOT NULL, history BLOB,
  cells INTEGER, cid TEXT, val, stamp INTEGER NOT NULL, site BLOB NOT NULL);";

/// Checks a change and posts it, inside whatever transaction the connection has open.
///
/// # Errors
/// [`Error::Argument`] if it could not have come out of `wavesync_changes`; nothing is posted.
pub fn post(conn: &Connection, change: &Change) -> Result<i64> {
    check(change)?;
    // Counting would take longer with every row.
    let waiting: i64 = conn
        .prepare_cached(
            "SELECT coalesce((SELECT max(id) FROM __wavesync_inbox) -
             (SELECT min(id) FROM __wavesync_inbox), 0)",
        )?
        .query_row([], |row| row.get(0))?;
    if waiting >= limits::INBOX_MAX_CELLS {
        return Err(Error::Argument(format!(
            "{waiting} inserted changes wait for the rest of their rows; insert whole rows of \
             wavesync_changes"
        )));
    }
    conn.prepare_cached(
        "INSERT INTO __wavesync_inbox(tbl, key_columns, k, cl, birth, birth_site, history, cells,
         cid, val, stamp, site) VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
    )?
    .execute(params![
        change.table,
        change.key_columns as i64,
        change.key,
        change.length,
        change.birth.stamp.0,
        change.birth.site.0.to_vec(),
        (!change.history.is_empty()).then(|| encode_history(&change.history)),
        change.cells.map(|cells| cells as i64),
        change.column,
        change.value,
        change.stamp,
        change.site.0.to_vec(),
    ])?;
    Ok(conn.last_insert_rowid())
}

fn check(change: &Change) -> Result<()> {
    let refuse =
        |what: &str| Err(Error::Argument(format!("this is no row of wavesync_changes: {what}")));
    let name = |name: &str| {
        let lower = name.to_ascii_lowercase();
        (1..=limits::NAME_MAX_BYTES).contains(&name.len())
            && !name.contains('\0')
            && !lower.starts_with("__wavesync_")
    };
    if !name(&change.table) || change.table.to_ascii_lowercase().starts_with("sqlite_") {
        return refuse("\"table\" is no name of a table");
    }
    let form = form_of(change.key_columns);
    let fits = change.key_columns <= limits::KEY_COLUMNS_MAX
        && change.key != Value::Null
        && (form != KeyForm::Rowid || matches!(change.key, Value::Integer(_)))
        && key::unpack(form, change.key_columns, &change.key)
            .is_ok_and(|parts| !parts.contains(&Value::Null));
    if !fits {
        return refuse("pk does not fit key_columns");
    }
    if !(1..=limits::CAUSAL_LENGTH_MAX).contains(&change.length) {
        return refuse("cl is out of range");
    }
    let stamps = -limits::STAMP_MS_MAX..=limits::STAMP_MAX;
    let mut dots = change.history.iter().flat_map(|(birth, death)| [birth, death]);
    if !stamps.contains(&change.stamp) || !stamps.contains(&change.birth.stamp.0) {
        return refuse("stamp or birth is out of range");
    }
    if dots.any(|dot| !stamps.contains(&dot.stamp.0))
        || (form != KeyForm::Rowid && !change.history.is_empty())
    {
        return refuse("history does not belong to such a row");
    }
    let alive = change.length % 2 == 1;
    let claims = change.column.as_deref() == Some(CLAIM);
    if let Some(column) = &change.column
        && (!alive || !(claims || name(column)))
    {
        return refuse("cid is no name of a column");
    }
    if claims && claim::decode(&change.value).is_none() {
        return refuse("val is no rank");
    }
    if change.column.is_none() && change.value != Value::Null {
        return refuse("val needs a cid");
    }
    let none = change.column.is_none();
    if change.cells.is_some_and(|cells| (cells == 0) != none || cells > limits::COLUMNS_MAX) {
        return refuse("cells does not fit cid");
    }
    Ok(())
}

fn form_of(key_columns: usize) -> KeyForm {
    match key_columns {
        0 => KeyForm::Rowid,
        1 => KeyForm::Single,
        _ => KeyForm::Composite,
    }
}

/// Ended incarnations as the bytes of the column `history`.
#[must_use]
pub fn encode_history(ended: &Ended) -> Vec<u8> {
    let dots = ended.iter().flat_map(|(birth, death)| [birth, death]);
    dots.flat_map(|dot| dot.stamp.0.to_be_bytes().into_iter().chain(dot.site.0)).collect()
}

/// Reads the column `history`; `None` if it was not written by [`encode_history`].
#[must_use]
pub fn decode_history(bytes: &[u8]) -> Option<Ended> {
    let dot = |bytes: &[u8]| {
        let (stamp, site) = bytes.split_first_chunk::<8>()?;
        Some(Dot { stamp: Stamp(i64::from_be_bytes(*stamp)), site: SiteId::from_slice(site)? })
    };
    let whole = bytes.len().is_multiple_of(HISTORY_BYTES);
    if !whole || bytes.len() > ENDED_MAX * HISTORY_BYTES {
        return None;
    }
    bytes
        .chunks(HISTORY_BYTES)
        .map(|pair| {
            let (birth, death) = pair.split_at(HISTORY_BYTES / 2);
            Some((dot(birth)?, dot(death)?))
        })
        .collect()
}

/// What was posted of one state of one row.
struct Posted {
    table: String,
    key_columns: usize,
    key: Value,
    length: i64,
    birth: Dot,
    ended: Ended,
    /// How many cells the whole row had, as far as that is known.
    whole: Option<usize>,
    /// By column: the greatest, and the entry that it came with.
    cells: BTreeMap<String, (Dot, Value, i64)>,
    /// Every entry of it.
    entries: Vec<i64>,
}

struct Entry {
    id: i64,
    whole: Option<usize>,
    column: Option<String>,
    value: Value,
    dot: Dot,
}

impl Posted {
    fn is_of(&self, other: &Self) -> bool {
        let kind = if self.key_columns == 0 { KeyKind::Integer } else { KeyKind::Natural };
        self.table.eq_ignore_ascii_case(&other.table)
            && (self.key_columns, self.length) == (other.key_columns, other.length)
            && self.key == other.key
            && (self.length % 2 == 0 || one_incarnation(kind, self.birth, other.birth))
    }

    fn alive(&self) -> bool {
        self.length % 2 == 1
    }

    fn complete(&self) -> bool {
        !self.alive() || self.whole.is_some_and(|whole| self.cells.len() >= whole)
    }

    fn take(&mut self, birth: Dot, ended: Ended, entry: Entry) {
        let later = if self.alive() { birth.precedes(&self.birth) } else { birth > self.birth };
        if later {
            self.birth = birth;
        }
        self.ended = crate::merge::join_ended(&self.ended, &ended);
        self.whole = self.whole.max(entry.whole);
        self.entries.push(entry.id);
        let Some(column) = entry.column else { return };
        let (dot, value) = (entry.dot, entry.value);
        let known = self.cells.get(&column);
        if known.is_none_or(|(had, held, _)| (&dot, &value) > (had, held)) {
            self.cells.insert(column, (dot, value, entry.id));
        }
    }

    fn row(&self, columns: &[String]) -> Result<Row> {
        let cells = self.cells.iter().filter_map(|(column, (dot, value, _))| {
            let at = columns.iter().position(|name| name == column)?;
            Some((at, *dot, value.clone()))
        });
        Ok(Row {
            key: key::unpack(form_of(self.key_columns), self.key_columns, &self.key)?,
            length: self.length,
            birth: self.birth,
            whole: self.complete(),
            cells: cells.collect(),
            ended: self.ended.clone(),
        })
    }
}

impl Tx<'_> {
    /// Takes in what was posted and is complete. What is wrong with a row of it is told and
    /// forgotten: it must not stop this replica.
    pub(super) fn take_posted(&mut self) -> Result<()> {
        let last: Option<i64> = self
            .conn
            .prepare_cached("SELECT max(id) FROM __wavesync_inbox")?
            .query_row([], |row| row.get(0))?;
        let state = (last, self.cache.read_at);
        if last.is_none() || self.cache.posted == Some(state) {
            return Ok(());
        }
        let mut ready: Vec<Posted> = Vec::new();
        for posted in self.posted_rows()? {
            match self.usable(&posted)? {
                Some(true) => ready.push(posted),
                Some(false) => self.forget_posted(&posted.entries)?,
                None => {
                    let kept: Vec<i64> = posted.cells.values().map(|(_, _, id)| *id).collect();
                    let stale: Vec<i64> =
                        posted.entries.iter().copied().filter(|id| !kept.contains(id)).collect();
                    self.forget_posted(&stale)?;
                }
            }
            if ready.len() >= limits::CHUNK_MAX_ROWS {
                self.apply_posted(std::mem::take(&mut ready))?;
            }
        }
        self.apply_posted(ready)?;
        // What is left waits for more, so it need not be looked at again before something came.
        let left = self
            .conn
            .prepare_cached("SELECT max(id) FROM __wavesync_inbox")?
            .query_row([], |row| row.get(0))?;
        self.cache.posted = Some((left, self.cache.read_at));
        Ok(())
    }

    /// Everything that was posted, by row.
    fn posted_rows(&self) -> Result<Vec<Posted>> {
        let mut statement = self.conn.prepare_cached(
            "SELECT id, tbl, key_columns, k, cl, birth, birth_site, history, cells, cid, val, stamp,
             site FROM __wavesync_inbox ORDER BY tbl COLLATE NOCASE, key_columns, k, cl, birth, id",
        )?;
        let mut found = statement.query([])?;
        let mut rows: Vec<Posted> = Vec::new();
        while let Some(row) = found.next()? {
            let site = |bytes: Vec<u8>| SiteId::from_slice(&bytes).unwrap_or(SiteId([0; 16]));
            let birth = Dot { stamp: Stamp(row.get(5)?), site: site(row.get(6)?) };
            let history: Option<Vec<u8>> = row.get(7)?;
            let ended = history.as_deref().and_then(decode_history).unwrap_or_default();
            let whole: Option<i64> = row.get(8)?;
            let entry = Entry {
                id: row.get(0)?,
                whole: whole.and_then(|whole| usize::try_from(whole).ok()),
                column: row.get(9)?,
                value: Value::from_ref(row.get_ref(10)?),
                dot: Dot { stamp: Stamp(row.get(11)?), site: site(row.get(12)?) },
            };
            let fresh = Posted {
                table: row.get(1)?,
                key_columns: usize::try_from(row.get::<_, i64>(2)?).unwrap_or(0),
                key: Value::from_ref(row.get_ref(3)?),
                length: row.get(4)?,
                birth,
                ended: Ended::new(),
                whole: None,
                cells: BTreeMap::new(),
                entries: Vec::new(),
            };
            // Rows of one key stand together; an INTEGER key may have several incarnations.
            let near = rows.iter_mut().rev().take_while(|other| other.key == fresh.key);
            match near.into_iter().find(|other| other.is_of(&fresh)) {
                Some(other) => other.take(birth, ended, entry),
                None => {
                    let mut fresh = fresh;
                    fresh.take(birth, ended, entry);
                    rows.push(fresh);
                }
            }
        }
        Ok(rows)
    }

    /// Whether a row can be applied now; `None` if it has to wait for the rest of it.
    fn usable(&mut self, posted: &Posted) -> Result<Option<bool>> {
        if posted.complete() || posted.whole.is_none() {
            return Ok(Some(true));
        }
        let (integer, columns) = (posted.key_columns == 0, posted.key_columns.max(1));
        let Some(table) = self.table_on_wire(&posted.table, integer, columns)? else {
            return Ok(None);
        };
        let clock = self.clock(&table, &posted.key)?.map(|row| row.clock);
        let Some(clock) = clock else { return Ok(None) };
        let over = match table.kind {
            KeyKind::Natural => clock.length > posted.length,
            KeyKind::Integer => clock.ended.contains_key(&posted.birth),
        };
        if over {
            return Ok(Some(false));
        }
        // A row that moved is found where it went.
        if let (KeyKind::Integer, Value::Integer(key)) = (table.kind, &posted.key) {
            let to = Value::Integer(moved_key(*key, posted.birth));
            if self.clock(&table, &to)?.is_some() {
                return Ok(Some(true));
            }
        }
        let here = self.holds_incarnation(&table, &posted.key, &clock, posted)?;
        Ok(here.then_some(true))
    }

    fn holds_incarnation(
        &mut self,
        table: &Table,
        key: &Value,
        clock: &Clock,
        posted: &Posted,
    ) -> Result<bool> {
        if clock.length != posted.length || !one_incarnation(table.kind, clock.birth, posted.birth)
        {
            return Ok(false);
        }
        Ok(self.parked(table, key)?.is_none_or(|parked| parked.kind != Kind::Incomplete))
    }

    fn apply_posted(&mut self, posted: Vec<Posted>) -> Result<()> {
        if posted.is_empty() {
            return Ok(());
        }
        let entries: Vec<i64> = posted.iter().flat_map(|row| row.entries.clone()).collect();
        let mut tables: Vec<TableRows> = Vec::new();
        for row in &posted {
            let same = |table: &TableRows| {
                table.name.eq_ignore_ascii_case(&row.table)
                    && table.integer_key == (row.key_columns == 0)
                    && table.key_columns == row.key_columns.max(1)
            };
            let at = tables.iter().position(same).unwrap_or_else(|| {
                tables.push(TableRows {
                    name: row.table.clone(),
                    integer_key: row.key_columns == 0,
                    key_columns: row.key_columns.max(1),
                    columns: Vec::new(),
                    rows: Vec::new(),
                });
                tables.len() - 1
            });
            for column in row.cells.keys() {
                if !tables[at].columns.contains(column) {
                    tables[at].columns.push(column.clone());
                }
            }
            let columns = std::mem::take(&mut tables[at].columns);
            tables[at].rows.push(row.row(&columns)?);
            tables[at].columns = columns;
        }
        self.conn.execute_batch("SAVEPOINT wavesync_posted")?;
        let applied = self.apply_from_outside(&Batch { tables });
        match applied {
            Err(Error::Protocol(reason) | Error::Argument(reason)) => {
                super::end_savepoint(self.conn, "wavesync_posted", true, Ok(()))?;
                self.cache.schema_version = None;
                self.refresh_schema()?;
                self.note(
                    "changes_refused",
                    format!(
                        "{} rows inserted into wavesync_changes are refused: {reason}",
                        posted.len()
                    ),
                    "read them again from the wavesync_changes of a member",
                );
            }
            applied => {
                super::end_savepoint(self.conn, "wavesync_posted", false, applied)?;
            }
        }
        self.forget_posted(&entries)
    }

    fn forget_posted(&self, entries: &[i64]) -> Result<()> {
        let mut delete = self.conn.prepare_cached("DELETE FROM __wavesync_inbox WHERE id = ?1")?;
        entries.iter().try_for_each(|id| delete.execute([id]).map(|_| ()))?;
        Ok(())
    }
}

/// Key columns as `wavesync_changes` shows them: 0 for an `INTEGER PRIMARY KEY`.
#[must_use]
pub(super) fn shown_key_columns(table: &Table) -> usize {
    if table.kind == KeyKind::Integer { 0 } else { table.key_columns }
}

/// The name under which a column's cell travels.
pub(super) fn cell_name(table: &Table, column: ColumnNum) -> Option<String> {
    if column == ColumnNum::CLAIM {
        return Some(CLAIM.into());
    }
    table.column(column).map(|column| column.name.clone())
}
