//! What is there, as a check or a repair sees it: read fresh from the storage, or once for a whole check.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::thread;

use uuid::Uuid;
use vdsmstore_io::without;

use crate::id::{BlobId, ImageId, VolumeId};
use crate::record::{ImageRecord, Record, VolumeRecord, VolumeState};
use crate::repo::{Repo, parse};
use crate::repository::{Marker, Read, RecordKind};
use crate::{Error, Result, machine};

/// Threads that read and judge records for a check.
const READERS: usize = 4;
/// What one of them takes at a time.
const PORTION: usize = 256;

/// Does the same to each of many things, on several threads; the results are in the order of the things.
pub(crate) fn each<T: Sync, R: Send>(
    things: &[T],
    portion: usize,
    work: impl Fn(&T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let portions = Mutex::new(things.chunks(portion).enumerate());
    let done = Mutex::new(BTreeMap::new());
    let next = || portions.lock().unwrap_or_else(PoisonError::into_inner).next();
    let take = || {
        while let Some((index, portion)) = next() {
            let results = portion.iter().map(&work).collect::<Result<Vec<_>>>();
            let failed = results.is_err();
            done.lock().unwrap_or_else(PoisonError::into_inner).insert(index, results);
            if failed {
                break;
            }
        }
    };
    let threads = machine::threads(READERS);
    if things.len() <= portion || threads == 1 {
        take();
    } else {
        thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(take))));
    }
    let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    let parts = done.into_values().collect::<Result<Vec<_>>>()?;
    Ok(parts.into_iter().flatten().collect())
}

