//! Hashes of what a fill copies: kept with the image, and what was written is read back if that is asked for.

use vdsmstore_io::hash::{Builder, Manifest, Units};
use vdsmstore_io::{Image, Plan, without};

use super::LONG_HASHED;
use crate::job::Env;
use crate::{Error, ErrorKind, Result};

/// The hashes of one fill.
pub(super) struct Hashing {
    /// None: it is too large.
    builder: Option<Builder>,
    /// What was copied before, by who had the work then.
    from: u64,
    /// Since the last watermark: what the source is, and where it was written.
    pending: Vec<(Units, Vec<(u64, u64)>)>,
    /// Bytes of the disk that those are of.
    waiting: u64,
    /// What was written is read back.
    verify: bool,
    /// What the source is known to be.
    expected: Option<Manifest>,
    size: u64,
}

impl Hashing {
    /// Of an image of that size. `from`: everything below was copied before.
    pub fn new(size: u64, verify: bool, expected: Option<Manifest>, from: u64) -> Self {
        Self { builder: Builder::new(size), from, pending: Vec::new(), waiting: 0, verify, expected, size }
    }

    pub fn verify(&self) -> bool {
        self.verify
    }

    /// The next part of what was copied before, of which there are no hashes; at most so much.
    pub fn former(&self, most: u64) -> Option<(u64, u64)> {
        let at = self.builder.as_ref()?.position();
        (at < self.from).then(|| (at, most.min(self.from - at)))
    }

    /// The units of a part of the disk: those of its end, too, if that is the last one.
    pub fn units(&self, offset: u64, length: u64, is_last: bool) -> Units {
        Units::new(offset, if is_last { self.size - offset } else { length })
    }

    /// So much of the target is known from reading it.
    pub fn push_former(&mut self, units: &Units) {
        if let Some(builder) = &mut self.builder {
            builder.push(units);
        }
    }

    /// A part was copied. `based`: what the plan left out is the base's.
    pub fn push(&mut self, units: Units, plan: &Plan, based: bool) {
        let range = (plan.offset(), plan.length());
        let moved = plan.moves().iter().map(|step| (step.offset, step.length));
        let written = if based { moved.collect() } else { vec![range] };
        self.pending.push((units, written));
        self.waiting += plan.length();
    }

    /// Whether there is so much since the last watermark that it should not become more: hashes of units take memory.
    pub fn is_full(&self) -> bool {
        self.waiting >= LONG_HASHED
    }

    /// Once the target is flushed: reads back what was written since the last time, and compares. Returns the bytes it read.
    pub fn read_back(&mut self, target: &Image, env: &Env<'_>) -> Result<u64> {
        let mut read = 0;
        if self.verify && !self.pending.is_empty() {
            // What the page cache has is not what the disk has.
            target.forget_cached();
        }
        self.waiting = 0;
        for (units, written) in self.pending.drain(..) {
            if self.verify && !without!("hashing.read") {
                let back = units.like();
                read += env.reads(|control| back.read(target, &written, control))?.read;
                if let Some((offset, length)) = units.difference(&back) {
                    let message = format!(
                        "what was written at {offset}, {length} bytes, does not read as it was in the source"
                    );
                    return Err(Error::new(ErrorKind::VerificationFailed, message)
                        .with("offset", offset)
                        .with("length", length));
                }
            }
            if let Some(builder) = &mut self.builder {
                builder.push(&units);
            }
        }
        Ok(read)
    }

    /// The hashes of the whole image, if all of it was seen, and as it was expected to be.
    pub fn finish(self) -> Result<Option<Manifest>> {
        let manifest = self.builder.and_then(Builder::finish);
        if let (Some(found), Some(expected)) = (&manifest, &self.expected)
            && found != expected
            && !without!("hashing.compare.expected")
        {
            let block = found.hashes().iter().zip(expected.hashes()).position(|(a, b)| a != b);
            let offset = block.map_or(0, |block| block as u64 * found.block_size());
            let message = format!("what was copied is not what its hashes say, in the block at {offset}");
            return Err(Error::new(ErrorKind::VerificationFailed, message).with("offset", offset));
        }
        Ok(manifest)
    }
}
