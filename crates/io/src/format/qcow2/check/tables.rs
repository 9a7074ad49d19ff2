//! L1 and L2 tables.

use super::header::be64;
use super::refcounts::read_table;
use super::source::Source;
use super::{Checker, Part, Problem, Remedy};
use crate::Result;

/// QEMU's limit, 32 MiB.
pub(super) const MAX_L1_ENTRIES: u64 = 4 << 20;
pub(super) const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
pub(super) const COPIED: u64 = 1 << 63;
pub(super) const COMPRESSED: u64 = 1 << 62;
/// Without subclusters: reads as zeroes.
pub(super) const ZERO: u64 = 1;
const L1_RESERVED: u64 = 0x7f00_0000_0000_01ff;
const L2_RESERVED: u64 = 0x3f00_0000_0000_01fe;
/// Subclusters that are allocated.
pub(super) const ALLOCATED: u64 = 0xffff_ffff;
/// Bytes that are read at once, if tables lie side by side.
const BATCH: u64 = 4 << 20;
/// A sound image has no table that is not aligned; so many of them are looked at.
const MAX_UNALIGNED: usize = 1000;

/// An L2 table: how many entries of L1 tables point to it.
#[derive(Clone, Copy, Debug)]
pub(super) struct L2 {
    pub offset: u64,
    /// Entries of the disk's own L1 table.
    pub active: u32,
    /// All.
    all: u64,
    /// It has entries that cannot be right: perhaps it is no table.
    pub doubtful: bool,
}

/// What an entry of an L2 table says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// Nothing, or zeroes without a place.
    Empty,
    /// A cluster at that offset; whether it is known to read as zeroes.
    Cluster(u64, bool),
    /// Compressed data: offset and length.
    Compressed(u64, u64),
}

