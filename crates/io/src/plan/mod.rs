//! The second step: from maps to moves.

mod layer;
mod same;

use crate::map::Holes;
use crate::{Image, Offload, Result, Run, RunKind};

pub use layer::{growth, layer, layers, layers_part};
use same::Same;

/// Data is looked at for zeroes, and two images for differences, in units of this many bytes.
pub(crate) const UNIT: u64 = 64 << 10;
/// The largest clone; cancelling waits for it.
pub(crate) const CLONE: u64 = 64 << 20;

/// How the bytes of a move get there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Read from the source, written to the target; blocks of zeroes become explicit zeroes.
    Copy,
    /// Read from the source; only what is not zero is written, because the target reads as zero there already.
    CopyNonZero,
    /// Made to read as zeroes in the target.
    Zero,
    /// Read from source and base; written (or zeroed) where they differ.
    Compare,
}

/// One step of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// Offset in source and target, in bytes.
    pub offset: u64,
    /// Length in bytes, not 0.
    pub length: u64,
    /// What is to be done.
    pub action: Action,
}

/// The moves that bring a range of a target in step with its source; what no move covers is right already.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    offset: u64,
    length: u64,
    moves: Vec<Move>,
    /// Of all moves, in bytes.
    moved: u64,
}

impl Plan {
    /// The moves, in order of offset, not overlapping, adjacent equal ones merged.
    pub fn moves(&self) -> &[Move] {
        &self.moves
    }

    /// Where the planned range begins.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Length of the planned range in bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Bytes that the moves cover.
    pub fn moved_bytes(&self) -> u64 {
        self.moved
    }

    /// What no move covers, in order: offset and length of each part, which may be 0.
    pub(crate) fn gaps(&self) -> impl Iterator<Item = (u64, u64)> {
        let ends = self.moves.iter().map(|step| step.offset + step.length);
        let starts = self.moves.iter().map(|step| step.offset);
        let from = std::iter::once(self.offset).chain(ends);
        from.zip(starts.chain(std::iter::once(self.offset + self.length))).map(|(from, to)| (from, to - from))
    }

    /// Bytes that executing it reads, from source and base together.
    pub fn read_bytes(&self) -> u64 {
        self.sum(|action| match action {
            Action::Copy | Action::CopyNonZero => 1,
            Action::Zero => 0,
            Action::Compare => 2,
        })
    }

    /// Bytes that executing it writes at most; zeroing is not counted.
    pub fn write_bytes(&self) -> u64 {
        self.sum(|action| u64::from(action != Action::Zero))
    }

    fn sum(&self, weight: impl Fn(Action) -> u64) -> u64 {
        self.moves.iter().fold(0, |sum, step| sum.saturating_add(step.length * weight(step.action)))
    }

    /// The same without what lies in these ranges, which begin and end where moves may be cut: offset and length, in order.
    pub(crate) fn without(&self, ranges: &[(u64, u64)]) -> Plan {
        let mut plan = Plan { offset: self.offset, length: self.length, ..Plan::default() };
        for step in &self.moves {
            let (mut at, end) = (step.offset, step.offset + step.length);
            let first = ranges.partition_point(|(offset, length)| offset + length <= at);
            for &(offset, length) in ranges[first..].iter().take_while(|(offset, _)| *offset < end) {
                plan.push_some(at, offset.saturating_sub(at), Some(step.action));
                at = offset + length;
            }
            plan.push_some(at, end.saturating_sub(at), Some(step.action));
        }
        plan
    }

    /// Adds the moves of a plan of what follows.
    pub(crate) fn extend(&mut self, other: Plan) {
        self.length = (other.offset + other.length).saturating_sub(self.offset);
        self.moves.extend(other.moves);
        self.moved += other.moved;
    }

    fn push_some(&mut self, offset: u64, length: u64, action: Option<Action>) {
        if let Some(action) = action
            && length > 0
        {
            self.push(offset, length, action);
        }
    }

    fn push(&mut self, offset: u64, length: u64, action: Action) {
        self.moved += length;
        match self.moves.last_mut() {
            Some(last) if last.action == action && last.offset + last.length == offset => {
                last.length += length;
            }
            _ => self.moves.push(Move { offset, length, action }),
        }
    }
}

/// What is known of the target before anything is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// It is an overlay: where it has nothing, the base shows.
    pub backed: bool,
    /// Where nothing shows through, it reads as zeroes now: a new sparse file, never a logical volume.
    pub known_zero: bool,
}

