//! Power cuts while images with compressed clusters and internal snapshots are written: leaks at worst, flushed
//! data is there, and a snapshot shows what it always did.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "common/checker.rs"]
mod checker;
mod common;

use std::sync::Arc;

use common::packed::*;
use common::*;
use vdsmstore_io::{ErrorKind, Format, Image, Layer, Power, SimDevice, SimStorage};

const SECTOR: u64 = 512;

fn sector(tag: u64, number: u64) -> [u8; 512] {
    let mut bytes = [0; 512];
    if tag != 0 {
        for pair in bytes.chunks_exact_mut(16) {
            pair[..8].copy_from_slice(&tag.to_le_bytes());
            pair[8..].copy_from_slice(&number.to_le_bytes());
        }
    }
    bytes
}

/// What each sector may read as: its tag at the last flush, and every one since.
type Model = Vec<Vec<u64>>;

/// The image as QEMU leaves it: compressed, perhaps with a snapshot, and changed a little since.
fn start(sectors: u64, cluster_size: u64, compression: &str, with_snapshot: bool) -> (Vec<u8>, Model) {
    let (_keep, dir) = scratch();
    let path = dir.join("image");
    let bytes: Vec<u8> = (0..sectors).flat_map(|number| sector(1, number)).collect();
    qemu_compressed(&path, &bytes, cluster_size, compression);
    let mut model = vec![vec![1]; sectors as usize];
    if with_snapshot {
        qemu("qemu-img", &["snapshot", "-c", "s", path.to_str().unwrap()]);
        // One that is written, one that is zero; the L2 table is not shared any more then.
        let data: Vec<u8> = (5..9).flat_map(|number| sector(2, number)).collect();
        std::fs::write(dir.join("data"), data).unwrap();
        if cluster_size > 512 {
            qemu_io(&path, &[&format!("write -s {} 2560 2048", dir.join("data").display())]);
            model[5..9].fill(vec![2]);
        }
    }
    check_clean(&path);
    (std::fs::read(&path).unwrap(), model)
}

fn open(storage: &Arc<SimStorage>, power: &Arc<Power>, size: u64) -> vdsmstore_io::Result<Image> {
    let device = SimDevice::new(Arc::clone(storage), Arc::clone(power), "sim".into(), true);
    Image::open(vec![Layer { device: Arc::new(device), format: Format::Qcow2, size }], true)
}

/// The disk as its first snapshot has it: an image whose active table is the snapshot's.
fn snapshot_of(bytes: &[u8], size: u64) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let table = u64::from_be_bytes(bytes[64..72].try_into().unwrap()) as usize;
    bytes.copy_within(table + 8..table + 12, 36);
    bytes.copy_within(table..table + 8, 40);
    let device = SimDevice::new(storage_of(&bytes, 9), Power::new(), "snapshot".into(), false);
    let layer = Layer { device: Arc::new(device), format: Format::Qcow2, size };
    read_all(&Image::open(vec![layer], false).unwrap())
}

struct Case {
    sectors: u64,
    cluster_size: u64,
    compression: &'static str,
    with_snapshot: bool,
    seed: u64,
}

impl Case {
    /// Runs the operations until the power goes, looks at what is left; the number of steps taken.
    fn run(&self, start: &[u8], model: &Model, cut: Option<u64>, keep: &mut dyn FnMut() -> bool) -> u64 {
        let (storage, power) = (storage_of(start, 1), Power::new());
        let size = self.sectors * SECTOR;
        let mut model = model.clone();
        let mut random = Random::new(self.seed);
        power.cut_after(cut);
        if let Ok(image) = open(&storage, &power, size) {
            for step in 0..30 {
                let first = random.below(self.sectors);
                let count = (1 + random.below(30)).min(self.sectors - first);
                let per_cluster = self.cluster_size / SECTOR;
                let (first, count) = match (random.below(12), random.below(3)) {
                    (0..=2, clusters) if first / per_cluster + clusters < self.sectors / per_cluster => {
                        (first / per_cluster * per_cluster, (1 + clusters) * per_cluster)
                    }
                    _ => (first, count),
                };
                let whole = first.is_multiple_of(per_cluster) && count.is_multiple_of(per_cluster);
                let (tag, result) = match random.below(10) {
                    0..=3 if whole => {
                        let data: Vec<u8> =
                            (first..first + count).flat_map(|number| sector(100 + step, number)).collect();
                        (Some(100 + step), image.write_compressed(first * SECTOR, &data))
                    }
                    0..=4 => {
                        let data: Vec<u8> =
                            (first..first + count).flat_map(|number| sector(100 + step, number)).collect();
                        (Some(100 + step), image.write(first * SECTOR, &data))
                    }
                    5..=7 => (Some(0), image.write_zeroes(first * SECTOR, count * SECTOR)),
                    _ => (None, image.flush()),
                };
                match (tag, &result) {
                    (Some(tag), _) => {
                        model[first as usize..(first + count) as usize].iter_mut().for_each(|t| t.push(tag));
                    }
                    (None, Ok(())) => model.iter_mut().for_each(|tags| {
                        tags.drain(..tags.len() - 1);
                    }),
                    (None, Err(_)) => {}
                }
                if let Err(error) = result {
                    assert!(power.is_off(), "{error:?}");
                    assert!(matches!(error.kind(), ErrorKind::Io | ErrorKind::Poisoned), "{error:?}");
                    break;
                }
            }
        }
        storage.crash(keep);
        let bytes = storage.bytes();
        checker::check(&bytes).unwrap_or_else(|message| panic!("seed {}, cut {cut:?}: {message}", self.seed));
        let image = open(&storage, &Power::new(), size).unwrap();
        for (number, (found, tags)) in read_all(&image).chunks_exact(512).zip(&model).enumerate() {
            let matches = tags.iter().any(|tag| *found == sector(*tag, number as u64));
            assert!(matches, "seed {}, cut {cut:?}, sector {number}: may be {tags:?}", self.seed);
        }
        if self.with_snapshot {
            for (number, found) in snapshot_of(&bytes, size).chunks_exact(512).enumerate() {
                let same = *found == sector(1, number as u64);
                assert!(same, "seed {}, cut {cut:?}, sector {number} of the snapshot", self.seed);
            }
        }
        power.writes()
    }

    fn cut_everywhere(&self) -> u64 {
        let (start, model) = start(self.sectors, self.cluster_size, self.compression, self.with_snapshot);
        assert!(self.with_snapshot || count_compressed(&start, 4) > 0);
        let steps = self.run(&start, &model, None, &mut || true);
        assert!(steps > 20, "too few steps to be a test: {steps}");
        let stride = if effort() > 1 { 1 } else { 3 };
        for cut in (0..=steps).step_by(stride) {
            let mut random = Random::new(self.seed * 1_000_003 + cut);
            self.run(&start, &model, Some(cut), &mut || true);
            self.run(&start, &model, Some(cut), &mut || false);
            let odds = [2, 10][(cut % 2) as usize];
            self.run(&start, &model, Some(cut), &mut || random.below(odds) == 0);
        }
        steps
    }
}

#[test]
fn compressed_clusters_and_snapshots() {
    let mut steps = 0;
    for seed in 1..=2 * effort() {
        for with_snapshot in [false, true] {
            for (cluster_size, sectors) in [(512, 150), (4096, 400)] {
                let compression = [DEFLATE, ZSTD][seed as usize % 2];
                steps += Case { sectors, cluster_size, compression, with_snapshot, seed }.cut_everywhere();
            }
        }
    }
    println!("{steps} steps");
}
