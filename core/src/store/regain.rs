//! What this replica claimed before it started over, and when it may claim that again: as soon as its
//! vector covers every write event of the row states that it lost, it dominates those states, and so
//! all that they dominated (rule P6). What it kept it dominated all the time.
//!
//! Without this, rows that it wrote before and that nobody else had received would be covered by
//! nobody for ever, and no log that holds them would count as closed (rule P12).

use std::collections::BTreeMap;

use rusqlite::params;

use crate::Result;
use crate::ids::{Boot, Dot, SiteId, Stamp};
use crate::mutants::{self, Mutant};
use crate::store::tables::Table;
use crate::store::{SiteNum, Tx};
use crate::value::Value;

/// Created where it is missing: files of earlier builds have none.
pub(super) const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS __wavesync_regain(site INTEGER PRIMARY KEY, lost INTEGER NOT NULL,
  stamp INTEGER NOT NULL, boot INTEGER NOT NULL);";

/// Of each site, the highest write event that was lost.
#[derive(Default)]
pub(super) struct Lost(BTreeMap<SiteId, Stamp>);

impl Lost {
    /// One more.
    pub(super) fn add(&mut self, dot: Dot) {
        let highest = self.0.entry(dot.site).or_insert(dot.stamp);
        *highest = dot.stamp.max(*highest);
    }
}

impl Tx<'_> {
    /// Adds the row states of a table that a condition chooses, before they go.
    pub(super) fn note_lost_rows(&mut self, table: &Table, condition: &str) -> Result<()> {
        let mut lost = Lost::default();
        let clocks = format!("__wavesync_clock_{}", table.num.0);
        let births =
            format!("SELECT site, max(stamp) FROM {clocks} WHERE {condition} GROUP BY site");
        let births = self
            .conn
            .prepare(&births)?
            .query_map([], |row| Ok((SiteNum(row.get(0)?), Stamp(row.get(1)?))))?
            .collect::<rusqlite::Result<Vec<_>>>()?;
        for (site, stamp) in births {
            lost.add(Dot { stamp, site: self.site(site)? });
        }
        // Everything else that a state consists of is there.
        for key in self.clock_keys(table, &format!("cells IS NOT NULL AND {condition}"))? {
            let Some(row) = self.clock(table, &key)? else { continue };
            row.clock.dots().for_each(|dot| lost.add(dot));
        }
        self.note_lost(&lost)
    }

    /// Adds one row state, before it goes.
    pub(super) fn note_lost_row(&mut self, table: &Table, key: &Value) -> Result<()> {
        let mut lost = Lost::default();
        if let Some(row) = self.clock(table, key)? {
            row.clock.dots().for_each(|dot| lost.add(dot));
        }
        self.note_lost(&lost)
    }

    /// Adds write events of states that are lost.
    pub(super) fn note_lost(&mut self, lost: &Lost) -> Result<()> {
        for (site, stamp) in &lost.0 {
            let number = self.site_num(*site)?;
            self.conn
                .prepare_cached(
                    "INSERT INTO __wavesync_regain(site, lost, stamp, boot) VALUES(?1, ?2, ?3, 0)
                     ON CONFLICT(site) DO UPDATE SET lost = max(lost, excluded.lost)",
                )?
                .execute(params![number.0, stamp.0, Stamp::NONE.0])?;
        }
        Ok(())
    }

    /// Remembers the vector, which is about to be emptied, beside what was claimed before it.
    pub(super) fn keep_claims(&self) -> Result<()> {
        self.conn.execute(
            "INSERT INTO __wavesync_regain(site, lost, stamp, boot)
             SELECT site, ?1, stamp, boot FROM __wavesync_vector WHERE true
             ON CONFLICT(site) DO UPDATE SET stamp = excluded.stamp, boot = excluded.boot
             WHERE excluded.stamp > stamp",
            [Stamp::NONE.0],
        )?;
        Ok(())
    }

    /// Claims again what was claimed before, if everything that was lost is back.
    pub(super) fn regain(&mut self) -> Result<()> {
        let missing = "SELECT 1 FROM __wavesync_regain r LEFT JOIN __wavesync_vector v USING(site)
             WHERE r.lost > coalesce(v.stamp, ?1)";
        let missing = self.conn.prepare_cached(missing)?.exists([Stamp::NONE.0])?;
        let wait = missing && !mutants::on(Mutant::RegainedEarly);
        if wait || mutants::on(Mutant::ClaimsStayLost) {
            return Ok(());
        }
        let claims = self
            .conn
            .prepare_cached("SELECT site, stamp, boot FROM __wavesync_regain")?
            .query_map([], |row| Ok((SiteNum(row.get(0)?), Stamp(row.get(1)?), Boot(row.get(2)?))))?
            .collect::<rusqlite::Result<Vec<_>>>()?;
        if claims.is_empty() {
            return Ok(());
        }
        for (site, stamp, boot) in claims.into_iter().filter(|(_, stamp, _)| *stamp > Stamp::NONE) {
            let site = self.site(site)?;
            self.raise(site, stamp, boot)?;
        }
        self.conn.execute("DELETE FROM __wavesync_regain", [])?;
        Ok(())
    }
}
