//! Persistent bitmaps while the image is written: what changes is recorded in every enabled one.
//!
//! Before the first change their directory says "in use", which makes them worthless if we are cut off. A flush
//! writes the bits along with everything else and takes the flag away last.

use std::collections::BTreeMap;

use foldhash::HashSet;

use super::bitmaps::{self, ALL_ONES};
use super::header::{AUTOCLEAR_BITMAPS, Header, corrupt, unsupported};
use super::mapping::{Meta, OFFSET_MASK, Qcow2};
use super::refcount::Writer;
use super::table::Sectors;
use crate::{Device, Result, without};

/// So many separate ranges wait that they should be written.
const MAX_TOUCHED: usize = 1 << 16;

/// The bitmaps of an image that are in step, and what the enabled ones lack.
#[derive(Debug)]
pub(super) struct Tracking {
    pub(super) bitmaps: Vec<Tracked>,
    /// Where their directory lies, how long it is, and where the header says so.
    pub(super) directory: u64,
    pub(super) directory_length: u64,
    pub(super) directory_place: u64,
    /// The directory says so, durably.
    in_use: bool,
    /// What was written since the bits were: begins and ends, disjoint and not adjacent.
    touched: BTreeMap<u64, u64>,
}

#[derive(Debug)]
pub(super) struct Tracked {
    /// It records what is written; the others only grow along with the disk.
    enabled: bool,
    /// Where the flags lie in the file, and what they are at rest.
    pub(super) flags_at: u64,
    flags: u32,
    pub(super) granularity: u64,
    pub(super) table_at: u64,
    pub(super) table: Vec<u64>,
    pub(super) table_dirty: Sectors,
}

impl Tracking {
    /// Reads what bitmaps there are, and claims their clusters; `None`: none is in step.
    ///
    /// Without the autoclear bit nobody trusts them or their clusters any more.
    pub fn open(
        device: &dyn Device,
        header: &Header,
        claimed: &mut HashSet<u64>,
    ) -> Result<Option<Tracking>> {
        let Some(extension) = header.bitmaps.filter(|_| header.autoclear & AUTOCLEAR_BITMAPS != 0) else {
            return Ok(None);
        };
        let cluster_size = header.cluster_size();
        let mut claim = |offset: u64, bytes: u64| {
            let first = offset / cluster_size;
            let mut clusters = first..first + bytes.div_ceil(cluster_size);
            if clusters.all(|cluster| claimed.insert(cluster)) {
                Ok(())
            } else {
                Err(corrupt(device, "two tables share a cluster"))
            }
        };
        let mut tracked = Vec::new();
        let entries = bitmaps::read(device, header)?;
        claim(extension.directory, extension.length)?;
        for entry in entries {
            // Claimed before it is read: all of them together are not larger than the file.
            bitmaps::check_table(device, header, &entry)?;
            claim(entry.table, entry.table_entries * 8)?;
            let table = bitmaps::read_table(device, header, &entry)?;
            for place in table.iter().map(|place| place & OFFSET_MASK).filter(|offset| *offset != 0) {
                claim(place, cluster_size)?;
            }
            if entry.in_use {
                continue;
            }
            if entry.bitmap.enabled && !entry.bitmap.consistent {
                return Err(unsupported(device, "writing to an image with a bitmap of an unknown kind"));
            }
            tracked.push(Tracked {
                enabled: entry.bitmap.enabled,
                flags_at: entry.flags_at,
                flags: entry.flags,
                granularity: entry.bitmap.granularity,
                table_at: entry.table,
                table,
                table_dirty: Sectors::default(),
            });
        }
        let tracking = Tracking {
            bitmaps: tracked,
            directory: extension.directory,
            directory_length: extension.length,
            directory_place: extension.place,
            in_use: false,
            touched: BTreeMap::new(),
        };
        Ok((!tracking.bitmaps.is_empty()).then_some(tracking))
    }

    /// Whether some bitmap records what is written.
    pub fn records(&self) -> bool {
        self.bitmaps.iter().any(|bitmap| bitmap.enabled)
    }

    /// Whether so much waits that it should be written.
    pub fn is_crowded(&self) -> bool {
        self.touched.len() >= MAX_TOUCHED
    }

    /// Whether all of them reach to that size of the disk.
    pub(super) fn reaches(&self, size: u64, cluster_size: u64) -> bool {
        self.bitmaps.iter().all(|bitmap| {
            bitmaps::needed_entries(size, cluster_size, bitmap.granularity)
                .is_some_and(|needed| bitmap.table.len() as u64 >= needed)
        })
    }

    fn touch(&mut self, mut start: u64, mut end: u64) {
        if let Some((&before, &until)) = self.touched.range(..=start).next_back()
            && until >= start
        {
            start = before;
            end = end.max(until);
        }
        while let Some((&next, &until)) = self.touched.range(start..=end).next() {
            self.touched.remove(&next);
            end = end.max(until);
        }
        self.touched.insert(start, end);
    }

