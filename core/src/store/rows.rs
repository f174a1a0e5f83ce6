//! The rows themselves: the application's table, and the parked store for what is not in it.
//!
//! `T`, the application's table, is a function of `L`, the set of all row states. A row of `L`
//! that cannot be in `T` now is *parked*: kept with its values and the reason, and still served.

use std::collections::BTreeMap;

use rusqlite::{OptionalExtension, params, params_from_iter};

use crate::ids::ColumnNum;
use crate::mutants::{self, Mutant};
use crate::store::Tx;
use crate::store::clock::{read_varint, write_varint};
use crate::store::sql::{ident, ident_list, parameters};
use crate::store::tables::Table;
use crate::store::triggers::Wanted;
use crate::value::Value;
use crate::wire::bytes::{Reader, write_value};
use crate::{Error, Result};

/// Values by column number.
pub type Values = BTreeMap<ColumnNum, Value>;

/// Why a row, or some of its columns, is not in the application's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The table does not exist here, or is not tracked.
    UnknownTable,
    /// The row is in the table, but some of its columns do not exist here.
    UnknownColumn,
    /// Only a part of the row has arrived so far.
    Incomplete,
    /// A UNIQUE constraint or the key itself.
    Unique,
    /// A CHECK constraint or another rule of the table.
    Check,
    /// A NOT NULL constraint.
    NotNull,
    /// A FOREIGN KEY constraint.
    ForeignKey,
    /// A trigger of the application refused it.
    Trigger,
    /// The row is in the table, but shows other values in some columns: their parent is missing.
    Overlay,
}

impl Kind {
    /// The word in `wavesync_conflicts` and in the parked store.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::UnknownTable => "unknown_table",
            Self::UnknownColumn => "unknown_column",
            Self::Incomplete => "incomplete",
            Self::Unique => "unique",
            Self::Check => "check",
            Self::NotNull => "not_null",
            Self::ForeignKey => "foreign_key",
            Self::Trigger => "trigger",
            Self::Overlay => "overlay",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        [
            Self::UnknownTable,
            Self::UnknownColumn,
            Self::Incomplete,
            Self::Unique,
            Self::Check,
            Self::NotNull,
            Self::ForeignKey,
            Self::Trigger,
            Self::Overlay,
        ]
        .into_iter()
        .find(|kind| kind.name() == name)
    }

    /// Whether the row is in the table nevertheless.
    #[must_use]
    pub fn in_table(self) -> bool {
        matches!(self, Self::UnknownColumn | Self::Overlay)
    }

    /// Whether the row contends with others for its place.
    #[must_use]
    pub fn contested(self) -> bool {
        !matches!(self, Self::UnknownColumn | Self::UnknownTable | Self::Incomplete)
    }
}

/// A parked row: all its values, or only those of unknown columns if the row is in the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parked {
    /// Why.
    pub kind: Kind,
    /// SQLite's words, or ours.
    pub reason: String,
    /// The values that the table does not hold.
    pub values: Values,
    /// The key of the row of the same table that stands in its way.
    pub blocker: Option<Value>,
    /// The parent that it waits for; see [`crate::store::woken`].
    pub waits: Option<Vec<u8>>,
}

impl Parked {
    /// A parked row that nothing known stands in the way of.
    pub(super) fn new(kind: Kind, reason: impl Into<String>, values: Values) -> Self {
        Self { kind, reason: reason.into(), values, blocker: None, waits: None }
    }
}

