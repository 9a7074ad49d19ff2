//! Reading compressed clusters: those of QEMU in every cluster size, and what no program ever wrote.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use common::packed::*;
use common::*;
use vdsmstore_io::{ErrorKind, Format, Image, RunKind};

fn open_read(path: &Path, size: u64) -> Image {
    Image::open(vec![layer(path, Format::Qcow2, size, false)], false).unwrap()
}

/// Every cluster size, both ways of compressing, with plain clusters written between; the whole, and pieces.
#[test]
fn what_qemu_compressed_is_read() {
    let (_keep, dir) = scratch();
    let path = dir.join("image");
    let mut seen = 0;
    for bits in 9u32..=21 {
        for compression in [DEFLATE, ZSTD] {
            let mut random = Random::new(u64::from(bits));
            // The last cluster is one in part.
            let size = if bits < 12 { 300 * KIB } else { (5 << bits).max(MIB) } + 512 * 3;
            let bytes = mixture(&mut random, size);
            qemu_compressed(&path, &bytes, 1 << bits, compression);
            qemu_io(&path, &["write -P 3 100k 9k", "write -P 4 200k 3k"]);
            let model = qemu_read(&path, "qcow2");
            assert_same(&model[..100 << 10], &bytes[..100 << 10]);
            let image = open_read(&path, size);
            assert_same(&read_all(&image), &model);
            for _ in 0..60 {
                let at = random.below(size);
                let length = (1 + random.below(100_000)).min(size - at);
                let mut buffer = vec![0; length as usize];
                image.read(at, &mut buffer).unwrap();
                assert_same(&buffer, &model[at as usize..][..length as usize]);
            }
            let compressed = image
                .runs(0, size)
                .map(Result::unwrap)
                .filter(|run| run.kind == RunKind::Compressed { layer: 0 })
                .count();
            assert!(compressed > 0, "{bits} {compression}: nothing was compressed");
            seen += compressed;
        }
    }
    println!("{seen} compressed runs");
}

/// Version 2 has compressed clusters too.
#[test]
fn compressed_clusters_of_version_2() {
    let (_keep, dir) = scratch();
    let (path, raw) = (dir.join("image"), dir.join("raw"));
    let bytes = mixture(&mut Random::new(2), 3 * MIB);
    std::fs::write(&raw, &bytes).unwrap();
    let (from, to) = (raw.to_str().unwrap(), path.to_str().unwrap());
    qemu("qemu-img", &["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", "compat=0.10", from, to]);
    assert!(count_compressed(&std::fs::read(&path).unwrap(), 48) > 20);
    assert_same(&read_all(&open_read(&path, 3 * MIB)), &bytes);
}

/// Small reads one after the other must not decompress the cluster each time.
#[test]
fn reading_in_small_steps_decompresses_once() {
    let (_keep, dir) = scratch();
    let path = dir.join("image");
    let size = 8 * MIB;
    let bytes = mixture(&mut Random::new(5), size);
    qemu_compressed(&path, &bytes, 2 * MIB, ZSTD);
    let image = open_read(&path, size);
    let mut buffer = [0; 512];
    let started = Instant::now();
    // Over and over 16,384 times one millisecond or more would be half a minute.
    for at in (0..size).step_by(512) {
        image.read(at, &mut buffer).unwrap();
        assert_same(&buffer, &bytes[at as usize..][..512]);
    }
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
}

