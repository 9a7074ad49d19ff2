//! Images and QEMU: each sees the other's locks, in both directions, and a prepared image outlives who prepared it.

#![allow(
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::large_stack_arrays,
    clippy::unwrap_used,
    reason = "the numbers of tests are small, and tests fail by panicking"
)]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vdsmstore_core::options::{
    CheckOptions, CopyOptions, CreateOptions, FixOptions, ForceOptions, ListOptions, PrepareOptions,
    RemoveOptions, Strategy,
};
use vdsmstore_core::{Error, ErrorKind, FixType, PreparedImage, Result, Status, Store};
use vdsmstore_tests::qemu::{Nbd, qemu_io, qemu_io_locked_out, qemu_io_works};
use vdsmstore_tests::records::record;
use vdsmstore_tests::{at, new_repo, prepared, scratch, settle, store, write};

const MIB: i64 = 1 << 20;
const SIZE: i64 = 4 * MIB;

/// A repository with a raw disk, and a disk that is an overlay of a snapshot.
struct Scene {
    root: TempDir,
    store: Store,
    raw: String,
    overlay: String,
    /// What `overlay` is built on.
    snapshot: String,
}

impl Scene {
    fn new() -> Scene {
        let root = scratch();
        let store = store("here");
        new_repo(&store, root.path(), "A");
        new_repo(&store, root.path(), "B");
        let plain = CreateOptions::default();
        let disk = |base: Option<&str>| {
            let size = base.is_none().then_some(SIZE);
            let id = store.create_virtual_disk("A", size, base, "{}", &plain).unwrap().to_string();
            write(&store, "A", &id, |image| image.write(MIB, &[7; 65536]));
            id
        };
        let raw = disk(None);
        let snapshot = store.create_snapshot("A", &disk(None), "{}", &plain).unwrap().to_string();
        let overlay = disk(Some(&snapshot));
        Scene { root, store, raw, overlay, snapshot }
    }

    fn disks(&self) -> [(&str, &str); 2] {
        [("raw", &self.raw), ("qcow2", &self.overlay)]
    }

    /// Where an image lies.
    fn path(&self, id: &str) -> String {
        prepared(&self.store, "A", id, |prepared| prepared.path.clone())
    }

    /// Another store on the same repositories.
    fn join(&self, host: &str) -> Store {
        let other = store(host);
        connect(&other, self.root.path());
        other
    }
}

fn connect(store: &Store, root: &Path) {
    for name in ["A", "B"] {
        store.connect_storage_repository(name, "localfs-1.0", &at(&root.join(name))).unwrap();
    }
}

fn in_use<T>(what: &str, result: Result<T>, id: &str) -> Error {
    let Err(error) = result else { panic!("{what}: not refused") };
    assert_eq!(error.kind(), ErrorKind::ImageInUse, "{what}: {error:?}");
    assert!(error.message().contains(id), "{what}: the image is not named: {error:?}");
    error
}

fn for_writing() -> PrepareOptions {
    PrepareOptions { read_only: false }
}

fn prepare(store: &Store, id: &str) -> Result<PreparedImage> {
    store.prepare_image("A", id, &for_writing())
}

fn teardown(store: &Store, id: &str) -> Result<()> {
    store.teardown_image("A", id, &ForceOptions::default())
}

fn copy(store: &Store, id: &str) -> Result<()> {
    let task = CopyOptions { task_id: Some("copy".into()), ..CopyOptions::default() };
    store.copy_image("B", id, None, "{}", &task)?;
    store.wait_task("copy", None)
}

#[test]
fn qemu_that_writes_keeps_everybody_out() {
    let scene = Scene::new();
    let Scene { store, .. } = &scene;
    for (format, id) in scene.disks() {
        let nbd = Nbd::start(&scene.path(id), format, false);
        in_use("open rw", store.open_image("A", id, true), id);
        in_use("open r", store.open_image("A", id, false), id);
        in_use("snapshot", store.create_snapshot("A", id, "{}", &CreateOptions::default()), id);
        in_use("remove", store.remove_image("A", id, &RemoveOptions::default()), id);
        in_use("copy", copy(store, id), id);
        assert_ne!(store.get_image_status("A", id).unwrap().status, Status::Broken);
        nbd.stop();
        write(store, "A", id, |image| image.write(0, &[1; 512]));
        copy(store, id).unwrap();
        store.create_snapshot("A", id, "{}", &CreateOptions::default()).unwrap();
        store.remove_image("A", id, &RemoveOptions::default()).unwrap();
    }
}

