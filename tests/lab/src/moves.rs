//! Whether data on an NFS share moves without coming here: the server has files, a client converts them, the server judges the
//! results. Nothing but what has to go over the network does, which is slow between emulated machines.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use vdsmstore_io::plan::{self, Target};
use vdsmstore_io::qcow2::{self, Backing, CreateOptions};
use vdsmstore_io::sys::{LockMode, ofd_try_lock};
use vdsmstore_io::{Control, FileDevice, Format, Image, Layer, Outcome, compare, execute};

use crate::Random;

const MIB: u64 = 1 << 20;
const KIB: u64 = 1 << 10;
const LOCKED_BYTE: u64 = 1 << 62;
const CONTROL: Control<'static> = Control { cancel: &|| false, progress: &|_| {}, threads: 2 };

/// A source, from its top layer down.
type Source = &'static [(&'static str, Format)];
const PLAIN: Source = &[("plain", Format::Raw)];
const LAYERED: Source = &[("upper", Format::Qcow2), ("lower", Format::Qcow2)];
/// What is made of them.
const TARGETS: [(Source, &str, Format); 4] = [
    (PLAIN, "plain.raw", Format::Raw),
    (PLAIN, "plain.qcow2", Format::Qcow2),
    (LAYERED, "layered.raw", Format::Raw),
    (LAYERED, "layered.qcow2", Format::Qcow2),
];
/// More than that crosses the network for nothing: tables, a small piece of data, the end of a file.
const LITTLE: u64 = 2 * MIB;

pub fn run(words: &[&str]) {
    match *words {
        ["make", dir, mebibytes] => make(Path::new(dir), mebibytes.parse().unwrap()),
        ["go", dir, mount, means] => go(Path::new(dir), mount, means),
        ["judge", dir] => judge(Path::new(dir)),
        _ => panic!("moves {words:?}?"),
    }
}

fn layers(dir: &Path, names: &[(&str, Format)], size: u64, writable: bool) -> Image {
    let layer = |(index, (name, format)): (usize, &(&str, Format))| {
        let writable = writable && index == 0;
        let device = FileDevice::open(&dir.join(name), writable).unwrap();
        // As volumes of a store are: then requests go to the server in the name of the lock.
        let mode = if writable { LockMode::Exclusive } else { LockMode::Shared };
        assert!(ofd_try_lock(device.file(), LOCKED_BYTE, 1, mode).unwrap());
        Layer { device: Arc::new(device), format: *format, size }
    };
    Image::open(names.iter().enumerate().map(layer).collect(), writable).unwrap()
}

fn size(dir: &Path) -> u64 {
    fs::metadata(dir.join("plain")).unwrap().len()
}

fn create(dir: &Path, name: &str, format: Format, size: u64, backing: Option<Backing>) {
    let device = FileDevice::create_new(&dir.join(name)).unwrap();
    match format {
        Format::Raw => device.file().set_len(size).unwrap(),
        Format::Qcow2 => {
            qcow2::create(&device, &CreateOptions { size, backing, preallocate_metadata: false }).unwrap();
        }
    }
}

/// The sources: so much data, as much of holes, and an end that is no whole block.
fn make(dir: &Path, mebibytes: u64) {
    let all = mebibytes * MIB;
    let size = 2 * all + 1536;
    let mut random = Random::new(mebibytes);
    let mut noise = |length: u64| (0..length).map(|_| random.below(256) as u8).collect::<Vec<u8>>();
    let data = [(0, all / 4 * 3), (all, 64 * KIB), (size - all / 4 - 1536, all / 4 + 1536)];
    create(dir, "plain", Format::Raw, size, None);
    create(dir, "lower", Format::Qcow2, size, None);
    let backing = Backing { name: "lower".into(), format: Format::Qcow2 };
    create(dir, "upper", Format::Qcow2, size, Some(backing));
    for name in [PLAIN[0], LAYERED[1]] {
        let image = layers(dir, &[name], size, true);
        for (at, length) in data {
            image.write(at, &noise(length)).unwrap();
        }
        image.flush().unwrap();
    }
    let image = layers(dir, LAYERED, size, true);
    image.write(all / 4, &noise(all / 8)).unwrap();
    image.write(all / 2 + 1, &noise(5000)).unwrap();
    image.write_zeroes(all / 16, 128 * KIB).unwrap();
    image.flush().unwrap();
}

