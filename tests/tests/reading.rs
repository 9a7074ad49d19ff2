//! Reading past the page cache where nothing is moved as it is: what differs is listed, clusters are compressed, and what two
//! files share is not read. Needs root.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "tests fail by panicking; numbers are small"
)]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vdsmstore_io::plan::{self, Target};
use vdsmstore_io::qcow2::{self, Backing, CreateOptions as NewFile};
use vdsmstore_io::{
    Action, Control, ErrorKind, FileDevice, Format, Image, Layer, Outcome, compare, compress, diff, execute,
};
use vdsmstore_tests::mounts::{Mounted, can_mount};
use vdsmstore_tests::run;

const MIB: u64 = 1 << 20;
/// Not a multiple of a block.
const SIZE: u64 = 40 * MIB + 1536;
const UNIT: usize = 64 << 10;

/// Bytes that are no zeroes, others for each seed.
fn noise(mut seed: u64, length: u64) -> Vec<u8> {
    let mut byte = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 56) as u8 | 1
    };
    (0..length).map(|_| byte()).collect()
}

/// Data, a hole, written zeroes.
fn disk(path: &Path) {
    let file = File::create(path).unwrap();
    file.set_len(SIZE).unwrap();
    file.write_all_at(&noise(1, 16 * MIB), 0).unwrap();
    file.write_all_at(&vec![0; 3 * MIB as usize], 20 * MIB).unwrap();
    file.write_all_at(&noise(2, 12 * MIB + 1536), 28 * MIB).unwrap();
    file.sync_all().unwrap();
}

/// Nothing of the file is in the page cache.
fn forget(path: &Path) {
    let file = File::open(path).unwrap();
    file.sync_all().unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
}

fn forget_all(paths: &[&Path]) {
    for path in paths {
        forget(path);
    }
}

/// Bytes of files that are in the page cache.
fn cached(paths: &[&Path]) -> u64 {
    let mut arguments = vec!["--bytes", "--noheadings", "--output", "RES"];
    arguments.extend(paths.iter().map(|path| path.to_str().unwrap()));
    let output = run("fincore", &arguments);
    String::from_utf8(output.stdout).unwrap().lines().map(|line| line.trim().parse::<u64>().unwrap()).sum()
}

fn layer(path: &Path, format: Format, writable: bool) -> Layer {
    Layer { device: Arc::new(FileDevice::open(path, writable).unwrap()), format, size: SIZE }
}

fn open(path: &Path, format: Format) -> Image {
    Image::open(vec![layer(path, format, false)], false).unwrap()
}

/// What QEMU reads of it.
fn bytes(path: &Path, format: Format) -> Vec<u8> {
    let raw = path.with_extension("all");
    let (from, to) = (path.to_str().unwrap(), raw.to_str().unwrap());
    run("qemu-img", &["convert", "-f", &format.to_string(), "-O", "raw", from, to]);
    let mut all = std::fs::read(&raw).unwrap();
    all.resize(SIZE as usize, 0);
    std::fs::remove_file(raw).unwrap();
    all
}

/// What a list of differences should say of a range.
fn expected(ours: &[u8], theirs: &[u8], start: u64, length: u64) -> Vec<(u64, u64, bool)> {
    let mut found: Vec<(u64, u64, bool)> = Vec::new();
    let (mut at, end) = (start as usize, (start + length) as usize);
    while at < end {
        let next = ((at / UNIT + 1) * UNIT).min(end);
        let (a, b) = (&ours[at..next], &theirs[at..next]);
        if a != b {
            let zero = a.iter().all(|byte| *byte == 0);
            let length = (next - at) as u64;
            match found.last_mut() {
                Some(last) if last.0 + last.1 == at as u64 && last.2 == zero => last.1 += length,
                _ => found.push((at as u64, length, zero)),
            }
        }
        at = next;
    }
    found
}

fn differences(source: &Image, base: Option<&Image>, start: u64, length: u64) -> Vec<(u64, u64, bool)> {
    let mut found = Vec::new();
    diff(source, base, start, length, &mut |offset, length, zero| {
        found.push((offset, length, zero));
        Ok(())
    })
    .unwrap();
    found
}

