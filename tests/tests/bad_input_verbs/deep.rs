//! Chains that are as long as they may be.

use vdsmstore_core::ErrorKind::TooManyVolumes;
use vdsmstore_core::options::{CheckOptions, CopyOptions, CreateOptions};
use vdsmstore_core::{ErrorKind, Status};
use vdsmstore_tests::scene::{Scene, fails, ids};
use vdsmstore_tests::tree::unchanged;

/// Volumes that an image's data may be spread over.
const LIMIT: usize = 250;

#[test]
fn chains_of_250_volumes() {
    let scene = Scene::new();
    let store = &scene.store;
    if store.get_storage_repository_info("B").unwrap().capabilities.reflink {
        return println!("the scratch directory can clone: there are no chains");
    }
    let disk = scene.disk("A", 1, 1);
    let deep = scene.disk("B", 2, 1);
    let started = std::time::Instant::now();
    let snapshots: Vec<String> = (1..LIMIT).map(|_| scene.snapshot("B", &deep)).collect();
    println!("{} snapshots in {:?}", snapshots.len(), started.elapsed());
    let before_last = snapshots.last().unwrap();
    let depth = |id: &str| store.get_image_info("B", id).unwrap().depth as usize;
    assert_eq!((depth(before_last), depth(&deep)), (LIMIT - 1, LIMIT));
    let repo = scene.repo("B");
    let error = fails(
        TooManyVolumes,
        unchanged(&repo, "snapshot", || store.create_snapshot("B", &deep, "{}", &CreateOptions::default())),
    );
    assert!(error.message().contains(&deep), "{error:?}");
    // As a nightly backup does that never removes any: the difference to the one before.
    let snapshot = CopyOptions { mutable: false, ..CopyOptions::default() };
    let last = &scene.copy("B", &disk, Some(before_last), &snapshot);
    assert_eq!(depth(last), LIMIT);
    let status = store.get_image_status("B", last).unwrap();
    assert_eq!(status.status, Status::Degraded, "{status:?}");
    // One more would be usable by nobody: it is refused, and nothing is left of it.
    let before = ids(store, "B");
    let repo = scene.repo("B");
    let refused = || store.copy_image("B", &disk, Some(last), "{}", &snapshot);
    let error = fails(TooManyVolumes, unchanged(&repo, "copy", refused));
    assert!(error.message().contains(last.as_str()), "{error:?}");
    let refused = || store.create_virtual_disk("B", None, Some(last), "{}", &CreateOptions::default());
    let error = fails(TooManyVolumes, unchanged(&repo, "create", refused));
    assert!(error.message().contains(last.as_str()), "{error:?}");
    assert_eq!(ids(store, "B"), before);
    // The limit is not the end: a whole copy, and what is built on the one before.
    scene.copy("B", &disk, None, &CopyOptions::default());
    let child = scene.create("B", None, Some(before_last), &CreateOptions::default());
    fails(TooManyVolumes, store.create_snapshot("B", &child, "{}", &CreateOptions::default()));
    let base = || store.copy_image("B", &disk, Some(&child), "{}", &CopyOptions::default());
    fails(TooManyVolumes, unchanged(&repo, "copy on a disk", base));
    assert!(scene.read("B", last) == scene.read("A", &disk));
    // Shorter again, and it goes on.
    let mut optimize = store.check_storage_repository("B", &CheckOptions::default()).unwrap();
    optimize.retain(|fix| fix.image_id.is_some_and(|id| id.to_string() == *last));
    let task =
        store.fix_storage_repository("B", &optimize[0], &vdsmstore_core::options::FixOptions::default());
    store.wait_task(&task.unwrap(), None).unwrap();
    let copy = scene.copy("B", &disk, Some(last), &snapshot);
    assert!(scene.read("B", &copy) == scene.read("A", &disk));
    fails(ErrorKind::ImageExists, {
        let options = CreateOptions { image_id: Some(copy), ..CreateOptions::default() };
        store.create_virtual_disk("B", None, Some(last), "{}", &options)
    });
}
