//! Watermarks: work that is stopped, or whose host loses power, in the middle of its data, on simulated storage that keeps
//! nothing that was not flushed. Whoever goes on believes the watermark, and it is right. What was flushed or closed is
//! there.

#![allow(
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::field_reassign_with_default,
    clippy::unwrap_used,
    reason = "the numbers of tests are small, and tests fail by panicking"
)]

#[path = "hosts/beside.rs"]
mod beside;
#[allow(dead_code, reason = "other tests use the rest")]
#[path = "crash/scene.rs"]
mod scene;

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use vdsmstore_core::id::ImageId;
use vdsmstore_core::options::{
    AutoFix, Bandwidth, CheckOptions, CopyOptions, CreateOptions, FixOptions, RemoveOptions, Strategy,
};
use vdsmstore_core::repository::{Access, HostIdentity, Read as ReadMode, RecordKey};
use vdsmstore_core::sim::{SimOptions, SimWorld};
use vdsmstore_core::{ErrorKind, FixType, Store, StoreOptions};
use vdsmstore_io::device::sim::hosts;

use beside::beside;
use scene::{CLUSTER, NAMES, SIZE, Scene, fill, host, join, pattern, read, recover};

const TASK: &str = "interrupted";
const PATIENCE: Duration = Duration::from_secs(30);

/// How the work ends before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// It is stopped, and says how far it came.
    Stopped,
    /// The power goes once it has said by itself how far it is.
    Power,
}

/// A store that works while this thread looks.
fn worker(scene: &Scene) -> (Store, HostIdentity) {
    let mut options = StoreOptions::default();
    options.host_id = Some("worker".into());
    let store = Store::new(options).unwrap();
    let identity = host("worker");
    for (world, repo) in scene.worlds.iter().zip(NAMES) {
        store.connect_driver(repo, world.connect(identity.clone())).unwrap();
    }
    (store, identity)
}

/// The watermark that is stored for the image.
fn watermark(world: &SimWorld, image: &str) -> u64 {
    let driver = world.connect(host("looker"));
    let progress = driver.get_progress(ImageId::parse(image).unwrap()).unwrap();
    driver.close().unwrap();
    progress.map_or(0, |bytes| {
        let progress: Value = serde_json::from_slice(&bytes).unwrap();
        progress["watermark"].as_u64().unwrap()
    })
}

fn until(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what}: never");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Ends the task that works on that image of the repository, and its host.
fn interrupt(scene: &Scene, store: Store, me: &HostIdentity, repo: usize, image: &str, end: End) {
    let world = &scene.worlds[repo];
    match end {
        End::Stopped => {
            let moved = || {
                let tasks = store.list_tasks().unwrap();
                let task = tasks.iter().find(|task| task.task_id == TASK);
                task.unwrap().bytes_done >= 2 * CLUSTER as u64
            };
            until("two clusters", moved);
            store.stop_task(TASK).unwrap();
        }
        End::Power => until("a watermark", || watermark(world, image) > 0),
    }
    for world in &scene.worlds {
        world.crash(me.incarnation, &mut || false);
    }
    let reached = watermark(world, image);
    assert!(reached > 0 && reached < SIZE, "{end:?}: the watermark is {reached}");
    drop(store);
}

/// Another host repairs everything, and each image holds what it must.
fn judge(scene: &Scene, what: &str) {
    let (store, _) = join(scene, "next");
    recover(scene, &store, what);
    for ((repo, id), data) in &scene.model {
        assert!(read(&store, NAMES[*repo], id).unwrap() == *data, "{what}: {id} in {repo} is wrong");
    }
    store.close().unwrap();
}

fn empty() -> Scene {
    let worlds = [(); 2].map(|()| SimWorld::new(SimOptions::default()));
    Scene { worlds, model: BTreeMap::new() }
}

fn disk(store: &Store, data: &[u8]) -> String {
    let plain = CreateOptions::default();
    let id = store.create_virtual_disk("A", Some(SIZE as i64), None, "{}", &plain).unwrap().to_string();
    fill(store, "A", &id, data);
    id
}

