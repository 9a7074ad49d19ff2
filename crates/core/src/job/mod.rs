//! Jobs: work that outlives the call that started it, as state machines with a `step()`.

mod pool;
mod task;

use std::sync::Arc;
use std::time::Duration;

use vdsmstore_io::Control;

use crate::repo::Repo;
use crate::{Error, ErrorKind, Result};

pub(crate) use pool::{Pool, TaskRequest};
pub(crate) use task::{Task, percent, validate_task_id};

/// What a step leaves to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// More, at once.
    Again,
    /// More, after a pause: something is busy.
    Later(Duration),
    /// Nothing.
    Done,
}

/// What a step works with.
pub(crate) struct Env<'a> {
    /// The connected repositories, in order of connection.
    pub repos: Vec<Arc<Repo>>,
    /// Progress, and whether to stop.
    pub task: &'a Task,
    /// Threads that may move data.
    pub threads: usize,
}

impl Env<'_> {
    /// Moves data as this task, which can be stopped, and tells how far it is.
    pub fn moves<T>(&self, work: impl FnOnce(&Control<'_>) -> vdsmstore_io::Result<T>) -> Result<T> {
        self.controlled(&|bytes| self.task.add_done(bytes), work)
    }

    /// The same, of what is read beside: it is no progress.
    pub fn reads<T>(&self, work: impl FnOnce(&Control<'_>) -> vdsmstore_io::Result<T>) -> Result<T> {
        self.controlled(&|_| {}, work)
    }

    /// That it was cancelled means that the task was stopped.
    fn controlled<T>(
        &self,
        progress: &(dyn Fn(u64) + Sync),
        work: impl FnOnce(&Control<'_>) -> vdsmstore_io::Result<T>,
    ) -> Result<T> {
        let control = Control { cancel: &|| self.task.is_cancelled(), progress, threads: self.threads };
        work(&control).map_err(|error| match error.kind() {
            vdsmstore_io::ErrorKind::Cancelled => {
                Error::new(ErrorKind::Stopped, format!("task {:?} was stopped", self.task.id))
            }
            _ => error.into(),
        })
    }
}

/// Work in steps, each short enough to be stopped after; everything needed to go on is in the repository.
pub(crate) trait Job: Send {
    /// Does the next piece.
    fn step(&mut self, env: &Env<'_>) -> Result<Step>;

    /// Told when a step failed or the task was stopped, so that the reason can be persisted.
    fn failed(&mut self, error: &crate::Error);
}
