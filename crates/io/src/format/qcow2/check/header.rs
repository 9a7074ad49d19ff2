//! The header as the checker needs it: read apart from the one that opens images, and as lax as QEMU's check, which
//! looks at tables wherever they lie.

use super::source::Source;
use crate::{Device, Error, ErrorKind, Result};

const MAGIC: u32 = 0x5146_49fb;
const DIRTY: u64 = 1;
const CORRUPT: u64 = 2;
const DATA_FILE: u64 = 4;
const COMPRESSION: u64 = 8;
const EXTENDED_L2: u64 = 16;
const KNOWN: u64 = 31;
const AUTOCLEAR_BITMAPS: u64 = 1;
const AUTOCLEAR_RAW_DATA: u64 = 2;
/// Where the incompatible features lie.
pub(super) const FEATURES_AT: u64 = 72;

const MAX_L1_BYTES: u64 = 32 << 20;
const MAX_REFTABLE_BYTES: u64 = 8 << 20;
const MAX_BITMAPS: u32 = 65535;
const MAX_DIRECTORY: u64 = 64 << 20;

/// Where the directory of the bitmaps lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Directory {
    pub count: u32,
    pub offset: u64,
    pub length: u64,
}

/// The fields, with sizes within QEMU's limits; offsets may lie anywhere.
#[derive(Clone, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "the format has that many flags")]
pub(super) struct Header {
    pub version: u32,
    pub cluster_bits: u32,
    pub size: u64,
    pub l1_entries: u64,
    pub l1_offset: u64,
    pub reftable_offset: u64,
    pub reftable_clusters: u64,
    pub snapshots: u32,
    pub snapshots_offset: u64,
    pub refcount_order: u32,
    pub incompatible: u64,
    pub bitmaps: Option<Directory>,
}

impl Header {
    pub fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Refcounts in one block.
    pub fn per_block(&self) -> u64 {
        (self.cluster_size() * 8) >> self.refcount_order
    }

    /// The largest refcount that fits.
    pub fn refcount_max(&self) -> u64 {
        u64::MAX >> (64 - (1u32 << self.refcount_order))
    }

    pub fn dirty(&self) -> bool {
        self.incompatible & DIRTY != 0
    }

    pub fn corrupt(&self) -> bool {
        self.incompatible & CORRUPT != 0
    }

    /// The features without the marks of an image that needs repair.
    pub fn features_when_repaired(&self) -> u64 {
        self.incompatible & !(DIRTY | CORRUPT)
    }

    pub fn data_file(&self) -> bool {
        self.incompatible & DATA_FILE != 0
    }

    pub fn extended_l2(&self) -> bool {
        self.incompatible & EXTENDED_L2 != 0
    }

    pub fn read(source: &Source<'_>) -> Result<Header> {
        let device = source.device();
        let corrupt = |message: &'static str| Err(error(device, ErrorKind::Corrupt, message));
        let unsupported = |message: &'static str| Err(error(device, ErrorKind::Unsupported, message));
        let mut fixed = [0; 112];
        source.read(0, &mut fixed)?;
        let (u32_at, u64_at) = (|at| be32(&fixed, at), |at| be64(&fixed, at));
        if u32_at(0) != MAGIC {
            return corrupt("not a qcow2 image");
        }
        let version = u32_at(4);
        if !matches!(version, 2 | 3) {
            return unsupported("qcow2 version other than 2 and 3");
        }
        let cluster_bits = u32_at(20);
        if !(9..=21).contains(&cluster_bits) {
            return corrupt("cluster size outside 512 bytes to 2 MiB");
        }
        let cluster_size = 1u64 << cluster_bits;
        let (mut incompatible, mut autoclear, mut refcount_order, mut length) = (0, 0, 4, 72);
        if version == 3 {
            (incompatible, autoclear) = (u64_at(FEATURES_AT as usize), u64_at(88));
            (refcount_order, length) = (u32_at(96), u64::from(u32_at(100)));
            if length < 104 {
                return corrupt("impossible header length");
            }
        }
        if length > cluster_size {
            return corrupt("impossible header length");
        }
        let (name_offset, name_length) = (u64_at(8), u64::from(u32_at(16)));
        if name_offset > cluster_size {
            return corrupt("the backing name lies outside the first cluster");
        }
        let compression = if length > 104 { fixed[104] } else { 0 };
        match (compression, incompatible & COMPRESSION != 0) {
            (2.., _) => return unsupported("unknown compression type"),
            (0, false) | (1, true) => {}
            _ => return corrupt("compression type and its feature bit contradict each other"),
        }
        if incompatible & !KNOWN != 0 {
            return unsupported("unknown incompatible features");
        }
        if incompatible & EXTENDED_L2 != 0 && cluster_bits < 14 {
            return corrupt("clusters too small for subclusters");
        }
        if refcount_order > 6 {
            return corrupt("refcounts wider than 64 bits");
        }
        match u32_at(32) {
            0 => {}
            1 | 2 => return unsupported("encrypted images are not checked"),
            _ => return corrupt("unknown encryption method"),
        }
        if autoclear & AUTOCLEAR_RAW_DATA != 0 && incompatible & DATA_FILE == 0 {
            return corrupt("a raw data file without a data file");
        }
        if name_offset != 0 && name_length > (cluster_size - name_offset).min(1023) {
            return corrupt("the backing name is too long");
        }
        let mut header = Header {
            version,
            cluster_bits,
            size: u64_at(24),
            l1_entries: u64::from(u32_at(36)),
            l1_offset: u64_at(40),
            reftable_offset: u64_at(48),
            reftable_clusters: u64::from(u32_at(56)),
            snapshots: u32_at(60),
            snapshots_offset: u64_at(64),
            refcount_order,
            incompatible,
            bitmaps: None,
        };
        header.check_tables(device)?;
        let end = if name_offset == 0 { cluster_size } else { name_offset };
        header.read_extensions(source, length, end, autoclear & AUTOCLEAR_BITMAPS != 0)?;
        Ok(header)
    }

