//! Which addresses to dial and when: all that were given, again and again, with a back-off.

use wavesync_core::ids::Millis;

/// First pause after a failed dial, in milliseconds; it doubles with each failure.
const RETRY_MIN_MS: u64 = 250;
/// Longest pause between two dials of one address, in milliseconds.
const RETRY_MAX_MS: u64 = 30_000;
/// A dial that is neither answered nor refused is taken up again after this long.
const ANSWER_MAX_MS: u64 = 10_000;

/// The addresses that this replica stays connected with.
#[derive(Default)]
pub struct Dialer {
    targets: Vec<Target>,
}

struct Target {
    address: String,
    next_try: Millis,
    failures: u32,
    /// The reason of the last failure that was reported.
    reported: Option<String>,
    /// No dial has been answered or refused yet.
    untried: bool,
}

impl Dialer {
    pub fn new(addresses: &[String], now: Millis) -> Self {
        let mut dialer = Self::default();
        addresses.iter().for_each(|address| dialer.add(address, now));
        dialer
    }

    pub fn add(&mut self, address: &str, now: Millis) {
        if let Some(target) = self.targets.iter_mut().find(|target| target.address == address) {
            (target.next_try, target.failures, target.reported) = (now, 0, None);
            return;
        }
        self.targets.push(Target {
            address: address.to_owned(),
            next_try: now,
            failures: 0,
            reported: None,
            untried: true,
        });
    }

    /// All of them.
    pub fn addresses(&self) -> Vec<String> {
        self.targets.iter().map(|target| target.address.clone()).collect()
    }

    /// When the next dial is due.
    pub fn next_try(&self) -> Millis {
        self.targets.iter().map(|target| target.next_try).min().unwrap_or(Millis(u64::MAX))
    }

    /// Addresses to dial now. Dialing an address that is connected does nothing.
    pub fn due(&mut self, now: Millis) -> Vec<String> {
        let due = self.targets.iter_mut().filter(|target| target.next_try <= now);
        due.map(|target| {
            target.next_try = now.plus(ANSWER_MAX_MS);
            target.address.clone()
        })
        .collect()
    }

    /// Some first dial is neither answered nor refused yet.
    pub fn is_trying(&self) -> bool {
        self.targets.iter().any(|target| target.untried)
    }

    pub fn connected(&mut self, address: &str, now: Millis) {
        for target in self.targets.iter_mut().filter(|target| same(&target.address, address)) {
            (target.failures, target.reported, target.untried) = (0, None, false);
            target.next_try = now.plus(ANSWER_MAX_MS);
        }
    }

    /// A connection is gone; which address it had does not matter, because dialing one that is
    /// connected does nothing.
    pub fn disconnected(&mut self, now: Millis) {
        for target in self.targets.iter_mut().filter(|target| target.failures == 0) {
            target.next_try = target.next_try.min(now.plus(RETRY_MIN_MS));
        }
    }

    /// Notes a failure; returns whether it is news.
    pub fn failed(&mut self, address: &str, reason: &str, now: Millis) -> bool {
        let Some(target) = self.targets.iter_mut().find(|target| same(&target.address, address))
        else {
            return true;
        };
        target.untried = false;
        let pause = RETRY_MIN_MS.saturating_mul(1 << target.failures.min(16)).min(RETRY_MAX_MS);
        // Spread by the address, so that members that lost one peer do not return in step.
        let spread =
            target.address.bytes().fold(0u64, |sum, byte| sum * 31 % 997 + u64::from(byte));
        target.next_try = now.plus(pause + pause * (spread % 100) / 400);
        target.failures = target.failures.saturating_add(1);
        let news = target.reported.as_deref() != Some(reason);
        target.reported = Some(reason.to_owned());
        news
    }

    pub fn restart(&mut self, now: Millis) {
        for target in &mut self.targets {
            (target.next_try, target.failures, target.reported) = (now, 0, None);
        }
    }
}

/// Whether two addresses lead to one place, with or without a peer id at the end.
fn same(a: &str, b: &str) -> bool {
    let place = |address: &str| address.split("/p2p/").next().map(str::to_owned);
    place(a) == place(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_back_off_and_a_connection_starts_afresh() {
        let address = "/ip4/127.0.0.1/tcp/9".to_owned();
        let mut dialer = Dialer::new(std::slice::from_ref(&address), Millis(0));
        let mut now = Millis(0);
        let mut pauses = Vec::new();
        for _ in 0..12 {
            assert_eq!(dialer.due(now), vec![address.clone()]);
            dialer.failed(&address, "refused", now);
            pauses.push(dialer.next_try().since(now));
            now = dialer.next_try();
        }
        assert!(pauses.windows(2).all(|pair| pair[0] <= pair[1]), "{pauses:?}");
        assert!(pauses.iter().all(|pause| *pause <= RETRY_MAX_MS * 5 / 4));
        dialer.connected("/ip4/127.0.0.1/tcp/9/p2p/x", now);
        dialer.disconnected(now);
        assert_eq!(dialer.next_try(), now.plus(RETRY_MIN_MS));
    }
}
