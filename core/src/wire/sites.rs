//! The header of a batch: its sites, and of each the range of its stamps.

use std::collections::BTreeMap;

use crate::Result;
use crate::ids::{Dot, SiteId, Stamp};
use crate::limits;
use crate::store::clock::write_varint;
use crate::wire::bytes::{Reader, broken, write_signed};

/// The sites of a batch, each with its first and last stamp in it.
#[derive(Default)]
pub(super) struct Sites {
    places: BTreeMap<SiteId, usize>,
    pub ranges: Vec<(SiteId, Stamp, Stamp)>,
    /// The site that was looked up last: mostly it is asked for again.
    recent: Option<(SiteId, usize)>,
}

impl Sites {
    /// The sites of these write events, in the order in which they first come.
    pub fn of(dots: impl Iterator<Item = Dot>) -> Self {
        let mut sites = Self::default();
        dots.for_each(|dot| sites.add(dot));
        sites
    }

    fn add(&mut self, dot: Dot) {
        let at = match self.recent {
            Some((site, at)) if site == dot.site => at,
            _ => {
                let next = self.ranges.len();
                *self.places.entry(dot.site).or_insert_with(|| {
                    self.ranges.push((dot.site, dot.stamp, dot.stamp));
                    next
                })
            }
        };
        self.recent = Some((dot.site, at));
        let (_, first, last) = &mut self.ranges[at];
        *first = (*first).min(dot.stamp);
        *last = (*last).max(dot.stamp);
    }

    pub fn place(&self, site: SiteId) -> u64 {
        match self.recent {
            Some((recent, at)) if recent == site => at as u64,
            _ => self.places.get(&site).copied().unwrap_or(0) as u64,
        }
    }

    pub fn write(&self, bytes: &mut Vec<u8>) {
        write_varint(bytes, self.ranges.len() as u64);
        for (site, first, last) in &self.ranges {
            bytes.extend_from_slice(&site.0);
            write_signed(bytes, first.0);
            write_varint(bytes, last.0.wrapping_sub(first.0) as u64);
        }
    }

    pub fn read(reader: &mut Reader<'_, '_>) -> Result<Self> {
        let mut sites = Self::default();
        let count = reader.count()?;
        if count > limits::VECTOR_MAX_SITES {
            return Err(broken("it has too many sites"));
        }
        for at in 0..count {
            let site = SiteId::from_slice(reader.take(16)?).ok_or_else(|| broken("a site"))?;
            let first = reader.signed()?;
            let last =
                i64::try_from(reader.varint()?).ok().and_then(|span| first.checked_add(span));
            let last = last.ok_or_else(|| broken("a range of stamps is impossible"))?;
            check_stamp(Stamp(first))?;
            check_stamp(Stamp(last))?;
            sites.ranges.push((site, Stamp(first), Stamp(last)));
            if sites.places.insert(site, at).is_some() {
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
