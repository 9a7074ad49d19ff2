//! Fill: the bytes of a volume are brought in place, in steps, with a durable watermark.

mod claim;
mod hashing;
mod layout;
mod limit;
mod source;

use std::sync::Arc;
use std::time::{Duration, Instant};

use vdsmstore_io::hash::{Manifest, Units};
use vdsmstore_io::plan::Part;
use vdsmstore_io::{Image, Layer, Plan, Target, execute, execute_hashed, hash, plan, without};

use crate::id::{ImageId, Token};
use crate::job::{Env, Step};
use crate::record::{Fill, How, ImageRecord, Progress, Source, State, VolumeRecord, VolumeState};
use crate::repo::{Change, Repo};
use crate::repository::{Access, Liveness, OpenVolume, Read};
use crate::{Error, ErrorKind, Result, machine};

use super::{add, chain, manifest};
use claim::{claim, replace_volume};
use hashing::Hashing;
use layout::lay_out;
use source::{Opened, is_source_pending, open_base, open_source, settle_base};

pub(crate) use claim::watermark;
pub(crate) use layout::{create_qcow2, lay_out_clone, look_at_target};
pub(crate) use limit::Limit;
pub(crate) use source::{find_base, find_image};

/// What one step moves.
pub(crate) const STEP: u64 = 64 << 20;
/// The longest step, over little or nothing.
pub(crate) const LONG_STEP: u64 = 64 << 30;
/// The same where hashes are taken: those of so much take 2 MiB.
const LONG_HASHED: u64 = 4 << 30;
/// At most so many bytes of a job wait in the page cache to be written.
pub(crate) const CACHED: u64 = 64 << 20;
/// How often what is done is made durable, and said. It is looked at between steps: so that at most a step is done again
/// after a crash, or if steps take less than this, twice the work of this time.
pub(crate) const WATERMARK_TIME: Duration = Duration::from_secs(1);
/// How often a base that vanishes is looked for again.
const BASE_TRIES: u32 = 5;
/// How often a fill looks whether it is still wanted.
const LOOK: Duration = Duration::from_secs(1);

/// A volume being filled for an image: as its volume if it is pending, else as its next one.
pub(crate) struct Filler {
    repo: Arc<Repo>,
    image: ImageId,
    /// The state of the image's data.
    token: Token,
    volume: VolumeRecord,
    stage: String,
    /// Keeps the lock on the target's bytes.
    opened: OpenVolume,
    copy: Option<Copying>,
}

struct Copying {
    source: Opened,
    base: Option<Opened>,
    target: Image,
    backed: bool,
    /// Nothing was written to the target before: what is not written reads as zeroes.
    fresh: bool,
    size: u64,
    position: u64,
    watermark: u64,
    unflushed: u64,
    /// Hashes are taken of what is copied.
    hashing: Option<Hashing>,
    limit: Limit,
    flushed_at: Instant,
    looked_at: Instant,
}

impl Copying {
    /// The hashes of the base, if they are known.
    fn known(&self) -> Option<&Manifest> {
        self.base.as_ref().and_then(|base| base.manifest.as_ref())
    }

    /// The units of the next part of that length, if anybody wants their hashes: those of the end of the disk, too, if it is the last.
    fn units(&self, length: u64) -> Option<Units> {
        match &self.hashing {
            Some(hashing) => Some(hashing.units(self.position, length, self.position + length == self.size)),
            None => self.known().map(|_| Units::new(self.position, length)),
        }
    }

    /// What is to be done to the next part: so long that there is enough to do.
    fn next_plan(&self) -> Result<Plan> {
        let longest = match (&self.hashing, self.known()) {
            (None, None) => LONG_STEP,
            // What the plan leaves out is read all the same.
            (Some(_), _) if self.base.is_some() => STEP.min(self.limit.step()),
            _ => LONG_HASHED,
        };
        // Of whole blocks hashes can be taken.
        let align = self.known().map_or(Limit::SMALLEST, Manifest::block_size);
        let end = (self.position + longest).next_multiple_of(align).min(self.size);
        let part = Part {
            length: end - self.position,
            moved: STEP.min(self.limit.step()),
            align,
            units: self.hashing.is_some(),
        };
        let base = self.base.as_ref().map(|base| &base.image);
        let target = Target { backed: self.backed, known_zero: !self.backed && self.fresh };
        Ok(plan::copy_part(&self.source.image, base, target, self.position, &part)?)
    }
}

