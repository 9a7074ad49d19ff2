//! The directories, the names in them, and the few file operations that everything else here is made of.
//!
//! Everything is opened relative to a held directory and never through a symbolic link: what lies in a repository
//! is input.

use std::cell::RefCell;
use std::fs::File;
use std::io::Read as _;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, Stat};
use rustix::io::Errno;
use uuid::Uuid;

use crate::id::{Incarnation, parse_uuid};
use crate::repository::{Generation, SHARDS};
use crate::{Error, ErrorKind, Result};

/// Longer records, progress and descriptors are refused.
pub(super) const MAX_RECORD: u64 = 64 << 10;
/// Longer blobs are refused: user data has at most 1 MiB.
pub(super) const MAX_BLOB: u64 = 64 << 20;
/// How often a listing is repeated that others keep changing.
pub(super) const TRIES: usize = 64;
/// One call of the kernel lists this much of a directory at one moment: more than a thousand names.
const LISTING: usize = 128 << 10;

thread_local! {
    /// What a listing is read into: too large to be allocated for each one.
    static LISTED: RefCell<Vec<MaybeUninit<u8>>> = const { RefCell::new(Vec::new()) };
}

/// The directories with one subdirectory for each shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Room {
    Images,
    Volumes,
    Children,
    Holders,
    Progress,
    Blobs,
}

impl Room {
    pub(super) const ALL: [Room; 6] =
        [Room::Images, Room::Volumes, Room::Children, Room::Holders, Room::Progress, Room::Blobs];

    pub(super) fn name(self) -> &'static str {
        match self {
            Room::Images => "images",
            Room::Volumes => "volumes",
            Room::Children => "children",
            Room::Holders => "holders",
            Room::Progress => "progress",
            Room::Blobs => "blobs",
        }
    }
}

/// The directories without shards.
pub(super) const FLAT: [&str; 4] = ["hosts", "locks", "data", "reserve"];

/// `<id>.<generation>` of a record.
pub(super) fn record_name(id: Uuid, generation: Generation) -> String {
    format!("{}.{generation:016x}", id.hyphenated())
}

/// The generation in 16 lower-case hexadecimal digits; 0 is none.
pub(super) fn parse_generation(text: &str) -> Option<Generation> {
    let strict = text.len() == 16 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    strict.then(|| Generation::from_str_radix(text, 16).ok()).flatten().filter(|&generation| generation > 0)
}

/// A UUID as we write it: hyphenated, lower case.
pub(super) fn parse_id(text: &str) -> Option<Uuid> {
    parse_uuid(text).filter(|_| !text.bytes().any(|b| b.is_ascii_uppercase()))
}

/// The number of a shard's directory.
pub(super) fn parse_shard(name: &str) -> Option<u16> {
    let shard = u16::from_str_radix(name, 16).ok()?;
    (format!("{shard:03x}") == name).then_some(shard).filter(|&shard| shard < SHARDS)
}

/// The parts of the name of a record; None for every other name.
pub(super) fn parse_record(name: &str) -> Option<(Uuid, Generation)> {
    let (id, generation) = name.split_once('.')?;
    Some((parse_id(id)?, parse_generation(generation)?))
}

/// The parts of the name of a marker or blob.
pub(super) fn parse_pair(name: &str) -> Option<(Uuid, Uuid)> {
    let (first, second) = name.split_once('.')?;
    Some((parse_id(first)?, parse_id(second)?))
}

/// Whose temporary file it is, if the name is one: `.t.<incarnation>.<number>`.
pub(super) fn parse_temporary(name: &str) -> Option<Incarnation> {
    let (incarnation, number) = name.strip_prefix(".t.")?.split_once('.')?;
    number.parse::<u64>().ok()?;
    parse_id(incarnation).map(Incarnation)
}

/// An error of the operating system on a path.
pub(super) fn failed(what: &'static str, path: impl AsRef<Path>, cause: impl Into<std::io::Error>) -> Error {
    vdsmstore_io::Error::os(what, cause.into()).with_path(path).into()
}

/// An error of another kind on a path.
pub(super) fn wrong(kind: ErrorKind, path: &Path, why: &str) -> Error {
    Error::new(kind, format!("{}: {why}", path.display())).with("path", path.to_string_lossy())
}

/// Identity of a file: device and inode.
pub(super) type FileId = (u64, u64);

pub(super) fn file_id(stat: &Stat) -> FileId {
    (stat.st_dev, stat.st_ino)
}

