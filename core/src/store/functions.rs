//! Which functions the text of an adopted table may call: SQLite's own, which only compute.
//!
//! A database may have others, which write files, load code or ask a network; the text of another
//! member must not reach them.

/// Scalar functions that SQLite has built in and that have no effect.
const PLAIN: &[&str] = &[
    "abs",
    "acos",
    "acosh",
    "asin",
    "asinh",
    "atan",
    "atan2",
    "atanh",
    "ceil",
    "ceiling",
    "char",
    "coalesce",
    "concat",
    "concat_ws",
    "cos",
    "cosh",
    "date",
    "datetime",
    "degrees",
    "exp",
    "floor",
    "format",
    "glob",
    "hex",
    "if",
    "ifnull",
    "iif",
    "instr",
    "json",
    "json_array",
    "json_array_length",
    "json_error_position",
    "json_extract",
    "json_insert",
    "json_object",
    "json_patch",
    "json_pretty",
    "json_quote",
    "json_remove",
    "json_replace",
    "json_set",
    "json_type",
    "json_valid",
    "jsonb",
    "julianday",
    "length",
    "like",
    "likelihood",
    "likely",
    "ln",
    "log",
    "log10",
    "log2",
    "lower",
    "ltrim",
    "max",
    "min",
    "mod",
    "nullif",
    "octet_length",
    "pi",
    "pow",
    "power",
    "printf",
    "quote",
    "radians",
    "random",
    "randomblob",
    "replace",
    "round",
    "rtrim",
    "sign",
    "sin",
    "sinh",
    "sqrt",
    "strftime",
    "substr",
    "substring",
    "tan",
    "tanh",
    "time",
    "timediff",
    "trim",
    "trunc",
    "typeof",
    "unhex",
    "unicode",
    "unixepoch",
    "unlikely",
    "upper",
    "zeroblob",
];

/// Words that stand before a parenthesis without being called.
const WORDS: &[&str] = &[
    "and",
    "as",
    "between",
    "by",
    "case",
    "cast",
    "check",
    "collate",
    "conflict",
    "default",
    "else",
    "escape",
    "exists",
    "foreign",
    "generated",
    "glob",
    "in",
    "is",
    "isnull",
    "key",
    "like",
    "match",
    "not",
    "notnull",
    "null",
    "on",
    "or",
    "primary",
    "raise",
    "regexp",
    "then",
    "unique",
    "when",
    "where",
];

/// The first function that is called from the tokens of a declaration, from its first parenthesis
/// on, and is not one of SQLite's. In a table, the outermost parenthesis holds types and the tables
/// of foreign keys, which look like calls and are none: expressions are always deeper.
pub(super) fn first_refused(tokens: &[String], table: bool) -> Option<String> {
    let mut depth = 0usize;
    for (at, token) in tokens.iter().enumerate() {
        match token.as_str() {
            "(" => {
                let before = at.checked_sub(1).and_then(|at| tokens.get(at));
                // A type with a length, as in CAST(a AS DECIMAL(9, 2)).
                let is_type = at > 1 && tokens[at - 2].eq_ignore_ascii_case("AS");
                let called = before.filter(|_| (!table || depth > 1) && !is_type);
                let called = called.filter(|word| is_name(word));
                if let Some(word) = called {
                    let name = super::adopt::unquoted(word).to_ascii_lowercase();
                    let quoted = name != word.to_ascii_lowercase();
                    let word = !quoted && WORDS.contains(&name.as_str());
                    if !word && !PLAIN.contains(&name.as_str()) {
                        return Some(name);
                    }
                }
                depth += 1;
            }
            ")" => depth = depth.saturating_sub(1),
            // Operators that call a function of the host's.
            word if depth > 1
                && ["REGEXP", "MATCH"].iter().any(|w| w.eq_ignore_ascii_case(word)) =>
            {
                return Some(word.to_ascii_lowercase());
            }
            _ => {}
        }
    }
    None
}

fn is_name(token: &str) -> bool {
    token.chars().next().is_some_and(|first| {
        first.is_alphabetic() || matches!(first, '_' | '"' | '`' | '[' | '\'') || !first.is_ascii()
    })
}
