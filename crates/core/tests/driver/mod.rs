//! What every driver must do, whatever its storage: the same body runs against all of them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, Mutex};

use uuid::Uuid;
use vdsmstore_core::ErrorKind;
use vdsmstore_core::id::{BlobId, ImageId, Incarnation, VolumeId};
use vdsmstore_core::repository::{
    Access, Driver, HostIdentity, Liveness, Marker, OpenVolume, Put, Read, RecordKey, RecordKind, SHARDS,
    shard_of,
};

/// Opens one more connection to the repository under test.
pub type Connect<'a> = &'a dyn Fn(HostIdentity) -> Arc<dyn Driver>;

pub fn host(name: &str) -> HostIdentity {
    HostIdentity { host_id: name.to_owned(), incarnation: Incarnation::random(), boot_id: "boot".to_owned() }
}

pub fn image() -> RecordKey {
    RecordKey::Image(ImageId::random())
}

pub fn kind<T>(result: Result<T, vdsmstore_core::Error>) -> ErrorKind {
    result.err().expect("it succeeded").kind()
}

fn content(driver: &dyn Driver, key: RecordKey) -> Option<(u64, Vec<u8>)> {
    let found = driver.get(key, Read::Fresh).unwrap();
    assert_eq!(found, driver.get(key, Read::Relaxed).unwrap());
    found.map(|record| (record.generation, record.bytes))
}

/// Everything below.
pub fn contract(connect: Connect) {
    // First: the random ids of the others would lie in their shards some day.
    listings(connect);
    what_lies_beside_the_records(connect);
    records(connect);
    generations_never_restart(connect);
    stale_writers(connect);
    racing_writers(connect);
    markers(connect);
    progress_and_blobs(connect);
    leftovers(connect);
    volume_locks(connect);
    volumes(connect);
    image_locks(connect);
    hosts(connect);
    closed(connect);
}

fn records(connect: Connect) {
    let (a, b) = (connect(host("a")), connect(host("b")));
    let key = image();
    assert_eq!(content(&*a, key), None);
    assert_eq!(a.put(key, Some(1), b"{}").unwrap(), Put::Conflict);
    assert_eq!(a.put(key, None, b"{\"n\":1}").unwrap(), Put::Done(1));
    assert_eq!(b.put(key, None, b"{\"n\":2}").unwrap(), Put::Conflict);
    assert_eq!(content(&*b, key), Some((1, b"{\"n\":1}".to_vec())));
    assert_eq!(b.put(key, Some(1), b"{\"n\":2}").unwrap(), Put::Done(2));
    assert_eq!(a.put(key, Some(1), b"{\"n\":3}").unwrap(), Put::Conflict);
    assert_eq!(a.put(key, Some(3), b"{\"n\":3}").unwrap(), Put::Conflict);
    assert_eq!(content(&*a, key), Some((2, b"{\"n\":2}".to_vec())));
    // The bytes are the caller's: no JSON is asked for.
    assert_eq!(a.put(key, Some(2), b"\xff\x00 no JSON").unwrap(), Put::Done(3));
    assert_eq!(content(&*b, key), Some((3, b"\xff\x00 no JSON".to_vec())));
    // An image and a volume of the same id are two records.
    let RecordKey::Image(id) = key else { unreachable!() };
    let volume = RecordKey::Volume(VolumeId(id.0));
    assert_eq!(content(&*a, volume), None);
    assert_eq!(a.put(volume, None, b"v").unwrap(), Put::Done(1));
    assert_eq!(content(&*b, key).unwrap().0, 3);
}

fn generations_never_restart(connect: Connect) {
    let (a, b) = (connect(host("a")), connect(host("b")));
    let key = image();
    assert_eq!(a.delete(key, 1).unwrap(), Put::Conflict);
    assert_eq!(a.put(key, None, b"1").unwrap(), Put::Done(1));
    assert_eq!(b.delete(key, 2).unwrap(), Put::Conflict);
    assert_eq!(b.delete(key, 1).unwrap(), Put::Done(2));
    assert_eq!(content(&*a, key), None);
    assert_eq!(a.put(key, Some(1), b"late").unwrap(), Put::Conflict);
    assert_eq!(content(&*a, key), None);
    assert_eq!(a.put(key, None, b"3").unwrap(), Put::Done(3));
    assert_eq!(content(&*b, key), Some((3, b"3".to_vec())));
    assert_eq!(b.put(key, Some(2), b"late").unwrap(), Put::Conflict);
    assert_eq!(b.delete(key, 3).unwrap(), Put::Done(4));
    // A tombstone where nothing was fences who saw nothing.
    let key = image();
    assert_eq!(a.delete(key, 0).unwrap(), Put::Done(1));
    assert_eq!(content(&*b, key), None);
    assert_eq!(b.put(key, None, b"2").unwrap(), Put::Done(2));
    assert_eq!(a.delete(key, 0).unwrap(), Put::Conflict);
}

