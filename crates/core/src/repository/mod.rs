//! What a repository format must provide: records, volumes as devices, locks, and what its storage can do.
//!
//! Everything above this trait is written once for all formats.

pub mod localfs;

use std::any::Any;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use serde_json::{Map, Value};
use uuid::Uuid;
use vdsmstore_io::Device;

use crate::id::{BlobId, ImageId, Incarnation, VolumeId};
use crate::{Error, ErrorKind, Result};

/// Counts the puts of one record; starts at 1 and never restarts, deletion included.
pub type Generation = u64;

/// Names a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RecordKey {
    /// The tag: who the data is.
    Image(ImageId),
    /// Where bytes lie.
    Volume(VolumeId),
}

/// The kinds of records, for listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RecordKind {
    /// See [`RecordKey::Image`].
    Image,
    /// See [`RecordKey::Volume`].
    Volume,
}

/// Records are listed in this many shards, by the first three hexadecimal digits of the id.
pub const SHARDS: u16 = 4096;

/// The shard of an id.
pub fn shard_of(id: Uuid) -> u16 {
    let bytes = id.as_bytes();
    (u16::from(bytes[0]) << 4) | (u16::from(bytes[1]) >> 4)
}

/// The content of a record and its generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned {
    /// The document.
    pub bytes: Vec<u8>,
    /// Its generation.
    pub generation: Generation,
}

/// How a record is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// May be stale, may not be durable yet: for listings and status.
    Relaxed,
    /// The highest generation that exists now, and durable before this returns: for every precondition of a write.
    Fresh,
}

/// What became of a put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// It is there and durable, under this generation.
    Done(Generation),
    /// Another generation than the expected one is there; nothing was changed.
    Conflict,
    /// The storage did not say, or the put was overtaken by others before that could be told; the caller reads back and
    /// compares its nonce.
    Unknown,
}

/// A reference announced: written durably before the reference, removed after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Marker {
    /// This volume backs, or is about to back, on this image.
    Child(ImageId, VolumeId),
    /// This image points, or is about to point, at this volume.
    Holder(VolumeId, ImageId),
}

/// How a volume is opened, which says what is locked through the descriptor that does the I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Shared: the bytes of an immutable volume are read. Nothing is asked of QEMU.
    Read,
    /// Shared, and no QEMU process may write it meanwhile: a disk's bytes are read.
    ReadStill,
    /// Exclusive against everybody, QEMU processes included: fill, write, replace, delete.
    Write,
    /// Exclusive among stores only: a prepared disk, whose QEMU is yet to come.
    Lease,
    /// Nothing is locked: the bytes of this moment are to be cloned, whoever writes them.
    Moment,
}

/// An open volume: its bytes and its lock, released together when dropped.
#[derive(Debug)]
pub struct OpenVolume {
    /// The bytes. All I/O goes through the descriptor that carries the lock.
    pub device: Arc<dyn Device>,
}

/// Held until dropped.
pub trait Guard: fmt::Debug + Send + Sync {}

/// What the storage says of another store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Liveness {
    /// It lives, or cannot be shown to be dead.
    Alive,
    /// It is gone; nothing it had under way can still reach the storage.
    CertainlyDead,
    /// It is probably gone: enough for records, not for bytes.
    LikelyDead,
}

/// Which QEMU processes have a volume open, as far as their locks show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QemuUse {
    /// One may write it.
    pub writing: bool,
    /// One has it open.
    pub open: bool,
}

/// How the storage makes a copy-on-write copy of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyOnWrite {
    /// It cannot: an overlay volume is put on top.
    Overlay,
    /// A reflink clone of the file.
    Reflink,
}

/// What the storage can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(clippy::struct_excessive_bools)] // The dict of the API.
pub struct Capabilities {
    /// Volumes can be cloned without copying.
    pub reflink: bool,
    /// Space is taken only by what is written.
    pub thin: bool,
    /// Space can be given back.
    pub discard: bool,
    /// Several hosts may use it at once.
    pub multi_host: bool,
    /// The storage copies by itself.
    pub server_copy: bool,
}

