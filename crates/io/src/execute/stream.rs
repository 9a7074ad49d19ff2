//! Reading an image from its beginning to its end, for who takes bytes one after the other: a pipe.

use std::sync::mpsc::sync_channel;
use std::sync::{Mutex, PoisonError};

use super::{Control, Keep, Outcome, Totals, read_moves};
use crate::plan;
use crate::{Error, ErrorKind, Image, Move, Plan, Result, sys};

/// Read together, and given on in one piece.
const WINDOW: u64 = 8 << 20;

/// Gives all bytes of a range to `sink`, in order, zeroes too. `sink` is called in a thread of its own, in which a broken pipe is an
/// error and no signal; while it has one piece the next is read.
pub fn stream(
    image: &Image,
    offset: u64,
    length: u64,
    control: &Control<'_>,
    sink: &mut (dyn FnMut(&[u8]) -> Result<()> + Send),
) -> Result<Outcome> {
    let totals = Totals::default();
    // From window to window.
    let _keep = Keep::new();
    let end = offset.saturating_add(length);
    let (give, taken) = sync_channel::<Vec<u8>>(1);
    let (give_back, spare) = sync_channel::<Vec<u8>>(4);
    let outcome = std::thread::scope(|scope| {
        let progress = control.progress;
        let writer = scope.spawn(move || {
            sys::block_broken_pipes();
            for piece in taken {
                sink(&piece)?;
                progress(piece.len() as u64);
                // If nobody wants it, it is not needed.
                let _ = give_back.try_send(piece);
            }
            Ok(())
        });
        let read = || -> Result<()> {
            let mut at = offset;
            while at < end {
                control.check()?;
                let now = (WINDOW - at % WINDOW).min(end - at);
                let mut piece = spare.try_recv().unwrap_or_default();
                piece.clear();
                piece.resize(now as usize, 0);
                fill(image, &plan::units(image, at, now)?, &mut piece, control, &totals)?;
                // The writer has ended: it says why.
                if give.send(piece).is_err() {
                    return Ok(());
                }
                at += now;
            }
            Ok(())
        };
        let read = read();
        drop(give);
        let written =
            writer.join().unwrap_or_else(|_| Err(Error::new(ErrorKind::Io, "a thread that writes ended")));
        written.and(read)
    });
    outcome.map(|()| totals.outcome())
}

/// Reads what the plan names into zeroes.
fn fill(image: &Image, plan: &Plan, piece: &mut [u8], control: &Control<'_>, totals: &Totals) -> Result<()> {
    let quiet = Control { progress: &|_| {}, ..*control };
    let piece = Mutex::new(piece);
    let put = |step: &Move, bytes: &[u8], _: Option<&[u8]>| {
        let at = (step.offset - plan.offset()) as usize;
        piece.lock().unwrap_or_else(PoisonError::into_inner)[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    };
    read_moves(plan.moves(), image, &put, &quiet, totals)
}
