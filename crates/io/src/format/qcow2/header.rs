//! The header and its extensions (sections "Header" and "Header extensions" of the specification).

use std::borrow::Cow;

use crate::{Device, Error, ErrorKind, Result};

/// "QFI\xfb".
pub(super) const MAGIC: u32 = 0x5146_49fb;
/// Type of the extension that names the backing format.
pub(super) const EXT_BACKING_FORMAT: u32 = 0xe279_2aca;
pub(super) const EXT_BITMAPS: u32 = 0x2385_2875;
const EXT_DATA_FILE: u32 = 0x4441_5441;
pub(super) const EXT_FEATURE_NAMES: u32 = 0x6803_f857;
pub(super) const EXT_END: u32 = 0;

const INCOMPATIBLE_DIRTY: u64 = 1;
const INCOMPATIBLE_CORRUPT: u64 = 2;
const INCOMPATIBLE_DATA_FILE: u64 = 4;
pub(super) const INCOMPATIBLE_COMPRESSION: u64 = 8;
const INCOMPATIBLE_EXTENDED_L2: u64 = 16;
const INCOMPATIBLE_KNOWN: u64 = 31;
pub(super) const AUTOCLEAR_BITMAPS: u64 = 1;

/// QEMU's limits: larger tables are refused.
pub(super) const MAX_L1_BYTES: u64 = 32 << 20;
pub(super) const MAX_REFTABLE_BYTES: u64 = 8 << 20;
const MAX_SNAPSHOTS: u32 = 65536;
const MAX_NAME: u32 = 1023;

/// The bitmaps extension: how many, and where their directory lies. Not checked yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extension {
    pub count: u32,
    pub directory: u64,
    pub length: u64,
    /// Where the header says where the directory lies.
    pub place: u64,
}

/// A validated header: every offset is aligned and lies within the device, every size is within QEMU's limits.
#[derive(Clone, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "the format has that many flags")]
pub(super) struct Header {
    pub version: u32,
    pub cluster_bits: u32,
    /// Virtual size in bytes.
    pub size: u64,
    /// Entries of the active L1 table.
    pub l1_entries: u64,
    pub l1_offset: u64,
    pub reftable_offset: u64,
    pub reftable_clusters: u64,
    pub snapshots: u32,
    pub snapshots_offset: u64,
    pub dirty: bool,
    pub corrupt: bool,
    pub data_file: bool,
    pub extended_l2: bool,
    pub autoclear: u64,
    pub refcount_bits: u32,
    /// Of the header itself, extensions apart.
    pub length: u32,
    pub encrypted: bool,
    /// zstd instead of deflate.
    pub zstd: bool,
    pub bitmaps: Option<Extension>,
    /// The data file's name.
    pub data_file_name: Option<String>,
    pub backing: Option<String>,
    pub backing_format: Option<String>,
}

pub(super) fn corrupt(device: &dyn Device, message: impl Into<Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::Corrupt, message).with_path(device.name())
}

pub(super) fn unsupported(device: &dyn Device, message: impl Into<Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::Unsupported, message).with_path(device.name())
}

/// Big-endian numbers out of a slice; `None` beyond its end.
pub(super) fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub(super) fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The first cluster as far as it was needed.
struct Front<'a> {
    device: &'a dyn Device,
    length: u64,
    bytes: Vec<u8>,
}

impl Front<'_> {
    fn slice(&mut self, offset: u64, length: u64) -> Result<&[u8]> {
        let end = offset + length;
        if end > self.length {
            return Err(corrupt(self.device, "the file ends within the header"));
        }
        let have = self.bytes.len() as u64;
        if end > have {
            // Headers fit into 4 KiB nearly always; the whole cluster may be 2 MiB.
            let want = (end.next_multiple_of(4096)).min(self.length);
            self.bytes.resize(want as usize, 0);
            self.device.read_at(have, &mut self.bytes[have as usize..])?;
        }
        Ok(&self.bytes[offset as usize..end as usize])
    }

    fn u32(&mut self, offset: u64) -> Result<u32> {
        let device = self.device;
        be32(self.slice(offset, 4)?, 0).ok_or_else(|| corrupt(device, "the file ends within the header"))
    }

    fn u64(&mut self, offset: u64) -> Result<u64> {
        let device = self.device;
        be64(self.slice(offset, 8)?, 0).ok_or_else(|| corrupt(device, "the file ends within the header"))
    }
}

impl Header {
    pub fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Refcounts in one block.
    pub fn per_block(&self) -> u64 {
        self.cluster_size() * 8 / u64::from(self.refcount_bits)
    }

    /// Entries of one L2 table.
    pub fn l2_entries(&self) -> u64 {
        self.cluster_size() / if self.extended_l2 { 16 } else { 8 }
    }

