//! Hostile images: each lie has its expected error kind, and no byte that is flipped makes anything panic.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use common::*;
use vdsmstore_io::ErrorKind::{self, Corrupt, Unsupported};
use vdsmstore_io::qcow2;
use vdsmstore_io::{Format, Image, Layer, Power, Result, SimDevice, SimStorage};

const SIZE: u64 = 4 * MIB;

/// A good image: header, table, block, L1 (3), L2 (4), data (5, 6, 7).
fn good() -> Vec<u8> {
    let storage = SimStorage::new(1, 1);
    let device = SimDevice::new(Arc::clone(&storage), Power::new(), "good".into(), true);
    let backing = Some(qcow2::Backing { name: "below".into(), format: Format::Raw });
    qcow2::create(&device, &qcow2::CreateOptions { size: SIZE, backing, preallocate_metadata: false })
        .unwrap();
    let image = open(&storage, true).unwrap();
    image.write(0, &vec![1; 3 * 65536]).unwrap();
    image.write_zeroes(3 * 65536, 65536).unwrap();
    image.flush().unwrap();
    drop(image);
    storage.bytes()
}

fn open(storage: &Arc<SimStorage>, writable: bool) -> Result<Image> {
    let device = SimDevice::new(Arc::clone(storage), Power::new(), "bad".into(), writable);
    Image::open(vec![Layer { device: Arc::new(device), format: Format::Qcow2, size: SIZE }], writable)
}

/// Everything that can be done with an image; the first error.
fn use_it(bytes: &[u8], writable: bool) -> Result<()> {
    let storage = storage_of(bytes, 1);
    let image = open(&storage, writable)?;
    for run in image.runs(0, SIZE) {
        run?;
    }
    let mut buffer = vec![0; SIZE as usize];
    image.read(0, &mut buffer)?;
    if writable {
        image.write(100, &[5; 200])?;
        image.write(65536 * 8 + 17, &vec![6; 200_000])?;
        image.write_zeroes(65536, 65536 * 3 + 5)?;
        image.flush()?;
        image.write(65536, &vec![8; 300_000])?;
        image.flush()?;
    }
    Ok(())
}

/// What is wrong, the error that tells it, and words of it.
type Lie = (&'static str, ErrorKind, &'static str, fn(&mut Vec<u8>));

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

const L1: usize = 3 * 65536;
const L2: usize = 4 * 65536;
const TABLE: usize = 65536;
const BLOCK: usize = 2 * 65536;
const HOST: u64 = 1 << 63;

