//! Scalar SQL functions: one trampoline for all of them, arguments in, value or error out.
//!
//! It registers through sqlite-loadable's bindings directly: its `define_scalar_function`
//! allocates a closure per function and handle that nothing ever frees, which a program that
//! opens a handle per request would notice.

use super::panic::guarded;
use super::{Host, SqlError};
use rusqlite::ffi::sqlite3;
use rusqlite::types::Value;
use sqlite_loadable::FunctionFlags;
use sqlite_loadable::api::{self, ValueType};
use sqlite_loadable::ext;
use std::ffi::{CString, c_int, c_void};
use std::ops::Deref;

/// The host side of one call: the handle that runs the statement.
#[derive(Debug)]
pub struct CallContext {
    host: Host,
}

impl Deref for CallContext {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.host
    }
}

/// One scalar function of the SQL surface.
pub struct SqlFunction {
    /// The name in SQL.
    pub name: &'static str,
    /// The least number of arguments.
    pub min_args: usize,
    /// The greatest number of arguments.
    pub max_args: usize,
    /// How to call it, for error messages: `wavesync_join(topic, passphrase [, options])`.
    pub usage: &'static str,
    /// What it does. The number of arguments has been checked.
    pub run: fn(&CallContext, &[Value]) -> Result<Value, SqlError>,
}

/// Makes `function` callable from top-level SQL on `db`, never from a trigger or a view: a
/// database file from elsewhere must not be able to call it.
///
/// # Safety
/// `db` must be an open handle of the SQLite that both bindings were initialised with.
pub(super) unsafe fn register(
    db: *mut sqlite3,
    function: &'static SqlFunction,
) -> Result<(), SqlError> {
    let name = CString::new(function.name)
        .map_err(|_| SqlError::new("wavesync: a function name contains a NUL byte"))?;
    let flags = FunctionFlags::UTF8 | FunctionFlags::DIRECTONLY;
    let user_data = std::ptr::from_ref(function).cast_mut().cast::<c_void>();
    // SAFETY: `db` is open (caller). The user data is a static that the trampoline only reads;
    // it needs no destructor. The two `sqlite3` types name the same opaque C struct.
    let code = unsafe {
        ext::sqlite3ext_create_function_v2(
            db.cast(),
            name.as_ptr(),
            -1,
            flags.bits(),
            user_data,
            Some(call),
            None,
            None,
            None,
        )
    };
    if code == 0 {
        return Ok(());
    }
    Err(SqlError::new(format!(
        "wavesync: SQLite refused to register {} (code {code}). Load wavesync on a handle that \
         runs no other statement.",
        function.name
    )))
}

/// What SQLite calls for every function of ours.
unsafe extern "C" fn call(
    context: *mut ext::sqlite3_context,
    count: c_int,
    values: *mut *mut ext::sqlite3_value,
) {
    // SAFETY: `register` stored a `&'static SqlFunction`, and nothing else uses this trampoline.
    let function = unsafe { &*ext::sqlite3ext_user_data(context).cast::<SqlFunction>() };
    let outcome = guarded(function.name, || {
        let count = usize::try_from(count).unwrap_or(0);
        check_count(function, count)?;
        let values: &[*mut ext::sqlite3_value] = if count == 0 {
            &[]
        } else {
            // SAFETY: SQLite passes `count` valid values that live for the time of this call.
            unsafe { std::slice::from_raw_parts(values, count) }
        };
        let arguments = decode_all(function, values)?;
        // SAFETY: the context belongs to a statement that is running on an open handle, on the
        // thread that runs it.
        let host = unsafe { Host::new(ext::sqlite3ext_context_db_handle(context).cast()) };
        (function.run)(&CallContext { host }, &arguments)
    });
    // SAFETY: `context` is the one of this call.
    unsafe { answer(context, outcome) };
}

fn check_count(function: &SqlFunction, count: usize) -> Result<(), SqlError> {
    if (function.min_args..=function.max_args).contains(&count) {
        return Ok(());
    }
    let plural = if count == 1 { "" } else { "s" };
    Err(SqlError::new(format!(
        "wavesync: {} was called with {count} argument{plural}. Usage: {}",
        function.name, function.usage
    )))
}

fn decode_all(
    function: &SqlFunction,
    values: &[*mut ext::sqlite3_value],
) -> Result<Vec<Value>, SqlError> {
    let mut arguments = Vec::with_capacity(values.len());
    for (index, value) in values.iter().enumerate() {
        // SAFETY: SQLite passed this value to the running call.
        arguments.push(unsafe { decode(*value) }.map_err(|problem| {
            SqlError::new(format!(
                "wavesync: argument {} of {} {problem}",
                index + 1,
                function.name
            ))
        })?);
    }
    Ok(arguments)
}

