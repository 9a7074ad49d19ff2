//! Random operations, cut after every step, with random subsets of what was not flushed.

use std::sync::Arc;

use vdsmstore_io::{ErrorKind, Format, Image, Layer, Power, SimDevice, SimStorage};

use crate::common::*;
use crate::content::{Model, SECTOR, sector, sectors};
use crate::judge;

#[derive(Clone, Copy, Debug)]
enum Op {
    /// Sectors `first..first + count` become this tag.
    Write(u64, u64, u64),
    Zero(u64, u64),
    Flush,
}

/// One scenario: how the disk is made and what is done to it.
#[derive(Clone)]
struct Scenario {
    size: u64,
    cluster_size: u64,
    backed: bool,
    /// Done, and flushed, before anything is cut.
    before: Vec<Op>,
    ops: Vec<Op>,
}

fn apply_to_model(model: &mut Model, op: Op) {
    match op {
        Op::Write(first, count, tag) => model.set(first, count, tag),
        Op::Zero(first, count) => model.set(first, count, 0),
        Op::Flush => model.settle(),
    }
}

const BASE_TAG: u64 = 0xba5e;

impl Scenario {
    fn sectors(&self) -> u64 {
        self.size / SECTOR
    }

    /// The base is shorter than the disk, and not a multiple of the cluster size.
    fn base_sectors(&self) -> u64 {
        if self.backed { self.sectors() * 2 / 3 } else { 0 }
    }

    fn base(&self) -> Arc<SimStorage> {
        storage_of(&sectors(BASE_TAG, 0, self.base_sectors()), 2)
    }

    fn open(
        &self,
        top: &Arc<SimStorage>,
        base: &Arc<SimStorage>,
        power: &Arc<Power>,
        writable: bool,
    ) -> vdsmstore_io::Result<Image> {
        let device = |storage: &Arc<SimStorage>, writable| {
            Arc::new(SimDevice::new(Arc::clone(storage), Arc::clone(power), "sim".into(), writable))
        };
        let mut layers =
            vec![Layer { device: device(top, writable), format: Format::Qcow2, size: self.size }];
        if self.backed {
            let size = self.base_sectors() * SECTOR;
            layers.push(Layer { device: device(base, false), format: Format::Raw, size });
        }
        Image::open(layers, writable)
    }

    fn model(&self) -> Model {
        Model::new((0..self.sectors()).map(|n| if n < self.base_sectors() { BASE_TAG } else { 0 }))
    }

    fn apply(image: &Image, op: Op) -> vdsmstore_io::Result<()> {
        match op {
            Op::Write(first, count, tag) => image.write(first * SECTOR, &sectors(tag, first, count)),
            Op::Zero(first, count) => image.write_zeroes(first * SECTOR, count * SECTOR),
            Op::Flush => image.flush(),
        }
    }

    fn start(&self) -> (Arc<SimStorage>, Model) {
        let storage = sim_image(self.size, self.cluster_size, self.backed.then_some("base"));
        let mut model = self.model();
        let image = self.open(&storage, &self.base(), &Power::new(), true).unwrap();
        for op in &self.before {
            Self::apply(&image, *op).unwrap();
            apply_to_model(&mut model, *op);
        }
        image.flush().unwrap();
        model.settle();
        (storage, model)
    }

    /// Cuts the power after `cut` steps (`None`: never) and looks at what is left. Returns the steps taken.
    fn run(
        &self,
        start: &SimStorage,
        before: &Model,
        cut: Option<u64>,
        keep: &mut dyn FnMut() -> bool,
    ) -> u64 {
        let storage = SimStorage::new(1, 1);
        start.clone_to(&storage);
        storage.crash(&mut || true);
        let (base, power) = (self.base(), Power::new());
        let mut model = before.clone();
        power.cut_after(cut);
        if let Ok(image) = self.open(&storage, &base, &power, true) {
            for op in &self.ops {
                let result = Self::apply(&image, *op);
                if !matches!((op, &result), (Op::Flush, Err(_))) {
                    apply_to_model(&mut model, *op);
                }
                match result {
                    Ok(()) => {}
                    Err(error) => {
                        assert!(power.is_off(), "{error:?}");
                        assert!(matches!(error.kind(), ErrorKind::Io | ErrorKind::Poisoned), "{error:?}");
                        break;
                    }
                }
            }
        }
        storage.crash(keep);
        self.verify(&storage, &base, &model, cut);
        power.writes()
    }

