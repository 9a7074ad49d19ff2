//! The third step: moving the bytes. The only place of this crate with threads.

mod compare;
mod compress;
mod direct;
mod offload;
mod stream;
mod zero;

use std::borrow::Cow;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::hash::Units;
use crate::plan::{Action, Move, Plan, UNIT};
use crate::{Error, ErrorKind, Image, Result};

pub use compare::{compare, diff};
pub use compress::compress;
pub use direct::Keep;
use offload::offload;
pub use stream::stream;
pub(crate) use zero::is_zero;

/// One request, in bytes.
const REQUEST: u64 = 1 << 20;
/// Zeroing is metadata mostly: larger requests, but small enough that cancelling does not wait.
const ZERO_REQUEST: u64 = 256 << 20;
/// More do not help.
const MAX_THREADS: usize = 32;

/// What the caller says while it runs. Both functions are called from several threads.
#[derive(Clone, Copy)]
pub struct Control<'a> {
    /// Asked before each request; `true` ends the work with `Cancelled`.
    pub cancel: &'a (dyn Fn() -> bool + Sync),
    /// Told the bytes of the range that were completed since the last call, those that needed no work included:
    /// all calls together add up to the length of the range.
    pub progress: &'a (dyn Fn(u64) + Sync),
    /// Requests at a time; 0 counts as 1.
    pub threads: usize,
}

impl std::fmt::Debug for Control<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").field("threads", &self.threads).finish_non_exhaustive()
    }
}

impl Control<'_> {
    fn check(&self) -> Result<()> {
        if (self.cancel)() { Err(Error::new(ErrorKind::Cancelled, "cancelled")) } else { Ok(()) }
    }
}

/// What was done, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Read from source and base.
    pub read: u64,
    /// Written as data.
    pub written: u64,
    /// Made to read as zeroes.
    pub zeroed: u64,
    /// Cloned: neither read nor written, both share them now.
    pub cloned: u64,
    /// Copied by a server: neither read nor written here.
    pub offloaded: u64,
    /// Of what was written: past the page cache.
    pub direct: u64,
}

impl Outcome {
    /// Of what was written: through the page cache.
    pub fn cached(&self) -> u64 {
        self.written - self.direct
    }
}

#[derive(Default)]
pub(crate) struct Totals {
    read: AtomicU64,
    written: AtomicU64,
    zeroed: AtomicU64,
    cloned: AtomicU64,
    offloaded: AtomicU64,
    direct: AtomicU64,
}

impl Totals {
    fn add(total: &AtomicU64, bytes: u64) {
        total.fetch_add(bytes, Ordering::Relaxed);
    }

    pub fn outcome(self) -> Outcome {
        Outcome {
            read: self.read.into_inner(),
            written: self.written.into_inner(),
            zeroed: self.zeroed.into_inner(),
            cloned: self.cloned.into_inner(),
            offloaded: self.offloaded.into_inner(),
            direct: self.direct.into_inner(),
        }
    }
}

/// Carries out a plan. `base` is needed if the plan was made with one. Does not flush the target.
///
/// What the storage can clone or copy by itself it does, zeroes in it included; the rest is read and written.
///
/// The first error ends it, after the requests under way; the target is then partly written.
pub fn execute(
    plan: &Plan,
    source: &Image,
    base: Option<&Image>,
    target: &Image,
    control: &Control<'_>,
) -> Result<Outcome> {
    run(plan, source, base, target, None, control)
}

/// The same, of a plan whose moves are whole units of 64 KiB ([`Part::units`](crate::plan::Part::units)); hashes of the
/// source are taken of what is read or known to be zero. What was not read, for the storage moved it or it was left out, is
/// missing in them.
pub fn execute_hashed(
    plan: &Plan,
    source: &Image,
    base: Option<&Image>,
    target: &Image,
    units: &Units,
    control: &Control<'_>,
) -> Result<Outcome> {
    if base.is_none() {
        units.see_gaps(plan);
    }
    for step in plan.moves().iter().filter(|step| step.action == Action::Zero) {
        units.see_zeroes(step.offset, step.length);
    }
    run(plan, source, base, target, Some(units), control)
}

