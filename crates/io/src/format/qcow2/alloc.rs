//! The allocation of clusters (section "Host cluster management").

use std::sync::atomic::Ordering;

use super::header::MAX_REFTABLE_BYTES;
use super::mapping::Qcow2;
use super::refcount::Writer;
use crate::{Error, ErrorKind, Result, without};

/// Reading a part of a refcount block in search of free clusters is paid for by allocating that many.
pub(super) const SCAN_COST: u64 = 256;
/// Host offsets must stay below 2^56.
const MAX_HOST: u64 = 1 << 56;

/// Contiguous clusters that were allocated together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    /// Number of the first.
    pub start: u64,
    pub count: u64,
    /// They read as zeroes on the device.
    pub fresh: bool,
}

impl Qcow2 {
    /// Allocates up to `want` contiguous clusters (at least one) with refcount 1.
    pub(super) fn reserve(&self, writer: &mut Writer, want: u64) -> Result<Extent> {
        if let Some(extent) = self.reserve_freed(writer, want)? {
            return Ok(extent);
        }
        let per_block = self.per_block();
        loop {
            let start = writer.high_water;
            let block = start / per_block;
            self.check_room(start + 1)?;
            if block >= writer.table.len() as u64 {
                self.grow_table(writer)?;
                continue;
            }
            if writer.table.get(block as usize).is_none_or(|entry| *entry == 0) {
                self.create_block(writer, block)?;
                continue;
            }
            let mut count = want.min((block + 1) * per_block - start);
            if self.check_room(start + count).is_err() {
                count = 1;
            }
            self.take(writer, start, count)?;
            writer.high_water = start + count;
            if writer.cursor == start {
                writer.cursor = writer.high_water;
            }
            return Ok(Extent { start, count, fresh: start >= writer.fresh_from });
        }
    }

    /// Fails if the file cannot have that many clusters: found out now, it is an error of one write; found out
    /// by a flush, it would end all writing.
    fn check_room(&self, clusters: u64) -> Result<()> {
        let end = clusters.checked_mul(self.cluster_size()).filter(|end| *end < MAX_HOST);
        let room = self.device.fixed_len()?.unwrap_or(MAX_HOST);
        if end.is_none_or(|end| end > room) {
            return Err(
                Error::new(ErrorKind::NoSpace, "no room for more clusters").with_path(self.device.name())
            );
        }
        Ok(())
    }

    /// One cluster for a table.
    pub(super) fn reserve_metadata(&self, writer: &mut Writer) -> Result<Extent> {
        let extent = self.reserve(writer, 1)?;
        writer.metadata.insert(extent.start);
        Ok(extent)
    }

    /// Looks for free clusters below the high water mark, as far as that is paid for.
    fn reserve_freed(&self, writer: &mut Writer, want: u64) -> Result<Option<Extent>> {
        let (per_slice, bits) = (self.counts_per_slice(), self.header.refcount_bits);
        while writer.cursor < writer.high_water {
            let (slice, block) = (writer.cursor / per_slice, writer.cursor / self.per_block());
            if writer.table.get(block as usize).is_none_or(|entry| *entry == 0) {
                writer.cursor = ((block + 1) * self.per_block()).min(writer.high_water);
                continue;
            }
            let end = ((slice + 1) * per_slice).min(writer.high_water);
            if !writer.blocks.contains(slice) {
                if writer.credit < SCAN_COST {
                    return Ok(None);
                }
                writer.credit -= SCAN_COST;
            }
            let cursor = writer.cursor;
            let Some(counts) = self.counts(writer, slice)? else { return Ok(None) };
            let is_free = |cluster: &u64| counts.get((cluster % per_slice) as usize, bits) == 0;
            let Some(start) = (cursor..end).find(is_free) else {
                writer.cursor = end;
                continue;
            };
            let count = (start..end.min(start.saturating_add(want))).take_while(is_free).count() as u64;
            self.take(writer, start, count)?;
            writer.cursor = start + count;
            let fresh = without!("qcow2.zero.reused");
            return Ok(Some(Extent { start, count, fresh }));
        }
        Ok(None)
    }

