//! Running SQL text: one statement or several, as one transaction.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use js_sys::Array;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::{Batch, Statement};
use wasm_bindgen::JsValue;

use super::changes::object;
use super::{Database, value};
use crate::error::{Fault, Result};

/// What a statement may do to the transaction around it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// BEGIN, COMMIT, END, ROLLBACK: the package does these.
    Control,
    /// Must not, or cannot, be part of a transaction.
    Alone,
    /// SAVEPOINT: outside of a transaction it begins one.
    Savepoint,
    /// Everything else.
    Plain,
}

/// What the first word of a statement says.
fn kind(sql: &str) -> Kind {
    let mut words = Words(sql);
    let first = words.next().unwrap_or_default().to_ascii_uppercase();
    match first.as_str() {
        "BEGIN" | "COMMIT" | "END" => Kind::Control,
        "ROLLBACK" => {
            // ROLLBACK TO a savepoint is the application's own affair.
            let rest: Vec<String> = words.take(2).map(str::to_ascii_uppercase).collect();
            if rest.iter().any(|word| word == "TO") { Kind::Plain } else { Kind::Control }
        }
        "SAVEPOINT" => Kind::Savepoint,
        "PRAGMA" | "VACUUM" | "ATTACH" | "DETACH" => Kind::Alone,
        _ => Kind::Plain,
    }
}

/// The words at the start of a statement; comments are passed over.
struct Words<'a>(&'a str);

impl<'a> Iterator for Words<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        loop {
            self.0 = self.0.trim_start_matches(|c: char| c.is_whitespace() || c == ';');
            if let Some(rest) = self.0.strip_prefix("--") {
                self.0 = rest.split_once('\n').map_or("", |(_, rest)| rest);
            } else if let Some(rest) = self.0.strip_prefix("/*") {
                self.0 = rest.split_once("*/").map_or("", |(_, rest)| rest);
            } else {
                break;
            }
        }
        let end = self.0.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(self.0.len());
        let (word, rest) = self.0.split_at(end);
        self.0 = rest;
        (!word.is_empty()).then_some(word)
    }
}

fn control() -> Fault {
    Fault::new(
        "use_transaction",
        "BEGIN, COMMIT and ROLLBACK do not go through exec and query, nor does a SAVEPOINT that begins a transaction",
        "exec runs all its statements as one transaction; for more, use db.transaction(async (tx) => …)",
    )
}

impl Database {
    pub(super) fn exec_all(&self, sql: &str, params: &JsValue) -> Result<JsValue> {
        let before = self.conn.total_changes();
        let own = self.conn.is_autocommit();
        let done = self.run_batch(sql, params, own);
        if own && !self.conn.is_autocommit() {
            match &done {
                Ok(()) => {
                    if let Err(error) = self.conn.execute_batch("COMMIT") {
                        self.undo();
                        return Err(error.into());
                    }
                }
                Err(_) => self.undo(),
            }
        }
        done?;
        Ok(object(&self.written(before)))
    }

    fn run_batch(&self, sql: &str, params: &JsValue, own: bool) -> Result<()> {
        use rusqlite::fallible_iterator::FallibleIterator as _;
        let mut batch = Batch::new(&self.conn, sql);
        let mut count = 0;
        loop {
            self.changes.learn(&self.conn)?;
            let Some(mut statement) = batch.next()? else { break };
            count += 1;
            if count > 1 && !(params.is_undefined() || params.is_null()) {
                return Err(Fault::new(
                    "bad_parameter",
                    "parameters go with one statement, not with several",
                    "call exec once for each, inside of transaction()",
                ));
            }
            let text = statement.expanded_sql().unwrap_or_default();
            match kind(&text) {
                Kind::Control => return Err(control()),
                Kind::Alone if own && !self.conn.is_autocommit() => {
                    self.conn.execute_batch("COMMIT")?;
                }
                Kind::Plain if own && self.conn.is_autocommit() && !statement.readonly() => {
                    self.conn.execute_batch("BEGIN IMMEDIATE")?;
                }
                Kind::Alone | Kind::Plain | Kind::Savepoint => {}
            }
            value::bind(&mut statement, params)?;
            let mut rows = statement.raw_query();
            while rows.next()?.is_some() {}
        }
        self.changes.learn(&self.conn)
    }

    pub(super) fn query_one(&self, sql: &str, params: &JsValue) -> Result<JsValue> {
        self.changes.learn(&self.conn)?;
        let before = self.conn.total_changes();
        let mut statement = self.prepare_one(sql)?;
        value::bind(&mut statement, params)?;
        let columns = column_names(&statement);
        let count = statement.column_count();
        let list = Array::new();
        let mut rows = statement.raw_query();
        while let Some(row) = rows.next()? {
            let cells = Array::new_with_length(count as u32);
            for index in 0..count {
                cells.set(index as u32, value::to_js(row.get_ref(index)?));
            }
            list.push(&cells);
        }
        drop(rows);
        drop(statement);
        self.changes.learn(&self.conn)?;
        let [changes, rowid] = self.written(before);
        Ok(object(&[("columns", columns.into()), ("rows", list.into()), changes, rowid]))
    }

    fn prepare_one(&self, sql: &str) -> Result<rusqlite::CachedStatement<'_>> {
        match kind(sql) {
            Kind::Control => return Err(control()),
            Kind::Savepoint if self.conn.is_autocommit() => return Err(control()),
            _ => {}
        }
        if Words(sql).next().is_none() && sql.trim_start().is_empty() {
            return Err(Fault::new("sql", "there is no statement in this text", ""));
        }
        self.conn.prepare_cached(sql).map_err(|error| match error {
            rusqlite::Error::MultipleStatement => Fault::new(
                "sql",
                "query takes one statement, and this text has several",
                "exec takes several",
            ),
            other => other.into(),
        })
    }

    fn written(&self, before: u64) -> [(&'static str, JsValue); 2] {
        let changes = self.conn.total_changes() - before;
        let rowid = value::to_js(rusqlite::types::ValueRef::Integer(self.conn.last_insert_rowid()));
        [("changes", JsValue::from_f64(changes as f64)), ("lastInsertRowid", rowid)]
    }

    pub(super) fn describe_one(&self, sql: &str) -> Result<JsValue> {
        // The authorizer hears of every table that is read, also through views. A statement that
        // is prepared already would not be asked about again, so the cache is not used.
        let read = Arc::new(Mutex::new(BTreeSet::new()));
        let heard = Arc::clone(&read);
        self.conn.authorizer(Some(move |context: AuthContext<'_>| {
            if let AuthAction::Read { table_name, .. } = context.action {
                let mut read = heard.lock().unwrap_or_else(PoisonError::into_inner);
                if !read.contains(table_name) {
                    read.insert(table_name.to_owned());
                }
            }
            Authorization::Allow
        }))?;
        let prepared = self.conn.prepare(sql);
        self.conn.authorizer(None::<fn(AuthContext<'_>) -> Authorization>)?;
        let statement = prepared?;
        let tables = read.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(object(&[
            ("columns", column_names(&statement).into()),
            ("parameters", JsValue::from_f64(statement.parameter_count() as f64)),
            ("readonly", statement.readonly().into()),
            ("tables", tables.iter().map(|name| JsValue::from_str(name)).collect::<Array>().into()),
        ]))
    }
}

fn column_names(statement: &Statement<'_>) -> Array {
    statement.column_names().into_iter().map(JsValue::from_str).collect()
}
