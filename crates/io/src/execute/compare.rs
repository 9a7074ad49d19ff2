//! Comparing two images, and listing what differs.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::{
    Buffers, Control, Keep, REQUEST, Requests, Totals, direct, is_zero, read_padded, room, run_threads,
};
use crate::plan::{Action, Move, Piece, Pieces, UNIT};
use crate::{Image, Result};

/// Bytes that are looked at before what differs in them is told.
const WINDOW: u64 = 256 << 20;

/// The first offset at which the images differ, `None` if nowhere. If one is longer, the rest must be zero.
///
/// Pieces that both share physically, and those that both know to be zero, are not read.
pub fn compare(a: &Image, b: &Image, control: &Control<'_>) -> Result<Option<u64>> {
    let size = a.size().max(b.size());
    // Starts beyond the end: no difference yet.
    let first = AtomicU64::new(u64::MAX);
    let mut feed =
        Feed { pieces: Pieces::new(a, Some(b), 0, size), rest: None, closed: false, size: direct::LARGE };
    // Steps come in order: nothing later than a difference matters.
    let matters = |step: &Move| step.offset < first.load(Ordering::Relaxed);
    let look = |step: &Move, ours: &[u8], theirs: Option<&[u8]>| {
        if let Some(theirs) = theirs.filter(|theirs| *theirs != ours)
            && let Some(at) = ours.iter().zip(theirs).position(|(x, y)| x != y)
        {
            first.fetch_min(step.offset + at as u64, Ordering::Relaxed);
        }
        Ok(())
    };
    let mut next = || Ok(feed.next(control)?.filter(&matters));
    let left = direct::read(&mut next, a, Some(b), &look, control, &Totals::default())?;
    let steps = Mutex::new(match &left {
        Some(left) => Steps::Left(Requests { moves: left, done: 0, size: REQUEST }),
        None => Steps::All(Box::new(Feed { size: REQUEST, ..feed })),
    });
    run_threads(
        control,
        || {
            let next = match &mut *steps.lock().unwrap_or_else(PoisonError::into_inner) {
                Steps::All(feed) => feed.next(control)?,
                Steps::Left(requests) => requests.next(),
            };
            Ok(next.filter(&matters))
        },
        &|step, buffers| {
            let (offset, length) = (step.offset, step.length);
            let ours = room(&mut buffers.source, length);
            read_padded(a, offset, ours).map_err(|e| e.with_range(offset, length))?;
            let theirs = room(&mut buffers.base, length);
            read_padded(b, offset, theirs).map_err(|e| e.with_range(offset, length))?;
            look(&step, ours, Some(theirs))
        },
    )?;
    let first = first.into_inner();
    Ok((first != u64::MAX).then_some(first))
}

/// What is compared by threads.
enum Steps<'a> {
    All(Box<Feed<'a>>),
    /// What did not suit another means.
    Left(Requests<'a>),
}

/// Hands out what must be compared byte by byte, in order.
struct Feed<'a> {
    pieces: Pieces<'a>,
    /// What is left of the last pieces that follow one another: offset and length.
    rest: Option<(u64, u64)>,
    /// Nothing follows them.
    closed: bool,
    /// Of a request.
    size: u64,
}

impl Feed<'_> {
    fn next(&mut self, control: &Control<'_>) -> Result<Option<Move>> {
        loop {
            let (offset, length) = self.rest.unwrap_or((0, 0));
            let now = self.size - offset % self.size;
            if length > 0 && (self.closed || length >= now) {
                let now = now.min(length);
                self.rest = Some((offset + now, length - now));
                return Ok(Some(Move { offset, length: now, action: Action::Compare }));
            }
            let Some(piece) = self.pieces.next()? else {
                if length == 0 {
                    return Ok(None);
                }
                self.closed = true;
                continue;
            };
            if piece.is_same() {
                control.check()?;
                (control.progress)(piece.length);
                self.closed = true;
            } else if length == 0 {
                self.rest = Some((piece.offset, piece.length));
                self.closed = false;
            } else {
                self.rest = Some((offset, length + piece.length));
            }
        }
    }
}

/// Lists what differs between the source and its base (zeroes without one, and beyond its end), in order.
///
/// `visit` gets offset, length and whether the source reads as zeroes there. Ranges begin and end at multiples
/// of 64 KiB or at the ends of the range asked for, and adjacent ones of the same kind are merged.
pub fn diff(
    source: &Image,
    base: Option<&Image>,
    offset: u64,
    length: u64,
    visit: &mut dyn FnMut(u64, u64, bool) -> Result<()>,
) -> Result<()> {
    let mut found = Found { visit, last: None };
    let mut blocks = Blocks::new(source, base, offset, length);
    let control = Control { cancel: &|| false, progress: &|_| {}, threads: 1 };
    // From window to window.
    let _keep = Keep::new();
    let mut buffers = Buffers::default();
    loop {
        // What differs comes in no order: a window is looked at whole before any of it is told.
        let window = Mutex::new(Vec::new());
        let look = |step: &Move, ours: &[u8], theirs: Option<&[u8]>| {
            let mut window = window.lock().unwrap_or_else(PoisonError::into_inner);
            differing(step, ours, theirs, &mut window);
            Ok(())
        };
        let mut steps = Vec::new();
        let (mut bytes, mut more) = (0, true);
        while more && bytes < WINDOW {
            match blocks.next(direct::LARGE)? {
                Some(step) => {
                    bytes += step.length;
                    steps.push(step);
                }
                None => more = false,
            }
        }
        let mut asked = steps.iter();
        let mut next = || Ok(asked.next().copied());
        let left = if bytes >= direct::WORTHWHILE {
            direct::read(&mut next, source, base, &look, &control, &Totals::default())?
        } else {
            None
        };
        for step in (Requests { moves: left.as_ref().unwrap_or(&steps), done: 0, size: REQUEST }) {
            let (offset, length) = (step.offset, step.length);
            let ours = room(&mut buffers.source, length);
            source.read(offset, ours).map_err(|e| e.with_range(offset, length))?;
            let theirs = match base {
                Some(base) => {
                    let theirs = room(&mut buffers.base, length);
                    read_padded(base, offset, theirs).map_err(|e| e.with_range(offset, length))?;
                    Some(&*theirs)
                }
                None => None,
            };
            look(&step, ours, theirs)?;
        }
        let mut window = window.into_inner().unwrap_or_else(PoisonError::into_inner);
        window.sort_unstable();
        for (offset, length, zero) in window {
            found.push(offset, length, zero)?;
        }
        if !more {
            return found.finish();
        }
    }
}

