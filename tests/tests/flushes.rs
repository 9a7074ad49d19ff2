//! What localfs makes durable, and when, seen from the file system: every operation's calls in order, on a file system
//! that tells them. A content is synced before it gets its name, a name before anything is built upon it, data before the
//! record that vouches for it.

#![allow(
    clippy::cast_possible_wrap,
    clippy::field_reassign_with_default,
    clippy::unwrap_used,
    reason = "the numbers of tests are small, and tests fail by panicking"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use vdsmstore_core::options::{
    AutoFix, CheckOptions, CopyOptions, CreateOptions, ExportOptions, FixOptions, FormatOptions,
    RemoveOptions, ResizeOptions, Strategy,
};
use vdsmstore_core::{Store, StoreOptions};
use vdsmstore_faults::{Answer, Call, Errno, Fault, FaultFs};
use vdsmstore_tests::{at, scratch};

const SIZE: i64 = 640 << 10;

/// A repository on a file system that tells what is done to it.
struct Place {
    faults: FaultFs,
    _root: TempDir,
}

impl Place {
    fn new() -> Place {
        let root = scratch();
        let (source, mount) = (root.path().join("source"), root.path().join("mount"));
        fs::create_dir_all(source.join("A")).unwrap();
        fs::create_dir(&mount).unwrap();
        Place { faults: FaultFs::mount(&source, &mount).unwrap(), _root: root }
    }

    fn formatted() -> Place {
        let place = Place::new();
        let formatter = Store::new(StoreOptions::default()).unwrap();
        formatter
            .format_storage_repository("localfs-1.0", &at(&place.repo()), &FormatOptions::default())
            .unwrap();
        place
    }

    fn repo(&self) -> PathBuf {
        self.faults.path().join("A")
    }

    /// Tasks run in this thread, so that the order of the calls is that of the work.
    fn store(&self) -> Store {
        let mut options = StoreOptions::default();
        options.threads = Some(0);
        let store = Store::new(options).unwrap();
        store.connect_storage_repository("A", "localfs-1.0", &at(&self.repo())).unwrap();
        store
    }

    /// What `work` does, in order, with paths in the repository.
    fn watch<T>(&self, work: impl FnOnce() -> T) -> (T, Vec<(Call, PathBuf)>) {
        self.faults.count();
        let result = work();
        let calls = self.faults.disarm().calls.into_iter();
        let inside = |(call, path): (Call, PathBuf)| Some((call, path.strip_prefix("A").ok()?.to_path_buf()));
        (result, calls.filter_map(inside).collect())
    }
}

fn changes(call: Call) -> bool {
    matches!(
        call,
        Call::Create
            | Call::MakeDirectory
            | Call::Write
            | Call::Allocate
            | Call::Truncate
            | Call::Link
            | Call::Rename
    )
}

/// What is not durable yet.
#[derive(Debug, Default)]
struct Pending {
    /// Files with content, directories with names.
    files: BTreeSet<PathBuf>,
    directories: BTreeSet<PathBuf>,
    /// Removed data objects.
    removed: BTreeSet<String>,
    checked: u32,
}

impl Pending {
    fn see(&mut self, call: Call, path: &Path, what: &str) {
        let parent = path.parent().unwrap_or(Path::new("")).to_path_buf();
        let name = path.file_name().unwrap_or_default().to_str().unwrap().to_owned();
        let shown = path.display();
        let room = path.iter().next().unwrap_or_default().to_str().unwrap().to_owned();
        if changes(call) {
            let other = self.directories.iter().find(|directory| !path.starts_with(directory));
            assert!(other.is_none(), "{what}: {call:?} {shown} before the names in {other:?} are durable");
            self.checked += 1;
        }
        match call {
            Call::Create | Call::MakeDirectory if !name.starts_with(".t.") && room != "locks" => {
                self.directories.insert(parent);
            }
            Call::Write | Call::Truncate | Call::Allocate if room != "reserve" => {
                self.files.insert(path.to_path_buf());
            }
            Call::Sync => drop(self.files.remove(path)),
            Call::SyncDirectory => {
                self.directories.remove(path);
                if room == "data" {
                    self.removed.clear();
                }
            }
            Call::Link | Call::Rename => {
                let unsynced = self.files.iter().find(|file| file.parent() == Some(&parent));
                assert!(unsynced.is_none(), "{what}: {call:?} {shown} before {unsynced:?} is durable");
                if matches!(room.as_str(), "images" | "volumes") {
                    let data = self.files.iter().find(|file| file.starts_with("data"));
                    assert!(data.is_none(), "{what}: {shown} before {data:?} is durable");
                    let gone = self.removed.iter().find(|id| name.starts_with(*id));
                    assert!(gone.is_none(), "{what}: {shown} before its removal is durable");
                }
                self.files.remove(path);
                self.directories.insert(parent);
            }
            Call::Unlink => {
                self.files.remove(path);
                if room == "data" {
                    self.removed.insert(name);
                }
            }
            _ => {}
        }
    }
}

