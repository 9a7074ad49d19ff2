//! QEMU as the judge: what it writes we read, what we write it reads and finds clean.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use vdsmstore_io::qcow2;
use vdsmstore_io::{ErrorKind, FileDevice, Format, Image, RunKind};

#[test]
fn created_images_are_clean_and_described_rightly() {
    let (_keep, dir) = scratch();
    for size in [0, 1, 512, 65536, MIB + 1, 10 * GIB, 16 << 40] {
        let path = dir.join(format!("{size}.qcow2"));
        create(&path, size, None);
        check_clean(&path);
        let info = qcow2::info(&FileDevice::open(&path, false).unwrap()).unwrap();
        assert_eq!((info.size, info.version, info.cluster_size), (size.next_multiple_of(512), 3, 65536));
        let text = qemu("qemu-img", &["info", "-f", "qcow2", path.to_str().unwrap()]);
        assert!(text.contains("compat: 1.1"), "{text}");
        assert!(text.contains(&format!("({} bytes)", size.next_multiple_of(512))), "{text}");
    }
}

#[test]
fn written_images_read_back_through_qemu() {
    let (_keep, dir) = scratch();
    let path = dir.join("a.qcow2");
    let size = 20 * MIB + 3 * 512;
    create(&path, size, None);
    let mut model = vec![0; size as usize];
    let mut random = Random::new(1);
    let image = open_one(&path, size);
    for _ in 0..60 {
        let offset = random.below(size);
        let length = (1 + random.below(300_000)).min(size - offset);
        let mut data = vec![0; length as usize];
        random.fill(&mut data);
        image.write(offset, &data).unwrap();
        model[offset as usize..][..length as usize].copy_from_slice(&data);
    }
    assert_same(&read_all(&image), &model);
    image.flush().unwrap();
    check_clean(&path);
    assert_same(&qemu_read(&path, "qcow2"), &model);
}

