//! Block devices: a loop device, which only root can make. Without one the tests say so and pass.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::*;
use vdsmstore_io::qcow2::{self, CreateOptions};
use vdsmstore_io::{Device, ErrorKind, FileDevice, Format, Image, Layer, RunKind};

const LENGTH: u64 = 24 * MIB;

/// A loop device full of old bytes, like a logical volume that was another's before. Detached when dropped.
struct Loop {
    path: PathBuf,
    file: PathBuf,
    _keep: tempfile::TempDir,
}

impl Loop {
    fn new() -> Option<Loop> {
        let (keep, dir) = scratch();
        let file = dir.join("loop");
        std::fs::write(&file, vec![0xaa; LENGTH as usize]).unwrap();
        let output = std::process::Command::new("losetup").args(["-f", "--show"]).arg(&file).output();
        match output {
            Ok(output) if output.status.success() => {
                let path = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim());
                Some(Loop { path, file, _keep: keep })
            }
            other => {
                println!("skipped, no loop device: {other:?}");
                None
            }
        }
    }

    fn open(&self) -> Arc<FileDevice> {
        Arc::new(FileDevice::open(&self.path, true).unwrap())
    }

    fn image(&self, format: Format, size: u64) -> vdsmstore_io::Result<Image> {
        Image::open(vec![Layer { device: self.open(), format, size }], true)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let status = std::process::Command::new("losetup").arg("-d").arg(&self.path).status();
        if !status.as_ref().is_ok_and(std::process::ExitStatus::success) {
            println!("{} is still attached: {status:?}", self.path.display());
        }
    }
}

/// What the storage has, past the page cache of the block device.
fn stored(path: &Path) -> Vec<u8> {
    let name = format!("if={}", path.display());
    let output = run("dd", &[&name, "bs=1M", "iflag=direct", "status=none"]);
    assert!(output.status.success());
    output.stdout
}

#[test]
fn the_device_is_written_and_zeroed() {
    let Some(disk) = Loop::new() else { return };
    let device = disk.open();
    assert_eq!((device.len().unwrap(), device.fixed_len().unwrap()), (LENGTH, Some(LENGTH)));
    assert_eq!(device.id(), disk.open().id());
    let extent = device.extent(5, LENGTH - 5).unwrap();
    assert_eq!((extent.length, extent.data), (LENGTH - 5, true));
    let mut model = vec![0xaa; LENGTH as usize];
    for (at, length) in [(0, 512), (1000, 70_000), (MIB - 1, 2), (LENGTH - 10, 10)] {
        device.write_at(at, &vec![7; length]).unwrap();
        model[at as usize..][..length].fill(7);
    }
    // Dirty pages under a zeroed range must not come back.
    for (at, length) in
        [(2000, 1), (4096, 4096), (5000, 60_000), (2 * MIB - 3, 5 * MIB), (LENGTH - 4097, 4097)]
    {
        device.write_at(at, &vec![9; length as usize]).unwrap();
        device.write_zeroes(at, length).unwrap();
        model[at as usize..][..length as usize].fill(0);
    }
    let mut bytes = vec![1; LENGTH as usize];
    device.read_at(0, &mut bytes).unwrap();
    assert_same(&bytes, &model);
    device.flush().unwrap();
    assert_same(&stored(&disk.path), &model);
    assert_eq!(device.read_at(LENGTH - 1, &mut [0; 2]).unwrap_err().kind(), ErrorKind::ShortRead);
    assert_eq!(device.write_at(LENGTH - 1, &[0; 2]).unwrap_err().kind(), ErrorKind::NoSpace);
    assert_eq!(device.write_zeroes(LENGTH - 1, 2).unwrap_err().kind(), ErrorKind::NoSpace);
    assert_eq!(device.write_zeroes(LENGTH, 4096).unwrap_err().kind(), ErrorKind::NoSpace);
    assert_eq!(device.set_len(LENGTH + 1).unwrap_err().kind(), ErrorKind::NoSpace);
    assert_eq!(device.allocate(0, LENGTH + 1).unwrap_err().kind(), ErrorKind::NoSpace);
    device.set_len(LENGTH).unwrap();
    device.allocate(0, LENGTH).unwrap();
    let reader = FileDevice::open(&disk.path, false).unwrap();
    assert_eq!(reader.write_zeroes(0, 4096).unwrap_err().kind(), ErrorKind::ReadOnly);
    assert_same(&stored(&disk.path), &model);
}

