//! Images with persistent bitmaps, unknown extensions and features that clear themselves: writing keeps them right.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::Path;
use std::sync::Arc;

use common::packed::*;
use common::*;
use vdsmstore_io::qcow2::{self, visit_bitmap};
use vdsmstore_io::{ErrorKind, FileDevice, Format, Image, Layer, Power, SimDevice};

fn file(path: &Path) -> FileDevice {
    FileDevice::open(path, false).unwrap()
}

/// The granules that a bitmap marks.
fn marked(path: &Path, name: &str, granularity: u64, granules: usize) -> Vec<bool> {
    let mut found = vec![false; granules];
    visit_bitmap(&file(path), name, &mut |offset, length| {
        found[(offset / granularity) as usize..(offset + length).div_ceil(granularity) as usize].fill(true);
        Ok(())
    })
    .unwrap();
    found
}

/// We and QEMU write in turns; three bitmaps must know of all of it, one of nothing.
#[test]
fn bitmaps_know_what_both_write() {
    let (_keep, dir) = scratch();
    let (path, data) = (dir.join("image"), dir.join("data"));
    let name = path.to_str().unwrap();
    let (mut ours, mut theirs) = (0, 0);
    for seed in 1..=8 * effort() {
        let mut random = Random::new(seed);
        let cluster_size = [512, 4096, 65536, 65536, 2 * MIB][random.below(5) as usize];
        let size = if cluster_size == 512 { 2 * MIB } else { 6 * MIB } + 512 * random.below(5);
        let mut model = mixture(&mut random, size);
        if random.below(2) == 0 {
            qemu_compressed(&path, &model, cluster_size, ZSTD);
        } else {
            let options = format!("cluster_size={cluster_size}");
            qemu("qemu-img", &["create", "-q", "-f", "qcow2", "-o", &options, name, &size.to_string()]);
            model.fill(0);
        }
        let bitmaps: [(&str, u64); 3] = [("fine", 512), ("medium", 65536), ("coarse", MIB)];
        let mut marks = Vec::new();
        for (bitmap, granularity) in bitmaps {
            qemu("qemu-img", &["bitmap", "--add", "-g", &granularity.to_string(), name, bitmap]);
            marks.push(vec![false; size.div_ceil(granularity) as usize]);
        }
        qemu("qemu-img", &["bitmap", "--add", "--disable", name, "off"]);
        if random.below(2) == 0 {
            qemu("qemu-img", &["snapshot", "-c", "s", name]);
        }
        for _ in 0..6 {
            let mut touch = |at: u64, length: u64| {
                for ((_, granularity), marks) in bitmaps.iter().zip(&mut marks) {
                    marks[(at / granularity) as usize..(at + length).div_ceil(*granularity) as usize]
                        .fill(true);
                }
            };
            if random.below(3) > 0 {
                ours += 1;
                let image = open_one(&path, size);
                for _ in 0..=random.below(6) {
                    let at = random.below(size);
                    let longest = [3000, 200_000, size / 2][random.below(3) as usize];
                    let length = (1 + random.below(longest)).min(size - at);
                    let place = at as usize..(at + length) as usize;
                    match random.below(6) {
                        0..=2 => {
                            let bytes = mixture(&mut random, length);
                            image.write(at, &bytes).unwrap();
                            model[place].copy_from_slice(&bytes);
                        }
                        3 => {
                            image.write_zeroes(at, length).unwrap();
                            model[place].fill(0);
                        }
                        4 => {
                            let at = at / cluster_size * cluster_size;
                            let length = cluster_size.min(size - at);
                            let bytes = mixture(&mut random, length);
                            image.write_compressed(at, &bytes).unwrap();
                            model[at as usize..][..length as usize].copy_from_slice(&bytes);
                            touch(at, length);
                            continue;
                        }
                        _ => {
                            image.flush().unwrap();
                            continue;
                        }
                    }
                    touch(at, length);
                }
                // Until the flush nobody may believe them.
                image.write(0, &[1]).unwrap();
                model[0] = 1;
                touch(0, 1);
                let found = qcow2::bitmaps(&file(&path)).unwrap();
                assert_eq!(
                    found.iter().map(|b| b.consistent).collect::<Vec<_>>(),
                    [false, false, false, true]
                );
                image.flush().unwrap();
            } else {
                theirs += 1;
                let at = random.below(size / 512) * 512;
                let length = (512 * (1 + random.below(300))).min(size - at);
                let bytes = mixture(&mut random, length);
                std::fs::write(&data, &bytes).unwrap();
                qemu_io(&path, &[&format!("write -s {} {at} {length}", data.display())]);
                model[at as usize..][..length as usize].copy_from_slice(&bytes);
                touch(at, length);
            }
            check_clean(&path);
            assert_same(&qemu_read(&path, "qcow2"), &model);
            for ((bitmap, granularity), marks) in bitmaps.iter().zip(&marks) {
                let found = marked(&path, bitmap, *granularity, marks.len());
                assert!(found == *marks, "seed {seed}, {cluster_size}: bitmap {bitmap} differs");
            }
            let off = size.div_ceil(65536) as usize;
            assert_eq!(marked(&path, "off", 65536, off), vec![false; off]);
            let info = qemu("qemu-img", &["info", "-f", "qcow2", name]);
            assert!(!info.contains("in-use") && info.contains("medium"), "seed {seed}: {info}");
        }
    }
    println!("{ours} turns of ours, {theirs} of QEMU");
    assert!(ours > 10 && theirs > 5);
}

