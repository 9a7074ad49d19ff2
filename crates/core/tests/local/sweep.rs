//! What the dead leave over, and who removes it.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use uuid::Uuid;
use vdsmstore_core::id::{BlobId, ImageId, Incarnation, VolumeId};
use vdsmstore_core::repository::localfs::LocalFs;
use vdsmstore_core::repository::{Driver, Liveness, Marker, Put, Read, RecordKey, shard_of};

use super::{child, connect, make, open, tree};
use crate::driver::{host, image};

/// In all places where a store makes temporary files.
fn temporaries(place: &Path, of: Incarnation) -> Vec<PathBuf> {
    let shards = ["images", "volumes", "progress", "blobs"].map(|room| format!("{room}/abc"));
    let places = shards.into_iter().chain(["data".to_owned()]);
    places.map(|dir| place.join(dir).join(format!(".t.{of}.7"))).collect()
}

/// What a store leaves that ends at the worst moments; one of each kind.
pub fn leave(place: &Path, me: Incarnation) {
    let all = temporaries(place, me);
    for path in &all {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, vec![1; 5000]).unwrap();
    }
    // A put after its link: the record stays.
    let linked = format!("{}.0000000000000001", Uuid::from_u128(0xabc << 116));
    fs::hard_link(&all[0], all[0].with_file_name(linked)).unwrap();
    // A registration before its lock, and the formatting's last step.
    fs::write(place.join(format!("hosts/.t.{me}.0")), "{").unwrap();
    fs::hard_link(place.join("descriptor.0000000000000001"), place.join(".t.descriptor")).unwrap();
}

#[test]
fn temporary_files_of_the_dead_are_swept_by_the_next_put() {
    let place = make();
    let other = host("b");
    let driver = open(place.path());
    let alive = connect(place.path(), other.clone()).unwrap();
    let key = image();
    let RecordKey::Image(id) = key else { unreachable!() };
    assert_eq!(driver.put(key, None, b"1").unwrap(), Put::Done(1));
    let dir = place.path().join(format!("images/{:03x}", shard_of(id.0)));
    let dead = dir.join(format!(".t.{}.0", VolumeId::random()));
    let busy = dir.join(format!(".t.{}.0", other.incarnation));
    fs::write(&dead, "x").unwrap();
    fs::write(&busy, "x").unwrap();
    assert_eq!(driver.put(key, Some(1), b"2").unwrap(), Put::Done(2));
    assert!(!dead.exists() && busy.exists());
    drop(alive);
    assert_eq!(driver.put(key, Some(2), b"3").unwrap(), Put::Done(3));
    assert!(!busy.exists());
}

#[test]
fn what_a_killed_process_left_is_swept() {
    let place = make();
    let driver = open(place.path());
    let key = image();
    assert_eq!(driver.put(key, None, b"x").unwrap(), Put::Done(1));
    drop(driver.create_volume(VolumeId::random()).unwrap());
    driver.mark(Marker::Child(ImageId::random(), VolumeId::random())).unwrap();
    driver.put_blob(ImageId::random(), BlobId::random(), b"x").unwrap();
    driver.put_progress(ImageId::random(), b"x").unwrap();
    let mut process = child("leave", place.path(), &[], &[]).unwrap();
    let incarnation = process.line().parse().map(Incarnation).unwrap();
    let registration = place.path().join(format!("hosts/{incarnation}"));
    // These two belong to nobody who lives, whoever made them.
    fs::remove_file(place.path().join(".t.descriptor")).unwrap();
    fs::remove_file(place.path().join(format!("hosts/.t.{incarnation}.0"))).unwrap();

    // While it lives, nothing of it goes.
    let all = tree(place.path());
    assert_eq!(driver.leftovers().unwrap(), 0);
    driver.sweep().unwrap();
    assert_eq!(tree(place.path()), all);
    process.kill();

    // Nor what only looks like it.
    let fakes = [
        format!("children/abc/.t.{incarnation}.1"),
        format!("data/.t.{incarnation}"),
        format!("data/.t.{incarnation}.x"),
        format!("data/.t.{}.1", incarnation.to_string().to_uppercase()),
        "hosts/somebody".to_owned(),
        "precious".to_owned(),
    ];
    fs::create_dir_all(place.path().join("children/abc")).unwrap();
    for name in &fakes {
        fs::write(place.path().join(name), "x").unwrap();
    }
    fs::create_dir(place.path().join(format!("hosts/{}", Uuid::new_v4()))).unwrap();
    fs::create_dir(place.path().join(format!("data/.t.{incarnation}.2"))).unwrap();
    std::os::unix::fs::symlink("x", place.path().join(format!("data/.t.{incarnation}.3"))).unwrap();
    fs::write(place.path().join(format!("hosts/.t.{incarnation}.0")), "{").unwrap();
    fs::hard_link(place.path().join("descriptor.0000000000000001"), place.path().join(".t.descriptor"))
        .unwrap();

    let mut expected = tree(place.path());
    let gone = temporaries(place.path(), incarnation);
    let more = [
        registration,
        place.path().join(format!("hosts/.t.{incarnation}.0")),
        place.path().join(".t.descriptor"),
    ];
    for path in gone.iter().chain(&more) {
        let name = path.strip_prefix(place.path()).unwrap().to_str().unwrap();
        assert!(expected.remove(name).is_some(), "{name}");
    }
    // Four of 5000 bytes; the linked one frees nothing, but is there.
    assert_eq!(driver.leftovers().unwrap(), 4 * 8192 + 4096 + 3 * 4096);
    driver.sweep().unwrap();
    assert_eq!(tree(place.path()), expected, "neither more nor less");
    assert_eq!(driver.leftovers().unwrap(), 0);
    assert_eq!(driver.liveness(incarnation).unwrap(), Liveness::CertainlyDead);
    let linked = RecordKey::Image(ImageId(Uuid::from_u128(0xabc << 116)));
    assert_eq!(driver.get(linked, Read::Fresh).unwrap().unwrap().bytes, vec![1; 5000]);
    driver.sweep().unwrap();
    assert_eq!(tree(place.path()), expected);
}

