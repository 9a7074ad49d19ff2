//! Scenarios by name, each on clusters so small that every path of the metadata is taken. A scenario asserts that what
//! it is about has happened.

use std::path::Path;

use vdsmstore_io::SimStorage;
use vdsmstore_io::qcow2::{self, CreateOptions};

use crate::common::packed::count_compressed;
use crate::common::*;
use crate::content::SECTOR;
use crate::cutter::Watched;
use crate::stage::Stage;

const L1: usize = 40;
const REFCOUNT_TABLE: usize = 48;

/// The entries of the refcount table that are not empty, with their numbers.
fn blocks(bytes: &[u8]) -> Vec<(u64, u64)> {
    let be64 = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
    let entries = u64::from(u32::from_be_bytes(bytes[56..60].try_into().unwrap())) << (bytes[23] - 3);
    let table = be64(REFCOUNT_TABLE);
    (0..entries).map(|at| (at, be64((table + at * 8) as usize))).filter(|(_, entry)| *entry != 0).collect()
}

/// Writes sector by sector from `first` on until the file has so many clusters modulo a region's; the next sector.
fn fill_until(stage: &mut Stage, mut first: u64, region: u64, rest: u64) -> u64 {
    loop {
        stage.flush();
        if stage.bytes().len() as u64 / 512 % region == rest {
            return first;
        }
        stage.write(first, 1);
        first += 1;
    }
}

#[test]
fn first_write() {
    let mut stage = Stage::new("first write", "cluster_size=512", 64 * KIB, false);
    stage.arm();
    stage.write(3, 1);
    stage.flush();
    stage.write(70, 2);
    stage.flush();
    stage.finish();
}

#[test]
fn overwrite_in_place() {
    let mut stage = Stage::new("overwrite in place", "cluster_size=1k", 64 * KIB, false);
    stage.write(0, 16);
    stage.arm();
    let before = stage.bytes().len();
    stage.write(2, 3);
    stage.flush();
    stage.write(3, 1);
    stage.write(3, 2);
    stage.flush();
    assert_eq!(stage.bytes().len(), before);
    stage.finish();
}

#[test]
fn several_clusters_at_once() {
    let mut stage = Stage::new("several clusters at once", "cluster_size=1k", 128 * KIB, false);
    stage.write(5, 2);
    stage.arm();
    stage.write(1, 9);
    stage.write(100, 4);
    stage.flush();
    stage.finish();
}

#[test]
fn copy_from_the_base() {
    let mut stage = Stage::new("copy from the base", "cluster_size=4k", 96 * KIB, true);
    stage.arm();
    stage.write(3, 1);
    stage.flush();
    // Half of it below the base's end, half beyond.
    stage.write(127, 2);
    stage.write(4, 1);
    stage.flush();
    stage.finish();
}

#[test]
fn growth_of_l1() {
    let mut stage = Stage::new("growth of L1", "cluster_size=512", 64 * KIB, false);
    stage.write(0, 4);
    stage.arm();
    let before = stage.field(L1);
    stage.write(9, 1);
    stage.grow(128 * KIB);
    stage.write(200, 2);
    stage.flush();
    assert_ne!(stage.field(L1), before);
    stage.finish();
}

#[test]
fn resize() {
    let mut stage = Stage::new("resize", "cluster_size=2k", 63 * KIB, false);
    stage.write(124, 2);
    stage.arm();
    let before = stage.field(L1);
    stage.write(0, 1);
    stage.grow(90 * KIB);
    stage.write(126, 3);
    stage.flush();
    stage.grow(128 * KIB);
    assert_eq!(stage.field(L1), before);
    stage.finish();
}

/// What the base has beyond the old end must not show.
#[test]
fn resize_over_a_longer_base() {
    let mut stage = Stage::new("resize over a longer base", "cluster_size=1k", 32 * KIB, true);
    stage.lengthen_base(100);
    stage.arm();
    stage.write(2, 1);
    stage.grow(80 * KIB);
    stage.write(70, 1);
    stage.flush();
    stage.finish();
}

