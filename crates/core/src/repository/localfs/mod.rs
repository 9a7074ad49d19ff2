//! localfs-1.0: a directory of a local file system. The layout is written down in `docs/formats/localfs-1.0.md`.

#[cfg(test)]
mod between;
mod entries;
mod format;
mod layout;
mod leftovers;
mod locks;
mod records;
#[cfg(test)]
mod tests;
mod tree;
mod volumes;

use std::any::Any;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use serde_json::{Map, Value};
use uuid::Uuid;
use vdsmstore_io::sys::ByteLock;
use vdsmstore_io::without;

use crate::id::{BlobId, ImageId, Incarnation, VolumeId};
use crate::repository::{
    Access, Capabilities, CopyOnWrite, Driver, Generation, Guard, HostIdentity, HostRecord, Liveness, Marker,
    OpenVolume, Put, QemuUse, Read, RecordKey, RecordKind, Usage, Versioned,
};
use crate::{ErrorKind, Result};
use format::Descriptor;
use layout::{Room, failed, wrong};
use tree::Tree;

pub use format::format;

/// A connection to a repository of format localfs-1.0.
#[derive(Debug)]
pub struct LocalFs {
    tree: Tree,
    host: HostIdentity,
    descriptor: Descriptor,
    /// The lock of our host record; None on a repository that can only be read.
    registration: Mutex<Option<ByteLock>>,
    read_only: bool,
    closed: AtomicBool,
    /// Found out when first asked for.
    reflink: OnceLock<bool>,
}

impl LocalFs {
    /// Connects. Costs the same at any size of the repository.
    pub fn connect(parameters: &Map<String, Value>, host: HostIdentity) -> Result<LocalFs> {
        let root = format::open_place(&format::path_parameter(parameters)?)?;
        // Before anything is written into a place that may be none of ours.
        let descriptor = Descriptor::read(&root)?;
        locks::require_local(&root)?;
        let tree = Tree::open(root, &host)?;
        let registration = if descriptor.only_readable() { None } else { registration(&tree, &host)? };
        // Again: who changes it next will see that we are here, who has just changed it did not.
        let descriptor = match Descriptor::read(&tree.root) {
            Ok(descriptor)
                if registration.is_none()
                    || !descriptor.only_readable()
                    || without!("localfs.reread.descriptor") =>
            {
                descriptor
            }
            result => {
                let _ = tree.hosts.unlink(&host.incarnation.to_string());
                return Err(result.err().unwrap_or_else(|| {
                    wrong(ErrorKind::Conflict, &tree.root.path, "is being upgraded; connect again")
                }));
            }
        };
        Ok(Self {
            tree,
            host,
            descriptor,
            read_only: registration.is_none(),
            registration: Mutex::new(registration),
            closed: AtomicBool::new(false),
            reflink: OnceLock::new(),
        })
    }

    /// The directories, for reading.
    fn open(&self) -> Result<&Tree> {
        if self.closed.load(Ordering::Acquire) {
            return Err(wrong(ErrorKind::Closed, &self.tree.root.path, "the connection is closed"));
        }
        Ok(&self.tree)
    }

    /// The directories, for changing them.
    fn writer(&self) -> Result<&Tree> {
        let tree = self.open()?;
        if self.read_only {
            return Err(wrong(ErrorKind::ReadOnlyRepository, &tree.root.path, "can only be read"));
        }
        Ok(tree)
    }

    fn reflink(&self) -> bool {
        if let Some(&known) = self.reflink.get() {
            return known;
        }
        match self.writer().ok().and_then(Tree::probe_reflink) {
            Some(found) => *self.reflink.get_or_init(|| found),
            None => false,
        }
    }
}

