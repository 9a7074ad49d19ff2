//! Causes that only files have, or that a stop leaves: what a killed process leaves of files, and the progress of work
//! that was stopped.

use std::io::{BufRead, BufReader};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::tempdir_in;
use vdsmstore_core::options::{
    Bandwidth, CheckOptions, CopyOptions, CreateOptions, FixOptions, FormatOptions, Strategy,
};
use vdsmstore_core::{Fix, FixType, Status, Store};
use vdsmstore_tests::scene::{self, MIB, Scene, bytes};
use vdsmstore_tests::tree::tree;
use vdsmstore_tests::{PATIENCE, at, new_repo, scratch, store, write};

const CHILD: &str = "VDSMSTORE_CAUSES_CHILD";
/// Kills until each kind of leftover was seen.
const KILLS: u32 = 1000;

/// What a killed process leaves that a sweep removes.
const LEFTOVERS: [&str; 4] =
    ["a registration", "a temporary file", "a superseded generation", "the first name of a descriptor"];

/// Not a test by itself: formats repositories and writes records until it is killed.
#[test]
#[ignore = "run by the test that kills it"]
fn writer() {
    let Ok(order) = std::env::var(CHILD) else { return };
    let (texts, root) = order.split_once('|').unwrap();
    let (texts, root): (u32, _) = (texts.parse().unwrap(), Path::new(root));
    let store = store("writer");
    eprintln!("ready");
    for number in 0.. {
        let name = format!("R{number}");
        new_repo(&store, root, &name);
        if texts == 0 {
            continue;
        }
        let id = store
            .create_virtual_disk(&name, Some(MIB), None, "{}", &CreateOptions::default())
            .unwrap()
            .to_string();
        for text in 0..texts {
            store.set_image_user_data(&name, &id, &format!("[{text}]")).unwrap();
        }
    }
}

/// The kinds of leftovers in a repository, as its names tell.
fn leftovers(repo: &Path) -> Vec<&'static str> {
    let mut found = vec![];
    if repo.join(".t.descriptor").exists() {
        found.push(LEFTOVERS[3]);
    }
    if std::fs::read_dir(repo.join("hosts")).is_ok_and(|mut hosts| hosts.next().is_some()) {
        found.push(LEFTOVERS[0]);
    }
    let names: Vec<String> = tree(repo).into_keys().collect();
    let file = |name: &String| name.rsplit('/').next().unwrap_or_default().to_owned();
    if names.iter().any(|name| name.contains('/') && file(name).starts_with(".t.")) {
        found.push(LEFTOVERS[1]);
    }
    // A put leaves two generations of a record.
    let records = names.iter().filter(|name| name.starts_with("images/") || name.starts_with("volumes/"));
    let mut generations = std::collections::BTreeMap::<String, u32>::new();
    for name in records.map(file).filter(|name| !name.starts_with(".t.")) {
        *generations.entry(name.split('.').next().unwrap_or_default().to_owned()).or_default() += 1;
    }
    if generations.values().any(|number| *number > 2) {
        found.push(LEFTOVERS[2]);
    }
    found
}

