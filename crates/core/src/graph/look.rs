//! What is there, as a check or a repair sees it: read fresh from the storage, or once for a whole check.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::thread;

use vdsmstore_io::without;

use crate::id::{BlobId, ImageId, VolumeId};
use crate::record::{ImageRecord, VolumeRecord};
use crate::repo::Repo;
use crate::repository::{Marker, Read, RecordKind};
use crate::{Error, Result};

/// Threads that read records for a check.
const READERS: usize = 4;

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

    /// The volumes that are built on the image; announcements that led to nothing do not count.
    fn built_on(&self, id: ImageId) -> Result<Vec<VolumeRecord>> {
        let mut built = Vec::new();
        for child in self.children(id)? {
            let volume = self.volume(child)?;
            built.extend(
                volume.filter(|volume| volume.backing.as_ref().is_some_and(|backing| backing.image == id)),
            );
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
    pub images: BTreeMap<ImageId, ImageRecord>,
    pub volumes: BTreeMap<VolumeId, VolumeRecord>,
    pub objects: BTreeSet<VolumeId>,
    pub markers: Vec<Marker>,
    pub blobs: Vec<(ImageId, BlobId)>,
    pub progress: Vec<ImageId>,
    children: BTreeMap<ImageId, Vec<VolumeId>>,
    holders: BTreeMap<VolumeId, Vec<ImageId>>,
    /// Records that cannot be understood: what they are about is left alone.
    pub corrupt: Vec<uuid::Uuid>,
}

impl Everything {
    /// Reads the repository. What refers comes before what is referred to: objects and markers, then records; so that
    /// what is made meanwhile is not taken for left over.
    pub fn read(repo: &Repo) -> Result<Self> {
        let mut all = Self { objects: repo.driver.list_volumes()?.into_iter().collect(), ..Self::default() };
        let parts = Mutex::new((Vec::new(), None::<Error>));
        let shards = Mutex::new(repo.driver.shards()?);
        let next = || shards.lock().unwrap_or_else(PoisonError::into_inner).pop();
        thread::scope(|scope| {
            for _ in 0..READERS {
                scope.spawn(|| {
                    let mut part = Self::default();
                    let outcome = std::iter::from_fn(next).try_for_each(|shard| part.read_shard(repo, shard));
                    let mut parts = parts.lock().unwrap_or_else(PoisonError::into_inner);
                    parts.0.push(part);
                    if let Err(error) = outcome {
                        parts.1.get_or_insert(error);
                    }
                });
            }
        });
        let (parts, error) = parts.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = error {
            return Err(error);
        }
        for part in parts {
            all.images.extend(part.images);
            all.volumes.extend(part.volumes);
            all.markers.extend(part.markers);
            all.blobs.extend(part.blobs);
            all.progress.extend(part.progress);
            all.corrupt.extend(part.corrupt);
        }
        for marker in &all.markers {
            match *marker {
                Marker::Child(image, volume) => all.children.entry(image).or_default().push(volume),
                Marker::Holder(volume, image) => all.holders.entry(volume).or_default().push(image),
            }
        }
        Ok(all)
    }

    fn read_shard(&mut self, repo: &Repo, shard: u16) -> Result<()> {
        let late = without!("check.order");
        if !late {
            self.read_referring(repo, shard)?;
        }
        for (id, _) in repo.driver.list(RecordKind::Volume, shard)? {
            match repo.volume_with(VolumeId(id), Read::Relaxed) {
                Ok(volume) => self.volumes.extend(volume.map(|volume| (VolumeId(id), volume))),
                Err(error) if error.is_bad_record() => self.corrupt.push(id),
                Err(error) => return Err(error),
            }
        }
        for (id, _) in repo.driver.list(RecordKind::Image, shard)? {
            match repo.image_with(ImageId(id), Read::Relaxed) {
                Ok(image) => self.images.extend(image.map(|image| (ImageId(id), image))),
                Err(error) if error.is_bad_record() => self.corrupt.push(id),
                Err(error) => return Err(error),
            }
        }
        if late { self.read_referring(repo, shard) } else { Ok(()) }
    }

    fn read_referring(&mut self, repo: &Repo, shard: u16) -> Result<()> {
        self.blobs.extend(repo.driver.list_blobs(shard)?);
        self.progress.extend(repo.driver.list_progress(shard)?);
        self.markers.extend(repo.driver.list_markers(shard)?);
        Ok(())
    }

    fn ensure_read(&self, id: uuid::Uuid) -> Result<()> {
        if self.corrupt.contains(&id) {
            let message = format!("record {id} cannot be understood");
            return Err(Error::new(crate::ErrorKind::CorruptRecord, message));
        }
        Ok(())
    }
}

impl View for Everything {
    fn image(&self, id: ImageId) -> Result<Option<ImageRecord>> {
        self.ensure_read(id.0)?;
        Ok(self.images.get(&id).cloned())
    }

    fn volume(&self, id: VolumeId) -> Result<Option<VolumeRecord>> {
        self.ensure_read(id.0)?;
        Ok(self.volumes.get(&id).cloned())
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
}
