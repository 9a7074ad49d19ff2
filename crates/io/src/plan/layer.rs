//! The moves of merges: what some layers of a chain hold.

use std::ops::Range;

use super::{Action, Plan, UNIT};
use crate::{Error, ErrorKind, Format, Image, Result, RunKind};

/// What a raw file is allocated in.
const BLOCK: u64 = 4096;

/// As [`layers`], of one layer.
pub fn layer(image: &Image, layer: usize, offset: u64, length: u64) -> Result<Plan> {
    layers(image, layer..layer.saturating_add(1), offset, length)
}

/// Plans to move what these layers of `image` (counted from the top, 0) hold and the layers above them do not cover:
/// each byte from the uppermost layer that has it.
///
/// Their data is copied, blocks of zeroes in it and zero clusters become explicit zeroes. What other layers
/// hold, and what no layer holds, is left alone: so a hole of a raw layer stays a hole. `InvalidInput` if there are
/// no such layers.
///
/// Made for two merges; in both the target may share devices with the source, or be the source itself:
/// - *up*: layers 1 to k of `[C, Vk, .., V1, ..]`, written into `[C, Vk, .., V1, ..]`. Where a move covers a part of a
///   cluster, copy on write takes the rest from what lies below, which is what shows there anyway.
/// - *down*: layers 0 to k - 1 of `[C, Vk, .., V1]`, written into `[V1, ..]`. Only bytes that the layers above V1 cover
///   are read, so that it does not matter that V1 changes under the source.
///
/// The moves end where the layer's own runs do, with one exception: a raw lower layer has data and holes finer
/// than a cluster, and writing each piece by itself would read the cluster once more for each. A unit of 64 KiB
/// that no other layer has any part of is copied whole then; nothing can lie below its holes.
///
/// What the layer's end (its `size`) hides from below is not its content: the caller zeroes that.
pub fn layers(image: &Image, layers: Range<usize>, offset: u64, length: u64) -> Result<Plan> {
    // Only the lowest can be raw.
    let lowest = layers.clone().last().and_then(|lowest| image.format(lowest));
    let Some(format) = lowest else {
        return Err(Error::new(ErrorKind::InvalidInput, "no such layers"));
    };
    let mut plan = Plan { offset, length, ..Plan::default() };
    // The top of an image is written into what it lies on, where its holes would hide something.
    let mut units = (format == Format::Raw && layers.start > 0).then(Units::default);
    for run in image.runs_of(layers.end, offset, length) {
        let run = run?;
        let part = match run.kind {
            RunKind::Data { layer: l, .. } | RunKind::Compressed { layer: l } if layers.contains(&l) => {
                Part::Own(Action::Copy)
            }
            RunKind::Zero { layer: l } if layers.contains(&l) => Part::Own(Action::Zero),
            RunKind::Hole => Part::Hole,
            _ => Part::Other,
        };
        match &mut units {
            Some(units) => units.add(&mut plan, run.offset, run.length, part),
            None => part.push(&mut plan, run.offset, run.length),
        }
    }
    if let Some(units) = &mut units {
        units.end(&mut plan);
    }
    Ok(plan)
}

/// As [`layers`], of so much as is worth one step of a long work: at most `length` bytes of the disk, and where less is to be
/// moved, until the moves cover more than half of `moved` (64 KiB or more), and less than 64 KiB beyond it. [`Plan::length`] says how
/// much that is.
pub fn layers_part(
    image: &Image,
    layers: Range<usize>,
    offset: u64,
    length: u64,
    moved: u64,
) -> Result<Plan> {
    let mut plan = self::layers(image, layers.clone(), offset, moved.min(length))?;
    while plan.moved_bytes() <= moved / 2 && plan.length() < length {
        let room = moved - plan.moved_bytes();
        let window = (room - room % UNIT).max(UNIT).min(length - plan.length());
        plan.extend(self::layers(image, layers.clone(), offset + plan.length(), window)?);
    }
    Ok(plan)
}

/// Bytes that carrying out the plan takes from the storage for the data of its target, of which `own` is the top layer
/// alone: whole clusters, where it has none. Tables are not counted.
pub fn growth(plan: &Plan, own: &Image) -> Result<u64> {
    let unit = own.cluster_size().unwrap_or(BLOCK);
    // A cluster that two moves share is counted once.
    let (mut bytes, mut counted) = (0, 0);
    for step in plan.moves().iter().filter(|step| step.action != Action::Zero) {
        let start = (step.offset - step.offset % unit).max(counted);
        let end = (step.offset + step.length).next_multiple_of(unit);
        counted = end;
        let inside = end.min(own.size());
        for run in own.runs(start.min(inside), inside - start.min(inside)) {
            let run = run?;
            if !matches!(run.kind, RunKind::Data { .. }) {
                bytes += run.length;
            }
        }
        bytes += end - start.max(inside).min(end);
    }
    Ok(bytes)
}

/// Whose a run is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    /// The layer's own.
    Own(Action),
    /// Nobody's.
    Hole,
    /// Another layer's.
    Other,
}

impl Part {
    fn push(self, plan: &mut Plan, offset: u64, length: u64) {
        if let Part::Own(action) = self {
            plan.push(offset, length, action);
        }
    }
}

/// Gathers the pieces of one unit, to copy it whole if it is the layer's alone.
#[derive(Default)]
struct Units {
    /// Adjacent, all in one unit.
    pieces: Vec<(u64, u64, Part)>,
}

impl Units {
    fn add(&mut self, plan: &mut Plan, mut offset: u64, mut length: u64, part: Part) {
        while length > 0 {
            if offset.is_multiple_of(UNIT) {
                self.end(plan);
            }
            let whole = offset.is_multiple_of(UNIT) && length >= UNIT;
            let now = if whole { length - length % UNIT } else { (UNIT - offset % UNIT).min(length) };
            if whole {
                part.push(plan, offset, now);
            } else {
                self.pieces.push((offset, now, part));
            }
            offset += now;
            length -= now;
        }
    }

    fn end(&mut self, plan: &mut Plan) {
        let own = self.pieces.iter().any(|(_, _, part)| matches!(part, Part::Own(_)));
        let alone = self.pieces.iter().all(|(_, _, part)| *part != Part::Other);
        if own && alone {
            for (offset, length, _) in &self.pieces {
                plan.push(*offset, *length, Action::Copy);
            }
        } else {
            for (offset, length, part) in &self.pieces {
                part.push(plan, *offset, *length);
            }
        }
        self.pieces.clear();
    }
}
