//! The file system of faults does what the directory under it does, and fails as it is told.

#![allow(clippy::unwrap_used, missing_docs, reason = "tests fail by panicking")]

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rustix::fs::{FallocateFlags, FlockOperation, SeekFrom};
use tempfile::TempDir;
use vdsmstore_faults::{Answer, Call, Errno, Fault, FaultFs};

struct Place {
    faults: FaultFs,
    source: TempDir,
    _mount: TempDir,
}

/// None: this user may not mount, which is said.
fn place() -> Option<Place> {
    if !FaultFs::is_possible() {
        println!("not root, or no /dev/fuse: nothing is tested");
        return None;
    }
    let (source, mount) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let faults = FaultFs::mount(source.path(), mount.path()).unwrap();
    Some(Place { faults, source, _mount: mount })
}

fn create(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create_new(true).open(path).unwrap()
}

fn fault(call: Call, nth: u64, answer: Answer) -> Fault {
    Fault { call, under: String::new(), nth, answer, times: 1 }
}

fn errno<T>(result: std::io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

const EIO: Option<i32> = Some(5);

#[test]
fn it_is_a_mirror() {
    let Some(place) = place() else { return };
    let (here, there) = (place.faults.path(), place.source.path());
    fs::create_dir(here.join("room")).unwrap();
    let file = create(&here.join("room/file"));
    file.write_all_at(b"content", 10).unwrap();
    file.sync_all().unwrap();
    fs::hard_link(here.join("room/file"), here.join("second")).unwrap();
    assert_eq!(file.metadata().unwrap().nlink(), 2);
    fs::rename(here.join("second"), here.join("third")).unwrap();
    assert_eq!(fs::read(there.join("third")).unwrap(), b"\0\0\0\0\0\0\0\0\0\0content");
    assert!(fs::hard_link(here.join("third"), here.join("room/file")).is_err());
    fs::remove_file(here.join("room/file")).unwrap();
    assert_eq!((file.metadata().unwrap().nlink(), file.metadata().unwrap().size()), (1, 17));
    assert_eq!(fs::read_dir(here).unwrap().count(), 2);
    fs::remove_dir(here.join("room")).unwrap();
    assert_eq!(fs::read_dir(there).unwrap().count(), 1);
    fs::remove_file(here.join("third")).unwrap();
    // Without a name it is still there.
    let mut bytes = [0; 7];
    file.read_exact_at(&mut bytes, 10).unwrap();
    assert_eq!((&bytes, file.metadata().unwrap().nlink()), (b"content", 0));
    File::open(here).unwrap().sync_all().unwrap();
    assert!(rustix::fs::statvfs(here).unwrap().f_blocks > 0);
}

#[test]
fn space_and_locks() {
    let Some(place) = place() else { return };
    let path = place.faults.path().join("file");
    let file = create(&path);
    rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 1 << 20).unwrap();
    assert_eq!((file.metadata().unwrap().size(), file.metadata().unwrap().blocks()), (1 << 20, 2048));
    file.write_all_at(&vec![1; 1 << 20], 0).unwrap();
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&file, punch, 65536, 65536).unwrap();
    assert_eq!(rustix::fs::seek(&file, SeekFrom::Hole(0)).unwrap(), 65536);
    assert_eq!(rustix::fs::seek(&file, SeekFrom::Data(65536)).unwrap(), 131_072);
    file.set_len(1000).unwrap();
    assert_eq!(rustix::fs::seek(&file, SeekFrom::Data(1000)), Err(Errno::NXIO));
    assert_eq!(file.metadata().unwrap().size(), 1000);
    let other = File::open(&path).unwrap();
    rustix::fs::flock(&file, FlockOperation::LockExclusive).unwrap();
    assert_eq!(rustix::fs::flock(&other, FlockOperation::NonBlockingLockExclusive), Err(Errno::WOULDBLOCK));
    drop(file);
    rustix::fs::flock(&other, FlockOperation::NonBlockingLockExclusive).unwrap();
}

