//! The file system: every call counted, then passed on, unless it is one that fails.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, FileAttr, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, LockOwner, OpenFlags,
    RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLseek,
    ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use rustix::fs::{AtFlags, CWD, Dir, FallocateFlags, Mode, OFlags, SeekFrom, Timespec, Timestamps};
use rustix::io::Errno;

use crate::node::{Handle, Handles, Nodes, change, kind, locked};
use crate::switch::{Answer, Call, Switch};

/// Nothing is cached: what a fault has done shows at once.
const NEVER: Duration = Duration::ZERO;

#[derive(Debug)]
pub(crate) struct Mirror {
    nodes: Nodes,
    handles: Handles,
    switch: Arc<Switch>,
}

impl From<Answer> for Refused {
    fn from(answer: Answer) -> Self {
        Refused(answer.errno().unwrap_or(Errno::IO))
    }
}

impl From<Errno> for Refused {
    fn from(errno: Errno) -> Self {
        Refused(errno)
    }
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Refused(Errno::from_io_error(&error).unwrap_or(Errno::IO))
    }
}

/// The error that the kernel is told.
struct Refused(Errno);

impl From<Refused> for fuser::Errno {
    fn from(refused: Refused) -> Self {
        fuser::Errno::from_i32(refused.0.raw_os_error())
    }
}

type Result<T> = std::result::Result<T, Refused>;

/// A name in a directory.
#[derive(Clone, Copy)]
struct Place<'a>(INodeNo, &'a OsStr);

