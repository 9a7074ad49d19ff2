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
    let mut bytes = vec![0; base_size as usize];
    Random::new(2).fill(&mut bytes);
    std::fs::write(&base, &bytes).unwrap();
    create(&top, size, Some(("base.raw", Format::Raw)));
    let image = open(&[(&top, Format::Qcow2, size), (&base, Format::Raw, base_size)]);
    let mut model = bytes.clone();
    model.resize(size as usize, 0);
    for (offset, length) in
        [(10, 5), (65536, 65536), (3 * MIB + 600, 200), (5 * MIB + 9, 100_000), (size - 1, 1)]
    {
        let data = vec![7; length as usize];
        image.write(offset, &data).unwrap();
        model[offset as usize..][..length as usize].fill(7);
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
