//! The hashes of all blocks of a disk, and the file that keeps them.

use super::{Hash, Units, ZERO};
use crate::plan::{Action, UNIT};
use crate::{Error, ErrorKind, Plan, Result};

/// The smallest block.
const SMALLEST: u64 = 1 << 20;
/// The largest: steps of a job are not smaller.
const LARGEST: u64 = 64 << 20;
/// So that a manifest takes 8 MiB of memory at most, larger disks have larger blocks: a copy may hold three.
const MOST: u64 = 1 << 18;
/// What a file begins with.
const MAGIC: &[u8; 8] = b"vdsmhash";
/// Magic, size, size of a block.
const HEADER: usize = 24;

/// The hashes of the blocks of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    size: u64,
    block: u64,
    hashes: Vec<Hash>,
}

/// The hash of a block, from those of its units.
pub(super) fn block_hash(units: &[Hash]) -> Hash {
    if units.iter().all(|unit| *unit == ZERO) {
        return ZERO;
    }
    *blake3::hash(units.as_flattened()).as_bytes()
}

/// The size of a block. None: the disk is larger than 16 TiB.
fn block_size(size: u64) -> Option<u64> {
    let block = size.div_ceil(MOST).next_power_of_two().max(SMALLEST);
    (size > 0 && block <= LARGEST).then_some(block)
}

impl Manifest {
    /// The size of the disk in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The size of a block in bytes: 1 MiB for disks of up to 256 GiB, at most 64 MiB.
    pub fn block_size(&self) -> u64 {
        self.block
    }

    /// The hashes, in order.
    pub fn hashes(&self) -> &[Hash] {
        &self.hashes
    }

    pub(super) fn hash(&self, block: u64) -> Hash {
        self.hashes[block as usize]
    }

    /// Where a block lies: offset and length.
    pub(super) fn range_of(&self, block: u64) -> (u64, u64) {
        let offset = block * self.block;
        (offset, self.block.min(self.size - offset))
    }

    /// The blocks that the plan compares parts of, if all of them is in the plan's range and in both images.
    pub(super) fn blocks_to_compare(&self, plan: &Plan, source_size: u64) -> Vec<u64> {
        let (start, end) = (plan.offset(), plan.offset() + plan.length());
        let mut blocks: Vec<u64> = Vec::new();
        for step in plan.moves().iter().filter(|step| step.action == Action::Compare) {
            let last = (step.offset + step.length - 1) / self.block;
            for block in step.offset / self.block..=last {
                if block >= self.hashes.len() as u64 {
                    break;
                }
                let (offset, length) = self.range_of(block);
                // The last one may end elsewhere in the source.
                let whole = length == self.block || self.size == source_size;
                if whole && offset >= start && offset + length <= end && blocks.last() != Some(&block) {
                    blocks.push(block);
                }
            }
        }
        blocks
    }

    /// The file: magic, size and size of a block (little-endian), a bit for each block that is not zero (the lowest bit of the
    /// first byte is that of the first block), and their hashes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + self.hashes.len() * 33);
        bytes.extend(MAGIC);
        bytes.extend(self.size.to_le_bytes());
        bytes.extend(self.block.to_le_bytes());
        for eight in self.hashes.chunks(8) {
            let bit = |(index, hash): (usize, &Hash)| u8::from(*hash != ZERO) << index;
            bytes.push(eight.iter().enumerate().map(bit).sum());
        }
        bytes.extend(self.hashes.iter().filter(|hash| **hash != ZERO).flatten());
        bytes
    }

    /// Reads what [`Manifest::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let corrupt = |message: &'static str| Error::new(ErrorKind::Corrupt, message);
        let number = |at: usize| {
            let bytes = bytes.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
            bytes.map(u64::from_le_bytes).ok_or_else(|| corrupt("a manifest is cut short"))
        };
        if bytes.get(..MAGIC.len()) != Some(MAGIC.as_slice()) {
            return Err(corrupt("it is no manifest"));
        }
        let (size, block) = (number(8)?, number(16)?);
        if block_size(size) != Some(block) {
            return Err(corrupt("the size of a manifest's blocks is wrong"));
        }
        let count = size.div_ceil(block) as usize;
        let rest = &bytes[HEADER..];
        let map = rest.get(..count.div_ceil(8)).ok_or_else(|| corrupt("a manifest is cut short"))?;
        let (stored, left) = rest[map.len()..].as_chunks::<32>();
        let mut stored = stored.iter();
        let mut hashes = Vec::with_capacity(count);
        for block in 0..count {
            let hash = if map[block / 8] >> (block % 8) & 1 == 1 { stored.next() } else { Some(&ZERO) };
            hashes.push(*hash.ok_or_else(|| corrupt("a manifest is cut short"))?);
        }
        if stored.next().is_some() || !left.is_empty() {
            return Err(corrupt("a manifest goes on after its end"));
        }
        Ok(Self { size, block, hashes })
    }

    /// One hash for all of it: that of the file.
    pub fn root(&self) -> String {
        root(&self.encode())
    }
}

