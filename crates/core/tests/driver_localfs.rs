//! localfs-1.0: the contract of all drivers on the file systems of this machine, and what is its own: places that are
//! no repository, full and read-only file systems, forged files, QEMU.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod driver;
mod local;

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use driver::{clones, contract, host, image, kind};
use local::{Mount, child, connect, is_root, make, names, open, parameters, tree};
use serde_json::{Value, json};
use vdsmstore_core::ErrorKind;
use vdsmstore_core::id::{BlobId, ImageId, VolumeId};
use vdsmstore_core::repository::localfs::{LocalFs, format};
use vdsmstore_core::repository::{
    Access, CopyOnWrite, Driver, FormatOptions, Liveness, Marker, Put, Read, RecordKey, RecordKind, shard_of,
};
use vdsmstore_io::sys::{LockMode, ofd_try_lock};

#[test]
fn keeps_the_contract() {
    let place = make();
    contract(&|host| Arc::new(connect(place.path(), host).unwrap()));
    // Nothing temporary is left, and of each record at most two generations.
    let left = names(place.path());
    assert!(!left.iter().any(|name| name.contains("/.t.")), "{left:#?}");
}

#[test]
fn keeps_the_contract_on_other_file_systems() {
    for (mkfs, reflink) in [
        (&["mkfs.xfs", "-q"][..], true),
        (&["mkfs.xfs", "-q", "-m", "reflink=0"], false),
        (&["mkfs.btrfs", "-q"], true),
    ] {
        let Some(mount) = Mount::new(mkfs, 320 << 20) else { return };
        format(&parameters(mount.path()), &FormatOptions::default()).unwrap();
        let connect = |host| Arc::new(connect(mount.path(), host).unwrap()) as Arc<dyn Driver>;
        contract(&connect);
        let driver = connect(host("a"));
        assert_eq!(driver.capabilities().reflink, reflink);
        assert_eq!(driver.copy_on_write() == CopyOnWrite::Reflink, reflink);
        if reflink {
            clones(&connect);
            // A clone takes no space of its own.
            let source = driver.create_volume(VolumeId::random()).unwrap();
            source.device.write_at(0, &vec![5; 64 << 20]).unwrap();
            source.device.flush().unwrap();
            let before = driver.usage().unwrap().available;
            drop(driver.clone_volume(&source, VolumeId::random(), &|| Ok(())).unwrap());
            let after = driver.usage().unwrap().available;
            assert!(before.saturating_sub(after) < 4 << 20, "{mkfs:?}: {before} -> {after}");
        } else {
            let source = driver.create_volume(VolumeId::random()).unwrap();
            let result = driver.clone_volume(&source, VolumeId::random(), &|| Ok(()));
            assert_eq!(kind(result), ErrorKind::UnsupportedOperation);
        }
        drop(driver);
        assert!(!names(mount.path()).iter().any(|name| name.contains("/.t.")));
    }
}

#[test]
fn wrong_parameters() {
    let try_both = |parameters: Value| {
        let Value::Object(parameters) = parameters else { unreachable!() };
        let kinds = [
            kind(LocalFs::connect(&parameters, host("a"))),
            kind(format(&parameters, &FormatOptions::default())),
        ];
        assert_eq!(kinds[0], kinds[1]);
        kinds[0]
    };
    assert_eq!(try_both(json!({})), ErrorKind::InvalidParameter);
    assert_eq!(try_both(json!({"path": 1})), ErrorKind::InvalidParameter);
    assert_eq!(try_both(json!({"path": "relative"})), ErrorKind::InvalidParameter);
    assert_eq!(try_both(json!({"path": ""})), ErrorKind::InvalidParameter);
    assert_eq!(try_both(json!({"path": "/a\0b"})), ErrorKind::InvalidParameter);
    assert_eq!(try_both(json!({"path": "/tmp", "mode": 1})), ErrorKind::InvalidParameter);
    assert_eq!(try_both(json!({"path": "/no/such/place"})), ErrorKind::ConnectionFailed);
    assert_eq!(try_both(json!({"path": "/etc/passwd"})), ErrorKind::NotARepository);
    assert_eq!(try_both(json!({"path": "/etc/passwd/below"})), ErrorKind::NotARepository);
    let error = LocalFs::connect(&parameters(Path::new("/no/such/place")), host("a")).unwrap_err();
    assert!(error.message().contains("/no/such/place: no such directory"), "{error}");
}

