//! UNIQUE indexes as they are declared, and the SQL that finds the rows which a write collides
//! with.
//!
//! Columns and collations are read from SQLite; of an index on expressions, or with a WHERE, the
//! text of each term is cut out of the declaration and used as it stands. Nothing of it is
//! understood.

use std::collections::BTreeSet;

use rusqlite::Connection;

use crate::Result;
use crate::store::coupling;
use crate::store::sql::ident;

/// What an index orders by.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Term {
    /// A column.
    Column(String),
    /// An expression, as it was written.
    Expression(String),
}

/// A UNIQUE index beside the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unique {
    /// What is unique, each with its collation.
    terms: Vec<(Term, String)>,
    /// The WHERE of a partial index, as it was written.
    condition: Option<String>,
    /// Columns of the table that it looks at.
    pub columns: Vec<String>,
}

impl Unique {
    /// Columns only, all rows.
    #[must_use]
    pub fn plain(&self) -> bool {
        let column = |(term, _): &(Term, String)| matches!(term, Term::Column(_));
        self.condition.is_none() && self.terms.iter().all(column)
    }

    /// It is on columns as they are, by collations of SQLite's own.
    #[must_use]
    pub fn comparable(&self) -> bool {
        let own = ["binary", "nocase", "rtrim"];
        let known = |(_, collation): &(Term, String)| {
            own.iter().any(|own| collation.eq_ignore_ascii_case(own))
        };
        self.plain() && self.terms.iter().all(known)
    }

    /// The condition that a row of the table, under its own quoted name (by which the texts may call
    /// it), collides with `NEW` of a trigger. May hold for a row that does not collide, never the
    /// other way round.
    pub fn collides(&self, table: &str) -> Result<String> {
        let new: Result<Vec<String>> = self
            .columns
            .iter()
            .map(|column| Ok(format!("NEW.{0} AS {0}", ident(column)?)))
            .collect();
        let new = new?.join(", ");
        let mut parts = self
            .terms
            .iter()
            .map(|(term, collation)| {
                let collation = ident(collation)?;
                Ok(match term {
                    Term::Column(name) => {
                        let name = ident(name)?;
                        format!("{table}.{name} = NEW.{name} COLLATE {collation}")
                    }
                    // The names in the text mean the columns of whatever FROM they stand under.
                    Term::Expression(text) => format!(
                        "({text}) = (SELECT {text} FROM (SELECT {new}) AS {table}) COLLATE {collation}"
                    ),
                })
            })
            .collect::<Result<Vec<String>>>()?;
        // Without it SQLite does not look the row up in the index.
        parts.extend(self.condition.iter().map(|condition| format!("({condition})")));
        Ok(format!("({})", parts.join(" AND ")))
    }
}

