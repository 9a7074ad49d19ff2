//! What a process that was killed had asked the kernel for arrives after its death, and after its locks have gone: nobody
//! writes the same volume before that.

#![allow(
    clippy::cast_possible_wrap,
    clippy::unwrap_used,
    missing_docs,
    reason = "the numbers of tests are small, and tests fail by panicking"
)]

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use uuid::Uuid;
use vdsmstore_core::options::{CheckOptions, CreateOptions, FixOptions};
use vdsmstore_core::{FixType, Store};
use vdsmstore_io::sys::{LockMode, ofd_would_block};
use vdsmstore_tests::dying::{self, Dying, Moment};
use vdsmstore_tests::mounts::{Mounted, Throttle, Transfer, can_mount, device};
use vdsmstore_tests::{new_repo, qemu_equal, store, write};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 96 * MIB;
/// Bytes per second: what is under way takes two seconds.
const RATE: u64 = 6 * MIB;
/// `docs/formats/localfs-1.0.md`, section 4.
const VOLUME: u64 = 1 << 62;
const REQUESTS: u64 = VOLUME + 2;

#[test]
#[ignore = "the host that dies"]
fn dying_host() {
    dying::live();
}

/// Bytes that were written to the device below.
fn written(mount: &Path) -> u64 {
    let (major, minor) = device(mount);
    let stat = format!("/sys/dev/block/{major}:{minor}/stat");
    fs::read_to_string(stat).unwrap().split_whitespace().nth(6).unwrap().parse::<u64>().unwrap() * 512
}

/// How many open files have requests under way, or may have, to that file. The kernel tells its list in parts: an entry may come
/// twice if others go meanwhile, but hardly each time.
fn requests(path: &Path) -> usize {
    let ((major, minor), inode) = (device(path), path.metadata().unwrap().ino());
    let (file, byte) = (format!("{major:02x}:{minor:02x}:{inode}"), REQUESTS.to_string());
    let count = || {
        let locks = fs::read_to_string("/proc/locks").unwrap();
        let fields = locks.lines().map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        fields.filter(|fields| fields.len() > 6 && fields[5] == file && fields[6] == byte).count()
    };
    (0..5).map(|_| count()).min().unwrap()
}

fn largest(directory: &Path) -> PathBuf {
    let files = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    files.max_by_key(|path| path.metadata().unwrap().len()).unwrap()
}

/// A copy is killed while its requests wait for a slow device; another host completes it at once.
fn completed_after_the_last_request(performance: bool) {
    let mounted = Mounted::new("ext4", 600);
    let slow = Throttle::new(mounted.path(), Transfer::Write, RATE);
    let store = store("judge");
    for name in ["A", "B"] {
        new_repo(&store, mounted.path(), name);
    }
    let model = mounted.path().join("model");
    fs::write(&model, (0..SIZE).map(|at| (at / 7 + at / 65536) as u8 | 1).collect::<Vec<u8>>()).unwrap();
    let disk =
        store.create_virtual_disk("A", Some(SIZE as i64), None, "{}", &CreateOptions::default()).unwrap();
    let (disk, new) = (disk.to_string(), Uuid::new_v4().to_string());
    write(&store, "A", &disk, |image| image.write(0, &fs::read(&model).unwrap()));

    let job = json!({ "call": "copy", "repo": "B", "image": disk, "new": new, "connect": ["B", "A"], "performance": performance });
    let mut host = slow.within(|| Dying::start(mounted.path(), &job));
    host.run_until(Some(&Moment::Done(100, Duration::ZERO)));
    let said = host.kill();
    assert!(!said.finished, "{said:?}");
    // It is gone, and its lock with it; its requests are not.
    let volume = largest(&mounted.path().join("B/data"));
    let file = File::options().read(true).write(true).open(&volume).unwrap();
    assert!(!ofd_would_block(&file, VOLUME, 2, LockMode::Exclusive).unwrap());
    assert!(ofd_would_block(&file, REQUESTS, 1, LockMode::Exclusive).unwrap(), "no request was under way");
    let (before, begun) = (written(mounted.path()), Instant::now());
    while written(mounted.path()) < before + MIB {
        assert!(begun.elapsed() < Duration::from_secs(5), "nothing arrived late");
        thread::sleep(Duration::from_millis(10));
    }
    assert!(ofd_would_block(&file, REQUESTS, 1, LockMode::Exclusive).unwrap(), "that was all already");

    let fixes = store.check_storage_repository("B", &CheckOptions::default()).unwrap();
    let mend = fixes.iter().find(|fix| fix.fix_type == FixType::Mend).unwrap();
    let task = store.fix_storage_repository("B", mend, &FixOptions::default()).unwrap();
    let mut most = 0;
    let waits = |store: &Store| store.list_tasks().unwrap().iter().any(|running| running.task_id == task);
    while waits(&store) {
        most = most.max(requests(&volume));
        thread::sleep(Duration::from_millis(1));
    }
    store.wait_task(&task, None).unwrap();
    assert_eq!(most, 1, "hosts with requests under way at once");
    qemu_equal(&store, "B", &new, &model);
}

#[test]
fn a_copy_is_completed_after_the_last_request_of_who_was_killed() {
    assert!(can_mount(), "needs root");
    for performance in [true, false] {
        completed_after_the_last_request(performance);
    }
}
