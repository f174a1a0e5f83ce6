//! Reads the content of database files through a plain shell, and compares files.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::settings::{BUSY_TIMEOUT_MILLIS, Settings};
use crate::shell::{Mode, Shell};
use crate::transcript::Transcript;
use crate::wait;

/// How many differing lines of a table are shown.
const SHOWN_DIFFERENCES: usize = 5;
/// Tables of the user: not SQLite's, not wavesync's, not virtual.
const USER_TABLES: &str = "SELECT name FROM sqlite_master WHERE type = 'table' \
     AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND name NOT LIKE '\\_\\_wavesync\\_%' ESCAPE '\\' \
     AND sql NOT LIKE 'CREATE VIRTUAL%' ORDER BY name;";

/// The rows of every user table, as the shell's quote mode prints them, with a line for the
/// columns first.
pub type Content = BTreeMap<String, Vec<String>>;

/// A shell that checks a file: it loads nothing and leaves its transcript out of the report.
struct Reader {
    shell: Shell,
    deadline: Instant,
}

impl Reader {
    fn open(settings: &Settings, file: &Path, deadline: Instant) -> Result<Self, String> {
        let directory = file.parent().ok_or("a database file has a directory")?;
        let mode = Mode { plain: true, bare: true, files: true, ..Mode::default() };
        let name = file.to_string_lossy();
        let log = Transcript::default();
        let mut shell = Shell::open(settings, "reader", directory, &name, mode, &log)?;
        shell.ask(&format!(".timeout {BUSY_TIMEOUT_MILLIS}"), deadline)?;
        Ok(Self { shell, deadline })
    }

    fn ask(&mut self, sql: &str) -> Result<Vec<String>, String> {
        let lines = self.shell.ask(sql, self.deadline)?;
        match lines.iter().find(|line| line.starts_with("error: ")) {
            Some(error) => Err(format!("{error} in {sql}")),
            None => Ok(lines),
        }
    }
}

/// Reads every user table of a file in one read transaction.
pub fn content(settings: &Settings, file: &Path, deadline: Instant) -> Result<Content, String> {
    let mut reader = Reader::open(settings, file, deadline)?;
    reader.ask("BEGIN;")?;
    let tables = reader.ask(USER_TABLES)?;
    let mut content = Content::new();
    reader.ask(".mode quote")?;
    for table in tables {
        let text = table.replace('\'', "''");
        let columns = reader
            .ask(&format!("SELECT name, pk FROM pragma_table_xinfo('{text}') ORDER BY cid;"))?;
        let names = reader
            .ask(&format!("SELECT hex(name) FROM pragma_table_xinfo('{text}') ORDER BY cid;"))?;
        let shown: Vec<String> = names.iter().map(|name| exact(name)).collect();
        let order: Vec<String> = (1..=columns.len()).map(|n| n.to_string()).collect();
        let quoted = table.replace('"', "\"\"");
        let mut rows = vec![columns.join(" ")];
        rows.extend(reader.ask(&format!(
            "SELECT {} FROM \"{quoted}\" ORDER BY {};",
            shown.join(","),
            order.join(",")
        ))?);
        content.insert(table, rows);
    }
    reader.ask("COMMIT;")?;
    reader.shell.close(Duration::from_secs(5))?;
    Ok(content)
}

/// An expression that shows a column exactly: reals by their bits, text that is not plain by its
/// bytes. `quote` prints -0.0 as 0.0, and text up to its first NUL.
fn exact(hex_of_name: &str) -> String {
    let digits = hex_of_name.trim_matches('\'');
    let byte = |at| digits.get(at..at + 2).and_then(|two| u8::from_str_radix(two, 16).ok());
    let name: Vec<u8> = (0..digits.len()).step_by(2).filter_map(byte).collect();
    let column = format!("\"{}\"", String::from_utf8_lossy(&name).replace('"', "\"\""));
    format!(
        "CASE typeof({column}) WHEN 'real' THEN 'r'||hex(ieee754_to_blob({column}))||' '||{column} \
         WHEN 'text' THEN iif({column} GLOB '*[^ -~]*' OR length({column})*2 <> length(hex({column})), \
         't'||hex({column}), {column}) ELSE {column} END"
    )
}

