//! Errors as JavaScript sees them: `code` for programs, `message` and `hint` for people.

use js_sys::Reflect;
use rusqlite::ffi;
use wasm_bindgen::JsValue;

/// What went wrong in the module.
#[derive(Debug)]
pub struct Fault {
    /// A stable word.
    pub code: &'static str,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub hint: &'static str,
    /// SQLite's extended result code, or 0.
    pub sqlite: i32,
}

/// A result whose error goes to JavaScript.
pub type Result<T, E = Fault> = std::result::Result<T, E>;

impl Fault {
    /// An error that is not SQLite's.
    pub fn new(code: &'static str, message: impl Into<String>, hint: &'static str) -> Self {
        Self { code, message: message.into(), hint, sqlite: 0 }
    }
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        let (sqlite, text) = match &error {
            rusqlite::Error::SqliteFailure(failure, text) => (failure.extended_code, text.clone()),
            _ => (0, None),
        };
        let (code, hint) = described(sqlite);
        let message = text.unwrap_or_else(|| error.to_string());
        Self { code, message, hint, sqlite }
    }
}

impl From<wavesync_core::Error> for Fault {
    fn from(error: wavesync_core::Error) -> Self {
        match error {
            wavesync_core::Error::Sqlite(error) => error.into(),
            wavesync_core::Error::Argument(text) => Self::new("bad_argument", text, ""),
            wavesync_core::Error::Database(text) => Self::new("database", text, ""),
            other => Self::new("engine", other.to_string(), ""),
        }
    }
}

/// The word and the hint for a result code of SQLite.
fn described(sqlite: i32) -> (&'static str, &'static str) {
    match sqlite & 0xff {
        ffi::SQLITE_FULL => (
            "quota_exceeded",
            "the browser gives this site no more room: delete data, or ask the user for persistent \
             storage with navigator.storage.persist(); nothing of this call was stored",
        ),
        ffi::SQLITE_CORRUPT | ffi::SQLITE_NOTADB => (
            "corrupt_database",
            "the file is damaged: import a copy, or delete the database and join again, so that \
             members send it anew",
        ),
        ffi::SQLITE_CONSTRAINT => ("constraint", "the row breaks a rule of its table"),
        ffi::SQLITE_BUSY | ffi::SQLITE_LOCKED => ("busy", "call again in a moment"),
        ffi::SQLITE_IOERR | ffi::SQLITE_CANTOPEN => {
            ("io", "the browser's storage failed; nothing of this call was stored")
        }
        ffi::SQLITE_NOMEM => ("out_of_memory", "ask for fewer rows at once"),
        ffi::SQLITE_READONLY => ("read_only", "this statement writes, and must not here"),
        ffi::SQLITE_INTERRUPT => ("interrupted", ""),
        _ => ("sql", ""),
    }
}

impl From<Fault> for JsValue {
    fn from(fault: Fault) -> Self {
        let error = js_sys::Error::new(&fault.message);
        let set = |name: &str, value: JsValue| {
            // Setting a property of a fresh error object cannot fail.
            let _ = Reflect::set(&error, &name.into(), &value);
        };
        set("code", fault.code.into());
        set("hint", fault.hint.into());
        set("sqlite", fault.sqlite.into());
        error.into()
    }
}
