//! What a fill reads: the image to be copied, and the base of a difference.

use std::sync::Arc;

use vdsmstore_io::hash::Manifest;
use vdsmstore_io::{Image, Layer, without};

use super::BASE_TRIES;
use crate::graph::chain::{self, OpenChain, Resolved, resolve};
use crate::graph::look::Now;
use crate::graph::search::elsewhere;
use crate::graph::{add, import, in_use, lease, manifest, pin, switch};
use crate::id::{ImageId, Token};
use crate::job::Env;
use crate::record::{Backing, Fill, How, ImageRecord, Kind, Source, State, VolumeRecord};
use crate::repo::Repo;
use crate::repository::{Access, Marker, Read};
use crate::{Error, ErrorKind, Result};

/// Bytes to read, and what keeps them from changing.
pub(super) struct Opened {
    pub image: Image,
    pub token: Option<Token>,
    /// The hashes of the bytes, if they are known.
    pub manifest: Option<Manifest>,
    /// The same bytes as layers; a file outside has none.
    pub layers: Vec<Layer>,
    /// The disk that is read itself: nothing but a lock keeps it as it is.
    disk: Option<(Arc<Repo>, ImageId)>,
}

impl Opened {
    fn new(chain: &OpenChain) -> Result<Self> {
        let layers = chain.chain.layers(&chain.volumes);
        let token = Some(chain.chain.top().image.token);
        Ok(Self { image: chain.image(false)?, token, manifest: None, layers, disk: None })
    }

    /// A disk as long as nobody writes it.
    fn still(repo: &Arc<Repo>, disk: ImageId) -> Result<Self> {
        let opened = Self::new(&chain::open(repo, disk, Access::ReadStill)?)?;
        Ok(Self { disk: Some((Arc::clone(repo), disk)), ..opened })
    }

    /// Fails if what was read may have been written meanwhile: the lock against that may have been lost.
    pub fn ensure_same(&self) -> Result<()> {
        let Some((repo, disk)) = &self.disk else { return Ok(()) };
        match repo.image(*disk)? {
            Some(now) if without!("source.compare.token") || Some(now.token) == self.token => Ok(()),
            _ => Err(in_use(repo, *disk, "it was written while it was copied")),
        }
    }
}

