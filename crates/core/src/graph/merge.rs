//! Merge: two volumes of a chain become one, where nobody wants the image between them any more.
//!
//! The image `t` is removed or hidden and is the only one on its volume V; exactly one volume C is built on it, held by
//! the image `s`. *Up*: what V has and C has not is copied into C, which then is built on what V is built on. *Down*:
//! what C has is copied into V, which then holds `s`. Both passes may be repeated from the beginning at any time.

use std::sync::Arc;
use std::time::Instant;

use vdsmstore_io::{Control, Device, Image, Layer, Plan, execute, plan};

use crate::id::{ImageId, VolumeId};
use crate::job::{Env, Step, percent};
use crate::record::{Backing, ImageRecord, Kind, Progress, State, VolumeFormat, VolumeRecord, VolumeState};
use crate::repo::{Change, Repo};
use crate::repository::{Access, Guard, Marker, OpenVolume, Read};
use crate::{Error, ErrorKind, Result};

use super::chain::{self, mirror_of};
use super::fill::{Limit, WATERMARK_BYTES, WATERMARK_TIME, error_text};
use super::look::{Now, View};
use super::{clean, lease, mirror, resize, try_lock};

/// Virtual bytes of one step.
const STEP: u64 = 64 << 20;

/// Which way the data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Up,
    Down,
}

/// What takes part in a merge, as the records are now.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    /// The image that goes.
    pub lower: ImageRecord,
    pub lower_volume: VolumeRecord,
    /// The image that stays.
    pub upper: ImageRecord,
    pub upper_volume: VolumeRecord,
}

/// The merge that the image `t` allows, if it does.
pub(crate) fn candidate(view: &impl View, t: &ImageRecord) -> Result<Option<Pair>> {
    let unwanted = t.kind == Kind::Hidden && t.state == State::Live
        || matches!(t.state, State::Removed | State::Absorbed);
    if !unwanted || t.next.is_some() {
        return Ok(None);
    }
    let is_ready = |volume: &VolumeRecord| volume.state == VolumeState::Ready;
    let Some(lower_volume) = view.volume(t.volume)?.filter(is_ready) else { return Ok(None) };
    let mut built = view.built_on(t.id())?;
    let (Some(upper_volume), true) = (built.pop(), built.is_empty()) else { return Ok(None) };
    if !is_ready(&upper_volume) || upper_volume.format != VolumeFormat::Qcow2 {
        return Ok(None);
    }
    let mut holding = view.held_by(upper_volume.id())?;
    let (Some(upper), true) = (holding.pop(), holding.is_empty()) else { return Ok(None) };
    let settled = upper.next.is_none() && upper.freeze.is_empty() && upper.volume == upper_volume.id();
    if !settled || !matches!(upper.state, State::Live | State::Removed) {
        return Ok(None);
    }
    let alone = view.held_by(t.volume)?.iter().all(|image| image.id() == t.id());
    if !alone || t.state == State::Absorbed && !t.absorbed_by.contains(&upper_volume.id()) {
        return Ok(None);
    }
    Ok(Some(Pair { lower: t.clone(), lower_volume, upper, upper_volume }))
}

/// The cheaper direction that is possible. Bytes on the storage stand for bytes to copy.
pub(crate) fn direction(repo: &Repo, pair: &Pair) -> Result<Direction> {
    if pair.lower.state == State::Absorbed {
        // Its data is no longer exact, but what the upper one covers is all that was touched: both ways are open.
        return Ok(Direction::Down);
    }
    // A larger volume under a smaller image would show its tail to whoever opens it by path.
    if pair.lower_volume.size > pair.upper_volume.size {
        return Ok(Direction::Up);
    }
    let lower = repo.driver.allocated(pair.lower_volume.id())?;
    let upper = repo.driver.allocated(pair.upper_volume.id())?;
    Ok(if upper <= lower { Direction::Down } else { Direction::Up })
}

/// The moves of a merge, to be priced.
pub(crate) fn price(
    pair: &Pair,
    direction: Direction,
    lower: Arc<dyn Device>,
    upper: Arc<dyn Device>,
) -> Result<Plan> {
    let source = Image::open(pair.two_layers(lower, upper), false)?;
    Ok(plan::layer(&source, direction.layer(), 0, source.size())?)
}