/// The stream crosses sectors and clusters of the file, its last sector is cut short, and other data follows it.
#[test]
fn streams_may_lie_anywhere() {
    let (_keep, dir) = scratch();
    let path = dir.join("image");
    for compression in [DEFLATE, ZSTD] {
        for bits in [9, 12, 16] {
            let cluster_size = 1u64 << bits;
            let size = 16 * cluster_size;
            let mut random = Random::new(size);
            let mut model = mixture(&mut random, size);
            random.fill(&mut model[..size as usize / 2]);
            qemu_compressed(&path, &vec![7; size as usize], cluster_size, compression);
            let mut file = std::fs::read(&path).unwrap();
            let mut crossed = 0;
            for (cluster, content) in model.chunks(cluster_size as usize).enumerate() {
                plant(&mut file, cluster as u64, &pack(content, compression));
                let host = entry(&file, cluster as u64) & ((1 << (62 - (bits - 8))) - 1);
                crossed += u64::from(host >> bits != (file.len() as u64 - 1) >> bits);
            }
            assert!(crossed > 0);
            assert_ne!(file.len() % 512, 0);
            std::fs::write(&path, &file).unwrap();
            assert_same(&read_all(&open_read(&path, size)), &model);
            assert_same(&qemu_read(&path, "qcow2"), &model);
        }
    }
}

/// Windows up to 32 KiB are allowed, though QEMU writes 4 KiB; a cluster may consist of several zstd frames.
#[test]
fn streams_of_other_programs_are_read() {
    let (_keep, dir) = scratch();
    let path = dir.join("image");
    let mut random = Random::new(6);
    let mut content = vec![0; 65536];
    random.fill(&mut content[..30_000]);
    content.copy_within(..30_000, 30_000);
    for compression in [DEFLATE, ZSTD] {
        qemu_compressed(&path, &vec![7; 65536], 65536, compression);
        let mut file = std::fs::read(&path).unwrap();
        let stream = if compression == DEFLATE {
            let mut stream = Vec::with_capacity(70_000);
            flate2::Compress::new(flate2::Compression::best(), false)
                .compress_vec(&content, &mut stream, flate2::FlushCompress::Finish)
                .unwrap();
            // The second half is found again only through a wide window.
            assert!(stream.len() < 35_000);
            stream
        } else {
            [zstd(&content[..1000]), zstd(&[]), zstd(&content[1000..])].concat()
        };
        plant(&mut file, 0, &stream);
        std::fs::write(&path, &file).unwrap();
        assert_same(&read_all(&open_read(&path, 65536)), &content);
    }
}

/// The most memory this process ever had, in bytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// A frame of zeroes, gigabytes in a few bytes: blocks of one repeated byte, 128 KiB each.
fn zstd_bomb(window_exponent: u8) -> Vec<u8> {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0, window_exponent << 3];
    for block in 0..10_000 {
        let header: u32 = u32::from(block == 9999) | 1 << 1 | (128 << 10) << 3;
        frame.extend(&header.to_le_bytes()[..3]);
        frame.push(0);
    }
    frame
}

#[test]
fn damaged_streams_are_reported() {
    let (_keep, dir) = scratch();
    let path = dir.join("image");
    let size = 4 * 65536;
    let content = vec![9u8; 65536];
    let mut noise = vec![0; 60_000];
    Random::new(1).fill(&mut noise);
    let before = peak();
    let mut cases: Vec<(&str, &str, Vec<u8>)> = vec![
        (DEFLATE, "empty stream", deflate(&[])),
        (DEFLATE, "too little", deflate(&content[1..])),
        (DEFLATE, "noise", [vec![0xff], noise.clone()].concat()),
        (DEFLATE, "zeroes", vec![0; 700]),
        (DEFLATE, "cut short", deflate(&noise)[..40_000].to_vec()),
        (ZSTD, "empty frame", zstd(&[])),
        (ZSTD, "too little", zstd(&content[1..])),
        (ZSTD, "too much", zstd(&[content.clone(), vec![1]].concat())),
        (ZSTD, "two frames, too much", [zstd(&content[1..]), zstd(&content[..2])].concat()),
        (ZSTD, "noise", noise.clone()),
        (ZSTD, "zeroes", vec![0; 700]),
        (ZSTD, "cut short", zstd(&noise)[..40_000].to_vec()),
        (ZSTD, "other compression", deflate(&content)),
        (DEFLATE, "other compression", zstd(&content)),
    ];
    for exponent in [0, 17, 21, 31] {
        cases.push((ZSTD, "bomb", zstd_bomb(exponent)));
    }
    for (compression, what, stream) in &cases {
        qemu_compressed(&path, &vec![7; size as usize], 65536, compression);
        let mut file = std::fs::read(&path).unwrap();
        plant(&mut file, 1, stream);
        std::fs::write(&path, &file).unwrap();
        let image = open_read(&path, size);
        let place = entry(&file, 1) & ((1 << 54) - 1);
        for length in [1, 65536] {
            let error = image.read(65536, &mut vec![0; length]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error}");
            assert_eq!(error.path(), Some(path.as_path()), "{what}");
            assert_eq!(error.offset(), Some(place), "{what}");
        }
        // The others are not affected.
        let mut buffer = [0; 100];
        image.read(65536 - 100, &mut buffer).unwrap();
        assert_eq!(buffer, [7; 100]);
    }
    let grown = peak() - before;
    assert!(grown < 100 << 20, "{grown} bytes more memory");
    println!("{} damaged streams, {grown} bytes of memory", cases.len());
}

