//! A device that counts what is asked of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vdsmstore_io::{Device, DeviceExtent, DeviceId, Power, Result, SimDevice, SimStorage};

/// Requests of an image of that length, beyond which it counts as endless.
fn limit(length: u64) -> u64 {
    20_000 + length / 8
}

/// Bytes in memory; huge offsets take no more than small ones.
#[derive(Debug)]
pub struct Bytes {
    device: SimDevice,
    requests: AtomicU64,
    most: u64,
}

impl Bytes {
    pub fn new(bytes: &[u8], object: u64) -> Arc<Bytes> {
        Self::limited(bytes, object, limit(bytes.len() as u64))
    }

    /// For work that looks at all of it several times.
    pub fn patient(bytes: &[u8], object: u64) -> Arc<Bytes> {
        Self::limited(bytes, object, 40 * limit(bytes.len() as u64))
    }

    fn limited(bytes: &[u8], object: u64, most: u64) -> Arc<Bytes> {
        let storage = SimStorage::new(1, object);
        let device = SimDevice::new(Arc::clone(&storage), Power::new(), "hostile".into(), true);
        // Nothing of this fails: the power stays on.
        let filled = device.write_at(0, bytes).and_then(|()| device.flush());
        assert!(filled.is_ok());
        Arc::new(Bytes { device, requests: AtomicU64::new(0), most })
    }

    fn count(&self) {
        let requests = self.requests.fetch_add(1, Ordering::Relaxed);
        assert!(requests < self.most, "there is no end: {requests} requests");
    }
}

impl Device for Bytes {
    fn id(&self) -> DeviceId {
        self.device.id()
    }

    fn name(&self) -> String {
        self.device.name()
    }

    fn len(&self) -> Result<u64> {
        self.device.len()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.count();
        // What begins in the file may end behind it, and is refused.
        assert!(offset <= self.device.len()?, "a read of {} bytes at {offset:#x}, outside", buffer.len());
        self.device.read_at(offset, buffer)
    }

    fn write_at(&self, offset: u64, buffer: &[u8]) -> Result<()> {
        self.count();
        self.device.write_at(offset, buffer)
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Result<()> {
        self.count();
        self.device.write_zeroes(offset, length)
    }

    fn set_len(&self, length: u64) -> Result<()> {
        self.device.set_len(length)
    }

    fn allocate(&self, offset: u64, length: u64) -> Result<()> {
        self.device.allocate(offset, length)
    }

    fn flush(&self) -> Result<()> {
        self.device.flush()
    }

    fn extent(&self, offset: u64, length: u64) -> Result<DeviceExtent> {
        self.device.extent(offset, length)
    }
}
