//! New ids: the rows of tables with an INTEGER key get other keys, and declared links follow.
//!
//! Only for rows that no other replica has. They begin anew as rows that existed before joining, so
//! nothing of their former keys is ever told to others.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, params};
use sha2::{Digest, Sha256};

use crate::Result;
use crate::store::shape::{self, KeyForm, Shape};
use crate::store::sql::ident;
use crate::store::{Tx, foreign};

impl Tx<'_> {
    /// Gives the rows of all tracked tables with an INTEGER key new keys.
    pub(super) fn renumber_tracked(&mut self) -> Result<()> {
        let tracked: Vec<Shape> =
            self.tables().iter().filter_map(|table| table.shape.clone()).collect();
        let links = links(self.conn)?;
        for table in self.tables() {
            let Some(shape) = &table.shape else { continue };
            if !moves(&tracked, &links, shape) {
                continue;
            }
            // As if the table had been created a moment ago: it is taken in again.
            let num = table.num.0;
            self.drop_triggers(table.num)?;
            self.conn.execute(
                &format!(
                    "DELETE FROM __wavesync_vector WHERE site IN
                     (SELECT site FROM __wavesync_clock_{num} WHERE stamp < 0)"
                ),
                [],
            )?;
            self.conn.execute(&format!("DELETE FROM __wavesync_clock_{num}"), [])?;
            self.conn.execute("DELETE FROM __wavesync_parked WHERE tbl = ?1", [num])?;
            self.conn.execute(
                "UPDATE __wavesync_table SET here = 0, import = NULL WHERE num = ?1",
                [num],
            )?;
        }
        self.cache.parked = None;
        self.renumber(&tracked)?;
        self.cache.schema_version = None;
        self.refresh_schema()?;
        self.fold()
    }

    /// Gives the rows of these tables, as far as they have an INTEGER key, new keys. Triggers fire.
    pub(super) fn renumber(&mut self, shapes: &[Shape]) -> Result<()> {
        self.conn.execute_batch(
            "DROP TABLE IF EXISTS temp.wavesync_new_ids;
             CREATE TEMP TABLE wavesync_new_ids(tbl, old, new, PRIMARY KEY(tbl, old)) WITHOUT ROWID;",
        )?;
        let links = links(self.conn)?;
        let mut left: Vec<&Shape> =
            shapes.iter().filter(|shape| shape.form == KeyForm::Rowid).collect();
        let mut done: BTreeSet<String> = BTreeSet::new();
        while !left.is_empty() {
            let ready = |shape: &&Shape| {
                key_parent(shapes, &links, shape).is_none_or(|parent| done.contains(&parent))
            };
            let at = left.iter().position(ready).unwrap_or(0);
            let shape = left.swap_remove(at);
            self.map_keys(shape, key_parent(shapes, &links, shape))?;
            done.insert(shape.name.to_ascii_lowercase());
        }
        self.conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, true)?;
        let moved = self.move_keys(shapes, &links);
        self.conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
        moved?;
        self.conn.execute_batch("DROP TABLE temp.wavesync_new_ids")?;
        Ok(())
    }

    /// Chooses the new keys of a table: those of its parent where the key is a reference, else
    /// negative ones, so that automatic keys go on undisturbed.
    fn map_keys(&mut self, shape: &Shape, parent: Option<String>) -> Result<()> {
        let key = ident(&shape.key[0].name)?;
        let table = ident(&shape.name)?;
        let sql = format!("SELECT {key} FROM main.{table}");
        let keys = self
            .conn
            .prepare(&sql)?
            .query_map([], |row| row.get(0))?
            .collect::<rusqlite::Result<Vec<i64>>>()?;
        let mut taken: BTreeSet<i64> = keys.iter().copied().collect();
        let seed = self.meta::<Vec<u8>>("secret")?.unwrap_or_default();
        let name = shape.name.to_ascii_lowercase();
        for old in keys {
            let inherited: Option<i64> = match &parent {
                None => None,
                Some(parent) => super::optional(
                    self.conn
                        .prepare_cached(
                            "SELECT new FROM temp.wavesync_new_ids WHERE tbl = ?1 AND old = ?2",
                        )?
                        .query_row(params![parent, old], |row| row.get(0)),
                )?,
            };
            let mut salt = 0u64;
            let new = inherited.unwrap_or_else(|| {
                loop {
                    let new = new_key(&seed, &name, self.now.0, old, salt);
                    if taken.insert(new) {
                        return new;
                    }
                    salt += 1;
                }
            });
            self.conn
                .prepare_cached("INSERT INTO temp.wavesync_new_ids VALUES(?1, ?2, ?3)")?
                .execute(params![name, old, new])?;
        }
        Ok(())
    }

    fn move_keys(&self, shapes: &[Shape], links: &Links) -> Result<()> {
        let new = "SELECT new FROM temp.wavesync_new_ids WHERE tbl = ?1 AND old =";
        for shape in shapes.iter().filter(|shape| shape.form == KeyForm::Rowid) {
            let (table, key) = (ident(&shape.name)?, ident(&shape.key[0].name)?);
            let verb = shape.update_verb();
            let sql = format!("{verb}{table} SET {key} = ({new} main.{table}.{key})");
            self.conn.execute(&sql, [shape.name.to_ascii_lowercase()])?;
        }
        // Tables that are not synced follow, too.
        for (table, column) in links.keys() {
            let Some(root) = root(shapes, links, table, column).filter(|root| root != table) else {
                continue;
            };
            if integer_key(shapes, table).is_some_and(|key| key == *column) {
                continue;
            }
            let (table, column) = (ident(table)?, ident(column)?);
            let sql = format!(
                "UPDATE main.{table} SET {column} = ({new} main.{table}.{column})
                 WHERE {column} IN (SELECT old FROM temp.wavesync_new_ids WHERE tbl = ?1)"
            );
            self.conn.execute(&sql, [root])?;
        }
        Ok(())
    }
}

