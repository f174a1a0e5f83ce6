//! The loadable extension: what SQL sees of wavesync. It lists the functions and tables of the
//! SQL surface; how they reach SQLite is `ffi`, what they do is their own module's business.

mod changes;
mod doctor;
mod engine;
pub mod ffi;
mod functions;
mod metrics;
mod options;
pub mod table;
mod tables;

use ffi::Surface;

/// Everything that `.load` makes available on a handle.
pub static SURFACE: Surface =
    Surface { guard: "__wavesync_handle", functions: functions::FUNCTIONS, tables: tables::TABLES };
