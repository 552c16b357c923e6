//! Measures how long the engine's turns take. During a turn no other input is handled.

use std::time::Duration;

use prometheus_client::metrics::histogram::Histogram;

/// The upper bounds of the histogram, in seconds.
const BOUNDS: [f64; 10] = [0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.05, 0.2, 1.0];

/// The turns since the start.
#[derive(Debug, Clone)]
pub struct Turns {
    histogram: Histogram,
}

impl Default for Turns {
    fn default() -> Self {
        Self { histogram: Histogram::new(BOUNDS) }
    }
}

impl Turns {
    /// Records the duration of a turn.
    pub(super) fn took(&self, time: Duration) {
        self.histogram.observe(time.as_secs_f64());
    }

    /// Returns the histogram for the metrics.
    pub fn histogram(&self) -> Histogram {
        self.histogram.clone()
    }
}
