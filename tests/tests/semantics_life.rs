//! What API.md promises of the life of images, tasks and stores, one test for each promise.

#![allow(
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::large_stack_arrays,
    clippy::unwrap_used,
    reason = "the numbers of tests are small, and tests fail by panicking"
)]

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use vdsmstore_core::id::Incarnation;
use vdsmstore_core::options::{
    CopyOptions, CreateOptions, ForceOptions, ImageKind, ListOptions, RemoveOptions, WaitOptions,
};
use vdsmstore_core::repository::HostIdentity;
use vdsmstore_core::sim::{SimOptions, SimWorld};
use vdsmstore_core::{ErrorKind, ExtentKind, Image, Status, Store, StoreOptions};
use vdsmstore_tests::scene::{MIB, SIZE, Scene, bytes, fails, ids, off, read};
use vdsmstore_tests::tree::disk_usage;
use vdsmstore_tests::{PATIENCE, at, new_repo, run, settle, store, write};

fn plain() -> CreateOptions {
    CreateOptions::default()
}

fn task(id: &str) -> CopyOptions {
    CopyOptions { task_id: Some(id.into()), ..CopyOptions::default() }
}

/// A disk whose copy takes a while.
fn large(scene: &Scene, mebibytes: i64) -> String {
    let id = scene.create("A", Some(mebibytes * MIB), None, &plain());
    let data = vec![3; MIB as usize];
    write(&scene.store, "A", &id, |image| (0..mebibytes).try_for_each(|i| image.write(i * MIB, &data)));
    id
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: never");
        thread::sleep(Duration::from_millis(1));
    }
}

// Removal.

#[test]
fn removing_a_base_leaves_what_is_built_on_it() {
    let scene = Scene::new();
    let data = scene.repo("A").join("data");
    let empty = disk_usage(&data);
    let disk = scene.disk("A", 1, 32);
    let first = scene.snapshot("A", &disk);
    write(&scene.store, "A", &disk, |image| image.write(0, &[2; 65536]));
    let second = scene.snapshot("A", &disk);
    let child = scene.create("A", None, Some(&first), &plain());
    let mut now = bytes(1, 32);
    now[..65536].fill(2);
    for id in [&first, &second] {
        scene.remove("A", id);
        fails(ErrorKind::ImageNotFound, scene.store.get_image_status("A", id));
        fails(ErrorKind::ImageNotFound, scene.store.open_image("A", id, false));
        let again = scene.store.remove_image("A", id, &RemoveOptions::default());
        fails(ErrorKind::ImageNotFound, again);
        scene.quiet();
        scene.holds("A", &disk, &now);
        scene.holds("A", &child, &bytes(1, 32));
    }
    assert_eq!(scene.store.get_storage_repository_info("A").unwrap().snapshots, 0);
    for id in [&disk, &child] {
        scene.remove("A", id);
    }
    scene.quiet();
    assert_eq!(ids(&scene.store, "A"), [""; 0]);
    assert_eq!(disk_usage(&data), empty, "the space has not come back");
    assert_eq!(std::fs::read_dir(&data).unwrap().count(), 0);
    assert!(scene.store.graph("A").unwrap().is_empty(), "inner images are left");
}

#[test]
fn a_removed_snapshot_that_others_need_can_be_copied_back() {
    let scene = Scene::new();
    let disk = scene.disk("A", 1, 4);
    let snapshot = scene.store.create_snapshot("A", &disk, "1", &plain()).unwrap().to_string();
    scene.store.copy_image("B", &snapshot, None, "2", &CopyOptions::default()).unwrap();
    settle(&scene.store, "B", &snapshot);
    // One that is there already stays as it is.
    scene.store.copy_image("B", &snapshot, None, "3", &CopyOptions::default()).unwrap();
    let user = |repo| scene.store.get_image_info(repo, &snapshot).unwrap().user_data.get().to_owned();
    assert_eq!((user("A"), user("B")), ("1".into(), "2".into()));
    scene.remove("A", &snapshot);
    scene.quiet();
    let before = disk_usage(&scene.repo("A").join("data"));
    scene.store.copy_image("A", &snapshot, None, "4", &CopyOptions::default()).unwrap();
    settle(&scene.store, "A", &snapshot);
    assert_eq!(disk_usage(&scene.repo("A").join("data")), before, "its data was there");
    assert_eq!(user("A"), "4");
    scene.holds("A", &snapshot, &bytes(1, 4));
}