/// A directory, held open so that its identity cannot change.
#[derive(Debug)]
pub(super) struct Dir {
    fd: OwnedFd,
    /// For messages.
    pub(super) path: PathBuf,
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Dir {
    const FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

    /// The directory that the user named: symbolic links on the way are the user's.
    pub(super) fn open(path: &Path) -> rustix::io::Result<Dir> {
        let fd = rustix::fs::open(path, Self::FLAGS, Mode::empty())?;
        Ok(Dir { fd, path: path.to_path_buf() })
    }

    /// A subdirectory; None if it does not exist.
    pub(super) fn sub(&self, name: &str) -> Result<Option<Dir>> {
        let path = self.path.join(name);
        match rustix::fs::openat(&self.fd, name, Self::FLAGS | OFlags::NOFOLLOW, Mode::empty()) {
            Ok(fd) => Ok(Some(Dir { fd, path })),
            Err(Errno::NOENT) => Ok(None),
            Err(Errno::LOOP | Errno::NOTDIR) => {
                Err(wrong(ErrorKind::CorruptRecord, &path, "is not a directory"))
            }
            Err(e) => Err(failed("cannot open the directory", path, e)),
        }
    }

    /// All names.
    pub(super) fn names(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        self.each_name(|name| names.push(name.to_owned()))?;
        Ok(names)
    }

    /// Calls `visit` with all names, at one moment if there are not very many; those that are not UTF-8 cannot be ours.
    pub(super) fn each_name(&self, mut visit: impl FnMut(&str)) -> Result<()> {
        let error = |e| failed("cannot list", &self.path, e);
        // An own description: the offset of `fd` is shared by all threads.
        let fd = rustix::fs::openat(&self.fd, ".", Self::FLAGS, Mode::empty()).map_err(error)?;
        let mut buffer = LISTED.take();
        buffer.resize(LISTING, MaybeUninit::uninit());
        let mut listing = RawDir::new(fd, &mut buffer);
        let mut outcome = Ok(());
        while let Some(entry) = listing.next() {
            match entry {
                Ok(entry) => match entry.file_name().to_str() {
                    Ok("." | "..") | Err(_) => {}
                    Ok(name) => visit(name),
                },
                Err(e) => {
                    outcome = Err(error(e));
                    break;
                }
            }
        }
        LISTED.set(buffer);
        outcome
    }

    /// Makes the names in it durable.
    pub(super) fn sync(&self) -> Result<()> {
        #[cfg(test)]
        super::tests::SYNCED.with_borrow_mut(|synced| synced.push(self.path.clone()));
        rustix::fs::fsync(&self.fd).map_err(|e| failed("cannot sync the directory", &self.path, e))
    }

    /// Opens a file in it, never through a symbolic link, never waiting for a FIFO.
    pub(super) fn open_file(&self, name: &str, flags: OFlags, mode: Mode) -> rustix::io::Result<File> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        rustix::fs::openat(&self.fd, name, flags, mode).map(File::from)
    }

    /// What is known of a name, without following it; None if there is none.
    pub(super) fn stat(&self, name: &str) -> Result<Option<Stat>> {
        match rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(failed("cannot stat", self.path.join(name), e)),
        }
    }

    /// Removes a name; false if there was none.
    pub(super) fn unlink(&self, name: &str) -> Result<bool> {
        match rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(e) => Err(failed("cannot remove", self.path.join(name), e)),
        }
    }

    /// The content of a small regular file; None if there is none.
    pub(super) fn read(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        let path = || self.path.join(name);
        let mut file = match self.open_file(name, OFlags::RDONLY, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP) => return Err(wrong(ErrorKind::CorruptRecord, &path(), "is a symbolic link")),
            Err(Errno::NXIO) => {
                return Err(wrong(ErrorKind::CorruptRecord, &path(), "is not a regular file"));
            }
            Err(e) => return Err(failed("cannot open", path(), e)),
        };
        let stat = rustix::fs::fstat(&file).map_err(|e| failed("cannot stat", path(), e))?;
        if !FileType::from_raw_mode(stat.st_mode).is_file() {
            return Err(wrong(ErrorKind::CorruptRecord, &path(), "is not a regular file"));
        }
        let length: u64 = stat.st_size.try_into().unwrap_or(0);
        if length > limit {
            let why = format!("is longer than {limit} bytes");
            return Err(wrong(ErrorKind::CorruptRecord, &path(), &why));
        }
        // What has its name is not written any more: where it ends is known, and not asked for.
        let mut bytes = Vec::with_capacity(length.try_into().unwrap_or(0));
        (&mut file).take(length).read_to_end(&mut bytes).map_err(|e| failed("cannot read", path(), e))?;
        Ok(Some(bytes))
    }
}
