//! Writing into a ready volume. On storage of several hosts, who does it says so in the volume's record before the first
//! byte, and takes it back after the last. A store that lost its locks and may still live may still write there: then
//! nobody else writes there any more. Reading is safe, because such writes change nothing that shows; the image moves to a
//! new volume.

use vdsmstore_io::without;

use crate::id::{Incarnation, VolumeId};
use crate::record::{VolumeRecord, VolumeState};
use crate::repo::{Change, Repo};
use crate::repository::{Liveness, Read};
use crate::{Error, ErrorKind, Result};

use super::look::{Now, View};
use super::{add, lease};

/// On storage of one host, the lock of the bytes itself is the proof.
fn is_needed(repo: &Repo) -> bool {
    repo.driver.capabilities().multi_host
}

/// Another store that began to write into the volume, has not said that it ended, and is not certainly dead.
fn other(repo: &Repo, volume: &VolumeRecord) -> Result<Option<(Incarnation, Liveness)>> {
    let Some(writer) = volume.writer.filter(|writer| *writer != repo.driver.host().incarnation) else {
        return Ok(None);
    };
    if !is_needed(repo) {
        return Ok(None);
    }
    let liveness = repo.driver.liveness(writer)?;
    Ok((liveness != Liveness::CertainlyDead).then_some((writer, liveness)))
}

/// Whether a store that lost the volume may still write it: what is on it needs a new one.
pub(crate) fn is_doubtful(repo: &Repo, volume: &VolumeRecord) -> Result<bool> {
    Ok(other(repo, volume)?.is_some_and(|(_, liveness)| liveness == Liveness::LikelyDead))
}

/// Fails with `ImageInUse` if another store may still write the volume.
pub(crate) fn ensure_mine(repo: &Repo, volume: &VolumeRecord) -> Result<()> {
    let Some((writer, _)) = other(repo, volume)?.filter(|_| !without!("in-place.mine")) else {
        return Ok(());
    };
    let id = volume.id();
    let message = format!("volume {id} in repository {:?} may still be written by another host", repo.id);
    let error = Error::new(ErrorKind::ImageInUse, message);
    Err(match repo.driver.host_record(writer)? {
        Some(record) => error.with("host", record.host_id),
        None => error,
    })
}

/// The same, as the volume's record is now: to be called after the volume's image says that this store writes it.
pub(crate) fn look(repo: &Repo, id: VolumeId) -> Result<()> {
    if !is_needed(repo) || without!("in-place.look") {
        return Ok(());
    }
    let now = repo.volume(id)?.ok_or_else(|| add::displaced(repo, id))?;
    ensure_mine(repo, &now)
}

/// Announces that this store is about to write into the volume, which it has locked; returns its record as it is then.
pub(crate) fn begin(repo: &Repo, id: VolumeId) -> Result<VolumeRecord> {
    let me = repo.driver.host().incarnation;
    let marked = repo.update_volume(id, |now| {
        if now.state != VolumeState::Ready && !without!("in-place.compare.ready") {
            return Err(add::displaced(repo, id));
        }
        if !is_needed(repo) || now.writer == Some(me) || without!("in-place.begin") {
            return Ok(Change::Keep);
        }
        ensure_mine(repo, now)?;
        if now.writer.is_some() && !without!("in-place.doubt") {
            // A store that died in the middle of that may have changed what the header names.
            now.mirror = None;
        }
        now.writer = Some(me);
        Ok(Change::Claim)
    })?;
    let marked = marked.ok_or_else(|| add::displaced(repo, id))?;
    if !is_needed(repo) || without!("in-place.look.holder") {
        return Ok(marked);
    }
    // Flag, then look: who takes a disk for writing looks at the flag after.
    for image in Now(repo, Read::Fresh).held_by(id)? {
        if let Err(error) = lease::ensure_free(repo, &image) {
            end(repo, id)?;
            return Err(error);
        }
    }
    Ok(marked)
}

/// Says that this store writes there no more.
pub(crate) fn end(repo: &Repo, id: VolumeId) -> Result<()> {
    if is_needed(repo) { leave(repo, id, false) } else { Ok(()) }
}

/// The same, where the header may name what the record does not say: whoever needs it writes it anew.
pub(crate) fn end_in_doubt(repo: &Repo, id: VolumeId) -> Result<()> {
    leave(repo, id, true)
}

fn leave(repo: &Repo, id: VolumeId, doubt: bool) -> Result<()> {
    let me = repo.driver.host().incarnation;
    repo.update_volume(id, |now| {
        if is_needed(repo) && now.writer != Some(me) && !without!("in-place.compare.end") {
            return Ok(Change::Keep);
        }
        now.writer = None;
        if doubt {
            now.mirror = None;
        }
        Ok(Change::Put)
    })
    .map(drop)
}