#[test]
fn a_sweep_removes_what_killed_processes_leave() {
    let start = Instant::now();
    let mut seen = std::collections::BTreeMap::<&str, u32>::new();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let (mut kills, mut swept) = (0, 0);
    while kills < KILLS && seen.len() < LEFTOVERS.len() {
        // Every other one formats, on a disk, where it takes time until a name is durable.
        let formats = kills % 2 == 0;
        let root = if formats { tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap() } else { scratch() };
        let texts = if formats { 0 } else { 10 };
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "local::writer", "--ignored", "--nocapture"])
            .env(CHILD, format!("{texts}|{}", root.path().display()))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap() == "ready"), "the writer does not begin");
        if formats {
            // The name is there before the next step is durable.
            let name = root.path().join("R0/descriptor.0000000000000001");
            let deadline = Instant::now() + PATIENCE;
            while !name.exists() {
                assert!(Instant::now() < deadline, "nothing is formatted");
            }
        } else {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            std::thread::sleep(Duration::from_micros(state % 20_000));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
        let mut repos: Vec<PathBuf> =
            std::fs::read_dir(root.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        repos.sort_by_key(|path| std::fs::metadata(path).unwrap().modified().unwrap());
        // The last one was being formatted or written.
        let other = store("other");
        for repo in repos.iter().rev().take(2) {
            if other.connect_storage_repository("R", "localfs-1.0", &at(repo)).is_err() {
                // Not formatted yet: the same call does it.
                other.format_storage_repository("localfs-1.0", &at(repo), &FormatOptions::default()).unwrap();
                continue;
            }
            let mut found = leftovers(repo);
            // Our own.
            let hosts = std::fs::read_dir(repo.join("hosts")).unwrap().count();
            found.retain(|kind| *kind != LEFTOVERS[0] || hosts > 1);
            let fixes = other.check_storage_repository("R", &CheckOptions::default()).unwrap();
            let sweep = fixes.iter().find(|fix| fix.data["action"] == "sweep");
            assert_eq!(sweep.is_some(), !found.is_empty(), "{found:?}: {fixes:#?}");
            if let Some(sweep) = sweep {
                for kind in &found {
                    *seen.entry(kind).or_default() += 1;
                }
                assert_eq!(sweep.fix_type, FixType::Clean);
                assert!(sweep.cost.frees > 0);
                for _ in 0..2 {
                    run(&other, "R", sweep, None);
                    let left = leftovers(repo);
                    assert_eq!(left, [LEFTOVERS[0]], "left over after a sweep");
                    assert_eq!(std::fs::read_dir(repo.join("hosts")).unwrap().count(), 1);
                }
                swept += 1;
            }
            finish(&other, "R");
            other
                .disconnect_storage_repository("R", &vdsmstore_core::options::ForceOptions::default())
                .unwrap();
        }
    }
    println!("{kills} kills, {swept} sweeps in {:.1} s: {seen:?}", start.elapsed().as_secs_f64());
    assert_eq!(seen.len(), LEFTOVERS.len(), "never seen after {kills} kills: {seen:?}");
}

fn run(store: &Store, repo: &str, fix: &Fix, bandwidth: Option<u64>) {
    let options = FixOptions { bandwidth: bandwidth.map(Bandwidth), ..FixOptions::default() };
    let task = store.fix_storage_repository(repo, fix, &options).unwrap();
    store.wait_task(&task, Some(PATIENCE)).unwrap();
}

/// All fixes, until none is listed.
fn finish(store: &Store, repo: &str) {
    for round in 0.. {
        let fixes = store.check_storage_repository(repo, &CheckOptions::default()).unwrap();
        if fixes.is_empty() {
            return;
        }
        assert!(round < 5, "still listed: {fixes:#?}");
        for fix in fixes {
            if let Ok(task) = store.fix_storage_repository(repo, &fix, &FixOptions::default()) {
                let _ = store.wait_task(&task, Some(PATIENCE));
            }
        }
    }
}

/// A piece of a stopped work takes about a quarter of a second at this limit.
const SLOW: u64 = 2 << 20;

