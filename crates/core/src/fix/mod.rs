//! Fixes: typed repairs that a check lists and any host can run.
//!
//! A fix names an action and the one object that it is about. It is never trusted: running it takes the locks, works out
//! from the records as they are then what that object needs, and does that action, nothing, or refuses.

mod cost;
pub(crate) mod document;
mod job;

use serde::Serialize;
use serde_json::Value;

use crate::id::{BlobId, ImageId, VolumeId};
use crate::repository::Marker;

pub(crate) use cost::cost;
pub(crate) use document::{parse, write};
pub(crate) use job::FixJob;

/// The four types of fixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FixType {
    /// Gives space back.
    Clean,
    /// Brings a degraded image to its best representation.
    Optimize,
    /// Makes one volume of two.
    Merge,
    /// Completes a broken image, or what a call left half done.
    Mend,
}

/// What a fix costs: upper bounds in bytes, from records and file sizes; exact if the check was asked for that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct Cost {
    /// Read.
    pub read: u64,
    /// Written.
    pub write: u64,
    /// Given back to the storage.
    pub frees: u64,
    /// Taken from the storage meanwhile.
    pub needs: u64,
}

/// One repair. Survives JSON; may be run on another host.
#[derive(Clone, Debug, PartialEq, Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Fix {
    /// Its type, for setting priorities.
    #[serde(rename = "type")]
    pub fix_type: FixType,
    /// The image that it is about, if it is about one.
    pub image_id: Option<ImageId>,
    /// One line for a person.
    pub description: String,
    /// What it costs.
    pub cost: Cost,
    /// Opaque.
    pub data: Value,
}

/// What is to be done, and to what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    /// Complete the image: fill, freeze, promote, replace, correct its header, fetch it from elsewhere.
    Mend(ImageId),
    /// Give the image its best representation.
    Optimize(ImageId),
    /// Merge the image that nobody wants with its only child.
    Merge(ImageId),
    /// Remove the tag of an image.
    CleanImage(ImageId),
    /// Remove a volume that no image points at.
    CleanVolume(VolumeId),
    /// Remove a data object without a record.
    CleanObject(VolumeId),
    /// Remove a marker that is not borne out.
    CleanMarker(Marker),
    /// Remove a blob that no image names.
    CleanBlob(ImageId, BlobId),
    /// Remove the progress of an image that nobody works on any more.
    CleanProgress(ImageId),
    /// Remove what dead stores left over: temporary files, registrations.
    Sweep,
}

impl Action {
    /// The type that callers see.
    pub fn fix_type(self) -> FixType {
        match self {
            Self::Mend(_) => FixType::Mend,
            Self::Optimize(_) => FixType::Optimize,
            Self::Merge(_) => FixType::Merge,
            _ => FixType::Clean,
        }
    }

    /// The image that callers see it as being about.
    pub fn image(self) -> Option<ImageId> {
        match self {
            Self::Mend(id)
            | Self::Optimize(id)
            | Self::Merge(id)
            | Self::CleanImage(id)
            | Self::CleanBlob(id, _)
            | Self::CleanProgress(id)
            | Self::CleanMarker(Marker::Child(id, _) | Marker::Holder(_, id)) => Some(id),
            Self::CleanVolume(_) | Self::CleanObject(_) | Self::Sweep => None,
        }
    }
}
