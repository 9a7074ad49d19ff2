//! Merges of many layers: a line of removed images becomes one volume, each cluster read once, from its newest layer.
//!
//! `VDSMSTORE_SEED=n` repeats one random chain, `VDSMSTORE_LONG=1` takes more of them.

#![allow(
    clippy::large_stack_arrays,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::unwrap_used,
    missing_docs,
    reason = "the numbers of tests are small, and tests fail by panicking"
)]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;
use vdsmstore_core::options::{
    AutoFix, CheckOptions, CreateOptions, FixOptions, RemoveOptions, ResizeOptions,
};
use vdsmstore_core::{ErrorKind, Fix, FixType, Store};
use vdsmstore_tests::mounts::{Mounted, can_mount};
use vdsmstore_tests::scene::{Scene, fails};
use vdsmstore_tests::{PATIENCE, counted, prepared, scratch, write};

const CLUSTER: usize = 64 << 10;
const MIB: usize = 1 << 20;

/// The tests count what this process reads and writes: one at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}

/// Bytes read and written by this process, by the kernel's count.
fn moved() -> (u64, u64) {
    counted(["rchar", "wchar"]).into()
}

fn check(store: &Store) -> Vec<Fix> {
    store.check_storage_repository("A", &CheckOptions::default()).unwrap()
}

fn run(store: &Store, fix: &Fix) -> vdsmstore_core::Result<()> {
    let task = store.fix_storage_repository("A", fix, &FixOptions::default())?;
    store.wait_task(&task, Some(PATIENCE))
}

fn merges(store: &Store) -> Vec<Fix> {
    check(store).into_iter().filter(|fix| fix.fix_type == FixType::Merge).collect()
}

fn remove(store: &Store, id: &str) {
    let options = RemoveOptions { auto_fix: AutoFix::Off, ..RemoveOptions::default() };
    store.remove_image("A", id, &options).unwrap();
}

/// A disk on a chain of snapshots, with what each of them must contain.
struct Chain {
    scene: Scene,
    disk: String,
    data: Vec<u8>,
    snapshots: Vec<(String, Vec<u8>)>,
}

