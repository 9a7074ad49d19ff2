//! Locks are byte ranges of files that are never replaced, taken for the open file: they go with the last
//! descriptor, whatever became of the process.

use std::fs::File;
use std::path::Path;

use rustix::fs::OFlags;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use vdsmstore_io::sys::{
    ByteLock, Carried, LockMode, UNDER_WAY, await_requests, ofd_release, ofd_try_lock, ofd_would_block,
};
use vdsmstore_io::{Device, DeviceExtent, DeviceId, Direct, FileDevice, Offload, without};

use super::layout::{Dir, MAX_RECORD, TRIES, failed, parse_id, wrong};
use super::tree::Tree;
use crate::id::{ImageId, Incarnation};
use crate::repository::{Access, Guard, HostIdentity, HostRecord, Liveness, QemuUse, shard_of};
use crate::{Error, ErrorKind, Result};

/// The volume's lock, far beyond what QEMU looks at.
const VOLUME_BYTE: u64 = 1 << 62;
/// Held with the former by who also holds QEMU's bytes, so that these are not taken for QEMU's own.
const WRITER_BYTE: u64 = VOLUME_BYTE + 1;
/// Of a host record.
const HOST_BYTE: u64 = 0;

// QEMU's bytes: 100 + n: "I use n"; 200 + n: "I do not share n" (read locks; see block/file-posix.c and docs/formats).
const QEMU_USES_READ: u64 = 100;
const QEMU_USES_WRITE: u64 = 101;
const QEMU_USES_RESIZE: u64 = 103;
const QEMU_KEEPS_READ: u64 = 200;
const QEMU_KEEPS_WRITE: u64 = 201;
const QEMU_KEEPS_RESIZE: u64 = 203;
const QEMU_BYTES: [u64; 6] =
    [QEMU_USES_READ, QEMU_USES_WRITE, QEMU_USES_RESIZE, QEMU_KEEPS_READ, QEMU_KEEPS_WRITE, QEMU_KEEPS_RESIZE];

impl Guard for ByteLock {}

/// Tries to lock one byte.
fn lock_byte(file: File, byte: u64, mode: LockMode, path: &Path) -> Result<Option<ByteLock>> {
    ByteLock::new(file, byte, mode).map_err(|e| failed("cannot lock", path, e))
}

/// A file under the lock of its volume; unlocked when dropped. A method that [`Device`] gains with a default
/// implementation belongs here too.
#[derive(Debug)]
pub(super) struct LockedFile {
    _carried: Carried,
    device: FileDevice,
    process: u32,
}

/// What [`lock_volume`] takes.
const VOLUME_RANGES: [(u64, u64); 2] =
    [(VOLUME_BYTE, 2), (QEMU_USES_READ, QEMU_KEEPS_RESIZE + 1 - QEMU_USES_READ)];

impl LockedFile {
    pub(super) fn new(file: File, path: &Path, writable: bool) -> Result<Self> {
        let carried = Carried::new(&file).map_err(|e| failed("cannot lock", path, e))?;
        let device = FileDevice::from_file(file, path.to_path_buf(), writable)?;
        Ok(Self { _carried: carried, device, process: std::process::id() })
    }
}

impl Drop for LockedFile {
    fn drop(&mut self) {
        ofd_release(self.device.file(), self.process, &VOLUME_RANGES);
    }
}

impl Device for LockedFile {
    fn id(&self) -> DeviceId {
        self.device.id()
    }

    fn name(&self) -> String {
        self.device.name()
    }

