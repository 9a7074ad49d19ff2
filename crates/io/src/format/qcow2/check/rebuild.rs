//! New refcounts for the whole image, behind everything that is there: nothing old is overwritten, and one write of
//! the header puts them in force.

use super::header::{be32, be64};
use super::refcounts::{refcount, set_refcount};
use super::repair::old_refcounts;
use super::{Checker, Look};
use crate::{Error, ErrorKind, Result};

const MAX_REFTABLE_BYTES: u64 = 8 << 20;
/// An entry of the snapshot table, and of it what version 3 demands of the optional part.
const SNAPSHOT: u64 = 40;
const WANTED_EXTRA: u64 = 16;
/// Where the header has the refcount table and the snapshot table.
const REFTABLE_AT: usize = 48;
const SNAPSHOTS_AT: usize = 64;

/// Where the new tables lie, in clusters.
struct Layout {
    start: u64,
    snapshots: u64,
    /// Numbers of the blocks that are needed.
    blocks: Vec<u64>,
    table: u64,
}

impl Layout {
    fn end(&self) -> u64 {
        self.start + self.snapshots + self.blocks.len() as u64 + self.table
    }
}

impl Checker<'_> {
    /// Writes new refcounts, and a new snapshot table if that is incomplete. Refcounts are the number of references if
    /// all of these are `complete`ly known, else never lower than before. False: nothing was changed, for entries refer to
    /// where the tables would come to be. A file that was cut off is like that; what is put there becomes the disk's data.
    pub(super) fn rebuild(&self, complete: bool) -> Result<bool> {
        let device = self.source.device();
        let replaces_snapshots = self.tally.snapshots > 0 && complete;
        let snapshots = if replaces_snapshots { self.completed_snapshots()? } else { Vec::new() };
        // References without those of what is replaced.
        let counted = Checker::run(device, Look::Replacing { snapshots: replaces_snapshots })?;
        let layout = counted.layout(self, snapshots.len() as u64, complete)?;
        if self.beyond.is_some_and(|first| first < layout.end()) {
            return Ok(false);
        }
        let cluster_size = self.header.cluster_size();
        let order = self.header.refcount_order;
        let place = |cluster: u64| cluster * cluster_size;

        device.set_len(device.len()?.max(place(layout.end())))?;
        let first_block = layout.start + layout.snapshots;
        if !snapshots.is_empty() {
            device.write_at(place(layout.start), &snapshots)?;
        }
        let table_start = first_block + layout.blocks.len() as u64;
        let mut table = vec![0; (layout.table * cluster_size) as usize];
        for (index, number) in layout.blocks.iter().enumerate() {
            let block = counted.new_block(self, *number, &layout, complete, order)?;
            let offset = place(first_block + index as u64);
            device.write_at(offset, &block)?;
            table[*number as usize * 8..][..8].copy_from_slice(&offset.to_be_bytes());
        }
        device.write_at(place(table_start), &table)?;
        device.flush()?;

        let mut sector = [0; 512];
        self.source.read(0, &mut sector)?;
        sector[REFTABLE_AT..][..8].copy_from_slice(&place(table_start).to_be_bytes());
        sector[REFTABLE_AT + 8..][..4].copy_from_slice(&(layout.table as u32).to_be_bytes());
        if replaces_snapshots {
            sector[SNAPSHOTS_AT..][..8].copy_from_slice(&place(layout.start).to_be_bytes());
        }
        device.write_at(0, &sector)?;
        device.flush()?;
        Ok(true)
    }

    /// The blocks that are needed count themselves, so that there may have to be more of them.
    fn layout(&self, old: &Checker<'_>, snapshots: u64, complete: bool) -> Result<Layout> {
        let (cluster_size, per_block) = (self.header.cluster_size(), self.header.per_block());
        let start = self.clusters.max(old.clusters);
        let mut needed = Vec::new();
        let mut at = 0;
        while let Some(next) = self.references.next_counted(at).filter(|next| *next < start) {
            let number = next / per_block;
            let end = ((number + 1) * per_block).min(start);
            if (next..end).any(|cluster| self.references.get(cluster) > 0) {
                needed.push(number);
            }
            at = end;
        }
        if !complete {
            // Behind the end of the file there is nothing that could be lost.
            needed.extend(0..start.div_ceil(per_block).min(old.refcounts.entries.len() as u64));
            needed.sort_unstable();
            needed.dedup();
        }
        let mut layout =
            Layout { start, snapshots: snapshots.div_ceil(cluster_size), blocks: needed.clone(), table: 1 };
        loop {
            let own = start / per_block..=(layout.end() - 1) / per_block;
            let mut blocks = needed.clone();
            blocks.extend(own);
            blocks.sort_unstable();
            blocks.dedup();
            let entries = blocks.last().map_or(1, |last| last + 1);
            let table = (entries * 8).div_ceil(cluster_size);
            if blocks.len() == layout.blocks.len() && table == layout.table {
                layout.blocks = blocks;
                break;
            }
            (layout.blocks, layout.table) = (blocks, table.max(layout.table));
        }
        if layout.table * cluster_size > MAX_REFTABLE_BYTES {
            return Err(Error::new(ErrorKind::Unsupported, "the image is too large for its refcounts")
                .with_path(self.source.device().name()));
        }
        Ok(layout)
    }

    fn new_block(
        &self,
        old: &Checker<'_>,
        number: u64,
        layout: &Layout,
        complete: bool,
        order: u32,
    ) -> Result<Vec<u8>> {
        let per_block = self.header.per_block();
        let mut block = vec![0; self.header.cluster_size() as usize];
        if !complete {
            old_refcounts(old, number, &mut block)?;
        }
        for index in 0..per_block {
            let cluster = number * per_block + index;
            let wanted = if (layout.start..layout.end()).contains(&cluster) {
                1
            } else {
                self.references.get(cluster).max(refcount(&block, order, index as usize))
            };
            set_refcount(&mut block, order, index as usize, wanted);
        }
        Ok(block)
    }

    /// The snapshot table with what version 3 demands: entries get the fields that they lack, with the disk's size.
    fn completed_snapshots(&self) -> Result<Vec<u8>> {
        let mut at = self.header.snapshots_offset;
        let mut table = Vec::new();
        for _ in 0..self.header.snapshots {
            at = at.next_multiple_of(8);
            let mut fixed = [0; SNAPSHOT as usize];
            self.source.read(at, &mut fixed)?;
            let (names, extra) = (be32(&fixed, 12), u64::from(be32(&fixed, 36)));
            let names = u64::from(names >> 16) + u64::from(names & 0xffff);
            let mut rest = vec![0; (extra + names) as usize];
            self.source.read(at + SNAPSHOT, &mut rest)?;
            at += SNAPSHOT + extra + names;
            let (extra, names) = rest.split_at(extra as usize);
            table.resize(table.len().next_multiple_of(8), 0);
            let wanted = (extra.len() as u64).max(WANTED_EXTRA);
            fixed[36..].copy_from_slice(&(wanted as u32).to_be_bytes());
            table.extend(fixed);
            if extra.len() as u64 >= WANTED_EXTRA {
                table.extend(extra);
            } else {
                let state = if extra.len() >= 8 { be64(extra, 0) } else { u64::from(be32(&fixed, 32)) };
                table.extend(state.to_be_bytes());
                table.extend(self.header.size.to_be_bytes());
            }
            table.extend(names);
        }
        Ok(table)
    }
}
