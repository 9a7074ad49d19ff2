//! The job that runs one fix.

use std::sync::Arc;
use std::time::Duration;

use vdsmstore_io::without;

use super::Action;
use crate::check;
use crate::graph::mend::Mend;
use crate::graph::merge::{self, Merge};
use crate::graph::{busy, clean, try_lock};
use crate::id::VolumeId;
use crate::job::{Env, Job, Step};
use crate::repo::Repo;
use crate::repository::{Access, Guard, Marker};
use crate::{Error, ErrorKind, Result};

/// Pause before something busy is tried again.
const BUSY: Duration = Duration::from_millis(50);
/// Tries of something busy before the task gives up: about two seconds.
const BUSY_TRIES: u32 = 40;

enum Work {
    /// Nothing is known yet.
    Look,
    Mend(Box<Mend>),
    Merge(Box<Merge>),
}

/// Runs a fix: looks what its object needs now, and does that if it is what the fix says.
pub(crate) struct FixJob {
    repo: Arc<Repo>,
    action: Action,
    bandwidth: Option<u64>,
    work: Work,
    tries: u32,
}

impl FixJob {
    pub fn new(repo: &Arc<Repo>, action: Action, bandwidth: Option<u64>) -> Self {
        Self { repo: Arc::clone(repo), action, bandwidth, work: Work::Look, tries: 0 }
    }

    fn look(&mut self, env: &Env<'_>) -> Result<Step> {
        if !without!("fix.look") && !check::is_needed(&self.repo, &env.repos, self.action)? {
            return Ok(Step::Done);
        }
        match self.action {
            Action::Mend(id) => {
                let mend = Mend::new(&self.repo, id, false).limited(self.bandwidth);
                self.work = Work::Mend(Box::new(mend.impatient().thorough()));
                return Ok(Step::Again);
            }
            Action::Optimize(id) => {
                let mend = Mend::new(&self.repo, id, true).limited(self.bandwidth);
                self.work = Work::Mend(Box::new(mend.impatient()));
                return Ok(Step::Again);
            }
            Action::Merge(id) => {
                if let Some(merge) = merge::begin(&self.repo, env, id, self.bandwidth)? {
                    self.work = Work::Merge(Box::new(merge));
                    return Ok(Step::Again);
                }
            }
            Action::CleanImage(id) => {
                let _order = (!without!("fix.lock.image")).then(|| try_lock(&self.repo, id)).transpose()?;
                // What was seen before the lock was had may be what a call was in the middle of.
                if let Some(seen) = self.repo.image(id)?
                    && check::needs(&self.repo, &env.repos, self.action)? == Some(self.action)
                {
                    clean::forsaken(&self.repo, &seen)?;
                }
            }
            Action::CleanVolume(id) => {
                let _orders = (!without!("fix.lock.holders")).then(|| self.lock_holders(id)).transpose()?;
                clean::volume(&self.repo, id)?;
            }
            Action::CleanObject(id) => self.object(id)?,
            Action::CleanMarker(marker) => self.marker(marker)?,
            Action::CleanBlob(image, blob) => {
                let _order = (!without!("fix.lock.blob")).then(|| try_lock(&self.repo, image)).transpose()?;
                if self.repo.driver.blobs(image)?.contains(&blob) {
                    clean::blob(&self.repo, image, blob)?;
                }
            }
            Action::CleanProgress(id) => {
                let _order =
                    (!without!("fix.lock.progress")).then(|| try_lock(&self.repo, id)).transpose()?;
                if without!("fix.reread.progress")
                    || check::needs(&self.repo, &env.repos, self.action)? == Some(self.action)
                {
                    self.repo.driver.delete_progress(id)?;
                }
            }
            Action::Sweep => self.repo.driver.sweep()?,
        }
        // What is still there was in use.
        if check::needs(&self.repo, &env.repos, self.action)? == Some(self.action) {
            return Err(Error::new(
                ErrorKind::ImageInUse,
                format!("fix {:?}: something is in use", self.action),
            ));
        }
        Ok(Step::Done)
    }

    /// With the host that keeps it busy, if it does not say that yet.
    fn explained(&self, error: Error) -> Error {
        if error.details().contains_key("host") {
            return error;
        }
        busy::named(&self.repo, self.action.image(), error)
    }

    /// A volume that was only just announced has an image that is being made, under its lock.
    fn lock_holders(&self, id: VolumeId) -> Result<Vec<Box<dyn Guard>>> {
        self.repo.driver.holders(id)?.into_iter().map(|image| try_lock(&self.repo, image)).collect()
    }

    fn object(&self, id: VolumeId) -> Result<()> {
        let opened = match self.repo.driver.open_volume(id, Access::Write) {
            // Somebody else removed it meanwhile.
            Err(error) if error.kind() == ErrorKind::ImageBroken => return Ok(()),
            opened => opened?,
        };
        if without!("fix.reread.object") || self.repo.volume(id)?.is_none() {
            self.repo.driver.delete_volume(id, opened)?;
        }
        Ok(())
    }

    fn marker(&self, marker: Marker) -> Result<()> {
        match marker {
            Marker::Child(image, _) => {
                let _order =
                    (!without!("fix.lock.child")).then(|| try_lock(&self.repo, image)).transpose()?;
                clean::stale_children(&self.repo, image)
            }
            Marker::Holder(volume, image) => {
                let _order =
                    (!without!("fix.lock.holder")).then(|| try_lock(&self.repo, image)).transpose()?;
                if without!("fix.reread.holder")
                    || self.repo.image(image)?.is_none_or(|image| !image.holds(volume))
                {
                    clean::forget(&self.repo, marker)?;
                }
                Ok(())
            }
        }
    }
}

impl FixJob {
    fn work(&mut self, env: &Env<'_>) -> Result<Step> {
        match &mut self.work {
            Work::Mend(mend) => mend.step(env),
            Work::Merge(merge) => {
                let step = merge.step(env)?;
                if step != Step::Done {
                    return Ok(step);
                }
                if let Work::Merge(merge) = std::mem::replace(&mut self.work, Work::Look) {
                    merge.finish()?;
                }
                Ok(Step::Done)
            }
            Work::Look => match self.look(env) {
                Err(error) if error.kind() == ErrorKind::ImageInUse && self.tries < BUSY_TRIES => {
                    self.tries += 1;
                    Ok(Step::Later(BUSY))
                }
                outcome => outcome,
            },
        }
    }
}

impl Job for FixJob {
    fn step(&mut self, env: &Env<'_>) -> Result<Step> {
        match self.work(env) {
            Err(error) if error.kind() == ErrorKind::ImageInUse => Err(self.explained(error)),
            outcome => outcome,
        }
    }

    fn failed(&mut self, error: &Error) {
        match &mut self.work {
            Work::Mend(mend) => mend.failed(error),
            Work::Merge(merge) => merge.failed(error),
            // Nothing was begun.
            Work::Look => {}
        }
    }
}
