//! Growing disks: new bytes are zeroes whatever was there, and a power cut leaves the old disk or the new one.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used)]

#[path = "common/checker.rs"]
mod checker;
mod common;

use std::sync::Arc;

use common::*;
use vdsmstore_io::qcow2::{self, Backing, CreateOptions};
use vdsmstore_io::{
    Device, ErrorKind, FileDevice, Format, Image, Layer, Power, RunKind, SimDevice, SimStorage,
};

fn random_bytes(seed: u64, length: u64) -> Vec<u8> {
    let mut bytes = vec![0; length as usize];
    Random::new(seed).fill(&mut bytes);
    bytes
}

#[test]
fn raw_files_grow() {
    let (_keep, dir) = scratch();
    let path = dir.join("raw");
    // The file is shorter than its last block, then longer than the image.
    for (length, size) in [(1000, 1024), (MIB, 300 * KIB + 512)] {
        std::fs::write(&path, random_bytes(1, length)).unwrap();
        let mut model = std::fs::read(&path).unwrap();
        model.resize(size as usize, 0);
        let image = open(&[(&path, Format::Raw, size)]);
        for new in [size, size + 512, 600 * KIB, 3 * MIB] {
            image.grow(new).unwrap();
            model.resize(new as usize, 0);
            assert_eq!(image.size(), new);
            assert_same(&read_all(&image), &model);
            assert_eq!(std::fs::metadata(&path).unwrap().len(), new);
            image.write(new - 10, &[5; 10]).unwrap();
            model[new as usize - 10..].fill(5);
        }
        image.flush().unwrap();
        assert_same(&std::fs::read(&path).unwrap(), &model);
    }
}

#[test]
fn sizes_that_make_no_sense_are_refused() {
    let (_keep, dir) = scratch();
    let path = dir.join("image");
    create(&path, MIB, None);
    let image = open_one(&path, MIB);
    let before = std::fs::read(&path).unwrap();
    let kind = |size| image.grow(size).unwrap_err().kind();
    for size in [0, MIB - 512, MIB + 1, MIB + 511, u64::MAX, u64::MAX - 511, 1 << 63, 1 << 62] {
        assert_eq!(kind(size), ErrorKind::InvalidInput, "{size}");
    }
    image.grow(MIB).unwrap();
    drop(image);
    assert_eq!(before, std::fs::read(&path).unwrap());
    let reader = Image::open(vec![layer(&path, Format::Qcow2, MIB, false)], false).unwrap();
    assert_eq!(reader.grow(2 * MIB).unwrap_err().kind(), ErrorKind::ReadOnly);
    let alone = dir.join("alone");
    create(&alone, MIB, Some(("base", Format::Raw)));
    assert_eq!(open_one(&alone, MIB).grow(2 * MIB).unwrap_err().kind(), ErrorKind::InvalidInput);
}

/// Over a longer base, with stale bytes in the old last cluster, and past what the old L1 table can hold.
#[test]
fn new_bytes_hide_the_base() {
    over_a_longer_base(false);
}

/// QEMU sees all of the base.
#[test]
fn new_bytes_hide_what_did_not_show_of_the_base() {
    over_a_longer_base(true);
}

/// `clipped`: of the base no more shows than what the disk had to begin with.
fn over_a_longer_base(clipped: bool) {
    for cluster in [512, 4096, 65536] {
        let (_keep, dir) = scratch();
        let (top, base) = (dir.join("top"), dir.join("base"));
        let base_size = 700 * KIB + 1536;
        let bytes = random_bytes(2, base_size);
        std::fs::write(&base, &bytes).unwrap();
        for (round, size) in [(0, 20 * KIB), (1, 100 * KIB + 512), (2, 65536)] {
            let _ = std::fs::remove_file(&top);
            let options = format!("cluster_size={cluster}");
            let (name, text) = (top.to_str().unwrap(), size.to_string());
            qemu(
                "qemu-img",
                &[
                    "create", "-q", "-f", "qcow2", "-o", &options, "-u", "-b", "base", "-F", "raw", name,
                    &text,
                ],
            );
            let shown = if clipped { size } else { base_size };
            let image = open(&[(&top, Format::Qcow2, size), (&base, Format::Raw, shown)]);
            let mut model = bytes[..size as usize].to_vec();
            if round == 1 {
                image.write(size - 700, &[9; 700]).unwrap();
                model[size as usize - 700..].fill(9);
            }
            for new in [size + 512, 300 * KIB, base_size - 512, base_size.next_multiple_of(512), MIB, 5 * MIB]
            {
                image.grow(new).unwrap();
                model.resize(new as usize, 0);
                assert_same(&read_all(&image), &model);
                check_clean(&top);
                assert_eq!(qcow2::info(&FileDevice::open(&top, false).unwrap()).unwrap().size, new);
            }
            image.write(4 * MIB, &[3; 1000]).unwrap();
            model[4 * MIB as usize..][..1000].fill(3);
            image.flush().unwrap();
            drop(image);
            check_clean(&top);
            assert_same(&qemu_read(&top, "qcow2"), &model);
            let image = open(&[(&top, Format::Qcow2, 5 * MIB), (&base, Format::Raw, shown)]);
            assert_same(&read_all(&image), &model);
        }
    }
}