    fn len(&self) -> vdsmstore_io::Result<u64> {
        self.device.len()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> vdsmstore_io::Result<()> {
        self.device.read_at(offset, buffer)
    }

    fn write_at(&self, offset: u64, buffer: &[u8]) -> vdsmstore_io::Result<()> {
        self.device.write_at(offset, buffer)
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> vdsmstore_io::Result<()> {
        self.device.write_zeroes(offset, length)
    }

    fn set_len(&self, length: u64) -> vdsmstore_io::Result<()> {
        self.device.set_len(length)
    }

    fn allocate(&self, offset: u64, length: u64) -> vdsmstore_io::Result<()> {
        self.device.allocate(offset, length)
    }

    fn flush(&self) -> vdsmstore_io::Result<()> {
        self.device.flush()
    }

    fn extent(&self, offset: u64, length: u64) -> vdsmstore_io::Result<DeviceExtent> {
        self.device.extent(offset, length)
    }

    fn as_file(&self) -> Option<&File> {
        self.device.as_file()
    }

    fn direct(&self) -> Option<&Direct> {
        self.device.direct()
    }

    fn can_offload(&self, how: Offload, source: &dyn Device) -> bool {
        self.device.can_offload(how, source)
    }

    fn offload(
        &self,
        how: Offload,
        offset: u64,
        source: &dyn Device,
        source_offset: u64,
        length: u64,
    ) -> vdsmstore_io::Result<u64> {
        self.device.offload(how, offset, source, source_offset, length)
    }
}

/// The content of `hosts/<incarnation>`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Registration {
    host_id: String,
    boot_id: String,
    #[serde(default)]
    release: String,
    #[serde(default)]
    features: Vec<String>,
}

/// Added to an image's byte: the byte of those who read the image itself.
const USES: u64 = 1 << 62;

/// Where nothing can be changed, nothing needs to be locked.
#[derive(Debug)]
pub(super) struct NoLock;

impl Guard for NoLock {}

/// The image's byte in the lock file of its shard: a hash of all of its id, so that ids chosen alike do not share one.
fn image_byte(id: Uuid) -> u64 {
    // FNV-1a, of which 62 bits are a valid offset.
    let hash = id.as_bytes().iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    hash >> 2
}

impl Tree {
    pub(super) fn lock_image(&self, image: ImageId) -> Result<Option<ByteLock>> {
        self.lock_shard_byte(image, image_byte(image.0), LockMode::Exclusive)
    }

    pub(super) fn lock_use(&self, image: ImageId, alone: bool) -> Result<Option<ByteLock>> {
        let mode = if alone { LockMode::Exclusive } else { LockMode::Shared };
        self.lock_shard_byte(image, USES | image_byte(image.0), mode)
    }

    fn lock_shard_byte(&self, image: ImageId, byte: u64, lock: LockMode) -> Result<Option<ByteLock>> {
        let name = format!("{:03x}", shard_of(image.0));
        let path = self.locks.path.join(&name);
        let (mode, flags) = (self.ownership.file_mode(), OFlags::RDWR);
        let file = match self.locks.open_file(&name, flags, mode) {
            Ok(file) => file,
            // Not durable, as no lock is. On a full file system it may be needed to remove something.
            Err(Errno::NOENT) => self.with_reserve(|| match self.create(&self.locks, &name) {
                Ok((file, _)) => Ok(file),
                Err(error) => match self.locks.open_file(&name, flags, mode) {
                    Ok(file) => Ok(file),
                    Err(_) => Err(error),
                },
            })?,
            Err(Errno::LOOP) => return Err(wrong(ErrorKind::CorruptRecord, &path, "is a symbolic link")),
            Err(e) => return Err(failed("cannot open", path, e)),
        };
        lock_byte(file, byte, lock, &path)
    }

    /// Announces this store. The record has its lock before it has its name.
    pub(super) fn register(&self, host: &HostIdentity) -> Result<ByteLock> {
        let record = Registration {
            host_id: host.host_id.clone(),
            boot_id: host.boot_id.clone(),
            release: env!("CARGO_PKG_VERSION").to_owned(),
            features: Vec::new(),
        };
        let bytes = serde_json::to_vec(&record).map_err(|e| {
            wrong(ErrorKind::Internal, &self.hosts.path, "a host record cannot be written").because(e)
        })?;
        let name = host.incarnation.to_string();
        self.with_reserve(|| {
            for _ in 0..TRIES {
                let mut temporary = self.temporary(&self.hosts)?;
                let file = temporary
                    .file
                    .try_clone()
                    .map_err(|e| failed("cannot open again", &self.hosts.path, e))?;
                let lock =
                    lock_byte(file, HOST_BYTE, LockMode::Exclusive, &self.hosts.path)?.ok_or_else(|| {
                        wrong(ErrorKind::CannotLock, &self.hosts.path, "the new host record is locked")
                    })?;
                temporary.write(&bytes)?;
                match temporary.rename(&name) {
                    // Somebody swept it before it was locked.
                    Err(_) if self.hosts.stat(&temporary.name)?.is_none() => {}
                    renamed => {
                        renamed?;
                        if !without!("localfs.flush.host") {
                            self.hosts.sync()?;
                        }
                        return Ok(lock);
                    }
                }
            }
            Err(wrong(ErrorKind::IoError, &self.hosts.path, "a new host record is removed again and again"))
        })
    }

