//! Moments and waiting, on threads and in a browser.

use std::time::Duration;

#[cfg(not(target_family = "wasm"))]
pub(crate) use std::time::{Instant, SystemTime, UNIX_EPOCH};
#[cfg(target_family = "wasm")]
pub(crate) use web_time::{Instant, SystemTime, UNIX_EPOCH};

/// Ends after this long.
#[cfg(not(target_family = "wasm"))]
pub(crate) async fn sleep(time: Duration) {
    smol::Timer::after(time).await;
}

/// Ends after this long, or after a day.
#[cfg(target_family = "wasm")]
pub(crate) async fn sleep(time: Duration) {
    /// The browser counts milliseconds in 31 bits.
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    futures_timer::Delay::new(time.min(DAY)).await;
}

/// Ends at this moment, at once if it is over.
pub(crate) async fn sleep_until(end: Instant) {
    sleep(end.saturating_duration_since(Instant::now())).await;
}

/// `milliseconds`, up to a quarter less or more: what failed together returns spread out.
pub(crate) fn spread(milliseconds: u64) -> Duration {
    let mut random = [0; 8];
    // Without randomness it is merely not spread.
    let _filled = getrandom::fill(&mut random);
    let part = u64::from_le_bytes(random) % (milliseconds / 2 + 1);
    Duration::from_millis(milliseconds - milliseconds / 4 + part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spread_stays_within_a_quarter() {
        for milliseconds in [0, 1, 3, 4, 1_000] {
            for _ in 0..100 {
                let spread = spread(milliseconds).as_millis() as u64;
                let quarter = milliseconds / 4;
                assert!(spread >= milliseconds - quarter && spread <= milliseconds + quarter + 1);
            }
        }
    }
}