/// The power goes: whoever opens the image next finds bitmaps that mark all that may have changed, or that say
/// themselves that they cannot be believed; and no worse than leaks.
#[test]
fn a_power_cut_leaves_no_bitmap_that_lies() {
    let (_keep, dir) = scratch();
    let (path, after) = (dir.join("image"), dir.join("after"));
    let size = 400 * KIB;
    let options = ["create", "-q", "-f", "qcow2", "-o", "cluster_size=512", path.to_str().unwrap(), "400K"];
    qemu("qemu-img", &options);
    qemu_io(&path, &["write -P 1 0 100k"]);
    qemu("qemu-img", &["bitmap", "--add", "-g", "512", path.to_str().unwrap(), "b"]);
    let start = std::fs::read(&path).unwrap();
    let before = qemu_read(&path, "qcow2");
    let run = |cut: Option<u64>, keep: &mut dyn FnMut() -> bool| {
        let (storage, power) = (storage_of(&start, 1), Power::new());
        power.cut_after(cut);
        let device = SimDevice::new(Arc::clone(&storage), Arc::clone(&power), "sim".into(), true);
        let layer = Layer { device: Arc::new(device), format: Format::Qcow2, size };
        if let Ok(image) = Image::open(vec![layer], true) {
            let mut random = Random::new(3);
            for step in 0..12 {
                let at = random.below(size / 512) * 512;
                let length = (512 * (1 + random.below(60))).min(size - at);
                let result = match step % 4 {
                    0 | 1 => image.write(at, &vec![7; length as usize]),
                    2 => image.write_zeroes(at, length),
                    _ => image.flush(),
                };
                if result.is_err() {
                    break;
                }
            }
        }
        storage.crash(keep);
        std::fs::write(&after, storage.bytes()).unwrap();
        check_leaks_only(&after);
        let found = qcow2::bitmaps(&file(&after)).unwrap();
        if found[0].consistent {
            let marks = marked(&after, "b", 512, (size / 512) as usize);
            let bytes = qemu_read(&after, "qcow2");
            for (sector, marked) in marks.into_iter().enumerate() {
                let place = sector * 512..(sector + 1) * 512;
                assert!(marked || bytes[place.clone()] == before[place], "cut {cut:?}, sector {sector}");
            }
        }
        (power.writes(), found[0].consistent)
    };
    let (steps, consistent) = run(None, &mut || true);
    assert!(consistent && steps > 30);
    let (mut believed, mut not) = (0, 0);
    for cut in (0..=steps).step_by(if effort() > 1 { 1 } else { 3 }) {
        let mut random = Random::new(cut);
        for (_, consistent) in [
            run(Some(cut), &mut || false),
            run(Some(cut), &mut || random.below(2) == 0),
            run(Some(cut), &mut || true),
        ] {
            *if consistent { &mut believed } else { &mut not } += 1;
        }
    }
    println!("{steps} steps, {believed} bitmaps believed, {not} not");
    assert!(believed > 5 && not > 5);
}

