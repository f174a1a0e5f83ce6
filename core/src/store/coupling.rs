//! Columns that a declared rule couples: one that is written makes all of its group written, so a
//! merge never builds an invalid row out of two valid ones.
//!
//! Found by the words of the declaration, not by understanding it: a group may come out too large,
//! which only means that concurrent edits of its columns do not both survive.

use std::collections::BTreeSet;

use rusqlite::Connection;

use crate::Result;
use crate::store::foreign::Declared;
use crate::store::shape::ShapeColumn;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Open,
    Close,
    Other(char),
}

/// The groups of a table: lower case names of stored columns outside the key, two or more each.
pub fn groups(
    conn: &Connection,
    table: &str,
    sql: &str,
    columns: &[ShapeColumn],
    foreign: &[Declared],
) -> Result<Vec<BTreeSet<String>>> {
    let mut rules: Vec<BTreeSet<String>> = foreign
        .iter()
        .map(|key| key.columns.iter().map(|c| c.to_ascii_lowercase()).collect())
        .collect();
    let tokens = tokens(sql);
    rules.extend(checks(&tokens));
    let mut indexes = conn.prepare_cached(
        "SELECT l.name, coalesce(s.sql, '') FROM pragma_index_list(?1, 'main') AS l
         LEFT JOIN main.sqlite_schema AS s ON s.type = 'index' AND s.name = l.name
         WHERE l.\"unique\" ORDER BY l.name",
    )?;
    let found = indexes
        .query_map([table], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<rusqlite::Result<Vec<(String, String)>>>()?;
    for (name, text) in found {
        let mut names = conn.prepare_cached(
            "SELECT name FROM pragma_index_info(?1, 'main') WHERE name IS NOT NULL",
        )?;
        let named = names.query_map([name], |row| row.get::<_, String>(0))?;
        let mut rule: BTreeSet<String> =
            named.map(|name| Ok(name?.to_ascii_lowercase())).collect::<Result<_>>()?;
        rule.extend(words(self::tokens(&text).iter()));
        rules.push(rule);
    }
    let stored: BTreeSet<String> = columns.iter().map(|c| c.name.to_ascii_lowercase()).collect();
    let generated = generated(conn, table, &tokens)?;
    for rule in &mut rules {
        // A generated column may be made of other generated ones.
        for _ in 0..generated.len() {
            for (name, bases) in &generated {
                if rule.contains(name) {
                    rule.extend(bases.iter().cloned());
                }
            }
        }
        rule.retain(|name| stored.contains(name));
    }
    Ok(connected(rules))
}

/// Merges rules that share a column.
fn connected(rules: Vec<BTreeSet<String>>) -> Vec<BTreeSet<String>> {
    let mut groups: Vec<BTreeSet<String>> = Vec::new();
    for mut rule in rules.into_iter().filter(|rule| rule.len() > 1) {
        let (joined, apart): (Vec<_>, Vec<_>) =
            groups.into_iter().partition(|group| !group.is_disjoint(&rule));
        rule.extend(joined.into_iter().flatten());
        groups = apart;
        groups.push(rule);
    }
    groups
}

/// The words inside the parentheses of each CHECK.
fn checks(tokens: &[Token]) -> Vec<BTreeSet<String>> {
    let is_check = |token: &Token| *token == Token::Word("check".into());
    let starts = tokens.iter().enumerate().filter(|(_, token)| is_check(token));
    starts.map(|(at, _)| words(inside(&tokens[at + 1..]).iter())).collect()
}

/// Generated columns and the words of their expressions.
fn generated(
    conn: &Connection,
    table: &str,
    tokens: &[Token],
) -> Result<Vec<(String, BTreeSet<String>)>> {
    let mut statement = conn
        .prepare_cached("SELECT name FROM pragma_table_xinfo(?1, 'main') WHERE hidden IN (2, 3)")?;
    let names = statement.query_map([table], |row| row.get::<_, String>(0))?;
    let mut generated = Vec::new();
    for name in names {
        let name = name?.to_ascii_lowercase();
        let item = items(tokens).find(|item| item.first() == Some(&Token::Word(name.clone())));
        let item = item.unwrap_or(tokens);
        let clause = item
            .windows(2)
            .position(|pair| pair[0] == Token::Word("as".into()) && pair[1] == Token::Open);
        let expression = clause.map_or(item, |at| inside(&item[at + 1..]));
        generated.push((name, words(expression.iter())));
    }
    Ok(generated)
}

/// The definitions of columns and rules between the outermost parentheses.
fn items(tokens: &[Token]) -> impl Iterator<Item = &[Token]> {
    let open = tokens.iter().position(|token| *token == Token::Open).unwrap_or(tokens.len());
    let mut depth = 0usize;
    inside(&tokens[open..]).split(move |token| {
        match token {
            Token::Open => depth += 1,
            Token::Close => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth == 0 && *token == Token::Other(',')
    })
}

/// What stands between the parenthesis that these tokens begin with and the one that closes it.
fn inside(tokens: &[Token]) -> &[Token] {
    let mut depth = 0usize;
    for (at, token) in tokens.iter().enumerate() {
        match token {
            Token::Open => depth += 1,
            Token::Close => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 {
            return tokens.get(1..at).unwrap_or_default();
        }
    }
    tokens.get(1..).unwrap_or_default()
}

/// Every word of a text in lower case, names in quotes included.
pub(super) fn words_of(sql: &str) -> BTreeSet<String> {
    words(tokens(sql).iter())
}

/// Whether two words follow each other in a text.
pub(super) fn has_phrase(sql: &str, phrase: [&str; 2]) -> bool {
    let is = |token: &Token, wanted: &str| matches!(token, Token::Word(word) if word == wanted);
    tokens(sql).windows(2).any(|two| is(&two[0], phrase[0]) && is(&two[1], phrase[1]))
}

fn words<'a>(tokens: impl Iterator<Item = &'a Token>) -> BTreeSet<String> {
    tokens
        .filter_map(|token| match token {
            Token::Word(word) => Some(word.clone()),
            _ => None,
        })
        .collect()
}

/// Splits SQL into words (lower case, quoted names too), parentheses and other characters.
/// Comments and string literals are left out.
fn tokens(sql: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = sql;
    while let Some(first) = rest.chars().next() {
        let after = &rest[first.len_utf8()..];
        rest = match first {
            '-' if after.starts_with('-') => after.split_once('\n').map_or("", |(_, next)| next),
            '/' if after.starts_with('*') => {
                after[1..].split_once("*/").map_or("", |(_, next)| next)
            }
            '\'' => quoted(after, '\'').1,
            '"' | '`' | '[' => {
                let (name, next) = quoted(after, if first == '[' { ']' } else { first });
                tokens.push(Token::Word(name));
                next
            }
            '(' | ')' => {
                tokens.push(if first == '(' { Token::Open } else { Token::Close });
                after
            }
            c if c.is_alphanumeric() || c == '_' || c == '$' || !c.is_ascii() => {
                let in_word =
                    |c: char| c.is_alphanumeric() || c == '_' || c == '$' || !c.is_ascii();
                let end = rest.find(|c| !in_word(c)).unwrap_or(rest.len());
                tokens.push(Token::Word(rest[..end].to_ascii_lowercase()));
                &rest[end..]
            }
            c => {
                if !c.is_whitespace() {
                    tokens.push(Token::Other(c));
                }
                after
            }
        };
    }
    tokens
}

/// The text up to the closing quote, doubled ones undone, and what follows.
fn quoted(text: &str, close: char) -> (String, &str) {
    let mut name = String::new();
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        if c != close {
            name.push(c);
        } else if close != ']' && chars.peek().is_some_and(|(_, next)| *next == close) {
            name.push(c);
            chars.next();
        } else {
            return (name.to_ascii_lowercase(), &text[at + c.len_utf8()..]);
        }
    }
    (name.to_ascii_lowercase(), "")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::store::shape;

    fn groups_of(sql: &str) -> Vec<Vec<String>> {
        let conn = Connection::open_in_memory().unwrap();
        conn.execute_batch("CREATE TABLE p(a, b, PRIMARY KEY(a, b))").unwrap();
        conn.execute_batch(sql).unwrap();
        let shape = shape::find(&conn, "t").unwrap().unwrap().unwrap();
        let mut groups: Vec<Vec<String>> =
            shape.groups.iter().map(|group| group.iter().cloned().collect()).collect();
        groups.sort();
        groups
    }

    #[test]
    fn each_kind_of_rule_couples_its_columns() {
        let none: [[&str; 0]; 0] = [];
        assert_eq!(groups_of("CREATE TABLE t(k TEXT PRIMARY KEY, a UNIQUE, b CHECK(b > 0))"), none);
        assert_eq!(
            groups_of("CREATE TABLE t(k TEXT PRIMARY KEY, a, b, c, CHECK(a<b))"),
            [["a", "b"]]
        );
        assert_eq!(
            groups_of("CREATE TABLE t(k TEXT PRIMARY KEY, a CHECK(a < \"B\"), B)"),
            [["a", "b"]]
        );
        assert_eq!(
            groups_of("CREATE TABLE t(k TEXT PRIMARY KEY, a, b, c, d, UNIQUE(a, b), UNIQUE(c, d))"),
            [["a", "b"], ["c", "d"]]
        );
        assert_eq!(
            groups_of(
                "CREATE TABLE t(k TEXT PRIMARY KEY, x, y, FOREIGN KEY(x, y) REFERENCES p(a, b))"
            ),
            [["x", "y"]]
        );
        assert_eq!(
            groups_of(
                "CREATE TABLE t(k TEXT PRIMARY KEY, a, b, c);
                       CREATE UNIQUE INDEX i ON t(a) WHERE b IS NOT NULL"
            ),
            [["a", "b"]]
        );
        assert_eq!(
            groups_of(
                "CREATE TABLE t(k TEXT PRIMARY KEY, a, b, c); CREATE UNIQUE INDEX i ON t(lower(a || c))"
            ),
            [["a", "c"]]
        );
        // Rules that share a column are one group.
        assert_eq!(
            groups_of("CREATE TABLE t(k TEXT PRIMARY KEY, a, b, c, CHECK(a < b), UNIQUE(b, c))"),
            [["a", "b", "c"]]
        );
    }

    #[test]
    fn a_generated_column_stands_for_what_it_is_made_of() {
        assert_eq!(
            groups_of(
                "CREATE TABLE t(k TEXT PRIMARY KEY, a, b, c, /* g2, */ g AS (a + 1), g2 AS (g * 2) STORED,
                 CHECK(g2 <> 7 OR b IS NOT NULL) -- and (c)
                 )"
            ),
            [["a", "b"]]
        );
    }

    #[test]
    fn literals_and_the_key_couple_nothing() {
        assert!(
            groups_of("CREATE TABLE t(k TEXT PRIMARY KEY, a CHECK(a <> 'b'), b, UNIQUE(k, b))")
                .is_empty()
        );
    }
}
