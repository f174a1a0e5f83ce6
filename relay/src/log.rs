//! Log lines as JSON on standard error. At the default level they hold no address and no peer id:
//! what is written at `info` and above in this crate keeps to that, and libraries are silent.

use clap::ValueEnum;
use serde::Deserialize;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

use crate::error::RelayError;

/// How much is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// What an operator has to know.
    Warn,
    /// Starts, ends and a line of counts now and then.
    #[default]
    Info,
    /// Every connection, with addresses and peer ids.
    Debug,
}

/// Starts writing.
///
/// # Errors
/// If something else in this process writes already.
pub fn start(level: LogLevel) -> Result<(), RelayError> {
    let (own, libraries) = match level {
        LogLevel::Off => (LevelFilter::OFF, LevelFilter::OFF),
        LogLevel::Warn => (LevelFilter::WARN, LevelFilter::OFF),
        LogLevel::Info => (LevelFilter::INFO, LevelFilter::OFF),
        LogLevel::Debug => (LevelFilter::DEBUG, LevelFilter::DEBUG),
    };
    let targets = Targets::new().with_default(libraries).with_target("wavesync_relay", own);
    let lines = tracing_subscriber::fmt::layer()
        .json()
        .flatten_event(true)
        .with_target(false)
        .with_current_span(false)
        .with_span_list(false)
        .with_writer(std::io::stderr);
    tracing_subscriber::registry()
        .with(lines)
        .with(targets)
        .try_init()
        .map_err(|error| RelayError::Usage(format!("the log can not be started: {error}")))
}
