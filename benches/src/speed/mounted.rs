//! File systems in files; and one that is far away, from whose disk this process, and what it starts, read no more than so many
//! bytes a second.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::scene::{Result, text, tool};

/// Bytes a second: a network of 1 Gbit/s.
pub(super) const RATE: u64 = 120_000_000;

/// It is there until this is dropped.
pub(super) struct Mounted {
    place: PathBuf,
    file: PathBuf,
}

impl Mounted {
    /// A new file system of that kind and size in bytes, mounted at that place, which is made. Needs root.
    pub fn new(kind: &str, file: PathBuf, place: PathBuf, size: u64) -> Result<Mounted> {
        let mounted = Mounted { place, file };
        File::create(&mounted.file)?.set_len(size)?;
        fs::create_dir(&mounted.place)?;
        tool(&format!("mkfs.{kind}"), &["-q", text(&mounted.file)?])?;
        tool("mount", &["-o", "loop", text(&mounted.file)?, text(&mounted.place)?])?;
        Ok(mounted)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.place).status();
        let _ = fs::remove_file(&self.file);
    }
}

/// The same.
pub(super) struct Slow {
    _mounted: Mounted,
    group: PathBuf,
}

impl Slow {
    /// As [`Mounted::new`]; needs a kernel that limits block devices by control groups, too.
    pub fn new(file: PathBuf, place: PathBuf) -> Result<Slow> {
        // Version 1 of control groups has a hierarchy for this, 2 one for all.
        let former = Path::new("/sys/fs/cgroup/blkio");
        let (top, limit, key) = if former.exists() {
            (former, "blkio.throttle.read_bps_device", "")
        } else {
            fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+io")?;
            (Path::new("/sys/fs/cgroup"), "io.max", "rbps=")
        };
        let mounted = Mounted::new("ext4", file, place, 4 << 30)?;
        let asked = ["--noheadings", "--output", "MAJ:MIN", "--mountpoint", text(&mounted.place)?];
        let device = String::from_utf8(Command::new("findmnt").args(asked).output()?.stdout)?;
        let slow = Slow { _mounted: mounted, group: top.join("vdsmstore-bench") };
        fs::create_dir_all(&slow.group)?;
        fs::write(slow.group.join(limit), format!("{} {key}{RATE}", device.trim()))?;
        fs::write(slow.group.join("cgroup.procs"), std::process::id().to_string())?;
        Ok(slow)
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        if let Some(above) = self.group.parent() {
            let _ = fs::write(above.join("cgroup.procs"), std::process::id().to_string());
        }
        let _ = fs::remove_dir(&self.group);
    }
}
