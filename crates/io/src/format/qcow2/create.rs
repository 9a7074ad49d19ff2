//! Making images.

use super::backing::{Backing, HEADER_LENGTH, laid_out};
use super::header::{INCOMPATIBLE_COMPRESSION, MAGIC, MAX_L1_BYTES, MAX_REFTABLE_BYTES};
use super::mapping::COPIED;
use super::packed::Compression;
use super::table::SECTOR;
use crate::{Device, Error, ErrorKind, Result, without};

/// Cluster sizes of new images; 64 KiB unless one is asked for.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 16..=21;
/// What is written at once.
const CHUNK: usize = 1 << 20;

/// What a new image is to be.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// Virtual size in bytes; rounded up to 512, because QEMU would round it down.
    pub size: u64,
    /// What unallocated clusters show.
    pub backing: Option<Backing>,
    /// The same as [`Preallocation::Metadata`].
    pub preallocate_metadata: bool,
}

/// What a new image has before anything is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Preallocation {
    /// Nothing: clusters are allocated when they are written.
    #[default]
    Off,
    /// A place for each cluster in the tables, in order; none in the file.
    Metadata,
    /// The same, and the space is reserved.
    Allocated,
    /// The same, and zeroes are written to all of it.
    Full,
}

/// How a new image is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Bytes in a cluster: a power of two, 64 KiB to 2 MiB.
    pub cluster_size: u64,
    /// How clusters will be compressed, if they are: see [`Image::write_compressed`](crate::Image::write_compressed).
    /// Only zstd shows in the header.
    pub compression: Compression,
    /// What it has from the beginning.
    pub preallocation: Preallocation,
}

impl Default for Layout {
    fn default() -> Layout {
        Layout {
            cluster_size: 1 << CLUSTER_BITS.start(),
            compression: Compression::Deflate,
            preallocation: Preallocation::Off,
        }
    }
}

/// Makes an empty version 3 image with 64 KiB clusters and 16-bit refcounts on an empty device, and flushes it.
///
/// The header is written last: a crash leaves a complete image or a device without the magic number. The
/// header, the backing format and the backing name all lie in the first 512 bytes; a name that does not fit
/// (about 370 bytes) is `InvalidInput`.
pub fn create(device: &dyn Device, options: &CreateOptions) -> Result<()> {
    create_with(device, options, &Layout::default())
}

/// Where everything of a new image lies, in clusters: header, refcount table, refcount blocks, L1, L2 tables, data.
struct Places {
    cluster_size: u64,
    table_clusters: u64,
    blocks: u64,
    l1_entries: u64,
    l1_clusters: u64,
    l2_tables: u64,
    data: u64,
}

impl Places {
    fn new(cluster_size: u64, size: u64, preallocated: bool) -> Places {
        // One entry even for an empty disk: tables without entries are unusual.
        let l1_entries = size.div_ceil(cluster_size * cluster_size / 8).max(1);
        let l1_clusters = (l1_entries * 8).div_ceil(cluster_size);
        let data = if preallocated { size.div_ceil(cluster_size) } else { 0 };
        let l2_tables = data.div_ceil(cluster_size / 8);
        let mut places =
            Places { cluster_size, table_clusters: 1, blocks: 1, l1_entries, l1_clusters, l2_tables, data };
        // The blocks count themselves, and the table.
        loop {
            let blocks = places.total().div_ceil(cluster_size / 2);
            let table = (blocks * 8).div_ceil(cluster_size);
            if blocks <= places.blocks && table <= places.table_clusters {
                return places;
            }
            (places.blocks, places.table_clusters) =
                (blocks.max(places.blocks), table.max(places.table_clusters));
        }
    }

    fn first_block(&self) -> u64 {
        1 + self.table_clusters
    }

    fn l1(&self) -> u64 {
        self.first_block() + self.blocks
    }

    fn l2(&self) -> u64 {
        self.l1() + self.l1_clusters
    }

    fn data(&self) -> u64 {
        self.l2() + self.l2_tables
    }

    fn total(&self) -> u64 {
        self.data() + self.data
    }
}

