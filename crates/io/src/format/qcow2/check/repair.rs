//! The repair of what the check finds, step by step, each durable before the next.
//!
//! Whatever a power cut leaves, no cluster has more references beyond its refcount than before, and no entry is marked
//! as the only reference that was not before, unless it is: refcounts are raised first, lowered only when all that
//! refers to anything is known, and marks follow when refcounts are right. The disk reads as before at every moment.

use super::bitmaps::{ALL_ONES, IN_USE};
use super::header::{FEATURES_AT, be64};
use super::refcounts::{Block, read_table, refcount, set_refcount};
use super::tables::{ALLOCATED, COMPRESSED, COPIED, Entry, OFFSET, ZERO, decode};
use super::{Checker, Look, Report};
use crate::{Device, Result};

const SECTOR: usize = 512;

/// How much is repaired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Lost space is given back, and marks of entries are set right, if nothing worse is found.
    Leaks,
    /// All that can be repaired without changing what the disk reads as.
    All,
}

/// Checks an image and repairs it; the report is of what is left, with the numbers of what was repaired.
///
/// Repaired are refcounts, with new tables at the end of the file if need be, marks of entries, entries of preallocated
/// clusters that point nowhere, incomplete entries of internal snapshots, bitmaps in use (which then mark everything)
/// and the marks of a dirty or corrupt image. What cannot be repaired stays as it is, and is reported; refcounts are
/// then not lowered, since what they count may be what is missing. If a table is lost or may be none, nothing is
/// changed: what is taken for tables may be data. Nor are refcounts made anew behind a file of which a part was cut off.
/// Nobody else may use the image meanwhile.
///
/// Errors as of [`check`](super::check()), and those of the device; the image can then be repaired again.
pub fn repair(device: &dyn Device, what: Repair) -> Result<Report> {
    let wrong = |report: &Report| report.corruptions + report.leaks + report.check_errors;
    let (found, mut report) = repair_once(device, what)?;
    let mut before = wrong(&found);
    // What was repaired may have been in the way of something: leaks can go where nothing is hidden any more.
    while what == Repair::All && (1..before).contains(&wrong(&report)) {
        before = wrong(&report);
        report = repair_once(device, what)?.1;
    }
    report.corruptions_fixed = found.corruptions.saturating_sub(report.corruptions);
    report.leaks_fixed = found.leaks.saturating_sub(report.leaks);
    Ok(report)
}

/// What was found, and what is left.
fn repair_once(device: &dyn Device, what: Repair) -> Result<(Report, Report)> {
    let mut before = Checker::run(device, Look::Everything)?;
    let found = before.report.clone();
    if before.tally.doubts > 0 {
        return Ok((found.clone(), found));
    }
    if what == Repair::All {
        if before.tally.blind == 0 && before.complete_bitmaps()? {
            before = Checker::run(device, Look::Everything)?;
        }
        if before.tally.entries > 0 && before.repair_entries()? {
            before = Checker::run(device, Look::Everything)?;
        }
    }
    let tally = before.tally;
    // Of what refers to anything, nothing is hidden.
    let complete = tally.hopeless == 0 && tally.blind == 0 && tally.entries == 0;
    let counts_wrong = before.report.corruptions - tally.marks > 0 || before.report.check_errors > 0;
    let done = match what {
        Repair::All
            if tally.rebuild > 0 || tally.snapshots > 0 || before.report.check_errors > tally.blind =>
        {
            before.rebuild(complete)?
        }
        Repair::All => {
            before.set_refcounts(true, complete)?;
            true
        }
        Repair::Leaks if complete && !counts_wrong => {
            before.set_refcounts(false, true)?;
            true
        }
        Repair::Leaks => false,
    };
    if done {
        let now = Checker::run(device, Look::Everything)?;
        if now.tally.marks > 0 {
            now.repair_marks()?;
        }
    }
    let mut after = Checker::run(device, Look::Everything)?;
    if after.report.corruptions == 0 && after.report.check_errors == 0 {
        after.clear_header_marks()?;
    }
    Ok((found, after.report))
}

