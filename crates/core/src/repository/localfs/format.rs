//! The descriptor, and how an empty repository is made.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FallocateFlags, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;
use vdsmstore_io::without;

use super::layout::{Dir, FLAT, MAX_RECORD, Room, TRIES, failed, parse_generation, wrong};
use super::tree::Ownership;
use crate::repository::{FormatOptions, Generation};
use crate::{Error, ErrorKind, Result};

/// Files in the reserve.
const RESERVE_FILES: u32 = 64;
/// Bytes of each.
pub(super) const RESERVE_SIZE: u64 = 16 << 10;
/// What this release understands; the layout may still change while "experimental" is among them.
const INCOMPATIBLE: [&str; 1] = ["experimental"];

/// What the repository is.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(rename = "gen")]
    generation: Generation,
    format: String,
    version: String,
    /// Tells two connections to one repository from connections to two.
    pub(super) repo: Uuid,
    #[serde(default)]
    incompatible: Vec<String>,
    #[serde(default)]
    compatible: Vec<String>,
    #[serde(default)]
    readonly_compatible: Vec<String>,
}

impl Descriptor {
    fn new() -> Self {
        Self {
            generation: 1,
            format: "localfs".to_owned(),
            version: "1.0".to_owned(),
            repo: Uuid::new_v4(),
            incompatible: INCOMPATIBLE.map(str::to_owned).to_vec(),
            compatible: Vec::new(),
            readonly_compatible: Vec::new(),
        }
    }

    /// Reads and checks the one that counts.
    pub(super) fn read(root: &Dir) -> Result<Self> {
        for _ in 0..TRIES {
            let Some(generation) = highest(&root.names()?) else {
                return Err(wrong(ErrorKind::NotARepository, &root.path, "holds no repository"));
            };
            let name = descriptor_name(generation);
            let Some(bytes) = root.read(&name, MAX_RECORD)? else { continue };
            return Self::parse(&bytes, &root.path.join(name));
        }
        Err(wrong(ErrorKind::IoError, &root.path, "the descriptor changes too fast to be read"))
    }

    fn parse(bytes: &[u8], path: &Path) -> Result<Self> {
        // The format first: of another one the rest may look different.
        #[derive(Deserialize)]
        struct Head {
            format: String,
            version: String,
        }
        let corrupt = |e: serde_json::Error| {
            wrong(ErrorKind::CorruptRecord, path, &format!("the descriptor cannot be understood: {e}"))
                .because(e)
        };
        let head: Head = serde_json::from_slice(bytes).map_err(corrupt)?;
        if head.format != "localfs" {
            let why = format!("is a repository of format {:?}, not localfs", head.format);
            return Err(wrong(ErrorKind::WrongFormat, path, &why));
        }
        let too_new = |why: String| wrong(ErrorKind::VersionTooNew, path, &why);
        match head.version.split_once('.').map(|(major, minor)| (major.parse::<u32>(), minor.parse::<u32>()))
        {
            Some((Ok(1), Ok(0))) => {}
            Some((Ok(_), Ok(_))) => {
                let why = format!("has version {}; this release knows localfs-1.0", head.version);
                return Err(too_new(why));
            }
            _ => {
                let why = format!("the descriptor's version {:?} is none", head.version);
                return Err(wrong(ErrorKind::CorruptRecord, path, &why));
            }
        }
        let descriptor: Self = serde_json::from_slice(bytes).map_err(corrupt)?;
        match descriptor.incompatible.iter().find(|feature| !INCOMPATIBLE.contains(&feature.as_str())) {
            Some(feature) => {
                Err(too_new(format!("needs the feature {feature:?}, which this release does not have")))
            }
            None => Ok(descriptor),
        }
    }

    /// It was changed by a release whose changes we must not overlook when writing.
    pub(super) fn only_readable(&self) -> bool {
        !self.readonly_compatible.is_empty()
    }

    pub(super) fn features(&self) -> Vec<String> {
        [&self.incompatible, &self.readonly_compatible, &self.compatible]
            .into_iter()
            .flatten()
            .cloned()
            .collect()
    }
}

fn descriptor_name(generation: Generation) -> String {
    format!("descriptor.{generation:016x}")
}

fn highest(names: &[String]) -> Option<Generation> {
    names.iter().filter_map(|name| parse_generation(name.strip_prefix("descriptor.")?)).max()
}