/// Every kind of call fails the second time, on that path alone, and once.
#[test]
fn every_call_can_fail() {
    let Some(place) = place() else { return };
    for directory in ["here", "elsewhere"] {
        fs::create_dir(place.source.path().join(directory)).unwrap();
    }
    for call in Call::ALL {
        let attempt = |directory: &str, turn: u32| {
            let root = place.faults.path().join(directory);
            let name = |what: &str| root.join(format!("{what}-{turn}-{call:?}"));
            let old = place.source.path().join(directory).join(name("old").file_name().unwrap());
            fs::write(&old, b"old content").unwrap();
            let open = || OpenOptions::new().read(true).write(true).open(name("old"));
            let result = match call {
                Call::Open => open().map(drop),
                Call::Create => File::create_new(name("new")).map(drop),
                Call::MakeDirectory => fs::create_dir(name("new")),
                Call::Read => open().unwrap().read_at(&mut [0; 10], 0).map(drop),
                Call::Write => open().unwrap().write_at(&[1; 10], 0).map(drop),
                Call::Allocate => rustix::fs::fallocate(open().unwrap(), FallocateFlags::empty(), 0, 100)
                    .map_err(Into::into),
                Call::Truncate => open().unwrap().set_len(5),
                Call::Sync => open().unwrap().sync_data(),
                Call::SyncDirectory => File::open(&root).unwrap().sync_all(),
                Call::Link => fs::hard_link(name("old"), name("new")),
                Call::Rename => fs::rename(name("old"), name("new")),
                Call::Unlink => fs::remove_file(name("old")),
                Call::List => {
                    let listed: std::io::Result<Vec<_>> = fs::read_dir(&root).and_then(Iterator::collect);
                    listed.map(drop)
                }
            };
            (errno(result), fs::exists(&old).unwrap(), fs::read(&old).ok())
        };
        place.faults.arm(Fault { under: "here".into(), ..fault(call, 2, Answer::Error(Errno::IO)) });
        assert_eq!(attempt("elsewhere", 1).0, None, "{call:?}");
        assert_eq!(attempt("elsewhere", 2).0, None, "{call:?}");
        assert_eq!(attempt("here", 1).0, None, "{call:?}");
        assert_eq!(place.faults.fired(), 0, "{call:?}");
        let failed = attempt("here", 2);
        assert_eq!(failed, (EIO, true, Some(b"old content".to_vec())), "{call:?}: it did something");
        assert_eq!(attempt("here", 3).0, None, "{call:?}");
        let met = place.faults.disarm();
        assert_eq!(met.fired, 1, "{call:?}");
        assert!(met.at.unwrap().starts_with("here"), "{call:?}");
        // Until it is disarmed.
        let answer = Answer::Error(Errno::NOSPC);
        place.faults.arm(Fault { times: u64::MAX, ..fault(call, 1, answer) });
        assert_eq!([attempt("here", 4).0, attempt("here", 5).0], [Some(28); 2], "{call:?}");
        assert_eq!(place.faults.disarm().fired, 2, "{call:?}");
        assert_eq!(attempt("here", 6).0, None, "{call:?}");
    }
}

#[test]
fn calls_that_are_done_in_part() {
    let Some(place) = place() else { return };
    let path = place.faults.path().join("file");
    let file = create(&path);
    let content = || fs::read(place.source.path().join("file")).unwrap();
    place.faults.arm(fault(Call::Write, 1, Answer::Short));
    assert_eq!(file.write_at(b"12345678", 0).unwrap(), 4);
    assert_eq!(content(), b"1234");
    place.faults.arm(fault(Call::Write, 1, Answer::Half(Errno::IO)));
    // In whole words of eight bytes.
    assert_eq!(errno(file.write_at(b"abcdefghijklmnopqrst", 0)), EIO);
    assert_eq!(content(), b"abcdefgh");
    place.faults.arm(fault(Call::Read, 1, Answer::Short));
    assert_eq!(file.read_at(&mut [0; 4], 0).unwrap(), 2);
    place.faults.arm(fault(Call::Link, 1, Answer::Done(Errno::IO)));
    assert_eq!(errno(fs::hard_link(&path, place.faults.path().join("second"))), EIO);
    assert_eq!(fs::read(place.faults.path().join("second")).unwrap(), b"abcdefgh");
    place.faults.arm(fault(Call::Unlink, 1, Answer::Done(Errno::IO)));
    assert_eq!(errno(fs::remove_file(&path)), EIO);
    assert_eq!(place.faults.disarm().fired, 1);
    assert!(!fs::exists(&path).unwrap());
}

/// A sync that fails takes with it what was written since the last one.
#[test]
fn lost_writes() {
    let Some(place) = place() else { return };
    let file = create(&place.faults.path().join("file"));
    place.faults.arm(fault(Call::Sync, 2, Answer::Lost(Errno::IO)));
    file.write_all_at(b"kept", 0).unwrap();
    file.sync_data().unwrap();
    file.write_all_at(b"EPT and more", 1).unwrap();
    file.write_all_at(b"?", 2).unwrap();
    assert_eq!(errno(file.sync_data()), EIO);
    // And the next one is fine.
    file.sync_data().unwrap();
    assert_eq!(place.faults.disarm().fired, 1);
    let mut bytes = [9; 13];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"kept\0\0\0\0\0\0\0\0\0");
}

/// Unmounted by dropping it, also while a file is open.
#[test]
fn it_goes() {
    let Some(place) = place() else { return };
    let file = create(&place.faults.path().join("file"));
    let Place { faults, source, _mount: mount } = place;
    let device = |path: &Path| fs::metadata(path).unwrap().dev();
    assert_ne!(device(mount.path()), device(source.path()));
    drop(faults);
    assert_eq!(device(mount.path()), device(source.path()));
    file.write_all_at(b"1", 0).unwrap();
    assert_eq!(fs::read(source.path().join("file")).unwrap(), b"1");
}
