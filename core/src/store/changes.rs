//! The rows of `wavesync_changes`: one per written column of each row, in log order.

use rusqlite::Connection;

use crate::Result;
use crate::ids::{ColumnNum, Dot, Millis, Seq, SiteId, TableNum};
use crate::merge::Ended;
use crate::store::rows::Kind;
use crate::store::tables::Table;
use crate::store::{Store, Tx, claim, inbox, key};
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
const PAGE_ROWS: i64 = 500;

/// Reads changes after a position, page by page, from a connection of its own.
pub struct Changes {
    store: Store,
    wanted: Wanted,
    page: std::vec::IntoIter<Change>,
    done: bool,
}

impl Changes {
    /// Reads what is wanted. The connection must not be shared. Nothing is written: what an
    /// engine has not folded yet is not shown.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn new(conn: Connection, wanted: Wanted) -> Result<Self> {
        let store = Store::open(conn)?;
        let done = !store.initialised()?;
        Ok(Self { store, wanted, page: Vec::new().into_iter(), done })
    }

    fn load(&mut self, now: Millis) -> Result<()> {
        let wanted = &self.wanted;
        let (page, reached) = self.store.read(now, |tx| {
            let mut page = Vec::new();
            let mut statement = tx.conn.prepare_cached(
                "SELECT seq, tbl, pk FROM __wavesync_log WHERE seq > ?1 AND seq <=
                 (SELECT value FROM __wavesync_meta WHERE key = 'folded') AND seq <= ?3
                 ORDER BY seq LIMIT ?2",
            )?;
            let through = wanted.through.map_or(i64::MAX, |through| through.0);
            let entries = statement
                .query_map([wanted.after.0, PAGE_ROWS, through], |row| {
                    Ok((Seq(row.get(0)?), TableNum(row.get(1)?), Value::from_ref(row.get_ref(2)?)))
                })?
                .collect::<rusqlite::Result<Vec<_>>>()?;
            let reached = entries.last().map(|(seq, _, _)| *seq);
            for (seq, num, stored) in entries {
                let Ok(table) = tx.table(num) else { continue };
                let asked = wanted.table.as_ref().is_none_or(|name| *name == table.name);
                if stored == Value::Null || !asked {
                    continue;
                }
                tx.changes_of(&table, stored, seq, wanted, &mut page)?;
            }
            Ok((page, reached))
        })?;
        match reached {
            Some(reached) => self.wanted.after = reached,
            None => self.done = true,
        }
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

impl Tx<'_> {
    /// The changes of a row, if this log entry is its newest.
    fn changes_of(
        &mut self,
        table: &Table,
        stored: Value,
        seq: Seq,
        wanted: &Wanted,
        page: &mut Vec<Change>,
    ) -> Result<()> {
        let key = key::canonical(table.form, table.key_columns, stored)?;
        let Some(row) = self.clock(table, &key)?.filter(|row| row.seq == seq) else {
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
        let parked = self.parked(table, &key)?;
        let complete = parked.is_none_or(|parked| parked.kind != Kind::Incomplete);
        let mut values = self.all_values(table, &key)?;
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
