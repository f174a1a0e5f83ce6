//! Read-mostly tables of the SQL surface: what one is, and which part of it a query asks for.
//! How SQLite reads it is `ffi`; what its rows are is the business of whoever defines it.

use crate::ffi::{Host, SqlError};
use std::ops::Deref;
use wavesync_core::value::Value;

/// The rows of a table, produced as SQLite asks for them. They own what they need: nothing in
/// them may borrow from the host's handle, and no statement may be open on it.
pub type Rows = Box<dyn Iterator<Item = Result<Vec<Value>, SqlError>>>;

/// Takes one row of an `INSERT INTO`, values in the order of the columns; gives its rowid.
pub type InsertRow = fn(&TableContext, &[Value]) -> Result<i64, SqlError>;

/// One eponymous virtual table: it exists on every handle that loaded the extension.
pub struct SqlTable {
    /// The name in SQL.
    pub name: &'static str,
    /// The columns in order. Any name will do, reserved words included.
    pub columns: &'static [&'static str],
    /// A column of integers by which queries can page. A table that names one gives its rows in
    /// ascending order of it, and may skip what `TableContext::{seek_after, seek_through}`
    /// excludes (SQLite checks every row again, so skipping less is never wrong).
    pub seek: Option<&'static str>,
    /// Columns by which a query may ask for one text: a table that names some may leave out rows
    /// that [`TableContext::equals`] excludes (SQLite checks those again, too).
    pub filters: &'static [&'static str],
    /// Starts a scan.
    pub rows: fn(&TableContext) -> Result<Rows, SqlError>,
    /// What an `INSERT INTO` does; without it the table is read-only.
    pub insert: Option<InsertRow>,
    /// What follows when a transaction that inserted was committed. It cannot fail any more.
    pub committed: Option<fn(&TableContext)>,
}

impl SqlTable {
    /// The position of the column named by `seek`.
    pub(crate) fn seek_column(&self) -> Option<usize> {
        let name = self.seek?;
        self.columns.iter().position(|column| *column == name)
    }

    /// The positions of the columns named by `filters`.
    pub(crate) fn filter_columns(&self) -> impl Iterator<Item = usize> {
        self.filters.iter().filter_map(|name| self.columns.iter().position(|c| c == name))
    }

    /// The declaration that SQLite is given. The column to seek by has INTEGER affinity, so that
    /// `db_version > '5'` means what it says; the others have none and show values as they are.
    pub(crate) fn declaration(&self) -> String {
        let seek = self.seek_column();
        let columns: Vec<String> = self
            .columns
            .iter()
            .enumerate()
            .map(|(index, name)| {
                let quoted = format!("\"{}\"", name.replace('"', "\"\""));
                if seek == Some(index) { format!("{quoted} INTEGER") } else { quoted }
            })
            .collect();
        format!("CREATE TABLE x({})", columns.join(", "))
    }
}

/// The host side of one scan or insert: the handle that the table is on, and the range asked for.
#[derive(Debug)]
pub struct TableContext {
    host: Host,
    /// Only rows whose seek column is greater than this are asked for. Below `i64::MAX`: a scan
    /// that nothing can satisfy is not started.
    pub seek_after: Option<i64>,
    /// Only rows whose seek column is at most this are asked for.
    pub seek_through: Option<i64>,
    filters: Vec<(usize, String)>,
}

impl TableContext {
    pub(crate) fn new(host: Host, range: SeekRange) -> Self {
        Self { host, seek_after: range.after, seek_through: range.through, filters: range.filters }
    }

    /// The text that a column must be equal to, by its position.
    pub fn equals(&self, column: usize) -> Option<&str> {
        let mut filters = self.filters.iter().filter(|(at, _)| *at == column);
        filters.next().map(|(_, text)| text.as_str())
    }
}

impl Deref for TableContext {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.host
    }
}

/// A comparison of the seek column with a value, as the planner passes it to the scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SeekOperator {
    /// `column = value`
    Equal,
    /// `column > value`
    Greater,
    /// `column >= value`
    GreaterOrEqual,
    /// `column < value`
    Less,
    /// `column <= value`
    LessOrEqual,
}

