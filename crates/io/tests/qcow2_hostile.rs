//! Images with everything in them, and some bytes wrong: whatever is done with them ends in data or an error, and what is
//! wrong in a known way is named.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;

use common::packed::*;
use common::*;
use vdsmstore_io::ErrorKind::{Corrupt, NotFound, Unsupported};
use vdsmstore_io::{
    Device, ErrorKind, Format, Image, ImageOptions, Layer, Power, Result, SimDevice, SimStorage, qcow2,
};

const SIZE: u64 = MIB + 512 * 3;

/// Compressed and plain clusters, snapshots that share tables, bitmaps.
fn image(cluster_size: u64, compression: &str) -> Vec<u8> {
    let (_keep, dir) = scratch();
    let path = dir.join("image");
    let name = path.to_str().unwrap();
    qemu_compressed(&path, &mixture(&mut Random::new(cluster_size), SIZE), cluster_size, compression);
    qemu("qemu-img", &["bitmap", "--add", "-g", "4096", name, "on"]);
    qemu("qemu-img", &["snapshot", "-c", "one", name]);
    qemu_io(&path, &["write -P 5 100k 70k", "write -z 300k 100k"]);
    qemu("qemu-img", &["snapshot", "-c", "two", name]);
    qemu_io(&path, &["write -P 6 120k 30k"]);
    qemu("qemu-img", &["bitmap", "--add", "--disable", name, "off"]);
    check_clean(&path);
    std::fs::read(&path).unwrap()
}

/// Reads, lists and writes all that can be; the first error.
fn use_it(storage: &Arc<SimStorage>, cluster_size: u64) -> Result<()> {
    let device: Arc<SimDevice> =
        Arc::new(SimDevice::new(Arc::clone(storage), Power::new(), "bad".into(), true));
    for bitmap in qcow2::bitmaps(&*device).unwrap_or_default() {
        let _ = qcow2::visit_bitmap(&*device, &bitmap.name, &mut |_, length| {
            assert!(length > 0);
            Ok(())
        });
    }
    let _ = qcow2::snapshots(&*device);
    let image = Image::open(vec![Layer { device, format: Format::Qcow2, size: SIZE }], true)?;
    let mut buffer = vec![0; SIZE as usize];
    image.read(0, &mut buffer)?;
    image.write(100, &[5; 200])?;
    image.write(110 * KIB + 17, &vec![6; 200_000])?;
    image.write_zeroes(50 * KIB, 300 * KIB + 5)?;
    image.flush()?;
    image.write_compressed(cluster_size, &vec![8; cluster_size as usize])?;
    image.write(SIZE - 70_000, &vec![8; 70_000])?;
    image.flush()?;
    let known = [(100, 200, 5), (SIZE - 70_000, 70_000, 8)];
    for (at, length, byte) in known {
        let mut found = vec![0; length];
        image.read(at, &mut found)?;
        assert!(found.iter().all(|found| *found == byte));
    }
    Ok(())
}

#[test]
fn flipped_bytes_end_in_data_or_an_error() {
    let (mut fine, mut refused) = (0, 0);
    for (cluster_size, compression) in [(512, DEFLATE), (4096, ZSTD), (65536, DEFLATE)] {
        let good = image(cluster_size, compression);
        use_it(&storage_of(&good, 1), cluster_size).unwrap();
        let be64 = |at: usize| u64::from_be_bytes(good[at..at + 8].try_into().unwrap()) as usize;
        let extension = good.windows(4).position(|four| four == [0x23, 0x85, 0x28, 0x75]).unwrap();
        let (l1, table, snapshots, directory) = (be64(40), be64(48), be64(64), be64(extension + 24));
        let mask = 0x00ff_ffff_ffff_fe00;
        let places = [
            (0, 112),
            (extension, 32),
            (l1, 24),
            (be64(l1) & mask, 512),
            (table, 16),
            (be64(table), 512),
            (snapshots, 96),
            (be64(snapshots) & mask, 16),
            (directory, 64),
            (be64(directory), 16),
        ];
        for seed in 0..150 * effort() {
            let mut random = Random::new(seed);
            let mut bytes = good.clone();
            for _ in 0..=random.below(3) {
                let (start, length) = places[random.below(places.len() as u64) as usize];
                let at = start + random.below(length) as usize;
                bytes[at] =
                    if seed % 2 == 0 { bytes[at] ^ 1 << random.below(8) } else { random.next() as u8 };
            }
            match use_it(&storage_of(&bytes, 1), cluster_size) {
                Ok(()) => fine += 1,
                Err(error) => {
                    let kinds = [
                        ErrorKind::Corrupt,
                        ErrorKind::Unsupported,
                        ErrorKind::NoSpace,
                        ErrorKind::ShortRead,
                        ErrorKind::Poisoned,
                    ];
                    assert!(kinds.contains(&error.kind()), "{cluster_size}, seed {seed}: {error:?}");
                    refused += 1;
                }
            }
        }
    }
    println!("{fine} went well, {refused} did not");
    assert!(fine > 50 && refused > 50);
}

