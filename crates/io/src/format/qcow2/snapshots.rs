//! Internal snapshots (section "Snapshots"): listed, and respected by whoever writes.

use super::header::{Header, be32, be64, corrupt, unsupported};
use crate::{Device, Result};

/// QEMU's limits for the whole table and for what follows the fixed part of an entry.
const MAX_TABLE: u64 = 64 << 20;
const MAX_EXTRA: u64 = 1024;
const FIXED: u64 = 40;

/// A snapshot inside an image, as `qemu-img snapshot` makes it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Snapshot {
    /// A number mostly.
    pub id: String,
    /// Need not be unique.
    pub name: String,
    /// The disk's size then, in bytes; version 2 images may not say it.
    pub size: Option<u64>,
    /// Bytes of the virtual machine's state that were saved along with it.
    pub vm_state: u64,
    /// When it was taken: seconds since 1970, and nanoseconds.
    pub date: (u32, u32),
}

/// A snapshot with its L1 table: offset and entries.
pub(super) struct Entry {
    pub snapshot: Snapshot,
    pub l1_offset: u64,
    pub l1_entries: u64,
}

/// The internal snapshots of an image, oldest first; reads nothing but the header and their table.
///
/// `Corrupt` and `Unsupported` as for [`info`](super::info).
pub fn snapshots(device: &dyn Device) -> Result<Vec<Snapshot>> {
    let header = Header::read(device)?;
    Ok(read(device, &header)?.0.into_iter().map(|entry| entry.snapshot).collect())
}

/// All entries of the snapshot table, and its length in bytes.
pub(super) fn read(device: &dyn Device, header: &Header) -> Result<(Vec<Entry>, u64)> {
    let mut entries = Vec::new();
    let mut at = header.snapshots_offset;
    for _ in 0..header.snapshots {
        let bad = |message| corrupt(device, message).with_range(at, FIXED);
        let mut fixed = [0; FIXED as usize];
        read_table(device, at, &mut fixed)?;
        let half = |at: usize| u64::from(u16::from_be_bytes([fixed[at], fixed[at + 1]]));
        let word = |at: usize| be32(&fixed, at).unwrap_or(0);
        let (id, name, extra) = (half(12), half(14), u64::from(word(36)));
        if extra > MAX_EXTRA {
            return Err(
                unsupported(device, "too much extra data of an internal snapshot").with_range(at, FIXED)
            );
        }
        let mut rest = vec![0; (extra + id + name) as usize];
        read_table(device, at + FIXED, &mut rest)?;
        let (extra, names) = rest.split_at(extra as usize);
        let (id, name) = names.split_at(id as usize);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let entry = Entry {
            snapshot: Snapshot {
                id: text(id),
                name: text(name),
                size: be64(extra, 8),
                vm_state: be64(extra, 0).unwrap_or_else(|| u64::from(word(32))),
                date: (word(16), word(20)),
            },
            l1_offset: be64(&fixed, 0).unwrap_or(0),
            l1_entries: u64::from(word(8)),
        };
        if entry.l1_entries * 8 > super::header::MAX_L1_BYTES {
            return Err(
                unsupported(device, "L1 table of an internal snapshot over 32 MiB").with_range(at, FIXED)
            );
        }
        if !entry.l1_offset.is_multiple_of(header.cluster_size()) {
            return Err(bad("the L1 table of an internal snapshot is not aligned"));
        }
        entries.push(entry);
        at = (at + FIXED + rest.len() as u64).next_multiple_of(8);
        if at - header.snapshots_offset > MAX_TABLE {
            return Err(unsupported(device, "snapshot table over 64 MiB"));
        }
    }
    Ok((entries, at - header.snapshots_offset))
}

fn read_table(device: &dyn Device, at: u64, buffer: &mut [u8]) -> Result<()> {
    device.read_at(at, buffer).map_err(|error| match error.kind() {
        crate::ErrorKind::ShortRead => {
            corrupt(device, "the snapshot table lies outside the file").with_range(at, buffer.len() as u64)
        }
        _ => error,
    })
}
