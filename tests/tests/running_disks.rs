//! Disks that somebody writes, on storage that clones: snapshots and copies of them are one moment, and whoever writes
//! is not disturbed. Needs root, for XFS and btrfs.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::large_stack_arrays,
    clippy::unwrap_used,
    reason = "the numbers of tests are small, and tests fail by panicking"
)]

use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use vdsmstore_core::options::{
    AutoFix, Bandwidth, CheckOptions, CopyOptions, CreateOptions, ExportOptions, FixOptions, ForceOptions,
    ListOptions, MeasureOptions, PrepareOptions, RemoveOptions,
};
use vdsmstore_core::{FixType, Status, Store};
use vdsmstore_tests::mounts::{Mounted, can_mount};
use vdsmstore_tests::qemu::Nbd;
use vdsmstore_tests::{new_repo, run, settle, store, write};

const BLOCK: usize = 64 << 10;
const BLOCKS: usize = 128;
const SIZE: usize = BLOCKS * BLOCK;

struct Place {
    kind: &'static str,
    mounted: Mounted,
    store: Store,
    other: Store,
}

impl Place {
    fn new(kind: &'static str) -> Place {
        let mounted = Mounted::new(kind, 2048);
        let (store, other) = (store("one"), store("other"));
        for name in ["A", "B"] {
            new_repo(&store, mounted.path(), name);
            let path = vdsmstore_tests::at(&mounted.path().join(name));
            other.connect_storage_repository(name, "localfs-1.0", &path).unwrap();
        }
        Place { kind, mounted, store, other }
    }

    fn disk(&self) -> String {
        let size = Some(SIZE as i64);
        self.store.create_virtual_disk("A", size, None, "{}", &CreateOptions::default()).unwrap().to_string()
    }

    fn read(&self, repo: &str, id: &str) -> Vec<u8> {
        let image = self.other.open_image(repo, id, false).unwrap();
        let mut data = vec![0; SIZE];
        image.read(0, &mut data).unwrap();
        image.close().unwrap();
        data
    }

    /// The round of each block, which must be whole.
    fn rounds(&self, repo: &str, id: &str) -> Vec<u8> {
        let data = self.read(repo, id);
        let of = |block: &[u8]| {
            assert!(block.iter().all(|byte| *byte == block[0]), "{}: a block is torn", self.kind);
            block[0]
        };
        data.chunks(BLOCK).map(of).collect()
    }

    /// What a writer leaves that goes over the blocks in order, round after round, at one moment.
    fn is_one_moment(&self, repo: &str, id: &str) -> bool {
        let rounds = self.rounds(repo, id);
        let change = rounds.windows(2).filter(|pair| pair[0] != pair[1]).count();
        let (first, last) = (rounds[0], rounds[BLOCKS - 1]);
        let ok = change <= 1 && (first == last || first == last.wrapping_add(1));
        assert!(ok, "{}: image {id} in {repo} is no moment: {rounds:?}", self.kind);
        change == 1
    }

    fn fix_all(&self) {
        for _ in 0..10 {
            let fixes: Vec<_> = ["A", "B"]
                .into_iter()
                .flat_map(|repo| {
                    let found = self.other.check_storage_repository(repo, &CheckOptions::default()).unwrap();
                    found.into_iter().map(move |fix| (repo, fix))
                })
                .collect();
            if fixes.is_empty() {
                return;
            }
            for (repo, fix) in fixes {
                let task = self.other.fix_storage_repository(repo, &fix, &FixOptions::default()).unwrap();
                self.other.wait_task(&task, Some(Duration::from_mins(1))).unwrap();
            }
        }
        panic!("{}: the fixes do not end", self.kind);
    }
}

fn chosen(task: &str, bandwidth: u64) -> CopyOptions {
    let bandwidth = Some(Bandwidth(bandwidth));
    CopyOptions { task_id: Some(task.to_owned()), bandwidth, ..CopyOptions::default() }
}

