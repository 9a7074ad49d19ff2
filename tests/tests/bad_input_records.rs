//! What lies in a repository is input too: damaged and hostile records, files and links. An image that they belong to is
//! refused or broken; nothing panics or hangs; the other images are as they were.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use vdsmstore_core::options::{
    CopyOptions, CreateOptions, ForceOptions, ListOptions, PrepareOptions, RemoveOptions, WaitOptions,
};
use vdsmstore_core::{ErrorKind, Result, Status, Store};
use vdsmstore_tests::scene::{Scene, bytes, read};
use vdsmstore_tests::{at, run, store, write};

/// No call takes longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// A disk on a snapshot on a snapshot, which is the victim; and a disk of its own, which is not.
struct Scenery {
    scene: Scene,
    disk: String,
    /// Raw: the disk's first data.
    lower: String,
    /// qcow2 on `lower`.
    upper: String,
    bystander: String,
}

impl Scenery {
    fn new() -> Scenery {
        let scene = Scene::new();
        let disk = scene.disk("A", 1, 2);
        let lower = scene.snapshot("A", &disk);
        write(&scene.store, "A", &disk, |image| image.write(0, &vec![2; 65536]));
        let upper =
            scene.store.create_snapshot("A", &disk, "[1]", &CreateOptions::default()).unwrap().to_string();
        let bystander = scene.disk("A", 9, 3);
        Scenery { scene, disk, lower, upper, bystander }
    }

    fn room(&self, room: &str, id: &str) -> PathBuf {
        self.scene.repo("A").join(room).join(&id[..3])
    }

    /// The newest record of an image or volume.
    fn record(&self, room: &str, id: &str) -> PathBuf {
        let names = fs::read_dir(self.room(room, id)).unwrap().map(|entry| entry.unwrap().path());
        names.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with(id)).max().unwrap()
    }

    fn json(path: &Path) -> Value {
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }

    /// The volume of an image.
    fn volume(&self, image: &str) -> String {
        Self::json(&self.record("images", image))["volume"].as_str().unwrap().to_owned()
    }

    fn data(&self, image: &str) -> PathBuf {
        self.scene.repo("A").join("data").join(self.volume(image))
    }
}

/// Changes a record, its generation kept.
fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut document = Scenery::json(path);
    change(&mut document);
    fs::write(path, document.to_string()).unwrap();
}

/// Runs `work` with a fresh store, in time.
fn in_time<T: Send + 'static>(
    what: &str,
    root: PathBuf,
    work: impl FnOnce(&Store) -> T + Send + 'static,
) -> T {
    let (sender, receiver) = mpsc::channel();
    let thread = thread::spawn(move || {
        let store = store("fresh");
        for name in ["A", "B"] {
            store.connect_storage_repository(name, "localfs-1.0", &at(&root.join(name))).unwrap();
        }
        let result = work(&store);
        let _ = store.close();
        let _ = sender.send(());
        result
    });
    assert!(
        receiver.recv_timeout(PATIENCE) != Err(mpsc::RecvTimeoutError::Timeout),
        "{what}: something hangs"
    );
    thread.join().unwrap_or_else(|_| panic!("{what}: something panicked"))
}

/// What a caller may be told of an image that is damaged.
fn acceptable(what: &str, call: &str, result: Result<()>) {
    if let Err(error) = result {
        let kinds = [
            ErrorKind::CorruptRecord,
            ErrorKind::CorruptImage,
            ErrorKind::ImageBroken,
            ErrorKind::ImageNotFound,
            ErrorKind::VersionTooNew,
            ErrorKind::UnsupportedOperation,
            ErrorKind::ReadOnlyImage,
            ErrorKind::NotADisk,
            ErrorKind::NotASnapshot,
            ErrorKind::TooManyVolumes,
            ErrorKind::IoError,
            ErrorKind::InvalidSize,
            ErrorKind::ImageInUse,
        ];
        assert!(kinds.contains(&error.kind()), "{what}: {call}: {error:?}");
        assert!(!error.message().contains('\n'), "{what}: {call}: {error:?}");
    }
}