/// The same, in portions that suit work of a few microseconds.
pub(crate) fn each_quickly<T: Sync, R: Send>(
    things: &[T],
    work: impl Fn(&T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    each(things, PORTION, work)
}

/// The records and markers of a repository, from wherever.
pub(crate) trait View {
    fn image(&self, id: ImageId) -> Result<Option<ImageRecord>>;
    fn volume(&self, id: VolumeId) -> Result<Option<VolumeRecord>>;
    /// The volumes that may be built on the image.
    fn children(&self, id: ImageId) -> Result<Vec<VolumeId>>;
    /// The images that may point at the volume.
    fn holders(&self, id: VolumeId) -> Result<Vec<ImageId>>;
    /// Whether the data object exists.
    fn object(&self, id: VolumeId) -> Result<bool>;

    /// The state of the volume, if it has a record.
    fn volume_state(&self, id: VolumeId) -> Result<Option<VolumeState>> {
        Ok(self.volume(id)?.map(|volume| volume.state))
    }

    /// Whether the image points at the volume.
    fn holds(&self, image: ImageId, volume: VolumeId) -> Result<bool> {
        Ok(self.image(image)?.is_some_and(|image| image.holds(volume)))
    }

    /// Whether the volume is built on the image.
    fn builds_on(&self, volume: VolumeId, image: ImageId) -> Result<bool> {
        Ok(self.volume(volume)?.is_some_and(|volume| volume.builds_on(image)))
    }

    /// Whether any image points at the volume.
    fn is_held(&self, id: VolumeId) -> Result<bool> {
        for holder in self.holders(id)? {
            if self.holds(holder, id)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The volumes that are built on the image; announcements that led to nothing do not count.
    fn built_on(&self, id: ImageId) -> Result<Vec<VolumeRecord>> {
        let mut built = Vec::new();
        for child in self.children(id)? {
            let volume = self.volume(child)?;
            built.extend(volume.filter(|volume| volume.builds_on(id)));
        }
        Ok(built)
    }

    /// The images that point at the volume.
    fn held_by(&self, id: VolumeId) -> Result<Vec<ImageRecord>> {
        let mut holding = Vec::new();
        for holder in self.holders(id)? {
            holding.extend(self.image(holder)?.filter(|image| image.holds(id)));
        }
        Ok(holding)
    }

    /// Whether another image points at the volume of this one, too.
    fn is_shared(&self, image: &ImageRecord) -> Result<bool> {
        Ok(self.held_by(image.volume)?.iter().any(|other| other.id() != image.id()))
    }
}

/// The repository now.
pub(crate) struct Now<'a>(pub &'a Repo, pub Read);

impl View for Now<'_> {
    fn image(&self, id: ImageId) -> Result<Option<ImageRecord>> {
        self.0.image_with(id, self.1)
    }

    fn volume(&self, id: VolumeId) -> Result<Option<VolumeRecord>> {
        self.0.volume_with(id, self.1)
    }

    fn children(&self, id: ImageId) -> Result<Vec<VolumeId>> {
        self.0.driver.children(id)
    }

    fn holders(&self, id: VolumeId) -> Result<Vec<ImageId>> {
        self.0.driver.holders(id)
    }

    fn object(&self, id: VolumeId) -> Result<bool> {
        self.0.driver.volume_exists(id)
    }
}

/// Everything in a repository, read once.
#[derive(Debug, Default)]
pub(crate) struct Everything {
    pub images: BTreeMap<ImageId, Box<ImageRecord>>,
    pub volumes: BTreeMap<VolumeId, Box<VolumeRecord>>,
    pub objects: BTreeSet<VolumeId>,
    pub markers: Vec<Marker>,
    pub blobs: Vec<(ImageId, BlobId)>,
    pub progress: Vec<ImageId>,
    children: BTreeMap<ImageId, Vec<VolumeId>>,
    holders: BTreeMap<VolumeId, Vec<ImageId>>,
    /// Records that cannot be understood: what they are about is left alone.
    pub corrupt: BTreeSet<Uuid>,
    /// Bytes that dead stores left over.
    pub leftovers: u64,
}

/// What one shard holds.
#[derive(Default)]
struct Shard {
    /// Boxed, since they are moved several times.
    images: Vec<(ImageId, Box<ImageRecord>)>,
    volumes: Vec<(VolumeId, Box<VolumeRecord>)>,
    markers: Vec<Marker>,
    children: BTreeMap<ImageId, Vec<VolumeId>>,
    holders: BTreeMap<VolumeId, Vec<ImageId>>,
    blobs: Vec<(ImageId, BlobId)>,
    progress: Vec<ImageId>,
    corrupt: Vec<Uuid>,
}

impl Everything {
    /// Reads the repository. What refers comes before what is referred to: objects and markers, then records; so that
    /// what is made meanwhile is not taken for left over.
    pub fn read(repo: &Repo) -> Result<Self> {
        let read = || -> Result<_> {
            let objects = repo.driver.list_volumes()?;
            Ok((objects, each(&repo.driver.shards(None)?, 1, |shard| Shard::read(repo, *shard))?))
        };
        let (leftovers, found) = if machine::is_simulated() {
            (repo.driver.leftovers(), read())
        } else {
            thread::scope(|scope| {
                let leftovers = scope.spawn(|| repo.driver.leftovers());
                let found = read();
                (leftovers.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), found)
            })
        };
        let (objects, parts) = found?;
        let mut all =
            Self { objects: objects.into_iter().collect(), leftovers: leftovers?, ..Self::default() };
        let (mut images, mut volumes) = (Vec::new(), Vec::new());
        let (mut children, mut holders) = (Vec::new(), Vec::new());
        for part in parts {
            images.extend(part.images);
            volumes.extend(part.volumes);
            children.extend(part.children);
            holders.extend(part.holders);
            all.markers.extend(part.markers);
            all.blobs.extend(part.blobs);
            all.progress.extend(part.progress);
            all.corrupt.extend(part.corrupt);
        }
        // They are in order: a map that is made of all at once is packed.
        all.images = images.into_iter().collect();
        all.volumes = volumes.into_iter().collect();
        all.children = children.into_iter().collect();
        all.holders = holders.into_iter().collect();
        Ok(all)
    }

    fn ensure_read(&self, id: Uuid) -> Result<()> {
        if self.corrupt.contains(&id) {
            let message = format!("record {id} cannot be understood");
            return Err(Error::new(crate::ErrorKind::CorruptRecord, message));
        }
        Ok(())
    }
}

