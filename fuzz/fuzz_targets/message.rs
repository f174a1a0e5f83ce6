//! Fuzz target, see `wavesync_fuzz::message`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    wavesync_fuzz::message(bytes);
});
