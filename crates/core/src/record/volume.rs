//! The volume record: where bytes lie, and while it is being filled, from what.

use serde::{Deserialize, Serialize};
use uuid::Uuid;
use vdsmstore_io::Format;

use super::{Header, ManifestRef, Record, Unknown, valid_size};
use crate::id::{BlobId, ImageId, Incarnation, Token, VolumeId};

/// How the bytes of a volume are to be read. Known from here only, never guessed from content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumeFormat {
    /// Byte for byte.
    Raw,
    /// QEMU's qcow2, version 3.
    Qcow2,
}

impl From<VolumeFormat> for Format {
    fn from(format: VolumeFormat) -> Self {
        match format {
            VolumeFormat::Raw => Self::Raw,
            VolumeFormat::Qcow2 => Self::Qcow2,
        }
    }
}

/// Where a volume is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumeState {
    /// Its bytes are not complete.
    Filling,
    /// They are.
    Ready,
    /// It will be deleted; nobody may start to refer to it.
    Doomed,
}

/// The immutable image whose data shows through a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backing {
    /// The image; never a volume, so that the image may move.
    pub image: ImageId,
    /// Its size when this was recorded: beyond it nothing shows.
    pub size: u64,
}

/// The image that a volume is filled from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// The repository it was found in, as a hint.
    pub repo: Uuid,
    /// The image.
    pub image: ImageId,
    /// The state of its data that is wanted.
    pub token: Token,
}

/// How a volume is filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum How {
    /// It starts out reading as zeroes, or as its backing image; nothing to copy.
    Zero,
    /// A clone of the volume of the source image, which is in this repository.
    Clone,
    /// All data of the source image.
    Copy,
    /// What differs between the source image and the base image.
    Diff,
    /// All data of the image itself, read through its chain.
    Flatten,
    /// All data of a file; its name is in the blob.
    Import,
}

/// What is still to be done to a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Fill {
    /// In which way.
    pub how: How,
    /// From which image.
    #[serde(default)]
    pub source: Option<Source>,
    /// The image that a `Diff` is against, as the caller named it.
    #[serde(default)]
    pub base: Option<ImageId>,
    /// Reserve the space of the whole volume first.
    #[serde(default)]
    pub preallocate: bool,
    /// Everything below was complete and durable when the present owner took over.
    #[serde(default)]
    pub from: u64,
    /// Bytes per second.
    #[serde(default)]
    pub bandwidth: Option<u64>,
    /// Paths and the like, kept with the image that is being made.
    #[serde(default)]
    pub blob: Option<BlobId>,
    /// What was written is read back and compared.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub verify: bool,
}

impl Fill {
    /// A fill that copies nothing.
    pub fn simple(how: How) -> Self {
        Self {
            how,
            source: None,
            base: None,
            preallocate: false,
            from: 0,
            bandwidth: None,
            blob: None,
            verify: false,
        }
    }
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeRecord {
    /// Common to all records.
    #[serde(flatten)]
    pub header: Header,
    /// How its bytes are read.
    pub format: VolumeFormat,
    /// Virtual size of its bytes; an image on it may be smaller.
    pub size: u64,
    /// What shows through where it has no data.
    pub backing: Option<Backing>,
    /// The volume that the qcow2 header names now, for QEMU.
    pub mirror: Option<VolumeId>,
    /// Where it is in its life.
    pub state: VolumeState,
    /// What is still to be done.
    pub fill: Option<Fill>,
    /// The space of all of it was reserved when it was made.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub preallocated: bool,
    /// Hashes of its bytes, for the image that becomes live on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<ManifestRef>,
    /// The store that writes bytes into it though it is ready, on storage of several hosts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writer: Option<Incarnation>,
    /// Kept for newer releases.
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl VolumeRecord {
    /// Its id.
    pub fn id(&self) -> VolumeId {
        VolumeId(self.header.id)
    }

    /// Whether the image shows through it.
    pub fn builds_on(&self, image: ImageId) -> bool {
        self.backing.as_ref().is_some_and(|backing| backing.image == image)
    }
}

impl Record for VolumeRecord {
    const WHAT: &'static str = "volume";

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
        if let Some(backing) = &self.backing {
            if self.format == VolumeFormat::Raw {
                return Err("a raw volume cannot have a backing image".into());
            }
            if !valid_size(backing.size) {
                return Err(format!("backing size {} is not possible", backing.size));
            }
        }
        if self.state == VolumeState::Filling && self.fill.is_none() {
            return Err("it is filling, but it does not say from what".into());
        }
        Ok(())
    }
}
