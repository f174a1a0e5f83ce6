//! Eponymous virtual tables through rusqlite: the planner's part, the cursor, and inserts.
//!
//! rusqlite's callbacks do not stop panics, so each of them runs inside `guarded` here.

use super::panic::{guarded, release};
use super::{Host, SqlError};
use crate::table::{Rows, SeekOperator, SeekRange, SqlTable, TableContext};
use rusqlite::ffi::{sqlite3, sqlite3_vtab, sqlite3_vtab_cursor};
use rusqlite::types::ValueRef;
use rusqlite::vtab::{
    Context, CreateVTab, Filters, IndexConstraintOp, IndexInfo, Inserts, Module, TransactionVTab,
    UpdateVTab, Updates, VTab, VTabConfig, VTabConnection, VTabCursor, VTabKind,
};
use rusqlite::{Connection, Error, Result};
use std::borrow::Cow;
use std::ffi::{CStr, CString, c_int};
use std::hash::{Hash, Hasher};
use wavesync_core::value::Value;

/// What the planner is told about a scan of everything, of a range, of one value.
const ROWS_OF_ALL: i64 = 1_000_000;
const ROWS_OF_RANGE: i64 = 1_000;
const ROWS_OF_ONE: i64 = 1;

/// Makes `table` available on the handle, to top-level SQL only.
pub(super) fn register(host: &Connection, table: &'static SqlTable) -> Result<(), SqlError> {
    let read_only = &const { Module::<Table>::eponymous_only_module() };
    let writable = &const { Module::<Table>::update_module_with_tx() };
    let module = if table.insert.is_some() { writable } else { read_only };
    host.create_module(table.name, module, Some(table)).map_err(|error| {
        SqlError::new(format!("wavesync: SQLite refused to register {}: {error}", table.name))
    })
}

/// One table on one handle. SQLite sees the first field only.
#[repr(C)]
struct Table {
    base: sqlite3_vtab,
    host: *mut sqlite3,
    table: &'static SqlTable,
}

// SAFETY: `#[repr(C)]` with `sqlite3_vtab` first, as the trait demands.
unsafe impl VTab<'_> for Table {
    type Aux = &'static SqlTable;
    type Cursor = Cursor;

    fn connect(
        db: &mut VTabConnection,
        aux: Option<&Self::Aux>,
        _module_name: &[u8],
        _database_name: &[u8],
        _table_name: &[u8],
        _args: &[&[u8]],
    ) -> Result<(Cow<'static, CStr>, Self)> {
        guarded("connecting a table", || {
            let table: &'static SqlTable =
                aux.ok_or_else(|| SqlError::new("wavesync: a table lost its definition"))?;
            db.config(VTabConfig::DirectOnly)?;
            let declaration = CString::new(table.declaration())
                .map_err(|_| SqlError::new("wavesync: a column name contains a NUL byte"))?;
            // SAFETY: only kept to be passed to `Host::new` in callbacks of this table, all of
            // which SQLite makes while the handle is open.
            let host = unsafe { db.handle() };
            let this = Self { base: sqlite3_vtab::default(), host, table };
            Ok((Cow::Owned(declaration), this))
        })
        .map_err(to_sqlite)
    }

    fn best_index(&self, info: &mut IndexInfo) -> Result<bool> {
        guarded(self.table.name, || {
            plan(self.table, info);
            Ok(true)
        })
        .map_err(to_sqlite)
    }

    fn open(&mut self) -> Result<Cursor> {
        Ok(Cursor {
            base: sqlite3_vtab_cursor::default(),
            host: self.host,
            table: self.table,
            rows: None,
            current: None,
        })
    }
}

impl CreateVTab<'_> for Table {
    const KIND: VTabKind = VTabKind::EponymousOnly;
}

