//! A device that cannot grow: running out of room is an error of one write, not of the image.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use common::*;
use vdsmstore_io::qcow2::{self, CreateOptions};
use vdsmstore_io::{
    Device, DeviceExtent, DeviceId, ErrorKind, Format, Image, Layer, Power, Result, SimDevice, SimStorage,
};

/// Like a logical volume: fixed length, old bytes in it.
#[derive(Debug)]
struct Fixed(SimDevice);

impl Device for Fixed {
    fn id(&self) -> DeviceId {
        self.0.id()
    }
    fn name(&self) -> String {
        self.0.name()
    }
    fn len(&self) -> Result<u64> {
        self.0.len()
    }
    fn fixed_len(&self) -> Result<Option<u64>> {
        self.0.len().map(Some)
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.0.read_at(offset, buffer)
    }
    fn write_at(&self, offset: u64, buffer: &[u8]) -> Result<()> {
        assert!(offset + buffer.len() as u64 <= self.0.len()?);
        self.0.write_at(offset, buffer)
    }
    fn write_zeroes(&self, offset: u64, length: u64) -> Result<()> {
        assert!(offset + length <= self.0.len()?);
        self.0.write_zeroes(offset, length)
    }
    fn set_len(&self, _: u64) -> Result<()> {
        panic!("a logical volume is not ours to resize");
    }
    fn allocate(&self, offset: u64, length: u64) -> Result<()> {
        self.0.allocate(offset, length)
    }
    fn flush(&self) -> Result<()> {
        self.0.flush()
    }
    fn extent(&self, _: u64, length: u64) -> Result<DeviceExtent> {
        Ok(DeviceExtent { length, data: true })
    }
}

#[test]
fn a_full_volume_stays_usable() {
    let garbage = vec![0xaa; MIB as usize];
    let storage: Arc<SimStorage> = storage_of(&garbage, 1);
    let device = Arc::new(Fixed(SimDevice::new(Arc::clone(&storage), Power::new(), "lv".into(), true)));
    let size = 4 * MIB;
    qcow2::create(&*device, &CreateOptions { size, backing: None, preallocate_metadata: false }).unwrap();
    let open = || {
        let device = Arc::<Fixed>::clone(&device);
        Image::open(vec![Layer { device, format: Format::Qcow2, size }], true).unwrap()
    };
    let image = open();
    let mut model = vec![0; size as usize];
    // 16 clusters: 4 of tables, 1 L2, 11 left.
    for (at, byte) in [(100, 1), (700_000, 2), (3_000_000, 3)] {
        image.write(at, &[byte; 1000]).unwrap();
        model[at as usize..][..1000].fill(byte);
    }
    let error = image.write(MIB, &vec![4; MIB as usize]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    image.flush().unwrap();
    // Part of it may have been written; what was there before is untouched, and room can be made.
    image.discard(MIB, MIB).unwrap();
    assert_same(&read_all(&image), &model);
    image.flush().unwrap();
    image.write(2 * MIB, &vec![5; 65536 * 6]).unwrap();
    model[2 * MIB as usize..][..65536 * 6].fill(5);
    image.flush().unwrap();
    drop(image);
    assert_same(&read_all(&open()), &model);
    let (_keep, dir) = scratch();
    let path = dir.join("dump");
    std::fs::write(&path, storage.bytes()).unwrap();
    check_clean(&path);
}
