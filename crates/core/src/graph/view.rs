//! What callers are told of an image.

use vdsmstore_io::without;

use crate::id::ImageId;
use crate::record::{ImageRecord, Kind, OpenMode, State};
use crate::repo::Repo;
use crate::repository::Read;
use crate::types::{GraphNode, ImageInfo, ImageStatus, Prepared, Status, TaskInfo};
use crate::{ErrorKind, Result};

use super::chain::{Chain, Resolved, resolve};
use super::lease;
use super::look::Now;

/// The image, for who is only told of it.
pub(crate) fn shown(repo: &Repo, id: ImageId) -> Result<ImageRecord> {
    match repo.image_with(id, Read::Relaxed)? {
        Some(image) if image.visible() => Ok(image),
        _ => repo.visible_image(id),
    }
}

/// Whether it can be used, and what is known of the work on it.
pub(crate) fn status(repo: &Repo, image: &ImageRecord, tasks: Vec<TaskInfo>) -> Result<ImageStatus> {
    let progress = repo.progress(image.id())?;
    let (status, _) = judge(repo, image)?;
    let (host_id, stage, percent, error) = progress
        .map_or((String::new(), String::new(), -1, None), |progress| {
            (progress.host, progress.stage, progress.percent, progress.error)
        });
    Ok(ImageStatus {
        status,
        host_id,
        stage,
        percent_complete: percent.clamp(-1, 100),
        last_error: error.or_else(|| image.error.clone()),
        tasks,
    })
}

/// The status, and as much of the chain as is there.
fn judge(repo: &Repo, image: &ImageRecord) -> Result<(Status, Chain)> {
    if let Resolved::Whole(chain) = resolve(&Now(repo, Read::Relaxed), image.clone())? {
        return Ok((chain.status(repo)?, chain));
    }
    // What was read may have been moving: broken is only what is so twice.
    let now = match repo.image(image.id())? {
        Some(now) if !without!("view.reread") => now,
        _ => image.clone(),
    };
    Ok(match resolve(&Now(repo, Read::Fresh), now)? {
        Resolved::Whole(chain) => (chain.status(repo)?, chain),
        Resolved::Broken(chain, _) => (Status::Broken, chain),
    })
}

/// What it is.
pub(crate) fn info(repo: &Repo, image: &ImageRecord) -> Result<ImageInfo> {
    let (_, chain) = judge(repo, image)?;
    let prepared = lease::holder(repo, image)?.map(|open| Prepared {
        host_id: open.host.clone(),
        mode: match open.mode {
            OpenMode::Io => "open".to_owned(),
            OpenMode::Prepare => "prepare".to_owned(),
        },
        since: open.since,
    });
    Ok(ImageInfo {
        image_id: image.id(),
        mutable: image.kind == Kind::Disk,
        size: image.size,
        allocated: allocated(repo, image)?,
        user_data: repo.user_data(image)?,
        strategy: image.strategy,
        created: image.created,
        depth: chain.links.len().max(1) as u32,
        prepared,
    })
}

/// None: the image went since it was listed.
pub(crate) fn unless_gone<T>(told: Result<T>) -> Result<Option<T>> {
    match told {
        Err(error) if error.kind() == ErrorKind::ImageNotFound => Ok(None),
        other => other.map(Some),
    }
}

fn allocated(repo: &Repo, image: &ImageRecord) -> Result<u64> {
    match repo.driver.allocated(image.volume) {
        // Not created yet, or gone.
        Err(error) if matches!(error.kind(), ErrorKind::ImageBroken | ErrorKind::ImageNotFound) => Ok(0),
        other => other,
    }
}

/// One node of the graph.
pub(crate) fn node(repo: &Repo, image: &ImageRecord) -> Result<GraphNode> {
    let (status, _) = judge(repo, image)?;
    let volume = repo.volume_with(image.volume, Read::Relaxed)?;
    let kind = match (image.state, image.kind) {
        (State::Removed | State::Absorbed, _) => "removed",
        (_, Kind::Disk) => "disk",
        (_, Kind::Snapshot) => "snapshot",
        (_, Kind::Hidden) => "hidden",
    };
    Ok(GraphNode {
        image_id: image.id(),
        kind: kind.to_owned(),
        status,
        size: image.size,
        allocated: allocated(repo, image)?,
        base: volume.and_then(|volume| volume.backing).map(|backing| backing.image),
        user_data: repo.user_data(image)?,
    })
}
