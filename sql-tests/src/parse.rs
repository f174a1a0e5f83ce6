//! Parses the scenario format described in `sql-tests/README.md`. Knows text, runs nothing.

use std::time::Duration;

use crate::settings::{CLOSE_LIMIT, EQUAL_LIMIT, SCENARIO_LIMIT};
use crate::shell::{Mode, Place};

/// A parsed scenario file.
#[derive(Debug)]
pub struct Scenario {
    /// What the scenario shows, in one sentence.
    pub title: String,
    /// The bound on the whole scenario.
    pub limit: Duration,
    /// What must be present on the machine, else the scenario is skipped and counted as skipped.
    pub needs: Vec<Need>,
    /// What is done, in order.
    pub steps: Vec<Step>,
}

/// Something a machine may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// A copy of the Chinook sample database.
    Chinook,
    /// Multicast between processes of this machine (LAN discovery).
    Multicast,
}

/// One step with the line of the file it stands on.
#[derive(Debug, PartialEq, Eq)]
pub struct Step {
    /// Counted from 1.
    pub line: usize,
    /// The line itself, for reports.
    pub text: String,
    /// What to do.
    pub action: Action,
}

/// What a step does.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Makes a database file.
    Replica { name: String, source: Source },
    /// Reserves a free loopback port as a variable.
    Port(String),
    /// Starts a shell.
    Shell { name: String, place: Place, mode: Mode },
    /// Sends SQL to a shell.
    Sql(Sql),
    /// Collects the answer of a statement sent with `start`.
    Finish { shell: String, expected: Vec<String> },
    /// SIGKILL.
    Kill(String),
    /// `.quit`, and the process must end in time.
    Close { shell: String, within: Duration },
    /// Every user table of these files becomes equal in time.
    Equal { replicas: Vec<String>, within: Duration },
    /// `PRAGMA integrity_check` and `foreign_key_check` of a file find nothing.
    Integrity(String),
    /// Notes the bytes of a file.
    Remember(String),
    /// The bytes of a file are those noted.
    Unchanged(String),
}

/// Where a replica's file comes from.
#[derive(Debug, PartialEq, Eq)]
pub enum Source {
    /// No file yet; SQLite makes it.
    Empty,
    /// The bundled sample database.
    Sample,
    /// The Chinook database.
    Chinook,
    /// A copy of another replica's file as it is now.
    CopyOf(String),
}

/// SQL for one shell and what is to come of it.
#[derive(Debug, PartialEq, Eq)]
pub struct Sql {
    /// The shell.
    pub shell: String,
    /// The statements, ending in `;`, or one dot command.
    pub text: String,
    /// How the answer is awaited.
    pub manner: Manner,
    /// How often it is sent; `${i}` counts from 1.
    pub repeat: u32,
    /// The lines expected.
    pub expected: Vec<String>,
    /// Keep the one line printed in this variable.
    pub keep: Option<String>,
}

/// How an answer is awaited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// At once, bounded by the scenario.
    Now,
    /// At once, and it must have ended by then.
    Within(Duration),
    /// Asked again and again until the answer is the expected one.
    Until(Duration),
    /// Not at all; `finish` does that.
    Start,
}

