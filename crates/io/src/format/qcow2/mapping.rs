//! An open image: from guest offsets to host offsets (section "Cluster mapping").

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use super::compressed::{Packed, Unpacker};
use super::header::{Header, be64, corrupt, unsupported};
use super::packed::Packer;
use super::refcount::Writer;
use super::table::{Cache, SECTOR, Sectors, Table};
use crate::{Device, Error, ErrorKind, Result};

/// Bits 9 to 55 of table entries.
pub(super) const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// Bit 63: the refcount is exactly one.
pub(super) const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
/// Bit 0 of a standard entry: reads as zeroes.
pub(super) const ZERO: u64 = 1;

/// What lies below the image that is written, for copy on write.
pub(crate) trait Below {
    /// Fills the buffer with what the layers below show there; zeroes beyond their end.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()>;
    /// Whether that is known to be all zeroes without reading it.
    fn is_zero(&self, offset: u64, length: u64) -> Result<bool>;
}

/// What a guest range is made of, in this image alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// At that offset of the device.
    Data(u64),
    Zero,
    Unallocated,
    /// One compressed cluster, that many bytes into it.
    Packed(Packed, u64),
}

/// A decoded L2 entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cluster {
    Unallocated,
    /// Reads as zeroes; the cluster that is kept for it, if any.
    Zero {
        host: u64,
        copied: bool,
    },
    Data {
        host: u64,
        copied: bool,
    },
    Compressed(Packed),
}

/// The tables of an open image, under one lock.
#[derive(Debug)]
pub(super) struct Meta {
    /// Virtual size in bytes.
    pub size: u64,
    pub l1: Vec<u64>,
    pub l1_offset: u64,
    /// L1 was moved to `l1_offset`, but the header does not say so yet.
    pub l1_moved: bool,
    pub l1_dirty: Sectors,
    /// L2 tables by their index in L1.
    pub l2: Cache,
    /// Present if the image was opened for writing.
    pub writer: Option<Writer>,
}

/// An open qcow2 image.
#[derive(Debug)]
pub(crate) struct Qcow2 {
    pub(super) device: Arc<dyn Device>,
    pub(super) header: Header,
    pub(super) meta: Mutex<Meta>,
    pub(super) unpacker: Unpacker,
    pub(super) packer: Packer,
    /// Woken when clusters stop being busy.
    pub(super) idle: Condvar,
    /// The device's length when it was last asked; it only grows while we have it open.
    known_length: AtomicU64,
    /// A flush failed half way: what is on the device is safe, what is in memory is not.
    pub(super) poisoned: AtomicBool,
    /// Zeroes must be explicit, because something may show through from below.
    pub(super) explicit_zero: bool,
}

impl Qcow2 {
    /// Opens the image; `budget` is the number of bytes that its cached tables may take.
    pub fn open(device: Arc<dyn Device>, writable: bool, has_below: bool, budget: u64) -> Result<Qcow2> {
        let header = Header::read(&*device)?;
        let refuse = |message| Err(unsupported(&*device, message));
        if header.encrypted {
            return refuse("encrypted image");
        }
        if header.data_file {
            return refuse("external data file");
        }
        if header.extended_l2 {
            return refuse("extended L2 entries (subclusters)");
        }
        let length = device.len()?;
        let mut bytes = vec![0; (header.l1_entries * 8) as usize];
        device.read_at(header.l1_offset, &mut bytes)?;
        let l1: Vec<u64> = bytes.chunks_exact(8).filter_map(|entry| be64(entry, 0)).collect();
        drop(bytes);
        let tables = ((budget >> header.cluster_bits) as usize).max(8);
        let writer =
            if writable { Some(Writer::open(&*device, &header, &l1, length, tables)?) } else { None };
        Ok(Qcow2 {
            explicit_zero: has_below || header.backing.is_some(),
            meta: Mutex::new(Meta {
                size: header.size,
                l1,
                l1_offset: header.l1_offset,
                l1_moved: false,
                l1_dirty: Sectors::default(),
                l2: Cache::new(tables),
                writer,
            }),
            unpacker: Unpacker::new(budget, header.cluster_size()),
            packer: Packer::default(),
            device,
            header,
            idle: Condvar::new(),
            known_length: AtomicU64::new(length),
            poisoned: AtomicBool::new(false),
        })
    }

    /// Virtual size in bytes.
    pub fn size(&self) -> Result<u64> {
        Ok(self.lock()?.size)
    }

    pub fn cluster_size(&self) -> u64 {
        self.header.cluster_size()
    }

    /// Guest bytes under one L2 table.
    pub fn coverage(&self) -> u64 {
        self.cluster_size() * self.header.l2_entries()
    }

    pub(super) fn corrupt(&self, message: &'static str) -> Error {
        corrupt(&*self.device, message)
    }

