//! `wavesync-relay`: lets peers that can not reach each other meet.

use std::{io::Write, process::ExitCode};

use clap::{Parser, error::ErrorKind};
use wavesync_relay::{Arguments, Config, Hooks, RelayError, run, start_log};

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Nobody is left to tell when the outputs are closed.
            let _told = error.print();
            let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return if asked { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        }
    };
    match start(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _told = writeln!(std::io::stderr(), "wavesync-relay: {error}");
            ExitCode::FAILURE
        }
    }
}

fn start(arguments: Arguments) -> Result<(), RelayError> {
    let config = Config::load(arguments)?;
    start_log(config.log)?;
    smol::block_on(run(config, Hooks::of_a_process(print)?))
}

/// One line on standard output, at once: programs that start a relay read its addresses there.
fn print(line: &str) -> Result<(), RelayError> {
    let mut output = std::io::stdout().lock();
    writeln!(output, "{line}").and_then(|()| output.flush()).map_err(RelayError::Output)
}
