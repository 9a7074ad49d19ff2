//! Snapshots of disks: by a switch to an overlay, or by a clone where the storage can.
//!
//! The intent is in the disk's own record (`freeze`): every way to write the disk completes it first, so that the
//! moment of the snapshot is the moment of the intent.

use vdsmstore_io::without;

use crate::id::{ImageId, Token, VolumeId};
use crate::record::{Backing, Fill, How, ImageRecord, Kind, Source, State, VolumeFormat, VolumeRecord};
use crate::repo::{Change, Repo};
use crate::repository::{Access, CopyOnWrite, Marker, OpenVolume, Read};
use crate::{Error, ErrorKind, Result};

use super::add::{self, Intended, NewImage, NewVolume};
use super::chain::{self, MAX_DEPTH};
use super::fill::{create_qcow2, lay_out_clone, look_at_target};
use super::look::View;
use super::{clean, in_use, lease, manifest, merge, try_lock};

/// Records that `new` is to be a snapshot of the disk as it is now. The caller holds the disk's lock.
pub(crate) fn intend(repo: &Repo, disk: ImageId, new: &NewImage<'_>) -> Result<Intended> {
    let mut record = repo.visible_image(disk)?;
    if record.kind != Kind::Disk {
        let message = format!("image {disk} in repository {:?} is a snapshot, not a virtual disk", repo.id);
        return Err(Error::new(ErrorKind::NotADisk, message).with("imageId", disk.to_string()));
    }
    if !without!("switch.lease") {
        lease::ensure_free(repo, &record)?;
    }
    if let Some(taken) = repo.image(new.id)? {
        return Ok(Intended::Taken(taken));
    }
    if record.next.is_some() && !without!("switch.next") {
        lease::drop_next(repo, disk)?;
        record = repo.visible_image(disk)?;
    }
    let chain = chain::whole(repo, record.clone(), Read::Fresh)?;
    if chain.links.len() >= MAX_DEPTH {
        let message = format!(
            "image {disk} in repository {:?} is spread over {MAX_DEPTH} volumes already: merge some first",
            repo.id
        );
        return Err(Error::new(ErrorKind::TooManyVolumes, message).with("imageId", disk.to_string()));
    }
    // Nobody may be writing: neither a store nor a QEMU process.
    let access = if without!("switch.lock.volume") { Access::Moment } else { Access::Write };
    let _still = chain::open_volume(repo, record.volume, access)
        .map_err(|error| error.context(format_args!("image {disk} in repository {:?}", repo.id)))?;
    let volume = record.volume;
    let _new = (!without!("switch.lock.new")).then(|| try_lock(repo, new.id)).transpose()?;
    if !without!("switch.marker") {
        repo.driver.mark(Marker::Holder(volume, new.id))?;
    }
    // Only where the snapshot's record is known not to be there; left behind, the marker is garbage that a check finds.
    let unmark = || drop(repo.driver.unmark(Marker::Holder(volume, new.id)));
    let mut snapshot = add::pending(repo, new, volume).inspect_err(|_| unmark())?;
    snapshot.manifest = manifest::adopt(repo, &record, new.id).inspect_err(|_| unmark())?;
    if !repo.create(&mut snapshot)? {
        add::drop_blobs(repo, &snapshot);
        let taken = repo.image(new.id)?.ok_or_else(|| repo.image_not_found(new.id))?;
        return Ok(Intended::Taken(taken));
    }
    // Should the locks have been a lie, the marker was taken for left over.
    let announced = add::look_at_volume(repo, volume, new.id)
        .and_then(|()| add::look_at_blobs(repo, new, &snapshot, None));
    let freeze = |now: &mut ImageRecord| {
        if now.volume != volume && !without!("switch.compare.volume")
            || now.open != record.open && !without!("switch.compare.open")
            || now.state != State::Live && !without!("switch.compare.state")
        {
            return Err(in_use(repo, disk, "it changed meanwhile"));
        }
        if !now.freeze.contains(&new.id) {
            now.freeze.push(new.id);
        }
        // A merge that lost its locks before must not move the disk.
        Ok(Change::Claim)
    };
    match announced.and_then(|()| repo.update_image(disk, freeze)) {
        Ok(Some(_)) => match repo.image(new.id)? {
            _ if without!("switch.look.promised") => Ok(Intended::New(snapshot)),
            Some(now) if matches!(now.state, State::Pending | State::Live) => Ok(Intended::New(snapshot)),
            // Should the locks have been a lie: it was taken for forsaken before it was promised.
            _ => {
                unfreeze(repo, disk, new.id)?;
                Err(in_use(repo, new.id, "another host took it for left over"))
            }
        },
        other => {
            if repo.delete(&snapshot)? {
                add::drop_blobs(repo, &snapshot);
                unmark();
            }
            Err(other.err().unwrap_or_else(|| repo.image_not_found(disk)))
        }
    }
}

