//! Refcounts of an image that is open for writing: what is read of them, what must never be handed out.
//!
//! Everything here happens in memory; [`super::flush`] brings it to the device in a safe order. A cluster that
//! is given up waits in `pending` until nothing durable refers to it, so that it is never reused too early.

use foldhash::{HashSet, HashSetExt as _};

use super::alloc::SCAN_COST;
use super::header::{AUTOCLEAR_BITMAPS, Header, corrupt, unsupported};
use super::mapping::{COPIED, OFFSET_MASK, Qcow2};
use super::snapshots;
use super::table::{Cache, Sectors, Slice, read_entries, slice_length};
use super::tracking::Tracking;
use crate::{Device, Result};

/// The refcount side of an image that is open for writing.
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools, reason = "they are independent")]
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
    pub fresh_from: u64,
    /// The first cluster that may be free.
    pub cursor: u64,
    /// Allocations that may be spent on searching.
    pub credit: u64,
    /// Clusters whose refcount is to be lowered by one as soon as nothing durable refers to them.
    pub pending: Vec<u64>,
    /// The same for those that hold compressed data: several references, from entries that are never marked as
    /// the only one.
    pub pending_packed: Vec<u64>,
    /// Where compressed data ends within clusters that have room for more.
    pub packed_ends: Vec<u64>,
    /// There are internal snapshots, which share clusters.
    shared: bool,
    /// Clusters that hold metadata, never to be handed out or written as data, whatever the refcounts say.
    pub metadata: HashSet<u64>,
    /// Guest clusters that are being allocated: their mapping must not change.
    pub busy: HashSet<u64>,
    /// The autoclear bits have been cleared, but for those here, whose features are respected.
    pub prepared: bool,
    pub autoclear: u64,
    /// The bitmaps that record what is written.
    pub tracking: Option<Tracking>,
}

impl Writer {
    pub fn open(
        device: &dyn Device,
        header: &Header,
        l1: &[u64],
        length: u64,
        budget: u64,
    ) -> Result<Writer> {
        let refuse = |message| Err(unsupported(device, message));
        if header.version != 3 {
            return refuse("writing to a version 2 image");
        }
        if header.dirty || header.corrupt {
            return refuse("writing to an image that is marked dirty or corrupt");
        }
        let cluster_size = header.cluster_size();
        let table =
            read_entries(device, header.reftable_offset, header.reftable_clusters * cluster_size / 8)?;

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
        // L2 tables that more than one L1 may refer to.
        let mut shared = HashSet::new();
        for entry in l1.iter().copied().filter(|entry| *entry != 0) {
            let offset = entry & OFFSET_MASK;
            if entry & !(OFFSET_MASK | COPIED) != 0 || !inside(offset) || offset == 0 {
                return Err(corrupt(device, "an L2 table is not aligned or lies outside the file"));
            }
            if !claim(offset, 1) {
                return Err(corrupt(device, clash));
            }
            if entry & COPIED == 0 {
                shared.insert(offset);
            }
        }
        if header.snapshots > 0 {
            let (snapshots, table) = snapshots::read(device, header)?;
            if !claim(header.snapshots_offset, table.div_ceil(cluster_size)) {
                return Err(corrupt(device, clash));
            }
            for snapshot in snapshots {
                // Claimed before it is read: all of them together are not larger than the file.
                let bytes = snapshot.l1_entries * 8;
                let end = snapshot.l1_offset.checked_add(bytes);
                if snapshot.l1_offset == 0 && bytes > 0 || end.is_none_or(|end| end > length) {
                    return Err(corrupt(
                        device,
                        "the L1 table of an internal snapshot lies outside the file",
                    ));
                }
                if !claim(snapshot.l1_offset, bytes.div_ceil(cluster_size)) {
                    return Err(corrupt(device, clash));
                }
                for entry in read_entries(device, snapshot.l1_offset, snapshot.l1_entries)? {
                    let offset = entry & OFFSET_MASK;
                    if offset == 0 {
                        continue;
                    }
                    if !inside(offset) {
                        return Err(corrupt(device, "an L2 table is not aligned or lies outside the file"));
                    }
                    if !shared.contains(&offset) {
                        if !claim(offset, 1) {
                            return Err(corrupt(device, clash));
                        }
                        shared.insert(offset);
                    }
                }
            }
        }
        let tracking = Tracking::open(device, header, &mut metadata)?;
        // What we keep in step, or what needs no keeping, stays.
        let autoclear = if header.bitmaps.is_some() { header.autoclear & AUTOCLEAR_BITMAPS } else { 0 };
        let mut writer = Writer {
            table,
            table_offset: header.reftable_offset,
            table_dirty: Sectors::default(),
            table_moved: false,
            table_fresh: false,
            blocks: Cache::new(budget, cluster_size),
            high_water: 0,
            fresh_from: length.div_ceil(cluster_size),
            cursor: 0,
            credit: 4 * SCAN_COST,
            pending: Vec::new(),
            pending_packed: Vec::new(),
            packed_ends: Vec::new(),
            shared: header.snapshots > 0,
            metadata,
            busy: HashSet::new(),
            prepared: header.autoclear == autoclear,
            autoclear,
            tracking,
        };
        writer.find_end(device, header)?;
        Ok(writer)
    }