/// A diff whose base the caller named: an immutable image is it; a disk is frozen as one; if it is gone, all data
/// is stored.
pub(super) fn settle_base(repo: &Repo, volume: &mut VolumeRecord, fill: &Fill) -> Result<()> {
    let Some(named) = fill.base else { return Ok(()) };
    for _ in 0..BASE_TRIES {
        let base = match repo.image(named)? {
            Some(image) if image.can_back() => image,
            Some(image) if image.kind == Kind::Disk && image.visible() => {
                switch::freeze_as_base(repo, named)?
            }
            _ => return Ok(()),
        };
        if !without!("source.marker.base") {
            repo.driver.mark(Marker::Child(base.id(), volume.id()))?;
        }
        if set_backing(repo, volume, Some(Backing { image: base.id(), size: base.size }))?
            && (without!("source.look.base") || add::look(repo, base.id(), false).is_ok())
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
pub(super) fn set_backing(repo: &Repo, volume: &mut VolumeRecord, backing: Option<Backing>) -> Result<bool> {
    let epoch = volume.header.epoch;
    volume.backing = backing;
    if repo.replace(volume)? {
        return Ok(true);
    }
    let ours = |now: &VolumeRecord| {
        repo.owns(&now.header) && now.header.epoch == epoch || without!("source.compare.owner")
    };
    let now = repo.volume(volume.id())?.filter(ours);
    *volume = now.ok_or_else(|| add::displaced(repo, volume.id()))?;
    Ok(false)
}

/// Whether the image to be cloned, which is in this repository, is to be completed first: it is pending, or cannot be
/// read as it is and just gets another volume.
pub(super) fn is_source_pending(repo: &Repo, fill: &Fill) -> Result<bool> {
    let Some(source) = &fill.source else { return Ok(false) };
    let Some(image) = repo.image(source.image)? else { return Ok(false) };
    let pending = image.state == State::Pending && !without!("source.compare.pending");
    let mended = image.next.is_some() && !without!("source.compare.mended");
    Ok(pending || mended && matches!(resolve(&Now(repo, Read::Fresh), image)?, Resolved::Broken(..)))
}

/// Opens what is to be copied; None if nothing is.
pub(super) fn open_source(
    repo: &Arc<Repo>,
    env: &Env<'_>,
    image: &ImageRecord,
    fill: &Fill,
) -> Result<Option<Opened>> {
    match fill.how {
        How::Zero | How::Clone => Ok(None),
        How::Import => {
            let opened = import::open(repo, image, fill)?;
            Ok(Some(Opened { image: opened, token: None, manifest: None, layers: Vec::new(), disk: None }))
        }
        How::Flatten => {
            if image.kind == Kind::Disk {
                return Opened::still(repo, image.id()).map(Some);
            }
            Opened::new(&chain::open(repo, image.id(), Access::Read)?).map(Some)
        }
        How::Copy | How::Diff => {
            let source =
                fill.source.as_ref().ok_or_else(|| chain::broken(repo, image.id(), "no source is named"))?;
            let hashed = fill.how == How::Copy || fill.verify;
            open_image(repo, env, source, image.id(), hashed).map(Some)
        }
    }
}

/// Whether an image can be read, as its records say. A storage that fails does not say that it cannot.
fn is_whole(repo: &Repo, record: ImageRecord) -> Result<bool> {
    match chain::whole(repo, record, Read::Fresh) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::IoError => Err(error),
        Err(_) => Ok(false),
    }
}

/// Opens the image that is copied, wherever it is; with its hashes, if they are wanted.
fn open_image(
    target: &Arc<Repo>,
    env: &Env<'_>,
    source: &Source,
    except: ImageId,
    hashed: bool,
) -> Result<Opened> {
    let Some((repo, record)) = find_image(&env.repos, target, source, except)? else {
        let message = format!(
            "image {}, which is to be copied, is in no connected repository, or is not usable",
            source.image
        );
        return Err(Error::new(ErrorKind::ImageNotFound, message).with("imageId", source.image.to_string()));
    };
    env.task.uses(&repo, source.image);
    let is_disk = record.kind == Kind::Disk;
    let opened = if is_disk && pin::is_possible(&repo) {
        let (opened, token) = pin::open(&repo, source.image)?;
        Opened { token: Some(token), ..Opened::new(&opened)? }
    } else if is_disk {
        if !without!("source.lease") {
            lease::ensure_free(&repo, &record)?;
        }
        Opened::still(&repo, source.image)?
    } else {
        // A snapshot's id names its data; there is nothing more to compare.
        let opened = Opened::new(&chain::open(&repo, source.image, Access::Read)?)?;
        Opened { token: Some(source.token), ..opened }
    };
    // Those of a disk that was written since the record was read say nothing.
    let same = !is_disk || opened.token == Some(record.token);
    let manifest = if hashed && same { manifest::of(&repo, &record) } else { None };
    Ok(Opened { manifest, ..opened })
}

/// Where the image that is copied is: a disk only in the repository where it was found, a snapshot wherever it is whole.
pub(crate) fn find_image(
    repos: &[Arc<Repo>],
    target: &Arc<Repo>,
    source: &Source,
    except: ImageId,
) -> Result<Option<(Arc<Repo>, ImageRecord)>> {
    let mut places: Vec<_> = repos.iter().collect();
    places.sort_by_key(|repo| repo.driver.repository_nonce() != source.repo);
    for repo in places {
        if Arc::ptr_eq(repo, target) && source.image == except {
            continue;
        }
        let Some(record) = repo.image(source.image)? else { continue };
        let usable = if record.kind == Kind::Disk {
            repo.driver.repository_nonce() == source.repo && record.state == State::Live
        } else {
            record.can_back() && (without!("source.compare.whole") || is_whole(repo, record.clone())?)
        };
        if usable {
            return Ok(Some((Arc::clone(repo), record)));
        }
    }
    Ok(None)
}

/// Opens the image whose data shows through the target, for reading; None if the fill does not need it.
pub(super) fn open_base(
    repo: &Arc<Repo>,
    env: &Env<'_>,
    backing: &Backing,
    how: How,
) -> Result<Option<Opened>> {
    if how != How::Diff {
        return Ok(None);
    }
    let Some(found) = find_base(&env.repos, repo, backing.image)? else {
        let message = format!(
            "image {}, the base of a difference, is in no connected repository, or is not usable",
            backing.image
        );
        return Err(Error::new(ErrorKind::ImageNotFound, message).with("imageId", backing.image.to_string()));
    };
    if !Arc::ptr_eq(&found, repo) {
        env.task.uses(&found, backing.image);
    }
    let chain = chain::open(&found, backing.image, Access::Read)?;
    let manifest = manifest::of(&found, &chain.chain.top().image);
    Ok(Some(Opened { manifest, ..Opened::new(&chain)? }))
}

/// Where the base of a difference is whole: here, or elsewhere.
pub(crate) fn find_base(repos: &[Arc<Repo>], here: &Arc<Repo>, base: ImageId) -> Result<Option<Arc<Repo>>> {
    if let Some(record) = here.image(base)?
        && is_whole(here, record)?
    {
        return Ok(Some(Arc::clone(here)));
    }
    elsewhere(repos, here, base)
}
