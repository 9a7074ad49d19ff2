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

    /// Has `fill` bring the content of whole clusters, within the range of one slice of an L2 table, to their places: it is given
    /// the place, where the bytes begin in the range, and how many they are, and returns how many it brought. Returns how
    /// many bytes of the range are in place. The caller excludes [`Qcow2::flush`] meanwhile.
    pub fn fill_placed(
        &self,
        offset: u64,
        length: u64,
        fill: &mut dyn FnMut(u64, u64, u64) -> Result<u64>,
    ) -> Result<u64> {
        let mut done = 0;
        while done < length {
            let placed = self.place(offset + done, length - done)?;
            let filled = fill(placed.host, done, placed.length).map(|bytes| bytes == placed.length);
            self.finish_placed(&placed, matches!(filled, Ok(true)))?;
            if !filled? {
                break;
            }
            done += placed.length;
        }
        Ok(done)
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