#[test]
fn a_raw_image_on_it() {
    let Some(disk) = Loop::new() else { return };
    let size = 10 * MIB + 512;
    let image = disk.image(Format::Raw, size).unwrap();
    image.write(MIB, &[1; 5000]).unwrap();
    image.write_zeroes(2 * MIB, 3 * MIB).unwrap();
    assert!(matches!(image.run(0, size).unwrap().kind, RunKind::Data { device_offset: 0, .. }));
    let mut model = vec![0xaa; size as usize];
    model[MIB as usize..][..5000].fill(1);
    model[2 * MIB as usize..5 * MIB as usize].fill(0);
    assert_same(&read_all(&image), &model);
    assert_eq!(image.grow(LENGTH + 512).unwrap_err().kind(), ErrorKind::NoSpace);
    image.grow(LENGTH).unwrap();
    model.resize(LENGTH as usize, 0);
    assert_same(&read_all(&image), &model);
    assert_same(&stored(&disk.path), &model);
    assert_eq!(disk.image(Format::Raw, LENGTH + 512).unwrap_err().kind(), ErrorKind::ShortRead);
}

#[test]
fn zeroes_give_space_back() {
    use std::os::unix::fs::MetadataExt;
    let Some(disk) = Loop::new() else { return };
    let taken = || std::fs::metadata(&disk.file).unwrap().blocks() * 512;
    let before = taken();
    let device = disk.open();
    device.write_zeroes(MIB + 512, 8 * MIB).unwrap();
    device.flush().unwrap();
    let freed = before - taken();
    assert!((7 * MIB..=8 * MIB).contains(&freed), "{freed}");
    let mut expected = vec![0xaa; LENGTH as usize];
    expected[MIB as usize + 512..][..8 * MIB as usize].fill(0);
    assert_same(&stored(&disk.path), &expected);
}

#[test]
fn a_qcow2_image_on_it() {
    let Some(disk) = Loop::new() else { return };
    let (size, larger) = (40 * MIB, 700 * MIB);
    qcow2::create(&*disk.open(), &CreateOptions { size, backing: None, preallocate_metadata: false })
        .unwrap();
    let image = disk.image(Format::Qcow2, size).unwrap();
    let mut random = Random::new(1);
    let mut model = vec![0; size as usize];
    for _ in 0..100 {
        let at = random.below(size);
        let length = (1 + random.below(200_000)).min(size - at) as usize;
        if random.below(3) == 0 {
            image.discard(at, length as u64).unwrap();
            model[at as usize..][..length].fill(0);
        } else {
            let mut data = vec![0; length];
            random.fill(&mut data);
            match image.write(at, &data) {
                Ok(()) => model[at as usize..][..length].copy_from_slice(&data),
                Err(error) => {
                    // Room for it may come when something is given up.
                    assert_eq!(error.kind(), ErrorKind::NoSpace);
                    image.discard(at, length as u64).unwrap();
                    model[at as usize..][..length].fill(0);
                    image.flush().unwrap();
                }
            }
        }
    }
    assert_same(&read_all(&image), &model);
    image.grow(larger).unwrap();
    image.discard(0, 8 * MIB).unwrap();
    model[..8 * MIB as usize].fill(0);
    image.flush().unwrap();
    image.write(larger - 512, &[5; 512]).unwrap();
    image.flush().unwrap();
    drop(image);
    check_leaks_only(&disk.path);
    check_clean(&disk.path);
    let image = disk.image(Format::Qcow2, larger).unwrap();
    let mut bytes = vec![0; size as usize];
    image.read(0, &mut bytes).unwrap();
    assert_same(&bytes, &model);
    // QEMU reads the same from the device and from a copy of what is stored.
    let (_keep, dir) = scratch();
    let copy = dir.join("copy");
    std::fs::write(&copy, stored(&disk.path)).unwrap();
    let (a, b) = (copy.to_str().unwrap(), disk.path.to_str().unwrap());
    qemu("qemu-img", &["compare", "-f", "qcow2", "-F", "qcow2", a, b]);
    assert_same(&qemu_read(&copy, "qcow2")[..size as usize], &model);
}
