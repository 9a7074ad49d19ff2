//! Who fills a volume: taking over from a former owner, and going on where it was.

use vdsmstore_io::without;

use crate::Result;
use crate::graph::{add, clean, in_use};
use crate::id::{ImageId, VolumeId};
use crate::record::{Backing, Fill, How, ImageRecord, Kind, State, VolumeFormat, VolumeRecord};
use crate::repo::{Change, Repo};
use crate::repository::Liveness;

/// Becomes the owner of a filling volume, and says from where on to fill it. None: a former owner may still write it.
pub(super) fn claim(
    repo: &Repo,
    image: &ImageRecord,
    mut volume: VolumeRecord,
) -> Result<Option<(VolumeRecord, u64)>> {
    if repo.owns(&volume.header) && repo.progress(image.id())?.is_none() {
        let from = volume.fill.as_ref().map_or(0, |fill| fill.from);
        return Ok(Some((volume, from)));
    }
    let former = volume.header.owner.incarnation;
    // On storage of one host, the lock of the bytes itself is the proof.
    let certain = repo.owns(&volume.header)
        || !repo.driver.capabilities().multi_host
        || repo.driver.liveness(former)? == Liveness::CertainlyDead
        || without!("claim.compare.dead");
    if !certain {
        return Ok(None);
    }
    let from = watermark(repo, image, &volume)?;
    if let Some(fill) = volume.fill.as_mut().filter(|_| !without!("claim.from")) {
        fill.from = from;
    }
    if !without!("claim.epoch") && !repo.claim(&mut volume)? {
        return Err(in_use(repo, image.id(), "another host took over its work"));
    }
    Ok(Some((volume, from)))
}

/// The last durable watermark that counts: of this volume, in this epoch, from a source in the same state.
pub(crate) fn watermark(repo: &Repo, image: &ImageRecord, volume: &VolumeRecord) -> Result<u64> {
    let Some(fill) = &volume.fill else { return Ok(0) };
    let wanted = fill.source.as_ref().map(|source| source.token);
    let progress = repo.progress(image.id())?.filter(|progress| {
        (progress.volume == volume.id() || without!("claim.compare.volume"))
            && (progress.epoch == volume.header.epoch || without!("claim.compare.epoch"))
            && (wanted.is_none() || progress.source_token == wanted || without!("claim.compare.token"))
            && progress.watermark <= volume.size
    });
    let from = progress.map_or(fill.from, |progress| progress.watermark.max(fill.from));
    Ok(if repo.driver.volume_exists(volume.id())? || without!("claim.look.object") { from } else { 0 })
}

/// Points the image at a new volume with the same fill; the old one may still be written and is left to be cleaned.
pub(super) fn replace_volume(repo: &Repo, image: &ImageRecord, mut fill: Fill) -> Result<()> {
    if !without!("claim.anew") {
        fill.from = 0;
    }
    let Some(old) = filled(image) else { return Ok(()) };
    let record = repo.volume(old)?.ok_or_else(|| add::displaced(repo, old))?;
    let (format, size, backing) = (record.format, record.size, record.backing);
    point(repo, image, old, add::NewVolume { format, size, backing, fill, partial: false }, None)
}

/// Announces a clone anew: what is to be cloned has another representation by now. A snapshot that cannot be cloned to
/// the image's size is built upon instead.
pub(super) fn clone_anew(repo: &Repo, image: &ImageRecord, fill: &Fill) -> Result<()> {
    let Some(old) = filled(image) else { return Ok(()) };
    let source = fill.source.as_ref().ok_or_else(|| add::displaced(repo, old))?.image;
    let record = repo.image(source)?.ok_or_else(|| repo.image_not_found(source))?;
    let now = repo.volume(record.volume)?.ok_or_else(|| add::displaced(repo, old))?;
    let is_disk = record.kind == Kind::Disk;
    // What a volume has beyond its image can only be cut off a raw one.
    let fits = match now.format {
        VolumeFormat::Raw => now.size <= image.size,
        VolumeFormat::Qcow2 => now.size == image.size && record.size == now.size,
    };
    let new = if is_disk || fits {
        let size = if is_disk { now.size } else { image.size };
        add::NewVolume { format: now.format, size, backing: now.backing, fill: fill.clone(), partial: false }
    } else {
        let backing = Some(Backing { image: source, size: record.size });
        let fill = Fill::simple(How::Zero);
        add::NewVolume { format: VolumeFormat::Qcow2, size: image.size, backing, fill, partial: false }
    };
    let base = new.backing.as_ref().filter(|_| new.fill.how != How::Clone).map(|backing| backing.image);
    point(repo, image, old, new, base)
}

/// The volume that is being filled for the image.
fn filled(image: &ImageRecord) -> Option<VolumeId> {
    if image.state == State::Pending { Some(image.volume) } else { image.next }
}

/// `base`: what the image comes to be built upon by this.
fn point(
    repo: &Repo,
    image: &ImageRecord,
    old: VolumeId,
    new: add::NewVolume,
    base: Option<ImageId>,
) -> Result<()> {
    let is_next = image.state != State::Pending;
    let new = add::announce_volume(repo, new, image.id())?;
    let moved = repo.update_image(image.id(), |now| {
        if (now.state != image.state || now.volume != image.volume || now.next != image.next)
            && !without!("claim.compare.image")
        {
            return Err(add::displaced(repo, old));
        }
        if is_next {
            now.next = Some(new.id());
        } else {
            now.volume = new.id();
        }
        Ok(Change::Put)
    });
    if !matches!(moved, Ok(Some(_))) {
        add::withdraw_volume(repo, &new, image.id());
        return Err(moved.err().unwrap_or_else(|| add::displaced(repo, old)));
    }
    let looked = add::look_at_volume(repo, new.id(), image.id()).and_then(|()| match base {
        Some(base) if !without!("claim.look.base") => add::look(repo, base, false),
        _ => Ok(()),
    });
    if let Err(error) = looked {
        // It was taken for garbage before the image pointed at it, or its base went before it was built upon.
        repo.update_image(image.id(), |now| {
            if is_next && now.next == Some(new.id()) {
                now.next = Some(old);
            } else if !is_next && now.volume == new.id() {
                now.volume = old;
            } else {
                return Ok(Change::Keep);
            }
            Ok(Change::Put)
        })?;
        add::withdraw_volume(repo, &new, image.id());
        return Err(error);
    }
    clean::volume(repo, old)
}