#[test]
fn formats_only_what_is_empty() {
    let place = tempfile::tempdir().unwrap();
    let again = || format(&parameters(place.path()), &FormatOptions::default());
    assert_eq!(kind(connect(place.path(), host("a"))), ErrorKind::NotARepository);
    fs::write(place.path().join("precious"), "x").unwrap();
    assert_eq!(kind(again()), ErrorKind::NotEmpty);
    assert_eq!(names(place.path()), ["precious"]);
    fs::remove_file(place.path().join("precious")).unwrap();
    // What has our names, but something in it, is not ours either.
    fs::create_dir(place.path().join("data")).unwrap();
    fs::write(place.path().join("data/precious"), "x").unwrap();
    assert_eq!(kind(again()), ErrorKind::NotEmpty);
    assert_eq!(names(place.path()), ["data", "data/precious"]);
    // A format that was interrupted leaves empty directories: it can be repeated.
    fs::remove_file(place.path().join("data/precious")).unwrap();
    fs::create_dir(place.path().join("images")).unwrap();
    fs::write(place.path().join(".t.descriptor"), "{").unwrap();
    again().unwrap();
    assert_eq!(kind(again()), ErrorKind::RepositoryExists);
    let driver = connect(place.path(), host("a")).unwrap();
    assert!(driver.features().contains(&"experimental".to_owned()));
    assert_eq!(fs::read_dir(place.path().join("reserve")).unwrap().count(), 64);
    assert!(fs::metadata(place.path().join("reserve/3f")).unwrap().blocks() * 512 >= 16384);
    assert!(!place.path().join(".t.descriptor").exists());
    let usage = driver.usage().unwrap();
    assert!(usage.available <= usage.capacity && usage.available > 0);
}

#[test]
fn format_options_are_kept_by_all_that_is_created() {
    let place = tempfile::tempdir().unwrap();
    let options = FormatOptions { mode: Some(0o2770), ..FormatOptions::default() };
    let root = is_root();
    let options = if root { FormatOptions { owner: Some(36), group: Some(37), ..options } } else { options };
    format(&parameters(place.path()), &options).unwrap();
    let driver = open(place.path());
    drop(driver.create_volume(VolumeId::random()).unwrap());
    let key = image();
    assert_eq!(driver.put(key, None, b"x").unwrap(), Put::Done(1));
    driver.mark(Marker::Child(ImageId::random(), VolumeId::random())).unwrap();
    driver.put_blob(ImageId::random(), BlobId::random(), b"x").unwrap();
    drop(driver.lock_image(ImageId::random()).unwrap());
    for name in names(place.path()).iter().map(|name| place.path().join(name)).chain([place.path().into()]) {
        let stat = fs::metadata(&name).unwrap();
        let expected = if stat.is_dir() { 0o2770 } else { 0o660 };
        assert_eq!(stat.permissions().mode() & 0o7777, expected, "{}", name.display());
        if root {
            assert_eq!((stat.uid(), stat.gid()), (36, 37), "{}", name.display());
        }
    }
    let wrong = FormatOptions { mode: Some(0o77), ..FormatOptions::default() };
    let empty = tempfile::tempdir().unwrap();
    assert_eq!(kind(format(&parameters(empty.path()), &wrong)), ErrorKind::InvalidParameter);
    assert!(names(empty.path()).is_empty());
}

