//! The matrix of what QEMU can write: each kind of image is scribbled on by qemu-io, read by us, and where we write that
//! kind, written on by both in turns. The table at the end says what was done.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::packed::mixture;
use common::*;
use vdsmstore_io::{Device, ErrorKind, FileDevice, Format, Image, ImageOptions};

/// What an image has besides its options.
#[derive(Clone, Copy, Debug, Default)]
#[allow(clippy::struct_excessive_bools, reason = "a column of the table each")]
struct More {
    /// Layers below: a raw file, and with 2 a qcow2 over it; shorter and longer than the image.
    below: u32,
    snapshots: bool,
    bitmaps: bool,
    /// An extension and feature bits that nobody knows.
    unknown: bool,
    /// QEMU writes compressed clusters, too.
    compressed: bool,
    data_file: bool,
    /// We refuse to write it, with these words.
    refused: Option<&'static str>,
}

const PLAIN: More = More {
    below: 0,
    snapshots: false,
    bitmaps: false,
    unknown: false,
    compressed: false,
    data_file: false,
    refused: None,
};
const PACKED: More = More { compressed: true, ..PLAIN };
const OLD: More = More { refused: Some("version 2"), ..PLAIN };
const SUBCLUSTERS: More = More { compressed: true, refused: Some("subclusters"), ..PLAIN };
const DATA_FILE: More = More { data_file: true, refused: Some("data file"), ..PLAIN };

/// Options of `qemu-img create`, the size in KiB (a sector is added to some), and more. The place in the list is the seed;
/// with some seeds qemu-io 10.0 alone makes images that its own check finds corrupt: when it has discarded what it wrote
/// compressed a moment ago, it goes on packing into that cluster, which is free.
const MATRIX: &[(&str, u64, More)] = &[
    ("cluster_size=512", 300, PLAIN),
    ("cluster_size=1k", 500, PACKED),
    ("cluster_size=2k", 700, More { below: 1, ..PLAIN }),
    ("cluster_size=4k", 1000, PACKED),
    ("cluster_size=8k", 1500, More { below: 2, ..PACKED }),
    ("cluster_size=16k", 2000, PLAIN),
    ("cluster_size=32k", 3000, More { snapshots: true, ..PLAIN }),
    ("cluster_size=64k", 4000, PACKED),
    ("cluster_size=128k", 5000, PLAIN),
    ("cluster_size=256k", 6000, More { bitmaps: true, ..PLAIN }),
    ("cluster_size=512k", 7000, PACKED),
    ("cluster_size=1M", 8000, More { below: 1, ..PLAIN }),
    ("cluster_size=2M", 12000, PACKED),
    ("compat=0.10,cluster_size=512", 300, OLD),
    ("compat=0.10,cluster_size=4k", 1000, More { compressed: true, ..OLD }),
    ("compat=0.10", 4000, More { below: 1, snapshots: true, ..OLD }),
    ("compat=0.10,cluster_size=2M", 9000, OLD),
    ("refcount_bits=1,cluster_size=4k", 1000, PLAIN),
    ("refcount_bits=2,cluster_size=4k", 1000, PLAIN),
    ("refcount_bits=4,cluster_size=512", 300, PLAIN),
    ("refcount_bits=8,cluster_size=4k", 1000, PACKED),
    ("refcount_bits=32,cluster_size=4k", 1000, More { snapshots: true, ..PACKED }),
    ("refcount_bits=64", 4000, More { snapshots: true, ..PACKED }),
    ("compression_type=zstd,cluster_size=2k", 700, PACKED),
    ("compression_type=zstd", 4000, More { snapshots: true, bitmaps: true, ..PACKED }),
    ("compression_type=zstd,cluster_size=2M", 9000, PACKED),
    ("lazy_refcounts=on", 3000, PLAIN),
    ("preallocation=metadata,cluster_size=4k", 1000, More { snapshots: true, ..PLAIN }),
    ("preallocation=falloc", 3000, PLAIN),
    ("preallocation=full", 3000, More { bitmaps: true, ..PLAIN }),
    ("extended_l2=on,cluster_size=16k", 1500, More { below: 1, ..SUBCLUSTERS }),
    ("extended_l2=on", 4000, SUBCLUSTERS),
    ("extended_l2=on,cluster_size=2M", 9000, More { snapshots: true, ..SUBCLUSTERS }),
    ("extended_l2=on,compression_type=zstd,cluster_size=128k", 4000, More { below: 2, ..SUBCLUSTERS }),
    ("data_file=data", 3000, DATA_FILE),
    ("data_file=data,data_file_raw=on,cluster_size=4k", 1000, DATA_FILE),
    ("data_file=data,extended_l2=on", 3000, DATA_FILE),
    ("cluster_size=4k", 1000, More { unknown: true, ..PACKED }),
    ("cluster_size=64k", 4000, More { below: 2, snapshots: true, bitmaps: true, ..PACKED }),
    ("cluster_size=16k", 2000, More { below: 2, snapshots: true, bitmaps: true, unknown: true, ..PLAIN }),
];

