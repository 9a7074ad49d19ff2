//! What the storage can move by itself need not come here.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

use super::{Control, Totals};
use crate::image::BLOCK;
use crate::plan::{Action, CLONE, Move};
use crate::{Device, DeviceId, Image, Offload, Result, Run, RunKind};

/// The largest copy of a server.
const COPY: u64 = 16 << 20;
/// The smallest: the server makes each durable before it answers.
const LEAST_COPY: u64 = 1 << 20;

/// Has the storage move what it can of the moves, and returns those that are left.
pub(super) fn offload<'a>(
    moves: &'a [Move],
    source: &Image,
    target: &Image,
    control: &Control<'_>,
    totals: &Totals,
) -> Result<Cow<'a, [Move]>> {
    let mut offloading = Offloading::new(source, target, control, totals);
    if offloading.ways.is_empty() {
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
            let run = offloading.next_run(at, (end - at).min(CLONE))?;
            let next = at + run.length;
            at = match offloading.run(at, run)? {
                // A plan of clones has holes in its moves.
                Moved::Nothing
                    if offloading.wholly && step.action == Action::CopyNonZero && run.kind.is_zero() =>
                {
                    push(&mut left, rest, at, step.action);
                    (control.progress)(run.length);
                    rest = next;
                    next
                }
                Moved::Nothing => next,
                Moved::Refused => at,
                Moved::Range(range) => {
                    push(&mut left, rest, range.start, step.action);
                    rest = range.end;
                    (control.progress)(range.end - range.start);
                    range.end
                }
            };
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

/// What became of the beginning of a run.
enum Moved {
    /// It is no case for the storage.
    Nothing,
    /// It is not moved in this way; there may be another one.
    Refused,
    Range(Range<u64>),
}

struct Offloading<'a> {
    source: &'a Image,
    target: &'a Image,
    control: &'a Control<'a>,
    totals: &'a Totals,
    /// By device of the source, what was not refused yet; the last one is to be tried first.
    ways: BTreeMap<DeviceId, Vec<Offload>>,
    /// Both are raw files, and one can be cloned into the other: until that is refused, whether the source has something there or a
    /// hole.
    wholly: bool,
}

impl<'a> Offloading<'a> {
    fn new(source: &'a Image, target: &'a Image, control: &'a Control<'a>, totals: &'a Totals) -> Self {
        let mut ways = BTreeMap::new();
        for device in (0..).map_while(|layer| source.device(layer)) {
            let mut possible = vec![Offload::Copy, Offload::Clone];
            possible.retain(|how| target.can_offload(*how, device));
            if !possible.is_empty() {
                ways.insert(device.id(), possible);
            }
        }
        let is_cloned = ways.values().any(|possible| possible.contains(&Offload::Clone));
        let wholly = is_cloned && source.is_raw() && target.is_raw();
        Self { source, target, control, totals, ways, wholly }
    }

    fn next_run(&self, offset: u64, length: u64) -> Result<Run> {
        let mut cloned = self.ways.iter().filter(|(_, ways)| ways.last() == Some(&Offload::Clone));
        match cloned.next().filter(|_| self.wholly) {
            Some((&device, _)) => {
                let kind = RunKind::Data { layer: 0, device, device_offset: offset };
                Ok(Run { offset, length, kind })
            }
            None => self.source.run(offset, length),
        }
    }

    fn run(&mut self, offset: u64, run: Run) -> Result<Moved> {
        let Some((device, device_offset)) = self.source.place_of(run.kind) else { return Ok(Moved::Nothing) };
        let Some(ways) = self.ways.get_mut(&device.id()) else { return Ok(Moved::Nothing) };
        let Some(&how) = ways.last() else { return Ok(Moved::Nothing) };
        let (least, most, total) = match how {
            Offload::Clone => (0, CLONE, &self.totals.cloned),
            Offload::Copy => (LEAST_COPY, COPY, &self.totals.offloaded),
        };
        // The last cluster of a file may be cut short.
        let there = device.len()?.saturating_sub(device_offset).min(run.length);
        let whole = self.target.offloadable(offset..offset + there.min(most));
        let skipped = whole.start.saturating_sub(offset);
        let from = device_offset + skipped;
        if whole.is_empty() || whole.end - whole.start < least || !from.is_multiple_of(BLOCK) {
            return Ok(Moved::Nothing);
        }
        let mut fill = |target: &dyn Device, place: u64, within: u64, length: u64| {
            let mut done = 0;
            while done < length {
                self.control.check()?;
                match target.offload(how, place + done, device, from + within + done, length - done)? {
                    0 => break,
                    moved => done += moved,
                }
            }
            Ok(done)
        };
        let moved = self.target.fill(whole.start, whole.end - whole.start, &mut fill)?;
        if moved == 0 {
            // Other blocks than expected, or a server that cannot: it would not be otherwise with the next run.
            ways.pop();
            return Ok(Moved::Refused);
        }
        Totals::add(total, moved);
        Ok(Moved::Range(whole.start..whole.start + moved))
    }
}