#[test]
fn descriptors_that_are_not_ours() {
    let place = make();
    let file = |generation: u64| place.path().join(format!("descriptor.{generation:016x}"));
    let good: Value = serde_json::from_slice(&fs::read(file(1)).unwrap()).unwrap();
    let result = |change: &dyn Fn(&mut Value)| {
        let mut descriptor = good.clone();
        change(&mut descriptor);
        fs::write(file(2), serde_json::to_vec(&descriptor).unwrap()).unwrap();
        let before = names(place.path());
        let result = connect(place.path(), host("a"));
        if result.is_err() {
            assert_eq!(names(place.path()), before, "a refused place is left as it is");
        }
        result
    };
    assert!(result(&|_| ()).is_ok());
    assert_eq!(kind(result(&|d| d["format"] = json!("nfs"))), ErrorKind::WrongFormat);
    assert_eq!(kind(result(&|d| d["version"] = json!("1.1"))), ErrorKind::VersionTooNew);
    assert_eq!(kind(result(&|d| d["version"] = json!("2.0"))), ErrorKind::VersionTooNew);
    assert_eq!(kind(result(&|d| d["version"] = json!("x"))), ErrorKind::CorruptRecord);
    assert_eq!(kind(result(&|d| d["repo"] = json!("x"))), ErrorKind::CorruptRecord);
    assert_eq!(kind(result(&|d| *d = json!([]))), ErrorKind::CorruptRecord);
    let unknown = result(&|d| d["incompatible"] = json!(["experimental", "teleport"]));
    let error = unknown.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::VersionTooNew);
    assert!(error.message().contains("teleport"), "{error}");
    assert!(!result(&|d| d["compatible"] = json!(["x"])).unwrap().read_only());
    assert!(result(&|d| d["readonlyCompatible"] = json!(["x"])).unwrap().read_only());
    fs::write(file(2), "no JSON").unwrap();
    assert_eq!(kind(connect(place.path(), host("a"))), ErrorKind::CorruptRecord);
    fs::write(file(2), vec![b' '; 70_000]).unwrap();
    assert_eq!(kind(connect(place.path(), host("a"))), ErrorKind::CorruptRecord);
    fs::remove_file(file(2)).unwrap();
    symlink(file(1), file(2)).unwrap();
    assert_eq!(kind(connect(place.path(), host("a"))), ErrorKind::CorruptRecord);
    fs::remove_file(file(2)).unwrap();
    // Names that are none of ours do not count.
    for name in ["descriptor.2", "descriptor.000000000000000G", "descriptor.0000000000000000", "descriptor"] {
        fs::write(place.path().join(name), "no JSON").unwrap();
    }
    drop(connect(place.path(), host("a")).unwrap());
    fs::remove_dir_all(place.path().join("locks")).unwrap();
    assert_eq!(kind(connect(place.path(), host("a"))), ErrorKind::NotARepository);
}

fn shard(place: &Path, room: &str, key: RecordKey) -> PathBuf {
    let (RecordKey::Image(ImageId(id)) | RecordKey::Volume(VolumeId(id))) = key;
    place.join(room).join(format!("{:03x}", shard_of(id)))
}

fn record(place: &Path, key: RecordKey, generation: u64) -> PathBuf {
    let RecordKey::Image(id) = key else { unreachable!() };
    shard(place, "images", key).join(format!("{id}.{generation:016x}"))
}

#[test]
fn two_generations_are_kept() {
    let place = make();
    let driver = open(place.path());
    let key = image();
    for generation in 0..5 {
        let expect = (generation > 0).then_some(generation);
        assert_eq!(driver.put(key, expect, b"x").unwrap(), Put::Done(generation + 1));
    }
    let found = fs::read_dir(shard(place.path(), "images", key)).unwrap().count();
    assert_eq!(found, 2);
    assert!(record(place.path(), key, 4).exists() && record(place.path(), key, 5).exists());
}

