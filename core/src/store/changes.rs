//! The rows of `wavesync_changes`: one per written column of each row, in log order.

use rusqlite::{Connection, params};

use crate::Result;
use crate::ids::{ColumnNum, Dot, Millis, Seq, SiteId, TableNum};
use crate::merge::Ended;
use crate::store::rows::Kind;
use crate::store::span::LogEntry;
use crate::store::tables::Table;
use crate::store::{Store, Tx, claim, inbox};
use crate::value::Value;

/// One change as `wavesync_changes` shows it, and takes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// The table.
    pub table: String,
    /// The key in its stored form: the bare value, or packed text for several columns.
    pub key: Value,
    /// The column; `None` for a row without columns outside its key, and for a delete.
    pub column: Option<String>,
    /// The value; NULL for a delete.
    pub value: Value,
    /// Hybrid logical clock value of the write.
    pub stamp: i64,
    /// Local position of the row's newest change. Means nothing elsewhere.
    pub db_version: Seq,
    /// Who wrote it.
    pub site: SiteId,
    /// Causal length of the row: odd alive, even dead.
    pub length: i64,
    /// Key columns of the table; 0 for an `INTEGER PRIMARY KEY`.
    pub key_columns: usize,
    /// How many changes the row consists of; `None` if the replica does not have all of it.
    pub cells: Option<usize>,
    /// The insert that began this incarnation, or the delete that ended it.
    pub birth: Dot,
    /// Of an INTEGER key: earlier incarnations that are over.
    pub history: Ended,
}

/// Which changes are asked for. More may be given, never fewer.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// After this position.
    pub after: Seq,
    /// Up to this position.
    pub through: Option<Seq>,
    /// Of this table.
    pub table: Option<String>,
    /// By this site.
    pub site: Option<SiteId>,
}

/// Rows that one page reads from the log.
const PAGE_ROWS: usize = 500;

/// Rows whose entries are no longer in the log (rule K2), in the order of those entries.
const OLD: &str = "CREATE TABLE old(seq, tbl, k)";
/// Rows with entries that are not folded yet.
const UNFOLDED: &str = "CREATE TABLE unfolded(tbl, k, PRIMARY KEY(tbl, k)) WITHOUT ROWID";

/// Reads changes after a position, page by page. Nothing is written. Rows that were written after the
/// last fold are left out: their values are new, their stamps are not yet. They come after a later
/// position, once they are folded.
pub struct Changes {
    store: Store,
    unfolded: Unfolded,
    wanted: Wanted,
    /// A temporary database with those below the horizon, and the last one read; `None` once they are
    /// through.
    old: Option<(Connection, i64)>,
    page: std::vec::IntoIter<Change>,
    done: bool,
}

impl Changes {
    /// Reads what is wanted, through a connection that reads in one transaction as long as this
    /// lives. Between two calls no statement is left open on it.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn new(conn: Connection, wanted: Wanted) -> Result<Self> {
        let store = Store::reading(conn)?;
        let done = !store.initialised()?;
        let unfolded = Unfolded { noted: None };
        let page = Vec::new().into_iter();
        let mut changes = Self { store, unfolded, wanted, old: None, page, done };
        if !done {
            changes.note_old()?;
            changes.store.conn.flush_prepared_statement_cache();
        }
        Ok(changes)
    }

    /// Notes the rows with entries below the horizon.
    fn note_old(&mut self) -> Result<()> {
        let conn = &self.store.conn;
        let horizon = super::meta::<i64>(conn, "horizon")?.unwrap_or(0);
        if self.wanted.after.0 < horizon {
            let numbers = conn
                .prepare("SELECT num FROM __wavesync_table")?
                .query_map([], |row| row.get::<_, i64>(0))?
                .collect::<rusqlite::Result<Vec<_>>>()?;
            let mut scratch = Connection::open("")?;
            let noting = scratch.transaction()?;
            noting.execute_batch(&format!("{OLD}; CREATE TABLE met(seq, tbl, k)"))?;
            for num in numbers {
                let mut note = noting.prepare_cached("INSERT INTO met VALUES (?1, ?2, ?3)")?;
                let mut clocks = conn.prepare(&format!(
                    "SELECT seq, k FROM __wavesync_clock_{num} WHERE seq > ?1 AND seq <= ?2"
                ))?;
                let mut clocks = clocks.query([self.wanted.after.0, horizon])?;
                while let Some(clock) = clocks.next()? {
                    let key = Value::from_ref(clock.get_ref(1)?);
                    note.execute(params![clock.get::<_, i64>(0)?, num, key])?;
                }
            }
            noting
                .execute_batch("INSERT INTO old SELECT * FROM met ORDER BY seq; DROP TABLE met")?;
            noting.commit()?;
            (self.old, self.wanted.after) = (Some((scratch, 0)), Seq(horizon));
        }
        Ok(())
    }

    fn load(&mut self, now: Millis) -> Result<()> {
        let wanted = &self.wanted;
        let unfolded = &mut self.unfolded;
        let (old, sql, after) = match &self.old {
            Some((old, after)) => (
                Some(old),
                "SELECT seq, tbl, k, 0, NULL, rowid FROM old
                 WHERE rowid > ?1 AND seq <= ?2 ORDER BY rowid",
                *after,
            ),
            None => (
                None,
                "SELECT seq, tbl, pk, cols, at, seq FROM __wavesync_log WHERE seq > ?1 AND seq <=
                 (SELECT value FROM __wavesync_meta WHERE key = 'folded') AND seq <= ?2
                 ORDER BY seq",
                wanted.after.0,
            ),
        };
        let (page, reached) = self.store.read_on(now, |tx| {
            let mut statement = old.unwrap_or(tx.conn).prepare_cached(sql)?;
            let through = wanted.through.map_or(i64::MAX, |through| through.0);
            let mut entries = statement.query([after, through])?;
            let (mut page, mut reached, mut read) = (Vec::new(), None, 0);
            while read < PAGE_ROWS
                && let Some(entry) = entries.next()?
            {
                reached = Some(entry.get(5)?);
                read += 1;
                let entry = LogEntry::read(entry)?;
                let Ok(table) = tx.table(entry.table) else { continue };
                let seq = entry.seq;
                if wanted.table.as_ref().is_none_or(|name| *name == table.name) {
                    for key in tx.keys_of_entry(&table, &entry)? {
                        read += 1;
                        let shown = page.len();
                        tx.changes_of(&table, &key, seq, wanted, &mut page)?;
                        if page.len() > shown && unfolded.has(tx, entry.table, &key)? {
                            page.truncate(shown);
                        }
                    }
                }
            }
            Ok((page, reached))
        })?;
        match (reached, &mut self.old) {
            (Some(reached), Some((_, old))) => *old = reached,
            (Some(reached), None) => self.wanted.after = Seq(reached),
            (None, Some(_)) => self.old = None,
            (None, None) => self.done = true,
        }
        self.store.conn.flush_prepared_statement_cache();
        self.page = page.into_iter();
        Ok(())
    }

    /// The next change.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn next_change(&mut self, now: Millis) -> Result<Option<Change>> {
        loop {
            if let Some(change) = self.page.next() {
                return Ok(Some(change));
            }
            if self.done {
                return Ok(None);
            }
            self.load(now)?;
        }
    }
}