impl Checker<'_> {
    /// Counts what the disk and the internal snapshots refer to, and the snapshot table.
    pub(super) fn check_snapshots_and_disk(&mut self) -> Result<()> {
        let (l1, entries) = (self.header.l1_offset, self.header.l1_entries);
        let mut found = Vec::new();
        if entries > 0 {
            self.refer(l1, entries * 8, 1, Part::L1);
            self.read_l1(l1, entries, 1, true, &mut found)?;
        }
        let mut budget = self.table_budget();
        for ((l1, entries), times) in self.check_snapshot_table()? {
            let bytes = entries * 8;
            let inside = self.source.length().saturating_sub(l1).min(bytes);
            if !Source::reaches(l1, bytes) || inside > budget {
                let reason = "it lies beyond all offsets, or too many tables overlap";
                self.unreadable(Part::L1, reason, l1);
                continue;
            }
            budget -= inside;
            self.refer(l1, bytes, times, Part::L1);
            self.read_l1(l1, entries, times, false, &mut found)?;
        }
        merge(&mut found);
        self.check_l2s(&mut found)?;
        self.l2s = found;
        Ok(())
    }

    /// So many bytes of tables of one kind are read. Those of a sound image do not overlap, so that all together are no
    /// larger than the file; without a limit a small file could keep us busy for days.
    pub(super) fn table_budget(&self) -> u64 {
        self.source.length().saturating_add(64 << 20)
    }

    /// Gathers the L2 tables of an L1 table that is used `times` times.
    fn read_l1(
        &mut self,
        l1: u64,
        entries: u64,
        times: u64,
        active: bool,
        found: &mut Vec<L2>,
    ) -> Result<()> {
        let mut room = found.len() * 2 + 65536;
        for entry in read_table(&self.source, l1, entries)?.into_iter().filter(|entry| *entry != 0) {
            let offset = entry & OFFSET;
            if entry & L1_RESERVED != 0 {
                self.corruption(times, Remedy::None, Problem::ReservedBits { part: Part::L2, entry }, offset);
            }
            let one = self.refcounts.is_one(offset >> self.header.cluster_bits);
            if active && offset != 0 && one.is_some_and(|one| one != (entry & COPIED != 0)) {
                self.corruption(1, Remedy::Mark, Problem::Copied { part: Part::L2, entry }, offset);
            }
            if found.len() == room {
                merge(found);
                room = found.len() * 2 + 65536;
            }
            found.push(L2 { offset, active: u32::from(active), all: times, doubtful: false });
        }
        Ok(())
    }

    fn check_l2s(&mut self, found: &mut [L2]) -> Result<()> {
        let cluster_size = self.header.cluster_size();
        let mut buffer = Vec::new();
        let mut unaligned = 0;
        let mut rest = found;
        while let Some(first) = rest.first().copied() {
            // Neighbours are read together.
            let mut count = 1;
            while let Some(next) = rest.get(count)
                && next.offset == first.offset + count as u64 * cluster_size
                && (count as u64 + 1) * cluster_size <= BATCH
                && !self.source.is_beyond(next.offset)
            {
                count += 1;
            }
            let beyond = self.source.is_beyond(first.offset);
            if !beyond {
                buffer.resize(count * cluster_size as usize, 0);
                self.source.read(first.offset, &mut buffer)?;
            }
            let (now, later) = rest.split_at_mut(count);
            for (index, l2) in now.iter_mut().enumerate() {
                self.refer(l2.offset, cluster_size, l2.all, Part::L2);
                if !l2.offset.is_multiple_of(cluster_size) {
                    self.corruption(l2.all, Remedy::None, Problem::Unaligned { part: Part::L2 }, l2.offset);
                    unaligned += 1;
                    if unaligned > MAX_UNALIGNED {
                        let reason = "too many tables are not aligned";
                        self.unreadable(Part::L2, reason, l2.offset);
                        continue;
                    }
                }
                // Beyond the end there are no entries.
                if !beyond {
                    let table = &buffer[index * cluster_size as usize..(index + 1) * cluster_size as usize];
                    let hopeless = self.tally.hopeless;
                    self.check_l2(*l2, table);
                    l2.doubtful = self.tally.hopeless > hopeless;
                }
            }
            rest = later;
        }
        Ok(())
    }

    fn check_l2(&mut self, l2: L2, table: &[u8]) {
        let (cluster_size, cluster_bits) = (self.header.cluster_size(), self.header.cluster_bits);
        let (extended, data_file) = (self.header.extended_l2(), self.header.data_file());
        let active = u64::from(l2.active);
        // QEMU does not look at the marks in a table that lies in the header, or has no readable refcount.
        let marks =
            active > 0 && l2.offset != 0 && self.refcounts.is_one(l2.offset >> cluster_bits).is_some();
        let mut expected = 0;
        for bytes in table.chunks_exact(if extended { 16 } else { 8 }) {
            let entry = be64(bytes, 0);
            let bitmap = if extended { be64(bytes, 8) } else { 0 };
            if entry | bitmap == 0 {
                continue;
            }
            let kind = decode(entry, cluster_bits, extended, data_file);
            if entry & COMPRESSED == 0 && entry & L2_RESERVED != 0 {
                let problem = Problem::ReservedBits { part: Part::Data, entry };
                self.corruption(l2.all, Remedy::None, problem, entry & OFFSET);
            }
            match kind {
                Entry::Compressed(offset, length) => {
                    if entry & COPIED != 0 {
                        let problem = Problem::Copied { part: Part::Compressed, entry };
                        self.corruption(l2.all, Remedy::Entry, problem, offset);
                    }
                    if data_file {
                        self.corruption(l2.all, Remedy::None, Problem::CompressedInDataFile, offset);
                        continue;
                    }
                    if bitmap != 0 {
                        self.corruption(l2.all, Remedy::None, Problem::Subclusters { bitmap }, offset);
                        continue;
                    }
                    self.refer(offset, length, l2.all, Part::Compressed);
                    self.report.allocated_clusters += active;
                    self.report.compressed_clusters += active;
                    self.report.fragmented_clusters += active;
                }
                Entry::Cluster(offset, zero) => {
                    if bitmap >> 32 & bitmap != 0 {
                        self.corruption(l2.all, Remedy::None, Problem::Subclusters { bitmap }, offset);
                    }
                    if !offset.is_multiple_of(cluster_size) {
                        let problem = Problem::Unaligned { part: Part::Data };
                        let empty = if extended { bitmap & ALLOCATED == 0 } else { zero };
                        let remedy = if empty { Remedy::Entry } else { Remedy::None };
                        self.corruption(l2.all, remedy, problem, offset);
                    }
                    self.report.allocated_clusters += active;
                    if expected != 0 && offset != expected {
                        self.report.fragmented_clusters += active;
                    }
                    expected = offset + cluster_size;
                    if !data_file {
                        self.refer(offset, cluster_size, l2.all, Part::Data);
                    }
                    let one =
                        if data_file { Some(true) } else { self.refcounts.is_one(offset >> cluster_bits) };
                    if marks && one.is_some_and(|one| one != (entry & COPIED != 0)) {
                        let problem = Problem::Copied { part: Part::Data, entry };
                        self.corruption(active, Remedy::Mark, problem, offset);
                    }
                }
                Entry::Empty => {
                    if bitmap & ALLOCATED != 0 {
                        self.corruption(l2.all, Remedy::None, Problem::Subclusters { bitmap }, l2.offset);
                    }
                }
            }
        }
    }
}

/// What an entry says, reserved bits left out.
pub(super) fn decode(entry: u64, cluster_bits: u32, extended: bool, data_file: bool) -> Entry {
    if entry & COMPRESSED != 0 {
        let shift = 62 - (cluster_bits - 8);
        let offset = entry & ((1 << shift) - 1);
        let sectors = (entry >> shift & ((1 << (cluster_bits - 8)) - 1)) + 1;
        return Entry::Compressed(offset, sectors * 512 - offset % 512);
    }
    let offset = entry & OFFSET;
    let zero = !extended && entry & ZERO != 0;
    if offset != 0 || (data_file && entry & COPIED != 0 && !zero) {
        Entry::Cluster(offset, zero)
    } else {
        Entry::Empty
    }
}

/// Sorts by offset, each table once.
fn merge(found: &mut Vec<L2>) {
    found.sort_unstable_by_key(|l2| l2.offset);
    found.dedup_by(|next, kept| {
        let same = next.offset == kept.offset;
        if same {
            kept.active = kept.active.saturating_add(next.active);
            kept.all = kept.all.saturating_add(next.all);
        }
        same
    });
}