/// A fill that can begin, or why it cannot yet.
pub(crate) enum Start {
    Filling(Box<Filler>),
    /// The source changed since the intent, or the volume may still be written by somebody else: it was replaced by
    /// a new one.
    Replaced,
    /// The image that it is a clone of is not complete yet.
    NotYet,
}

impl Filler {
    /// Takes over the fill of `volume` for `image`, whose lock the caller holds.
    pub fn start(
        repo: &Arc<Repo>,
        env: &Env<'_>,
        image: &ImageRecord,
        volume: VolumeRecord,
        stage: &str,
        bandwidth: Option<u64>,
    ) -> Result<Start> {
        let Some(mut fill) = volume.fill.clone() else {
            return Err(chain::broken(repo, image.id(), "its volume does not say what to fill it from"));
        };
        let Some((mut volume, from)) = claim(repo, image, volume)? else {
            return replace_volume(repo, image, fill).map(|()| Start::Replaced);
        };
        set_bandwidth(repo, &mut volume, &mut fill, bandwidth)?;
        if fill.how == How::Clone && is_source_pending(repo, &fill)? {
            return Ok(Start::NotYet);
        }
        if fill.how == How::Clone && !layout::can_clone(repo, &volume, &fill)? {
            return claim::clone_anew(repo, image, &fill).map(|()| Start::Replaced);
        }
        if fill.how == How::Diff && volume.backing.is_none() {
            settle_base(repo, &mut volume, &fill)?;
        }
        let source = open_source(repo, env, image, &fill)?;
        // A disk that was written since the intent: what is copied is its present state, from the beginning.
        if let (Some(opened), Some(wanted)) = (&source, &fill.source)
            && let Some(token) = opened.token.filter(|token| *token != wanted.token)
            && !without!("fill.compare.token")
        {
            fill.source = Some(Source { token, ..wanted.clone() });
            if from > 0 && !without!("fill.compare.from") {
                drop(source);
                return replace_volume(repo, image, fill).map(|()| Start::Replaced);
            }
            store_fill(repo, &mut volume, &fill)?;
        }
        let base = match &volume.backing {
            Some(backing) => open_base(repo, env, backing, fill.how)?,
            None => None,
        };
        let opened = if from > 0 {
            repo.driver.open_volume(volume.id(), Access::Write)?
        } else {
            lay_out(repo, &mut volume, &fill)?
        };
        let copy = match source {
            None => None,
            Some(source) => Some(copying(repo, image, &volume, &opened, &fill, source, base, from)?),
        };
        let filler = Self {
            repo: Arc::clone(repo),
            image: image.id(),
            token: image.token,
            volume,
            stage: stage.to_owned(),
            opened,
            copy,
        };
        if let Some(copy) = &filler.copy {
            env.task.set_stage(stage, copy.position, copy.size);
            // Who was displaced while it began would write over what its successor says.
            filler.look()?;
            filler.persist(copy, None)?;
        } else {
            env.task.set_stage(stage, 0, 0);
        }
        Ok(Start::Filling(Box::new(filler)))
    }

    /// The volume that is being filled.
    pub fn volume(&self) -> &VolumeRecord {
        &self.volume
    }

    /// Copies the next piece. Done: everything is in place and durable.
    pub fn step(&mut self, env: &Env<'_>) -> Result<Step> {
        let Some(mut copy) = self.copy.take() else {
            if !without!("fill.flush.laid") {
                self.opened.device.flush()?;
            }
            return Ok(Step::Done);
        };
        let result = self.copy_some(&mut copy, env);
        let result = match result {
            Ok(Step::Done) => self.keep_hashes(&mut copy).map(|()| Step::Done),
            other => other,
        };
        self.copy = Some(copy);
        result
    }

