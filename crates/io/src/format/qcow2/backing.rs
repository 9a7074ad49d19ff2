//! The backing file as the header names it, and the one change that is made to finished images: naming another.

use super::header::{EXT_BACKING_FORMAT, Header, be32, be64, corrupt, unsupported};
use super::table::SECTOR;
use crate::{Device, Error, ErrorKind, Format, Result, without};

/// Length of the version 3 header that we write, including the compression type.
pub(super) const HEADER_LENGTH: usize = 112;
/// Where the format's name lies; it has 8 bytes, whether it is `raw` or `qcow2`.
const FORMAT_AT: usize = HEADER_LENGTH + 8;
const FORMAT_ROOM: usize = 8;
/// Where the backing name lies, after the END extension.
const NAME_AT: usize = FORMAT_AT + FORMAT_ROOM + 8;

/// What the header says about the backing file. Nobody here opens it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backing {
    /// The file name as QEMU will open it.
    pub name: String,
    /// Its format, so that nobody needs to guess.
    pub format: Format,
}

/// Puts name and format into the first sector of our layout, whatever was there; `None` if it does not fit.
pub(super) fn put_backing(sector: &mut [u8; SECTOR], backing: Option<&Backing>) -> Option<()> {
    sector[8..20].fill(0);
    sector[HEADER_LENGTH..].fill(0);
    let Some(Backing { name, format }) = backing else { return Some(()) };
    if name.is_empty() {
        return None;
    }
    let format = format.to_string();
    let mut put = |at: usize, bytes: &[u8]| {
        sector.get_mut(at..at + bytes.len()).map(|room| room.copy_from_slice(bytes))
    };
    put(NAME_AT, name.as_bytes())?;
    put(8, &(NAME_AT as u64).to_be_bytes())?;
    put(16, &(name.len() as u32).to_be_bytes())?;
    put(HEADER_LENGTH, &EXT_BACKING_FORMAT.to_be_bytes())?;
    put(HEADER_LENGTH + 4, &(format.len() as u32).to_be_bytes())?;
    put(FORMAT_AT, format.as_bytes())
}

/// Makes a closed image name another backing file and its format, or none, with one write of its first 512 bytes,
/// and flushes. After a power cut the header says the one or the other.
///
/// Without a backing file unallocated clusters read as zeroes, with one they show it; nothing is copied here.
/// Unknown autoclear bits are cleared along with it.
///
/// Only for images whose header is laid out as [`create`](super::create) does it: `Unsupported` otherwise.
/// `InvalidInput` if the name is empty or does not fit.
pub fn set_backing(device: &dyn Device, backing: Option<&Backing>) -> Result<()> {
    let header = Header::read(device)?;
    let mut sector = [0; SECTOR];
    device.read_at(0, &mut sector)?;
    if (be64(&sector, 24) != Some(header.size) || be64(&sector, 40) != Some(header.l1_offset))
        && !without!("qcow2.compare.header")
    {
        return Err(corrupt(device, "the header changed while it was read"));
    }
    if !is_ours(&sector) {
        return Err(unsupported(device, "a header that is not laid out for changing its backing file"));
    }
    put_backing(&mut sector, backing).ok_or_else(|| {
        Error::new(ErrorKind::InvalidInput, "the backing name is empty or does not fit")
            .with_path(device.name())
    })?;
    sector[88..96].fill(0);
    device.write_at(0, &sector)?;
    if without!("qcow2.flush.backing") {
        return Ok(());
    }
    device.flush()
}

/// Whether nothing would get lost by writing extensions and name anew: no feature that we do not write, no
/// extension but the backing format, nothing else behind them.
fn is_ours(sector: &[u8; SECTOR]) -> bool {
    let plain = be32(sector, 4) == Some(3)
        // Nothing, or zstd.
        && matches!(be64(sector, 72), Some(0 | 8))
        && be32(sector, 100) == Some(HEADER_LENGTH as u32);
    let zero = |from: usize, to: usize| sector.get(from..to).is_some_and(|b| b.iter().all(|byte| *byte == 0));
    let rest = match (be64(sector, 8), be32(sector, 16)) {
        (Some(0), Some(0)) => zero(HEADER_LENGTH, SECTOR),
        (Some(at), Some(length)) if at == NAME_AT as u64 => {
            be32(sector, HEADER_LENGTH) == Some(EXT_BACKING_FORMAT)
                && be32(sector, HEADER_LENGTH + 4).is_some_and(|length| length as usize <= FORMAT_ROOM)
                && zero(NAME_AT - 8, NAME_AT)
                && zero(NAME_AT.saturating_add(length as usize), SECTOR)
        }
        _ => false,
    };
    plain && rest
}
