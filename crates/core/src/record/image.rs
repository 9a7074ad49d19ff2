//! The image record: the tag that says who the data is.

use serde::{Deserialize, Serialize};

use super::{Header, Record, Unknown, valid_size};
use crate::id::{BlobId, ImageId, Incarnation, Token, VolumeId};
use crate::options::Strategy;

/// What an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Mutable.
    Disk,
    /// Immutable.
    Snapshot,
    /// Immutable, without a user: a base that was frozen.
    Hidden,
}

/// Where an image is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Announced; never readable yet.
    Pending,
    /// There.
    Live,
    /// Gone for the caller; its data is still exact, because others are built on it.
    Removed,
    /// Gone; its data is no longer exact, because a merge into its volume has begun.
    Absorbed,
}

/// How an image is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OpenMode {
    /// By a store, for as long as it lives.
    Io,
    /// By a program outside, also after the store that prepared it has ended.
    Prepare,
}

/// Who uses a disk for writing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    /// The label of the host.
    pub host: String,
    /// The store.
    pub incarnation: Incarnation,
    /// The boot of the machine.
    pub boot: String,
    /// How.
    pub mode: OpenMode,
    /// Seconds since the epoch, for people.
    pub since: u64,
}

/// Where the caller's JSON is; without one it is `{}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserDataRef {
    /// The blob.
    pub blob: BlobId,
    /// Its length in bytes.
    pub length: u64,
}

/// Where the hashes of an image's data are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestRef {
    /// The blob.
    pub blob: BlobId,
    /// The state of the data that they are of; of another one they say nothing.
    pub token: Token,
    /// The BLAKE3 hash of the blob, in hexadecimal digits.
    pub root: String,
}

/// An image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageRecord {
    /// Common to all records.
    #[serde(flatten)]
    pub header: Header,
    /// What it is.
    pub kind: Kind,
    /// Where it is in its life.
    pub state: State,
    /// While `absorbed`: the volumes through which the data still reads exactly, because they cover all that a merge may
    /// have changed. None: it is flagged to be buried, and exact to the end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub absorbed_by: Vec<VolumeId>,
    /// Virtual size in bytes.
    pub size: u64,
    /// As asked for.
    pub strategy: Strategy,
    /// Seconds since the epoch; for people, nothing compares it.
    pub created: u64,
    /// The volume that holds it.
    pub volume: VolumeId,
    /// The name of a native snapshot of the volume, on storage that has such.
    #[serde(default)]
    pub at: Option<String>,
    /// The volume that is being made to replace `volume`.
    pub next: Option<VolumeId>,
    /// Snapshots to be taken of this disk before it may be written again.
    #[serde(default)]
    pub freeze: Vec<ImageId>,
    /// The state of the data.
    pub token: Token,
    /// Who writes it.
    pub open: Option<Open>,
    /// The caller's JSON.
    pub user_data: Option<UserDataRef>,
    /// Hashes of its data, if all of it was read once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<ManifestRef>,
    /// The hidden image that froze this disk last; its token says whether it still is the same data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen_as: Option<ImageId>,
    /// The call that made it, where the caller chose the id: the same call again is answered with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// The last error, at most 512 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Kept for newer releases.
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl ImageRecord {
    /// Its id.
    pub fn id(&self) -> ImageId {
        ImageId(self.header.id)
    }

    /// Whether callers see it.
    pub fn visible(&self) -> bool {
        self.kind != Kind::Hidden && matches!(self.state, State::Pending | State::Live)
    }

    /// Whether something may be built on it, now or when it is whole.
    pub fn can_back(&self) -> bool {
        self.kind != Kind::Disk && matches!(self.state, State::Live | State::Removed)
    }

    /// Whether it points at the volume.
    pub fn holds(&self, volume: VolumeId) -> bool {
        self.volume == volume || self.next == Some(volume)
    }
}

impl Record for ImageRecord {
    const WHAT: &'static str = "image";

    fn header(&self) -> &Header {
        &self.header
    }

    fn header_mut(&mut self) -> &mut Header {
        &mut self.header
    }

    fn validate(&self) -> Result<(), String> {
        if !valid_size(self.size) {
            return Err(format!("size {} is not possible", self.size));
        }
        if self.next == Some(self.volume) {
            return Err(format!("volume {} is to replace itself", self.volume));
        }
        if self.kind != Kind::Disk && (!self.freeze.is_empty() || self.open.is_some()) {
            return Err("an immutable image is open or being frozen".into());
        }
        Ok(())
    }
}
