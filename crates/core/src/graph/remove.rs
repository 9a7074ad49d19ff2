//! Remove: one compare-and-set; everything else is left to clean.

use vdsmstore_io::without;

use crate::id::ImageId;
use crate::record::{ImageRecord, Kind, State};
use crate::repo::{Change, Repo};
use crate::repository::{Access, Read};
use crate::{ErrorKind, Result};

use super::look::{Now, View};
use super::{chain, clean, in_use, lease, lock_image, switch};

/// Makes the id vanish for callers. `open_here`: this store has it open.
pub(crate) fn remove(repo: &Repo, id: ImageId, open_here: bool) -> Result<()> {
    let record = repo.visible_image(id)?;
    if record.state == State::Pending {
        // Its lock is held for as long as it is being filled; the put alone ends that.
        return mark_removed(repo, id);
    }
    let _order = (!without!("remove.lock")).then(|| lock_image(repo, id)).transpose()?;
    let record = if without!("remove.reread") { record } else { repo.visible_image(id)? };
    if !without!("remove.lease") {
        lease::ensure_free(repo, &record)?;
    }
    if open_here {
        return Err(in_use(repo, id, "it is open in this process"));
    }
    let alone = repo.driver.lock_use(id, true)?;
    if alone.is_none() && !without!("remove.lock.use") {
        return Err(in_use(repo, id, "it is open for reading"));
    }
    if !without!("remove.lock.volume") {
        ensure_unused(repo, &record)?;
    }
    mark_removed(repo, id)?;
    if !record.freeze.is_empty() && !without!("remove.freeze") {
        // Its snapshots get its volume.
        switch::complete(repo, id)?;
    }
    Ok(())
}

/// Nobody may be writing it, no QEMU process may have it open. An image that others are built on may be read through
/// them.
fn ensure_unused(repo: &Repo, record: &ImageRecord) -> Result<()> {
    if record.kind != Kind::Disk && !repo.driver.children(record.id())?.is_empty() {
        return Ok(());
    }
    match chain::open_volume(repo, record.volume, Access::Write) {
        Err(error) if error.kind() == ErrorKind::ImageInUse => {
            // Snapshots of one moment share a volume: it may be read as that of another one.
            if record.kind != Kind::Disk && Now(repo, Read::Fresh).is_shared(record)? {
                return Ok(());
            }
            Err(error.context(format_args!("image {} in repository {:?}", record.id(), repo.id)))
        }
        _ => Ok(()),
    }
}

fn mark_removed(repo: &Repo, id: ImageId) -> Result<()> {
    let mut next = None;
    let removed = repo.update_image(id, |now| {
        if !now.visible() && !without!("remove.compare.visible") {
            return Err(repo.image_not_found(id));
        }
        if let Some(open) = lease::holder(repo, now)?.filter(|_| !without!("remove.compare.held")) {
            return Err(lease::held(repo, id, open));
        }
        now.state = State::Removed;
        now.open = None;
        // Nobody wants a better representation of it; who makes one stops at its next look.
        next = now.next.take();
        Ok(Change::Put)
    })?;
    removed.ok_or_else(|| repo.image_not_found(id))?;
    next.map_or(Ok(()), |next| clean::volume(repo, next))
}
