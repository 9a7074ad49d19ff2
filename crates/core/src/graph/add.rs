//! Add new: a volume and an image are announced, so that any host can fill and seal them.
//!
//! Order: child marker, volume record (filling), holder marker, image record (pending), then a look at the base. The
//! call may return after that; the data object is created by the fill.

use vdsmstore_io::without;

use crate::id::{BlobId, ImageId, Token, VolumeId};
use crate::options::Strategy;
use crate::record::{
    Backing, Fill, How, ImageRecord, Kind, ManifestRef, State, Unknown, UserDataRef, VolumeFormat,
    VolumeRecord, VolumeState,
};
use crate::repo::{Change, Repo};
use crate::repository::Marker;
use crate::{Error, ErrorKind, Result, machine};

use super::{clean, lock_image};

/// A volume to be made.
#[derive(Clone, Debug)]
pub(crate) struct NewVolume {
    pub format: VolumeFormat,
    pub size: u64,
    pub backing: Option<Backing>,
    pub fill: Fill,
    /// What it is built on need not be here.
    pub partial: bool,
}

/// An image to be made on a new volume.
#[derive(Clone, Debug)]
pub(crate) struct NewImage<'a> {
    pub id: ImageId,
    pub kind: Kind,
    pub size: u64,
    pub strategy: Strategy,
    pub user_data: &'a str,
    pub request: Option<String>,
    pub token: Token,
    /// The file that its volume is filled from: the fill gets a blob of it.
    pub file: Option<&'a [u8]>,
}

/// What became of an intent.
#[derive(Debug)]
pub(crate) enum Intended {
    /// It is durable; the image is pending.
    New(ImageRecord),
    /// The id is taken, by this.
    Taken(ImageRecord),
}

/// Announces a volume: from here on it may be pointed at by `holder`.
pub(crate) fn announce_volume(repo: &Repo, new: NewVolume, holder: ImageId) -> Result<VolumeRecord> {
    let mut record = VolumeRecord {
        header: repo.header(VolumeId::random().0),
        format: new.format,
        size: new.size,
        backing: new.backing,
        mirror: None,
        state: VolumeState::Filling,
        fill: Some(new.fill),
        preallocated: false,
        manifest: None,
        writer: None,
        unknown: Unknown::default(),
    };
    for _ in 0..ANNOUNCE_TRIES {
        match try_announce(repo, &mut record, holder) {
            Ok(true) => return Ok(record),
            Ok(false) => {
                withdraw_volume(repo, &record, holder);
                record.header = repo.header(VolumeId::random().0);
            }
            Err(error) => {
                withdraw_volume(repo, &record, holder);
                return Err(error);
            }
        }
    }
    let message = format!("repository {:?}: new volumes are taken for garbage all the time", repo.id);
    Err(Error::new(ErrorKind::Conflict, message))
}

/// How often a volume is announced that a deleter takes for garbage between its marker and its record.
const ANNOUNCE_TRIES: u32 = 5;

fn try_announce(repo: &Repo, record: &mut VolumeRecord, holder: ImageId) -> Result<bool> {
    let id = record.id();
    if let Some(backing) = &record.backing
        && !without!("add.marker.child")
    {
        repo.driver.mark(Marker::Child(backing.image, id))?;
    }
    // Any generation but the first: a deleter took the marker for stale and buried the id.
    if !repo.create(record)? || record.header.generation != 1 && !without!("add.compare.first") {
        return Ok(false);
    }
    if !without!("add.marker.holder") {
        repo.driver.mark(Marker::Holder(id, holder))?;
    }
    Ok(true)
}

/// Takes back a volume, unless an image points at it after all. What fails here is garbage that a check finds.
pub(crate) fn withdraw_volume(repo: &Repo, record: &VolumeRecord, holder: ImageId) {
    let id = record.id();
    let withdrawn = clean::volume(repo, id).and_then(|()| {
        if repo.volume(id)?.is_some() && !without!("add.reread.withdraw") {
            return Ok(());
        }
        repo.driver.unmark(Marker::Holder(id, holder))?;
        match &record.backing {
            Some(backing) => repo.driver.unmark(Marker::Child(backing.image, id)),
            None => Ok(()),
        }
    });
    // The error that led here matters more than this one.
    drop(withdrawn);
}