#[test]
fn what_differs_is_listed_in_order_and_past_the_page_cache() {
    if !can_mount() {
        println!("not root: nothing is tested");
        return;
    }
    for kind in ["ext4", "xfs", "btrfs"] {
        let dir = Mounted::new(kind, 512);
        let at = |name: &str| dir.path().join(name);
        let (base, raw, top) = (at("base"), at("raw"), at("top"));
        disk(&base);
        // The same again, not shared, but for some places.
        disk(&raw);
        let file = File::options().write(true).open(&raw).unwrap();
        for place in [0, MIB + 100, 9 * MIB, 15 * MIB - 1, 21 * MIB + 7, 33 * MIB, SIZE - 1] {
            file.write_all_at(&[2], place).unwrap();
        }
        file.write_all_at(&vec![0; 2 * MIB as usize], 10 * MIB).unwrap();
        drop(file);
        // An overlay that equals its base in some clusters.
        let named = Backing { name: "base".to_owned(), format: Format::Raw };
        let new = NewFile { size: SIZE, backing: Some(named), preallocate_metadata: false };
        qcow2::create(&FileDevice::create_new(&top).unwrap(), &new).unwrap();
        let layers = |writable| vec![layer(&top, Format::Qcow2, writable), layer(&base, Format::Raw, false)];
        {
            let change = Image::open(layers(true), true).unwrap();
            change.write(2 * MIB, &noise(1, 16 * MIB)[2 * MIB as usize..12 * MIB as usize]).unwrap();
            change.write(5 * MIB + 3, &vec![4; 70_000]).unwrap();
            change.write_zeroes(30 * MIB, MIB).unwrap();
            change.flush().unwrap();
        }
        let files = [base.as_path(), raw.as_path(), top.as_path()];
        let (of_base, of_raw, of_top) =
            (bytes(&base, Format::Raw), bytes(&raw, Format::Raw), bytes(&top, Format::Qcow2));
        let nothing = vec![0; SIZE as usize];
        let (base, raw, top) =
            (open(&base, Format::Raw), open(&raw, Format::Raw), Image::open(layers(false), false).unwrap());
        let cases = [
            (&raw, &of_raw, Some(&base), &of_base),
            (&top, &of_top, Some(&base), &of_base),
            (&top, &of_top, Some(&raw), &of_raw),
            (&raw, &of_raw, None, &nothing),
            (&top, &of_top, None, &nothing),
        ];
        for (index, (source, ours, below, theirs)) in cases.into_iter().enumerate() {
            for (start, length) in [(0, SIZE), (100, SIZE - 200), (64 << 10, 21 * MIB + 5), (4 * MIB, 0)] {
                forget_all(&files);
                let found = differences(source, below, start, length);
                assert_eq!(found, expected(ours, theirs, start, length), "{kind} {index} {start} {length}");
                assert!(length == 0 || !found.is_empty());
                // Btrfs itself reads what has checksums through the cache.
                if start % 4096 == 0 && kind != "btrfs" {
                    // The piece with the end of the file, tables.
                    let left = cached(&files);
                    assert!(left <= 9 * MIB, "{kind} {index} {start}: {left}");
                }
            }
        }
    }
}

const QUIET: Control<'static> = Control { cancel: &|| false, progress: &|_| {}, threads: 2 };

/// What of two files is compared byte by byte, in bytes.
fn to_compare(source: &Image, base: &Image) -> u64 {
    let plan = plan::copy(source, Some(base), Target { backed: true, known_zero: false }, 0, SIZE).unwrap();
    plan.moves().iter().filter(|step| step.action == Action::Compare).map(|step| step.length).sum()
}

