//! Map, plan and execute; compare and diff.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use common::*;
use vdsmstore_io::plan::{self, Action, Part, Plan, Target};
use vdsmstore_io::{Control, ErrorKind, Format, Image, Outcome, compare, diff, execute};

const SIZE: u64 = 20 * MIB + 512 * 3;
const EMPTY_RAW: Target = Target { backed: false, known_zero: true };
const OVERLAY: Target = Target { backed: true, known_zero: false };

/// Executes on several threads; the progress must add up to the planned range.
fn go(plan: &Plan, source: &Image, base: Option<&Image>, target: &Image) -> Outcome {
    let progress = AtomicU64::new(0);
    let control = Control {
        cancel: &|| false,
        progress: &|bytes| {
            progress.fetch_add(bytes, Ordering::Relaxed);
        },
        threads: 4,
    };
    let outcome = execute(plan, source, base, target, &control).unwrap();
    assert_eq!(progress.into_inner(), plan.length());
    target.flush().unwrap();
    outcome
}

fn differ(a: &Image, b: &Image) -> Option<u64> {
    let progress = AtomicU64::new(0);
    let control = Control {
        cancel: &|| false,
        progress: &|bytes| {
            progress.fetch_add(bytes, Ordering::Relaxed);
        },
        threads: 3,
    };
    let found = compare(a, b, &control).unwrap();
    if found.is_none() {
        assert_eq!(progress.into_inner(), a.size().max(b.size()));
    }
    found
}

/// A sparse raw file with random islands, one of them of written zeroes.
fn base(dir: &Path) -> (PathBuf, Vec<u8>) {
    let path = dir.join("base");
    let mut model = vec![0; SIZE as usize];
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(SIZE).unwrap();
    let mut random = Random::new(5);
    for (at, length) in [(0, 100_000), (2 * MIB, 3 * MIB), (7 * MIB + 4096, 9000), (SIZE - 5000, 5000)] {
        let range = at as usize..(at + length) as usize;
        random.fill(&mut model[range.clone()]);
        std::os::unix::fs::FileExt::write_all_at(&file, &model[range], at).unwrap();
    }
    std::os::unix::fs::FileExt::write_all_at(&file, &vec![0; 300_000], 12 * MIB).unwrap();
    (path, model)
}

/// base <- source: an overlay with changes, zeroes, and data that equals the base.
fn source(dir: &Path) -> (Image, Vec<u8>, PathBuf) {
    let (base, mut model) = base(dir);
    let top = dir.join("source");
    create(&top, SIZE, Some(("base", Format::Raw)));
    let image = open(&[(&top, Format::Qcow2, SIZE), (&base, Format::Raw, SIZE)]);
    let same = model[(3 * MIB) as usize..][..MIB as usize].to_vec();
    image.write(3 * MIB, &same).unwrap();
    for (at, length) in [(2 * MIB + 100, 50_000), (15 * MIB, MIB + 7), (SIZE - 100, 100)] {
        image.write(at, &vec![9; length as usize]).unwrap();
        model[at as usize..][..length as usize].fill(9);
    }
    for (at, length) in [(4 * MIB, 512 * KIB), (16 * MIB - 1, MIB)] {
        image.write_zeroes(at, length).unwrap();
        model[at as usize..][..length as usize].fill(0);
    }
    image.flush().unwrap();
    assert_same(&read_all(&image), &model);
    (image, model, base)
}

#[test]
fn copy_to_an_empty_raw_file_keeps_holes() {
    let (_keep, dir) = scratch();
    let (source, model, _) = source(&dir);
    let target = dir.join("target");
    std::fs::File::create(&target).unwrap().set_len(SIZE).unwrap();
    let image = open(&[(&target, Format::Raw, SIZE)]);
    let plan = plan::copy(&source, None, EMPTY_RAW, 0, SIZE).unwrap();
    assert!(plan.moves().iter().all(|step| step.action == Action::CopyNonZero));
    assert!(plan.read_bytes() < 6 * MIB, "{}", plan.read_bytes());
    let outcome = go(&plan, &source, None, &image);
    assert!(outcome.written <= plan.write_bytes() && outcome.zeroed == 0);
    assert_same(&std::fs::read(&target).unwrap(), &model);
    let blocks = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&target).unwrap());
    assert!(blocks * 512 < 6 * MIB);
    assert_eq!(differ(&source, &image), None);
}

#[test]
fn copy_overwrites_a_target_that_is_not_empty() {
    let (_keep, dir) = scratch();
    let (source, model, _) = source(&dir);
    let target = dir.join("target");
    std::fs::write(&target, vec![0xff; SIZE as usize]).unwrap();
    let image = open(&[(&target, Format::Raw, SIZE)]);
    let plan = plan::copy(&source, None, Target::default(), 0, SIZE).unwrap();
    let outcome = go(&plan, &source, None, &image);
    assert!(outcome.zeroed > 10 * MIB);
    assert_same(&std::fs::read(&target).unwrap(), &model);
}

