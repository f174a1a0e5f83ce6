//! A loadable extension of its own, made of nothing but the crate's plumbing: the tests load it
//! into real hosts to see what the real functions never show, such as a panic.

use rusqlite::config::DbConfig;
use rusqlite::ffi::{sqlite3, sqlite3_api_routines};
use rusqlite::types::Value;
use std::ffi::{c_char, c_int};
use std::sync::atomic::{AtomicI64, Ordering};
use wavesync::ffi::{
    CallContext, DatabasePath, SqlError, SqlFunction, Surface, forked, handle, load,
    on_handle_closed,
};
use wavesync::table::{Rows, SqlTable, TableContext};
use wavesync_core::value::Value as Cell;

static CLOSED: AtomicI64 = AtomicI64::new(0);
/// Iterators of `plumbing_numbers` that are alive.
static SCANS: AtomicI64 = AtomicI64::new(0);

static SURFACE: Surface =
    Surface { guard: "__plumbing_handle", functions: FUNCTIONS, tables: TABLES };

/// # Safety
/// To be called by SQLite only, as an extension entry point.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sqlite3_plumbing_init(
    db: *mut sqlite3,
    error_text: *mut *mut c_char,
    routines: *mut sqlite3_api_routines,
) -> c_int {
    on_handle_closed(|handle_id| {
        if !handle::is_open(handle_id) {
            CLOSED.fetch_add(1, Ordering::SeqCst);
        }
    });
    // SAFETY: the arguments are the ones that SQLite passed to its entry point.
    unsafe { load(db, error_text, routines, &SURFACE) }
}

/// An entry point that fails half way: SQLite takes no function name of more than 255 bytes.
///
/// # Safety
/// To be called by SQLite only, as an extension entry point.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sqlite3_broken_init(
    db: *mut sqlite3,
    error_text: *mut *mut c_char,
    routines: *mut sqlite3_api_routines,
) -> c_int {
    static BROKEN: Surface = Surface {
        guard: "__broken_handle",
        functions: &[
            SqlFunction {
                name: "broken_answer",
                min_args: 0,
                max_args: 0,
                usage: "broken_answer()",
                run: |_, _| Ok(Value::Integer(42)),
            },
            SqlFunction {
                name: TOO_LONG,
                min_args: 0,
                max_args: 0,
                usage: "",
                run: |_, _| Ok(Value::Null),
            },
        ],
        tables: &[],
    };
    // SAFETY: the arguments are the ones that SQLite passed to its entry point.
    unsafe { load(db, error_text, routines, &BROKEN) }
}

const TOO_LONG: &str = match std::str::from_utf8(&[b'x'; 300]) {
    Ok(name) => name,
    Err(_) => panic!("letters are UTF-8"),
};

static FUNCTIONS: &[SqlFunction] = &[
    SqlFunction {
        name: "plumbing_echo",
        min_args: 1,
        max_args: 2,
        usage: "plumbing_echo(value [, ignored])",
        run: |_, args| Ok(args[0].clone()),
    },
    SqlFunction {
        name: "plumbing_panic",
        min_args: 0,
        max_args: 0,
        usage: "plumbing_panic()",
        run: |_, _| panic!("planted"),
    },
    SqlFunction {
        name: "plumbing_refuse",
        min_args: 1,
        max_args: 1,
        usage: "plumbing_refuse(text)",
        run: |_, args| match &args[0] {
            Value::Text(text) => Err(SqlError::new(text.clone())),
            _ => Err(SqlError::new("not a text")),
        },
    },
    SqlFunction {
        name: "plumbing_facts",
        min_args: 0,
        max_args: 0,
        usage: "plumbing_facts()",
        run: facts,
    },
    SqlFunction {
        name: "plumbing_counts",
        min_args: 0,
        max_args: 0,
        usage: "plumbing_counts()",
        run: counts,
    },
    SqlFunction {
        name: "plumbing_second",
        min_args: 1,
        max_args: 1,
        usage: "plumbing_second(path)",
        run: second,
    },
    SqlFunction {
        name: "plumbing_execute",
        min_args: 1,
        max_args: 1,
        usage: "plumbing_execute(sql)",
        run: execute,
    },
];

/// What the context tells about the host, as `kind path read_only in_transaction foreign_keys`.
fn facts(host: &CallContext, _: &[Value]) -> Result<Value, SqlError> {
    let place = match host.database_path() {
        DatabasePath::File(path) => format!("file {}", path.display()),
        DatabasePath::Memory => "memory -".to_owned(),
        DatabasePath::Temporary => "temporary -".to_owned(),
    };
    let flag = |set: bool| if set { 1 } else { 0 };
    Ok(Value::Text(format!(
        "{place} {} {} {}",
        flag(host.is_read_only()),
        flag(host.in_transaction()),
        flag(host.pragma_foreign_keys())
    )))
}

