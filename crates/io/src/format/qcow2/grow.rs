//! A larger disk: more L1 entries and longer tables of bitmaps, in other places, and the header's new size last.

use super::bitmaps;
use super::header::{MAX_L1_BYTES, unsupported};
use super::mapping::Qcow2;
use super::refcount::Writer;
use super::table::SECTOR;
use super::tracking::Tracking;
use crate::{Error, ErrorKind, Result};

impl Qcow2 {
    /// Whether the disk can have that size at all.
    pub fn check_growth(&self, size: u64) -> Result<()> {
        if size.div_ceil(self.coverage()) * 8 > MAX_L1_BYTES {
            let message = "the image is too large for its cluster size";
            return Err(Error::new(ErrorKind::InvalidInput, message).with_path(self.device.name()));
        }
        if !self.bitmaps_can_reach(size)? {
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
        let writer = self.writer(&mut meta.writer)?;
        meta.l1_offset = self.relocate(writer, meta.l1_offset, meta.l1.len() as u64 * 8, entries * 8)?;
        meta.l1.resize(entries as usize, 0);
        meta.l1_moved = true;
        Ok(())
    }

    /// Moves clusters with tables: those at `old`, so many bytes, are given up. Returns where there is room for `new`.
    fn relocate(&self, writer: &mut Writer, old: u64, old_bytes: u64, new_bytes: u64) -> Result<u64> {
        let cluster_size = self.cluster_size();
        let clusters = new_bytes.div_ceil(cluster_size);
        let start = self.reserve_run(writer, clusters)?;
        let first = old / cluster_size;
        for cluster in first..first + old_bytes.div_ceil(cluster_size) {
            writer.metadata.remove(&cluster);
            writer.pending.push(cluster);
        }
        writer.metadata.extend(start..start + clusters);
        Ok(start * cluster_size)
    }

    /// Gives bitmaps that are too short for a disk of that size longer tables, and the directory that names them another
    /// place, which the header does not name yet. Returns where it names it, and what it is to say.
    pub(super) fn extend_bitmaps(&self, writer: &mut Writer, size: u64) -> Result<Option<(u64, u64)>> {
        let cluster_size = self.cluster_size();
        let Some(mut tracking) = writer.tracking.take_if(|tracking| !tracking.reaches(size, cluster_size))
        else {
            return Ok(None);
        };
        let result = self.move_bitmaps(writer, &mut tracking, size);
        let place = (tracking.directory_place, tracking.directory);
        writer.tracking = Some(tracking);
        result.map(|()| Some(place))
    }

    fn move_bitmaps(&self, writer: &mut Writer, tracking: &mut Tracking, size: u64) -> Result<()> {
        let device = &*self.device;
        let cluster_size = self.cluster_size();
        // Until all is done nobody may believe them, neither the old tables nor the new.
        tracking.write_flags(device, true, true)?;
        let (old, length) = (tracking.directory, tracking.directory_length);
        let mut directory = vec![0; length as usize];
        device.read_at(old, &mut directory)?;
        for bitmap in &mut tracking.bitmaps {
            let needed = bitmaps::needed_entries(size, cluster_size, bitmap.granularity)
                .ok_or_else(|| unsupported(device, "growing an image beyond what its bitmaps can record"))?;
            let had = bitmap.table.len() as u64;
            if had >= needed {
                continue;
            }
            bitmap.table_at = self.relocate(writer, bitmap.table_at, had * 8, needed * 8)?;
            bitmap.table.resize(needed as usize, 0);
            bitmap.table_dirty.clear();
            self.write_moved(&bitmap.table, bitmap.table_at, false)?;
            let entry = (bitmap.flags_at - old) as usize - 12;
            directory[entry..entry + 8].copy_from_slice(&bitmap.table_at.to_be_bytes());
            directory[entry + 8..entry + 12].copy_from_slice(&(needed as u32).to_be_bytes());
        }
        tracking.directory = self.relocate(writer, old, length, length)?;
        for bitmap in &mut tracking.bitmaps {
            bitmap.flags_at = bitmap.flags_at - old + tracking.directory;
        }
        directory.resize((length.next_multiple_of(cluster_size)) as usize, 0);
        device.write_at(tracking.directory, &directory)
    }
}