impl SeekOperator {
    /// The letter that stands for it in the index string of a plan.
    pub(crate) fn letter(self) -> char {
        match self {
            Self::Equal => 'e',
            Self::Greater => 'g',
            Self::GreaterOrEqual => 'G',
            Self::Less => 'l',
            Self::LessOrEqual => 'L',
        }
    }

    /// The operator of a letter that `letter` gave.
    pub(crate) fn from_letter(letter: char) -> Option<Self> {
        [Self::Equal, Self::Greater, Self::GreaterOrEqual, Self::Less, Self::LessOrEqual]
            .into_iter()
            .find(|operator| operator.letter() == letter)
    }
}

/// The integers that satisfy a set of comparisons: greater than `after`, at most `through`.
/// It may hold more than those, never fewer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SeekRange {
    after: Option<i64>,
    through: Option<i64>,
    filters: Vec<(usize, String)>,
    /// No integer satisfies them.
    pub(crate) empty: bool,
}

impl SeekRange {
    /// Leaves out rows whose column at this position is not equal to the value. Other values than
    /// text may be turned into text by SQLite; they are left to it.
    pub(crate) fn filter(&mut self, column: usize, value: &Value) {
        match value {
            Value::Null => self.empty = true,
            Value::Text(text) => {
                let text = String::from_utf8(text.clone());
                self.filters.extend(text.ok().map(|text| (column, text)));
            }
            Value::Integer(_) | Value::Real(_) | Value::Blob(_) => {}
        }
    }

    /// Leaves out what `column <operator> value` excludes.
    pub(crate) fn narrow(&mut self, operator: SeekOperator, value: &Value) {
        use SeekOperator::{Equal, Greater, GreaterOrEqual, Less, LessOrEqual};
        match value {
            // A comparison with NULL is never true.
            Value::Null => self.empty = true,
            // Text may be turned into a number by SQLite; leave it to SQLite.
            Value::Text(_) | Value::Blob(_) => {}
            Value::Integer(bound) => match operator {
                Greater => self.above(*bound),
                GreaterOrEqual => self.from(*bound),
                Less => self.below(*bound),
                LessOrEqual => self.up_to(*bound),
                Equal => {
                    self.from(*bound);
                    self.up_to(*bound);
                }
            },
            Value::Real(bound) => match operator {
                Greater => self.above_real(bound.floor()),
                GreaterOrEqual if bound.fract() == 0.0 => self.above_real(bound - 1.0),
                GreaterOrEqual => self.above_real(bound.floor()),
                Less | LessOrEqual => self.up_to_real(bound.floor()),
                Equal => {
                    self.above_real(bound.floor() - 1.0);
                    self.up_to_real(bound.floor());
                }
            },
        }
    }

    fn above(&mut self, bound: i64) {
        // So that `after + 1` always exists.
        self.empty |= bound == i64::MAX;
        self.after = Some(self.after.map_or(bound, |known| known.max(bound)));
    }

    fn from(&mut self, bound: i64) {
        if let Some(before) = bound.checked_sub(1) {
            self.above(before);
        }
    }

    fn up_to(&mut self, bound: i64) {
        self.through = Some(self.through.map_or(bound, |known| known.min(bound)));
    }

    fn below(&mut self, bound: i64) {
        match bound.checked_sub(1) {
            Some(before) => self.up_to(before),
            None => self.empty = true,
        }
    }

    /// `bound` is a whole number. Beyond 2^53 neighbours are skipped by the caller's `- 1.0`
    /// (it changes nothing there), so one more is taken off.
    fn above_real(&mut self, bound: f64) {
        if bound >= TWO_TO_63 {
            self.empty = true;
        } else if bound > -TWO_TO_63 {
            // In range, so the cast is exact.
            let whole = bound as i64;
            if let Some(before) = whole.checked_sub(i64::from(bound.abs() >= TWO_TO_53)) {
                self.above(before);
            }
        }
    }

    fn up_to_real(&mut self, bound: f64) {
        if bound < -TWO_TO_63 {
            self.empty = true;
        } else if bound < TWO_TO_63 {
            self.up_to(bound as i64);
        }
    }
}

