//! Simulated hosts that work at the same time: threads of which one runs at a time.
//!
//! Whatever such a thread does that others can notice, or that notices others, is a *step* ([`at`]). Before each step a
//! decision says which host goes on; the others wait where they are, for as long as they are not chosen: frozen. Time is
//! virtual and passes only in pauses, chance comes from a seed; so the same seed and the same decisions are the same run.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What a host is about to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Act {
    /// Reads a record, a list, a length, bytes.
    Read,
    /// Tries a lock.
    Lock,
    /// Writes a record, if the compare holds: everybody sees it.
    Record,
    /// Makes or removes another name: a marker, progress, a blob, an object.
    Name,
    /// What is visible under a name becomes durable.
    Sync,
    /// Writes bytes of a volume.
    Write,
    /// Flushes a volume.
    Flush,
    /// Has waited for something.
    Pause,
    /// Has nothing left to do.
    End,
}

/// A host that is about to make a step.
#[derive(Debug)]
pub struct Turn<'a> {
    /// The host, by its place in the list of works.
    pub host: usize,
    /// What it is about to do.
    pub act: Act,
    /// Steps of each host, this one included.
    pub steps: &'a [u64],
    /// Which hosts have ended.
    pub ended: &'a [bool],
    /// Virtual time since the beginning.
    pub now: Duration,
}

impl Turn<'_> {
    /// The number of this step among those of its host; the first is 1.
    pub fn step(&self) -> u64 {
        self.steps[self.host]
    }
}