/// Which column refers to which, all names in lower case.
type Links = BTreeMap<(String, String), Vec<(String, String)>>;

/// The declared links of all tables, column by column.
fn links(conn: &Connection) -> Result<Links> {
    let mut links = Links::new();
    for entry in shape::survey(conn)? {
        let name = entry.map_or_else(|refusal| refusal.name, |shape| shape.name);
        for link in foreign::declared(conn, &name)? {
            let mut statement = conn.prepare_cached(
                "SELECT name FROM pragma_table_info(?1) WHERE pk > 0 ORDER BY pk",
            )?;
            let key = statement.query_map([&link.parent], |row| row.get(0))?;
            let key: Vec<String> = key.collect::<rusqlite::Result<_>>()?;
            let to = if link.parent_columns.is_empty() { &key } else { &link.parent_columns };
            for (column, to) in link.columns.iter().zip(to) {
                let lower = |table: &str, column: &str| {
                    (table.to_ascii_lowercase(), column.to_ascii_lowercase())
                };
                links.entry(lower(&name, column)).or_default().push(lower(&link.parent, to));
            }
        }
    }
    Ok(links)
}

/// The INTEGER key of a table, in lower case.
fn integer_key(shapes: &[Shape], table: &str) -> Option<String> {
    let shape = shapes.iter().find(|shape| shape.name.eq_ignore_ascii_case(table))?;
    (shape.form == KeyForm::Rowid).then(|| shape.key[0].name.to_ascii_lowercase())
}

/// The table whose ids a column holds, directly or by way of other columns.
fn root(shapes: &[Shape], links: &Links, table: &str, column: &str) -> Option<String> {
    let mut queue = vec![(table.to_owned(), column.to_owned())];
    let mut seen = BTreeSet::new();
    while let Some(at) = queue.pop() {
        if integer_key(shapes, &at.0).is_some_and(|key| key == at.1) {
            return Some(at.0);
        }
        queue.extend(links.get(&at).into_iter().flatten().cloned());
        if !seen.insert(at) {
            return None;
        }
    }
    None
}

/// The table whose key the INTEGER key of this one refers to.
fn key_parent(shapes: &[Shape], links: &Links, shape: &Shape) -> Option<String> {
    let table = shape.name.to_ascii_lowercase();
    let to = links.get(&(table.clone(), integer_key(shapes, &table)?))?;
    let mut roots = to.iter().filter_map(|(parent, column)| root(shapes, links, parent, column));
    roots.find(|root| *root != table)
}

/// Whether keys of a table change: its key holds ids of a table with an INTEGER key.
fn moves(shapes: &[Shape], links: &Links, shape: &Shape) -> bool {
    let table = shape.name.to_ascii_lowercase();
    let mut key = shape.key.iter();
    key.any(|key| root(shapes, links, &table, &key.name.to_ascii_lowercase()).is_some())
}

fn new_key(seed: &[u8], table: &str, now: u64, old: i64, salt: u64) -> i64 {
    let mut hash = Sha256::new();
    hash.update(b"wavesync new id");
    hash.update(seed);
    hash.update(table.as_bytes());
    hash.update(now.to_be_bytes());
    hash.update(old.to_be_bytes());
    hash.update(salt.to_be_bytes());
    let bytes: [u8; 32] = hash.finalize().into();
    let first = bytes.iter().take(7).fold(0i64, |sum, byte| (sum << 8) | i64::from(*byte));
    -(1 + (first & ((1 << 52) - 1)))
}