#[test]
fn removal_cancels_a_copy_under_way() {
    let scene = Scene::new();
    let source = large(&scene, 512);
    let data = scene.repo("B").join("data");
    let empty = disk_usage(&data);
    for other in [false, true] {
        let copy = scene.store.copy_image("B", &source, None, "{}", &task("copy")).unwrap().to_string();
        wait_until("the copy runs", || {
            scene.store.list_tasks().unwrap().iter().any(|task| task.bytes_done > 0 || task.bytes_total > 0)
                || scene.store.list_tasks().unwrap().is_empty()
        });
        let from = if other { scene.another() } else { scene.store.clone() };
        let removed = Instant::now();
        from.remove_image("B", &copy, &RemoveOptions::default()).unwrap();
        fails(ErrorKind::ImageNotFound, scene.store.get_image_status("B", &copy));
        let outcome = scene.store.wait_task("copy", Some(PATIENCE));
        assert!(removed.elapsed() < Duration::from_secs(4), "it went on for {:?}", removed.elapsed());
        if let Err(error) = outcome {
            assert_eq!(error.kind(), ErrorKind::Stopped, "{error:?}");
        }
        scene.quiet();
        wait_until("the space comes back", || disk_usage(&data) == empty);
    }
    scene.store.open_image("A", &source, true).unwrap().close().unwrap();
}

#[test]
fn an_open_image_is_not_removed() {
    let scene = Scene::new();
    let other = scene.another();
    let disk = scene.disk("A", 1, 4);
    let snapshot = scene.snapshot("A", &scene.disk("A", 1, 4));
    for (id, writable) in [(&disk, true), (&disk, false), (&snapshot, false)] {
        let open = scene.store.open_image("A", id, writable).unwrap();
        for store in [&scene.store, &other] {
            let error = fails(ErrorKind::ImageInUse, store.remove_image("A", id, &RemoveOptions::default()));
            assert!(error.message().contains(id.as_str()), "{error:?}");
        }
        open.close().unwrap();
    }
    scene.remove("A", &disk);
    scene.remove("A", &snapshot);
}

/// Snapshots of one moment share a volume: who reads one of them, or what is built on it, has no other one open.
#[test]
fn a_snapshot_is_removed_while_another_one_of_its_moment_is_read() {
    let scene = Scene::new();
    let other = scene.another();
    for through_the_disk in [true, false] {
        let disk = scene.disk("A", 1, 4);
        let announced = scene.store.create_snapshot("A", &disk, "{}", &off()).unwrap().to_string();
        let taken = scene.snapshot("A", &disk);
        // The disk is built on either of the two.
        let (opened, removed) =
            if through_the_disk { (&disk, vec![&announced, &taken]) } else { (&taken, vec![&announced]) };
        let open = scene.store.open_image("A", opened, false).unwrap();
        for id in removed {
            other.remove_image("A", id, &RemoveOptions::default()).unwrap();
        }
        let mut data = vec![0; SIZE as usize];
        open.read(0, &mut data).unwrap();
        assert!(data == bytes(1, 4));
        open.close().unwrap();
        scene.holds("A", &disk, &bytes(1, 4));
    }
}

// Tasks and stores.