/// Looks at the blocks of a step. Without a base, what is not zero differs.
fn differing(step: &Move, ours: &[u8], theirs: Option<&[u8]>, found: &mut Vec<(u64, u64, bool)>) {
    let mut start = 0;
    while start < ours.len() {
        let at = step.offset + start as u64;
        let end = ours.len().min(start + (UNIT - at % UNIT) as usize);
        let block = &ours[start..end];
        let zero = is_zero(block);
        if theirs.map_or(!zero, |theirs| theirs[start..end] != *block) {
            let length = block.len() as u64;
            match found.last_mut() {
                Some((last, so_far, kind)) if *last + *so_far == at && *kind == zero => *so_far += length,
                _ => found.push((at, length, zero)),
            }
        }
        start = end;
    }
}

/// Hands out which blocks of [`UNIT`] must be looked at, in order.
struct Blocks<'a> {
    pieces: Pieces<'a>,
    piece: Option<Piece>,
    action: Action,
    /// All before it is dealt with.
    at: u64,
    end: u64,
    /// Found, and not yet handed out.
    rest: Range<u64>,
}

impl<'a> Blocks<'a> {
    fn new(source: &'a Image, base: Option<&'a Image>, offset: u64, length: u64) -> Self {
        let action = if base.is_some() { Action::Compare } else { Action::Copy };
        let end = offset.saturating_add(length);
        let pieces = Pieces::new(source, base, offset, length);
        Blocks { pieces, piece: None, action, at: offset, end, rest: offset..offset }
    }

    /// The next step, which crosses no multiple of `size`.
    fn next(&mut self, size: u64) -> Result<Option<Move>> {
        let limit = |start: u64| start - start % size + size;
        while self.rest.is_empty() || self.rest.end < limit(self.rest.start) {
            match self.range()? {
                Some(range) if range.start == self.rest.end || self.rest.is_empty() => {
                    let start = if self.rest.is_empty() { range.start } else { self.rest.start };
                    self.rest = start..range.end;
                }
                Some(range) => {
                    let step = self.step(self.rest.clone());
                    self.rest = range;
                    return Ok(Some(step));
                }
                None if self.rest.is_empty() => return Ok(None),
                None => break,
            }
        }
        let now = self.rest.start..self.rest.end.min(limit(self.rest.start));
        self.rest.start = now.end;
        Ok(Some(self.step(now)))
    }

    fn step(&self, range: Range<u64>) -> Move {
        Move { offset: range.start, length: range.end - range.start, action: self.action }
    }

    /// Some blocks that follow one another.
    fn range(&mut self) -> Result<Option<Range<u64>>> {
        loop {
            let Some(piece) =
                self.piece.take().map_or_else(|| self.pieces.next(), |piece| Ok(Some(piece)))?
            else {
                return Ok(None);
            };
            let end = piece.offset + piece.length;
            if self.at >= end {
                continue;
            }
            self.piece = Some(piece);
            let block_end = (self.at - self.at % UNIT + UNIT).min(self.end);
            let same = piece.is_same();
            if same && self.at >= piece.offset && block_end <= end {
                // Whole blocks of it.
                self.at = if end == self.end { end } else { (end - end % UNIT).max(block_end) };
                continue;
            }
            let stop = if same { block_end } else { end.next_multiple_of(UNIT).min(self.end) };
            let range = self.at..stop;
            self.at = stop;
            return Ok(Some(range));
        }
    }
}

/// Merges what differs.
struct Found<'a> {
    visit: &'a mut dyn FnMut(u64, u64, bool) -> Result<()>,
    last: Option<(u64, u64, bool)>,
}

impl Found<'_> {
    fn push(&mut self, offset: u64, length: u64, zero: bool) -> Result<()> {
        match &mut self.last {
            Some((start, so_far, kind)) if *start + *so_far == offset && *kind == zero => {
                *so_far += length;
                Ok(())
            }
            _ => {
                self.finish()?;
                self.last = Some((offset, length, zero));
                Ok(())
            }
        }
    }

    fn finish(&mut self) -> Result<()> {
        match self.last.take() {
            Some((offset, length, zero)) => (self.visit)(offset, length, zero),
            None => Ok(()),
        }
    }
}
