//! Differences between images, and what a copy would need.

use std::collections::VecDeque;

use vdsmstore_io::{Format, Image, Keep, Plan, diff};

use crate::Result;
use crate::types::{Extent, ExtentKind, Measure};

use super::chain::OpenChain;

/// Virtual bytes that are compared at a time.
const WINDOW: u64 = 64 << 20;
/// Bytes of a cluster of what we write.
const CLUSTER: u64 = 64 << 10;

/// What differs between two images, piece by piece, in order.
pub struct Difference {
    source: Image,
    base: Option<Image>,
    position: u64,
    /// The last piece found: it may grow.
    pending: Option<Extent>,
    found: VecDeque<Extent>,
    _keep: Keep,
}

/// Compares two open images, or tells what one has.
pub(crate) fn open(source: &OpenChain, base: Option<&OpenChain>) -> Result<Difference> {
    let base = base.map(|base| base.image(false)).transpose()?;
    Ok(Difference {
        source: source.image(false)?,
        base,
        position: 0,
        pending: None,
        found: VecDeque::new(),
        _keep: Keep::new(),
    })
}

impl Difference {
    /// The next pieces, at most `max`; none at the end. Adjacent pieces of one kind are one.
    pub fn next_batch(&mut self, max: usize) -> Result<Vec<Extent>> {
        while self.found.len() < max && self.position < self.source.size() {
            let length = WINDOW.min(self.source.size() - self.position);
            let (pending, found) = (&mut self.pending, &mut self.found);
            diff(&self.source, self.base.as_ref(), self.position, length, &mut |offset, length, zero| {
                let kind = if zero { ExtentKind::Zero } else { ExtentKind::Data };
                match pending {
                    Some(last) if last.kind == kind && last.offset + last.length == offset => {
                        last.length += length;
                    }
                    _ => found.extend(pending.replace(Extent { offset, length, kind })),
                }
                Ok(())
            })?;
            self.position += length;
        }
        if self.position >= self.source.size() && self.found.len() < max {
            self.found.extend(self.pending.take());
        }
        let count = max.min(self.found.len());
        Ok(self.found.drain(..count).collect())
    }
}

/// What the plan's result takes. Metadata of qcow2 as the specification lays it out: header, one level of tables for
/// each 512 MiB, refcounts of two bytes for each cluster.
pub(crate) fn measure(plan: &Plan, size: u64, format: Format) -> Measure {
    let data = plan.write_bytes().next_multiple_of(if format == Format::Qcow2 { CLUSTER } else { 512 });
    let read = plan.read_bytes();
    match format {
        Format::Raw => Measure { required: data, fully_allocated: size, read },
        Format::Qcow2 => {
            let tables = size.div_ceil(CLUSTER * CLUSTER / 8) * CLUSTER;
            let l1 = (size.div_ceil(CLUSTER * CLUSTER / 8) * 8).next_multiple_of(CLUSTER);
            let total = |data: u64| {
                let used = CLUSTER + l1 + tables + data;
                let blocks = used.div_ceil(CLUSTER * CLUSTER / 2) + 1;
                used + blocks * CLUSTER + CLUSTER
            };
            Measure { required: total(data), fully_allocated: total(size.next_multiple_of(CLUSTER)), read }
        }
    }
}
