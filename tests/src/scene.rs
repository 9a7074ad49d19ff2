//! A scene for tests of single promises: a store with two repositories.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vdsmstore_core::options::{
    AutoFix, CopyOptions, CreateOptions, ListOptions, RemoveOptions, Strategy, WaitOptions,
};
use vdsmstore_core::{Error, ErrorKind, Result, Status, Store, StoreOptions};

use crate::{PATIENCE, at, new_repo, prepared, qemu_equal, scratch, store, write};

/// In bytes.
pub const MIB: i64 = 1 << 20;
/// Of the scene's disks.
pub const SIZE: i64 = 4 * MIB;

/// A store with the repositories A and B.
#[derive(Debug)]
pub struct Scene {
    /// Where everything lies.
    pub root: TempDir,
    /// Connected to both, as host "here".
    pub store: Store,
}

impl Scene {
    /// Local repositories in a scratch directory.
    #[expect(clippy::new_without_default, reason = "it makes directories")]
    pub fn new() -> Scene {
        Scene::within(scratch())
    }

    /// The same elsewhere.
    pub fn within(root: TempDir) -> Scene {
        let store = store("here");
        new_repo(&store, root.path(), "A");
        new_repo(&store, root.path(), "B");
        Scene { root, store }
    }

    /// Where a repository is.
    pub fn repo(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// Another store on the same repositories.
    pub fn join(&self, options: StoreOptions) -> Store {
        let other = Store::new(options).expect("success");
        for name in ["A", "B"] {
            other.connect_storage_repository(name, "localfs-1.0", &at(&self.repo(name))).expect("success");
        }
        other
    }

    /// The same with defaults.
    pub fn another(&self) -> Store {
        self.join(StoreOptions::default())
    }

    /// A store whose work runs only when it is told to.
    pub fn idle(&self) -> Store {
        let mut options = StoreOptions::default();
        options.threads = Some(0);
        self.join(options)
    }

    /// A disk with `blocks` of 64 KiB of this byte from the beginning.
    pub fn disk(&self, repo: &str, byte: u8, blocks: usize) -> String {
        let id = self.create(repo, Some(SIZE), None, &CreateOptions::default());
        write(&self.store, repo, &id, |image| image.write(0, &vec![byte; blocks * 65536]));
        id
    }

    /// A new disk.
    pub fn create(
        &self,
        repo: &str,
        size: Option<i64>,
        base: Option<&str>,
        options: &CreateOptions,
    ) -> String {
        self.store.create_virtual_disk(repo, size, base, "{}", options).expect("success").to_string()
    }

    /// A snapshot of a disk.
    pub fn snapshot(&self, repo: &str, disk: &str) -> String {
        self.store.create_snapshot(repo, disk, "{}", &CreateOptions::default()).expect("success").to_string()
    }

    /// Copies and waits.
    pub fn copy(&self, repo: &str, id: &str, base: Option<&str>, options: &CopyOptions) -> String {
        let made = self.store.copy_image(repo, id, base, "{}", options).expect("success").to_string();
        self.store.wait_image(repo, &made, Some(PATIENCE), &WaitOptions::default()).expect("success");
        made
    }

    /// Removes an image.
    pub fn remove(&self, repo: &str, id: &str) {
        self.store.remove_image(repo, id, &RemoveOptions::default()).expect("success");
    }

    /// The status alone.
    pub fn status(&self, repo: &str, id: &str) -> Status {
        self.store.get_image_status(repo, id).expect("success").status
    }

    /// All bytes.
    pub fn read(&self, repo: &str, id: &str) -> Vec<u8> {
        read(&self.store, repo, id)
    }

    /// The bytes and size are these, by our reading and QEMU's.
    pub fn holds(&self, repo: &str, id: &str, data: &[u8]) {
        assert!(self.read(repo, id) == data, "image {id} in {repo}");
        let file = self.root.path().join(format!("expected-{id}"));
        std::fs::write(&file, data).expect("success");
        qemu_equal(&self.store, repo, id, &file);
    }

    /// The format that QEMU is told.
    pub fn format(&self, repo: &str, id: &str) -> String {
        prepared(&self.store, repo, id, |prepared| prepared.format.clone())
    }

    /// Waits until the tasks have ended.
    pub fn quiet(&self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.store.list_tasks().expect("success").is_empty() {
            assert!(Instant::now() < deadline, "{:?}", self.store.list_tasks());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// All bytes of an image.
pub fn read(store: &Store, repo: &str, id: &str) -> Vec<u8> {
    let image = store.open_image(repo, id, false).expect("success");
    let mut data = vec![0xaa; image.size().expect("success") as usize];
    image.read(0, &mut data).expect("success");
    data
}

/// The bytes of [`Scene::disk`].
pub fn bytes(byte: u8, blocks: usize) -> Vec<u8> {
    let mut data = vec![0; SIZE as usize];
    data[..blocks * 65536].fill(byte);
    data
}

/// With the strategy performance.
pub fn performance() -> CreateOptions {
    CreateOptions { strategy: Strategy::Performance, ..CreateOptions::default() }
}

/// Only the intent.
pub fn off() -> CreateOptions {
    CreateOptions { auto_fix: AutoFix::Off, ..CreateOptions::default() }
}

/// The call fails in this way.
pub fn fails<T>(kind: ErrorKind, result: Result<T>) -> Error {
    let Err(error) = result else { panic!("not refused, expected {kind:?}") };
    assert_eq!(error.kind(), kind, "{error:?}");
    error
}

/// The ids of a repository.
pub fn ids(store: &Store, repo: &str) -> Vec<String> {
    store
        .list_images(repo, &ListOptions::default())
        .expect("success")
        .iter()
        .map(ToString::to_string)
        .collect()
}
