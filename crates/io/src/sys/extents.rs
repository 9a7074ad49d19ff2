//! Which parts of a file have blocks, by the file system's own map: `FS_IOC_FIEMAP`.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

// linux/fiemap.h: _IOWR('f', 11, struct fiemap).
const FS_IOC_FIEMAP: libc::c_ulong = 0xc020_660b;
const FIEMAP_EXTENT_LAST: u32 = 0x1;
const FIEMAP_EXTENT_UNWRITTEN: u32 = 0x800;
/// Asked for at once.
const EXTENTS: usize = 32;
// include/uapi/linux/magic.h.
const XFS_SUPER_MAGIC: u64 = 0x5846_5342;

/// `struct fiemap_extent`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Extent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved: [u64; 2],
    flags: u32,
    reserved_too: [u32; 3],
}

/// `struct fiemap`.
#[repr(C)]
#[derive(Default)]
struct Request {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    reserved: u32,
    extents: [Extent; EXTENTS],
}

/// Whether the file lies on XFS.
pub(crate) fn is_xfs(file: &File) -> bool {
    rustix::fs::fstatfs(file).is_ok_and(|stat| stat.f_type.cast_unsigned() & 0xffff_ffff == XFS_SUPER_MAGIC)
}

/// The first part of a range that has blocks which were written, as far as the file system has allocated them.
pub(crate) fn first_written(file: &File, range: Range<u64>) -> io::Result<Option<Range<u64>>> {
    let mut at = range.start;
    while at < range.end {
        let mut request =
            Request { start: at, length: range.end - at, count: EXTENTS as u32, ..Request::default() };
        // SAFETY: the descriptor is open for as long as `file` is borrowed; the request is valid, exclusively
        // borrowed, and has room for as many extents as it says.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP, &raw mut request) };
        if result == -1 {
            return Err(io::Error::last_os_error());
        }
        let extents = &request.extents[..EXTENTS.min(request.mapped as usize)];
        for extent in extents {
            let end = extent.logical.saturating_add(extent.length).min(range.end);
            if extent.flags & FIEMAP_EXTENT_UNWRITTEN == 0 && end > at {
                return Ok(Some(extent.logical.max(at)..end));
            }
            at = at.max(end);
        }
        if extents.len() < EXTENTS || extents.iter().any(|extent| extent.flags & FIEMAP_EXTENT_LAST != 0) {
            break;
        }
    }
    Ok(None)
}
