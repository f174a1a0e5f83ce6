//! Finds what a reader would copy from a Markdown document: fenced blocks with SQL transcripts,
//! shell commands and Python programs. Knows text, runs nothing.
//!
//! A block counts by its language; what stands behind the language are options:
//!
//! - `sql` with lines `sqlite> …`: a transcript, run and compared. `terminal=NAME` continues the
//!   shell of that name; `eventually` repeats a query until it prints what is written.
//! - `sql readme` without prompts: statements that must run without an error.
//! - `sh readme`: commands that are run; `python readme`: a program that is run.
//!
//! A block in one of these languages without a prompt and without `readme` is refused, so that
//! nothing stands in a document that no test runs.

/// The languages a reader can run.
const RUNNABLE: [&str; 7] = ["sql", "sh", "bash", "shell", "console", "python", "py"];
const PROMPT: &str = "sqlite> ";
const CONTINUATION: &str = "...> ";

/// The runnable blocks of a document in order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Document {
    /// In the order in which they stand.
    pub blocks: Vec<Block>,
}

/// A fenced block.
#[derive(Debug, PartialEq, Eq)]
pub struct Block {
    /// The line of its opening fence, from 1.
    pub line: usize,
    /// The terminal that it continues.
    pub terminal: Option<String>,
    /// Queries are repeated until they print what is written.
    pub eventually: bool,
    /// What to do.
    pub parts: Vec<Part>,
}

/// A part of a block.
#[derive(Debug, PartialEq, Eq)]
pub enum Part {
    /// Opens a sqlite3 shell on a file, as `$ sqlite3 FILE` says.
    Open { line: usize, file: String },
    /// SQL or a dot command and the lines expected under it; `None`: anything but an error.
    Exchange { line: usize, sql: String, expected: Option<Vec<String>> },
    /// A command for `sh`.
    Command { line: usize, command: String },
    /// A program for python3.
    Python { line: usize, program: String },
}

/// Extracts the runnable blocks.
pub fn parse(text: &str) -> Result<Document, String> {
    let mut document = Document::default();
    let mut lines = text.lines().enumerate();
    while let Some((at, line)) = lines.next() {
        let indent = line.len() - line.trim_start().len();
        let Some(info) = line.trim_start().strip_prefix("```") else { continue };
        let mut body = Vec::new();
        let mut closed = false;
        for (number, line) in lines.by_ref() {
            if line.trim() == "```" {
                closed = true;
                break;
            }
            let outdented = line.char_indices().take_while(|(n, c)| *n < indent && *c == ' ');
            let start = outdented.count();
            body.push((number + 1, line[start..].trim_end()));
        }
        if !closed {
            return Err(format!("line {}: this fence is never closed", at + 1));
        }
        if let Some(block) = block(at + 1, info, &body)? {
            document.blocks.push(block);
        }
    }
    Ok(document)
}

/// One block; `None` when it is nothing to run.
fn block(line: usize, info: &str, body: &[(usize, &str)]) -> Result<Option<Block>, String> {
    let mut words = info.split_whitespace();
    let language = words.next().unwrap_or_default();
    if !RUNNABLE.contains(&language) {
        return Ok(None);
    }
    let mut block = Block { line, terminal: None, eventually: false, parts: Vec::new() };
    let mut marked = false;
    for word in words {
        match word.split_once('=') {
            None if word == "readme" => marked = true,
            None if word == "eventually" => block.eventually = true,
            Some(("terminal", name)) => block.terminal = Some(name.to_string()),
            _ => return Err(format!("line {line}: unknown word `{word}` behind {language}")),
        }
    }
    let prompted = body.iter().any(|(_, text)| text.starts_with(PROMPT));
    block.parts = match language {
        "sql" | "console" if prompted => transcript(body)?,
        _ if !marked => {
            return Err(format!(
                "line {line}: no test runs this {language} block. Write `{language} readme` \
                 behind the fence, or a transcript with `sqlite> `"
            ));
        }
        "sql" => vec![Part::Exchange { line, sql: joined(body), expected: None }],
        "python" | "py" => vec![Part::Python { line, program: joined(body) }],
        _ => commands(body),
    };
    Ok(Some(block))
}

fn joined(body: &[(usize, &str)]) -> String {
    body.iter().map(|(_, text)| *text).collect::<Vec<_>>().join("\n")
}

