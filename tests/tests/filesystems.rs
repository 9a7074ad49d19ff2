//! The main scenarios on the file systems that hosts have: overlays on ext4, clones on XFS and btrfs. Needs root.

#![allow(
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::large_stack_arrays,
    clippy::unwrap_used,
    reason = "the numbers of tests are small, and tests fail by panicking"
)]

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;

use vdsmstore_core::Store;
use vdsmstore_core::options::{CopyOptions, CreateOptions, ListOptions, RemoveOptions};
use vdsmstore_tests::mounts::{Mounted, can_mount};
use vdsmstore_tests::{new_repo, qemu_equal, run, scratch, settle, store, write};

const MIB: i64 = 1 << 20;
const SIZE: i64 = 64 * MIB;

/// A file system of a kind, with two repositories, and files beside it that say what images must hold.
struct Place {
    kind: &'static str,
    clones: bool,
    mounted: Mounted,
    models: tempfile::TempDir,
    store: Store,
}

impl Place {
    fn new(kind: &'static str) -> Option<Place> {
        if !can_mount() {
            println!("not root: nothing is tested");
            return None;
        }
        let mounted = Mounted::new(kind, 1536);
        let store = store("here");
        new_repo(&store, mounted.path(), "A");
        new_repo(&store, mounted.path(), "B");
        Some(Place { kind, clones: kind != "ext4", mounted, models: scratch(), store })
    }

    /// Bytes that the file system says are taken. What was deleted counts until it is written back.
    fn used(&self) -> u64 {
        run("sync", &["-f", self.mounted.path().to_str().unwrap()]);
        let output = run("df", &["--block-size=1", "--output=used", self.mounted.path().to_str().unwrap()]);
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().last().unwrap().trim().parse().unwrap()
    }

    fn disk(&self, base: Option<&str>) -> String {
        let size = base.is_none().then_some(SIZE);
        self.store.create_virtual_disk("A", size, base, "{}", &CreateOptions::default()).unwrap().to_string()
    }

    fn snapshot(&self, disk: &str) -> String {
        self.store.create_snapshot("A", disk, "{}", &CreateOptions::default()).unwrap().to_string()
    }

    fn copy(&self, id: &str, base: Option<&str>) -> String {
        let copy = self.store.copy_image("B", id, base, "{}", &CopyOptions::default()).unwrap().to_string();
        settle(&self.store, "B", &copy);
        copy
    }

    /// Writes to the image and to the file of that name.
    fn fill(&self, id: &str, model: &str, offset: i64, length: i64, byte: u8) {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(self.models.path().join(model))
            .unwrap();
        file.set_len(SIZE as u64).unwrap();
        let data = vec![byte; length as usize];
        file.write_all_at(&data, offset as u64).unwrap();
        write(&self.store, "A", id, |image| image.write(offset, &data));
    }

    fn keep(&self, model: &str, name: &str) {
        std::fs::copy(self.models.path().join(model), self.models.path().join(name)).unwrap();
    }

    fn holds(&self, repo: &str, id: &str, model: &str) {
        qemu_equal(&self.store, repo, id, &self.models.path().join(model));
    }

    fn depth(&self, repo: &str, id: &str) -> u32 {
        self.store.get_image_info(repo, id).unwrap().depth
    }

    fn remove_all(&self) {
        for repo in ["A", "B"] {
            for id in self.store.list_images(repo, &ListOptions::default()).unwrap() {
                self.store.remove_image(repo, &id.to_string(), &RemoveOptions::default()).unwrap();
            }
        }
        while !self.store.list_tasks().unwrap().is_empty() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        for repo in ["A", "B"] {
            let data = self.mounted.path().join(repo).join("data");
            assert_eq!(
                std::fs::read_dir(data).unwrap().count(),
                0,
                "{}: volumes are left in {repo}",
                self.kind
            );
        }
    }
}

fn capabilities(place: &Place) {
    let info = place.store.get_storage_repository_info("A").unwrap();
    assert_eq!(info.capabilities.reflink, place.clones, "{}", place.kind);
    assert!(info.capabilities.thin && info.capabilities.discard, "{info:?}");
    assert!(info.capacity > 1 << 30 && info.available > 1 << 30, "{info:?}");
}

fn snapshots_and_disks(place: &Place) {
    let disk = place.disk(None);
    place.fill(&disk, "disk", 0, 32 * MIB, 1);
    let before = place.used();
    let mut snapshots = Vec::new();
    for round in 0..4_u8 {
        let name = format!("snapshot{round}");
        place.keep("disk", &name);
        snapshots.push((place.snapshot(&disk), name));
        place.fill(&disk, "disk", i64::from(round) * MIB, MIB / 2, round + 10);
    }
    let child = place.disk(Some(&snapshots[1].0));
    place.keep("snapshot1", "child");
    place.fill(&child, "child", 40 * MIB, MIB, 77);
    let grown = place.used().saturating_sub(before);
    assert!(grown < 16 << 20, "{}: four snapshots of 32 MiB and a disk took {grown}", place.kind);
    for (id, name) in &snapshots {
        place.holds("A", id, name);
    }
    place.holds("A", &disk, "disk");
    place.holds("A", &child, "child");
    if place.clones {
        for id in snapshots.iter().map(|(id, _)| id).chain([&disk, &child]) {
            assert_eq!(place.depth("A", id), 1, "{}: no chain where storage clones", place.kind);
        }
    } else {
        assert_eq!(place.depth("A", &disk), 5);
    }
    // Each goes without the others.
    for (id, _) in &snapshots {
        place.store.remove_image("A", id, &RemoveOptions::default()).unwrap();
    }
    place.holds("A", &disk, "disk");
    place.holds("A", &child, "child");
}

fn nights(place: &Place) {
    let disk = place.disk(None);
    place.fill(&disk, "night0", 0, 24 * MIB, 1);
    let mut copies = vec![place.copy(&disk, None)];
    for night in 1..4_u8 {
        place.keep(&format!("night{}", night - 1), &format!("night{night}"));
        place.fill(&disk, &format!("night{night}"), i64::from(night) * 5 * MIB, MIB, night);
        let before = place.used();
        copies.push(place.copy(&disk, copies.last().map(String::as_str)));
        let grown = place.used().saturating_sub(before);
        assert!(grown < 8 << 20, "{}: night {night} changed 1 MiB and took {grown}", place.kind);
        assert_eq!(place.depth("A", &disk), 1, "the source is never snapshotted");
    }
    for (night, copy) in copies.iter().enumerate() {
        place.holds("B", copy, &format!("night{night}"));
    }
}

fn scenario(kind: &'static str) {
    let Some(place) = Place::new(kind) else { return };
    let empty = place.used();
    capabilities(&place);
    snapshots_and_disks(&place);
    place.remove_all();
    nights(&place);
    place.remove_all();
    let left = place.used().saturating_sub(empty);
    assert!(left < 8 << 20, "{kind}: {left} bytes have not come back");
    place.store.close().unwrap();
    assert!(Path::new(place.mounted.path()).join("A").exists());
}

#[test]
fn ext4() {
    scenario("ext4");
}

#[test]
fn xfs() {
    scenario("xfs");
}

#[test]
fn btrfs() {
    scenario("btrfs");
}