#[test]
fn forged_records() {
    let place = make();
    let driver = open(place.path());
    let key = image();
    assert_eq!(driver.put(key, None, b"{}").unwrap(), Put::Done(1));
    let secret = place.path().join("secret");
    fs::write(&secret, "secret").unwrap();
    let forge = record(place.path(), key, 2);

    symlink(&secret, &forge).unwrap();
    assert_eq!(kind(driver.get(key, Read::Fresh)), ErrorKind::CorruptRecord);
    fs::remove_file(&forge).unwrap();
    fs::create_dir(&forge).unwrap();
    assert_eq!(kind(driver.get(key, Read::Relaxed)), ErrorKind::CorruptRecord);
    fs::remove_dir(&forge).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &forge,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o666),
        0,
    )
    .unwrap();
    assert_eq!(kind(driver.get(key, Read::Fresh)), ErrorKind::CorruptRecord);
    fs::remove_file(&forge).unwrap();
    fs::write(&forge, vec![b'x'; (64 << 10) + 1]).unwrap();
    assert_eq!(kind(driver.get(key, Read::Fresh)), ErrorKind::CorruptRecord);
    fs::remove_file(&forge).unwrap();
    // Beyond the last generation there is no next one. No store leaves such a gap: it is met by the next put.
    fs::write(record(place.path(), key, u64::MAX), "{}").unwrap();
    assert_eq!(driver.put(key, Some(1), b"{}").unwrap(), Put::Conflict);
    assert_eq!(driver.get(key, Read::Fresh).unwrap().unwrap().generation, u64::MAX);
    assert_eq!(kind(driver.put(key, Some(u64::MAX), b"{}")), ErrorKind::CorruptRecord);
    fs::remove_file(record(place.path(), key, u64::MAX)).unwrap();
    // Foreign names are nobody's records.
    let dir = shard(place.path(), "images", key);
    let RecordKey::Image(id) = key else { unreachable!() };
    let upper = id.to_string().to_uppercase();
    for name in [
        format!("{upper}.0000000000000009"),
        format!("{id}.9"),
        format!("{id}.000000000000000A"),
        id.to_string(),
    ] {
        fs::write(dir.join(name), "{}").unwrap();
    }
    fs::write(dir.join("00000000-0000-4000-8000-000000000000.0000000000000001"), "{}").unwrap();
    assert_eq!(driver.get(key, Read::Fresh).unwrap().unwrap().generation, 1);
    assert_eq!(driver.list(RecordKind::Image, shard_of(id.0)).unwrap(), [(id.0, 1)]);
    assert_eq!(kind(driver.put(key, Some(1), &vec![b'x'; (64 << 10) + 1])), ErrorKind::Internal);

    // A shard elsewhere.
    let other = image();
    let dir = shard(place.path(), "images", other);
    if !dir.exists() {
        let elsewhere = tempfile::tempdir().unwrap();
        symlink(elsewhere.path(), &dir).unwrap();
        assert_eq!(kind(driver.put(other, None, b"{}")), ErrorKind::CorruptRecord);
        assert_eq!(kind(driver.get(other, Read::Fresh)), ErrorKind::CorruptRecord);
        assert!(names(elsewhere.path()).is_empty());
    }
    assert_eq!(fs::read(&secret).unwrap(), b"secret");
}