#[test]
fn growth_of_the_refcount_table() {
    let options = "cluster_size=512,refcount_bits=64";
    let mut stage = Stage::new("growth of the refcount table", options, 2 * MIB + 256 * KIB, false);
    // One cluster of the table counts 64 x 64 clusters.
    let mut next = 0;
    while stage.bytes().len() / 512 < 64 * 64 - 70 {
        stage.write(next, 40);
        stage.flush();
        next += 40;
    }
    next = fill_until(&mut stage, next, 4096, 4090);
    stage.arm();
    let before = stage.field(REFCOUNT_TABLE);
    stage.write(next, 4);
    stage.flush();
    stage.write(next + 4, 6);
    stage.zero(3, 2);
    stage.flush();
    stage.write(3, 1);
    stage.flush();
    assert_ne!(stage.field(REFCOUNT_TABLE), before);
    stage.finish();
}

#[test]
fn first_cluster_of_a_region_is_its_block() {
    let options = "cluster_size=512,refcount_bits=64";
    let mut stage = Stage::new("a region's first is its block", options, 128 * KIB, false);
    let next = fill_until(&mut stage, 0, 64, 0);
    stage.arm();
    stage.write(next, 2);
    stage.flush();
    stage.write(next + 2, 1);
    stage.flush();
    assert!(blocks(&stage.bytes()).iter().any(|(at, entry)| *at > 0 && *entry == at * 64 * 512));
    stage.finish();
}

/// A run of clusters begins in one region and ends in the next, whose block then lies before it.
#[test]
fn refcount_block_in_the_middle() {
    let options = "cluster_size=512,refcount_bits=64";
    let mut stage = Stage::new("a refcount block in the middle", options, 128 * KIB, false);
    let next = fill_until(&mut stage, 0, 64, 63);
    stage.arm();
    stage.grow(3 * MIB);
    stage.write(next, 1);
    stage.flush();
    let found = blocks(&stage.bytes());
    assert!(found.iter().any(|(at, entry)| entry / 512 / 64 + 1 == *at), "{found:x?}");
    stage.finish();
}

fn compressed(name: &'static str, cluster: u64, compression: &str) -> Stage {
    let options = format!("cluster_size={cluster},compression_type={compression}");
    let mut stage = Stage::new(name, &options, 96 * KIB, false);
    let per = cluster / SECTOR;
    for at in 0..6 {
        stage.compress(at * per, per);
    }
    stage.flush();
    assert_eq!(count_compressed(&stage.bytes(), 6), 6);
    stage
}

#[test]
fn copy_of_compressed() {
    let mut stage = compressed("copy of compressed", 2048, "zlib");
    stage.arm();
    stage.write(1, 1);
    stage.flush();
    stage.write(4, 4);
    stage.zero(8, 4);
    stage.flush();
    stage.write(12, 1);
    stage.flush();
    assert_eq!(count_compressed(&stage.bytes(), 6), 2);
    stage.finish();
}

#[test]
fn compressed_output() {
    let mut stage = Stage::new("compressed output", "cluster_size=1k", 64 * KIB, false);
    stage.arm();
    stage.compress(0, 2);
    stage.compress(2, 2);
    stage.flush();
    stage.compress(4, 2);
    stage.compress(0, 2);
    stage.flush();
    stage.compress(6, 2);
    stage.flush();
    assert_eq!(count_compressed(&stage.bytes(), 4), 4);
    stage.finish();
}

#[test]
fn compressed_over_compressed() {
    let mut stage = compressed("compressed over compressed, zstd", 4096, "zstd");
    stage.arm();
    stage.compress(0, 8);
    stage.flush();
    stage.compress(0, 24);
    stage.flush();
    stage.discard(24, 16);
    stage.flush();
    stage.compress(32, 8);
    stage.flush();
    stage.finish();
}

