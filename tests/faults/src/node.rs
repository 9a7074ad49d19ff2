//! The files and directories that the kernel knows of.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use fuser::{FileAttr, FileType, INodeNo};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, Stat};
use rustix::io::Errno;

pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A file or directory, whatever its names are.
#[derive(Debug)]
pub(crate) struct Node {
    /// Opened for nothing but to hold it (`O_PATH`).
    pub(crate) fd: OwnedFd,
    /// The name by which it was seen last, from the root of the mirror.
    path: Mutex<PathBuf>,
    /// What was there before each write since the last sync.
    undo: Mutex<Vec<(u64, Vec<u8>)>>,
}

impl Node {
    pub(crate) fn path(&self) -> PathBuf {
        locked(&self.path).clone()
    }

    /// A name that leads to it.
    pub(crate) fn link(&self) -> String {
        format!("/proc/self/fd/{}", self.fd.as_raw_fd())
    }

    pub(crate) fn open(&self, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let not = OFlags::NOFOLLOW
            | OFlags::CREATE
            | OFlags::EXCL
            | OFlags::APPEND
            | OFlags::DIRECT
            | OFlags::NOCTTY;
        rustix::fs::openat(CWD, self.link(), flags.difference(not) | OFlags::CLOEXEC, Mode::empty())
    }

    pub(crate) fn attributes(&self) -> rustix::io::Result<FileAttr> {
        rustix::fs::fstat(&self.fd).map(|stat| attributes(&stat))
    }

    /// Keeps what a write is going to replace.
    pub(crate) fn remember(&self, file: &File, offset: u64, length: usize) {
        let mut before = vec![0; length];
        let mut at = 0;
        // Beyond the end there are zeroes.
        while let Ok(read @ 1..) = file.read_at(&mut before[at..], offset + at as u64) {
            at += read;
        }
        locked(&self.undo).push((offset, before));
    }

    /// All that was written is durable.
    pub(crate) fn keep(&self) {
        locked(&self.undo).clear();
    }

    /// All that was written since the last sync is gone.
    pub(crate) fn lose(&self) -> rustix::io::Result<()> {
        let file = File::from(self.open(OFlags::WRONLY)?);
        for (offset, before) in locked(&self.undo).drain(..).rev() {
            file.write_all_at(&before, offset).map_err(|_| Errno::IO)?;
        }
        Ok(())
    }
}

/// By number; the root is 1.
#[derive(Debug)]
pub(crate) struct Nodes(Mutex<HashMap<u64, (Arc<Node>, u64)>>);

impl Nodes {
    pub(crate) fn new(root: OwnedFd) -> Nodes {
        let root = Node { fd: root, path: Mutex::default(), undo: Mutex::default() };
        Nodes(Mutex::new(HashMap::from([(INodeNo::ROOT.0, (Arc::new(root), 1))])))
    }

    pub(crate) fn get(&self, number: INodeNo) -> rustix::io::Result<Arc<Node>> {
        locked(&self.0).get(&number.0).map(|(node, _)| Arc::clone(node)).ok_or(Errno::STALE)
    }

    /// Looks a name up; the kernel knows it from then on.
    pub(crate) fn enter(&self, parent: &Node, name: &OsStr) -> rustix::io::Result<FileAttr> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&parent.fd, name, flags, Mode::empty())?;
        let attributes = attributes(&rustix::fs::fstat(&fd)?);
        let path = parent.path().join(name);
        let mut nodes = locked(&self.0);
        // A number is not given to another file while we hold it.
        let (node, lookups) = nodes.entry(attributes.ino.0).or_insert_with(|| {
            let node = Node { fd, path: Mutex::default(), undo: Mutex::default() };
            (Arc::new(node), 0)
        });
        *lookups += 1;
        *locked(&node.path) = path;
        Ok(attributes)
    }

    pub(crate) fn forget(&self, number: INodeNo, times: u64) {
        let mut nodes = locked(&self.0);
        if let Some((_, lookups)) = nodes.get_mut(&number.0) {
            *lookups = lookups.saturating_sub(times);
            if *lookups == 0 && number != INodeNo::ROOT {
                nodes.remove(&number.0);
            }
        }
    }
}

/// An open file or directory.
#[derive(Debug)]
pub(crate) struct Handle {
    pub(crate) node: Arc<Node>,
    pub(crate) file: File,
    /// Of a directory: what it held when its listing began.
    pub(crate) listing: Mutex<Vec<(u64, FileType, std::ffi::OsString)>>,
}

/// By number.
#[derive(Debug, Default)]
pub(crate) struct Handles(Mutex<(HashMap<u64, Arc<Handle>>, u64)>);

impl Handles {
    pub(crate) fn add(&self, node: Arc<Node>, fd: OwnedFd) -> u64 {
        let mut handles = locked(&self.0);
        handles.1 += 1;
        let number = handles.1;
        let handle = Handle { node, file: File::from(fd), listing: Mutex::default() };
        handles.0.insert(number, Arc::new(handle));
        number
    }

    pub(crate) fn get(&self, number: u64) -> rustix::io::Result<Arc<Handle>> {
        locked(&self.0).0.get(&number).map(Arc::clone).ok_or(Errno::BADF)
    }

    pub(crate) fn remove(&self, number: u64) {
        locked(&self.0).0.remove(&number);
    }
}

/// Changes owner or mode of what the node is.
pub(crate) fn change(
    node: &Node,
    mode: Option<u32>,
    owner: Option<u32>,
    group: Option<u32>,
) -> rustix::io::Result<()> {
    if let Some(mode) = mode {
        rustix::fs::chmod(node.link(), Mode::from_raw_mode(mode))?;
    }
    if owner.is_some() || group.is_some() {
        let (owner, group) = (owner.map(rustix::fs::Uid::from_raw), group.map(rustix::fs::Gid::from_raw));
        rustix::fs::chownat(node.fd.as_fd(), "", owner, group, AtFlags::EMPTY_PATH)?;
    }
    Ok(())
}

pub(crate) fn kind(kind: rustix::fs::FileType) -> FileType {
    match kind {
        rustix::fs::FileType::Directory => FileType::Directory,
        rustix::fs::FileType::Symlink => FileType::Symlink,
        rustix::fs::FileType::Fifo => FileType::NamedPipe,
        rustix::fs::FileType::Socket => FileType::Socket,
        rustix::fs::FileType::CharacterDevice => FileType::CharDevice,
        rustix::fs::FileType::BlockDevice => FileType::BlockDevice,
        _ => FileType::RegularFile,
    }
}

fn attributes(stat: &Stat) -> FileAttr {
    let time = |seconds: i64, nanoseconds: u64| {
        SystemTime::UNIX_EPOCH + Duration::new(seconds as u64, nanoseconds as u32)
    };
    FileAttr {
        ino: INodeNo(stat.st_ino),
        size: stat.st_size as u64,
        blocks: stat.st_blocks as u64,
        atime: time(stat.st_atime, stat.st_atime_nsec),
        mtime: time(stat.st_mtime, stat.st_mtime_nsec),
        ctime: time(stat.st_ctime, stat.st_ctime_nsec),
        crtime: SystemTime::UNIX_EPOCH,
        kind: kind(rustix::fs::FileType::from_raw_mode(stat.st_mode)),
        perm: (stat.st_mode & 0o7777) as u16,
        nlink: stat.st_nlink as u32,
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev: 0,
        blksize: stat.st_blksize as u32,
        flags: 0,
    }
}