#[test]
fn overlays_copy_on_write() {
    let (_keep, dir) = scratch();
    let (base, top) = (dir.join("base.raw"), dir.join("top.qcow2"));
    let (base_size, size) = (3 * MIB + 700, 8 * MIB);
    let places: [(u64, usize); 5] =
        [(10, 5), (65536, 65536), (3 * MIB + 600, 200), (5 * MIB + 9, 100_000), (size - 1, 1)];
    let mut bytes = vec![0; base_size as usize];
    Random::new(2).fill(&mut bytes);
    std::fs::write(&base, &bytes).unwrap();
    create(&top, size, Some(("base.raw", Format::Raw)));
    let image = open(&[(&top, Format::Qcow2, size), (&base, Format::Raw, base_size)]);
    let mut model = bytes.clone();
    model.resize(size as usize, 0);
    for (offset, length) in places {
        let data = vec![7; length];
        image.write(offset, &data).unwrap();
        model[offset as usize..][..length].fill(7);
    }
    image.write_zeroes(MIB + 5, MIB).unwrap();
    model[(MIB + 5) as usize..][..MIB as usize].fill(0);
    assert_same(&read_all(&image), &model);
    image.flush().unwrap();
    check_clean(&top);
    assert_same(&qemu_read(&top, "qcow2"), &model);
    let run = image.run(MIB + 65536, MIB).unwrap();
    assert_eq!(run.kind, RunKind::Zero { layer: 0 });
    assert!(matches!(
        image.run(131_072, MIB).unwrap().kind,
        RunKind::Data { layer: 1, device_offset: 131_072, .. }
    ));
    assert_eq!(image.run(6 * MIB, MIB).unwrap().kind, RunKind::Hole);
    assert_eq!(image.read(size, &mut [0]).unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[test]
fn a_raw_layer_cannot_be_above_another() {
    let (_keep, dir) = scratch();
    for name in ["a", "b"] {
        std::fs::write(dir.join(name), [0; 512]).unwrap();
    }
    let layers = ["a", "b"].map(|name| layer(&dir.join(name), Format::Raw, 512, false));
    assert_eq!(Image::open(layers.to_vec(), false).unwrap_err().kind(), ErrorKind::InvalidInput);
    let twice = vec![layers[0].clone(), layers[0].clone()];
    assert_eq!(Image::open(twice, false).unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(Image::open(vec![], false).unwrap_err().kind(), ErrorKind::InvalidInput);
    let many = vec![layers[0].clone(); 257];
    assert_eq!(Image::open(many, false).unwrap_err().kind(), ErrorKind::InvalidInput);
}

/// Every kind of image that QEMU makes and that we claim to read.
#[test]
fn images_made_by_qemu_are_read() {
    let (_keep, dir) = scratch();
    let variants = [
        "compat=0.10",
        "compat=1.1,lazy_refcounts=on",
        "cluster_size=512",
        "cluster_size=2M",
        "refcount_bits=1",
        "refcount_bits=64",
        "preallocation=metadata",
        "preallocation=falloc",
        "compression_type=zstd",
    ];
    for options in variants {
        let path = dir.join("image");
        let name = path.to_str().unwrap();
        qemu("qemu-img", &["create", "-q", "-f", "qcow2", "-o", options, name, "9437696"]);
        qemu_io(&path, &["write -P 1 0 100k", "write -P 2 1M 3000", "write -P 3 8M 1049088"]);
        if options != "compat=0.10" {
            qemu_io(&path, &["write -z 64k 128k", "write -z -u 8M 256k"]);
        }
        if !options.contains("refcount_bits=1") && !options.contains("lazy") {
            qemu("qemu-img", &["snapshot", "-c", "s", name]);
            qemu_io(&path, &["write -P 4 4k 60k"]);
        }
        let size = 9_437_696;
        let image = Image::open(vec![layer(&path, Format::Qcow2, size, false)], false).unwrap();
        assert_same(&read_all(&image), &qemu_read(&path, "qcow2"));
        std::fs::remove_file(path).unwrap();
    }
}

/// Images that QEMU made and changed are written on: zero clusters that keep their place, preallocated ones.
#[test]
fn images_made_by_qemu_are_written() {
    let (_keep, dir) = scratch();
    for options in ["cluster_size=65536", "preallocation=metadata", "cluster_size=4k,preallocation=falloc"] {
        let path = dir.join("image");
        let name = path.to_str().unwrap();
        let size = 8 * MIB;
        qemu("qemu-img", &["create", "-q", "-f", "qcow2", "-o", options, name, "8M"]);
        qemu_io(
            &path,
            &["write -P 1 0 2M", "write -z 1M 512k", "write -z -u 1536k 256k", "discard 128k 64k"],
        );
        let mut model = qemu_read(&path, "qcow2");
        let image = open_one(&path, size);
        for (at, length) in [(MIB + 5, 70_000), (1600 * KIB, 100), (130 * KIB, 10), (4 * MIB, MIB), (7, 9)] {
            image.write(at, &vec![5; length as usize]).unwrap();
            model[at as usize..][..length as usize].fill(5);
        }
        image.discard(MIB + 64 * KIB, 256 * KIB).unwrap();
        model[(MIB + 64 * KIB) as usize..][..(256 * KIB) as usize].fill(0);
        assert_same(&read_all(&image), &model);
        image.flush().unwrap();
        check_clean(&path);
        assert_same(&qemu_read(&path, "qcow2"), &model);
        std::fs::remove_file(path).unwrap();
    }
}

#[test]
fn what_is_not_read_is_refused_by_name() {
    let (_keep, dir) = scratch();
    let refused = |path: &std::path::Path, writable: bool| {
        Image::open(vec![layer(path, Format::Qcow2, MIB, writable)], writable).unwrap_err()
    };
    let (a, b) = (dir.join("a"), dir.join("b"));
    let (name, other) = (a.to_str().unwrap(), b.to_str().unwrap());
    let data_file = format!("data_file={other}");
    qemu("qemu-img", &["create", "-q", "-f", "qcow2", "-o", &data_file, name, "1M"]);
    let error = refused(&a, false);
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("data file"), "{error}");
    qemu("qemu-img", &["create", "-q", "-f", "qcow2", "-o", "compat=0.10", name, "1M"]);
    assert_eq!(refused(&a, true).kind(), ErrorKind::Unsupported);
}

#[test]
fn raw_layers_may_end_in_their_last_sector_only() {
    let (_keep, dir) = scratch();
    let path = dir.join("raw");
    std::fs::write(&path, vec![7; 1000]).unwrap();
    let image = Image::open(vec![layer(&path, Format::Raw, 1024, false)], false).unwrap();
    let bytes = read_all(&image);
    assert!(bytes[..1000].iter().all(|b| *b == 7) && bytes[1000..].iter().all(|b| *b == 0));
    let error = Image::open(vec![layer(&path, Format::Raw, 1025, false)], false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ShortRead);
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(100).unwrap();
    assert_eq!(image.read(0, &mut [0; 1024]).unwrap_err().kind(), ErrorKind::ShortRead);
}

/// Sixty layers of unequal sizes, each with a little of its own.
#[test]
fn long_chains_of_unequal_lengths() {
    let (_keep, dir) = scratch();
    let mut random = Random::new(60);
    let mut model: Vec<u8> = Vec::new();
    let mut layers: Vec<(std::path::PathBuf, u64)> = Vec::new();
    for index in 0..60u8 {
        let path = dir.join(index.to_string());
        let size = 512 * (1 + random.below(4000));
        let below = (index > 0).then(|| (index - 1).to_string());
        create(&path, size, below.as_deref().map(|name| (name, Format::Qcow2)));
        layers.insert(0, (path, size));
        let chain: Vec<_> =
            layers.iter().map(|(path, size)| (path.as_path(), Format::Qcow2, *size)).collect();
        let image = open(&chain);
        model.resize(size as usize, 0);
        let at = random.below(size);
        let length = (1 + random.below(90_000)).min(size - at);
        image.write(at, &vec![index + 1; length as usize]).unwrap();
        model[at as usize..][..length as usize].fill(index + 1);
        image.flush().unwrap();
        assert_same(&read_all(&image), &model);
    }
    assert_same(&qemu_read(&layers[0].0, "qcow2"), &model);
}
