//! What a user does about rows that wait and values that lost: try again, or write them back.

use rusqlite::config::DbConfig;
use rusqlite::params_from_iter;

use crate::ids::{ColumnNum, Millis, Stamp, TableNum};
use crate::store::claim::rank;
use crate::store::clock::ClockRow;
use crate::store::contend::RowId;
use crate::store::report::parked_id;
use crate::store::rows::{Kind, Parked, Values, insertion};
use crate::store::{Push, Store, Tx, probe};
use crate::value::Value;
use crate::{Error, Result};

impl Store {
    /// Looks again at everything that is parked and at every enforced foreign key. Returns how
    /// many rows came back.
    ///
    /// # Errors
    /// If SQLite fails; nothing is changed then.
    pub fn retry(&mut self, now: Millis) -> Result<i64> {
        self.write(now, |tx| {
            let before = tx.waiting()?;
            tx.review(true)?;
            Ok((before - tx.waiting()?).max(0))
        })
    }

    /// Writes the values of a row of `wavesync_conflicts` back, as a change made here and now.
    ///
    /// # Errors
    /// [`Error::Argument`] if there is no such conflict or the row cannot stand in its table, with
    /// the reason; nothing is changed then.
    pub fn restore(&mut self, now: Millis, id: i64) -> Result<()> {
        self.write(now, |tx| {
            let row = if id < 0 { tx.restore_parked(id)? } else { tx.restore_kept(id)? };
            let table = tx.table(row.0)?;
            match tx.parked(&table, &row.1)?.filter(|parked| !parked.kind.in_table()) {
                None => Ok(()),
                Some(parked) => Err(Error::Argument(format!(
                    "the row cannot be in table {} now: {}",
                    table.name, parked.reason
                ))),
            }
        })
    }
}

impl Store {
    /// Whether any row is parked.
    pub(crate) fn parks(&mut self, now: Millis) -> Result<bool> {
        self.folded(now, |tx| Ok(tx.parked_rows()? > 0))
    }
}