impl Tx<'_> {
    /// Number of parked rows; asked often, so it is remembered.
    pub(super) fn parked_rows(&mut self) -> Result<i64> {
        if let Some(count) = self.cache.parked {
            return Ok(count);
        }
        let count = self
            .conn
            .prepare_cached("SELECT count(*) FROM __wavesync_parked")?
            .query_row([], |row| row.get(0))?;
        self.cache.parked = Some(count);
        Ok(count)
    }

    /// The parked part of a row.
    pub fn parked(&mut self, table: &Table, key: &Value) -> Result<Option<Parked>> {
        if self.parked_rows()? == 0 {
            return Ok(None);
        }
        let found = self
            .conn
            .prepare_cached(
                "SELECT kind, reason, vals, blocker, waits FROM __wavesync_parked
                 WHERE tbl = ?1 AND k = ?2",
            )?
            .query_row(params![table.num.0, key], |row| {
                let blocker = Value::from_ref(row.get_ref(3)?);
                let values: Vec<u8> = row.get(2)?;
                Ok((row.get::<_, String>(0)?, row.get(1)?, values, blocker, row.get(4)?))
            })
            .optional()?;
        let Some((kind, reason, values, blocker, waits)) = found else { return Ok(None) };
        let kind = Kind::from_name(&kind)
            .ok_or_else(|| Error::Database(format!("a parked row has the unknown kind {kind}")))?;
        let blocker = Some(blocker).filter(|key| *key != Value::Null);
        Ok(Some(Parked { kind, reason, values: decode_values(&values)?, blocker, waits }))
    }

    /// Parks a row or, with no values left to keep, forgets that it was parked.
    pub(super) fn set_parked(
        &mut self,
        table: &Table,
        key: &Value,
        parked: Option<&Parked>,
    ) -> Result<()> {
        let before = self.parked_rows()?;
        let keep = parked.filter(|parked| !parked.kind.in_table() || !parked.values.is_empty());
        let Some(parked) = keep else {
            if before > 0 {
                let gone = self
                    .conn
                    .prepare_cached("DELETE FROM __wavesync_parked WHERE tbl = ?1 AND k = ?2")?
                    .execute(params![table.num.0, key])?;
                self.cache.parked = Some(before - gone as i64);
            }
            return Ok(());
        };
        // Rows of tables that are here and cannot stand in them have as much room again.
        if before >= self.bounds.parked_rows.saturating_mul(2) {
            return Err(Error::Database(
                "too many rows are parked; create the missing tables or call wavesync_leave".into(),
            ));
        }
        let (kind, values) = (parked.kind, encode_values(&parked.values));
        let known = self
            .conn
            .prepare_cached(
                "UPDATE __wavesync_parked SET in_table = ?3, kind = ?4, reason = ?5, vals = ?6,
                 blocker = ?7, waits = ?8 WHERE tbl = ?1 AND k = ?2",
            )?
            .execute(params![
                table.num.0,
                key,
                kind.in_table(),
                kind.name(),
                parked.reason,
                values,
                parked.blocker,
                parked.waits
            ])?;
        if known > 0 {
            return Ok(());
        }
        self.conn
            .prepare_cached(
                "INSERT INTO __wavesync_parked(tbl, k, in_table, kind, reason, vals, blocker, at,
                 waits) VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            )?
            .execute(params![
                table.num.0,
                key,
                kind.in_table(),
                kind.name(),
                parked.reason,
                values,
                parked.blocker,
                self.now.0 as i64,
                parked.waits
            ])?;
        // Counting again for each row would take quadratic time.
        self.cache.parked = Some(before + 1);
        Ok(())
    }

    /// The values that the application's table holds for a row.
    pub fn table_values(&self, table: &Table, key: &Value) -> Result<Option<Values>> {
        if table.shape.is_none() {
            return Ok(None);
        }
        let keys = table.key_values(key)?;
        let mut statement = self.conn.prepare_cached(&table.statements.row_select)?;
        let mut rows = statement.query(params_from_iter(keys))?;
        let Some(row) = rows.next()? else { return Ok(None) };
        let mut values = Values::new();
        for (at, column) in table.local_columns().enumerate() {
            values.insert(column.num, Value::from_ref(row.get_ref(at)?));
        }
        Ok(Some(values))
    }

    /// Every value of a row of `L`, wherever it is kept.
    pub fn all_values(&mut self, table: &Table, key: &Value) -> Result<Values> {
        let parked = self.parked(table, key)?;
        match parked {
            Some(parked) if !parked.kind.in_table() => Ok(parked.values),
            parked => {
                let mut values = self.table_values(table, key)?.unwrap_or_default();
                values.extend(parked.into_iter().flat_map(|parked| parked.values));
                Ok(values)
            }
        }
    }

    pub(super) fn delete_row(&mut self, table: &Table, key: &Value) -> Result<()> {
        if table.shape.is_none() {
            return Ok(());
        }
        let keys = table.key_values(key)?;
        let deleted = self.with_app_triggers(table, key, Wanted::Gone, |tx| {
            tx.conn
                .prepare_cached(&table.statements.row_delete)?
                .execute(params_from_iter(&keys))
                .map_err(Error::from)
        });
        match deleted {
            // A trigger that forbids the delete speaks for this replica's users only.
            Err(error) if refusal(&error).is_some() => self.delete_silently(table, &keys),
            deleted => deleted.map(|_| ()),
        }
    }

    fn delete_silently(&self, table: &Table, keys: &[Value]) -> Result<()> {
        self.conn.prepare_cached(&table.statements.row_delete)?.execute(params_from_iter(keys))?;
        Ok(())
    }

    pub(super) fn insert_row(&mut self, table: &Table, key: &Value, values: &Values) -> Result<()> {
        if table.local_columns().next().is_none() && mutants::on(Mutant::KeysUnplaced) {
            return Ok(());
        }
        let verb = shape_of(table)?.insert_verb();
        let (sql, bound) = insertion(table, &table.key_values(key)?, values, verb)?;
        let inserted = self.with_app_triggers(table, key, Wanted::Values(values), |tx| {
            let mut statement = tx.conn.prepare_cached(&sql)?;
            statement.execute(params_from_iter(bound)).map_err(Error::from)
        })?;
        if inserted == 0 {
            return Err(refused_by_trigger());
        }
        Ok(())
    }

    pub(super) fn update_row(&mut self, table: &Table, key: &Value, values: &Values) -> Result<()> {
        if values.is_empty() {
            return Ok(());
        }
        let mut bound: Vec<Value> = values.values().cloned().collect();
        bound.extend(table.key_values(key)?);
        let sql = update(table, &values.keys().copied().collect::<Vec<_>>())?;
        let updated = self.with_app_triggers(table, key, Wanted::Values(values), |tx| {
            let mut statement = tx.conn.prepare_cached(&sql)?;
            statement.execute(params_from_iter(bound)).map_err(Error::from)
        })?;
        if updated == 0 {
            return Err(refused_by_trigger());
        }
        Ok(())
    }
}

