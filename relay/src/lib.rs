//! A relay for wavesync peers: circuit relay v2, a meeting point by opaque tags, metrics. It
//! forwards encrypted bytes, holds no key of any group and can read nothing of what it forwards.
//!
//! The program is `main.rs`; this crate is it without the command line.

mod config;
mod error;
mod http;
mod identity;
mod limits;
mod log;
mod meeting;
mod metrics;
mod server;
mod tap;

pub use config::{Arguments, Config, Limits};
pub use error::RelayError;
pub use log::start as start_log;
pub use server::{Hooks, run};
pub use tap::{Direction, Observer};
