//! `member-app LIBRARY DATABASE NAME OPTIONS COUNT`: see ../../meet.py.

use rusqlite::{Connection, LoadExtensionGuard, params};
use std::time::{Duration, Instant};

fn main() -> rusqlite::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, library, database, name, options, count] = arguments.as_slice() else {
        eprintln!("usage: member-app LIBRARY DATABASE NAME OPTIONS COUNT");
        std::process::exit(2);
    };
    let conn = Connection::open(database)?;
    conn.busy_timeout(Duration::from_secs(5))?;
    // SAFETY: the library is the extension under test.
    unsafe {
        let _guard = LoadExtensionGuard::new(&conn)?;
        conn.load_extension(library, None::<&str>)?;
    }
    let join = "SELECT wavesync_join('hosts', 'correct horse battery staple', ?1)";
    conn.query_row(join, [options], |_| Ok(()))?;
    until(&conn, "SELECT count(*) FROM sqlite_schema WHERE name = 'seen'", 1)?;
    conn.execute("INSERT INTO seen VALUES (?1, sqlite_version())", params![name])?;
    until(&conn, "SELECT count(*) FROM seen", count.parse().expect("a number"))?;
    until(&conn, "SELECT wavesync_wait(1000)", 1)?;
    conn.close().map_err(|(_, error)| error)
}

fn until(conn: &Connection, sql: &str, expected: i64) -> rusqlite::Result<()> {
    let start = Instant::now();
    while conn.query_row(sql, [], |row| row.get::<_, i64>(0))? < expected {
        assert!(start.elapsed() < Duration::from_secs(60), "in vain: {sql}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