/// Says who goes on. Instead of a host that has ended, the first that has not does. It is called on the thread of the host
/// that is about to make the step; what it does itself is no step.
pub type Decide = Box<dyn FnMut(&Turn<'_>) -> usize + Send>;

/// What a host does.
pub type Work<T> = Box<dyn FnOnce() -> T + Send>;

/// More virtual time than anybody waits for anything.
const FOR_EVER: Duration = Duration::from_hours(1);
/// More steps than any work takes.
const ENDLESS: u64 = 20_000_000;

struct State {
    turn: usize,
    steps: Vec<u64>,
    ended: Vec<bool>,
    now: Duration,
    decide: Decide,
}

impl State {
    fn decide(&mut self, host: usize, act: Act) {
        self.steps[host] += 1;
        let Self { steps, ended, now, decide, turn } = self;
        let mine = ME.with_borrow_mut(Option::take);
        let chosen = decide(&Turn { host, act, steps, ended, now: *now });
        ME.set(mine);
        let chosen = Some(chosen).filter(|host| ended.get(*host) == Some(&false));
        *turn = chosen.or_else(|| ended.iter().position(|ended| !ended)).unwrap_or(host);
    }
}

#[derive(Clone)]
struct Run(Arc<(Mutex<State>, Condvar)>);

impl Run {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self, host: usize, mut state: MutexGuard<'_, State>) {
        while state.turn != host {
            state = self.0.1.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn pass(&self, host: usize, act: Act, pause: Duration) {
        let mut state = self.state();
        state.now += pause;
        if !std::thread::panicking() {
            assert!(state.now < FOR_EVER, "host {host} waits for ever");
            assert!(state.steps[host] < ENDLESS, "host {host} works for ever");
        }
        state.decide(host, act);
        if state.turn != host {
            self.0.1.notify_all();
            self.wait(host, state);
        }
    }
}

/// Ends a host, however its work ended.
struct Ending(Run, usize);

impl Drop for Ending {
    fn drop(&mut self) {
        ME.set(None);
        let mut state = self.0.state();
        state.ended[self.1] = true;
        state.decide(self.1, Act::End);
        self.0.0.1.notify_all();
    }
}

/// The host that this thread is.
struct Me {
    run: Run,
    host: usize,
    chance: u64,
    clock: Clock,
}

/// A clock that is not that of others: ahead, too fast or too slow, and after some pauses it jumps, as that of a machine
/// that was suspended.
struct Clock {
    ahead: Duration,
    /// Percent of virtual time.
    pace: u32,
    /// Chance of its own: that it jumps changes nothing else.
    chance: u64,
}

/// One pause of so many ends with a jump.
const JUMPS: u64 = 50;

impl Clock {
    fn new(chance: u64) -> Self {
        let pace = 50 + (mix(chance ^ 1) % 151) as u32;
        Self { ahead: Duration::from_hours(mix(chance) % 1000), pace, chance }
    }

    fn exact() -> Self {
        Self { ahead: Duration::ZERO, pace: 100, chance: 0 }
    }

    fn shows(&self, now: Duration) -> Duration {
        self.ahead + now * self.pace / 100
    }

    /// The virtual time in which it goes on by that, and whether it jumps then.
    fn pause(&mut self, duration: Duration) -> Duration {
        if self.chance > 0 {
            self.chance = mix(self.chance);
            if self.chance.is_multiple_of(JUMPS) {
                self.ahead += Duration::from_secs(mix(self.chance) % 100_000);
            }
        }
        duration * 100 / self.pace
    }
}

thread_local! {
    static ME: RefCell<Option<Me>> = const { RefCell::new(None) };
}

/// Runs these hosts at the same time, the first of them first, until all have ended. A panic of one is the caller's, after
/// the others have ended.
pub fn run<T: Send + 'static>(seed: u64, works: Vec<Work<T>>, decide: Decide) -> Vec<T> {
    let count = works.len();
    let state =
        State { turn: 0, steps: vec![0; count], ended: vec![false; count], now: Duration::ZERO, decide };
    let run = Run(Arc::new((Mutex::new(state), Condvar::new())));
    let threads: Vec<_> = works
        .into_iter()
        .enumerate()
        .map(|(host, work)| {
            let run = run.clone();
            std::thread::spawn(move || {
                run.wait(host, run.state());
                let _ending = Ending(run.clone(), host);
                let chance = mix(seed ^ mix(host as u64 + 1));
                ME.set(Some(Me { run, host, chance, clock: Clock::new(mix(chance)) }));
                work()
            })
        })
        .collect();
    let ends: Vec<_> = threads.into_iter().map(std::thread::JoinHandle::join).collect();
    ends.into_iter().map(|end| end.unwrap_or_else(|panic| resume_unwind(panic))).collect()
}

/// Does something in this thread as the only host: with virtual time and with chance from the seed.
pub fn alone<T>(seed: u64, work: impl FnOnce() -> T) -> T {
    watched(seed, Box::new(|_| 0), work)
}

/// The same, and tells of each step; its clock is exact.
pub fn watched<T>(seed: u64, decide: Decide, work: impl FnOnce() -> T) -> T {
    let state = State { turn: 0, steps: vec![0], ended: vec![false], now: Duration::ZERO, decide };
    let run = Run(Arc::new((Mutex::new(state), Condvar::new())));
    let before = ME.replace(Some(Me { run, host: 0, chance: mix(seed), clock: Clock::exact() }));
    let outcome = catch_unwind(AssertUnwindSafe(work));
    ME.set(before);
    outcome.unwrap_or_else(|panic| resume_unwind(panic))
}

fn pass(act: Act, pause: Duration) {
    let me = ME.with_borrow(|me| me.as_ref().map(|me| (me.run.clone(), me.host)));
    if let Some((run, host)) = me {
        run.pass(host, act, pause);
    }
}

/// This thread is about to make a step: returns when it is its turn. Nothing, if it is no simulated host.
pub fn at(act: Act) {
    pass(act, Duration::ZERO);
}

/// Lets so much time pass by the clock of this host, and others work. False: this is no simulated host.
pub fn pause(duration: Duration) -> bool {
    let pause = ME.with_borrow_mut(|me| me.as_mut().map(|me| me.clock.pause(duration)));
    pass(Act::Pause, pause.unwrap_or_default());
    pause.is_some()
}

/// Whether this thread is a simulated host.
pub fn is_host() -> bool {
    ME.with_borrow(Option::is_some)
}

/// Virtual time by the clock of the simulated host that this thread is.
pub fn now() -> Option<Duration> {
    ME.with_borrow(|me| me.as_ref().map(|me| me.clock.shows(me.run.state().now)))
}

/// Chance, as the seed has it for the simulated host that this thread is.
pub fn random() -> Option<u64> {
    ME.with_borrow_mut(|me| {
        me.as_mut().map(|me| {
            me.chance = me.chance.wrapping_add(0x9e37_79b9_7f4a_7c15);
            mix(me.chance)
        })
    })
}

/// Scrambles a number: small, and the same everywhere (the finalizer of splitmix64).
pub fn mix(number: u64) -> u64 {
    let mut x = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
