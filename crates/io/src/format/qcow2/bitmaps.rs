//! Persistent dirty bitmaps (section "Bitmaps"): listed and read.

use super::header::{AUTOCLEAR_BITMAPS, Extension, Header, be32, be64, corrupt, unsupported};
use super::mapping::OFFSET_MASK;
use super::table::read_entries;
use crate::{Device, Error, ErrorKind, Result};

/// QEMU's limits: number, directory, name, granularity.
const MAX_BITMAPS: u32 = 65535;
const MAX_DIRECTORY: u64 = 1024 * MAX_BITMAPS as u64;
const MAX_NAME: u64 = 1023;
const GRANULARITY: std::ops::RangeInclusive<u32> = 9..=31;
/// Entries of one bitmap's table, so that it takes no more than 32 MiB.
const MAX_TABLE: u64 = 1 << 22;
/// QEMU's limit for the bits of one bitmap.
const MAX_BITS: u64 = 512 << 20;
/// Bit 0 of a table entry without an offset: all ones.
pub(super) const ALL_ONES: u64 = 1;

pub(super) const IN_USE: u32 = 1;
const AUTO: u32 = 2;
const EXTRA_COMPATIBLE: u32 = 4;

/// A persistent bitmap inside an image: which parts of the disk were written.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Bitmap {
    /// Unique in the image.
    pub name: String,
    /// Bytes of the disk for each bit.
    pub granularity: u64,
    /// Whoever writes to the image must record it.
    pub enabled: bool,
    /// It is in step with the data. If not, it can only be removed.
    pub consistent: bool,
}

/// An entry of the directory.
pub(super) struct Entry {
    pub bitmap: Bitmap,
    /// Whoever wrote to the image last did not finish.
    pub in_use: bool,
    /// Where the flags lie in the file, and what they are.
    pub flags_at: u64,
    pub flags: u32,
    pub table: u64,
    pub table_entries: u64,
}

/// The persistent bitmaps of an image; reads nothing but the header and their directory.
pub fn bitmaps(device: &dyn Device) -> Result<Vec<Bitmap>> {
    let header = Header::read(device)?;
    Ok(read(device, &header)?.into_iter().map(|entry| entry.bitmap).collect())
}

/// Calls `visit` with offset and length of what a bitmap marks, in order, adjacent ranges merged, none beyond the
/// end of the disk; an error of it ends the call.
///
/// `NotFound`: there is no such bitmap. `Corrupt`: it is not in step with the data, or its tables contradict the
/// specification.
pub fn visit_bitmap(
    device: &dyn Device,
    name: &str,
    visit: &mut dyn FnMut(u64, u64) -> Result<()>,
) -> Result<()> {
    let header = Header::read(device)?;
    let Some(entry) = read(device, &header)?.into_iter().find(|entry| entry.bitmap.name == name) else {
        return Err(Error::new(ErrorKind::NotFound, format!("no bitmap {name:?}")).with_path(device.name()));
    };
    if !entry.bitmap.consistent {
        return Err(corrupt(device, format!("bitmap {name:?} is not in step with the data")));
    }
    let cluster_size = header.cluster_size();
    let mut ranges = Ranges { visit, size: header.size, found: None };
    let per_cluster = cluster_size * 8 * entry.bitmap.granularity;
    let mut bytes = vec![0; cluster_size as usize];
    for (index, place) in read_table(device, &header, &entry)?.into_iter().enumerate() {
        // Entries beyond the end of the disk mean nothing.
        let start = (index as u64).saturating_mul(per_cluster);
        if start >= header.size {
            break;
        }
        let offset = place & OFFSET_MASK;
        if offset == 0 {
            if place & ALL_ONES != 0 {
                ranges.add(start, per_cluster)?;
            }
            continue;
        }
        device.read_at(offset, &mut bytes)?;
        for (at, byte) in bytes.iter().enumerate().filter(|(_, byte)| **byte != 0) {
            for bit in (0..8).filter(|bit| byte >> bit & 1 == 1) {
                let number = at as u64 * 8 + bit;
                ranges.add(start + number * entry.bitmap.granularity, entry.bitmap.granularity)?;
            }
        }
    }
    ranges.finish()
}

/// Merges and clips what is found.
struct Ranges<'a> {
    visit: &'a mut dyn FnMut(u64, u64) -> Result<()>,
    size: u64,
    found: Option<(u64, u64)>,
}

impl Ranges<'_> {
    fn add(&mut self, offset: u64, length: u64) -> Result<()> {
        let length = length.min(self.size.saturating_sub(offset));
        if length == 0 {
            return Ok(());
        }
        match &mut self.found {
            Some((start, so_far)) if *start + *so_far == offset => *so_far += length,
            _ => {
                self.finish()?;
                self.found = Some((offset, length));
            }
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        match self.found.take() {
            Some((offset, length)) => (self.visit)(offset, length),
            None => Ok(()),
        }
    }
}

