//! A replica with its engine, as the extension runs it.

use std::{
    path::{Path, PathBuf},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rusqlite::Connection;
use wavesync_core::{
    auth::GroupKey,
    store::{Store, group::Join},
};
use wavesync_net::driver::{self, Board, Control, Parts, Settings, Snapshot};

pub const DEADLINE_SECONDS: u64 = 60;
pub const SECRET: [u8; 32] = [42; 32];

pub const NOTE: &str = "CREATE TABLE note(id TEXT PRIMARY KEY, body TEXT)";

/// A table with this many rows of about 100 bytes.
pub fn filled(rows: usize) -> String {
    format!(
        "{NOTE}; INSERT INTO note WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n \
         LIMIT {rows}) SELECT printf('key-%08d', i), hex(randomblob(40)) FROM n"
    )
}

pub struct Replica {
    pub path: PathBuf,
    pub board: Board,
    pub control: Control,
    thread: Option<JoinHandle<()>>,
}

/// What differs from one replica to the next.
pub struct Setup<'a> {
    pub sql: &'a str,
    pub topic: &'a str,
    pub key: GroupKey,
    pub listen: Vec<String>,
    pub relays: Vec<String>,
    pub direct: bool,
}

pub fn setup<'a>(sql: &'a str, relays: &[String]) -> Setup<'a> {
    Setup {
        sql,
        topic: "club",
        key: GroupKey::from_secret(SECRET),
        listen: vec!["/ip4/127.0.0.1/tcp/0".to_owned()],
        relays: relays.to_vec(),
        direct: false,
    }
}

fn random() -> [u8; 64] {
    let mut random = [0; 64];
    driver::random(&mut random);
    random
}

impl Replica {
    /// Makes a database and runs its engine.
    pub fn start(directory: &Path, name: &str, setup: Setup) -> Replica {
        let path = directory.join(name);
        let conn = Connection::open(&path).unwrap();
        conn.execute_batch("PRAGMA journal_mode=WAL").unwrap();
        conn.execute_batch(setup.sql).unwrap();
        let file = driver::file_identity(&path).unwrap();
        let mut store = Store::open(conn).unwrap();
        let join = Join {
            topic: setup.topic.to_owned(),
            tables: None,
            adopt_schema: None,
            foreign_keys: false,
            existing: None,
        };
        store.join(driver::now(), &join, &file, &random()).unwrap();
        drop(store);
        let (control, inbox) = Control::new();
        let board = Board::default();
        let shown = board.clone();
        let settings = Settings {
            key: setup.key,
            topic: setup.topic.to_owned(),
            name: name.to_owned(),
            listen: setup.listen,
            peers: Vec::new(),
            relays: setup.relays,
            direct: setup.direct,
            lan: false,
        };
        let file_path = path.clone();
        let thread = std::thread::spawn(move || {
            let mut store = Store::open(Connection::open(&file_path).unwrap()).unwrap();
            let identity = store.start(driver::now(), &file, &random()).unwrap();
            let parts = Parts { store, identity, settings, inbox, board: shown };
            let again = driver::run(parts, || ()).unwrap();
            assert!(again.is_none(), "the identity of a file in these tests never changes");
        });
        Replica { path, board, control, thread: Some(thread) }
    }

    pub fn sql(&self, sql: &str) {
        let conn = Connection::open(&self.path).unwrap();
        conn.busy_timeout(Duration::from_secs(10)).unwrap();
        conn.execute_batch(sql).unwrap();
    }

    /// One number; `None` while the query fails (a table that is still to be adopted).
    pub fn number(&self, query: &str) -> Option<i64> {
        let conn = Connection::open(&self.path).unwrap();
        conn.busy_timeout(Duration::from_secs(10)).unwrap();
        conn.query_row(query, [], |row| row.get(0)).ok()
    }

    pub fn until(&self, query: &str, wanted: i64) {
        self.until_that(query, |number| number == wanted);
    }

    pub fn until_that(&self, query: &str, wanted: impl Fn(i64) -> bool) -> i64 {
        let deadline = Instant::now() + Duration::from_secs(DEADLINE_SECONDS);
        loop {
            let number = self.number(query);
            if let Some(number) = number.filter(|number| wanted(*number)) {
                return number;
            }
            assert!(Instant::now() < deadline, "{query} is {number:?}; {}", self.story());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn until_shown(&self, what: &str, wanted: impl Fn(&Snapshot) -> bool) {
        let shown = self.board.wait(Duration::from_secs(DEADLINE_SECONDS), wanted);
        assert!(shown, "{what} was not reached; {}", self.story());
    }

    /// Everything a user could see, for failures.
    pub fn story(&self) -> String {
        let shown = self.board.snapshot();
        let events: Vec<String> =
            shown.events.iter().map(|logged| logged.event.message.clone()).collect();
        format!("{:?} relays {:?} peers {:?} {events:#?}", self.path, shown.relays, shown.peers)
    }

    pub fn events(&self, code: &str) -> usize {
        let shown = self.board.snapshot();
        shown.events.iter().filter(|logged| logged.event.code == code).count()
    }

    pub fn stop(mut self) {
        self.control.stop();
        self.thread.take().unwrap().join().unwrap();
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.control.stop();
        if let Some(thread) = self.thread.take().filter(|_| !std::thread::panicking()) {
            thread.join().unwrap();
        }
    }
}
