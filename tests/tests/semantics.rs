//! What API.md promises of the verbs, one test for each promise.

#![allow(
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::large_stack_arrays,
    clippy::unwrap_used,
    reason = "the numbers of tests are small, and tests fail by panicking"
)]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use vdsmstore_core::options::{
    AutoFix, CheckOptions, CopyOptions, CreateOptions, FixOptions, RemoveOptions, Strategy, WaitOptions,
    WaitStatus,
};
use vdsmstore_core::{ErrorKind, FixType, Status};
use vdsmstore_tests::scene::{MIB, SIZE, Scene, bytes, fails, ids, off, performance};
use vdsmstore_tests::{PATIENCE, new_repo, run, settle, write};

// What a call makes.

#[test]
fn a_new_disk_is_thin_and_reads_zeroes() {
    let scene = Scene::new();
    let id = scene.create("A", Some(1 << 40), None, &CreateOptions::default());
    let info = scene.store.get_image_info("A", &id).unwrap();
    assert!(info.allocated < MIB as u64, "{info:?}");
    assert_eq!((info.mutable, info.size, info.depth, info.strategy), (true, 1 << 40, 1, Strategy::Space));
    assert_eq!(info.prepared, None);
    let status = scene.store.get_image_status("A", &id).unwrap();
    assert_eq!((status.status, status.last_error), (Status::Optimized, None));
    let mut end = [1; 512];
    scene.store.open_image("A", &id, false).unwrap().read((1 << 40) - 512, &mut end).unwrap();
    assert_eq!(end, [0; 512]);
}

#[test]
fn performance_preallocates() {
    let scene = Scene::new();
    let id = scene.create("A", Some(SIZE), None, &performance());
    settle(&scene.store, "A", &id);
    let info = scene.store.get_image_info("A", &id).unwrap();
    assert!(info.allocated >= SIZE as u64, "{info:?}");
    assert_eq!((info.strategy, scene.status("A", &id)), (Strategy::Performance, Status::Optimized));
    let copied = scene.disk("A", 3, 2);
    let copy = CopyOptions { strategy: Strategy::Performance, ..CopyOptions::default() };
    let copy = scene.copy("B", &copied, None, &copy);
    assert!(scene.store.get_image_info("B", &copy).unwrap().allocated >= SIZE as u64);
    assert_eq!((scene.status("B", &copy), scene.format("B", &copy)), (Status::Optimized, "raw".into()));
    scene.holds("B", &copy, &bytes(3, 2));
}

#[test]
fn a_disk_on_a_snapshot_goes_its_own_way() {
    let scene = Scene::new();
    let parent = scene.disk("A", 1, 4);
    let snapshot = scene.snapshot("A", &parent);
    let child = scene.create("A", Some(SIZE + MIB), Some(&snapshot), &CreateOptions::default());
    assert_eq!(scene.status("A", &child), Status::Optimized);
    let mut larger = bytes(1, 4);
    larger.resize((SIZE + MIB) as usize, 0);
    scene.holds("A", &child, &larger);
    write(&scene.store, "A", &child, |image| image.write(0, &[9; 65536]));
    write(&scene.store, "A", &parent, |image| image.write(65536, &[8; 65536]));
    scene.holds("A", &snapshot, &bytes(1, 4));
    larger[..65536].fill(9);
    scene.holds("A", &child, &larger);
    let smaller = scene.store.create_virtual_disk(
        "A",
        Some(SIZE - 512),
        Some(&snapshot),
        "{}",
        &CreateOptions::default(),
    );
    fails(ErrorKind::InvalidParameter, smaller);
}

#[test]
fn a_fast_disk_on_a_snapshot_is_degraded_until_it_has_its_own_volume() {
    let scene = Scene::new();
    let snapshot = scene.snapshot("A", &scene.disk("A", 1, 4));
    let now = scene.create("A", None, Some(&snapshot), &performance());
    assert_eq!(scene.status("A", &now), Status::Degraded);
    let options = CreateOptions { auto_fix: AutoFix::Optimized, ..performance() };
    let later = scene.create("A", None, Some(&snapshot), &options);
    let wait = WaitOptions { status: Some(WaitStatus::Optimized) };
    scene.store.wait_image("A", &later, Some(Duration::from_secs(20)), &wait).unwrap();
    let info = scene.store.get_image_info("A", &later).unwrap();
    assert_eq!((info.depth, scene.format("A", &later)), (1, "raw".into()));
    for id in [&now, &later] {
        scene.holds("A", id, &bytes(1, 4));
    }
    let wait = scene.store.wait_image("A", &now, Some(Duration::from_millis(300)), &wait);
    fails(ErrorKind::Timeout, wait);
}

