//! In which ways each kind of call fails, and which calls of an operation are taken.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, Weak};
use std::thread;
use std::time::{Duration, Instant};

use vdsmstore_faults::{Answer, Call, Errno};

use Answer::{Done, Error, Half, Lost, Short};

/// Operations that run side by side.
pub const WORKERS: usize = 2;
/// No case takes as long.
const PATIENCE: Duration = Duration::from_mins(1);

/// An answer, and how many calls get it.
type Way = (Answer, u64);

/// Until the fault is disarmed.
pub const EVER: u64 = u64::MAX;

pub fn ways(call: Call) -> &'static [Way] {
    match call {
        Call::Open => &[(Error(Errno::IO), 1), (Error(Errno::IO), EVER)],
        Call::Create => &[
            (Error(Errno::IO), 1),
            (Done(Errno::IO), 1),
            (Error(Errno::NOSPC), 1),
            (Error(Errno::NOSPC), EVER),
            (Error(Errno::DQUOT), 1),
        ],
        Call::Read => &[(Error(Errno::IO), 1), (Error(Errno::IO), EVER), (Short, 1), (Error(Errno::INTR), 1)],
        Call::Write => &[
            (Error(Errno::IO), 1),
            (Error(Errno::IO), EVER),
            (Half(Errno::IO), 1),
            (Error(Errno::NOSPC), 1),
            (Error(Errno::NOSPC), EVER),
            (Half(Errno::NOSPC), 1),
            (Error(Errno::DQUOT), 1),
            (Short, 1),
            (Error(Errno::INTR), 1),
        ],
        Call::Allocate => &[
            (Error(Errno::IO), 1),
            (Error(Errno::NOSPC), 1),
            (Error(Errno::NOSPC), EVER),
            (Error(Errno::OPNOTSUPP), EVER),
        ],
        Call::Truncate => &[(Error(Errno::IO), 1), (Error(Errno::NOSPC), 1)],
        Call::Sync => &[
            (Error(Errno::IO), 1),
            (Error(Errno::IO), EVER),
            (Lost(Errno::IO), 1),
            (Error(Errno::NOSPC), 1),
            (Error(Errno::INTR), 1),
        ],
        // A put, and the look at what became of it.
        Call::SyncDirectory => &[(Error(Errno::IO), 1), (Error(Errno::IO), 2), (Error(Errno::IO), EVER)],
        Call::Link => &[
            (Error(Errno::IO), 1),
            (Error(Errno::IO), 3),
            (Error(Errno::IO), EVER),
            (Done(Errno::IO), 1),
            (Error(Errno::NOSPC), 1),
            (Error(Errno::NOSPC), EVER),
        ],
        Call::MakeDirectory | Call::Rename => {
            &[(Error(Errno::IO), 1), (Done(Errno::IO), 1), (Error(Errno::NOSPC), EVER)]
        }
        Call::Unlink => &[(Error(Errno::IO), 1), (Error(Errno::IO), EVER), (Done(Errno::IO), 1)],
        Call::List => &[(Error(Errno::IO), 1)],
    }
}

/// What a program goes on after.
pub fn transparent(answer: Answer) -> bool {
    matches!(answer, Short | Error(Errno::INTR))
}

/// Small and repeatable.
pub struct Random(pub u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit.max(1) as u64) as usize
    }
}

/// Which of the calls, whose rooms these are: all, or one, of the first way to fail two in different rooms.
pub fn choose(rooms: &[String], way: usize, random: &mut Random) -> Vec<u64> {
    if std::env::var_os("VDSMSTORE_LONG").is_some() {
        return (1..=rooms.len() as u64).collect();
    }
    let some = if way == 0 { 2 } else { 1 };
    let mut kinds: Vec<&String> = rooms.iter().collect::<BTreeSet<_>>().into_iter().collect();
    let mut chosen = BTreeSet::new();
    while chosen.len() < some.min(rooms.len()) {
        if kinds.is_empty() {
            chosen.insert(random.below(rooms.len()) as u64 + 1);
            continue;
        }
        let room = kinds.swap_remove(random.below(kinds.len()));
        let there: Vec<usize> = (0..rooms.len()).filter(|n| rooms[*n] == *room).collect();
        chosen.insert(there[random.below(there.len())] as u64 + 1);
    }
    chosen.into_iter().collect()
}

/// Ends the program when a case hangs: nothing else would.
pub struct Watch(Arc<Mutex<Option<(Instant, String)>>>);

impl Watch {
    pub fn start() -> Watch {
        let case: Arc<Mutex<Option<(Instant, String)>>> = Arc::default();
        let weak: Weak<_> = Arc::downgrade(&case);
        thread::spawn(move || {
            while let Some(case) = weak.upgrade() {
                if let Some((since, what)) = &*case.lock().unwrap()
                    && since.elapsed() > PATIENCE
                {
                    eprintln!("it hangs: {what}");
                    std::process::abort();
                }
                drop(case);
                thread::sleep(Duration::from_millis(200));
            }
        });
        Watch(case)
    }

    pub fn begin(&self, what: &str) {
        *self.0.lock().unwrap() = Some((Instant::now(), what.to_owned()));
    }

    pub fn end(&self) {
        *self.0.lock().unwrap() = None;
    }
}
