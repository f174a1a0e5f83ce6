//! Which columns an update wrote: the expression in the capture trigger, and how it is read back.
//!
//! Columns that a declared rule couples are not the trigger's business: the fold adds them.

use crate::Result;
use crate::ids::ColumnNum;
use crate::store::shape::ShapeColumn;
use crate::store::sql::ident;
use crate::value::Value;

/// Mask of an insert: every column.
pub const MASK_INSERT: i64 = -1;
/// Columns of one word of a mask. Bit 63 is the sign, which an insert has.
const WORD_COLUMNS: u16 = 63;
/// Terms that stand beside each other in one expression. SQLite parses a chain of operators into a
/// tree as deep as the chain is long, and refuses trees deeper than 1,000.
const CHAIN_TERMS: usize = 64;

/// What a log entry says of the columns, other than of a delete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mask {
    /// All of them.
    Insert,
    /// Those whose bit is set, 63 in a word.
    Columns(Vec<i64>),
}

impl Mask {
    /// Reads `cols` of a log entry; `None` for a delete. What no trigger of ours writes counts as
    /// all columns, so that nothing is lost.
    #[must_use]
    pub fn read(stored: &Value) -> Option<Self> {
        match stored {
            Value::Null => None,
            Value::Integer(word) if *word >= 0 => Some(Self::Columns(vec![*word])),
            Value::Text(text) => {
                let words = std::str::from_utf8(text).ok().and_then(|text| {
                    text.split(',').map(|word| word.parse().ok()).collect::<Option<Vec<i64>>>()
                });
                Some(words.map_or(Self::Insert, Self::Columns))
            }
            _ => Some(Self::Insert),
        }
    }

    /// Whether a column was written.
    #[must_use]
    pub fn holds(&self, column: ColumnNum) -> bool {
        match self {
            Self::Insert => true,
            Self::Columns(words) => words
                .get(usize::from(column.0 / WORD_COLUMNS))
                .is_some_and(|word| word & (1 << (column.0 % WORD_COLUMNS)) != 0),
        }
    }
}

/// The expression of a mask: for each column (in order of their numbers, by which a rename is
/// read back) the bit that its term sets. One word is an integer; more are text, joined by commas.
#[must_use]
pub fn expression(terms: &[(ColumnNum, String)]) -> String {
    let words = terms.last().map_or(0, |(last, _)| usize::from(last.0 / WORD_COLUMNS) + 1);
    if words <= 1 {
        return word(terms.iter());
    }
    let words: Vec<String> = (0..words)
        .map(|at| {
            let in_word = |column: &ColumnNum| usize::from(column.0 / WORD_COLUMNS) == at;
            format!("({})", word(terms.iter().filter(|(column, _)| in_word(column))))
        })
        .collect();
    chain(words, "||','||")
}

fn word<'a>(terms: impl Iterator<Item = &'a (ColumnNum, String)>) -> String {
    let bits: Vec<String> = terms
        .map(|(column, term)| match column.0 % WORD_COLUMNS {
            0 => term.clone(),
            shift => format!("({term}<<{shift})"),
        })
        .collect();
    if bits.is_empty() { "0".into() } else { bits.join("|") }
}

/// Joins terms by an operator that may be regrouped, so that the expression stays flat.
#[must_use]
pub fn chain(terms: Vec<String>, operator: &str) -> String {
    if terms.len() <= CHAIN_TERMS {
        return terms.join(operator);
    }
    let groups = terms.chunks(CHAIN_TERMS).map(|group| format!("({})", group.join(operator)));
    chain(groups.collect(), operator)
}

/// Whether a column changed, in a trigger: by value, by storage class where that can differ alone,
/// and by bytes where a collation may hide a difference.
pub fn changed(column: &ShapeColumn, collates: bool) -> Result<String> {
    let name = ident(&column.name)?;
    let collate = if collates { " COLLATE BINARY" } else { "" };
    let compared = format!("OLD.{name}{collate} IS NOT NEW.{name}");
    Ok(if column.classes_differ {
        format!("({compared} OR typeof(OLD.{name}) IS NOT typeof(NEW.{name}))")
    } else {
        format!("({compared})")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_column_has_a_bit_of_its_own() {
        let conn = rusqlite::Connection::open_in_memory().ok();
        for count in [1u16, 2, 62, 63, 64, 126, 127, 2_000, 5_000] {
            for written in [vec![], vec![0], vec![count - 1], vec![count / 2, count - 1]] {
                let term = |n: u16| format!("({}=1)", u8::from(written.contains(&n)));
                let terms: Vec<_> = (0..count).map(|n| (ColumnNum(n), term(n))).collect();
                let sql = format!("SELECT {}", expression(&terms));
                let stored = conn.as_ref().and_then(|conn| {
                    conn.query_row(&sql, [], |row| Ok(Value::from_ref(row.get_ref(0)?))).ok()
                });
                let mask = stored.as_ref().and_then(Mask::read);
                let read = mask.map(|mask| {
                    (0..count + 70).filter(|n| mask.holds(ColumnNum(*n))).collect::<Vec<_>>()
                });
                let mut wanted = written.clone();
                wanted.dedup();
                assert_eq!(read, Some(wanted), "{count} columns, {written:?} written");
            }
        }
    }

    #[test]
    fn what_no_trigger_writes_counts_as_all_columns() {
        assert_eq!(Mask::read(&Value::Null), None);
        for odd in [Value::Integer(-1), Value::Real(1.0), Value::text("1,x"), Value::text("")] {
            assert_eq!(Mask::read(&odd), Some(Mask::Insert));
        }
    }
}
