//! The backing file in the header.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use common::*;
use vdsmstore_io::qcow2::{self, Backing, CreateOptions};
use vdsmstore_io::{Device, ErrorKind, FileDevice, Format, Power, SimDevice, SimStorage};

fn named(name: &str, format: Format) -> Backing {
    Backing { name: name.into(), format }
}

fn described(device: &dyn Device) -> (Option<String>, Option<String>) {
    let info = qcow2::info(device).unwrap();
    (info.backing, info.backing_format)
}

fn expected(backing: Option<&Backing>) -> (Option<String>, Option<String>) {
    (backing.map(|b| b.name.clone()), backing.map(|b| b.format.to_string()))
}

#[test]
fn name_and_format_change_in_one_sector() {
    let (_keep, dir) = scratch();
    std::fs::write(dir.join("first"), vec![1; MIB as usize]).unwrap();
    create(&dir.join("second-and-longer"), MIB, None);
    let second = open_one(&dir.join("second-and-longer"), MIB);
    second.write(0, &vec![2; MIB as usize]).unwrap();
    second.flush().unwrap();
    let top = dir.join("top");
    create(&top, MIB, Some(("first", Format::Raw)));
    let before = std::fs::read(&top).unwrap();
    let device = FileDevice::open(&top, true).unwrap();
    let (first, second) = (named("first", Format::Raw), named("second-and-longer", Format::Qcow2));
    for (backing, byte) in [
        (Some(&second), 2),
        (Some(&first), 1),
        (None, 0),
        (None, 0),
        (Some(&second), 2),
        (None, 0),
        (Some(&first), 1),
    ] {
        qcow2::set_backing(&device, backing).unwrap();
        assert_eq!(described(&device), expected(backing));
        assert_eq!(qemu_read(&top, "qcow2"), vec![byte; MIB as usize]);
        let text = qemu("qemu-img", &["info", "-f", "qcow2", top.to_str().unwrap()]);
        assert_eq!(text.contains("backing file:"), backing.is_some(), "{text}");
        let format = backing.map_or(String::new(), |b| format!("backing file format: {}\n", b.format));
        assert!(text.contains(&format), "{text}");
        check_clean(&top);
    }
    // Back where it was, it is byte for byte what it was.
    assert_eq!(before, std::fs::read(&top).unwrap());
    qcow2::set_backing(&device, Some(&named("other", Format::Raw))).unwrap();
    assert_eq!(described(&device), (Some("other".into()), Some("raw".into())));
    for name in [String::new(), "x".repeat(400)] {
        let error = qcow2::set_backing(&device, Some(&named(&name, Format::Raw))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
    let longest = "x".repeat(512 - 136);
    qcow2::set_backing(&device, Some(&named(&longest, Format::Qcow2))).unwrap();
    qcow2::set_backing(&device, Some(&first)).unwrap();
    assert_eq!(before, std::fs::read(&top).unwrap());
}

/// QEMU has a table of feature names there, and the backing name in the second sector.
#[test]
fn what_qemu_laid_out_changes_as_well() {
    let (_keep, dir) = scratch();
    std::fs::write(dir.join("first"), vec![1; MIB as usize]).unwrap();
    std::fs::write(dir.join("other"), vec![2; MIB as usize]).unwrap();
    let path = dir.join("image");
    let name = path.to_str().unwrap();
    let mut strangers = 0;
    for options in
        ["compat=1.1", "lazy_refcounts=on", "compression_type=zstd", "cluster_size=512", "cluster_size=2M"]
    {
        for bitmap in [false, true] {
            qemu(
                "qemu-img",
                &["create", "-q", "-f", "qcow2", "-o", options, "-b", "first", "-F", "raw", name],
            );
            if bitmap {
                qemu("qemu-img", &["bitmap", "--add", name, "b"]);
            }
            // An extension that nobody knows, in place of the first names.
            let mut bytes = std::fs::read(&path).unwrap();
            let names = bytes.windows(4).position(|four| four == 0x6803_f857u32.to_be_bytes());
            let unknown = names.filter(|_| options == "lazy_refcounts=on");
            if let Some(at) = unknown {
                let length = u32::from_be_bytes(bytes[at + 4..at + 8].try_into().unwrap());
                bytes[at..at + 4].copy_from_slice(b"what");
                bytes[at + 4..at + 8].copy_from_slice(&16u32.to_be_bytes());
                bytes[at + 24..at + 28].copy_from_slice(&0x6803_f857u32.to_be_bytes());
                bytes[at + 28..at + 32].copy_from_slice(&(length - 24).to_be_bytes());
                std::fs::write(&path, &bytes).unwrap();
                strangers += 1;
            }
            let stranger = unknown.map(|at| bytes[at..at + 24].to_vec());
            let device = FileDevice::open(&path, true).unwrap();
            for (backing, byte) in
                [(Some(named("other", Format::Raw)), 2), (None, 0), (Some(named("first", Format::Raw)), 1)]
            {
                qcow2::check_set_backing(&device, backing.as_ref()).unwrap();
                qcow2::set_backing(&device, backing.as_ref()).unwrap();
                assert_eq!(described(&device), expected(backing.as_ref()));
                assert_eq!(qemu_read(&path, "qcow2"), vec![byte; MIB as usize], "{options}");
                check_clean(&path);
                let text = qemu("qemu-img", &["info", "-f", "qcow2", name]);
                assert_eq!(text.contains("bitmaps"), bitmap, "{text}");
                let front = std::fs::read(&path).unwrap()[..512].to_vec();
                let kept = |stranger: &Vec<u8>| front.windows(24).any(|part| part == stranger);
                assert!(stranger.as_ref().is_none_or(kept), "the unknown one is lost");
            }
            std::fs::remove_file(&path).unwrap();
        }
    }
    assert_eq!(strangers, 2);
}

/// What is not written by us at all is refused.
#[test]
fn other_kinds_are_refused() {
    let (_keep, dir) = scratch();
    let path = dir.join("image");
    let name = path.to_str().unwrap();
    let refused = |what: &str| {
        let before = std::fs::read(&path).unwrap();
        let device = FileDevice::open(&path, true).unwrap();
        for backing in [None, Some(&named("a", Format::Raw))] {
            for result in [qcow2::check_set_backing(&device, backing), qcow2::set_backing(&device, backing)] {
                assert_eq!(result.unwrap_err().kind(), ErrorKind::Unsupported, "{what}");
            }
        }
        assert_eq!(before, std::fs::read(&path).unwrap());
    };
    for options in ["compat=0.10", "extended_l2=on"] {
        qemu("qemu-img", &["create", "-q", "-f", "qcow2", "-o", options, name, "1M"]);
        refused(options);
        std::fs::remove_file(&path).unwrap();
    }
    // Marked as corrupt; and an extension that leaves no room.
    for (at, bytes) in [(72, 1u64 << 1), (112, 0x1234_5678_0000_0190)] {
        create(&path, MIB, None);
        FileDevice::open(&path, true).unwrap().write_at(at, &bytes.to_be_bytes()).unwrap();
        refused(&format!("{bytes:#x} at {at}"));
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn a_power_cut_leaves_the_one_or_the_other() {
    let all = [None, Some(named("first", Format::Raw)), Some(named("second-and-longer", Format::Qcow2))];
    for (from, to) in all.iter().flat_map(|from| all.iter().map(move |to| (from.as_ref(), to.as_ref()))) {
        for cut in 0..=2 {
            for keep in [false, true] {
                let storage = SimStorage::new(1, 1);
                let open = |power: &Arc<Power>| {
                    SimDevice::new(Arc::clone(&storage), Arc::clone(power), "sim".into(), true)
                };
                let options =
                    CreateOptions { size: MIB, backing: from.cloned(), preallocate_metadata: false };
                qcow2::create(&open(&Power::new()), &options).unwrap();
                let power = Power::new();
                power.cut_after(Some(cut));
                let result = qcow2::set_backing(&open(&power), to);
                assert_eq!(result.is_ok(), cut == 2);
                assert!(power.writes() == cut, "one write and one flush");
                storage.crash(&mut || keep);
                let found = described(&open(&Power::new()));
                let changed = cut == 2 || (cut == 1 && keep);
                assert_eq!(found, expected(if changed { to } else { from }));
            }
        }
    }
}
