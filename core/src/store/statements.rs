//! The SQL of one table: written once per schema version, prepared when it is used.

use std::cell::OnceCell;

use crate::Result;
use crate::ids::TableNum;
use crate::limits;
use crate::store::shape::{KeyForm, Shape};
use crate::store::sql::{ident, ident_list};
use crate::store::tables::Column;
use crate::store::{bulk, clock, sql};

/// SQL texts for one table, written once per schema version.
#[derive(Clone, Debug, Default)]
pub struct Statements {
    /// Clock by key: cl, seq, stamp, site, cells.
    pub clock_select: String,
    /// Keys in rising order, and each row's newest entry.
    pub keys_first: String,
    /// The same after a key.
    pub keys_after: String,
    /// How many states there are after a key, or at all if it is NULL; counted up to a limit.
    pub count_after: String,
    /// Keys with a state from one key to another.
    pub keys_between: String,
    /// The same, of rows whose newest entry is a certain one.
    pub keys_of_span: String,
    /// Of these rows: lowest and highest site of their births, newest birth, number of rows and of those
    /// with cells that are not as old as they are.
    pub extent_of_span: String,
    /// Of those whose cells are as old as they are: site, newest birth and number of rows.
    pub births_of_span: String,
    /// Keys of the others.
    pub cells_of_span: String,
    /// The clock of a new row.
    pub clock_insert: String,
    clock_head: String,
    clock_insert_many: OnceCell<String>,
    clock_insert_alike: OnceCell<String>,
    /// Of rows with entries above a position by rising keys: k, cl, stamp, site, whether `cells` is
    /// empty and whether the row stands here, and the row's local columns; empty if clock and row
    /// cannot be joined.
    pub rows_first: String,
    /// The same after a key.
    pub rows_after: String,
    /// By key cl, stamp, site and cells, and the row's local columns, where the row stands here; empty
    /// if clock and row cannot be joined.
    pub row_known: String,
    /// Newest entry and cells of a clock by key.
    pub clock_update: String,
    /// Clock by key: insert or replace all of it.
    pub clock_upsert: String,
    /// The values of the local columns by key.
    pub row_select: String,
    /// Delete by key.
    pub row_delete: String,
    /// Insert of the key and all local columns.
    pub row_insert: String,
    row_head: String,
    row_insert_many: OnceCell<String>,
    /// How many rows one statement can insert.
    pub row_many: usize,
    /// Values of one row.
    width: usize,
}

/// The long ones are written when they are first used: most tables never need them.
impl Statements {
    /// The clocks of [`bulk::INSERT_ROWS`] new rows.
    pub fn clock_insert_many(&self) -> &str {
        let (head, rows) = (&self.clock_head, bulk::INSERT_ROWS);
        self.clock_insert_many
            .get_or_init(|| format!("{head}{}", sql::tuples(clock::INSERT_WIDTH, rows)))
    }

    /// The clocks of [`bulk::INSERT_ROWS`] new rows that have causal length, entry and site in common
    /// (the first parameters), and no cells; then of each its key and stamp.
    pub fn clock_insert_alike(&self) -> &str {
        let tuple = |at| format!("(?{}, ?1, ?2, ?{}, ?3, NULL)", 4 + 2 * at, 5 + 2 * at);
        self.clock_insert_alike.get_or_init(|| {
            let tuples: Vec<String> = (0..bulk::INSERT_ROWS).map(tuple).collect();
            format!("{}{}", self.clock_head, tuples.join(", "))
        })
    }

    /// Insert of `row_many` rows, each the key and all local columns.
    pub fn row_insert_many(&self) -> &str {
        let (head, rows) = (&self.row_head, self.row_many);
        self.row_insert_many.get_or_init(|| format!("{head}{}", sql::tuples(self.width, rows)))
    }
}