/// A merge under way, with all its locks.
pub(crate) struct Merge {
    repo: Arc<Repo>,
    pair: Pair,
    direction: Direction,
    source: Image,
    target: Image,
    /// The layer of `source` whose data is moved.
    layer: usize,
    position: u64,
    size: u64,
    limit: Limit,
    unflushed: u64,
    flushed_at: Instant,
    /// Given back in this order: bytes first.
    lower: OpenVolume,
    upper: OpenVolume,
    _order: [Box<dyn Guard>; 2],
}

/// Begins a merge: takes all locks or none, and for the downward direction absorbs the lower image.
pub(crate) fn begin(
    repo: &Arc<Repo>,
    env: &Env<'_>,
    t: ImageId,
    bandwidth: Option<u64>,
) -> Result<Option<Merge>> {
    let Some(record) = repo.image(t)? else { return Ok(None) };
    let Some(found) = candidate(&Now(repo, Read::Fresh), &record)? else { return Ok(None) };
    let lower_order = try_lock(repo, t)?;
    let s = found.upper.id();
    let upper_order = try_lock(repo, s)?;
    // Again, now that nobody else changes them.
    let Some(record) = repo.image(t)? else { return Ok(None) };
    let Some(mut pair) = candidate(&Now(repo, Read::Fresh), &record)?.filter(|pair| pair.upper.id() == s)
    else {
        return Ok(None);
    };
    lease::ensure_free(repo, &pair.upper)?;
    let direction = direction(repo, &pair)?;
    let upper = repo.driver.open_volume(pair.upper_volume.id(), Access::Write)?;
    let access = if direction == Direction::Down { Access::Write } else { Access::Read };
    let lower = repo.driver.open_volume(pair.lower_volume.id(), access)?;
    if direction == Direction::Down {
        if !absorb(repo, &mut pair)? {
            return Ok(None);
        }
        grow(repo, &mut pair, &lower)?;
    }
    let mut merge = open(repo, pair, direction, lower, upper, [lower_order, upper_order])?;
    merge.limit = Limit::new(bandwidth);
    env.task.set_stage(merge.direction.stage(), merge.position, merge.size);
    Ok(Some(merge))
}

/// Flags the lower image: from here on its data is its child's only. False: somebody came to need it.
fn absorb(repo: &Repo, pair: &mut Pair) -> Result<bool> {
    if pair.lower.state == State::Absorbed {
        return Ok(true);
    }
    let mut flagged = pair.lower.clone();
    flagged.state = State::Absorbed;
    flagged.absorbed_by = vec![pair.upper_volume.id()];
    if !repo.claim(&mut flagged)? {
        return Ok(false);
    }
    // Who announced itself before the flag is seen now; who comes later sees the flag.
    let alone = Now(repo, Read::Fresh)
        .built_on(flagged.id())?
        .iter()
        .all(|child| child.id() == pair.upper_volume.id());
    if !alone {
        let mut back = ImageRecord { state: pair.lower.state, absorbed_by: Vec::new(), ..flagged };
        repo.replace(&mut back)?;
        return Ok(false);
    }
    pair.lower = flagged;
    Ok(true)
}

/// Makes the lower volume as large as the upper one, reading zeroes there.
fn grow(repo: &Repo, pair: &mut Pair, lower: &OpenVolume) -> Result<()> {
    let (old, new) = (pair.lower_volume.size, pair.upper_volume.size);
    if old >= new {
        return Ok(());
    }
    resize::grow_volume(repo, &mut pair.lower_volume, lower, new)
}

fn open(
    repo: &Arc<Repo>,
    pair: Pair,
    direction: Direction,
    lower: OpenVolume,
    upper: OpenVolume,
    order: [Box<dyn Guard>; 2],
) -> Result<Merge> {
    let both = pair.two_layers(Arc::clone(&lower.device), Arc::clone(&upper.device));
    // What lies below the lower volume takes no part: a source without it tells its own data from what shows through.
    let source = Image::open(both.clone(), false)?;
    let below = match &pair.lower_volume.backing {
        Some(backing) => chain::layers_of(repo, backing)?,
        None => Vec::new(),
    };
    let mut layers = both;
    let size = match direction {
        Direction::Up => layers[1].size.min(pair.upper_volume.size),
        Direction::Down => {
            layers.remove(0);
            layers[0].size = pair.lower_volume.size;
            pair.upper_volume.size
        }
    };
    layers.extend(below);
    let target = Image::open(layers, true)?;
    let position = watermark(repo, &pair, direction, size)?;
    Ok(Merge {
        repo: Arc::clone(repo),
        pair,
        direction,
        source,
        target,
        layer: direction.layer(),
        position,
        size,
        limit: Limit::new(None),
        unflushed: 0,
        flushed_at: Instant::now(),
        lower,
        upper,
        _order: order,
    })
}