/// The statement that inserts a row with these values, and what to bind; other columns get their
/// defaults.
pub(super) fn insertion(
    table: &Table,
    keys: &[Value],
    values: &Values,
    verb: &str,
) -> Result<(String, Vec<Value>)> {
    let shape = shape_of(table)?;
    let present = || table.local_columns().filter(|column| values.contains_key(&column.num));
    let mut bound = keys.to_vec();
    bound.extend(present().filter_map(|column| values.get(&column.num).cloned()));
    let complete = bound.len() == keys.len() + table.local_columns().count();
    if complete && verb == shape.insert_verb() {
        return Ok((table.statements.row_insert.clone(), bound));
    }
    let names = shape.key.iter().map(|column| column.name.as_str());
    let names = names.chain(present().map(|column| column.name.as_str()));
    let sql = format!(
        "{verb}{}({}) VALUES({})",
        ident(&shape.name)?,
        ident_list("", names)?,
        parameters(1, bound.len())
    );
    Ok((sql, bound))
}

/// The statement that updates columns of a row: their values, then the key.
pub(super) fn update(table: &Table, columns: &[ColumnNum]) -> Result<String> {
    let shape = shape_of(table)?;
    let set = columns.iter().enumerate().map(|(at, num)| {
        let name = table.column(*num).map_or("", |column| column.name.as_str());
        Ok(format!("{} = ?{}", ident(name)?, at + 1))
    });
    let set: Vec<String> = set.collect::<Result<_>>()?;
    let matches = shape.key_matches(columns.len() + 1)?;
    let (verb, name) = (shape.update_verb(), ident(&shape.name)?);
    Ok(format!("{verb}{name} SET {} WHERE {matches}", set.join(", ")))
}

fn refused_by_trigger() -> Error {
    Error::Sqlite(rusqlite::Error::SqliteFailure(
        rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CONSTRAINT_TRIGGER),
        Some("a trigger of the application ignored the row".into()),
    ))
}

fn shape_of(table: &Table) -> Result<&crate::store::shape::Shape> {
    table.shape.as_ref().ok_or_else(|| Error::Database(format!("no table {} here", table.name)))
}

/// Whether an error of a row's own statement means that the row is to be parked; anything else
/// (busy, full, damaged file) is a failure of the transaction.
pub(super) fn refusal(error: &Error) -> Option<(Kind, String)> {
    use rusqlite::ffi;
    let Error::Sqlite(rusqlite::Error::SqliteFailure(failure, message)) = error else {
        return None;
    };
    let kind = match failure.extended_code {
        ffi::SQLITE_CONSTRAINT_UNIQUE
        | ffi::SQLITE_CONSTRAINT_PRIMARYKEY
        | ffi::SQLITE_CONSTRAINT_ROWID => Kind::Unique,
        ffi::SQLITE_CONSTRAINT_NOTNULL => Kind::NotNull,
        ffi::SQLITE_CONSTRAINT_FOREIGNKEY => Kind::ForeignKey,
        ffi::SQLITE_CONSTRAINT_TRIGGER => Kind::Trigger,
        ffi::SQLITE_MISMATCH | ffi::SQLITE_TOOBIG => Kind::Check,
        // Also of what only its own program has: a function, a collation.
        code if code & 0xff == ffi::SQLITE_ERROR => Kind::Check,
        code if code & 0xff == ffi::SQLITE_CONSTRAINT => Kind::Check,
        _ => return None,
    };
    Some((kind, message.clone().unwrap_or_else(|| failure.to_string())))
}

fn encode_values(values: &Values) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (column, value) in values {
        write_varint(&mut bytes, u64::from(column.0));
        write_value(&mut bytes, value);
    }
    bytes
}

pub(super) fn decode_values(mut bytes: &[u8]) -> Result<Values> {
    let damaged = || Error::Database("a parked row is damaged".into());
    let mut values = Values::new();
    while !bytes.is_empty() {
        let column = read_varint(&mut bytes).ok_or_else(damaged)?;
        let column = ColumnNum(u16::try_from(column).map_err(|_| damaged())?);
        let value = Reader { bytes: &mut bytes }.value().map_err(|_| damaged())?;
        values.insert(column, value);
    }
    Ok(values)
}