/// Waits until all files have the same content; the error says where they differ.
pub fn wait_equal(
    settings: &Settings,
    files: &[(&str, &Path)],
    deadline: Instant,
) -> Result<(), String> {
    let mut last = "nothing was compared".to_string();
    let equal = wait::until(deadline, || -> Result<Option<()>, String> {
        let read_limit = Instant::now() + Duration::from_secs(20);
        let mut first: Option<(&str, Content)> = None;
        for (name, file) in files {
            let found = match content(settings, file, read_limit) {
                Ok(found) => found,
                Err(error) => {
                    last = format!("{name}: {error}");
                    return Ok(None);
                }
            };
            match &first {
                None => first = Some((name, found)),
                Some((other, wanted)) => {
                    if let Some(difference) = difference(other, wanted, name, &found) {
                        last = difference;
                        return Ok(None);
                    }
                }
            }
        }
        Ok(Some(()))
    })?;
    equal.ok_or_else(|| format!("the files did not become equal in time: {last}"))
}

/// Where two contents differ, if they do.
#[must_use]
pub fn difference(name: &str, left: &Content, other: &str, right: &Content) -> Option<String> {
    if left.is_empty() && right.is_empty() {
        return Some(format!("neither {name} nor {other} has a table"));
    }
    for table in left.keys().chain(right.keys()) {
        let (Some(rows), Some(others)) = (left.get(table), right.get(table)) else {
            let lacking = if left.contains_key(table) { other } else { name };
            return Some(format!("{lacking} has no table {table}"));
        };
        if rows != others {
            let only = |these: &[String], those: &[String]| -> String {
                let those: std::collections::BTreeSet<&String> = those.iter().collect();
                let lines = these.iter().filter(|row| !those.contains(row));
                let shown: Vec<String> = lines
                    .take(SHOWN_DIFFERENCES)
                    .map(|row| row.chars().take(200).collect())
                    .collect();
                shown.join("\n      ")
            };
            return Some(format!(
                "table {table}: {} rows in {name}, {} in {other}\n    only in {name}:\n      {}\
                 \n    only in {other}:\n      {}",
                rows.len() - 1,
                others.len() - 1,
                only(rows, others),
                only(others, rows)
            ));
        }
    }
    None
}

/// The file is sound: `integrity_check` says ok and `foreign_key_check` nothing.
pub fn integrity(settings: &Settings, file: &Path, deadline: Instant) -> Result<(), String> {
    let mut reader = Reader::open(settings, file, deadline)?;
    let found = reader.ask("PRAGMA integrity_check;")?;
    if found != ["ok"] {
        return Err(format!("integrity_check says: {}", found.join("; ")));
    }
    let orphans = reader.ask("PRAGMA foreign_key_check;")?;
    if !orphans.is_empty() {
        return Err(format!("foreign_key_check says: {}", orphans.join("; ")));
    }
    reader.shell.close(Duration::from_secs(5))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rows: &[&str]) -> Content {
        let mut lines = vec!["'id',1".to_string()];
        lines.extend(rows.iter().map(ToString::to_string));
        Content::from([("t".to_string(), lines)])
    }

    #[test]
    fn differences_are_named() {
        assert_eq!(difference("a", &table(&["1"]), "b", &table(&["1"])), None);
        let found = difference("a", &table(&["1", "2"]), "b", &table(&["1", "3"]));
        let found = found.unwrap_or_default();
        assert!(found.contains("table t: 2 rows in a, 2 in b"), "{found}");
        assert!(found.contains("only in b:\n      3"), "{found}");
        let empty = Content::new();
        assert!(difference("a", &table(&[]), "b", &empty).is_some());
        assert!(difference("a", &empty, "b", &empty).is_some(), "nothing is not equality");
    }
}