impl Mirror {
    pub(crate) fn new(source: &Path, switch: Arc<Switch>) -> io::Result<Mirror> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(source, flags, Mode::empty())?;
        Ok(Mirror { nodes: Nodes::new(root), handles: Handles::default(), switch })
    }

    /// Does what changes names, or fails before it, or after it.
    fn work<T>(&self, call: Call, path: &Path, work: impl FnOnce() -> Result<T>) -> Result<T> {
        match self.switch.meet(call, path) {
            None | Some(Answer::Short) => work(),
            Some(answer @ Answer::Done(_)) => work().and(Err(answer.into())),
            Some(answer) => Err(answer.into()),
        }
    }

    /// Of a name that is to be made or removed.
    fn work_at<T>(
        &self,
        call: Call,
        Place(parent, name): Place<'_>,
        work: impl FnOnce(&crate::node::Node) -> Result<T>,
    ) -> Result<T> {
        let parent = self.nodes.get(parent)?;
        self.work(call, &parent.path().join(name), || work(&parent))
    }

    fn open_node(&self, number: INodeNo, flags: OFlags) -> Result<u64> {
        let node = self.nodes.get(number)?;
        let fd = node.open(flags)?;
        Ok(self.handles.add(node, fd))
    }

    fn create_file(&self, place: Place<'_>, mode: u32, flags: i32) -> Result<(FileAttr, u64)> {
        self.work_at(Call::Create, place, |parent| {
            let flags = OFlags::from_bits_retain(flags as u32)
                .difference(OFlags::APPEND | OFlags::DIRECT | OFlags::NOCTTY)
                | OFlags::CREATE
                | OFlags::NOFOLLOW
                | OFlags::CLOEXEC;
            let fd = rustix::fs::openat(&parent.fd, place.1, flags, Mode::from_raw_mode(mode))?;
            let attributes = self.nodes.enter(parent, place.1)?;
            Ok((attributes, self.handles.add(self.nodes.get(attributes.ino)?, fd)))
        })
    }

    fn read_file(&self, number: u64, offset: u64, size: u32) -> Result<Vec<u8>> {
        let handle = self.handles.get(number)?;
        let mut wanted = size as usize;
        match self.switch.meet(Call::Read, &handle.node.path()) {
            None => {}
            Some(Answer::Short) => wanted = wanted.div_ceil(2),
            Some(answer) => return Err(answer.into()),
        }
        let mut data = vec![0; wanted];
        let mut at = 0;
        while at < wanted {
            match handle.file.read_at(&mut data[at..], offset + at as u64)? {
                0 => break,
                read => at += read,
            }
        }
        data.truncate(at);
        Ok(data)
    }

    fn write_file(&self, number: u64, offset: u64, data: &[u8]) -> Result<u32> {
        let handle = self.handles.get(number)?;
        let write = |data: &[u8]| {
            if self.switch.may_lose() {
                handle.node.remember(&handle.file, offset, data.len());
            }
            handle.file.write_all_at(data, offset).map(|()| data.len() as u32)
        };
        let half = &data[..data.len().div_ceil(2)];
        // Nothing tears a number of eight bytes: memory is not copied so, and no disk has such sectors.
        let untorn = &data[..data.len() / 2 / 8 * 8];
        match self.switch.meet(Call::Write, &handle.node.path()) {
            None => Ok(write(data)?),
            Some(Answer::Short) => Ok(write(half)?),
            Some(answer @ Answer::Half(_)) => write(untorn).map_err(Refused::from).and(Err(answer.into())),
            Some(answer @ Answer::Done(_)) => write(data).map_err(Refused::from).and(Err(answer.into())),
            Some(answer) => Err(answer.into()),
        }
    }

    fn sync_file(&self, handle: &Handle, call: Call, data_only: bool) -> Result<()> {
        let sync = || {
            if data_only {
                handle.file.sync_data()?;
            } else {
                handle.file.sync_all()?;
            }
            handle.node.keep();
            Ok(())
        };
        match self.switch.meet(call, &handle.node.path()) {
            Some(answer @ Answer::Lost(_)) if call == Call::Sync => {
                handle.node.lose()?;
                Err(answer.into())
            }
            None | Some(Answer::Short) => sync(),
            Some(answer @ Answer::Done(_)) => sync().and(Err(answer.into())),
            Some(answer) => Err(answer.into()),
        }
    }

    fn allocate(&self, number: u64, offset: u64, length: u64, mode: i32) -> Result<()> {
        let handle = self.handles.get(number)?;
        self.work(Call::Allocate, &handle.node.path(), || {
            let mode = FallocateFlags::from_bits_retain(mode as u32);
            Ok(rustix::fs::fallocate(&handle.file, mode, offset, length)?)
        })
    }

    fn truncate(&self, number: INodeNo, handle: Option<FileHandle>, size: u64) -> Result<()> {
        let node = self.nodes.get(number)?;
        self.work(Call::Truncate, &node.path(), || match handle {
            Some(handle) => Ok(rustix::fs::ftruncate(&self.handles.get(handle.0)?.file, size)?),
            None => Ok(rustix::fs::ftruncate(node.open(OFlags::WRONLY)?, size)?),
        })
    }

    fn list(&self, number: u64, offset: u64, reply: &mut ReplyDirectory) -> Result<()> {
        let handle = self.handles.get(number)?;
        let mut listing = locked(&handle.listing);
        if offset == 0 {
            self.work(Call::List, &handle.node.path(), || Ok(()))?;
            listing.clear();
            for entry in Dir::read_from(&handle.file)? {
                let entry = entry?;
                let name = OsStr::from_bytes(entry.file_name().to_bytes()).to_owned();
                listing.push((entry.ino(), kind(entry.file_type()), name));
            }
        }
        for (index, (number, kind, name)) in listing.iter().enumerate().skip(offset as usize) {
            if reply.add(INodeNo(*number), index as u64 + 1, *kind, name) {
                break;
            }
        }
        Ok(())
    }

    fn seek(&self, number: u64, offset: i64, whence: i32) -> Result<i64> {
        /// From `linux/fs.h`.
        const SEEK_DATA: i32 = 3;
        const SEEK_HOLE: i32 = 4;
        let offset = u64::try_from(offset).map_err(|_| Errno::NXIO)?;
        let to = match whence {
            SEEK_DATA => SeekFrom::Data(offset),
            SEEK_HOLE => SeekFrom::Hole(offset),
            _ => return Err(Errno::INVAL.into()),
        };
        let found = rustix::fs::seek(&self.handles.get(number)?.file, to)?;
        Ok(found.cast_signed())
    }

    fn rename_file(&self, from: Place<'_>, to: Place<'_>, flags: RenameFlags) -> Result<()> {
        let target = self.nodes.get(to.0)?;
        self.work_at(Call::Rename, from, |source| {
            let flags = rustix::fs::RenameFlags::from_bits_retain(flags.bits());
            Ok(rustix::fs::renameat_with(&source.fd, from.1, &target.fd, to.1, flags)?)
        })
    }

    fn link_file(&self, number: INodeNo, to: Place<'_>) -> Result<FileAttr> {
        let node = self.nodes.get(number)?;
        self.work_at(Call::Link, to, |parent| {
            rustix::fs::linkat(CWD, node.link(), &parent.fd, to.1, AtFlags::SYMLINK_FOLLOW)?;
            Ok(self.nodes.enter(parent, to.1)?)
        })
    }

    fn remove(&self, place: Place<'_>, flags: AtFlags) -> Result<()> {
        self.work_at(Call::Unlink, place, |parent| Ok(rustix::fs::unlinkat(&parent.fd, place.1, flags)?))
    }

    fn set_times(
        &self,
        number: INodeNo,
        access: Option<TimeOrNow>,
        modified: Option<TimeOrNow>,
    ) -> Result<()> {
        if access.is_none() && modified.is_none() {
            return Ok(());
        }
        let spec = |time: Option<TimeOrNow>| match time {
            None => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
            Some(TimeOrNow::Now) => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
            Some(TimeOrNow::SpecificTime(time)) => {
                let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                Timespec { tv_sec: since.as_secs().cast_signed(), tv_nsec: since.subsec_nanos().into() }
            }
        };
        let times = Timestamps { last_access: spec(access), last_modification: spec(modified) };
        Ok(rustix::fs::utimensat(CWD, self.nodes.get(number)?.link(), &times, AtFlags::empty())?)
    }
}

