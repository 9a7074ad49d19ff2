//! The verbs that make images: judge the arguments, find what is named, record the intent, start the work.

use std::sync::Arc;

use vdsmstore_io::without;

use crate::graph::add::{self, Intended, NewImage, NewVolume};
use crate::graph::chain::{Chain, MAX_DEPTH};
use crate::graph::look::Now;
use crate::graph::search::{Found, Search};
use crate::graph::{chain, clean, import, in_use, lease, lock_image, replace, switch};
use crate::id::{ImageId, Token};
use crate::options::{AutoFix, Bandwidth, CopyOptions, CreateOptions, Strategy};
use crate::record::{Backing, Fill, How, ImageRecord, Kind, Source, State, VolumeFormat, VolumeRecord};
use crate::repo::{Change, Repo};
use crate::repository::{CopyOnWrite, Read};
use crate::{Error, ErrorKind, Result};

use super::{Store, validate};

/// The id of a new image: the caller's or a random one; and the mark of the call, if the caller chose.
fn new_id(options: &CreateOptions, verb: &str, arguments: &[&str]) -> Result<(ImageId, Option<String>)> {
    match &options.image_id {
        None => Ok((ImageId::random(), None)),
        Some(text) => {
            let strategy = format!("{:?}", options.strategy);
            let all: Vec<&str> = arguments.iter().copied().chain([strategy.as_str()]).collect();
            Ok((ImageId::parse(text)?, Some(validate::request(verb, &all))))
        }
    }
}

/// An id that is taken: by the same call before, or by something else.
fn taken(repo: &Repo, image: &ImageRecord, request: Option<&String>) -> Result<ImageId> {
    let id = image.id();
    if image.visible() && request.is_some() && image.request.as_ref() == request {
        return tell(repo, image);
    }
    let message = format!("repository {:?} has another image {id}", repo.id);
    Err(Error::new(ErrorKind::ImageExists, message).with("imageId", id.to_string()))
}

/// Before a repeated call is answered with the id: should the first call fail later, it takes nothing back.
fn tell(repo: &Repo, image: &ImageRecord) -> Result<ImageId> {
    let id = image.id();
    if image.state != State::Pending || without!("create.claim.told") {
        return Ok(id);
    }
    let joined = join(repo, id)?;
    joined.map(|_| id).ok_or_else(|| in_use(repo, id, "the call that was to make it has failed"))
}

/// Claims an image that another call is making, so that it stays should that call fail. None: it has gone, or goes.
fn join(repo: &Repo, id: ImageId) -> Result<Option<ImageRecord>> {
    // That call looks after this, and takes it back: its volume was taken for garbage before the image pointed at it.
    if let Some(image) = repo.image(id)?.filter(|image| image.state == State::Pending)
        && let Err(error) = add::look_at_volume(repo, image.volume, id)
        && !without!("create.look.joined")
    {
        return if error.kind() == ErrorKind::Stopped { Ok(None) } else { Err(error) };
    }
    let now = repo
        .update_image(id, |now| Ok(if now.state == State::Pending { Change::Claim } else { Change::Keep }))?;
    Ok(now.filter(ImageRecord::visible))
}

/// The answer to a call that was made before under an id of the caller's choice.
fn answered(repo: &Repo, id: ImageId, request: Option<&String>) -> Result<Option<ImageId>> {
    if request.is_none() {
        return Ok(None);
    }
    match repo.image(id)? {
        Some(image) => taken(repo, &image, request).map(Some),
        None => Ok(None),
    }
}

fn parse_base(id: Option<&str>) -> Result<Option<ImageId>> {
    id.map(ImageId::parse).transpose()
}

fn text(value: Option<impl ToString>) -> String {
    value.map_or_else(String::new, |value| value.to_string())
}

fn invalid(parameter: &str, message: String) -> Error {
    Error::new(ErrorKind::InvalidParameter, message).with("parameter", parameter)
}

/// Nothing is copied that could be verified.
fn ensure_no_verify(options: &CreateOptions) -> Result<()> {
    if options.verify {
        return Err(invalid("options", "option \"verify\" is for copies and imports".into()));
    }
    Ok(())
}

