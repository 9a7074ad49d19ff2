//! Files and block devices.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, FallocateFlags, SeekFrom, StatxFlags};
use rustix::io::Errno;

use super::{Device, DeviceExtent, DeviceId, Direct, Offload};
use crate::sys::{self, DirectFile, FileSystem};
use crate::{Error, ErrorKind, Result, without};

/// Zeroes for file systems that cannot punch holes.
static ZEROES: [u8; 65536] = [0; 65536];
/// The first copy that a server is asked for, in bytes.
const FIRST_COPY: u64 = 64 << 10;

/// A file or block device, with the descriptor that locks on it are taken through. Closed when dropped.
#[derive(Debug)]
pub struct FileDevice {
    /// The descriptor that all requests go through.
    file: File,
    /// For messages only; the file may have been renamed since.
    path: PathBuf,
    /// Identity of the storage, read once.
    id: DeviceId,
    /// Whether it is a block device: fixed length, no holes.
    block: bool,
    /// What it lies on; of a block device, its node.
    file_system: FileSystem,
    /// Whether it may be written.
    writable: bool,
    /// A flush failed: the kernel has dropped the dirty pages and later flushes would lie.
    poisoned: AtomicBool,
    /// Opened when it is first asked for.
    direct: OnceLock<Option<Direct>>,
    /// Whether the server makes the copies that are asked for. Known after the first.
    server_copies: OnceLock<bool>,
}