#[test]
fn tasks_have_the_callers_names() {
    let scene = Scene::new();
    let idle = scene.idle();
    let source = scene.disk("A", 1, 4);
    let copy = idle.copy_image("B", &source, None, "{}", &task("my.task:1")).unwrap();
    let listed = idle.list_tasks().unwrap();
    assert_eq!(listed.len(), 1);
    let only = &listed[0];
    assert_eq!((only.task_id.as_str(), only.repo_id.as_str(), only.image_id), ("my.task:1", "B", Some(copy)));
    assert_eq!(idle.get_image_status("B", &copy.to_string()).unwrap().tasks, listed);
    assert!(scene.store.list_tasks().unwrap().is_empty(), "tasks belong to their store");
    let error = fails(ErrorKind::TaskIdInUse, idle.copy_image("B", &source, None, "{}", &task("my.task:1")));
    assert!(error.message().contains("my.task:1"), "{error:?}");
    assert_eq!(ids(&idle, "B").len(), 1);
    fails(ErrorKind::Timeout, idle.wait_task("my.task:1", Some(Duration::from_millis(20))));
    let wait =
        idle.wait_image("B", &copy.to_string(), Some(Duration::from_millis(20)), &WaitOptions::default());
    fails(ErrorKind::Timeout, wait);
    idle.run_tasks();
    idle.wait_task("my.task:1", None).unwrap();
    idle.wait_task("my.task:1", Some(Duration::ZERO)).unwrap();
    assert!(idle.list_tasks().unwrap().is_empty());
    let error = fails(ErrorKind::TaskNotFound, idle.wait_task("another", None));
    assert!(error.message().contains("another"), "{error:?}");
    settle(&idle, "B", &copy.to_string());
    // An ended task's name is free.
    idle.copy_image("B", &source, None, "{}", &task("my.task:1")).unwrap();
    idle.run_tasks();
}

#[test]
fn every_verb_that_starts_work_takes_a_task_name() {
    let scene = Scene::new();
    let file = scene.root.path().join("file");
    std::fs::write(&file, [1; 512]).unwrap();
    let named = |id: &str| CreateOptions { task_id: Some(id.into()), ..plain() };
    let disk =
        scene.store.create_virtual_disk("A", Some(SIZE), None, "{}", &named("create")).unwrap().to_string();
    scene.store.create_snapshot("A", &disk, "{}", &named("snapshot")).unwrap();
    scene.store.import_image("A", file.to_str().unwrap(), "raw", "{}", &named("import")).unwrap();
    let options = RemoveOptions { task_id: Some("remove".into()), ..RemoveOptions::default() };
    scene.store.remove_image("A", &disk, &options).unwrap();
    for id in ["create", "snapshot", "import", "remove"] {
        scene.store.wait_task(id, Some(PATIENCE)).unwrap();
    }
}

#[test]
fn a_failed_task_tells_why() {
    let scene = Scene::new();
    let idle = scene.idle();
    let source = scene.disk("A", 1, 4);
    let copy = idle.copy_image("B", &source, None, "{}", &task("t")).unwrap().to_string();
    scene.remove("A", &source);
    idle.run_tasks();
    let error = fails(ErrorKind::ImageNotFound, idle.wait_task("t", None));
    assert!(error.message().contains(&source), "{error:?}");
    let status = scene.store.get_image_status("B", &copy).unwrap();
    assert_eq!((status.status, status.host_id.is_empty()), (Status::Broken, false));
    assert!(status.last_error.as_ref().is_some_and(|text| text.contains(&source)), "{status:?}");
    // waitImage does not raise for it.
    assert_eq!(idle.wait_image("B", &copy, None, &WaitOptions::default()).unwrap().status, Status::Broken);
}

#[test]
fn close_stops_a_copy_within_two_seconds() {
    let scene = Scene::new();
    let source = large(&scene, 768);
    let mut interrupted = false;
    for _ in 0..5 {
        let other = scene.another();
        let copy = other.copy_image("B", &source, None, "{}", &task("copy")).unwrap().to_string();
        wait_until("the copy runs", || other.list_tasks().unwrap().iter().all(|task| task.bytes_done > 0));
        let started = Instant::now();
        other.close().unwrap();
        assert!(started.elapsed() < Duration::from_millis(2500), "{:?}", started.elapsed());
        fails(ErrorKind::Closed, other.list_tasks());
        // The leases are free, the image can be seen and removed by others.
        scene.store.open_image("A", &source, true).unwrap().close().unwrap();
        let status = scene.store.get_image_status("B", &copy).unwrap();
        if status.status == Status::Broken {
            interrupted = true;
            assert!(status.last_error.is_some(), "a stop is told: {status:?}");
            assert!((0..100).contains(&status.percent_complete), "{status:?}");
        }
        scene.remove("B", &copy);
        scene.quiet();
        if interrupted {
            return;
        }
    }
    panic!("no copy was slow enough to be stopped");
}