pub(super) fn statements(
    num: TableNum,
    shape: Option<&Shape>,
    columns: &[Column],
) -> Result<Statements> {
    // The clock is found by an equal key and takes the bytes of the newest.
    let differs = |shape: &Shape| shape.key.iter().any(|column| column.classes_differ);
    let single = shape.filter(|shape| shape.form == KeyForm::Single);
    let key = if single.is_some_and(differs) { "k = excluded.k, " } else { "" };
    let clocks = format!("__wavesync_clock_{}", num.0);
    let clock_head = clock::insert(&clocks);
    let mut statements = Statements {
        clock_select: format!("SELECT cl, seq, stamp, site, cells FROM {clocks} WHERE k = ?1"),
        keys_first: format!("SELECT k, seq FROM {clocks} ORDER BY k"),
        keys_after: format!("SELECT k, seq FROM {clocks} WHERE k > ?1 ORDER BY k"),
        count_after: format!(
            "SELECT CASE WHEN ?1 IS NULL
             THEN (SELECT count(*) FROM (SELECT 1 FROM {clocks} LIMIT ?2))
             ELSE (SELECT count(*) FROM (SELECT 1 FROM {clocks} WHERE k > ?1 LIMIT ?2)) END"
        ),
        keys_between: format!("SELECT k FROM {clocks} WHERE k >= ?1 AND k <= ?2 ORDER BY k"),
        keys_of_span: format!(
            "SELECT k FROM {clocks} WHERE k >= ?1 AND k <= ?2 AND seq = ?3 ORDER BY k"
        ),
        extent_of_span: format!(
            "SELECT min(site), max(site), max(stamp), count(*), count(cells) FROM {clocks}
             WHERE k >= ?1 AND k <= ?2 AND seq = ?3"
        ),
        births_of_span: format!(
            "SELECT site, max(stamp), count(*) FROM {clocks}
             WHERE k >= ?1 AND k <= ?2 AND seq = ?3 AND cells IS NULL GROUP BY site"
        ),
        cells_of_span: format!(
            "SELECT k FROM {clocks} WHERE k >= ?1 AND k <= ?2 AND seq = ?3 AND cells IS NOT NULL"
        ),
        clock_update: format!("UPDATE {clocks} SET seq = ?2, cells = ?3 WHERE k = ?1"),
        clock_insert: format!("{clock_head}{}", sql::tuples(clock::INSERT_WIDTH, 1)),
        clock_head,
        clock_upsert: format!(
            "INSERT INTO {clocks}(k, cl, seq, stamp, site, cells) VALUES(?1, ?2, ?3, ?4, ?5, ?6)
             ON CONFLICT(k) DO UPDATE SET {key}cl = excluded.cl, seq = excluded.seq,
             stamp = excluded.stamp, site = excluded.site, cells = excluded.cells"
        ),
        ..Statements::default()
    };
    let Some(shape) = shape else { return Ok(statements) };
    let table = ident(&shape.name)?;
    let keys = shape.key.len();
    let narrow = columns.len() <= limits::JOINED_MAX_COLUMNS;
    if let ([key], true) = (&shape.key[..], narrow && shape.form != KeyForm::Composite) {
        let listed: Result<Vec<String>> = columns
            .iter()
            .filter(|column| column.local.is_some())
            .map(|column| Ok(format!(", t.{}", ident(&column.name)?)))
            .collect();
        let listed = listed?;
        let joined = format!(
            "SELECT c.k, c.cl, c.stamp, c.site, c.cells IS NULL, t.{} IS NOT NULL{}
             FROM {clocks} AS c LEFT JOIN main.{table} AS t ON {} WHERE",
            ident(&key.name)?,
            listed.concat(),
            shape.key_equals("t.", |_| "c.k".into())?
        );
        statements.rows_first = format!("{joined} c.seq > ?1 ORDER BY c.k");
        statements.rows_after = format!("{joined} c.k > ?2 AND c.seq > ?1 ORDER BY c.k");
        statements.row_known = format!(
            "SELECT c.cl, c.stamp, c.site, c.cells{} FROM {clocks} AS c CROSS JOIN main.{table} AS t
             ON {} WHERE c.k = ?1",
            listed.concat(),
            shape.key_equals("t.", |_| "c.k".into())?
        );
    }
    let matches = shape.key_matches(1)?;
    let locals: Vec<&str> = columns
        .iter()
        .filter(|column| column.local.is_some())
        .map(|column| column.name.as_str())
        .collect();
    let listed = ident_list("", locals.iter().copied())?;
    let selected = if locals.is_empty() { "1" } else { &listed };
    let named =
        ident_list("", shape.key.iter().map(|c| c.name.as_str()).chain(locals.iter().copied()))?;
    statements.row_select = format!("SELECT {selected} FROM main.{table} WHERE {matches}");
    statements.row_delete = format!("DELETE FROM main.{table} WHERE {matches}");
    let width = keys + locals.len();
    statements.row_head = format!("{}{table}({named}) VALUES", shape.insert_verb());
    statements.row_insert = format!("{}{}", statements.row_head, sql::tuples(width, 1));
    statements.row_many = bulk::INSERT_ROWS.min(limits::SQL_PARAMETERS_MAX / width).max(1);
    statements.width = width;
    Ok(statements)
}
