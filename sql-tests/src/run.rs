//! Runs one scenario: a fresh directory, its replicas and shells, step by step.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::compare::{self, ERROR};
use crate::dump;
use crate::parse::{Action, Manner, Scenario, Source, Sql, Step};
use crate::settings::{CLOSE_LIMIT, Settings};
use crate::shell::{Mode, Place, Shell};
use crate::transcript::Transcript;

/// How long a shell is asked for its view of things after a failure.
const DIAGNOSE_LIMIT: Duration = Duration::from_secs(3);
/// What a shell with the extension is asked after a failure.
const DIAGNOSE: &str = ".mode line\nSELECT * FROM wavesync_status;\nSELECT * FROM wavesync_peers;\n\
     SELECT * FROM wavesync_events;\nSELECT * FROM wavesync_tables;";

/// A scenario that did not hold.
#[derive(Debug)]
pub struct Failure {
    /// Line of the file, text of the step and the reason.
    pub reason: String,
    /// What all shells were told and answered.
    pub transcript: String,
}

/// A directory that goes away with the value.
pub struct Directory {
    path: PathBuf,
    /// Leave it in place.
    pub keep: bool,
}

impl Directory {
    /// Makes a new empty directory for temporary files.
    pub fn new() -> Result<Self, String> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("wavesync-sql-{}-{count}", std::process::id()));
        std::fs::create_dir(&path).map_err(|e| format!("cannot make {}: {e}", path.display()))?;
        Ok(Self { path, keep: false })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if !self.keep {
            // A leftover in the directory for temporary files harms nobody.
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

struct Run<'a> {
    settings: &'a Settings,
    directory: &'a Path,
    replicas: BTreeMap<String, PathBuf>,
    shells: BTreeMap<String, (Shell, Mode)>,
    variables: BTreeMap<String, String>,
    remembered: BTreeMap<String, Vec<u8>>,
    log: Transcript,
    deadline: Instant,
    /// The shell that ran SQL last, and when that was over.
    last: Option<(String, SystemTime)>,
}

/// Runs a scenario to its end or its first failure.
pub fn run(settings: &Settings, scenario: &Scenario) -> Result<(), Failure> {
    let log = Transcript::default();
    let failure = |reason: String| Failure { reason, transcript: log.text() };
    let mut directory = Directory::new().map_err(failure)?;
    link_extension(settings, directory.path()).map_err(failure)?;
    let mut run = Run {
        settings,
        directory: directory.path(),
        replicas: BTreeMap::new(),
        shells: BTreeMap::new(),
        variables: BTreeMap::new(),
        remembered: BTreeMap::new(),
        log: log.clone(),
        deadline: Instant::now() + scenario.limit,
        last: None,
    };
    let ended = run.steps(&scenario.steps).and_then(|()| run.finish());
    if ended.is_err() {
        run.diagnose();
    }
    drop(run);
    ended.map_err(|mut reason| {
        directory.keep = settings.keep;
        if settings.keep {
            reason.push_str(&format!("\n  files kept in {}", directory.path().display()));
        }
        failure(reason)
    })
}

/// Makes `.load ./wavesync` work in a directory, as it does for a reader of the documents.
pub fn link_extension(settings: &Settings, directory: &Path) -> Result<(), String> {
    let link = directory.join("wavesync.so");
    std::os::unix::fs::symlink(&settings.extension, link)
        .map_err(|e| format!("cannot link the extension: {e}"))
}

