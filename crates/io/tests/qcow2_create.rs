//! What we make, QEMU finds clean: every cluster size, with and without preallocation, on a backing file.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::os::unix::fs::MetadataExt;

use common::*;
use vdsmstore_io::qcow2::{self, Backing, Compression, CreateOptions, Layout, Preallocation};
use vdsmstore_io::{ErrorKind, FileDevice, Format, RunKind};

#[test]
fn every_layout() {
    let (_keep, dir) = scratch();
    let (path, below) = (dir.join("image"), dir.join("below"));
    let mut made = 0;
    for cluster_size in (16..=21).map(|bits| 1u64 << bits) {
        for preallocation in
            [Preallocation::Off, Preallocation::Metadata, Preallocation::Allocated, Preallocation::Full]
        {
            for compression in [Compression::Deflate, Compression::Zstd] {
                for (size, backed) in [(0, false), (9 * MIB + 512, false), (3 * GIB, false), (9 * MIB, true)]
                {
                    let written = matches!(preallocation, Preallocation::Allocated | Preallocation::Full);
                    if written && size > GIB {
                        continue;
                    }
                    let _ = std::fs::remove_file(&path);
                    let device = FileDevice::create_new(&path).unwrap();
                    let backing = backed.then(|| Backing { name: "below".into(), format: Format::Raw });
                    let options = CreateOptions { size, backing, preallocate_metadata: false };
                    let layout = Layout { cluster_size, compression, preallocation };
                    let result = qcow2::create_with(&device, &options, &layout);
                    if backed && preallocation != Preallocation::Off {
                        assert_eq!(result.unwrap_err().kind(), ErrorKind::InvalidInput);
                        assert_eq!(std::fs::metadata(&path).unwrap().len(), 0);
                        continue;
                    }
                    result.unwrap();
                    made += 1;
                    let mut content = vec![0; if size > GIB { 0 } else { size as usize }];
                    if backed {
                        Random::new(7).fill(&mut content);
                        std::fs::write(&below, &content).unwrap();
                    }
                    check_clean(&path);
                    let info = qemu("qemu-img", &["info", "-f", "qcow2", path.to_str().unwrap()]);
                    let kind = if compression == Compression::Zstd { "zstd" } else { "zlib" };
                    assert!(info.contains(&format!("compression type: {kind}")), "{info}");
                    assert!(info.contains(&format!("cluster_size: {cluster_size}")), "{info}");
                    let allocated = std::fs::metadata(&path).unwrap().blocks() * 512;
                    assert_eq!(allocated >= size, written || size == 0, "{preallocation:?}: {allocated}");

                    let layers =
                        [(path.as_path(), Format::Qcow2, size), (below.as_path(), Format::Raw, size)];
                    let image = open(&layers[..=usize::from(backed)]);
                    let mapped: u64 = image
                        .runs(0, size)
                        .map(Result::unwrap)
                        .filter(|run| matches!(run.kind, RunKind::Data { layer: 0, .. }))
                        .map(|run| run.length)
                        .sum();
                    assert_eq!(mapped, if preallocation == Preallocation::Off { 0 } else { size });
                    if size == 0 {
                        continue;
                    }
                    // What is preallocated is written in place.
                    let length = std::fs::metadata(&path).unwrap().len();
                    image.write(size / 2, &[5; 3000]).unwrap();
                    image.flush().unwrap();
                    if preallocation != Preallocation::Off {
                        assert_eq!(std::fs::metadata(&path).unwrap().len(), length);
                    }
                    drop(image);
                    check_clean(&path);
                    if size < GIB {
                        content[size as usize / 2..][..3000].fill(5);
                        assert_same(&qemu_read(&path, "qcow2"), &content);
                    }
                }
            }
        }
    }
    println!("{made} images");
    assert!(made > 100);
}

#[test]
fn layouts_that_cannot_be() {
    let (_keep, dir) = scratch();
    let device = FileDevice::create_new(&dir.join("image")).unwrap();
    let create = |size, cluster_size, preallocation| {
        let options = CreateOptions { size, backing: None, preallocate_metadata: false };
        let layout = Layout { cluster_size, preallocation, ..Layout::default() };
        let error = qcow2::create_with(&device, &options, &layout).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    };
    for cluster_size in [0, 1, 512, 32 * KIB, 65537, 96 * KIB, 4 * MIB, 1 << 63, u64::MAX] {
        create(MIB, cluster_size, Preallocation::Off);
    }
    create(u64::MAX, 64 * KIB, Preallocation::Off);
    create(1 << 62, 2 * MIB, Preallocation::Metadata);
    // More clusters than the refcount table may count.
    create(3 << 50, 64 * KIB, Preallocation::Metadata);
    assert_eq!(std::fs::metadata(dir.join("image")).unwrap().len(), 0);
}