struct Row {
    dir: PathBuf,
    path: PathBuf,
    size: u64,
    cluster_size: u64,
    more: More,
    random: Random,
    theirs: u64,
    ours: u64,
    runs: usize,
}

impl Row {
    fn new(dir: &Path, number: usize) -> Row {
        let (options, kib, more) = MATRIX[number];
        let path = dir.join("image");
        let name = path.to_str().unwrap();
        let mut random = Random::new(number as u64 + 1);
        let size = kib * KIB + 512 * (number as u64 % 3);
        let options = options.replace("data_file=data", &format!("data_file={}", dir.join("data").display()));
        let mut arguments = vec!["create", "-q", "-f", "qcow2", "-o", &options];
        if more.below > 0 {
            std::fs::write(dir.join("raw"), mixture(&mut random, size * 5 / 4 / 512 * 512)).unwrap();
            arguments.extend(["-b", "raw", "-F", "raw"]);
        }
        let middle = dir.join("middle");
        if more.below > 1 {
            let shown = (size / 2).to_string();
            let from = middle.to_str().unwrap();
            qemu("qemu-img", &["create", "-q", "-f", "qcow2", "-b", "raw", "-F", "raw", from, &shown]);
            qemu_io(&middle, &["write -P 9 100k 30k", "write -z 10k 70k"]);
            let at = arguments.len() - 3;
            arguments[at..].copy_from_slice(&["middle", "-F", "qcow2"]);
        }
        let length = size.to_string();
        arguments.extend([name, &length]);
        qemu("qemu-img", &arguments);
        if more.bitmaps {
            qemu("qemu-img", &["bitmap", "--add", "-g", "4k", name, "b"]);
        }
        if more.unknown {
            // The feature names, if it has them, go for an extension that is not known; and bits that may be ignored.
            let mut bytes = std::fs::read(&path).unwrap();
            let names = bytes.windows(4).position(|four| four == 0x6803_f857u32.to_be_bytes());
            let at = names.unwrap_or_else(|| {
                assert_eq!(bytes[112..160], [0; 48]);
                bytes[119] = 16;
                bytes[120..136].fill(b'?');
                112
            });
            bytes[at..at + 4].copy_from_slice(b"what");
            bytes[80] = 0x80;
            std::fs::write(&path, bytes).unwrap();
        }
        let cluster_size =
            vdsmstore_io::qcow2::info(&FileDevice::open(&path, false).unwrap()).unwrap().cluster_size;
        let dir = dir.to_path_buf();
        Row { dir, path, size, cluster_size, more, random, theirs: 0, ours: 0, runs: 0 }
    }

    /// Random commands to qemu-io, all to one process.
    fn their_turn(&mut self, count: u64) {
        let (size, cluster_size) = (self.size, self.cluster_size);
        let mut arguments: Vec<String> = ["-t", "unsafe", "-f", "qcow2"].map(String::from).to_vec();
        for _ in 0..count {
            let random = &mut self.random;
            let at = random.below(size / 512) * 512;
            let longest = [4096, cluster_size, 3 * cluster_size][random.below(3) as usize];
            let length = ((1 + random.below(longest / 512)) * 512).min(size - at);
            let whole = at / cluster_size * cluster_size;
            arguments.push("-c".into());
            arguments.push(match random.below(12) {
                // Refused over what is there already, for which reason nobody looks at the status.
                0 | 1 if self.more.compressed => {
                    format!("write -c -P {} {whole} {}", random.below(256), cluster_size.min(size - whole))
                }
                0..=5 => format!("write -P {} {at} {length}", random.below(256)),
                6 | 7 => format!("write -z {at} {length}"),
                8 => format!("write -z -u {at} {length}"),
                9 | 10 => format!("discard {whole} {}", (2 * cluster_size).min(size - whole)),
                _ => "flush".into(),
            });
        }
        arguments.push(self.path.to_str().unwrap().into());
        run("qemu-io", &arguments.iter().map(String::as_str).collect::<Vec<_>>());
        self.theirs += count;
    }

    fn open(&self, writable: bool) -> vdsmstore_io::Result<Image> {
        let mut layers = vec![layer(&self.path, Format::Qcow2, self.size, writable)];
        if self.more.below > 1 {
            layers.push(layer(&self.dir.join("middle"), Format::Qcow2, self.size / 2 / 512 * 512, false));
        }
        if self.more.below > 0 {
            let shown = std::fs::metadata(self.dir.join("raw")).unwrap().len();
            layers.push(layer(&self.dir.join("raw"), Format::Raw, shown, false));
        }
        let data: Vec<(usize, Arc<dyn Device>)> = if self.more.data_file {
            vec![(0, Arc::new(FileDevice::open(&self.dir.join("data"), false).unwrap()))]
        } else {
            Vec::new()
        };
        Image::open_with(layers, &ImageOptions { writable, data_files: &data, memory: None })
    }

