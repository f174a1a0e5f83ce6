//! One running `sqlite3` shell: send statements, read what it prints up to a marker.
//!
//! Standard output and standard error share one pipe, so that an error stands where it happened.
//! The shell is killed, by its own process id, when the value is dropped.

use std::io::{BufRead, BufReader, PipeReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::compare::{ERROR, normalize};
use crate::settings::Settings;
use crate::transcript::Transcript;
use crate::wait;

/// Printed by the shell after each statement; what stands before it is the answer.
const MARKER: &str = "@@ wavesync-sql-tests";

/// What a shell has open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// The database file of a replica.
    File(String),
    /// `:memory:`.
    Memory,
    /// A private temporary database.
    Temporary,
}

/// How a shell is started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mode {
    /// Never loads the extension by itself.
    pub plain: bool,
    /// `sqlite3 -readonly`.
    pub readonly: bool,
    /// Leave the shell's own settings alone: no busy timeout, NULL printed as nothing.
    pub bare: bool,
    /// Not part of a scenario: the runner makes or reads a file.
    pub files: bool,
}

/// A running shell.
pub struct Shell {
    name: String,
    child: Child,
    writer: Option<Sender<String>>,
    lines: Receiver<String>,
    markers: u64,
    errors: bool,
    log: Transcript,
    quiet: bool,
}

impl Shell {
    /// Starts a shell in `directory` on `database` (a path, `:memory:` or the empty string).
    pub fn open(
        settings: &Settings,
        name: &str,
        directory: &Path,
        database: &str,
        mode: Mode,
        log: &Transcript,
    ) -> Result<Self, String> {
        let failed =
            |what: &str, error: std::io::Error| format!("{what} for shell {name}: {error}");
        let (reader, output) = std::io::pipe().map_err(|e| failed("no pipe", e))?;
        let errors = output.try_clone().map_err(|e| failed("no pipe", e))?;
        let program = if mode.files { &settings.files } else { &settings.sqlite3 };
        let mut command = Command::new(program);
        command.arg("-batch");
        if mode.readonly {
            command.arg("-readonly");
        }
        command.arg(database).current_dir(directory).env("HOME", directory);
        command.stdin(Stdio::piped()).stdout(output).stderr(errors);
        let mut child = command.spawn().map_err(|e| {
            format!("cannot start {}: {e}. Install sqlite3.", program.to_string_lossy())
        })?;
        drop(command);
        let input = child.stdin.take().ok_or("the shell has no standard input")?;
        log.add(name, '*', &format!("sqlite3 {database} (process {})", child.id()));
        let mut shell = Self {
            name: name.to_string(),
            child,
            writer: Some(write_in_background(input)),
            lines: read_in_background(reader),
            markers: 0,
            errors: false,
            log: log.clone(),
            quiet: false,
        };
        if !mode.bare {
            shell.send(".nullvalue NULL\n.timeout 5000")?;
            shell.collect(Instant::now() + Duration::from_secs(10))?;
        }
        Ok(shell)
    }

    /// The name of this shell in its scenario.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sends statements without waiting for their end.
    pub fn send(&mut self, sql: &str) -> Result<(), String> {
        if !self.quiet {
            self.log.add(&self.name, '>', sql);
        }
        self.markers += 1;
        let text = format!("{sql}\n.print \"{MARKER} {}\"\n", self.markers);
        let writer = self.writer.as_ref().ok_or("the shell was closed")?;
        writer.send(text).map_err(|_| self.ended())
    }

