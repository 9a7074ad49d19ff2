//! The nightly flow: a disk is copied every night, each time with the previous copy as the base.

#![allow(
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::expect_used,
    clippy::field_reassign_with_default,
    clippy::needless_range_loop,
    clippy::unwrap_used,
    reason = "the numbers of tests are small, and tests fail by panicking"
)]

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;

use vdsmstore_core::options::{CopyOptions, CreateOptions};
use vdsmstore_core::{Image, Store};
use vdsmstore_tests::{Written, new_repo, qemu_equal, settle, store, write};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 256 * MIB;
/// What a copy is made of, and here what is written: so that what changed can be counted to the byte.
const CLUSTER: u64 = 64 << 10;
/// Fixed costs that a copy may have beyond what changed.
const OVERHEAD: u64 = MIB;

/// Writes the same bytes to the disk and to the file that says what it must contain.
fn day(image: &Image, model: &Path, night: u64) -> vdsmstore_core::Result<u64> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(model).expect("model");
    file.set_len(SIZE).expect("model size");
    let mut changed = 0;
    for piece in 0..40_u64 {
        let length = 64 * 1024 * (1 + (piece + night) % 3);
        let offset = ((piece * 7919 + night * 104_729) * CLUSTER) % (SIZE - length) / CLUSTER * CLUSTER;
        let data: Vec<u8> = (0..length).map(|i| (i * 31 + piece * 7 + night) as u8 | 1).collect();
        image.write(offset as i64, &data)?;
        file.write_all_at(&data, offset).expect("model write");
        changed += length;
    }
    image.write_zeroes((night * 3 * MIB) as i64, 65536 * 2)?;
    file.write_all_at(&vec![0; 65536 * 2], night * 3 * MIB).expect("model zeroes");
    Ok(changed)
}

fn flow(root: &Path) {
    let store: Store = store("nightly");
    new_repo(&store, root, "A");
    new_repo(&store, root, "B");
    let model = |night: u64| root.join(format!("night{night}.raw"));
    let image =
        store.create_virtual_disk("A", Some(SIZE as i64), None, "{}", &CreateOptions::default()).unwrap();
    let image = image.to_string();
    let mut copies: Vec<String> = Vec::new();
    for night in 0..4 {
        if night > 0 {
            std::fs::copy(model(night - 1), model(night)).unwrap();
        }
        let changed = write(&store, "A", &image, |open| day(open, &model(night), night));
        let before = Written::now();
        let copy = store
            .copy_image("B", &image, copies.last().map(String::as_str), "{}", &CopyOptions::default())
            .unwrap()
            .to_string();
        settle(&store, "B", &copy);
        let written = before.since();
        println!("night {night}: changed {changed}, wrote {written}");
        if night > 0 {
            assert!(written <= changed + OVERHEAD, "night {night}: wrote {written}, changed {changed}");
        }
        assert_eq!(store.get_image_info("A", &image).unwrap().depth, 1, "the source is never snapshotted");
        copies.push(copy);
    }
    // Later writes to the first copy do not change the others.
    write(&store, "B", &copies[0], |open| open.write(0, &vec![0xee; 8 * MIB as usize]));
    std::fs::copy(model(0), root.join("first.raw")).unwrap();
    let first = OpenOptions::new().write(true).open(root.join("first.raw")).unwrap();
    first.write_all_at(&vec![0xee; 8 * MIB as usize], 0).unwrap();
    qemu_equal(&store, "B", &copies[0], &root.join("first.raw"));
    for night in 1..4 {
        qemu_equal(&store, "B", &copies[night as usize], &model(night));
    }
    qemu_equal(&store, "A", &image, &model(3));
    store.close().unwrap();
}

#[test]
fn each_night_costs_what_changed() {
    let root = tempfile::tempdir().unwrap();
    flow(root.path());
}