/// How far an earlier run of the same merge came: it counts only if nobody wrote the upper image since.
fn watermark(repo: &Repo, pair: &Pair, direction: Direction, size: u64) -> Result<u64> {
    let target = pair.target(direction);
    let progress = repo.progress(pair.upper.id())?.filter(|progress| {
        progress.volume == target.id()
            && progress.epoch == target.header.epoch
            && progress.stage == direction.stage()
            && progress.source_token == Some(pair.upper.token)
            && progress.watermark <= size
    });
    Ok(progress.map_or(0, |progress| progress.watermark))
}

impl Pair {
    /// The upper volume, and what of the lower one shows through it.
    fn two_layers(&self, lower: Arc<dyn Device>, upper: Arc<dyn Device>) -> Vec<Layer> {
        let shown = self.upper_volume.backing.as_ref().map_or(0, |backing| backing.size);
        vec![
            Layer { device: upper, format: self.upper_volume.format.into(), size: self.upper_volume.size },
            Layer { device: lower, format: self.lower_volume.format.into(), size: shown },
        ]
    }

    /// The volume that is written.
    fn target(&self, direction: Direction) -> &VolumeRecord {
        match direction {
            Direction::Up => &self.upper_volume,
            Direction::Down => &self.lower_volume,
        }
    }
}

impl Direction {
    /// The layer of the two whose data is moved.
    fn layer(self) -> usize {
        match self {
            Self::Up => 1,
            Self::Down => 0,
        }
    }

    /// What the progress calls it.
    fn stage(self) -> &'static str {
        match self {
            Self::Up => "merge up",
            Self::Down => "merge down",
        }
    }
}

impl Merge {
    /// Copies the next piece; after the last, seals.
    pub fn step(&mut self, env: &Env<'_>) -> Result<Step> {
        if self.position >= self.size {
            self.target.flush()?;
            match self.direction {
                Direction::Up => self.seal_up()?,
                Direction::Down => self.seal_down()?,
            }
            return Ok(Step::Done);
        }
        if let Some(pause) = self.limit.pause() {
            return Ok(Step::Later(pause));
        }
        let length = STEP.min(self.limit.step()).min(self.size - self.position);
        let plan = plan::layer(&self.source, self.layer, self.position, length)?;
        let control = Control {
            cancel: &|| env.task.is_cancelled(),
            progress: &|bytes| env.task.add_done(bytes),
            threads: env.threads,
        };
        let outcome = env.outcome(execute(&plan, &self.source, None, &self.target, &control))?;
        self.position += length;
        env.task.set_done(self.position);
        self.limit.spend(outcome.read);
        self.unflushed += outcome.written + outcome.zeroed;
        if self.unflushed >= WATERMARK_BYTES || self.flushed_at.elapsed() >= WATERMARK_TIME {
            self.target.flush()?;
            self.persist(None)?;
            self.unflushed = 0;
            self.flushed_at = Instant::now();
        }
        Ok(Step::Again)
    }

    /// All below the position is durable.
    fn persist(&self, error: Option<String>) -> Result<()> {
        let host = self.repo.driver.host();
        let target = self.pair.target(self.direction);
        let progress = Progress {
            volume: target.id(),
            epoch: target.header.epoch,
            incarnation: host.incarnation,
            host: host.host_id.clone(),
            stage: self.direction.stage().to_owned(),
            percent: percent(self.position, self.size),
            watermark: self.position,
            source_token: Some(self.pair.upper.token),
            error,
        };
        self.repo.put_progress(self.pair.upper.id(), &progress)
    }

    /// Persists how far it came, and why it ended.
    pub fn failed(&self, error: &Error) {
        // What cannot be said is found by looking.
        if self.target.flush().is_ok() {
            let _ = self.persist(Some(error_text(error)));
        }
    }

