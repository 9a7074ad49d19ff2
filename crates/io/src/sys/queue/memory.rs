//! Memory that direct I/O takes: aligned to pages, where it is until it is given back.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::io;
use std::ptr::NonNull;

/// No device wants more.
pub(super) const ALIGNMENT: usize = 4096;

#[derive(Debug)]
pub(super) struct Memory {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: it is memory like a `Box<[u8]>`: whoever has the value has the bytes.
unsafe impl Send for Memory {}

impl Memory {
    pub fn new(length: usize) -> io::Result<Memory> {
        let layout = Layout::from_size_align(length.max(ALIGNMENT), ALIGNMENT).map_err(io::Error::other)?;
        // SAFETY: the layout is not empty.
        let start = unsafe { alloc_zeroed(layout) };
        let start = NonNull::new(start).ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        Ok(Memory { start, layout })
    }

    pub fn len(&self) -> usize {
        self.layout.size()
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
        // SAFETY: it was allocated with this layout; `Queue` drops it when all requests have ended.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}