/// A copy of an SQL value, unchanged. Text that is not UTF-8 is refused, never altered.
///
/// # Safety
/// `value` must be a protected value of a running call.
unsafe fn decode(value: *mut ext::sqlite3_value) -> Result<Value, &'static str> {
    match api::value_type(&value) {
        ValueType::Null => Ok(Value::Null),
        ValueType::Integer => Ok(Value::Integer(api::value_int64(&value))),
        ValueType::Float => Ok(Value::Real(api::value_double(&value))),
        ValueType::Blob => {
            // SAFETY: `value` is protected (caller); the pointer is asked for before the size.
            let start = unsafe { ext::sqlite3ext_value_blob(value) };
            // SAFETY: as above; the size belongs to the pointer that was just returned.
            Ok(Value::Blob(unsafe { bytes(start.cast(), value) }))
        }
        ValueType::Text => {
            // SAFETY: `value` is protected (caller); the pointer is asked for before the size.
            let start = unsafe { ext::sqlite3ext_value_text(value) };
            if start.is_null() {
                return Err("could not be read: the host ran out of memory");
            }
            // SAFETY: as above; the size belongs to the pointer that was just returned.
            let text = unsafe { bytes(start, value) };
            let text = String::from_utf8(text);
            text.map(Value::Text).map_err(|_| "is text that is not valid UTF-8; pass a BLOB")
        }
    }
}

/// # Safety
/// `start` must be what SQLite returned last for the bytes of `value`.
unsafe fn bytes(start: *const u8, value: *mut ext::sqlite3_value) -> Vec<u8> {
    // SAFETY: `value` is protected (caller).
    let length = usize::try_from(unsafe { ext::sqlite3ext_value_bytes(value) }).unwrap_or(0);
    if start.is_null() || length == 0 {
        return Vec::new();
    }
    // SAFETY: SQLite holds `length` bytes at `start` until the value is converted or released.
    unsafe { std::slice::from_raw_parts(start, length) }.to_vec()
}

/// Hands the outcome to SQLite, which copies it. Must not panic.
///
/// # Safety
/// `context` must be the context of the running call.
unsafe fn answer(context: *mut ext::sqlite3_context, outcome: Result<Value, SqlError>) {
    const TOO_BIG: c_int = rusqlite::ffi::SQLITE_TOOBIG;
    match outcome {
        Ok(Value::Null) => api::result_null(context),
        Ok(Value::Integer(number)) => api::result_int64(context, number),
        Ok(Value::Real(number)) => api::result_double(context, number),
        Ok(Value::Text(text)) => match c_int::try_from(text.len()) {
            // SAFETY: `text` holds `length` bytes; SQLITE_TRANSIENT (-1) makes SQLite copy them
            // before the call returns.
            Ok(length) => unsafe {
                let transient =
                    std::mem::transmute::<isize, Option<unsafe extern "C" fn(*mut c_void)>>(-1);
                ext::sqlite3ext_result_text(context, text.as_ptr().cast(), length, transient);
            },
            Err(_) => api::result_error_code(context, TOO_BIG),
        },
        Ok(Value::Blob(blob)) => match c_int::try_from(blob.len()) {
            // SAFETY: `blob` holds `length` bytes, which the binding lets SQLite copy. An empty
            // vector's pointer is not null, so that SQLite makes an empty blob and not NULL.
            Ok(length) => unsafe {
                ext::sqlite3ext_result_blob(context, blob.as_ptr().cast(), length);
            },
            Err(_) => api::result_error_code(context, TOO_BIG),
        },
        Err(error) => {
            let length = c_int::try_from(error.message.len()).unwrap_or(c_int::MAX);
            // SAFETY: the message holds at least `length` bytes; SQLite copies them.
            unsafe {
                ext::sqlite3ext_result_error(context, error.message.as_ptr().cast(), length);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const JOIN: SqlFunction = SqlFunction {
        name: "wavesync_join",
        min_args: 2,
        max_args: 3,
        usage: "wavesync_join(topic, passphrase [, options])",
        run: |_, _| Ok(Value::Null),
    };

    #[test]
    fn a_wrong_number_of_arguments_names_the_usage() {
        let error = check_count(&JOIN, 1).unwrap_err().message;
        assert_eq!(
            error,
            "wavesync: wavesync_join was called with 1 argument. \
             Usage: wavesync_join(topic, passphrase [, options])"
        );
        assert!(check_count(&JOIN, 4).unwrap_err().message.contains("with 4 arguments."));
        assert!(check_count(&JOIN, 2).is_ok() && check_count(&JOIN, 3).is_ok());
    }
}
