//! Power cuts while images with compressed clusters and internal snapshots are written: leaks at worst, flushed
//! data is there, and a snapshot shows what it always did.

use std::sync::Arc;

use vdsmstore_io::{ErrorKind, Format, Image, Layer, Power, SimDevice, SimStorage};

use crate::common::packed::*;
use crate::common::*;
use crate::content::{Model, SECTOR, sectors};
use crate::judge;

/// The image as QEMU leaves it: compressed, perhaps with a snapshot, and changed a little since.
fn start(count: u64, cluster_size: u64, compression: &str, with_snapshot: bool) -> (Vec<u8>, Model) {
    let (_keep, dir) = scratch();
    let path = dir.join("image");
    let bytes = sectors(1, 0, count);
    qemu_compressed(&path, &bytes, cluster_size, compression);
    let mut model = Model::new((0..count).map(|_| 1));
    if with_snapshot {
        qemu("qemu-img", &["snapshot", "-c", "s", path.to_str().unwrap()]);
        // One that is written, one that is zero; the L2 table is not shared any more then.
        std::fs::write(dir.join("data"), sectors(2, 5, 4)).unwrap();
        if cluster_size > 512 {
            qemu_io(&path, &[&format!("write -s {} 2560 2048", dir.join("data").display())]);
            model.0[5..9].fill(vec![2]);
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
pub fn snapshot_of(bytes: &[u8], size: u64) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let table = u64::from_be_bytes(bytes[64..72].try_into().unwrap()) as usize;
    bytes[24..32].copy_from_slice(&size.to_be_bytes());
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
                        let data = sectors(100 + step, first, count);
                        (Some(100 + step), image.write_compressed(first * SECTOR, &data))
                    }
                    0..=4 => {
                        let data = sectors(100 + step, first, count);
                        (Some(100 + step), image.write(first * SECTOR, &data))
                    }
                    5..=7 => (Some(0), image.write_zeroes(first * SECTOR, count * SECTOR)),
                    _ => (None, image.flush()),
                };
                match (tag, &result) {
                    (Some(tag), _) => model.set(first, count, tag),
                    (None, Ok(())) => model.settle(),
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
        judge(&bytes).unwrap_or_else(|message| panic!("seed {}, cut {cut:?}: {message}", self.seed));
        let image = open(&storage, &Power::new(), size).unwrap();
        model
            .compare(&read_all(&image))
            .unwrap_or_else(|message| panic!("seed {}, cut {cut:?}: {message}", self.seed));
        if self.with_snapshot {
            let same = snapshot_of(&bytes, size) == sectors(1, 0, self.sectors);
            assert!(same, "seed {}, cut {cut:?}: the snapshot has changed", self.seed);
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
