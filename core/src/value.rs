//! SQLite values, byte exact: text may hold NUL or invalid UTF-8, reals keep their bits.
//!
//! Must not know: tables, clocks, or the wire.

use std::cmp::Ordering;

pub use rusqlite::types::ValueRef;
use rusqlite::types::{ToSql, ToSqlOutput};

/// One value of any of SQLite's five storage classes.
#[derive(Clone, Debug)]
pub enum Value {
    /// `NULL`
    Null,
    /// `INTEGER`
    Integer(i64),
    /// `REAL`; compared by bits, so that equal means byte-for-byte equal.
    Real(f64),
    /// `TEXT`, in the bytes SQLite holds.
    Text(Vec<u8>),
    /// `BLOB`
    Blob(Vec<u8>),
}

impl Value {
    /// Copies a value out of a result row.
    #[must_use]
    pub fn from_ref(value: ValueRef<'_>) -> Self {
        match value {
            ValueRef::Null => Self::Null,
            ValueRef::Integer(integer) => Self::Integer(integer),
            ValueRef::Real(real) => Self::Real(real),
            ValueRef::Text(bytes) => Self::Text(bytes.to_vec()),
            ValueRef::Blob(bytes) => Self::Blob(bytes.to_vec()),
        }
    }

    /// The same, borrowed.
    #[must_use]
    pub fn as_ref(&self) -> ValueRef<'_> {
        match self {
            Self::Null => ValueRef::Null,
            Self::Integer(integer) => ValueRef::Integer(*integer),
            Self::Real(real) => ValueRef::Real(*real),
            Self::Text(bytes) => ValueRef::Text(bytes),
            Self::Blob(bytes) => ValueRef::Blob(bytes),
        }
    }

    /// A text value.
    #[must_use]
    pub fn text(text: &str) -> Self {
        Self::Text(text.as_bytes().to_vec())
    }

    /// 1 or 0.
    #[must_use]
    pub fn flag(on: bool) -> Self {
        Self::Integer(i64::from(on))
    }

    /// A count, at most what an INTEGER holds.
    #[must_use]
    pub fn count(number: u64) -> Self {
        Self::Integer(i64::try_from(number).unwrap_or(i64::MAX))
    }

    /// Bytes that this value weighs in limits.
    #[must_use]
    pub fn weight(&self) -> usize {
        weight(self.as_ref())
    }
}

/// Bytes that a value weighs in limits.
#[must_use]
pub fn weight(value: ValueRef<'_>) -> usize {
    match value {
        ValueRef::Null => 1,
        ValueRef::Integer(_) | ValueRef::Real(_) => 9,
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => bytes.len() + 5,
    }
}

fn class(value: ValueRef<'_>) -> u8 {
    match value {
        ValueRef::Null => 0,
        ValueRef::Integer(_) => 1,
        ValueRef::Real(_) => 2,
        ValueRef::Text(_) => 3,
        ValueRef::Blob(_) => 4,
    }
}

/// The order of [`Value`]s.
#[must_use]
pub fn compare(one: ValueRef<'_>, other: ValueRef<'_>) -> Ordering {
    match (one, other) {
        (ValueRef::Integer(a), ValueRef::Integer(b)) => a.cmp(&b),
        (ValueRef::Real(a), ValueRef::Real(b)) => a.to_bits().cmp(&b.to_bits()),
        (ValueRef::Text(a), ValueRef::Text(b)) | (ValueRef::Blob(a), ValueRef::Blob(b)) => a.cmp(b),
        _ => class(one).cmp(&class(other)),
    }
}

impl ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(self.as_ref()))
    }
}

impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Value {}

impl PartialOrd for Value {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// A total order by storage class and bytes: the last tie-break of a merge, the same everywhere.
impl Ord for Value {
    fn cmp(&self, other: &Self) -> Ordering {
        compare(self.as_ref(), other.as_ref())
    }
}
