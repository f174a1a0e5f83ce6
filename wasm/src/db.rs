//! The application's connection: statements, transactions, changes, copies of the file.
//!
//! Knows nothing of tabs (that is JavaScript) and of sync (the engine has a connection of its own).

mod changes;
mod pool;
mod statement;
mod surface;
mod value;

use std::cell::Cell;

use js_sys::Uint8Array;
use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags};
use wasm_bindgen::JsValue;
use wasm_bindgen::prelude::wasm_bindgen;

use crate::error::{Fault, Result};
use changes::Changes;

/// So many statements stay prepared.
const PREPARED_MAX: usize = 128;
/// The page size of new files, SQLite's own default elsewhere, so that copies are exchanged freely.
const PAGE_BYTES: u32 = 4096;
/// Where a file that is imported lies until its pages were taken over.
const IMPORT_PATH: &str = "/import";

/// An open database.
#[wasm_bindgen]
pub struct Database {
    conn: Connection,
    changes: Changes,
    memory: bool,
    /// A transaction of the application is open, from [`Database::begin`] on.
    open: Cell<bool>,
}

#[wasm_bindgen]
impl Database {
    /// Opens a file of the pool, or one in memory.
    ///
    /// # Errors
    /// `corrupt_database`, or what SQLite says.
    #[wasm_bindgen(constructor)]
    pub fn new(path: &str, memory: bool) -> Result<Database, JsValue> {
        Ok(Self::open(path, memory)?)
    }

    /// Whether it is gone when it is closed.
    #[wasm_bindgen(getter)]
    #[must_use]
    pub fn memory(&self) -> bool {
        self.memory
    }

    /// Runs statements as one transaction; gives `{changes, lastInsertRowid}`.
    ///
    /// # Errors
    /// What SQLite says; then nothing of it was done.
    pub fn exec(&self, sql: &str, params: &JsValue) -> Result<JsValue, JsValue> {
        Ok(self.exec_all(sql, params)?)
    }

    /// Runs one statement; gives `{columns, rows, changes, lastInsertRowid}`.
    ///
    /// # Errors
    /// What SQLite says; then nothing of it was done.
    pub fn query(&self, sql: &str, params: &JsValue) -> Result<JsValue, JsValue> {
        Ok(self.query_one(sql, params)?)
    }

    /// What a statement is: `{columns, parameters, readonly, tables}`.
    ///
    /// # Errors
    /// If it is not one correct statement.
    pub fn describe(&self, sql: &str) -> Result<JsValue, JsValue> {
        Ok(self.describe_one(sql)?)
    }

    /// Begins a transaction.
    ///
    /// # Errors
    /// `busy`, or what SQLite says.
    pub fn begin(&self) -> Result<(), JsValue> {
        self.conn.execute_batch("BEGIN IMMEDIATE").map_err(Fault::from)?;
        self.open.set(true);
        Ok(())
    }

    /// Commits it.
    ///
    /// # Errors
    /// What SQLite says; then it was rolled back.
    pub fn commit(&self) -> Result<(), JsValue> {
        self.open.set(false);
        let done = self.conn.execute_batch("COMMIT").map_err(Fault::from);
        if done.is_err() {
            self.undo();
        }
        Ok(done?)
    }

    /// Takes it back.
    pub fn rollback(&self) {
        self.open.set(false);
        self.undo();
    }

    /// Whether the transaction that was begun is still open: SQLite ends one by itself after some
    /// errors.
    #[wasm_bindgen(js_name = inTransaction)]
    #[must_use]
    pub fn in_transaction(&self) -> bool {
        !self.conn.is_autocommit()
    }

    /// What was changed and committed since the last call: `{tables: [{table, keys}], schema}`,
    /// or null. `keys` is null where they are too many.
    #[wasm_bindgen(js_name = takeChanges)]
    #[must_use]
    pub fn take_changes(&self) -> JsValue {
        if self.conn.is_autocommit() { self.changes.take() } else { JsValue::NULL }
    }