fn run(
    plan: &Plan,
    source: &Image,
    base: Option<&Image>,
    target: &Image,
    units: Option<&Units>,
    control: &Control<'_>,
) -> Result<Outcome> {
    let nothing_to_do = plan.length().saturating_sub(plan.moved_bytes());
    if nothing_to_do > 0 {
        (control.progress)(nothing_to_do);
    }
    let totals = Totals::default();
    let left = offload(plan.moves(), source, target, control, &totals)?;
    let left = match direct::run(&left, source, base, target, units, control, &totals)? {
        Some(left) => Cow::Owned(left),
        None => left,
    };
    run_requests(&left, REQUEST, control, &|step, buffers| {
        run_move(&step, source, base, target, units, buffers, &totals)
    })?;
    Ok(totals.outcome())
}

/// Reads all bytes of these moves, and shows them to `visit`, in no order; beyond the end of the image are zeroes.
pub(crate) fn read_moves(
    moves: &[Move],
    image: &Image,
    visit: &direct::Visit<'_>,
    control: &Control<'_>,
    totals: &Totals,
) -> Result<()> {
    let mut requests = Requests { moves, done: 0, size: direct::LARGE };
    let mut next = || Ok(requests.next());
    let left = direct::read(&mut next, image, None, visit, control, totals)?;
    run_requests(left.as_deref().unwrap_or(moves), REQUEST, control, &|step, buffers| {
        let bytes = room(&mut buffers.source, step.length);
        read_padded(image, step.offset, bytes).map_err(|e| e.with_range(step.offset, step.length))?;
        Totals::add(&totals.read, step.length);
        visit(&step, bytes, None)
    })
}

/// What one thread keeps between requests.
#[derive(Default)]
struct Buffers {
    source: Vec<u8>,
    base: Vec<u8>,
}

/// Room of that length; old content stays.
fn room(buffer: &mut Vec<u8>, length: u64) -> &mut [u8] {
    if (buffer.len() as u64) < length {
        buffer.resize(length as usize, 0);
    }
    &mut buffer[..length as usize]
}

/// Works off moves, in requests of that size, on several threads.
fn run_requests(
    moves: &[Move],
    size: u64,
    control: &Control<'_>,
    work: &(dyn Fn(Move, &mut Buffers) -> Result<()> + Sync),
) -> Result<()> {
    let requests = Requests { moves, done: 0, size };
    // No more threads than there are requests for.
    let threads = Requests { ..requests }.take(control.threads.min(MAX_THREADS)).count();
    let requests = Mutex::new(requests);
    run_threads(
        &Control { threads, ..*control },
        || Ok(requests.lock().unwrap_or_else(PoisonError::into_inner).next()),
        work,
    )
}

/// Works off what `next` hands out until there is no more, on several threads; reports progress after each.
/// The first error stops all.
fn run_threads(
    control: &Control<'_>,
    next: impl Fn() -> Result<Option<Move>> + Sync,
    work: &(dyn Fn(Move, &mut Buffers) -> Result<()> + Sync),
) -> Result<()> {
    let stop = AtomicBool::new(false);
    let failure = Mutex::new(None);
    let worker = || {
        let mut buffers = Buffers::default();
        let mut one = || -> Result<bool> {
            control.check()?;
            let Some(request) = next()? else { return Ok(false) };
            work(request, &mut buffers)?;
            (control.progress)(request.length);
            Ok(true)
        };
        while !stop.load(Ordering::Relaxed) {
            match one() {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    stop.store(true, Ordering::Relaxed);
                    failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                    return;
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..control.threads.clamp(1, MAX_THREADS) {
            scope.spawn(worker);
        }
        worker();
    });
    match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// Cuts moves into requests that end at multiples of their size.
struct Requests<'a> {
    moves: &'a [Move],
    /// Bytes of the first move that are handed out.
    done: u64,
    /// Of a request.
    size: u64,
}

impl Iterator for Requests<'_> {
    type Item = Move;

    fn next(&mut self) -> Option<Move> {
        let (first, others) = self.moves.split_first()?;
        let size = if first.action == Action::Zero { ZERO_REQUEST } else { self.size };
        let offset = first.offset + self.done;
        let length = (size - offset % size).min(first.length - self.done);
        self.done += length;
        if self.done == first.length {
            self.moves = others;
            self.done = 0;
        }
        Some(Move { offset, length, action: first.action })
    }
}