pub(super) fn virtual_disk(
    store: &Store,
    repo_id: &str,
    size: Option<i64>,
    base: Option<&str>,
    user_data: &str,
    options: &CreateOptions,
) -> Result<ImageId> {
    let repo = store.writable_repo(repo_id)?;
    let wanted = size.map(validate::size).transpose()?;
    let base = parse_base(base)?;
    validate::user_data(user_data)?;
    ensure_no_verify(options)?;
    store.0.pool.check_id(options.task_id.as_deref())?;
    store.search(options)?;
    let (id, request) = new_id(options, "createVirtualDisk", &[&text(size), &text(base), user_data])?;
    if let Some(id) = answered(&repo, id, request.as_ref())? {
        return Ok(id);
    }
    let (size, volume) = match base {
        None => {
            let size = wanted.ok_or_else(|| invalid("size", "a disk without a base needs a size".into()))?;
            (size, blank(size, options.strategy))
        }
        Some(base) => on_base(store, &repo, wanted, base, options)?,
    };
    // What needs no data to be moved is done before the call returns.
    let at_once = !volume.fill.preallocate
        && matches!(volume.fill.how, How::Zero | How::Clone)
        && volume.backing.as_ref().is_none_or(|backing| is_whole(&repo, backing.image))
        && volume.fill.source.as_ref().is_none_or(|source| is_whole(&repo, source.image));
    let strategy = options.strategy;
    let new = NewImage {
        id,
        kind: Kind::Disk,
        size,
        strategy,
        user_data,
        request,
        token: Token::random(),
        file: None,
    };
    match add::intend(&repo, &new, volume)? {
        Intended::Taken(image) => taken(&repo, &image, new.request.as_ref()),
        Intended::New(_) if options.auto_fix == AutoFix::Off => Ok(id),
        Intended::New(made) if at_once => {
            if let Err(error) = store.mend_now(&repo, id, options.task_id.as_deref()) {
                add::undo(&repo, &made);
                return Err(error);
            }
            if options.auto_fix == AutoFix::Optimized {
                store.mend(&repo, id, None, options.auto_fix)?;
            }
            Ok(id)
        }
        Intended::New(_) => store.mend(&repo, id, options.task_id.as_deref(), options.auto_fix).map(|()| id),
    }
}

/// Whether an image can be used now.
fn is_whole(repo: &Repo, id: ImageId) -> bool {
    match repo.image(id) {
        Ok(Some(image)) => chain::whole(repo, image, Read::Fresh).is_ok(),
        _ => false,
    }
}

/// A volume that reads as zeroes.
fn blank(size: u64, strategy: Strategy) -> NewVolume {
    let mut fill = Fill::simple(How::Zero);
    fill.preallocate = strategy == Strategy::Performance;
    NewVolume { format: VolumeFormat::Raw, size, backing: None, fill, partial: false }
}

/// The size and volume of a disk that starts as a snapshot.
fn on_base(
    store: &Store,
    repo: &Arc<Repo>,
    wanted: Option<u64>,
    base: ImageId,
    options: &CreateOptions,
) -> Result<(u64, NewVolume)> {
    let found = store.search(options)?.find(repo, base)?;
    let record = &found.record;
    if record.kind != Kind::Snapshot {
        let message =
            format!("image {base} in repository {:?} is a virtual disk, not a snapshot", found.repo.id);
        return Err(Error::new(ErrorKind::NotASnapshot, message).with("imageId", base.to_string()));
    }
    let size = wanted.unwrap_or(record.size);
    if size < record.size {
        let message = format!("size {size} is smaller than the base snapshot's, {}", record.size);
        return Err(invalid("size", message));
    }
    let here = Arc::ptr_eq(&found.repo, repo);
    if !here && options.strategy == Strategy::Performance {
        return Ok((size, full_copy(&found, size, options.strategy, options.bandwidth)));
    }
    if !here {
        bring(store, repo, &found, options)?;
    }
    if repo.driver.copy_on_write() == CopyOnWrite::Reflink
        && let Some(clone) = clone_of(repo, base, size)?
    {
        return Ok((size, clone));
    }
    if here {
        ensure_room(repo, &chain::whole(repo, record.clone(), Read::Fresh)?)?;
    }
    let backing = Backing { image: base, size: record.size };
    let fill = Fill::simple(How::Zero);
    Ok((size, NewVolume { format: VolumeFormat::Qcow2, size, backing: Some(backing), fill, partial: false }))
}

/// Fails if an overlay on the image would be spread over too many volumes.
fn ensure_room(repo: &Repo, base: &Chain) -> Result<()> {
    if base.links.len() < MAX_DEPTH {
        return Ok(());
    }
    let id = base.top().image.id();
    let message = format!(
        "image {id} in repository {:?} is spread over {MAX_DEPTH} volumes already: merge or optimize some first",
        repo.id
    );
    Err(Error::new(ErrorKind::TooManyVolumes, message).with("imageId", id.to_string()))
}

