//! The header of a batch: its sites, and of each the range of its stamps.

use std::collections::BTreeSet;

use crate::Result;
use crate::ids::{SiteId, Stamp};
use crate::limits;
use crate::store::clock::write_varint;
use crate::wire::bytes::{Reader, broken, write_signed};
use crate::wire::packed::Ranges;

/// The sites of a batch in the order in which they first come, each with its first and last stamp.
#[derive(Default)]
pub(super) struct Sites {
    pub ranges: Ranges,
}

impl Sites {
    pub fn write(&self, bytes: &mut Vec<u8>) {
        write_varint(bytes, self.ranges.len() as u64);
        for (site, first, last) in &self.ranges {
            bytes.extend_from_slice(&site.0);
            write_signed(bytes, first.0);
            write_varint(bytes, last.0.wrapping_sub(first.0) as u64);
        }
    }

    pub fn read(reader: &mut Reader<'_, '_>) -> Result<Self> {
        let (mut sites, mut names) = (Self::default(), BTreeSet::new());
        let count = reader.count()?;
        if count > limits::VECTOR_MAX_SITES {
            return Err(broken("it has too many sites"));
        }
        for _ in 0..count {
            let site = SiteId::from_slice(reader.take(16)?).ok_or_else(|| broken("a site"))?;
            let first = reader.signed()?;
            let last =
                i64::try_from(reader.varint()?).ok().and_then(|span| first.checked_add(span));
            let last = last.ok_or_else(|| broken("a range of stamps is impossible"))?;
            check_stamp(Stamp(first))?;
            check_stamp(Stamp(last))?;
            sites.ranges.push((site, Stamp(first), Stamp(last)));
            if !names.insert(site) {
                return Err(broken("it names a site twice"));
            }
        }
        Ok(sites)
    }

    pub fn site(&self, at: usize) -> Result<SiteId> {
        let range = self.ranges.get(at);
        range.map(|(site, ..)| *site).ok_or_else(|| broken("a site is not in the dictionary"))
    }
}

pub(super) fn check_stamp(stamp: Stamp) -> Result<()> {
    if (-limits::STAMP_MS_MAX..=limits::STAMP_MAX).contains(&stamp.0) {
        return Ok(());
    }
    Err(broken("a stamp is absurd"))
}
