//! The moves of merges: what one layer of a chain holds.

use super::{Action, Plan, UNIT};
use crate::{Error, ErrorKind, Format, Image, Result, RunKind};

/// Plans to move what `layer` of `image` (counted from the top, 0) holds and the layers above it do not cover.
///
/// Its data is copied, blocks of zeroes in it and its zero clusters become explicit zeroes. What other layers
/// hold, and what no layer holds, is left alone: so a hole of a raw layer stays a hole. `InvalidInput` if there is
/// no such layer.
///
/// Made for two merges; in both the target may share devices with the source, or be the source itself:
/// - *up*: layer 1 of `[C, V, ..]`, written into `[C, V, ..]`. Where a move covers a part of a cluster, copy on
///   write takes the rest from V and what lies below it, which is what shows there anyway.
/// - *down*: layer 0 of `[C, V]`, written into `[V, ..]`. Only bytes that C covers are read, so that it does not
///   matter that V changes under the source.
///
/// The moves end where the layer's own runs do, with one exception: a raw lower layer has data and holes finer
/// than a cluster, and writing each piece by itself would read the cluster once more for each. A unit of 64 KiB
/// that no other layer has any part of is copied whole then; nothing can lie below its holes.
///
/// What the layer's end (its `size`) hides from below is not its content: the caller zeroes that.
pub fn layer(image: &Image, layer: usize, offset: u64, length: u64) -> Result<Plan> {
    let Some(format) = image.format(layer) else {
        return Err(Error::new(ErrorKind::InvalidInput, "no such layer"));
    };
    let mut plan = Plan { offset, length, moves: Vec::new() };
    // The top of an image is written into what it lies on, where its holes would hide something.
    let mut units = (format == Format::Raw && layer > 0).then(Units::default);
    for run in image.runs(offset, length) {
        let run = run?;
        let part = match run.kind {
            RunKind::Data { layer: l, .. } | RunKind::Compressed { layer: l } if l == layer => {
                Part::Own(Action::Copy)
            }
            RunKind::Zero { layer: l } if l == layer => Part::Own(Action::Zero),
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