    fn verify(&self, storage: &Arc<SimStorage>, base: &Arc<SimStorage>, model: &Model, cut: Option<u64>) {
        if let Err(message) = judge(&storage.bytes()) {
            panic!("cut {cut:?}: {message}");
        }
        let image = self.open(storage, base, &Power::new(), true).unwrap();
        let mut bytes = vec![0; self.size as usize];
        image.read(0, &mut bytes).unwrap();
        model.compare(&bytes).unwrap_or_else(|message| panic!("cut {cut:?}: {message}"));
        // It can be written on, and stays sound.
        image.write(0, &sector(99, 0)).unwrap();
        image.write_zeroes(self.size / 2, self.size / 4).unwrap();
        image.flush().unwrap();
        judge(&storage.bytes()).unwrap();
    }

    /// All cuts, each with everything kept, nothing kept and two random subsets.
    fn cut_everywhere(&self, seed: u64, stride: u64) {
        let (start, model) = self.start();
        let steps = self.run(&start, &model, None, &mut || true);
        assert!(steps > 20, "too few steps to be a test: {steps}");
        for cut in (0..=steps).step_by(stride as usize) {
            let mut random = Random::new(seed * 1_000_003 + cut);
            self.run(&start, &model, Some(cut), &mut || true);
            self.run(&start, &model, Some(cut), &mut || false);
            for round in 0..2 * effort() {
                let odds = [2, 10][((cut + round) % 2) as usize];
                self.run(&start, &model, Some(cut), &mut || random.below(odds) == 0);
            }
        }
    }
}

fn random_ops(seed: u64, count: usize, sectors: u64, longest: u64) -> Vec<Op> {
    let mut random = Random::new(seed);
    (0..count)
        .map(|at| {
            let first = random.below(sectors);
            let length = (1 + random.below(longest)).min(sectors - first);
            match random.below(10) {
                0..=4 => Op::Write(first, length, 1000 + at as u64),
                5..=7 => Op::Zero(first, length),
                _ => Op::Flush,
            }
        })
        .collect()
}

fn small(backed: bool, seed: u64) -> Scenario {
    let size = 192 * KIB;
    let ops = random_ops(seed, 40, size / SECTOR, 40);
    Scenario { size, cluster_size: 512, backed, before: random_ops(seed + 50, 10, size / SECTOR, 60), ops }
}

#[test]
fn tiny_clusters_with_backing() {
    for seed in 1..=3 * effort() {
        small(true, seed).cut_everywhere(seed, 1);
    }
}

#[test]
fn tiny_clusters_without_backing() {
    for seed in 11..11 + 3 * effort() {
        small(false, seed).cut_everywhere(seed, 1);
    }
}

#[test]
fn clusters_of_4_kib() {
    for seed in 21..23 {
        // Few clusters, so that most are given up and handed out again.
        let size = 256 * KIB;
        let ops = random_ops(seed, 50, size / SECTOR, 60);
        let before = random_ops(seed + 50, 20, size / SECTOR, 60);
        Scenario { size, cluster_size: 4096, backed: seed % 2 == 0, before, ops }.cut_everywhere(seed, 1);
    }
}

#[test]
fn clusters_of_64_kib() {
    for seed in 31..33 {
        let size = 2 * MIB;
        let ops = random_ops(seed, 25, size / SECTOR, 300);
        let before = random_ops(seed + 50, 5, size / SECTOR, 300);
        Scenario { size, cluster_size: 65536, backed: seed % 2 == 0, before, ops }.cut_everywhere(seed, 2);
    }
}

/// Tables and parts of clusters land on clusters that were data before: their old bytes must not show.
#[test]
fn given_up_data_becomes_tables() {
    let (size, cluster) = (8 * MIB, 8);
    // One L2 table to 2 MiB.
    let table = 4096;
    let before = vec![Op::Write(0, 40 * cluster, 5), Op::Flush, Op::Zero(0, 40 * cluster), Op::Flush];
    let ops = vec![
        Op::Write(table + 3, 2, 6),
        Op::Flush,
        Op::Write(2 * table + 9 * cluster - 1, 2, 7),
        Op::Zero(table, 8),
        Op::Flush,
        Op::Write(3 * table + 1, 1, 8),
        Op::Write(5, 3, 9),
        Op::Flush,
    ];
    for backed in [false, true] {
        let (before, ops) = (before.clone(), ops.clone());
        Scenario { size, cluster_size: 4096, backed, before, ops }.cut_everywhere(66, 1);
    }
}