    /// Whether the store of that registration, or of what is to become one, is there. None: the file is not.
    pub(super) fn is_locked_host(&self, name: &str) -> Result<Option<bool>> {
        let path = self.hosts.path.join(name);
        let file = match self.hosts.open_file(name, OFlags::RDONLY, rustix::fs::Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(None),
            Err(e) => return Err(failed("cannot open", path, e)),
        };
        ofd_would_block(&file, HOST_BYTE, 1, LockMode::Exclusive)
            .map(Some)
            .map_err(|e| failed("cannot ask for the lock", path, e))
    }

    fn registration(&self, incarnation: Incarnation) -> Result<Option<Registration>> {
        let name = incarnation.to_string();
        let Some(bytes) = self.hosts.read(&name, MAX_RECORD)? else { return Ok(None) };
        serde_json::from_slice(&bytes).map(Some).map_err(|e| {
            let why = format!("the host record cannot be understood: {e}");
            wrong(ErrorKind::CorruptRecord, &self.hosts.path.join(name), &why).because(e)
        })
    }

    pub(super) fn host_record(&self, incarnation: Incarnation) -> Result<Option<HostRecord>> {
        let record = self.registration(incarnation)?;
        Ok(record.map(|record| HostRecord { host_id: record.host_id, boot_id: record.boot_id }))
    }

    pub(super) fn others(&self) -> Result<Vec<HostRecord>> {
        let mut others = Vec::new();
        for incarnation in self.hosts.names()?.iter().filter_map(|name| parse_id(name)).map(Incarnation) {
            if incarnation != self.incarnation && self.liveness(incarnation)? == Liveness::Alive {
                others.extend(self.host_record(incarnation)?);
            }
        }
        Ok(others)
    }

