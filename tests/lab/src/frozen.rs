//! A host is frozen in the middle of its work on an NFS share, right before it writes data or a record; another host
//! takes its work over; and the first one goes on. See `docs/decisions/nfs-spike.md`.
//!
//! That the frozen host really is at such a write, and what became of the write, strace tells (`late.rs`): it keeps the
//! first call of that kind waiting, so that there is time to freeze the machine, and writes down what it returned.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use vdsmstore_core::options::{
    AutoFix, Bandwidth, CheckOptions, CopyOptions, CreateOptions, FixOptions, RemoveOptions, Strategy,
};
use vdsmstore_core::{ErrorKind, Fix, FixType, Store};
use vdsmstore_tests::records::record;
use vdsmstore_tests::{settle, write};

use crate::judge::{REPOS, quiet};
use crate::left::nothing_left_over;
use crate::nfs::{joined, say, short};
use crate::state::{BLOCK, content};

/// Of each disk: 4 MiB.
const BLOCKS: usize = 1024;
/// What the host writes to each disk that has taken the work over.
const AFTER: std::ops::Range<usize> = 0..64;
const AFTER_TAG: u32 = 9;
/// How long a call is kept waiting.
const HELD: Duration = Duration::from_mins(3);
/// Others give up their locks and go within this time, or never.
const PATIENCE: Duration = Duration::from_mins(5);

/// One work that is to be frozen.
#[derive(Serialize, Deserialize)]
struct Case {
    repo: String,
    fix: Fix,
    /// What it is about in the end, and of each block what was written to it last.
    image: String,
    blocks: Vec<u32>,
    /// The volume that it fills; None: a new one, announced when it begins.
    target: Option<String>,
}

type Scene = BTreeMap<String, Case>;

fn scene(root: &Path) -> Scene {
    serde_json::from_slice(&fs::read(root.join("scene.json")).unwrap()).unwrap()
}

/// Makes what is to be worked on: each kind once to be frozen before it writes data, and once before a record.
pub fn prepare(root: &Path, kinds: &[&str]) {
    let store = joined(root, "maker");
    let mut scene = Scene::new();
    for kind in kinds {
        for moment in ["data", "record"] {
            let case = match *kind {
                "copy" => copy(root, &store),
                "merge" => merge(root, &store),
                "replace" => replace(&store),
                kind => panic!("no {kind}"),
            };
            scene.insert(format!("{kind}-{moment}"), case);
        }
    }
    quiet(&store);
    fs::write(root.join("scene.json"), serde_json::to_vec(&scene).unwrap()).unwrap();
    store.close().unwrap();
}

fn write_blocks(store: &Store, disk: &str, blocks: &mut [u32], range: std::ops::Range<usize>, tag: u32) {
    let data: Vec<u8> = range.clone().flat_map(|block| content(block, tag)).collect();
    write(store, "A", disk, |image| image.write((range.start * BLOCK) as i64, &data));
    blocks[range].fill(tag);
}

fn disk(store: &Store) -> (String, Vec<u32>) {
    let (size, plain) = (Some((BLOCKS * BLOCK) as i64), CreateOptions::default());
    let disk = store.create_virtual_disk("A", size, None, "{}", &plain).unwrap().to_string();
    settle(store, "A", &disk);
    let mut blocks = vec![0; BLOCKS];
    write_blocks(store, &disk, &mut blocks, 0..BLOCKS, 1);
    (disk, blocks)
}

fn snapshot(store: &Store, disk: &str) -> String {
    let snapshot = store.create_snapshot("A", disk, "{}", &CreateOptions::default()).unwrap().to_string();
    settle(store, "A", &snapshot);
    snapshot
}

fn the_fix(store: &Store, repo: &str, fix_type: FixType, image: &str) -> Fix {
    let fixes = store.check_storage_repository(repo, &CheckOptions::default()).unwrap();
    let is_it =
        |fix: &&Fix| fix.fix_type == fix_type && fix.image_id.is_some_and(|id| id.to_string() == image);
    fixes.iter().find(is_it).unwrap_or_else(|| panic!("no {fix_type:?} of {image}: {fixes:?}")).clone()
}