/// Has the snapshot copied to the repository, under its id.
fn bring(store: &Store, repo: &Arc<Repo>, found: &Found, options: &CreateOptions) -> Result<()> {
    let strategy = Strategy::Space;
    let volume = full_copy(found, found.record.size, strategy, options.bandwidth);
    let user_data = found.repo.user_data(&found.record)?;
    let started = snapshot_copy(repo, found, volume, user_data.get(), strategy)?;
    if options.auto_fix != AutoFix::Off && (started.state == State::Pending || started.next.is_some()) {
        store.mend(repo, found.record.id(), None, AutoFix::On)?;
    }
    Ok(())
}

/// A clone of the image's volume; None if the volume cannot be cloned to that size.
fn clone_of(repo: &Repo, base: ImageId, size: u64) -> Result<Option<NewVolume>> {
    let Some(image) = repo.image(base)? else { return Ok(None) };
    let Some(volume) = repo.volume(image.volume)? else { return Ok(None) };
    if volume.size != size && volume.format != VolumeFormat::Raw
        || volume.size > size
        || image.size != volume.size
    {
        return Ok(None);
    }
    let source = Source { repo: repo.driver.repository_nonce(), image: base, token: image.token };
    let fill = Fill { source: Some(source), ..Fill::simple(How::Clone) };
    let VolumeRecord { format, backing, .. } = volume;
    Ok(Some(NewVolume { format, size, backing, fill, partial: false }))
}

/// A raw volume with all data of an image.
fn full_copy(found: &Found, size: u64, strategy: Strategy, bandwidth: Option<Bandwidth>) -> NewVolume {
    let mut fill = Fill { source: Some(source_of(found)), ..Fill::simple(How::Copy) };
    fill.preallocate = strategy == Strategy::Performance;
    fill.bandwidth = bandwidth.map(|limit| limit.0);
    NewVolume { format: VolumeFormat::Raw, size, backing: None, fill, partial: false }
}

fn source_of(found: &Found) -> Source {
    Source { repo: found.repo.driver.repository_nonce(), image: found.record.id(), token: found.record.token }
}

pub(super) fn snapshot(
    store: &Store,
    repo_id: &str,
    disk_id: &str,
    user_data: &str,
    options: &CreateOptions,
) -> Result<ImageId> {
    let repo = store.writable_repo(repo_id)?;
    let disk = ImageId::parse(disk_id)?;
    validate::user_data(user_data)?;
    ensure_no_verify(options)?;
    store.0.pool.check_id(options.task_id.as_deref())?;
    let (id, request) = new_id(options, "createSnapshot", &[&text(Some(disk)), user_data])?;
    if answered(&repo, id, request.as_ref())?.is_some() && is_promised(&repo, id)? {
        return Ok(id);
    }
    let order = (!without!("create.lock.disk")).then(|| lock_image(&repo, disk)).transpose()?;
    if answered(&repo, id, request.as_ref())?.is_some() {
        if is_promised(&repo, id)? {
            return Ok(id);
        }
        // The same call came so far before, and never returned: its moment may have passed.
        let _own = lock_image(&repo, id)?;
        if let Some(seen) = repo.image(id)?
            && !is_promised(&repo, id)?
        {
            clean::forsaken(&repo, &seen)?;
        }
    }
    // One that was only announced comes first: its moment has passed.
    if repo.visible_image(disk)?.freeze.len() >= MAX_FREEZE {
        switch::complete(&repo, disk)?;
    }
    let record = repo.visible_image(disk)?;
    let new = NewImage {
        id,
        kind: Kind::Snapshot,
        size: record.size,
        strategy: options.strategy,
        user_data,
        request,
        token: record.token,
        file: None,
    };
    if switch::needs_moment(&repo, &record)? {
        match store.explained(&repo, disk, switch::take_moment(&repo, &record, &new))? {
            Intended::Taken(image) => return taken(&repo, &image, new.request.as_ref()),
            Intended::New(_) => {}
        }
    } else {
        match store.explained(&repo, disk, switch::intend(&repo, disk, &new))? {
            Intended::Taken(image) => {
                let id = taken(&repo, &image, new.request.as_ref())?;
                return if is_promised(&repo, id)? {
                    Ok(id)
                } else {
                    Err(in_use(&repo, id, "another call is about to make it"))
                };
            }
            Intended::New(_) if options.auto_fix == AutoFix::Off => return Ok(id),
            Intended::New(made) => {
                if let Err(error) = switch::complete(&repo, disk) {
                    withdraw_snapshot(&repo, disk, &made);
                    return Err(error);
                }
            }
        }
    }
    drop(order);
    if options.task_id.is_some() || options.auto_fix == AutoFix::Optimized {
        store.mend(&repo, id, options.task_id.as_deref(), options.auto_fix)?;
    }
    Ok(id)
}

