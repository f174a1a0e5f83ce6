//! Two members, each alone behind a NAT of its own, in real network namespaces: the relay in
//! between is all that both can reach.
//!
//! Needs root, `ip`, `nft` and `tc`. Where one is missing the test says so and passes.
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use common::{
    Ends,
    replica::{NOTE, Replica, filled, setup},
};
use rusqlite::Connection;

/// Runs a program; an error is what it said.
fn run(line: &str) -> Result<(), String> {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().unwrap())
        .args(words)
        .output()
        .map_err(|error| format!("{line}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{line}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

/// Namespaces whose names begin with a prefix of this process; they go with it.
struct Network {
    prefix: String,
    names: Vec<String>,
}

impl Network {
    /// `net`: a bridge, 203.0.113.0/24, on which the relay has .1. `na`, `nb`: routers with .11 and
    /// .12 that masquerade 10.1.0.0/24 and 10.2.0.0/24. `a`, `b`: hosts behind them.
    fn new() -> Result<Network, String> {
        run("nft --version")?;
        let prefix = format!("ws{}", std::process::id());
        let mut network = Network { prefix, names: Vec::new() };
        network.build()?;
        Ok(network)
    }

    fn namespace(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn inside(&self, name: &str, line: &str) -> Result<(), String> {
        run(&format!("ip netns exec {} {line}", self.namespace(name)))
    }

    fn build(&mut self) -> Result<(), String> {
        for name in ["net", "na", "nb", "a", "b"] {
            let full = self.namespace(name);
            run(&format!("ip netns add {full}"))?;
            self.names.push(full);
            self.inside(name, "ip link set lo up")?;
        }
        self.inside("net", "ip link add name wire type bridge")?;
        self.inside("net", "ip addr add 203.0.113.1/24 dev wire")?;
        self.inside("net", "ip link set wire up")?;
        for (host, router, number) in [("a", "na", 1), ("b", "nb", 2)] {
            let (outside, inside) = (self.namespace(router), self.namespace(host));
            let out = format!("out{number}");
            let net = self.namespace("net");
            run(&format!("ip -n {net} link add {out} type veth peer name wan netns {outside}"))?;
            self.inside("net", &format!("ip link set {out} master wire"))?;
            self.inside("net", &format!("ip link set {out} up"))?;
            run(&format!("ip -n {outside} link add lan type veth peer name eth netns {inside}"))?;
            for line in [
                format!("ip addr add 203.0.113.1{number}/24 dev wan"),
                format!("ip addr add 10.{number}.0.1/24 dev lan"),
                "ip link set wan up".to_owned(),
                "ip link set lan up".to_owned(),
                "sysctl -q -w net.ipv4.ip_forward=1".to_owned(),
                "nft add table ip nat".to_owned(),
                "nft add chain ip nat post { type nat hook postrouting priority 100 ; }".to_owned(),
                "nft add rule ip nat post oifname wan masquerade".to_owned(),
                "nft add chain ip nat forward { type filter hook forward priority 0 ; policy drop ; }"
                    .to_owned(),
                "nft add rule ip nat forward iifname lan accept".to_owned(),
                "nft add rule ip nat forward ct state established,related accept".to_owned(),
            ] {
                self.inside(router, &line)?;
            }
            for line in [
                format!("ip addr add 10.{number}.0.2/24 dev eth"),
                "ip link set eth up".to_owned(),
                format!("ip route add default via 10.{number}.0.1"),
            ] {
                self.inside(host, &line)?;
            }
        }
        Ok(())
    }

    fn spawn(
        &self,
        name: &str,
        program: &Path,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> Child {
        Command::new("ip")
            .args(["netns", "exec", &self.namespace(name)])
            .arg(program)
            .args(arguments)
            .envs(environment.iter().copied())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap()
    }

    fn relay(&self, identity: &Path) -> Ends {
        let arguments = [
            "--listen",
            "/ip4/203.0.113.1/tcp/4001",
            "--log",
            "warn",
            "--identity",
            identity.to_str().unwrap(),
        ];
        Ends(self.spawn("net", Path::new(env!("CARGO_BIN_EXE_wavesync-relay")), &arguments, &[]))
    }

    fn member(&self, host: &str, directory: &Path, rows: &str, relay: &str) -> Member {
        let this = std::env::current_exe().unwrap();
        let arguments = ["--exact", "a_member_in_a_process_of_its_own", "--ignored"];
        let environment = [
            ("WAVESYNC_TEST_NAME", host),
            ("WAVESYNC_TEST_DIRECTORY", directory.to_str().unwrap()),
            ("WAVESYNC_TEST_ROWS", rows),
            ("WAVESYNC_TEST_RELAY", relay),
        ];
        let process = self.spawn(host, &this, &arguments, &environment);
        Member {
            _process: Ends(process),
            path: directory.join(format!("{host}.db")),
            stop: directory.join("stop"),
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in &self.names {
            let _gone = run(&format!("ip netns del {name}"));
        }
    }
}

/// A member in a namespace, seen through its file.
struct Member {
    _process: Ends,
    path: PathBuf,
    stop: PathBuf,
}

impl Drop for Member {
    fn drop(&mut self) {
        let _asked = std::fs::write(&self.stop, "");
    }
}

impl Member {
    fn number(&self, query: &str) -> Option<i64> {
        let conn = Connection::open(&self.path).ok()?;
        conn.busy_timeout(Duration::from_secs(10)).ok()?;
        conn.query_row(query, [], |row| row.get(0)).ok()
    }

    fn until(&self, seconds: u64, wanted: impl Fn(i64) -> bool) -> i64 {
        let deadline = Instant::now() + Duration::from_secs(seconds);
        loop {
            let number = self.number("SELECT count(*) FROM note");
            if let Some(number) = number.filter(|number| wanted(*number)) {
                return number;
            }
            assert!(Instant::now() < deadline, "{:?} has {number:?} rows", self.path);
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn sql(&self, sql: &str) {
        let conn = Connection::open(&self.path).unwrap();
        conn.busy_timeout(Duration::from_secs(10)).unwrap();
        conn.execute_batch(sql).unwrap();
    }
}

#[test]
#[ignore = "started by other tests, in a namespace of its own"]
fn a_member_in_a_process_of_its_own() {
    let variable = |name: &str| std::env::var(format!("WAVESYNC_TEST_{name}")).unwrap();
    let directory = PathBuf::from(variable("DIRECTORY"));
    let rows: usize = variable("ROWS").parse().unwrap();
    let sql = if rows > 0 { filled(rows) } else { NOTE.to_owned() };
    let mut setup = setup(&sql, &[variable("RELAY")]);
    setup.listen = vec!["/ip4/0.0.0.0/tcp/0".to_owned()];
    let replica = Replica::start(&directory, &format!("{}.db", variable("NAME")), setup);
    let stop = directory.join("stop");
    let deadline = Instant::now() + Duration::from_secs(300);
    while !stop.exists() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
    }
    replica.stop();
}

/// The relay's address; its identity is made by a first start.
fn relay_address(identity: &Path) -> String {
    let mut relay = common::Relay::start(identity);
    let peer = relay.address().to_string().rsplit('/').next().unwrap().to_owned();
    format!("/ip4/203.0.113.1/tcp/4001/p2p/{peer}")
}

#[test]
fn members_behind_two_nats_converge_whatever_the_network_does() {
    const ROWS: i64 = 60_000;
    let network = match Network::new() {
        Ok(network) => network,
        Err(reason) => {
            eprintln!("SKIPPED: no network namespaces with NAT here: {reason}");
            eprintln!("SKIPPED: members behind two NATs were NOT tested (needs root, ip, nft, tc)");
            return;
        }
    };
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path();
    let identity = place.join("key");
    let address = relay_address(&identity);
    let relay = network.relay(&identity);
    let a = network.member("a", place, &ROWS.to_string(), &address);
    let b = network.member("b", place, "0", &address);
    // The relay dies in mid-transfer and comes back.
    let had = b.until(60, |rows| rows > 0);
    drop(relay);
    assert!(had < ROWS, "the transfer was over before the relay died");
    let relay = network.relay(&identity);
    b.until(90, |rows| rows == ROWS);
    // A bad network: a fifth of the packets is lost, and it takes 200 ms each way.
    for (host, router) in [("a", "na"), ("b", "nb")] {
        let storm = "tc qdisc add dev eth root netem delay 200ms loss 20%";
        if let Err(reason) = network.inside(host, storm) {
            eprintln!("SKIPPED: a delay of 200 ms was NOT tested, only the loss: {reason}");
            let loss = "nft insert rule ip nat forward numgen random mod 100 < 20 drop";
            network.inside(router, loss).unwrap();
        }
    }
    a.sql("INSERT INTO note VALUES ('through the storm', 'x')");
    b.sql("INSERT INTO note VALUES ('and back', 'y')");
    a.until(120, |rows| rows == ROWS + 2);
    b.until(120, |rows| rows == ROWS + 2);
    drop(relay);
}