/// Images of QEMU's, each with a feature that can lie. Clusters have 4 KiB, or 16 KiB with subclusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Good {
    Deflate,
    Zstd,
    Subclusters,
    DataFile,
    Snapshots,
    Bitmaps,
}

/// What is done with the image to find out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    Read,
    Write,
    ListSnapshots,
    ListBitmaps,
    ReadBitmap,
}

use Good::{Bitmaps, DataFile, Deflate, Snapshots, Subclusters, Zstd};
use Use::{ListBitmaps, ListSnapshots, Read, ReadBitmap, Write};

impl Good {
    fn image(self) -> Vec<u8> {
        let (_keep, dir) = scratch();
        let path = dir.join("image");
        let name = path.to_str().unwrap();
        let create = |options: &str| {
            qemu("qemu-img", &["create", "-q", "-f", "qcow2", "-o", options, name, "256K"]);
            qemu_io(&path, &["write -P 1 0 64k", "write -P 2 100k 20k"]);
        };
        match self {
            Deflate => qemu_compressed(&path, &vec![7; 65536], 4096, DEFLATE),
            Zstd => qemu_compressed(&path, &vec![7; 65536], 4096, ZSTD),
            Subclusters => create("cluster_size=16k,extended_l2=on"),
            DataFile => create(&format!("cluster_size=4k,data_file={}", dir.join("data").display())),
            Snapshots => {
                create("cluster_size=4k");
                qemu("qemu-img", &["snapshot", "-c", "one", name]);
                qemu_io(&path, &["write -P 3 8k 8k"]);
                qemu("qemu-img", &["snapshot", "-c", "two", name]);
            }
            Bitmaps => {
                create("cluster_size=4k");
                qemu("qemu-img", &["bitmap", "--add", "-g", "512", name, "b"]);
                qemu_io(&path, &["write -P 3 8k 8k"]);
            }
        }
        std::fs::read(&path).unwrap()
    }

    fn size(self) -> u64 {
        if matches!(self, Deflate | Zstd) { 65536 } else { 256 * KIB }
    }

    fn used(self, bytes: &[u8], how: Use) -> Result<()> {
        let storage = storage_of(bytes, 1);
        let device: Arc<dyn Device> = Arc::new(SimDevice::new(storage, Power::new(), "bad".into(), true));
        let layers = vec![Layer { device: Arc::clone(&device), format: Format::Qcow2, size: self.size() }];
        let data: Arc<dyn Device> =
            Arc::new(SimDevice::new(storage_of(&vec![9; 256 << 10], 2), Power::new(), "data".into(), true));
        let data_files = if self == DataFile && how == Read { vec![(0, data)] } else { Vec::new() };
        match how {
            Read | Write => {
                let options = ImageOptions { writable: how == Write, data_files: &data_files, memory: None };
                let image = Image::open_with(layers, &options)?;
                if how == Write {
                    image.write(5000, &[1; 9000])?;
                    return image.flush();
                }
                image.read(0, &mut vec![0; self.size() as usize])
            }
            ListSnapshots => qcow2::snapshots(&*device).map(|found| assert!(!found.is_empty())),
            ListBitmaps => qcow2::bitmaps(&*device).map(|found| assert!(!found.is_empty())),
            ReadBitmap => qcow2::visit_bitmap(&*device, "b", &mut |_, _| Ok(())),
        }
    }
}

fn be64(bytes: &[u8], at: usize) -> usize {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap()) as usize
}

fn put(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
}

fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

/// Where the bitmaps extension begins.
fn extension(bytes: &[u8]) -> usize {
    bytes.windows(4).position(|four| four == [0x23, 0x85, 0x28, 0x75]).unwrap()
}

/// Where the bitmaps' directory lies, the first snapshot, the first bitmap's table.
fn directory(bytes: &[u8]) -> usize {
    be64(bytes, extension(bytes) + 24)
}

fn snapshot(bytes: &[u8]) -> usize {
    be64(bytes, 64)
}

fn table(bytes: &[u8]) -> usize {
    be64(bytes, directory(bytes))
}

/// Changes the first cluster's stream.
fn stream(bytes: &mut Vec<u8>, packed: &[u8]) {
    plant(bytes, 0, packed);
}

