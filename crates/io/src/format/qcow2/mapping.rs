//! An open image: from guest offsets to host offsets (section "Cluster mapping").

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use super::compressed::{Packed, Unpacker};
use super::header::{Header, corrupt, unsupported};
use super::packed::Packer;
use super::refcount::Writer;
use super::table::{Cache, SECTOR, Sectors, Slice, read_entries, slice_length};
use super::tracking::Tracking;
use crate::{Device, Error, ErrorKind, Result, without};

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
    /// L2 tables by their index in L1, in slices.
    pub l2: Cache,
    /// Present if the image was opened for writing.
    pub writer: Option<Writer>,
}

/// An open qcow2 image.
#[derive(Debug)]
pub(crate) struct Qcow2 {
    pub(super) device: Arc<dyn Device>,
    /// What the guest's data lies on, if not on the device.
    data_file: Option<Arc<dyn Device>>,
    pub(super) header: Header,
    pub(super) meta: Mutex<Meta>,
    pub(super) unpacker: Unpacker,
    pub(super) packer: Packer,
    /// Woken when clusters stop being busy.
    pub(super) idle: Condvar,
    /// The length of what has the data, when it was last asked; it only grows while we have it open.
    known_length: AtomicU64,
    /// A flush failed half way: what is on the device is safe, what is in memory is not.
    pub(super) poisoned: AtomicBool,
    /// Some bitmap must record what is written.
    pub(super) tracks: bool,
    /// Zeroes must be explicit, because something may show through from below.
    pub(super) explicit_zero: bool,
}

impl Qcow2 {
    /// Opens the image; `memory` is the number of bytes that its cached tables and decompressed clusters may take. The
    /// data file is the caller's choice, whatever name the header has.
    pub fn open(
        device: Arc<dyn Device>,
        data_file: Option<Arc<dyn Device>>,
        writable: bool,
        has_below: bool,
        memory: u64,
    ) -> Result<Qcow2> {
        let header = Header::read(&*device)?;
        let refuse = |message| Err(unsupported(&*device, message));
        if header.encrypted {
            return refuse("encrypted image");
        }
        match (header.data_file, data_file.is_some()) {
            (true, false) => return refuse("external data file"),
            (false, true) => {
                let message = "the image has no external data file";
                return Err(Error::new(ErrorKind::InvalidInput, message).with_path(device.name()));
            }
            _ => {}
        }
        if writable && header.data_file {
            return refuse("writing to an image with an external data file");
        }
        if writable && header.extended_l2 {
            return refuse("writing to an image with extended L2 entries (subclusters)");
        }
        let length = device.len()?;
        let l1 = read_entries(&*device, header.l1_offset, header.l1_entries)?;
        // What is read most often gets the larger half.
        let quarter = memory / 4;
        let writer =
            if writable { Some(Writer::open(&*device, &header, &l1, length, quarter)?) } else { None };
        Ok(Qcow2 {
            tracks: writer.as_ref().is_some_and(|w| w.tracking.as_ref().is_some_and(Tracking::records)),
            explicit_zero: has_below || header.backing.is_some(),
            meta: Mutex::new(Meta {
                size: header.size,
                l1,
                l1_offset: header.l1_offset,
                l1_moved: false,
                l1_dirty: Sectors::default(),
                l2: Cache::new(if writable { 2 * quarter } else { 3 * quarter }, header.cluster_size()),
                writer,
            }),
            unpacker: Unpacker::new(quarter, header.cluster_size()),
            packer: Packer::default(),
            known_length: AtomicU64::new(data_file.as_ref().map_or(Ok(length), |data| data.len())?),
            device,
            data_file,
            header,
            idle: Condvar::new(),
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

    /// Guest bytes under one slice of an L2 table.
    pub fn slice_coverage(&self) -> u64 {
        self.cluster_size() * self.slice_entries()
    }

    /// Entries in a slice of an L2 table.
    pub(super) fn slice_entries(&self) -> u64 {
        self.header.l2_entries() * slice_length(self.cluster_size()) / self.cluster_size()
    }

    /// Slices in an L2 table.
    pub(super) fn slices(&self) -> u64 {
        self.cluster_size() / slice_length(self.cluster_size())
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

    /// What the guest's data lies on.
    pub fn data(&self) -> &Arc<dyn Device> {
        self.data_file.as_ref().unwrap_or(&self.device)
    }

    /// Whether the range lies within what has the data; asks for its length again only if it seems not to.
    pub(super) fn is_inside(&self, offset: u64, length: u64) -> Result<bool> {
        let Some(end) = offset.checked_add(length) else { return Ok(false) };
        if end <= self.known_length.load(Ordering::Relaxed) {
            return Ok(true);
        }
        let now = self.data().len()?;
        self.known_length.store(now, Ordering::Relaxed);
        Ok(end <= now)
    }

    /// The number of the L2 slice of a guest offset, and the index into it.
    pub(super) fn indexes(&self, offset: u64) -> (u64, usize) {
        let cluster = offset >> self.header.cluster_bits;
        let entries = self.slice_entries();
        (cluster / entries, (cluster % entries) as usize)
    }

    /// The slice of an L2 table with that number; `None` if there is no table.
    pub(super) fn l2<'a>(&self, meta: &'a mut Meta, slice: u64) -> Result<Option<&'a Slice>> {
        self.l2_ahead(meta, slice, 1)
    }

    /// The same for who goes on to so many slices, this one included.
    fn l2_ahead<'a>(&self, meta: &'a mut Meta, slice: u64, wanted: u64) -> Result<Option<&'a Slice>> {
        let table = slice / self.slices();
        let Some(entry) = meta.l1.get(table as usize) else {
            return Err(self.corrupt("offset beyond the L1 table"));
        };
        let offset = entry & OFFSET_MASK;
        if offset == 0 {
            return Ok(None);
        }
        if !meta.l2.contains(slice) && !meta.l2.is_new(table) {
            let length = self.cluster_size();
            if !offset.is_multiple_of(length) {
                return Err(self
                    .corrupt("an L2 table is not aligned to a cluster")
                    .with_range(offset, length));
            }
            let is_inside = match self.data_file {
                None => self.is_inside(offset, length)?,
                Some(_) => offset
                    .checked_add(length)
                    .is_some_and(|end| self.device.len().is_ok_and(|now| end <= now)),
            };
            if !is_inside {
                return Err(self.corrupt("an L2 table lies outside the file").with_range(offset, length));
            }
        }
        meta.l2.load(&*self.device, slice, offset, wanted)
    }