    /// The whole database as a file.
    ///
    /// # Errors
    /// What SQLite says.
    #[wasm_bindgen(js_name = exportFile)]
    pub fn export_file(&self) -> Result<Uint8Array, JsValue> {
        let data = self.conn.serialize("main").map_err(Fault::from)?;
        let file = Uint8Array::from(&data[..]);
        // The bytes that say WAL: a copy is opened anywhere, also read-only.
        if file.length() > 19 {
            file.set_index(18, 1);
            file.set_index(19, 1);
        }
        Ok(file)
    }

    /// Replaces the content by that of a file, in one transaction: all of it or nothing.
    ///
    /// # Errors
    /// `not_a_database`, `corrupt_database`, or what SQLite says; then nothing was changed.
    #[wasm_bindgen(js_name = importFile)]
    pub fn import_file(&mut self, bytes: &[u8]) -> Result<(), JsValue> {
        let done = self.import(bytes);
        if !self.memory {
            // It is emptied when the pool is opened, too.
            let _ = pool::with(|pool| pool.delete_db(IMPORT_PATH));
        }
        Ok(done?)
    }
}

impl Database {
    fn open(path: &str, memory: bool) -> Result<Self> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
        let base = if memory { c"memvfs" } else { pool::VFS };
        crate::vfs::register(base).map_err(|text| Fault::new("io", text, ""))?;
        let conn = Connection::open_with_flags_and_vfs(path, flags, crate::vfs::NAME)?;
        // Waiting would block the one who has the lock.
        conn.busy_timeout(std::time::Duration::ZERO)?;
        conn.set_prepared_statement_cache_capacity(PREPARED_MAX);
        conn.pragma_update(None, "page_size", PAGE_BYTES)?;
        if !memory {
            conn.execute_batch("PRAGMA synchronous=FULL;")?;
            let mode: String = conn.query_row("PRAGMA journal_mode=WAL", [], |row| row.get(0))?;
            if mode != "wal" {
                return Err(Fault::new("io", format!("the journal mode is {mode}, not WAL"), ""));
            }
        }
        // The first read shows whether it is a database at all.
        conn.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
        let changes = Changes::watch(&conn)?;
        changes.learn(&conn)?;
        surface::register(&conn, path, &changes)?;
        Ok(Self { conn, changes, memory, open: Cell::new(false) })
    }

    fn undo(&self) {
        if !self.conn.is_autocommit() {
            // A rollback can only fail if SQLite already rolled back by itself.
            let _ = self.conn.execute_batch("ROLLBACK");
        }
    }

    fn import(&mut self, bytes: &[u8]) -> Result<()> {
        if bytes.len() < 512 || !bytes.starts_with(b"SQLite format 3\0") {
            return Err(Fault::new(
                "not_a_database",
                "these bytes are not an SQLite database file",
                "give what export() gave, or the bytes of a .db file",
            ));
        }
        let mut source = if self.memory {
            let mut source = Connection::open_in_memory()?;
            source.deserialize_read_exact("main", bytes, bytes.len(), false)?;
            source
        } else {
            pool::with(|pool| {
                pool.delete_db(IMPORT_PATH)?;
                pool.import_db(IMPORT_PATH, bytes)
            })?;
            Connection::open_with_flags_and_vfs(
                IMPORT_PATH,
                OpenFlags::SQLITE_OPEN_READ_WRITE,
                pool::VFS,
            )?
        };
        let found: String = source.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if found != "ok" {
            return Err(Fault::new(
                "corrupt_database",
                format!("the file is damaged: {found}"),
                "nothing was changed; take another copy",
            ));
        }
        self.take_pages(&mut source)?;
        self.changes.learn(&self.conn)
    }

    fn take_pages(&mut self, source: &mut Connection) -> Result<()> {
        let page = |conn: &Connection| -> Result<i64> {
            Ok(conn.query_row("PRAGMA page_size", [], |row| row.get(0))?)
        };
        let own = page(&self.conn)?;
        if page(source)? != own {
            source.execute_batch(&format!("PRAGMA page_size={own}; VACUUM"))?;
        }
        let backup = Backup::new(source, &mut self.conn)?;
        match backup.step(-1)? {
            StepResult::Done => Ok(()),
            _ => Err(Fault::new("busy", "another transaction is open", "call again in a moment")),
        }
    }
}