/// Lies that a reader must find.
const READING: &[Lie] = &[
    ("magic", Corrupt, "not a qcow2 image", |b| b[0] = 0),
    ("empty file", Corrupt, "not a qcow2 image", Vec::clear),
    ("file of 71 bytes", Corrupt, "not a qcow2 image", |b| b.truncate(71)),
    ("file of 100 bytes", Corrupt, "the file ends within the header", |b| b.truncate(100)),
    ("version 1", Unsupported, "qcow2 version other than 2 and 3", |b| put(b, 4, &1u32.to_be_bytes())),
    ("version 4", Unsupported, "qcow2 version other than 2 and 3", |b| put(b, 4, &4u32.to_be_bytes())),
    ("cluster bits 8", Corrupt, "cluster size under 512 bytes", |b| put(b, 20, &8u32.to_be_bytes())),
    ("cluster bits 0", Corrupt, "cluster size under 512 bytes", |b| put(b, 20, &0u32.to_be_bytes())),
    ("cluster bits 22", Unsupported, "cluster size over 2 MiB", |b| put(b, 20, &22u32.to_be_bytes())),
    ("cluster bits 2^32-1", Unsupported, "cluster size over 2 MiB", |b| put(b, 20, &u32::MAX.to_be_bytes())),
    ("size 2^64-1", Corrupt, "virtual size over 2^63", |b| put(b, 24, &u64::MAX.to_be_bytes())),
    ("size beyond L1", Corrupt, "the L1 table is too small for the virtual size", |b| {
        put(b, 24, &(1u64 << 40).to_be_bytes());
    }),
    ("size below the record's", Corrupt, "the image is smaller than its record says", |b| {
        put(b, 24, &MIB.to_be_bytes());
    }),
    ("encryption 3", Corrupt, "unknown encryption method", |b| put(b, 32, &3u32.to_be_bytes())),
    ("encryption AES", Unsupported, "encrypted image", |b| put(b, 32, &1u32.to_be_bytes())),
    ("encryption LUKS", Unsupported, "encrypted image", |b| put(b, 32, &2u32.to_be_bytes())),
    ("L1 empty", Corrupt, "the L1 table is too small for the virtual size", |b| {
        put(b, 36, &0u32.to_be_bytes());
    }),
    ("L1 of 32 GiB", Unsupported, "L1 table over 32 MiB", |b| put(b, 36, &u32::MAX.to_be_bytes())),
    ("L1 of 32 MiB beyond the file", Corrupt, "the L1 table lies outside the file", |b| {
        put(b, 36, &(1u32 << 22).to_be_bytes());
    }),
    ("L1 at 0", Corrupt, "the L1 table is not aligned to a cluster", |b| put(b, 40, &0u64.to_be_bytes())),
    ("L1 not aligned", Corrupt, "the L1 table is not aligned to a cluster", |b| {
        put(b, 40, &(L1 as u64 + 512).to_be_bytes());
    }),
    ("L1 beyond the file", Corrupt, "the L1 table lies outside the file", |b| {
        put(b, 40, &(1u64 << 40).to_be_bytes());
    }),
    ("L1 at the end of all numbers", Corrupt, "the L1 table lies outside the file", |b| {
        put(b, 40, &0xffff_ffff_ffff_0000u64.to_be_bytes());
    }),
    ("refcount table empty", Corrupt, "no refcount table", |b| put(b, 56, &0u32.to_be_bytes())),
    ("refcount table huge", Unsupported, "refcount table over 8 MiB", |b| {
        put(b, 56, &u32::MAX.to_be_bytes());
    }),
    ("refcount table not aligned", Corrupt, "the refcount table is not aligned to a cluster", |b| {
        put(b, 48, &66048u64.to_be_bytes());
    }),
    ("refcount table beyond the file", Corrupt, "the refcount table lies outside the file", |b| {
        put(b, 48, &(1u64 << 62).to_be_bytes());
    }),
    ("too many snapshots", Unsupported, "more than 65536 internal snapshots", |b| {
        put(b, 60, &65537u32.to_be_bytes());
    }),
    (
        "snapshot table not aligned",
        Corrupt,
        "the snapshot table lies outside the file or is not aligned",
        |b| {
            put(b, 60, &1u32.to_be_bytes());
            put(b, 64, &1u64.to_be_bytes());
        },
    ),
    ("unknown incompatible bit", Unsupported, "unknown incompatible features: bit 63", |b| b[72] = 0x80),
    ("external data file", Unsupported, "external data file", |b| b[79] = 4),
    (
        "compression bit without type",
        Corrupt,
        "compression type and its feature bit contradict each other",
        |b| b[79] = 8,
    ),
    (
        "compression type without bit",
        Corrupt,
        "compression type and its feature bit contradict each other",
        |b| b[104] = 1,
    ),
    ("unknown compression type", Unsupported, "unknown compression type", |b| {
        b[79] = 8;
        b[104] = 2;
    }),
    ("refcount order 7", Corrupt, "refcounts wider than 64 bits", |b| put(b, 96, &7u32.to_be_bytes())),
    ("header length 103", Corrupt, "impossible header length", |b| put(b, 100, &103u32.to_be_bytes())),
    ("header length 107", Corrupt, "impossible header length", |b| put(b, 100, &107u32.to_be_bytes())),
    ("header length 2^32-8", Corrupt, "impossible header length", |b| {
        put(b, 100, &(u32::MAX - 7).to_be_bytes());
    }),
    (
        "backing name outside the cluster",
        Corrupt,
        "the backing name is too long or lies outside the first cluster",
        |b| put(b, 8, &65535u64.to_be_bytes()),
    ),
    (
        "backing name at 2^64-1",
        Corrupt,
        "the backing name is too long or lies outside the first cluster",
        |b| put(b, 8, &u64::MAX.to_be_bytes()),
    ),
    ("backing name within the header", Corrupt, "the backing name lies within the header", |b| {
        put(b, 8, &20u64.to_be_bytes());
    }),
    (
        "backing name of 1024 bytes",
        Corrupt,
        "the backing name is too long or lies outside the first cluster",
        |b| put(b, 16, &1024u32.to_be_bytes()),
    ),
    ("backing format too long", Corrupt, "the backing format's name is too long", |b| {
        put(b, 116, &16u32.to_be_bytes());
    }),
    ("two backing formats", Corrupt, "two backing formats", |b| {
        b.copy_within(112..200, 128);
        put(b, 8, &160u64.to_be_bytes());
    }),
    ("two names of data files", Corrupt, "two names of data files", |b| {
        for at in [112, 128] {
            put(b, at, b"DATA\0\0\0\x04name\0\0\0\0");
        }
        put(b, 8, &160u64.to_be_bytes());
    }),
    ("data file's name of 1024 bytes", Corrupt, "the name of the data file is too long", |b| {
        put(b, 112, b"DATA\0\0\x04\0");
        put(b, 8, &2000u64.to_be_bytes());
    }),
    ("extension that reaches into the name", Corrupt, "a header extension is too long", |b| {
        put(b, 119, &[32]);
    }),
    ("extension of 4 GiB", Corrupt, "a header extension is too long", |b| {
        put(b, 116, &u32::MAX.to_be_bytes());
    }),
    ("L2 not aligned", Corrupt, "an L2 table is not aligned to a cluster", |b| {
        put(b, L1, &(HOST | (L2 as u64 + 512)).to_be_bytes());
    }),
    ("L2 beyond the file", Corrupt, "an L2 table lies outside the file", |b| {
        put(b, L1, &(HOST | (1 << 40)).to_be_bytes());
    }),
    ("cluster not aligned", Corrupt, "a cluster is not aligned", |b| {
        put(b, L2, &(HOST | (5 * 65536 + 512)).to_be_bytes());
    }),
    ("cluster beyond the file", Corrupt, "a cluster lies outside the file", |b| {
        put(b, L2 + 16, &(HOST | (1 << 50)).to_be_bytes());
    }),
    ("compressed cluster that is none", Corrupt, "a compressed cluster is damaged", |b| {
        put(b, L2, &((1u64 << 62) | 65536).to_be_bytes());
    }),
    ("zero cluster in version 2", Corrupt, "a zero cluster in a version 2 image", |b| {
        put(b, 4, &2u32.to_be_bytes());
        put(b, 72, &[0; 8]);
        put(b, 8, &200u64.to_be_bytes());
    }),
];