    pub(super) fn decode(&self, entry: u64) -> Result<Cluster> {
        if entry & COMPRESSED != 0 {
            if self.data_file.is_some() {
                return Err(self.corrupt("a compressed cluster, but an external data file"));
            }
            return Ok(Cluster::Compressed(Packed::decode(entry, self.header.cluster_bits)));
        }
        let host = entry & OFFSET_MASK;
        let copied = entry & COPIED != 0;
        if !host.is_multiple_of(self.cluster_size()) {
            return Err(self.corrupt("a cluster is not aligned").with_range(host, self.cluster_size()));
        }
        if entry & ZERO != 0 && !self.header.extended_l2 {
            if self.header.version < 3 {
                return Err(self.corrupt("a zero cluster in a version 2 image"));
            }
            return Ok(Cluster::Zero { host, copied });
        }
        // In a data file a cluster may lie at 0.
        if host == 0 && !(copied && self.data_file.is_some()) {
            return Ok(Cluster::Unallocated);
        }
        Ok(Cluster::Data { host, copied })
    }

    /// Pieces of a cluster that may each be something else: subclusters, or the one that is the cluster.
    fn grains(&self) -> u64 {
        if self.header.extended_l2 { 32 } else { 1 }
    }

    /// What a table says of one grain, counted from the slice's begin.
    fn grain(&self, table: &Slice, at: u64) -> Result<Piece> {
        let index = (at / self.grains()) as usize;
        if !self.header.extended_l2 {
            return Ok(match self.decode(table.get64(index))? {
                Cluster::Unallocated => Piece::Unallocated,
                Cluster::Zero { .. } => Piece::Zero,
                Cluster::Data { host, .. } => Piece::Data(host),
                Cluster::Compressed(packed) => Piece::Packed(packed, 0),
            });
        }
        let (cluster, bitmap) = (self.decode(table.get64(2 * index))?, table.get64(2 * index + 1));
        let (allocated, zero) = (bitmap >> (at % 32) & 1 == 1, bitmap >> (32 + at % 32) & 1 == 1);
        match cluster {
            Cluster::Compressed(packed) if bitmap == 0 => Ok(Piece::Packed(packed, 0)),
            Cluster::Compressed(_) => Err(self.corrupt("a compressed cluster with subclusters")),
            _ if allocated && zero => Err(self.corrupt("a subcluster is both allocated and zero")),
            _ if zero => Ok(Piece::Zero),
            Cluster::Data { host, .. } if allocated => {
                Ok(Piece::Data(host + at % 32 * (self.cluster_size() / 32)))
            }
            _ if allocated => Err(self.corrupt("a subcluster without its cluster")),
            _ => Ok(Piece::Unallocated),
        }
    }

