//! The same requests by threads.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use super::{Done, Request, Way};

/// As many requests are under way.
const THREADS: usize = 8;

#[derive(Debug)]
pub(super) struct Threads {
    /// None: no more come.
    work: Option<Sender<Request>>,
    ended: Receiver<Done>,
    workers: Vec<JoinHandle<()>>,
}

impl Threads {
    pub fn new() -> io::Result<Threads> {
        let (work, taken) = channel::<Request>();
        let (done, ended) = channel();
        let taken = Arc::new(Mutex::new(taken));
        let mut workers = Vec::new();
        for _ in 0..THREADS {
            let (taken, done) = (Arc::clone(&taken), done.clone());
            workers.push(std::thread::Builder::new().name("direct".into()).spawn(move || {
                loop {
                    let next = taken.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(request) = next else { return };
                    let moved = work_off(&request);
                    if done.send(Done { token: request.token, moved }).is_err() {
                        return;
                    }
                }
            })?);
        }
        Ok(Threads { work: Some(work), ended, workers })
    }

    pub fn start(&mut self, request: Request) -> io::Result<()> {
        let sent = self.work.as_ref().map(|work| work.send(request));
        if matches!(sent, Some(Ok(()))) { Ok(()) } else { Err(io::Error::other("the threads have ended")) }
    }

    pub fn wait(&mut self) -> io::Result<Done> {
        self.ended.recv().map_err(io::Error::other)
    }
}

fn work_off(request: &Request) -> io::Result<u32> {
    let Request { way, descriptor, offset, memory, length, .. } = *request;
    let offset = i64::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    loop {
        // SAFETY: the file is open for as long as the queue is there; the memory is the queue's, which lends it to nobody before
        // this request has ended.
        let moved = unsafe {
            match way {
                Way::Read => libc::pread(descriptor, memory.cast(), length as usize, offset),
                Way::Write => libc::pwrite(descriptor, memory.cast_const().cast(), length as usize, offset),
            }
        };
        if let Ok(moved) = u32::try_from(moved) {
            return Ok(moved);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // What was handed out is worked off, then they end.
        self.work = None;
        for thread in self.workers.drain(..) {
            let _ = thread.join();
        }
    }
}
