//! Requests past the page cache, many at a time: by io_uring, or where that is forbidden by threads.

mod memory;
mod ring;
mod threads;

use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::os::fd::AsRawFd;

use memory::Memory;
use ring::Ring;
use threads::Threads;

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// From the file into memory.
    Read,
    /// From memory into the file.
    Write,
}

/// A request that has ended.
#[derive(Debug)]
pub(crate) struct Done {
    /// What was given with the request.
    pub token: u64,
    /// Bytes that it moved, maybe fewer than were asked for.
    pub moved: io::Result<u32>,
}

/// A request, with a part of the memory that stays where it is until the request has ended.
#[derive(Clone, Copy, Debug)]
struct Request {
    way: Way,
    descriptor: libc::c_int,
    offset: u64,
    /// Where the bytes begin; the memory belongs to the queue, and outlives the request.
    memory: *mut u8,
    length: u32,
    token: u64,
}

// SAFETY: the pointer is into memory that nobody else reads or writes before the request has ended (`Queue::start`).
unsafe impl Send for Request {}

#[derive(Debug)]
enum Means {
    Ring(Box<Ring>),
    Threads(Threads),
}

/// Which means a queue has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// io_uring, or threads where it is forbidden.
    Any,
    /// Threads.
    Threads,
}

/// A queue of requests, and slots of memory that they read and write. When it is dropped, it waits for what is under way.
#[derive(Debug)]
pub(crate) struct Queue<'a> {
    means: Means,
    /// Given back when all requests have ended.
    memory: ManuallyDrop<Memory>,
    /// Where each slot is in it.
    slots: Vec<Range<usize>>,
    /// Requests under way, by slot.
    busy: Vec<u32>,
    under_way: usize,
    /// What it works on stays open for as long as it is there.
    files: PhantomData<&'a File>,
}

impl<'a> Queue<'a> {
    /// A queue with slots of these sizes, which are multiples of a page, for about `depth` requests at a time.
    pub fn new(kind: Kind, sizes: &[usize], depth: u32) -> io::Result<Queue<'a>> {
        let mut slots = Vec::with_capacity(sizes.len());
        let mut end = 0;
        for size in sizes {
            slots.push(end..end + size);
            end += size;
        }
        let memory = Memory::new(end)?;
        let ring = if kind == Kind::Any { Ring::new(depth, slots.len() as u32).ok() } else { None };
        let means = match ring {
            Some(ring) => Means::Ring(Box::new(ring)),
            None => Means::Threads(Threads::new()?),
        };
        let memory = ManuallyDrop::new(memory);
        Ok(Queue { means, memory, slots, busy: vec![0; sizes.len()], under_way: 0, files: PhantomData })
    }

    /// Waits for what is under way; then it has no more to do with any file. None: that could not be waited for.
    pub fn rest(mut self) -> Option<Queue<'static>> {
        self.drain().ok()?;
        // SAFETY: only the lifetime changes. It says how long the files of requests are open, and there are none: nothing is under
        // way, and neither means remembers a file.
        Some(unsafe { std::mem::transmute::<Queue<'a>, Queue<'static>>(self) })
    }

    fn drain(&mut self) -> io::Result<()> {
        while self.under_way > 0 {
            self.wait(|_| usize::MAX)?;
        }
        self.busy.fill(0);
        Ok(())
    }

    /// How many slots there are.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// The size of a slot in bytes.
    pub fn size(&self, slot: usize) -> usize {
        self.slots.get(slot).map_or(0, Range::len)
    }

    /// The bytes of a slot. None, while a request is under way in it.
    pub fn bytes(&self, slot: usize) -> Option<&[u8]> {
        if self.busy.get(slot).is_none_or(|busy| *busy > 0) {
            return None;
        }
        self.slots.get(slot).map(|place| self.memory.part(place.start, place.len()))
    }

    /// The same, to be changed.
    pub fn bytes_mut(&mut self, slot: usize) -> Option<&mut [u8]> {
        if self.busy.get(slot).is_none_or(|busy| *busy > 0) {
            return None;
        }
        let place = self.slots.get(slot)?;
        Some(self.memory.part_mut(place.start, place.len()))
    }

    /// Starts a request for a part of a slot; several requests of one slot must be for different parts of it.
    pub fn start(
        &mut self,
        way: Way,
        file: &'a File,
        offset: u64,
        slot: usize,
        part: Range<usize>,
        token: u64,
    ) -> io::Result<()> {
        let place = self.slots.get(slot).filter(|place| part.start < part.end && part.end <= place.len());
        let (Some(place), Ok(length), Ok(index)) = (place, u32::try_from(part.len()), u16::try_from(slot))
        else {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        };
        let memory = self.memory.at(place.start + part.start);
        let request = Request { way, descriptor: file.as_raw_fd(), offset, memory, length, token };
        match &mut self.means {
            Means::Ring(ring) => {
                let whole =
                    libc::iovec { iov_base: self.memory.at(place.start).cast(), iov_len: place.len() };
                ring.start(request, index, whole)?;
            }
            Means::Threads(threads) => threads.start(request)?,
        }
        self.busy[slot] += 1;
        self.under_way += 1;
        Ok(())
    }

    /// Hands what was started to the kernel, if that is so many bytes; the rest when it is waited for something. Of small requests
    /// that are handed over together the kernel joins those that lie side by side on the device.
    pub fn submit_much(&mut self, bytes: u64) -> io::Result<()> {
        match &mut self.means {
            Means::Ring(ring) => ring.submit_much(bytes),
            Means::Threads(_) => Ok(()),
        }
    }

    /// Waits for a request to end; `slot` says which slot a token is of. None: nothing is under way.
    pub fn wait(&mut self, slot: impl Fn(u64) -> usize) -> io::Result<Option<Done>> {
        if self.under_way == 0 {
            return Ok(None);
        }
        let done = match &mut self.means {
            Means::Ring(ring) => ring.wait()?,
            Means::Threads(threads) => threads.wait()?,
        };
        self.under_way -= 1;
        if let Some(busy) = self.busy.get_mut(slot(done.token)) {
            *busy = busy.saturating_sub(1);
        }
        Ok(Some(done))
    }
}

impl Drop for Queue<'_> {
    fn drop(&mut self) {
        if self.drain().is_err() {
            // It was never seen; memory that might still be written is not given back.
            return;
        }
        // SAFETY: this is the only place that drops it, and nothing is under way in it.
        unsafe { ManuallyDrop::drop(&mut self.memory) };
    }
}