    /// Stores the hashes of what was copied. What is not what it should be is copied again from the beginning.
    fn keep_hashes(&mut self, copy: &mut Copying) -> Result<()> {
        let manifest = match copy.hashing.take().map(Hashing::finish).transpose() {
            Ok(manifest) => manifest.flatten(),
            Err(error) => {
                (copy.position, copy.watermark) = (0, 0);
                if let Some(fill) = self.volume.fill.clone() {
                    store_fill(&self.repo, &mut self.volume, &Fill { from: 0, ..fill })?;
                }
                return Err(error);
            }
        };
        if let Some(manifest) = manifest {
            let stored = manifest::store(&self.repo, self.image, self.token, &manifest)?;
            self.volume.manifest = Some(stored);
        }
        Ok(())
    }

    fn copy_some(&self, copy: &mut Copying, env: &Env<'_>) -> Result<Step> {
        if machine::since(copy.looked_at) >= LOOK && !without!("fill.look.often") {
            self.look()?;
            copy.looked_at = machine::now();
        }
        if copy.position >= copy.size {
            if !without!("fill.flush.end") {
                copy.target.flush()?;
            }
            read_back(copy, env)?;
            copy.source.ensure_same()?;
            return Ok(Step::Done);
        }
        if let Some(pause) = copy.limit.pause() {
            return Ok(Step::Later(pause));
        }
        if let Some(hashing) = &mut copy.hashing
            && let Some((offset, length)) = hashing.former(copy.limit.step().min(STEP))
        {
            let units = Units::new(offset, length);
            copy.limit.spend(env.reads(|control| units.complete(&copy.target, control))?.read);
            hashing.push_former(&units);
            return Ok(Step::Again);
        }
        let mut plan = copy.next_plan()?;
        let length = plan.length();
        let (source, target) = (&copy.source.image, &copy.target);
        let base = copy.base.as_ref().map(|base| &base.image);
        let units = copy.units(length);
        let mut read = 0;
        if let (Some(known), Some(units)) = (copy.known(), &units) {
            let (rest, sieved) = env.reads(|control| hash::sieve(&plan, source, known, units, control))?;
            (plan, read) = (rest, sieved.read);
        }
        let outcome = env.moves(|control| match (&copy.hashing, &units) {
            (Some(_), Some(units)) => execute_hashed(&plan, source, base, target, units, control),
            _ => execute(&plan, source, base, target, control),
        })?;
        read += outcome.read;
        if let (Some(hashing), Some(units)) = (&mut copy.hashing, units) {
            if hashing.verify() {
                read += env.reads(|control| units.complete(source, control))?.read;
            }
            hashing.push(units, &plan, base.is_some());
        }
        copy.position += length;
        env.task.set_done(copy.position);
        copy.limit.spend(read.max(outcome.written) + outcome.offloaded);
        copy.unflushed += outcome.cached() + outcome.zeroed.min(STEP);
        let is_full = copy.hashing.as_ref().is_some_and(Hashing::is_full);
        if copy.unflushed >= CACHED || is_full || machine::since(copy.flushed_at) >= WATERMARK_TIME {
            self.flush(copy, env)?;
        }
        Ok(Step::Again)
    }

    fn flush(&self, copy: &mut Copying, env: &Env<'_>) -> Result<()> {
        if !without!("fill.flush.watermark") {
            copy.target.flush()?;
        }
        read_back(copy, env)?;
        copy.watermark = copy.position;
        copy.unflushed = 0;
        copy.flushed_at = machine::now();
        copy.source.ensure_same()?;
        // A watermark of a host that lost the volume would lie about its successor's bytes.
        if !without!("fill.look.watermark") {
            self.look()?;
        }
        copy.looked_at = machine::now();
        env.task.set_done(copy.position);
        self.persist(copy, None)
    }

    fn persist(&self, copy: &Copying, error: Option<String>) -> Result<()> {
        self.repo.put_progress(
            self.image,
            &self.progress(copy.position, copy.watermark, copy.size, error, copy.source.token),
        )
    }

