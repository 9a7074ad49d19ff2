//! Optional features of QEMU's images: subclusters, external data files, snapshots and bitmaps listed, features
//! by name.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::Path;
use std::sync::Arc;

use common::packed::*;
use common::*;
use vdsmstore_io::qcow2::{self, visit_bitmap};
use vdsmstore_io::{Device, Error, ErrorKind, FileDevice, Format, Image, ImageOptions, Layer, RunKind};

fn file(path: &Path) -> FileDevice {
    FileDevice::open(path, false).unwrap()
}

fn open_with_data(layers: Vec<Layer>, data_files: &[(usize, Arc<dyn Device>)]) -> Result<Image, Error> {
    Image::open_with(layers, &ImageOptions { data_files, ..ImageOptions::default() })
}

/// Random commands to qemu-io, given to one process.
fn scribble(path: &Path, random: &mut Random, size: u64, cluster_size: u64, count: u64, compressed: bool) {
    let commands: Vec<String> = (0..count)
        .map(|_| {
            let at = random.below(size / 512) * 512;
            let longest = [cluster_size / 16, cluster_size / 4, 2 * cluster_size][random.below(3) as usize];
            let length = ((1 + random.below(longest / 512)) * 512).min(size - at);
            let whole = at / cluster_size * cluster_size;
            match random.below(10) {
                0 if compressed => format!("write -c -P 77 {whole} {}", cluster_size.min(size - whole)),
                0..=4 => format!("write -P {} {at} {length}", 1 + random.below(255)),
                5 | 6 => format!("write -z {at} {length}"),
                7 => format!("write -z -u {at} {length}"),
                8 => format!("discard {at} {length}"),
                _ => format!("write -P {} {at} 512", 1 + random.below(255)),
            }
        })
        .collect();
    let mut arguments = vec!["-f", "qcow2"];
    for command in &commands {
        arguments.extend(["-c", command]);
    }
    arguments.push(path.to_str().unwrap());
    // Compressing over what is there already is refused; the others go on.
    run("qemu-io", &arguments);
}

fn pieces(image: &Image, model: &[u8], random: &mut Random) {
    assert_same(&read_all(image), model);
    for _ in 0..40 {
        let at = random.below(model.len() as u64);
        let length = (1 + random.below(100_000)).min(model.len() as u64 - at);
        let mut buffer = vec![1; length as usize];
        image.read(at, &mut buffer).unwrap();
        assert_same(&buffer, &model[at as usize..][..length as usize]);
    }
    for run in image.runs(0, image.size()).map(Result::unwrap) {
        let found = &model[run.offset as usize..][..run.length as usize];
        assert!(!run.kind.is_zero() || found.iter().all(|byte| *byte == 0));
    }
}

#[test]
fn subclusters() {
    let (_keep, dir) = scratch();
    let (path, base) = (dir.join("image"), dir.join("base"));
    let mut mixed = 0;
    for seed in 1..=10 * effort() {
        let mut random = Random::new(seed);
        let cluster_size = [16, 64, 64, 2048][random.below(4) as usize] * KIB;
        let size = (20 * cluster_size).min(9 * MIB) + 512 * random.below(9);
        let options = format!("extended_l2=on,cluster_size={cluster_size}");
        let (name, length) = (path.to_str().unwrap(), size.to_string());
        let mut arguments = vec!["create", "-q", "-f", "qcow2", "-o", &options];
        let shown = size * 3 / 4 / 512 * 512;
        let backed = random.below(2) == 0;
        if backed {
            std::fs::write(&base, mixture(&mut random, shown)).unwrap();
            arguments.extend(["-b", base.to_str().unwrap(), "-F", "raw"]);
        }
        arguments.extend([name, &length]);
        qemu("qemu-img", &arguments);
        for round in 0..3 {
            scribble(&path, &mut random, size, cluster_size, 12, true);
            if round == 1 {
                qemu("qemu-img", &["snapshot", "-c", "s", name]);
            }
            let model = qemu_read(&path, "qcow2");
            let mut layers = vec![layer(&path, Format::Qcow2, size, false)];
            if backed {
                layers.push(layer(&base, Format::Raw, shown, false));
            }
            let image = Image::open(layers, false).unwrap();
            pieces(&image, &model, &mut random);
            mixed += image
                .runs(0, size)
                .filter(|run| !run.as_ref().unwrap().offset.is_multiple_of(cluster_size))
                .count();
        }
        assert!(qcow2::info(&file(&path)).unwrap().extended_l2);
        let error = Image::open(vec![layer(&path, Format::Qcow2, size, true)], true).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("subclusters"), "{error}");
    }
    println!("{mixed} runs begin within a cluster");
    assert!(mixed > 20);
}

