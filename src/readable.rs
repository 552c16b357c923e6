//! Descriptors that the runtime waits for, and a timer that is such a descriptor.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers a descriptor with the runtime, to wait until it is readable. Needs a tokio runtime.
pub(crate) fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` keeps its one descriptor open until it is dropped, and nothing takes it out of the
    // `AsyncFd`.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }
        .map_err(|error| io::Error::other(error.to_string()))
}

/// A timer with a fixed period and one wake-up for each tick. tokio's timers wake up three times before a time that
/// is minutes away, because they are sorted again as it comes nearer.
pub(crate) struct Interval(AsyncFd<OwnedFd>);

impl Interval {
    /// Makes the timer; the first tick is after one period. Needs a tokio runtime.
    pub(crate) fn new(period: Duration) -> io::Result<Self> {
        let timer =
            rustix::time::timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        let period = Timespec::try_from(period).map_err(io::Error::other)?;
        let each = Itimerspec { it_interval: period, it_value: period };
        rustix::time::timerfd_settime(&timer, TimerfdTimerFlags::empty(), &each)?;
        register(timer).map(Self)
    }

    /// Waits for the next tick. Missed ticks count as one. Cancel-safe.
    pub(crate) async fn tick(&self) {
        loop {
            let Ok(mut ready) = self.0.readable().await else { return std::future::pending().await };
            let ticked = rustix::io::read(self.0.get_ref(), &mut [0; 8]).is_ok();
            ready.clear_ready();
            if ticked {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_interval_ticks_repeatedly_and_not_before_its_period() {
        let (period, begun) = (Duration::from_millis(20), std::time::Instant::now());
        let interval = Interval::new(period).unwrap();
        for tick in 1..=3 {
            interval.tick().await;
            assert!(begun.elapsed() >= period * tick);
        }
    }
}
