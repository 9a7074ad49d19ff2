//! The records of a repository: small JSON documents, untrusted until validated.
//!
//! Fields that this release does not know are kept on rewrite.

mod image;
mod progress;
mod volume;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::id::Incarnation;
use crate::{Error, ErrorKind, Result};

pub use image::{ImageRecord, Kind, ManifestRef, Open, OpenMode, State, UserDataRef};
pub use progress::Progress;
pub use volume::{Backing, Fill, How, Source, VolumeFormat, VolumeRecord, VolumeState};

/// The newest layout of a record that this release writes.
pub const SCHEMA: u32 = 1;

/// The largest size of an image or volume in bytes, and what sizes are multiples of.
pub const MAX_SIZE: u64 = (1 << 53) - SECTOR;
/// Sizes are multiples of this.
pub const SECTOR: u64 = 512;

/// How many earlier nonces a record keeps.
pub const REMEMBERED: usize = 8;

/// Who wrote a record last as its owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The label of the host, for people.
    pub host: String,
    /// The store.
    pub incarnation: Incarnation,
}

/// What all records begin with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The layout of the record.
    pub schema: u32,
    /// The id in its name.
    pub id: Uuid,
    /// The generation in its name.
    #[serde(rename = "gen")]
    pub generation: u64,
    /// Raised whenever the owner changes.
    pub epoch: u64,
    /// Random, new with each put: tells whether a put whose outcome is unknown has happened.
    pub nonce: Uuid,
    /// The nonces of the generations before, newest first: a put that others built upon is told by them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub before: Vec<Uuid>,
    /// Who works on it.
    pub owner: Owner,
}

/// A record that can be stored: its header, and what must hold for its fields.
pub trait Record: Serialize + DeserializeOwned + Clone {
    /// What messages call it.
    const WHAT: &'static str;
    /// The common header.
    fn header(&self) -> &Header;
    /// The same, to change it.
    fn header_mut(&mut self) -> &mut Header;
    /// Says what is wrong with the fields, if anything.
    fn validate(&self) -> std::result::Result<(), String>;

    /// Parses what the storage holds under `id`.
    fn parse(id: Uuid, bytes: &[u8]) -> Result<Self> {
        let corrupt = |reason: String| {
            Error::new(ErrorKind::CorruptRecord, format!("{} record {id}: {reason}", Self::WHAT))
                .with("record", id.to_string())
        };
        let record: Self = serde_json::from_slice(bytes).map_err(|error| corrupt(error.to_string()))?;
        if record.header().schema > SCHEMA {
            let message = format!("{} record {id} was written by a newer release", Self::WHAT);
            return Err(Error::new(ErrorKind::VersionTooNew, message).with("record", id.to_string()));
        }
        if record.header().id != id {
            return Err(corrupt(format!("it says that it is {}", record.header().id)));
        }
        record.validate().map_err(corrupt)?;
        Ok(record)
    }
}

/// Fields that this release does not know.
pub type Unknown = Map<String, Value>;

/// A size that an image or volume may have.
pub(crate) fn valid_size(size: u64) -> bool {
    size > 0 && size <= MAX_SIZE && size.is_multiple_of(SECTOR)
}

#[cfg(test)]
mod tests;