/// Makes the header name one internal snapshot with that L1 table.
fn snapshot(bytes: &mut [u8], l1: u64, entries: u32) {
    const TABLE: u64 = 6 * 65536;
    put(bytes, 60, &1u32.to_be_bytes());
    put(bytes, 64, &TABLE.to_be_bytes());
    put(bytes, TABLE as usize, &[0; 40]);
    put(bytes, TABLE as usize, &l1.to_be_bytes());
    put(bytes, TABLE as usize + 8, &entries.to_be_bytes());
}

/// Lies that a writer must find, and images that it must leave alone.
const WRITING: &[Lie] = &[
    ("dirty", Unsupported, "writing to an image that is marked dirty or corrupt", |b| b[79] = 1),
    ("corrupt", Unsupported, "writing to an image that is marked dirty or corrupt", |b| b[79] = 2),
    ("refcounts of another width", Corrupt, "a table has the refcount 0", |b| {
        put(b, 96, &3u32.to_be_bytes());
    }),
    ("snapshot table in the header", Corrupt, "the L1 table of an internal snapshot is not aligned", |b| {
        put(b, 60, &1u32.to_be_bytes());
    }),
    ("snapshot whose L1 is the active one", Corrupt, "two tables share a cluster", |b| {
        snapshot(b, L1 as u64, 1);
    }),
    (
        "snapshot whose L1 is not aligned",
        Corrupt,
        "the L1 table of an internal snapshot is not aligned",
        |b| snapshot(b, L1 as u64 + 512, 1),
    ),
    (
        "snapshot whose L1 is at 0",
        Corrupt,
        "the L1 table of an internal snapshot lies outside the file",
        |b| snapshot(b, 0, 1),
    ),
    (
        "snapshot whose L1 lies outside",
        Corrupt,
        "the L1 table of an internal snapshot lies outside the file",
        |b| snapshot(b, 1 << 40, 1),
    ),
    ("snapshot whose L1 is huge", Unsupported, "L1 table of an internal snapshot over 32 MiB", |b| {
        snapshot(b, 5 * 65536, u32::MAX);
    }),
    ("snapshot that shares an L2 that is not shared", Corrupt, "two tables share a cluster", |b| {
        snapshot(b, 5 * 65536, 1);
        put(b, 5 * 65536, &(L2 as u64).to_be_bytes());
    }),
    ("compressed data in a table", Corrupt, "a compressed cluster is damaged", |b| {
        put(b, L2, &((1u64 << 62) | BLOCK as u64).to_be_bytes());
    }),
    ("compressed data without a refcount", Corrupt, "a compressed cluster lies outside the file", |b| {
        put(b, L2, &((1u64 << 62) | (200 * 65536)).to_be_bytes());
    }),
    ("L1 entry with reserved bits", Corrupt, "an L2 table is not aligned or lies outside the file", |b| {
        put(b, L1, &(HOST | 1 | L2 as u64).to_be_bytes());
    }),
    ("L2 is the header", Corrupt, "an L2 table is not aligned or lies outside the file", |b| {
        put(b, L1, &(HOST | 0x1ff).to_be_bytes());
    }),
    ("L2 is L1", Corrupt, "two tables share a cluster", |b| put(b, L1, &(HOST | L1 as u64).to_be_bytes())),
    ("L2 is a refcount block", Corrupt, "two tables share a cluster", |b| {
        put(b, L1, &(HOST | BLOCK as u64).to_be_bytes());
    }),
    ("L1 is the refcount table", Corrupt, "two tables share a cluster", |b| {
        put(b, 40, &(TABLE as u64).to_be_bytes());
    }),
    (
        "refcount block not aligned",
        Corrupt,
        "a refcount block is not aligned or lies outside the file",
        |b| put(b, TABLE, &(BLOCK as u64 + 1).to_be_bytes()),
    ),
    (
        "refcount block beyond the file",
        Corrupt,
        "a refcount block is not aligned or lies outside the file",
        |b| put(b, TABLE, &(1u64 << 40).to_be_bytes()),
    ),
    ("two refcount blocks in one", Corrupt, "two tables share a cluster", |b| {
        put(b, TABLE + 8, &(BLOCK as u64).to_be_bytes());
    }),
    ("no refcount block", Corrupt, "a table has no refcount", |b| put(b, TABLE, &[0; 8])),
    ("all refcounts zero", Corrupt, "a table has no refcount", |b| put(b, BLOCK, &[0; 16])),
    ("header's refcount zero", Corrupt, "a table has the refcount 0", |b| put(b, BLOCK, &[0; 2])),
    ("L2's refcount zero", Corrupt, "a table has the refcount 0", |b| put(b, BLOCK + 8, &[0; 2])),
    (
        "data is the header's cluster",
        Corrupt,
        "a data cluster overlaps the metadata or has no refcount",
        |b| put(b, L2, &(HOST | TABLE as u64).to_be_bytes()),
    ),
    ("data is L1", Corrupt, "a data cluster overlaps the metadata or has no refcount", |b| {
        put(b, L2, &(HOST | L1 as u64).to_be_bytes());
    }),
    ("data is its own L2", Corrupt, "a data cluster overlaps the metadata or has no refcount", |b| {
        put(b, L2 + 8, &(HOST | L2 as u64).to_be_bytes());
    }),
];

