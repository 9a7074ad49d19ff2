//! Random operations against a plain array of bytes, with reopening, and QEMU's verdict at the end.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use common::*;
use proptest::prelude::*;
use vdsmstore_io::{Format, Image, RunKind};

#[derive(Clone, Debug)]
enum Op {
    Write {
        at: u32,
        length: u32,
        seed: u8,
    },
    Zero {
        at: u32,
        length: u32,
    },
    Discard {
        at: u32,
        length: u32,
    },
    /// By that many sectors.
    Grow {
        by: u32,
    },
    Flush,
    Reopen,
}

fn op() -> impl Strategy<Value = Op> {
    // Lengths are small mostly, so that clusters are written in parts.
    let length = prop_oneof![3 => 1u32..3000, 2 => 1u32..100_000, 1 => 1u32..1_000_000];
    prop_oneof![
        5 => (any::<u32>(), length.clone(), 1u8..).prop_map(|(at, length, seed)| Op::Write { at, length, seed }),
        2 => (any::<u32>(), length.clone()).prop_map(|(at, length)| Op::Zero { at, length }),
        2 => (any::<u32>(), length).prop_map(|(at, length)| Op::Discard { at, length }),
        1 => prop_oneof![3 => 0u32..200, 1 => 0u32..1500].prop_map(|by| Op::Grow { by }),
        1 => Just(Op::Flush),
        1 => Just(Op::Reopen),
    ]
}

struct Case {
    cluster_size: u64,
    size: u64,
    base_size: Option<u64>,
}

fn check(case: &Case, ops: &[Op]) {
    let (_keep, dir) = scratch();
    let (top, base) = (dir.join("top"), dir.join("base"));
    let mut model = vec![0; case.size as usize];
    if let Some(base_size) = case.base_size {
        let mut bytes = vec![0; base_size as usize];
        Random::new(3).fill(&mut bytes);
        std::fs::write(&base, &bytes).unwrap();
        let shown = base_size.min(case.size) as usize;
        model[..shown].copy_from_slice(&bytes[..shown]);
    }
    make(&top, case);
    let reopen = |size: u64| -> Image {
        let mut layers = vec![(top.as_path(), Format::Qcow2, size)];
        if let Some(base_size) = case.base_size {
            layers.push((base.as_path(), Format::Raw, base_size));
        }
        common::open(&layers)
    };
    let mut image = reopen(case.size);
    for op in ops {
        let size = model.len() as u64;
        let range = |at: u32, length: u32| {
            let at = u64::from(at) % size;
            (at, u64::from(length).min(size - at))
        };
        match *op {
            Op::Write { at, length, seed } => {
                let (at, length) = range(at, length);
                let mut data = vec![0; length as usize];
                Random::new(u64::from(seed)).fill(&mut data);
                image.write(at, &data).unwrap();
                model[at as usize..][..length as usize].copy_from_slice(&data);
            }
            Op::Zero { at, length } | Op::Discard { at, length } => {
                let (at, length) = range(at, length);
                if matches!(op, Op::Zero { .. }) {
                    image.write_zeroes(at, length).unwrap();
                } else {
                    image.discard(at, length).unwrap();
                }
                model[at as usize..][..length as usize].fill(0);
            }
            Op::Grow { by } => {
                let size = size + u64::from(by) * 512;
                image.grow(size).unwrap();
                model.resize(size as usize, 0);
            }
            Op::Flush => image.flush().unwrap(),
            Op::Reopen => {
                image.flush().unwrap();
                drop(image);
                image = reopen(size);
            }
        }
    }
    assert_same(&read_all(&image), &model);
    check_runs(&image, &model);
    image.flush().unwrap();
    drop(image);
    check_clean(&top);
    assert_same(&qemu_read(&top, "qcow2"), &model);
    assert_same(&read_all(&reopen(model.len() as u64)), &model);
}

/// The map covers the disk, and what it calls zero is.
fn check_runs(image: &Image, model: &[u8]) {
    let mut at = 0;
    for run in image.runs(0, image.size()) {
        let run = run.unwrap();
        assert_eq!(run.offset, at);
        assert!(run.length > 0);
        if matches!(run.kind, RunKind::Zero { .. } | RunKind::Hole) {
            assert!(model[at as usize..][..run.length as usize].iter().all(|byte| *byte == 0));
        }
        at += run.length;
    }
    assert_eq!(at, image.size());
}