/// Sends the reply, or the error.
macro_rules! reply {
    ($reply:ident, $result:expr, $value:pat => $done:expr) => {
        match $result {
            Ok($value) => $done,
            Err(refused) => $reply.error(Refused::from(refused).into()),
        }
    };
}

impl Filesystem for Mirror {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.nodes.get(parent).and_then(|parent| self.nodes.enter(&parent, name));
        reply!(reply, found, attributes => reply.entry(&NEVER, &attributes, Generation(0)));
    }

    fn forget(&self, _: &Request, number: INodeNo, lookups: u64) {
        self.nodes.forget(number, lookups);
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let found = self.nodes.get(number).and_then(|node| node.attributes());
        reply!(reply, found, attributes => reply.attr(&NEVER, &attributes));
    }

    fn setattr(
        &self,
        _: &Request,
        number: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        access: Option<TimeOrNow>,
        modified: Option<TimeOrNow>,
        _: Option<SystemTime>,
        handle: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = || {
            let node = self.nodes.get(number)?;
            change(&node, mode, uid, gid)?;
            if let Some(size) = size {
                self.truncate(number, handle, size)?;
            }
            self.set_times(number, access, modified)?;
            Ok::<_, Refused>(node.attributes()?)
        };
        reply!(reply, set(), attributes => reply.attr(&NEVER, &attributes));
    }

    fn readlink(&self, _: &Request, number: INodeNo, reply: ReplyData) {
        let found = self.nodes.get(number).and_then(|node| rustix::fs::readlinkat(&node.fd, "", Vec::new()));
        reply!(reply, found, target => reply.data(target.as_bytes()));
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, reply: ReplyEntry) {
        let directory = self.work_at(Call::MakeDirectory, Place(parent, name), |parent| {
            rustix::fs::mkdirat(&parent.fd, name, Mode::from_raw_mode(mode))?;
            Ok(self.nodes.enter(parent, name)?)
        });
        reply!(reply, directory, attributes => reply.entry(&NEVER, &attributes, Generation(0)));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply!(reply, self.remove(Place(parent, name), AtFlags::empty()), () => reply.ok());
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply!(reply, self.remove(Place(parent, name), AtFlags::REMOVEDIR), () => reply.ok());
    }

    fn symlink(&self, _: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let made = self.nodes.get(parent).and_then(|parent| {
            rustix::fs::symlinkat(target, &parent.fd, name)?;
            self.nodes.enter(&parent, name)
        });
        reply!(reply, made, attributes => reply.entry(&NEVER, &attributes, Generation(0)));
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let renamed = self.rename_file(Place(parent, name), Place(new_parent, new_name), flags);
        reply!(reply, renamed, () => reply.ok());
    }

    fn link(&self, _: &Request, number: INodeNo, new_parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let linked = self.link_file(number, Place(new_parent, name));
        reply!(reply, linked, attributes => reply.entry(&NEVER, &attributes, Generation(0)));
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let created = self.create_file(Place(parent, name), mode, flags);
        reply!(reply, created, (attributes, handle) => {
            reply.created(&NEVER, &attributes, Generation(0), FileHandle(handle), FopenFlags::FOPEN_DIRECT_IO);
        });
    }

    fn open(&self, _: &Request, number: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let opened = self.nodes.get(number).map_err(Refused::from).and_then(|node| {
            let flags = OFlags::from_bits_retain(flags.0 as u32);
            self.work(Call::Open, &node.path(), || self.open_node(number, flags))
        });
        reply!(reply, opened, handle => reply.opened(FileHandle(handle), FopenFlags::FOPEN_DIRECT_IO));
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        reply!(reply, self.read_file(handle.0, offset, size), data => reply.data(&data));
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        reply!(reply, self.write_file(handle.0, offset, data), written => reply.written(written));
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.handles.remove(handle.0);
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, handle: FileHandle, data_only: bool, reply: ReplyEmpty) {
        let synced = self.handles.get(handle.0).map_err(Refused::from);
        let synced = synced.and_then(|handle| self.sync_file(&handle, Call::Sync, data_only));
        reply!(reply, synced, () => reply.ok());
    }

    fn opendir(&self, _: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let opened = self.open_node(number, OFlags::RDONLY | OFlags::DIRECTORY);
        reply!(reply, opened, handle => reply.opened(FileHandle(handle), FopenFlags::empty()));
    }

    fn readdir(&self, _: &Request, _: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        reply!(reply, self.list(handle.0, offset, &mut reply), () => reply.ok());
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.handles.remove(handle.0);
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, handle: FileHandle, data_only: bool, reply: ReplyEmpty) {
        let synced = self.handles.get(handle.0).map_err(Refused::from);
        let synced = synced.and_then(|handle| self.sync_file(&handle, Call::SyncDirectory, data_only));
        reply!(reply, synced, () => reply.ok());
    }

    fn statfs(&self, _: &Request, number: INodeNo, reply: ReplyStatfs) {
        let found = self.nodes.get(number).and_then(|node| rustix::fs::fstatvfs(&node.fd));
        reply!(reply, found, s => reply.statfs(
            s.f_blocks, s.f_bfree, s.f_bavail, s.f_files, s.f_ffree, s.f_bsize as u32, s.f_namemax as u32,
            s.f_frsize as u32,
        ));
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        reply!(reply, self.allocate(handle.0, offset, length, mode), () => reply.ok());
    }

    fn lseek(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        reply!(reply, self.seek(handle.0, offset, whence), offset => reply.offset(offset));
    }
}
