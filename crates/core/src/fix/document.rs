//! The opaque part of a fix: action, key, what was observed, and a checksum. Parsed strictly.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;
use vdsmstore_io::without;

use super::{Action, Fix};
use crate::id::{BlobId, ImageId, VolumeId};
use crate::repository::Marker;
use crate::{Error, ErrorKind, Result};

const VERSION: u32 = 1;
/// The largest document that is looked at.
const MAX_DOCUMENT: usize = 16 << 10;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Document {
    version: u32,
    /// The repository's random number: a fix for another repository is a mistake.
    repository: Uuid,
    action: String,
    ids: Vec<Uuid>,
    /// Record ids with their generations when the fix was listed; saves work, is never a reason to act.
    observed: Vec<(Uuid, u64)>,
    sum: String,
}

fn parts(action: Action) -> (&'static str, Vec<Uuid>) {
    match action {
        Action::Mend(id) => ("mend", vec![id.0]),
        Action::Optimize(id) => ("optimize", vec![id.0]),
        Action::Merge(id) => ("merge", vec![id.0]),
        Action::CleanImage(id) => ("clean-image", vec![id.0]),
        Action::CleanVolume(id) => ("clean-volume", vec![id.0]),
        Action::CleanObject(id) => ("clean-object", vec![id.0]),
        Action::CleanMarker(Marker::Child(image, volume)) => ("clean-child", vec![image.0, volume.0]),
        Action::CleanMarker(Marker::Holder(volume, image)) => ("clean-holder", vec![volume.0, image.0]),
        Action::CleanBlob(image, blob) => ("clean-blob", vec![image.0, blob.0]),
        Action::CleanProgress(id) => ("clean-progress", vec![id.0]),
        Action::Sweep => ("sweep", Vec::new()),
    }
}

fn action(name: &str, ids: &[Uuid]) -> Option<Action> {
    Some(match (name, ids) {
        ("mend", &[id]) => Action::Mend(ImageId(id)),
        ("optimize", &[id]) => Action::Optimize(ImageId(id)),
        ("merge", &[id]) => Action::Merge(ImageId(id)),
        ("clean-image", &[id]) => Action::CleanImage(ImageId(id)),
        ("clean-volume", &[id]) => Action::CleanVolume(VolumeId(id)),
        ("clean-object", &[id]) => Action::CleanObject(VolumeId(id)),
        ("clean-child", &[image, volume]) => {
            Action::CleanMarker(Marker::Child(ImageId(image), VolumeId(volume)))
        }
        ("clean-holder", &[volume, image]) => {
            Action::CleanMarker(Marker::Holder(VolumeId(volume), ImageId(image)))
        }
        ("clean-blob", &[image, blob]) => Action::CleanBlob(ImageId(image), BlobId(blob)),
        ("clean-progress", &[id]) => Action::CleanProgress(ImageId(id)),
        ("sweep", []) => Action::Sweep,
        _ => return None,
    })
}

/// The checksum over everything else: catches a document that was cut or edited, not one that was forged.
fn sum(document: &Document) -> String {
    let ids: Vec<_> = document.ids.iter().map(Uuid::to_string).collect();
    let observed: Vec<_> =
        document.observed.iter().map(|(id, generation)| format!("{id}@{generation}")).collect();
    let (repository, version) = (document.repository.to_string(), document.version.to_string());
    let mut all = vec![version.as_str(), repository.as_str(), document.action.as_str()];
    all.extend(ids.iter().map(String::as_str));
    all.push("observed");
    all.extend(observed.iter().map(String::as_str));
    format!("{:016x}", crate::checksum(&all))
}

/// The document of an action.
pub(crate) fn write(repository: Uuid, what: Action, observed: Vec<(Uuid, u64)>) -> Value {
    let (name, ids) = parts(what);
    let mut document =
        Document { version: VERSION, repository, action: name.to_owned(), ids, observed, sum: String::new() };
    document.sum = sum(&document);
    serde_json::to_value(document).unwrap_or_default()
}

/// The action of a fix for this repository.
pub(crate) fn parse(repository: Uuid, fix: &Fix) -> Result<Action> {
    let refused = |why: &str| Error::new(ErrorKind::FixRefused, format!("fix refused: {why}"));
    if fix.data.to_string().len() > MAX_DOCUMENT {
        return Err(refused("its data is too long"));
    }
    let document: Document =
        serde_json::from_value(fix.data.clone()).map_err(|error| refused(&format!("its data: {error}")))?;
    if document.version != VERSION {
        return Err(refused(&format!(
            "its data has version {}, this release knows {VERSION}",
            document.version
        )));
    }
    if sum(&document) != document.sum && !without!("fix.compare.sum") {
        return Err(refused("its data was changed"));
    }
    if document.repository != repository && !without!("fix.compare.repository") {
        return Err(refused("it is for another repository"));
    }
    let what = action(&document.action, &document.ids).ok_or_else(|| refused("it names no action"))?;
    if what.fix_type() != fix.fix_type || what.image() != fix.image_id {
        return Err(refused("its type or image is not that of its data"));
    }
    Ok(what)
}