#[test]
fn a_planned_range_leaves_the_rest_alone() {
    let (_keep, dir) = scratch();
    let (source, mut model, _) = source(&dir);
    let target = dir.join("target");
    std::fs::write(&target, vec![0xff; SIZE as usize]).unwrap();
    let image = open(&[(&target, Format::Raw, SIZE)]);
    let (at, length) = (2 * MIB + 13, 3 * MIB + 5);
    let plan = plan::copy(&source, None, Target::default(), at, length).unwrap();
    go(&plan, &source, None, &image);
    model[..at as usize].fill(0xff);
    model[(at + length) as usize..].fill(0xff);
    assert_same(&std::fs::read(&target).unwrap(), &model);
}

#[test]
fn copy_into_an_overlay_writes_only_what_differs() {
    let (_keep, dir) = scratch();
    let (source, model, base) = source(&dir);
    let below = open(&[(&base, Format::Raw, SIZE)]);
    let top = dir.join("copy");
    create(&top, SIZE, Some(("base", Format::Raw)));
    let target = open(&[(&top, Format::Qcow2, SIZE), (&base, Format::Raw, SIZE)]);
    let plan = plan::copy(&source, Some(&below), OVERLAY, 0, SIZE).unwrap();
    // What source and base share on the device is not looked at.
    assert!(plan.read_bytes() < 5 * MIB, "{}", plan.read_bytes());
    let outcome = go(&plan, &source, Some(&below), &target);
    assert_same(&read_all(&target), &model);
    assert!(outcome.written < 3 * MIB, "{outcome:?}");
    check_clean(&top);
    assert_same(&qemu_read(&top, "qcow2"), &model);
}

/// The same from a source that shares nothing with the base: all is compared, little is written.
#[test]
fn parts_of_a_plan_are_the_whole_plan() {
    let (_guard, dir) = scratch();
    let (source, model, path) = source(&dir);
    let below = open(&[(&path, Format::Raw, SIZE)]);
    for (base, units, align) in [
        (None, false, 64 * KIB),
        (None, true, 64 * KIB),
        (Some(&below), true, 64 * KIB),
        (Some(&below), true, 4 * MIB),
    ] {
        let to = dir.join("parts");
        let lower = base.map(|_| ("base", Format::Raw));
        create(&to, SIZE, lower);
        let mut layers = vec![(to.as_path(), Format::Qcow2, SIZE)];
        layers.extend(base.map(|_| (path.as_path(), Format::Raw, SIZE)));
        let target = open(&layers);
        let goal = if base.is_some() { OVERLAY } else { EMPTY_RAW };
        let all = plan::copy(&source, base, goal, 0, SIZE).unwrap();
        let (mut at, mut parts, mut moved) = (0, 0, 0);
        while at < SIZE {
            let part = Part { length: SIZE - at, moved: 300 * KIB, align, units };
            let plan = plan::copy_part(&source, base, goal, at, &part).unwrap();
            let end = at + plan.length();
            assert!(plan.offset() == at && plan.length() > 0);
            assert!(end == SIZE || end.is_multiple_of(align), "ends at {end}");
            assert!(
                plan.moved_bytes() <= 300 * KIB + align
                    && plan.moves().iter().all(|step| step.offset + step.length <= end)
            );
            assert!(end == SIZE || plan.moved_bytes() >= 300 * KIB, "too little: {plan:?}");
            go(&plan, &source, base, &target);
            (at, parts, moved) = (end, parts + 1, moved + plan.moved_bytes());
        }
        assert!(
            parts > 2 && moved >= all.moved_bytes(),
            "{parts} parts, {moved} bytes, as a whole {}",
            all.moved_bytes()
        );
        assert_same(&read_all(&target), &model);
        std::fs::remove_file(to).unwrap();
    }
}

#[test]
fn incremental_copy_from_elsewhere() {
    let (_keep, dir) = scratch();
    let (_, model, base) = source(&dir);
    let other = dir.join("other");
    std::fs::write(&other, &model).unwrap();
    let source = Image::open(vec![layer(&other, Format::Raw, SIZE, false)], false).unwrap();
    let below = open(&[(&base, Format::Raw, SIZE)]);
    let top = dir.join("copy");
    create(&top, SIZE, Some(("base", Format::Raw)));
    let target = open(&[(&top, Format::Qcow2, SIZE), (&base, Format::Raw, SIZE)]);
    let plan = plan::copy(&source, Some(&below), OVERLAY, 0, SIZE).unwrap();
    let outcome = go(&plan, &source, Some(&below), &target);
    assert!(outcome.written < 3 * MIB, "{outcome:?}");
    assert_same(&qemu_read(&top, "qcow2"), &model);
    check_clean(&top);
}