#[test]
fn impossible_subclusters() {
    let (_keep, dir) = scratch();
    let path = dir.join("image");
    let name = path.to_str().unwrap();
    qemu("qemu-img", &["create", "-q", "-f", "qcow2", "-o", "extended_l2=on", name, "1M"]);
    qemu_io(&path, &["write -P 1 0 64k"]);
    let clean = std::fs::read(&path).unwrap();
    let read = || {
        let image = Image::open(vec![layer(&path, Format::Qcow2, MIB, false)], false).unwrap();
        image.read(0, &mut vec![0; 65536])
    };
    read().unwrap();
    let at = entry_at(&clean, 0) as usize;
    let offset = entry(&clean, 0);
    for (entry, bitmap) in [
        (offset, u64::MAX),
        (offset, 1 | 1 << 32),
        (0, 1),
        (0, 1 << 31),
        (COMPRESSED | 65536, 1),
        (COMPRESSED | 65536, 1 << 63),
        (1 << 50, 1),
    ] {
        let mut bytes = clean.clone();
        bytes[at..at + 8].copy_from_slice(&entry.to_be_bytes());
        bytes[at + 8..at + 16].copy_from_slice(&bitmap.to_be_bytes());
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(read().unwrap_err().kind(), ErrorKind::Corrupt, "{entry:x} {bitmap:x}");
    }
    // Bit 0 of the first word means nothing here.
    let mut bytes = clean.clone();
    bytes[at + 7] |= 1;
    std::fs::write(&path, &bytes).unwrap();
    assert_same(&qemu_read(&path, "qcow2")[..65536], &vec![1; 65536]);
    let image = Image::open(vec![layer(&path, Format::Qcow2, MIB, false)], false).unwrap();
    assert_same(&read_all(&image)[..65536], &vec![1; 65536]);
}

