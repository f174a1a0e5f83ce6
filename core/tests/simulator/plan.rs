//! What a run is about, as its seed says.

use wavesync_core::limits::Bounds;
use wavesync_core::store::group::Join;

use crate::dice::Dice;

/// What a run is about.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub replicas: usize,
    pub topology: Topology,
    pub clocks: Clocks,
    /// Everybody ends with every table and column.
    pub schemas_meet: bool,
    pub actions: u64,
    /// No connection is cut and no engine starts again while the application writes.
    pub calm: bool,
    /// There are tables whose constraints contend.
    pub contended: bool,
    /// Copies of files are put back, or over other files.
    pub copies: bool,
    /// Tables are untracked, rebuilt and lose columns, and members leave and come back.
    pub upheaval: bool,
    /// Tables and columns are renamed, here sooner and there later.
    pub renames: bool,
    /// Deletes are forgotten, and members are away for longer than they are remembered.
    pub forgetful: bool,
    pub bounds: Bounds,
}

/// What the clocks of the replicas tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clocks {
    /// All of them the same time.
    Equal,
    /// They differ by minutes, less than rule P17 is about.
    Skewed,
    /// Some are hours ahead, and are set while the replica runs.
    Wild,
}

/// Clocks are ahead by less than this.
pub const WILD_MS: u64 = 40 * 3_600_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topology {
    Line,
    Star,
    Mesh,
    Random,
}

impl Clocks {
    /// A clock's difference from the virtual time, in milliseconds.
    pub fn skew(self, dice: &mut Dice) -> i64 {
        match self {
            Self::Equal => 0,
            Self::Wild if dice.percent(40) => dice.within(0, WILD_MS) as i64,
            _ => dice.within(0, 240_000) as i64 - 120_000,
        }
    }
}

impl Plan {
    /// How everybody joins.
    pub fn join(&self) -> Join {
        let foreign_keys = self.contended;
        Join { topic: "simulator".into(), foreign_keys, ..Join::default() }
    }

    pub fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed ^ 0xA5A5);
        let topologies = [Topology::Line, Topology::Star, Topology::Mesh, Topology::Random];
        Self {
            seed,
            replicas: dice.within(2, 5) as usize,
            topology: topologies[dice.index(4)],
            clocks: match dice.below(10) {
                0..=4 => Clocks::Equal,
                5..=6 => Clocks::Skewed,
                _ => Clocks::Wild,
            },
            schemas_meet: dice.percent(60),
            actions: dice.within(15, 60),
            calm: false,
            contended: seed % 4 < 2,
            copies: seed % 5 == 3,
            upheaval: seed % 3 == 1,
            renames: false,
            forgetful: false,
            bounds: Bounds {
                chunk_rows: dice.within(1, 4) as usize,
                chunk_scan_entries: dice.within(3, 9) as usize,
                push_rows: if dice.percent(30) { 2 } else { 256 },
                fold_run_rows: if seed.is_multiple_of(2) { 1 } else { usize::MAX },
                backfill_rows: dice.within(1, 5) as usize,
                open_test_entries: dice.within(2, 6) as usize,
                log_keep_rows: dice.within(1, 40) as i64,
                log_trim_rows: dice.within(1, 5) as i64,
                bulk_rows: dice.within(1, 3) as usize,
                identity_changes: usize::MAX,
                digest_rows: dice.within(1, 5) as usize,
                ..Bounds::default()
            },
        }
    }
}