#[test]
fn qemu_that_reads_keeps_writers_out() {
    let scene = Scene::new();
    let Scene { store, .. } = &scene;
    for (format, id) in scene.disks() {
        let nbd = Nbd::start(&scene.path(id), format, true);
        in_use("open rw", store.open_image("A", id, true), id);
        in_use("snapshot", store.create_snapshot("A", id, "{}", &CreateOptions::default()), id);
        in_use("remove", store.remove_image("A", id, &RemoveOptions::default()), id);
        store.open_image("A", id, false).unwrap().close().unwrap();
        copy(store, id).unwrap();
        nbd.stop();
        write(store, "A", id, |image| image.write(0, &[1; 512]));
    }
}

#[test]
fn what_we_write_qemu_cannot_open() {
    let scene = Scene::new();
    let Scene { store, .. } = &scene;
    for (format, id) in scene.disks() {
        let path = scene.path(id);
        let open = store.open_image("A", id, true).unwrap();
        assert!(qemu_io_locked_out(&path, format, false), "{format}");
        assert!(qemu_io_locked_out(&path, format, true), "{format}");
        open.close().unwrap();
        assert!(qemu_io_works(&path, format, true, &["read -P 7 1M 64k"]), "{format}");
        assert!(qemu_io_works(&path, format, false, &["write -P 9 1M 64k"]), "{format}");
        let mut data = [0; 4];
        store.open_image("A", id, false).unwrap().read(MIB, &mut data).unwrap();
        assert_eq!(data, [9; 4]);
    }
}

#[test]
fn what_we_read_qemu_can_read() {
    let scene = Scene::new();
    let Scene { store, .. } = &scene;
    for (format, id) in scene.disks() {
        let path = scene.path(id);
        let open = store.open_image("A", id, false).unwrap();
        assert!(qemu_io_locked_out(&path, format, false), "{format}");
        assert!(qemu_io_works(&path, format, true, &["read -P 7 1M 64k"]), "{format}");
        open.close().unwrap();
        assert!(qemu_io_works(&path, format, false, &["read -P 7 1M 64k"]), "{format}");
    }
}

#[test]
fn a_copy_keeps_writers_out_of_its_source() {
    let scene = Scene::new();
    let Scene { store, .. } = &scene;
    let size = 768 * MIB;
    let id = store
        .create_virtual_disk("A", Some(size), None, "{}", &CreateOptions::default())
        .unwrap()
        .to_string();
    let data = vec![3; MIB as usize];
    write(store, "A", &id, |image| (0..768).try_for_each(|i| image.write(i * MIB, &data)));
    let path = scene.path(&id);
    let running = || store.list_tasks().unwrap().iter().any(|task| task.bytes_done > 0);
    let mut seen = 0;
    for _ in 0..5 {
        let made = store.copy_image("B", &id, None, "{}", &CopyOptions::default()).unwrap().to_string();
        while !running() && !store.list_tasks().unwrap().is_empty() {}
        let (locked, readable) =
            (qemu_io_locked_out(&path, "raw", false), qemu_io_works(&path, "raw", true, &["read 0 64k"]));
        let open = store.open_image("A", &id, true);
        if running() {
            seen += 1;
            assert!(locked, "QEMU could write what is being copied");
            assert!(readable, "QEMU could not read what is being copied");
            in_use("open rw", open, &id);
        } else {
            drop(open);
        }
        settle(store, "B", &made);
        store.remove_image("B", &made, &RemoveOptions::default()).unwrap();
        if seen > 0 {
            break;
        }
    }
    assert!(seen > 0, "no copy was slow enough to be looked at");
    assert!(qemu_io_works(&path, "raw", false, &["write 0 64k"]));
}

