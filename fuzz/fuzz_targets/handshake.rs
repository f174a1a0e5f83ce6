//! Fuzz target, see `wavesync_fuzz::handshake`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    wavesync_fuzz::handshake(bytes);
});