fn make(top: &Path, case: &Case) {
    let options = format!("cluster_size={}", case.cluster_size);
    let (name, size) = (top.to_str().unwrap(), case.size.to_string());
    let mut arguments = vec!["create", "-q", "-f", "qcow2", "-o", &options];
    if case.base_size.is_some() {
        arguments.extend(["-u", "-b", "base", "-F", "raw"]);
    }
    arguments.extend([name, &size]);
    qemu("qemu-img", &arguments);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16 * effort() as u32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn clusters_of_64_kib(ops in prop::collection::vec(op(), 1..40), backed in any::<bool>()) {
        let base_size = backed.then_some(MIB + 77 * 512);
        check(&Case { cluster_size: 65536, size: 4 * MIB + 512 * 5, base_size }, &ops);
    }

    #[test]
    fn clusters_of_512_bytes(ops in prop::collection::vec(op(), 1..40), backed in any::<bool>()) {
        let base_size = backed.then_some(300 * KIB + 512);
        check(&Case { cluster_size: 512, size: MIB - 512, base_size }, &ops);
    }

    #[test]
    fn a_base_larger_than_the_overlay(ops in prop::collection::vec(op(), 1..30)) {
        check(&Case { cluster_size: 65536, size: MIB + 512 * 3, base_size: Some(2 * MIB) }, &ops);
    }

    #[test]
    fn clusters_of_2_mib(ops in prop::collection::vec(op(), 1..20)) {
        check(&Case { cluster_size: 2 * MIB, size: 9 * MIB, base_size: Some(5 * MIB + 512) }, &ops);
    }
}

/// More tables than the cache holds, each changed: it must flush on its own, and evict.
#[test]
fn many_tables_pass_through_the_cache() {
    let (_keep, dir) = scratch();
    let path = dir.join("wide");
    // 300 L2 tables of 64 KiB are 19 MiB.
    let size = 300 * 512 * MIB;
    create(&path, size, None);
    let image = open_one(&path, size);
    let mut random = Random::new(8);
    let mut places: Vec<u64> = (0..300).map(|table| table * 512 * MIB + random.below(8000) * 65536).collect();
    for (index, at) in places.iter().enumerate() {
        image.write(*at, &[index as u8 | 1; 1000]).unwrap();
    }
    places.reverse();
    for at in &places {
        let mut buffer = [0; 1000];
        image.read(*at, &mut buffer).unwrap();
        assert_ne!(buffer[999], 0);
    }
    image.flush().unwrap();
    check_clean(&path);
    let image = open_one(&path, size);
    for (index, at) in places.iter().rev().enumerate() {
        let mut buffer = [0; 1000];
        image.read(*at, &mut buffer).unwrap();
        assert_eq!(buffer, [index as u8 | 1; 1000]);
    }
    // One sparse table per write: nothing near 300 times 64 KiB of metadata may be allocated.
    let blocks = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&path).unwrap());
    assert!(blocks * 512 < 300 * 4096 * 3 + MIB, "{} bytes allocated", blocks * 512);
}

/// What is discarded is used again, in the same session and after reopening.
#[test]
fn space_is_reused() {
    let (_keep, dir) = scratch();
    let path = dir.join("image");
    create(&path, 64 * MIB, None);
    let data = vec![1; (32 * MIB) as usize];
    for round in 0..6 {
        let image = open_one(&path, 64 * MIB);
        for half in 0..2 {
            image.write(half * 32 * MIB, &data).unwrap();
            image.flush().unwrap();
            image.discard(half * 32 * MIB, 32 * MIB).unwrap();
            image.flush().unwrap();
        }
        let length = std::fs::metadata(&path).unwrap().len();
        assert!(length < 34 * MIB, "round {round}: {length}");
        check_clean(&path);
    }
}

/// Zeroing and discarding a TiB in one call: with nothing there, with islands of data, and over a base, where it
/// takes 2,048 tables, more than the cache may hold.
#[test]
fn a_tib_in_one_call() {
    let (_keep, dir) = scratch();
    let (plain, top, base) = (dir.join("plain"), dir.join("top"), dir.join("base"));
    let size = 1 << 40;
    create(&plain, size, None);
    create(&base, size, None);
    create(&top, size, Some(("base", Format::Qcow2)));
    let started = std::time::Instant::now();
    for layers in [vec![&plain], vec![&top, &base]] {
        let chain: Vec<_> = layers.iter().map(|path| (path.as_path(), Format::Qcow2, size)).collect();
        let image = open(&chain);
        for at in 0..50 {
            image.write(at * size / 50 + 100, &vec![7; 100_000]).unwrap();
        }
        image.discard(0, size).unwrap();
        image.write_zeroes(0, size).unwrap();
        image.flush().unwrap();
        let kind = if layers.len() > 1 { RunKind::Zero { layer: 0 } } else { RunKind::Hole };
        let runs: Vec<_> = image.runs(0, size).map(Result::unwrap).collect();
        assert!(runs.len() == 1 && runs[0].kind == kind, "{runs:?}");
        drop(image);
        check_clean(layers[0]);
    }
    // It takes a second or two.
    assert!(started.elapsed().as_secs() < 60, "{:?}", started.elapsed());
}
