//! The qcow2 format beside QEMU's tools: map and check of a full image of 1 TiB, small and large reads and writes, overlays
//! per second. Programs are compared with programs, and requests with requests: ours are made in this process, one after
//! the other, QEMU's by `qemu-img bench` at depth 1, at the same places.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vdsmstore_io::qcow2::{self, Backing, CreateOptions};
use vdsmstore_io::{Device, FileDevice, Format, Image, Layer};

use crate::numbers::{Samples, seconds, timed, turns};
use crate::scene::{MIB, Result, fill_with_noise, text, tool};

const TIB: &str = "1T";
/// The image that requests go to.
const SIZE: u64 = 2048 * MIB;
const SMALL: u64 = 4096;
const LARGE: u64 = MIB;
/// From one small request to the next, around and around: no two are neighbours.
const STRIDE: u64 = 97 * MIB + 12 * SMALL;
const SMALL_REQUESTS: u64 = 60_000;

/// All of it.
pub fn run(directory: &Path) -> Result<()> {
    println!("\nqcow2: ours, QEMU's, ours / QEMU's, median (min to max)");
    tables(directory)?;
    requests(directory)?;
    overlays(directory)
}

/// By turns; who is first changes. The first turn warms up.
fn compare(
    what: &str,
    rounds: usize,
    mut ours: impl FnMut() -> Result<Duration>,
    mut theirs: impl FnMut() -> Result<Duration>,
) -> Result<()> {
    let (mut us, mut them) = (Samples::default(), Samples::default());
    for round in 0..=rounds {
        let (a, b) = if round % 2 == 0 {
            let a = ours()?;
            (a, theirs()?)
        } else {
            let b = theirs()?;
            (ours()?, b)
        };
        if round > 0 {
            us.push_time(a);
            them.push_time(b);
        }
    }
    println!(
        "{what:<44} {:>10} {:>10}   {}",
        seconds(us.median()),
        seconds(them.median()),
        us.over(&them).ratio()
    );
    Ok(())
}

/// The program that lies beside this one.
fn ours(arguments: &[&str]) -> Result<Duration> {
    let program = std::env::current_exe()?.with_file_name("vdsmstore");
    Ok(timed(|| tool(text(&program)?, arguments))?.0)
}

fn qemu_img(arguments: &[&str]) -> Result<Duration> {
    Ok(timed(|| tool("qemu-img", arguments))?.0)
}

/// Map and check of an image with all its tables and no data.
fn tables(directory: &Path) -> Result<()> {
    let path = directory.join("full.qcow2");
    let name = text(&path)?;
    tool("qemu-img", &["create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", name, TIB])?;
    let rounds = turns(5, 15);
    compare(
        "open and map of a full 1 TiB image",
        rounds,
        || ours(&["file", "map", "--json", "-f", "qcow2", name]),
        || qemu_img(&["map", "--output=json", "-f", "qcow2", name]),
    )?;
    compare(
        "check of a full 1 TiB image",
        rounds,
        || ours(&["file", "check", "-f", "qcow2", name]),
        || qemu_img(&["check", "-f", "qcow2", name]),
    )?;
    Ok(std::fs::remove_file(path)?)
}

fn open(path: &Path, writable: bool) -> Result<Image> {
    let device = Arc::new(FileDevice::open(path, writable)?);
    Ok(Image::open(vec![Layer { device, format: Format::Qcow2, size: SIZE }], writable)?)
}

/// What `qemu-img bench` does with these options, at depth 1.
struct Requests {
    what: &'static str,
    length: u64,
    step: u64,
    count: u64,
    write: bool,
    /// Into clusters that are there; else each request meets new ones.
    allocated: bool,
}

const REQUESTS: &[Requests] = &[
    Requests {
        what: "reads of 4 KiB here and there",
        length: SMALL,
        step: STRIDE,
        count: SMALL_REQUESTS,
        write: false,
        allocated: true,
    },
    Requests {
        what: "reads of 1 MiB in a row",
        length: LARGE,
        step: LARGE,
        count: SIZE / LARGE - 1,
        write: false,
        allocated: true,
    },
    Requests {
        what: "writes of 4 KiB here and there",
        length: SMALL,
        step: STRIDE,
        count: SMALL_REQUESTS,
        write: true,
        allocated: true,
    },
    Requests {
        what: "writes of 1 MiB in a row",
        length: LARGE,
        step: LARGE,
        count: SIZE / LARGE - 1,
        write: true,
        allocated: true,
    },
    Requests {
        what: "writes of 4 KiB into new clusters",
        length: SMALL,
        step: STRIDE,
        count: 15_000,
        write: true,
        allocated: false,
    },
    Requests {
        what: "writes of 1 MiB into new clusters",
        length: LARGE,
        step: LARGE,
        count: SIZE / LARGE / 2,
        write: true,
        allocated: false,
    },
];

