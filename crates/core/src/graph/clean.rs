//! Clean: tags, volumes, data objects and markers that nothing needs any more.
//!
//! "Flag, then look": a deleter flags its record first and looks for users after; a user announces itself first and
//! looks at the flag after. Whoever of the two comes second sees the other.

use vdsmstore_io::without;

use crate::id::{BlobId, ImageId, VolumeId};
use crate::record::{ImageRecord, Kind, State, VolumeRecord, VolumeState};
use crate::repo::{Change, Repo};
use crate::repository::{Access, Marker, Put, Read, RecordKey};
use crate::{Error, ErrorKind, Result};

use super::look::{Now, View};
use super::{mirror, switch};

/// Removes an image that nobody wants and nothing is built on, and what becomes unneeded by that.
pub(crate) fn image(repo: &Repo, id: ImageId) -> Result<()> {
    let mut next = Some(id);
    while let Some(id) = next.take() {
        let Some(record) = repo.image(id)? else { return Ok(()) };
        if !unwanted(&record) {
            return Ok(());
        }
        if !without!("clean.look.first") && in_demand(repo, id)? {
            return unflag(repo, &record);
        }
        let below =
            repo.volume(record.volume)?.and_then(|volume| volume.backing).map(|backing| backing.image);
        if !entomb(repo, &record)? {
            return Ok(());
        }
        next = below;
    }
    Ok(())
}

/// Removes what is left of an image that nobody was promised: one that was announced and never got a volume, a snapshot
/// that no disk is to be frozen as; or one that is removed anyway.
pub(crate) fn forsaken(repo: &Repo, seen: &ImageRecord) -> Result<()> {
    let id = seen.id();
    let mut was_pending = false;
    let removed = repo.update_image(id, |now| {
        // Who answers a repeated call with it claims it.
        let told = now.header.epoch != seen.header.epoch && !without!("clean.compare.told");
        was_pending = now.state == State::Pending && !told;
        if !was_pending {
            return Ok(Change::Keep);
        }
        now.state = State::Removed;
        Ok(Change::Put)
    })?;
    // Flag, then look: a disk that is to be frozen as it after all promises it. Who freezes looks at the flag after.
    if let Some(mut removed) = removed.filter(|_| was_pending)
        && !without!("clean.look.promised")
        && switch::disk_of(repo, &removed)?.is_some()
    {
        removed.state = State::Pending;
        return repo.replace(&mut removed).map(drop);
    }
    image(repo, id)
}

/// Forgets announcements of children that led to nothing.
pub(crate) fn stale_children(repo: &Repo, id: ImageId) -> Result<()> {
    in_demand(repo, id).map(drop)
}

/// Turns the tag into a tombstone, and lets go of what it had. False: something came to need it.
fn entomb(repo: &Repo, record: &ImageRecord) -> Result<bool> {
    let id = record.id();
    // Only its own: once it is buried, another image may get its id, and blobs before it has a record.
    let blobs = if repo.driver.blobs(id)?.is_empty() {
        Vec::new()
    } else {
        blobs_of(&Now(repo, Read::Fresh), record)?
    };
    let early = without!("clean.order.tombstone");
    if !early && !bury(repo, record)? {
        return Ok(false);
    }
    for volume_id in [Some(record.volume), record.next].into_iter().flatten() {
        repo.driver.unmark(Marker::Holder(volume_id, id))?;
        volume(repo, volume_id)?;
    }
    for blob in blobs {
        repo.driver.delete_blob(id, blob)?;
    }
    repo.driver.delete_progress(id)?;
    if early { bury(repo, record) } else { Ok(true) }
}

/// Removes a blob that no image names. It stays where the record of its image changes just now.
pub(crate) fn blob(repo: &Repo, owner: ImageId, blob: BlobId) -> Result<()> {
    let is_named =
        |image: &ImageRecord| Ok::<_, Error>(blobs_of(&Now(repo, Read::Fresh), image)?.contains(&blob));
    if let Some(mut image) = repo.image(owner)? {
        if is_named(&image)? && !without!("clean.compare.blob") {
            return Ok(());
        }
        // Who has stored it, and not named it yet, must get a conflict, so that it stores another.
        if without!("clean.fence.blob") || repo.replace(&mut image)? {
            repo.driver.delete_blob(owner, blob)?;
        }
        return Ok(());
    }
    // Its image may be announced right now by who lost its lock.
    let bytes = match repo.driver.get_blob(owner, blob) {
        // Whoever stored it took it back himself.
        Err(_) if !repo.driver.blobs(owner)?.contains(&blob) => return Ok(()),
        other => other?,
    };
    repo.driver.delete_blob(owner, blob)?;
    if let Some(image) = repo.image(owner)?
        && is_named(&image)?
        && !without!("clean.reread.blob")
    {
        repo.driver.put_blob(owner, blob, &bytes)?;
    }
    Ok(())
}

