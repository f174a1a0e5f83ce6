//! What the application's statements changed: tables and keys.
//!
//! Filled by SQLite's preupdate hook, which (unlike the update hook) sees tables WITHOUT ROWID,
//! and rows that a DELETE without WHERE or a REPLACE removes. Knows nothing of sync.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use js_sys::{Array, Object, Reflect};
use rusqlite::Connection;
use rusqlite::hooks::{Action, PreUpdateCase};
use rusqlite::types::{Value, ValueRef};
use wasm_bindgen::JsValue;

use super::value;
use crate::error::Result;

/// Of a table with more changed rows than this in one commit, only its name is told.
const KEYS_MAX_ROWS: usize = 1_000;

/// Column positions of a table's key; empty: its rowid.
type KeyColumns = Vec<i32>;

#[derive(Default)]
struct Seen {
    keys: BTreeMap<String, KeyColumns>,
    /// Virtual tables: what changes are their shadow tables.
    virtuals: Vec<String>,
    schema_version: Option<i64>,
    schema_changed: bool,
    /// `None`: too many to name.
    rows: BTreeMap<String, Option<Vec<Vec<Value>>>>,
}

/// The changes of a connection since they were last taken.
#[derive(Clone, Default)]
pub struct Changes(Arc<Mutex<Seen>>);

impl Changes {
    /// Begins to watch a connection.
    ///
    /// # Errors
    /// If SQLite takes no hook.
    pub fn watch(conn: &Connection) -> Result<Self> {
        let changes = Self::default();
        changes.follow(conn)?;
        let undone = changes.clone();
        conn.rollback_hook(Some(move || undone.lock().forget()))?;
        Ok(changes)
    }

    /// Notes what another connection to the same file writes, too, whether or not it is committed.
    ///
    /// # Errors
    /// If SQLite takes no hook.
    pub fn follow(&self, conn: &Connection) -> rusqlite::Result<()> {
        let seen = self.clone();
        conn.preupdate_hook(Some(
            move |_: Action, schema: &str, table: &str, case: &PreUpdateCase| {
                if schema == "main" && !table.starts_with("__wavesync_") {
                    seen.lock().row(table, case);
                }
            },
        ))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Learns the keys of all tables if the schema is another one. Called before each statement:
    /// inside of the hook nothing can be asked.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn learn(&self, conn: &Connection) -> Result<()> {
        let version: i64 =
            conn.prepare_cached("PRAGMA schema_version")?.query_row([], |row| row.get(0))?;
        let mut seen = self.lock();
        if seen.schema_version == Some(version) {
            return Ok(());
        }
        seen.schema_changed |= seen.schema_version.is_some();
        seen.schema_version = Some(version);
        (seen.keys, seen.virtuals) = read_schema(conn)?;
        Ok(())
    }

    /// Takes what was changed: `{tables: [{table, keys | null}], schema}`, or null for nothing.
    pub fn take(&self) -> JsValue {
        let mut seen = self.lock();
        let rows = std::mem::take(&mut seen.rows);
        let schema = std::mem::take(&mut seen.schema_changed);
        if rows.is_empty() && !schema {
            return JsValue::NULL;
        }
        let tables = Array::new();
        for (table, keys) in &rows {
            tables.push(&table_to_js(table, keys.as_deref()));
            let shadowed = seen.virtuals.iter().filter(|name| is_shadow(name, table));
            shadowed.for_each(|name| {
                tables.push(&table_to_js(name, None));
            });
        }
        object(&[("tables", tables.into()), ("schema", schema.into())])
    }
}

fn is_shadow(of: &str, table: &str) -> bool {
    table.strip_prefix(of).is_some_and(|rest| rest.starts_with('_'))
}

fn table_to_js(table: &str, keys: Option<&[Vec<Value>]>) -> JsValue {
    let keys = keys.map_or(JsValue::NULL, |keys| {
        keys.iter().map(|key| key_to_js(key)).collect::<Array>().into()
    });
    object(&[("table", table.into()), ("keys", keys)])
}

