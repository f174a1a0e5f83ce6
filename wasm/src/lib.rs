//! wavesync in the browser: core over SQLite compiled to WebAssembly, and the network, in one dedicated
//! Worker.
//!
//! No protocol decision is made in this crate.

pub mod db;
pub mod engine;
pub mod error;
pub mod vfs;

use wasm_bindgen::prelude::wasm_bindgen;

#[wasm_bindgen]
extern "C" {
    #[wasm_bindgen(js_namespace = console, js_name = error)]
    fn console_error(text: &str);
}

/// A panic ends the module: nothing in its memory can be relied on. Its text is on the console, and
/// the Worker finds it as `wavesyncPanic` of its global object.
#[wasm_bindgen(start)]
fn report_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let text = panic.to_string();
        console_error(&text);
        // Where it cannot be set, the Worker says that something failed, without saying what.
        let _ = js_sys::Reflect::set(&js_sys::global(), &"wavesyncPanic".into(), &text.into());
    }));
}

/// Panics, at once or on the event loop's next turn, as a mistake in this crate would: for tests of
/// what the package does then.
#[wasm_bindgen(js_name = panicForTest)]
pub fn panic_for_test(later: bool) {
    let panic = || panic!("a test asked for this");
    if later { wasm_bindgen_futures::spawn_local(async move { panic() }) } else { panic() }
}

/// The version of this package.
#[wasm_bindgen]
#[must_use]
pub fn version() -> String {
    env!("CARGO_PKG_VERSION").to_owned()
}
