//! Work that is broken off: stopped by its own store, or with the host that does it.

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use uuid::Uuid;
use vdsmstore_core::options::{Bandwidth, CheckOptions};
use vdsmstore_core::{ErrorKind, Status, Store};
use vdsmstore_tests::dying::{Dying, Moment, Said};
use vdsmstore_tests::records::{Records, record};

use crate::operation::When;
use crate::world::State;
use crate::{NAMES, World};

/// Bytes per second of what is to be broken off: half a mebibyte, and then it waits for as long as that takes.
const SLOW: Bandwidth = Bandwidth(2 << 20);
/// No limit; whoever goes on with what was slow says so.
pub const FAST: Bandwidth = Bandwidth(1 << 40);

/// How an operation is carried out.
#[derive(Clone, Copy, Debug)]
pub enum Way {
    Run,
    Stop,
    Kill(When),
}

/// What became of the attempts to break work off.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hits {
    /// Stops of a task that was running.
    pub stopped: u32,
    /// Hosts that died.
    pub killed: u32,
    /// Hosts that died and left something to be done.
    pub unfinished: u32,
    /// Fixes of an earlier check that were refused, or did nothing.
    pub stale: u32,
    /// Unfinished images that became whole.
    pub completed: u32,
}

impl Hits {
    pub fn add(&mut self, other: Hits) {
        self.stopped += other.stopped;
        self.killed += other.killed;
        self.unfinished += other.unfinished;
        self.stale += other.stale;
        self.completed += other.completed;
    }
}

/// What an unfinished image needs to become whole.
#[derive(Clone, Debug)]
pub enum Need {
    /// A snapshot in any repository.
    Snapshot(String),
    /// A snapshot in this one.
    SnapshotIn(usize, String),
    Disk(usize, String),
}

impl World {
    pub fn is_run(&self) -> bool {
        matches!(self.way, Way::Run)
    }

    pub fn is_killed(&self) -> bool {
        matches!(self.way, Way::Kill(_))
    }

    /// The limit of the work that is started.
    pub fn bandwidth(&self) -> Option<Bandwidth> {
        matches!(self.way, Way::Stop).then_some(SLOW)
    }

    /// The status of an image, whatever the model thinks. None: it is not there.
    pub fn look(&self, repo: usize, id: &str) -> Option<Status> {
        match self.stores[repo].get_image_status(NAMES[repo], id) {
            Ok(status) => Some(status.status),
            Err(error) if error.kind() == ErrorKind::ImageNotFound => None,
            Err(error) => panic!("{id}: {error:?}"),
        }
    }

    pub fn is_whole(&self, repo: usize, id: &str) -> bool {
        self.look(repo, id).is_some_and(|status| status != Status::Broken)
    }

    /// The record of an image says that it is being buried or merged away: it cannot be brought back meanwhile.
    pub fn is_absorbed(&self, repo: usize, id: &str) -> bool {
        self.broken_off
            && Records::read(&self.root.path().join(NAMES[repo]))
                .images
                .get(id)
                .is_some_and(|image| image["state"] == "absorbed")
    }

    /// Runs what was started in a store; or stops it, once it has moved something.
    pub fn work(&mut self, store: usize) {
        let store = self.stores[store].clone();
        if self.is_run() {
            store.run_tasks();
            return;
        }
        self.broken_off = true;
        let by_task = self.serial().is_multiple_of(2);
        let running = thread::scope(|scope| {
            let worker = scope.spawn(|| store.run_tasks());
            let running = loop {
                let tasks = store.list_tasks().unwrap();
                if tasks.is_empty() || tasks.iter().any(|task| task.bytes_done > 0) {
                    break tasks;
                }
                thread::sleep(Duration::from_micros(100));
            };
            for task in &running {
                let stopped = match task.image_id {
                    Some(image) if !by_task => store.stop_image_task(&task.repo_id, &image.to_string()),
                    _ => store.stop_task(&task.task_id),
                };
                stopped.unwrap();
            }
            worker.join().unwrap();
            running
        });
        for task in running {
            match store.wait_task(&task.task_id, None) {
                Err(error) if error.kind() == ErrorKind::Stopped => self.hits.stopped += 1,
                _ => continue,
            }
            let Some(image) = task.image_id else { continue };
            let status = match store.get_image_status(&task.repo_id, &image.to_string()) {
                Err(error) if error.kind() == ErrorKind::ImageNotFound => continue,
                status => status.unwrap(),
            };
            let says = status.last_error.as_ref().is_some_and(|error| error.contains("stopped"));
            // Between two stages nothing is unfinished: what the next is to be is for a check to list.
            let repo = self.root.path().join(&task.repo_id);
            let unfinished = record(&repo, "images", &image.to_string())
                .is_none_or(|image| image["next"].is_string() || image["state"] == "pending");
            assert!(
                status.status == Status::Optimized || says || !unfinished,
                "{task:?} was stopped, and the status does not say so: {status:?}"
            );
        }
    }