/// More of a deflate stream than the cluster needs is left alone, as QEMU does.
#[test]
fn deflate_streams_may_go_on() {
    let (_keep, dir) = scratch();
    let path = dir.join("image");
    qemu_compressed(&path, &vec![7; 65536], 65536, DEFLATE);
    let mut file = std::fs::read(&path).unwrap();
    plant(&mut file, 0, &deflate(&vec![9; 1 << 20]));
    std::fs::write(&path, &file).unwrap();
    assert_same(&read_all(&open_read(&path, 65536)), &vec![9; 65536]);
    assert_same(&qemu_read(&path, "qcow2"), &vec![9; 65536]);
}

#[test]
fn descriptors_that_point_nowhere_are_reported() {
    let (_keep, dir) = scratch();
    let path = dir.join("image");
    for compression in [DEFLATE, ZSTD] {
        qemu_compressed(&path, &vec![7; 65536], 65536, compression);
        let clean = std::fs::read(&path).unwrap();
        let end = clean.len() as u64;
        for host in [end, end + 100, 1 << 40, (1 << 54) - 1, 0] {
            for sectors in [0u64, 255] {
                let mut file = clean.clone();
                set_entry(&mut file, 0, COMPRESSED | sectors << 54 | host);
                std::fs::write(&path, &file).unwrap();
                let image = open_read(&path, 65536);
                assert_eq!(image.run(0, 65536).unwrap().kind, RunKind::Compressed { layer: 0 });
                let error = image.read(0, &mut vec![0; 65536]).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{host} {sectors}: {error}");
            }
        }
    }
}

/// Random bytes of a compressed image change: reading gives something or an error, never a panic.
#[test]
fn any_byte_may_be_wrong() {
    let (_keep, dir) = scratch();
    let path = dir.join("image");
    let (mut errors, mut reads) = (0, 0);
    for seed in 0..6 * effort() {
        let mut random = Random::new(seed);
        let size = 3 * MIB;
        let (bits, compression) = (9 + random.below(9), [DEFLATE, ZSTD][seed as usize % 2]);
        qemu_compressed(&path, &mixture(&mut random, size), 1 << bits, compression);
        let clean = std::fs::read(&path).unwrap();
        for _ in 0..40 {
            let mut file = clean.clone();
            for _ in 0..=random.below(20) {
                let at = 512 + random.below(file.len() as u64 - 512) as usize;
                file[at] ^= 1 << random.below(8);
            }
            std::fs::write(&path, &file).unwrap();
            let mut buffer = vec![0; size as usize];
            match Image::open(vec![layer(&path, Format::Qcow2, size, false)], false) {
                Ok(image) if image.read(0, &mut buffer).is_ok() => reads += 1,
                Ok(_) => errors += 1,
                Err(error) => panic!("seed {seed}: {error}"),
            }
        }
    }
    println!("{reads} read, {errors} errors");
    assert!(reads > 0 && errors > 0);
}