#[test]
fn the_good_image_is_good() {
    use_it(&good(), false).unwrap();
    use_it(&good(), true).unwrap();
}

#[test]
fn every_lie_is_found_when_reading() {
    for (name, kind, words, lie) in READING {
        let mut bytes = good();
        lie(&mut bytes);
        let error = use_it(&bytes, false).expect_err(name);
        assert_eq!(error.kind(), *kind, "{name}: {error:?}");
        assert!(error.to_string().contains(words), "{name}: {error:?}, not {words:?}");
        // A writer finds it as well, if perhaps something else first.
        let error = use_it(&bytes, true).expect_err(name);
        assert!(matches!(error.kind(), Corrupt | Unsupported), "{name}: {error:?}");
    }
}

#[test]
fn every_lie_is_found_when_writing() {
    for (name, kind, words, lie) in WRITING {
        let mut bytes = good();
        lie(&mut bytes);
        let error = use_it(&bytes, true).expect_err(name);
        assert_eq!(error.kind(), *kind, "{name}: {error:?}");
        assert!(error.to_string().contains(words), "{name}: {error:?}, not {words:?}");
    }
}

/// An L2 table that is not marked as ours alone is copied before it changes, though nothing else refers to it.
#[test]
fn l2_tables_that_are_not_marked_are_copied() {
    let mut bytes = good();
    put(&mut bytes, L1, &(L2 as u64).to_be_bytes());
    let storage = storage_of(&bytes, 1);
    let image = open(&storage, true).unwrap();
    let mut model = read_all(&image);
    image.write(7, &[9; 100]).unwrap();
    model[7..107].fill(9);
    image.flush().unwrap();
    assert_same(&read_all(&image), &model);
    let (_keep, dir) = scratch();
    let path = dir.join("image");
    std::fs::write(dir.join("below"), b"").unwrap();
    let bytes = storage.bytes();
    assert_ne!(bytes[L1..L1 + 8], (HOST | L2 as u64).to_be_bytes());
    assert_eq!(bytes[L1] >> 7, 1);
    std::fs::write(&path, bytes).unwrap();
    check_clean(&path);
}