/// Into the other repository, so slowly that it can be interrupted.
fn copy_slowly(store: &Store, source: &str) -> String {
    let options = CopyOptions {
        bandwidth: Some(Bandwidth(2 * CLUSTER as u64)),
        task_id: Some(TASK.into()),
        ..CopyOptions::default()
    };
    store.copy_image("B", source, None, "{}", &options).unwrap().to_string()
}

/// A copy of a disk. `rewritten`: the disk is written before the copy is gone on with.
fn copy(end: End, rewritten: bool) {
    let mut scene = empty();
    let (store, _) = join(&scene, "setup");
    let source = disk(&store, &pattern(1));
    scene.model.insert((0, source.clone()), pattern(1));
    store.close().unwrap();
    let (store, me) = worker(&scene);
    let copy = copy_slowly(&store, &source);
    interrupt(&scene, store, &me, 1, &copy, end);
    scene.model.insert((1, copy), pattern(1));
    if rewritten {
        let (store, _) = join(&scene, "writer");
        fill(&store, "A", &source, &pattern(2));
        store.close().unwrap();
        scene.model.values_mut().for_each(|data| *data = pattern(2));
    }
    judge(&scene, &format!("copy, {end:?}, rewritten {rewritten}"));
}

/// A merge of a removed snapshot with the disk on it. `rewritten`: the disk is written before the merge is gone on with.
fn merge(end: End, down: bool, rewritten: bool) {
    let mut scene = empty();
    let (store, _) = join(&scene, "setup");
    // What is moved is the smaller part.
    let base = if down { 10 } else { 5 };
    let id = disk(&store, &[vec![1; base * CLUSTER], vec![0; (10 - base) * CLUSTER]].concat());
    let snapshot = store.create_snapshot("A", &id, "{}", &CreateOptions::default()).unwrap().to_string();
    let mut data = read(&store, "A", &id).unwrap();
    let image = store.open_image("A", &id, true).unwrap();
    let written = if down { 0..4 * CLUSTER } else { 4 * CLUSTER..10 * CLUSTER };
    data[written.clone()].fill(2);
    image.write(written.start as i64, &data[written]).unwrap();
    image.close().unwrap();
    scene.model.insert((0, id.clone()), data);
    let later = RemoveOptions { auto_fix: AutoFix::Off, ..RemoveOptions::default() };
    store.remove_image("A", &snapshot, &later).unwrap();
    store.close().unwrap();
    let (store, me) = worker(&scene);
    let fixes = store.check_storage_repository("A", &CheckOptions::default()).unwrap();
    let fix = fixes.iter().find(|fix| fix.fix_type == FixType::Merge).unwrap();
    let options = FixOptions { bandwidth: Some(Bandwidth(CLUSTER as u64)), task_id: Some(TASK.into()) };
    store.fix_storage_repository("A", fix, &options).unwrap();
    until("a task", || !store.list_tasks().unwrap().is_empty());
    interrupt(&scene, store, &me, 0, &id, end);
    if rewritten {
        let (store, _) = join(&scene, "writer");
        let image = store.open_image("A", &id, true).unwrap();
        image.write(0, &vec![3; CLUSTER]).unwrap();
        image.close().unwrap();
        store.close().unwrap();
        scene.model.get_mut(&(0, id)).unwrap()[..CLUSTER].fill(3);
    }
    judge(&scene, &format!("merge, down {down}, {end:?}, rewritten {rewritten}"));
    assert_eq!(
        formats(&scene.worlds[0]),
        [if down { "raw" } else { "qcow2" }],
        "merged in the other direction"
    );
}

/// Of all volumes.
fn formats(world: &SimWorld) -> Vec<String> {
    let driver = world.connect(host("looker"));
    let volumes = world.records().into_iter().filter(|key| matches!(key, RecordKey::Volume(_)));
    let format = |key| {
        let record = driver.get(key, ReadMode::Relaxed).unwrap().unwrap();
        let record: Value = serde_json::from_slice(&record.bytes).unwrap();
        record["format"].as_str().unwrap().to_owned()
    };
    let formats = volumes.map(format).collect();
    driver.close().unwrap();
    formats
}

