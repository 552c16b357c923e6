//! How long to wait before a retry.

use std::time::Duration;

/// The first and the longest wait before a failed step is retried. The wait doubles in between.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));

/// Returns how long to wait after this number of failed attempts.
pub(super) fn pause(attempts: u32) -> Duration {
    (RETRY.0 * (1 << attempts.min(10) >> 1)).min(RETRY.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pauses_grow_up_to_half_a_minute() {
        let pauses: Vec<u128> = (1..12).map(|attempts| pause(attempts).as_millis()).collect();
        assert_eq!(pauses[..3], [200, 400, 800]);
        assert!(pauses.is_sorted() && pauses.last() == Some(&30_000), "{pauses:?}");
    }
}
