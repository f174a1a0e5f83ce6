//! Runs what a document shows: transcripts in real shells, commands, programs.
//!
//! A document has one directory in which `wavesync.so` lies, as for a reader who has just built
//! it. `make` commands are not run from here (that would be the suite calling itself); it is
//! checked that `make test` runs each target that a document names.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::compare::{self, ERROR};
use crate::document::{Block, Document, Part};
use crate::run::{Directory, Failure, link_extension};
use crate::settings::{CLOSE_LIMIT, Settings};
use crate::shell::{Mode, Shell};
use crate::transcript::Transcript;
use crate::wait;

/// A document may take this long.
const DOCUMENT_LIMIT: Duration = Duration::from_secs(180);
/// An `eventually` query is repeated this long.
const EVENTUALLY_LIMIT: Duration = Duration::from_secs(30);
/// The shell of a transcript as it is for a reader, but for what the terminal would add.
const READER: Mode = Mode { plain: false, readonly: false, bare: true, files: false };
/// What a reader does before the suite can exist.
const BEFORE_THE_SUITE: [&str; 2] = ["git clone ", "cd "];

struct Run<'a> {
    settings: &'a Settings,
    directory: &'a Path,
    terminals: BTreeMap<String, Shell>,
    log: Transcript,
    deadline: Instant,
}

/// Runs a document to its end or its first difference.
pub fn run(settings: &Settings, document: &Document) -> Result<(), Failure> {
    let log = Transcript::default();
    let failure = |reason: String| Failure { reason, transcript: log.text() };
    let directory = Directory::new().map_err(failure)?;
    link_extension(settings, directory.path()).map_err(failure)?;
    let mut run = Run {
        settings,
        directory: directory.path(),
        terminals: BTreeMap::new(),
        log: log.clone(),
        deadline: Instant::now() + DOCUMENT_LIMIT,
    };
    let ended = document.blocks.iter().try_for_each(|block| run.block(block));
    let ended = ended.and_then(|()| run.close());
    drop(run);
    ended.map_err(failure)
}