fn copy(root: &Path, store: &Store) -> Case {
    let (disk, blocks) = disk(store);
    let options = CopyOptions { auto_fix: AutoFix::Off, ..CopyOptions::default() };
    let image = store.copy_image("B", &disk, None, "{}", &options).unwrap().to_string();
    let fix = the_fix(store, "B", FixType::Mend, &image);
    let target = volume(root, "B", &image, "volume");
    Case { repo: "B".to_owned(), fix, image, blocks, target }
}

/// Downwards: the upper layer is the smaller one.
fn merge(root: &Path, store: &Store) -> Case {
    let (disk, mut blocks) = disk(store);
    let lower = snapshot(store, &disk);
    write_blocks(store, &disk, &mut blocks, 256..640, 2);
    let target = volume(root, "A", &lower, "volume");
    let options = RemoveOptions { auto_fix: AutoFix::Off, ..RemoveOptions::default() };
    store.remove_image("A", &lower, &options).unwrap();
    let fix = the_fix(store, "A", FixType::Merge, &lower);
    Case { repo: "A".to_owned(), fix, image: disk, blocks, target }
}

fn replace(store: &Store) -> Case {
    let (disk, mut blocks) = disk(store);
    snapshot(store, &disk);
    write_blocks(store, &disk, &mut blocks, 0..128, 2);
    store.set_image_strategy("A", &disk, Strategy::Performance).unwrap();
    let fix = the_fix(store, "A", FixType::Optimize, &disk);
    Case { repo: "A".to_owned(), fix, image: disk, blocks, target: None }
}

fn volume(root: &Path, repo: &str, image: &str, key: &str) -> Option<String> {
    record(&root.join(repo), "images", image)?[key].as_str().map(str::to_owned)
}

/// Does the work of one case; keeps its first write of the kind waiting and says so.
#[expect(clippy::zombie_processes, reason = "strace ends when it has nothing to trace")]
pub fn work(root: &Path, host: &str, name: &str, log: &Path) {
    let case = &scene(root)[name];
    let store = joined(root, host);
    let at_data = name.ends_with("-data");
    // Slow enough to be met in the middle; to the end it is not to take long.
    let bandwidth = Bandwidth(if at_data { 128 << 10 } else { 512 << 10 });
    let options = FixOptions { bandwidth: Some(bandwidth), ..FixOptions::default() };
    let task = store.fix_storage_repository(&case.repo, &case.fix, &options).unwrap();
    let is_in_the_middle =
        || store.list_tasks().unwrap().first().is_none_or(|task| task.bytes_done * 10 > task.bytes_total * 3);
    while !is_in_the_middle() {
        thread::sleep(Duration::from_millis(100));
    }
    let mut strace = keep_waiting(&root.join(&case.repo), case, log, at_data);
    let held = Instant::now();
    while !is_held() {
        assert!(strace.try_wait().unwrap().is_none(), "strace has ended");
        assert!(
            held.elapsed() < PATIENCE && !store.list_tasks().unwrap().is_empty(),
            "nothing was kept waiting"
        );
        thread::sleep(Duration::from_millis(100));
    }
    say("held");
    match store.wait_task(&task, None) {
        Ok(()) => say("ended: done"),
        Err(error) => say(&format!("ended: {}", short(&error))),
    }
    say(&format!("closed: {:?}", store.close().map_err(|error| short(&error))));
}

/// strace of this process, which looks at this work only.
fn keep_waiting(repo: &Path, case: &Case, log: &Path, at_data: bool) -> process::Child {
    let images = repo.join("images").join(&case.image[..3]);
    let mut paths: Vec<PathBuf> = vec![images];
    if at_data {
        let next = || record(repo, "images", &case.image)?["next"].as_str().map(str::to_owned);
        let target = case.target.clone().or_else(next).expect("a volume that is filled");
        paths.extend([repo.join("volumes").join(&target[..3]), repo.join("data").join(target)]);
    }
    // Between files of one export the server is asked to clone, by an ioctl.
    let call = if at_data { "pwrite64,ioctl" } else { "linkat" };
    let mut strace = Command::new("strace");
    strace.args([
        "-f",
        "-ttt",
        "-T",
        "-y",
        "-e",
        "trace=pwrite64,ioctl,fallocate,fsync,fdatasync,linkat",
        "-e",
    ]);
    strace.arg(format!("inject={call}:delay_enter={}:when=1", HELD.as_micros()));
    for path in &paths {
        strace.arg("-P").arg(path);
    }
    strace.arg("-o").arg(log).args(["-p", &process::id().to_string()]);
    strace.spawn().expect("strace")
}

