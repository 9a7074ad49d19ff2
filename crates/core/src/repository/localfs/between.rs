//! One store between two steps of another: what it finds is looked at again once it is locked.

use std::cell::RefCell;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::repository::FormatOptions;

thread_local! {
    /// What is done before the next lock of a volume or registration of a store.
    static NEXT: RefCell<Option<Box<dyn FnOnce()>>> = const { RefCell::new(None) };
}

/// A place between two steps.
pub(super) fn step() {
    if let Some(work) = NEXT.take() {
        work();
    }
}

fn next(work: impl FnOnce() + 'static) {
    NEXT.set(Some(Box::new(work)));
}

/// The same once `skipped` such places were passed.
fn later(skipped: u32, work: impl FnOnce() + 'static) {
    match skipped {
        0 => next(work),
        _ => next(move || later(skipped - 1, work)),
    }
}

fn parameters(path: &Path) -> Map<String, Value> {
    Map::from_iter([("path".to_owned(), json!(path.to_str().unwrap()))])
}

fn connect(path: &Path) -> Result<LocalFs> {
    let host = HostIdentity { host_id: "h".into(), incarnation: Incarnation::random(), boot_id: "b".into() };
    LocalFs::connect(&parameters(path), host)
}

/// Two stores on a new repository.
fn two(path: &Path) -> (LocalFs, LocalFs) {
    format(&parameters(path), &FormatOptions::default()).unwrap();
    (connect(path).unwrap(), connect(path).unwrap())
}

fn inode(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).unwrap().ino()
}

#[test]
fn a_new_volume_is_not_one_that_was_deleted_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let (mine, theirs) = two(dir.path());
    let volume = VolumeId::random();
    let path = mine.path(volume).unwrap();
    // They find it there, take it for one that was left behind, and delete it.
    next(move || {
        let found = theirs.open_volume(volume, Access::Write).unwrap();
        theirs.delete_volume(volume, found).unwrap();
    });
    let made = mine.create_volume(volume).unwrap();
    made.device.write_at(0, &[1; 512]).unwrap();
    assert!(NEXT.take().is_none(), "nobody was in between");
    assert!(path.exists(), "what was written has no name");
    assert_eq!(inode(&path), made.device.id().object);
}

#[test]
fn a_clone_replaces_only_what_it_has_locked() {
    let Some(place) = Reflinks::new() else { return };
    let (mine, theirs) = two(&place.mounted());
    let (from, to) = (VolumeId::random(), VolumeId::random());
    let source = mine.create_volume(from).unwrap();
    source.device.write_at(0, &[1; 4096]).unwrap();
    theirs.create_volume(to).unwrap().device.write_at(0, &[2; 4096]).unwrap();
    let path = mine.path(to).unwrap();
    let (sender, held) = std::sync::mpsc::channel();
    // The first place is the lock of the clone itself. At the second they make the volume anew, and go on holding it.
    later(1, move || {
        let old = theirs.open_volume(to, Access::Write).unwrap();
        theirs.delete_volume(to, old).unwrap();
        let new = theirs.create_volume(to).unwrap();
        new.device.write_at(0, &[3; 4096]).unwrap();
        sender.send((theirs, new)).unwrap();
    });
    let cloned = mine.clone_volume(&source, to, &|| Ok(()));
    let (_theirs, held) = held.try_recv().expect("nobody was in between");
    assert_eq!(inode(&path), held.device.id().object, "a volume was replaced that somebody holds");
    assert_eq!(cloned.unwrap_err().kind(), ErrorKind::ImageInUse);
}

#[test]
fn who_changes_the_descriptor_sees_every_store_that_may_write() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = two(dir.path());
    first.close().unwrap();
    second.close().unwrap();
    let root = dir.path().to_owned();
    next(move || {
        let name = |generation: u64| root.join(format!("descriptor.{generation:016x}"));
        let mut descriptor: Value = serde_json::from_slice(&std::fs::read(name(1)).unwrap()).unwrap();
        descriptor["readonlyCompatible"] = json!(["of a later release"]);
        std::fs::write(name(2), serde_json::to_vec(&descriptor).unwrap()).unwrap();
        // Nobody is there who does not know it: from now on it is used.
        assert_eq!(std::fs::read_dir(root.join("hosts")).unwrap().count(), 0);
    });
    let connected = connect(dir.path());
    assert!(NEXT.take().is_none(), "nobody was in between");
    assert_eq!(connected.err().map(|error| error.kind()), Some(ErrorKind::Conflict), "it may write");
    assert_eq!(std::fs::read_dir(dir.path().join("hosts")).unwrap().count(), 0);
    assert!(connect(dir.path()).unwrap().read_only());
}

/// A mounted XFS in a file, where files can be cloned; None: this process may not mount.
struct Reflinks(TempDir);

impl Reflinks {
    fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            println!("not root: nothing is tested");
            return None;
        }
        let place = Reflinks(tempfile::tempdir().unwrap());
        let image = place.0.path().join("image");
        std::fs::File::create(&image).unwrap().set_len(320 << 20).unwrap();
        std::fs::create_dir(place.mounted()).unwrap();
        let run = |program: &str, arguments: &[&str]| {
            let output = Command::new(program).args(arguments).output().unwrap();
            assert!(output.status.success(), "{program}: {output:?}");
        };
        run("mkfs.xfs", &["-q", image.to_str().unwrap()]);
        run("mount", &["-o", "loop", image.to_str().unwrap(), place.mounted().to_str().unwrap()]);
        Some(place)
    }

    fn mounted(&self) -> PathBuf {
        self.0.path().join("mounted")
    }
}

impl Drop for Reflinks {
    fn drop(&mut self) {
        // Lazily: a test that panics may have something open in it still.
        let _ = Command::new("umount").arg("-l").arg(self.mounted()).output();
    }
}
