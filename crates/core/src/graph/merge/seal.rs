//! The one put that ends a merge, and what is left over after it.

use std::sync::Arc;

use vdsmstore_io::{Layer, RunKind, without};

use crate::Result;
use crate::graph::chain::{self, mirror_of};
use crate::graph::{clean, in_place, lease, mirror};
use crate::id::VolumeId;
use crate::record::{Backing, ImageRecord};
use crate::repo::{Change, Repo};
use crate::repository::Marker;

use super::absorb::{is_alone, permit};
use super::{Direction, Merge, moved};

impl Merge {
    /// C is built on what the lowest volume was built on.
    pub(super) fn seal_up(&mut self) -> Result<()> {
        let (repo, line) = (&self.repo, &self.line);
        let t = line.topmost().image.id();
        let (v, c) = (line.lowest().volume.id(), line.upper_volume.id());
        let below = line.backing().cloned();
        // Beyond what shows of the lowest image the upper one read zeroes; what is below it might be longer.
        let reach = line.reach();
        if below.is_some() && reach < line.upper_volume.size && !without!("seal.zero") {
            self.zero_unallocated(repo, reach)?;
            if !without!("seal.flush.zero") {
                self.target.flush()?;
            }
        }
        let backing = below.map(|below| Backing {
            size: if without!("seal.size") { below.size } else { below.size.min(reach) },
            ..below
        });
        if let Some(backing) = &backing {
            if !without!("seal.marker.child") {
                repo.driver.mark(Marker::Child(backing.image, c))?;
            }
            // It covers now what the lowest volume covers.
            if !without!("seal.permit") {
                permit(repo, backing.image, v, c)?;
            }
        }
        let mirror = match &backing {
            Some(backing) => mirror_of(repo, backing.image)?,
            None => None,
        };
        self.renamed = true;
        mirror::write(&*self.upper.device, mirror)?;
        let sealed = repo.update_volume(c, |now| {
            if now.backing.as_ref().is_none_or(|backing| backing.image != t)
                && !without!("seal.compare.backing")
            {
                return Err(moved(repo, t));
            }
            if let Some(backing) = &backing {
                // Should the locks have been a lie: the announcement may have been taken for one that led to nothing.
                if !without!("seal.marker.again") {
                    repo.driver.mark(Marker::Child(backing.image, c))?;
                }
                let still = repo.volume(v)?.and_then(|volume| volume.backing);
                if still.is_none_or(|still| still.image != backing.image) && !without!("seal.reread") {
                    return Err(moved(repo, t));
                }
            }
            if now.header.epoch != line.upper_volume.header.epoch && !without!("seal.compare.epoch") {
                return Err(moved(repo, t));
            }
            now.backing.clone_from(&backing);
            now.mirror = mirror.map(|(id, _)| id);
            now.writer = None;
            Ok(Change::Claim)
        })?;
        sealed.ok_or_else(|| moved(repo, t))?;
        self.renamed = false;
        repo.driver.unmark(Marker::Child(t, c))
    }

    fn zero_unallocated(&self, repo: &Repo, from: u64) -> Result<()> {
        let volume = &self.line.upper_volume;
        let alone =
            Layer { device: Arc::clone(&self.upper.device), format: volume.format.into(), size: volume.size };
        let alone = chain::open_layers(vec![alone], false, repo.memory)?;
        let mut holes = Vec::new();
        for run in alone.runs(from, volume.size - from) {
            let run = run?;
            if run.kind == RunKind::Hole {
                holes.push((run.offset, run.length));
            }
        }
        for (offset, length) in holes {
            self.target.write_zeroes(offset, length)?;
        }
        Ok(())
    }

    /// The lowest volume holds s.
    pub(super) fn seal_down(&mut self) -> Result<()> {
        let (repo, line) = (&self.repo, &self.line);
        let s = line.upper.id();
        let (v, c) = (line.lowest().volume.id(), line.upper_volume.id());
        // Nobody else reads through them: the lowest volume is about to be written by others.
        if !is_alone(repo, line)? {
            return Err(moved(repo, s));
        }
        if !without!("seal.marker.holder") {
            repo.driver.mark(Marker::Holder(v, s))?;
        }
        let sealed = repo.update_image(s, |now| {
            if now.volume != c && !without!("seal.compare.volume")
                || now.next.is_some() && !without!("seal.compare.next")
                || !without!("seal.compare.held") && lease::is_held(repo, now)?
                || !now.freeze.is_empty()
                || !without!("seal.compare.owner") && !line.owns(repo, now)
            {
                return Err(moved(repo, s));
            }
            now.volume = v;
            Ok(Change::Claim)
        })?;
        sealed.map(drop).ok_or_else(|| moved(repo, s))?;
        // Should the locks have been a lie, the marker was taken for left over.
        if without!("seal.marker.holder-again") { Ok(()) } else { repo.driver.mark(Marker::Holder(v, s)) }
    }

    /// What the seal left over. All of it is found again by a check, should this not be reached.
    pub fn finish(self) -> Result<()> {
        let Self { repo, line, direction, source, target, lower, upper, _order, .. } = self;
        in_place::end(&repo, line.target(direction).id())?;
        drop((source, target, lower, upper));
        repo.driver.delete_progress(line.upper.id())?;
        let topmost = &line.topmost().image;
        match direction {
            Direction::Up => clean::image(&repo, topmost.id()),
            Direction::Down => finish_down(&repo, &line.upper, topmost, line.upper_volume.id()),
        }
    }
}

/// After the seal of a downward merge: the images that go and the volumes above the lowest one.
fn finish_down(repo: &Repo, upper: &ImageRecord, topmost: &ImageRecord, volume: VolumeId) -> Result<()> {
    mirror::correct_children(repo, upper.id())?;
    clean::volume(repo, volume)?;
    // It takes those below it along.
    clean::image(repo, topmost.id())
}