impl Run<'_> {
    fn block(&mut self, block: &Block) -> Result<(), String> {
        let own = format!("line{}", block.line);
        let terminal = block.terminal.as_deref().unwrap_or(&own);
        for part in &block.parts {
            let (line, done) = match part {
                Part::Open { line, file } => (line, self.open(terminal, file)),
                Part::Command { line, command } => (line, self.command(command)),
                Part::Python { line, program } => (line, self.program(python(), program)),
                Part::Exchange { line, sql, expected } => {
                    (line, self.exchange(terminal, sql, expected.as_deref(), block.eventually))
                }
            };
            done.map_err(|reason| format!("line {line}: {reason}"))?;
        }
        if block.terminal.is_none()
            && let Some(shell) = self.terminals.remove(terminal)
        {
            shell.close(CLOSE_LIMIT).map_err(|e| format!("line {}: {e}", block.line))?;
        }
        Ok(())
    }

    fn open(&mut self, terminal: &str, file: &str) -> Result<(), String> {
        if let Some(before) = self.terminals.remove(terminal) {
            before.close(CLOSE_LIMIT)?;
        }
        let shell = Shell::open(self.settings, terminal, self.directory, file, READER, &self.log)?;
        self.terminals.insert(terminal.to_string(), shell);
        Ok(())
    }

    /// A block that opens no file gets a new one with the extension loaded.
    fn exchange(
        &mut self,
        terminal: &str,
        sql: &str,
        expected: Option<&[String]>,
        eventually: bool,
    ) -> Result<(), String> {
        if !self.terminals.contains_key(terminal) {
            self.open(terminal, &format!("{terminal}.db"))?;
            if !sql.starts_with(".load") {
                self.exchange(terminal, ".load ./wavesync", Some(&[]), false)?;
            }
        }
        let deadline = self.deadline;
        let shell = self.terminals.get_mut(terminal).ok_or("the terminal is closed")?;
        let Some(expected) = expected else {
            let printed = shell.ask(sql, deadline)?;
            return match printed.iter().find(|line| line.starts_with(ERROR)) {
                Some(error) => Err(error.clone()),
                None => Ok(()),
            };
        };
        let expected = compare::normalize(expected.to_vec());
        let limit = if eventually {
            deadline.min(Instant::now() + EVENTUALLY_LIMIT)
        } else {
            Instant::now()
        };
        let printed =
            shell.poll(sql, limit, deadline, |printed| compare::matches(&expected, printed))?;
        if compare::matches(&expected, &printed) {
            return Ok(());
        }
        let (expected, printed) = (expected.join("\n    "), printed.join("\n    "));
        Err(format!("{sql}\n  the document says:\n    {expected}\n  printed:\n    {printed}"))
    }

    fn command(&self, command: &str) -> Result<(), String> {
        if BEFORE_THE_SUITE.iter().any(|start| command.starts_with(start)) {
            return Ok(());
        }
        if let Some(arguments) = command.strip_prefix("make") {
            return self.make(arguments);
        }
        self.program("sh", command)
    }

    /// A reader's `make TARGET` must be something that `make test` does.
    fn make(&self, arguments: &str) -> Result<(), String> {
        let makefile = std::fs::read_to_string(self.settings.root.join("Makefile"))
            .map_err(|e| format!("cannot read the Makefile: {e}"))?;
        let tested = reached(&makefile, "test");
        let words = arguments.split_whitespace().filter(|word| !word.contains('='));
        for target in words.take_while(|word| !word.starts_with('#')) {
            if !tested.contains(target) {
                return Err(format!("`make test` does not run `make {target}`"));
            }
        }
        Ok(())
    }

    /// Runs a program given as text in the document's directory.
    fn program(&self, interpreter: &str, text: &str) -> Result<(), String> {
        self.log.add(interpreter, '>', text);
        let failed = |e: std::io::Error| format!("cannot run {interpreter}: {e}");
        let mut command = Command::new(interpreter);
        command.arg(if interpreter == "sh" { "-ec" } else { "-c" }).arg(text);
        command.current_dir(self.directory).env("HOME", self.directory).stdin(Stdio::null());
        let output_file = self.directory.join(".output");
        let output = std::fs::File::create(&output_file).map_err(failed)?;
        command.stderr(output.try_clone().map_err(failed)?).stdout(output);
        let mut child = command.spawn().map_err(failed)?;
        let status = wait::until(self.deadline, || child.try_wait()).map_err(failed)?;
        let printed = std::fs::read_to_string(&output_file).unwrap_or_default();
        self.log.add(interpreter, '<', &printed);
        match status {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(format!("`{text}` ended with {status}: {printed}")),
            None => {
                child.kill().and_then(|()| child.wait()).map_err(failed)?;
                Err(format!("`{text}` had not ended in time"))
            }
        }
    }

    fn close(&mut self) -> Result<(), String> {
        for (name, shell) in std::mem::take(&mut self.terminals) {
            shell.close(CLOSE_LIMIT).map_err(|reason| format!("terminal {name}: {reason}"))?;
        }
        Ok(())
    }
}

/// The system's Python where there is one: Pythons that were built otherwise often cannot load
/// extensions, whichever comes first on PATH.
fn python() -> &'static str {
    let system = "/usr/bin/python3";
    if Path::new(system).exists() { system } else { "python3" }
}

/// The targets that a target of a Makefile reaches, itself included.
fn reached(makefile: &str, target: &str) -> BTreeSet<String> {
    let rules: BTreeMap<&str, Vec<&str>> = makefile
        .lines()
        .filter(|line| !line.starts_with(['\t', '#', '.', ' ']))
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, rest)| !name.contains(['=', '?']) && !rest.starts_with('='))
        .map(|(name, rest)| {
            let rest = rest.split('#').next().unwrap_or_default();
            (name.trim(), rest.split_whitespace().filter(|word| *word != "|").collect())
        })
        .collect();
    let mut found = BTreeSet::new();
    let mut queue = vec![target];
    while let Some(next) = queue.pop() {
        if let Some(prerequisites) = rules.get(next)
            && found.insert(next.to_string())
        {
            queue.extend(prerequisites);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_followed_through_the_makefile() {
        let makefile = "A ?= 1\nB := x:y\n.PHONY: test\n\
                        test: fmt sql | setup ## all\n\techo: no\nsql: ext\nfmt:\n\
                        ext:\nsetup:\nbench:\n";
        let found = reached(makefile, "test");
        let expected = ["ext", "fmt", "setup", "sql", "test"].map(String::from);
        assert_eq!(found, BTreeSet::from(expected));
    }
}