#[test]
fn what_two_files_share_is_not_read() {
    if !can_mount() {
        println!("not root: nothing is tested");
        return;
    }
    // No more of a piece is read than its neighbourhood.
    let around = 256 << 10;
    for kind in ["xfs", "btrfs", "ext4"] {
        let dir = Mounted::new(kind, 512);
        let at = |name: &str| dir.path().join(name);
        let text = |name: &str| at(name).to_str().unwrap().to_owned();
        let shares = kind != "ext4";
        disk(&at("base"));
        run("cp", &["--reflink=auto", &text("base"), &text("clone")]);
        run("cp", &["--reflink=never", "--sparse=always", &text("base"), &text("other")]);
        // Not on the disk yet: the map still says that it is shared.
        let change = File::options().write(true).open(at("clone")).unwrap();
        change.write_all_at(&noise(9, MIB), 5 * MIB + 777).unwrap();
        let image = |name: &str| open(&at(name), Format::Raw);
        let (base, clone, other) = (image("base"), image("clone"), image("other"));
        let count = to_compare(&clone, &base);
        if shares {
            assert!((MIB..=MIB + around).contains(&count), "{kind}: {count}");
        } else {
            assert!(count > 27 * MIB, "{kind}: {count}");
        }
        // The same bytes in other places, and zeroes that only one has written.
        assert!(to_compare(&other, &base) > 27 * MIB, "{kind}");
        assert_eq!(compare(&other, &base, &QUIET).unwrap(), None);
        // What is written through the cache is seen each time, and what is changed back is the same again.
        assert_eq!(compare(&clone, &base, &QUIET).unwrap(), Some(5 * MIB + 777), "{kind}");
        change.write_all_at(&[1], SIZE - 1).unwrap();
        change.write_all_at(&[5; 4096], 20 * MIB).unwrap();
        let (ours, theirs) = (std::fs::read(at("clone")).unwrap(), std::fs::read(at("base")).unwrap());
        assert_eq!(differences(&clone, Some(&base), 0, SIZE), expected(&ours, &theirs, 0, SIZE), "{kind}");
        // What is told without being read leaves nothing in the cache.
        let files = [at("base"), at("clone")];
        forget_all(&[&files[0], &files[1]]);
        differences(&clone, Some(&base), 0, SIZE);
        if shares {
            let left = cached(&[&files[0], &files[1]]);
            assert!(left < 6 * MIB, "{kind}: {left}");
        }

        // A copy of what differs.
        let top = at("top");
        let named = Backing { name: "base".to_owned(), format: Format::Raw };
        let new = NewFile { size: SIZE, backing: Some(named), preallocate_metadata: false };
        qcow2::create(&FileDevice::create_new(&top).unwrap(), &new).unwrap();
        let layers = vec![layer(&top, Format::Qcow2, true), layer(&at("base"), Format::Raw, false)];
        let target = Image::open(layers, true).unwrap();
        let known = Target { backed: true, known_zero: false };
        let plan = plan::copy(&clone, Some(&base), known, 0, SIZE).unwrap();
        let outcome = execute(&plan, &clone, Some(&base), &target, &QUIET).unwrap();
        target.flush().unwrap();
        drop(target);
        assert!(!shares || outcome.read < 4 * MIB, "{kind}: {outcome:?}");
        assert!(outcome.written >= MIB && outcome.written < 2 * MIB, "{kind}: {outcome:?}");
        run("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", &text("clone"), &text("top")]);
        run("qemu-img", &["check", "-f", "qcow2", &text("top")]);
    }
}

/// A clone of a clone that changes in each fourth block: more extents than one answer of the kernel has.
#[test]
fn many_pieces_are_told_apart() {
    if !can_mount() {
        println!("not root: nothing is tested");
        return;
    }
    for kind in ["xfs", "btrfs"] {
        let dir = Mounted::new(kind, 512);
        let at = |name: &str| dir.path().join(name);
        let text = |name: &str| at(name).to_str().unwrap().to_owned();
        disk(&at("base"));
        run("cp", &["--reflink=always", &text("base"), &text("clone")]);
        let change = File::options().write(true).open(at("clone")).unwrap();
        let places = (0..128u64).map(|index| index * (256 << 10)).filter(|place| *place < 16 * MIB);
        for place in places {
            change.write_all_at(&[2; 10], place + 70_000).unwrap();
        }
        run("cp", &["--reflink=always", &text("clone"), &text("again")]);
        let image = |name: &str| open(&at(name), Format::Raw);
        let (base, clone, again) = (image("base"), image("clone"), image("again"));
        let count = to_compare(&clone, &base);
        assert!((4 * MIB..=8 * MIB).contains(&count), "{kind}: {count}");
        assert!(to_compare(&again, &clone) <= 64 << 10, "{kind}: {}", to_compare(&again, &clone));
        let (ours, theirs) = (std::fs::read(at("again")).unwrap(), std::fs::read(at("base")).unwrap());
        assert_eq!(differences(&again, Some(&base), 0, SIZE), expected(&ours, &theirs, 0, SIZE), "{kind}");
        assert_eq!(compare(&again, &clone, &QUIET).unwrap(), None);
        assert_eq!(compare(&again, &base, &QUIET).unwrap(), Some(70_000));
    }
}

/// A file to be filled with compressed clusters.
fn packed(path: &Path, compression: qcow2::Compression) -> Image {
    let device = FileDevice::create_new(path).unwrap();
    let new = NewFile { size: SIZE, backing: None, preallocate_metadata: false };
    qcow2::create_with(&device, &new, &qcow2::Layout { compression, ..qcow2::Layout::default() }).unwrap();
    let layer = Layer { device: Arc::new(device), format: Format::Qcow2, size: SIZE };
    Image::open(vec![layer], true).unwrap()
}

