//! Filling an image with compressed clusters.

use std::sync::{Mutex, PoisonError};

use super::is_zero;
use super::{Control, Outcome, REQUEST, Totals, read_padded, room, run_threads};
use crate::plan::{Action, Move};
use crate::{Error, ErrorKind, Image, Result};

/// Copies a range to the same place of a qcow2 target, compressed as its header says: deflate, or zstd. Clusters
/// that do not become smaller are written plainly, those of zeroes are made to read as zeroes. Does not flush.
///
/// The range begins at a multiple of the target's cluster size, and ends at one or at the end of the target;
/// beyond the end of the source zeroes are written. Compressing happens on all threads of `control`. The first
/// error ends it, after the requests under way; the target is then partly written.
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
    let request = REQUEST.max(cluster_size);
    let end = offset.saturating_add(length);
    let next = Mutex::new(offset);
    let totals = Totals::default();
    run_threads(
        control,
        || {
            let mut next = next.lock().unwrap_or_else(PoisonError::into_inner);
            let offset = *next;
            let length = (request - offset % request).min(end - offset);
            *next = offset + length;
            Ok((length > 0).then_some(Move { offset, length, action: Action::Copy }))
        },
        &|Move { offset, length, .. }, buffers| {
            let context = |error: Error| error.with_range(offset, length);
            if is_known_zero(source, offset, length).map_err(context)? {
                target.write_zeroes(offset, length).map_err(context)?;
                Totals::add(&totals.zeroed, length);
                return Ok(());
            }
            let data = room(&mut buffers.source, length);
            read_padded(source, offset, data).map_err(context)?;
            Totals::add(&totals.read, length);
            let mut at = offset;
            for cluster in data.chunks(cluster_size as usize) {
                let bytes = cluster.len() as u64;
                if is_zero(cluster) {
                    target.write_zeroes(at, bytes).map_err(context)?;
                    Totals::add(&totals.zeroed, bytes);
                } else {
                    target.write_compressed(at, cluster).map_err(context)?;
                    Totals::add(&totals.written, bytes);
                }
                at += bytes;
            }
            Ok(())
        },
    )?;
    Ok(totals.outcome())
}

/// Whether the map alone says that the range reads as zeroes.
fn is_known_zero(image: &Image, offset: u64, length: u64) -> Result<bool> {
    let length = length.min(image.size().saturating_sub(offset));
    for run in image.runs(offset, length) {
        if !run?.kind.is_zero() {
            return Ok(false);
        }
    }
    Ok(true)
}