#[test]
fn forged_files() {
    let place = make();
    let driver = open(place.path());
    let secret = place.path().join("secret");
    fs::write(&secret, "secret").unwrap();
    let volume = VolumeId::random();
    let path = driver.path(volume).unwrap();
    for make in
        [&|path: &Path| symlink(&secret, path).unwrap() as (), &|path: &Path| fs::create_dir(path).unwrap()]
            as [&dyn Fn(&Path); 2]
    {
        make(&path);
        for access in [Access::Read, Access::ReadStill, Access::Write, Access::Lease] {
            assert_eq!(kind(driver.open_volume(volume, access)), ErrorKind::ImageBroken);
        }
        assert_eq!(kind(driver.create_volume(volume)), ErrorKind::ImageBroken);
        assert_eq!(kind(driver.qemu_use(volume)), ErrorKind::ImageBroken);
        let _ = fs::remove_file(&path);
        let _ = fs::remove_dir(&path);
    }
    let of = ImageId::random();
    symlink(&secret, place.path().join(format!("locks/{:03x}", shard_of(of.0)))).unwrap();
    assert_eq!(kind(driver.lock_image(of)), ErrorKind::CorruptRecord);
    let blob = BlobId::random();
    driver.put_blob(of, blob, b"x").unwrap();
    let path = place.path().join(format!("blobs/{:03x}/{of}.{blob}", shard_of(of.0)));
    fs::remove_file(&path).unwrap();
    symlink(&secret, &path).unwrap();
    assert_eq!(kind(driver.get_blob(of, blob)), ErrorKind::CorruptRecord);
    // Replacing a link replaces the link.
    driver.put_blob(of, blob, b"mine").unwrap();
    assert_eq!(driver.get_blob(of, blob).unwrap(), b"mine");
    assert_eq!(fs::read(&secret).unwrap(), b"secret");
}

#[test]
fn another_boot_is_dead() {
    let place = make();
    let old = vdsmstore_core::repository::HostIdentity { boot_id: "earlier".to_owned(), ..host("a") };
    let _locked = connect(place.path(), old.clone()).unwrap();
    let driver = connect(place.path(), host("b")).unwrap();
    assert_eq!(driver.liveness(old.incarnation).unwrap(), Liveness::CertainlyDead);
    let damaged = host("c");
    let _locked = connect(place.path(), damaged.clone()).unwrap();
    fs::write(place.path().join(format!("hosts/{}", damaged.incarnation)), "no JSON").unwrap();
    assert_eq!(driver.liveness(damaged.incarnation).unwrap(), Liveness::Alive);
    assert_eq!(kind(driver.host_record(damaged.incarnation)), ErrorKind::CorruptRecord);
}

#[test]
fn a_killed_process_lets_go_of_everything() {
    let place = make();
    let driver = open(place.path());
    let (volume, of) = (VolumeId::random(), ImageId::random());
    drop(driver.create_volume(volume).unwrap());
    let mut process = child("hold", place.path(), &[], &[&volume.to_string(), &of.to_string()]).unwrap();
    let incarnation = process.line().parse().map(vdsmstore_core::id::Incarnation).unwrap();
    assert_eq!(driver.liveness(incarnation).unwrap(), Liveness::Alive);
    assert_eq!(kind(driver.open_volume(volume, Access::Read)), ErrorKind::ImageInUse);
    assert!(driver.lock_image(of).unwrap().is_none());
    process.kill();
    assert_eq!(driver.liveness(incarnation).unwrap(), Liveness::CertainlyDead);
    assert_eq!(driver.host_record(incarnation).unwrap().unwrap().host_id, "child");
    drop(driver.open_volume(volume, Access::Write).unwrap());
    assert!(driver.lock_image(of).unwrap().is_some());
}

/// What is locked is what a process leaves behind that was killed while its requests were under way.
#[test]
fn requests_of_the_dead_are_waited_for() {
    let place = make();
    let driver = open(place.path());
    let volume = VolumeId::random();
    drop(driver.create_volume(volume).unwrap());
    let path = place.path().join("data").join(volume.to_string());
    let file = File::options().read(true).write(true).open(path).unwrap();
    assert!(ofd_try_lock(&file, (1 << 62) + 2, 1, LockMode::Shared).unwrap());
    // Readers need not wait.
    drop(driver.open_volume(volume, Access::ReadStill).unwrap());
    let begun = Instant::now();
    let ended = thread::spawn(move || {
        thread::sleep(Duration::from_millis(300));
        drop(file);
    });
    drop(driver.open_volume(volume, Access::Write).unwrap());
    assert!(begun.elapsed() >= Duration::from_millis(300));
    ended.join().unwrap();
}