/// In two steps, as jobs do; progress must add up.
fn pack(source: &Image, target: &Image) -> Outcome {
    let done = AtomicU64::new(0);
    let progress = |bytes| {
        done.fetch_add(bytes, Ordering::Relaxed);
    };
    let control = Control { cancel: &|| false, progress: &progress, threads: 3 };
    let first = compress(source, target, 0, 24 * MIB, &control).unwrap();
    let second = compress(source, target, 24 * MIB, SIZE - 24 * MIB, &control).unwrap();
    assert_eq!(done.into_inner(), SIZE);
    target.flush().unwrap();
    Outcome {
        read: first.read + second.read,
        written: first.written + second.written,
        zeroed: first.zeroed + second.zeroed,
        ..Outcome::default()
    }
}

#[test]
fn what_is_compressed_is_read_past_the_page_cache() {
    if !can_mount() {
        println!("not root: nothing is tested");
        return;
    }
    for kind in ["ext4", "xfs"] {
        let dir = Mounted::new(kind, 512);
        let at = |name: &str| dir.path().join(name);
        let text = |name: &str| at(name).to_str().unwrap().to_owned();
        disk(&at("raw"));
        // Something that becomes smaller.
        let file = File::options().write(true).open(at("raw")).unwrap();
        file.write_all_at(&b"again and ".repeat(300_000), 3 * MIB).unwrap();
        // Half of it compressed already: that is read in another way.
        run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &text("raw"), &text("plain")]);
        run("qemu-img", &["convert", "-c", "-f", "raw", "-O", "qcow2", &text("raw"), &text("dense")]);
        let mixed = open(&at("plain"), Format::Qcow2);
        for compression in [qcow2::Compression::Deflate, qcow2::Compression::Zstd] {
            for (name, format) in [("raw", Format::Raw), ("plain", Format::Qcow2), ("dense", Format::Qcow2)] {
                let source = open(&at(name), format);
                forget(&at(name));
                let target = packed(&at("packed"), compression);
                let outcome = pack(&source, &target);
                drop(target);
                assert_eq!(outcome.written + outcome.zeroed, SIZE, "{kind} {name}: {outcome:?}");
                // What no layer has is not read.
                assert!((28 * MIB..35 * MIB).contains(&outcome.read), "{kind} {name}: {outcome:?}");
                if name != "dense" {
                    let left = cached(&[&at(name)]);
                    assert!(left < 2 * MIB, "{kind} {name}: {left}");
                }
                run("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", &text("raw"), &text("packed")]);
                run("qemu-img", &["check", "-f", "qcow2", &text("packed")]);
                std::fs::remove_file(at("packed")).unwrap();
            }
        }
        assert_eq!(compare(&mixed, &open(&at("raw"), Format::Raw), &QUIET).unwrap(), None);
    }
}

#[test]
fn what_ends_compressing_ends_it() {
    if !can_mount() {
        println!("not root: nothing is tested");
        return;
    }
    let (dir, small) = (Mounted::new("ext4", 512), Mounted::new("ext4", 16));
    let raw = dir.path().join("raw");
    disk(&raw);
    let source = open(&raw, Format::Raw);
    // No space: whoever reads is stopped by whoever writes.
    let full = packed(&small.path().join("packed"), qcow2::Compression::Zstd);
    let error = compress(&source, &full, 0, SIZE, &QUIET).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error:?}");
    let target = packed(&dir.path().join("packed"), qcow2::Compression::Zstd);
    let done = AtomicU64::new(0);
    let progress = |bytes| {
        done.fetch_add(bytes, Ordering::Relaxed);
    };
    let cancel = || done.load(Ordering::Relaxed) > 8 * MIB;
    let control = Control { cancel: &cancel, progress: &progress, threads: 2 };
    assert_eq!(compress(&source, &target, 0, SIZE, &control).unwrap_err().kind(), ErrorKind::Cancelled);
    // What was under way when it was told, no more.
    assert!(done.load(Ordering::Relaxed) < 24 * MIB, "{done:?}");
    // A source that is shorter than it says.
    File::options().write(true).open(&raw).unwrap().set_len(30 * MIB).unwrap();
    let error = compress(&source, &target, 0, SIZE, &QUIET).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ShortRead, "{error:?}");
}