/// The blobs that the image and what it is to be filled from name.
pub(crate) fn blobs_of(view: &dyn View, record: &ImageRecord) -> Result<Vec<BlobId>> {
    let mut blobs: Vec<_> = record.user_data.iter().map(|data| data.blob).collect();
    blobs.extend(record.manifest.iter().map(|manifest| manifest.blob));
    for volume in [Some(record.volume), record.next].into_iter().flatten() {
        let Some(volume) = view.volume(volume)? else { continue };
        blobs.extend(volume.fill.and_then(|fill| fill.blob));
        blobs.extend(volume.manifest.map(|manifest| manifest.blob));
    }
    Ok(blobs)
}

fn unwanted(record: &ImageRecord) -> bool {
    matches!(record.state, State::Removed | State::Absorbed)
        || (record.kind == Kind::Hidden && record.state == State::Live)
}

/// Whether a volume is built on the image, and clears away announcements that led to nothing.
fn in_demand(repo: &Repo, id: ImageId) -> Result<bool> {
    let mut demand = false;
    for child in repo.driver.children(id)? {
        // Whoever is between marker and record must get a conflict, so that it starts again at the marker.
        let stale = match repo.volume(child)? {
            Some(volume) if volume.builds_on(id) => false,
            Some(_) if without!("clean.fence.other") => true,
            Some(volume) => repo.replace(&mut volume.clone())?,
            None if without!("clean.fence.unborn") => true,
            None => bury_unborn(repo, child)?,
        };
        demand |= !stale || !forget(repo, Marker::Child(id, child))?;
    }
    Ok(demand)
}

/// Removes a marker that was not borne out. False: it is by now, and stays. A host that lost its locks may get here late, when
/// what it read is long over.
pub(crate) fn forget(repo: &Repo, marker: Marker) -> Result<bool> {
    repo.driver.unmark(marker)?;
    if without!("clean.reread.marker") {
        return Ok(true);
    }
    let now = Now(repo, Read::Fresh);
    let borne_out = match marker {
        Marker::Child(image, volume) => now.builds_on(volume, image),
        Marker::Holder(volume, image) => now.holds(image, volume),
    };
    // What could not be read may need it.
    if !matches!(borne_out, Ok(false)) {
        repo.driver.mark(marker)?;
    }
    borne_out.map(|borne_out| !borne_out)
}

/// Takes the first generation of a volume record that was announced and never written. False: somebody wrote it.
fn bury_unborn(repo: &Repo, id: VolumeId) -> Result<bool> {
    for _ in 0..BURY_TRIES {
        match repo.driver.delete(RecordKey::Volume(id), 0)? {
            Put::Done(_) => return Ok(true),
            Put::Conflict => return Ok(false),
            // A record that is not seen may still come: only a tombstone that is known to be there is a fence.
            Put::Unknown if without!("clean.compare.unknown") => return Ok(true),
            Put::Unknown => {}
        }
    }
    Ok(false)
}

/// How often a burial is tried whose outcome the storage does not tell.
const BURY_TRIES: u32 = 3;

/// Makes a tombstone of the tag, unless something came to be built on it. False: it did, or somebody else changed it.
///
/// The flag keeps the record: should this host die between flag and look, whoever came to need the image still has it.
fn bury(repo: &Repo, record: &ImageRecord) -> Result<bool> {
    let mut flagged = record.clone();
    if flagged.state != State::Absorbed && !without!("clean.flag") {
        flagged.state = State::Absorbed;
        if !repo.replace(&mut flagged)? {
            return Ok(false);
        }
    }
    if !without!("clean.look") && in_demand(repo, record.id())? {
        unflag(repo, &flagged)?;
        return Ok(false);
    }
    repo.delete(&flagged)
}

/// Takes back the flag of a burial that was broken off.
fn unflag(repo: &Repo, flagged: &ImageRecord) -> Result<()> {
    if flagged.state != State::Absorbed || !flagged.absorbed_by.is_empty() {
        return Ok(());
    }
    let mut back = flagged.clone();
    back.state = if back.kind == Kind::Hidden { State::Live } else { State::Removed };
    // Who was faster did the same, or buried it.
    repo.replace(&mut back).map(drop)
}

