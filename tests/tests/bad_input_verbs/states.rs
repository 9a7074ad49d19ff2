//! Images in every state: intended, removed, prepared, open, being worked on; by this store, another of this host, or
//! another host.

use vdsmstore_core::ErrorKind::{ImageInUse, ImageNotFound};
use vdsmstore_core::options::{
    AutoFix, ExportOptions, ForceOptions, PrepareOptions, RemoveOptions, Strategy,
};
use vdsmstore_core::{ErrorKind, Image, Result, Store, StoreOptions};
use vdsmstore_tests::scene::{SIZE, bytes, off};
use vdsmstore_tests::tree::unchanged;

use super::bad_input_common::Images;
use super::{diff, grow, measure};

const READ: PrepareOptions = PrepareOptions { read_only: true };
const WRITE: PrepareOptions = PrepareOptions { read_only: false };

/// What the disk is in use for.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Use {
    OpenForReading,
    OpenForWriting,
    PreparedForReading,
    PreparedForWriting,
}

impl Use {
    const ALL: [Use; 4] =
        [Use::OpenForReading, Use::OpenForWriting, Use::PreparedForReading, Use::PreparedForWriting];

    fn writes(self) -> bool {
        matches!(self, Use::OpenForWriting | Use::PreparedForWriting)
    }

    fn begin(self, store: &Store, disk: &str) -> Option<Image> {
        match self {
            Use::OpenForReading | Use::OpenForWriting => {
                Some(store.open_image("A", disk, self.writes()).unwrap())
            }
            Use::PreparedForReading => store.prepare_image("A", disk, &READ).map(|_| None).unwrap(),
            Use::PreparedForWriting => store.prepare_image("A", disk, &WRITE).map(|_| None).unwrap(),
        }
    }
}

fn on_host(images: &Images, host: &str) -> Store {
    let mut options = StoreOptions::default();
    options.host_id = Some(host.to_owned());
    images.scene.join(options)
}

/// What a disk in use refuses: what would write it always, what would read it if it is being written.
#[test]
fn disks_in_use() {
    let mut refused = 0;
    for used in Use::ALL {
        for by in ["this store", "here", "elsewhere"] {
            let images = Images::new();
            let (store, disk) = (images.store(), images.disk.as_str());
            let other = (by != "this store").then(|| on_host(&images, by));
            let user = other.as_ref().unwrap_or(store);
            let held = used.begin(user, disk);
            let what = |verb: &str| format!("{verb}: the disk is {used:?} by {by}");
            let mut in_use = |verb: &str, call: &dyn Fn() -> Result<()>| {
                let error = images.refused(&what(verb), ImageInUse, disk, call);
                if used.writes() && by == "elsewhere" {
                    assert_eq!(error.details()["host"], "elsewhere", "{error:?}");
                }
                refused += 1;
            };
            in_use("resize", &|| grow(store, "A", disk, 2 * SIZE));
            in_use("open rw", &|| store.open_image("A", disk, true).map(drop));
            in_use("remove", &|| store.remove_image("A", disk, &RemoveOptions::default()));
            if !(used == Use::PreparedForWriting && by == "this store") {
                in_use("prepare rw", &|| store.prepare_image("A", disk, &WRITE).map(drop));
            }
            if used.writes() {
                in_use("open", &|| store.open_image("A", disk, false).map(drop));
                in_use("prepare", &|| store.prepare_image("A", disk, &READ).map(drop));
                in_use("snapshot", &|| store.create_snapshot("A", disk, "{}", &off()).map(drop));
                in_use("diff", &|| diff(store, "A", disk, None));
                in_use("base of a diff", &|| diff(store, "A", &images.snapshot, Some(disk)));
                in_use("measure", &|| measure(store, "A", disk, None));
                in_use("base of a measure", &|| measure(store, "A", &images.snapshot, Some(disk)));
                in_use("export", &|| {
                    let options = ExportOptions::default();
                    store.export_image("A", disk, &images.file("out"), "raw", &options).map(drop)
                });
            } else {
                unchanged(&images.scene.repo("A"), &what("reading"), || {
                    diff(store, "A", disk, None).unwrap();
                    measure(store, "A", disk, Some(&images.snapshot)).unwrap();
                });
            }
            if used == Use::PreparedForWriting && by != "this store" {
                in_use("teardown", &|| store.teardown_image("A", disk, &ForceOptions::default()));
            }
            if held.is_some() || by == "this store" {
                // The names of connections are the store's own.
                let name = |store: &Store| store.disconnect_storage_repository("A", &ForceOptions::default());
                let error = unchanged(&images.scene.repo("A"), "disconnect", || name(user)).unwrap_err();
                assert_eq!(error.kind(), ImageInUse, "{error:?}");
            }
            // What concerns the record alone goes on.
            store.set_image_strategy("A", disk, Strategy::Performance).unwrap();
            store.set_image_strategy("A", disk, Strategy::Space).unwrap();
            store.set_image_user_data("A", disk, "[1]").unwrap();
            store.stop_image_task("A", disk).unwrap();
            if let Some(image) = held {
                image.close().unwrap();
            } else {
                user.teardown_image("A", disk, &ForceOptions::default()).unwrap();
            }
            assert!(images.scene.read("A", disk) == bytes(1, 4), "{}", what("reading"));
            grow(store, "A", disk, 2 * SIZE).unwrap();
        }
    }
    println!("{refused} calls refused");
    assert!(refused > 90, "{refused}");
}

