//! Fill: the bytes of a volume are brought in place, in steps, with a durable watermark.

use std::sync::Arc;
use std::time::{Duration, Instant};

use vdsmstore_io::{Control, Device, Image, Layer, Target, execute, plan, qcow2};

use crate::id::{ImageId, Token, VolumeId};
use crate::job::{Env, Step};
use crate::record::{
    Backing, Fill, How, ImageRecord, Kind, Progress, Source, State, VolumeFormat, VolumeRecord, VolumeState,
};
use crate::repo::{Change, Repo};
use crate::repository::{Access, Liveness, Marker, OpenVolume};
use crate::{Error, ErrorKind, Result};

use super::chain::{self, OpenChain};
use super::search::elsewhere;
use super::{add, clean, import, in_use, lease, switch};

/// Virtual bytes of one step where there is data; more where there is none.
const STEP: u64 = 64 << 20;
/// The longest step over nothing.
const LONG_STEP: u64 = 64 << 30;
/// At most so much is copied again after a crash: this many bytes, or the work of [`WATERMARK_TIME`].
const WATERMARK_BYTES: u64 = 64 << 20;
const WATERMARK_TIME: Duration = Duration::from_secs(2);
/// How often a base that vanishes is looked for again.
const BASE_TRIES: u32 = 5;
/// How often a fill looks whether it is still wanted.
const LOOK: Duration = Duration::from_secs(1);

/// Bytes to read, and what keeps them from changing.
struct Opened {
    image: Image,
    token: Option<Token>,
    /// The same bytes as layers; a file outside has none.
    layers: Vec<Layer>,
}

impl Opened {
    fn new(chain: &OpenChain) -> Result<Self> {
        let layers = chain.chain.layers(&chain.volumes);
        Ok(Self { image: chain.image(false)?, token: Some(chain.chain.top().image.token), layers })
    }
}