impl Tx<'_> {
    fn waiting(&self) -> Result<i64> {
        let sql = "SELECT count(*) FROM __wavesync_parked WHERE in_table = 0";
        Ok(self.conn.prepare_cached(sql)?.query_row([], |row| row.get(0))?)
    }

    /// A parked row takes over from the rows that stand in its way.
    fn restore_parked(&mut self, id: i64) -> Result<RowId> {
        let mut statement =
            self.conn.prepare_cached("SELECT tbl, k FROM __wavesync_parked ORDER BY tbl, k")?;
        let rows = statement
            .query_map([], |row| Ok((TableNum(row.get(0)?), Value::from_ref(row.get_ref(1)?))))?
            .collect::<rusqlite::Result<Vec<RowId>>>()?;
        let found = rows.into_iter().find(|(num, key)| parked_id(*num, key) == id);
        let Some(row) = found else { return Err(self.held_or_none(id)?) };
        let contender = self.load(&row)?.filter(|row| row.contends && row.shown.is_none());
        let Some(contender) = contender else {
            let table = self.table(row.0)?;
            let reason = self.parked(&table, &row.1)?.map_or(String::new(), |p| p.reason);
            return Err(Error::Argument(format!("this cannot be restored: {reason}")));
        };
        let values = contender.local();
        let mut oldest = None;
        for rival in probe::session(self, |tx| tx.rivals(&contender, &values))? {
            let table = self.table(rival.0)?;
            if let Some(clock) = self.clock(&table, &rival.1)?.map(|row| row.clock) {
                let rank = rank(&table, &rival.1, &clock);
                let origin = super::claim::origin(&clock);
                if oldest.as_ref().is_none_or(|(known, _)| rank < *known) {
                    oldest = Some((rank, origin));
                }
            }
        }
        let own = self.own_site()?;
        let hlc = Stamp(self.meta("hlc")?.unwrap_or(0));
        let now = i64::try_from(self.now.0).unwrap_or(i64::MAX);
        let stamp = Stamp::at(now).max(hlc.next());
        let mut clock = contender.clock.clone();
        clock.claim = Some(oldest.map_or(clock.birth, |(_, origin)| origin));
        clock.cells.insert(ColumnNum::CLAIM, crate::ids::Dot { stamp, site: own });
        let seq = self.append_log(row.0, &row.1)?;
        self.set_clock(&contender.table, &row.1, &ClockRow { clock, seq })?;
        self.set_meta("hlc", stamp.0)?;
        let prev = self.seen(own)?;
        let boot = self.boot;
        self.raise(own, stamp, boot)?;
        let rows = self.push_rows(own, prev, [row.clone()].into())?;
        self.pushes.push(Push { site: own, boot, prev, upto: stamp, rows });
        // A trigger that refused the row before is asked again.
        self.hot.insert(row.clone());
        self.settle(crate::ids::Seq(seq.0 - 1))?;
        self.store_folded_end()?;
        Ok(row)
    }

    /// Why there is nothing to restore under an id.
    fn held_or_none(&self, id: i64) -> Result<Error> {
        let rows = self
            .conn
            .prepare_cached("SELECT seq, k FROM __wavesync_held")?
            .query_map([], |row| Ok((row.get::<_, i64>(0)?, Value::from_ref(row.get_ref(1)?))))?
            .collect::<rusqlite::Result<Vec<_>>>()?;
        let held = rows.iter().any(|(seq, key)| parked_id(TableNum(-seq), key) == id);
        Ok(if held {
            Error::Argument(
                "this row waits for its time, because the clock that wrote it is ahead; a higher \
                 setting 'future_limit_ms' lets it in at once"
                    .into(),
            )
        } else {
            no_conflict(id)
        })
    }

    /// Values that lost are written as the application would write them: triggers fire, and the
    /// change is folded like any other.
    fn restore_kept(&mut self, id: i64) -> Result<RowId> {
        let found = super::optional(self.conn.query_row(
            "SELECT tbl, k, kind, ours, theirs FROM __wavesync_conflict WHERE id = ?1",
            [id],
            |row| {
                let key = Value::from_ref(row.get_ref(1)?);
                let kind: String = row.get(2)?;
                let values: [Option<String>; 2] = [row.get(3)?, row.get(4)?];
                Ok((row.get(0)?, key, kind, values))
            },
        ))?;
        let (num, key, kind, [ours, theirs]) = found.ok_or_else(|| no_conflict(id))?;
        let table = self.table(TableNum(num))?;
        if kind != "overwritten" || table.shape.is_none() {
            return Err(Error::Argument(format!(
                "conflict {id} cannot be restored by itself; write what you need of {} into \
                 table {}",
                ours.or(theirs).unwrap_or_default(),
                table.name
            )));
        }
        let values = self.read_json(&table, &ours.unwrap_or_default())?;
        let keys = table.key_values(&key)?;
        let stands = self.table_values(&table, &key)?.is_some();
        let (sql, bound) = if stands {
            update_text(&table, &keys, &values)?
        } else {
            insertion(&table, &keys, &values, "INSERT INTO main.")?
        };
        self.conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, true)?;
        let written = self
            .conn
            .prepare(&sql)
            .and_then(|mut statement| statement.execute(params_from_iter(bound)));
        self.conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
        written.map_err(|error| {
            Error::Argument(format!("the row cannot be in table {} now: {error}", table.name))
        })?;
        self.fold()?;
        self.conn.execute("DELETE FROM __wavesync_conflict WHERE id = ?1", [id])?;
        Ok((table.num, key))
    }

    /// Reads what [`super::report::values_json`] wrote.
    fn read_json(&self, table: &super::tables::Table, json: &str) -> Result<Values> {
        let mut statement =
            self.conn.prepare("SELECT key, value, type FROM json_each(?1) ORDER BY id")?;
        let mut rows = statement.query([json])?;
        let mut values = Values::new();
        while let Some(row) = rows.next()? {
            let (name, kind): (String, String) = (row.get(0)?, row.get(2)?);
            let mut value = Value::from_ref(row.get_ref(1)?);
            if kind == "object" {
                let hex: Vec<u8> = self.conn.query_row(
                    "SELECT CAST(json_extract(?1, '$.blob') AS BLOB)",
                    [&value],
                    |row| row.get(0),
                )?;
                value = Value::Blob(unhex(&hex));
            }
            let mut local = table.local_columns();
            if let Some(column) = local.find(|column| column.name.eq_ignore_ascii_case(&name)) {
                values.insert(column.num, value);
            }
        }
        Ok(values)
    }
}

fn update_text(
    table: &super::tables::Table,
    keys: &[Value],
    values: &Values,
) -> Result<(String, Vec<Value>)> {
    let shape = table.shape.as_ref().ok_or_else(|| Error::Database("no such table".into()))?;
    let set: Result<Vec<String>> = values
        .keys()
        .enumerate()
        .map(|(at, num)| {
            let name = table.column(*num).map_or("", |column| column.name.as_str());
            Ok(format!("{} = ?{}", super::sql::ident(name)?, at + 1))
        })
        .collect();
    let sql = format!(
        "UPDATE main.{} SET {} WHERE {}",
        super::sql::ident(&shape.name)?,
        set?.join(", "),
        shape.key_matches(values.len() + 1)?
    );
    Ok((sql, values.values().chain(keys).cloned().collect()))
}

fn unhex(text: &[u8]) -> Vec<u8> {
    let digit = |byte: u8| (byte as char).to_digit(16).unwrap_or(0) as u8;
    text.chunks_exact(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

fn no_conflict(id: i64) -> Error {
    Error::Argument(format!(
        "there is no conflict {id}; SELECT id, kind, reason FROM wavesync_conflicts lists them"
    ))
}

impl Parked {
    /// The word that a user sees for it.
    #[must_use]
    pub fn shown_kind(kind: &str) -> &str {
        if kind == Kind::Overlay.name() { Kind::ForeignKey.name() } else { kind }
    }
}
