//! What the storage can clone need not be moved.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use super::{Control, Totals};
use crate::image::BLOCK;
use crate::plan::{Action, Move};
use crate::{DeviceId, Image, Result, RunKind};

/// One request; cancelling waits for it.
const REQUEST: u64 = 64 << 20;

/// Clones what can be cloned of the moves, and returns those that are left.
pub(super) fn share<'a>(
    moves: &'a [Move],
    source: &Image,
    target: &Image,
    control: &Control<'_>,
    totals: &Totals,
) -> Result<Cow<'a, [Move]>> {
    let mut sharing = Sharing { source, target, possible: BTreeMap::new() };
    if !sharing.is_possible_at_all() {
        return Ok(Cow::Borrowed(moves));
    }
    let mut left = Vec::new();
    for step in moves {
        if !matches!(step.action, Action::Copy | Action::CopyNonZero) {
            left.push(*step);
            continue;
        }
        let (mut at, end) = (step.offset, step.offset + step.length);
        // Where the part that is left begins.
        let mut rest = at;
        while at < end {
            control.check()?;
            let run = source.run(at, (end - at).min(REQUEST))?;
            let (cloned, from) = sharing.clone_run(at, run.length, run.kind)?;
            if cloned > 0 {
                push(&mut left, rest, from, step.action);
                rest = from + cloned;
                totals.cloned.fetch_add(cloned, Ordering::Relaxed);
                (control.progress)(cloned);
            }
            at += run.length;
        }
        push(&mut left, rest, end, step.action);
    }
    Ok(Cow::Owned(left))
}

fn push(left: &mut Vec<Move>, offset: u64, end: u64, action: Action) {
    if offset < end {
        left.push(Move { offset, length: end - offset, action });
    }
}

struct Sharing<'a> {
    source: &'a Image,
    target: &'a Image,
    /// What was found out, by device of the source.
    possible: BTreeMap<DeviceId, bool>,
}

impl Sharing<'_> {
    /// Whether any layer of the source can be cloned into the target.
    fn is_possible_at_all(&mut self) -> bool {
        let devices = (0..).map_while(|layer| self.source.device(layer));
        let found: Vec<_> = devices.map(|device| (device.id(), self.target.can_clone(device))).collect();
        self.possible.extend(found);
        self.possible.values().any(|possible| *possible)
    }

    /// Clones what can be cloned of a run; returns how many bytes, and from where on.
    fn clone_run(&mut self, offset: u64, length: u64, kind: RunKind) -> Result<(u64, u64)> {
        let Some((device, device_offset)) = self.source.place_of(kind) else { return Ok((0, offset)) };
        let id = device.id();
        if self.possible.get(&id) != Some(&true) {
            return Ok((0, offset));
        }
        // The last cluster of a file may be cut short.
        let there = device.len()?.saturating_sub(device_offset).min(length);
        let whole = self.target.clonable(offset..offset + there);
        let skipped = whole.start.saturating_sub(offset);
        if whole.is_empty() || !(device_offset + skipped).is_multiple_of(BLOCK) {
            return Ok((0, offset));
        }
        let wanted = whole.end - whole.start;
        let cloned = self.target.write_clone(whole.start, wanted, device, device_offset + skipped)?;
        if cloned == 0 {
            // Other blocks than expected; it would not be otherwise with the next run.
            self.possible.insert(id, false);
        }
        Ok((cloned, whole.start))
    }
}
