//! Who backs whom: from an image to the volumes that its data is spread over.

use std::sync::Arc;
use std::time::Duration;

use vdsmstore_io::{self as io, Layer, without};

use crate::id::{ImageId, VolumeId};
use crate::options::Strategy;
use crate::record::{Header, ImageRecord, State, VolumeFormat, VolumeRecord, VolumeState};
use crate::repo::Repo;
use crate::repository::{Access, Guard, OpenVolume, Read};
use crate::{Error, ErrorKind, Result, Status, machine};

use super::in_place;
use super::look::{Now, View};

/// Volumes that an image's data may be spread over.
pub(crate) const MAX_DEPTH: usize = 250;
/// More volumes than this, and the image is degraded.
pub(crate) const GOOD_DEPTH: usize = 64;
/// How often an open is tried again when the chain moves under it.
const OPEN_TRIES: u32 = 20;

/// How long a volume may be in use before that is an answer.
const BRIEFLY: Duration = Duration::from_millis(200);

/// One step of a chain: the image, and the volume that holds it.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub image: ImageRecord,
    pub volume: VolumeRecord,
}

/// An image's data: its own link first, then what it is built on.
#[derive(Clone, Debug)]
pub(crate) struct Chain {
    pub links: Vec<Link>,
}

/// A chain, or why it is not whole.
#[derive(Debug)]
pub(crate) enum Resolved {
    Whole(Chain),
    /// The links that are there, and what is missing below them.
    Broken(Chain, String),
}

impl Chain {
    /// The image that it is the data of.
    pub fn top(&self) -> &Link {
        &self.links[0]
    }

    /// The image that the last link is built on.
    pub fn base(&self) -> Option<ImageId> {
        self.links.last().and_then(|link| link.volume.backing.as_ref()).map(|backing| backing.image)
    }

    /// Two chains read the same bytes if they have the same volumes in the same states.
    fn same(&self, other: &Self) -> bool {
        let key = |link: &Link| {
            let Header { id, generation, .. } = link.volume.header;
            (link.image.id(), id, generation)
        };
        self.links.iter().map(key).eq(other.links.iter().map(key))
    }

    /// What io opens: each layer with the bytes of it that show.
    pub fn layers(&self, devices: &[OpenVolume]) -> Vec<Layer> {
        let mut size = self.top().image.size;
        let mut layers = Vec::with_capacity(self.links.len());
        for (link, opened) in self.links.iter().zip(devices) {
            layers.push(Layer {
                device: Arc::clone(&opened.device),
                format: link.volume.format.into(),
                size,
            });
            size = link.volume.backing.as_ref().map_or(0, |backing| backing.size);
        }
        layers
    }

    /// Optimized or degraded.
    pub fn status(&self, repo: &Repo) -> Result<Status> {
        let Link { image, volume } = self.top();
        let fast = volume.format == VolumeFormat::Raw && volume.backing.is_none() && volume.preallocated;
        let slow = image.strategy == Strategy::Performance && !fast;
        let degraded = slow || self.links.len() > GOOD_DEPTH || in_place::is_doubtful(repo, volume)?;
        Ok(if degraded { Status::Degraded } else { Status::Optimized })
    }
}

/// Follows an image down to its last volume.
pub(crate) fn resolve(view: &impl View, image: ImageRecord) -> Result<Resolved> {
    resolve_below(view, None, image)
}

