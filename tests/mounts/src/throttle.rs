//! Slow devices, by control groups.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What of a device is slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// Reading from it.
    Read,
    /// Writing to it.
    Write,
}

/// A control group whose processes read from one block device, or write to it, at some rate at most. Needs root, and a kernel
/// that limits block devices.
#[derive(Debug)]
pub struct Throttle {
    group: PathBuf,
}

impl Throttle {
    /// For the device that the file system of a path is on, in bytes a second.
    pub fn new(path: &Path, transfer: Transfer, rate: u64) -> Throttle {
        let (major, minor) = device(path);
        // Version 1 of control groups has a hierarchy for this, 2 one for all.
        let former = Path::new("/sys/fs/cgroup/blkio");
        let (top, limit, key) = match (former.exists(), transfer) {
            (true, Transfer::Read) => (former, "blkio.throttle.read_bps_device", ""),
            (true, Transfer::Write) => (former, "blkio.throttle.write_bps_device", ""),
            (false, Transfer::Read) => (Path::new("/sys/fs/cgroup"), "io.max", "rbps="),
            (false, Transfer::Write) => (Path::new("/sys/fs/cgroup"), "io.max", "wbps="),
        };
        if !former.exists() {
            let told = std::fs::write(top.join("cgroup.subtree_control"), "+io");
            told.expect("control groups that limit block devices");
        }
        let group = top.join(format!("vdsmstore-{}", std::process::id()));
        std::fs::create_dir_all(&group).expect("a control group");
        std::fs::write(group.join(limit), format!("{major}:{minor} {key}{rate}")).expect("a limit");
        Throttle { group }
    }

    /// This process, and what it starts, is in the group until it leaves it.
    pub fn enter(&self) {
        move_to(&self.group).expect("enter a group");
    }

    /// This process is in the group above.
    pub fn leave(&self) {
        move_to(self.above()).expect("enter a group");
    }

    fn above(&self) -> &Path {
        self.group.parent().unwrap_or(&self.group)
    }

    /// What is started there stays in the group.
    pub fn within<T>(&self, start: impl FnOnce() -> T) -> T {
        self.enter();
        let started = start();
        self.leave();
        started
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        let _ = move_to(self.above());
        let _ = std::fs::remove_dir(&self.group);
    }
}

fn move_to(group: &Path) -> std::io::Result<()> {
    std::fs::write(group.join("cgroup.procs"), std::process::id().to_string())
}

/// The numbers of the device that the file system of a path is on.
pub fn device(path: &Path) -> (u32, u32) {
    let device = std::fs::metadata(path).expect("a file system").dev();
    (rustix::fs::major(device), rustix::fs::minor(device))
}
