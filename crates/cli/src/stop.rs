//! `image stop`: a command that works on an image can be asked by another one of this machine to stop, in order.
//!
//! It listens on an abstract socket whose name says user, repository and image, and answers once the work has stopped.
//! The name is nobody's property, so both sides look who the other one is.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::thread::{self, JoinHandle};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::process::{Uid, getuid};
use vdsmstore_core::{Error, ErrorKind, Result, Store};

use crate::config::RepoSpec;
use crate::output::local;

/// What is answered.
const STOPPED: &[u8] = b"stopped\n";

/// Ends the listening when it is dropped.
#[derive(Debug)]
pub struct Offer {
    /// Closed, it wakes the thread that listens.
    end: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Offer {
    fn drop(&mut self) {
        self.end.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn address(user: Uid, spec: &RepoSpec, image: &str) -> Option<SocketAddr> {
    let mut hasher = DefaultHasher::new();
    let path = spec.parameters.get("path").and_then(serde_json::Value::as_str);
    match path.and_then(|path| fs::canonicalize(path).ok()) {
        Some(path) => path.hash(&mut hasher),
        None => serde_json::Value::Object(spec.parameters.clone()).to_string().hash(&mut hasher),
    }
    let name = format!("vdsmstore/{}/{:016x}/{}", user.as_raw(), hasher.finish(), image.to_lowercase());
    SocketAddr::from_abstract_name(name).ok()
}

/// Lets others stop what the store does with the image. None: another process does that already, or it cannot be.
pub fn offer(store: &Store, spec: &RepoSpec, image: &str) -> Option<Offer> {
    let listener = UnixListener::bind_addr(&address(getuid(), spec, image)?).ok()?;
    // Who asks may be gone again before it is accepted.
    listener.set_nonblocking(true).ok()?;
    let (end, until) = UnixStream::pair().ok()?;
    let store = store.clone();
    let (repo, image) = (spec.name.clone(), image.to_owned());
    let thread = thread::spawn(move || {
        loop {
            let mut ready = [PollFd::new(&listener, PollFlags::IN), PollFd::new(&until, PollFlags::IN)];
            match poll(&mut ready, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return,
            }
            if !ready[1].revents().is_empty() {
                return;
            }
            if ready[0].revents().is_empty() {
                continue;
            }
            if let Ok((mut peer, _)) = listener.accept()
                && is_from(&peer, &[getuid(), Uid::ROOT])
                && store.stop_image_task(&repo, &image).is_ok()
            {
                let _ = peer.write_all(STOPPED);
            }
        }
    });
    Some(Offer { end: Some(end), thread: Some(thread) })
}

fn is_from(peer: &UnixStream, users: &[Uid]) -> bool {
    socket_peercred(peer).is_ok_and(|peer| users.contains(&peer.uid))
}

/// Asks whoever works on the image to stop, and waits until that has happened. False: nobody does.
pub fn ask(spec: &RepoSpec, image: &str) -> Result<bool> {
    let Some(address) = address(getuid(), spec, image) else { return Ok(false) };
    let Ok(mut peer) = UnixStream::connect_addr(&address) else { return Ok(false) };
    if !is_from(&peer, &[getuid()]) {
        return Ok(false);
    }
    let mut answer = Vec::new();
    peer.read_to_end(&mut answer).map_err(|error| local("the process that works on it", error))?;
    if answer != STOPPED {
        let message = format!("the process that works on image {image} has not said that it stopped");
        return Err(Error::new(ErrorKind::Timeout, message).with("imageId", image));
    }
    Ok(true)
}
