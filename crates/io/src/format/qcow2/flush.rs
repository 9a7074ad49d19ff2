//! Bringing changes to the device so that every moment of it survives a power cut with leaked clusters at worst.

use std::sync::atomic::Ordering;

use super::mapping::{Meta, Qcow2};
use super::table::SECTOR;
use crate::{Error, ErrorKind, Result};

impl Qcow2 {
    /// Fails with `Poisoned` after a failed flush.
    pub(super) fn check_poisoned(&self) -> Result<()> {
        if self.poisoned.load(Ordering::Acquire) {
            return Err(
                Error::new(ErrorKind::Poisoned, "an earlier flush failed").with_path(self.device.name())
            );
        }
        Ok(())
    }

    /// Makes everything durable. The caller keeps all readers and writers of this image out meanwhile: a
    /// cluster that is freed here may be handed out again as soon as they come back.
    pub fn flush(&self) -> Result<()> {
        self.check_poisoned()?;
        let mut meta = self.lock()?;
        let result = self.flush_locked(&mut meta);
        if result.is_err() {
            self.poisoned.store(true, Ordering::Release);
        }
        result
    }

    /// So much waits in memory that it should be flushed before more is added.
    pub fn is_crowded(&self) -> Result<bool> {
        /// A million clusters given up take 8 MiB.
        const MAX_PENDING: usize = 1 << 20;
        let meta = self.lock()?;
        let writer = meta.writer.as_ref();
        Ok(meta.l2.is_crowded()
            || writer.is_some_and(|w| w.blocks.is_crowded() || w.pending.len() >= MAX_PENDING))
    }

    fn flush_locked(&self, meta: &mut Meta) -> Result<()> {
        let device = &*self.device;
        let Meta { l1, l1_dirty, l2, writer: Some(writer) } = meta else { return device.flush() };

        // (a) What nothing refers to yet: data (written already), refcounts, new tables.
        writer.blocks.write(device, |_| true)?;
        if writer.table_moved {
            let bytes: Vec<u8> = writer.table.iter().flat_map(|entry| entry.to_be_bytes()).collect();
            if !writer.table_fresh {
                device.write_zeroes(writer.table_offset, bytes.len() as u64)?;
            }
            for (sector, at) in bytes.chunks(SECTOR).zip((writer.table_offset..).step_by(SECTOR)) {
                if sector.iter().any(|byte| *byte != 0) {
                    device.write_at(at, sector)?;
                }
            }
        }
        l2.write(device, |table| table.new)?;
        // A table whose last sectors were never written must still be read as a whole.
        let end = writer.high_water * self.cluster_size();
        if device.len()? < end {
            device.set_len(end)?;
        }
        device.flush()?;

        // (b) The refcount table refers to blocks, the header to the table.
        if writer.table_moved {
            let (offset, clusters) =
                (writer.table_offset, writer.table.len() as u64 * 8 / self.cluster_size());
            self.rewrite_header(|sector| {
                sector[48..56].copy_from_slice(&offset.to_be_bytes());
                sector[56..60].copy_from_slice(&(clusters as u32).to_be_bytes());
            })?;
            writer.table_moved = false;
            writer.table_dirty.clear();
        } else if !writer.table_dirty.is_clean() {
            self.write_entries(&writer.table, &writer.table_dirty, writer.table_offset)?;
            device.flush()?;
            writer.table_dirty.clear();
        }

        // (c) What makes data and L2 tables reachable, or lets go of them.
        let tables = l2.write(device, |_| true)?;
        if !l1_dirty.is_clean() {
            self.write_entries(l1, l1_dirty, self.header.l1_offset)?;
        }
        if tables > 0 || !l1_dirty.is_clean() {
            device.flush()?;
            l1_dirty.clear();
        }

        // (d) Nothing durable refers to these any more. Lost, this is a leak.
        for cluster in std::mem::take(&mut writer.pending) {
            self.lower(writer, cluster)?;
            if writer.blocks.is_crowded() {
                writer.blocks.write(device, |_| true)?;
            }
        }
        writer.blocks.write(device, |_| true)?;
        Ok(())
    }

    /// Writes the changed sectors of a table that is held whole.
    fn write_entries(&self, table: &[u64], dirty: &super::table::Sectors, offset: u64) -> Result<()> {
        for range in dirty.ranges(table.len() * 8) {
            let bytes: Vec<u8> =
                table[range.start / 8..range.end / 8].iter().flat_map(|entry| entry.to_be_bytes()).collect();
            self.device.write_at(offset + range.start as u64, &bytes)?;
        }
        Ok(())
    }
}