/// What was done was made durable in order, and all of it in the end.
fn judge(calls: &[(Call, PathBuf)], what: &str) {
    let mut pending = Pending::default();
    for (call, path) in calls {
        pending.see(*call, path, what);
    }
    assert!(pending.checked > 0, "{what}: nothing was done");
    assert!(pending.directories.is_empty(), "{what}: names in {:?} are not durable", pending.directories);
    assert!(pending.files.is_empty(), "{what}: {:?} are not durable", pending.files);
    println!("{what}: {} changes in order", pending.checked);
}

fn possible() -> bool {
    let possible = FaultFs::is_possible();
    if !possible {
        println!("not root, or no /dev/fuse: nothing is tested");
    }
    possible
}

/// All that a check lists.
fn repair(store: &Store) {
    for _ in 0..4 {
        for fix in store.check_storage_repository("A", &CheckOptions::default()).unwrap() {
            let task = store.fix_storage_repository("A", &fix, &FixOptions::default()).unwrap();
            store.run_tasks();
            store.wait_task(&task, None).unwrap();
        }
    }
}

fn write(store: &Store, id: &str, byte: u8) {
    let image = store.open_image("A", id, true).unwrap();
    image.write(i64::from(byte) * 4096, &vec![byte; 100_000]).unwrap();
    image.close().unwrap();
}

#[test]
fn every_operation_is_durable_in_order() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let formatter = Store::new(StoreOptions::default()).unwrap();
    let format =
        || formatter.format_storage_repository("localfs-1.0", &at(&place.repo()), &FormatOptions::default());
    let (done, calls) = place.watch(format);
    done.unwrap();
    judge(&calls, "format");
    // The descriptor makes it a repository.
    let link = calls.iter().position(|(call, _)| *call == Call::Link).unwrap();
    let made = calls.iter().filter(|(call, _)| *call == Call::MakeDirectory);
    for (_, room) in made.chain([&(Call::MakeDirectory, PathBuf::new())]) {
        let synced = calls[..link].iter().any(|(call, path)| *call == Call::SyncDirectory && path == room);
        assert!(synced, "format: {room:?} is not durable before the descriptor");
    }

    let (store, calls) = place.watch(|| place.store());
    judge(&calls, "connect");
    let plain = CreateOptions::default();
    let data = r#"{"some":"text"}"#;
    let (disk, calls) = place.watch(|| store.create_virtual_disk("A", Some(SIZE), None, data, &plain));
    let disk = disk.unwrap().to_string();
    judge(&calls, "create");
    judge(&place.watch(|| write(&store, &disk, 1)).1, "open, write, close");
    let (snapshot, calls) = place.watch(|| store.create_snapshot("A", &disk, data, &plain));
    let snapshot = snapshot.unwrap().to_string();
    judge(&calls, "snapshot");
    judge(&place.watch(|| write(&store, &disk, 2)).1, "open, write, close on an overlay");
    let (child, calls) = place.watch(|| store.create_virtual_disk("A", None, Some(&snapshot), "{}", &plain));
    let child = child.unwrap().to_string();
    judge(&calls, "create on a snapshot");
    let (copy, calls) = place.watch(|| {
        let copy = store.copy_image("A", &disk, Some(&snapshot), "{}", &CopyOptions::default());
        store.run_tasks();
        copy
    });
    let copy = copy.unwrap().to_string();
    judge(&calls, "copy");
    let resize = || store.resize_virtual_disk("A", &copy, 2 * SIZE, &ResizeOptions::default());
    judge(&place.watch(|| resize().unwrap()).1, "resize");
    judge(&place.watch(|| store.set_image_user_data("A", &disk, "[1]").unwrap()).1, "user data");
    let optimize = || {
        store.set_image_strategy("A", &copy, Strategy::Performance).unwrap();
        repair(&store);
    };
    judge(&place.watch(optimize).1, "replace");
    let remove = |id: &str| {
        let options = RemoveOptions { auto_fix: AutoFix::Off, ..RemoveOptions::default() };
        store.remove_image("A", id, &options).unwrap();
        repair(&store);
    };
    judge(&place.watch(|| remove(&child)).1, "remove");
    judge(&place.watch(|| remove(&snapshot)).1, "remove and merge");
    store.close().unwrap();
}