/// The BLAKE3 hash of the file of a manifest, in hexadecimal digits.
pub fn root(file: &[u8]) -> String {
    blake3::hash(file).to_hex().to_string()
}

/// A manifest in the making: units come in order.
#[derive(Debug)]
pub struct Builder {
    manifest: Manifest,
    /// Of the block that is not complete.
    units: Vec<Hash>,
    /// Where the next unit begins.
    position: u64,
}

impl Builder {
    /// For a disk of that size. None: it is larger than 16 TiB.
    pub fn new(size: u64) -> Option<Self> {
        let block = block_size(size)?;
        let hashes = Vec::with_capacity(size.div_ceil(block) as usize);
        let manifest = Manifest { size, block, hashes };
        Some(Self { manifest, units: Vec::new(), position: 0 })
    }

    /// Up to where it knows the disk.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Adds the units that follow. What does not follow, or was not seen, is left out, and the manifest stays incomplete.
    pub fn push(&mut self, units: &Units) {
        if units.offset != self.position {
            return;
        }
        for hash in units.hashes() {
            let Some(hash) = hash else { return };
            self.units.push(hash);
            self.position = (self.position + UNIT).min(self.manifest.size);
            if self.position.is_multiple_of(self.manifest.block) || self.position == self.manifest.size {
                self.manifest.hashes.push(block_hash(&self.units));
                self.units.clear();
            }
        }
    }

    /// The manifest, if all of the disk was seen.
    pub fn finish(self) -> Option<Manifest> {
        (self.position == self.manifest.size).then_some(self.manifest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(size: u64) -> Manifest {
        let mut builder = Builder::new(size).unwrap();
        let units = Units::new(0, size);
        units.see_zeroes(0, size);
        units.see(3 << 20, &vec![7; 2 << 20]);
        units.see(size - 512, &[9; 512]);
        builder.push(&units);
        builder.finish().unwrap()
    }

    #[test]
    fn what_is_written_is_read() {
        for size in [512, 1 << 20, (1 << 20) + 512, (20 << 20) + 1024, 100 << 20] {
            let manifest = manifest(size);
            let bytes = manifest.encode();
            assert_eq!(Manifest::decode(&bytes).unwrap(), manifest);
            // Nothing else is.
            for length in 0..bytes.len() {
                assert!(Manifest::decode(&bytes[..length]).is_err(), "{length}");
            }
            assert!(Manifest::decode(&[&bytes[..], &[0]].concat()).is_err());
            for (at, byte) in [(0, 1), (15, 255), (16, 1), (22, 9)] {
                let mut other = bytes.clone();
                other[at] ^= byte;
                assert!(Manifest::decode(&other).is_err(), "{at}");
            }
        }
    }

    #[test]
    fn blocks_grow_with_the_disk() {
        assert_eq!(block_size(0), None);
        for (size, block) in [(512, 1 << 20), (256 << 30, 1 << 20), ((256 << 30) + 512, 2 << 20)] {
            assert_eq!(block_size(size), Some(block), "{size}");
        }
        assert_eq!((block_size(16 << 40), block_size((16 << 40) + 512)), (Some(LARGEST), None));
    }

    #[test]
    fn what_was_not_seen_is_missing() {
        let size = 10 << 20;
        let units = Units::new(0, size);
        // Parts of units do not count.
        units.see(0, &vec![1; (1 << 20) - 1]);
        let known = units.hashes().iter().filter(|hash| hash.is_some()).count();
        assert_eq!(known, 15);
        let mut builder = Builder::new(size).unwrap();
        builder.push(&units);
        assert_eq!(builder.position(), 15 * UNIT);
        assert_eq!(builder.finish(), None);
    }
}
