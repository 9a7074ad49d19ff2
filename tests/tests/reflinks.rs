//! Where the storage clones, no job moves data that is there already: copies, flattening, merges both ways, import and
//! export share it. The kernel's count of what was written says so; ext4, which cannot, is the control. Needs root.

#![allow(
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    reason = "the numbers of tests are small, and tests fail by panicking"
)]

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use vdsmstore_core::options::{
    AutoFix, Bandwidth, CheckOptions, CopyOptions, CreateOptions, ExportOptions, FixOptions, RemoveOptions,
    Strategy, WaitOptions,
};
use vdsmstore_core::{FixType, Status, Store};
use vdsmstore_tests::mounts::{Mounted, can_mount};
use vdsmstore_tests::{Written, new_repo, qemu_equal, run, settle, store, write};

const MIB: i64 = 1 << 20;
const SIZE: i64 = 96 * MIB + 1536;
const DATA: u64 = 48 << 20;
/// What records, headers, tables, and the ends of runs may cost.
const LITTLE: u64 = 2 << 20;

struct Place {
    kind: &'static str,
    mounted: Mounted,
    store: Store,
    /// Job, bytes of data, bytes written.
    table: Vec<(String, u64, u64)>,
}

impl Place {
    fn new(kind: &'static str) -> Place {
        let mounted = Mounted::new(kind, 2048);
        let store = store("here");
        new_repo(&store, mounted.path(), "A");
        new_repo(&store, mounted.path(), "B");
        Place { kind, mounted, store, table: Vec::new() }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.mounted.path().join(name)
    }

    /// Does it, and notes what was written, and what of the file system's space is taken now.
    fn job<T>(&mut self, name: &str, data: u64, work: impl FnOnce(&Store) -> T) -> T {
        let before = Written::now();
        let result = work(&self.store);
        self.table.push((name.to_owned(), data, before.since()));
        result
    }