impl UpdateVTab<'_> for Table {
    fn delete(&mut self, _: ValueRef<'_>) -> Result<()> {
        Err(self.insert_only("DELETE"))
    }

    fn insert(&mut self, args: &Inserts<'_>) -> Result<i64> {
        guarded(self.table.name, || {
            let insert = self
                .table
                .insert
                .ok_or_else(|| SqlError::new("wavesync: the table is read-only"))?;
            // The first two values are the old and the new rowid.
            let row: Vec<Value> = args.iter().skip(2).map(Value::from_ref).collect();
            // SAFETY: SQLite is running an INSERT on this open handle, on this thread.
            let host = unsafe { Host::new(self.host) };
            insert(&TableContext::new(host, SeekRange::default()), &row)
        })
        .map_err(to_sqlite)
    }

    fn update(&mut self, _: &Updates<'_>) -> Result<()> {
        Err(self.insert_only("UPDATE"))
    }
}

impl TransactionVTab<'_> for Table {
    fn commit(&mut self) -> Result<()> {
        let Some(committed) = self.table.committed else { return Ok(()) };
        // SQLite does not look at what this returns: the commit has happened.
        guarded(self.table.name, || {
            // SAFETY: SQLite is ending a transaction of this open handle, on this thread.
            let host = unsafe { Host::new(self.host) };
            committed(&TableContext::new(host, SeekRange::default()));
            Ok(())
        })
        .map_err(to_sqlite)
    }
}

impl Table {
    fn insert_only(&self, refused: &str) -> Error {
        to_sqlite(SqlError::new(format!(
            "wavesync: {} takes INSERT only, not {refused}",
            self.table.name
        )))
    }
}

/// Tells the planner which comparisons the scan can use, and what it costs.
fn plan(table: &SqlTable, info: &mut IndexInfo) {
    let seek = table.seek_column().and_then(|index| c_int::try_from(index).ok());
    let mut operators = String::new();
    let mut arguments = 0;
    let count = info.constraints().count();
    // A scan compares bytes.
    let is_binary = |at| info.collation(at).is_ok_and(|name| name.eq_ignore_ascii_case("binary"));
    let by_bytes: Vec<bool> = (0..count).map(is_binary).collect();
    for ((constraint, mut usage), by_bytes) in info.constraints_and_usages().zip(by_bytes) {
        if !constraint.is_usable() {
            continue;
        }
        let operator = operator_of(&constraint.operator());
        let letter = if Some(constraint.column()) == seek {
            operator.map(SeekOperator::letter)
        } else {
            let is_equal = by_bytes && operator == Some(SeekOperator::Equal);
            filter_letter(table, constraint.column()).filter(|_| is_equal)
        };
        if let Some(letter) = letter {
            arguments += 1;
            usage.set_argv_index(arguments);
            // SQLite checks each row again; the scan may give more than asked for.
            usage.set_omit(false);
            operators.push(letter);
        }
    }
    let ascending = {
        let mut orders = info.order_bys();
        let first =
            orders.next().is_some_and(|by| Some(by.column()) == seek && !by.is_order_by_desc());
        first && orders.next().is_none()
    };
    info.set_order_by_consumed(ascending);
    let one = operators.contains(SeekOperator::Equal.letter());
    cost(
        info,
        if one {
            ROWS_OF_ONE
        } else if arguments > 0 {
            ROWS_OF_RANGE
        } else {
            ROWS_OF_ALL
        },
    );
    info.set_idx_str(&operators);
}

/// The digit that stands for a column to filter by in the index string of a plan.
fn filter_letter(table: &SqlTable, column: c_int) -> Option<char> {
    let column = usize::try_from(column).ok()?;
    let at = table.filter_columns().position(|filter| filter == column)?;
    char::from_digit(u32::try_from(at).ok()?, 10)
}

fn cost(info: &mut IndexInfo, rows: i64) {
    info.set_estimated_rows(rows);
    info.set_estimated_cost(rows as f64);
}

fn operator_of(operator: &IndexConstraintOp) -> Option<SeekOperator> {
    match operator {
        IndexConstraintOp::SQLITE_INDEX_CONSTRAINT_EQ => Some(SeekOperator::Equal),
        IndexConstraintOp::SQLITE_INDEX_CONSTRAINT_GT => Some(SeekOperator::Greater),
        IndexConstraintOp::SQLITE_INDEX_CONSTRAINT_GE => Some(SeekOperator::GreaterOrEqual),
        IndexConstraintOp::SQLITE_INDEX_CONSTRAINT_LT => Some(SeekOperator::Less),
        IndexConstraintOp::SQLITE_INDEX_CONSTRAINT_LE => Some(SeekOperator::LessOrEqual),
        _ => None,
    }
}