/// The UNIQUE indexes of a table beside its key, or that of its key.
pub fn indexes(conn: &Connection, table: &str, of_key: bool) -> Result<Vec<Unique>> {
    let mut statement =
        conn.prepare_cached("SELECT name FROM pragma_table_xinfo(?1, 'main') ORDER BY cid")?;
    let all = statement
        .query_map([table], |row| row.get(0))?
        .collect::<rusqlite::Result<Vec<String>>>()?;
    let mut indexes = conn.prepare_cached(
        "SELECT l.name, coalesce(s.sql, '') FROM pragma_index_list(?1, 'main') AS l
         LEFT JOIN main.sqlite_schema AS s ON s.type = 'index' AND s.name = l.name
         WHERE l.\"unique\" AND (l.origin = 'pk') = ?2 ORDER BY l.name",
    )?;
    let found = indexes
        .query_map(rusqlite::params![table, of_key], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<rusqlite::Result<Vec<(String, String)>>>()?;
    found.into_iter().map(|(name, sql)| index(conn, &all, &name, &sql)).collect()
}

fn index(conn: &Connection, all: &[String], name: &str, sql: &str) -> Result<Unique> {
    let mut statement = conn.prepare_cached(
        "SELECT name, coll FROM pragma_index_xinfo(?1, 'main') WHERE key ORDER BY seqno",
    )?;
    let terms = statement
        .query_map([name], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<rusqlite::Result<Vec<(Option<String>, String)>>>()?;
    let (texts, condition) = cut(sql);
    let terms: Vec<(Term, String)> = terms
        .into_iter()
        .enumerate()
        .map(|(at, (column, collation))| match column {
            Some(column) => (Term::Column(column), collation),
            None => (Term::Expression(texts.get(at).cloned().unwrap_or_default()), collation),
        })
        .collect();
    let mut looked_at: BTreeSet<String> = coupling::words_of(sql);
    looked_at.extend(terms.iter().filter_map(|(term, _)| match term {
        Term::Column(name) => Some(name.to_ascii_lowercase()),
        Term::Expression(_) => None,
    }));
    let columns =
        all.iter().filter(|name| looked_at.contains(&name.to_ascii_lowercase())).cloned().collect();
    Ok(Unique { terms, condition, columns })
}

/// The text of each term of a `CREATE INDEX`, and of its WHERE.
fn cut(sql: &str) -> (Vec<String>, Option<String>) {
    let mut depth = 0usize;
    let mut terms = Vec::new();
    let mut part = String::new();
    let mut closed = false;
    for piece in pieces(sql) {
        match (piece, depth) {
            ("(", 0) if !closed => {
                depth = 1;
                part.clear();
            }
            (")", 1) if !closed => {
                depth = 0;
                closed = true;
                terms.push(without_order(&std::mem::take(&mut part)));
            }
            (",", 1) if !closed => terms.push(without_order(&std::mem::take(&mut part))),
            (piece, _) => {
                match piece {
                    "(" => depth += 1,
                    ")" => depth = depth.saturating_sub(1),
                    _ => {}
                }
                part.push_str(piece);
            }
        }
    }
    let rest = part.trim();
    let is_condition = rest.get(..5).is_some_and(|word| word.eq_ignore_ascii_case("where"));
    (terms, is_condition.then(|| rest[5..].trim().into()))
}

/// SQL in single characters and whole quoted pieces; a comment is a space.
fn pieces(sql: &str) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut rest = sql;
    while let Some(first) = rest.chars().next() {
        let after = &rest[first.len_utf8()..];
        let next = match first {
            '-' if after.starts_with('-') => after.split_once('\n').map_or("", |(_, next)| next),
            '/' if after.starts_with('*') => {
                after[1..].split_once("*/").map_or("", |(_, next)| next)
            }
            '\'' | '"' | '`' | '[' => {
                let close = if first == '[' { ']' } else { first };
                // A doubled quote begins the next quoted piece, so it needs no care.
                after.split_once(close).map_or("", |(_, next)| next)
            }
            _ => after,
        };
        let comment = matches!(first, '-' | '/') && next.len() < after.len();
        pieces.push(if comment { " " } else { &rest[..rest.len() - next.len()] });
        rest = next;
    }
    pieces
}

/// A term without `ASC` or `DESC` behind it.
fn without_order(term: &str) -> String {
    let term = term.trim();
    for word in ["asc", "desc"] {
        let Some(at) = term.len().checked_sub(word.len()) else { continue };
        let tail = term.get(at..).is_some_and(|tail| tail.eq_ignore_ascii_case(word));
        let apart = term.get(..at).is_some_and(|head| {
            head.ends_with(|c: char| c.is_whitespace() || matches!(c, ')' | '"' | '\'' | ']'))
        });
        if tail && apart {
            return term[..at].trim_end().into();
        }
    }
    term.into()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn terms_and_condition_are_cut_out_of_the_declaration() {
        let (terms, condition) = cut(
            "CREATE UNIQUE INDEX \"i(\" ON [t,(] ( lower( a || ')' ) COLLATE nocase DESC , -- x)\n \
             \"b\"\"c\" asc, max(d,1)/*,*/ ) WHERE a > '--' AND b /* c */ < 3 -- end",
        );
        assert_eq!(terms, ["lower( a || ')' ) COLLATE nocase", "\"b\"\"c\"", "max(d,1)"]);
        assert_eq!(condition.as_deref(), Some("a > '--' AND b   < 3"));
        assert_eq!(cut("CREATE UNIQUE INDEX i ON t(a)"), (vec!["a".into()], None));
        assert_eq!(cut(""), (vec![], None));
    }

    #[test]
    fn only_the_order_is_taken_off_a_term() {
        for (term, kept) in
            [("a DESC", "a"), ("f(a)asc", "f(a)"), ("desc", "desc"), ("xasc", "xasc")]
        {
            assert_eq!(without_order(term), kept);
        }
    }
}
