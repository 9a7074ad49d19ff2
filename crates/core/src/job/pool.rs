//! A small pool of threads that steps the jobs in turn.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use vdsmstore_io::Keep;

use super::task::locked;
use super::{Env, Job, Step, Task};
use crate::id::ImageId;
use crate::repo::Repo;
use crate::{Error, ErrorKind, Result, machine};

/// Results of ended tasks that are kept.
const KEPT: usize = 1000;
/// Threads that move the data of one job.
const MOVERS: usize = 4;

/// A job to start.
pub(crate) struct TaskRequest {
    pub id: Option<String>,
    pub kind: &'static str,
    pub repo: Arc<Repo>,
    pub image: Option<ImageId>,
    pub job: Box<dyn Job>,
}

struct Entry {
    task: Arc<Task>,
    job: Box<dyn Job>,
    not_before: Option<Instant>,
    /// Its steps follow one another.
    keep: Keep,
}

#[derive(Default)]
struct Queues {
    waiting: VecDeque<Entry>,
    running: Vec<Arc<Task>>,
    ended: VecDeque<Arc<Task>>,
    closing: bool,
}

impl Queues {
    fn check_id(&self, id: &str) -> Result<()> {
        if self.running.iter().any(|task| task.id == id) {
            return Err(
                Error::new(ErrorKind::TaskIdInUse, format!("task {id:?} is running")).with("taskId", id)
            );
        }
        Ok(())
    }
}

struct Shared {
    queues: Mutex<Queues>,
    wake: Condvar,
    repos: Box<dyn Fn() -> Vec<Arc<Repo>> + Send + Sync>,
}