/// Parses a file. Errors name the line.
pub fn parse(text: &str) -> Result<Scenario, String> {
    let mut scenario = Scenario {
        title: String::new(),
        limit: SCENARIO_LIMIT,
        needs: Vec::new(),
        steps: Vec::new(),
    };
    let lines: Vec<&str> = text.lines().collect();
    let mut at = 0;
    while at < lines.len() {
        let number = at + 1;
        let line = lines[at].trim_end();
        at += 1;
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let failed = |what: String| format!("line {number}: {what}: {line}");
        if line.starts_with(' ') {
            return Err(failed("expected output without a statement above it".into()));
        }
        if let Some(head) = head_line(line, &mut scenario) {
            head.map_err(failed)?;
            continue;
        }
        let (mut step, expects) = match statement_head(line) {
            Some(head) => (statement(head).map(Action::Sql).map_err(failed)?, true),
            None => (directive(line).map_err(failed)?, line.starts_with("finish ")),
        };
        while let Some(more) = lines.get(at).and_then(|l| l.trim_start().strip_prefix("...>")) {
            let Action::Sql(sql) = &mut step else {
                return Err(failed("only SQL can be continued".into()));
            };
            sql.text.push('\n');
            sql.text.push_str(more.trim());
            at += 1;
        }
        let mut output = Vec::new();
        while let Some(printed) = lines.get(at).and_then(|l| l.strip_prefix("  ")) {
            output.push(printed.to_string());
            at += 1;
        }
        if !expects && !output.is_empty() {
            return Err(failed("this line prints nothing".into()));
        }
        take_expected(&mut step, output).map_err(failed)?;
        scenario.steps.push(Step { line: number, text: line.to_string(), action: step });
    }
    if scenario.title.is_empty() {
        return Err("the file needs a line `title: …` that says what it shows".into());
    }
    Ok(scenario)
}

/// `title:`, `limit` and `needs`, which are about the whole file.
fn head_line(line: &str, scenario: &mut Scenario) -> Option<Result<(), String>> {
    if let Some(title) = line.strip_prefix("title:") {
        scenario.title = title.trim().to_string();
        return Some(Ok(()));
    }
    if let Some(limit) = line.strip_prefix("limit ") {
        return Some(duration(limit.trim()).map(|limit| scenario.limit = limit));
    }
    let need = line.strip_prefix("needs ")?;
    Some(match need.trim() {
        "chinook" => {
            scenario.needs.push(Need::Chinook);
            Ok(())
        }
        "multicast" => {
            scenario.needs.push(Need::Multicast);
            Ok(())
        }
        _ => Err("known needs are chinook and multicast".into()),
    })
}

/// Splits `words shell> sql` when the line is a statement.
fn statement_head(line: &str) -> Option<(Vec<&str>, &str, &str)> {
    let end = line.find('>')?;
    let (head, sql) = (&line[..end], line[end + 1..].trim());
    let words: Vec<&str> = head.split(' ').collect();
    let (shell, words) = words.split_last()?;
    is_name(shell).then(|| (words.to_vec(), *shell, sql))
}

/// The statement that a line describes, without what it expects.
fn statement((words, shell, sql): (Vec<&str>, &str, &str)) -> Result<Sql, String> {
    let mut parsed = Sql {
        shell: shell.to_string(),
        text: sql.to_string(),
        manner: Manner::Now,
        repeat: 1,
        expected: Vec::new(),
        keep: None,
    };
    let mut words = words.into_iter().filter(|word| !word.is_empty());
    while let Some(word) = words.next() {
        let mut next = || words.next().ok_or_else(|| format!("`{word}` lacks its value"));
        match word {
            "start" => parsed.manner = Manner::Start,
            "until" => parsed.manner = Manner::Until(duration(next()?)?),
            "within" => parsed.manner = Manner::Within(duration(next()?)?),
            "repeat" => {
                parsed.repeat = next()?.parse().map_err(|_| "repeat needs a number")?;
            }
            "let" => {
                parsed.keep = Some(name(next()?)?);
                if next()? != "=" {
                    return Err("write: let NAME = SHELL> SQL".into());
                }
            }
            _ => return Err(format!("unknown word `{word}` before the shell's name")),
        }
    }
    Ok(parsed)
}

/// Puts the expected lines where they belong and checks what only shows at the end.
fn take_expected(action: &mut Action, output: Vec<String>) -> Result<(), String> {
    match action {
        Action::Finish { expected, .. } => *expected = output,
        Action::Sql(sql) => {
            sql.expected = output;
            let complete = sql.text.ends_with(';') || sql.text.starts_with('.');
            if !complete {
                return Err("a statement ends with `;`".into());
            }
            if sql.keep.is_some() && !sql.expected.is_empty() {
                return Err("`let` keeps the one line printed and expects none".into());
            }
            let waits = matches!(sql.manner, Manner::Until(_));
            if waits && sql.expected.is_empty() && sql.keep.is_none() {
                return Err("`until` needs the output to wait for".into());
            }
        }
        _ => {}
    }
    Ok(())
}

