//! Counts calls, and says which of them are to fail.

use std::cell::Cell;

/// Calls of one thread.
pub struct Counter {
    /// Which call fails, from 0, and whether all that follow do.
    fault: Cell<Option<(u64, bool)>>,
    counted: Cell<u64>,
    failed: Cell<u64>,
}

impl Counter {
    pub const fn new() -> Self {
        Self { fault: Cell::new(None), counted: Cell::new(0), failed: Cell::new(0) }
    }

    /// From now on calls are counted, and fail as told.
    pub fn arm(&self, index: u64, for_ever: bool) {
        self.fault.set(Some((index, for_ever)));
        self.counted.set(0);
        self.failed.set(0);
    }

    /// Nothing fails any more. Returns how many calls there were, and how many failed.
    pub fn lift(&self) -> (u64, u64) {
        self.fault.set(None);
        (self.counted.get(), self.failed.get())
    }

    /// Calls that failed since [`Counter::arm`].
    pub fn failed(&self) -> u64 {
        self.failed.get()
    }

    /// A call is made: whether it fails.
    pub fn trips(&self) -> bool {
        let Some((index, for_ever)) = self.fault.get() else { return false };
        let at = self.counted.get();
        self.counted.set(at + 1);
        let fails = at == index || (for_ever && at > index);
        self.failed.set(self.failed.get() + u64::from(fails));
        fails
    }
}