impl Shard {
    fn read(repo: &Repo, shard: u16) -> Result<Self> {
        let mut all = Self::default();
        let late = without!("check.order");
        if !late {
            all.read_referring(repo, shard)?;
        }
        let (volumes, corrupt) = records(repo, RecordKind::Volume, shard)?;
        all.volumes = volumes.into_iter().map(|(id, volume)| (VolumeId(id), Box::new(volume))).collect();
        all.corrupt = corrupt;
        let (images, corrupt) = records(repo, RecordKind::Image, shard)?;
        all.images = images.into_iter().map(|(id, image)| (ImageId(id), Box::new(image))).collect();
        all.corrupt.extend(corrupt);
        if late {
            all.read_referring(repo, shard)?;
        }
        Ok(all)
    }

    fn read_referring(&mut self, repo: &Repo, shard: u16) -> Result<()> {
        self.blobs = repo.driver.list_blobs(shard)?;
        self.progress = repo.driver.list_progress(shard)?;
        self.markers = repo.driver.list_markers(shard)?;
        // The shard of a marker is that of the one by which it is looked for.
        for marker in &self.markers {
            match *marker {
                Marker::Child(image, volume) => self.children.entry(image).or_default().push(volume),
                Marker::Holder(volume, image) => self.holders.entry(volume).or_default().push(image),
            }
        }
        Ok(())
    }
}

/// The records of a shard, and the ids of those that cannot be understood.
#[allow(clippy::type_complexity)] // Records by id, and ids.
fn records<R: Record>(repo: &Repo, kind: RecordKind, shard: u16) -> Result<(Vec<(Uuid, R)>, Vec<Uuid>)> {
    let (mut found, mut corrupt, mut outcome) = (Vec::new(), Vec::new(), Ok(()));
    repo.driver.scan(kind, shard, None, &mut |id, read| {
        match read.and_then(|versioned| parse::<R>(id, &versioned)) {
            Ok(record) => found.push((id, record)),
            Err(error) if error.is_bad_record() => corrupt.push(id),
            Err(error) => outcome = Err(error),
        }
        outcome.is_ok()
    })?;
    outcome.map(|()| (found, corrupt))
}

impl View for Everything {
    fn image(&self, id: ImageId) -> Result<Option<ImageRecord>> {
        self.ensure_read(id.0)?;
        Ok(self.images.get(&id).map(|image| (**image).clone()))
    }

    fn volume(&self, id: VolumeId) -> Result<Option<VolumeRecord>> {
        self.ensure_read(id.0)?;
        Ok(self.volumes.get(&id).map(|volume| (**volume).clone()))
    }

    fn children(&self, id: ImageId) -> Result<Vec<VolumeId>> {
        Ok(self.children.get(&id).cloned().unwrap_or_default())
    }

    fn holders(&self, id: VolumeId) -> Result<Vec<ImageId>> {
        Ok(self.holders.get(&id).cloned().unwrap_or_default())
    }

    fn object(&self, id: VolumeId) -> Result<bool> {
        Ok(self.objects.contains(&id))
    }

    // The same as by default, without a copy of the record.

    fn volume_state(&self, id: VolumeId) -> Result<Option<VolumeState>> {
        self.ensure_read(id.0)?;
        Ok(self.volumes.get(&id).map(|volume| volume.state))
    }

    fn holds(&self, image: ImageId, volume: VolumeId) -> Result<bool> {
        self.ensure_read(image.0)?;
        Ok(self.images.get(&image).is_some_and(|image| image.holds(volume)))
    }

    fn builds_on(&self, volume: VolumeId, image: ImageId) -> Result<bool> {
        self.ensure_read(volume.0)?;
        Ok(self.volumes.get(&volume).is_some_and(|volume| volume.builds_on(image)))
    }
}
