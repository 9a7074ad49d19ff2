//! Images that we compress: QEMU finds them clean, reads them, and they are about as small as its own.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use common::packed::*;
use common::*;
use vdsmstore_io::qcow2::{self, Backing, Compression, CreateOptions};
use vdsmstore_io::{Control, ErrorKind, FileDevice, Format, Image, Layer, Outcome, RunKind, compress};

const BOTH: [(Compression, &str); 2] = [(Compression::Deflate, DEFLATE), (Compression::Zstd, ZSTD)];

fn create_compressed(path: &Path, size: u64, compression: Compression) -> Image {
    let device = FileDevice::create_new(path).unwrap();
    let options = CreateOptions { size, backing: None, preallocate_metadata: false };
    let layout = qcow2::Layout { compression, ..qcow2::Layout::default() };
    qcow2::create_with(&device, &options, &layout).unwrap();
    Image::open(vec![Layer { device: Arc::new(device), format: Format::Qcow2, size }], true).unwrap()
}

fn copy(source: &Image, target: &Image, threads: usize) -> Outcome {
    let done = AtomicU64::new(0);
    let progress = |bytes| {
        done.fetch_add(bytes, Ordering::Relaxed);
    };
    let control = Control { cancel: &|| false, progress: &progress, threads };
    let outcome = compress(source, target, 0, target.size(), &control).unwrap();
    assert_eq!(done.into_inner(), target.size());
    target.flush().unwrap();
    outcome
}

#[test]
fn whole_images() {
    let (_keep, dir) = scratch();
    let (raw, ours, theirs) = (dir.join("raw"), dir.join("ours"), dir.join("theirs"));
    for (index, (compression, name)) in BOTH.into_iter().enumerate() {
        for threads in [1, 4] {
            let mut random = Random::new(threads as u64 + 10 * index as u64);
            let size = 20 * MIB + 512 * 3;
            let mut bytes = mixture(&mut random, size);
            bytes[(5 * MIB) as usize..][..(3 * MIB) as usize].fill(0);
            random.fill(&mut bytes[(10 * MIB) as usize..][..MIB as usize]);
            std::fs::write(&raw, &bytes).unwrap();
            let source = Image::open(vec![layer(&raw, Format::Raw, size, false)], false).unwrap();
            let image = create_compressed(&ours, size, compression);
            let outcome = copy(&source, &image, threads);
            assert_eq!(outcome.written + outcome.zeroed, size);
            assert!(outcome.zeroed >= 3 * MIB - 65536);
            assert_same(&read_all(&image), &bytes);
            drop(image);
            check_clean(&ours);
            assert_same(&qemu_read(&ours, "qcow2"), &bytes);

            let info = qcow2::info(&FileDevice::open(&ours, false).unwrap()).unwrap();
            assert_eq!(info.zstd, compression == Compression::Zstd);
            let file = std::fs::read(&ours).unwrap();
            let compressed = count_compressed(&file, size.div_ceil(65536));
            assert!(compressed > 150, "{compressed} clusters compressed");
            // What is noise is stored plainly, and read in place.
            let image = open_one(&ours, size);
            assert!(matches!(image.run(10 * MIB + 65536, 65536).unwrap().kind, RunKind::Data { .. }));
            assert_eq!(image.run(6 * MIB, MIB).unwrap().kind, RunKind::Hole);
            drop(image);
            qemu_compressed(&theirs, &bytes, 65536, name);
            let (ours_length, theirs_length) = (file.len(), std::fs::metadata(&theirs).unwrap().len());
            println!(
                "{name}, {threads} threads: {ours_length} bytes, QEMU {theirs_length}, {compressed} clusters"
            );
            assert!(ours_length as u64 <= theirs_length + theirs_length / 25);
            std::fs::remove_file(&ours).unwrap();
        }
    }
}

/// Compressed again over what is there: in part plain, in part compressed, in part nothing.
#[test]
fn over_other_clusters() {
    let (_keep, dir) = scratch();
    let path = dir.join("image");
    for (compression, _) in BOTH {
        let size = 3 * MIB + 512;
        let mut random = Random::new(4);
        let mut model = mixture(&mut random, size);
        let image = create_compressed(&path, size, compression);
        image.write_compressed(0, &model).unwrap();
        for round in 0..6 {
            for at in (0..size).step_by(65536) {
                let length = 65536.min(size - at);
                let data = mixture(&mut random, length);
                match random.below(4) {
                    0 => image.write_compressed(at, &data).unwrap(),
                    1 => image.write(at, &data).unwrap(),
                    2 => image.write_zeroes(at, length).unwrap(),
                    _ => continue,
                }
                let place = &mut model[at as usize..][..length as usize];
                if image.run(at, 1).unwrap().kind.is_zero() {
                    place.fill(0);
                } else {
                    place.copy_from_slice(&data);
                }
            }
            assert_same(&read_all(&image), &model);
            image.flush().unwrap();
            check_clean(&path);
            assert_same(&qemu_read(&path, "qcow2"), &model);
            // What is given up is used again.
            let length = std::fs::metadata(&path).unwrap().len();
            assert!(length < 8 * MIB, "round {round}: {length}");
        }
        drop(image);
        std::fs::remove_file(&path).unwrap();
    }
}

