//! A disk that somebody holds is left alone, on simulated storage: one that a store has open, and one that was prepared
//! for a program outside by a process that has gone. Whoever else wants it is told so, and nothing has changed.

#![allow(
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::field_reassign_with_default,
    clippy::unwrap_used,
    reason = "the numbers of tests are small, and tests fail by panicking"
)]

#[allow(dead_code, reason = "other tests use the rest")]
#[path = "crash/scene.rs"]
mod scene;

use std::collections::BTreeMap;

use vdsmstore_core::id::VolumeId;
use vdsmstore_core::options::{
    AutoFix, CheckOptions, CopyOptions, CreateOptions, FixOptions, ForceOptions, PrepareOptions,
    RemoveOptions, ResizeOptions, Strategy,
};
use vdsmstore_core::repository::{QemuUse, Read, RecordKey};
use vdsmstore_core::{Error, ErrorKind, Fix, FixType, Result, Store};

use scene::{Ids, SIZE, Scene, content, host, join, pattern, read};

/// All records, as they are stored.
fn records(scene: &Scene) -> BTreeMap<(usize, String), Vec<u8>> {
    let mut all = BTreeMap::new();
    for (repo, world) in scene.worlds.iter().enumerate() {
        let driver = world.connect(host("looker"));
        for key in world.records() {
            all.insert((repo, format!("{key:?}")), driver.get(key, Read::Relaxed).unwrap().unwrap().bytes);
        }
        driver.close().unwrap();
    }
    all
}

/// A call, and then its tasks: the first error.
fn done<T>(store: &Store, task: &str, call: Result<T>) -> Result<()> {
    call?;
    store.run_tasks();
    store.wait_task(task, None)
}

