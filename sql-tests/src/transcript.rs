//! What was said to every shell of a scenario and what each answered, with times.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// Longer lines are cut in the transcript (a 1 MB value must not bury the failure).
const SHOWN_LINE_CHARS: usize = 400;
/// Only the newest lines are kept.
const KEPT_LINES: usize = 400;

/// A log shared by the shells of one scenario.
#[derive(Clone)]
pub struct Transcript {
    started: Instant,
    lines: Arc<Mutex<VecDeque<String>>>,
}

impl Default for Transcript {
    fn default() -> Self {
        Self { started: Instant::now(), lines: Arc::default() }
    }
}

impl Transcript {
    /// Adds what `who` said, with the seconds since the scenario began.
    pub fn add(&self, who: &str, sign: char, text: &str) {
        let seconds = self.started.elapsed().as_secs_f64();
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        for line in text.lines() {
            let shown: String = line.chars().take(SHOWN_LINE_CHARS).collect();
            let cut = if shown.len() < line.len() { " (cut)" } else { "" };
            lines.push_back(format!("{seconds:8.3} {who:>8} {sign} {shown}{cut}"));
            if lines.len() > KEPT_LINES {
                lines.pop_front();
            }
        }
    }

    /// The newest lines, oldest first.
    #[must_use]
    pub fn text(&self) -> String {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().map(String::as_str).collect::<Vec<_>>().join("\n")
    }
}