/// A base that ends early shows zeroes beyond its end.
#[test]
fn incremental_copy_over_a_shorter_base() {
    let (_keep, dir) = scratch();
    let (_, model, base) = source(&dir);
    let other = dir.join("other");
    std::fs::write(&other, &model).unwrap();
    let source = open(&[(&other, Format::Raw, SIZE)]);
    let short = 3 * MIB + 512;
    let below = open(&[(&base, Format::Raw, short)]);
    let top = dir.join("copy");
    create(&top, SIZE, Some(("base", Format::Raw)));
    let target = open(&[(&top, Format::Qcow2, SIZE), (&base, Format::Raw, short)]);
    let plan = plan::copy(&source, Some(&below), OVERLAY, 0, SIZE).unwrap();
    go(&plan, &source, Some(&below), &target);
    assert_same(&read_all(&target), &model);
}

#[test]
fn compare_finds_the_first_difference() {
    let (_keep, dir) = scratch();
    let (source, model, _) = source(&dir);
    for at in [0, 1, 65535, 3 * MIB + 77, 10 * MIB, SIZE - 1] {
        let path = dir.join("changed");
        let mut bytes = model.clone();
        bytes[at as usize] ^= 1;
        bytes[SIZE as usize - 1] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let changed = open(&[(&path, Format::Raw, SIZE)]);
        let expected = bytes.iter().zip(&model).position(|(a, b)| a != b).map(|at| at as u64);
        assert_eq!(differ(&source, &changed), expected);
        assert_eq!(differ(&changed, &source), expected);
    }
    // Unequal sizes: the rest must be zero.
    let mut longer = model.clone();
    longer.resize(SIZE as usize + 100_000, 0);
    let path = dir.join("longer");
    std::fs::write(&path, &longer).unwrap();
    let size = longer.len() as u64;
    assert_eq!(differ(&source, &open(&[(&path, Format::Raw, size)])), None);
    longer[SIZE as usize + 99_000] = 1;
    std::fs::write(&path, &longer).unwrap();
    assert_eq!(differ(&open(&[(&path, Format::Raw, size)]), &source), Some(SIZE + 99_000));
}

/// What diff should say, from the bytes.
fn expected_diff(ours: &[u8], theirs: &[u8], start: u64, length: u64) -> Vec<(u64, u64, bool)> {
    let mut found: Vec<(u64, u64, bool)> = Vec::new();
    let (mut at, end) = (start, start + length);
    while at < end {
        let next = ((at / 65536 + 1) * 65536).min(end);
        let (a, b) = (&ours[at as usize..next as usize], &theirs[at as usize..next as usize]);
        if a != b {
            let zero = a.iter().all(|byte| *byte == 0);
            match found.last_mut() {
                Some(last) if last.0 + last.1 == at && last.2 == zero => last.1 += next - at,
                _ => found.push((at, next - at, zero)),
            }
        }
        at = next;
    }
    found
}

#[test]
fn diff_lists_what_differs() {
    let (_keep, dir) = scratch();
    let (source, model, base) = source(&dir);
    let base_bytes = std::fs::read(&base).unwrap();
    let below = open(&[(&base, Format::Raw, SIZE)]);
    for (at, length) in [(0, SIZE), (100, SIZE - 200), (4 * MIB + 5, 3), (2 * MIB, 14 * MIB + 1), (5, 0)] {
        for (with, theirs) in [(Some(&below), &base_bytes), (None, &vec![0; SIZE as usize])] {
            let mut found = Vec::new();
            diff(&source, with, at, length, &mut |at, length, zero| {
                found.push((at, length, zero));
                Ok(())
            })
            .unwrap();
            assert_eq!(found, expected_diff(&model, theirs, at, length), "{at} {length}");
        }
    }
}

#[test]
fn cancelled_work_stops() {
    let (_keep, dir) = scratch();
    let (source, _, _) = source(&dir);
    let target = dir.join("target");
    std::fs::File::create(&target).unwrap().set_len(SIZE).unwrap();
    let image = open(&[(&target, Format::Raw, SIZE)]);
    let plan = plan::copy(&source, None, EMPTY_RAW, 0, SIZE).unwrap();
    let calls = AtomicU64::new(0);
    let cancel = || calls.fetch_add(1, Ordering::Relaxed) >= 2;
    let control = Control { cancel: &cancel, progress: &|_| {}, threads: 1 };
    assert_eq!(execute(&plan, &source, None, &image, &control).unwrap_err().kind(), ErrorKind::Cancelled);
    assert_eq!(compare(&source, &image, &control).unwrap_err().kind(), ErrorKind::Cancelled);
}

#[test]
fn errors_say_where() {
    let (_keep, dir) = scratch();
    let (source, _, _) = source(&dir);
    let target = dir.join("target");
    std::fs::File::create(&target).unwrap().set_len(SIZE).unwrap();
    // Not writable: the first request fails.
    let image = Image::open(vec![layer(&target, Format::Raw, SIZE, false)], true).unwrap();
    let plan = plan::copy(&source, None, EMPTY_RAW, 0, SIZE).unwrap();
    let control = Control { cancel: &|| false, progress: &|_| {}, threads: 2 };
    let error = execute(&plan, &source, None, &image, &control).unwrap_err();
    assert_eq!((error.kind(), error.path()), (ErrorKind::ReadOnly, Some(target.as_path())));
    assert!(error.offset().is_some() && error.length().is_some(), "{error:?}");
}
