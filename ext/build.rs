//! Keeps the library mapped once it was loaded: functions registered on a handle whose load then
//! failed half way, and threads, must not lose their code to a `dlclose`.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let system = std::env::var("CARGO_CFG_TARGET_OS").unwrap_or_default();
    // Linkers of ELF systems know it; elsewhere SQLITE_OK_LOAD_PERMANENTLY has to do.
    if matches!(system.as_str(), "linux" | "android" | "freebsd" | "netbsd" | "openbsd") {
        // For all targets: cargo has no instruction for an example that is a cdylib.
        println!("cargo:rustc-link-arg=-Wl,-z,nodelete");
    }
}