#[test]
fn a_prepared_disk_is_written_by_qemu_and_nobody_else() {
    let scene = Scene::new();
    let Scene { store, .. } = &scene;
    let other = scene.join("there");
    for (format, id) in scene.disks() {
        let prepared = prepare(store, id).unwrap();
        assert_eq!((prepared.format.as_str(), prepared.read_only), (format, false));
        assert_eq!(prepare(store, id).unwrap().path, prepared.path, "prepared twice is prepared once");
        let held = store.get_image_info("A", id).unwrap().prepared.unwrap();
        assert_eq!((held.host_id.as_str(), held.mode.as_str()), ("here", "prepare"));
        assert!(qemu_io_works(&prepared.path, format, false, &["write -P 5 1M 64k", "flush"]));
        for store in [store, &other] {
            in_use("open rw", store.open_image("A", id, true), id);
            in_use("open r", store.open_image("A", id, false), id);
            in_use("snapshot", store.create_snapshot("A", id, "{}", &CreateOptions::default()), id);
            in_use("remove", store.remove_image("A", id, &RemoveOptions::default()), id);
            let error = in_use("copy", copy(store, id), id);
            assert_eq!(error.details().get("host").and_then(|host| host.as_str()), Some("here"), "{error:?}");
        }
        in_use("prepare", prepare(&other, id), id);
        in_use("disconnect", store.disconnect_storage_repository("A", &ForceOptions::default()), id);
        teardown(store, id).unwrap();
        teardown(store, id).unwrap();
        assert_eq!(store.get_image_info("A", id).unwrap().prepared, None);
        let mut data = [0; 4];
        other.open_image("A", id, false).unwrap().read(MIB, &mut data).unwrap();
        assert_eq!(data, [5; 4]);
    }
}

#[test]
fn the_nodes_of_a_prepared_overlay_name_the_whole_chain() {
    let scene = Scene::new();
    let prepared = prepare(&scene.store, &scene.overlay).unwrap();
    let below = &prepared.blockdev["backing"];
    assert_eq!(prepared.blockdev["driver"], "qcow2");
    assert_eq!(below["driver"], "raw");
    assert_eq!(below["read-only"], true);
    assert!(prepared.libvirt.contains(below["file"]["filename"].as_str().unwrap()), "{}", prepared.libvirt);
    let json = format!("json:{}", prepared.blockdev);
    let output = Command::new("qemu-io")
        .args(["-c", "read -P 7 1M 64k", "-c", "write 0 64k", &json])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    teardown(&scene.store, &scene.overlay).unwrap();
}

/// An image that moved while the disk on it was open is where the disk's header says when QEMU opens that.
#[test]
fn the_header_of_a_prepared_overlay_names_the_whole_chain() {
    let scene = Scene::new();
    let Scene { store, overlay, snapshot, .. } = &scene;
    let open = store.open_image("A", overlay, true).unwrap();
    store.set_image_strategy("A", snapshot, Strategy::Performance).unwrap();
    let fixes = store.check_storage_repository("A", &CheckOptions::default()).unwrap();
    for fix in fixes.iter().filter(|fix| fix.fix_type == FixType::Optimize) {
        let task = store.fix_storage_repository("A", fix, &FixOptions::default()).unwrap();
        store.wait_task(&task, None).unwrap();
    }
    open.close().unwrap();
    let prepared = prepare(store, overlay).unwrap();
    let arguments = ["info", "--backing-chain", "--output=json", "-U", &prepared.path];
    let output = Command::new("qemu-img").args(arguments).output().unwrap();
    let chain: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let below = &prepared.blockdev["backing"]["file"]["filename"];
    assert_eq!(chain[1]["filename"], *below, "{chain:#}");
    let record = record(&scene.root.path().join("A"), "images", snapshot).unwrap();
    assert!(below.as_str().unwrap().ends_with(record["volume"].as_str().unwrap()), "{below}");
    teardown(store, overlay).unwrap();
}

