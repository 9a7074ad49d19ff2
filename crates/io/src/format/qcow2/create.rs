//! Making images.

use super::backing::{Backing, HEADER_LENGTH, put_backing};
use super::header::{INCOMPATIBLE_COMPRESSION, MAGIC, MAX_L1_BYTES, unsupported};
use super::packed::Compression;
use super::table::SECTOR;
use crate::{Device, Error, ErrorKind, Result, without};

/// 64 KiB.
pub(super) const CLUSTER_BITS: u32 = 16;

/// What a new image is to be.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// Virtual size in bytes; rounded up to 512, because QEMU would round it down.
    pub size: u64,
    /// What unallocated clusters show.
    pub backing: Option<Backing>,
    /// Not available yet: `Unsupported`.
    pub preallocate_metadata: bool,
}

/// Makes an empty version 3 image with 64 KiB clusters and 16-bit refcounts on an empty device, and flushes it.
///
/// The header is written last: a crash leaves a complete image or a device without the magic number. The
/// header, the backing format and the backing name all lie in the first 512 bytes; a name that does not fit
/// (about 370 bytes) is `InvalidInput`.
pub fn create(device: &dyn Device, options: &CreateOptions) -> Result<()> {
    create_compressed(device, options, Compression::Deflate)
}

/// The same, for an image whose compressed clusters will be of that kind: see
/// [`Image::write_compressed`](crate::Image::write_compressed). Only zstd shows in the header.
pub fn create_compressed(
    device: &dyn Device,
    options: &CreateOptions,
    compression: Compression,
) -> Result<()> {
    let invalid = |message| Error::new(ErrorKind::InvalidInput, message).with_path(device.name());
    if options.preallocate_metadata {
        return Err(unsupported(device, "preallocated metadata"));
    }
    // QEMU cuts a size that is no multiple of 512 down; the tail of the disk must not get lost.
    let Some(size) = options.size.checked_next_multiple_of(512).filter(|size| i64::try_from(*size).is_ok())
    else {
        return Err(invalid("size over 2^63"));
    };
    let options = &CreateOptions { size, ..options.clone() };
    let cluster_size = 1u64 << CLUSTER_BITS;
    // One entry even for an empty disk: tables without entries are unusual.
    let l1_entries = options.size.div_ceil(cluster_size * cluster_size / 8).max(1);
    if l1_entries * 8 > MAX_L1_BYTES {
        return Err(invalid("the image is too large for its cluster size"));
    }
    let l1_clusters = (l1_entries * 8).div_ceil(cluster_size);
    let per_block = cluster_size / 2;
    // Header, refcount table, refcount blocks, L1; the blocks count themselves.
    let (mut table_clusters, mut blocks) = (1, 1);
    let total = loop {
        let total = 1 + table_clusters + blocks + l1_clusters;
        let (need_blocks, need_table) = (total.div_ceil(per_block), (blocks * 8).div_ceil(cluster_size));
        if need_blocks <= blocks && need_table <= table_clusters {
            break total;
        }
        (blocks, table_clusters) = (need_blocks.max(blocks), need_table.max(table_clusters));
    };
    let first_block = 1 + table_clusters;
    let l1_offset = (first_block + blocks) * cluster_size;
    let sector = header_sector(options, compression, l1_entries, l1_offset, table_clusters)
        .ok_or_else(|| invalid("the backing name is too long"))?;

    if device.is_empty()? || without!("qcow2.zero.create") {
        device.set_len(total * cluster_size)?;
    } else {
        // A block device has a length and old bytes.
        device.write_zeroes(0, total * cluster_size)?;
    }
    let mut table = vec![0; (blocks * 8).next_multiple_of(SECTOR as u64) as usize];
    for (block, entry) in (0..blocks).zip(table.chunks_exact_mut(8)) {
        entry.copy_from_slice(&((first_block + block) * cluster_size).to_be_bytes());
    }
    device.write_at(cluster_size, &table)?;
    let mut counts = vec![0; (total * 2).next_multiple_of(SECTOR as u64) as usize];
    for count in counts.chunks_exact_mut(2).take(total as usize) {
        count.copy_from_slice(&1u16.to_be_bytes());
    }
    // The blocks are contiguous, and so are the counts.
    device.write_at(first_block * cluster_size, &counts)?;
    if !without!("qcow2.flush.create") {
        device.flush()?;
    }
    device.write_at(0, &sector)?;
    if without!("qcow2.flush.created") {
        return Ok(());
    }
    device.flush()
}

/// The first 512 bytes; `None` if the backing name does not fit.
fn header_sector(
    options: &CreateOptions,
    compression: Compression,
    l1_entries: u64,
    l1_offset: u64,
    table_clusters: u64,
) -> Option<[u8; SECTOR]> {
    let mut sector = [0u8; SECTOR];
    let mut put = |at: usize, bytes: &[u8]| {
        sector.get_mut(at..at + bytes.len()).map(|room| room.copy_from_slice(bytes))
    };
    put(0, &MAGIC.to_be_bytes())?;
    put(4, &3u32.to_be_bytes())?;
    put(20, &CLUSTER_BITS.to_be_bytes())?;
    put(24, &options.size.to_be_bytes())?;
    put(36, &(l1_entries as u32).to_be_bytes())?;
    put(40, &l1_offset.to_be_bytes())?;
    put(48, &(1u64 << CLUSTER_BITS).to_be_bytes())?;
    put(56, &(table_clusters as u32).to_be_bytes())?;
    put(96, &4u32.to_be_bytes())?;
    put(100, &(HEADER_LENGTH as u32).to_be_bytes())?;
    if compression == Compression::Zstd {
        put(72, &INCOMPATIBLE_COMPRESSION.to_be_bytes())?;
        put(104, &[1])?;
    }
    put_backing(&mut sector, options.backing.as_ref())?;
    Some(sector)
}