#[test]
fn growing_as_far_as_bitmaps_reach() {
    let (_keep, dir) = scratch();
    let path = dir.join("image");
    let name = path.to_str().unwrap();
    qemu("qemu-img", &["create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", name, "8M"]);
    // One cluster of bits is 16 MiB of the disk.
    qemu("qemu-img", &["bitmap", "--add", "-g", "512", name, "b"]);
    let image = open_one(&path, 8 * MIB);
    image.write(8 * MIB - 512, &[1; 512]).unwrap();
    image.grow(12 * MIB).unwrap();
    image.write(10 * MIB, &[2; 512]).unwrap();
    // Over 512 MiB of bits QEMU takes none.
    let error = image.grow(3 << 40).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert_eq!(image.size(), 12 * MIB);
    image.flush().unwrap();
    check_clean(&path);
    let found = marked(&path, "b", 512, 24576);
    let set: Vec<usize> = (0..24576).filter(|at| found[*at]).collect();
    assert_eq!(set, [16383, 20480]);
    qemu_io(&path, &["write 11M 512"]);
    check_clean(&path);
    assert!(marked(&path, "b", 512, 24576)[22528]);
}

/// Tables of bitmaps become longer along with the disk, those of disabled ones too; one that somebody did not finish stays.
#[test]
fn growing_beyond_what_bitmaps_reach() {
    let (_keep, dir) = scratch();
    let path = dir.join("image");
    let name = path.to_str().unwrap();
    for cluster_size in [512, 4096, 65536] {
        let options = format!("cluster_size={cluster_size}");
        // One cluster of bits is 2 MiB, 16 MiB, and 256 MiB of the disk.
        let clusters = |size: u64| size.div_ceil(cluster_size * 8 * 512);
        let mut size = MIB;
        qemu("qemu-img", &["create", "-q", "-f", "qcow2", "-o", &options, name, "1M"]);
        qemu("qemu-img", &["bitmap", "--add", "-g", "64k", name, "lost"]);
        let mut bytes = std::fs::read(&path).unwrap();
        let extension = bytes.windows(4).position(|four| four == [0x23, 0x85, 0x28, 0x75]).unwrap();
        let place = |bytes: &[u8]| {
            u64::from_be_bytes(bytes[extension + 24..extension + 32].try_into().unwrap()) as usize
        };
        let directory = place(&bytes);
        bytes[directory + 15] |= 1;
        std::fs::write(&path, &bytes).unwrap();
        for (bitmap, more) in [("fine", &[][..]), ("off", &["--disable"])] {
            let mut arguments = vec!["bitmap", "--add", "-g", "512"];
            arguments.extend(more);
            arguments.extend([name, bitmap]);
            qemu("qemu-img", &arguments);
        }
        let mut marks = Vec::new();
        for step in 1..=3u64 {
            let before = std::fs::read(&path).unwrap();
            let image = open_one(&path, size);
            image.write(size - 512, &[1; 512]).unwrap();
            marks.push((size / 512 - 1) as usize);
            let moves = clusters(size) != clusters(20 * size);
            size *= 20;
            image.grow(size).unwrap();
            image.write(size - 1024, &[1; 512]).unwrap();
            marks.push((size / 512 - 2) as usize);
            image.flush().unwrap();
            drop(image);
            check_clean(&path);
            let now = std::fs::read(&path).unwrap();
            assert_eq!(place(&before) != place(&now), moves, "{cluster_size}, step {step}: the directory");
            let found = qcow2::bitmaps(&file(&path)).unwrap();
            let state: Vec<_> = found.iter().map(|b| (b.name.as_str(), b.enabled, b.consistent)).collect();
            assert_eq!(state, [("lost", true, false), ("fine", true, true), ("off", false, true)]);
            let bits = marked(&path, "fine", 512, (size / 512) as usize);
            assert!((0..bits.len()).filter(|at| bits[*at]).eq(marks.iter().copied()));
            assert!(!marked(&path, "off", 512, (size / 512) as usize).contains(&true));
            // QEMU writes on.
            let at = size / 2 + step * 512;
            qemu_io(&path, &[&format!("write {at} 512")]);
            marks.push((at / 512) as usize);
            marks.sort_unstable();
            check_clean(&path);
            if cluster_size == 512 && step == 2 {
                break;
            }
        }
    }
}

