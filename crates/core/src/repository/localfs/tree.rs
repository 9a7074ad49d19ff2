//! The repository's directories held open, and how files come to be in them: with the right owner, durable, and on a
//! full file system from the reserve.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::hash::{DefaultHasher, Hasher as _};
use std::io::Write as _;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use uuid::Uuid;
use vdsmstore_io::without;

use super::format::{RESERVE_SIZE, fill_reserve, mend_reserve};
use super::layout::{Dir, FileId, Room, failed, file_id, parse_shard, parse_temporary, wrong};
use crate::id::Incarnation;
use crate::repository::{Generation, HostIdentity, Liveness};
use crate::{ErrorKind, Result};

/// How many files of the reserve one operation may spend: what was freed may be taken by somebody else.
const RESERVE_TRIES: usize = 8;

/// To whom what is created belongs: like the repository's own directories.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ownership {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mode: u32,
}

impl Ownership {
    pub(super) fn of(dir: &Dir) -> Result<Self> {
        let stat = rustix::fs::fstat(dir).map_err(|e| failed("cannot stat", &dir.path, e))?;
        Ok(Self { uid: stat.st_uid, gid: stat.st_gid, mode: stat.st_mode & 0o7777 })
    }

    pub(super) fn dir_mode(self) -> Mode {
        Mode::from_raw_mode(self.mode)
    }

    pub(super) fn file_mode(self) -> Mode {
        Mode::from_raw_mode(self.mode & 0o666)
    }

    /// Gives what was created just now its owner and mode; returns its identity.
    pub(super) fn dress(self, fd: impl AsFd, mode: Mode, path: &Path) -> Result<FileId> {
        let stat = rustix::fs::fstat(&fd).map_err(|e| failed("cannot stat", path, e))?;
        if (stat.st_uid, stat.st_gid) != (self.uid, self.gid) {
            let uid = (stat.st_uid != self.uid).then(|| rustix::fs::Uid::from_raw(self.uid));
            let gid = (stat.st_gid != self.gid).then(|| rustix::fs::Gid::from_raw(self.gid));
            match rustix::fs::fchown(&fd, uid, gid) {
                // Only root may give a file away; one of several users keeps it, if the mode lets the others in.
                Ok(()) | Err(Errno::PERM) => {}
                Err(e) => return Err(failed("cannot change the owner", path, e)),
            }
        }
        if stat.st_mode & 0o7777 != mode.bits() {
            rustix::fs::fchmod(&fd, mode).map_err(|e| failed("cannot change the mode", path, e))?;
        }
        Ok(file_id(&stat))
    }
}

/// A file under a temporary name, which goes when this is dropped.
#[derive(Debug)]
pub(super) struct Temporary<'a> {
    dir: &'a Dir,
    pub(super) name: String,
    pub(super) file: File,
    pub(super) id: FileId,
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        // Left over, it is garbage with our name on it.
        let _ = self.dir.unlink(&self.name);
    }
}

impl Temporary<'_> {
    /// Makes that its content, durably.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let path = self.dir.path.join(&self.name);
        self.file.write_all(bytes).map_err(|e| failed("cannot write", &path, e))?;
        if without!("localfs.flush.file") {
            return Ok(());
        }
        self.file.sync_all().map_err(|e| failed("cannot sync", &path, e))
    }

    /// Puts it under its real name, replacing what was there.
    pub(super) fn rename(&self, name: &str) -> Result<()> {
        rustix::fs::renameat(self.dir, &self.name, self.dir, name)
            .map_err(|e| failed("cannot rename to", self.dir.path.join(name), e))
    }
}

/// The repository's directories.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) root: Dir,
    pub(super) hosts: Dir,
    pub(super) locks: Dir,
    pub(super) data: Dir,
    pub(super) reserve: Dir,
    rooms: Vec<Dir>,
    /// Of what we create.
    pub(super) ownership: Ownership,
    /// In the names of our temporary files.
    pub(super) incarnation: Incarnation,
    /// Of this machine.
    pub(super) boot_id: String,
    counter: AtomicU64,
    durable: Mutex<Durable>,
}