/// The record's size may be smaller than the header's: what lies between must go, and only the last growth
/// changes the header.
#[test]
fn what_the_record_had_clipped_does_not_come_back() {
    let (_keep, dir) = scratch();
    let path = dir.join("image");
    create(&path, 8 * MIB, None);
    let bytes = random_bytes(4, 8 * MIB);
    let image = open_one(&path, 8 * MIB);
    image.write(0, &bytes).unwrap();
    image.flush().unwrap();
    drop(image);
    let (old, new) = (3 * MIB + 1024, 6 * MIB + 512);
    let image = open_one(&path, old);
    image.grow(new).unwrap();
    let mut model = bytes[..old as usize].to_vec();
    model.resize(new as usize, 0);
    assert_same(&read_all(&image), &model);
    assert_eq!(qcow2::info(&FileDevice::open(&path, false).unwrap()).unwrap().size, 8 * MIB);
    image.grow(9 * MIB).unwrap();
    model.resize((9 * MIB) as usize, 0);
    assert_same(&read_all(&image), &model);
    drop(image);
    check_clean(&path);
    assert_same(&qemu_read(&path, "qcow2"), &model);
}

/// What a program wrote beyond the end of the disk does not show through a longer one that is built on it.
#[test]
fn nothing_shows_beyond_the_new_end() {
    let (_keep, dir) = scratch();
    let (path, child) = (dir.join("image"), dir.join("child"));
    for format in [Format::Raw, Format::Qcow2] {
        for new in [2 * MIB, 2 * MIB + 512, 3 * MIB] {
            let bytes = random_bytes(5, 8 * MIB);
            match format {
                Format::Raw => std::fs::write(&path, &bytes).unwrap(),
                Format::Qcow2 => {
                    create(&path, 8 * MIB, None);
                    let image = open_one(&path, 8 * MIB);
                    image.write(0, &bytes).unwrap();
                    image.flush().unwrap();
                }
            }
            let image = open(&[(&path, format, 2 * MIB)]);
            image.grow(new).unwrap();
            let mut model = bytes[..2 * MIB as usize].to_vec();
            model.resize(new as usize, 0);
            assert_same(&read_all(&image), &model);
            drop(image);
            create(&child, 9 * MIB, Some(("image", format)));
            model.resize(9 * MIB as usize, 0);
            assert_same(&qemu_read(&child, "qcow2"), &model);
            for file in [&path, &child] {
                std::fs::remove_file(file).unwrap();
            }
        }
    }
}

/// Sixteen TiB of a new disk are nothing; of one with a long base they are as many tables as needed, no more.
#[test]
fn very_large_disks() {
    let (_keep, dir) = scratch();
    let path = dir.join("image");
    create(&path, MIB, None);
    let image = open_one(&path, MIB);
    image.write(0, &[1; 100]).unwrap();
    for size in [GIB, 600 * GIB, 16 << 40] {
        image.grow(size).unwrap();
        assert_eq!(image.run(MIB, size - MIB).unwrap().kind, RunKind::Hole);
    }
    image.write((16 << 40) - 512, &[2; 512]).unwrap();
    image.flush().unwrap();
    drop(image);
    check_clean(&path);
    assert!(std::fs::metadata(&path).unwrap().len() < 2 * MIB);
    let mut sector = [0; 512];
    open_one(&path, 16 << 40).read((16 << 40) - 512, &mut sector).unwrap();
    assert_eq!(sector, [2; 512]);
    // QEMU's empty image of no size has no L1 entry.
    let empty = dir.join("empty");
    qemu("qemu-img", &["create", "-q", "-f", "qcow2", empty.to_str().unwrap(), "0"]);
    let image = open_one(&empty, 0);
    image.grow(GIB).unwrap();
    image.write(GIB - 5, &[1; 5]).unwrap();
    image.flush().unwrap();
    check_clean(&empty);
    let (base, top) = (dir.join("base"), dir.join("top"));
    create(&base, 100 * GIB, None);
    create(&top, GIB, Some(("base", Format::Qcow2)));
    let image = open(&[(&top, Format::Qcow2, GIB), (&base, Format::Qcow2, 100 * GIB)]);
    image.grow(200 * GIB).unwrap();
    assert_eq!(image.run(GIB, 200 * GIB - GIB).unwrap().kind, RunKind::Zero { layer: 0 });
    assert_eq!(image.run(150 * GIB, GIB).unwrap().kind, RunKind::Hole);
    drop(image);
    check_clean(&top);
    assert!(std::fs::metadata(&top).unwrap().len() < 16 * MIB);
}