fn stale_writers(connect: Connect) {
    let (a, b) = (connect(host("a")), connect(host("b")));
    let key = image();
    assert_eq!(a.put(key, None, b"0").unwrap(), Put::Done(1));
    for generation in 1..20 {
        assert_eq!(b.put(key, Some(generation), b"new").unwrap(), Put::Done(generation + 1));
        for stale in 1..=generation {
            assert_eq!(a.put(key, Some(stale), b"stale").unwrap(), Put::Conflict);
            assert_eq!(a.delete(key, stale).unwrap(), Put::Conflict);
        }
    }
    assert_eq!(content(&*a, key), Some((20, b"new".to_vec())));
}

/// 8 threads on 2 connections count up; each generation has one winner and no count is lost.
fn racing_writers(connect: Connect) {
    const EACH: usize = 20;
    let drivers = [connect(host("a")), connect(host("b"))];
    let key = image();
    assert_eq!(drivers[0].put(key, None, b"0").unwrap(), Put::Done(1));
    let won = Mutex::new(BTreeSet::from([1]));
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (driver, won) = (&drivers[thread % 2], &won);
            scope.spawn(move || {
                let mut done = 0;
                while done < EACH {
                    let now = driver.get(key, Read::Fresh).unwrap().unwrap();
                    let count: u64 = std::str::from_utf8(&now.bytes).unwrap().parse().unwrap();
                    assert_eq!(count + 1, now.generation, "content and generation belong together");
                    match driver.put(key, Some(now.generation), (count + 1).to_string().as_bytes()).unwrap() {
                        Put::Done(generation) => {
                            assert_eq!(generation, now.generation + 1);
                            assert!(won.lock().unwrap().insert(generation), "{generation} has two winners");
                            done += 1;
                        }
                        Put::Conflict => {}
                        // Two others were faster between the put and its last look: either may be true.
                        Put::Unknown => {
                            let later = driver.get(key, Read::Fresh).unwrap().unwrap();
                            assert!(later.generation > now.generation + 2);
                        }
                    }
                }
            });
        }
    });
    let last = content(&*drivers[0], key).unwrap();
    assert_eq!(last.1, (last.0 - 1).to_string().as_bytes());
    assert!(won.into_inner().unwrap().len() >= 8 * EACH);
}

fn listings(connect: Connect) {
    let driver = connect(host("a"));
    let (one, two) =
        (ImageId(Uuid::from_u128(0xabc0 << 112 | 1)), ImageId(Uuid::from_u128(0xabcf << 112 | 2)));
    let other = ImageId(Uuid::from_u128(0xabd0 << 112 | 3));
    assert_eq!((shard_of(one.0), shard_of(two.0), shard_of(other.0)), (0xabc, 0xabc, 0xabd));
    for id in [one, two, other] {
        assert_eq!(driver.put(RecordKey::Image(id), None, b"x").unwrap(), Put::Done(1));
    }
    assert_eq!(driver.put(RecordKey::Image(two), Some(1), b"x").unwrap(), Put::Done(2));
    assert_eq!(driver.put(RecordKey::Image(two), Some(2), b"x").unwrap(), Put::Done(3));
    let list = |kind, shard| driver.list(kind, shard).unwrap().into_iter().collect::<BTreeSet<_>>();
    assert_eq!(list(RecordKind::Image, 0xabc), BTreeSet::from([(one.0, 1), (two.0, 3)]));
    assert_eq!(list(RecordKind::Image, 0xabd), BTreeSet::from([(other.0, 1)]));
    assert_eq!(list(RecordKind::Volume, 0xabc), BTreeSet::new());
}

