//! The loadable extension: what SQL sees of wavesync. It lists the functions and tables of the
//! SQL surface; how they reach SQLite is `ffi`, what they do is their own module's business.

pub mod ffi;
pub mod table;

use ffi::{CallContext, SqlError, SqlFunction, Surface};
use rusqlite::types::Value;

/// Everything that `.load` makes available on a handle.
pub static SURFACE: Surface =
    Surface { guard: "__wavesync_handle", functions: FUNCTIONS, tables: &[] };

static FUNCTIONS: &[SqlFunction] = &[SqlFunction {
    name: "wavesync_version",
    min_args: 0,
    max_args: 0,
    usage: "wavesync_version()",
    run: version,
}];

fn version(_: &CallContext, _: &[Value]) -> Result<Value, SqlError> {
    Ok(Value::Text(env!("CARGO_PKG_VERSION").to_owned()))
}
