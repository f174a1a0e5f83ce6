//! The fence that no panic crosses: every callback that SQLite makes runs inside `guarded`.

use super::SqlError;
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs `work`; a panic becomes an error that names `place`.
///
/// Unwind safety: callers drop or poison what `work` touched (a cursor forgets its rows), and
/// shared state is behind locks of its own.
pub(super) fn guarded<T>(
    place: &str,
    work: impl FnOnce() -> Result<T, SqlError>,
) -> Result<T, SqlError> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|payload| Err(internal_error(place, payload)))
}

/// Drops a value whose destructor might panic, where nothing can be reported to the host.
pub(super) fn release<T>(value: T) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(|| drop(value))) {
        std::mem::forget(payload);
    }
}

fn internal_error(place: &str, payload: Box<dyn Any + Send>) -> SqlError {
    let what = match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
        (Some(text), _) => (*text).to_owned(),
        (None, Some(text)) => text.clone(),
        (None, None) => {
            // The destructor of an unknown payload might panic in its turn.
            std::mem::forget(payload);
            "no message".to_owned()
        }
    };
    SqlError::new(format!(
        "wavesync: internal error in {place}: {what}. This is a bug in wavesync, not in your \
         SQL; repeating the call is unlikely to help. Please report it with this text."
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_panic_becomes_an_error_that_names_the_place() {
        let fixed = guarded("f", || -> Result<(), SqlError> { panic!("broken") }).unwrap_err();
        assert!(fixed.message.starts_with("wavesync: internal error in f: broken."));
        let built = guarded("g", || -> Result<(), SqlError> { panic!("{} of {}", 1, 2) });
        assert!(built.unwrap_err().message.contains("in g: 1 of 2."));
        let odd = guarded("h", || -> Result<(), SqlError> { std::panic::panic_any(7_u8) });
        assert!(odd.unwrap_err().message.contains("in h: no message."));
    }

    #[test]
    fn values_and_errors_pass_through() {
        assert_eq!(guarded("f", || Ok(7)), Ok(7));
        assert_eq!(guarded("f", || Err::<(), _>(SqlError::new("no"))), Err(SqlError::new("no")));
    }

    #[test]
    fn a_destructor_that_panics_is_contained() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("in drop");
            }
        }
        release(Bomb);
    }
}
