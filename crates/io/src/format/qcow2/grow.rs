//! A larger disk: more L1 entries, in another place, and the header's new size last.

use super::header::{MAX_L1_BYTES, unsupported};
use super::mapping::Qcow2;
use super::table::SECTOR;
use crate::{Error, ErrorKind, Result};

impl Qcow2 {
    /// Whether the disk can have that size at all.
    pub fn check_growth(&self, size: u64) -> Result<()> {
        if size.div_ceil(self.coverage()) * 8 > MAX_L1_BYTES {
            let message = "the image is too large for its cluster size";
            return Err(Error::new(ErrorKind::InvalidInput, message).with_path(self.device.name()));
        }
        if !self.bitmaps_reach(size)? {
            return Err(unsupported(&*self.device, "growing an image beyond what its bitmaps can record"));
        }
        self.check_poisoned()
    }

    /// Whether the header names a backing file.
    pub fn names_backing(&self) -> bool {
        self.header.backing.is_some()
    }

    /// Guest bytes that L1 has entries for.
    pub fn reach(&self) -> Result<u64> {
        Ok(self.lock()?.l1.len() as u64 * self.coverage())
    }

    /// Gives L1 entries for a disk of that size, elsewhere; the next flush makes the header name the new place.
    pub fn extend_l1(&self, size: u64) -> Result<()> {
        /// Whole sectors of entries: no harm, and the next time may need no move.
        const GRAIN: u64 = SECTOR as u64 / 8;
        let needed = size.div_ceil(self.coverage());
        let mut meta = self.lock()?;
        let meta = &mut *meta;
        if needed <= meta.l1.len() as u64 {
            return Ok(());
        }
        self.prepare(meta)?;
        let entries = needed.next_multiple_of(GRAIN).min(MAX_L1_BYTES / 8);
        let cluster_size = self.cluster_size();
        let clusters_of = |entries: u64| (entries * 8).div_ceil(cluster_size);
        let writer = self.writer(&mut meta.writer)?;
        let start = self.reserve_run(writer, clusters_of(entries))?;
        let (old, old_clusters) = (meta.l1_offset / cluster_size, clusters_of(meta.l1.len() as u64));
        for cluster in old..old + old_clusters {
            writer.metadata.remove(&cluster);
            writer.pending.push(cluster);
        }
        writer.metadata.extend(start..start + clusters_of(entries));
        meta.l1.resize(entries as usize, 0);
        meta.l1_offset = start * cluster_size;
        meta.l1_moved = true;
        Ok(())
    }
}
