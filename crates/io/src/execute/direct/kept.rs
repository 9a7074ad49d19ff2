//! Queues, their memory, and who has how much of it. Setting one up takes milliseconds, since the kernel pins its memory: a
//! job that goes in steps finds the one of its last step.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{ALL_SLOTS, DEPTH, LARGE, LEAST_SLOTS, SLOTS, SMALL, SMALL_SLOTS};
use crate::sys::queue::{Kind, Queue};

/// Slots that queues have, idle ones included.
static TAKEN: AtomicUsize = AtomicUsize::new(0);
/// Queues that nobody uses at the moment, while there is a [`Keep`].
static IDLE: Mutex<Vec<Idle>> = Mutex::new(Vec::new());
/// How many of those there are.
static KEEPS: AtomicUsize = AtomicUsize::new(0);

/// As long as one of these lives, the memory and the ring of a call that moves data are kept for the next one. Others take the
/// memory away when they need it. To be held by who moves data in steps; when the last is dropped, what is idle is given back.
#[derive(Debug)]
pub struct Keep(u32);

impl Keep {
    /// From now on they are kept.
    #[must_use]
    pub fn new() -> Keep {
        KEEPS.fetch_add(1, Ordering::AcqRel);
        Keep(std::process::id())
    }
}

impl Default for Keep {
    fn default() -> Keep {
        Keep::new()
    }
}

impl Drop for Keep {
    fn drop(&mut self) {
        if KEEPS.fetch_sub(1, Ordering::AcqRel) == 1 && self.0 == std::process::id() {
            clear(&mut idle());
        }
    }
}

/// A share of the memory of all jobs.
#[derive(Debug)]
pub(super) struct Share(usize);

impl Share {
    fn take() -> Share {
        let mut share = 0;
        let _ = TAKEN.fetch_update(Ordering::AcqRel, Ordering::Acquire, |taken| {
            share = could_have(taken);
            Some(taken + share)
        });
        Share(share)
    }

    /// The sizes of its slots.
    fn sizes(&self) -> Vec<usize> {
        let small = std::iter::repeat_n(SMALL as usize, self.0 * SMALL_SLOTS);
        std::iter::repeat_n(LARGE as usize, self.0).chain(small).collect()
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        TAKEN.fetch_sub(self.0, Ordering::AcqRel);
    }
}

/// What who comes next gets.
fn could_have(taken: usize) -> usize {
    ALL_SLOTS.saturating_sub(taken).clamp(LEAST_SLOTS, SLOTS)
}

struct Idle {
    held: Held<'static>,
    kind: Kind,
    process: u32,
}

/// A queue in use, with its share. The queue goes first.
pub(super) struct Held<'a> {
    pub queue: Queue<'a>,
    share: Share,
}

impl Held<'_> {
    /// An idle queue, unless a larger share could be had by now, or a new one. None: there can be none.
    pub fn take(kind: Kind) -> Option<Held<'static>> {
        let found = {
            let mut idle = idle();
            let all: usize = idle.iter().map(|idle| idle.held.share.0).sum();
            let could = could_have(TAKEN.load(Ordering::Acquire).saturating_sub(all));
            let fits = idle.iter().position(|idle| idle.kind == kind && idle.held.share.0 >= could);
            if fits.is_none() {
                while TAKEN.load(Ordering::Acquire) + could > ALL_SLOTS && idle.pop().is_some() {}
            }
            fits.map(|index| idle.swap_remove(index).held)
        };
        found.or_else(|| {
            let share = Share::take();
            let queue = Queue::new(kind, &share.sizes(), DEPTH).ok()?;
            Some(Held { queue, share })
        })
    }

    /// Keeps it for the next, if somebody wants that and all is within bounds.
    pub fn give_back(self, kind: Kind) {
        let Held { queue, share } = self;
        let Some(queue) = queue.rest() else { return };
        let mut idle = idle();
        // Looked at under the lock that the last `Keep` takes after it has gone.
        if KEEPS.load(Ordering::Acquire) > 0 && TAKEN.load(Ordering::Acquire) <= ALL_SLOTS {
            idle.push(Idle { held: Held { queue, share }, kind, process: std::process::id() });
        }
    }
}

