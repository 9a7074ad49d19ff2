//! Jobs: work that outlives the call that started it, as state machines with a `step()`.

mod pool;
mod task;

use std::sync::Arc;
use std::time::Duration;

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
    /// The outcome of moving data: that it was cancelled means that the task was stopped.
    pub fn outcome<T>(&self, moved: vdsmstore_io::Result<T>) -> Result<T> {
        moved.map_err(|error| match error.kind() {
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
