//! A replica's database file, in memory. The engine, the application and the oracles have a
//! connection each, as processes would, so that settings of one never touch the others.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use crate::image::Image;

/// Files of this process; their names are no part of a run.
static FILES: AtomicU64 = AtomicU64::new(0);

/// A file that is gone with its last connection.
pub struct File {
    name: String,
    pub app: Connection,
    eye: Connection,
    /// What was last read, and the state of the file in which it was.
    seen: RefCell<Option<(i64, Rc<Image>)>>,
}

impl File {
    pub fn new() -> Self {
        // SQLite shares a file in memory between connections if its name begins so.
        let name = format!("/simulator-{}", FILES.fetch_add(1, Ordering::Relaxed));
        let (app, eye) = (connect(&name), connect(&name));
        eye.pragma_update(None, "foreign_keys", false).unwrap();
        eye.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false).unwrap();
        eye.set_prepared_statement_cache_capacity(256);
        Self { name, app, eye, seen: RefCell::new(None) }
    }

    /// One more connection.
    pub fn connect(&self) -> Connection {
        connect(&self.name)
    }

    /// The connection of the oracles, which changes nothing.
    pub fn eye(&self) -> &Connection {
        &self.eye
    }

    /// What the file holds now. The same as before as long as nobody has written.
    pub fn image(&self) -> Rc<Image> {
        let mut statement = self.eye.prepare_cached("PRAGMA data_version").unwrap();
        let state: i64 = statement.query_row([], |row| row.get(0)).unwrap();
        let mut seen = self.seen.borrow_mut();
        match &*seen {
            Some((read, image)) if *read == state => image.clone(),
            _ => {
                let image = Rc::new(Image::read(&self.eye));
                *seen = Some((state, image.clone()));
                image
            }
        }
    }
}

fn connect(name: &str) -> Connection {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags_and_vfs(name, flags, c"memdb").unwrap()
}