const OLD: u64 = 21 * KIB + 512;
const TABLE: u64 = 32 * KIB;

/// A power cut at every step of a growth, then the same again.
struct Cut {
    new: u64,
    base: Option<(Arc<SimStorage>, u64)>,
    format: Format,
}

impl Cut {
    fn new(new: u64, base: Option<u64>, format: Format) -> Cut {
        let base = base.map(|size| (storage_of(&random_bytes(7, size), 2), size));
        Cut { new, base, format }
    }

    fn open(&self, top: &Arc<SimStorage>, size: u64, power: &Arc<Power>) -> vdsmstore_io::Result<Image> {
        let device = |storage: &Arc<SimStorage>, writable| {
            Arc::new(SimDevice::new(Arc::clone(storage), Arc::clone(power), "sim".into(), writable))
        };
        let mut layers = vec![Layer { device: device(top, true), format: self.format, size }];
        if let Some((base, size)) = &self.base {
            layers.push(Layer { device: device(base, false), format: Format::Raw, size: *size });
        }
        Image::open(layers, true)
    }

    /// With 512-byte clusters L1 has one entry to 32 KiB. The last cluster and clusters beyond the disk hold old
    /// bytes, as after a merge into a larger volume.
    fn start(&self) -> (Arc<SimStorage>, Vec<u8>) {
        let storage = match self.format {
            Format::Qcow2 => sim_image(TABLE - 1024, 512, self.base.as_ref().map(|_| "base")),
            Format::Raw => storage_of(&vec![0; TABLE as usize - 1024], 1),
        };
        let image = self.open(&storage, TABLE - 1024, &Power::new()).unwrap();
        image.write(15 * KIB, &random_bytes(8, 9 * KIB)).unwrap();
        image.write(28 * KIB, &random_bytes(9, KIB)).unwrap();
        image.flush().unwrap();
        let mut model = read_all(&image);
        model.truncate(OLD as usize);
        (storage, model)
    }

    fn run(&self, start: &SimStorage, model: &[u8], cut: Option<u64>, keep: &mut dyn FnMut() -> bool) -> u64 {
        let storage = SimStorage::new(1, 1);
        start.clone_to(&storage);
        storage.crash(&mut || true);
        let power = Power::new();
        power.cut_after(cut);
        let mut done = false;
        if let Ok(image) = self.open(&storage, OLD, &power) {
            // Something is under way when it begins.
            let _ = image.write(100, &model[100..1000]);
            match image.grow(self.new) {
                Ok(()) => done = true,
                Err(error) => assert!(power.is_off(), "{error:?}"),
            }
        }
        let steps = power.writes();
        storage.crash(keep);
        self.verify(&storage, model, done, cut);
        steps
    }

    fn check(&self, storage: &Arc<SimStorage>, cut: Option<u64>) {
        if self.format == Format::Qcow2
            && let Err(message) = checker::check(&storage.bytes())
        {
            panic!("cut {cut:?}: {message}");
        }
    }

    fn verify(&self, storage: &Arc<SimStorage>, model: &[u8], done: bool, cut: Option<u64>) {
        self.check(storage, cut);
        let device = SimDevice::new(Arc::clone(storage), Power::new(), "sim".into(), false);
        let size = match self.format {
            Format::Qcow2 => qcow2::info(&device).unwrap().size,
            Format::Raw => device.len().unwrap(),
        };
        // A header that tells of more than the disk keeps to that.
        let whole = if self.format == Format::Raw { self.new } else { self.new.max(TABLE - 1024) };
        assert!(size == whole || (!done && size == TABLE - 1024), "cut {cut:?}: {size}");
        let mut grown = model.to_vec();
        if done || (size == self.new && self.format == Format::Qcow2) {
            grown.resize(size as usize, 0);
            assert_same(&read_all(&self.open(storage, size, &Power::new()).unwrap()), &grown);
        }
        grown.resize(self.new as usize, 0);
        // The record still has the old size: that is right, and growing can be repeated.
        let image = self.open(storage, OLD, &Power::new()).unwrap();
        assert_same(&read_all(&image), model);
        image.grow(self.new).unwrap();
        assert_same(&read_all(&image), &grown);
        image.write(self.new - 600, &[3; 600]).unwrap();
        grown[self.new as usize - 600..].fill(3);
        image.flush().unwrap();
        drop(image);
        self.check(storage, cut);
        assert_same(&read_all(&self.open(storage, self.new, &Power::new()).unwrap()), &grown);
    }

