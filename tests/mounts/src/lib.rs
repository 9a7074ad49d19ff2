//! Where tests and benchmarks keep their files: scratch directories, small file systems in files, devices that are slow. What
//! mounts needs root and the tools of the file system.
#![allow(clippy::expect_used, reason = "tests fail by panicking")]

mod throttle;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

pub use throttle::{Throttle, Transfer, device};

/// A scratch directory in memory if there is such a place: nothing there waits for a disk.
pub fn scratch() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.expect("a directory")
}

/// Runs a program that must succeed.
pub fn run(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// A mounted file system; unmounted when dropped, after a panic too.
#[derive(Debug)]
pub struct Mounted {
    mount: PathBuf,
    file: PathBuf,
    /// Kept for as long as it is mounted.
    scratch: Option<TempDir>,
}

impl Mounted {
    /// Makes and mounts a file system of a kind (`ext4`, `xfs`, `btrfs`) and size, in a scratch directory.
    pub fn new(kind: &str, mebibytes: u64) -> Mounted {
        let scratch = scratch();
        let mut mounted =
            Mounted::at(kind, scratch.path().join("file"), scratch.path().join("mount"), mebibytes);
        mounted.scratch = Some(scratch);
        mounted
    }

    /// The same in a file of that name, mounted at a directory; both are made.
    pub fn at(kind: &str, file: PathBuf, mount: PathBuf, mebibytes: u64) -> Mounted {
        File::create(&file).and_then(|file| file.set_len(mebibytes << 20)).expect("a file");
        std::fs::create_dir(&mount).expect("a directory");
        match kind {
            "ext4" => run("mkfs.ext4", &["-q", "-F", "-m", "0", text(&file)]),
            other => run(&format!("mkfs.{other}"), &["-q", "-f", text(&file)]),
        };
        // XFS keeps space beyond the end of a file that grows, in proportion to the file, unless it is told how much.
        let options = if kind == "xfs" { "loop,allocsize=64k" } else { "loop" };
        run("mount", &["-o", options, text(&file), text(&mount)]);
        Mounted { mount, file, scratch: None }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.mount
    }

    /// Mounts it again, `ro` or `rw`.
    pub fn remount(&self, how: &str) {
        run("mount", &["-o", &format!("remount,{how}"), text(&self.mount)]);
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // What is still open goes with its last user.
        let _ = Command::new("umount").arg("--lazy").arg(&self.mount).status();
        let _ = std::fs::remove_file(&self.file);
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// Whether this process may mount.
pub fn can_mount() -> bool {
    effective_user() == 0 && Path::new("/dev/loop-control").exists()
}

fn effective_user() -> u32 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").map_or(1, |metadata| metadata.uid())
}
