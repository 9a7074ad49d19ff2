//! The backing file as the header names it, and the one change that is made to finished images: naming another.

use super::header::{
    EXT_BACKING_FORMAT, EXT_BITMAPS, EXT_END, EXT_FEATURE_NAMES, Header, be32, be64, corrupt, unsupported,
};
use super::table::SECTOR;
use crate::{Device, Error, ErrorKind, Format, Result, without};

/// Length of the version 3 header that we write, including the compression type.
pub(super) const HEADER_LENGTH: usize = 112;

/// What the header says about the backing file. Nobody here opens it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backing {
    /// The file name as QEMU will open it.
    pub name: String,
    /// Its format, so that nobody needs to guess.
    pub format: Format,
}

/// Makes a closed image name another backing file and its format, or none, with one write of its first 512 bytes,
/// and flushes. After a power cut the header says the one or the other.
///
/// Without a backing file unallocated clusters read as zeroes, with one they show it; nothing is copied here.
/// Extensions stay, known or not, but for the table of feature names, which is only for error messages: it goes if there is
/// no room for it. Unknown autoclear bits are cleared along with it.
///
/// `Unsupported` if the header is of version 2, has features that we do not write, or extensions too long for its first
/// 512 bytes. `InvalidInput` if the name is empty or does not fit.
pub fn set_backing(device: &dyn Device, backing: Option<&Backing>) -> Result<()> {
    let sector = sector_with(device, backing)?;
    device.write_at(0, &sector)?;
    if without!("qcow2.flush.backing") {
        return Ok(());
    }
    device.flush()
}

/// The error of [`set_backing`], without changing anything.
pub fn check_set_backing(device: &dyn Device, backing: Option<&Backing>) -> Result<()> {
    sector_with(device, backing).map(drop)
}

/// What the first sector is to be.
fn sector_with(device: &dyn Device, backing: Option<&Backing>) -> Result<[u8; SECTOR]> {
    let header = Header::read(device)?;
    let mut sector = [0; SECTOR];
    device.read_at(0, &mut sector)?;
    if (be64(&sector, 24) != Some(header.size) || be64(&sector, 40) != Some(header.l1_offset))
        && !without!("qcow2.compare.header")
    {
        return Err(corrupt(device, "the header changed while it was read"));
    }
    // Nothing, or zstd.
    if be32(&sector, 4) != Some(3) || !matches!(be64(&sector, 72), Some(0 | 8)) {
        return Err(unsupported(
            device,
            "changing the backing file of version 2, or of features that we do not write",
        ));
    }
    let kept = kept_extensions(device, &header)?;
    let without_names: Vec<_> = kept.iter().filter(|(kind, _)| *kind != EXT_FEATURE_NAMES).cloned().collect();
    let room = |extensions: &[Extension]| laid_out(&sector, header.length as usize, extensions, backing);
    let Some(mut new) = room(&kept).or_else(|| room(&without_names)) else {
        // The name alone is too long, or what else there is.
        let plain = laid_out(&sector, HEADER_LENGTH, &[], backing).is_some();
        return Err(if plain {
            unsupported(device, "extensions that leave no room for another backing file")
        } else {
            misfit(device)
        });
    };
    // Bitmaps are as good as they were.
    let bitmaps = kept.iter().any(|(kind, _)| *kind == EXT_BITMAPS);
    new[88..95].fill(0);
    new[95] &= u8::from(bitmaps);
    Ok(new)
}

fn misfit(device: &dyn Device) -> Error {
    Error::new(ErrorKind::InvalidInput, "the backing name is empty or does not fit").with_path(device.name())
}

/// Its type and its data.
type Extension = (u32, Vec<u8>);

/// All extensions but the backing format, in order.
fn kept_extensions(device: &dyn Device, header: &Header) -> Result<Vec<Extension>> {
    let mut front = vec![0; device.len()?.min(header.cluster_size()) as usize];
    device.read_at(0, &mut front)?;
    let end = match be64(&front, 8) {
        Some(name) if name > 0 => front.len().min(name as usize),
        _ => front.len(),
    };
    let (mut at, mut kept) = (header.length as usize, Vec::new());
    while let (Some(kind), Some(length)) = (be32(&front[..end], at), be32(&front[..end], at + 4)) {
        if kind == EXT_END {
            break;
        }
        let data = front[..end].get(at + 8..at + 8 + length as usize);
        let data =
            data.ok_or_else(|| corrupt(device, "an extension of the header reaches beyond its end"))?;
        if kind != EXT_BACKING_FORMAT {
            kept.push((kind, data.to_vec()));
        }
        at += 8 + (length as usize).next_multiple_of(8);
    }
    Ok(kept)
}

/// The header with these extensions and that backing file in the first sector; None if the name is empty, or there is no
/// room. The format's name is padded to 8 bytes, whether it is `raw` or `qcow2`.
pub(super) fn laid_out(
    old: &[u8; SECTOR],
    header_length: usize,
    kept: &[Extension],
    backing: Option<&Backing>,
) -> Option<[u8; SECTOR]> {
    let format = backing.map(|backing| (EXT_BACKING_FORMAT, backing.format.to_string().into_bytes()));
    let mut bytes = old.get(..header_length)?.to_vec();
    for (kind, data) in format.iter().chain(kept) {
        bytes.extend(kind.to_be_bytes());
        bytes.extend(u32::try_from(data.len()).ok()?.to_be_bytes());
        bytes.extend(data);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    }
    // The END extension.
    bytes.extend([0; 8]);
    bytes[8..20].fill(0);
    if let Some(backing) = backing {
        if backing.name.is_empty() {
            return None;
        }
        let at = bytes.len() as u64;
        bytes[8..16].copy_from_slice(&at.to_be_bytes());
        bytes[16..20].copy_from_slice(&(backing.name.len() as u32).to_be_bytes());
        bytes.extend(backing.name.as_bytes());
    }
    if bytes.len() > SECTOR {
        return None;
    }
    bytes.resize(SECTOR, 0);
    bytes.try_into().ok()
}
