//! wavesync core: what a change is, how changes merge, and how replicas talk about them.
//!
//! Core does no IO of its own: it is given a SQLite connection, the time and randomness, and
//! returns what to send. Native processes, browsers and the simulator run the same
//! [`machine::Machine`] over the same [`store::Store`].
//!
//! Architecture invariants: SQLite is reached only through [`store`]; bytes of a peer become
//! messages only in [`wire`], and only after [`auth`] opened their seal.

pub mod auth;
pub mod error;
pub mod ids;
pub mod limits;
pub mod machine;
pub mod merge;
pub mod mesh;
pub mod mutants;
pub mod store;
pub mod value;
pub mod wire;

pub use error::{Error, Result};