    /// Reads what was printed up to the newest marker. Errors are lines `error: …`.
    pub fn collect(&mut self, deadline: Instant) -> Result<Vec<String>, String> {
        let marker = format!("{MARKER} {}", self.markers);
        let mut printed = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) if line == marker => break,
                Ok(line) if line.starts_with(MARKER) => {}
                Ok(line) => {
                    if !self.quiet {
                        self.log.add(&self.name, '<', &line);
                    }
                    printed.push(line);
                }
                Err(RecvTimeoutError::Timeout) => {
                    return Err(format!("shell {} did not answer in time", self.name));
                }
                Err(RecvTimeoutError::Disconnected) => return Err(self.ended()),
            }
        }
        let printed = normalize(printed);
        self.errors |= printed.iter().any(|line| line.starts_with(ERROR));
        Ok(printed)
    }

    /// Sends statements and reads what they print.
    pub fn ask(&mut self, sql: &str, deadline: Instant) -> Result<Vec<String>, String> {
        self.send(sql)?;
        self.collect(deadline)
    }

    /// Asks again and again until `matches` or the limit has passed; the last answer. One answer
    /// may take until `deadline`. The transcript shows an answer only when it is a new one.
    pub fn poll(
        &mut self,
        sql: &str,
        limit: Instant,
        deadline: Instant,
        matches: impl Fn(&[String]) -> bool,
    ) -> Result<Vec<String>, String> {
        let mut last = self.ask(sql, deadline)?;
        if matches(&last) {
            return Ok(last);
        }
        self.quiet = true;
        let polled = wait::until(limit, || -> Result<Option<()>, String> {
            let printed = self.ask(sql, deadline)?;
            if printed != last {
                last = printed;
                self.log.add(&self.name, '~', &format!("{sql}\n{}", last.join("\n")));
            }
            Ok(matches(&last).then_some(()))
        });
        self.quiet = false;
        polled.map(|_| last)
    }

    /// Says `.quit` and waits for the end. A shell that reported an SQL error ends with status 1.
    pub fn close(mut self, within: Duration) -> Result<(), String> {
        self.log.add(&self.name, '>', ".quit");
        if let Some(writer) = self.writer.take() {
            // A shell that has ended cannot read this; its status below tells.
            let _ = writer.send(".quit\n".to_string());
        }
        let started = Instant::now();
        let status = wait::until(started + within, || self.child.try_wait())
            .map_err(|e| format!("cannot wait for shell {}: {e}", self.name))?
            .ok_or_else(|| format!("shell {} had not ended {within:?} after .quit", self.name))?;
        let took = started.elapsed().as_millis();
        self.log.add(&self.name, '*', &format!("ended in {took} ms with {status}"));
        while let Ok(line) = self.lines.recv_timeout(Duration::from_secs(1)) {
            if !line.starts_with(MARKER) {
                self.log.add(&self.name, '<', &line);
            }
        }
        match status.code() {
            Some(0) => Ok(()),
            Some(1) if self.errors => Ok(()),
            _ => Err(format!("shell {} ended with {}", self.name, describe(status))),
        }
    }

    /// SIGKILL, as a power cut for the process.
    pub fn kill(mut self) -> Result<(), String> {
        self.log.add(&self.name, '*', "SIGKILL");
        self.stop().map_err(|e| format!("cannot kill shell {}: {e}", self.name))
    }

    fn stop(&mut self) -> std::io::Result<()> {
        self.writer = None;
        self.child.kill()?;
        self.child.wait().map(|_| ())
    }

    /// Why nothing more comes from this shell.
    fn ended(&mut self) -> String {
        let deadline = Instant::now() + Duration::from_secs(2);
        let status = wait::until(deadline, || self.child.try_wait()).ok().flatten();
        let how = status.map_or_else(|| "its pipe closed".to_string(), describe);
        format!("shell {} ended by itself: {how}", self.name)
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        // It may have ended already: nothing to do then.
        let _ = self.stop();
    }
}

/// An exit status in words.
fn describe(status: ExitStatus) -> String {
    match status.signal() {
        Some(signal) => format!("signal {signal}"),
        None => status.to_string(),
    }
}

/// Writes in a thread of its own: a shell that does not read must not block the scenario.
fn write_in_background(mut input: ChildStdin) -> Sender<String> {
    let (sender, texts) = channel::<String>();
    thread::spawn(move || {
        for text in texts {
            if input.write_all(text.as_bytes()).and_then(|()| input.flush()).is_err() {
                return;
            }
        }
    });
    sender
}

/// Reads lines in a thread of its own until the pipe closes.
fn read_in_background(reader: PipeReader) -> Receiver<String> {
    let (sender, lines) = channel();
    thread::spawn(move || {
        let mut reader = BufReader::new(reader);
        let mut bytes = Vec::new();
        while matches!(reader.read_until(b'\n', &mut bytes), Ok(n) if n > 0) {
            let line = String::from_utf8_lossy(&bytes);
            let line = line.strip_suffix('\n').unwrap_or(&line).to_string();
            bytes.clear();
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    lines
}