#[test]
fn works_without_root() {
    if !is_root() {
        return;
    }
    let nobody = &["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"][..];
    // Where it may write.
    let place = tempfile::tempdir().unwrap();
    let options = FormatOptions { owner: Some(65534), group: Some(65534), mode: Some(0o700) };
    format(&parameters(place.path()), &options).unwrap();
    let mut process = child("work", place.path(), nobody, &[]).unwrap();
    assert_eq!(process.line(), "done");
    // Where it may only read.
    let place = tempfile::tempdir().unwrap();
    let options = FormatOptions { mode: Some(0o755), ..FormatOptions::default() };
    format(&parameters(place.path()), &options).unwrap();
    let driver = open(place.path());
    let (key, volume) = (image(), VolumeId::random());
    assert_eq!(driver.put(key, None, b"x").unwrap(), Put::Done(1));
    drop(driver.create_volume(volume).unwrap());
    let RecordKey::Image(id) = key else { unreachable!() };
    let mut process = child("read", place.path(), nobody, &[&volume.to_string(), &id.to_string()]).unwrap();
    assert_eq!(process.line(), "done");
    // Where it may not even look.
    let place = tempfile::tempdir().unwrap();
    format(&parameters(place.path()), &FormatOptions { mode: Some(0o700), ..FormatOptions::default() })
        .unwrap();
    let mut process = child("fail", place.path(), nobody, &[]).unwrap();
    assert_eq!(process.line(), "PermissionDenied");
}

#[test]
fn a_read_only_mount_can_be_read() {
    let Some(mount) = Mount::new(&["mkfs.ext4", "-q"], 64 << 20) else { return };
    // The root of a fresh ext4 has a directory in it.
    assert!(mount.path().join("lost+found").exists());
    format(&parameters(mount.path()), &FormatOptions::default()).unwrap();
    let (key, volume, of, blob) = (image(), VolumeId::random(), ImageId::random(), BlobId::random());
    let driver = open(mount.path());
    assert_eq!(driver.put(key, None, b"x").unwrap(), Put::Done(1));
    driver.create_volume(volume).unwrap().device.write_at(0, b"bytes").unwrap();
    driver.put_blob(of, blob, b"blob").unwrap();
    driver.close().unwrap();
    drop(driver);
    mount.remount("ro");
    let driver = open(mount.path());
    assert!(driver.read_only());
    assert!(!driver.capabilities().reflink);
    local::reads_only(&driver, key, volume);
    assert_eq!(driver.get_blob(of, blob).unwrap(), b"blob");
    driver.close().unwrap();
    let empty = mount.path().join("lost+found");
    assert_eq!(kind(format(&parameters(&empty), &FormatOptions::default())), ErrorKind::ReadOnlyRepository);
}

