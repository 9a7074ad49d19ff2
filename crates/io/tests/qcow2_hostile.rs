//! Images with everything in them, and some bytes wrong: whatever is done with them ends in data or an error.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;

use common::packed::*;
use common::*;
use vdsmstore_io::{ErrorKind, Format, Image, Layer, Power, Result, SimDevice, SimStorage, qcow2};

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