impl FileDevice {
    /// Opens an existing regular file or block device; anything else is `InvalidInput`.
    pub fn open(path: &Path, writable: bool) -> Result<FileDevice> {
        // O_NONBLOCK: opening a FIFO must not wait for its other end. Regular files ignore it.
        let file = OpenOptions::new()
            .read(true)
            .write(writable)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)
            .map_err(|e| Error::os("cannot open", e).with_path(path))?;
        Self::from_file(file, path.to_path_buf(), writable)
    }

    /// Creates a file that does not exist yet, for reading and writing.
    pub fn create_new(path: &Path) -> Result<FileDevice> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)
            .map_err(|e| Error::os("cannot create", e).with_path(path))?;
        Self::from_file(file, path.to_path_buf(), true)
    }

    /// Takes over an open file; `path` is for messages, `writable` says how it was opened.
    pub fn from_file(file: File, path: PathBuf, writable: bool) -> Result<FileDevice> {
        let metadata = file.metadata().map_err(|e| Error::os("cannot stat", e).with_path(&path))?;
        let block = metadata.file_type().is_block_device();
        if !block && !metadata.file_type().is_file() {
            let message = "neither a regular file nor a block device";
            return Err(Error::new(ErrorKind::InvalidInput, message).with_path(path));
        }
        // Two nodes of one block device are the same storage. Inode 0 does not exist, so files never collide.
        let id = if block {
            DeviceId { domain: metadata.rdev(), object: 0 }
        } else {
            DeviceId { domain: metadata.dev(), object: metadata.ino() }
        };
        let file_system = FileSystem::of(&file);
        Ok(Self {
            file,
            path,
            id,
            block,
            file_system,
            writable,
            poisoned: AtomicBool::new(false),
            direct: OnceLock::new(),
            server_copies: OnceLock::new(),
        })
    }

    /// The open file, for locks and reflinks.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// What the kernel calls a hole is none on XFS before Linux 6.9 if next to it a shared block was written lately: the
    /// space that is reserved around such a write hides what the file has there.
    fn hole(&self, offset: u64, end: u64) -> Result<DeviceExtent> {
        let extent = |end, data| Ok(DeviceExtent { length: end - offset, data });
        if self.file_system != FileSystem::Xfs {
            return extent(end, false);
        }
        match sys::first_written(&self.file, offset..end) {
            Ok(None) => extent(end, false),
            Ok(Some(written)) if written.start > offset => extent(written.start, false),
            Ok(Some(written)) => extent(written.end, true),
            Err(e) => Err(self.error("cannot list the extents", e, offset, end - offset)),
        }
    }

    /// The same file once more, which the first descriptor's locks know nothing of: closing this one ends none. It has one of its
    /// own.
    fn open_direct(&self) -> Option<Direct> {
        // Linux before 6.1, and file systems that have nothing to say, leave it out.
        let asked = rustix::fs::statx(&self.file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok()?;
        if asked.stx_mask & StatxFlags::DIOALIGN.bits() == 0 {
            return None;
        }
        // Memory is aligned to pages, and parts of it as offsets are. 0: this file takes no direct requests.
        let (memory, offset) = (asked.stx_dio_mem_align, asked.stx_dio_offset_align);
        if memory == 0 || memory > 4096 || offset == 0 {
            return None;
        }
        let alignment = u64::from(offset.max(memory));
        let again = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let mut options = OpenOptions::new();
        options.read(true).write(self.writable).custom_flags(libc::O_DIRECT | libc::O_NONBLOCK);
        let file = DirectFile::new(options.open(again).ok()?, self.writable).ok()??;
        Some(Direct { file, alignment })
    }

    fn error(&self, what: &'static str, error: std::io::Error, offset: u64, length: u64) -> Error {
        Error::os(what, error).with_path(&self.path).with_range(offset, length)
    }

    fn check_poisoned(&self) -> Result<()> {
        if self.poisoned.load(Ordering::Acquire) && !without!("file.poisoned") {
            return Err(Error::new(ErrorKind::Poisoned, "an earlier flush failed").with_path(&self.path));
        }
        Ok(())
    }

    fn check_write(&self, offset: u64, length: u64) -> Result<u64> {
        if !self.writable {
            return Err(Error::new(ErrorKind::ReadOnly, "opened for reading only").with_path(&self.path));
        }
        self.check_poisoned()?;
        // Beyond i64 the kernel has no offsets.
        match offset.checked_add(length) {
            Some(end) if i64::try_from(end).is_ok() => Ok(end),
            _ => Err(Error::new(ErrorKind::InvalidInput, "offset out of range")
                .with_path(&self.path)
                .with_range(offset, length)),
        }
    }

    fn write_plain_zeroes(&self, mut offset: u64, mut length: u64) -> Result<()> {
        while length > 0 {
            let part = length.min(ZEROES.len() as u64);
            self.write_at(offset, &ZEROES[..part as usize])?;
            offset += part;
            length -= part;
        }
        Ok(())
    }

    fn zero_block_device(&self, offset: u64, end: u64) -> Result<()> {
        // 4096: the largest logical sector size in use; requests inside it are written.
        let (first, last) = (offset.next_multiple_of(4096), end & !4095);
        if first >= last {
            return self.write_plain_zeroes(offset, end - offset);
        }
        self.write_plain_zeroes(offset, first - offset)?;
        // A device that can gives the space back; a discard (BLKDISCARD) would not promise zeroes. Both requests bypass the page
        // cache: what is dirty there must not come later.
        let punched = self.punch(first, last - first);
        match punched.or_else(|_| sys::block_device_zero(&self.file, first, last - first)) {
            Ok(()) => {}
            Err(e) if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOTTY | libc::EINVAL)) => {
                self.write_plain_zeroes(first, last - first)?;
            }
            Err(e) => return Err(self.error("cannot zero", e, first, last - first)),
        }
        self.write_plain_zeroes(last, end - last)
    }

    fn punch(&self, offset: u64, length: u64) -> rustix::io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&self.file, flags, offset, length)
    }

    fn clone_range(&self, offset: u64, source: &File, source_offset: u64, length: u64) -> Result<u64> {
        match sys::clone_range(&self.file, offset, source, source_offset, length) {
            Ok(()) => Ok(length),
            Err(e)
                if matches!(
                    e.raw_os_error(),
                    Some(libc::EINVAL | libc::EXDEV | libc::EOPNOTSUPP | libc::ENOTTY | libc::ETXTBSY)
                ) =>
            {
                Ok(0)
            }
            Err(e) => Err(self.error("cannot clone", e, offset, length)),
        }
    }

    /// What fails is written, which tells the error. It needs no flush: the client has the server make it durable.
    fn copy_range(&self, offset: u64, source: &File, source_offset: u64, length: u64) -> u64 {
        let length = match self.server_copies.get() {
            Some(true) => length,
            Some(false) => return 0,
            None => length.min(FIRST_COPY),
        };
        let (mut from, mut to) = (source_offset, offset);
        let asked = usize::try_from(length).unwrap_or(usize::MAX);
        let Ok(copied @ 1..) =
            rustix::fs::copy_file_range(source, Some(&mut from), &self.file, Some(&mut to), asked)
        else {
            return 0;
        };
        // Before NFS 4.2, or for a server that does not copy, the client reads and writes without saying so. What it has
        // written is in the page cache; what the server has copied is not.
        let by_server = || !sys::is_cached(&self.file, offset..offset + copied as u64);
        if *self.server_copies.get_or_init(by_server) { copied as u64 } else { 0 }
    }

    /// Grows the file to `end` without ever shrinking it, whatever other threads do to its length meanwhile.
    fn grow(&self, end: u64) -> Result<()> {
        match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), end - 1, 1) {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP) => self.set_len(end),
            Err(e) => Err(self.error("cannot grow", e.into(), end - 1, 1)),
        }
    }
}

impl Device for FileDevice {
    fn id(&self) -> DeviceId {
        self.id
    }

    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn len(&self) -> Result<u64> {
        if self.block {
            return sys::block_device_len(&self.file)
                .map_err(|e| Error::os("cannot get the size of the block device", e).with_path(&self.path));
        }
        let metadata = self.file.metadata().map_err(|e| Error::os("cannot stat", e).with_path(&self.path))?;
        Ok(metadata.len())
    }