fn markers(connect: Connect) {
    let (a, b) = (connect(host("a")), connect(host("b")));
    let (image, volume, other) = (ImageId::random(), VolumeId::random(), VolumeId::random());
    assert_eq!(b.children(image).unwrap(), []);
    b.unmark(Marker::Child(image, volume)).unwrap();
    for _ in 0..2 {
        a.mark(Marker::Child(image, volume)).unwrap();
    }
    a.mark(Marker::Child(image, other)).unwrap();
    a.mark(Marker::Child(ImageId::random(), volume)).unwrap();
    a.mark(Marker::Holder(volume, image)).unwrap();
    let children: BTreeSet<_> = b.children(image).unwrap().into_iter().collect();
    assert_eq!(children, BTreeSet::from([volume, other]));
    assert_eq!(b.holders(volume).unwrap(), [image]);
    for _ in 0..2 {
        b.unmark(Marker::Child(image, volume)).unwrap();
    }
    assert_eq!(a.children(image).unwrap(), [other]);
    assert_eq!(a.holders(volume).unwrap(), [image]);
}

fn progress_and_blobs(connect: Connect) {
    let (a, b) = (connect(host("a")), connect(host("b")));
    let (image, blob) = (ImageId::random(), BlobId::random());
    assert_eq!(a.get_progress(image).unwrap(), None);
    a.delete_progress(image).unwrap();
    a.put_progress(image, b"1").unwrap();
    b.put_progress(image, b"2").unwrap();
    assert_eq!(a.get_progress(image).unwrap(), Some(b"2".to_vec()));
    a.delete_progress(image).unwrap();
    assert_eq!(b.get_progress(image).unwrap(), None);

    assert_eq!(kind(a.get_blob(image, blob)), ErrorKind::CorruptRecord);
    a.delete_blob(image, blob).unwrap();
    assert_eq!(a.blobs(image).unwrap(), []);
    let text = vec![b'x'; 1 << 20];
    a.put_blob(image, blob, &text).unwrap();
    assert_eq!(b.get_blob(image, blob).unwrap(), text);
    assert_eq!(kind(b.get_blob(ImageId::random(), blob)), ErrorKind::CorruptRecord);
    assert_eq!(b.blobs(image).unwrap(), [blob]);
    b.delete_blob(image, blob).unwrap();
    assert_eq!(a.blobs(image).unwrap(), []);
}

/// As a set, each once.
fn set<T: Eq + std::hash::Hash>(all: Vec<T>) -> HashSet<T> {
    let count = all.len();
    let set: HashSet<_> = all.into_iter().collect();
    assert_eq!(set.len(), count, "twice in a listing");
    set
}

fn what_lies_beside_the_records(connect: Connect) {
    let (a, b) = (connect(host("a")), connect(host("b")));
    // One shard and the next, in which nothing lies yet.
    let id = |shard: u128, n: u128| Uuid::from_u128(shard << 116 | n);
    let (one, two, next) = (id(0xdef, 1), id(0xdef, 2), id(0xdf0, 1));
    assert_eq!((shard_of(one), shard_of(two), shard_of(next)), (0xdef, 0xdef, 0xdf0));
    let (child, holder) =
        (Marker::Child(ImageId(one), VolumeId(next)), Marker::Holder(VolumeId(one), ImageId(two)));
    let far = Marker::Child(ImageId(next), VolumeId(one));
    for marker in [child, holder, far] {
        a.mark(marker).unwrap();
    }
    let (first, second) = (BlobId::random(), BlobId::random());
    for (owner, blob) in [(one, first), (one, second), (two, first), (next, first)] {
        a.put_blob(ImageId(owner), blob, b"x").unwrap();
    }
    for owner in [one, next] {
        a.put_progress(ImageId(owner), b"x").unwrap();
    }
    // Records are none of these.
    assert_eq!(a.put(RecordKey::Image(ImageId(two)), None, b"x").unwrap(), Put::Done(1));

    let shards = set(b.shards(None).unwrap());
    assert!(shards.contains(&0xdef) && shards.contains(&0xdf0) && shards.iter().all(|&shard| shard < SHARDS));
    assert_eq!(set(b.list_markers(0xdef).unwrap()), HashSet::from([child, holder]));
    assert_eq!(b.list_markers(0xdf0).unwrap(), [far]);
    let blobs = HashSet::from([(ImageId(one), first), (ImageId(one), second), (ImageId(two), first)]);
    assert_eq!(set(b.list_blobs(0xdef).unwrap()), blobs);
    assert_eq!(b.list_blobs(0xdf0).unwrap(), [(ImageId(next), first)]);
    assert_eq!(b.list_progress(0xdef).unwrap(), [ImageId(one)]);
    assert_eq!(b.list_progress(0xdf0).unwrap(), [ImageId(next)]);
    b.unmark(child).unwrap();
    b.delete_progress(ImageId(one)).unwrap();
    b.delete_blob(ImageId(two), first).unwrap();
    assert_eq!(a.list_markers(0xdef).unwrap(), [holder]);
    assert_eq!(a.list_progress(0xdef).unwrap(), []);
    assert_eq!(a.list_blobs(0xdef).unwrap().len(), 2);
    assert_eq!((a.list_markers(0xdf1).unwrap(), a.list_blobs(0xdf1).unwrap()), (vec![], vec![]));

    let volume = VolumeId::random();
    let open = a.create_volume(volume).unwrap();
    assert!(b.list_volumes().unwrap().contains(&volume));
    a.delete_volume(volume, open).unwrap();
    assert!(!b.list_volumes().unwrap().contains(&volume));
}