    fn check_tables(&self, device: &dyn Device) -> Result<()> {
        let corrupt = |message: &'static str| Err(error(device, ErrorKind::Corrupt, message));
        let unsupported = |message: &'static str| Err(error(device, ErrorKind::Unsupported, message));
        let cluster_size = self.cluster_size();
        let placed = |offset: u64, bytes: u64| {
            offset.is_multiple_of(cluster_size) && offset <= i64::MAX as u64 - bytes
        };
        if self.reftable_clusters * cluster_size > MAX_REFTABLE_BYTES {
            return unsupported("refcount table over 8 MiB");
        }
        if !placed(self.reftable_offset, self.reftable_clusters * cluster_size) {
            return corrupt("the refcount table is not aligned to a cluster");
        }
        if self.l1_entries * 8 > MAX_L1_BYTES {
            return unsupported("L1 table over 32 MiB");
        }
        if !placed(self.l1_offset, self.l1_entries * 8) {
            return corrupt("the L1 table is not aligned to a cluster");
        }
        let coverage = cluster_size * (cluster_size / if self.extended_l2() { 16 } else { 8 });
        if self.l1_entries < self.size.div_ceil(coverage) {
            return corrupt("the L1 table is too small for the virtual size");
        }
        Ok(())
    }

    fn read_extensions(
        &mut self,
        source: &Source<'_>,
        mut at: u64,
        end: u64,
        bitmaps_valid: bool,
    ) -> Result<()> {
        let corrupt = |message: &'static str| Err(error(source.device(), ErrorKind::Corrupt, message));
        while at < end {
            let mut head = [0; 8];
            source.read(at, &mut head)?;
            let (kind, length) = (be32(&head, 0), u64::from(be32(&head, 4)));
            at += 8;
            if at > end || length > end - at {
                return corrupt("a header extension is too long");
            }
            match kind {
                // The end.
                0 => break,
                // The backing format.
                0xe279_2aca if length >= 16 => return corrupt("the backing format's name is too long"),
                // Encryption.
                0x0537_be77 => return corrupt("encryption without an encryption method"),
                // Bitmaps.
                0x2385_2875 => {
                    if length != 24 {
                        return corrupt("a bitmaps extension of another length");
                    }
                    if !bitmaps_valid {
                        at += length;
                        continue;
                    }
                    let mut fields = [0; 24];
                    source.read(at, &mut fields)?;
                    let found = Directory {
                        count: be32(&fields, 0),
                        length: be64(&fields, 8),
                        offset: be64(&fields, 16),
                    };
                    if be32(&fields, 4) != 0
                        || !(1..=MAX_BITMAPS).contains(&found.count)
                        || !found.offset.is_multiple_of(self.cluster_size())
                        || found.length > MAX_DIRECTORY
                    {
                        return corrupt("an impossible bitmaps extension");
                    }
                    self.bitmaps = Some(found);
                }
                _ => {}
            }
            at += length.next_multiple_of(8);
        }
        Ok(())
    }
}

fn error(device: &dyn Device, kind: ErrorKind, message: &'static str) -> Error {
    Error::new(kind, message).with_path(device.name())
}

/// Big-endian numbers of a slice that is known to be long enough; 0 beyond its end.
pub(super) fn be32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

pub(super) fn be64(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u64::from_be_bytes(*bytes))
}