    pub(super) fn lock(&self) -> Result<MutexGuard<'_, Meta>> {
        self.meta.lock().map_err(|_| {
            Error::new(ErrorKind::Poisoned, "a thread panicked while it changed the image")
                .with_path(self.device.name())
        })
    }

    /// Whether the range starts within the device; asks for its length again only if it seems not to.
    fn is_inside(&self, offset: u64, length: u64) -> Result<bool> {
        let Some(end) = offset.checked_add(length) else { return Ok(false) };
        if end <= self.known_length.load(Ordering::Relaxed) {
            return Ok(true);
        }
        let now = self.device.len()?;
        self.known_length.store(now, Ordering::Relaxed);
        Ok(end <= now)
    }

    /// The index into L1 and into L2 of a guest offset.
    pub(super) fn indexes(&self, offset: u64) -> (u64, usize) {
        let cluster = offset >> self.header.cluster_bits;
        let entries = self.header.l2_entries();
        (cluster / entries, (cluster % entries) as usize)
    }

    /// The L2 table with that number; `None` if there is none.
    pub(super) fn l2<'a>(&self, meta: &'a mut Meta, index: u64) -> Result<Option<&'a Table>> {
        let Some(entry) = meta.l1.get(index as usize) else {
            return Err(self.corrupt("offset beyond the L1 table"));
        };
        let offset = entry & OFFSET_MASK;
        if offset == 0 {
            return Ok(None);
        }
        if !meta.l2.contains(index) {
            let length = self.cluster_size();
            if !offset.is_multiple_of(length) {
                return Err(self
                    .corrupt("an L2 table is not aligned to a cluster")
                    .with_range(offset, length));
            }
            if !self.is_inside(offset, length)? {
                return Err(self.corrupt("an L2 table lies outside the file").with_range(offset, length));
            }
            meta.l2.insert(index, Table::read(&*self.device, offset, length as usize)?);
        }
        Ok(meta.l2.get(index))
    }

    pub(super) fn decode(&self, entry: u64) -> Result<Cluster> {
        if entry & COMPRESSED != 0 {
            return Ok(Cluster::Compressed(Packed::decode(entry, self.header.cluster_bits)));
        }
        let host = entry & OFFSET_MASK;
        let copied = entry & COPIED != 0;
        if !host.is_multiple_of(self.cluster_size()) {
            return Err(self.corrupt("a cluster is not aligned").with_range(host, self.cluster_size()));
        }
        if entry & ZERO != 0 {
            if self.header.version < 3 {
                return Err(self.corrupt("a zero cluster in a version 2 image"));
            }
            return Ok(Cluster::Zero { host, copied });
        }
        if host == 0 {
            return Ok(Cluster::Unallocated);
        }
        Ok(Cluster::Data { host, copied })
    }

    /// The first piece at `offset`, at most `length` bytes (not 0, within the virtual size).
    pub fn map(&self, offset: u64, length: u64) -> Result<(Piece, u64)> {
        let mut meta = self.lock()?;
        let (index, within) = self.indexes(offset);
        let cluster_size = self.cluster_size();
        let Some(table) = self.l2(&mut meta, index)? else {
            let coverage = self.coverage();
            let mut end = (index + 1) * coverage;
            let mut next = index as usize + 1;
            while end - offset < length && meta.l1.get(next).is_some_and(|entry| entry & OFFSET_MASK == 0) {
                end += coverage;
                next += 1;
            }
            return Ok((Piece::Unallocated, length.min(end - offset)));
        };
        let skip = offset % cluster_size;
        let piece = |cluster| match cluster {
            Cluster::Unallocated => Piece::Unallocated,
            Cluster::Zero { .. } => Piece::Zero,
            Cluster::Data { host, .. } => Piece::Data(host),
            Cluster::Compressed(packed) => Piece::Packed(packed, skip),
        };
        let first = piece(self.decode(table.get64(within))?);
        let mut have = cluster_size - skip;
        if let Piece::Packed(..) = first {
            return Ok((first, have.min(length)));
        }
        let mut clusters = 1;
        for at in within + 1..self.header.l2_entries() as usize {
            if have >= length {
                break;
            }
            // A bad entry further on is met, and reported, when it is its turn.
            let Ok(next) = self.decode(table.get64(at)) else { break };
            let same = match (first, piece(next)) {
                (Piece::Data(host), Piece::Data(next)) => {
                    host.checked_add(clusters * cluster_size) == Some(next)
                }
                (first, next) => first == next,
            };
            if !same {
                break;
            }
            have += cluster_size;
            clusters += 1;
        }
        let length = have.min(length);
        if let Piece::Data(host) = first {
            // The last cluster may be cut short by the end of the file.
            if !self.is_inside(host + (clusters - 1) * cluster_size, 1)? {
                return Err(self.corrupt("a cluster lies outside the file").with_range(offset, length));
            }
            return Ok((Piece::Data(host + skip), length));
        }
        Ok((first, length))
    }

    /// Reads data that [`Qcow2::map`] found; a last cluster that the file cuts short reads as zeroes there.
    pub fn read_data(&self, host: u64, buffer: &mut [u8]) -> Result<()> {
        match self.device.read_at(host, buffer) {
            Err(error) if error.kind() == ErrorKind::ShortRead => {
                let length = self.device.len()?;
                let end = host.saturating_add(buffer.len() as u64);
                // More than a cluster short: the file shrank.
                if length.next_multiple_of(self.cluster_size()) < end {
                    return Err(error);
                }
                let have = (length.saturating_sub(host) as usize).min(buffer.len());
                let (now, rest) = buffer.split_at_mut(have);
                rest.fill(0);
                self.device.read_at(host, now)
            }
            other => other,
        }
    }

    /// The first sector of the file, for rewriting fields of the header in one piece.
    pub(super) fn rewrite_header(&self, change: impl FnOnce(&mut [u8; SECTOR])) -> Result<()> {
        let mut sector = [0; SECTOR];
        self.device.read_at(0, &mut sector)?;
        change(&mut sector);
        self.device.write_at(0, &sector)?;
        self.device.flush()
    }
}
