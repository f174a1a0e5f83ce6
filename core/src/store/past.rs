//! Sites that were this replica's own before the present one. An old copy of the file may have come
//! back before the site changed, so what others know of a former site is compared like what they
//! know of the present one (rule P13); what two histories wrote under it is capped (rule P14).

use std::ops::RangeInclusive;

use rusqlite::{OptionalExtension, params};

use crate::Result;
use crate::ids::{Boot, Millis, SiteId, Stamp};
use crate::mutants::{self, Mutant};
use crate::store::vector::{Caps, Vector};
use crate::store::{SiteNum, Store, Tx};

/// Created where it is missing: files of earlier builds have none.
pub(super) const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS __wavesync_past(site INTEGER PRIMARY KEY, boot INTEGER NOT NULL,
  stamp INTEGER NOT NULL, elsewhere INTEGER NOT NULL);";

/// The time in which a site was this replica's own.
struct Era {
    site: SiteId,
    /// The boots in it, by their order. A call may have changed the site while an engine ran: that
    /// boot is in both eras.
    boots: RangeInclusive<i64>,
    /// The newest boot of the era before: it began under another site.
    before: i64,
    /// The vector entry at its end.
    stamp: Stamp,
    /// The file was copied then, so the site may go on in the original.
    elsewhere: bool,
}

impl Store {
    /// Rules P13 and P14 for former sites: caps those of which a vector shows another history.
    /// Returns whether any cap fell.
    ///
    /// # Errors
    /// If SQLite fails; nothing is changed then.
    pub fn cap_past(&mut self, now: Millis, vector: &Vector) -> Result<bool> {
        let caps = self.folded(now, |tx| tx.past_forks(vector))?;
        if caps.is_empty() {
            return Ok(false);
        }
        self.write(now, |tx| tx.lower_caps(&caps))
    }
}

impl Tx<'_> {
    /// Notes that the present site stops being the own one; before its vector entry goes.
    pub(super) fn leave_site(&self, elsewhere: bool) -> Result<()> {
        self.conn.execute(
            "INSERT OR REPLACE INTO __wavesync_past(site, boot, stamp, elsewhere)
             SELECT m.value, coalesce((SELECT max(ord) FROM __wavesync_boot), 0),
               coalesce((SELECT stamp FROM __wavesync_vector WHERE site = m.value), ?1), ?2
             FROM __wavesync_meta m WHERE m.key = 'self'",
            params![Stamp::NONE.0, elsewhere],
        )?;
        Ok(())
    }

    /// The bounds of former own sites that fall because of what a vector claims of them.
    pub(super) fn past_forks(&mut self, vector: &Vector) -> Result<Caps> {
        let mut forks = Caps::new();
        if mutants::on(Mutant::ForkUnseen) || mutants::on(Mutant::PastUnseen) {
            return Ok(forks);
        }
        for era in self.eras()? {
            let Some((stamp, boot)) = vector.0.get(&era.site).copied() else { continue };
            let cap = self.caps()?.get(&era.site).copied();
            let common = self.common_in(&era, stamp, boot, cap.is_some())?;
            if let Some(common) = common.filter(|common| cap.is_none_or(|cap| *common < cap)) {
                forks.insert(era.site, common);
            }
        }
        Ok(forks)
    }

    fn eras(&mut self) -> Result<Vec<Era>> {
        // Sites are numbered in the order in which this replica took them.
        let rows = self
            .conn
            .prepare_cached(
                "SELECT site, boot, stamp, elsewhere FROM __wavesync_past ORDER BY site",
            )?
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?
            .collect::<rusqlite::Result<Vec<(i64, i64, i64, bool)>>>()?;
        let (mut before, mut first) = (0, 1);
        let mut eras = Vec::new();
        for (site, boot, stamp, elsewhere) in rows {
            let (site, stamp) = (self.site(SiteNum(site))?, Stamp(stamp));
            eras.push(Era { site, boots: first..=boot, before, stamp, elsewhere });
            (before, first) = (boot, if elsewhere { boot + 1 } else { boot });
        }
        Ok(eras)
    }

    /// Up to where what is known here of a former site is what a vector entry is about; `None` as
    /// long as nothing speaks against that.
    fn common_in(
        &self,
        era: &Era,
        stamp: Stamp,
        boot: Boot,
        capped: bool,
    ) -> Result<Option<Stamp>> {
        let known = self
            .conn
            .prepare_cached("SELECT ord, stamp FROM __wavesync_boot WHERE nonce = ?1")?
            .query_row([boot.0], |row| Ok((row.get(0)?, Stamp(row.get(1)?))))
            .optional()?
            .filter(|(order, _)| era.boots.contains(order));
        let Some((order, start)) = known else {
            // Folded by calls while no engine ran, so anything up to the end may be the same. A boot
            // that is not known may belong to the history for which the cap was found; where the
            // oldest boots are trimmed, and in an original that goes on, it proves nothing.
            let all_known = self
                .conn
                .prepare_cached("SELECT 1 FROM __wavesync_boot WHERE ord = 1")?
                .exists([])?;
            let proves = if boot == Boot(0) { stamp > era.stamp } else { !capped && all_known };
            return Ok((proves && !era.elsewhere).then_some(Stamp(0)));
        };
        let next: Option<(i64, i64)> = self
            .conn
            .prepare_cached(
                "SELECT ord, stamp FROM __wavesync_boot WHERE ord > ?1 ORDER BY ord LIMIT 1",
            )?
            .query_row([order], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let next = next.filter(|(order, _)| era.boots.contains(order));
        if let Some((_, end)) = next {
            let end = Stamp(end);
            return Ok((stamp > end).then_some(end.max(Stamp(0))));
        }
        let proves = stamp > era.stamp && !era.elsewhere;
        let start = if order > era.before { start.max(Stamp(0)) } else { Stamp(0) };
        Ok(proves.then_some(start))
    }
}
