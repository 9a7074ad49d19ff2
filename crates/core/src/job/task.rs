//! A task: a job under a name, with its progress and its outcome.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::id::ImageId;
use crate::repo::Repo;
use crate::types::TaskInfo;
use crate::{Error, ErrorKind, Result, machine};

/// A task.
#[derive(Debug)]
pub(crate) struct Task {
    pub id: String,
    pub kind: &'static str,
    pub repo: Arc<Repo>,
    pub image: Option<ImageId>,
    started: u64,
    cancelled: AtomicBool,
    done: AtomicU64,
    total: AtomicU64,
    stage: Mutex<String>,
    /// Other repositories that it reads from.
    sources: Mutex<Vec<(Arc<Repo>, ImageId)>>,
    outcome: Mutex<Option<Result<()>>>,
    ended: Condvar,
}

/// Locks a mutex whose holders cannot leave it half changed.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Task {
    pub fn new(id: String, kind: &'static str, repo: Arc<Repo>, image: Option<ImageId>) -> Self {
        Self {
            id,
            kind,
            repo,
            image,
            started: machine::date(),
            cancelled: AtomicBool::new(false),
            done: AtomicU64::new(0),
            total: AtomicU64::new(0),
            stage: Mutex::new(String::new()),
            sources: Mutex::new(Vec::new()),
            outcome: Mutex::new(None),
            ended: Condvar::new(),
        }
    }

    /// Asks it to stop at its next look.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Whether it was asked to stop.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// It reads this image, whose repository therefore cannot go before it.
    pub fn uses(&self, repo: &Arc<Repo>, image: ImageId) {
        locked(&self.sources).push((Arc::clone(repo), image));
    }

    /// Whether it works on the image or reads it.
    pub fn concerns(&self, repo: &Arc<Repo>, image: ImageId) -> bool {
        self.works_on(repo, image)
            || locked(&self.sources).iter().any(|(other, id)| Arc::ptr_eq(other, repo) && *id == image)
    }

    /// Whether it works on the image.
    pub fn works_on(&self, repo: &Arc<Repo>, image: ImageId) -> bool {
        Arc::ptr_eq(&self.repo, repo) && self.image == Some(image)
    }

    /// Whether it works on the repository or reads from it.
    pub fn needs(&self, repo: &Arc<Repo>) -> bool {
        Arc::ptr_eq(&self.repo, repo)
            || locked(&self.sources).iter().any(|(source, _)| Arc::ptr_eq(source, repo))
    }

    /// A new stage with so many bytes to go, some of them done.
    pub fn set_stage(&self, stage: &str, done: u64, total: u64) {
        stage.clone_into(&mut locked(&self.stage));
        self.total.store(total, Ordering::Relaxed);
        self.done.store(done, Ordering::Relaxed);
    }

    /// So many bytes of the stage are done.
    pub fn set_done(&self, done: u64) {
        self.done.store(done, Ordering::Relaxed);
    }

    /// More bytes of the stage are done.
    pub fn add_done(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The name of the stage.
    pub fn stage(&self) -> String {
        locked(&self.stage).clone()
    }

    /// 0..100 of the stage, -1 unknown.
    pub fn percent(&self) -> i32 {
        let (done, total) = (self.done.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed));
        percent(done, total)
    }

    /// What listTasks tells of it.
    pub fn info(&self) -> TaskInfo {
        TaskInfo {
            task_id: self.id.clone(),
            task_type: self.kind,
            repo_id: self.repo.id.clone(),
            image_id: self.image,
            stage: self.stage(),
            percent_complete: self.percent(),
            bytes_done: self.done.load(Ordering::Relaxed),
            bytes_total: self.total.load(Ordering::Relaxed),
            started: self.started,
        }
    }

    /// Records how it ended and wakes those who wait.
    pub fn finish(&self, outcome: Result<()>) {
        *locked(&self.outcome) = Some(outcome);
        self.ended.notify_all();
    }

    /// Waits until it has ended. False: it has not by then.
    pub fn wait(&self, deadline: Option<Instant>) -> bool {
        let mut outcome = locked(&self.outcome);
        while outcome.is_none() {
            // There is one thread, and this is it.
            if machine::is_simulated() {
                return false;
            }
            let pause = match deadline {
                None => Duration::from_hours(1),
                Some(deadline) => match deadline.checked_duration_since(machine::now()) {
                    Some(left) if !left.is_zero() => left,
                    _ => return false,
                },
            };
            outcome =
                self.ended.wait_timeout(outcome, pause).map_or_else(|e| e.into_inner().0, |(guard, _)| guard);
        }
        true
    }

    /// How it ended; `Ok` while it has not.
    pub fn outcome(&self) -> Result<()> {
        match &*locked(&self.outcome) {
            Some(Err(error)) => Err(error.again()),
            _ => Ok(()),
        }
    }
}

/// 0..100, -1 unknown.
pub(crate) fn percent(done: u64, total: u64) -> i32 {
    match (u128::from(done) * 100).checked_div(u128::from(total)) {
        None => -1,
        Some(percent) => percent.min(100) as i32,
    }
}

/// A caller's name for a task: 1 to 128 of `A-Za-z0-9._:-`.
pub(crate) fn validate_task_id(id: &str) -> Result<()> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte);
    if (1..=128).contains(&id.len()) && id.bytes().all(good) {
        return Ok(());
    }
    let message = format!("task id {id:?} is not 1 to 128 characters of A-Za-z0-9._:-");
    Err(Error::new(ErrorKind::InvalidParameter, message).with("parameter", "taskId"))
}
