//! Runs `scenarios/*.test` and what README.md, CONTRIBUTING.md and docs/SQL.md show, in real
//! shells.
//!
//! Arguments that are no options select the cases whose names contain one of them.

use std::io::{self, Write};
use std::process::ExitCode;

use wavesync_sql_tests::report::{Case, read_scenarios, run_all};
use wavesync_sql_tests::settings::Settings;

/// Documents whose transcripts are executed.
const DOCUMENTS: [&str; 3] = ["README.md", "CONTRIBUTING.md", "docs/SQL.md"];

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            // Nothing is left to report to when standard error is gone.
            let _ = writeln!(io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> io::Result<bool> {
    let filters: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let settings = Settings::from_environment()?;
    let mut output = io::stdout();
    if !settings.extension.exists() {
        let path = settings.extension.display();
        writeln!(output, "{path} is missing: run `make ext` first, or set WAVESYNC_EXT")?;
        writeln!(output, "0 passed, 1 failed")?;
        return Ok(false);
    }
    let mut cases = read_scenarios(&settings.root.join("sql-tests/scenarios"))?;
    for document in DOCUMENTS {
        let path = settings.root.join(document);
        if path.exists() {
            cases.push(Case::document(document, &std::fs::read_to_string(path)?));
        }
    }
    let unknown = settings.left_out.keys().find(|name| cases.iter().all(|c| c.name != **name));
    if let Some(name) = unknown {
        writeln!(output, "{name} is left out, and no case has this name\n0 passed, 1 failed")?;
        return Ok(false);
    }
    cases.retain(|case| {
        filters.is_empty() || filters.iter().any(|filter| case.name.contains(filter))
    });
    if cases.is_empty() {
        writeln!(output, "no scenario has such a name\n0 passed, 1 failed")?;
        return Ok(false);
    }
    let totals = run_all(&settings, cases, &mut output)?;
    Ok(totals.failed == 0 && totals.passed > 0)
}
