//! The image graph and the operations on it, one file each.

pub(crate) mod add;
pub(crate) mod busy;
pub(crate) mod chain;
pub(crate) mod clean;
pub(crate) mod difference;
pub(crate) mod export;
pub(crate) mod fill;
pub(crate) mod import;
pub(crate) mod in_place;
pub(crate) mod lease;
pub(crate) mod look;
pub(crate) mod manifest;
pub(crate) mod mend;
pub(crate) mod merge;
pub(crate) mod mirror;
pub(crate) mod pin;
pub(crate) mod remove;
pub(crate) mod replace;
pub(crate) mod resize;
pub(crate) mod search;
pub(crate) mod switch;
pub(crate) mod view;

use std::time::Duration;

use crate::id::ImageId;
use crate::repo::Repo;
use crate::repository::Guard;
use crate::{Error, ErrorKind, Result, machine};

/// How long a call waits for another call on the same image to end.
const CALL_PATIENCE: Duration = Duration::from_secs(2);

/// Takes the lock that orders operations on an image; calls are short, so others are waited for, but not for long.
pub(crate) fn lock_image(repo: &Repo, id: ImageId) -> Result<Box<dyn Guard>> {
    let deadline = machine::now() + CALL_PATIENCE;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(guard) = repo.driver.lock_image(id)? {
            return Ok(guard);
        }
        if machine::now() >= deadline {
            return Err(busy::busy(repo, id));
        }
        machine::pause(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Takes the lock of an image while others are held: at once or not at all.
pub(crate) fn try_lock(repo: &Repo, id: ImageId) -> Result<Box<dyn Guard>> {
    let guard = repo.driver.lock_image(id)?;
    guard.ok_or_else(|| busy::busy(repo, id))
}

/// The error for a size that the format refuses.
pub(crate) fn impossible_size(size: u64, error: vdsmstore_io::Error) -> Error {
    if error.kind() != vdsmstore_io::ErrorKind::InvalidInput {
        return error.into();
    }
    let message = format!("size {size} is more than a qcow2 volume can hold");
    Error::new(ErrorKind::InvalidSize, message).with("parameter", "size").because(error)
}

/// The error for an image that is in use.
pub(crate) fn in_use(repo: &Repo, id: ImageId, reason: &str) -> Error {
    let message = format!("image {id} in repository {:?} is in use: {reason}", repo.id);
    Error::new(ErrorKind::ImageInUse, message).with("imageId", id.to_string()).with("repoId", repo.id.clone())
}
