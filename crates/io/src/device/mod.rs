//! What bytes lie on: files, and the simulated device of the crash tests.

mod file;
#[cfg(feature = "sim")]
pub mod sim;

use std::fmt;
use std::fs::File;

use crate::Result;
use crate::sys::DirectFile;

pub use file::FileDevice;

/// Names the storage under a device: two devices with the same identity share their bytes, so that the same
/// offset in both needs no comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId {
    /// The file system or device number; for simulated devices the number of their world.
    pub domain: u64,
    /// The inode or its like.
    pub object: u64,
}

/// What a run of a device is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceExtent {
    /// Bytes from the offset that was asked about; at least 1.
    pub length: u64,
    /// False: a hole, which reads as zeroes and takes no space. True: it may hold anything.
    pub data: bool,
}

/// What storage can do without the bytes coming here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offload {
    /// A reflink: two places share their bytes until one of them is written.
    Clone,
    /// A copy, made by the server.
    Copy,
}

/// A second descriptor of a device, for requests past the page cache (`O_DIRECT`).
#[derive(Debug)]
pub struct Direct {
    pub(crate) file: DirectFile,
    /// Offsets and lengths of requests are multiples of this many bytes.
    pub(crate) alignment: u64,
}

impl Direct {
    /// Whether a request may be for that.
    pub(crate) fn takes(&self, offset: u64, length: u64) -> bool {
        offset.is_multiple_of(self.alignment) && length.is_multiple_of(self.alignment)
    }
}

/// A flat, growable array of bytes. All calls may come from many threads at once.
pub trait Device: fmt::Debug + Send + Sync {
    /// The identity of the storage, for physical sharing.
    fn id(&self) -> DeviceId;

    /// How messages name it: a path.
    fn name(&self) -> String;

    /// The length in bytes.
    fn len(&self) -> Result<u64>;

    /// Whether it has no bytes at all.
    fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }

    /// The length, if writing cannot change it: a block device. `None`: it grows by being written.
    fn fixed_len(&self) -> Result<Option<u64>> {
        Ok(None)
    }

    /// Fills `buffer` from `offset`. Never short: `ShortRead` if the device ends before.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()>;

    /// Writes all of `buffer` at `offset`; grows the device if needed. Not durable before [`Device::flush`].
    fn write_at(&self, offset: u64, buffer: &[u8]) -> Result<()>;

    /// Makes the range read as zeroes, giving its space back where the storage can. Grows the device if needed.
    fn write_zeroes(&self, offset: u64, length: u64) -> Result<()>;

    /// Sets the length; new bytes read as zeroes.
    fn set_len(&self, length: u64) -> Result<()>;

    /// Reserves space for the range without changing what it reads as; what lies beyond the end reads as zeroes.
    fn allocate(&self, offset: u64, length: u64) -> Result<()>;

    /// Makes everything written before durable. After a failure everything that writes or flushes fails
    /// with `Poisoned`.
    fn flush(&self) -> Result<()>;

    /// The first run at `offset`, at most `length` bytes long, which must not be 0 nor reach beyond the end.
    fn extent(&self, offset: u64, length: u64) -> Result<DeviceExtent>;

    /// The open file under it, if there is one.
    fn as_file(&self) -> Option<&File> {
        None
    }

    /// How it is read and written past the page cache. None: it cannot be, or nobody says how requests must be aligned.
    fn direct(&self) -> Option<&Direct> {
        None
    }

    /// Whether the storage may bring ranges of `source` into this device in that way.
    fn can_offload(&self, _how: Offload, _source: &dyn Device) -> bool {
        false
    }

    /// Has the storage bring the range at `source_offset` to `offset`. Grows the device if needed. Returns how many bytes are in
    /// place: 0 if this range of these two has to be written (the offsets are no multiples of the storage's blocks,
    /// say); some of it may be in place then.
    fn offload(
        &self,
        _how: Offload,
        _offset: u64,
        _source: &dyn Device,
        _source_offset: u64,
        _length: u64,
    ) -> Result<u64> {
        Ok(0)
    }
}
