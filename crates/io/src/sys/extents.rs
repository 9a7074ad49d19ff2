//! Which parts of a file have blocks, and which, by the file system's own map: `FS_IOC_FIEMAP`.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

use super::FileSystem;

// linux/fiemap.h: _IOWR('f', 11, struct fiemap).
const FS_IOC_FIEMAP: libc::c_ulong = 0xc020_660b;
const FIEMAP_FLAG_SYNC: u32 = 0x1;
const FIEMAP_EXTENT_LAST: u32 = 0x1;
const FIEMAP_EXTENT_UNKNOWN: u32 = 0x2;
const FIEMAP_EXTENT_DELALLOC: u32 = 0x4;
const FIEMAP_EXTENT_ENCODED: u32 = 0x8;
const FIEMAP_EXTENT_DATA_ENCRYPTED: u32 = 0x80;
const FIEMAP_EXTENT_NOT_ALIGNED: u32 = 0x100;
const FIEMAP_EXTENT_DATA_INLINE: u32 = 0x200;
const FIEMAP_EXTENT_DATA_TAIL: u32 = 0x400;
const FIEMAP_EXTENT_UNWRITTEN: u32 = 0x800;
const FIEMAP_EXTENT_SHARED: u32 = 0x2000;
/// What has one of these is not simply the bytes at its place.
const NO_PLAIN_BYTES: u32 = FIEMAP_EXTENT_UNKNOWN
    | FIEMAP_EXTENT_DELALLOC
    | FIEMAP_EXTENT_ENCODED
    | FIEMAP_EXTENT_DATA_ENCRYPTED
    | FIEMAP_EXTENT_NOT_ALIGNED
    | FIEMAP_EXTENT_DATA_INLINE
    | FIEMAP_EXTENT_DATA_TAIL
    | FIEMAP_EXTENT_UNWRITTEN;
// linux/fs.h: _IOR('X', 31, struct fsxattr).
const FS_IOC_FSGETXATTR: libc::c_ulong = 0x801c_581f;
const FS_XFLAG_REALTIME: u32 = 0x1;
/// Asked for at once.
const EXTENTS: usize = 32;

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

/// Whether the file may share blocks with others of its file system, which one place names once: XFS, but not on its realtime device,
/// whose places are counted anew, and btrfs. Asked by name, since both files may be open for reading only: what the kernel
/// answers to a clone says nothing then.
pub(crate) fn may_share(file: &File) -> bool {
    match FileSystem::of(file) {
        FileSystem::Btrfs => return true,
        FileSystem::Xfs => {}
        _ => return false,
    }
    // struct fsxattr: the flags, and what is of no interest here.
    let mut attributes = [0u32; 7];
    // SAFETY: the descriptor is open for as long as `file` is borrowed; the request writes 28 bytes to the pointer, which is valid and
    // exclusively ours.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FSGETXATTR, attributes.as_mut_ptr()) };
    result == 0 && attributes[0] & FS_XFLAG_REALTIME == 0
}

/// A part of a file, and where its bytes lie if other files may have the same place.
#[derive(Debug, Default)]
pub(crate) struct Extents {
    /// In order, adjacent: where each ends, and its place.
    parts: Vec<(u64, Option<u64>)>,
    start: u64,
}

impl Extents {
    /// The place of the bytes at an offset, and where what is said of them ends. None: nothing is known.
    pub fn at(&self, offset: u64) -> Option<(Option<u64>, u64)> {
        if offset < self.start {
            return None;
        }
        let index = self.parts.partition_point(|(end, _)| *end <= offset);
        let (end, place) = *self.parts.get(index)?;
        let start = index.checked_sub(1).map_or(self.start, |before| self.parts[before].0);
        Some((place.map(|place| place + (offset - start)), end))
    }

    /// Whether anything may be shared.
    pub fn is_any(&self) -> bool {
        self.parts.iter().any(|(_, place)| place.is_some())
    }

    fn push(&mut self, end: u64, place: Option<u64>) {
        match self.parts.last_mut() {
            Some((last, None)) if place.is_none() => *last = end,
            _ => self.parts.push((end, place)),
        }
    }
}

/// Where the first bytes of a range lie, as far as one request tells; what was written before is on the disk, and in the map.
pub(crate) fn shared(file: &File, range: Range<u64>) -> io::Result<Extents> {
    let request = ask(file, &range, FIEMAP_FLAG_SYNC)?;
    let extents = &request.extents[..EXTENTS.min(request.mapped as usize)];
    let mut found = Extents { parts: Vec::with_capacity(extents.len() + 1), start: range.start };
    let mut at = range.start;
    for extent in extents {
        let start = extent.logical.max(at);
        let end = extent.logical.saturating_add(extent.length).min(range.end);
        if start >= end {
            continue;
        }
        if start > at {
            found.push(start, None);
        }
        let is_shared = extent.flags & FIEMAP_EXTENT_SHARED != 0 && extent.flags & NO_PLAIN_BYTES == 0;
        found.push(end, is_shared.then(|| extent.physical.saturating_add(start - extent.logical)));
        at = end;
    }
    let whole =
        extents.len() < EXTENTS || extents.iter().any(|extent| extent.flags & FIEMAP_EXTENT_LAST != 0);
    if whole && at < range.end {
        found.push(range.end, None);
    }
    Ok(found)
}

/// The extents of the first part of a range.
fn ask(file: &File, range: &Range<u64>, flags: u32) -> io::Result<Request> {
    let length = range.end - range.start;
    let mut request =
        Request { start: range.start, length, flags, count: EXTENTS as u32, ..Request::default() };
    // SAFETY: the descriptor is open for as long as `file` is borrowed; the request is valid, exclusively
    // borrowed, and has room for as many extents as it says.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP, &raw mut request) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(request) }
}

/// The first part of a range that has blocks which were written, as far as the file system has allocated them.
pub(crate) fn first_written(file: &File, range: Range<u64>) -> io::Result<Option<Range<u64>>> {
    let mut at = range.start;
    while at < range.end {
        let request = ask(file, &(at..range.end), 0)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_found_by_offset() {
        let mut extents = Extents { parts: Vec::new(), start: 100 };
        for (end, place) in [(200, None), (300, None), (400, Some(7000)), (500, Some(9000))] {
            extents.push(end, place);
        }
        assert_eq!(extents.parts.len(), 3);
        for (offset, found) in [
            (99, None),
            (100, Some((None, 300))),
            (299, Some((None, 300))),
            (300, Some((Some(7000), 400))),
            (399, Some((Some(7099), 400))),
            (410, Some((Some(9010), 500))),
            (500, None),
        ] {
            assert_eq!(extents.at(offset), found, "{offset}");
        }
    }
}
