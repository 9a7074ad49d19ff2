//! What the page cache has.

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;

/// Whether all of a range is in the page cache. It is asked without a read, since a read that must not wait
/// (`RWF_NOWAIT`) makes the kernel read ahead. `false`, too, if it cannot be told.
pub(crate) fn is_cached(file: &File, range: Range<u64>) -> bool {
    let page = rustix::param::page_size() as u64;
    let start = range.start - range.start % page;
    let (Ok(offset), Ok(length)) = (i64::try_from(start), usize::try_from(range.end - start)) else {
        return false;
    };
    if length == 0 {
        return true;
    }
    let mut pages = vec![0u8; length.div_ceil(page as usize)];
    // SAFETY: a new mapping, at an address that the kernel chooses. It is never read or written.
    let address = unsafe {
        libc::mmap(std::ptr::null_mut(), length, libc::PROT_NONE, libc::MAP_SHARED, file.as_raw_fd(), offset)
    };
    if address == libc::MAP_FAILED {
        return false;
    }
    // SAFETY: the mapping is there, and there is a byte for each of its pages.
    let told = unsafe { libc::mincore(address, length, pages.as_mut_ptr()) } == 0;
    // SAFETY: it is the mapping that was made above, and nobody has its address.
    unsafe { libc::munmap(address, length) };
    told && pages.iter().all(|page| page & 1 == 1)
}
