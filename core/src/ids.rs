//! The numbers of the data model as types of their own: sites, stamps, positions, boots.
//!
//! A stamp is a hybrid logical clock value (Kulkarni et al., "Logical Physical Clocks", 2014):
//! milliseconds since 1970 in the upper bits, a 16 bit counter below. Negative stamps are *base*
//! stamps: they mark rows that existed before their replica joined and lie below every real one.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Identity of one replica (or of one back-fill): 16 random bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SiteId(#[serde(with = "serde_bytes")] pub [u8; 16]);

impl SiteId {
    /// Reads the 16 bytes of a stored or received id.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Display for SiteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for SiteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().take(4).try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Wall time in milliseconds since 1970, as the host tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Millis(pub u64);

impl Millis {
    /// Time since `earlier`; zero when the clock went backwards.
    #[must_use]
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// This moment plus a duration in milliseconds.
    #[must_use]
    pub fn plus(self, millis: u64) -> Self {
        Self(self.0.saturating_add(millis))
    }

    /// UTC in ISO 8601 with milliseconds. The date from the day number follows Howard Hinnant's
    /// `civil_from_days` (<https://howardhinnant.github.io/date_algorithms.html>).
    #[must_use]
    pub fn iso_8601(self) -> String {
        let (days, of_day) = (self.0 / 86_400_000, self.0 % 86_400_000);
        let shifted = days + 719_468;
        let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
        let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
        let year = year_of_era + era * 400 + u64::from(month <= 2);
        let (hours, minutes) = (of_day / 3_600_000, of_day / 60_000 % 60);
        let (seconds, millis) = (of_day / 1_000 % 60, of_day % 1_000);
        format!("{year:04}-{month:02}-{day:02}T{hours:02}:{minutes:02}:{seconds:02}.{millis:03}Z")
    }
}

/// A hybrid logical clock value; see the module text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Stamp(pub i64);

impl Stamp {
    /// Below every stamp that exists, base stamps included.
    pub const NONE: Self = Self(i64::MIN);

    /// The stamp of the first event in a millisecond. Times outside 1970 ..= 6429 are clamped.
    #[must_use]
    pub fn at(millis: i64) -> Self {
        Self(millis.clamp(0, crate::limits::STAMP_MS_MAX) << 16)
    }

    /// The stamp of the last event in a millisecond.
    #[must_use]
    pub fn last_of(millis: i64) -> Self {
        Self(Self::at(millis).0 | 0xffff)
    }

    /// The milliseconds since 1970 in it; 0 for a base stamp.
    #[must_use]
    pub fn millis(self) -> u64 {
        u64::try_from(self.0 >> 16).unwrap_or(0)
    }

    /// The base stamp of rows that existed when their replica joined: an earlier join is bigger.
    #[must_use]
    pub fn base(joined: Millis) -> Self {
        let millis = i64::try_from(joined.0).unwrap_or(i64::MAX);
        Self(-millis.clamp(1, crate::limits::STAMP_MS_MAX))
    }

    /// Whether this marks a row that existed before its replica joined.
    #[must_use]
    pub fn is_base(self) -> bool {
        self.0 < 0
    }

    /// The next stamp after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.checked_add(1).expect("stamps near the maximum are refused at decode"))
    }
}

/// One write event: its stamp and the site that made it. Ordered by stamp, then site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Dot {
    /// When, by the site's hybrid logical clock.
    pub stamp: Stamp,
    /// Who.
    pub site: SiteId,
}

impl Dot {
    /// Order of births: the earlier one keeps an INTEGER key and becomes the birth of a merged
    /// row. A base birth counts as its join time, so it precedes every real one, and of two base
    /// births the bigger stamp (the earlier join) precedes.
    #[must_use]
    pub fn precedes(&self, other: &Self) -> bool {
        match (self.stamp.is_base(), other.stamp.is_base()) {
            (true, true) => {
                (self > other) != crate::mutants::on(crate::mutants::Mutant::LaterJoinWins)
            }
            (true, false) => true,
            (false, true) => false,
            (false, false) => self < other,
        }
    }
}

/// A position in a replica's own log: its `db_version`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seq(pub i64);

/// One start of an engine on a database: a random number that tells branches of a file apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Boot(pub i64);

/// How far a replica has read another one's log (rules P8, P13).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// The boot of the other replica under which this was read; 0 before the first read.
    pub boot: Boot,
    /// Every row whose newest entry is at or below this is dominated here.
    pub seq: Seq,
    /// The other replica's folded end when this was read.
    pub high: Seq,
}

/// Local number of a tracked or remotely named table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TableNum(pub i64);

/// Local, stable number of a column of one table; key columns have none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ColumnNum(pub u16);

impl ColumnNum {
    /// The pseudo-column `#claim` of a row's clock: the rank that a local write took over.
    pub const CLAIM: Self = Self(u16::MAX);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_shown_in_iso_8601() {
        assert_eq!(Millis(0).iso_8601(), "1970-01-01T00:00:00.000Z");
        assert_eq!(Millis(951_827_696_789).iso_8601(), "2000-02-29T12:34:56.789Z");
        assert_eq!(Millis(4_102_444_799_999).iso_8601(), "2099-12-31T23:59:59.999Z");
    }

    #[test]
    fn base_births_precede_real_ones_and_earlier_joins_precede_later() {
        let site = |n| SiteId([n; 16]);
        let dot = |stamp, n| Dot { stamp, site: site(n) };
        let early = dot(Stamp::base(Millis(1_000)), 1);
        let late = dot(Stamp::base(Millis(2_000)), 2);
        let real = dot(Stamp::at(1), 1);
        assert!(early.precedes(&late) && !late.precedes(&early));
        assert!(late.precedes(&real) && !real.precedes(&late));
        assert!(early > late && real > early, "an earlier join wins cells, a real write wins all");
    }
}
