//! What a relay could read: every byte of every stream, as its own process has it, during a whole
//! session of two members. None of what they share may be in it.
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    collections::HashMap,
    fmt::Write as _,
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use common::replica::{Replica, Setup, setup};
use futures::StreamExt;
use wavesync_core::auth::GroupKey;
use wavesync_net::driver;
use wavesync_relay::{Config, Direction, Hooks, Limits, Observer, run};

/// How many bytes of a secret are looked for: enough that chance finds none.
const LOOKED_FOR_BYTES: usize = 8;
const ROWS: usize = 960;
const TABLES: usize = 38;

fn word(prefix: &str) -> String {
    let mut random = [0; 16];
    driver::random(&mut random);
    let mut word = prefix.to_owned();
    random.iter().for_each(|byte| write!(word, "{byte:02x}").unwrap());
    word
}

/// Which of the secrets stand in the bytes. Random words are taken at their random part.
fn found<'a>(bytes: &[u8], secrets: &'a [String]) -> Vec<&'a str> {
    let tails: HashMap<&[u8], &str> = secrets
        .iter()
        .map(|secret| (&secret.as_bytes()[secret.len() - LOOKED_FOR_BYTES..], secret.as_str()))
        .collect();
    let mut found: Vec<&str> =
        bytes.windows(LOOKED_FOR_BYTES).filter_map(|window| tails.get(window).copied()).collect();
    found.sort_unstable();
    found.dedup();
    found
}

#[test]
fn a_relay_sees_none_of_a_thousand_secrets() {
    let (topic, passphrase) = (word("topic-"), word("pass phrase "));
    let tables: Vec<String> = (0..TABLES).map(|_| word("t")).collect();
    let values: Vec<String> = (0..ROWS).map(|_| word("v")).collect();
    let secrets: Vec<String> =
        [vec![topic.clone(), passphrase.clone()], tables.clone(), values.clone()].concat();
    assert_eq!(secrets.len(), 1_000);

    let seen: Arc<Mutex<[Vec<u8>; 2]>> = Arc::default();
    let keep = seen.clone();
    let observer: Observer = Arc::new(move |direction, bytes| {
        keep.lock().unwrap()[usize::from(direction == Direction::Out)].extend_from_slice(bytes);
    });
    let (address, addresses) = mpsc::channel();
    ADDRESS.lock().unwrap().replace(address);
    let (end, ended) = futures::channel::mpsc::unbounded();
    let config = Config {
        listen: vec!["/ip4/127.0.0.1/tcp/0".parse().unwrap()],
        limits: Limits::default(),
        ..Config::default()
    };
    let relay = std::thread::spawn(move || {
        let print = |line: &str| {
            ADDRESS.lock().unwrap().as_ref().unwrap().send(line.to_owned()).unwrap();
            Ok(())
        };
        smol::block_on(run(config, Hooks { print, end: ended.boxed(), observer: Some(observer) }))
    });
    let relays = [addresses.recv_timeout(Duration::from_secs(30)).unwrap()];

    let directory = tempfile::tempdir().unwrap();
    let key = GroupKey::from_passphrase(&topic, &passphrase).unwrap();
    let mut sql = String::new();
    for table in &tables {
        writeln!(sql, "CREATE TABLE {table}(id INTEGER PRIMARY KEY, body TEXT);").unwrap();
    }
    for (number, value) in values.iter().enumerate().take(ROWS / 2) {
        let table = &tables[number % TABLES];
        writeln!(sql, "INSERT INTO {table}(body) VALUES ('{value}');").unwrap();
    }
    let part = |sql| Setup { topic: &topic, key: key.clone(), ..setup(sql, &relays) };
    let a = Replica::start(directory.path(), "a.db", part(sql.as_str()));
    let b = Replica::start(directory.path(), "b.db", part(""));
    let count = |replica: &Replica, wanted: usize| {
        let all: Vec<String> =
            tables.iter().map(|table| format!("(SELECT count(*) FROM {table})")).collect();
        replica.until(&format!("SELECT {}", all.join(" + ")), wanted as i64);
    };
    count(&b, ROWS / 2);
    // The other half as live pushes, from either side.
    for (number, value) in values.iter().enumerate().skip(ROWS / 2) {
        let writer = if number % 2 == 0 { &a } else { &b };
        let table = &tables[number % TABLES];
        writer.sql(&format!("INSERT INTO {table} VALUES ({number} + 1000, '{value}')"));
    }
    count(&a, ROWS);
    count(&b, ROWS);
    b.until_shown("a relayed member", |shown| shown.peers.iter().any(|peer| peer.relayed));

    // That the search finds what is there: the same rows, as they are before they are sealed.
    let plain: Vec<u8> = std::fs::read(&a.path).unwrap().into_iter().chain(wal(&a)).collect();
    let there = found(&plain, &secrets).len();
    assert!(there >= ROWS + TABLES, "the search finds only {there} of them in the database itself");
    a.stop();
    b.stop();
    end.unbounded_send(()).unwrap();
    relay.join().unwrap().unwrap();

    let seen = seen.lock().unwrap();
    for (bytes, way) in seen.iter().zip(["came in", "went out"]) {
        // That the bytes are those behind the relay's own encryption: its protocols stand there.
        let readable = String::from_utf8_lossy(bytes);
        assert!(readable.contains("/wavesync-meet/1"), "what {way} can not be read at all");
        assert!(bytes.len() > 64 * ROWS, "{} bytes {way}: that was no whole session", bytes.len());
        let leaked = found(bytes, &secrets);
        assert!(leaked.is_empty(), "{} of 1,000 secrets {way}: {leaked:?}", leaked.len());
    }
}

fn wal(replica: &Replica) -> Vec<u8> {
    let mut path = replica.path.clone().into_os_string();
    path.push("-wal");
    std::fs::read(path).unwrap_or_default()
}

static ADDRESS: Mutex<Option<mpsc::Sender<String>>> = Mutex::new(None);
