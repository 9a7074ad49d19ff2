//! What the verbs return. Each serialises to the dict of the API.

use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::id::ImageId;
use crate::options::Strategy;
use crate::repository::Capabilities;

/// Whether an image can be used, and how well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Usable, in its best representation.
    Optimized,
    /// Usable; a better representation exists.
    Degraded,
    /// Not usable now.
    Broken,
}

/// The result of getImageStatus.
#[derive(Clone, Debug, Serialize)]
pub struct ImageStatus {
    /// Whether it can be used.
    pub status: Status,
    /// Who worked on it last, as last persisted; "" if nobody.
    #[serde(rename = "hostID")]
    pub host_id: String,
    /// `"1/3"`, or "".
    pub stage: String,
    /// 0..100 of the current stage, -1 unknown.
    pub percent_complete: i32,
    /// The last failure or stop.
    pub last_error: Option<String>,
    /// What runs on it in this process.
    pub tasks: Vec<TaskInfo>,
}

/// One entry of listTasks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TaskInfo {
    /// Its name.
    #[serde(rename = "taskId")]
    pub task_id: String,
    /// What it does: `mend`, `optimize`, `clean`, ...
    #[serde(rename = "type")]
    pub task_type: &'static str,
    /// On which repository.
    #[serde(rename = "repoId")]
    pub repo_id: String,
    /// On which image.
    #[serde(rename = "imageId")]
    pub image_id: Option<ImageId>,
    /// `"1/3"`, or "".
    pub stage: String,
    /// 0..100 of the current stage, -1 unknown.
    pub percent_complete: i32,
    /// Bytes done of the current stage.
    #[serde(rename = "bytesDone")]
    pub bytes_done: u64,
    /// Bytes of the current stage; 0 unknown.
    #[serde(rename = "bytesTotal")]
    pub bytes_total: u64,
    /// Seconds since the epoch.
    pub started: u64,
}

/// The result of getImageInfo.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageInfo {
    /// Its id.
    pub image_id: ImageId,
    /// A virtual disk; else a snapshot.
    pub mutable: bool,
    /// Virtual size in bytes.
    pub size: u64,
    /// Bytes that its own volume takes.
    pub allocated: u64,
    /// The caller's JSON, byte for byte.
    pub user_data: Box<RawValue>,
    /// As asked for.
    pub strategy: Strategy,
    /// Seconds since the epoch.
    pub created: u64,
    /// How many volumes its data is spread over.
    pub depth: u32,
    /// Who has it prepared or open, if anybody.
    pub prepared: Option<Prepared>,
}

/// Who uses an image, as recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Prepared {
    /// The host's label.
    #[serde(rename = "hostID")]
    pub host_id: String,
    /// `prepare` or `open`.
    pub mode: String,
    /// Seconds since the epoch.
    pub since: u64,
}

/// The result of getStorageRepositoryInfo.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RepositoryInfo {
    /// The caller's name for it.
    pub repo_id: String,
    /// `name-major.minor`.
    pub format: String,
    /// Where it is, for people.
    pub location: String,
    /// Bytes.
    pub capacity: u64,
    /// Bytes.
    pub available: u64,
    /// How many.
    pub virtual_disks: u64,
    /// How many.
    pub snapshots: u64,
    /// Whether it can only be read.
    pub read_only: bool,
    /// Of its descriptor.
    pub features: Vec<String>,
    /// Of its storage.
    pub capabilities: Capabilities,
}

/// The result of prepareImage.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PreparedImage {
    /// What QEMU opens.
    pub path: String,
    /// `raw` or `qcow2`.
    pub format: String,
    /// Whether it may only be read.
    pub read_only: bool,
    /// QEMU's `-blockdev` nodes for the whole chain, as a JSON tree.
    pub blockdev: Value,
    /// The `<disk>` source of libvirt as XML.
    pub libvirt: String,
}

/// The result of measureImage, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Measure {
    /// What a copy takes on the storage.
    pub required: u64,
    /// What it takes when all of it is written.
    pub fully_allocated: u64,
    /// What making it reads.
    pub read: u64,
}

/// The kinds of extents that openImage's `extents` tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ExtentKind {
    /// May hold anything.
    Data,
    /// Reads as zeroes, explicitly.
    Zero,
    /// Allocated nowhere; reads as zeroes.
    Hole,
}

/// A run of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Extent {
    /// Bytes.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// What it is.
    pub kind: ExtentKind,
}

/// What `graph` draws: an image, and the image whose data shows through it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GraphNode {
    /// The image.
    pub image_id: ImageId,
    /// `disk`, `snapshot`, or what the engine keeps: `hidden` (a frozen base), `removed` (needed by others).
    pub kind: String,
    /// Whether it can be used.
    pub status: Status,
    /// Virtual size in bytes.
    pub size: u64,
    /// Bytes that its own volume takes.
    pub allocated: u64,
    /// The image it is stored on.
    pub base: Option<ImageId>,
    /// The caller's JSON.
    pub user_data: Box<RawValue>,
}