#[test]
fn a_stopped_copy_of_a_snapshot_is_completed_by_the_same_call() {
    let scene = Scene::new();
    let snapshot = scene.snapshot("A", &large(&scene, 256));
    let other = scene.another();
    other.copy_image("B", &snapshot, None, "\"first\"", &CopyOptions::default()).unwrap();
    other.close().unwrap();
    assert_eq!(ids(&scene.store, "B"), std::slice::from_ref(&snapshot));
    scene.store.copy_image("B", &snapshot, None, "\"second\"", &CopyOptions::default()).unwrap();
    settle(&scene.store, "B", &snapshot);
    assert_eq!(scene.store.get_image_info("B", &snapshot).unwrap().user_data.get(), "\"first\"");
    let data = read(&scene.store, "B", &snapshot);
    assert!(data.len() == 256 << 20 && data.iter().all(|byte| *byte == 3));
}

#[test]
fn a_closed_store_answers_closed() {
    let scene = Scene::new();
    let disk = scene.disk("A", 1, 4);
    let other = scene.another();
    let open = other.open_image("A", &disk, true).unwrap();
    open.write(0, &[9; 65536]).unwrap();
    other.close().unwrap();
    other.close().unwrap();
    fails(ErrorKind::Closed, open.read(0, &mut [0]));
    fails(ErrorKind::Closed, open.write(0, &[0]));
    fails(ErrorKind::Closed, open.flush());
    open.close().unwrap();
    fails(ErrorKind::Closed, other.list_storage_repositories());
    fails(ErrorKind::Closed, other.get_image_status("A", &disk));
    fails(ErrorKind::Closed, other.connect_storage_repository("C", "localfs-1.0", &at(&scene.repo("A"))));
    let mut data = bytes(1, 4);
    data[..65536].fill(9);
    scene.holds("A", &disk, &data);
}

#[test]
fn disconnecting_waits_for_nobody_unless_forced() {
    let scene = Scene::new();
    let other = scene.another();
    let disk = scene.disk("A", 1, 4);
    let open = other.open_image("A", &disk, false).unwrap();
    fails(ErrorKind::ImageInUse, other.disconnect_storage_repository("A", &ForceOptions::default()));
    other.disconnect_storage_repository("B", &ForceOptions::default()).unwrap();
    assert_eq!(other.list_storage_repositories().unwrap(), ["A"]);
    other.disconnect_storage_repository("A", &ForceOptions { force: true }).unwrap();
    fails(ErrorKind::Closed, open.read(0, &mut [0]));
    fails(
        ErrorKind::RepositoryNotFound,
        other.disconnect_storage_repository("A", &ForceOptions { force: true }),
    );
    // Another order, other names: nothing depends on them.
    other.connect_storage_repository("second", "localfs-1.0", &at(&scene.repo("A"))).unwrap();
    assert_eq!(read(&other, "second", &disk), bytes(1, 4));
    assert_eq!(scene.store.list_storage_repositories().unwrap(), ["A", "B"]);
}

#[test]
fn disconnecting_stops_the_work_on_a_repository() {
    let scene = Scene::new();
    let source = large(&scene, 512);
    for name in ["A", "B"] {
        let other = scene.another();
        let copy = other.copy_image("B", &source, None, "{}", &task("copy")).unwrap().to_string();
        wait_until("the copy runs", || other.list_tasks().unwrap().iter().all(|task| task.bytes_done > 0));
        let started = Instant::now();
        other.disconnect_storage_repository(name, &ForceOptions::default()).unwrap();
        assert!(started.elapsed() < Duration::from_millis(2500), "{:?}", started.elapsed());
        assert!(other.list_tasks().unwrap().is_empty());
        scene.store.open_image("A", &source, true).unwrap().close().unwrap();
        scene.remove("B", &copy);
    }
}