/// What is idle in this process. A forked child cannot use its parent's: the kernel did not copy the rings, and threads are gone.
fn idle() -> MutexGuard<'static, Vec<Idle>> {
    let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
    let process = std::process::id();
    if idle.iter().any(|idle| idle.process != process) {
        for foreign in std::mem::take(&mut *idle) {
            TAKEN.fetch_sub(foreign.held.share.0, Ordering::AcqRel);
            std::mem::forget(foreign);
        }
    }
    idle
}

fn clear(idle: &mut Vec<Idle>) {
    idle.clear();
    idle.shrink_to_fit();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// They see the same memory.
    static ALONE: Mutex<()> = Mutex::new(());

    fn shares(held: &[Held<'_>]) -> Vec<usize> {
        held.iter().map(|held| held.share.0).collect()
    }

    fn take(count: usize) -> Vec<Held<'static>> {
        (0..count).map(|_| Held::take(Kind::Any).unwrap()).collect()
    }

    fn give_back(held: Vec<Held<'static>>) {
        for held in held {
            held.give_back(Kind::Any);
        }
    }

    fn taken() -> usize {
        TAKEN.load(Ordering::Acquire)
    }

    #[test]
    fn jobs_share_the_memory_and_each_has_some() {
        let _alone = ALONE.lock();
        let shares: Vec<Share> = (0..6).map(|_| Share::take()).collect();
        let counts: Vec<usize> = shares.iter().map(|share| share.0).collect();
        assert_eq!(counts, [12, 12, 12, 4, 4, 4]);
        let bytes: usize = shares[0].sizes().iter().sum();
        assert_eq!(bytes, 21 << 20);
        drop(shares);
        assert_eq!(Share::take().0, 12);
    }

    #[test]
    fn what_is_idle_is_kept_while_somebody_wants_it() {
        let _alone = ALONE.lock();
        give_back(take(1));
        assert_eq!(taken(), 0);
        let (one, other) = (Keep::new(), Keep::new());
        let mut first = take(1);
        // A mark in its memory.
        first[0].queue.bytes_mut(3).unwrap()[5] = 77;
        give_back(first);
        assert_eq!(taken(), SLOTS);
        drop(one);
        let again = take(1);
        assert_eq!(again[0].queue.bytes(3).unwrap()[5], 77);
        assert_eq!(taken(), SLOTS);
        // The last goes while it is in use.
        drop(other);
        give_back(again);
        assert_eq!(taken(), 0);
        let keep = Keep::new();
        give_back(take(2));
        assert_eq!(taken(), 2 * SLOTS);
        drop(keep);
        assert_eq!(taken(), 0);
    }

    #[test]
    fn who_needs_memory_takes_it_from_what_is_idle() {
        let _alone = ALONE.lock();
        let _keep = Keep::new();
        let all = take(4);
        assert_eq!(shares(&all), [12, 12, 12, 4]);
        give_back(all);
        // One did not fit.
        assert_eq!(taken(), ALL_SLOTS - SLOTS + LEAST_SLOTS);
        // Other means cannot use them: they are given up, as far as needed.
        let other = Held::take(Kind::Threads).unwrap();
        assert_eq!(other.share.0, SLOTS);
        assert!(taken() <= ALL_SLOTS, "{}", taken());
        // A small one is not used where a large one can be had.
        let next = take(2);
        assert_eq!(shares(&next), [12, 12]);
        assert_eq!(taken(), ALL_SLOTS);
    }

    #[test]
    fn what_a_parent_process_left_is_not_used() {
        let _alone = ALONE.lock();
        let _keep = Keep::new();
        let mut first = take(1);
        first[0].queue.bytes_mut(0).unwrap()[0] = 77;
        give_back(first);
        idle()[0].process += 1;
        let next = take(1);
        assert_eq!(next[0].queue.bytes(0).unwrap()[0], 0);
        assert_eq!(taken(), SLOTS);
    }
}