/// A writer in this process, through the store, for as long as `work` takes.
fn with_writer<T>(place: &Place, disk: &str, work: impl FnOnce() -> T) -> T {
    let (stop, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    let image = place.store.open_image("A", disk, true).unwrap();
    let result = thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1_u64.. {
                for block in 0..BLOCKS {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    image.write((block * BLOCK) as i64, &[round as u8; BLOCK]).unwrap();
                }
                rounds.store(round, Ordering::Relaxed);
            }
        });
        while rounds.load(Ordering::Relaxed) == 0 {
            thread::sleep(Duration::from_millis(1));
        }
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        stop.store(true, Ordering::Relaxed);
        result
    });
    image.close().unwrap();
    assert!(rounds.load(Ordering::Relaxed) > 0);
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn snapshots_and_copies(place: &Place) {
    let disk = place.disk();
    let mut images = Vec::new();
    with_writer(place, &disk, || {
        for number in 0..12 {
            // From this store and from another, which is another host.
            let store = if number % 2 == 0 { &place.store } else { &place.other };
            let options = CreateOptions {
                // The moment is the call's, whatever is asked for.
                auto_fix: if number % 3 == 0 { AutoFix::Off } else { AutoFix::On },
                ..CreateOptions::default()
            };
            let id = store.create_snapshot("A", &disk, "{}", &options).unwrap().to_string();
            assert_eq!(store.get_image_status("A", &id).unwrap().status, Status::Optimized);
            images.push(("A", id));
        }
        for number in 0..4 {
            let (store, mutable) = if number % 2 == 0 { (&place.store, true) } else { (&place.other, false) };
            let options = CopyOptions { mutable, ..CopyOptions::default() };
            let id = store.copy_image("B", &disk, None, "{}", &options).unwrap().to_string();
            settle(store, "B", &id);
            images.push(("B", id));
        }
        // Into a file, by another store; and what differs.
        let path = place.mounted.path().join("exported");
        let text = path.to_str().unwrap();
        let task = place.other.export_image("A", &disk, text, "raw", &ExportOptions::default()).unwrap();
        place.other.wait_task(&task, Some(Duration::from_mins(1))).unwrap();
        let imported = place.other.import_image("B", text, "raw", "{}", &CreateOptions::default()).unwrap();
        settle(&place.other, "B", &imported.to_string());
        std::fs::remove_file(path).unwrap();
        images.push(("B", imported.to_string()));
        let mut difference = place.other.diff_images("A", &disk, Some(&images[0].1)).unwrap();
        let pieces = difference.next_batch(10_000).unwrap();
        drop(difference);
        let differs: u64 = pieces.iter().map(|piece| piece.length).sum();
        assert!(differs > 0 && differs <= SIZE as u64, "{}: {differs}", place.kind);
        let measured = place.other.measure_image("A", &disk, None, &MeasureOptions::default()).unwrap();
        assert!(measured.required >= SIZE as u64, "{}: {measured:?}", place.kind);
        // With a base in the target that is a snapshot, and one that is a disk.
        for base in [&images[13].1.clone(), &images[12].1.clone()] {
            let options = CopyOptions::default();
            let id = place.other.copy_image("B", &disk, Some(base), "{}", &options).unwrap().to_string();
            settle(&place.other, "B", &id);
            images.push(("B", id));
        }
    });
    let within = images.iter().filter(|(repo, id)| place.is_one_moment(repo, id)).count();
    println!("{}: {} images of a running disk, {within} in the middle of a round", place.kind, images.len());
    assert!(within > 0, "{}: nothing was written meanwhile", place.kind);
    let moments: std::collections::BTreeSet<_> =
        images.iter().map(|(repo, id)| place.rounds(repo, id)).collect();
    assert!(moments.len() > 1, "{}: the moments are all the same", place.kind);
    place.fix_all();
    for (repo, id) in &images {
        place.is_one_moment(repo, id);
        place.other.remove_image(repo, id, &RemoveOptions::default()).unwrap();
    }
    place.store.remove_image("A", &disk, &RemoveOptions::default()).unwrap();
    place.fix_all();
}

