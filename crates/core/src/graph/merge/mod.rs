//! Merge: the volumes of a line of images become one, where nobody wants any of them but the top.
//!
//! The images t1 (lowest) to tk are removed or hidden, each is the only one on its volume, and exactly one volume is
//! built on it: that of the next, and for tk the volume C of the image `s`, which stays. *Up*: what the k volumes have
//! and C has not is copied into C, each cluster from the newest of them, and C then is built on what V1 is built on.
//! *Down*: what C and V2 to Vk have is copied into V1, which then holds `s`. Both passes may be repeated from the
//! beginning at any time, in either direction, and for any part of the line.

mod absorb;
mod choice;
mod line;
mod seal;

use std::sync::Arc;
use std::time::Instant;

use vdsmstore_io::{Image, execute, plan, without};

use crate::id::ImageId;
use crate::job::{Env, Step, percent};
use crate::record::Progress;
use crate::repo::Repo;
use crate::repository::{Access, Guard, OpenVolume, Read};
use crate::{Error, ErrorKind, Result, machine};

use super::chain;
use super::fill::{CACHED, LONG_STEP, Limit, STEP, WATERMARK_TIME, error_text};
use super::look::Now;
use super::{in_place, lease, try_lock};

pub(crate) use absorb::permit;
pub(crate) use choice::{Price, bound, prices};
pub(crate) use line::{Line, candidate, is_lowest};

/// Which way the data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Up,
    Down,
}

impl Direction {
    /// What the progress calls it.
    fn stage(self) -> &'static str {
        match self {
            Self::Up => "merge up",
            Self::Down => "merge down",
        }
    }
}

/// A merge under way, with all its locks.
pub(crate) struct Merge {
    repo: Arc<Repo>,
    line: Line,
    direction: Direction,
    source: Image,
    target: Image,
    position: u64,
    size: u64,
    limit: Limit,
    unflushed: u64,
    flushed_at: Instant,
    /// The header of the upper volume may name what its record does not say yet.
    renamed: bool,
    /// Given back in this order: bytes first.
    lower: Vec<OpenVolume>,
    upper: OpenVolume,
    _order: Vec<Box<dyn Guard>>,
}

/// Begins the merge that the image `t` is part of: takes all locks or none, chooses the direction, and for the downward
/// one absorbs the images that go.
pub(crate) fn begin(
    repo: &Arc<Repo>,
    env: &Env<'_>,
    t: ImageId,
    bandwidth: Option<u64>,
) -> Result<Option<Merge>> {
    let find = || -> Result<Option<Line>> {
        let Some(record) = repo.image(t)? else { return Ok(None) };
        candidate(&Now(repo, Read::Fresh), &record)
    };
    let Some(found) = find()? else { return Ok(None) };
    let locked = found.ids().filter(|_| !without!("merge.lock"));
    let order = locked.map(|id| try_lock(repo, id)).collect::<Result<Vec<_>>>()?;
    // Again, now that nobody else changes them.
    let again = if without!("merge.reread") { Some(found.clone()) } else { find()? };
    let Some(mut line) = again.filter(|line| line.same(&found)) else { return Ok(None) };
    if !without!("merge.lease") {
        lease::ensure_free(repo, &line.upper)?;
    }
    let upper = repo.driver.open_volume(line.upper_volume.id(), Access::Write)?;
    let mut lower = Vec::with_capacity(line.lowers.len());
    for each in &line.lowers {
        let access = if without!("merge.lock.lower") { Access::Moment } else { Access::Read };
        lower.push(repo.driver.open_volume(each.volume.id(), access)?);
    }
    let mut prices = prices(repo, &line, &lower, &upper)?;
    keep_safe(repo, &line, &mut prices)?;
    let direction = choice::choose(repo, &line, &prices)?.direction;
    // How far a former run came, before it is displaced: it can move the image no more.
    let position = watermark(repo, &line, direction)?;
    if !repo.claim(&mut line.upper)? {
        return Ok(None);
    }
    // Should the locks have been a lie: the image may be read after a resize of which its volume was read before.
    let upper_now = repo.volume(line.upper_volume.id())?;
    let same = upper_now.is_some_and(|now| now.header.generation == line.upper_volume.header.generation);
    if !same && !without!("merge.reread.upper") {
        return Ok(None);
    }
    if direction == Direction::Down {
        let lowest = line.lowest().volume.id();
        // Nobody else has it: the locks on the images keep it so between the two.
        drop(lower.remove(0));
        lower.insert(0, repo.driver.open_volume(lowest, Access::Write)?);
        if !absorb::all(repo, &mut line)? {
            return Ok(None);
        }
    }
    let target = line.target(direction).id();
    *line.target_mut(direction) = in_place::begin(repo, target)?;
    let begun = (|| {
        ensure_owned(repo, &line)?;
        if direction == Direction::Down {
            absorb::make_room(repo, &mut line, &lower, &upper)?;
        }
        let mut merge = open(repo, line, direction, lower, upper, order)?;
        merge.position = position;
        Ok(merge)
    })();
    let mut merge = match begun {
        Ok(merge) => merge,
        Err(error) => {
            // What is left behind here keeps others away, until this store has ended.
            let _ = in_place::end(repo, target);
            return Err(error);
        }
    };
    merge.limit = Limit::new(bandwidth);
    env.task.set_stage(merge.direction.stage(), merge.position, merge.size);
    // Others see who does it. Where there is no room to say so, the merge may be what makes some.
    let _ = merge.persist(None);
    Ok(Some(merge))
}

