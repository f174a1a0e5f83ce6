//! Asking SQLite which rows exclude each other, without reading constraints.
//!
//! Inside a savepoint that is always rolled back a row is written with `OR REPLACE`; a TEMP
//! trigger notes what vanished. That works for every kind of unique index, and it is never the
//! real write: `OR REPLACE` also puts defaults in the place of NULL.

use rusqlite::params_from_iter;

use crate::Result;
use crate::ids::TableNum;
use crate::store::contend::{Contender, RowId};
use crate::store::rows::{Values, refusal};
use crate::store::sql::ident;
use crate::store::{Tx, key};
use crate::value::Value;

/// Runs `body` in a savepoint of which nothing is left. No trigger of the application fires.
pub(super) fn session<T>(
    tx: &mut Tx<'_>,
    body: impl FnOnce(&mut Tx<'_>) -> Result<T>,
) -> Result<T> {
    tx.prepare_probe()?;
    // Without it OR REPLACE removes rows silently. It must not stay on: triggers of the
    // application would recurse.
    tx.cache.recursive = true;
    tx.conn.execute_batch(
        "PRAGMA recursive_triggers=ON; SAVEPOINT wavesync_probe;
         UPDATE temp.wavesync_probing SET active = 1;",
    )?;
    let done = body(tx);
    let done = super::end_savepoint(tx.conn, "wavesync_probe", true, done)?;
    tx.conn.execute_batch("PRAGMA recursive_triggers=OFF")?;
    tx.cache.recursive = false;
    Ok(done)
}

impl Tx<'_> {
    /// The rows of the table that exclude this one with these values. In a [`session`] only.
    pub(super) fn rivals(&mut self, row: &Contender, values: &Values) -> Result<Vec<RowId>> {
        let (sql, bound) =
            super::rows::insertion(&row.table, &row.keys, values, "INSERT OR REPLACE INTO main.")?;
        // Rows that were taken out before are noted, too: reading them again for each row would take
        // quadratic time.
        let before: i64 = self
            .conn
            .prepare_cached("SELECT coalesce(max(rowid), 0) FROM temp.wavesync_vanished")?
            .query_row([], |row| row.get(0))?;
        self.conn.execute_batch("SAVEPOINT wavesync_rival")?;
        let forced = self
            .conn
            .prepare_cached(&sql)
            .and_then(|mut statement| statement.execute(params_from_iter(bound)));
        let found = match forced.map_err(crate::Error::from) {
            Ok(_) => self.vanished(before),
            Err(error) if refusal(&error).is_some() => Ok(Vec::new()),
            Err(error) => Err(error),
        };
        let found = super::end_savepoint(self.conn, "wavesync_rival", true, found)?;
        let own = key::pack(&row.keys);
        Ok(found.into_iter().filter(|(num, key)| (*num, key) != (row.table.num, &own)).collect())
    }

    /// What vanished after a row of the notes.
    fn vanished(&self, after: i64) -> Result<Vec<RowId>> {
        let mut statement = self
            .conn
            .prepare_cached("SELECT tbl, k FROM temp.wavesync_vanished WHERE rowid > ?1")?;
        let found = statement
            .query_map([after], |row| {
                Ok((TableNum(row.get(0)?), Value::from_ref(row.get_ref(1)?)))
            })?
            .collect::<rusqlite::Result<Vec<_>>>()?;
        let named = found.into_iter().filter(|(_, key)| *key != Value::Null);
        named
            .map(|(num, stored)| {
                let table = self.table(num)?;
                Ok((num, key::canonical(table.form, table.key_columns, stored)?))
            })
            .collect()
    }

    /// Takes away every TEMP trigger of ours that stands on a table. One whose table another
    /// connection dropped or renamed cannot be reached; it is back when there is such a table again.
    pub(super) fn drop_temp_triggers(&self) -> Result<()> {
        self.drop_reachable_triggers()?;
        let unreached = "SELECT 1 FROM sqlite_temp_schema WHERE type = 'trigger'
             AND name GLOB 'wavesync_*' AND tbl_name COLLATE NOCASE IN
               (SELECT name FROM main.sqlite_schema WHERE type = 'table')";
        if self.conn.prepare_cached(unreached)?.exists([])? {
            // This connection has created the table again: SQLite reads the TEMP schema anew only
            // where another one has changed something.
            self.conn.execute_batch("PRAGMA writable_schema = RESET")?;
            self.drop_reachable_triggers()?;
        }
        Ok(())
    }

    fn drop_reachable_triggers(&self) -> Result<()> {
        let names = self
            .conn
            .prepare_cached(
                "SELECT name FROM sqlite_temp_schema
                 WHERE type = 'trigger' AND name GLOB 'wavesync_*'",
            )?
            .query_map([], |row| row.get(0))?
            .collect::<rusqlite::Result<Vec<String>>>()?;
        names.iter().try_for_each(|name| {
            let sql = format!("DROP TRIGGER IF EXISTS temp.{}", ident(name)?);
            Ok(self.conn.execute_batch(&sql)?)
        })
    }

    /// Creates the TEMP table and triggers, once per schema.
    fn prepare_probe(&mut self) -> Result<()> {
        if self.cache.probing {
            return Ok(());
        }
        self.conn.execute_batch(
            "DROP TABLE IF EXISTS temp.wavesync_probing;
             CREATE TEMP TABLE wavesync_probing(active);
             INSERT INTO temp.wavesync_probing VALUES(0);
             CREATE TEMP TABLE IF NOT EXISTS wavesync_vanished(tbl, k);",
        )?;
        for table in self.tables() {
            let Some(shape) = &table.shape else { continue };
            let number = table.num.0;
            let name = temp_trigger("vanish", number, &shape.name)?;
            self.conn.execute_batch(&format!(
                "DROP TRIGGER IF EXISTS temp.{name};
                 CREATE TEMP TRIGGER {name} AFTER DELETE ON main.{}
                 WHEN (SELECT active FROM wavesync_probing) BEGIN
                   INSERT INTO wavesync_vanished(tbl, k) VALUES({number}, {});
                 END;",
                ident(&shape.name)?,
                key::expression(shape.form, &shape.key, "OLD.")?
            ))?;
        }
        self.cache.probing = true;
        Ok(())
    }
}

/// The quoted name of a TEMP trigger. It names the table, too: the number may get another table
/// while a trigger cannot be reached, and two of one name would make the TEMP schema unreadable.
pub(super) fn temp_trigger(what: &str, number: i64, table: &str) -> Result<String> {
    ident(&format!("wavesync_{what}_{number} {}", table.to_ascii_lowercase()))
}
