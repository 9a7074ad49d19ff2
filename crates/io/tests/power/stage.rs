//! What a scenario plays on: an image, what it must hold, and a power cut after every step.

use std::path::Path;
use std::sync::Arc;

use vdsmstore_io::qcow2::{self, Backing};
use vdsmstore_io::{Format, Image, ImageOptions, Layer, SimStorage};

use crate::common::*;
use crate::content::{Model, SECTOR, sectors};
use crate::cutter::{Cutter, Expect, Watched, rework, sim};

const BASE_TAG: u64 = 0xba5e;

pub struct Stage {
    name: &'static str,
    pub cutter: Arc<Cutter>,
    image: Option<Image>,
    /// Bytes of the disk.
    size: u64,
    base: Option<Arc<SimStorage>>,
    tag: u64,
    /// Bytes that its tables may take, if they are few.
    pub memory: Option<u64>,
}

impl Stage {
    /// A new image of that size made by QEMU with those options; `backed`: on a raw file of two thirds.
    pub fn new(name: &'static str, options: &str, size: u64, backed: bool) -> Stage {
        let (_keep, dir) = scratch();
        let path = dir.join("image");
        let (file, bytes) = (path.to_str().unwrap(), size.to_string());
        let mut arguments = vec!["create", "-q", "-f", "qcow2", "-o", options];
        if backed {
            arguments.extend(["-u", "-b", "base", "-F", "raw"]);
        }
        arguments.extend([file, &bytes]);
        qemu("qemu-img", &arguments);
        Stage::of(name, storage_of(&std::fs::read(&path).unwrap(), 1), size, backed)
    }