/// Work that is stopped in the middle.
struct Stopped {
    name: &'static str,
    kind: FixType,
    /// Starts slow work on an image, by the first store; its repository and id, and what the image must contain.
    start: fn(&Scene) -> (&'static str, String, Vec<u8>),
}

fn slow_copy() -> CopyOptions {
    CopyOptions { bandwidth: Some(Bandwidth(SLOW)), ..CopyOptions::default() }
}

/// Starts the fix of a type slowly; its image.
fn slow_fix(scene: &Scene, kind: FixType) {
    let fixes = scene.store.check_storage_repository("A", &CheckOptions::default()).unwrap();
    let fix = fixes.iter().find(|fix| fix.fix_type == kind).unwrap();
    let options = FixOptions { bandwidth: Some(Bandwidth(SLOW)), ..FixOptions::default() };
    scene.store.fix_storage_repository("A", fix, &options).unwrap();
}

/// A disk on a removed snapshot: so many blocks of the one, these of the other.
fn merging(scene: &Scene, below: usize, above: Range<usize>) -> (&'static str, String, Vec<u8>) {
    let disk = scene.disk("A", 1, below);
    let snapshot = scene.snapshot("A", &disk);
    let mut data = bytes(1, below);
    let above = above.start * 65536..above.end * 65536;
    data[above.clone()].fill(2);
    write(&scene.store, "A", &disk, |image| image.write(above.start as i64, &data[above.clone()]));
    scene.remove("A", &snapshot);
    scene.quiet();
    slow_fix(scene, FixType::Merge);
    ("A", disk, data)
}

const STOPPED: &[Stopped] = &[
    Stopped {
        name: "copy",
        kind: FixType::Mend,
        start: |scene| {
            let disk = scene.disk("A", 3, 60);
            let id = scene.store.copy_image("B", &disk, None, "{}", &slow_copy()).unwrap();
            ("B", id.to_string(), bytes(3, 60))
        },
    },
    Stopped {
        name: "copy onto a base",
        kind: FixType::Mend,
        start: |scene| {
            let disk = scene.disk("A", 3, 60);
            let base = scene.copy("B", &disk, None, &CopyOptions::default());
            write(&scene.store, "A", &disk, |image| image.write(0, &vec![4; 50 * 65536]));
            let id = scene.store.copy_image("B", &disk, Some(&base), "{}", &slow_copy()).unwrap();
            let mut data = bytes(3, 60);
            data[..50 * 65536].fill(4);
            ("B", id.to_string(), data)
        },
    },
    Stopped {
        name: "import",
        kind: FixType::Mend,
        start: |scene| {
            let file = scene.root.path().join("file");
            std::fs::write(&file, bytes(5, 64)).unwrap();
            let options = CreateOptions { bandwidth: Some(Bandwidth(SLOW)), ..CreateOptions::default() };
            let path = file.to_str().unwrap();
            let id = scene.store.import_image("A", path, "raw", "{}", &options).unwrap();
            ("A", id.to_string(), bytes(5, 64))
        },
    },
    Stopped {
        name: "replace",
        kind: FixType::Mend,
        start: |scene| {
            let disk = scene.disk("A", 6, 60);
            scene.snapshot("A", &disk);
            scene.store.set_image_strategy("A", &disk, Strategy::Performance).unwrap();
            slow_fix(scene, FixType::Optimize);
            ("A", disk, bytes(6, 60))
        },
    },
    Stopped { name: "merge down", kind: FixType::Merge, start: |scene| merging(scene, 60, 0..40) },
    Stopped { name: "merge up", kind: FixType::Merge, start: |scene| merging(scene, 40, 20..64) },
];

#[test]
fn what_a_stop_leaves_is_gone_on_with() {
    for Stopped { name, kind, start } in STOPPED {
        let began = Instant::now();
        let scene = Scene::new();
        let clones = scene.store.get_storage_repository_info("A").unwrap().capabilities.reflink;
        assert!(!clones, "{name}: nothing is merged where the storage clones");
        let (repo, id, data) = start(&scene);
        let some =
            || scene.store.list_tasks().unwrap().first().map(|task| (task.bytes_done, task.bytes_total));
        let mut done = (0, 0);
        let deadline = Instant::now() + PATIENCE;
        // More than the first piece, not all.
        while done.0 <= 1 << 19 {
            done = some().unwrap_or_else(|| panic!("{name}: it ended too soon"));
            assert!(Instant::now() < deadline, "{name}: {done:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
        for task in scene.store.list_tasks().unwrap() {
            scene.store.stop_task(&task.task_id).unwrap();
        }
        assert!(done.0 < done.1, "{name}: it was not stopped in the middle: {done:?}");
        let status = scene.store.get_image_status(repo, &id).unwrap();
        assert!(status.last_error.is_some(), "{name}: {status:?}");
        assert!((1..100).contains(&status.percent_complete), "{name}: {status:?}");
        let other = scene.another();
        let fixes = other.check_storage_repository(repo, &CheckOptions::default()).unwrap();
        let fix = match &fixes[..] {
            [fix] if fix.fix_type == *kind => fix,
            other => panic!("{name}: listed: {other:#?}"),
        };
        if *kind == FixType::Mend {
            // What was not flushed yet when it stopped counts as not done.
            assert!(fix.cost.write <= data.len() as u64 + MIB as u64, "{name}: {:?}", fix.cost);
        }
        run(&other, repo, fix, Some(1 << 40));
        let status = other.get_image_status(repo, &id).unwrap();
        assert_ne!(status.status, Status::Broken, "{name}");
        assert_eq!(status.last_error, None, "{name}");
        assert!(scene::read(&other, repo, &id) == data, "{name}: the data");
        assert_eq!(other.check_storage_repository(repo, &CheckOptions::default()).unwrap(), []);
        let before = tree(&scene.repo(repo));
        run(&other, repo, fix, None);
        assert_eq!(tree(&scene.repo(repo)), before, "{name}: the second time changed something");
        println!("{name}: stopped at {} of {} bytes, {:.1} s", done.0, done.1, began.elapsed().as_secs_f64());
    }
}
