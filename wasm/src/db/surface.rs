//! The functions and tables of `docs/SQL.md` on the application's connection, as far as they make
//! sense in a browser: joining, leaving and waiting are calls of the package.

use std::borrow::Cow;
use std::ffi::{CStr, CString, c_int};
use std::marker::PhantomData;

use rusqlite::functions::{Context, FunctionFlags};
use rusqlite::types::Value;
use rusqlite::vtab::{
    Filters, IndexInfo, Module, VTab, VTabConfig, VTabConnection, VTabCursor, sqlite3_vtab,
    sqlite3_vtab_cursor,
};
use rusqlite::{Connection, Error, Result};
use wavesync_core::auth::make_passphrase;
use wavesync_core::store::addresses::known_members;
use wavesync_core::store::calls::{self, Call};
use wavesync_core::store::report::{conflict_counts, is_joined};
use wavesync_core::store::{Store, listing};
use wavesync_core::value::Value as Shown;
use wavesync_net::driver::{self, shown};

use super::changes::Changes;
use crate::engine::report::HINTS;
use crate::engine::{self, file};

/// Name, least and greatest number of arguments.
const CALLS: &[(&CStr, c_int, c_int, Call)] = &[
    (c"wavesync_track", 1, 1, calls::track),
    (c"wavesync_untrack", 1, 1, calls::untrack),
    (c"wavesync_alter", 1, 1, calls::alter),
    (c"wavesync_export", 0, 1, calls::export),
    (c"wavesync_apply", 1, 1, calls::apply),
    (c"wavesync_retry", 0, 0, calls::retry),
    (c"wavesync_resync", 0, 0, calls::resync),
    (c"wavesync_restore", 1, 1, calls::restore),
    (c"wavesync_config", 1, 2, calls::config),
    (c"wavesync_site_id", 0, 0, calls::site_id),
    (c"wavesync_db_version", 0, 0, calls::db_version),
];