    /// Writes the flags of the directory and makes them durable.
    pub(super) fn write_flags(&mut self, device: &dyn Device, in_use: bool, all: bool) -> Result<()> {
        for bitmap in self.bitmaps.iter().filter(|bitmap| all || bitmap.enabled) {
            let flags = bitmap.flags | if in_use { bitmaps::IN_USE } else { 0 };
            device.write_at(bitmap.flags_at, &flags.to_be_bytes())?;
        }
        if !without!("qcow2.flush.bitmap-flags") {
            device.flush()?;
        }
        self.in_use = in_use;
        Ok(())
    }

    /// Writes what has changed in their tables; whether there was anything.
    pub fn write_tables(&mut self, device: &dyn Device) -> Result<bool> {
        let mut any = false;
        for bitmap in &mut self.bitmaps {
            for range in bitmap.table_dirty.ranges(bitmap.table.len() * 8) {
                let entries = &bitmap.table[range.start / 8..range.end / 8];
                let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_be_bytes()).collect();
                device.write_at(bitmap.table_at + range.start as u64, &bytes)?;
                any = true;
            }
            bitmap.table_dirty.clear();
        }
        Ok(any)
    }

    /// The bits and the tables are durable: the bitmaps are in step.
    pub fn finish(&mut self, device: &dyn Device) -> Result<()> {
        if self.in_use {
            // Those that do not record may have grown.
            self.write_flags(device, false, true)?;
            self.touched.clear();
        }
        Ok(())
    }
}

impl Qcow2 {
    /// To be called for every range of the disk that is about to change.
    pub(super) fn touch(&self, offset: u64, length: u64) -> Result<()> {
        if !self.tracks || length == 0 {
            return Ok(());
        }
        let mut meta = self.lock()?;
        self.prepare(&mut meta)?;
        let Meta { size, writer: Some(Writer { tracking: Some(tracking), .. }), .. } = &mut *meta else {
            return Ok(());
        };
        if !tracking.in_use && !without!("qcow2.marker.bitmaps") {
            tracking.write_flags(&*self.device, true, false)?;
        }
        // What a disk gains by growing is not marked.
        let end = offset.saturating_add(length).min(*size);
        if offset < end {
            tracking.touch(offset, end);
        }
        Ok(())
    }

    /// Whether the bitmaps, if any, can be long enough for that size of the disk.
    pub(super) fn bitmaps_can_reach(&self, size: u64) -> Result<bool> {
        let meta = self.lock()?;
        let tracking = meta.writer.as_ref().and_then(|writer| writer.tracking.as_ref());
        let can = |bitmap: &Tracked| {
            bitmaps::needed_entries(size, self.cluster_size(), bitmap.granularity).is_some()
        };
        Ok(tracking.is_none_or(|tracking| tracking.bitmaps.iter().all(can)))
    }

    /// Writes the bits of what was touched, into new clusters where there are none; the tables name those later.
    pub(super) fn store_bits(&self, writer: &mut Writer) -> Result<()> {
        let Some(mut tracking) = writer.tracking.take() else { return Ok(()) };
        let mut result = Ok(());
        for bitmap in tracking.bitmaps.iter_mut().filter(|bitmap| bitmap.enabled) {
            for (start, end) in &tracking.touched {
                let bits = start / bitmap.granularity..end.div_ceil(bitmap.granularity);
                result = result.and_then(|()| self.set_bits(writer, bitmap, bits));
            }
        }
        writer.tracking = Some(tracking);
        result
    }

    fn set_bits(
        &self,
        writer: &mut Writer,
        bitmap: &mut Tracked,
        mut bits: std::ops::Range<u64>,
    ) -> Result<()> {
        let cluster_size = self.cluster_size();
        while bits.start < bits.end {
            let (index, first) = (bits.start / (cluster_size * 8), bits.start % (cluster_size * 8));
            let last = (first + (bits.end - bits.start)).min(cluster_size * 8);
            bits.start += last - first;
            let Some(entry) = bitmap.table.get_mut(index as usize) else {
                return Err(self.corrupt("a bitmap's table is too short"));
            };
            if *entry == ALL_ONES {
                continue;
            }
            let (from, to) = (first / 8, last.div_ceil(8));
            let mark = |bytes: &mut [u8], begin: u64| mark(bytes, first - begin * 8..last - begin * 8);
            if *entry == 0 {
                let mut bytes = vec![0; cluster_size as usize];
                mark(&mut bytes, 0);
                let offset = self.reserve_metadata(writer)?.start << self.header.cluster_bits;
                self.device.write_at(offset, &bytes)?;
                *entry = offset;
                bitmap.table_dirty.mark(index as usize * 8);
            } else {
                let mut bytes = vec![0; (to - from) as usize];
                self.device.read_at(*entry + from, &mut bytes)?;
                mark(&mut bytes, from);
                self.device.write_at(*entry + from, &bytes)?;
            }
        }
        Ok(())
    }
}

/// Sets bits, the lowest of each byte first.
fn mark(bytes: &mut [u8], bits: std::ops::Range<u64>) {
    let (first, last) = ((bits.start / 8) as usize, ((bits.end - 1) / 8) as usize);
    let (head, tail) = (0xff << (bits.start % 8), 0xffu8 >> (7 - (bits.end - 1) % 8));
    if first == last {
        bytes[first] |= head & tail;
    } else {
        bytes[first] |= head;
        bytes[first + 1..last].fill(0xff);
        bytes[last] |= tail;
    }
}