#[test]
fn copy_of_shared() {
    let mut stage = Stage::new("copy of shared", "cluster_size=1k", 96 * KIB, false);
    stage.write(0, 12);
    stage.write(130, 4);
    stage.snapshot();
    stage.arm();
    let table = stage.bytes()[stage.field(L1) as usize..][..8].to_vec();
    stage.write(1, 1);
    stage.flush();
    assert_ne!(stage.bytes()[stage.field(L1) as usize..][..8], table);
    stage.write(2, 4);
    stage.zero(8, 2);
    stage.flush();
    stage.write(8, 1);
    stage.flush();
    stage.finish();
}

#[test]
fn copy_of_shared_compressed() {
    let mut stage = compressed("copy of shared compressed", 2048, "zlib");
    stage.snapshot();
    stage.arm();
    stage.write(1, 1);
    stage.flush();
    stage.compress(4, 4);
    stage.discard(8, 4);
    stage.flush();
    stage.finish();
}

#[test]
fn growth_of_l1_with_a_snapshot() {
    let mut stage = Stage::new("growth of L1 with a snapshot", "cluster_size=512", 64 * KIB, false);
    stage.write(0, 3);
    stage.snapshot();
    stage.arm();
    stage.grow(160 * KIB);
    stage.write(1, 1);
    stage.write(300, 1);
    stage.flush();
    stage.finish();
}

#[test]
fn discard_then_reuse() {
    let mut stage = Stage::new("discard then reuse", "cluster_size=512", 64 * KIB, false);
    stage.write(0, 8);
    stage.write(40, 1);
    stage.arm();
    let before = stage.bytes().len();
    stage.discard(2, 4);
    stage.flush();
    stage.write(41, 3);
    stage.flush();
    stage.discard(41, 1);
    stage.write(50, 1);
    stage.flush();
    assert_eq!(stage.bytes().len(), before, "the freed clusters were not used");
    stage.finish();
}

#[test]
fn zero_then_reuse() {
    let mut stage = Stage::new("zero then reuse", "cluster_size=1k", 48 * KIB, true);
    stage.write(0, 8);
    stage.write(20, 1);
    stage.arm();
    let before = stage.bytes().len();
    stage.zero(1, 6);
    stage.flush();
    stage.write(22, 2);
    stage.write(3, 1);
    stage.flush();
    assert_eq!(stage.bytes().len(), before, "the freed clusters were not used");
    stage.finish();
}

/// What is given up is not used again before a flush, whatever comes in between.
#[test]
fn freed_and_needed_before_one_flush() {
    let mut stage = Stage::new("freed and needed before one flush", "cluster_size=512", 64 * KIB, false);
    stage.write(0, 4);
    stage.arm();
    stage.discard(1, 2);
    stage.write(1, 1);
    stage.write(30, 2);
    stage.discard(30, 1);
    stage.flush();
    stage.write(31, 3);
    stage.flush();
    stage.finish();
}

#[test]
fn two_flushes_with_frees_between() {
    let mut stage = Stage::new("two flushes with frees between", "cluster_size=512", 64 * KIB, false);
    stage.write(0, 6);
    stage.arm();
    stage.flush();
    stage.discard(0, 2);
    stage.flush();
    stage.discard(2, 2);
    stage.write(70, 1);
    stage.flush();
    stage.flush();
    stage.write(0, 3);
    stage.flush();
    stage.finish();
}

/// QEMU's zero clusters that keep their place are written in it.
#[test]
fn zero_clusters_that_keep_their_place() {
    let mut stage = Stage::new("zero clusters that keep their place", "cluster_size=1k", 48 * KIB, true);
    stage.write(0, 8);
    stage.write(20, 2);
    stage.zero(2, 4);
    stage.flush();
    stage.rework(|path| {
        std::fs::write(path.with_file_name("base"), []).unwrap();
        qemu_io(path, &["write 1k 2k", "write -z 1k 2k"]);
    });
    stage.arm();
    let before = stage.bytes().len();
    stage.write(3, 1);
    stage.flush();
    stage.write(4, 2);
    stage.zero(2, 2);
    stage.flush();
    assert_eq!(stage.bytes().len(), before);
    stage.finish();
}

