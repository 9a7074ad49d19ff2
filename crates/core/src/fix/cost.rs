//! What a fix costs: at most, from records and the sizes of files; or really, from a plan that is made and not carried out.

use std::sync::Arc;

use vdsmstore_io::{Image, Plan, Target, plan};

use super::{Action, Cost};
use crate::graph::look::{Everything, View};
use crate::graph::merge;
use crate::graph::search::elsewhere;
use crate::graph::{chain, fill, import};
use crate::id::VolumeId;
use crate::options::Strategy;
use crate::record::{Fill, How, ImageRecord, Kind, State, VolumeRecord, VolumeState};
use crate::repo::Repo;
use crate::repository::Access;
use crate::{ErrorKind, Result};

/// What a metadata change costs at most, in bytes.
const SMALL: u64 = 1 << 20;

/// What the fix costs; `exact`: from the maps of the images, as far as they can be read now. What the storage clones is
/// counted as if it were moved.
pub(crate) fn cost(
    repo: &Arc<Repo>,
    repos: &[Arc<Repo>],
    all: &Everything,
    action: Action,
    exact: bool,
) -> Result<Cost> {
    let image = action.image().and_then(|id| all.images.get(&id)).map(AsRef::as_ref);
    if let (true, Some(image)) = (exact, image) {
        let priced = match action {
            Action::Mend(_) => mending(repo, repos, all, image),
            Action::Optimize(_) => flattening(repo, image),
            Action::Merge(_) => merging(repo, all, image),
            _ => Ok(None),
        };
        match priced {
            Ok(Some(cost)) => return Ok(cost),
            Ok(None) => {}
            // What cannot be looked at now has its bounds.
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::ImageInUse
                        | ErrorKind::ImageBroken
                        | ErrorKind::ImageNotFound
                        | ErrorKind::CorruptImage
                ) => {}
            Err(error) => return Err(error),
        }
    }
    bound(repo, all, action, image)
}

fn bound(repo: &Repo, all: &Everything, action: Action, image: Option<&ImageRecord>) -> Result<Cost> {
    let allocated = |id: VolumeId| if all.objects.contains(&id) { repo.driver.allocated(id) } else { Ok(0) };
    Ok(match (action, image) {
        (Action::Mend(_), Some(image)) => {
            let (read, write) = match filling(all, image) {
                Some((volume, fill)) => {
                    let left = volume.size.saturating_sub(fill::watermark(repo, image, volume)?);
                    let (read, write) = match fill.how {
                        How::Zero | How::Clone => (0, if fill.preallocate { left } else { 0 }),
                        How::Diff => (left * 2, left),
                        How::Copy | How::Flatten | How::Import => (left, left),
                    };
                    // What was written is read back.
                    if fill.verify { (read + write, write) } else { (read, write) }
                }
                // Its data is not here: all of it comes from elsewhere.
                None if is_lost(all, image) => (image.size, image.size),
                None => (0, 0),
            };
            Cost { read: read + SMALL, write: write + SMALL, frees: 0, needs: write + SMALL }
        }
        (Action::Optimize(_), Some(image)) => {
            let frees = allocated(image.volume)?;
            Cost { read: image.size, write: image.size, frees, needs: image.size }
        }
        (Action::Merge(_), Some(image)) => match merge::candidate(all, image)? {
            None => Cost::default(),
            Some(line) => {
                let merge::Price { moves, needs, frees, .. } = merge::bound(repo, &line)?;
                Cost { read: moves, write: moves + SMALL, frees, needs: needs + SMALL }
            }
        },
        (Action::CleanImage(_), Some(image)) if all.held_by(image.volume)?.len() < 2 => {
            Cost { frees: allocated(image.volume)?, ..Cost::default() }
        }
        // Nothing goes.
        (Action::CleanVolume(id), _) if all.is_held(id)? => Cost::default(),
        (Action::CleanVolume(id) | Action::CleanObject(id), _) => {
            Cost { frees: allocated(id)?, ..Cost::default() }
        }
        (Action::Sweep, _) => Cost { frees: all.leftovers, ..Cost::default() },
        _ => Cost::default(),
    })
}

/// The volume that is being filled for the image, and from what.
fn filling<'a>(all: &'a Everything, image: &ImageRecord) -> Option<(&'a VolumeRecord, &'a Fill)> {
    let volume = all.volumes.get(&image.next.unwrap_or(image.volume))?;
    let fill = volume.fill.as_ref().filter(|_| volume.state == VolumeState::Filling)?;
    Some((volume, fill))
}