    fn fixed_len(&self) -> Result<Option<u64>> {
        if self.block { self.len().map(Some) } else { Ok(None) }
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let length = buffer.len() as u64;
        if offset.checked_add(length).is_none_or(|end| i64::try_from(end).is_err()) {
            return Err(Error::new(ErrorKind::ShortRead, "offset out of range")
                .with_path(&self.path)
                .with_range(offset, length));
        }
        self.file.read_exact_at(buffer, offset).map_err(|e| self.error("cannot read", e, offset, length))
    }

    fn write_at(&self, offset: u64, buffer: &[u8]) -> Result<()> {
        let length = buffer.len() as u64;
        self.check_write(offset, length)?;
        self.file.write_all_at(buffer, offset).map_err(|e| self.error("cannot write", e, offset, length))
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Result<()> {
        let end = self.check_write(offset, length)?;
        if length == 0 {
            return Ok(());
        }
        if self.block {
            return self.zero_block_device(offset, end);
        }
        match self.punch(offset, length) {
            Ok(()) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => return self.write_plain_zeroes(offset, length),
            Err(e) => return Err(self.error("cannot punch a hole", e.into(), offset, length)),
        }
        if end > self.len()? { self.grow(end) } else { Ok(()) }
    }

    fn set_len(&self, length: u64) -> Result<()> {
        self.check_write(0, length)?;
        if self.block {
            // Its length is not ours to change; asking for what it has is fine.
            return if length <= self.len()? {
                Ok(())
            } else {
                Err(Error::new(ErrorKind::NoSpace, "the block device is too small")
                    .with_path(&self.path)
                    .with_range(0, length))
            };
        }
        self.file.set_len(length).map_err(|e| self.error("cannot set the length", e, 0, length))
    }

    fn allocate(&self, offset: u64, length: u64) -> Result<()> {
        let end = self.check_write(offset, length)?;
        if length == 0 {
            return Ok(());
        }
        if self.block {
            return self.set_len(end);
        }
        rustix::fs::fallocate(&self.file, FallocateFlags::empty(), offset, length)
            .map_err(|e| self.error("cannot allocate", e.into(), offset, length))
    }

    fn flush(&self) -> Result<()> {
        self.check_poisoned()?;
        if without!("file.flush") {
            return Ok(());
        }
        self.file.sync_data().map_err(|e| {
            self.poisoned.store(true, Ordering::Release);
            Error::os("cannot flush", e).with_path(&self.path)
        })
    }

    fn extent(&self, offset: u64, length: u64) -> Result<DeviceExtent> {
        let all = DeviceExtent { length, data: true };
        if self.block || length == 0 {
            return Ok(all);
        }
        let end = offset.saturating_add(length);
        let data = match rustix::fs::seek(&self.file, SeekFrom::Data(offset)) {
            Ok(data) => data,
            // No data up to the end of the file.
            Err(Errno::NXIO) => end,
            // A file system that cannot tell.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(all),
            Err(e) => return Err(self.error("cannot look for data", e.into(), offset, length)),
        };
        if data > offset {
            return self.hole(offset, data.min(end));
        }
        match rustix::fs::seek(&self.file, SeekFrom::Hole(offset)) {
            // `hole == offset`: it was punched between the two calls; what we saw was data.
            Ok(hole) if hole > offset => Ok(DeviceExtent { length: hole.min(end) - offset, data: true }),
            Ok(_) | Err(Errno::NXIO) => Ok(all),
            Err(e) => Err(self.error("cannot look for a hole", e.into(), offset, length)),
        }
    }

    fn as_file(&self) -> Option<&File> {
        Some(&self.file)
    }

    fn direct(&self) -> Option<&Direct> {
        // Otherwise who writes is told that.
        self.check_poisoned().ok()?;
        self.direct.get_or_init(|| self.open_direct()).as_ref()
    }

    fn can_offload(&self, how: Offload, source: &dyn Device) -> bool {
        let Some(file) = source.as_file().filter(|_| self.writable && !self.block) else { return false };
        match how {
            // Nothing can be cloned at an odd offset: a file system that could otherwise says so, and no other does. But an
            // NFS client may say it for a server that cannot: that is seen when something is cloned.
            Offload::Clone => sys::clone_range(&self.file, 1, file, 1, 1)
                .is_err_and(|e| e.raw_os_error() == Some(libc::EINVAL)),
            // Elsewhere, and within one file, the kernel reads and writes, one page after the other.
            Offload::Copy => {
                self.file_system == FileSystem::Nfs
                    && source.id().domain == self.id.domain
                    && source.id() != self.id
                    && self.server_copies.get() != Some(&false)
            }
        }
    }

    fn offload(
        &self,
        how: Offload,
        offset: u64,
        source: &dyn Device,
        source_offset: u64,
        length: u64,
    ) -> Result<u64> {
        self.check_write(offset, length)?;
        let Some(file) = source.as_file().filter(|_| length > 0) else { return Ok(0) };
        match how {
            Offload::Clone => self.clone_range(offset, file, source_offset, length),
            Offload::Copy => Ok(self.copy_range(offset, file, source_offset, length)),
        }
    }
}
