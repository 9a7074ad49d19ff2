//! Places that are no repositories, or cannot be written, or are full.

#![allow(clippy::cast_possible_wrap, clippy::unwrap_used, reason = "tests fail by panicking")]

use std::fs::{self, OpenOptions, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Map, Value, json};
use vdsmstore_core::ErrorKind::{
    ConnectionFailed, CorruptRecord, InvalidParameter, NotARepository, NotEmpty, VersionTooNew, WrongFormat,
};
use vdsmstore_core::options::{
    CheckOptions, CopyOptions, CreateOptions, ExportOptions, FixOptions, ForceOptions, FormatOptions,
    ListOptions, MeasureOptions, PrepareOptions, RemoveOptions, ResizeOptions, Strategy, WaitOptions,
};
use vdsmstore_core::{Error, ErrorKind, Fix, Result, Status, Store};
use vdsmstore_tests::mounts::{Mounted, can_mount};
use vdsmstore_tests::scene::{MIB, read};
use vdsmstore_tests::tree::{tree, unchanged};
use vdsmstore_tests::{at, new_repo, scratch, settle, store, write};

fn fails<T>(what: &str, kinds: &[ErrorKind], result: Result<T>) -> Error {
    let Err(error) = result else { panic!("{what}: not refused, expected {kinds:?}") };
    assert!(kinds.contains(&error.kind()), "{what}: expected {kinds:?}: {error:?}");
    error
}

fn plain() -> CreateOptions {
    CreateOptions::default()
}

fn parameters(value: &Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

#[test]
fn parameters_that_name_no_place() {
    let store = store("here");
    let wrong = [
        json!({}),
        json!({"path": ""}),
        json!({"path": "relative"}),
        json!({"path": "./x"}),
        json!({"path": null}),
        json!({"path": 1}),
        json!({"path": ["/tmp"]}),
        json!({"path": "/tmp\0x"}),
        json!({"path": "/nowhere/at/all", "pth": "/x"}),
        json!({"Path": "/nowhere/at/all"}),
    ];
    for value in &wrong {
        let what = value.to_string();
        let place = parameters(value);
        let error =
            fails(&what, &[InvalidParameter], store.connect_storage_repository("A", "localfs-1.0", &place));
        assert!(error.details().contains_key("parameter"), "{error:?}");
        let options = FormatOptions::default();
        fails(&what, &[InvalidParameter], store.format_storage_repository("localfs-1.0", &place, &options));
    }
    assert!(store.list_storage_repositories().unwrap().is_empty());
}

#[test]
fn places_that_are_no_repositories() {
    let root = scratch();
    let store = store("here");
    let path = |name: &str| root.path().join(name);
    fs::create_dir(path("empty")).unwrap();
    fs::create_dir(path("full")).unwrap();
    fs::write(path("full/file"), "x").unwrap();
    fs::write(path("file"), "x").unwrap();
    std::os::unix::fs::symlink(path("missing"), path("dangling")).unwrap();
    let before = tree(root.path());
    for (name, connect, format) in [
        ("missing", &[ConnectionFailed, NotARepository][..], &[ConnectionFailed, InvalidParameter][..]),
        ("dangling", &[ConnectionFailed, NotARepository], &[ConnectionFailed, InvalidParameter]),
        ("file", &[ConnectionFailed, NotARepository], &[ConnectionFailed, NotARepository, InvalidParameter]),
        (
            "file/below",
            &[ConnectionFailed, NotARepository],
            &[ConnectionFailed, NotARepository, InvalidParameter],
        ),
        ("full", &[NotARepository], &[NotEmpty]),
        ("empty", &[NotARepository], &[]),
    ] {
        let place = at(&path(name));
        let error = fails(name, connect, store.connect_storage_repository("A", "localfs-1.0", &place));
        assert!(error.message().contains(path(name).to_str().unwrap()), "{error:?}");
        if !format.is_empty() {
            let options = FormatOptions::default();
            let error = fails(name, format, store.format_storage_repository("localfs-1.0", &place, &options));
            assert!(error.message().contains(path(name).to_str().unwrap()), "{error:?}");
        }
    }
    assert_eq!(tree(root.path()), before);
    // A link to a place is a place; what a file system has of itself is nothing.
    fs::create_dir(path("empty/lost+found")).unwrap();
    std::os::unix::fs::symlink(path("empty"), path("link")).unwrap();
    store.format_storage_repository("localfs-1.0", &at(&path("link")), &FormatOptions::default()).unwrap();
    store.connect_storage_repository("A", "localfs-1.0", &at(&path("empty"))).unwrap();
}

#[test]
fn formatting_takes_owner_and_mode() {
    let root = scratch();
    let store = store("here");
    let place = root.path().join("A");
    fs::create_dir(&place).unwrap();
    for mode in [0o10_000, 0o600, 0, 0o077] {
        let options = FormatOptions { mode: Some(mode), ..FormatOptions::default() };
        let refused = || store.format_storage_repository("localfs-1.0", &at(&place), &options);
        let result = unchanged(&place, "mode", refused);
        fails("mode", &[InvalidParameter], result);
    }
    let options = FormatOptions { mode: Some(0o770), ..FormatOptions::default() };
    store.format_storage_repository("localfs-1.0", &at(&place), &options).unwrap();
    assert_eq!(fs::metadata(place.join("data")).unwrap().permissions().mode() & 0o7777, 0o770);
}

#[test]
fn a_descriptor_that_is_not_ours() {
    let root = scratch();
    let store = store("here");
    let path = new_repo(&store, root.path(), "A");
    store.disconnect_storage_repository("A", &ForceOptions::default()).unwrap();
    let descriptor = fs::read_dir(&path)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.is_file() && path.file_name().unwrap().to_str().unwrap().starts_with("descriptor"))
        .unwrap();
    let good = fs::read_to_string(&descriptor).unwrap();
    let edited = |key: &str, value: Value| {
        let mut document: Value = serde_json::from_str(&good).unwrap();
        document[key] = value;
        document.to_string()
    };
    for (text, kinds) in [
        (String::new(), &[CorruptRecord, NotARepository][..]),
        (good[..good.len() / 2].to_owned(), &[CorruptRecord]),
        ("[]".into(), &[CorruptRecord]),
        ("x".repeat(1 << 20), &[CorruptRecord]),
        ("[".repeat(60_000), &[CorruptRecord]),
        (edited("incompatible", json!(["teleportation"])), &[VersionTooNew]),
        (edited("format", json!("nfs-3.4")), &[WrongFormat]),
        (edited("format", json!("localfs-9.0")), &[VersionTooNew, WrongFormat]),
        (edited("format", json!(7)), &[CorruptRecord]),
    ] {
        fs::write(&descriptor, &text).unwrap();
        let error = fails(
            &text[..text.len().min(60)],
            kinds,
            store.connect_storage_repository("A", "localfs-1.0", &at(&path)),
        );
        assert!(error.message().contains(path.to_str().unwrap()), "{error:?}");
    }
    fs::write(&descriptor, &good).unwrap();
    store.connect_storage_repository("A", "localfs-1.0", &at(&path)).unwrap();
}

