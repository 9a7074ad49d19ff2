//! Who fills a volume: taking over from a former owner, and going on where it was.

use crate::Result;
use crate::graph::{add, clean, in_use};
use crate::record::{Fill, ImageRecord, State, VolumeRecord};
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
        || repo.driver.liveness(former)? == Liveness::CertainlyDead;
    if !certain {
        return Ok(None);
    }
    let from = watermark(repo, image, &volume)?;
    if let Some(fill) = &mut volume.fill {
        fill.from = from;
    }
    if !repo.claim(&mut volume)? {
        return Err(in_use(repo, image.id(), "another host took over its work"));
    }
    Ok(Some((volume, from)))
}

/// The last durable watermark that counts: of this volume, in this epoch, from a source in the same state.
pub(super) fn watermark(repo: &Repo, image: &ImageRecord, volume: &VolumeRecord) -> Result<u64> {
    let Some(fill) = &volume.fill else { return Ok(0) };
    let wanted = fill.source.as_ref().map(|source| source.token);
    let progress = repo.progress(image.id())?.filter(|progress| {
        progress.volume == volume.id()
            && progress.epoch == volume.header.epoch
            && (wanted.is_none() || progress.source_token == wanted)
            && progress.watermark <= volume.size
    });
    let from = progress.map_or(fill.from, |progress| progress.watermark.max(fill.from));
    Ok(if repo.driver.volume_exists(volume.id())? { from } else { 0 })
}

/// Points the image at a new volume with the same fill; the old one may still be written and is left to be cleaned.
pub(super) fn replace_volume(repo: &Repo, image: &ImageRecord, mut fill: Fill) -> Result<()> {
    fill.from = 0;
    let is_next = image.state != State::Pending;
    let old = if is_next { image.next } else { Some(image.volume) };
    let Some(old) = old else { return Ok(()) };
    let record = repo.volume(old)?.ok_or_else(|| add::displaced(repo, old))?;
    let new =
        add::NewVolume { format: record.format, size: record.size, backing: record.backing.clone(), fill };
    let new = add::announce_volume(repo, new, image.id())?;
    let moved = repo.update_image(image.id(), |now| {
        if now.state != image.state || now.volume != image.volume || now.next != image.next {
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
    clean::volume(repo, old)
}