impl Run<'_> {
    fn steps(&mut self, steps: &[Step]) -> Result<(), String> {
        for step in steps {
            self.step(&step.action)
                .map_err(|reason| format!("line {}: {}\n  {reason}", step.line, step.text))?;
        }
        Ok(())
    }

    fn step(&mut self, action: &Action) -> Result<(), String> {
        if Instant::now() >= self.deadline {
            return Err("the scenario's time is over".into());
        }
        match action {
            Action::Replica { name, source } => self.replica(name, source),
            Action::Port(name) => {
                let port = free_port()?;
                self.variables.insert(name.clone(), port.to_string());
                Ok(())
            }
            Action::Shell { name, place, mode } => self.open(name, place, *mode),
            Action::Sql(sql) => self.sql(sql),
            Action::Finish { shell, expected } => self.finish_statement(shell, expected),
            Action::Kill(shell) => self.take_shell(shell)?.kill(),
            Action::Close { shell, within } => self.take_shell(shell)?.close(*within),
            Action::Equal { replicas, within } => self.equal(replicas, *within),
            Action::Integrity(replica) => {
                let file = self.file(replica)?;
                dump::integrity(self.settings, &file, self.deadline)
            }
            Action::Remember(replica) => {
                let bytes = self.bytes(replica)?;
                self.remembered.insert(replica.clone(), bytes);
                Ok(())
            }
            Action::Unchanged(replica) => {
                let before = self.remembered.get(replica).ok_or("nothing was remembered")?;
                if *before == self.bytes(replica)? {
                    Ok(())
                } else {
                    Err(format!("the bytes of {replica} (with its WAL) changed"))
                }
            }
        }
    }

    fn replica(&mut self, name: &str, source: &Source) -> Result<(), String> {
        let file = self.directory.join(format!("{name}.db"));
        let copy = |from: &Path| {
            std::fs::copy(from, &file)
                .map(|_| ())
                .map_err(|e| format!("cannot copy {}: {e}", from.display()))
        };
        match source {
            Source::Empty => {}
            Source::Sample => {
                self.make_sample(&file)?;
            }
            Source::Chinook => {
                let chinook = self.settings.chinook.as_ref();
                copy(chinook.ok_or("WAVESYNC_CHINOOK names no file")?)?;
                make_writable(&file)?;
            }
            Source::CopyOf(other) => copy(&self.file(other)?)?,
        }
        self.replicas.insert(name.to_string(), file);
        Ok(())
    }

    /// Fills a file from the bundled SQL text.
    fn make_sample(&self, file: &Path) -> Result<(), String> {
        let mode = Mode { plain: true, bare: true, files: true, ..Mode::default() };
        let database = file.to_string_lossy();
        let log = Transcript::default();
        let mut shell =
            Shell::open(self.settings, "sample", self.directory, &database, mode, &log)?;
        let text = self.settings.sample_sql();
        let printed = shell.ask(&format!(".read \"{}\"", text.display()), self.deadline)?;
        if let Some(error) = printed.iter().find(|line| line.starts_with(ERROR)) {
            return Err(format!("demo/sample.sql: {error}"));
        }
        shell.close(CLOSE_LIMIT)
    }

    fn open(&mut self, name: &str, place: &Place, mode: Mode) -> Result<(), String> {
        if self.shells.contains_key(name) {
            return Err(format!("there is already a shell {name}"));
        }
        let database = match place {
            Place::File(replica) => self.file(replica)?.to_string_lossy().into_owned(),
            Place::Memory => ":memory:".to_string(),
            Place::Temporary => String::new(),
        };
        let mut shell =
            Shell::open(self.settings, name, self.directory, &database, mode, &self.log)?;
        if !mode.plain {
            let printed = shell.ask(".load ./wavesync", self.deadline)?;
            if !printed.is_empty() {
                return Err(format!("`.load ./wavesync` printed: {}", printed.join("; ")));
            }
        }
        self.shells.insert(name.to_string(), (shell, mode));
        Ok(())
    }

    fn sql(&mut self, sql: &Sql) -> Result<(), String> {
        let text = self.statements(sql)?;
        let expected = self.substitute_all(&sql.expected)?;
        let end = self.deadline;
        let limit = match sql.manner {
            Manner::Within(limit) | Manner::Until(limit) => end.min(Instant::now() + limit),
            Manner::Now | Manner::Start => end,
        };
        self.be_later(&sql.shell);
        let shell = self.shell(&sql.shell)?;
        let printed = match sql.manner {
            Manner::Start => return shell.send(&text),
            Manner::Now | Manner::Within(_) => shell.ask(&text, limit)?,
            Manner::Until(_) => {
                shell.poll(&text, limit, end, |printed| compare::matches(&expected, printed))?
            }
        };
        self.last = Some((sql.shell.clone(), SystemTime::now()));
        match &sql.keep {
            None => check(&expected, &printed),
            Some(variable) => match printed.as_slice() {
                [line] if !line.starts_with(ERROR) => {
                    self.variables.insert(variable.clone(), line.clone());
                    Ok(())
                }
                _ => Err(format!("expected one line to keep, printed:{}", shown(&printed))),
            },
        }
    }

    /// What two replicas write in one millisecond has no order of time: what stands below in a scenario is
    /// later.
    fn be_later(&self, shell: &str) {
        let millisecond =
            |time: SystemTime| time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
        let Some((_, over)) = self.last.as_ref().filter(|(last, _)| last != shell) else { return };
        // The next but one: the time in a trigger is a fraction of days, and may be rounded down.
        while millisecond(SystemTime::now()) < millisecond(*over) + 2 {
            std::thread::yield_now();
        }
    }

    /// The text to send, variables filled in, as often as it is repeated.
    fn statements(&self, sql: &Sql) -> Result<String, String> {
        let mut texts = Vec::new();
        for count in 1..=sql.repeat {
            let text = sql.text.replace("${i}", &count.to_string());
            texts.push(self.substitute(&text)?);
        }
        Ok(texts.join("\n"))
    }

    fn finish_statement(&mut self, shell: &str, expected: &[String]) -> Result<(), String> {
        let expected = self.substitute_all(expected)?;
        let deadline = self.deadline;
        let printed = self.shell(shell)?.collect(deadline)?;
        check(&expected, &printed)
    }

    fn equal(&self, replicas: &[String], within: Duration) -> Result<(), String> {
        let mut files = Vec::new();
        for replica in replicas {
            files.push((replica.as_str(), self.file(replica)?));
        }
        let files: Vec<(&str, &Path)> = files.iter().map(|(n, f)| (*n, f.as_path())).collect();
        let deadline = self.deadline.min(Instant::now() + within);
        dump::wait_equal(self.settings, &files, deadline)
    }

    /// Every shell still open must close in time, and every file must be sound.
    fn finish(&mut self) -> Result<(), String> {
        for (_, (shell, _)) in std::mem::take(&mut self.shells) {
            shell.close(CLOSE_LIMIT).map_err(|reason| format!("at the end: {reason}"))?;
        }
        for (name, file) in &self.replicas {
            if file.exists() {
                dump::integrity(self.settings, file, self.deadline)
                    .map_err(|reason| format!("at the end: {name}: {reason}"))?;
            }
        }
        Ok(())
    }

    /// Asks every shell with the extension what it knows, for the transcript.
    fn diagnose(&mut self) {
        for (shell, mode) in self.shells.values_mut() {
            if !mode.plain {
                // The answer goes to the transcript; a shell that cannot answer shows there too.
                let _ = shell.ask(DIAGNOSE, Instant::now() + DIAGNOSE_LIMIT);
            }
        }
    }

    fn shell(&mut self, name: &str) -> Result<&mut Shell, String> {
        let found = self.shells.get_mut(name).map(|(shell, _)| shell);
        found.ok_or_else(|| format!("there is no open shell {name}"))
    }

    fn take_shell(&mut self, name: &str) -> Result<Shell, String> {
        let found = self.shells.remove(name).map(|(shell, _)| shell);
        found.ok_or_else(|| format!("there is no open shell {name}"))
    }

    fn file(&self, replica: &str) -> Result<PathBuf, String> {
        self.replicas.get(replica).cloned().ok_or_else(|| format!("there is no replica {replica}"))
    }

    /// The bytes of a file and of its write-ahead log; a file not made yet has none.
    fn bytes(&self, replica: &str) -> Result<Vec<u8>, String> {
        let file = self.file(replica)?;
        let mut wal = file.clone().into_os_string();
        wal.push("-wal");
        let mut bytes = Vec::new();
        for path in [file, PathBuf::from(wal)] {
            if path.exists() {
                let read = std::fs::read(&path);
                bytes.extend(read.map_err(|e| format!("cannot read {}: {e}", path.display()))?);
            }
        }
        Ok(bytes)
    }

    fn substitute_all(&self, lines: &[String]) -> Result<Vec<String>, String> {
        lines.iter().map(|line| self.substitute(line)).collect()
    }

    /// Replaces every `${name}`.
    fn substitute(&self, text: &str) -> Result<String, String> {
        let mut result = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(start) = rest.find("${") {
            let end = rest[start..].find('}').ok_or("`${` without `}`")? + start;
            let name = &rest[start + 2..end];
            result.push_str(&rest[..start]);
            if name == "dir" {
                result.push_str(&self.directory.to_string_lossy());
            } else {
                let value = self.variables.get(name);
                result.push_str(value.ok_or_else(|| format!("no variable {name} was set"))?);
            }
            rest = &rest[end + 1..];
        }
        result.push_str(rest);
        Ok(result)
    }
}