/// The registration of who did not close is left over, and none is of who did or lives. Without it the dead are as dead.
fn leftovers(connect: Connect) {
    let (dead, alive) = (host("dead"), host("alive"));
    let a = connect(host("a"));
    a.sweep().unwrap();
    assert_eq!(a.leftovers().unwrap(), 0);
    let b = connect(alive.clone());
    let key = image();
    assert_eq!(b.put(key, None, b"x").unwrap(), Put::Done(1));
    connect(host("closes")).close().unwrap();
    assert_eq!(a.leftovers().unwrap(), 0);
    drop(connect(dead.clone()));
    assert_eq!(a.leftovers().unwrap(), 4096);
    assert_eq!(b.leftovers().unwrap(), 4096);
    a.sweep().unwrap();
    assert_eq!((a.leftovers().unwrap(), b.leftovers().unwrap()), (0, 0));
    b.sweep().unwrap();
    assert_eq!(a.host_record(dead.incarnation).unwrap(), None);
    assert_eq!(a.liveness(dead.incarnation).unwrap(), Liveness::CertainlyDead);
    assert_eq!(a.liveness(alive.incarnation).unwrap(), Liveness::Alive);
    assert!(a.host_record(alive.incarnation).unwrap().is_some());
    assert_eq!(content(&*a, key), Some((1, b"x".to_vec())));
}

fn volume_locks(connect: Connect) {
    let shared = |access| matches!(access, Access::Read | Access::ReadStill);
    let all = [Access::Read, Access::ReadStill, Access::Write, Access::Lease];
    let (a, b) = (connect(host("a")), connect(host("b")));
    let volume = VolumeId::random();
    drop(a.create_volume(volume).unwrap());
    for first in all {
        for second in all {
            // Between two stores and within one it is the same.
            for other in [&a, &b] {
                let held = a.open_volume(volume, first).unwrap();
                let result = other.open_volume(volume, second);
                if shared(first) && shared(second) {
                    drop(result.unwrap());
                } else {
                    assert_eq!(kind(result), ErrorKind::ImageInUse, "{first:?} then {second:?}");
                }
                // Nor does a failure, or another handle, release what is held.
                assert_eq!(kind(other.open_volume(volume, Access::Write)), ErrorKind::ImageInUse);
                drop(held);
                drop(other.open_volume(volume, Access::Write).unwrap());
            }
        }
    }
    assert_eq!(kind(a.open_volume(VolumeId::random(), Access::Read)), ErrorKind::ImageBroken);
    assert_eq!(kind(a.open_volume(VolumeId::random(), Access::Write)), ErrorKind::ImageBroken);
}

fn read(volume: &OpenVolume) -> Vec<u8> {
    let mut bytes = vec![0; volume.device.len().unwrap() as usize];
    volume.device.read_at(0, &mut bytes).unwrap();
    bytes
}