/// Commands, one a line; `\` at the end continues, `# …` and empty lines are passed over.
fn commands(body: &[(usize, &str)]) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    let mut open = false;
    for (line, text) in body {
        let text = text.strip_prefix("$ ").unwrap_or(text);
        match (open, parts.last_mut()) {
            (true, Some(Part::Command { command, .. })) => {
                command.push('\n');
                command.push_str(text);
            }
            _ if text.is_empty() || text.starts_with('#') => continue,
            _ => parts.push(Part::Command { line: *line, command: text.to_string() }),
        }
        open = text.ends_with('\\');
    }
    parts
}

/// A transcript of a sqlite3 shell.
fn transcript(body: &[(usize, &str)]) -> Result<Vec<Part>, String> {
    let mut parts: Vec<Part> = Vec::new();
    for (line, text) in body {
        let line = *line;
        if let Some(file) = text.strip_prefix("$ sqlite3") {
            parts.push(Part::Open { line, file: file.trim().to_string() });
        } else if let Some(command) = text.strip_prefix("$ ") {
            parts.push(Part::Command { line, command: command.to_string() });
        } else if let Some(sql) = text.strip_prefix(PROMPT) {
            let sql = sql.to_string();
            parts.push(Part::Exchange { line, sql, expected: Some(Vec::new()) });
        } else {
            let lone = || format!("line {line}: `{text}` has no statement above it");
            let Some(Part::Exchange { sql, expected: Some(expected), .. }) = parts.last_mut()
            else {
                if text.is_empty() {
                    continue;
                }
                return Err(lone());
            };
            match text.trim_start().strip_prefix(CONTINUATION) {
                Some(more) if expected.is_empty() => {
                    sql.push('\n');
                    sql.push_str(more);
                }
                _ => expected.push((*text).to_string()),
            }
        }
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_transcript_with_terminals() {
        let text = "# x\n```sql terminal=1\n$ cp a.db b.db\n$ sqlite3 notes.db\n\
                    sqlite> .load ./wavesync\nsqlite> SELECT 1,\n   ...> 2;\n1|2\n```\n\
                    ```sql terminal=2 eventually\nsqlite> SELECT 3;\n…\n```\n";
        let document = parse(text).unwrap();
        let exchange = |line, sql: &str, expected: &[&str]| Part::Exchange {
            line,
            sql: sql.into(),
            expected: Some(expected.iter().map(ToString::to_string).collect()),
        };
        assert_eq!(document.blocks[0].terminal.as_deref(), Some("1"));
        assert_eq!(
            document.blocks[0].parts,
            [
                Part::Command { line: 3, command: "cp a.db b.db".into() },
                Part::Open { line: 4, file: "notes.db".into() },
                exchange(5, ".load ./wavesync", &[]),
                exchange(6, "SELECT 1,\n2;", &["1|2"]),
            ]
        );
        assert!(document.blocks[1].eventually);
        assert_eq!(document.blocks[1].parts, [exchange(11, "SELECT 3;", &["…"])]);
    }

    #[test]
    fn marked_blocks_are_run() {
        let text = "1. so:\n\n   ```sh readme\n   $ make demo\n   # why\n\
                    \x20  echo a \\\n     b\n   ```\n\
                    ```sql readme\nSELECT 1;\n```\n```python readme\nprint(1)\n```\n";
        let document = parse(text).unwrap();
        let command = |line, text: &str| Part::Command { line, command: text.into() };
        assert_eq!(
            document.blocks[0].parts,
            [command(4, "make demo"), command(6, "echo a \\\n  b")]
        );
        let statement = Part::Exchange { line: 9, sql: "SELECT 1;".into(), expected: None };
        assert_eq!(document.blocks[1].parts, [statement]);
        let program = Part::Python { line: 12, program: "print(1)".into() };
        assert_eq!(document.blocks[2].parts, [program]);
    }

    #[test]
    fn other_languages_are_for_reading() {
        assert_eq!(parse("```text\nhello\n```\n```\nplain\n```\n").unwrap().blocks, []);
    }

    #[test]
    fn what_no_test_runs_is_refused() {
        assert!(parse("```sh\nrm -r x\n```").unwrap_err().contains("no test runs this sh block"));
        assert!(parse("```sql\nSELECT 1;\n```").unwrap_err().contains("no test runs this sql"));
        assert!(parse("```sql loud\nsqlite> SELECT 1;\n```").unwrap_err().contains("`loud`"));
        assert!(parse("```sql\nout\nsqlite> SELECT 1;\n```").unwrap_err().contains("no statement"));
        assert!(parse("```sql\nsqlite> SELECT 1;\n").unwrap_err().contains("never closed"));
    }
}