impl Checker<'_> {
    /// Sets refcounts to the number of references, each block in its place. A block that shares it with anything else is left
    /// alone: counts are not worth a table or data.
    fn set_refcounts(&self, raise: bool, lower: bool) -> Result<()> {
        let device = self.source.device();
        for (wanted, is_raise) in [(raise, true), (lower, false)] {
            let mut changed = false;
            for (number, _) in self.refcounts.entries.iter().enumerate().filter(|_| wanted) {
                let Block::Present(offset, _) = self.refcounts.block(number as u64) else { continue };
                if !self.is_safe(*offset, self.header.cluster_size()) {
                    continue;
                }
                changed |= self.set_block(number as u64, *offset, is_raise)?;
            }
            if changed {
                device.flush()?;
            }
        }
        Ok(())
    }

    fn set_block(&self, number: u64, offset: u64, is_raise: bool) -> Result<bool> {
        let (per_block, order) = (self.header.per_block(), self.header.refcount_order);
        let mut block = vec![0; self.header.cluster_size() as usize];
        self.source.read(offset, &mut block)?;
        let old = block.clone();
        let first = number * per_block;
        let used = self.clusters.saturating_sub(first).min(per_block);
        for index in 0..used as usize {
            let references = self.references.get(first + index as u64);
            let now = refcount(&block, order, index);
            if (is_raise && now < references) || (!is_raise && now > references) {
                set_refcount(&mut block, order, index, references);
            }
        }
        write_changed(self.source.device(), offset, &old, &block)
    }

    /// Sets or clears the marks of the disk's own tables, which say whether a refcount is 1.
    fn repair_marks(&self) -> Result<()> {
        let data_file = self.header.data_file();
        let bits = self.header.cluster_bits;
        let marked = |entry: u64, one: Option<bool>| match one {
            Some(true) => entry | COPIED,
            Some(false) => entry & !COPIED,
            None => entry,
        };
        let l1 = read_table(&self.source, self.header.l1_offset, self.header.l1_entries)?;
        if self.is_safe(self.header.l1_offset, self.header.l1_entries * 8) {
            let new = l1.iter().map(|entry| match entry & OFFSET {
                0 => *entry,
                offset => marked(*entry, self.refcounts.is_one(offset >> bits)),
            });
            let new: Vec<u64> = new.collect();
            write_changed(self.source.device(), self.header.l1_offset, &bytes_of(&l1), &bytes_of(&new))?;
        }
        self.change_l2s(true, |entry, bitmap| {
            match decode(entry, bits, self.header.extended_l2(), data_file) {
                Entry::Cluster(_, _) if data_file => (entry | COPIED, bitmap),
                Entry::Cluster(offset, _) => (marked(entry, self.refcounts.is_one(offset >> bits)), bitmap),
                _ => (entry, bitmap),
            }
        })?;
        self.source.device().flush()
    }

    /// Takes marks from compressed clusters, and places that are none from clusters without data.
    fn repair_entries(&self) -> Result<bool> {
        let (bits, extended) = (self.header.cluster_bits, self.header.extended_l2());
        let changed = self.change_l2s(false, |entry, bitmap| {
            if entry & COMPRESSED != 0 {
                return (entry & !COPIED, bitmap);
            }
            match decode(entry, bits, extended, self.header.data_file()) {
                Entry::Cluster(offset, _) if offset.is_multiple_of(self.header.cluster_size()) => {
                    (entry, bitmap)
                }
                Entry::Cluster(_, true) => (ZERO, 0),
                Entry::Cluster(_, false) if extended && bitmap & ALLOCATED == 0 => (0, bitmap),
                _ => (entry, bitmap),
            }
        })?;
        if changed {
            self.source.device().flush()?;
        }
        Ok(changed)
    }

    /// Changes entries of L2 tables, of the disk's own only or of all; tables that share their place with anything
    /// else are left alone.
    fn change_l2s(&self, active: bool, change: impl Fn(u64, u64) -> (u64, u64)) -> Result<bool> {
        let cluster_size = self.header.cluster_size();
        let extended = self.header.extended_l2();
        let mut table = vec![0; cluster_size as usize];
        let mut any = false;
        for l2 in self.l2s.iter().filter(|l2| !active || l2.active > 0) {
            if l2.doubtful
                || l2.offset == 0
                || !l2.offset.is_multiple_of(cluster_size)
                || !self.is_safe(l2.offset, cluster_size)
            {
                continue;
            }
            self.source.read(l2.offset, &mut table)?;
            let old = table.clone();
            for bytes in table.chunks_exact_mut(if extended { 16 } else { 8 }) {
                let (entry, bitmap) = (be64(bytes, 0), if extended { be64(bytes, 8) } else { 0 });
                let (new, new_bitmap) = change(entry, bitmap);
                bytes[..8].copy_from_slice(&new.to_be_bytes());
                if extended {
                    bytes[8..].copy_from_slice(&new_bitmap.to_be_bytes());
                }
            }
            any |= write_changed(self.source.device(), l2.offset, &old, &table)?;
        }
        Ok(any)
    }

    /// Whether a table lies within the file and shares its clusters with nothing.
    pub(super) fn is_safe(&self, offset: u64, length: u64) -> bool {
        let bits = self.header.cluster_bits;
        length > 0
            && offset + length <= self.source.length()
            && (offset >> bits..=(offset + length - 1) >> bits).all(|cluster| !self.overlapping.get(cluster))
    }

    /// Lets bitmaps that are in use mark everything: what they are to tell is what may have changed. Those of another
    /// size than the disk needs stay as they are.
    fn complete_bitmaps(&self) -> Result<bool> {
        let device = self.source.device();
        let bitmaps = self.read_directory()?.unwrap_or_default();
        let directory = self.header.bitmaps.map_or((0, 0), |found| (found.offset, found.length));
        let mut changed = false;
        for bitmap in bitmaps.iter().filter(|bitmap| bitmap.flags & IN_USE != 0) {
            let bytes = bitmap.table_entries * 8;
            if bitmap.table_entries != self.bitmap_clusters(bitmap)
                || !self.is_safe(bitmap.table, bytes)
                || !self.is_safe(directory.0, directory.1)
            {
                continue;
            }
            let old = read_table(&self.source, bitmap.table, bitmap.table_entries)?;
            let new = vec![ALL_ONES; old.len()];
            write_changed(device, bitmap.table, &bytes_of(&old), &bytes_of(&new))?;
            device.flush()?;
            device.write_at(bitmap.flags_at, &(bitmap.flags & !IN_USE).to_be_bytes())?;
            device.flush()?;
            changed = true;
        }
        Ok(changed)
    }

    /// The image is whole: the header no longer says otherwise.
    fn clear_header_marks(&mut self) -> Result<()> {
        let features = self.header.features_when_repaired();
        if features != self.header.incompatible {
            self.source.device().write_at(FEATURES_AT, &features.to_be_bytes())?;
            self.source.device().flush()?;
        }
        (self.report.dirty, self.report.marked_corrupt) = (false, false);
        Ok(())
    }
}

/// Refcounts of the image as they can be read; 0 where they cannot.
pub(super) fn old_refcounts(checker: &Checker<'_>, number: u64, block: &mut [u8]) -> Result<()> {
    if let Block::Present(offset, _) = checker.refcounts.block(number) {
        return checker.source.read(*offset, block);
    }
    block.fill(0);
    Ok(())
}

fn bytes_of(table: &[u64]) -> Vec<u8> {
    table.iter().flat_map(|entry| entry.to_be_bytes()).collect()
}

/// Writes the sectors of a table that differ; returns whether there were any.
fn write_changed(device: &dyn Device, offset: u64, old: &[u8], new: &[u8]) -> Result<bool> {
    let mut any = false;
    for (index, (old, new)) in old.chunks(SECTOR).zip(new.chunks(SECTOR)).enumerate() {
        if old != new {
            device.write_at(offset + (index * SECTOR) as u64, new)?;
            any = true;
        }
    }
    Ok(any)
}
