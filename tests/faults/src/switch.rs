//! Which calls fail: the fault, and the count of what was met.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

/// The calls that can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Call {
    /// `open` of a file that is there.
    Open,
    /// `open` that makes a file.
    Create,
    /// `mkdir`.
    MakeDirectory,
    /// `read`, `pread`.
    Read,
    /// `write`, `pwrite`.
    Write,
    /// `fallocate`, to allocate or to punch holes.
    Allocate,
    /// `ftruncate`, `truncate`.
    Truncate,
    /// `fsync`, `fdatasync` of a file.
    Sync,
    /// `fsync` of a directory.
    SyncDirectory,
    /// `link`.
    Link,
    /// `rename`.
    Rename,
    /// `unlink`.
    Unlink,
    /// `getdents`: the first of a listing.
    List,
}

impl Call {
    /// All of them.
    pub const ALL: [Call; 13] = [
        Call::Open,
        Call::Create,
        Call::MakeDirectory,
        Call::Read,
        Call::Write,
        Call::Allocate,
        Call::Truncate,
        Call::Sync,
        Call::SyncDirectory,
        Call::Link,
        Call::Rename,
        Call::Unlink,
        Call::List,
    ];
}

/// What the caller gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    /// This error; nothing was done.
    Error(Errno),
    /// Half of a read or write, which says so. Of other calls: nothing but success.
    Short,
    /// This error, after half of a write was done. Of other calls: as `Error`.
    Half(Errno),
    /// This error, though all of it was done.
    Done(Errno),
    /// Of a sync: this error, and what was written since the last one is lost for good, as with Linux's page cache.
    /// Lengths are kept: what was written beyond the former end reads as zeroes. Of other calls: as `Error`.
    Lost(Errno),
}

impl Answer {
    /// The error that the caller sees.
    pub fn errno(self) -> Option<Errno> {
        match self {
            Answer::Error(errno) | Answer::Half(errno) | Answer::Done(errno) | Answer::Lost(errno) => {
                Some(errno)
            }
            Answer::Short => None,
        }
    }
}

/// One fault.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Calls of this kind are counted.
    pub call: Call,
    /// On paths (relative to the mount) that begin with this: `A/data`. Empty: on all.
    pub under: String,
    /// The first call that gets the answer; 1 is the next one.
    pub nth: u64,
    /// What it gets.
    pub answer: Answer,
    /// So many calls get it, if the fault is not disarmed before; `u64::MAX`: all after the first.
    pub times: u64,
}

/// What was met since the fault was armed.
#[derive(Clone, Debug, Default)]
pub struct Met {
    /// How often the fault has happened.
    pub fired: u64,
    /// On which path first.
    pub at: Option<PathBuf>,
    /// All calls in order, with the paths, relative to the mount.
    pub calls: Vec<(Call, PathBuf)>,
}

#[derive(Debug, Default)]
struct State {
    fault: Option<Fault>,
    counting: bool,
    /// Calls that the fault is about.
    seen: u64,
    met: Met,
}

/// Shared by the mirror and its owner.
#[derive(Debug, Default)]
pub(crate) struct Switch(Mutex<State>);

impl Switch {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn arm(&self, fault: Option<Fault>) {
        *self.state() = State { fault, counting: true, ..State::default() };
    }

    pub(crate) fn disarm(&self) -> Met {
        std::mem::take(&mut *self.state()).met
    }

    pub(crate) fn fired(&self) -> u64 {
        self.state().met.fired
    }

    /// Whether what is written may have to be taken back.
    pub(crate) fn may_lose(&self) -> bool {
        self.state().fault.as_ref().is_some_and(|fault| matches!(fault.answer, Answer::Lost(_)))
    }

    /// Counts a call; its answer, if it is one that fails.
    pub(crate) fn meet(&self, call: Call, path: &Path) -> Option<Answer> {
        let mut state = self.state();
        if !state.counting {
            return None;
        }
        state.met.calls.push((call, path.to_path_buf()));
        let State { fault: Some(fault), seen, met, .. } = &mut *state else { return None };
        if call != fault.call || !path.as_os_str().as_encoded_bytes().starts_with(fault.under.as_bytes()) {
            return None;
        }
        *seen += 1;
        if *seen < fault.nth || *seen - fault.nth >= fault.times {
            return None;
        }
        met.fired += 1;
        met.at.get_or_insert_with(|| path.to_path_buf());
        Some(fault.answer)
    }
}