/// None: nothing can be written here.
fn registration(tree: &Tree, host: &HostIdentity) -> Result<Option<ByteLock>> {
    #[cfg(test)]
    between::step();
    match tree.register(host) {
        Ok(lock) => Ok(Some(lock)),
        Err(error) if matches!(error.kind(), ErrorKind::ReadOnlyRepository | ErrorKind::PermissionDenied) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

impl Driver for LocalFs {
    fn format(&self) -> &'static str {
        "localfs-1.0"
    }

    fn location(&self) -> String {
        self.tree.root.path.display().to_string()
    }

    fn contains(&self, directory: &Path) -> bool {
        use std::os::unix::fs::MetadataExt;
        let Ok(root) = rustix::fs::fstat(&self.tree.root) else { return false };
        let is_root = |path: &Path| {
            std::fs::metadata(path).is_ok_and(|at| (at.dev(), at.ino()) == (root.st_dev, root.st_ino))
        };
        directory.canonicalize().is_ok_and(|real| real.ancestors().any(is_root))
    }

    fn repository_nonce(&self) -> Uuid {
        self.descriptor.repo
    }

    fn features(&self) -> Vec<String> {
        self.descriptor.features()
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn capabilities(&self) -> Capabilities {
        let reflink = self.reflink();
        Capabilities { reflink, thin: true, discard: true, multi_host: false, server_copy: false }
    }

    fn copy_on_write(&self) -> CopyOnWrite {
        if self.reflink() { CopyOnWrite::Reflink } else { CopyOnWrite::Overlay }
    }

    fn clone_under_writer(&self) -> bool {
        // Within one kernel a clone waits for the writes under way, and writes for it.
        self.copy_on_write() == CopyOnWrite::Reflink
    }

    fn usage(&self) -> Result<Usage> {
        let root = &self.open()?.root;
        let stat = rustix::fs::fstatvfs(root)
            .map_err(|e| failed("cannot stat the file system of", &root.path, e))?;
        Ok(Usage {
            capacity: stat.f_blocks.saturating_mul(stat.f_frsize),
            available: stat.f_bavail.saturating_mul(stat.f_frsize),
        })
    }

    fn get(&self, key: RecordKey, read: Read) -> Result<Option<Versioned>> {
        self.open()?.get_record(key, read)
    }

    fn put(&self, key: RecordKey, expect: Option<Generation>, bytes: &[u8]) -> Result<Put> {
        self.writer()?.put_record(key, expect, bytes)
    }

    fn delete(&self, key: RecordKey, expect: Generation) -> Result<Put> {
        self.writer()?.delete_record(key, expect)
    }

    fn list(&self, kind: RecordKind, shard: u16) -> Result<Vec<(Uuid, Generation)>> {
        self.open()?.list_records(kind, shard)
    }

    fn scan(
        &self,
        kind: RecordKind,
        shard: u16,
        after: Option<Uuid>,
        visit: &mut dyn FnMut(Uuid, Result<Versioned>) -> bool,
    ) -> Result<bool> {
        self.open()?.scan_records(kind, shard, after, visit)
    }

    fn mark(&self, marker: Marker) -> Result<()> {
        self.writer()?.mark(marker)
    }

    fn unmark(&self, marker: Marker) -> Result<()> {
        self.writer()?.unmark(marker)
    }

    fn children(&self, image: ImageId) -> Result<Vec<VolumeId>> {
        Ok(self.open()?.marked(Room::Children, image.0)?.into_iter().map(VolumeId).collect())
    }

    fn holders(&self, volume: VolumeId) -> Result<Vec<ImageId>> {
        Ok(self.open()?.marked(Room::Holders, volume.0)?.into_iter().map(ImageId).collect())
    }

    fn put_progress(&self, image: ImageId, bytes: &[u8]) -> Result<()> {
        self.writer()?.put_progress(image, bytes)
    }

    fn get_progress(&self, image: ImageId) -> Result<Option<Vec<u8>>> {
        self.open()?.get_progress(image)
    }

    fn delete_progress(&self, image: ImageId) -> Result<()> {
        self.writer()?.delete_progress(image)
    }

    fn put_blob(&self, owner: ImageId, blob: BlobId, bytes: &[u8]) -> Result<()> {
        self.writer()?.put_blob(owner, blob, bytes)
    }

    fn get_blob(&self, owner: ImageId, blob: BlobId) -> Result<Vec<u8>> {
        self.open()?.get_blob(owner, blob)
    }

    fn delete_blob(&self, owner: ImageId, blob: BlobId) -> Result<()> {
        self.writer()?.delete_blob(owner, blob)
    }

    fn blobs(&self, owner: ImageId) -> Result<Vec<BlobId>> {
        Ok(self.open()?.marked(Room::Blobs, owner.0)?.into_iter().map(BlobId).collect())
    }

    fn list_markers(&self, shard: u16) -> Result<Vec<Marker>> {
        let tree = self.open()?;
        let children = tree.list_pairs(Room::Children, shard)?.into_iter();
        let holders = tree.list_pairs(Room::Holders, shard)?.into_iter();
        Ok(children
            .map(|(image, volume)| Marker::Child(ImageId(image), VolumeId(volume)))
            .chain(holders.map(|(volume, image)| Marker::Holder(VolumeId(volume), ImageId(image))))
            .collect())
    }

    fn shards(&self, kind: Option<RecordKind>) -> Result<Vec<u16>> {
        self.open()?.shards(match kind {
            None => &Room::ALL,
            Some(RecordKind::Image) => &[Room::Images],
            Some(RecordKind::Volume) => &[Room::Volumes],
        })
    }

    fn list_blobs(&self, shard: u16) -> Result<Vec<(ImageId, BlobId)>> {
        let pairs = self.open()?.list_pairs(Room::Blobs, shard)?;
        Ok(pairs.into_iter().map(|(image, blob)| (ImageId(image), BlobId(blob))).collect())
    }

    fn list_progress(&self, shard: u16) -> Result<Vec<ImageId>> {
        self.open()?.list_progress(shard)
    }

    fn list_volumes(&self) -> Result<Vec<VolumeId>> {
        self.open()?.list_volumes()
    }

    fn leftovers(&self) -> Result<u64> {
        self.open()?.leftovers()
    }

    fn sweep(&self) -> Result<()> {
        self.writer()?.sweep_all()
    }

    fn create_volume(&self, volume: VolumeId) -> Result<OpenVolume> {
        self.writer()?.create_volume(volume)
    }

    fn clone_volume(
        &self,
        source: &OpenVolume,
        target: VolumeId,
        look: &dyn Fn() -> Result<()>,
    ) -> Result<OpenVolume> {
        let tree = self.writer()?;
        if !self.reflink() {
            let message = "the file system cannot clone files";
            return Err(wrong(ErrorKind::UnsupportedOperation, &tree.root.path, message));
        }
        tree.clone_volume(source, target, look)
    }

    fn pin_volume(&self, source: &OpenVolume) -> Result<OpenVolume> {
        self.writer()?.pin_volume(source)
    }

    fn open_volume(&self, volume: VolumeId, access: Access) -> Result<OpenVolume> {
        match access {
            Access::Read | Access::ReadStill | Access::Moment => self.open(),
            Access::Write | Access::Lease => self.writer(),
        }?
        .open_volume(volume, access)
    }

    fn delete_volume(&self, volume: VolumeId, locked: OpenVolume) -> Result<()> {
        self.writer()?.delete_volume(volume, locked)
    }

    fn settle_deleted(&self, _volume: VolumeId) -> Result<()> {
        self.writer()?.data.sync()
    }

    fn volume_exists(&self, volume: VolumeId) -> Result<bool> {
        self.open()?.volume_exists(volume)
    }

    fn allocated(&self, volume: VolumeId) -> Result<u64> {
        self.open()?.allocated(volume)
    }

    fn path(&self, volume: VolumeId) -> Option<PathBuf> {
        Some(self.tree.data.path.join(volume.to_string()))
    }

    fn qemu_use(&self, volume: VolumeId) -> Result<QemuUse> {
        self.open()?.qemu_use(volume)
    }

    fn lock_image(&self, image: ImageId) -> Result<Option<Box<dyn Guard>>> {
        Ok(self.writer()?.lock_image(image)?.map(|lock| Box::new(lock) as Box<dyn Guard>))
    }

    fn lock_use(&self, image: ImageId, alone: bool) -> Result<Option<Box<dyn Guard>>> {
        let tree = self.open()?;
        if self.read_only() {
            return Ok(Some(Box::new(locks::NoLock)));
        }
        Ok(tree.lock_use(image, alone)?.map(|lock| Box::new(lock) as Box<dyn Guard>))
    }

    fn host(&self) -> &HostIdentity {
        &self.host
    }

    fn host_record(&self, incarnation: Incarnation) -> Result<Option<HostRecord>> {
        self.open()?.host_record(incarnation)
    }

    fn others(&self) -> Result<Vec<HostRecord>> {
        self.open()?.others()
    }

    fn liveness(&self, incarnation: Incarnation) -> Result<Liveness> {
        self.open()?.liveness(incarnation)
    }

    fn close(&self) -> Result<()> {
        let tree = self.open()?;
        self.closed.store(true, Ordering::Release);
        let Some(lock) = self.registration.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            return Ok(());
        };
        // The record first: whoever finds it finds it locked.
        let removed = tree.with_reserve(|| tree.hosts.unlink(&self.host.incarnation.to_string()));
        // Also if that failed: the record says nothing without its lock.
        drop(lock);
        removed.map(|_| ())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