/// A cluster that was given up and is somebody else's now gets no more compressed data.
#[test]
fn clusters_given_up_are_left() {
    let (_keep, dir) = scratch();
    let path = dir.join("image");
    let image = create_compressed(&path, MIB, Compression::Zstd);
    image.write_compressed(0, &vec![1; 65536]).unwrap();
    image.flush().unwrap();
    let before = std::fs::metadata(&path).unwrap().len();
    image.discard(0, 65536).unwrap();
    image.flush().unwrap();
    let mut noise = vec![0; 65536];
    Random::new(9).fill(&mut noise);
    image.write(65536, &noise).unwrap();
    image.write_compressed(2 * 65536, &vec![2; 65536]).unwrap();
    image.flush().unwrap();
    // The noise took the place of what was compressed first.
    assert_eq!(std::fs::metadata(&path).unwrap().len(), before + 65536);
    let model = [vec![0; 65536], noise, vec![2; 65536], vec![0; 13 * 65536]].concat();
    assert_same(&read_all(&image), &model);
    check_clean(&path);
    assert_same(&qemu_read(&path, "qcow2"), &model);
}

/// What was decompressed earlier is not taken for what lies in its place now.
#[test]
fn places_used_again_are_read_again() {
    let (_keep, dir) = scratch();
    for (compression, name) in BOTH {
        let path = dir.join(name);
        let image = create_compressed(&path, MIB, compression);
        let mut places = Vec::new();
        for byte in 1..=3 {
            image.write_compressed(0, &vec![byte; 65536]).unwrap();
            image.flush().unwrap();
            places.push(entry(&std::fs::read(&path).unwrap(), 0));
            let mut part = [0; 100];
            image.read(300, &mut part).unwrap();
            assert_eq!(part, [byte; 100]);
            image.discard(0, 65536).unwrap();
            image.flush().unwrap();
        }
        // It was the same place, and the same length.
        assert!(places.iter().all(|place| *place == places[0]), "{places:x?}");
    }
}

/// Several threads at once, each on its own clusters, compressed and plain: no reference is lost or counted twice.
#[test]
fn from_many_threads() {
    let (_keep, dir) = scratch();
    let path = dir.join("image");
    let size = 16 * MIB;
    let image = create_compressed(&path, size, Compression::Zstd);
    let model: Vec<u8> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                let image = &image;
                scope.spawn(move || {
                    let mut random = Random::new(thread);
                    let mut mine = vec![0; 4 << 20];
                    for _ in 0..150 {
                        let at = random.below(64) * 65536;
                        let data = mixture(&mut random, 65536);
                        let place = thread * (4 << 20) + at;
                        match random.below(3) {
                            0 => image.write(place, &data).unwrap(),
                            _ => image.write_compressed(place, &data).unwrap(),
                        }
                        mine[at as usize..][..65536].copy_from_slice(&data);
                        if random.below(20) == 0 {
                            image.flush().unwrap();
                        }
                    }
                    mine
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert_same(&read_all(&image), &model);
    image.flush().unwrap();
    check_clean(&path);
    assert_same(&qemu_read(&path, "qcow2"), &model);
}

#[test]
fn only_whole_clusters_of_qcow2() {
    let (_keep, dir) = scratch();
    let (path, raw) = (dir.join("image"), dir.join("raw"));
    let size = MIB + 512;
    let image = create_compressed(&path, size, Compression::Deflate);
    let data = vec![7; 65536];
    for (at, length) in [(512, 65536), (0, 512), (0, 65535), (MIB - 65536, 65536 + 511)] {
        let error = image.write_compressed(at, &vec![7; length]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{at} {length}");
    }
    image.write_compressed(MIB, &data[..512]).unwrap();
    assert_eq!(image.run(MIB, 512).unwrap().kind, RunKind::Compressed { layer: 0 });
    std::fs::write(&raw, &data).unwrap();
    let raw = Image::open(vec![layer(&raw, Format::Raw, 65536, true)], true).unwrap();
    assert_eq!(raw.write_compressed(0, &data).unwrap_err().kind(), ErrorKind::InvalidInput);
    let control = Control { cancel: &|| false, progress: &|_| {}, threads: 1 };
    assert_eq!(compress(&image, &raw, 0, 65536, &control).unwrap_err().kind(), ErrorKind::InvalidInput);
    let stop = Control { cancel: &|| true, ..control };
    assert_eq!(compress(&image, &image, 0, size, &stop).unwrap_err().kind(), ErrorKind::Cancelled);
}

/// A zstd image keeps its compression when it gets another backing file.
#[test]
fn backing_files_of_zstd_images() {
    let (_keep, dir) = scratch();
    let (path, base) = (dir.join("image"), dir.join("base"));
    let size = 4 * 65536;
    std::fs::write(&base, vec![3; size as usize]).unwrap();
    let image = create_compressed(&path, size, Compression::Zstd);
    image.write_compressed(65536, &vec![7; 65536]).unwrap();
    image.flush().unwrap();
    drop(image);
    let backing = Backing { name: base.to_str().unwrap().into(), format: Format::Raw };
    qcow2::set_backing(&FileDevice::open(&path, true).unwrap(), Some(&backing)).unwrap();
    let mut model = vec![3; size as usize];
    model[65536..2 * 65536].fill(7);
    check_clean(&path);
    assert_same(&qemu_read(&path, "qcow2"), &model);
    let image = open(&[(&path, Format::Qcow2, size), (&base, Format::Raw, size)]);
    assert_same(&read_all(&image), &model);
}
