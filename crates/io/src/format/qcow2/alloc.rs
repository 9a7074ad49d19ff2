//! Refcounts and the allocation of clusters (section "Host cluster management").
//!
//! Everything here happens in memory; [`super::flush`] brings it to the device in a safe order. A cluster that
//! is given up waits in `pending` until nothing durable refers to it, so that it is never reused too early.

use std::collections::HashSet;
use std::sync::atomic::Ordering;

use super::header::{AUTOCLEAR_BITMAPS, Header, MAX_REFTABLE_BYTES, be64, corrupt, unsupported};
use super::mapping::{COPIED, OFFSET_MASK, Qcow2};
use super::table::{Cache, Sectors, Table};
use crate::{Device, Error, ErrorKind, Result};

/// Reading one refcount block in search of free clusters is paid for by allocating that many.
const SCAN_COST: u64 = 256;
/// Host offsets must stay below 2^56.
const MAX_HOST: u64 = 1 << 56;

/// The refcount side of an image that is open for writing.
#[derive(Debug)]
pub(super) struct Writer {
    /// The refcount table; its length is that of the table in memory, which after growth is not yet on the device.
    pub table: Vec<u64>,
    pub table_offset: u64,
    pub table_dirty: Sectors,
    /// The table was moved to `table_offset`, but the header does not say so yet.
    pub table_moved: bool,
    /// The new place of a moved table reads as zeroes.
    pub table_fresh: bool,
    /// Refcount blocks by their index in the table.
    pub blocks: Cache,
    /// No cluster from here on has a refcount.
    pub high_water: u64,
    /// Clusters from here on have never been written.
    fresh_from: u64,
    /// The first cluster that may be free.
    cursor: u64,
    /// Allocations that may be spent on searching.
    credit: u64,
    /// Clusters whose refcount is to be lowered by one as soon as nothing durable refers to them.
    pub pending: Vec<u64>,
    /// Clusters that hold metadata, never to be handed out or written as data, whatever the refcounts say.
    pub metadata: HashSet<u64>,
    /// Guest clusters that are being allocated: their mapping must not change.
    pub busy: HashSet<u64>,
    /// The autoclear bits have been cleared.
    pub prepared: bool,
}

/// Contiguous clusters that were allocated together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    /// Number of the first.
    pub start: u64,
    pub count: u64,
    /// They read as zeroes on the device.
    pub fresh: bool,
}

impl Writer {
    pub fn open(
        device: &dyn Device,
        header: &Header,
        l1: &[u64],
        length: u64,
        tables: usize,
    ) -> Result<Writer> {
        let refuse = |message| Err(unsupported(device, message));
        if header.version != 3 || header.refcount_bits != 16 {
            return refuse("writing to other than version 3 with 16-bit refcounts");
        }
        if header.dirty || header.corrupt {
            return refuse("writing to an image that is marked dirty or corrupt");
        }
        if header.snapshots > 0 {
            return refuse("writing to an image with internal snapshots");
        }
        if header.bitmaps || header.autoclear & AUTOCLEAR_BITMAPS != 0 {
            return refuse("writing to an image with persistent bitmaps");
        }
        let cluster_size = header.cluster_size();
        let mut bytes = vec![0; (header.reftable_clusters * cluster_size) as usize];
        device.read_at(header.reftable_offset, &mut bytes)?;
        let table: Vec<u64> = bytes.chunks_exact(8).filter_map(|entry| be64(entry, 0)).collect();
        drop(bytes);

        let mut metadata = HashSet::new();
        metadata.insert(0);
        let mut claim = |offset: u64, clusters: u64| {
            let first = offset / cluster_size;
            (first..first + clusters).all(|cluster| metadata.insert(cluster))
        };
        let clash = "two tables share a cluster";
        if !claim(header.reftable_offset, header.reftable_clusters)
            || !claim(header.l1_offset, (header.l1_entries * 8).div_ceil(cluster_size))
        {
            return Err(corrupt(device, clash));
        }
        let inside = |offset: u64| {
            offset.is_multiple_of(cluster_size)
                && offset.checked_add(cluster_size).is_some_and(|e| e <= length)
        };
        for entry in table.iter().copied().filter(|entry| *entry != 0) {
            if entry & !OFFSET_MASK != 0 || !inside(entry) {
                return Err(corrupt(device, "a refcount block is not aligned or lies outside the file"));
            }
            if !claim(entry, 1) {
                return Err(corrupt(device, clash));
            }
        }
        for entry in l1.iter().copied().filter(|entry| *entry != 0) {
            let offset = entry & OFFSET_MASK;
            if entry & !(OFFSET_MASK | COPIED) != 0 || !inside(offset) || offset == 0 {
                return Err(corrupt(device, "an L2 table is not aligned or lies outside the file"));
            }
            if entry & COPIED == 0 {
                return refuse("writing to an image with shared L2 tables");
            }
            if !claim(offset, 1) {
                return Err(corrupt(device, clash));
            }
        }
        let mut writer = Writer {
            table,
            table_offset: header.reftable_offset,
            table_dirty: Sectors::default(),
            table_moved: false,
            table_fresh: false,
            blocks: Cache::new(tables),
            high_water: 0,
            fresh_from: length.div_ceil(cluster_size),
            cursor: 0,
            credit: 4 * SCAN_COST,
            pending: Vec::new(),
            metadata,
            busy: HashSet::new(),
            prepared: header.autoclear == 0,
        };
        writer.find_end(device, header)?;
        Ok(writer)
    }

