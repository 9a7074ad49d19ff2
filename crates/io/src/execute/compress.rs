//! Filling an image with compressed clusters.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use super::{
    Control, MAX_THREADS, Outcome, REQUEST, Requests, Totals, direct, is_zero, read_padded, room,
    run_requests,
};
use crate::plan::{Action, Move};
use crate::{Error, ErrorKind, Image, Result};

/// Copies a range to the same place of a qcow2 target, compressed as its header says: deflate, or zstd. Clusters
/// that do not become smaller are written plainly, those of zeroes are made to read as zeroes. Does not flush.
///
/// The range begins at a multiple of the target's cluster size, and ends at one or at the end of the target;
/// beyond the end of the source zeroes are written. Compressing happens on all threads of `control`; where the source can be
/// read past the page cache, one more reads ahead of them. The first error ends it, after the requests under way; the target
/// is then partly written.
pub fn compress(
    source: &Image,
    target: &Image,
    offset: u64,
    length: u64,
    control: &Control<'_>,
) -> Result<Outcome> {
    let Some(cluster_size) = target.cluster_size() else {
        return Err(Error::new(ErrorKind::InvalidInput, "only a qcow2 image can be compressed"));
    };
    let size = REQUEST.max(cluster_size);
    let totals = Totals::default();
    let work = Work { source, target, cluster_size, size, totals: &totals };
    let all = (length > 0).then_some(Move { offset, length, action: Action::Copy });
    let mut ahead = Requests { moves: all.as_slice(), done: 0, size: direct::LARGE };
    let read = length >= direct::WORTHWHILE && direct::may_read(source);
    let left = if read { work.read_ahead(&mut ahead, control)? } else { None };
    let moves = left.as_deref().unwrap_or(all.as_slice());
    run_requests(moves, size, control, &|step, buffers| {
        if work.is_known_zero(&step)? {
            return work.zero(&step);
        }
        let data = room(&mut buffers.source, step.length);
        read_padded(source, step.offset, data).map_err(|e| e.with_range(step.offset, step.length))?;
        Totals::add(&totals.read, step.length);
        work.pack(&step, data)
    })?;
    Ok(totals.outcome())
}

/// A step and its bytes; none, if it is known to be zero.
type Part = (Move, Vec<u8>);

struct Work<'a> {
    source: &'a Image,
    target: &'a Image,
    cluster_size: u64,
    /// Of what one thread works on at a time.
    size: u64,
    totals: &'a Totals,
}

impl Work<'_> {
    /// Reads in this thread, many requests at a time, and compresses in others; returns what is left. None: nothing was done.
    fn read_ahead(&self, requests: &mut Requests<'_>, control: &Control<'_>) -> Result<Option<Vec<Move>>> {
        let threads = control.threads.clamp(1, MAX_THREADS);
        // As much waits as is worked on: the reader waits for room.
        let (give, taken) = sync_channel::<Part>(threads);
        let (taken, spare) = (Arc::new(Mutex::new(taken)), Mutex::new(Vec::<Vec<u8>>::new()));
        let (over, failure) = (AtomicBool::new(false), Mutex::new(None));
        let worker = |taken: &Mutex<Receiver<Part>>| {
            loop {
                let next = taken.lock().unwrap_or_else(PoisonError::into_inner).recv();
                let Ok((step, data)) = next else { return };
                // After a failure the rest is only taken, so that nobody waits.
                if over.load(Ordering::Relaxed) {
                    continue;
                }
                let done = if data.is_empty() { self.zero(&step) } else { self.pack(&step, &data) };
                if let Err(error) = done {
                    over.store(true, Ordering::Relaxed);
                    failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                    continue;
                }
                (control.progress)(step.length);
                if !data.is_empty() {
                    spare.lock().unwrap_or_else(PoisonError::into_inner).push(data);
                }
            }
        };
        let ended = || Error::new(ErrorKind::Cancelled, "cancelled");
        let outcome = std::thread::scope(|scope| {
            for _ in 0..threads {
                let taken = Arc::clone(&taken);
                scope.spawn(move || worker(&taken));
            }
            // Theirs alone: when none of them lives nothing is handed over.
            drop(taken);
            let hand = |step: Move, data| give.send((step, data)).map_err(|_| ended());
            let mut next = || {
                for step in requests.by_ref() {
                    control.check()?;
                    if !self.is_known_zero(&step)? {
                        return Ok(Some(step));
                    }
                    hand(step, Vec::new())?;
                }
                Ok(None)
            };
            let look = |step: &Move, bytes: &[u8], _: Option<&[u8]>| {
                let mut offset = step.offset;
                for part in bytes.chunks(self.size as usize) {
                    let mut data =
                        spare.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
                    data.clear();
                    data.extend_from_slice(part);
                    let length = part.len() as u64;
                    hand(Move { offset, length, action: step.action }, data)?;
                    offset += length;
                }
                Ok(())
            };
            // Done is what is compressed.
            let cancel = || over.load(Ordering::Relaxed) || (control.cancel)();
            let reading = Control { cancel: &cancel, progress: &|_| {}, threads: 1 };
            let outcome = direct::read(&mut next, self.source, None, &look, &reading, self.totals);
            if outcome.is_err() {
                over.store(true, Ordering::Relaxed);
            }
            // Nothing more comes.
            drop(give);
            outcome
        });
        match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => outcome,
        }
    }

    fn zero(&self, step: &Move) -> Result<()> {
        let (offset, length) = (step.offset, step.length);
        self.target.write_zeroes(offset, length).map_err(|e| e.with_range(offset, length))?;
        Totals::add(&self.totals.zeroed, length);
        Ok(())
    }

    /// Writes the bytes of a step, cluster by cluster.
    fn pack(&self, step: &Move, data: &[u8]) -> Result<()> {
        let context = |error: Error| error.with_range(step.offset, step.length);
        let mut at = step.offset;
        for cluster in data.chunks(self.cluster_size as usize) {
            let bytes = cluster.len() as u64;
            if is_zero(cluster) {
                self.target.write_zeroes(at, bytes).map_err(context)?;
                Totals::add(&self.totals.zeroed, bytes);
            } else {
                self.target.write_compressed(at, cluster).map_err(context)?;
                Totals::add(&self.totals.written, bytes);
            }
            at += bytes;
        }
        Ok(())
    }

    /// Whether the map alone says that the step reads as zeroes.
    fn is_known_zero(&self, step: &Move) -> Result<bool> {
        let (offset, length) = (step.offset, step.length);
        let shown = length.min(self.source.size().saturating_sub(offset));
        for run in self.source.runs(offset, shown) {
            if !run.map_err(|e| e.with_range(offset, length))?.kind.is_zero() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