/// The base of a copy is a disk in the target that is being written.
fn a_running_base(place: &Place) {
    let disk = place.disk();
    write(&place.store, "A", &disk, |image| image.write(0, &vec![9; SIZE]));
    let base = place.disk();
    let copy = with_writer(place, &base, || {
        let options = CopyOptions::default();
        let copy = place.other.copy_image("A", &disk, Some(&base), "{}", &options).unwrap().to_string();
        settle(&place.other, "A", &copy);
        copy
    });
    assert!(place.read("A", &copy) == vec![9; SIZE], "{}: the copy is not the source", place.kind);
    for id in [&disk, &base] {
        place.store.remove_image("A", id, &RemoveOptions::default()).unwrap();
    }
    place.fix_all();
    assert!(place.read("A", &copy) == vec![9; SIZE], "{}: the copy changed", place.kind);
    place.store.remove_image("A", &copy, &RemoveOptions::default()).unwrap();
    place.fix_all();
}

/// Waits until the only task has done so much, in per cent.
fn until_done(place: &Place, percent: i32) {
    loop {
        let tasks = place.store.list_tasks().unwrap();
        let [task] = &tasks[..] else { panic!("{}: {} tasks", place.kind, tasks.len()) };
        if task.percent_complete >= percent {
            return;
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// A long copy is the moment at which it began; the disk is free meanwhile.
fn a_long_copy(place: &Place, far: &Mounted) {
    new_repo(&place.store, far.path(), "far");
    let disk = place.disk();
    write(&place.store, "A", &disk, |image| image.write(0, &vec![5; SIZE]));
    let id = place.store.copy_image("far", &disk, None, "{}", &chosen("long", 4 << 20)).unwrap().to_string();
    until_done(place, 10);
    write(&place.other, "A", &disk, |image| image.write(0, &vec![6; SIZE]));
    // The disk was written: what was copied is of no use, and the whole is the moment at which it goes on.
    place.store.stop_task("long").unwrap();
    let status = place.store.get_image_status("far", &id).unwrap();
    assert_eq!(status.status, Status::Broken, "{}: the copy ended before it was stopped", place.kind);
    let fixes = place.store.check_storage_repository("far", &CheckOptions::default()).unwrap();
    let fix = fixes.iter().find(|fix| fix.fix_type == FixType::Mend).unwrap();
    let task = place.store.fix_storage_repository("far", fix, &FixOptions::default()).unwrap();
    until_done(place, 60);
    write(&place.other, "A", &disk, |image| image.write(0, &vec![7; SIZE]));
    place.store.wait_task(&task, Some(Duration::from_mins(1))).unwrap();
    let image = place.store.open_image("far", &id, false).unwrap();
    let mut data = vec![0; SIZE];
    image.read(0, &mut data).unwrap();
    image.close().unwrap();
    assert!(data == vec![6; SIZE], "{}: {} then {}", place.kind, data[0], data[SIZE - 1]);
    place.store.remove_image("A", &disk, &RemoveOptions::default()).unwrap();
    place.fix_all();
}

/// QEMU writes a prepared disk; what it has flushed is in every snapshot and copy that is made later.
fn a_guest(place: &Place, backed: bool) {
    let blank = place.disk();
    write(&place.store, "A", &blank, |image| image.write(0, &vec![255; SIZE]));
    let (repo, disk) = if backed {
        let options = CopyOptions { mutable: false, ..CopyOptions::default() };
        let base = place.store.copy_image("B", &blank, None, "{}", &options).unwrap().to_string();
        settle(&place.store, "B", &base);
        let options = CopyOptions::default();
        let disk = place.store.copy_image("B", &blank, Some(&base), "{}", &options).unwrap().to_string();
        settle(&place.store, "B", &disk);
        ("B", disk)
    } else {
        ("A", blank.clone())
    };
    let prepared = place.store.prepare_image(repo, &disk, &PrepareOptions::default()).unwrap();
    assert_eq!(prepared.format, if backed { "qcow2" } else { "raw" });
    let guest = Nbd::start(&prepared.path, &prepared.format, false);
    let mut images = Vec::new();
    for round in 1..8_u8 {
        // The first half is written and flushed; the second is on its way.
        let half = SIZE / 2;
        run(
            "qemu-io",
            &["-f", "raw", "-c", &format!("write -P {round} 0 {half}"), "-c", "flush", &guest.uri()],
        );
        let mut writing = running(&guest.uri(), round, half);
        thread::sleep(Duration::from_millis(u64::from(round) * 3));
        let id = place.other.create_snapshot(repo, &disk, "{}", &CreateOptions::default()).unwrap();
        let target = if round % 2 == 0 { "A" } else { "B" };
        let copy = place.other.copy_image(target, &disk, None, "{}", &CopyOptions::default()).unwrap();
        settle(&place.other, target, &copy.to_string());
        assert!(writing.wait().unwrap().success());
        images.push((repo, id.to_string(), round));
        images.push((target, copy.to_string(), round));
    }
    guest.stop();
    place.store.teardown_image(repo, &disk, &ForceOptions::default()).unwrap();
    for (repo, id, round) in &images {
        let rounds = place.rounds(repo, id);
        assert!(rounds[..BLOCKS / 2].iter().all(|found| found == round), "{}: {rounds:?}", place.kind);
        let next = |found: &u8| *found == *round || *found == round - 1 || *found == 255;
        assert!(rounds[BLOCKS / 2..].iter().all(next), "{}: {rounds:?}", place.kind);
        let prepared = place.other.prepare_image(repo, id, &PrepareOptions { read_only: true });
        let prepared = prepared.unwrap();
        if prepared.format == "qcow2" {
            // As after the death of a guest: leaks at most.
            let status = Command::new("qemu-img")
                .args(["check", "-q", "-f", "qcow2", &prepared.path])
                .status()
                .unwrap();
            assert!(matches!(status.code(), Some(0 | 3)), "{}: {status}", place.kind);
        }
        place.other.teardown_image(repo, id, &ForceOptions::default()).unwrap();
    }
    place.fix_all();
    for (repo, id, _) in &images {
        place.other.remove_image(repo, id, &RemoveOptions::default()).unwrap();
    }
    for repo in ["A", "B"] {
        for id in place.store.list_images(repo, &ListOptions::default()).unwrap() {
            place.store.remove_image(repo, &id.to_string(), &RemoveOptions::default()).unwrap();
        }
    }
    place.fix_all();
    for repo in ["A", "B"] {
        let data = place.mounted.path().join(repo).join("data");
        assert_eq!(std::fs::read_dir(data).unwrap().count(), 0, "{}: volumes are left in {repo}", place.kind);
    }
}

fn running(uri: &str, round: u8, half: usize) -> Child {
    let mut command = Command::new("qemu-io");
    command.args(["-f", "raw"]);
    for block in 0..BLOCKS / 2 {
        command.args(["-c", &format!("write -q -P {round} {} {BLOCK}", half + block * BLOCK)]);
    }
    command.arg(uri).stdout(Stdio::null()).spawn().unwrap()
}

fn scenario(kind: &'static str) {
    if !can_mount() {
        println!("not root: nothing is tested");
        return;
    }
    let place = Place::new(kind);
    let far = Mounted::new("ext4", 256);
    snapshots_and_copies(&place);
    a_running_base(&place);
    a_long_copy(&place, &far);
    a_guest(&place, false);
    a_guest(&place, true);
}

#[test]
fn xfs() {
    scenario("xfs");
}

#[test]
fn btrfs() {
    scenario("btrfs");
}
