//! One run of the program: its repositories, its store, and the work that it waits for.

use std::process;
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value, json};
use vdsmstore_core::{Error, ErrorKind, ImageId, ImageStatus, Result, Status, Store, StoreOptions};

use crate::args::Cli;
use crate::config::{self, RepoSpec};
use crate::interrupt::Interrupt;
use crate::output::{Output, warn};
use crate::progress::Progress;
use crate::stop::{self, Offer};

/// How often a wait looks at signals and progress.
const TICK: Duration = Duration::from_millis(100);

/// How a command that did not fail ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All is well.
    Done,
    /// The image can be used; it is not in its best representation.
    Degraded,
    /// The exit status of the program that was run.
    Status(u8),
}

impl Outcome {
    /// The exit status.
    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Degraded => 3,
            Self::Status(code) => code,
        }
    }
}

/// What all commands share.
#[derive(Debug)]
pub struct Session {
    /// The store, with nothing connected at first.
    pub store: Store,
    /// Where results go.
    pub out: Output,
    /// Whether to stop.
    pub interrupt: Interrupt,
    repositories: Vec<RepoSpec>,
}

impl Session {
    /// Reads the config file and opens a store.
    pub fn open(cli: &Cli, interrupt: Interrupt) -> Result<Self> {
        let repositories = config::repositories(&cli.repo)?;
        let mut options = StoreOptions::default();
        options.host_id.clone_from(&cli.host_id);
        Ok(Self { store: Store::new(options)?, out: Output::new(cli.json), interrupt, repositories })
    }

    /// All repositories that were given.
    pub fn repositories(&self) -> &[RepoSpec] {
        &self.repositories
    }

    /// The one of that name.
    pub fn repository(&self, name: &str) -> Result<&RepoSpec> {
        self.repositories.iter().find(|spec| spec.name == name).ok_or_else(|| {
            let message = format!("no repository {name:?}: give it with --repo or in a config file");
            Error::new(ErrorKind::RepositoryNotFound, message).with("repoId", name)
        })
    }

    /// Connects the repository, and nothing else.
    pub fn connect(&self, name: &str) -> Result<()> {
        let spec = self.repository(name)?;
        self.store.connect_storage_repository(&spec.name, &spec.format, &spec.parameters)
    }

    /// Connects the target and all that may be searched: those named, else all. One that was not named anywhere on
    /// the command line and cannot be reached is left out with a warning.
    pub fn connect_for_search(&self, target: &str, named: &[&str]) -> Result<()> {
        for name in [target].iter().chain(named) {
            self.repository(name)?;
        }
        for spec in &self.repositories {
            let wanted = spec.name == target || named.contains(&spec.name.as_str());
            if !wanted && !named.is_empty() {
                continue;
            }
            match self.connect(&spec.name) {
                Err(error) if !wanted && !spec.explicit => {
                    warn(&format!("repository {:?} is left out: {error}", spec.name));
                }
                result => result?,
            }
        }
        Ok(())
    }

    /// Waits for everything that this store runs, with a progress bar; the error is that of the named task.
    pub fn wait_tasks(&self, task_id: &str) -> Result<()> {
        let mut progress = Progress::new(self.out.json());
        loop {
            let tasks = self.store.list_tasks()?;
            let Some(first) = tasks.first() else { break };
            self.interrupt.check()?;
            progress.show(&tasks);
            // Whatever becomes of it is asked below, or seen in the image's status.
            let _ = self.store.wait_task(&first.task_id, Some(TICK));
        }
        progress.clear();
        match self.store.wait_task(task_id, Some(Duration::ZERO)) {
            // Nothing had to be started.
            Err(error) if error.kind() == ErrorKind::TaskNotFound => Ok(()),
            result => result,
        }
    }

    /// While it is held, `image stop` of the same user can stop what runs on the image here.
    pub fn offer_to_stop(&self, repo: &str, image: &str) -> Option<Offer> {
        stop::offer(&self.store, self.repository(repo).ok()?, image)
    }

    /// After a verb has made an image: prints its id, waits for the work, says what came of it.
    pub fn finish(&self, repo: &str, image: ImageId, task_id: &str, wait: bool) -> Result<Outcome> {
        let id = image.to_string();
        if !self.out.json() {
            // At once: it stays valid whatever happens next.
            self.out.line(&id)?;
        }
        let place = |error: Error| error.with("repoId", repo).with("imageId", id.as_str());
        let _offer = if wait { self.offer_to_stop(repo, &id) } else { None };
        let worked = if wait { self.wait_tasks(task_id) } else { Ok(()) };
        if let Err(error) = &worked
            && error.kind() == ErrorKind::Stopped
        {
            let message = format!(
                "interrupted; image {id} in {repo} stays: `vdsmstore repo fix {repo} --all` goes on with it"
            );
            return Err(place(Error::new(ErrorKind::Stopped, message)));
        }
        let status = self.store.get_image_status(repo, &id)?;
        if self.out.json() {
            self.out.value(&status_value(repo, &id, &status)?)?;
        }
        match (status.status, worked) {
            _ if !wait => Ok(Outcome::Done),
            (Status::Broken, Err(error)) => {
                Err(place(error.context(format!("image {id} in {repo} is not whole"))))
            }
            (Status::Broken, Ok(())) => {
                let reason = status.last_error.as_deref().unwrap_or("its work has not ended");
                let message = format!("image {id} in {repo} is not whole: {reason}");
                Err(place(Error::new(ErrorKind::ImageBroken, message)))
            }
            (Status::Optimized, Ok(())) => Ok(Outcome::Done),
            (_, Err(error)) => {
                warn(&format!("image {id} in {repo} can be used, but: {error}"));
                Ok(Outcome::Degraded)
            }
            (Status::Degraded, Ok(())) => Ok(Outcome::Degraded),
        }
    }
}

/// The name of the work that a command starts.
pub fn task_id(given: Option<&str>) -> String {
    given.map_or_else(
        || {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            format!("cli-{}-{}", process::id(), now.as_nanos())
        },
        str::to_owned,
    )
}

/// The status dict, with the names of what it belongs to.
pub fn status_value(repo: &str, image: &str, status: &ImageStatus) -> Result<Value> {
    let mut map = Map::new();
    map.insert("repoId".to_owned(), json!(repo));
    map.insert("imageId".to_owned(), json!(image));
    let status = serde_json::to_value(status)
        .map_err(|error| Error::new(ErrorKind::Internal, format!("JSON: {error}")).because(error))?;
    if let Value::Object(status) = status {
        map.extend(status);
    }
    Ok(Value::Object(map))
}

/// How the status of an image that should be usable is said with an exit status.
pub fn usable(repo: &str, image: &str, status: &ImageStatus) -> Result<Outcome> {
    match status.status {
        Status::Optimized => Ok(Outcome::Done),
        Status::Degraded => Ok(Outcome::Degraded),
        Status::Broken => {
            let reason = status.last_error.as_deref().unwrap_or("its work has not ended");
            Err(Error::new(ErrorKind::ImageBroken, format!("image {image} in {repo} is not whole: {reason}")))
        }
    }
}