    /// C is built on what V was built on.
    fn seal_up(&mut self) -> Result<()> {
        let (repo, pair) = (&self.repo, &self.pair);
        let t = pair.lower.id();
        let c = pair.upper_volume.id();
        let below = pair.lower_volume.backing.clone();
        let shown = pair.upper_volume.backing.as_ref().map_or(0, |backing| backing.size);
        // Beyond the lower image the upper one read zeroes; what is below it might be longer.
        if below.is_some() && shown < pair.upper_volume.size {
            self.zero_unallocated(shown)?;
            self.target.flush()?;
        }
        let backing = below.map(|below| Backing { size: below.size.min(shown), ..below });
        if let Some(backing) = &backing {
            repo.driver.mark(Marker::Child(backing.image, c))?;
            // It covers now what the lower volume covers.
            permit(repo, backing.image, pair.lower_volume.id(), c)?;
        }
        let mirror = match &backing {
            Some(backing) => mirror_of(repo, backing.image)?,
            None => None,
        };
        mirror::write(&*self.upper.device, mirror)?;
        let sealed = repo.update_volume(c, |now| {
            if now.backing.as_ref().is_none_or(|backing| backing.image != t) {
                return Err(moved(repo, t));
            }
            now.backing.clone_from(&backing);
            now.mirror = mirror.map(|(id, _)| id);
            Ok(Change::Claim)
        })?;
        sealed.ok_or_else(|| moved(repo, t))?;
        repo.driver.unmark(Marker::Child(t, c))
    }

    fn zero_unallocated(&self, from: u64) -> Result<()> {
        let alone = Layer {
            device: Arc::clone(&self.upper.device),
            format: self.pair.upper_volume.format.into(),
            size: self.pair.upper_volume.size,
        };
        let alone = Image::open(vec![alone], false)?;
        let mut holes = Vec::new();
        for run in alone.runs(from, self.pair.upper_volume.size - from) {
            let run = run?;
            if run.kind == vdsmstore_io::RunKind::Hole {
                holes.push((run.offset, run.length));
            }
        }
        for (offset, length) in holes {
            self.target.write_zeroes(offset, length)?;
        }
        Ok(())
    }

    /// V holds s.
    fn seal_down(&mut self) -> Result<()> {
        let (repo, pair) = (&self.repo, &self.pair);
        let s = pair.upper.id();
        let (v, c) = (pair.lower_volume.id(), pair.upper_volume.id());
        // Nobody else reads through the lower image: its volume is about to be written by others.
        if Now(repo, Read::Fresh).built_on(pair.lower.id())?.iter().any(|child| child.id() != c) {
            return Err(moved(repo, pair.lower.id()));
        }
        repo.driver.mark(Marker::Holder(v, s))?;
        let sealed = repo.update_image(s, |now| {
            if now.volume != c || now.next.is_some() || lease::is_held(repo, now)? {
                return Err(moved(repo, s));
            }
            now.volume = v;
            Ok(Change::Claim)
        })?;
        sealed.map(drop).ok_or_else(|| moved(repo, s))
    }

    /// What the seal left over. All of it is found again by a check, should this not be reached.
    pub fn finish(self) -> Result<()> {
        let Self { repo, pair, direction, source, target, lower, upper, _order, .. } = self;
        drop((source, target, lower, upper));
        repo.driver.delete_progress(pair.upper.id())?;
        match direction {
            Direction::Up => clean::image(&repo, pair.lower.id()),
            Direction::Down => finish_down(&repo, &pair),
        }
    }
}

/// After the seal of a downward merge: the lower image and the upper volume go.
fn finish_down(repo: &Repo, pair: &Pair) -> Result<()> {
    mirror::correct_children(repo, pair.upper.id())?;
    clean::volume(repo, pair.upper_volume.id())?;
    clean::image(repo, pair.lower.id())
}

/// Before `new` is built on `base`, where `like` is built, all of whose clusters it has: should `base` be on its way into
/// another volume, it reads exactly through `new` as well.
pub(crate) fn permit(repo: &Repo, base: ImageId, like: VolumeId, new: VolumeId) -> Result<()> {
    repo.update_image(base, |now| {
        let absorbed = now.state == State::Absorbed && now.absorbed_by.contains(&like);
        if !absorbed || now.absorbed_by.contains(&new) {
            return Ok(Change::Keep);
        }
        now.absorbed_by.push(new);
        Ok(Change::Put)
    })
    .map(drop)
}

fn moved(repo: &Repo, id: ImageId) -> Error {
    let message = format!("image {id} in repository {:?} changed while it was being merged", repo.id);
    Error::new(ErrorKind::Stopped, message)
}