/// The same as [`create`], with a layout to choose.
///
/// `InvalidInput`: a cluster size that is none, or preallocation with a backing file, of which nothing would show.
pub fn create_with(device: &dyn Device, options: &CreateOptions, layout: &Layout) -> Result<()> {
    let invalid = |message| Error::new(ErrorKind::InvalidInput, message).with_path(device.name());
    let cluster_size = layout.cluster_size;
    if !cluster_size.is_power_of_two() || !CLUSTER_BITS.contains(&cluster_size.ilog2()) {
        return Err(invalid("the cluster size is no power of two from 64 KiB to 2 MiB"));
    }
    let preallocation = match layout.preallocation {
        Preallocation::Off if options.preallocate_metadata => Preallocation::Metadata,
        other => other,
    };
    let preallocated = preallocation != Preallocation::Off;
    if preallocated && options.backing.is_some() {
        return Err(invalid("preallocation would hide the backing file"));
    }
    // QEMU cuts a size that is no multiple of 512 down; the tail of the disk must not get lost.
    let Some(size) = options.size.checked_next_multiple_of(512).filter(|size| i64::try_from(*size).is_ok())
    else {
        return Err(invalid("size over 2^63"));
    };
    let places = Places::new(cluster_size, size, preallocated);
    if places.l1_entries * 8 > MAX_L1_BYTES || places.table_clusters * cluster_size > MAX_REFTABLE_BYTES {
        return Err(invalid("the image is too large for its cluster size"));
    }
    let sector = header_sector(options, size, layout.compression, &places)
        .ok_or_else(|| invalid("the backing name is too long"))?;

    let (total, data) = (places.total() * cluster_size, places.data() * cluster_size);
    if device.fixed_len()?.is_some_and(|fixed| fixed < total) {
        let error = Error::new(ErrorKind::NoSpace, "the device is too small for the image");
        return Err(error.with_path(device.name()).with_range(0, total));
    }
    if device.is_empty()? || without!("qcow2.zero.create") {
        device.set_len(total)?;
    } else {
        // A block device has a length and old bytes.
        device.write_zeroes(0, total)?;
    }
    write_numbers(device, cluster_size, places.blocks, |block| {
        ((places.first_block() + block) * cluster_size).to_be_bytes()
    })?;
    // The blocks are contiguous, and so are the counts.
    write_numbers(device, places.first_block() * cluster_size, places.total(), |_| 1u16.to_be_bytes())?;
    write_numbers(device, places.l1() * cluster_size, places.l2_tables, |table| {
        (COPIED | ((places.l2() + table) * cluster_size)).to_be_bytes()
    })?;
    write_numbers(device, places.l2() * cluster_size, places.data, |cluster| {
        (COPIED | ((places.data() + cluster) * cluster_size)).to_be_bytes()
    })?;
    match preallocation {
        Preallocation::Off | Preallocation::Metadata => {}
        Preallocation::Allocated => device.allocate(data, total - data)?,
        Preallocation::Full => write_numbers(device, data, (total - data) / 8, |_| [0; 8])?,
    }
    if !without!("qcow2.flush.create") {
        device.flush()?;
    }
    device.write_at(0, &sector)?;
    if without!("qcow2.flush.created") {
        return Ok(());
    }
    device.flush()
}

/// Writes so many numbers in a row, the rest of the last sector as zeroes.
fn write_numbers<const N: usize>(
    device: &dyn Device,
    mut offset: u64,
    count: u64,
    number: impl Fn(u64) -> [u8; N],
) -> Result<()> {
    let mut bytes =
        Vec::with_capacity(CHUNK.min((count as usize).saturating_mul(N)).next_multiple_of(SECTOR));
    for at in 0..count {
        bytes.extend(number(at));
        if bytes.len() == CHUNK {
            device.write_at(offset, &bytes)?;
            offset += bytes.len() as u64;
            bytes.clear();
        }
    }
    bytes.resize(bytes.len().next_multiple_of(SECTOR), 0);
    if bytes.is_empty() { Ok(()) } else { device.write_at(offset, &bytes) }
}

/// The first 512 bytes; `None` if the backing name does not fit.
fn header_sector(
    options: &CreateOptions,
    size: u64,
    compression: Compression,
    places: &Places,
) -> Option<[u8; SECTOR]> {
    let mut sector = [0u8; SECTOR];
    let mut put = |at: usize, bytes: &[u8]| {
        sector.get_mut(at..at + bytes.len()).map(|room| room.copy_from_slice(bytes))
    };
    put(0, &MAGIC.to_be_bytes())?;
    put(4, &3u32.to_be_bytes())?;
    put(20, &places.cluster_size.ilog2().to_be_bytes())?;
    put(24, &size.to_be_bytes())?;
    put(36, &(places.l1_entries as u32).to_be_bytes())?;
    put(40, &(places.l1() * places.cluster_size).to_be_bytes())?;
    put(48, &places.cluster_size.to_be_bytes())?;
    put(56, &(places.table_clusters as u32).to_be_bytes())?;
    put(96, &4u32.to_be_bytes())?;
    put(100, &(HEADER_LENGTH as u32).to_be_bytes())?;
    if compression == Compression::Zstd {
        put(72, &INCOMPATIBLE_COMPRESSION.to_be_bytes())?;
        put(104, &[1])?;
    }
    laid_out(&sector, HEADER_LENGTH, &[], options.backing.as_ref())
}