#[test]
fn giving_up_a_cluster_that_has_no_refcount_is_an_error() {
    let mut bytes = good();
    put(&mut bytes, BLOCK + 12, &[0; 2]);
    let image = open(&storage_of(&bytes, 1), true).unwrap();
    image.discard(65536, 65536).unwrap();
    assert_eq!(image.flush().unwrap_err().kind(), Corrupt);
    assert_eq!(image.flush().unwrap_err().kind(), ErrorKind::Poisoned);
}

#[test]
fn flipped_bytes_never_panic() {
    let good = good();
    let mut random = Random::new(4);
    // Where the metadata is; data bytes mean nothing.
    let places: [(usize, u64); 8] =
        [(0, 112), (0, 200), (TABLE, 32), (BLOCK, 40), (L1, 8), (L2, 64), (L1, 512), (L2, 1024)];
    for round in 0..800 {
        let mut bytes = good.clone();
        for _ in 0..=random.below(3) {
            let (start, length) = places[random.below(places.len() as u64) as usize];
            let at = start + random.below(length) as usize;
            bytes[at] = if round % 2 == 0 { bytes[at] ^ (1 << random.below(8)) } else { random.next() as u8 };
        }
        if random.below(10) == 0 {
            bytes.truncate(random.below(bytes.len() as u64) as usize);
        }
        let _ = use_it(&bytes, false);
        let _ = use_it(&bytes, true);
    }
}

#[test]
fn unknown_autoclear_bits_are_cleared_before_the_first_write_only() {
    let mut bytes = good();
    bytes[88] = 0x40;
    // Bitmaps, but there are none.
    bytes[95] = 1;
    let storage = storage_of(&bytes, 1);
    let image = open(&storage, true).unwrap();
    image.read(0, &mut [0; 10]).unwrap();
    image.flush().unwrap();
    assert_eq!(storage.bytes()[88], 0x40);
    image.write(0, &[1]).unwrap();
    assert_eq!(storage.bytes()[88..96], [0; 8]);
}

#[test]
fn a_file_may_end_within_its_last_cluster() {
    let mut bytes = good();
    let end = 7 * 65536 + 1000;
    bytes.truncate(end);
    let image = open(&storage_of(&bytes, 1), false).unwrap();
    let mut buffer = vec![9; 65536];
    image.read(2 * 65536, &mut buffer).unwrap();
    assert!(buffer[..1000].iter().all(|b| *b == 1) && buffer[1000..].iter().all(|b| *b == 0));
}

/// Two entries share a cluster of refcount 2, as the specification allows. Whichever is written on, the other
/// keeps its data, and what is left is a leak, not an error.
#[test]
fn shared_clusters_without_snapshots() {
    let mut bytes = good();
    put(&mut bytes, L2, &(5u64 * 65536).to_be_bytes());
    put(&mut bytes, L2 + 8, &(5u64 * 65536).to_be_bytes());
    put(&mut bytes, BLOCK + 10, &2u16.to_be_bytes());
    put(&mut bytes, BLOCK + 12, &0u16.to_be_bytes());
    let (_keep, dir) = scratch();
    let path = dir.join("image");
    std::fs::write(dir.join("below"), b"").unwrap();
    std::fs::write(&path, &bytes).unwrap();
    check_clean(&path);
    for order in [[0, 1], [1, 0]] {
        let storage = storage_of(&bytes, 1);
        let image = open(&storage, true).unwrap();
        let mut model = read_all(&image);
        for (step, cluster) in order.into_iter().enumerate() {
            image.write(cluster * 65536 + 7, &[9; 100]).unwrap();
            model[cluster as usize * 65536 + 7..][..100].fill(9);
            assert_same(&read_all(&image), &model);
            image.flush().unwrap();
            std::fs::write(&path, storage.bytes()).unwrap();
            check_leaks_only(&path);
            if step == 0 {
                // The cluster that is still used was not handed out.
                image.write(40 * 65536, &vec![1; 65536]).unwrap();
                model[40 * 65536..][..65536].fill(1);
            }
        }
        image.flush().unwrap();
        drop(image);
        assert_same(&read_all(&open(&storage, true).unwrap()), &model);
    }
}
