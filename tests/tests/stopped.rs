//! A host stands still in the middle of its work, or dies of it, and another one comes along; and two hosts run the same
//! fix at once. The hosts are processes, the storage a local file system: locks are the kernel's.

#![allow(
    clippy::cast_possible_wrap,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    reason = "the numbers of tests are small, and tests fail by panicking"
)]

#[path = "kills/left.rs"]
mod left;

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use uuid::Uuid;
use vdsmstore_core::options::{AutoFix, CheckOptions, CopyOptions, FixOptions, RemoveOptions, Strategy};
use vdsmstore_core::{ErrorKind, Fix, FixType, Result, Status};
use vdsmstore_tests::dying::{Dying, Moment, Said};
use vdsmstore_tests::scene::{MIB, Scene, fails, off};
use vdsmstore_tests::write;

use left::nothing_left_over;

/// No answer takes as long, on a busy machine either.
const PATIENCE: Duration = Duration::from_secs(40);
const BLOCK: usize = 65536;
/// Rounds of a check and all its fixes that must suffice.
const ROUNDS: u32 = 10;

/// Work that is about to be started.
struct Case {
    job: Value,
    repo: &'static str,
    /// What it makes or changes, and what that must hold.
    image: String,
    data: Vec<u8>,
    /// By how much of the data, in thousandths, it is in the middle.
    middle: u64,
}

/// A scene on the file system of the temporary files.
fn scene() -> Scene {
    Scene::within(tempfile::tempdir().unwrap())
}

/// Bytes of blocks.
fn filled(byte: u8, blocks: usize) -> Vec<u8> {
    vec![byte; blocks * BLOCK]
}

/// What is put over the bytes at a block.
fn put(scene: &Scene, disk: &str, data: &mut [u8], block: usize, bytes: &[u8]) {
    let offset = block * BLOCK;
    write(&scene.store, "A", disk, |image| image.write(offset as i64, bytes));
    data[offset..offset + bytes.len()].copy_from_slice(bytes);
}

fn checked(scene: &Scene, repo: &str) -> Vec<Fix> {
    scene.store.check_storage_repository(repo, &CheckOptions::default()).unwrap()
}

/// The fix of that type about that image.
fn the_fix(scene: &Scene, repo: &str, fix_type: FixType, image: Option<&str>) -> Fix {
    let is_it =
        |fix: &Fix| fix.fix_type == fix_type && fix.image_id.map(|id| id.to_string()).as_deref() == image;
    let fixes = checked(scene, repo);
    fixes.iter().find(|fix| is_it(fix)).unwrap_or_else(|| panic!("no {fix_type:?} in {fixes:#?}")).clone()
}

fn run(scene: &Scene, repo: &str, fix: &Fix) -> Result<()> {
    let task = scene.store.fix_storage_repository(repo, fix, &FixOptions::default())?;
    scene.store.wait_task(&task, Some(PATIENCE))
}

/// All fixes until none is left.
fn recover(scene: &Scene) {
    for round in 0..=ROUNDS {
        let fixes: Vec<_> = ["A", "B"]
            .into_iter()
            .flat_map(|repo| checked(scene, repo).into_iter().map(move |fix| (repo, fix)))
            .collect();
        if fixes.is_empty() {
            break;
        }
        assert!(round < ROUNDS, "after {ROUNDS} rounds there is still {fixes:#?}");
        for (repo, fix) in fixes {
            match run(scene, repo, &fix) {
                // What was done before it changed what it is about.
                Err(error) if error.kind() == ErrorKind::FixRefused => {}
                outcome => outcome.unwrap_or_else(|error| panic!("{fix:?}: {error:?}")),
            }
        }
    }
    for repo in ["A", "B"] {
        nothing_left_over(&scene.repo(repo), 1, repo);
    }
}

fn fix_job(scene: &Scene, fix_type: FixType, image: &str, bandwidth: i64) -> Value {
    let fix = the_fix(scene, "A", fix_type, Some(image));
    json!({ "call": "fix", "repo": "A", "fix": fix, "connect": ["A"], "bandwidth": bandwidth })
}

fn copy(scene: &Scene) -> Case {
    let disk = scene.disk("A", 1, 64);
    let new = Uuid::new_v4().to_string();
    let job = json!({ "call": "copy", "repo": "B", "image": disk, "new": new, "connect": ["B", "A"], "bandwidth": 2 * MIB });
    Case { job, repo: "B", image: new, data: scene.read("A", &disk), middle: 300 }
}

/// On a removed snapshot with `lower` blocks, `upper` others were written.
fn merge(scene: &Scene, lower: usize, upper: usize, bandwidth: i64) -> Case {
    let disk = scene.disk("A", 1, lower);
    let mut data = scene.read("A", &disk);
    let snapshot = scene.snapshot("A", &disk);
    put(scene, &disk, &mut data, 64 - upper, &filled(2, upper));
    let options = RemoveOptions { auto_fix: AutoFix::Off, ..RemoveOptions::default() };
    scene.store.remove_image("A", &snapshot, &options).unwrap();
    let job = fix_job(scene, FixType::Merge, &snapshot, bandwidth);
    Case { job, repo: "A", image: disk, data, middle: 1 }
}

