//! Volumes: files in `data`, named by the volume's id. The lock lies on the descriptor that does the I/O.

use std::ffi::OsStr;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use vdsmstore_io::{DeviceId, without};

use super::layout::{FileId, TRIES, failed, file_id, parse_id, wrong};
use super::locks::{LockedFile, file_system, lock_volume, qemu_use};
use super::tree::Tree;
use crate::id::VolumeId;
use crate::repository::{Access, OpenVolume, QemuUse};
use crate::{Error, ErrorKind, Result};

/// A large file is deleted from its end in steps of this size, so that no step takes long.
const STEP: u64 = 1 << 30;
/// Of XFS and btrfs, where a reflink is one moment of its source.
const REFLINK_SYSTEMS: [u64; 2] = [0x5846_5342, 0x9123_683e];

impl Tree {
    pub(super) fn create_volume(&self, volume: VolumeId) -> Result<OpenVolume> {
        let name = volume.to_string();
        let path = self.data.path.join(&name);
        for _ in 0..TRIES {
            let file = match self.create(&self.data, &name) {
                Ok((file, _)) => file,
                Err(error) if is_errno(&error, Errno::EXIST) => match self.open_data(&name, true)? {
                    Some(file) => file,
                    None => continue,
                },
                Err(error) => return Err(error),
            };
            lock_volume(&file, Access::Write, &path)?;
            if without!("localfs.reread.created") || self.is_named(&file, &name)? {
                if !without!("localfs.flush.created") {
                    self.data.sync()?;
                }
                return opened(file, &path, true);
            }
        }
        Err(changes_too_fast(&path))
    }

    pub(super) fn clone_volume(
        &self,
        source: &OpenVolume,
        target: VolumeId,
        look: &dyn Fn() -> Result<()>,
    ) -> Result<OpenVolume> {
        let (from, from_path) = self.file_of(source)?;
        let name = target.to_string();
        let path = self.data.path.join(&name);
        let temporary = self.temporary(&self.data)?;
        clone(&temporary.file, &from, &from_path)?;
        lock_volume(&temporary.file, Access::Write, &path)?;
        if !without!("localfs.flush.clone") {
            temporary.file.sync_all().map_err(|e| failed("cannot sync", &path, e))?;
        }
        for _ in 0..TRIES {
            match self.open_data(&name, true)? {
                None => {
                    match rustix::fs::linkat(&self.data, &temporary.name, &self.data, &name, AtFlags::empty())
                    {
                        Ok(()) => {}
                        Err(Errno::EXIST) => continue,
                        Err(e) => return Err(failed("cannot link", path, e)),
                    }
                }
                Some(old) => {
                    // Nobody may be working with what is replaced; its lock is kept until it is.
                    lock_volume(&old, Access::Write, &path)?;
                    if !without!("localfs.reread.cloned") && !self.is_named(&old, &name)? {
                        continue;
                    }
                    look()?;
                    temporary.rename(&name)?;
                }
            }
            if !without!("localfs.flush.cloned") {
                self.data.sync()?;
            }
            let file = temporary.file.try_clone().map_err(|e| failed("cannot open again", &path, e))?;
            return opened(file, &path, true);
        }
        Err(changes_too_fast(&path))
    }

    pub(super) fn pin_volume(&self, source: &OpenVolume) -> Result<OpenVolume> {
        let (from, path) = self.file_of(source)?;
        let flags = OFlags::TMPFILE | OFlags::RDWR;
        let pin = self.data.open_file(".", flags, Mode::RUSR).map_err(|e| match e {
            Errno::OPNOTSUPP | Errno::ISDIR => {
                wrong(ErrorKind::UnsupportedOperation, &path, "the file system has no unnamed files")
                    .because(e)
            }
            e => failed("cannot create an unnamed file beside", &path, e),
        })?;
        clone(&pin, &from, &path)?;
        opened(pin, &path, false)
    }

    pub(super) fn open_volume(&self, volume: VolumeId, access: Access) -> Result<OpenVolume> {
        let name = volume.to_string();
        let path = self.data.path.join(&name);
        let writable = matches!(access, Access::Write | Access::Lease);
        for _ in 0..TRIES {
            let file = self.open_data(&name, writable)?.ok_or_else(|| missing(&path))?;
            lock_volume(&file, access, &path)?;
            // Else it is the lock of a file that was deleted or replaced before we had it.
            if without!("localfs.reread.opened") || self.is_named(&file, &name)? {
                return opened(file, &path, writable);
            }
        }
        Err(changes_too_fast(&path))
    }

    pub(super) fn delete_volume(&self, volume: VolumeId, locked: OpenVolume) -> Result<()> {
        let name = volume.to_string();
        let path = self.data.path.join(&name);
        let Some(stat) = self.data.stat(&name)? else { return Ok(()) };
        if device_id(file_id(&stat)) != locked.device.id() && !without!("localfs.compare.object") {
            return Err(wrong(
                ErrorKind::Internal,
                &path,
                "is to be deleted with the lock of another volume",
            ));
        }
        if stat.st_blocks.cast_unsigned() * 512 > STEP {
            let mut length = locked.device.len()?;
            while length > STEP {
                length -= STEP;
                locked.device.set_len(length)?;
            }
        }
        self.with_reserve(|| self.data.unlink(&name))?;
        drop(locked);
        if !without!("localfs.flush.deleted") {
            self.data.sync()?;
        }
        self.refill_reserve();
        Ok(())
    }