/// Only directions that write where nobody else may still write.
fn keep_safe(repo: &Repo, line: &Line, prices: &mut Vec<Price>) -> Result<()> {
    let mut doubt = None;
    for direction in [Direction::Up, Direction::Down] {
        if let Err(error) = in_place::ensure_mine(repo, line.target(direction)) {
            if error.kind() != ErrorKind::ImageInUse {
                return Err(error);
            }
            doubt = Some(error);
            prices.retain(|price| price.direction != direction);
        }
    }
    match doubt {
        Some(error) if prices.is_empty() => Err(error),
        _ => Ok(()),
    }
}

/// The image that stays is still ours to move.
fn ensure_owned(repo: &Repo, line: &Line) -> Result<()> {
    let id = line.upper.id();
    match repo.image(id)? {
        Some(now) if without!("merge.compare.owner") || line.owns(repo, &now) => Ok(()),
        _ => Err(moved(repo, id)),
    }
}

fn open(
    repo: &Arc<Repo>,
    line: Line,
    direction: Direction,
    lower: Vec<OpenVolume>,
    upper: OpenVolume,
    order: Vec<Box<dyn Guard>>,
) -> Result<Merge> {
    let mut layers = line.layers(&lower, &upper);
    // What lies below the line takes no part: a source without it tells its own data from what shows through.
    let source = chain::open_layers(layers.clone(), false, repo.memory)?;
    if direction == Direction::Down {
        layers.drain(..line.lowers.len());
        layers[0].size = line.lowest().volume.size;
    }
    if let Some(backing) = line.backing() {
        layers.extend(chain::layers_of(repo, line.lowest().volume.id(), backing)?);
    }
    let target = chain::open_layers(layers, true, repo.memory)?;
    Ok(Merge {
        repo: Arc::clone(repo),
        size: line.length(direction),
        line,
        direction,
        source,
        target,
        position: 0,
        limit: Limit::new(None),
        unflushed: 0,
        flushed_at: machine::now(),
        renamed: false,
        lower,
        upper,
        _order: order,
    })
}

/// How far an earlier run of the same merge came: it counts only if nobody wrote the upper image since.
fn watermark(repo: &Repo, line: &Line, direction: Direction) -> Result<u64> {
    let target = line.target(direction);
    let progress = repo.progress(line.upper.id())?.filter(|progress| {
        (progress.volume == target.id() || without!("merge.compare.volume"))
            && (progress.epoch == target.header.epoch || without!("merge.compare.epoch"))
            && (progress.stage == direction.stage() || without!("merge.compare.direction"))
            && (progress.source_token == Some(line.token()) || without!("merge.compare.token"))
            && progress.watermark <= line.length(direction)
    });
    Ok(progress.map_or(0, |progress| progress.watermark))
}

impl Merge {
    /// Copies the next piece; after the last, seals.
    pub fn step(&mut self, env: &Env<'_>) -> Result<Step> {
        if self.position >= self.size {
            if !without!("merge.flush.end") {
                self.target.flush()?;
            }
            match self.direction {
                Direction::Up => self.seal_up()?,
                Direction::Down => self.seal_down()?,
            }
            return Ok(Step::Done);
        }
        if let Some(pause) = self.limit.pause() {
            return Ok(Step::Later(pause));
        }
        let length = LONG_STEP.min(self.size - self.position);
        let (layers, moved) = (self.line.moved(self.direction), STEP.min(self.limit.step()));
        let plan = plan::layers_part(&self.source, layers, self.position, length, moved)?;
        let outcome = env.moves(|control| execute(&plan, &self.source, None, &self.target, control))?;
        self.position += plan.length();
        env.task.set_done(self.position);
        self.limit.spend(outcome.read + outcome.offloaded);
        self.unflushed += outcome.cached() + outcome.zeroed;
        if self.unflushed >= CACHED || machine::since(self.flushed_at) >= WATERMARK_TIME {
            if !without!("merge.flush.watermark") {
                self.target.flush()?;
            }
            self.persist(None)?;
            self.unflushed = 0;
            self.flushed_at = machine::now();
        }
        Ok(Step::Again)
    }

    /// Says that all below the position is durable; fails if the image is not this merge's any more, so that nothing is written
    /// over what its successor says.
    fn persist(&self, error: Option<String>) -> Result<()> {
        ensure_owned(&self.repo, &self.line)?;
        let host = self.repo.driver.host();
        let target = self.line.target(self.direction);
        let progress = Progress {
            volume: target.id(),
            epoch: target.header.epoch,
            incarnation: host.incarnation,
            host: host.host_id.clone(),
            stage: self.direction.stage().to_owned(),
            percent: percent(self.position, self.size),
            watermark: self.position,
            source_token: Some(self.line.token()),
            error,
        };
        self.repo.put_progress(self.line.upper.id(), &progress)
    }

    /// Persists how far it came, and why it ended.
    pub fn failed(&self, error: &Error) {
        // What cannot be said is found by looking.
        if without!("merge.flush.failed") || self.target.flush().is_ok() {
            let _ = self.persist(Some(error_text(error)));
        }
        let target = self.line.target(self.direction).id();
        // Else others are kept away until this store has ended.
        let _ = if self.renamed && !without!("merge.doubt") {
            in_place::end_in_doubt(&self.repo, target)
        } else {
            in_place::end(&self.repo, target)
        };
    }
}

fn moved(repo: &Repo, id: ImageId) -> Error {
    let message = format!("image {id} in repository {:?} changed while it was being merged", repo.id);
    Error::new(ErrorKind::Stopped, message)
}