/// Whether a snapshot comes to be whatever happens: it is complete, or its disk is to be frozen as it.
fn is_promised(repo: &Repo, id: ImageId) -> Result<bool> {
    if without!("create.look.promised") {
        return Ok(true);
    }
    Ok(match repo.image(id)? {
        Some(image) if image.state == State::Pending => switch::disk_of(repo, &image)?.is_some(),
        image => image.is_some_and(|image| image.visible()),
    })
}

/// Announced snapshots of one disk that a record has room for.
const MAX_FREEZE: usize = 16;

/// Takes back a snapshot that could not be taken. What fails here is completed by whoever writes the disk next.
fn withdraw_snapshot(repo: &Repo, disk: ImageId, made: &ImageRecord) {
    let id = made.id();
    add::undo(repo, made);
    if repo.image(id).is_ok_and(|image| image.is_none_or(|image| !image.visible())) {
        let _ = switch::unfreeze(repo, disk, id);
    }
}

pub(super) fn copy(
    store: &Store,
    repo_id: &str,
    image_id: &str,
    base_id: Option<&str>,
    user_data: &str,
    options: &CopyOptions,
) -> Result<ImageId> {
    let repo = store.writable_repo(repo_id)?;
    let image = ImageId::parse(image_id)?;
    let base = parse_base(base_id)?;
    validate::user_data(user_data)?;
    store.0.pool.check_id(options.task_id.as_deref())?;
    let create = CreateOptions {
        auto_fix: options.auto_fix,
        strategy: options.strategy,
        participating_repositories: options.participating_repositories.clone(),
        image_hints: options.image_hints.clone(),
        image_id: options.image_id.clone(),
        task_id: options.task_id.clone(),
        bandwidth: options.bandwidth,
        verify: options.verify,
    };
    let search = store.search(&create)?;
    let kind = if options.mutable { "disk" } else { "snapshot" };
    let (id, request) = new_id(&create, "copyImage", &[&text(Some(image)), &text(base), user_data, kind])?;
    // A snapshot's copy has its id, asked for or not.
    let keeps_id = id == image && repo.image(id)?.is_some_and(|image| image.kind == Kind::Snapshot);
    if !keeps_id && let Some(id) = answered(&repo, id, request.as_ref())? {
        return Ok(id);
    }
    let found = search.find(&repo, image)?;
    if found.record.kind == Kind::Disk && !found.repo.driver.clone_under_writer() {
        // Whoever writes it would change what is being read.
        if !without!("create.lease") {
            store.explained(&found.repo, image, lease::ensure_free(&found.repo, &found.record))?;
        }
    }
    let mut volume = match base {
        None => full_copy(&found, found.record.size, options.strategy, options.bandwidth),
        Some(base) => difference(&repo, &search, &found, base, options.partial)?,
    };
    volume.fill.bandwidth = options.bandwidth.map(|limit| limit.0);
    volume.fill.verify = options.verify;
    if found.record.kind == Kind::Snapshot {
        if options.image_id.is_some() && id != image {
            return Err(invalid("imageId", format!("the copy of snapshot {image} keeps its id")));
        }
        let copied = snapshot_copy(&repo, &found, volume, user_data, options.strategy)?;
        let unfinished = copied.state == State::Pending || copied.next.is_some();
        let better = options.auto_fix == AutoFix::Optimized;
        if options.auto_fix != AutoFix::Off && (unfinished || better || options.task_id.is_some()) {
            store.mend(&repo, image, options.task_id.as_deref(), options.auto_fix)?;
        }
        return Ok(image);
    }
    let kind = if options.mutable { Kind::Disk } else { Kind::Snapshot };
    let token = if options.mutable { Token::random() } else { found.record.token };
    let size = found.record.size;
    let new = NewImage { id, kind, size, strategy: options.strategy, user_data, request, token, file: None };
    match add::intend(&repo, &new, volume)? {
        Intended::Taken(image) => taken(&repo, &image, new.request.as_ref()),
        Intended::New(_) if options.auto_fix == AutoFix::Off => Ok(id),
        Intended::New(_) => store.mend(&repo, id, options.task_id.as_deref(), options.auto_fix).map(|()| id),
    }
}

