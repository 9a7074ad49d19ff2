//! The host that dies: the test program once more, with its work in an environment variable.
//!
//! The test program has a test `dying_host`, ignored, that calls [`live`].

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::env;
use std::fmt::Display;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::parent_id;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use vdsmstore_core::options::{
    AutoFix, Bandwidth, CopyOptions, CreateOptions, ExportOptions, FixOptions, RemoveOptions, ResizeOptions,
    Strategy,
};
use vdsmstore_core::{Error, Result, Store};

use crate::{Written, at, store};

const WORK: &str = "VDSMSTORE_KILLS_HOST";
/// Before the words that are for the parent: the test runner speaks on the same pipe.
const MARK: &str = "kills: ";
/// Nothing takes as long.
const PATIENCE: Duration = Duration::from_mins(1);

/// When the host dies.
#[derive(Clone, Copy, Debug)]
pub enum Moment {
    /// So long after it began.
    After(Duration),
    /// When so many thousandths of the data are in place, and so long after that.
    Done(u64, Duration),
}

/// How long an operation takes that nobody interrupts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    /// Until the call came back.
    pub returned: Duration,
    /// Until all work had ended.
    pub finished: Duration,
}

/// What it had said when it died.
#[derive(Clone, Debug, Default)]
pub struct Said {
    /// The call had come back.
    pub returned: bool,
    /// All work had ended.
    pub finished: bool,
    /// Thousandths of the data, as listTasks told at last.
    pub done: u64,
    /// Bytes that it wrote, once it had finished.
    pub wrote: u64,
    /// Why the call or a task of it failed.
    pub failed: Option<String>,
}

/// A host at work.
#[derive(Debug)]
pub struct Dying {
    child: Child,
    words: Receiver<(String, String)>,
    said: Said,
}