    pub(super) fn volume_exists(&self, volume: VolumeId) -> Result<bool> {
        Ok(self.data.stat(&volume.to_string())?.is_some())
    }

    pub(super) fn list_volumes(&self) -> Result<Vec<VolumeId>> {
        Ok(self.data.names()?.iter().filter_map(|name| parse_id(name)).map(VolumeId).collect())
    }

    pub(super) fn allocated(&self, volume: VolumeId) -> Result<u64> {
        let name = volume.to_string();
        let stat = self.data.stat(&name)?.ok_or_else(|| missing(&self.data.path.join(&name)))?;
        Ok(stat.st_blocks.cast_unsigned() * 512)
    }

    pub(super) fn qemu_use(&self, volume: VolumeId) -> Result<QemuUse> {
        let name = volume.to_string();
        let path = self.data.path.join(&name);
        let file = self.open_data(&name, false)?.ok_or_else(|| missing(&path))?;
        qemu_use(&file, &path)
    }

    /// Whether a reflink can be made here; None: not to be found out now.
    pub(super) fn probe_reflink(&self) -> Option<bool> {
        if !REFLINK_SYSTEMS.contains(&file_system(&self.root).ok()?) {
            return Some(false);
        }
        // Empty files do: whether it is possible is answered before what is to be done.
        let (source, target) = (self.temporary(&self.data).ok()?, self.temporary(&self.data).ok()?);
        match rustix::fs::ioctl_ficlone(&target.file, &source.file) {
            Ok(()) => Some(true),
            Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::INVAL) => Some(false),
            Err(_) => None,
        }
    }

    /// None: there is no such file.
    fn open_data(&self, name: &str, writable: bool) -> Result<Option<File>> {
        let path = self.data.path.join(name);
        let flags = if writable { OFlags::RDWR } else { OFlags::RDONLY };
        let broken = |why| Err(wrong(ErrorKind::ImageBroken, &path, why));
        let file = match self.data.open_file(name, flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP) => return broken("is a symbolic link"),
            Err(Errno::ISDIR | Errno::NXIO) => return broken("is not a regular file"),
            Err(e) => return Err(failed("cannot open", path, e)),
        };
        let stat = rustix::fs::fstat(&file).map_err(|e| failed("cannot stat", &path, e))?;
        if FileType::from_raw_mode(stat.st_mode).is_file() {
            Ok(Some(file))
        } else {
            broken("is not a regular file")
        }
    }

    /// Whether the name still is this file.
    fn is_named(&self, file: &File, name: &str) -> Result<bool> {
        let stat =
            rustix::fs::fstat(file).map_err(|e| failed("cannot stat", self.data.path.join(name), e))?;
        Ok(self.data.stat(name)?.is_some_and(|named| file_id(&named) == file_id(&stat)))
    }

    /// Another descriptor of the file under an open volume. A lock of this kind does not suffer from closing it.
    fn file_of(&self, volume: &OpenVolume) -> Result<(File, std::path::PathBuf)> {
        let device = volume.device.name();
        let path = Path::new(&device);
        let name = path.file_name().and_then(OsStr::to_str).filter(|name| parse_id(name).is_some());
        let name =
            name.ok_or_else(|| wrong(ErrorKind::Internal, path, "is not a volume of this repository"))?;
        if let Some(file) = self.open_data(name, false)? {
            let stat = rustix::fs::fstat(&file).map_err(|e| failed("cannot stat", path, e))?;
            if device_id(file_id(&stat)) == volume.device.id() {
                return Ok((file, path.to_path_buf()));
            }
        }
        // It was deleted by who took it for garbage, while the lock that keeps it was lost.
        Err(missing(path))
    }
}

/// All of a file, as it is at one moment.
fn clone(target: &File, source: &File, source_path: &Path) -> Result<()> {
    rustix::fs::ioctl_ficlone(target, source).map_err(|e| match e {
        Errno::OPNOTSUPP | Errno::NOTTY | Errno::XDEV | Errno::INVAL => {
            wrong(ErrorKind::UnsupportedOperation, source_path, "the file system cannot clone it").because(e)
        }
        e => failed("cannot clone", source_path, e),
    })
}

fn opened(file: File, path: &Path, writable: bool) -> Result<OpenVolume> {
    Ok(OpenVolume { device: Arc::new(LockedFile::new(file, path, writable)?) })
}

fn device_id((domain, object): FileId) -> DeviceId {
    DeviceId { domain, object }
}

fn is_errno(error: &Error, errno: Errno) -> bool {
    error.details().get("errno").is_some_and(|number| *number == errno.raw_os_error())
}

fn missing(path: &Path) -> Error {
    wrong(ErrorKind::ImageBroken, path, "the volume's file is not there")
}

fn changes_too_fast(path: &Path) -> Error {
    wrong(ErrorKind::IoError, path, "is replaced faster than it can be locked")
}