impl Chain {
    fn new(scene: Scene, size: usize) -> Chain {
        let disk = scene.create("A", Some(size as i64), None, &CreateOptions::default());
        Chain { scene, disk, data: vec![0; size], snapshots: Vec::new() }
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) {
        write(&self.scene.store, "A", &self.disk, |image| image.write(offset as i64, bytes));
        self.data[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn snapshot(&mut self) {
        self.snapshots.push((self.scene.snapshot("A", &self.disk), self.data.clone()));
    }

    /// Writes, zeroes and discards here and there; sometimes it grows.
    fn change(&mut self, random: &mut Random) {
        if random.below(5) == 0 {
            let size = self.data.len() + (1 + random.below(8)) * 37 * 512;
            let options = ResizeOptions::default();
            self.scene.store.resize_virtual_disk("A", &self.disk, size as i64, &options).unwrap();
            self.data.resize(size, 0);
        }
        let image = self.scene.store.open_image("A", &self.disk, true).unwrap();
        for _ in 0..=random.below(6) {
            let from = random.below(self.data.len());
            let length = (1 + random.below(3 * CLUSTER)).min(self.data.len() - from);
            let (from, length) = match random.below(3) {
                0 => (from, length),
                _ => (from / CLUSTER * CLUSTER, length.next_multiple_of(CLUSTER)),
            };
            let length = length.min(self.data.len() - from);
            let byte = if random.below(4) == 0 { 0 } else { 1 + random.below(255) as u8 };
            let (at, long) = (from as i64, length as i64);
            match (byte, random.below(3)) {
                (0, 0) => image.write_zeroes(at, long).unwrap(),
                (0, 1) => image.discard(at, long).unwrap(),
                _ => image.write(at, &vec![byte; length]).unwrap(),
            }
            self.data[from..from + length].fill(byte);
        }
        image.close().unwrap();
    }

    /// All that is left is right, by our reading and QEMU's.
    fn judge(&self, kept: impl Fn(usize) -> bool) {
        self.scene.holds("A", &self.disk, &self.data);
        for (index, (id, data)) in self.snapshots.iter().enumerate() {
            if kept(index) {
                self.scene.holds("A", id, data);
            }
        }
    }

    fn volumes(&self) -> usize {
        std::fs::read_dir(self.scene.repo("A").join("data")).unwrap().count()
    }
}

fn random_chain(seed: u64) {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let random = &mut random;
    let size = (8 + random.below(40)) * CLUSTER;
    let mut chain = Chain::new(Scene::new(), size);
    let length = 2 + random.below(39);
    for _ in 0..length {
        chain.change(random);
        chain.snapshot();
    }
    chain.change(random);
    // Some of them have another disk on them.
    let mut branches: Vec<(usize, String)> = Vec::new();
    for index in 0..length {
        if random.below(12) == 0 {
            let id =
                chain.scene.create("A", None, Some(&chain.snapshots[index].0), &CreateOptions::default());
            branches.push((index, id));
        }
    }
    let most = random.below(4) > 0;
    let removed: Vec<bool> = (0..length).map(|_| random.below(if most { 8 } else { 2 }) > 0).collect();
    let mut order: Vec<usize> = (0..length).filter(|index| removed[*index]).collect();
    for index in (1..order.len()).rev() {
        order.swap(index, random.below(index + 1));
    }
    for index in order {
        remove(&chain.scene.store, &chain.snapshots[index].0);
    }
    let goes = |index: usize| removed[index] && !branches.iter().any(|(at, _)| *at == index);
    let lines = (0..length).filter(|index| goes(*index) && (*index == 0 || !goes(*index - 1))).count();
    let gone = (0..length).filter(|index| goes(*index)).count();
    let fixes = merges(&chain.scene.store);
    assert_eq!(fixes.len(), lines, "seed {seed}: {fixes:#?}");
    let volumes = chain.volumes();
    for fix in &fixes {
        run(&chain.scene.store, fix).unwrap_or_else(|error| panic!("seed {seed}: {fix:?}: {error:?}"));
    }
    let left = check(&chain.scene.store);
    assert!(left.is_empty(), "seed {seed}: {left:#?}");
    assert_eq!(chain.volumes(), volumes - gone, "seed {seed}");
    chain.judge(|index| !removed[index]);
    for (index, id) in &branches {
        chain.scene.holds("A", id, &chain.snapshots[*index].1);
    }
    println!("seed {seed}: {length} snapshots, {gone} went in {lines} merges");
}

#[test]
fn random_chains() {
    let _alone = alone();
    if let Ok(seed) = std::env::var("VDSMSTORE_SEED") {
        return random_chain(seed.parse().unwrap());
    }
    let count = if std::env::var_os("VDSMSTORE_LONG").is_some() { 400 } else { 25 };
    let first = u64::from(std::process::id()) << 16;
    for seed in first..first + count {
        println!("VDSMSTORE_SEED={seed}");
        random_chain(seed);
    }
}

/// Thirty layers that overlap: what is read and written is what they have together, not what each has.
#[test]
fn each_cluster_moves_once() {
    let _alone = alone();
    for down in [true, false] {
        let mut chain = Chain::new(Scene::new(), 48 * MIB);
        // Down: all lies in the raw base, and small layers above it. Up: the base has little, the top the most.
        let mut random = Random(77);
        let mut union = vec![false; 48 * MIB / CLUSTER];
        chain.write(0, &vec![1; if down { 48 * MIB } else { MIB }]);
        if !down {
            union[..MIB / CLUSTER].fill(true);
        }
        chain.snapshot();
        for layer in 0..30 {
            // Each has 4 MiB in the same 24.
            let from = random.below(20 * MIB / CLUSTER);
            chain.write(from * CLUSTER, &vec![layer + 2; 4 * MIB]);
            union[from..from + 4 * MIB / CLUSTER].fill(true);
            if layer < 29 {
                chain.snapshot();
            }
        }
        if !down {
            chain.snapshot();
            let top = 12 * MIB..48 * MIB;
            chain.write(top.start, &vec![200; top.len()]);
            union[top.start / CLUSTER..].fill(false);
        }
        for (id, _) in &chain.snapshots {
            remove(&chain.scene.store, id);
        }
        let fixes = merges(&chain.scene.store);
        assert_eq!(fixes.len(), 1);
        assert_eq!(fixes[0].image_id.unwrap().to_string(), chain.snapshots[0].0, "not the lowest");
        let exact = CheckOptions { exact_cost: true };
        let fixes = chain.scene.store.check_storage_repository("A", &exact).unwrap();
        let fix = fixes.iter().find(|fix| fix.fix_type == FixType::Merge).unwrap();
        let bytes = (union.iter().filter(|has| **has).count() * CLUSTER) as u64;
        assert_eq!((fix.cost.read, fix.cost.write), (bytes, bytes));
        assert_eq!(fix.cost.needs, if down { 0 } else { bytes });
        let before = moved();
        run(&chain.scene.store, fix).unwrap();
        let after = moved();
        let (read, wrote) = (after.0 - before.0, after.1 - before.1);
        println!("down {down}: {bytes} bytes in the layers together, read {read}, written {wrote}");
        assert!(wrote >= bytes && wrote < bytes + 4 * MIB as u64, "{wrote} written for {bytes}");
        // Tables of all layers, too.
        assert!(read >= bytes && read < bytes + 12 * MIB as u64, "{read} read for {bytes}");
        assert_eq!(chain.volumes(), 1);
        let format = chain.scene.format("A", &chain.disk);
        assert_eq!(format, if down { "raw" } else { "qcow2" }, "the wrong direction");
        assert!(check(&chain.scene.store).is_empty());
        chain.judge(|_| false);
    }
}

/// Leaves this many bytes on the file system.
fn fill_up(place: &Path, leave: u64) {
    let file = File::create(place.join("filler")).unwrap();
    let block = vec![0x55; 64 << 10];
    let mut at = 0;
    loop {
        let output =
            vdsmstore_tests::run("df", &["--block-size=1", "--output=avail", place.to_str().unwrap()]);
        let text = String::from_utf8(output.stdout).unwrap();
        let available: u64 = text.lines().last().unwrap().trim().parse().unwrap();
        if available <= leave {
            break;
        }
        let now = (available - leave).min(1 << 20).next_multiple_of(4096) as usize;
        for part in block.chunks(4096).cycle().take(now / 4096) {
            file.write_all_at(part, at).unwrap();
            at += part.len() as u64;
        }
        file.sync_all().unwrap();
    }
}

/// A chain on a file system of its own, of which everything but the disk was removed.
fn on_a_small_place(mounted: &Mounted, base: &[(usize, usize)], top: (usize, usize)) -> Chain {
    let root = tempfile::tempdir_in(mounted.path()).unwrap();
    let mut chain = Chain::new(Scene::within(root), 24 * MIB);
    for (from, length) in base {
        chain.write(*from * MIB, &vec![7; *length * MIB]);
    }
    chain.snapshot();
    for layer in 0..4 {
        chain.write(top.0 * MIB + 2 * layer * CLUSTER, &vec![8 + layer as u8; 2 * CLUSTER]);
        chain.snapshot();
    }
    chain.write(top.0 * MIB, &vec![20; top.1 * MIB]);
    for (id, _) in &chain.snapshots {
        remove(&chain.scene.store, id);
    }
    chain
}

/// Up would move less, but there is no room for it: down fits into what the lowest volume has already.
#[test]
fn a_full_disk_takes_the_direction_without_space() {
    let _alone = alone();
    assert!(can_mount(), "this test mounts file systems: it needs root");
    for full in [false, true] {
        let mounted = Mounted::new("ext4", 64);
        let chain = on_a_small_place(&mounted, &[(0, 24)], (4, 18));
        if full {
            fill_up(mounted.path(), 512 << 10);
        }
        let fixes = merges(&chain.scene.store);
        assert_eq!(fixes.len(), 1);
        run(&chain.scene.store, &fixes[0]).unwrap();
        assert_eq!(chain.scene.format("A", &chain.disk), if full { "raw" } else { "qcow2" });
        assert_eq!(chain.volumes(), 1);
        assert!(check(&chain.scene.store).is_empty());
        // The judge needs a place for its file.
        let _ = std::fs::remove_file(mounted.path().join("filler"));
        chain.judge(|_| false);
    }
}

/// Neither direction fits: the error names the bytes, nothing has changed, and with space it goes on.
#[test]
fn a_full_disk_says_what_it_needs() {
    let _alone = alone();
    assert!(can_mount(), "this test mounts file systems: it needs root");
    let mounted = Mounted::new("ext4", 64);
    let chain = on_a_small_place(&mounted, &[(0, 10)], (12, 11));
    fill_up(mounted.path(), 1 << 20);
    let fixes = merges(&chain.scene.store);
    let volumes = chain.volumes();
    let error = fails(ErrorKind::NoSpace, run(&chain.scene.store, &fixes[0]));
    let needs: u64 = error.details()["needs"].as_str().unwrap().parse().unwrap();
    assert!((10 << 20..12 << 20).contains(&needs), "{error:?}");
    assert!(error.message().contains(&format!("needs {needs} bytes")), "{error:?}");
    assert_eq!(chain.volumes(), volumes);
    assert_eq!(merges(&chain.scene.store), fixes, "the same merge is still to be done, from the beginning");
    assert!(chain.scene.read("A", &chain.disk) == chain.data);
    std::fs::remove_file(mounted.path().join("filler")).unwrap();
    run(&chain.scene.store, &fixes[0]).unwrap();
    assert_eq!(chain.volumes(), 1);
    chain.judge(|_| false);
}

/// Stopped, and gone on with by another store, which does not begin again; more images were removed meanwhile.
#[test]
fn an_interrupted_merge_goes_on() {
    let _alone = alone();
    let mut chain = Chain::new(Scene::within(scratch()), 256 * MIB);
    chain.write(0, &vec![1; 160 * MIB]);
    chain.snapshot();
    for layer in 0..5 {
        chain.write(layer * 24 * MIB, &vec![2 + layer as u8; 32 * MIB]);
        chain.snapshot();
    }
    chain.write(0, &vec![9; CLUSTER]);
    // The lowest goes later: until then the merge is one of the five above it.
    for (id, _) in &chain.snapshots[1..] {
        remove(&chain.scene.store, id);
    }
    let fixes = merges(&chain.scene.store);
    assert_eq!(fixes.len(), 1);
    let slow: FixOptions = serde_json::from_value(json!({"bandwidth": 128 << 20})).unwrap();
    let task = chain.scene.store.fix_storage_repository("A", &fixes[0], &slow).unwrap();
    let deadline = Instant::now() + PATIENCE;
    let done = loop {
        let tasks = chain.scene.store.list_tasks().unwrap();
        let done = tasks.iter().find(|known| known.task_id == task).map(|known| known.bytes_done);
        assert!(done.is_some() && Instant::now() < deadline, "it was not stopped in time: {tasks:?}");
        if done.is_some_and(|done| done >= 48 << 20) {
            break done.unwrap();
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    chain.scene.store.stop_task(&task).unwrap();
    fails(ErrorKind::Stopped, chain.scene.store.wait_task(&task, Some(PATIENCE)));
    assert!(chain.scene.read("A", &chain.disk) == chain.data);
    let other = chain.scene.another();
    let before = moved();
    run(&other, &merges(&other)[0]).unwrap();
    let read = moved().0 - before.0;
    println!("stopped after {done} bytes, {read} read after that");
    assert!(read < (128 + 16) << 20, "it began again: {read}");
    assert!(chain.scene.read("A", &chain.disk) == chain.data);
    remove(&other, &chain.snapshots[0].0);
    let fixes = merges(&other);
    assert_eq!(fixes.len(), 1);
    run(&other, &fixes[0]).unwrap();
    assert_eq!(chain.volumes(), 1);
    chain.judge(|_| false);
}

/// A disk or a QEMU process that has the chain open is waited for, as long as it has it.
#[test]
fn who_has_it_open_is_respected() {
    let _alone = alone();
    let mut chain = Chain::new(Scene::new(), 4 * MIB);
    for byte in 1..6 {
        chain.write(usize::from(byte) * CLUSTER, &[byte; CLUSTER]);
        chain.snapshot();
    }
    chain.write(0, &[7; CLUSTER]);
    for (id, _) in &chain.snapshots {
        remove(&chain.scene.store, id);
    }
    let fix = merges(&chain.scene.store).remove(0);
    let open = chain.scene.store.open_image("A", &chain.disk, true).unwrap();
    assert!(merges(&chain.scene.store).is_empty());
    fails(ErrorKind::ImageInUse, run(&chain.scene.store, &fix));
    open.close().unwrap();
    let (path, format) = prepared(&chain.scene.store, "A", &chain.disk, |prepared| {
        (prepared.path.clone(), prepared.format.clone())
    });
    let nbd = vdsmstore_tests::qemu::Nbd::start(&path, &format, true);
    fails(ErrorKind::ImageInUse, run(&chain.scene.store, &fix));
    nbd.stop();
    run(&chain.scene.store, &fix).unwrap();
    assert_eq!(chain.volumes(), 1);
    chain.judge(|_| false);
}

/// Any image of the line names the same merge; after it, none does.
#[test]
fn a_fix_for_part_of_a_line() {
    let _alone = alone();
    let mut chain = Chain::new(Scene::new(), 4 * MIB);
    for byte in 1..7 {
        chain.write(usize::from(byte) * CLUSTER, &[byte; CLUSTER]);
        chain.snapshot();
    }
    chain.write(0, &[7; CLUSTER]);
    let mut fixes = Vec::new();
    for index in [4, 2, 3, 1] {
        remove(&chain.scene.store, &chain.snapshots[index].0);
        fixes.extend(merges(&chain.scene.store));
    }
    // 4 alone; 2, and 4 alone; 2 to 4; 1 to 4.
    assert_eq!(fixes.len(), 5);
    for fix in fixes {
        run(&chain.scene.store, &fix).unwrap();
        assert!(check(&chain.scene.store).is_empty());
        assert_eq!(chain.volumes(), 3);
    }
    chain.judge(|index| index == 0 || index == 5);
}