    fn progress(
        &self,
        position: u64,
        watermark: u64,
        size: u64,
        error: Option<String>,
        token: Option<Token>,
    ) -> Progress {
        let host = self.repo.driver.host();
        Progress {
            volume: self.volume.id(),
            epoch: self.volume.header.epoch,
            incarnation: host.incarnation,
            host: host.host_id.clone(),
            stage: self.stage.clone(),
            percent: crate::job::percent(position, size),
            watermark,
            source_token: token,
            error,
        }
    }

    /// Persists why the work ended early.
    pub fn failed(&self, error: &Error) {
        let standing = self.standing();
        if matches!(standing, Ok(VolumeState::Ready)) {
            // All is in place, and the image could not be told.
            persist_error(&self.repo, self.image, error);
        } else if matches!(standing, Ok(VolumeState::Filling)) {
            let (position, watermark, size, token) = self.copy.as_ref().map_or((0, 0, 0, None), |copy| {
                // What was copied whole is kept, if it can be.
                let flushed = without!("fill.flush.failed") || copy.target.flush().is_ok();
                // What was not read back yet is copied again.
                let verify = copy.hashing.as_ref().is_some_and(Hashing::verify);
                let watermark = if flushed && !verify { copy.position } else { copy.watermark };
                (copy.position, watermark, copy.size, copy.source.token)
            });
            // It cannot be said if the storage does not take it.
            let progress = self.progress(position, watermark, size, Some(error_text(error)), token);
            let _ = self.repo.put_progress(self.image, &progress);
        }
    }

    /// Whether the work is still wanted, and ours.
    fn look(&self) -> Result<()> {
        match self.standing()? {
            VolumeState::Filling => Ok(()),
            _ => Err(add::displaced(&self.repo, self.volume.id())),
        }
    }

    /// The state of the volume, if it is still wanted, and ours.
    fn standing(&self) -> Result<VolumeState> {
        let id = self.volume.id();
        let displaced = || add::displaced(&self.repo, id);
        let volume = self.repo.volume(id)?.ok_or_else(displaced)?;
        // Last: who takes over without proof leaves the volume as it is, and moves the image.
        let image = self.repo.image(self.image)?.ok_or_else(displaced)?;
        let wanted = match image.state {
            _ if without!("fill.compare.wanted") => true,
            State::Pending => image.volume == id,
            State::Live | State::Removed => image.next == Some(id),
            State::Absorbed => false,
        };
        let ours = (self.repo.owns(&volume.header) || without!("fill.compare.owner"))
            && (volume.header.epoch == self.volume.header.epoch || without!("fill.compare.epoch"));
        if wanted && ours { Ok(volume.state) } else { Err(displaced()) }
    }
}

/// Reads back what was flushed, if that is wanted.
fn read_back(copy: &mut Copying, env: &Env<'_>) -> Result<()> {
    if let Some(hashing) = &mut copy.hashing {
        copy.limit.spend(hashing.read_back(&copy.target, env)?);
    }
    Ok(())
}