    /// Looks for the last cluster with a refcount, from the end of the table.
    fn find_end(&mut self, device: &dyn Device, header: &Header) -> Result<()> {
        let cluster_size = header.cluster_size();
        let per_block = header.per_block();
        for (index, entry) in self.table.iter().enumerate().rev().filter(|(_, entry)| **entry != 0) {
            let mut bytes = vec![0; cluster_size as usize];
            device.read_at(*entry, &mut bytes)?;
            if let Some((at, byte)) = bytes.iter().enumerate().rfind(|(_, byte)| **byte != 0) {
                // Numbers under a byte begin at its low end.
                let bit = at as u64 * 8 + if header.refcount_bits < 8 { u64::from(byte.ilog2()) } else { 0 };
                self.high_water = index as u64 * per_block + bit / u64::from(header.refcount_bits) + 1;
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
    pub(super) fn per_block(&self) -> u64 {
        self.header.per_block()
    }

    /// Refcounts that are cached together.
    pub(super) fn counts_per_slice(&self) -> u64 {
        slice_length(self.cluster_size()) * 8 / u64::from(self.header.refcount_bits)
    }

    /// Part of a refcount block, by its number among all such parts; `None`: there is no block.
    pub(super) fn counts<'a>(&self, writer: &'a mut Writer, slice: u64) -> Result<Option<&'a Slice>> {
        let block = slice / writer.blocks.per_table();
        match writer.table.get(block as usize) {
            None | Some(0) => Ok(None),
            // Alignment and place were checked at open.
            Some(offset) => writer.blocks.load(&*self.device, slice, *offset, 1),
        }
    }

    pub(super) fn refcount(&self, writer: &mut Writer, cluster: u64) -> Result<u64> {
        let (slice, at) = (cluster / self.counts_per_slice(), cluster % self.counts_per_slice());
        let counts = self.counts(writer, slice)?;
        Ok(counts.map_or(0, |counts| counts.get(at as usize, self.header.refcount_bits)))
    }

    pub(super) fn set_refcount(&self, writer: &mut Writer, cluster: u64, value: u64) -> Result<()> {
        let (slice, at) = (cluster / self.counts_per_slice(), cluster % self.counts_per_slice());
        let missing = || self.corrupt("a cluster in use has no refcount");
        self.counts(writer, slice)?.ok_or_else(missing)?;
        let is_set = writer.blocks.set_number(slice, at as usize, self.header.refcount_bits, value);
        if is_set { Ok(()) } else { Err(missing()) }
    }

    /// Lowers a refcount by one; a cluster that falls to 0 may be handed out again from now on.
    ///
    /// Without internal snapshots one of 2 stays: the entry that still refers to it, wherever it is, would have
    /// to be marked as the only one. QEMU calls that an error, a refcount that is too high only a leak. QEMU does
    /// not make such images. With snapshots the reference that is left is a snapshot's, whose entries are not
    /// marked; nor are those of compressed data, `packed`.
    pub(super) fn lower(&self, writer: &mut Writer, cluster: u64, packed: bool) -> Result<()> {
        let count = self.refcount(writer, cluster)?;
        if count == 0 {
            return Err(self.corrupt("a cluster in use has the refcount 0"));
        }
        if count == 2 && !writer.shared && !packed {
            return Ok(());
        }
        self.set_refcount(writer, cluster, count - 1)?;
        if count == 1 {
            writer.cursor = writer.cursor.min(cluster);
            writer.metadata.remove(&cluster);
            writer.packed_ends.retain(|end| end >> self.header.cluster_bits != cluster);
        }
        Ok(())
    }
}
