//! Two repositories with images, and what each image must hold.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use vdsmstore_core::options::{CheckOptions, CopyOptions, CreateOptions, Strategy};
use vdsmstore_core::{Fix, FixType, Result, Store, StoreOptions};
use vdsmstore_tests::{at, new_repo, run, scratch, store};

pub const SIZE: u64 = 640 * 1024;
pub const CLUSTER: usize = 64 * 1024;
pub const NAMES: [&str; 2] = ["A", "B"];
/// What the operations call what they make, and their task.
pub const NEW: &str = "12345678-1234-4234-8234-123456789abc";
pub const TASK: &str = "task";

pub struct Scene {
    pub root: TempDir,
    /// In A: a disk on a snapshot (overlay), the snapshot, another disk on it, a preallocated disk. In B: a disk with
    /// what the snapshot has.
    pub disk: String,
    pub snapshot: String,
    pub child: String,
    pub flat: String,
    pub copy: String,
    /// By repository and id.
    pub model: BTreeMap<(usize, String), Vec<u8>>,
    /// The fix that the operation runs, and where.
    pub fix: Option<(usize, Fix)>,
}

pub fn pattern(seed: u8) -> Vec<u8> {
    let mut data = vec![0; SIZE as usize];
    for (index, block) in data.chunks_mut(CLUSTER).enumerate() {
        if (index + usize::from(seed)) % 3 != 0 {
            block.fill(seed.wrapping_mul(17).wrapping_add(index as u8) | 1);
        }
    }
    data
}

/// A store whose tasks run when it is told.
pub fn idle(host: &str) -> Store {
    let mut options = StoreOptions::default();
    options.host_id = Some(host.to_owned());
    options.threads = Some(0);
    Store::new(options).unwrap()
}

pub fn fill(store: &Store, repo: usize, id: &str, data: &[u8]) {
    let image = store.open_image(NAMES[repo], id, true).unwrap();
    for (index, block) in data.chunks(CLUSTER).enumerate() {
        let offset = (index * CLUSTER) as i64;
        if block.iter().any(|byte| *byte != 0) {
            image.write(offset, block).unwrap();
        } else {
            image.write_zeroes(offset, block.len() as i64).unwrap();
        }
    }
    image.close().unwrap();
}

/// All bytes.
pub fn read(store: &Store, repo: usize, id: &str) -> Result<Vec<u8>> {
    let image = store.open_image(NAMES[repo], id, false)?;
    let mut data = vec![0xaa; image.size()? as usize];
    image.read(0, &mut data)?;
    image.close()?;
    Ok(data)
}

impl Scene {
    pub fn new(prepare: fn(&Store, &mut Scene)) -> Scene {
        let none = String::new;
        let mut scene = Scene {
            root: scratch(),
            disk: none(),
            snapshot: none(),
            child: none(),
            flat: none(),
            copy: none(),
            model: BTreeMap::new(),
            fix: None,
        };
        let store = store("setup");
        for name in NAMES {
            new_repo(&store, scene.root.path(), name);
        }
        for name in ["outside", "C"] {
            fs::create_dir(scene.root.path().join(name)).unwrap();
        }
        let plain = CreateOptions::default();
        scene.disk = scene.disk(&store, 0, pattern(1), &plain);
        scene.snapshot = scene.snap(&store, 0, &scene.disk.clone());
        let base = Some(scene.snapshot.as_str());
        scene.child = store.create_virtual_disk("A", None, base, "{}", &plain).unwrap().to_string();
        scene.write(&store, 0, &scene.child.clone(), pattern(2));
        scene.copy = scene.copied(&store, 1, &scene.disk.clone(), None);
        scene.write(&store, 0, &scene.disk.clone(), pattern(3));
        let flat = CreateOptions { strategy: Strategy::Performance, ..plain };
        scene.flat = scene.disk(&store, 0, pattern(4), &flat);
        prepare(&store, &mut scene);
        for ((repo, id), data) in &scene.model {
            assert!(read(&store, *repo, id).unwrap() == *data);
        }
        store.close().unwrap();
        let raw = scene.root.path().join("outside/raw");
        fs::write(&raw, pattern(6)).unwrap();
        let qcow2 = raw.with_file_name("qcow2");
        let (raw, qcow2) = (raw.to_str().unwrap(), qcow2.to_str().unwrap());
        run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", raw, qcow2]);
        scene
    }

    /// A disk with that content.
    pub fn disk(&mut self, store: &Store, repo: usize, data: Vec<u8>, options: &CreateOptions) -> String {
        let id = store.create_virtual_disk(NAMES[repo], Some(SIZE as i64), None, "{}", options);
        let id = id.unwrap().to_string();
        vdsmstore_tests::settle(store, NAMES[repo], &id);
        self.write(store, repo, &id, data);
        id
    }

    pub fn write(&mut self, store: &Store, repo: usize, id: &str, data: Vec<u8>) {
        fill(store, repo, id, &data);
        self.model.insert((repo, id.to_owned()), data);
    }

    pub fn snap(&mut self, store: &Store, repo: usize, disk: &str) -> String {
        let id = store.create_snapshot(NAMES[repo], disk, "{}", &CreateOptions::default());
        let id = id.unwrap().to_string();
        vdsmstore_tests::settle(store, NAMES[repo], &id);
        self.model.insert((repo, id.clone()), self.model[&(repo, disk.to_owned())].clone());
        id
    }

    /// A copy of an image of A.
    pub fn copied(&mut self, store: &Store, repo: usize, id: &str, base: Option<&str>) -> String {
        let copy = store.copy_image(NAMES[repo], id, base, "{}", &CopyOptions::default());
        let copy = copy.unwrap().to_string();
        vdsmstore_tests::settle(store, NAMES[repo], &copy);
        self.model.insert((repo, copy.clone()), self.content(0, id));
        copy
    }

    pub fn content(&self, repo: usize, id: &str) -> Vec<u8> {
        self.model[&(repo, id.to_owned())].clone()
    }

    /// The operation runs the only fix of that type.
    pub fn find_fix(&mut self, store: &Store, repo: usize, wanted: FixType) {
        let fixes = store.check_storage_repository(NAMES[repo], &CheckOptions::default()).unwrap();
        let mut found = fixes.iter().filter(|fix| fix.fix_type == wanted);
        let (Some(fix), None) = (found.next(), found.next()) else {
            panic!("not one {wanted:?}: {fixes:#?}")
        };
        self.fix = Some((repo, fix.clone()));
    }
}

/// Connects both repositories below that directory.
pub fn connect(store: &Store, root: &Path) -> Result<()> {
    NAMES
        .iter()
        .try_for_each(|name| store.connect_storage_repository(name, "localfs-1.0", &at(&root.join(name))))
}

/// Copies a directory with all that is in it.
pub fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    fs::set_permissions(to, fs::metadata(from).unwrap().permissions()).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (from, to): (PathBuf, PathBuf) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&from, &to);
        } else {
            fs::copy(&from, &to).unwrap();
        }
    }
}
