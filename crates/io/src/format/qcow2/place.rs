//! Writing whole clusters from outside: where they go, and when they are there, the map.

use super::mapping::Qcow2;
use super::write::{Allocated, Step};
use crate::{Error, ErrorKind, Result};

/// Where whole clusters are to be written.
#[derive(Debug)]
pub struct Placed {
    host: u64,
    length: u64,
    /// None: they are in the map already.
    allocated: Option<Allocated>,
}

impl Placed {
    /// Offset on the device.
    pub fn host(&self) -> u64 {
        self.host
    }

    /// Bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Whether the clusters were not in the map before.
    pub fn is_new(&self) -> bool {
        self.allocated.is_some()
    }
}

impl Qcow2 {
    /// A place for the first of these whole clusters, within the range of one slice of an L2 table: to be written, and then
    /// given to [`Qcow2::finish_placed`]. The caller excludes [`Qcow2::flush`] meanwhile.
    pub fn place(&self, offset: u64, length: u64) -> Result<Placed> {
        self.touch(offset, length)?;
        let first = offset >> self.header.cluster_bits;
        Ok(match self.decide(first, 0, length)? {
            Step::InPlace { host, length } => Placed { host, length, allocated: None },
            Step::Allocate { extent, old, owned } => Placed {
                host: extent.start << self.header.cluster_bits,
                length: extent.count * self.cluster_size(),
                allocated: Some(Allocated { first, extent, old, owned }),
            },
        })
    }

    /// The clusters are written, or it failed.
    pub fn finish_placed(&self, placed: &Placed, written: bool) -> Result<()> {
        let Some(&Allocated { first, extent, old, owned }) = placed.allocated.as_ref() else { return Ok(()) };
        let failed = || Error::new(ErrorKind::Io, "not written");
        match self.finish(first, extent, old, owned, if written { Ok(()) } else { Err(failed()) }) {
            Err(_) if !written => Ok(()),
            result => result,
        }
    }

    /// Makes the file end where what was allocated ends, but not before `least`.
    pub fn trim(&self, least: u64) -> Result<()> {
        let meta = self.lock()?;
        let Some(writer) = &meta.writer else { return Ok(()) };
        let end = (writer.high_water * self.cluster_size()).max(least);
        if self.device.fixed_len()?.is_none() && self.device.len()? > end {
            self.device.set_len(end)?;
        }
        Ok(())
    }
}