/// Everything that is not a statement.
fn directive(line: &str) -> Result<Action, String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words.as_slice() {
        ["replica", replica] => Ok(Action::Replica { name: name(replica)?, source: Source::Empty }),
        ["replica", replica, "empty"] => {
            Ok(Action::Replica { name: name(replica)?, source: Source::Empty })
        }
        ["replica", replica, "sample"] => {
            Ok(Action::Replica { name: name(replica)?, source: Source::Sample })
        }
        ["replica", replica, "chinook"] => {
            Ok(Action::Replica { name: name(replica)?, source: Source::Chinook })
        }
        ["replica", replica, "copy", "of", other] => {
            Ok(Action::Replica { name: name(replica)?, source: Source::CopyOf(name(other)?) })
        }
        ["port", port] => Ok(Action::Port(name(port)?)),
        ["shell", shell, "on", place, options @ ..] => {
            Ok(Action::Shell { name: name(shell)?, place: at(place)?, mode: mode(options)? })
        }
        ["finish", shell] => Ok(Action::Finish { shell: name(shell)?, expected: Vec::new() }),
        ["kill", shell] => Ok(Action::Kill(name(shell)?)),
        ["close", shell] => Ok(Action::Close { shell: name(shell)?, within: CLOSE_LIMIT }),
        ["close", shell, "within", limit] => {
            Ok(Action::Close { shell: name(shell)?, within: duration(limit)? })
        }
        ["equal", replicas @ .., "within", limit] if replicas.len() > 1 => {
            Ok(Action::Equal { replicas: names(replicas)?, within: duration(limit)? })
        }
        ["equal", replicas @ ..] if replicas.len() > 1 => {
            Ok(Action::Equal { replicas: names(replicas)?, within: EQUAL_LIMIT })
        }
        ["integrity", replica] => Ok(Action::Integrity(name(replica)?)),
        ["remember", replica] => Ok(Action::Remember(name(replica)?)),
        ["unchanged", replica] => Ok(Action::Unchanged(name(replica)?)),
        _ => Err("not a line of the scenario format".into()),
    }
}

fn at(place: &str) -> Result<Place, String> {
    Ok(match place {
        ":memory:" => Place::Memory,
        ":temporary:" => Place::Temporary,
        replica => Place::File(name(replica)?),
    })
}

fn mode(options: &[&str]) -> Result<Mode, String> {
    let mut mode = Mode::default();
    for option in options {
        match *option {
            "plain" => mode.plain = true,
            "readonly" => mode.readonly = true,
            "bare" => mode.bare = true,
            _ => return Err("shell options are plain, readonly and bare".into()),
        }
    }
    Ok(mode)
}

fn is_name(word: &str) -> bool {
    let mut letters = word.chars();
    letters.next().is_some_and(|c| c.is_ascii_alphabetic())
        && letters.all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn name(word: &str) -> Result<String, String> {
    if is_name(word) {
        Ok(word.to_string())
    } else {
        Err(format!("`{word}` is not a name (letters, digits, underscores)"))
    }
}

fn names(words: &[&str]) -> Result<Vec<String>, String> {
    words.iter().map(|word| name(word)).collect()
}

/// `30s` or `500ms`.
fn duration(word: &str) -> Result<Duration, String> {
    let (digits, unit) = word.split_at(word.find(|c: char| !c.is_ascii_digit()).unwrap_or(0));
    let number: u64 = digits.parse().map_err(|_| format!("`{word}` is not a time like 30s"))?;
    match unit {
        "s" => Ok(Duration::from_secs(number)),
        "ms" => Ok(Duration::from_millis(number)),
        _ => Err(format!("`{word}` is not a time like 30s or 500ms")),
    }
}

#[cfg(test)]
#[path = "parse_tests.rs"]
mod tests;