#[test]
fn a_copy_that_was_stopped() {
    copy(End::Stopped, false);
}

#[test]
fn a_copy_without_power() {
    copy(End::Power, false);
}

#[test]
fn a_copy_of_what_is_another_by_now() {
    copy(End::Stopped, true);
}

/// Whoever writes the disk goes on meanwhile, in the same session: the copy is one moment of it all the same.
#[test]
fn a_copy_of_what_goes_on_being_written() {
    let clones = SimOptions { reflink: true, ..SimOptions::default() };
    let mut scene = Scene { worlds: [(); 2].map(|()| SimWorld::new(clones)), model: BTreeMap::new() };
    let (writer, _) = join(&scene, "writer");
    let source = disk(&writer, &pattern(1));
    let image = writer.open_image("A", &source, true).unwrap();
    let (store, me) = worker(&scene);
    let copy = copy_slowly(&store, &source);
    interrupt(&scene, store, &me, 1, &copy, End::Stopped);
    for (index, block) in pattern(2).chunks(CLUSTER).enumerate() {
        image.write((index * CLUSTER) as i64, block).unwrap();
    }
    image.close().unwrap();
    writer.close().unwrap();
    scene.model.extend([((0, source), pattern(2)), ((1, copy), pattern(2))]);
    judge(&scene, "a copy of a disk that goes on being written");
}

/// The same if the writer takes the disk between two steps of who goes on with the copy.
#[test]
fn a_copy_of_what_is_taken_for_writing_meanwhile() {
    let clones = SimOptions { reflink: true, ..SimOptions::default() };
    let mut scene = Scene { worlds: [(); 2].map(|()| SimWorld::new(clones)), model: BTreeMap::new() };
    let (store, _) = join(&scene, "setup");
    let source = disk(&store, &pattern(1));
    store.close().unwrap();
    let (store, me) = worker(&scene);
    let copy = copy_slowly(&store, &source);
    interrupt(&scene, store, &me, 1, &copy, End::Stopped);
    scene.model.insert((0, source.clone()), pattern(2));
    for step in 1.. {
        let scene = scene.copy();
        let ((one, _), (two, _)) = hosts::alone(1, || (join(&scene, "one"), join(&scene, "two")));
        let goes_on: hosts::Work<()> = Box::new(move || {
            let fixes = one.check_storage_repository("B", &CheckOptions::default()).unwrap();
            for fix in fixes.iter().filter(|fix| fix.fix_type == FixType::Mend) {
                if one.fix_storage_repository("B", fix, &FixOptions::default()).is_ok() {
                    one.run_tasks();
                }
            }
            one.close().unwrap();
        });
        let writes: hosts::Work<()> = {
            let source = source.clone();
            Box::new(move || {
                let image = loop {
                    match two.open_image("A", &source, true) {
                        Err(error) if error.kind() == ErrorKind::ImageInUse => {}
                        opened => break opened.unwrap(),
                    }
                };
                for (index, block) in pattern(2).chunks(CLUSTER).enumerate() {
                    image.write((index * CLUSTER) as i64, block).unwrap();
                }
                image.close().unwrap();
                two.close().unwrap();
            })
        };
        if beside(step, goes_on, writes).is_none() {
            println!("held at {} steps", step - 1);
            assert!(step > 20);
            return;
        }
        hosts::alone(2, || {
            judge(&scene, &format!("taken at step {step}"));
            let (store, _) = join(&scene, "reader");
            let data = read(&store, "B", &copy).unwrap();
            let which = [1, 2].into_iter().find(|seed| data == pattern(*seed));
            assert!(which.is_some(), "taken at step {step}: the copy is no moment of the disk");
            store.close().unwrap();
        });
    }
}

