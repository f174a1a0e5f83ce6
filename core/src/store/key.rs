//! The form of a row's key inside the store: one SQL value, whatever the table's key is.
//!
//! A key of one column is its bare value. A key of several columns is packed into text, a letter
//! for the storage class and the value, joined by commas: `i42,t68656c6c6f`. The same text is
//! built by [`packed_expression`] in SQL (by capture triggers, without the extension) and by
//! [`pack`] here. A key with a NULL part has no form: such a row stays local.

use crate::store::shape::{KeyForm, ShapeColumn};
use crate::store::sql::ident;
use crate::value::Value;
use crate::{Error, Result};

/// The SQL expression of a key, its columns prefixed by `NEW.`, `OLD.` or a table alias.
pub fn expression(form: KeyForm, key: &[ShapeColumn], prefix: &str) -> Result<String> {
    match form {
        KeyForm::Rowid | KeyForm::Single => {
            let first =
                key.first().ok_or_else(|| Error::Database("a key without columns".into()))?;
            Ok(format!("{prefix}{}", ident(&first.name)?))
        }
        KeyForm::Composite => packed_expression(key, prefix),
    }
}

/// The SQL expression that packs a key of several columns; NULL if any part is NULL.
pub fn packed_expression(key: &[ShapeColumn], prefix: &str) -> Result<String> {
    let parts: Result<Vec<String>> = key
        .iter()
        .map(|column| {
            let name = format!("{prefix}{}", ident(&column.name)?);
            Ok(format!(
                "CASE typeof({name}) WHEN 'integer' THEN 'i'||{name} \
                 WHEN 'text' THEN 't'||hex({name}) WHEN 'blob' THEN 'b'||hex({name}) \
                 WHEN 'real' THEN 'r'||quote({name}) END"
            ))
        })
        .collect();
    Ok(parts?.join("||','||"))
}

/// Brings a key as a trigger or an expression wrote it into its one canonical form: SQLite
/// versions print reals differently.
pub fn canonical(form: KeyForm, columns: usize, stored: Value) -> Result<Value> {
    match (&form, &stored) {
        (KeyForm::Composite, Value::Text(text)) if text.contains(&b'r') => {
            Ok(pack(&unpack(form, columns, &stored)?))
        }
        _ => Ok(stored),
    }
}

/// Packs the parts of a key into its stored form.
#[must_use]
pub fn pack(parts: &[Value]) -> Value {
    if let [single] = parts {
        return single.clone();
    }
    let mut text = String::new();
    for (index, part) in parts.iter().enumerate() {
        if index > 0 {
            text.push(',');
        }
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02X}")).collect::<String>();
        match part {
            Value::Null => text.push('n'),
            Value::Integer(integer) => text.push_str(&format!("i{integer}")),
            // To SQLite -0.0 is 0.0, and prints so: triggers cannot tell which it is.
            Value::Real(0.0) => text.push_str("r0000000000000000"),
            Value::Real(real) => text.push_str(&format!("r{:016x}", real.to_bits())),
            Value::Text(bytes) => text.push_str(&format!("t{}", hex(bytes))),
            Value::Blob(bytes) => text.push_str(&format!("b{}", hex(bytes))),
        }
    }
    Value::Text(text.into_bytes())
}

/// Splits a stored key into the values of its columns.
///
/// # Errors
/// If the text was not written by [`pack`] or [`packed_expression`] for that many columns.
pub fn unpack(form: KeyForm, columns: usize, stored: &Value) -> Result<Vec<Value>> {
    if form != KeyForm::Composite {
        return Ok(vec![stored.clone()]);
    }
    let broken = || Error::Database("a stored composite key is damaged".into());
    let Value::Text(text) = stored else { return Err(broken()) };
    let text = std::str::from_utf8(text).map_err(|_| broken())?;
    let parts: Option<Vec<Value>> = text.split(',').map(unpack_part).collect();
    parts.filter(|parts| parts.len() == columns).ok_or_else(broken)
}

fn unpack_part(part: &str) -> Option<Value> {
    let (class, rest) = part.split_at_checked(1)?;
    Some(match class {
        "i" => Value::Integer(rest.parse().ok()?),
        // Our own form is 16 hex digits of the bits; SQL's `quote` writes a decimal number.
        "r" => Value::Real(match (rest.len(), u64::from_str_radix(rest, 16)) {
            (16, Ok(bits)) if !rest.contains(['.', '+', '-']) => f64::from_bits(bits),
            _ => rest.parse().ok()?,
        }),
        "t" => Value::Text(unhex(rest)?),
        "b" => Value::Blob(unhex(rest)?),
        _ => return None,
    })
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn columns(count: usize) -> Vec<ShapeColumn> {
        (0..count)
            .map(|n| ShapeColumn {
                name: format!("k{n}"),
                default: None,
                classes_differ: true,
                affinity: b'b',
            })
            .collect()
    }

    #[test]
    fn sql_and_rust_pack_the_same_key() {
        let conn = rusqlite::Connection::open_in_memory().unwrap();
        conn.execute_batch("CREATE TABLE t(k0, k1, k2, k3)").unwrap();
        let cases = [
            Value::Integer(i64::MIN),
            Value::Integer(7),
            Value::Real(0.1),
            Value::Real(-1.5e300),
            Value::Real(f64::INFINITY),
            Value::Real(5e-324),
            Value::Real(0.0),
            Value::Text(b"it's, \0 i7".to_vec()),
            Value::Text(Vec::new()),
            Value::Blob(vec![0, 255]),
        ];
        for first in &cases {
            for second in &cases {
                let parts = [first, second, &Value::Integer(1), &Value::text("x")];
                conn.execute("DELETE FROM t", []).unwrap();
                conn.execute(
                    "INSERT INTO t VALUES(?1, ?2, ?3, ?4)",
                    rusqlite::params_from_iter(parts),
                )
                .unwrap();
                let sql =
                    format!("SELECT {} FROM t", packed_expression(&columns(4), "t.").unwrap());
                let stored =
                    conn.query_row(&sql, [], |row| Ok(Value::from_ref(row.get_ref(0)?))).unwrap();
                let stored = canonical(KeyForm::Composite, 4, stored).unwrap();
                let parts: Vec<Value> = parts.into_iter().cloned().collect();
                assert_eq!(stored, pack(&parts));
                assert_eq!(unpack(KeyForm::Composite, 4, &stored).unwrap(), parts);
            }
        }
    }

    #[test]
    fn a_null_part_gives_no_key() {
        let conn = rusqlite::Connection::open_in_memory().unwrap();
        let sql = format!(
            "SELECT {} FROM (SELECT 1 AS k0, NULL AS k1) AS t",
            packed_expression(&columns(2), "t.").unwrap()
        );
        let stored = conn.query_row(&sql, [], |row| Ok(Value::from_ref(row.get_ref(0)?))).unwrap();
        assert_eq!(stored, Value::Null);
    }
}