/// A file outside is not imported while a program writes it.
#[test]
fn qemu_that_writes_keeps_its_file_from_being_imported() {
    let scene = Scene::new();
    let file = scene.root.path().join("file.raw");
    std::fs::write(&file, vec![3; 1 << 20]).unwrap();
    let path = file.to_str().unwrap();
    let import = || scene.store.import_image("A", path, "raw", "{}", &CreateOptions::default());
    let nbd = Nbd::start(path, "raw", false);
    let error = import().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ImageInUse, "{error:?}");
    nbd.stop();
    let reader = Nbd::start(path, "raw", true);
    let id = import().unwrap().to_string();
    settle(&scene.store, "A", &id);
    reader.stop();
}

#[test]
fn a_prepared_disk_outlives_its_store() {
    let scene = Scene::new();
    for (format, id) in scene.disks() {
        let first = scene.join("host");
        let path = prepare(&first, id).unwrap().path;
        first.close().unwrap();
        // Whoever was given the path may go on.
        assert!(qemu_io_works(&path, format, false, &["write -P 6 2M 64k"]));
        let other = scene.join("other");
        in_use("open rw", other.open_image("A", id, true), id);
        in_use("open r", other.open_image("A", id, false), id);
        in_use("prepare", prepare(&other, id), id);
        let error = in_use("teardown", teardown(&other, id), id);
        assert_eq!(error.details().get("host").and_then(|host| host.as_str()), Some("host"), "{error:?}");
        in_use("remove", other.remove_image("A", id, &RemoveOptions::default()), id);
        // The same host goes on with it.
        let second = scene.join("host");
        assert_eq!(prepare(&second, id).unwrap().path, path);
        // Another process of it does not give back what this one holds.
        let third = scene.join("host");
        in_use("teardown beside it", teardown(&third, id), id);
        second.close().unwrap();
        teardown(&third, id).unwrap();
        write(&other, "A", id, |image| image.write(0, &[1; 512]));
        // A host that is known to be dead.
        prepare(&third, id).unwrap();
        third.close().unwrap();
        other.teardown_image("A", id, &ForceOptions { force: true }).unwrap();
        write(&other, "A", id, |image| image.write(0, &[2; 512]));
    }
}

#[test]
fn no_teardown_under_a_running_qemu() {
    let scene = Scene::new();
    let Scene { store, .. } = &scene;
    for (format, id) in scene.disks() {
        let prepared = prepare(store, id).unwrap();
        let nbd = Nbd::start(&prepared.path, format, false);
        in_use("teardown", teardown(store, id), id);
        let again = scene.join("here");
        in_use("teardown elsewhere", teardown(&again, id), id);
        let output =
            Command::new("qemu-io").args(["-f", "raw", "-c", "write 0 64k", &nbd.uri()]).output().unwrap();
        assert!(output.status.success(), "the guest was disturbed: {output:?}");
        nbd.stop();
        teardown(store, id).unwrap();
    }
}

#[test]
fn snapshots_are_prepared_for_reading_by_many() {
    let scene = Scene::new();
    let Scene { store, .. } = &scene;
    let snapshot =
        store.create_snapshot("A", &scene.overlay, "{}", &CreateOptions::default()).unwrap().to_string();
    let error = prepare(store, &snapshot).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ReadOnlyImage);
    let read_only = PrepareOptions { read_only: true };
    let other = scene.join("there");
    let prepared = store.prepare_image("A", &snapshot, &read_only).unwrap();
    assert_eq!(other.prepare_image("A", &snapshot, &read_only).unwrap().path, prepared.path);
    let nbd = Nbd::start(&prepared.path, &prepared.format, true);
    let output = qemu_io(&prepared.path, &prepared.format, true, &["read -P 7 1M 64k"]);
    assert!(output.status.success(), "{output:?}");
    // Others may read it, and write what is built on it.
    write(store, "A", &scene.overlay, |image| image.write(0, &[8; 512]));
    other.open_image("A", &snapshot, false).unwrap().close().unwrap();
    nbd.stop();
    teardown(store, &snapshot).unwrap();
    teardown(&other, &snapshot).unwrap();
}

/// The environment of the child: where, which image, what to do.
const CHILD: &str = "VDSMSTORE_TEST_CHILD";