/// Announces a new image on a new volume.
pub(crate) fn intend(repo: &Repo, new: &NewImage<'_>, mut volume: NewVolume) -> Result<Intended> {
    if let Some(taken) = repo.image(new.id)? {
        return Ok(Intended::Taken(taken));
    }
    // Nobody takes for garbage what is only half announced.
    let _order = (!without!("add.lock")).then(|| lock_image(repo, new.id)).transpose()?;
    let file = new.file.map(|bytes| repo.store_blob(new.id, bytes).map(|blob| (blob, bytes))).transpose()?;
    let volume_blob = file.map(|(blob, _)| blob);
    volume.fill.blob = volume_blob;
    let backing = volume.backing.clone();
    let partial = volume.partial;
    let cloned =
        volume.fill.source.as_ref().filter(|_| volume.fill.how == How::Clone).map(|source| source.image);
    let volume =
        announce_volume(repo, volume, new.id).inspect_err(|_| drop_blob(repo, new.id, volume_blob))?;
    let intended = (|| {
        let mut image = pending(repo, new, volume.id())?;
        if !repo.create(&mut image)? {
            let taken = repo.image(new.id)?.ok_or_else(|| repo.image_not_found(new.id))?;
            drop_user_data(repo, image.id(), image.user_data);
            return Ok(Intended::Taken(taken));
        }
        let looked = look_at_volume(repo, volume.id(), new.id)
            .and_then(|()| look_at_blobs(repo, new, &image, file))
            .and_then(|()| match (cloned, &backing) {
                (Some(source), _) => look_at_source(repo, source),
                (None, Some(backing)) => look(repo, backing.image, partial),
                (None, None) => Ok(()),
            });
        match looked {
            Ok(()) => Ok(Intended::New(image)),
            Err(error) => {
                cancel(repo, &image)?;
                Err(error)
            }
        }
    })();
    if !matches!(intended, Ok(Intended::New(_))) {
        withdraw_volume(repo, &volume, new.id);
        // The storage may have failed: the image may be there after all, and need it.
        if intended.is_ok() || matches!(repo.image(new.id), Ok(None)) {
            drop_blob(repo, new.id, volume_blob);
        }
    }
    intended
}

/// Until an image names its blobs, only its lock keeps a deleter from taking them for garbage. Should that have been a lie,
/// they come back.
pub(crate) fn look_at_blobs(
    repo: &Repo,
    new: &NewImage<'_>,
    image: &ImageRecord,
    file: Option<(BlobId, &[u8])>,
) -> Result<()> {
    let user_data = image.user_data.map(|data| (data.blob, new.user_data.as_bytes()));
    if user_data.is_none() && file.is_none() || without!("add.look.blob") {
        return Ok(());
    }
    let there = repo.driver.blobs(new.id)?;
    for (blob, bytes) in user_data.into_iter().chain(file).filter(|(blob, _)| !there.contains(blob)) {
        repo.driver.put_blob(new.id, blob, bytes)?;
    }
    Ok(())
}

/// Before a volume has its first holder's marker, no lock keeps a deleter from taking it for garbage; and the lock may have
/// been a lie. So once the image points at it, the announcement is made once more, and then the volume must not be flagged.
pub(crate) fn look_at_volume(repo: &Repo, volume: VolumeId, holder: ImageId) -> Result<()> {
    if !without!("add.marker.again") {
        repo.driver.mark(Marker::Holder(volume, holder))?;
    }
    match repo.volume(volume)? {
        _ if without!("add.look.volume") => Ok(()),
        Some(record) if record.state != VolumeState::Doomed => Ok(()),
        _ => Err(displaced(repo, volume)),
    }
}

/// The record of an image that is not readable yet.
pub(crate) fn pending(repo: &Repo, new: &NewImage<'_>, volume: VolumeId) -> Result<ImageRecord> {
    Ok(ImageRecord {
        header: repo.header(new.id.0),
        kind: new.kind,
        state: State::Pending,
        absorbed_by: Vec::new(),
        size: new.size,
        strategy: new.strategy,
        created: machine::date(),
        volume,
        at: None,
        next: None,
        freeze: Vec::new(),
        token: new.token,
        open: None,
        user_data: repo.store_user_data(new.id, new.user_data)?,
        manifest: None,
        frozen_as: None,
        request: new.request.clone(),
        error: None,
        unknown: Unknown::default(),
    })
}

/// Removes the blob that was stored for a record which was then not written.
pub(crate) fn drop_user_data(repo: &Repo, image: ImageId, stored: Option<UserDataRef>) {
    drop_blob(repo, image, stored.map(|data| data.blob));
}

/// Removes the blobs that only this record named, which is not there.
pub(crate) fn drop_blobs(repo: &Repo, image: &ImageRecord) {
    drop_user_data(repo, image.id(), image.user_data);
    drop_blob(repo, image.id(), image.manifest.as_ref().map(|manifest| manifest.blob));
}

pub(crate) fn drop_blob(repo: &Repo, image: ImageId, blob: Option<BlobId>) {
    if let Some(blob) = blob {
        // Left behind, it is garbage that a check finds.
        let _ = repo.driver.delete_blob(image, blob);
    }
}

fn gone(repo: &Repo, image: ImageId, what: &str) -> Result<()> {
    let message = format!("image {image} in repository {:?} {what} meanwhile", repo.id);
    Err(Error::new(ErrorKind::ImageNotFound, message).with("imageId", image.to_string()))
}

/// What is to be cloned is here still. That it is whole, and what it is built on, is seen when it is cloned.
fn look_at_source(repo: &Repo, source: ImageId) -> Result<()> {
    match repo.image(source)? {
        Some(image) if image.state != State::Absorbed => Ok(()),
        _ if without!("add.look.source") => Ok(()),
        _ => gone(repo, source, "was removed"),
    }
}

