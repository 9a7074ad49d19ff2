//! By which means bytes move between two devices, and that they arrive: on the file systems that hosts have, a block device,
//! memory. Needs root.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "tests fail by panicking; numbers are small"
)]

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use vdsmstore_core::options::{CopyOptions, CreateOptions, RemoveOptions};
use vdsmstore_io::plan::{self, Plan, Target};
use vdsmstore_io::qcow2::{self, CreateOptions as NewFile};
use vdsmstore_io::{
    Control, ErrorKind, FileDevice, Format, Image, Layer, Outcome, compare, compress, execute,
};
use vdsmstore_tests::mounts::{Mounted, can_mount};
use vdsmstore_tests::{new_repo, qemu_equal, run, scratch, settle, store, write};

const MIB: u64 = 1 << 20;
/// Not a multiple of a block: the end is left to others.
const SIZE: u64 = 40 * MIB + 1536;
/// Of a qcow2 file.
const NEW: NewFile = NewFile { size: SIZE, backing: None, preallocate_metadata: false };
/// Bytes that are not zero.
const DATA: u64 = 20 * MIB + 1536;

/// Holes, data in large and small pieces, written zeroes, and an end that is no whole block.
fn source(path: &Path) {
    let file = File::create(path).unwrap();
    file.set_len(SIZE).unwrap();
    let mut seed = 1u64;
    let mut noise = |length: u64| -> Vec<u8> {
        let mut bytes = vec![0; length as usize];
        for byte in &mut bytes {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = (seed >> 56) as u8 | 1;
        }
        bytes
    };
    file.write_all_at(&noise(8 * MIB), 0).unwrap();
    for piece in 0..64 {
        file.write_all_at(&noise(64 << 10), 9 * MIB + piece * (128 << 10)).unwrap();
    }
    file.write_all_at(&vec![0; 4 * MIB as usize], 20 * MIB).unwrap();
    file.write_all_at(&noise(8 * MIB + 1536), 32 * MIB).unwrap();
    file.sync_all().unwrap();
}

/// Nothing of the file is in the page cache.
fn forget(path: &Path) {
    let file = File::open(path).unwrap();
    file.sync_all().unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
}

fn open(path: &Path, format: Format, writable: bool) -> Image {
    let device = Arc::new(FileDevice::open(path, writable).unwrap());
    Image::open(vec![Layer { device, format, size: SIZE }], writable).unwrap()
}

fn empty(path: &Path, format: Format) {
    let device = FileDevice::create_new(path).unwrap();
    match format {
        Format::Raw => device.file().set_len(SIZE).unwrap(),
        Format::Qcow2 => {
            qcow2::create(&device, &NEW).unwrap();
        }
    }
}

fn copy(source: &Image, target: &Image, known_zero: bool) -> vdsmstore_io::Result<Outcome> {
    let plan = plan::copy(source, None, Target { backed: false, known_zero }, 0, SIZE)?;
    carry_out(&plan, source, target)
}

fn carry_out(plan: &Plan, source: &Image, target: &Image) -> vdsmstore_io::Result<Outcome> {
    let progress = AtomicU64::new(0);
    let add = |bytes| {
        progress.fetch_add(bytes, Ordering::Relaxed);
    };
    let control = Control { cancel: &|| false, progress: &add, threads: 2 };
    let outcome = execute(plan, source, None, target, &control)?;
    target.flush()?;
    assert_eq!(progress.load(Ordering::Relaxed), SIZE);
    Ok(outcome)
}

/// What QEMU says, and our own comparison, which takes the same means.
fn same(source: &Path, from: Format, target: &Path, to: Format) {
    let (a, b) = (source.to_str().unwrap(), target.to_str().unwrap());
    run("qemu-img", &["compare", "-f", &from.to_string(), "-F", &to.to_string(), a, b]);
    if to == Format::Qcow2 {
        run("qemu-img", &["check", "-f", "qcow2", b]);
    }
    forget(target);
    let control = Control { cancel: &|| false, progress: &|_| {}, threads: 2 };
    assert_eq!(compare(&open(source, from, false), &open(target, to, false), &control).unwrap(), None);
    // The last byte of a piece in the middle.
    let last = 9 * MIB + (64 << 10) - 1;
    let change = open(target, to, true);
    let mut byte = [0];
    change.read(last, &mut byte).unwrap();
    change.write(last, &[byte[0] ^ 2]).unwrap();
    change.flush().unwrap();
    drop(change);
    let found = compare(&open(source, from, false), &open(target, to, false), &control).unwrap();
    assert_eq!(found, Some(last));
}

fn ext4(mebibytes: u64) -> Option<Mounted> {
    if !can_mount() {
        println!("not root: nothing is tested");
        return None;
    }
    Some(Mounted::new("ext4", mebibytes))
}

