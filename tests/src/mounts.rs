//! Small file systems in files, mounted for the life of a test. Needs root and the tools of the file system.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::{run, scratch};

/// A mounted file system; unmounted when dropped, after a panic too.
#[derive(Debug)]
pub struct Mounted {
    mount: PathBuf,
    _scratch: TempDir,
}

impl Mounted {
    /// Makes and mounts a file system of a kind (`ext4`, `xfs`, `btrfs`) and size.
    pub fn new(kind: &str, mebibytes: u64) -> Mounted {
        let scratch = scratch();
        let file = scratch.path().join("file");
        let mount = scratch.path().join("mount");
        File::create(&file).and_then(|file| file.set_len(mebibytes << 20)).expect("a file");
        std::fs::create_dir(&mount).expect("a directory");
        let (file, text) =
            (file.to_str().expect("UTF-8").to_owned(), mount.to_str().expect("UTF-8").to_owned());
        match kind {
            "ext4" => run("mkfs.ext4", &["-q", "-F", "-m", "0", &file]),
            other => run(&format!("mkfs.{other}"), &["-q", "-f", &file]),
        };
        // XFS keeps space beyond the end of a file that grows, in proportion to the file, unless it is told how much.
        let options = if kind == "xfs" { "loop,allocsize=64k" } else { "loop" };
        run("mount", &["-o", options, &file, &text]);
        Mounted { mount, _scratch: scratch }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.mount
    }

    /// Mounts it again, `ro` or `rw`.
    pub fn remount(&self, how: &str) {
        run("mount", &["-o", &format!("remount,{how}"), self.mount.to_str().expect("UTF-8")]);
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // What is still open goes with its last user.
        let _ = Command::new("umount").arg("--lazy").arg(&self.mount).status();
    }
}

/// A control group whose processes write to one block device at that rate at most. Needs root.
#[derive(Debug)]
pub struct SlowWrites {
    group: PathBuf,
}

impl SlowWrites {
    /// For what is mounted there, in bytes per second.
    pub fn to(mount: &Path, rate: u64) -> SlowWrites {
        use std::os::unix::fs::MetadataExt;
        let device = std::fs::metadata(mount).expect("a mount").dev();
        let device = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
        // Version 1 of control groups has a hierarchy for this, 2 one for all.
        let former = Path::new("/sys/fs/cgroup/blkio");
        let (top, limit, key) = if former.exists() {
            (former, "blkio.throttle.write_bps_device", "")
        } else {
            let told = std::fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+io");
            told.expect("control groups that limit block devices");
            (Path::new("/sys/fs/cgroup"), "io.max", "wbps=")
        };
        let slow = SlowWrites { group: top.join(format!("vdsmstore-{}", std::process::id())) };
        std::fs::create_dir_all(&slow.group).expect("a control group");
        std::fs::write(slow.group.join(limit), format!("{device} {key}{rate}")).expect("a limit");
        slow
    }

    /// What is started there stays in the group.
    pub fn within<T>(&self, start: impl FnOnce() -> T) -> T {
        let enter = |group: &Path| {
            std::fs::write(group.join("cgroup.procs"), std::process::id().to_string())
                .expect("enter a group");
        };
        enter(&self.group);
        let started = start();
        enter(self.group.parent().expect("a group above"));
        started
    }
}

impl Drop for SlowWrites {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.group);
    }
}

/// Whether this process may mount.
pub fn can_mount() -> bool {
    effective_user() == 0 && Path::new("/dev/loop-control").exists()
}

fn effective_user() -> u32 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").map_or(1, |metadata| metadata.uid())
}