/// A key of one column is its value, of several columns a list.
fn key_to_js(key: &[Value]) -> JsValue {
    match key {
        [one] => value::to_js(one.into()),
        several => several.iter().map(|part| value::to_js(part.into())).collect::<Array>().into(),
    }
}

/// An object with these properties.
pub fn object(properties: &[(&str, JsValue)]) -> JsValue {
    let object = Object::new();
    for (name, value) in properties {
        // Setting a property of a plain object cannot fail.
        let _ = Reflect::set(&object, &(*name).into(), value);
    }
    object.into()
}

fn read_schema(conn: &Connection) -> Result<(BTreeMap<String, KeyColumns>, Vec<String>)> {
    let mut keys = BTreeMap::<String, Vec<(i64, i32, bool)>>::new();
    let mut statement = conn.prepare(
        "SELECT t.name, c.pk, c.cid, upper(c.type) = 'INTEGER' AND NOT t.wr
         FROM pragma_table_list t, pragma_table_info(t.name) c
         WHERE t.schema = 'main' AND t.type IN ('table', 'shadow')",
    )?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let columns = keys.entry(row.get(0)?).or_default();
        let place: i64 = row.get(1)?;
        if place > 0 {
            columns.push((place, row.get(2)?, row.get(3)?));
        }
    }
    let keys = keys.into_iter().map(|(table, mut columns)| {
        columns.sort_unstable();
        // An INTEGER PRIMARY KEY is the rowid, which the hook is given.
        let rowid = matches!(columns[..], [(_, _, true)]);
        (table, if rowid { Vec::new() } else { columns.iter().map(|c| c.1).collect() })
    });
    let keys = keys.collect();
    let mut statement = conn
        .prepare("SELECT name FROM pragma_table_list WHERE schema = 'main' AND type = 'virtual'")?;
    let virtuals = statement.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    Ok((keys, virtuals))
}

impl Seen {
    fn forget(&mut self) {
        self.rows.clear();
        // A rollback may have taken back a change of the schema.
        self.schema_version = None;
    }

    fn row(&mut self, table: &str, case: &PreUpdateCase) {
        let columns = self.keys.get(table).map_or(&[][..], Vec::as_slice);
        let mut found = Vec::new();
        match case {
            PreUpdateCase::Insert(new) => {
                found.push(key(columns, new.get_new_row_id(), |i| new.get_new_column_value(i)));
            }
            PreUpdateCase::Delete(old) => {
                found.push(key(columns, old.get_old_row_id(), |i| old.get_old_column_value(i)));
            }
            PreUpdateCase::Update { old_value_accessor: old, new_value_accessor: new } => {
                found.push(key(columns, old.get_old_row_id(), |i| old.get_old_column_value(i)));
                found.push(key(columns, new.get_new_row_id(), |i| new.get_new_column_value(i)));
            }
            PreUpdateCase::Unknown => found.push(None),
        }
        if !self.rows.contains_key(table) {
            self.rows.insert(table.to_owned(), Some(Vec::new()));
        }
        let Some(slot) = self.rows.get_mut(table) else { return };
        let Some(keys) = slot else { return };
        for key in found {
            match key {
                Some(key) if keys.last() == Some(&key) => {}
                Some(key) if keys.len() < KEYS_MAX_ROWS => keys.push(key),
                _ => {
                    *slot = None;
                    return;
                }
            }
        }
    }
}

/// The key of a row; `None` if SQLite does not tell.
fn key<'v>(
    columns: &[i32],
    rowid: i64,
    column: impl Fn(i32) -> rusqlite::Result<ValueRef<'v>>,
) -> Option<Vec<Value>> {
    if columns.is_empty() {
        return Some(vec![Value::Integer(rowid)]);
    }
    columns.iter().map(|i| Value::try_from(column(*i).ok()?).ok()).collect()
}