/// A refcount table of one 512-byte cluster covers 8 MiB: writing past that moves it.
#[test]
fn the_refcount_table_moves() {
    let size = 9 * MIB;
    let full = 7 * MIB + 700 * KIB;
    let before =
        (0..=full / MIB).map(|at| Op::Write(at * 2048, 2048.min(full / SECTOR - at * 2048), 5)).collect();
    let next = full / SECTOR;
    let ops = vec![
        Op::Zero(10, 30),
        Op::Flush,
        Op::Write(next, 200, 6),
        Op::Flush,
        Op::Write(next + 200, 400, 7),
        Op::Zero(100, 100),
        Op::Flush,
        Op::Write(100, 50, 9),
        Op::Flush,
    ];
    let scenario = Scenario { size, cluster_size: 512, backed: false, before, ops };
    let (start, model) = scenario.start();
    let table_at = |storage: &SimStorage| storage.bytes()[48..56].to_vec();
    let old_table = table_at(&start);
    // The step that moves it: the first after which the header has changed.
    let moved_after = |cut| {
        let storage = SimStorage::new(1, 1);
        start.clone_to(&storage);
        storage.crash(&mut || true);
        let power = Power::new();
        power.cut_after(Some(cut));
        let image = scenario.open(&storage, &scenario.base(), &power, true).unwrap();
        for op in &scenario.ops {
            if Scenario::apply(&image, *op).is_err() {
                break;
            }
        }
        table_at(&storage) != old_table
    };
    let steps = scenario.run(&start, &model, None, &mut || true);
    assert!(moved_after(steps), "the table did not move: the test tests nothing");
    let (mut before, mut after) = (0, steps);
    while after - before > 1 {
        let middle = before + (after - before) / 2;
        if moved_after(middle) { after = middle } else { before = middle }
    }
    let close = before - 2..before + 8;
    for cut in (0..=steps).filter(|cut| cut % (40 / effort()) == 0 || close.contains(cut)) {
        for seed in 0..if close.contains(&cut) { 12 } else { 1 } {
            let mut random = Random::new(cut * 100 + seed);
            let odds = 2 + seed % 3;
            scenario.run(&start, &model, Some(cut), &mut || random.below(odds) == 0);
        }
    }
}

/// Whichever step of a flush fails, the handle refuses all further work, and what is on the device stays sound.
#[test]
fn after_a_failed_flush_nothing_more_is_written() {
    let scenario = small(false, 5);
    let (start, model) = scenario.start();
    let mut steps = 0;
    loop {
        let (storage, base, power) = (SimStorage::new(1, 1), scenario.base(), Power::new());
        start.clone_to(&storage);
        storage.crash(&mut || true);
        let image = scenario.open(&storage, &base, &power, true).unwrap();
        let mut model = model.clone();
        let ops = [Op::Write(0, 1, 7), Op::Write(100, 1, 7), Op::Zero(1, 99), Op::Write(200, 30, 7)];
        for op in ops {
            Scenario::apply(&image, op).unwrap();
            apply_to_model(&mut model, op);
        }
        power.cut_after(Some(steps));
        let Err(error) = image.flush() else { break };
        assert_eq!(error.kind(), ErrorKind::Io);
        power.cut_after(None);
        let written = power.writes();
        assert_eq!(image.flush().unwrap_err().kind(), ErrorKind::Poisoned);
        assert_eq!(image.write_zeroes(512, 1024).unwrap_err().kind(), ErrorKind::Poisoned);
        assert_eq!(image.discard(512, 1024).unwrap_err().kind(), ErrorKind::Poisoned);
        assert_eq!(image.write(0, &sector(2, 0)).unwrap_err().kind(), ErrorKind::Poisoned);
        assert_eq!(image.write_compressed(512, &[1; 512]).unwrap_err().kind(), ErrorKind::Poisoned);
        assert_eq!(image.grow(scenario.size + MIB).unwrap_err().kind(), ErrorKind::Poisoned);
        assert_eq!(power.writes(), written, "something was written after a flush that failed");
        drop(image);
        storage.crash(&mut || true);
        scenario.verify(&storage, &base, &model, Some(steps));
        steps += 1;
    }
    println!("a flush of {steps} steps, each of which failed once");
    assert!(steps > 8);
}
