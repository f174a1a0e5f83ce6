//! The bounds of what is kept for others: rows and columns of tables that are not here, and sites.
//!
//! What finds no room is left out, never dropped in silence: the version vector does not follow the
//! sites of what is left out (a change may be covered only if it is stored, H16), status says so, and
//! once there is room every log is read again from its start.

use std::collections::BTreeSet;

use crate::ids::SiteId;
use crate::limits;
use crate::store::Tx;
use crate::store::tables::Table;
use crate::store::vector::Vector;
use crate::wire::rows::Row;
use crate::{Error, Result};

/// The sites of what is left out, one after the other.
const LEFT_OUT: &str = "left_out";

impl Tx<'_> {
    /// The sites whose changes are not all here.
    pub(super) fn left_out_sites(&mut self) -> Result<BTreeSet<SiteId>> {
        if let Some(sites) = &self.cache.left_out {
            return Ok(sites.clone());
        }
        let bytes = self.meta::<Vec<u8>>(LEFT_OUT)?.unwrap_or_default();
        let sites: BTreeSet<_> = bytes.chunks(16).filter_map(SiteId::from_slice).collect();
        self.cache.left_out = Some(sites.clone());
        Ok(sites)
    }

    /// Whether one more row of a table, or one more column of a row, can be parked.
    pub(super) fn has_room_to_park(&mut self) -> Result<bool> {
        Ok(self.parked_rows()? < self.bounds.parked_rows)
    }

    /// Whether one more table that is not here can be numbered. The user's own tables always can.
    pub(super) fn has_room_for_table(&self) -> bool {
        let foreign = self.cache.tables.values().filter(|table| table.shape.is_none()).count();
        foreign < limits::FOREIGN_TABLES_MAX && self.cache.tables.len() < limits::TABLES_MAX
    }

    /// Whether one more column that a table does not have here can be numbered.
    pub(super) fn has_room_for_column(table: &Table) -> bool {
        let foreign = table.columns.iter().filter(|column| column.local.is_none()).count();
        foreign < limits::FOREIGN_COLUMNS_MAX && table.columns.len() < limits::COLUMNS_MAX
    }

    /// Notes that something of rows found no room.
    pub(super) fn leave_out<'r>(&mut self, rows: impl Iterator<Item = &'r Row>) -> Result<()> {
        let before = self.left_out_sites()?;
        let mut sites = before.clone();
        for row in rows {
            sites.insert(row.birth.site);
            sites.extend(row.cells.iter().map(|(_, dot, _)| dot.site));
        }
        if sites == before && !before.is_empty() {
            return Ok(());
        }
        let bytes: Vec<u8> = sites.iter().flat_map(|site| site.0).collect();
        self.set_meta(LEFT_OUT, bytes)?;
        self.cache.left_out = Some(sites);
        if !before.is_empty() {
            return Ok(());
        }
        let message = format!(
            "other members have more for tables and columns that are not here than is kept: {} \
             rows, {} tables, {} columns of each",
            self.bounds.parked_rows,
            limits::FOREIGN_TABLES_MAX,
            limits::FOREIGN_COLUMNS_MAX
        );
        let hint = "create the missing tables, see wavesync_conflicts, and call wavesync_retry(); \
                    everything else goes on";
        self.note("parked_full", message, hint);
        Ok(())
    }

    /// If something was left out and there is room now, everything is read again.
    pub(super) fn use_room(&mut self) -> Result<()> {
        if self.left_out_sites()?.is_empty() {
            return Ok(());
        }
        let parked = self.parked_rows()? < self.bounds.parked_rows / 10 * 9;
        let columns = self.cache.tables.values().all(|table| Self::has_room_for_column(table));
        if parked && columns && self.has_room_for_table() {
            self.cache.left_out = None;
            self.conn.execute("DELETE FROM __wavesync_meta WHERE key = ?1", [LEFT_OUT])?;
            self.reset_cursors()?;
        }
        Ok(())
    }

    /// Sites are numbered as they come; junk must not make the list of them endless. (A new
    /// identity of this replica is not refused.)
    pub(super) fn check_room_for_site(&self) -> Result<()> {
        let last: i64 = self
            .conn
            .prepare_cached("SELECT coalesce(max(num), 0) FROM __wavesync_site")?
            .query_row([], |row| row.get(0))?;
        // Twice: sites of rows that no vector covers yet.
        if last >= 2 * limits::VECTOR_MAX_SITES as i64 {
            return Err(Error::protocol("a member names more sites than a group can have"));
        }
        Ok(())
    }

    /// A vector that would make this replica's own longer than others accept is refused.
    pub(super) fn check_sites(&mut self, more: &Vector) -> Result<()> {
        let own = self.vector()?;
        let new = more.0.keys().filter(|site| !own.0.contains_key(site)).count();
        if own.0.len() + new > limits::VECTOR_MAX_SITES {
            return Err(Error::protocol("a member claims more sites than a group can have"));
        }
        Ok(())
    }
}
