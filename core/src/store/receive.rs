//! Chunks of a catch-up as they arrive: what is known is dropped undecoded.

use crate::Result;
use crate::ids::{Millis, SiteId};
use crate::store::apply::{Applied, Full, Reach};
use crate::store::{Store, Tx};
use crate::wire::packed::Packed;
use crate::wire::rows::Batch;

impl Store {
    /// Applies one encoded chunk of a catch-up, as [`Tx::apply_piece`] does.
    ///
    /// # Errors
    /// [`crate::Error::Protocol`] if the bytes break the format, or whatever SQLite refuses; then
    /// nothing was changed.
    pub fn receive_piece(
        &mut self,
        now: Millis,
        from: SiteId,
        rows: &[u8],
        reach: &Reach<'_>,
    ) -> Result<Applied> {
        // Decoding takes a while, so it is done before the file is locked.
        let full = reach.full != Full::No;
        let news = match !full && self.raw(|tx| tx.has_all(rows))? {
            true => None,
            false => Some(Packed::decode(rows)?),
        };
        self.write_applying(now, |tx| match news {
            Some(news) => tx.apply_packed_piece(from, &news, reach),
            None if tx.has_all(rows)? => tx.apply_packed_piece(from, &Packed::default(), reach),
            None => tx.apply_packed_piece(from, &Packed::decode(rows)?, reach),
        })
    }
}

impl Tx<'_> {
    /// Whether every write event in an encoded batch is covered by the vector, so that what is
    /// stored dominates it (rule P6).
    fn has_all(&mut self, rows: &[u8]) -> Result<bool> {
        let newest = Batch::newest(rows)?;
        let vector = self.vector()?;
        Ok(newest.iter().all(|dot| vector.covers(*dot)) && !self.waits_for_known()?)
    }

    /// A row of which only a part has arrived may still wait for a known row, to be whole, and so
    /// may what is held back: then nothing that arrives may be passed over as known.
    pub(super) fn waits_for_known(&mut self) -> Result<bool> {
        let incomplete = self.parked_rows()? > 0
            && self
                .conn
                .prepare_cached("SELECT 1 FROM __wavesync_parked WHERE kind = 'incomplete'")?
                .exists([])?;
        Ok(incomplete || self.holds_any()?)
    }
}