    /// What is to be done, as a check lists it.
    fn listed(&self) -> BTreeSet<String> {
        let of =
            |name: &&str| self.stores[0].check_storage_repository(name, &CheckOptions::default()).unwrap();
        let fixes = NAMES.iter().flat_map(of);
        fixes.filter(|fix| fix.data["action"] != "sweep").map(|fix| fix.data.to_string()).collect()
    }

    /// Another process does it, and is killed.
    pub fn by_dying_host(&mut self, mut job: Value) -> Said {
        let Way::Kill(when) = self.way else { panic!("nobody is to die") };
        job["connect"] = json!(NAMES);
        let moves = ["copy", "import", "fix"].contains(&job["call"].as_str().unwrap());
        let moment = match when {
            When::After(micros) => Moment::After(Duration::from_micros(micros)),
            When::Done(thousandths) if moves => {
                job["bandwidth"] = json!(SLOW.0);
                Moment::Done(thousandths, Duration::ZERO)
            }
            When::Done(thousandths) => Moment::After(Duration::from_micros(thousandths * 10)),
        };
        let before = self.listed();
        let mut dying = Dying::start(self.root.path(), &job);
        dying.run_until(Some(&moment));
        let said = dying.kill();
        self.broken_off = true;
        self.hits.killed += 1;
        self.hits.unfinished += u32::from(self.listed() != before);
        if self.traced {
            println!("    {said:?}: {job}");
        }
        said
    }

    /// As [`World::by_dying_host`], of a call that makes an image under an id that is chosen for it. None: it is not
    /// there; else whether it is whole, and whether the call had returned.
    pub fn made_by_dying_host(&mut self, repo: usize, mut job: Value) -> Option<(String, bool, bool)> {
        let id = Uuid::new_v4().to_string();
        job["new"] = json!(id);
        job["repo"] = json!(NAMES[repo]);
        let said = self.by_dying_host(job);
        let Some(status) = self.look(repo, &id) else {
            assert!(!said.returned, "an id that was returned is lost: {said:?}");
            return None;
        };
        Some((id, status != Status::Broken, said.returned))
    }

    /// What the model cannot know is asked of the store.
    pub fn settle(&mut self) {
        self.model.drift();
        for (repo, name) in NAMES.iter().enumerate() {
            let store = self.stores[repo].clone();
            for (id, state) in self.model.states(repo) {
                match state {
                    State::Announced { sure: false, .. } if self.look(repo, &id).is_none() => {
                        self.model.repos[repo].remove(&id);
                    }
                    State::Adrift { moments, .. } if self.is_whole(repo, &id) => {
                        let data = read(&store, name, &id);
                        assert!(moments.contains(&data), "copy {id} in {name} is no moment of its source");
                        let image = self.model.repos[repo].get_mut(&id).unwrap();
                        (image.data, image.state) = (data, State::Whole);
                    }
                    _ => {}
                }
            }
            self.model.settle(repo, self.broken_off, |id| {
                store.get_image_status(name, id).unwrap().status != Status::Broken
            });
        }
        let whole = self.needs.keys().filter(|(repo, id)| self.model.usable(*repo, id));
        for key in whole.cloned().collect::<Vec<_>>() {
            self.needs.remove(&key);
            self.hits.completed += 1;
        }
    }

    /// At the end: whatever was broken off and has what it needs is whole.
    pub fn nothing_unfinished(&self) {
        for ((repo, id), needs) in &self.needs {
            let Some(status) = self.look(*repo, id) else { continue };
            let met = |need: &Need| match need {
                Need::Snapshot(id) => (0..2).any(|repo| self.is_whole(repo, id)),
                Need::SnapshotIn(repo, id) | Need::Disk(repo, id) => self.is_whole(*repo, id),
            };
            assert!(
                status != Status::Broken || !needs.iter().all(met),
                "{id} in {} was broken off and has all it needs ({needs:?}), but is {:?}",
                NAMES[*repo],
                self.stores[0].get_image_status(NAMES[*repo], id)
            );
        }
    }
}

fn read(store: &Store, repo: &str, id: &str) -> Vec<u8> {
    let image = store.open_image(repo, id, false).unwrap();
    let mut data = vec![0xaa; image.size().unwrap() as usize];
    image.read(0, &mut data).unwrap();
    image.close().unwrap();
    data
}
