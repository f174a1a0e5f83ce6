//! Fuzz target, see `wavesync_fuzz::apply`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    wavesync_fuzz::apply(bytes);
});
