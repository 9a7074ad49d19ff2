//! Locks that a forked child does not keep.
//!
//! A lock of an open file lives as long as any copy of its descriptor, and a fork copies all of them. So descriptors
//! that carry locks are listed here, and a child replaces its copies before it runs anything.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, IntoRawFd, RawFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering};

/// More locked files than this at once: a child keeps the rest of them until it ends or executes a program.
const SLOTS: usize = 8192;
const FREE: RawFd = -1;

static CARRYING: [AtomicI32; SLOTS] = [const { AtomicI32::new(FREE) }; SLOTS];
/// Open on `/dev/null`, for as long as the process lives.
static NOTHING: AtomicI32 = AtomicI32::new(FREE);

/// While this lives, forked children lose their copy of the descriptor; to be dropped before the file is closed.
#[derive(Debug)]
pub struct Carried {
    slot: Option<usize>,
    process: u32,
}

impl Carried {
    /// Lists a descriptor that carries locks, or is about to.
    pub fn new(file: &File) -> io::Result<Self> {
        install()?;
        let fd = file.as_raw_fd();
        let take =
            |slot: &AtomicI32| slot.compare_exchange(FREE, fd, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        Ok(Self { slot: CARRYING.iter().position(take), process: std::process::id() })
    }
}

impl Drop for Carried {
    fn drop(&mut self) {
        // A child has emptied its table already, and may have filled it with its own.
        if self.process == std::process::id()
            && let Some(slot) = self.slot.and_then(|slot| CARRYING.get(slot))
        {
            slot.store(FREE, Ordering::Release);
        }
    }
}

/// Once for the process.
fn install() -> io::Result<()> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    let installed = INSTALLED.get_or_init(|| {
        let code = |error: io::Error| error.raw_os_error().unwrap_or(libc::EIO);
        let nothing = File::options().read(true).write(true).open("/dev/null").map_err(code)?;
        NOTHING.store(nothing.into_raw_fd(), Ordering::Release);
        // SAFETY: the handler only does what is allowed between fork and exec; it lives as long as the process, because
        // the library that it is in is never unloaded (linked with nodelete, or part of the program).
        match unsafe { libc::pthread_atfork(None, None, Some(forget_in_child)) } {
            0 => Ok(()),
            error => Err(error),
        }
    });
    installed.map_err(io::Error::from_raw_os_error)
}

extern "C" fn forget_in_child() {
    let nothing = NOTHING.load(Ordering::Acquire);
    for slot in &CARRYING {
        let fd = slot.swap(FREE, Ordering::AcqRel);
        if fd != FREE {
            // SAFETY: two numbers of descriptors; what is listed is open, and in this child nobody else runs. The copy
            // goes without unlocking: the lock is the parent's. Should it fail, the child keeps it, as without us.
            unsafe { libc::dup3(nothing, fd, libc::O_CLOEXEC) };
        }
    }
}