/// An error as one line of at most 512 bytes.
pub(crate) fn error_text(error: &Error) -> String {
    let mut text = error.message().to_owned();
    if text.len() > 512 {
        let end = (0..=512).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

/// Persists a new limit, so that whoever goes on obeys it.
fn set_bandwidth(
    repo: &Repo,
    volume: &mut VolumeRecord,
    fill: &mut Fill,
    bandwidth: Option<u64>,
) -> Result<()> {
    if bandwidth.is_none() || fill.bandwidth == bandwidth {
        return Ok(());
    }
    fill.bandwidth = bandwidth;
    store_fill(repo, volume, fill)
}

/// Persists what a volume that is ours is filled from.
fn store_fill(repo: &Repo, volume: &mut VolumeRecord, fill: &Fill) -> Result<()> {
    let epoch = volume.header.epoch;
    let written = repo.update_volume(volume.id(), |now| {
        if (now.header.epoch != epoch || !repo.owns(&now.header)) && !without!("fill.compare.store") {
            return Err(add::displaced(repo, volume.id()));
        }
        now.fill = Some(fill.clone());
        Ok(Change::Put)
    })?;
    *volume = written.ok_or_else(|| add::displaced(repo, volume.id()))?;
    Ok(())
}

#[allow(clippy::too_many_arguments)] // One place puts them together.
fn copying(
    repo: &Repo,
    image: &ImageRecord,
    volume: &VolumeRecord,
    opened: &OpenVolume,
    fill: &Fill,
    source: Opened,
    base: Option<Opened>,
    from: u64,
) -> Result<Copying> {
    let mut layers =
        vec![Layer { device: Arc::clone(&opened.device), format: volume.format.into(), size: volume.size }];
    if let (Some(base), Some(backing)) = (&base, &volume.backing) {
        let mut below = base.layers.clone();
        if let Some(first) = below.first_mut() {
            first.size = backing.size;
        }
        layers.extend(below);
    }
    let backed = volume.backing.is_some();
    let expected = expected(repo, image, fill, &source)?;
    let hashed = fill.verify || expected.is_some() && fill.how == How::Copy;
    Ok(Copying {
        hashing: hashed.then(|| Hashing::new(image.size, fill.verify, expected, from)),
        target: chain::open_layers(layers, true, repo.memory)?,
        size: source.image.size().min(volume.size),
        source,
        base,
        backed,
        fresh: from == 0 || without!("fill.zero"),
        position: from,
        watermark: from,
        unflushed: 0,
        limit: Limit::new(fill.bandwidth),
        flushed_at: machine::now(),
        looked_at: machine::now(),
    })
}

/// The hashes that the data must have: the source says so, or the image itself, which lost it.
fn expected(repo: &Repo, image: &ImageRecord, fill: &Fill, source: &Opened) -> Result<Option<Manifest>> {
    let ours =
        if image.state == State::Live && fill.how == How::Copy { manifest::of(repo, image) } else { None };
    match (&source.manifest, ours) {
        (Some(theirs), Some(ours)) if *theirs != ours => {
            let message = format!(
                "image {} has other hashes in repository {:?} than where it is copied from: neither is believed",
                image.id(),
                repo.id
            );
            Err(Error::new(ErrorKind::VerificationFailed, message).with("imageId", image.id().to_string()))
        }
        (theirs, ours) => Ok(ours.or_else(|| theirs.clone())),
    }
}

/// Persists why the work on an image could not even begin, if there is work left on it, or it cannot be read.
pub(crate) fn persist_error(repo: &Repo, id: ImageId, error: &Error) {
    let persisted = (|| -> Result<()> {
        let Some(image) = repo.image(id)? else { return Ok(()) };
        let unfinished = image.state == State::Pending || image.next.is_some();
        if !unfinished && chain::whole(repo, image.clone(), Read::Fresh).is_ok() {
            return Ok(());
        }
        let volume_id = image.next.unwrap_or(image.volume);
        let Some(volume) = repo.volume(volume_id)? else { return Ok(()) };
        let host = repo.driver.host();
        let former = repo
            .progress(id)?
            .filter(|former| former.volume == volume_id && former.epoch == volume.header.epoch);
        // Who works on it by now says what becomes of it.
        if let Some(former) = former.as_ref().filter(|former| former.error.is_none())
            && former.incarnation != host.incarnation
            && repo.driver.liveness(former.incarnation)? == Liveness::Alive
        {
            return Ok(());
        }
        let progress = Progress {
            volume: volume_id,
            epoch: volume.header.epoch,
            incarnation: host.incarnation,
            host: host.host_id.clone(),
            stage: former.as_ref().map_or_else(String::new, |former| former.stage.clone()),
            percent: former.as_ref().map_or(-1, |former| former.percent),
            watermark: former.as_ref().map_or(0, |former| former.watermark),
            source_token: former.and_then(|former| former.source_token),
            error: Some(error_text(error)),
        };
        repo.put_progress(id, &progress)
    })();
    // The failure itself is what the task reports.
    drop(persisted);
}
