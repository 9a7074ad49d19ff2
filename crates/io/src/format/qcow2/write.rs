//! Writing: in place where it can be, otherwise into new clusters.

use std::ops::Range;
use std::sync::MutexGuard;

use super::alloc::Extent;
use super::mapping::{Below, COPIED, Cluster, Meta, OFFSET_MASK, Qcow2};
use super::refcount::Writer;
use super::table::slice_length;
use crate::{Error, ErrorKind, Result, without};

/// What [`Qcow2::write_some`] decided under the lock.
pub(super) enum Step {
    /// Overwrite that many bytes at that host offset.
    InPlace { host: u64, length: u64 },
    /// Fill these clusters and put them into the map; `owned` ones were there before.
    Allocate { extent: Extent, old: Cluster, owned: bool },
}

/// New clusters, and what the map needs when they are filled.
#[derive(Debug)]
pub(super) struct Allocated {
    /// The first guest cluster.
    pub first: u64,
    pub extent: Extent,
    /// What the first one was before.
    pub old: Cluster,
    pub owned: bool,
}

impl Qcow2 {
    pub(super) fn writer<'a>(&self, writer: &'a mut Option<Writer>) -> Result<&'a mut Writer> {
        writer.as_mut().ok_or_else(|| {
            Error::new(ErrorKind::ReadOnly, "opened for reading only").with_path(self.device.name())
        })
    }

    /// To be called before anything of the image changes.
    pub(super) fn prepare(&self, meta: &mut Meta) -> Result<()> {
        self.check_poisoned()?;
        let writer = self.writer(&mut meta.writer)?;
        if !writer.prepared && !without!("qcow2.autoclear") {
            // Whoever knows these bits must learn that we changed the image without knowing them.
            let autoclear = writer.autoclear;
            self.rewrite_header(|sector| sector[88..96].copy_from_slice(&autoclear.to_be_bytes()))?;
            writer.prepared = true;
        }
        Ok(())
    }

    /// Waits until nobody allocates in these guest clusters.
    pub(super) fn wait_idle<'a>(
        &'a self,
        mut meta: MutexGuard<'a, Meta>,
        clusters: &Range<u64>,
    ) -> Result<MutexGuard<'a, Meta>> {
        while meta
            .writer
            .as_ref()
            .is_some_and(|writer| writer.busy.iter().any(|cluster| clusters.contains(cluster)))
            && !without!("qcow2.lock.busy")
        {
            meta = self.idle.wait(meta).map_err(|_| {
                Error::new(ErrorKind::Poisoned, "a thread panicked while it changed the image")
                    .with_path(self.device.name())
            })?;
        }
        Ok(meta)
    }

    /// Makes sure that the L2 table of a slice exists, that no snapshot shares it, and that the slice is in the cache.
    pub(super) fn ensure_l2(&self, meta: &mut Meta, slice: u64) -> Result<()> {
        let table = slice / self.slices();
        let entry = meta.l1.get(table as usize).copied().unwrap_or(0);
        let exists = self.l2(meta, slice)?.is_some();
        if exists && (entry & COPIED != 0 || without!("qcow2.compare.table-shared")) {
            return Ok(());
        }
        let writer = self.writer(&mut meta.writer)?;
        let old = entry & OFFSET_MASK;
        let old_cluster = old >> self.header.cluster_bits;
        // What an L2 table that is shared refers to is shared as well.
        let marked = exists && self.refcount(writer, old_cluster)? < 2;
        let extent = self.reserve_metadata(writer)?;
        let offset = extent.start << self.header.cluster_bits;
        if exists {
            // Nothing refers to the copy: it is written at once, as data is.
            if let Err(error) = self.copy_l2(old, offset, marked) {
                writer.pending.push(extent.start);
                return Err(error);
            }
            writer.pending.push(old_cluster);
            meta.l2.forget(table);
        } else {
            meta.l2.add(table, offset, extent.fresh);
        }
        let entry = meta.l1.get_mut(table as usize);
        *entry.ok_or_else(|| self.corrupt("offset beyond the L1 table"))? = offset | COPIED;
        meta.l1_dirty.mark(table as usize * 8);
        self.l2(meta, slice).map(|_| ())
    }

    /// Copies an L2 table; `marked`: entries that are marked as the only ones stay so.
    fn copy_l2(&self, from: u64, to: u64, marked: bool) -> Result<()> {
        let mut bytes = vec![0; slice_length(self.cluster_size()) as usize];
        for at in (0..self.cluster_size()).step_by(bytes.len()) {
            self.device.read_at(from + at, &mut bytes)?;
            if !marked {
                bytes.iter_mut().step_by(8).for_each(|first| *first &= 0x7f);
            }
            self.device.write_at(to + at, &bytes)?;
        }
        Ok(())
    }

    pub(super) fn entry(&self, meta: &mut Meta, cluster: u64) -> Result<u64> {
        let (index, within) = self.indexes(cluster << self.header.cluster_bits);
        Ok(self.l2(meta, index)?.map_or(0, |table| table.get64(within)))
    }

    pub(super) fn set_entry(&self, meta: &mut Meta, cluster: u64, entry: u64) -> Result<()> {
        let (index, within) = self.indexes(cluster << self.header.cluster_bits);
        self.ensure_l2(meta, index)?;
        if meta.l2.set(index, within * 8, &entry.to_be_bytes()) {
            Ok(())
        } else {
            Err(self.corrupt("an L2 table vanished from the cache"))
        }
    }

    /// Whether a cluster that the map names may be written in place.
    fn check_owned(&self, writer: &Writer, host: u64) -> Result<()> {
        let cluster = host >> self.header.cluster_bits;
        if cluster >= writer.high_water || writer.metadata.contains(&cluster) {
            return Err(self
                .corrupt("a data cluster overlaps the metadata or has no refcount")
                .with_range(host, self.cluster_size()));
        }
        Ok(())
    }

    /// Puts what an entry refers to on the list of what is given up.
    pub(super) fn give_up(&self, writer: &mut Writer, old: Cluster) {
        match old {
            Cluster::Data { host, .. } | Cluster::Zero { host, .. } if host != 0 => {
                writer.pending.push(host >> self.header.cluster_bits);
            }
            Cluster::Compressed(packed) => {
                writer.pending_packed.extend(packed.clusters(self.header.cluster_bits));
            }
            Cluster::Unallocated | Cluster::Data { .. } | Cluster::Zero { .. } => {}
        }
    }

    /// Whether what an entry refers to may be given up.
    pub(super) fn check_given(&self, writer: &Writer, old: Cluster) -> Result<()> {
        match old {
            Cluster::Data { host, .. } | Cluster::Zero { host, .. } if host != 0 => {
                self.check_owned(writer, host)
            }
            Cluster::Compressed(packed) => packed
                .clusters(self.header.cluster_bits)
                .try_for_each(|cluster| self.check_owned(writer, cluster << self.header.cluster_bits)),
            Cluster::Unallocated | Cluster::Data { .. } | Cluster::Zero { .. } => Ok(()),
        }
    }

    /// Writes within the range of one slice of an L2 table. The caller excludes [`Qcow2::flush`] meanwhile.
    pub fn write(&self, mut offset: u64, mut data: &[u8], below: &dyn Below) -> Result<()> {
        self.touch(offset, data.len() as u64)?;
        while !data.is_empty() {
            let done = self.write_some(offset, data, below)?;
            offset += done as u64;
            data = &data[done..];
        }
        Ok(())
    }

    /// Writes the first part that goes the same way; returns its length.
    fn write_some(&self, offset: u64, data: &[u8], below: &dyn Below) -> Result<usize> {
        let cluster_size = self.cluster_size();
        let first = offset >> self.header.cluster_bits;
        let skip = offset % cluster_size;
        let wanted = data.len() as u64;
        match self.decide(first, skip, wanted)? {
            Step::InPlace { host, length } => {
                self.device.write_at(host, &data[..length as usize])?;
                Ok(length as usize)
            }
            Step::Allocate { extent, old, owned } => {
                let host = extent.start << self.header.cluster_bits;
                let length = wanted.min(extent.count * cluster_size - skip);
                let now = &data[..length as usize];
                let written = if length == extent.count * cluster_size {
                    self.device.write_at(host, now)
                } else {
                    self.fill_cluster(first * cluster_size, skip, now, host, extent.fresh, old, below)
                };
                self.finish(first, extent, old, owned, written)?;
                Ok(length as usize)
            }
        }
    }

    /// Decides how the bytes from `skip` within the guest cluster `first` on are written; what is to be
    /// allocated is, and is busy then.
    pub(super) fn decide(&self, first: u64, skip: u64, wanted: u64) -> Result<Step> {
        /// One request of that size at most.
        const MAX_REQUEST: u64 = 64 << 20;
        let cluster_size = self.cluster_size();
        let mut meta = self.wait_idle(self.lock()?, &(first..first + 1))?;
        self.prepare(&mut meta)?;
        let (index, within) = self.indexes(first << self.header.cluster_bits);
        self.ensure_l2(&mut meta, index)?;
        let mut old = self.decode(self.entry(&mut meta, first)?)?;
        if without!("qcow2.compare.shared")
            && let Cluster::Data { copied, .. } = &mut old
        {
            *copied = true;
        }
        let room = self.slice_entries() - within as u64;
        // Clusters that go the same way as the first: at least one.
        let follow = |meta: &mut Meta, limit: u64, same: &dyn Fn(u64, Cluster) -> bool| -> Result<u64> {
            let mut count = 1;
            while count < limit.min(room) {
                if meta.writer.as_ref().is_some_and(|writer| writer.busy.contains(&(first + count))) {
                    break;
                }
                match self.entry(meta, first + count).and_then(|entry| self.decode(entry)) {
                    Ok(next) if same(count, next) => count += 1,
                    _ => break,
                }
            }
            Ok(count)
        };
        match old {
            Cluster::Data { host, copied: true } => {
                let limit = (skip + wanted).div_ceil(cluster_size);
                let count = follow(&mut meta, limit, &|count, next| {
                    next == Cluster::Data { host: host + count * cluster_size, copied: true }
                })?;
                let writer = self.writer(&mut meta.writer)?;
                for cluster in 0..count {
                    self.check_owned(writer, host + cluster * cluster_size)?;
                }
                Ok(Step::InPlace { host: host + skip, length: wanted.min(count * cluster_size - skip) })
            }
            Cluster::Zero { host, copied: true } if host != 0 => {
                let writer = self.writer(&mut meta.writer)?;
                self.check_owned(writer, host)?;
                writer.busy.insert(first);
                let start = host >> self.header.cluster_bits;
                let fresh = without!("qcow2.zero.kept");
                Ok(Step::Allocate { extent: Extent { start, count: 1, fresh }, old, owned: true })
            }
            Cluster::Unallocated | Cluster::Zero { .. } | Cluster::Data { .. } | Cluster::Compressed(_) => {
                let simple =
                    |cluster| matches!(cluster, Cluster::Unallocated | Cluster::Zero { host: 0, .. });
                // Parts of clusters, and those that give up an old one, go one by one.
                let whole = if skip == 0 { wanted.min(MAX_REQUEST) / cluster_size } else { 0 };
                let count = if whole > 1 && simple(old) {
                    follow(&mut meta, whole, &|_, next| simple(next))?
                } else {
                    1
                };
                let writer = self.writer(&mut meta.writer)?;
                self.check_given(writer, old)?;
                let extent = self.reserve(writer, count)?;
                writer.busy.extend(first..first + extent.count);
                Ok(Step::Allocate { extent, old, owned: false })
            }
        }
    }

    /// Fills one new cluster of which only a part is written by the caller.
    #[allow(clippy::too_many_arguments)]
    fn fill_cluster(
        &self,
        guest: u64,
        skip: u64,
        data: &[u8],
        host: u64,
        fresh: bool,
        old: Cluster,
        below: &dyn Below,
    ) -> Result<()> {
        let cluster_size = self.cluster_size();
        let zero = match old {
            Cluster::Unallocated => below.is_zero(guest, cluster_size)?,
            Cluster::Zero { .. } => true,
            Cluster::Data { .. } | Cluster::Compressed(_) => false,
        };
        if zero && fresh {
            return self.device.write_at(host + skip, data);
        }
        let mut buffer = vec![0; cluster_size as usize];
        match old {
            Cluster::Data { host, .. } => self.read_data(host, &mut buffer)?,
            Cluster::Compressed(packed) => self.unpack(packed, &mut buffer)?,
            _ if zero => {}
            _ => below.read(guest, &mut buffer)?,
        }
        buffer[skip as usize..skip as usize + data.len()].copy_from_slice(data);
        self.device.write_at(host, &buffer)
    }

    /// Puts filled clusters into the map, or gives them back if filling failed.
    pub(super) fn finish(
        &self,
        first: u64,
        extent: Extent,
        old: Cluster,
        owned: bool,
        written: Result<()>,
    ) -> Result<()> {
        let mut meta = self.lock()?;
        let mut set = 0;
        let result = written.and_then(|()| {
            for at in 0..extent.count {
                let host = (extent.start + at) << self.header.cluster_bits;
                self.set_entry(&mut meta, first + at, host | COPIED)?;
                set = at + 1;
            }
            Ok(())
        });
        let writer = self.writer(&mut meta.writer)?;
        for cluster in first..first + extent.count {
            writer.busy.remove(&cluster);
        }
        if !owned {
            writer.pending.extend(extent.start + set..extent.start + extent.count);
            // Those of more than one cluster refer to nothing.
            if result.is_ok() {
                self.give_up(writer, old);
            }
        }
        drop(meta);
        self.idle.notify_all();
        result
    }
}
