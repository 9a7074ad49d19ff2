//! What the tests share: QEMU's tools, images in a scratch directory, a small random generator.
#![allow(dead_code, clippy::unwrap_used)]

pub mod images;
pub mod packed;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use vdsmstore_io::qcow2::{self, Backing, CreateOptions};
use vdsmstore_io::{Device, FileDevice, Format, Image, Layer, Power, SimDevice, SimStorage};

pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;
pub const GIB: u64 = 1 << 30;

/// 1, or more when `VDSMSTORE_LONG` says so: random tests do that many times as much.
pub fn effort() -> u64 {
    std::env::var("VDSMSTORE_LONG").ok().and_then(|value| value.parse().ok()).unwrap_or(0) * 9 + 1
}

pub fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).output().unwrap()
}

/// Runs a QEMU tool that must succeed; its output.
pub fn qemu(program: &str, arguments: &[&str]) -> String {
    let output = run(program, arguments);
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {arguments:?}: {text}");
    text
}

fn our_check(path: &Path) -> qcow2::Report {
    qcow2::check(&FileDevice::open(path, false).unwrap()).unwrap()
}

/// Neither our check nor `qemu-img check` finds anything at all, leaks included.
pub fn check_clean(path: &Path) {
    let report = our_check(path);
    assert!(report.is_clean(), "{report:?}");
    qemu("qemu-img", &["check", "-f", "qcow2", path.to_str().unwrap()]);
}

/// Our check and `qemu-img check` find leaks at worst.
pub fn check_leaks_only(path: &Path) {
    let report = our_check(path);
    assert!(report.corruptions + report.check_errors + report.overlaps == 0, "{report:?}");
    let output = run("qemu-img", &["check", "-f", "qcow2", path.to_str().unwrap()]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(matches!(output.status.code(), Some(0 | 3)), "{text}{}", String::from_utf8_lossy(&output.stderr));
}

/// The whole disk, as QEMU reads it.
pub fn qemu_read(path: &Path, format: &str) -> Vec<u8> {
    let raw = path.with_extension("as-raw");
    let (from, to) = (path.to_str().unwrap(), raw.to_str().unwrap());
    qemu("qemu-img", &["convert", "-f", format, "-O", "raw", from, to]);
    let bytes = std::fs::read(&raw).unwrap();
    std::fs::remove_file(raw).unwrap();
    bytes
}

pub fn qemu_io(path: &Path, commands: &[&str]) {
    let mut arguments = vec!["-f", "qcow2"];
    for command in commands {
        arguments.extend(["-c", command]);
    }
    arguments.push(path.to_str().unwrap());
    let text = qemu("qemu-io", &arguments);
    assert!(!text.contains("failed"), "{text}");
}

pub fn layer(path: &Path, format: Format, size: u64, writable: bool) -> Layer {
    Layer { device: Arc::new(FileDevice::open(path, writable).unwrap()), format, size }
}

pub fn create(path: &Path, size: u64, backing: Option<(&str, Format)>) {
    let device = FileDevice::create_new(path).unwrap();
    let backing = backing.map(|(name, format)| Backing { name: name.into(), format });
    qcow2::create(&device, &CreateOptions { size, backing, preallocate_metadata: false }).unwrap();
}

/// Opens a chain of files, top first, the top one writable.
pub fn open(layers: &[(&Path, Format, u64)]) -> Image {
    let layers = layers
        .iter()
        .enumerate()
        .map(|(index, (path, format, size))| layer(path, *format, *size, index == 0))
        .collect();
    Image::open(layers, true).unwrap()
}

pub fn open_one(path: &Path, size: u64) -> Image {
    open(&[(path, Format::Qcow2, size)])
}

pub fn read_all(image: &Image) -> Vec<u8> {
    let mut bytes = vec![0; image.size() as usize];
    image.read(0, &mut bytes).unwrap();
    bytes
}

/// Where two buffers differ first; panics with the offset instead of printing megabytes.
#[track_caller]
pub fn assert_same(found: &[u8], expected: &[u8]) {
    assert_eq!(found.len(), expected.len());
    if let Some(at) = found.iter().zip(expected).position(|(a, b)| a != b) {
        panic!("offset {at:#x}: found {:#x}, expected {:#x}", found[at], expected[at]);
    }
}

pub fn scratch() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_path_buf();
    (directory, path)
}

/// An image on simulated storage with any cluster size: QEMU makes it, since we only make 64 KiB ones.
pub fn sim_image(size: u64, cluster_size: u64, backing: Option<&str>) -> Arc<SimStorage> {
    let (_keep, path) = scratch();
    let file = path.join("image");
    let options = format!("cluster_size={cluster_size}");
    let (name, bytes) = (file.to_str().unwrap(), size.to_string());
    let mut arguments = vec!["create", "-q", "-f", "qcow2", "-o", &options];
    if let Some(backing) = backing {
        arguments.extend(["-u", "-b", backing, "-F", "raw"]);
    }
    arguments.extend([name, &bytes]);
    qemu("qemu-img", &arguments);
    storage_of(&std::fs::read(&file).unwrap(), 1)
}

pub fn storage_of(bytes: &[u8], object: u64) -> Arc<SimStorage> {
    let storage = SimStorage::new(1, object);
    let device = SimDevice::new(Arc::clone(&storage), Power::new(), "setup".into(), true);
    for (index, chunk) in bytes.chunks(4096).enumerate() {
        if chunk.iter().any(|byte| *byte != 0) {
            device.write_at(index as u64 * 4096, chunk).unwrap();
        }
    }
    device.set_len(bytes.len() as u64).unwrap();
    device.flush().unwrap();
    storage
}

/// xorshift64*: small, and the same everywhere.
#[derive(Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub fn fill(&mut self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(6) {
            let bytes = self.next().to_le_bytes();
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
    }
}
