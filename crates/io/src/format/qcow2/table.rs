//! Tables of big-endian numbers, one cluster each, that know which of their sectors changed; and the bounded
//! cache that holds them.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;

use crate::{Device, Result};

pub(super) const SECTOR: usize = 512;

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

/// One cluster of entries.
#[derive(Debug)]
pub(super) struct Table {
    /// Where it lies in the file.
    pub offset: u64,
    /// Its bytes as they are to be.
    bytes: Vec<u8>,
    /// What differs from the file.
    dirty: Sectors,
    /// Not written yet, and nothing on the device refers to it yet.
    pub new: bool,
    /// Its cluster reads as zeroes on the device (only for new ones).
    fresh: bool,
    /// Looked at since the clock's hand passed.
    used: bool,
}

impl Table {
    pub fn read(device: &dyn Device, offset: u64, length: usize) -> Result<Table> {
        let mut bytes = vec![0; length];
        device.read_at(offset, &mut bytes)?;
        Ok(Table { offset, bytes, dirty: Sectors::default(), new: false, fresh: false, used: true })
    }

    pub fn new(offset: u64, length: usize, fresh: bool) -> Table {
        Table { offset, bytes: vec![0; length], dirty: Sectors::default(), new: true, fresh, used: true }
    }

    /// A table with that content that nothing refers to yet.
    pub fn copy(offset: u64, bytes: &[u8], fresh: bool) -> Table {
        let mut table = Table::new(offset, bytes.len(), fresh);
        for (index, sector) in bytes.chunks(SECTOR).enumerate() {
            if sector.iter().any(|byte| *byte != 0) {
                table.set(index * SECTOR, sector);
            }
        }
        table
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The 64-bit entry; indexes come from offsets within the table, so that one outside reads as 0.
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

    /// Where the bytes of such an entry lie, and what they are to be for that value.
    pub fn patch(&self, index: usize, bits: u32, value: u64) -> (usize, Vec<u8>) {
        if bits < 8 {
            let at = index * bits as usize;
            let mask = (1u8 << bits) - 1;
            let byte = self.bytes.get(at / 8).copied().unwrap_or(0);
            return (at / 8, vec![byte & !(mask << (at % 8)) | (value as u8 & mask) << (at % 8)]);
        }
        let width = bits as usize / 8;
        (index * width, value.to_be_bytes()[8 - width..].to_vec())
    }

    fn set(&mut self, at: usize, value: &[u8]) {
        self.bytes[at..at + value.len()].copy_from_slice(value);
        for sector in (at - at % SECTOR..at + value.len()).step_by(SECTOR) {
            self.dirty.mark(sector);
        }
    }

    /// Writes what changed, of a new table everything; it is clean and no longer new afterwards.
    fn write(&mut self, device: &dyn Device) -> Result<()> {
        if self.new && !self.fresh {
            device.write_zeroes(self.offset, self.bytes.len() as u64)?;
        }
        for range in self.dirty.ranges(self.bytes.len()) {
            device.write_at(self.offset + range.start as u64, &self.bytes[range])?;
        }
        self.dirty.clear();
        self.new = false;
        Ok(())
    }
}

/// Tables by number, within a budget; changed ones stay until they are written.
#[derive(Debug)]
pub(super) struct Cache {
    tables: HashMap<u64, Table>,
    /// The clock: keys in the order in which they will be looked at for eviction.
    clock: VecDeque<u64>,
    /// How many tables may stay.
    budget: usize,
    /// How many are dirty or new.
    dirty: usize,
}

impl Cache {
    pub fn new(budget: usize) -> Cache {
        Cache { tables: HashMap::new(), clock: VecDeque::new(), budget, dirty: 0 }
    }

    pub fn contains(&self, key: u64) -> bool {
        self.tables.contains_key(&key)
    }

    pub fn get(&mut self, key: u64) -> Option<&Table> {
        let table = self.tables.get_mut(&key)?;
        table.used = true;
        Some(table)
    }

    /// So many are dirty that they should be written.
    pub fn is_crowded(&self) -> bool {
        self.dirty * 4 >= self.budget * 3
    }

    pub fn insert(&mut self, key: u64, table: Table) {
        self.make_room();
        self.dirty += usize::from(table.new);
        if self.tables.insert(key, table).is_none() {
            self.clock.push_back(key);
        }
    }

    fn make_room(&mut self) {
        let mut steps = self.clock.len() * 2;
        while self.tables.len() >= self.budget && steps > 0 {
            steps -= 1;
            let Some(key) = self.clock.pop_front() else { return };
            let Some(table) = self.tables.get_mut(&key) else { continue };
            if table.used || table.new || !table.dirty.is_clean() {
                table.used = false;
                self.clock.push_back(key);
            } else {
                self.tables.remove(&key);
            }
        }
    }

    /// Changes bytes of a table that is here; `false`: it is not.
    pub fn set(&mut self, key: u64, at: usize, value: &[u8]) -> bool {
        let Some(table) = self.tables.get_mut(&key) else { return false };
        if !table.new && table.dirty.is_clean() {
            self.dirty += 1;
        }
        table.used = true;
        table.set(at, value);
        true
    }

    /// Writes the changed tables for which `which` holds, in the order of the file. Returns how many.
    pub fn write(&mut self, device: &dyn Device, which: impl Fn(&Table) -> bool) -> Result<usize> {
        if self.dirty == 0 {
            return Ok(0);
        }
        let mut chosen: Vec<&mut Table> =
            self.tables.values_mut().filter(|t| (t.new || !t.dirty.is_clean()) && which(t)).collect();
        chosen.sort_by_key(|table| table.offset);
        for table in &mut chosen {
            table.write(device)?;
            self.dirty -= 1;
        }
        Ok(chosen.len())
    }
}
