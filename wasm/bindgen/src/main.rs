//! Makes the JavaScript glue of the browser module.
//!
//!     wavesync-bindgen MODULE.wasm OUTPUT_DIRECTORY
//!
//! What `wasm-bindgen --target web` does, built from the same Cargo.lock as the module, because the
//! two must have the same version. Then functions that resemble each other are put side by side.

mod order;

use std::path::Path;
use std::process::ExitCode;

use wasm_bindgen_cli_support::Bindgen;

/// What the files are called that are made.
const NAME: &str = "wavesync";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [module, output] = &arguments[..] else {
        eprintln!("usage: wavesync-bindgen MODULE.wasm OUTPUT_DIRECTORY");
        return ExitCode::FAILURE;
    };
    match make(module, Path::new(output)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("wavesync-bindgen: {error}");
            ExitCode::FAILURE
        }
    }
}

fn make(module: &str, output: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let mut bindgen = Bindgen::new();
    bindgen
        .input_path(module)
        .out_name(NAME)
        .typescript(true)
        .omit_default_module_path(false)
        // The order is made from the names; it removes them.
        .remove_name_section(false)
        .remove_producers_section(true);
    // The error's text with its causes.
    bindgen
        .web(true)
        .and_then(|bindgen| bindgen.generate(output))
        .map_err(|error| format!("{error:#}"))?;
    let made = output.join(format!("{NAME}_bg.wasm"));
    std::fs::write(&made, order::by_kind(&std::fs::read(&made)?)?)?;
    Ok(())
}