/// A volume being filled for an image: as its volume if it is pending, else as its next one.
pub(crate) struct Filler {
    repo: Arc<Repo>,
    image: ImageId,
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
    step: u64,
    flushed_at: Instant,
    looked_at: Instant,
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
    ) -> Result<Start> {
        let Some(fill) = volume.fill.clone() else {
            return Err(chain::broken(repo, image.id(), "its volume does not say what to fill it from"));
        };
        let Some((mut volume, from)) = claim(repo, image, volume)? else {
            return replace_volume(repo, image, fill).map(|()| Start::Replaced);
        };
        if fill.how == How::Clone && matches!(source_state(repo, &fill)?, SourceState::NotYet) {
            return Ok(Start::NotYet);
        }
        if fill.how == How::Diff && volume.backing.is_none() {
            settle_base(repo, &mut volume, &fill)?;
        }
        let source = open_source(repo, env, image, &fill)?;
        // A disk that was written since the intent: what is copied is its present state, from the beginning.
        if let (Some(opened), Some(wanted)) = (&source, &fill.source)
            && opened.token.is_some_and(|token| token != wanted.token)
        {
            let mut fill = fill.clone();
            fill.source = opened.token.map(|token| Source { token, ..wanted.clone() });
            drop(source);
            return replace_volume(repo, image, fill).map(|()| Start::Replaced);
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
            Some(source) => Some(copying(&volume, &opened, source, base, from)?),
        };
        let filler =
            Self { repo: Arc::clone(repo), image: image.id(), volume, stage: stage.to_owned(), opened, copy };
        if let Some(copy) = &filler.copy {
            env.task.set_stage(stage, copy.position, copy.size);
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
            self.opened.device.flush()?;
            return Ok(Step::Done);
        };
        let result = self.copy_some(&mut copy, env);
        self.copy = Some(copy);
        result
    }

    fn copy_some(&self, copy: &mut Copying, env: &Env<'_>) -> Result<Step> {
        if copy.looked_at.elapsed() >= LOOK {
            self.look()?;
            copy.looked_at = Instant::now();
        }
        if copy.position >= copy.size {
            copy.target.flush()?;
            return Ok(Step::Done);
        }
        let length = copy.step.min(copy.size - copy.position);
        let target = Target { backed: copy.backed, known_zero: !copy.backed && copy.fresh };
        let base = copy.base.as_ref().map(|base| &base.image);
        let plan = plan::copy(&copy.source.image, base, target, copy.position, length)?;
        copy.step = if plan.moves().is_empty() { (copy.step * 2).min(LONG_STEP) } else { STEP };
        let control = Control {
            cancel: &|| env.task.is_cancelled(),
            progress: &|bytes| env.task.add_done(bytes),
            threads: env.threads,
        };
        let outcome = execute(&plan, &copy.source.image, base, &copy.target, &control);
        let outcome = match outcome {
            Err(error) if error.kind() == vdsmstore_io::ErrorKind::Cancelled => {
                // What was copied whole before this step is kept.
                self.flush(copy, env)?;
                return Err(Error::new(ErrorKind::Stopped, format!("task {:?} was stopped", env.task.id)));
            }
            outcome => outcome?,
        };
        copy.position += length;
        env.task.set_done(copy.position);
        copy.unflushed += outcome.written + outcome.zeroed.min(STEP);
        if copy.unflushed >= WATERMARK_BYTES || copy.flushed_at.elapsed() >= WATERMARK_TIME {
            self.flush(copy, env)?;
        }
        Ok(Step::Again)
    }

    fn flush(&self, copy: &mut Copying, env: &Env<'_>) -> Result<()> {
        copy.target.flush()?;
        copy.watermark = copy.position;
        copy.unflushed = 0;
        copy.flushed_at = Instant::now();
        // A watermark of a host that lost the volume would lie about its successor's bytes.
        self.look()?;
        copy.looked_at = Instant::now();
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
        let (position, watermark, size, token) = self
            .copy
            .as_ref()
            .map_or((0, 0, 0, None), |copy| (copy.position, copy.watermark, copy.size, copy.source.token));
        if self.look().is_ok() {
            // It cannot be said if the storage does not take it.
            let progress = self.progress(position, watermark, size, Some(error_text(error)), token);
            let _ = self.repo.put_progress(self.image, &progress);
        }
    }

    /// Whether the work is still wanted, and ours.
    fn look(&self) -> Result<()> {
        let id = self.volume.id();
        let displaced = || add::displaced(&self.repo, id);
        let image = self.repo.image(self.image)?.ok_or_else(displaced)?;
        let wanted = match image.state {
            State::Pending => image.volume == id,
            State::Live | State::Removed => image.next == Some(id),
            State::Absorbed => false,
        };
        let volume = self.repo.volume(id)?.ok_or_else(displaced)?;
        let ours = self.repo.owns(&volume.header)
            && volume.header.epoch == self.volume.header.epoch
            && volume.state == VolumeState::Filling;
        if wanted && ours { Ok(()) } else { Err(displaced()) }
    }
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