fn volumes(connect: Connect) {
    let (a, b) = (connect(host("a")), connect(host("b")));
    let volume = VolumeId::random();
    assert!(!a.volume_exists(volume).unwrap());
    assert_eq!(kind(a.allocated(volume)), ErrorKind::ImageBroken);
    let open = a.create_volume(volume).unwrap();
    assert!(b.volume_exists(volume).unwrap());
    assert_eq!(open.device.len().unwrap(), 0);
    open.device.write_at(0, &[7; 8192]).unwrap();
    open.device.flush().unwrap();
    assert_eq!(b.allocated(volume).unwrap(), 8192);
    assert!(!b.qemu_use(volume).unwrap().open, "our own lock is no QEMU process");

    // Creating it again needs the lock, and empties it.
    for driver in [&a, &b] {
        assert_eq!(kind(driver.create_volume(volume)), ErrorKind::ImageInUse);
    }
    assert_eq!(read(&open), [7; 8192]);
    drop(open);
    let reading = b.open_volume(volume, Access::Read).unwrap();
    assert_eq!(kind(a.create_volume(volume)), ErrorKind::ImageInUse);
    assert_eq!(read(&reading), [7; 8192]);
    assert!(reading.device.write_at(0, b"no").is_err(), "it is open for reading");
    drop(reading);
    // It exists, and stays as it is.
    let open = b.create_volume(volume).unwrap();
    assert_eq!(read(&open), [7; 8192]);
    assert_eq!(kind(a.open_volume(volume, Access::Read)), ErrorKind::ImageInUse);

    let other = b.create_volume(VolumeId::random()).unwrap();
    assert_ne!(other.device.id(), open.device.id());
    assert_eq!(kind(b.delete_volume(volume, other)), ErrorKind::Internal);
    assert!(a.volume_exists(volume).unwrap());
    b.delete_volume(volume, open).unwrap();
    assert!(!a.volume_exists(volume).unwrap());
    assert_eq!(kind(a.open_volume(volume, Access::Read)), ErrorKind::ImageBroken);
    drop(a.create_volume(volume).unwrap());
}

/// Only for storage that can.
pub fn clones(connect: Connect) {
    let (a, b) = (connect(host("a")), connect(host("b")));
    assert!(a.capabilities().reflink);
    let (from, to) = (VolumeId::random(), VolumeId::random());
    let source = a.create_volume(from).unwrap();
    source.device.write_at(0, &vec![1; 65536]).unwrap();
    // Not flushed: the clone has it all the same.
    let target = a.clone_volume(&source, to, &|| Ok(())).unwrap();
    assert_eq!(read(&target), vec![1; 65536]);
    assert_eq!(kind(b.open_volume(to, Access::Read)), ErrorKind::ImageInUse);
    source.device.write_at(0, &[2; 4096]).unwrap();
    target.device.write_at(8192, &[3; 4096]).unwrap();
    assert_eq!(read(&source)[..4096], [2; 4096]);
    assert_eq!(read(&source)[8192..12288], [1; 4096]);
    assert_eq!(read(&target)[..4096], [1; 4096]);
    // Over an existing one only under its lock.
    assert_eq!(kind(b.clone_volume(&source, to, &|| Ok(()))), ErrorKind::ImageInUse);
    drop(target);
    let reader = b.open_volume(to, Access::Read).unwrap();
    assert_eq!(kind(a.clone_volume(&source, to, &|| Ok(()))), ErrorKind::ImageInUse);
    drop(reader);
    // And only if who is to replace it still finds that it is his.
    let completed = || Err(vdsmstore_core::Error::new(ErrorKind::Stopped, "completed by another host"));
    assert_eq!(kind(a.clone_volume(&source, to, &completed)), ErrorKind::Stopped);
    let kept = a.open_volume(to, Access::Read).unwrap();
    assert_eq!(read(&kept)[8192..12288], [3; 4096]);
    drop(kept);
    let target = a.clone_volume(&source, to, &|| Ok(())).unwrap();
    assert_eq!(read(&target), read(&source));
    drop(source);
    // From a source that is only read, by another store.
    drop(target);
    let source = b.open_volume(to, Access::Read).unwrap();
    let third = b.clone_volume(&source, VolumeId::random(), &|| Ok(())).unwrap();
    assert_eq!(read(&third), read(&source));
    assert_eq!(a.get(image(), Read::Fresh).unwrap(), None);
    // From under a writer, whom that does not keep; under no name.
    assert!(a.clone_under_writer());
    let before = a.list_volumes().unwrap().len();
    for access in [Access::Write, Access::Lease, Access::ReadStill] {
        drop(a.create_volume(from).unwrap());
        let writer = a.open_volume(from, Access::Write).unwrap();
        writer.device.write_at(0, &vec![4; 65536]).unwrap();
        drop(writer);
        let held = a.open_volume(from, access).unwrap();
        let moment = b.open_volume(from, Access::Moment).unwrap();
        let pin = b.pin_volume(&moment).unwrap();
        assert_ne!(pin.device.id(), held.device.id());
        let clone = b.clone_volume(&moment, to, &|| Ok(()));
        drop(moment);
        if access != Access::ReadStill {
            held.device.write_at(0, &vec![5; 65536]).unwrap();
        }
        assert_eq!(read(&pin), vec![4; 65536]);
        assert!(pin.device.write_at(0, &[6; 512]).is_err());
        assert_eq!(kind(clone), ErrorKind::ImageInUse, "the target is being read");
    }
    assert_eq!(a.list_volumes().unwrap().len(), before);
    // The lock of who holds it is not touched by any of that.
    let held = a.open_volume(from, Access::Lease).unwrap();
    drop(b.open_volume(from, Access::Moment).unwrap());
    assert_eq!(kind(b.open_volume(from, Access::Read)), ErrorKind::ImageInUse);
    drop(held);
}

