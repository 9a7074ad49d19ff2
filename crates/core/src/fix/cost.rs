//! What a fix really costs: the plan is made, and not carried out.

use std::sync::Arc;

use vdsmstore_io::{Plan, Target, plan};

use super::{Action, Cost};
use crate::Result;
use crate::graph::look::Everything;
use crate::graph::{chain, merge};
use crate::record::{ImageRecord, Kind};
use crate::repo::Repo;
use crate::repository::Access;

/// Priced from the maps of the images. None: they cannot be read now, or nothing is to be moved.
pub(crate) fn exact_cost(
    repo: &Repo,
    all: &Everything,
    action: Action,
    image: &ImageRecord,
) -> Result<Option<Cost>> {
    let priced = match action {
        Action::Optimize(_) => flatten(repo, image),
        Action::Merge(_) => merging(repo, all, image),
        _ => return Ok(None),
    };
    match priced {
        Ok(cost) => Ok(cost),
        // Somebody writes it: the bounds will do.
        Err(error) if error.kind() == crate::ErrorKind::ImageInUse => Ok(None),
        Err(error) => Err(error),
    }
}

fn flatten(repo: &Repo, image: &ImageRecord) -> Result<Option<Cost>> {
    let access = if image.kind == Kind::Disk { Access::ReadStill } else { Access::Read };
    let opened = chain::open(repo, image.id(), access)?;
    let source = opened.image(false)?;
    let target = Target { backed: false, known_zero: true };
    let plan = plan::copy(&source, None, target, 0, source.size())?;
    let frees = repo.driver.allocated(image.volume)?;
    Ok(Some(cost(&plan, frees)))
}

fn merging(repo: &Repo, all: &Everything, image: &ImageRecord) -> Result<Option<Cost>> {
    let Some(pair) = merge::candidate(all, image)? else { return Ok(None) };
    let direction = merge::direction(repo, &pair)?;
    let lower = repo.driver.open_volume(pair.lower_volume.id(), Access::Read)?;
    let upper = repo.driver.open_volume(pair.upper_volume.id(), Access::Read)?;
    let plan = merge::price(&pair, direction, Arc::clone(&lower.device), Arc::clone(&upper.device))?;
    let goes = match direction {
        merge::Direction::Up => pair.lower_volume.id(),
        merge::Direction::Down => pair.upper_volume.id(),
    };
    Ok(Some(cost(&plan, repo.driver.allocated(goes)?)))
}

fn cost(plan: &Plan, frees: u64) -> Cost {
    Cost { read: plan.read_bytes(), write: plan.write_bytes(), frees, needs: plan.write_bytes() }
}