/// A volume with what differs from the base, which is in the target, or with `partial` in any repository.
fn difference(
    repo: &Arc<Repo>,
    search: &Search,
    found: &Found,
    base: ImageId,
    partial: bool,
) -> Result<NewVolume> {
    let size = found.record.size;
    let mut fill = Fill { source: Some(source_of(found)), base: Some(base), ..Fill::simple(How::Diff) };
    let here = repo.image(base)?.filter(ImageRecord::visible);
    let backing = match here {
        Some(record) => {
            // A base that is still being made is waited for by nobody; a disk is frozen when the copy begins.
            if !partial || record.kind == Kind::Disk {
                ensure_room(repo, &chain::whole(repo, record.clone(), Read::Fresh)?)?;
            }
            (record.kind == Kind::Snapshot).then_some(Backing { image: base, size: record.size })
        }
        None if partial => {
            let other = search.find(repo, base)?;
            if other.record.kind != Kind::Snapshot {
                let message = format!(
                    "image {base}, the base of a partial copy, is a virtual disk in another repository"
                );
                return Err(Error::new(ErrorKind::NotASnapshot, message).with("imageId", base.to_string()));
            }
            Some(Backing { image: base, size: other.record.size })
        }
        None => {
            let message = format!("repository {:?} has no image {base} to be the base of a copy", repo.id);
            return Err(Error::new(ErrorKind::ImageNotFound, message).with("imageId", base.to_string()));
        }
    };
    if let Some(backing) = &backing {
        if backing.image == found.record.id() {
            return Err(invalid("baseImageId", format!("image {base} cannot be its own base")));
        }
        fill.base = Some(backing.image);
    }
    Ok(NewVolume { format: VolumeFormat::Qcow2, size, backing, fill, partial })
}

/// A snapshot under its own id in the repository: new, brought back, mended, or there already.
fn snapshot_copy(
    repo: &Arc<Repo>,
    found: &Found,
    volume: NewVolume,
    user_data: &str,
    strategy: Strategy,
) -> Result<ImageRecord> {
    let record = &found.record;
    let id = record.id();
    let new = NewImage {
        id,
        kind: Kind::Snapshot,
        size: record.size,
        strategy,
        user_data,
        request: None,
        token: record.token,
        file: None,
    };
    for _ in 0..RETRIES {
        let present = match repo.image(id)? {
            None => match add::intend(repo, &new, volume.clone())? {
                Intended::New(image) => return Ok(image),
                Intended::Taken(image) => image,
            },
            Some(image) => image,
        };
        match present.state {
            State::Pending if without!("create.claim.joined") => return Ok(present),
            State::Pending
                if switch::is_forsaken(&Now(repo, Read::Fresh), &present)?
                    && !without!("create.look.forsaken") =>
            {
                // Nobody was told of it, and it would be something else. Who is about to promise it has its lock.
                let _own = lock_image(repo, id)?;
                if let Some(seen) = repo.image(id)?
                    && seen.state == State::Pending
                    && switch::is_forsaken(&Now(repo, Read::Fresh), &seen)?
                {
                    clean::forsaken(repo, &seen)?;
                }
            }
            State::Pending => {
                if let Some(joined) = join(repo, id)? {
                    return Ok(joined);
                }
            }
            State::Live
                if present.next.is_some() || chain::whole(repo, present.clone(), Read::Fresh).is_ok() =>
            {
                return Ok(present);
            }
            State::Live => {
                let _order = (!without!("create.lock.refill")).then(|| lock_image(repo, id)).transpose()?;
                return replace::refill(repo, &present, volume);
            }
            State::Removed => {
                if let Some(image) = resurrect(repo, &present, user_data)? {
                    return Ok(image);
                }
                clean::image(repo, id)?;
                if let Some(image) = repo.image(id)?.filter(|image| image.state == State::Removed)
                    && let Some(image) = begin_again(repo, &image, volume.clone(), user_data)?
                {
                    return Ok(image);
                }
            }
            State::Absorbed => {}
        }
    }
    let message = format!("image {id} in repository {:?} is being removed; try again", repo.id);
    Err(Error::new(ErrorKind::ImageInUse, message).with("imageId", id.to_string()))
}

/// How often a snapshot that is being removed is tried to be copied.
const RETRIES: u32 = 5;

