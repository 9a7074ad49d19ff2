//! Reading a file that may end anywhere: beyond its end there are zeroes, as QEMU sees it.

use crate::{Device, Error, ErrorKind, Result};

/// QEMU has no offsets beyond.
const MAX_OFFSET: u64 = i64::MAX as u64 & !((1 << 30) - 1);
const SECTOR: u64 = 512;

/// The file that is checked.
#[derive(Debug)]
pub(super) struct Source<'a> {
    device: &'a dyn Device,
    length: u64,
}

impl<'a> Source<'a> {
    pub fn new(device: &'a dyn Device) -> Result<Source<'a>> {
        Ok(Source { device, length: device.len()? })
    }

    pub fn device(&self) -> &'a dyn Device {
        self.device
    }

    /// Bytes of the file, in whole sectors.
    pub fn length(&self) -> u64 {
        self.length.next_multiple_of(SECTOR)
    }

    /// Whether nothing of it lies within the file.
    pub fn is_beyond(&self, offset: u64) -> bool {
        offset >= self.length
    }

    /// Whether the range can be read at all.
    pub fn reaches(offset: u64, length: u64) -> bool {
        offset.checked_add(length).is_some_and(|end| end <= MAX_OFFSET)
    }

    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        if !Self::reaches(offset, buffer.len() as u64) {
            return Err(Error::new(ErrorKind::Corrupt, "a table lies beyond all offsets")
                .with_path(self.device.name())
                .with_range(offset, buffer.len() as u64));
        }
        let inside = self.length.saturating_sub(offset).min(buffer.len() as u64) as usize;
        let (now, rest) = buffer.split_at_mut(inside);
        rest.fill(0);
        if now.is_empty() { Ok(()) } else { self.device.read_at(offset, now) }
    }
}
