//! Storage that is far away: a file system from whose disk this process, and what it starts, read no more than so many bytes a second.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::scene::{Result, text, tool};

/// Bytes a second: a network of 1 Gbit/s.
pub(super) const RATE: u64 = 120_000_000;

/// It is there until this is dropped.
pub(super) struct Slow {
    place: PathBuf,
    file: PathBuf,
    group: PathBuf,
}

impl Slow {
    /// Mounted at that place, which is made. Needs root, and a kernel that limits block devices by control groups.
    pub fn new(file: PathBuf, place: PathBuf) -> Result<Slow> {
        // Version 1 of control groups has a hierarchy for this, 2 one for all.
        let former = Path::new("/sys/fs/cgroup/blkio");
        let (top, limit, key) = if former.exists() {
            (former, "blkio.throttle.read_bps_device", "")
        } else {
            fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+io")?;
            (Path::new("/sys/fs/cgroup"), "io.max", "rbps=")
        };
        let slow = Slow { group: top.join("vdsmstore-bench"), file, place };
        File::create(&slow.file)?.set_len(4 << 30)?;
        fs::create_dir(&slow.place)?;
        tool("mkfs.ext4", &["-q", text(&slow.file)?])?;
        tool("mount", &["-o", "loop", text(&slow.file)?, text(&slow.place)?])?;
        let asked = ["--noheadings", "--output", "MAJ:MIN", "--mountpoint", text(&slow.place)?];
        let device = String::from_utf8(Command::new("findmnt").args(asked).output()?.stdout)?;
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
        let _ = Command::new("umount").arg(&self.place).status();
        let _ = fs::remove_file(&self.file);
    }
}
