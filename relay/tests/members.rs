//! Members that know nothing but a relay find each other there and sync through it.
#![allow(clippy::unwrap_used)]

mod common;

use common::{
    Relay,
    replica::{Replica, Setup, setup},
};
use wavesync_core::auth::GroupKey;

const NOTE: &str = "CREATE TABLE note(id TEXT PRIMARY KEY, body TEXT)";

/// A table with this many rows of about 100 bytes.
fn filled(rows: usize) -> String {
    format!(
        "{NOTE}; INSERT INTO note WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n \
         LIMIT {rows}) SELECT printf('key-%08d', i), hex(randomblob(40)) FROM n"
    )
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn two_members_meet_at_a_relay_and_sync_through_it() {
    let directory = tempfile::tempdir().unwrap();
    let mut relay = Relay::start(&directory.path().join("key"));
    let relays = [relay.address().to_string()];
    let a = Replica::start(directory.path(), "a.db", setup(&filled(500), &relays));
    let b = Replica::start(directory.path(), "b.db", setup("", &relays));
    let stranger = Setup { key: GroupKey::from_secret([1; 32]), ..setup(NOTE, &relays) };
    let c = Replica::start(directory.path(), "c.db", stranger);
    b.until("SELECT count(*) FROM note", 500);
    // Live in both directions.
    a.sql("INSERT INTO note VALUES ('from a', 'x')");
    b.until("SELECT count(*) FROM note WHERE id = 'from a'", 1);
    b.sql("DELETE FROM note WHERE id = 'from a'");
    a.until("SELECT count(*) FROM note WHERE id = 'from a'", 0);
    for replica in [&a, &b] {
        replica.until_shown("a relayed member", |shown| {
            shown.peers.len() == 1 && shown.peers[0].relayed && shown.peers[0].state == "synced"
        });
        let shown = replica.board.snapshot();
        assert!(shown.peers[0].address.contains("/p2p-circuit"), "{}", replica.story());
        assert_eq!(shown.relays.len(), 1);
        assert_eq!(shown.relays[0].state, "reserved");
        assert_eq!(shown.relays[0].address, relays[0]);
        assert!(!shown.listen.iter().any(|address| address.contains("p2p-circuit")));
    }
    // Whoever has another key was told of nobody, and nobody dialed it.
    c.until_shown("the relay's answer", |shown| shown.relays[0].state == "reserved");
    assert!(c.board.snapshot().peers.is_empty(), "{}", c.story());
    assert_eq!(c.number("SELECT count(*) FROM note"), Some(0));
    assert_eq!(c.board.snapshot().relays[0].members, 0);
}

#[test]
fn a_relay_that_dies_in_mid_transfer_and_comes_back_costs_nothing_twice() {
    const ROWS: i64 = 120_000;
    let directory = tempfile::tempdir().unwrap();
    let key = directory.path().join("key");
    let listen = format!("/ip4/127.0.0.1/tcp/{}", free_port());
    let mut relay = Relay::start_with(&key, &["--listen", &listen]);
    let relays = [relay.address().to_string()];
    let a = Replica::start(directory.path(), "a.db", setup(&filled(ROWS as usize), &relays));
    let b = Replica::start(directory.path(), "b.db", setup("", &relays));
    // The circuit ends as if the sender had finished: a clean end of file in mid-transfer.
    b.until_that("SELECT count(*) FROM note", |rows| rows > 0);
    drop(relay);
    for replica in [&a, &b] {
        replica.until_shown("the loss", |shown| {
            shown.peers.is_empty() && shown.relays[0].state != "reserved"
        });
    }
    let had = b.number("SELECT count(*) FROM note").unwrap();
    assert!(had < ROWS, "the transfer was over too early to say anything: {had}");
    a.sql("INSERT INTO note VALUES ('while away', 'x')");
    let again = Relay::start_with(&key, &["--listen", &listen]);
    b.until("SELECT count(*) FROM note", ROWS + 1);
    a.until_shown("the member again", |shown| {
        shown.peers.first().is_some_and(|peer| peer.relayed && peer.state == "synced")
    });
    let came = b.board.snapshot().peers[0].rows_in;
    assert!(came <= (ROWS + 1 - had) as u64, "{came} rows came after {had} were here already");
    assert!(a.events("relay_lost") >= 1 && a.events("relay_reserved") == 2, "{}", a.story());
    drop(again);
}

#[test]
fn a_relay_that_is_not_there_is_said_so_and_disturbs_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let peer = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN";
    let other = "12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp";
    let relays = [
        format!("/ip4/127.0.0.1/tcp/{}/p2p/{peer}", free_port()),
        format!("/dns4/no-such-host.invalid/tcp/443/wss/p2p/{other}"),
    ];
    let a = Replica::start(directory.path(), "a.db", setup(NOTE, &relays));
    a.until_shown("two failures", |shown| {
        shown.relays.len() == 2
            && shown.relays.iter().all(|relay| relay.state == "waiting" && !relay.error.is_empty())
    });
    let errors: Vec<String> =
        a.board.snapshot().relays.iter().map(|relay| relay.error.to_lowercase()).collect();
    assert!(errors[0].contains("refused"), "{errors:?}");
    assert!(errors[1].contains("no-such-host.invalid"), "{errors:?}");
    a.sql("INSERT INTO note VALUES ('x', 'y')");
    a.until("SELECT count(*) FROM __wavesync_log", 1);
    assert_eq!(a.events("relay_lost"), 2, "told once, not with every attempt: {}", a.story());
}
