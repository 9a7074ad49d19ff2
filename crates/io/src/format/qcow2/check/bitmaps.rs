//! The bitmaps: their directory, tables and data.

use std::collections::HashSet;

use super::header::{be32, be64};
use super::refcounts::read_table;
use super::source::Source;
use super::{Checker, Part, Readable};
use crate::Result;

/// An entry of the directory without its name.
const ENTRY: usize = 24;
/// Entries of a table, at most.
const MAX_TABLE: u64 = 0x800_0000;
/// Bytes of the bits of one bitmap, at most.
const MAX_BITS: u64 = 512 << 20;
const MAX_NAME: usize = 1023;
const GRANULARITY: std::ops::RangeInclusive<u8> = 9..=31;
pub(super) const IN_USE: u32 = 1;
const FLAGS_RESERVED: u32 = 0xffff_fffc;
const ENTRY_OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const ENTRY_RESERVED: u64 = 0xff00_0000_0000_01fe;
/// Without an offset: all bits are set.
pub(super) const ALL_ONES: u64 = 1;

/// A bitmap of the directory.
#[derive(Debug)]
pub(super) struct Bitmap {
    pub table: u64,
    pub table_entries: u64,
    pub flags: u32,
    /// Where in the file the flags lie.
    pub flags_at: u64,
    pub granularity_bits: u8,
}

impl Checker<'_> {
    /// Counts what the bitmaps refer to.
    pub(super) fn check_bitmaps(&mut self) -> Result<()> {
        let Some(directory) = self.header.bitmaps else { return Ok(()) };
        if Source::reaches(directory.offset, directory.length) {
            self.refer(directory.offset, directory.length, 1, Part::BitmapDirectory);
        }
        let bitmaps = match self.read_directory()? {
            Ok(bitmaps) => bitmaps,
            Err(reason) => {
                self.unreadable(Part::BitmapDirectory, reason, directory.offset);
                return Ok(());
            }
        };
        let mut budget = self.table_budget();
        for bitmap in &bitmaps {
            if bitmap.flags & IN_USE != 0 {
                self.report.bitmaps_in_use += 1;
            }
            let bytes = bitmap.table_entries * 8;
            let inside = self.source.length().saturating_sub(bitmap.table).min(bytes);
            if !Source::reaches(bitmap.table, bytes) || inside > budget {
                let reason = "it lies beyond all offsets, or too many tables overlap";
                self.unreadable(Part::BitmapTable, reason, bitmap.table);
                continue;
            }
            budget -= inside;
            self.check_bitmap(bitmap)?;
        }
        Ok(())
    }

    fn check_bitmap(&mut self, bitmap: &Bitmap) -> Result<()> {
        let cluster_size = self.header.cluster_size();
        self.refer(bitmap.table, bitmap.table_entries * 8, 1, Part::BitmapTable);
        if bitmap.flags & IN_USE == 0 && bitmap.table_entries != self.bitmap_clusters(bitmap) {
            let reason = "it is not as large as the disk needs it";
            self.unreadable(Part::BitmapTable, reason, bitmap.table);
        }
        for entry in read_table(&self.source, bitmap.table, bitmap.table_entries)? {
            let offset = entry & ENTRY_OFFSET;
            let wrong = entry & ENTRY_RESERVED != 0
                || offset != 0 && (entry & ALL_ONES != 0 || !offset.is_multiple_of(cluster_size));
            if wrong {
                let reason = "an entry has bits that it must not have";
                self.unreadable(Part::BitmapTable, reason, bitmap.table);
            } else if offset != 0 {
                self.refer(offset, cluster_size, 1, Part::BitmapData);
            }
        }
        Ok(())
    }

    /// How many clusters the bits of a bitmap of this disk take.
    pub(super) fn bitmap_clusters(&self, bitmap: &Bitmap) -> u64 {
        // QEMU keeps them in words of 64.
        let words = (self.header.size / 512 * 512).div_ceil(64 << bitmap.granularity_bits);
        (words * 8).div_ceil(self.header.cluster_size())
    }

    /// The entries of the directory, or why they cannot be understood.
    pub(super) fn read_directory(&self) -> Result<Readable<Vec<Bitmap>>> {
        let Some(directory) = self.header.bitmaps else { return Ok(Ok(Vec::new())) };
        let cluster_size = self.header.cluster_size();
        if directory.length == 0 {
            return Ok(Err("it is empty"));
        }
        if !Source::reaches(directory.offset, directory.length)
            || directory.offset + directory.length > self.source.length() + cluster_size
        {
            return Ok(Err("it lies beyond the end of the file"));
        }
        let mut bytes = vec![0; directory.length as usize];
        self.source.read(directory.offset, &mut bytes)?;
        let (mut found, mut names) = (Vec::new(), HashSet::new());
        let mut at = 0;
        while at < bytes.len() {
            let Some(entry) = bytes.get(at..at + ENTRY) else {
                return Ok(Err("its last entry is cut short"));
            };
            let bitmap = Bitmap {
                table: be64(entry, 0),
                table_entries: u64::from(be32(entry, 8)),
                flags: be32(entry, 12),
                flags_at: directory.offset + at as u64 + 12,
                granularity_bits: entry[17],
            };
            let name_length = usize::from(u16::from_be_bytes([entry[18], entry[19]]));
            if found.len() as u64 >= u64::from(directory.count) {
                return Ok(Err("it has more entries than the header says"));
            }
            if be32(entry, 20) != 0 {
                return Ok(Err("an entry has extra data"));
            }
            let Some(name) = bytes.get(at + ENTRY..at + ENTRY + name_length) else {
                return Ok(Err("its last entry is cut short"));
            };
            let bits_bytes = bitmap.table_entries * cluster_size;
            let wrong = bitmap.table_entries == 0
                || bitmap.table == 0
                || !bitmap.table.is_multiple_of(cluster_size)
                || bitmap.table_entries > MAX_TABLE
                || !GRANULARITY.contains(&bitmap.granularity_bits)
                || bitmap.flags & FLAGS_RESERVED != 0
                || name_length > MAX_NAME
                || entry[16] != 1
                || bits_bytes > MAX_BITS
                || (bitmap.flags & IN_USE == 0
                    && self.header.size / 512 * 512 > (bits_bytes * 8) << bitmap.granularity_bits);
            if wrong {
                return Ok(Err("an entry is impossible"));
            }
            if !names.insert(name) {
                return Ok(Err("a name is there twice"));
            }
            found.push(bitmap);
            at += (ENTRY + name_length).next_multiple_of(8);
        }
        if at != bytes.len() {
            return Ok(Err("its last entry is cut short"));
        }
        if found.len() as u64 != u64::from(directory.count) {
            return Ok(Err("it has fewer entries than the header says"));
        }
        Ok(Ok(found))
    }
}
