//! The relay as a service: websockets with a certificate, limits, metrics, health, the end.
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use common::{
    Relay,
    replica::{NOTE, Replica, filled, setup},
};

/// A certificate for `localhost` that no authority has signed.
fn certificate(directory: &Path) -> (PathBuf, PathBuf) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (chain, key) = (directory.join("chain.pem"), directory.join("key.pem"));
    std::fs::write(&chain, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    (chain, key)
}

/// Runs `sync_at_the_relay_that_is_named` in a process that trusts `certificate`.
fn sync_in_a_process_that_trusts(certificate: &Path, relay: &str) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "sync_at_the_relay_that_is_named", "--ignored", "--nocapture"])
        .env("SSL_CERT_FILE", certificate)
        .env("WAVESYNC_TEST_RELAY", relay)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

#[test]
#[ignore = "started by other tests, in a process of its own"]
fn sync_at_the_relay_that_is_named() {
    let relays = [std::env::var("WAVESYNC_TEST_RELAY").unwrap()];
    let directory = tempfile::tempdir().unwrap();
    let a = Replica::start(directory.path(), "a.db", setup(&filled(2_000), &relays));
    let b = Replica::start(directory.path(), "b.db", setup("", &relays));
    b.until("SELECT count(*) FROM note", 2_000);
    b.sql("DELETE FROM note");
    a.until("SELECT count(*) FROM note", 0);
    b.until_shown("a relayed member", |shown| shown.peers.iter().any(|peer| peer.relayed));
}

#[test]
fn members_sync_through_wss_and_refuse_a_certificate_that_nobody_vouches_for() {
    let directory = tempfile::tempdir().unwrap();
    let (chain, key) = certificate(directory.path());
    let listen = ["--listen", "/ip4/127.0.0.1/tcp/0/tls/ws", "--certificate"];
    let mut arguments = listen.to_vec();
    arguments.extend([chain.to_str().unwrap(), "--certificate-key", key.to_str().unwrap()]);
    let mut relay = Relay::start_with(&directory.path().join("key"), &arguments);
    let address = relay.address().to_string().replace("/ip4/127.0.0.1/", "/dns4/localhost/");
    assert!(address.contains("/tls/ws/p2p/"), "{address}");
    sync_in_a_process_that_trusts(&chain, &address);
    // This process does not trust it.
    let c = Replica::start(directory.path(), "c.db", setup(NOTE, &[address]));
    c.until_shown("a refusal", |shown| {
        shown.relays.first().is_some_and(|relay| relay.error.to_lowercase().contains("certificate"))
    });
    let broken = ["--certificate", key.to_str().unwrap(), "--certificate-key"];
    let output =
        Command::new(env!("CARGO_BIN_EXE_wavesync-relay")).args(broken).arg(&key).output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("no certificate"));
}

#[test]
fn a_circuit_that_is_cut_by_a_limit_of_bytes_resumes_where_it_was() {
    const ROWS: usize = 60_000;
    let directory = tempfile::tempdir().unwrap();
    // Less than the rows, more than one chunk of them.
    let limit = "3000000";
    let arguments = ["--listen", "/ip4/127.0.0.1/tcp/0", "--circuit-bytes", limit];
    let mut relay = Relay::start_with(&directory.path().join("key"), &arguments);
    let relays = [relay.address().to_string()];
    let a = Replica::start(directory.path(), "a.db", setup(&filled(ROWS), &relays));
    let b = Replica::start(directory.path(), "b.db", setup("", &relays));
    b.until("SELECT count(*) FROM note", ROWS as i64);
    assert!(b.events("connected") > 1, "the limit never cut: {}", b.story());
    assert_eq!(b.events("relay_limit"), 1, "{}", b.story());
    assert_eq!(b.board.snapshot().relays[0].limit_bytes, Some(3_000_000));
    assert_eq!(a.number("SELECT count(*) FROM note"), b.number("SELECT count(*) FROM note"));
}

fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: relay\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// The value of a sample.
fn sample(text: &str, name: &str) -> f64 {
    let line = text.lines().find(|line| line.starts_with(&format!("wavesync_relay_{name} ")));
    let line = line.unwrap_or_else(|| panic!("no {name} in {text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn metrics_and_health_tell_what_goes_on_and_the_log_names_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let arguments = ["--listen", "/ip4/127.0.0.1/tcp/0", "--http", "127.0.0.1:0"];
    let mut relay = Relay::start_logged(&directory.path().join("key"), &arguments);
    let http = relay.line();
    let http = http.strip_prefix("http://").unwrap().strip_suffix("/metrics").unwrap().to_owned();
    let address = relay.address().to_string();
    let relays = [address.clone()];
    assert!(get(&http, "/healthz").starts_with("HTTP/1.1 200"));
    assert!(get(&http, "/readyz").starts_with("HTTP/1.1 200"));
    assert!(get(&http, "/else").starts_with("HTTP/1.1 404"));
    let a = Replica::start(directory.path(), "a.db", setup(&filled(1_000), &relays));
    let b = Replica::start(directory.path(), "b.db", setup("", &relays));
    b.until("SELECT count(*) FROM note", 1_000);
    let text = get(&http, "/metrics");
    let families = text.lines().filter(|line| line.starts_with("# TYPE ")).count();
    assert!(families >= 25, "{families}");
    assert_eq!(sample(&text, "peers"), 2.0);
    assert_eq!(sample(&text, "reservations"), 2.0);
    assert_eq!(sample(&text, "meeting_peers"), 2.0);
    assert_eq!(sample(&text, "meeting_groups"), 1.0);
    assert!(sample(&text, "circuits") >= 1.0);
    assert!(sample(&text, "sent_bytes_total") > 10_000.0);
    // Circuits are open: the relay still ends in time, and says so meanwhile.
    let started = Instant::now();
    assert!(relay.end_by("TERM").success());
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    for replica in [&a, &b] {
        replica.until_shown("the loss", |shown| shown.relays[0].state != "reserved");
    }
    let log = relay.log();
    assert!(log.contains("\"draining\"") && log.contains("\"ended\""), "{log}");
    for line in log.lines() {
        assert!(line.starts_with('{') && line.ends_with('}'), "{line}");
    }
    for secret in ["127.0.0.1", "/ip4", "/p2p", "12D3Koo"] {
        assert!(!log.contains(secret), "{secret} stands in the log: {log}");
    }
}

#[test]
fn one_ip_address_gets_so_many_connections_and_no_more() {
    let directory = tempfile::tempdir().unwrap();
    let arguments = ["--listen", "/ip4/127.0.0.1/tcp/0", "--connections-per-ip", "1"];
    let mut relay = Relay::start_with(&directory.path().join("key"), &arguments);
    let relays = [relay.address().to_string()];
    let a = Replica::start(directory.path(), "a.db", setup(NOTE, &relays));
    a.until_shown("a reservation", |shown| {
        shown.relays.first().is_some_and(|relay| relay.state == "reserved")
    });
    let b = Replica::start(directory.path(), "b.db", setup(NOTE, &relays));
    b.until_shown("a refusal", |shown| {
        shown.relays.first().is_some_and(|relay| relay.state == "waiting")
    });
    a.stop();
    b.until_shown("a reservation once there is room", |shown| {
        shown.relays.first().is_some_and(|relay| relay.state == "reserved")
    });
}

/// The recipe of docs/RELAY.md, with the ports of a test.
#[test]
fn members_sync_through_the_proxy_of_the_documentation() {
    let nginx =
        ["/usr/sbin/nginx", "/usr/bin/nginx"].into_iter().find(|path| Path::new(path).exists());
    let Some(nginx) = nginx else {
        eprintln!(
            "SKIPPED: nginx is not installed (apt-get install nginx-light): the reverse proxy"
        );
        eprintln!("SKIPPED: of docs/RELAY.md was NOT tested");
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let (chain, key) = certificate(path);
    let (inner, outer) = (common::free_port(), common::free_port());
    let listen = format!("/ip4/127.0.0.1/tcp/{inner}/ws");
    let external = format!("/dns4/localhost/tcp/{outer}/tls/ws");
    let arguments = ["--listen", &listen, "--external", &external, "--behind-proxy"];
    let mut relay = Relay::start_with(&path.join("key"), &arguments);
    let document = include_str!("../../docs/RELAY.md");
    let recipe = document.split("```nginx\n").nth(1).unwrap().split("```").next().unwrap();
    let recipe = recipe
        .replace("listen 443 ssl;", &format!("listen 127.0.0.1:{outer} ssl;"))
        .replace("listen [::]:443 ssl;", "")
        .replace("relay.example", "localhost")
        .replace("127.0.0.1:4002", &format!("127.0.0.1:{inner}"))
        .replace("/etc/letsencrypt/live/localhost/fullchain.pem", chain.to_str().unwrap())
        .replace("/etc/letsencrypt/live/localhost/privkey.pem", key.to_str().unwrap());
    assert!(recipe.contains("key.pem") && recipe.contains("chain.pem"), "{recipe}");
    let place = path.display();
    let whole = format!(
        "daemon off; pid {place}/pid; error_log {place}/error.log; events {{}}\n\
         http {{ access_log off; client_body_temp_path {place}/1; proxy_temp_path {place}/2; \
         fastcgi_temp_path {place}/3; uwsgi_temp_path {place}/4; scgi_temp_path {place}/5;\n\
         {recipe}\n}}"
    );
    let config = path.join("nginx.conf");
    std::fs::write(&config, whole).unwrap();
    let proxy = Command::new(nginx)
        .args(["-e", path.join("error.log").to_str().unwrap(), "-c"])
        .arg(&config)
        .spawn()
        .unwrap();
    let _proxy = common::Ends(proxy);
    let deadline = Instant::now() + Duration::from_secs(20);
    while TcpStream::connect(("127.0.0.1", outer)).is_err() {
        let log = std::fs::read_to_string(path.join("error.log")).unwrap_or_default();
        assert!(Instant::now() < deadline, "nginx does not listen: {log}");
        std::thread::sleep(Duration::from_millis(20));
    }
    let address = relay.address().to_string();
    assert!(address.starts_with(&external), "{address}");
    sync_in_a_process_that_trusts(&chain, &address);
}