fn image_locks(connect: Connect) {
    let (a, b) = (connect(host("a")), connect(host("b")));
    let (one, two) = (ImageId::random(), ImageId::random());
    let held = a.lock_image(one).unwrap().unwrap();
    assert!(a.lock_image(one).unwrap().is_none(), "not twice by one store either");
    assert!(b.lock_image(one).unwrap().is_none());
    // Of the same shard.
    let near = ImageId(Uuid::from_u128(one.0.as_u128() ^ 1));
    drop(b.lock_image(near).unwrap().unwrap());
    drop(b.lock_image(two).unwrap().unwrap());
    assert!(b.lock_image(one).unwrap().is_none());
    drop(held);
    drop(b.lock_image(one).unwrap().unwrap());
}

fn hosts(connect: Connect) {
    let (first, second) = (host("a"), host("b"));
    let (a, b) = (connect(first.clone()), connect(second.clone()));
    assert_eq!(a.repository_nonce(), b.repository_nonce());
    assert_eq!(*a.host(), first);
    assert_eq!(a.liveness(first.incarnation).unwrap(), Liveness::Alive);
    assert_eq!(a.liveness(second.incarnation).unwrap(), Liveness::Alive);
    assert_eq!(a.liveness(Incarnation::random()).unwrap(), Liveness::CertainlyDead);
    let record = a.host_record(second.incarnation).unwrap().unwrap();
    assert_eq!((record.host_id.as_str(), record.boot_id.as_str()), ("b", "boot"));
    // Without closing the record stays, as after a crash.
    drop(b);
    assert_eq!(a.liveness(second.incarnation).unwrap(), Liveness::CertainlyDead);
    assert_eq!(a.host_record(second.incarnation).unwrap().unwrap().host_id, "b");
    let third = host("c");
    let c = connect(third.clone());
    assert_eq!(a.liveness(third.incarnation).unwrap(), Liveness::Alive);
    c.close().unwrap();
    assert_eq!(a.liveness(third.incarnation).unwrap(), Liveness::CertainlyDead);
    assert_eq!(a.host_record(third.incarnation).unwrap(), None);
}

fn closed(connect: Connect) {
    let driver = connect(host("a"));
    let volume = VolumeId::random();
    drop(driver.create_volume(volume).unwrap());
    driver.close().unwrap();
    let closed = ErrorKind::Closed;
    assert_eq!(kind(driver.close()), closed);
    assert_eq!(kind(driver.get(image(), Read::Fresh)), closed);
    assert_eq!(kind(driver.put(image(), None, b"")), closed);
    assert_eq!(kind(driver.delete(image(), 1)), closed);
    assert_eq!(kind(driver.list(RecordKind::Image, 0)), closed);
    assert_eq!(kind(driver.mark(Marker::Child(ImageId::random(), volume))), closed);
    assert_eq!(kind(driver.open_volume(volume, Access::Read)), closed);
    assert_eq!(kind(driver.create_volume(volume)), closed);
    assert_eq!(kind(driver.lock_image(ImageId::random())), closed);
    assert_eq!(kind(driver.usage()), closed);
    assert_eq!(kind(driver.list_markers(0)), closed);
    assert_eq!(kind(driver.list_volumes()), closed);
    assert_eq!(kind(driver.leftovers()), closed);
    assert_eq!(kind(driver.sweep()), closed);
    assert_eq!(kind(driver.liveness(Incarnation::random())), closed);
}
