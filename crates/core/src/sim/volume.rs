//! A simulated object with the lock under which it is open.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use vdsmstore_io::device::sim::{SimDevice, hosts};
use vdsmstore_io::{Device, DeviceExtent, DeviceId, Offload, Result};

use super::World;
use super::state::State;
use crate::id::{Incarnation, VolumeId};
use crate::repository::Guard;

/// A lock, held until dropped or until its host crashes.
#[derive(Debug)]
pub(super) struct Held {
    world: Weak<World>,
    token: u64,
    /// Set when the lock was lost and everything under it with it.
    fence: Arc<AtomicBool>,
}

impl Held {
    pub(super) fn new(world: &Arc<World>, token: u64, fence: Arc<AtomicBool>) -> Self {
        Self { world: Arc::downgrade(world), token, fence }
    }

    /// Who makes or replaces a name does it with the lock in hand.
    pub(super) fn ensure_held(&self, state: &State) -> crate::Result<()> {
        if state.is_locked(self.token) || !self.fence.load(Ordering::Acquire) {
            return Ok(());
        }
        Err(crate::Error::new(crate::ErrorKind::LeaseLost, "the lock was lost"))
    }

    pub(super) fn fence(&self) -> Arc<AtomicBool> {
        self.fence.clone()
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
    pub(super) lock: Held,
    pub(super) volume: VolumeId,
    pub(super) host: Incarnation,
}

impl LockedDevice {
    /// Bytes have arrived.
    fn written(&self) {
        if let Some(world) = self.lock.world.upgrade().filter(|_| hosts::is_host()) {
            world.state().note_write(self.host, self.volume);
        }
    }
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
        self.device.write_at(offset, buffer)?;
        self.written();
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Result<()> {
        self.device.write_zeroes(offset, length)?;
        self.written();
        Ok(())
    }

    fn set_len(&self, length: u64) -> Result<()> {
        self.device.set_len(length)?;
        self.written();
        Ok(())
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

    fn can_offload(&self, how: Offload, source: &dyn Device) -> bool {
        self.device.can_offload(how, source)
    }

    fn offload(
        &self,
        how: Offload,
        offset: u64,
        source: &dyn Device,
        source_offset: u64,
        length: u64,
    ) -> Result<u64> {
        self.device.offload(how, offset, source, source_offset, length)
    }
}
