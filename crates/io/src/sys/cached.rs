//! What the page cache has.

use std::fs::File;
use std::io::IoSliceMut;
use std::ops::Range;
use std::os::fd::AsRawFd;

use rustix::io::{ReadWriteFlags, preadv2};

/// Reads what is in the page cache; `false`: not all of it is, and the buffer has anything. The kernel may read ahead then.
pub(crate) fn read_cached(file: &File, offset: u64, buffer: &mut [u8]) -> bool {
    let length = buffer.len();
    let read = preadv2(file, &mut [IoSliceMut::new(buffer)], offset, ReadWriteFlags::NOWAIT);
    read.is_ok_and(|read| read == length)
}

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
