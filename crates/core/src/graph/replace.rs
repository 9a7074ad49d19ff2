//! Replace: an image gets a volume of another representation; what is built on it follows, because it refers to the
//! image.

use vdsmstore_io::without;

use crate::id::ImageId;
use crate::options::Strategy;
use crate::record::{Fill, How, ImageRecord, Kind, State, VolumeFormat, VolumeRecord};
use crate::repo::{Change, Repo};
use crate::repository::{Access, Marker};
use crate::{Result, Status};

use super::chain::{self, Chain};
use super::{add, clean, in_use, lease, mirror};

/// Announces the raw volume of its own that a degraded image wants. False: it wants none. The caller holds its lock.
pub(crate) fn begin(repo: &Repo, whole: &Chain) -> Result<bool> {
    let image = &whole.top().image;
    if whole.status(repo)? != Status::Degraded
        || image.next.is_some()
        || !without!("replace.lease") && lease::is_held(repo, image)?
        || !image.freeze.is_empty()
    {
        return Ok(false);
    }
    if image.kind == Kind::Disk && !without!("replace.lock") {
        // Nothing is announced that could not begin: a program outside may be writing.
        drop(chain::open(repo, image.id(), Access::ReadStill)?);
    }
    let mut fill = Fill::simple(How::Flatten);
    fill.preallocate = image.strategy == Strategy::Performance;
    let new =
        add::NewVolume { format: VolumeFormat::Raw, size: image.size, backing: None, fill, partial: false };
    let next = add::announce_volume(repo, new, image.id())?;
    let announced = repo.update_image(image.id(), |now| {
        if now.volume != image.volume && !without!("replace.compare.begun-volume")
            || now.next.is_some() && !without!("replace.compare.begun-next")
            || now.state != State::Live && !without!("replace.compare.begun-state")
            || now.size != image.size && !without!("replace.compare.begun-size")
            || !without!("replace.compare.begun-held") && lease::is_held(repo, now)?
        {
            return Err(in_use(repo, image.id(), "it changed meanwhile"));
        }
        now.next = Some(next.id());
        Ok(Change::Put)
    });
    if !matches!(announced, Ok(Some(_))) {
        add::withdraw_volume(repo, &next, image.id());
        return Err(announced.err().unwrap_or_else(|| repo.image_not_found(image.id())));
    }
    look(repo, &next, image.id())?;
    Ok(true)
}

/// Once the image points at its next volume: if that was taken for garbage before, the image lets go of it.
fn look(repo: &Repo, next: &VolumeRecord, image: ImageId) -> Result<()> {
    let looked = add::look_at_volume(repo, next.id(), image);
    if looked.is_err() {
        repo.update_image(image, |now| {
            if now.next != Some(next.id()) {
                return Ok(Change::Keep);
            }
            now.next = None;
            Ok(Change::Put)
        })?;
        add::withdraw_volume(repo, next, image);
    }
    looked
}

/// Announces a new volume for a live snapshot that cannot be read here, filled from where it can. The caller holds its
/// lock.
pub(crate) fn refill(repo: &Repo, present: &ImageRecord, volume: add::NewVolume) -> Result<ImageRecord> {
    let next = add::announce_volume(repo, volume, present.id())?;
    let mut record = ImageRecord { next: Some(next.id()), ..present.clone() };
    if !repo.replace(&mut record)? {
        add::withdraw_volume(repo, &next, present.id());
        return Err(in_use(repo, present.id(), "it changed meanwhile"));
    }
    look(repo, &next, present.id())?;
    Ok(record)
}

/// Moves the image to its next volume, which is ready.
pub(crate) fn seal(repo: &Repo, image: &ImageRecord) -> Result<()> {
    let Some(next) = image.next else { return Ok(()) };
    let sealed = repo.update_image(image.id(), |now| {
        // A disk that was written since is not what was copied.
        if now.next != Some(next) && !without!("replace.compare.next")
            || now.token != image.token && !without!("replace.compare.token")
            || now.volume != image.volume && !without!("replace.compare.volume")
            || !without!("replace.compare.held") && lease::is_held(repo, now)?
        {
            return Err(add::displaced(repo, next));
        }
        now.volume = next;
        now.next = None;
        Ok(Change::Put)
    })?;
    sealed.ok_or_else(|| repo.image_not_found(image.id()))?;
    repo.driver.delete_progress(image.id())?;
    finish(repo, image.id(), image)
}

fn finish(repo: &Repo, id: ImageId, before: &ImageRecord) -> Result<()> {
    mirror::correct_children(repo, id)?;
    let below = repo.volume(before.volume)?.and_then(|volume| volume.backing).map(|backing| backing.image);
    clean::volume(repo, before.volume)?;
    if repo.volume(before.volume)?.is_none() {
        repo.driver.unmark(Marker::Holder(before.volume, id))?;
    }
    match below {
        Some(base) => clean::image(repo, base),
        None => Ok(()),
    }
}