/// The one parameter there is.
pub(super) fn path_parameter(parameters: &Map<String, Value>) -> Result<PathBuf> {
    let invalid = |name: &str, why: &str| {
        let message = format!("connection parameter {name:?} of localfs-1.0 {why}");
        Err(Error::new(ErrorKind::InvalidParameter, message).with("parameter", name))
    };
    if let Some(name) = parameters.keys().find(|name| *name != "path") {
        return invalid(name, "is unknown");
    }
    match parameters.get("path") {
        None => invalid("path", "is missing"),
        Some(Value::String(path)) if path.contains('\0') => invalid("path", "contains a zero byte"),
        Some(Value::String(path)) if path.starts_with('/') => Ok(PathBuf::from(path)),
        Some(Value::String(path)) => invalid("path", &format!("is not absolute: {path:?}")),
        Some(_) => invalid("path", "is not a string"),
    }
}

/// Opens the place of a repository.
pub(super) fn open_place(path: &Path) -> Result<Dir> {
    Dir::open(path).map_err(|e| match e {
        Errno::NOTDIR => wrong(ErrorKind::NotARepository, path, "is not a directory"),
        Errno::NOENT => wrong(ErrorKind::ConnectionFailed, path, "no such directory"),
        Errno::LOOP => wrong(ErrorKind::ConnectionFailed, path, "too many symbolic links"),
        e => failed("cannot open the directory", path, e),
    })
}

/// Makes an empty repository. See [`crate::repository::format`].
pub fn format(parameters: &Map<String, Value>, options: &FormatOptions) -> Result<()> {
    let root = open_place(&path_parameter(parameters)?)?;
    super::locks::require_local(&root)?;
    // Two at once: the second finds a repository, or is told to wait. The lock goes with the process.
    match rustix::fs::flock(&root, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            return Err(wrong(ErrorKind::CannotLock, &root.path, "somebody else is formatting it"));
        }
        Err(e) => return Err(failed("cannot lock", &root.path, e)),
    }
    check_empty(&root)?;
    let stat = rustix::fs::fstat(&root).map_err(|e| failed("cannot stat", &root.path, e))?;
    let ownership = Ownership {
        uid: options.owner.unwrap_or_else(|| rustix::process::geteuid().as_raw()),
        // A directory with this bit hands its group down.
        gid: options.group.unwrap_or_else(|| match stat.st_mode & 0o2000 {
            0 => rustix::process::getegid().as_raw(),
            _ => stat.st_gid,
        }),
        mode: match options.mode {
            Some(mode) if mode > 0o7777 || mode & 0o700 != 0o700 => {
                let message = format!("mode {mode:o} does not let the owner in, or is none");
                return Err(Error::new(ErrorKind::InvalidParameter, message).with("parameter", "mode"));
            }
            Some(mode) => mode,
            // Disks of virtual machines are nobody else's business.
            None => 0o750,
        },
    };
    build(&root, options, ownership).inspect_err(|_| {
        // The place was empty; it is left as it was found, as far as the storage allows. What still has a descriptor
        // is a whole repository.
        let _ = root.unlink(TEMPORARY);
        if root.names().is_ok_and(|names| highest(&names).is_none()) {
            clear(&root);
        }
    })
}

/// The descriptor's first name.
pub(super) const TEMPORARY: &str = ".t.descriptor";

fn rooms() -> impl Iterator<Item = &'static str> {
    Room::ALL.into_iter().map(Room::name).chain(FLAT)
}

/// Nothing may be there but what a format that was interrupted has left.
fn check_empty(root: &Dir) -> Result<()> {
    let names = root.names()?;
    if highest(&names).is_some() {
        return Err(wrong(ErrorKind::RepositoryExists, &root.path, "holds a repository already"));
    }
    let foreign = |name: &&String| name.as_str() != "lost+found" && name.as_str() != TEMPORARY;
    if let Some(name) = names.iter().filter(foreign).find(|name| !rooms().any(|room| room == name.as_str())) {
        return Err(wrong(ErrorKind::NotEmpty, &root.path, &format!("is not empty: {name:?} is there")));
    }
    if names.iter().any(|name| foreign(&name)) {
        root.unlink(TEMPORARY)?;
        clear(root);
        if let Some(name) = root.names()?.iter().find(foreign) {
            return Err(wrong(ErrorKind::NotEmpty, &root.path, &format!("is not empty: {name:?} is not")));
        }
    }
    Ok(())
}

/// Removes the directories that are empty but for the reserve.
fn clear(root: &Dir) {
    if let Ok(Some(reserve)) = root.sub("reserve") {
        for number in 0..RESERVE_FILES {
            let _ = reserve.unlink(&reserve_name(number));
        }
    }
    for room in rooms() {
        let _ = rustix::fs::unlinkat(root, room, AtFlags::REMOVEDIR);
    }
}

