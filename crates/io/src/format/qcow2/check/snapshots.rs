//! The table of internal snapshots.

use std::collections::BTreeMap;

use super::header::{be32, be64};
use super::source::Source;
use super::tables::MAX_L1_ENTRIES;
use super::{Checker, Look, Part, Problem, Readable, Remedy};
use crate::Result;

/// QEMU's limits: number, bytes of the table, bytes of an entry that it does not know.
const MAX_SNAPSHOTS: u32 = 65536;
const MAX_TABLE: u64 = 64 << 20;
const MAX_EXTRA: u64 = 1024;
const ENTRY: u64 = 40;
/// What version 3 demands of the part of an entry that is optional otherwise.
const WANTED_EXTRA: u64 = 16;

/// L1 tables, by place and number of entries, and how often they are used.
pub(super) type L1Tables = BTreeMap<(u64, u64), u64>;

impl Checker<'_> {
    /// The table itself, which is counted, and the L1 tables of the snapshots, which are not.
    pub(super) fn check_snapshot_table(&mut self) -> Result<L1Tables> {
        let start = self.header.snapshots_offset;
        let mut found = L1Tables::new();
        match self.read_snapshots(&mut found)? {
            Ok(_) if self.look == (Look::Replacing { snapshots: true }) => {}
            Ok(length) => self.refer(start, length, 1, Part::Snapshots),
            Err(reason) => self.unreadable(Part::Snapshots, reason, start),
        }
        Ok(found)
    }

    /// The length of the table, or why it cannot be understood.
    fn read_snapshots(&mut self, found: &mut L1Tables) -> Result<Readable<u64>> {
        let (start, count) = (self.header.snapshots_offset, self.header.snapshots);
        if count > MAX_SNAPSHOTS {
            return Ok(Err("more than 65536 internal snapshots"));
        }
        if !start.is_multiple_of(self.header.cluster_size()) {
            return Ok(Err("it is not aligned to a cluster"));
        }
        if start > i64::MAX as u64 - u64::from(count) * ENTRY {
            return Ok(Err("it lies beyond all offsets"));
        }
        if count == 0 {
            return Ok(Ok(0));
        }
        if self.header.data_file() {
            let problem = Problem::SnapshotsWithDataFile { snapshots: count };
            self.corruption(1, Remedy::None, problem, start);
        }
        let mut at = start;
        for _ in 0..count {
            at = at.next_multiple_of(8);
            let mut entry = [0; ENTRY as usize];
            if !Source::reaches(at, ENTRY) {
                return Ok(Err("it lies beyond all offsets"));
            }
            self.source.read(at, &mut entry)?;
            let (l1, entries) = (be64(&entry, 0), u64::from(be32(&entry, 8)));
            let (names, extra) = (be32(&entry, 12), u64::from(be32(&entry, 36)));
            if extra > MAX_EXTRA {
                return Ok(Err("an entry has too much extra data"));
            }
            if self.header.version >= 3 && extra < WANTED_EXTRA {
                self.corruption(1, Remedy::Snapshots, Problem::SnapshotIncomplete, at);
            }
            at += ENTRY + extra + u64::from(names >> 16) + u64::from(names & 0xffff);
            if at - start > MAX_TABLE {
                return Ok(Err("it is larger than 64 MiB"));
            }
            if !l1.is_multiple_of(self.header.cluster_size()) {
                self.corruption(1, Remedy::None, Problem::Unaligned { part: Part::L1 }, l1);
            } else if entries > MAX_L1_ENTRIES {
                self.corruption(1, Remedy::None, Problem::SnapshotTooLarge { entries }, l1);
            } else if entries > 0 {
                *found.entry((l1, entries)).or_default() += 1;
            }
        }
        Ok(Ok(at - start))
    }
}