/// The pool. Dropped without [`Pool::close`], its threads end after their present step.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Pool {
    /// A pool of `threads`; with 0, tasks run only in [`Pool::run_here`].
    pub fn new(threads: u32, repos: impl Fn() -> Vec<Arc<Repo>> + Send + Sync + 'static) -> Result<Self> {
        let shared =
            Arc::new(Shared { queues: Mutex::default(), wake: Condvar::new(), repos: Box::new(repos) });
        let spawn = |index| {
            let shared = Arc::clone(&shared);
            thread::Builder::new()
                .name(format!("vdsmstore-{index}"))
                .spawn(move || shared.work(true))
                .map_err(|error| {
                    Error::new(ErrorKind::Internal, format!("a thread cannot be started: {error}"))
                })
        };
        let threads = (0..threads).map(spawn).collect::<Result<_>>()?;
        Ok(Self { shared, threads: Mutex::new(threads) })
    }

    /// Fails if a task of that name is not ended.
    pub fn check_id(&self, id: Option<&str>) -> Result<()> {
        let Some(id) = id else { return Ok(()) };
        super::validate_task_id(id)?;
        locked(&self.shared.queues).check_id(id)
    }

    /// Starts a job.
    pub fn start(&self, request: TaskRequest) -> Result<Arc<Task>> {
        let (task, job) = self.register(request)?;
        let entry = Entry { task: Arc::clone(&task), job, not_before: None, keep: Keep::new() };
        locked(&self.shared.queues).waiting.push_back(entry);
        self.shared.wake.notify_one();
        Ok(task)
    }

    /// Runs a job in this thread until it ends.
    pub fn run(&self, request: TaskRequest) -> Result<()> {
        let (task, job) = self.register(request)?;
        let mut entry = Entry { task: Arc::clone(&task), job, not_before: None, keep: Keep::new() };
        let outcome = loop {
            match self.shared.step(&mut entry) {
                Ok(Step::Again) => {}
                Ok(Step::Later(pause)) => machine::pause(pause),
                Ok(Step::Done) => break Ok(()),
                Err(error) => {
                    entry.job.failed(&error);
                    break Err(error);
                }
            }
        };
        drop((entry.job, entry.keep));
        self.shared.end(&task, outcome);
        task.outcome()
    }

    fn register(&self, request: TaskRequest) -> Result<(Arc<Task>, Box<dyn Job>)> {
        let TaskRequest { id, kind, repo, image, job } = request;
        if let Some(id) = &id {
            super::validate_task_id(id)?;
        }
        let task =
            Arc::new(Task::new(id.unwrap_or_else(|| machine::random_uuid().to_string()), kind, repo, image));
        let mut queues = locked(&self.shared.queues);
        if queues.closing {
            return Err(Error::new(ErrorKind::Closed, "the store is closed"));
        }
        queues.check_id(&task.id)?;
        queues.running.push(Arc::clone(&task));
        Ok((task, job))
    }

    /// Tasks that have not ended, in order of their start.
    pub fn running(&self) -> Vec<Arc<Task>> {
        locked(&self.shared.queues).running.clone()
    }

    /// A running or lately ended task.
    pub fn find(&self, id: &str) -> Option<Arc<Task>> {
        let queues = locked(&self.shared.queues);
        let mut all = queues.running.iter().chain(queues.ended.iter().rev());
        all.find(|task| task.id == id).cloned()
    }

    /// Steps all tasks in this thread until none is left.
    pub fn run_here(&self) {
        self.shared.work(false);
    }

    /// Asks the tasks that `which` picks to stop, and waits for them until the deadline. False: some still run.
    pub fn stop(&self, which: impl Fn(&Task) -> bool, deadline: Instant) -> bool {
        let picked: Vec<_> = self.running().into_iter().filter(|task| which(task)).collect();
        for task in &picked {
            task.cancel();
        }
        self.shared.wake.notify_all();
        if locked(&self.threads).is_empty() {
            self.run_here();
        }
        picked.iter().all(|task| task.wait(Some(deadline)))
    }

    /// Stops everything and ends the threads.
    pub fn close(&self, patience: Duration) {
        let ended = self.stop(|_| true, machine::now() + patience);
        locked(&self.shared.queues).closing = true;
        self.shared.wake.notify_all();
        let threads = std::mem::take(&mut *locked(&self.threads));
        // A thread that is stuck in the kernel cannot be waited for.
        if ended {
            for thread in threads {
                let _ = thread.join();
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        locked(&self.shared.queues).closing = true;
        self.shared.wake.notify_all();
    }
}

impl Shared {
    /// Steps jobs: for ever, or until none waits.
    fn work(&self, for_ever: bool) {
        while let Some(mut entry) = self.next(for_ever) {
            match self.step(&mut entry) {
                Ok(Step::Again) => self.put_back(entry),
                Ok(Step::Later(pause)) => {
                    entry.not_before = Some(machine::now() + pause);
                    self.put_back(entry);
                }
                Ok(Step::Done) => {
                    // Locks and memory go with the job, before anybody learns that it has ended.
                    drop((entry.job, entry.keep));
                    self.end(&entry.task, Ok(()));
                }
                Err(error) => {
                    entry.job.failed(&error);
                    drop((entry.job, entry.keep));
                    self.end(&entry.task, Err(error));
                }
            }
        }
    }

    fn step(&self, entry: &mut Entry) -> Result<Step> {
        if entry.task.is_cancelled() {
            return Err(Error::new(ErrorKind::Stopped, format!("task {:?} was stopped", entry.task.id)));
        }
        let env = Env { repos: (self.repos)(), task: &entry.task, threads: machine::threads(MOVERS) };
        let job = std::panic::AssertUnwindSafe(|| entry.job.step(&env));
        std::panic::catch_unwind(job).unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::Internal, format!("task {:?} panicked", entry.task.id)))
        })
    }

    fn next(&self, for_ever: bool) -> Option<Entry> {
        let mut queues = locked(&self.queues);
        loop {
            if queues.closing || (!for_ever && queues.waiting.is_empty()) {
                return None;
            }
            let now = machine::now();
            let due =
                |entry: &Entry| entry.task.is_cancelled() || entry.not_before.is_none_or(|time| time <= now);
            if let Some(index) = queues.waiting.iter().position(due) {
                return queues.waiting.remove(index);
            }
            let first = queues.waiting.iter().filter_map(|entry| entry.not_before).min();
            let pause = first.map_or(Duration::from_hours(1), |time| time.saturating_duration_since(now));
            let pause = pause.max(Duration::from_millis(1));
            if machine::is_simulated() {
                drop(queues);
                machine::pause(pause);
                queues = locked(&self.queues);
                continue;
            }
            queues =
                self.wake.wait_timeout(queues, pause).map_or_else(|e| e.into_inner().0, |(guard, _)| guard);
        }
    }

    fn put_back(&self, entry: Entry) {
        locked(&self.queues).waiting.push_back(entry);
        self.wake.notify_one();
    }

    fn end(&self, task: &Arc<Task>, outcome: Result<()>) {
        let mut queues = locked(&self.queues);
        queues.running.retain(|running| !Arc::ptr_eq(running, task));
        queues.ended.push_back(Arc::clone(task));
        if queues.ended.len() > KEPT {
            queues.ended.pop_front();
        }
        drop(queues);
        task.finish(outcome);
    }
}
