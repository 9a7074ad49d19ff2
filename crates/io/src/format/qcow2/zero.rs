//! Zeroing and discarding: whole clusters in the tables, parts of them as written zeroes.

use std::ops::Range;

use super::mapping::{Below, Cluster, Piece, Qcow2, ZERO};
use crate::{Result, without};

impl Qcow2 {
    /// Makes a range within that of one slice of an L2 table read as zeroes; `limit` is the end of the disk. The caller
    /// excludes [`Qcow2::flush`] meanwhile.
    pub fn write_zeroes(&self, offset: u64, length: u64, limit: u64, below: &dyn Below) -> Result<()> {
        // Zeroes that are there already would not be written, and be believed.
        if !without!("qcow2.poisoned.zeroes") {
            self.check_poisoned()?;
        }
        let cluster_size = self.cluster_size();
        let end = offset + length;
        // The last cluster counts as whole if it is covered up to the end of the disk.
        let whole_end = if end >= limit { end.next_multiple_of(cluster_size) } else { end };
        let first = offset.div_ceil(cluster_size);
        let last = whole_end / cluster_size;
        if first >= last {
            return self.zero_part(offset, length, below);
        }
        let head = first * cluster_size - offset;
        if head > 0 {
            self.zero_part(offset, head, below)?;
        }
        self.zero_clusters(first..last, false)?;
        let tail = end.saturating_sub(last * cluster_size);
        if tail > 0 { self.zero_part(last * cluster_size, tail, below) } else { Ok(()) }
    }

    /// Zeroes less than a cluster, which may lie in two.
    ///
    /// With something below, zeroes that show through from there are made explicit too: what lies below may be
    /// merged away later, and then the zeroes must not go with it.
    pub fn zero_part(&self, mut offset: u64, mut length: u64, below: &dyn Below) -> Result<()> {
        self.touch(offset, length)?;
        let cluster_size = self.cluster_size();
        while length > 0 {
            let start = offset - offset % cluster_size;
            let part = length.min(cluster_size - offset % cluster_size);
            let done = match self.map(offset, part, part)?.0 {
                Piece::Zero => true,
                Piece::Unallocated if !self.explicit_zero || without!("qcow2.zero.part") => true,
                Piece::Unallocated if below.is_zero(start, cluster_size)? => self.zero_unallocated(start)?,
                Piece::Unallocated | Piece::Data(_) | Piece::Packed(..) => false,
            };
            if !done {
                self.write(offset, &vec![0; part as usize], below)?;
            }
            offset += part;
            length -= part;
        }
        Ok(())
    }

    /// Makes an unallocated cluster an explicit zero; `false`: somebody has allocated it meanwhile.
    fn zero_unallocated(&self, offset: u64) -> Result<bool> {
        let cluster = offset >> self.header.cluster_bits;
        let mut meta = self.wait_idle(self.lock()?, &(cluster..cluster + 1))?;
        self.prepare(&mut meta)?;
        let entry = self.entry(&mut meta, cluster)?;
        if self.decode(entry)? != Cluster::Unallocated {
            return Ok(false);
        }
        self.set_entry(&mut meta, cluster, ZERO)?;
        Ok(true)
    }

    /// Zeroes whole clusters under one slice of an L2 table; `allocated_only`: those with an entry that is not empty.
    pub fn zero_clusters(&self, clusters: Range<u64>, allocated_only: bool) -> Result<()> {
        let bits = self.header.cluster_bits;
        self.touch(clusters.start << bits, (clusters.end - clusters.start) << bits)?;
        let mut meta = self.wait_idle(self.lock()?, &clusters)?;
        let meta = &mut *meta;
        self.prepare(meta)?;
        let new = if self.explicit_zero && !without!("qcow2.zero.explicit") { ZERO } else { 0 };
        let (index, within) = self.indexes(clusters.start << self.header.cluster_bits);
        let count = (clusters.end - clusters.start) as usize;
        let stays = |old| match old {
            Cluster::Unallocated => new == 0 || allocated_only,
            Cluster::Zero { host, .. } => host == 0,
            Cluster::Data { .. } | Cluster::Compressed(_) => false,
        };
        // A table that a snapshot shares is copied only if something changes.
        let nothing = match self.l2(meta, index)? {
            None => stays(Cluster::Unallocated),
            Some(table) => (within..within + count).all(|at| self.decode(table.get64(at)).is_ok_and(stays)),
        };
        if nothing {
            return Ok(());
        }
        self.ensure_l2(meta, index)?;
        let Some(table) = self.l2(meta, index)? else {
            return Err(self.corrupt("an L2 table vanished from the cache"));
        };
        let mut entries: Vec<u64> = (within..within + count).map(|at| table.get64(at)).collect();
        // First all that can fail, then all changes.
        let mut freed = Vec::new();
        let mut changed: Option<Range<usize>> = None;
        let writer = self.writer(&mut meta.writer)?;
        for (at, entry) in entries.iter_mut().enumerate() {
            let old = self.decode(*entry)?;
            if stays(old) {
                continue;
            }
            self.check_given(writer, old)?;
            freed.push(old);
            *entry = new;
            changed = Some(changed.map_or(at, |range| range.start)..at + 1);
        }
        let Some(changed) = changed else { return Ok(()) };
        let bytes: Vec<u8> = entries[changed.clone()].iter().flat_map(|entry| entry.to_be_bytes()).collect();
        if !meta.l2.set(index, (within + changed.start) * 8, &bytes) {
            return Err(self.corrupt("an L2 table vanished from the cache"));
        }
        for old in freed {
            self.give_up(writer, old);
        }
        Ok(())
    }
}
