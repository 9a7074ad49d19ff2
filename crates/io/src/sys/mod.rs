//! System calls that no safe crate wraps: locks of open files, block device requests, reflinks of ranges. All `unsafe`
//! of this crate is here.

mod byte_lock;
mod cached;
mod carried;
mod extents;
mod file_system;
pub(crate) mod queue;
mod requests;

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

pub use byte_lock::{ByteLock, ofd_release};
pub(crate) use cached::{is_cached, read_cached};
pub use carried::Carried;
pub(crate) use extents::{Extents, first_written, may_share, shared};
pub(crate) use file_system::FileSystem;
pub(crate) use requests::DirectFile;
pub use requests::{UNDER_WAY, await_requests};

/// How a byte range is locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockMode {
    /// Any number of holders; needs a descriptor open for reading.
    Shared,
    /// One holder; needs a descriptor open for writing.
    Exclusive,
}

// include/uapi/linux/fs.h: _IOR(0x12, 114, size_t) and _IO(0x12, 127).
const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;
const BLKZEROOUT: libc::c_ulong = 0x127f;
// _IOW(0x94, 13, struct file_clone_range).
const FICLONERANGE: libc::c_ulong = 0x4020_940d;

/// Tries to lock the bytes for this open file description (`F_OFD_SETLK`); `false`: somebody else holds them.
///
/// A `length` of 0 means up to the end of all offsets. The lock lasts until it is unlocked or the last
/// duplicate of the descriptor is closed; locking again replaces the mode.
pub fn ofd_try_lock(file: &File, offset: u64, length: u64, mode: LockMode) -> io::Result<bool> {
    let mut request = flock(offset, length, lock_type(mode))?;
    match fcntl(file, libc::F_OFD_SETLK, &mut request) {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Unlocks the bytes for this open file description; unlocking what is not locked does nothing.
pub fn ofd_unlock(file: &File, offset: u64, length: u64) -> io::Result<()> {
    let mut request = flock(offset, length, libc::F_UNLCK as libc::c_short)?;
    fcntl(file, libc::F_OFD_SETLK, &mut request)
}

/// Whether a lock of that mode would meet a foreign one (`F_OFD_GETLK`). Takes nothing; own locks do not count.
pub fn ofd_would_block(file: &File, offset: u64, length: u64, mode: LockMode) -> io::Result<bool> {
    let mut request = flock(offset, length, lock_type(mode))?;
    fcntl(file, libc::F_OFD_GETLK, &mut request)?;
    Ok(request.l_type != libc::F_UNLCK as libc::c_short)
}

fn lock_type(mode: LockMode) -> libc::c_short {
    match mode {
        LockMode::Shared => libc::F_RDLCK as libc::c_short,
        LockMode::Exclusive => libc::F_WRLCK as libc::c_short,
    }
}

fn flock(offset: u64, length: u64, kind: libc::c_short) -> io::Result<libc::flock> {
    let range = |value: u64| i64::try_from(value).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL));
    // `l_pid` must be 0 for locks of open file descriptions.
    Ok(libc::flock {
        l_type: kind,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: range(offset)?,
        l_len: range(length)?,
        l_pid: 0,
    })
}

fn fcntl(file: &File, command: libc::c_int, request: &mut libc::flock) -> io::Result<()> {
    // SAFETY: the descriptor is open for as long as `file` is borrowed; `request` is a valid, exclusively
    // borrowed flock, which is what both OFD commands read and write.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), command, std::ptr::from_mut(request)) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// In this thread, writing to a pipe that nobody reads is an error, and no signal that could end the process.
pub(crate) fn block_broken_pipes() {
    // SAFETY: a set of signals may hold anything before it is emptied.
    let mut signals: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: both get a set that is exclusively borrowed.
    unsafe {
        libc::sigemptyset(&raw mut signals);
        libc::sigaddset(&raw mut signals, libc::SIGPIPE);
    }
    // SAFETY: the set is valid, and the former one is not asked for; it changes this thread alone.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const signals, std::ptr::null_mut()) };
}

/// The length of a block device in bytes (`BLKGETSIZE64`).
pub(crate) fn block_device_len(file: &File) -> io::Result<u64> {
    let mut length: u64 = 0;
    // SAFETY: the descriptor is open for as long as `file` is borrowed; the request writes one u64 to the
    // pointer, which is valid and exclusively ours.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), BLKGETSIZE64, &raw mut length) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(length) }
}

/// Makes a range of a block device read as zeroes (`BLKZEROOUT`); both numbers must be multiples of its sectors.
pub(crate) fn block_device_zero(file: &File, offset: u64, length: u64) -> io::Result<()> {
    let range: [u64; 2] = [offset, length];
    // SAFETY: the descriptor is open for as long as `file` is borrowed; the request reads two u64 from the
    // pointer, which is valid for that.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), BLKZEROOUT, range.as_ptr()) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes a range of `target` share the blocks of a range of `source` (`FICLONERANGE`); all three numbers must be
/// multiples of the file system's blocks.
pub(crate) fn clone_range(
    target: &File,
    offset: u64,
    source: &File,
    source_offset: u64,
    length: u64,
) -> io::Result<()> {
    // struct file_clone_range: the descriptor in 64 bits, source offset, length, target offset.
    let request: [u64; 4] = [i64::from(source.as_raw_fd()).cast_unsigned(), source_offset, length, offset];
    // SAFETY: both descriptors are open for as long as the files are borrowed; the request reads four u64 from the
    // pointer, which is valid for that.
    let result = unsafe { libc::ioctl(target.as_raw_fd(), FICLONERANGE, request.as_ptr()) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
