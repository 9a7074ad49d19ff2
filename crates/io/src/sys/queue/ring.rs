//! Requests by io_uring.

use std::collections::VecDeque;
use std::io;

use io_uring::{IoUring, opcode, squeue, types};

use super::memory::Memory;
use super::{Done, Request, Way};

pub(super) struct Ring {
    queues: IoUring,
    /// The kernel knows the memory already, and need not look it up for each request.
    registered: bool,
    /// Put into the submission queue, and not yet handed over.
    waiting: usize,
    ended: VecDeque<Done>,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("registered", &self.registered).finish_non_exhaustive()
    }
}

impl Ring {
    pub fn new(depth: u32, memory: &Memory) -> io::Result<Ring> {
        let queues = IoUring::new(depth)?;
        let buffer = libc::iovec { iov_base: memory.at(0).cast(), iov_len: memory.len() };
        // SAFETY: the memory stays for as long as any request is under way in it. Should the limit of locked memory forbid it, requests go
        // without.
        let registered = unsafe { queues.submitter().register_buffers(&[buffer]) }.is_ok();
        Ok(Ring { queues, registered, waiting: 0, ended: VecDeque::new() })
    }

    fn entry(&self, request: &Request) -> squeue::Entry {
        let Request { way, descriptor, offset, memory, length, token } = *request;
        let file = types::Fd(descriptor);
        let entry = match (way, self.registered) {
            (Way::Read, true) => opcode::ReadFixed::new(file, memory, length, 0).offset(offset).build(),
            (Way::Read, false) => opcode::Read::new(file, memory, length).offset(offset).build(),
            (Way::Write, true) => opcode::WriteFixed::new(file, memory, length, 0).offset(offset).build(),
            (Way::Write, false) => opcode::Write::new(file, memory, length).offset(offset).build(),
        };
        entry.user_data(token)
    }

    pub fn start(&mut self, request: Request) -> io::Result<()> {
        let entry = self.entry(&request);
        loop {
            // SAFETY: the memory is the queue's, which waits for this request before it lends or frees it; the file is open for
            // as long as the queue is there.
            if unsafe { self.queues.submission().push(&entry) }.is_ok() {
                self.waiting += 1;
                return Ok(());
            }
            self.submit()?;
        }
    }

    pub fn submit(&mut self) -> io::Result<()> {
        while self.waiting > 0 {
            match self.queues.submit() {
                Ok(taken) => self.waiting -= taken.min(self.waiting),
                Err(error) if is_passing(&error) => self.collect(),
                Err(error) => return Err(error),
            }
        }
        Ok(())
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
                    Ok(taken) => self.waiting -= taken.min(self.waiting),
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