#[test]
fn preallocated() {
    let mut stage = Stage::new("preallocated", "cluster_size=1k,preallocation=metadata", 64 * KIB, false);
    stage.arm();
    let before = stage.bytes().len();
    stage.write(1, 2);
    stage.flush();
    stage.discard(2, 2);
    stage.write(60, 1);
    stage.flush();
    stage.write(2, 1);
    stage.flush();
    assert_eq!(stage.bytes().len(), before);
    stage.finish();
}

#[test]
fn entries_in_one_sector() {
    let mut stage = Stage::new("entries in one sector", "cluster_size=4k", 256 * KIB, false);
    stage.write(0, 32);
    stage.arm();
    stage.discard(8, 8);
    stage.write(100, 1);
    stage.flush();
    stage.write(8, 1);
    stage.discard(24, 8);
    stage.write(200, 1);
    stage.flush();
    stage.finish();
}

/// More tables change than the cache may hold: it is flushed in the middle of a request.
#[test]
fn flush_for_want_of_room() {
    let mut stage = Stage::new("flush for want of room", "cluster_size=512", 512 * KIB, false);
    stage.write(0, 1);
    stage.memory = Some(0);
    stage.arm();
    let before = stage.field(L1);
    let first = stage.bytes()[before as usize..][..128].to_vec();
    // One table to 64 sectors.
    for table in 1..9 {
        stage.write(64 * table + 3, 1);
    }
    stage.write(700, 70);
    let now = &stage.bytes()[before as usize..][..128];
    assert_ne!(now, first, "there was no flush");
    stage.flush();
    stage.zero(60, 200);
    stage.flush();
    stage.finish();
}

fn narrow(name: &'static str, bits: u32) {
    let options = format!("cluster_size=512,refcount_bits={bits}");
    let mut stage = Stage::new(name, &options, 64 * KIB, false);
    stage.write(0, 6);
    stage.arm();
    stage.discard(1, 3);
    stage.write(70, 1);
    stage.flush();
    stage.write(20, 3);
    stage.flush();
    stage.finish();
}

#[test]
fn refcounts_of_one_bit() {
    narrow("refcounts of one bit", 1);
}

#[test]
fn refcounts_of_four_bits() {
    narrow("refcounts of four bits", 4);
}

#[test]
fn bitmap_in_use() {
    let mut stage = Stage::new("bitmap in use", "cluster_size=1k", 64 * KIB, false);
    stage.write(0, 6);
    stage.bitmap();
    stage.arm();
    stage.write(1, 1);
    stage.flush();
    stage.reopen();
    stage.write(2, 1);
    // Closed without a flush: in use for ever.
    stage.flush();
    stage.zero(4, 2);
    stage.flush();
    stage.finish();
}

/// Bits go to new clusters, which the bitmap's table names only when they are whole.
#[test]
fn bits_in_new_clusters() {
    let mut stage = Stage::new("bits in new clusters", "cluster_size=512", 6 * MIB, false);
    stage.bitmap();
    stage.arm();
    stage.write(1, 1);
    stage.flush();
    // One cluster of bits is 2 MiB of the disk.
    stage.write(4096, 1);
    stage.write(8191, 2);
    stage.flush();
    stage.finish();
}

/// The bitmap's table and the directory move, before the disk is larger.
#[test]
fn resize_past_bitmaps() {
    let mut stage = Stage::new("resize past bitmaps", "cluster_size=512", 64 * KIB, false);
    stage.write(0, 6);
    stage.bitmap();
    stage.arm();
    stage.write(1, 1);
    stage.flush();
    let before = stage.bytes();
    // One cluster of bits is 2 MiB of the disk.
    stage.write(3, 1);
    stage.grow(3 * MIB);
    let found =
        |bytes: &[u8]| bytes.windows(4).position(|four| four == [0x23, 0x85, 0x28, 0x75]).unwrap() + 24;
    let (at, now) = (found(&before), stage.bytes());
    assert_ne!(before[at..at + 8], now[at..at + 8], "the directory did not move");
    stage.write(5000, 1);
    stage.flush();
    stage.finish();
}