type Attempt = (&'static str, fn(&Store, &Ids) -> Result<()>);

/// What needs the disk `child` for itself, or still.
const ATTEMPTS: &[Attempt] = &[
    ("open for writing", |store, ids| store.open_image("A", &ids.child, true).map(drop)),
    ("open for reading", |store, ids| store.open_image("A", &ids.child, false).map(drop)),
    ("snapshot", |store, ids| {
        store.create_snapshot("A", &ids.child, "{}", &CreateOptions::default()).map(drop)
    }),
    ("resize", |store, ids| {
        store.resize_virtual_disk("A", &ids.child, 2 * SIZE as i64, &ResizeOptions::default())
    }),
    ("remove", |store, ids| store.remove_image("A", &ids.child, &RemoveOptions::default())),
    ("copy", |store, ids| {
        let options = CopyOptions { task_id: Some("copy".into()), ..CopyOptions::default() };
        done(store, "copy", store.copy_image("B", &ids.child, None, "{}", &options))
    }),
];

/// A fix of that type that is listed now; it is run later.
fn listed(store: &Store, fix_type: FixType) -> Fix {
    listed_in(store, "A", fix_type)
}

fn listed_in(store: &Store, repo: &str, fix_type: FixType) -> Fix {
    let fixes = store.check_storage_repository(repo, &CheckOptions::default()).unwrap();
    fixes.into_iter().find(|fix| fix.fix_type == fix_type).unwrap()
}

fn run(store: &Store, fix: &Fix) -> Result<()> {
    run_in(store, "A", fix)
}

fn run_in(store: &Store, repo: &str, fix: &Fix) -> Result<()> {
    let options = FixOptions { task_id: Some("fix".into()), ..FixOptions::default() };
    done(store, "fix", store.fix_storage_repository(repo, fix, &options))
}

/// The volume that an image is on.
fn volume_of(scene: &Scene, id: &str) -> VolumeId {
    let is_it = |key: &RecordKey| matches!(key, RecordKey::Image(image) if image.to_string() == id);
    let key = scene.worlds[0].records().into_iter().find(is_it).unwrap();
    let record: serde_json::Value =
        serde_json::from_slice(&records(scene)[&(0, format!("{key:?}"))]).unwrap();
    VolumeId(record["volume"].as_str().unwrap().parse().unwrap())
}

const IN_QEMU: QemuUse = QemuUse { writing: true, open: true };

fn in_use(what: &str, result: Result<()>) -> Error {
    let error = result.err().unwrap_or_else(|| panic!("{what}: done, though somebody holds it"));
    assert_eq!(error.kind(), ErrorKind::ImageInUse, "{what}: {error:?}");
    error
}

/// Tries everything from another store, and looks whether anything changed.
fn nobody_gets_it(
    scene: &Scene,
    ids: &Ids,
    other: &Store,
    (attempts, fixes): (&[Attempt], &[Fix]),
    how: &str,
) {
    let before = records(scene);
    for (name, attempt) in attempts {
        let what = format!("{how}: {name}");
        in_use(&what, attempt(other, ids));
        assert!(records(scene) == before, "{what}: something has changed");
    }
    for fix in fixes {
        let what = format!("{how}: {:?}", fix.fix_type);
        in_use(&what, run(other, fix));
        assert!(records(scene) == before, "{what}: something has changed");
    }
}

/// The scene with only `child` on its snapshot, which is removed; and the fixes that this leaves to do.
fn to_be_merged() -> (Scene, Ids, Vec<Fix>) {
    let (scene, ids) = scene::scene(false);
    let (store, _) = join(&scene, "setup");
    store.remove_image("A", &ids.disk, &RemoveOptions::default()).unwrap();
    store.run_tasks();
    store.set_image_strategy("A", &ids.child, Strategy::Performance).unwrap();
    let optimize = listed(&store, FixType::Optimize);
    store.set_image_strategy("A", &ids.child, Strategy::Space).unwrap();
    let later = RemoveOptions { auto_fix: AutoFix::Off, ..RemoveOptions::default() };
    store.remove_image("A", &ids.snapshot, &later).unwrap();
    let merge = listed(&store, FixType::Merge);
    store.set_image_strategy("A", &ids.child, Strategy::Performance).unwrap();
    store.close().unwrap();
    (scene, ids, vec![merge, optimize])
}

#[test]
fn one_that_is_open() {
    let (scene, ids, fixes) = to_be_merged();
    let (holder, _) = join(&scene, "one");
    let (other, _) = join(&scene, "another");
    let image = holder.open_image("A", &ids.child, true).unwrap();
    nobody_gets_it(&scene, &ids, &other, (ATTEMPTS, &fixes), "open");
    image.write(0, &[9; 512]).unwrap();
    image.close().unwrap();
    for fix in &fixes {
        run(&other, fix).unwrap();
    }
    let mut data = content(&scene, 0, &ids.child);
    data[..512].fill(9);
    assert!(read(&other, "A", &ids.child).unwrap() == data);
}

/// The process that prepared it has gone, and no program has opened it yet.
#[test]
fn one_that_was_prepared() {
    let (scene, ids, fixes) = to_be_merged();
    let (gone, me) = join(&scene, "machine");
    gone.prepare_image("A", &ids.child, &PrepareOptions::default()).unwrap();
    for world in &scene.worlds {
        world.crash(me.incarnation, &mut || true);
    }
    let (other, _) = join(&scene, "machine");
    nobody_gets_it(&scene, &ids, &other, (ATTEMPTS, &fixes), "prepared");
    // Its own machine gives it back, no other one.
    let (elsewhere, _) = join(&scene, "elsewhere");
    let give_back = |store: &Store| store.teardown_image("A", &ids.child, &ForceOptions::default());
    in_use("teardown elsewhere", give_back(&elsewhere));
    let volume = volume_of(&scene, &ids.child);
    scene.worlds[0].set_qemu(volume, IN_QEMU);
    in_use("teardown under QEMU", give_back(&other));
    scene.worlds[0].set_qemu(volume, QemuUse::default());
    give_back(&other).unwrap();
    for fix in &fixes {
        run(&other, fix).unwrap();
    }
    assert!(read(&other, "A", &ids.child).unwrap() == content(&scene, 0, &ids.child));
}

/// A QEMU process has it open, and nobody has prepared it.
#[test]
fn one_that_a_program_writes() {
    let (scene, ids, fixes) = to_be_merged();
    let (other, _) = join(&scene, "machine");
    let volumes = scene.worlds[0].objects();
    for volume in volumes {
        scene.worlds[0].set_qemu(volume, IN_QEMU);
    }
    // A copy is announced, and waits for it to be let go.
    nobody_gets_it(&scene, &ids, &other, (&ATTEMPTS[..5], &fixes), "in QEMU");
}

/// An image that is read is not removed, and one that is being removed is not opened.
#[test]
fn one_that_is_read() {
    let (scene, ids) = scene::scene(false);
    let (reader, _) = join(&scene, "one");
    let (other, _) = join(&scene, "another");
    for id in [&ids.child, &ids.snapshot] {
        let image = reader.open_image("A", id, false).unwrap();
        in_use("remove", other.remove_image("A", id, &RemoveOptions::default()));
        let mut start = vec![0; 512];
        image.read(0, &mut start).unwrap();
        image.close().unwrap();
        other.remove_image("A", id, &RemoveOptions::default()).unwrap();
        other.run_tasks();
    }
    assert_eq!(pattern(3), read(&other, "A", &ids.disk).unwrap());
}

/// What was announced before does not begin while somebody holds the disk, though his program is yet to come.
#[test]
fn one_whose_copy_was_announced() {
    let (scene, ids) = scene::scene(false);
    let (other, _) = join(&scene, "machine");
    let options =
        CopyOptions { auto_fix: AutoFix::Off, image_id: Some(ids.new.clone()), ..CopyOptions::default() };
    other.copy_image("B", &ids.child, None, "{}", &options).unwrap();
    let mend = listed_in(&other, "B", FixType::Mend);
    let (gone, me) = join(&scene, "machine");
    gone.prepare_image("A", &ids.child, &PrepareOptions::default()).unwrap();
    for world in &scene.worlds {
        world.crash(me.incarnation, &mut || true);
    }
    in_use("mend", run_in(&other, "B", &mend));
    let (again, _) = join(&scene, "machine");
    again.teardown_image("A", &ids.child, &ForceOptions::default()).unwrap();
    run_in(&other, "B", &mend).unwrap();
    assert!(read(&other, "B", &ids.new).unwrap() == content(&scene, 0, &ids.child));
}

/// A program that began to write after a snapshot was announced keeps the disk from being frozen.
#[test]
fn one_whose_snapshot_was_announced() {
    for reflink in [false, true] {
        let (scene, ids) = scene::scene(reflink);
        let (other, _) = join(&scene, "another");
        let options = CreateOptions {
            auto_fix: AutoFix::Off,
            image_id: Some(ids.new.clone()),
            ..CreateOptions::default()
        };
        other.create_snapshot("A", &ids.child, "{}", &options).unwrap();
        let mend = listed(&other, FixType::Mend);
        let volume = volume_of(&scene, &ids.child);
        scene.worlds[0].set_qemu(volume, IN_QEMU);
        in_use("mend", run(&other, &mend));
        for (name, attempt) in &ATTEMPTS[..1] {
            in_use(name, attempt(&other, &ids));
        }
        assert_eq!(volume_of(&scene, &ids.child), volume, "it was frozen under a program");
        scene.worlds[0].set_qemu(volume, QemuUse::default());
        run(&other, &mend).unwrap();
        for id in [&ids.new, &ids.child] {
            assert!(read(&other, "A", id).unwrap() == content(&scene, 0, &ids.child));
        }
    }
}

/// Where storage clones, a program that nobody prepared the disk for goes on while a snapshot is taken.
#[test]
fn one_that_a_program_writes_is_cloned() {
    let (scene, ids) = scene::scene(true);
    let (other, _) = join(&scene, "another");
    let volume = volume_of(&scene, &ids.child);
    scene.worlds[0].set_qemu(volume, IN_QEMU);
    let snapshot = other.create_snapshot("A", &ids.child, "{}", &CreateOptions::default()).unwrap();
    assert_eq!(volume_of(&scene, &ids.child), volume, "the disk moved under a program");
    assert!(read(&other, "A", &snapshot.to_string()).unwrap() == content(&scene, 0, &ids.child));
}

/// What is below an image that is read is not merged.
#[test]
fn one_that_is_built_on_what_could_be_merged() {
    let (scene, ids) = scene::scene(false);
    let (reader, _) = join(&scene, "one");
    let (other, _) = join(&scene, "another");
    other.remove_image("A", &ids.disk, &RemoveOptions::default()).unwrap();
    other.run_tasks();
    other.create_snapshot("A", &ids.child, "{}", &CreateOptions::default()).unwrap();
    let later = RemoveOptions { auto_fix: AutoFix::Off, ..RemoveOptions::default() };
    other.remove_image("A", &ids.snapshot, &later).unwrap();
    let merge = listed(&other, FixType::Merge);
    let image = reader.open_image("A", &ids.child, false).unwrap();
    in_use("merge", run(&other, &merge));
    image.close().unwrap();
    run(&other, &merge).unwrap();
    assert!(read(&reader, "A", &ids.child).unwrap() == content(&scene, 0, &ids.child));
}

/// The volume that an image has left stays for as long as it is read.
#[test]
fn one_that_was_replaced() {
    let (scene, ids) = scene::scene(false);
    let (reader, _) = join(&scene, "one");
    let (other, _) = join(&scene, "another");
    let image = reader.open_image("A", &ids.child, false).unwrap();
    let volume = volume_of(&scene, &ids.child);
    other.set_image_strategy("A", &ids.child, Strategy::Performance).unwrap();
    run(&other, &listed(&other, FixType::Optimize)).unwrap();
    assert_ne!(volume_of(&scene, &ids.child), volume, "it was not replaced");
    let there = scene.worlds[0].records().contains(&RecordKey::Volume(volume));
    assert!(there, "the record of a volume went under who reads it");
    let clean = listed(&other, FixType::Clean);
    let before = records(&scene);
    in_use("clean", run(&other, &clean));
    assert!(records(&scene) == before, "clean: something has changed");
    let mut data = vec![0; SIZE as usize];
    image.read(0, &mut data).unwrap();
    assert!(data == content(&scene, 0, &ids.child));
    image.close().unwrap();
    run(&other, &clean).unwrap();
    assert!(!scene.worlds[0].objects().contains(&volume));
}