/// Takes back that the disk is to be frozen as this image.
pub(crate) fn unfreeze(repo: &Repo, disk: ImageId, id: ImageId) -> Result<()> {
    repo.update_image(disk, |now| {
        now.freeze.retain(|frozen| *frozen != id);
        Ok(Change::Put)
    })
    .map(drop)
}

/// Whether a snapshot of the disk can only be a clone of this moment, because somebody writes it.
pub(crate) fn needs_moment(repo: &Repo, disk: &ImageRecord) -> Result<bool> {
    Ok(disk.kind == Kind::Disk && repo.driver.clone_under_writer() && lease::is_written(repo, disk)?)
}

/// A snapshot of a disk that somebody writes: its moment is the clone, and it is complete when this returns. The caller
/// holds the disk's lock. Should the host die before, whoever mends it clones a later moment: the id was never returned.
pub(crate) fn take_moment(repo: &Repo, disk: &ImageRecord, new: &NewImage<'_>) -> Result<Intended> {
    let id = disk.id();
    let chain = chain::whole(repo, disk.clone(), Read::Fresh)?;
    let VolumeRecord { format, size, backing, .. } = chain.top().volume.clone();
    // The disk's token names bytes that go on changing.
    let new = NewImage { token: Token::random(), ..new.clone() };
    let source = Source { repo: repo.driver.repository_nonce(), image: id, token: new.token };
    let fill = Fill { source: Some(source), ..Fill::simple(How::Clone) };
    let volume = NewVolume { format, size, backing, fill: fill.clone(), partial: false };
    let intended = add::intend(repo, &new, volume)?;
    if let Intended::New(snapshot) = &intended {
        let cloned = (|| {
            let _order = (!without!("switch.lock.moment")).then(|| try_lock(repo, new.id)).transpose()?;
            let volume = repo.volume(snapshot.volume)?;
            let mut volume = volume.ok_or_else(|| add::displaced(repo, snapshot.volume))?;
            let opened = lay_out_clone(repo, &mut volume, &fill)?;
            if !without!("switch.flush.moment") {
                opened.device.flush()?;
            }
            add::seal(repo, new.id, &volume)
        })();
        if let Err(error) = cloned {
            add::undo(repo, snapshot);
            return Err(error);
        }
    }
    Ok(intended)
}

/// Does what the disk's `freeze` asks for. The caller holds the disk's lock. Safe to repeat from any point.
pub(crate) fn complete(repo: &Repo, disk: ImageId) -> Result<()> {
    let Some(record) = repo.image(disk)? else { return Ok(()) };
    let Some(first) = record.freeze.first() else { return Ok(()) };
    let volume_id = record.volume;
    let mut wanted = Vec::new();
    for id in &record.freeze {
        match repo.image(*id)? {
            Some(snapshot) if matches!(snapshot.state, State::Pending | State::Live) => wanted.push(snapshot),
            // Removed after it was live, and others were built on it before.
            Some(snapshot) if snapshot.can_back() && !repo.driver.children(*id)?.is_empty() => {
                wanted.push(snapshot);
            }
            // Removed before anybody needed it.
            _ => {}
        }
    }
    // A removed disk is not written any more: its volume becomes the snapshots', no overlay is needed.
    if wanted.is_empty() || record.state != State::Live {
        promote_all(repo, &wanted, volume_id)?;
        return clear_freeze(repo, &record);
    }
    let volume =
        repo.volume(volume_id)?.ok_or_else(|| chain::broken(repo, disk, "its volume has no record"))?;
    let access = if without!("switch.lock.frozen") { Access::Moment } else { Access::Write };
    let opened = chain::open_volume(repo, volume_id, access)
        .map_err(|error| error.context(format_args!("snapshot {first} of image {disk} in {:?}", repo.id)))?;
    if !without!("switch.flush.frozen") && access == Access::Write {
        opened.device.flush()?;
    }
    match repo.driver.copy_on_write() {
        CopyOnWrite::Reflink => {
            let early = without!("switch.order.freeze");
            if early {
                clear_freeze(repo, &record)?;
            }
            for snapshot in wanted.iter().filter(|snapshot| snapshot.volume == volume_id) {
                clone_for(repo, snapshot, &volume, &opened)?;
            }
            if !early {
                clear_freeze(repo, &record)?;
            }
        }
        CopyOnWrite::Overlay => {
            // Live before the switch, so that the disk is never built on an image that is not there; `freeze` keeps
            // the volume that both have unwritten.
            let late = without!("switch.order.promote");
            if !late {
                promote_all(repo, &wanted, volume_id)?;
            }
            overlay(repo, &record, &wanted, &volume)?;
            if late {
                promote_all(repo, &wanted, volume_id)?;
            }
            clean::forget(repo, Marker::Holder(volume_id, disk))?;
        }
    }
    Ok(())
}

