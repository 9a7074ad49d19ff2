//! A file system for tests: a mirror of a directory in which a chosen call fails. It knows nothing of the engine, so that
//! every crate's tests can use it.
//!
//! A [`FaultFs`] is mounted (FUSE; as root) and passes every call on to the directory that it mirrors, without a page
//! cache between: what a program writes arrives here call by call. Then [`FaultFs::arm`] names the fault, the Nth call
//! of a kind and the answer that it gets, and [`FaultFs::disarm`] says how often it happened: a test that injects a
//! fault asserts that it did.
//!
//! Byte-range locks and flock are those of this mount, kept by the kernel. There are no extended attributes, devices or
//! reflinks.

#![expect(clippy::cast_sign_loss, reason = "what the kernel counts in signed numbers is not negative")]

mod mirror;
mod node;
mod switch;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fuser::{BackgroundSession, Config, MountOption};
use rustix::mount::UnmountFlags;
use rustix::process::Resource;

pub use rustix::io::Errno;
pub use switch::{Answer, Call, Fault, Met};

use mirror::Mirror;
use switch::Switch;

/// A mounted mirror; unmounted when dropped, after a panic too.
#[derive(Debug)]
pub struct FaultFs {
    mount: PathBuf,
    switch: Arc<Switch>,
    /// Ends with the mount.
    _session: BackgroundSession,
}

impl FaultFs {
    /// Mirrors the directory `source`, of one file system, at the empty directory `mount`.
    pub fn mount(source: &Path, mount: &Path) -> io::Result<FaultFs> {
        raise_limit();
        let switch = Arc::new(Switch::default());
        let mirror = Mirror::new(source, Arc::clone(&switch))?;
        let mut config = Config::default();
        config.mount_options =
            vec![MountOption::FSName("vdsmstore-faults".to_owned()), MountOption::DefaultPermissions];
        // One thread serves: so the order of the calls is the order of the answers.
        config.n_threads = Some(1);
        let session = fuser::spawn_mount(mirror, mount, &config)?;
        Ok(FaultFs { mount: mount.to_path_buf(), switch, _session: session })
    }

    /// Whether this process may mount one.
    pub fn is_possible() -> bool {
        rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists()
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mount
    }

    /// From now on calls are counted, and this fault happens. It takes the place of the one before.
    pub fn arm(&self, fault: Fault) {
        self.switch.arm(Some(fault));
    }

    /// From now on calls are counted, and none fails.
    pub fn count(&self) {
        self.switch.arm(None);
    }

    /// Ends the fault and the counting; what was met.
    pub fn disarm(&self) -> Met {
        self.switch.disarm()
    }

    /// How often the fault has happened until now.
    pub fn fired(&self) -> u64 {
        self.switch.fired()
    }
}

impl Drop for FaultFs {
    fn drop(&mut self) {
        // What is still open goes with its last user.
        let _ = rustix::mount::unmount(&self.mount, UnmountFlags::DETACH);
    }
}

/// A mirror holds a descriptor for every file that was looked at.
fn raise_limit() {
    let mut limit = rustix::process::getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        // Else tests with many files fail and say so.
        let _ = rustix::process::setrlimit(Resource::Nofile, limit);
    }
}