/// Reals below this and not below its negative fit an i64.
const TWO_TO_63: f64 = 9_223_372_036_854_775_808.0;
/// From here on not every integer has a real of its own.
const TWO_TO_53: f64 = 9_007_199_254_740_992.0;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use SeekOperator::{Equal, Greater, GreaterOrEqual, Less, LessOrEqual};

    const ALL: [SeekOperator; 5] = [Equal, Greater, GreaterOrEqual, Less, LessOrEqual];

    fn range(operator: SeekOperator, value: Value) -> SeekRange {
        let mut range = SeekRange::default();
        range.narrow(operator, &value);
        range
    }

    fn holds(range: &SeekRange, candidate: i64) -> bool {
        !range.empty
            && range.after.is_none_or(|after| candidate > after)
            && range.through.is_none_or(|through| candidate <= through)
    }

    /// Compares an integer with a real exactly: through i128, which holds both whole parts.
    fn satisfies(candidate: i64, operator: SeekOperator, bound: f64) -> bool {
        let floor = if bound.abs() < 1e30 { bound.floor() as i128 } else { (bound * 1e9) as i128 };
        let whole = bound.fract() == 0.0 || bound.abs() >= 1e30;
        let candidate = i128::from(candidate);
        match operator {
            Equal => whole && candidate == floor,
            Greater => candidate > floor,
            GreaterOrEqual => candidate > floor || (whole && candidate == floor),
            Less => candidate < floor || (!whole && candidate == floor),
            LessOrEqual => candidate <= floor,
        }
    }

    #[test]
    fn integers_narrow_exactly() {
        let edges = [i64::MIN, i64::MIN + 1, -1, 0, 1, 5, i64::MAX - 1, i64::MAX];
        for operator in ALL {
            for bound in edges {
                for candidate in edges {
                    let expected = match operator {
                        Equal => candidate == bound,
                        Greater => candidate > bound,
                        GreaterOrEqual => candidate >= bound,
                        Less => candidate < bound,
                        LessOrEqual => candidate <= bound,
                    };
                    let held = holds(&range(operator, Value::Integer(bound)), candidate);
                    assert_eq!(held, expected, "{candidate} {operator:?} {bound}");
                }
            }
        }
    }

    #[test]
    fn reals_never_lose_a_row() {
        let big = TWO_TO_53 as i64;
        let candidates =
            [i64::MIN, i64::MIN + 1, -big - 1, -big, -2, -1, 0, 1, 2, 5, big, big + 1, i64::MAX];
        let bounds = [
            f64::NEG_INFINITY,
            -1e300,
            -TWO_TO_63,
            -TWO_TO_53,
            -1.5,
            -1.0,
            0.0,
            0.5,
            1.0,
            4.999,
            5.0,
            TWO_TO_53,
            TWO_TO_53 + 2.0,
            TWO_TO_63,
            1e300,
            f64::INFINITY,
        ];
        for operator in ALL {
            for bound in bounds {
                for candidate in candidates {
                    let held = holds(&range(operator, Value::Real(bound)), candidate);
                    let needed = satisfies(candidate, operator, bound);
                    assert!(held || !needed, "{candidate} {operator:?} {bound} was lost");
                }
            }
        }
    }

    #[test]
    fn null_excludes_all_and_text_excludes_nothing() {
        for operator in ALL {
            assert!(range(operator, Value::Null).empty);
            assert_eq!(range(operator, Value::text("5")), SeekRange::default());
        }
    }

    #[test]
    fn comparisons_add_up() {
        let mut both = range(Greater, Value::Integer(5));
        both.narrow(LessOrEqual, &Value::Integer(9));
        both.narrow(Greater, &Value::Integer(2));
        assert_eq!((both.after, both.through, both.empty), (Some(5), Some(9), false));
    }

    #[test]
    fn letters_round_trip() {
        for operator in ALL {
            assert_eq!(SeekOperator::from_letter(operator.letter()), Some(operator));
        }
        assert_eq!(SeekOperator::from_letter('x'), None);
    }
}