struct Loop(PathBuf);

impl Loop {
    fn new(file: &Path, size: u64) -> Loop {
        File::create(file).and_then(|file| file.set_len(size)).unwrap();
        let output = run("losetup", &["-f", "--show", file.to_str().unwrap()]);
        Loop(String::from_utf8(output.stdout).unwrap().trim().into())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}

#[test]
fn each_pair_of_devices_has_its_means() {
    if !can_mount() {
        println!("not root: nothing is tested");
        return;
    }
    let mounted = ["ext4", "xfs", "btrfs"].map(|kind| (kind, Mounted::new(kind, 512)));
    let memory = scratch();
    run("mount", &["-t", "tmpfs", "tmpfs", memory.path().to_str().unwrap()]);
    let keep = scratch();
    let exact = Loop::new(&keep.path().join("exact"), SIZE);
    let larger = Loop::new(&keep.path().join("larger"), 48 * MIB);
    let place = |kind: &str| match mounted.iter().find(|(other, _)| *other == kind) {
        Some((_, mounted)) => mounted.path().to_path_buf(),
        None => memory.path().to_path_buf(),
    };
    for kind in ["ext4", "xfs", "btrfs", "tmpfs"] {
        source(&place(kind).join("source"));
    }
    let (direct, cloned, cached) = (true, true, false);
    let pairs = [
        ("ext4", "ext4", Format::Raw, direct, false),
        ("ext4", "ext4", Format::Qcow2, direct, false),
        ("ext4", "xfs", Format::Qcow2, direct, false),
        ("xfs", "ext4", Format::Raw, direct, false),
        ("xfs", "xfs", Format::Raw, false, cloned),
        ("xfs", "xfs", Format::Qcow2, false, cloned),
        ("btrfs", "btrfs", Format::Raw, false, cloned),
        ("tmpfs", "tmpfs", Format::Raw, cached, false),
        ("ext4", "block", Format::Raw, direct, false),
        ("ext4", "block", Format::Qcow2, direct, false),
    ];
    for (from, to, format, direct, cloned) in pairs {
        let source = place(from).join("source");
        let block = if format == Format::Raw { &exact.0 } else { &larger.0 };
        let target = if to == "block" { block.clone() } else { place(to).join("target") };
        if to == "block" {
            // Old bytes of somebody else.
            let of = format!("of={}", target.display());
            run("dd", &["if=/dev/urandom", &of, "bs=1M", "count=40", "conv=fsync"]);
            if format == Format::Qcow2 {
                let device = FileDevice::open(&target, true).unwrap();
                qcow2::create(&device, &NEW).unwrap();
            }
        } else {
            empty(&target, format);
        }
        forget(&source);
        let outcome = {
            let (from, into) = (open(&source, Format::Raw, false), open(&target, format, true));
            copy(&from, &into, to != "block" || format == Format::Qcow2).unwrap()
        };
        let what = format!("{from} to {format} on {to}: {outcome:?}");
        // Some units are only partly data.
        assert!((DATA..DATA + 5 * MIB).contains(&(outcome.written + outcome.cloned)), "{what}");
        assert_eq!(outcome.cloned > 0, cloned, "{what}");
        // No server is there.
        assert_eq!(outcome.offloaded, 0, "{what}");
        assert_eq!(outcome.direct > DATA - MIB, direct, "{what}");
        if !direct {
            assert_eq!(outcome.direct, 0, "{what}");
        }
        println!("{what}");
        same(&source, Format::Raw, &target, format);
        if to != "block" {
            let taken = std::os::unix::fs::MetadataExt::blocks(&target.metadata().unwrap()) * 512;
            assert!(cloned || taken <= DATA + MIB, "{what}: {taken} bytes are taken");
            std::fs::remove_file(&target).unwrap();
        }
    }
    run("umount", &[memory.path().to_str().unwrap()]);
}

/// With its holes, of which nobody has to ask for each.
#[test]
fn a_raw_file_is_cloned_at_once() {
    if !can_mount() {
        println!("not root: nothing is tested");
        return;
    }
    for (kind, clones) in [("xfs", true), ("btrfs", true), ("ext4", false)] {
        let mounted = Mounted::new(kind, 512);
        let (from, to) = (mounted.path().join("source"), mounted.path().join("target"));
        source(&from);
        empty(&to, Format::Raw);
        let (source, target) = (open(&from, Format::Raw, false), open(&to, Format::Raw, true));
        let plan = plan::clone(&source, &target).unwrap();
        assert_eq!(plan.is_some(), clones, "{kind}");
        let Some(plan) = plan else { continue };
        assert_eq!(plan.moves().len(), 1, "{kind}: {plan:?}");
        let outcome = carry_out(&plan, &source, &target).unwrap();
        let (blocks, end) = (SIZE / 4096 * 4096, SIZE % 4096);
        assert_eq!(
            (outcome.cloned, outcome.read, outcome.written),
            (blocks, end, end),
            "{kind}: {outcome:?}"
        );
        drop((source, target));
        let taken = |path: &Path| std::os::unix::fs::MetadataExt::blocks(&path.metadata().unwrap());
        assert!(taken(&to) <= taken(&from) + 8, "{kind}: {} of {}", taken(&to), taken(&from));
        same(&from, Format::Raw, &to, Format::Raw);
    }
}

#[test]
fn compressed_clusters_are_read_in_another_way() {
    let Some(dir) = ext4(512) else { return };
    let at = |name: &str| dir.path().join(name);
    source(&at("raw"));
    let control = Control { cancel: &|| false, progress: &|_| {}, threads: 2 };
    // Half of it compressed, half of it plain.
    let (packed, flat) = (at("packed"), at("flat"));
    let device = FileDevice::create_new(&packed).unwrap();
    let layout = qcow2::Layout { compression: qcow2::Compression::Zstd, ..qcow2::Layout::default() };
    qcow2::create_with(&device, &NEW, &layout).unwrap();
    {
        let (from, into) = (open(&at("raw"), Format::Raw, false), open(&packed, Format::Qcow2, true));
        compress(&from, &into, 0, 16 * MIB, &control).unwrap();
        forget(&at("raw"));
        let known = Target { backed: false, known_zero: true };
        let plan = plan::copy(&from, None, known, 16 * MIB, SIZE - 16 * MIB).unwrap();
        assert!(execute(&plan, &from, None, &into, &control).unwrap().direct > 8 * MIB - 1);
        into.flush().unwrap();
    }
    forget(&packed);
    empty(&flat, Format::Raw);
    let outcome = copy(&open(&packed, Format::Qcow2, false), &open(&flat, Format::Raw, true), true).unwrap();
    assert!(outcome.direct >= 8 * MIB && outcome.direct < outcome.written, "{outcome:?}");
    same(&packed, Format::Qcow2, &flat, Format::Raw);
}

#[test]
fn what_ends_it_leaves_it_to_be_done_again() {
    let Some(dir) = ext4(512) else { return };
    let at = |name: &str| dir.path().join(name);
    source(&at("raw"));
    for format in [Format::Raw, Format::Qcow2] {
        let target = at(&format!("target-{format}"));
        empty(&target, format);
        forget(&at("raw"));
        let (from, into) = (open(&at("raw"), Format::Raw, false), open(&target, format, true));
        let (done, cancelled) = (AtomicU64::new(0), AtomicBool::new(false));
        let progress = |bytes| {
            done.fetch_add(bytes, Ordering::Relaxed);
        };
        let cancel = || {
            let now = done.load(Ordering::Relaxed) > 24 * MIB;
            cancelled.fetch_or(now, Ordering::Relaxed);
            now
        };
        let control = Control { cancel: &cancel, progress: &progress, threads: 2 };
        let known = Target { backed: false, known_zero: true };
        let plan = plan::copy(&from, None, known, 0, SIZE).unwrap();
        let error = execute(&plan, &from, None, &into, &control).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled);
        assert!(cancelled.load(Ordering::Relaxed));
        into.flush().unwrap();
        // Of what was begun nothing is known.
        copy(&from, &into, false).unwrap();
        drop((from, into));
        same(&at("raw"), Format::Raw, &target, format);
    }
}

