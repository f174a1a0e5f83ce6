//! A relay process, and replicas that sync through it.
#![allow(dead_code, clippy::unwrap_used)]

pub mod replica;

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use libp2p::Multiaddr;

/// A relay process; it ends with the test.
pub struct Relay {
    process: Child,
    output: BufReader<ChildStdout>,
}

impl Relay {
    pub fn start(identity: &Path) -> Relay {
        Relay::start_with(identity, &["--listen", "/ip4/127.0.0.1/tcp/0"])
    }

    pub fn start_with(identity: &Path, arguments: &[&str]) -> Relay {
        let mut process = Command::new(env!("CARGO_BIN_EXE_wavesync-relay"))
            .args(arguments)
            .arg("--identity")
            .arg(identity)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        Relay { process, output }
    }

    pub fn address(&mut self) -> Multiaddr {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim().parse().unwrap()
    }

    /// Sends a signal and waits for the end.
    pub fn end_by(&mut self, signal: &str) -> ExitStatus {
        let id = self.process.id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &id]).status().unwrap().success());
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the relay did not end after {signal}");
            std::thread::yield_now();
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _was_running = self.process.kill();
        let _status = self.process.wait();
    }
}
