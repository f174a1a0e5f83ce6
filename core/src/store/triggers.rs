//! Statements on tables that have triggers of the application's own.

use crate::Result;
use crate::store::Tx;
use crate::store::tables::Table;

impl Tx<'_> {
    /// Runs a row's one statement.
    pub(super) fn with_app_triggers<T>(
        &mut self,
        table: &Table,
        statement: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        let _ = table;
        statement(self)
    }
}