/// The same of what shows through a volume.
fn resolve_below(view: &impl View, top: Option<VolumeId>, image: ImageRecord) -> Result<Resolved> {
    let mut chain = Chain { links: Vec::new() };
    let mut next = Some(image);
    while let Some(image) = next {
        let id = image.id();
        let broken = |chain, reason: String| Ok(Resolved::Broken(chain, reason));
        if chain.links.len() >= MAX_DEPTH {
            return broken(chain, format!("more than {MAX_DEPTH} volumes"));
        }
        if chain.links.iter().any(|link| link.image.id() == id) {
            return broken(chain, format!("image {id} is built on itself"));
        }
        match image.state {
            State::Live | State::Removed => {}
            State::Pending if without!("chain.compare.pending") => {}
            State::Pending => return broken(chain, format!("the data of image {id} is not complete")),
            // Flagged to be buried: exact to the end.
            State::Absorbed if image.absorbed_by.is_empty() => {}
            // A merge changes only what the volume above covers: through that one, and no other, it still is exact.
            State::Absorbed
                if chain
                    .links
                    .last()
                    .map(|above| above.volume.id())
                    .or(top)
                    .is_some_and(|above| image.absorbed_by.contains(&above)) => {}
            State::Absorbed if without!("chain.compare.absorbed") => {}
            State::Absorbed => return broken(chain, format!("image {id} is being merged away")),
        }
        let volume = match view.volume(image.volume) {
            Ok(Some(volume)) => volume,
            Ok(None) => return broken(chain, format!("the volume of image {id} has no record")),
            Err(error) if error.is_bad_record() => return broken(chain, error.message().to_owned()),
            Err(error) => return Err(error),
        };
        if volume.state != VolumeState::Ready && !without!("chain.compare.ready") {
            return broken(chain, format!("the volume of image {id} is {:?}", volume.state));
        }
        if volume.size < image.size {
            return broken(chain, format!("the volume of image {id} is smaller than the image"));
        }
        if !view.object(volume.id())? {
            return broken(chain, format!("the data of image {id} is not there"));
        }
        let backing = volume.backing.clone();
        chain.links.push(Link { image, volume });
        next = match backing.map(|backing| (backing.image, view.image(backing.image))) {
            None => None,
            Some((_, Ok(Some(base)))) => Some(base),
            Some((base, Ok(None))) => {
                return broken(chain, format!("image {base}, which it is based on, is not here"));
            }
            Some((_, Err(error))) if error.is_bad_record() => {
                return broken(chain, error.message().to_owned());
            }
            Some((_, Err(error))) => return Err(error),
        };
    }
    Ok(Resolved::Whole(chain))
}

/// As [`resolve`], an image that is not whole being an error.
pub(crate) fn whole(repo: &Repo, image: ImageRecord, read: Read) -> Result<Chain> {
    whole_below(repo, None, image, read)
}

fn whole_below(repo: &Repo, top: Option<VolumeId>, image: ImageRecord, read: Read) -> Result<Chain> {
    let id = image.id();
    match resolve_below(&Now(repo, read), top, image)? {
        Resolved::Whole(chain) => Ok(chain),
        Resolved::Broken(_, reason) => Err(broken(repo, id, &reason)),
    }
}

/// The error for an image that cannot be used now.
pub(crate) fn broken(repo: &Repo, id: ImageId, reason: &str) -> Error {
    Error::new(ErrorKind::ImageBroken, format!("image {id} in repository {:?} is broken: {reason}", repo.id))
        .with("imageId", id.to_string())
        .with("repoId", repo.id.clone())
}

/// An open image with the locks on all its volumes.
#[derive(Debug)]
pub(crate) struct OpenChain {
    pub chain: Chain,
    /// Top first.
    pub volumes: Vec<OpenVolume>,
    /// Says that the image itself is being read, if a caller reads it; held, not looked at.
    #[allow(dead_code)]
    pub reader: Option<Box<dyn Guard>>,
    /// Bytes that the caches of each image that it is opened as may take.
    pub memory: Option<u64>,
}

impl OpenChain {
    /// The bytes as one virtual disk.
    pub fn image(&self, writable: bool) -> Result<io::Image> {
        open_layers(self.chain.layers(&self.volumes), writable, self.memory)
    }
}

/// Opens layers, top first, as one virtual disk, whose caches may take so much memory.
pub(crate) fn open_layers(layers: Vec<Layer>, writable: bool, memory: Option<u64>) -> Result<io::Image> {
    let options = io::ImageOptions { writable, memory, ..io::ImageOptions::default() };
    Ok(io::Image::open_with(layers, &options)?)
}