/// `forked open_handles closed_handles this_handle_is_open scans_alive`
fn counts(host: &CallContext, _: &[Value]) -> Result<Value, SqlError> {
    Ok(Value::Text(format!(
        "{} {} {} {} {}",
        i32::from(forked()),
        handle::open_handles(),
        CLOSED.load(Ordering::SeqCst),
        i32::from(handle::is_open(host.handle_id())),
        SCANS.load(Ordering::SeqCst)
    )))
}

/// Opens a connection of its own through the host's SQLite, on another thread, and writes once
/// with triggers and once without: `version rows_seen_by_the_trigger`.
fn second(_: &CallContext, args: &[Value]) -> Result<Value, SqlError> {
    let Value::Text(path) = args[0].clone() else { return Err(SqlError::new("a path, please")) };
    let work = move || -> rusqlite::Result<String> {
        let own = rusqlite::Connection::open(path)?;
        own.execute_batch(
            "CREATE TABLE t(a); CREATE TABLE seen(a);
             CREATE TRIGGER t_seen AFTER INSERT ON t BEGIN INSERT INTO seen VALUES (new.a); END;",
        )?;
        own.execute("INSERT INTO t VALUES (?1)", [1])?;
        let on = own.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
        own.execute("INSERT INTO t VALUES (?1)", [2])?;
        let read = own.db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER)?;
        let seen: String = own.query_row("SELECT group_concat(a) FROM seen", [], |r| r.get(0))?;
        let all: String = own.query_row("SELECT group_concat(a) FROM t", [], |r| r.get(0))?;
        own.close().map_err(|(_, error)| error)?;
        Ok(format!("rows {all} seen {seen} enabled {on} {read}"))
    };
    let text = std::thread::spawn(work)
        .join()
        .map_err(|_| SqlError::new("the thread of the second connection panicked"))??;
    Ok(Value::Text(text))
}

/// Runs a statement on the host's own handle and gives the number of changed rows.
fn execute(host: &CallContext, args: &[Value]) -> Result<Value, SqlError> {
    let Value::Text(sql) = &args[0] else { return Err(SqlError::new("SQL text, please")) };
    let changed = host.connection()?.execute(sql, [])?;
    Ok(Value::Integer(i64::try_from(changed).unwrap_or(i64::MAX)))
}

static TABLES: &[SqlTable] = &[
    SqlTable {
        name: "plumbing_words",
        columns: &["table", "select", "odd \"name\""],
        seek: None,
        rows: |_| {
            let row = |n: i64| Ok(vec![Cell::Integer(n), Cell::Null, Cell::text("x")]);
            Ok(Box::new((10..13).map(row)))
        },
        insert: None,
        committed: None,
        filters: &[],
    },
    SqlTable {
        name: "plumbing_numbers",
        columns: &["n", "start"],
        seek: Some("n"),
        rows: numbers,
        insert: None,
        committed: None,
        filters: &[],
    },
    SqlTable {
        name: "plumbing_panics",
        columns: &["n"],
        seek: None,
        rows: |_| {
            Ok(Box::new((1..9).map(|n| {
                assert!(n < 3, "planted in row {n}");
                Ok(vec![Cell::Integer(n)])
            })))
        },
        insert: None,
        committed: None,
        filters: &[],
    },
    SqlTable {
        name: "plumbing_refuses",
        columns: &["n"],
        seek: None,
        rows: |_| Err(SqlError::new("not joined yet; call wavesync_join")),
        insert: None,
        committed: None,
        filters: &[],
    },
    SqlTable {
        name: "plumbing_narrow",
        columns: &["a", "b"],
        seek: None,
        rows: |_| Ok(Box::new(std::iter::once(Ok(vec![Cell::Null])))),
        insert: None,
        committed: None,
        filters: &[],
    },
    SqlTable {
        name: "plumbing_inbox",
        columns: &["line"],
        seek: None,
        rows: |_| Ok(Box::new(std::iter::once(Ok(vec![Cell::Null])))),
        insert: Some(|host, row| {
            let connection = host.connection()?;
            connection.execute("INSERT INTO lines(line) VALUES (?1)", [&row[0]])?;
            Ok(connection.last_insert_rowid())
        }),
        committed: None,
        filters: &[],
    },
];

/// The integers up to a million; `start` shows where the scan was told to begin.
fn numbers(asked: &TableContext) -> Result<Rows, SqlError> {
    struct Scan {
        next: i64,
        through: i64,
        start: Cell,
    }
    impl Iterator for Scan {
        type Item = Result<Vec<Cell>, SqlError>;
        fn next(&mut self) -> Option<Self::Item> {
            let n = self.next;
            self.next += 1;
            (n <= self.through).then(|| Ok(vec![Cell::Integer(n), self.start.clone()]))
        }
    }
    impl Drop for Scan {
        fn drop(&mut self) {
            SCANS.fetch_sub(1, Ordering::SeqCst);
        }
    }
    SCANS.fetch_add(1, Ordering::SeqCst);
    let after = asked.seek_after.unwrap_or(0).max(0);
    Ok(Box::new(Scan {
        next: after + 1,
        through: asked.seek_through.unwrap_or(i64::MAX).min(1_000_000),
        start: asked.seek_after.map_or(Cell::Null, Cell::Integer),
    }))
}
