//! The verbs about what is unfinished: check, fix, stop; and the two that change what is wanted.

use std::time::Duration;

use crate::fix::{self, Fix, FixJob, FixType};
use crate::graph::resize;
use crate::id::ImageId;
use crate::job::{Task, TaskRequest};
use crate::options::{CheckOptions, FixOptions, ResizeOptions, Strategy};
use crate::repo::Change;
use crate::{Error, ErrorKind, Result, check, machine};

use super::{Store, validate};

/// How long stopping is waited for: a request that the storage does not answer cannot be taken back.
const STOP_PATIENCE: Duration = Duration::from_mins(1);

impl Store {
    /// Lists what is wrong with the repository or could be better. Takes no locks, changes nothing.
    pub fn check_storage_repository(&self, repo_id: &str, options: &CheckOptions) -> Result<Vec<Fix>> {
        let repo = self.repo(repo_id)?;
        check::check(&repo, &self.repos(), options.exact_cost)
    }

    /// Starts a fix; returns its task's name. One that has become unnecessary succeeds and does nothing.
    ///
    /// Raises `FixRefused` (forged, stale, for another repository), `RepositoryNotFound`, `ReadOnlyRepository`,
    /// `TaskIdInUse`.
    pub fn fix_storage_repository(&self, repo_id: &str, fix: &Fix, options: &FixOptions) -> Result<String> {
        let repo = self.writable_repo(repo_id)?;
        self.0.pool.check_id(options.task_id.as_deref())?;
        let action = fix::parse(repo.driver.repository_nonce(), fix)?;
        let kind = match fix.fix_type {
            FixType::Clean => "clean",
            FixType::Optimize => "optimize",
            FixType::Merge => "merge",
            FixType::Mend => "mend",
        };
        // Refused before anything is started; one that is not needed is a task that does nothing.
        check::is_needed(&repo, &self.repos(), action)?;
        let bandwidth = options.bandwidth.map(|limit| limit.0);
        let job = Box::new(FixJob::new(&repo, action, bandwidth));
        let image = action.image();
        let request = TaskRequest { id: options.task_id.clone(), kind, repo, image, job };
        self.0.pool.start(request).map(|task| task.id.clone())
    }

    /// Stops what works on the image in this store, resumably; returns when it has stopped.
    pub fn stop_image_task(&self, repo_id: &str, image_id: &str) -> Result<()> {
        let repo = self.repo(repo_id)?;
        let id = ImageId::parse(image_id)?;
        self.stop(|task| task.works_on(&repo, id))
    }

    /// Stops a task, resumably; returns when it has stopped. One that is not running is left alone.
    pub fn stop_task(&self, task_id: &str) -> Result<()> {
        self.alive()?;
        if self.0.pool.find(task_id).is_none() {
            let message = format!("no task {task_id:?} is known");
            return Err(Error::new(ErrorKind::TaskNotFound, message).with("taskId", task_id));
        }
        self.stop(|task| task.id == task_id)
    }

    fn stop(&self, which: impl Fn(&Task) -> bool) -> Result<()> {
        if self.0.pool.stop(which, machine::now() + STOP_PATIENCE) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Timeout, "the storage does not answer; the task stops when it does"))
    }

    /// Grows a disk; the new bytes read as zeroes. Complete when it returns.
    ///
    /// Raises `InvalidSize` (smaller, or no multiple of 512), `NotADisk`, `ImageInUse`, `ImageNotFound`, `ImageBroken`,
    /// `NoSpace`.
    pub fn resize_virtual_disk(
        &self,
        repo_id: &str,
        image_id: &str,
        size: i64,
        _options: &ResizeOptions,
    ) -> Result<()> {
        let repo = self.writable_repo(repo_id)?;
        let id = ImageId::parse(image_id)?;
        let size = validate::size(size)?;
        self.explained(&repo, id, resize::grow_disk(&repo, id, size))
    }

    /// Changes what representation of the image is best.
    pub fn set_image_strategy(&self, repo_id: &str, image_id: &str, strategy: Strategy) -> Result<()> {
        let repo = self.writable_repo(repo_id)?;
        let id = ImageId::parse(image_id)?;
        repo.visible_image(id)?;
        let updated = repo.update_image(id, |now| {
            if !now.visible() {
                return Err(repo.image_not_found(id));
            }
            now.strategy = strategy;
            Ok(Change::Put)
        })?;
        updated.map(drop).ok_or_else(|| repo.image_not_found(id))
    }
}