/// Requests of that mount since it was made: how many, bytes sent and received.
fn requests(mount: &str, operation: &str) -> (u64, u64) {
    let text = fs::read_to_string("/proc/self/mountstats").unwrap();
    let ours =
        text.split("device ").find(|part| part.contains(&format!(" mounted on {mount} with "))).unwrap();
    let operation = format!("{operation}:");
    let line = ours.lines().find(|line| line.trim_start().starts_with(&operation));
    let Some(line) = line else { return (0, 0) };
    let numbers: Vec<u64> = line.split_whitespace().skip(1).map(|word| word.parse().unwrap()).collect();
    (numbers[0], numbers[3] + numbers[4])
}

fn go(dir: &Path, mount: &str, means: &str) {
    let size = size(dir);
    for (source, name, format) in TARGETS {
        create(dir, name, format, size, None);
        let before = ["CLONE", "COPY", "READ", "WRITE"].map(|operation| requests(mount, operation));
        let (from, into) = (layers(dir, source, size, false), layers(dir, &[(name, format)], size, true));
        let known = Target { backed: false, known_zero: true };
        let plan = plan::copy(&from, None, known, 0, size).unwrap();
        let outcome = execute(&plan, &from, None, &into, &CONTROL).unwrap();
        into.flush().unwrap();
        let after = ["CLONE", "COPY", "READ", "WRITE"].map(|operation| requests(mount, operation));
        let [clones, copies, ..] = [0, 1].map(|at: usize| after[at].0 - before[at].0);
        let network: u64 = (2..4).map(|at: usize| after[at].1 - before[at].1).sum();
        println!(
            "{means}: {name}: {clones} CLONE, {copies} COPY, {network} bytes read and written, {outcome:?}"
        );
        judge_means(means, size, &outcome, clones, copies, network);
        // What the server did, the client sees.
        let mut random = Random::new(size);
        let [mut expected, mut found] = [[0; 4096]; 2];
        for _ in 0..16 {
            let at = random.below(size - 4096);
            from.read(at, &mut expected).unwrap();
            into.read(at, &mut found).unwrap();
            assert!(expected == found, "{name}: {at}");
        }
    }
}

fn judge_means(means: &str, size: u64, outcome: &Outcome, clones: u64, copies: u64, network: u64) {
    // Half of it is data.
    let most = size / 2 - LITTLE;
    match means {
        "clone" => {
            assert!(outcome.cloned > most && outcome.offloaded == 0);
            assert!(clones > 0 && copies == 0 && network < LITTLE);
        }
        "copy" => {
            assert!(outcome.offloaded > most && outcome.cloned == 0);
            // A server may be asked once for a clone.
            assert!(copies > 0 && clones <= 1 && network < LITTLE);
        }
        "cached" => {
            assert!(outcome.offloaded + outcome.cloned == 0);
            assert!(clones + copies == 0 && network > outcome.written);
        }
        _ => panic!("{means}?"),
    }
}

fn judge(dir: &Path) {
    let size = size(dir);
    for (source, name, format) in TARGETS {
        let (from, into) = (layers(dir, source, size, false), layers(dir, &[(name, format)], size, false));
        assert_eq!(compare(&from, &into, &CONTROL).unwrap(), None, "{name}");
        let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
        let (top, top_format) = source[0];
        let (a, b) = (top_format.to_string(), format.to_string());
        let equal = ["compare", "-f", &a, "-F", &b, &path(top), &path(name)];
        assert!(Command::new("qemu-img").args(equal).status().unwrap().success(), "{name}");
        if format == Format::Qcow2 {
            let check = ["check", "-f", "qcow2", &path(name)];
            assert!(Command::new("qemu-img").args(check).status().unwrap().success(), "{name}");
        }
    }
}
