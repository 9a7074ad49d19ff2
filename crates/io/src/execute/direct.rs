//! Moving bytes past the page cache, many requests at a time, on one thread.
//!
//! What does not suit (nobody says how requests must be aligned, parts of clusters, compressed data, the unaligned end of a
//! file) and what fails is left to the threads, with their errors.

mod kept;
mod transfer;

use super::{Control, Requests, Totals};
use crate::hash::Units;
use crate::map::Holes;
use crate::plan::{Action, Move};
use crate::sys::queue::Kind;
use crate::{Image, Result};
use kept::Held;
pub use kept::Keep;
pub(super) use transfer::Visit;
use transfer::{Part, Sink, Transfer};

/// The largest request, and a slot of memory for it. Larger ones are no faster, and what is under way should fit into the
/// processor's cache: on fast devices that is a fifth of the time.
pub(super) const LARGE: u64 = 1 << 20;
/// Steps up to this size have slots of their own, since there are many of them where data lies here and there.
const SMALL: u64 = 256 << 10;
/// Large slots of one job.
const SLOTS: usize = 12;
/// Small ones for each large one.
const SMALL_SLOTS: usize = 3;
/// Large slots of all jobs of this process together, but that each job has the least.
const ALL_SLOTS: usize = 3 * SLOTS;
/// Two, and two for the base.
const LEAST_SLOTS: usize = 4;
/// Requests at a time; several for a slot whose bytes lie here and there.
const DEPTH: u32 = 128;
/// More pieces in one slot, and it is read through the cache: each piece is a request.
const MAX_PARTS: usize = 64;
/// Less is not worth setting it up.
pub(super) const WORTHWHILE: u64 = 4 << 20;

/// The means that the environment leaves, for tests and to find out what is wrong: `VDSMSTORE_IO` is `cached` (none of
/// this), `threads` (no io_uring), or anything else.
fn kind() -> Option<Kind> {
    match std::env::var_os("VDSMSTORE_IO") {
        Some(text) if text == "cached" => None,
        Some(text) if text == "threads" => Some(Kind::Threads),
        _ => Some(Kind::Any),
    }
}

/// Whether any of the image can be read past the page cache.
fn is_direct(image: &Image) -> bool {
    (0..).map_while(|layer| image.device(layer)).any(|device| device.direct().is_some())
}

/// Whether [`read`] can read any of it.
pub(super) fn may_read(image: &Image) -> bool {
    kind().is_some() && is_direct(image)
}

/// Carries out those moves that suit, and returns the others. Progress is told of what was done here.
pub(super) fn run(
    moves: &[Move],
    source: &Image,
    base: Option<&Image>,
    target: &Image,
    units: Option<&Units>,
    control: &Control<'_>,
    totals: &Totals,
) -> Result<Option<Vec<Move>>> {
    let bytes = moves
        .iter()
        .filter(|step| step.action != Action::Zero)
        .fold(0u64, |sum, step| sum.saturating_add(step.length));
    let suits = || target.device(0).is_some_and(|device| device.direct().is_some()) && is_direct(source);
    let Some(kind) = kind().filter(|_| bytes >= WORTHWHILE && suits()) else { return Ok(None) };
    // Without a queue there are the threads.
    let Some(held) = Held::take(kind) else { return Ok(None) };
    let sink = Sink::Target(target.placing(bytes)?, units);
    let mut requests = Requests { moves, done: 0, size: LARGE };
    let mut run = Transfer::new(held, source, base, sink, control, totals);
    let outcome = run.all(&mut || Ok(requests.next().map(|step| (step, requests.moves))));
    let left = run.end(kind);
    outcome?;
    left.map(Some)
}

/// Reads what `next` hands out, from the base too where it is a step that compares, and shows it to `visit`, in no order; as far
/// as that suits: returns what is left. None: nothing was asked for.
pub(super) fn read(
    next: &mut dyn FnMut() -> Result<Option<Move>>,
    source: &Image,
    base: Option<&Image>,
    visit: &Visit<'_>,
    control: &Control<'_>,
    totals: &Totals,
) -> Result<Option<Vec<Move>>> {
    let size = source.size().max(base.map_or(0, Image::size));
    let suits = || size >= WORTHWHILE && is_direct(source) && base.is_none_or(is_direct);
    let Some(kind) = kind().filter(|_| suits()) else { return Ok(None) };
    let Some(held) = Held::take(kind) else { return Ok(None) };
    let mut run = Transfer::new(held, source, base, Sink::Visit(visit), control, totals);
    // Nothing is written: it is not asked what follows.
    let outcome = run.all(&mut || Ok(next()?.map(|step| (step, &[][..]))));
    let left = run.end(kind);
    outcome?;
    left.map(Some)
}

/// The parts of a range that have to be read from devices; the rest of it is zeroes. None: it has to be read in another way.
fn cover<'a>(image: &'a Image, holes: &mut Holes, offset: u64, length: u64) -> Result<Option<Vec<Part<'a>>>> {
    let mut parts: Vec<Part<'a>> = Vec::new();
    let end = (offset + length).min(image.size());
    let mut at = offset;
    while at < end {
        let run = image.run_knowing(at, end - at, holes)?;
        let (within, length) = ((at - offset) as usize, run.length as usize);
        if !run.kind.is_zero() {
            let Some((device, offset)) = image.place_of(run.kind) else { return Ok(None) };
            let Some(direct) = device.direct().filter(|direct| direct.takes(offset, run.length)) else {
                return Ok(None);
            };
            match parts.last_mut() {
                Some(last) if last.is_followed_by(device, offset, within) => last.length += length,
                _ => parts.push(Part { device, direct, offset, within, length }),
            }
        }
        at += run.length;
    }
    let suits = |part: &Part<'_>| part.direct.takes(part.within as u64, part.length as u64);
    Ok((parts.len() <= MAX_PARTS && parts.iter().all(suits)).then_some(parts))
}
