//! Compares what a shell printed with what a file expects. Knows lines of text only.

/// Matches any run of characters inside a line; alone on a line it matches any number of lines
/// that are no errors.
pub const ANYTHING: &str = "…";

/// How an expected error begins; the rest of the line must occur in the error's message.
pub const ERROR: &str = "error: ";

/// The beginnings of the lines in which the sqlite3 shell reports an error.
const ERROR_HEADS: [&str; 4] =
    ["Parse error near line ", "Runtime error near line ", "Error: near line ", "Error: "];

/// Whether the printed lines are what was expected.
#[must_use]
pub fn matches(expected: &[String], printed: &[String]) -> bool {
    match expected.split_first() {
        None => printed.is_empty(),
        Some((first, rest)) if first.trim() == ANYTHING => {
            let sound = printed.iter().take_while(|line| !line.starts_with(ERROR)).count();
            (0..=sound).any(|skipped| matches(rest, &printed[skipped..]))
        }
        Some((first, rest)) => printed
            .split_first()
            .is_some_and(|(line, others)| line_matches(first, line) && matches(rest, others)),
    }
}

/// Whether one printed line is what was expected.
fn line_matches(expected: &str, printed: &str) -> bool {
    if let Some(wanted) = expected.strip_prefix(ERROR) {
        return printed.strip_prefix(ERROR).is_some_and(|message| {
            let wanted = format!("{ANYTHING}{wanted}{ANYTHING}");
            pieces_match(&wanted, message)
        });
    }
    pieces_match(expected, printed)
}

/// Matches a line against pieces of text separated by [`ANYTHING`].
fn pieces_match(expected: &str, printed: &str) -> bool {
    let mut pieces = expected.split(ANYTHING);
    let Some(first) = pieces.next() else { return printed.is_empty() };
    let Some(mut rest) = printed.strip_prefix(first) else { return false };
    let pieces: Vec<&str> = pieces.collect();
    let Some((last, middle)) = pieces.split_last() else { return rest.is_empty() };
    for piece in middle {
        match rest.find(piece) {
            Some(at) => rest = &rest[at + piece.len()..],
            None => return false,
        }
    }
    rest.len() >= last.len() && rest.ends_with(last)
}

/// Rewrites the shell's ways to report an error (they differ by version and carry line numbers)
/// as `error: <message>` and drops the drawing that follows a parse error.
#[must_use]
pub fn normalize(lines: Vec<String>) -> Vec<String> {
    let mut kept = Vec::with_capacity(lines.len());
    let mut drawing = false;
    for line in lines {
        if drawing && line.starts_with("  ") {
            drawing = !(line.contains("^---") || line.contains("---^"));
            continue;
        }
        drawing = line.starts_with(ERROR_HEADS[0]);
        kept.push(match error_message(&line) {
            Some(message) => format!("{ERROR}{message}"),
            None => line,
        });
    }
    kept
}

/// The message of a line in which the shell reports an error.
fn error_message(line: &str) -> Option<&str> {
    let head = ERROR_HEADS.iter().find(|head| line.starts_with(**head))?;
    let rest = &line[head.len()..];
    if !head.ends_with("line ") {
        return Some(rest);
    }
    let number = rest.find(|c: char| !c.is_ascii_digit())?;
    rest[number..].strip_prefix(": ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn lines(text: &[&str]) -> Vec<String> {
        text.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn equal_lines_match_and_others_do_not() {
        assert!(matches(&lines(&["1|a", "2|b"]), &lines(&["1|a", "2|b"])));
        assert!(!matches(&lines(&["1|a", "2|b"]), &lines(&["1|a"])));
        assert!(!matches(&lines(&["1|a"]), &lines(&["1|a", "2|b"])));
        assert!(!matches(&lines(&["1|a"]), &lines(&["1|a "])));
        assert!(!matches(&lines(&[""]), &lines(&[])));
        assert!(matches(&lines(&[]), &lines(&[])));
    }

    #[test]
    fn the_ellipsis_stands_for_anything() {
        assert!(matches(&lines(&["a…c"]), &lines(&["abbc"])));
        assert!(matches(&lines(&["…b…"]), &lines(&["abc"])));
        assert!(!matches(&lines(&["a…a"]), &lines(&["a"])));
        assert!(!matches(&lines(&["a…c…e"]), &lines(&["ace."])));
        assert!(matches(&lines(&["…", "z"]), &lines(&["x", "y", "z"])));
        assert!(matches(&lines(&["…"]), &lines(&[])));
        assert!(!matches(&lines(&["…", "z"]), &lines(&["z", "y"])));
    }

    #[test]
    fn an_expected_error_needs_an_error() {
        let printed =
            normalize(lines(&["Runtime error near line 12: UNIQUE constraint failed: t.id (19)"]));
        assert_eq!(printed, lines(&["error: UNIQUE constraint failed: t.id (19)"]));
        assert!(matches(&lines(&["error: UNIQUE constraint"]), &printed));
        assert!(matches(&lines(&["error: UNIQUE…t.id"]), &printed));
        assert!(!matches(&lines(&["error: CHECK"]), &printed));
        assert!(!matches(&lines(&["error: x"]), &lines(&["x"])));
        assert!(!matches(&lines(&["x"]), &lines(&["error: x"])));
        assert!(!matches(&lines(&["…"]), &lines(&["error: x"])));
        assert!(matches(&lines(&["…", "error: x"]), &lines(&["1", "error: x"])));
    }

    #[test]
    fn the_drawing_below_a_parse_error_is_dropped() {
        let printed = normalize(lines(&[
            "Parse error near line 1: no such column: bad",
            "  SELECT bad;",
            "         ^--- error here",
            "  two spaces are kept elsewhere",
        ]));
        assert_eq!(
            printed,
            lines(&["error: no such column: bad", "  two spaces are kept elsewhere"])
        );
    }

    #[test]
    fn a_failed_load_is_an_error() {
        let printed = normalize(lines(&["Error: ./nope.so: cannot open shared object file"]));
        assert!(matches(&lines(&["error: cannot open shared object"]), &printed));
    }
}
