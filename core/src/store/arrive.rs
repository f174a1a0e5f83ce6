//! A push of another site: whether it joins what was seen of that site (rule P10).

use super::apply::{PushVerdict, joins};

use super::tables::Table;
use crate::Result;
use crate::ids::{SiteId, Stamp};
use crate::merge::{KeyKind, moved_key};
use crate::mutants::{self, Mutant};
use crate::store::vector::Vector;
use crate::store::{Tx, key};
use crate::value::Value;
use crate::wire::rows::{Batch, Row};

impl Tx<'_> {
    /// Applies a push if it joins what was seen of its site without a gap.
    pub fn apply_push(
        &mut self,
        site: SiteId,
        boot: crate::ids::Boot,
        (prev, upto): (Stamp, Stamp),
        rows: &Batch,
    ) -> Result<PushVerdict> {
        let seen = self.seen(site)?;
        if site == self.own_site()? || seen >= upto {
            return Ok(PushVerdict::Known);
        }
        let capped = self.caps()?.get(&site).is_some_and(|cap| *cap < upto);
        // The vector stays below what found no room here, so all later pushes of its site have a
        // gap. Their rows are taken in all the same: that moves nothing.
        let left_out = !capped && self.left_out_sites()?.contains(&site);
        let gap = capped || (seen < prev && !left_out && !mutants::on(Mutant::PushAcrossGap));
        if gap || !self.patches_are_known(site, prev, rows)? {
            return Ok(PushVerdict::Gap);
        }
        let applied = self.apply(rows)?;
        if seen < prev && left_out {
            // What was here already is not passed on: no vector tells that it was.
            let news = applied.changed > 0;
            return Ok(if news { PushVerdict::Applied(applied) } else { PushVerdict::Known });
        }
        let reached = Vector([(site, (upto, boot))].into_iter().collect());
        self.check_sites(&reached)?;
        self.raise_all(&reached)?;
        self.effects.openness_left |= self.test_openness()?;
        Ok(PushVerdict::Applied(applied))
    }

    /// Rule P10c: a push row carries its birth, or patches an incarnation that is here.
    fn patches_are_known(&mut self, site: SiteId, prev: Stamp, rows: &Batch) -> Result<bool> {
        for part in &rows.tables {
            for row in part.rows.iter().filter(|row| row.length % 2 == 1) {
                let own = row.whole && row.birth.site == site && row.birth.stamp > prev;
                if own {
                    continue;
                }
                let table = self.table_on_wire(&part.name, part.integer_key, part.key_columns)?;
                let Some(table) = table else { return Ok(false) };
                let key = key::pack(&row.key);
                let clock = self.clock(&table, &key)?.map(|row| row.clock);
                let here = clock.is_some_and(|known| joins(table.kind, &known, row));
                if !here && !self.has_moved(&table, row)? && !self.holds(&table, &key, row)? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Whether the incarnation that a row patches has moved, and is known where it is now.
    pub(super) fn has_moved(&mut self, table: &Table, row: &Row) -> Result<bool> {
        match (table.kind, row.key.as_slice()) {
            (KeyKind::Integer, [Value::Integer(key)]) => {
                let to = Value::Integer(moved_key(*key, row.birth));
                Ok(self.clock(table, &to)?.is_some())
            }
            _ => Ok(false),
        }
    }
}