    /// Raises refcounts from 0 to 1.
    fn take(&self, writer: &mut Writer, start: u64, count: u64) -> Result<()> {
        for cluster in start..start + count {
            if writer.metadata.contains(&cluster) || self.refcount(writer, cluster)? != 0 {
                return Err(self.corrupt("a table has the refcount 0"));
            }
        }
        for cluster in start..start + count {
            self.set_refcount(writer, cluster, 1)?;
        }
        writer.credit = writer.credit.saturating_add(count).min(1 << 20);
        Ok(())
    }

    /// Makes the refcount block with that number, at the high water mark. Either it describes its own cluster,
    /// or that cluster's block exists already.
    fn create_block(&self, writer: &mut Writer, block: u64) -> Result<()> {
        let cluster = writer.high_water;
        self.check_room(cluster + 1)?;
        let offset = cluster << self.header.cluster_bits;
        let fresh = cluster >= writer.fresh_from;
        if writer.metadata.contains(&cluster) {
            return Err(self.corrupt("a table has the refcount 0"));
        }
        let Some(entry) = writer.table.get_mut(block as usize) else {
            return Err(self.corrupt("the refcount table is too small"));
        };
        *entry = offset;
        writer.table_dirty.mark(block as usize * 8);
        writer.blocks.add(block, offset, fresh);
        writer.metadata.insert(cluster);
        writer.high_water += 1;
        if writer.cursor == cluster {
            writer.cursor += 1;
        }
        self.set_refcount(writer, cluster, 1)
    }

    /// Moves the refcount table to a larger place. The old one stays valid until the header names the new one.
    fn grow_table(&self, writer: &mut Writer) -> Result<()> {
        let length = writer.table.len();
        let result = self.try_grow_table(writer);
        if result.is_err() && writer.table.len() != length {
            // The table in memory no longer fits to its place.
            self.poisoned.store(true, Ordering::Release);
        }
        result
    }

    fn try_grow_table(&self, writer: &mut Writer) -> Result<()> {
        let cluster_size = self.cluster_size();
        let old_clusters = (writer.table.len() as u64 * 8).div_ceil(cluster_size);
        let clusters = (old_clusters + old_clusters / 2 + 1).min(MAX_REFTABLE_BYTES / cluster_size);
        // Room for the table itself and for its blocks.
        let needed = (writer.high_water + 2 * clusters + 2) / self.per_block() + 1;
        if clusters <= old_clusters || needed > clusters * (cluster_size / 8) {
            return Err(Error::new(ErrorKind::NoSpace, "the refcount table cannot grow any further")
                .with_path(self.device.name()));
        }
        self.check_room(writer.high_water + clusters + clusters / self.per_block() + 2)?;
        writer.table.resize((clusters * cluster_size / 8) as usize, 0);
        let start = self.reserve_contiguous(writer, clusters)?;
        let old = writer.table_offset / cluster_size;
        for cluster in old..old + old_clusters {
            writer.metadata.remove(&cluster);
            writer.pending.push(cluster);
        }
        writer.metadata.extend(start..start + clusters);
        writer.table_offset = start * cluster_size;
        writer.table_moved = true;
        writer.table_fresh = start >= writer.fresh_from;
        Ok(())
    }

    /// Allocates that many contiguous clusters at the high water mark; returns the first.
    pub(super) fn reserve_run(&self, writer: &mut Writer, count: u64) -> Result<u64> {
        // The blocks for the run lie before it, and one more may be needed for the blocks themselves.
        let most = |writer: &Writer| {
            (writer.high_water + count + count / self.per_block() + 3) / self.per_block() + 1
        };
        while most(writer) > writer.table.len() as u64 {
            self.check_room(writer.high_water + count)?;
            self.grow_table(writer)?;
        }
        self.reserve_contiguous(writer, count)
    }

    fn reserve_contiguous(&self, writer: &mut Writer, count: u64) -> Result<u64> {
        let per_block = self.per_block();
        // Each round without success makes one block, and they are few.
        'again: loop {
            let start = writer.high_water;
            for block in start / per_block..=(start + count - 1) / per_block {
                if writer.table.get(block as usize).is_none_or(|entry| *entry == 0) {
                    self.create_block(writer, block)?;
                    continue 'again;
                }
            }
            self.check_room(start + count)?;
            self.take(writer, start, count)?;
            writer.high_water = start + count;
            if writer.cursor == start {
                writer.cursor = writer.high_water;
            }
            return Ok(start);
        }
    }
}