#[test]
fn preallocated_by_us() {
    let storage = SimStorage::new(1, 1);
    let mut stage = Stage::of("preallocated by us", storage, MIB, false);
    stage.cutter.expect(false, |expect| expect.creating = true);
    stage.cutter.arm();
    let options = CreateOptions { size: MIB, backing: None, preallocate_metadata: true };
    qcow2::create(&Watched::new(&stage.cutter), &options).unwrap();
    stage.cutter.expect(true, |expect| expect.creating = false);
    let before = stage.bytes().len();
    stage.write(200, 2);
    stage.flush();
    assert_eq!(stage.bytes().len(), before);
    stage.finish();
}

#[test]
fn bitmap_with_a_snapshot() {
    let mut stage = Stage::new("bitmap with a snapshot", "cluster_size=1k", 64 * KIB, false);
    stage.write(0, 6);
    stage.snapshot();
    stage.bitmap();
    stage.arm();
    stage.write(1, 1);
    stage.flush();
    stage.discard(2, 2);
    stage.flush();
    stage.finish();
}

/// Bits that nobody knows are gone before anything has changed.
#[test]
fn unknown_autoclear_bits() {
    let mut stage = Stage::new("unknown autoclear bits", "cluster_size=512", 64 * KIB, false);
    stage.write(0, 4);
    stage.flush();
    stage.rework(|path: &Path| {
        let mut bytes = std::fs::read(path).unwrap();
        bytes[88] = 0x40;
        std::fs::write(path, bytes).unwrap();
    });
    stage.cutter.expect(false, |expect| expect.autoclear = Some((0x40, expect.model.clone())));
    stage.arm();
    assert_eq!(stage.bytes()[88], 0x40);
    stage.write(1, 1);
    stage.flush();
    stage.zero(2, 1);
    stage.flush();
    assert_eq!(stage.bytes()[88], 0);
    stage.finish();
}

#[test]
fn change_of_the_backing_name() {
    let (_keep, dir) = scratch();
    let path = dir.join("image");
    create(&path, 96 * KIB, Some(("base", vdsmstore_io::Format::Raw)));
    let storage = storage_of(&std::fs::read(&path).unwrap(), 1);
    let mut stage = Stage::of("change of the backing name", storage, 96 * KIB, true);
    stage.arm();
    stage.write(3, 1);
    stage.flush();
    stage.set_backing(Some("other"));
    stage.write(4, 1);
    stage.write(150, 2);
    stage.flush();
    stage.set_backing(Some("base"));
    stage.write(5, 1);
    stage.flush();
    stage.finish();
}

#[test]
fn creation() {
    let storage = SimStorage::new(1, 1);
    let mut stage = Stage::of("creation", storage, 2 * MIB, false);
    stage.cutter.expect(false, |expect| expect.creating = true);
    stage.cutter.arm();
    let options = CreateOptions { size: 2 * MIB, backing: None, preallocate_metadata: false };
    qcow2::create(&Watched::new(&stage.cutter), &options).unwrap();
    stage.cutter.expect(true, |expect| expect.creating = false);
    stage.write(200, 2);
    stage.flush();
    stage.finish();
}

/// The clusters that new images have.
#[test]
fn clusters_of_64_kib() {
    let mut stage = Stage::new("clusters of 64 KiB", "cluster_size=64k", 512 * KIB, true);
    stage.write(0, 2);
    stage.arm();
    stage.write(300, 1);
    stage.flush();
    stage.zero(0, 128);
    stage.write(301, 1);
    stage.flush();
    stage.write(130, 1);
    stage.flush();
    stage.finish();
}