#[test]
fn a_file_that_becomes_shorter_is_an_error() {
    let Some(dir) = ext4(512) else { return };
    let (raw, target) = (dir.path().join("raw"), dir.path().join("target"));
    source(&raw);
    empty(&target, Format::Raw);
    forget(&raw);
    let (from, into) = (open(&raw, Format::Raw, false), open(&target, Format::Raw, true));
    let plan = plan::copy(&from, None, Target { backed: false, known_zero: true }, 0, SIZE).unwrap();
    let cut = AtomicBool::new(false);
    let cancel = || {
        if !cut.swap(true, Ordering::Relaxed) {
            OpenOptions::new().write(true).open(&raw).unwrap().set_len(36 * MIB + 512).unwrap();
        }
        false
    };
    let control = Control { cancel: &cancel, progress: &|_| {}, threads: 2 };
    let error = execute(&plan, &from, None, &into, &control).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ShortRead, "{error:?}");
    assert!(error.to_string().contains(raw.to_str().unwrap()), "{error}");
}

#[test]
fn a_full_file_system_is_an_error_with_the_path() {
    let (Some(small), Some(dir)) = (ext4(16), ext4(512)) else { return };
    source(&dir.path().join("raw"));
    for format in [Format::Raw, Format::Qcow2] {
        let target = small.path().join("target");
        empty(&target, format);
        let (from, into) = (open(&dir.path().join("raw"), Format::Raw, false), open(&target, format, true));
        let error = copy(&from, &into, true).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace, "{error:?}");
        assert!(error.to_string().contains(target.to_str().unwrap()), "{error}");
        drop(into);
        if format == Format::Qcow2 {
            let status =
                Command::new("qemu-img").args(["check", "-f", "qcow2"]).arg(&target).status().unwrap();
            // 3: leaks, nothing worse.
            assert!(matches!(status.code(), Some(0 | 3)), "{status}");
        }
        std::fs::remove_file(&target).unwrap();
    }
}