#[test]
fn external_data_files() {
    let (_keep, dir) = scratch();
    let (path, data, other) = (dir.join("image"), dir.join("data"), dir.join("other"));
    std::fs::write(&other, vec![9; 4 << 20]).unwrap();
    for (seed, more) in [(1, ""), (2, ",data_file_raw=on"), (3, ",extended_l2=on"), (4, ",cluster_size=4k")] {
        let _ = std::fs::remove_file(&data);
        let mut random = Random::new(seed);
        let size = 3 * MIB + 512;
        let (name, length) = (path.to_str().unwrap(), size.to_string());
        let options = format!("data_file={}{more}", data.display());
        qemu("qemu-img", &["create", "-q", "-f", "qcow2", "-o", &options, name, &length]);
        scribble(&path, &mut random, size, 65536, 30, false);
        let model = qemu_read(&path, "qcow2");
        let layers = || vec![layer(&path, Format::Qcow2, size, false)];
        let given: Arc<dyn Device> = Arc::new(file(&data));
        let image = open_with_data(layers(), &[(0, Arc::clone(&given))]).unwrap();
        pieces(&image, &model, &mut random);
        let on_data = image
            .runs(0, size)
            .map(Result::unwrap)
            .filter(|run| {
                matches!(run.kind, RunKind::Data { device, device_offset, .. }
                if device == given.id() && device_offset == run.offset)
            })
            .count();
        assert!(on_data > 0);
        if more.contains("raw=on") {
            assert_same(&std::fs::read(&data).unwrap()[..size as usize], &model);
        }

        // Only what the caller names is opened.
        let info = qcow2::info(&file(&path)).unwrap();
        assert!(info.data_file && info.data_file_name.as_deref() == data.to_str());
        for writable in [false, true] {
            let error = Image::open(vec![layer(&path, Format::Qcow2, size, writable)], writable).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert!(error.to_string().contains("data file"), "{error}");
        }
        let swapped = open_with_data(layers(), &[(0, Arc::new(file(&other)))]).unwrap();
        let at = image.runs(0, size).map(Result::unwrap).find(|r| matches!(r.kind, RunKind::Data { .. }));
        let mut buffer = [0; 512];
        swapped.read(at.unwrap().offset, &mut buffer).unwrap();
        assert_eq!(buffer, [9; 512]);
        for files in
            [vec![(1, Arc::clone(&given))], vec![(0, given.clone()), (1, Arc::new(file(&other)) as _)]]
        {
            let error = open_with_data(layers(), &files).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        }
        let same = open_with_data(layers(), &[(0, Arc::new(file(&path)))]).unwrap_err();
        assert_eq!(same.kind(), ErrorKind::Corrupt);
    }
    // A data file that ends too early is an error, and a file for an image that wants none.
    let short = dir.join("short");
    std::fs::write(&short, []).unwrap();
    let image = open_with_data(
        vec![layer(&path, Format::Qcow2, 3 * MIB + 512, false)],
        &[(0, Arc::new(file(&short)))],
    )
    .unwrap();
    assert_eq!(image.read(0, &mut vec![0; 3 << 20]).unwrap_err().kind(), ErrorKind::Corrupt);
    create(&dir.join("plain"), MIB, None);
    let plain = vec![layer(&dir.join("plain"), Format::Qcow2, MIB, false)];
    let error = open_with_data(plain, &[(0, Arc::new(file(&other)))]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

#[test]
fn snapshots_are_listed() {
    let (_keep, dir) = scratch();
    let path = dir.join("image");
    let name = path.to_str().unwrap();
    qemu("qemu-img", &["create", "-q", "-f", "qcow2", name, "3M"]);
    assert_eq!(qcow2::snapshots(&file(&path)).unwrap(), []);
    let before = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    for (snapshot, size) in [("first", "3M"), ("zweiter \u{e4}", "4M"), ("first", "5M")] {
        qemu("qemu-img", &["resize", "-q", "-f", "qcow2", name, size]);
        qemu("qemu-img", &["snapshot", "-c", snapshot, name]);
    }
    qemu("qemu-img", &["snapshot", "-d", "zweiter \u{e4}", name]);
    let found = qcow2::snapshots(&file(&path)).unwrap();
    let listed: Vec<_> = found.iter().map(|s| (s.id.as_str(), s.name.as_str(), s.size, s.vm_state)).collect();
    let text = qemu("qemu-img", &["snapshot", "-l", name]);
    for snapshot in &found {
        assert!(text.contains(&snapshot.name), "{text}");
        assert!(u64::from(snapshot.date.0) >= before && snapshot.date.1 < 1_000_000_000);
    }
    assert_eq!(listed, [("1", "first", Some(3 * MIB), 0), ("3", "first", Some(5 * MIB), 0)]);
    assert_eq!(qcow2::info(&file(&path)).unwrap().snapshots, 2);

    // A table that goes on beyond the file.
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[60..64].copy_from_slice(&60_000u32.to_be_bytes());
    std::fs::write(&path, &bytes).unwrap();
    let error = qcow2::snapshots(&file(&path)).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported), "{error}");
}

fn marked(path: &Path, name: &str) -> Vec<(u64, u64)> {
    let mut found = Vec::new();
    visit_bitmap(&file(path), name, &mut |offset, length| {
        found.push((offset, length));
        Ok(())
    })
    .unwrap();
    found
}

