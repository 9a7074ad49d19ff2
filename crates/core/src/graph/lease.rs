//! Who may write a disk: the durable field `open`, and the proof that a former holder is gone.

use vdsmstore_io::without;

use crate::id::{ImageId, Token};
use crate::record::{ImageRecord, Kind, Open, OpenMode, State};
use crate::repo::{Change, Repo};
use crate::repository::{Access, Liveness};
use crate::{Error, ErrorKind, Result, machine};

use super::chain::{self, OpenChain};
use super::{add, in_place, in_use, lock_image, switch};

/// Whether somebody holds the image, as far as the records and the storage show; a holder that is gone does not count.
pub(crate) fn holder<'a>(repo: &Repo, image: &'a ImageRecord) -> Result<Option<&'a Open>> {
    let Some(open) = &image.open else { return Ok(None) };
    let host = repo.driver.host();
    if open.incarnation == host.incarnation {
        return Ok(Some(open));
    }
    let held = match open.mode {
        // Bound to the store: its death ends it.
        OpenMode::Io => repo.driver.liveness(open.incarnation)? != Liveness::CertainlyDead,
        // Bound to the boot of the machine: the store may be gone, the program that it prepared for not.
        OpenMode::Prepare => {
            open.boot == host.boot_id || repo.driver.liveness(open.incarnation)? != Liveness::CertainlyDead
        }
    };
    Ok((held && !without!("lease.compare.alive")).then_some(open))
}

/// Whether somebody holds it; what a store that died has left in the record does not count.
pub(crate) fn is_held(repo: &Repo, image: &ImageRecord) -> Result<bool> {
    Ok(holder(repo, image)?.is_some())
}

/// The error for an image that `open` holds.
pub(crate) fn held(repo: &Repo, id: ImageId, open: &Open) -> Error {
    let how = match open.mode {
        OpenMode::Io => "open",
        OpenMode::Prepare => "prepared",
    };
    in_use(repo, id, &format!("it is {how} on host {:?}", open.host)).with("host", open.host.clone())
}

/// Fails if somebody may be writing the disk.
pub(crate) fn ensure_free(repo: &Repo, image: &ImageRecord) -> Result<()> {
    match holder(repo, image)? {
        _ if without!("lease.free") => Ok(()),
        None => Ok(()),
        Some(open) => Err(held(repo, image.id(), open)),
    }
}

/// Whether somebody may be writing the disk: a holder, or a QEMU process that nobody prepared it for.
pub(crate) fn is_written(repo: &Repo, image: &ImageRecord) -> Result<bool> {
    let by_qemu = || Ok(!without!("lease.look.qemu") && repo.driver.qemu_use(image.volume)?.writing);
    if holder(repo, image)?.is_some() { Ok(true) } else { by_qemu() }
}

/// Takes a disk for writing: what is to be frozen is frozen first, a replacement under way is dropped, the volume is
/// locked, and the record gets the holder and a new token in one put.
pub(crate) fn take(repo: &Repo, id: ImageId, mode: OpenMode) -> Result<OpenChain> {
    let _order = (!without!("lease.lock")).then(|| lock_image(repo, id)).transpose()?;
    let mut image = repo.visible_image(id)?;
    if image.kind != Kind::Disk {
        let message = format!("image {id} in repository {:?} is a snapshot and cannot be written", repo.id);
        return Err(Error::new(ErrorKind::ReadOnlyImage, message).with("imageId", id.to_string()));
    }
    let host = repo.driver.host().clone();
    if let Some(open) = holder(repo, &image)? {
        // What this host prepared it may prepare again: the process that did is gone, or its lock refuses below.
        let again = mode == OpenMode::Prepare
            && open.mode == mode
            && open.host == host.host_id
            && open.boot == host.boot_id;
        if !again && !without!("lease.compare.holder") {
            return Err(held(repo, id, open));
        }
    }
    if !image.freeze.is_empty() && !without!("lease.freeze") {
        switch::complete(repo, id)?;
        image = repo.visible_image(id)?;
    }
    if image.next.is_some() && !without!("lease.next") {
        drop_next(repo, id)?;
    }
    let access = match mode {
        OpenMode::Io => Access::Write,
        OpenMode::Prepare => Access::Lease,
    };
    let mut opened = chain::open(repo, id, access)?;
    in_place::ensure_mine(repo, &opened.chain.top().volume)?;
    let open = Open {
        host: host.host_id,
        incarnation: host.incarnation,
        boot: host.boot_id,
        mode,
        since: machine::date(),
    };
    let volume = opened.chain.top().volume.id();
    let mut hashes = None;
    let taken = repo.update_image(id, |now| {
        if now.volume != volume && !without!("lease.compare.volume")
            || !now.freeze.is_empty() && !without!("lease.compare.freeze")
            || now.state != State::Live && !without!("lease.compare.state")
            // Should the locks have been a lie: a replacement that was begun since would lack what is written here.
            || now.next.is_some() && !without!("lease.compare.next")
            // Or another host took it since.
            || now.open != image.open && !without!("lease.compare.open")
        {
            return Err(in_use(repo, id, "another operation on it is under way"));
        }
        now.open = Some(open.clone());
        if !without!("lease.token") {
            now.token = Token::random();
        }
        // They are of what it was.
        if !without!("lease.hashes") {
            hashes = now.manifest.take();
        }
        Ok(if without!("lease.claim") { Change::Put } else { Change::Claim })
    })?;
    opened.chain.links[0].image = taken.ok_or_else(|| repo.image_not_found(id))?;
    add::drop_blob(repo, id, hashes.map(|hashes| hashes.blob));
    // Flag, then look: who writes into the volume without holding the image looks at the holder after.
    if let Err(error) = in_place::look(repo, volume) {
        release(repo, id)?;
        return Err(error);
    }
    Ok(opened)
}

/// Gives up a replacement that is being made: writing comes first.
pub(crate) fn drop_next(repo: &Repo, id: ImageId) -> Result<()> {
    let mut dropped = None;
    repo.update_image(id, |now| {
        dropped = now.next.take();
        Ok(if dropped.is_some() { Change::Put } else { Change::Keep })
    })?;
    if let Some(volume) = dropped {
        super::clean::volume(repo, volume)?;
    }
    Ok(())
}

/// Gives a disk back, if this store holds it.
pub(crate) fn release(repo: &Repo, id: ImageId) -> Result<()> {
    let me = repo.driver.host().incarnation;
    clear(repo, id, |open| open.incarnation == me)
}

/// Clears the holder, if `wanted` says so of it.
pub(crate) fn clear(repo: &Repo, id: ImageId, wanted: impl Fn(&Open) -> bool) -> Result<()> {
    repo.update_image(id, |now| {
        if now.open.as_ref().is_some_and(|open| wanted(open) || without!("lease.compare.clear")) {
            now.open = None;
            return Ok(Change::Put);
        }
        Ok(Change::Keep)
    })?;
    Ok(())
}