/// Reads from an image that may end before the range does.
fn read_padded(image: &Image, offset: u64, buffer: &mut [u8]) -> Result<()> {
    let have = (image.size().saturating_sub(offset) as usize).min(buffer.len());
    let (now, rest) = buffer.split_at_mut(have);
    rest.fill(0);
    if now.is_empty() { Ok(()) } else { image.read(offset, now) }
}

fn run_move(
    step: &Move,
    source: &Image,
    base: Option<&Image>,
    target: &Image,
    units: Option<&Units>,
    buffers: &mut Buffers,
    totals: &Totals,
) -> Result<()> {
    let (offset, length) = (step.offset, step.length);
    if step.action == Action::Zero {
        totals.zeroed.fetch_add(length, Ordering::Relaxed);
        return target.write_zeroes(offset, length).map_err(|e| e.with_range(offset, length));
    }
    let data = room(&mut buffers.source, length);
    source.read(offset, data).map_err(|e| e.with_range(offset, length))?;
    totals.read.fetch_add(length, Ordering::Relaxed);
    if let Some(units) = units {
        units.see(offset, data);
    }
    let below = if step.action == Action::Compare {
        let base = base.ok_or_else(|| Error::new(ErrorKind::InvalidInput, "the plan needs its base"))?;
        let below = room(&mut buffers.base, length);
        read_padded(base, offset, below).map_err(|e| e.with_range(offset, length))?;
        totals.read.fetch_add(length, Ordering::Relaxed);
        Some(&*below)
    } else {
        None
    };
    for (range, fate) in fates(step, UNIT, data, below) {
        let (at, bytes) = (offset + range.start as u64, range.len() as u64);
        match fate {
            Fate::Leave => {}
            Fate::Zero => {
                target.write_zeroes(at, bytes).map_err(|e| e.with_range(at, bytes))?;
                totals.zeroed.fetch_add(bytes, Ordering::Relaxed);
            }
            Fate::Write => {
                target.write(at, &data[range]).map_err(|e| e.with_range(at, bytes))?;
                totals.written.fetch_add(bytes, Ordering::Relaxed);
            }
        }
    }
    Ok(())
}

/// What becomes of the bytes of a step, in pieces that end at multiples of `unit` in the disk.
fn fates<'a>(
    step: &Move,
    unit: u64,
    data: &'a [u8],
    below: Option<&'a [u8]>,
) -> impl Iterator<Item = (Range<usize>, Fate)> + use<'a> {
    let Move { offset, action, .. } = *step;
    let fate = move |range: Range<usize>| {
        let block = &data[range.clone()];
        match action {
            Action::Compare if below.is_some_and(|below| below[range] == *block) => Fate::Leave,
            Action::CopyNonZero if is_zero(block) => Fate::Leave,
            Action::Copy | Action::Compare if is_zero(block) => Fate::Zero,
            _ => Fate::Write,
        }
    };
    let block_end = move |at: usize| (at + (unit - (offset + at as u64) % unit) as usize).min(data.len());
    let mut start = 0;
    // What follows was looked at when the piece before it ended.
    let mut known = None;
    std::iter::from_fn(move || {
        if start == data.len() {
            return None;
        }
        let mut end = block_end(start);
        let first = known.take().unwrap_or_else(|| fate(start..end));
        while end < data.len() {
            let next = fate(end..block_end(end));
            if next != first {
                known = Some(next);
                break;
            }
            end = block_end(end);
        }
        let piece = start..end;
        start = end;
        Some((piece, first))
    })
}

/// What becomes of a block.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Leave,
    Zero,
    Write,
}
