//! Comparing two images, and listing what differs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::is_zero;
use super::{Control, REQUEST, Requests, Totals, direct, read_padded, room, run_threads};
use crate::plan::{Action, Move, Pieces, UNIT};
use crate::{Image, Result};

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
    let mut next = || Ok(feed.next(control)?.filter(&matters).map(|step| (step, 0)));
    let left = direct::read(&mut next, a, Some(b), &look, control, &Totals::default())?;
    let steps = Mutex::new(match &left {
        Some(left) => Steps::Left(Requests { moves: left, done: 0, size: REQUEST }),
        None => Steps::All(Feed { size: REQUEST, ..feed }),
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
    All(Feed<'a>),
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
            let base = piece.base.unwrap_or(crate::RunKind::Hole);
            if base.is_shared(&piece.source) || (base.is_zero() && piece.source.is_zero()) {
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
    let end = offset.saturating_add(length);
    let mut found = Found { visit, last: None };
    let mut pieces = Pieces::new(source, base, offset, length);
    let (mut ours, mut theirs) = (vec![0; UNIT as usize], vec![0; UNIT as usize]);
    // All before `at` is dealt with.
    let mut at = offset;
    while let Some(piece) = pieces.next()? {
        let base_kind = piece.base.unwrap_or(crate::RunKind::Hole);
        let same = base_kind.is_shared(&piece.source) || (base_kind.is_zero() && piece.source.is_zero());
        let piece_end = piece.offset + piece.length;
        while at < piece_end {
            let block_end = (at - at % UNIT + UNIT).min(end);
            if same && at >= piece.offset && block_end <= piece_end {
                // Whole blocks of it.
                at = if piece_end == end { end } else { (piece_end - piece_end % UNIT).max(block_end) };
                continue;
            }
            let bytes = (block_end - at) as usize;
            let (ours, theirs) = (&mut ours[..bytes], &mut theirs[..bytes]);
            source.read(at, ours).map_err(|e| e.with_range(at, bytes as u64))?;
            match base {
                Some(base) => read_padded(base, at, theirs).map_err(|e| e.with_range(at, bytes as u64))?,
                None => theirs.fill(0),
            }
            if ours != theirs {
                found.push(at, bytes as u64, is_zero(ours))?;
            }
            at = block_end;
        }
    }
    found.finish()
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