/// Name, and what makes a value.
type Plain = (&'static CStr, fn() -> Value);

/// Those that need no database.
const PLAIN: &[Plain] = &[
    (c"wavesync_passphrase", passphrase),
    (c"wavesync_version", || Value::Text(env!("CARGO_PKG_VERSION").to_owned())),
    (c"wavesync_id", id),
];

/// Name, columns, and the rows: of a connection of its own, for the file of this path.
type Table = (&'static CStr, &'static [&'static str], fn(&str) -> CoreResult<Vec<Vec<Shown>>>);
type CoreResult<T> = wavesync_core::Result<T>;

static TABLES: &[Table] = &[
    (c"wavesync_status", shown::STATUS, status),
    (c"wavesync_peers", shown::PEERS, peers),
    (c"wavesync_events", shown::EVENTS, events),
    (c"wavesync_tables", listing::TABLES, |path| listing::tables(&file::connect(path)?)),
    (c"wavesync_conflicts", listing::CONFLICTS, |path| listing::conflicts(&file::connect(path)?)),
];

/// Makes them callable. What a function writes is noted as a change of the application's.
///
/// # Errors
/// What SQLite says.
pub fn register(conn: &Connection, path: &str, changes: &Changes) -> Result<()> {
    // Never from a trigger or a view: a file from elsewhere must not be able to call them.
    let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DIRECTONLY;
    for (name, least, greatest, call) in CALLS {
        for count in *least..=*greatest {
            let (path, changes) = (path.to_owned(), changes.clone());
            let call = move |context: &Context| run(&path, &changes, *call, context);
            conn.create_scalar_function(*name, count, flags, call)?;
        }
    }
    for (name, make) in PLAIN {
        conn.create_scalar_function(*name, 0, flags, move |_: &Context| Ok(make()))?;
    }
    for table in TABLES {
        let aux = (path.to_owned(), table);
        conn.create_module(table.0, &MODULE, Some(aux))?;
    }
    Ok(())
}

fn run(path: &str, changes: &Changes, call: Call, context: &Context) -> Result<Value> {
    let done = || -> CoreResult<Value> {
        let args = (0..context.len()).map(|at| context.get_raw(at).try_into().map_err(Error::from));
        let args = args.collect::<Result<Vec<_>>>()?;
        let job = call(&args)?;
        let conn = file::connect(path)?;
        changes.follow(&conn)?;
        job(&mut Store::open(conn)?, driver::now())
    };
    let done = done().map_err(|error| {
        let text = if error.is_lock() {
            "wavesync: this call cannot be part of a transaction; end that first".to_owned()
        } else {
            format!("wavesync: {error}")
        };
        Error::UserFunctionError(text.into())
    });
    if done.is_ok() {
        engine::committed(path);
    }
    done
}

fn passphrase() -> Value {
    let mut random = [0; 20];
    driver::random(&mut random);
    Value::Text(make_passphrase(&random))
}

fn id() -> Value {
    let mut random = [0; 4];
    driver::random(&mut random);
    Value::Integer(calls::id(driver::now(), random))
}

fn status(path: &str) -> CoreResult<Vec<Vec<Shown>>> {
    let conn = file::connect(path)?;
    let conflicts = conflict_counts(&conn)?;
    if let Some(snapshot) = engine::snapshot(path) {
        return Ok(vec![shown::status(&snapshot, conflicts, &HINTS)]);
    }
    if !is_joined(&conn)? {
        return Ok(vec![shown::status_off(None, None, 0, conflicts, "", &HINTS)]);
    }
    let store = Store::open(conn)?;
    let last_error = store.stopped_contact()?.unwrap_or_default();
    let (topic, own, version) = (store.topic()?, store.site_id()?, store.db_version()?.0);
    let topic = topic.as_deref();
    Ok(vec![shown::status_off(topic, own, version, conflicts, &last_error, &HINTS)])
}

fn peers(path: &str) -> CoreResult<Vec<Vec<Shown>>> {
    let connected = engine::snapshot(path).map(|snapshot| snapshot.peers).unwrap_or_default();
    let conn = file::connect(path)?;
    let known = if is_joined(&conn)? { known_members(&conn)? } else { Vec::new() };
    Ok(shown::peers(&connected, known))
}

fn events(path: &str) -> CoreResult<Vec<Vec<Shown>>> {
    let events = engine::snapshot(path).map(|snapshot| snapshot.events).unwrap_or_default();
    Ok(events.iter().map(shown::event).collect())
}

const MODULE: Module<Listed> = Module::eponymous_only_module();

/// One of the tables, to SQLite.
#[repr(C)]
struct Listed {
    base: sqlite3_vtab,
    path: String,
    table: &'static Table,
}

#[repr(C)]
struct Cursor<'t> {
    base: sqlite3_vtab_cursor,
    path: String,
    table: &'static Table,
    rows: Vec<Vec<Shown>>,
    at: usize,
    of: PhantomData<&'t Listed>,
}

// SAFETY: the base class is the first member, as it must be.
#[allow(unsafe_code)]
unsafe impl<'t> VTab<'t> for Listed {
    type Aux = (String, &'static Table);
    type Cursor = Cursor<'t>;

    fn connect(
        db: &mut VTabConnection,
        aux: Option<&Self::Aux>,
        _module: &[u8],
        _database: &[u8],
        _table: &[u8],
        _args: &[&[u8]],
    ) -> Result<(Cow<'static, CStr>, Self)> {
        let (path, table) = aux.cloned().ok_or(Error::InvalidQuery)?;
        db.config(VTabConfig::DirectOnly)?;
        let columns: Vec<String> = table.1.iter().map(|name| format!("\"{name}\"")).collect();
        let declaration = CString::new(format!("CREATE TABLE x({})", columns.join(", ")))?;
        Ok((declaration.into(), Self { base: sqlite3_vtab::default(), path, table }))
    }

    fn best_index(&self, info: &mut IndexInfo) -> Result<bool> {
        info.set_estimated_cost(1_000.0);
        Ok(true)
    }

    fn open(&'t mut self) -> Result<Cursor<'t>> {
        Ok(Cursor {
            base: sqlite3_vtab_cursor::default(),
            path: self.path.clone(),
            table: self.table,
            rows: Vec::new(),
            at: 0,
            of: PhantomData,
        })
    }
}

// SAFETY: the base class is the first member, as it must be.
#[allow(unsafe_code)]
unsafe impl VTabCursor for Cursor<'_> {
    fn filter(&mut self, _: c_int, _: Option<&str>, _: &Filters<'_>) -> Result<()> {
        self.at = 0;
        self.rows =
            (self.table.2)(&self.path).map_err(|error| Error::ModuleError(error.to_string()))?;
        Ok(())
    }

    fn next(&mut self) -> Result<()> {
        self.at += 1;
        Ok(())
    }

    fn eof(&self) -> bool {
        self.at >= self.rows.len()
    }

    fn column(&self, context: &mut rusqlite::vtab::Context, column: c_int) -> Result<()> {
        let row = self.rows.get(self.at);
        let value = usize::try_from(column).ok().and_then(|column| row?.get(column));
        context.set_result(value.unwrap_or(&Shown::Null))
    }

    fn rowid(&self) -> Result<i64> {
        Ok(self.at as i64)
    }
}