fn promote_all(repo: &Repo, wanted: &[ImageRecord], volume: VolumeId) -> Result<()> {
    for snapshot in wanted.iter().filter(|image| image.volume == volume && image.state == State::Pending) {
        add::promote(repo, snapshot.id(), volume, None)?;
    }
    Ok(())
}

/// A new volume on top of the frozen one; the put that switches the disk to it is the seal.
fn overlay(repo: &Repo, disk: &ImageRecord, frozen: &[ImageRecord], volume: &VolumeRecord) -> Result<()> {
    let base = &frozen[0];
    let new = NewVolume {
        format: VolumeFormat::Qcow2,
        size: disk.size,
        backing: Some(Backing { image: base.id(), size: base.size }),
        fill: Fill::simple(How::Zero),
        partial: false,
    };
    let mut top = add::announce_volume(repo, new, disk.id())?;
    let opened = repo.driver.create_volume(top.id())?;
    create_qcow2(&*opened.device, &top, Some((volume.id(), volume.format)))?;
    top.mirror = Some(volume.id());
    add::ready(repo, &top)?;
    // Should the locks have been a lie: the snapshot may have been removed before it was seen that something is built on it.
    if !without!("switch.look.base")
        && let Err(error) = add::look(repo, base.id(), false)
    {
        drop(opened);
        add::withdraw_volume(repo, &top, disk.id());
        return Err(error);
    }
    let switched = repo.update_image(disk.id(), |now| {
        if now.volume == top.id() {
            return Ok(Change::Keep);
        }
        if now.volume != volume.id() && !without!("switch.compare.moved")
            || now.freeze != disk.freeze && !without!("switch.compare.freeze")
        {
            return Err(in_use(repo, disk.id(), "it changed meanwhile"));
        }
        now.volume = top.id();
        now.freeze.clear();
        remember_frozen(now, frozen);
        Ok(Change::Put)
    });
    let Ok(Some(switched)) = switched else {
        drop(opened);
        add::withdraw_volume(repo, &top, disk.id());
        return Err(switched.err().unwrap_or_else(|| repo.image_not_found(disk.id())));
    };
    // Should the locks have been a lie: it was taken for garbage before the disk pointed at it.
    if !without!("switch.look.overlay")
        && let Err(error) = add::look_at_volume(repo, top.id(), disk.id())
    {
        let back = ImageRecord { volume: volume.id(), freeze: disk.freeze.clone(), ..switched };
        return step_back(repo, back, &top, opened, error);
    }
    Ok(())
}

/// Points an image again at the frozen volume that it was on, unless somebody changed its record since: who took the disk
/// has seen the new volume, which then stays.
fn step_back(
    repo: &Repo,
    mut back: ImageRecord,
    new: &VolumeRecord,
    opened: OpenVolume,
    error: Error,
) -> Result<()> {
    if repo.replace(&mut back)? {
        drop(opened);
        add::withdraw_volume(repo, new, back.id());
    }
    Err(error)
}

/// A clone of the frozen volume for one snapshot; the disk keeps its own.
fn clone_for(repo: &Repo, snapshot: &ImageRecord, volume: &VolumeRecord, opened: &OpenVolume) -> Result<()> {
    let _order = (!without!("switch.lock.clone")).then(|| try_lock(repo, snapshot.id())).transpose()?;
    let new = NewVolume {
        format: volume.format,
        size: volume.size,
        backing: volume.backing.clone(),
        fill: Fill::simple(How::Clone),
        partial: false,
    };
    let mut copy = add::announce_volume(repo, new, snapshot.id())?;
    let handle = repo.driver.clone_volume(opened, copy.id(), &|| look_at_target(repo, &copy))?;
    if let Some(backing) = &copy.backing
        && !without!("switch.permit")
    {
        merge::permit(repo, backing.image, volume.id(), copy.id())?;
    }
    copy.mirror = volume.mirror;
    add::ready(repo, &copy)?;
    let sealed = repo.update_image(snapshot.id(), |now| {
        if (now.state != State::Pending || now.volume != volume.id()) && !without!("switch.compare.cloned") {
            return Ok(Change::Keep);
        }
        now.volume = copy.id();
        now.state = State::Live;
        Ok(Change::Put)
    })?;
    let Some(sealed) = sealed.filter(|now| now.volume == copy.id()) else {
        drop(handle);
        add::withdraw_volume(repo, &copy, snapshot.id());
        return Ok(());
    };
    // As with an overlay. The disk is not free to be written yet: what was to be cloned is there still.
    if !without!("switch.look.clone")
        && let Err(error) = add::look_at_volume(repo, copy.id(), snapshot.id())
    {
        let back = ImageRecord { volume: volume.id(), state: State::Pending, ..sealed };
        return step_back(repo, back, &copy, handle, error);
    }
    repo.driver.unmark(Marker::Holder(volume.id(), snapshot.id()))
}