    /// Reads and checks the header; opens nothing that it names.
    pub fn read(device: &dyn Device) -> Result<Header> {
        let bad = |message| Err(corrupt(device, message));
        let file_length = device.len()?;
        let mut front = Front { device, length: file_length, bytes: Vec::new() };
        if file_length < 72 || front.u32(0)? != MAGIC {
            return bad("not a qcow2 image");
        }
        let version = front.u32(4)?;
        if !matches!(version, 2 | 3) {
            return Err(unsupported(device, "qcow2 version other than 2 and 3"));
        }
        let cluster_bits = front.u32(20)?;
        if cluster_bits < 9 {
            return bad("cluster size under 512 bytes");
        }
        if cluster_bits > 21 {
            return Err(unsupported(device, "cluster size over 2 MiB"));
        }
        let cluster_size = 1u64 << cluster_bits;
        let mut header = Header {
            version,
            cluster_bits,
            size: front.u64(24)?,
            l1_entries: u64::from(front.u32(36)?),
            l1_offset: front.u64(40)?,
            reftable_offset: front.u64(48)?,
            reftable_clusters: u64::from(front.u32(56)?),
            snapshots: front.u32(60)?,
            snapshots_offset: front.u64(64)?,
            dirty: false,
            corrupt: false,
            data_file: false,
            extended_l2: false,
            autoclear: 0,
            refcount_bits: 16,
            length: 72,
            encrypted: false,
            zstd: false,
            bitmaps: None,
            data_file_name: None,
            backing: None,
            backing_format: None,
        };
        match front.u32(32)? {
            0 => {}
            1 | 2 => header.encrypted = true,
            _ => return bad("unknown encryption method"),
        }
        if version == 3 {
            header.read_version_3(device, &mut front)?;
        }
        header.check_tables(device, file_length)?;

        let (name_offset, name_length) = (front.u64(8)?, front.u32(16)?);
        let mut extensions_limit = cluster_size;
        if name_offset != 0 {
            if name_length > MAX_NAME || name_offset.saturating_add(u64::from(name_length)) > cluster_size {
                return bad("the backing name is too long or lies outside the first cluster");
            }
            if name_offset < u64::from(header.length) {
                return bad("the backing name lies within the header");
            }
            extensions_limit = name_offset;
        }
        front.length = file_length.min(cluster_size);
        header.read_extensions(device, &mut front, extensions_limit)?;
        if name_offset != 0 {
            let name = front.slice(name_offset, u64::from(name_length))?;
            if !name.is_empty() {
                header.backing = Some(String::from_utf8_lossy(name).into_owned());
            }
        }
        Ok(header)
    }

    fn read_version_3(&mut self, device: &dyn Device, front: &mut Front<'_>) -> Result<()> {
        let incompatible = front.u64(72)?;
        self.autoclear = front.u64(88)?;
        let refcount_order = front.u32(96)?;
        self.length = front.u32(100)?;
        let unknown = incompatible & !INCOMPATIBLE_KNOWN;
        if unknown != 0 {
            let names = self.feature_names(front, unknown).join(", ");
            return Err(unsupported(device, format!("unknown incompatible features: {names}")));
        }
        if refcount_order > 6 {
            return Err(corrupt(device, "refcounts wider than 64 bits"));
        }
        self.refcount_bits = 1 << refcount_order;
        let length = u64::from(self.length);
        if length < 104 || !length.is_multiple_of(8) || length > self.cluster_size() {
            return Err(corrupt(device, "impossible header length"));
        }
        self.dirty = incompatible & INCOMPATIBLE_DIRTY != 0;
        self.corrupt = incompatible & INCOMPATIBLE_CORRUPT != 0;
        self.data_file = incompatible & INCOMPATIBLE_DATA_FILE != 0;
        self.extended_l2 = incompatible & INCOMPATIBLE_EXTENDED_L2 != 0;
        if self.extended_l2 && self.cluster_bits < 14 {
            return Err(corrupt(device, "clusters too small for subclusters"));
        }
        let compression = if length > 104 { front.slice(104, 1)?[0] } else { 0 };
        if (compression != 0) != (incompatible & INCOMPATIBLE_COMPRESSION != 0) {
            return Err(corrupt(device, "compression type and its feature bit contradict each other"));
        }
        if compression > 1 {
            return Err(unsupported(device, "unknown compression type"));
        }
        self.zstd = compression == 1;
        Ok(())
    }