/// The medium of a block device is gone from some place on: what is read there fails, and says where.
#[test]
fn a_device_that_fails_is_named_with_the_place() {
    let Some(dir) = ext4(512) else { return };
    let (file, target) = (dir.path().join("medium"), dir.path().join("target"));
    let block = Loop::new(&file, SIZE);
    source(&file);
    let gone = 34 * MIB;
    for format in [Format::Raw, Format::Qcow2] {
        let _ = std::fs::remove_file(&target);
        empty(&target, format);
        File::options().write(true).open(&file).unwrap().set_len(gone).unwrap();
        forget(&block.0);
        let (from, into) = (open(&block.0, Format::Raw, false), open(&target, format, true));
        let error = copy(&from, &into, true).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io, "{error:?}");
        let text = error.to_string();
        assert!(text.contains(block.0.to_str().unwrap()), "{text}");
        assert!(error.offset().is_some_and(|offset| offset >= gone - MIB), "{text}");
        drop(from);
        // It is there again: the same target is completed.
        source(&file);
        forget(&block.0);
        let from = open(&block.0, Format::Raw, false);
        assert!(copy(&from, &into, false).unwrap().direct >= DATA - MIB);
        drop((from, into));
        same(&file, Format::Raw, &target, format);
    }
}

/// Bytes of the files of a repository's volumes that are in the page cache.
fn cached(repo: &Path) -> u64 {
    let volumes = std::fs::read_dir(repo.join("data")).unwrap();
    let paths: Vec<String> =
        volumes.map(|entry| entry.unwrap().path().to_str().unwrap().to_owned()).collect();
    assert!(!paths.is_empty());
    let mut arguments = vec!["--bytes", "--noheadings", "--output", "RES"];
    arguments.extend(paths.iter().map(String::as_str));
    let output = run("fincore", &arguments);
    String::from_utf8(output.stdout).unwrap().lines().map(|line| line.trim().parse::<u64>().unwrap()).sum()
}

#[test]
fn imports_copies_and_merges_leave_the_page_cache_alone() {
    let Some(dir) = ext4(1024) else { return };
    let file = dir.path().join("raw");
    source(&file);
    let store = store("here");
    let repos = ["A", "B"].map(|name| new_repo(&store, dir.path(), name));
    forget(&file);
    let disk =
        store.import_image("A", file.to_str().unwrap(), "raw", "{}", &CreateOptions::default()).unwrap();
    let disk = disk.to_string();
    settle(&store, "A", &disk);
    // Ends that are no whole blocks, tables.
    let little = MIB;
    assert!(cached(&repos[0]) < little, "{}", cached(&repos[0]));
    let lower = store.create_snapshot("A", &disk, "{}", &CreateOptions::default()).unwrap().to_string();
    write(&store, "A", &disk, |image| image.write(12 * MIB as i64, &vec![7; 8 * MIB as usize]));
    let upper = store.create_snapshot("A", &disk, "{}", &CreateOptions::default()).unwrap().to_string();
    for volume in std::fs::read_dir(repos[0].join("data")).unwrap() {
        forget(&volume.unwrap().path());
    }
    let copy = store.copy_image("B", &upper, None, "{}", &CopyOptions::default()).unwrap().to_string();
    settle(&store, "B", &copy);
    assert!(cached(&repos[1]) < little, "{}", cached(&repos[1]));
    store.remove_image("A", &lower, &RemoveOptions::default()).unwrap();
    while !store.list_tasks().unwrap().is_empty() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert!(cached(&repos[0]) < little, "{}", cached(&repos[0]));
    let model = open(&file, Format::Raw, true);
    model.write(12 * MIB, &vec![7; 8 * MIB as usize]).unwrap();
    drop(model);
    qemu_equal(&store, "A", &upper, &file);
    qemu_equal(&store, "B", &copy, &file);
}
