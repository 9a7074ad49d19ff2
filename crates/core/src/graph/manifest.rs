//! Manifests: the hashes of an image's data, kept with it as a blob. A missing or stale one costs time, and is never believed.

use vdsmstore_io::hash::{self, Manifest};
use vdsmstore_io::without;

use crate::Result;
use crate::id::{ImageId, Token};
use crate::record::{ImageRecord, ManifestRef};
use crate::repo::Repo;

/// What the record says of the hashes of the image's data as it is now.
fn current(image: &ImageRecord) -> Option<&ManifestRef> {
    let same = |kept: &&ManifestRef| kept.token == image.token || without!("manifest.compare.token");
    image.manifest.as_ref().filter(same)
}

/// The hashes of the image's data. None: there are none, they are of another state of it, or they cannot be read.
pub(crate) fn of(repo: &Repo, image: &ImageRecord) -> Option<Manifest> {
    let kept = current(image)?;
    let bytes = repo.driver.get_blob(image.id(), kept.blob).ok()?;
    if hash::root(&bytes) != kept.root {
        return None;
    }
    Manifest::decode(&bytes).ok().filter(|manifest| manifest.size() == image.size)
}

/// Stores hashes for an image that is about to name them.
pub(crate) fn store(repo: &Repo, image: ImageId, token: Token, manifest: &Manifest) -> Result<ManifestRef> {
    let bytes = manifest.encode();
    let blob = repo.store_blob(image, &bytes)?;
    Ok(ManifestRef { blob, token, root: hash::root(&bytes) })
}

/// The hashes of an image, for another one that is to have the same data.
pub(crate) fn adopt(repo: &Repo, from: &ImageRecord, to: ImageId) -> Result<Option<ManifestRef>> {
    match of(repo, from) {
        Some(manifest) => store(repo, to, from.token, &manifest).map(Some),
        None => Ok(None),
    }
}
