//! Export and import by one's own means: the same row batches, in one blob.
//!
//! Such a blob never moves a cursor or the vector: it may be partial, and it may come from anyone
//! who can hand bytes to the application.

use crate::ids::{Millis, Seq};
use crate::store::Store;
use crate::store::adopt::TableSchema;
use crate::store::apply::Applied;
use crate::store::scan::Place;
use crate::store::vector::Vector;
use crate::wire::rows::Batch;
use crate::{Error, Result, limits, wire};

/// First bytes of an export.
const MAGIC: &[u8] = b"wavesync export 1\n";
const SECTION_SCHEMA: u8 = 1;
const SECTION_ROWS: u8 = 2;

impl Store {
    /// Everything that this replica logged after a position; 0 exports all of it.
    ///
    /// # Errors
    /// If the database has not joined or SQLite fails.
    pub fn export(&mut self, now: Millis, since: Seq) -> Result<Vec<u8>> {
        self.require_joined()?;
        while self.backfill_block(now)? {}
        self.note_shared(now)?;
        let schema = self.schema(now)?;
        let mut blob = MAGIC.to_vec();
        section(&mut blob, SECTION_SCHEMA, &wire::encode(&schema)?)?;
        let everything = Vector::default();
        self.folded(now, |tx| {
            let mut from = Place::Log(since);
            loop {
                let piece = tx.read_piece(from, &everything)?;
                section(&mut blob, SECTION_ROWS, &piece.rows.encode())?;
                from = piece.next;
                if piece.last {
                    return Ok(());
                }
            }
        })?;
        Ok(blob)
    }

    /// Takes in an export, all of it or nothing.
    ///
    /// # Errors
    /// [`Error::Argument`] if the blob is not an export, [`Error::Protocol`] if it is damaged;
    /// the database is unchanged then.
    pub fn import(&mut self, now: Millis, blob: &[u8]) -> Result<Applied> {
        self.require_joined()?;
        let mut rest = blob
            .strip_prefix(MAGIC)
            .ok_or_else(|| Error::Argument("this blob was not made by wavesync_export()".into()))?;
        let mut batches = Vec::new();
        let mut schema: Vec<TableSchema> = Vec::new();
        while let Some((kind, after)) = rest.split_first() {
            let broken = || Error::protocol("an export is cut off");
            let (size, after) = after.split_first_chunk::<4>().ok_or_else(broken)?;
            let size = u32::from_be_bytes(*size) as usize;
            let (body, after) = after.split_at_checked(size).ok_or_else(broken)?;
            rest = after;
            match *kind {
                SECTION_SCHEMA => schema = wire::decode(body)?,
                SECTION_ROWS => batches.push(Batch::decode(body)?),
                _ => return Err(Error::protocol("an export has an unknown section")),
            }
        }
        if schema.len() > limits::TABLES_MAX {
            return Err(Error::protocol("an export has too many tables"));
        }
        while self.backfill_block(now)? {}
        self.adopt(now, &schema)?;
        self.write_applying(now, |tx| {
            tx.check_related(&batches)?;
            let mut sum = Applied::default();
            for batch in &batches {
                let applied = tx.apply_from_outside(batch)?;
                sum.rows += applied.rows;
                sum.changed += applied.changed;
                sum.parked += applied.parked;
            }
            Ok(sum)
        })
    }

    fn require_joined(&self) -> Result<()> {
        if self.site_id()?.is_some() {
            return Ok(());
        }
        Err(Error::Argument(
            "this database has not joined a group; call wavesync_join(topic, passphrase) first"
                .into(),
        ))
    }
}

fn section(blob: &mut Vec<u8>, kind: u8, body: &[u8]) -> Result<()> {
    let size = u32::try_from(body.len())
        .map_err(|_| Error::Database("a part of the export is too large".into()))?;
    blob.push(kind);
    blob.extend_from_slice(&size.to_be_bytes());
    blob.extend_from_slice(body);
    Ok(())
}
