//! Locks that are let go of before their file is closed.

use std::fs::File;
use std::io;

use super::{Carried, LockMode, ofd_try_lock, ofd_unlock};

/// An open file with one locked byte; unlocked when dropped.
#[derive(Debug)]
pub struct ByteLock {
    _carried: Carried,
    file: File,
    byte: u64,
    process: u32,
}

impl ByteLock {
    /// Tries to lock that byte for this open file; `None`: somebody else holds it.
    pub fn new(file: File, byte: u64, mode: LockMode) -> io::Result<Option<ByteLock>> {
        let carried = Carried::new(&file)?;
        let locked = ofd_try_lock(&file, byte, 1, mode)?;
        Ok(locked.then(|| ByteLock { _carried: carried, file, byte, process: std::process::id() }))
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }
}

impl Drop for ByteLock {
    fn drop(&mut self) {
        ofd_release(&self.file, self.process, &[(self.byte, 1)]);
    }
}

/// Unlocks these ranges (offset and length), which `process` has locked, before the file is closed: a child that another
/// thread is starting at this moment has the descriptor until it executes its program. A forked child that drops what it has
/// inherited must leave the lock to its parent.
pub fn ofd_release(file: &File, process: u32, ranges: &[(u64, u64)]) {
    if process == std::process::id() {
        for &(offset, length) in ranges {
            // The close that follows does the same.
            let _ = ofd_unlock(file, offset, length);
        }
    }
}