/// The rows that were written after the last fold, as of the last write of the connection.
struct Unfolded {
    /// A temporary database, and what the connection had changed when it was filled.
    noted: Option<(Connection, u64)>,
}

impl Unfolded {
    fn has(&mut self, tx: &mut Tx<'_>, table: TableNum, key: &Value) -> Result<bool> {
        let written = tx.conn.total_changes();
        let noted = match self.noted.take() {
            Some((noted, at)) if at == written => noted,
            _ => Self::note(tx)?,
        };
        let (noted, _) = self.noted.insert((noted, written));
        let mut row = noted.prepare_cached("SELECT 1 FROM unfolded WHERE tbl = ?1 AND k = ?2")?;
        Ok(row.exists(params![table.0, key])?)
    }

    fn note(tx: &mut Tx<'_>) -> Result<Connection> {
        let mut scratch = Connection::open("")?;
        let noting = scratch.transaction()?;
        noting.execute_batch(UNFOLDED)?;
        {
            let mut note = noting.prepare("INSERT OR IGNORE INTO unfolded VALUES (?1, ?2)")?;
            let mut entries = tx.conn.prepare(
                "SELECT seq, tbl, pk, cols, at FROM __wavesync_log
                 WHERE seq > (SELECT value FROM __wavesync_meta WHERE key = 'folded')",
            )?;
            let mut entries = entries.query([])?;
            while let Some(entry) = entries.next()? {
                let entry = LogEntry::read(entry)?;
                let Ok(table) = tx.table(entry.table) else { continue };
                for key in tx.keys_of_entry(&table, &entry)? {
                    note.execute(params![entry.table.0, key])?;
                }
            }
        }
        noting.commit()?;
        Ok(scratch)
    }
}

impl Tx<'_> {
    /// The changes of a row, if this log entry is its newest.
    fn changes_of(
        &mut self,
        table: &Table,
        key: &Value,
        seq: Seq,
        wanted: &Wanted,
        page: &mut Vec<Change>,
    ) -> Result<()> {
        let Some(row) = self.clock(table, key)?.filter(|row| row.seq == seq) else {
            return Ok(());
        };
        let clock = row.clock;
        let asked = |dot: &Dot| wanted.site.is_none_or(|site| site == dot.site);
        let change = |column, value, dot: Dot, cells| Change {
            table: table.name.clone(),
            key: key.clone(),
            column,
            value,
            stamp: dot.stamp.0,
            db_version: seq,
            site: dot.site,
            length: clock.length,
            key_columns: inbox::shown_key_columns(table),
            cells,
            birth: clock.birth,
            history: clock.ended.clone(),
        };
        if clock.cells.is_empty() {
            if asked(&clock.birth) {
                page.push(change(None, Value::Null, clock.birth, Some(0)));
            }
            return Ok(());
        }
        if !clock.cells.values().any(asked) {
            return Ok(());
        }
        let parked = self.parked(table, key)?;
        let complete = parked.is_none_or(|parked| parked.kind != Kind::Incomplete);
        let mut values = self.all_values(table, key)?;
        if values.is_empty() {
            // No longer tracked, or dropped: a row without its values would be an invented one.
            return Ok(());
        }
        values.extend(clock.claim.map(|claim| (ColumnNum::CLAIM, claim::encode(claim))));
        let held = clock.cells.keys().filter(|column| values.contains_key(column)).count();
        let cells = complete.then_some(held);
        for (column, dot) in clock.cells.iter().filter(|(_, dot)| asked(dot)) {
            if let Some(value) = values.remove(column) {
                page.push(change(inbox::cell_name(table, *column), value, *dot, cells));
            }
        }
        Ok(())
    }
}