type Lie = (&'static str, Good, Use, ErrorKind, &'static str, fn(&mut Vec<u8>));

const FAR: u64 = 1 << 40;

/// The lie, in what it is told, how it is met, and what the error says.
const LIES: &[Lie] = &[
    ("a stream of noise", Deflate, Read, Corrupt, "damaged", |b| stream(b, &[0xff; 100])),
    ("a stream that ends early", Deflate, Read, Corrupt, "holds too little", |b| {
        stream(b, &deflate(&[1; 4095]));
    }),
    ("a stream that is cut off", Deflate, Read, Corrupt, "damaged", |b| {
        let whole = deflate(&mixture(&mut Random::new(1), 4096));
        stream(b, &whole[..whole.len() / 2]);
    }),
    ("compressed data outside the file", Deflate, Read, Corrupt, "outside the file", |b| {
        set_entry(b, 0, descriptor(12, FAR, 100));
    }),
    ("compressed data at the last offset", Deflate, Read, Corrupt, "outside the file", |b| {
        set_entry(b, 0, u64::MAX >> 1);
    }),
    ("deflate called zstd", Deflate, Read, Corrupt, "damaged", |b| {
        b[79] |= 8;
        b[104] = 1;
    }),
    ("compressed data on the header", Deflate, Write, Corrupt, "overlaps the metadata", |b| {
        set_entry(b, 1, descriptor(12, 100, 100));
    }),
    ("compressed data without a refcount", Deflate, Write, Corrupt, "no refcount", |b| {
        set_entry(b, 1, descriptor(12, FAR, 100));
    }),
    ("a frame of noise", Zstd, Read, Corrupt, "damaged", |b| stream(b, &[0xff; 100])),
    ("a frame that holds too little", Zstd, Read, Corrupt, "damaged", |b| stream(b, &zstd(&[1; 4095]))),
    ("a frame that holds too much", Zstd, Read, Corrupt, "holds too much", |b| stream(b, &zstd(&[1; 4097]))),
    ("a frame that says that it holds 2^60 bytes", Zstd, Read, Corrupt, "damaged", |b| {
        let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0xe0];
        frame.extend(1u64.rotate_right(4).to_le_bytes());
        frame.extend([1, 0, 0]);
        stream(b, &frame);
    }),
    ("zstd called deflate", Zstd, Read, Corrupt, "damaged", |b| {
        b[79] &= !8;
        b[104] = 0;
    }),
    ("clusters too small for subclusters", Subclusters, Read, Corrupt, "too small for subclusters", |b| {
        b[23] = 13;
    }),
    ("allocated and zero", Subclusters, Read, Corrupt, "both allocated and zero", |b| {
        let at = entry_at(b, 0) as usize;
        put(b, at + 8, 1 | 1 << 32);
    }),
    ("allocated without a cluster", Subclusters, Read, Corrupt, "without its cluster", |b| {
        let at = entry_at(b, 0) as usize;
        put(b, at, 0);
    }),
    ("compressed with subclusters", Subclusters, Read, Corrupt, "compressed cluster with subclusters", |b| {
        let at = entry_at(b, 0) as usize;
        put(b, at, COMPRESSED | 65536);
    }),
    ("writing subclusters", Subclusters, Write, Unsupported, "subclusters", |_| ()),
    ("writing with a data file", DataFile, Write, Unsupported, "external data file", |_| ()),
    (
        "a data file for an image that has none",
        DataFile,
        Read,
        ErrorKind::InvalidInput,
        "no external data file",
        |b| {
            b[79] &= !4;
        },
    ),
    ("compressed, with a data file", DataFile, Read, Corrupt, "compressed cluster, but an external", |b| {
        set_entry(b, 0, descriptor(12, 65536, 100));
    }),
    ("not aligned, with a data file", DataFile, Read, Corrupt, "not aligned", |b| {
        set_entry(b, 0, 1 << 63 | 512);
    }),
    ("outside the data file", DataFile, Read, Corrupt, "outside the file", |b| {
        set_entry(b, 0, 1 << 63 | FAR);
    }),
    ("snapshot table outside the file", Snapshots, ListSnapshots, Corrupt, "lies outside the file", |b| {
        put(b, 64, FAR);
    }),
    ("snapshot table not aligned", Snapshots, ListSnapshots, Corrupt, "not aligned", |b| b[71] = 8),
    (
        "more snapshots than there is room for",
        Snapshots,
        ListSnapshots,
        Corrupt,
        "lies outside the file",
        |b| {
            put32(b, 60, 60_000);
        },
    ),
    (
        "a snapshot with 4 GiB more to say",
        Snapshots,
        ListSnapshots,
        Unsupported,
        "too much extra data",
        |b| {
            let at = snapshot(b);
            put32(b, at + 36, u32::MAX);
        },
    ),
    ("a snapshot's L1 of 32 GiB", Snapshots, ListSnapshots, Unsupported, "over 32 MiB", |b| {
        let at = snapshot(b);
        put32(b, at + 8, u32::MAX);
    }),
    ("a snapshot's L1 not aligned", Snapshots, ListSnapshots, Corrupt, "not aligned", |b| {
        let at = snapshot(b);
        b[at + 7] = 1;
    }),
    ("a snapshot's L1 outside the file", Snapshots, Write, Corrupt, "lies outside the file", |b| {
        let at = snapshot(b);
        put(b, at, FAR);
    }),
    (
        "a snapshot's L2 outside the file",
        Snapshots,
        Write,
        Corrupt,
        "L2 table is not aligned or lies outside",
        |b| {
            let at = be64(b, snapshot(b));
            put(b, at, FAR);
        },
    ),
    ("a snapshot's L1 is the active one", Snapshots, Write, Corrupt, "two tables share a cluster", |b| {
        let at = snapshot(b);
        b.copy_within(40..48, at);
    }),
    ("the snapshot table is the header", Snapshots, Write, Corrupt, "not aligned", |b| put(b, 64, 0)),
    (
        "a snapshot without a name or id, and without a table",
        Snapshots,
        Write,
        Corrupt,
        "outside the file",
        |b| {
            let at = snapshot(b);
            put(b, at, 0);
        },
    ),
    ("a bitmaps extension of 23 bytes", Bitmaps, ListBitmaps, Corrupt, "of another length", |b| {
        let at = extension(b);
        put32(b, at + 4, 23);
    }),
    ("no bitmap", Bitmaps, ListBitmaps, Corrupt, "impossible bitmaps extension", |b| {
        let at = extension(b);
        put32(b, at + 8, 0);
    }),
    ("reserved bits of the extension", Bitmaps, ListBitmaps, Corrupt, "impossible bitmaps extension", |b| {
        let at = extension(b);
        put32(b, at + 12, 1);
    }),
    ("two bitmaps extensions", Bitmaps, Read, Corrupt, "two bitmaps extensions", |b| {
        let at = extension(b);
        b.copy_within(at..at + 1000, at + 32);
    }),
    ("70,000 bitmaps", Bitmaps, ListBitmaps, Unsupported, "too many bitmaps", |b| {
        let at = extension(b);
        put32(b, at + 8, 70_000);
    }),
    ("a directory of 2^62 bytes", Bitmaps, ListBitmaps, Unsupported, "too many bitmaps", |b| {
        let at = extension(b);
        put(b, at + 16, 1 << 62);
    }),
    ("directory not aligned", Bitmaps, ListBitmaps, Corrupt, "not aligned", |b| {
        let at = extension(b);
        b[at + 31] = 8;
    }),
    ("directory outside the file", Bitmaps, ListBitmaps, Corrupt, "outside the file", |b| {
        let at = extension(b);
        put(b, at + 24, FAR);
    }),
    ("directory too short", Bitmaps, ListBitmaps, Corrupt, "directory is too short", |b| {
        let at = extension(b);
        put32(b, at + 8, 2);
    }),
    ("directory too long", Bitmaps, ListBitmaps, Corrupt, "directory is too long", |b| {
        let at = extension(b);
        b.resize(b.len() + 4096, 0);
        put(b, at + 16, 64);
    }),
    ("a bitmap of another type", Bitmaps, ListBitmaps, Corrupt, "impossible entry", |b| {
        let at = directory(b);
        b[at + 16] = 2;
    }),
    ("reserved flags of a bitmap", Bitmaps, ListBitmaps, Corrupt, "impossible entry", |b| {
        let at = directory(b);
        b[at + 12] = 0x80;
    }),
    ("a bitmap without a name", Bitmaps, ListBitmaps, Corrupt, "impossible entry", |b| {
        let at = directory(b);
        b[at + 19] = 0;
    }),
    ("a name of 1024 bytes", Bitmaps, ListBitmaps, Corrupt, "directory is too short", |b| {
        let at = directory(b);
        b[at + 18] = 4;
    }),
    ("granules of 256 bytes", Bitmaps, ListBitmaps, Unsupported, "granularity", |b| {
        let at = directory(b);
        b[at + 17] = 8;
    }),
    ("granules of 4 GiB", Bitmaps, ListBitmaps, Unsupported, "granularity", |b| {
        let at = directory(b);
        b[at + 17] = 32;
    }),
    ("extra data that is not there", Bitmaps, ListBitmaps, Corrupt, "directory is too short", |b| {
        let at = directory(b);
        put32(b, at + 20, 1 << 20);
    }),
    ("a bitmap of another name", Bitmaps, ReadBitmap, NotFound, "no bitmap", |b| {
        let at = directory(b);
        b[at + 24] = b'c';
    }),
    ("a bitmap in use", Bitmaps, ReadBitmap, Corrupt, "not in step", |b| {
        let at = directory(b);
        b[at + 15] |= 1;
    }),
    ("a bitmap whose autoclear bit is gone", Bitmaps, ReadBitmap, Corrupt, "not in step", |b| b[95] = 0),
    ("a bitmap's table at 0", Bitmaps, ReadBitmap, Corrupt, "table lies outside the file", |b| {
        let at = directory(b);
        put(b, at, 0);
    }),
    ("a bitmap's table not aligned", Bitmaps, ReadBitmap, Corrupt, "not aligned", |b| {
        let at = directory(b);
        b[at + 7] = 8;
    }),
    ("a bitmap's table outside the file", Bitmaps, ReadBitmap, Corrupt, "outside the file", |b| {
        let at = directory(b);
        put(b, at, FAR);
    }),
    ("a bitmap's table of 32 GiB", Bitmaps, ReadBitmap, Unsupported, "over 32 MiB", |b| {
        let at = directory(b);
        put32(b, at + 8, u32::MAX);
    }),
    ("a bitmap's table of nothing", Bitmaps, ReadBitmap, Corrupt, "table is too short", |b| {
        let at = directory(b);
        put32(b, at + 8, 0);
    }),
    ("reserved bits in a bitmap's table", Bitmaps, ReadBitmap, Corrupt, "bits of a bitmap lie", |b| {
        let at = table(b);
        b[at] = 0x80;
    }),
    ("bits outside the file", Bitmaps, ReadBitmap, Corrupt, "bits of a bitmap lie outside the file", |b| {
        let at = table(b);
        put(b, at, FAR);
    }),
    ("bits not aligned", Bitmaps, ReadBitmap, Corrupt, "not aligned", |b| {
        let at = table(b);
        put(b, at, 512);
    }),
    ("all ones, and a place", Bitmaps, ReadBitmap, Corrupt, "bits of a bitmap lie", |b| {
        let at = table(b);
        b[at + 7] |= 1;
    }),
    ("bits on the header", Bitmaps, Write, Corrupt, "two tables share a cluster", |b| {
        let (from, at) = (be64(b, 40), table(b));
        put(b, at, from as u64);
    }),
    ("a bitmap's table is L1", Bitmaps, Write, Corrupt, "two tables share a cluster", |b| {
        let at = directory(b);
        b.copy_within(40..48, at);
    }),
    ("the directory is a refcount block", Bitmaps, Write, Corrupt, "directory is too short", |b| {
        let (at, block) = (extension(b), be64(b, be64(b, 48)));
        put(b, at + 24, block as u64);
    }),
    ("a bitmap with extra data that counts", Bitmaps, Write, Unsupported, "unknown kind", |b| {
        let (at, ext) = (directory(b), extension(b));
        b.resize(b.len() + 4096, 0);
        put32(b, at + 20, 8);
        b.copy_within(at + 24..at + 32, at + 32);
        put(b, ext + 16, 40);
    }),
];

#[test]
fn every_lie_about_a_feature_is_named() {
    let mut missed = Vec::new();
    for good in [Deflate, Zstd, Subclusters, DataFile, Snapshots, Bitmaps] {
        let image = good.image();
        let mut uses = vec![Read];
        match good {
            Subclusters | DataFile => {}
            Snapshots => uses.extend([Write, ListSnapshots]),
            Bitmaps => uses.extend([Write, ListBitmaps, ReadBitmap]),
            Deflate | Zstd => uses.push(Write),
        }
        for how in uses {
            good.used(&image, how).unwrap();
        }
        for (name, _, how, kind, words, lie) in LIES.iter().filter(|lie| lie.1 == good) {
            let mut bytes = image.clone();
            lie(&mut bytes);
            match good.used(&bytes, *how) {
                Ok(()) => missed.push(format!("{good:?}, {name}: believed")),
                Err(error)
                    if error.kind() != *kind || !error.to_string().contains(words) || words.is_empty() =>
                {
                    missed.push(format!("{good:?}, {name}: {error:?}, not {kind:?} {words:?}"));
                }
                Err(_) => {}
            }
        }
    }
    println!("{} lies", LIES.len());
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}
