//! Tables of big-endian numbers, one cluster each, of which a bounded cache holds slices that know which of their sectors
//! changed.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use foldhash::{HashMap, HashMapExt as _};

use crate::{Device, Result, without};

pub(super) const SECTOR: usize = 512;
/// Of larger tables only a part of that size is read and kept: 128 MiB of the disk with clusters of 64 KiB, 4 GiB with
/// 2 MiB. Small enough to keep many places of a large disk in mind, large enough to be worth a request.
const SLICE: usize = 16 << 10;
/// A cache has room for that many, however small its budget.
const MIN_SLICES: usize = 8;

/// Bytes of a table that are cached together, for tables of that length.
pub(super) fn slice_length(table: u64) -> u64 {
    table.min(SLICE as u64)
}

/// So many big-endian 64-bit numbers from that offset on, read piece by piece.
pub(super) fn read_entries(device: &dyn Device, mut offset: u64, count: u64) -> Result<Vec<u64>> {
    let mut entries = Vec::with_capacity(count as usize);
    let mut bytes = vec![0; (count as usize * 8).min(1 << 20)];
    while (entries.len() as u64) < count {
        let length = bytes.len().min((count as usize - entries.len()) * 8);
        device.read_at(offset, &mut bytes[..length])?;
        entries.extend(bytes[..length].chunks_exact(8).filter_map(|entry| super::header::be64(entry, 0)));
        offset += length as u64;
    }
    Ok(entries)
}

/// The set of changed 512-byte sectors of one table.
#[derive(Clone, Debug, Default)]
pub(super) struct Sectors(Vec<u64>);

impl Sectors {
    pub fn mark(&mut self, byte: usize) {
        let sector = byte / SECTOR;
        if self.0.len() <= sector / 64 {
            self.0.resize(sector / 64 + 1, 0);
        }
        self.0[sector / 64] |= 1 << (sector % 64);
    }

    pub fn is_clean(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    fn contains(&self, sector: usize) -> bool {
        self.0.get(sector / 64).is_some_and(|word| word >> (sector % 64) & 1 == 1)
    }

    /// The changed byte ranges of a table of `length` bytes, adjacent sectors together.
    pub fn ranges(&self, length: usize) -> impl Iterator<Item = Range<usize>> + '_ {
        let sectors = length.div_ceil(SECTOR);
        let mut next = 0;
        std::iter::from_fn(move || {
            while next < sectors && !self.contains(next) {
                next += 1;
            }
            let first = next;
            while next < sectors && self.contains(next) {
                next += 1;
            }
            (first < next).then(|| first * SECTOR..(next * SECTOR).min(length))
        })
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }
}

/// A part of a table.
#[derive(Debug, Default)]
pub(super) struct Slice {
    /// Where it lies in the file.
    offset: u64,
    /// Its bytes as they are to be.
    bytes: Vec<u8>,
    /// What differs from the file.
    dirty: Sectors,
    /// Looked at since the clock's hand passed.
    used: bool,
}

impl Slice {
    /// The 64-bit entry; indexes come from offsets within the slice, so that one outside reads as 0.
    pub fn get64(&self, index: usize) -> u64 {
        super::header::be64(&self.bytes, index * 8).unwrap_or(0)
    }

    /// The entry of a table of `bits` (1 to 64) wide numbers; those under a byte begin at its low end.
    pub fn get(&self, index: usize, bits: u32) -> u64 {
        if bits < 8 {
            let at = index * bits as usize;
            let byte = self.bytes.get(at / 8).copied().unwrap_or(0);
            return u64::from(byte >> (at % 8)) & ((1 << bits) - 1);
        }
        let width = bits as usize / 8;
        let bytes = self.bytes.get(index * width..(index + 1) * width).unwrap_or_default();
        bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    /// Makes such an entry that value.
    fn set_number(&mut self, index: usize, bits: u32, value: u64) {
        if bits < 8 {
            let at = index * bits as usize;
            let mask = (1u8 << bits) - 1;
            let byte = self.bytes.get(at / 8).copied().unwrap_or(0);
            return self.set(at / 8, &[byte & !(mask << (at % 8)) | (value as u8 & mask) << (at % 8)]);
        }
        let width = bits as usize / 8;
        self.set(index * width, &value.to_be_bytes()[8 - width..]);
    }

    fn set(&mut self, at: usize, value: &[u8]) {
        self.bytes[at..at + value.len()].copy_from_slice(value);
        for sector in (at - at % SECTOR..at + value.len()).step_by(SECTOR) {
            self.dirty.mark(sector);
        }
    }

    /// Writes what changed; it is clean afterwards.
    fn write(&mut self, device: &dyn Device) -> Result<()> {
        for range in self.dirty.ranges(self.bytes.len()) {
            device.write_at(self.offset + range.start as u64, &self.bytes[range])?;
        }
        self.dirty.clear();
        Ok(())
    }
}

/// A table that nothing on the device refers to yet. What is not in the cache of it is zeroes.
#[derive(Debug)]
struct New {
    offset: u64,
    /// Its cluster reads as zeroes on the device.
    fresh: bool,
}

/// Slices of tables by number, within a budget; changed ones stay until they are written. The slices of the first table
/// come first, then those of the second.
#[derive(Debug)]
pub(super) struct Cache {
    slices: HashMap<u64, Slice>,
    /// The clock: numbers in the order in which they will be looked at for eviction.
    clock: VecDeque<u64>,
    /// How many slices may stay.
    budget: usize,
    /// How many differ from the file.
    dirty: usize,
    /// Tables that are not on the device yet, by their number.
    new: BTreeMap<u64, New>,
    /// Bytes of a table, and of a slice.
    table_length: u64,
    slice_length: u64,
}

impl Cache {
    /// For tables of that length; `budget` in bytes.
    pub fn new(budget: u64, table_length: u64) -> Cache {
        let slice_length = slice_length(table_length);
        Cache {
            slices: HashMap::new(),
            clock: VecDeque::new(),
            budget: ((budget / slice_length) as usize).max(MIN_SLICES),
            dirty: 0,
            new: BTreeMap::new(),
            table_length,
            slice_length,
        }
    }