    pub(super) fn liveness(&self, incarnation: Incarnation) -> Result<Liveness> {
        if incarnation == self.incarnation {
            return Ok(Liveness::Alive);
        }
        match self.is_locked_host(&incarnation.to_string())? {
            _ if without!("localfs.compare.alive") => Ok(Liveness::CertainlyDead),
            None | Some(false) => Ok(Liveness::CertainlyDead),
            // The file system is local: who ran under another boot is gone, whoever may hold that byte.
            Some(true) => match self.registration(incarnation) {
                Ok(Some(record)) if record.boot_id == self.boot_id || without!("localfs.compare.boot") => {
                    Ok(Liveness::Alive)
                }
                Ok(_) => Ok(Liveness::CertainlyDead),
                Err(_) => Ok(Liveness::Alive),
            },
        }
    }
}

/// Takes what `access` asks for, all at once or nothing, through the descriptor that will do the I/O.
pub(super) fn lock_volume(file: &File, access: Access, path: &Path) -> Result<()> {
    #[cfg(test)]
    super::between::step();
    try_lock_volume(file, access, path).inspect_err(|_| ofd_release(file, std::process::id(), &VOLUME_RANGES))
}

fn try_lock_volume(file: &File, access: Access, path: &Path) -> Result<()> {
    let take = |byte, length, mode| {
        ofd_try_lock(file, byte, length, mode).map_err(|e| failed("cannot lock", path, e))
    };
    let foreign = |byte| {
        ofd_would_block(file, byte, 1, LockMode::Exclusive)
            .map_err(|e| failed("cannot ask for the lock", path, e))
    };
    let free = match access {
        Access::Read | Access::ReadStill => take(VOLUME_BYTE, 1, LockMode::Shared)?,
        Access::Lease => take(VOLUME_BYTE, 1, LockMode::Exclusive)?,
        Access::Write => take(VOLUME_BYTE, 2, LockMode::Exclusive)?,
        Access::Moment => true,
    };
    if !free && !without!("localfs.lock.volume") {
        return Err(in_use(path, "somebody else works with it"));
    }
    if matches!(access, Access::Lease | Access::Write)
        && !without!("localfs.await")
        && !await_requests(file).map_err(|e| failed("cannot ask for the lock", path, e))?
    {
        return Err(in_use(path, UNDER_WAY));
    }
    let (ours, theirs): (&[u64], &[u64]) = match access {
        Access::Read | Access::Lease | Access::Moment => (&[], &[]),
        Access::ReadStill => (&[QEMU_KEEPS_WRITE, QEMU_KEEPS_RESIZE], &[QEMU_USES_WRITE, QEMU_USES_RESIZE]),
        // A QEMU that reads a raw file holds the first byte only, and shares everything: so that one too.
        Access::Write => (&QEMU_BYTES, &QEMU_BYTES),
    };
    // Lock first, then look: a QEMU that starts meanwhile does the same, so one of the two sees the other.
    for &byte in ours {
        if !take(byte, 1, LockMode::Shared)? {
            return Err(in_use(path, "a QEMU process has it open"));
        }
    }
    for &byte in theirs {
        if foreign(byte)? && !without!("localfs.lock.qemu") {
            return Err(in_use(path, "a QEMU process has it open"));
        }
    }
    Ok(())
}

fn in_use(path: &Path, why: &str) -> Error {
    wrong(ErrorKind::ImageInUse, path, why)
}

/// What QEMU processes do with the file.
pub(super) fn qemu_use(file: &File, path: &Path) -> Result<QemuUse> {
    let foreign = |byte, mode| {
        ofd_would_block(file, byte, 1, mode).map_err(|e| failed("cannot ask for the lock", path, e))
    };
    // Those of a job of ours that made sure that no QEMU process is there.
    if !without!("localfs.compare.writer") && foreign(WRITER_BYTE, LockMode::Shared)? {
        return Ok(QemuUse::default());
    }
    let writing =
        foreign(QEMU_USES_WRITE, LockMode::Exclusive)? || foreign(QEMU_USES_RESIZE, LockMode::Exclusive)?;
    Ok(QemuUse { writing, open: writing || foreign(QEMU_USES_READ, LockMode::Exclusive)? })
}

/// Refuses file systems of several hosts: proofs of death would prove nothing there.
pub(super) fn require_local(root: &Dir) -> Result<()> {
    // include/uapi/linux/magic.h and the file systems' own headers.
    const NETWORK: [(u64, &str); 9] = [
        (0x6969, "NFS"),
        (0xff53_4d42, "CIFS"),
        (0xfe53_4d42, "SMB"),
        (0x517b, "SMB"),
        (0x00c3_6400, "CephFS"),
        (0x0102_1997, "9p"),
        (0x0116_1970, "GFS2"),
        (0x7461_636f, "OCFS2"),
        (0x0bd0_0bd0, "Lustre"),
    ];
    // To learn what a format for several hosts has to do otherwise; in builds for tests only.
    #[cfg(feature = "sim")]
    if std::env::var_os("VDSMSTORE_LOCALFS_ANYWHERE").is_some() {
        return Ok(());
    }
    let kind = file_system(root)?;
    match NETWORK.iter().find(|(magic, _)| *magic == kind) {
        Some((_, name)) => {
            let why =
                format!("is on {name}, which other hosts may use; localfs-1.0 needs a local file system");
            Err(wrong(ErrorKind::UnsupportedOperation, &root.path, &why))
        }
        None => Ok(()),
    }
}

/// The number of the file system's kind.
pub(super) fn file_system(root: &Dir) -> Result<u64> {
    let stat =
        rustix::fs::fstatfs(root).map_err(|e| failed("cannot stat the file system of", &root.path, e))?;
    // 32 bits, which some kernels sign-extend.
    Ok(stat.f_type.cast_unsigned() & 0xffff_ffff)
}