    fn fill(&self, repo: &str, id: &str, offset: i64, length: u64, seed: u64) {
        let data: Vec<u8> = (0..length / 8)
            .flat_map(|n| ((n + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1).to_le_bytes())
            .collect();
        write(&self.store, repo, id, |image| image.write(offset, &data));
    }

    /// The image's bytes in a file, to be compared with.
    fn keep(&self, repo: &str, id: &str, name: &str) {
        let image = self.store.open_image(repo, id, false).unwrap();
        let mut data = vec![0; SIZE as usize];
        image.read(0, &mut data).unwrap();
        image.close().unwrap();
        fs::write(self.file(name), data).unwrap();
    }

    fn holds(&self, repo: &str, id: &str, name: &str) {
        qemu_equal(&self.store, repo, id, &self.file(name));
        let path = self.file(repo).join("data");
        for entry in fs::read_dir(path).unwrap() {
            let path = entry.unwrap().path();
            let head = fs::read(&path).unwrap();
            if head.starts_with(b"QFI\xfb") {
                run("qemu-img", &["check", "-q", "-f", "qcow2", path.to_str().unwrap()]);
            }
        }
    }

    fn fixes(&self, repo: &str, fix_type: FixType) {
        for fix in self.store.check_storage_repository(repo, &CheckOptions::default()).unwrap() {
            assert_eq!(fix.fix_type, fix_type, "{}: {fix:?}", self.kind);
            let task = self.store.fix_storage_repository(repo, &fix, &FixOptions::default()).unwrap();
            self.store.wait_task(&task, Some(Duration::from_mins(1))).unwrap();
        }
    }

    /// A merge of a snapshot that nobody needs into the disk on it, or of the disk into the snapshot.
    fn merge(&mut self, name: &str, lower: (i64, u64), upper: (i64, u64), moved: u64) {
        let base = self.store.create_virtual_disk("A", Some(SIZE), None, "{}", &off()).unwrap().to_string();
        self.fill("A", &base, lower.0, lower.1, 1);
        let backup = CopyOptions { mutable: false, ..CopyOptions::default() };
        let copy = self.store.copy_image("B", &base, None, "{}", &backup).unwrap().to_string();
        settle(&self.store, "B", &copy);
        self.fill("A", &base, upper.0, upper.1, 2);
        let top = self.store.copy_image("B", &base, Some(&copy), "{}", &CopyOptions::default()).unwrap();
        let top = top.to_string();
        settle(&self.store, "B", &top);
        self.keep("A", &base, "merged");
        let off = RemoveOptions { auto_fix: AutoFix::Off, ..RemoveOptions::default() };
        self.store.remove_image("B", &copy, &off).unwrap();
        assert_eq!(self.store.get_image_info("B", &top).unwrap().depth, 2);
        let before = Written::now();
        self.fixes("B", FixType::Merge);
        self.table.push((name.to_owned(), moved, before.since()));
        assert_eq!(self.store.get_image_info("B", &top).unwrap().depth, 1, "{name}");
        self.holds("B", &top, "merged");
        for (repo, id) in [("A", &base), ("B", &top)] {
            self.store.remove_image(repo, id, &RemoveOptions::default()).unwrap();
        }
    }
}

fn off() -> CreateOptions {
    CreateOptions::default()
}

fn jobs(place: &mut Place) {
    let disk = place.store.create_virtual_disk("A", Some(SIZE), None, "{}", &off()).unwrap().to_string();
    place.fill("A", &disk, 3 * MIB + 512, DATA, 7);
    // The end, which is no whole block.
    place.fill("A", &disk, SIZE - 1536, 1536, 9);
    place.keep("A", &disk, "disk");
    // Not what the test itself wrote a moment ago is to be counted.
    run("sync", &["-f", place.mounted.path().to_str().unwrap()]);

    let copy = place.job("copy", DATA, |store| {
        let copy = store.copy_image("B", &disk, None, "{}", &CopyOptions::default()).unwrap().to_string();
        settle(store, "B", &copy);
        copy
    });
    place.holds("B", &copy, "disk");
    // Both are their own: what is written to one is not in the other.
    place.fill("B", &copy, 5 * MIB, 1 << 20, 3);
    place.holds("A", &disk, "disk");

    for (name, format) in [("exported", "raw"), ("exported.qcow2", "qcow2")] {
        let path = place.file(name);
        place.job(&format!("export {format}"), DATA, |store| {
            let options = ExportOptions::default();
            let task = store.export_image("A", &disk, path.to_str().unwrap(), format, &options).unwrap();
            store.wait_task(&task, Some(Duration::from_mins(1))).unwrap();
        });
        let (path, disk) = (path.to_str().unwrap(), place.file("disk"));
        run("qemu-img", &["compare", "-f", format, "-F", "raw", path, disk.to_str().unwrap()]);
        if format == "qcow2" {
            run("qemu-img", &["check", "-q", "-f", format, path]);
        }
        let imported = place.job(&format!("import {format}"), DATA, |store| {
            let id = store.import_image("A", path, format, "{}", &off()).unwrap().to_string();
            settle(store, "A", &id);
            id
        });
        place.holds("A", &imported, "disk");
    }

    // An overlay, flattened into a raw volume of its own.
    let snapshot = place.store.create_snapshot("A", &disk, "{}", &off()).unwrap().to_string();
    place.store.copy_image("B", &snapshot, None, "{}", &CopyOptions::default()).unwrap();
    settle(&place.store, "B", &snapshot);
    place.fill("A", &disk, 70 * MIB, 4 << 20, 11);
    place.keep("A", &disk, "later");
    let options = CopyOptions::default();
    let overlay = place.store.copy_image("B", &disk, Some(&snapshot), "{}", &options).unwrap().to_string();
    settle(&place.store, "B", &overlay);
    assert_eq!(place.store.get_image_info("B", &overlay).unwrap().depth, 2);
    place.job("flatten", DATA + (4 << 20), |store| {
        store.set_image_strategy("B", &overlay, Strategy::Performance).unwrap();
        for fix in store.check_storage_repository("B", &CheckOptions::default()).unwrap() {
            let task = store.fix_storage_repository("B", &fix, &FixOptions::default()).unwrap();
            store.wait_task(&task, Some(Duration::from_mins(1))).unwrap();
        }
        assert_eq!(store.get_image_status("B", &overlay).unwrap().status, Status::Optimized);
    });
    assert_eq!(place.store.get_image_info("B", &overlay).unwrap().depth, 1);
    place.holds("B", &overlay, "later");

    // What is above is less, and goes down; or more, and what is below goes up.
    place.merge("merge down", (0, DATA), (60 * MIB, 8 << 20), 8 << 20);
    place.merge("merge up", (0, 8 << 20), (16 * MIB, DATA), 8 << 20);
}

#[test]
fn data_is_not_moved() {
    if !can_mount() {
        println!("not root: nothing is tested");
        return;
    }
    let mut lines = Vec::new();
    // One after the other: the count is of the whole process.
    for (kind, clones) in [("xfs", true), ("btrfs", true), ("ext4", false)] {
        let mut place = Place::new(kind);
        jobs(&mut place);
        for (name, data, written) in &place.table {
            lines.push((kind, clones, name.clone(), *data, *written));
        }
        place.store.close().unwrap();
    }
    for (kind, _, name, data, written) in &lines {
        println!("{kind:<6} {name:<14} {:>4} MiB of data, {written:>9} bytes written", data >> 20);
    }
    for (kind, clones, name, data, written) in lines {
        if clones {
            assert!(written < LITTLE, "{kind}: {name} wrote {written} bytes");
        } else {
            assert!(written >= data, "{kind}: {name} wrote {written} bytes of {data}");
        }
    }
}

/// A disk is made as a clone of a snapshot that is a difference without its base here, and is just brought whole, more
/// slowly than the disk's own task comes to it.
#[test]
fn a_disk_on_what_is_just_being_mended() {
    if !can_mount() {
        println!("not root: nothing is tested");
        return;
    }
    let (elsewhere, mounted) = (tempfile::tempdir().unwrap(), Mounted::new("xfs", 512));
    let store = store("here");
    new_repo(&store, elsewhere.path(), "A");
    new_repo(&store, mounted.path(), "B");
    let size = 8 * MIB;
    let disk = store.create_virtual_disk("A", Some(size), None, "{}", &off()).unwrap().to_string();
    write(&store, "A", &disk, |image| image.write(0, &vec![1; 6 << 20]));
    let base = store.create_snapshot("A", &disk, "{}", &off()).unwrap().to_string();
    write(&store, "A", &disk, |image| image.write(65536, &vec![2; 65536]));
    let snapshot = store.create_snapshot("A", &disk, "{}", &off()).unwrap().to_string();
    let partial = CopyOptions { partial: true, ..CopyOptions::default() };
    let copy = store.copy_image("B", &snapshot, Some(&base), "{}", &partial).unwrap().to_string();
    store.wait_image("B", &copy, Some(Duration::from_mins(1)), &WaitOptions::default()).unwrap();
    assert_eq!(store.get_image_status("B", &copy).unwrap().status, Status::Broken, "its base is not here");

    let slowly = CreateOptions { bandwidth: Some(Bandwidth(12 << 20)), ..off() };
    let made = store.create_virtual_disk("B", None, Some(&snapshot), "{}", &slowly).unwrap().to_string();
    settle(&store, "B", &made);
    let mut data = vec![1; size as usize];
    data[6 << 20..].fill(0);
    data[65536..131_072].fill(2);
    let file = elsewhere.path().join("expected");
    fs::write(&file, data).unwrap();
    qemu_equal(&store, "B", &made, &file);
    qemu_equal(&store, "B", &snapshot, &file);
    store.close().unwrap();
}
