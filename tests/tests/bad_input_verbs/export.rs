//! Where an export cannot go, and what it leaves there.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::time::Duration;

use vdsmstore_core::ErrorKind::{self, InvalidParameter, NoSpace};
use vdsmstore_core::Store;
use vdsmstore_core::options::ExportOptions;
use vdsmstore_tests::mounts::{Mounted, can_mount};
use vdsmstore_tests::scene::{bytes, fails};
use vdsmstore_tests::tree::{tree, unchanged};
use vdsmstore_tests::{PATIENCE, run};

use super::bad_input_common::Images;

const OVERWRITE: ExportOptions =
    ExportOptions { overwrite: true, compress: None, task_id: None, bandwidth: None };

fn export(store: &Store, id: &str, path: &str, options: &ExportOptions) -> vdsmstore_core::Result<()> {
    let task = store.export_image("A", id, path, "raw", options)?;
    store.wait_task(&task, Some(PATIENCE))
}

#[test]
fn paths_of_no_files() {
    let images = Images::new();
    let (store, id) = (images.store(), images.snapshot.as_str());
    let path = |name: &str| images.file(name);
    fs::create_dir(path("directory")).unwrap();
    fs::write(path("file"), "mine").unwrap();
    run("mkfifo", &[&path("fifo")]);
    symlink(path("missing"), path("dangling")).unwrap();
    symlink(path("file"), path("link")).unwrap();
    symlink("loop", path("loop")).unwrap();
    let never = [
        String::new(),
        "/".into(),
        "out".into(),
        "./out".into(),
        "/..".into(),
        path("out\0"),
        path("missing/out"),
        path("file/out"),
        path("fifo/out"),
        path("loop/out"),
        path("dangling/out"),
        path("directory"),
        path("directory/.."),
        path("directory/"),
        path("out/"),
        path("out/."),
        path("dangling"),
        path("link"),
        path("loop"),
        "/dev/null".into(),
    ];
    for name in &never {
        for options in [ExportOptions::default(), OVERWRITE] {
            images.refused(name, InvalidParameter, "export path", || {
                store.export_image("A", id, name, "raw", &options)
            });
        }
    }
    images.refused("without overwrite", InvalidParameter, "overwrite", || {
        store.export_image("A", id, &path("file"), "raw", &ExportOptions::default())
    });
    export(store, id, &path("file"), &OVERWRITE).unwrap();
    assert!(fs::read(path("file")).unwrap() == bytes(1, 4));
    assert_eq!(fs::read_dir(&images.files).unwrap().count(), 6, "something is left");
}

/// The files of a repository are its own, whatever they are called: an export may not replace a volume.
#[test]
fn paths_in_repositories() {
    let images = Images::new();
    let (store, id) = (images.store(), images.snapshot.as_str());
    let (a, b) = (images.scene.repo("A"), images.scene.repo("B"));
    symlink(&a, images.files.join("to-a")).unwrap();
    symlink(a.join("data"), images.files.join("to-data")).unwrap();
    let volume = fs::read_dir(a.join("data")).unwrap().next().unwrap().unwrap().path();
    let volume_name = volume.file_name().unwrap().to_str().unwrap().to_owned();
    let paths = [
        a.join("x"),
        a.join("data/x"),
        volume,
        a.join("images/x"),
        b.join("x"),
        b.join("data").join(&volume_name),
        images.files.join("to-a/x"),
        images.files.join("to-data").join(&volume_name),
        images.files.join("../A/data").join(&volume_name),
        a.join("data/../../B/data/x"),
    ];
    for path in &paths {
        let path = path.to_str().unwrap();
        for options in [ExportOptions::default(), OVERWRITE] {
            images.refused(path, InvalidParameter, "export path", || {
                let task = store.export_image("A", id, path, "raw", &options)?;
                store.wait_task(&task, None).map(|()| task)
            });
        }
    }
    for id in [&images.disk, &images.snapshot] {
        assert!(images.scene.read("A", id) == bytes(1, 4), "{id}");
    }
    // Beside them is not in them.
    export(store, id, images.scene.root.path().join("A.raw").to_str().unwrap(), &ExportOptions::default())
        .unwrap();
}

