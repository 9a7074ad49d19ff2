//! What the end-to-end tests share: scratch repositories, and QEMU as the judge.

#![expect(clippy::expect_used, reason = "a test fails by panicking")]

pub mod dying;
pub mod qemu;
pub mod records;
pub mod scene;
pub mod tree;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Map, Value};
use vdsmstore_core::options::{ForceOptions, FormatOptions, PrepareOptions, WaitOptions};
use vdsmstore_core::{Image, ImageStatus, PreparedImage, Result, Status, Store, StoreOptions};

pub use vdsmstore_mounts as mounts;
pub use vdsmstore_mounts::{run, scratch};

/// How long a test waits for work on an image.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// The parameters of a local repository.
pub fn at(path: &Path) -> Map<String, Value> {
    let mut parameters = Map::new();
    parameters.insert("path".into(), path.to_str().expect("a UTF-8 path").into());
    parameters
}

/// A store as a host of that name.
pub fn store(host: &str) -> Store {
    let mut options = StoreOptions::default();
    options.host_id = Some(host.to_owned());
    Store::new(options).expect("a store")
}

/// Formats a repository under `root` and connects it under its name.
pub fn new_repo(store: &Store, root: &Path, name: &str) -> PathBuf {
    let path = root.join(name);
    std::fs::create_dir_all(&path).expect("a directory");
    store.format_storage_repository("localfs-1.0", &at(&path), &FormatOptions::default()).expect("format");
    store.connect_storage_repository(name, "localfs-1.0", &at(&path)).expect("connect");
    path
}

/// Waits for the work on an image, which must end well.
pub fn settle(store: &Store, repo: &str, image: &str) -> ImageStatus {
    let status = store.wait_image(repo, image, Some(PATIENCE), &WaitOptions::default()).expect("wait");
    assert_ne!(status.status, Status::Broken, "image {image}: {status:?}");
    assert_eq!(status.last_error, None);
    status
}

/// Opens an image for writing, works on it, closes it.
pub fn write<T>(store: &Store, repo: &str, image: &str, work: impl FnOnce(&Image) -> Result<T>) -> T {
    let open = store.open_image(repo, image, true).expect("open for writing");
    let result = work(&open).expect("write");
    open.close().expect("close");
    result
}

/// Hands an image to `work` as QEMU would get it.
pub fn prepared<T>(store: &Store, repo: &str, image: &str, work: impl FnOnce(&PreparedImage) -> T) -> T {
    let options = PrepareOptions { read_only: true };
    let prepared = store.prepare_image(repo, image, &options).expect("prepare");
    let result = work(&prepared);
    store.teardown_image(repo, image, &ForceOptions::default()).expect("teardown");
    result
}

/// QEMU reads the image and the file with the same bytes; a qcow2 volume is checked too.
pub fn qemu_equal(store: &Store, repo: &str, image: &str, file: &Path) {
    qemu_compare(store, repo, image, file, false);
}

/// As [`qemu_equal`], after a host died: it may have left clusters that nothing refers to.
pub fn qemu_equal_but_for_leaks(store: &Store, repo: &str, image: &str, file: &Path) {
    qemu_compare(store, repo, image, file, true);
}

fn qemu_compare(store: &Store, repo: &str, image: &str, file: &Path, leaks: bool) {
    /// `qemu-img check`: leaked clusters, and nothing worse.
    const LEAKED: i32 = 3;
    prepared(store, repo, image, |prepared| {
        if prepared.format == "qcow2" {
            let arguments = ["check", "-f", "qcow2", &prepared.path];
            let output = Command::new("qemu-img").args(arguments).output().expect("qemu-img");
            let sound = output.status.success() || leaks && output.status.code() == Some(LEAKED);
            assert!(sound, "qemu-img {arguments:?}: {output:?}");
        }
        let file = file.to_str().expect("a UTF-8 path");
        run("qemu-img", &["compare", "-f", &prepared.format, "-F", "raw", &prepared.path, file]);
    });
}

/// What the kernel has counted of this process: `rchar`, `wchar` (by calls), `read_bytes`, `write_bytes` (of storage).
pub fn counted<const N: usize>(names: [&str; N]) -> [u64; N] {
    let text = std::fs::read_to_string("/proc/self/io").expect("/proc/self/io");
    names.map(|name| {
        let of = |line: &str| Some(line.strip_prefix(name)?.strip_prefix(": ")?.to_owned());
        text.lines().find_map(of).expect("a count").parse().expect("a number")
    })
}

/// What this process had written at some moment, by the kernel's counts.
#[derive(Clone, Copy, Debug)]
pub struct Written {
    /// By calls. It lacks what io_uring writes.
    called: u64,
    /// To storage. It lacks what stays in memory.
    stored: u64,
}

impl Written {
    /// Until now.
    pub fn now() -> Written {
        let [called, stored] = counted(["wchar", "write_bytes"]);
        Written { called, stored }
    }

    /// Bytes since then, by the count that has more of them.
    pub fn since(self) -> u64 {
        let now = Written::now();
        (now.called - self.called).max(now.stored - self.stored)
    }
}