/// Plans to make the range of a target read as the source does.
///
/// Without a base all of it is written, but for zeroes that the target has already. With a base, which must be
/// what shows through the (empty, backed) target, only what differs: pieces that both share physically and
/// pieces that both know to be zero are left out without being read. Beyond the end of the base zeroes show.
///
/// With a base, moves begin and end at multiples of 64 KiB in the disk (but for the ends of the range): the
/// overlay is written in whole clusters, and a unit that is partly a hole in one and partly data in the other is
/// compared, because a hole and zeroes read the same.
pub fn copy(source: &Image, base: Option<&Image>, target: Target, offset: u64, length: u64) -> Result<Plan> {
    copy_part(source, base, target, offset, &Part::of(length))
}

/// As [`copy`] to a new raw file that the storage can clone all of the source into; `None`: it cannot, or one of them is more than
/// a raw file. Holes are looked for only every 64 MiB: those between are cloned too.
pub fn clone(source: &Image, target: &Image) -> Result<Option<Plan>> {
    let can_clone = |device| target.can_offload(Offload::Clone, device);
    if !source.is_raw() || !target.is_raw() || !source.device(0).is_some_and(can_clone) {
        return Ok(None);
    }
    let mut plan = Plan { offset: 0, length: source.size(), ..Plan::default() };
    let (mut at, mut holes) = (0, Holes::default());
    while at < plan.length {
        let run = source.run_knowing(at, plan.length - at, &mut holes)?;
        let length = if run.kind.is_zero() { run.length } else { CLONE.min(plan.length - at) };
        plan.push_some(at, length, (!run.kind.is_zero()).then_some(Action::CopyNonZero));
        at += length;
    }
    Ok(Some(plan))
}

/// Where a plan ends, and how it is cut.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// It covers no more of the disk, in bytes.
    pub length: u64,
    /// It ends where its moves cover so many bytes,
    pub moved: u64,
    /// but goes on up to a multiple of this, which is a multiple of 64 KiB.
    pub align: u64,
    /// Moves begin and end at multiples of 64 KiB without a base, too.
    pub units: bool,
}

impl Part {
    /// All of that length.
    fn of(length: u64) -> Part {
        Part { length, moved: u64::MAX, align: UNIT, units: false }
    }
}

/// The units of an image that have data: what no move covers is zero.
pub(crate) fn units(image: &Image, offset: u64, length: u64) -> Result<Plan> {
    let target = Target { backed: false, known_zero: true };
    copy_part(image, None, target, offset, &Part { units: true, ..Part::of(length) })
}

/// As [`copy`], of so much as is worth one step of a long work: [`Plan::length`] says how much that is.
pub fn copy_part(
    source: &Image,
    base: Option<&Image>,
    target: Target,
    offset: u64,
    part: &Part,
) -> Result<Plan> {
    let mut plan = Plan { offset, length: part.length, ..Plan::default() };
    let mut pieces = Pieces::new(source, base, offset, part.length);
    let mut mixed = Mixed { based: base.is_some(), ..Mixed::default() };
    let mut is_full = false;
    while let Some(mut piece) = pieces.next()? {
        let is_zero = piece.source.is_zero();
        let action = match piece.base {
            None if target.known_zero && !target.backed => (!is_zero).then_some(Action::CopyNonZero),
            None if is_zero => Some(Action::Zero),
            None => Some(Action::Copy),
            Some(_) if piece.shared => None,
            Some(base) => match (is_zero, base.is_zero()) {
                (true, true) => None,
                (true, false) => Some(Action::Zero),
                (false, true) => Some(Action::CopyNonZero),
                (false, false) => Some(Action::Compare),
            },
        };
        let room = part.moved.saturating_sub(plan.moved_bytes() + mixed.moved());
        if !is_full && (action.is_some() && piece.length >= room || room == 0) {
            // Enough: the rest of what lies between two multiples, and no more.
            let aligned = piece.offset.saturating_add(room).checked_next_multiple_of(part.align);
            pieces.end = pieces.end.min(aligned.unwrap_or(u64::MAX));
            piece.length = piece.length.min(pieces.end - piece.offset);
            plan.length = pieces.end - offset;
            is_full = true;
            if piece.length == 0 {
                break;
            }
        }
        if part.units || base.is_some() {
            mixed.add(&mut plan, piece.offset, piece.length, action);
        } else {
            plan.push_some(piece.offset, piece.length, action);
        }
    }
    mixed.end(&mut plan);
    Ok(plan)
}