/// All verbs on the victims, then the bystander.
fn survey(what: &str, scenery: &Scenery, readable: bool) {
    let victims = [scenery.disk.clone(), scenery.lower.clone(), scenery.upper.clone()];
    let (bystander, text) = (scenery.bystander.clone(), what.to_owned());
    in_time(what, scenery.scene.root.path().to_path_buf(), move |store| {
        let what = text.as_str();
        let mut unusable = 0;
        for id in &victims {
            let status = store.get_image_status("A", id);
            let open = store.open_image("A", id, false).and_then(|image| {
                let mut data = vec![0; usize::try_from(image.size()?.min(8 << 20)).unwrap()];
                image.read(0, &mut data)?;
                image.extents(0, 1000).map(drop)
            });
            unusable += u32::from(open.is_err());
            if let (Ok(status), Err(_)) = (&status, &open)
                && status.status == Status::Broken
            {
                assert!(!readable, "{what}: {id}");
            }
            acceptable(what, "status", status.map(drop));
            acceptable(what, "read", open);
            acceptable(what, "info", store.get_image_info("A", id).map(drop));
            let wait = store.wait_image("A", id, Some(Duration::from_secs(5)), &WaitOptions::default());
            acceptable(what, "wait", wait.map(drop));
            let prepared = store.prepare_image("A", id, &PrepareOptions { read_only: true });
            acceptable(what, "prepare", prepared.map(drop));
            acceptable(what, "teardown", store.teardown_image("A", id, &ForceOptions::default()));
            acceptable(what, "user data", store.set_image_user_data("A", id, "[2]"));
            let made = store.create_virtual_disk("A", None, Some(id), "{}", &CreateOptions::default());
            acceptable(what, "base", made.map(drop));
            let copied = store.copy_image("B", id, None, "{}", &CopyOptions::default());
            acceptable(what, "copy", copied.map(drop));
            acceptable(
                what,
                "snapshot",
                store.create_snapshot("A", id, "{}", &CreateOptions::default()).map(drop),
            );
            acceptable(what, "open rw", store.open_image("A", id, true).map(drop));
        }
        assert!(!readable || unusable == 0, "{what}: made images unusable");
        // The others are there, listed, and work.
        let listed = store.list_images("A", &ListOptions::default());
        let listed = listed.unwrap_or_else(|error| panic!("{what}: the list fails: {error:?}"));
        assert!(listed.iter().any(|id| id.to_string() == bystander), "{what}: the bystander is not listed");
        store.get_storage_repository_info("A").unwrap_or_else(|error| panic!("{what}: {error:?}"));
        assert!(read(store, "A", &bystander) == bytes(9, 3), "{what}: the bystander has changed");
        write(store, "A", &bystander, |image| image.write(0, &vec![9; 65536]));
        let snapshot =
            store.create_snapshot("A", &bystander, "{}", &CreateOptions::default()).unwrap().to_string();
        store.remove_image("A", &snapshot, &RemoveOptions::default()).unwrap();
        for id in &victims {
            acceptable(what, "remove", store.remove_image("A", id, &RemoveOptions::default()));
        }
        for _ in 0..200 {
            if store.list_tasks().unwrap().is_empty() {
                break;
            }
            thread::sleep(Duration::from_millis(20));
        }
        assert!(read(store, "A", &bystander) == bytes(9, 3), "{what}: the bystander has changed");
    });
}

