//! What the machine gives: time, chance, threads. On a simulated host time is virtual, chance comes from a seed, and there is
//! one thread, so that a run can be repeated.

use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use uuid::Uuid;

#[cfg(feature = "sim")]
use vdsmstore_io::device::sim::hosts;

/// The time of a clock that only measures durations.
pub(crate) fn now() -> Instant {
    #[cfg(feature = "sim")]
    if let Some(time) = hosts::now() {
        static BEGINNING: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
        return *BEGINNING.get_or_init(Instant::now) + time;
    }
    Instant::now()
}

/// How long ago that was.
pub(crate) fn since(time: Instant) -> Duration {
    now().saturating_duration_since(time)
}

/// Waits.
pub(crate) fn pause(duration: Duration) {
    #[cfg(feature = "sim")]
    if hosts::pause(duration) {
        return;
    }
    thread::sleep(duration);
}

/// Seconds since the epoch, for people.
pub(crate) fn date() -> u64 {
    #[cfg(feature = "sim")]
    if let Some(time) = hosts::now() {
        return time.as_secs();
    }
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// An id that nobody else has.
pub(crate) fn random_uuid() -> Uuid {
    #[cfg(feature = "sim")]
    if let (Some(high), Some(low)) = (hosts::random(), hosts::random()) {
        return uuid::Builder::from_random_bytes((u128::from(high) << 64 | u128::from(low)).to_be_bytes())
            .into_uuid();
    }
    Uuid::new_v4()
}

/// Whether this is a simulated host, where nothing may wait but by [`pause`].
pub(crate) fn is_simulated() -> bool {
    #[cfg(feature = "sim")]
    if hosts::is_host() {
        return true;
    }
    false
}

/// How many threads may share work that can be shared among so many.
pub(crate) fn threads(wanted: usize) -> usize {
    if is_simulated() { 1 } else { wanted }
}
