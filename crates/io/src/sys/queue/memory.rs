//! Memory that direct I/O takes: aligned to pages, where it is until it is given back.

use std::io;
use std::ptr::NonNull;

/// No device wants more.
pub(super) const ALIGNMENT: usize = 4096;
/// Of a large page: with them, what the processor has to look up and the kernel to pin is 512 times less.
const LARGE_PAGE: usize = 2 << 20;

#[derive(Debug)]
pub(super) struct Memory {
    start: NonNull<u8>,
    length: usize,
    /// What is mapped: somewhat more, so that it can begin with a large page.
    mapped: (NonNull<u8>, usize),
}

// SAFETY: it is memory like a `Box<[u8]>`: whoever has the value has the bytes.
unsafe impl Send for Memory {}

impl Memory {
    /// Bytes that are 0, in large pages if there are any.
    pub fn new(length: usize) -> io::Result<Memory> {
        let length = length.max(ALIGNMENT);
        let all = length.checked_add(LARGE_PAGE).ok_or(io::ErrorKind::InvalidInput)?;
        let (access, how) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping of no file, at an address that the kernel chooses.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), all, access, how, -1, 0) };
        let mapped = NonNull::new(address.cast::<u8>()).filter(|_| address != libc::MAP_FAILED);
        let mapped = mapped.ok_or_else(io::Error::last_os_error)?;
        let skipped = mapped.as_ptr().align_offset(LARGE_PAGE).min(LARGE_PAGE);
        // SAFETY: that many bytes more were mapped.
        let start = unsafe { mapped.add(skipped) };
        // SAFETY: the mapping is there. Whether the kernel follows the advice does not matter.
        unsafe { libc::madvise(start.as_ptr().cast(), length, libc::MADV_HUGEPAGE) };
        Ok(Memory { start, length, mapped: (mapped, all) })
    }

    pub fn len(&self) -> usize {
        self.length
    }

    /// The address of a byte, which must be inside.
    pub fn at(&self, offset: usize) -> *mut u8 {
        assert!(offset < self.len());
        // SAFETY: it is inside, as was just seen.
        unsafe { self.start.as_ptr().add(offset) }
    }

    /// Bytes of it. The caller knows that no request writes them.
    pub fn part(&self, offset: usize, length: usize) -> &[u8] {
        assert!(length <= self.len() && offset <= self.len() - length);
        // SAFETY: it is inside, initialised from the beginning on, and borrowed like `self`; `Queue` lends no slot in which a
        // request is under way.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().add(offset), length) }
    }

    /// The same, to be changed.
    pub fn part_mut(&mut self, offset: usize, length: usize) -> &mut [u8] {
        assert!(length <= self.len() && offset <= self.len() - length);
        // SAFETY: as above, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().add(offset), length) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: it is the mapping that was made above; `Queue` drops it when all requests have ended.
        unsafe { libc::munmap(self.mapped.0.as_ptr().cast(), self.mapped.1) };
    }
}