/// A snapshot in use cannot be removed; one that a snapshot's reader is on may be.
#[test]
fn snapshots_in_use() {
    for used in [Use::OpenForReading, Use::PreparedForReading] {
        for by in ["this store", "here", "elsewhere"] {
            let images = Images::new();
            let (store, snapshot) = (images.store(), images.snapshot.as_str());
            let other = (by != "this store").then(|| on_host(&images, by));
            let user = other.as_ref().unwrap_or(store);
            let held = used.begin(user, snapshot);
            let what = format!("{used:?} by {by}");
            images.refused(&what, ImageInUse, snapshot, || {
                store.remove_image("A", snapshot, &RemoveOptions::default())
            });
            images
                .refused(&what, ErrorKind::ReadOnlyImage, snapshot, || store.open_image("A", snapshot, true));
            images.refused(&what, ErrorKind::NotADisk, snapshot, || grow(store, "A", snapshot, 2 * SIZE));
            drop(held);
            if used == Use::PreparedForReading {
                user.teardown_image("A", snapshot, &ForceOptions::default()).unwrap();
            }
            store.remove_image("A", snapshot, &RemoveOptions::default()).unwrap();
            images.refused(&what, ImageNotFound, snapshot, || measure(store, "A", snapshot, None));
        }
    }
}

/// What is exported or compared is read; it tells by which task.
#[test]
fn disks_that_are_being_read_by_a_task() {
    let images = Images::new();
    let (store, disk) = (images.store(), images.disk.as_str());
    let options = ExportOptions {
        task_id: Some("reader".into()),
        bandwidth: Some(vdsmstore_core::options::Bandwidth(64 << 10)),
        ..ExportOptions::default()
    };
    store.export_image("A", disk, &images.file("out"), "raw", &options).unwrap();
    let calls: [(&str, &dyn Fn() -> Result<()>); 4] = [
        ("resize", &|| grow(store, "A", disk, 2 * SIZE)),
        ("open", &|| store.open_image("A", disk, true).map(drop)),
        ("prepare", &|| store.prepare_image("A", disk, &WRITE).map(drop)),
        ("remove", &|| store.remove_image("A", disk, &RemoveOptions::default())),
    ];
    for (what, call) in calls {
        let error = unchanged(&images.scene.repo("A"), what, call).unwrap_err();
        assert_eq!(error.kind(), ImageInUse, "{what}: {error:?}");
        if what != "remove" {
            assert_eq!(error.details()["taskId"], "reader", "{what}: {error:?}");
        }
    }
    assert_eq!(store.list_tasks().unwrap().len(), 1, "it was over before it was looked at");
    store.stop_image_task("A", disk).unwrap();
    assert_eq!(std::fs::read_dir(&images.files).unwrap().count(), 0, "a stopped export leaves something");
    store
        .remove_image("A", disk, &RemoveOptions { auto_fix: AutoFix::Off, ..RemoveOptions::default() })
        .unwrap();
}
