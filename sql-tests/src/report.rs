//! Runs many cases, a few at a time, and reports them: a line for each, transcripts of failures,
//! what failed once more, and a closing line `N passed, N failed`.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::document;
use crate::document_run;
use crate::parse::{self, Need, Scenario};
use crate::run::{self, Failure};
use crate::settings::{SCENARIOS_AT_ONCE, Settings};

/// Something to run and report.
pub struct Case {
    /// The file's name.
    pub name: String,
    work: Work,
}

enum Work {
    Scenario(Result<Scenario, String>),
    Document(Result<document::Document, String>),
}

/// How many cases ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Held.
    pub passed: u32,
    /// Did not hold, or could not be read.
    pub failed: u32,
    /// The machine lacks something that the case names, or the case is left out.
    pub skipped: u32,
}

impl Case {
    /// A scenario from its text. A text that cannot be parsed is a failing case.
    #[must_use]
    pub fn scenario(name: &str, text: &str) -> Self {
        Self { name: name.into(), work: Work::Scenario(parse::parse(text)) }
    }

    /// A document whose transcripts are run.
    #[must_use]
    pub fn document(name: &str, text: &str) -> Self {
        Self { name: name.into(), work: Work::Document(document::parse(text)) }
    }

    /// What the machine, or the shell, lacks for this case.
    fn lacks<'a>(&self, settings: &'a Settings) -> Option<&'a str> {
        if let Some(reason) = settings.left_out.get(&self.name) {
            return Some(reason);
        }
        let Work::Scenario(Ok(scenario)) = &self.work else { return None };
        scenario.needs.iter().find_map(|need| match need {
            Need::Chinook if settings.chinook.as_deref().is_none_or(|file| !file.exists()) => {
                Some("WAVESYNC_CHINOOK names no file")
            }
            Need::Multicast if !multicast_works() => Some("no multicast on this machine"),
            _ => None,
        })
    }

    fn run(&self, settings: &Settings) -> Result<(), Failure> {
        let unreadable =
            |error: &String| Failure { reason: error.clone(), transcript: String::new() };
        match &self.work {
            Work::Scenario(scenario) => run::run(settings, scenario.as_ref().map_err(unreadable)?),
            Work::Document(document) => {
                document_run::run(settings, document.as_ref().map_err(unreadable)?)
            }
        }
    }

    fn title(&self) -> &str {
        match &self.work {
            Work::Scenario(Ok(scenario)) => &scenario.title,
            Work::Document(Ok(_)) => "what a reader copies from it works",
            _ => "cannot be read",
        }
    }
}

/// Reads every `*.test` file of a directory, in order of name.
pub fn read_scenarios(directory: &Path) -> io::Result<Vec<Case>> {
    let mut cases = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "test") {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            cases.push(Case::scenario(&name, &std::fs::read_to_string(&path)?));
        }
    }
    cases.sort_by(|left, right| left.name.cmp(&right.name));
    Ok(cases)
}

/// Runs the cases and writes the report.
pub fn run_all(
    settings: &Settings,
    cases: Vec<Case>,
    output: &mut (impl Write + Send),
) -> io::Result<Totals> {
    let started = Instant::now();
    let queue = Mutex::new(VecDeque::from(cases));
    let state = Mutex::new((output, Totals::default(), String::new(), Ok(())));
    std::thread::scope(|scope| {
        for _ in 0..SCENARIOS_AT_ONCE {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    let Some(case) = next else { return };
                    let began = Instant::now();
                    let lacks = case.lacks(settings);
                    let ended = if lacks.is_some() { Ok(()) } else { case.run(settings) };
                    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
                    let (output, totals, failures, written) = &mut *state;
                    let line = describe(&case, lacks, &ended, began.elapsed(), totals);
                    if ended.is_err() {
                        failures.push_str(&line);
                    }
                    if let Err(error) = output.write_all(line.as_bytes()) {
                        *written = Err(error);
                    }
                }
            });
        }
    });
    let (output, totals, failures, written) =
        state.into_inner().unwrap_or_else(PoisonError::into_inner);
    written?;
    // Whoever has only the end of the report sees what it is about.
    write!(output, "\n{failures}")?;
    writeln!(output, "scenarios took {:.1} s", started.elapsed().as_secs_f64())?;
    write!(output, "{} passed, {} failed", totals.passed, totals.failed)?;
    if totals.skipped > 0 {
        write!(output, ", {} skipped", totals.skipped)?;
    }
    writeln!(output)?;
    Ok(totals)
}

/// The report of one case; counts it.
fn describe(
    case: &Case,
    lacks: Option<&str>,
    ended: &Result<(), Failure>,
    took: Duration,
    totals: &mut Totals,
) -> String {
    let (name, title, seconds) = (&case.name, case.title(), took.as_secs_f64());
    match (lacks, ended) {
        (Some(lacks), _) => {
            totals.skipped += 1;
            format!("SKIPPED {name} ({lacks}): {title}\n")
        }
        (None, Ok(())) => {
            totals.passed += 1;
            format!("ok     {seconds:6.2} s  {name}: {title}\n")
        }
        (None, Err(failure)) => {
            totals.failed += 1;
            let Failure { reason, transcript } = failure;
            format!(
                "FAILED {seconds:6.2} s  {name}: {title}\n  {reason}\n\
                 --- transcript of {name}\n{transcript}\n---\n"
            )
        }
    }
}

/// Whether a packet to the LAN discovery group reaches a socket of this same machine. The packet
/// has a time to live of 0: it never leaves the machine.
fn multicast_works() -> bool {
    let group = Ipv4Addr::new(224, 0, 0, 251);
    let attempt = || -> io::Result<bool> {
        let receiver = UdpSocket::bind("0.0.0.0:0")?;
        receiver.join_multicast_v4(&group, &Ipv4Addr::UNSPECIFIED)?;
        receiver.set_read_timeout(Some(Duration::from_secs(1)))?;
        let sender = UdpSocket::bind("0.0.0.0:0")?;
        sender.set_multicast_ttl_v4(0)?;
        sender.send_to(b"wavesync probe", (group, receiver.local_addr()?.port()))?;
        let mut bytes = [0_u8; 32];
        Ok(receiver.recv(&mut bytes)? > 0)
    };
    attempt().unwrap_or(false)
}