impl Requests {
    fn ours(&self, path: &Path) -> Result<Duration> {
        let image = open(path, self.write)?;
        let mut buffer = vec![9; usize::try_from(self.length)?];
        let mut offset = 0;
        let started = Instant::now();
        for _ in 0..self.count {
            if self.write {
                image.write(offset, &buffer)?;
            } else {
                image.read(offset, &mut buffer)?;
            }
            offset = (offset + self.step) % (SIZE - self.length);
        }
        if self.write {
            image.flush()?;
        }
        Ok(started.elapsed())
    }

    fn theirs(&self, path: &Path) -> Result<Duration> {
        let (count, length, step) = (self.count.to_string(), self.length.to_string(), self.step.to_string());
        let mut arguments = vec![
            "bench",
            "-f",
            "qcow2",
            "-t",
            "writeback",
            "-d",
            "1",
            "-c",
            &count,
            "-s",
            &length,
            "-S",
            &step,
        ];
        let flushes = format!("--flush-interval={}", self.count);
        if self.write {
            arguments.extend(["-w", "--pattern=9", &flushes]);
        }
        arguments.push(text(path)?);
        qemu_img(&arguments)
    }
}

fn requests(directory: &Path) -> Result<()> {
    let path = directory.join("requests.qcow2");
    let again = |full: bool| -> Result<()> {
        let _ = std::fs::remove_file(&path);
        let options = CreateOptions { size: SIZE, backing: None, preallocate_metadata: false };
        let device = FileDevice::create_new(&path)?;
        qcow2::create(&device, &options)?;
        if full {
            let image = open(&path, true)?;
            let (mut block, mut seed) = (vec![0; LARGE as usize], 5);
            for at in 0..SIZE / LARGE {
                fill_with_noise(&mut block, &mut seed);
                image.write(at * LARGE, &block)?;
            }
            image.flush()?;
        }
        Ok(())
    };
    again(true)?;
    for requests in REQUESTS {
        // A new image for each turn, made outside of what is measured.
        let fresh = || if requests.allocated { Ok(()) } else { again(false) };
        compare(
            requests.what,
            turns(3, 9),
            || fresh().and_then(|()| requests.ours(&path)),
            || fresh().and_then(|()| requests.theirs(&path)),
        )?;
    }
    Ok(std::fs::remove_file(path)?)
}

/// An overlay with its name durable, and QEMU's, which syncs nothing.
fn overlays(directory: &Path) -> Result<()> {
    const EACH: usize = 20;
    let place = directory.join("overlays");
    std::fs::create_dir_all(&place)?;
    let base = place.join("base.qcow2");
    tool("qemu-img", &["create", "-q", "-f", "qcow2", text(&base)?, "64G"])?;
    let paths: Vec<PathBuf> = (0..EACH).map(|index| place.join(index.to_string())).collect();
    let clear = || paths.iter().for_each(|path| drop(std::fs::remove_file(path)));
    compare(
        "20 overlays, ours durable",
        turns(5, 15),
        || {
            clear();
            let started = Instant::now();
            for path in &paths {
                let device = FileDevice::create_new(path)?;
                let backing = Backing { name: "base.qcow2".into(), format: Format::Qcow2 };
                qcow2::create(
                    &device,
                    &CreateOptions { size: 64 << 30, backing: Some(backing), preallocate_metadata: false },
                )?;
                device.flush()?;
                std::fs::File::open(&place)?.sync_all()?;
            }
            Ok(started.elapsed())
        },
        || {
            clear();
            let started = Instant::now();
            for path in &paths {
                tool(
                    "qemu-img",
                    &["create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", text(path)?],
                )?;
            }
            Ok(started.elapsed())
        },
    )?;
    Ok(std::fs::remove_dir_all(place)?)
}
