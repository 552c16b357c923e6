//! The two clocks. The wall clock is shown to people, and anybody can set it. The steady clock measures time, and
//! nobody can set it.
//!
//! No wait, expiry, order or deletion depends on the wall clock.

use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use rustix::time::{ClockId, clock_gettime};

/// A source of time. It is a parameter, so that tests can run a history in virtual time.
pub trait Clock: Send + Sync {
    /// Returns the wall clock's time, as [`wall`].
    fn wall(&self) -> Timestamp;

    /// Returns the steady clock's time, as [`Steady::now`].
    fn steady(&self) -> Steady;

    /// Returns the time for timers.
    fn now(&self) -> Instant;
}

/// The clocks of this host.
#[derive(Debug, Clone, Copy)]
pub struct System;

impl Clock for System {
    fn wall(&self) -> Timestamp {
        wall()
    }

    fn steady(&self) -> Steady {
        Steady::now()
    }

    fn now(&self) -> Instant {
        Instant::now()
    }
}

/// Returns the wall clock's time, cut to microseconds: the store keeps microseconds, so the time reads the same after
/// a restart.
pub fn wall() -> Timestamp {
    whole(Timestamp::now().checked_add(shift()).unwrap_or(Timestamp::MAX))
}

/// Cuts a time to whole microseconds.
pub fn whole(time: Timestamp) -> Timestamp {
    Timestamp::from_microsecond(time.as_microsecond()).unwrap_or(time)
}

#[cfg(not(feature = "kill-points"))]
fn shift() -> SignedDuration {
    SignedDuration::ZERO
}

/// For tests: returns the shift in seconds from the file that `ATTACHD_WALL_SHIFT` names. The file is read at each
/// call.
#[cfg(feature = "kill-points")]
fn shift() -> SignedDuration {
    static FILE: std::sync::OnceLock<Option<std::ffi::OsString>> = std::sync::OnceLock::new();
    let file = FILE.get_or_init(|| std::env::var_os("ATTACHD_WALL_SHIFT")).as_ref();
    let text = file.and_then(|file| std::fs::read_to_string(file).ok()).unwrap_or_default();
    SignedDuration::from_secs(text.trim().parse().unwrap_or(0))
}

/// A time of this boot, in microseconds since the boot, with the time asleep (`CLOCK_BOOTTIME`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Steady(i64);

impl Steady {
    /// Returns the present time.
    pub fn now() -> Self {
        let now = clock_gettime(ClockId::Boottime);
        Self(now.tv_sec.saturating_mul(1_000_000).saturating_add(now.tv_nsec / 1000))
    }

    /// Makes the time that many microseconds after the boot.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// Returns the microseconds since the boot.
    pub fn as_micros(self) -> i64 {
        self.0
    }

    /// Returns the time that is `wait` later.
    #[must_use]
    pub fn after(self, wait: SignedDuration) -> Self {
        Self(self.0.saturating_add(micros(wait)))
    }

    /// Returns the time from `earlier` to this; negative if `earlier` is later.
    pub fn since(self, earlier: Self) -> SignedDuration {
        SignedDuration::from_micros(self.0.saturating_sub(earlier.0))
    }

    /// Returns the time from `now` to this; zero if this has passed.
    pub fn left(self, now: Self) -> Duration {
        Duration::try_from(self.since(now)).unwrap_or_default()
    }
}

fn micros(duration: SignedDuration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(if duration.is_negative() { i64::MIN } else { i64::MAX })
}

/// Converts a steady time to the wall clock, for people. Returns `planned` as long as nobody has set the wall clock
/// since `planned` was computed; else the time by the present wall clock. Repeated calls return the same time,
/// although the two clocks cannot be read at the same moment.
pub fn shown(at: Steady, planned: Timestamp, now: Steady, wall: Timestamp) -> Timestamp {
    let by_now = wall.checked_add(at.since(now)).unwrap_or(if at > now { Timestamp::MAX } else { Timestamp::MIN });
    let differs = by_now.duration_since(planned).abs() > SignedDuration::from_secs(1);
    if differs { whole_seconds(by_now) } else { planned }
}

fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Two calls at any distance return the same time, until the wall clock is set.
        #[test]
        fn a_deadline_is_shown_the_same_each_time_and_moves_when_the_wall_clock_is_set(
            created in 0..2_000_000_000_i64, seconds in 0..u32::MAX, look in 0..100_000_000_i64,
            jitter in -1000..1000_i64, jump in prop_oneof![-40_000_000..-2_i64, 2..40_000_000_i64],
        ) {
            let begun = Steady(5_000_000);
            let wait = SignedDuration::from_secs(seconds.into());
            let created_at = Timestamp::from_microsecond(created * 1_000_000 + 123_456).unwrap();
            let planned = created_at + wait;
            let now = Steady(begun.0 + look);
            let wall = created_at + SignedDuration::from_micros(look + jitter);
            prop_assert_eq!(shown(begun.after(wait), planned, now, wall), planned);
            let set = wall + SignedDuration::from_secs(jump);
            let moved = shown(begun.after(wait), planned, now, set).duration_since(planned);
            prop_assert!((moved - SignedDuration::from_secs(jump)).abs() < SignedDuration::from_secs(2), "{moved:?}");
        }
    }

    #[test]
    fn a_time_beyond_the_range_is_clamped() {
        let now = Steady::now();
        let never = now.after(SignedDuration::MAX);
        assert_eq!(never.left(now), Duration::from_micros((i64::MAX - now.0).unsigned_abs()));
        assert_eq!(shown(never, Timestamp::MAX, now, wall()), Timestamp::MAX);
    }
}
