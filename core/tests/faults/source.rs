//! Where faults come from: the VFS, or SQLite's memory.

use crate::counter::Counter;
use crate::vfs::Fault;
use crate::{memory, vfs};

/// What fails.
#[derive(Clone, Copy, Debug)]
pub enum Source {
    /// Calls of the file system.
    Files(Fault),
    /// Allocations.
    Memory { index: u64, for_ever: bool },
}

/// Allocations are the engine's until this is dropped.
pub struct Guard;

impl Drop for Guard {
    fn drop(&mut self) {
        memory::switch(false);
    }
}

impl Source {
    pub fn arm(self) {
        match self {
            Self::Files(fault) => vfs::arm(fault),
            Self::Memory { index, for_ever } => {
                memory::CALLS.with(|calls| calls.arm(index, for_ever));
            }
        }
    }

    pub fn lift(self) -> (u64, u64) {
        self.calls(Counter::lift)
    }

    pub fn failed(self) -> u64 {
        self.calls(Counter::failed)
    }

    fn calls<T>(self, ask: impl FnOnce(&Counter) -> T) -> T {
        match self {
            Self::Files(_) => vfs::CALLS.with(ask),
            Self::Memory { .. } => memory::CALLS.with(ask),
        }
    }

    pub fn guard(self, faulty: bool) -> Guard {
        memory::switch(faulty && matches!(self, Self::Memory { .. }));
        Guard
    }
}
