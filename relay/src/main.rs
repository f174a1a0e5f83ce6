//! `wavesync-relay`: lets peers that can not reach each other meet. It forwards encrypted bytes,
//! holds no key of any group and can read nothing of what it forwards.

mod error;
mod identity;
mod meeting;
mod options;
mod server;

use std::{io::Write, process::ExitCode};

use error::RelayError;
use options::{Command, HELP};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to tell when standard error is closed.
            let _told = writeln!(std::io::stderr(), "wavesync-relay: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), RelayError> {
    match options::parse(std::env::args().skip(1))? {
        Command::Help => print(HELP),
        Command::Version => print(concat!("wavesync-relay ", env!("CARGO_PKG_VERSION"))),
        Command::Run(options) => smol::block_on(server::run(options)),
    }
}

/// One line on standard output, at once: programs that start a relay read its addresses there.
fn print(line: &str) -> Result<(), RelayError> {
    let mut output = std::io::stdout().lock();
    writeln!(output, "{line}").and_then(|()| output.flush()).map_err(RelayError::Output)
}