/// A thread stands in the tracer's hands, and stays there.
fn is_held() -> bool {
    let traced = || {
        let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
        let stats = tasks.filter_map(|task| fs::read_to_string(task.path().join("stat")).ok());
        // The state comes after the name, which is in parentheses.
        stats.filter(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('t'))).count()
    };
    (0..10).all(|_| {
        thread::sleep(Duration::from_millis(100));
        traced() > 0
    })
}

/// Takes all work over, and goes on with the disks.
pub fn finish(root: &Path, host: &str) {
    let mut scene = scene(root);
    let store = joined(root, host);
    let start = Instant::now();
    let met = all_fixes(&store);
    say(&format!("nothing left to be done after {:.1} s", start.elapsed().as_secs_f64()));
    for (what, times) in met {
        say(&format!("{times} times {what}"));
    }
    for (name, case) in &mut scene {
        holds(&store, name, case);
        let data: Vec<u8> = AFTER.flat_map(|block| content(block, AFTER_TAG)).collect();
        write(&store, &case.repo, &case.image, |image| {
            image.write((AFTER.start * BLOCK) as i64, &data)?;
            image.flush()
        });
        case.blocks[AFTER].fill(AFTER_TAG);
        holds(&store, name, case);
    }
    fs::write(root.join("scene.json"), serde_json::to_vec(&scene).unwrap()).unwrap();
    say(&format!("{} images taken over and written", scene.len()));
    store.close().unwrap();
}

/// Until none is listed; what came of them.
fn all_fixes(store: &Store) -> BTreeMap<String, u32> {
    let start = Instant::now();
    let mut met = BTreeMap::<String, u32>::new();
    loop {
        let mut clean = true;
        for repo in REPOS {
            for fix in store.check_storage_repository(repo, &CheckOptions::default()).unwrap() {
                clean = false;
                // Not as slowly as it was begun.
                let options = FixOptions { bandwidth: Some(Bandwidth(1 << 40)), ..FixOptions::default() };
                let task = store.fix_storage_repository(repo, &fix, &options);
                let outcome = task.and_then(|task| store.wait_task(&task, None));
                let told = match outcome {
                    Ok(()) => "done".to_owned(),
                    Err(error) if [ErrorKind::ImageInUse, ErrorKind::FixRefused].contains(&error.kind()) => {
                        format!(
                            "{:?} {}",
                            error.kind(),
                            error.details().get("host").map_or("", |host| host.as_str().unwrap())
                        )
                    }
                    Err(error) => panic!("{fix:?}: {}", short(&error)),
                };
                *met.entry(format!("{:?}: {told}", fix.fix_type)).or_default() += 1;
            }
        }
        if clean {
            return met;
        }
        assert!(start.elapsed() < PATIENCE, "the fixes do not end: {met:?}");
        thread::sleep(Duration::from_millis(300));
    }
}

fn holds(store: &Store, name: &str, case: &Case) {
    let image = store.open_image(&case.repo, &case.image, false).unwrap();
    let mut found = vec![0xaa; BLOCKS * BLOCK];
    image.read(0, &mut found).unwrap();
    image.close().unwrap();
    for (block, found) in found.chunks(BLOCK).enumerate() {
        let tag = case.blocks[block];
        assert!(found == content(block, tag), "{name}: block {block} is not what was written by {tag}");
    }
}

/// When all have come back: everything is as the one left it that took over.
pub fn judge(root: &Path, host: &str) {
    let scene = scene(root);
    let store = joined(root, host);
    for (name, case) in &scene {
        holds(&store, name, case);
    }
    let met = all_fixes(&store);
    for (name, case) in &scene {
        holds(&store, name, case);
    }
    for repo in REPOS {
        nothing_left_over(&root.join(repo), 1, repo);
    }
    say(&format!("{} images are whole, nothing is left over; fixes: {met:?}", scene.len()));
    store.close().unwrap();
}