/// Bitmaps that QEMU keeps are read: granules of every size, whole clusters of ones, and what it calls broken.
#[test]
fn bitmaps_are_listed_and_read() {
    let (_keep, dir) = scratch();
    let path = dir.join("image");
    let name = path.to_str().unwrap();
    for (cluster_size, granularity, size) in [
        (65536, 65536, 20 * MIB + 512),
        (512, 512, 5 * MIB),
        (4096, MIB, 30 * MIB),
        (65536, 1 << 31, 5 * GIB),
    ] {
        let options = format!("cluster_size={cluster_size}");
        let (length, grain) = (size.to_string(), granularity.to_string());
        qemu("qemu-img", &["create", "-q", "-f", "qcow2", "-o", &options, name, &length]);
        qemu("qemu-img", &["bitmap", "--add", "-g", &grain, name, "on"]);
        qemu("qemu-img", &["bitmap", "--add", "--disable", "-g", "65536", name, "off"]);
        let mut random = Random::new(granularity);
        let mut model = vec![false; size.div_ceil(granularity) as usize];
        let mut commands = Vec::new();
        let mut write = |at: u64, length: u64| {
            model[(at / granularity) as usize..(at + length).div_ceil(granularity) as usize].fill(true);
            commands.push(format!("write {at} {length}"));
        };
        if size < GIB {
            write(2 * MIB, 3 * MIB);
        }
        for _ in 0..20 {
            let at = random.below(size / 512) * 512;
            write(at, (512 * (1 + random.below(200))).min(size - at));
        }
        qemu_io(&path, &commands.iter().map(String::as_str).collect::<Vec<_>>());

        let found = qcow2::bitmaps(&file(&path)).unwrap();
        let found: Vec<_> =
            found.iter().map(|b| (b.name.as_str(), b.granularity, b.enabled, b.consistent)).collect();
        assert_eq!(found, [("on", granularity, true, true), ("off", 65536, false, true)]);
        let mut seen = vec![false; model.len()];
        let mut last = 0;
        for (offset, length) in marked(&path, "on") {
            assert!(offset >= last && length > 0 && offset + length <= size);
            last = offset + length + 1;
            seen[(offset / granularity) as usize..(offset + length).div_ceil(granularity) as usize]
                .fill(true);
        }
        assert!(seen == model, "{cluster_size} {granularity}");
        assert!(marked(&path, "off").is_empty());
        let none = visit_bitmap(&file(&path), "none", &mut |_, _| Ok(())).unwrap_err();
        assert_eq!(none.kind(), ErrorKind::NotFound);
        let stop =
            visit_bitmap(&file(&path), "on", &mut |_, _| Err(Error::new(ErrorKind::Cancelled, "stop")));
        assert_eq!(stop.unwrap_err().kind(), ErrorKind::Cancelled);
        // Without the autoclear bit none is in step.
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[95] = 0;
        std::fs::write(&path, &bytes).unwrap();
        assert!(qcow2::bitmaps(&file(&path)).unwrap().iter().all(|bitmap| !bitmap.consistent));
        let error = visit_bitmap(&file(&path), "on", &mut |_, _| Ok(())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    }
}

/// Any byte of the directory and the tables may lie.
#[test]
fn bitmaps_that_are_damaged_never_panic() {
    let (_keep, dir) = scratch();
    let path = dir.join("image");
    let name = path.to_str().unwrap();
    qemu("qemu-img", &["create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", name, "8M"]);
    qemu("qemu-img", &["bitmap", "--add", "-g", "512", name, "b"]);
    qemu_io(&path, &["write 1M 2M"]);
    let clean = std::fs::read(&path).unwrap();
    let be64 = |at: usize| u64::from_be_bytes(clean[at..at + 8].try_into().unwrap()) as usize;
    let extension = clean.windows(4).position(|four| four == [0x23, 0x85, 0x28, 0x75]).unwrap();
    let directory = be64(extension + 24);
    let table = be64(directory);
    let mut random = Random::new(12);
    let (mut good, mut bad) = (0, 0);
    for _ in 0..600 {
        let mut bytes = clean.clone();
        for _ in 0..=random.below(2) {
            let start = [extension, directory, table][random.below(3) as usize];
            bytes[start + random.below(32) as usize] ^= 1 << random.below(8);
        }
        let storage = storage_of(&bytes, 1);
        let device =
            vdsmstore_io::SimDevice::new(storage, vdsmstore_io::Power::new(), "bitmaps".into(), false);
        match visit_bitmap(&device, "b", &mut |_, _| Ok(())) {
            Ok(()) => good += 1,
            Err(_) => bad += 1,
        }
    }
    println!("{good} read, {bad} refused");
    assert!(good > 0 && bad > 0);
}

#[test]
fn unknown_features_have_names() {
    let (_keep, dir) = scratch();
    let path = dir.join("image");
    qemu("qemu-img", &["create", "-q", "-f", "qcow2", path.to_str().unwrap(), "1M"]);
    let mut bytes = std::fs::read(&path).unwrap();
    // The first of QEMU's names becomes one of bit 40; bit 41 has none.
    let table = bytes.windows(4).position(|four| four == [0x68, 0x03, 0xf8, 0x57]).unwrap();
    let mut entry = [0; 48];
    entry[1] = 40;
    entry[2..16].copy_from_slice(b"time \x1b travel\0");
    bytes[table + 8..table + 56].copy_from_slice(&entry);
    bytes[74] = 3;
    std::fs::write(&path, &bytes).unwrap();
    let error = qcow2::info(&file(&path)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let text = error.to_string();
    assert!(text.contains(r#""time \u{1b} travel" (bit 40), bit 41"#), "{text}");
}
