//! A limit on bytes per second.

use std::time::{Duration, Instant};

use crate::machine;

/// Work is cut into pieces that take about this long at the limit.
const PIECE: f64 = 0.25;

/// Says when the next piece may be moved, and how large it may be.
#[derive(Debug)]
pub(crate) struct Limit {
    rate: Option<u64>,
    /// When what was spent so far is paid for.
    free_at: Instant,
}

impl Limit {
    /// No piece is smaller: a cluster.
    pub const SMALLEST: u64 = 64 << 10;

    /// At most `rate` bytes per second; None: no limit.
    pub fn new(rate: Option<u64>) -> Self {
        Self { rate, free_at: machine::now() }
    }

    /// How long to wait before the next piece.
    pub fn pause(&self) -> Option<Duration> {
        let left = self.free_at.saturating_duration_since(machine::now());
        (self.rate.is_some() && !left.is_zero()).then_some(left)
    }

    /// The largest piece.
    pub fn step(&self) -> u64 {
        #[allow(clippy::cast_precision_loss, clippy::cast_sign_loss)] // A size of a piece need not be exact.
        self.rate.map_or(u64::MAX, |rate| {
            ((rate as f64 * PIECE) as u64 / Self::SMALLEST * Self::SMALLEST).max(Self::SMALLEST)
        })
    }

    /// So many bytes were moved.
    pub fn spend(&mut self, bytes: u64) {
        let Some(rate) = self.rate.filter(|rate| *rate > 0) else { return };
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate);
        // Time in which nothing was moved is not saved up.
        let from = self.free_at.max(machine::now());
        self.free_at = from + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
    }
}
