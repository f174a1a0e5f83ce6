//! Fuzz target, see `wavesync_fuzz::frame`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    wavesync_fuzz::frame(bytes);
});
