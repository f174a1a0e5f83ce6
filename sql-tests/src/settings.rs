//! Where the programs and files of a test run are. Read from the environment once.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// A scenario may run this long unless its file says otherwise.
pub const SCENARIO_LIMIT: Duration = Duration::from_secs(60);
/// A shell must have ended this long after it was told to quit.
pub const CLOSE_LIMIT: Duration = Duration::from_secs(3);
/// How long `equal` waits for the files to become equal.
pub const EQUAL_LIMIT: Duration = Duration::from_secs(20);
/// How long a checking shell waits for a lock.
pub const BUSY_TIMEOUT_MILLIS: u32 = 10_000;
/// Scenarios that run at the same time.
pub const SCENARIOS_AT_ONCE: usize = 2;

/// The programs and fixtures that scenarios use.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The sqlite3 shell (`SQLITE3`, else found on PATH).
    pub sqlite3: OsString,
    /// The shell with which the runner itself makes, compares and checks files (`SQLITE3_FILES`,
    /// else the same).
    pub files: OsString,
    /// Cases that the shell cannot play, and why (`WAVESYNC_LEFT_OUT`: a file of lines
    /// `NAME: reason`).
    pub left_out: BTreeMap<String, String>,
    /// The built extension (`WAVESYNC_EXT`, else `wavesync.so` in the workspace root).
    pub extension: PathBuf,
    /// The Chinook sample database, when there is a copy (`WAVESYNC_CHINOOK`).
    pub chinook: Option<PathBuf>,
    /// The root of the workspace.
    pub root: PathBuf,
    /// Keep the directories of scenarios that failed (`WAVESYNC_KEEP`).
    pub keep: bool,
}

impl Settings {
    /// Reads the environment, and the list that it names.
    pub fn from_environment() -> io::Result<Self> {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
        let root = root.canonicalize().unwrap_or(root);
        let extension = match env::var_os("WAVESYNC_EXT") {
            Some(path) => absolute(PathBuf::from(path), &root),
            None => root.join("wavesync"),
        };
        let extension = if extension.extension().is_some() {
            extension
        } else {
            extension.with_extension("so")
        };
        let sqlite3 = env::var_os("SQLITE3").unwrap_or_else(|| "sqlite3".into());
        let left_out = match env::var_os("WAVESYNC_LEFT_OUT").filter(|path| !path.is_empty()) {
            Some(path) => reasons(&std::fs::read_to_string(absolute(path.into(), &root))?)?,
            None => BTreeMap::new(),
        };
        Ok(Self {
            files: env::var_os("SQLITE3_FILES").unwrap_or_else(|| sqlite3.clone()),
            sqlite3,
            left_out,
            extension,
            chinook: env::var_os("WAVESYNC_CHINOOK")
                .filter(|path| !path.is_empty())
                .map(|path| absolute(PathBuf::from(path), &root)),
            root,
            keep: env::var_os("WAVESYNC_KEEP").is_some(),
        })
    }

    /// The text of the bundled sample database.
    #[must_use]
    pub fn sample_sql(&self) -> PathBuf {
        self.root.join("demo/sample.sql")
    }
}

/// Lines `NAME: reason`; what begins with `#` is a comment.
fn reasons(text: &str) -> io::Result<BTreeMap<String, String>> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let named = lines.map(|line| match line.split_once(": ") {
        Some((name, reason)) => Ok((name.to_string(), reason.to_string())),
        None => Err(io::Error::other(format!("not `NAME: reason`: {line}"))),
    });
    named.collect()
}

/// A relative path in a variable is meant from the root of the workspace.
fn absolute(path: PathBuf, root: &std::path::Path) -> PathBuf {
    if path.is_absolute() { path } else { root.join(path) }
}
