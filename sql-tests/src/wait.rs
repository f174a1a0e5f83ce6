//! Waiting for a condition, always with a deadline.

use std::time::{Duration, Instant};

/// How long to rest between two looks at a condition.
const POLL_PAUSE_MILLIS: u64 = 20;

/// Looks at `condition` until it gives a value or the deadline has passed; then `None`.
pub fn until<T, E>(
    deadline: Instant,
    mut condition: impl FnMut() -> Result<Option<T>, E>,
) -> Result<Option<T>, E> {
    loop {
        if let Some(value) = condition()? {
            return Ok(Some(value));
        }
        let now = Instant::now();
        if now >= deadline {
            return Ok(None);
        }
        let pause = Duration::from_millis(POLL_PAUSE_MILLIS);
        std::thread::park_timeout(pause.min(deadline - now));
    }
}