/// Whether a live image has neither its data nor a volume that it is to get.
fn is_lost(all: &Everything, image: &ImageRecord) -> bool {
    image.state == State::Live
        && image.next.is_none()
        && image.freeze.is_empty()
        && !matches!(chain::resolve(all, image.clone()), Ok(chain::Resolved::Whole(_)))
}

/// What is left to copy. None: nothing is, or what it is copied from cannot be read now.
fn mending(
    repo: &Arc<Repo>,
    repos: &[Arc<Repo>],
    all: &Everything,
    image: &ImageRecord,
) -> Result<Option<Cost>> {
    let Some((volume, fill)) = filling(all, image) else {
        let other = if is_lost(all, image) { elsewhere(repos, repo, image.id())? } else { None };
        return other.map(|other| whole(&other, image)).transpose();
    };
    let source = match (fill.how, &fill.source) {
        (How::Zero | How::Clone, _) | (How::Copy | How::Diff, None) => None,
        (How::Import, _) => import::open(repo, image, fill).ok(),
        (How::Flatten, _) => Some(read(repo, image)?),
        (How::Copy | How::Diff, Some(source)) => match fill::find_image(repos, repo, source, image.id())? {
            Some((from, record)) => Some(read(&from, &record)?),
            None => None,
        },
    };
    let Some(source) = source else { return Ok(None) };
    // A disk that is yet to be frozen as the base is one already.
    let base = match volume.backing.as_ref().map(|backing| backing.image).or(fill.base) {
        Some(base) if fill.how == How::Diff => match fill::find_base(repos, repo, base)? {
            Some(from) => from.image(base)?.map(|record| read(&from, &record)).transpose()?,
            None => None,
        },
        _ => None,
    };
    let from = fill::watermark(repo, image, volume)?;
    let backed = base.is_some();
    let target = Target { backed, known_zero: !backed && from == 0 };
    let size = source.size().min(volume.size);
    let plan = plan::copy(&source, base.as_ref(), target, from, size.saturating_sub(from))?;
    let cost = of_plan(&plan, 0);
    if !fill.verify {
        return Ok(Some(cost));
    }
    // All of the source for its hashes, what was written again, and what was there before.
    let read = size.max(cost.read).saturating_add(cost.write).saturating_add(from);
    Ok(Some(Cost { read, ..cost }))
}

/// An image to be looked at. Nothing needs to be locked where a look is a moment.
fn read(repo: &Repo, image: &ImageRecord) -> Result<Image> {
    let access = match image.kind {
        Kind::Disk if repo.driver.clone_under_writer() => Access::Moment,
        Kind::Disk => Access::ReadStill,
        Kind::Snapshot | Kind::Hidden => Access::Read,
    };
    chain::open(repo, image.id(), access)?.image(false)
}

/// All data of an image, copied to a new volume.
fn whole(repo: &Repo, image: &ImageRecord) -> Result<Cost> {
    let source = read(repo, image)?;
    let target = Target { backed: false, known_zero: true };
    let plan = plan::copy(&source, None, target, 0, source.size())?;
    Ok(of_plan(&plan, 0))
}

fn flattening(repo: &Repo, image: &ImageRecord) -> Result<Option<Cost>> {
    let mut cost = whole(repo, image)?;
    cost.frees = repo.driver.allocated(image.volume)?;
    if image.strategy == Strategy::Performance {
        cost.needs = image.size;
    }
    Ok(Some(cost))
}

fn merging(repo: &Repo, all: &Everything, image: &ImageRecord) -> Result<Option<Cost>> {
    let Some(line) = merge::candidate(all, image)? else { return Ok(None) };
    let read = |id| repo.driver.open_volume(id, Access::Read);
    let lower = line.lowers.iter().map(|lower| read(lower.volume.id())).collect::<Result<Vec<_>>>()?;
    let upper = read(line.upper_volume.id())?;
    let best = merge::prices(repo, &line, &lower, &upper)?.into_iter().next();
    Ok(best.map(|merge::Price { moves, needs, frees, .. }| Cost { read: moves, write: moves, frees, needs }))
}

fn of_plan(plan: &Plan, frees: u64) -> Cost {
    Cost { read: plan.read_bytes(), write: plan.write_bytes(), frees, needs: plan.write_bytes() }
}