    /// Slices in a table.
    pub fn per_table(&self) -> u64 {
        self.table_length / self.slice_length
    }

    pub fn contains(&self, number: u64) -> bool {
        self.slices.contains_key(&number)
    }

    pub fn get(&mut self, number: u64) -> Option<&Slice> {
        let slice = self.slices.get_mut(&number)?;
        slice.used = true;
        Some(slice)
    }

    /// Begins a table of zeroes; `fresh`: its cluster has never been written.
    pub fn add(&mut self, table: u64, offset: u64, fresh: bool) {
        self.new.insert(table, New { offset, fresh });
    }

    pub fn is_new(&self, table: u64) -> bool {
        self.new.contains_key(&table)
    }

    /// Forgets what is known of a table in which nothing has changed: it has another place now.
    pub fn forget(&mut self, table: u64) {
        let first = table * self.per_table();
        for number in first..first + self.per_table() {
            self.slices.remove(&number);
        }
        self.clock.retain(|number| *number / (self.table_length / self.slice_length) != table);
    }

    /// Brings a slice here, if it is not yet, and with the same read as many as follow it in its table, of `wanted`. Its
    /// table lies at `table_offset`.
    pub fn load(
        &mut self,
        device: &dyn Device,
        number: u64,
        table_offset: u64,
        wanted: u64,
    ) -> Result<Option<&Slice>> {
        if !self.contains(number) {
            let (table, at) = (number / self.per_table(), number % self.per_table());
            let most = wanted.min(self.per_table() - at).min(self.budget as u64 / 4);
            let count = 1 + (1..most).take_while(|next| !self.contains(number + next)).count();
            let (offset, length) = (table_offset + at * self.slice_length, self.slice_length as usize);
            let mut bytes = vec![0; count * length];
            if !self.is_new(table) {
                device.read_at(offset, &mut bytes)?;
            }
            // The one that is asked for comes last: making room does not take it away.
            for index in (1..count).rev() {
                let (at, next) = (index * length, index as u64);
                let rest = bytes.split_off(at);
                self.keep(
                    number + next,
                    Slice { offset: offset + at as u64, bytes: rest, ..Slice::default() },
                );
            }
            bytes.shrink_to_fit();
            self.keep(number, Slice { offset, bytes, used: true, ..Slice::default() });
        }
        Ok(self.get(number))
    }

    fn keep(&mut self, number: u64, slice: Slice) {
        self.make_room();
        self.slices.insert(number, slice);
        self.clock.push_back(number);
    }

    /// So many are dirty that they should be written.
    pub fn is_crowded(&self) -> bool {
        self.dirty * 4 >= self.budget * 3
    }

    fn make_room(&mut self) {
        let mut steps = self.clock.len() * 2;
        while self.slices.len() >= self.budget && steps > 0 {
            steps -= 1;
            let Some(number) = self.clock.pop_front() else { return };
            let Some(slice) = self.slices.get_mut(&number) else { continue };
            if slice.used || !slice.dirty.is_clean() {
                slice.used = false;
                self.clock.push_back(number);
            } else {
                self.slices.remove(&number);
            }
        }
    }

    /// Changes bytes of a slice that is here; `false`: it is not.
    pub fn set(&mut self, number: u64, at: usize, value: &[u8]) -> bool {
        self.changing(number).map(|slice| slice.set(at, value)).is_some()
    }

    /// Makes an entry of a table of `bits` wide numbers that value; `false`: its slice is not here.
    pub fn set_number(&mut self, number: u64, index: usize, bits: u32, value: u64) -> bool {
        self.changing(number).map(|slice| slice.set_number(index, bits, value)).is_some()
    }

    fn changing(&mut self, number: u64) -> Option<&mut Slice> {
        let slice = self.slices.get_mut(&number)?;
        if slice.dirty.is_clean() {
            self.dirty += 1;
        }
        slice.used = true;
        Some(slice)
    }

    /// Writes the new tables: all of them, or nothing refers to what is missing.
    pub fn write_new(&mut self, device: &dyn Device) -> Result<()> {
        for table in self.new.values().filter(|table| !table.fresh && !without!("qcow2.zero.new-table")) {
            device.write_zeroes(table.offset, self.table_length)?;
        }
        let new = std::mem::take(&mut self.new);
        let per_table = self.per_table();
        self.write_if(device, |number| new.contains_key(&(number / per_table)))?;
        Ok(())
    }

    /// Writes all that changed, in the order of the file. Returns how many slices.
    pub fn write(&mut self, device: &dyn Device) -> Result<usize> {
        self.write_new(device)?;
        self.write_if(device, |_| true)
    }

    fn write_if(&mut self, device: &dyn Device, which: impl Fn(u64) -> bool) -> Result<usize> {
        if self.dirty == 0 {
            return Ok(0);
        }
        let mut chosen: Vec<&mut Slice> = self
            .slices
            .iter_mut()
            .filter(|(number, slice)| !slice.dirty.is_clean() && which(**number))
            .map(|(_, slice)| slice)
            .collect();
        chosen.sort_by_key(|slice| slice.offset);
        for slice in &mut chosen {
            slice.write(device)?;
            self.dirty -= 1;
        }
        Ok(chosen.len())
    }
}