fn remember_frozen(disk: &mut ImageRecord, frozen: &[ImageRecord]) {
    if let Some(hidden) = frozen.iter().find(|image| image.kind == Kind::Hidden) {
        disk.frozen_as = Some(hidden.id());
    }
}

fn clear_freeze(repo: &Repo, disk: &ImageRecord) -> Result<()> {
    let mut hidden = Vec::new();
    for id in &disk.freeze {
        hidden.extend(repo.image(*id)?);
    }
    repo.update_image(disk.id(), |now| {
        now.freeze.retain(|id| !disk.freeze.contains(id) && !without!("switch.compare.asked"));
        remember_frozen(now, &hidden);
        Ok(Change::Put)
    })?;
    Ok(())
}

/// Whether the image is a disk that may still write the volume that this snapshot is to be on.
fn still_writes(other: &ImageRecord, snapshot: &ImageRecord) -> bool {
    other.id() != snapshot.id()
        && other.kind == Kind::Disk
        && other.state == State::Live
        && other.holds(snapshot.volume)
}

/// Whether a pending snapshot was announced by a call that never came to promise it: no disk is to be frozen as it, and one
/// still writes the volume that it was to be on.
pub(crate) fn is_forsaken(view: &impl View, snapshot: &ImageRecord) -> Result<bool> {
    let others = view.held_by(snapshot.volume)?;
    Ok(!others.iter().any(|other| other.freeze.contains(&snapshot.id()))
        && others.iter().any(|other| still_writes(other, snapshot)))
}

/// The disk that is to be frozen as this pending snapshot, if there is one.
pub(crate) fn disk_of(repo: &Repo, snapshot: &ImageRecord) -> Result<Option<ImageId>> {
    for holder in repo.driver.holders(snapshot.volume)? {
        if repo.image(holder)?.is_some_and(|image| image.freeze.contains(&snapshot.id())) {
            return Ok(Some(holder));
        }
    }
    Ok(None)
}

/// An immutable image with the disk's data as it is now: one that exists, or a new hidden one. The caller holds no lock.
pub(crate) fn freeze_as_base(repo: &Repo, disk: ImageId) -> Result<ImageRecord> {
    let _order = (!without!("switch.lock.base")).then(|| super::lock_image(repo, disk)).transpose()?;
    let mut record = repo.visible_image(disk)?;
    if needs_moment(repo, &record)? {
        let new = hidden(&record);
        take_moment(repo, &record, &new)?;
        return repo.image(new.id)?.ok_or_else(|| repo.image_not_found(new.id));
    }
    if !without!("switch.lease.base") {
        lease::ensure_free(repo, &record)?;
    }
    if !record.freeze.is_empty() {
        // What was asked for before may be what is wanted now.
        complete(repo, disk)?;
        record = repo.visible_image(disk)?;
    }
    let below = repo.volume(record.volume)?.and_then(|volume| volume.backing).map(|backing| backing.image);
    for candidate in [below, record.frozen_as].into_iter().flatten() {
        if let Some(image) = repo.image(candidate)?
            && (image.token == record.token || without!("switch.compare.token"))
            && image.size == record.size
            && image.state == State::Live
            && image.can_back()
        {
            return Ok(image);
        }
    }
    let new = hidden(&record);
    intend(repo, disk, &new)?;
    complete(repo, disk)?;
    repo.image(new.id)?.ok_or_else(|| repo.image_not_found(new.id))
}

/// An immutable image of the disk's data that no caller sees.
fn hidden(disk: &ImageRecord) -> NewImage<'static> {
    NewImage {
        id: ImageId::random(),
        kind: Kind::Hidden,
        size: disk.size,
        strategy: disk.strategy,
        user_data: "{}",
        request: None,
        token: disk.token,
        file: None,
    }
}
