//! Hashes of what a disk contains: to know that bytes arrived as they left, and what has changed since.
//!
//! A disk is cut into units of 64 KiB, and units are taken together to blocks. The hash of a unit is the BLAKE3 hash of its
//! bytes (the last unit ends where the disk does), the hash of a block the BLAKE3 hash of the hashes of its units, in order.
//! A unit or block of zeroes only has the hash [`ZERO`] instead. (Zeroes that cost nothing, and blocks whose hashes are taken
//! apart from one another, are what Nir Soffer's blkhash showed for disks.)

mod manifest;

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::execute::{Control, Keep, Outcome, Totals, is_zero, read_moves};
use crate::plan::{self, UNIT};
use crate::{Image, Move, Plan, Result};

pub use manifest::{Builder, Manifest, root};

/// A BLAKE3 hash.
pub type Hash = [u8; 32];

/// The hash of zeroes, however many.
pub const ZERO: Hash = [0; 32];

/// The hashes of the units of a range, as far as their bytes were seen.
#[derive(Debug)]
pub struct Units {
    offset: u64,
    end: u64,
    found: Mutex<Vec<Option<Hash>>>,
}

impl Units {
    /// Of a range of a disk: it begins at a multiple of 64 KiB, and ends at one or with the disk.
    pub fn new(offset: u64, length: u64) -> Self {
        let offset = offset - offset % UNIT;
        let units = length.div_ceil(UNIT) as usize;
        Self { offset, end: offset + length, found: Mutex::new(vec![None; units]) }
    }

    /// The units of the same range, of which nothing was seen.
    #[must_use]
    pub fn like(&self) -> Self {
        Self::new(self.offset, self.end - self.offset)
    }

    fn found(&self) -> MutexGuard<'_, Vec<Option<Hash>>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a unit begins.
    fn start(&self, unit: usize) -> u64 {
        self.offset + unit as u64 * UNIT
    }

    /// Where a unit ends.
    fn end(&self, unit: usize) -> u64 {
        (self.start(unit) + UNIT).min(self.end)
    }

    /// The units that lie in a range as a whole.
    fn within(&self, offset: u64, length: u64) -> std::ops::Range<usize> {
        let end = offset.saturating_add(length);
        let first = offset.saturating_sub(self.offset).div_ceil(UNIT) as usize;
        let last = if end >= self.end {
            self.found().len()
        } else {
            (end.saturating_sub(self.offset) / UNIT) as usize
        };
        first..last.max(first)
    }

    /// These bytes are there. Parts of units do not count.
    pub(crate) fn see(&self, offset: u64, bytes: &[u8]) {
        for unit in self.within(offset, bytes.len() as u64) {
            let range = (self.start(unit) - offset) as usize..(self.end(unit) - offset) as usize;
            let hash = hash_of(&bytes[range]);
            self.found()[unit] = Some(hash);
        }
    }

    /// The range reads as zeroes.
    pub(crate) fn see_zeroes(&self, offset: u64, length: u64) {
        let units = self.within(offset, length);
        self.found()[units].fill(Some(ZERO));
    }

    /// What no move of the plan covers reads as zeroes.
    pub(crate) fn see_gaps(&self, plan: &Plan) {
        for (offset, length) in plan.gaps() {
            self.see_zeroes(offset, length);
        }
    }

    /// What was not seen: offset and length of each part.
    fn missing(&self) -> Vec<(u64, u64)> {
        let mut missing: Vec<(u64, u64)> = Vec::new();
        for (unit, _) in self.found().iter().enumerate().filter(|(_, hash)| hash.is_none()) {
            let (start, end) = (self.start(unit), self.end(unit));
            match missing.last_mut() {
                Some((offset, length)) if *offset + *length == start => *length += end - start,
                _ => missing.push((start, end - start)),
            }
        }
        missing
    }

    /// Reads what was not seen yet from an image; beyond its end are zeroes.
    pub fn complete(&self, image: &Image, control: &Control<'_>) -> Result<Outcome> {
        self.read(image, &self.missing(), control)
    }

    /// Reads these parts of an image, in order: offset and length of each, whole units or up to the end of the range.
    pub fn read(&self, image: &Image, parts: &[(u64, u64)], control: &Control<'_>) -> Result<Outcome> {
        let mut plan = Plan::default();
        for &(offset, length) in parts {
            let data = plan::units(image, offset, length)?;
            self.see_gaps(&data);
            plan.extend(data);
        }
        let totals = Totals::default();
        let see = |step: &Move, bytes: &[u8], _: Option<&[u8]>| {
            self.see(step.offset, bytes);
            Ok(())
        };
        read_moves(plan.moves(), image, &see, control, &totals)?;
        Ok(totals.outcome())
    }

    /// All hashes, in order; those of units that were not seen are missing.
    pub fn hashes(&self) -> Vec<Option<Hash>> {
        self.found().clone()
    }

    /// The first unit that was seen in the other, which is of the same range, and not here with the same hash: offset and length.
    pub fn difference(&self, other: &Units) -> Option<(u64, u64)> {
        let pairs = self.hashes().into_iter().zip(other.hashes());
        let unit = pairs.into_iter().position(|(ours, theirs)| theirs.is_some() && theirs != ours)?;
        Some((self.start(unit), self.end(unit) - self.start(unit)))
    }
}

fn hash_of(bytes: &[u8]) -> Hash {
    if is_zero(bytes) { ZERO } else { *blake3::hash(bytes).as_bytes() }
}

/// The manifest of a whole image, read from its beginning to its end. None: the disk is too large for one.
pub fn hash(image: &Image, control: &Control<'_>) -> Result<Option<Manifest>> {
    /// At a time.
    const STEP: u64 = 64 << 20;
    let size = image.size();
    let Some(mut builder) = Builder::new(size) else { return Ok(None) };
    // From step to step.
    let _keep = Keep::new();
    let mut at = 0;
    while at < size {
        let units = Units::new(at, STEP.min(size - at));
        units.complete(image, control)?;
        builder.push(&units);
        at += STEP;
    }
    Ok(builder.finish())
}

/// Leaves out of a plan what need not be compared byte by byte: blocks of the source whose hashes are those of the base. All
/// hashes that this takes are left in `units`, which are of the plan's range.
///
/// The caller knows that the manifest is that of the base: equal hashes are taken for equal data.
pub fn sieve(
    plan: &Plan,
    source: &Image,
    base: &Manifest,
    units: &Units,
    control: &Control<'_>,
) -> Result<(Plan, Outcome)> {
    let blocks = base.blocks_to_compare(plan, source.size());
    let parts: Vec<_> = blocks.iter().map(|block| base.range_of(*block)).collect();
    let outcome = units.read(source, &parts, control)?;
    let hashes = units.hashes();
    let same: Vec<_> = blocks
        .into_iter()
        .map(|block| (block, base.range_of(block)))
        .filter(|&(block, (offset, length))| {
            let seen = ((offset - units.offset) / UNIT) as usize..;
            let of: Option<Vec<Hash>> =
                hashes[seen].iter().take(length.div_ceil(UNIT) as usize).copied().collect();
            of.is_some_and(|of| manifest::block_hash(&of) == base.hash(block))
        })
        .map(|(_, range)| range)
        .collect();
    Ok((plan.without(&same), outcome))
}