fn merge_down(scene: &Scene) -> Case {
    Case { middle: 850, ..merge(scene, 64, 16, MIB / 2) }
}

fn merge_up(scene: &Scene) -> Case {
    merge(scene, 16, 48, MIB / 2)
}

fn replace(scene: &Scene) -> Case {
    let disk = scene.disk("A", 1, 64);
    let mut data = scene.read("A", &disk);
    scene.snapshot("A", &disk);
    put(scene, &disk, &mut data, 0, &filled(2, 8));
    scene.store.set_image_strategy("A", &disk, Strategy::Performance).unwrap();
    let job = fix_job(scene, FixType::Optimize, &disk, 2 * MIB);
    Case { job, repo: "A", image: disk, data, middle: 300 }
}

type Prepare = fn(&Scene) -> Case;

const WORK: [(&str, Prepare); 4] =
    [("copy", copy), ("merge down", merge_down), ("merge up", merge_up), ("replace", replace)];

/// Starts the work and stops it in its middle.
fn stopped(scene: &Scene, case: &Case) -> Dying {
    let mut host = Dying::start(scene.root.path(), &case.job);
    host.run_until(Some(&Moment::Done(case.middle, Duration::ZERO)));
    host.stop();
    host
}

/// The fix of what was stopped.
fn its_fix(scene: &Scene, case: &Case) -> Fix {
    match serde_json::from_value(case.job["fix"].clone()) {
        Ok(fix) => fix,
        Err(_) => the_fix(scene, case.repo, FixType::Mend, Some(&case.image)),
    }
}

/// Each in a thread and a scene of its own: mostly they wait.
fn at_once<T: Sync>(cases: &[T], run: impl Fn(&T) + Sync) {
    thread::scope(|scope| {
        for case in cases {
            scope.spawn(|| run(case));
        }
    });
}

/// As a whole disk, by our reading and QEMU's, which can be written.
fn judge(scene: &Scene, case: &mut Case, what: &str) {
    assert_ne!(scene.status(case.repo, &case.image), Status::Broken, "{what}");
    scene.holds(case.repo, &case.image, &case.data);
    let bytes = filled(7, 3);
    write(&scene.store, case.repo, &case.image, |image| image.write(BLOCK as i64, &bytes));
    case.data[BLOCK..4 * BLOCK].copy_from_slice(&bytes);
    scene.holds(case.repo, &case.image, &case.data);
}

/// Its locks stay its own: others are told who is in the way, and soon. It goes on as if nothing had been.
#[test]
fn a_host_that_stands_still_keeps_its_work() {
    at_once(&WORK, |&(what, prepare)| {
        let scene = scene();
        let mut case = prepare(&scene);
        let host = stopped(&scene, &case);
        let fix = its_fix(&scene, &case);
        let start = Instant::now();
        let error = fails(ErrorKind::ImageInUse, run(&scene, case.repo, &fix));
        assert_eq!(error.details()["host"], "dying", "{what}: {error:?}");
        if what != "copy" {
            let error = fails(ErrorKind::ImageInUse, scene.store.open_image(case.repo, &case.image, true));
            assert_eq!(error.details()["host"], "dying", "{what}: {error:?}");
        }
        println!("{what}: refused after {:.1} s", start.elapsed().as_secs_f64());
        assert!(start.elapsed() < PATIENCE, "{what}: refused after {:?}", start.elapsed());
        host.go_on();
        let said = host.finish();
        assert_eq!(said.failed, None, "{what}");
        judge(&scene, &mut case, what);
        recover(&scene);
        scene.holds(case.repo, &case.image, &case.data);
    });
}

/// A host that dies while it stands still leaves what any dead one leaves.
#[test]
fn what_a_stopped_host_leaves_is_finished_by_another() {
    at_once(&WORK, |&(what, prepare)| {
        let scene = scene();
        let mut case = prepare(&scene);
        let host = stopped(&scene, &case);
        let fix = its_fix(&scene, &case);
        fails(ErrorKind::ImageInUse, run(&scene, case.repo, &fix));
        let said = host.kill();
        assert!(!said.finished && said.failed.is_none(), "{what}: {said:?}");
        run(&scene, case.repo, &fix).unwrap_or_else(|error| panic!("{what}: {error:?}"));
        judge(&scene, &mut case, what);
        recover(&scene);
        scene.holds(case.repo, &case.image, &case.data);
    });
}