/// Joins what lies in one unit to one move.
#[derive(Default)]
struct Mixed {
    /// There is a base.
    based: bool,
    offset: u64,
    length: u64,
    action: Option<Action>,
}

impl Mixed {
    fn add(&mut self, plan: &mut Plan, mut offset: u64, mut length: u64, action: Option<Action>) {
        while length > 0 {
            let whole = offset.is_multiple_of(UNIT) && length >= UNIT;
            let part = if whole { length - length % UNIT } else { (UNIT - offset % UNIT).min(length) };
            if whole || self.length == 0 || self.offset / UNIT != offset / UNIT {
                self.end(plan);
                *self = Self { offset, length: part, action, ..*self };
            } else {
                if self.action != action {
                    self.action = Some(self.both(action));
                }
                self.length += part;
            }
            offset += part;
            length -= part;
        }
    }

    /// What does for both, which are not the same.
    fn both(&self, other: Option<Action>) -> Action {
        match (self.action, other) {
            _ if self.based => Action::Compare,
            (None, Some(Action::CopyNonZero)) | (Some(Action::CopyNonZero), None) => Action::CopyNonZero,
            _ => Action::Copy,
        }
    }

    /// What is still to become a move, in bytes.
    fn moved(&self) -> u64 {
        self.action.map_or(0, |_| self.length)
    }

    fn end(&mut self, plan: &mut Plan) {
        plan.push_some(self.offset, self.length, self.action);
        self.length = 0;
    }
}

/// A range over which both maps are the same.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    pub offset: u64,
    pub length: u64,
    pub source: RunKind,
    /// `Hole` beyond the end of the base; `None` without a base.
    pub base: Option<RunKind>,
    /// Both are the same bytes of the same device.
    pub shared: bool,
}

impl Piece {
    /// Whether both are known to be the same without being read.
    pub fn is_same(&self) -> bool {
        self.shared || (self.source.is_zero() && self.base.is_none_or(|base| base.is_zero()))
    }
}

/// Two maps side by side, as a stream. Either image may end early: a hole then.
#[derive(Debug)]
pub(crate) struct Pieces<'a> {
    source: &'a Image,
    base: Option<&'a Image>,
    offset: u64,
    end: u64,
    source_run: Option<Run>,
    base_run: Option<Run>,
    source_holes: Holes,
    base_holes: Holes,
    same: Same,
}

impl<'a> Pieces<'a> {
    pub fn new(source: &'a Image, base: Option<&'a Image>, offset: u64, length: u64) -> Pieces<'a> {
        let end = offset.saturating_add(length);
        let holes = Holes::default;
        Pieces {
            source,
            base,
            offset,
            end,
            source_run: None,
            base_run: None,
            source_holes: holes(),
            base_holes: holes(),
            same: Same::default(),
        }
    }

    pub fn next(&mut self) -> Result<Option<Piece>> {
        let (offset, length) = (self.offset, self.end - self.offset.min(self.end));
        if length == 0 {
            return Ok(None);
        }
        let source = rest(self.source, &mut self.source_run, &mut self.source_holes, offset, length)?;
        let base = match self.base {
            Some(image) => Some(rest(image, &mut self.base_run, &mut self.base_holes, offset, length)?),
            None => None,
        };
        let length = base.map_or(source.length, |base| base.length.min(source.length)).min(length);
        let (ours, base) = (source.kind, base.map(|run| run.kind));
        let (shared, length) = match (self.base, base) {
            (Some(_), Some(theirs)) if theirs.is_shared(&ours) => (true, length),
            (Some(image), Some(theirs)) => self.same.first((self.source, ours), (image, theirs), length),
            _ => (false, length),
        };
        self.offset += length;
        Ok(Some(Piece { offset, length, source: ours, base, shared }))
    }
}

/// What is left of the remembered run at `offset`, or the next one.
fn rest(image: &Image, run: &mut Option<Run>, holes: &mut Holes, offset: u64, length: u64) -> Result<Run> {
    let found = match *run {
        Some(run) if run.offset <= offset && offset - run.offset < run.length => {
            let gone = offset - run.offset;
            Run { offset, length: run.length - gone, kind: run.kind.advanced(gone) }
        }
        _ => match image.size().checked_sub(offset).filter(|room| *room > 0) {
            Some(room) => image.run_knowing(offset, length.min(room), holes)?,
            None => Run { offset, length, kind: RunKind::Hole },
        },
    };
    *run = Some(found);
    Ok(found)
}