/// What the file system refuses is what the task fails with.
#[test]
fn places_that_take_no_file() {
    let images = Images::new();
    let (store, id) = (images.store(), images.snapshot.as_str());
    let task_fails = |path: &str, kind: ErrorKind| {
        let what = || export(store, id, path, &ExportOptions::default());
        let error =
            fails(kind, unchanged(&images.files, path, || unchanged(&images.scene.repo("A"), path, what)));
        assert!(error.message().contains(path) && error.details().contains_key("errno"), "{error:?}");
    };
    // The name is too long with what it has until it is whole.
    task_fails(&images.file(&"x".repeat(255)), ErrorKind::IoError);
    task_fails("/proc/sys/x", ErrorKind::IoError);
    // What has that name is no file of an export.
    fs::create_dir(images.files.join("taken.part")).unwrap();
    task_fails(&images.file("taken"), ErrorKind::IoError);
    if !can_mount() {
        return println!("not root: no full and no read-only file system is tested");
    }
    let mounted = Mounted::new("ext4", 24);
    let path = mounted.path().join("out");
    let path = path.to_str().unwrap();
    fs::write(path, "mine").unwrap();
    let filler = fs::File::create(mounted.path().join("filler")).unwrap();
    let mut end = 0;
    while std::os::unix::fs::FileExt::write_all_at(&filler, &[0x55; 4096], end).is_ok() {
        end += 4096;
    }
    filler.sync_all().unwrap_or_default();
    assert!(end > 1 << 20, "the file system was full from the beginning");
    let before = tree(mounted.path());
    for format in ["raw", "qcow2"] {
        let task = store.export_image("A", id, path, format, &OVERWRITE).unwrap();
        let error = fails(NoSpace, store.wait_task(&task, None));
        assert!(error.message().contains("out.part"), "{error:?}");
        assert_eq!(tree(mounted.path()), before, "a failed export left something");
    }
    drop(filler);
    fs::remove_file(mounted.path().join("filler")).unwrap();
    export(store, id, path, &OVERWRITE).unwrap();
    assert!(fs::read(path).unwrap() == bytes(1, 4));
    mounted.remount("ro");
    let error = fails(
        ErrorKind::ReadOnlyRepository,
        export(store, id, mounted.path().join("new").to_str().unwrap(), &ExportOptions::default()),
    );
    assert!(error.message().contains("new.part"), "{error:?}");
}

/// Two exports to one name: the first goes on undisturbed, the second is refused. What has the name is whole.
#[test]
fn two_exports_to_one_name() {
    let images = Images::new();
    let (store, disk) = (images.store(), images.disk.as_str());
    vdsmstore_tests::write(store, "A", disk, |image| image.write(0, &vec![2; 4 << 20]));
    let path = images.file("out");
    images.slow_export("first", "out");
    let other = images.scene.another();
    for (store, options) in [(store, ExportOptions::default()), (store, OVERWRITE), (&other, OVERWRITE)] {
        fails(InvalidParameter, export(store, disk, &path, &options));
    }
    fails(ErrorKind::Timeout, store.wait_task("first", Some(Duration::ZERO)));
    store.wait_task("first", Some(PATIENCE)).unwrap();
    assert!(fs::read(&path).unwrap() == bytes(1, 4));
    assert!(!Path::new(&format!("{path}.part")).exists());
    assert_eq!(fs::metadata(&path).unwrap().nlink(), 1);
    // What a killed export left is nobody's.
    fs::write(format!("{path}.part"), "left over").unwrap();
    export(store, disk, &path, &OVERWRITE).unwrap();
    assert!(fs::read(&path).unwrap() == vec![2; 4 << 20]);
    assert_eq!(fs::read_dir(&images.files).unwrap().count(), 1);
}