/// Space of the storage in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// All of it.
    pub capacity: u64,
    /// What can still be written.
    pub available: u64,
}

/// Who opens a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostIdentity {
    /// A label for people.
    pub host_id: String,
    /// This store.
    pub incarnation: Incarnation,
    /// Changes when the machine boots.
    pub boot_id: String,
}

/// What is known of a store that registered with the repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostRecord {
    /// Its label.
    pub host_id: String,
    /// The boot of the machine it ran on.
    pub boot_id: String,
}

/// How an empty repository is made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FormatOptions {
    /// User id of everything in it.
    pub owner: Option<u32>,
    /// Group id of everything in it.
    pub group: Option<u32>,
    /// Permission bits of its directories (files: the same without execute).
    pub mode: Option<u32>,
}

/// A connected repository. All calls may come from many threads.
///
/// Errors of the storage are [`ErrorKind::IoError`], `NoSpace`, `PermissionDenied`, ...; on a repository that can only
/// be read every change is [`ErrorKind::ReadOnlyRepository`].
pub trait Driver: fmt::Debug + Send + Sync {
    /// `name-major.minor`.
    fn format(&self) -> &'static str;

    /// Where it is, for people.
    fn location(&self) -> String;

    /// Whether a directory of this host is that of the repository, or in it.
    fn contains(&self, _directory: &Path) -> bool {
        false
    }

    /// Random, from the descriptor: tells whether two connections reach the same repository.
    fn repository_nonce(&self) -> Uuid;

    /// The features of its descriptor.
    fn features(&self) -> Vec<String>;

    /// Whether it can only be read.
    fn read_only(&self) -> bool;

    /// What the storage can do.
    fn capabilities(&self) -> Capabilities;

    /// How copy-on-write is made here.
    fn copy_on_write(&self) -> CopyOnWrite;

    /// Whether a clone is one moment of a volume that somebody writes meanwhile.
    fn clone_under_writer(&self) -> bool;

    /// Space.
    fn usage(&self) -> Result<Usage>;

    // Records.

    /// The record, or None if it does not exist or was deleted.
    fn get(&self, key: RecordKey, read: Read) -> Result<Option<Versioned>>;

    /// Compare-and-set. `expect` None: the record must not exist (a deleted one continues its generations).
    /// Atomic, and durable when it returns `Done`.
    fn put(&self, key: RecordKey, expect: Option<Generation>, bytes: &[u8]) -> Result<Put>;

    /// Compare-and-set to "deleted" (a tombstone that keeps the generation). `expect` 0: where nothing ever was.
    fn delete(&self, key: RecordKey, expect: Generation) -> Result<Put>;

    /// The ids of one shard with their highest generations, deleted ones possibly included: a hint, `get` decides.
    fn list(&self, kind: RecordKind, shard: u16) -> Result<Vec<(Uuid, Generation)>>;

