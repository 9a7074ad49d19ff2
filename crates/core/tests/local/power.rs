//! What is durable when a call returns, on real file systems: the disk as it is then is copied, and mounted anew.

use std::fs;

use vdsmstore_core::id::VolumeId;
use vdsmstore_core::repository::localfs::format;
use vdsmstore_core::repository::{Access, Driver, FormatOptions};

use super::{Mount, open, parameters};

/// A clone has its name and its bytes when it is told to be there, be it new or in the place of another one.
#[test]
fn a_clone_is_durable_with_its_name() {
    for mkfs in [&["mkfs.xfs", "-q"][..], &["mkfs.btrfs", "-q"]] {
        for replaces in [false, true] {
            let what = format!("{mkfs:?}, replaces {replaces}");
            let Some(mount) = Mount::new(mkfs, 320 << 20) else { return };
            format(&parameters(mount.path()), &FormatOptions::default()).unwrap();
            let driver = open(mount.path());
            let (from, to) = (VolumeId::random(), VolumeId::random());
            let source = driver.create_volume(from).unwrap();
            source.device.write_at(0, &vec![1; 1 << 20]).unwrap();
            source.device.flush().unwrap();
            if replaces {
                let old = driver.create_volume(to).unwrap();
                old.device.write_at(0, &vec![2; 1 << 20]).unwrap();
                old.device.flush().unwrap();
            }
            drop(driver.clone_volume(&source, to, &|| Ok(())).unwrap());
            drop((source, driver));
            let mount = mount.without_power();
            let file = mount.path().join("data").join(to.to_string());
            let data = fs::read(&file).unwrap_or_else(|error| panic!("{what}: {error}"));
            assert!(data == vec![1; 1 << 20], "{what}: {} bytes, {:?}", data.len(), data.first());
            let driver = open(mount.path());
            drop(driver.open_volume(to, Access::Write).unwrap());
        }
    }
}