    /// We read what QEMU reads, and the map agrees.
    fn judge(&mut self) -> Vec<u8> {
        // QEMU's own work with compressed clusters among subclusters does not always please its check.
        if self.more.refused.is_none() {
            check_clean(&self.path);
        }
        let model = qemu_read(&self.path, "qcow2");
        let image = self.open(false).unwrap();
        assert_same(&read_all(&image), &model);
        for run in image.runs(0, self.size).map(Result::unwrap) {
            self.runs += 1;
            let found = &model[run.offset as usize..][..run.length as usize];
            assert!(!run.kind.is_zero() || found.iter().all(|byte| *byte == 0));
        }
        model
    }

    fn our_turn(&mut self, count: u64, mut model: Vec<u8>) {
        let header = std::fs::read(&self.path).unwrap()[112..512].to_vec();
        if let Some(words) = self.more.refused {
            let before = std::fs::read(&self.path).unwrap();
            let error = self.open(true).unwrap_err();
            assert!(error.kind() == ErrorKind::Unsupported && error.to_string().contains(words), "{error}");
            assert_eq!(std::fs::read(&self.path).unwrap(), before);
            return;
        }
        let image = self.open(true).unwrap();
        for _ in 0..count {
            let at = self.random.below(self.size);
            let longest = [600, self.cluster_size, 3 * self.cluster_size][self.random.below(3) as usize];
            let length = (1 + self.random.below(longest)).min(self.size - at);
            let place = at as usize..(at + length) as usize;
            match self.random.below(8) {
                0..=2 => {
                    let bytes = mixture(&mut self.random, length);
                    image.write(at, &bytes).unwrap();
                    model[place].copy_from_slice(&bytes);
                }
                3 => {
                    image.write_zeroes(at, length).unwrap();
                    model[place].fill(0);
                }
                4 => {
                    image.discard(at, length).unwrap();
                    model[place].fill(0);
                }
                5 => {
                    let at = at / self.cluster_size * self.cluster_size;
                    let bytes = mixture(&mut self.random, self.cluster_size.min(self.size - at));
                    image.write_compressed(at, &bytes).unwrap();
                    model[at as usize..][..bytes.len()].copy_from_slice(&bytes);
                }
                _ => image.flush().unwrap(),
            }
        }
        image.flush().unwrap();
        drop(image);
        self.ours += count;
        if self.more.unknown {
            assert_eq!(std::fs::read(&self.path).unwrap()[112..512], header);
        }
        check_clean(&self.path);
        assert_same(&qemu_read(&self.path, "qcow2"), &model);
    }

    fn play(&mut self) {
        for round in 0..3 * effort() {
            self.their_turn(40);
            if self.more.snapshots && round < 3 {
                qemu("qemu-img", &["snapshot", "-c", &round.to_string(), self.path.to_str().unwrap()]);
            }
            let model = self.judge();
            self.our_turn(30, model);
        }
    }
}

#[test]
fn every_kind_in_turns() {
    let (mut theirs, mut ours, mut refused) = (0, 0, 0);
    for (number, (options, kib, more)) in MATRIX.iter().enumerate() {
        let (_keep, dir) = scratch();
        let mut row = Row::new(&dir, number);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| row.play()));
        let flags = [
            (more.below == 1, "base"),
            (more.below == 2, "two bases"),
            (more.snapshots, "snapshots"),
            (more.bitmaps, "bitmaps"),
            (more.unknown, "unknown"),
            (more.compressed, "compressed"),
            (more.refused.is_some(), "read only"),
        ];
        let flags: Vec<&str> = flags.into_iter().filter_map(|(on, name)| on.then_some(name)).collect();
        println!(
            "{options:<56} {kib:>6} KiB {:>5} of QEMU {:>5} ours {:>6} runs  {}",
            row.theirs,
            row.ours,
            row.runs,
            flags.join(", ")
        );
        if let Err(panic) = result {
            println!("row {number}");
            std::panic::resume_unwind(panic);
        }
        theirs += row.theirs;
        ours += row.ours;
        refused += u64::from(more.refused.is_some());
        assert!(row.runs > 5 && (row.ours > 0) != more.refused.is_some());
    }
    println!(
        "{} kinds, {theirs} operations of QEMU, {ours} of ours, {refused} kinds refused for writing",
        MATRIX.len()
    );
    assert!(theirs > 4000 && ours > 2000);
}
