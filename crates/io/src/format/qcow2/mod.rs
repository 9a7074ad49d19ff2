//! qcow2, as in docs/interop/qcow2 of QEMU. `docs/formats/qcow2.md` says what is read, written and refused.
//!
//! [`create`], [`info`] and [`set_backing`] work on a device; reading and writing the disk inside goes
//! through [`crate::Image`].

mod alloc;
mod backing;
mod bitmaps;
mod check;
mod compressed;
mod create;
mod flush;
mod grow;
mod header;
mod mapping;
mod packed;
mod place;
mod refcount;
mod snapshots;
mod table;
mod tracking;
mod write;
mod zero;

pub use backing::{Backing, check_set_backing, set_backing};
pub use bitmaps::{Bitmap, bitmaps, visit_bitmap};
pub use check::{Finding, Part, Problem, Repair, Report, Severity, check, repair};
pub use create::{CreateOptions, Layout, Preallocation, create, create_with};
pub(crate) use mapping::{Below, Piece, Qcow2};
pub use packed::Compression;
pub(crate) use place::Placed;
pub use snapshots::{Snapshot, snapshots};

use crate::{Device, Result};

/// What the header says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[allow(clippy::struct_excessive_bools, reason = "the format has that many flags")]
pub struct Info {
    /// Virtual size in bytes.
    pub size: u64,
    /// 2 or 3.
    pub version: u32,
    /// Bytes in a cluster.
    pub cluster_size: u64,
    /// Bits in a refcount.
    pub refcount_bits: u32,
    /// The name of the backing file, as it stands there; never opened because of that.
    pub backing: Option<String>,
    /// The backing file's format, if the header has it.
    pub backing_format: Option<String>,
    /// The data lies in another file.
    pub data_file: bool,
    /// That file's name, as it stands there; never opened because of that.
    pub data_file_name: Option<String>,
    /// Refcounts must be repaired before writing.
    pub dirty: bool,
    /// Nothing may be written but repairs.
    pub corrupt: bool,
    /// Internal snapshots; [`snapshots`] lists them.
    pub snapshots: u32,
    /// The data is encrypted.
    pub encrypted: bool,
    /// Subclusters.
    pub extended_l2: bool,
    /// It has persistent bitmaps, consistent or not; [`bitmaps()`] lists them.
    pub bitmaps: bool,
    /// Compressed clusters, if any, are zstd instead of deflate.
    pub zstd: bool,
}

/// Reads and validates the header of an image; reads nothing but the first cluster, opens nothing else.
///
/// `Corrupt` if it contradicts the specification (or is no qcow2 at all), `Unsupported` for versions, unknown
/// incompatible features and sizes beyond QEMU's limits.
pub fn info(device: &dyn Device) -> Result<Info> {
    let header = header::Header::read(device)?;
    Ok(Info {
        size: header.size,
        version: header.version,
        cluster_size: header.cluster_size(),
        refcount_bits: header.refcount_bits,
        backing: header.backing,
        backing_format: header.backing_format,
        data_file: header.data_file,
        data_file_name: header.data_file_name,
        dirty: header.dirty,
        corrupt: header.corrupt,
        snapshots: header.snapshots,
        encrypted: header.encrypted,
        extended_l2: header.extended_l2,
        bitmaps: header.bitmaps.is_some(),
        zstd: header.zstd,
    })
}