/// Bitmaps that were given up earlier, and those that somebody did not finish, stay as they are.
#[test]
fn bitmaps_that_are_not_in_step_stay() {
    let (_keep, dir) = scratch();
    let path = dir.join("image");
    let name = path.to_str().unwrap();
    qemu("qemu-img", &["create", "-q", "-f", "qcow2", name, "8M"]);
    qemu("qemu-img", &["bitmap", "--add", name, "b"]);
    let image = open_one(&path, 8 * MIB);
    image.write(0, &[1; 512]).unwrap();
    // Not flushed: in use for ever.
    drop(image);
    for _ in 0..2 {
        let image = open_one(&path, 8 * MIB);
        image.write(MIB, &[1; 512]).unwrap();
        image.flush().unwrap();
        drop(image);
        check_leaks_only(&path);
        let found = qcow2::bitmaps(&file(&path)).unwrap();
        assert!(found.len() == 1 && !found[0].consistent && found[0].enabled);
        let info = qemu("qemu-img", &["info", "-f", "qcow2", name]);
        assert!(info.contains("in-use"), "{info}");
    }
    // Cleared autoclear bit: the extension stays, nobody believes it, we write none the less.
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[95] = 0;
    std::fs::write(&path, &bytes).unwrap();
    let image = open_one(&path, 8 * MIB);
    image.write(2 * MIB, &[1; 512]).unwrap();
    image.flush().unwrap();
    assert_eq!(std::fs::read(&path).unwrap()[88..96], [0; 8]);
}

/// The header keeps what we do not know, whatever we do to the image.
#[test]
fn unknown_extensions_are_kept() {
    let (_keep, dir) = scratch();
    let path = dir.join("image");
    let name = path.to_str().unwrap();
    qemu("qemu-img", &["create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", name, "8M"]);
    qemu("qemu-img", &["bitmap", "--add", "-g", "1M", name, "b"]);
    qemu("qemu-img", &["snapshot", "-c", "s", name]);
    let mut bytes = std::fs::read(&path).unwrap();
    let end = bytes.windows(4).position(|four| four == [0x23, 0x85, 0x28, 0x75]).unwrap() + 32;
    bytes[end..end + 4].copy_from_slice(&0x1234_5678u32.to_be_bytes());
    bytes[end + 4..end + 8].copy_from_slice(&11u32.to_be_bytes());
    bytes[end + 8..end + 19].copy_from_slice(b"who is this");
    // A compatible bit that nobody knows, and an autoclear one besides the bitmaps'.
    bytes[80] = 0x20;
    bytes[88] = 0x40;
    std::fs::write(&path, &bytes).unwrap();
    let image = open_one(&path, 8 * MIB);
    image.write(MIB, &vec![1; 3 << 20]).unwrap();
    image.grow(4 * GIB).unwrap();
    image.write(3 * GIB, &[1]).unwrap();
    image.flush().unwrap();
    drop(image);
    let now = std::fs::read(&path).unwrap();
    assert_eq!(now[100..end + 24], bytes[100..end + 24]);
    assert_eq!(now[80..88], bytes[80..88]);
    assert_eq!(now[88..96], 1u64.to_be_bytes());
    check_clean(&path);
    assert!(qcow2::bitmaps(&file(&path)).unwrap()[0].consistent);
}
