//! Makes the JavaScript glue of the browser module.
//!
//!     wavesync-bindgen MODULE.wasm OUTPUT_DIRECTORY
//!
//! What `wasm-bindgen --target web` does, built from the same Cargo.lock as the module, because the
//! two must have the same version.

use std::process::ExitCode;

use wasm_bindgen_cli_support::Bindgen;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [module, output] = &arguments[..] else {
        eprintln!("usage: wavesync-bindgen MODULE.wasm OUTPUT_DIRECTORY");
        return ExitCode::FAILURE;
    };
    let mut bindgen = Bindgen::new();
    bindgen
        .input_path(module)
        .out_name("wavesync")
        .typescript(true)
        .omit_default_module_path(false);
    let made = bindgen.web(true).and_then(|bindgen| {
        bindgen.remove_name_section(true).remove_producers_section(true).generate(output)
    });
    match made {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("wavesync-bindgen: {error:?}");
            ExitCode::FAILURE
        }
    }
}