impl Dying {
    /// Starts one, and waits until it is about to begin.
    pub fn start(root: &Path, job: &Value) -> Dying {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "dying_host", "--ignored", "--nocapture", "--test-threads=1"])
            .env(WORK, job.to_string())
            .current_dir(root)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = child.stdout.take().unwrap();
        let (sender, words) = channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(std::result::Result::ok) {
                // The runner ends its own line only after the test.
                let Some((_, words)) = line.split_once(MARK) else { continue };
                let (word, rest) = words.split_once(' ').unwrap_or((words, ""));
                if sender.send((word.to_owned(), rest.to_owned())).is_err() {
                    break;
                }
            }
        });
        let mut dying = Dying { child, words, said: Said::default() };
        assert!(dying.wait_for(|word, _| word == "ready", PATIENCE), "the host does not begin: {job}");
        dying
    }

    /// Waits for words, and remembers what it hears. False: they did not come in time, or all is over.
    fn wait_for(&mut self, enough: impl Fn(&str, u64) -> bool, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        loop {
            match self.words.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok((word, rest)) => {
                    self.said.hear(&word, &rest);
                    if enough(&word, rest.parse().unwrap_or(0)) {
                        return true;
                    }
                    if word == "finished" {
                        return false;
                    }
                }
                Err(RecvTimeoutError::Timeout) => return false,
                Err(RecvTimeoutError::Disconnected) => panic!("the host failed: {:?}", self.child.wait()),
            }
        }
    }

    /// Lets it work until the moment; None: until it has finished.
    pub fn run_until(&mut self, moment: Option<&Moment>) -> Pace {
        let start = Instant::now();
        let mut pace = Pace::default();
        match moment {
            None => {
                assert!(self.wait_for(|word, _| word == "returned", PATIENCE), "the call does not return");
                pace.returned = start.elapsed();
                assert!(self.wait_for(|word, _| word == "finished", PATIENCE), "the work does not end");
                pace.finished = start.elapsed();
            }
            // Words are read afterwards: the moment is what counts.
            Some(Moment::After(time)) => thread::sleep(*time),
            Some(Moment::Done(wanted, time)) => {
                if self.wait_for(|word, done| word == "done" && done >= *wanted, PATIENCE) {
                    thread::sleep(*time);
                }
            }
        }
        pace
    }

    /// Lets it work until something is to be seen, or it has finished.
    pub fn run_until_seen(&mut self, seen: &dyn Fn() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !seen() && Instant::now() < deadline {
            // What it says is looked at only for its end.
            match self.words.try_recv() {
                Ok((word, rest)) => {
                    self.said.hear(&word, &rest);
                    if word == "finished" {
                        return;
                    }
                }
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => panic!("the host failed: {:?}", self.child.wait()),
            }
        }
    }

    /// Stops it where it is; returns when each of its threads stands still.
    pub fn stop(&self) {
        kill_process(Pid::from_child(&self.child), Signal::STOP).unwrap();
        let deadline = Instant::now() + PATIENCE;
        while !self.stands_still() {
            assert!(Instant::now() < deadline, "the host does not stop");
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn stands_still(&self) -> bool {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        tasks.flatten().all(|task| {
            // The state comes after the name, which is in parentheses.
            let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
        })
    }

    /// Lets it go on.
    pub fn go_on(&self) {
        kill_process(Pid::from_child(&self.child), Signal::CONT).unwrap();
    }

    /// Lets it work to its end; what it had said.
    pub fn finish(mut self) -> Said {
        self.wait_for(|_, _| false, PATIENCE);
        assert!(self.said.finished, "the work does not end: {:?}", self.said);
        self.kill()
    }

    /// Kills it; what it had said.
    pub fn kill(mut self) -> Said {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        while let Ok((word, rest)) = self.words.recv() {
            self.said.hear(&word, &rest);
        }
        std::mem::take(&mut self.said)
    }
}

impl Drop for Dying {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Said {
    fn hear(&mut self, word: &str, rest: &str) {
        let number = || rest.parse().unwrap_or(0);
        match word {
            "returned" => self.returned = true,
            "finished" => (self.finished, self.wrote) = (true, number()),
            "done" => self.done = number(),
            "failed" => self.failed = Some(rest.to_owned()),
            _ => {}
        }
    }
}

/// Does the work, telling how far it is, and waits to be killed.
pub fn live() {
    let Ok(work) = env::var(WORK) else { return };
    let job: Value = serde_json::from_str(&work).unwrap();
    let root = env::current_dir().unwrap();
    let store = store(job["host"].as_str().unwrap_or("dying"));
    for name in job["connect"].as_array().unwrap() {
        let name = name.as_str().unwrap();
        store.connect_storage_repository(name, "localfs-1.0", &at(&root.join(name))).unwrap();
    }
    let reporter = store.clone();
    thread::spawn(move || report(&reporter));
    let wrote = Written::now();
    say("ready", 0);
    // Several begin at once.
    let go = job["go"].as_str();
    while go.is_some_and(|go| !fs::exists(go).unwrap()) {
        thread::yield_now();
    }
    match call(&store, &job) {
        Ok(()) => say("returned", 0),
        Err(error) => say("failed", told(&error)),
    }
    while let Some(task) = store.list_tasks().unwrap().first() {
        if let Err(error) = store.wait_task(&task.task_id, None) {
            say("failed", told(&error));
        }
    }
    say("finished", wrote.since());
    // Nobody's child is nobody's to kill.
    while parent_id() != 1 {
        thread::sleep(Duration::from_millis(100));
    }
}

/// The kind, the message, and who is in the way.
fn told(error: &Error) -> String {
    format!("{:?}: {error} {}", error.kind(), error.details().get("host").unwrap_or(&Value::Null))
}

fn say(word: &str, rest: impl Display) {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{MARK}{word} {rest}").and_then(|()| stdout.flush()).unwrap();
}

fn report(store: &Store) {
    let mut last = 0;
    while let Ok(tasks) = store.list_tasks() {
        if let Some(task) = tasks.iter().find(|task| task.bytes_total > 0) {
            let done = (task.bytes_done * 1000 / task.bytes_total).min(1000);
            if done != last {
                say("done", done);
                last = done;
            }
        }
        thread::sleep(Duration::from_micros(200));
    }
}

fn call(store: &Store, job: &Value) -> Result<()> {
    let text = |key: &str| job[key].as_str();
    let bandwidth = job["bandwidth"].as_u64().map(Bandwidth);
    let strategy = if job["performance"] == true { Strategy::Performance } else { Strategy::Space };
    let auto_fix = if job["optimized"] == true { AutoFix::Optimized } else { AutoFix::On };
    let image_id = text("new").map(str::to_owned);
    let create = CreateOptions { image_id, bandwidth, strategy, auto_fix, ..CreateOptions::default() };
    let (repo, image) = (text("repo").unwrap(), text("image").unwrap_or_default());
    let user_data = text("userData").unwrap_or("{}");
    match text("call").unwrap() {
        "create" => {
            store.create_virtual_disk(repo, job["size"].as_i64(), text("base"), user_data, &create).map(drop)
        }
        "snapshot" => store.create_snapshot(repo, image, user_data, &create).map(drop),
        "copy" => {
            let options = CopyOptions {
                image_id: create.image_id,
                bandwidth,
                strategy,
                auto_fix,
                mutable: job["mutable"] != false,
                partial: job["partial"] == true,
                ..CopyOptions::default()
            };
            store.copy_image(repo, image, text("base"), user_data, &options).map(drop)
        }
        "import" => store
            .import_image(repo, text("path").unwrap(), text("format").unwrap(), user_data, &create)
            .map(drop),
        "export" => {
            let options = ExportOptions { bandwidth, ..ExportOptions::default() };
            store
                .export_image(repo, image, text("path").unwrap(), text("format").unwrap(), &options)
                .map(drop)
        }
        "fix" => {
            let fix = serde_json::from_value(job["fix"].clone()).unwrap();
            let options = FixOptions { bandwidth, ..FixOptions::default() };
            store.fix_storage_repository(repo, &fix, &options).map(drop)
        }
        "remove" => store.remove_image(repo, image, &RemoveOptions::default()),
        "resize" => {
            store.resize_virtual_disk(repo, image, job["size"].as_i64().unwrap(), &ResizeOptions::default())
        }
        "user data" => store.set_image_user_data(repo, image, user_data),
        other => panic!("no call {other}"),
    }
}
