//! The options of the verbs: typed for Rust, parsed from JSON for everybody else.

use std::collections::BTreeMap;

use serde::de::{self, DeserializeOwned};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::{Error, ErrorKind, Result};

pub use crate::repository::FormatOptions;

/// How far the work that a call starts goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AutoFix {
    /// Only record the intent.
    Off,
    /// To the state, degraded or optimized, that is reached sooner.
    #[default]
    On,
    /// To the best representation.
    Optimized,
}

impl<'de> Deserialize<'de> for AutoFix {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::Bool(false) => Ok(Self::Off),
            Value::Bool(true) => Ok(Self::On),
            Value::String(text) if text == "optimized" => Ok(Self::Optimized),
            other => Err(de::Error::custom(format!("AutoFix is true, false or \"optimized\", not {other}"))),
        }
    }
}

/// Which of two ways to hold the same data is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    /// As little space as possible.
    #[default]
    Space,
    /// As fast as possible for its user.
    Performance,
}

/// Options of createVirtualDisk, createSnapshot and importImage.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CreateOptions {
    /// Start the work here, and how far.
    #[serde(rename = "AutoFix")]
    pub auto_fix: AutoFix,
    /// Stored with the image.
    pub strategy: Strategy,
    /// Look for existing images only in these repositories.
    pub participating_repositories: Option<Vec<String>>,
    /// Look for an image only in the repository given for it.
    pub image_hints: BTreeMap<String, String>,
    /// The new image's id, chosen by the caller.
    pub image_id: Option<String>,
    /// The started task's name.
    pub task_id: Option<String>,
    /// Bytes per second for the started work, and for whoever goes on with it.
    pub bandwidth: Option<Bandwidth>,
    /// importImage: read back what was written, and keep hashes of it.
    pub verify: bool,
}

/// Options of copyImage.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CopyOptions {
    /// As in [`CreateOptions`].
    #[serde(rename = "AutoFix")]
    pub auto_fix: AutoFix,
    /// As in [`CreateOptions`].
    pub strategy: Strategy,
    /// As in [`CreateOptions`].
    pub participating_repositories: Option<Vec<String>>,
    /// As in [`CreateOptions`].
    pub image_hints: BTreeMap<String, String>,
    /// As in [`CreateOptions`].
    pub image_id: Option<String>,
    /// As in [`CreateOptions`].
    pub task_id: Option<String>,
    /// As in [`CreateOptions`].
    pub bandwidth: Option<Bandwidth>,
    /// False: the copy of a disk is a snapshot under a new id.
    pub mutable: bool,
    /// True: the base may be absent from the target repository.
    pub partial: bool,
    /// Read back what was written, and keep hashes of it: the next difference to it need not read it.
    pub verify: bool,
}

impl Default for CopyOptions {
    fn default() -> Self {
        let CreateOptions {
            auto_fix,
            strategy,
            participating_repositories,
            image_hints,
            image_id,
            task_id,
            bandwidth,
            verify,
        } = CreateOptions::default();
        Self {
            auto_fix,
            strategy,
            participating_repositories,
            image_hints,
            image_id,
            task_id,
            bandwidth,
            mutable: true,
            partial: false,
            verify,
        }
    }
}

/// Options of checkStorageRepository.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CheckOptions {
    /// Price the fixes from the images' maps instead of their sizes.
    pub exact_cost: bool,
}

/// Options of fixStorageRepository.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct FixOptions {
    /// The started task's name.
    pub task_id: Option<String>,
    /// Bytes per second, from now on and for whoever goes on.
    pub bandwidth: Option<Bandwidth>,
}

/// Options of exportImage.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ExportOptions {
    /// Replace a file of that name.
    pub overwrite: bool,
    /// Compress a qcow2 file: `zstd` or `deflate`.
    pub compress: Option<String>,
    /// The started task's name.
    pub task_id: Option<String>,
    /// Bytes per second.
    pub bandwidth: Option<Bandwidth>,
}

/// Options of resizeVirtualDisk, which is complete when it returns.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ResizeOptions {
    /// Accepted in all values: there is no work left to start.
    #[serde(rename = "AutoFix")]
    pub auto_fix: AutoFix,
}

/// Options of measureImage.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct MeasureOptions {
    /// `raw` or `qcow2`.
    pub format: String,
    /// What was written is to be read back.
    pub verify: bool,
}

impl Default for MeasureOptions {
    fn default() -> Self {
        Self { format: "raw".to_owned(), verify: false }
    }
}

/// A limit in whole bytes per second, at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bandwidth(pub u64);

impl<'de> Deserialize<'de> for Bandwidth {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let value = f64::deserialize(deserializer)?;
        if !(1.0..=1e18).contains(&value) {
            return Err(de::Error::custom(format!("bandwidth is bytes per second, at least 1, not {value}")));
        }
        #[allow(clippy::cast_sign_loss)] // At least 1.
        Ok(Self(value as u64))
    }
}

/// Options of removeImage.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RemoveOptions {
    /// Off: leave the space to a later check.
    #[serde(rename = "AutoFix")]
    pub auto_fix: AutoFix,
    /// The started task's name.
    pub task_id: Option<String>,
}

/// Options of disconnectStorageRepository and teardownImage.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ForceOptions {
    /// disconnect: images open or prepared here notwithstanding; teardown: the holder is known to be dead.
    pub force: bool,
}

/// Options of prepareImage.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PrepareOptions {
    /// Needed for a snapshot.
    pub read_only: bool,
}

/// The two kinds of images that a caller sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageKind {
    /// Mutable.
    Disk,
    /// Immutable.
    Snapshot,
}

/// Options of listImages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ListOptions {
    /// Info dicts instead of ids (JSON interfaces; Rust has a function for each).
    pub details: bool,
    /// Only this kind.
    pub kind: Option<ImageKind>,
    /// Only ids greater than this one; the list is in order of ids.
    pub after: Option<String>,
    /// At most so many.
    pub limit: Option<u64>,
}

/// Options of waitImage.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct WaitOptions {
    /// Wait until any host has brought the image to this status.
    pub status: Option<WaitStatus>,
}

/// What waitImage can wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WaitStatus {
    /// See [`crate::Status::Optimized`].
    Optimized,
}

/// Options of the verbs that have none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoOptions {}

/// Parses an options dict: empty text and `null` are `{}`, a null value is the default, an unknown key or a wrong
/// value is `InvalidParameter`.
pub fn parse<T: DeserializeOwned>(text: &str) -> Result<T> {
    parse_value(parse_object("options", text)?)
}

/// Like [`parse`], from a map.
pub fn parse_value<T: DeserializeOwned>(mut map: Map<String, Value>) -> Result<T> {
    map.retain(|_, value| !value.is_null());
    serde_json::from_value(Value::Object(map)).map_err(|error| {
        Error::new(ErrorKind::InvalidParameter, format!("options: {error}")).with("parameter", "options")
    })
}

/// Parses a JSON object; empty text and `null` are `{}`.
pub fn parse_object(what: &str, text: &str) -> Result<Map<String, Value>> {
    let bad = |reason: String| {
        Error::new(ErrorKind::InvalidParameter, format!("{what}: {reason}")).with("parameter", what)
    };
    if text.trim().is_empty() {
        return Ok(Map::new());
    }
    match serde_json::from_str(text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(Value::Null) => Ok(Map::new()),
        Ok(other) => Err(bad(format!("a JSON object is needed, not {other}"))),
        Err(error) => Err(bad(format!("no JSON: {error}"))),
    }
}
