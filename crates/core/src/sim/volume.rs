//! A simulated object with the lock under which it is open.

use std::sync::{Arc, Weak};

use vdsmstore_io::device::sim::SimDevice;
use vdsmstore_io::{Device, DeviceExtent, DeviceId, Result};

use super::World;
use crate::repository::Guard;

/// A lock, held until dropped or until its host crashes.
#[derive(Debug)]
pub(super) struct Held {
    world: Weak<World>,
    token: u64,
}

impl Held {
    pub(super) fn new(world: &Arc<World>, token: u64) -> Self {
        Self { world: Arc::downgrade(world), token }
    }
}

impl Guard for Held {}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(world) = self.world.upgrade() {
            world.state().unlock(self.token);
        }
    }
}

/// The device of an open volume.
#[derive(Debug)]
pub(super) struct LockedDevice {
    pub(super) device: SimDevice,
    pub(super) _lock: Held,
}

impl Device for LockedDevice {
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
        self.device.read_at(offset, buffer)
    }

    fn write_at(&self, offset: u64, buffer: &[u8]) -> Result<()> {
        self.device.write_at(offset, buffer)
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Result<()> {
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

    fn can_clone(&self, source: &dyn Device) -> bool {
        self.device.can_clone(source)
    }

    fn clone_range(&self, offset: u64, source: &dyn Device, source_offset: u64, length: u64) -> Result<bool> {
        self.device.clone_range(offset, source, source_offset, length)
    }
}