/// Opens all volumes of an image: the top one with `access`, the others for reading. All locks at once or none.
pub(crate) fn open(repo: &Repo, id: ImageId, access: Access) -> Result<OpenChain> {
    open_below(repo, None, id, access)
}

fn open_below(repo: &Repo, top: Option<VolumeId>, id: ImageId, access: Access) -> Result<OpenChain> {
    let read = |read: Read| -> Result<Chain> {
        let record = repo.image_with(id, read)?.ok_or_else(|| repo.image_not_found(id))?;
        whole_below(repo, top, record, read)
    };
    let fresh = || read(Read::Fresh);
    let mut pause = Duration::from_millis(1);
    for attempt in 0..OPEN_TRIES {
        // A guess at first: what counts is read under the locks.
        let guess = if attempt == 0 { read(Read::Relaxed).or_else(|_| fresh())? } else { fresh()? };
        match open_links(repo, &guess, access) {
            // What was read before the locks may have moved until they were had.
            Ok(volumes) => {
                let chain = fresh()?;
                if without!("chain.reread") || chain.same(&guess) {
                    return Ok(OpenChain { chain, volumes, reader: None, memory: repo.memory });
                }
            }
            // The guess was wrong, or a volume that vanished has been replaced: the chain is another one now.
            Err(error)
                if (attempt == 0 || error.kind() == ErrorKind::ImageBroken) && !fresh()?.same(&guess) => {}
            Err(error) => return Err(error),
        }
        machine::pause(pause);
        pause = (pause * 2).min(Duration::from_millis(100));
    }
    Err(Error::new(
        ErrorKind::Conflict,
        format!("the chain of image {id} in {:?} changes all the time", repo.id),
    ))
}

/// Opens a volume; one that is in use is waited for, but only as long as the correction of a header takes.
pub(crate) fn open_volume(repo: &Repo, id: VolumeId, access: Access) -> Result<OpenVolume> {
    let deadline = machine::now() + BRIEFLY;
    loop {
        match repo.driver.open_volume(id, access) {
            Err(error) if error.kind() == ErrorKind::ImageInUse && machine::now() < deadline => {
                machine::pause(BRIEFLY / 20);
            }
            outcome => return outcome,
        }
    }
}

fn open_links(repo: &Repo, chain: &Chain, access: Access) -> Result<Vec<OpenVolume>> {
    let top = chain.top().image.id();
    let mut volumes = Vec::with_capacity(chain.links.len());
    for (index, link) in chain.links.iter().enumerate() {
        let access = match access {
            _ if index > 0 && without!("chain.lock.below") => Access::Moment,
            _ if index > 0 => Access::Read,
            Access::Read | Access::ReadStill if without!("chain.lock.read") => Access::Moment,
            _ => access,
        };
        let opened = open_volume(repo, link.volume.id(), access)
            .map_err(|error| error.context(format_args!("image {top} in repository {:?}", repo.id)))?;
        volumes.push(opened);
    }
    Ok(volumes)
}

/// The volume that a qcow2 header must name for its backing image, as the records are now.
pub(crate) fn mirror_of(repo: &Repo, base: ImageId) -> Result<Option<(VolumeId, VolumeFormat)>> {
    let Some(image) = repo.image(base)? else { return Ok(None) };
    let volume = repo.volume(image.volume)?;
    Ok(volume.filter(|volume| volume.state == VolumeState::Ready).map(|volume| (volume.id(), volume.format)))
}

/// What shows through a volume, as layers that stay locked while they are held.
pub(crate) fn layers_of(
    repo: &Repo,
    volume: VolumeId,
    backing: &crate::record::Backing,
) -> Result<Vec<Layer>> {
    let opened = open_below(repo, Some(volume), backing.image, Access::Read)?;
    let mut layers = opened.chain.layers(&opened.volumes);
    if let Some(first) = layers.first_mut() {
        first.size = backing.size;
    }
    Ok(layers)
}