/// Names that are known to be durable, each since a sync of its directory that began after the name had been seen. A
/// durable name stays so until it is removed, and no name that counts here is ever made again: shards stay, and the
/// highest generation of a record only rises. So whoever finds one of these again needs no other sync.
#[derive(Debug, Default)]
struct Durable {
    shards: HashSet<(Room, u16)>,
    records: HashMap<(Room, Uuid), Known>,
}

/// A generation of a record that this store has seen.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Known {
    pub generation: Generation,
    /// Of its document ([`digest`]), if that was read or written: each put has a nonce, so no other document has it.
    content: Option<u64>,
}

impl Known {
    /// Whether that is the document which was seen under this generation, and not what somebody linked later to the
    /// same name; `unsure` if only the name was seen.
    pub fn is(&self, bytes: &[u8], unsure: bool) -> bool {
        self.content.map_or(unsure, |content| content == digest(bytes)) || without!("localfs.compare.content")
    }
}

fn digest(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

/// After so many shards of a room were synced one by one, all of them are listed: that takes as long as several syncs.
const OFTEN: usize = 16;
/// More than these records are not remembered.
const REMEMBERED: usize = 1 << 16;

impl Tree {
    pub(super) fn open(root: Dir, host: &HostIdentity) -> Result<Tree> {
        let sub = |name: &str| {
            root.sub(name)?.ok_or_else(|| {
                wrong(
                    ErrorKind::NotARepository,
                    &root.path,
                    &format!("has a descriptor but no directory {name}"),
                )
            })
        };
        let rooms = Room::ALL.iter().map(|room| sub(room.name())).collect::<Result<Vec<_>>>()?;
        let data = sub("data")?;
        Ok(Tree {
            hosts: sub("hosts")?,
            locks: sub("locks")?,
            reserve: sub("reserve")?,
            rooms,
            ownership: Ownership::of(&data)?,
            data,
            root,
            incarnation: host.incarnation,
            boot_id: host.boot_id.clone(),
            counter: AtomicU64::new(0),
            durable: Mutex::default(),
        })
    }

    pub(super) fn room(&self, room: Room) -> &Dir {
        &self.rooms[room as usize]
    }

    /// An existing shard.
    pub(super) fn shard(&self, room: Room, shard: u16) -> Result<Option<Dir>> {
        self.room(room).sub(&format!("{shard:03x}"))
    }

    /// A shard, made if need be; its own name is durable.
    pub(super) fn make_shard(&self, room: Room, shard: u16) -> Result<Dir> {
        let (parent, name) = (self.room(room), format!("{shard:03x}"));
        if self.durable().shards.contains(&(room, shard))
            && let Some(dir) = parent.sub(&name)?
        {
            return Ok(dir);
        }
        let path = parent.path.join(&name);
        let made = match rustix::fs::mkdirat(parent, &name, self.ownership.dir_mode()) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(e) => return Err(failed("cannot make the directory", path, e)),
        };
        let dir = parent.sub(&name)?.ok_or_else(|| failed("cannot open", &path, Errno::NOENT))?;
        if made {
            self.ownership.dress(&dir, self.ownership.dir_mode(), &path)?;
        }
        // Who comes by often looks which ones there are: one sync does for all of them.
        let mut shards = vec![shard];
        if self.durable().shards.iter().filter(|(known, _)| *known == room).count() == OFTEN {
            parent.each_name(|name| shards.extend(parse_shard(name)))?;
        }
        // Also if somebody else made it: it may have made it just now.
        if !without!("localfs.flush.shard") {
            parent.sync()?;
        }
        self.durable().shards.extend(shards.into_iter().map(|shard| (room, shard)));
        Ok(dir)
    }

    fn durable(&self) -> MutexGuard<'_, Durable> {
        self.durable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether that generation, found as the highest, needs no sync.
    pub(super) fn is_durable(&self, room: Room, id: Uuid, generation: Generation) -> bool {
        self.known(room, id).is_some_and(|known| known.generation == generation)
    }

    /// The highest generation that this store knows of; there may be higher ones.
    pub(super) fn known(&self, room: Room, id: Uuid) -> Option<Known> {
        self.durable().records.get(&(room, id)).copied()
    }

    /// This is its document, as it was found, or written.
    pub(super) fn has_seen(&self, room: Room, id: Uuid, generation: Generation, bytes: &[u8]) {
        if let Some(known) = self.durable().records.get_mut(&(room, id))
            && known.generation == generation
        {
            known.content = Some(digest(bytes));
        }
    }

    /// The next read of it begins with a listing.
    pub(super) fn forget(&self, room: Room, id: Uuid) {
        self.durable().records.remove(&(room, id));
    }

    /// These were seen, then their directory was synced.
    pub(super) fn are_durable(&self, room: Room, records: impl Iterator<Item = (Uuid, Generation)>) {
        let mut durable = self.durable();
        for (id, generation) in records {
            if durable.records.len() >= REMEMBERED {
                durable.records.clear();
            }
            let known = durable.records.entry((room, id)).or_default();
            if generation > known.generation {
                *known = Known { generation, content: None };
            }
        }
    }

    /// A new empty file with the repository's owner and mode. `name` must not exist.
    pub(super) fn create(&self, dir: &Dir, name: &str) -> Result<(File, FileId)> {
        let path = dir.path.join(name);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        let mode = self.ownership.file_mode();
        let file = dir.open_file(name, flags, mode).map_err(|e| failed("cannot create", &path, e))?;
        let id = self.ownership.dress(&file, mode, &path)?;
        Ok((file, id))
    }

    /// A new empty temporary file.
    pub(super) fn temporary<'a>(&self, dir: &'a Dir) -> Result<Temporary<'a>> {
        let number = self.counter.fetch_add(1, Ordering::Relaxed);
        let name = format!(".t.{}.{number}", self.incarnation);
        let (file, id) = self.create(dir, &name)?;
        Ok(Temporary { dir, name, file, id })
    }

    /// A temporary file with that content, durable but for its name.
    pub(super) fn written<'a>(&self, dir: &'a Dir, bytes: &[u8]) -> Result<Temporary<'a>> {
        let mut temporary = self.temporary(dir)?;
        temporary.write(bytes)?;
        Ok(temporary)
    }

    /// Replaces a small file: atomic, durable, last writer wins.
    pub(super) fn replace(&self, dir: &Dir, name: &str, bytes: &[u8]) -> Result<()> {
        self.written(dir, bytes)?.rename(name)?;
        if without!("localfs.flush.renamed") { Ok(()) } else { dir.sync() }
    }

    /// Removes the temporary files among `names` whose stores are dead.
    pub(super) fn sweep(&self, dir: &Dir, names: &[String]) {
        let dead = |owner| matches!(self.liveness(owner), Ok(Liveness::CertainlyDead));
        for name in names {
            if parse_temporary(name).is_some_and(|owner| owner != self.incarnation && dead(owner)) {
                // It does no harm; somebody will remove it some day.
                let _ = dir.unlink(name);
            }
        }
    }

    /// Does what frees space in the end: on a full file system the reserve is spent for it.
    pub(super) fn with_reserve<T>(&self, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
        for _ in 0..RESERVE_TRIES {
            match attempt() {
                Err(error) if error.kind() == ErrorKind::NoSpace && self.spend_reserve() => {}
                result => return result,
            }
        }
        attempt()
    }

    fn spend_reserve(&self) -> bool {
        let Ok(names) = self.reserve.names() else { return false };
        // The sync lets the file system use the space again.
        names.iter().any(|name| matches!(self.reserve.unlink(name), Ok(true)) && self.reserve.sync().is_ok())
    }

    /// Fills up the reserve, if there is space to spare.
    pub(super) fn refill_reserve(&self) {
        if self.has_plenty() {
            // Without it everything works until the file system is full.
            let _ = fill_reserve(&self.reserve, self.ownership);
        }
    }

    /// The same for its files that a crash left without their blocks.
    pub(super) fn mend_reserve(&self) {
        if self.has_plenty() {
            let _ = mend_reserve(&self.reserve);
        }
    }

    fn has_plenty(&self) -> bool {
        let plenty = |usage: rustix::fs::StatVfs| usage.f_bavail * usage.f_frsize > 256 * RESERVE_SIZE;
        rustix::fs::fstatvfs(&self.root).is_ok_and(plenty)
    }
}
