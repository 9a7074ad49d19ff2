//! Files and locks.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::sync::Arc;

use vdsmstore_io::sys::{LockMode, ofd_try_lock, ofd_unlock, ofd_would_block};
use vdsmstore_io::{Device, ErrorKind, FileDevice};

fn scratch() -> (tempfile::TempDir, std::path::PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    (directory, path)
}

#[test]
fn reads_and_writes() {
    let (_keep, path) = scratch();
    let device = FileDevice::create_new(&path).unwrap();
    assert_eq!(FileDevice::create_new(&path).unwrap_err().errno(), Some(17));
    assert!(device.is_empty().unwrap());
    device.write_at(10_000, b"hello").unwrap();
    assert_eq!(device.len().unwrap(), 10_005);
    let mut buffer = [1; 10];
    device.read_at(9_995, &mut buffer).unwrap();
    assert_eq!(&buffer, b"\0\0\0\0\0hello");
    let error = device.read_at(10_000, &mut buffer).unwrap_err();
    assert_eq!(
        (error.kind(), error.offset(), error.length()),
        (ErrorKind::ShortRead, Some(10_000), Some(10))
    );
    assert_eq!(error.path(), Some(path.as_path()));
    assert_eq!(device.read_at(u64::MAX, &mut buffer).unwrap_err().kind(), ErrorKind::ShortRead);
    assert_eq!(device.write_at(u64::MAX - 3, &buffer).unwrap_err().kind(), ErrorKind::InvalidInput);
    device.flush().unwrap();
    let again = FileDevice::open(&path, false).unwrap();
    assert_eq!(again.id(), device.id());
    assert_eq!(again.write_at(0, b"x").unwrap_err().kind(), ErrorKind::ReadOnly);
}

#[test]
fn zeroing_punches_and_grows() {
    let (_keep, path) = scratch();
    let device = FileDevice::create_new(&path).unwrap();
    device.write_at(0, &vec![7; 1 << 20]).unwrap();
    device.write_zeroes(65_537, 500_000).unwrap();
    let mut buffer = vec![1; 1 << 20];
    device.read_at(0, &mut buffer).unwrap();
    for (at, byte) in buffer.iter().enumerate() {
        assert_eq!(*byte, if (65_537..565_537).contains(&at) { 0 } else { 7 }, "{at}");
    }
    assert_eq!(device.len().unwrap(), 1 << 20);
    device.write_zeroes((1 << 20) - 10, 2 << 20).unwrap();
    assert_eq!(device.len().unwrap(), (3 << 20) - 10);
    device.read_at((1 << 20) - 10, &mut buffer).unwrap();
    assert!(buffer.iter().all(|byte| *byte == 0));
}

#[test]
fn extents_tell_data_from_holes() {
    let (_keep, path) = scratch();
    let device = FileDevice::create_new(&path).unwrap();
    device.set_len(8 << 20).unwrap();
    device.write_at(1 << 20, &vec![7; 1 << 20]).unwrap();
    let mut at = 0;
    let mut found = Vec::new();
    while at < 8 << 20 {
        let extent = device.extent(at, (8 << 20) - at).unwrap();
        found.push((extent.length, extent.data));
        at += extent.length;
    }
    assert_eq!(found, [(1 << 20, false), (1 << 20, true), (6 << 20, false)]);
    assert_eq!(device.extent((1 << 20) + 5, 10).unwrap().length, 10);
}

#[test]
fn growing_by_zeroes_never_shrinks() {
    let (_keep, path) = scratch();
    let device = Arc::new(FileDevice::create_new(&path).unwrap());
    std::thread::scope(|scope| {
        for me in 0..4u64 {
            let device = Arc::clone(&device);
            scope.spawn(move || {
                for step in 0..200 {
                    let at = (step * 4 + me) * 8192;
                    if me % 2 == 0 {
                        device.write_zeroes(at, 8192).unwrap();
                    } else {
                        device.write_at(at, &[9; 8192]).unwrap();
                    }
                }
            });
        }
    });
    let mut bytes = vec![0; 800 * 8192];
    device.read_at(0, &mut bytes).unwrap();
    for (number, block) in bytes.chunks(8192).enumerate() {
        assert!(block.iter().all(|byte| *byte == if number % 2 == 0 { 0 } else { 9 }), "{number}");
    }
}

#[test]
fn only_files_and_block_devices_open() {
    let (keep, path) = scratch();
    assert_eq!(FileDevice::open(&path, false).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(FileDevice::open(keep.path(), false).unwrap_err().kind(), ErrorKind::InvalidInput);
    let device = std::path::Path::new("/dev/null");
    assert_eq!(FileDevice::open(device, true).unwrap_err().kind(), ErrorKind::InvalidInput);
    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    assert_eq!(FileDevice::open(&path, false).unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[test]
fn locks_belong_to_open_files() {
    let (_keep, path) = scratch();
    std::fs::write(&path, b"").unwrap();
    let open = || File::options().read(true).write(true).open(&path).unwrap();
    let (a, b) = (open(), open());
    let at = 1 << 62;
    assert!(ofd_try_lock(&a, at, 1, LockMode::Shared).unwrap());
    assert!(ofd_try_lock(&b, at, 1, LockMode::Shared).unwrap());
    assert!(!ofd_try_lock(&a, at, 1, LockMode::Exclusive).unwrap());
    assert!(ofd_would_block(&a, at, 1, LockMode::Exclusive).unwrap());
    assert!(!ofd_would_block(&a, at, 1, LockMode::Shared).unwrap());
    assert!(!ofd_would_block(&a, at + 1, 1, LockMode::Exclusive).unwrap());
    ofd_unlock(&b, at, 1).unwrap();
    assert!(ofd_try_lock(&a, at, 1, LockMode::Exclusive).unwrap());
    assert!(!ofd_try_lock(&b, at, 1, LockMode::Shared).unwrap());
    drop(a);
    assert!(ofd_try_lock(&b, at, 1, LockMode::Exclusive).unwrap());
    assert!(ofd_try_lock(&b, u64::MAX, 1, LockMode::Shared).is_err());
}

/// QEMU sees a read lock on byte 101 as "nobody may write".
#[test]
fn qemu_meets_our_locks() {
    let (_keep, path) = scratch();
    std::fs::write(&path, vec![0; 1 << 20]).unwrap();
    let name = path.to_str().unwrap();
    let write = || {
        let output =
            std::process::Command::new("qemu-io").args(["-f", "raw", "-c", "write 0 512", name]).output();
        output.unwrap().status.success()
    };
    assert!(write());
    let file = File::open(&path).unwrap();
    assert!(ofd_try_lock(&file, 201, 1, LockMode::Shared).unwrap());
    assert!(!write());
    ofd_unlock(&file, 201, 1).unwrap();
    assert!(write());
}