/// Entries that a bitmap's table must have; `None`: more than it may.
pub(super) fn needed_entries(size: u64, cluster_size: u64, granularity: u64) -> Option<u64> {
    // No overflow: 2 MiB, 8 bits, 2 GiB.
    let needed = size.div_ceil(cluster_size * 8 * granularity);
    (needed <= MAX_TABLE && needed * cluster_size <= MAX_BITS).then_some(needed)
}

/// The directory, validated.
pub(super) fn read(device: &dyn Device, header: &Header) -> Result<Vec<Entry>> {
    let Some(Extension { count, directory, length, .. }) = header.bitmaps else { return Ok(Vec::new()) };
    let bad = |message: &'static str| corrupt(device, message).with_range(directory, length);
    if count > MAX_BITMAPS || length > MAX_DIRECTORY {
        return Err(unsupported(device, "too many bitmaps"));
    }
    let end = directory.checked_add(length);
    if !directory.is_multiple_of(header.cluster_size())
        || end.is_none_or(|e| device.len().is_ok_and(|l| e > l))
    {
        return Err(bad("the bitmap directory lies outside the file or is not aligned"));
    }
    let mut bytes = vec![0; length as usize];
    device.read_at(directory, &mut bytes)?;
    let mut entries: Vec<Entry> = Vec::new();
    let mut rest = bytes.as_slice();
    for _ in 0..count {
        let at = directory + (bytes.len() - rest.len()) as u64;
        let fixed = rest.get(..24).ok_or_else(|| bad("the bitmap directory is too short"))?;
        let word = |at: usize| be32(fixed, at).unwrap_or(0);
        let (flags, kind, bits) = (word(12), fixed[16], u32::from(fixed[17]));
        let (name_length, extra) = (u64::from(word(16) & 0xffff), u64::from(word(20)));
        let whole = (24 + extra + name_length).next_multiple_of(8) as usize;
        let entry = rest.get(..whole).ok_or_else(|| bad("the bitmap directory is too short"))?;
        rest = &rest[whole..];
        if kind != 1
            || flags & !(IN_USE | AUTO | EXTRA_COMPATIBLE) != 0
            || !(1..=MAX_NAME).contains(&name_length)
        {
            return Err(bad("an impossible entry in the bitmap directory"));
        }
        if !GRANULARITY.contains(&bits) {
            return Err(unsupported(device, "a bitmap whose granularity is under 512 bytes or over 2 GiB"));
        }
        let name = &entry[24 + extra as usize..][..name_length as usize];
        let name = String::from_utf8_lossy(name).into_owned();
        let extra_counts = extra > 0 && flags & EXTRA_COMPATIBLE == 0;
        let consistent = header.autoclear & AUTOCLEAR_BITMAPS != 0 && flags & IN_USE == 0 && !extra_counts;
        entries.push(Entry {
            bitmap: Bitmap { name, granularity: 1 << bits, enabled: flags & AUTO != 0, consistent },
            in_use: flags & IN_USE != 0,
            flags_at: at + 12,
            flags,
            table: be64(fixed, 0).unwrap_or(0),
            table_entries: u64::from(word(8)),
        });
    }
    if rest.is_empty() { Ok(entries) } else { Err(bad("the bitmap directory is too long")) }
}

/// Whether a bitmap's table lies in the file and, unless it is not in step anyway, covers the disk.
pub(super) fn check_table(device: &dyn Device, header: &Header, entry: &Entry) -> Result<()> {
    let (cluster_size, length) = (header.cluster_size(), device.len()?);
    let bad = |message: &'static str| {
        Err(corrupt(device, message).with_range(entry.table, entry.table_entries * 8))
    };
    if entry.table_entries > MAX_TABLE {
        return Err(unsupported(device, "a bitmap's table over 32 MiB"));
    }
    // No overflow: 2 MiB, 8 bits, 2 GiB.
    let per_cluster = cluster_size * 8 * entry.bitmap.granularity;
    if entry.table_entries < header.size.div_ceil(per_cluster) && !entry.in_use {
        return bad("a bitmap's table is too short");
    }
    let end = entry.table.checked_add(entry.table_entries * 8);
    if entry.table == 0 || !entry.table.is_multiple_of(cluster_size) || end.is_none_or(|end| end > length) {
        return bad("a bitmap's table lies outside the file or is not aligned");
    }
    Ok(())
}

/// One bitmap's table: where its bits lie, each cluster checked.
pub(super) fn read_table(device: &dyn Device, header: &Header, entry: &Entry) -> Result<Vec<u64>> {
    check_table(device, header, entry)?;
    let (cluster_size, length) = (header.cluster_size(), device.len()?);
    let table = read_entries(device, entry.table, entry.table_entries)?;
    for place in &table {
        let offset = place & OFFSET_MASK;
        let impossible = place & !(OFFSET_MASK | ALL_ONES) != 0 || offset != 0 && place & ALL_ONES != 0;
        let inside = offset.is_multiple_of(cluster_size)
            && offset.checked_add(cluster_size).is_some_and(|end| end <= length);
        if impossible || !inside {
            return Err(corrupt(device, "bits of a bitmap lie outside the file or are not aligned")
                .with_range(entry.table, entry.table_entries * 8));
        }
    }
    Ok(table)
}
