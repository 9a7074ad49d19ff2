//! The progress of an image: how far the work on it is. Never trusted beyond its epoch.

use serde::{Deserialize, Serialize};

use crate::id::{Incarnation, Token, VolumeId};

/// What was last persisted of the work on an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// The volume that is being filled.
    pub volume: VolumeId,
    /// The epoch of its record when this was written.
    pub epoch: u64,
    /// The store that wrote this.
    pub incarnation: Incarnation,
    /// The label of its host.
    pub host: String,
    /// `"1/3"`.
    pub stage: String,
    /// 0..100, -1 unknown.
    pub percent: i32,
    /// Everything below is complete and durable in that volume.
    pub watermark: u64,
    /// The state of the source that was read.
    pub source_token: Option<Token>,
    /// Why it stopped.
    pub error: Option<String>,
}

impl Progress {
    /// Parses what the storage holds; anything not understood is no progress.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }
}
