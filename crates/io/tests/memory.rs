//! Large images in little memory: what is cached stays within a budget, and what is missing costs one small read.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use common::*;
use peak_alloc::PeakAlloc;
use vdsmstore_io::{Device, DeviceExtent, DeviceId, FileDevice, Format, Image, ImageOptions, Layer, Result};

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

const TIB: u64 = 1 << 40;

/// Counts the reads of a file.
#[derive(Debug)]
struct Counted {
    file: FileDevice,
    reads: AtomicU64,
    longest: AtomicU64,
}

impl Counted {
    fn open(path: &Path) -> Arc<Counted> {
        let file = FileDevice::open(path, true).unwrap();
        Arc::new(Counted { file, reads: AtomicU64::new(0), longest: AtomicU64::new(0) })
    }

    fn take(&self) -> u64 {
        self.reads.swap(0, Ordering::Relaxed)
    }
}

impl Device for Counted {
    fn id(&self) -> DeviceId {
        self.file.id()
    }

    fn name(&self) -> String {
        self.file.name()
    }

    fn len(&self) -> Result<u64> {
        self.file.len()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.longest.fetch_max(buffer.len() as u64, Ordering::Relaxed);
        self.file.read_at(offset, buffer)
    }

    fn write_at(&self, offset: u64, buffer: &[u8]) -> Result<()> {
        self.file.write_at(offset, buffer)
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Result<()> {
        self.file.write_zeroes(offset, length)
    }

    fn set_len(&self, length: u64) -> Result<()> {
        self.file.set_len(length)
    }

    fn allocate(&self, offset: u64, length: u64) -> Result<()> {
        self.file.allocate(offset, length)
    }

    fn flush(&self) -> Result<()> {
        // What is durable is of no concern here, and syncing takes most of the time.
        Ok(())
    }

    fn extent(&self, offset: u64, length: u64) -> Result<DeviceExtent> {
        self.file.extent(offset, length)
    }
}

fn open(device: &Arc<Counted>, size: u64, memory: Option<u64>) -> Image {
    let layer = Layer { device: Arc::clone(device) as _, format: Format::Qcow2, size };
    Image::open_with(vec![layer], &ImageOptions { writable: true, memory, ..ImageOptions::default() })
        .unwrap()
}

/// Random requests all over a disk: the most memory that they took, in bytes.
fn scatter(path: &Path, size: u64, count: u64, memory: Option<u64>, preallocated: bool) -> u64 {
    let device = Counted::open(path);
    let before = HEAP.current_usage();
    HEAP.reset_peak_usage();
    let image = open(&device, size, memory);
    let mut random = Random::new(size ^ count);
    let mut places: Vec<u64> = (0..count).map(|_| random.below(size / 4096) * 4096).collect();
    places.sort_unstable();
    places.dedup();
    let page = |place: u64| [(place / 4096 % 251) as u8 + 1; 4096];
    let mut order = places.clone();
    for at in (1..order.len()).rev() {
        order.swap(at, random.below(at as u64 + 1) as usize);
    }
    for place in &order {
        image.write(*place, &page(*place)).unwrap();
    }
    image.flush().unwrap();
    drop(image);

    // Reading in another order: most tables are not in the cache any more.
    let image = open(&device, size, memory);
    device.take();
    device.longest.store(0, Ordering::Relaxed);
    let mut misses = 0;
    let mut buffer = [0; 4096];
    for at in 0..order.len() {
        let place = order[(at * 7919) % order.len()];
        image.read(place, &mut buffer).unwrap();
        assert!(buffer == page(place), "{place:#x}");
        let reads = device.take();
        assert!((1..=2).contains(&reads), "{reads} reads for one page");
        misses += reads - 1;
    }
    let longest = device.longest.load(Ordering::Relaxed);
    assert!(longest <= 16 * KIB, "a read of {longest} bytes");
    for _ in 0..order.len() {
        let place = random.below(size / 4096) * 4096;
        image.read(place, &mut buffer).unwrap();
        let reads = device.take();
        assert!(reads <= 2, "{reads} reads for one page");
    }
    // Most is given up, in large pieces and in small ones.
    image.discard(0, size / 4 + 4096).unwrap();
    for place in order.iter().filter(|place| **place > size / 2) {
        image.discard(*place, 4096).unwrap();
    }
    image.flush().unwrap();
    let mapped = image.runs(0, size).map(Result::unwrap).filter(|run| !run.kind.is_zero()).count();
    assert!(mapped > 0);
    drop(image);
    let peak = (HEAP.peak_usage() - before) as u64;
    println!(
        "{:<24} {count} requests, {misses} of {} reads missed, {} KiB at most",
        path.file_name().unwrap().to_string_lossy(),
        order.len(),
        peak / KIB
    );
    assert!(preallocated || misses > count / 8, "the cache held everything");
    peak
}

/// Whoever goes through a whole map reads each table once, and not slice by slice.
fn each_table_is_read_once(path: &Path) {
    let (size, tables) = (64 * GIB, 128);
    qemu("qemu-img", &["create", "-q", "-f", "qcow2", path.to_str().unwrap(), &size.to_string()]);
    let image = open(&Counted::open(path), size, None);
    let mut random = Random::new(3);
    let places: Vec<u64> =
        (0..tables).map(|table| table * 512 * MIB + random.below(8192) * 64 * KIB).collect();
    for place in &places {
        image.write(*place, &vec![1; 65536]).unwrap();
    }
    image.flush().unwrap();
    drop(image);
    let device = Counted::open(path);
    let image = open(&device, size, None);
    device.take();
    let data = image.runs(0, size).map(Result::unwrap).filter(|run| !run.kind.is_zero());
    assert!(data.map(|run| run.offset).eq(places));
    assert_eq!(device.take(), tables);
    std::fs::remove_file(path).unwrap();
}

/// One test, since the heap is counted for the whole process.
#[test]
fn sixteen_tebibytes_in_little_memory() {
    let (_keep, dir) = scratch();
    each_table_is_read_once(&dir.join("in a row"));
    for (cluster_size, count) in [(64 * KIB, 6000), (256 * KIB, 3000), (2 * MIB, 3000)] {
        let path = dir.join(format!("clusters of {} KiB", cluster_size / KIB));
        let options = format!("cluster_size={cluster_size}");
        let size = 16 * TIB;
        let arguments =
            ["create", "-q", "-f", "qcow2", "-o", &options, path.to_str().unwrap(), &size.to_string()];
        qemu("qemu-img", &arguments);
        let peak = scatter(&path, size, count * effort(), None, false);
        assert!(peak < 32 * MIB, "{peak} bytes");
        check_leaks_only(&path);
        std::fs::remove_file(path).unwrap();
    }
    // All of it mapped: 64 MiB of tables. The file is as large as ext4 has them.
    let path = dir.join("all mapped");
    let size = 16 * TIB - GIB;
    let arguments = [
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        "cluster_size=2M,preallocation=metadata",
        path.to_str().unwrap(),
        &size.to_string(),
    ];
    qemu("qemu-img", &arguments);
    let peak = scatter(&path, size, 3000, None, true);
    assert!(peak < 32 * MIB, "{peak} bytes");
    let peak = scatter(&path, size, 3000, Some(2 * MIB), false);
    assert!(peak < 8 * MIB, "{peak} bytes with a budget of 2 MiB");
    check_leaks_only(&path);
}
