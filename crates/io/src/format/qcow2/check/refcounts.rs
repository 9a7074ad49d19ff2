//! The refcounts of the image, and their comparison with the references that were counted.

use super::header::{Header, be64};
use super::source::Source;
use super::{Checker, Part, Problem, Remedy};
use crate::Result;

/// Bits of an entry of the refcount table that must be 0.
const RESERVED: u64 = 0x1ff;

/// The refcount table, and of the blocks what the check of the marks needs.
#[derive(Debug)]
pub(super) struct Refcounts {
    /// As they stand there; those at the end that are 0 are left out.
    pub entries: Vec<u64>,
    blocks: Vec<Block>,
    per_block: u64,
    order: u32,
}

/// A block of refcounts.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Block {
    /// All its refcounts are 0.
    Absent,
    /// It cannot be read.
    Bad(&'static str),
    /// Where it lies, and a bit for each refcount: whether that is 1.
    Present(u64, Option<Box<[u64]>>),
}

impl Refcounts {
    pub fn read(source: &Source<'_>, header: &Header) -> Result<Refcounts> {
        let bytes = header.reftable_clusters * header.cluster_size();
        let mut entries = read_table(source, header.reftable_offset, bytes / 8)?;
        while entries.last() == Some(&0) {
            entries.pop();
        }
        let cluster_size = header.cluster_size();
        let mut found = Refcounts {
            entries,
            blocks: Vec::new(),
            per_block: header.per_block(),
            order: header.refcount_order,
        };
        let mut block = vec![0; cluster_size as usize];
        for entry in &found.entries {
            let offset = entry & !RESERVED;
            let state = if offset == 0 {
                Block::Absent
            } else if !offset.is_multiple_of(cluster_size) {
                Block::Bad("it is not aligned to a cluster")
            } else if !Source::reaches(offset, cluster_size) {
                Block::Bad("it lies beyond all offsets")
            } else if source.is_beyond(offset) {
                Block::Present(offset, None)
            } else {
                source.read(offset, &mut block)?;
                Block::Present(offset, ones(&block, found.order, found.per_block))
            };
            found.blocks.push(state);
        }
        Ok(found)
    }

    /// Whether the refcount of that cluster is 1; `None`: it cannot be read.
    pub fn is_one(&self, cluster: u64) -> Option<bool> {
        match self.blocks.get((cluster / self.per_block) as usize) {
            None | Some(Block::Absent | Block::Present(_, None)) => Some(false),
            Some(Block::Bad(_)) => None,
            Some(Block::Present(_, Some(ones))) => {
                let index = cluster % self.per_block;
                Some(ones[(index / 64) as usize] >> (index % 64) & 1 == 1)
            }
        }
    }

    /// The block with that number.
    pub fn block(&self, number: u64) -> &Block {
        usize::try_from(number).ok().and_then(|number| self.blocks.get(number)).unwrap_or(&Block::Absent)
    }
}

/// Reads a table of 64-bit entries; those beyond the end of the file are 0 and left out.
pub(super) fn read_table(source: &Source<'_>, offset: u64, entries: u64) -> Result<Vec<u64>> {
    let inside = source.length().saturating_sub(offset).div_ceil(8).min(entries);
    let mut table = Vec::with_capacity(inside as usize);
    let mut buffer = vec![0; (inside * 8).min(1 << 20) as usize];
    while (table.len() as u64) < inside {
        let at = table.len() as u64 * 8;
        let now = &mut buffer[..(inside * 8 - at).min(1 << 20) as usize];
        source.read(offset + at, now)?;
        table.extend(now.chunks_exact(8).map(|entry| be64(entry, 0)));
    }
    Ok(table)
}

/// A refcount of a block.
pub(super) fn refcount(block: &[u8], order: u32, index: usize) -> u64 {
    let wide = |bytes: usize| {
        block[index * bytes..(index + 1) * bytes].iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
    };
    match order {
        0 => u64::from(block[index / 8] >> (index % 8) & 1),
        1 => u64::from(block[index / 4] >> (index % 4 * 2) & 3),
        2 => u64::from(block[index / 2] >> (index % 2 * 4) & 15),
        3 => u64::from(block[index]),
        4 => u64::from(u16::from_be_bytes([block[index * 2], block[index * 2 + 1]])),
        5 => wide(4),
        _ => wide(8),
    }
}

/// Changes a refcount of a block; a value that does not fit becomes the largest.
pub(super) fn set_refcount(block: &mut [u8], order: u32, index: usize, value: u64) {
    let value = value.min(u64::MAX >> (64 - (1u32 << order)));
    if order < 3 {
        let (bits, per_byte) = (1 << order, 8 >> order);
        let shift = index % per_byte * bits;
        let byte = &mut block[index / per_byte];
        *byte = *byte & !(((1u16 << bits) - 1) << shift) as u8 | (value << shift) as u8;
    } else {
        let bytes = 1 << (order - 3);
        block[index * bytes..][..bytes].copy_from_slice(&value.to_be_bytes()[8 - bytes..]);
    }
}

