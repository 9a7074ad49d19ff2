//! Places that were something else before, and what is remembered of them.

use std::sync::Arc;

use vdsmstore_io::{ErrorKind, Format, Image, Layer, Power, SimDevice, SimStorage};

use crate::common::*;
use crate::content::{SECTOR, sectors};
use crate::stage::Stage;

const L1: usize = 40;

/// Of a table that moves, only the sectors that are not empty are written: the others must not be what was there.
#[test]
fn l1_moves_to_where_data_was() {
    let mut stage = Stage::new("L1 moves to where data was", "cluster_size=512", 64 * KIB, false);
    stage.write(0, 2);
    stage.write(30, 40);
    stage.flush();
    stage.discard(30, 40);
    stage.arm();
    let (before, length) = (stage.field(L1), stage.bytes().len());
    stage.write(3, 1);
    // More entries than one sector has.
    stage.grow(3 * MIB);
    let after = stage.field(L1);
    assert_ne!(after, before);
    assert!((after as usize) < length, "it did not come to where data was");
    stage.write(100, 2);
    stage.flush();
    stage.finish();
}

/// The last table of the file has no bytes but its first sector's.
#[test]
fn a_table_at_the_end_of_the_file() {
    let mut stage = Stage::new("a table at the end of the file", "cluster_size=4k", 96 * KIB, true);
    stage.arm();
    stage.zero(0, 8);
    stage.flush();
    stage.reopen();
    stage.read();
    stage.zero(16, 8);
    stage.flush();
    stage.finish();
}

/// What was decompressed from a place does not stand for what is there now.
#[test]
fn compressed_data_where_other_was() {
    let mut stage = Stage::new("compressed data where other was", "cluster_size=4k", 64 * KIB, false);
    stage.arm();
    let mut part = vec![0; SECTOR as usize];
    stage.compress(0, 8);
    stage.flush();
    stage.image().read(SECTOR, &mut part).unwrap();
    assert!(part == sectors(2, 1, 1));
    let length = stage.bytes().len();
    stage.discard(0, 8);
    stage.flush();
    stage.compress(0, 8);
    stage.flush();
    assert_eq!(stage.bytes().len(), length, "it did not come to the same place");
    stage.image().read(SECTOR, &mut part).unwrap();
    assert!(part == sectors(3, 1, 1));
    stage.finish();
}

fn open(storage: &Arc<SimStorage>, power: &Arc<Power>, format: Format, size: u64) -> Image {
    let device = SimDevice::new(Arc::clone(storage), Arc::clone(power), "sim".into(), true);
    Image::open(vec![Layer { device: Arc::new(device), format, size }], true).unwrap()
}

/// A disk of 64 KiB, full of data.
fn full(format: Format) -> Arc<SimStorage> {
    let bytes = sectors(5, 0, 128);
    if format == Format::Raw {
        return storage_of(&bytes, 1);
    }
    let storage = sim_image(64 * KIB, 4096, None);
    let image = open(&storage, &Power::new(), format, 64 * KIB);
    image.write(0, &bytes).unwrap();
    image.flush().unwrap();
    storage
}

/// A disk whose volume is longer than it: what lies there does not show when the disk grows, wherever the power goes.
#[test]
fn what_lay_beyond_the_end_does_not_show() {
    let small = 30 * KIB + SECTOR;
    let mut cuts = 0;
    for (format, large) in [(Format::Raw, 60), (Format::Raw, 128), (Format::Qcow2, 60), (Format::Qcow2, 128)]
    {
        let start = full(format);
        let mut wanted = sectors(5, 0, small / SECTOR);
        wanted.resize((large * KIB) as usize, 0);
        for (cut, keep) in (0..).flat_map(|cut| [(cut, false), (cut, true)]) {
            let (storage, power) = (SimStorage::new(1, 1), Power::new());
            start.clone_to(&storage);
            storage.crash(&mut || true);
            let image = open(&storage, &power, format, small);
            power.cut_after(Some(cut));
            let grown = image.grow(large * KIB).is_ok();
            storage.crash(&mut || keep);
            let power = Power::new();
            let image = if grown {
                open(&storage, &power, format, large * KIB)
            } else {
                let image = open(&storage, &power, format, small);
                assert!(read_all(&image) == wanted[..small as usize], "{format:?}, cut {cut}: the old disk");
                image.grow(large * KIB).unwrap();
                image
            };
            assert!(read_all(&image) == wanted, "{format:?} to {large} KiB, cut {cut}, kept {keep}");
            assert!(format == Format::Qcow2 || storage.bytes().len() as u64 >= large * KIB);
            cuts += 1;
            if grown && keep {
                break;
            }
        }
    }
    assert!(cuts > 20, "{cuts}");
}

/// After a flush that failed nothing is believed: not what is written, not zeroes that seem to be there already.
#[test]
fn nothing_is_believed_after_a_failed_flush() {
    for format in [Format::Raw, Format::Qcow2] {
        let storage = if format == Format::Raw {
            storage_of(&vec![0; 65536], 1)
        } else {
            sim_image(64 * KIB, 4096, None)
        };
        let power = Power::new();
        let image = open(&storage, &power, format, 64 * KIB);
        image.write(0, &sectors(1, 0, 1)).unwrap();
        power.cut_after(Some(0));
        assert_eq!(image.flush().unwrap_err().kind(), ErrorKind::Io);
        power.cut_after(None);
        let poisoned = |result: vdsmstore_io::Result<()>| {
            assert_eq!(result.unwrap_err().kind(), ErrorKind::Poisoned, "{format:?}");
        };
        poisoned(image.flush());
        poisoned(image.write(8 * SECTOR, &sectors(2, 8, 1)));
        poisoned(image.write_zeroes(20 * SECTOR, SECTOR));
    }
}