    fn everywhere(&self) {
        let (start, model) = self.start();
        let steps = self.run(&start, &model, None, &mut || true);
        assert!(steps >= 3, "too few steps to be a test: {steps}");
        for cut in 0..=steps {
            self.run(&start, &model, Some(cut), &mut || true);
            self.run(&start, &model, Some(cut), &mut || false);
            for seed in 0..2 * effort() {
                let mut random = Random::new(cut * 1000 + seed);
                let odds = [2, 10][seed as usize % 2];
                self.run(&start, &model, Some(cut), &mut || random.below(odds) == 0);
            }
        }
    }
}

#[test]
fn power_cuts_within_the_old_tables() {
    for base in [None, Some(TABLE), Some(26 * KIB + 512)] {
        Cut::new(27 * KIB, base, Format::Qcow2).everywhere();
        Cut::new(TABLE, base, Format::Qcow2).everywhere();
    }
}

#[test]
fn power_cuts_while_l1_moves() {
    // L1 entries grow by 64, one sector, which reach 2 MiB: more is two clusters of L1.
    let longer = 2 * MIB + 5 * KIB;
    for (new, base) in [(40 * KIB, None), (100 * KIB, Some(90 * KIB)), (longer, Some(120 * KIB + 512))] {
        Cut::new(new, base, Format::Qcow2).everywhere();
    }
}

/// So much is zeroed that it is flushed on the way, when L1 has moved and the size has not changed yet. Ten
/// layers leave each of them the least of caches.
#[test]
fn power_cuts_between_the_flushes_of_one_growth() {
    let (old, new) = (GIB, 6 * GIB);
    let storages: Vec<_> = (0..10)
        .map(|index| {
            let storage = SimStorage::new(1, index);
            let device = SimDevice::new(Arc::clone(&storage), Power::new(), "sim".into(), true);
            let size = if index == 0 { old } else { new };
            let backing = (index < 9).then(|| Backing { name: "below".into(), format: Format::Qcow2 });
            qcow2::create(&device, &CreateOptions { size, backing, preallocate_metadata: false }).unwrap();
            storage
        })
        .collect();
    let open = |top: &Arc<SimStorage>, from: usize, size: u64, power: &Arc<Power>| {
        let layers = storages.iter().enumerate().skip(from).map(|(index, storage)| {
            let (storage, size) = if index == 0 { (top, size) } else { (storage, new) };
            let device = SimDevice::new(Arc::clone(storage), Arc::clone(power), "sim".into(), index == from);
            Layer { device: Arc::new(device), format: Format::Qcow2, size }
        });
        Image::open(layers.collect(), true)
    };
    let base = open(&storages[0], 1, old, &Power::new()).unwrap();
    for at in 0..12 {
        base.write(at * GIB / 2 + 100 * KIB, &[at as u8 + 1; 1000]).unwrap();
    }
    base.flush().unwrap();
    drop(base);
    let check = |image: &Image, size: u64| {
        for run in image.runs(old, size - old) {
            assert!(run.unwrap().kind.is_zero());
        }
        let mut bytes = [0; 1000];
        for at in 0..2 {
            image.read(at * GIB / 2 + 100 * KIB, &mut bytes).unwrap();
            assert_eq!(bytes, [at as u8 + 1; 1000]);
        }
    };
    let mut between = 0;
    let mut run = |cut: Option<u64>, keep: &mut dyn FnMut() -> bool| {
        let top = SimStorage::new(1, 0);
        storages[0].clone_to(&top);
        top.crash(&mut || true);
        let power = Power::new();
        power.cut_after(cut);
        let done = open(&top, 0, old, &power).is_ok_and(|image| image.grow(new).is_ok());
        top.crash(keep);
        checker::check(&top.bytes()).unwrap_or_else(|message| panic!("cut {cut:?}: {message}"));
        let bytes = top.bytes();
        let size = u64::from_be_bytes(bytes[24..32].try_into().unwrap());
        let entries = u32::from_be_bytes(bytes[36..40].try_into().unwrap());
        between += u64::from(size == old && entries > 2);
        assert!(size == new || (size == old && !done));
        if size == new {
            check(&open(&top, 0, new, &Power::new()).unwrap(), new);
        }
        let image = open(&top, 0, old, &Power::new()).unwrap();
        check(&image, old);
        image.grow(new).unwrap();
        check(&image, new);
        checker::check(&top.bytes()).unwrap();
        power.writes()
    };
    let steps = run(None, &mut || true);
    for cut in 0..=steps {
        let mut random = Random::new(cut);
        run(Some(cut), &mut || true);
        run(Some(cut), &mut || false);
        run(Some(cut), &mut || random.below(2) == 0);
    }
    assert!(between > 5, "never flushed between: {between} of {steps} steps");
}

#[test]
fn power_cuts_of_raw_devices() {
    for new in [30 * KIB, TABLE, 100 * KIB] {
        Cut::new(new, None, Format::Raw).everywhere();
    }
}