/// A small file system with a repository A: a disk with data, its snapshot, another disk.
struct Small {
    mounted: Mounted,
    root: tempfile::TempDir,
    store: Store,
    disk: String,
    snapshot: String,
    other: String,
}

impl Small {
    fn new() -> Option<Small> {
        if !can_mount() {
            println!("not root: nothing is tested");
            return None;
        }
        let (mounted, root) = (Mounted::new("ext4", 64), scratch());
        let store = store("here");
        new_repo(&store, mounted.path(), "A");
        new_repo(&store, root.path(), "B");
        let create =
            || store.create_virtual_disk("A", Some(8 * MIB), None, "{}", &plain()).unwrap().to_string();
        let (disk, other) = (create(), create());
        for id in [&disk, &other] {
            write(&store, "A", id, |image| image.write(0, &data(5)));
        }
        let snapshot = store.create_snapshot("A", &disk, r#"{"kept":1}"#, &plain()).unwrap().to_string();
        Some(Small { mounted, root, store, disk, snapshot, other })
    }

    fn path(&self) -> PathBuf {
        self.mounted.path().join("A")
    }

    fn intact(&self, ids: &[&String]) {
        for id in ids {
            assert!(read(&self.store, "A", id) == padded(5), "{id} has changed");
            assert_ne!(self.store.get_image_status("A", id).unwrap().status, Status::Broken);
        }
        let info = self.store.get_image_info("A", &self.snapshot).unwrap();
        assert_eq!(info.user_data.get(), r#"{"kept":1}"#);
    }

    fn quiet(&self) {
        while !self.store.list_tasks().unwrap().is_empty() {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn data(byte: u8) -> Vec<u8> {
    vec![byte; 4 << 20]
}

fn padded(byte: u8) -> Vec<u8> {
    let mut data = data(byte);
    data.resize(8 << 20, 0);
    data
}

/// Takes all space that there is.
fn fill(path: &Path) {
    let file = OpenOptions::new().write(true).create(true).truncate(true).open(path).unwrap();
    for size in [1 << 20, 4096, 1] {
        let block = vec![0x55; size];
        loop {
            let end = file.metadata().unwrap().len();
            if file.write_all_at(&block, end).is_err() {
                break;
            }
        }
    }
    file.sync_all().unwrap();
}

#[test]
fn work_that_does_not_fit() {
    let Some(small) = Small::new() else { return };
    let Small { store, disk, snapshot, other, .. } = &small;
    // The call records the intent, the work fails and says why.
    let fast = CreateOptions { strategy: Strategy::Performance, task_id: Some("big".into()), ..plain() };
    let kinds = [ErrorKind::NoSpace];
    match store.create_virtual_disk("A", Some(512 * MIB), None, "{}", &fast) {
        Err(error) => drop(fails("preallocation", &kinds, Err::<(), _>(error))),
        Ok(id) => {
            let id = id.to_string();
            let error = fails("preallocation", &kinds, store.wait_task("big", None));
            assert!(error.message().contains(small.path().to_str().unwrap()), "{error:?}");
            let status = store.get_image_status("A", &id).unwrap();
            assert_eq!(status.status, Status::Broken);
            assert!(status.last_error.is_some(), "{status:?}");
            store.remove_image("A", &id, &RemoveOptions::default()).unwrap();
        }
    }
    let large = store.create_virtual_disk("B", Some(100 * MIB), None, "{}", &plain()).unwrap().to_string();
    write(store, "B", &large, |image| (0..100).try_for_each(|i| image.write(i * MIB, &data(7)[..1 << 20])));
    let task = CopyOptions { task_id: Some("copy".into()), ..CopyOptions::default() };
    let copy = store.copy_image("A", &large, None, "{}", &task).unwrap().to_string();
    fails("copy", &kinds, store.wait_task("copy", None));
    let status = store.get_image_status("A", &copy).unwrap();
    assert!(status.status == Status::Broken && status.last_error.is_some(), "{status:?}");
    small.intact(&[disk, snapshot, other]);
    store.remove_image("A", &copy, &RemoveOptions::default()).unwrap();
    small.quiet();
    // Its space is there again.
    let again = store.copy_image("A", disk, None, "{}", &CopyOptions::default()).unwrap().to_string();
    settle(store, "A", &again);
    small.intact(&[disk, snapshot, other, &again]);
}

#[test]
fn a_full_file_system() {
    let Some(small) = Small::new() else { return };
    let Small { store, disk, snapshot, other, mounted, .. } = &small;
    let filler = mounted.path().join("filler");
    fill(&filler);
    let no_space = [ErrorKind::NoSpace];
    let path = small.path();
    let path = path.to_str().unwrap();
    let before = tree(&small.path());
    // What fits into blocks that are there already may succeed; else it is the lack of space that is told.
    let mut refused = 0;
    for round in 0..50 {
        let made: [(&str, Result<String>); 2] = [
            (
                "create",
                store.create_virtual_disk("A", Some(8 * MIB), None, "{}", &plain()).map(|id| id.to_string()),
            ),
            ("snapshot", store.create_snapshot("A", disk, "{}", &plain()).map(|id| id.to_string())),
        ];
        for (what, result) in made {
            if let Err(error) = result {
                let error = fails(what, &no_space, Err::<(), _>(error));
                assert!(
                    error.message().contains(path) || error.message().contains(disk.as_str()),
                    "{error:?}"
                );
                refused += 1;
            }
        }
        if refused > 3 && round > 3 {
            break;
        }
        fill(&mounted.path().join(format!("filler{round}")));
    }
    assert!(refused > 0, "everything fits into a full file system");
    small.intact(&[disk, snapshot, other]);
    // A write that does not fit fails; what was there stays.
    match store.open_image("A", other, true) {
        Ok(open) => {
            let failed = (0..8).map(|i| open.write(i * MIB, &data(6)[..1 << 20])).find_map(Result::err);
            let error = failed.or_else(|| open.flush().err()).expect("8 MiB fit into nothing");
            fails("write", &no_space, Err::<(), _>(error));
            let _ = open.close();
        }
        Err(error) => drop(fails("open", &no_space, Err::<(), _>(error))),
    }
    small.intact(&[disk, snapshot]);
    // Removal works, and gives the space back.
    let all: Vec<String> =
        store.list_images("A", &ListOptions::default()).unwrap().iter().map(ToString::to_string).collect();
    for id in all.iter().filter(|id| *id != snapshot && *id != disk) {
        store.remove_image("A", id, &RemoveOptions::default()).unwrap();
    }
    small.quiet();
    let data_file = |tree: &std::collections::BTreeMap<String, String>| {
        tree.keys().filter(|name| name.starts_with("data/")).count()
    };
    assert!(data_file(&tree(&small.path())) < data_file(&before), "no volume was deleted");
    let new = store.create_virtual_disk("A", Some(8 * MIB), None, "{}", &plain()).unwrap().to_string();
    write(store, "A", &new, |image| image.write(0, &data(5)[..1 << 20]));
    small.intact(&[disk, snapshot]);
    for id in [&new, disk, snapshot] {
        store.remove_image("A", id, &RemoveOptions::default()).unwrap();
    }
}

#[test]
fn a_read_only_file_system() {
    let Some(small) = Small::new() else { return };
    let Small { store, disk, snapshot, mounted, root, .. } = &small;
    store.disconnect_storage_repository("A", &ForceOptions::default()).unwrap();
    mounted.remount("ro");
    store.connect_storage_repository("A", "localfs-1.0", &at(&small.path())).unwrap();
    reads_only(store, disk, snapshot);
    let copy = store.copy_image("B", snapshot, None, "{}", &CopyOptions::default()).unwrap().to_string();
    settle(store, "B", &copy);
    assert!(read(store, "B", &copy) == padded(5));
    let fresh = root.path().join("fresh");
    fs::create_dir(&fresh).unwrap();
    let options = FormatOptions::default();
    let error = fails(
        "format",
        &[ErrorKind::ReadOnlyRepository, ErrorKind::RepositoryExists],
        store.format_storage_repository("localfs-1.0", &at(&small.path()), &options),
    );
    assert!(!error.message().is_empty());
    store.disconnect_storage_repository("A", &ForceOptions::default()).unwrap();
    mounted.remount("rw");
    store.connect_storage_repository("A", "localfs-1.0", &at(&small.path())).unwrap();
    small.intact(&[disk, snapshot]);
}

/// Everything that reads works; each changing verb is refused.
fn reads_only(store: &Store, disk: &str, snapshot: &str) {
    let info = store.get_storage_repository_info("A").unwrap();
    assert!(info.read_only && info.virtual_disks > 0, "{info:?}");
    assert!(!store.list_image_infos("A", &ListOptions::default()).unwrap().is_empty());
    for id in [disk, snapshot] {
        assert_ne!(store.get_image_status("A", id).unwrap().status, Status::Broken);
        assert!(read(store, "A", id) == padded(5));
        store.prepare_image("A", id, &PrepareOptions { read_only: true }).unwrap();
        store.teardown_image("A", id, &ForceOptions::default()).unwrap();
    }
    reads_for_others(store, disk, snapshot);
    let fix = json!({"type": "clean", "imageId": null, "description": "", "data": null,
        "cost": {"read": 0, "write": 0, "frees": 0, "needs": 0}});
    let fix: Fix = serde_json::from_value(fix).unwrap();
    let calls: [(&str, Result<()>); 12] = [
        ("create", store.create_virtual_disk("A", Some(512), None, "{}", &plain()).map(drop)),
        ("create on base", store.create_virtual_disk("A", None, Some(snapshot), "{}", &plain()).map(drop)),
        ("snapshot", store.create_snapshot("A", disk, "{}", &plain()).map(drop)),
        ("copy", store.copy_image("A", disk, None, "{}", &CopyOptions::default()).map(drop)),
        ("remove", store.remove_image("A", disk, &RemoveOptions::default())),
        ("user data", store.set_image_user_data("A", disk, "1")),
        ("open", store.open_image("A", disk, true).map(drop)),
        ("prepare", store.prepare_image("A", disk, &PrepareOptions { read_only: false }).map(drop)),
        ("import", store.import_image("A", "/etc/hostname", "raw", "{}", &plain()).map(drop)),
        ("resize", store.resize_virtual_disk("A", disk, 16 * MIB, &ResizeOptions::default())),
        ("strategy", store.set_image_strategy("A", disk, Strategy::Performance)),
        ("fix", store.fix_storage_repository("A", &fix, &FixOptions::default()).map(drop)),
    ];
    for (what, result) in calls {
        let error = fails(what, &[ErrorKind::ReadOnlyRepository], result);
        assert!(error.message().contains("\"A\""), "{error:?}");
    }
}

/// The verbs that read for somebody else, and those that wait and stop, need not write.
fn reads_for_others(store: &Store, disk: &str, snapshot: &str) {
    let outside = scratch();
    let file = outside.path().join("out");
    let path = file.to_str().unwrap();
    store.check_storage_repository("A", &CheckOptions { exact_cost: true }).unwrap();
    for id in [disk, snapshot] {
        let task = store.export_image(
            "A",
            id,
            path,
            "raw",
            &ExportOptions { overwrite: true, ..ExportOptions::default() },
        );
        store.wait_task(&task.unwrap(), None).unwrap();
        assert!(fs::read(&file).unwrap() == padded(5));
        assert!(!store.diff_images("A", id, None).unwrap().next_batch(10).unwrap().is_empty());
        assert!(store.measure_image("A", id, None, &MeasureOptions::default()).unwrap().required >= 4 << 20);
        store.stop_image_task("A", id).unwrap();
        store.wait_image("A", id, Some(Duration::ZERO), &WaitOptions::default()).unwrap();
    }
    assert!(store.diff_images("A", disk, Some(snapshot)).unwrap().next_batch(10).unwrap().is_empty());
}

const CHILD: &str = "VDSMSTORE_TEST_UNPRIVILEGED";

/// Not a test by itself: what somebody without rights sees.
#[test]
#[ignore = "run by a test as another user"]
fn child() {
    let Ok(order) = std::env::var(CHILD) else { return };
    let order: Vec<&str> = order.split('|').collect();
    let [root, disk, snapshot] = order[..] else { panic!("{order:?}") };
    let store = store("nobody");
    let connect = |name: &str, path: &Path| store.connect_storage_repository(name, "localfs-1.0", &at(path));
    let closed = Path::new(root).join("closed");
    let error = fails("closed", &[ErrorKind::PermissionDenied], connect("C", &closed));
    assert!(error.message().contains(closed.to_str().unwrap()), "{error:?}");
    let options = FormatOptions::default();
    let format =
        store.format_storage_repository("localfs-1.0", &at(&Path::new(root).join("empty")), &options);
    fails("format", &[ErrorKind::PermissionDenied], format);
    connect("A", &Path::new(root).join("A")).unwrap();
    reads_only(&store, disk, snapshot);
    let file = Path::new(root).join("A.raw");
    let task =
        store.export_image("A", disk, file.to_str().unwrap(), "raw", &ExportOptions::default()).unwrap();
    let error = fails("export", &[ErrorKind::PermissionDenied], store.wait_task(&task, None));
    assert!(error.message().contains("A.raw.part") && !file.exists(), "{error:?}");
    own_repository(&store, root);
}

/// A repository of one's own: what lies outside and belongs to others cannot be imported.
fn own_repository(store: &Store, root: &str) {
    let mine = scratch();
    new_repo(store, mine.path(), "M");
    let secret = Path::new(root).join("secret");
    let call = || store.import_image("M", secret.to_str().unwrap(), "raw", "{}", &plain());
    fails("import", &[ErrorKind::PermissionDenied], unchanged(&mine.path().join("M"), "import", call));
}

#[test]
fn without_permission() {
    if !can_mount() {
        return println!("not root: nothing is tested");
    }
    let root = scratch();
    let open = |path: &Path| fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    open(root.path());
    let store = store("root");
    for name in ["A", "closed", "empty"] {
        fs::create_dir(root.path().join(name)).unwrap();
    }
    let readable = FormatOptions { mode: Some(0o755), ..FormatOptions::default() };
    store.format_storage_repository("localfs-1.0", &at(&root.path().join("A")), &readable).unwrap();
    store
        .format_storage_repository("localfs-1.0", &at(&root.path().join("closed")), &FormatOptions::default())
        .unwrap();
    fs::set_permissions(root.path().join("closed"), Permissions::from_mode(0o700)).unwrap();
    store.connect_storage_repository("A", "localfs-1.0", &at(&root.path().join("A"))).unwrap();
    fs::write(root.path().join("secret"), [1; 512]).unwrap();
    fs::set_permissions(root.path().join("secret"), Permissions::from_mode(0o600)).unwrap();
    let disk = store.create_virtual_disk("A", Some(8 * MIB), None, "{}", &plain()).unwrap().to_string();
    write(&store, "A", &disk, |image| image.write(0, &data(5)));
    let snapshot = store.create_snapshot("A", &disk, "{}", &plain()).unwrap().to_string();
    let program = root.path().join("program");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    open(&program);
    let order = format!("{}|{disk}|{snapshot}", root.path().display());
    let output = Command::new(&program)
        .args(["--exact", "child", "--ignored", "--nocapture"])
        .env(CHILD, order)
        .current_dir("/")
        .uid(65534)
        .gid(65534)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "{output:?}");
}