    /// The first piece at `offset`, at most `length` bytes (not 0, within the virtual size), of a map of `all` bytes.
    pub fn map(&self, offset: u64, length: u64, all: u64) -> Result<(Piece, u64)> {
        let mut meta = self.lock()?;
        let (slice, within) = self.indexes(offset);
        let cluster_size = self.cluster_size();
        let wanted = 1 + all / self.slice_coverage();
        let Some(table) = self.l2_ahead(&mut meta, slice, wanted)? else {
            let coverage = self.coverage();
            let mut next = (slice / self.slices()) as usize + 1;
            let mut end = next as u64 * coverage;
            while end - offset < length && meta.l1.get(next).is_some_and(|entry| entry & OFFSET_MASK == 0) {
                end += coverage;
                next += 1;
            }
            return Ok((Piece::Unallocated, length.min(end - offset)));
        };
        let grains = self.grains();
        let grain_size = cluster_size / grains;
        let (skip, start) =
            (offset % grain_size, within as u64 * grains + offset % cluster_size / grain_size);
        let first = self.grain(table, start)?;
        if let Piece::Packed(packed, _) = first {
            let skip = offset % cluster_size;
            return Ok((Piece::Packed(packed, skip), (cluster_size - skip).min(length)));
        }
        let mut have = grain_size - skip;
        let mut count = 1;
        for at in start + 1..self.slice_entries() * grains {
            if have >= length {
                break;
            }
            // A bad entry further on is met, and reported, when it is its turn.
            let Ok(next) = self.grain(table, at) else { break };
            let same = match (first, next) {
                (Piece::Data(host), Piece::Data(next)) => host.checked_add(count * grain_size) == Some(next),
                (first, next) => first == next,
            };
            if !same {
                break;
            }
            have += grain_size;
            count += 1;
        }
        let length = have.min(length);
        if let Piece::Data(host) = first {
            // The last cluster may be cut short by the end of the file.
            let last = host + (count - 1) * grain_size;
            if !self.is_inside(last - last % cluster_size, 1)? {
                return Err(self.corrupt("a cluster lies outside the file").with_range(offset, length));
            }
            return Ok((Piece::Data(host + skip), length));
        }
        Ok((first, length))
    }

    /// Reads data that [`Qcow2::map`] found; a last cluster that the file cuts short reads as zeroes there.
    pub fn read_data(&self, host: u64, buffer: &mut [u8]) -> Result<()> {
        let wanted = buffer.len() as u64;
        if self.is_inside(host, wanted)? {
            return self.data().read_at(host, buffer);
        }
        let length = self.data().len()?;
        // More than a cluster short: the file shrank.
        if length.next_multiple_of(self.cluster_size()) < host.saturating_add(wanted) {
            return Err(Error::new(ErrorKind::ShortRead, "the file became shorter")
                .with_path(self.data().name())
                .with_range(host, wanted));
        }
        let have = length.saturating_sub(host).min(wanted) as usize;
        let (now, rest) = buffer.split_at_mut(have);
        rest.fill(0);
        if now.is_empty() { Ok(()) } else { self.data().read_at(host, now) }
    }

    /// The first sector of the file, for rewriting fields of the header in one piece.
    pub(super) fn rewrite_header(&self, change: impl FnOnce(&mut [u8; SECTOR])) -> Result<()> {
        let mut sector = [0; SECTOR];
        self.device.read_at(0, &mut sector)?;
        change(&mut sector);
        self.device.write_at(0, &sector)?;
        if without!("qcow2.flush.header") {
            return Ok(());
        }
        self.device.flush()
    }
}