    /// What the image itself calls these incompatible features; their bits if it does not say.
    fn feature_names(&self, front: &mut Front<'_>, bits: u64) -> Vec<String> {
        const ENTRY: usize = 48;
        let mut found = Vec::new();
        let mut at = u64::from(self.length);
        while at + 8 <= self.cluster_size() {
            let (Ok(kind), Ok(length)) = (front.u32(at), front.u32(at + 4)) else { break };
            let length = u64::from(length);
            at += 8;
            if kind == EXT_END || length > self.cluster_size() - at {
                break;
            }
            if kind == EXT_FEATURE_NAMES
                && let Ok(table) = front.slice(at, length)
            {
                for entry in
                    table.chunks_exact(ENTRY).filter(|e| e[0] == 0 && e[1] < 64 && bits >> e[1] & 1 == 1)
                {
                    let bit = u32::from(entry[1]);
                    if found.iter().all(|(known, _)| *known != bit) {
                        let name = entry[2..].split(|byte| *byte == 0).next().unwrap_or_default();
                        found.push((bit, String::from_utf8_lossy(name).into_owned()));
                    }
                }
            }
            at += length.next_multiple_of(8);
        }
        let unnamed =
            (0..64).filter(|bit| bits >> bit & 1 == 1 && !found.iter().any(|(known, _)| known == bit));
        let unnamed: Vec<String> = unnamed.map(|bit| format!("bit {bit}")).collect();
        found.into_iter().map(|(bit, name)| format!("{name:?} (bit {bit})")).chain(unnamed).collect()
    }

    fn check_tables(&self, device: &dyn Device, file_length: u64) -> Result<()> {
        let bad = |message| Err(corrupt(device, message));
        let cluster_size = self.cluster_size();
        let inside =
            |offset: u64, bytes: u64| offset.checked_add(bytes).is_some_and(|end| end <= file_length);
        if i64::try_from(self.size).is_err() {
            return bad("virtual size over 2^63");
        }
        if self.l1_entries * 8 > MAX_L1_BYTES {
            return Err(unsupported(device, "L1 table over 32 MiB"));
        }
        let coverage = cluster_size * self.l2_entries();
        if self.l1_entries < self.size.div_ceil(coverage) {
            return bad("the L1 table is too small for the virtual size");
        }
        if self.l1_entries > 0 {
            if self.l1_offset == 0 || !self.l1_offset.is_multiple_of(cluster_size) {
                return bad("the L1 table is not aligned to a cluster");
            }
            if !inside(self.l1_offset, self.l1_entries * 8) {
                return bad("the L1 table lies outside the file");
            }
        }
        if self.reftable_clusters == 0 {
            return bad("no refcount table");
        }
        if self.reftable_clusters * cluster_size > MAX_REFTABLE_BYTES {
            return Err(unsupported(device, "refcount table over 8 MiB"));
        }
        if self.reftable_offset == 0 || !self.reftable_offset.is_multiple_of(cluster_size) {
            return bad("the refcount table is not aligned to a cluster");
        }
        if !inside(self.reftable_offset, self.reftable_clusters * cluster_size) {
            return bad("the refcount table lies outside the file");
        }
        if self.snapshots > MAX_SNAPSHOTS {
            return Err(unsupported(device, "more than 65536 internal snapshots"));
        }
        if self.snapshots > 0
            && (!self.snapshots_offset.is_multiple_of(cluster_size) || !inside(self.snapshots_offset, 40))
        {
            return bad("the snapshot table lies outside the file or is not aligned");
        }
        Ok(())
    }

    fn read_extensions(&mut self, device: &dyn Device, front: &mut Front<'_>, limit: u64) -> Result<()> {
        let bad = |message| Err(corrupt(device, message));
        let mut at = u64::from(self.length);
        // A version 2 file may end its header cluster, or the room before the name, without an END.
        while at + 8 <= limit && at + 8 <= front.length {
            let (kind, length) = (front.u32(at)?, u64::from(front.u32(at + 4)?));
            at += 8;
            if kind == EXT_END {
                break;
            }
            if length > limit - at {
                return bad("a header extension is too long");
            }
            match kind {
                EXT_BACKING_FORMAT => {
                    if self.backing_format.is_some() {
                        return bad("two backing formats");
                    }
                    if length > 15 {
                        return bad("the backing format's name is too long");
                    }
                    let name = front.slice(at, length)?;
                    self.backing_format = Some(String::from_utf8_lossy(name).into_owned());
                }
                EXT_DATA_FILE => {
                    if self.data_file_name.is_some() {
                        return bad("two names of data files");
                    }
                    if length > u64::from(MAX_NAME) {
                        return bad("the name of the data file is too long");
                    }
                    let name = front.slice(at, length)?;
                    self.data_file_name = Some(String::from_utf8_lossy(name).into_owned());
                }
                EXT_BITMAPS => {
                    if self.bitmaps.is_some() {
                        return bad("two bitmaps extensions");
                    }
                    let fields = front.slice(at, length)?;
                    let (Some(count), Some(reserved), Some(bytes), Some(directory), 24) =
                        (be32(fields, 0), be32(fields, 4), be64(fields, 8), be64(fields, 16), length)
                    else {
                        return bad("a bitmaps extension of another length");
                    };
                    if count == 0 || reserved != 0 {
                        return bad("an impossible bitmaps extension");
                    }
                    self.bitmaps = Some(Extension { count, directory, length: bytes, place: at + 16 });
                }
                _ => {}
            }
            at += length.next_multiple_of(8);
        }
        Ok(())
    }
}