/// The error of a comparison shows both sides.
fn check(expected: &[String], printed: &[String]) -> Result<(), String> {
    if compare::matches(expected, printed) {
        return Ok(());
    }
    Err(format!("expected:{}\n  printed:{}", shown(expected), shown(printed)))
}

fn shown(lines: &[String]) -> String {
    if lines.is_empty() {
        return " nothing".into();
    }
    let lines = lines.iter().take(40).map(|line| line.chars().take(400).collect::<String>());
    lines.map(|line| format!("\n    {line}")).collect()
}

/// A copied fixture may come from a read-only place.
fn make_writable(file: &Path) -> Result<(), String> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o644))
        .map_err(|e| format!("cannot make {} writable: {e}", file.display()))
}

/// A loopback port that nothing listens on and that no scenario of this run was given. It lies
/// below the range from which the system takes ports for outgoing connections.
fn free_port() -> Result<u16, String> {
    const FIRST: u32 = 20_000;
    const COUNT: u32 = 12_000;
    static GIVEN: AtomicU64 = AtomicU64::new(0);
    let start = std::process::id().wrapping_mul(131);
    for _ in 0..COUNT {
        let next = start.wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed) as u32);
        let port = u16::try_from(FIRST + next % COUNT).map_err(|e| e.to_string())?;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    Err("no free loopback port".into())
}
