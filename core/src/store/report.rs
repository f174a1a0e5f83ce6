//! What the store tells a user: tracked tables, conflicts, counts.

use std::collections::BTreeSet;

use rusqlite::{Connection, params, params_from_iter};
use sha2::{Digest, Sha256};

use crate::ids::{SiteId, TableNum};
use crate::store::held::member_name;
use crate::store::rows::{Parked, Values, decode_values};
use crate::store::shape::{self, KeyForm, Shape};
use crate::store::sql::{ident, ident_list};
use crate::store::tables::Table;
use crate::store::{SiteNum, key};
use crate::value::Value;
use crate::wire::rows::{Batch, CLAIM};
use crate::{Result, limits};

/// A row of `wavesync_tables`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableReport {
    /// The table or view.
    pub name: String,
    /// Whether its rows are synced.
    pub tracked: bool,
    /// Why not, or what is still to be done; empty when all is well.
    pub reason: String,
    /// Rows in the table, or parked for it.
    pub rows: i64,
    /// Its entries in the log.
    pub log_rows: i64,
    /// Bytes in its clocks beyond the fixed columns.
    pub clock_bytes: i64,
}

/// A row of `wavesync_conflicts`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// Number of a kept conflict; negative for a parked row.
    pub id: i64,
    /// The table.
    pub table: String,
    /// The stored key.
    pub key: Value,
    /// What kind of conflict.
    pub kind: String,
    /// In words.
    pub reason: String,
    /// The values that this database shows, as JSON.
    pub ours: Option<String>,
    /// The values that it does not show, as JSON.
    pub theirs: Option<String>,
    /// Who wrote them.
    pub site: Option<Vec<u8>>,
    /// When it was noticed, in milliseconds since 1970.
    pub at: i64,
    /// Whether it is a row that waits.
    pub parked: bool,
}

/// Whether wavesync's tables exist in a database.
pub fn is_joined(conn: &Connection) -> Result<bool> {
    Ok(conn
        .prepare("SELECT 1 FROM main.sqlite_schema WHERE name = '__wavesync_table'")?
        .exists([])?)
}

/// Every table and view of a database and whether it is synced.
pub fn tables(conn: &Connection) -> Result<Vec<TableReport>> {
    let joined = is_joined(conn)?;
    let mut reports = Vec::new();
    let mut here = BTreeSet::new();
    for entry in shape::survey(conn)? {
        let report = match entry {
            Ok(shape) if joined => {
                let (integer_key, keys) = (shape.form == KeyForm::Rowid, shape.key.len() as i64);
                here.insert((shape.name.to_lowercase(), integer_key, keys));
                tracked_report(conn, &shape)?
            }
            Ok(shape) => not_tracked(shape.name, "this database has not joined a group"),
            Err(refusal) => not_tracked(refusal.name, &refusal.reason),
        };
        reports.push(report);
    }
    if joined {
        let mut foreign = conn.prepare(
            "SELECT t.name, (SELECT count(*) FROM __wavesync_parked p WHERE p.tbl = t.num) AS n,
               EXISTS (SELECT 1 FROM main.sqlite_schema s
                       WHERE s.type = 'table' AND s.name = t.name COLLATE NOCASE),
               t.integer_key, t.key_columns
             FROM __wavesync_table t WHERE NOT t.here AND (n > 0 OR NOT EXISTS (
               SELECT 1 FROM __wavesync_table o WHERE o.here AND o.name = t.name))
             AND NOT EXISTS (SELECT 1 FROM __wavesync_former f WHERE f.col = -1 AND f.name = t.name
               AND n = 0)",
        )?;
        let rows = foreign.query_map([], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?))
        })?;
        for row in rows {
            let (name, rows, another, integer_key, keys): (String, i64, bool, bool, i64) = row?;
            // This very table, which is not tracked any more, is listed already.
            if here.contains(&(name.to_lowercase(), integer_key, keys)) {
                continue;
            }
            let reason = if another {
                "other members have a table of this name with another kind of PRIMARY KEY; its \
                 rows are kept and join the table here once it has the same PRIMARY KEY"
            } else {
                "only other members have this table; its rows are kept for it"
            };
            reports.push(TableReport { rows, ..not_tracked(name, reason) });
        }
    }
    Ok(reports)
}