/// A pending copy that nobody works on.
fn mend(scene: &Scene) -> Case {
    let disk = scene.disk("A", 1, 64);
    let options = CopyOptions { auto_fix: AutoFix::Off, ..CopyOptions::default() };
    let copy = scene.store.copy_image("B", &disk, None, "{}", &options).unwrap().to_string();
    let fix = the_fix(scene, "B", FixType::Mend, Some(&copy));
    let job = json!({ "call": "fix", "repo": "B", "fix": fix, "connect": ["B", "A"] });
    Case { job, repo: "B", image: copy, data: scene.read("A", &disk), middle: 0 }
}

/// A disk that is to be frozen as a snapshot.
fn freeze(scene: &Scene) -> Case {
    let disk = scene.disk("A", 1, 64);
    let data = scene.read("A", &disk);
    scene.store.create_snapshot("A", &disk, "{}", &off()).unwrap();
    let fix = checked(scene, "A").into_iter().find(|fix| fix.fix_type == FixType::Mend).unwrap();
    let job = json!({ "call": "fix", "repo": "A", "fix": fix, "connect": ["A"] });
    Case { job, repo: "A", image: disk, data, middle: 0 }
}

/// A removed image.
fn clean_image(scene: &Scene) -> Case {
    let disk = scene.disk("A", 1, 64);
    let gone = scene.disk("A", 2, 64);
    let options = RemoveOptions { auto_fix: AutoFix::Off, ..RemoveOptions::default() };
    scene.store.remove_image("A", &gone, &options).unwrap();
    let fix = the_fix(scene, "A", FixType::Clean, Some(&gone));
    let job = json!({ "call": "fix", "repo": "A", "fix": fix, "connect": ["A"] });
    Case { job, repo: "A", data: scene.read("A", &disk), image: disk, middle: 0 }
}

/// What a dead store left over.
fn sweep(scene: &Scene) -> Case {
    let disk = scene.disk("A", 1, 64);
    let job = json!({ "call": "user data", "repo": "A", "image": disk, "connect": ["A"] });
    Dying::start(scene.root.path(), &job).finish();
    let fix = the_fix(scene, "A", FixType::Clean, None);
    let job = json!({ "call": "fix", "repo": "A", "fix": fix, "connect": ["A"] });
    Case { job, repo: "A", data: scene.read("A", &disk), image: disk, middle: 0 }
}

/// Two hosts run the same fix at once; what each of them said.
fn race(scene: &Scene, case: &Case, bandwidth: Option<i64>) -> [Said; 2] {
    let mut job = case.job.clone();
    job["bandwidth"] = bandwidth.into();
    job["go"] = "go".into();
    let hosts = ["one", "other"].map(|name| {
        job["host"] = name.into();
        Dying::start(scene.root.path(), &job)
    });
    fs::write(scene.root.path().join("go"), "").unwrap();
    hosts.map(Dying::finish)
}

/// One does it; the other one finds it done, or is told who does it. Nobody waits for ever.
#[test]
fn two_hosts_run_the_same_fix_at_once() {
    let cases: [(&str, Prepare, Option<i64>); 7] = [
        ("mend", mend, Some(MIB / 4)),
        ("freeze", freeze, None),
        ("merge down", merge_down, Some(MIB / 16)),
        ("merge up", merge_up, Some(MIB / 16)),
        ("replace", replace, Some(MIB / 4)),
        ("clean", clean_image, None),
        ("sweep", sweep, None),
    ];
    let rounds = std::env::var("VDSMSTORE_LONG").map_or(2, |text| 10 * text.parse::<u32>().unwrap_or(1));
    at_once(&cases, |&(what, prepare, slow)| {
        let mut told = 0;
        let paces = std::iter::repeat_n(None, rounds as usize).chain(slow.map(Some));
        for bandwidth in paces {
            let scene = scene();
            let mut case = prepare(&scene);
            let said = race(&scene, &case, bandwidth);
            let failed: Vec<_> = said.iter().filter_map(|said| said.failed.as_deref()).collect();
            assert!(failed.len() < 2, "{what}: nobody did it: {failed:?}");
            if let Some(failed) = failed.first() {
                // The one that did not fail is the one that is named.
                let winner = if said[0].failed.is_none() { "\"one\"" } else { "\"other\"" };
                assert!(failed.starts_with("ImageInUse") && failed.ends_with(winner), "{what}: {failed}");
                told += 1;
            }
            // A slow one is still at it when the patience of the other ends.
            assert!(
                bandwidth.is_none() || !failed.is_empty(),
                "{what}: the slow one was waited for: {said:?}"
            );
            judge(&scene, &mut case, what);
            recover(&scene);
            scene.holds(case.repo, &case.image, &case.data);
        }
        println!(
            "{what}: {} times at once, {told} times one of them was told of the other",
            rounds + u32::from(slow.is_some())
        );
    });
}

/// Not a test: the host that stands still or dies, which is this program once more.
#[test]
#[ignore = "it is what the others start"]
fn dying_host() {
    vdsmstore_tests::dying::live();
}