#[test]
fn a_full_file_system_lets_things_be_removed() {
    let Some(mount) = Mount::new(&["mkfs.ext4", "-q"], 64 << 20) else { return };
    format(&parameters(mount.path()), &FormatOptions::default()).unwrap();
    let driver = open(mount.path());
    let keys: Vec<_> = (0..6).map(|_| image()).collect();
    for &key in &keys {
        assert_eq!(driver.put(key, None, b"{\"state\":\"live\"}").unwrap(), Put::Done(1));
    }
    let of = ImageId::random();
    driver.put_blob(of, BlobId::random(), b"x").unwrap();
    let (volume, doomed) = (VolumeId::random(), VolumeId::random());
    driver.create_volume(doomed).unwrap().device.write_at(0, &vec![1; 8 << 20]).unwrap();
    let filler = driver.create_volume(volume).unwrap();
    mount.fill(&filler);

    let before = tree(mount.path());
    assert_eq!(kind(driver.put(keys[0], Some(1), b"{\"state\":\"live\",\"n\":2}")), ErrorKind::NoSpace);
    assert_eq!(kind(driver.put(image(), None, &vec![b'x'; 60_000])), ErrorKind::NoSpace);
    assert_eq!(kind(driver.put_blob(of, BlobId::random(), &vec![b'x'; 60_000])), ErrorKind::NoSpace);
    assert_eq!(kind(driver.put_progress(of, &vec![b'x'; 60_000])), ErrorKind::NoSpace);
    let mut after = tree(mount.path());
    // Directories of shards may have been made; nothing else may have changed.
    after.retain(|name, content| content.is_some() || before.contains_key(name));
    assert_eq!(before, after, "what failed has changed something");
    assert_eq!(driver.get(keys[0], Read::Fresh).unwrap().unwrap().generation, 1);

    let reserve = || fs::read_dir(mount.path().join("reserve")).unwrap().count();
    assert_eq!(reserve(), 64);
    assert_eq!(driver.put(keys[0], Some(1), b"{\"state\":\"removed\"}").unwrap(), Put::Done(2));
    for &key in &keys[1..] {
        assert_eq!(driver.delete(key, 1).unwrap(), Put::Done(2));
        assert_eq!(driver.get(key, Read::Fresh).unwrap(), None);
    }
    assert!(reserve() < 64, "no space was needed: the test does not test it");
    // Another process can connect, lock and delete.
    mount.fill(&filler);
    let other = open(mount.path());
    assert!(!other.read_only());
    drop(other.lock_image(of).unwrap().unwrap());
    let locked = other.open_volume(doomed, Access::Write).unwrap();
    other.delete_volume(doomed, locked).unwrap();
    // Then there is space again, first of all for the reserve.
    assert_eq!(reserve(), 64);
    assert_eq!(driver.put(keys[0], Some(2), b"{\"state\":\"live\"}").unwrap(), Put::Done(3));
}

#[test]
fn a_format_that_fails_leaves_nothing() {
    // Too small for the reserve.
    let Some(mount) = Mount::new(&["mkfs.ext4", "-q", "-O", "^has_journal", "-m", "0"], 1 << 20) else {
        return;
    };
    let before = names(mount.path());
    let mode = fs::metadata(mount.path()).unwrap().mode();
    let options = FormatOptions { mode: Some(0o700), ..FormatOptions::default() };
    assert_eq!(kind(format(&parameters(mount.path()), &options)), ErrorKind::NoSpace);
    assert_eq!(names(mount.path()), before);
    assert_eq!(fs::metadata(mount.path()).unwrap().mode(), mode);
    assert_eq!(kind(connect(mount.path(), host("a"))), ErrorKind::NotARepository);
}

/// A lock on a file that was deleted meanwhile would exclude nobody.
#[test]
fn no_lock_is_on_a_deleted_file() {
    let place = make();
    let (a, b) = (open(place.path()), open(place.path()));
    let volume = VolumeId::random();
    let path = a.path(volume).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    let mut opened = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..300 {
                if let Ok(open) = b.create_volume(volume) {
                    b.delete_volume(volume, open).unwrap();
                }
            }
            drop(b.create_volume(volume));
            done.store(true, std::sync::atomic::Ordering::Release);
        });
        loop {
            let last = done.load(std::sync::atomic::Ordering::Acquire);
            match a.open_volume(volume, Access::Write) {
                Ok(open) => {
                    assert_eq!(fs::metadata(&path).unwrap().ino(), open.device.id().object);
                    opened += 1;
                }
                Err(error) => {
                    assert!(
                        matches!(error.kind(), ErrorKind::ImageInUse | ErrorKind::ImageBroken),
                        "{error:?}"
                    );
                }
            }
            if last {
                break;
            }
        }
    });
    assert!(opened > 0);
}