#[test]
fn many_threads_on_one_image() {
    let scene = Scene::new();
    let disk = scene.disk("A", 1, 4);
    let start = Barrier::new(4);
    let made: Vec<String> = thread::scope(|scope| {
        let snapshots = || {
            start.wait();
            (0..5).map(|_| scene.snapshot("A", &disk)).collect::<Vec<_>>()
        };
        let data = || {
            start.wait();
            for n in 0..20 {
                scene.store.set_image_user_data("A", &disk, &n.to_string()).unwrap();
            }
            Vec::new()
        };
        let looks = || {
            start.wait();
            (0..20).for_each(|_| {
                assert_ne!(scene.status("A", &disk), Status::Broken);
                scene.store.get_image_info("A", &disk).unwrap();
                scene.store.list_image_infos("A", &ListOptions::default()).unwrap();
            });
            Vec::new()
        };
        let threads = [scope.spawn(snapshots), scope.spawn(snapshots), scope.spawn(data), scope.spawn(looks)];
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(made.len(), 10);
    for id in made.iter().chain([&disk]) {
        assert_eq!(scene.read("A", id), bytes(1, 4));
    }
    // Removed by two: one wins.
    let removed: usize = thread::scope(|scope| {
        let remove = || usize::from(scene.store.remove_image("A", &disk, &RemoveOptions::default()).is_ok());
        let threads = [scope.spawn(remove), scope.spawn(remove)];
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(removed, 1);
}

#[test]
fn many_threads_in_one_open_image() {
    let scene = Scene::new();
    let snapshot = scene.snapshot("A", &scene.disk("A", 1, 64));
    let disk = scene.create("A", None, Some(&snapshot), &plain());
    let image = scene.store.open_image("A", &disk, true).unwrap();
    thread::scope(|scope| {
        for index in 0..4_u8 {
            let image: Image = image.clone();
            scope.spawn(move || {
                for round in 0..64_i64 {
                    let offset = round * 65536 + i64::from(index) * 16384;
                    image.write(offset, &[index + 2; 16384]).unwrap();
                    let mut back = [0; 16384];
                    image.read(offset, &mut back).unwrap();
                    assert_eq!(back, [index + 2; 16384]);
                }
            });
        }
    });
    image.close().unwrap();
    let expected: Vec<u8> = (0..SIZE as usize).map(|i| (i / 16384 % 4) as u8 + 2).collect();
    scene.holds("A", &disk, &expected);
}

// What is told of images.

#[test]
fn user_data_is_kept_byte_for_byte_and_never_inherited() {
    let scene = Scene::new();
    let texts =
        [r#" {"a" : 1.50, "a": 1e400, "ä": "\u00e4\ud83d\ude00"} "#, "null", "\"\"", "-0.0", "[[],{}]"];
    let disk = scene.disk("A", 1, 4);
    for text in texts {
        scene.store.set_image_user_data("A", &disk, text).unwrap();
        assert_eq!(scene.another().get_image_info("A", &disk).unwrap().user_data.get(), text.trim());
    }
    let long = format!("\"{}\"", "x".repeat((1 << 20) - 2));
    let snapshot = scene.store.create_snapshot("A", &disk, &long, &plain()).unwrap().to_string();
    assert_eq!(scene.store.get_image_info("A", &snapshot).unwrap().user_data.get(), long);
    let copy = scene.copy("B", &snapshot, None, &CopyOptions::default());
    let child = scene.create("A", None, Some(&snapshot), &plain());
    for (repo, id) in [("B", &copy), ("A", &child)] {
        assert_eq!(scene.store.get_image_info(repo, id).unwrap().user_data.get(), "{}");
    }
    // In use, and of a snapshot.
    let open = scene.store.open_image("A", &disk, true).unwrap();
    scene.another().set_image_user_data("A", &disk, "1").unwrap();
    scene.another().set_image_user_data("A", &snapshot, "2").unwrap();
    open.write(0, &[1]).unwrap();
    open.close().unwrap();
    assert_eq!(scene.store.get_image_info("A", &disk).unwrap().user_data.get(), "1");
}

#[test]
fn lists_are_in_order_and_in_pieces() {
    let scene = Scene::new();
    let mut disks: Vec<String> = (0..6).map(|_| scene.create("A", Some(512), None, &plain())).collect();
    let mut snapshots: Vec<String> = disks.iter().take(3).map(|disk| scene.snapshot("A", disk)).collect();
    let mut all: Vec<String> = disks.iter().chain(&snapshots).cloned().collect();
    for list in [&mut disks, &mut snapshots, &mut all] {
        list.sort_unstable();
    }
    let list = |kind, after: Option<&String>, limit| {
        let options =
            ListOptions { kind, after: after.map(|id| id.to_uppercase()), limit, ..ListOptions::default() };
        let infos = scene.store.list_image_infos("A", &options).unwrap();
        let ids: Vec<String> =
            scene.store.list_images("A", &options).unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(infos.iter().map(|info| info.image_id.to_string()).collect::<Vec<_>>(), ids);
        ids
    };
    assert_eq!(list(None, None, None), all);
    assert_eq!(list(Some(ImageKind::Disk), None, None), disks);
    assert_eq!(list(Some(ImageKind::Snapshot), None, Some(2)), snapshots[..2]);
    assert_eq!(list(None, Some(&all[3]), Some(4)), all[4..8]);
    assert_eq!(list(None, Some(&all[8]), None), [""; 0]);
    assert_eq!(list(None, None, Some(0)), [""; 0]);
    let info = scene.store.get_storage_repository_info("A").unwrap();
    assert_eq!((info.virtual_disks, info.snapshots, info.read_only), (6, 3, false));
    assert_eq!((info.repo_id.as_str(), info.format.as_str()), ("A", "localfs-1.0"));
    assert!(info.location.contains(scene.repo("A").to_str().unwrap()), "{info:?}");
    assert!(info.available > 0 && info.available <= info.capacity, "{info:?}");
}

#[test]
fn the_same_call_under_a_chosen_id_is_answered_with_it() {
    let scene = Scene::new();
    let id = "ABCDEF00-1234-4234-8234-123456789ABC";
    let chosen = CreateOptions { image_id: Some(id.into()), ..plain() };
    for _ in 0..3 {
        let made = scene.store.create_virtual_disk("A", Some(SIZE), None, "[1]", &chosen).unwrap();
        assert_eq!(made.to_string(), id.to_lowercase());
    }
    assert_eq!(ids(&scene.store, "A").len(), 1);
    fails(ErrorKind::ImageExists, scene.store.create_virtual_disk("A", Some(512), None, "[1]", &chosen));
    fails(ErrorKind::ImageExists, scene.store.create_virtual_disk("A", Some(SIZE), None, "[2]", &chosen));
    fails(ErrorKind::ImageExists, scene.store.create_snapshot("A", id, "[1]", &chosen));
    // A removed one is free.
    scene.remove("A", id);
    scene.quiet();
    scene.store.create_virtual_disk("A", Some(512), None, "[1]", &chosen).unwrap();
    let snapshot = CreateOptions { image_id: Some("abcdef01-1234-4234-8234-123456789abc".into()), ..plain() };
    let first = scene.store.create_snapshot("A", id, "{}", &snapshot).unwrap();
    write(&scene.store, "A", id, |image| image.write(0, &[1; 512]));
    assert_eq!(scene.store.create_snapshot("A", id, "{}", &snapshot).unwrap(), first);
    assert_eq!(read(&scene.store, "A", &first.to_string()), [0; 512]);
}

#[test]
fn imports_hold_what_the_file_holds() {
    let scene = Scene::new();
    let (raw, qcow2) = (scene.root.path().join("raw"), scene.root.path().join("qcow2"));
    let mut data = bytes(7, 20);
    data.truncate(3_000_001);
    std::fs::write(&raw, &data).unwrap();
    let arguments = ["convert", "-f", "raw", "-O", "qcow2", raw.to_str().unwrap(), qcow2.to_str().unwrap()];
    run("qemu-img", &arguments);
    data.resize(data.len().next_multiple_of(512), 0);
    for (file, format) in [(&raw, "raw"), (&qcow2, "qcow2")] {
        let id = scene
            .store
            .import_image("A", file.to_str().unwrap(), format, "{}", &plain())
            .unwrap()
            .to_string();
        settle(&scene.store, "A", &id);
        assert!(scene.store.get_image_info("A", &id).unwrap().mutable);
        scene.holds("A", &id, &data);
        assert!(scene.store.get_image_info("A", &id).unwrap().allocated < 2 * MIB as u64);
    }
    // Its name is kept until it is done, and it must be the same file then.
    let idle = scene.idle();
    let id = idle.import_image("A", raw.to_str().unwrap(), "raw", "{}", &plain()).unwrap().to_string();
    std::fs::write(&raw, [1; 1024]).unwrap();
    idle.run_tasks();
    let status = idle.get_image_status("A", &id).unwrap();
    assert_eq!(status.status, Status::Broken);
    assert!(status.last_error.is_some_and(|text| text.contains(raw.to_str().unwrap())));
    assert_eq!(scene.create("A", Some(512), None, &off()).len(), 36);
}

#[test]
fn extents_tell_data_from_nothing() {
    let scene = Scene::new();
    let disk = scene.disk("A", 1, 4);
    let snapshot = scene.snapshot("A", &disk);
    let child = scene.create("A", Some(SIZE + MIB), Some(&snapshot), &plain());
    write(&scene.store, "A", &child, |image| {
        image.write_zeroes(0, 65536)?;
        image.discard(65536, 65536)?;
        image.write(2 * MIB, &[5; 65536])
    });
    let image = scene.store.open_image("A", &child, false).unwrap();
    let extents = image.extents(0, usize::MAX).unwrap();
    let data: Vec<(u64, u64)> = extents
        .iter()
        .filter(|extent| extent.kind == ExtentKind::Data)
        .map(|extent| (extent.offset, extent.length))
        .collect();
    assert_eq!(data, [(131_072, 131_072), (2 << 20, 65536)]);
    assert_eq!(image.extents(0, 2).unwrap(), extents[..2]);
    assert_eq!(image.extents(SIZE + MIB, 5).unwrap(), []);
    let mut expected = bytes(1, 4);
    expected.resize((SIZE + MIB) as usize, 0);
    expected[..131_072].fill(0);
    expected[2 << 20..][..65536].fill(5);
    drop(image);
    scene.holds("A", &child, &expected);
}

#[test]
fn a_long_chain_is_degraded_and_then_refused() {
    // In memory: it takes hundreds of volumes.
    let store = store("here");
    let identity =
        HostIdentity { host_id: "here".into(), incarnation: Incarnation::random(), boot_id: "boot".into() };
    store.connect_driver("A", SimWorld::new(SimOptions::default()).connect(identity)).unwrap();
    let disk = store.create_virtual_disk("A", Some(512), None, "{}", &plain()).unwrap().to_string();
    let mut taken = 0;
    let error = loop {
        match store.create_snapshot("A", &disk, "{}", &plain()) {
            Ok(_) => taken += 1,
            Err(error) => break error,
        }
        assert!(taken < 300, "no end");
        if taken == 100 {
            assert_eq!(store.get_image_status("A", &disk).unwrap().status, Status::Degraded);
        }
    };
    assert_eq!(error.kind(), ErrorKind::TooManyVolumes, "{error:?}");
    assert!(taken >= 200, "{taken}");
    assert_ne!(store.get_image_status("A", &disk).unwrap().status, Status::Broken);
    write(&store, "A", &disk, |image| image.write(0, &[1; 512]));
    assert_eq!(store.get_image_info("A", &disk).unwrap().depth, taken + 1);
}

#[test]
fn a_store_has_a_default_name() {
    let scene = Scene::new();
    let disk = scene.disk("A", 1, 1);
    let other: Store = scene.join(StoreOptions::default());
    let open = other.open_image("A", &disk, true).unwrap();
    let held = scene.store.get_image_info("A", &disk).unwrap().prepared.unwrap();
    assert_eq!(held.mode, "open");
    assert!(!held.host_id.is_empty());
    open.close().unwrap();
    new_repo(&store("x"), scene.root.path(), "C");
}