    /// Reads the records of one shard whose ids come after `after`, in order, until `visit` says "enough" by false; then
    /// this is false too. As up to date as a relaxed `get`; a record that cannot be read is an error of its own.
    fn scan(
        &self,
        kind: RecordKind,
        shard: u16,
        after: Option<Uuid>,
        visit: &mut dyn FnMut(Uuid, Result<Versioned>) -> bool,
    ) -> Result<bool> {
        let mut found = self.list(kind, shard)?;
        found.sort_unstable();
        for (id, _) in found.into_iter().filter(|(id, _)| after.is_none_or(|after| *id > after)) {
            let key = match kind {
                RecordKind::Image => RecordKey::Image(ImageId(id)),
                RecordKind::Volume => RecordKey::Volume(VolumeId(id)),
            };
            if let Some(read) = self.get(key, Read::Relaxed).transpose()
                && !visit(id, read)
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Makes a marker exist, durably. It may exist already.
    fn mark(&self, marker: Marker) -> Result<()>;

    /// Makes a marker not exist. It may be absent already.
    fn unmark(&self, marker: Marker) -> Result<()>;

    /// The volumes that may back on the image.
    fn children(&self, image: ImageId) -> Result<Vec<VolumeId>>;

    /// The images that may point at the volume.
    fn holders(&self, volume: VolumeId) -> Result<Vec<ImageId>>;

    /// Replaces the progress of an image: atomic, durable when it returns, last writer wins.
    fn put_progress(&self, image: ImageId, bytes: &[u8]) -> Result<()>;

    /// The progress of an image.
    fn get_progress(&self, image: ImageId) -> Result<Option<Vec<u8>>>;

    /// Removes the progress of an image, if there is one.
    fn delete_progress(&self, image: ImageId) -> Result<()>;

    /// Stores a blob under a new name that carries the image's id; durable when it returns.
    fn put_blob(&self, owner: ImageId, blob: BlobId, bytes: &[u8]) -> Result<()>;

    /// Reads a blob. Absent: `CorruptRecord`.
    fn get_blob(&self, owner: ImageId, blob: BlobId) -> Result<Vec<u8>>;

    /// Removes a blob, if it is there.
    fn delete_blob(&self, owner: ImageId, blob: BlobId) -> Result<()>;

    /// All blobs that carry the image's id.
    fn blobs(&self, owner: ImageId) -> Result<Vec<BlobId>>;

    /// The shards that may hold such records, or anything at all, in order; all others are empty.
    fn shards(&self, _kind: Option<RecordKind>) -> Result<Vec<u16>> {
        Ok((0..SHARDS).collect())
    }

    // For checks: what is there beside the records. Hints, as `list` is.

    /// The markers whose first id is in the shard.
    fn list_markers(&self, shard: u16) -> Result<Vec<Marker>>;

    /// The blobs whose image's id is in the shard.
    fn list_blobs(&self, shard: u16) -> Result<Vec<(ImageId, BlobId)>>;

    /// The images in the shard that have progress.
    fn list_progress(&self, shard: u16) -> Result<Vec<ImageId>>;

    /// The data objects.
    fn list_volumes(&self) -> Result<Vec<VolumeId>>;

    /// Bytes that dead stores left over and that nothing refers to: temporary files, registrations. 0: nothing to sweep.
    fn leftovers(&self) -> Result<u64>;

    /// Removes what [`Driver::leftovers`] counts, as far as its stores are certainly dead.
    fn sweep(&self) -> Result<()>;

    // Volumes.

    /// Creates the data object, empty, its name durable; one that exists already stays as it is, if its exclusive lock
    /// can be had, else `ImageInUse`: the caller looks whether it still is his to fill. Returns it open with
    /// [`Access::Write`].
    fn create_volume(&self, volume: VolumeId) -> Result<OpenVolume>;

    /// Makes `target` a clone of `source`: one moment of it, durable with its name. What `target` held is replaced once
    /// `look` was asked under its exclusive lock whether it still is the caller's to fill.
    /// Only on storage whose [`Driver::copy_on_write`] is `Reflink`. Returns the target open with [`Access::Write`].
    fn clone_volume(
        &self,
        source: &OpenVolume,
        target: VolumeId,
        look: &dyn Fn() -> Result<()>,
    ) -> Result<OpenVolume>;

    /// A clone of `source` as it is at this moment, to be read, under no name: it goes with its last handle, or its
    /// process. Only where [`Driver::clone_under_writer`] is true.
    fn pin_volume(&self, source: &OpenVolume) -> Result<OpenVolume>;

    /// Opens and locks a volume, all tried at once, never waiting. Lock not to be had: `ImageInUse`. No such object: `ImageBroken`.
    fn open_volume(&self, volume: VolumeId, access: Access) -> Result<OpenVolume>;

    /// Deletes the data object, in steps if it is large; the handle proves that nobody uses it.
    fn delete_volume(&self, volume: VolumeId, locked: OpenVolume) -> Result<()>;

    /// Makes it durable that the data object is not there, whoever deleted it.
    fn settle_deleted(&self, volume: VolumeId) -> Result<()>;

    /// Whether the data object exists.
    fn volume_exists(&self, volume: VolumeId) -> Result<bool>;

    /// Bytes that the volume takes on the storage.
    fn allocated(&self, volume: VolumeId) -> Result<u64>;

    /// Where QEMU finds it, if by path.
    fn path(&self, volume: VolumeId) -> Option<PathBuf>;

    /// What QEMU processes do with it.
    fn qemu_use(&self, volume: VolumeId) -> Result<QemuUse>;

    // Locks and hosts.

    /// Tries the lock that orders the operations on one image record. Held by somebody else: None.
    fn lock_image(&self, image: ImageId) -> Result<Option<Box<dyn Guard>>>;

    /// Says that the image itself is being read (several may), or with `alone` asks for the moment in which nobody reads
    /// it: readers of what is built on it do not count. Not to be had: None. Where nothing can be locked because nothing
    /// can be changed, readers get a guard of nothing.
    fn lock_use(&self, image: ImageId, alone: bool) -> Result<Option<Box<dyn Guard>>>;

    /// Who opened this connection.
    fn host(&self) -> &HostIdentity;

    /// What is recorded of a store; None when it has closed in order or never was.
    fn host_record(&self, incarnation: Incarnation) -> Result<Option<HostRecord>>;

    /// The other stores that are connected now; none where that is not known.
    fn others(&self) -> Result<Vec<HostRecord>> {
        Ok(Vec::new())
    }

    /// Whether a store still lives.
    fn liveness(&self, incarnation: Incarnation) -> Result<Liveness>;

    /// Leaves in order: the host record goes, the locks are released. Further calls fail with `Closed`.
    fn close(&self) -> Result<()>;

    /// For the simulator's tests.
    fn as_any(&self) -> &dyn Any;
}

/// Connects to a repository.
pub(crate) fn connect(
    format: &str,
    parameters: &Map<String, Value>,
    host: HostIdentity,
) -> Result<Arc<dyn Driver>> {
    match known(format)? {
        Known::LocalFs => Ok(Arc::new(localfs::LocalFs::connect(parameters, host)?)),
    }
}

/// Makes an empty repository.
pub(crate) fn format(format: &str, parameters: &Map<String, Value>, options: &FormatOptions) -> Result<()> {
    match known(format)? {
        Known::LocalFs => localfs::format(parameters, options),
    }
}

enum Known {
    LocalFs,
}

/// `name-major.minor`; an older minor of a known major is read by the newer code.
fn known(format: &str) -> Result<Known> {
    let (name, version) = format.rsplit_once('-').unwrap_or((format, ""));
    let version = version
        .split_once('.')
        .and_then(|(major, minor)| Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?)));
    let Some(version) = version else {
        let message = format!("repository format {format:?} is not of the form name-major.minor");
        return Err(Error::new(ErrorKind::InvalidParameter, message).with("parameter", "repoFormat"));
    };
    match (name, version) {
        ("localfs", (1, 0)) => Ok(Known::LocalFs),
        ("localfs", (major, _)) if major > 0 => {
            let message =
                format!("repository format {format:?} is newer than this release, which knows localfs-1.0");
            Err(Error::new(ErrorKind::VersionTooNew, message))
        }
        ("nfs", (3, 4)) | ("clvm", (1, 2)) | ("rbd", (1, 0)) => {
            let message = format!("repository format {format:?} is not supported by this release");
            Err(Error::new(ErrorKind::UnsupportedOperation, message))
        }
        _ => {
            let message =
                format!("no driver for repository format {format:?}; this release knows localfs-1.0");
            Err(Error::new(ErrorKind::FormatUnsupported, message))
        }
    }
}