/// Not a test by itself: another process with an image in use, until it is killed.
#[test]
#[ignore = "run by the tests that kill it"]
fn child() {
    let Ok(order) = std::env::var(CHILD) else { return };
    let order: Vec<&str> = order.split('|').collect();
    let [root, id, what] = order[..] else { panic!("{order:?}") };
    let store = store("child");
    connect(&store, Path::new(root));
    let open = match what {
        "open" => {
            let image = store.open_image("A", id, true).unwrap();
            image.write(0, &[0x77; 65536]).unwrap();
            image.flush().unwrap();
            Some(image)
        }
        "prepare" => prepare(&store, id).map(|_| None).unwrap(),
        _ => {
            store.copy_image("B", id, None, "{}", &CopyOptions::default()).unwrap();
            None
        }
    };
    eprintln!("ready");
    std::thread::sleep(Duration::from_mins(1));
    drop(open);
}

fn spawn(scene: &Scene, id: &str, what: &str) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--ignored", "--nocapture"])
        .env(CHILD, format!("{}|{id}|{what}", scene.root.path().display()))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let said: Vec<String> = lines.map(|line| line.unwrap()).take_while(|line| line != "ready").collect();
    assert!(child.try_wait().unwrap().is_none(), "the child ended: {said:#?}");
    child
}

fn kill(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_killed_process_leaves_its_image_open_to_the_next() {
    let scene = Scene::new();
    for (_, id) in scene.disks() {
        let child = spawn(&scene, id, "open");
        let error = in_use("open rw", scene.store.open_image("A", id, true), id);
        assert_eq!(error.details().get("host").and_then(|host| host.as_str()), Some("child"), "{error:?}");
        in_use("open r", scene.store.open_image("A", id, false), id);
        in_use("remove", scene.store.remove_image("A", id, &RemoveOptions::default()), id);
        kill(child);
        let started = Instant::now();
        let image = scene.store.open_image("A", id, true).unwrap();
        assert!(started.elapsed() < Duration::from_secs(1));
        let mut data = vec![0; 65536];
        image.read(0, &mut data).unwrap();
        assert!(data.iter().all(|byte| *byte == 0x77), "what was flushed is lost");
        image.close().unwrap();
        assert_eq!(scene.store.get_image_info("A", id).unwrap().prepared, None);
    }
}

#[test]
fn a_killed_process_leaves_what_it_prepared_to_its_host() {
    let scene = Scene::new();
    for (_, id) in scene.disks() {
        kill(spawn(&scene, id, "prepare"));
        in_use("open rw", scene.store.open_image("A", id, true), id);
        let successor = scene.join("child");
        prepare(&successor, id).unwrap();
        teardown(&successor, id).unwrap();
        write(&scene.store, "A", id, |image| image.write(0, &[1; 512]));
    }
}

#[test]
fn a_killed_copy_can_be_removed_and_made_again() {
    let scene = Scene::new();
    let Scene { store, .. } = &scene;
    let id = store
        .create_virtual_disk("A", Some(512 * MIB), None, "{}", &CreateOptions::default())
        .unwrap()
        .to_string();
    let data = vec![3; MIB as usize];
    write(store, "A", &id, |image| (0..512).try_for_each(|i| image.write(i * MIB, &data)));
    let snapshot = store.create_snapshot("A", &id, "{}", &CreateOptions::default()).unwrap().to_string();
    kill(spawn(&scene, &snapshot, "copy"));
    if store.get_image_status("B", &snapshot).unwrap().status == Status::Broken {
        let error = store.open_image("B", &snapshot, false).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ImageBroken);
    }
    store.copy_image("B", &snapshot, None, "{}", &CopyOptions::default()).unwrap();
    settle(store, "B", &snapshot);
    let mut last = [0; 512];
    store.open_image("B", &snapshot, false).unwrap().read(512 * MIB - 512, &mut last).unwrap();
    assert_eq!(last, [3; 512]);
    kill(spawn(&scene, &id, "copy"));
    let new = store.list_images("B", &ListOptions::default()).unwrap();
    for id in new {
        store.remove_image("B", &id.to_string(), &RemoveOptions::default()).unwrap();
    }
}