/// Becomes the owner of a filling volume, and says from where on to fill it. None: a former owner may still write it.
fn claim(repo: &Repo, image: &ImageRecord, mut volume: VolumeRecord) -> Result<Option<(VolumeRecord, u64)>> {
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
fn watermark(repo: &Repo, image: &ImageRecord, volume: &VolumeRecord) -> Result<u64> {
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
fn replace_volume(repo: &Repo, image: &ImageRecord, mut fill: Fill) -> Result<()> {
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

/// A diff whose base the caller named: an immutable image is it; a disk is frozen as one; if it is gone, all data
/// is stored.
fn settle_base(repo: &Repo, volume: &mut VolumeRecord, fill: &Fill) -> Result<()> {
    let Some(named) = fill.base else { return Ok(()) };
    for _ in 0..BASE_TRIES {
        let base = match repo.image(named)? {
            Some(image) if image.can_back() => image,
            Some(image) if image.kind == Kind::Disk && image.visible() => {
                switch::freeze_as_base(repo, named)?
            }
            _ => return Ok(()),
        };
        repo.driver.mark(Marker::Child(base.id(), volume.id()))?;
        if set_backing(repo, volume, Some(Backing { image: base.id(), size: base.size }))?
            && add::look(repo, base.id(), false).is_ok()
        {
            return Ok(());
        }
        // It was cleaned away, or our announcement was, before the one could see the other: from the beginning.
        while !set_backing(repo, volume, None)? {}
        repo.driver.unmark(Marker::Child(base.id(), volume.id()))?;
    }
    Err(in_use(repo, named, "it changes all the time"))
}

/// Writes the backing image of a volume that we fill. False: the record moved; it was read again.
fn set_backing(repo: &Repo, volume: &mut VolumeRecord, backing: Option<Backing>) -> Result<bool> {
    let epoch = volume.header.epoch;
    volume.backing = backing;
    if repo.replace(volume)? {
        return Ok(true);
    }
    let now = repo.volume(volume.id())?.filter(|now| repo.owns(&now.header) && now.header.epoch == epoch);
    *volume = now.ok_or_else(|| add::displaced(repo, volume.id()))?;
    Ok(false)
}

enum SourceState {
    Ready,
    NotYet,
}

/// Whether the image to be cloned, which is in this repository, is complete.
fn source_state(repo: &Repo, fill: &Fill) -> Result<SourceState> {
    let Some(source) = &fill.source else { return Ok(SourceState::Ready) };
    let pending = repo.image(source.image)?.is_some_and(|image| image.state == State::Pending);
    Ok(if pending { SourceState::NotYet } else { SourceState::Ready })
}

/// Opens what is to be copied; None if nothing is.
fn open_source(repo: &Arc<Repo>, env: &Env<'_>, image: &ImageRecord, fill: &Fill) -> Result<Option<Opened>> {
    match fill.how {
        How::Zero | How::Clone => Ok(None),
        How::Import => {
            let opened = import::open(repo, image, fill)?;
            Ok(Some(Opened { image: opened, token: None, layers: Vec::new() }))
        }
        How::Flatten => {
            let access = if image.kind == Kind::Disk { Access::ReadStill } else { Access::Read };
            Opened::new(&chain::open(repo, image.id(), access)?).map(Some)
        }
        How::Copy | How::Diff => {
            let source =
                fill.source.as_ref().ok_or_else(|| chain::broken(repo, image.id(), "no source is named"))?;
            open_image(repo, env, source, image.id()).map(Some)
        }
    }
}

/// Opens the image that is copied, wherever it is.
fn open_image(target: &Arc<Repo>, env: &Env<'_>, source: &Source, except: ImageId) -> Result<Opened> {
    // The repository where it was found comes first: a disk is only there.
    let mut places: Vec<_> = env.repos.iter().collect();
    places.sort_by_key(|repo| repo.driver.repository_nonce() != source.repo);
    for repo in places {
        let here = Arc::ptr_eq(repo, target);
        if here && source.image == except {
            continue;
        }
        let Some(record) = repo.image(source.image)? else { continue };
        if record.kind == Kind::Disk {
            if repo.driver.repository_nonce() != source.repo || record.state != State::Live {
                continue;
            }
            lease::ensure_free(repo, &record)?;
            env.task.uses(repo, source.image);
            return Opened::new(&chain::open(repo, source.image, Access::ReadStill)?);
        }
        if !record.can_back() || chain::whole(repo, record.clone(), crate::repository::Read::Fresh).is_err() {
            continue;
        }
        env.task.uses(repo, source.image);
        let mut opened = Opened::new(&chain::open(repo, source.image, Access::Read)?)?;
        // A snapshot's id names its data; there is nothing more to compare.
        opened.token = Some(source.token);
        return Ok(opened);
    }
    let message = format!(
        "image {}, which is to be copied, is in no connected repository, or is not usable",
        source.image
    );
    Err(Error::new(ErrorKind::ImageNotFound, message).with("imageId", source.image.to_string()))
}

/// Opens the image whose data shows through the target, for reading; None if the fill does not need it.
fn open_base(repo: &Arc<Repo>, env: &Env<'_>, backing: &Backing, how: How) -> Result<Option<Opened>> {
    if how != How::Diff {
        return Ok(None);
    }
    if let Some(record) = repo.image(backing.image)?
        && chain::whole(repo, record, crate::repository::Read::Fresh).is_ok()
    {
        return Opened::new(&chain::open(repo, backing.image, Access::Read)?).map(Some);
    }
    if let Some(other) = elsewhere(&env.repos, repo, backing.image)? {
        env.task.uses(&other, backing.image);
        return Opened::new(&chain::open(&other, backing.image, Access::Read)?).map(Some);
    }
    let message = format!(
        "image {}, the base of a difference, is in no connected repository, or is not usable",
        backing.image
    );
    Err(Error::new(ErrorKind::ImageNotFound, message).with("imageId", backing.image.to_string()))
}

/// Creates the data object and gives it the layout that the fill starts from.
fn lay_out(repo: &Repo, volume: &mut VolumeRecord, fill: &Fill) -> Result<OpenVolume> {
    if fill.how == How::Clone {
        return lay_out_clone(repo, volume, fill);
    }
    let opened = repo.driver.create_volume(volume.id())?;
    match volume.format {
        VolumeFormat::Raw => {
            opened.device.set_len(volume.size)?;
            if fill.preallocate {
                opened.device.allocate(0, volume.size)?;
            }
        }
        VolumeFormat::Qcow2 => {
            let name = match &volume.backing {
                Some(backing) => chain::mirror_of(repo, backing.image)?,
                None => None,
            };
            create_qcow2(&*opened.device, volume, name)?;
            volume.mirror = name.map(|(id, _)| id);
        }
    }
    Ok(opened)
}

fn lay_out_clone(repo: &Repo, volume: &mut VolumeRecord, fill: &Fill) -> Result<OpenVolume> {
    let source = fill.source.as_ref().ok_or_else(|| add::displaced(repo, volume.id()))?;
    let chain = chain::open(repo, source.image, Access::Read)?;
    let top = &chain.chain.top().volume;
    if top.format != volume.format || top.backing != volume.backing {
        let message =
            format!("image {} changed its representation: the clone must be announced anew", source.image);
        return Err(Error::new(ErrorKind::Conflict, message));
    }
    let opened = repo.driver.clone_volume(&chain.volumes[0], volume.id())?;
    if volume.format == VolumeFormat::Raw && opened.device.len()? != volume.size {
        opened.device.set_len(volume.size)?;
    }
    volume.mirror = top.mirror;
    Ok(opened)
}

/// Writes an empty qcow2 image; its header names the volume of the backing image, or while that is not here, the image.
pub(crate) fn create_qcow2(
    device: &dyn Device,
    volume: &VolumeRecord,
    name: Option<(VolumeId, VolumeFormat)>,
) -> Result<()> {
    let backing = volume.backing.as_ref().map(|backing| match name {
        Some((id, format)) => qcow2::Backing { name: id.to_string(), format: format.into() },
        None => qcow2::Backing { name: backing.image.to_string(), format: VolumeFormat::Raw.into() },
    });
    let options = qcow2::CreateOptions { size: volume.size, backing, preallocate_metadata: false };
    Ok(qcow2::create(device, &options)?)
}

fn copying(
    volume: &VolumeRecord,
    opened: &OpenVolume,
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
    Ok(Copying {
        target: Image::open(layers, true)?,
        size: source.image.size().min(volume.size),
        source,
        base,
        backed,
        fresh: from == 0,
        position: from,
        watermark: from,
        unflushed: 0,
        step: STEP,
        flushed_at: Instant::now(),
        looked_at: Instant::now(),
    })
}

/// Persists why the work on an image could not even begin, if there is work left on it.
pub(crate) fn persist_error(repo: &Repo, id: ImageId, error: &Error) {
    let persisted = (|| -> Result<()> {
        let Some(image) = repo.image(id)? else { return Ok(()) };
        let volume_id = image.next.unwrap_or(image.volume);
        let Some(volume) = repo.volume(volume_id)? else { return Ok(()) };
        let host = repo.driver.host();
        let former = repo
            .progress(id)?
            .filter(|former| former.volume == volume_id && former.epoch == volume.header.epoch);
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
