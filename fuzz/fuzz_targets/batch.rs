//! Fuzz target, see `wavesync_fuzz::batch`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    wavesync_fuzz::batch(bytes);
});