fn ones(block: &[u8], order: u32, per_block: u64) -> Option<Box<[u64]>> {
    let mut bits = vec![0; per_block.div_ceil(64) as usize];
    let mut any = false;
    for index in 0..per_block as usize {
        if refcount(block, order, index) == 1 {
            bits[index / 64] |= 1 << (index % 64);
            any = true;
        }
    }
    any.then(|| bits.into_boxed_slice())
}

impl Checker<'_> {
    /// Counts the blocks themselves; all other references must have been counted before.
    pub(super) fn check_blocks(&mut self) {
        let cluster_size = self.header.cluster_size();
        for number in 0..self.refcounts.entries.len() {
            let entry = self.refcounts.entries[number];
            let offset = entry & !RESERVED;
            let part = Part::RefcountBlock;
            if entry & RESERVED != 0 {
                self.corruption(1, Remedy::Rebuild, Problem::ReservedBits { part, entry }, offset);
            } else if !offset.is_multiple_of(cluster_size) {
                self.corruption(1, Remedy::Rebuild, Problem::Unaligned { part }, offset);
            } else if offset >> self.header.cluster_bits >= self.clusters {
                self.corruption(
                    1,
                    Remedy::Rebuild,
                    Problem::BeyondEnd { part, length: cluster_size },
                    offset,
                );
            } else if offset != 0 {
                self.refer(offset, cluster_size, 1, part);
                let references = self.references.get(offset >> self.header.cluster_bits);
                if references != 1 {
                    self.corruption(1, Remedy::Rebuild, Problem::SharedBlock { references }, offset);
                }
            }
        }
    }

    /// Compares all refcounts with the references.
    pub(super) fn compare(&mut self) -> Result<()> {
        let (cluster_size, per_block) = (self.header.cluster_size(), self.header.per_block());
        let order = self.header.refcount_order;
        let mut block = vec![0; cluster_size as usize];
        let mut highest = 0;
        let mut at = 0;
        while at < self.clusters {
            let number = at / per_block;
            let end = ((number + 1) * per_block).min(self.clusters);
            match self.refcounts.block(number) {
                Block::Bad(reason) => {
                    let problem = Problem::Unreadable { part: Part::RefcountBlock, reason };
                    let offset = self.refcounts.entries[number as usize] & !RESERVED;
                    self.report.check_error(end - at, problem, offset);
                }
                Block::Absent => {
                    // Nothing but references can be wrong here, and there may be long stretches without any.
                    match self.references.next_counted(at) {
                        Some(next) if next < end => {
                            self.compare_block(at.max(next), end, None, &mut highest);
                        }
                        Some(next) if number >= self.refcounts.entries.len() as u64 => {
                            at = next.min(self.clusters);
                            continue;
                        }
                        None if number >= self.refcounts.entries.len() as u64 => break,
                        _ => {}
                    }
                }
                Block::Present(offset, _) => {
                    let offset = *offset;
                    if self.source.is_beyond(offset) {
                        block.fill(0);
                    } else {
                        self.source.read(offset, &mut block)?;
                    }
                    self.compare_block(at, end, Some((&block, order)), &mut highest);
                }
            }
            at = end;
        }
        self.report.image_end_offset = (highest + 1) * cluster_size;
        Ok(())
    }

    /// Compares the refcounts of `start..end`, which lie in one block.
    fn compare_block(&mut self, start: u64, end: u64, block: Option<(&[u8], u32)>, highest: &mut u64) {
        let first = start - start % self.header.per_block();
        let mut at = start;
        let mut wrong = Vec::new();
        while at < end {
            let (counts, length) = self.references.chunk(at, end - at);
            for index in 0..length {
                let cluster = at + index;
                let refcount =
                    block.map_or(0, |(block, order)| refcount(block, order, (cluster - first) as usize));
                let references = match counts.map_or(0, |counts| counts[index as usize]) {
                    u8::MAX => self.references.get(cluster),
                    count => u64::from(count),
                };
                if refcount | references != 0 {
                    *highest = cluster;
                }
                if refcount != references {
                    wrong.push((cluster, refcount, references));
                }
            }
            at += length;
            for (cluster, refcount, references) in wrong.drain(..) {
                let problem = Problem::Refcount { refcount, references };
                let offset = cluster << self.header.cluster_bits;
                if refcount > references {
                    self.report.leak(problem, offset);
                } else {
                    let remedy = if block.is_some() { Remedy::Refcount } else { Remedy::Rebuild };
                    self.corruption(1, remedy, problem, offset);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refcounts_of_all_widths_are_kept_apart() {
        for order in 0..=6 {
            let mut block = [0; 64];
            let count = 512 >> order;
            let value =
                |index: usize| (index as u64 * 0x0123_4567_89ab) & (u64::MAX >> (64 - (1u32 << order)));
            for index in 0..count {
                set_refcount(&mut block, order, index, u64::MAX);
                set_refcount(&mut block, order, index, value(index));
            }
            for index in 0..count {
                assert_eq!(refcount(&block, order, index), value(index), "{order} {index}");
            }
        }
        let mut block = [0; 8];
        set_refcount(&mut block, 2, 1, 3);
        set_refcount(&mut block, 2, 2, 5);
        // The first of a byte has its lowest bits.
        assert_eq!(block[..2], [0x30, 0x05]);
    }
}