/// Brings back a removed snapshot that others are built on. None: its data is not here any more.
fn resurrect(repo: &Repo, removed: &ImageRecord, user_data: &str) -> Result<Option<ImageRecord>> {
    if removed.kind != Kind::Snapshot || chain::whole(repo, removed.clone(), Read::Fresh).is_err() {
        return Ok(None);
    }
    let id = removed.id();
    let stored = repo.store_user_data(id, user_data)?;
    let mut live = ImageRecord { state: State::Live, user_data: stored, ..removed.clone() };
    if !repo.replace(&mut live)? {
        add::drop_user_data(repo, live.id(), live.user_data);
        return Ok(None);
    }
    add::drop_user_data(repo, removed.id(), removed.user_data);
    match add::look(repo, id, false) {
        _ if without!("create.look.back") => Ok(Some(live)),
        Ok(()) => Ok(Some(live)),
        Err(_) => Ok(None),
    }
}

/// Makes a removed snapshot whose data is not here, but which others are built on, pending on a new volume.
fn begin_again(
    repo: &Repo,
    removed: &ImageRecord,
    volume: NewVolume,
    user_data: &str,
) -> Result<Option<ImageRecord>> {
    let id = removed.id();
    if removed.kind != Kind::Snapshot || chain::whole(repo, removed.clone(), Read::Fresh).is_ok() {
        return Ok(None);
    }
    let _order = (!without!("create.lock.again")).then(|| lock_image(repo, id)).transpose()?;
    let new = add::announce_volume(repo, volume, id)?;
    let stored = repo.store_user_data(id, user_data)?;
    let mut pending = ImageRecord {
        state: State::Pending,
        volume: new.id(),
        next: None,
        user_data: stored,
        ..removed.clone()
    };
    if !repo.replace(&mut pending)? {
        add::drop_user_data(repo, pending.id(), pending.user_data);
        add::withdraw_volume(repo, &new, id);
        return Ok(None);
    }
    if add::look_at_volume(repo, new.id(), id).is_err() {
        // It was taken for garbage before the image pointed at it: the image is what it was.
        let (volume, user_data) = (removed.volume, removed.user_data);
        let mut back =
            ImageRecord { state: State::Removed, volume, next: removed.next, user_data, ..pending.clone() };
        if repo.replace(&mut back)? {
            add::drop_user_data(repo, pending.id(), pending.user_data);
            add::withdraw_volume(repo, &new, id);
        }
        return Ok(None);
    }
    add::drop_user_data(repo, removed.id(), removed.user_data);
    for old in [Some(removed.volume), removed.next].into_iter().flatten() {
        clean::volume(repo, old)?;
    }
    Ok(Some(pending))
}

pub(super) fn import(
    store: &Store,
    repo_id: &str,
    path: &str,
    format: &str,
    user_data: &str,
    options: &CreateOptions,
) -> Result<ImageId> {
    let repo = store.writable_repo(repo_id)?;
    validate::user_data(user_data)?;
    store.0.pool.check_id(options.task_id.as_deref())?;
    let (id, request) = new_id(options, "importImage", &[path, format, user_data])?;
    if let Some(id) = answered(&repo, id, request.as_ref())? {
        return Ok(id);
    }
    let examined = import::examine(path, format, &store.0.host_id)?;
    import::ensure_readable(&examined, path)?;
    let import::Opened { file, size, .. } = examined;
    let bytes = serde_json::to_vec(&file).map_err(|error| {
        Error::new(ErrorKind::Internal, format!("the name of a file cannot be written: {error}"))
    })?;
    let mut fill = Fill::simple(How::Import);
    fill.bandwidth = options.bandwidth.map(|limit| limit.0);
    fill.preallocate = options.strategy == Strategy::Performance;
    fill.verify = options.verify;
    let volume = NewVolume { format: VolumeFormat::Raw, size, backing: None, fill, partial: false };
    let strategy = options.strategy;
    let new = NewImage {
        id,
        kind: Kind::Disk,
        size,
        strategy,
        user_data,
        request,
        token: Token::random(),
        file: Some(&bytes),
    };
    match add::intend(&repo, &new, volume)? {
        Intended::Taken(image) => taken(&repo, &image, new.request.as_ref()),
        Intended::New(_) if options.auto_fix == AutoFix::Off => Ok(id),
        Intended::New(_) => store.mend(&repo, id, options.task_id.as_deref(), options.auto_fix).map(|()| id),
    }
}
