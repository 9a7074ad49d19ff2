//! Bringing changes to the device so that every moment of it survives a power cut with leaked clusters at worst.

use std::sync::atomic::Ordering;

use super::mapping::{Meta, Qcow2};
use super::refcount::Writer;
use super::table::SECTOR;
use super::tracking::Tracking;
use crate::{Error, ErrorKind, Result, without};

impl Qcow2 {
    /// Fails with `Poisoned` after a failed flush.
    pub(super) fn check_poisoned(&self) -> Result<()> {
        if self.poisoned.load(Ordering::Acquire) && !without!("qcow2.poisoned") {
            return Err(
                Error::new(ErrorKind::Poisoned, "an earlier flush failed").with_path(self.device.name())
            );
        }
        Ok(())
    }

    /// Makes the data that was written durable, while everything else goes on: the flush proper is short then.
    pub fn flush_data(&self) -> Result<()> {
        self.check_poisoned()?;
        if without!("qcow2.flush.much") {
            return Ok(());
        }
        self.device.flush().inspect_err(|_| self.poisoned.store(true, Ordering::Release))
    }

    /// Makes everything durable. The caller keeps all readers and writers of this image out meanwhile: a
    /// cluster that is freed here may be handed out again as soon as they come back.
    pub fn flush(&self) -> Result<()> {
        self.flush_and_grow(0)
    }

    /// The same, and then the header says that the disk has at least that size. The caller has made sure that all
    /// of it is reachable through L1, and that what is new reads as zeroes.
    pub fn flush_and_grow(&self, size: u64) -> Result<()> {
        self.check_poisoned()?;
        let mut meta = self.lock()?;
        if size > meta.size {
            self.prepare(&mut meta)?;
        }
        let result = self.flush_locked(&mut meta, size);
        if result.is_err() && !without!("qcow2.poison") {
            self.poisoned.store(true, Ordering::Release);
        }
        result
    }

    /// So much waits in memory that it should be flushed before more is added.
    pub fn is_crowded(&self) -> Result<bool> {
        /// So many clusters given up take 2 MiB.
        const MAX_PENDING: usize = 1 << 18;
        let meta = self.lock()?;
        let writer = meta.writer.as_ref();
        Ok(meta.l2.is_crowded()
            || writer.is_some_and(|w| {
                w.tracking.as_ref().is_some_and(Tracking::is_crowded)
                    || w.blocks.is_crowded()
                    || w.pending.len() + w.pending_packed.len() >= MAX_PENDING
            }))
    }

    fn flush_locked(&self, meta: &mut Meta, size: u64) -> Result<()> {
        let device = &*self.device;
        let Meta { size: now, l1, l1_offset, l1_moved, l1_dirty, l2, writer: Some(writer) } = meta else {
            return device.flush();
        };

        if without!("qcow2.order.frees") {
            self.release(writer)?;
        }
        if without!("qcow2.order.bitmap-flags")
            && let Some(tracking) = &mut writer.tracking
        {
            tracking.finish(device)?;
        }
        // Bits are data, though a crash makes them worthless.
        self.store_bits(writer)?;
        let directory = if size > *now { self.extend_bitmaps(writer, size)? } else { None };

        // (a) What nothing refers to yet: data (written already), refcounts, new tables.
        if !without!("qcow2.order.refcounts") {
            writer.blocks.write(device)?;
        }
        if writer.table_moved {
            self.write_moved(&writer.table, writer.table_offset, writer.table_fresh)?;
        }
        if *l1_moved {
            // It may lie where something was before.
            self.write_moved(l1, *l1_offset, false)?;
            l1_dirty.clear();
        }
        if !without!("qcow2.order.new-tables") {
            l2.write_new(device)?;
        }
        // A table whose last sectors were never written must still be read as a whole.
        let end = writer.high_water * self.cluster_size();
        if device.len()? < end && !without!("qcow2.length") {
            device.set_len(end)?;
        }
        if !without!("qcow2.flush.new") {
            device.flush()?;
        }

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
            if !without!("qcow2.flush.refcount-table") {
                device.flush()?;
            }
            writer.table_dirty.clear();
        }

        // (c) What makes data and L2 tables reachable, or lets go of them.
        let tables = l2.write(device)?;
        if !l1_dirty.is_clean() {
            self.write_entries(l1, l1_dirty, *l1_offset)?;
        }
        let bits = match &mut writer.tracking {
            Some(tracking) => tracking.write_tables(device)?,
            None => false,
        };
        if tables > 0 || bits || !l1_dirty.is_clean() {
            if !without!("qcow2.flush.tables") {
                device.flush()?;
            }
            l1_dirty.clear();
        }
        // The directory of bitmaps in its new place; until the end of this it says that they are in use.
        if let Some((place, directory)) = directory {
            device.write_at(place, &directory.to_be_bytes())?;
            device.flush()?;
        }
        // A moved L1 is all in place, and so is all that a larger disk shows.
        if *l1_moved || size > *now {
            *now = size.max(*now);
            self.rewrite_header(|sector| {
                sector[24..32].copy_from_slice(&now.to_be_bytes());
                sector[36..40].copy_from_slice(&(l1.len() as u32).to_be_bytes());
                sector[40..48].copy_from_slice(&l1_offset.to_be_bytes());
            })?;
            *l1_moved = false;
        }

        // (c'') All that was touched is marked.
        if let Some(tracking) = &mut writer.tracking {
            tracking.finish(device)?;
        }

        // (d) Nothing durable refers to these any more. Lost, this is a leak.
        self.release(writer)
    }

    /// Clusters that were given up become free.
    fn release(&self, writer: &mut Writer) -> Result<()> {
        let device = &*self.device;
        if !writer.pending_packed.is_empty() && !without!("qcow2.forget-packed") {
            // New data may come to these places.
            self.unpacker.forget();
        }
        let pending = std::mem::take(&mut writer.pending).into_iter().map(|cluster| (cluster, false));
        let packed = std::mem::take(&mut writer.pending_packed).into_iter().map(|cluster| (cluster, true));
        for (cluster, packed) in pending.chain(packed) {
            self.lower(writer, cluster, packed)?;
            if writer.blocks.is_crowded() {
                writer.blocks.write(device)?;
            }
        }
        writer.blocks.write(device)?;
        Ok(())
    }

    /// Writes a table that is held whole to a place that nothing refers to yet; `fresh`: it reads as zeroes.
    pub(super) fn write_moved(&self, table: &[u64], offset: u64, fresh: bool) -> Result<()> {
        let bytes: Vec<u8> = table.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        if !fresh && !without!("qcow2.zero.moved-table") {
            let whole = (bytes.len() as u64).next_multiple_of(self.cluster_size());
            self.device.write_zeroes(offset, whole)?;
        }
        for (sector, at) in bytes.chunks(SECTOR).zip((offset..).step_by(SECTOR)) {
            if sector.iter().any(|byte| *byte != 0) {
                self.device.write_at(at, sector)?;
            }
        }
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