fn build(root: &Dir, options: &FormatOptions, ownership: Ownership) -> Result<()> {
    for room in rooms() {
        let path = root.path.join(room);
        match rustix::fs::mkdirat(root, room, ownership.dir_mode()) {
            Ok(()) => {}
            Err(e) => return Err(failed("cannot make the directory", path, e)),
        }
        let dir = root.sub(room)?.ok_or_else(|| failed("cannot open", path, Errno::NOENT))?;
        own(root, &dir, options, ownership.dir_mode())?;
        if room == "reserve" {
            fill_reserve(&dir, ownership)?;
        }
        if !without!("localfs.flush.rooms") {
            dir.sync()?;
        }
    }
    let path = root.path.join(TEMPORARY);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
    root.unlink(TEMPORARY)?;
    let mut file = root
        .open_file(TEMPORARY, flags, ownership.file_mode())
        .map_err(|e| failed("cannot create", &path, e))?;
    own(root, &file, options, ownership.file_mode())?;
    let bytes = serde_json::to_vec(&Descriptor::new())
        .map_err(|e| wrong(ErrorKind::Internal, &path, "the descriptor cannot be written").because(e))?;
    file.write_all(&bytes).map_err(|e| failed("cannot write", &path, e))?;
    if !without!("localfs.flush.descriptor") {
        file.sync_all().map_err(|e| failed("cannot write", &path, e))?;
    }
    if (options.owner, options.group, options.mode) != (None, None, None) {
        own(root, root, options, ownership.dir_mode())?;
    }
    if !without!("localfs.flush.root") {
        root.sync()?;
    }
    let name = descriptor_name(1);
    rustix::fs::linkat(root, TEMPORARY, root, &name, AtFlags::empty()).map_err(|e| match e {
        Errno::EXIST => wrong(ErrorKind::RepositoryExists, &root.path, "holds a repository already"),
        e => failed("cannot link", root.path.join(&name), e),
    })?;
    let named = if without!("localfs.flush.named") { Ok(()) } else { root.sync() };
    if let Err(error) = named {
        // Whether it is a repository now is not known; it shall be none.
        let _ = root.unlink(&name);
        return Err(error);
    }
    root.unlink(TEMPORARY)?;
    Ok(())
}

/// Owner as asked for, which must succeed; mode whatever the umask says.
fn own(root: &Dir, fd: impl std::os::fd::AsFd, options: &FormatOptions, mode: Mode) -> Result<()> {
    if options.owner.is_some() || options.group.is_some() {
        let uid = options.owner.map(rustix::fs::Uid::from_raw);
        let gid = options.group.map(rustix::fs::Gid::from_raw);
        rustix::fs::fchown(&fd, uid, gid).map_err(|e| failed("cannot change the owner in", &root.path, e))?;
    }
    rustix::fs::fchmod(&fd, mode).map_err(|e| failed("cannot change the mode in", &root.path, e))
}

fn reserve_name(number: u32) -> String {
    format!("{number:02x}")
}

/// Creates the files of the reserve that are not there.
pub(super) fn fill_reserve(reserve: &Dir, ownership: Ownership) -> Result<()> {
    let names = reserve.names()?;
    let mut made = false;
    for name in (0..RESERVE_FILES).map(reserve_name).filter(|name| !names.contains(name)) {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let path = reserve.path.join(&name);
        let file = match reserve.open_file(&name, flags, ownership.file_mode()) {
            Ok(file) => file,
            Err(Errno::EXIST) => continue,
            Err(e) => return Err(failed("cannot create", path, e)),
        };
        made = true;
        let filled = ownership.dress(&file, ownership.file_mode(), &path).and_then(|_| fill(file, &path));
        if let Err(error) = filled {
            // An empty one would be no reserve.
            let _ = reserve.unlink(&name);
            return Err(error);
        }
    }
    if made { reserve.sync() } else { Ok(()) }
}

/// Gives the files of the reserve the blocks that they lack. Who is just creating them does the same.
pub(super) fn mend_reserve(reserve: &Dir) -> Result<()> {
    for name in (0..RESERVE_FILES).map(reserve_name) {
        let Some(stat) = reserve.stat(&name)? else { continue };
        if FileType::from_raw_mode(stat.st_mode).is_file()
            && stat.st_blocks.cast_unsigned() * 512 < RESERVE_SIZE
        {
            let path = reserve.path.join(&name);
            match reserve.open_file(&name, OFlags::WRONLY, Mode::empty()) {
                Ok(file) => fill(file, &path)?,
                Err(Errno::NOENT) => {}
                Err(e) => return Err(failed("cannot open", path, e)),
            }
        }
    }
    Ok(())
}

/// Real blocks, not a hole.
fn fill(mut file: File, path: &Path) -> Result<()> {
    match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, RESERVE_SIZE) {
        Ok(()) => Ok(()),
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
            let block = [0x5a; RESERVE_SIZE as usize];
            file.write_all(&block).and_then(|()| file.sync_all()).map_err(|e| failed("cannot write", path, e))
        }
        Err(e) => Err(failed("cannot allocate", path, e)),
    }
}