fn not_tracked(name: String, reason: &str) -> TableReport {
    let reason = reason.to_string();
    TableReport { name, tracked: false, reason, rows: 0, log_rows: 0, clock_bytes: 0 }
}

fn tracked_report(conn: &Connection, shape: &Shape) -> Result<TableReport> {
    let name = &shape.name;
    let known = super::optional(conn.query_row(
        "SELECT num, tracked, import IS NOT NULL FROM __wavesync_table
         WHERE name = ?1 AND integer_key = ?2 AND key_columns = ?3",
        params![name, shape.form == KeyForm::Rowid, shape.key.len() as i64],
        |row| Ok((row.get::<_, i64>(0)?, row.get::<_, bool>(1)?, row.get::<_, bool>(2)?)),
    ))?;
    let one = |sql: String| conn.query_row(&sql, [], |row| row.get::<_, i64>(0));
    let Some((num, true, importing)) = known else {
        let rows = match known {
            Some((num, ..)) => {
                one(format!("SELECT count(*) FROM __wavesync_parked WHERE tbl = {num}"))?
            }
            None => 0,
        };
        let reason = "not tracked; wavesync_track() starts it, or says why not";
        return Ok(TableReport { rows, ..not_tracked(name.into(), reason) });
    };
    Ok(TableReport {
        name: name.into(),
        tracked: true,
        reason: if importing { "existing rows are being taken in" } else { "" }.into(),
        rows: one(format!("SELECT count(*) FROM main.{}", ident(name)?))?,
        log_rows: one(format!("SELECT count(*) FROM __wavesync_log WHERE tbl = {num}"))?,
        clock_bytes: one(format!(
            "SELECT coalesce(sum(length(cells)), 0) FROM __wavesync_clock_{num}"
        ))?,
    })
}

/// Kept conflicts and parked rows.
pub fn conflicts(conn: &Connection) -> Result<Vec<Conflict>> {
    let mut statement = conn.prepare(
        "SELECT c.id, t.name, c.k, c.kind, c.reason, c.ours, c.theirs, s.id, c.at
           FROM __wavesync_conflict c JOIN __wavesync_table t ON t.num = c.tbl
           LEFT JOIN __wavesync_site s ON s.num = c.site",
    )?;
    let kept = statement.query_map([], |row| {
        Ok(Conflict {
            id: row.get(0)?,
            table: row.get(1)?,
            key: Value::from_ref(row.get_ref(2)?),
            kind: row.get(3)?,
            reason: row.get(4)?,
            ours: row.get(5)?,
            theirs: row.get(6)?,
            site: row.get(7)?,
            at: row.get(8)?,
            parked: false,
        })
    })?;
    let mut conflicts = kept.collect::<rusqlite::Result<Vec<_>>>()?;
    conflicts.extend(parked_conflicts(conn)?);
    conflicts.extend(held_conflicts(conn)?);
    Ok(conflicts)
}

/// The id of a parked row: the same as long as it is parked, whatever else comes and goes.
#[must_use]
pub fn parked_id(table: TableNum, key: &Value) -> i64 {
    let mut bytes = table.0.to_be_bytes().to_vec();
    crate::wire::bytes::write_value(&mut bytes, key);
    let hash = Sha256::digest(&bytes);
    let head = hash.first_chunk::<8>().map_or(0, |head| i64::from_be_bytes(*head));
    // 52 bits: exact in JavaScript, too.
    -1 - (head & 0xf_ffff_ffff_ffff)
}