/// The user's half of "flag, then look": after the reference is durable, the base must still be one. `absent`: a base
/// that is not here at all is allowed; the image is then broken until it comes.
pub(crate) fn look(repo: &Repo, base: ImageId, absent: bool) -> Result<()> {
    let gone = |what| gone(repo, base, what);
    if without!("add.look.base") {
        return Ok(());
    }
    let mut before = None;
    loop {
        let Some(image) = repo.image(base)? else {
            return if absent { Ok(()) } else { gone("was removed") };
        };
        match image.state {
            State::Absorbed if without!("add.compare.absorbed") => {}
            State::Absorbed => return gone("was merged away"),
            State::Pending => return Ok(()),
            State::Live | State::Removed => {}
        }
        if image.kind == Kind::Disk && !without!("add.compare.disk") {
            return gone("turned out to be a virtual disk");
        }
        match repo.volume(image.volume)? {
            Some(volume) if volume.state != VolumeState::Doomed || without!("add.compare.doomed") => {
                return Ok(());
            }
            // It may have moved to another one between the two.
            _ if before != Some(image.volume) && !without!("add.look.moved") => before = Some(image.volume),
            _ => return gone("was removed"),
        }
    }
}

/// Whether nobody was told that the image exists: who answers a repeated call claims it first.
fn is_untold(now: &ImageRecord, made: &ImageRecord) -> bool {
    now.header.epoch == made.header.epoch || without!("add.compare.told")
}

/// Makes a pending image vanish.
fn cancel(repo: &Repo, made: &ImageRecord) -> Result<()> {
    let removed = repo.update_image(made.id(), |image| {
        if image.state != State::Pending && !without!("add.compare.cancel") || !is_untold(image, made) {
            return Ok(Change::Keep);
        }
        image.state = State::Removed;
        Ok(Change::Put)
    })?;
    if let Some(image) = removed
        && image.state == State::Removed
        && repo.delete(&image)?
    {
        drop_user_data(repo, image.id(), image.user_data);
    }
    Ok(())
}

/// Takes back an image whose making failed before its id was returned. What fails here is left broken, and removable.
pub(crate) fn undo(repo: &Repo, made: &ImageRecord) {
    let undone = repo.update_image(made.id(), |now| {
        if now.state != State::Pending && !without!("add.compare.undo") || !is_untold(now, made) {
            return Ok(Change::Keep);
        }
        now.state = State::Removed;
        Ok(Change::Put)
    });
    if undone.is_ok() {
        let _ = clean::image(repo, made.id());
    }
}

/// The last two steps: the volume is ready, the image live. The bytes are flushed.
pub(crate) fn seal(repo: &Repo, image: ImageId, volume: &VolumeRecord) -> Result<()> {
    let early = without!("add.order.seal");
    if early {
        promote(repo, image, volume.id(), volume.manifest.as_ref())?;
    }
    ready(repo, volume)?;
    if !early {
        promote(repo, image, volume.id(), volume.manifest.as_ref())?;
    }
    repo.driver.delete_progress(image)
}

/// Marks a filled volume ready, if it still is ours to fill.
pub(crate) fn ready(repo: &Repo, volume: &VolumeRecord) -> Result<()> {
    let sealed = repo.update_volume(volume.id(), |now| {
        if now.state == VolumeState::Ready && repo.owns(&now.header) {
            return Ok(Change::Keep);
        }
        if now.state != VolumeState::Filling && !without!("add.compare.filling")
            || now.header.epoch != volume.header.epoch && !without!("add.compare.epoch")
            || !repo.owns(&now.header) && !without!("add.compare.owner")
        {
            return Err(displaced(repo, volume.id()));
        }
        now.state = VolumeState::Ready;
        now.preallocated = now.fill.as_ref().is_some_and(|fill| fill.preallocate);
        now.fill = None;
        now.mirror = volume.mirror;
        now.manifest.clone_from(&volume.manifest);
        now.backing.clone_from(&volume.backing);
        Ok(Change::Put)
    })?;
    sealed.map(drop).ok_or_else(|| displaced(repo, volume.id()))
}

/// Makes a pending image live on its volume, with the hashes that were taken when that was filled.
pub(crate) fn promote(
    repo: &Repo,
    image: ImageId,
    volume: VolumeId,
    manifest: Option<&ManifestRef>,
) -> Result<()> {
    let live = repo.update_image(image, |now| match now.state {
        State::Pending if now.volume == volume => {
            now.state = State::Live;
            if manifest.is_some() {
                now.manifest = manifest.cloned();
            }
            Ok(Change::Put)
        }
        State::Live if now.volume == volume => Ok(Change::Keep),
        _ if without!("add.compare.promote") => {
            (now.state, now.volume) = (State::Live, volume);
            Ok(Change::Put)
        }
        _ => Err(displaced(repo, volume)),
    })?;
    live.map(drop).ok_or_else(|| displaced(repo, volume))
}

/// The error for work that is no longer wanted, or no longer ours.
pub(crate) fn displaced(repo: &Repo, volume: VolumeId) -> Error {
    let message =
        format!("repository {:?}: volume {volume} was removed or taken over by another host", repo.id);
    Error::new(ErrorKind::Stopped, message)
}
