//! What two files share physically, as clones do on XFS and btrfs.
//!
//! Why what the map says may be believed: it is asked with the request that everything written before is on the disk and in
//! the map, so at that moment the bytes of the file were those of that place. No file system that shares ever writes a shared
//! place: who changes a file gets another one. A place has other bytes only once no file has it any more, or a single one, which is not
//! said to share it. So both files had the same bytes if one of the two was not written between the two answers. The base
//! of a copy, and an image whose differences are listed, is a snapshot, or a disk that its lock keeps from being written; for
//! files of others, reading them while they are written says no more.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::{Device, DeviceId, Image, RunKind, sys};

/// So many answers in which nothing was shared, and that file is not asked any more, as long as this map is read.
const TRIES: u32 = 256;

/// What was asked of the files of two maps that are read from their beginning to their end.
#[derive(Debug, Default)]
pub(super) struct Same(BTreeMap<DeviceId, Asked>);

#[derive(Debug)]
struct Asked {
    /// None: it does not share.
    last: Option<sys::Extents>,
    /// Answers in which nothing was shared.
    vain: u32,
}

impl Same {
    /// Whether the first bytes of two runs, which are data of different devices, are the same place; and of how many bytes, at most
    /// `length`, that is said.
    pub fn first(&mut self, ours: (&Image, RunKind), theirs: (&Image, RunKind), length: u64) -> (bool, u64) {
        let (Some((a, at)), Some((b, other))) = (ours.0.place_of(ours.1), theirs.0.place_of(theirs.1)) else {
            return (false, length);
        };
        if a.id() == b.id() || a.id().domain != b.id().domain {
            return (false, length);
        }
        let (place, length) = self.place(a, at..at.saturating_add(length));
        let Some(place) = place else { return (false, length) };
        let (other, length) = self.place(b, other..other.saturating_add(length));
        (other == Some(place), length)
    }

    /// Where bytes of a device are if they may be shared, and of how many that is said.
    fn place(&mut self, device: &dyn Device, range: Range<u64>) -> (Option<u64>, u64) {
        let nothing = (None, range.end - range.start);
        let Some(file) = device.as_file() else { return nothing };
        let fresh = || Asked { last: sys::may_share(file).then(sys::Extents::default), vain: 0 };
        let asked = self.0.entry(device.id()).or_insert_with(fresh);
        let Some(last) = &mut asked.last else { return nothing };
        let found = last.at(range.start).or_else(|| {
            // All that follows, too: the next question is for that.
            *last = sys::shared(file, range.start..i64::MAX as u64).ok()?;
            asked.vain = if last.is_any() { 0 } else { asked.vain + 1 };
            last.at(range.start)
        });
        let Some((place, end)) = found.filter(|_| asked.vain < TRIES) else {
            asked.last = None;
            return nothing;
        };
        (place, end.min(range.end) - range.start)
    }
}