fn parked_conflicts(conn: &Connection) -> Result<Vec<Conflict>> {
    if crate::mutants::on(crate::mutants::Mutant::ParkedUnlisted) {
        return Ok(Vec::new());
    }
    let shapes: Vec<Shape> = shape::survey(conn)?.into_iter().flatten().collect();
    let mut statement = conn.prepare(
        "SELECT p.tbl, t.name, p.k, p.kind, p.reason, p.vals, p.blocker, p.at, p.in_table
           FROM __wavesync_parked p JOIN __wavesync_table t ON t.num = p.tbl",
    )?;
    let mut rows = statement.query([])?;
    let mut conflicts = Vec::new();
    while let Some(row) = rows.next()? {
        let (num, name): (i64, String) = (row.get(0)?, row.get(1)?);
        let key = Value::from_ref(row.get_ref(2)?);
        let kind: String = row.get(3)?;
        let blocker = match Value::from_ref(row.get_ref(6)?) {
            // A row that is in the table stands beside the values that it does not show.
            Value::Null if row.get::<_, bool>(8)? => key.clone(),
            blocker => blocker,
        };
        let shape = shapes.iter().find(|shape| shape.name.eq_ignore_ascii_case(&name));
        let ours = match shape.filter(|_| blocker != Value::Null) {
            Some(shape) => shown_row(conn, shape, &blocker)?,
            None => None,
        };
        conflicts.push(Conflict {
            id: parked_id(TableNum(num), &key),
            table: name,
            key,
            kind: Parked::shown_kind(&kind).into(),
            reason: row.get(4)?,
            ours,
            theirs: Some(kept_values(conn, num, &row.get::<_, Vec<u8>>(5)?)?),
            site: None,
            at: row.get(7)?,
            parked: true,
        });
    }
    Ok(conflicts)
}

/// Rows from clocks that are ahead (rule P17).
fn held_conflicts(conn: &Connection) -> Result<Vec<Conflict>> {
    let shapes: Vec<Shape> = shape::survey(conn)?.into_iter().flatten().collect();
    let limit: Option<String> = super::meta(conn, "config:future_limit_ms")?;
    let limit = limit.and_then(|text| text.parse().ok()).unwrap_or(limits::FUTURE_LIMIT_MS);
    let mut statement = conn.prepare(
        "SELECT h.seq, t.name, h.k, h.row, h.at, s.id, h.site,
           strftime('%Y-%m-%dT%H:%M:%SZ', ((h.stamp >> 16) - ?1) / 1000.0 + 0.5, 'unixepoch')
           FROM __wavesync_held h JOIN __wavesync_table t ON t.num = h.tbl
           LEFT JOIN __wavesync_site s ON s.num = h.site",
    )?;
    let mut rows = statement.query([limit as f64])?;
    let mut conflicts = Vec::new();
    while let Some(row) = rows.next()? {
        let (seq, table): (i64, String) = (row.get(0)?, row.get(1)?);
        let key = Value::from_ref(row.get_ref(2)?);
        let site: Option<Vec<u8>> = row.get(5)?;
        let id = site.as_deref().and_then(SiteId::from_slice);
        let name = member_name(conn, SiteNum(row.get(6)?))?;
        let who = name.or(id.map(|id| id.to_string())).unwrap_or_default();
        let due: String = row.get(7)?;
        let shape = shapes.iter().find(|shape| shape.name.eq_ignore_ascii_case(&table));
        let ours = shape.map_or(Ok(None), |shape| shown_row(conn, shape, &key))?;
        conflicts.push(Conflict {
            id: parked_id(TableNum(-seq), &key),
            table,
            key,
            kind: "future".into(),
            reason: format!("written by {who}, whose clock is ahead; it is applied at {due}"),
            ours,
            theirs: held_values(&row.get::<_, Vec<u8>>(3)?)?,
            site,
            at: row.get(4)?,
            parked: true,
        });
    }
    Ok(conflicts)
}

/// The values of a held row as JSON; nothing for a delete.
fn held_values(bytes: &[u8]) -> Result<Option<String>> {
    let batch = Batch::decode(bytes)?;
    let Some(part) = batch.tables.first() else { return Ok(None) };
    let Some(row) = part.rows.first().filter(|row| row.length % 2 == 1) else { return Ok(None) };
    let cells = row.cells.iter().filter_map(|(at, _, value)| {
        let name = part.columns.get(*at).filter(|name| *name != CLAIM)?;
        Some((name.as_str(), value))
    });
    Ok(Some(object(cells)))
}