/// An image moves though what is being built on it was broken off before it had any bytes.
#[test]
fn an_image_moves_under_what_was_not_completed() {
    let (start, ids) = scene::scene(false);
    let mut pending = 0;
    for steps in 0.. {
        let scene = start.copy();
        let (store, me) = join(&scene, "victim");
        scene.worlds[0].power(me.incarnation).cut_after(Some(steps));
        let made = store.create_virtual_disk("A", None, Some(&ids.snapshot), "{}", &CreateOptions::default());
        for world in &scene.worlds {
            world.crash(me.incarnation, &mut || true);
        }
        if made.is_ok() {
            break;
        }
        let what = format!("broken off after {steps} steps");
        let objects = scene.worlds[0].objects().len();
        let records = scene.worlds[0].records();
        let volumes = records.iter().filter(|key| matches!(key, RecordKey::Volume(_)));
        pending += usize::from(volumes.count() > objects);
        let (store, _) = join(&scene, "next");
        store.set_image_strategy("A", &ids.snapshot, Strategy::Performance).unwrap();
        let fixes = store.check_storage_repository("A", &CheckOptions::default()).unwrap();
        let fix = fixes.iter().find(|fix| fix.fix_type == FixType::Optimize).unwrap();
        let task = store.fix_storage_repository("A", fix, &FixOptions::default()).unwrap();
        store.run_tasks();
        store.wait_task(&task, None).unwrap_or_else(|error| panic!("{what}: {error:?}"));
        recover(&scene, &store, &what);
        for ((repo, id), data) in &scene.model {
            assert!(read(&store, NAMES[*repo], id).unwrap() == *data, "{what}: {id} in {repo} is wrong");
        }
        store.close().unwrap();
    }
    assert!(pending > 0, "no volume was without its bytes");
}

/// What a program has written and not flushed is in a snapshot that is taken once it has gone; there it stays.
#[test]
fn a_snapshot_of_what_was_not_flushed() {
    let mut scene = empty();
    let (store, me) = join(&scene, "store");
    let id = disk(&store, &pattern(1));
    let program = scene.worlds[0].connect(host("program"));
    let [volume] = scene.worlds[0].objects()[..] else { panic!("more than the disk's volume") };
    let opened = program.open_volume(volume, Access::Lease).unwrap();
    opened.device.write_at(0, &pattern(2)).unwrap();
    drop(opened);
    program.close().unwrap();
    let snapshot = store.create_snapshot("A", &id, "{}", &CreateOptions::default()).unwrap().to_string();
    assert!(read(&store, "A", &snapshot).unwrap() == pattern(2));
    scene.worlds[0].crash(me.incarnation, &mut || false);
    scene.model.extend([((0, id), pattern(2)), ((0, snapshot), pattern(2))]);
    judge(&scene, "a snapshot of what was not flushed");
}

#[test]
fn a_merge_that_was_stopped() {
    merge(End::Stopped, true, false);
    merge(End::Stopped, false, false);
}

#[test]
fn a_merge_of_what_was_written_since() {
    merge(End::Stopped, true, true);
}

#[test]
fn a_merge_down_without_power() {
    merge(End::Power, true, false);
}

#[test]
fn a_merge_up_without_power() {
    merge(End::Power, false, false);
}

/// A closed disk is durable, and a flushed one.
#[test]
fn what_was_closed_or_flushed_is_durable() {
    for overlay in [false, true] {
        for close in [false, true] {
            let mut scene = empty();
            let (store, me) = join(&scene, "victim");
            let id = disk(&store, &pattern(1));
            if overlay {
                store.create_snapshot("A", &id, "{}", &CreateOptions::default()).unwrap();
            }
            let image = store.open_image("A", &id, true).unwrap();
            let data = vec![7; SIZE as usize];
            image.write(0, &data).unwrap();
            if close { image.close() } else { image.flush() }.unwrap();
            scene.worlds[0].crash(me.incarnation, &mut || false);
            scene.model.insert((0, id), data);
            judge(&scene, &format!("overlay {overlay}, close {close}"));
        }
    }
}