/// One scan. SQLite sees the first field only.
#[repr(C)]
struct Cursor {
    base: sqlite3_vtab_cursor,
    host: *mut sqlite3,
    table: &'static SqlTable,
    rows: Option<Rows>,
    current: Option<Vec<Value>>,
}

impl Cursor {
    /// Moves to the next row. After an error or a panic there is none.
    fn advance(&mut self) -> Result<()> {
        self.current = None;
        let Some(mut rows) = self.rows.take() else { return Ok(()) };
        let width = self.table.columns.len();
        let name = self.table.name;
        let next = guarded(name, || {
            let next = rows.next();
            match next {
                Some(Ok(row)) if row.len() != width => Err(SqlError::new(format!(
                    "wavesync: internal error in {name}: a row of {} values for {width} columns. \
                     Please report it.",
                    row.len()
                ))),
                Some(row) => row.map(Some),
                None => Ok(None),
            }
        });
        match next {
            Ok(Some(row)) => {
                self.current = Some(row);
                self.rows = Some(rows);
                Ok(())
            }
            Ok(None) => {
                release(rows);
                Ok(())
            }
            Err(error) => {
                release(rows);
                Err(to_sqlite(error))
            }
        }
    }

    fn start(&mut self, operators: &str, args: &Filters<'_>) -> Result<Option<Rows>, SqlError> {
        let mut range = SeekRange::default();
        for (index, letter) in operators.chars().enumerate().take(args.len()) {
            let Some(value) = args.iter().nth(index).map(Value::from_ref) else { continue };
            if let Some(operator) = SeekOperator::from_letter(letter) {
                range.narrow(operator, &value);
            } else if let Some(column) = letter
                .to_digit(10)
                .and_then(|at| self.table.filter_columns().nth(usize::try_from(at).ok()?))
            {
                range.filter(column, &value);
            }
        }
        if range.empty {
            return Ok(None);
        }
        // SAFETY: SQLite is running a statement on this open handle, on this thread.
        let host = unsafe { Host::new(self.host) };
        (self.table.rows)(&TableContext::new(host, range)).map(Some)
    }
}

impl Drop for Cursor {
    fn drop(&mut self) {
        release(self.rows.take());
    }
}

// SAFETY: `#[repr(C)]` with `sqlite3_vtab_cursor` first, as the trait demands.
unsafe impl VTabCursor for Cursor {
    fn filter(&mut self, _: c_int, operators: Option<&str>, args: &Filters<'_>) -> Result<()> {
        release(self.rows.take());
        self.current = None;
        let name = self.table.name;
        self.rows =
            guarded(name, || self.start(operators.unwrap_or(""), args)).map_err(to_sqlite)?;
        self.advance()
    }

    fn next(&mut self) -> Result<()> {
        self.advance()
    }

    fn eof(&self) -> bool {
        self.current.is_none()
    }

    fn column(&self, context: &mut Context, index: c_int) -> Result<()> {
        let value = usize::try_from(index)
            .ok()
            .and_then(|index| self.current.as_ref().and_then(|row| row.get(index)));
        match value {
            Some(value) => context.set_result(value),
            None => Ok(()),
        }
    }

    /// SQLite takes rows of two scans of one statement for the same by this: so it follows from what is in
    /// the row, not from where the scan met it.
    fn rowid(&self) -> Result<i64> {
        let mut hasher = std::hash::DefaultHasher::new();
        for value in self.current.iter().flatten() {
            match value {
                Value::Null => hasher.write_u8(0),
                Value::Integer(integer) => (1u8, integer).hash(&mut hasher),
                Value::Real(real) => (2u8, real.to_bits()).hash(&mut hasher),
                Value::Text(text) => (3u8, text).hash(&mut hasher),
                Value::Blob(blob) => (4u8, blob).hash(&mut hasher),
            }
        }
        Ok(hasher.finish().cast_signed())
    }
}

fn to_sqlite(error: SqlError) -> Error {
    Error::ModuleError(error.message)
}