/// Parked values as JSON.
fn kept_values(conn: &Connection, table: i64, bytes: &[u8]) -> Result<String> {
    let mut names =
        conn.prepare_cached("SELECT name FROM __wavesync_column WHERE tbl = ?1 AND num = ?2")?;
    let mut members = Vec::new();
    for (num, value) in decode_values(bytes)? {
        let name: String = names.query_row([table, i64::from(num.0)], |row| row.get(0))?;
        members.push((name, value));
    }
    Ok(object(members.iter().map(|(name, value)| (name.as_str(), value))))
}

/// A row of the application's table as JSON, without its key.
fn shown_row(conn: &Connection, shape: &Shape, key: &Value) -> Result<Option<String>> {
    let names: Vec<&str> = shape.columns.iter().map(|column| column.name.as_str()).collect();
    if names.is_empty() {
        return Ok(None);
    }
    let sql = format!(
        "SELECT {} FROM main.{} WHERE {}",
        ident_list("", names.iter().copied())?,
        ident(&shape.name)?,
        shape.key_matches(1)?
    );
    let keys = key::unpack(shape.form, shape.key.len(), key)?;
    super::optional(conn.prepare_cached(&sql)?.query_row(params_from_iter(keys), |row| {
        let values = (0..names.len()).map(|at| Ok(Value::from_ref(row.get_ref(at)?)));
        let values = values.collect::<rusqlite::Result<Vec<_>>>()?;
        Ok(object(names.iter().copied().zip(&values)))
    }))
}

/// Parked rows and kept conflicts, for `wavesync_status`.
pub fn conflict_counts(conn: &Connection) -> Result<(i64, i64)> {
    if !is_joined(conn)? {
        return Ok((0, 0));
    }
    let one = |sql: &str| conn.prepare(sql)?.query_row([], |row| row.get(0));
    Ok((
        one("SELECT (SELECT count(*) FROM __wavesync_parked) +
               (SELECT count(*) FROM __wavesync_held)")?,
        one("SELECT count(*) FROM __wavesync_conflict")?,
    ))
}

/// Values of a row as a JSON object, blobs as `{"blob": hex}`.
#[must_use]
pub fn values_json(table: &Table, values: &Values) -> String {
    let name = |num| table.column(num).map_or("", |column| column.name.as_str());
    object(values.iter().map(|(num, value)| (name(*num), value)))
}

fn object<'a>(members: impl Iterator<Item = (&'a str, &'a Value)>) -> String {
    let mut json = String::from("{");
    for (name, value) in members {
        if json.len() > 1 {
            json.push_str(", ");
        }
        json_text(&mut json, name);
        json.push_str(": ");
        json_value(&mut json, value);
    }
    json.push('}');
    json
}

fn json_value(json: &mut String, value: &Value) {
    match value {
        Value::Null => json.push_str("null"),
        Value::Integer(integer) => json.push_str(&integer.to_string()),
        Value::Real(real) if real.is_finite() => json.push_str(&format!("{real:?}")),
        Value::Real(real) => json_text(json, &real.to_string()),
        Value::Text(bytes) => json_text(json, &String::from_utf8_lossy(bytes)),
        Value::Blob(bytes) => {
            json.push_str("{\"blob\": \"");
            bytes.iter().for_each(|byte| json.push_str(&format!("{byte:02x}")));
            json.push_str("\"}");
        }
    }
}

fn json_text(json: &mut String, text: &str) {
    json.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                json.push('\\');
                json.push(c);
            }
            c if (c as u32) < 0x20 => json.push_str(&format!("\\u{:04x}", c as u32)),
            c => json.push(c),
        }
    }
    json.push('"');
}

/// A stored key as a user would write it.
#[must_use]
pub fn key_text(table: &Table, key: &Value) -> String {
    values_text(&table.key_values(key).unwrap_or_else(|_| vec![key.clone()]))
}

/// Values as a user would write them.
#[must_use]
pub fn values_text(parts: &[Value]) -> String {
    let texts: Vec<String> = parts
        .iter()
        .map(|part| match part {
            Value::Text(bytes) => format!("'{}'", String::from_utf8_lossy(bytes)),
            Value::Blob(bytes) => {
                format!("x'{}'", bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
            }
            Value::Integer(integer) => integer.to_string(),
            Value::Real(real) => format!("{real:?}"),
            Value::Null => "NULL".into(),
        })
        .collect();
    texts.join(", ")
}