#[test]
fn a_base_elsewhere_is_brought_along() {
    let scene = Scene::new();
    let disk = scene.disk("A", 1, 4);
    let snapshot = scene
        .store
        .create_snapshot("A", &disk, r#"{"of": "A"}"#, &CreateOptions::default())
        .unwrap()
        .to_string();
    let child = scene.create("B", None, Some(&snapshot), &CreateOptions::default());
    settle(&scene.store, "B", &child);
    scene.quiet();
    assert!(ids(&scene.store, "B").contains(&snapshot));
    scene.holds("B", &child, &bytes(1, 4));
    scene.holds("B", &snapshot, &bytes(1, 4));
    // Independent of where it came from.
    scene.remove("A", &snapshot);
    scene.remove("A", &disk);
    scene.quiet();
    scene.holds("B", &child, &bytes(1, 4));
}

#[test]
fn a_fast_disk_leaves_its_base_where_it_is() {
    let scene = Scene::new();
    let snapshot = scene.snapshot("A", &scene.disk("A", 1, 4));
    let child = scene.create("B", Some(SIZE + 512), Some(&snapshot), &performance());
    settle(&scene.store, "B", &child);
    assert_eq!(ids(&scene.store, "B"), std::slice::from_ref(&child));
    assert_eq!((scene.status("B", &child), scene.format("B", &child)), (Status::Optimized, "raw".into()));
    let mut data = bytes(1, 4);
    data.resize(SIZE as usize + 512, 0);
    scene.holds("B", &child, &data);
}

#[test]
fn copies_of_disks_are_new_and_of_snapshots_are_the_same() {
    let scene = Scene::new();
    let disk = scene.disk("A", 1, 4);
    let snapshot = scene.snapshot("A", &disk);
    let plain = CopyOptions::default();
    for repo in ["A", "B"] {
        let copy = scene.copy(repo, &disk, None, &plain);
        assert_ne!(copy, disk);
        assert!(scene.store.get_image_info(repo, &copy).unwrap().mutable);
        scene.holds(repo, &copy, &bytes(1, 4));
        assert_eq!(scene.copy(repo, &snapshot, None, &plain), snapshot);
        scene.holds(repo, &snapshot, &bytes(1, 4));
        let backup = scene.copy(repo, &disk, None, &CopyOptions { mutable: false, ..CopyOptions::default() });
        assert!(!scene.store.get_image_info(repo, &backup).unwrap().mutable);
        assert!(backup != disk && backup != snapshot);
        scene.holds(repo, &backup, &bytes(1, 4));
        fails(ErrorKind::ReadOnlyImage, scene.store.open_image(repo, &backup, true));
        scene.create(repo, None, Some(&backup), &CreateOptions::default());
    }
}

#[test]
fn a_difference_costs_what_differs_whatever_the_sizes() {
    let scene = Scene::new();
    let source = scene.create("A", Some(64 * MIB), None, &CreateOptions::default());
    write(&scene.store, "A", &source, |image| image.write(0, &vec![5; 32 * MIB as usize]));
    let base = scene.copy("B", &source, None, &CopyOptions::default());
    write(&scene.store, "A", &source, |image| image.write(MIB, &[6; 65536]));
    let data = scene.read("A", &source);
    let small = scene.create("B", Some(MIB), None, &CreateOptions::default());
    let large = scene.create("B", Some(80 * MIB), None, &CreateOptions::default());
    write(&scene.store, "B", &large, |image| image.write(0, &vec![5; 80 * MIB as usize]));
    for (base, limit) in [(&base, 2 * MIB), (&small, 36 * MIB), (&large, 36 * MIB)] {
        let copy = scene.copy("B", &source, Some(base), &CopyOptions::default());
        let info = scene.store.get_image_info("B", &copy).unwrap();
        assert!(info.allocated < limit as u64, "{info:?}");
        assert_eq!((info.size, scene.status("B", &copy)), (64 * MIB as u64, Status::Optimized));
        scene.holds("B", &copy, &data);
        // What the base becomes does not matter.
        write(&scene.store, "B", base, |image| image.write(0, &[7; 1 << 20]));
        assert!(scene.read("B", &copy) == data);
    }
    assert_eq!(scene.store.get_image_info("A", &source).unwrap().depth, 1, "the source is never snapshotted");
    let fast = CopyOptions { strategy: Strategy::Performance, ..CopyOptions::default() };
    let copy = scene.copy("B", &source, Some(&base), &fast);
    assert_eq!(scene.status("B", &copy), Status::Degraded);
    let fast = CopyOptions { auto_fix: AutoFix::Optimized, ..fast };
    let copy = scene.copy("B", &source, Some(&base), &fast);
    assert_eq!((scene.status("B", &copy), scene.format("B", &copy)), (Status::Optimized, "raw".into()));
    scene.holds("B", &copy, &data);
}

// When calls return, and what they leave.

#[test]
fn without_autofix_only_the_intent_is_recorded() {
    let scene = Scene::new();
    let disk = scene.disk("A", 1, 4);
    let snapshot = scene.snapshot("A", &disk);
    let file = scene.root.path().join("import.raw");
    std::fs::write(&file, [1; 512]).unwrap();
    let copy = CopyOptions { auto_fix: AutoFix::Off, ..CopyOptions::default() };
    let made = [
        ("A", scene.create("A", Some(SIZE), None, &off())),
        ("A", scene.create("A", None, Some(&snapshot), &off())),
        ("A", scene.store.create_snapshot("A", &disk, "{}", &off()).unwrap().to_string()),
        ("B", scene.store.copy_image("B", &disk, None, "{}", &copy).unwrap().to_string()),
        ("B", scene.store.copy_image("B", &snapshot, None, "{}", &copy).unwrap().to_string()),
        (
            "A",
            scene.store.import_image("A", file.to_str().unwrap(), "raw", "[1]", &off()).unwrap().to_string(),
        ),
    ];
    let other = scene.another();
    for (repo, id) in &made {
        for store in [&scene.store, &other] {
            let status = store.get_image_status(repo, id).unwrap();
            assert_eq!((status.status, status.tasks.len()), (Status::Broken, 0), "{id}: {status:?}");
            assert!(ids(store, repo).contains(id));
            store.get_image_info(repo, id).unwrap();
            fails(ErrorKind::ImageBroken, store.open_image(repo, id, false));
        }
        other.set_image_user_data(repo, id, "[1]").unwrap();
        other.remove_image(repo, id, &RemoveOptions::default()).unwrap();
        fails(ErrorKind::ImageNotFound, scene.store.get_image_status(repo, id));
    }
    write(&scene.store, "A", &disk, |image| image.write(0, &[2; 512]));
}

#[test]
fn an_announced_snapshot_has_the_moment_of_its_call() {
    let scene = Scene::new();
    let disk = scene.disk("A", 1, 4);
    let announce = || scene.store.create_snapshot("A", &disk, "{}", &off()).unwrap().to_string();
    let (first, second) = (announce(), announce());
    write(&scene.another(), "A", &disk, |image| image.write(0, &[2; 65536]));
    for id in [&first, &second] {
        scene.holds("A", id, &bytes(1, 4));
    }
    // Also if the disk goes first, or a real one is taken.
    let third = announce();
    let before = scene.read("A", &disk);
    let fourth = scene.snapshot("A", &disk);
    let fifth = announce();
    scene.remove("A", &disk);
    for id in [third, fourth, fifth] {
        scene.holds("A", &id, &before);
    }
}

#[test]
fn a_copy_waits_for_nobody_who_writes_its_source() {
    let scene = Scene::new();
    let disk = scene.disk("A", 1, 4);
    let open = scene.store.open_image("A", &disk, true).unwrap();
    let error =
        fails(ErrorKind::ImageInUse, scene.store.copy_image("B", &disk, None, "{}", &CopyOptions::default()));
    assert!(error.details().contains_key("host"), "{error:?}");
    open.close().unwrap();
    // One moment of it: written between the call and the work, it is the moment of the work.
    let idle = scene.idle();
    let copy = idle.copy_image("B", &disk, None, "{}", &CopyOptions::default()).unwrap().to_string();
    write(&scene.store, "A", &disk, |image| image.write(0, &[2; 4 * 65536]));
    idle.run_tasks();
    settle(&idle, "B", &copy);
    scene.holds("B", &copy, &bytes(2, 4));
}

#[test]
fn a_copy_whose_base_disk_is_busy_stays_and_says_so() {
    let scene = Scene::new();
    let (source, base) = (scene.disk("A", 1, 4), scene.disk("B", 1, 3));
    let open = scene.store.open_image("B", &base, true).unwrap();
    let task = CopyOptions { task_id: Some("t".into()), ..CopyOptions::default() };
    let Ok(copy) = scene.store.copy_image("B", &source, Some(&base), "{}", &task) else {
        // Refused at once is as good.
        return assert_eq!(ids(&scene.store, "B"), [base]);
    };
    let copy = copy.to_string();
    assert_eq!(scene.status("B", &copy), Status::Broken);
    fails(ErrorKind::ImageInUse, scene.store.wait_task("t", Some(Duration::from_secs(20))));
    let status = scene.store.get_image_status("B", &copy).unwrap();
    assert!(status.last_error.as_ref().is_some_and(|text| text.contains(&base)), "{status:?}");
    open.close().unwrap();
    scene.remove("B", &copy);
}

// Where images are looked for.

/// A snapshot in A and in B, found by their user data.
fn in_both(scene: &Scene) -> String {
    let disk = scene.disk("A", 1, 4);
    let id =
        scene.store.create_snapshot("A", &disk, "\"in A\"", &CreateOptions::default()).unwrap().to_string();
    scene.store.copy_image("B", &id, None, "\"in B\"", &CopyOptions::default()).unwrap();
    settle(&scene.store, "B", &id);
    id
}

/// The user data of the image that is brought along to C tells where it was found.
fn found(scene: &Scene, id: &str, options: &CreateOptions) -> String {
    scene.store.create_virtual_disk("C", None, Some(id), "{}", options).unwrap();
    scene.quiet();
    let user = scene.store.get_image_info("C", id).unwrap().user_data.get().to_owned();
    for image in ids(&scene.store, "C") {
        scene.remove("C", &image);
    }
    scene.quiet();
    user
}

#[test]
fn images_are_looked_for_where_the_caller_says() {
    let scene = Scene::new();
    let id = in_both(&scene);
    new_repo(&scene.store, scene.root.path(), "C");
    let only = |names: &[&str]| CreateOptions {
        participating_repositories: Some(names.iter().map(ToString::to_string).collect()),
        ..CreateOptions::default()
    };
    let hint = |repo: &str| BTreeMap::from([(id.to_uppercase(), repo.to_owned())]);
    assert_eq!(found(&scene, &id, &CreateOptions::default()), "\"in A\"", "in order of connection");
    assert_eq!(found(&scene, &id, &only(&["B"])), "\"in B\"");
    assert_eq!(found(&scene, &id, &only(&["B", "A"])), "\"in B\"");
    let wins = CreateOptions { image_hints: hint("B"), ..only(&["A"]) };
    assert_eq!(found(&scene, &id, &wins), "\"in B\"");
    let make = |options: &CreateOptions| scene.store.create_virtual_disk("C", None, Some(&id), "{}", options);
    fails(ErrorKind::ImageNotFound, make(&only(&["C"])));
    fails(ErrorKind::ImageNotFound, make(&only(&[])));
    let fails_there = CreateOptions { image_hints: hint("C"), ..CreateOptions::default() };
    fails(ErrorKind::ImageNotFound, make(&fails_there));
    fails(ErrorKind::RepositoryNotFound, make(&only(&["nowhere"])));
    let nowhere = CreateOptions { image_hints: hint("nowhere"), ..CreateOptions::default() };
    fails(ErrorKind::RepositoryNotFound, make(&nowhere));
    assert_eq!(ids(&scene.store, "C"), [""; 0]);
    // createSnapshot looks only in its target.
    let disk = scene.disk("A", 2, 1);
    fails(ErrorKind::ImageNotFound, scene.store.create_snapshot("C", &disk, "{}", &CreateOptions::default()));
}

#[test]
fn what_is_broken_here_is_taken_from_elsewhere() {
    let scene = Scene::new();
    let (base, id) = partial(&scene, &CopyOptions { mutable: false, ..CopyOptions::default() });
    // In B it lacks its base; A gets a whole one by way of another repository.
    assert_eq!(scene.status("B", &id), Status::Broken);
    let whole = elsewhere_whole(&scene, &base, &id);
    let child = scene.create("B", None, Some(&id), &CreateOptions::default());
    settle(&scene.store, "B", &child);
    assert_eq!(scene.status("B", &id), Status::Optimized);
    scene.holds("B", &child, &whole);
}

#[test]
fn a_snapshot_whose_data_was_lost_is_copied_again() {
    let scene = Scene::new();
    let disk = scene.disk("A", 7, 4);
    let snapshot = scene.snapshot("A", &disk);
    let whole = scene.read("A", &snapshot);
    scene.copy("B", &snapshot, None, &CopyOptions::default());
    let data = scene.repo("B").join("data");
    for file in std::fs::read_dir(&data).unwrap() {
        std::fs::remove_file(file.unwrap().path()).unwrap();
    }
    assert_eq!(scene.status("B", &snapshot), Status::Broken);
    // No source either: a copy looks further.
    let child = scene.create("B", None, Some(&snapshot), &CreateOptions::default());
    settle(&scene.store, "B", &child);
    scene.copy("B", &snapshot, None, &CopyOptions::default());
    assert_eq!(scene.status("B", &snapshot), Status::Optimized);
    for id in [&snapshot, &child] {
        scene.holds("B", id, &whole);
    }
}

#[test]
fn a_snapshot_keeps_its_id_asked_for_or_not() {
    let scene = Scene::new();
    let disk = scene.disk("A", 7, 4);
    let snapshot = scene.snapshot("A", &disk);
    let options = CopyOptions { image_id: Some(snapshot.clone()), ..CopyOptions::default() };
    for _ in 0..2 {
        assert_eq!(scene.copy("B", &snapshot, None, &options), snapshot);
    }
    // Removed, and needed by another: it comes back.
    let child = scene.create("B", None, Some(&snapshot), &CreateOptions::default());
    scene.remove("B", &snapshot);
    assert_eq!(scene.copy("B", &snapshot, None, &options), snapshot);
    assert_eq!(scene.status("B", &snapshot), Status::Optimized);
    scene.holds("B", &child, &bytes(7, 4));
    let other = CopyOptions { image_id: Some(disk), ..CopyOptions::default() };
    fails(ErrorKind::InvalidParameter, scene.store.copy_image("B", &snapshot, None, "{}", &other));
}

#[test]
fn a_mend_fix_does_what_it_says() {
    let scene = Scene::new();
    let (base, id) = partial(&scene, &CopyOptions { mutable: false, ..CopyOptions::default() });
    let check = || scene.store.check_storage_repository("B", &CheckOptions::default()).unwrap();
    assert!(
        check().is_empty(),
        "nothing can be done before the base or the image is somewhere: {:#?}",
        check()
    );
    let whole = elsewhere_whole(&scene, &base, &id);
    let fixes = check();
    assert_eq!(fixes.len(), 1, "{fixes:#?}");
    assert_eq!(
        (fixes[0].fix_type, fixes[0].image_id.map(|id| id.to_string())),
        (FixType::Mend, Some(id.clone()))
    );
    let task = scene.store.fix_storage_repository("B", &fixes[0], &FixOptions::default()).unwrap();
    scene.store.wait_task(&task, Some(PATIENCE)).unwrap();
    assert_ne!(scene.status("B", &id), Status::Broken, "{:#?}", check());
    scene.holds("B", &id, &whole);
    assert!(check().is_empty(), "{:#?}", check());
    // Done once more, it has become unnecessary.
    let task = scene.store.fix_storage_repository("B", &fixes[0], &FixOptions::default()).unwrap();
    scene.store.wait_task(&task, Some(PATIENCE)).unwrap();
}

#[test]
fn a_removed_snapshot_without_data_comes_back() {
    let scene = Scene::new();
    let disk = scene.disk("B", 1, 4);
    let snapshot = scene.snapshot("B", &disk);
    scene.create("A", None, Some(&snapshot), &off());
    assert_eq!(scene.status("A", &snapshot), Status::Broken);
    scene.remove("A", &snapshot);
    scene.quiet();
    scene.copy("A", &snapshot, None, &CopyOptions::default());
    scene.holds("A", &snapshot, &bytes(1, 4));
}

// Partial copies.

/// A snapshot in A, and in B a copy with it as base that is not there: the base, the copy.
fn partial(scene: &Scene, options: &CopyOptions) -> (String, String) {
    let disk = scene.disk("A", 1, 4);
    let base = scene.snapshot("A", &disk);
    write(&scene.store, "A", &disk, |image| image.write(65536, &[2; 65536]));
    let options = CopyOptions { partial: true, ..options.clone() };
    (base.clone(), scene.copy("B", &disk, Some(&base), &options))
}

fn partial_data() -> Vec<u8> {
    let mut data = bytes(1, 4);
    data[65536..131_072].fill(2);
    data
}

/// Makes `id`, which is partial in B, whole in A, and leaves it partial in B: its bytes.
fn elsewhere_whole(scene: &Scene, base: &str, id: &str) -> Vec<u8> {
    // With its base B's is whole for a moment, long enough to be copied to A; without both, it begins again.
    scene.copy("B", base, None, &CopyOptions::default());
    scene.copy("A", id, None, &CopyOptions::default());
    scene.remove("B", id);
    scene.remove("B", base);
    scene.quiet();
    let again = CopyOptions { partial: true, ..CopyOptions::default() };
    scene.copy("B", id, Some(base), &again);
    assert_eq!(scene.status("B", id), Status::Broken);
    partial_data()
}

#[test]
fn a_partial_copy_is_whole_when_its_base_comes() {
    let scene = Scene::new();
    for mutable in [true, false] {
        let (base, id) = partial(&scene, &CopyOptions { mutable, ..CopyOptions::default() });
        let status = scene.store.get_image_status("B", &id).unwrap();
        assert_eq!((status.status, status.last_error), (Status::Broken, None));
        let info = scene.store.get_image_info("B", &id).unwrap();
        assert!(info.allocated < MIB as u64 && info.size == SIZE as u64, "{info:?}");
        fails(ErrorKind::ImageBroken, scene.store.open_image("B", &id, false));
        scene.copy("B", &base, None, &CopyOptions::default());
        assert_eq!(scene.status("B", &id), Status::Optimized);
        scene.holds("B", &id, &partial_data());
        // Whole from then on.
        scene.remove("B", &base);
        scene.quiet();
        scene.holds("B", &id, &partial_data());
    }
}

#[test]
fn a_base_may_come_as_a_difference() {
    let scene = Scene::new();
    let (base, id) = partial(&scene, &CopyOptions::default());
    // The base is not one raw volume here, as it was where the copy was made.
    let below = scene.disk("B", 1, 4);
    scene.copy("B", &base, Some(&below), &CopyOptions::default());
    assert_eq!(scene.format("B", &base), "qcow2");
    scene.holds("B", &base, &bytes(1, 4));
    scene.holds("B", &id, &partial_data());
}

#[test]
fn a_partial_copy_needs_a_snapshot_that_somebody_has() {
    let scene = Scene::new();
    let (source, disk) = (scene.disk("A", 1, 4), scene.disk("A", 1, 3));
    let copy = |base: &str, partial: bool| {
        scene.store.copy_image(
            "B",
            &source,
            Some(base),
            "{}",
            &CopyOptions { partial, ..CopyOptions::default() },
        )
    };
    fails(ErrorKind::NotASnapshot, copy(&disk, true));
    fails(ErrorKind::ImageNotFound, copy("00000000-0000-4000-8000-000000000000", true));
    let snapshot = scene.snapshot("A", &disk);
    fails(ErrorKind::ImageNotFound, copy(&snapshot, false));
    assert_eq!(ids(&scene.store, "B"), [""; 0]);
}

#[test]
fn two_partial_copies_on_each_other_can_be_mended() {
    let scene = Scene::new();
    let disk = scene.disk("A", 1, 4);
    let first = scene.snapshot("A", &disk);
    write(&scene.store, "A", &disk, |image| image.write(65536, &[2; 65536]));
    let second = scene.snapshot("A", &disk);
    let options = CopyOptions { partial: true, ..CopyOptions::default() };
    scene.copy("B", &first, Some(&second), &options);
    scene.copy("B", &second, Some(&first), &options);
    assert_eq!((scene.status("B", &first), scene.status("B", &second)), (Status::Broken, Status::Broken));
    scene.copy("B", &second, None, &CopyOptions::default());
    scene.holds("B", &first, &bytes(1, 4));
    scene.holds("B", &second, &partial_data());
}

#[test]
fn a_compressed_file_is_imported() {
    let scene = Scene::new();
    let (raw, file) = (scene.root.path().join("raw"), scene.root.path().join("qcow2"));
    std::fs::write(&raw, bytes(7, 20)).unwrap();
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    run("qemu-img", &["convert", "-c", "-f", "raw", "-O", "qcow2", &text(&raw), &text(&file)]);
    let id = scene.store.import_image("A", &text(&file), "qcow2", "{}", &CreateOptions::default()).unwrap();
    settle(&scene.store, "A", &id.to_string());
    scene.holds("A", &id.to_string(), &bytes(7, 20));
}