#[test]
fn large_volumes_are_deleted() {
    let place = make();
    let driver = open(place.path());
    let volume = VolumeId::random();
    let open = driver.create_volume(volume).unwrap();
    // More than one step, half of it a hole.
    open.device.allocate(2 << 30, 3 << 30).unwrap();
    assert_eq!(driver.allocated(volume).unwrap() >> 30, 3);
    driver.delete_volume(volume, open).unwrap();
    assert!(!driver.volume_exists(volume).unwrap());
    let open = driver.create_volume(volume).unwrap();
    open.device.set_len(8 << 40).unwrap();
    driver.delete_volume(volume, open).unwrap();
}

mod qemu {
    use super::*;
    use local::{Qemu, qemu_io};

    const OURS: [Access; 4] = [Access::Read, Access::ReadStill, Access::Write, Access::Lease];

    fn volume(driver: &LocalFs) -> (VolumeId, PathBuf) {
        let volume = VolumeId::random();
        driver.create_volume(volume).unwrap().device.set_len(1 << 20).unwrap();
        (volume, driver.path(volume).unwrap())
    }

    #[test]
    fn their_locks_stop_us() {
        let place = make();
        let driver = open(place.path());
        let (volume, path) = volume(&driver);
        let allowed = |path: &Path| {
            let result = OURS.map(|access| match driver.open_volume(volume, access) {
                Ok(_) => true,
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::ImageInUse);
                    assert!(error.message().contains("QEMU"), "{error}");
                    assert!(error.message().contains(path.to_str().unwrap()), "{error}");
                    false
                }
            });
            (result, driver.qemu_use(volume).unwrap())
        };
        let uses = |open, writing| vdsmstore_core::repository::QemuUse { writing, open };
        assert_eq!(allowed(&path), ([true; 4], uses(false, false)));
        let writer = Qemu::io(&path, false);
        assert_eq!(allowed(&path), ([true, false, false, true], uses(true, true)));
        // Seen also when a store has leased the volume for it.
        let lease = driver.open_volume(volume, Access::Lease).unwrap();
        assert_eq!(driver.qemu_use(volume).unwrap(), uses(true, true));
        drop((lease, writer));
        let reader = Qemu::io(&path, true);
        assert_eq!(allowed(&path), ([true, true, false, true], uses(true, false)));
        drop(reader);
        let server = Qemu::nbd(&path, place.path());
        // It listens before it opens the file.
        local::wait(|| driver.qemu_use(volume).unwrap().open);
        assert_eq!(allowed(&path), ([true, false, false, true], uses(true, true)));
        drop(server);
        assert_eq!(allowed(&path), ([true; 4], uses(false, false)));
    }

    #[test]
    fn our_locks_stop_them() {
        let place = make();
        let driver = open(place.path());
        let (volume, path) = volume(&driver);
        let theirs = || (qemu_io(&path, &["-r"], "read 0 512"), qemu_io(&path, &[], "write 0 512"));
        assert_eq!(theirs(), (true, true));
        for (access, expected) in
            OURS.into_iter().zip([(true, true), (true, false), (false, false), (true, true)])
        {
            let held = driver.open_volume(volume, access).unwrap();
            assert_eq!(theirs(), expected, "{access:?}");
            let ours = driver.qemu_use(volume).unwrap();
            assert!(!ours.open && !ours.writing, "{access:?} is no QEMU process");
            drop(held);
            assert_eq!(theirs(), (true, true));
        }
        // Two readers of ours do not disturb each other, nor QEMU's.
        let _readers = [Access::ReadStill; 2].map(|access| driver.open_volume(volume, access).unwrap());
        let _server = Qemu::io(&path, true);
        drop(driver.open_volume(volume, Access::ReadStill).unwrap());
    }
}

/// What the other processes of these tests do; see [`child`].
#[test]
#[ignore = "is run by the other tests"]
fn other_process() {
    local::other_process();
}
