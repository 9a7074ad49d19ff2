//! An image open for I/O in this process.

use crate::types::Extent;
use crate::{Error, ErrorKind, Result};

/// An image open for I/O. Usable from many threads; cheap to clone; closed when [`Image::close`] is called or the
/// last clone is dropped.
#[derive(Clone, Debug)]
pub struct Image;

#[allow(unused_variables, clippy::unused_self)]
impl Image {
    /// Virtual size in bytes.
    pub fn size(&self) -> Result<u64> {
        Err(Error::new(ErrorKind::UnsupportedOperation, "stub"))
    }
    /// Fills the buffer. Never short; outside: `InvalidParameter`.
    pub fn read(&self, offset: i64, buffer: &mut [u8]) -> Result<()> {
        Err(Error::new(ErrorKind::UnsupportedOperation, "stub"))
    }
    /// Writes all of it. Durable after [`Image::flush`].
    pub fn write(&self, offset: i64, data: &[u8]) -> Result<()> {
        Err(Error::new(ErrorKind::UnsupportedOperation, "stub"))
    }
    /// The range reads as zeroes after.
    pub fn write_zeroes(&self, offset: i64, length: i64) -> Result<()> {
        Err(Error::new(ErrorKind::UnsupportedOperation, "stub"))
    }
    /// The range reads as zeroes after; its space is given back where possible.
    pub fn discard(&self, offset: i64, length: i64) -> Result<()> {
        Err(Error::new(ErrorKind::UnsupportedOperation, "stub"))
    }
    /// Everything written before is durable after.
    pub fn flush(&self) -> Result<()> {
        Err(Error::new(ErrorKind::UnsupportedOperation, "stub"))
    }
    /// At most `max` extents from `offset` on; none at the end. Adjacent runs of one kind are merged.
    pub fn extents(&self, offset: i64, max: usize) -> Result<Vec<Extent>> {
        Err(Error::new(ErrorKind::UnsupportedOperation, "stub"))
    }
    /// Flushes, releases the lease. Idempotent; other calls then fail with `Closed`.
    pub fn close(&self) -> Result<()> {
        Err(Error::new(ErrorKind::UnsupportedOperation, "stub"))
    }
}