/// Removes a volume that no image points at. One that is in use, or wanted, stays.
pub(crate) fn volume(repo: &Repo, id: VolumeId) -> Result<()> {
    let Some(record) = repo.volume(id)? else { return Ok(()) };
    if !without!("clean.look.first-holder") && is_held(repo, id)? {
        let doomed = record.state == VolumeState::Doomed && !without!("clean.restore");
        return if doomed { restore(repo, id) } else { Ok(()) };
    }
    let locked = match repo.driver.open_volume(id, Access::Write) {
        Ok(opened) => Some(opened),
        Err(error) if error.kind() == ErrorKind::ImageInUse && without!("clean.lock") => None,
        Err(error) if error.kind() == ErrorKind::ImageInUse => return Ok(()),
        // Never created, or deleted before a crash.
        Err(error) if error.kind() == ErrorKind::ImageBroken => None,
        Err(error) => return Err(error),
    };
    let doomed = repo.update_volume(id, |now| {
        if now.state == VolumeState::Doomed || without!("clean.flag.volume") {
            return Ok(Change::Keep);
        }
        now.state = VolumeState::Doomed;
        Ok(Change::Claim)
    })?;
    let Some(doomed) = doomed else { return Ok(()) };
    if !without!("clean.look.holder") && is_held(repo, id)?
        || !without!("clean.look.mirrors") && !mirrors_moved(repo, id, &doomed)?
    {
        return unflag_volume(repo, id);
    }
    let early = without!("clean.order.record");
    if early {
        repo.delete(&doomed)?;
    }
    let unmark = || -> Result<()> {
        for holder in repo.driver.holders(id)? {
            repo.driver.unmark(Marker::Holder(id, holder))?;
        }
        match &doomed.backing {
            Some(backing) => repo.driver.unmark(Marker::Child(backing.image, id)),
            None => Ok(()),
        }
    };
    if without!("clean.order.markers") {
        unmark()?;
    }
    match locked {
        Some(locked) => repo.driver.delete_volume(id, locked)?,
        None if without!("clean.flush.gone") => {}
        // Who deleted it may not have come to make that durable: it must not come back without its record.
        None => repo.driver.settle_deleted(id)?,
    }
    if !early && !repo.delete(&doomed)? {
        // Somebody wrote it, and needs the markers: a check finds it.
        return Ok(());
    }
    unmark()
}

/// Keeps a volume that an image came to point at before who was about to delete it looked, and died. One whose data object is
/// gone is beyond that.
fn restore(repo: &Repo, id: VolumeId) -> Result<()> {
    // Who lives, and is between flag and deletion, has the lock.
    let _locked = match repo.driver.open_volume(id, Access::Write) {
        Err(error) if matches!(error.kind(), ErrorKind::ImageInUse | ErrorKind::ImageBroken) => return Ok(()),
        opened => opened?,
    };
    unflag_volume(repo, id)
}

/// Takes back the flag of a deletion that was broken off.
fn unflag_volume(repo: &Repo, id: VolumeId) -> Result<()> {
    repo.update_volume(id, |now| {
        if now.state != VolumeState::Doomed {
            return Ok(Change::Keep);
        }
        // Only what is still to be filled says how.
        let filled = now.fill.is_none() && !without!("clean.compare.filled");
        now.state = if filled { VolumeState::Ready } else { VolumeState::Filling };
        Ok(Change::Put)
    })
    .map(drop)
}

/// Whether an image points at the volume.
fn is_held(repo: &Repo, id: VolumeId) -> Result<bool> {
    for holder in repo.driver.holders(id)? {
        match repo.image(holder)? {
            Some(image) if image.holds(id) => return Ok(true),
            _ => {}
        }
    }
    Ok(false)
}

/// Whether no header names the volume any more, the images that were on it being elsewhere now.
fn mirrors_moved(repo: &Repo, id: VolumeId, doomed: &VolumeRecord) -> Result<bool> {
    for holder in repo.driver.holders(doomed.id())? {
        for child in repo.driver.children(holder)? {
            if repo.volume(child)?.is_some_and(|volume| volume.mirror == Some(id))
                && !mirror::correct(repo, child)?
            {
                return Ok(false);
            }
        }
    }
    Ok(true)
}