/// A record that another store has just written is made durable before anything is built upon it.
#[test]
fn what_was_read_is_durable_before_it_is_built_upon() {
    if !possible() {
        return;
    }
    let place = Place::formatted();
    let writer = place.store();
    let plain = CreateOptions::default();
    let disk = writer.create_virtual_disk("A", Some(SIZE), None, "{}", &plain).unwrap().to_string();
    let reader = place.store();
    let (snapshot, calls) = place.watch(|| reader.create_snapshot("A", &disk, "{}", &plain));
    snapshot.unwrap();
    let first = calls.iter().position(|(call, path)| changes(*call) && !path.starts_with("locks")).unwrap();
    for room in ["images", "volumes"] {
        let read: Vec<_> = calls[..first]
            .iter()
            .filter(|(call, path)| *call == Call::Read && path.starts_with(room))
            .map(|(_, path)| path.parent().unwrap())
            .collect();
        assert!(!read.is_empty(), "nothing in {room} was read");
        for shard in read {
            let synced =
                calls[..first].iter().any(|(call, path)| *call == Call::SyncDirectory && path == shard);
            assert!(synced, "{shard:?} is not durable before {:?}", calls[first]);
        }
    }
}

/// The removal of a data object by another store, which may not have come to make it durable, is before its record goes.
#[test]
fn what_was_deleted_is_so_durably_before_its_record_goes() {
    if !possible() {
        return;
    }
    let place = Place::formatted();
    let store = place.store();
    let plain = CreateOptions::default();
    let disk = store.create_virtual_disk("A", Some(SIZE), None, "{}", &plain).unwrap().to_string();
    let later = RemoveOptions { auto_fix: AutoFix::Off, ..RemoveOptions::default() };
    store.remove_image("A", &disk, &later).unwrap();
    let data = place.repo().join("data");
    let name = fs::read_dir(&data).unwrap().next().unwrap().unwrap().file_name();
    let work = || {
        fs::remove_file(data.join(&name)).unwrap();
        repair(&store);
    };
    let ((), calls) = place.watch(work);
    // The last put of its record is the tombstone.
    let is_put = |(call, path): &(Call, PathBuf)| {
        let record = path.file_name().unwrap_or_default().to_str().unwrap();
        *call == Call::Link && path.starts_with("volumes") && record.starts_with(name.to_str().unwrap())
    };
    let tombstone = calls.iter().rposition(is_put).expect("nothing was cleaned");
    let durable = calls[..tombstone]
        .iter()
        .any(|(call, path)| *call == Call::SyncDirectory && path.as_os_str() == "data");
    assert!(durable, "its record goes before its removal is durable");
    assert!(store.check_storage_repository("A", &CheckOptions::default()).unwrap().is_empty());
}

/// A file whose flush failed may have lost what was written: the handle believes nothing any more.
#[test]
fn nothing_is_believed_after_a_failed_flush() {
    if !possible() {
        return;
    }
    let place = Place::formatted();
    let store = place.store();
    let disk = store.create_virtual_disk("A", Some(SIZE), None, "{}", &CreateOptions::default()).unwrap();
    let image = store.open_image("A", &disk.to_string(), true).unwrap();
    image.write(0, &[1; 4096]).unwrap();
    place.faults.arm(Fault {
        call: Call::Sync,
        under: "A/data".into(),
        nth: 1,
        answer: Answer::Lost(Errno::IO),
        times: 1,
    });
    assert!(image.flush().is_err());
    assert_eq!(place.faults.disarm().fired, 1);
    assert!(image.flush().is_err(), "the second flush has nothing to say of the first");
    assert!(image.write(0, &[1; 4096]).is_err());
}

/// An exported file has its name only when it is durable, and its name is when the task has ended.
#[test]
fn an_exported_file_is_durable_before_it_has_its_name() {
    if !possible() {
        return;
    }
    let place = Place::formatted();
    let outside = place.faults.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let store = place.store();
    let disk = store.create_virtual_disk("A", Some(SIZE), None, "{}", &CreateOptions::default()).unwrap();
    write(&store, &disk.to_string(), 1);
    let path = outside.join("file");
    place.faults.count();
    let options = ExportOptions::default();
    let task = store.export_image("A", &disk.to_string(), path.to_str().unwrap(), "raw", &options).unwrap();
    store.run_tasks();
    store.wait_task(&task, None).unwrap();
    let calls = place.faults.disarm().calls;
    let outside = |(call, path): &(Call, PathBuf)| path.starts_with("outside").then_some(*call);
    let calls: Vec<Call> = calls.iter().filter_map(outside).collect();
    let last = |call: Call| calls.iter().rposition(|one| *one == call);
    let (written, synced) = (last(Call::Write).unwrap(), last(Call::Sync).unwrap());
    let (linked, durable) = (last(Call::Link).unwrap(), last(Call::SyncDirectory));
    assert!(written < synced && synced < linked, "{calls:?}");
    assert!(durable.is_some_and(|durable| durable > linked), "{calls:?}");
}
