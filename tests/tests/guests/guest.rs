//! Who uses an image: a store, or a QEMU process, for reading or for writing.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use vdsmstore_core::options::{ForceOptions, PrepareOptions};
use vdsmstore_core::{Image, PreparedImage, Store};
use vdsmstore_tests::prepared;
use vdsmstore_tests::qemu::Nbd;

/// Between two readings: others want to work.
const PAUSE: Duration = Duration::from_millis(50);

/// How an image is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Prepared by a store, and a QEMU process has it open.
    PreparedToWrite,
    PreparedToRead,
    /// By openImage.
    OpenToWrite,
    OpenToRead,
    /// A QEMU process alone, of which no record tells.
    QemuWrites,
    QemuReads,
}

pub const READERS: &[Use] = &[Use::PreparedToRead, Use::OpenToRead, Use::QemuReads];
pub const ALL: &[Use] = &[
    Use::PreparedToWrite,
    Use::PreparedToRead,
    Use::OpenToWrite,
    Use::OpenToRead,
    Use::QemuWrites,
    Use::QemuReads,
];

impl Use {
    pub fn writes(self) -> bool {
        matches!(self, Self::PreparedToWrite | Self::OpenToWrite | Self::QemuWrites)
    }

    /// Of no store.
    pub fn alone(self) -> bool {
        matches!(self, Self::QemuWrites | Self::QemuReads)
    }
}

/// An image in use.
pub struct Guest<'a> {
    store: &'a Store,
    id: String,
    open: Option<Image>,
    nbd: Option<Nbd>,
    prepared: bool,
    /// What it reads.
    expected: PathBuf,
}

impl<'a> Guest<'a> {
    /// Begins to use an image; writes a little if it may, what it had.
    pub fn begin(store: &'a Store, id: &str, how: Use, expected: &Path) -> Guest<'a> {
        let mut guest = Guest {
            store,
            id: id.to_owned(),
            open: None,
            nbd: None,
            prepared: false,
            expected: expected.to_owned(),
        };
        let options = PrepareOptions { read_only: !how.writes() };
        let start = |prepared: &PreparedImage| Nbd::start(&prepared.path, &prepared.format, !how.writes());
        match how {
            Use::PreparedToWrite | Use::PreparedToRead => {
                guest.nbd = Some(start(&store.prepare_image("A", id, &options).unwrap()));
                guest.prepared = true;
            }
            Use::OpenToWrite | Use::OpenToRead => {
                guest.open = Some(store.open_image("A", id, how.writes()).unwrap());
            }
            Use::QemuWrites | Use::QemuReads => {
                let (path, format) =
                    prepared(store, "A", id, |prepared| (prepared.path.clone(), prepared.format.clone()));
                guest.nbd = Some(Nbd::start(&path, &format, !how.writes()));
            }
        }
        if how.writes() {
            guest.write();
        }
        guest.read();
        guest
    }

    /// The guest goes on as if nothing was.
    pub fn write(&self) {
        let data = fs::read(&self.expected).unwrap();
        if let Some(open) = &self.open {
            open.write(0, &data[..512]).unwrap();
            open.flush().unwrap();
        }
        if let Some(nbd) = &self.nbd {
            let write = format!("write -P {} 0 512", data[0]);
            let output = Command::new("qemu-io")
                .args(["-f", "raw", "-c", &write, "-c", "flush", &nbd.uri()])
                .output()
                .unwrap();
            assert!(output.status.success(), "the guest cannot write: {output:?}");
        }
    }

    /// It has its data before it.
    pub fn read(&self) {
        if let Some(open) = &self.open {
            let mut data = vec![0xaa; open.size().unwrap() as usize];
            open.read(0, &mut data).unwrap();
            assert!(data == fs::read(&self.expected).unwrap(), "a guest reads something else");
        }
        if let Some(nbd) = &self.nbd {
            let output = Command::new("qemu-img")
                .args(["compare", "-f", "raw", "-F", "raw", &nbd.uri()])
                .arg(&self.expected)
                .output()
                .unwrap();
            assert!(output.status.success(), "a guest reads something else: {output:?}");
        }
    }

    /// Reads all the time while something is done; how often.
    pub fn beside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> (T, u32) {
        let (done, times) = (AtomicBool::new(false), AtomicU32::new(0));
        let result = thread::scope(|scope| {
            let reader = scope.spawn(|| {
                while !done.load(Ordering::Relaxed) || times.load(Ordering::Relaxed) == 0 {
                    self.read();
                    times.fetch_add(1, Ordering::Relaxed);
                    thread::sleep(PAUSE);
                }
            });
            let result = work();
            done.store(true, Ordering::Relaxed);
            reader.join().unwrap();
            result
        });
        (result, times.into_inner())
    }

    /// Lets the image go.
    pub fn end(mut self) {
        if let Some(open) = self.open.take() {
            open.close().unwrap();
        }
        drop(self.nbd.take());
        if self.prepared {
            self.store.teardown_image("A", &self.id, &ForceOptions::default()).unwrap();
        }
    }
}

/// All data files: inode and content of each.
pub fn data_files(repo: &Path) -> BTreeMap<String, (u64, Vec<u8>)> {
    let entries = fs::read_dir(repo.join("data")).unwrap();
    entries
        .map(|entry| {
            let entry = entry.unwrap();
            let inode = entry.metadata().unwrap().ino();
            (entry.file_name().into_string().unwrap(), (inode, fs::read(entry.path()).unwrap()))
        })
        .collect()
}

/// The names of the files that an image is spread over.
pub fn files_of(store: &Store, id: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut node: Value = prepared(store, "A", id, |prepared| prepared.blockdev.clone());
    while let Some(path) = node["file"]["filename"].as_str() {
        names.push(Path::new(path).file_name().unwrap().to_str().unwrap().to_owned());
        node = node["backing"].take();
    }
    names
}
