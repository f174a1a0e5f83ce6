//! Members that know nothing but a relay find each other there and sync through it.
#![allow(clippy::unwrap_used)]

mod common;

use common::{
    Relay, free_port,
    replica::{NOTE, Replica, Setup, filled, setup},
};
use wavesync_core::auth::GroupKey;

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
    // The row written meanwhile may come twice, once announced and once in the catch-up.
    let came = b.board.snapshot().peers[0].rows_in;
    assert!(came <= (ROWS + 2 - had) as u64, "{came} rows came after {had} were here already");
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

#[test]
fn a_relayed_connection_becomes_a_direct_one_while_rows_flow() {
    const ROWS: i64 = 30_000;
    let directory = tempfile::tempdir().unwrap();
    let mut relay = Relay::start(&directory.path().join("key"));
    let relays = [relay.address().to_string()];
    let rows = filled(ROWS as usize);
    let direct = |sql| Setup { direct: true, ..setup(sql, &relays) };
    let a = Replica::start(directory.path(), "a.db", direct(rows.as_str()));
    let b = Replica::start(directory.path(), "b.db", direct(""));
    b.until("SELECT count(*) FROM note", ROWS);
    for replica in [&a, &b] {
        replica.until_shown("a direct member", |shown| {
            shown.peers.len() == 1 && !shown.peers[0].relayed && shown.peers[0].state == "synced"
        });
        assert!(!replica.board.snapshot().peers[0].address.contains("p2p-circuit"));
    }
    // The relay is not needed any longer.
    drop(relay);
    for replica in [&a, &b] {
        replica.until_shown("the loss", |shown| shown.relays[0].state != "reserved");
    }
    a.sql("INSERT INTO note VALUES ('from a', 'x')");
    b.sql("INSERT INTO note VALUES ('from b', 'y')");
    a.until("SELECT count(*) FROM note", ROWS + 2);
    b.until("SELECT count(*) FROM note", ROWS + 2);
    assert!(a.board.snapshot().peers.iter().all(|peer| !peer.relayed), "{}", a.story());
}
