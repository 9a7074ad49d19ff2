//! Requests by io_uring.

use std::collections::VecDeque;
use std::io;

use io_uring::{IoUring, opcode, squeue, types};

use super::{Done, Request, Way};

pub(super) struct Ring {
    queues: IoUring,
    /// By slot: whether the kernel knows its memory, and need not look it up for each request; none, before its first request. So
    /// a small job has no memory pinned that it does not need.
    registered: Vec<Option<bool>>,
    /// Put into the submission queue, and not yet handed over: requests, and their bytes.
    waiting: usize,
    bytes: u64,
    ended: VecDeque<Done>,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("waiting", &self.waiting).finish_non_exhaustive()
    }
}

impl Ring {
    pub fn new(depth: u32, slots: u32) -> io::Result<Ring> {
        let queues = IoUring::new(depth)?;
        // Older kernels cannot have them one by one: requests go without.
        let known = queues.submitter().register_buffers_sparse(slots).is_ok();
        let registered = vec![(!known).then_some(false); slots as usize];
        Ok(Ring { queues, registered, waiting: 0, bytes: 0, ended: VecDeque::new() })
    }

    /// Whether the kernel knows the memory of a slot, which is told now if that was not done.
    fn knows(&mut self, slot: u16, memory: libc::iovec) -> bool {
        let Some(known) = self.registered.get_mut(usize::from(slot)) else { return false };
        *known.get_or_insert_with(|| {
            // SAFETY: the memory stays for as long as any request is under way in it. Should the limit of locked memory forbid it,
            // requests go without.
            unsafe { self.queues.submitter().register_buffers_update(u32::from(slot), &[memory], None) }
                .is_ok()
        })
    }

    fn entry(&mut self, request: &Request, slot: u16, whole: libc::iovec) -> squeue::Entry {
        let Request { way, descriptor, offset, memory, length, token } = *request;
        let file = types::Fd(descriptor);
        let entry = match (way, self.knows(slot, whole)) {
            (Way::Read, true) => opcode::ReadFixed::new(file, memory, length, slot).offset(offset).build(),
            (Way::Read, false) => opcode::Read::new(file, memory, length).offset(offset).build(),
            (Way::Write, true) => opcode::WriteFixed::new(file, memory, length, slot).offset(offset).build(),
            (Way::Write, false) => opcode::Write::new(file, memory, length).offset(offset).build(),
        };
        entry.user_data(token)
    }

    /// Starts a request in a part of a slot, all of whose memory is `whole`.
    pub fn start(&mut self, request: Request, slot: u16, whole: libc::iovec) -> io::Result<()> {
        let entry = self.entry(&request, slot, whole);
        loop {
            // SAFETY: the memory is the queue's, which waits for this request before it lends or frees it; the file is open for
            // as long as the queue is there.
            if unsafe { self.queues.submission().push(&entry) }.is_ok() {
                self.waiting += 1;
                self.bytes += u64::from(request.length);
                return Ok(());
            }
            self.submit()?;
        }
    }

    /// Hands over what is waiting, if that is so many bytes.
    pub fn submit_much(&mut self, bytes: u64) -> io::Result<()> {
        if self.bytes >= bytes { self.submit() } else { Ok(()) }
    }

    fn submit(&mut self) -> io::Result<()> {
        while self.waiting > 0 {
            match self.queues.submit() {
                Ok(taken) => self.handed_over(taken),
                Err(error) if is_passing(&error) => self.collect(),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn handed_over(&mut self, requests: usize) {
        self.waiting -= requests.min(self.waiting);
        if self.waiting == 0 {
            self.bytes = 0;
        }
    }

    fn collect(&mut self) {
        for entry in self.queues.completion() {
            let result = entry.result();
            let moved = u32::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result));
            self.ended.push_back(Done { token: entry.user_data(), moved });
        }
    }

    pub fn wait(&mut self) -> io::Result<Done> {
        loop {
            if let Some(done) = self.ended.pop_front() {
                return Ok(done);
            }
            self.collect();
            if self.ended.is_empty() {
                match self.queues.submit_and_wait(1) {
                    Ok(taken) => self.handed_over(taken),
                    Err(error) if is_passing(&error) => {}
                    Err(error) => return Err(error),
                }
            }
        }
    }
}

/// Interrupted, or short of something that what is under way will give back.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN))
}
