//! Requests that outlive their process.
//!
//! A process that is killed ends, and its locks with it, while direct requests that the kernel has handed to a device by
//! io_uring still are under way (seen on Linux 6.18: megabytes arrived after that). They keep the open file that they were made
//! for: so a lock of that open file says, for as long as it is there, that something may still arrive.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::time::{Duration, Instant};

use super::{ByteLock, LockMode, ofd_would_block};
use crate::without;

/// Beyond what QEMU looks at, and beyond what repositories lock of a volume.
const BYTE: u64 = (1 << 62) + 2;
/// How long requests that nobody can end are waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(2);

/// A descriptor that direct requests are made through, with that lock if it may be written.
#[derive(Debug)]
pub(crate) enum DirectFile {
    Locked(ByteLock),
    Unlocked(File),
}

impl DirectFile {
    /// None: the lock cannot be had.
    pub fn new(file: File, writable: bool) -> io::Result<Option<DirectFile>> {
        if !writable || without!("file.lock.requests") {
            return Ok(Some(DirectFile::Unlocked(file)));
        }
        Ok(ByteLock::new(file, BYTE, LockMode::Shared)?.map(DirectFile::Locked))
    }
}

impl Deref for DirectFile {
    type Target = File;

    fn deref(&self) -> &File {
        match self {
            DirectFile::Locked(lock) => lock.file(),
            DirectFile::Unlocked(file) => file,
        }
    }
}

/// Why a file is in use when they did not end.
pub const UNDER_WAY: &str = "requests of a process that ended are still under way";

/// Waits for what processes that ended have left under way. `false`: it still is. To be asked through a descriptor that no direct
/// one was opened beside yet, by who holds a lock that keeps others from writing.
pub fn await_requests(file: &File) -> io::Result<bool> {
    let begun = Instant::now();
    while ofd_would_block(file, BYTE, 1, LockMode::Exclusive)? {
        if begun.elapsed() > PATIENCE {
            return Ok(false);
        }
        std::thread::sleep(PAUSE);
    }
    Ok(true)
}
