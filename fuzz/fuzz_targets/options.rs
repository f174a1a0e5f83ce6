//! Fuzz target, see `wavesync_fuzz::options`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    wavesync_fuzz::options(bytes);
});
