//! Values that lost against a write which did not know of them: kept for the user.

use std::rc::Rc;

use rusqlite::params;

use crate::Result;
use crate::ids::SiteId;
use crate::merge::{Clock, Incoming};
use crate::store::Tx;
use crate::store::rows::Values;
use crate::store::tables::Table;
use crate::value::Value;

impl Tx<'_> {
    /// Our row gives way to a newer incarnation: what it held is kept for the user.
    pub(super) fn keep_overwritten(
        &mut self,
        table: &Rc<Table>,
        key: &Value,
        current: &Clock,
        incoming: &Incoming,
    ) -> Result<()> {
        let newest = current.dots().max();
        if newest.is_none_or(|newest| newest < incoming.birth) {
            return Ok(());
        }
        let reason = "another replica deleted the row without having seen this edit";
        let ours = self.all_values(table, key)?;
        let theirs = incoming.cells.iter().map(|(num, (_, value))| (*num, value.clone())).collect();
        let site = incoming.birth.site;
        self.add_conflict(table, key, ("overwritten", reason), &ours, &theirs, site)
    }

    /// Notes a conflict, of a kind and in words, once.
    pub(super) fn add_conflict(
        &mut self,
        table: &Rc<Table>,
        key: &Value,
        (kind, reason): (&str, &str),
        ours: &Values,
        theirs: &Values,
        site: SiteId,
    ) -> Result<()> {
        let site = self.site_num(site)?;
        let ours = super::report::values_json(table, ours);
        let theirs = super::report::values_json(table, theirs);
        self.conn
            .prepare_cached(
                "INSERT INTO __wavesync_conflict(tbl, k, kind, reason, ours, theirs, site, at)
                 SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8 WHERE NOT EXISTS (
                   SELECT 1 FROM __wavesync_conflict
                   WHERE tbl = ?1 AND k = ?2 AND kind = ?3 AND site = ?7 AND theirs = ?6)",
            )?
            .execute(params![
                table.num.0,
                key,
                kind,
                reason,
                ours,
                theirs,
                site.0,
                self.now.0 as i64
            ])?;
        Ok(())
    }
}