    /// An image that is there; `most`: distinct states to try when time is short.
    pub fn of(name: &'static str, storage: Arc<SimStorage>, size: u64, backed: bool) -> Stage {
        let shown = if backed { size / SECTOR * 2 / 3 } else { 0 };
        let base = backed.then(|| storage_of(&sectors(BASE_TAG, 0, shown), 2));
        let expect = Expect {
            model: Model::new((0..size / SECTOR).map(|n| if n < shown { BASE_TAG } else { 0 })),
            sizes: vec![size],
            backings: vec![backed.then(|| "base".into())],
            base: base.clone(),
            creating: false,
            snapshot: None,
            tracked: None,
            autoclear: None,
        };
        // A larger file takes longer to look at.
        let large = size > MIB || storage.bytes().get(23).is_none_or(|bits| *bits >= 16);
        let most = if large { 400 } else { 2500 };
        Stage {
            name,
            cutter: Cutter::new(storage, expect, most),
            image: None,
            size,
            base,
            tag: 1,
            memory: None,
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.cutter.storage().bytes()
    }

    /// A 64-bit field of the header.
    pub fn field(&self, at: usize) -> u64 {
        u64::from_be_bytes(self.bytes()[at..at + 8].try_into().unwrap())
    }

    /// Lets QEMU change the file, but nothing that the disk shows, before anything is cut.
    pub fn rework(&mut self, work: impl FnOnce(&Path)) {
        self.image = None;
        let storage = rework(&self.cutter.storage(), work);
        self.cutter.replace(storage);
    }

    /// Takes an internal snapshot, which must keep what it shows.
    pub fn snapshot(&mut self) {
        self.flush();
        self.rework(|path| {
            qemu("qemu-img", &["snapshot", "-c", "s", path.to_str().unwrap()]);
        });
        let content = self.read();
        self.cutter.expect(false, |expect| expect.snapshot = Some(content));
    }

    /// Adds a bitmap that records what is written from now on.
    pub fn bitmap(&mut self) {
        self.flush();
        self.rework(|path| {
            qemu("qemu-img", &["bitmap", "--add", "-g", "512", path.to_str().unwrap(), "b"]);
        });
        self.cutter.expect(false, |expect| expect.tracked = Some(expect.model.clone()));
    }

    /// The base gets so many sectors, of which the disk shows none beyond its end.
    pub fn lengthen_base(&mut self, count: u64) {
        let base = storage_of(&sectors(BASE_TAG, 0, count), 2);
        let shown = self.size / SECTOR;
        self.base = Some(Arc::clone(&base));
        self.image = None;
        self.cutter.expect(false, |expect| {
            expect.model = Model::new((0..shown).map(|_| BASE_TAG));
            expect.base = Some(base);
        });
    }

    pub fn arm(&mut self) {
        self.flush();
        self.reopen();
        self.cutter.arm();
    }

    fn layers(&self) -> Vec<Layer> {
        let device = Arc::new(Watched::new(&self.cutter));
        let mut layers = vec![Layer { device, format: Format::Qcow2, size: self.size }];
        if let Some(base) = &self.base {
            let size = base.bytes().len() as u64;
            layers.push(Layer { device: Arc::new(sim(base, false)), format: Format::Raw, size });
        }
        layers
    }

    pub fn image(&mut self) -> &Image {
        if self.image.is_none() {
            let options = ImageOptions { writable: true, memory: self.memory, ..ImageOptions::default() };
            self.image = Some(Image::open_with(self.layers(), &options).unwrap());
        }
        self.image.as_ref().unwrap()
    }

    /// Closed without a flush, and opened again.
    pub fn reopen(&mut self) {
        self.image = None;
    }

    pub fn read(&mut self) -> Vec<u8> {
        read_all(self.image())
    }

    fn change(&mut self, first: u64, count: u64, tag: u64) {
        self.cutter.expect(false, |expect| expect.model.set(first, count, tag));
    }

    pub fn write(&mut self, first: u64, count: u64) {
        self.tag += 1;
        let tag = self.tag;
        self.change(first, count, tag);
        self.image().write(first * SECTOR, &sectors(tag, first, count)).unwrap();
    }

    /// Whole clusters.
    pub fn compress(&mut self, first: u64, count: u64) {
        self.tag += 1;
        let tag = self.tag;
        self.change(first, count, tag);
        self.image().write_compressed(first * SECTOR, &sectors(tag, first, count)).unwrap();
    }

    pub fn zero(&mut self, first: u64, count: u64) {
        self.change(first, count, 0);
        self.image().write_zeroes(first * SECTOR, count * SECTOR).unwrap();
    }

    pub fn discard(&mut self, first: u64, count: u64) {
        self.change(first, count, 0);
        self.image().discard(first * SECTOR, count * SECTOR).unwrap();
    }

    pub fn flush(&mut self) {
        self.image().flush().unwrap();
        self.cutter.expect(true, |expect| expect.model.settle());
    }

    pub fn grow(&mut self, size: u64) {
        let more = (size - self.size) / SECTOR;
        self.cutter.expect(false, |expect| {
            expect.sizes.push(size);
            expect.model.0.extend((0..more).map(|_| vec![0]));
        });
        self.image().grow(size).unwrap();
        self.size = size;
        self.cutter.expect(true, |expect| {
            expect.sizes = vec![size];
            expect.model.settle();
        });
    }

    /// The closed image names another backing file; what it shows is the same.
    pub fn set_backing(&mut self, name: Option<&str>) {
        self.image = None;
        self.cutter.expect(false, |expect| expect.backings.push(name.map(Into::into)));
        let backing = name.map(|name| Backing { name: name.into(), format: Format::Raw });
        qcow2::set_backing(&Watched::new(&self.cutter), backing.as_ref()).unwrap();
        self.cutter.expect(true, |expect| expect.backings = vec![name.map(Into::into)]);
    }

    /// Small changes all over a part of the disk, on top of what the scenario has made.
    fn play_on(&mut self) {
        let mut random = Random::new(self.name.bytes().map(u64::from).sum());
        let per_cluster = (1 << self.bytes()[23]) / SECTOR;
        let area = (self.size / SECTOR).min(40 * per_cluster);
        for step in 0..if self.size > MIB { 24 } else { 40 } * effort().min(30) {
            let first = random.below(area);
            let count = (1 + random.below(3)).min(area - first);
            let whole = first / per_cluster * per_cluster;
            match random.below(12) {
                0..=3 => self.write(first, count),
                4 => self.zero(first, count),
                5 | 6 => self.discard(whole, (per_cluster * count).min(area - whole)),
                7 => self.compress(whole, per_cluster.min(area - whole)),
                8 if step % 3 == 0 => {
                    self.flush();
                    self.reopen();
                }
                _ => self.flush(),
            }
        }
        self.flush();
    }

    /// Ends the scenario: what was done, in one line.
    pub fn finish(mut self) {
        self.play_on();
        self.image = None;
        let tracked = self.cutter.expect(false, |expect| expect.tracked.is_some());
        let counts = self.cutter.finish();
        println!("{:<34} {counts:?}", self.name);
        assert!(counts.steps > 20 && counts.distinct > 100 && counts.shown == 20, "too little to be a test");
        assert!(!tracked || counts.believed > 0 && counts.not_believed > 0);
    }
}