    /// Looks for the last cluster with a refcount, from the end of the table.
    fn find_end(&mut self, device: &dyn Device, header: &Header) -> Result<()> {
        let cluster_size = header.cluster_size();
        let per_block = cluster_size / 2;
        for (index, entry) in self.table.iter().enumerate().rev().filter(|(_, entry)| **entry != 0) {
            let block = Table::read(device, *entry, cluster_size as usize)?;
            if let Some(last) = (0..per_block as usize).rev().find(|i| block.get16(*i) != 0) {
                self.high_water = index as u64 * per_block + last as u64 + 1;
                break;
            }
        }
        // A header without a refcount: handing out its cluster would be the end of the image.
        if self.metadata.iter().any(|cluster| *cluster >= self.high_water) {
            return Err(corrupt(device, "a table has no refcount"));
        }
        Ok(())
    }
}

impl Qcow2 {
    fn per_block(&self) -> u64 {
        self.cluster_size() / 2
    }

    /// Brings a refcount block into the cache; `false`: there is none.
    fn load_block(&self, writer: &mut Writer, block: u64) -> Result<bool> {
        let offset = writer.table.get(block as usize).copied().unwrap_or(0);
        if offset == 0 {
            return Ok(false);
        }
        if !writer.blocks.contains(block) {
            // Alignment and place were checked at open.
            let table = Table::read(&*self.device, offset, self.cluster_size() as usize)?;
            writer.blocks.insert(block, table);
        }
        Ok(true)
    }

    fn refcount(&self, writer: &mut Writer, cluster: u64) -> Result<u16> {
        let block = cluster / self.per_block();
        if !self.load_block(writer, block)? {
            return Ok(0);
        }
        Ok(writer.blocks.get(block).map_or(0, |table| table.get16((cluster % self.per_block()) as usize)))
    }

    fn set_refcount(&self, writer: &mut Writer, cluster: u64, value: u16) -> Result<()> {
        let block = cluster / self.per_block();
        let at = (cluster % self.per_block()) as usize * 2;
        if !self.load_block(writer, block)? || !writer.blocks.set(block, at, &value.to_be_bytes()) {
            return Err(self.corrupt("a cluster in use has no refcount"));
        }
        Ok(())
    }

    /// Lowers a refcount by one; a cluster that falls to 0 may be handed out again from now on.
    ///
    /// One of 2 stays: the entry that still refers to it, wherever it is, would have to be marked as the only
    /// one. QEMU calls that an error, a refcount that is too high only a leak. It takes an image with shared
    /// clusters but without internal snapshots to get here; QEMU does not make them.
    pub(super) fn lower(&self, writer: &mut Writer, cluster: u64) -> Result<()> {
        let count = self.refcount(writer, cluster)?;
        if count == 0 {
            return Err(self.corrupt("a cluster in use has the refcount 0"));
        }
        if count == 2 {
            return Ok(());
        }
        self.set_refcount(writer, cluster, count - 1)?;
        if count == 1 {
            writer.cursor = writer.cursor.min(cluster);
        }
        Ok(())
    }

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
        let per_block = self.per_block();
        while writer.cursor < writer.high_water {
            let block = writer.cursor / per_block;
            let end = ((block + 1) * per_block).min(writer.high_water);
            if writer.table.get(block as usize).is_none_or(|entry| *entry == 0) {
                writer.cursor = end;
                continue;
            }
            if !writer.blocks.contains(block) {
                if writer.credit < SCAN_COST {
                    return Ok(None);
                }
                writer.credit -= SCAN_COST;
            }
            self.load_block(writer, block)?;
            let Some(table) = writer.blocks.get(block) else { return Ok(None) };
            let is_free = |cluster: &u64| table.get16((cluster % per_block) as usize) == 0;
            let Some(start) = (writer.cursor..end).find(is_free) else {
                writer.cursor = end;
                continue;
            };
            let count = (start..end.min(start.saturating_add(want))).take_while(is_free).count() as u64;
            self.take(writer, start, count)?;
            writer.cursor = start + count;
            return Ok(Some(Extent { start, count, fresh: false }));
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
        writer.blocks.insert(block, Table::new(offset, self.cluster_size() as usize, fresh));
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