/// Replaces a file, in turn, by everything that it should not be.
fn damage(file: impl Fn(&Scenery) -> PathBuf) {
    type Change = (&'static str, fn(&Path));
    let changes: &[Change] = &[
        ("empty", |path| fs::write(path, "").unwrap()),
        ("half", |path| {
            let bytes = fs::read(path).unwrap();
            fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
        }),
        ("garbage", |path| fs::write(path, [0xff, 0xfe, 0, 1, 2, 3]).unwrap()),
        ("another document", |path| fs::write(path, "{\"a\":[1,2,{}]}").unwrap()),
        ("deep", |path| fs::write(path, "[".repeat(60_000)).unwrap()),
        ("huge", |path| fs::File::options().write(true).open(path).unwrap().set_len(1 << 40).unwrap()),
        ("a link", |path| {
            fs::remove_file(path).unwrap();
            symlink("/etc/passwd", path).unwrap();
        }),
        ("a dangling link", |path| {
            fs::remove_file(path).unwrap();
            symlink("/nowhere", path).unwrap();
        }),
        ("a directory", |path| {
            fs::remove_file(path).unwrap();
            fs::create_dir(path).unwrap();
        }),
        ("a pipe", |path| {
            fs::remove_file(path).unwrap();
            run("mkfifo", &[path.to_str().unwrap()]);
        }),
        ("a device", |path| {
            fs::remove_file(path).unwrap();
            symlink("/dev/zero", path).unwrap();
        }),
        ("missing", |path| fs::remove_file(path).unwrap()),
    ];
    for (what, change) in changes {
        let scenery = Scenery::new();
        let path = file(&scenery);
        let passwd = fs::read("/etc/passwd").unwrap();
        change(&path);
        survey(&format!("{} is {what}", path.display()), &scenery, false);
        assert_eq!(fs::read("/etc/passwd").unwrap(), passwd, "a link was followed");
    }
}

#[test]
fn damaged_image_records() {
    damage(|scenery| scenery.record("images", &scenery.upper));
}

#[test]
fn damaged_image_records_of_disks() {
    damage(|scenery| scenery.record("images", &scenery.disk));
}

#[test]
fn damaged_volume_records() {
    damage(|scenery| scenery.record("volumes", &scenery.volume(&scenery.lower)));
}

#[test]
fn damaged_volumes() {
    damage(|scenery| scenery.data(&scenery.upper));
}

#[test]
fn damaged_user_data() {
    damage(|scenery| {
        let names = fs::read_dir(scenery.room("blobs", &scenery.upper)).unwrap();
        names
            .map(|entry| entry.unwrap().path())
            .find(|path| path.to_str().unwrap().contains(&scenery.upper))
            .unwrap()
    });
}

type Edit = (&'static str, fn(&mut Value));

#[test]
fn fields_of_images_that_cannot_be() {
    let edits: &[Edit] = &[
        ("id", |record| record["id"] = json!("00000000-0000-4000-8000-000000000000")),
        ("id no uuid", |record| record["id"] = json!("../../x")),
        ("size 0", |record| record["size"] = json!(0)),
        ("size 1", |record| record["size"] = json!(1)),
        ("size negative", |record| record["size"] = json!(-512)),
        ("size huge", |record| record["size"] = json!(u64::MAX)),
        ("size large", |record| record["size"] = json!((1_u64 << 53) - 512)),
        ("size real", |record| record["size"] = json!(1e300)),
        ("size text", |record| record["size"] = json!("512")),
        ("kind", |record| record["kind"] = json!("template")),
        ("hidden", |record| record["kind"] = json!("hidden")),
        ("kind of a disk", |record| record["kind"] = json!("disk")),
        ("state", |record| record["state"] = json!("absorbed")),
        ("schema", |record| record["schema"] = json!(99)),
        ("schema text", |record| record["schema"] = json!("1")),
        ("volume of nobody", |record| record["volume"] = json!("00000000-0000-4000-8000-000000000000")),
        ("volume path", |record| record["volume"] = json!("../../etc/passwd")),
        ("volume is next", |record| record["next"] = record["volume"].clone()),
        ("open snapshot", |record| record["open"] = json!({"host": "x"})),
        ("frozen by itself", |record| record["freeze"] = json!([record["id"].clone()])),
        ("user data of nobody", |record| {
            record["userData"] = json!({"blob": "00000000-0000-4000-8000-000000000000", "length": 1});
        }),
        ("epoch", |record| record["epoch"] = json!(u64::MAX)),
        ("list", |record| *record = json!([record.clone()])),
    ];
    for victim in ["disk", "upper"] {
        for (what, change) in edits {
            let scenery = Scenery::new();
            let id = if victim == "disk" { &scenery.disk } else { &scenery.upper };
            edit(&scenery.record("images", id), change);
            survey(&format!("{victim}: {what}"), &scenery, false);
        }
    }
}

#[test]
fn fields_of_volumes_that_cannot_be() {
    let edits: &[Edit] = &[
        ("size 0", |record| record["size"] = json!(0)),
        ("size smaller", |record| record["size"] = json!(512)),
        ("size large", |record| record["size"] = json!((1_u64 << 53) - 512)),
        ("format", |record| record["format"] = json!("vmdk")),
        ("other format", |record| {
            record["format"] = json!(if record["format"] == "raw" { "qcow2" } else { "raw" });
        }),
        ("state", |record| record["state"] = json!("doomed")),
        ("filling", |record| record["state"] = json!("filling")),
        ("filling from nothing", |record| {
            record["state"] = json!("filling");
            record["fill"] = json!({"how": "copy"});
        }),
        ("schema", |record| record["schema"] = json!(2)),
        ("mirror", |record| record["mirror"] = json!("00000000-0000-4000-8000-000000000000")),
        ("backing of nobody", |record| {
            record["format"] = json!("qcow2");
            record["backing"] = json!({"image": "00000000-0000-4000-8000-000000000000", "size": 512});
        }),
        ("backing size", |record| {
            if record["backing"].is_object() {
                record["backing"]["size"] = json!(1);
            }
        }),
        ("backing path", |record| record["backing"] = json!({"image": "/etc/passwd", "size": 512})),
    ];
    for victim in ["lower", "upper"] {
        for (what, change) in edits {
            let scenery = Scenery::new();
            let id = if victim == "lower" { &scenery.lower } else { &scenery.upper };
            edit(&scenery.record("volumes", &scenery.volume(id)), change);
            let harmless = *what == "mirror" || (*what == "backing size" && victim == "lower");
            survey(&format!("{victim}: {what}"), &scenery, harmless);
        }
    }
}

#[test]
fn images_built_on_themselves() {
    for over in ["itself", "each other"] {
        let scenery = Scenery::new();
        let base = if over == "itself" { scenery.lower.clone() } else { scenery.upper.clone() };
        let size = bytes(0, 0).len();
        edit(&scenery.record("volumes", &scenery.volume(&scenery.lower)), |record| {
            record["format"] = json!("qcow2");
            record["backing"] = json!({"image": base, "size": size});
        });
        for id in [&scenery.lower, &scenery.upper, &scenery.disk] {
            let status = scenery.scene.store.get_image_status("A", id).unwrap();
            assert_eq!(status.status, Status::Broken, "{over}");
            let error = scenery.scene.store.open_image("A", id, false).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ImageBroken, "{over}: {error:?}");
        }
        survey(over, &scenery, false);
    }
}

#[test]
fn the_last_generation() {
    let scenery = Scenery::new();
    let record = scenery.record("images", &scenery.upper);
    fs::copy(&record, record.with_file_name(format!("{}.ffffffffffffffff", scenery.upper))).unwrap();
    survey("the last generation", &scenery, true);
}

#[test]
fn names_that_are_none_of_ours() {
    let scenery = Scenery::new();
    let images = scenery.room("images", &scenery.upper);
    for name in [
        "x",
        "..x",
        ".t.x.1",
        &format!("{}.1", scenery.upper),
        &format!("{}.000000000000000g", scenery.upper),
    ] {
        fs::write(images.join(name), "x").unwrap();
    }
    fs::create_dir(images.join("directory")).unwrap();
    let repo = scenery.scene.repo("A");
    fs::write(repo.join("images/zzz"), "x").unwrap();
    fs::write(repo.join("data/x"), "x").unwrap();
    fs::write(repo.join("hosts/x"), "x").unwrap();
    fs::write(repo.join("unknown"), "x").unwrap();
    survey("names", &scenery, true);
}

#[test]
fn shards_that_are_links() {
    let scenery = Scenery::new();
    let outside = scenery.scene.root.path().join("outside");
    let shard = scenery.room("images", &scenery.upper);
    fs::rename(&shard, &outside).unwrap();
    symlink(&outside, &shard).unwrap();
    let root = scenery.scene.root.path().to_path_buf();
    let upper = scenery.upper.clone();
    in_time("shard", root, move |store| {
        let error = store.get_image_status("A", &upper).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::CorruptRecord | ErrorKind::ImageNotFound), "{error:?}");
    });
}