/// Puts until it is killed, and says when one fails.
pub fn busy(driver: &LocalFs) {
    println!("says: started");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let (key, of) = (image(), ImageId::random());
                let mut result = driver.put(key, None, b"x");
                loop {
                    let Ok(Put::Done(generation)) = result else { break };
                    if let Err(error) = driver
                        .put_progress(of, b"x")
                        .and_then(|()| driver.put_blob(of, BlobId::random(), b"x"))
                    {
                        println!("says: failed {error:?}");
                    }
                    if generation % 10 == 0 {
                        println!("says: {generation}");
                    }
                    result = driver.put(key, Some(generation), b"x");
                }
                println!("says: failed {result:?}");
            });
        }
    });
}

#[test]
fn a_sweep_does_not_disturb_who_works() {
    let place = make();
    let driver = open(place.path());
    let mut process = child("busy", place.path(), &[], &[]).unwrap();
    assert_eq!(process.line(), "started");
    // Nor who is just connecting.
    let done = AtomicBool::new(false);
    let connected = std::thread::scope(|scope| {
        let connecting = scope.spawn(|| {
            let mut count = 0;
            while !done.load(Ordering::Acquire) {
                connect(place.path(), host("c")).unwrap().close().unwrap();
                count += 1;
            }
            count
        });
        for _ in 0..20 {
            driver.sweep().unwrap();
            let line = process.line();
            assert!(!line.contains("failed"), "{line}");
        }
        done.store(true, Ordering::Release);
        connecting.join().unwrap()
    });
    assert!(connected > 0);
    process.kill();
    assert!(driver.leftovers().unwrap() >= 4096);
    driver.sweep().unwrap();
    assert_eq!(driver.leftovers().unwrap(), 0);
    let left = super::names(place.path());
    assert!(!left.iter().any(|name| name.contains("/.t.")), "{left:#?}");
}

#[test]
fn old_generations_are_swept() {
    let place = make();
    let driver = open(place.path());
    let (key, other) = (image(), image());
    let RecordKey::Image(id) = key else { unreachable!() };
    for generation in 0..5 {
        let expect = (generation > 0).then_some(generation);
        assert_eq!(driver.put(key, expect, b"x").unwrap(), Put::Done(generation + 1));
    }
    assert_eq!(driver.put(other, None, b"x").unwrap(), Put::Done(1));
    assert_eq!(driver.delete(other, 1).unwrap(), Put::Done(2));
    let clean = tree(place.path());
    driver.sweep().unwrap();
    assert_eq!(tree(place.path()), clean, "two generations stay, a tombstone too");
    let dir = place.path().join(format!("images/{:03x}", shard_of(id.0)));
    for old in [1, 3] {
        fs::write(dir.join(format!("{id}.{old:016x}")), "old").unwrap();
    }
    // In a shard that is not its own it is nobody's.
    let wrong = place.path().join(format!("images/{:03x}", shard_of(id.0) ^ 1));
    fs::create_dir_all(&wrong).unwrap();
    for foreign in [1, 9] {
        fs::write(wrong.join(format!("{id}.{foreign:016x}")), "foreign").unwrap();
    }
    assert_eq!(driver.leftovers().unwrap(), 2 * 4096);
    driver.sweep().unwrap();
    assert_eq!(driver.leftovers().unwrap(), 0);
    for foreign in [1, 9] {
        fs::remove_file(wrong.join(format!("{id}.{foreign:016x}"))).unwrap();
    }
    let _ = fs::remove_dir(&wrong);
    assert_eq!(tree(place.path()), clean);
}

#[test]
fn the_reserve_is_made_whole() {
    let place = make();
    let driver = open(place.path());
    let reserve = |name: &str| place.path().join("reserve").join(name);
    fs::remove_file(reserve("05")).unwrap();
    fs::write(reserve("06"), "").unwrap();
    driver.sweep().unwrap();
    assert_eq!(fs::read_dir(place.path().join("reserve")).unwrap().count(), 64);
    for name in ["05", "06"] {
        assert!(fs::metadata(reserve(name)).unwrap().blocks() * 512 >= 16384, "{name}");
    }
}

#[test]
fn a_store_that_cannot_remove_its_registration_is_dead_all_the_same() {
    let place = make();
    let (me, driver) = (host("a"), open(place.path()));
    let closing = connect(place.path(), me.clone()).unwrap();
    let registration = place.path().join(format!("hosts/{}", me.incarnation));
    // What unlink refuses.
    fs::remove_file(&registration).unwrap();
    fs::create_dir(&registration).unwrap();
    assert!(closing.close().is_err());
    assert_eq!(driver.liveness(me.incarnation).unwrap(), Liveness::CertainlyDead);

    // The same for one that never closes.
    let me = host("b");
    drop(connect(place.path(), me.clone()).unwrap());
    assert_eq!(driver.liveness(me.incarnation).unwrap(), Liveness::CertainlyDead);
    assert!(driver.host_record(me.incarnation).unwrap().is_some());
}
